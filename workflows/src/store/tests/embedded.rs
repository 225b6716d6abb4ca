//! The private Redis of a state directory.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::sync::watch;

use super::sample;
use crate::store::embedded::{EmbeddedError, EmbeddedRedis, Health, Role};
use crate::store::redis::{RedisAddress, RedisOptions, RedisStore};
use crate::store::{Created, Store};

const PROGRAM: &str = "redis-server";

/// Longer than anything here takes, on a machine with better things to do.
const PATIENCE: Duration = Duration::from_secs(60);

async fn start(directory: &TempDir) -> EmbeddedRedis {
    EmbeddedRedis::start(directory.path(), Path::new(PROGRAM)).await.unwrap()
}

async fn connect(redis: &EmbeddedRedis) -> RedisStore {
    RedisStore::connect(RedisOptions::new(RedisAddress::Socket(redis.socket().to_owned()))).await.unwrap()
}

async fn until<T: Send + Sync>(mut watch: watch::Receiver<T>, reached: impl FnMut(&T) -> bool) {
    tokio::time::timeout(PATIENCE, watch.wait_for(reached)).await.expect("in time").expect("the keeper lives");
}

fn pid_in(directory: &TempDir) -> Pid {
    let written = std::fs::read_to_string(directory.path().join("redis/redis.pid")).unwrap();
    Pid::from_raw(written.trim().parse().unwrap())
}

/// Not a zombie either: its parent is this process, which may not have looked yet.
fn is_running(pid: Pid) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|title| !title.is_empty())
}

