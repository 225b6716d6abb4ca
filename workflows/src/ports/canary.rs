//! Canary instances: what is done with them, and with no other instance.
//!
//! How real Nova behaves here (observed on 33.0.2): its scheduler puts nothing on a disabled host, however that is named; a forced live migration
//! passes it by. It is accepted at once; where it fails the instance stays ACTIVE on its old host without a fault, and only the migration
//! and the action of that request tell. A start that fails leaves it `stopped`, without a fault: again only the action of that request tells. (A
//! hard reboot that fails while the old guest still runs leaves nothing at all to be seen: read in its source.)

use async_trait::async_trait;
use turnaround_config::NodeName;

use super::{InstanceId, PortError, RequestId};

/// Begins the name of every canary.
pub const CANARY_NAME: &str = "turnaround-canary-";

/// A canary to be built, by the ids of Glance, Nova and Neutron.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCanary {
    pub image: String,
    pub flavor: String,
    /// None: it has none.
    pub network: Option<String>,
}

/// A canary that is there, also while it is being deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryInstance {
    pub id: InstanceId,
    /// By our own name for that node if it is one of ours.
    pub host: Option<String>,
    /// As [`super::Instance`] has them.
    pub vm_state: String,
    pub task_state: Option<String>,
    pub fault: Option<String>,
}

impl CanaryInstance {
    /// Is it on its way to another host? Nova then keeps what a deleted one has taken there.
    pub fn is_moving(&self) -> bool {
        self.task_state.as_ref().is_some_and(|task| task == "migrating" || task.starts_with("resize_"))
    }
}

/// Canaries, in the project of our own. Nova: `servers`.
#[async_trait]
pub trait Canaries: Send + Sync {
    /// All of exactly this name.
    async fn find(&self, name: &str) -> Result<Vec<CanaryInstance>, PortError>;

    /// Has one built, wherever the scheduler likes. Accepted is not done. **Not idempotent**: the same name twice gives two; where the answer was
    /// lost, look at [`Canaries::find`].
    async fn create(&self, name: &str, canary: &NewCanary) -> Result<(), PortError>;

    /// Has it moved live onto `node`, past the scheduler, disabled or not. Accepted is not done. **Not idempotent**: where the answer was lost, look
    /// at [`super::Instances::migrations`].
    async fn put_on(&self, id: &InstanceId, node: &NodeName) -> Result<RequestId, PortError>;

    /// Has it stopped where it is. Accepted is not done, but shows in its `task_state`. Refused of one that does not run.
    async fn stop(&self, id: &InstanceId) -> Result<(), PortError>;

    /// Has it started where it is. Accepted is not done, but shows in its `task_state`. Refused of one that is not stopped.
    async fn start(&self, id: &InstanceId) -> Result<RequestId, PortError>;

    /// What its console said last.
    async fn console(&self, id: &InstanceId) -> Result<String, PortError>;

    /// Has it deleted. Accepted is not done. Deleting one that is gone changes nothing.
    async fn remove(&self, id: &InstanceId) -> Result<(), PortError>;
}
