//! A node at the simulated site: its power, its disk, what boots on it, and its compute service.

use std::collections::BTreeMap;

use super::guest::VmState;
use super::log::{By, Happened, NodeAtStart};
use super::plan::{ALWAYS, Api, Call, Latencies, NodeFaults, NodePlan};
use super::rebuilds::Record;
use super::site::{Due, Site};
use super::trouble::Trouble;
use crate::clock::Timestamp;
use crate::ports::{BootDevice, BootOverride, BootTicket, CommandEnd, Facts, Installed, NodeStock, Power, Token};
use crate::steps::installer::Word;

/// As a shell tells of a program that is not there.
const NO_SUCH_COMMAND: i32 = 127;

/// The network agent of every node.
const NETWORK_AGENT: &str = "neutron-openvswitch-agent";

/// The alert that fires while a compute service does not report.
const NODE_DOWN: &str = "NodeDown";

/// The words of an installer that gives up.
const WRONG_IMAGE: &str = "the image is another one than was ordered";

/// Most times that one report is sent.
const REPEATED_MAX: u32 = 10;

/// What an installer said, on its way to whoever listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallerSaid {
    pub token: String,
    pub word: Word,
    pub reason: String,
}

/// What runs on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its system is up: SSH answers.
    Running,
    NoPower,
    /// The self-test, up to the choice of a boot device.
    Firmware,
    Installing(BootTicket),
    /// The system on its disk is starting.
    Starting,
    /// Power is on, and nothing will happen any more.
    Hung,
}

impl Phase {
    fn as_str(&self) -> &'static str {
        match self {
            Phase::Running => "running",
            Phase::NoPower => "no power",
            Phase::Firmware => "self-test",
            Phase::Installing(_) => "installing",
            Phase::Starting => "starting",
            Phase::Hung => "hung",
        }
    }
}

/// What an installation left on the disk.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) os_version_id: String,
    pub(super) kernel: String,
    pub(super) hostname: String,
    pub(super) installed: Option<Installed>,
}

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) name: String,
    /// Nova's name for it.
    pub(super) host: String,
    pub(super) mac: String,
    pub(super) vcpus: u32,
    pub(super) memory_mb: u64,
    /// By resource class of Placement.
    pub(super) devices: BTreeMap<String, u64>,
    pub(super) traits: Vec<String>,
    pub(super) plan: NodePlan,
    pub(super) faults: NodeFaults,
    /// It has a host key that nobody knows.
    stranger: bool,
    /// Ironic's, if it knows the node.
    pub(super) record: Option<Record>,
    pub(super) service_id: String,
    pub(super) enabled: bool,
    pub(super) disabled_reason: Option<String>,
    /// Its compute service reports.
    reporting: bool,
    /// OpenStack is on its disk.
    deployed: bool,
    last_report: Timestamp,
    /// Its compute service has come back then.
    back_since: Option<Timestamp>,
    pub(super) power: Power,
    pub(super) phase: Phase,
    /// Grows with every reset and crash: what was due before is void.
    pub(super) epoch: u64,
    next_boot: BootOverride,
    override_forgotten: bool,
    /// Nothing gets through of what its installer says.
    unheard: bool,
    pub(super) disk: Disk,
    boot_id: String,
}

/// Uses up one of the planned times.
pub(super) fn takes(times: &mut u32) -> bool {
    if *times == 0 {
        return false;
    }
    if *times != ALWAYS {
        *times -= 1;
    }
    true
}

impl Machine {
    pub(super) fn new(index: usize, plan: NodePlan, boot_id: String, service_id: String, now: Timestamp) -> Machine {
        let mac = if plan.mac.is_empty() {
            format!("52:54:00:00:{:02x}:{:02x}", (index + 1) / 256 % 256, (index + 1) % 256)
        } else {
            plan.mac.clone()
        };
        Machine {
            name: plan.name.clone(),
            host: plan.nova_host.clone().unwrap_or_else(|| plan.name.clone()),
            mac,
            vcpus: plan.vcpus,
            memory_mb: plan.memory_mb,
            devices: plan.devices.clone(),
            traits: plan.traits.clone(),
            faults: plan.faults.clone(),
            stranger: false,
            record: plan.ironic.as_ref().map(|record| Record::new(record, now)),
            service_id,
            enabled: plan.disabled.is_none(),
            disabled_reason: plan.disabled.clone(),
            reporting: true,
            deployed: true,
            last_report: now,
            back_since: None,
            power: Power::On,
            phase: Phase::Running,
            epoch: 0,
            next_boot: BootOverride { device: BootDevice::None, efi: true },
            override_forgotten: false,
            unheard: false,
            disk: Disk {
                os_version_id: plan.os_version_id.clone(),
                kernel: plan.kernel.clone(),
                hostname: plan.hostname.clone().unwrap_or_else(|| plan.name.clone()),
                installed: None,
            },
            boot_id,
            plan,
        }
    }

