//! Real processes on a real Redis: kills, stops, restarts.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use turnaround_daemon::wire::{WorkflowLine, WorkflowView, WorkflowsView};
use turnaround_tests::harness::{Running, until};
use turnaround_tests::lab::Processes;
use turnaround_workflows::rehearsal::{Happened, SetupPlan, SitePlan};
use turnaround_workflows::store::Status;

/// Long enough for every worker to be killed meanwhile.
const SCRIPT_TAKES: Duration = Duration::from_secs(6);

/// Faster than life, slow enough that a step can be caught in the act.
fn plan() -> SitePlan {
    SitePlan::uniform(3, 1).sped_up(60)
}

/// The node workflow, once a worker has it in hand.
async fn in_hand(running: &Running) -> WorkflowLine {
    until("a worker to take the node's workflow", async || {
        let open: WorkflowsView = running.client.get("/v1/workflows?scope=open&kind=node-os").await.ok()?;
        open.workflows.into_iter().find(|line| line.worker.is_some())
    })
    .await
    .unwrap()
}

/// Which of the workers has that process id.
fn which(processes: &Processes, worker: &str) -> usize {
    let pid: u32 = worker.rsplit(':').next().unwrap().parse().unwrap();
    (0..processes.workers()).find(|index| processes.worker_pid(*index) == Some(pid)).unwrap()
}

async fn ends_well(running: &Running, rollout: &str) -> WorkflowView {
    let ended = until("the rollout to end", async || {
        let view: WorkflowView = running.client.get(&format!("/v1/workflows/{rollout}")).await.ok()?;
        (view.line.status.is_ended() || view.line.status == Status::NeedsOperator).then_some(view)
    })
    .await
    .unwrap();
    assert_eq!(ended.line.status, Status::Succeeded, "{}", ended.line.headline);
    ended
}

/// Every answer of the site takes so long that a worker is caught while it waits for one.
const CAUGHT: Duration = Duration::from_secs(20);

async fn caught() -> (Running, String, WorkflowLine) {
    let running = Running::start(plan(), 2, |_| {}).await.unwrap();
    running.site.servers.mishaps.slow_down(CAUGHT);
    let rollout = running.renew(&["gpu-01"]).await.unwrap();
    let line = in_hand(&running).await;
    (running, rollout, line)
}

/// Says how long it took since `since`; how long it may take is measured, not tested.
async fn another_worker_has_it(running: &Running, before: &WorkflowLine, since: tokio::time::Instant) {
    until("another worker to take over", async || {
        let view: WorkflowView = running.client.get(&format!("/v1/workflows/{}", before.id)).await.ok()?;
        (view.line.worker.is_some() && view.line.worker != before.worker).then_some(())
    })
    .await
    .unwrap();
    println!("taken over after {:.2} s, with a lease of 2 s", since.elapsed().as_secs_f64());
}

