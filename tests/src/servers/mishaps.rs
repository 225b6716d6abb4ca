//! What goes wrong on the way to the servers and back: slowness, errors of a proxy, answers that are lost.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::line::Line;

/// Put into the extensions of a response that is never to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct LostOnTheWay;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// A proxy answers this in the server's place; nothing is done.
    Status(u16),
    /// It is done, and a proxy answers this in the server's place.
    StatusAfterEffect(u16),
    /// The connection breaks before anything is done.
    CutBefore,
    /// It is done, and the connection breaks before the answer.
    CutAfterEffect,
}

/// Which requests are concerned.
#[derive(Debug, Clone, Default)]
pub struct Which {
    pub method: Option<Method>,
    /// The path has this in it.
    pub path: String,
}

impl Which {
    pub fn any() -> Which {
        Which::default()
    }

    pub fn path(part: &str) -> Which {
        Which { method: None, path: part.to_owned() }
    }

    pub fn change(method: Method, part: &str) -> Which {
        Which { method: Some(method), path: part.to_owned() }
    }

    fn fits(&self, method: &Method, path: &str) -> bool {
        self.method.as_ref().is_none_or(|wanted| wanted == method) && path.contains(&self.path)
    }
}

/// Everything that is going to go wrong. Shared by all servers of a site.
#[derive(Debug, Default)]
pub struct Mishaps {
    planned: Mutex<Vec<(Which, Mishap, u32)>>,
    latency: Mutex<Duration>,
    late: Mutex<Option<(Which, Duration)>>,
}

impl Mishaps {
    /// The next `times` requests that fit meet this mishap.
    pub fn plan(&self, which: Which, mishap: Mishap, times: u32) {
        self.planned.lock().unwrap().push((which, mishap, times));
    }

    /// Every answer takes this much longer.
    pub fn slow_down(&self, by: Duration) {
        *self.latency.lock().unwrap() = by;
    }

    /// Every answer to a request that fits leaves so long after the effect.
    pub fn answer_late(&self, which: Which, by: Duration) {
        *self.late.lock().unwrap() = Some((which, by));
    }

    pub fn clear(&self) {
        self.planned.lock().unwrap().clear();
        *self.late.lock().unwrap() = None;
        self.slow_down(Duration::ZERO);
    }

    fn late(&self, method: &Method, path: &str) -> Duration {
        self.late.lock().unwrap().as_ref().filter(|(which, _)| which.fits(method, path)).map_or(Duration::ZERO, |(_, by)| *by)
    }

    fn next(&self, method: &Method, path: &str) -> Option<Mishap> {
        let mut planned = self.planned.lock().unwrap();
        let (_, mishap, times) = planned.iter_mut().find(|(which, _, times)| *times > 0 && which.fits(method, path))?;
        *times -= 1;
        Some(*mishap)
    }
}

/// Around every request of every server.
pub(super) async fn strike(
    State(mishaps): State<Arc<Mishaps>>,
    ConnectInfo(line): ConnectInfo<Line>,
    request: Request,
    next: Next,
) -> Response {
    let latency = *mishaps.latency.lock().unwrap();
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let mishap = mishaps.next(request.method(), request.uri().path());
    let of_a_proxy = |status: u16| {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        (status, format!("<html><body><h1>{status}</h1></body></html>\n")).into_response()
    };
    match mishap {
        Some(Mishap::Status(status)) => return of_a_proxy(status),
        Some(Mishap::CutBefore) => {
            line.cut();
            return StatusCode::BAD_GATEWAY.into_response();
        }
        Some(Mishap::StatusAfterEffect(_) | Mishap::CutAfterEffect) | None => {}
    }
    let late = mishaps.late(request.method(), request.uri().path());
    let response = next.run(request).await;
    tokio::time::sleep(late).await;
    if mishap == Some(Mishap::CutAfterEffect) || response.extensions().get::<LostOnTheWay>().is_some() {
        line.cut();
    }
    match mishap {
        Some(Mishap::StatusAfterEffect(status)) => of_a_proxy(status),
        Some(Mishap::Status(_) | Mishap::CutBefore | Mishap::CutAfterEffect) | None => response,
    }
}

/// An answer that whoever asked never gets.
pub(super) fn lost() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.extensions_mut().insert(LostOnTheWay);
    response
}
