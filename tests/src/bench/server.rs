//! A Redis for one measurement: on the machine's disk, as the real one is, with the settings that are asked for.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use turnaround_workflows::store::redis::{RedisAddress, RedisOptions};

/// When Redis calls fsync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fsync {
    /// Each second. Not what we promise with, but what others are measured with.
    EverySecond,
    /// Before any answer: what Turnaround demands.
    Always,
}

impl Fsync {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Fsync::EverySecond => "everysec",
            Fsync::Always => "always",
        }
    }
}

/// A started Redis answers within this time, on a busy machine too.
const START_PATIENCE: Duration = Duration::from_secs(20);
const START_POLL: Duration = Duration::from_millis(5);
/// A measurement that keeps Redis busy is no outage.
const REPLY_PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Server {
    folder: TempDir,
    child: Child,
    connection: MultiplexedConnection,
}

impl Server {
    pub(super) async fn start(fsync: Fsync) -> io::Result<Server> {
        // The system's folder for temporary files: on the disk, unless the system has it in memory.
        let folder = tempfile::Builder::new().prefix("ta-bench-").tempdir()?;
        let socket = folder.path().join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--daemonize", "no", "--maxmemory-policy", "noeviction"]);
        command.args(["--appendonly", "yes", "--appendfsync", fsync.as_str()]);
        // A rewrite in the middle of one round and not of another would be measured, and is not what is asked about.
        command.args(["--auto-aof-rewrite-percentage", "0"]);
        command.arg("--unixsocket").arg(&socket).arg("--dir").arg(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().map_err(|error| io::Error::other(format!("can't start redis-server (apt-get install redis-server): {error}")))?;
        let client = redis::Client::open(format!("unix://{}", socket.display())).map_err(io::Error::other)?;
        let connected = async {
            loop {
                if let Ok(connection) = client.get_multiplexed_async_connection().await {
                    return connection;
                }
                tokio::time::sleep(START_POLL).await;
            }
        };
        let connection = tokio::time::timeout(START_PATIENCE, connected).await.map_err(io::Error::other)?;
        Ok(Server { folder, child, connection })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn options(&self) -> RedisOptions {
        RedisOptions {
            reply_timeout: REPLY_PATIENCE,
            accept_weaker_durability: true,
            ..RedisOptions::new(RedisAddress::Socket(self.socket()))
        }
    }

    /// A field of `INFO`, as a number.
    async fn info(&self, field: &str) -> io::Result<f64> {
        let info: String = redis::cmd("INFO").arg("everything").query_async(&mut self.connection.clone()).await.map_err(io::Error::other)?;
        let found = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.trim().parse().ok());
        found.ok_or_else(|| io::Error::other(format!("Redis's INFO has no number {field}")))
    }

    /// User and system time that this Redis has used, all of its threads.
    pub(super) async fn cpu(&self) -> io::Result<Duration> {
        Ok(Duration::from_secs_f64(self.info("used_cpu_user").await? + self.info("used_cpu_sys").await?))
    }

    /// Changes when fsync is called, from now on.
    pub(super) async fn fsync(&self, fsync: Fsync) -> io::Result<()> {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("appendfsync").arg(fsync.as_str());
        command.query_async(&mut self.connection.clone()).await.map_err(io::Error::other)
    }

    /// Bytes that this Redis has in use, data and overhead.
    pub(super) async fn memory(&self) -> io::Result<f64> {
        self.info("used_memory").await
    }

    /// Bytes of one value in a hash; 0 if there is none.
    pub(super) async fn bytes_of(&self, key: &str, field: &str) -> io::Result<u64> {
        let mut command = redis::cmd("HSTRLEN");
        command.arg(key).arg(field);
        command.query_async(&mut self.connection.clone()).await.map_err(io::Error::other)
    }

    pub(super) async fn end(mut self) -> io::Result<()> {
        self.child.kill().await
    }
}
