//! Instances, and moving them from one node to another.
//!
//! How real Nova behaves here (observed on 33.0.2): a move is accepted at once and decided later; a
//! failed live migration leaves the instance ACTIVE on its old host without a fault; the reason is only in
//! the instance's action of the same request id; an instance is ACTIVE on its new host some seconds
//! before its migration is finished. The instance's host is the truth, migrations are hints.

use std::collections::BTreeMap;
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
    /// The availability zone that it was asked to be in. None: any, or Nova does not say (before 2024.1).
    pub zone: Option<String>,
    /// What else its flavour asks of Placement: see [`asks`].
    pub asks: BTreeMap<String, String>,
    /// The name of its flavour when it was made; empty where Nova does not say.
    pub flavor: String,
    /// What in its flavour keeps it from being moved live, as `key=value`: see [`pins`].
    pub pinned_by: Vec<String>,
    /// What its owner wants of moves: the value of its metadata [`MOVE_METADATA`].
    pub owner_wants: Option<String>,
}

/// Key of an instance's metadata by which its owner says how it may be moved.
pub const MOVE_METADATA: &str = "turnaround:move";

/// Resource classes of Placement that stand for a device of one node.
const DEVICE_CLASSES: [&str; 3] = ["VGPU", "PGPU", "PCI_DEVICE"];

/// Extra specs of a flavour that give its instances something that Nova moves cold and not live, whatever their value: PCI devices, persistent
/// memory (`nova/compute/api.py`, `live_migrate` and its decorators). What it moves in neither way (accelerators of Cyborg's), or live under some
/// conditions (a TPM), it has to say itself.
const PINNING: [&str; 2] = ["pci_passthrough:alias", "hw:pmem"];

/// Does an instance that has some of this resource class by Placement have a device of its node, or something else that Nova doesn't move live, whatever its
/// flavour says? PCI devices that Placement counts are of the class that their `[pci]device_spec` names, or of `CUSTOM_PCI_vendor_product`
/// (Nova's manual, "Attaching physical PCI devices to guests"); persistent memory is `CUSTOM_PMEM_NAMESPACE_label`.
pub fn holds_device(class: &str) -> bool {
    DEVICE_CLASSES.contains(&class) || ["FPGA", "MEM_ENCRYPTION_CONTEXT"].contains(&class) || ["CUSTOM_PCI_", "CUSTOM_PMEM_NAMESPACE_"].iter().any(|prefix| class.starts_with(prefix))
}

