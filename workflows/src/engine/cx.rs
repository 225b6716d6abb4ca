//! What a step is given to work with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::{Deserialize as _, Serialize};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::run::Run;
use super::{Answered, Checkpoint, Child, Course, Report, Signal, SignalKind, State, Step, StepError, UnwindCause};
use crate::clock::Timestamp;
use crate::ports::Ports;
use crate::store::{Fence, Resource, StoredSignal, WorkflowId};

/// The context of one call of one step.
pub struct StepCx<'a> {
    pub ports: &'a Ports,
    pub id: &'a WorkflowId,
    step: &'static str,
    state: Arc<State>,
    now: Timestamp,
    /// What was checkpointed during this call.
    saved: Mutex<Option<Checkpoint>>,
    /// None in a dry run, in which nothing may be written or begun.
    run: Option<&'a tokio::sync::Mutex<Run<'a>>>,
    fence: Fence,
}

impl<'a> StepCx<'a> {
    pub(super) fn new(
        ports: &'a Ports,
        id: &'a WorkflowId,
        step: &'static str,
        state: impl Into<Arc<State>>,
        now: Timestamp,
        fence: Fence,
        run: Option<&'a tokio::sync::Mutex<Run<'a>>>,
    ) -> StepCx<'a> {
        StepCx { ports, id, step, state: state.into(), now, saved: Mutex::new(None), run, fence }
    }

    /// The same view, for looking only, at another step: the dry run.
    pub fn looking_at(&self, step: &'static str, input: Value) -> StepCx<'a> {
        let mut state = State::clone(&self.state);
        state.input = input;
        state.steps.clear();
        StepCx { ports: self.ports, id: self.id, step, state: Arc::new(state), now: self.now, saved: Mutex::new(None), run: None, fence: self.fence }
    }

    /// When this call began, by the store's clock.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The store's clock at this moment: calls to the outside world, and commits, take their time.
    pub async fn just_now(&self) -> Timestamp {
        match self.run {
            Some(run) => run.lock().await.now(),
            None => self.now,
        }
    }

    /// Has somebody told it to wait, or to go back, who is not heard before this call has ended? As far as the last commit has told.
    pub async fn is_told_to_wait(&self) -> bool {
        let Some(run) = self.run else { return false };
        let waits = |stored: &StoredSignal| serde_json::from_str(&stored.body).is_ok_and(|signal: Signal| matches!(signal.kind, SignalKind::Pause { .. } | SignalKind::Abort { .. }));
        run.lock().await.inbox.iter().any(waits)
    }

    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// What the workflow is about.
    pub fn target(&self) -> &str {
        &self.state.target
    }

    /// When this step becomes a question.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.state.current.as_ref().map(|current| current.deadline)
    }

    /// When this step began. None in a dry run.
    pub fn begun(&self) -> Option<Timestamp> {
        self.state.record(self.step).map(|record| record.begun)
    }

    /// From whom this step has taken `resource` over: what it stands for was left out of service then, and nobody has given it back since.
    pub fn took_over(&self, resource: &Resource) -> Option<&WorkflowId> {
        let record = self.state.record(self.step)?;
        record.took_over.iter().find(|taken| taken.resource == *resource).map(|taken| &taken.from)
    }

    /// Since when this step is being tried: its beginning, or the newest time an operator asked for another try.
    pub fn tried_since(&self) -> Option<Timestamp> {
        self.state.current.as_ref().map(|current| current.begun)
    }

    /// Since when what this step waits for has been looked at without a break: a pause uses up nobody's patience.
    pub fn patient_since(&self) -> Option<Timestamp> {
        self.tried_since().max(self.retried())
    }

    /// When an operator last asked for another try, of whichever step.
    pub fn retried(&self) -> Option<Timestamp> {
        self.state.retried
    }

    /// What an operator has answered to the newest question of this step; None while none was answered.
    pub fn answered(&self) -> Option<&str> {
        self.state.current.as_ref().filter(|current| current.step == self.step)?.answered.as_deref()
    }

    /// When that answer came.
    pub fn answered_at(&self) -> Option<Timestamp> {
        self.state.current.as_ref().filter(|current| current.step == self.step)?.answered_at
    }

    /// The newest answer to the question of this text about this step, or about undoing it, whatever has been asked since.
    pub fn answer_to(&self, question: &str) -> Option<&Answered> {
        self.state.record(self.step)?.answers.get(question)
    }

    /// On the way back: did it begin with an answer to a question of this step?
    pub fn goes_back_by_answer(&self) -> bool {
        // Only the step that asks is without an output: those before it have succeeded.
        matches!(self.state.course, Course::Unwinding { cause: UnwindCause::Answered { .. } })
            && self.state.record(self.step).is_some_and(|record| record.output.is_none())
    }

    pub fn created_by(&self) -> &str {
        &self.state.created_by
    }

    /// Names this step of this workflow; the same after a crash.
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}", self.id, self.step)
    }

    pub fn input<T: DeserializeOwned>(&self) -> Result<T, StepError> {
        T::deserialize(&self.state.input)
            .map_err(|error| StepError::fatal("the workflow's input can't be read").because(error))
    }

    /// What an earlier step put out; None if it has not succeeded (in a dry run, for instance).
    pub fn output<S: Step>(&self) -> Result<Option<S::Output>, StepError> {
        self.state
            .record(S::NAME)
            .and_then(|record| record.output.as_ref())
            .map(|output| left(S::NAME, S::Output::deserialize(output)))
            .transpose()
    }

    /// What another step checkpointed last.
    pub fn checkpoint_of<S: Step, T: DeserializeOwned>(&self) -> Result<Option<T>, StepError> {
        let kept = self.state.record(S::NAME).and_then(|record| record.checkpoint.as_ref());
        kept.map(|checkpoint| left(S::NAME, checkpoint.read())).transpose()
    }

    /// What this step checkpointed last, in this call or before.
    pub fn checkpoint<T: DeserializeOwned>(&self) -> Result<Option<T>, StepError> {
        let saved = self.saved.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let kept = saved.as_ref().or_else(|| self.state.record(self.step).and_then(|record| record.checkpoint.as_ref()));
        kept.map(|checkpoint| left(self.step, checkpoint.read())).transpose()
    }

    /// On return `checkpoint` is in the journal: partial progress, or what is about to be done.
    pub async fn save<T: Serialize + Sync>(&self, checkpoint: &T, note: impl Into<String> + Send) -> Result<(), StepError> {
        let Some(run) = self.run else { return Err(StepError::fatal("a dry run writes nothing")) };
        let checkpoint = Checkpoint::of(checkpoint)
            .map_err(|error| StepError::fatal("the checkpoint can't be written").because(error))?;
        run.lock().await.checkpoint(self.step, checkpoint.clone(), note.into()).await?;
        *self.saved.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(checkpoint);
        Ok(())
    }

    /// Returns only if this worker still holds the workflow, as the store says just now. To be called right before
    /// anything that can't be taken back.
    pub async fn guard(&self) -> Result<(), StepError> {
        let Some(run) = self.run else { return Err(StepError::fatal("a dry run changes nothing")) };
        run.lock().await.guard().await
    }

    /// What was said from outside, and heard: the newest of each word about each thing.
    pub fn reports(&self) -> &[Report] {
        &self.state.reports
    }

    /// Where the workflow stood when this call began.
    pub fn so_far(&self) -> &State {
        &self.state
    }

    /// The workflow's children, by key.
    pub fn children(&self) -> &BTreeMap<String, Child> {
        &self.state.children
    }
}

fn left<T>(step: &str, read: Result<T, serde_json::Error>) -> Result<T, StepError> {
    read.map_err(|error| StepError::fatal(format!("what {step} left can't be read")).because(error))
}
