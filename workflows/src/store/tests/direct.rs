//! Commits without a script: that they go so, and that nothing goes so which somebody else has changed.

use std::time::Duration;

use super::faults::{claim, commit, id};
use super::{FIRST, sample};
use crate::store::high_water::HighWater;
use crate::store::private_redis::PrivateRedis;
use crate::store::redis::{RedisOptions, RedisStore};
use crate::store::{
    Advance, Claim, Claimed, Commit, Committed, Digest, Next, Queue, Resource, Signalled, Status, Store, StoreError, StoredSignal, Take,
};

const LONG: Duration = Duration::from_secs(600);

/// How often Redis has carried out such a command, also for nothing.
fn calls(server: &PrivateRedis, command: &str) -> u64 {
    let stats = server.command(&["INFO", "commandstats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|line| line.split_once(',')).map_or(0, |(calls, _)| calls.parse().unwrap())
}

/// A workflow in hand, as its holder sees it.
struct Hand<'a> {
    store: &'a RedisStore,
    claimed: Claimed,
    seq: u64,
    head: Digest,
}

impl<'a> Hand<'a> {
    fn of(store: &'a RedisStore, claimed: Claimed) -> Hand<'a> {
        let (seq, head) = (claimed.document.seq, claimed.document.head);
        Hand { store, claimed, seq, head }
    }

    fn next(&self, next: Next) -> Commit {
        Commit { state: None, ..commit(&self.claimed.document.id, self.claimed.fence, self.seq, self.head, next) }
    }

    async fn send(&mut self, commit: Commit) -> Result<Committed, StoreError> {
        let (count, newest) = (commit.entries.len() as u64, commit.entries.last().unwrap().digest);
        let advance = Advance { lease: LONG, commits: vec![commit], ..Advance::default() };
        let committed = self.store.advance(&advance).await?.commits.remove(0);
        if matches!(committed, Committed::Done { .. }) {
            (self.seq, self.head) = (self.seq + count, newest);
        }
        Ok(committed)
    }

    async fn go_on(&mut self) -> Committed {
        self.send(self.next(Next::Keep)).await.unwrap()
    }

    /// The first ones tell a store and its connections what is watched.
    async fn goes_directly_soon(&mut self, server: &PrivateRedis) {
        let (before, mut tries) = (calls(server, "exec"), 0);
        // (A new connection tries one that is empty.)
        while calls(server, "exec") < before + 2 {
            tries += 1;
            assert!(tries < 6, "all of it goes by scripts");
            self.go_on().await;
        }
        self.goes_directly(server).await;
    }

    /// Goes on without a script.
    async fn goes_directly(&mut self, server: &PrivateRedis) {
        let before = (calls(server, "exec"), calls(server, "evalsha"));
        let committed = self.go_on().await;
        assert!(matches!(&committed, Committed::Done { lease_until: Some(_), signals } if signals.is_empty()), "{committed:?}");
        assert_eq!((calls(server, "exec"), calls(server, "evalsha")), (before.0 + 1, before.1));
    }
}

/// A Redis, a store, and workflows in its hand that go on without a script.
async fn in_hand<'a>(server: &PrivateRedis, store: &'a RedisStore, names: &[&str]) -> Vec<Hand<'a>> {
    for name in names {
        store.create(sample(name)).await.unwrap();
    }
    let mut hands: Vec<_> = claim(store).await.into_iter().map(|claimed| Hand::of(store, claimed)).collect();
    assert_eq!(hands.len(), names.len());
    for hand in &mut hands {
        hand.goes_directly_soon(server).await;
    }
    hands
}

async fn start() -> (PrivateRedis, RedisStore) {
    start_with(Duration::from_secs(2)).await
}

/// With a store that waits no longer for an answer.
async fn start_with(reply_timeout: Duration) -> (PrivateRedis, RedisStore) {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(RedisOptions { reply_timeout, ..server.options() }).await.unwrap();
    (server, store)
}

/// With a store that tries no transaction for so long after one was refused.
async fn start_with_pause(refused_pause: Duration) -> (PrivateRedis, RedisStore) {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(RedisOptions { refused_pause, ..server.options() }).await.unwrap();
    (server, store)
}

