//! A backup is made and put back as `docs/operating.md` says, by the command that an operator types: real processes, and the daemon's private Redis.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use turnaround_daemon::wire::{StatusView, WorkflowView};
use turnaround_tests::harness::{Running, copy, until};
use turnaround_workflows::rehearsal::{Happened, SitePlan};
use turnaround_workflows::store::Status;

/// A test that fails kills the daemon, and would leave its private Redis behind.
struct EndsRedis(PathBuf);

impl Drop for EndsRedis {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.0.join("redis/redis.pid")).ok().and_then(|pid| pid.trim().parse().ok());
        if let (true, Some(pid)) = (std::thread::panicking(), pid) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

async fn stop_all(running: &mut Running) {
    for worker in 0..running.processes.workers() {
        running.processes.stop_worker(worker).await.unwrap();
    }
    running.processes.stop_daemon().await.unwrap();
}

async fn start_daemon(running: &mut Running) {
    running.processes.start_daemon().unwrap();
    running.client.until_up().await.unwrap();
}

fn start_workers(running: &mut Running) {
    for worker in 0..running.processes.workers() {
        running.processes.start_worker(worker).unwrap();
    }
}

/// How often these happened.
fn times(running: &Running, is_meant: impl Fn(&Happened) -> bool) -> usize {
    running.world.events().iter().filter(|event| is_meant(&event.what)).count()
}

#[tokio::test]
async fn a_backup_is_put_back_as_it_is_written_down_and_no_node_that_is_in_service_is_touched() {
    let plan = SitePlan::uniform(3, 1).with_setup(&[]).setup_takes(Duration::from_secs(60)).sped_up(60);
    // The private Redis, as the units of a release have it.
    let mut running = Running::start(plan, 2, |settings| settings.store = "reply_timeout = \"1s\"".to_owned()).await.unwrap();
    let (state, backup) = (running.site.state_dir(), running.site.folder().join("backup"));
    let _ends = EndsRedis(state.clone());
    let rollout = running.renew(&["gpu-01", "gpu-02"]).await.unwrap();
    let [first, second] = ["gpu-01", "gpu-02"].map(|node| format!("{rollout}.{node}"));
    until("the first node to be installed", async || {
        let view: WorkflowView = running.client.get(&format!("/v1/workflows/{first}")).await.ok()?;
        view.steps.iter().any(|each| each.step == "await-install" && each.begun.is_some()).then_some(())
    })
    .await
    .unwrap();

    // Backup.
    stop_all(&mut running).await;
    copy(&state, &backup).unwrap();
    start_daemon(&mut running).await;
    start_workers(&mut running);
    assert_eq!(running.rests(&rollout).await.unwrap().line.status, Status::Succeeded);
    let is_effect = |what: &Happened| matches!(what, Happened::ResetRequested { .. } | Happened::ScriptStarted { .. });
    assert_eq!(times(&running, is_effect), 5, "a fetch, and a reset and a run for each node");
    running.until_looked().await.unwrap();

    // Restore, of `redis/` alone.
    stop_all(&mut running).await;
    std::fs::rename(state.join("redis"), state.join("redis.old")).unwrap();
    copy(&backup.join("redis"), &state.join("redis")).unwrap();
    start_daemon(&mut running).await;
    until("the store to be halted", async || {
        let view: StatusView = running.client.get("/v1/status").await.ok()?;
        view.store.halt.map(|_| ())
    })
    .await
    .unwrap();
    let shown = running.turnaround(&["status"]).await.unwrap();
    assert!(shown.contains("HALTED since"), "{shown}");
    // (For a moment nobody has looked whether Redis has lost something.)
    until("the halt to refuse orders", async || running.turnaround(&["abort", &rollout]).await.unwrap_err().to_string().contains("turnaround store accept").then_some(())).await.unwrap();
    running.turnaround(&["store", "accept", "--yes"]).await.unwrap();
    let listed = running.turnaround(&["workflows", "--limit", "500"]).await.unwrap();
    assert!([&rollout, &first].iter().all(|id| listed.contains(id.as_str())), "{listed}");
    // The second node is renewed, and in service: it must not be begun. The first one is past its reset, as the backup has it.
    running.turnaround(&["abort", &rollout]).await.unwrap();
    let done = times(&running, is_effect);

    start_workers(&mut running);
    let asks = running.rests(&first).await.unwrap();
    let question = asks.question.unwrap_or_else(|| panic!("{:?}", asks.line));
    assert_eq!(question.text, "gpu-01 is not closed and empty before the setup script is run for it: what now?");
    running.turnaround(&["answer", &first, "leave"]).await.unwrap();
    for id in [&first, &rollout] {
        until("it to end", async || {
            let view: WorkflowView = running.client.get(&format!("/v1/workflows/{id}")).await.ok()?;
            view.line.status.is_ended().then_some(())
        })
        .await
        .unwrap();
    }
    assert_eq!(times(&running, is_effect), done, "nothing is wiped or set up again");
    let second: Option<WorkflowView> = running.client.get(&format!("/v1/workflows/{second}")).await.ok();
    assert!(second.is_none_or(|view| view.line.status.is_ended()), "it is not begun");
    let snapshot = running.world.snapshot();
    assert!(snapshot.node("gpu-01").unwrap().enabled && snapshot.node("gpu-02").unwrap().enabled, "both are in service");
    running.processes.end().await.unwrap();
}
