//! Who can't be asked to move just now, and for how long that is waited out before it is a matter for a person.

use std::time::Duration;

use super::class::busy;
use super::moves::Moving;
use super::Evacuation;
use crate::clock::Timestamp;
use crate::engine::StepError;
use crate::ports::{Instance, InstanceId, Migration, MigrationKind, MigrationState};

/// An instance that is busy is waited for so long before it becomes a question: most are being built, rebooted or
/// stopped, which takes seconds. The snapshot of a large disk takes minutes.
const BUSY_MAX: Duration = Duration::from_secs(15 * 60);

impl Evacuation<'_, '_> {
    /// Instances that have left by a move of somebody else's, which is not confirmed yet: Nova lists them on their new host only, and keeps their old disk
    /// here until then, for ever if nobody says anything. And those that live elsewhere, quietly, with a migration from here or to here that never ended:
    /// Nova keeps such records where moves have crossed, or their host went away in between.
    pub(super) async fn find_unconfirmed(&mut self) -> Result<(), StepError> {
        for migration in self.scene.moving.clone() {
            let id = &migration.instance;
            let ours = self.moves.instances.get(id).is_some_and(Moving::is_under_way);
            // One that was on the node at this look, as one that has come here is, is told about there.
            if ours || self.is_here(id) {
                continue;
            }
            let Some(instance) = self.cx.ports.instances.get(id).await? else { continue };
            if migration.state != MigrationState::AwaitsConfirmation {
                if busy(&instance).is_none() && instance.vm_state != "resized" {
                    self.wait_for_record(&instance, &[&migration]);
                }
                continue;
            }
            let what = match migration.kind {
                MigrationKind::Resize => "a resize",
                MigrationKind::Live | MigrationKind::Cold | MigrationKind::Evacuation => "somebody's cold migration",
            };
            let line = format!(
                "{} ({id}) has left by {what} that waits to be confirmed or reverted: until then its old disk is on {}",
                instance.name, self.order.node
            );
            self.blocked.push((id.clone(), line));
        }
        self.forget_busy();
        Ok(())
    }

    /// Waits for migrations to end that are not over, though nothing happens to the instance. Some never do.
    pub(super) fn wait_for_record(&mut self, instance: &Instance, records: &[&Migration]) {
        let told = |record: &&Migration| format!("`{}` since {} (migration {})", record.status, record.created, record.uuid);
        let told: Vec<String> = records.iter().map(told).collect();
        let host = instance.host.as_deref().unwrap_or("no host");
        let why = format!("is on {host} and nothing happens to it, and Nova has it as still being moved: {}", told.join(", "));
        if self.wait_for(instance, &why) {
            self.records.extend(records.iter().map(|record| (record.uuid.clone(), record.status.clone())));
        }
    }

    /// Notes that it is busy; one that has been for too long is a matter for a person, and true is returned.
    pub(super) fn wait_for(&mut self, instance: &Instance, why: &str) -> bool {
        let since = self.waits_since(instance);
        let since = self.cx.patient_since().map_or(since, |tried| since.max(tried));
        let is_too_long = self.cx.now().since(since) >= BUSY_MAX;
        if is_too_long {
            self.blocked.push((instance.id.clone(), format!("{} ({}) {why}, since {since}", instance.name, instance.id)));
        }
        is_too_long
    }

    /// Notes that it is its owner's turn; one who has not come for too long is a matter for an operator, whose answer does not begin that anew.
    pub(super) fn wait_for_owner(&mut self, instance: &Instance, why: &str) {
        let now = self.cx.now();
        // What it is busy with meanwhile has a time of its own: perhaps its owner has come.
        self.changed |= !self.moves.owners.contains_key(&instance.id);
        let since = *self.moves.owners.entry(instance.id.clone()).or_insert(now);
        if now.since(since) >= Duration::from_millis(self.order.rules.owner_wait_ms) {
            let line = format!("{} ({}) {why}; its owner has been waited for since {since}", instance.name, instance.id);
            self.blocked.push((instance.id.clone(), line));
        } else {
            self.waited_for.insert(instance.id.clone());
            self.owners.insert(instance.id.clone());
        }
    }

    /// Since when it is waited for: from now on, if it has not been before.
    pub(super) fn waits_since(&mut self, instance: &Instance) -> Timestamp {
        let now = self.cx.now();
        self.waited_for.insert(instance.id.clone());
        self.changed |= !self.moves.busy.contains_key(&instance.id);
        *self.moves.busy.entry(instance.id.clone()).or_insert(now)
    }

    /// Will others leave without anybody's help, once they are no longer busy, or another of their group has arrived? (None of it lasts: who is
    /// busy for too long is stuck.) While a question is open nothing is moved.
    pub(super) fn waits_for_others(&self) -> bool {
        // An owner may take hours: what an operator has to know is asked meanwhile.
        let waits_for = |id: &InstanceId| !self.is_blocked(id) && (!self.owners.contains(id) || self.stuck().is_empty());
        self.apart > 0 || self.waited_for.iter().any(waits_for)
    }

    pub(super) fn is_blocked(&self, id: &InstanceId) -> bool {
        self.blocked.iter().any(|(blocked, _)| blocked == id)
    }

    /// Those that nobody waits for any more.
    pub(super) fn forget_busy(&mut self) {
        let before = self.moves.busy.len();
        // Whose owner has the turn is not busy any more: what it does next has a time of its own.
        self.moves.busy.retain(|id, _| self.waited_for.contains(id) && !self.owners.contains(id));
        self.changed |= self.moves.busy.len() != before;
    }
}
