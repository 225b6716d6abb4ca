//! The daemon as a process: what it refuses at the start, and how it ends.

use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::site::{PATIENCE, config_text};
use crate::beds;

struct Daemon {
    child: Child,
}

fn daemon(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnaround-daemon"));
    command.arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Without `redis-server` there is nothing to show here.
fn redis_is_missing(test: &str) -> bool {
    let missing = std::process::Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err();
    if missing {
        beds::skip("redis", test, "redis-server is not installed (apt-get install redis-server)");
    }
    missing
}

/// A good configuration with everything inside `folder`.
fn write_config(folder: &Path, name: &str, store: &str) -> std::path::PathBuf {
    let written = format!(
        "state_dir = \"{0}\"\n{store}\n[daemon]\nsocket = \"{0}/api.sock\"\n",
        folder.display()
    );
    let file = folder.join(name);
    std::fs::write(&file, config_text(&written)).unwrap();
    file
}

impl Daemon {
    /// On return it answers.
    async fn start(config: &Path, socket: &Path) -> Daemon {
        let child = daemon(config).spawn().unwrap();
        let answers = async {
            while std::os::unix::net::UnixStream::connect(socket).is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, answers).await.expect("the daemon serves");
        Daemon { child }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    async fn end(mut self) -> Option<i32> {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the daemon ends").unwrap().code()
    }
}

async fn refusal(config: &Path) -> (Option<i32>, String) {
    let output = tokio::time::timeout(PATIENCE, daemon(config).output()).await.expect("it refuses").unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn a_configuration_with_a_mistake_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_config(folder.path(), "config.toml", "[worker]\nslots = \"many\"");
    let (code, said) = refusal(&file).await;
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("slots"), "{said}");
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["config.toml"], "nothing was made");
}

#[tokio::test]
async fn a_socket_that_can_not_be_had_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_config(folder.path(), "config.toml", "");
    std::fs::write(folder.path().join("api.sock"), "my notes").unwrap();
    let (code, said) = refusal(&file).await;
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains("is not a socket"), "{said}");
    assert_eq!(std::fs::read_to_string(folder.path().join("api.sock")).unwrap(), "my notes");
}

#[tokio::test]
async fn one_daemon_serves_a_socket_and_a_dead_one_is_no_hindrance() {
    if redis_is_missing("one_daemon_serves_a_socket_and_a_dead_one_is_no_hindrance") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, socket) = (write_config(folder.path(), "config.toml", ""), folder.path().join("api.sock"));
    let first = Daemon::start(&file, &socket).await;
    let (code, said) = refusal(&file).await;
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains("another daemon serves"), "{said}");
    first.signal(nix::sys::signal::Signal::SIGKILL);
    first.end().await;
    assert!(socket.exists(), "it was left behind");
    let second = Daemon::start(&file, &socket).await;
    second.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(second.end().await, Some(0));
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_redis_that_would_lose_writes_is_refused_with_the_remedy() {
    if redis_is_missing("a_redis_that_would_lose_writes_is_refused_with_the_remedy") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let redis = folder.path().join("r.sock");
    let mut server = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
        .arg(&redis)
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // The daemon itself waits for it to come up.
    let file = write_config(folder.path(), "config.toml", &format!("[store]\nurl = \"redis+unix://{}\"", redis.display()));
    let (code, said) = refusal(&file).await;
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("appendonly"), "{said}");
    assert!(!folder.path().join("api.sock").exists());
    server.kill().await.unwrap();
}

/// Seconds for which a tick has started something, in order, as a daemon on `socket` lists them.
async fn ticks(socket: &Path) -> Vec<i64> {
    let listing = Command::new(env!("CARGO_BIN_EXE_turnaround"))
        .arg("--socket")
        .arg(socket)
        .args(["--json", "workflows", "--all", "--limit", "500"])
        .output()
        .await
        .unwrap();
    let listing: serde_json::Value = serde_json::from_slice(&listing.stdout).unwrap();
    let seconds = |one: &serde_json::Value| one["id"].as_str().unwrap().rsplit('-').next().unwrap().parse().unwrap();
    let mut ticks: Vec<i64> = listing["workflows"].as_array().unwrap().iter().map(seconds).collect();
    ticks.sort_unstable();
    ticks
}

#[tokio::test]
async fn two_daemons_that_are_killed_and_started_again_fire_every_tick_once() {
    if redis_is_missing("two_daemons_that_are_killed_and_started_again_fire_every_tick_once") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let redis = folder.path().join("r.sock");
    let _server = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--unixsocket"])
        .arg(&redis)
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let each_second = "[schedules.each]\ncron = \"* * * * * *\"\ndialect = \"quartz\"\ncatch_up = \"all\"\nstarts = \"survey\"";
    let store = format!("[store]\nurl = \"redis+unix://{}\"\n{each_second}", redis.display());
    let sites = ["a", "b"].map(|name| {
        let own = folder.path().join(name);
        std::fs::create_dir(&own).unwrap();
        (write_config(&own, "config.toml", &store), own.join("api.sock"))
    });
    let mut seen = 0;
    for _round in 0..3 {
        let mut daemons = Vec::new();
        for (config, socket) in &sites {
            daemons.push(Daemon::start(config, socket).await);
        }
        let more = async {
            while ticks(&sites[0].1).await.len() < seen + 2 {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, more).await.expect("ticks are fired");
        let fired = ticks(&sites[0].1).await;
        assert!(fired.windows(2).all(|two| two[1] - two[0] == 1), "once each, and none left out: {fired:?}");
        seen = fired.len();
        for daemon in daemons {
            daemon.signal(nix::sys::signal::Signal::SIGKILL);
            daemon.end().await;
        }
    }
}
