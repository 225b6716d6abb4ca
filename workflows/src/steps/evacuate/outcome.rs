//! What becomes of the moves that were asked for. The instance's host is the truth, migrations are hints.

use std::time::Duration;

use tracing::debug;

use super::class::busy;
use super::moves::{MoveStage, Moving, Told};
use super::Evacuation;
use crate::engine::StepError;
use crate::ports::{InstanceId, Migration, MigrationKind, MigrationState, Move};
use crate::steps::netboot::LOOK_IS_GOOD_FOR;

/// After an answer came, or was given up, Nova shows a migration record within this time if it took the request.
// Observed: about 1 s; ten times that for a loaded conductor.
const RECORD_APPEARS: Duration = Duration::from_secs(10);
/// After a move was about to be asked for by a worker of which nothing more is known, the same.
// It asks for as long as its look is good for, and not later.
const RECORD_APPEARS_IF_ASKED: Duration = LOOK_IS_GOOD_FOR.saturating_add(RECORD_APPEARS);
/// How far a live migration is is told in steps of so many percent: each step is two entries of the journal.
const PROGRESS_STEP: u32 = 20;
/// Nova's word for a live migration that somebody has stopped.
const STOPPED: &str = "cancelled";

/// What a reason has in it that says what the instance is.
const RESIZED: &str = "is `resized`";
const IN_ERROR: &str = "is in error";
const STILL_STOPPED: &str = "was running, was stopped to be moved, and is still stopped";

/// Does `line` say that the instance is `vm_state`?
pub(super) fn tells(line: &str, vm_state: &str) -> bool {
    let says = match vm_state {
        "resized" => RESIZED,
        "error" => IN_ERROR,
        "stopped" => STILL_STOPPED,
        _ => return false,
    };
    line.contains(says)
}

/// What became of a move.
pub(super) enum Became {
    Is(MoveStage),
    /// It is on another host, and not as it was: that counts as failed, and is no word against the host, which has taken it.
    Harmed { reason: String },
}

impl Evacuation<'_, '_> {
    /// Looks what became of every move that is under way, and of instances that have left although their move had failed:
    /// somebody else has moved or deleted them, or they ended in error on their new host.
    pub(super) async fn follow_up(&mut self) -> Result<(), StepError> {
        let open = self.moves.instances.iter().filter(|(id, moving)| match moving.stage {
            MoveStage::Intended | MoveStage::Accepted { .. } => true,
            MoveStage::Failed { .. } => !self.is_here(id),
            MoveStage::Landed { .. } | MoveStage::Gone => false,
        });
        let open: Vec<(InstanceId, Moving)> = open.map(|(id, moving)| (id.clone(), moving.clone())).collect();
        for (id, moving) in open {
            let Some(became) = self.outcome(&id, &moving).await? else { continue };
            let (stage, is_taken) = match became {
                Became::Is(stage) => (stage, false),
                Became::Harmed { reason } => (MoveStage::Failed { reason }, true),
            };
            if stage != moving.stage {
                let failed = matches!(stage, MoveStage::Failed { .. });
                self.set(&id, stage);
                match moving.stage {
                    MoveStage::Accepted { .. } if failed && !is_taken && moving.stop.is_none() => self.remember_not_taken(&id),
                    MoveStage::Intended if failed && self.our_migration(&id, &moving).await?.is_none() => self.forget_unheard(&id),
                    MoveStage::Intended | MoveStage::Accepted { .. } | MoveStage::Landed { .. } | MoveStage::Gone | MoveStage::Failed { .. } => {}
                }
            }
        }
        Ok(())
    }

    /// How far those are that are on their way. Nobody waits for that: where Nova does not say, nothing is told.
    pub(super) async fn see_progress(&mut self) {
        for (id, moving) in &mut self.moves.instances {
            if !moving.is_under_way() || moving.how != Move::Live {
                continue;
            }
            match self.cx.ports.instances.progress(id).await {
                Ok(Some(seen)) => {
                    let percent = seen.percent() / PROGRESS_STEP * PROGRESS_STEP;
                    if percent > moving.progress.map_or(0, |told| told.percent) {
                        moving.progress = Some(Told { percent, total_bytes: seen.total_bytes, at: self.cx.now() });
                        self.changed = true;
                    }
                }
                Ok(None) => {}
                Err(error) => debug!(instance = %id, %error, "it is not known how far it is"),
            }
        }
    }

    /// One phrase for each instance that is on its way, where Nova has told how far.
    pub(super) fn progress(&self) -> String {
        let moving = self.moves.instances.values().filter(|moving| moving.is_under_way());
        let told = moving.filter_map(|moving| {
            let Told { percent, total_bytes, .. } = moving.progress?;
            Some(format!("; {}: {percent} % of {} MiB", moving.name, total_bytes >> 20))
        });
        told.collect()
    }

    /// The host that was named for it did not take it: perhaps it takes no other either.
    pub(super) fn remember_not_taken(&mut self, id: &InstanceId) {
        if let Some(host) = self.moves.instances.get(id).and_then(|moving| moving.to.clone()) {
            *self.moves.not_taken_by.entry(host).or_default() += 1;
        }
    }

