//! One flipped byte anywhere in a stored journal is noticed, by the real engine on a real Redis.

use std::sync::Arc;
use std::time::Duration;

use ::redis::Value;
use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::clock::{HandClock, Timestamp};
use crate::engine::*;
use crate::rehearsal::{SitePlan, World};
use crate::store::private_redis::PrivateRedis;
use crate::store::redis::{RedisOptions, RedisStore};
use crate::store::{Advance, Claim, Claimed, Commit, Committed, Document, Fence, Queue, Status, Store, WorkflowId};

/// Bytes that are flipped. More with `TURNAROUND_FLIPS`.
const FLIPS: usize = 1_000;
const WORKFLOWS: usize = 20;
/// Nothing is due by itself while the test runs, however busy the machine.
const LONG: Duration = Duration::from_secs(30 * 24 * 3_600);
const LEASE: Duration = Duration::from_secs(600);
/// How often a workflow is looked at before bytes are flipped: its journal has twice as many entries.
const LOOKS: u32 = 6;

/// Waits for something that is new at each look.
struct Waits;

#[async_trait]
impl Step for Waits {
    const NAME: &'static str = "waits";
    type Output = ();

    fn policy(&self, _: &StepCx<'_>) -> Policy {
        Policy { deadline: LONG, ..Policy::default() }
    }

    async fn observe(&self, _: &StepCx<'_>) -> Result<Observed<()>, StepError> {
        Ok(Observed::ToDo { would: "wait".to_owned() })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<()>, StepError> {
        let looks: u32 = cx.checkpoint()?.unwrap_or(0);
        cx.save(&(looks + 1), format!("looked {looks} times")).await?;
        let after = if looks < LOOKS { Duration::ZERO } else { LONG };
        Ok(Progress::LookAgain { after, note: format!("waits, {looks}") })
    }
}

/// A lease on a store that is always there.
struct Plain<'a> {
    store: &'a RedisStore,
    lease: (WorkflowId, Fence),
    now: Timestamp,
}

#[async_trait]
impl Committer for Plain<'_> {
    fn now(&self) -> Timestamp {
        self.now
    }

    async fn commit(&self, commit: Commit) -> Result<Committed, LeaseLost> {
        let advance = Advance { lease: LEASE, commits: vec![commit], ..Advance::default() };
        Ok(self.store.advance(&advance).await.unwrap().commits.remove(0))
    }

    async fn guard(&self) -> Result<(), LeaseLost> {
        let advance = Advance { lease: LEASE, renew: vec![self.lease.clone()], ..Advance::default() };
        self.store.advance(&advance).await.unwrap().renewed[0].map(drop).ok_or(LeaseLost)
    }

    async fn lost(&self) {
        std::future::pending().await
    }
}

struct Bench {
    server: PrivateRedis,
    store: RedisStore,
    raw: ::redis::aio::MultiplexedConnection,
    engine: Engine,
}

impl Bench {
    async fn new() -> Bench {
        // What is shown here has nothing to do with durability.
        let server = PrivateRedis::start_with(&["--appendonly", "no"]);
        let options = RedisOptions { accept_weaker_durability: true, ..server.options() };
        let store = RedisStore::connect(options).await.unwrap();
        let client = ::redis::Client::open(format!("unix://{}", server.socket().display())).unwrap();
        let raw = client.get_multiplexed_async_connection().await.unwrap();
        let registry = Registry::new([Definition { kind: "waiter", version: 1, steps: vec![step(Waits)] }]);
        let world = World::new(Arc::new(HandClock::at(Timestamp::from_millis(0))), SitePlan::uniform(1, 0), 1);
        let engine = Engine { registry, ports: world.ports(), queues: vec![Queue::DEFAULT], keep_finished: LEASE };
        Bench { server, store, raw, engine }
    }

    fn start(name: &str) -> Start {
        Start {
            id: name.parse().unwrap(),
            kind: "waiter".to_owned(),
            version: 1,
            target: "nothing".to_owned(),
            input: serde_json::json!({ "why": "a journal of some length" }),
            parent: None,
            key: None,
            by: "tester".to_owned(),
            traceparent: None,
        }
    }

    async fn create(&self, name: &str) -> WorkflowId {
        let new = Bench::start(name);
        let id = new.id.clone();
        self.store.create(start(new, self.store.now().await.unwrap()).unwrap()).await.unwrap();
        id
    }

