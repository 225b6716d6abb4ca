//! One activation: a leased workflow is brought on until it waits or ends.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::Instrument as _;
use tracing::{error, info, info_span, warn};

use super::step::deadline;
use super::{
    AnswerEffect, AnyStep, ChildSpec, ChildStarted, Course, Decision, Definition, Entry, Event, Observed, Outcome, Progress,
    Question, Registry, Remedy, Signal, SignalKind, Stage, Start, State, StepCx, StepError, Undone, UnwindCause, decide, seal,
    start,
};
use crate::clock::Timestamp;
use crate::ports::Ports;
use crate::store::{
    Claimed, Commit, Committed, Digest, Document, Fence, NewWorkflow, Next, Resource, Status, StoredEntry, StoredSignal, Take,
    WorkflowId,
};
use crate::telemetry::{self, StepCall, StepOutcome, metrics};

/// A workflow that waits for a lock or budget looks again after this long, should its wake-up be lost. Freed
/// resources wake it at once, so this only bounds the damage.
const RESOURCE_LOOK_AGAIN: Duration = Duration::from_secs(30);
/// A workflow that this worker does not know how to bring on is offered again after this long: an upgraded
/// worker may be there by then.
const UNKNOWN_LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Transitions of one activation, before the workflow goes back into the queue so that others get their turn. A
/// node's renewal has about 20.
const TRANSITIONS_MAX: u32 = 256;
/// Children that one workflow may start. A rollout of a whole site has one for each node.
const CHILDREN_MAX: usize = 10_000;

/// The lease is somebody else's now. Nothing more may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease on the workflow is lost")]
pub struct LeaseLost;

/// How an activation reaches the store: under its lease, through whoever batches the calls, waiting out outages.
#[async_trait]
pub trait Committer: Send + Sync {
    /// The store's clock.
    fn now(&self) -> Timestamp;

    /// What became of the commit. Waits for as long as the store does not answer.
    async fn commit(&self, commit: Commit) -> Result<Committed, LeaseLost>;

    /// Asks the store whether the lease still stands, just now.
    async fn guard(&self) -> Result<(), LeaseLost>;

    /// Returns once the lease is lost or given back. What is under way is dropped then.
    async fn lost(&self);
}

/// How an activation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// It waits for a time, a signal, or an operator; the lease was given up in the same commit.
    Parked,
    Ended,
    /// Somebody else has it.
    Lost,
}

impl Activation {
    fn as_str(self) -> &'static str {
        match self {
            Activation::Parked => "parked",
            Activation::Ended => "ended",
            Activation::Lost => "lost",
        }
    }
}

/// The state as it is kept, with what is not part of the journal's fold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    state: State,
    /// Ids of the newest signals, to recognise a second delivery.
    signals_seen: VecDeque<String>,
}

/// Ids of signals that are remembered. A client repeats within seconds; more signals than this in
/// between would be a flood.
const SIGNALS_REMEMBERED: usize = 64;

impl Snapshot {
    pub(crate) fn new(state: State) -> Snapshot {
        Snapshot { state, signals_seen: VecDeque::new() }
    }

