//! Removes finished workflows whose time is up, with all that the store has of them, once they are archived.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use turnaround_workflows::store::{Store, StoreError};

use super::archive::{ArchiveFinished, ArchivedUntil};
use super::{BackgroundJob, JobReport};

/// Calls of one pass, of at most 1,000 entries each. More can't expire within a minute at the rate at which a store
/// finishes workflows.
const CALLS_MAX: u32 = 50;

pub struct Sweep {
    store: Arc<dyn Store>,
    archived_until: ArchivedUntil,
    keep: Duration,
}

impl Sweep {
    /// Removes what `archiving` has archived. `keep`: how long a finished workflow is kept.
    pub fn after(archiving: &ArchiveFinished, keep: Duration) -> Sweep {
        Sweep { store: Arc::clone(&archiving.store), archived_until: Arc::clone(&archiving.archived_until), keep }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SweepReport {
    /// Workflows removed.
    pub dropped: u32,
    /// Nothing more was removed, because it is not known to be archived.
    pub held: bool,
}

impl JobReport for SweepReport {
    fn summary(&self) -> String {
        let held = if self.held { "; removes no more until all that has ended is archived" } else { "" };
        format!("removed {} finished workflows whose time was up{held}", self.dropped)
    }

    fn worked(&self) -> bool {
        self.dropped > 0
    }
}

#[async_trait]
impl BackgroundJob for Sweep {
    const NAME: &'static str = "sweep";
    const ABOUT: &'static str = "removes finished workflows whose time is up";
    type Report = SweepReport;
    type Error = StoreError;

    async fn activate(&mut self) -> Result<SweepReport, StoreError> {
        let archived_until = self.archived_until.lock().await;
        let mut report = SweepReport { dropped: 0, held: false };
        for _ in 0..CALLS_MAX {
            // The store goes by the time alone. What it sweeps has ended `keep` ago or earlier, so before the last good pass began if that is less long ago.
            // (That a pass has gone through is not enough: the least `keep` is a second.) Half of it, because the store looks at its clock after us.
            let now = self.store.now().await?;
            report.held = archived_until.is_none_or(|until| now > until + self.keep / 2);
            if report.held {
                break;
            }
            let dropped = self.store.sweep().await?;
            report.dropped += dropped;
            if dropped == 0 {
                break;
            }
        }
        Ok(report)
    }
}
