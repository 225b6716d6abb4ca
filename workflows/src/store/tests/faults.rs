//! What the store in Redis does when Redis can't.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use turnaround_config::SecretText;

use super::{FIRST, sample};
use crate::store::high_water::HighWater;
use crate::store::private_redis::PrivateRedis;
use crate::store::redis::{RedisAddress, RedisOptions, RedisStore};
use crate::store::{
    Advance, Advanced, Claim, Claimed, Commit, Committed, Created, Digest, Fence, Next, Queue, Status, Store, StoreError,
    StoredEntry, WorkflowId,
};

const LONG: Duration = Duration::from_secs(600);

pub(super) fn id(name: &str) -> WorkflowId {
    name.parse().unwrap()
}

/// Short, because these tests wait for it.
fn impatient(server: &PrivateRedis) -> RedisOptions {
    RedisOptions { reply_timeout: Duration::from_millis(500), ..server.options() }
}

async fn connect(options: RedisOptions) -> RedisStore {
    loop {
        match RedisStore::connect(options.clone()).await {
            Ok(store) => return store,
            Err(error) => assert!(error.is_outage(), "{error}"),
        }
    }
}

pub(super) async fn claim(store: &RedisStore) -> Vec<Claimed> {
    let claim = Some(Claim { max: 100, lease: LONG, worker: "w".to_owned(), queues: vec![Queue::DEFAULT] });
    until_answered(store, &Advance { claim, ..Advance::default() }).await.claimed
}

