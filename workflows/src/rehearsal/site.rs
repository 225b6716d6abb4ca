//! The state of the simulated site, and the queue of what is due there.
//!
//! Nothing here runs by itself: whoever looks first moves the site on to the time of the clock, event
//! by event in order of time, so that the same seed and the same calls give the same history.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::cluster::Cluster;
use super::guest::{ActionRecord, Guest, MigrationRecord, TaskState, VmState};
use super::log::{By, Happened, Log, NodeAtStart, UnderWay};
use super::machine::{InstallerSaid, Machine};
use super::moves::LateMove;
use super::plan::{Api, Call, Happens, InstancePlan, SitePlan};
use super::script::Run;
use super::silences::Begun;
use super::tickets::{TicketSource, TicketsInMemory};
use super::trouble::Trouble;
use crate::clock::Timestamp;
use crate::ports::{BootTicket, GroupRule, InstanceId, devices, lacks_group_policy};

/// Nova's words where no host is fit for an instance.
pub(super) const NO_VALID_HOST: &str = "No valid host was found. There are not enough hosts available.";

/// Something that happens by itself at some moment.
#[derive(Debug, Clone, Copy)]
pub(super) enum Due {
    /// An entry of the plan's happenings.
    Happening(usize),
    /// A new instance shows on its host; and is active.
    BuildPlaced(usize),
    BuildDone(usize),
    /// By the action's place in the list: a stop and a start end.
    PoweredOff(usize),
    PoweredOn(usize),
    /// An instance is gone.
    Deleted(usize),
    /// By the request's place in the list.
    ComesLate(usize),
    /// By the migration's place in the list.
    Decide(usize),
    LiveFails(usize),
    LiveArrives(usize),
    LiveSettles(usize),
    Stopped(usize),
    ColdNext(usize),
    Confirmed(usize),
    /// By the run's place in the list.
    ScriptEnds(usize),
    /// By the pod's place in the list.
    PodReady(usize),
    PodEnds(usize),
    /// By the node's place in the list. Those with an epoch are void after a later reset.
    RebuildHits {
        node: usize,
    },
    RebuildFails {
        node: usize,
        epoch: u64,
    },
    RebuildEnds {
        node: usize,
        epoch: u64,
    },
    ResetHits {
        node: usize,
        asked: bool,
    },
    PowerBack {
        node: usize,
        epoch: u64,
    },
    ChooseBootDevice {
        node: usize,
        epoch: u64,
    },
    Installed {
        node: usize,
        epoch: u64,
    },
    GivesUp {
        node: usize,
        epoch: u64,
        restarts: bool,
    },
    SystemUp {
        node: usize,
        epoch: u64,
    },
    Rejoins {
        node: usize,
        epoch: u64,
    },
    ReportsMissing {
        node: usize,
        epoch: u64,
    },
    FallsSilent {
        node: usize,
        epoch: u64,
    },
}

#[derive(Debug)]
pub(super) struct Site {
    pub(super) plan: SitePlan,
    pub(super) started: Timestamp,
    pub(super) now: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Due>,
    queued: u64,
    random: StdRng,
    pub(super) log: Log,
    pub(super) nodes: Vec<Machine>,
    pub(super) guests: Vec<Guest>,
    by_id: HashMap<InstanceId, usize>,
    pub(super) migrations: Vec<MigrationRecord>,
    /// Those of them that nobody carries out any more, and that never end.
    pub(super) orphans: HashSet<usize>,
    /// When their new hosts were chosen.
    pub(super) chosen: HashMap<usize, Timestamp>,
    pub(super) actions: Vec<ActionRecord>,
    pub(super) tickets: TicketsInMemory,
    pub(super) tickets_elsewhere: Option<Arc<dyn TicketSource>>,
    /// What installers have said since somebody last listened.
    pub(super) said: Vec<InstallerSaid>,
    calls: BTreeMap<Call, u32>,
    /// Requests that Nova takes up late.
    pub(super) late: Vec<LateMove>,
    /// Instances that are being built, with the host that was chosen for them.
    building: VecDeque<(usize, Option<String>)>,
    /// Cold migrations that the host chosen for them has not read of yet.
    pub(super) unread: Vec<(usize, String)>,
    pub(super) runs: Vec<Run>,
    pub(super) silences: Vec<Begun>,
    pub(super) cluster: Option<Cluster>,
}

