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
use turnaround_workflows::engine::{AnswerEffect, Course, Entry, LEFT_WHILE_PAUSED, Pause, Signal, SignalKind, State as Folded};
use turnaround_workflows::store::{Document, PAGE_MAX, Signalled, Status, WorkflowId};

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
    let repeatable = idempotency_key(&headers)?.map(|key| format!("{}/{key}", caller.0.user));
    if let Some(signal) = &repeatable
        && was_followed(&app, &document, signal).await?
    {
        let signal = asked.name().to_owned();
        return Ok((StatusCode::ACCEPTED, Json(SignalledView { id: document.id, signal, waits_for_resume: false, question: None })));
    }
    let Seen { is_paused, question } = refuse_what_cannot_be(&app, &document, &asked).await?;
    let signal = Signal {
        id: repeatable.unwrap_or_else(|| format!("{:032x}", rand::rng().random::<u128>())),
        at: app.clock.now(),
        by: caller.0.user.clone(),
        kind: kind(&asked, question.as_ref().and_then(|(number, _)| *number))?,
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
        waits_for_resume: is_paused && !matches!(asked, SignalRequest::Resume {} | SignalRequest::Pause { .. }),
        question: question.map(|(_, text)| text),
    })))
}

/// Has a worker followed that signal already? Then its author repeats it because the answer was lost, and what it brought about (the question is
/// answered, the workflow paused or ended) is no reason to refuse it.
async fn was_followed(app: &App, document: &Document, signal: &str) -> Result<bool, Problem> {
    let mut from = 1;
    while from <= document.seq {
        let page = app.store.journal(&document.id, from, PAGE_MAX).await?;
        if page.is_empty() {
            break;
        }
        // (What can't be read follows nothing.)
        if page.iter().filter_map(|stored| Entry::read(&stored.body).ok()).any(|entry| entry.follows.as_deref() == Some(signal)) {
            return Ok(true);
        }
        from += page.len() as u64;
    }
    Ok(false)
}

/// `question`: the one that is open, which an answer is for.
fn kind(asked: &SignalRequest, question: Option<u32>) -> Result<SignalKind, Problem> {
    let bounded = |why: &str| match why.chars().count() {
        0..=WHY_CHARS_MAX => Ok(why.to_owned()),
        _ => Err(Problem::bad_request(format!("`why` has at most {WHY_CHARS_MAX} characters"))),
    };
    Ok(match asked {
        SignalRequest::Pause { why } => SignalKind::Pause { why: bounded(why)? },
        SignalRequest::Resume {} => SignalKind::Resume,
        SignalRequest::Abort { why } => SignalKind::Abort { why: bounded(why)? },
        SignalRequest::Retry {} => SignalKind::Retry,
        SignalRequest::Answer { key, .. } => SignalKind::Answer { key: key.clone(), question },
    })
}

/// What was seen of a workflow that is told something.
#[derive(Default)]
struct Seen {
    is_paused: bool,
    /// Number, if it is known, and text of the question that is answered.
    question: Option<(Option<u32>, String)>,
}

/// What can be known at once. The worker that reads the signal checks all of it again.
async fn refuse_what_cannot_be(app: &App, document: &Document, asked: &SignalRequest) -> Result<Seen, Problem> {
    let id = &document.id;
    if document.status.is_ended() {
        return Err(Problem::ended(id, document.status));
    }
    let no = |why: &str| Err::<Seen, _>(Problem::not_now(id, asked.name(), why));
    if document.status == Status::Quarantined {
        return match asked {
            SignalRequest::Retry {} | SignalRequest::Abort { .. } => Ok(Seen::default()),
            SignalRequest::Pause { .. } | SignalRequest::Resume {} | SignalRequest::Answer { .. } => {
                no("it is quarantined: `retry` checks it again, `abort` discards it")
            }
        };
    }
    let state = Folded::load(&*app.store, document).await?.map_err(|damage| Problem::internal(&damage))?;
    let is_paused = state.paused.is_some();
    let seen = Seen { is_paused, question: None };
    match asked {
        // (One that came with its rollout's is ended with that, unless a person takes it over.)
        SignalRequest::Pause { .. } if state.paused.as_ref().is_some_and(Pause::is_by_a_person) => no("it is paused already"),
        SignalRequest::Resume {} if !is_paused => no("it is not paused"),
        SignalRequest::Abort { .. } => match way_back(app, &state) {
            WayBack::Open => Ok(seen),
            WayBack::Taken => no("it goes back already"),
            WayBack::Closed(step) => no(&format!("`{step}` has begun, and from there the only way is forward")),
        },
        SignalRequest::Retry {} if state.current.is_none() => no("no step is under way"),
        SignalRequest::Answer { key, question } => Ok(Seen { question: Some(answerable(app, id, &state, key, *question)?), ..seen }),
        SignalRequest::Pause { .. } | SignalRequest::Resume {} | SignalRequest::Retry {} => Ok(seen),
    }
}

/// The question that `key` is for: the one with number `read`, if its author said which one that was.
fn answerable(app: &App, id: &WorkflowId, state: &Folded, key: &str, read: Option<u32>) -> Result<(Option<u32>, String), Problem> {
    let question = state.question().ok_or_else(|| Problem::no_question(id))?;
    let open = state.open_question();
    if let (Some(read), Some(open)) = (read, open)
        && read != open
    {
        let why = format!("question {read} is not open any more, and question {open} is: look what it is with `turnaround show {id}`");
        return Err(Problem::not_now(id, "answer", &why));
    }
    let keys: Vec<&str> = question.answers.iter().map(|answer| answer.key.as_str()).collect();
    let answer = question.find(key).ok_or_else(|| Problem::not_an_answer(id, key, &keys))?;
    match answer.effect {
        AnswerEffect::Unwind if way_back(app, state) != WayBack::Open => {
            Err(Problem::not_now(id, "answer", "there is no way back any more"))
        }
        AnswerEffect::Leave if state.paused.is_some() => Err(Problem::not_now(id, "answer", LEFT_WHILE_PAUSED)),
        // One that an older release counts for us is not known by its number.
        AnswerEffect::Unwind | AnswerEffect::Retry | AnswerEffect::Leave => Ok((open.or(read), question.text.clone())),
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
