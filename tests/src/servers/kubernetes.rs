//! The API server of the site's Kubernetes cluster, as far as a drain asks it: nodes, pods, `pods/eviction`, each refusal as a `Status`.

use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use turnaround_workflows::ports::{ClusterNode, Eviction, Pod};
use turnaround_workflows::rehearsal::{PodKind, Trouble, World};

use super::mishaps::lost;

/// The annotation that says on a node who has cordoned it.
const CORDONED: &str = "turnaround/cordoned";
/// Selects the pods of one node.
const ON_NODE: &str = "spec.nodeName=";

pub(super) struct Kubernetes {
    pub(super) world: Arc<World>,
    pub(super) token: String,
}

type Shared = State<Arc<Kubernetes>>;

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selected {
    #[serde(default)]
    field_selector: String,
}

pub(super) fn routes(kubernetes: Kubernetes) -> Router {
    let kubernetes = Arc::new(kubernetes);
    Router::new()
        .route("/api/v1/nodes", get(nodes))
        .route("/api/v1/nodes/{name}", patch(change))
        .route("/api/v1/pods", get(pods))
        .route("/api/v1/namespaces/{namespace}/pods/{name}/eviction", post(evict))
        .fallback(async || refuse(404, "NotFound", "the server could not find the requested resource"))
        .layer(middleware::from_fn_with_state(Arc::clone(&kubernetes), admit))
        .with_state(kubernetes)
}

fn refuse(code: u16, reason: &str, message: &str) -> Response {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code });
    (StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(body)).into_response()
}

fn troubled(trouble: Trouble) -> Response {
    match trouble {
        Trouble::Unavailable => refuse(503, "ServiceUnavailable", "apiserver is shutting down"),
        Trouble::AnswerLost => lost(),
        Trouble::Refused { status: 409, reason } => refuse(409, "Conflict", &reason),
        Trouble::Refused { status, reason } => refuse(status, "BadRequest", &reason),
        Trouble::NotFound => refuse(404, "NotFound", "not found"),
    }
}

async fn admit(State(kubernetes): Shared, request: Request, next: Next) -> Response {
    let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if given == Some(&format!("Bearer {}", kubernetes.token)) { next.run(request).await } else { refuse(401, "Unauthorized", "Unauthorized") }
}

fn list(kind: &str, items: &[Value]) -> Response {
    Json(json!({ "kind": kind, "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": items })).into_response()
}

fn node_document(node: &ClusterNode) -> Value {
    let ready = if node.ready { "True" } else { "Unknown" };
    let mut document = json!({
        "metadata": { "name": node.name, "resourceVersion": node.version, "annotations": { "node.alpha.kubernetes.io/ttl": "0" } },
        // K3s's own provider, which says nothing of the machine.
        "spec": { "providerID": format!("k3s://{}", node.name) },
        "status": { "conditions": [{ "type": "Ready", "status": ready }], "nodeInfo": { "systemUUID": node.instance.0 } },
    });
    if !node.schedulable {
        document["spec"]["unschedulable"] = json!(true);
    }
    if let Some(mark) = &node.mark {
        document["metadata"]["annotations"][CORDONED] = json!(format!("{mark} why"));
    }
    document
}

async fn nodes(State(kubernetes): Shared) -> Response {
    match kubernetes.world.cluster_nodes() {
        Ok(nodes) => list("NodeList", &nodes.iter().map(node_document).collect::<Vec<_>>()),
        Err(trouble) => troubled(trouble),
    }
}

