//! Removes finished workflows whose time is up, with all that the store has of them.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use turnaround_workflows::store::{Store, StoreError};

use super::{BackgroundJob, JobReport};

/// Calls of one pass, of at most 1,000 entries each. More can't expire within a minute at the rate at which a store
/// finishes workflows.
const CALLS_MAX: u32 = 50;

pub struct Sweep {
    pub store: Arc<dyn Store>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SweepReport {
    /// Workflows removed.
    pub dropped: u32,
}

impl JobReport for SweepReport {
    fn summary(&self) -> String {
        format!("removed {} finished workflows whose time was up", self.dropped)
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
        let mut dropped = 0;
        for _ in 0..CALLS_MAX {
            let now = self.store.sweep().await?;
            dropped += now;
            if now == 0 {
                break;
            }
        }
        Ok(SweepReport { dropped })
    }
}
