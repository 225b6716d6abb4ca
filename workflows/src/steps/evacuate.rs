//! Moves every instance off a closed node: "drain", not Nova's `evacuate`.
//!
//! For each instance the intent is written down before Nova is asked, since Nova has no idempotency key: after a crash the move is
//! looked for before another is asked for. The instance's host is the truth, migrations are hints. One stubborn
//! instance never holds up the others; it is named, with Nova's own reason.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};
use turnaround_config::NodeName;

use self::class::{Class, busy, classify, summary};
use self::cluster::Turn;
use self::room::{Elsewhere, Patience, Proof};
use super::{order, queues};
use crate::clock::Timestamp;
use crate::engine::{AnswerEffect, Observed, Policy, Progress, Question, Step, StepCx, StepError, Undone};
use crate::ports::{
    Instance, InstanceId, Migration, MigrationKind, MigrationState, Move, MoveStarted, PortErrorKind, RequestId,
};
use crate::store::Queue;
use crate::updates::NodeOrder;

mod class;
mod cluster;
mod room;

pub use cluster::{ClusterNodesFound, FindClusterNodes, MoveClusterNodes};

/// Moves of one instance that are tried before it becomes a question: the scheduler may have chosen a bad target the
/// first time, and twice is no accident.
const TRIES_MAX: u32 = 2;
/// After an answer was lost, Nova shows a migration record within this time if it took the request.
// Observed: about 1 s; ten times that for a loaded conductor.
const RECORD_APPEARS: Duration = Duration::from_secs(10);
/// An instance that is busy is waited for so long before it becomes a question: most are being built, rebooted or
/// stopped, which takes seconds. The snapshot of a large disk takes minutes.
const BUSY_MAX: Duration = Duration::from_secs(15 * 60);
/// How far a live migration is is told in steps of so many percent: each step is two entries of the journal.
const PROGRESS_STEP: u32 = 20;
/// Nova's words where it refuses a move for what the instance itself is doing, with 409: a tenant was quicker.
const NOT_THE_HOST: &str = "while it is in task_state";
/// What is free elsewhere is asked for so long before an instance is moved without it, to wherever Nova likes.
// Longer than a restart of Placement; and far from the failures in a row that would ask an operator about what only makes a better choice.
const CHOICE_WAITS_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evacuated {
    pub moved_live: u32,
    pub moved_cold: u32,
    /// Deleted by their owners meanwhile.
    pub gone: u32,
}

/// What is known of the instances that were found on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Moves {
    instances: BTreeMap<InstanceId, Moving>,
    /// Since when each of those that are busy has been seen to be.
    busy: BTreeMap<InstanceId, Timestamp>,
    /// Since when no host could be chosen because nobody said what is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    no_choice: Option<Timestamp>,
    /// How many instances each host has not taken that was named to Nova for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    not_taken_by: BTreeMap<String, u32>,
    /// The instances that a question is about to name, or names. It is another entry of the journal, and may never have been asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    named: Option<Named>,
    /// Those that were named by a question that was answered, each with when the try was asked for that it was about.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    known: BTreeMap<InstanceId, Timestamp>,
    /// Where it is about nodes of the Kubernetes cluster: whose turn it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    turn: Option<Turn>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Moving {
    name: String,
    how: Move,
    /// `vm_state` as found: what it must be again, if the move changes it.
    found: String,
    tries: u32,
    /// When we were about to ask Nova for the newest try.
    asked: Timestamp,
    /// Migration records that it had before. Which one is ours is told by these, not by clocks: Nova has its own.
    before: Vec<String>,
    /// The host that was named to Nova in the newest try. Such a try does not count: the scheduler may know why it can't be that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    /// Nova never heard of the newest try.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unheard: bool,
    /// How far the newest try is, in steps, and of how many bytes. It never goes back, though what is left to copy may grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    progress: Option<Told>,
    stage: MoveStage,
}

/// What a question names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Named {
    /// Each with when its newest try was asked for.
    instances: BTreeMap<InstanceId, Timestamp>,
    /// On the way back.
    undoing: bool,
    /// The newest answer before it, by when it came.
    after: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    percent: u32,
    total_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case")]
enum MoveStage {
    /// About to be asked for; whether Nova was asked is not known.
    Intended,
    /// Nova accepted it.
    Accepted { request: RequestId },
    Landed { host: String },
    Gone,
    Failed { reason: String },
}

impl Moving {
    fn is_under_way(&self) -> bool {
        matches!(self.stage, MoveStage::Intended | MoveStage::Accepted { .. })
    }

    /// Nothing more is to be found out about it, if it is not on the node.
    fn has_left(&self) -> bool {
        matches!(self.stage, MoveStage::Landed { .. } | MoveStage::Gone)
    }
}

