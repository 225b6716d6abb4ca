//! Why a workflow does not go on just now: the question that operators ask first.

use std::time::Duration;

use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::engine::{Course, Current, Question, Stage, State, waits_for};
use turnaround_workflows::store::{Document, Queue, Status, WorkflowId};

use crate::wire::{ReasonCode, WhyNotNow};

/// A workflow that has been due for so long should have been taken: an idle worker takes it within milliseconds, a
/// worker that died frees it after its lease (10 s unless configured otherwise).
pub const TAKEN_WITHIN: Duration = Duration::from_secs(15);

/// Why `document` does not go on at `now`; None if somebody works on it, or if it has ended. `since` is when its
/// newest journal entry was written.
pub fn why_not_now(document: &Document, since: Timestamp, now: Timestamp) -> Option<WhyNotNow> {
    let id = &document.id;
    // Also while somebody has it: with unread mail it is taken again and again, and nobody works on it.
    if document.status == Status::Quarantined {
        let unblock = format!(
            "look at `turnaround journal {id}` and at the node by hand; after its journal was put back from a backup `turnaround retry {id}` \
             goes on, and `turnaround abort {id}` discards it and undoes nothing (docs/errors/quarantined.md)"
        );
        return Some(reason(ReasonCode::Quarantined, since, None, &document.headline, unblock));
    }
    if document.status.is_ended() || document.lease.as_ref().is_some_and(|lease| lease.until > now) {
        return None;
    }
    let Ok(state) = State::of(document) else {
        let unblock = format!("look at `turnaround journal {id}`, and report it: this is a bug, or a damaged store");
        return Some(reason(ReasonCode::Unreadable, since, None, "its stored state can't be read", unblock));
    };
    let Some(state) = state else {
        // It was never parked since its newest entry: it is new, or its worker died.
        return Some(match document.status {
            Status::NeedsOperator => unknown_definition(document, since),
            _ => overdue(document, now).map_or_else(|| queued(document, since), |due| no_worker(document, due)),
        });
    };
    if let Some(question) = state.question() {
        return Some(reason(ReasonCode::Question, since, None, &question.text, how_to_answer(id, question)));
    }
    if let Some(pause) = &state.paused {
        let told = |by: &str, why: &str| if why.is_empty() { format!("by {by}") } else { format!("by {by}: {why}") };
        let beside = pause.beside.as_ref().map_or(String::new(), |rollout| format!("; and {}", told(&rollout.by, &rollout.why)));
        // A pause is lifted by nothing else, not by an abort either.
        let then = if let Course::Unwinding { .. } = state.course { "; it goes back once it is resumed, and not before" } else { "" };
        let text = format!("paused {}{beside}{then}", told(&pause.by, &pause.why));
        // Whoever resumes a node that came to stand still with its rollout has it go on alone.
        let unblock = match (&document.parent, pause.is_by_a_person()) {
            (Some(rollout), false) => format!("turnaround resume {rollout}"),
            (Some(rollout), true) if pause.beside.is_some() => format!("turnaround resume {id}, and turnaround resume {rollout}"),
            (_, _) => format!("turnaround resume {id}"),
        };
        return Some(reason(ReasonCode::Paused, pause.since, None, &text, unblock));
    }
    // Without a question, this is what a worker says of a workflow that it can't bring on.
    if document.status == Status::NeedsOperator {
        return Some(unknown_definition(document, since));
    }
    if let (None, Some((resource, holders))) = (&state.current, &state.awaits) {
        let text = waits_for(resource, holders);
        let unblock = if holders.is_empty() {
            "look at the workers' log for what holds it: `turnaround node release NODE` frees a node's share, a lock has to be removed by hand"
        } else {
            "it goes on as soon as a holder gives it back; a node that was left out of service keeps its share \
             until `turnaround node release NODE`"
        };
        return Some(reason(ReasonCode::Resource, since, None, &text, unblock.to_owned()));
    }
    Some(from_stage(document, &state, since, now))
}

fn from_stage(document: &Document, state: &State, since: Timestamp, now: Timestamp) -> WhyNotNow {
    if let Some(due) = overdue(document, now) {
        return no_worker(document, due);
    }
    match &state.current {
        Some(Current { stage: Stage::Retrying { at }, error, failures, .. }) if *at > now => {
            let error = error.as_deref().unwrap_or("unknown error");
            let text = format!("failed {failures} times in a row: {error}");
            let unblock = format!("it is tried again by itself; `turnaround retry {}` tries at once", document.id);
            reason(ReasonCode::Retry, since, Some(*at), &text, unblock)
        }
        Some(Current { stage: Stage::Parked { until: None }, .. }) => {
            reason(ReasonCode::Children, since, None, &state.headline(), "it goes on when a child ends".to_owned())
        }
        Some(Current { stage: Stage::Parked { until: Some(until) }, .. }) => {
            // A poll moves the due time without a journal entry.
            let next = document.due.unwrap_or(*until);
            reason(ReasonCode::Time, since, Some(next), &state.headline(), "it looks again by itself".to_owned())
        }
        None if document.due.is_none() && state.children.values().any(|child| child.outcome.is_none()) => {
            reason(ReasonCode::Children, since, None, &state.headline(), "it goes on when its children have ended".to_owned())
        }
        Some(_) | None => queued(document, since),
    }
}

fn overdue(document: &Document, now: Timestamp) -> Option<Timestamp> {
    document.due.filter(|due| now.since(*due) >= TAKEN_WITHIN)
}

fn no_worker(document: &Document, due: Timestamp) -> WhyNotNow {
    let (text, of) = match &document.queue {
        queue if *queue == Queue::DEFAULT => ("it is due, and no worker has taken it".to_owned(), String::new()),
        queue => (format!("it is due in the queue `{queue}`, and no worker has taken it"), format!(" that serves `{queue}`")),
    };
    let unblock = format!("start a worker{of}: `systemctl start turnaround-worker@1`; if one runs, look at its log");
    reason(ReasonCode::NoWorker, due, None, &text, unblock)
}

fn queued(document: &Document, since: Timestamp) -> WhyNotNow {
    let text = match &document.queue {
        queue if *queue == Queue::DEFAULT => "it is due, and waits for a free worker".to_owned(),
        queue => format!("it is due, and waits for a free worker that serves the queue `{queue}`"),
    };
    reason(ReasonCode::Queued, since, document.due, &text, "the next free worker takes it".to_owned())
}

/// What a worker says of a workflow that it can't bring on.
fn unknown_definition(document: &Document, since: Timestamp) -> WhyNotNow {
    let unblock = "start a worker of the release that created it".to_owned();
    reason(ReasonCode::UnknownDefinition, since, document.due, &document.headline, unblock)
}

fn how_to_answer(id: &WorkflowId, question: &Question) -> String {
    let keys: Vec<&str> = question.answers.iter().map(|answer| answer.key.as_str()).collect();
    format!("turnaround answer {id} {}", keys.join(" | "))
}

fn reason(code: ReasonCode, since: Timestamp, next: Option<Timestamp>, text: &str, unblock: String) -> WhyNotNow {
    WhyNotNow { code, since: since.into(), next: next.map(Into::into), text: text.to_owned(), unblock }
}