    pub(crate) fn written(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

impl State {
    /// The state that a document carries.
    pub fn of(document: &Document) -> Result<State, serde_json::Error> {
        serde_json::from_str::<Snapshot>(&document.state).map(|snapshot| snapshot.state)
    }
}

/// Brings workflows on.
pub struct Engine {
    pub registry: Registry,
    pub ports: Ports,
    /// How long a finished workflow stays in the store.
    pub keep_finished: Duration,
}

impl Engine {
    /// Brings the claimed workflow on until it waits, ends, or is lost. Whatever happens in a step, also a
    /// panic, ends in the workflow's journal.
    pub async fn activate(&self, claimed: Claimed, committer: &dyn Committer) -> Activation {
        let document = &claimed.document;
        let span = info_span!(
            parent: None, "activation",
            otel.name = format!("{} {}", document.kind, document.target), trace = tracing::field::Empty,
            workflow = %document.id, kind = %document.kind, target = %document.target, fence = claimed.fence.0,
        );
        telemetry::link(&span, document.traceparent.as_deref());
        // Where nothing is traced, whoever traces next is linked to whoever traced last.
        let traceparent = telemetry::show_trace(&span).or_else(|| document.traceparent.clone());
        let work = async {
            tokio::select! {
                biased;
                () = committer.lost() => Err(LeaseLost),
                done = self.bring_on(&claimed, committer, traceparent) => done,
            }
        };
        let end = work.instrument(span.clone()).await.unwrap_or_else(|LeaseLost| {
            span.in_scope(|| info!(workflow = %document.id, "lease lost or handed back"));
            Activation::Lost
        });
        metrics::activated(self.registry.get(&document.kind).map_or("unknown", |known| known.kind), end.as_str());
        end
    }

    async fn bring_on(&self, claimed: &Claimed, committer: &dyn Committer, traceparent: Option<String>) -> Result<Activation, LeaseLost> {
        let document = &claimed.document;
        let known = self.registry.get(&document.kind);
        let snapshot = serde_json::from_str::<Snapshot>(&document.state);
        let (definition, snapshot) = match (known, snapshot) {
            (_, Err(source)) => {
                error!(workflow = %document.id, %source, "the stored state can't be read; the workflow is left alone");
                return set_aside(claimed, committer, "its stored state can't be read", Next::Signal, traceparent).await;
            }
            (Some(definition), Ok(snapshot)) if definition.version == snapshot.state.version => (definition, snapshot),
            (_, Ok(snapshot)) => {
                let why = format!("no worker here knows version {} of `{}`", snapshot.state.version, document.kind);
                warn!(workflow = %document.id, why, "left for another worker");
                return set_aside(claimed, committer, &why, Next::At(committer.now() + UNKNOWN_LOOK_AGAIN), traceparent).await;
            }
        };
        let run = Run::new(claimed, snapshot, committer, traceparent);
        Driver { engine: self, definition, id: &document.id, fence: claimed.fence, run: tokio::sync::Mutex::new(run) }.drive(&claimed.signals).await
    }
}

/// Parks a workflow without touching its journal.
async fn set_aside(
    claimed: &Claimed,
    committer: &dyn Committer,
    why: &str,
    next: Next,
    traceparent: Option<String>,
) -> Result<Activation, LeaseLost> {
    let document = &claimed.document;
    let commit = Commit {
        id: document.id.clone(),
        fence: claimed.fence,
        expected: document.seq,
        entries: Vec::new(),
        state: None,
        status: Status::NeedsOperator,
        headline: why.to_owned(),
        consumed: 0,
        take: Vec::new(),
        give: Vec::new(),
        create: Vec::new(),
        signals: Vec::new(),
        traceparent,
        next,
    };
    match committer.commit(commit).await? {
        Committed::Done { .. } => Ok(Activation::Parked),
        Committed::Fenced | Committed::Busy { .. } | Committed::Conflict { .. } => Err(LeaseLost),
    }
}

/// A workflow in hand: its state, and what is not committed yet.
pub(crate) struct Run<'a> {
    committer: &'a dyn Committer,
    id: WorkflowId,
    fence: Fence,
    /// Committed entries.
    seq: u64,
    head: Digest,
    pub(crate) state: State,
    signals_seen: VecDeque<String>,
    traceparent: Option<String>,
    /// Unread signals.
    inbox: VecDeque<StoredSignal>,
    pending: Pending,
    /// A poll saw nothing new: only the time of the next look is to be committed.
    look_again: Option<Timestamp>,
}

/// What goes with the next commit.
#[derive(Clone, Default)]
struct Pending {
    entries: Vec<StoredEntry>,
    consumed: u32,
    give: Vec<Resource>,
    create: Vec<NewWorkflow>,
    signals: Vec<(WorkflowId, StoredSignal)>,
}

/// What a commit met.
enum Met {
    Done,
    Busy { resource: Resource, holders: Vec<WorkflowId> },
}

impl<'a> Run<'a> {
    fn new(claimed: &Claimed, snapshot: Snapshot, committer: &'a dyn Committer, traceparent: Option<String>) -> Run<'a> {
        let document = &claimed.document;
        Run {
            committer,
            id: document.id.clone(),
            fence: claimed.fence,
            seq: document.seq,
            head: document.head.clone(),
            state: snapshot.state,
            signals_seen: snapshot.signals_seen,
            traceparent,
            inbox: VecDeque::new(),
            pending: Pending::default(),
            look_again: None,
        }
    }

    /// False if the signal was seen before.
    fn remember(&mut self, id: &str) -> bool {
        if self.signals_seen.iter().any(|seen| seen == id) {
            return false;
        }
        self.signals_seen.push_back(id.to_owned());
        if self.signals_seen.len() > SIGNALS_REMEMBERED {
            self.signals_seen.pop_front();
        }
        true
    }

    fn now(&self) -> Timestamp {
        self.committer.now()
    }

    /// Appends `event` to what the next commit carries, and folds it into the state.
    fn push(&mut self, event: Event) -> Result<(), LeaseLost> {
        let at = self.now();
        let seq = self.seq + self.pending.entries.len() as u64 + 1;
        let before = self.pending.entries.last().map_or(&self.head, |newest| &newest.digest);
        let folded = self.state.clone().apply(at, &event);
        let sealed = seal(Some(before), &Entry { seq, at, fence: self.fence, event });
        match (folded, sealed) {
            (Ok(state), Ok(entry)) => {
                self.state = state;
                self.pending.entries.push(entry);
                Ok(())
            }
            (Err(illegal), _) => Err(self.give_up(&illegal)),
            (_, Err(source)) => Err(self.give_up(&source)),
        }
    }

    /// A bug of ours: nothing is written, and the lease is left to expire, so that it is tried again, slowly.
    fn give_up(&self, why: &dyn std::error::Error) -> LeaseLost {
        error!(workflow = %self.id, why = %why, "the engine contradicts itself; nothing was written");
        LeaseLost
    }

    async fn commit(&mut self, take: Vec<Take>, next: Next) -> Result<Met, LeaseLost> {
        let snapshot = Snapshot { state: self.state.clone(), signals_seen: self.signals_seen.clone() };
        let state = match (self.pending.entries.is_empty(), snapshot.written()) {
            (true, _) => None,
            (false, Ok(written)) => Some(written),
            (false, Err(source)) => return Err(self.give_up(&source)),
        };
        let pending = self.pending.clone();
        let added = pending.entries.len() as u64;
        let head = pending.entries.last().map(|newest| newest.digest.clone());
        let commit = Commit {
            id: self.id.clone(),
            fence: self.fence,
            expected: self.seq,
            entries: pending.entries,
            state,
            status: self.state.status(),
            headline: self.state.headline(),
            consumed: pending.consumed,
            take,
            give: pending.give,
            create: pending.create,
            signals: pending.signals,
            traceparent: self.traceparent.clone(),
            next,
        };
        match self.committer.commit(commit).await? {
            Committed::Done { signals, .. } => {
                self.seq += added;
                if let Some(head) = head {
                    self.head = head;
                }
                self.pending = Pending::default();
                self.inbox = signals.into();
                Ok(Met::Done)
            }
            Committed::Busy { resource, holders } => Ok(Met::Busy { resource, holders }),
            Committed::Fenced => Err(LeaseLost),
            Committed::Conflict { seq } => {
                error!(workflow = %self.id, expected = self.seq, found = seq, "the journal is not where its holder left it");
                Err(LeaseLost)
            }
        }
    }

    pub(crate) async fn checkpoint(&mut self, step: &str, checkpoint: Value, note: String) -> Result<(), StepError> {
        let event = Event::StepCheckpointed { step: step.to_owned(), checkpoint, note };
        self.push(event).map_err(lease_lost)?;
        match self.commit(Vec::new(), Next::Keep).await {
            Ok(Met::Done) => Ok(()),
            Ok(Met::Busy { .. }) | Err(LeaseLost) => Err(lease_lost(LeaseLost)),
        }
    }

    pub(crate) async fn guard(&self) -> Result<(), StepError> {
        self.committer.guard().await.map_err(lease_lost)
    }

    /// The same message to every child that is still open, in the next commit.
    fn tell_children(&mut self, kind: &SignalKind, cause: &str) {
        let at = self.now();
        for child in self.state.children.values().filter(|child| child.outcome.is_none()) {
            let signal = Signal { id: format!("{}-{cause}", self.id), at, by: format!("workflow {}", self.id), kind: kind.clone() };
            if let Ok(stored) = signal.stored() {
                self.pending.signals.push((child.id.clone(), stored));
            }
        }
    }
}

fn lease_lost(_: LeaseLost) -> StepError {
    StepError { what: LeaseLost.to_string(), remedy: Remedy::LeaseLost, source: None }
}

/// Drives one workflow by the decisions of its state.
struct Driver<'a> {
    engine: &'a Engine,
    definition: &'a Definition,
    id: &'a WorkflowId,
    fence: Fence,
    run: tokio::sync::Mutex<Run<'a>>,
}

impl<'a> Driver<'a> {
    async fn drive(&'a self, signals: &[StoredSignal]) -> Result<Activation, LeaseLost> {
        let names = self.definition.step_names();
        self.run.lock().await.inbox = signals.iter().cloned().collect();
        for _ in 0..TRANSITIONS_MAX {
            self.read_inbox().await?;
            let decision = {
                let run = self.run.lock().await;
                decide(&run.state, &names, run.now())
            };
            match decision {
                Decision::Begin { step } => {
                    if let Some(parked) = self.begin(&step).await? {
                        return Ok(parked);
                    }
                }
                Decision::Continue { step } => self.go_on(&step).await?,
                Decision::BeginUndo { step } => {
                    let cx = self.cx(&step).await?;
                    let policy = self.step(&step)?.policy(&cx);
                    let mut run = self.run.lock().await;
                    let deadline = deadline(&policy, run.now());
                    run.push(Event::UndoBegun { step, deadline })?;
                    run.commit(Vec::new(), Next::Keep).await?;
                }
                Decision::ContinueUndo { step } => self.go_on_undoing(&step).await?,
                Decision::SleepUntil(then) => return self.park(Next::At(then)).await,
                Decision::AwaitSignal => return self.park(Next::Signal).await,
                Decision::End { outcome, why } => {
                    self.run.lock().await.push(Event::Ended { outcome, why })?;
                }
                Decision::Nothing => return self.end().await,
            }
            if let Some(parked) = self.park_if_unchanged().await? {
                return Ok(parked);
            }
        }
        let now = self.run.lock().await.now();
        self.park(Next::At(now)).await
    }

