//! Creations that go together: each caller hears of its own, whatever becomes of the others.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::task::JoinHandle;

use super::faults::claim;
use super::sample;
use crate::clock::Timestamp;
use crate::store::private_redis::PrivateRedis;
use crate::store::redis::{RedisOptions, RedisStore};
use crate::store::{COMMITS_MAX, Created, Document, NewWorkflow, Query, Status, Store, StoreError, Trouble};

/// Longer than it takes to send a call, on a busy machine too.
const SENT_BY_THEN: Duration = Duration::from_millis(300);

async fn create_all(store: &RedisStore, names: &[String]) -> Vec<Result<Created, StoreError>> {
    join_all(names.iter().map(|name| store.create(sample(name)))).await
}

fn names(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|number| format!("w{number}")).collect()
}

async fn open(store: &RedisStore) -> u64 {
    store.counts().await.unwrap().iter().filter(|(status, _)| *status == Status::Runnable).map(|(_, count)| count).sum()
}

/// Calls of scripts so far.
fn calls(server: &PrivateRedis) -> u64 {
    let told = server.command(&["INFO", "commandstats"]);
    let line = told.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap();
    line.split(',').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn each_caller_hears_of_its_own_and_few_calls_carry_them_all() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    // Of every third there is one already.
    let all = names(0, 3 * COMMITS_MAX);
    let there: Vec<String> = all.iter().step_by(3).cloned().collect();
    assert!(create_all(&store, &there).await.into_iter().all(|made| made.unwrap() == Created::New));
    let before = calls(&server);
    for (place, made) in create_all(&store, &all).await.into_iter().enumerate() {
        let expected = if place % 3 == 0 { Created::Existing } else { Created::New };
        assert_eq!(made.unwrap(), expected, "{}", all[place]);
    }
    // No call carries more than `COMMITS_MAX`; the first may go with few.
    let took = calls(&server) - before;
    assert!((3..=10).contains(&took), "{took} calls");
    assert_eq!(open(&store).await, all.len() as u64);
}

#[tokio::test]
async fn the_same_one_asked_for_at_the_same_time_is_new_to_one_caller() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    let asked = join_all((0..50).map(|_| store.create(sample("w")))).await;
    let new = asked.into_iter().filter(|made| matches!(made, Ok(Created::New))).count();
    assert_eq!((new, open(&store).await), (1, 1));
}

#[tokio::test]
async fn two_of_one_name_in_one_call_are_created_once() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    // From then on its clock is known, and what is all alike is written as it was sent.
    store.create(sample("first")).await.unwrap();
    let before = calls(&server);
    let (one, another, other) = tokio::join!(store.create(sample("w")), store.create(sample("w")), store.create(sample("x")));
    let mut twice = [one.unwrap(), another.unwrap()];
    twice.sort_by_key(|made| *made == Created::Existing);
    assert_eq!((twice, other.unwrap()), ([Created::New, Created::Existing], Created::New));
    assert_eq!((calls(&server) - before, open(&store).await), (1, 3));
    assert_eq!(claim(&store).await.len(), 3);
}

/// How it is kept, without when it was created and without its own name.
async fn kept(store: &RedisStore, name: &str) -> (String, Timestamp) {
    let document = store.load(&name.parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((document.created, document.due.is_some()), (document.updated, true));
    let created = document.created;
    let same = Document { id: "w".parse().unwrap(), created: Timestamp::default(), updated: Timestamp::default(), due: None, ..document };
    (format!("{same:?} {:?}", store.journal(&name.parse().unwrap(), 1, 10).await.unwrap()), created)
}

#[tokio::test]
async fn what_is_kept_as_it_was_sent_is_what_the_script_would_have_made() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    let began = store.events_end().await.unwrap();
    store.create(sample("made")).await.unwrap();
    let (made, _) = kept(&store, "made").await;
    // By its clock one can see who has written it. One that is too far off is not taken for the store's.
    const SOME: i64 = 700;
    const HOUR: i64 = 3_600_000;
    for (name, off, is_taken) in [("behind", -SOME, true), ("ahead", SOME, true), ("far-behind", -HOUR, false), ("far-ahead", HOUR, false)] {
        let now = store.now().await.unwrap();
        let said = Timestamp::from_millis(now.millis() + off);
        store.hear(said);
        store.create(sample(name)).await.unwrap();
        let after = store.now().await.unwrap();
        let (sent, created) = kept(&store, name).await;
        assert_eq!(sent, made, "{name}");
        let (from, to) = if is_taken { (said, said + after.since(now)) } else { (now, after) };
        assert!((from..=to).contains(&created), "{name}: {created:?} is not between {from:?} and {to:?}");
        // Whatever it says: due now.
        assert!(claim(&store).await.iter().any(|claimed| claimed.document.id.as_str() == name), "{name}");
    }
    let told = store.events(Some(&began), Duration::ZERO).await.unwrap();
    let told: Vec<_> = told.iter().map(|event| (event.workflow.as_str(), event.seq, event.status, event.headline.as_str())).collect();
    let expected = ["made", "behind", "ahead", "far-behind", "far-ahead"].map(|name| (name, 1, Status::Runnable, sample(name).headline));
    assert_eq!(told, expected.iter().map(|(name, seq, status, headline)| (*name, *seq, *status, headline.as_str())).collect::<Vec<_>>());
    assert_eq!(open(&store).await, 5);
    assert_eq!(store.list(&Query { limit: 10, ..Query::default() }).await.unwrap().len(), 5);
}