impl Site {
    pub(super) fn new(plan: SitePlan, seed: u64, now: Timestamp) -> Site {
        let mut site = Site {
            started: now,
            now,
            queue: BTreeMap::new(),
            queued: 0,
            random: StdRng::seed_from_u64(seed),
            log: Log::default(),
            nodes: Vec::new(),
            guests: Vec::new(),
            by_id: HashMap::new(),
            migrations: Vec::new(),
            orphans: HashSet::new(),
            chosen: HashMap::new(),
            actions: Vec::new(),
            tickets: TicketsInMemory::default(),
            tickets_elsewhere: None,
            said: Vec::new(),
            calls: BTreeMap::new(),
            late: Vec::new(),
            building: VecDeque::new(),
            unread: Vec::new(),
            runs: Vec::new(),
            silences: Vec::new(),
            cluster: None,
            plan,
        };
        let nodes = site.plan.nodes.clone();
        for (index, node) in nodes.into_iter().enumerate() {
            let boot_id = site.uuid();
            let service_id = site.uuid();
            site.nodes.push(Machine::new(index, node, boot_id, service_id, now));
        }
        for instance in site.plan.instances.clone() {
            site.place_at_start(instance);
        }
        for index in 0..site.plan.happenings.len() {
            site.at(now + site.plan.happenings[index].after, Due::Happening(index));
        }
        let nodes =
            site.nodes.iter().map(|node| node.at_start(site.instances_on(&node.host))).collect::<Vec<NodeAtStart>>();
        site.record(Happened::SiteStarted { seed, nodes });
        site.start_cluster();
        site
    }

    /// Lets everything happen that is due by `now`.
    pub(super) fn advance_to(&mut self, now: Timestamp) {
        while let Some((&(at, order), _)) = self.queue.first_key_value() {
            if at > now {
                break;
            }
            let Some(due) = self.queue.remove(&(at, order)) else { break };
            self.now = self.now.max(at);
            self.happen(due);
        }
        self.now = self.now.max(now);
    }

    pub(super) fn next_event(&self) -> Option<Timestamp> {
        self.queue.first_key_value().map(|(&(at, _), _)| at)
    }

    pub(super) fn at(&mut self, at: Timestamp, due: Due) {
        self.queued += 1;
        self.queue.insert((at, self.queued), due);
    }

    /// `after` from now, and a bit longer as the seed has it.
    pub(super) fn after(&mut self, after: Duration, due: Due) {
        let jitter = self.plan.latencies.jitter_percent;
        let percent = if jitter == 0 { 0 } else { self.random.random_range(0..=jitter) };
        self.at(self.now + after + after * percent / 100, due);
    }

    pub(super) fn record(&mut self, what: Happened) {
        self.log.record(self.now, what);
    }

    pub(super) fn uuid(&mut self) -> String {
        let r: u128 = self.random.random();
        let tail = r >> 80;
        format!(
            "{:08x}-{:04x}-4{:03x}-a{:03x}-{tail:012x}",
            r as u32,
            (r >> 32) as u16,
            (r >> 48) & 0xfff,
            (r >> 60) & 0xfff
        )
    }

    pub(super) fn request_id(&mut self) -> String {
        format!("req-{}", self.uuid())
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        if of.is_empty() { None } else { Some(of[self.random.random_range(0..of.len())]) }
    }

    /// Does `api` answer at all just now (for `node`)?
    pub(super) fn reach(&mut self, api: Api, node: Option<usize>) -> Result<(), Trouble> {
        if self.is_out(api, node) || self.by_chance(self.plan.faults.unavailable_percent) {
            return Err(Trouble::Unavailable);
        }
        if api == Api::Nova && self.is_out(Api::NovaPolicy, node) {
            return Err(Trouble::refused(403, "Policy doesn't allow it to be performed."));
        }
        Ok(())
    }

