//! A workflow in hand: its state, and what is not committed yet.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::error;

use super::activation::{Committer, LeaseLost};
use super::replay::{Replayed, SignalsSeen};
use super::{Checkpoint, Entry, Event, Remedy, Signal, SignalKind, State, StepError, seal};
use crate::clock::Timestamp;
use crate::store::limits::COMMIT_ITEMS_MAX;
use crate::store::{
    Claimed, Commit, Committed, Digest, Document, Fence, NewWorkflow, Next, Queue, Resource, Status, StoredEntry, StoredSignal, Take, WorkflowId,
};

/// The state as it is kept beside the journal when a lease is given up: for listings.
#[derive(Serialize)]
struct Kept<'a> {
    seq: u64,
    state: &'a State,
}

#[derive(Deserialize)]
struct KeptState {
    seq: u64,
    state: State,
}

impl State {
    /// The state that a document carries. None if it has not parked since its newest entry: then its journal tells.
    pub fn of(document: &Document) -> Result<Option<State>, serde_json::Error> {
        let Some(kept) = &document.state else { return Ok(None) };
        let kept: KeptState = serde_json::from_str(kept)?;
        Ok((kept.seq == document.seq).then_some(kept.state))
    }

    /// What a document carries of this state, reached with entry `seq`.
    pub fn kept(&self, seq: u64) -> Result<String, serde_json::Error> {
        serde_json::to_string(&Kept { seq, state: self })
    }
}

/// A workflow in hand: its state, and what is not committed yet.
pub(super) struct Run<'a> {
    committer: &'a dyn Committer,
    id: WorkflowId,
    fence: Fence,
    /// Committed entries.
    seq: u64,
    head: Digest,
    /// Shared with the step that runs.
    pub(super) state: Arc<State>,
    signals_seen: SignalsSeen,
    /// The signal that is being followed, until an entry names it.
    following: Option<String>,
    /// What is kept beside the journal is this state.
    kept: bool,
    pub(super) traceparent: Option<String>,
    /// Where it waits when its lease has expired, or is given up and nothing else is said.
    queue: Queue,
    /// Unread signals.
    pub(super) inbox: VecDeque<StoredSignal>,
    pub(super) pending: Pending,
    /// A poll saw nothing new: only the time of the next look is to be committed.
    pub(super) look_again: Option<Timestamp>,
}

/// What goes with the next commit.
#[derive(Clone, Default)]
pub(super) struct Pending {
    pub(super) entries: Vec<StoredEntry>,
    pub(super) consumed: u32,
    pub(super) give: Vec<Resource>,
    pub(super) create: Vec<NewWorkflow>,
    pub(super) signals: Vec<(WorkflowId, StoredSignal)>,
}

/// What a commit met.
pub(super) enum Met {
    Done,
    Busy { resource: Resource, holders: Vec<WorkflowId> },
    /// It is to be taken over from that one; or is nobody's any more.
    Held { resource: Resource, holder: Option<WorkflowId> },
}

