//! GET /v1/events: what happens, as server-sent events.
//!
//! Whoever does not say where to go on is told first where that is, by a block with nothing but an `id:`: nothing may happen until the stream breaks
//! off, and whoever comes back without an id misses what has happened meanwhile. (An `EventSource` of a browser keeps such an id, and tells nobody.)

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt as _};
use serde::Deserialize;
use turnaround_workflows::store::WorkflowId;

use super::app::App;
use super::extract::Query;
use super::problem::{Problem, chain};
use crate::wire::EventView;

/// Longest cursor. Redis's have two numbers of 20 digits.
const CURSOR_CHARS_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    /// Only this workflow and those below it.
    workflow: Option<WorkflowId>,
    /// Where to go on, for clients that can't send `Last-Event-ID`.
    after: Option<String>,
    /// End with what has happened until now.
    #[serde(default)]
    until_now: bool,
}

/// A subscriber: where it is, and what it was given but not sent yet (one batch).
struct Subscriber {
    app: Arc<App>,
    cursor: String,
    only: Option<WorkflowId>,
    /// It ends with what has happened until now: at this event at the latest.
    until: Option<String>,
    batch: VecDeque<Arc<EventView>>,
}

pub(super) async fn events(
    State(app): State<Arc<App>>,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let last = match headers.get("last-event-id") {
        Some(value) => Some(value.to_str().map_err(|_| Problem::bad_request("`Last-Event-ID` is not text"))?.to_owned()),
        None => parameters.after,
    };
    let is_told = last.is_none();
    let cursor = match last {
        Some(cursor) if is_cursor(&cursor) => cursor,
        Some(_) => return Err(Problem::bad_request("`Last-Event-ID` is none of the ids that this stream gives out")),
        None => app.feed.end().await?,
    };
    let until = if parameters.until_now { Some(app.store.events_end().await?) } else { None };
    let stop = app.stop.clone();
    let keep_alive = KeepAlive::new().interval(app.keep_alive);
    let place = is_told.then(|| Ok(Event::default().id(&cursor)));
    let subscriber = Subscriber { app, cursor, only: parameters.workflow, until, batch: VecDeque::new() };
    let happens = futures::stream::unfold(subscriber, next).take_until(stop.cancelled_owned());
    let stream = futures::stream::iter(place).chain(happens);
    Ok(Sse::new(stream).keep_alive(keep_alive))
}

/// `1763812345678-0`, or `1763812345678-0.1` within what one write told.
fn is_cursor(text: &str) -> bool {
    !text.is_empty() && text.len() <= CURSOR_CHARS_MAX && text.chars().all(|c| c.is_ascii_digit() || c == '-' || c == '.')
}

/// The next event to be sent. None ends the stream; the client comes back with its cursor.
async fn next(mut subscriber: Subscriber) -> Option<(Result<Event, Infallible>, Subscriber)> {
    loop {
        let over = subscriber.until.as_deref() == Some(subscriber.cursor.as_str());
        if over {
            return None;
        }
        if let Some(event) = subscriber.batch.pop_front() {
            subscriber.cursor.clone_from(&event.cursor);
            if !subscriber.wants(&event) {
                continue;
            }
            let data = serde_json::to_string(&*event).ok()?;
            return Some((Ok(Event::default().id(&event.cursor).event("workflow").data(data)), subscriber));
        }
        let feed = &subscriber.app.feed;
        let found = match subscriber.until {
            Some(_) => feed.found_by_now(&subscriber.cursor).await,
            None => feed.after(&subscriber.cursor).await,
        };
        match found {
            // That event is not told any more: its workflow is swept.
            Ok(events) if events.is_empty() => return None,
            Ok(events) => subscriber.batch = events.into(),
            Err(error) => {
                tracing::debug!(error = chain(&error), "an event stream ends because the store does not answer");
                return None;
            }
        }
    }
}

impl Subscriber {
    fn wants(&self, event: &EventView) -> bool {
        let Some(only) = &self.only else { return true };
        let below = event.workflow.as_str().strip_prefix(only.as_str());
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}
