//! The pump: the one place in a worker that talks to the store.
//!
//! It has a thread of its own, so that a step that blocks its thread loses nobody's lease. While a call is outstanding, what completes
//! goes with the next one (group commit), which waits for its answer, unless so much has completed that it is worth a call of its own:
//! then it is packed while the store is busy with the first. It does not poll for work: it sleeps until the bell
//! rings, somebody asks, a lease is to be renewed, or the next workflow is due; once in a lease's length it looks for
//! leases of workers that died since. An outage is waited out: the same batch is
//! sent again until it is answered, which is safe by the store's contract.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use turnaround_workflows::store::{
    Advance, Advanced, COMMITS_MAX, Claim, Commit, Committed, Fence, Next, Queue, Store, StoreError, Trouble, WorkflowId,
};
use turnaround_workflows::telemetry::metrics;

use crate::clock::StoreClock;
use crate::lease::{Ask, Asking, Lease, Leased, Unread};

/// Leases are renewed when this fraction of their length has passed: two renewals may fail before one is lost.
const RENEW_AT: u32 = 3;
/// Pauses between tries while the store does not answer: short at first, since a restart takes 0.1 s, never long, since every
/// second of it is a second in which nothing goes on.
const OUTAGE_PAUSE_FIRST: Duration = Duration::from_millis(20);
const OUTAGE_PAUSE_MAX: Duration = Duration::from_secs(1);
/// After being told to stop, what is under way may come to its next commit within this time; then it is handed back.
/// A supervisor expects a worker to be gone within half a second.
const STOP_GRACE: Duration = Duration::from_millis(200);
/// The last call, which hands leases back, is tried for so long. Leases that could not be handed back expire.
const STOP_TRIES_FOR: Duration = Duration::from_secs(2);
/// A ring that came to a worker which is about to end is passed on within this time: two round trips, with room. One that is
/// lost all the same costs others the rest of the lease, and nothing else.
const RING_PASSED_ON: Duration = Duration::from_millis(50);
/// Workflows in hand from which on a call waits for company, how long, and for how much. One timer tick, which is less than one fsync
/// and nothing beside what a step does to the world; half of a full call, in which the call's own cost has vanished.
const LINGER_FROM: usize = 16;
const LINGER: Duration = Duration::from_millis(1);
const LINGER_ENOUGH: usize = COMMITS_MAX / 2;
/// Calls that are outstanding at the same time: while the store carries one out, another is packed or read. More would only wait there.
const CALLS_MAX: usize = 2;
/// How long one wait for the bell lasts. The store keeps its own limit; this one only bounds a hung call.
const BELL_WAIT: Duration = Duration::from_secs(30);

/// Makes the store on the pump's own runtime, where its connections must live.
pub type MakeStore = Box<dyn FnOnce() -> BoxFuture<'static, Result<Arc<dyn Store>, StoreError>> + Send>;

/// How a worker claims.
#[derive(Debug, Clone)]
pub struct PumpOptions {
    /// Workflows in hand at the same time.
    pub slots: u16,
    pub lease: Duration,
    /// Who claims, for people to read.
    pub worker: String,
    /// What is claimed: workflows that wait in these.
    pub queues: Vec<Queue>,
}

/// A running pump.
pub struct Pump {
    /// Claimed workflows, to be handed to the queue.
    pub leased: mpsc::Receiver<Leased>,
    /// True once the store has answered for the first time.
    pub ready: watch::Receiver<bool>,
    pub clock: Arc<StoreClock>,
    stopping: CancellationToken,
    thread: std::thread::JoinHandle<Result<(), StoreError>>,
}

/// Ends the pump.
pub struct PumpHandle {
    stopping: CancellationToken,
    thread: std::thread::JoinHandle<Result<(), StoreError>>,
}

impl PumpHandle {
    /// Nothing more is claimed; what is under way is handed back after [`STOP_GRACE`].
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Cancelled once the pump stops, by order or because the store is unusable.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Waits until every lease has been settled or handed back. Outer error: the pump met a bug of ours, and its leases will expire.
    pub fn join(self) -> std::thread::Result<Result<(), StoreError>> {
        self.thread.join()
    }
}

