//! What each background job did last and does next.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use turnaround_workflows::clock::Timestamp;

use crate::wire::{JobRun, JobView};

/// Written by the driver, read by the API.
#[derive(Debug, Default)]
pub struct JobBoard(Mutex<BTreeMap<&'static str, JobView>>);

impl JobBoard {
    fn jobs(&self) -> MutexGuard<'_, BTreeMap<&'static str, JobView>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every job, by name.
    pub fn views(&self) -> Vec<JobView> {
        self.jobs().values().cloned().collect()
    }

    pub(super) fn add(&self, name: &'static str, about: &str, every_ms: u64) {
        let view = JobView {
            name: name.to_owned(),
            about: about.to_owned(),
            every_ms,
            running_since: None,
            runs: 0,
            failures_in_a_row: 0,
            last: None,
            next: None,
        };
        self.jobs().insert(name, view);
    }

    pub(super) fn begun(&self, name: &'static str, at: Timestamp) {
        if let Some(job) = self.jobs().get_mut(name) {
            job.running_since = Some(at.into());
            job.next = None;
        }
    }

    /// Notes how a pass went. Returns how many have failed in a row now.
    pub(super) fn ended(&self, name: &'static str, run: JobRun, next: Timestamp) -> u32 {
        let mut jobs = self.jobs();
        let Some(job) = jobs.get_mut(name) else { return 0 };
        job.running_since = None;
        job.runs += 1;
        job.failures_in_a_row = if run.error.is_some() { job.failures_in_a_row.saturating_add(1) } else { 0 };
        job.last = Some(run);
        job.next = Some(next.into());
        job.failures_in_a_row
    }
}
