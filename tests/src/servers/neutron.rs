//! Neutron: the agents of hosts, and their ports, as release 2026.1 answers.

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
    Router::new().route("/v2.0/agents", get(agents)).route("/v2.0/ports", get(ports)).with_state(Arc::new(neutron))
}

impl Neutron {
    /// Is it an administrator who asks? An answer for whoever has no good token.
    fn admits(&self, headers: &HeaderMap) -> Result<bool, Box<Response>> {
        let token = headers.get("x-auth-token").and_then(|value| value.to_str().ok());
        let bearer = token.and_then(|token| self.tokens.bearer(token));
        bearer.map(|bearer| bearer.admin).ok_or_else(|| {
            let body = json!({ "error": { "code": 401, "title": "Unauthorized", "message": "The request you have made requires authentication." } });
            Box::new((StatusCode::UNAUTHORIZED, Json(body)).into_response())
        })
    }
}

fn away() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "No server is available to handle this request.").into_response()
}

/// All of every host, unless the query names one. Only an administrator sees any.
async fn agents(State(neutron): State<Arc<Neutron>>, headers: HeaderMap, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let admin = match neutron.admits(&headers) {
        Ok(admin) => admin,
        Err(refused) => return *refused,
    };
    let Ok(services) = neutron.world.services() else { return away() };
    let mut list = Vec::new();
    for service in services.iter().filter(|_| admin).filter(|service| query.get("host").is_none_or(|host| *host == service.host)) {
        for (binary, alive) in &service.agents {
            list.push(json!({
                "id": format!("{}-{binary}", service.id), "agent_type": "Open vSwitch agent", "binary": binary, "topic": "N/A", "host": service.host,
                "admin_state_up": true, "alive": alive, "availability_zone": Value::Null, "configurations": {},
            }));
        }
    }
    Json(json!({ "agents": list })).into_response()
}

/// Every instance has a plain one, besides those with a device.
async fn ports(State(neutron): State<Arc<Neutron>>, headers: HeaderMap, Query(query): Query<Vec<(String, String)>>) -> Response {
    let admin = match neutron.admits(&headers) {
        Ok(admin) => admin,
        Err(refused) => return *refused,
    };
    let host = query.iter().find(|(key, _)| key == "binding:host_id").map(|(_, host)| host.as_str());
    let Ok(guests) = neutron.world.guests_where(|guest| host.is_none() || guest.host.as_deref() == host) else { return away() };
    let mut list = Vec::new();
    for guest in guests.iter().filter(|_| admin) {
        for (place, kind) in guest.device_ports.iter().map(String::as_str).chain(["normal"]).enumerate() {
            list.push(json!({
                "id": format!("{}-{place}", guest.id), "device_id": guest.id.0, "device_owner": "compute:nova", "binding:vnic_type": kind,
            }));
        }
    }
    Json(json!({ "ports": list })).into_response()
}