#[tokio::test]
async fn one_that_is_due_later_or_somebodys_child_is_so_also_among_others() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    store.create(sample("parent")).await.unwrap();
    let later = store.now().await.unwrap() + Duration::from_secs(60);
    let child = NewWorkflow { parent: Some("parent".parse().unwrap()), ..sample("child") };
    let waits = NewWorkflow { due: Some(later), ..sample("waits") };
    let made = tokio::join!(store.create(sample("first")), store.create(child), store.create(waits), store.create(sample("last")));
    for made in [made.0, made.1, made.2, made.3] {
        assert_eq!(made.unwrap(), Created::New);
    }
    let mut due: Vec<_> = claim(&store).await.into_iter().map(|claimed| claimed.document.id.to_string()).collect();
    due.sort();
    assert_eq!(due, ["child", "first", "last", "parent"]);
    let waits = store.load(&"waits".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((waits.status, waits.due), (Status::Waiting, Some(later)));
    let children = store.list(&Query { parent: Some("parent".parse().unwrap()), limit: 10, ..Query::default() }).await.unwrap();
    assert_eq!(children.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["child"]);
}

#[tokio::test]
async fn a_lost_answer_is_an_outage_to_all_and_asking_again_creates_nothing_twice() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(RedisOptions { reply_timeout: SENT_BY_THEN, ..server.options() }).await.unwrap();
    let all = names(0, 20);
    server.pause();
    for made in create_all(&store, &all).await {
        let Err(error) = made else { panic!("a stopped Redis answered") };
        assert_eq!(error.trouble(), Trouble::Silent, "{error}");
    }
    server.resume();
    for name in &all {
        // Whether it was carried out nobody knows; it is there once.
        while let Err(error) = store.create(sample(name)).await {
            assert!(error.is_outage(), "{error}");
        }
    }
    assert_eq!(open(&store).await, all.len() as u64);
    assert_eq!(store.journal(&"w0".parse().unwrap(), 1, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_nobody_along() {
    let server = PrivateRedis::start();
    let store = Arc::new(RedisStore::connect(server.options()).await.unwrap());
    let ask = |name: &'static str| -> JoinHandle<Result<Created, StoreError>> {
        let store = store.clone();
        tokio::spawn(async move { store.create(sample(name)).await })
    };
    server.pause();
    let first = ask("first");
    tokio::time::sleep(SENT_BY_THEN).await;
    let (gone, stays) = (ask("gone"), ask("stays"));
    tokio::time::sleep(SENT_BY_THEN).await;
    // The one whose call is outstanding, and one that waits for the next.
    first.abort();
    gone.abort();
    assert!(first.await.unwrap_err().is_cancelled() && gone.await.unwrap_err().is_cancelled());
    server.resume();
    assert_eq!(stays.await.unwrap().unwrap(), Created::New);
    let is_there = async |name: &str| store.load(&name.parse().unwrap()).await.unwrap().is_some();
    assert_eq!((is_there("first").await, is_there("gone").await), (true, false));
    assert_eq!(store.create(sample("gone")).await.unwrap(), Created::New);
}

#[tokio::test]
async fn an_error_reaches_all() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    let all = names(0, 2 * COMMITS_MAX);
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    for made in create_all(&store, &all).await {
        let Err(error) = made else { panic!("not refused") };
        assert_eq!(error.trouble(), Trouble::MemoryFull, "{error}");
    }
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(open(&store).await, 0, "a refused call writes nothing");
    assert!(create_all(&store, &all).await.into_iter().all(|made| made.unwrap() == Created::New));
}

#[tokio::test]
async fn what_is_wrong_with_one_is_told_to_that_one_alone() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    server.command(&["SET", "{ta}:children:parent", "garbage"]);
    let child = NewWorkflow { parent: Some("parent".parse().unwrap()), ..sample("child") };
    let (before, made, after) = tokio::join!(store.create(sample("before")), store.create(child), store.create(sample("after")));
    assert_eq!((before.unwrap(), after.unwrap()), (Created::New, Created::New));
    let Err(StoreError::Unusable { .. }) = made else { panic!("{made:?}") };
    assert_eq!(store.load(&"child".parse().unwrap()).await.unwrap(), None, "wholly or not at all");
    assert_eq!(open(&store).await, 2);
}

#[test]
fn a_runtime_that_ends_leaves_nobody_waiting() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = PrivateRedis::start();
    let (first, second) = (runtime(), runtime());
    let store = Arc::new(first.block_on(RedisStore::connect(server.options())).unwrap());
    server.pause();
    // Begun where the runtime ends, and waited for elsewhere.
    let begins = store.clone();
    let asked = first.spawn(async move { begins.create(sample("w")).await });
    first.block_on(async { tokio::time::sleep(SENT_BY_THEN).await });
    let other = store.clone();
    let waits = std::thread::spawn(move || second.block_on(other.create(sample("other"))));
    std::thread::sleep(SENT_BY_THEN);
    drop(first);
    drop(asked);
    let told = waits.join().unwrap();
    assert!(matches!(&told, Err(error) if error.is_outage()), "{told:?}");
    server.resume();
}
