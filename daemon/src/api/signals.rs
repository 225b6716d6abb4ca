//! POST /v1/workflows/{id}/signals: what operators tell a workflow.
//!
//! A signal is kept durably and read by the worker that brings the workflow on, which has the last word: what the
//! daemon can see at once is refused here, so that a slip of the finger is told while its author looks.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use rand::Rng as _;
use tracing::info;
use turnaround_workflows::engine::{AnswerEffect, Course, Signal, SignalKind, State as Folded};
use turnaround_workflows::store::{Document, Signalled, Status, WorkflowId};

use super::app::App;
use super::caller::Caller;
use super::extract::{Body, Path, idempotency_key};
use super::problem::Problem;
use super::workflows::load;
use crate::wire::{SignalRequest, SignalledView};

/// Longest reason that an operator may give. It goes into notes and headlines.
const WHY_CHARS_MAX: usize = 500;

pub(super) async fn signal(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    Body(asked): Body<SignalRequest>,
) -> Result<(StatusCode, Json<SignalledView>), Problem> {
    let document = load(&app, &id).await?;
    let is_paused = refuse_what_cannot_be(&app, &document, &asked).await?;
    let signal = Signal {
        id: match idempotency_key(&headers)? {
            Some(key) => format!("{}/{key}", caller.0.user),
            None => format!("{:032x}", rand::rng().random::<u128>()),
        },
        at: app.clock.now(),
        by: caller.0.user.clone(),
        kind: kind(&asked)?,
    };
    let stored = signal.stored().map_err(|error| Problem::internal(&error))?;
    match app.store.signal(&document.id, stored).await? {
        Signalled::Kept => {}
        Signalled::Missing => return Err(Problem::no_workflow(&id)),
        Signalled::Ended => return Err(Problem::ended(&document.id, document.status)),
        Signalled::Full => return Err(Problem::inbox_full(&document.id)),
    }
    info!(user = caller.0.user, workflow = %document.id, signal = asked.name(), "signal kept");
    Ok((StatusCode::ACCEPTED, Json(SignalledView {
        id: document.id,
        signal: asked.name().to_owned(),
        waits_for_resume: is_paused && !matches!(asked, SignalRequest::Resume {}),
    })))
}

fn kind(asked: &SignalRequest) -> Result<SignalKind, Problem> {
    let bounded = |why: &str| match why.chars().count() {
        0..=WHY_CHARS_MAX => Ok(why.to_owned()),
        _ => Err(Problem::bad_request(format!("`why` has at most {WHY_CHARS_MAX} characters"))),
    };
    Ok(match asked {
        SignalRequest::Pause { why } => SignalKind::Pause { why: bounded(why)? },
        SignalRequest::Resume {} => SignalKind::Resume,
        SignalRequest::Abort { why } => SignalKind::Abort { why: bounded(why)? },
        SignalRequest::Retry {} => SignalKind::Retry,
        SignalRequest::Answer { key } => SignalKind::Answer { key: key.clone() },
    })
}

/// What can be known at once. The worker that reads the signal checks all of it again. True: the workflow is paused.
async fn refuse_what_cannot_be(app: &App, document: &Document, asked: &SignalRequest) -> Result<bool, Problem> {
    let id = &document.id;
    if document.status.is_ended() {
        return Err(Problem::ended(id, document.status));
    }
    let no = |why: &str| Err(Problem::not_now(id, asked.name(), why));
    if document.status == Status::Quarantined {
        return match asked {
            SignalRequest::Retry {} | SignalRequest::Abort { .. } => Ok(false),
            SignalRequest::Pause { .. } | SignalRequest::Resume {} | SignalRequest::Answer { .. } => {
                no("it is quarantined: `retry` checks it again, `abort` discards it")
            }
        };
    }
    let state = Folded::load(&*app.store, document).await?.map_err(|damage| Problem::internal(&damage))?;
    let is_paused = state.paused.is_some();
    match asked {
        SignalRequest::Pause { .. } if is_paused => no("it is paused already"),
        SignalRequest::Resume {} if !is_paused => no("it is not paused"),
        SignalRequest::Abort { .. } => match way_back(app, &state) {
            WayBack::Open => Ok(is_paused),
            WayBack::Taken => no("it goes back already"),
            WayBack::Closed(step) => no(&format!("`{step}` has begun, and from there the only way is forward")),
        },
        SignalRequest::Retry {} if state.current.is_none() => no("no step is under way"),
        SignalRequest::Answer { key } => answerable(app, id, &state, key).map(|()| is_paused),
        SignalRequest::Pause { .. } | SignalRequest::Resume {} | SignalRequest::Retry {} => Ok(is_paused),
    }
}

fn answerable(app: &App, id: &WorkflowId, state: &Folded, key: &str) -> Result<(), Problem> {
    let question = state.question().ok_or_else(|| Problem::no_question(id))?;
    let keys: Vec<&str> = question.answers.iter().map(|answer| answer.key.as_str()).collect();
    let answer = question.find(key).ok_or_else(|| Problem::not_an_answer(id, key, &keys))?;
    match answer.effect {
        AnswerEffect::Unwind if way_back(app, state) != WayBack::Open => {
            Err(Problem::not_now(id, "answer", "there is no way back any more"))
        }
        AnswerEffect::Unwind | AnswerEffect::Retry | AnswerEffect::Leave => Ok(()),
    }
}

#[derive(PartialEq, Eq)]
enum WayBack {
    Open,
    Taken,
    /// By the step from which on there is only forward.
    Closed(&'static str),
}

/// As the engine has it. Of a kind that this daemon does not know, the worker will tell.
fn way_back(app: &App, state: &Folded) -> WayBack {
    if state.course != Course::Forward {
        return WayBack::Taken;
    }
    let Some(definition) = app.registry.get(&state.kind) else { return WayBack::Open };
    let closed = definition.steps.iter().find(|step| step.is_point_of_no_return() && state.record(step.name()).is_some());
    closed.map_or(WayBack::Open, |step| WayBack::Closed(step.name()))
}
