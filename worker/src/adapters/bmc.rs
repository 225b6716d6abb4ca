//! Every node's BMC, each by the protocol that its configuration names.

use std::collections::BTreeMap;

use async_trait::async_trait;
use turnaround_config::NodeName;
use turnaround_workflows::ports::{Bmc, BootDevice, BootOverride, Machine, PortError, PortErrorKind, Power};

use super::ipmitool::Ipmitool;
use super::redfish::Redfish;

/// The BMCs of all nodes.
pub(crate) struct Controllers {
    controllers: BTreeMap<NodeName, Controller>,
    /// Of every node, whoever renews it: lower case.
    macs: BTreeMap<NodeName, String>,
}

/// One node's BMC.
pub(crate) enum Controller {
    Redfish(Redfish),
    Ipmi(Ipmitool),
}

impl Controllers {
    pub(crate) fn new(controllers: BTreeMap<NodeName, Controller>, macs: BTreeMap<NodeName, String>) -> Controllers {
        Controllers { controllers, macs }
    }

    fn of(&self, node: &NodeName, operation: &str) -> Result<&Controller, PortError> {
        self.controllers.get(node).ok_or_else(|| {
            let reason = format!("{node} is not a node of the configuration");
            PortError::new(operation, PortErrorKind::Refused { reason })
        })
    }
}

#[async_trait]
impl Bmc for Controllers {
    async fn power(&self, node: &NodeName) -> Result<Power, PortError> {
        let operation = format!("ask the BMC of {node} for its power state");
        match self.of(node, &operation)? {
            Controller::Redfish(bmc) => bmc.power(&operation).await,
            Controller::Ipmi(bmc) => bmc.power(&operation).await,
        }
    }

    async fn machine(&self, node: &NodeName) -> Result<Machine, PortError> {
        let operation = format!("ask the BMC of {node} for its machine's MAC addresses");
        let own = self.macs.get(node).map_or("", String::as_str);
        let macs = match self.of(node, &operation)? {
            Controller::Redfish(bmc) => bmc.macs(&operation, own).await?,
            // IPMI knows nothing of the host's interfaces.
            Controller::Ipmi(_) => Vec::new(),
        };
        Ok(Machine::by_macs(node, &self.macs, macs))
    }

    async fn boot_override(&self, node: &NodeName) -> Result<BootOverride, PortError> {
        let operation = format!("ask the BMC of {node} what it will boot next");
        match self.of(node, &operation)? {
            Controller::Redfish(bmc) => bmc.boot_override(&operation).await,
            Controller::Ipmi(bmc) => bmc.boot_override(&operation).await,
        }
    }

    async fn netboot_next(&self, node: &NodeName) -> Result<(), PortError> {
        let operation = format!("have the BMC of {node} boot from the network next");
        let taken = match self.of(node, &operation)? {
            Controller::Redfish(bmc) => bmc.netboot_next(&operation).await?,
            Controller::Ipmi(bmc) => bmc.netboot_next(&operation).await?,
        };
        // BMCs acknowledge what they then don't do.
        match taken {
            BootOverride { device: BootDevice::Pxe, efi: true } => Ok(()),
            BootOverride { device: BootDevice::Pxe, efi: false } => Err(not_taken(
                operation,
                "it will boot from the network by legacy BIOS, not by EFI: set the boot mode of this machine to UEFI",
            )),
            BootOverride { device: BootDevice::None, .. } => {
                Err(not_taken(operation, "it acknowledged that and keeps no such setting"))
            }
            BootOverride { device: BootDevice::Disk | BootDevice::Other, .. } => {
                Err(not_taken(operation, "it acknowledged that and will boot something else"))
            }
        }
    }

    async fn reset(&self, node: &NodeName) -> Result<(), PortError> {
        let operation = format!("have the BMC of {node} restart it");
        match self.of(node, &operation)? {
            Controller::Redfish(bmc) => bmc.reset(&operation).await,
            Controller::Ipmi(bmc) => bmc.reset(&operation).await,
        }
    }
}

fn not_taken(operation: String, reason: &str) -> PortError {
    PortError::new(operation, PortErrorKind::Refused { reason: reason.to_owned() })
}
