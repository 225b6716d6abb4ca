//! Moves of instances, as a real Nova makes them: accepted at once, decided later.

use super::guest::{ActionRecord, MigrationRecord, MigrationStatus, TaskState, VmState};
use super::log::Happened;
use super::plan::{ALWAYS, Call, MoveGoesWrong};
use super::site::{Due, NO_VALID_HOST, Site};
use super::trouble::Trouble;
use crate::ports::{InstanceId, MigrationKind, Move};

/// Nova's words for a confirmation of what is not (or no longer) resized.
const NOT_RESIZED: &str = "Instance has not been resized.";

/// Nova's words for a live migration of an instance with a device of its node.
const NOT_LIVE_MIGRATABLE: &str =
    "Migration pre-check error: This request does not explicitly request live-migratable devices.";

/// A cold migration goes through this many stages of the same length.
const COLD_STAGES: u32 = 4;

/// A request to move an instance that is on its way to Nova.
#[derive(Debug, Clone)]
pub(super) struct LateMove {
    instance: InstanceId,
    /// The node where it was then.
    node: String,
    how: Move,
    to: Option<String>,
    forced: bool,
    request: String,
}

impl Site {
    /// `to` is a host by Nova's name for it.
    pub(super) fn request_move(&mut self, id: &InstanceId, how: Move, to: Option<&str>) -> Result<String, Trouble> {
        self.request(id, how, to, false, Call::StartMove)
    }

    /// A live one, and the scheduler is not asked.
    pub(super) fn request_forced(&mut self, id: &InstanceId, to: &str) -> Result<String, Trouble> {
        self.request(id, Move::Live, Some(to), true, Call::PutCanary)
    }

    fn request(&mut self, id: &InstanceId, how: Move, to: Option<&str>, forced: bool, call: Call) -> Result<String, Trouble> {
        let guest = self.guest(id).ok_or(Trouble::NotFound)?;
        let request = self.request_id();
        let node = self.guests[guest].host.as_deref().map(|host| self.node_name(host));
        let under_way =
            self.migrations.iter().any(|migration| migration.instance == *id && !migration.status.is_over());
        let late = self.lateness(call);
        let refused = if late.is_some() { None } else { self.why_not_accepted(guest, how, to) };
        self.record(Happened::MigrationRequested {
            instance: id.0.clone(),
            node: node.clone(),
            how,
            to: to.map(|host| self.node_name(host)),
            request: request.clone(),
            under_way,
            refused: refused.as_ref().map(|(_, reason)| reason.clone()),
        });
        if let Some(by) = late {
            self.record(Happened::AnswerLost { call: format!("{call:?}, late") });
            self.at(self.now + by, Due::ComesLate(self.late.len()));
            self.late.push(LateMove { instance: id.clone(), node: node.unwrap_or_default(), how, to: to.map(str::to_owned), forced, request });
            return Err(Trouble::AnswerLost);
        }
        if let Some((status, reason)) = refused {
            return Err(Trouble::Refused { status, reason });
        }
        self.accept(guest, how, to, forced, &request);
        self.answer(call, request)
    }

    /// A request comes to Nova at last. Nobody hears what Nova says to it; of one that it refuses, or whose instance is gone, it keeps nothing.
    pub(super) fn comes_late(&mut self, late: usize) {
        let LateMove { instance, node, how, to, forced, request } = self.late[late].clone();
        let refused = match self.guest(&instance) {
            Some(guest) => match self.why_not_accepted(guest, how, to.as_deref()) {
                None => return self.accept(guest, how, to.as_deref(), forced, &request),
                Some((_, reason)) => reason,
            },
            None => format!("Instance {instance} could not be found."),
        };
        let status = MigrationStatus::Error.as_str().to_owned();
        self.record(Happened::MigrationEnded { instance: instance.0, request, from: node, to: None, status, reason: Some(refused) });
    }

