//! Runs background jobs: each at once, then after its period or when it is woken, one pass at a time.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, debug_span, error, info, warn};
use turnaround_workflows::clock::{Clock, Timestamp};

use super::{BackgroundJob, JobBoard, JobReport};
use crate::alarms::Alarms;
use crate::api::problem::chain;
use crate::wire::JobRun;

/// How long the end of the daemon waits for passes that are under way. Each of them may be cut off without harm;
/// this only spares the next start from doing it again.
const END_OF_PASS_WAIT: Duration = Duration::from_secs(3);
/// After a failed pass, a job that has a longer period runs again this soon.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// Every so many failures in a row are logged as errors again; the others are told once, and shown at GET /v1/jobs.
const FAILURES_PER_ALARM: u32 = 20;

/// A job, and when it runs.
pub struct JobDefinition<J> {
    pub job: J,
    /// From the end of one pass to the beginning of the next.
    pub period: Duration,
    /// Runs a pass at once; several rings while one is under way run one more.
    pub wake: Arc<Notify>,
}

pub struct Driver {
    board: Arc<JobBoard>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    alarms: Option<Arc<Alarms>>,
    tasks: JoinSet<()>,
}

impl Driver {
    pub fn new(board: Arc<JobBoard>, clock: Arc<dyn Clock>, stop: CancellationToken) -> Driver {
        Driver { board, clock, stop, alarms: None, tasks: JoinSet::new() }
    }

    /// While one of `alarms` says that the store has trouble, failures of jobs are nothing new and not worth a line in the log.
    #[must_use]
    pub fn quiet_during(self, alarms: Arc<Alarms>) -> Driver {
        Driver { alarms: Some(alarms), ..self }
    }

    /// Begins to run `definition`'s job.
    pub fn register<J: BackgroundJob>(&mut self, definition: JobDefinition<J>) {
        let every_ms = u64::try_from(definition.period.as_millis()).unwrap_or(u64::MAX);
        self.board.add(J::NAME, J::ABOUT, every_ms);
        let pass = Passes {
            board: Arc::clone(&self.board),
            clock: Arc::clone(&self.clock),
            stop: self.stop.clone(),
            alarms: self.alarms.clone(),
        };
        self.tasks.spawn(pass.run(definition));
    }

    /// Waits for passes that are under way, but not for long. To be called once `stop` is cancelled.
    pub async fn finish(mut self) {
        let done = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_OF_PASS_WAIT, done).await.is_err() {
            warn!("a background job was cut off; it does its work again at the next start");
        }
    }
}

/// What the loop of one job needs.
struct Passes {
    board: Arc<JobBoard>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    alarms: Option<Arc<Alarms>>,
}

impl Passes {
    async fn run<J: BackgroundJob>(self, definition: JobDefinition<J>) {
        let JobDefinition { mut job, period, wake } = definition;
        while !self.stop.is_cancelled() {
            // Below what is exported: a pass each second that finds nothing to do is no trace that anybody wants. What it
            // starts has traces of its own.
            let span = debug_span!("job", otel.name = format!("job {}", J::NAME));
            let good = self.pass(&mut job, period).instrument(span).await;
            let pause = if good { period } else { period.min(RETRY_AFTER) };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = wake.notified() => {}
            }
        }
    }

    /// True if the pass went well.
    async fn pass<J: BackgroundJob>(&self, job: &mut J, period: Duration) -> bool {
        let (began, timer) = (self.clock.now(), Instant::now());
        self.board.begun(J::NAME, began);
        let outcome = AssertUnwindSafe(job.activate()).catch_unwind().await;
        let took_ms = u64::try_from(timer.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (summary, report, error) = match outcome {
            Ok(Ok(report)) => {
                let summary = report.summary();
                if report.worked() { info!(job = J::NAME, summary, took_ms, "job done") } else { debug!(job = J::NAME, summary, "nothing to do") }
                (summary, serde_json::to_value(&report).unwrap_or(Value::Null), None)
            }
            Ok(Err(error)) => (String::new(), Value::Null, Some(chain(&error))),
            Err(_) => (String::new(), Value::Null, Some("it panicked; this is a bug of ours, and the log has more".to_owned())),
        };
        let good = error.is_none();
        let failed = error.clone().unwrap_or_default();
        let next: Timestamp = self.clock.now() + if good { period } else { period.min(RETRY_AFTER) };
        let failures = self.board.ended(J::NAME, JobRun { began: began.into(), took_ms, summary, report, error }, next);
        let is_told = self.alarms.as_ref().is_some_and(|alarms| alarms.store_trouble().is_some());
        match failures {
            0 => {}
            _ if is_told => debug!(job = J::NAME, error = failed, failures, "job failed while the store has trouble"),
            1 => warn!(job = J::NAME, error = failed, "job failed, will run again"),
            n if n.is_multiple_of(FAILURES_PER_ALARM) => error!(job = J::NAME, error = failed, failures, "job keeps failing"),
            _ => debug!(job = J::NAME, error = failed, failures, "job failed again"),
        }
        good
    }
}