#[tokio::test]
async fn what_a_killed_worker_had_in_hand_goes_on_elsewhere() {
    let (mut running, rollout, line) = caught().await;
    let victim = which(&running.processes, line.worker.as_deref().unwrap());
    let since = tokio::time::Instant::now();
    running.processes.kill_worker(victim).await.unwrap();
    another_worker_has_it(&running, &line, since).await;
    running.site.servers.mishaps.clear();
    ends_well(&running, &rollout).await;
    running.processes.end().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_hands_its_work_back_at_once() {
    let (mut running, rollout, line) = caught().await;
    let victim = which(&running.processes, line.worker.as_deref().unwrap());
    let since = tokio::time::Instant::now();
    running.processes.stop_worker(victim).await.unwrap();
    another_worker_has_it(&running, &line, since).await;
    running.site.servers.mishaps.clear();
    ends_well(&running, &rollout).await;
    running.processes.end().await.unwrap();
}

/// The setup script outlives whoever started it, is adopted, and is not begun a second time.
#[tokio::test]
async fn a_setup_script_goes_on_while_every_worker_is_killed_and_is_run_once() {
    let mut plan = plan();
    plan.setup = Some(SetupPlan { takes: SCRIPT_TAKES, ..SetupPlan::default() });
    let mut running = Running::start(plan, 2, |_| {}).await.unwrap();
    let rollout = running.renew(&["gpu-01"]).await.unwrap();
    let node = format!("{rollout}.gpu-01");
    until("the script to run", async || {
        let view: WorkflowView = running.client.get(&format!("/v1/workflows/{node}")).await.ok()?;
        view.line.headline.contains("the setup script runs").then_some(())
    })
    .await
    .unwrap();
    for worker in 0..2 {
        running.processes.kill_worker(worker).await.unwrap();
    }
    // Without any worker: whoever follows what it writes sees its end.
    let log = running.turnaround(&["show", "--log", "--follow", &node]).await.unwrap();
    assert!(log.contains("TASK [nova-cell : Starting nova-compute container]\n") && log.contains("PLAY RECAP"), "{log}");
    let ended = |what: &Happened| matches!(what, Happened::ScriptEnded { node: Some(_), .. });
    until("the script to end, without any worker", async || running.world.events().iter().any(|event| ended(&event.what)).then_some(()))
        .await
        .unwrap();
    running.processes.start_what_is_missing().unwrap();
    ends_well(&running, &rollout).await;
    let begun = running.world.events().iter().filter(|event| matches!(event.what, Happened::ScriptStarted { .. })).count();
    assert_eq!(begun, 2, "one for the PXE server, one for the node");
    let log = running.turnaround(&["show", "--log", &node]).await.unwrap();
    assert!(log.contains("TASK [nova-cell : Starting nova-compute container]\n") && log.contains("PLAY RECAP"), "{log}");
    let log = running.turnaround(&["show", "--log", &rollout]).await.unwrap();
    assert!(log.contains("PLAY RECAP") && log.contains("pxe"), "{log}");
    running.processes.end().await.unwrap();
}

#[tokio::test]
async fn everybody_goes_on_after_redis_was_killed_and_restarted() {
    let (mut running, rollout, _) = caught().await;
    running.processes.kill_redis().await.unwrap();
    running.processes.start_redis().await.unwrap();
    running.site.servers.mishaps.clear();
    ends_well(&running, &rollout).await;
    let images = running.world.events().iter().filter(|event| matches!(event.what, Happened::ImageWritten { .. })).count();
    assert_eq!(images, 1);
    running.processes.end().await.unwrap();
}

#[tokio::test]
async fn two_daemons_and_five_workers_killed_and_restarted_ten_times_fire_every_tick_once() {
    let schedule = "[schedules.look]\ncron = \"*/1 * * * * *\"\ndialect = \"quartz\"\ncatch_up = \"all\"\nstarts = \"survey\"\n";
    let mut running = Running::start(plan(), 5, |settings| schedule.clone_into(&mut settings.more)).await.unwrap();
    running.processes.start_second_daemon().unwrap();
    for round in 0..10 {
        let before = surveys(&running).await;
        until("another tick to fire", async || (surveys(&running).await > before).then_some(())).await.unwrap();
        running.processes.kill_daemon().await.unwrap();
        running.processes.kill_second_daemon().await.unwrap();
        for worker in 0..running.processes.workers() {
            running.processes.kill_worker(worker).await.unwrap();
        }
        running.processes.start_daemon().unwrap();
        running.processes.start_second_daemon().unwrap();
        for worker in 0..running.processes.workers() {
            running.processes.start_worker(worker).unwrap();
        }
        running.client.until_up().await.unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
    let ids = survey_ids(&running).await;
    let seconds: Vec<i64> = ids.iter().map(|id| id.rsplit('-').next().unwrap().parse().unwrap()).collect();
    let (first, last) = (*seconds.iter().min().unwrap(), *seconds.iter().max().unwrap());
    let wanted: Vec<i64> = (first..=last).collect();
    let mut fired = seconds.clone();
    fired.sort_unstable();
    assert_eq!(fired, wanted, "one survey for each second, none twice, none missing");
    running.processes.end().await.unwrap();
}

async fn survey_ids(running: &Running) -> Vec<String> {
    let view: Result<WorkflowsView, _> = running.client.get("/v1/workflows?scope=all&kind=survey&limit=500").await;
    view.map(|view| view.workflows.into_iter().map(|line| line.id.to_string()).collect()).unwrap_or_default()
}

async fn surveys(running: &Running) -> usize {
    survey_ids(running).await.len()
}

/// By the daemon's order, the real adapter, and the node's word from a host key that nobody knew.
#[tokio::test]
async fn a_node_that_ironic_renews_is_rebuilt_once_also_if_workers_are_killed_meanwhile() {
    let mut running = Running::start(plan().with_ironic(&["gpu-01"]), 2, |_| {}).await.unwrap();
    let rollout = running.renew(&["gpu-01"]).await.unwrap();
    let asked = |what: &Happened| matches!(what, Happened::RebuildRequested { .. });
    until("the rebuild", async || running.world.events().iter().any(|event| asked(&event.what)).then_some(())).await.unwrap();
    for worker in 0..2 {
        running.processes.kill_worker(worker).await.unwrap();
        running.processes.start_worker(worker).unwrap();
    }
    ends_well(&running, &rollout).await;
    let times = |wanted: fn(&Happened) -> bool| running.world.events().iter().filter(|event| wanted(&event.what)).count();
    assert_eq!(times(|what| matches!(what, Happened::RebuildRequested { .. })), 1);
    assert_eq!(times(|what| matches!(what, Happened::ResetRequested { .. } | Happened::TicketStaged { .. })), 0);
    assert_eq!(running.world.snapshot().node("gpu-01").unwrap().kernel, "6.8.0-60-generic");
    running.processes.end().await.unwrap();
}
