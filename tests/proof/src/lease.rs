//! A lease on one workflow, through the gate, straight to the store.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use turnaround_workflows::clock::{Clock as _, Timestamp};
use turnaround_workflows::engine::{Committer, LeaseLost, Registry};
use turnaround_workflows::store::{Advance, Advanced, Commit, Committed, Fence, Store, StoredEntry, WorkflowId};

use crate::crowd::LEASE;
use crate::gate::{At, Befalls, Gate, Moment};
use crate::sometimes::Sometimes;

/// A worker that had no answer asks again after this long.
const ASKS_AGAIN: Duration = Duration::from_millis(300);

pub(super) struct GatedLease {
    pub(super) store: Arc<dyn Store>,
    pub(super) gate: Arc<Gate>,
    pub(super) registry: Registry,
    pub(super) outages: Arc<Vec<(Timestamp, Timestamp)>>,
    pub(super) sometimes: Arc<Sometimes>,
    pub(super) id: WorkflowId,
    pub(super) kind: String,
    pub(super) fence: Fence,
    pub(super) lost: CancellationToken,
}

/// The step that these entries say begins, and whether it is to be undone.
fn intent(entries: &[StoredEntry]) -> Option<(&str, bool)> {
    entries.iter().rev().find_map(|entry| {
        let named = |event: &str| entry.body.split_once(event)?.1.split_once(r#""step":""#)?.1.split_once('"').map(|(step, _)| step);
        let begun = named(r#""event":"step-begun""#).map(|step| (step, false));
        begun.or_else(|| named(r#""event":"undo-begun""#).map(|step| (step, true)))
    })
}

/// Until when the store does not answer, if it does not answer just now.
pub(super) fn down_until(outages: &[(Timestamp, Timestamp)], now: Timestamp) -> Option<Timestamp> {
    outages.iter().find(|(from, until)| *from <= now && now < *until).map(|(_, until)| *until)
}

impl GatedLease {
    /// The same call until it is answered, as a worker's pump does.
    async fn until_answered(&self, advance: Advance, moment: Option<Moment>) -> Advanced {
        loop {
            while let Some(up) = down_until(&self.outages, self.gate.clock.now()) {
                self.sometimes.count("store outage waited out");
                self.gate.sleep(up.since(self.gate.clock.now())).await;
            }
            let advanced = self.store.advance(&advance).await.expect("the memory store always answers");
            let Some(moment) = moment else { return advanced };
            if self.gate.pass(moment).await != Befalls::AnswerLost {
                return advanced;
            }
            self.sometimes.count("commit whose answer was lost");
            self.gate.sleep(ASKS_AGAIN).await;
        }
    }

    fn at(&self, step: &str, undoing: bool) -> Option<At> {
        let definition = self.registry.get(&self.kind)?;
        Some(At { kind: definition.kind, step: definition.step(step)?.name(), undoing })
    }
}

#[async_trait]
impl Committer for GatedLease {
    fn now(&self) -> Timestamp {
        self.gate.clock.now()
    }

    async fn commit(&self, commit: Commit) -> Result<Committed, LeaseLost> {
        let begins = intent(&commit.entries).and_then(|(step, undoing)| self.at(step, undoing));
        let entries = commit.entries.len();
        self.gate.pass(Moment::Commits).await;
        let advance = Advance { lease: LEASE, commits: vec![commit], ..Advance::default() };
        let advanced = self.until_answered(advance, Some(Moment::CommitSent)).await;
        let committed = advanced.commits.into_iter().next().expect("one commit, one answer");
        self.gate.pass(Moment::CommitReplied).await;
        match &committed {
            Committed::Fenced => self.sometimes.count("commit fenced"),
            Committed::Busy { .. } => self.sometimes.count("resource busy"),
            Committed::Held { .. } => self.sometimes.count("share to be taken over"),
            Committed::Done { .. } => {
                self.sometimes.committed(entries, self.gate.clock.now());
                if let Some(at) = begins {
                    self.gate.is_at(&self.id, at);
                    self.gate.pass(Moment::IntentWritten).await;
                }
            }
            Committed::Conflict { seq } => self.sometimes.wrong(format!("{}: its holder met a conflict at entry {seq}", self.id)),
        }
        Ok(committed)
    }

    async fn guard(&self) -> Result<(), LeaseLost> {
        self.gate.pass(Moment::Guards).await;
        let advance = Advance { lease: LEASE, renew: vec![(self.id.clone(), self.fence)], ..Advance::default() };
        let stands = self.until_answered(advance, None).await.renewed[0].is_some();
        self.gate.pass(Moment::Guarded).await;
        if stands {
            return Ok(());
        }
        self.sometimes.count("guard refused");
        Err(LeaseLost)
    }

    async fn lost(&self) {
        self.lost.cancelled().await;
    }
}
