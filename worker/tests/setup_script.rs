//! The port `SetupScript`, by real scripts that do what scripts do at night: hang, die, ignore signals, fork away, print for ever, lie.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

#[path = "support/program.rs"]
mod program;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use program::script;
use serde_json::json;
use support::{Site, eventually, secret};
use turnaround_workflows::ports::{HostRecap, PortErrorKind, Ports, ScriptEnd, ScriptRun, ScriptState};

/// A site whose setup script has this body. What it does is left in `did`.
struct Bench {
    site: Site,
    ports: Ports,
}

impl Bench {
    fn new(body: &str) -> Bench {
        let site = Site::new(
            &json!({ "clouds": { "none": { "auth": { "auth_url": "http://127.0.0.1:9", "user_id": "u", "password": "p", "project_id": "p" } } } }),
            "none",
        );
        let (program, vault) = (site.path("platform-setup.sh"), site.path("vault.password"));
        script(&program, &format!("#!/bin/sh\necho \"$@\" >>\"{}\"\n{body}\n", site.path("did").display()));
        secret(&vault, "open sesame\n");
        let setup = format!("[setup]\nprogram = \"{}\"\nvault_password_file = \"{}\"\n", program.display(), vault.display());
        let site = site.with(&setup);
        let ports = site.ports();
        Bench { site, ports }
    }

    async fn start(&self, name: &str) {
        let run = ScriptRun { name: name.to_owned(), arguments: ["--tags", "open stack"].map(str::to_owned).to_vec() };
        self.ports.setup.start(&run).await.unwrap();
    }

    async fn look(&self, name: &str) -> ScriptState {
        self.ports.setup.look(name).await.unwrap()
    }

    /// Waits until it does not run any more.
    async fn end(&self, name: &str) -> ScriptState {
        let over = async || match self.look(name).await {
            // As the port says: it is to be asked for again.
            ScriptState::NotStarted => {
                self.start(name).await;
                None
            }
            ScriptState::Running { .. } => None,
            over @ (ScriptState::Ended(_) | ScriptState::Lost { .. }) => Some(over),
        };
        eventually("the run is over", over).await
    }

