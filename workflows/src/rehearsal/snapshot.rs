//! What the simulated site looks like at one moment: for tests, and for people who watch.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::site::Site;
use crate::clock::Timestamp;
use crate::ports::Power;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteSnapshot {
    pub at: Timestamp,
    pub nodes: Vec<NodeSnapshot>,
    pub instances: Vec<InstanceSnapshot>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSnapshot {
    pub name: String,
    pub enabled: bool,
    pub disabled_reason: Option<String>,
    /// As Nova sees its compute service.
    pub up: bool,
    pub power: Power,
    /// `running`, `no power`, `self-test`, `installing`, `starting`, `hung`.
    pub phase: String,
    pub os_version_id: String,
    pub kernel: String,
    /// Token of the installation on its disk, if it was one of ours.
    pub installed: Option<String>,
    /// Token of the ticket that is staged for it.
    pub staged: Option<String>,
    pub instances: usize,
    /// Migrations away from it that are not over.
    pub leaving: usize,
    /// Migrations to it that are not over.
    pub arriving: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSnapshot {
    pub id: String,
    pub name: String,
    pub host: Option<String>,
    pub vm_state: String,
    pub task_state: Option<String>,
}

impl SiteSnapshot {
    pub fn node(&self, name: &str) -> Option<&NodeSnapshot> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// By the instance's name.
    pub fn instance(&self, name: &str) -> Option<&InstanceSnapshot> {
        self.instances.iter().find(|instance| instance.name == name)
    }

    pub(super) fn of(site: &Site) -> SiteSnapshot {
        let mut here: HashMap<&str, usize> = HashMap::new();
        for host in site.guests.iter().filter_map(|guest| guest.host.as_deref()) {
            *here.entry(host).or_default() += 1;
        }
        let (mut leaving, mut arriving): (HashMap<&str, usize>, HashMap<&str, usize>) = Default::default();
        for migration in site.migrations.iter().filter(|migration| !migration.status.is_over()) {
            *leaving.entry(&migration.source).or_default() += 1;
            if let Some(destination) = &migration.destination {
                *arriving.entry(destination).or_default() += 1;
            }
        }
        let count = |of: &HashMap<&str, usize>, host: &str| of.get(host).copied().unwrap_or_default();
        let node = |index: usize| {
            let machine = &site.nodes[index];
            NodeSnapshot {
                name: machine.name.clone(),
                enabled: machine.enabled,
                disabled_reason: machine.disabled_reason.clone(),
                up: machine.is_up(site.now, &site.plan.latencies),
                power: machine.power(),
                phase: machine.phase().to_owned(),
                os_version_id: machine.disk.os_version_id.clone(),
                kernel: machine.disk.kernel.clone(),
                installed: machine.disk.installed.as_ref().map(|installed| installed.token.0.clone()),
                staged: site.staged(index).map(|ticket| ticket.token.0),
                instances: count(&here, &machine.host),
                leaving: count(&leaving, &machine.host),
                arriving: count(&arriving, &machine.host),
            }
        };
        let instances = site.guests.iter().filter(|guest| !guest.deleted).map(|guest| InstanceSnapshot {
            id: guest.id.0.clone(),
            name: guest.name.clone(),
            host: guest.host.clone(),
            vm_state: guest.vm_state.as_str().to_owned(),
            task_state: guest.task_state.map(|task| task.as_str().to_owned()),
        });
        SiteSnapshot { at: site.now, nodes: (0..site.nodes.len()).map(node).collect(), instances: instances.collect() }
    }
}