/// Empties the node by live migration, and cold migration with confirmation for stopped instances.
pub struct Evacuate;

/// Where the node stands.
struct Scene {
    on_node: Vec<Instance>,
    moving: Vec<Migration>,
}

impl Scene {
    async fn look(cx: &StepCx<'_>, node: &NodeName) -> Result<Scene, StepError> {
        Ok(Scene { on_node: cx.ports.instances.on(node).await?, moving: cx.ports.instances.moving(node).await? })
    }

    fn is_empty(&self) -> bool {
        self.on_node.is_empty() && self.moving.is_empty()
    }
}

#[async_trait]
impl Step for Evacuate {
    const NAME: &'static str = "evacuate";
    const QUEUE: Queue = queues::OPENSTACK;
    type Output = Evacuated;

    fn policy(&self, cx: &StepCx<'_>) -> Policy {
        policy(cx)
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Evacuated>, StepError> {
        let order = order(cx)?;
        let scene = Scene::look(cx, &order.node).await?;
        let moves: Moves = cx.checkpoint()?.unwrap_or_default();
        if scene.is_empty() && moves.instances.values().all(Moving::has_left) && unsettled(cx)?.is_zero() {
            return Ok(Observed::AlreadyDone(moves.report()));
        }
        let mut would = summary(&order.node, &scene.on_node, order.rules.pinned);
        // Only a dry run has not begun, and only there is it read.
        let leaving = room::leaving(&scene.on_node, order.rules.pinned);
        if cx.begun().is_none() && !leaving.is_empty() {
            let elsewhere = Elsewhere::look(cx, &order, &leaving, Patience::Waits).await?;
            let proof = elsewhere.prove(&leaving);
            would = format!("{would}; {}", proof.told());
            if let Some(unproven) = elsewhere.unproven() {
                would = format!("{would}; {unproven}");
            }
            if let Proof::NoRoom { why } = &proof {
                return Err(StepError { what: would, ..StepError::ask(room::question(&order.node, why)) });
            }
            let again = elsewhere.move_again(&leaving);
            if again > 0 {
                would = format!("{would}; {again} of them only on nodes that are renewed later, and move again then");
            }
        }
        Ok(Observed::ToDo { would })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Evacuated>, StepError> {
        let order = order(cx)?;
        settle_named(cx, false).await?;
        let mut evacuation = Evacuation::look(cx, &order).await?;
        evacuation.follow_up().await?;
        // Whoever opens a node wants instances on it.
        let opened = cx.ports.compute.service(&order.node).await?.enabled;
        if !opened {
            evacuation.must_have_room().await?;
            let waiting = evacuation.without_undrained().await?;
            evacuation.start_more(waiting).await?;
        }
        evacuation.find_unconfirmed().await?;
        evacuation.see_progress().await;
        evacuation.write_down().await?;
        let under_way = evacuation.moves.instances.values().filter(|moving| moving.is_under_way()).count();
        if opened && under_way == 0 {
            return Err(StepError::ask(question_opened(&order.node, evacuation.scene.on_node.len())));
        }
        let stuck = evacuation.stuck();
        if evacuation.scene.is_empty() && under_way == 0 && stuck.is_empty() {
            let note = "empty; waits for instances that were on their way to it when it was closed".to_owned();
            return Ok(Progress::LookAgain { after: unsettled(cx)?.max(Duration::from_millis(1)), note });
        }
        if under_way == 0 && !stuck.is_empty() && !evacuation.waits_for_others() {
            evacuation.names(stuck.iter().map(|(id, _)| id.clone()).collect(), false).await?;
            let lines: Vec<String> = stuck.into_iter().map(|(_, line)| line).collect();
            return Err(StepError::ask(question(&order.node, &lines)));
        }
        Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.move_poll_ms), note: evacuation.note() })
    }

    /// Instances stay where they are by now; what is under way is seen to its end, so that nothing is left half moved.
    async fn undo(&self, cx: &StepCx<'_>) -> Result<Undone, StepError> {
        let order = order(cx)?;
        settle_named(cx, true).await?;
        let mut evacuation = Evacuation::look(cx, &order).await?;
        evacuation.follow_up().await?;
        evacuation.write_down().await?;
        if evacuation.moves.instances.values().any(Moving::is_under_way) {
            let after = Duration::from_millis(order.rules.move_poll_ms);
            return Ok(Undone::LookAgain { after, note: "sees to their end the moves that are under way".to_owned() });
        }
        evacuation.must_be_told_of_harm().await?;
        let report = evacuation.moves.report();
        let note = format!("{} moved instances stay where they are", report.moved_live + report.moved_cold);
        Ok(Undone::Done { note })
    }

    /// What we have moved cold is confirmed where it waits for that: nobody else would.
    async fn leave(&self, cx: &StepCx<'_>) -> Result<(), StepError> {
        confirm_what_waits(cx).await
    }
}