    /// Brings on everything that is due.
    async fn work(&self) {
        loop {
            let claim = Claim { max: 100, lease: LEASE, worker: "tester".to_owned(), queues: vec![Queue::DEFAULT] };
            let advanced = self.store.advance(&Advance { lease: LEASE, claim: Some(claim), ..Advance::default() }).await.unwrap();
            if advanced.claimed.is_empty() {
                return;
            }
            for claimed in advanced.claimed {
                self.activate(claimed).await;
            }
        }
    }

    async fn activate(&self, claimed: Claimed) {
        let lease = (claimed.document.id.clone(), claimed.fence);
        let now = self.store.now().await.unwrap();
        self.engine.activate(claimed, &Plain { store: &self.store, lease, now }).await;
    }

    async fn command(&mut self, words: &[&[u8]]) -> Value {
        let mut command = ::redis::cmd(std::str::from_utf8(words[0]).unwrap());
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query_async(&mut self.raw).await.unwrap()
    }

    async fn document(&self, id: &WorkflowId) -> Document {
        self.store.load(id).await.unwrap().unwrap()
    }

    async fn signal(&self, id: &WorkflowId, number: usize, kind: SignalKind) {
        self.signal_by("ada", id, number, kind).await;
    }

    async fn signal_by(&self, by: &str, id: &WorkflowId, number: usize, kind: SignalKind) {
        let signal = Signal { id: format!("signal-{number}"), at: Timestamp::from_millis(0), by: by.to_owned(), kind };
        self.store.signal(id, signal.stored().unwrap()).await.unwrap();
    }

    /// The lease that stands on `id` is over.
    async fn lease_ends(&self, id: &WorkflowId) {
        let lease = self.document(id).await.lease.expect("somebody has it");
        self.store.advance(&Advance { hand_back: vec![(id.clone(), lease.fence)], ..Advance::default() }).await.unwrap();
    }

    /// Of the workflow `w`. What it was.
    async fn damage_second_entry(&mut self) -> Vec<u8> {
        let Value::BulkString(good) = self.command(&[b"HGET", b"{ta}:journal", b"w:2"]).await else { panic!("its second entry") };
        self.command(&[b"HSET", b"{ta}:journal", b"w:2", b"nonsense"]).await;
        good
    }

    /// All that is kept of every workflow but `id`.
    async fn others(&mut self, id: &WorkflowId, all: &[WorkflowId]) -> Vec<Value> {
        let mut asked = ::redis::pipe();
        for other in all.iter().filter(|other| *other != id) {
            asked.cmd("HGET").arg("{ta}:heads").arg(other.as_str()).cmd("HGET").arg("{ta}:documents").arg(other.as_str());
            asked.cmd("HGET").arg("{ta}:states").arg(other.as_str()).cmd("LRANGE").arg(format!("{{ta}}:inbox:{other}")).arg(0).arg(-1);
        }
        // One more than there are.
        for other in all.iter().filter(|other| *other != id) {
            let entries = (1..=self.document(other).await.seq + 1).map(|at| format!("{other}:{at}"));
            asked.cmd("HMGET").arg("{ta}:journal").arg(entries.collect::<Vec<_>>());
        }
        asked.query_async(&mut self.raw).await.unwrap()
    }
}

