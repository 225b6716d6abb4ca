//! Steps, one verb each. They know ports, never vendors.

use crate::engine::{StepCx, StepError};
use crate::store::Resource;
use crate::updates::{NODES_OUT, NodeOrder};

mod await_install;
mod close;
mod confirm_empty;
mod deploy_openstack;
mod evacuate;
mod netboot;
pub mod queues;
mod reopen;
mod reprovision;
mod stage_image;
mod verify_hypervisor;
mod verify_os;

pub use await_install::AwaitInstall;
pub use close::{Close, Closed};
pub use confirm_empty::ConfirmEmpty;
pub use deploy_openstack::{DeployOpenStack, Deployed};
pub use evacuate::{Evacuate, Evacuated};
pub use reopen::Reopen;
pub use reprovision::Reprovision;
pub use stage_image::{StageImage, Staged};
pub use verify_hypervisor::VerifyHypervisor;
pub use verify_os::VerifyOs;

/// What was ordered for this node.
fn order(cx: &StepCx<'_>) -> Result<NodeOrder, StepError> {
    cx.input()
}

/// Nobody else works on this node.
fn node_lock(order: &NodeOrder) -> Resource {
    Resource::Lock { name: format!("node:{}", order.node) }
}

/// Nobody else runs the setup script: it works on the whole environment.
fn setup_lock() -> Resource {
    Resource::Lock { name: "setup-script".to_owned() }
}

/// This node counts as out of service.
fn node_out(order: &NodeOrder) -> Resource {
    Resource::Budget { name: NODES_OUT.to_owned(), member: order.node.to_string() }
}

/// The output of an earlier step, which must be there outside of a dry run.
fn needed<T>(output: Option<T>, step: &str) -> Result<T, StepError> {
    output.ok_or_else(|| StepError::fatal(format!("`{step}` has not succeeded yet")))
}
