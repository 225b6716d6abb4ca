//! What a node says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::{Machine, PortError, Token};

/// The mark that the installer leaves in `/etc/turnaround/installed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// From the installer's kernel command line.
    pub token: Token,
    /// SHA-256 of the image that was written, as the installer computed it.
    pub sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// `/proc/sys/kernel/random/boot_id`: another one after every boot.
    pub boot_id: String,
    pub hostname: String,
    /// `VERSION_ID` of `/etc/os-release`.
    pub os_version_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// None on a node that was never installed by us.
    pub installed: Option<Installed>,
}

/// What is on a disk of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskHolds {
    /// The system that runs, or a part of it.
    System,
    /// File systems, members of volume groups and of arrays, partitions, by type and UUID; empty: nothing that is known.
    Data(String),
}

/// A graphics card, accelerator, switch of those, or network card of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevice {
    /// `vendor:device`, in hexadecimal.
    pub id: String,
    /// What drives it; None: nothing.
    pub driver: Option<String>,
    /// Lanes of PCIe that it has in use; 0: it does not say; [`PciDevice::LANES_OF_THE_DEAD`]: it does not answer.
    pub lanes: u32,
}

impl PciDevice {
    /// What the kernel reads of a device that has fallen off its bus: six bits, and all of them ones (`PCI_EXP_LNKSTA_NLW` of Linux).
    pub const LANES_OF_THE_DEAD: u32 = 63;
}

/// What of a node its renewal has to leave as it was, and whether its clock goes right.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStock {
    /// How far its clock is certainly ahead of ours, in milliseconds; behind it: negative.
    pub clock_ahead_ms: i64,
    /// Its own disks, by WWN (or serial number, or name, where it has none): not those that it has over a network. None: it can't tell.
    pub disks: Option<BTreeMap<String, DiskHolds>>,
    /// Its PCI devices that matter to guests, by address, but for virtual functions.
    #[serde(default)]
    pub devices: BTreeMap<String, PciDevice>,
    /// How many virtual functions of such devices there are, by `vendor:device`. (What drives them changes with the instances that have them.)
    #[serde(default)]
    pub virtual_functions: BTreeMap<String, u32>,
    /// Words of its kernel's command line that concern devices, memory and processors of guests.
    pub kernel_parameters: BTreeSet<String>,
    /// Its VLAN interfaces, each with its VLAN and what it is on. None: it can't tell.
    pub vlans: Option<BTreeSet<String>>,
}

/// How a command on a node ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandEnd {
    pub code: i32,
    /// What it wrote to its standard output, without blanks at both ends.
    pub output: String,
}

#[async_trait]
pub trait NodeFacts: Send + Sync {
    /// Asks the node itself. `Unavailable` while it does not answer, which is normal while it boots.
    async fn facts(&self, node: &NodeName) -> Result<Facts, PortError>;

    /// UUIDs of the virtual machines that run there, by the node's own processes, as far as we may see them. `Unavailable` also where it does not tell in time.
    async fn guests(&self, node: &NodeName) -> Result<BTreeSet<String>, PortError>;

    /// Is it the machine that the configuration takes it for, by its own network interfaces? `Unavailable` while it does not answer. What is ordered for a node goes to
    /// a MAC address: where that is another machine's, so does the installation.
    async fn machine(&self, node: &NodeName) -> Result<Machine, PortError>;

    /// Asks the node itself what of it is to stay as it is. `Unavailable` while it does not answer; `Garbled` where it says something else.
    async fn stock(&self, node: &NodeName) -> Result<NodeStock, PortError>;

    /// Runs a command that only looks, in the node's login shell. `Unavailable` while the node does not answer, or not in `time_limit`;
    /// `Refused` where it says more than can be kept.
    async fn run(&self, node: &NodeName, command: &str, time_limit: Duration) -> Result<CommandEnd, PortError>;
}