    async fn park(&self, next: Next) -> Result<Activation, LeaseLost> {
        self.run.lock().await.commit(Vec::new(), next).await?;
        Ok(Activation::Parked)
    }

    /// A poll that saw nothing new is not worth an entry: only the time of the next look is committed.
    async fn park_if_unchanged(&self) -> Result<Option<Activation>, LeaseLost> {
        let again = self.run.lock().await.look_again.take();
        match again {
            Some(then) => self.park(Next::At(then)).await.map(Some),
            None => Ok(None),
        }
    }

    async fn end(&self) -> Result<Activation, LeaseLost> {
        let mut run = self.run.lock().await;
        let Course::Ended { outcome, why } = run.state.course.clone() else { return Ok(Activation::Parked) };
        if let (Some(parent), Some(key)) = (run.state.parent.clone(), run.state.key.clone()) {
            let kind = SignalKind::ChildEnded { key, id: self.id.clone(), outcome, headline: why };
            let signal = Signal { id: format!("{}-ended", self.id), at: run.now(), by: format!("workflow {}", self.id), kind };
            if let Ok(stored) = signal.stored() {
                run.pending.signals.push((parent, stored));
            }
        }
        run.commit(Vec::new(), Next::End { keep: self.engine.keep_finished }).await?;
        info!(workflow = %self.id, outcome = outcome.as_str(), "workflow ended");
        metrics::workflow_ended(self.definition.kind, outcome.as_str());
        Ok(Activation::Ended)
    }