impl Pump {
    /// Starts the pump's thread. Fails only if the system gives no thread.
    pub fn start(make: MakeStore, options: PumpOptions) -> std::io::Result<Pump> {
        let (to_queue, leased) = mpsc::channel(usize::from(options.slots).max(1));
        let (ready_tx, ready) = watch::channel(false);
        let clock = Arc::new(StoreClock::new(turnaround_workflows::clock::Timestamp::default()));
        let stopping = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (pump_clock, pump_stopping) = (clock.clone(), stopping.clone());
        let thread = std::thread::Builder::new().name("pump".to_owned()).spawn(move || {
            // However it ends: a worker without a pump must not look like one that works.
            let _stops = pump_stopping.clone().drop_guard();
            runtime.block_on(async {
                let store = tokio::select! {
                    store = make() => store?,
                    () = pump_stopping.cancelled() => return Ok(()),
                };
                let shared = Shared { store, clock: pump_clock, stopping: pump_stopping.clone(), options, told: Mutex::default() };
                Loop::new(shared, to_queue, ready_tx).run().await
            })
        })?;
        Ok(Pump { leased, ready, clock, stopping, thread })
    }

    /// Cancelled once the pump stops, by order or by itself.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// The queue's half, and the half that ends it.
    pub fn split(self) -> (mpsc::Receiver<Leased>, PumpHandle) {
        (self.leased, PumpHandle { stopping: self.stopping, thread: self.thread })
    }
}

struct Shared {
    store: Arc<dyn Store>,
    clock: Arc<StoreClock>,
    stopping: CancellationToken,
    options: PumpOptions,
    /// What was told of an outage; nothing while the store answers.
    told: Mutex<BTreeSet<Trouble>>,
}

/// A lease that this worker has.
struct Held {
    fence: Fence,
    lost: CancellationToken,
    /// A commit under it is outstanding. It says itself what becomes of the lease: a renewal that overtakes it, or is overtaken,
    /// would tell of a lease that is lost where it was given up.
    committing: bool,
}

/// Everything that the next call carries.
#[derive(Default)]
struct Batch {
    commits: Vec<Commit>,
    /// Who waits for what became of them, in the same order.
    committers: Vec<oneshot::Sender<(Committed, Commit)>>,
    guards: Vec<(WorkflowId, Fence, oneshot::Sender<bool>)>,
    hand_back: Vec<(WorkflowId, Fence)>,
}

/// What one call carried, and what came of it.
struct Answered {
    batch: Batch,
    advance: Advance,
    result: Result<Advanced, StoreError>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.commits.is_empty() && self.guards.is_empty() && self.hand_back.is_empty()
    }
}

struct Loop {
    shared: Arc<Shared>,
    to_queue: mpsc::Sender<Leased>,
    ready: watch::Sender<bool>,
    asks: mpsc::UnboundedReceiver<Ask>,
    asking: Asking,
    unread: Arc<Unread>,
    held: HashMap<WorkflowId, Held>,
    batch: Batch,
    outstanding: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// One of the outstanding calls claims.
    claiming: bool,
    /// When to claim next, if the bell does not ring before.
    claim_at: Instant,
    renew_at: Instant,
    bell: Arc<Notify>,
    /// Whether there is a free slot: without one nobody listens to the bell.
    free: watch::Sender<bool>,
}

/// However it ends, nobody goes on under a lease that is not looked after any more.
impl Drop for Loop {
    fn drop(&mut self) {
        for held in self.held.values() {
            held.lost.cancel();
        }
    }
}

impl Loop {
    fn new(shared: Shared, to_queue: mpsc::Sender<Leased>, ready: watch::Sender<bool>) -> Loop {
        let (asking, asks, unread) = Asking::open();
        let renew_at = Instant::now() + shared.options.lease / RENEW_AT;
        Loop {
            shared: Arc::new(shared),
            to_queue,
            ready,
            asks,
            asking,
            unread,
            held: HashMap::new(),
            batch: Batch::default(),
            outstanding: FuturesUnordered::new(),
            claiming: false,
            claim_at: Instant::now(),
            renew_at,
            bell: Arc::new(Notify::new()),
            free: watch::channel(true).0,
        }
    }

