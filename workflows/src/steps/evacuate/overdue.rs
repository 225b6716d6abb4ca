//! Moves that do not end: an instance that writes its memory faster than it is copied keeps a live migration going for days, and Nova lets it. Such a
//! one holds up no other, and becomes a question, with an answer that stops it.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::warn;

use super::class::busy;
use super::moves::Moving;
use super::questions::{Stuck, question, question_endless};
use super::Evacuation;
use crate::clock::Timestamp;
use crate::engine::{Question, StepError};
use crate::ports::{InstanceId, MigrationState, Move};

/// A live migration may take so long, and longer by what is to be copied. Where Nova tells how far it is, each step that it has come on begins that anew.
// Nova itself gives up after 800 s for each GiB, which is a day for a guest of a GPU node, and by default not even that: it lets it run on.
const LIVE_TAKES: Duration = Duration::from_secs(15 * 60);
/// MiB that are copied in a second at least: half of what a network of 1 Gbit/s carries.
const COPIED_MIN: u64 = 64;
/// A move may take this part of the time that there is for the whole evacuation at most: the question about it comes before that about the step. A cold one may
/// take all of that, as it is not known here how large its disks are.
const OF_THE_WHOLE: u32 = 2;
/// Nova's word for a live migration that waits until its host has sent others away.
const QUEUED: &str = "queued";

/// A move that takes too long.
pub(super) struct Overdue {
    line: String,
    /// It is being carried out, and nobody waits behind it for want of us.
    is_carried_out: bool,
    /// Its record, if Nova has one.
    migration: Option<String>,
}

impl Evacuation<'_, '_> {
    /// Since when this move is waited for: it, or what was last seen of it, or an operator's word.
    fn waited_since(&self, moving: &Moving) -> Timestamp {
        let known = moving.progress.map_or(moving.asked, |told| told.at.max(moving.asked));
        self.cx.patient_since().map_or(known, |tried| tried.max(known))
    }

    /// How long it may take from then on.
    fn may_take(&self, id: &InstanceId, moving: &Moving) -> Duration {
        let longest = Duration::from_millis(self.order.rules.evacuate_deadline_ms) / OF_THE_WHOLE;
        if moving.how == Move::Cold {
            return longest;
        }
        let memory = self.scene.on_node.iter().find(|instance| instance.id == *id).map_or(0, |instance| instance.takes.memory_mb);
        let told = moving.progress.map_or(0, |told| told.total_bytes >> 20);
        longest.min(LIVE_TAKES + Duration::from_secs(memory.max(told) / COPIED_MIN))
    }

