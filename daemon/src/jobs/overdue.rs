//! Notices that nobody works: due workflows that no worker takes, and leases that ran out unclaimed.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use tracing::error;
use turnaround_workflows::store::{PAGE_MAX, Query, Scope, Status, Store, StoreError};
use turnaround_workflows::telemetry::metrics;

use super::{BackgroundJob, JobReport};
use crate::alarms::{AlarmCode, Alarms};
use crate::why::TAKEN_WITHIN;
use crate::wire::When;

/// Pages of open workflows that one pass looks at.
const PAGES_MAX: u32 = 4;

pub struct Overdue {
    pub store: Arc<dyn Store>,
    /// Already told, and not better since.
    pub told: bool,
    pub alarms: Arc<Alarms>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OverdueReport {
    pub open: u32,
    /// Worked on right now.
    pub leased: u32,
    /// Due, or its lease over, for longer than a living worker would take.
    pub overdue: u32,
    /// When the longest waiting of those became due.
    pub oldest: Option<When>,
    pub asking: u32,
}

impl JobReport for OverdueReport {
    fn summary(&self) -> String {
        format!("{} open, {} worked on, {} overdue, {} asking", self.open, self.leased, self.overdue, self.asking)
    }

    fn worked(&self) -> bool {
        false
    }
}

#[async_trait]
impl BackgroundJob for Overdue {
    const NAME: &'static str = "overdue";
    const ABOUT: &'static str = "notices workflows that no worker takes";
    type Report = OverdueReport;
    type Error = StoreError;

    async fn activate(&mut self) -> Result<OverdueReport, StoreError> {
        let now = self.store.now().await?;
        let counts = self.store.counts().await?;
        metrics::workflows_open(&counts);
        match counts.iter().find(|(status, _)| *status == Status::Quarantined) {
            None => self.alarms.over(AlarmCode::Quarantined),
            Some((_, 1)) => self.alarms.raise(AlarmCode::Quarantined, "a workflow is quarantined"),
            Some((_, count)) => self.alarms.raise(AlarmCode::Quarantined, format!("{count} workflows are quarantined")),
        }
        let mut report = OverdueReport { open: 0, leased: 0, overdue: 0, oldest: None, asking: 0 };
        for page in 0..PAGES_MAX {
            let query = Query { scope: Scope::Open, offset: page * PAGE_MAX, limit: PAGE_MAX, ..Query::default() };
            let documents = self.store.list(&query).await?;
            let full = documents.len() >= PAGE_MAX as usize;
            for document in documents {
                report.open += 1;
                report.asking += u32::from(document.status == Status::NeedsOperator);
                let lease_over = document.lease.as_ref().map(|lease| lease.until);
                if lease_over.is_some_and(|until| until > now) {
                    report.leased += 1;
                    continue;
                }
                let due = document.due.or(lease_over);
                if let Some(due) = due.filter(|due| now.since(*due) >= TAKEN_WITHIN) {
                    report.overdue += 1;
                    report.oldest = Some(report.oldest.map_or(When(due), |oldest| oldest.min(When(due))));
                }
            }
            if !full {
                break;
            }
        }
        let told = std::mem::replace(&mut self.told, report.overdue > 0);
        if report.overdue > 0 && !told {
            error!(overdue = report.overdue, leased = report.leased, "workflows are due and no worker takes them: does a turnaround-worker run?");
        }
        Ok(report)
    }
}
