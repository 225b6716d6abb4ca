//! Who asks, and what they may do. Whoever can open the socket may read; changes are for root, the daemon's own user
//! and the configured operators.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use tracing::field::Empty;
use tracing::{Instrument as _, info, info_span};
use turnaround_workflows::telemetry;

use super::app::App;
use super::problem::Problem;
use super::socket::Peer;
use crate::wire::CallerView;

/// Users whose names are remembered. A bastion has some dozen.
const NAMES_REMEMBERED_MAX: usize = 256;

/// Who may change things.
#[derive(Debug)]
pub struct Access {
    /// Users that always may.
    trusted: Vec<u32>,
    operators: Vec<String>,
    names: Mutex<HashMap<u32, String>>,
}

impl Access {
    /// Root, the daemon's own user, and `operators`.
    pub fn new(operators: &[String]) -> Access {
        Access::only(vec![0, nix::unistd::Uid::effective().as_raw()], operators)
    }

    /// The users of these ids and names, and nobody else.
    pub fn only(trusted: Vec<u32>, operators: &[String]) -> Access {
        Access { trusted, operators: operators.to_vec(), names: Mutex::default() }
    }

    async fn caller(&self, peer: Peer) -> Result<Caller, Problem> {
        let uid = peer.uid.ok_or_else(Problem::stranger)?;
        let user = self.name(uid).await;
        let may_change = self.trusted.contains(&uid) || self.operators.contains(&user);
        Ok(Caller(CallerView { user, may_change }))
    }

    /// The name of a user; `uid 1234` if it has none. No operator can be called so: names have no spaces.
    async fn name(&self, uid: u32) -> String {
        if let Some(name) = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(&uid) {
            return name.clone();
        }
        // May ask a directory server over the network.
        let looked = tokio::task::spawn_blocking(move || nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))).await;
        let Ok(Ok(Some(user))) = looked else { return format!("uid {uid}") };
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES_REMEMBERED_MAX {
            names.clear();
        }
        names.insert(uid, user.name.clone());
        user.name
    }
}

/// The user behind a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller(pub CallerView);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Caller, Problem> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(Problem::stranger)
    }
}

/// Every request comes through here: what is not a mere look needs somebody who may change things, whatever the
/// route. A new route can't forget to ask.
pub(super) async fn gate(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let caller = app.access.caller(peer).await?;
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    if !looks && !caller.0.may_change {
        info!(user = caller.0.user, method = %request.method(), path = request.uri().path(), "change refused");
        return Err(Problem::not_an_operator(&caller.0.user));
    }
    let span = info_span!(
        "api", otel.name = %format!("{} {}", request.method(), request.uri().path()), otel.kind = "server",
        user = caller.0.user, trace = Empty, http.response.status_code = Empty,
    );
    telemetry::show_trace(&span);
    request.extensions_mut().insert(caller);
    let response = next.run(request).instrument(span.clone()).await;
    span.record("http.response.status_code", i64::from(response.status().as_u16()));
    Ok(response)
}