    fn step(&self, name: &str) -> Result<&'a dyn AnyStep, LeaseLost> {
        self.definition.step(name).ok_or_else(|| {
            error!(workflow = %self.id, step = name, "the journal names a step that its definition does not have");
            LeaseLost
        })
    }

    async fn cx(&'a self, step: &str) -> Result<StepCx<'a>, LeaseLost> {
        let name = self.step(step)?.name();
        let run = self.run.lock().await;
        Ok(StepCx::new(&self.engine.ports, self.id, name, run.state.clone(), run.now(), self.fence, Some(&self.run)))
    }

    /// Commits the intent to run the step, and takes what it needs. Some if it has to wait.
    async fn begin(&'a self, name: &str) -> Result<Option<Activation>, LeaseLost> {
        let step = self.step(name)?;
        let cx = self.cx(name).await?;
        let take = match step.takes(&cx) {
            Ok(take) => take,
            Err(error) => {
                let cause = UnwindCause::Fatal { step: name.to_owned(), error: error.chain() };
                self.run.lock().await.push(Event::UnwindBegun { cause })?;
                return Ok(None);
            }
        };
        let mut run = self.run.lock().await;
        let (state, pending) = (run.state.clone(), run.pending.clone());
        let deadline = deadline(&step.policy(&cx), run.now());
        let took = take.iter().map(|take| take.resource.clone()).collect();
        run.push(Event::StepBegun { step: name.to_owned(), deadline, took })?;
        match run.commit(take, Next::Keep).await? {
            Met::Done => Ok(None),
            Met::Busy { resource, holders } => {
                (run.state, run.pending) = (state, pending);
                if run.state.awaits.as_ref() != Some(&(resource.clone(), holders.clone())) {
                    run.push(Event::ResourceAwaited { step: name.to_owned(), resource, holders })?;
                }
                let then = run.now() + RESOURCE_LOOK_AGAIN;
                run.commit(Vec::new(), Next::At(then)).await?;
                Ok(Some(Activation::Parked))
            }
        }
    }

    /// Looks, and acts if there is something to do.
    async fn go_on(&'a self, name: &str) -> Result<(), LeaseLost> {
        let step = self.step(name)?;
        let cx = self.cx(name).await?;
        let span = info_span!("step", otel.name = name, step = name, outcome = tracing::field::Empty, otel.status_code = tracing::field::Empty);
        let call = StepCall::begin(self.definition.kind, step.name(), span.clone());
        let tried = AssertUnwindSafe(look_and_act(step, &cx)).catch_unwind().instrument(span).await;
        let tried = tried.unwrap_or_else(|panic| Err(panicked(name, &*panic)));
        call.end(match &tried {
            Ok(Progress::Done(_)) => StepOutcome::Done,
            Ok(Progress::LookAgain { .. } | Progress::StartChildren { .. } | Progress::AwaitChildren { .. }) => StepOutcome::Waits,
            Err(error) => outcome(error),
        });
        let mut run = self.run.lock().await;
        match tried {
            Ok(Progress::Done(output)) => {
                let gave = match step.gives(&cx) {
                    Ok(gave) => gave,
                    Err(error) => return self.failed(&mut run, name, step, &cx, error),
                };
                info!(workflow = %self.id, step = name, "step succeeded");
                run.pending.give.extend(gave.iter().cloned());
                run.push(Event::StepSucceeded { step: name.to_owned(), output, gave })
            }
            Ok(Progress::LookAgain { after, note }) => {
                let now = run.now();
                let until = cx.deadline().map_or(now + after, |deadline| (now + after).min(deadline.max(now)));
                let parked = matches!(&run.state.current, Some(current) if matches!(current.stage, Stage::Parked { .. }));
                if parked && run.state.note == note {
                    run.look_again = Some(until);
                    return Ok(());
                }
                run.push(Event::StepParked { step: name.to_owned(), until: Some(until), note })
            }
            Ok(Progress::StartChildren { children, note }) => self.start_children(&mut run, name, children, note),
            Ok(Progress::AwaitChildren { note }) => {
                run.push(Event::StepParked { step: name.to_owned(), until: None, note })
            }
            Err(error) => self.failed(&mut run, name, step, &cx, error),
        }
    }

    fn start_children(&self, run: &mut Run<'_>, name: &str, children: Vec<ChildSpec>, note: String) -> Result<(), LeaseLost> {
        let mut started = Vec::new();
        if run.state.children.len() + children.len() > CHILDREN_MAX {
            let question = stuck(run, name, &format!("it wants more than {CHILDREN_MAX} children"), self.can_go_back(&run.state));
            return run.push(Event::OperatorAsked { step: name.to_owned(), question });
        }
        for child in children {
            if run.state.children.contains_key(&child.key) {
                continue;
            }
            let Some(definition) = self.engine.registry.get(&child.kind) else {
                return Err(run.give_up(&StepError::fatal(format!("there is no kind `{}`", child.kind))));
            };
            let id = self.id.child(&child.key).map_err(|error| run.give_up(&error))?;
            let new = Start {
                id: id.clone(),
                kind: child.kind,
                version: definition.version,
                target: child.target,
                input: child.input,
                parent: Some(self.id.clone()),
                key: Some(child.key.clone()),
                by: format!("workflow {}", self.id),
                traceparent: run.traceparent.clone(),
            };
            run.pending.create.push(start(new, run.now()).map_err(|error| run.give_up(&error))?);
            started.push(ChildStarted { key: child.key, id });
        }
        run.push(Event::ChildrenStarted { step: name.to_owned(), children: started })?;
        if run.state.note != note {
            run.state.note = note;
        }
        Ok(())
    }

    async fn go_on_undoing(&'a self, name: &str) -> Result<(), LeaseLost> {
        let step = self.step(name)?;
        let cx = self.cx(name).await?;
        let span = info_span!("undo", otel.name = format!("undo {name}"), step = name, outcome = tracing::field::Empty, otel.status_code = tracing::field::Empty);
        let call = StepCall::begin(self.definition.kind, step.name(), span.clone());
        let tried = AssertUnwindSafe(step.undo(&cx)).catch_unwind().instrument(span).await;
        let tried = tried.unwrap_or_else(|panic| Err(panicked(name, &*panic)));
        call.end(match &tried {
            Ok(Undone::Done { .. }) => StepOutcome::Done,
            Ok(Undone::LookAgain { .. }) => StepOutcome::Waits,
            Err(error) => outcome(error),
        });
        let mut run = self.run.lock().await;
        match tried {
            Ok(Undone::Done { note }) => {
                let gave: Vec<Resource> = match step.takes(&cx) {
                    Ok(took) => took.into_iter().map(|take| take.resource).collect(),
                    Err(error) => return self.failed(&mut run, name, step, &cx, error),
                };
                run.pending.give.extend(gave.iter().cloned());
                run.push(Event::StepUndone { step: name.to_owned(), note, gave })
            }
            Ok(Undone::LookAgain { after, note }) => {
                let until = run.now() + after;
                run.push(Event::StepParked { step: name.to_owned(), until: Some(until), note })
            }
            Err(error) => self.failed(&mut run, name, step, &cx, error),
        }
    }

    fn failed(&self, run: &mut Run<'_>, name: &str, step: &dyn AnyStep, cx: &StepCx<'_>, error: StepError) -> Result<(), LeaseLost> {
        let policy = step.policy(cx);
        let now = run.now();
        let failures = run.state.current.as_ref().map_or(0, |current| current.failures) + 1;
        let overdue = cx.deadline().is_some_and(|deadline| now >= deadline);
        let back = self.can_go_back(&run.state);
        match error.remedy.clone() {
            Remedy::LeaseLost => Err(LeaseLost),
            Remedy::Ask(question) => run.push(Event::OperatorAsked { step: name.to_owned(), question }),
            Remedy::Fatal if back => {
                let cause = UnwindCause::Fatal { step: name.to_owned(), error: error.chain() };
                self.go_back(run, cause)
            }
            Remedy::RetryLater if failures < policy.failures_max && !overdue => {
                let text = error.chain();
                warn!(workflow = %self.id, step = name, failures, error = text, "step failed, will be tried again");
                let retry_at = now + jittered(policy.backoff(failures));
                run.push(Event::StepFailed { step: name.to_owned(), error: text, failures, retry_at })
            }
            Remedy::Fatal | Remedy::RetryLater => {
                let question = stuck(run, name, &error.chain(), back);
                run.push(Event::OperatorAsked { step: name.to_owned(), question })
            }
        }
    }

    /// May it still be unwound? Not after a point of no return, and not while it is being unwound.
    fn can_go_back(&self, state: &State) -> bool {
        state.course == Course::Forward && self.no_return(state).is_none()
    }

    /// The step after whose beginning there is only forward, if it has begun.
    fn no_return(&self, state: &State) -> Option<&'static str> {
        let mut past = self.definition.steps.iter().filter(|step| step.is_point_of_no_return() && state.record(step.name()).is_some());
        past.next().map(|step| step.name())
    }

