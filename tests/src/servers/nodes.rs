//! The nodes themselves, and the setup script, for the program `site-ssh`, which stands in for OpenSSH's client and for that script.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use serde_json::json;
use turnaround_workflows::ports::{HostRecap, ScriptRun, ScriptState};
use turnaround_workflows::rehearsal::World;

use super::Login;

/// As a shell tells of SIGKILL.
const KILLED: i32 = 137;

pub(super) struct Nodes {
    pub(super) world: Arc<World>,
    pub(super) login: Login,
}

impl Nodes {
    fn lets_in(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        given == Some(&format!("Key {}:{}", self.login.user, self.login.password))
    }
}

pub(super) fn routes(nodes: Nodes) -> Router {
    Router::new()
        .route("/nodes/{node}", get(facts))
        .route("/nodes/{node}/command", put(command))
        .route("/scripts/{name}", get(script).put(start_script))
        .with_state(Arc::new(nodes))
}

/// A node's public host key, as it stands in a list of known hosts. Every installation makes a new one.
pub(crate) fn host_key(node: &str, installed: Option<&str>) -> String {
    let made_from = format!("{node}/{}", installed.unwrap_or("as-delivered"));
    let hex: String = made_from.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5{hex}")
}

/// What a login on the node would find: 200 with its facts, 401 for a wrong key or user, 503 while it does not answer.
async fn facts(State(nodes): State<Arc<Nodes>>, Path(node): Path<String>, headers: HeaderMap) -> Response {
    let (Ok(facts), Ok(stock)) = (nodes.world.facts_of(&node), nodes.world.stock_of(&node)) else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    // Whoever is not let in has seen the host key all the same.
    let status = if nodes.lets_in(&headers) { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
    let host_key = host_key(&node, facts.installed.as_ref().map(|installed| installed.token.0.as_str()));
    let mut told = json!({ "host_key": host_key });
    if status == StatusCode::OK {
        told = json!({ "host_key": host_key, "facts": facts, "stock": stock, "guests": nodes.world.guests_of(&node).unwrap_or_default(), "macs": nodes.world.own_macs_of(&node).unwrap_or_default() });
    }
    (status, Json(told)).into_response()
}

/// How the command in the body ends on the node.
async fn command(State(nodes): State<Arc<Nodes>>, Path(node): Path<String>, headers: HeaderMap, Json(command): Json<String>) -> Response {
    let (Ok(facts), Ok(end)) = (nodes.world.facts_of(&node), nodes.world.run_on(&node, &command)) else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    if !nodes.lets_in(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let host_key = host_key(&node, facts.installed.as_ref().map(|installed| installed.token.0.as_str()));
    Json(json!({ "host_key": host_key, "end": end })).into_response()
}

/// The setup script begins, with the arguments in the body.
async fn start_script(
    State(nodes): State<Arc<Nodes>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(arguments): Json<Vec<String>>,
) -> StatusCode {
    if !nodes.lets_in(&headers) {
        return StatusCode::UNAUTHORIZED;
    }
    match nodes.world.start_script(&ScriptRun { name, arguments }) {
        Ok(()) => StatusCode::CREATED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// What the script would write and end with: `code` is null while it runs.
async fn script(State(nodes): State<Arc<Nodes>>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    if !nodes.lets_in(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let told = match nodes.world.script(&name) {
        ScriptState::NotStarted => return StatusCode::NOT_FOUND.into_response(),
        ScriptState::Running { last_line } => json!({ "code": null, "text": format!("{last_line}\n") }),
        ScriptState::Lost { .. } => json!({ "code": KILLED, "text": "" }),
        ScriptState::Ended(end) => {
            let line = |host: &HostRecap| {
                let HostRecap { host, ok, changed, unreachable, failed } = host;
                format!("{host:<26} : ok={ok} changed={changed} unreachable={unreachable} failed={failed} skipped=0\n")
            };
            let recap: String = end.recap.iter().map(line).collect();
            json!({ "code": end.code, "text": format!("\nPLAY RECAP {}\n{recap}", "*".repeat(20)) })
        }
    };
    Json(told).into_response()
}
