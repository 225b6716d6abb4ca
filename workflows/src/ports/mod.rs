//! What a step may ask of the outside world, in our words. Adapters speak the vendors'.
//!
//! The real adapters live in `worker/src/adapters/`; the simulated site, which stands behind every
//! port in tests, rehearsals and the lab, is [`crate::rehearsal::World`]. One suite of contract
//! tests holds both to what is written here.

use std::sync::Arc;

mod bmc;
mod canary;
mod cluster;
mod compute;
mod error;
mod facts;
mod instances;
mod netboot;
mod rebuilder;
mod setup_script;
mod silences;

pub use bmc::{Bmc, BootDevice, BootOverride, Machine, Power};
pub use canary::{CANARY_NAME, Canaries, CanaryInstance, NewCanary};
pub use cluster::{ClusterNode, ClusterNodes, Cordon, Eviction, Pod};
pub use compute::{ComputeService, ComputeServices, Host, Hypervisor, Room};
pub use error::{PortError, PortErrorKind};
pub use facts::{CommandEnd, DiskHolds, Facts, Installed, NodeFacts, NodeStock, PciDevice};
pub use instances::{
    GroupRule, ServerGroup, asks, devices, holds_device, lacks_group_policy,
    Instance, InstanceId, Instances, MOVE_METADATA, Migration, MigrationKind, MigrationState, Move, MoveProgress, MoveStarted, RequestId, pins, resource_class,
};
pub use netboot::{BootTicket, NetBoot, Token};
pub use rebuilder::{PROTECTED_BY_US, RebuildOrder, RebuildRecord, RebuildState, Rebuilder};
pub use setup_script::{HostRecap, ScriptEnd, ScriptRun, ScriptState, SetupScript};
pub use silences::{NewSilence, Silence, Silences};

/// Every port of one site.
#[derive(Clone)]
pub struct Ports {
    pub compute: Arc<dyn ComputeServices>,
    pub instances: Arc<dyn Instances>,
    pub bmc: Arc<dyn Bmc>,
    pub netboot: Arc<dyn NetBoot>,
    pub rebuilder: Arc<dyn Rebuilder>,
    pub facts: Arc<dyn NodeFacts>,
    pub setup: Arc<dyn SetupScript>,
    pub silences: Arc<dyn Silences>,
    pub cluster: Arc<dyn ClusterNodes>,
    pub canaries: Arc<dyn Canaries>,
}
