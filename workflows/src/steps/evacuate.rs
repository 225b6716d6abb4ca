//! Moves every instance off a closed node: "drain", not Nova's `evacuate`.
//!
//! For each instance the intent is written down before Nova is asked, since Nova has no idempotency key: after a crash the move is
//! looked for before another is asked for. The instance's host is the truth, migrations are hints. One stubborn
//! instance never holds up the others; it is named, with Nova's own reason.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tracing::warn;
use turnaround_config::NodeName;

use self::class::{Class, Whom, busy, classify, summary};
use self::moves::{Disregarded, MoveStage, Moves, Moving, Named};
use self::overdue::Overdue;
use self::questions::{DISREGARD, STOP, question, question_endless, question_harmed, question_opened};
use self::room::{Elsewhere, Patience, Proof};
use super::shown::newest_answer;
use super::{order, queues};
use crate::clock::Timestamp;
use crate::engine::{Observed, PastDeadline, Policy, Progress, Step, StepCx, StepError, Undone};
use crate::ports::{
    Instance, InstanceId, Migration, MigrationKind, MigrationState, Move, MoveStarted, PortErrorKind,
};
use crate::store::Queue;
use crate::updates::NodeOrder;

mod class;
mod cluster;
mod moves;
mod outcome;
mod overdue;
mod questions;
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
/// What was not told that long ago was another time: in between an operator was asked, or nothing had to be chosen.
const CHOICE_IS_OLD: Duration = Duration::from_secs(10 * 60);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evacuated {
    pub moved_live: u32,
    pub moved_cold: u32,
    /// Deleted by their owners meanwhile.
    pub gone: u32,
}

/// Empties the node by live migration, and cold migration with confirmation for stopped instances.
pub struct Evacuate;

/// Where the node stands.
struct Scene {
    on_node: Vec<Instance>,
    moving: Vec<Migration>,
}