#[tokio::test]
async fn what_goes_without_a_script_is_kept_as_a_script_would_keep_it() {
    let (server, store) = start().await;
    let began = store.events_end().await.unwrap();
    let mut hand = in_hand(&server, &store, &["w"]).await.remove(0);
    let document = store.load(&id("w")).await.unwrap().unwrap();
    assert_eq!((document.seq, document.head, document.headline.as_str(), document.status), (hand.seq, hand.head, "goes on", Status::Runnable));
    assert!(document.lease.is_some_and(|lease| lease.fence == hand.claimed.fence && lease.worker == "w"));
    let journal = store.journal(&id("w"), 1, 10).await.unwrap();
    assert_eq!((journal.len() as u64, journal[0].digest, journal.last().unwrap().digest), (hand.seq, FIRST, hand.head));
    assert_eq!(store.counts().await.unwrap(), [(Status::Runnable, 1)]);
    let scripts = calls(&server, "evalsha");
    let ends = Commit { status: Status::Succeeded, ..hand.next(Next::End { keep: Duration::ZERO }) };
    assert_eq!(hand.send(ends).await.unwrap(), Committed::Done { lease_until: None, signals: Vec::new() });
    assert_eq!(calls(&server, "evalsha"), scripts);
    assert_eq!(store.counts().await.unwrap(), []);
    let document = store.load(&id("w")).await.unwrap().unwrap();
    assert_eq!((document.seq, document.status, document.lease), (hand.seq, Status::Succeeded, None));
    assert_eq!(store.signal(&id("w"), StoredSignal { body: "{}".to_owned() }).await.unwrap(), Signalled::Ended);
    let told = store.events(Some(&began), Duration::ZERO).await.unwrap();
    assert_eq!(told.iter().map(|event| event.seq).collect::<Vec<_>>(), (1..=hand.seq).collect::<Vec<_>>());
    assert_eq!(store.sweep().await.unwrap(), 1);
    for key in ["heads", "documents", "journal", "holders", "lease", "idx:open", "idx:ended", "expiry"] {
        assert_eq!(server.command(&["EXISTS", &format!("{{ta}}:{key}")]), ":0\r\n", "{key}");
    }
}

#[tokio::test]
async fn a_lease_that_somebody_else_has_taken_over_is_not_committed_under() {
    let (server, store) = start().await;
    let other = RedisStore::connect(server.options()).await.unwrap();
    let mut hands = in_hand(&server, &store, &["lost", "stays"]).await;
    hands.sort_by_key(|hand| hand.claimed.document.id.clone());
    // Its holder is presumed dead.
    server.command(&["ZADD", "{ta}:lease", "1", "lost"]);
    let taken = claim(&other).await.remove(0);
    assert_eq!(taken.document.id, id("lost"));
    assert_eq!(hands[0].go_on().await, Committed::Fenced);
    let mut heir = Hand::of(&other, taken);
    heir.go_on().await;
    assert_eq!(hands[0].go_on().await, Committed::Fenced);
    assert_eq!(store.load(&id("lost")).await.unwrap().unwrap().head, heir.head);
    // A script looks once more at what else is in that hand; then it goes on as before.
    hands[1].goes_directly_soon(&server).await;
}

#[tokio::test]
async fn mail_and_freed_resources_are_not_overwritten() {
    let (server, store) = start().await;
    let other = RedisStore::connect(server.options()).await.unwrap();
    let mut hand = in_hand(&server, &store, &["w"]).await.remove(0);
    let signal = StoredSignal { body: "{\"pause\":1}".to_owned() };
    other.signal(&id("w"), signal.clone()).await.unwrap();
    let Committed::Done { signals, .. } = hand.go_on().await else { panic!("it has its lease") };
    assert_eq!(signals, std::slice::from_ref(&signal));
    // While it is unread its head says so.
    let Committed::Done { signals, .. } = hand.go_on().await else { panic!("it has its lease") };
    assert_eq!(signals, [signal]);
    let read = Commit { consumed: 1, ..hand.next(Next::Keep) };
    hand.send(read).await.unwrap();

    // It waits for a lock that another workflow has, which frees it while this one is in hand: it is due as soon as it parks.
    other.create(sample("has")).await.unwrap();
    let mut has = Hand::of(&other, claim(&other).await.remove(0));
    let lock = Resource::Lock { name: "node:n1".to_owned() };
    let takes = |hand: &Hand<'_>| Commit { take: vec![Take::new(lock.clone(), 1)], ..hand.next(Next::Keep) };
    has.send(takes(&has)).await.unwrap();
    let wants = takes(&hand);
    assert!(matches!(hand.send(wants).await.unwrap(), Committed::Busy { .. }));
    let gives = Commit { give: vec![lock.clone()], ..has.next(Next::Keep) };
    has.send(gives).await.unwrap();
    for _ in 0..3 {
        assert!(matches!(hand.go_on().await, Committed::Done { .. }));
    }
    let parks = hand.next(Next::Signal);
    hand.send(parks).await.unwrap();
    assert_eq!(claim(&store).await[0].document.id, id("w"), "it was woken");
}

