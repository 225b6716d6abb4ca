//! Background jobs: run, woken, failing, panicking, stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use turnaround_daemon::jobs::{BackgroundJob, Driver, JobBoard, JobDefinition, JobReport, Overdue};
use turnaround_daemon::wire::JobView;
use turnaround_workflows::clock::{Clock, HandClock};
use turnaround_workflows::store::{Advance, Commit, Committed, Next, Queue, Status, Store, Trouble, WorkflowId};

use super::site::{KEEP, NOON, PATIENCE, Site, at, claim};

struct Moody {
    passes: Arc<AtomicU32>,
}

#[derive(Serialize)]
struct Pass(u32);

impl JobReport for Pass {
    fn summary(&self) -> String {
        format!("pass {}", self.0)
    }
    fn worked(&self) -> bool {
        true
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not today")]
struct NotToday(#[source] std::io::Error);

#[async_trait]
impl BackgroundJob for Moody {
    const NAME: &'static str = "moody";
    const ABOUT: &'static str = "fails, panics, works";
    type Report = Pass;
    type Error = NotToday;

    async fn activate(&mut self) -> Result<Pass, NotToday> {
        match self.passes.fetch_add(1, Ordering::SeqCst) + 1 {
            1 => Err(NotToday(std::io::Error::other("disk full"))),
            2 => panic!("a bug"),
            pass => Ok(Pass(pass)),
        }
    }
}

/// The board's only job, once it satisfies `wanted`.
async fn seen(board: &JobBoard, wanted: impl Fn(&JobView) -> bool) -> JobView {
    let look = async {
        loop {
            if let Some(job) = board.views().into_iter().find(&wanted) {
                return job;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.expect("the job gets there")
}

#[tokio::test]
async fn a_job_that_fails_and_panics_is_shown_and_runs_again() {
    let (board, stop, wake) = (Arc::new(JobBoard::default()), CancellationToken::new(), Arc::new(Notify::new()));
    let clock = Arc::new(HandClock::at(at(NOON))) as Arc<dyn Clock>;
    let mut driver = Driver::new(Arc::clone(&board), clock, stop.clone());
    let passes = Arc::new(AtomicU32::new(0));
    let job = Moody { passes: Arc::clone(&passes) };
    driver.register(JobDefinition { job, period: Duration::from_secs(3_600), wake: Arc::clone(&wake) });
    let failed = seen(&board, |job| job.runs == 1).await;
    assert_eq!(failed.last.unwrap().error.unwrap(), "not today: disk full");
    assert_eq!(failed.next.unwrap().to_string(), "2026-11-22T12:00:30.000Z", "sooner than its period");
    wake.notify_one();
    let panicked = seen(&board, |job| job.runs == 2).await;
    assert!(panicked.last.unwrap().error.unwrap().contains("panicked"));
    assert_eq!(panicked.failures_in_a_row, 2);
    wake.notify_one();
    let good = seen(&board, |job| job.runs == 3).await;
    assert_eq!((good.failures_in_a_row, good.last.unwrap().summary), (0, "pass 3".to_owned()));
    assert_eq!(good.next.unwrap().to_string(), "2026-11-22T13:00:00.000Z");
    stop.cancel();
    tokio::time::timeout(PATIENCE, driver.finish()).await.expect("the driver ends");
    wake.notify_one();
    assert_eq!(passes.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_workflow_that_no_worker_takes_is_counted() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let mut job = overdue(&site);
    assert_eq!(job.activate().await.unwrap().overdue, 0);
    site.clock.advance(Duration::from_secs(60));
    let report = job.activate().await.unwrap();
    assert_eq!((report.open, report.overdue, report.oldest.unwrap().to_string().as_str()), (1, 1, "2026-11-22T12:00:00.000Z"));
    assert!(site.get("/v1/status").await.1["warnings"][0].as_str().unwrap().contains("no worker takes it"));
    assert!(site.app.alarms.views().is_empty(), "the store may have been away until just now");
    job.activate().await.unwrap();
    let status = site.get("/v1/status").await.1;
    assert_eq!((&status["alarms"][0]["code"], &status["warnings"]), (&"no-worker".into(), &serde_json::json!([])), "told once: {status}");
    assert_eq!(status["alarms"][0]["detail"], "1 due in queue `default` (the first since 2026-11-22T12:00:00.000Z); 0 are worked on");
    // A worker takes it, and is not heard of any more.
    claim(&*site.store, &id).await;
    job.activate().await.unwrap();
    assert!(site.app.alarms.views().is_empty());
    site.clock.advance(Duration::from_secs(3_600));
    for _ in 0..2 {
        assert_eq!(job.activate().await.unwrap().overdue, 1);
    }
    let detail = &site.app.alarms.views()[0].detail;
    assert!(detail.starts_with("1 whose worker is gone (the first since ") && detail.ends_with("; 0 are worked on"), "{detail}");
}

#[tokio::test]
async fn while_the_store_is_in_trouble_no_worker_is_missed() {
    let site = Site::start().await;
    site.rollout().await;
    let mut job = overdue(&site);
    site.clock.advance(Duration::from_secs(60));
    site.app.alarms.store_has(Trouble::Halted, "something is missing");
    for _ in 0..3 {
        assert_eq!(job.activate().await.unwrap().overdue, 1);
    }
    site.app.alarms.store_is_well();
    job.activate().await.unwrap();
    assert!(site.app.alarms.views().is_empty(), "workers have not had the time to come back");
    job.activate().await.unwrap();
    assert_eq!(site.app.alarms.views()[0].code, "no-worker");
}

fn overdue(site: &Site) -> Overdue {
    Overdue::new(Arc::clone(&site.store) as Arc<dyn Store>, site.app.registry.queues(), Arc::clone(&site.app.alarms))
}

#[tokio::test]
async fn a_quarantined_workflow_is_an_alarm_until_it_is_gone() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let mut job = overdue(&site);
    job.activate().await.unwrap();
    assert!(site.app.alarms.views().is_empty());
    set_apart(&*site.store, &id, Status::Quarantined, Next::Signal).await;
    job.activate().await.unwrap();
    let status = site.get("/v1/status").await.1;
    assert_eq!((&status["alarms"][0]["code"], &status["alarms"][0]["detail"]), (&"quarantined".into(), &"a workflow is quarantined".into()));
    let shown = site.get(&format!("/v1/workflows/{id}")).await.1;
    assert_eq!(shown["why_not_now"]["code"], "quarantined", "{shown}");
    assert!(shown["why_not_now"]["unblock"].as_str().unwrap().contains(&format!("turnaround abort {id}")), "{shown}");
    let (code, refused) = site.post(&format!("/v1/workflows/{id}/signals"), &serde_json::json!({ "signal": "pause", "why": "" })).await;
    assert_eq!(code, 409, "{refused}");
    let (code, kept) = site.post(&format!("/v1/workflows/{id}/signals"), &serde_json::json!({ "signal": "retry" })).await;
    assert_eq!(code, 202, "{kept}");
    set_apart(&*site.store, &id, Status::Failed, KEEP).await;
    job.activate().await.unwrap();
    assert!(site.app.alarms.views().is_empty());
}

/// What a worker does to a workflow whose journal it can't trust.
async fn set_apart(store: &dyn Store, id: &WorkflowId, status: Status, next: Next) {
    let claimed = claim(store, id).await;
    let commit = Commit {
        id: id.clone(),
        fence: claimed.fence,
        expected: claimed.document.seq,
        entries: Vec::new(),
        state: None,
        status,
        headline: "quarantined: entry 1 of the journal does not match its digest".to_owned(),
        consumed: u32::try_from(claimed.signals.len()).unwrap(),
        take: Vec::new(),
        give: Vec::new(),
        create: Vec::new(),
        signals: Vec::new(),
        traceparent: None,
        next,
        queue: Queue::DEFAULT,
    };
    let done = store.advance(&Advance { lease: Duration::from_secs(10), commits: vec![commit], ..Advance::default() }).await.unwrap();
    assert!(matches!(done.commits[0], Committed::Done { .. }), "{:?}", done.commits);
}