#[tokio::test]
async fn a_byte_flipped_anywhere_in_a_journal_sets_that_workflow_apart_and_no_other() {
    let flips = std::env::var("TURNAROUND_FLIPS").map_or(FLIPS, |flips| flips.parse().unwrap());
    let mut random = StdRng::seed_from_u64(1);
    let mut bench = Bench::new().await;
    let mut all = Vec::new();
    for number in 0..WORKFLOWS {
        all.push(bench.create(&format!("w{number}")).await);
    }
    bench.work().await;
    for flip in 0..flips {
        let id = all[random.random_range(0..all.len())].clone();
        let seq = bench.document(&id).await.seq;
        assert!(seq > u64::from(LOOKS), "a journal of some length: {seq}");
        let key = "{ta}:journal";
        // What one commit appended stands under the place of its first entry.
        let (field, good) = loop {
            let field = format!("{id}:{}", random.random_range(1..=seq));
            if let Value::BulkString(good) = bench.command(&[b"HGET", key.as_bytes(), field.as_bytes()]).await {
                break (field, good);
            }
        };
        let (place, bit) = (random.random_range(0..good.len()), random.random_range(0..8));
        let mut bad = good.clone();
        bad[place] ^= 1 << bit;
        bench.command(&[b"HSET", key.as_bytes(), field.as_bytes(), &bad]).await;
        let before = bench.others(&id, &all).await;
        // Something makes it due.
        bench.signal(&id, 2 * flip, SignalKind::Retry).await;
        bench.work().await;
        let what = format!("flip {flip}: bit {bit} of byte {place} of {field} of {id}: {}", String::from_utf8_lossy(&bad));
        let document = bench.document(&id).await;
        assert_eq!((document.status, document.seq), (Status::Quarantined, seq), "{what}: {}", document.headline);
        assert!(document.headline.starts_with("quarantined: "), "{what}: {}", document.headline);
        assert_eq!(bench.others(&id, &all).await, before, "{what}: another workflow was touched");
        // Put back, it goes on where it was.
        bench.command(&[b"HSET", key.as_bytes(), field.as_bytes(), &good]).await;
        bench.signal(&id, 2 * flip + 1, SignalKind::Retry).await;
        bench.work().await;
        let document = bench.document(&id).await;
        assert_eq!(document.status, Status::Waiting, "{what}: {}", document.headline);
        assert!(document.seq > seq, "{what}");
    }
    drop(bench.server);
}

#[tokio::test]
async fn a_quarantined_workflow_can_be_discarded_and_then_holds_nothing_up() {
    let mut bench = Bench::new().await;
    let id = bench.create("w").await;
    bench.work().await;
    bench.damage_second_entry().await;
    bench.signal(&id, 0, SignalKind::Retry).await;
    bench.work().await;
    assert_eq!(bench.document(&id).await.status, Status::Quarantined);
    assert_eq!(bench.store.counts().await.unwrap(), [(Status::Quarantined, 1)]);
    bench.signal(&id, 1, SignalKind::Pause { why: String::new() }).await;
    bench.work().await;
    assert_eq!(bench.document(&id).await.status, Status::Quarantined, "nothing else is followed");
    bench.signal(&id, 2, SignalKind::Abort { why: "lost".to_owned() }).await;
    bench.work().await;
    let document = bench.document(&id).await;
    assert_eq!(document.status, Status::Failed);
    assert!(document.headline.starts_with("discarded by ada: "), "{}", document.headline);
    assert_eq!(bench.store.counts().await.unwrap(), []);
}

/// What is kept beside its journal says nothing any more of what it is, and of whose.
#[tokio::test]
async fn whoever_waits_for_one_that_is_discarded_is_told_by_its_journals_first_entry() {
    let mut bench = Bench::new().await;
    let parent = bench.create("p").await;
    let new = Start { parent: Some(parent.clone()), key: Some("node".to_owned()), ..Bench::start("p.node") };
    let id = new.id.clone();
    bench.store.create(start(new, bench.store.now().await.unwrap()).unwrap()).await.unwrap();
    bench.work().await;
    bench.command(&[b"HSET", b"{ta}:documents", b"p.node", b"nonsense"]).await;
    bench.signal(&id, 0, SignalKind::Retry).await;
    bench.work().await;
    bench.signal(&id, 1, SignalKind::Abort { why: "lost".to_owned() }).await;
    bench.work().await;
    let Value::Array(told) = bench.command(&[b"LRANGE", b"{ta}:inbox:p", b"0", b"-1"]).await else { panic!("its inbox") };
    let entries = bench.store.journal(&parent, 1, 500).await.unwrap();
    let heard = entries.iter().any(|entry| entry.body.contains("child-ended"));
    assert!(heard || told.iter().any(|one| format!("{one:?}").contains("child-ended")), "{told:?}");
}

