//! What somebody else has written to our keys: one bad workflow is set aside, and no other is held up by it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::sample;
use crate::store::private_redis::PrivateRedis;
use crate::store::redis::RedisStore;
use crate::store::{
    Advance, Advanced, Claim, Claimed, Commit, Committed, Digest, Fence, Next, Query, Queue, Resource, Scope, Status, Store, StoredEntry, StoredSignal, Take, WorkflowId,
};

const LONG: Duration = Duration::from_secs(600);

fn claim() -> Advance {
    let claim = Claim { max: 100, lease: LONG, worker: "w".to_owned(), queues: vec![Queue::DEFAULT] };
    Advance { lease: LONG, claim: Some(claim), ..Advance::default() }
}

fn commit(id: &WorkflowId, fence: Fence, next: Next) -> Commit {
    Commit {
        id: id.clone(),
        fence,
        expected: 1,
        entries: vec![StoredEntry { digest: Digest([2; 32]), body: "{}".to_owned() }],
        state: None,
        status: Status::Waiting,
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

/// Those that can be worked on.
fn sound(advanced: &Advanced) -> BTreeSet<String> {
    advanced.claimed.iter().filter(|claimed| claimed.damage.is_none()).map(|claimed| claimed.document.id.to_string()).collect()
}

fn names(good: &[&str]) -> BTreeSet<String> {
    good.iter().map(|&name| name.to_owned()).collect()
}

const GOOD: [&str; 2] = ["a-good", "z-good"];

/// A store with good workflows and a bad one, which `poison` (one command a line) has made bad.
async fn poisoned(poison: &[&[&str]]) -> (PrivateRedis, RedisStore) {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    for name in [GOOD[0], "bad", GOOD[1]] {
        store.create(sample(name)).await.unwrap();
    }
    for command in poison {
        let answer = server.command(command);
        assert!(!answer.starts_with('-'), "{command:?}: {answer}");
    }
    (server, store)
}

/// Writes bytes into a head, from that place on. In quotes, as all words that have spaces.
const PATCH: &str = "\"local head = redis.call('HGET', '{ta}:heads', ARGV[1]) \
    return redis.call('HSET', '{ta}:heads', ARGV[1], string.sub(head, 1, ARGV[2] - 1) .. ARGV[3] .. string.sub(head, ARGV[2] + #ARGV[3]))\"";
/// Takes the name of the queue out of a head.
const UNQUEUE: &str = "\"local without = string.gsub(redis.call('HGET', '{ta}:heads', ARGV[1]), 'default', '') \
    return redis.call('HSET', '{ta}:heads', ARGV[1], without)\"";
/// Writes the head of one workflow under another's name.
const COPY: &str = "\"return redis.call('HSET', '{ta}:heads', ARGV[2], redis.call('HGET', '{ta}:heads', ARGV[1]))\"";

#[tokio::test]
async fn a_workflow_that_is_garbage_holds_up_no_claim_of_the_others() {
    const HEADS: &str = "{ta}:heads";
    const INBOX: &str = "{ta}:inbox:bad";
    // Where its fields stand: `layout.rs`.
    let at = |place: &'static str, bytes: &'static str| ["EVAL", PATCH, "0", "bad", place, bytes];
    let (seq_huge, status, flags) = (at("1", r#""\xff\xff\xff\xff""#), at("8", r#""\xc8""#), at("5", r#""\x01""#));
    let updated = at("9", r#""\xff\xff\xff\xff\xff\xff\xff\xff""#);
    let digest = at("17", "another");
    let poisons: [(&str, &[&[&str]]); 16] = [
        ("its head is a text", &[&["HSET", HEADS, "bad", "garbage"]]),
        ("its head is a long text", &[&["HSET", HEADS, "bad", "\"garbage that is longer than all the numbers in front\""]]),
        ("its head is a longer text", &[&["HSET", HEADS, "bad", "\"garbage that is longer than all that has a place of its own in front, and ends without a zero byte\""]]),
        ("its head is empty", &[&["HSET", HEADS, "bad", "\"\""]]),
        ("its head is gone", &[&["HDEL", HEADS, "bad"]]),
        ("its document is gone", &[&["HDEL", "{ta}:documents", "bad"]]),
        ("its document is garbage", &[&["HSET", "{ta}:documents", "bad", "garbage"]]),
        ("its seq is huge", &[&seq_huge]),
        ("its status is none", &[&status]),
        ("its queue is none", &[&["EVAL", UNQUEUE, "0", "bad"]]),
        ("its journal is no entry", &[&["HSET", "{ta}:journal", "bad:1", "garbage"]]),
        ("its journal is gone", &[&["HDEL", "{ta}:journal", "bad:1"]]),
        ("its inbox is no list", &[&flags, &["SET", INBOX, "garbage"]]),
        ("its updated is no time", &[&updated]),
        ("its digest is another", &[&digest]),
        ("its place among the open ones is gone", &[&["ZREM", "{ta}:idx:open", "bad"]]),
    ];
    for (what, poison) in poisons {
        let (server, store) = poisoned(poison).await;
        let first = store.advance(&claim()).await.unwrap_or_else(|error| panic!("{what}: {error}: {:?}", std::error::Error::source(&error)));
        assert!(sound(&first).is_superset(&names(&GOOD)), "{what}: {first:#?}");
        // The others go on, in one call with whatever becomes of the bad one.
        let commits = first.claimed.iter().map(|claimed| commit(&claimed.document.id, claimed.fence, Next::At(first.now))).collect();
        let second = store.advance(&Advance { commits, ..claim() }).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        for (claimed, committed) in first.claimed.iter().zip(&second.commits) {
            let good = GOOD.contains(&claimed.document.id.as_str());
            assert!(!good || matches!(committed, Committed::Done { .. }), "{what}: {committed:?}");
        }
        assert!(sound(&second).is_superset(&names(&GOOD)), "{what}: {second:#?}");
        // People still see the others, and that there is something wrong.
        let listed: BTreeSet<_> = store.list(&Query { limit: 10, ..Query::default() }).await.unwrap().into_iter().map(|one| one.id.to_string()).collect();
        assert!(listed.is_superset(&names(&GOOD)), "{what}: {listed:?}");
        assert!(!store.counts().await.unwrap().is_empty(), "{what}");
        // And of the bad one what there is: an entry that can't be read is one that nothing seals.
        let journal = store.journal(&"bad".parse().unwrap(), 1, 10).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(what != "its journal is no entry" || journal.len() == 1 && journal[0].digest == Digest::NONE, "{what}: {journal:?}");
        drop(server);
    }
}

#[tokio::test]
async fn garbage_in_an_inbox_is_handed_out_and_hurts_nobody() {
    let (server, store) = poisoned(&[]).await;
    store.signal(&"bad".parse().unwrap(), StoredSignal { body: "{\"first\":1}".to_owned() }).await.unwrap();
    server.command(&["RPUSH", "{ta}:inbox:bad", "garbage", "\"\\xff\\xfe\"", "[[[[[[[["]);
    let claimed = store.advance(&claim()).await.unwrap();
    assert_eq!(sound(&claimed), names(&["a-good", "bad", "z-good"]));
    let bad = claimed.claimed.iter().find(|claimed| claimed.document.id.as_str() == "bad").unwrap();
    assert!(bad.signals.iter().any(|signal| signal.body == "garbage"), "{:?}", bad.signals);
    assert_eq!(bad.signals.len(), 4, "each has its place, or another one would be taken for read");
    // What comes with the answer to a commit, too.
    let keeps = vec![commit(&bad.document.id, bad.fence, Next::Keep)];
    let kept = store.advance(&Advance { lease: LONG, commits: keeps, ..Advance::default() }).await.unwrap();
    assert!(matches!(&kept.commits[0], Committed::Done { signals, .. } if signals.len() == 4), "{kept:?}");
    // A signal to it, and one to somebody else.
    for name in ["bad", "a-good"] {
        store.signal(&name.parse().unwrap(), StoredSignal { body: "{}".to_owned() }).await.unwrap();
    }
    drop(server);
}

#[tokio::test]
async fn an_id_that_can_be_none_is_never_handed_out_and_holds_up_nothing() {
    let (server, store) =
        poisoned(&[&["ZADD", "{ta}:due:default", "1", "no/id"], &["EVAL", COPY, "0", "bad", "no/id"], &["ZADD", "{ta}:lease", "1", "../x"], &["ZADD", "{ta}:idx:open", "1", "no/id"]]).await;
    for _ in 0..2 {
        let claimed = store.advance(&claim()).await.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
        let back = claimed.claimed.iter().map(|claimed| (claimed.document.id.clone(), claimed.fence)).collect();
        assert!(sound(&claimed).is_superset(&names(&GOOD)), "{claimed:#?}");
        store.advance(&Advance { hand_back: back, ..Advance::default() }).await.unwrap();
    }
    let listed = store.list(&Query { limit: 10, ..Query::default() }).await.unwrap();
    assert_eq!(listed.len(), 3, "{listed:#?}");
    drop(server);
}

#[tokio::test]
async fn what_has_ended_is_not_claimed_again_although_somebody_has_made_it_due() {
    let (server, store) = poisoned(&[]).await;
    let claimed = store.advance(&claim()).await.unwrap();
    let ends = |claimed: &Claimed| Commit { status: Status::Succeeded, ..commit(&claimed.document.id, claimed.fence, Next::End { keep: LONG }) };
    store.advance(&Advance { commits: claimed.claimed.iter().map(ends).collect(), ..Advance::default() }).await.unwrap();
    server.command(&["ZADD", "{ta}:due:default", "1", "bad"]);
    server.command(&["ZADD", "{ta}:lease", "1", "a-good"]);
    assert_eq!(store.advance(&claim()).await.unwrap().claimed, []);
    for key in ["{ta}:due:default", "{ta}:lease"] {
        assert_eq!(server.command(&["EXISTS", key]), ":0\r\n", "{key}: it is not looked at again and again");
    }
    let ended = store.load(&"bad".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((ended.status, ended.seq, ended.lease), (Status::Succeeded, 2, None));
}

#[tokio::test]
async fn one_that_parks_on_an_inbox_that_is_none_is_set_aside_and_not_forgotten() {
    let (server, store) = poisoned(&[]).await;
    let claimed = store.advance(&claim()).await.unwrap();
    let bad = claimed.claimed.iter().find(|claimed| claimed.document.id.as_str() == "bad").unwrap();
    store.signal(&"bad".parse().unwrap(), StoredSignal { body: "{}".to_owned() }).await.unwrap();
    server.command(&["SET", "{ta}:inbox:bad", "garbage"]);
    let parks = vec![commit(&bad.document.id, bad.fence, Next::Signal)];
    let parked = store.advance(&Advance { lease: LONG, commits: parks, ..Advance::default() }).await.unwrap().commits.remove(0);
    assert!(matches!(parked, Committed::Conflict { .. }), "{parked:?}");
    assert_ne!(server.command(&["ZSCORE", "{ta}:lease", "bad"]), "$-1\r\n", "its lease is left to expire");
    server.command(&["ZADD", "{ta}:lease", "1", "bad"]);
    assert_eq!(store.advance(&claim()).await.unwrap().claimed, []);
    assert_eq!(store.load(&"bad".parse().unwrap()).await.unwrap().unwrap().status, Status::Quarantined);
}

#[tokio::test]
async fn one_that_is_due_in_two_queues_is_claimed_once_by_whoever_serves_its_own() {
    let (_server, store) = poisoned(&[&["ZADD", "{ta}:due:bmc", "1", "bad"]]).await;
    let served = |queues: &[Queue]| Claim { queues: queues.to_vec(), ..claim().claim.unwrap() };
    let bmc: Queue = "bmc".parse().unwrap();
    // It waits in another one.
    let elsewhere = store.advance(&Advance { claim: Some(served(std::slice::from_ref(&bmc))), ..claim() }).await.unwrap();
    assert_eq!(elsewhere.claimed, []);
    assert_eq!(store.load(&"bad".parse().unwrap()).await.unwrap().unwrap().lease, None);
    let (server, store) = poisoned(&[&["ZADD", "{ta}:due:bmc", "1", "bad"]]).await;
    let claimed = store.advance(&Advance { claim: Some(served(&[bmc, Queue::DEFAULT])), ..claim() }).await.unwrap();
    assert_eq!(claimed.claimed.len(), 3, "{claimed:#?}");
    assert_eq!(sound(&claimed), names(&["a-good", "bad", "z-good"]));
    drop(server);
}

#[tokio::test]
async fn one_event_that_can_not_be_read_holds_up_no_other() {
    let (server, store) = poisoned(&[]).await;
    let start = store.events_end().await.unwrap();
    server.command(&["XADD", "{ta}:events", "*", "e", "garbage"]);
    store.create(sample("one")).await.unwrap();
    server.command(&["HSET", "{ta}:journal", "one:1", "garbage"]);
    store.create(sample("two")).await.unwrap();
    server.command(&["HSET", "{ta}:documents", "two", "garbage"]);
    store.create(sample("three")).await.unwrap();
    let told = store.events(Some(&start), LONG).await.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
    let last = told.last().unwrap();
    assert_eq!(last.workflow.as_str(), "three", "{told:#?}");
    // And the reader goes on after it.
    store.create(sample("four")).await.unwrap();
    assert_eq!(store.events(Some(&last.cursor), LONG).await.unwrap().last().unwrap().workflow.as_str(), "four");
}

#[tokio::test]
async fn who_holds_what_can_be_read_beside_garbage() {
    let (server, store) = poisoned(&[
        &["HSET", "{ta}:locks", "node/n1", "a-good"],
        &["HSET", "{ta}:locks", "node/n2", "no/id"],
        &["SADD", "{ta}:budgets", "nodes-out", "garbage"],
        &["HSET", "{ta}:budget:nodes-out", "n1", "a-good"],
        &["SET", "{ta}:budget:garbage", "garbage"],
    ])
    .await;
    let holdings = store.holdings().await.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
    let readable = holdings.iter().filter(|holding| holding.holder.as_str() == "a-good").count();
    assert_eq!(readable, 2, "{holdings:#?}");
    drop(server);
}

#[tokio::test]
async fn what_is_held_by_no_workflow_refuses_who_wants_it_and_nobody_else() {
    let (server, store) = poisoned(&[&["HSET", "{ta}:budget:nodes-out", "n1", "no/id", "n2", "\"\\xff fan, ask bob\""], &["SADD", "{ta}:budgets", "nodes-out"]]).await;
    let claimed = store.advance(&claim()).await.unwrap();
    let takes = |member: &str| vec![Take::new(Resource::Budget { name: "nodes-out".to_owned(), member: member.to_owned() }, 2)];
    let commits = claimed.claimed.iter().map(|claimed| {
        let take = match claimed.document.id.as_str() {
            "bad" => takes("n1"),
            "a-good" => takes("n3"),
            _ => Vec::new(),
        };
        Commit { take, ..commit(&claimed.document.id, claimed.fence, Next::Keep) }
    });
    let advanced = store.advance(&Advance { commits: commits.collect(), ..claim() }).await.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
    for (claimed, committed) in claimed.claimed.iter().zip(&advanced.commits) {
        match claimed.document.id.as_str() {
            // There is no place left, and nobody to name who has it.
            "bad" | "a-good" => assert!(matches!(committed, Committed::Busy { holders, .. } if holders.is_empty()), "{committed:?}"),
            _ => assert!(matches!(committed, Committed::Done { .. }), "{committed:?}"),
        }
    }
    assert!(store.release_budget("nodes-out", "n1").await.unwrap(), "and it can be freed");
    drop(server);
}

#[tokio::test]
async fn what_has_ended_is_listed_whatever_became_of_what_is_kept_of_it() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    for name in ["good", "state", "document"] {
        store.create(sample(name)).await.unwrap();
    }
    let claimed = store.advance(&claim()).await.unwrap().claimed;
    let ends = |one: &Claimed| Commit {
        status: Status::Succeeded,
        ..super::faults::commit(&one.document.id, one.fence, 1, super::FIRST, Next::End { keep: Duration::from_secs(3_600) })
    };
    let commits = claimed.iter().map(ends).collect();
    store.advance(&Advance { commits, ..Advance::default() }).await.unwrap();
    server.command(&["HSET", "{ta}:states", "state", "\"\\xff\""]);
    server.command(&["HDEL", "{ta}:documents", "document"]);
    let query = Query { scope: Scope::Ended, limit: 10, ..Query::default() };
    let listed = store.list(&query).await.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
    let mut names: Vec<_> = listed.iter().map(|one| one.id.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["document", "good", "state"], "whoever archives them has to see them");
}
