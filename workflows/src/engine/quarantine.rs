//! A workflow that can't be brought on by anybody: set apart, so that it harms no other, until a person has looked.

use tracing::{error, info};

use super::activation::{Activation, Committer, Engine, LeaseLost};
use super::replay::Damage;
use super::{Event, Outcome, Signal, SignalKind, StepError, check_chain};
use crate::store::limits::SIGNALS_HANDED_MAX;
use crate::store::{Claimed, Commit, Committed, Next, Status, StoredSignal, WorkflowId};
use crate::telemetry::metrics;

/// Sets the workflow apart after one try. Nothing is appended to its journal: whatever it says is evidence. Signals wake it: each makes
/// a worker check it again, so that a journal that was put back goes on with `retry`. A person who knows that it is set apart may discard it by an abort.
pub(super) async fn quarantine(engine: &Engine, claimed: &Claimed, committer: &dyn Committer, damage: &Damage) -> Result<Activation, LeaseLost> {
    let document = &claimed.document;
    let why = damage.chain();
    // One that was meant for a sound workflow, or came with its rollout's, is nobody's word on this one.
    let aborted = if is_apart(claimed) { claimed.signals.iter().find_map(aborts) } else { None };
    let Some(by) = aborted else {
        if !is_apart(claimed) {
            error!(workflow = %document.id, why, "quarantined: nobody works on it until a person has looked");
            metrics::quarantined();
        }
        return stays_apart(claimed, committer, format!("quarantined: {why}")).await;
    };
    if let Err(error) = discard(engine, claimed, committer).await? {
        let headline = format!("quarantined, and can't be discarded like this: {}; {why}", error.chain());
        return stays_apart(claimed, committer, headline).await;
    }
    let commit = Commit {
        status: Status::Failed,
        headline: format!("discarded by {by}: {why}"),
        consumed: u32::try_from(claimed.signals.len()).unwrap_or(u32::MAX),
        signals: tell_parent(claimed, committer, &by).into_iter().collect(),
        next: Next::End { keep: engine.keep_finished },
        ..untouched(claimed)
    };
    let ended = commit_or_lost(committer, commit, Activation::Ended).await?;
    let outcome = Outcome::Failed.as_str();
    info!(workflow = %document.id, outcome, by, "workflow ended");
    metrics::workflow_ended(engine.registry.get(&document.kind).map_or("unknown", |known| known.kind), outcome);
    Ok(ended)
}

