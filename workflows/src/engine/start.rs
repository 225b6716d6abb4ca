//! The first entry of a workflow's journal.

use serde_json::Value;

use super::{Entry, Event, State, seal};
use crate::clock::Timestamp;
use crate::store::{Fence, NewWorkflow, WorkflowId};

/// What a new workflow is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    pub id: WorkflowId,
    pub kind: String,
    pub version: u32,
    pub target: String,
    pub input: Value,
    pub parent: Option<WorkflowId>,
    /// Under which key the parent keeps it.
    pub key: Option<String>,
    /// Who wants it: a user name, `schedule NAME`, or `workflow ID`.
    pub by: String,
    pub traceparent: Option<String>,
}

/// A workflow as the store takes it. The error means that the input can't be written as JSON.
pub fn start(start: Start, now: Timestamp) -> Result<NewWorkflow, serde_json::Error> {
    let Start { id, kind, version, target, input, parent, key, by, traceparent } = start;
    let event = Event::Created { kind: kind.clone(), version, target: target.clone(), input, parent: parent.clone(), key, by };
    let state = State::begin(&event).map_err(serde::ser::Error::custom)?;
    let headline = state.headline();
    let entry = seal(None, &Entry { seq: 1, at: now, fence: Fence(0), follows: None, event })?;
    Ok(NewWorkflow { id, kind, target, parent, headline, entry, traceparent, due: None })
}
