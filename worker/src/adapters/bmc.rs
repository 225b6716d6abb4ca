//! Every node's BMC, each by the protocol that its configuration names.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use turnaround_config::NodeName;
use turnaround_workflows::ports::{Bmc, BootDevice, BootOverride, PortError, PortErrorKind, Power};

use super::ipmitool::Ipmitool;
use super::redfish::Redfish;

/// A reset is asked for only so long after it was decided: what was seen of the node is old by then, and the workflow may be another worker's.
// A BMC is read first, for its power state, and some take 20 s for that. Two reads of a healthy one take one or two.
pub(crate) const RESET_ASKED_WITHIN: Duration = Duration::from_secs(10);

/// Says no where `decided` is too long ago to ask for a reset.
pub(crate) fn in_time(decided: Instant, operation: &str) -> Result<(), PortError> {
    if decided.elapsed() <= RESET_ASKED_WITHIN {
        return Ok(());
    }
    let took = format!("it took {} s to tell its power state, and nothing was asked of it: what was seen of the node is old by now", decided.elapsed().as_secs());
    Err(PortError::new(operation, PortErrorKind::Unavailable).with_source(took))
}

/// The BMCs of all nodes.
pub(crate) struct Controllers {
    controllers: BTreeMap<NodeName, Controller>,
}

/// One node's BMC.
pub(crate) enum Controller {
    Redfish(Redfish),
    Ipmi(Ipmitool),
}

impl Controllers {
    pub(crate) fn new(controllers: BTreeMap<NodeName, Controller>) -> Controllers {
        Controllers { controllers }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_not_asked_for_long_after_it_was_decided() {
        let ago = |time: Duration| Instant::now().checked_sub(time).unwrap();
        in_time(ago(RESET_ASKED_WITHIN / 2), "reset").unwrap();
        let late = in_time(ago(RESET_ASKED_WITHIN + Duration::from_secs(1)), "reset").unwrap_err();
        assert_eq!(late.kind, PortErrorKind::Unavailable);
    }
}
