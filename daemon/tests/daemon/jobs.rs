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
use turnaround_workflows::store::Store;

use super::site::{NOON, PATIENCE, Site, at};

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
    site.rollout().await;
    let mut job = Overdue { store: Arc::clone(&site.store) as Arc<dyn Store>, told: false };
    assert_eq!(job.activate().await.unwrap().overdue, 0);
    site.clock.advance(Duration::from_secs(60));
    let report = job.activate().await.unwrap();
    assert_eq!((report.open, report.overdue, report.oldest.unwrap().to_string().as_str()), (1, 1, "2026-11-22T12:00:00.000Z"));
    assert!(site.get("/v1/status").await.1["warnings"][0].as_str().unwrap().contains("no worker takes it"));
}
