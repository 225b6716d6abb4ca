//! The compute service of a node, as the scheduler of instances sees it.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::PortError;

/// What is known of a node's compute service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeService {
    /// May new instances land on it?
    pub enabled: bool,
    /// Why it is disabled, as whoever did it wrote.
    pub disabled_reason: Option<String>,
    /// Has it reported within Nova's `service_down_time`, and is it not forced down?
    pub up: bool,
}

/// What the hypervisor of a node offers. Compared before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hypervisor {
    /// Who it is to Nova: the UUID of its compute node, which the node keeps in `compute_id` since 2023.1. None: whoever wrote this down did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub up: bool,
    pub vcpus: u32,
    pub memory_mb: u64,
    /// Instances that the hypervisor itself reports: a second witness for "empty".
    pub running: Vec<String>,
}

/// What an instance takes of a host, or what a host has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Room {
    pub memory_mb: u64,
    pub vcpus: u64,
    /// Disk as Placement counts it. None: the instance takes none of a host's (its volumes are elsewhere, or its flavour says 0), or Placement says
    /// nothing of the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_gb: Option<u64>,
}

/// A host that an instance may be moved to, one of our nodes or another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Our own name for it if it is one of our nodes, else Nova's.
    pub name: String,
    pub enabled: bool,
    pub up: bool,
    /// What the scheduler may still place there: what is reserved for the host, and how far it may be over-committed, is counted in.
    pub free: Room,
}

/// Opens and closes nodes for new instances. Nova: `os-services`, `os-hypervisors`; Placement: `allocation_candidates`; Neutron: `agents`.
#[async_trait]
pub trait ComputeServices: Send + Sync {
    /// The compute service of `node`. `NotFound` where Nova knows no such host: never an empty answer.
    async fn service(&self, node: &NodeName) -> Result<ComputeService, PortError>;

    /// New instances no longer land on `node`, and `reason` says why. Closing a closed node
    /// changes nothing but the reason.
    async fn close(&self, node: &NodeName, reason: &str) -> Result<(), PortError>;

    /// New instances may land on `node` again.
    async fn reopen(&self, node: &NodeName) -> Result<(), PortError>;

    /// The hypervisor of `node`. `NotFound` where Nova has none for it.
    async fn hypervisor(&self, node: &NodeName) -> Result<Hypervisor, PortError>;

    /// What Placement has in all, by resource class, on `node` and on the parts of it (NUMA cells, GPUs). `NotFound` where it knows no such host.
    async fn inventory(&self, node: &NodeName) -> Result<BTreeMap<String, u64>, PortError>;

    /// The network agents that belong to `node`, by their binaries (`neutron-openvswitch-agent`): does each report? Empty where the cloud has none of them.
    async fn agents(&self, node: &NodeName) -> Result<BTreeMap<String, bool>, PortError>;

    /// Every host of the cloud that has a hypervisor.
    async fn hosts(&self) -> Result<Vec<Host>, PortError>;

    /// By the name of an availability zone that an aggregate of hosts makes: its hosts, by their names as in [`Host`]. Nova lets whoever is bound to such a zone go
    /// nowhere else; a zone that none makes binds nobody.
    async fn zones(&self) -> Result<BTreeMap<String, BTreeSet<String>>, PortError>;

    /// The hosts that have, by Placement, all that one instance of a flavour with these [`super::asks`] wants besides its size; by their names as
    /// in [`Host`], with what is free there of each resource class.
    async fn fitting(&self, asks: &BTreeMap<String, String>) -> Result<BTreeMap<String, BTreeMap<String, u64>>, PortError>;
}
