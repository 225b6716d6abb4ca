//! Placement: the candidates for an allocation of memory, as release 2026.1 answers at microversions 1.29 and 1.33.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};
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
        .fallback(async || refuse(StatusCode::NOT_FOUND, "Not Found", "The resource could not be found."))
        .with_state(Arc::new(placement))
}

fn refuse(status: StatusCode, title: &str, detail: &str) -> Response {
    let error = json!({ "status": status.as_u16(), "title": title, "detail": format!("{detail}\n\n   "), "code": "placement.undefined_code" });
    (status, Json(json!({ "errors": [error] }))).into_response()
}

/// Hosts with so much memory left. Before microversion 1.29 the summaries have no tree of providers.
async fn candidates(State(placement): State<Arc<Placement>>, headers: HeaderMap, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(bearer) = header("x-auth-token").and_then(|token| placement.tokens.bearer(token)) else {
        let message = "The request you have made requires authentication.";
        let body = json!({ "error": { "code": 401, "title": "Unauthorized", "message": message } });
        return (StatusCode::UNAUTHORIZED, Json(body)).into_response();
    };
    if !bearer.admin {
        let denied = "Access was denied to this resource.\n\n Policy does not allow placement:allocation_candidates:list to be performed.";
        return refuse(StatusCode::FORBIDDEN, "Forbidden", denied);
    }
    let version = header("openstack-api-version");
    if !matches!(version, Some("placement 1.29" | "placement 1.33")) {
        return refuse(StatusCode::NOT_ACCEPTABLE, "Not Acceptable", "Invalid microversion: only 1.29 and 1.33 are known here");
    }
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
            return (StatusCode::SERVICE_UNAVAILABLE, "No server is available to handle this request.").into_response();
        }
    };
    let (mut requests, mut summaries) = (Vec::new(), Map::new());
    for service in services.iter().filter(|service| service.free.memory_mb >= least && offering.contains_key(&service.host)) {
        let resource = |capacity: u64, free: u64| json!({ "capacity": capacity, "used": capacity - free });
        requests.push(json!({ "allocations": { &service.id: { "resources": { "MEMORY_MB": least } } } }));
        summaries.insert(
            service.id.clone(),
            json!({
                "resources": {
                    "VCPU": resource(u64::from(service.vcpus), service.free.vcpus),
                    "MEMORY_MB": resource(service.memory_mb, service.free.memory_mb),
                },
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
