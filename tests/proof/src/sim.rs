//! The true engine on the memory store and the simulated site, in virtual time, with a worker that can be killed at any
//! point: before and after every commit, every guard, and every call to the outside world.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use turnaround_config::{Compared, Matcher, NodeName, Pinned};
use turnaround_workflows::clock::{Clock, HandClock, Timestamp};
use turnaround_workflows::engine::{Activation, Committer, Engine, LeaseLost, Registry, Signal, SignalKind, State, start};
use turnaround_workflows::ports::{
    Bmc, BootOverride, BootTicket, Canaries, CanaryInstance, ClusterNode, ClusterNodes, CommandEnd, ComputeService, ComputeServices, Cordon, Eviction, Facts, Host, Hypervisor, Instance, InstanceId, Instances, Migration,
    Move, MoveProgress, MoveStarted, NetBoot, NodeFacts, NodeStock, Pod, PortError, Ports, Power, Machine, RequestId, ScriptRun, ScriptState, ServerGroup, SetupScript, Silence, Silences,
    NewCanary, NewSilence, RebuildOrder, RebuildRecord, Rebuilder,
};
use turnaround_workflows::rehearsal::{COUNT_GPUS, InstallerSaid, SitePlan, World};
use turnaround_workflows::store::memory::MemoryStore;
use turnaround_workflows::store::{
    Advance, Claim, Claimed, Commit, Committed, Document, Query, Queue, Scope, Store, WorkflowId,
};
use turnaround_workflows::updates::{self, Deploy, ReportDesk, Expected, OrderedCanary, OrderedCheck, OrderedCluster, OrderedImage, OrderedIronicImage, OrderedReports, OrderedSilence, RolloutOrder, Rules};

/// Length of a lease in simulated time.
pub const LEASE: Duration = Duration::from_secs(10);
/// Turns of the simulation until it counts as stuck: a rollout of a few nodes takes some hundred.
const TURNS_MAX: u32 = 200_000;
/// When the simulated day begins.
pub const MORNING: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// When, during one activation, the worker dies.
#[derive(Debug, Clone)]
pub struct Death(Arc<DeathState>);

#[derive(Debug)]
struct DeathState {
    passed: AtomicU32,
    /// The worker dies at this point, counted from 1; 0: never.
    at: u32,
    names: std::sync::Mutex<Vec<String>>,
    died: AtomicBool,
}

impl Death {
    pub fn never() -> Death {
        Death::at(0)
    }

    pub fn at(point: u32) -> Death {
        Death(Arc::new(DeathState { passed: AtomicU32::new(0), at: point, names: Default::default(), died: AtomicBool::new(false) }))
    }

    /// How many points have been passed so far.
    pub fn passed(&self) -> u32 {
        self.0.passed.load(Ordering::SeqCst)
    }

    pub fn has_come(&self) -> bool {
        self.0.died.load(Ordering::SeqCst)
    }

    /// Names of all points passed, in order.
    pub fn names(&self) -> Vec<String> {
        self.0.names.lock().unwrap().clone()
    }

    fn passes(&self, name: &str) -> bool {
        let point = self.0.passed.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.names.lock().unwrap().push(name.to_owned());
        if point == self.0.at {
            self.0.died.store(true, Ordering::SeqCst);
        }
        self.0.died.load(Ordering::SeqCst)
    }

    /// Passes a point; never returns if the worker dies there.
    async fn point(&self, token: &CancellationToken, name: &str) {
        if self.passes(name) {
            token.cancel();
            std::future::pending::<()>().await;
        }
    }
}

/// A worker's process: everything that it does passes through here, and stops when it dies.
#[derive(Clone)]
struct Mortal {
    death: Death,
    /// Cancelled when it is dead.
    token: CancellationToken,
}

impl Mortal {
    async fn call<T>(&self, name: &str, call: impl Future<Output = T>) -> T {
        self.death.point(&self.token, &format!("before {name}")).await;
        let done = call.await;
        self.death.point(&self.token, &format!("after {name}")).await;
        done
    }
}