    async fn run(mut self) -> Result<(), StoreError> {
        let queues = self.shared.options.queues.clone();
        let listener = tokio::spawn(listen(self.shared.store.clone(), queues, self.bell.clone(), self.free.subscribe()));
        let pumped = self.pump().await;
        // From here on rings are for others, also the one that is not answered yet.
        listener.abort();
        if self.bell.notified().now_or_never().is_some() {
            let Shared { store, options, .. } = &*self.shared;
            let ring = futures::future::join_all(options.queues.iter().map(|queue| store.ring(queue)));
            // Whoever is free looks once in a lease's length anyway.
            let _ = tokio::time::timeout(RING_PASSED_ON, ring).await;
        }
        pumped?;
        self.stop().await
    }

    async fn pump(&mut self) -> Result<(), StoreError> {
        let stopping = self.shared.stopping.clone();
        while !stopping.is_cancelled() {
            let woken = self.wait().await?;
            if self.outstanding.is_empty() {
                self.gather();
                if !woken && self.batch.is_empty() {
                    continue;
                }
            } else {
                if self.missing_for_another() > self.unread.count() {
                    continue;
                }
                self.gather();
                if self.missing_for_another() > 0 {
                    continue;
                }
            }
            self.linger().await;
            if stopping.is_cancelled() {
                break;
            }
            self.call();
        }
        Ok(())
    }

    /// Commits that are missing until a call beside the one that is outstanding is worth while.
    fn missing_for_another(&self) -> usize {
        if self.outstanding.len() < CALLS_MAX { LINGER_ENOUGH.saturating_sub(self.batch.commits.len()) } else { usize::MAX }
    }

    fn free_slots(&self) -> u32 {
        u32::from(self.shared.options.slots).saturating_sub(u32::try_from(self.held.len()).unwrap_or(u32::MAX))
    }