#[tokio::test]
async fn what_has_a_lock_goes_by_the_script_and_frees_it_at_its_end() {
    let (server, store) = start().await;
    let mut hand = in_hand(&server, &store, &["w"]).await.remove(0);
    let take = vec![Take::new(Resource::Lock { name: "node:n1".to_owned() }, 1)];
    let takes = Commit { take, ..hand.next(Next::Keep) };
    hand.send(takes).await.unwrap();
    let before = calls(&server, "exec");
    hand.go_on().await;
    let ends = Commit { status: Status::Succeeded, ..hand.next(Next::End { keep: LONG }) };
    hand.send(ends).await.unwrap();
    assert_eq!(calls(&server, "exec"), before);
    assert_eq!(store.holdings().await.unwrap(), []);
}

#[tokio::test]
async fn a_halted_or_emptied_store_takes_nothing_directly_either() {
    let (server, store) = start().await;
    let witness = RedisStore::connect(server.options()).await.unwrap();
    let remembered = HighWater::new("one".to_owned());
    let remembered = remembered.after(&witness.compare(&remembered, "tester").await.unwrap());
    let mut hand = in_hand(&server, &store, &["w"]).await.remove(0);
    let more = HighWater { revision: remembered.revision + 1_000, ..remembered.clone() };
    assert!(witness.compare(&more, "tester").await.unwrap().halt.is_some());
    let next = hand.next(Next::Keep);
    let Err(StoreError::Halted { .. }) = hand.send(next.clone()).await else { panic!("it took a commit") };
    assert_eq!(store.load(&id("w")).await.unwrap().unwrap().seq, hand.seq);
    // A person accepts what is there: no lease granted before stands.
    witness.accept(&remembered, "tester").await.unwrap().unwrap();
    assert_eq!(hand.send(next).await.unwrap(), Committed::Fenced);

    let mut hand = Hand::of(&store, claim(&store).await.remove(0));
    hand.goes_directly_soon(&server).await;
    server.command(&["FLUSHALL"]);
    let next = hand.next(Next::Keep);
    let Err(StoreError::Halted { .. }) = hand.send(next).await else { panic!("an emptied store took a commit") };
    assert_eq!(server.command(&["EXISTS", "{ta}:heads", "{ta}:journal", "{ta}:events"]), ":0\r\n");
}

#[tokio::test]
async fn one_that_is_sent_again_stands_once() {
    let (server, store) = start().await;
    let mut hand = in_hand(&server, &store, &["w"]).await.remove(0);
    let next = hand.next(Next::Keep);
    hand.send(next.clone()).await.unwrap();
    let advance = Advance { lease: LONG, commits: vec![next], ..Advance::default() };
    let committed = store.advance(&advance).await.unwrap().commits.remove(0);
    assert!(matches!(committed, Committed::Done { lease_until: Some(_), .. }), "{committed:?}");
    assert_eq!(store.load(&id("w")).await.unwrap().unwrap().seq, hand.seq);
    // Also after a restart, of which its connection knows nothing.
    let mut server = server;
    server.kill();
    server.start_again();
    let next = hand.next(Next::Keep);
    loop {
        match hand.send(next.clone()).await {
            Ok(committed) => break assert!(matches!(committed, Committed::Done { .. }), "{committed:?}"),
            Err(error) => assert!(error.is_outage(), "{error}"),
        }
    }
    assert_eq!(store.load(&id("w")).await.unwrap().unwrap().seq, hand.seq);
}

#[tokio::test]
async fn a_hand_that_is_forgotten_is_made_anew() {
    let (server, store) = start().await;
    let mut hand = in_hand(&server, &store, &["w"]).await.remove(0);
    let key = server.command(&["KEYS", "{ta}:hand:*"]).lines().nth(2).unwrap().to_owned();
    server.command(&["DEL", &key]);
    hand.goes_directly_soon(&server).await;
    assert!(server.command(&["TTL", &key]).trim_start_matches(':').trim().parse::<u64>().unwrap() > 80_000);
}

