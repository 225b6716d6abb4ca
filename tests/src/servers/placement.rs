//! Placement: the candidates for an allocation of memory, as release 2026.1 answers at microversions 1.29 and 1.33.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use turnaround_workflows::ports::InstanceId;
use turnaround_workflows::rehearsal::{Trouble, World};

use super::tokens::Tokens;

pub(super) struct Placement {
    pub(super) world: Arc<World>,
    pub(super) tokens: Arc<Tokens>,
}

/// The extra specs that such a query is made of, and how much memory it wants. None where it is not understood.
fn understood(query: &BTreeMap<String, String>) -> Option<(BTreeMap<String, String>, u64)> {
    let (mut asks, mut memory) = (BTreeMap::new(), None);
    for (key, value) in query {
        if let Some(group) = key.strip_prefix("resources") {
            for one in value.split(',') {
                let (class, amount) = one.split_once(':')?;
                let amount: u64 = amount.parse().ok()?;
                match (group, class) {
                    ("", "MEMORY_MB") => memory = Some(amount),
                    _ => drop(asks.insert(format!("resources{group}:{class}"), amount.to_string())),
                }
            }
        } else if let Some(group) = key.strip_prefix("required") {
            for one in value.split(',') {
                let (name, wanted) = one.strip_prefix('!').map_or((one, "required"), |name| (name, "forbidden"));
                asks.insert(format!("trait{group}:{name}"), wanted.to_owned());
            }
        } else if key != "group_policy" {
            return None;
        }
    }
    Some((asks, memory?))
}

pub(super) fn routes(placement: Placement) -> Router {
    Router::new()
        .route("/allocation_candidates", get(candidates))
        .route("/allocations/{consumer}", get(allocations))
        .route("/resource_providers", get(providers))
        .route("/resource_providers/{uuid}/inventories", get(inventories))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "Not Found", "The resource could not be found."))
        .with_state(Arc::new(placement))
}

fn refuse(status: StatusCode, title: &str, detail: &str) -> Response {
    let error = json!({ "status": status.as_u16(), "title": title, "detail": format!("{detail}\n\n   "), "code": "placement.undefined_code" });
    (status, Json(json!({ "errors": [error] }))).into_response()
}

/// None where who asks is an administrator, in a microversion that is known here.
fn refusal(placement: &Placement, headers: &HeaderMap, policy: &str) -> Option<Response> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(bearer) = header("x-auth-token").and_then(|token| placement.tokens.bearer(token)) else {
        let message = "The request you have made requires authentication.";
        let body = json!({ "error": { "code": 401, "title": "Unauthorized", "message": message } });
        return Some((StatusCode::UNAUTHORIZED, Json(body)).into_response());
    };
    if !bearer.admin {
        let denied = format!("Access was denied to this resource.\n\n Policy does not allow {policy} to be performed.");
        return Some(refuse(StatusCode::FORBIDDEN, "Forbidden", &denied));
    }
    let is_known = matches!(header("openstack-api-version"), Some("placement 1.29" | "placement 1.33"));
    (!is_known).then(|| refuse(StatusCode::NOT_ACCEPTABLE, "Not Acceptable", "Invalid microversion: only 1.29 and 1.33 are known here"))
}

fn away() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "No server is available to handle this request.").into_response()
}

/// A host's provider, and that of its devices below it.
async fn providers(State(placement): State<Arc<Placement>>, headers: HeaderMap, Query(query): Query<BTreeMap<String, String>>) -> Response {
    if let Some(refused) = refusal(&placement, &headers, "placement:resource_providers:list") {
        return refused;
    }
    let Some(root) = query.get("in_tree") else { return refuse(StatusCode::BAD_REQUEST, "Bad Request", "only a tree is told of here") };
    let Ok(services) = placement.world.services() else { return away() };
    let of = |uuid: String, name: String, parent: Option<&str>| {
        json!({ "uuid": uuid, "name": name, "generation": 3, "parent_provider_uuid": parent, "root_provider_uuid": root, "links": [] })
    };
    let tree = services.iter().find(|service| service.id == *root).map(|service| {
        vec![of(root.clone(), service.host.clone(), None), of(format!("{root}-devices"), format!("{}_devices", service.host), Some(root))]
    });
    Json(json!({ "resource_providers": tree.unwrap_or_default() })).into_response()
}

/// What an instance has: its size of its host, its devices of the provider below that.
async fn allocations(State(placement): State<Arc<Placement>>, headers: HeaderMap, Path(consumer): Path<String>) -> Response {
    if let Some(refused) = refusal(&placement, &headers, "placement:allocations:list") {
        return refused;
    }
    let Ok(has) = placement.world.allocations_of(&InstanceId(consumer)) else { return away() };
    let (size, devices): (Vec<_>, Vec<_>) = has.into_iter().partition(|(class, _)| ["VCPU", "MEMORY_MB"].contains(&class.as_str()));
    let of = |resources: Vec<(String, u64)>| json!({ "generation": 3, "resources": resources.into_iter().collect::<BTreeMap<_, _>>() });
    let mut all = Map::new();
    for (provider, resources) in [("host", size), ("host-devices", devices)] {
        if !resources.is_empty() {
            all.insert(provider.to_owned(), of(resources));
        }
    }
    Json(json!({ "allocations": all })).into_response()
}