    pub(super) fn at_start(&self, instances: Vec<String>) -> NodeAtStart {
        NodeAtStart {
            node: self.name.clone(),
            enabled: self.enabled,
            disabled_reason: self.disabled_reason.clone(),
            os_version_id: self.disk.os_version_id.clone(),
            instances,
        }
    }

    /// As Nova sees it: a service is up until it has been silent for `service_down_time`.
    pub(super) fn is_up(&self, now: Timestamp, latencies: &Latencies) -> bool {
        self.reporting || now.since(self.last_report) < latencies.service_down_time
    }

    /// The network agents on it, and whether each reports.
    pub(super) fn agents(&self, now: Timestamp, latencies: &Latencies) -> BTreeMap<String, bool> {
        let gone = self.faults.agent_stays_away && self.disk.installed.is_some();
        [(NETWORK_AGENT.to_owned(), self.is_up(now, latencies) && !gone)].into()
    }

    /// The alerts that fire about it.
    pub(super) fn alerts(&self, now: Timestamp, latencies: &Latencies) -> Vec<String> {
        let away = !self.is_up(now, latencies) || self.back_since.is_some_and(|since| now.since(since) < latencies.alert_ends);
        let once_installed = self.faults.alert_once_installed.as_ref().filter(|_| self.disk.installed.is_some());
        away.then_some(&NODE_DOWN.to_owned()).into_iter().chain(&self.plan.alert).chain(once_installed).cloned().collect()
    }

    /// Its system runs and its compute service reports: instances can be on it.
    pub(super) fn runs(&self) -> bool {
        self.phase == Phase::Running && self.reporting
    }

    pub(super) fn phase(&self) -> &'static str {
        self.phase.as_str()
    }

    /// What Placement has of it in all.
    pub(super) fn inventory(&self) -> BTreeMap<String, u64> {
        let size = [("VCPU".to_owned(), u64::from(self.vcpus)), ("MEMORY_MB".to_owned(), self.memory_mb)];
        size.into_iter().chain(self.devices.clone()).collect()
    }

    pub(super) fn power(&self) -> Power {
        self.power
    }

    pub(super) fn next_boot(&self) -> BootOverride {
        self.next_boot.clone()
    }

    /// How a command ends on it; None while it does not answer.
    pub(super) fn run(&self, command: &str) -> Option<CommandEnd> {
        let unknown = || CommandEnd { code: NO_SUCH_COMMAND, output: String::new() };
        let changed = self.disk.installed.as_ref().and_then(|_| self.plan.faults.answers_after_installation.get(command));
        let answer = || changed.or_else(|| self.plan.answers.get(command)).cloned();
        (self.phase == Phase::Running).then(|| answer().map_or_else(unknown, |output| CommandEnd { code: 0, output }))
    }

    /// None while it does not answer.
    pub(super) fn stock(&self) -> Option<NodeStock> {
        let changed = self.disk.installed.as_ref().and(self.plan.faults.stock_once_installed.as_ref());
        (self.phase == Phase::Running).then(|| changed.unwrap_or(&self.plan.stock).clone())
    }

    pub(super) fn stock_is_too_long(&self) -> bool {
        self.plan.faults.stock_too_long && self.disk.installed.is_none()
    }

    pub(super) fn is_stranger(&self) -> bool {
        self.stranger
    }

    pub(super) fn facts(&self) -> Option<Facts> {
        let facts = || Facts {
            boot_id: self.boot_id.clone(),
            hostname: self.disk.hostname.clone(),
            os_version_id: self.disk.os_version_id.clone(),
            kernel: self.disk.kernel.clone(),
            installed: self.disk.installed.clone(),
        };
        (self.phase == Phase::Running).then(facts)
    }

    /// A virtual machine that runs there, and is none of Nova's.
    pub(super) fn unknown_guest(&self) -> Option<String> {
        self.faults.unknown_guest.clone().filter(|_| self.epoch == 0 && self.phase == Phase::Running)
    }
}