    pub(super) fn is_out(&self, api: Api, node: Option<usize>) -> bool {
        let name = node.map(|node| self.nodes[node].name.as_str());
        let passed = self.now.since(self.started);
        self.plan.faults.outages.iter().any(|outage| {
            outage.api == api
                && (outage.node.is_none() || outage.node.as_deref() == name)
                && passed >= outage.from
                && passed - outage.from < outage.lasts
        })
    }

    /// The effect has taken place; is whoever asked told so?
    pub(super) fn answer<T>(&mut self, call: Call, answer: T) -> Result<T, Trouble> {
        let count = self.calls.entry(call).or_default();
        *count += 1;
        let nth = *count;
        let listed = self.plan.faults.lost_answers.iter().any(|lost| lost.call == call && lost.nth == nth);
        if listed || self.by_chance(self.plan.faults.lost_answer_percent) {
            self.record(Happened::AnswerLost { call: format!("{call:?}") });
            return Err(Trouble::AnswerLost);
        }
        Ok(answer)
    }

    /// By how much the next of these calls comes late, if it does. Then it counts as made.
    pub(super) fn lateness(&mut self, call: Call) -> Option<Duration> {
        let nth = self.calls.get(&call).copied().unwrap_or_default() + 1;
        let by = self.plan.faults.late.iter().find(|late| late.call == call && late.nth == nth)?.by;
        self.calls.insert(call, nth);
        Some(by)
    }

    fn by_chance(&mut self, percent: u32) -> bool {
        percent > 0 && self.random.random_range(0..100) < percent
    }

    pub(super) fn node_named(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// The machine that the node's BMC, as the configuration has it, has its hand on.
    pub(super) fn behind_bmc_of(&self, name: &str) -> Result<usize, Trouble> {
        let node = self.node_named(name).ok_or(Trouble::NotFound)?;
        let other = self.nodes[node].faults.bmc_of.as_deref();
        other.map_or(Some(node), |other| self.node_named(other)).ok_or(Trouble::NotFound)
    }

    /// The MAC address that the configuration has for the node.
    pub(super) fn configured_mac(&self, node: usize) -> &str {
        let other = self.nodes[node].faults.mac_of.as_deref().and_then(|other| self.node_named(other));
        &self.nodes[other.unwrap_or(node)].mac
    }

    pub(super) fn node_of_host(&self, host: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.host == host)
    }

    /// Our name of the node that Nova calls `host`; a host that is no node of ours keeps Nova's name.
    pub(super) fn node_name(&self, host: &str) -> String {
        self.node_of_host(host).map_or_else(|| host.to_owned(), |node| self.nodes[node].name.clone())
    }

    pub(super) fn guest(&self, id: &InstanceId) -> Option<usize> {
        self.by_id.get(id).copied().filter(|&index| !self.guests[index].deleted)
    }

    /// Names of the instances that Nova places on `host`.
    pub(super) fn instances_on(&self, host: &str) -> Vec<String> {
        self.guests.iter().filter(|guest| guest.host.as_deref() == Some(host)).map(|guest| guest.id.0.clone()).collect()
    }

    /// Whatever is on its way from `host` or to it, and whose disk stays here until a tenant has confirmed that it is elsewhere.
    pub(super) fn touching(&self, host: &str) -> Vec<UnderWay> {
        let here = |record: &MigrationRecord| record.source == host || record.destination.as_deref() == Some(host);
        let open = self.migrations.iter().enumerate().filter(|(place, record)| !record.status.is_over() && here(record) && !self.orphans.contains(place));
        let since = |place: usize, record: &MigrationRecord| self.chosen.get(&place).copied().filter(|_| record.source != host).unwrap_or(record.created);
        open.map(|(place, record)| UnderWay { instance: record.instance.0.clone(), kind: record.kind, since: since(place, record) }).collect()
    }

