//! The nodes of a Kubernetes cluster that are instances on this cloud, and the pods on them.
//!
//! The words are Kubernetes' own: a node is *cordoned* (no new pods), *drained* (its pods are evicted), and *uncordoned*.

use std::fmt;

use async_trait::async_trait;

use super::{InstanceId, PortError};

/// One node of the cluster, as its API server tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNode {
    pub name: String,
    /// The instance that it runs on, in lower case: `spec.providerID` where an OpenStack cloud provider has set it, otherwise the machine's own
    /// `status.nodeInfo.systemUUID`, which Nova makes the instance's id.
    pub instance: InstanceId,
    /// Its condition `Ready` is `True`. That goes on being so for most of a minute after its kubelet was last heard of.
    pub ready: bool,
    /// Not cordoned.
    pub schedulable: bool,
    /// Who of us has cordoned it: see [`Cordon::mark`]. None where nobody has, or somebody else.
    pub mark: Option<String>,
    /// What it was read as: a change is refused if somebody has changed the node since.
    pub version: String,
}

/// What is written on a node that we cordon, in one with the cordon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cordon {
    /// Whose it is. Without a space.
    pub mark: String,
    /// Why, and since when: for people.
    pub why: String,
}

/// A pod that a drain has to get off its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// It is ending already.
    pub terminating: bool,
    /// Nothing would start it again elsewhere: it has no controller.
    pub alone: bool,
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Eviction {
    /// It is ending, or it is gone.
    Accepted,
    /// Not now, with Kubernetes' reason: a PodDisruptionBudget. To be asked again.
    NotNow { reason: String },
}

/// Kubernetes: `nodes`, `pods`, `pods/eviction`.
#[async_trait]
pub trait ClusterNodes: Send + Sync {
    /// Every node of the cluster. `Garbled` where one does not tell which machine it is: no instance could be told not to be that node.
    async fn nodes(&self) -> Result<Vec<ClusterNode>, PortError>;

    /// On return no new pods land on `node`, and it carries our mark. `Unavailable`, and nothing was done, if it was changed since it was read.
    async fn cordon(&self, node: &ClusterNode, cordon: &Cordon) -> Result<(), PortError>;

    /// On return `node` takes pods again, and carries no mark. `Unavailable`, and nothing was done, if it was changed since it was read.
    async fn uncordon(&self, node: &ClusterNode) -> Result<(), PortError>;

    /// The pods on the node of this name that have to leave it: none of a DaemonSet, no mirror pods, none that have ended.
    async fn pods(&self, node: &str) -> Result<Vec<Pod>, PortError>;

    /// Asks for the eviction of this very pod, and of no later one of its name. Asking twice is as once.
    async fn evict(&self, pod: &Pod) -> Result<Eviction, PortError>;
}
