//! The simulated site, as one thing that many may ask at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use turnaround_config::NodeName;

use super::guest::{ActionRecord, Guest, MigrationRecord, MigrationStatus, VmState};
use super::log::{By, WorldEvent};
use super::machine::InstallerSaid;
use super::plan::{Api, Call, ImagePlan, SitePlan};
use super::rebuilds::IronicNode;
use super::site::Site;
use super::snapshot::SiteSnapshot;
use super::tickets::TicketSource;
use super::trouble::Trouble;
use crate::clock::{Clock, Timestamp};
use crate::ports::{
    BootDevice, BootOverride, BootTicket, CommandEnd, Facts, Installed, InstanceId, MigrationKind, Move, MoveProgress, Ports, Power, RebuildOrder, Room, ScriptRun, ScriptState,
    ServerGroup, NodeStock,
};

/// A site that exists only in memory, behind every port.
///
/// It does nothing by itself: each call first lets everything happen that is due by the clock. With a
/// [`HandClock`](crate::clock::HandClock) days pass in milliseconds; with the system's clock the same
/// site serves real adapters.
///
/// ```
/// use std::sync::Arc;
/// use turnaround_workflows::clock::{HandClock, Timestamp};
/// use turnaround_workflows::rehearsal::{SitePlan, World};
///
/// let clock = Arc::new(HandClock::at(Timestamp::from_millis(0)));
/// let world = World::new(clock, SitePlan::uniform(3, 2), 7);
/// let ports = world.ports();
/// assert_eq!(world.snapshot().nodes.len(), 3);
/// # drop(ports);
/// ```
pub struct World {
    clock: Arc<dyn Clock>,
    site: Mutex<Site>,
}

/// A compute service, as `os-services` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    pub id: String,
    /// Our name of the node.
    pub node: String,
    /// Nova's name of the host.
    pub host: String,
    pub enabled: bool,
    pub disabled_reason: Option<String>,
    pub up: bool,
    pub vcpus: u32,
    pub memory_mb: u64,
    /// What Placement has left there. At the simulated site nothing is over-committed.
    pub free: Room,
    /// What is left of its devices, by resource class of Placement.
    pub devices: BTreeMap<String, u64>,
    /// What Placement has of it in all, by resource class.
    pub inventory: BTreeMap<String, u64>,
    /// Of Placement.
    pub traits: Vec<String>,
    /// The availability zone of which an aggregate makes it a part.
    pub zone: Option<String>,
    /// How much Placement says that it has of disk in all.
    pub disk_gb: Option<u64>,
    /// Its network agents, and whether each reports.
    pub agents: BTreeMap<String, bool>,
}

/// What an operator writes into an inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineView {
    pub node: String,
    /// Nova's name of the host.
    pub host: String,
    pub mac: String,
    /// Ironic renews it.
    pub ironic: bool,
}

impl World {
    pub fn new(clock: Arc<dyn Clock>, plan: SitePlan, seed: u64) -> Arc<World> {
        let site = Mutex::new(Site::new(plan, seed, clock.now()));
        Arc::new(World { clock, site })
    }

    /// The site as the engine's steps see it.
    pub fn ports(self: &Arc<World>) -> Ports {
        Ports {
            compute: self.clone(),
            instances: self.clone(),
            bmc: self.clone(),
            netboot: self.clone(),
            rebuilder: self.clone(),
            facts: self.clone(),
            setup: self.clone(),
            silences: self.clone(),
            cluster: self.clone(),
            canaries: self.clone(),
        }
    }

    /// Nodes that netboot ask `tickets` from now on, and not what came through [`Ports::netboot`].
    pub fn take_tickets_from(&self, tickets: Arc<dyn TicketSource>) {
        self.site().tickets_elsewhere = Some(tickets);
    }

    /// What installers have said since this was last asked: for whoever takes reports at this site.
    pub fn said_by_installers(&self) -> Vec<InstallerSaid> {
        std::mem::take(&mut self.site().said)
    }

    /// Writes what happened so far, and everything from now on, to a new file: one JSON object a line.
    pub fn log_to(&self, path: &Path) -> io::Result<()> {
        self.site().log.also_to(path)
    }

    /// Everything that happened up to now.
    pub fn events(&self) -> Vec<WorldEvent> {
        self.site().log.kept().to_vec()
    }

    /// When something will happen next by itself, if nobody does anything. None: never.
    pub fn next_event(&self) -> Option<Timestamp> {
        self.site().next_event()
    }

    pub fn snapshot(&self) -> SiteSnapshot {
        SiteSnapshot::of(&self.site())
    }

