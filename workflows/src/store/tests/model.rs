//! The same random operations give the same answers in both stores.
//!
//! What differs is only when and under which number: times are compared as near or far, fences by the order in
//! which they were granted. Between two operations both clocks move on, so that both stores see the same order.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};
use sha2::{Digest as _, Sha256};

use crate::clock::{HandClock, Timestamp};
use crate::store::memory::MemoryStore;
use crate::store::private_redis::PrivateRedis;
use crate::store::redis::{RedisOptions, RedisStore};
use crate::store::{
    Advance, Advanced, Claim, Claimed, Commit, Committed, Digest, Document, Fence, NewWorkflow, Next, Query, Queue, Resource,
    Scope, Status, Store, StoredEntry, StoredSignal, Take, WorkflowId,
};

/// More with `PROPTEST_CASES`.
const CASES: u32 = 24;
/// The last one is never served.
const QUEUES: [Queue; 3] = [Queue::DEFAULT, Queue::of("bmc"), Queue::of("nobody")];
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// A lease that has expired when the next operation begins.
const MOMENT: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Debug, Clone)]
enum Operation {
    Create(Made),
    Advance { lease: Duration, commits: Vec<Draft>, renew: Vec<usize>, hand_back: Vec<usize>, claim: Option<(u32, Duration)> },
    /// The last advance again, as if its answer was lost. Its claim is left out.
    Repeat,
    Signal { to: usize, body: u8 },
    Release { member: usize },
    Judge { last: u8, at: u8, create: Vec<Made> },
    Sweep,
}

#[derive(Debug, Clone)]
struct Made {
    name: usize,
    parent: Option<usize>,
    far: bool,
}

/// A commit under the grant of that number, counted from the newest.
#[derive(Debug, Clone)]
struct Draft {
    grant: usize,
    /// Whether the revision is the right one.
    right: bool,
    entries: u8,
    consumed: u32,
    take: Vec<Take>,
    give: Vec<Resource>,
    create: Vec<Made>,
    signals: Vec<(usize, u8)>,
    next: u8,
}

fn resource() -> impl Strategy<Value = Resource> {
    prop_oneof![
        (0..3_u8).prop_map(|name| Resource::Lock { name: format!("lock{name}") }),
        (0..2_u8, 0..3_u8)
            .prop_map(|(name, member)| Resource::Budget { name: format!("budget{name}"), member: format!("m{member}") }),
    ]
}

fn made() -> impl Strategy<Value = Made> {
    let parent = proptest::option::weighted(0.3, 0..NAMES.len());
    (0..NAMES.len(), parent, prop::bool::weighted(0.2)).prop_map(|(name, parent, far)| Made { name, parent, far })
}

fn draft() -> impl Strategy<Value = Draft> {
    let from = proptest::option::weighted(0.5, 0..NAMES.len());
    let take = (resource(), 1..3_u32, prop::bool::weighted(0.2), from).prop_map(|(resource, limit, alone, from)| Take { alone, from: from.map(id), ..Take::new(resource, limit) });
    let lists = (
        prop::collection::vec(take, 0..3),
        prop::collection::vec(resource(), 0..3),
        prop::collection::vec(made(), 0..2),
        prop::collection::vec((0..NAMES.len(), 0..4_u8), 0..3),
    );
    let any = (0..4_usize, prop::bool::weighted(0.95), 0..3_u8, 0..3_u32, lists, 0..8_u8).prop_map(
        |(grant, right, entries, consumed, (take, give, create, signals), next)| Draft {
            grant,
            right,
            entries,
            consumed,
            take,
            give,
            create,
            signals,
            next,
        },
    );
    // What concerns nobody else goes without a script; most of it keeps the lease.
    let plain = (0..2_usize, 1..3_u8, prop_oneof![6 => Just(0_u8), 1 => Just(6), 1 => Just(7)]).prop_map(|(grant, entries, next)| Draft {
        grant,
        right: true,
        entries,
        consumed: 0,
        take: Vec::new(),
        give: Vec::new(),
        create: Vec::new(),
        signals: Vec::new(),
        next,
    });
    prop_oneof![1 => any, 2 => plain]
}

