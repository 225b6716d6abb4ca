//! The site's Alertmanager: silences, and the alerts that fire (its `api/v2/openapi.yaml`).

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use turnaround_config::Matcher;
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::ports::NewSilence;
use turnaround_workflows::rehearsal::{Alert, BegunSilence, Trouble, World};

use super::mishaps::lost;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wanted {
    matchers: Vec<WantedMatcher>,
    starts_at: DateTime<Utc>,
    ends_at: DateTime<Utc>,
    comment: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WantedMatcher {
    name: String,
    value: String,
    is_regex: bool,
    is_equal: bool,
}

pub(super) fn routes(world: Arc<World>) -> Router {
    Router::new()
        .route("/api/v2/silences", get(list).post(begin))
        .route("/api/v2/silence/{id}", delete(end))
        .route("/api/v2/alerts", get(alerts))
        .with_state(world)
}

/// It says an error as a bare text.
fn troubled(trouble: Trouble) -> Response {
    match trouble {
        Trouble::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, Json(json!("unavailable"))).into_response(),
        Trouble::AnswerLost => lost(),
        Trouble::NotFound => (StatusCode::NOT_FOUND, Json(json!("silence not found"))).into_response(),
        Trouble::Refused { status, reason } => (StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), Json(json!(reason))).into_response(),
    }
}

fn document(silence: &BegunSilence, now: Timestamp) -> Value {
    let state = if silence.is_in_force(now) { "active" } else { "expired" };
    json!({ "id": silence.id, "comment": format!("{}: why", silence.mark), "endsAt": silence.until.to_string(), "status": { "state": state } })
}

async fn list(State(world): State<Arc<World>>) -> Response {
    match world.silences() {
        Ok(silences) => Json(silences.iter().map(|silence| document(silence, world.now())).collect::<Vec<_>>()).into_response(),
        Err(trouble) => troubled(trouble),
    }
}

async fn begin(State(world): State<Arc<World>>, Json(wanted): Json<Wanted>) -> Response {
    let matcher = |one: WantedMatcher| Matcher { name: one.name, value: one.value, is_regex: one.is_regex, is_equal: one.is_equal };
    let Some((mark, why)) = wanted.comment.split_once(": ") else {
        return troubled(Trouble::Refused { status: 400, reason: "the comment has no mark".to_owned() });
    };
    let silence = NewSilence {
        matchers: wanted.matchers.into_iter().map(matcher).collect(),
        from: wanted.starts_at.into(),
        until: wanted.ends_at.into(),
        mark: mark.to_owned(),
        why: why.to_owned(),
    };
    match world.begin_silence(&silence) {
        Ok(()) => Json(json!({ "silenceID": "told by the list" })).into_response(),
        Err(trouble) => troubled(trouble),
    }
}

async fn end(State(world): State<Arc<World>>, Path(id): Path<String>) -> Response {
    match world.end_silence(&id) {
        Ok(()) => StatusCode::OK.into_response(),
        Err(trouble) => troubled(trouble),
    }
}

/// Those whose labels are meant by every `filter`.
async fn alerts(State(world): State<Arc<World>>, Query(query): Query<Vec<(String, String)>>) -> Response {
    let filters: Vec<&str> = query.iter().filter(|(key, _)| key == "filter").map(|(_, value)| value.as_str()).collect();
    let meant = |alert: &&Alert| filters.iter().all(|filter| !filter.starts_with("instance") || filter.contains(&alert.instance));
    let document = |alert: &Alert| {
        json!({ "fingerprint": format!("{}-{}", alert.name, alert.instance), "labels": { "alertname": alert.name, "instance": alert.instance }, "status": { "state": "active", "silencedBy": [], "inhibitedBy": [] } })
    };
    match world.alerts() {
        Ok(alerts) => Json(alerts.iter().filter(meant).map(document).collect::<Vec<_>>()).into_response(),
        Err(trouble) => troubled(trouble),
    }
}