    pub(super) fn staged(&self, node: usize) -> Option<BootTicket> {
        let node = &self.nodes[node];
        match &self.tickets_elsewhere {
            Some(elsewhere) => elsewhere.staged(&node.name, &node.mac),
            None => {
                let named = (0..self.nodes.len()).find(|&named| self.configured_mac(named) == node.mac)?;
                self.tickets.0.get(&self.nodes[named].name).cloned()
            }
        }
    }

    /// Host and place of each instance that takes anything there; moves under way at both their ends.
    fn holders(&self) -> HashSet<(&str, usize)> {
        let mut holders: HashSet<(&str, usize)> = HashSet::new();
        for (index, guest) in self.guests.iter().enumerate() {
            holders.extend(guest.host.as_deref().map(|host| (host, index)));
        }
        holders.extend(self.building.iter().filter_map(|(index, host)| Some((host.as_deref()?, *index))));
        for (migration, host) in &self.unread {
            holders.extend(self.guest(&self.migrations[*migration].instance).map(|index| (host.as_str(), index)));
        }
        for migration in self.migrations.iter().filter(|migration| !migration.status.is_over()) {
            if let Some(index) = self.guest(&migration.instance) {
                holders.insert((&migration.source, index));
                holders.extend(migration.destination.as_deref().map(|host| (host, index)));
            }
        }
        holders
    }

    /// What instances, and moves under way at both their ends, take of each host.
    pub(super) fn used(&self) -> HashMap<&str, (u32, u64)> {
        let mut used = HashMap::new();
        for (host, index) in self.holders() {
            let (vcpus, memory_mb) = used.entry(host).or_insert((0, 0));
            *vcpus += self.guests[index].vcpus;
            *memory_mb += self.guests[index].memory_mb;
        }
        used
    }

    /// What is left of a host's disk; None where Placement says nothing of it.
    pub(super) fn disk_left(&self, node: usize) -> Option<u64> {
        let node = &self.nodes[node];
        let here = self.holders().into_iter().filter(|(host, _)| *host == node.host);
        node.plan.disk_gb.map(|all| all.saturating_sub(here.map(|(_, index)| self.guests[index].disk_gb).sum()))
    }

    /// Are the disk of this node and its zone good for this instance? A zone of which no host is a part binds nobody.
    fn takes_disk_and_zone(&self, guest: usize, node: usize) -> bool {
        let guest = &self.guests[guest];
        let is_made = |zone: &String| self.nodes.iter().any(|node| node.plan.zone.as_ref() == Some(zone));
        let zone = guest.zone.as_ref().filter(|zone| is_made(zone));
        zone.is_none_or(|zone| self.nodes[node].plan.zone.as_ref() == Some(zone)) && self.disk_left(node).is_none_or(|left| left >= guest.disk_gb)
    }

    /// What is left of each host's devices, by resource class.
    pub(super) fn devices_left(&self, node: usize) -> BTreeMap<String, u64> {
        let node = &self.nodes[node];
        let mut left = node.devices.clone();
        for (_, index) in self.holders().into_iter().filter(|(host, _)| *host == node.host) {
            for (class, amount) in devices(&self.guests[index].asks()) {
                left.entry(class).and_modify(|left| *left = left.saturating_sub(amount));
            }
        }
        left
    }

    /// Has this node, by Placement, what a flavour with these extra specs asks for?
    pub(super) fn offers(&self, node: usize, asks: &BTreeMap<String, String>) -> bool {
        if asks.is_empty() {
            return true;
        }
        let left = self.devices_left(node);
        let traits = &self.nodes[node].traits;
        let trait_is_met = |(key, wanted): (&String, &String)| match key.split_once(':') {
            Some((group, name)) if group.starts_with("trait") => match wanted.as_str() {
                "required" => traits.iter().any(|has| has == name),
                "forbidden" => !traits.iter().any(|has| has == name),
                // Nova only logs it.
                _ => true,
            },
            Some(_) | None => true,
        };
        devices(asks).iter().all(|(class, amount)| left.get(class).is_some_and(|left| left >= amount)) && asks.iter().all(trait_is_met)
    }