fn operation() -> impl Strategy<Value = Operation> {
    let lease = || prop_oneof![3 => Just(DAY), 1 => Just(MOMENT)];
    let advance = (
        lease(),
        prop::collection::vec(draft(), 0..3),
        prop::collection::vec(0..4_usize, 0..2),
        prop::collection::vec(0..4_usize, 0..2),
        proptest::option::of((0..4_u32, lease())),
    )
        .prop_map(|(lease, commits, renew, hand_back, claim)| Operation::Advance { lease, commits, renew, hand_back, claim });
    prop_oneof![
        3 => made().prop_map(Operation::Create),
        9 => advance,
        2 => Just(Operation::Repeat),
        2 => (0..NAMES.len(), 0..4_u8).prop_map(|(to, body)| Operation::Signal { to, body }),
        1 => (0..3_usize).prop_map(|member| Operation::Release { member }),
        1 => (0..3_u8, 1..3_u8, prop::collection::vec(made(), 0..2))
            .prop_map(|(last, at, create)| Operation::Judge { last, at, create }),
        1 => Just(Operation::Sweep),
    ]
}

fn id(name: usize) -> WorkflowId {
    NAMES[name].parse().unwrap()
}

/// A grant as one store gave it, and the workflow as its holder sees it since.
#[derive(Debug, Clone)]
struct Grant {
    id: WorkflowId,
    fence: Fence,
    seq: u64,
}

/// One of the two stores with what its user remembers.
struct Side {
    store: Arc<dyn Store>,
    grants: Vec<Grant>,
    last: Option<Advance>,
}

impl Side {
    fn grant(&self, from_newest: usize) -> Option<&Grant> {
        self.grants.len().checked_sub(from_newest + 1).and_then(|place| self.grants.get(place))
    }

    fn lease(&self, from_newest: usize) -> Option<(WorkflowId, Fence)> {
        self.grant(from_newest).map(|grant| (grant.id.clone(), grant.fence))
    }

    fn commit(&self, draft: &Draft, place: usize, start: Timestamp) -> Option<Commit> {
        let grant = self.grant(draft.grant)?;
        let bodies = (0..draft.entries).map(|number| format!("{{\"{place}\":{number}}}"));
        let entries: Vec<_> =
            bodies.map(|body| StoredEntry { digest: Digest(Sha256::digest(format!("{place}-{}", body.len())).into()), body }).collect();
        let next = match draft.next {
            0..3 => Next::Keep,
            3 => Next::At(start),
            4 => Next::At(start + DAY),
            5 => Next::Signal,
            6 => Next::End { keep: DAY },
            _ => Next::End { keep: Duration::ZERO },
        };
        Some(Commit {
            id: grant.id.clone(),
            fence: grant.fence,
            expected: if draft.right { grant.seq } else { grant.seq + 7 },
            state: (!entries.is_empty() && matches!(next, Next::At(_) | Next::Signal)).then(|| format!("{{\"place\":{place}}}")),
            status: match next {
                Next::Keep => Status::Runnable,
                Next::At(_) => Status::Waiting,
                Next::Signal => Status::NeedsOperator,
                Next::End { .. } => Status::Failed,
            },
            headline: format!("operation {place}"),
            // The rule of `store::mark`: what has an effect elsewhere has an entry.
            consumed: if entries.is_empty() { 0 } else { draft.consumed },
            signals: if entries.is_empty() { Vec::new() } else { sent(&draft.signals) },
            entries,
            take: draft.take.clone(),
            give: draft.give.clone(),
            create: draft.create.iter().map(|made| new(made, start)).collect(),
            traceparent: place.is_multiple_of(2).then(|| format!("trace-{place}")),
            next,
            queue: QUEUES[usize::from(draft.next) % QUEUES.len()].clone(),
        })
    }

