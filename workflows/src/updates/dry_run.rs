//! The dry run of a rollout: `observe` over every step of every node, and nothing else.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::{NODE_OS_DRY_RUN, NODE_OS_IRONIC, NodeOrder, RolloutOrder, node_os, node_os_ironic};
use crate::engine::{Definition, Observed, Progress, Step, StepCx, StepError, step};
use crate::ports::{Instance, PortError};
use crate::store::Queue;
use crate::steps::{Evacuate, FetchImage, queues};

pub(super) const VERSION: u32 = 2;
/// Of a step that was not ordered, or that finds nothing, such as an instance to move. Not `done`: nothing has begun.
const NOTHING: &str = "nothing to do";
/// Nodes that are looked at together.
const NODES_AT_ONCE: usize = 8;

pub(super) fn definition() -> Definition {
    Definition { kind: NODE_OS_DRY_RUN, version: VERSION, steps: vec![step(Preview { by_us: Arc::new(node_os::definition()), by_ironic: Arc::new(node_os_ironic::definition()) })] }
}

/// What one step of one node would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRunLine {
    pub node: NodeName,
    pub step: String,
    /// One line: what would be done; or `nothing to do`; or why it can't be said.
    pub would: String,
    /// What would stop the rollout there.
    pub problem: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRunReport {
    pub lines: Vec<DryRunLine>,
}

struct Preview {
    by_us: Arc<Definition>,
    by_ironic: Arc<Definition>,
}

#[async_trait]
impl Step for Preview {
    const NAME: &'static str = "preview";
    const QUEUE: Queue = queues::SURVEY;
    type Output = DryRunReport;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<DryRunReport>, StepError> {
        let order: RolloutOrder = cx.input()?;
        // In their order: whoever stands before a node is renewed by then, but for those that are out together with it. Those that go alone come last.
        let place = |node: &NodeName| order.nodes.iter().position(|other| other == node).unwrap_or(usize::MAX);
        let together = (order.rules.max_out as usize).max(1);
        let before = |node: &NodeName| if order.alone.contains(node) { 1 } else { together };
        let is_renewed = |other: &NodeName, node: &NodeName| place(other).saturating_add(before(node)) <= place(node);
        let orders: Vec<NodeOrder> = order.nodes.iter().map(|node| order.node(node, |other| is_renewed(other, node))).collect();
        let definition = |node: &NodeName| if order.kind(node) == NODE_OS_IRONIC { &self.by_ironic } else { &self.by_us };
        let looked = orders.into_iter().map(|part| look_at(cx, definition(&part.node), part));
        let lines: Vec<Result<Vec<DryRunLine>, StepError>> =
            futures::stream::iter(looked).buffered(NODES_AT_ONCE).collect().await;
        let mut report = DryRunReport { lines: before_all(cx, &order).await?.into_iter().collect() };
        for node in lines {
            report.lines.extend(node?);
        }
        report.lines.extend(idle_rules(cx, &order).await);
        Ok(Observed::AlreadyDone(report))
    }

    async fn act(&self, _cx: &StepCx<'_>) -> Result<Progress<DryRunReport>, StepError> {
        Err(StepError::fatal("a dry run only looks"))
    }
}

/// What is done once, before any node is touched: told with the first one.
async fn before_all(cx: &StepCx<'_>, order: &RolloutOrder) -> Result<Option<DryRunLine>, StepError> {
    let (Some(first), Some(_)) = (order.nodes.first(), &order.rules.fetch) else { return Ok(None) };
    let input = serde_json::to_value(order).map_err(|error| StepError::fatal("the order can't be written").because(error))?;
    let (would, problem) = match FetchImage.observe(&cx.looking_at(FetchImage::NAME, input)).await {
        Ok(Observed::AlreadyDone(_)) => (NOTHING.to_owned(), false),
        Ok(Observed::ToDo { would }) => (format!("once, before any node is touched: {would}"), false),
        Err(error) => (error.chain(), true),
    };
    Ok(Some(DryRunLine { node: first.clone(), step: FetchImage::NAME.to_owned(), would, problem }))
}

/// The site's move rules that are about nothing here, told last: a mistyped one does nothing, and nobody would notice. None where they all are
/// about something, or where the instances can't be listed, which the nodes' own lines say.
async fn idle_rules(cx: &StepCx<'_>, order: &RolloutOrder) -> Option<DryRunLine> {
    let (Some(last), false) = (order.nodes.last(), order.rules.moves.is_empty()) else { return None };
    let asked = order.nodes.iter().cloned().map(|node| async move { cx.ports.instances.on(&node).await });
    let found: Vec<Result<Vec<Instance>, PortError>> = futures::stream::iter(asked).buffered(NODES_AT_ONCE).collect().await;
    let found = found.into_iter().collect::<Result<Vec<_>, _>>().ok()?.concat();
    let idle = order.rules.moves.iter().filter(|rule| !found.iter().any(|instance| rule.is_about(instance)));
    let idle: Vec<String> = idle.map(|rule| format!("`moves.{}`", rule.name)).collect();
    if idle.is_empty() {
        return None;
    }
    let would = format!(
        "do nothing by {}: about no instance on any of these nodes; see that the flavors and projects in [moves] are as Nova has them",
        idle.join(", ")
    );
    Some(DryRunLine { node: last.clone(), step: Evacuate::NAME.to_owned(), would, problem: false })
}

async fn look_at(cx: &StepCx<'_>, definition: &Definition, order: NodeOrder) -> Result<Vec<DryRunLine>, StepError> {
    let input = serde_json::to_value(&order)
        .map_err(|error| StepError::fatal("the order of a node can't be written").because(error))?;
    let mut lines = Vec::new();
    for step in &definition.steps {
        let seen = step.observe(&cx.looking_at(step.name(), input.clone())).await;
        let (would, problem) = match seen {
            Ok(Observed::AlreadyDone(_)) => (NOTHING.to_owned(), false),
            Ok(Observed::ToDo { would }) => (would, false),
            Err(error) => (error.chain(), true),
        };
        lines.push(DryRunLine { node: order.node.clone(), step: step.name().to_owned(), would, problem });
    }
    Ok(lines)
}
