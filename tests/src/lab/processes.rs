//! The lab's processes: started, killed and started again, and none of them left behind.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// A process that was told to stop is given this long before it is killed. The daemon and workers promise half a second.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Something that was started answers within this time, on a busy machine too.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How often a start is looked at.
const START_POLL: Duration = Duration::from_millis(20);

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    pub daemon: PathBuf,
    pub worker: PathBuf,
    pub cli: PathBuf,
    pub site_ssh: PathBuf,
    pub redis: PathBuf,
}

impl Programs {
    /// Those that were built together with this program.
    pub fn beside_this_one() -> io::Result<Programs> {
        let mut folder = std::env::current_exe()?;
        folder.pop();
        if folder.ends_with("deps") {
            folder.pop();
        }
        Ok(Programs {
            daemon: folder.join("turnaround-daemon"),
            worker: folder.join("turnaround-worker"),
            cli: folder.join("turnaround"),
            site_ssh: folder.join("site-ssh"),
            redis: PathBuf::from("redis-server"),
        })
    }
}

/// All processes of one lab. They end with it.
pub struct Processes {
    programs: Programs,
    folder: PathBuf,
    config: PathBuf,
    /// Where Redis keeps its file.
    data: PathBuf,
    /// What every process finds in its environment besides our own.
    environment: Vec<(&'static str, PathBuf)>,
    redis_environment: Vec<(&'static str, PathBuf)>,
    redis: Option<Child>,
    daemon: Option<Child>,
    /// Another daemon on the same Redis, with a socket of its own.
    second: Option<Child>,
    workers: Vec<Option<Child>>,
}

impl Processes {
    /// `folder` takes their logs and Redis's data.
    pub fn new(programs: Programs, folder: &Path, config: &Path, workers: usize) -> Processes {
        let workers = (0..workers).map(|_| None).collect();
        let (data, environment, redis_environment) = (folder.join("redis"), Vec::new(), Vec::new());
        let (folder, config) = (folder.to_owned(), config.to_owned());
        Processes { programs, folder, config, data, environment, redis_environment, redis: None, daemon: None, second: None, workers }
    }

    /// Redis finds this in its environment, from its next start on.
    pub fn set_redis_environment(&mut self, variables: &[(&'static str, PathBuf)]) {
        self.redis_environment = variables.to_vec();
    }

    /// The daemon and workers that are started from now on find `variable` in their environment.
    pub fn set_environment(&mut self, variable: &'static str, path: &Path) {
        self.environment.push((variable, path.to_owned()));
    }

    /// Redis keeps its file in `data`, from its next start on.
    pub fn keep_data_in(&mut self, data: &Path) {
        data.clone_into(&mut self.data);
    }

    pub fn redis_socket(folder: &Path) -> PathBuf {
        folder.join("redis.sock")
    }

    fn log(&self, name: &str) -> io::Result<std::fs::File> {
        std::fs::OpenOptions::new().create(true).append(true).open(self.folder.join(format!("{name}.log")))
    }

    fn spawn(&self, program: &Path, name: &str, arguments: &[&str]) -> io::Result<Child> {
        let of_redis = self.redis_environment.iter().filter(|_| name == "redis");
        Command::new(program)
            .args(arguments)
            .envs(self.environment.iter().chain(of_redis).cloned())
            .stdin(Stdio::null())
            .stdout(self.log(name)?)
            .stderr(self.log(name)?)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound if name == "redis" => {
                    io::Error::other("there is no redis-server: apt-get install redis-server")
                }
                _ => io::Error::other(format!("could not start {}: {error}", program.display())),
            })
    }

    pub async fn start_redis(&mut self) -> io::Result<()> {
        let data = self.data.clone();
        std::fs::create_dir_all(&data)?;
        let socket = Processes::redis_socket(&self.folder);
        let (socket_text, data) = (socket.display().to_string(), data.display().to_string());
        let arguments = [
            "--port", "0", "--unixsocket", &socket_text, "--unixsocketperm", "700", "--dir", &data, "--save", "",
            "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction",
        ];
        self.redis = Some(self.spawn(&self.programs.redis.clone(), "redis", &arguments)?);
        let client = redis::Client::open(format!("unix://{socket_text}")).map_err(io::Error::other)?;
        until(async || match client.get_multiplexed_async_connection().await {
            Ok(mut connection) => redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok(),
            Err(_) => false,
        })
        .await
        .map_err(|()| io::Error::other("redis-server does not answer; see redis.log"))
    }

    pub fn start_daemon(&mut self) -> io::Result<()> {
        let config = self.config.display().to_string();
        self.daemon = Some(self.spawn(&self.programs.daemon.clone(), "daemon", &["--config", &config])?);
        Ok(())
    }

    pub fn start_worker(&mut self, index: usize) -> io::Result<()> {
        let config = self.config.display().to_string();
        let name = format!("worker-{}", index + 1);
        self.workers[index] = Some(self.spawn(&self.programs.worker.clone(), &name, &["--config", &config])?);
        Ok(())
    }

    pub fn start_second_daemon(&mut self) -> io::Result<()> {
        let text = std::fs::read_to_string(&self.config)?.replace("api.sock", "api-2.sock");
        let config = self.folder.join("config-2.toml");
        std::fs::write(&config, text)?;
        let config = config.display().to_string();
        self.second = Some(self.spawn(&self.programs.daemon.clone(), "daemon-2", &["--config", &config])?);
        Ok(())
    }

    pub async fn kill_second_daemon(&mut self) -> io::Result<()> {
        murder(self.second.take()).await
    }

    pub fn worker_pid(&self, index: usize) -> Option<u32> {
        self.workers[index].as_ref().and_then(Child::id)
    }

    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().and_then(Child::id)
    }

    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// SIGKILL.
    pub async fn kill_worker(&mut self, index: usize) -> io::Result<()> {
        murder(self.workers[index].take()).await
    }

    pub async fn kill_daemon(&mut self) -> io::Result<()> {
        murder(self.daemon.take()).await
    }

    pub async fn kill_redis(&mut self) -> io::Result<()> {
        murder(self.redis.take()).await
    }

    /// SIGTERM, and waits for its end.
    pub async fn stop_worker(&mut self, index: usize) -> io::Result<()> {
        stop(self.workers[index].take()).await
    }

    /// SIGTERM, and waits for its end; a private Redis ends with it.
    pub async fn stop_daemon(&mut self) -> io::Result<()> {
        stop(self.daemon.take()).await
    }

    /// SIGTERM, and waits for its end: Redis writes down what it has, and goes.
    pub async fn stop_redis(&mut self) -> io::Result<()> {
        stop(self.redis.take()).await
    }

    /// SIGSTOP or SIGCONT.
    pub fn signal_redis(&self, signal: Signal) -> io::Result<()> {
        self.redis.as_ref().and_then(Child::id).map_or(Ok(()), |pid| send(pid, signal))
    }

    /// Waits for Redis to end by itself; false if it goes on for as long as `patience`.
    pub async fn redis_ends(&mut self, patience: Duration) -> io::Result<bool> {
        let Some(child) = &mut self.redis else { return Ok(true) };
        match tokio::time::timeout(patience, child.wait()).await {
            Ok(ended) => {
                ended?;
                self.redis = None;
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    /// Starts what does not run: the daemon, the second one, every worker.
    pub fn start_what_is_missing(&mut self) -> io::Result<()> {
        if self.daemon.is_none() {
            self.start_daemon()?;
        }
        if self.second.is_none() {
            self.start_second_daemon()?;
        }
        for index in 0..self.workers.len() {
            if self.workers[index].is_none() {
                self.start_worker(index)?;
            }
        }
        Ok(())
    }

    /// SIGKILL for all of them at once, as when the host goes down.
    pub async fn kill_all(&mut self) -> io::Result<()> {
        let mut all = vec![self.redis.take(), self.daemon.take(), self.second.take()];
        all.extend(self.workers.iter_mut().map(Option::take));
        for child in all.iter_mut().flatten() {
            child.start_kill()?;
        }
        for child in all {
            murder(child).await?;
        }
        Ok(())
    }

    /// SIGSTOP or SIGCONT.
    pub fn signal_worker(&self, index: usize, signal: Signal) -> io::Result<()> {
        match self.workers[index].as_ref().and_then(Child::id) {
            Some(pid) => send(pid, signal),
            None => Ok(()),
        }
    }

    /// An error if a process that should run has ended by itself.
    pub fn check(&mut self) -> io::Result<()> {
        let named = [("redis", &mut self.redis), ("daemon", &mut self.daemon), ("daemon-2", &mut self.second)].into_iter();
        for (name, child) in named {
            if let Some(child) = child
                && let Some(status) = child.try_wait()?
            {
                return Err(io::Error::other(format!("the {name} has ended by itself ({status}); see {name}.log")));
            }
        }
        for (index, worker) in self.workers.iter_mut().enumerate() {
            if let Some(child) = worker
                && let Some(status) = child.try_wait()?
            {
                let name = format!("worker-{}", index + 1);
                return Err(io::Error::other(format!("{name} has ended by itself ({status}); see {name}.log")));
            }
        }
        Ok(())
    }

    /// Ends all of them, gently, workers first.
    pub async fn end(mut self) -> io::Result<()> {
        for worker in std::mem::take(&mut self.workers) {
            stop(worker).await?;
        }
        stop(self.daemon.take()).await?;
        stop(self.second.take()).await?;
        stop(self.redis.take()).await
    }
}

/// Waits until `ready`.
pub(crate) async fn until(mut ready: impl AsyncFnMut() -> bool) -> Result<(), ()> {
    let end = tokio::time::Instant::now() + START_PATIENCE;
    while tokio::time::Instant::now() < end {
        if ready().await {
            return Ok(());
        }
        tokio::time::sleep(START_POLL).await;
    }
    Err(())
}

async fn murder(child: Option<Child>) -> io::Result<()> {
    let Some(mut child) = child else { return Ok(()) };
    child.kill().await
}

async fn stop(child: Option<Child>) -> io::Result<()> {
    let Some(mut child) = child else { return Ok(()) };
    if let Some(pid) = child.id() {
        send(pid, Signal::SIGTERM)?;
    }
    match tokio::time::timeout(STOP_PATIENCE, child.wait()).await {
        Ok(ended) => ended.map(|_| ()),
        Err(_) => child.kill().await,
    }
}

fn send(pid: u32, signal: Signal) -> io::Result<()> {
    kill(Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?), signal).map_err(io::Error::from)
}