struct DirectLease {
    store: Arc<dyn Store>,
    clock: Arc<HandClock>,
    outage: Option<(Timestamp, Timestamp)>,
    claimed: (WorkflowId, turnaround_workflows::store::Fence),
    mortal: Mortal,
}

impl DirectLease {
    /// Like a worker's: an outage of the store is waited out.
    fn wait_out(&self) {
        if let Some((from, until)) = self.outage
            && self.clock.now() >= from
        {
            self.clock.advance_to(until);
        }
    }
}

#[async_trait]
impl Committer for DirectLease {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn commit(&self, commit: Commit) -> Result<Committed, LeaseLost> {
        self.wait_out();
        let advance = Advance { lease: LEASE, commits: vec![commit], ..Advance::default() };
        let call = async { self.store.advance(&advance).await.expect("the memory store always answers") };
        let advanced = self.mortal.call("commit", call).await;
        Ok(advanced.commits.into_iter().next().expect("one commit, one answer"))
    }

    async fn guard(&self) -> Result<(), LeaseLost> {
        self.wait_out();
        let advance = Advance { lease: LEASE, renew: vec![self.claimed.clone()], ..Advance::default() };
        let call = async { self.store.advance(&advance).await.expect("the memory store always answers") };
        let advanced = self.mortal.call("guard", call).await;
        if advanced.renewed[0].is_some() { Ok(()) } else { Err(LeaseLost) }
    }

    async fn lost(&self) {
        self.mortal.token.cancelled().await;
    }
}

/// Every port of a site, for a worker that may die before and after each call.
struct MortalPorts {
    inner: Ports,
    mortal: Mortal,
    clock: Arc<HandClock>,
    takes: Duration,
}

impl MortalPorts {
    /// What others do meanwhile happens before the call's own effect.
    fn inner(&self) -> &Ports {
        self.clock.advance(self.takes);
        &self.inner
    }
}

#[async_trait]
impl ComputeServices for MortalPorts {
    async fn service(&self, node: &NodeName) -> Result<ComputeService, PortError> {
        self.inner().compute.service(node).await
    }
    async fn hypervisor(&self, node: &NodeName) -> Result<Hypervisor, PortError> {
        self.inner().compute.hypervisor(node).await
    }
    async fn inventory(&self, node: &NodeName) -> Result<BTreeMap<String, u64>, PortError> {
        self.inner().compute.inventory(node).await
    }
    async fn agents(&self, node: &NodeName) -> Result<BTreeMap<String, bool>, PortError> {
        self.inner().compute.agents(node).await
    }
    async fn zones(&self) -> Result<BTreeMap<String, BTreeSet<String>>, PortError> {
        self.inner().compute.zones().await
    }
    async fn hosts(&self) -> Result<Vec<Host>, PortError> {
        self.inner().compute.hosts().await
    }
    async fn fitting(&self, asks: &BTreeMap<String, String>) -> Result<BTreeMap<String, BTreeMap<String, u64>>, PortError> {
        self.inner().compute.fitting(asks).await
    }
    async fn close(&self, node: &NodeName, reason: &str) -> Result<(), PortError> {
        self.mortal.call("close", self.inner().compute.close(node, reason)).await
    }
    async fn reopen(&self, node: &NodeName) -> Result<(), PortError> {
        self.mortal.call("reopen", self.inner().compute.reopen(node)).await
    }
}