    /// Nova never heard of its newest try: that is no word against the host that was named, and counts as a try like any other.
    pub(super) fn forget_unheard(&mut self, id: &InstanceId) {
        if let Some(moving) = self.moves.instances.get_mut(id) {
            // One that named none is counted already.
            moving.tries += u32::from(moving.to.take().is_some());
            moving.unheard = true;
        }
    }

    /// What became of one move; None while it is under way.
    pub(super) async fn outcome(&mut self, id: &InstanceId, moving: &Moving) -> Result<Option<Became>, StepError> {
        let is = |stage| Ok(Some(Became::Is(stage)));
        let instances = self.cx.ports.instances.clone();
        let Some(instance) = instances.get(id).await? else { return is(MoveStage::Gone) };
        self.seen.insert(id.clone(), instance.vm_state.clone());
        if busy(&instance).is_some() {
            return Ok(None);
        }
        let host = instance.host.clone().unwrap_or_default();
        let ours = self.our_migration(id, moving).await?;
        if instance.vm_state == "resized" {
            // A tenant's resize is never confirmed by us.
            match ours {
                Some(ours) if ours.state == MigrationState::AwaitsConfirmation => {
                    self.cx.guard().await?;
                    instances.confirm(id).await?;
                }
                // A host that went down while it was being confirmed.
                Some(ours) if ours.state == MigrationState::Failed => {
                    let reason = format!("{RESIZED} on {host}, and its migration ended as `{}`: confirm or revert it", ours.status);
                    return Ok(Some(Became::Harmed { reason }));
                }
                Some(_) | None => {}
            }
            return Ok(None);
        }
        if host == self.order.node.as_str() {
            return Ok(self.still_here(id, moving, ours).await?.map(Became::Is));
        }
        // It runs elsewhere some seconds before its migration is over; rebooting the source in between would harm it.
        if self.scene.moving.iter().any(|moving| moving.instance == *id) {
            return Ok(None);
        }
        if instance.vm_state == "error" {
            let reason = instance.fault.unwrap_or_else(|| "Nova gives no reason".to_owned());
            return is(MoveStage::Failed { reason: format!("{IN_ERROR} on {host}: {reason}") });
        }
        // Nova starts again what it has stopped for a cold move. A mere wish for another try, of whoever was not asked, is no word on it.
        let is_known = self.moves.is_known(id, moving, &instance.vm_state);
        if moving.how == Move::Cold && moving.found == "active" && instance.vm_state == "stopped" && !is_known {
            let reason = format!("{STILL_STOPPED} on {host}: start it, or ask its owner");
            return Ok(Some(Became::Harmed { reason }));
        }
        is(MoveStage::Landed { host })
    }

    /// It is on the node, and nothing happens to it: has its move failed, or was it never asked for?
    pub(super) async fn still_here(&self, id: &InstanceId, moving: &Moving, ours: Option<Migration>) -> Result<Option<MoveStage>, StepError> {
        let (since, appears) = moving.heard.map_or((moving.asked, RECORD_APPEARS_IF_ASKED), |heard| (heard, RECORD_APPEARS));
        let may_appear = self.cx.now().since(since) < appears;
        let why = match (&moving.stage, ours.map(|ours| (ours.state, ours.status))) {
            (_, Some((MigrationState::InProgress | MigrationState::AwaitsConfirmation, _))) => return Ok(None),
            (_, Some((_, status))) if moving.stop.is_some() && status == STOPPED => {
                format!("was stopped, as an operator wanted: it had been moving since {}", moving.asked)
            }
            (MoveStage::Accepted { request }, ended) => {
                let told = self.cx.ports.instances.why_failed(id, request).await?;
                match (told, ended) {
                    (Some(reason), _) => reason,
                    (None, Some((_, status))) => format!("its migration ended as `{status}`, and Nova gives no reason"),
                    // Nova has accepted it and has not begun yet.
                    (None, None) if may_appear => return Ok(None),
                    (None, None) => "Nova accepted the migration and never began it".to_owned(),
                }
            }
            (_, Some((_, status))) => format!("its migration ended as `{status}`"),
            (_, None) if may_appear => return Ok(None),
            (_, None) => match &moving.lost {
                Some(seen) => format!("asked for its move: {seen}; Nova has no migration of it"),
                // Whoever was about to ask is gone.
                None => "Nova was never asked, or its answer was lost".to_owned(),
            },
        };
        Ok(Some(MoveStage::Failed { reason: why }))
    }

    /// The newest migration of the instance away from the node that can be the one we asked for.
    pub(super) async fn our_migration(&self, id: &InstanceId, moving: &Moving) -> Result<Option<Migration>, StepError> {
        let kind = match moving.how {
            Move::Live => MigrationKind::Live,
            Move::Cold => MigrationKind::Cold,
        };
        let migrations = self.cx.ports.instances.migrations(id).await?;
        Ok(migrations.into_iter().find(|migration| {
            migration.kind == kind
                && migration.source.as_deref().is_none_or(|source| source == self.order.node.as_str())
                && !moving.before.contains(&migration.uuid)
                && !self.is_disregarded(migration)
        }))
    }
}