async fn inventories(State(placement): State<Arc<Placement>>, headers: HeaderMap, Path(uuid): Path<String>) -> Response {
    if let Some(refused) = refusal(&placement, &headers, "placement:resource_providers:inventories:list") {
        return refused;
    }
    let Ok(services) = placement.world.services() else { return away() };
    let (root, of_devices) = uuid.strip_suffix("-devices").map_or((uuid.as_str(), false), |root| (root, true));
    let Some(service) = services.into_iter().find(|service| service.id == root) else {
        return refuse(StatusCode::NOT_FOUND, "Not Found", &format!("No resource provider with uuid {uuid} found"));
    };
    let is_device = |class: &str| service.devices.contains_key(class);
    let one = |total: u64| json!({ "total": total, "reserved": 0, "min_unit": 1, "max_unit": total, "step_size": 1, "allocation_ratio": 1.0 });
    let here = service.inventory.iter().filter(|(class, _)| is_device(class) == of_devices);
    let inventories: Map<String, Value> = here.map(|(class, total)| (class.clone(), one(*total))).collect();
    Json(json!({ "inventories": inventories, "resource_provider_generation": 3 })).into_response()
}

/// Hosts with so much memory left. Before microversion 1.29 the summaries have no tree of providers.
async fn candidates(State(placement): State<Arc<Placement>>, headers: HeaderMap, Query(query): Query<BTreeMap<String, String>>) -> Response {
    if let Some(refused) = refusal(&placement, &headers, "placement:allocation_candidates:list") {
        return refused;
    }
    let version = headers.get("openstack-api-version").and_then(|value| value.to_str().ok());
    let groups = query.keys().filter_map(|key| key.strip_prefix("resources")).filter(|group| !group.is_empty());
    let names: Vec<&str> = groups.collect();
    if names.iter().any(|name| name.starts_with('_')) && version == Some("placement 1.29") {
        return refuse(StatusCode::BAD_REQUEST, "Bad Request", "Invalid query string parameters: Additional properties are not allowed");
    }
    if names.len() > 1 && !query.contains_key("group_policy") {
        let detail = "The \"group_policy\" parameter is required when specifying more than one \"resources{N}\" parameter.";
        return refuse(StatusCode::BAD_REQUEST, "Bad Request", detail);
    }
    let Some((asks, least)) = understood(&query) else {
        return refuse(StatusCode::BAD_REQUEST, "Bad Request", "Invalid resource class in resources parameter");
    };
    let looked = placement.world.services().and_then(|services| Ok((services, placement.world.offering(&asks)?)));
    let (services, offering) = match looked {
        Ok(looked) => looked,
        Err(Trouble::Unavailable | Trouble::AnswerLost | Trouble::Refused { .. } | Trouble::NotFound) => {
            return away();
        }
    };
    let (mut requests, mut summaries) = (Vec::new(), Map::new());
    for service in services.iter().filter(|service| service.free.memory_mb >= least && offering.contains_key(&service.host)) {
        let resource = |capacity: u64, free: u64| json!({ "capacity": capacity, "used": capacity - free });
        let mut resources = json!({
            "VCPU": resource(u64::from(service.vcpus), service.free.vcpus),
            "MEMORY_MB": resource(service.memory_mb, service.free.memory_mb),
        });
        if let Some((all, free)) = service.disk_gb.zip(service.free.disk_gb) {
            resources["DISK_GB"] = resource(all, free);
        }
        requests.push(json!({ "allocations": { &service.id: { "resources": { "MEMORY_MB": least } } } }));
        summaries.insert(
            service.id.clone(),
            json!({
                "resources": resources,
                "traits": if service.enabled { vec!["COMPUTE_NODE"] } else { vec!["COMPUTE_NODE", "COMPUTE_STATUS_DISABLED"] },
                "parent_provider_uuid": null,
                "root_provider_uuid": service.id,
            }),
        );
        // Devices are providers of their own, below their host's.
        let devices: Map<String, Value> = service.devices.iter().map(|(class, free)| (class.clone(), resource(*free, *free))).collect();
        summaries.insert(
            format!("{}-devices", service.id),
            json!({ "resources": devices, "traits": service.traits, "parent_provider_uuid": service.id, "root_provider_uuid": service.id }),
        );
    }
    Json(json!({ "allocation_requests": requests, "provider_summaries": Value::Object(summaries) })).into_response()
}