#[async_trait]
impl Instances for MortalPorts {
    async fn on(&self, node: &NodeName) -> Result<Vec<Instance>, PortError> {
        self.inner().instances.on(node).await
    }
    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, PortError> {
        self.inner().instances.get(id).await
    }
    async fn device_ports(&self, node: &NodeName) -> Result<BTreeMap<InstanceId, Vec<String>>, PortError> {
        self.inner().instances.device_ports(node).await
    }
    async fn allocations(&self, id: &InstanceId) -> Result<BTreeMap<String, u64>, PortError> {
        self.inner().instances.allocations(id).await
    }
    async fn groups(&self) -> Result<Vec<ServerGroup>, PortError> {
        self.inner().instances.groups().await
    }
    async fn progress(&self, id: &InstanceId) -> Result<Option<MoveProgress>, PortError> {
        self.inner().instances.progress(id).await
    }
    async fn start_move(&self, id: &InstanceId, how: Move, to: Option<&str>) -> Result<MoveStarted, PortError> {
        self.mortal.call("start_move", self.inner().instances.start_move(id, how, to)).await
    }
    async fn stop_live(&self, id: &InstanceId, migration: &str) -> Result<(), PortError> {
        self.mortal.call("stop_live", self.inner().instances.stop_live(id, migration)).await
    }
    async fn confirm(&self, id: &InstanceId) -> Result<(), PortError> {
        self.mortal.call("confirm", self.inner().instances.confirm(id)).await
    }
    async fn migrations(&self, id: &InstanceId) -> Result<Vec<Migration>, PortError> {
        self.inner().instances.migrations(id).await
    }
    async fn moving(&self, node: &NodeName) -> Result<Vec<Migration>, PortError> {
        self.inner().instances.moving(node).await
    }
    async fn why_failed(&self, id: &InstanceId, request: &RequestId) -> Result<Option<String>, PortError> {
        self.inner().instances.why_failed(id, request).await
    }
}

#[async_trait]
impl Canaries for MortalPorts {
    async fn find(&self, name: &str) -> Result<Vec<CanaryInstance>, PortError> {
        self.inner().canaries.find(name).await
    }
    async fn create(&self, name: &str, canary: &NewCanary) -> Result<(), PortError> {
        self.mortal.call("create_canary", self.inner().canaries.create(name, canary)).await
    }
    async fn put_on(&self, id: &InstanceId, node: &NodeName) -> Result<RequestId, PortError> {
        self.mortal.call("put_canary", self.inner().canaries.put_on(id, node)).await
    }
    async fn stop(&self, id: &InstanceId) -> Result<(), PortError> {
        self.mortal.call("stop_canary", self.inner().canaries.stop(id)).await
    }
    async fn start(&self, id: &InstanceId) -> Result<RequestId, PortError> {
        self.mortal.call("start_canary", self.inner().canaries.start(id)).await
    }
    async fn console(&self, id: &InstanceId) -> Result<String, PortError> {
        self.inner().canaries.console(id).await
    }
    async fn remove(&self, id: &InstanceId) -> Result<(), PortError> {
        self.mortal.call("remove_canary", self.inner().canaries.remove(id)).await
    }
}

#[async_trait]
impl Bmc for MortalPorts {
    async fn power(&self, node: &NodeName) -> Result<Power, PortError> {
        self.inner().bmc.power(node).await
    }
    async fn machine(&self, node: &NodeName) -> Result<Machine, PortError> {
        self.inner().bmc.machine(node).await
    }
    async fn boot_override(&self, node: &NodeName) -> Result<BootOverride, PortError> {
        self.inner().bmc.boot_override(node).await
    }
    async fn netboot_next(&self, node: &NodeName) -> Result<(), PortError> {
        self.mortal.call("netboot_next", self.inner().bmc.netboot_next(node)).await
    }
    async fn reset(&self, node: &NodeName) -> Result<(), PortError> {
        self.mortal.call("reset", self.inner().bmc.reset(node)).await
    }
}

#[async_trait]
impl NetBoot for MortalPorts {
    async fn stage(&self, node: &NodeName, ticket: &BootTicket) -> Result<(), PortError> {
        self.mortal.call("stage", self.inner().netboot.stage(node, ticket)).await
    }
    async fn would_take(&self, node: &NodeName) -> Result<(), PortError> {
        self.inner().netboot.would_take(node).await
    }
    async fn staged(&self, node: &NodeName) -> Result<Option<BootTicket>, PortError> {
        self.inner().netboot.staged(node).await
    }
    async fn withdraw(&self, node: &NodeName) -> Result<(), PortError> {
        self.mortal.call("withdraw", self.inner().netboot.withdraw(node)).await
    }
}