/// Whatever was about to be named is known to an operator if an answer came, and else was perhaps never asked: whoever wrote it down may have been
/// killed before.
async fn settle_named(cx: &StepCx<'_>, undoing: bool) -> Result<(), StepError> {
    let mut moves: Moves = cx.checkpoint()?.unwrap_or_default();
    let Some(named) = moves.named.take() else { return Ok(()) };
    let newest = newest_answer(cx);
    let answered = if named.undoing == undoing { newest.is_some() && newest != named.after } else { cx.goes_back_by_answer() };
    if answered {
        moves.known.extend(named.instances);
    }
    cx.save(&moves, if answered { "an operator knows what did not move" } else { "looks again at what did not move" }).await
}

/// When the newest answer came to a question of this step; None on the way back before one has come there.
fn newest_answer(cx: &StepCx<'_>) -> Option<Timestamp> {
    cx.answered().and(cx.tried_since())
}

/// (Whoever leaves a node has asked for the lease already.)
async fn confirm_what_waits(cx: &StepCx<'_>) -> Result<(), StepError> {
    let order = order(cx)?;
    let moves: Moves = cx.checkpoint()?.unwrap_or_default();
    if !moves.instances.values().any(|moving| moving.is_under_way() && moving.how == Move::Cold) {
        return Ok(());
    }
    let evacuation = Evacuation::look(cx, &order).await?;
    for (id, moving) in moves.instances.iter().filter(|(_, moving)| moving.is_under_way() && moving.how == Move::Cold) {
        let ours = evacuation.our_migration(id, moving).await?;
        if ours.is_some_and(|ours| ours.state == MigrationState::AwaitsConfirmation) {
            cx.ports.instances.confirm(id).await?;
        }
    }
    Ok(())
}

fn policy(cx: &StepCx<'_>) -> Policy {
    let deadline = order(cx).map_or(Policy::default().deadline, |order| Duration::from_millis(order.rules.evacuate_deadline_ms));
    Policy { deadline, ..Policy::default() }
}

impl Moves {
    fn report(&self) -> Evacuated {
        let mut report = Evacuated { moved_live: 0, moved_cold: 0, gone: 0 };
        for moving in self.instances.values() {
            match (&moving.stage, moving.how) {
                (MoveStage::Landed { .. }, Move::Live) => report.moved_live += 1,
                (MoveStage::Landed { .. }, Move::Cold) => report.moved_cold += 1,
                (MoveStage::Gone, _) => report.gone += 1,
                (MoveStage::Intended | MoveStage::Accepted { .. } | MoveStage::Failed { .. }, _) => {}
            }
        }
        report
    }
}

/// How much longer an instance may turn up whose place was chosen before the node was closed: Nova shows it only once the node
/// has taken it.
fn unsettled(cx: &StepCx<'_>) -> Result<Duration, StepError> {
    let settle = Duration::from_millis(order(cx)?.rules.settle_ms);
    // A dry run has not begun anything.
    Ok(cx.begun().map_or(Duration::ZERO, |begun| settle.saturating_sub(cx.now().since(begun))))
}

/// One look at one node's evacuation.
struct Evacuation<'a, 'b> {
    cx: &'a StepCx<'b>,
    order: &'a NodeOrder,
    /// What is free where, once it was needed in this look.
    elsewhere: Option<Elsewhere>,
    scene: Scene,
    moves: Moves,
    /// Busy instances that were met in this look.
    waited_for: BTreeSet<InstanceId>,
    /// Instances that can't be asked to move, and why.
    blocked: Vec<(InstanceId, String)>,
    /// So many wait for another of their server group to arrive.
    apart: usize,
    /// Something is not written down yet.
    changed: bool,
}

impl<'a, 'b> Evacuation<'a, 'b> {
    async fn look(cx: &'a StepCx<'b>, order: &'a NodeOrder) -> Result<Evacuation<'a, 'b>, StepError> {
        Ok(Evacuation {
            cx,
            order,
            elsewhere: None,
            scene: Scene::look(cx, &order.node).await?,
            moves: cx.checkpoint()?.unwrap_or_default(),
            waited_for: BTreeSet::new(),
            blocked: Vec::new(),
            apart: 0,
            changed: false,
        })
    }

