//! The node OS update of one compute node.
//!
//! Midokura's runbook ("Node OS re-provisioning"): disable the compute service, migrate what lives there, netboot by the BMC, check
//! release and kernel, enable the service. What it leaves out is in the steps' own words.

use super::NODE_OS;
use crate::engine::{Definition, step};
use crate::steps::{
    AwaitInstall, Canary, Close, ConfirmEmpty, DeployOpenStack, EndSilence, Evacuate, FindClusterNodes, MoveClusterNodes, Reopen, Reprovision, Silence, StageImage, TakeStock, VerifyAlerts, VerifyHypervisor,
    VerifyNode, VerifyOs,
};

// 7: its boot ticket may say where to report, and its journal what was reported: a worker of 6 reads neither.
pub(super) const VERSION: u32 = 7;

pub(super) fn definition() -> Definition {
    Definition {
        kind: NODE_OS,
        version: VERSION,
        steps: vec![
            step(Close),
            step(TakeStock),
            step(FindClusterNodes),
            step(MoveClusterNodes),
            step(Evacuate),
            step(Silence),
            step(ConfirmEmpty),
            step(StageImage),
            step(Reprovision),
            step(AwaitInstall),
            step(VerifyOs),
            step(DeployOpenStack),
            step(VerifyHypervisor),
            step(VerifyNode),
            step(Canary),
            step(VerifyAlerts),
            step(Reopen),
            step(EndSilence),
        ],
    }
}