#[async_trait]
impl Rebuilder for MortalPorts {
    async fn record(&self, node: &NodeName) -> Result<RebuildRecord, PortError> {
        self.inner().rebuilder.record(node).await
    }
    async fn order(&self, node: &NodeName, order: &RebuildOrder) -> Result<(), PortError> {
        self.mortal.call("order_rebuild", self.inner().rebuilder.order(node, order)).await
    }
    async fn rebuild(&self, node: &NodeName, order: &RebuildOrder) -> Result<(), PortError> {
        self.mortal.call("rebuild", self.inner().rebuilder.rebuild(node, order)).await
    }
    async fn protect(&self, node: &NodeName, id: &str) -> Result<(), PortError> {
        self.mortal.call("protect", self.inner().rebuilder.protect(node, id)).await
    }
}

#[async_trait]
impl NodeFacts for MortalPorts {
    async fn facts(&self, node: &NodeName) -> Result<Facts, PortError> {
        self.inner().facts.facts(node).await
    }
    async fn guests(&self, node: &NodeName) -> Result<BTreeSet<String>, PortError> {
        self.inner().facts.guests(node).await
    }
    async fn machine(&self, node: &NodeName) -> Result<Machine, PortError> {
        self.inner().facts.machine(node).await
    }
    async fn stock(&self, node: &NodeName) -> Result<NodeStock, PortError> {
        self.inner().facts.stock(node).await
    }
    async fn run(&self, node: &NodeName, command: &str, time_limit: Duration) -> Result<CommandEnd, PortError> {
        self.inner().facts.run(node, command, time_limit).await
    }
}

#[async_trait]
impl Silences for MortalPorts {
    async fn in_force(&self, mark: &str) -> Result<Vec<Silence>, PortError> {
        self.inner().silences.in_force(mark).await
    }
    async fn begin(&self, silence: &NewSilence) -> Result<(), PortError> {
        self.mortal.call("begin_silence", self.inner().silences.begin(silence)).await
    }
    async fn end(&self, id: &str) -> Result<(), PortError> {
        self.mortal.call("end_silence", self.inner().silences.end(id)).await
    }
    async fn firing(&self, matchers: &[Matcher]) -> Result<BTreeSet<String>, PortError> {
        self.inner().silences.firing(matchers).await
    }
}

#[async_trait]
impl ClusterNodes for MortalPorts {
    async fn nodes(&self) -> Result<Vec<ClusterNode>, PortError> {
        self.inner().cluster.nodes().await
    }
    async fn cordon(&self, node: &ClusterNode, cordon: &Cordon) -> Result<(), PortError> {
        self.mortal.call("cordon", self.inner().cluster.cordon(node, cordon)).await
    }
    async fn uncordon(&self, node: &ClusterNode) -> Result<(), PortError> {
        self.mortal.call("uncordon", self.inner().cluster.uncordon(node)).await
    }
    async fn pods(&self, node: &str) -> Result<Vec<Pod>, PortError> {
        self.inner().cluster.pods(node).await
    }
    async fn evict(&self, pod: &Pod) -> Result<Eviction, PortError> {
        self.mortal.call("evict", self.inner().cluster.evict(pod)).await
    }
}

#[async_trait]
impl SetupScript for MortalPorts {
    fn place(&self) -> String {
        self.inner.setup.place()
    }
    async fn start(&self, run: &ScriptRun) -> Result<(), PortError> {
        self.mortal.call("start_script", self.inner().setup.start(run)).await
    }
    async fn look(&self, name: &str) -> Result<ScriptState, PortError> {
        self.inner().setup.look(name).await
    }
}

fn mortal_ports(inner: &Ports, mortal: &Mortal, clock: &Arc<HandClock>, takes: Duration) -> Ports {
    let all = Arc::new(MortalPorts { inner: inner.clone(), mortal: mortal.clone(), clock: clock.clone(), takes });
    Ports { compute: all.clone(), instances: all.clone(), bmc: all.clone(), netboot: all.clone(), rebuilder: all.clone(), facts: all.clone(), setup: all.clone(), silences: all.clone(), cluster: all.clone(), canaries: all }
}

