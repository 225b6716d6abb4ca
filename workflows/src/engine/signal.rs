//! Durable messages from people and children to a workflow.

use serde::{Deserialize, Serialize};

use super::Outcome;
use crate::clock::Timestamp;
use crate::store::{StoredSignal, WorkflowId};

/// A message. Delivered at least once; `id` makes a second delivery harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    pub id: String,
    pub at: Timestamp,
    /// Who sent it: a user name, or as [`Signal::by_workflow`] has it.
    pub by: String,
    pub kind: SignalKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "signal", rename_all = "kebab-case")]
pub enum SignalKind {
    /// No step begins, no instance starts to move, until `Resume`.
    Pause { why: String },
    Resume,
    /// Undo what was done and end, where that is still possible.
    Abort { why: String },
    /// Try the current step again now, with fresh attempts and a fresh deadline.
    Retry,
    /// One of the answers of the question that is open.
    Answer {
        key: String,
        /// The question that its author has read ([`super::State::open_question`]): another one is not answered by it. None: whichever is open.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        question: Option<u32>,
    },
    /// Somebody outside said something, whom nobody vouches for. `at` is when it was taken, by the store's clock.
    Report { about: String, word: String, text: String },
    /// A child has ended.
    ChildEnded { key: String, id: WorkflowId, outcome: Outcome, headline: String },
}

impl SignalKind {
    /// An answer to whichever question is open.
    pub fn answer(key: impl Into<String>) -> SignalKind {
        SignalKind::Answer { key: key.into(), question: None }
    }
}

/// No user name has a space.
const BY_WORKFLOW: &str = "workflow ";

impl Signal {
    /// What a workflow's signals say who sent them.
    pub(super) fn by_workflow(id: &WorkflowId) -> String {
        format!("{BY_WORKFLOW}{id}")
    }

    pub(super) fn is_of_a_workflow(&self) -> bool {
        Signal::is_by_a_workflow(&self.by)
    }

    pub(super) fn is_by_a_workflow(by: &str) -> bool {
        by.starts_with(BY_WORKFLOW)
    }

    pub fn stored(&self) -> Result<StoredSignal, serde_json::Error> {
        Ok(StoredSignal { body: serde_json::to_string(self)? })
    }
}
