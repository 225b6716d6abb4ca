//! The steps of a workflow with their timings, told from its journal.

use std::sync::Arc;

use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::engine::{Entry, Event, check_chain};
use turnaround_workflows::store::{Document, PAGE_MAX, Store, StoreError};

use crate::wire::{StepState, StepView};

/// Pages of a journal that one request reads. A node with 80 instances writes about 200 entries, a rollout of 1,000
/// nodes about 2,000.
const PAGES_MAX: u64 = 20;

/// The journal of `document` as far as it can be trusted, and why not further.
pub(super) async fn read(store: &Arc<dyn Store>, document: &Document) -> Result<(Vec<Entry>, Option<String>), StoreError> {
    let mut entries = Vec::new();
    let mut before = None;
    let mut from = 1;
    for _ in 0..PAGES_MAX {
        let page = store.journal(&document.id, from, PAGE_MAX).await?;
        if page.is_empty() {
            break;
        }
        // One by one: what comes before a bad one is told.
        for stored in &page {
            match check_chain(before.as_ref(), from, std::slice::from_ref(stored)) {
                Ok(read) => entries.extend(read),
                Err(bad) => {
                    let problem = crate::api::problem::chain(&bad);
                    return Ok((entries, Some(format!("{problem}; nothing from there on can be trusted"))));
                }
            }
            before = Some(stored.digest);
            from += 1;
        }
        // It may have grown since `document` was read.
        if from > document.seq {
            return Ok((entries, None));
        }
    }
    let problem = if from > PAGES_MAX * u64::from(PAGE_MAX) {
        format!("only its first {} entries are shown", from - 1)
    } else {
        format!("it should have {} entries, but ends after {}: entries are lost", document.seq, from - 1)
    };
    Ok((entries, Some(problem)))
}

/// The steps in the order in which they are `defined`, then those that this release does not know.
pub(super) fn steps(defined: &[&str], journal: &[Entry]) -> Vec<StepView> {
    let mut steps: Vec<StepView> = defined.iter().map(|step| not_begun(step)).collect();
    for entry in journal {
        tell(&mut steps, entry);
    }
    steps
}

fn not_begun(step: &str) -> StepView {
    StepView {
        step: step.to_owned(),
        state: StepState::NotBegun,
        begun: None,
        ended: None,
        took_ms: None,
        deadline: None,
        failures: 0,
        note: String::new(),
        output: None,
    }
}

fn find<'a>(steps: &'a mut Vec<StepView>, name: &str) -> Option<&'a mut StepView> {
    if !steps.iter().any(|step| step.step == name) {
        steps.push(not_begun(name));
    }
    steps.iter_mut().find(|step| step.step == name)
}

fn tell(steps: &mut Vec<StepView>, entry: &Entry) {
    let under_way = |step: &&mut StepView| step.ended.is_none() && step.begun.is_some();
    match &entry.event {
        Event::StepBegun { step, deadline, .. } => {
            if let Some(step) = find(steps, step) {
                step.state = StepState::Running;
                step.begun = Some(entry.at.into());
                step.deadline = Some((*deadline).into());
                step.note.clear();
            }
        }
        Event::ResourceAwaited { step, .. } => note(steps, step, None, &entry.event.describe()),
        Event::StepCheckpointed { step, note: text, .. } => note(steps, step, Some(StepState::Running), text),
        Event::StepParked { step, note: text, .. } => note(steps, step, Some(StepState::Waiting), text),
        Event::StepFailed { step, error, .. } => {
            note(steps, step, Some(StepState::Retrying), error);
            if let Some(step) = find(steps, step) {
                step.failures += 1;
            }
        }
        Event::OperatorAsked { step, question } => note(steps, step, Some(StepState::Asking), &question.text),
        Event::OperatorAnswered { step, key, by } => {
            note(steps, step, Some(StepState::Running), &format!("{by} answered `{key}`"));
        }
        Event::StepSucceeded { step, output, .. } => {
            if let Some(step) = find(steps, step) {
                step.output = Some(output.clone());
                // What it waited for, or was about to do, is over. What came of it is its output.
                step.note.clear();
                end(step, StepState::Done, entry.at);
            }
        }
        Event::RetryRequested { deadline, .. } => {
            if let Some(step) = steps.iter_mut().rfind(under_way) {
                step.state = StepState::Running;
                step.deadline = Some((*deadline).into());
            }
        }
        Event::UnwindBegun { .. } | Event::Ended { .. } => {
            steps.iter_mut().filter(under_way).for_each(|step| end(step, StepState::Left, entry.at));
        }
        Event::UndoBegun { step, deadline } => {
            if let Some(step) = find(steps, step) {
                step.state = StepState::Undoing;
                step.begun = Some(entry.at.into());
                step.ended = None;
                step.deadline = Some((*deadline).into());
            }
        }
        Event::StepUndone { step, note: text, .. } => {
            note(steps, step, None, text);
            if let Some(step) = find(steps, step) {
                end(step, StepState::Undone, entry.at);
            }
        }
        Event::Created { .. }
        | Event::ChildrenStarted { .. }
        | Event::ChildEnded { .. }
        | Event::Paused { .. }
        | Event::Resumed { .. }
        | Event::Reported { .. }
        | Event::SignalRefused { .. } => {}
    }
}

fn note(steps: &mut Vec<StepView>, step: &str, state: Option<StepState>, text: &str) {
    if let Some(step) = find(steps, step) {
        // While a step is undone, its parks and failures are those of the undoing.
        if let Some(state) = state
            && (step.state != StepState::Undoing || state == StepState::Asking)
        {
            step.state = state;
        }
        text.clone_into(&mut step.note);
    }
}

fn end(step: &mut StepView, state: StepState, at: Timestamp) {
    step.state = state;
    step.ended = Some(at.into());
    step.took_ms = step.begun.map(|begun| u64::try_from(at.since(begun.0).as_millis()).unwrap_or(u64::MAX));
    step.deadline = None;
}
