//! One trace for each activation, linked across parks, crashes, workers, and from parent to child.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tracing::instrument::WithSubscriber as _;
use tracing::{Dispatch, info_span, warn};
use turnaround_config::OtlpProtocol;
use turnaround_tests::otlp::{Place, Received, Receiver, Span};
use turnaround_workflows::clock::{Clock as _, HandClock, Timestamp};
use turnaround_workflows::engine::{
    Activation, ChildSpec, Committer, Definition, Engine, LeaseLost, Observed, Policy, Progress, Registry, Start, Step, StepCx, StepError, Undone,
    start, step,
};
use turnaround_workflows::rehearsal::{SitePlan, World};
use turnaround_workflows::store::memory::MemoryStore;
use turnaround_workflows::store::{Advance, Claim, Claimed, Commit, Committed, Document, Fence, Queue, Resource, Store, WorkflowId};
use turnaround_workflows::telemetry::{self, Telemetry};

const LEASE: Duration = Duration::from_secs(10);
const PARK: Duration = Duration::from_secs(60);
/// Traces that are more than a second's.
const FLOOD: usize = 1_000;

/// Parks once, then is done.
struct Prepare;

#[async_trait]
impl Step for Prepare {
    const NAME: &'static str = "prepare";
    type Output = ();

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<()>, StepError> {
        let parked: Option<bool> = cx.checkpoint()?;
        Ok(if parked.is_some() { Observed::AlreadyDone(()) } else { Observed::ToDo { would: "park".to_owned() } })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<()>, StepError> {
        cx.save(&true, "prepared").await?;
        Ok(Progress::LookAgain { after: PARK, note: "waits".to_owned() })
    }
}

struct Finish;

#[async_trait]
impl Step for Finish {
    const NAME: &'static str = "finish";
    type Output = ();

    async fn observe(&self, _: &StepCx<'_>) -> Result<Observed<()>, StepError> {
        Ok(Observed::ToDo { would: "finish".to_owned() })
    }

    async fn act(&self, _: &StepCx<'_>) -> Result<Progress<()>, StepError> {
        warn!("it is finished");
        Ok(Progress::Done(()))
    }
}

struct Delegate;

#[async_trait]
impl Step for Delegate {
    const NAME: &'static str = "delegate";
    type Output = ();

    async fn observe(&self, _: &StepCx<'_>) -> Result<Observed<()>, StepError> {
        Ok(Observed::ToDo { would: "start a child".to_owned() })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<()>, StepError> {
        let note = "one child".to_owned();
        if !cx.children().is_empty() {
            return Ok(Progress::AwaitChildren { note });
        }
        let child = ChildSpec { key: "one".to_owned(), kind: "renewal".to_owned(), target: "gpu-01".to_owned(), input: serde_json::Value::Null };
        Ok(Progress::StartChildren { children: vec![child], note })
    }
}

/// Is not undone by its deadline.
struct Open;

#[async_trait]
impl Step for Open {
    const NAME: &'static str = "open";
    type Output = ();

    fn policy(&self, _: &StepCx<'_>) -> Policy {
        Policy { deadline: PARK, ..Policy::default() }
    }

    async fn observe(&self, _: &StepCx<'_>) -> Result<Observed<()>, StepError> {
        Ok(Observed::ToDo { would: "open".to_owned() })
    }

    async fn act(&self, _: &StepCx<'_>) -> Result<Progress<()>, StepError> {
        Ok(Progress::Done(()))
    }

    async fn undo(&self, _: &StepCx<'_>) -> Result<Undone, StepError> {
        Ok(Undone::LookAgain { after: PARK, note: "closes".to_owned() })
    }
}

/// Does what it should, and can't say what it gives.
struct Return;

#[async_trait]
impl Step for Return {
    const NAME: &'static str = "return";
    type Output = ();

    fn gives(&self, _: &StepCx<'_>) -> Result<Vec<Resource>, StepError> {
        Err(StepError::fatal("nobody knows"))
    }

    async fn observe(&self, _: &StepCx<'_>) -> Result<Observed<()>, StepError> {
        Ok(Observed::AlreadyDone(()))
    }

