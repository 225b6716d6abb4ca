//! Placement: the candidates for an allocation of memory, as release 2026.1 answers at microversion 1.29.

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

#[derive(serde::Deserialize)]
struct Wanted {
    resources: String,
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
async fn candidates(State(placement): State<Arc<Placement>>, headers: HeaderMap, Query(wanted): Query<Wanted>) -> Response {
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
    if header("openstack-api-version") != Some("placement 1.29") {
        return refuse(StatusCode::NOT_ACCEPTABLE, "Not Acceptable", "Invalid microversion: only 1.29 is known here");
    }
    let Some(Ok(least)) = wanted.resources.strip_prefix("MEMORY_MB:").map(str::parse::<u64>) else {
        return refuse(StatusCode::BAD_REQUEST, "Bad Request", "Invalid resource class in resources parameter");
    };
    let services = match placement.world.services() {
        Ok(services) => services,
        Err(Trouble::Unavailable | Trouble::AnswerLost | Trouble::Refused { .. } | Trouble::NotFound) => {
            return (StatusCode::SERVICE_UNAVAILABLE, "No server is available to handle this request.").into_response();
        }
    };
    let (mut requests, mut summaries) = (Vec::new(), Map::new());
    for service in services.iter().filter(|service| service.free.memory_mb >= least) {
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
    }
    Json(json!({ "allocation_requests": requests, "provider_summaries": Value::Object(summaries) })).into_response()
}