#[tokio::test]
async fn a_wrong_type_under_a_shared_key_is_told_and_stops_everything() {
    let (server, store) = start().await;
    let mut hand = in_hand(&server, &store, &["w"]).await.remove(0);
    server.command(&["DEL", "{ta}:events"]);
    server.command(&["SET", "{ta}:events", "garbage"]);
    let next = hand.next(Next::Keep);
    let Err(StoreError::Unusable { .. }) = hand.send(next).await else { panic!("it was not told") };
}

#[tokio::test]
async fn commits_of_one_call_are_answered_in_their_order_however_they_go() {
    let (server, store) = start().await;
    let many: Vec<String> = (0..20).map(|number| format!("m{number:02}")).collect();
    let mut names: Vec<&str> = many.iter().map(String::as_str).collect();
    names.extend(["a", "b", "c", "d"]);
    let hands = in_hand(&server, &store, &names).await;
    let ours = |name: &str| hands.iter().find(|hand| hand.claimed.document.id == id(name)).unwrap();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(ours);
    let parks = Commit { status: Status::Waiting, ..b.next(Next::Signal) };
    let wrong = Commit { expected: 77, ..c.next(Next::Keep) };
    let ends = Commit { status: Status::Succeeded, ..d.next(Next::End { keep: LONG }) };
    let claim = Some(Claim { max: 5, lease: LONG, worker: "w".to_owned(), queues: vec![Queue::DEFAULT] });
    store.create(sample("new")).await.unwrap();
    // Enough of them that it is worth while to let these go first.
    let mut commits: Vec<Commit> = many.iter().map(|name| ours(name).next(Next::Keep)).collect();
    commits.extend([a.next(Next::Keep), parks, wrong, ends]);
    let before = (calls(&server, "exec"), calls(&server, "evalsha"));
    let advanced = store.advance(&Advance { lease: LONG, commits, claim, ..Advance::default() }).await.unwrap();
    assert_eq!((calls(&server, "exec"), calls(&server, "evalsha")), (before.0 + 1, before.1 + 1));
    let (first, last) = advanced.commits.split_at(many.len());
    assert!(first.iter().all(|one| matches!(one, Committed::Done { lease_until: Some(_), .. })), "{first:?}");
    assert!(matches!(
        last,
        [Committed::Done { lease_until: Some(_), .. }, Committed::Done { lease_until: None, .. }, Committed::Conflict { .. }, Committed::Done { lease_until: None, .. }]
    ), "{last:?}");
    assert_eq!(advanced.claimed.iter().map(|claimed| claimed.document.id.as_str()).collect::<Vec<_>>(), ["new"]);
}

#[tokio::test]
async fn one_that_redis_carries_out_late_puts_nothing_back() {
    let (server, store) = start_with(Duration::from_millis(50)).await;
    let mut hand = in_hand(&server, &store, &["w"]).await.remove(0);
    let until_answered = async |hand: &mut Hand<'_>| {
        let next = hand.next(Next::Keep);
        loop {
            match hand.send(next.clone()).await {
                Ok(committed) => return assert!(matches!(committed, Committed::Done { .. }), "{committed:?}"),
                Err(error) => assert!(error.is_outage(), "{error}: {:?}", std::error::Error::source(&error)),
            }
        }
    };
    for _ in 0..20 {
        hand.go_on().await;
        // It hears what it is asked, and answers nobody in time.
        server.pause();
        let next = hand.next(Next::Keep);
        let Err(error) = hand.send(next).await else { panic!("nobody answered") };
        assert!(error.is_outage(), "{error}");
        server.resume();
        for _ in 0..3 {
            until_answered(&mut hand).await;
        }
        let document = store.load(&id("w")).await.unwrap().unwrap();
        assert_eq!((document.seq, document.head), (hand.seq, hand.head));
    }
    let mut head = FIRST;
    let journal = store.journal(&id("w"), 1, 500).await.unwrap();
    assert_eq!(journal.len() as u64, hand.seq);
    for entry in &journal[1..] {
        head = super::faults::follows(head, &entry.body);
        assert_eq!(entry.digest, head);
    }
}