    /// Do the hard rules of its server groups let this instance onto that host? As Nova's filters have it: by who is there, not by who is on the way.
    fn groups_allow(&self, guest: usize, host: &str) -> bool {
        let name = &self.guests[guest].name;
        self.plan.groups.iter().filter(|group| group.members.contains(name)).all(|group| {
            let is_member = |other: &&Guest| !other.deleted && group.members.contains(&other.name);
            let on = |other: &Guest| other.host.as_deref() == Some(host);
            match group.rule {
                GroupRule::AntiAffinity { max_on_a_host } => {
                    let others = self.guests.iter().filter(is_member).filter(|other| on(other) && other.name != *name);
                    others.count() < max_on_a_host as usize
                }
                // The host that is to be left is one of the group's too.
                GroupRule::Affinity => {
                    let mut placed = self.guests.iter().filter(is_member).filter(|other| other.host.is_some()).peekable();
                    placed.peek().is_none() || placed.any(on)
                }
            }
        })
    }

    /// Where Nova's scheduler puts an instance of this size: enabled, up, enough room, most free memory first.
    /// With `only`, that host or none; with `guest`, where its devices and its server groups let it.
    pub(super) fn schedule(&mut self, vcpus: u32, memory_mb: u64, guest: Option<usize>, not_on: Option<&str>, only: Option<&str>) -> Option<String> {
        let used = self.used();
        let mut best: Vec<usize> = Vec::new();
        let mut most_free = 0;
        for (index, node) in self.nodes.iter().enumerate() {
            if !node.enabled || !node.is_up(self.now, &self.plan.latencies) || not_on == Some(node.host.as_str()) {
                continue;
            }
            if only.is_some_and(|only| only != node.host) {
                continue;
            }
            let (used_vcpus, used_memory) = used.get(node.host.as_str()).copied().unwrap_or_default();
            if used_vcpus + vcpus > node.vcpus || used_memory + memory_mb > node.memory_mb {
                continue;
            }
            if guest.is_some_and(|guest| lacks_group_policy(&self.guests[guest].asks()) || !self.offers(index, &self.guests[guest].asks()) || !self.groups_allow(guest, &node.host) || !self.takes_disk_and_zone(guest, index)) {
                continue;
            }
            let free = node.memory_mb - used_memory;
            if best.is_empty() || free > most_free {
                (best, most_free) = (vec![index], free);
            } else if free == most_free {
                best.push(index);
            }
        }
        self.pick(&best).map(|index| self.nodes[index].host.clone())
    }

    fn guest_of(&mut self, plan: &InstancePlan, host: Option<String>, vm_state: VmState) -> usize {
        let id = InstanceId(self.uuid());
        self.by_id.insert(id.clone(), self.guests.len());
        self.guests.push(Guest {
            id,
            name: plan.name.clone(),
            project: plan.project.clone(),
            host,
            vcpus: plan.vcpus,
            memory_mb: plan.memory_mb,
            disk_gb: plan.disk_gb,
            zone: plan.zone.clone(),
            device_ports: plan.device_ports.clone(),
            vm_state,
            task_state: None,
            before_resize: VmState::Active,
            fault: None,
            locked: plan.locked,
            flavor: if plan.flavor.is_empty() { format!("c{}", plan.vcpus) } else { plan.flavor.clone() },
            holds: plan.holds.clone(),
            extra_specs: plan.extra_specs.clone(),
            metadata: plan.metadata.clone(),
            created: self.now,
            deleted: false,
            goes_wrong: plan.fault.clone(),
            started_on: None,
        });
        self.guests.len() - 1
    }