    async fn ended(&self, name: &str) -> ScriptEnd {
        match self.end(name).await {
            ScriptState::Ended(end) => end,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until it runs and has written something.
    async fn says(&self, name: &str) -> String {
        let line = async || match self.look(name).await {
            ScriptState::Running { last_line } if !last_line.is_empty() => Some(last_line),
            _ => None,
        };
        eventually("the run says something", line).await
    }

    /// One line for each time that the script was begun.
    fn did(&self) -> Vec<String> {
        fs::read_to_string(self.site.path("did")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn run(&self, name: &str) -> PathBuf {
        self.site.path("scripts").join(name)
    }

    fn runner(&self, name: &str) -> String {
        fs::read_to_string(self.run(name).join("pid")).unwrap().split(' ').next().unwrap().to_owned()
    }
}

/// What is left of a run whose script never ends. Its session is named by its runner, which this test has started.
struct EndsWith<'a>(&'a Bench, &'static str);

impl Drop for EndsWith<'_> {
    fn drop(&mut self) {
        let _ = Command::new("pkill").args(["-KILL", "-s", &self.0.runner(self.1)]).status();
    }
}

fn signal(name: &str, pid: &str) {
    assert!(Command::new("kill").args([name, pid]).status().unwrap().success());
}

#[tokio::test]
async fn a_run_is_started_once_however_often_it_is_asked_for() {
    let bench = Bench::new("echo begun; exit 0");
    assert_eq!(bench.look("r.1").await, ScriptState::NotStarted);
    // Two workers, each with its own ports, at the same moment, several times.
    let other = bench.site.ports();
    let run = ScriptRun { name: "r.1".to_owned(), arguments: ["--tags", "open stack"].map(str::to_owned).to_vec() };
    let asked = (0..8).map(|n| if n % 2 == 0 { bench.ports.setup.start(&run) } else { other.setup.start(&run) });
    for started in futures::future::join_all(asked).await {
        started.unwrap();
    }
    let end = bench.ended("r.1").await;
    assert_eq!((end.code, end.last_lines), (0, vec!["begun".to_owned()]));
    bench.start("r.1").await;
    assert_eq!(bench.did(), ["--tags open stack"]);
    bench.start("r.2").await;
    bench.ended("r.2").await;
    assert_eq!(bench.did().len(), 2, "another name is another run");
}

#[tokio::test]
async fn one_run_goes_on_at_a_time_also_when_its_runner_alone_was_killed() {
    let bench = Bench::new("echo begun; [ -e go ] || exec sleep 600");
    bench.start("r.1").await;
    let _end = EndsWith(&bench, "r.1");
    bench.says("r.1").await;
    signal("-KILL", &bench.runner("r.1"));
    for _ in 0..5 {
        bench.start("r.2").await;
        assert_eq!(bench.look("r.2").await, ScriptState::NotStarted);
    }
    assert_eq!(bench.did().len(), 1);
    fs::write(bench.site.path("go"), "").unwrap();
    assert!(Command::new("pkill").args(["-KILL", "-s", &bench.runner("r.1")]).status().unwrap().success());
    bench.end("r.1").await;
    bench.start("r.2").await;
    assert_eq!(bench.ended("r.2").await.code, 0);
    assert_eq!(bench.did().len(), 2);
}

#[tokio::test]
async fn its_environment_has_the_password_and_nothing_of_ours() {
    let bench = Bench::new("env; [ -t 0 ] || read line || echo no-input");
    bench.start("r.1").await;
    bench.ended("r.1").await;
    let log = fs::read_to_string(bench.run("r.1").join("log")).unwrap();
    assert!(log.contains("VAULT_PASSWORD=open sesame\n") && log.contains("no-input"), "{log}");
    let allowed = ["VAULT_PASSWORD", "PATH", "HOME", "PWD", "OLDPWD", "LANG", "LC_ALL", "TRACEPARENT", "TRACESTATE", "_", "SHLVL"];
    for variable in log.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name) {
        assert!(allowed.contains(&variable), "{variable} is in its environment");
    }
    let shown: Vec<u8> = fs::read(bench.run("r.1").join("pid")).unwrap();
    assert!(!String::from_utf8_lossy(&shown).contains("sesame"));
}

#[tokio::test]
async fn it_goes_on_when_its_worker_has_gone_and_is_adopted_by_the_next() {
    let bench = Bench::new("while [ ! -e go ]; do echo waiting; sleep 0.05; done; echo gone");
    bench.start("r.1").await;
    bench.says("r.1").await;
    let next = bench.site.ports();
    assert!(matches!(next.setup.look("r.1").await.unwrap(), ScriptState::Running { .. }));
    fs::write(bench.site.path("go"), "").unwrap();
    assert_eq!(bench.ended("r.1").await.last_lines.last().unwrap(), "gone");
    assert_eq!(bench.did().len(), 1);
}

#[tokio::test]
async fn one_that_is_killed_with_all_it_started_is_lost_and_not_done() {
    let bench = Bench::new("echo half; exec sleep 600");
    bench.start("r.1").await;
    let _end = EndsWith(&bench, "r.1");
    bench.says("r.1").await;
    assert!(Command::new("pkill").args(["-KILL", "-s", &bench.runner("r.1")]).status().unwrap().success());
    assert_eq!(bench.end("r.1").await, ScriptState::Lost { last_lines: vec!["half".to_owned()] });
    bench.start("r.1").await;
    assert_eq!(bench.did().len(), 1, "a name is never used twice");
}

#[tokio::test]
async fn one_whose_runner_alone_was_killed_goes_on() {
    let bench = Bench::new("echo alone; exec sleep 600");
    bench.start("r.1").await;
    let _end = EndsWith(&bench, "r.1");
    bench.says("r.1").await;
    signal("-KILL", &bench.runner("r.1"));
    for _ in 0..20 {
        assert_eq!(bench.look("r.1").await, ScriptState::Running { last_line: "alone".to_owned() });
    }
}

#[tokio::test]
async fn a_signal_is_the_scripts_own_business() {
    let bench = Bench::new("trap '' TERM; echo deaf; while [ ! -e go ]; do sleep 0.05; done; exit 3");
    bench.start("r.1").await;
    let _end = EndsWith(&bench, "r.1");
    bench.says("r.1").await;
    let session = bench.runner("r.1");
    assert!(Command::new("pkill").args(["-TERM", "-s", &session]).status().unwrap().success());
    assert!(matches!(bench.look("r.1").await, ScriptState::Running { .. }));
    fs::write(bench.site.path("go"), "").unwrap();
    assert_eq!(bench.ended("r.1").await.code, 3, "its own exit code is what counts");
}

#[tokio::test]
async fn what_it_leaves_behind_is_still_it_also_in_another_session_and_where_its_processes_are_hidden() {
    // (It ends with the test's folder, too.)
    let late = r#"while [ -e "$0/did" ] && [ ! -e "$0/go" ]; do sleep 0.05; done; echo late"#;
    for session in ["sh", "setsid sh"] {
        let bench = Bench::new(&format!("echo $$ >script; {session} -c '{late}' \"$PWD\" & echo early; exit 7"));
        bench.start("r.1").await;
        let _end = EndsWith(&bench, "r.1");
        assert_eq!(bench.says("r.1").await, "early");
        let script = fs::read_to_string(bench.site.path("script")).unwrap();
        let proc = PathBuf::from("/proc").join(script.trim());
        eventually("the script itself has ended", async || (!proc.exists()).then_some(())).await;
        assert!(matches!(bench.look("r.1").await, ScriptState::Running { .. }), "{session}");
        assert!(!bench.run("r.1").join("exit").exists(), "{session}: a worker that sees none of its processes believes in that");
        // As to one who does not see them.
        let runner = fs::read(bench.run("r.1").join("pid")).unwrap();
        fs::write(bench.run("r.1").join("pid"), "1 1 another-boot").unwrap();
        assert!(matches!(bench.look("r.1").await, ScriptState::Running { .. }), "{session}");
        fs::write(bench.site.path("go"), "").unwrap();
        let end = bench.ended("r.1").await;
        assert_eq!((end.code, end.last_lines), (7, vec!["early".to_owned(), "late".to_owned()]), "{session}");
        fs::write(bench.run("r.1").join("pid"), runner).unwrap();
    }
}

/// Its runner has a lock of its own: where its processes are hidden, there is no moment in which it looks lost.
#[tokio::test]
async fn a_run_that_nobody_sees_is_not_lost_while_its_end_is_written() {
    let bench = Bench::new("while [ ! -e go ]; do sleep 0.05; done; exit 0");
    bench.start("r.1").await;
    let _end = EndsWith(&bench, "r.1");
    eventually("it runs", async || matches!(bench.look("r.1").await, ScriptState::Running { .. }).then_some(())).await;
    let runner = fs::read(bench.run("r.1").join("pid")).unwrap();
    fs::write(bench.run("r.1").join("pid"), "1 1 another-boot").unwrap();
    // Somebody else's run, right after the lock was let go: then only the runner's own lock tells.
    fs::write(bench.site.path("go"), "").unwrap();
    let over = async || match bench.look("r.1").await {
        ScriptState::Running { .. } => None,
        over => Some(over),
    };
    let end = eventually("it has ended", over).await;
    assert!(matches!(end, ScriptState::Ended(ScriptEnd { code: 0, .. })), "{end:?}");
    fs::write(bench.run("r.1").join("pid"), runner).unwrap();
}

/// The most memory that a process has had at once, in KiB; None once it has ended.
fn peak_kib(pid: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// `TURNAROUND_SCRIPT_MIB=1024` has it write a gigabyte, and `--nocapture` shows what memory that took.
#[tokio::test]
async fn however_much_it_writes_no_more_of_it_is_held_than_the_end() {
    // 64 MiB: far more than a pipe or a buffer of ours would hold.
    let mib: u64 = std::env::var("TURNAROUND_SCRIPT_MIB").map_or(64, |mib| mib.parse().unwrap());
    let bytes = mib << 20;
    let body = format!("echo 'PLAY RECAP ****'; echo 'gpu-02 : ok=1 changed=0 unreachable=0 failed=1'; yes 'changed: [gpu-01]' | head -c {bytes}; echo; echo 'PLAY RECAP ****'; echo 'gpu-01 : ok=1 changed=2 unreachable=0 failed=4'; while [ ! -e \"$(dirname \"$0\")/go\" ]; do sleep 0.05; done");
    let bench = Bench::new(&body);
    let before = peak_kib("self").unwrap();
    bench.start("r.1").await;
    let written = async || fs::metadata(bench.run("r.1").join("log")).is_ok_and(|log| log.len() > bytes).then_some(());
    eventually("all is written", async || {
        // A worker looks all the time.
        bench.look("r.1").await;
        written().await
    })
    .await;
    let runner = peak_kib(&bench.runner("r.1")).expect("it waits for its script");
    fs::write(bench.site.path("go"), "").unwrap();
    let end = bench.ended("r.1").await;
    let host = |host: &str, changed, failed| HostRecap { host: host.to_owned(), ok: 1, changed, unreachable: 0, failed };
    assert_eq!(end.recap, [host("gpu-02", 0, 1), host("gpu-01", 2, 4)]);
    assert_eq!(end.last_lines.len(), 10);
    let grown = peak_kib("self").unwrap() - before;
    println!("{mib} MiB written: the worker's peak grew by {grown} KiB, its runner's was {runner} KiB");
    // Other tests run in this process, too: far less than what was written is all that can be asked of it.
    assert!(grown < mib * 1024 / 2 && runner < mib * 1024 / 2, "{grown} KiB, {runner} KiB");
}

#[tokio::test]
async fn every_recap_counts_and_the_exit_code_is_told_as_it_is() {
    let recap = "PLAY RECAP *****\ngpu-01 : ok=9 changed=1 unreachable=0 failed=1 skipped=0\n\nPLAY [again] ***\nPLAY RECAP *****\n\
        gpu-01                     : ok=10   changed=3    unreachable=0    failed=0    skipped=2    rescued=0    ignored=0   \n\
        localhost                  : ok=2    changed=0    unreachable=1    failed=0    skipped=0    rescued=0    ignored=0   \n\nTotal time: 3 s";
    let bench = Bench::new(&format!("cat <<'X'\n{recap}\nX\nexit 2"));
    bench.start("r.1").await;
    let end = bench.ended("r.1").await;
    let host = |host: &str, ok, changed, unreachable, failed| HostRecap { host: host.to_owned(), ok, changed, unreachable, failed };
    assert_eq!(end.recap, [host("gpu-01", 9, 1, 0, 1), host("gpu-01", 10, 3, 0, 0), host("localhost", 2, 0, 1, 0)]);
    assert_eq!(end.code, 2);
}

/// A megabyte is far more than what is read of the end, in lines and in one that has none; a recap of the end does not excuse one of the beginning.
#[tokio::test]
async fn a_play_that_failed_early_is_not_forgotten_whatever_was_written_since() {
    let body = "echo 'PLAY RECAP ****'; echo 'gpu-01 : ok=3 changed=0 unreachable=0 failed=1'; echo\n\
        yes 'ok: [gpu-01]' | head -c 1200000; echo; yes | tr -d '\\n' | head -c 1200000; echo\n\
        echo 'PLAY RECAP ****'; echo 'gpu-01 : ok=9 changed=2 unreachable=0 failed=0'; echo; echo 'all done'; exit 0";
    let bench = Bench::new(body);
    bench.start("r.1").await;
    let end = bench.ended("r.1").await;
    let host = |ok, changed, failed| HostRecap { host: "gpu-01".to_owned(), ok, changed, unreachable: 0, failed };
    assert_eq!(end.recap, [host(3, 0, 1), host(9, 2, 0)]);
    assert_eq!((end.code, end.last_lines.last().unwrap().as_str()), (0, "all done"));
}

#[tokio::test]
async fn a_script_that_is_not_there_ends_as_a_shell_says_and_without_a_setup_nothing_is_started() {
    let bench = Bench::new("exit 0");
    fs::remove_file(bench.site.path("platform-setup.sh")).unwrap();
    bench.start("r.1").await;
    let end = bench.ended("r.1").await;
    assert_eq!(end.code, 127);
    assert!(end.last_lines[0].contains("not found"), "{:?}", end.last_lines);
    let plain = Site::new(&json!({ "clouds": { "none": { "auth": { "auth_url": "http://127.0.0.1:9", "user_id": "u", "password": "p", "project_id": "p" } } } }), "none");
    let run = ScriptRun { name: "r.1".to_owned(), arguments: Vec::new() };
    let error = plain.ports().setup.start(&run).await.unwrap_err();
    assert!(matches!(error.kind, PortErrorKind::Refused { ref reason } if reason.contains("setup.program")), "{error}");
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_is_refused() {
    let bench = Bench::new("exit 0");
    for name in ["../r", "", ".r", "a/b", "a b"] {
        let run = ScriptRun { name: name.to_owned(), arguments: Vec::new() };
        assert!(matches!(bench.ports.setup.start(&run).await.unwrap_err().kind, PortErrorKind::Refused { .. }), "{name}");
    }
    assert_eq!(bench.did(), [] as [&str; 0]);
}
