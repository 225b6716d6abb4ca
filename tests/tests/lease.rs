//! A worker's lease: whether it stands is the store's to say, just now, and nobody's clock.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use turnaround_worker::{Pump, PumpOptions};
use turnaround_workflows::clock::{Clock as _, SystemClock};
use turnaround_workflows::engine::{Committer as _, start};
use turnaround_workflows::store::memory::MemoryStore;
use turnaround_workflows::store::{Advance, Claim, Queue, Store};
use turnaround_workflows::updates::{self, SurveyOrder};

/// Far longer than this test: nothing of it happens because time has passed.
const LEASE: Duration = Duration::from_secs(3_600);

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
    tokio::task::spawn_blocking(move || handle.join()).await.unwrap().unwrap();
}
