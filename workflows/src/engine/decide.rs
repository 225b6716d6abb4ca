//! What comes next: a pure function of where a workflow stands and what time it is.

use super::{Course, Current, Outcome, Stage, State, UnwindCause};
use crate::clock::Timestamp;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Begin this step, if what it needs is to be had.
    Begin { step: String },
    /// Go on with the step that is under way: look at the world first.
    Continue { step: String },
    /// Begin to undo this step.
    BeginUndo { step: String },
    /// Go on undoing it.
    ContinueUndo { step: String },
    SleepUntil(Timestamp),
    /// Only a signal can bring it on.
    AwaitSignal,
    End { outcome: Outcome, why: String },
    /// It has ended.
    Nothing,
}

/// What a workflow of those `steps`, which stands at `state`, does at `now`.
pub fn decide(state: &State, steps: &[&str], now: Timestamp) -> Decision {
    let unwinding = match &state.course {
        Course::Ended { .. } => return Decision::Nothing,
        Course::Unwinding { cause } => Some(cause),
        Course::Forward => None,
    };
    if state.paused.is_some() {
        return Decision::AwaitSignal;
    }
    match (&state.current, unwinding) {
        // Children first: what they took from the world is undone, or done, before its parent goes on.
        (_, Some(_)) if state.children.values().any(|child| child.outcome.is_none()) => Decision::AwaitSignal,
        (Some(current), _) => go_on(current, unwinding.is_some(), now),
        (None, Some(cause)) => match if cfg!(feature = "bug-undo-out-of-order") { state.steps.first() } else { state.steps.last() } {
            Some(newest) => Decision::BeginUndo { step: newest.step.clone() },
            None => unwound(cause),
        },
        (None, None) => match steps.iter().find(|step| state.record(step).is_none()) {
            Some(step) => Decision::Begin { step: (*step).to_owned() },
            None => Decision::End { outcome: Outcome::Succeeded, why: state.note.clone() },
        },
    }
}

fn go_on(current: &Current, undoing: bool, now: Timestamp) -> Decision {
    match &current.stage {
        Stage::Parked { until: Some(then) } | Stage::Retrying { at: then } if *then > now => Decision::SleepUntil(*then),
        Stage::Parked { until: None } | Stage::Asking { .. } => Decision::AwaitSignal,
        Stage::Running | Stage::Parked { until: Some(_) } | Stage::Retrying { .. } => {
            let step = current.step.clone();
            if undoing { Decision::ContinueUndo { step } } else { Decision::Continue { step } }
        }
    }
}

fn unwound(cause: &UnwindCause) -> Decision {
    let outcome = match cause {
        UnwindCause::Aborted { .. } => Outcome::Aborted,
        UnwindCause::Answered { .. } | UnwindCause::Fatal { .. } => Outcome::Failed,
    };
    Decision::End { outcome, why: cause.to_string() }
}