    /// Looks what became of every move that is under way, and of instances that have left although their move had failed:
    /// somebody else has moved or deleted them, or they ended in error on their new host.
    async fn follow_up(&mut self) -> Result<(), StepError> {
        let open = self.moves.instances.iter().filter(|(id, moving)| match moving.stage {
            MoveStage::Intended | MoveStage::Accepted { .. } => true,
            MoveStage::Failed { .. } => !self.is_here(id),
            MoveStage::Landed { .. } | MoveStage::Gone => false,
        });
        let open: Vec<(InstanceId, Moving)> = open.map(|(id, moving)| (id.clone(), moving.clone())).collect();
        for (id, moving) in open {
            if let Some(stage) = self.outcome(&id, &moving).await?
                && stage != moving.stage
            {
                let failed = matches!(stage, MoveStage::Failed { .. });
                self.set(&id, stage);
                match moving.stage {
                    MoveStage::Accepted { .. } if failed => self.remember_not_taken(&id),
                    MoveStage::Intended if failed && self.our_migration(&id, &moving).await?.is_none() => self.forget_unheard(&id),
                    MoveStage::Intended | MoveStage::Accepted { .. } | MoveStage::Landed { .. } | MoveStage::Gone | MoveStage::Failed { .. } => {}
                }
            }
        }
        Ok(())
    }

    /// How far those are that are on their way. Nobody waits for that: where Nova does not say, nothing is told.
    async fn see_progress(&mut self) {
        for (id, moving) in &mut self.moves.instances {
            if !moving.is_under_way() || moving.how != Move::Live {
                continue;
            }
            match self.cx.ports.instances.progress(id).await {
                Ok(Some(seen)) => {
                    let percent = seen.percent() / PROGRESS_STEP * PROGRESS_STEP;
                    if percent > moving.progress.map_or(0, |told| told.percent) {
                        moving.progress = Some(Told { percent, total_bytes: seen.total_bytes });
                        self.changed = true;
                    }
                }
                Ok(None) => {}
                Err(error) => debug!(instance = %id, %error, "it is not known how far it is"),
            }
        }
    }

    /// One phrase for each instance that is on its way, where Nova has told how far.
    fn progress(&self) -> String {
        let moving = self.moves.instances.values().filter(|moving| moving.is_under_way());
        let told = moving.filter_map(|moving| {
            let Told { percent, total_bytes } = moving.progress?;
            Some(format!("; {}: {percent} % of {} MiB", moving.name, total_bytes >> 20))
        });
        told.collect()
    }

    /// The host that was named for it did not take it: perhaps it takes no other either.
    fn remember_not_taken(&mut self, id: &InstanceId) {
        if let Some(host) = self.moves.instances.get(id).and_then(|moving| moving.to.clone()) {
            *self.moves.not_taken_by.entry(host).or_default() += 1;
        }
    }

    /// Nova never heard of its newest try: that is no word against the host that was named, and counts as a try like any other.
    fn forget_unheard(&mut self, id: &InstanceId) {
        if let Some(moving) = self.moves.instances.get_mut(id) {
            // One that named none is counted already.
            moving.tries += u32::from(moving.to.take().is_some());
            moving.unheard = true;
        }
    }

    /// Writes down whom a question names that is asked now.
    async fn names(&mut self, ids: BTreeSet<InstanceId>, undoing: bool) -> Result<(), StepError> {
        let instances = ids.into_iter().filter_map(|id| Some((id.clone(), self.moves.instances.get(&id)?.asked))).collect();
        self.moves.named = Some(Named { instances, undoing, after: newest_answer(self.cx) });
        self.changed = true;
        self.write_down().await
    }

    /// On the way back: an instance that our move has left in error or stopped is nobody's to find by chance.
    async fn must_be_told_of_harm(&mut self) -> Result<(), StepError> {
        let unknown = |id: &InstanceId, moving: &Moving| self.moves.known.get(id) != Some(&moving.asked);
        let failed = |(id, moving): &(&InstanceId, &Moving)| matches!(moving.stage, MoveStage::Failed { .. }) && unknown(id, moving);
        let failed: Vec<(InstanceId, Moving)> =
            self.moves.instances.iter().filter(failed).map(|(id, moving)| (id.clone(), moving.clone())).collect();
        let (mut ids, mut harmed) = (BTreeSet::new(), Vec::new());
        for (id, moving) in failed {
            let Some(instance) = self.cx.ports.instances.get(&id).await? else { continue };
            let MoveStage::Failed { reason } = moving.stage else { continue };
            if instance.vm_state != moving.found && matches!(instance.vm_state.as_str(), "error" | "stopped" | "resized") {
                harmed.push(format!("{} ({id}) was {} and is {} since its move: {reason}", moving.name, moving.found, instance.vm_state));
                ids.insert(id);
            }
        }
        if harmed.is_empty() {
            return Ok(());
        }
        self.names(ids, true).await?;
        Err(StepError::ask(question_harmed(&self.order.node, &harmed)))
    }