    fn place_at_start(&mut self, plan: InstancePlan) {
        let host = match &plan.node {
            Some(node) => Some(self.node_named(node).map_or(node.clone(), |index| self.nodes[index].host.clone())),
            None => self.schedule(plan.vcpus, plan.memory_mb, None, None, None),
        };
        let index = self.guest_of(&plan, host, plan.vm_state);
        match plan.vm_state {
            VmState::Error => self.guests[index].fault = Some("Build of instance aborted".to_owned()),
            VmState::Resized => self.resized_by_tenant(index),
            VmState::Building
            | VmState::Active
            | VmState::Paused
            | VmState::Suspended
            | VmState::Stopped
            | VmState::Rescued
            | VmState::Shelved => {}
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Happening(index) => self.happening(index),
            Due::BuildPlaced(guest) => self.build_placed(guest),
            Due::BuildDone(guest) => self.build_done(guest),
            Due::PoweredOff(action) => self.powered_off(action),
            Due::PoweredOn(action) => self.powered_on(action),
            Due::Deleted(guest) => self.deleted(guest),
            Due::ComesLate(late) => self.comes_late(late),
            Due::Decide(migration) => self.decide(migration),
            Due::LiveFails(migration) => self.live_fails_midway(migration),
            Due::LiveArrives(migration) => self.live_arrives(migration),
            Due::LiveSettles(migration) => self.live_settles(migration),
            Due::Stopped(migration) => self.stopped(migration),
            Due::ColdNext(migration) => self.cold_next(migration),
            Due::Confirmed(migration) => self.confirmed(migration),
            Due::PodReady(pod) => self.pod_ready(pod),
            Due::PodEnds(pod) => self.pod_ends(pod),
            Due::ScriptEnds(run) => self.script_ends(run),
            Due::RebuildHits { node } => self.rebuild_hits(node),
            Due::RebuildFails { node, epoch } => self.if_epoch(node, epoch, Site::rebuild_fails),
            Due::RebuildEnds { node, epoch } => self.if_epoch(node, epoch, Site::rebuild_ends),
            Due::ResetHits { node, asked } => self.reset_hits(node, asked),
            Due::PowerBack { node, epoch } => self.if_epoch(node, epoch, Site::power_back),
            Due::ChooseBootDevice { node, epoch } => self.if_epoch(node, epoch, Site::choose_boot_device),
            Due::Installed { node, epoch } => self.if_epoch(node, epoch, Site::installed),
            Due::GivesUp { node, epoch, restarts } => self.if_epoch(node, epoch, |site, node| site.gives_up(node, restarts)),
            Due::SystemUp { node, epoch } => self.if_epoch(node, epoch, Site::system_up),
            Due::Rejoins { node, epoch } => self.if_epoch(node, epoch, Site::rejoins),
            Due::FallsSilent { node, epoch } => self.if_epoch(node, epoch, Site::falls_silent),
            Due::ReportsMissing { node, epoch } => self.reports_missing(node, epoch),
        }
    }

    fn if_epoch(&mut self, node: usize, epoch: u64, what: impl FnOnce(&mut Site, usize)) {
        if self.nodes[node].epoch == epoch {
            what(self, node);
        }
    }