#[tokio::test]
async fn what_was_in_doubt_is_out_of_it_before_anything_else_goes_on() {
    let (server, store) = start_with(Duration::from_millis(50)).await;
    let mut hand = in_hand(&server, &store, &["w"]).await.remove(0);
    let key = server.command(&["KEYS", "{ta}:hand:*"]).lines().nth(2).unwrap().to_owned();
    let before = server.command(&["GET", &key]);
    server.pause();
    let next = hand.next(Next::Keep);
    hand.send(next.clone()).await.unwrap_err();
    server.resume();
    while hand.send(next.clone()).await.is_err() {}
    assert_ne!(server.command(&["GET", &key]), before, "whatever may still come was told that it is too late");
    hand.goes_directly_soon(&server).await;
}

#[tokio::test]
async fn calls_at_the_same_time_go_directly_both() {
    let (server, store) = start().await;
    for name in ["a", "b"] {
        store.create(sample(name)).await.unwrap();
    }
    let mut hands: Vec<_> = claim(&store).await.into_iter().map(|claimed| Hand::of(&store, claimed)).collect();
    let (first, second) = hands.split_at_mut(1);
    // Each of them begins its watch beside the other.
    let mut before = 0;
    for _ in 0..12 {
        before = calls(&server, "evalsha");
        tokio::join!(first[0].go_on(), second[0].go_on());
    }
    assert_eq!(calls(&server, "evalsha"), before, "the last two went without a script");
}

#[tokio::test]
async fn a_signal_that_a_later_commit_of_the_same_call_sends_is_not_overwritten() {
    let (server, store) = start().await;
    let mut hands = in_hand(&server, &store, &["child", "parent"]).await;
    hands.sort_by_key(|hand| hand.claimed.document.id.clone());
    let (children, parents) = hands.split_at_mut(1);
    let (child, parent) = (&mut children[0], &mut parents[0]);
    let signal = StoredSignal { body: "{\"ended\":1}".to_owned() };
    // The parent's goes by the script, too: it gives back what it does not have.
    let goes_on = Commit { give: vec![Resource::Lock { name: "none".to_owned() }], ..parent.next(Next::Keep) };
    let ends = Commit { status: Status::Succeeded, signals: vec![(id("parent"), signal.clone())], ..child.next(Next::End { keep: LONG }) };
    (parent.seq, parent.head) = (parent.seq + 1, goes_on.entries[0].digest);
    let advance = Advance { lease: LONG, commits: vec![goes_on, ends], ..Advance::default() };
    assert!(store.advance(&advance).await.unwrap().commits.iter().all(|one| matches!(one, Committed::Done { .. })));
    let heard = parent.go_on().await;
    assert!(matches!(&heard, Committed::Done { signals, .. } if *signals == [signal.clone()]), "{heard:?}");
    let parks = parent.next(Next::Signal);
    parent.send(parks).await.unwrap();
    assert_eq!(claim(&store).await[0].signals, [signal]);
}

#[tokio::test]
async fn of_two_commits_of_one_workflow_in_one_call_one_stands() {
    let (server, store) = start().await;
    let hand = in_hand(&server, &store, &["w"]).await.remove(0);
    let (one, mut other) = (hand.next(Next::Keep), hand.next(Next::Keep));
    other.entries[0].digest = Digest([9; 32]);
    let advance = Advance { lease: LONG, commits: vec![one.clone(), one.clone(), other], ..Advance::default() };
    let committed = store.advance(&advance).await.unwrap().commits;
    assert!(matches!(committed[..], [Committed::Done { .. }, Committed::Done { .. }, Committed::Conflict { .. }]), "{committed:?}");
    assert_eq!(store.load(&id("w")).await.unwrap().unwrap().head, one.entries[0].digest);
    assert_eq!(store.counts().await.unwrap(), [(Status::Runnable, 1)]);
}

#[tokio::test]
async fn a_redis_that_refuses_transactions_is_not_asked_for_one_again_and_again() {
    for (pause, goes_directly) in [(LONG, false), (Duration::ZERO, true)] {
        let (server, store) = start_with_pause(pause).await;
        let mut hand = in_hand(&server, &store, &["w"]).await.remove(0);
        hand.goes_directly_soon(&server).await;
        server.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
        let next = hand.next(Next::Keep);
        hand.send(next).await.unwrap_err();
        server.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
        let before = calls(&server, "exec");
        for _ in 0..5 {
            assert!(matches!(hand.go_on().await, Committed::Done { .. }));
        }
        assert_eq!(calls(&server, "exec") > before, goes_directly);
    }
}