    fn is_here(&self, id: &InstanceId) -> bool {
        self.scene.on_node.iter().any(|instance| instance.id == *id)
    }

    /// What became of one move; None while it is under way.
    async fn outcome(&self, id: &InstanceId, moving: &Moving) -> Result<Option<MoveStage>, StepError> {
        let instances = &self.cx.ports.instances;
        let Some(instance) = instances.get(id).await? else { return Ok(Some(MoveStage::Gone)) };
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
                    let reason = format!("is `resized` on {host}, and its migration ended as `{}`: confirm or revert it", ours.status);
                    return Ok(Some(MoveStage::Failed { reason }));
                }
                Some(_) | None => {}
            }
            return Ok(None);
        }
        if host == self.order.node.as_str() {
            return self.still_here(id, moving, ours).await;
        }
        // It runs elsewhere some seconds before its migration is over; rebooting the source in between would harm it.
        if self.scene.moving.iter().any(|moving| moving.instance == *id) {
            return Ok(None);
        }
        if instance.vm_state == "error" {
            let reason = instance.fault.unwrap_or_else(|| "Nova gives no reason".to_owned());
            return Ok(Some(MoveStage::Failed { reason: format!("is in error on {host}: {reason}") }));
        }
        // Nova starts again what it has stopped for a cold move. A mere wish for another try, of whoever was not asked, is no word on it.
        let is_known = self.moves.known.get(id) == Some(&moving.asked);
        if moving.how == Move::Cold && moving.found == "active" && instance.vm_state == "stopped" && !is_known {
            let reason = format!("was running, was stopped to be moved, and is still stopped on {host}: start it, or ask its owner");
            return Ok(Some(MoveStage::Failed { reason }));
        }
        Ok(Some(MoveStage::Landed { host }))
    }

    /// It is on the node, and nothing happens to it: has its move failed, or was it never asked for?
    async fn still_here(&self, id: &InstanceId, moving: &Moving, ours: Option<Migration>) -> Result<Option<MoveStage>, StepError> {
        let age = self.cx.now().since(moving.asked);
        let why = match (&moving.stage, ours.map(|ours| (ours.state, ours.status))) {
            (_, Some((MigrationState::InProgress | MigrationState::AwaitsConfirmation, _))) => return Ok(None),
            (MoveStage::Accepted { request }, ended) => {
                let told = self.cx.ports.instances.why_failed(id, request).await?;
                match (told, ended) {
                    (Some(reason), _) => reason,
                    (None, Some((_, status))) => format!("its migration ended as `{status}`, and Nova gives no reason"),
                    // Nova has accepted it and has not begun yet.
                    (None, None) if age < RECORD_APPEARS => return Ok(None),
                    (None, None) => "Nova accepted the migration and never began it".to_owned(),
                }
            }
            (_, Some((_, status))) => format!("its migration ended as `{status}`"),
            (_, None) if age < RECORD_APPEARS => return Ok(None),
            (_, None) => "Nova was never asked, or its answer was lost".to_owned(),
        };
        Ok(Some(MoveStage::Failed { reason: why }))
    }

    /// The newest migration of the instance away from the node that can be the one we asked for.
    async fn our_migration(&self, id: &InstanceId, moving: &Moving) -> Result<Option<Migration>, StepError> {
        let kind = match moving.how {
            Move::Live => MigrationKind::Live,
            Move::Cold => MigrationKind::Cold,
        };
        let migrations = self.cx.ports.instances.migrations(id).await?;
        Ok(migrations.into_iter().find(|migration| {
            migration.kind == kind
                && migration.source.as_deref().is_none_or(|source| source == self.order.node.as_str())
                && !moving.before.contains(&migration.uuid)
        }))
    }

    /// Whoever opens a node wants instances on it.
    async fn must_be_closed(&self) -> Result<(), StepError> {
        if self.cx.ports.compute.service(&self.order.node).await?.enabled {
            return Err(StepError::ask(question_opened(&self.order.node, self.scene.on_node.len())));
        }
        Ok(())
    }

    /// Asks if there is none for all that is to leave. Once something has moved, the rest is better moved too as far as it goes.
    async fn must_have_room(&mut self) -> Result<(), StepError> {
        if !self.moves.instances.is_empty() || room::leaving(&self.scene.on_node, self.order.rules.pinned).is_empty() {
            return Ok(());
        }
        let elsewhere = self.elsewhere().await?;
        if let Proof::NoRoom { why } = elsewhere.prove(&room::leaving(&self.scene.on_node, self.order.rules.pinned)) {
            return Err(StepError::ask(room::question(&self.order.node, &why)));
        }
        self.elsewhere = Some(elsewhere);
        Ok(())
    }

    /// What is on the node, but for nodes of the Kubernetes cluster that take pods: they have come here since its nodes were moved.
    async fn without_undrained(&mut self) -> Result<Vec<Instance>, StepError> {
        let undrained = cluster::undrained(self.cx, self.order, &self.scene.on_node).await?;
        let mut waiting = self.scene.on_node.clone();
        waiting.retain(|instance| !undrained.iter().any(|(id, _)| *id == instance.id));
        for (id, node) in undrained {
            if !self.moves.instances.get(&id).is_some_and(Moving::is_under_way) {
                let line = format!("{id} is node {node} of the Kubernetes cluster, and has come since its nodes were moved: drain it (`kubectl drain {node}`)");
                self.blocked.push((id, line));
            }
        }
        Ok(waiting)
    }

    /// Asks Nova for as many more moves of `waiting` as there is room for.
    async fn start_more(&mut self, waiting: Vec<Instance>) -> Result<(), StepError> {
        let rules = &self.order.rules;
        for instance in waiting {
            let known = self.moves.instances.get(&instance.id);
            if known.is_some_and(Moving::is_under_way) {
                continue;
            }
            let tries = known.map_or(0, |moving| self.tries(moving));
            if tries >= TRIES_MAX {
                continue;
            }
            match classify(&instance, rules.pinned) {
                Class::Wait { why } => self.wait_for(&instance, &why),
                Class::Block { why } => self.blocked.push((instance.id.clone(), format!("{} ({}) {why}", instance.name, instance.id))),
                Class::Move(how) => {
                    let under_way = self.moves.instances.values().filter(|moving| moving.is_under_way()).count();
                    if under_way >= rules.moves_at_once as usize {
                        continue;
                    }
                    if self.must_keep_apart(&instance).await? {
                        self.apart += 1;
                        continue;
                    }
                    self.start(&instance, how, tries).await?;
                }
            }
        }
        self.forget_busy();
        Ok(())
    }

    /// Instances that have left by a move of somebody else's, which is not confirmed yet. Nova lists them on their new host
    /// only, and keeps their old disk here until then: for ever, if nobody says anything.
    async fn find_unconfirmed(&mut self) -> Result<(), StepError> {
        for migration in &self.scene.moving {
            let id = &migration.instance;
            let ours = self.moves.instances.get(id).is_some_and(Moving::is_under_way);
            // One that was on the node at this look, as one that has come here is, is told about there.
            if migration.state != MigrationState::AwaitsConfirmation || ours || self.is_here(id) {
                continue;
            }
            let Some(instance) = self.cx.ports.instances.get(id).await? else { continue };
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
        Ok(())
    }

    /// Tries that count: those since the operator last asked for another one.
    fn tries(&self, moving: &Moving) -> u32 {
        if self.is_forgiven(moving) { 0 } else { moving.tries }
    }

    /// Has an operator asked for another try since it was tried?
    fn is_forgiven(&self, moving: &Moving) -> bool {
        self.cx.tried_since().is_some_and(|since| moving.asked < since)
    }

    async fn start(&mut self, instance: &Instance, how: Move, tries: u32) -> Result<(), StepError> {
        let before_this = self.moves.instances.get(&instance.id);
        let named_before = before_this.filter(|moving| !self.is_forgiven(moving)).and_then(|moving| moving.to.clone());
        let was_sent_to_a_host = named_before.is_some();
        // A try of ours that failed may have left it otherwise, unless a person has looked at it since.
        let found = match before_this {
            Some(moving) if tries > 0 || was_sent_to_a_host => moving.found.clone(),
            Some(_) | None => instance.vm_state.clone(),
        };
        let before = self.cx.ports.instances.migrations(&instance.id).await?;
        if before.iter().any(|migration| migration.state == MigrationState::InProgress) {
            // It has just arrived: its last move is not over, though it runs here already.
            self.wait_for(instance, "is still being moved");
            return Ok(());
        }
        let was_unheard = before_this.is_some_and(|moving| moving.unheard);
        let to = if (tries == 0 || was_unheard) && !was_sent_to_a_host { self.choose_host(instance).await? } else { None };
        let moving = Moving {
            name: instance.name.clone(),
            how,
            found,
            tries: if to.is_some() { tries } else { tries + 1 },
            to: to.clone(),
            unheard: false,
            progress: None,
            // Not when this look began: how long ago it was tells later whether Nova can have taken it.
            asked: self.cx.just_now().await,
            before: before.into_iter().map(|migration| migration.uuid).collect(),
            stage: MoveStage::Intended,
        };
        self.moves.instances.insert(instance.id.clone(), moving);
        self.changed = true;
        self.write_down().await?;
        self.cx.guard().await?;
        match self.cx.ports.instances.start_move(&instance.id, how, to.as_deref()).await {
            Ok(MoveStarted { request }) => self.set(&instance.id, MoveStage::Accepted { request }),
            Err(error) => match error.kind {
                PortErrorKind::OutcomeUnknown => {}
                PortErrorKind::NotFound => self.set(&instance.id, MoveStage::Gone),
                PortErrorKind::Refused { ref reason } => {
                    let reason = reason.clone();
                    let of_the_instance = reason.contains(NOT_THE_HOST);
                    self.set(&instance.id, MoveStage::Failed { reason });
                    if of_the_instance {
                        self.forget_unheard(&instance.id);
                    } else {
                        self.remember_not_taken(&instance.id);
                    }
                }
                PortErrorKind::Unavailable | PortErrorKind::Denied { .. } | PortErrorKind::Garbled { .. } => {
                    // Nothing was asked: the try does not count.
                    self.set(&instance.id, MoveStage::Failed { reason: error.to_string() });
                    // Whoever may move instances may not always name a host: then the next try names none.
                    let away = error.kind == PortErrorKind::Unavailable;
                    if let Some(moving) = self.moves.instances.get_mut(&instance.id) {
                        moving.tries = tries;
                        if away {
                            (moving.to, moving.unheard) = (named_before, was_unheard);
                        }
                    }
                    self.write_down().await?;
                    return Err(error.into());
                }
            },
        }
        Ok(())
    }

    /// Is another of a server group of its on its way? Nova's scheduler keeps it apart only from what has arrived.
    async fn must_keep_apart(&mut self, instance: &Instance) -> Result<bool, StepError> {
        self.look_elsewhere().await?;
        let under_way = |id: &InstanceId| self.moves.instances.get(id).is_some_and(Moving::is_under_way);
        Ok(self.elsewhere.as_ref().is_some_and(|elsewhere| elsewhere.keeps_apart(&instance.id, under_way)))
    }

    /// Where it can stay for the rest of the rollout.
    async fn choose_host(&mut self, instance: &Instance) -> Result<Option<String>, StepError> {
        if self.order.later.is_empty() {
            return Ok(None);
        }
        self.look_elsewhere().await?;
        Ok(self.elsewhere.as_mut().and_then(|elsewhere| elsewhere.choose(instance, &self.moves.not_taken_by)))
    }

    /// Sees to it that it is known in this look what is free elsewhere. What only makes a better choice must not hold an evacuation up for long.
    async fn look_elsewhere(&mut self) -> Result<(), StepError> {
        if self.elsewhere.is_some() {
            return Ok(());
        }
        let elsewhere = match self.elsewhere().await {
            Ok(elsewhere) => elsewhere,
            Err(error) if self.has_patience() => return Err(error),
            Err(error) => {
                warn!(node = %self.order.node, error = %error.chain(), "no host is chosen for what is moved: Nova chooses");
                Elsewhere::unknown()
            }
        };
        self.elsewhere = Some(elsewhere);
        Ok(())
    }

    /// What is free elsewhere. For [`CHOICE_WAITS_MAX`] all of it has to be told, and then no more than the hosts.
    async fn elsewhere(&mut self) -> Result<Elsewhere, StepError> {
        let leaving = room::leaving(&self.scene.on_node, self.order.rules.pinned);
        let patience = if self.has_patience() { Patience::Waits } else { Patience::GoesOn };
        let looked = Elsewhere::look(self.cx, self.order, &leaving, patience).await;
        if looked.as_ref().is_ok_and(|elsewhere| !elsewhere.is_kept_waiting()) {
            self.changed |= self.moves.no_choice.take().is_some();
        } else if self.moves.no_choice.is_none() {
            self.moves.no_choice = Some(self.cx.now());
            self.changed = true;
            self.write_down().await?;
        }
        if let Ok(elsewhere) = &looked
            && elsewhere.is_kept_waiting()
        {
            warn!(node = %self.order.node, unproven = elsewhere.unproven(), "goes on without what nobody tells");
        }
        looked
    }

    /// Is what makes a better choice still waited for?
    fn has_patience(&self) -> bool {
        self.moves.no_choice.is_none_or(|since| self.cx.now().since(since) < CHOICE_WAITS_MAX)
    }

    /// Notes that it is busy; one that has been for too long is a matter for a person.
    fn wait_for(&mut self, instance: &Instance, why: &str) {
        let now = self.cx.now();
        self.waited_for.insert(instance.id.clone());
        let since = match self.moves.busy.get(&instance.id) {
            Some(since) => *since,
            None => {
                self.moves.busy.insert(instance.id.clone(), now);
                self.changed = true;
                now
            }
        };
        let since = self.cx.tried_since().map_or(since, |tried| since.max(tried));
        if now.since(since) >= BUSY_MAX {
            self.blocked.push((instance.id.clone(), format!("{} ({}) {why}, since {since}", instance.name, instance.id)));
        }
    }

    /// Will others leave without anybody's help, once they are no longer busy, or another of their group has arrived? (None of it lasts: who is
    /// busy for too long is stuck.) While a question is open nothing is moved.
    fn waits_for_others(&self) -> bool {
        let is_blocked = |id: &InstanceId| self.blocked.iter().any(|(blocked, _)| blocked == id);
        self.apart > 0 || self.waited_for.iter().any(|id| !is_blocked(id))
    }

    /// Those that nobody waits for any more.
    fn forget_busy(&mut self) {
        let before = self.moves.busy.len();
        self.moves.busy.retain(|id, _| self.waited_for.contains(id));
        self.changed |= self.moves.busy.len() != before;
    }

    fn set(&mut self, id: &InstanceId, stage: MoveStage) {
        if let Some(moving) = self.moves.instances.get_mut(id) {
            moving.stage = stage;
            self.changed = true;
        }
    }

    async fn write_down(&mut self) -> Result<(), StepError> {
        if self.changed {
            self.cx.save(&self.moves, self.note()).await?;
            self.changed = false;
        }
        Ok(())
    }

    /// Instances that won't leave by themselves, each with its reason.
    fn stuck(&self) -> Vec<(InstanceId, String)> {
        let mut stuck = self.blocked.clone();
        for (id, moving) in &self.moves.instances {
            // One that ended in error on its new host is not moved again, and its old disk may be what it is mended with.
            if let MoveStage::Failed { reason } = &moving.stage
                && (self.tries(moving) >= TRIES_MAX || !self.is_here(id))
            {
                stuck.push((id.clone(), format!("{} ({id}): {reason}", moving.name)));
            }
        }
        stuck
    }

    fn note(&self) -> String {
        let count = |wanted: fn(&MoveStage) -> bool| self.moves.instances.values().filter(|moving| wanted(&moving.stage)).count();
        let moved = count(|stage| matches!(stage, MoveStage::Landed { .. } | MoveStage::Gone));
        let under_way = count(|stage| matches!(stage, MoveStage::Intended | MoveStage::Accepted { .. }));
        let left = self.scene.on_node.iter().filter(|instance| !self.moves.instances.contains_key(&instance.id)).count();
        let failed = count(|stage| matches!(stage, MoveStage::Failed { .. }));
        let mut note = format!("{moved} moved, {under_way} under way, {left} to go");
        if failed > 0 {
            note = format!("{note}, {failed} failed");
        }
        if !self.blocked.is_empty() {
            note = format!("{note}, {} blocked", self.blocked.len());
        }
        if self.apart > 0 {
            note = format!("{note}, {} kept until another of their server group has arrived", self.apart);
        }
        note + &self.progress()
    }
}

