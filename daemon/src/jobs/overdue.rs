//! Notices that nobody works: due workflows that no worker takes, and leases that ran out unclaimed.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::store::{Backlog, Queue, Status, Store, StoreError, Waiting};
use turnaround_workflows::telemetry::metrics;

use super::{BackgroundJob, JobReport};
use crate::alarms::{AlarmCode, Alarms};
use crate::why::TAKEN_WITHIN;
use crate::wire::When;

pub struct Overdue {
    store: Arc<dyn Store>,
    /// Where workflows wait: what a queue of another release holds is not seen.
    queues: Vec<Queue>,
    alarms: Arc<Alarms>,
    /// Something was overdue at the pass before. Right after an outage of the store that means nothing yet: workers come back within seconds.
    seen: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OverdueReport {
    pub open: u64,
    /// Worked on right now.
    pub leased: u64,
    /// Due, or its lease over, for longer than a living worker would take.
    pub overdue: u64,
    /// When the longest waiting of those became due.
    pub oldest: Option<When>,
    pub asking: u64,
}

impl JobReport for OverdueReport {
    fn summary(&self) -> String {
        format!("{} open, {} worked on, {} overdue, {} asking", self.open, self.leased, self.overdue, self.asking)
    }

    fn worked(&self) -> bool {
        false
    }
}

impl Overdue {
    pub fn new(store: Arc<dyn Store>, queues: Vec<Queue>, alarms: Arc<Alarms>) -> Overdue {
        Overdue { store, queues, alarms, seen: false }
    }

    /// What waits, and where, for people; None if nothing does.
    fn told(&self, backlog: &Backlog) -> Option<String> {
        let since = |waiting: &Waiting| waiting.since.map(|since| format!(" (the first since {since})")).unwrap_or_default();
        let due = self.queues.iter().zip(&backlog.due).filter(|(_, waiting)| waiting.count > 0);
        let mut parts: Vec<_> = due.map(|(queue, waiting)| format!("{} due in queue `{queue}`{}", waiting.count, since(waiting))).collect();
        if backlog.expired.count > 0 {
            parts.push(format!("{} whose worker is gone{}", backlog.expired.count, since(&backlog.expired)));
        }
        (!parts.is_empty()).then(|| format!("{}; {} are worked on", parts.join(", "), backlog.leased))
    }

    fn raise(&mut self, told: Option<String>) {
        let seen = std::mem::replace(&mut self.seen, told.is_some());
        match told {
            None => self.alarms.over(AlarmCode::NoWorker),
            // Nobody can work then, and that is told already.
            Some(_) if self.alarms.store_trouble().is_some() => self.seen = false,
            Some(told) if seen => self.alarms.raise(AlarmCode::NoWorker, told),
            Some(_) => {}
        }
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
        let before = Timestamp::from_millis(now.millis().saturating_sub(i64::try_from(TAKEN_WITHIN.as_millis()).unwrap_or(i64::MAX)));
        let (counts, backlog) = tokio::try_join!(self.store.counts(), self.store.backlog(&self.queues, before))?;
        metrics::workflows_open(&counts);
        let of = |wanted: Status| counts.iter().find(|(status, _)| *status == wanted).map_or(0, |(_, count)| *count);
        match of(Status::Quarantined) {
            0 => self.alarms.over(AlarmCode::Quarantined),
            1 => self.alarms.raise(AlarmCode::Quarantined, "a workflow is quarantined"),
            count => self.alarms.raise(AlarmCode::Quarantined, format!("{count} workflows are quarantined")),
        }
        self.raise(self.told(&backlog));
        let waiting = || backlog.due.iter().chain([&backlog.expired]);
        Ok(OverdueReport {
            open: counts.iter().map(|(_, count)| count).sum(),
            leased: backlog.leased,
            overdue: waiting().map(|waiting| waiting.count).sum(),
            oldest: waiting().filter_map(|waiting| waiting.since).min().map(When),
            asking: of(Status::NeedsOperator),
        })
    }
}
