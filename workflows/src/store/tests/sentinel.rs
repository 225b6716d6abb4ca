//! Real Sentinels, a primary and a replica: a failover is followed, a primary that came back as a replica is never written to, and
//! what a failover lost is noticed.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::sample;
use super::beds;
use crate::store::high_water::{HighWater, Loss, Standing};
use crate::store::redis::{RedisAddress, RedisOptions, RedisStore};
use crate::store::{Store, StoreError};

/// A failover takes some seconds; a busy machine takes longer for everything.
const PATIENCE: Duration = Duration::from_secs(60);
const PRIMARY: &str = "ta";
const SENTINELS: usize = 3;

/// Ports that nobody has, all at once: asked for one by one they might be the same.
fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

struct Server {
    port: u16,
    child: Child,
}

impl Server {
    fn start(folder: &TempDir, name: &str, port: u16, lines: &str) -> Server {
        let home = folder.path().join(name);
        std::fs::create_dir_all(&home).unwrap();
        let file = home.join("redis.conf");
        // A Sentinel, and whoever it reconfigures, writes into its own file: it is made once.
        if !file.exists() {
            std::fs::write(&file, format!("port {port}\nbind 127.0.0.1\ndir {}\nlogfile {}/log\n{lines}\n", home.display(), home.display())).unwrap();
        }
        let mut command = Command::new("redis-server");
        command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if name.starts_with("sentinel") {
            command.arg("--sentinel");
        }
        Server { port, child: command.spawn().unwrap() }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// None while it does not answer.
    async fn ask(&self, words: &[&str]) -> Option<String> {
        let client = ::redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        let mut command = ::redis::cmd(words[0]);
        command.arg(&words[1..]);
        let answer: ::redis::Value = command.query_async(&mut connection).await.ok()?;
        Some(match answer {
            ::redis::Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            other => format!("{other:?}"),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Cluster {
    redis: [Server; 2],
    sentinels: Vec<Server>,
    folder: TempDir,
}

fn redis_lines(primary: Option<u16>) -> String {
    let durable = "save \"\"\nappendonly yes\nappendfsync always\nmaxmemory-policy noeviction\nrepl-diskless-sync-delay 0";
    match primary {
        Some(port) => format!("{durable}\nreplicaof 127.0.0.1 {port}"),
        None => durable.to_owned(),
    }
}

impl Cluster {
    /// A primary (the first), a replica of it that has everything, and Sentinels that agree.
    async fn start() -> Cluster {
        let folder = TempDir::new_in(if PathBuf::from("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() }).unwrap();
        let [one, two, first, second, third] = free_ports::<5>();
        let redis = [Server::start(&folder, "one", one, &redis_lines(None)), Server::start(&folder, "two", two, &redis_lines(Some(one)))];
        until("the primary", async || redis[0].ask(&["PING"]).await.map(|_| ())).await;
        let watch = format!(
            "sentinel monitor {PRIMARY} 127.0.0.1 {one} 2\nsentinel down-after-milliseconds {PRIMARY} 1000\n\
             sentinel failover-timeout {PRIMARY} 5000"
        );
        let sentinels: Vec<_> =
            [first, second, third].into_iter().enumerate().map(|(n, port)| Server::start(&folder, &format!("sentinel-{n}"), port, &watch)).collect();
        let cluster = Cluster { redis, sentinels, folder };
        until("the Sentinels to agree", async || {
            for sentinel in &cluster.sentinels {
                let known = sentinel.ask(&["SENTINEL", "MASTER", PRIMARY]).await?;
                let count = |field: &str| known.split_once(field).and_then(|(_, rest)| rest.chars().find(char::is_ascii_digit));
                if count("num-other-sentinels") != char::from_digit(SENTINELS as u32 - 1, 10) || count("num-slaves") != Some('1') {
                    return None;
                }
            }
            let replication = cluster.redis[1].ask(&["INFO", "replication"]).await?;
            replication.contains("master_link_status:up").then_some(())
        })
        .await;
        cluster
    }

    fn options(&self) -> RedisOptions {
        let nodes = self.sentinels.iter().map(|sentinel| format!("redis://127.0.0.1:{}", sentinel.port)).collect();
        RedisOptions::new(RedisAddress::Sentinel { nodes, primary: PRIMARY.to_owned() })
    }

    fn restart(&mut self, index: usize) {
        let name = ["one", "two"][index];
        self.redis[index] = Server::start(&self.folder, name, self.redis[index].port, "");
    }
}

async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Asks for as long as it is an outage.
async fn patiently<T>(what: &str, ask: impl AsyncFn() -> Result<T, StoreError>) -> T {
    until(what, async || match ask().await {
        Ok(answer) => Some(answer),
        Err(error) => {
            assert!(error.is_outage(), "{what}: {error}: {:?}", std::error::Error::source(&error));
            None
        }
    })
    .await
}

async fn look(store: &RedisStore, remembered: &mut HighWater) -> Standing {
    let standing = patiently("a look", async || store.compare(remembered, "daemon").await).await;
    *remembered = remembered.after(&standing);
    standing
}

fn is_missing(test: &str) -> bool {
    // Debian's `redis-sentinel` is the same program, and this is what the test runs.
    let missing = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err()
        || Command::new("redis-sentinel").arg("--version").stdout(Stdio::null()).status().is_err();
    if missing {
        beds::skip("sentinel", test, "redis-sentinel is not installed (apt-get install redis-sentinel)");
    }
    missing
}

#[tokio::test]
async fn a_failover_is_followed_and_the_demoted_primary_is_never_written_to() {
    if is_missing("a_failover_is_followed_and_the_demoted_primary_is_never_written_to") {
        return;
    }
    let mut cluster = Cluster::start().await;
    let store = patiently("a connection", async || RedisStore::connect(cluster.options()).await).await;
    let mut remembered = HighWater::new("one".to_owned());
    store.create(sample("before")).await.unwrap();
    assert_eq!(look(&store, &mut remembered).await.halt, None);
    until("the replica to have it", async || {
        let info = cluster.redis[0].ask(&["INFO", "replication"]).await?;
        let offset = |name: &str| info.split_once(name).and_then(|(_, rest)| rest.split([',', '\r']).next().map(str::to_owned));
        (offset(",offset=") == offset("master_repl_offset:")).then_some(())
    })
    .await;
    // A Sentinel that hangs is in nobody's way.
    cluster.sentinels[0].signal(Signal::SIGSTOP);
    let began = Instant::now();
    cluster.redis[0].kill();
    patiently("the new primary", async || store.create(sample("after")).await).await;
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(look(&store, &mut remembered).await.halt, None, "nothing was lost");
    assert!(store.load(&"before".parse().unwrap()).await.unwrap().is_some());
    cluster.sentinels[0].signal(Signal::SIGCONT);

    // It comes back, still believes that it is the primary, and is made a replica.
    cluster.restart(0);
    until("the old primary to be demoted", async || {
        let info = cluster.redis[0].ask(&["INFO", "replication"]).await?;
        (info.contains("role:slave") && info.contains("master_link_status:up")).then_some(())
    })
    .await;
    cluster.redis[0].ask(&["CONFIG", "RESETSTAT"]).await.unwrap();
    let again = patiently("a connection", async || RedisStore::connect(cluster.options()).await).await;
    again.create(sample("later")).await.unwrap();
    assert_eq!(look(&again, &mut remembered).await.halt, None);
    let stats = cluster.redis[0].ask(&["INFO", "commandstats"]).await.unwrap();
    assert!(stats.contains("resetstat") && !stats.contains("cmdstat_evalsha"), "somebody wrote to the demoted primary: {stats}");
    let old = RedisOptions::new(RedisAddress::Url(format!("redis://127.0.0.1:{}", cluster.redis[0].port)));
    let direct = patiently("a replica", async || RedisStore::connect(old.clone()).await).await;
    let Err(error) = direct.create(sample("stray")).await else { panic!("a replica took an order") };
    assert_eq!(error.trouble(), crate::store::Trouble::Demoted);
}

#[tokio::test]
async fn writes_that_a_failover_lost_are_noticed_and_halt_the_store() {
    if is_missing("writes_that_a_failover_lost_are_noticed_and_halt_the_store") {
        return;
    }
    let mut cluster = Cluster::start().await;
    let store = patiently("a connection", async || RedisStore::connect(cluster.options()).await).await;
    let mut remembered = HighWater::new("one".to_owned());
    assert_eq!(look(&store, &mut remembered).await.halt, None);
    // What the replica does not hear any more: it hangs, cut off, while the primary acknowledges, and wakes when the primary is dead.
    cluster.redis[1].signal(Signal::SIGSTOP);
    cluster.redis[0].ask(&["CLIENT", "KILL", "TYPE", "replica"]).await.unwrap();
    store.create(sample("lost")).await.unwrap();
    assert_eq!(look(&store, &mut remembered).await.halt, None, "acknowledged, and seen");
    cluster.redis[0].kill();
    cluster.redis[1].signal(Signal::SIGCONT);
    let worker = patiently("the new primary", async || RedisStore::connect(cluster.options()).await).await;
    let halt = look(&store, &mut remembered).await.halt.expect("it is noticed");
    assert_eq!(halt.loss, Loss::Older);
    let Err(StoreError::Halted { .. }) = worker.create(sample("more")).await else { panic!("an order was taken") };
    assert_eq!(worker.load(&"lost".parse().unwrap()).await.unwrap(), None);
}