/// Does this extra spec of a flavour give its instances a device of their node, or something else that Nova doesn't move live?
pub fn pins(key: &str, value: &str) -> bool {
    if PINNING.contains(&key) {
        return !value.is_empty();
    }
    // As oslo.utils' `bool_from_string` has it, by which Nova reads it.
    if key == "hw:mem_encryption" {
        return ["1", "t", "true", "on", "y", "yes"].contains(&value.to_ascii_lowercase().as_str());
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

/// Resource classes of Placement that are an instance's size. Which kind of processor, and whether a disk is the host's, doesn't hang on the flavour alone.
const SIZE_CLASSES: [&str; 4] = ["VCPU", "PCPU", "MEMORY_MB", "DISK_GB"];

/// Those of a flavour's extra specs that say what else than its size a host must have by Placement: devices (`resources:VGPU`), traits
/// (`trait:HW_CPU_X86_VMX`), also in groups (`resources1:VGPU`, `trait_GPU:CUSTOM_MIG`, `group_policy`).
pub fn asks(extra_specs: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let of_placement = |key: &str| key.starts_with("resources") && resource_class(key).is_some() || key.starts_with("trait") && key.contains(':');
    let size = |key: &str| key.strip_prefix("resources:").is_some_and(|class| SIZE_CLASSES.contains(&class));
    let mut asks: BTreeMap<String, String> =
        extra_specs.iter().filter(|(key, _)| of_placement(key) && !size(key)).map(|(key, value)| (key.clone(), value.clone())).collect();
    if let Some(policy) = extra_specs.get("group_policy").filter(|_| !asks.is_empty()) {
        asks.insert("group_policy".to_owned(), policy.clone());
    }
    asks
}

/// Have those extra specs more than one group, and no policy of Placement's for them? Nova names none either then, and Placement refuses.
pub fn lacks_group_policy(asks: &BTreeMap<String, String>) -> bool {
    let groups = asks.keys().filter_map(|key| Some(key.strip_prefix("resources")?.split_once(':')?.0)).filter(|group| !group.is_empty());
    let policy = asks.get("group_policy").map(String::as_str);
    groups.collect::<std::collections::BTreeSet<_>>().len() > 1 && !matches!(policy, Some("none" | "isolate"))
}

/// By resource class: how much of it those extra specs ask for in all, but for an instance's size.
pub fn devices(asks: &BTreeMap<String, String>) -> BTreeMap<String, u64> {
    let mut devices = BTreeMap::new();
    for (key, amount) in asks {
        if let Some(class) = resource_class(key).filter(|class| !SIZE_CLASSES.contains(class)) {
            // (What isn't a number Nova wouldn't have taken.)
            *devices.entry(class.to_owned()).or_insert(0) += amount.parse().unwrap_or(0);
        }
    }
    devices
}

/// Instances of which Nova's scheduler keeps some apart, or all together. Nova's soft rules are only wishes, and left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerGroup {
    pub name: String,
    pub rule: GroupRule,
    /// Instances that were deleted stay in it.
    pub members: Vec<InstanceId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupRule {
    /// At most so many of them on one host.
    AntiAffinity { max_on_a_host: u32 },
    /// All of them on one host.
    Affinity,
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

/// What of an instance's memory and of its disk, where that moves too, is on its new host. Nova tells it while libvirt copies, every few seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveProgress {
    pub total_bytes: u64,
    /// It may grow: what the instance has written meanwhile is copied again.
    pub remaining_bytes: u64,
}

impl MoveProgress {
    /// Of a hundred.
    pub fn percent(self) -> u32 {
        let done = self.total_bytes.saturating_sub(self.remaining_bytes);
        // (100 fits.)
        u32::try_from(u128::from(done) * 100 / u128::from(self.total_bytes.max(1))).unwrap_or(100)
    }
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

    /// Has Nova stop the live migration of that uuid: the instance stays where it is, and runs on. Accepted is not done. Stopping one that is over
    /// changes nothing; `Refused` where it can't be stopped (any more).
    async fn stop_live(&self, id: &InstanceId, migration: &str) -> Result<(), PortError>;

    /// Confirms a cold migration. Confirming a confirmed one changes nothing.
    async fn confirm(&self, id: &InstanceId) -> Result<(), PortError>;

    /// Migrations of one instance, newest first.
    async fn migrations(&self, id: &InstanceId) -> Result<Vec<Migration>, PortError>;

    /// Migrations from `node` or to it that are not over yet (in progress, or awaiting confirmation).
    async fn moving(&self, node: &NodeName) -> Result<Vec<Migration>, PortError>;

    /// How far the live migration of this instance is that is under way; None where none is, or Nova does not say.
    async fn progress(&self, id: &InstanceId) -> Result<Option<MoveProgress>, PortError>;

    /// Ports with a device of their host (SR-IOV and the like) of instances on `node`, by Neutron's `binding:vnic_type`.
    async fn device_ports(&self, node: &NodeName) -> Result<BTreeMap<InstanceId, Vec<String>>, PortError>;

    /// What the instance has by Placement, on all hosts: how much of which resource class. Empty where Placement knows nothing of it.
    async fn allocations(&self, id: &InstanceId) -> Result<BTreeMap<String, u64>, PortError>;

    /// Server groups of all projects that have a hard rule.
    async fn groups(&self) -> Result<Vec<ServerGroup>, PortError>;

    /// Why the move of that request failed, in Nova's own words; None if it does not say.
    async fn why_failed(&self, id: &InstanceId, request: &RequestId) -> Result<Option<String>, PortError>;
}

#[cfg(test)]
mod tests {
    use super::{asks, devices, holds_device, pins};

    #[test]
    fn what_a_flavour_asks_of_placement_is_told_apart_from_its_size() {
        let of = |specs: &[(&str, &str)]| specs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let devices_and_traits = [("group_policy", "isolate"), ("resources1:VGPU", "1"), ("resources_GPU:VGPU", "2"), ("resources:PGPU", "1"), ("trait:HW_NUMA_ROOT", "required")];
        let mut all = devices_and_traits.to_vec();
        all.extend([("resources:VCPU", "4"), ("resources:MEMORY_MB", "0"), ("hw:cpu_policy", "dedicated"), ("resources", "1"), ("traits", "x")]);
        assert_eq!(asks(&of(&all)), of(&devices_and_traits));
        assert_eq!(devices(&of(&devices_and_traits)), [("PGPU".to_owned(), 1), ("VGPU".to_owned(), 3)].into());
        assert!(asks(&of(&[("resources:VCPU", "4"), ("group_policy", "none")])).is_empty());
    }

    #[test]
    fn only_a_device_of_its_node_pins_an_instance() {
        for (key, value) in [
            ("pci_passthrough:alias", "h100:1"),
            ("hw:pmem", "6GB"),
            ("hw:mem_encryption", "True"),
            ("resources:VGPU", "1"),
            ("resources1:PGPU", "2"),
            ("resources_GPU1:PCI_DEVICE", "1"),
        ] {
            assert!(pins(key, value), "{key}={value}");
        }
        for (key, value) in [
            ("pci_passthrough:alias", ""),
            ("hw:mem_encryption", "false"),
            ("resources:VGPU", "0"),
            ("resources:VCPU", "4"),
            ("resources:CUSTOM_VGPU", "1"),
            ("hw:cpu_policy", "dedicated"),
            ("VGPU", "1"),
        ] {
            assert!(!pins(key, value), "{key}={value}");
        }
    }

    #[test]
    fn what_placement_calls_a_device_is_one() {
        for class in ["VGPU", "PGPU", "PCI_DEVICE", "FPGA", "CUSTOM_PCI_10DE_2330", "CUSTOM_PMEM_NAMESPACE_6GB", "MEM_ENCRYPTION_CONTEXT"] {
            assert!(holds_device(class), "{class}");
        }
        // Nova takes virtual functions of a network out for a live migration, and puts others in.
        for class in ["VCPU", "PCPU", "MEMORY_MB", "DISK_GB", "SRIOV_NET_VF", "NET_BW_EGR_KILOBIT_PER_SEC", "CUSTOM_LICENSE"] {
            assert!(!holds_device(class), "{class}");
        }
    }
}
