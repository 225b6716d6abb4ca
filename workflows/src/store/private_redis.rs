//! A Redis of one's own for tests: in a new directory, on a unix socket, gone when dropped.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::redis::{RedisAddress, RedisOptions};

/// Looks at a starting server, each 5 ms: 20 s, because a loaded machine may be that slow.
const LOOKS_MAX: u32 = 4_000;
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

const PATIENCE: Duration = Duration::from_secs(60);

/// In memory where there is such a place: what these tests end is the process, not the machine, and a busy disk
/// would make them slow.
fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// One server, and the directory in which it keeps its file. Panics where anything goes wrong: it is for tests only.
#[derive(Debug)]
pub struct PrivateRedis {
    directory: PathBuf,
    settings: Vec<String>,
    server: Child,
}

impl PrivateRedis {
    /// A running server that keeps what it acknowledges.
    pub fn start() -> PrivateRedis {
        PrivateRedis::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// A running server with these settings.
    pub fn start_with(settings: &[&str]) -> PrivateRedis {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = place().join(format!("ta-redis-{}-{count}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).expect("a directory for the private Redis");
        PrivateRedis::start_in(directory, settings)
    }

    /// The same in that directory, which is removed with it.
    pub fn start_in(directory: PathBuf, settings: &[&str]) -> PrivateRedis {
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let server = launch(&directory, &settings);
        PrivateRedis { directory, settings, server }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("redis.sock")
    }

    /// Where it keeps its file.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Patient ones: a loaded machine is no outage.
    pub fn options(&self) -> RedisOptions {
        RedisOptions { reply_timeout: PATIENCE, ..RedisOptions::new(RedisAddress::Socket(self.socket())) }
    }

    /// Ends the server as a power cut of the process would: SIGKILL.
    pub fn kill(&mut self) {
        self.server.kill().expect("the private Redis can be killed");
        self.server.wait().expect("the private Redis ends");
    }

    /// Starts the server again on the same directory, and waits until it answers.
    pub fn start_again(&mut self) {
        self.server = launch(&self.directory, &self.settings);
    }

    /// The same, and does not wait until it has read its file: it answers that it is loading.
    pub fn begin_to_start_again(&mut self, settings: &[&str]) {
        let settings: Vec<String> = self.settings.iter().cloned().chain(settings.iter().map(|&setting| setting.to_owned())).collect();
        self.server = launch_until(&self.directory, &settings, |answer| answer.starts_with("-LOADING") || answer.starts_with("+PONG"));
    }

    /// Waits until it has ended by itself.
    pub fn wait_for_end(&mut self) {
        self.server.wait().expect("the private Redis ends");
    }

    /// Stops the server's clockwork: it hangs, with its connections open.
    pub fn pause(&self) {
        self.send(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.send(Signal::SIGCONT);
    }

    /// Runs one command, words without spaces, and returns the raw answer.
    pub fn command(&self, words: &[&str]) -> String {
        ask(&self.socket(), words).expect("the private Redis answers")
    }

    fn send(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.server.id()).expect("a process id"));
        kill(pid, signal).expect("the private Redis takes signals");
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn launch(directory: &Path, settings: &[String]) -> Child {
    launch_until(directory, settings, |answer| answer.starts_with("+PONG"))
}

fn launch_until(directory: &Path, settings: &[String], is_there: impl Fn(&str) -> bool) -> Child {
    // A socket that a killed server left behind would be taken for the new one's.
    let socket = directory.join("redis.sock");
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("redis-server");
    command.arg("--port").arg("0").arg("--unixsocket").arg(&socket).arg("--dir").arg(directory);
    command.args(["--save", "", "--daemonize", "no"]).args(settings);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = command.spawn().unwrap_or_else(|error| {
        panic!("these tests need `redis-server` (apt-get install redis-server), which could not be started: {error}")
    });
    for _ in 0..LOOKS_MAX {
        if ask(&socket, &["PING"]).is_ok_and(|answer| is_there(&answer)) {
            return server;
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    let _ = server.kill();
    let _ = server.wait();
    panic!("the private Redis in {} does not answer", directory.display());
}

fn ask(socket: &Path, words: &[&str]) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("{}\r\n", words.join(" ")).as_bytes())?;
    // One read is enough for the short answers that tests ask for.
    let mut answer = vec![0; 64 * 1_024];
    let length = loop {
        match stream.read(&mut answer) {
            // A signal came in between.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}