/// A site, a store, and workers that come one after the other.
pub struct Sim {
    pub clock: Arc<HandClock>,
    pub store: Arc<dyn Store>,
    pub world: Arc<World>,
    /// Deaths of the coming workers; the next one is first. Without one a worker lives for ever.
    pub deaths: VecDeque<Death>,
    pub registry: Registry,
    /// What the coming workers serve; None: all queues.
    pub queues: Option<Vec<Queue>>,
    /// How long each call to the site takes.
    pub call_takes: Duration,
    /// From when until when the store does not answer a worker that holds a lease.
    pub store_outage: Option<(Timestamp, Timestamp)>,
    signals: u32,
    /// What the daemon does with what installers say. None: nobody listens at this site.
    reports: Option<ReportDesk>,
}

impl Sim {
    pub fn new(plan: SitePlan, seed: u64) -> Sim {
        let clock = Arc::new(HandClock::at(MORNING));
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
        let reports = plan.installers_report.then(|| ReportDesk::new(store.clone(), updates::registry()));
        let world = World::new(clock.clone(), plan, seed);
        Sim {
            clock,
            store,
            world,
            deaths: VecDeque::new(),
            registry: updates::registry(),
            queues: None,
            call_takes: Duration::ZERO,
            store_outage: None,
            signals: 0,
            reports,
        }
    }

    /// Orders a rollout; its id.
    pub async fn order(&self, order: &RolloutOrder) -> WorkflowId {
        let new = updates::rollout(order, "tester").expect("an order can be written");
        let id = new.id.clone();
        self.store.create(start(new, self.clock.now()).expect("an order can be written")).await.expect("the memory store always answers");
        id
    }

    pub async fn signal(&mut self, id: &WorkflowId, kind: SignalKind) {
        self.signals += 1;
        let signal = Signal { id: format!("signal-{}", self.signals), at: self.clock.now(), by: "tester".to_owned(), kind };
        self.store.signal(id, signal.stored().unwrap()).await.unwrap();
    }

    pub async fn document(&self, id: &WorkflowId) -> Document {
        self.store.load(id).await.unwrap().expect("the workflow is there")
    }

    pub async fn state(&self, id: &WorkflowId) -> State {
        State::load(&*self.store, &self.document(id).await).await.expect("the memory store always answers").expect("the journal folds")
    }

    /// The workflow of one node of a rollout.
    pub async fn child(&self, rollout: &WorkflowId, node: &str) -> WorkflowId {
        rollout.child(node).unwrap()
    }

    pub async fn open(&self) -> Vec<Document> {
        self.store.list(&Query { scope: Scope::Open, limit: 500, ..Query::default() }).await.unwrap()
    }

    /// Runs until `done`, or until nothing happens any more by itself.
    pub async fn run_until(&mut self, mut done: impl AsyncFnMut(&Sim) -> bool) {
        for _ in 0..TURNS_MAX {
            if done(self).await || !self.turn().await {
                return;
            }
        }
        panic!("the simulation does not come to rest: {:#?}", self.open().await);
    }

    /// Runs until every workflow has ended or waits for an operator.
    pub async fn run(&mut self) {
        self.run_until(async |_| false).await;
    }

    /// Takes what installers have said, as the daemon does.
    pub async fn hear(&self) {
        let Some(reports) = &self.reports else { return };
        for InstallerSaid { token, word, reason } in self.world.said_by_installers() {
            reports.take(&token, word, &reason).await.expect("the memory store always answers");
        }
    }

    fn served(&self) -> Vec<Queue> {
        self.queues.clone().unwrap_or_else(|| self.registry.queues())
    }

    /// Brings on what is due, or else moves the clock to what comes next. False if nothing will ever happen.
    async fn turn(&mut self) -> bool {
        self.hear().await;
        let claim = Claim { max: 1, lease: LEASE, worker: "simulated".to_owned(), queues: self.served() };
        let advanced = self.store.advance(&Advance { lease: LEASE, claim: Some(claim), ..Advance::default() }).await.unwrap();
        if let Some(claimed) = advanced.claimed.into_iter().next() {
            self.activate(claimed).await;
            return true;
        }
        let open = self.open().await;
        // (They ask, are paused, or wait for children that do.)
        let asleep = open.iter().all(|document| document.due.is_none() && document.lease.is_none());
        if asleep {
            return false;
        }
        let next = [advanced.next, self.world.next_event()].into_iter().flatten().min();
        match next {
            Some(next) => {
                self.clock.advance_to(next.max(self.clock.now() + Duration::from_millis(1)));
                true
            }
            None => false,
        }
    }