    /// HTTP status and words of Nova's refusal, if it says no to the request itself.
    fn why_not_accepted(&mut self, guest: usize, how: Move, to: Option<&str>) -> Option<(u16, String)> {
        match to.filter(|host| self.node_of_host(host).is_none()) {
            Some(host) => Some((400, format!("Compute host {host} could not be found."))),
            None if to.is_some() && self.guests[guest].goes_wrong.how == MoveGoesWrong::HostNotToBeNamed => {
                Some((403, self.guests[guest].goes_wrong.reason.clone()))
            }
            None => self.why_refused(guest, how),
        }
    }

    /// From here on it is under way.
    fn accept(&mut self, guest: usize, how: Move, to: Option<&str>, forced: bool, request: &str) {
        let (kind, task, action) = match how {
            Move::Live => (MigrationKind::Live, TaskState::Migrating, "live-migration"),
            Move::Cold => (MigrationKind::Cold, TaskState::ResizePrep, "migrate"),
        };
        self.guests[guest].task_state = Some(task);
        let id = self.guests[guest].id.clone();
        self.remember_action(&id, action, request);
        let migration = self.new_migration(guest, kind, MigrationStatus::Accepted, request);
        (self.migrations[migration].wanted, self.migrations[migration].forced) = (to.map(str::to_owned), forced);
        self.after(self.plan.latencies.schedule, Due::Decide(migration));
    }

    /// The same, for what the instance itself is.
    fn why_refused(&mut self, index: usize, how: Move) -> Option<(u16, String)> {
        let guest = &self.guests[index];
        let (name, movable) = match how {
            Move::Live => ("os-migrateLive", matches!(guest.vm_state, VmState::Active | VmState::Paused)),
            Move::Cold => ("migrate", matches!(guest.vm_state, VmState::Active | VmState::Stopped)),
        };
        let state = match guest.task_state {
            Some(task) => Some(format!("task_state {}", task.as_str())),
            None if !movable => Some(format!("vm_state {}", guest.vm_state.as_str())),
            None => None,
        };
        if let Some(state) = state {
            return Some((409, format!("Cannot '{name}' instance {} while it is in {state}", guest.id)));
        }
        let refused = self.goes_wrong(index, how, MoveGoesWrong::Refused).map(|reason| (400, reason));
        refused.or_else(|| self.goes_wrong(index, how, MoveGoesWrong::Breaks).map(|reason| (500, reason)))
    }

    /// Does this move go wrong in this way? Uses up one of the planned times.
    fn goes_wrong(&mut self, guest: usize, how: Move, way: MoveGoesWrong) -> Option<String> {
        let fault = &mut self.guests[guest].goes_wrong;
        if fault.how != way || fault.times == 0 || fault.only.is_some_and(|only| only != how) {
            return None;
        }
        if fault.times != ALWAYS {
            fault.times -= 1;
        }
        Some(fault.reason.clone())
    }

    fn new_migration(&mut self, guest: usize, kind: MigrationKind, status: MigrationStatus, request: &str) -> usize {
        let uuid = self.uuid();
        let guest = &self.guests[guest];
        self.migrations.push(MigrationRecord {
            number: self.migrations.len() as u64 + 1,
            uuid,
            instance: guest.id.clone(),
            kind,
            status,
            source: guest.host.clone().unwrap_or_default(),
            destination: None,
            wanted: None,
            forced: false,
            request: request.to_owned(),
            created: self.now,
            updated: self.now,
        });
        self.migrations.len() - 1
    }

    pub(super) fn remember_action(&mut self, id: &InstanceId, action: &'static str, request: &str) {
        self.actions.push(ActionRecord {
            request: request.to_owned(),
            instance: id.clone(),
            action,
            started: self.now,
            failure: None,
        });
    }

