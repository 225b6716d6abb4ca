//! The kinds of update, one file each: a list of steps that can be read aloud.

use rand::Rng as _;

use crate::chance;
use crate::engine::{Registry, Start};
use crate::store::WorkflowId;
use crate::telemetry;

mod dry_run;
mod installer_reports;
mod node_os;
mod node_os_ironic;
mod order;
mod rollout;
mod survey;

pub use dry_run::{DryRunLine, DryRunReport};
pub use installer_reports::{REASON_CHARS_MAX, ReportDesk, ReportError, Taken};
pub use order::{
    BadOrder, Deploy, Expected, MoveRules, NodeOrder, OrderedCanary, OrderedCheck, OrderedCluster, OrderedImage, OrderedIronicImage, OrderedMoveRule, OrderedReports, OrderedSilence,
    RolloutOrder, Rules, SurveyOrder,
};
pub use survey::{NodeSurvey, SurveyReport};
pub use crate::steps::installer::Word;

/// Renews the operating system of one node. Started by a rollout.
pub const NODE_OS: &str = "node-os";
/// The same for a node that Ironic installs.
pub const NODE_OS_IRONIC: &str = "node-os-ironic";
/// Renews the operating systems of several nodes, a few at a time.
pub const NODE_OS_ROLLOUT: &str = "node-os-rollout";
/// Looks what a rollout would do. Changes nothing.
pub const NODE_OS_DRY_RUN: &str = "node-os-dry-run";
/// Reads what every node runs and what Nova says of it. Changes nothing.
pub const SURVEY: &str = "survey";

/// The budget that counts nodes which are out of service.
pub const NODES_OUT: &str = "nodes-out";

/// Every definition of this release.
pub fn registry() -> Registry {
    Registry::new([node_os::definition(), node_os_ironic::definition(), rollout::definition(), dry_run::definition(), survey::definition()])
}

/// The start of a rollout, its dry run, or a survey, under a fresh id.
pub fn rollout(order: &RolloutOrder, by: &str) -> Result<Start, serde_json::Error> {
    fresh(NODE_OS_ROLLOUT, rollout::VERSION, &describe(order), serde_json::to_value(order)?, by)
}

pub fn dry_run(order: &RolloutOrder, by: &str) -> Result<Start, serde_json::Error> {
    fresh(NODE_OS_DRY_RUN, dry_run::VERSION, &describe(order), serde_json::to_value(order)?, by)
}

pub fn survey(order: &SurveyOrder, by: &str) -> Result<Start, serde_json::Error> {
    fresh(SURVEY, survey::VERSION, "site", serde_json::to_value(order)?, by)
}

fn describe(order: &RolloutOrder) -> String {
    match order.nodes.as_slice() {
        [only] => only.to_string(),
        nodes => format!("{} nodes", nodes.len()),
    }
}

fn fresh(kind: &str, version: u32, target: &str, input: serde_json::Value, by: &str) -> Result<Start, serde_json::Error> {
    Ok(Start {
        id: fresh_id(kind).map_err(serde::ser::Error::custom)?,
        kind: kind.to_owned(),
        version,
        target: target.to_owned(),
        input,
        parent: None,
        key: None,
        by: by.to_owned(),
        // Its first activation is linked to whoever orders it: a request, a tick.
        traceparent: telemetry::current_traceparent(),
    })
}

/// Letters and digits that can be told apart when read aloud.
const ID_ALPHABET: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz023456789";
/// 32^8 is 10^12: among the some thousand workflows that a store keeps, a collision is less likely than 1 in 10^6.
const ID_RANDOM_CHARS: usize = 8;

/// `kind` and eight random characters: short enough to be typed.
fn fresh_id(kind: &str) -> Result<WorkflowId, crate::store::InvalidWorkflowId> {
    let suffix: String = chance::draw(|random| {
        (0..ID_RANDOM_CHARS).map(|_| char::from(ID_ALPHABET[random.random_range(0..ID_ALPHABET.len())])).collect()
    });
    format!("{kind}-{suffix}").parse()
}
