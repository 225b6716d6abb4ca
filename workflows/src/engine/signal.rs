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
    /// Who sent it: a user name, or `workflow <id>`.
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
    Answer { key: String },
    /// Somebody outside said something, whom nobody vouches for. `at` is when it was taken, by the store's clock.
    Report { about: String, word: String, text: String },
    /// A child has ended.
    ChildEnded { key: String, id: WorkflowId, outcome: Outcome, headline: String },
}

impl Signal {
    pub fn stored(&self) -> Result<StoredSignal, serde_json::Error> {
        Ok(StoredSignal { body: serde_json::to_string(self)? })
    }
}