fn question_opened(node: &NodeName, left: usize) -> Question {
    Question::new(format!("{node} was opened by somebody while it was being emptied: what now?"))
        .seen(format!("{left} instances are on it; more may land on it at any time"))
        .answer("retry", AnswerEffect::Retry, "goes on emptying it, once you have closed it again")
        .answer("unwind", AnswerEffect::Unwind, format!("leaves {node} open, without renewing it; what has been moved stays where it is"))
}

fn question_harmed(node: &NodeName, harmed: &[String]) -> Question {
    let text = match harmed {
        [_only] => format!("an instance that was to leave {node} is not as it was, and the renewal is being taken back: what now?"),
        more => format!("{} instances that were to leave {node} are not as they were, and the renewal is being taken back: what now?", more.len()),
    };
    harmed
        .iter()
        .fold(Question::new(text), |question, line| question.seen(line.clone()))
        .answer("retry", AnswerEffect::Retry, format!("goes on giving {node} back as it was found, whatever they are by then: mend them first, or tell their owners"))
        .answer("leave", AnswerEffect::Leave, format!("ends here; {node} stays closed, with what is left on it"))
}

fn question(node: &NodeName, stuck: &[String]) -> Question {
    let mut question = Question::new(match stuck {
        [only] => format!("an instance can't be moved off {node}: what now? {only}"),
        more => format!("{} instances can't be moved off {node}: what now?", more.len()),
    });
    for line in stuck {
        question = question.seen(line.clone());
    }
    question
        .answer("retry", AnswerEffect::Retry, "tries to move what is left once more, after you have mended what stood in the way")
        .answer("unwind", AnswerEffect::Unwind, format!("gives {node} back as it was found; what has been moved stays where it is"))
        .answer("leave", AnswerEffect::Leave, format!("ends here; {node} stays closed, with what is left on it"))
}