    /// Returns when there is something to do; false if that was the answer to a call, which may leave nothing else to do. While a call is
    /// outstanding, that is its answer, or enough for another one.
    async fn wait(&mut self) -> Result<bool, StoreError> {
        let free = self.free_slots() > 0;
        self.free.send_replace(free);
        let stopping = self.shared.stopping.clone();
        if !self.outstanding.is_empty() {
            let missing = self.missing_for_another();
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                Some(answered) = self.outstanding.next() => {
                    self.settle(answered)?;
                    return Ok(false);
                }
                () = self.unread.at_least(missing) => {}
            }
            return Ok(true);
        }
        let claim_at = free.then_some(self.claim_at);
        let renew_at = (!self.held.is_empty()).then_some(self.renew_at);
        tokio::select! {
            biased;
            () = stopping.cancelled() => {}
            ask = self.asks.recv() => if let Some(ask) = ask { self.take(ask) },
            // Put back for the call, which takes it only if it can claim.
            () = self.bell.notified(), if free => self.bell.notify_one(),
            () = at(claim_at) => {}
            () = at(renew_at) => {}
        }
        Ok(true)
    }

    /// Takes in what else is waiting, up to a full call.
    fn gather(&mut self) {
        while self.batch.commits.len() < COMMITS_MAX {
            let Ok(ask) = self.asks.try_recv() else { return };
            self.take(ask);
        }
    }

    /// A call costs about as much as ten commits: where many workflows are brought on at once it goes once enough of them have come to
    /// their commit. Who waits with few, or alone, does not wait for others.
    async fn linger(&mut self) {
        let enough = LINGER_ENOUGH.min(self.held.len() / 2);
        let has = self.batch.commits.len();
        if self.held.len() < LINGER_FROM || has == 0 || has >= enough || !self.batch.guards.is_empty() {
            return;
        }
        let stopping = self.shared.stopping.clone();
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = self.unread.at_least(enough - has) => {}
            () = tokio::time::sleep(LINGER) => {}
        }
        self.gather();
    }

    fn take(&mut self, ask: Ask) {
        self.unread.read_one();
        match ask {
            Ask::Commit { commit, reply } => {
                self.batch.commits.push(*commit);
                self.batch.committers.push(reply);
            }
            Ask::Guard { id, fence, reply } => self.batch.guards.push((id, fence, reply)),
            Ask::Drop { id, fence, hand_back } => {
                if self.held.get(&id).is_some_and(|held| held.fence == fence) {
                    self.held.remove(&id);
                }
                if hand_back {
                    self.batch.hand_back.push((id, fence));
                }
            }
        }
    }

    fn claim(&self, max: u32) -> Claim {
        let PumpOptions { lease, worker, queues, .. } = &self.shared.options;
        Claim { max, lease: *lease, worker: worker.clone(), queues: queues.clone() }
    }

    /// Begins one call: commits, renewals, hand-backs, and a claim for what is free, if nobody claims yet and there may be something, also by what
    /// this very call commits: a claim where nothing is due makes a second round trip of what needs one.
    fn call(&mut self) {
        let now = Instant::now();
        let free = if self.claiming { 0 } else { self.free_slots() };
        let rang = free > 0 && self.bell.notified().now_or_never().is_some();
        let may_be_due = rang || now >= self.claim_at || self.batch.commits.iter().any(makes_due);
        let free = if may_be_due { free } else { 0 };
        self.send(now >= self.renew_at, (free > 0).then(|| self.claim(free)));
    }

    fn send(&mut self, renewing: bool, claim: Option<Claim>) {
        let mut batch = std::mem::take(&mut self.batch);
        for commit in &batch.commits {
            self.mark_committing(commit, true);
        }
        let mut renew: Vec<(WorkflowId, Fence)> =
            batch.guards.iter().map(|(id, fence, _)| (id.clone(), *fence)).collect();
        if renewing {
            renew.extend(self.held.iter().filter(|(_, held)| !held.committing).map(|(id, held)| (id.clone(), held.fence)));
            self.renew_at = Instant::now() + self.shared.options.lease / RENEW_AT;
        }
        self.claiming |= claim.is_some();
        let advance = Advance {
            lease: self.shared.options.lease,
            commits: std::mem::take(&mut batch.commits),
            renew,
            hand_back: batch.hand_back.clone(),
            claim,
        };
        let shared = self.shared.clone();
        self.outstanding.push(Box::pin(async move {
            let result = shared.until_answered(&advance).await;
            Answered { batch, advance, result }
        }));
    }

    /// By its fence: this worker may have lost the workflow and claimed it again meanwhile.
    fn mark_committing(&mut self, commit: &Commit, committing: bool) {
        if let Some(held) = self.held.get_mut(&commit.id).filter(|held| held.fence == commit.fence) {
            held.committing = committing;
        }
    }

    /// Waits for all that is outstanding.
    async fn settle_all(&mut self) -> Result<(), StoreError> {
        while let Some(answered) = self.outstanding.next().await {
            self.settle(answered)?;
        }
        Ok(())
    }

    fn settle(&mut self, answered: Answered) -> Result<(), StoreError> {
        let Answered { batch, advance, result } = answered;
        self.claiming &= advance.claim.is_none();
        let advanced = result?;
        self.shared.clock.heard(advanced.now);
        self.ready.send_replace(true);
        for ((commit, reply), committed) in advance.commits.into_iter().zip(batch.committers).zip(advanced.commits) {
            self.mark_committing(&commit, false);
            let over = match &committed {
                Committed::Done { .. } => commit.next != Next::Keep,
                Committed::Fenced | Committed::Conflict { .. } => true,
                Committed::Busy { .. } | Committed::Held { .. } => false,
            };
            // By its fence, as above.
            let is_held = self.held.get(&commit.id).is_some_and(|held| held.fence == commit.fence);
            if over && is_held {
                self.held.remove(&commit.id);
                if committed == Committed::Fenced {
                    metrics::lease_lost();
                }
            }
            // Whoever asked may be gone: what was committed stands all the same.
            let _ = reply.send((committed, commit));
        }
        let guards = batch.guards.len();
        for ((_, _, reply), renewed) in batch.guards.into_iter().zip(&advanced.renewed) {
            let _ = reply.send(renewed.is_some());
        }
        for ((id, fence), renewed) in advance.renew.iter().zip(&advanced.renewed).skip(guards) {
            // A commit that has overtaken it tells itself what becomes of the lease.
            if renewed.is_none() && self.held.get(id).is_some_and(|held| held.fence == *fence && !held.committing) {
                self.lose(id);
            }
        }
        if advance.claim.is_some() {
            metrics::claimed(advanced.claimed.len() as u64);
        }
        for claimed in advanced.claimed {
            self.hand_out(claimed);
        }
        // The reply can't know of leases that are granted later. One granted now ends a lease's length from now at the earliest,
        // so whoever looks that often meets every dead worker's lease at its end.
        let look_again = Instant::now() + self.shared.options.lease;
        let next = advanced.next.map_or(look_again, |next| self.shared.clock.instant(next).min(look_again));
        // A call that does not claim has not looked at what is due.
        self.claim_at = if advance.claim.is_some() { next } else { next.min(self.claim_at) };
        Ok(())
    }

    fn lose(&mut self, id: &WorkflowId) {
        if let Some(held) = self.held.remove(id) {
            metrics::lease_lost();
            warn!(workflow = %id, "the lease was lost; its step is dropped");
            held.lost.cancel();
        }
    }

    fn hand_out(&mut self, claimed: turnaround_workflows::store::Claimed) {
        let id = claimed.document.id.clone();
        // An older lease of ours on the same workflow has expired under us.
        self.lose(&id);
        let lost = CancellationToken::new();
        let lease =
            Lease::new(&claimed, self.asking.clone(), self.shared.clock.clone(), lost.clone(), self.shared.stopping.clone());
        self.held.insert(id.clone(), Held { fence: claimed.fence, lost, committing: false });
        if let Err(refused) = self.to_queue.try_send(Leased { claimed, lease }) {
            // Its lease is dropped here and thereby given up.
            warn!(workflow = %id, why = %refused, "the queue did not take a claimed workflow");
        }
    }

    /// Lets what is under way come to a commit, then hands the rest back.
    async fn stop(&mut self) -> Result<(), StoreError> {
        self.settle_all().await?;
        let end = Instant::now() + STOP_GRACE;
        while !self.held.is_empty() && Instant::now() < end {
            tokio::select! {
                ask = self.asks.recv() => if let Some(ask) = ask { self.take(ask) },
                () = tokio::time::sleep_until(end) => {}
            }
            self.gather();
            if !self.batch.is_empty() {
                self.call_without_claim().await?;
            }
        }
        for held in self.held.values() {
            held.lost.cancel();
        }
        let end = Instant::now() + STOP_GRACE;
        while !self.held.is_empty() && Instant::now() < end {
            tokio::select! {
                ask = self.asks.recv() => if let Some(ask) = ask { self.take(ask) },
                () = tokio::time::sleep_until(end) => {}
            }
        }
        self.gather();
        // A step that did not let go in time has its lease handed back all the same: its next effect asks first.
        let rest: Vec<(WorkflowId, Fence)> = self.held.drain().map(|(id, held)| (id, held.fence)).collect();
        self.batch.hand_back.extend(rest);
        if !self.batch.is_empty() {
            let rang = !self.batch.hand_back.is_empty();
            self.call_without_claim().await?;
            if rang {
                // Our own blocked read may have received the ring: it needs this moment to pass it on.
                tokio::time::sleep(RING_PASSED_ON).await;
            }
        }
        Ok(())
    }

    async fn call_without_claim(&mut self) -> Result<(), StoreError> {
        self.send(false, None);
        self.settle_all().await
    }
}