    fn go_back(&self, run: &mut Run<'_>, cause: UnwindCause) -> Result<(), LeaseLost> {
        run.tell_children(&SignalKind::Abort { why: format!("its rollout goes back: {cause}") }, "abort");
        run.push(Event::UnwindBegun { cause })
    }

    /// Folds unread signals into the state.
    async fn read_inbox(&self) -> Result<(), LeaseLost> {
        let mut run = self.run.lock().await;
        while let Some(stored) = run.inbox.pop_front() {
            run.pending.consumed += 1;
            match serde_json::from_str::<Signal>(&stored.body) {
                Ok(signal) if run.remember(&signal.id) => self.follow(&mut run, signal)?,
                Ok(signal) => info!(workflow = %self.id, signal = signal.id, "second delivery of a signal ignored"),
                Err(source) => error!(workflow = %self.id, %source, "a signal that can't be read was dropped"),
            }
        }
        Ok(())
    }

    fn follow(&self, run: &mut Run<'_>, signal: Signal) -> Result<(), LeaseLost> {
        let Signal { id, by, kind, .. } = signal;
        if let Course::Ended { .. } = run.state.course {
            return Ok(());
        }
        match kind {
            SignalKind::Pause { why } if run.state.paused.is_none() => {
                run.tell_children(&SignalKind::Pause { why: why.clone() }, &id);
                run.push(Event::Paused { by, why })
            }
            SignalKind::Pause { .. } => refuse(run, by, "pause", "it is paused already"),
            SignalKind::Resume if run.state.paused.is_some() => {
                run.tell_children(&SignalKind::Resume, &id);
                run.push(Event::Resumed { by })
            }
            SignalKind::Resume => refuse(run, by, "resume", "it is not paused"),
            SignalKind::Abort { why } => match (self.can_go_back(&run.state), self.no_return(&run.state)) {
                (true, _) => self.go_back(run, UnwindCause::Aborted { by, why }),
                (false, Some(step)) => {
                    let why = format!("`{step}` has begun, and from there the only way is forward");
                    refuse(run, by, "abort", &why)
                }
                (false, None) => refuse(run, by, "abort", "it goes back already"),
            },
            SignalKind::Retry => match &run.state.current {
                Some(_) => self.retry(run, by),
                None => refuse(run, by, "retry", "no step is under way"),
            },
            SignalKind::Answer { key } => self.answer(run, by, key),
            SignalKind::ChildEnded { key, outcome, headline, .. } => {
                run.push(Event::ChildEnded { key, outcome, headline })
            }
        }
    }

