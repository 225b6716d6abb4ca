//! POST /v1/rollouts and /v1/surveys: what operators order.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tracing::{Span, info};
use turnaround_config::NodeName;
use turnaround_workflows::engine::{Start, State as Folded, start};
use turnaround_workflows::store::{Created, WorkflowId};
use turnaround_workflows::telemetry;
use turnaround_workflows::updates::{self, RolloutOrder, SurveyOrder};

use super::app::App;
use super::caller::Caller;
use super::extract::{Body, idempotency_key};
use super::problem::Problem;
use crate::renewing::Renewing;
use crate::wire::{RolloutRequest, StartedView};

/// Hexadecimal digits of an id that is made of an idempotency key: 64 bits, so that two keys of the some thousand
/// workflows that a store keeps never meet.
const KEYED_ID_DIGITS: usize = 16;

pub(super) async fn rollout(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Body(asked): Body<RolloutRequest>,
) -> Result<(StatusCode, Json<StartedView>), Problem> {
    let order = RolloutOrder::new(&app.config, &asked.nodes, &asked.image)?;
    let by = &caller.0.user;
    let new = if asked.dry_run { updates::dry_run(&order, by) } else { updates::rollout(&order, by) };
    let new = keyed(new.map_err(|error| Problem::internal(&error))?, &caller, &headers)?;
    if asked.dry_run {
        return begin(&app, new, &caller).await;
    }
    let _one_at_a_time = app.orders.lock().await;
    // What an earlier request with the same key has started is what this one asks for.
    if !asked.again && app.store.load(&new.id).await?.is_none() {
        let renewing = Renewing::look(&app.store).await?;
        let renewed: Vec<(&NodeName, &WorkflowId)> = order.nodes.iter().filter_map(|node| Some((node, renewing.who(node)?))).collect();
        if !renewed.is_empty() {
            return Err(Problem::renewed_already(&renewed));
        }
    }
    begin(&app, new, &caller).await
}

/// POST /v1/surveys has no parameters yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SurveyRequest {}

pub(super) async fn survey(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Body(SurveyRequest {}): Body<SurveyRequest>,
) -> Result<(StatusCode, Json<StartedView>), Problem> {
    let new = updates::survey(&SurveyOrder::new(&app.config), &caller.0.user);
    let new = keyed(new.map_err(|error| Problem::internal(&error))?, &caller, &headers)?;
    begin(&app, new, &caller).await
}

/// Under the id that the request's key makes, if it has one.
fn keyed(mut new: Start, caller: &Caller, headers: &HeaderMap) -> Result<Start, Problem> {
    if let Some(key) = idempotency_key(headers)? {
        new.id = keyed_id(&new.kind, &caller.0.user, key).parse()?;
    }
    Ok(new)
}

async fn begin(app: &App, mut new: Start, caller: &Caller) -> Result<(StatusCode, Json<StartedView>), Problem> {
    new.traceparent = telemetry::traceparent(&Span::current());
    let (id, kind, input) = (new.id.clone(), new.kind.clone(), new.input.clone());
    let new = start(new, app.clock.now()).map_err(|error| Problem::internal(&error))?;
    if cfg!(feature = "bug-ack-before-commit") {
        let store = Arc::clone(&app.store);
        tokio::spawn(async move { store.create(new).await });
        return Ok((StatusCode::CREATED, Json(StartedView { id, kind, fresh: true })));
    }
    let fresh = app.store.create(new).await? == Created::New;
    if fresh {
        info!(user = caller.0.user, workflow = %id, "started on request");
    } else if !same_order(app, &id, &input).await? {
        return Err(Problem::key_reused(&id));
    }
    let status = if fresh { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(StartedView { id, kind, fresh })))
}

/// The same for the same user, kind and key, whichever daemon is asked.
fn keyed_id(kind: &str, user: &str, key: &str) -> String {
    let mut hash = Sha256::new();
    for part in [user, key] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).take(KEYED_ID_DIGITS / 2).collect();
    format!("{kind}-{digits}")
}

/// Did the request with which `id` began ask for the same? The rules that the configuration adds may have changed since.
async fn same_order(app: &App, id: &WorkflowId, input: &serde_json::Value) -> Result<bool, Problem> {
    // Gone between two calls: it ended and expired, which takes days. Then it was the same key at least.
    let Some(document) = app.store.load(id).await? else { return Ok(true) };
    let there = Folded::load(&*app.store, &document).await?.map_err(|damage| Problem::internal(&damage))?.input;
    let what = |input: &serde_json::Value| (input.get("nodes").cloned(), input.pointer("/image/name").cloned());
    Ok(what(&there) == what(input))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_one_workflow_of_one_kind_of_one_user() {
        assert_eq!(keyed_id("survey", "ada", "k1"), keyed_id("survey", "ada", "k1"));
        let others = [keyed_id("survey", "ada", "k2"), keyed_id("survey", "adak", "1"), keyed_id("rollout", "ada", "k1")];
        assert!(others.iter().all(|other| *other != keyed_id("survey", "ada", "k1")));
    }
}
