//! The node OS update of one compute node that Ironic installs: as [`super::node_os`], with Ironic in place of our own netboot.

use super::NODE_OS_IRONIC;
use crate::engine::{Definition, step};
use crate::steps::{
    AwaitRebuild, Canary, CheckRecord, Close, ConfirmEmpty, DeployOpenStack, EndSilence, Evacuate, FindClusterNodes, MoveClusterNodes, Rebuild, Reopen, Silence, TakeStock, VerifyAlerts, VerifyHypervisor,
    VerifyNode, VerifyOs,
};

// 5: as 8 of [`super::node_os`].
pub(super) const VERSION: u32 = 5;

pub(super) fn definition() -> Definition {
    Definition {
        kind: NODE_OS_IRONIC,
        version: VERSION,
        steps: vec![
            step(Close),
            step(CheckRecord),
            step(TakeStock),
            step(FindClusterNodes),
            step(MoveClusterNodes),
            step(Evacuate),
            step(Silence),
            step(ConfirmEmpty),
            step(Rebuild),
            step(AwaitRebuild),
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