    /// Finds the moves that take too long; past the deadline of the step, that is all of them.
    pub(super) async fn find_overdue(&mut self) -> Result<(), StepError> {
        let now = self.cx.now();
        let past_deadline = self.cx.deadline().is_some_and(|deadline| now >= deadline);
        let under_way = self.moves.instances.iter().filter(|(_, moving)| moving.is_under_way());
        let late = under_way.filter(|(id, moving)| past_deadline || now.since(self.waited_since(moving)) >= self.may_take(id, moving));
        let late: Vec<(InstanceId, Moving)> = late.map(|(id, moving)| (id.clone(), moving.clone())).collect();
        self.overdue = BTreeMap::new();
        for (id, moving) in late {
            let how = match moving.how {
                Move::Live => "live",
                Move::Cold => "cold",
            };
            let ours = self.our_migration(&id, &moving).await?;
            let called = ours.as_ref().map_or("Nova has no record of it".to_owned(), |ours| format!("`{}`", ours.status));
            let mut line = format!("{} ({id}): its {how} migration was asked for at {}, and has not ended ({called})", moving.name, moving.asked);
            if let Some(told) = moving.progress {
                line = format!("{line}, {} % of {} MiB since {}", told.percent, told.total_bytes >> 20, told.at);
            }
            if let Some(stop) = &moving.stop {
                let why = self.not_stopped.get(&id).map_or("Nova was asked to", String::as_str);
                line = format!("{line}; it is to be stopped since {} ({why})", stop.at);
            }
            // (Past the deadline even one that has arrived this moment is late.)
            let is_late_by_itself = now.since(self.waited_since(&moving)) >= self.may_take(&id, &moving);
            let quiet = self.cx.ports.instances.get(&id).await?.filter(|instance| is_late_by_itself && busy(instance).is_none());
            if let (Some(ours), Some(instance)) = (ours.as_ref().filter(|ours| ours.state == MigrationState::InProgress), quiet) {
                line = format!("{line}; it is on {}, and nothing happens to it (migration {})", instance.host.as_deref().unwrap_or("no host"), ours.uuid);
                self.records.insert(ours.uuid.clone(), ours.status.clone());
            }
            let is_carried_out = ours.as_ref().is_some_and(|ours| ours.status != QUEUED);
            self.overdue.insert(id, Overdue { line, is_carried_out, migration: ours.map(|ours| ours.uuid) });
        }
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

    /// Has Nova stop what an operator wants to be stopped, for as long as that takes. Whoever can't be stopped holds up nothing else: it ends by itself, or is asked
    /// about again.
    pub(super) async fn stop_moves(&mut self) -> Result<(), StepError> {
        let wanted = |(id, moving): (&InstanceId, &Moving)| {
            let stop = moving.stop.clone().filter(|_| moving.is_under_way() && moving.how == Move::Live)?;
            Some((id.clone(), moving.clone(), stop.migration))
        };
        let wanted: Vec<(InstanceId, Moving, String)> = self.moves.instances.iter().filter_map(wanted).collect();
        for (id, moving, migration) in wanted {
            let ours = self.our_migration(&id, &moving).await?;
            if ours.is_none_or(|ours| ours.state != MigrationState::InProgress || ours.uuid != migration) {
                continue;
            }
            self.cx.guard().await?;
            if let Err(error) = self.cx.ports.instances.stop_live(&id, &migration).await {
                let why = StepError::from(error).chain();
                warn!(instance = %id, why, "its live migration was not stopped");
                self.not_stopped.insert(id, why);
            }
        }
        Ok(())
    }

    /// The live migrations that take too long: those that are carried out, as what waits in line behind them goes on then; or else those that wait behind
    /// somebody else's.
    fn to_be_stopped(&self) -> BTreeMap<InstanceId, String> {
        let is_live = |id: &InstanceId| self.moves.instances.get(id).is_some_and(|moving| moving.how == Move::Live);
        let of = |is_carried_out: bool| {
            let those = self.overdue.iter().filter(move |(id, overdue)| overdue.is_carried_out == is_carried_out && is_live(id));
            those.filter_map(|(id, overdue)| Some((id.clone(), overdue.migration.clone()?))).collect::<BTreeMap<_, _>>()
        };
        Some(of(true)).filter(|running| !running.is_empty()).unwrap_or_else(|| of(false))
    }

    /// What is to be asked, if nothing of what is left goes on by itself. Whom it names is written down.
    pub(super) async fn stuck_for_good(&mut self, undoing: bool) -> Result<Option<Question>, StepError> {
        let failed = if undoing { Vec::new() } else { self.stuck() };
        if self.waits_for_moves() || failed.is_empty() && self.overdue.is_empty() {
            return Ok(None);
        }
        let records = self.records.keys().cloned().collect();
        let stops = self.to_be_stopped();
        let can_be_stopped = !stops.is_empty();
        let endless = self.overdue.iter().map(|(id, overdue)| (id.clone(), overdue.line.clone()));
        let (move_on, all) = (failed.is_empty(), failed.into_iter().chain(endless));
        let (ids, lines): (Vec<InstanceId>, Vec<String>) = all.unzip();
        let stuck = Stuck { lines, can_be_stopped, records, move_on };
        let question = if undoing { question_endless(&self.order.node, &stuck) } else { question(&self.order.node, &stuck) };
        self.names(ids.into_iter().collect(), &question, stops, undoing).await?;
        Ok(Some(question))
    }
}
