//! Ironic's API, as far as rebuilding a node needs it, as release 2026.1 (35.0.1) was seen to answer.
//!
//! What a configdrive's `user_data` has written, the new system has: this server reads it as cloud-init would.

use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use serde_json::{Value, json};
use turnaround_workflows::ports::{Installed, RebuildOrder, Token};
use turnaround_workflows::rehearsal::{IronicNode, Trouble, World};

use super::mishaps::lost;
use super::tokens::Tokens;

/// The newest microversion of 2026.1, and the oldest in which all is there that is served here.
const NEWEST: u32 = 111;
const OLDEST: u32 = 61;
/// As cloud-init finds it.
const MARK: &str = "/etc/turnaround/installed";

pub(super) struct Ironic {
    pub(super) world: Arc<World>,
    pub(super) tokens: Arc<Tokens>,
}

type Shared = State<Arc<Ironic>>;

pub(super) fn routes(ironic: Ironic) -> Router {
    let ironic = Arc::new(ironic);
    Router::new()
        .route("/v1/nodes/{node}", get(show).patch(change))
        .route("/v1/nodes/{node}/states/provision", put(provision))
        .route("/v1/ports", get(ports))
        .fallback(async || refuse(404, "Not Found"))
        .layer(middleware::from_fn_with_state(Arc::clone(&ironic), admit))
        .with_state(ironic)
}

/// A document inside a text inside a document.
fn refuse(status: u16, message: &str) -> Response {
    let inner = json!({ "faultcode": "Client", "faultstring": message, "debuginfo": null });
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(json!({ "error_message": inner.to_string() }))).into_response()
}

fn trouble(trouble: Trouble, node: &str) -> Response {
    match trouble {
        Trouble::Unavailable => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Trouble::AnswerLost => lost(),
        Trouble::NotFound => refuse(404, &format!("Node {node} could not be found.")),
        Trouble::Refused { status, reason } => refuse(status, &reason),
    }
}

async fn admit(State(ironic): Shared, request: Request, next: Next) -> Response {
    match objection(&ironic, request.headers()) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

fn objection(ironic: &Ironic, headers: &HeaderMap) -> Option<Response> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(bearer) = header("x-auth-token").and_then(|token| ironic.tokens.bearer(token)) else {
        let message = "The request you have made requires authentication.";
        let body = json!({ "error": { "code": 401, "title": "Unauthorized", "message": message } });
        return Some((StatusCode::UNAUTHORIZED, Json(body)).into_response());
    };
    // A node that is not of one's own project is not seen at all.
    if !bearer.admin {
        return Some(refuse(404, "Node could not be found."));
    }
    let minor = header("x-openstack-ironic-api-version").and_then(|version| version.strip_prefix("1.")?.parse::<u32>().ok());
    if !minor.is_some_and(|minor| (OLDEST..=NEWEST).contains(&minor)) {
        let description = format!("Version was requested but the minor version is not supported by this service. The supported version range is: [1.1, 1.{NEWEST}].");
        let inner = json!({ "code": 406, "title": "Not Acceptable", "description": description });
        return Some((StatusCode::NOT_ACCEPTABLE, Json(json!({ "error_message": inner.to_string() }))).into_response());
    }
    None
}

fn uuid(node: &str) -> String {
    let number = node.bytes().fold(0_u64, |number, byte| number.wrapping_mul(31).wrapping_add(u64::from(byte)));
    format!("dd0c6cfa-6e43-47db-9845-{:012x}", number & 0xffff_ffff_ffff)
}

fn document(node: &IronicNode) -> Value {
    let mut instance_info = json!({ "root_gb": 10, "configdrive": "******", "image_type": "whole-disk" });
    let mut extra = json!({ "rack": "r7" });
    match &node.ordered {
        // From its first deployment, by whomever.
        None => {
            instance_info["image_source"] = json!("http://192.0.2.1/images/first.raw");
            instance_info["image_checksum"] = json!("d41d8cd98f00b204e9800998ecf8427e");
        }
        Some(order) => {
            instance_info["image_source"] = json!(order.source);
            instance_info["image_os_hash_algo"] = json!("sha256");
            instance_info["image_os_hash_value"] = json!(order.sha256);
            extra["turnaround"] = json!({ "token": order.token, "sha256": order.sha256 });
        }
    }
    let (updated, changes) = node.provision_updated;
    // Ironic has microseconds: here they count the changes.
    let updated = updated.to_string().replace('Z', &format!("{:03}+00:00", changes % 1000));
    json!({
        "uuid": uuid(&node.name),
        "name": node.name,
        "driver": "fake-hardware",
        "provision_state": node.provision_state,
        "target_provision_state": node.target_provision_state,
        "provision_updated_at": updated,
        "reservation": node.reservation,
        "maintenance": node.maintenance.is_some(),
        "maintenance_reason": node.maintenance,
        "protected": node.protected,
        "protected_reason": node.protected_reason,
        "retired": false,
        "retired_reason": null,
        "instance_uuid": node.instance_uuid,
        "allocation_uuid": null,
        "last_error": node.last_error,
        "extra": extra,
        "instance_info": instance_info,
    })
}

