//! Workers that share a store and a site, one thread, one clock: whoever can go on goes on, in an order that fate decides.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use turnaround_workflows::clock::{Clock as _, HandClock, Timestamp};
use turnaround_workflows::engine::{Activation, Engine, Registry, Signal, SignalKind, Start, State, start};
use turnaround_workflows::rehearsal::{InstallerSaid, SitePlan, World};
use turnaround_workflows::store::memory::MemoryStore;
use turnaround_workflows::store::{Advance, Advanced, Claim, Claimed, Document, Fence, Query, Scope, Signalled, Status, Store, WorkflowId};
use turnaround_workflows::updates::{ReportDesk, Taken};

use crate::gate::{At, Befalls, Fate, Gate, Moment};
use crate::lease::{GatedLease, down_until};
use crate::ports::gated;
use crate::sometimes::Sometimes;
use crate::steps::watched;

/// Length of a lease in simulated time.
pub const LEASE: Duration = Duration::from_secs(10);
/// When the simulated day begins.
pub const MORNING: Timestamp = Timestamp::from_millis(1_800_000_000_000);
/// Leases are renewed this often, as a worker's pump does.
const RENEWED_EVERY: Duration = Duration::from_millis(3_333);
/// A worker that was killed or stopped is there again after this long.
const RESTARTS_AFTER: Duration = Duration::from_secs(2);
/// Nothing was written into any journal for so long: longer than the longest pause between two looks at a busy resource.
const QUIET: Duration = Duration::from_secs(61);
/// Rounds until a simulation counts as stuck; a rollout of seven nodes takes some ten thousand.
const ROUNDS_MAX: u32 = 3_000_000;
/// A client that had no answer tells it again after this long, by when what it has told was mostly read.
const TELLS_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long a finished workflow is kept: longer than any simulation takes.
const KEEP_FINISHED: Duration = Duration::from_secs(90 * 86_400);

/// What a future that never waits comes to. The memory store's calls are such.
pub fn done<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it waits"),
    }
}

type Work = Pin<Box<dyn Future<Output = Activation> + Send>>;

struct Job {
    work: Work,
    id: WorkflowId,
    fence: Fence,
    lost: CancellationToken,
    renew_at: Timestamp,
    /// It has stood still, and its pump has not noticed yet.
    stood_still: bool,
}

struct Worker {
    job: Option<Job>,
    /// When it looks for work next, without being called.
    look_at: Timestamp,
    /// When its process is there (again).
    up_at: Timestamp,
}

/// The same signal once more, for a workflow that has perhaps read it.
struct Again {
    at: Timestamp,
    to: WorkflowId,
    signal: Signal,
}

/// What one round came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    Did,
    /// Nobody could go on just now: the clock moved on.
    TimePassed,
    /// Nothing will ever happen by itself.
    Nothing,
}

/// Workers, their store, and their site.
pub struct Crowd {
    pub clock: Arc<HandClock>,
    pub store: Arc<dyn Store>,
    pub world: Arc<World>,
    pub sometimes: Arc<Sometimes>,
    /// When the store does not answer.
    outages: Arc<Vec<(Timestamp, Timestamp)>>,
    registry: Registry,
    gate: Arc<Gate>,
    engine: Arc<Engine>,
    workers: Vec<Worker>,
    /// Nobody heard the bell; whoever looks then will find what is due.
    unheard_until: Timestamp,
    /// Workflows whose worker was killed.
    orphans: BTreeSet<WorkflowId>,
    signals: u32,
    /// What is still to be told again.
    again: Vec<Again>,
    /// What the daemon does with what installers say. None: nobody listens at this site.
    reports: Option<ReportDesk>,
    /// What installers say again and again until they are answered.
    said: Vec<InstallerSaid>,
}

