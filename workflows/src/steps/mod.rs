//! Steps, one verb each. They know ports, never vendors.

use crate::engine::{StepCx, StepError};
use crate::store::Resource;
use crate::updates::{NODES_OUT, NodeOrder};

mod await_install;
mod await_rebuild;
mod canary;
mod check_record;
mod close;
mod compared;
mod confirm_empty;
mod deploy_openstack;
mod evacuate;
mod fetch_image;
pub mod installer;
mod netboot;
pub mod queues;
mod reason;
mod rebuild;
mod rebuilding;
mod reopen;
mod reprovision;
mod setup_run;
mod shown;
mod silence;
mod stage_image;
mod take_stock;
mod verify_alerts;
mod verify_hypervisor;
mod verify_node;
mod verify_os;

pub use await_install::AwaitInstall;
pub use await_rebuild::AwaitRebuild;
pub use canary::Canary;
pub use check_record::CheckRecord;
pub use close::{Close, Closed};
pub use confirm_empty::ConfirmEmpty;
pub use deploy_openstack::{DeployOpenStack, Deployed};
pub use evacuate::{ClusterNodesFound, Evacuate, Evacuated, FindClusterNodes, MoveClusterNodes};
pub use fetch_image::{FetchImage, Fetched};
pub use rebuild::Rebuild;
pub use reason::Reason;
pub use reopen::Reopen;
pub use reprovision::Reprovision;
pub use silence::{EndSilence, Silence};
pub use stage_image::{StageImage, Staged};
pub use take_stock::{Stock, TakeStock};
pub use verify_alerts::VerifyAlerts;
pub use verify_hypervisor::VerifyHypervisor;
pub use verify_node::VerifyNode;
pub use verify_os::VerifyOs;

/// What was ordered for this node.
fn order(cx: &StepCx<'_>) -> Result<NodeOrder, StepError> {
    cx.input()
}

/// Nobody else works on this node.
fn node_lock(order: &NodeOrder) -> Resource {
    Resource::Lock { name: format!("node:{}", order.node) }
}

/// This node counts as out of service.
fn node_out(order: &NodeOrder) -> Resource {
    Resource::Budget { name: NODES_OUT.to_owned(), member: order.node.to_string() }
}

/// `1 check`, `2 checks`
fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The output of an earlier step, which must be there outside of a dry run.
fn needed<T>(output: Option<T>, step: &str) -> Result<T, StepError> {
    output.ok_or_else(|| StepError::fatal(format!("`{step}` has not succeeded yet")))
}
