//! From what was typed to the id of a workflow.

use turnaround_workflows::updates::{NODE_OS, NODE_OS_IRONIC};

use super::client::{Client, read};
use super::error::CliError;
use crate::wire::{NodeView, NodesView, WorkflowsView};

/// Ids named where several begin with what was typed.
const NAMED_MAX: usize = 5;

async fn node(client: &Client, typed: &str) -> Result<Option<NodeView>, CliError> {
    let view: NodesView = read(client.get("/v1/nodes").await?)?;
    Ok(view.nodes.into_iter().find(|node| node.name.as_str() == typed))
}

/// The id of the only workflow that begins with `typed`, with or without its kind.
pub(super) async fn resolve(client: &Client, typed: &str) -> Result<String, CliError> {
    // Anything else could not be part of an id, and would change the request.
    if typed.is_empty() || !typed.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        return Err(CliError::NoWorkflow { typed: typed.to_owned() });
    }
    let found: WorkflowsView = read(client.get(&format!("/v1/workflows?scope=all&id_prefix={typed}")).await?)?;
    let ids: Vec<String> = found.workflows.iter().map(|workflow| workflow.id.to_string()).collect();
    match ids.as_slice() {
        [] => {
            // No node: it may be archived, which only its full name finds.
            let Some(node) = node(client, typed).await? else { return Err(CliError::NoWorkflow { typed: typed.to_owned() }) };
            let of_it: WorkflowsView = read(client.get(&format!("/v1/workflows?target={typed}")).await?)?;
            let renewals = of_it.workflows.into_iter().filter(|workflow| [NODE_OS, NODE_OS_IRONIC].contains(&workflow.kind.as_str()));
            let open = renewals.map(|workflow| workflow.id.to_string()).collect();
            Err(CliError::NodeTyped { node: typed.to_owned(), open, planned: node.planned.map(|rollout| rollout.to_string()) })
        }
        [only] => Ok(only.clone()),
        several => Err(CliError::Ambiguous {
            typed: typed.to_owned(),
            count: several.len(),
            some: several.iter().take(NAMED_MAX).cloned().collect(),
        }),
    }
}
