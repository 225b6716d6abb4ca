//! One workflow as the memory store keeps it.

use std::collections::{BTreeSet, VecDeque};

use crate::clock::Timestamp;
use crate::store::{
    Commit, Digest, Document, Fence, LeaseInfo, NewWorkflow, Queue, Status, StoredEntry, StoredSignal, WorkflowId, limits, mark,
};

/// Who may append. A lease that has expired is still a lease until somebody else is granted one.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) worker: String,
    pub(super) fence: Fence,
    pub(super) until: Timestamp,
}

#[derive(Debug)]
pub(super) enum Turn {
    Leased(Lease),
    Due(Queue, Timestamp),
    /// Only a signal or a freed resource wakes it.
    Asleep,
    /// Swept at that time.
    Ended { expires: Timestamp },
}

#[derive(Debug)]
pub(super) struct Record {
    pub(super) kind: String,
    pub(super) target: String,
    pub(super) parent: Option<WorkflowId>,
    pub(super) status: Status,
    pub(super) headline: String,
    pub(super) journal: Vec<StoredEntry>,
    pub(super) state: Option<String>,
    pub(super) queue: Queue,
    pub(super) traceparent: Option<String>,
    pub(super) created: Timestamp,
    pub(super) updated: Timestamp,
    pub(super) turn: Turn,
    /// Of the newest commit, if that had no entries.
    pub(super) mark: Option<String>,
    /// Leases in a row that expired without a commit.
    pub(super) tries: u32,
    /// A resource that it waited for was freed since it was claimed.
    pub(super) woken: bool,
    pub(super) inbox: VecDeque<StoredSignal>,
    pub(super) locks: BTreeSet<String>,
}

impl Record {
    pub(super) fn new(new: NewWorkflow, now: Timestamp) -> Record {
        let due = new.due.map_or(now, limits::keepable);
        Record {
            kind: new.kind,
            target: new.target,
            parent: new.parent,
            status: if due > now { Status::Waiting } else { Status::Runnable },
            headline: new.headline,
            journal: vec![new.entry],
            state: None,
            queue: Queue::DEFAULT,
            traceparent: new.traceparent,
            created: now,
            updated: now,
            turn: Turn::Asleep,
            mark: None,
            tries: 0,
            woken: false,
            inbox: VecDeque::new(),
            locks: BTreeSet::new(),
        }
    }

    pub(super) fn seq(&self) -> u64 {
        self.journal.len() as u64
    }

    /// Whether `commit` stands.
    pub(super) fn has(&self, commit: &Commit) -> bool {
        match commit.entries.last() {
            Some(newest) => self.head() == Some(newest.digest),
            None => self.mark.as_ref().is_some_and(|mark| *mark == mark::of(commit)),
        }
    }

    /// Digest of the newest entry.
    fn head(&self) -> Option<Digest> {
        self.journal.last().map(|newest| newest.digest)
    }

    pub(super) fn fence(&self) -> Option<Fence> {
        match &self.turn {
            Turn::Leased(lease) => Some(lease.fence),
            Turn::Due(..) | Turn::Asleep | Turn::Ended { .. } => None,
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.turn, Turn::Ended { .. })
    }

    pub(super) fn unread(&self) -> Vec<StoredSignal> {
        self.inbox.iter().take(limits::SIGNALS_HANDED_MAX).cloned().collect()
    }

    pub(super) fn document(&self, id: &WorkflowId) -> Document {
        Document {
            id: id.clone(),
            kind: self.kind.clone(),
            target: self.target.clone(),
            parent: self.parent.clone(),
            status: self.status,
            headline: self.headline.clone(),
            seq: self.seq(),
            head: self.head().unwrap_or(Digest::NONE),
            state: self.state.clone(),
            queue: self.queue.clone(),
            traceparent: self.traceparent.clone(),
            created: self.created,
            updated: self.updated,
            due: match self.turn {
                Turn::Due(_, at) => Some(at),
                Turn::Leased(_) | Turn::Asleep | Turn::Ended { .. } => None,
            },
            lease: match &self.turn {
                Turn::Leased(lease) => {
                    Some(LeaseInfo { worker: lease.worker.clone(), fence: lease.fence, until: lease.until })
                }
                Turn::Due(..) | Turn::Asleep | Turn::Ended { .. } => None,
            },
        }
    }
}