impl<'a> Run<'a> {
    pub(super) fn new(claimed: &Claimed, replayed: Replayed, committer: &'a dyn Committer, traceparent: Option<String>) -> Run<'a> {
        let document = &claimed.document;
        let mut replayed = replayed;
        if let (true, Some(current)) = (cfg!(feature = "bug-timeout-restarts"), &mut replayed.state.current) {
            current.deadline = committer.now() + current.deadline.since(current.begun);
        }
        // Its status says how its newest commit left it: parked, or at work.
        let kept = matches!(document.status, Status::Waiting | Status::NeedsOperator | Status::Paused) && document.seq > 1;
        Run {
            committer,
            id: document.id.clone(),
            fence: claimed.fence,
            seq: document.seq,
            head: document.head,
            state: Arc::new(replayed.state),
            signals_seen: replayed.signals_seen,
            following: None,
            kept,
            traceparent,
            queue: document.queue.clone(),
            inbox: VecDeque::new(),
            pending: Pending::default(),
            look_again: None,
        }
    }

    /// False if the signal was seen before. The next entry names it.
    pub(super) fn follows(&mut self, signal: &str) -> bool {
        let new = self.signals_seen.remember(signal);
        if new {
            self.following = Some(signal.to_owned());
        }
        new
    }

    /// No entry comes of the signal in hand.
    pub(super) fn follows_nothing(&mut self) {
        self.following = None;
    }

    pub(super) fn now(&self) -> Timestamp {
        self.committer.now()
    }

    /// Appends `event` to what the next commit carries, and folds it into the state.
    pub(super) fn push(&mut self, event: Event) -> Result<(), LeaseLost> {
        let at = self.now();
        let seq = self.seq + self.pending.entries.len() as u64 + 1;
        let before = self.pending.entries.last().map_or(&self.head, |newest| &newest.digest);
        let folded = Arc::make_mut(&mut self.state).follow(at, &event);
        let follows = self.following.take();
        let sealed = seal(Some(before), &Entry { seq, at, fence: self.fence, follows, event });
        match (folded, sealed) {
            (Ok(()), Ok(entry)) => {
                self.pending.entries.push(entry);
                self.kept = false;
                Ok(())
            }
            (Err(illegal), _) => Err(self.give_up(&illegal)),
            (_, Err(source)) => Err(self.give_up(&source)),
        }
    }

    /// A bug of ours: nothing is written, and the lease is left to expire, so that it is tried again, slowly.
    pub(super) fn give_up(&self, why: &dyn std::error::Error) -> LeaseLost {
        error!(workflow = %self.id, why = %why, "the engine contradicts itself; nothing was written");
        LeaseLost
    }

    /// The lease is kept.
    pub(super) async fn commit(&mut self, take: Vec<Take>) -> Result<Met, LeaseLost> {
        self.commit_and(take, Next::Keep).await
    }

    /// The lease is given up; the workflow waits in `queue`.
    pub(super) async fn leave(&mut self, next: Next, queue: Queue) -> Result<(), LeaseLost> {
        self.queue = queue;
        // Who takes nothing is not refused.
        self.commit_and(Vec::new(), next).await.map(drop)
    }

    async fn commit_and(&mut self, take: Vec<Take>, next: Next) -> Result<Met, LeaseLost> {
        let parks = matches!(next, Next::At(_) | Next::Signal);
        // Only who takes something may be refused, and then it is still pending.
        let pending = if take.is_empty() { std::mem::take(&mut self.pending) } else { self.pending.clone() };
        let added = pending.entries.len() as u64;
        let state = match (parks && !self.kept).then(|| self.state.kept(self.seq + added)).transpose() {
            Ok(written) => written,
            Err(source) => return Err(self.give_up(&source)),
        };
        let head = pending.entries.last().map(|newest| newest.digest);
        let commit = Commit {
            id: self.id.clone(),
            fence: self.fence,
            expected: self.seq,
            entries: pending.entries,
            state,
            status: self.state.status(),
            headline: self.state.headline(),
            consumed: pending.consumed,
            take,
            give: pending.give,
            create: pending.create,
            signals: pending.signals,
            traceparent: self.traceparent.clone(),
            next,
            queue: self.queue.clone(),
        };
        match self.committer.commit(commit).await? {
            Committed::Done { signals, .. } => {
                self.seq += added;
                if let Some(head) = head {
                    self.head = head;
                }
                self.pending = Pending::default();
                self.inbox = signals.into();
                self.kept |= parks;
                Ok(Met::Done)
            }
            Committed::Busy { resource, holders } => Ok(Met::Busy { resource, holders }),
            Committed::Held { resource, holder } => Ok(Met::Held { resource, holder }),
            Committed::Fenced => Err(LeaseLost),
            Committed::Conflict { seq } => {
                error!(workflow = %self.id, expected = self.seq, found = seq, "the journal is not where its holder left it");
                Err(LeaseLost)
            }
        }
    }

    pub(super) async fn checkpoint(&mut self, step: &str, checkpoint: Checkpoint, note: String) -> Result<(), StepError> {
        let event = Event::StepCheckpointed { step: step.to_owned(), checkpoint, note };
        self.push(event).map_err(lease_lost)?;
        match self.commit(Vec::new()).await {
            Ok(Met::Done) => Ok(()),
            Ok(Met::Busy { .. } | Met::Held { .. }) | Err(LeaseLost) => Err(lease_lost(LeaseLost)),
        }
    }

    pub(super) async fn guard(&self) -> Result<(), StepError> {
        self.committer.guard().await.map_err(lease_lost)
    }

    /// Is there anything that the next commit writes down?
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.entries.is_empty()
    }

    /// Commits what is pending if the next message to every child might be more than one commit carries. Its answer brings what is unread.
    pub(super) async fn keep_within_a_commit(&mut self) -> Result<(), LeaseLost> {
        let open = self.state.children.values().filter(|child| child.outcome.is_none()).count();
        if open > 0 && self.pending.signals.len() + open > COMMIT_ITEMS_MAX {
            self.commit(Vec::new()).await?;
        }
        Ok(())
    }

    /// The same message to every child that is still open, in the next commit.
    pub(super) fn tell_children(&mut self, kind: &SignalKind, cause: &str) {
        let at = self.now();
        for child in self.state.children.values().filter(|child| child.outcome.is_none()) {
            let signal = Signal { id: format!("{}-{cause}", self.id), at, by: Signal::by_workflow(&self.id), kind: kind.clone() };
            if let Ok(stored) = signal.stored() {
                self.pending.signals.push((child.id.clone(), stored));
            }
        }
    }
}

pub(super) fn lease_lost(_: LeaseLost) -> StepError {
    StepError { what: LeaseLost.to_string(), remedy: Remedy::LeaseLost, source: None }
}