    fn retry(&self, run: &mut Run<'_>, by: String) -> Result<(), LeaseLost> {
        let Some(current) = run.state.current.clone() else { return Ok(()) };
        // The patience that the step began with, from now on.
        let deadline = run.now() + current.deadline.since(current.begun);
        run.push(Event::RetryRequested { by, deadline })
    }

    fn answer(&self, run: &mut Run<'_>, by: String, key: String) -> Result<(), LeaseLost> {
        let Some(current) = run.state.current.clone() else { return refuse(run, by, "answer", "no question is open") };
        let Some(question) = run.state.question() else { return refuse(run, by, "answer", "no question is open") };
        let Some(answer) = question.find(&key).cloned() else {
            let why = format!("`{key}` is none of the answers");
            return refuse(run, by, "answer", &why);
        };
        if answer.effect == AnswerEffect::Unwind && !self.can_go_back(&run.state) {
            return refuse(run, by, "answer", "there is no way back any more");
        }
        run.push(Event::OperatorAnswered { step: current.step.clone(), key, by: by.clone() })?;
        match answer.effect {
            AnswerEffect::Retry => self.retry(run, by),
            AnswerEffect::Unwind => self.go_back(run, UnwindCause::Answered { by }),
            AnswerEffect::Leave => {
                let why = format!("left as it is by {by} at {}: {}", current.step, question_text(&current.stage));
                run.push(Event::Ended { outcome: Outcome::Failed, why })
            }
        }
    }
}

