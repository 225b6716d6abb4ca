//! Outages as a real Redis has them: each is told apart from the others, passes, and loses nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use turnaround_config::SecretText;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::sample;
use super::beds;
use crate::store::private_redis::PrivateRedis;
use crate::store::redis::{RedisAddress, RedisOptions, RedisStore};
use crate::store::{Advance, Claim, Created, Queue, Store, StoreError, Trouble};

/// A test that waits longer for anything has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Short, because these tests wait for it.
fn impatient(socket: &Path) -> RedisOptions {
    let address = RedisAddress::Socket(socket.to_owned());
    RedisOptions { reply_timeout: Duration::from_millis(300), ..RedisOptions::new(address) }
}

/// What creating `name` fails with.
async fn trouble(store: &RedisStore, name: &str) -> Trouble {
    match store.create(sample(name)).await {
        Ok(created) => panic!("{name}: {created:?}"),
        Err(error) => {
            assert!(error.is_outage(), "{name}: {error}: {:?}", std::error::Error::source(&error));
            error.trouble()
        }
    }
}

/// Creates `name`, for as long as it takes.
async fn until_created(store: &RedisStore, name: &str) -> Created {
    let tries = async {
        loop {
            match store.create(sample(name)).await {
                Ok(created) => return created,
                Err(error) => assert!(error.is_outage(), "{name}: {error}: {:?}", std::error::Error::source(&error)),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, tries).await.unwrap_or_else(|_| panic!("{name} was never taken"))
}

async fn names(store: &RedisStore) -> Vec<String> {
    let all = store.list(&crate::store::Query { limit: 100, ..Default::default() }).await.unwrap();
    let mut names: Vec<_> = all.into_iter().map(|document| document.id.to_string()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_redis_that_is_away_hangs_or_is_kept_busy_is_told_apart() {
    let mut server = PrivateRedis::start();
    let store = RedisStore::connect(impatient(&server.socket())).await.unwrap();
    server.pause();
    assert_eq!(trouble(&store, "silent").await, Trouble::Silent);
    server.resume();
    until_created(&store, "silent").await;

    let script = keep_busy(&server);
    let busy = async {
        // Taken until the script begins, and silent until it is known to take long.
        while !matches!(store.create(sample("busy")).await, Err(error) if error.is_outage() && error.trouble() == Trouble::Busy) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, busy).await.expect("it is busy");
    assert!(server.command(&["SCRIPT", "KILL"]).starts_with("+OK"));
    script.join().unwrap();
    until_created(&store, "busy").await;

    server.kill();
    assert_eq!(trouble(&store, "away").await, Trouble::Unreachable);
    server.start_again();
    assert_eq!(until_created(&store, "away").await, Created::New);
    assert_eq!(names(&store).await, ["away", "busy", "silent"]);
}

/// Runs a script until it is killed. Whoever asks is told so after a few milliseconds.
fn keep_busy(server: &PrivateRedis) -> std::thread::JoinHandle<String> {
    server.command(&["CONFIG", "SET", "busy-reply-threshold", "20"]);
    let mut script = Line::to(server);
    std::thread::spawn(move || script.ask("EVAL \"while true do end\" 0"))
}

/// A connection that stays.
struct Line(std::os::unix::net::UnixStream);

impl Line {
    fn to(server: &PrivateRedis) -> Line {
        Line(std::os::unix::net::UnixStream::connect(server.socket()).unwrap())
    }

    fn ask(&mut self, command: &str) -> String {
        use std::io::{Read as _, Write as _};
        self.0.write_all(format!("{command}\r\n").as_bytes()).unwrap();
        let mut answer = [0; 1_024];
        let length = self.0.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }
}

/// Found by reading: the client drops the word with which Redis refuses a database, and every worker ended that connected anew just then.
#[tokio::test]
async fn a_redis_that_is_busy_is_one_also_for_who_connects_to_another_database() {
    let server = PrivateRedis::start();
    let options = |database: u32| {
        let address = RedisAddress::Url(format!("redis+unix://{}?db={database}", server.socket().display()));
        RedisOptions { address, ..impatient(&server.socket()) }
    };
    let store = RedisStore::connect(options(1)).await.unwrap();
    let mut line = Line::to(&server);
    let script = keep_busy(&server);
    let busy = async {
        // Let in until the script begins, and silent until it is known to take long.
        loop {
            match RedisStore::connect(options(1)).await {
                Err(error) if error.trouble() == Trouble::Busy => return assert!(error.is_outage(), "{error}"),
                Err(error) => assert!(error.is_outage(), "{error}: {:?}", std::error::Error::source(&error)),
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, busy).await.expect("it is busy");
    assert!(line.ask("SCRIPT KILL").starts_with("+OK"));
    script.join().unwrap();
    until_created(&store, "there").await;
    let keys = line.ask("INFO keyspace");
    assert!(keys.contains("db1:") && !keys.contains("db0:"), "{keys}");
    let Err(StoreError::Unusable { .. }) = RedisStore::connect(options(99)).await else { panic!("there is no such database") };
}

#[tokio::test]
async fn a_redis_that_takes_no_more_clients_is_an_outage_also_for_who_has_a_password() {
    let server = PrivateRedis::start();
    let mut line = Line::to(&server);
    assert_eq!(line.ask("CONFIG SET requirepass secret"), "+OK\r\n");
    assert_eq!(line.ask("CONFIG SET maxclients 1"), "+OK\r\n");
    let options = RedisOptions { password: Some(SecretText::new("secret".to_owned())), ..server.options() };
    for _ in 0..20 {
        let Err(error) = RedisStore::connect(options.clone()).await else { panic!("it takes one client, and has it") };
        assert!(error.is_outage(), "{error}: {:?}", std::error::Error::source(&error));
        assert_eq!(error.trouble(), Trouble::Unreachable);
    }
    assert_eq!(line.ask("CONFIG SET maxclients 100"), "+OK\r\n");
    assert_eq!(until_created(&RedisStore::connect(options).await.unwrap(), "taken").await, Created::New);
}

#[tokio::test]
async fn a_password_that_somebody_has_changed_is_waited_out_by_who_had_been_let_in_and_told_as_what_it_is() {
    let server = PrivateRedis::start();
    let mut line = Line::to(&server);
    for (name, password) in [("without", None), ("with", Some("secret"))] {
        let require = format!("CONFIG SET requirepass \"{}\"", password.unwrap_or_default());
        assert_eq!(line.ask(&require), "+OK\r\n");
        let options = RedisOptions { password: password.map(|password| SecretText::new(password.to_owned())), ..server.options() };
        let store = RedisStore::connect(options.clone()).await.unwrap();
        assert_eq!(store.create(sample(name)).await.unwrap(), Created::New);
        assert_eq!(line.ask("CONFIG SET requirepass another"), "+OK\r\n");
        line.ask("CLIENT KILL TYPE normal SKIPME yes");
        let refused = async {
            // At first it is only cut off.
            while trouble(&store, "refused").await != Trouble::Unusable {}
        };
        tokio::time::timeout(PATIENCE, refused).await.expect("it is refused");
        let Err(StoreError::Unusable { remedy, .. }) = RedisStore::connect(options).await else { panic!("who is started now is not told") };
        assert!(remedy.contains("password"), "{remedy}");
        assert_eq!(line.ask(&require), "+OK\r\n");
        assert_eq!(until_created(&store, "refused").await, if password.is_none() { Created::New } else { Created::Existing });
    }
}

#[tokio::test]
async fn a_redis_that_may_not_write_says_why() {
    let server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    let cases: [(Trouble, &[&str], &[&str]); 3] = [
        (Trouble::MemoryFull, &["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]),
        (Trouble::FewReplicas, &["CONFIG", "SET", "min-replicas-to-write", "1"], &["CONFIG", "SET", "min-replicas-to-write", "0"]),
        (Trouble::Demoted, &["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
    ];
    for (expected, refuse, mend) in cases {
        server.command(refuse);
        assert_eq!(trouble(&store, expected.code()).await, expected);
        // It can still be read, and the look of a witness is refused like everything else.
        assert!(store.list(&Default::default()).await.is_ok(), "{expected:?}");
        let look = store.compare(&crate::store::high_water::HighWater::new("one".to_owned()), "daemon").await;
        assert_eq!(look.map_err(|error| error.trouble()), Err(expected));
        server.command(mend);
        assert_eq!(until_created(&store, expected.code()).await, Created::New);
    }
}

#[tokio::test]
async fn a_redis_that_reads_its_file_is_waited_for() {
    let mut server = PrivateRedis::start();
    let store = RedisStore::connect(server.options()).await.unwrap();
    for number in 0..400 {
        store.create(sample(&format!("w{number:03}"))).await.unwrap();
    }
    server.kill();
    // As slow as a file of some gigabytes. Between two looks at its clients Redis reads a thousand commands.
    server.begin_to_start_again(&["--key-load-delay", "500"]);
    let loading = async {
        loop {
            match store.create(sample("later")).await {
                Err(error) if error.trouble() == Trouble::Loading => return,
                Err(error) => assert!(error.is_outage(), "{error}"),
                Ok(_) => panic!("it was never loading"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, loading).await.expect("it is loading");
    assert_eq!(until_created(&store, "later").await, Created::New);
    assert_eq!(store.counts().await.unwrap(), [(crate::store::Status::Runnable, 401)]);
}

/// A file system of its own that is soon full. None where it may not be mounted: only root may.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &TempDir, test: &str) -> Option<SmallDisk> {
        let place = folder.path().join("disk");
        std::fs::create_dir(&place).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&place).stderr(Stdio::null()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(SmallDisk(place));
        }
        beds::skip("small-disk", test, "a small file system can't be mounted here (it needs root and CAP_SYS_ADMIN)");
        None
    }

    /// Leaves no room.
    fn fill(&self) {
        use std::io::Write as _;
        let mut ballast = std::fs::File::create(self.0.join("ballast")).unwrap();
        while ballast.write_all(&[7; 4_096]).is_ok() {}
    }

    fn clear(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_loses_nothing_and_passes() {
    let folder = TempDir::new().unwrap();
    let Some(disk) = SmallDisk::mount(&folder, "a_full_disk_refuses_writes_loses_nothing_and_passes") else { return };
    let home = disk.0.join("redis");
    std::fs::create_dir(&home).unwrap();
    // With `always` Redis ends itself rather than acknowledge what it can't keep; with the weaker setting it refuses.
    let mut server = PrivateRedis::start_in(home, &["--appendonly", "yes", "--appendfsync", "everysec"]);
    let store = RedisStore::connect(RedisOptions { accept_weaker_durability: true, ..server.options() }).await.unwrap();
    store.create(sample("before")).await.unwrap();
    disk.fill();
    let full = async {
        let mut number = 0;
        loop {
            number += 1;
            match store.create(sample(&format!("fill{number}"))).await {
                Err(error) => break error,
                Ok(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, full).await.expect("the disk is full");
    assert_eq!(error.trouble(), Trouble::DiskFull, "{error}: {:?}", std::error::Error::source(&error));
    assert!(store.load(&"before".parse().unwrap()).await.unwrap().is_some(), "it can be read");
    disk.clear();
    assert_eq!(until_created(&store, "after").await, Created::New);

    server.command(&["CONFIG", "SET", "appendfsync", "always"]);
    disk.fill();
    let error = tokio::time::timeout(PATIENCE, async {
        let mut number = 0;
        loop {
            number += 1;
            if let Err(error) = store.create(sample(&format!("always{number}"))).await {
                break error;
            }
        }
    });
    let error = error.await.expect("the disk is full");
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    server.wait_for_end();
    disk.clear();
    server.start_again();
    assert_eq!(until_created(&store, "at-last").await, Created::New);
    assert!(store.load(&"after".parse().unwrap()).await.unwrap().is_some());
}

const LATE: Duration = Duration::from_millis(100);

/// What the man in the middle does with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Middle {
    PassesOn,
    /// Passes on each answer after [`LATE`].
    Delays,
    /// Accepts, and never answers.
    Swallows,
    /// Passes on so many bytes of each answer, then closes.
    CutsAfter(usize),
}

/// Between the store and its Redis.
struct Proxy {
    socket: PathBuf,
    does: watch::Sender<Middle>,
    task: JoinHandle<()>,
}

impl Proxy {
    fn start(folder: &TempDir, server: &PrivateRedis) -> Proxy {
        let socket = folder.path().join("middle.sock");
        let (does, what) = watch::channel(Middle::PassesOn);
        let (listener, redis) = (UnixListener::bind(&socket).unwrap(), server.socket());
        let task = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                tokio::spawn(carry(client, redis.clone(), what.clone()));
            }
        });
        Proxy { socket, does, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: UnixStream, redis: PathBuf, does: watch::Receiver<Middle>) {
    let Ok(server) = UnixStream::connect(redis).await else { return };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.into_split(), server.into_split());
    let there = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(|_| ()) };
    let back = async {
        let mut bytes = vec![0; 64 * 1_024];
        loop {
            let length = from_server.read(&mut bytes).await?;
            let does = *does.borrow();
            match does {
                _ if length == 0 => return Ok(()),
                Middle::PassesOn => to_client.write_all(&bytes[..length]).await?,
                Middle::Delays => {
                    tokio::time::sleep(LATE).await;
                    to_client.write_all(&bytes[..length]).await?;
                }
                Middle::Swallows => {}
                Middle::CutsAfter(few) => {
                    to_client.write_all(&bytes[..length.min(few)]).await?;
                    return Ok::<_, std::io::Error>(());
                }
            }
        }
    };
    // Whichever side ends, both are closed.
    tokio::select! {
        _ = there => {}
        _ = back => {}
    }
}

#[tokio::test]
async fn half_open_and_cut_connections_are_outages_after_which_everything_stands_once() {
    let (server, folder) = (PrivateRedis::start(), TempDir::new().unwrap());
    let proxy = Proxy::start(&folder, &server);
    let store = RedisStore::connect(impatient(&proxy.socket)).await.unwrap();
    let cases = [
        (Middle::Swallows, Trouble::Silent),
        (Middle::CutsAfter(0), Trouble::Unreachable),
        (Middle::CutsAfter(1), Trouble::Unreachable),
        (Middle::CutsAfter(3), Trouble::Unreachable),
    ];
    for (place, (does, expected)) in cases.into_iter().enumerate() {
        proxy.does.send_replace(does);
        let name = format!("w{place}");
        for _ in 0..2 {
            assert_eq!(trouble(&store, &name).await, expected, "{does:?}");
        }
        proxy.does.send_replace(Middle::PassesOn);
        // The order was taken, only its answer was lost; what was asked on a half-open connection may not have been.
        until_created(&store, &name).await;
    }
    assert_eq!(names(&store).await, ["w0", "w1", "w2", "w3"]);
    for name in names(&store).await {
        assert_eq!(store.journal(&name.parse().unwrap(), 1, 10).await.unwrap().len(), 1);
    }
}

/// Its reader would go by a clock that is behind by as long as it takes to read what was claimed.
#[tokio::test]
async fn what_a_claim_says_of_the_time_is_no_older_than_its_answer() {
    const LEASE: Duration = Duration::from_secs(600);
    let (server, folder) = (PrivateRedis::start(), TempDir::new().unwrap());
    let proxy = Proxy::start(&folder, &server);
    let store = RedisStore::connect(RedisOptions { reply_timeout: PATIENCE, ..impatient(&proxy.socket) }).await.unwrap();
    store.create(sample("w")).await.unwrap();
    proxy.does.send_replace(Middle::Delays);
    let claim = Some(Claim { max: 1, lease: LEASE, worker: "w".to_owned(), queues: vec![Queue::DEFAULT] });
    let advanced = store.advance(&Advance { claim, ..Advance::default() }).await.unwrap();
    // What the script took for the present.
    let granted = advanced.claimed[0].lease_until.millis() - i64::try_from(LEASE.as_millis()).unwrap();
    let later = advanced.now.millis() - granted;
    assert!(later >= i64::try_from(LATE.as_millis()).unwrap(), "{later} ms: its head was read after that");
}