impl Crowd {
    pub fn new(plan: SitePlan, seed: u64, workers: usize, registry: &Registry, fate: Box<dyn Fate>) -> Crowd {
        let clock = Arc::new(HandClock::at(MORNING));
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
        let listens = plan.installers_report;
        let world = World::new(clock.clone(), plan, seed);
        let gate = Arc::new(Gate::new(clock.clone(), workers, fate));
        let registry = watched(registry, &gate);
        let ports = gated(world.ports(), gate.clone());
        let queues = registry.queues();
        let engine = Arc::new(Engine { registry: registry.clone(), ports, queues, keep_finished: KEEP_FINISHED });
        let workers = (0..workers).map(|_| Worker { job: None, look_at: MORNING, up_at: MORNING }).collect();
        Crowd {
            clock,
            store: store.clone(),
            world,
            sometimes: Arc::default(),
            outages: Arc::default(),
            registry: registry.clone(),
            gate,
            engine,
            workers,
            unheard_until: MORNING,
            orphans: BTreeSet::new(),
            signals: 0,
            again: Vec::new(),
            reports: listens.then(|| ReportDesk::new(store.clone(), registry.clone())),
            said: Vec::new(),
        }
    }

    pub fn outages(&mut self, outages: Vec<(Timestamp, Timestamp)>) {
        self.outages = Arc::new(outages);
    }

    /// From now on another fate rules.
    pub fn rule(&self, fate: Box<dyn Fate>) {
        self.gate.set_fate(fate);
    }

    pub fn start(&self, new: Start) -> WorkflowId {
        let id = new.id.clone();
        done(self.store.create(start(new, self.clock.now()).expect("it can be written"))).expect("the memory store always answers");
        id
    }

    /// Tells a workflow something, under a new id, which is returned; and after that again, until it was told `times` times (as clients do that had
    /// no answer).
    pub fn tell(&mut self, id: &WorkflowId, kind: SignalKind, times: u32) -> String {
        self.signals += 1;
        let signal = Signal { id: format!("signal-{}", self.signals), at: self.clock.now(), by: "tester".to_owned(), kind };
        self.send(id, &signal);
        self.again.extend((1..times).map(|nth| Again { at: signal.at + TELLS_AGAIN_AFTER * nth, to: id.clone(), signal: signal.clone() }));
        signal.id
    }

    fn send(&self, id: &WorkflowId, signal: &Signal) -> Signalled {
        done(self.store.signal(id, signal.stored().unwrap())).expect("the memory store always answers")
    }

    fn tell_again(&mut self) {
        let now = self.clock.now();
        let (due, later): (Vec<Again>, Vec<Again>) = std::mem::take(&mut self.again).into_iter().partition(|again| again.at <= now);
        self.again = later;
        for Again { to, signal, .. } in due {
            let is_followed = self.is_followed(&to, &signal.id);
            // (What has ended reads nothing more.)
            if self.send(&to, &signal) == Signalled::Kept && is_followed {
                self.sometimes.count("signal that was followed comes again");
            }
        }
    }