impl Shared {
    fn told(&self) -> MutexGuard<'_, BTreeSet<Trouble>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each trouble once in an outage, however many calls it concerns: a password that somebody has changed shows itself only after the connection was lost.
    fn tell(&self, outage: &StoreError) {
        let trouble = outage.trouble();
        let mut told = self.told();
        let is_first = told.is_empty();
        let is_new = told.insert(trouble);
        drop(told);
        if is_first {
            metrics::store_outage();
        }
        if is_new {
            let source = std::error::Error::source(outage).map(ToString::to_string);
            warn!(error = %outage, source, trouble = trouble.code(), remedy = trouble.remedy(), "the store can't be written to; waiting for it");
        }
    }

    /// Sends the same batch until it is answered. Gives up only when told to stop, or when the store can't be used at all.
    async fn until_answered(&self, advance: &Advance) -> Result<Advanced, StoreError> {
        let mut pause = OUTAGE_PAUSE_FIRST;
        let mut stop_by = None;
        let began = Instant::now();
        loop {
            let error = match self.store.advance(advance).await {
                Ok(advanced) => {
                    if !advance.commits.is_empty() {
                        metrics::committed(began.elapsed());
                    }
                    if !std::mem::take(&mut *self.told()).is_empty() {
                        info!(seconds = began.elapsed().as_secs_f64(), "the store can be written to again");
                    }
                    return Ok(advanced);
                }
                Err(error) => error,
            };
            if !error.is_outage() {
                error!(%error, "the store can't be used");
                return Err(error);
            }
            self.tell(&error);
            if self.stopping.is_cancelled() && Instant::now() > *stop_by.get_or_insert(Instant::now() + STOP_TRIES_FOR) {
                return Err(error);
            }
            tokio::time::sleep(pause.mul_f64(rand_factor())).await;
            pause = (pause * 2).min(OUTAGE_PAUSE_MAX);
        }
    }
}