async fn look_and_act(step: &dyn AnyStep, cx: &StepCx<'_>) -> Result<Progress<Value>, StepError> {
    match step.observe(cx).await? {
        Observed::AlreadyDone(output) => Ok(Progress::Done(output)),
        Observed::ToDo { would } if cx.deadline().is_some_and(|deadline| cx.now() >= deadline) => {
            Err(StepError::retry(format!("not done by its deadline: {would}")))
        }
        Observed::ToDo { .. } => step.act(cx).await,
    }
}

/// What a failure means to those who count.
fn outcome(error: &StepError) -> StepOutcome {
    match error.remedy {
        Remedy::RetryLater => StepOutcome::Retry,
        Remedy::Ask(_) => StepOutcome::Asks,
        Remedy::Fatal => StepOutcome::Fatal,
        Remedy::LeaseLost => StepOutcome::LeaseLost,
    }
}

fn question_text(stage: &Stage) -> &str {
    match stage {
        Stage::Asking { question } => &question.text,
        Stage::Running | Stage::Parked { .. } | Stage::Retrying { .. } => "",
    }
}

fn refuse(run: &mut Run<'_>, by: String, signal: &str, why: &str) -> Result<(), LeaseLost> {
    run.push(Event::SignalRefused { by, signal: signal.to_owned(), why: why.to_owned() })
}

