//! Which nodes are being renewed, or are about to be. A second order for such a node would wait for its lock, and wipe it
//! once more when the first has succeeded.

use std::collections::HashMap;
use std::sync::Arc;

use tracing::warn;
use turnaround_config::NodeName;
use turnaround_workflows::engine::{Course, State as Folded};
use turnaround_workflows::store::{Document, PAGE_MAX, Query, Scope, Store, StoreError, WorkflowId};
use turnaround_workflows::updates::{NODE_OS, NODE_OS_IRONIC, NODE_OS_ROLLOUT, RolloutOrder};

/// Pages of open workflows of one kind that are looked at: 10,000, which is more than a store keeps.
const PAGES_MAX: u32 = 20;

#[derive(Debug, Default)]
pub(crate) struct Renewing {
    by_node: HashMap<String, WorkflowId>,
    /// Nodes that an open rollout has not begun yet, and that rollout.
    planned: HashMap<String, WorkflowId>,
    /// An open rollout that can't be read, or one of more than are looked at: it may be about any node.
    unsure: Option<WorkflowId>,
}

impl Renewing {
    /// By what is open just now.
    pub(crate) async fn look(store: &Arc<dyn Store>) -> Result<Renewing, StoreError> {
        let mut renewing = Renewing::default();
        // Rollouts first: a node that one of them starts in between is a part of it still.
        for rollout in renewing.open(store, NODE_OS_ROLLOUT).await? {
            match nodes_to_come(store, &rollout).await? {
                Some(nodes) => {
                    nodes.iter().for_each(|node| renewing.begins(node, &rollout.id));
                    renewing.planned.extend(nodes.into_iter().map(|node| (node.to_string(), rollout.id.clone())));
                }
                None => renewing.unsure = Some(rollout.id),
            }
        }
        for kind in [NODE_OS, NODE_OS_IRONIC] {
            for node in renewing.open(store, kind).await? {
                renewing.by_node.insert(node.target, node.id);
            }
        }
        Ok(renewing)
    }

    /// The workflow that renews `node`, or that will.
    pub(crate) fn who(&self, node: &NodeName) -> Option<&WorkflowId> {
        self.by_node.get(node.as_str()).or(self.unsure.as_ref())
    }

    /// The open rollout in which the turn of `node` is yet to come.
    pub(crate) fn planned(&self, node: &NodeName) -> Option<&WorkflowId> {
        self.planned.get(node.as_str())
    }

    /// From now on `node` is a part of `rollout`.
    pub(crate) fn begins(&mut self, node: &NodeName, rollout: &WorkflowId) {
        self.by_node.insert(node.to_string(), rollout.clone());
    }

    async fn open(&mut self, store: &Arc<dyn Store>, kind: &str) -> Result<Vec<Document>, StoreError> {
        let mut found: Vec<Document> = Vec::new();
        for page in 0..PAGES_MAX {
            let query = Query { scope: Scope::Open, kind: Some(kind.to_owned()), offset: page * PAGE_MAX, limit: PAGE_MAX, ..Query::default() };
            let documents = store.list(&query).await?;
            let full = documents.len() >= PAGE_MAX as usize;
            found.extend(documents);
            if !full {
                return Ok(found);
            }
        }
        self.unsure = found.last().map(|document| document.id.clone());
        Ok(found)
    }
}

/// The nodes that `rollout` has not begun yet; those that it has begun have workflows of their own. None: it can't be read.
async fn nodes_to_come(store: &Arc<dyn Store>, rollout: &Document) -> Result<Option<Vec<NodeName>>, StoreError> {
    let state = match Folded::load(&**store, rollout).await? {
        Ok(state) => state,
        Err(damage) => {
            warn!(workflow = %rollout.id, damage = damage.chain(), "a rollout can't be read: it may be about any node");
            return Ok(None);
        }
    };
    // What goes back begins no further node.
    if state.course != Course::Forward {
        return Ok(Some(Vec::new()));
    }
    let Ok(order) = serde_json::from_value::<RolloutOrder>(state.input) else { return Ok(None) };
    Ok(Some(order.nodes.into_iter().filter(|node| !state.children.contains_key(node.as_str())).collect()))
}