#[tokio::test]
async fn a_lease_that_was_taken_over_while_writes_were_refused_is_not_committed_under() {
    let (server, store) = start_with_pause(Duration::ZERO).await;
    let other = RedisStore::connect(server.options()).await.unwrap();
    let mut hand = in_hand(&server, &store, &["w"]).await.remove(0);
    // As after a failover: its connections are gone, and for a while nothing may be written.
    server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let next = hand.next(Next::Keep);
    for _ in 0..3 {
        hand.send(next.clone()).await.unwrap_err();
    }
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    server.command(&["ZADD", "{ta}:lease", "1", "w"]);
    let taken = loop {
        let lease = Advance { claim: Some(Claim { max: 1, lease: LONG, worker: "o".to_owned(), queues: vec![Queue::DEFAULT] }), ..Advance::default() };
        match other.advance(&lease).await {
            Ok(mut advanced) => break advanced.claimed.remove(0),
            Err(error) => assert!(error.is_outage(), "{error}"),
        }
    };
    assert!(taken.fence > hand.claimed.fence);
    let committed = loop {
        match hand.send(next.clone()).await {
            Ok(committed) => break committed,
            Err(error) => assert!(error.is_outage(), "{error}"),
        }
    };
    assert_eq!(committed, Committed::Fenced);
}

#[tokio::test]
async fn what_redis_had_earlier_is_not_committed_on_although_the_hand_looks_as_before() {
    let (server, store) = start().await;
    let mut hands = in_hand(&server, &store, &["one", "two"]).await;
    let eval = |script: &str| assert_eq!(server.command(&["EVAL", &format!("\"{script}\""), "0"]), "$-1\r\n");
    eval("redis.call('SET', 'kept', redis.call('HGET', '{ta}:heads', 'two'))");
    hands[1].goes_directly(&server).await;
    // As where a server has loaded an older file, or was another one's replica for a while: it is the same process, and the same connections.
    eval("redis.call('HSET', '{ta}:heads', 'two', redis.call('GET', 'kept')); \
          local hand = redis.call('KEYS', '{ta}:hand:*')[1]; redis.call('SET', hand, redis.call('GET', hand))");
    // It breaks the watch, and the next one begins with the same value.
    let before = calls(&server, "evalsha");
    assert!(matches!(hands[0].go_on().await, Committed::Done { .. }));
    assert_eq!(calls(&server, "evalsha"), before + 1);
    let answered = hands[1].go_on().await;
    assert!(matches!(answered, Committed::Conflict { .. }), "an entry was lost, and this one follows it: {answered:?}");
}

#[tokio::test]
async fn a_few_commits_of_a_call_that_needs_the_script_anyway_go_by_it() {
    let (server, store) = start().await;
    let mut hands = in_hand(&server, &store, &["one", "two"]).await;
    let before = (calls(&server, "exec"), calls(&server, "evalsha"));
    let commits = vec![hands[0].next(Next::Keep), hands[1].next(Next::Signal)];
    let answered = store.advance(&Advance { lease: LONG, commits, ..Advance::default() }).await.unwrap().commits;
    assert!(answered.iter().all(|one| matches!(one, Committed::Done { .. })), "{answered:?}");
    assert_eq!((calls(&server, "exec"), calls(&server, "evalsha")), (before.0, before.1 + 1));
    // And the next one goes directly again.
    (hands[0].seq, hands[0].head) = (hands[0].seq + 1, store.load(&hands[0].claimed.document.id).await.unwrap().unwrap().head);
    hands[0].goes_directly(&server).await;
}

#[tokio::test]
async fn a_connection_that_cant_be_made_is_not_tried_with_each_commit() {
    let (server, store) = start().await;
    store.create(sample("w")).await.unwrap();
    let mut hand = Hand::of(&store, claim(&store).await.remove(0));
    let told = |about: &str, field: &str| -> u64 {
        let info = server.command(&["INFO", about]);
        info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.parse().ok()).unwrap()
    };
    let connect = || std::os::unix::net::UnixStream::connect(server.socket()).unwrap();
    // With this one, which asks, all places are taken; and then with one that stays.
    server.command(&["CONFIG", "SET", "maxclients", &told("clients", "connected_clients").to_string()]);
    let mut refused = Vec::new();
    for _ in 0..3 {
        let in_the_way = connect();
        for _ in 0..3 {
            assert!(matches!(hand.go_on().await, Committed::Done { .. }));
        }
        drop(in_the_way);
        refused.push(told("stats", "rejected_connections"));
    }
    assert!(refused[0] > 0 && refused[0] == refused[2], "{refused:?}");
}
