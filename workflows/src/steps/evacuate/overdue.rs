//! Moves that do not end: an instance that writes its memory faster than it is copied keeps a live migration going for days, and Nova lets it. Such a
//! one holds up no other, and becomes a question, with an answer that stops it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tracing::debug;

use super::moves::Moving;
use super::questions::Stuck;
use super::Evacuation;
use crate::clock::Timestamp;
use crate::engine::StepError;
use crate::ports::{InstanceId, MigrationState, Move, PortErrorKind};

/// A live migration may take so long, and longer by what is to be copied. Where Nova tells how far it is, each step that it has come on begins that anew.
// Nova itself gives up after 800 s for each GiB, which is a day for a guest of a GPU node, and by default not even that: it lets it run on.
const LIVE_TAKES: Duration = Duration::from_secs(15 * 60);
/// MiB that are copied in a second at least: half of what a network of 1 Gbit/s carries.
const COPIED_MIN: u64 = 64;
/// A cold migration may take this part of the time that there is for the whole evacuation: how large its disks are is not known here, and it can't
/// be stopped.
const COLD_TAKES: u32 = 2;
/// Nova's word for a live migration that waits until its host has sent others away.
const QUEUED: &str = "queued";

/// A move that takes too long.
pub(super) struct Overdue {
    line: String,
    /// It is being carried out, and nobody waits behind it for want of us.
    is_carried_out: bool,
}

impl Evacuation<'_, '_> {
    /// Since when this move is waited for: it, or what was last seen of it, or an operator's word.
    fn waited_since(&self, moving: &Moving) -> Timestamp {
        let known = moving.progress.map_or(moving.asked, |told| told.at.max(moving.asked));
        self.cx.tried_since().map_or(known, |tried| tried.max(known))
    }

    /// How long it may take from then on.
    fn may_take(&self, id: &InstanceId, moving: &Moving) -> Duration {
        if moving.how == Move::Cold {
            return Duration::from_millis(self.order.rules.evacuate_deadline_ms) / COLD_TAKES;
        }
        let memory = self.scene.on_node.iter().find(|instance| instance.id == *id).map_or(0, |instance| instance.takes.memory_mb);
        let told = moving.progress.map_or(0, |told| told.total_bytes >> 20);
        LIVE_TAKES + Duration::from_secs(memory.max(told) / COPIED_MIN)
    }

    /// Finds the moves that take too long.
    pub(super) async fn find_overdue(&mut self) -> Result<(), StepError> {
        let now = self.cx.now();
        let mut overdue = BTreeMap::new();
        for (id, moving) in self.moves.instances.iter().filter(|(_, moving)| moving.is_under_way()) {
            if now.since(self.waited_since(moving)) < self.may_take(id, moving) {
                continue;
            }
            let how = match moving.how {
                Move::Live => "live",
                Move::Cold => "cold",
            };
            let status = self.our_migration(id, moving).await?.map(|ours| ours.status);
            let called = status.as_ref().map_or("Nova has no record of it".to_owned(), |status| format!("`{status}`"));
            let mut line = format!("{} ({id}): its {how} migration was asked for at {}, and has not ended ({called})", moving.name, moving.asked);
            if let Some(told) = moving.progress {
                line = format!("{line}, {} % of {} MiB since {}", told.percent, told.total_bytes >> 20, told.at);
            }
            if let Some(stop) = moving.stop {
                line = format!("{line}; it was to be stopped at {stop}");
            }
            overdue.insert(id.clone(), Overdue { line, is_carried_out: status.is_some_and(|status| status != QUEUED) });
        }
        self.overdue = overdue;
        Ok(())
    }

    /// How many of the moves that go on at once still count: Nova begins no more of those that it has `queued`, but one that is carried out for ever
    /// must not hold up the others.
    pub(super) fn in_flight(&self) -> usize {
        let counts = |(id, moving): &(&InstanceId, &Moving)| moving.is_under_way() && !self.overdue.get(*id).is_some_and(|overdue| overdue.is_carried_out);
        self.moves.instances.iter().filter(counts).count()
    }

    /// Is it under way, and likely to end by itself?
    pub(super) fn is_waited_for(&self, id: &InstanceId) -> bool {
        self.moves.instances.get(id).is_some_and(Moving::is_under_way) && !self.overdue.contains_key(id)
    }

    /// Is anything under way that is likely to end by itself?
    pub(super) fn waits_for_moves(&self) -> bool {
        self.moves.instances.keys().any(|id| self.is_waited_for(id))
    }

    /// Has Nova stop what an operator wants to be stopped, for as long as that takes.
    pub(super) async fn stop_moves(&self) -> Result<(), StepError> {
        let wanted = |(_, moving): &(&InstanceId, &Moving)| moving.stop.is_some() && moving.is_under_way() && moving.how == Move::Live;
        for (id, moving) in self.moves.instances.iter().filter(wanted) {
            let ours = self.our_migration(id, moving).await?.filter(|ours| ours.state == MigrationState::InProgress);
            let Some(ours) = ours else { continue };
            self.cx.guard().await?;
            match self.cx.ports.instances.stop_live(id, &ours.uuid).await {
                Ok(()) => {}
                Err(error) => match error.kind {
                    // It ends by itself, or is asked about again.
                    PortErrorKind::Refused { .. } | PortErrorKind::NotFound | PortErrorKind::OutcomeUnknown => {
                        debug!(instance = %id, %error, "its live migration was not stopped");
                    }
                    PortErrorKind::Unavailable | PortErrorKind::Denied { .. } | PortErrorKind::Garbled { .. } => return Err(error.into()),
                },
            }
        }
        Ok(())
    }

    /// The live migrations that take too long: those that are carried out, as what waits in line behind them goes on then; or else those that wait behind
    /// somebody else's.
    fn to_be_stopped(&self) -> BTreeSet<InstanceId> {
        let live = |id: &&InstanceId| self.moves.instances.get(*id).is_some_and(|moving| moving.how == Move::Live);
        let of = |is_carried_out: bool| {
            let those = self.overdue.iter().filter(move |(_, overdue)| overdue.is_carried_out == is_carried_out);
            those.map(|(id, _)| id).filter(live).cloned().collect::<BTreeSet<_>>()
        };
        Some(of(true)).filter(|running| !running.is_empty()).unwrap_or_else(|| of(false))
    }

    /// What is to be asked, if nothing of what is left goes on by itself. Whom it names is written down.
    pub(super) async fn stuck_for_good(&mut self, undoing: bool) -> Result<Option<Stuck>, StepError> {
        let failed = if undoing { Vec::new() } else { self.stuck() };
        if self.waits_for_moves() || failed.is_empty() && self.overdue.is_empty() {
            return Ok(None);
        }
        let records = if undoing { Vec::new() } else { self.records.iter().cloned().collect() };
        let stops = self.to_be_stopped();
        let can_be_stopped = !stops.is_empty();
        let endless = self.overdue.iter().map(|(id, overdue)| (id.clone(), overdue.line.clone()));
        let (move_on, all) = (failed.is_empty(), failed.into_iter().chain(endless));
        let (ids, lines): (Vec<InstanceId>, Vec<String>) = all.unzip();
        self.names(ids.into_iter().collect(), stops, undoing).await?;
        Ok(Some(Stuck { lines, can_be_stopped, records, move_on }))
    }
}