/// A merge patch: what it does not name stays.
async fn change(State(kubernetes): Shared, Path(name): Path<String>, headers: HeaderMap, body: String) -> Response {
    if headers.get(CONTENT_TYPE).is_none_or(|kind| kind != "application/merge-patch+json") {
        return refuse(415, "UnsupportedMediaType", "the body of the request was in an unknown format");
    }
    let Ok(wanted) = serde_json::from_str::<Value>(&body) else { return refuse(400, "BadRequest", "the body is no JSON") };
    let found = match kubernetes.world.cluster_nodes() {
        Ok(nodes) => nodes.into_iter().find(|node| node.name == name),
        Err(trouble) => return troubled(trouble),
    };
    let Some(mut node) = found else { return refuse(404, "NotFound", &format!("nodes \"{name}\" not found")) };
    let schedulable = match wanted["spec"].get("unschedulable") {
        Some(unschedulable) => unschedulable != &json!(true),
        None => node.schedulable,
    };
    let mark = match wanted["metadata"]["annotations"].get(CORDONED) {
        Some(text) => text.as_str().and_then(|text| text.split(' ').next()).map(str::to_owned),
        None => node.mark.clone(),
    };
    if let Some(version) = wanted["metadata"]["resourceVersion"].as_str() {
        version.clone_into(&mut node.version);
    }
    match kubernetes.world.set_cordon(&node, schedulable, mark) {
        Ok(()) => Json(json!({ "kind": "Node" })).into_response(),
        Err(trouble) => troubled(trouble),
    }
}

fn pod_document((pod, kind): &(Pod, PodKind), node: &str) -> Value {
    let owner = match kind {
        PodKind::Replica => Some("ReplicaSet"),
        PodKind::Daemon => Some("DaemonSet"),
        PodKind::Alone => None,
    };
    let owners: Vec<Value> = owner.into_iter().map(|kind| json!({ "kind": kind, "name": "owner", "controller": true })).collect();
    let mut document = json!({
        "metadata": { "name": pod.name, "namespace": pod.namespace, "uid": pod.uid, "ownerReferences": owners },
        "spec": { "nodeName": node },
        "status": { "phase": "Running" },
    });
    if pod.terminating {
        document["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    document
}

async fn pods(State(kubernetes): Shared, Query(selected): Query<Selected>) -> Response {
    let Some(node) = selected.field_selector.strip_prefix(ON_NODE) else {
        return refuse(400, "BadRequest", "only the pods of one node are listed here");
    };
    match kubernetes.world.cluster_pods(node) {
        Ok(pods) => list("PodList", &pods.iter().map(|pod| pod_document(pod, node)).collect::<Vec<_>>()),
        Err(trouble) => troubled(trouble),
    }
}

fn pod_named(world: &World, name: &str) -> Result<Option<Pod>, Trouble> {
    for node in world.cluster_nodes()? {
        if let Some((pod, _)) = world.cluster_pods(&node.name)?.into_iter().find(|(pod, _)| pod.name == name) {
            return Ok(Some(pod));
        }
    }
    Ok(None)
}

async fn evict(State(kubernetes): Shared, Path((namespace, name)): Path<(String, String)>, Json(wanted): Json<Value>) -> Response {
    if wanted["apiVersion"] != "policy/v1" || wanted["kind"] != "Eviction" || wanted["metadata"]["name"] != json!(name) {
        return refuse(400, "BadRequest", "this is no eviction of that pod");
    }
    let Some(uid) = wanted["deleteOptions"]["preconditions"]["uid"].as_str() else {
        return refuse(400, "BadRequest", "which pod of that name?");
    };
    match pod_named(&kubernetes.world, &name) {
        Ok(Some(there)) if there.uid != uid => {
            let message = format!("the UID in the precondition ({uid}) does not match the UID in record ({})", there.uid);
            return refuse(409, "Conflict", &message);
        }
        Ok(_) => {}
        Err(trouble) => return troubled(trouble),
    }
    let pod = Pod { namespace, name, uid: uid.to_owned(), terminating: false, alone: false };
    match kubernetes.world.evict_pod(&pod) {
        Ok(Eviction::Accepted) => (StatusCode::CREATED, Json(json!({ "kind": "Status", "status": "Success" }))).into_response(),
        Ok(Eviction::NotNow { reason }) => refuse(429, "TooManyRequests", &reason),
        Err(trouble) => troubled(trouble),
    }
}
