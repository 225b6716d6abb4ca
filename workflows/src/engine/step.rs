//! A step: a unit of work that may run more than once.

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Question, Report, State, StepCx};
use crate::clock::Timestamp;
use crate::ports::{PortError, PortErrorKind, Ports};
use crate::store::{InvalidWorkflowId, Queue, Resource, Take, WorkflowId};

/// What a step looks like from inside. It may be run again at any moment, by another process: so it looks
/// before it acts, and what it must remember it checkpoints.
#[async_trait]
pub trait Step: Send + Sync + 'static {
    /// Stable: journals outlive releases.
    const NAME: &'static str;
    /// Once this step has begun there is no way back, only forward: the workflow can't be aborted any more.
    const POINT_OF_NO_RETURN: bool = false;
    /// Where it waits for a worker: one that reaches what the step needs. See `turnaround_workflows::steps::queues`.
    const QUEUE: Queue = Queue::DEFAULT;
    type Output: Serialize + DeserializeOwned + Send + Sync;

    fn policy(&self, _cx: &StepCx<'_>) -> Policy {
        Policy::default()
    }

    /// What must be held before the step may begin. Taken in the commit that says it began.
    fn takes(&self, _cx: &StepCx<'_>) -> Result<Vec<Take>, StepError> {
        Ok(Vec::new())
    }

    /// What is given back in the commit that says the step succeeded.
    fn gives(&self, _cx: &StepCx<'_>) -> Result<Vec<Resource>, StepError> {
        Ok(Vec::new())
    }

    /// Asked first on every entry, also after a crash: done already, under way out there, or not begun?
    /// Changes nothing; asked of every step of a plan, it is the dry run.
    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Self::Output>, StepError>;

    /// Goes on from what `observe` saw. Calls `cx.guard()` right before anything that can't be taken back.
    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Self::Output>, StepError>;

    /// What is done past its deadline, when it still is not done.
    async fn overdue(&self, _cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        Ok(PastDeadline::Fail)
    }

    /// Takes back what the step may have done. What a step took is given back when this returns `Done`.
    async fn undo(&self, _cx: &StepCx<'_>) -> Result<Undone, StepError> {
        Ok(Undone::Done { note: "nothing to undo".to_owned() })
    }

    /// Does this step, which has begun, want to know of `report`? Everything that is said and not wanted is dropped, so that what is
    /// written down has a bound: a step must not want the same thing again and again.
    fn hears(&self, _so_far: &State, _report: &Report) -> bool {
        false
    }

    /// Takes away what must not stay behind when an operator leaves everything as it is: what would harm later. May run
    /// more than once. The engine has asked whether the lease stands; there is no `cx.guard()` here, and nothing is saved.
    async fn leave(&self, _cx: &StepCx<'_>) -> Result<(), StepError> {
        Ok(())
    }

    /// Takes away what must not stay behind when an operator discards a workflow whose journal can't be believed: what would harm later, and is known to be `id`'s by
    /// itself. Asked of every step, begun or not; may run more than once. The engine has asked whether the lease stands.
    async fn discard(&self, _ports: &Ports, _id: &WorkflowId, _target: &str) -> Result<(), StepError> {
        Ok(())
    }
}

/// What `observe` saw.
#[derive(Debug, Clone, PartialEq)]
pub enum Observed<T> {
    /// The world is as the step would leave it.
    AlreadyDone(T),
    /// Something is to be done. `would` says what, in one line, for the dry run.
    ToDo { would: String },
}

/// What a step does past its deadline.
#[derive(Debug, Clone, PartialEq)]
pub enum PastDeadline {
    /// An operator is asked that it does not succeed.
    Fail,
    /// An operator is asked this.
    Ask(Question),
    /// It acts all the same: it is all but done, or has a question of its own.
    Act,
}

/// How far `act` came.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress<T> {
    Done(T),
    /// Nothing to do for a while. Waiting holds no worker.
    LookAgain { after: Duration, note: String },
    /// These children are to be started; the step runs again at once.
    StartChildren { children: Vec<ChildSpec>, note: String },
    /// Look again when a child has ended.
    AwaitChildren { note: String },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Undone {
    Done { note: String },
    /// Done, and these resources stay taken all the same.
    DoneKeeping { keeps: Vec<Resource>, note: String },
    LookAgain { after: Duration, note: String },
}

/// A child that a step wants started.
#[derive(Debug, Clone, PartialEq)]
pub struct ChildSpec {
    /// Unique among the parent's children. The child's id is made of the parent's and this.
    pub key: String,
    pub kind: String,
    pub target: String,
    pub input: Value,
}

/// How patient the engine is with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// From its beginning until it becomes a question.
    pub deadline: Duration,
    /// Failures in a row until it becomes a question.
    pub failures_max: u32,
    /// Before the second try; doubled with each further one.
    pub backoff_first: Duration,
    pub backoff_max: Duration,
}

impl Default for Policy {
    /// Eight failures in a row at these pauses are about five minutes: longer than a restart of an
    /// API container or a controller failover, short enough to ask while an operator is awake.
    fn default() -> Policy {
        Policy {
            deadline: Duration::from_secs(30 * 60),
            failures_max: 8,
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(120),
        }
    }
}

impl Policy {
    /// Pause before the next try after `failures` in a row (1 is the first).
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        let doubled = self.backoff_first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
        doubled.min(self.backoff_max)
    }
}