    async fn act(&self, _: &StepCx<'_>) -> Result<Progress<()>, StepError> {
        Ok(Progress::Done(()))
    }
}

fn registry() -> Registry {
    Registry::new([
        Definition { kind: "renewal", version: 1, steps: vec![step(Prepare), step(Finish)] },
        Definition { kind: "order", version: 1, steps: vec![step(Delegate)] },
        Definition { kind: "visit", version: 1, steps: vec![step(Open), step(Return)] },
    ])
}

/// A process with telemetry of its own.
struct Process {
    dispatch: Dispatch,
    telemetry: Telemetry,
}

/// A worker's way to the store, until it dies.
struct Line<'a> {
    lab: &'a Lab,
    held: (WorkflowId, Fence),
    /// It dies instead of sending this commit, counted from 1.
    dies_at: u32,
    commits: AtomicU32,
    died: Notify,
}

#[async_trait]
impl Committer for Line<'_> {
    fn now(&self) -> Timestamp {
        self.lab.clock.now()
    }

    async fn commit(&self, commit: Commit) -> Result<Committed, LeaseLost> {
        if self.commits.fetch_add(1, Ordering::SeqCst) + 1 == self.dies_at {
            self.died.notify_one();
            std::future::pending::<()>().await;
        }
        *self.lab.newest.lock().unwrap() = telemetry::current_traceparent();
        let advance = Advance { lease: LEASE, commits: vec![commit], ..Advance::default() };
        Ok(self.lab.store.advance(&advance).await.unwrap().commits.remove(0))
    }

    async fn guard(&self) -> Result<(), LeaseLost> {
        let advance = Advance { lease: LEASE, renew: vec![self.held.clone()], ..Advance::default() };
        self.lab.store.advance(&advance).await.unwrap().renewed[0].map(|_| ()).ok_or(LeaseLost)
    }

    async fn lost(&self) {
        std::future::pending().await
    }
}

struct Lab {
    receiver: Receiver,
    clock: Arc<HandClock>,
    store: MemoryStore,
    engine: Engine,
    /// Where the newest commit was made.
    newest: Mutex<Option<String>>,
}

impl Lab {
    async fn new() -> Lab {
        let clock = Arc::new(HandClock::at(Timestamp::from_millis(1_800_000_000_000)));
        let world = World::new(clock.clone(), SitePlan::uniform(1, 0), 1);
        Lab {
            receiver: Receiver::start().await.unwrap(),
            store: MemoryStore::new(clock.clone()),
            engine: Engine { registry: registry(), ports: world.ports(), queues: vec![Queue::DEFAULT], keep_finished: Duration::from_secs(3_600) },
            clock,
            newest: Mutex::default(),
        }
    }

    fn process(&self, service: &'static str) -> Process {
        let endpoint = Some(self.receiver.endpoint().to_owned());
        let config = turnaround_config::Telemetry { endpoint, protocol: OtlpProtocol::Grpc, log: "warn".to_owned() };
        let (dispatch, telemetry) = telemetry::prepare(service, &config).unwrap();
        Process { dispatch, telemetry }
    }

    /// As the daemon does it: a workflow is created while a request is answered.
    async fn create(&self, daemon: &Process, id: &str, kind: &str) -> WorkflowId {
        let id: WorkflowId = id.parse().unwrap();
        let new = Start {
            id: id.clone(),
            kind: kind.to_owned(),
            version: 1,
            target: "gpu-01".to_owned(),
            input: serde_json::Value::Null,
            parent: None,
            key: None,
            by: "ada".to_owned(),
            traceparent: tracing::dispatcher::with_default(&daemon.dispatch, || {
                info_span!("POST /v1/workflows").in_scope(telemetry::current_traceparent)
            }),
        };
        self.store.create(start(new, self.clock.now()).unwrap()).await.unwrap();
        id
    }

    async fn claim(&self) -> Claimed {
        let claim = Claim { max: 1, lease: LEASE, worker: "worker".to_owned(), queues: vec![Queue::DEFAULT] };
        let mut advanced = self.store.advance(&Advance { lease: LEASE, claim: Some(claim), ..Advance::default() }).await.unwrap();
        assert_eq!(advanced.claimed.len(), 1, "something is due");
        advanced.claimed.remove(0)
    }