    /// Has the workflow followed this signal?
    pub fn is_followed(&self, id: &WorkflowId, signal: &str) -> bool {
        let follows = format!(r#""follows":"{signal}""#);
        self.journal(id).iter().any(|(_, body)| body.contains(&follows))
    }

    /// Takes what installers have said, as the daemon does, once the store answers.
    fn hear(&mut self) {
        let Some(reports) = &self.reports else { return };
        self.said.extend(self.world.said_by_installers());
        if down_until(&self.outages, self.clock.now()).is_some() {
            return;
        }
        for InstallerSaid { token, word, reason } in std::mem::take(&mut self.said) {
            let taken = done(reports.take(&token, word, &reason)).expect("the memory store always answers");
            self.sometimes.count(match taken {
                Taken::Kept => "installer heard",
                Taken::Nothing => "installer heard again",
                Taken::Unknown | Taken::Full | Taken::Early => "installer not listened to",
            });
        }
    }

    pub fn document(&self, id: &WorkflowId) -> Option<Document> {
        done(self.store.load(id)).expect("the memory store always answers")
    }

    pub fn state(&self, document: &Document) -> State {
        done(State::load(&*self.store, document)).expect("the memory store always answers").expect("the journal folds")
    }

    pub fn list(&self, scope: Scope) -> Vec<Document> {
        done(self.store.list(&Query { scope, limit: 500, ..Query::default() })).expect("the memory store always answers")
    }

    /// The bodies of the workflow's journal, with their digests.
    pub fn journal(&self, id: &WorkflowId) -> Vec<(String, String)> {
        let mut entries = Vec::new();
        loop {
            let page = done(self.store.journal(id, entries.len() as u64 + 1, 500)).expect("the memory store always answers");
            if page.is_empty() {
                return entries;
            }
            entries.extend(page.into_iter().map(|entry| (entry.digest.to_string(), entry.body)));
        }
    }

    /// What the site has to say, one event a line.
    pub fn log(&self) -> String {
        self.world.events().iter().map(|event| serde_json::to_string(event).expect("an event can be written") + "\n").collect()
    }

    pub fn run_until(&mut self, until: Timestamp) {
        for _ in 0..ROUNDS_MAX {
            if self.clock.now() >= until {
                return;
            }
            if self.round(Some(until)) == Round::Nothing {
                return self.clock.advance_to(until);
            }
        }
        self.stuck();
    }

    /// Runs until every workflow has ended, asks, is paused, or waits for those that do.
    pub fn rest(&mut self) {
        // Who was hindered until now has not looked since.
        let mut look_again = self.clock.now() + QUIET;
        for _ in 0..ROUNDS_MAX {
            match self.round(None) {
                Round::Nothing => return,
                Round::Did => {}
                Round::TimePassed => {
                    let now = self.clock.now();
                    let quiet = now >= self.sometimes.newest_entry() + QUIET && now >= look_again;
                    if quiet && self.again.is_empty() && self.workers.iter().all(|worker| worker.job.is_none()) {
                        if self.is_at_rest() {
                            return;
                        }
                        look_again = now + QUIET;
                    }
                }
            }
        }
        self.stuck();
    }

    fn stuck(&self) {
        let open: Vec<String> =
            self.list(Scope::Open).iter().map(|one| format!("{} {}: {}", one.id, one.status.as_str(), one.headline)).collect();
        panic!("the simulation does not come to rest: {open:#?}");
    }

    fn is_at_rest(&self) -> bool {
        self.list(Scope::Open).iter().all(|document| match document.status {
            // One that is set apart with unread mail of other workflows is taken by turns.
            Status::NeedsOperator | Status::Paused | Status::Quarantined => true,
            _ => document.headline.starts_with("waits for the ") || (document.due.is_none() && document.lease.is_none()),
        })
    }

    fn round(&mut self, until: Option<Timestamp>) -> Round {
        for (id, kind) in self.gate.told() {
            self.tell(&id, kind, 1);
        }
        self.tell_again();
        self.hear();
        if self.renew_one() || self.bring_one_on() || self.claim_one() || self.ring() {
            return Round::Did;
        }
        let next = self.next();
        match (next, until) {
            (Some(next), Some(until)) => self.clock.advance_to(next.min(until)),
            (Some(next), None) => self.clock.advance_to(next),
            (None, _) => return Round::Nothing,
        }
        Round::TimePassed
    }

    /// When something happens next.
    fn next(&self) -> Option<Timestamp> {
        let now = self.clock.now();
        let due = self.due();
        let mut next: Vec<Timestamp> = Vec::new();
        let mut idle = false;
        for (place, worker) in self.workers.iter().enumerate() {
            match &worker.job {
                Some(job) => {
                    let wakes = self.gate.wakes(place).expect("an activation waits for nothing");
                    let still = self.gate.with_body(place, |body| body.still_until);
                    next.extend([wakes, still.unwrap_or_default().max(job.renew_at)]);
                }
                None => {
                    idle |= worker.up_at <= now;
                    next.extend(due.map(|_| worker.look_at));
                }
            }
        }
        next.extend(due.filter(|_| idle).map(|due| due.max(self.unheard_until)));
        next.extend(self.again.iter().map(|again| again.at));
        next.into_iter().map(|at| at.max(now + Duration::from_millis(1))).min()
    }

    /// When there may be something to claim.
    fn due(&self) -> Option<Timestamp> {
        self.claim(0, String::new()).next
    }

    fn claim(&self, max: u32, worker: String) -> Advanced {
        let claim = Claim { max, lease: LEASE, worker, queues: self.engine.queues.clone() };
        let advance = Advance { lease: LEASE, claim: Some(claim), ..Advance::default() };
        done(self.store.advance(&advance)).expect("the memory store always answers")
    }

    /// One worker's pump renews what is to be renewed.
    fn renew_one(&mut self) -> bool {
        let now = self.clock.now();
        let down = down_until(&self.outages, now);
        for (place, worker) in self.workers.iter_mut().enumerate() {
            let Some(job) = &mut worker.job else { continue };
            if job.renew_at > now || self.gate.with_body(place, |body| body.still_until).is_some_and(|until| until > now) {
                continue;
            }
            if job.stood_still {
                // Its pump and its work go on at the same moment: either may be first.
                job.stood_still = false;
                job.renew_at = now + Duration::from_millis(100) * u32::try_from(self.gate.with_fate(|fate| fate.picks(20))).unwrap_or(0);
                continue;
            }
            if let Some(up) = down {
                job.renew_at = up;
                continue;
            }
            job.renew_at = now + RENEWED_EVERY;
            let advance = Advance { lease: LEASE, renew: vec![(job.id.clone(), job.fence)], ..Advance::default() };
            let renewed = done(self.store.advance(&advance)).expect("the memory store always answers").renewed;
            if renewed[0].is_none() {
                self.sometimes.count("lease lost");
                job.lost.cancel();
                self.poll(place);
            }
            return true;
        }
        false
    }

    /// One of those that can go on goes on.
    fn bring_one_on(&mut self) -> bool {
        let now = self.clock.now();
        let ready: Vec<usize> =
            (0..self.workers.len()).filter(|&place| self.gate.wakes(place).is_some_and(|wakes| wakes <= now)).collect();
        if ready.is_empty() {
            return false;
        }
        let place = ready[self.gate.with_fate(|fate| fate.picks(ready.len()))];
        self.poll(place);
        true
    }

    fn poll(&mut self, place: usize) {
        let now = self.clock.now();
        let Some(job) = &mut self.workers[place].job else { return };
        self.gate.enter(place);
        let polled = job.work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let (dead, stops, still) = self.gate.with_body(place, |body| (body.dead, body.told_to_stop, body.still_until.is_some()));
        job.stood_still |= still;
        match polled {
            Poll::Ready(activation) => {
                self.sometimes.count(match activation {
                    Activation::Parked => "activation parked",
                    Activation::Ended => "workflow ended",
                    Activation::Lost => "activation lost",
                });
                self.idle(place, now);
            }
            Poll::Pending if dead => {
                self.sometimes.count("worker killed");
                self.orphans.insert(job.id.clone());
                self.idle(place, now + RESTARTS_AFTER);
            }
            Poll::Pending if stops => {
                self.sometimes.count("worker stopped");
                let lease = (job.id.clone(), job.fence);
                // Dropped before its lease is handed back: nothing of it runs any more.
                self.idle(place, now + RESTARTS_AFTER);
                done(self.store.advance(&Advance { hand_back: vec![lease], ..Advance::default() })).expect("the memory store always answers");
            }
            Poll::Pending => {
                if still {
                    self.sometimes.count("worker paused");
                }
            }
        }
    }

    fn idle(&mut self, place: usize, look_at: Timestamp) {
        self.workers[place] = Worker { job: None, look_at, up_at: look_at };
        self.gate.embody(place, None);
    }

    /// One idle worker that has something to look for looks.
    fn claim_one(&mut self) -> bool {
        let now = self.clock.now();
        let Some(place) = (0..self.workers.len()).find(|&place| self.workers[place].job.is_none() && self.workers[place].look_at <= now)
        else {
            return false;
        };
        if let Some(up) = down_until(&self.outages, now) {
            self.workers[place].look_at = up;
            return true;
        }
        let advanced = self.claim(1, format!("worker {place}"));
        let look_again = now + LEASE;
        self.workers[place].look_at = advanced.next.map_or(look_again, |next| next.min(look_again)).max(now + Duration::from_millis(1));
        if let Some(claimed) = advanced.claimed.into_iter().next() {
            self.take_up(place, claimed);
        }
        true
    }

    fn take_up(&mut self, place: usize, claimed: Claimed) {
        let now = self.clock.now();
        let Document { id, kind, lease, .. } = &claimed.document;
        debug_assert!(lease.is_some(), "what was claimed is leased");
        if self.orphans.remove(id) {
            self.sometimes.count("taken over from the dead");
        }
        if self.workers.iter().any(|worker| worker.job.as_ref().is_some_and(|job| job.id == *id)) {
            self.sometimes.count("taken over from one that still believes to have it");
        }
        if let Some(fresh) = self.fresh(&claimed.document) {
            self.gate.is_at(id, fresh);
        }
        let lost = CancellationToken::new();
        let lease = GatedLease {
            store: self.store.clone(),
            gate: self.gate.clone(),
            registry: self.registry.clone(),
            outages: self.outages.clone(),
            sometimes: self.sometimes.clone(),
            id: id.clone(),
            kind: kind.clone(),
            fence: claimed.fence,
            lost: lost.clone(),
        };
        self.gate.embody(place, Some(id.clone()));
        let (id, fence) = (id.clone(), claimed.fence);
        let (engine, gate) = (self.engine.clone(), self.gate.clone());
        let (sometimes, registry) = (self.sometimes.clone(), &self.registry);
        let known = registry.get(&claimed.document.kind).is_some();
        let work: Work = Box::pin(async move {
            // A claim whose answer is lost: granted, and nobody knows of it.
            if known && gate.pass(Moment::Claimed).await == Befalls::AnswerLost {
                sometimes.count("claim whose answer was lost");
                return Activation::Lost;
            }
            engine.activate(claimed, &lease).await
        });
        let renew_at = now + RENEWED_EVERY;
        self.workers[place].job = Some(Job { work, id, fence, lost, renew_at, stood_still: false });
        self.poll(place);
    }

    /// Where a workflow is that has not begun any step.
    fn fresh(&self, document: &Document) -> Option<At> {
        let definition = self.registry.get(&document.kind).filter(|_| document.seq == 1)?;
        let step = definition.steps.first()?.name();
        Some(At { kind: definition.kind, step, undoing: false })
    }

    /// Something is due, and somebody is idle: the bell rings. True if somebody hears it.
    fn ring(&mut self) -> bool {
        let now = self.clock.now();
        let hears = |worker: &Worker| worker.job.is_none() && worker.up_at <= now;
        let hear: Vec<usize> = (0..self.workers.len()).filter(|&place| hears(&self.workers[place])).collect();
        if hear.is_empty() || now < self.unheard_until || self.due().is_none_or(|due| due > now) {
            return false;
        }
        if let Some(up) = down_until(&self.outages, now) {
            self.unheard_until = up;
            return false;
        }
        if self.gate.with_fate(|fate| fate.rings_unheard()) {
            self.sometimes.count("ring unheard");
            self.unheard_until = hear.iter().map(|&place| self.workers[place].look_at).min().unwrap_or(now);
            return false;
        }
        let place = hear[self.gate.with_fate(|fate| fate.picks(hear.len()))];
        self.workers[place].look_at = now;
        true
    }
}