/// A step that did not come further. Its remedy says who can mend it.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct StepError {
    pub what: String,
    pub remedy: Remedy,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Remedy {
    /// It may work later.
    RetryLater,
    /// Only a person can decide. (In a box: errors are handed on everywhere, and should be small.)
    Ask(Box<Question>),
    /// Nobody can mend it: go back.
    Fatal,
    /// The lease is lost: whoever has it now goes on. Nothing is written.
    LeaseLost,
}

impl StepError {
    pub fn retry(what: impl Into<String>) -> StepError {
        StepError { what: what.into(), remedy: Remedy::RetryLater, source: None }
    }

    pub fn ask(question: Question) -> StepError {
        StepError { what: question.text.clone(), remedy: Remedy::Ask(Box::new(question)), source: None }
    }

    pub fn fatal(what: impl Into<String>) -> StepError {
        StepError { what: what.into(), remedy: Remedy::Fatal, source: None }
    }

    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StepError {
        self.source = Some(source.into());
        self
    }

    /// Somebody else works on it now: nothing more is to be done.
    pub fn is_lost(&self) -> bool {
        self.remedy == Remedy::LeaseLost
    }

    /// The error and its causes, each once, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.what.clone();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    }
}

impl From<PortError> for StepError {
    /// Everything that may pass is tried again, also a refusal: Nova refuses what is under way. What does not
    /// pass within the step's policy becomes a question.
    fn from(error: PortError) -> StepError {
        let remedy = match &error.kind {
            PortErrorKind::Unavailable
            | PortErrorKind::OutcomeUnknown
            | PortErrorKind::NotFound
            | PortErrorKind::Refused { .. }
            | PortErrorKind::Denied { .. }
            | PortErrorKind::Garbled { .. } => Remedy::RetryLater,
        };
        let what = error.to_string();
        StepError { what, remedy, source: error.source.map(|source| source as _) }
    }
}

impl From<InvalidWorkflowId> for StepError {
    fn from(error: InvalidWorkflowId) -> StepError {
        StepError::fatal(error.to_string())
    }
}

/// A step with its output's type erased, as a definition keeps it.
#[async_trait]
pub trait AnyStep: Send + Sync {
    fn name(&self) -> &'static str;
    fn is_point_of_no_return(&self) -> bool;
    fn queue(&self) -> Queue;
    fn policy(&self, cx: &StepCx<'_>) -> Policy;
    fn takes(&self, cx: &StepCx<'_>) -> Result<Vec<Take>, StepError>;
    fn gives(&self, cx: &StepCx<'_>) -> Result<Vec<Resource>, StepError>;
    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Value>, StepError>;
    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Value>, StepError>;
    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError>;
    fn hears(&self, so_far: &State, report: &Report) -> bool;
    async fn undo(&self, cx: &StepCx<'_>) -> Result<Undone, StepError>;
    async fn leave(&self, cx: &StepCx<'_>) -> Result<(), StepError>;
    async fn discard(&self, ports: &Ports, id: &WorkflowId, target: &str) -> Result<(), StepError>;
}

struct Erased<S>(S);

/// `step`, ready for a definition.
pub fn step<S: Step>(step: S) -> Box<dyn AnyStep> {
    Box::new(Erased(step))
}

fn erase<T: Serialize>(step: &str, output: &T) -> Result<Value, StepError> {
    serde_json::to_value(output).map_err(|error| StepError::fatal(format!("the output of {step} can't be written")).because(error))
}

#[async_trait]
impl<S: Step> AnyStep for Erased<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn is_point_of_no_return(&self) -> bool {
        S::POINT_OF_NO_RETURN
    }

    fn queue(&self) -> Queue {
        S::QUEUE
    }

    fn policy(&self, cx: &StepCx<'_>) -> Policy {
        self.0.policy(cx)
    }

    fn takes(&self, cx: &StepCx<'_>) -> Result<Vec<Take>, StepError> {
        self.0.takes(cx)
    }

    fn gives(&self, cx: &StepCx<'_>) -> Result<Vec<Resource>, StepError> {
        self.0.gives(cx)
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Value>, StepError> {
        Ok(match self.0.observe(cx).await? {
            Observed::AlreadyDone(output) => Observed::AlreadyDone(erase(S::NAME, &output)?),
            Observed::ToDo { would } => Observed::ToDo { would },
        })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Value>, StepError> {
        Ok(match self.0.act(cx).await? {
            Progress::Done(output) => Progress::Done(erase(S::NAME, &output)?),
            Progress::LookAgain { after, note } => Progress::LookAgain { after, note },
            Progress::StartChildren { children, note } => Progress::StartChildren { children, note },
            Progress::AwaitChildren { note } => Progress::AwaitChildren { note },
        })
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        self.0.overdue(cx).await
    }

    fn hears(&self, so_far: &State, report: &Report) -> bool {
        self.0.hears(so_far, report)
    }

    async fn undo(&self, cx: &StepCx<'_>) -> Result<Undone, StepError> {
        self.0.undo(cx).await
    }

    async fn leave(&self, cx: &StepCx<'_>) -> Result<(), StepError> {
        self.0.leave(cx).await
    }

    async fn discard(&self, ports: &Ports, id: &WorkflowId, target: &str) -> Result<(), StepError> {
        self.0.discard(ports, id, target).await
    }
}

/// When a step that begins at `now` becomes a question.
pub(crate) fn deadline(policy: &Policy, now: Timestamp) -> Timestamp {
    now + policy.deadline
}
