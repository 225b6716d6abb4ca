//! The dry run of a rollout: `observe` over every step of every node, and nothing else.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::{NODE_OS_DRY_RUN, NodeOrder, RolloutOrder, node_os};
use crate::engine::{Definition, Observed, Progress, Step, StepCx, StepError, step};
use crate::store::Queue;
use crate::steps::queues;

pub(super) const VERSION: u32 = 1;
/// Nodes that are looked at together.
const NODES_AT_ONCE: usize = 8;

pub(super) fn definition() -> Definition {
    Definition { kind: NODE_OS_DRY_RUN, version: VERSION, steps: vec![step(Preview(Arc::new(node_os::definition())))] }
}

/// What one step of one node would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRunLine {
    pub node: NodeName,
    pub step: String,
    /// One line: what would be done; or `done already`; or why it can't be said.
    pub would: String,
    /// What would stop the rollout there.
    pub problem: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRunReport {
    pub lines: Vec<DryRunLine>,
}

struct Preview(Arc<Definition>);

#[async_trait]
impl Step for Preview {
    const NAME: &'static str = "preview";
    const QUEUE: Queue = queues::SURVEY;
    type Output = DryRunReport;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<DryRunReport>, StepError> {
        let order: RolloutOrder = cx.input()?;
        let orders: Vec<NodeOrder> = order.nodes.iter().map(|node| order.node(node)).collect();
        let looked = orders.into_iter().map(|order| self.look_at(cx, order));
        let lines: Vec<Result<Vec<DryRunLine>, StepError>> =
            futures::stream::iter(looked).buffered(NODES_AT_ONCE).collect().await;
        let mut report = DryRunReport { lines: Vec::new() };
        for node in lines {
            report.lines.extend(node?);
        }
        Ok(Observed::AlreadyDone(report))
    }

    async fn act(&self, _cx: &StepCx<'_>) -> Result<Progress<DryRunReport>, StepError> {
        Err(StepError::fatal("a dry run only looks"))
    }
}

impl Preview {
    async fn look_at(&self, cx: &StepCx<'_>, order: NodeOrder) -> Result<Vec<DryRunLine>, StepError> {
        let input = serde_json::to_value(&order)
            .map_err(|error| StepError::fatal("the order of a node can't be written").because(error))?;
        let mut lines = Vec::new();
        for step in &self.0.steps {
            let seen = step.observe(&cx.looking_at(step.name(), input.clone())).await;
            let (would, problem) = match seen {
                Ok(Observed::AlreadyDone(_)) => ("done already".to_owned(), false),
                Ok(Observed::ToDo { would }) => (would, false),
                Err(error) => (error.chain(), true),
            };
            lines.push(DryRunLine { node: order.node.clone(), step: step.name().to_owned(), would, problem });
        }
        Ok(lines)
    }
}