    /// `worker` brings on what is due. None: it died instead of its commit number `dies_at` (0: it lives).
    async fn activate(&self, worker: &Process, dies_at: u32) -> Option<Activation> {
        let claimed = self.claim().await;
        let held = (claimed.document.id.clone(), claimed.fence);
        let line = Line { lab: self, held, dies_at, commits: AtomicU32::new(0), died: Notify::new() };
        let until_death = async {
            tokio::select! {
                end = self.engine.activate(claimed, &line) => Some(end),
                () = line.died.notified() => None,
            }
        };
        // Around the whole: a span that is dropped where its subscriber is not at hand is never closed.
        until_death.with_subscriber(worker.dispatch.clone()).await
    }

    async fn document(&self, id: &WorkflowId) -> Document {
        self.store.load(id).await.unwrap().unwrap()
    }

    async fn received<const N: usize>(&self, processes: [Process; N]) -> Received {
        for process in processes {
            process.telemetry.shutdown().await;
        }
        self.receiver.received()
    }
}

fn names(spans: &[&Span]) -> Vec<String> {
    spans.iter().map(|span| format!("{} {}", span.name, span.attributes.get("outcome").map_or("", String::as_str))).collect()
}

#[tokio::test]
async fn a_workflow_that_parks_and_goes_on_elsewhere_is_two_linked_traces() {
    let lab = Lab::new().await;
    let (daemon, one, two) = (lab.process("daemon"), lab.process("worker-1"), lab.process("worker-2"));
    let id = lab.create(&daemon, "renew-1", "renewal").await;
    assert_eq!(lab.activate(&one, 0).await, Some(Activation::Parked));
    let between = lab.document(&id).await.traceparent.unwrap();
    lab.clock.advance(PARK);
    assert_eq!(lab.activate(&two, 0).await, Some(Activation::Ended));

    let received = lab.received([daemon, one, two]).await;
    let roots = received.roots();
    let [request, first, second] = roots[..] else { panic!("three traces: {received}") };
    assert_eq!((first.name.as_str(), second.name.as_str()), ("renewal gpu-01", "renewal gpu-01"));
    assert_eq!(first.links.iter().collect::<Vec<_>>(), [&request.place], "the first activation is linked to the request that created it");
    assert_eq!(second.links.iter().collect::<Vec<_>>(), [&first.place], "the second activation is linked to the first");
    assert_eq!(Place::of(&between).as_ref(), Some(&first.place), "what is kept is the activation's own context");
    assert!(between.starts_with("00-") && between.ends_with("-01"), "{between}");
    assert_eq!((first.resource["service.name"].as_str(), second.resource["service.name"].as_str()), ("worker-1", "worker-2"));
    assert_eq!(first.attributes["workflow"], "renew-1");
    assert_eq!(first.attributes["trace"], first.place.trace, "log lines show the trace's id");
    assert_eq!(names(&received.inside(first)), ["prepare waits"]);
    assert_eq!(names(&received.inside(second)), ["prepare done", "finish done"]);
}

#[tokio::test]
async fn a_call_counts_as_what_came_of_it_in_the_end() {
    let lab = Lab::new().await;
    let (daemon, worker) = (lab.process("daemon"), lab.process("worker"));
    lab.create(&daemon, "visit-1", "visit").await;
    assert_eq!(lab.activate(&worker, 0).await, Some(Activation::Parked), "it is being undone");
    lab.clock.advance(PARK);
    assert_eq!(lab.activate(&worker, 0).await, Some(Activation::Parked), "an operator is asked");

    let received = lab.received([daemon, worker]).await;
    let roots = received.roots();
    let [_, first, second] = roots[..] else { panic!("three traces: {received}") };
    assert_eq!(names(&received.inside(first)), ["open done", "return fatal", "undo return done", "undo open waits"]);
    assert_eq!(names(&received.inside(second)), ["undo open retry"]);
}