    fn happening(&mut self, index: usize) {
        match self.plan.happenings[index].what.clone() {
            Happens::InstanceCreated(plan) => drop(self.build(&plan)),
            Happens::InstanceDeleted { name } => {
                if let Some(guest) = self.guests.iter().position(|guest| guest.name == name && !guest.deleted) {
                    self.delete(guest, By::Other);
                }
            }
            Happens::MetadataSet { name, key, value } => {
                if let Some(guest) = self.guests.iter_mut().find(|guest| guest.name == name && !guest.deleted) {
                    guest.metadata.insert(key, value);
                }
            }
            Happens::InstanceResized { name } => {
                if let Some(guest) = self.guests.iter().position(|guest| guest.name == name && !guest.deleted) {
                    self.request_resize(guest);
                }
            }
            Happens::RecordOrphaned { name, node } => {
                let guest = self.guests.iter().position(|guest| guest.name == name && !guest.deleted);
                if let Some((guest, node)) = guest.zip(self.node_named(&node)) {
                    self.orphaned(guest, node);
                }
            }
            Happens::ServiceDisabled { node, reason } => {
                if let Some(node) = self.node_named(&node) {
                    self.disable(node, &reason, By::Other);
                }
            }
            Happens::ServiceEnabled { node } => {
                if let Some(node) = self.node_named(&node) {
                    self.enable(node, By::Other);
                }
            }
            Happens::ClusterNodeCordoned { name } => self.cordoned_by_other(&name, false),
            Happens::ClusterNodeUncordoned { name } => self.cordoned_by_other(&name, true),
            Happens::RecordLocked { node, lasts } => {
                if let Some(node) = self.node_named(&node) {
                    self.record_locked(node, lasts);
                }
            }
            Happens::MaintenanceSet { node, reason } => {
                if let Some(node) = self.node_named(&node) {
                    self.maintenance_set(node, reason);
                }
            }
            Happens::NodeCrashes { node } => {
                if let Some(node) = self.node_named(&node) {
                    self.crash(node);
                }
            }
            Happens::UnknownGuestStopped { node } => {
                if let Some(node) = self.node_named(&node) {
                    self.nodes[node].faults.unknown_guest = None;
                }
            }
            Happens::BmcCorrected { node } => {
                if let Some(node) = self.node_named(&node) {
                    self.nodes[node].faults.bmc_of = None;
                    self.nodes[node].faults.mac_of = None;
                }
            }
        }
    }

    /// The host is chosen now; the instance shows on it later, even if the host was closed meanwhile.
    pub(super) fn build(&mut self, plan: &InstancePlan) -> usize {
        let chosen = match plan.node.as_deref().map(|node| self.node_named(node)) {
            Some(wanted) => wanted
                .filter(|&node| self.nodes[node].enabled && self.nodes[node].is_up(self.now, &self.plan.latencies))
                .map(|node| self.nodes[node].host.clone()),
            None => self.schedule(plan.vcpus, plan.memory_mb, None, None, None),
        };
        let guest = self.guest_of(plan, None, VmState::Building);
        self.guests[guest].task_state = Some(TaskState::Scheduling);
        self.building.push_back((guest, chosen));
        self.after(self.plan.latencies.schedule, Due::BuildPlaced(guest));
        guest
    }

    fn build_placed(&mut self, guest: usize) {
        let Some(position) = self.building.iter().position(|(index, _)| *index == guest) else { return };
        let host = self.building.remove(position).and_then(|(_, host)| host);
        if self.guests[guest].deleted {
            return;
        }
        let fits = host.as_deref().and_then(|host| self.node_of_host(host)).is_some_and(|node| self.nodes[node].runs());
        if !fits {
            let guest = &mut self.guests[guest];
            (guest.vm_state, guest.task_state) = (VmState::Error, None);
            guest.fault = Some(NO_VALID_HOST.to_owned());
            return;
        }
        self.guests[guest].host = host.clone();
        self.guests[guest].task_state = Some(TaskState::Spawning);
        let (instance, name) = (self.guests[guest].id.0.clone(), self.guests[guest].name.clone());
        let node = self.node_name(&host.unwrap_or_default());
        self.record(Happened::InstanceCreated { instance, name, node });
        self.after(self.plan.latencies.build, Due::BuildDone(guest));
    }

    fn build_done(&mut self, guest: usize) {
        let guest = &mut self.guests[guest];
        if guest.vm_state == VmState::Building {
            (guest.vm_state, guest.task_state) = (VmState::Active, None);
            guest.started_on.clone_from(&guest.host);
        }
    }

    /// Deleted ones keep their place in the list, so that everybody's index stays right.
    pub(super) fn delete(&mut self, guest: usize, by: By) {
        let (id, name) = (self.guests[guest].id.clone(), self.guests[guest].name.clone());
        let node = self.guests[guest].host.take().map(|host| self.node_name(&host));
        self.end_moves_of(&id, "The instance was deleted.");
        self.record(Happened::InstanceDeleted { instance: id.0.clone(), name, node, by });
        self.guests[guest].deleted = true;
    }
}
