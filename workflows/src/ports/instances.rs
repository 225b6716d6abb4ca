//! Instances, and moving them from one node to another.
//!
//! How real Nova behaves here (observed on 33.0.2): a move is accepted at once and decided later; a
//! failed live migration leaves the instance ACTIVE on its old host without a fault; the reason is only in
//! the instance's action of the same request id; an instance is ACTIVE on its new host some seconds
//! before its migration is finished. The instance's host is the truth, migrations are hints.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::{PortError, Room};
use crate::clock::Timestamp;

/// Nova's server UUID.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub String);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// `x-openstack-request-id` of the request that asked for a move; its instance action carries it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub String);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub id: InstanceId,
    pub name: String,
    pub project: String,
    /// `OS-EXT-SRV-ATTR:host`: where it is, by our own name for that node if it is one of ours. None while it is being scheduled or shelved away.
    pub host: Option<String>,
    /// Nova's `OS-EXT-STS:vm_state`: `active`, `stopped`, `paused`, `resized`, `error`, ...
    pub vm_state: String,
    /// Nova's `OS-EXT-STS:task_state`: None while nothing is under way.
    pub task_state: Option<String>,
    /// Text of the instance's `fault`, where there is one.
    pub fault: Option<String>,
    pub locked: bool,
    /// What it takes of a host.
    pub takes: Room,
    /// What in its flavour ties it to a device of its node, as `key=value`: see [`pins`].
    pub pinned_by: Vec<String>,
    /// What its owner wants of moves: the value of its metadata [`MOVE_METADATA`].
    pub owner_wants: Option<String>,
}

/// Key of an instance's metadata by which its owner says how it may be moved.
pub const MOVE_METADATA: &str = "turnaround:move";

/// Resource classes of Placement that stand for a device of one node.
const DEVICE_CLASSES: [&str; 3] = ["VGPU", "PGPU", "PCI_DEVICE"];

/// Does this extra spec of a flavour give its instances a device of their node, so that Nova doesn't move them live?
pub fn pins(key: &str, value: &str) -> bool {
    if key == "pci_passthrough:alias" {
        return !value.is_empty();
    }
    // None of it is 0.
    resource_class(key).is_some_and(|class| DEVICE_CLASSES.contains(&class)) && value != "0"
}

/// The class of Placement that this extra spec of a flavour asks for: `resources:VGPU`, or in a numbered or named group
/// `resources1:VGPU`, `resources_GPU:VGPU`.
pub fn resource_class(key: &str) -> Option<&str> {
    let (_group, class) = key.strip_prefix("resources")?.split_once(':')?;
    Some(class)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Move {
    /// `os-migrateLive`: the instance runs on.
    Live,
    /// `migrate`: for stopped instances, and for running ones that can't be moved live: Nova stops them and starts them again.
    /// Ends in `resized` and wants a confirmation.
    Cold,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveStarted {
    pub request: RequestId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationKind {
    Live,
    /// A cold migration.
    Cold,
    /// A tenant's own change of flavour. Never ours.
    Resize,
    /// A rebuild elsewhere after a host failed. Never part of a planned update.
    Evacuation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationState {
    InProgress,
    /// A cold migration that waits to be confirmed or reverted (`finished`).
    AwaitsConfirmation,
    Succeeded,
    /// `error`, `failed`, `cancelled`, `reverted`, as the text says.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    pub uuid: String,
    pub instance: InstanceId,
    pub kind: MigrationKind,
    pub state: MigrationState,
    /// Nova's own word for the state.
    pub status: String,
    pub source: Option<String>,
    pub destination: Option<String>,
    pub created: Timestamp,
}

/// Instances of all projects. Nova: `servers`, `os-migrations`, `os-instance-actions`.
#[async_trait]
pub trait Instances: Send + Sync {
    /// Every instance, of every project and in every state, that Nova places on `node`.
    /// `NotFound` where Nova knows no such host: a host that is not known must not look empty.
    async fn on(&self, node: &NodeName) -> Result<Vec<Instance>, PortError>;

    /// One instance; None if there is none (any more).
    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, PortError>;

    /// Asks for a move, to a host by its name as in [`super::Host`], or to wherever the scheduler likes. Accepted is not done: a host that the
    /// scheduler does not find fit makes the move fail later. **Not idempotent**: where the answer was lost (`OutcomeUnknown`), look at
    /// [`Instances::migrations`] before asking again.
    async fn start_move(&self, id: &InstanceId, how: Move, to: Option<&str>) -> Result<MoveStarted, PortError>;

    /// Confirms a cold migration. Confirming a confirmed one changes nothing.
    async fn confirm(&self, id: &InstanceId) -> Result<(), PortError>;

    /// Migrations of one instance, newest first.
    async fn migrations(&self, id: &InstanceId) -> Result<Vec<Migration>, PortError>;

    /// Migrations from `node` or to it that are not over yet (in progress, or awaiting confirmation).
    async fn moving(&self, node: &NodeName) -> Result<Vec<Migration>, PortError>;

    /// Why the move of that request failed, in Nova's own words; None if it does not say.
    async fn why_failed(&self, id: &InstanceId, request: &RequestId) -> Result<Option<String>, PortError>;
}

#[cfg(test)]
mod tests {
    use super::pins;

    #[test]
    fn only_a_device_of_its_node_pins_an_instance() {
        for (key, value) in [
            ("pci_passthrough:alias", "h100:1"),
            ("resources:VGPU", "1"),
            ("resources1:PGPU", "2"),
            ("resources_GPU1:PCI_DEVICE", "1"),
        ] {
            assert!(pins(key, value), "{key}={value}");
        }
        for (key, value) in [
            ("pci_passthrough:alias", ""),
            ("resources:VGPU", "0"),
            ("resources:VCPU", "4"),
            ("resources:CUSTOM_VGPU", "1"),
            ("hw:cpu_policy", "dedicated"),
            ("VGPU", "1"),
        ] {
            assert!(!pins(key, value), "{key}={value}");
        }
    }
}
