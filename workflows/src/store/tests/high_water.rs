//! A real Redis that loses something: what is noticed, and what is no loss.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::faults::commit;
use super::sample;
use crate::store::high_water::{HighWater, Loss, Standing};
use crate::store::private_redis::PrivateRedis;
use crate::store::redis::{RedisAddress, RedisOptions, RedisStore};
use crate::store::{Advance, CLAIM_MAX, Claim, Created, Next, Queue, Store, StoreError};

const WHO: &str = "daemon at host:1";
const LONG: Duration = Duration::from_secs(600);

/// What one daemon does each second.
struct Witness {
    store: RedisStore,
    remembered: HighWater,
}

impl Witness {
    async fn of(server: &PrivateRedis) -> Witness {
        let store = RedisStore::connect(server.options()).await.unwrap();
        Witness { store, remembered: HighWater::new("one".to_owned()) }
    }

    /// As soon as Redis answers.
    async fn look(&mut self) -> Standing {
        loop {
            match self.store.compare(&self.remembered, WHO).await {
                Ok(standing) => {
                    self.remembered = self.remembered.after(&standing);
                    return standing;
                }
                Err(error) => assert!(error.is_outage(), "{error}: {:?}", std::error::Error::source(&error)),
            }
        }
    }

    async fn loss(&mut self) -> Option<Loss> {
        self.look().await.halt.map(|halt| halt.loss)
    }