/// A path names a node by its name or by its id.
fn named(world: &World, path: String) -> String {
    world.machines().into_iter().map(|machine| machine.node).find(|node| uuid(node) == path).unwrap_or(path)
}

async fn show(State(ironic): Shared, Path(node): Path<String>) -> Response {
    let node = named(&ironic.world, node);
    match ironic.world.ironic_node(&node) {
        Ok(found) => Json(document(&found)).into_response(),
        Err(error) => trouble(error, &node),
    }
}

/// A JSON patch: only what an order writes is understood, and that a node is to be protected.
async fn change(State(ironic): Shared, Path(node): Path<String>, Json(patch): Json<Value>) -> Response {
    let node = named(&ironic.world, node);
    let found = match ironic.world.ironic_node(&node) {
        Ok(found) => document(&found),
        Err(error) => return trouble(error, &node),
    };
    let operations = patch.as_array().map(Vec::as_slice).unwrap_or_default();
    for operation in operations.iter().filter(|operation| operation["op"] == "remove") {
        let path = operation["path"].as_str().unwrap_or_default();
        if found.pointer(path).is_none() {
            let key = path.rsplit('/').next().unwrap_or_default();
            return refuse(400, &format!("Couldn't apply patch '{{'op': 'remove', 'path': '{path}'}}'. Reason: can't remove a non-existent object '{key}'"));
        }
    }
    let added = |path: &str| operations.iter().find(|operation| operation["op"] == "add" && operation["path"] == path).map(|operation| &operation["value"]);
    let text = |path: &str| added(path).and_then(Value::as_str).map(str::to_owned);
    if added("/protected") == Some(&Value::Bool(true)) {
        let reason = text("/protected_reason").unwrap_or_default();
        return match ironic.world.protect_record(&node, reason).and_then(|()| ironic.world.ironic_node(&node)) {
            Ok(found) => Json(document(&found)).into_response(),
            Err(error) => trouble(error, &node),
        };
    }
    let unprotects = added("/protected") == Some(&Value::Bool(false));
    let token = added("/extra/turnaround").and_then(|order| order["token"].as_str());
    let order = match (text("/instance_info/image_source"), text("/instance_info/image_os_hash_algo"), text("/instance_info/image_os_hash_value"), token) {
        (Some(source), Some(algorithm), Some(sha256), Some(token)) if algorithm == "sha256" => RebuildOrder { token: Token(token.to_owned()), id: uuid(&node), source, sha256 },
        _ => return refuse(400, "this simulated Ironic only understands the patch of a whole order"),
    };
    let stale = found.pointer("/instance_info/image_checksum").is_some() && !operations.iter().any(|operation| operation["op"] == "remove");
    if stale {
        return refuse(400, "the checksum of the image before would be held against the new one");
    }
    match ironic.world.order_rebuild(&node, &order, unprotects).and_then(|()| ironic.world.ironic_node(&node)) {
        Ok(found) => Json(document(&found)).into_response(),
        Err(error) => trouble(error, &node),
    }
}

async fn provision(State(ironic): Shared, Path(node): Path<String>, Json(wanted): Json<Value>) -> Response {
    let node = named(&ironic.world, node);
    if wanted["target"] != "rebuild" {
        return refuse(400, "this simulated Ironic only knows `rebuild`");
    }
    let drive = &wanted["configdrive"];
    if drive["meta_data"]["hostname"].as_str().is_none() {
        return refuse(400, "without a host name the node would come back as another host");
    }
    let Some(mark) = drive["user_data"].as_str().and_then(written) else {
        return refuse(400, "this simulated Ironic wants a configdrive that leaves a mark");
    };
    match ironic.world.request_rebuild(&node, mark) {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(error) => trouble(error, &node),
    }
}

/// What `user_data` has cloud-init write as our mark.
fn written(user_data: &str) -> Option<Installed> {
    let configs = user_data.split("#cloud-config\n").skip(1).filter_map(|rest| serde_json::from_str::<Value>(rest.lines().next()?).ok());
    let files = configs.flat_map(|config| config["write_files"].as_array().cloned().unwrap_or_default());
    let mark = files.into_iter().find(|file| file["path"] == MARK)?;
    serde_json::from_str(mark["content"].as_str()?).ok()
}

#[derive(serde::Deserialize)]
struct OfNode {
    node: String,
}

async fn ports(State(ironic): Shared, Query(wanted): Query<OfNode>) -> Response {
    let found = ironic.world.machines().into_iter().find(|machine| machine.node == wanted.node || uuid(&machine.node) == wanted.node);
    let Some(machine) = found else { return refuse(404, &format!("Node {} could not be found.", wanted.node)) };
    Json(json!({ "ports": [{ "address": machine.mac, "links": [] }] })).into_response()
}