    async fn run(&mut self, operation: &Operation, place: usize, start: Timestamp) -> String {
        match operation {
            Operation::Create(made) => format!("{:?}", self.store.create(new(made, start)).await.unwrap()),
            Operation::Advance { lease, commits, renew, hand_back, claim } => {
                let leases = |places: &Vec<usize>| places.iter().filter_map(|place| self.lease(*place)).collect();
                let advance = Advance {
                    lease: *lease,
                    commits: commits
                        .iter()
                        .enumerate()
                        .filter_map(|(number, draft)| self.commit(draft, 10 * place + number, start))
                        .collect(),
                    renew: leases(renew),
                    hand_back: leases(hand_back),
                    // What is kept for a moment has expired, or not, by the time of a claim in the same call.
                    claim: claim.filter(|_| *lease == DAY).map(|(max, lease)| Claim { max, lease, worker: "w".to_owned(), queues: QUEUES[..2].to_vec() }),
                };
                self.advance(advance, start).await
            }
            Operation::Repeat => match self.last.clone() {
                Some(last) => self.advance(Advance { claim: None, hand_back: Vec::new(), ..last }, start).await,
                None => String::new(),
            },
            Operation::Signal { to, body } => {
                format!("{:?}", self.store.signal(&id(*to), StoredSignal { body: format!("{body}") }).await.unwrap())
            }
            Operation::Release { member } => {
                format!("{:?}", self.store.release_budget("budget0", &format!("m{member}")).await.unwrap())
            }
            Operation::Judge { last, at, create } => {
                let last = (*last > 0).then(|| Timestamp::from_millis(i64::from(*last)));
                let create = create.iter().map(|made| new(made, start)).collect();
                let at = Timestamp::from_millis(i64::from(*at));
                format!("{:?}", self.store.judge_ticks("nightly", last, at, create).await.unwrap())
            }
            Operation::Sweep => format!("{:?}", self.store.sweep().await.unwrap()),
        }
    }

    async fn advance(&mut self, advance: Advance, start: Timestamp) -> String {
        let mut advanced = self.store.advance(&advance).await.unwrap();
        for (commit, committed) in advance.commits.iter().zip(&advanced.commits) {
            if matches!(committed, Committed::Done { .. }) {
                for grant in self.grants.iter_mut().filter(|grant| grant.fence == commit.fence) {
                    grant.seq = commit.expected + commit.entries.len() as u64;
                }
            }
        }
        for claimed in &advanced.claimed {
            let Claimed { document, fence, .. } = claimed;
            self.grants.push(Grant { id: document.id.clone(), fence: *fence, seq: document.seq });
        }
        self.last = Some(advance);
        self.blur(&mut advanced, start);
        format!("{advanced:#?}")
    }

    /// Removes what may differ.
    fn blur(&self, advanced: &mut Advanced, start: Timestamp) {
        advanced.now = start;
        for committed in &mut advanced.commits {
            if let Committed::Done { lease_until, .. } = committed {
                near_or_far(lease_until, start);
            }
        }
        for renewed in &mut advanced.renewed {
            near_or_far(renewed, start);
        }
        for claimed in &mut advanced.claimed {
            claimed.fence = self.rank(claimed.fence);
            claimed.lease_until = blurred(claimed.lease_until, start);
            self.blur_document(&mut claimed.document, start);
        }
        near_or_far(&mut advanced.next, start);
    }

    fn blur_document(&self, document: &mut Document, start: Timestamp) {
        document.created = blurred(document.created, start);
        document.updated = blurred(document.updated, start);
        near_or_far(&mut document.due, start);
        if let Some(lease) = &mut document.lease {
            lease.fence = self.rank(lease.fence);
            lease.until = blurred(lease.until, start);
        }
    }

    fn rank(&self, fence: Fence) -> Fence {
        Fence(self.grants.iter().filter(|grant| grant.fence < fence).count() as u64)
    }

