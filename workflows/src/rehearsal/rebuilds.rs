//! Ironic of the simulated site: what it has on record of each node, and what becomes of a rebuild.
//!
//! States, words and status codes are those that Ironic 35.0.1 was seen to have.

use std::time::Duration;

use super::log::Happened;
use super::machine::Phase;
use super::plan::{Api, Call, RecordPlan};
use super::site::{Due, Site};
use super::trouble::Trouble;
use crate::clock::Timestamp;
use crate::ports::{BootTicket, Installed, Power, RebuildOrder};

const ACTIVE: &str = "active";
const DEPLOYING: &str = "deploying";
const DEPLOY_FAILED: &str = "deploy failed";

/// A node as Ironic has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IronicNode {
    pub name: String,
    pub provision_state: String,
    pub target_provision_state: Option<String>,
    /// When `provision_state` changed last, and the how manieth change that was.
    pub provision_updated: (Timestamp, u32),
    /// Who works on it.
    pub reservation: Option<String>,
    pub maintenance: Option<String>,
    pub protected: bool,
    pub protected_reason: Option<String>,
    pub instance_uuid: Option<String>,
    pub last_error: Option<String>,
    /// What was written down on it last.
    pub ordered: Option<RebuildOrder>,
}

#[derive(Debug)]
pub(super) struct Record {
    state: &'static str,
    changed: (Timestamp, u32),
    /// Somebody else works on it until then.
    locked_until: Option<Timestamp>,
    maintenance: Option<String>,
    protected: bool,
    protected_reason: Option<String>,
    tenant: Option<String>,
    last_error: Option<String>,
    ordered: Option<RebuildOrder>,
    /// What the new system will find as its mark.
    mark: Option<Installed>,
}

impl Record {
    pub(super) fn new(plan: &RecordPlan, now: Timestamp) -> Record {
        Record {
            state: ACTIVE,
            changed: (now, 0),
            locked_until: None,
            maintenance: plan.maintenance.clone(),
            protected: plan.protected,
            protected_reason: None,
            tenant: plan.tenant.clone(),
            last_error: None,
            ordered: None,
            mark: None,
        }
    }

    fn enter(&mut self, state: &'static str, now: Timestamp) {
        self.state = state;
        self.changed = (now, self.changed.1 + 1);
    }

    fn locked_by(&self, now: Timestamp) -> Option<String> {
        (self.state == DEPLOYING || self.locked_until.is_some_and(|until| now < until)).then(|| "ironic1".to_owned())
    }
}

impl Site {
    fn on_record(&mut self, node: &str) -> Result<usize, Trouble> {
        let index = self.node_named(node);
        self.reach(Api::Ironic, index)?;
        index.filter(|&index| self.nodes[index].record.is_some()).ok_or(Trouble::NotFound)
    }

    pub(super) fn ironic_node(&mut self, node: &str) -> Result<IronicNode, Trouble> {
        let index = self.on_record(node)?;
        let now = self.now;
        let Some(record) = &self.nodes[index].record else { return Err(Trouble::NotFound) };
        Ok(IronicNode {
            name: node.to_owned(),
            provision_state: record.state.to_owned(),
            target_provision_state: (record.state != ACTIVE).then(|| ACTIVE.to_owned()),
            provision_updated: record.changed,
            reservation: record.locked_by(now),
            maintenance: record.maintenance.clone(),
            protected: record.protected,
            protected_reason: record.protected_reason.clone(),
            instance_uuid: record.tenant.clone(),
            last_error: record.last_error.clone(),
            ordered: record.ordered.clone(),
        })
    }

    /// A record that can be changed just now.
    fn changeable(&mut self, node: &str) -> Result<&mut Record, Trouble> {
        let index = self.on_record(node)?;
        let now = self.now;
        let record = self.nodes[index].record.as_mut().ok_or(Trouble::NotFound)?;
        if record.state == DEPLOYING {
            return Err(Trouble::refused(409, format!("Node {node} can not be updated while a state transition is in progress.")));
        }
        match record.locked_by(now) {
            Some(by) => Err(locked(node, &by)),
            None => Ok(record),
        }
    }

    /// `unprotects`: the same request takes the node's protection away.
    pub(super) fn order_rebuild(&mut self, node: &str, order: &RebuildOrder, unprotects: bool) -> Result<(), Trouble> {
        let record = self.changeable(node)?;
        record.ordered = Some(order.clone());
        if unprotects {
            (record.protected, record.protected_reason) = (false, None);
        }
        self.answer(Call::OrderRebuild, ())
    }

    pub(super) fn protect_record(&mut self, node: &str, reason: String) -> Result<(), Trouble> {
        let record = self.changeable(node)?;
        if record.state != ACTIVE {
            return Err(Trouble::refused(409, format!("Node {node} can not be protected while it is in state \"{}\".", record.state)));
        }
        (record.protected, record.protected_reason) = (true, Some(reason));
        self.answer(Call::Protect, ())
    }

