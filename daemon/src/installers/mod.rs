//! Listens, by plain HTTP, to what installers say of themselves: `PUT` or `POST /installer/TOKEN/started`, `/failed` or `/installed`.
//!
//! It is a network in which nobody is trusted, and nobody is asked who he is. So everything here has a bound, and what comes of it is judged by
//! [`ReportDesk`]: a word that names a staged token is kept once, and all else is answered and forgotten.

mod budget;
mod listener;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use axum::routing::put;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use turnaround_workflows::clock::Clock;
use turnaround_workflows::updates::{ReportDesk, Taken, Word};

use crate::alarms::{AlarmCode, Alarms};
use budget::Budget;
pub use listener::{Connection, ReportListener};

/// Largest body of a report. A reason is some lines; cloud-init's `phone_home` sends a host's public keys, some KiB.
pub const BODY_BYTES_MAX: usize = 16 * 1024;
/// Between two tries to listen where that is not possible: an address that moves between hosts may come.
const LISTEN_AGAIN: Duration = Duration::from_secs(10);

/// What a report is taken with.
struct Desk {
    reports: ReportDesk,
    clock: Arc<dyn Clock>,
    budget: Mutex<Budget>,
}

/// Listens on `address` until `stop`. Where that is not possible an alarm is raised, it is tried again, and everything else goes on: nothing depends
/// on what is heard here.
pub async fn run(address: SocketAddr, reports: ReportDesk, clock: Arc<dyn Clock>, alarms: Arc<Alarms>, stop: CancellationToken) {
    let desk = Arc::new(Desk { reports, clock, budget: Mutex::default() });
    while !stop.is_cancelled() {
        match ReportListener::bind(address).await {
            Ok(listener) => {
                alarms.over(AlarmCode::InstallerReports);
                info!(%address, "listens to installers");
                serve(listener, Arc::clone(&desk), stop.clone()).await;
            }
            Err(error) => alarms.raise(AlarmCode::InstallerReports, format!("{address}: {error}")),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LISTEN_AGAIN) => {}
        }
    }
}

/// Serves what `listener` accepts, until `stop`. For tests, which choose the port.
pub async fn serve_on(listener: ReportListener, reports: ReportDesk, clock: Arc<dyn Clock>, stop: CancellationToken) {
    serve(listener, Arc::new(Desk { reports, clock, budget: Mutex::default() }), stop).await;
}

async fn serve(listener: ReportListener, desk: Arc<Desk>, stop: CancellationToken) {
    let router = Router::new()
        .route("/installer/{token}/{word}", put(report).post(report))
        .fallback(async || answer(StatusCode::NOT_FOUND))
        .method_not_allowed_fallback(async || answer(StatusCode::METHOD_NOT_ALLOWED))
        .with_state(desk);
    let served = axum::serve(listener, router.into_make_service_with_connect_info::<From>()).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        debug!(%error, "no longer listens to installers");
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct From(pub(crate) IpAddr);

type Answer = (StatusCode, String);

/// For whoever looks at an installer's console.
fn answer(status: StatusCode) -> Answer {
    let text = match status {
        StatusCode::OK => "noted",
        StatusCode::NOT_FOUND => "no node is installed by this token just now; write to /installer/TOKEN/started, /failed or /installed",
        StatusCode::METHOD_NOT_ALLOWED => "write by PUT or POST",
        StatusCode::PAYLOAD_TOO_LARGE => "the reason is too long",
        StatusCode::TOO_MANY_REQUESTS => "too many reports: try again in some seconds",
        _ => "not now: try again in some seconds",
    };
    (status, format!("{text}\n"))
}

async fn report(
    State(desk): State<Arc<Desk>>,
    ConnectInfo(From(peer)): ConnectInfo<From>,
    path: Result<Path<(String, String)>, PathRejection>,
    body: Body,
) -> Answer {
    if !desk.budget.lock().unwrap_or_else(PoisonError::into_inner).spend(peer, desk.clock.now()) {
        return answer(StatusCode::TOO_MANY_REQUESTS);
    }
    let Ok(Path((token, word))) = path else { return answer(StatusCode::NOT_FOUND) };
    let Some(word) = Word::of(&word) else { return answer(StatusCode::NOT_FOUND) };
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else { return answer(StatusCode::PAYLOAD_TOO_LARGE) };
    match desk.reports.take(&token, word, &String::from_utf8_lossy(&body)).await {
        Ok(Taken::Kept) => {
            info!(%peer, token, word = word.as_str(), "an installer has reported");
            answer(StatusCode::OK)
        }
        Ok(Taken::Nothing) => answer(StatusCode::OK),
        Ok(Taken::Unknown) => answer(StatusCode::NOT_FOUND),
        Ok(Taken::Full | Taken::Early) => answer(StatusCode::SERVICE_UNAVAILABLE),
        Err(error) => {
            // The store's own alarm says it to people.
            debug!(%error, "a report could not be kept");
            answer(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}