    pub(super) fn site(&self) -> MutexGuard<'_, Site> {
        // A panic elsewhere in a test must not hide what the site saw.
        let mut site = self.site.lock().unwrap_or_else(PoisonError::into_inner);
        site.advance_to(self.clock.now());
        site
    }

    /// The site, if `api` answers for `node` (by our name of it).
    pub(super) fn asked(&self, api: Api, node: Option<&str>) -> Result<MutexGuard<'_, Site>, Trouble> {
        let mut site = self.site();
        let node = node.and_then(|node| site.node_named(node));
        site.reach(api, node)?;
        Ok(site)
    }
}

/// The site in its vendors' terms: for those who serve it over the vendors' protocols.
impl World {
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn machines(&self) -> Vec<MachineView> {
        let view = |machine: &super::machine::Machine| MachineView {
            node: machine.name.clone(),
            host: machine.host.clone(),
            mac: machine.mac.clone(),
            ironic: machine.record.is_some(),
        };
        self.site().nodes.iter().map(view).collect()
    }

    pub fn images(&self) -> Vec<ImagePlan> {
        self.site().plan.images.clone()
    }

    /// Are instances nodes of a Kubernetes cluster?
    pub fn has_cluster(&self) -> bool {
        self.site().plan.cluster.is_some()
    }

    /// Is a node back in OpenStack only after the setup script has run for it?
    pub fn has_setup_script(&self) -> bool {
        self.site().plan.setup.is_some()
    }

    pub fn services(&self) -> Result<Vec<ServiceView>, Trouble> {
        self.services_where(|_| true)
    }