impl Site {
    pub(super) fn disable(&mut self, node: usize, reason: &str, by: By) {
        let machine = &mut self.nodes[node];
        let was_enabled = std::mem::replace(&mut machine.enabled, false);
        machine.disabled_reason = Some(reason.to_owned());
        let node = machine.name.clone();
        self.record(Happened::ServiceDisabled { node, reason: reason.to_owned(), was_enabled, by });
    }

    pub(super) fn enable(&mut self, node: usize, by: By) {
        let machine = &mut self.nodes[node];
        let was_enabled = std::mem::replace(&mut machine.enabled, true);
        machine.disabled_reason = None;
        let node = machine.name.clone();
        self.record(Happened::ServiceEnabled { node, was_enabled, by });
    }

    pub(super) fn set_next_boot(&mut self, node: usize, device: BootDevice) -> Result<(), Trouble> {
        self.reach(Api::Bmc, Some(node))?;
        let machine = &mut self.nodes[node];
        let taken = !takes(&mut machine.faults.ignores_boot_override);
        if taken {
            machine.next_boot = BootOverride { device, efi: true };
            machine.override_forgotten = device == BootDevice::Pxe && takes(&mut machine.faults.loses_boot_override);
        }
        let node = machine.name.clone();
        self.record(Happened::BootOverride { node, device, taken });
        self.answer(Call::NetbootNext, ())
    }

    /// The BMC says yes; something happens later, if at all, if only once.
    pub(super) fn request_reset(&mut self, node: usize) -> Result<(), Trouble> {
        self.reach(Api::Bmc, Some(node))?;
        let token = self.staged(node).map(|ticket| ticket.token.0);
        let obeyed = !takes(&mut self.nodes[node].faults.ignores_reset);
        let machine = &self.nodes[node];
        self.record(Happened::ResetRequested {
            node: machine.name.clone(),
            token,
            instances: self.instances_on(&machine.host),
            touching: self.touching(&machine.host),
            unknown_guest: machine.unknown_guest(),
            enabled: machine.enabled,
            obeyed,
        });
        if obeyed {
            let delay = self.plan.latencies.reset;
            self.after(delay, Due::ResetHits { node, asked: true });
            if takes(&mut self.nodes[node].faults.repeats_reset) {
                self.after(delay + self.plan.latencies.reset_repeated, Due::ResetHits { node, asked: false });
            }
        }
        self.answer(Call::Reset, ())
    }

    pub(super) fn reset_hits(&mut self, node: usize, asked: bool) {
        self.power_goes(node, asked, "the node was reset while they were on it");
        let epoch = self.nodes[node].epoch;
        self.after(self.plan.latencies.power_cycle, Due::PowerBack { node, epoch });
    }

    /// Whatever ran on it is gone.
    pub(super) fn power_goes(&mut self, node: usize, asked: bool, why: &str) {
        self.system_stops(node);
        self.nodes[node].power = Power::Changing;
        self.nodes[node].phase = Phase::NoPower;
        self.record(Happened::PowerLost { node: self.nodes[node].name.clone(), asked });
        self.lose_instances(node, why);
    }

    pub(super) fn crash(&mut self, node: usize) {
        self.system_stops(node);
        self.nodes[node].phase = Phase::Hung;
        self.record(Happened::NodeCrashed { node: self.nodes[node].name.clone() });
    }

    fn system_stops(&mut self, node: usize) {
        let machine = &mut self.nodes[node];
        machine.epoch += 1;
        let epoch = machine.epoch;
        if std::mem::replace(&mut machine.reporting, false) {
            machine.last_report = self.now;
            self.at(self.now + self.plan.latencies.service_down_time, Due::ReportsMissing { node, epoch });
        }
        let host = self.nodes[node].host.clone();
        self.moves_lose_host(&host);
    }

    fn lose_instances(&mut self, node: usize, why: &str) {
        let host = self.nodes[node].host.clone();
        let instances = self.instances_on(&host);
        if instances.is_empty() {
            return;
        }
        for guest in self.guests.iter_mut().filter(|guest| guest.host.as_deref() == Some(host.as_str())) {
            (guest.vm_state, guest.task_state) = (VmState::Error, None);
            guest.fault = Some(format!("lost: {why}"));
        }
        self.record(Happened::InstancesLost { node: self.nodes[node].name.clone(), instances, why: why.to_owned() });
    }

