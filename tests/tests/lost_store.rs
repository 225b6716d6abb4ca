//! A store that loses something, and one that can't be reached, under the real daemon, real workers and the real command.
#![allow(clippy::unwrap_used)]

use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use turnaround_daemon::wire::{StatusView, WorkflowView};
use turnaround_tests::harness::{Running, copy, until};
use turnaround_tests::lab::Processes;
use turnaround_workflows::rehearsal::{Happened, SitePlan};
use turnaround_workflows::store::Status;

fn plan() -> SitePlan {
    SitePlan::uniform(3, 1).sped_up(60)
}

async fn redis(running: &Running, words: &[&str]) -> io::Result<String> {
    let client = redis::Client::open(format!("unix://{}", Processes::redis_socket(running.site.folder()).display())).map_err(io::Error::other)?;
    let mut connection = client.get_multiplexed_async_connection().await.map_err(io::Error::other)?;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    let answer: redis::Value = command.query_async(&mut connection).await.map_err(io::Error::other)?;
    Ok(format!("{answer:?}"))
}

async fn status(running: &Running) -> Option<StatusView> {
    running.client.get("/v1/status").await.ok()
}

/// Waits until this alarm is raised, and no other one of the store.
async fn alarmed(running: &Running, code: &str) -> StatusView {
    // The halt is read from the store, the alarm is this daemon's: one may be there a moment before the other.
    let is_told = |view: &StatusView| view.store.halt.is_some() == (code == "store-halted") && view.alarms.iter().any(|alarm| alarm.code == code);
    until(&format!("the alarm {code}"), async || status(running).await.filter(is_told)).await.unwrap()
}

async fn quiet(running: &Running) {
    until("all alarms to be over", async || status(running).await.filter(|view| view.alarms.is_empty() && view.store.reachable).map(|_| ())).await.unwrap();
}

async fn renewed(running: &Running, node: &str) {
    let id = running.renew(&[node]).await.unwrap();
    let ended = running.rests(&id).await.unwrap();
    assert_eq!(ended.line.status, Status::Succeeded, "{}", ended.line.headline);
}

/// Lines of a log that warn, or ask for a person.
fn complaints(folder: &Path, name: &str) -> Vec<String> {
    let log = std::fs::read_to_string(folder.join(name)).unwrap();
    log.lines().filter(|line| line.contains("\"level\":\"WARN\"") || line.contains("\"level\":\"ERROR\"")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_flushed_store_is_halted_within_seconds_and_gone_on_with_by_an_operator() {
    let mut running = Running::start(plan(), 2, |_| {}).await.unwrap();
    running.processes.start_second_daemon().unwrap();
    renewed(&running, "gpu-01").await;
    quiet(&running).await;
    let since = tokio::time::Instant::now();
    redis(&running, &["FLUSHALL"]).await.unwrap();
    let view = alarmed(&running, "store-halted").await;
    println!("noticed after {:.2} s", since.elapsed().as_secs_f64());
    let halt = view.store.halt.unwrap();
    assert_eq!(halt.found, "an empty store");
    let refused = running.renew(&["gpu-02"]).await.unwrap_err().to_string();
    assert!(refused.contains("turnaround store accept"), "{refused}");
    let shown = running.turnaround(&["status"]).await.unwrap();
    assert!(shown.contains("HALTED since") && shown.contains("docs/errors/store-halted.md"), "{shown}");

    running.turnaround(&["store", "accept", "--yes"]).await.unwrap();
    quiet(&running).await;
    renewed(&running, "gpu-02").await;
    // Neither daemon has halted it again meanwhile, nor does one that is started anew.
    running.processes.kill_daemon().await.unwrap();
    running.processes.start_daemon().unwrap();
    running.client.until_up().await.unwrap();
    renewed(&running, "gpu-03").await;
    assert_eq!(status(&running).await.unwrap().alarms, []);
    let history = std::fs::read_to_string(running.site.state_dir().join("store.jsonl")).unwrap();
    let events: Vec<Value> = history.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|event| event["event"] == "accepted" && event["what"]["loss"] == "emptied"), "{history}");
    running.processes.end().await.unwrap();
}

/// The backup is of the moment at which that step of the node's is under way.
async fn a_backup_of_that_step_is_put_back(step: &str) {
    let mut running = Running::start(plan(), 2, |_| {}).await.unwrap();
    let data = running.site.folder().join("redis");
    let backup = running.site.folder().join("backup");
    let rollout = running.renew(&["gpu-01"]).await.unwrap();
    let node = format!("/v1/workflows/{rollout}.gpu-01");
    let under_way = async || {
        let view: WorkflowView = running.client.get(&node).await.ok()?;
        view.steps.iter().any(|each| each.step == step && each.begun.is_some()).then_some(())
    };
    until(&format!("the node's {step} to begin"), under_way).await.unwrap();
    running.processes.kill_redis().await.unwrap();
    copy(&data, &backup).unwrap();
    running.processes.start_redis().await.unwrap();
    // A kill is no loss.
    assert_eq!(running.rests(&rollout).await.unwrap().line.status, Status::Succeeded);
    running.until_looked().await.unwrap();
    quiet(&running).await;

    running.processes.kill_redis().await.unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    copy(&backup, &data).unwrap();
    let done = running.world.events().len();
    running.processes.start_redis().await.unwrap();
    let view = alarmed(&running, "store-halted").await;
    let halt = view.store.halt.unwrap();
    assert!(halt.means.contains("acknowledged"), "{halt:?}");
    // The renewal is under way again, as the store has it, and nobody works on it, nor has for a moment.
    let before: WorkflowView = running.client.get(&node).await.unwrap();
    assert!(!before.line.status.is_ended());
    let since: Vec<_> = running.world.events().into_iter().skip(done).collect();
    assert!(since.is_empty(), "{since:?}");
    running.turnaround(&["store", "accept", "--yes"]).await.unwrap();
    let mut ended = running.rests(&format!("{rollout}.gpu-01")).await.unwrap();
    if let Some(question) = &ended.question {
        // It looks at the world, and finds a node that is in service, which it had closed as far as it knows: nobody is wiped.
        assert!(question.seen.iter().chain([&question.text]).any(|seen| seen.contains("open")), "{question:?}");
        running.turnaround(&["answer", &format!("{rollout}.gpu-01"), "unwind"]).await.unwrap();
        ended = running.rests(&rollout).await.unwrap();
        assert_eq!(ended.line.status, Status::Failed, "{}", ended.line.headline);
    } else {
        assert_eq!(ended.line.status, Status::Succeeded, "it looks at the world and goes on: {}", ended.line.headline);
    }
    let node = running.world.snapshot().node("gpu-01").unwrap().clone();
    assert!(node.enabled && node.kernel == running.world.images()[0].kernel, "{node:?}");
    let resets = running.world.events().into_iter().filter(|event| matches!(event.what, Happened::ResetRequested { .. })).count();
    assert_eq!(resets, 1, "what is done is not done again");
    quiet(&running).await;
    running.processes.end().await.unwrap();
}

