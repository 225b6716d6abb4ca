//! Neutron: the agents of hosts, as release 2026.1 answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use turnaround_workflows::rehearsal::World;

use super::tokens::Tokens;

pub(super) struct Neutron {
    pub(super) world: Arc<World>,
    pub(super) tokens: Arc<Tokens>,
}

pub(super) fn routes(neutron: Neutron) -> Router {
    Router::new().route("/v2.0/agents", get(agents)).with_state(Arc::new(neutron))
}

/// All of every host, unless the query names one. Only an administrator sees any.
async fn agents(State(neutron): State<Arc<Neutron>>, headers: HeaderMap, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let token = headers.get("x-auth-token").and_then(|value| value.to_str().ok());
    let Some(bearer) = token.and_then(|token| neutron.tokens.bearer(token)) else {
        let body = json!({ "error": { "code": 401, "title": "Unauthorized", "message": "The request you have made requires authentication." } });
        return (StatusCode::UNAUTHORIZED, Json(body)).into_response();
    };
    let Ok(services) = neutron.world.services() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "No server is available to handle this request.").into_response();
    };
    let mut list = Vec::new();
    for service in services.iter().filter(|_| bearer.admin).filter(|service| query.get("host").is_none_or(|host| *host == service.host)) {
        for (binary, alive) in &service.agents {
            list.push(json!({
                "id": format!("{}-{binary}", service.id), "agent_type": "Open vSwitch agent", "binary": binary, "topic": "N/A", "host": service.host,
                "admin_state_up": true, "alive": alive, "availability_zone": Value::Null, "configurations": {},
            }));
        }
    }
    Json(json!({ "agents": list })).into_response()
}