    async fn activate(&mut self, claimed: Claimed) -> Activation {
        let death = self.deaths.front().cloned().unwrap_or_else(Death::never);
        let mortal = Mortal { death: death.clone(), token: CancellationToken::new() };
        let engine = Engine {
            registry: self.registry.clone(),
            ports: mortal_ports(&self.world.ports(), &mortal, &self.clock, self.call_takes),
            queues: self.served(),
            keep_finished: Duration::from_secs(86_400),
        };
        let lease = DirectLease {
            store: self.store.clone(),
            clock: self.clock.clone(),
            outage: self.store_outage,
            claimed: (claimed.document.id.clone(), claimed.fence),
            mortal,
        };
        let end = engine.activate(claimed, &lease).await;
        if death.has_come() {
            self.deaths.pop_front();
        }
        end
    }
}

/// The order that the simulated rollouts use: every node to the plan's newest image, at most `max_out` at once, polls of a
/// few seconds.
pub fn order(plan: &SitePlan, max_out: u32) -> RolloutOrder {
    let image = plan.images.last().expect("the plan has an image");
    RolloutOrder {
        nodes: plan.nodes.iter().map(|node| node.name.parse().expect("a node name")).collect(),
        alone: Vec::new(),
        by_ironic: plan.nodes.iter().filter(|node| node.ironic.is_some()).map(|node| node.name.parse().expect("a node name")).collect(),
        hosts: std::collections::BTreeMap::new(),
        image: OrderedImage {
            name: image.name.parse().expect("an image name"),
            version: image.os_version_id.clone(),
            sha256: image.sha256.clone(),
            os_version_id: image.os_version_id.clone(),
            kernel: image.kernel.clone(),
            ironic: plan.nodes.iter().any(|node| node.ironic.is_some()).then(|| OrderedIronicImage {
                source: format!("http://192.0.2.1/images/{}.raw", image.name),
                sha256: image.sha256.clone(),
            }),
        },
        rules: Rules {
            max_out,
            moves_at_once: 2,
            pinned: Pinned::Ask,
            moves: Vec::new(),
            owner_wait_ms: 0,
            settle_ms: 30_000,
            evacuate_deadline_ms: 4 * 3_600_000,
            install_deadline_ms: 3_600_000,
            installer: plan.installers_report.then(|| OrderedReports { url: "http://192.0.2.1:8470".to_owned(), deadline_ms: 20 * 60_000 }),
            rejoin_deadline_ms: 3_600_000,
            rejoin_settle_ms: 120_000,
            compare: Compared::ALL.into(),
            move_poll_ms: 5_000,
            node_poll_ms: 10_000,
            silence: Some(OrderedSilence {
                matchers: vec![Matcher { name: "instance".to_owned(), value: "{node}(:[0-9]+)?".to_owned(), is_regex: true, is_equal: true }],
                lasts_ms: 4 * 3_600_000,
                gate: true,
            }),
            cluster: plan.cluster.as_ref().map(|_| OrderedCluster { drain_deadline_ms: 900_000, min_ready_ms: 60_000 }),
            checks: vec![OrderedCheck {
                name: "gpus".to_owned(),
                command: COUNT_GPUS.to_owned(),
                expect: Expected::AsFound,
                time_limit_ms: 30_000,
                nodes: Vec::new(),
            }],
            canary: Some(OrderedCanary {
                image: "cirros".to_owned(),
                flavor: "tiny".to_owned(),
                network: None,
                console: Some("login:".to_owned()),
                deadline_ms: 15 * 60_000,
            }),
            fetch: plan.setup.as_ref().map(|_| Deploy {
                arguments: ["--bootstrap", "--tags", "pxesetup"].map(str::to_owned).to_vec(),
                deadline_ms: 2 * 3_600_000,
            }),
            deploy: plan.setup.as_ref().map(|_| Deploy {
                arguments: ["--tags", "openstack", "--limit", "{node}"].map(str::to_owned).to_vec(),
                deadline_ms: 2 * 3_600_000,
            }),
        },
    }
}
