//! GET /v1/events: what happens, as server-sent events.

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
    /// Where the stream ends.
    end: Option<String>,
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
    let cursor = match last {
        Some(cursor) if is_cursor(&cursor) => cursor,
        Some(_) => return Err(Problem::bad_request("`Last-Event-ID` is none of the ids that this stream gives out")),
        None => app.feed.end().await?,
    };
    let end = if parameters.until_now { Some(app.store.events_end().await?) } else { None };
    let stop = app.stop.clone();
    let keep_alive = KeepAlive::new().interval(app.keep_alive);
    let subscriber = Subscriber { app, cursor, only: parameters.workflow, end, batch: VecDeque::new() };
    let stream = futures::stream::unfold(subscriber, next).take_until(stop.cancelled_owned());
    Ok(Sse::new(stream).keep_alive(keep_alive))
}

fn is_cursor(text: &str) -> bool {
    !text.is_empty() && text.len() <= CURSOR_CHARS_MAX && text.chars().all(|c| c.is_ascii_digit() || c == '-')
}

/// The next event to be sent. None ends the stream; the client comes back with its cursor.
async fn next(mut subscriber: Subscriber) -> Option<(Result<Event, Infallible>, Subscriber)> {
    loop {
        let over = subscriber.end.as_deref() == Some(subscriber.cursor.as_str());
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
        match subscriber.app.feed.after(&subscriber.cursor).await {
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