/// Asks for as long as the outage lasts, as workers do.
async fn until_answered(store: &RedisStore, advance: &Advance) -> Advanced {
    loop {
        match store.advance(advance).await {
            Ok(advanced) => return advanced,
            Err(error) => assert!(error.is_outage(), "{error}: {:?}", std::error::Error::source(&error)),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) fn follows(head: Digest, body: &str) -> Digest {
    Digest(Sha256::new().chain_update(head.to_string()).chain_update(body).finalize().into())
}

pub(super) fn commit(id: &WorkflowId, fence: Fence, seq: u64, head: Digest, next: Next) -> Commit {
    let body = format!("{{\"after\":{seq}}}");
    let digest = follows(head, &body);
    Commit {
        id: id.clone(),
        fence,
        expected: seq,
        entries: vec![StoredEntry { digest, body }],
        state: Some(format!("{{\"seq\":{seq}}}")),
        status: Status::Runnable,
        headline: "goes on".to_owned(),
        consumed: 0,
        take: Vec::new(),
        give: Vec::new(),
        create: Vec::new(),
        signals: Vec::new(),
        traceparent: None,
        next,
        queue: Queue::DEFAULT,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_commit_survives_kills_of_redis_and_stands_once() {
    const WRITERS: usize = 6;
    const KILLS: u32 = 5;
    const COMMITS_BETWEEN_KILLS: u32 = 60;
    let mut server = PrivateRedis::start();
    let store = Arc::new(RedisStore::connect(server.options()).await.unwrap());
    for number in 0..WRITERS {
        store.create(sample(&format!("w{number}"))).await.unwrap();
    }
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let writers: Vec<_> = claim(&store)
        .await
        .into_iter()
        .map(|claimed| {
            let (store, stop, acknowledged) = (store.clone(), stop.clone(), acknowledged.clone());
            tokio::spawn(async move {
                let (id, mut seq, mut head) = (claimed.document.id, claimed.document.seq, claimed.document.head);
                while !stop.load(Ordering::Relaxed) {
                    let next = commit(&id, claimed.fence, seq, head, Next::Keep);
                    head = next.entries[0].digest;
                    let advance = Advance { lease: LONG, commits: vec![next], ..Advance::default() };
                    let committed = until_answered(&store, &advance).await.commits.remove(0);
                    assert!(matches!(committed, Committed::Done { .. }), "{id} after {seq}: {committed:?}");
                    seq += 1;
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                (id, seq, head)
            })
        })
        .collect();
    for kill in 1..=KILLS {
        while acknowledged.load(Ordering::Relaxed) < kill * COMMITS_BETWEEN_KILLS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.kill();
        server.start_again();
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        let (id, seq, head) = writer.await.unwrap();
        let document = store.load(&id).await.unwrap().unwrap();
        assert_eq!((document.seq, document.head), (seq, head));
        let mut read = 0;
        let mut head = FIRST;
        while read < seq {
            let page = store.journal(&id, read + 1, 500).await.unwrap();
            for entry in page.iter().skip(usize::from(read == 0)) {
                head = follows(head, &entry.body);
                assert_eq!(entry.digest, head);
            }
            read += page.len() as u64;
        }
        assert_eq!(read, seq);
    }
}

#[tokio::test]
async fn scripts_that_redis_forgot_are_loaded_again() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    for name in ["one", "two"] {
        assert_eq!(store.create(sample(name)).await.unwrap(), Created::New);
        server.command(&["SCRIPT", "FLUSH"]);
    }
    assert_eq!(claim(&store).await.len(), 2);
}

#[tokio::test]
async fn a_redis_that_may_lose_writes_is_refused_with_the_remedy() {
    let server = PrivateRedis::start_with(&["--appendonly", "yes", "--appendfsync", "everysec"]);
    server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let Err(refused) = RedisStore::connect(server.options()).await else { panic!("accepted") };
    assert_eq!(
        refused.to_string(),
        format!(
            "the Redis at {} may lose acknowledged writes: \
             `appendfsync` is `everysec`: a power cut loses the last second or more \
             (run `CONFIG SET appendfsync always` and write `appendfsync always` into redis.conf); \
             `maxmemory-policy` is `allkeys-lru`: full memory throws workflows away \
             (run `CONFIG SET maxmemory-policy noeviction` and write `maxmemory-policy noeviction` into redis.conf)",
            server.socket().display()
        )
    );
    let accepted =
        RedisStore::connect(RedisOptions { accept_weaker_durability: true, ..server.options() }).await.unwrap();
    let durability = accepted.durability().await.unwrap();
    assert_eq!((durability.description.contains("AOF everysec, allkeys-lru"), durability.weaknesses.len()), (true, 2));
    // The remedy is a remedy.
    server.command(&["CONFIG", "SET", "appendfsync", "always"]);
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    assert!(RedisStore::connect(server.options()).await.unwrap().durability().await.unwrap().weaknesses.is_empty());
}

#[tokio::test]
async fn where_config_is_forbidden_what_is_unknown_counts_as_weak() {
    let server = PrivateRedis::start();
    server.command(&["ACL", "SETUSER", "default", "-config"]);
    let Err(StoreError::NotDurable { weaknesses, .. }) = RedisStore::connect(server.options()).await else {
        panic!("accepted, or refused for another reason")
    };
    assert_eq!(weaknesses.len(), 2, "{weaknesses:?}");
    assert!(weaknesses[0].starts_with("`appendfsync` can't be read: it should be `always`"), "{weaknesses:?}");
    assert!(weaknesses[0].contains("+config|get"), "{weaknesses:?}");
}

#[tokio::test]
async fn a_redis_that_hangs_is_unavailable_and_no_stale_commit_lands_afterwards() {
    let server = PrivateRedis::start();
    let patient = RedisStore::connect(server.options()).await.unwrap();
    patient.create(sample("w")).await.unwrap();
    let held = claim(&patient).await.remove(0);
    let store = connect(impatient(&server)).await;
    let advance = Advance {
        lease: LONG,
        commits: vec![commit(&id("w"), held.fence, 1, FIRST, Next::Keep)],
        ..Advance::default()
    };
    server.pause();
    for _ in 0..3 {
        let Err(error) = store.advance(&advance).await else { panic!("a stopped Redis answered") };
        assert!(error.is_outage(), "{error}");
    }
    server.resume();
    let committed = until_answered(&store, &advance).await.commits.remove(0);
    assert!(matches!(committed, Committed::Done { .. }), "{committed:?}");
    assert_eq!(patient.journal(&id("w"), 1, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_was_granted_to_a_lost_claim_is_claimed_again_at_once() {
    let server = PrivateRedis::start();
    let store = connect(impatient(&server)).await;
    let other = RedisStore::connect(server.options()).await.unwrap();
    other.create(sample("held")).await.unwrap();
    let held = claim(&other).await.remove(0);
    other.create(sample("lost")).await.unwrap();
    let asked = Claim { max: 100, lease: LONG, worker: "w".to_owned(), queues: vec![Queue::DEFAULT] };
    server.pause();
    let Err(error) = store.advance(&Advance { claim: Some(asked), ..Advance::default() }).await else {
        panic!("a stopped Redis answered")
    };
    assert!(error.is_outage(), "{error}");
    server.resume();
    while !server.command(&["ZCARD", "{ta}:lease"]).starts_with(":2") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let found = claim(&store).await;
    assert_eq!(found.iter().map(|found| found.document.id.as_str()).collect::<Vec<_>>(), ["lost"]);
    assert!(claim(&store).await.is_empty());
    // What others hold stays theirs.
    let kept = commit(&held.document.id, held.fence, 1, FIRST, Next::Keep);
    let committed = until_answered(&store, &Advance { commits: vec![kept], ..Advance::default() }).await.commits;
    assert!(matches!(committed[..], [Committed::Done { .. }]), "{committed:?}");
}

/// Makes Redis refuse, checks that this counts as an outage, makes it well again, and checks that it is over.
async fn passes(what: &str, server: &PrivateRedis, store: &RedisStore, refuse: &[&str], mend: &[&str]) {
    server.command(refuse);
    let Err(error) = store.create(sample("refused")).await else { panic!("{what}: not refused") };
    assert!(error.is_outage(), "{what}: {error}: {:?}", std::error::Error::source(&error));
    server.command(mend);
    let mended = loop {
        match store.create(sample(what)).await {
            Ok(created) => break created,
            Err(error) => assert!(error.is_outage(), "{what}: {error}"),
        }
    };
    assert_eq!(mended, Created::New, "{what}");
    assert_eq!(store.load(&id("refused")).await.unwrap(), None, "{what}");
}

#[tokio::test]
async fn what_redis_refuses_for_now_is_an_outage_and_passes() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    let set = |name, value| ["CONFIG", "SET", name, value];
    passes("memory", &server, &store, &set("maxmemory", "1"), &set("maxmemory", "0")).await;
    let replicas = "min-replicas-to-write";
    passes("replicas", &server, &store, &set(replicas, "1"), &set(replicas, "0")).await;
    passes("demoted", &server, &store, &["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]).await;
}

/// Found by a campaign: what the script passes on is answered with another code, and every worker that committed just then ended.
#[tokio::test]
async fn a_commit_that_redis_refuses_for_now_is_an_outage_and_stands_once_it_is_over() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    store.create(sample("held")).await.unwrap();
    let held = claim(&store).await.remove(0);
    let memory = ("maxmemory", "1", "0");
    let replicas = ("min-replicas-to-write", "1", "0");
    for (seq, (name, refuse, mend)) in (1..).zip([memory, replicas]) {
        server.command(&["CONFIG", "SET", name, refuse]);
        let kept = commit(&held.document.id, held.fence, seq, FIRST, Next::Keep);
        let advance = Advance { lease: LONG, commits: vec![kept], ..Advance::default() };
        let Err(error) = store.advance(&advance).await else { panic!("{name}: not refused") };
        assert!(error.is_outage(), "{name}: {error}: {:?}", std::error::Error::source(&error));
        server.command(&["CONFIG", "SET", name, mend]);
        let committed = until_answered(&store, &advance).await.commits;
        assert!(matches!(committed[..], [Committed::Done { .. }]), "{name}: {committed:?}");
    }
}

#[tokio::test]
async fn what_a_person_must_mend_is_no_outage_and_says_how() {
    let mut server = PrivateRedis::start();
    let unusable = async |options: RedisOptions| match RedisStore::connect(options).await {
        Err(StoreError::Unusable { remedy, .. }) => remedy,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("accepted"),
    };
    server.command(&["CONFIG", "SET", "requirepass", "secret"]);
    assert!(unusable(server.options()).await.contains("password"));
    let wrong = RedisOptions { password: Some(SecretText::new("wrong".to_owned())), ..server.options() };
    assert!(unusable(wrong.clone()).await.contains("password"));
    assert!(!format!("{wrong:?}").contains("wrong"));
    let right = RedisOptions { password: Some(SecretText::new("secret".to_owned())), ..server.options() };
    let store = RedisStore::connect(right).await.unwrap();
    assert!(unusable(RedisOptions { prefix: "ta".to_owned(), ..server.options() }).await.contains("{ta}"));
    let nowhere = RedisOptions::new(RedisAddress::Url("http://localhost".to_owned()));
    assert!(unusable(nowhere).await.contains("address"));

    store.create(sample("w")).await.unwrap();
    drop(store);
    server.kill();
    server.start_again();
    server.command(&["DEL", "{ta}:due:default"]);
    server.command(&["SET", "{ta}:due:default", "something"]);
    let store = RedisStore::connect(server.options()).await.unwrap();
    let Err(StoreError::Unusable { .. }) = store.create(sample("other")).await else { panic!("not noticed") };
    server.kill();
    let Err(error) = RedisStore::connect(server.options()).await else { panic!("nobody is there") };
    assert!(error.is_outage(), "{error}");
}

#[tokio::test]
async fn fences_grow_even_if_the_store_was_lost() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    store.create(sample("w")).await.unwrap();
    let before = claim(&store).await.remove(0);
    let granted = store.now().await.unwrap();
    server.command(&["FLUSHALL"]);
    // Tokens follow the clock, by the millisecond: nobody loses a store and fills it again in less.
    while store.now().await.unwrap() <= granted {}
    let Err(StoreError::Halted { .. }) = store.create(sample("w")).await else { panic!("an emptied store took an order") };
    // Begun anew, by whoever connects next.
    let store = RedisStore::connect(server.options()).await.unwrap();
    store.create(sample("w")).await.unwrap();
    let after = claim(&store).await.remove(0);
    assert!(after.fence > before.fence, "{:?} {:?}", before.fence, after.fence);
    let stale = Advance { commits: vec![commit(&id("w"), before.fence, 1, FIRST, Next::Keep)], ..Advance::default() };
    assert_eq!(store.advance(&stale).await.unwrap().commits, [Committed::Fenced]);
}

#[tokio::test]
async fn the_bell_and_the_events_are_heard_again_after_a_restart() {
    let mut server = PrivateRedis::start();
    let store = Arc::new(RedisStore::connect(server.options()).await.unwrap());
    let waits = {
        let store = store.clone();
        tokio::spawn(async move { store.wait_for_bell(&[Queue::DEFAULT], LONG).await })
    };
    while !server.command(&["CLIENT", "LIST"]).contains("cmd=blpop") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.kill();
    let Err(error) = waits.await.unwrap() else { panic!("a dead Redis rang") };
    assert!(error.is_outage(), "{error}");
    server.start_again();
    let start = loop {
        if let Ok(start) = store.events_end().await {
            break start;
        }
    };
    let rung = async {
        loop {
            match store.wait_for_bell(&[Queue::DEFAULT], LONG).await {
                Ok(_) => return,
                Err(error) => assert!(error.is_outage(), "{error}"),
            }
        }
    };
    let told = store.events(Some(&start), LONG);
    let ((), told, created) = tokio::join!(rung, told, store.create(sample("w")));
    assert_eq!((told.unwrap().len(), created.unwrap()), (1, Created::New));
}

#[tokio::test]
async fn a_ring_that_nobody_here_waits_for_goes_to_who_does() {
    let server = PrivateRedis::start();
    let (leaves, stays) =
        (RedisStore::connect(server.options()).await.unwrap(), RedisStore::connect(server.options()).await.unwrap());
    // Its read goes on in the background, and is first in the queue.
    leaves.wait_for_bell(&[Queue::DEFAULT], Duration::from_millis(1)).await.unwrap();
    while !server.command(&["CLIENT", "LIST"]).contains("cmd=blpop") {
        leaves.wait_for_bell(&[Queue::DEFAULT], Duration::from_millis(1)).await.unwrap();
    }
    let waits = async { tokio::time::timeout(LONG, stays.wait_for_bell(&[Queue::DEFAULT], LONG)).await };
    let queue = Queue::DEFAULT;
    let (waited, rang) = tokio::join!(waits, stays.ring(&queue));
    rang.unwrap();
    waited.unwrap().unwrap();
}

#[tokio::test]
async fn what_another_release_keeps_in_another_form_is_left_alone() {
    let server = PrivateRedis::start();
    drop(RedisStore::connect(server.options()).await.unwrap());
    for change in [["HSET", "{ta}:store", "layout", "2"], ["HDEL", "{ta}:store", "layout", "none"]] {
        server.command(&change);
        let before = server.command(&["HGETALL", "{ta}:store"]);
        let Err(StoreError::Unusable { remedy, source, .. }) = RedisStore::connect(server.options()).await else { panic!("{change:?}") };
        assert!(remedy.contains("a Redis without `{ta}:store`") && source.to_string().contains("another release"), "{remedy}: {source}");
        assert_eq!(server.command(&["HGETALL", "{ta}:store"]), before);
    }
}

#[tokio::test]
async fn who_reads_what_happened_comes_past_any_number_of_workflows_that_were_swept() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    // More writes than are read at once, each of its own.
    for number in 0..100 {
        store.create(sample(&format!("w{number}"))).await.unwrap();
    }
    let ends = |claimed: &Claimed| commit(&claimed.document.id, claimed.fence, 1, FIRST, Next::End { keep: Duration::ZERO });
    let commits = claim(&store).await.iter().map(ends).collect();
    until_answered(&store, &Advance { commits, ..Advance::default() }).await;
    while store.sweep().await.unwrap() > 0 {}
    store.create(sample("alive")).await.unwrap();
    let told = store.events(Some("0-0"), Duration::ZERO).await.unwrap();
    assert_eq!(told.iter().map(|event| event.workflow.as_str()).collect::<Vec<_>>(), ["alive"]);
}

/// Writes another number of entries into a head. In quotes, as all words that have spaces.
const PATCH_SEQ: &str = "\"local head = redis.call('HGET', '{ta}:heads', ARGV[1]) \
    return redis.call('HSET', '{ta}:heads', ARGV[1], ARGV[2] .. string.sub(head, 5))\"";

#[tokio::test]
async fn a_sweep_keeps_nobody_waiting_for_long_journals() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    // Twelve times 1,000 entries and the first one: more than go at once, and fewer than go twice.
    const WORKFLOWS: usize = 12;
    for number in 0..WORKFLOWS {
        store.create(sample(&format!("w{number}"))).await.unwrap();
    }
    let ends = |claimed: &Claimed| {
        let commit = commit(&claimed.document.id, claimed.fence, 1, FIRST, Next::End { keep: Duration::ZERO });
        Commit { entries: vec![commit.entries[0].clone(); 1_000], status: Status::Succeeded, ..commit }
    };
    let commits = claim(&store).await.iter().map(ends).collect();
    until_answered(&store, &Advance { commits, ..Advance::default() }).await;
    let first = store.sweep().await.unwrap();
    let rest = store.sweep().await.unwrap();
    assert_eq!((first, rest), (10, 2));
    // A head that lies about its journal, and an open one whose name is still on the list of those to be swept.
    for (name, lie) in [("many", "\"\\xff\\xff\\xff\\xff\""), ("few", "\"\\x00\\x00\\x00\\x00\"")] {
        store.create(sample(name)).await.unwrap();
        let claimed = claim(&store).await.remove(0);
        until_answered(&store, &Advance { commits: vec![ends(&claimed)], ..Advance::default() }).await;
        let patched = server.command(&["EVAL", PATCH_SEQ, "0", name, lie]);
        assert_eq!(patched, ":0\r\n");
        assert_eq!(store.sweep().await.unwrap(), 1, "{name}");
        assert_eq!(server.command(&["EXISTS", "{ta}:journal"]), ":0\r\n", "{name}");
    }
    store.create(sample("open")).await.unwrap();
    server.command(&["ZADD", "{ta}:expiry", "1", "open"]);
    assert_eq!(store.sweep().await.unwrap(), 1);
    assert_eq!(claim(&store).await.len(), 1, "it is there, and due");
    server.command(&["DEL", "{ta}:heads", "{ta}:documents", "{ta}:journal"]);
    for key in ["heads", "documents", "journal", "states", "expiry", "idx:ended"] {
        assert_eq!(server.command(&["EXISTS", &format!("{{ta}}:{key}")]), ":0\r\n", "{key}");
    }
}

#[tokio::test]
async fn what_another_release_keeps_is_not_accepted_either() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    let remembered = HighWater::new("daemon".to_owned());
    let remembered = remembered.after(&store.compare(&remembered, "tester").await.unwrap());
    // A backup of that release: it knows no revision of this one.
    server.command(&["HSET", "{ta}:store", "layout", "2"]);
    server.command(&["DEL", "{ta}:revision:4"]);
    let Err(StoreError::Halted { .. }) = store.create(sample("w")).await else { panic!("it took an order") };
    assert!(store.compare(&remembered, "tester").await.unwrap().halt.is_some());
    let Err(error) = store.accept(&remembered, "tester").await else { panic!("it was accepted") };
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("another release"), "{error}");
    assert_eq!(server.command(&["HGET", "{ta}:store", "layout"]), "$1\r\n2\r\n");
}