/// What would harm later is taken away first.
async fn discard(engine: &Engine, claimed: &Claimed, committer: &dyn Committer) -> Result<Result<(), StepError>, LeaseLost> {
    let Born { kind, target, .. } = Born::of(claimed);
    // Where nobody knows of what kind it is: what is its own each step knows by its id.
    let definitions: Vec<_> = engine.registry.get(&kind).map_or_else(|| engine.registry.all().collect(), |known| vec![known]);
    for step in definitions.iter().flat_map(|definition| &definition.steps) {
        committer.guard().await?;
        if let Err(error) = step.discard(&engine.ports, &claimed.document.id, &target).await {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

/// What a workflow has been since it was created. Whatever is damaged, its sealed first entry may be sound; what is kept beside the journal is believed only where that is not.
struct Born {
    kind: String,
    /// Version of its definition; None where nobody knows.
    version: Option<u32>,
    target: String,
    parent: Option<WorkflowId>,
    /// Under which key its parent keeps it.
    key: Option<String>,
}

impl Born {
    fn of(claimed: &Claimed) -> Born {
        let first = claimed.journal.get(..1).and_then(|first| check_chain(None, 1, first).ok()).and_then(|mut first| first.pop());
        if let Some(Event::Created { kind, version, target, parent, key, .. }) = first.map(|first| first.event) {
            return Born { kind, version: Some(version), target, parent, key };
        }
        let document = &claimed.document;
        // The key is what the child's id has more than the parent's.
        let after = |parent: &WorkflowId| document.id.as_str().strip_prefix(parent.as_str())?.strip_prefix('.').map(str::to_owned);
        let key = document.parent.as_ref().and_then(after);
        Born { kind: document.kind.clone(), version: None, target: document.target.clone(), parent: document.parent.clone(), key }
    }
}

/// What nobody here knows: its definition, where the journal's first entry tells. (What a later release writes into a journal, an earlier one may not be able to read.)
pub(super) fn unknown_definition(engine: &Engine, claimed: &Claimed) -> Option<String> {
    let Born { kind, version: Some(version), .. } = Born::of(claimed) else { return None };
    let is_known = engine.registry.get(&kind).is_some_and(|known| known.version == version);
    (!is_known).then(|| format!("no worker here knows version {version} of `{kind}`"))
}

pub(super) fn is_apart(claimed: &Claimed) -> bool {
    claimed.document.status == Status::Quarantined
}

/// Has a person said what is to become of one that is set apart?
pub(super) fn is_wanted_again(claimed: &Claimed) -> bool {
    claimed.signals.iter().any(|stored| matches!(by_a_person(stored), Some(Signal { kind: SignalKind::Retry | SignalKind::Abort { .. }, .. })))
}

/// Parks a workflow that is set apart. What other workflows have told it is not said twice, so it is put back until this one goes on; meanwhile its lease
/// is left to expire, because it would be due again at once. A person's word is gone: it was about what that person knew until now.
pub(super) async fn stays_apart(claimed: &Claimed, committer: &dyn Committer, headline: String) -> Result<Activation, LeaseLost> {
    let of_workflows: Vec<_> = claimed.signals.iter().filter(|stored| is_of_a_workflow(stored)).map(|stored| (claimed.document.id.clone(), stored.clone())).collect();
    let next = if of_workflows.is_empty() { Next::Signal } else { Next::Keep };
    // Where there is nothing else, all of it stays where it is: what is put back comes after what has been told since. (More may stand behind a whole hand.)
    let stay = of_workflows.len() == claimed.signals.len() && of_workflows.len() < SIGNALS_HANDED_MAX;
    let (consumed, signals) = if stay { (0, Vec::new()) } else { (claimed.signals.len(), of_workflows) };
    let commit = Commit {
        status: Status::Quarantined,
        headline,
        consumed: u32::try_from(consumed).unwrap_or(u32::MAX),
        next,
        signals,
        ..untouched(claimed)
    };
    commit_or_lost(committer, commit, Activation::Parked).await
}

/// A commit that appends nothing.
fn untouched(claimed: &Claimed) -> Commit {
    let document = &claimed.document;
    Commit {
        id: document.id.clone(),
        fence: claimed.fence,
        expected: document.seq,
        entries: Vec::new(),
        state: None,
        status: document.status,
        headline: document.headline.clone(),
        consumed: 0,
        take: Vec::new(),
        give: Vec::new(),
        create: Vec::new(),
        signals: Vec::new(),
        traceparent: document.traceparent.clone(),
        next: Next::Signal,
        queue: document.queue.clone(),
    }
}

async fn commit_or_lost(committer: &dyn Committer, commit: Commit, done: Activation) -> Result<Activation, LeaseLost> {
    match committer.commit(commit).await? {
        Committed::Done { .. } => Ok(done),
        Committed::Fenced | Committed::Busy { .. } | Committed::Held { .. } | Committed::Conflict { .. } => Err(LeaseLost),
    }
}

/// A signal of a person's. What can't be read is nobody's.
fn by_a_person(stored: &StoredSignal) -> Option<Signal> {
    serde_json::from_str(&stored.body).ok().filter(|signal: &Signal| !signal.is_of_a_workflow())
}

fn is_of_a_workflow(stored: &StoredSignal) -> bool {
    serde_json::from_str(&stored.body).is_ok_and(|signal: Signal| signal.is_of_a_workflow())
}

/// Which person wants it aborted.
fn aborts(stored: &StoredSignal) -> Option<String> {
    match by_a_person(stored)? {
        Signal { by, kind: SignalKind::Abort { .. }, .. } => Some(by),
        Signal { .. } => None,
    }
}

/// A parent waits for its children.
fn tell_parent(claimed: &Claimed, committer: &dyn Committer, by: &str) -> Option<(WorkflowId, StoredSignal)> {
    let Born { parent: Some(parent), key: Some(key), .. } = Born::of(claimed) else { return None };
    let id = &claimed.document.id;
    let headline = format!("discarded by {by}: its journal was damaged");
    let kind = SignalKind::ChildEnded { key, id: id.clone(), outcome: Outcome::Failed, headline };
    let signal = Signal { id: format!("{id}-ended"), at: committer.now(), by: Signal::by_workflow(id), kind };
    Some((parent, signal.stored().ok()?))
}