    /// All that can be seen of the store.
    async fn look(&self, start: Timestamp) -> String {
        let mut seen = Vec::new();
        for name in 0..NAMES.len() {
            if let Some(mut document) = self.store.load(&id(name)).await.unwrap() {
                self.blur_document(&mut document, start);
                seen.push(format!("{document:?} {:?}", self.store.journal(&id(name), 1, 500).await.unwrap()));
            }
        }
        let queries = [
            Query { scope: Scope::All, limit: 500, ..Query::default() },
            Query { scope: Scope::Open, limit: 500, ..Query::default() },
            Query { scope: Scope::Ended, limit: 500, ..Query::default() },
            Query { scope: Scope::All, parent: Some(id(0)), limit: 500, ..Query::default() },
        ];
        for query in queries {
            let listed = self.store.list(&query).await.unwrap();
            seen.push(listed.iter().map(|document| document.id.as_str()).collect::<Vec<_>>().join(" "));
        }
        seen.push(format!("{:?}", self.store.counts().await.unwrap()));
        // Between all that ends or is due about now, and what is a day away.
        let backlog = self.store.backlog(&[Queue::DEFAULT], start + DAY / 2).await.unwrap();
        seen.push(format!("{} leased, {} expired, {} due", backlog.leased, backlog.expired.count, backlog.due[0].count));
        seen.push(format!("{:?}", self.store.holdings().await.unwrap()));
        seen.push(format!("{:?}", self.store.last_tick("nightly").await.unwrap()));
        let events = self.store.events(Some("0-0"), Duration::ZERO).await.unwrap();
        let newest = events.iter().rev().take(3);
        seen.extend(newest.map(|event| format!("{} {} {} {:?}", event.workflow, event.seq, event.headline, event.entry)));
        seen.join("\n")
    }
}

fn sent(signals: &[(usize, u8)]) -> Vec<(WorkflowId, StoredSignal)> {
    signals.iter().map(|(to, body)| (id(*to), StoredSignal { body: format!("{body}") })).collect()
}

fn new(made: &Made, start: Timestamp) -> NewWorkflow {
    let due = made.far.then(|| start + DAY);
    NewWorkflow { due, parent: made.parent.map(id), ..super::sample(NAMES[made.name]) }
}

fn blurred(at: Timestamp, start: Timestamp) -> Timestamp {
    if at < start + HOUR { Timestamp::from_millis(0) } else { Timestamp::from_millis(1) }
}

fn near_or_far(at: &mut Option<Timestamp>, start: Timestamp) {
    *at = at.map(|at| blurred(at, start));
}

/// Runs `operations` on both.
async fn compare(options: RedisOptions, operations: &[Operation]) {
    let redis = Arc::new(RedisStore::connect(options).await.unwrap());
    let start = redis.now().await.unwrap();
    let clock = Arc::new(HandClock::at(start));
    let mut memory =
        Side { store: Arc::new(MemoryStore::new(clock.clone())), grants: Vec::new(), last: None };
    let mut real = Side { store: redis.clone(), grants: Vec::new(), last: None };
    for (place, operation) in operations.iter().enumerate() {
        // Both in a millisecond of their own.
        let before = redis.now().await.unwrap();
        let mut now = before;
        while now <= before {
            now = redis.now().await.unwrap();
        }
        clock.advance_to(now);
        let expected = memory.run(operation, place, start).await;
        let answered = real.run(operation, place, start).await;
        assert_eq!(answered, expected, "operation {place}: {operation:?}");
        assert_eq!(real.look(start).await, memory.look(start).await, "after operation {place}: {operation:?}");
    }
}

#[test]
fn both_stores_answer_the_same_to_the_same_operations() {
    // Durable or not does not matter here, and fast does.
    let server = PrivateRedis::start_with(&["--appendonly", "no"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut config = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    config.failure_persistence = Some(Box::new(FileFailurePersistence::Off));
    proptest!(config, |(operations in prop::collection::vec(operation(), 1..60))| {
        server.command(&["FLUSHALL"]);
        let options = RedisOptions { accept_weaker_durability: true, ..server.options() };
        runtime.block_on(compare(options, &operations));
    });
    let stats = server.command(&["INFO", "commandstats"]);
    let direct = stats.lines().find_map(|line| line.strip_prefix("cmdstat_exec:calls=")?.split_once(',')?.0.parse::<u64>().ok());
    println!("transactions: {direct:?}");
    assert!(direct.is_some_and(|direct| direct > 0), "nothing went without a script: {stats}");
}
