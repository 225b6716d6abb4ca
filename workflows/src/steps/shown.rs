//! What an operator was shown by a question, so that an answer is about that and nothing else.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::engine::{StepCx, StepError};

/// The answer that takes what was shown as good.
pub(super) const ACCEPT: &str = "accept";

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

/// What an operator takes as good: the checkpoint of a step that asks about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Accepted<T> {
    /// By an answer before.
    accepted: Option<T>,
    /// By the newest one, if that is so.
    shown: Shown<T>,
}

impl<T: Clone + PartialEq + Serialize + DeserializeOwned + Send + Sync> Accepted<T> {
    /// What is taken as good. True: by the newest answer, which is not written down yet.
    fn read(cx: &StepCx<'_>) -> Result<(Option<T>, bool), StepError> {
        let Some(Accepted { accepted, shown }) = cx.checkpoint::<Accepted<T>>()? else { return Ok((None, false)) };
        let is_new = shown.answer(cx) == Some(ACCEPT) && accepted.as_ref() != Some(&shown.what);
        Ok((if is_new { Some(shown.what) } else { accepted }, is_new))
    }

    /// What was accepted last, if anything.
    pub(super) fn taken(cx: &StepCx<'_>) -> Result<Option<T>, StepError> {
        Ok(Self::read(cx)?.0)
    }

    /// What was shown last, or was about to be.
    pub(super) fn shown(cx: &StepCx<'_>) -> Result<Option<T>, StepError> {
        Ok(cx.checkpoint::<Accepted<T>>()?.map(|accepted| accepted.shown.what))
    }

    pub(super) fn is(cx: &StepCx<'_>, what: &T) -> Result<bool, StepError> {
        Ok(Self::read(cx)?.0.as_ref() == Some(what))
    }

    /// From now on this is accepted, and nothing else.
    pub(super) async fn replace(cx: &StepCx<'_>, what: T, note: &str) -> Result<(), StepError> {
        cx.save(&Accepted { accepted: Some(what.clone()), shown: Shown::now(cx, what) }, note).await
    }

    /// Writes the newest answer down, before anything else is asked: it is the newest one no more then.
    pub(super) async fn keep(cx: &StepCx<'_>) -> Result<(), StepError> {
        if let (Some(what), true) = Self::read(cx)? {
            Self::replace(cx, what, "taken as good by an operator").await?;
        }
        Ok(())
    }

    /// Writes down what is about to be shown.
    pub(super) async fn is_about_to_show(cx: &StepCx<'_>, what: T, note: &str) -> Result<(), StepError> {
        let (accepted, _) = Self::read(cx)?;
        cx.save(&Accepted { accepted, shown: Shown::now(cx, what) }, note).await
    }
}
