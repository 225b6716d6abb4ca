//! The nodes themselves, for the program `site-ssh`, which stands in for OpenSSH's client.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use turnaround_workflows::rehearsal::World;

use super::Login;

pub(super) struct Nodes {
    pub(super) world: Arc<World>,
    pub(super) login: Login,
}

pub(super) fn routes(nodes: Nodes) -> Router {
    Router::new().route("/nodes/{node}", get(facts)).with_state(Arc::new(nodes))
}

/// A node's public host key, as it stands in a list of known hosts. Every installation makes a new one.
pub(crate) fn host_key(node: &str, installed: Option<&str>) -> String {
    let made_from = format!("{node}/{}", installed.unwrap_or("as-delivered"));
    let hex: String = made_from.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5{hex}")
}

/// What a login on the node would find: 200 with its facts, 401 for a wrong key or user, 503 while it does not answer.
async fn facts(State(nodes): State<Arc<Nodes>>, Path(node): Path<String>, headers: HeaderMap) -> Response {
    let Ok(facts) = nodes.world.facts_of(&node) else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let wanted = format!("Key {}:{}", nodes.login.user, nodes.login.password);
    // Whoever is not let in has seen the host key all the same.
    let status = if given == Some(&wanted) { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
    let host_key = host_key(&node, facts.installed.as_ref().map(|installed| installed.token.0.as_str()));
    let facts = if status == StatusCode::OK { json!(facts) } else { json!(null) };
    (status, Json(json!({ "host_key": host_key, "facts": facts }))).into_response()
}
