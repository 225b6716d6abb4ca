//! The simulated site: behind every port, in virtual time or on the wall clock.
//!
//! It is what `turnaround rehearse` runs the true engine on, the tests' fake cloud, and the lab's. It
//! behaves as a real Nova and real BMCs were seen to: yes is said at once, what comes of it is
//! decided later, and a failure may look like a success. What goes wrong is data on the [`SitePlan`],
//! and the site's own log ([`WorldEvent`]) is the ground truth of what was done to it.

mod canary;
mod cluster;
mod guest;
mod log;
mod machine;
mod moves;
mod plan;
mod ports;
mod rebuilds;
mod script;
mod silences;
mod site;
mod snapshot;
mod tickets;
mod trouble;
mod troubled;
mod world;

#[cfg(test)]
mod tests;

pub use guest::{ActionRecord, Guest, MigrationRecord, MigrationStatus, TaskState, VmState};
pub use log::{By, Happened, NodeAtStart, UnderWay, WorldEvent};
pub use machine::InstallerSaid;
pub use plan::{
    ALWAYS, Api, COUNT_GPUS, Call, CallFaults, ClusterPlan, GroupPlan, Happening, Happens, ImagePlan, InstancePlan, LateRequest, Latencies, LostAnswer, MoveFault,
    MoveGoesWrong, NodeFaults, NodePlan, Outage, PodKind, PodPlan, RecordPlan, ScriptGoesWrong, SetupPlan, SitePlan,
};
pub use rebuilds::IronicNode;
pub use silences::{Alert, Begun as BegunSilence};
pub use snapshot::{InstanceSnapshot, NodeSnapshot, SiteSnapshot};
pub use tickets::{TicketDirectory, TicketSource};
pub use trouble::Trouble;
pub use world::{MachineView, ServiceView, World};
