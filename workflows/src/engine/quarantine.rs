//! A workflow that can't be brought on by anybody: set apart, so that it harms no other, until a person has looked.

use std::time::Duration;

use tracing::error;

use super::activation::{Activation, Committer, LeaseLost};
use super::replay::Damage;
use super::{Outcome, Signal, SignalKind};
use crate::store::{Claimed, Commit, Committed, Next, Status, StoredSignal, WorkflowId};
use crate::telemetry::metrics;

/// Sets the workflow apart after one try. Nothing is appended to its journal: whatever it says is evidence. Signals wake it: each makes
/// a worker check it again, so that a journal that was put back goes on with `retry`; an abort discards it.
pub(super) async fn quarantine(claimed: &Claimed, committer: &dyn Committer, damage: &Damage, keep: Duration) -> Result<Activation, LeaseLost> {
    let document = &claimed.document;
    let why = damage.chain();
    let discarded = claimed.signals.iter().find_map(discards);
    let commit = Commit {
        id: document.id.clone(),
        fence: claimed.fence,
        expected: document.seq,
        entries: Vec::new(),
        state: None,
        status: if discarded.is_some() { Status::Failed } else { Status::Quarantined },
        headline: match &discarded {
            Some(by) => format!("discarded by {by}: {why}"),
            None => format!("quarantined: {why}"),
        },
        consumed: u32::try_from(claimed.signals.len()).unwrap_or(u32::MAX),
        take: Vec::new(),
        give: Vec::new(),
        create: Vec::new(),
        signals: discarded.iter().filter_map(|by| tell_parent(claimed, committer, by)).collect(),
        traceparent: document.traceparent.clone(),
        next: if discarded.is_some() { Next::End { keep } } else { Next::Signal },
        queue: document.queue.clone(),
    };
    let ends = discarded.is_some();
    if !ends {
        error!(workflow = %document.id, why, "quarantined: nobody works on it until a person has looked");
        metrics::quarantined();
    }
    match committer.commit(commit).await? {
        Committed::Done { .. } if ends => Ok(Activation::Ended),
        Committed::Done { .. } => Ok(Activation::Parked),
        Committed::Fenced | Committed::Busy { .. } | Committed::Held { .. } | Committed::Conflict { .. } => Err(LeaseLost),
    }
}

/// Who wants it aborted. What can't be read wants nothing.
fn discards(stored: &StoredSignal) -> Option<String> {
    match serde_json::from_str(&stored.body) {
        Ok(Signal { by, kind: SignalKind::Abort { .. }, .. }) => Some(by),
        Ok(_) | Err(_) => None,
    }
}

/// A parent waits for its children. The key is what the child's id has more than the parent's.
fn tell_parent(claimed: &Claimed, committer: &dyn Committer, by: &str) -> Option<(WorkflowId, StoredSignal)> {
    let (id, parent) = (&claimed.document.id, claimed.document.parent.clone()?);
    let key = id.as_str().strip_prefix(parent.as_str())?.strip_prefix('.')?.to_owned();
    let headline = format!("discarded by {by}: its journal was damaged");
    let kind = SignalKind::ChildEnded { key, id: id.clone(), outcome: Outcome::Failed, headline };
    let signal = Signal { id: format!("{id}-ended"), at: committer.now(), by: format!("workflow {id}"), kind };
    Some((parent, signal.stored().ok()?))
}