#[tokio::test]
async fn what_other_workflows_have_told_one_that_is_set_apart_is_followed_once_it_goes_on() {
    let mut bench = Bench::new().await;
    let id = bench.create("w").await;
    bench.work().await;
    let good = bench.damage_second_entry().await;
    bench.signal_by("workflow rollout", &id, 0, SignalKind::Pause { why: "its rollout".to_owned() }).await;
    bench.work().await;
    assert_eq!(bench.document(&id).await.status, Status::Quarantined);
    bench.lease_ends(&id).await;
    bench.work().await;
    assert_eq!(bench.document(&id).await.status, Status::Quarantined);
    bench.command(&[b"HSET", b"{ta}:journal", b"w:2", &good]).await;
    bench.lease_ends(&id).await;
    bench.work().await;
    assert_eq!(bench.document(&id).await.status, Status::Quarantined, "no person has said that it is well again");
    bench.signal(&id, 1, SignalKind::Retry).await;
    bench.lease_ends(&id).await;
    bench.work().await;
    let document = bench.document(&id).await;
    assert_eq!(document.status, Status::Paused, "{}", document.headline);
}

/// What is told while it is looked at comes after what was told before.
#[tokio::test]
async fn what_other_workflows_have_told_one_that_is_set_apart_keeps_its_order() {
    let mut bench = Bench::new().await;
    let id = bench.create("w").await;
    bench.work().await;
    let good = bench.damage_second_entry().await;
    bench.signal_by("workflow rollout", &id, 0, SignalKind::Pause { why: "its rollout".to_owned() }).await;
    let claim = Claim { max: 100, lease: LEASE, worker: "tester".to_owned(), queues: vec![Queue::DEFAULT] };
    let mut advanced = bench.store.advance(&Advance { lease: LEASE, claim: Some(claim), ..Advance::default() }).await.unwrap();
    bench.signal_by("workflow rollout", &id, 1, SignalKind::Resume).await;
    bench.activate(advanced.claimed.remove(0)).await;
    assert_eq!(bench.document(&id).await.status, Status::Quarantined);
    bench.command(&[b"HSET", b"{ta}:journal", b"w:2", &good]).await;
    bench.signal(&id, 2, SignalKind::Retry).await;
    bench.lease_ends(&id).await;
    bench.work().await;
    let document = bench.document(&id).await;
    assert_eq!(document.status, Status::Waiting, "{}", document.headline);
}

#[tokio::test]
async fn only_a_person_who_knows_that_it_is_set_apart_discards_a_workflow() {
    let mut bench = Bench::new().await;
    let id = bench.create("w").await;
    bench.work().await;
    bench.damage_second_entry().await;
    let abort = || SignalKind::Abort { why: "not now".to_owned() };
    bench.signal_by("workflow rollout", &id, 3, SignalKind::Resume).await;
    bench.signal(&id, 0, abort()).await;
    bench.work().await;
    bench.lease_ends(&id).await;
    bench.work().await;
    assert_eq!(bench.document(&id).await.status, Status::Quarantined, "it was meant for a workflow that is well");
    bench.signal_by("workflow rollout", &id, 1, abort()).await;
    bench.lease_ends(&id).await;
    bench.work().await;
    assert_eq!(bench.document(&id).await.status, Status::Quarantined, "nobody has looked");
    bench.signal(&id, 2, abort()).await;
    bench.lease_ends(&id).await;
    bench.work().await;
    assert_eq!(bench.document(&id).await.status, Status::Failed);
}

#[tokio::test]
async fn what_kills_every_worker_that_takes_it_is_set_apart_and_tried_again_when_asked() {
    let bench = Bench::new().await;
    let id = bench.create("w").await;
    let claim = |lease| Claim { max: 1, lease, worker: "dies".to_owned(), queues: vec![Queue::DEFAULT] };
    let mut lost = 0;
    while lost < 20 {
        // Its lease is over at once: the next look finds it expired.
        let advance = Advance { claim: Some(claim(Duration::from_millis(1))), ..Advance::default() };
        lost += bench.store.advance(&advance).await.unwrap().claimed.len();
    }
    tokio::time::sleep(Duration::from_millis(2)).await;
    bench.work().await;
    let document = bench.document(&id).await;
    assert_eq!(document.status, Status::Quarantined, "{}", document.headline);
    assert!(document.headline.contains("20 workers in a row"), "{}", document.headline);
    bench.signal_by("workflow rollout", &id, 1, SignalKind::Resume).await;
    bench.work().await;
    assert_eq!(bench.document(&id).await.status, Status::Quarantined, "another workflow's word is none on that");
    bench.lease_ends(&id).await;
    bench.signal(&id, 0, SignalKind::Retry).await;
    bench.work().await;
    assert_eq!(bench.document(&id).await.status, Status::Waiting);
}