    /// Later resets don't make the silence shorter: judged by the time of the last report, whatever the epoch.
    pub(super) fn reports_missing(&mut self, node: usize, _epoch: u64) {
        if !self.nodes[node].is_up(self.now, &self.plan.latencies) {
            self.record(Happened::ServiceDown { node: self.nodes[node].name.clone() });
        }
    }

    pub(super) fn power_back(&mut self, node: usize) {
        self.nodes[node].power = Power::On;
        self.record(Happened::PowerBack { node: self.nodes[node].name.clone() });
        self.self_test(node);
    }

    fn self_test(&mut self, node: usize) {
        self.nodes[node].phase = Phase::Firmware;
        let epoch = self.nodes[node].epoch;
        self.after(self.plan.latencies.firmware, Due::ChooseBootDevice { node, epoch });
    }

    /// The one-shot override is used up here, whatever comes of it. The ticket is read at this very moment.
    pub(super) fn choose_boot_device(&mut self, node: usize) {
        let machine = &mut self.nodes[node];
        let wanted = std::mem::replace(&mut machine.next_boot.device, BootDevice::None);
        let forgotten = std::mem::replace(&mut machine.override_forgotten, false);
        if wanted != BootDevice::Pxe || forgotten || takes(&mut machine.faults.netboot_fails) {
            return self.boot_from_disk(node);
        }
        let ticket = self.staged(node);
        let token = ticket.as_ref().map(|ticket| ticket.token.0.clone());
        self.record(Happened::Netbooted { node: self.nodes[node].name.clone(), token });
        match ticket {
            Some(ticket) => self.install(node, ticket),
            None => self.boot_from_disk(node),
        }
    }

    pub(super) fn boot_from_disk(&mut self, node: usize) {
        self.nodes[node].phase = Phase::Starting;
        self.record(Happened::DiskBooted { node: self.nodes[node].name.clone() });
        let (epoch, takes) = (self.nodes[node].epoch, self.nodes[node].plan.boot_time);
        self.after(takes, Due::SystemUp { node, epoch });
    }

    fn install(&mut self, node: usize, ticket: BootTicket) {
        let known = self.plan.images.iter().any(|image| image.name == ticket.image.as_str());
        let machine = &mut self.nodes[node];
        machine.unheard = takes(&mut machine.faults.reports_lost);
        machine.phase = Phase::Installing(ticket.clone());
        let (epoch, length) = (machine.epoch, machine.plan.install_time);
        self.report(node, &ticket, Word::Started, "");
        let faults = &mut self.nodes[node].faults;
        // An installer that finds no image to write waits for somebody to look at its console.
        if !known {
            self.report(node, &ticket, Word::Failed, &format!("there is no image {} to write", ticket.image));
        } else if takes(&mut faults.installer_gives_up) {
            self.after(length / 2, Due::GivesUp { node, epoch, restarts: false });
        } else if takes(&mut faults.installer_gives_up_and_restarts) {
            self.after(length / 2, Due::GivesUp { node, epoch, restarts: true });
        } else if !takes(&mut faults.installer_hangs) {
            self.after(length, Due::Installed { node, epoch });
        }
    }

    pub(super) fn gives_up(&mut self, node: usize, restarts: bool) {
        let Phase::Installing(ticket) = self.nodes[node].phase.clone() else { return };
        self.report(node, &ticket, Word::Failed, WRONG_IMAGE);
        if restarts {
            self.nodes[node].epoch += 1;
            self.self_test(node);
        }
    }

    /// The installer says something, where its boot ticket says that somebody listens.
    fn report(&mut self, node: usize, ticket: &BootTicket, word: Word, reason: &str) {
        let machine = &self.nodes[node];
        if ticket.report.is_none() {
            return;
        }
        let (name, lost, times) = (machine.name.clone(), machine.unheard, machine.faults.reports_repeated.saturating_add(1).min(REPEATED_MAX));
        let token = ticket.token.0.clone();
        if !lost {
            let said = InstallerSaid { token: token.clone(), word, reason: reason.to_owned() };
            self.said.extend(std::iter::repeat_n(said, times as usize));
        }
        self.record(Happened::InstallerReported { node: name, token, word: word.as_str().to_owned(), lost });
    }