    /// `mark` is what the configdrive has the new system write.
    pub(super) fn request_rebuild(&mut self, node: &str, mark: Installed) -> Result<(), Trouble> {
        let index = self.on_record(node)?;
        let now = self.now;
        let refusal = self.nodes[index].record.as_ref().and_then(|record| refusal(node, record, now));
        let (name, host, enabled) = (self.nodes[index].name.clone(), self.nodes[index].host.clone(), self.nodes[index].enabled);
        self.record(Happened::RebuildRequested {
            node: name,
            token: mark.token.0.clone(),
            instances: self.instances_on(&host),
            touching: self.touching(&host),
            unknown_guest: self.nodes[index].unknown_guest(),
            enabled,
            refused: refusal.as_ref().map(|trouble| format!("{trouble:?}")),
        });
        if let Some(trouble) = refusal {
            return Err(trouble);
        }
        if let Some(record) = &mut self.nodes[index].record {
            record.enter(DEPLOYING, now);
            (record.last_error, record.mark) = (None, Some(mark));
        }
        self.after(self.plan.latencies.reset, Due::RebuildHits { node: index });
        if super::machine::takes(&mut self.nodes[index].faults.rebuild_repeated) {
            return Err(locked(node, "ironic1"));
        }
        self.answer(Call::Rebuild, ())
    }

    /// Ironic takes the node down, and its own ramdisk begins to write.
    pub(super) fn rebuild_hits(&mut self, node: usize) {
        self.power_goes(node, true, "the node was rebuilt while they were on it");
        self.nodes[node].power = Power::On;
        let ordered = self.nodes[node].record.as_ref().and_then(|record| Some((record.ordered.clone()?, record.mark.clone()?)));
        let image = ordered.as_ref().and_then(|(order, _)| self.plan.images.iter().find(|image| image.sha256 == order.sha256));
        let ticket = image.and_then(|image| image.name.parse().ok()).zip(ordered).map(|(image, (_, mark))| BootTicket {
            token: mark.token,
            image,
            sha256: mark.sha256,
            report: None,
        });
        let machine = &mut self.nodes[node];
        let (epoch, length) = (machine.epoch, machine.plan.install_time);
        let Some(ticket) = ticket else {
            return self.rebuild_failed(node, "the image's checksum does not verify");
        };
        machine.phase = Phase::Installing(ticket);
        if super::machine::takes(&mut machine.faults.rebuild_hangs) {
            return;
        }
        if super::machine::takes(&mut machine.faults.rebuild_fails) {
            self.after(length, Due::RebuildFails { node, epoch });
        } else if super::machine::takes(&mut machine.faults.rebuild_keeps_old) {
            self.after(length, Due::RebuildEnds { node, epoch });
        } else {
            self.after(length, Due::Installed { node, epoch });
        }
    }

    pub(super) fn rebuild_fails(&mut self, node: usize) {
        self.rebuild_failed(node, "Agent failed to write the image: No space left on device");
    }

    fn rebuild_failed(&mut self, node: usize, why: &str) {
        let now = self.now;
        self.nodes[node].phase = Phase::Hung;
        if let Some(record) = &mut self.nodes[node].record {
            record.enter(DEPLOY_FAILED, now);
            record.last_error = Some(why.to_owned());
        }
    }

    /// It says that all is well, and the old system boots.
    pub(super) fn rebuild_ends(&mut self, node: usize) {
        self.rebuilt(node);
        self.boot_from_disk(node);
    }

    /// The image is written: Ironic is done with it, if it was Ironic.
    pub(super) fn rebuilt(&mut self, node: usize) {
        let now = self.now;
        if let Some(record) = self.nodes[node].record.as_mut().filter(|record| record.state == DEPLOYING) {
            record.enter(ACTIVE, now);
        }
    }

    pub(super) fn record_locked(&mut self, node: usize, lasts: Duration) {
        let until = self.now + lasts;
        if let Some(record) = &mut self.nodes[node].record {
            record.locked_until = Some(until);
        }
    }

    pub(super) fn maintenance_set(&mut self, node: usize, reason: Option<String>) {
        if let Some(record) = &mut self.nodes[node].record {
            record.maintenance = reason;
        }
    }
}

fn refusal(node: &str, record: &Record, now: Timestamp) -> Option<Trouble> {
    if let Some(by) = record.locked_by(now) {
        return Some(locked(node, &by));
    }
    if record.protected {
        return Some(Trouble::refused(403, format!("Node {node} is protected and cannot be undeployed, rebuilt or deleted")));
    }
    if record.maintenance.is_some() {
        let reason = format!("The provisioning operation can't be performed on node {node} because it's in maintenance mode.");
        return Some(Trouble::refused(400, reason));
    }
    if !matches!(record.state, ACTIVE | DEPLOY_FAILED) {
        let reason = format!("The requested action \"rebuild\" can not be performed on node \"{node}\" while it is in state \"{}\".", record.state);
        return Some(Trouble::refused(400, reason));
    }
    None
}

fn locked(node: &str, by: &str) -> Trouble {
    Trouble::refused(409, format!("Node {node} is locked by host {by}, please retry after the current operation is completed."))
}
