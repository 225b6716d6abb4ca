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

// 8: its journal may say from whom a share of the budget was taken over: a worker of 7 takes over without a word, and gives back what was left.
pub(super) const VERSION: u32 = 8;

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