    pub(super) fn installed(&mut self, node: usize) {
        let Phase::Installing(ticket) = self.nodes[node].phase.clone() else { return };
        let Some(image) = self.plan.images.iter().find(|image| image.name == ticket.image.as_str()).cloned() else {
            return;
        };
        self.report(node, &ticket, Word::Installed, "");
        let machine = &mut self.nodes[node];
        let faults = &machine.faults;
        let sha256 = faults.wrong_sha256.clone().unwrap_or(image.sha256);
        machine.disk = Disk {
            os_version_id: image.os_version_id,
            kernel: faults.wrong_kernel.clone().unwrap_or(image.kernel),
            hostname: faults.wrong_hostname.clone().unwrap_or_else(|| machine.name.clone()),
            installed: Some(Installed { token: ticket.token.clone(), sha256: sha256.clone() }),
        };
        machine.stranger = machine.record.is_some() && takes(&mut machine.faults.rebuild_unmarked);
        if machine.stranger {
            machine.disk.installed = None;
        }
        machine.deployed = self.plan.setup.is_none();
        if let Some(class) = machine.faults.loses_devices.take() {
            machine.devices.remove(&class);
        }
        machine.memory_mb = machine.memory_mb.saturating_sub(std::mem::take(&mut machine.faults.loses_memory_mb));
        if std::mem::take(&mut machine.faults.new_identity) {
            let id = self.uuid();
            self.nodes[node].service_id = id;
        }
        let machine = &mut self.nodes[node];
        let (name, host, enabled) = (machine.name.clone(), machine.host.clone(), machine.enabled);
        self.record(Happened::ImageWritten {
            node: name,
            token: ticket.token.0,
            image: image.name,
            sha256,
            instances: self.instances_on(&host),
            touching: self.touching(&host),
            enabled,
        });
        self.lose_instances(node, "the node's disk was overwritten while they were on it");
        self.rebuilt(node);
        if takes(&mut self.nodes[node].faults.never_comes_back) {
            self.nodes[node].phase = Phase::Hung;
        } else {
            self.self_test(node);
        }
    }

    pub(super) fn system_up(&mut self, node: usize) {
        let boot_id = self.uuid();
        let machine = &mut self.nodes[node];
        machine.phase = Phase::Running;
        machine.boot_id = boot_id.clone();
        let (epoch, stays_away) = (machine.epoch, takes(&mut machine.faults.hypervisor_stays_away));
        let disk = machine.disk.clone();
        let node_name = machine.name.clone();
        self.record(Happened::CameUp {
            node: node_name,
            boot_id,
            os_version_id: disk.os_version_id,
            kernel: disk.kernel,
            token: disk.installed.map(|Installed { token: Token(token), .. }| token),
        });
        if !stays_away && self.nodes[node].deployed {
            self.after(self.plan.latencies.rejoin, Due::Rejoins { node, epoch });
        }
    }

    /// The setup script puts OpenStack on it. False if it does not answer.
    pub(super) fn deploy(&mut self, node: usize) -> bool {
        let machine = &mut self.nodes[node];
        if machine.phase != Phase::Running {
            return false;
        }
        machine.deployed = true;
        let epoch = machine.epoch;
        if !machine.reporting {
            self.after(self.plan.latencies.rejoin, Due::Rejoins { node, epoch });
        }
        true
    }

    pub(super) fn rejoins(&mut self, node: usize) {
        self.nodes[node].reporting = true;
        self.nodes[node].back_since = Some(self.now);
        if takes(&mut self.nodes[node].faults.flaps) {
            let epoch = self.nodes[node].epoch;
            self.after(self.plan.latencies.rejoin, Due::FallsSilent { node, epoch });
        }
        self.record(Happened::ServiceUp { node: self.nodes[node].name.clone() });
        let host = self.nodes[node].host.clone();
        self.deliver(&host);
    }

    /// For longer than it takes Nova to notice.
    pub(super) fn falls_silent(&mut self, node: usize) {
        let machine = &mut self.nodes[node];
        let epoch = machine.epoch;
        machine.reporting = false;
        machine.last_report = self.now;
        let silent = self.plan.latencies.service_down_time;
        self.at(self.now + silent, Due::ReportsMissing { node, epoch });
        self.after(silent * 4, Due::Rejoins { node, epoch });
    }
}
