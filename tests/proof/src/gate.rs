//! What everything that an activation does passes, and what may befall it there.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use turnaround_workflows::clock::{Clock as _, HandClock, Timestamp};
use turnaround_workflows::engine::SignalKind;
use turnaround_workflows::ports::{PortError, PortErrorKind};
use turnaround_workflows::store::WorkflowId;

/// The step that a workflow is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    pub kind: &'static str,
    pub step: &'static str,
    pub undoing: bool,
}

/// Where in its work a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moment {
    /// It has been granted the lease, and done nothing with it.
    Claimed,
    /// The journal says that the step begins, or begins to be undone, and nothing was done yet.
    IntentWritten,
    /// The step's own code is about to run.
    EffectBegun,
    /// The step's own code has run; nothing of it is in the journal yet.
    EffectDone,
    /// About to send a commit.
    Commits,
    /// The store has carried the commit out, and its answer is on its way.
    CommitSent,
    /// The worker knows that the commit stands.
    CommitReplied,
    /// About to ask whether its lease stands; and told.
    Guards,
    Guarded,
    /// About to call the site; and answered. `changes`: the call changes something there.
    Calls { name: &'static str, changes: bool },
    Called { name: &'static str, changes: bool },
}

/// One passage of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    pub at: At,
    pub moment: Moment,
    pub workflow: WorkflowId,
    pub now: Timestamp,
}

/// What befalls a worker at a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Befalls {
    Nothing,
    /// Its process is killed.
    Death,
    /// Its process stands still for so long, and then goes on as if nothing had happened.
    Pause(Duration),
    /// It is told to stop, and hands its lease back.
    Stop,
    /// Of a call to the site: nobody answers, and nothing was changed.
    Unavailable,
    /// Of a call that changes something, or a commit: it was carried out, and its answer is lost. The store is asked again.
    AnswerLost,
    /// Somebody tells the workflow something just now.
    Told(SignalKind),
}

/// Decides what befalls whom, and how long everything takes.
pub trait Fate: Send {
    fn befalls(&mut self, point: &Point) -> Befalls;

    /// How long it takes to get past this point.
    fn takes(&mut self, _point: &Point) -> Duration {
        Duration::ZERO
    }

    /// Which of so many goes first.
    fn picks(&mut self, _of: usize) -> usize {
        0
    }

    /// Does nobody hear the bell that rings just now?
    fn rings_unheard(&mut self) -> bool {
        false
    }
}

/// Nothing befalls anybody.
pub struct Undisturbed;

impl Fate for Undisturbed {
    fn befalls(&mut self, _: &Point) -> Befalls {
        Befalls::Nothing
    }
}

/// What a worker's process is to the scheduler.
#[derive(Default)]
pub(super) struct Body {
    /// What it waits for: until when, and whom to wake then.
    sleepers: Vec<(Timestamp, Waker)>,
    pub(super) dead: bool,
    pub(super) told_to_stop: bool,
    /// It stands still until then.
    pub(super) still_until: Option<Timestamp>,
    workflow: Option<WorkflowId>,
}

struct Inner {
    fate: Box<dyn Fate>,
    /// Whose process runs just now.
    current: usize,
    bodies: Vec<Body>,
    at: BTreeMap<WorkflowId, At>,
    told: Vec<(WorkflowId, SignalKind)>,
}

pub(super) struct Gate {
    pub(super) clock: Arc<HandClock>,
    inner: Mutex<Inner>,
}

