//! Where steps wait, by what a worker must reach to do them. A worker serves all of them unless it is told otherwise
//! (`turnaround-worker --queues bmc,openstack`). Somebody must serve each, and `default`, where workflows begin and rollouts wait.

use crate::store::Queue;

/// Nova and Keystone, what alerts (Alertmanager or Grafana), and the API server of the Kubernetes cluster.
pub const OPENSTACK: Queue = Queue::of("openstack");
/// The folder of the PXE server, and the nodes by SSH.
pub const PXE: Queue = Queue::of("pxe");
/// The BMCs and Ironic, the folder of the PXE server; and Nova and the nodes, which are looked at a last time right before a reset or a rebuild.
pub const BMC: Queue = Queue::of("bmc");
/// The nodes by SSH, the folder of the PXE server (a folder of its own there would look like a withdrawn order); the BMCs and Nova, where a node that has not come back is
/// reset once more.
pub const NODES: Queue = Queue::of("nodes");
/// The host on which the site's setup script runs: the bastion. It asks Nova, too, right before a run for a node. A run is looked at where it was started, so one host serves it.
pub const BASTION: Queue = Queue::of("bastion");
/// Everything that can be looked at: surveys and dry runs.
pub const SURVEY: Queue = Queue::of("survey");