/// What is asked when a step has used up its patience.
fn stuck(run: &Run<'_>, step: &str, error: &str, can_go_back: bool) -> Question {
    let undoing = matches!(run.state.course, Course::Unwinding { .. });
    let what = if undoing { format!("undoing `{step}`") } else { format!("`{step}`") };
    let question = Question::new(format!("{what} of {} does not succeed: what now?", run.state.target))
        .seen(error)
        .answer("retry", AnswerEffect::Retry, "tries again, with fresh attempts and a fresh deadline");
    let question = if can_go_back {
        question.answer("unwind", AnswerEffect::Unwind, "undoes what was done, last first, and ends")
    } else {
        question
    };
    question.answer("leave", AnswerEffect::Leave, "ends here and leaves everything as it is now; a node that is out of service stays out")
}

fn panicked(step: &str, panic: &(dyn std::any::Any + Send)) -> StepError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "no message".to_owned());
    error!(step, text, "a step panicked; this is a bug of ours");
    StepError::ask(
        Question::new(format!("`{step}` met a bug in this program: what now?"))
            .seen(format!("panic: {text}"))
            .answer("retry", AnswerEffect::Retry, "tries again")
            .answer("leave", AnswerEffect::Leave, "ends here and leaves everything as it is now"),
    )
}

/// Between half and the whole of `pause`, so that what failed together is not tried again together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}
