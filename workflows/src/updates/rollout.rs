//! The rollout of a node OS: one child workflow for each node, at most K of them at a time.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::{NODE_OS_ROLLOUT, RolloutOrder};
use crate::steps::FetchImage;
use crate::engine::{
    ChildSpec, Definition, Observed, Outcome, Policy, Progress, Step, StepCx, StepError, step,
};

// 4: whoever takes it gives its nodes the versions that it knows itself, and those have new rules.
pub(super) const VERSION: u32 = 4;
/// A rollout waits for its nodes and their operators. A year is "no deadline" that still is a number.
const ROLLOUT_DEADLINE: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

fn is_renewed(cx: &StepCx<'_>, node: &NodeName) -> bool {
    cx.children().get(node.as_str()).is_some_and(|child| child.outcome == Some(Outcome::Succeeded))
}

/// Nodes that are started in one commit: far from what a store takes at once, and from blocking it.
const STARTED_AT_ONCE: usize = 250;

pub(super) fn definition() -> Definition {
    Definition { kind: NODE_OS_ROLLOUT, version: VERSION, steps: vec![step(FetchImage), step(RenewNodes)] }
}

/// How each node ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RolloutReport {
    pub renewed: Vec<NodeName>,
    /// With what its workflow said last.
    pub not_renewed: Vec<(NodeName, String)>,
}

/// Starts the nodes' workflows in the order's order, a few at a time, and waits for all of them. A node that fails does
/// not stop the others.
pub(super) struct RenewNodes;

#[async_trait]
impl Step for RenewNodes {
    const NAME: &'static str = "renew-nodes";
    type Output = RolloutReport;

    fn policy(&self, _cx: &StepCx<'_>) -> Policy {
        Policy { deadline: ROLLOUT_DEADLINE, ..Policy::default() }
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<RolloutReport>, StepError> {
        let order: RolloutOrder = cx.input()?;
        let ended = cx.children().values().filter(|child| child.outcome.is_some()).count();
        if ended < order.nodes.len() {
            return Ok(Observed::ToDo { would: format!("renew {} of {} nodes", order.nodes.len() - ended, order.nodes.len()) });
        }
        let mut report = RolloutReport { renewed: Vec::new(), not_renewed: Vec::new() };
        for node in &order.nodes {
            match cx.children().get(node.as_str()) {
                Some(child) if child.outcome == Some(Outcome::Succeeded) => report.renewed.push(node.clone()),
                Some(child) => report.not_renewed.push((node.clone(), child.headline.clone())),
                None => report.not_renewed.push((node.clone(), "never started".to_owned())),
            }
        }
        if report.not_renewed.is_empty() {
            return Ok(Observed::AlreadyDone(report));
        }
        let left: Vec<String> = report.not_renewed.iter().map(|(node, why)| format!("{node} ({why})")).collect();
        Err(StepError::fatal(format!(
            "{} of {} nodes were renewed; not renewed: {}",
            report.renewed.len(),
            order.nodes.len(),
            left.join(", ")
        )))
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<RolloutReport>, StepError> {
        let order: RolloutOrder = cx.input()?;
        let open = cx.children().values().filter(|child| child.outcome.is_none()).count();
        let ended = cx.children().len() - open;
        let note = format!("{ended} of {} nodes ended", order.nodes.len());
        let room = (order.rules.max_out as usize).saturating_sub(open);
        let waiting = || order.nodes.iter().filter(|node| !cx.children().contains_key(node.as_str()));
        let together = waiting().take_while(|node| !order.alone.contains(node)).take(room.min(STARTED_AT_ONCE));
        let mut next: Vec<&NodeName> = together.collect();
        // What others may need meanwhile goes out when nobody else is.
        if next.is_empty() && open == 0 {
            next.extend(waiting().next());
        }
        if next.is_empty() {
            return Ok(Progress::AwaitChildren { note });
        }
        let mut children = Vec::with_capacity(next.len());
        for node in next {
            let input = serde_json::to_value(order.node(node, |other| is_renewed(cx, other)))
                .map_err(|error| StepError::fatal("the order of a node can't be written").because(error))?;
            children.push(ChildSpec { key: node.to_string(), kind: order.kind(node).to_owned(), target: node.to_string(), input });
        }
        Ok(Progress::StartChildren { children, note })
    }
}