    /// At the beginning: a tenant's own change of flavour that nobody has confirmed yet.
    pub(super) fn resized_by_tenant(&mut self, guest: usize) {
        let request = self.request_id();
        let migration = self.new_migration(guest, MigrationKind::Resize, MigrationStatus::Finished, &request);
        self.migrations[migration].destination = self.guests[guest].host.clone();
    }

    /// A tenant's own change of flavour, to one of the same size. Nova takes it of what runs or is stopped, and has nothing else to do.
    pub(super) fn request_resize(&mut self, guest: usize) {
        let free = self.guests[guest].task_state.is_none() && matches!(self.guests[guest].vm_state, VmState::Active | VmState::Stopped);
        if !free || self.guests[guest].host.is_none() {
            return;
        }
        self.guests[guest].task_state = Some(TaskState::ResizePrep);
        let request = self.request_id();
        let id = self.guests[guest].id.clone();
        self.remember_action(&id, "resize", &request);
        let migration = self.new_migration(guest, MigrationKind::Resize, MigrationStatus::Accepted, &request);
        self.after(self.plan.latencies.schedule, Due::Decide(migration));
    }

    /// A live migration away from `node` of which nothing comes.
    pub(super) fn orphaned(&mut self, guest: usize, node: usize) {
        let request = self.request_id();
        let migration = self.new_migration(guest, MigrationKind::Live, MigrationStatus::Accepted, &request);
        self.migrations[migration].source = self.nodes[node].host.clone();
        self.orphans.insert(migration);
    }

    fn set_status(&mut self, migration: usize, status: MigrationStatus) {
        self.migrations[migration].status = status;
        self.migrations[migration].updated = self.now;
    }

    fn guest_of_migration(&self, migration: usize) -> Option<usize> {
        self.guest(&self.migrations[migration].instance)
    }

    /// The guest of a migration that is not over; None where there is nothing left to do.
    fn under_way(&self, migration: usize) -> Option<usize> {
        if self.migrations[migration].status.is_over() { None } else { self.guest_of_migration(migration) }
    }

    /// Nova's conductor has come round to it: checks, and the choice of a host.
    pub(super) fn decide(&mut self, migration: usize) {
        let Some(guest) = self.under_way(migration) else { return };
        let how = match self.migrations[migration].kind {
            MigrationKind::Live => Move::Live,
            MigrationKind::Cold | MigrationKind::Resize | MigrationKind::Evacuation => Move::Cold,
        };
        let source = self.migrations[migration].source.clone();
        let up = self.node_of_host(&source).is_some_and(|node| self.nodes[node].is_up(self.now, &self.plan.latencies));
        if !up {
            let reason = format!("Compute service of {source} is unavailable at this time.");
            return self.fail(migration, MigrationStatus::Error, &reason);
        }
        if how == Move::Live && self.guests[guest].has_device() && !self.plan.devices_move_live {
            return self.fail(migration, MigrationStatus::Error, NOT_LIVE_MIGRATABLE);
        }
        if let Some(reason) = self.goes_wrong(guest, how, MoveGoesWrong::PreCheck) {
            return self.fail(migration, MigrationStatus::Error, &reason);
        }
        let (vcpus, memory_mb) = (self.guests[guest].vcpus, self.guests[guest].memory_mb);
        let wanted = self.migrations[migration].wanted.clone();
        let forced = wanted.clone().filter(|_| self.migrations[migration].forced);
        if let Some(reason) = forced.as_deref().and_then(|host| self.why_not_forced(guest, host)) {
            return self.fail(migration, MigrationStatus::Error, &reason);
        }
        let Some(destination) = forced.or_else(|| self.schedule(vcpus, memory_mb, Some(guest), Some(&source), wanted.as_deref())) else {
            return self.fail(migration, MigrationStatus::Error, NO_VALID_HOST);
        };
        // Nova writes the destination down when that has answered.
        if !self.node_of_host(&destination).is_some_and(|node| self.nodes[node].runs()) {
            return self.nobody_answers(migration, how, destination);
        }
        self.migrations[migration].destination = Some(destination);
        self.chosen.insert(migration, self.now);
        match how {
            Move::Live => {
                self.set_status(migration, MigrationStatus::Queued);
                self.start_queued(&source);
            }
            Move::Cold => {
                self.begin_cold(migration, guest);
                if self.goes_wrong(guest, how, MoveGoesWrong::Hangs).is_none() {
                    self.after(self.plan.latencies.cold_migration / COLD_STAGES, Due::ColdNext(migration));
                }
            }
        }
    }

