//! What an operator was shown by a question, so that an answer is about that and nothing else.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::engine::StepCx;

/// Written down right before it is asked about: the question is another entry of the journal, and may never have been asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shown<T> {
    pub(super) what: T,
    /// When the newest answer before it had come.
    after: Option<Timestamp>,
}

impl<T> Shown<T> {
    pub(super) fn now(cx: &StepCx<'_>, what: T) -> Shown<T> {
        Shown { what, after: newest_answer(cx) }
    }

    /// What was answered to it; None while nobody has.
    pub(super) fn answer<'a>(&self, cx: &'a StepCx<'_>) -> Option<&'a str> {
        if newest_answer(cx) == self.after { None } else { cx.answered() }
    }
}

/// When the newest answer came to a question of this step; None on the way back before one has come there.
pub(super) fn newest_answer(cx: &StepCx<'_>) -> Option<Timestamp> {
    cx.answered_at()
}
