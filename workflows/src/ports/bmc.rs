//! A node's baseboard management controller.

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

/// BMC commands are carried out at least once: a lost answer makes the client repeat them, and a reset that
/// ran twice has been seen to boot the old disk. Whoever calls looks at the result, not at the answer.
#[async_trait]
pub trait Bmc: Send + Sync {
    async fn power(&self, node: &NodeName) -> Result<Power, PortError>;

    /// What the next boot will do.
    async fn boot_override(&self, node: &NodeName) -> Result<BootOverride, PortError>;

    /// The next boot is from the network, by EFI. Read back before it returns: an error if the BMC did
    /// not take it.
    async fn netboot_next(&self, node: &NodeName) -> Result<(), PortError>;

    /// The node starts anew at once, whatever it was doing; one that was off is switched on.
    /// **Takes everything down that runs on it.**
    async fn reset(&self, node: &NodeName) -> Result<(), PortError>;
}
