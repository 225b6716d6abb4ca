//! The HTTP API on the unix socket: what can be asked and ordered, and by whom.

pub mod app;
pub mod caller;
pub mod problem;
pub mod socket;

mod events;
mod extract;
mod journal;
mod lines;
mod log;
mod nodes;
mod rollouts;
mod schedules;
mod signals;
mod status;
mod store;
mod steps;
mod workflows;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::routing::{get, post};

use app::App;
use problem::Problem;
use socket::{ApiListener, Peer};

/// Largest body: a rollout of 1,000 nodes with names of 63 characters.
pub const BODY_BYTES_MAX: usize = 128 * 1024;

/// Every route, for the tests that hold each of them to the rules.
pub const ROUTES: [(&str, &str); 14] = [
    ("GET", "/v1/status"),
    ("GET", "/v1/nodes"),
    ("POST", "/v1/nodes/{node}/release"),
    ("GET", "/v1/workflows"),
    ("GET", "/v1/workflows/{id}"),
    ("GET", "/v1/workflows/{id}/journal"),
    ("GET", "/v1/workflows/{id}/log"),
    ("POST", "/v1/workflows/{id}/signals"),
    ("POST", "/v1/rollouts"),
    ("POST", "/v1/surveys"),
    ("POST", "/v1/store/accept"),
    ("GET", "/v1/schedules"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/events"),
];

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/status", get(status::status))
        .route("/v1/nodes", get(nodes::nodes))
        .route("/v1/nodes/{node}/release", post(nodes::release))
        .route("/v1/workflows", get(workflows::list))
        .route("/v1/workflows/{id}", get(workflows::show))
        .route("/v1/workflows/{id}/journal", get(journal::journal))
        .route("/v1/workflows/{id}/log", get(log::log))
        .route("/v1/workflows/{id}/signals", post(signals::signal))
        .route("/v1/rollouts", post(rollouts::rollout))
        .route("/v1/surveys", post(rollouts::survey))
        .route("/v1/store/accept", post(store::accept))
        .route("/v1/schedules", get(schedules::schedules))
        .route("/v1/jobs", get(schedules::jobs))
        .route("/v1/events", get(events::events))
        .fallback(async |request: Request| Problem::no_route(request.uri().path()))
        .method_not_allowed_fallback(async |request: Request| {
            Problem::wrong_method(request.method().as_str(), request.uri().path())
        })
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), caller::gate))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
}

/// Serves until `app.stop`, then lets requests that are under way finish.
pub async fn serve(listener: ApiListener, app: Arc<App>) -> std::io::Result<()> {
    let stop = app.stop.clone();
    axum::serve(listener, router(app).into_make_service_with_connect_info::<Peer>())
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Axum does not say what a router serves, so it is read here as it is written above.
    #[test]
    fn every_route_that_is_served_is_held_to_the_rules() {
        let routed = include_str!("mod.rs").lines().filter_map(|line| {
            let (path, served) = line.trim().strip_prefix(".route(\"")?.split_once("\", ")?;
            let (method, _) = served.split_once('(')?;
            Some((method.to_uppercase(), path))
        });
        let listed = ROUTES.map(|(method, path)| (method.to_owned(), path));
        assert_eq!(routed.collect::<Vec<_>>(), listed);
    }
}