async fn until_gone(pid: Pid) {
    let gone = async {
        while is_running(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it ends in time");
}

/// Goes away as a killed daemon does. On return its lock is free: a server that another test starts just now holds a copy
/// of it until it is executed, and would make whoever comes next a joined one for that long.
async fn vanish(redis: EmbeddedRedis, directory: &TempDir) {
    redis.vanish().await;
    let lock = File::open(directory.path().join("redis/owner.lock")).unwrap();
    let free = async {
        while lock.try_lock().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("it is given back in time");
    lock.unlock().unwrap();
}

#[tokio::test]
async fn the_private_redis_is_durable_and_nobody_elses_and_ends_with_its_owner() {
    let directory = TempDir::new().unwrap();
    let redis = start(&directory).await;
    assert_eq!(redis.role(), Role::Owner);
    for path in [directory.path().join("redis"), redis.socket().to_owned()] {
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700, "{}", path.display());
    }
    let store = connect(&redis).await;
    let durability = store.durability().await.unwrap();
    assert_eq!(durability.weaknesses, Vec::<String>::new());
    assert!(durability.description.contains("AOF always, noeviction"), "{}", durability.description);
    assert_eq!(store.create(sample("w")).await.unwrap(), Created::New);
    let pid = pid_in(&directory);
    redis.stop().await;
    until_gone(pid).await;

    let again = start(&directory).await;
    assert!(connect(&again).await.load(&"w".parse().unwrap()).await.unwrap().is_some());
    let pid = pid_in(&directory);
    // Dropped, as when the daemon panics.
    drop(again);
    until_gone(pid).await;
}

#[tokio::test]
async fn a_private_redis_that_dies_is_started_again() {
    let directory = TempDir::new().unwrap();
    let redis = start(&directory).await;
    let store = connect(&redis).await;
    store.create(sample("w")).await.unwrap();
    let pid = pid_in(&directory);
    let health = redis.watch_health();
    kill(pid, Signal::SIGKILL).unwrap();
    until(health.clone(), |health| matches!(health, Health::Down { .. })).await;
    until(health, |health| *health == Health::Running).await;
    assert_ne!(pid_in(&directory), pid);
    // The connection heals by itself; a call may still meet the old one.
    let loaded = async {
        loop {
            match store.load(&"w".parse().unwrap()).await {
                Ok(found) => return found,
                Err(error) => assert!(error.is_outage(), "{error}"),
            }
        }
    };
    assert!(tokio::time::timeout(PATIENCE, loaded).await.unwrap().is_some());
    redis.stop().await;
}

#[tokio::test]
async fn a_second_daemon_joins_and_takes_over_when_the_owner_is_killed() {
    let directory = TempDir::new().unwrap();
    let owner = start(&directory).await;
    let joined = start(&directory).await;
    assert_eq!((owner.role(), joined.role()), (Role::Owner, Role::Joined));
    let store = connect(&joined).await;
    let pid = pid_in(&directory);
    owner.vanish().await;
    until(joined.watch_role(), |role| *role == Role::Owner).await;
    // The same server, without an interruption.
    assert_eq!(pid_in(&directory), pid);
    assert_eq!(store.create(sample("w")).await.unwrap(), Created::New);
    joined.stop().await;
    until_gone(pid).await;
}

#[tokio::test]
async fn a_joined_daemon_that_stops_ends_nothing_and_starts_a_new_server_when_the_owner_stops() {
    let directory = TempDir::new().unwrap();
    let owner = start(&directory).await;
    let pid = pid_in(&directory);
    start(&directory).await.stop().await;
    assert!(is_running(pid));
    let joined = start(&directory).await;
    owner.stop().await;
    until(joined.watch_role(), |role| *role == Role::Owner).await;
    assert_ne!(pid_in(&directory), pid);
    connect(&joined).await;
    joined.stop().await;
}

#[tokio::test]
async fn a_server_left_behind_is_adopted_and_watched_and_one_that_hangs_is_replaced() {
    let directory = TempDir::new().unwrap();
    vanish(start(&directory).await, &directory).await;
    let pid = pid_in(&directory);
    let heir = start(&directory).await;
    assert_eq!((heir.role(), pid_in(&directory)), (Role::Owner, pid));
    let health = heir.watch_health();
    kill(pid, Signal::SIGKILL).unwrap();
    until(health.clone(), |health| matches!(health, Health::Down { .. })).await;
    until(health, |health| *health == Health::Running).await;
    let second = pid_in(&directory);
    assert_ne!(second, pid);
    vanish(heir, &directory).await;

    kill(second, Signal::SIGSTOP).unwrap();
    let third = start(&directory).await;
    assert_ne!(pid_in(&directory), second);
    assert!(!is_running(second));
    connect(&third).await;
    third.stop().await;
}

#[tokio::test]
async fn what_is_missing_is_said_in_one_line() {
    let directory = TempDir::new().unwrap();
    let missing = EmbeddedRedis::start(directory.path(), Path::new("no-such-redis-server")).await.unwrap_err();
    assert_eq!(
        missing.to_string(),
        "`no-such-redis-server` is not installed: run `apt-get install redis-server`, or configure the URL of another Redis"
    );
    let long = directory.path().join("x".repeat(120));
    let refused = EmbeddedRedis::start(&long, Path::new(PROGRAM)).await.unwrap_err();
    assert!(matches!(refused, EmbeddedError::LongPath { .. }), "{refused}");
    // A file that Redis can't read: it says so, and the message has what it said.
    let damaged = directory.path().join("redis/appendonlydir");
    std::fs::create_dir_all(&damaged).unwrap();
    std::fs::write(damaged.join("appendonly.aof.manifest"), "nonsense\n").unwrap();
    let refused = EmbeddedRedis::start(directory.path(), Path::new(PROGRAM)).await.unwrap_err();
    let EmbeddedError::Ended { last_words } = &refused else { panic!("{refused}") };
    assert!(last_words.contains("redis.log"), "{last_words}");
    // On a full disk it can't say anything, and there it is the disk that is named.
    let redis = directory.path().join("redis");
    std::os::unix::fs::symlink("/dev/full", redis.join("room")).unwrap();
    let refused = EmbeddedRedis::start(directory.path(), Path::new(PROGRAM)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("the private Redis ended while it started: {} can't be written to (No space left on device (os error 28)): make room on its disk", redis.display())
    );
}
