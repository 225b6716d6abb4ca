//! The server's process: started, found again, watched, ended.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::EmbeddedError;
use super::directory::Directory;

/// How long a server may take until it answers at all; while it loads its file it does.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Between looks at a server that starts or ends.
const LOOK_PERIOD: Duration = Duration::from_millis(10);
/// How long one answer may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a server that was left behind is asked before it counts as hung.
const ADOPT_TRIES: u32 = 2;
/// How long a hung server has to end by itself. Short: nothing is lost if it is killed, and everybody waits.
const HUNG_END_DEADLINE: Duration = Duration::from_secs(2);
/// How long a server has to end by itself. It has nothing to save: all is in its file.
const END_DEADLINE: Duration = Duration::from_secs(20);
/// How long a killed process may be seen. Longer: it hangs in the kernel, on a broken disk for instance.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are read. `INFO server` has about 700.
const ANSWER_BYTES_MAX: usize = 16 * 1_024;

#[derive(Debug)]
pub(super) enum Server {
    /// Our own child.
    Child { pid: Pid, child: Child },
    /// A former owner's child.
    Adopted { pid: Pid, socket: std::path::PathBuf },
}

impl Server {
    pub(super) fn pid(&self) -> Pid {
        match self {
            Server::Child { pid, .. } | Server::Adopted { pid, .. } => *pid,
        }
    }

    /// A new server that answers. Only the owner may call this, and only if no other runs on the directory.
    pub(super) async fn launch(directory: &Directory, program: &Path) -> Result<Server, EmbeddedError> {
        directory.tidy()?;
        let mut child = command(directory, program).spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => EmbeddedError::Missing { program: program.to_owned() },
            _ => EmbeddedError::Start { program: program.to_owned(), source },
        })?;
        let ended = || EmbeddedError::Ended { last_words: directory.last_words() };
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw).ok_or_else(ended)?;
        let socket = directory.socket();
        let outcome = tokio::select! {
            // Its own end first: another server's answer would be no comfort.
            biased;
            _ = child.wait() => Err(ended()),
            answered = wait_for_answer(&socket) => answered,
        };
        let server = Server::Child { pid, child };
        match outcome {
            Ok(()) => {
                info!(pid = pid.as_raw(), directory = %directory.path().display(), "private Redis started");
                Ok(server)
            }
            Err(error) => {
                server.end().await;
                Err(error)
            }
        }
    }

    /// The server that a former owner left behind, if it answers. One that does not is ended.
    pub(super) async fn adopt(directory: &Directory) -> Result<Option<Server>, EmbeddedError> {
        let socket = directory.socket();
        for _ in 0..ADOPT_TRIES {
            if let Some(pid) = process_behind(&socket).await {
                info!(pid = pid.as_raw(), "a private Redis was left running; it is adopted");
                return Ok(Some(Server::Adopted { pid, socket }));
            }
            if directory.running().is_none() {
                return Ok(None);
            }
            sleep(LOOK_PERIOD).await;
        }
        // Two servers on one file would ruin it.
        let Some(pid) = directory.running() else { return Ok(None) };
        warn!(pid = pid.as_raw(), "a private Redis was left running and does not answer; it is ended");
        ask_to_end(pid);
        if !is_gone_within(pid, HUNG_END_DEADLINE).await {
            force_to_end(pid);
            if !is_gone_within(pid, KILL_DEADLINE).await {
                return Err(EmbeddedError::Stuck { pid: pid.as_raw() });
            }
        }
        Ok(None)
    }

    /// Returns when the server has ended.
    pub(super) async fn ended(&mut self) {
        match self {
            Server::Child { child, .. } => {
                // It is a child and is waited for nowhere else, so this can't fail.
                let _ = child.wait().await;
            }
            Server::Adopted { pid, socket } => {
                while !is_gone(*pid) {
                    watch_connection(socket).await;
                    // The connection may have been closed for another reason.
                    sleep(LOOK_PERIOD).await;
                }
            }
        }
    }

    /// On return the server has ended: asked to, or after a while made to.
    pub(super) async fn end(mut self) {
        let pid = self.pid();
        ask_to_end(pid);
        if timeout(END_DEADLINE, self.ended()).await.is_err() {
            warn!(pid = pid.as_raw(), "the private Redis does not end; it is killed");
            force_to_end(pid);
            if timeout(KILL_DEADLINE, self.ended()).await.is_err() {
                warn!(pid = pid.as_raw(), "the private Redis can't be killed; it is left to the system");
            }
        }
    }
}

fn command(directory: &Directory, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["--port", "0", "--unixsocketperm", "700", "--daemonize", "no", "--supervised", "no"]);
    command.arg("--unixsocket").arg(directory.socket()).arg("--dir").arg(directory.path());
    command.arg("--pidfile").arg(directory.pid_file()).arg("--logfile").arg(directory.log());
    // All that was acknowledged is kept; a write that a power cut tore in half was never acknowledged.
    command.args(["--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no"]);
    command.args(["--aof-load-truncated", "yes", "--save", "", "--maxmemory-policy", "noeviction"]);
    // A document with its state fits into the compact form, at a third of the memory. The old name of the setting is
    // understood by all versions.
    command.args(["--hash-max-ziplist-value", "4096"]);
    command.current_dir(directory.path()).env_remove("LD_PRELOAD");
    // In a group of its own, so that Ctrl-C in a terminal ends the daemon first, which then ends it.
    command.process_group(0).kill_on_drop(false);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Returns when a Redis answers at `socket`, if only that it is loading.
pub(super) async fn wait_for_answer(socket: &Path) -> Result<(), EmbeddedError> {
    let deadline = Instant::now() + ANSWER_DEADLINE;
    while Instant::now() < deadline {
        if let Ok(answer) = ask(socket, "PING").await
            && (answer.starts_with("+PONG") || answer.starts_with("-LOADING"))
        {
            return Ok(());
        }
        sleep(LOOK_PERIOD).await;
    }
    Err(EmbeddedError::Silent { socket: socket.to_owned(), log: socket.with_file_name("redis.log") })
}

/// The process that answers at `socket`.
async fn process_behind(socket: &Path) -> Option<Pid> {
    let info = ask(socket, "INFO server").await.ok()?;
    let pid = info.lines().find_map(|line| line.strip_prefix("process_id:"))?;
    pid.trim().parse().ok().map(Pid::from_raw)
}

async fn ask(socket: &Path, question: &str) -> io::Result<String> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(question.as_bytes()).await?;
        stream.write_all(b"\r\nQUIT\r\n").await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX as u64).read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(ASK_TIMEOUT, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Returns when a connection to `socket` is closed: at once if there is none to be had.
async fn watch_connection(socket: &Path) {
    if let Ok(mut stream) = UnixStream::connect(socket).await {
        let _ = stream.read(&mut [0; 1]).await;
    }
}

pub(super) fn ask_to_end(pid: Pid) {
    // It may have ended just now.
    let _ = kill(pid, Signal::SIGTERM);
}

fn force_to_end(pid: Pid) {
    let _ = kill(pid, Signal::SIGKILL);
}

fn is_gone(pid: Pid) -> bool {
    kill(pid, None).is_err()
}

async fn is_gone_within(pid: Pid, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !is_gone(pid) && Instant::now() < deadline {
        sleep(LOOK_PERIOD).await;
    }
    is_gone(pid)
}