impl Gate {
    pub(super) fn new(clock: Arc<HandClock>, workers: usize, fate: Box<dyn Fate>) -> Gate {
        let bodies = (0..workers).map(|_| Body::default()).collect();
        Gate { clock, inner: Mutex::new(Inner { fate, current: 0, bodies, at: BTreeMap::new(), told: Vec::new() }) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn with_fate<T>(&self, ask: impl FnOnce(&mut dyn Fate) -> T) -> T {
        ask(&mut *self.inner().fate)
    }

    pub(super) fn set_fate(&self, fate: Box<dyn Fate>) {
        self.inner().fate = fate;
    }

    pub(super) fn with_body<T>(&self, worker: usize, ask: impl FnOnce(&mut Body) -> T) -> T {
        ask(&mut self.inner().bodies[worker])
    }

    /// The process of this worker takes up this workflow, or none.
    pub(super) fn embody(&self, worker: usize, workflow: Option<WorkflowId>) {
        self.inner().bodies[worker] = Body { workflow, ..Body::default() };
    }

    pub(super) fn is_at(&self, workflow: &WorkflowId, at: At) {
        self.inner().at.insert(workflow.clone(), at);
    }

    pub(super) fn told(&self) -> Vec<(WorkflowId, SignalKind)> {
        std::mem::take(&mut self.inner().told)
    }

    /// When this worker can go on. None: never by itself.
    pub(super) fn wakes(&self, worker: usize) -> Option<Timestamp> {
        let inner = self.inner();
        let body = &inner.bodies[worker];
        let slept = body.sleepers.iter().map(|(until, _)| *until).min()?;
        Some(body.still_until.map_or(slept, |still| still.max(slept)))
    }

    /// Lets this worker run: whoever has slept long enough in it is woken.
    pub(super) fn enter(&self, worker: usize) {
        let now = self.clock.now();
        let woken: Vec<Waker> = {
            let mut inner = self.inner();
            inner.current = worker;
            let body = &mut inner.bodies[worker];
            body.still_until = None;
            let (awake, asleep) = std::mem::take(&mut body.sleepers).into_iter().partition(|(until, _)| *until <= now);
            body.sleepers = asleep;
            let awake: Vec<(Timestamp, Waker)> = awake;
            awake.into_iter().map(|(_, waker)| waker).collect()
        };
        woken.iter().for_each(Waker::wake_by_ref);
    }

    /// Passes a point. Never returns if the worker dies there.
    pub(super) async fn pass(&self, moment: Moment) -> Befalls {
        let now = self.clock.now();
        let (befalls, takes) = {
            let mut inner = self.inner();
            let Inner { fate, current, bodies, at, .. } = &mut *inner;
            let Some(workflow) = bodies[*current].workflow.clone() else { return Befalls::Nothing };
            let Some(at) = at.get(&workflow).copied() else { return Befalls::Nothing };
            let point = Point { at, moment, workflow, now };
            (fate.befalls(&point), fate.takes(&point))
        };
        match &befalls {
            Befalls::Nothing | Befalls::Unavailable | Befalls::AnswerLost => {
                if takes.is_zero() {
                    return befalls;
                }
            }
            Befalls::Death => {
                self.current(|body, _| body.dead = true);
                std::future::pending::<()>().await;
            }
            Befalls::Stop => {
                self.current(|body, _| body.told_to_stop = true);
                std::future::pending::<()>().await;
            }
            Befalls::Pause(length) => {
                let until = self.clock.now() + *length;
                self.current(|body, _| body.still_until = Some(until));
            }
            Befalls::Told(kind) => {
                let kind = kind.clone();
                let mut inner = self.inner();
                let workflow = inner.bodies[inner.current].workflow.clone();
                inner.told.extend(workflow.map(|workflow| (workflow, kind)));
            }
        }
        self.sleep(takes).await;
        befalls
    }

    fn current(&self, change: impl FnOnce(&mut Body, Timestamp)) {
        let now = self.clock.now();
        let mut inner = self.inner();
        let current = inner.current;
        change(&mut inner.bodies[current], now);
    }

    /// Others go on meanwhile, also if it is for no time at all.
    pub(super) async fn sleep(&self, length: Duration) {
        Sleep { gate: self, until: self.clock.now() + length, slept: false }.await;
    }

    /// A call to the site.
    pub(super) async fn call<T>(
        &self,
        name: &'static str,
        changes: bool,
        call: impl Future<Output = Result<T, PortError>>,
    ) -> Result<T, PortError> {
        if self.pass(Moment::Calls { name, changes }).await == Befalls::Unavailable {
            return Err(PortError::new(name, PortErrorKind::Unavailable));
        }
        let done = call.await;
        match self.pass(Moment::Called { name, changes }).await {
            Befalls::AnswerLost if changes => done.and_then(|_| Err(PortError::new(name, PortErrorKind::OutcomeUnknown))),
            _ => done,
        }
    }
}

struct Sleep<'a> {
    gate: &'a Gate,
    until: Timestamp,
    slept: bool,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.slept && self.gate.clock.now() >= self.until {
            return Poll::Ready(());
        }
        self.slept = true;
        let until = self.until;
        self.gate.current(|body, _| body.sleepers.push((until, cx.waker().clone())));
        Poll::Pending
    }
}