    fn begin_cold(&mut self, migration: usize, guest: usize) {
        self.set_status(migration, MigrationStatus::PreMigrating);
        self.guests[guest].before_resize = self.guests[guest].vm_state;
    }

    /// The host that was chosen only seems to be up: nothing lands there. Of a live migration it is asked first, and after Nova's
    /// time limit another one is looked for; a cold one lies in the message queue until the host is back.
    fn nobody_answers(&mut self, migration: usize, how: Move, host: String) {
        match how {
            Move::Live => self.after(self.plan.latencies.rpc_timeout, Due::Decide(migration)),
            Move::Cold => {
                if let Some(guest) = self.guest_of_migration(migration) {
                    self.begin_cold(migration, guest);
                }
                self.unread.push((migration, host));
            }
        }
    }

    /// What the message queue has kept for a host is delivered when its compute service is back.
    pub(super) fn deliver(&mut self, host: &str) {
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.unread).into_iter().partition(|(_, destination)| destination == host);
        self.unread = elsewhere;
        for (migration, host) in here {
            self.migrations[migration].destination = Some(host);
            self.chosen.insert(migration, self.now);
            self.after(self.plan.latencies.cold_migration / COLD_STAGES, Due::ColdNext(migration));
        }
    }

    /// A host sends only so many live migrations at a time; the others stay `queued`.
    fn start_queued(&mut self, source: &str) {
        loop {
            let from_here =
                |migration: &&MigrationRecord| migration.source == source && migration.kind == MigrationKind::Live;
            let running =
                self.migrations.iter().filter(from_here).filter(|m| m.status == MigrationStatus::Running).count();
            let queued = self.migrations.iter().position(|m| from_here(&m) && m.status == MigrationStatus::Queued);
            let Some(next) = queued.filter(|_| running < self.plan.latencies.live_at_once.max(1)) else { return };
            let Some(guest) = self.guest_of_migration(next) else { return };
            self.set_status(next, MigrationStatus::Running);
            let takes = self.plan.latencies.live_migration;
            let hangs = [MoveGoesWrong::Hangs, MoveGoesWrong::HangsAndIsNotStopped];
            if hangs.into_iter().any(|way| self.goes_wrong(guest, Move::Live, way).is_some()) {
                continue;
            }
            if self.goes_wrong(guest, Move::Live, MoveGoesWrong::IsForgotten).is_some() {
                self.guests[guest].task_state = None;
                self.orphans.insert(next);
                continue;
            }
            let midway = &self.guests[guest].goes_wrong;
            let fails = midway.how == MoveGoesWrong::Midway
                && midway.times > 0
                && midway.only.is_none_or(|only| only == Move::Live);
            if fails {
                self.after(takes / 2, Due::LiveFails(next));
            } else {
                self.after(takes, Due::LiveArrives(next));
            }
        }
    }

    pub(super) fn live_fails_midway(&mut self, migration: usize) {
        let Some(guest) = self.under_way(migration) else { return };
        let reason = self.goes_wrong(guest, Move::Live, MoveGoesWrong::Midway).unwrap_or_default();
        self.fail(migration, MigrationStatus::Failed, &reason);
    }

    /// The instance runs on its new host; its migration is not over yet.
    pub(super) fn live_arrives(&mut self, migration: usize) {
        let Some(guest) = self.under_way(migration) else { return };
        self.moves_to_destination(guest, migration);
        self.guests[guest].task_state = None;
        self.after(self.plan.latencies.live_settle, Due::LiveSettles(migration));
    }

    pub(super) fn live_settles(&mut self, migration: usize) {
        if self.under_way(migration).is_some() {
            self.end(migration, MigrationStatus::Completed, None);
        }
    }

    pub(super) fn cold_next(&mut self, migration: usize) {
        let Some(guest) = self.under_way(migration) else { return };
        let next = match self.guests[guest].task_state {
            Some(TaskState::ResizePrep) => {
                if let Some(reason) = self.goes_wrong(guest, Move::Cold, MoveGoesWrong::Midway) {
                    self.guests[guest].vm_state = VmState::Error;
                    self.guests[guest].fault = Some(reason.clone());
                    return self.fail(migration, MigrationStatus::Error, &reason);
                }
                self.set_status(migration, MigrationStatus::Migrating);
                TaskState::ResizeMigrating
            }
            Some(TaskState::ResizeMigrating) => {
                self.set_status(migration, MigrationStatus::PostMigrating);
                self.moves_to_destination(guest, migration);
                TaskState::ResizeMigrated
            }
            Some(TaskState::ResizeMigrated) => TaskState::ResizeFinish,
            Some(
                TaskState::ResizeFinish
                | TaskState::Migrating
                | TaskState::Scheduling
                | TaskState::Spawning
                | TaskState::PoweringOff
                | TaskState::PoweringOn
                | TaskState::Deleting,
            )
            | None => {
                self.guests[guest].vm_state = VmState::Resized;
                self.guests[guest].task_state = None;
                return self.set_status(migration, MigrationStatus::Finished);
            }
        };
        self.guests[guest].task_state = Some(next);
        self.after(self.plan.latencies.cold_migration / COLD_STAGES, Due::ColdNext(migration));
    }

    /// Nova stops what waits in line or is being copied, nothing else; that takes it a moment, in which the instance may still arrive.
    pub(super) fn request_stop(&mut self, id: &InstanceId, number: u64) -> Result<(), Trouble> {
        let found = self.migrations.iter().position(|record| record.instance == *id && record.number == number).ok_or(Trouble::NotFound)?;
        let status = self.migrations[found].status;
        let can_be = self.migrations[found].kind == MigrationKind::Live && matches!(status, MigrationStatus::Queued | MigrationStatus::Running);
        let guest = self.guest(id).ok_or(Trouble::NotFound)?;
        if self.guests[guest].goes_wrong.how == MoveGoesWrong::HangsAndIsNotStopped {
            let reason = "Policy doesn't allow os_compute_api:servers:migrations:delete to be performed.".to_owned();
            self.record(Happened::StopRequested { instance: id.0.clone(), refused: Some(reason.clone()) });
            return Err(Trouble::Refused { status: 403, reason });
        }
        let refused = (!can_be).then(|| format!("Instance {id} in migration state {}: cannot abort live migration {number}.", status.as_str()));
        self.record(Happened::StopRequested { instance: id.0.clone(), refused: refused.clone() });
        if let Some(reason) = refused {
            return Err(Trouble::Refused { status: 409, reason });
        }
        self.after(self.plan.latencies.schedule, Due::Stopped(found));
        self.answer(Call::StopMove, ())
    }

    pub(super) fn stopped(&mut self, migration: usize) {
        let Some(guest) = self.under_way(migration) else { return };
        // It has arrived in between.
        if self.migrations[migration].destination != self.guests[guest].host {
            self.guests[guest].task_state = None;
            self.end(migration, MigrationStatus::Cancelled, None);
        }
    }

    fn moves_to_destination(&mut self, guest: usize, migration: usize) {
        let Some(to) = self.migrations[migration].destination.clone() else { return };
        let from = self.guests[guest].host.replace(to.clone()).unwrap_or_default();
        let (from, to) = (self.node_name(&from), self.node_name(&to));
        self.record(Happened::InstanceMoved { instance: self.guests[guest].id.0.clone(), from, to });
    }

    /// Confirms whatever the instance is `resized` by.
    pub(super) fn request_confirm(&mut self, id: &InstanceId) -> Result<(), Trouble> {
        let guest = self.guest(id).ok_or(Trouble::NotFound)?;
        let migration =
            self.migrations.iter().rposition(|m| m.instance == *id && m.status == MigrationStatus::Finished);
        let confirmable = migration.filter(|_| self.guests[guest].vm_state == VmState::Resized);
        self.record(Happened::ConfirmRequested {
            instance: id.0.clone(),
            of: confirmable.map(|migration| self.migrations[migration].kind),
            refused: if confirmable.is_none() { Some(NOT_RESIZED.to_owned()) } else { None },
        });
        let Some(migration) = confirmable else { return Err(Trouble::refused(400, NOT_RESIZED)) };
        let request = self.request_id();
        self.remember_action(id, "confirmResize", &request);
        self.set_status(migration, MigrationStatus::Confirming);
        self.after(self.plan.latencies.confirm, Due::Confirmed(migration));
        self.answer(Call::Confirm, ())
    }

    pub(super) fn confirmed(&mut self, migration: usize) {
        let Some(guest) = self.under_way(migration) else { return };
        if self.guests[guest].vm_state == VmState::Resized {
            let stays_off = self.goes_wrong(guest, Move::Cold, MoveGoesWrong::StaysOff).is_some();
            self.guests[guest].vm_state = if stays_off { VmState::Stopped } else { self.guests[guest].before_resize };
        }
        self.end(migration, MigrationStatus::Confirmed, None);
    }

    /// The instance stays where it is; only the action of the request says why.
    fn fail(&mut self, migration: usize, status: MigrationStatus, reason: &str) {
        if let Some(guest) = self.guest_of_migration(migration) {
            self.guests[guest].task_state = None;
        }
        let request = self.migrations[migration].request.clone();
        self.action_fails(&request, reason);
        self.end(migration, status, Some(reason.to_owned()));
    }

    pub(super) fn action_fails(&mut self, request: &str, reason: &str) {
        if let Some(action) = self.actions.iter_mut().find(|action| action.request == request) {
            action.failure = Some(reason.to_owned());
        }
    }

    fn end(&mut self, migration: usize, status: MigrationStatus, reason: Option<String>) {
        self.set_status(migration, status);
        let record = self.migrations[migration].clone();
        self.record(Happened::MigrationEnded {
            instance: record.instance.0,
            request: record.request,
            from: self.node_name(&record.source),
            to: record.destination.map(|host| self.node_name(&host)),
            status: status.as_str().to_owned(),
            reason,
        });
        self.start_queued(&record.source);
    }

    pub(super) fn end_moves_of(&mut self, id: &InstanceId, reason: &str) {
        for migration in 0..self.migrations.len() {
            if self.migrations[migration].instance == *id && !self.migrations[migration].status.is_over() {
                self.fail(migration, MigrationStatus::Error, reason);
            }
        }
    }

    /// `host` has gone down: what was on its way from or to it fails. What awaits its confirmation elsewhere stays.
    pub(super) fn moves_lose_host(&mut self, host: &str) {
        for migration in 0..self.migrations.len() {
            let record = &self.migrations[migration];
            let concerned = record.source == host || record.destination.as_deref() == Some(host);
            if !concerned || record.status.is_over() || record.status == MigrationStatus::Finished {
                continue;
            }
            let reason = format!("Compute host {host} went away during the migration.");
            if let Some(guest) = self.guest_of_migration(migration)
                && record.kind == MigrationKind::Cold
                && record.status != MigrationStatus::Confirming
            {
                self.guests[guest].vm_state = VmState::Error;
                self.guests[guest].fault = Some(reason.clone());
            }
            self.fail(migration, MigrationStatus::Failed, &reason);
        }
    }
}