/// A line that a step writes belongs to the step's span; and to the activation's where there are so many traces that nothing is told of this one. Who
/// comes after that one is linked to whoever was told of last.
#[tokio::test]
async fn in_a_flood_of_traces_steps_have_no_spans_their_lines_name_the_activation_and_no_link_leads_to_it() {
    let lab = Lab::new().await;
    let (daemon, worker) = (lab.process("daemon"), lab.process("worker"));
    let finish = async |id: &str| {
        let id = lab.create(&daemon, id, "renewal").await;
        assert_eq!(lab.activate(&worker, 0).await, Some(Activation::Parked));
        lab.clock.advance(PARK);
        assert_eq!(lab.activate(&worker, 0).await, Some(Activation::Ended));
        // What the next one would be linked to, and where the last one was.
        (lab.document(&id).await.traceparent.unwrap(), lab.newest.lock().unwrap().take().unwrap())
    };
    let (kept, told) = finish("told").await;
    assert_eq!(kept, told);
    let mut tries = 0;
    let (kept, left_out) = loop {
        tries += 1;
        assert!(tries < 20, "a second has passed each time, and with it the flood");
        tracing::dispatcher::with_default(&worker.dispatch, || (0..FLOOD).for_each(|_| drop(info_span!(parent: None, "another"))));
        let (kept, last) = finish(&format!("left-out-{tries}")).await;
        if last.ends_with("-00") {
            break (Place::of(&kept).unwrap(), Place::of(&last).unwrap());
        }
    };
    let received = lab.received([daemon, worker]).await;
    let lines: Vec<_> = received.logs.iter().filter(|line| line.body == "it is finished").filter_map(|line| line.place.clone()).collect();
    assert!(received.spans.iter().any(|span| span.place == kept), "what is kept was told of: {kept:?}");
    let told = Place::of(&told).unwrap();
    let step = received.inside(received.spans.iter().find(|span| span.place == told).unwrap()).into_iter().find(|span| span.name == "finish").unwrap();
    assert!(lines.contains(&step.place), "{lines:?}");
    assert_eq!(lines.iter().filter(|place| place.trace == left_out.trace).collect::<Vec<_>>(), [&left_out], "{lines:?}");
}

#[tokio::test]
async fn who_goes_on_after_a_crash_is_linked_to_what_was_committed_last() {
    for (dies_at, linked_to) in [(1, "POST /v1/workflows"), (2, "renewal gpu-01")] {
        let lab = Lab::new().await;
        let (daemon, one, two) = (lab.process("daemon"), lab.process("worker-1"), lab.process("worker-2"));
        lab.create(&daemon, "renew-1", "renewal").await;
        assert_eq!(lab.activate(&one, dies_at).await, None, "it dies");
        lab.clock.advance(LEASE);
        assert_eq!(lab.activate(&two, 0).await, Some(Activation::Parked));

        let received = lab.received([daemon, one, two]).await;
        let roots = received.roots();
        let [request, crashed, next] = roots[..] else { panic!("three traces: {received}") };
        let last_committed = if dies_at == 1 { request } else { crashed };
        assert_eq!(last_committed.name, linked_to);
        assert_eq!(next.links.iter().collect::<Vec<_>>(), [&last_committed.place], "died instead of commit {dies_at}: {received}");
    }
}

#[tokio::test]
async fn a_child_is_linked_to_the_activation_that_started_it() {
    let lab = Lab::new().await;
    let (daemon, one, two) = (lab.process("daemon"), lab.process("worker-1"), lab.process("worker-2"));
    lab.create(&daemon, "order-1", "order").await;
    assert_eq!(lab.activate(&one, 0).await, Some(Activation::Parked), "the parent waits for its child");
    assert_eq!(lab.activate(&two, 0).await, Some(Activation::Parked), "the child parks");

    let received = lab.received([daemon, one, two]).await;
    let (parent, child) = (received.span("order gpu-01"), received.span("renewal gpu-01"));
    assert_eq!(child.links.iter().collect::<Vec<_>>(), [&parent.place]);
    assert_ne!(child.place.trace, parent.place.trace);
}

#[tokio::test]
async fn without_a_collector_the_context_is_kept_all_the_same() {
    let lab = Lab::new().await;
    let config = turnaround_config::Telemetry { endpoint: None, protocol: OtlpProtocol::Grpc, log: "error".to_owned() };
    let (dispatch, telemetry) = telemetry::prepare("worker", &config).unwrap();
    let worker = Process { dispatch, telemetry };
    let id = lab.create(&worker, "renew-1", "renewal").await;
    let created = lab.document(&id).await.traceparent.unwrap();
    assert_eq!(lab.activate(&worker, 0).await, Some(Activation::Parked));
    let worked = lab.document(&id).await.traceparent.unwrap();
    assert!(created.ends_with("-00") && worked.ends_with("-00"), "valid, and not sampled: {created} {worked}");
    assert_ne!(Place::of(&created).unwrap().trace, Place::of(&worked).unwrap().trace);
}
