//! A node's baseboard management controller.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::PortError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    On,
    Off,
    /// Between the two.
    Changing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootDevice {
    /// No override: the firmware's own boot order.
    None,
    Pxe,
    Disk,
    Other,
}

/// What the BMC says the next boot will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootOverride {
    pub device: BootDevice,
    /// EFI, not "BIOS PC Compatible (legacy)".
    pub efi: bool,
}

/// Whose machine it is that a BMC has its hand on, or that answers as a node, by the MAC addresses that it tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machine {
    /// The node's own: the interface that it netboots by is among them.
    Own,
    /// The interface of this node is, and not that of the one it should be.
    Of(NodeName),
    /// It tells these, lower case, and they are nobody's: a card that it does not know of, or a machine that is none of ours. None of them by IPMI.
    Unknown { macs: Vec<String> },
}

impl Machine {
    /// Whose it is that tells `told`, lower case, where the configuration has these addresses.
    pub fn by_macs(node: &NodeName, configured: &BTreeMap<NodeName, String>, told: Vec<String>) -> Machine {
        if configured.get(node).is_some_and(|own| told.contains(own)) {
            return Machine::Own;
        }
        match configured.iter().find(|(_, mac)| told.contains(mac)) {
            Some((other, _)) => Machine::Of(other.clone()),
            None => Machine::Unknown { macs: told },
        }
    }
}

/// BMC commands are carried out at least once: a lost answer makes the client repeat them, and a reset that
/// ran twice has been seen to boot the old disk. Whoever calls looks at the result, not at the answer.
#[async_trait]
pub trait Bmc: Send + Sync {
    async fn power(&self, node: &NodeName) -> Result<Power, PortError>;

    /// Is it the node's own? An address that was mistyped, or given to another machine, leads to a reset of what was never emptied.
    async fn machine(&self, node: &NodeName) -> Result<Machine, PortError>;

    /// What the next boot will do.
    async fn boot_override(&self, node: &NodeName) -> Result<BootOverride, PortError>;

    /// The next boot is from the network, by EFI. Read back before it returns: an error if the BMC did
    /// not take it.
    async fn netboot_next(&self, node: &NodeName) -> Result<(), PortError>;

    /// The node starts anew at once, whatever it was doing; one that was off is switched on.
    /// **Takes everything down that runs on it.**
    async fn reset(&self, node: &NodeName) -> Result<(), PortError>;
}