/// Listens to the bell while there is a free slot; passes on a ring that came when there was none left.
async fn listen(store: Arc<dyn Store>, queues: Vec<Queue>, bell: Arc<Notify>, mut free: watch::Receiver<bool>) {
    let mut pause = OUTAGE_PAUSE_FIRST;
    loop {
        if free.wait_for(|free| *free).await.is_err() {
            return;
        }
        match store.wait_for_bell(&queues, BELL_WAIT).await {
            Ok(_) if *free.borrow() => {
                pause = OUTAGE_PAUSE_FIRST;
                bell.notify_one();
                // Where no call is outstanding the pump claims before it listens again, so that one ring is not answered twice.
                tokio::task::yield_now().await;
            }
            Ok(rang) => {
                if let Some(queue) = rang {
                    // Whoever is free looks once in a lease's length anyway.
                    let _ = store.ring(&queue).await;
                }
                tokio::task::yield_now().await;
            }
            Err(_) => {
                // The pump tells about outages; after one there may be work.
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(OUTAGE_PAUSE_MAX);
                bell.notify_one();
            }
        }
    }
}

/// May something be due after this commit, or is there a new time at which something will be?
fn makes_due(commit: &Commit) -> bool {
    let parks = matches!(commit.next, Next::At(_) | Next::Signal);
    parks || !commit.create.is_empty() || !commit.signals.is_empty() || !commit.give.is_empty()
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Between a half and the whole, so that workers do not come back all at once.
fn rand_factor() -> f64 {
    rand::random_range(0.5..=1.0)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use turnaround_workflows::clock::{Clock as _, SystemClock, Timestamp};
    use turnaround_workflows::engine::Committer as _;
    use turnaround_workflows::store::memory::MemoryStore;
    use turnaround_workflows::store::{Digest, NewWorkflow, Status, StoredEntry};

    use super::*;

    /// A pump with so many slots, and the end of its queue.
    fn pump(slots: u16, store: Arc<dyn Store>) -> (Loop, mpsc::Receiver<Leased>) {
        let options =
            PumpOptions { slots, lease: Duration::from_secs(30), worker: "under test".to_owned(), queues: vec![Queue::DEFAULT] };
        let clock = Arc::new(StoreClock::new(Timestamp::default()));
        let shared = Shared { store, clock, stopping: CancellationToken::new(), options, told: Mutex::default() };
        let (to_queue, queue) = mpsc::channel(usize::from(slots));
        (Loop::new(shared, to_queue, watch::channel(false).0), queue)
    }

    fn memory() -> Arc<MemoryStore> {
        Arc::new(MemoryStore::new(Arc::new(SystemClock)))
    }

    /// As a lease would.
    fn ask(pump: &mut Loop, ask: Ask) {
        pump.asking.clone().ask(ask).expect("the pump is there");
        pump.gather();
    }

    async fn create(store: &MemoryStore, name: &str) {
        let new = NewWorkflow {
            id: name.parse().expect("an id"),
            kind: "probe".to_owned(),
            target: "site".to_owned(),
            parent: None,
            headline: String::new(),
            entry: StoredEntry { digest: Digest::NONE, body: "{}".to_owned() },
            traceparent: None,
            due: None,
        };
        store.create(new).await.expect("a creation");
    }

    fn parked(id: &WorkflowId, fence: Fence) -> Commit {
        Commit {
            id: id.clone(),
            fence,
            expected: 1,
            entries: Vec::new(),
            state: None,
            status: Status::Waiting,
            headline: String::new(),
            consumed: 0,
            take: Vec::new(),
            give: Vec::new(),
            create: Vec::new(),
            signals: Vec::new(),
            traceparent: None,
            next: Next::Signal,
            queue: Queue::DEFAULT,
        }
    }

    #[tokio::test]
    async fn the_end_of_an_old_lease_is_not_the_end_of_a_new_one() {
        let (mut pump, _queue) = pump(1, memory());
        let id: WorkflowId = "node-os-rollout-abc.gpu-01".parse().expect("an id");
        // Lost, and claimed again by this very worker; then what the old activation had asked for is answered.
        let lost = CancellationToken::new();
        pump.held.insert(id.clone(), Held { fence: Fence(2), lost: lost.clone(), committing: false });
        for committed in [Committed::Fenced, Committed::Done { lease_until: None, signals: Vec::new() }] {
            let batch = Batch { committers: vec![oneshot::channel().0], ..Batch::default() };
            let advanced =
                Advanced { now: Timestamp::default(), commits: vec![committed], renewed: Vec::new(), claimed: Vec::new(), next: None };
            let advance = Advance { commits: vec![parked(&id, Fence(1))], ..Advance::default() };
            pump.settle(Answered { batch, advance, result: Ok(advanced) }).expect("an answer");
            assert!(pump.held.contains_key(&id), "it is renewed for as long as it is worked on");
        }
        assert!(!lost.is_cancelled());
    }

    #[tokio::test]
    async fn a_lease_whose_commit_is_outstanding_is_not_renewed_beside_it() {
        let store = memory();
        let (mut pump, mut queue) = pump(2, store.clone());
        create(&store, "parks").await;
        create(&store, "stays").await;
        pump.call();
        pump.settle_all().await.expect("an answer");
        let (parks, stays) = (queue.try_recv().expect("claimed"), queue.try_recv().expect("claimed"));
        // It gives up its lease, and while that is outstanding all leases are renewed.
        let (reply, committed) = oneshot::channel();
        let (id, fence) = (parks.claimed.document.id.clone(), parks.claimed.fence);
        ask(&mut pump, Ask::Commit { commit: Box::new(parked(&id, fence)), reply });
        pump.send(false, None);
        pump.send(true, None);
        assert_eq!(pump.outstanding.len(), CALLS_MAX);
        pump.settle_all().await.expect("two answers");
        assert!(matches!(committed.await, Ok((Committed::Done { .. }, _))));
        assert_eq!(pump.held.keys().collect::<Vec<_>>(), [&stays.claimed.document.id]);
        for leased in [&parks, &stays] {
            assert!(leased.lease.lost().now_or_never().is_none(), "nobody was told that a lease is lost");
        }
        // It ends while its lease is renewed by a call that comes after that.
        let (id, fence) = (stays.claimed.document.id.clone(), stays.claimed.fence);
        let Some(Held { committing, .. }) = pump.held.get_mut(&id) else { panic!("it is in hand") };
        *committing = true;
        let renewal = Advance { renew: vec![(id.clone(), fence)], ..Advance::default() };
        let refused = Advanced { now: Timestamp::default(), commits: Vec::new(), renewed: vec![None], claimed: Vec::new(), next: None };
        pump.settle(Answered { batch: Batch::default(), advance: renewal, result: Ok(refused) }).expect("an answer");
        assert!(stays.lease.lost().now_or_never().is_none(), "its commit tells what becomes of it");
    }

    #[tokio::test]
    async fn a_store_whose_clock_is_set_back_is_followed_by_the_pump_and_not_by_the_leases_that_it_has() {
        let store = memory();
        let (mut pump, mut queue) = pump(2, store.clone());
        create(&store, "one").await;
        pump.call();
        pump.settle_all().await.expect("an answer");
        let leased = queue.try_recv().expect("claimed");
        let before = leased.lease.now();
        let back = Timestamp::from_millis(before.millis() - 120_000);
        let next = Some(back + Duration::from_secs(20));
        let advanced = Advanced { now: back, commits: Vec::new(), renewed: Vec::new(), claimed: Vec::new(), next };
        let advance = Advance { claim: Some(pump.claim(1)), ..Advance::default() };
        pump.settle(Answered { batch: Batch::default(), advance, result: Ok(advanced) }).expect("an answer");
        assert!(leased.lease.now() >= before, "what was seen under it has not become newer");
        assert!(pump.shared.clock.now() < before);
        assert!(pump.claim_at > Instant::now() + Duration::from_secs(10), "what is due later is not asked for over and over");
    }

    #[tokio::test]
    async fn a_call_claims_only_where_something_may_be_due() {
        let store = memory();
        let (mut pump, _queue) = pump(2, store.clone());
        create(&store, "one").await;
        pump.call();
        assert!(pump.claiming, "nobody has looked yet");
        pump.settle_all().await.expect("an answer");
        assert_eq!(pump.held.len(), 1);
        pump.call();
        assert!(!pump.claiming, "one slot is free, and nothing was due");
        pump.settle_all().await.expect("an answer");
        pump.bell.notify_one();
        pump.call();
        assert!(pump.claiming, "somebody has rung");
        pump.settle_all().await.expect("an answer");
        pump.call();
        assert!(!pump.claiming, "one ring is answered once");
        pump.settle_all().await.expect("an answer");
        pump.claim_at = Instant::now();
        pump.call();
        assert!(pump.claiming, "what is due later is due now");
        pump.settle_all().await.expect("an answer");
        let id: WorkflowId = "one".parse().expect("an id");
        for (next, claims) in [(Next::Keep, false), (Next::Signal, true)] {
            let fence = pump.held[&id].fence;
            let expected = if next == Next::Keep { 1 } else { 2 };
            let entries = vec![StoredEntry { digest: Digest::NONE, body: "{}".to_owned() }];
            ask(&mut pump, Ask::Commit { commit: Box::new(Commit { next, expected, entries, ..parked(&id, fence) }), reply: oneshot::channel().0 });
            pump.call();
            assert_eq!(pump.claiming, claims, "one that parks may be due, by what has come meanwhile");
            pump.settle_all().await.expect("an answer");
        }
    }

    #[tokio::test]
    async fn a_ring_that_comes_while_no_slot_is_free_or_a_claim_is_outstanding_is_not_forgotten() {
        let store = memory();
        let (mut pump, _queue) = pump(1, store.clone());
        create(&store, "one").await;
        pump.call();
        pump.bell.notify_one();
        pump.call();
        assert_eq!(pump.outstanding.len(), CALLS_MAX);
        pump.settle_all().await.expect("two answers");
        pump.call();
        assert!(!pump.claiming, "no slot is free");
        pump.settle_all().await.expect("an answer");
        assert!(pump.wait().now_or_never().is_none(), "nothing can be done");
        pump.held.clear();
        assert!(pump.wait().now_or_never().is_some(), "it does not sleep over a ring");
        pump.call();
        assert!(pump.claiming);
        pump.settle_all().await.expect("an answer");
    }

    #[tokio::test]
    async fn a_second_call_goes_only_if_it_is_worth_it_and_never_a_third() {
        let (mut pump, _queue) = pump(1, memory());
        let come = |pump: &mut Loop, commits: usize| {
            for number in 0..commits {
                let id = format!("w{number}").parse().expect("an id");
                ask(pump, Ask::Commit { commit: Box::new(parked(&id, Fence(1))), reply: oneshot::channel().0 });
            }
        };
        pump.call();
        assert!(pump.claiming);
        come(&mut pump, LINGER_ENOUGH - 1);
        assert_eq!(pump.missing_for_another(), 1, "it goes when the first one is answered");
        come(&mut pump, 1);
        assert_eq!(pump.missing_for_another(), 0);
        pump.call();
        come(&mut pump, COMMITS_MAX);
        assert_eq!(pump.missing_for_another(), usize::MAX);
        pump.settle_all().await.expect("two answers");
        assert!(!pump.claiming);
    }
}