    /// As soon as Redis answers.
    async fn create(&self, name: &str) {
        let created = loop {
            match self.store.create(sample(name)).await {
                Ok(created) => break created,
                Err(error) => assert!(error.is_outage(), "{error}: {:?}", std::error::Error::source(&error)),
            }
        };
        assert_eq!(created, Created::New);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn aof(server: &PrivateRedis) -> PathBuf {
    server.directory().join("appendonlydir")
}

#[tokio::test]
async fn kills_and_restarts_are_no_loss() {
    let mut server = PrivateRedis::start();
    let mut witness = Witness::of(&server).await;
    for kill in 0..8 {
        assert_eq!(witness.loss().await, None);
        witness.create(&format!("w{kill}")).await;
        if kill % 2 == 0 {
            assert_eq!(witness.loss().await, None);
        }
        server.kill();
        server.start_again();
        // Rewriting the file is no loss either.
        if kill == 5 {
            server.command(&["BGREWRITEAOF"]);
        }
        // The daemon too is killed: it remembers only what it wrote down, which may be older.
        if kill % 3 == 0 {
            let remembered = HighWater { looks: witness.remembered.looks.saturating_sub(2), ..witness.remembered.clone() };
            witness = Witness { remembered, ..Witness::of(&server).await };
        }
    }
    let standing = witness.look().await;
    assert_eq!((standing.halt, standing.looks), (None, 13));
}

#[tokio::test]
async fn a_store_that_was_emptied_is_halted() {
    let server = PrivateRedis::start();
    let mut witness = Witness::of(&server).await;
    witness.create("w").await;
    assert_eq!(witness.loss().await, None);
    let (identity, revision) = (witness.remembered.identity.clone(), witness.remembered.revision);
    server.command(&["FLUSHALL"]);
    // Before anybody has compared.
    let Err(StoreError::Halted { .. }) = witness.store.create(sample("early")).await else { panic!("an order was taken") };
    assert_eq!(witness.loss().await, Some(Loss::Emptied));
    let Err(StoreError::Halted { .. }) = witness.store.create(sample("late")).await else { panic!("an order was taken") };
    // Whoever connects now does not give it a new name.
    drop(RedisStore::connect(server.options()).await.unwrap());
    assert_eq!(witness.loss().await, Some(Loss::Emptied));
    let accepted = witness.store.accept(&witness.remembered, "ada").await.unwrap().unwrap();
    assert_eq!(accepted.identity, identity, "it goes on under its name");
    assert!(accepted.revision > revision);
    witness.remembered = witness.remembered.after(&accepted);
    witness.create("w").await;
    assert_eq!(witness.loss().await, None);
}

/// More than one slice of what a script does at once.
#[tokio::test]
async fn all_of_a_large_store_is_due_once_it_is_accepted() {
    const OPEN: usize = 2_345;
    let server = PrivateRedis::start();
    let mut witness = Witness::of(&server).await;
    let names: Vec<String> = (0..OPEN).map(|number| format!("w{number}")).collect();
    let created = names.iter().map(|name| witness.store.create(sample(name)));
    assert!(futures::future::join_all(created).await.iter().all(Result::is_ok));
    let mut parked = 0;
    while parked < OPEN {
        let claim = Some(Claim { max: CLAIM_MAX, lease: LONG, worker: "w".to_owned(), queues: vec![Queue::DEFAULT] });
        let claimed = witness.store.advance(&Advance { lease: LONG, claim, ..Advance::default() }).await.unwrap().claimed;
        parked += claimed.len();
        let commits = claimed.iter().map(|claimed| commit(&claimed.document.id, claimed.fence, claimed.document.seq, claimed.document.head, Next::Signal)).collect();
        witness.store.advance(&Advance { lease: LONG, commits, ..Advance::default() }).await.unwrap();
    }
    let waiting = async |store: &RedisStore| store.backlog(&[Queue::DEFAULT], store.now().await.unwrap()).await.unwrap().due[0].count;
    assert_eq!(waiting(&witness.store).await, 0);
    assert_eq!(witness.loss().await, None);
    witness.remembered.revision += 1_000_000;
    assert!(witness.loss().await.is_some());
    witness.store.accept(&witness.remembered, "ada").await.unwrap().expect("it was halted");
    assert_eq!(waiting(&witness.store).await, OPEN as u64);
    witness.create("ordered").await;
}

#[tokio::test]
async fn a_store_that_was_begun_anew_or_is_another_is_halted() {
    let server = PrivateRedis::start();
    let mut witness = Witness::of(&server).await;
    assert_eq!(witness.loss().await, None);
    let elsewhere = RedisAddress::Url(format!("unix://{}?db=1", server.socket().display()));
    let store = RedisStore::connect(RedisOptions { address: elsewhere, ..server.options() }).await.unwrap();
    let mut lost = Witness { store, remembered: witness.remembered.clone() };
    let standing = lost.look().await;
    let halt = standing.halt.unwrap();
    assert_eq!(halt.loss, Loss::Replaced);
    assert_ne!(halt.found.identity, witness.remembered.identity);
    // The right one is not touched by that.
    assert_eq!(witness.loss().await, None);
    // Emptied, and a worker was started before anybody looked.
    server.command(&["FLUSHDB"]);
    drop(RedisStore::connect(server.options()).await.unwrap());
    assert_eq!(witness.loss().await, Some(Loss::Replaced));
}

#[tokio::test]
async fn an_older_file_that_was_put_back_is_noticed_whatever_is_written_since() {
    let mut server = PrivateRedis::start();
    let mut witness = Witness::of(&server).await;
    witness.create("before").await;
    assert_eq!(witness.loss().await, None);
    let backup = TempDir::new().unwrap();
    server.kill();
    copy(&aof(&server), backup.path());
    server.start_again();
    witness.look().await;
    for number in 0..3 {
        witness.create(&format!("lost{number}")).await;
    }
    assert_eq!(witness.loss().await, None);
    server.kill();
    std::fs::remove_dir_all(aof(&server)).unwrap();
    copy(backup.path(), &aof(&server));
    server.start_again();
    // More than what was lost, before anybody has looked: the revision is larger than ever.
    let worker = RedisStore::connect(server.options()).await.unwrap();
    for number in 0..10 {
        worker.create(sample(&format!("masks{number}"))).await.unwrap();
    }
    let standing = witness.look().await;
    let halt = standing.halt.expect("noticed");
    assert_eq!(halt.loss, Loss::Older);
    assert!(halt.found.revision > halt.expected.revision && halt.found.looks < halt.expected.looks, "{halt:?}");
    let Err(StoreError::Halted { .. }) = worker.create(sample("more")).await else { panic!("an order was taken") };
}

/// What a worker at a site is.
async fn writer(server: &PrivateRedis) -> RedisStore {
    RedisStore::connect(RedisOptions { only_watched: true, ..server.options() }).await.unwrap()
}

/// What became of an order, as soon as Redis answers.
async fn order(writer: &RedisStore, name: &str) -> Result<Created, StoreError> {
    loop {
        match writer.create(sample(name)).await {
            Err(StoreError::Unavailable { .. }) => {}
            answer => return answer,
        }
    }
}

#[tokio::test]
async fn nobody_writes_to_a_redis_that_was_started_until_somebody_has_looked() {
    let mut server = PrivateRedis::start();
    let mut witness = Witness::of(&server).await;
    let (one, other) = (writer(&server).await, writer(&server).await);
    for start in 0..4 {
        // However often it is tried, and whatever can be read.
        for writer in [&one, &other, &one] {
            let refused = order(writer, &format!("w{start}")).await;
            assert!(matches!(refused, Err(StoreError::Unwatched { .. })), "{refused:?}");
            assert!(writer.load(&format!("w{start}").parse().unwrap()).await.unwrap().is_none());
        }
        assert_eq!(witness.loss().await, None);
        assert_eq!(order(&one, &format!("w{start}")).await.unwrap(), Created::New);
        assert_eq!(order(&other, &format!("w{start}")).await.unwrap(), Created::Existing);
        // Who comes later finds that somebody has looked.
        assert_eq!(order(&writer(&server).await, &format!("later{start}")).await.unwrap(), Created::New);
        server.kill();
        server.start_again();
    }
}

#[tokio::test]
async fn the_first_look_of_a_new_daemon_says_nothing_where_others_remember() {
    let mut server = PrivateRedis::start();
    let mut old = Witness::of(&server).await;
    let writer = writer(&server).await;
    assert_eq!(old.loss().await, None);
    assert_eq!(order(&writer, "before").await.unwrap(), Created::New);
    server.kill();
    server.start_again();
    let mut new = Witness { remembered: HighWater::new("two".to_owned()), ..Witness::of(&server).await };
    assert_eq!(new.loss().await, None);
    assert!(matches!(order(&writer, "early").await, Err(StoreError::Unwatched { .. })), "the other one may know of a loss");
    // By its next look the other has looked, if it is there at all.
    assert_eq!(new.loss().await, None);
    assert_eq!(order(&writer, "after").await.unwrap(), Created::New);
}

#[tokio::test]
async fn a_backup_that_was_put_back_is_not_written_to_for_a_moment() {
    let mut server = PrivateRedis::start();
    let mut witness = Witness::of(&server).await;
    assert_eq!(witness.loss().await, None);
    let writer = writer(&server).await;
    let backup = TempDir::new().unwrap();
    server.kill();
    copy(&aof(&server), backup.path());
    server.start_again();
    assert_eq!(witness.loss().await, None);
    assert_eq!(order(&writer, "lost").await.unwrap(), Created::New);
    assert_eq!(witness.loss().await, None);
    server.kill();
    std::fs::remove_dir_all(aof(&server)).unwrap();
    copy(backup.path(), &aof(&server));
    server.start_again();
    for _ in 0..5 {
        assert!(matches!(order(&writer, "early").await, Err(StoreError::Unwatched { .. })));
    }
    assert_eq!(witness.loss().await, Some(Loss::Older));
    let refused = order(&writer, "late").await;
    assert!(matches!(refused, Err(StoreError::Halted { .. })), "{refused:?}");
    let accepted = witness.store.accept(&witness.remembered, "ada").await.unwrap().unwrap();
    witness.remembered = witness.remembered.after(&accepted);
    assert_eq!(witness.loss().await, None);
    assert_eq!(order(&writer, "after").await.unwrap(), Created::New);
}

#[tokio::test]
async fn once_the_right_file_is_back_the_halt_is_over() {
    let mut server = PrivateRedis::start();
    let mut witness = Witness::of(&server).await;
    assert_eq!(witness.loss().await, None);
    let (older, right) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    server.kill();
    copy(&aof(&server), older.path());
    server.start_again();
    witness.create("w").await;
    assert_eq!(witness.loss().await, None);
    for (file, loss) in [(older.path(), Some(Loss::Older)), (right.path(), None)] {
        server.kill();
        if loss.is_some() {
            copy(&aof(&server), right.path());
        }
        std::fs::remove_dir_all(aof(&server)).unwrap();
        copy(file, &aof(&server));
        server.start_again();
        assert_eq!(witness.loss().await, loss);
    }
    witness.create("after").await;
}

#[tokio::test]
async fn a_file_that_lost_its_end_is_noticed() {
    let mut server = PrivateRedis::start();
    let mut witness = Witness::of(&server).await;
    witness.create("w").await;
    assert_eq!(witness.loss().await, None);
    server.kill();
    // Redis starts from such a file and says so in its log only.
    let file = std::fs::read_dir(aof(&server)).unwrap().map(|file| file.unwrap().path());
    let newest = file.into_iter().find(|path| path.to_string_lossy().ends_with(".incr.aof")).unwrap();
    let length = std::fs::metadata(&newest).unwrap().len();
    std::fs::File::options().write(true).open(&newest).unwrap().set_len(length - 7).unwrap();
    server.start_again();
    assert_eq!(witness.loss().await, Some(Loss::Older));
}

#[tokio::test]
async fn who_may_not_write_halts_nothing() {
    let server = PrivateRedis::start();
    let mut witness = Witness::of(&server).await;
    witness.look().await;
    let more = HighWater { revision: witness.remembered.revision + 1, ..witness.remembered.clone() };
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let Err(error) = witness.store.compare(&more, WHO).await else { panic!("a replica was written to") };
    assert_eq!(error.trouble(), crate::store::Trouble::Demoted);
    assert_eq!(witness.store.standing().await.unwrap().halt, None);
    server.command(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(witness.loss().await, None);
}