    pub(super) fn services_where(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<ServiceView>, Trouble> {
        let site = self.asked(Api::Nova, None)?;
        let latencies = &site.plan.latencies;
        let used = site.used();
        let view = |(index, machine): (usize, &super::machine::Machine)| ServiceView {
            id: machine.service_id.clone(),
            node: machine.name.clone(),
            host: machine.host.clone(),
            enabled: machine.enabled,
            disabled_reason: machine.disabled_reason.clone(),
            up: machine.is_up(site.now, latencies),
            vcpus: machine.vcpus,
            memory_mb: machine.memory_mb,
            free: Room { disk_gb: site.disk_left(index), ..free(machine, used.get(machine.host.as_str()).copied().unwrap_or_default()) },
            devices: site.devices_left(index),
            inventory: machine.inventory(),
            traits: machine.traits.clone(),
            zone: machine.plan.zone.clone(),
            disk_gb: machine.plan.disk_gb,
            agents: machine.agents(site.now, latencies),
        };
        Ok(site.nodes.iter().enumerate().filter(|(_, machine)| wanted(&machine.name)).map(view).collect())
    }

    /// By Nova's name: the hosts that have what a flavour with these extra specs asks of Placement, with what is left of their devices.
    pub fn offering(&self, asks: &BTreeMap<String, String>) -> Result<BTreeMap<String, BTreeMap<String, u64>>, Trouble> {
        let site = self.asked(Api::Nova, None)?;
        let offering = (0..site.nodes.len()).filter(|&node| site.offers(node, asks));
        Ok(offering.map(|node| (site.nodes[node].host.clone(), site.devices_left(node))).collect())
    }

    /// What Placement has for the instance; nothing where it knows none.
    pub fn allocations_of(&self, id: &InstanceId) -> Result<BTreeMap<String, u64>, Trouble> {
        let site = self.asked(Api::Nova, None)?;
        Ok(site.guest(id).map(|guest| site.guests[guest].allocations()).unwrap_or_default())
    }

    /// How far the live migration of this instance is, if one is being carried out.
    pub fn progress_of(&self, id: &InstanceId) -> Result<Option<MoveProgress>, Trouble> {
        let site = self.asked(Api::Nova, None)?;
        let running = |record: &&MigrationRecord| record.instance == *id && record.kind == MigrationKind::Live && record.status == MigrationStatus::Running;
        let Some((record, guest)) = site.migrations.iter().rev().find(running).zip(site.guest(id)) else { return Ok(None) };
        let takes = u64::try_from(site.plan.latencies.live_migration.as_millis()).unwrap_or(u64::MAX).max(1);
        let passed = u64::try_from(site.now.since(record.updated).as_millis()).unwrap_or(u64::MAX).min(takes);
        let total_bytes = site.guests[guest].memory_mb << 20;
        // (Its last page is copied when it arrives.)
        Ok(Some(MoveProgress { total_bytes, remaining_bytes: total_bytes / takes * (takes - passed) }))
    }

    /// Every server group, with the ids of its members.
    pub fn server_groups(&self) -> Result<Vec<ServerGroup>, Trouble> {
        let site = self.asked(Api::Nova, None)?;
        if site.is_out(Api::ServerGroups, None) {
            return Err(Trouble::Unavailable);
        }
        let id = |name: &String| site.guests.iter().find(|guest| guest.name == *name).map(|guest| guest.id.clone());
        let group = |group: &super::plan::GroupPlan| ServerGroup { name: group.name.clone(), rule: group.rule, members: group.members.iter().filter_map(id).collect() };
        Ok(site.plan.groups.iter().map(group).collect())
    }

    /// Those that are `wanted`, in order of their making.
    pub fn guests_where(&self, wanted: impl Fn(&Guest) -> bool) -> Result<Vec<Guest>, Trouble> {
        let site = self.asked(Api::Nova, None)?;
        Ok(site.guests.iter().filter(|guest| !guest.deleted && wanted(guest)).cloned().collect())
    }

    pub fn guest(&self, id: &InstanceId) -> Result<Option<Guest>, Trouble> {
        let site = self.asked(Api::Nova, None)?;
        Ok(site.guest(id).map(|index| site.guests[index].clone()))
    }

    /// Those that are `wanted`, in order of their making.
    pub fn migrations_where(&self, wanted: impl Fn(&MigrationRecord) -> bool) -> Result<Vec<MigrationRecord>, Trouble> {
        let site = self.asked(Api::Nova, None)?;
        Ok(site.migrations.iter().filter(|migration| wanted(migration)).cloned().collect())
    }

    pub fn actions_of(&self, id: &InstanceId) -> Result<Vec<ActionRecord>, Trouble> {
        let site = self.asked(Api::Nova, None)?;
        Ok(site.actions.iter().filter(|action| action.instance == *id).cloned().collect())
    }

    pub fn disable_service(&self, host: &str, reason: &str) -> Result<(), Trouble> {
        let mut site = self.asked(Api::Nova, None)?;
        let node = site.node_of_host(host).ok_or(Trouble::NotFound)?;
        site.disable(node, reason, By::Caller);
        site.answer(Call::Close, ())
    }

    pub fn enable_service(&self, host: &str) -> Result<(), Trouble> {
        let mut site = self.asked(Api::Nova, None)?;
        let node = site.node_of_host(host).ok_or(Trouble::NotFound)?;
        site.enable(node, By::Caller);
        site.answer(Call::Reopen, ())
    }

    /// Nova's name for a node of ours; another host has only that one.
    pub fn host_named(&self, name: &str) -> String {
        let site = self.site();
        site.node_named(name).map_or_else(|| name.to_owned(), |node| site.nodes[node].host.clone())
    }

    /// The request's id, once Nova has accepted it.
    pub fn request_move(&self, id: &InstanceId, how: Move, to: Option<&str>) -> Result<String, Trouble> {
        self.asked(Api::Nova, None)?.request_move(id, how, to)
    }

    /// `number` is Nova's of the migration.
    pub fn request_stop(&self, id: &InstanceId, number: u64) -> Result<(), Trouble> {
        self.asked(Api::Nova, None)?.request_stop(id, number)
    }

    pub fn request_confirm(&self, id: &InstanceId) -> Result<(), Trouble> {
        self.asked(Api::Nova, None)?.request_confirm(id)
    }

    pub fn power_of(&self, node: &str) -> Result<Power, Trouble> {
        let site = self.asked(Api::Bmc, Some(node))?;
        Ok(site.nodes[site.behind_bmc_of(node)?].power())
    }

    /// The MAC addresses that its BMC tells.
    pub fn macs_of(&self, node: &str) -> Result<Vec<String>, Trouble> {
        let site = self.asked(Api::Bmc, Some(node))?;
        let machine = &site.nodes[site.behind_bmc_of(node)?];
        Ok(machine.faults.bmc_tells.clone().unwrap_or_else(|| vec![machine.mac.clone()]))
    }

    /// The MAC addresses that the node itself tells.
    pub fn own_macs_of(&self, node: &str) -> Result<Vec<String>, Trouble> {
        // (Who is not let in for its facts is not for this.)
        self.facts_of(node)?;
        let site = self.site();
        let machine = &site.nodes[site.node_named(node).ok_or(Trouble::NotFound)?];
        Ok(machine.faults.tells_macs.clone().unwrap_or_else(|| vec![machine.mac.clone()]))
    }

    /// The MAC address that the configuration has for each node.
    pub fn configured_macs(&self) -> BTreeMap<NodeName, String> {
        let site = self.site();
        let named = |node: usize| Some((site.nodes[node].name.parse().ok()?, site.configured_mac(node).to_owned()));
        (0..site.nodes.len()).filter_map(named).collect()
    }

    pub fn next_boot_of(&self, node: &str) -> Result<BootOverride, Trouble> {
        let site = self.asked(Api::Bmc, Some(node))?;
        Ok(site.nodes[site.behind_bmc_of(node)?].next_boot())
    }

    /// The BMC's yes; whether it was taken, [`World::next_boot_of`] says.
    pub fn set_next_boot(&self, node: &str, device: BootDevice) -> Result<(), Trouble> {
        let mut site = self.site();
        let node = site.behind_bmc_of(node)?;
        site.set_next_boot(node, device)
    }

    pub fn request_reset(&self, node: &str) -> Result<(), Trouble> {
        let mut site = self.site();
        let node = site.behind_bmc_of(node)?;
        site.request_reset(node)
    }

    /// A node as Ironic has it.
    pub fn ironic_node(&self, node: &str) -> Result<IronicNode, Trouble> {
        self.site().ironic_node(node)
    }

    /// Writes on Ironic's record what a rebuild is to write.
    pub fn order_rebuild(&self, node: &str, order: &RebuildOrder, unprotects: bool) -> Result<(), Trouble> {
        self.site().order_rebuild(node, order, unprotects)
    }

    /// Ironic refuses to rebuild the node from now on.
    pub fn protect_record(&self, node: &str, reason: String) -> Result<(), Trouble> {
        self.site().protect_record(node, reason)
    }

    /// Ironic's yes, and from then on it is under way. `mark` is what the configdrive has the new system write.
    pub fn request_rebuild(&self, node: &str, mark: Installed) -> Result<(), Trouble> {
        self.site().request_rebuild(node, mark)
    }

    pub fn facts_of(&self, node: &str) -> Result<Facts, Trouble> {
        let site = self.asked(Api::Ssh, Some(node))?;
        let node = site.node_named(node).ok_or(Trouble::NotFound)?;
        let facts = site.nodes[node].facts().ok_or(Trouble::Unavailable)?;
        if site.nodes[node].is_stranger() {
            return Err(Trouble::refused(400, "its host key is not known, and it does not show the mark of the installation that was ordered"));
        }
        Ok(facts)
    }

    /// UUIDs of the virtual machines that run there.
    pub fn guests_of(&self, node: &str) -> Result<BTreeSet<String>, Trouble> {
        // (Who is not let in for its facts is not for this.)
        self.facts_of(node)?;
        let site = self.site();
        let machine = &site.nodes[site.node_named(node).ok_or(Trouble::NotFound)?];
        let runs = |guest: &&Guest| !guest.deleted && guest.host.as_deref() == Some(&*machine.host) && matches!(guest.vm_state, VmState::Active | VmState::Paused);
        let known = site.guests.iter().filter(runs).map(|guest| guest.id.0.clone());
        Ok(known.chain(machine.unknown_guest()).collect())
    }

    pub fn stock_of(&self, node: &str) -> Result<NodeStock, Trouble> {
        let site = self.asked(Api::Ssh, Some(node))?;
        let machine = &site.nodes[site.node_named(node).ok_or(Trouble::NotFound)?];
        let stock = machine.stock().ok_or(Trouble::Unavailable)?;
        if machine.stock_is_too_long() { Err(Trouble::refused(0, "ssh said more than 1048576 bytes, and was killed")) } else { Ok(stock) }
    }

    /// What `command` ends with on a node.
    pub fn run_on(&self, node: &str, command: &str) -> Result<CommandEnd, Trouble> {
        let site = self.asked(Api::Ssh, Some(node))?;
        let node = site.node_named(node).ok_or(Trouble::NotFound)?;
        site.nodes[node].run(command).ok_or(Trouble::Unavailable)
    }

    /// Of several calls with one name only the first starts anything.
    pub fn start_script(&self, run: &ScriptRun) -> Result<(), Trouble> {
        self.site().start_script(run)
    }

    pub fn script(&self, name: &str) -> ScriptState {
        self.site().script(name)
    }

    /// What a netboot of `node` would find just now.
    pub fn ticket_of(&self, node: &str) -> Option<BootTicket> {
        let site = self.site();
        let node = site.node_named(node)?;
        site.staged(node)
    }
}

fn free(machine: &super::machine::Machine, (vcpus, memory_mb): (u32, u64)) -> Room {
    Room { vcpus: u64::from(machine.vcpus.saturating_sub(vcpus)), memory_mb: machine.memory_mb.saturating_sub(memory_mb), disk_gb: None }
}