impl Scene {
    async fn look(cx: &StepCx<'_>, node: &NodeName, moves: &Moves) -> Result<Scene, StepError> {
        let on_node = cx.ports.instances.on(node).await?;
        let mut disregarded = disregarded(cx)?;
        disregarded.extend(moves.disregarded.clone());
        let moving = counting(cx, cx.ports.instances.moving(node).await?, &disregarded).await?;
        Ok(Scene { on_node, moving })
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
        let moves: Moves = cx.checkpoint()?.unwrap_or_default();
        let scene = Scene::look(cx, &order.node, &moves).await?;
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
        evacuation.stop_moves().await?;
        evacuation.follow_up().await?;
        evacuation.find_overdue().await?;
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
        if evacuation.scene.is_empty() && under_way == 0 && evacuation.stuck().is_empty() {
            let note = "empty; waits for instances that were on their way to it when it was closed".to_owned();
            return Ok(Progress::LookAgain { after: unsettled(cx)?.max(Duration::from_millis(1)), note });
        }
        if !evacuation.waits_for_others()
            && let Some(stuck) = evacuation.stuck_for_good(false).await?
        {
            return Err(StepError::ask(question(&order.node, &stuck)));
        }
        Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.move_poll_ms), note: evacuation.note() })
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        overdue(cx).await
    }

    /// Instances stay where they are by now; what is under way is seen to its end, so that nothing is left half moved.
    async fn undo(&self, cx: &StepCx<'_>) -> Result<Undone, StepError> {
        let order = order(cx)?;
        settle_named(cx, true).await?;
        let mut evacuation = Evacuation::look(cx, &order).await?;
        evacuation.stop_moves().await?;
        evacuation.follow_up().await?;
        evacuation.see_progress().await;
        evacuation.find_overdue().await?;
        evacuation.write_down().await?;
        if let Some(stuck) = evacuation.stuck_for_good(true).await? {
            return Err(StepError::ask(question_endless(&order.node, &stuck)));
        }
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

/// Past the deadline, whatever still moves takes too long.
async fn overdue(cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
    let order = order(cx)?;
    settle_named(cx, false).await?;
    let mut evacuation = Evacuation::look(cx, &order).await?;
    evacuation.stop_moves().await?;
    evacuation.follow_up().await?;
    evacuation.find_overdue().await?;
    evacuation.write_down().await?;
    let stuck = evacuation.stuck_for_good(false).await?;
    Ok(stuck.map_or(PastDeadline::Fail, |stuck| PastDeadline::Ask(question(&order.node, &stuck))))
}

/// Whatever was about to be named is known to an operator if an answer came, and else was perhaps never asked: whoever wrote it down may have been
/// killed before.
async fn settle_named(cx: &StepCx<'_>, undoing: bool) -> Result<(), StepError> {
    let mut moves: Moves = cx.checkpoint()?.unwrap_or_default();
    let Some(named) = moves.named.take() else { return Ok(()) };
    let newest = newest_answer(cx);
    let answered = if named.undoing == undoing { newest.is_some() && newest != named.after } else { cx.goes_back_by_answer() };
    let key = if answered && named.undoing == undoing { cx.answered() } else { None };
    match key {
        Some(STOP) => named.stops.iter().for_each(|(id, migration)| moves.stop(id, migration, cx.now())),
        Some(DISREGARD) => moves.disregarded.extend(named.records),
        Some(_) | None => {}
    }
    if matches!(key, Some(STOP | DISREGARD)) {
        moves.not_forgiven = Some(cx.now());
    }
    if answered {
        moves.known.extend(named.instances);
    }
    cx.save(&moves, if answered { "an operator knows what did not move" } else { "looks again at what did not move" }).await
}

/// Unfinished migration records that an operator takes as over, by answers to whichever step has asked; each with its status then.
pub(super) fn disregarded(cx: &StepCx<'_>) -> Result<Disregarded, StepError> {
    let (one, other): (Option<Moves>, Option<Moves>) = (cx.checkpoint_of::<Evacuate, _>()?, cx.checkpoint_of::<MoveClusterNodes, _>()?);
    Ok([one, other].into_iter().flatten().flat_map(|moves| moves.disregarded).collect())
}

fn is_disregarded(migration: &Migration, disregarded: &Disregarded) -> bool {
    migration.state == MigrationState::InProgress && disregarded.contains(&(migration.uuid.clone(), migration.status.clone()))
}

/// Those of `moving` that count: a record that was taken as over counts again once it has come on, or something happens to its instance.
pub(super) async fn counting(cx: &StepCx<'_>, mut moving: Vec<Migration>, disregarded: &Disregarded) -> Result<Vec<Migration>, StepError> {
    let mut over = BTreeSet::new();
    for migration in moving.iter().filter(|migration| is_disregarded(migration, disregarded)) {
        if cx.ports.instances.get(&migration.instance).await?.is_none_or(|instance| busy(&instance).is_none()) {
            over.insert(migration.uuid.clone());
        }
    }
    moving.retain(|migration| !over.contains(&migration.uuid));
    Ok(moving)
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
    /// Unfinished migration records that an operator takes as over, by whichever step has asked.
    disregarded: Disregarded,
    /// Busy instances that were met in this look.
    waited_for: BTreeSet<InstanceId>,
    /// Those of them that only their owners can have moved.
    owners: BTreeSet<InstanceId>,
    /// Instances that can't be asked to move, and why.
    blocked: Vec<(InstanceId, String)>,
    /// Unfinished migration records that keep those waiting who can't be asked to move.
    records: BTreeMap<String, String>,
    /// Moves that take too long.
    overdue: BTreeMap<InstanceId, Overdue>,
    /// Why those were not stopped that an operator wanted to be.
    not_stopped: BTreeMap<InstanceId, String>,
    /// So many wait for another of their server group to arrive.
    apart: usize,
    /// Something is not written down yet.
    changed: bool,
}

impl<'a, 'b> Evacuation<'a, 'b> {
    async fn look(cx: &'a StepCx<'b>, order: &'a NodeOrder) -> Result<Evacuation<'a, 'b>, StepError> {
        let moves: Moves = cx.checkpoint()?.unwrap_or_default();
        let mut disregarded = disregarded(cx)?;
        disregarded.extend(moves.disregarded.clone());
        Ok(Evacuation {
            cx,
            order,
            elsewhere: None,
            disregarded,
            scene: Scene::look(cx, &order.node, &moves).await?,
            moves,
            waited_for: BTreeSet::new(),
            owners: BTreeSet::new(),
            blocked: Vec::new(),
            records: BTreeMap::new(),
            overdue: BTreeMap::new(),
            not_stopped: BTreeMap::new(),
            apart: 0,
            changed: false,
        })
    }


    /// Writes down whom a question names that is asked now, and whose migrations it offers to stop.
    async fn names(&mut self, ids: BTreeSet<InstanceId>, stops: BTreeMap<InstanceId, String>, undoing: bool) -> Result<(), StepError> {
        let instances = ids.into_iter().filter_map(|id| Some((id.clone(), self.moves.instances.get(&id)?.asked))).collect();
        self.moves.named = Some(Named { instances, undoing, after: newest_answer(self.cx), stops, records: self.records.clone() });
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
        self.names(ids, BTreeMap::new(), true).await?;
        Err(StepError::ask(question_harmed(&self.order.node, &harmed)))
    }

    fn is_here(&self, id: &InstanceId) -> bool {
        self.scene.on_node.iter().any(|instance| instance.id == *id)
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
                Class::Wait { why } => drop(self.wait_for(&instance, &why)),
                Class::Block { why, by: Whom::Owner } if rules.owner_wait_ms > 0 => self.wait_for_owner(&instance, &why),
                Class::Block { why, .. } => self.blocked.push((instance.id.clone(), format!("{} ({}) {why}", instance.name, instance.id))),
                Class::Move(how) => {
                    if self.in_flight() >= rules.moves_at_once as usize {
                        continue;
                    }
                    if self.must_keep_apart(&instance).await? {
                        continue;
                    }
                    self.start(&instance, how, tries).await?;
                }
            }
        }
        Ok(())
    }

    /// Instances that have left by a move of somebody else's, which is not confirmed yet: Nova lists them on their new host only, and keeps their old disk
    /// here until then, for ever if nobody says anything. And those that live elsewhere, quietly, with a migration from here or to here that never ended:
    /// Nova keeps such records where moves have crossed, or their host went away in between.
    async fn find_unconfirmed(&mut self) -> Result<(), StepError> {
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
    fn wait_for_record(&mut self, instance: &Instance, records: &[&Migration]) {
        let told = |record: &&Migration| format!("`{}` since {} (migration {})", record.status, record.created, record.uuid);
        let told: Vec<String> = records.iter().map(told).collect();
        let host = instance.host.as_deref().unwrap_or("no host");
        let why = format!("is on {host} and nothing happens to it, and Nova has it as still being moved: {}", told.join(", "));
        if self.wait_for(instance, &why) {
            self.records.extend(records.iter().map(|record| (record.uuid.clone(), record.status.clone())));
        }
    }

    /// Tries that count: those since the operator last asked for another one.
    fn tries(&self, moving: &Moving) -> u32 {
        if self.is_forgiven(moving) { 0 } else { moving.tries }
    }

    /// Has an operator asked for another try since it was tried?
    fn is_forgiven(&self, moving: &Moving) -> bool {
        self.cx.tried_since().is_some_and(|since| Some(moving.asked).max(self.moves.not_forgiven) < Some(since))
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
        let is_open = |migration: &&Migration| migration.state == MigrationState::InProgress && !self.is_disregarded(migration);
        let open: Vec<&Migration> = before.iter().filter(is_open).collect();
        if !open.is_empty() {
            // It has just arrived: its last move is not over, though it runs here already.
            self.wait_for_record(instance, &open);
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
            stop: None,
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
        let Some(elsewhere) = &self.elsewhere else { return Ok(false) };
        let under_way = |id: &InstanceId| self.moves.instances.get(id).is_some_and(Moving::is_under_way);
        let keeps_apart = elsewhere.keeps_apart(&instance.id, under_way);
        // Not where the other's move does not end: nobody should wait for that unasked.
        self.apart += usize::from(elsewhere.keeps_apart(&instance.id, |id| self.is_waited_for(id)));
        Ok(keeps_apart)
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
        } else if self.no_choice().is_none() {
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
        self.no_choice().is_none_or(|since| self.cx.now().since(since) < CHOICE_WAITS_MAX)
    }

    /// Since when no host can be chosen.
    fn no_choice(&self) -> Option<Timestamp> {
        self.moves.no_choice.filter(|since| self.cx.now().since(*since) < CHOICE_IS_OLD)
    }

    fn wait_for(&mut self, instance: &Instance, why: &str) -> bool {
        let since = self.waits_since(instance);
        let since = self.cx.tried_since().map_or(since, |tried| since.max(tried));
        let is_too_long = self.cx.now().since(since) >= BUSY_MAX;
        if is_too_long {
            self.blocked.push((instance.id.clone(), format!("{} ({}) {why}, since {since}", instance.name, instance.id)));
        }
        is_too_long
    }

    /// Notes that it is its owner's turn; one who has not come for too long is a matter for an operator, whose answer does not begin that anew.
    fn wait_for_owner(&mut self, instance: &Instance, why: &str) {
        let now = self.cx.now();
        // What it is busy with meanwhile has a time of its own: perhaps its owner has come.
        self.changed |= !self.moves.owners.contains_key(&instance.id);
        let since = *self.moves.owners.entry(instance.id.clone()).or_insert(now);
        if self.cx.now().since(since) >= Duration::from_millis(self.order.rules.owner_wait_ms) {
            let line = format!("{} ({}) {why}; its owner has been waited for since {since}", instance.name, instance.id);
            self.blocked.push((instance.id.clone(), line));
        } else {
            self.waited_for.insert(instance.id.clone());
            self.owners.insert(instance.id.clone());
        }
    }

    /// Since when it is waited for: from now on, if it has not been before.
    fn waits_since(&mut self, instance: &Instance) -> Timestamp {
        let now = self.cx.now();
        self.waited_for.insert(instance.id.clone());
        self.changed |= !self.moves.busy.contains_key(&instance.id);
        *self.moves.busy.entry(instance.id.clone()).or_insert(now)
    }

    /// Will others leave without anybody's help, once they are no longer busy, or another of their group has arrived? (None of it lasts: who is
    /// busy for too long is stuck.) While a question is open nothing is moved.
    fn waits_for_others(&self) -> bool {
        // An owner may take hours: what an operator has to know is asked meanwhile.
        let waits_for = |id: &InstanceId| !self.is_blocked(id) && (!self.owners.contains(id) || self.stuck().is_empty());
        self.apart > 0 || self.waited_for.iter().any(waits_for)
    }

    fn is_blocked(&self, id: &InstanceId) -> bool {
        self.blocked.iter().any(|(blocked, _)| blocked == id)
    }

    fn is_disregarded(&self, migration: &Migration) -> bool {
        is_disregarded(migration, &self.disregarded)
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
        if !self.overdue.is_empty() {
            note = format!("{note}, {} overdue", self.overdue.len());
        }
        if !self.blocked.is_empty() {
            note = format!("{note}, {} blocked", self.blocked.len());
        }
        let waited_for = self.waited_for.iter().filter(|id| !self.is_blocked(id)).count();
        if waited_for > 0 {
            note = format!("{note}, {waited_for} waited for");
        }
        if self.apart > 0 {
            note = format!("{note}, {} kept until another of their server group has arrived", self.apart);
        }
        note + &self.progress()
    }
}