#[tokio::test]
async fn a_backup_that_was_put_back_is_halted_and_its_workflows_look_before_they_go_on() {
    a_backup_of_that_step_is_put_back("evacuate").await;
}

#[tokio::test]
async fn a_backup_of_a_node_that_was_being_installed_is_halted_and_goes_on_once_accepted() {
    a_backup_of_that_step_is_put_back("await-install").await;
}

/// Between everybody and Redis: passes on, or takes every connection and closes it at once.
struct Middle {
    cut: Arc<AtomicBool>,
    taken: Arc<AtomicUsize>,
}

impl Middle {
    fn listen(socket: &Path, redis: PathBuf) -> Middle {
        let listener = StdUnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        let middle = Middle { cut: Arc::default(), taken: Arc::default() };
        let (cut, taken) = (Arc::clone(&middle.cut), Arc::clone(&middle.taken));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                taken.fetch_add(1, Ordering::SeqCst);
                let (cut, redis) = (Arc::clone(&cut), redis.clone());
                tokio::spawn(async move {
                    if cut.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(mut server) = UnixStream::connect(redis).await else { return };
                    let ended = async {
                        while !cut.load(Ordering::SeqCst) {
                            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                        }
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        () = ended => {}
                    }
                });
            }
        });
        middle
    }

    /// Returns when `more` connections were taken; says how many seconds that took.
    async fn take(&self, more: usize) -> f64 {
        let (began, first) = (tokio::time::Instant::now(), self.taken.load(Ordering::SeqCst));
        until("further tries", async || (self.taken.load(Ordering::SeqCst) >= first + more).then_some(())).await.unwrap();
        began.elapsed().as_secs_f64()
    }
}

/// Tries in a second of a daemon and two workers together, each with three connections, each of them tried again within a second at
/// the latest, and sooner at random.
const TRIES_PER_SECOND_MAX: f64 = 30.0;

#[tokio::test]
async fn while_redis_is_away_everybody_tries_at_a_bounded_rate_says_so_once_and_goes_on_after_it() {
    let mut middle = None;
    let running = Running::start(plan(), 2, |settings| {
        let there = settings.store.split_once("unix://").and_then(|(_, rest)| rest.split_once('"')).map(|(path, _)| PathBuf::from(path)).unwrap();
        let between = there.with_file_name("middle.sock");
        settings.store = settings.store.replace("redis.sock", "middle.sock");
        middle = Some(Middle::listen(&between, there));
    })
    .await
    .unwrap();
    let middle = middle.unwrap();
    until("both workers to wait for the bell", async || {
        let clients = redis(&running, &["CLIENT", "LIST"]).await.ok()?;
        (clients.matches("cmd=blpop").count() == 2).then_some(())
    })
    .await
    .unwrap();
    let rollout = running.renew(&["gpu-01"]).await.unwrap();
    middle.cut.store(true, Ordering::SeqCst);
    alarmed(&running, "store-unreachable").await;
    let refused = running.renew(&["gpu-02"]).await.unwrap_err().to_string();
    assert!(refused.contains("the store does not answer") && refused.contains("--key"), "{refused}");
    let first = middle.take(100).await;
    let seconds = middle.take(100).await;
    println!("100 tries took {first:.1} s, and 100 more {seconds:.1} s");
    assert!(100.0 / seconds <= TRIES_PER_SECOND_MAX, "100 tries in {seconds} s");
    middle.cut.store(false, Ordering::SeqCst);
    let ended = running.rests(&rollout).await.unwrap();
    assert_eq!(ended.line.status, Status::Succeeded, "no step failed: {}", ended.line.headline);
    assert!(ended.steps.iter().all(|step| step.failures == 0));
    quiet(&running).await;
    for (log, most) in [("daemon.log", 6), ("worker-1.log", 3), ("worker-2.log", 3)] {
        let complaints = complaints(running.site.folder(), log);
        let all = || std::fs::read_to_string(running.site.folder().join(log)).unwrap();
        assert!(!complaints.is_empty() && complaints.len() <= most, "{log}: {complaints:#?} of\n{}", all());
    }
    let daemon = complaints(running.site.folder(), "daemon.log");
    assert_eq!(daemon.iter().filter(|line| line.contains("store-unreachable")).count(), 1, "{daemon:#?}");
    running.processes.end().await.unwrap();
}
