//! A worker's lease: whether it stands is the store's to say, just now, and nobody's clock.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use turnaround_worker::{Pump, PumpOptions, WorkerError};
use turnaround_workflows::clock::{Clock as _, HandClock, SystemClock};
use turnaround_workflows::engine::{Committer as _, Engine, start};
use turnaround_workflows::rehearsal::{SitePlan, World};
use turnaround_workflows::store::embedded::EmbeddedRedis;
use turnaround_workflows::store::memory::MemoryStore;
use turnaround_workflows::store::redis::{RedisAddress, RedisOptions, RedisStore};
use turnaround_workflows::store::{Advance, Claim, Queue, Store, StoreError};
use turnaround_workflows::updates::{self, SurveyOrder};

/// Far longer than this test: nothing of it happens because time has passed.
const LEASE: Duration = Duration::from_secs(3_600);
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_is_refused_once_somebody_else_has_the_lease() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::new(SystemClock)));
    let new = updates::survey(&SurveyOrder { nodes: Vec::new() }, "tester").unwrap();
    store.create(start(new, SystemClock.now()).unwrap()).await.unwrap();
    let queues = vec![Queue::DEFAULT];
    let theirs = Arc::clone(&store);
    let options = PumpOptions { slots: 1, lease: LEASE, worker: "first".to_owned(), queues: queues.clone() };
    let mut pump = Pump::start(Box::new(move || Box::pin(async move { Ok(theirs) })), options).unwrap();
    let leased = pump.leased.recv().await.unwrap();
    leased.lease.guard().await.expect("nobody else has it yet");
    // As after a pause of its worker that was longer than the lease: handed back, and claimed by the next one.
    let hand_back = vec![(leased.claimed.document.id.clone(), leased.claimed.fence)];
    let claim = Some(Claim { max: 1, lease: LEASE, worker: "second".to_owned(), queues });
    let advanced = store.advance(&Advance { lease: LEASE, hand_back, claim, ..Advance::default() }).await.unwrap();
    assert_eq!(advanced.claimed.len(), 1, "the second one has it");
    assert!(leased.lease.guard().await.is_err(), "by the clock the first lease would stand for an hour");
    drop(leased);
    let (_, handle) = pump.split();
    handle.stop();
    tokio::task::spawn_blocking(move || handle.join()).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_store_is_of_no_use_any_more_steps_are_told_and_the_worker_does_not_look_alive() {
    let folder = tempfile::tempdir().unwrap();
    let server = EmbeddedRedis::start(folder.path(), "redis-server".as_ref()).await.unwrap();
    let options = RedisOptions { accept_weaker_durability: true, ..RedisOptions::new(RedisAddress::Socket(server.socket().to_owned())) };
    let store = Arc::new(RedisStore::connect(options).await.unwrap());
    let new = updates::survey(&SurveyOrder { nodes: Vec::new() }, "tester").unwrap();
    store.create(start(new, SystemClock.now()).unwrap()).await.unwrap();
    let theirs = Arc::clone(&store) as Arc<dyn Store>;
    let options = PumpOptions { slots: 1, lease: LEASE, worker: "first".to_owned(), queues: vec![Queue::DEFAULT] };
    let mut pump = Pump::start(Box::new(move || Box::pin(async move { Ok(theirs) })), options).unwrap();
    let leased = pump.leased.recv().await.unwrap();
    let stopping = pump.stopping();
    // Somebody writes into what all workflows share: that is no outage, and waiting does not help.
    let client = redis::Client::open(format!("unix://{}", server.socket().display())).unwrap();
    let mut raw = client.get_multiplexed_async_connection().await.unwrap();
    redis::pipe().del("{ta}:lease").ignore().set("{ta}:lease", "garbage").ignore().exec_async(&mut raw).await.unwrap();
    assert!(leased.lease.guard().await.is_err());
    tokio::time::timeout(PATIENCE, leased.lease.lost()).await.expect("what is under way is told");
    tokio::time::timeout(PATIENCE, stopping.cancelled()).await.expect("and so is who tells the supervisor that it lives");
    let (_, handle) = pump.split();
    assert!(tokio::task::spawn_blocking(move || handle.join()).await.unwrap().unwrap().is_err());
    server.stop().await;
}

fn planted() -> Result<Arc<dyn Store>, StoreError> {
    panic!("a planted bug")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_pump_meets_a_bug_ends_as_one_that_failed() {
    let queues = vec![Queue::DEFAULT];
    let options = PumpOptions { slots: 1, lease: LEASE, worker: "first".to_owned(), queues: queues.clone() };
    let pump = Pump::start(Box::new(|| Box::pin(async { planted() })), options).unwrap();
    let world = World::new(Arc::new(HandClock::default()), SitePlan::uniform(1, 0), 1);
    let engine = Engine { registry: updates::registry(), ports: world.ports(), queues, keep_finished: LEASE };
    let ended = tokio::time::timeout(PATIENCE, turnaround_worker::run(pump, engine, 1, CancellationToken::new())).await.expect("it ends");
    assert!(matches!(ended, Err(WorkerError::PumpPanicked)), "a supervisor starts only what failed anew: {ended:?}");
}
