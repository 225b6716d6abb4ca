//! Moves every instance off a closed node: "drain", not Nova's `evacuate`.
//!
//! For each instance the intent is written down before Nova is asked, since Nova has no idempotency key: after a crash the move is
//! looked for before another is asked for. The instance's host is the truth, migrations are hints. One stubborn
//! instance never holds up the others; it is named, with Nova's own reason.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use self::class::{busy, summary};
use self::moves::{Disregarded, MoveStage, Moves, Moving, Named};
use self::overdue::Overdue;
use self::questions::{DISREGARD, STOP, question_harmed, question_opened};
use self::room::{Elsewhere, Patience, Proof};
use super::shown::newest_answer;
use super::{order, queues};
use crate::engine::{Observed, PastDeadline, Policy, Progress, Question, Step, StepCx, StepError, Undone};
use crate::ports::{Instance, InstanceId, Migration, MigrationState, Move};
use crate::store::Queue;
use crate::updates::NodeOrder;

mod class;
mod cluster;
mod moves;
mod outcome;
mod overdue;
mod questions;
mod room;
mod starting;
mod waiting;

pub use cluster::{ClusterNodesFound, FindClusterNodes, MoveClusterNodes};

/// Moves of one instance that are tried before it becomes a question: the scheduler may have chosen a bad target the
/// first time, and twice is no accident.
const TRIES_MAX: u32 = 2;

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
        let mut scene = Scene::look(cx, &order.node, &moves).await?;
        if scene.is_empty() && moves.instances.values().all(Moving::has_left) && unsettled(cx)?.is_zero() {
            return Ok(Observed::AlreadyDone(moves.report()));
        }
        // Only a dry run has not begun, and only there is it read.
        if cx.begun().is_none() {
            for instance in &mut scene.on_node {
                starting::add_devices(cx, instance).await;
            }
        }
        let mut would = summary(&order.node, &scene.on_node, order.rules.move_rules());
        let leaving = room::leaving(&scene.on_node, order.rules.move_rules());
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
            if let Some(note) = evacuation.must_have_room().await? {
                return Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.node_poll_ms), note });
            }
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
            && let Some(question) = evacuation.stuck_for_good(false).await?
        {
            return Err(StepError::ask(question));
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
        if let Some(question) = evacuation.stuck_for_good(true).await? {
            return Err(StepError::ask(question));
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
    if let Some(question) = evacuation.stuck_for_good(false).await? {
        return Ok(PastDeadline::Ask(question));
    }
    // Who has just resumed it is not asked why a wait that begins with that is not over.
    Ok(if unsettled(cx)? > Duration::ZERO { PastDeadline::Act } else { PastDeadline::Fail })
}

/// Whatever was about to be named is known to an operator if an answer came, and else was perhaps never asked: whoever wrote it down may have been
/// killed before.
async fn settle_named(cx: &StepCx<'_>, undoing: bool) -> Result<(), StepError> {
    let mut moves: Moves = cx.checkpoint()?.unwrap_or_default();
    let Some(named) = moves.named.take() else { return Ok(()) };
    let (answered, key) = if named.question.is_empty() {
        // Releases that did not write it down took every later answer for one to it.
        let newest = newest_answer(cx);
        let answered = if named.undoing == undoing { newest.is_some() && newest != named.after } else { cx.goes_back_by_answer() };
        (answered, if answered && named.undoing == undoing { cx.answered() } else { None })
    } else {
        let answer = cx.answer_to(&named.question).filter(|answer| Some(answer.at) != named.after);
        (answer.is_some(), answer.map(|answer| answer.key.as_str()))
    };
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
        moves.known_as.extend(named.states);
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
    // A dry run has not begun anything. Whoever asks for another try may have closed the node only just now.
    let since = cx.begun().map(|begun| cx.retried().map_or(begun, |retried| retried.max(begun)));
    Ok(since.map_or(Duration::ZERO, |since| settle.saturating_sub(cx.now().since(since))))
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
    /// What those were that were looked at one by one, by `vm_state`.
    seen: BTreeMap<InstanceId, String>,
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
            seen: BTreeMap::new(),
            not_stopped: BTreeMap::new(),
            apart: 0,
            changed: false,
        })
    }

    /// Writes down whom `question` names that is asked now, and whose migrations it offers to stop.
    async fn names(&mut self, ids: BTreeSet<InstanceId>, question: &Question, stops: BTreeMap<InstanceId, String>, undoing: bool) -> Result<(), StepError> {
        // What becomes of one that is still under way is not known to whoever reads of it.
        let has_failed = |moving: &&Moving| matches!(moving.stage, MoveStage::Failed { .. });
        let failed: BTreeMap<&InstanceId, &Moving> =
            ids.iter().filter_map(|id| Some((id, self.moves.instances.get(id).filter(has_failed)?))).collect();
        let instances = failed.iter().map(|(id, moving)| ((*id).clone(), moving.asked)).collect();
        let states = failed.iter().map(|(id, moving)| ((*id).clone(), self.state_of(id).unwrap_or(&moving.found).to_owned())).collect();
        let after = self.cx.answer_to(&question.text).map(|answer| answer.at);
        let records = self.records.clone();
        self.moves.named = Some(Named { instances, states, question: question.text.clone(), undoing, after, stops, records });
        self.changed = true;
        self.write_down().await
    }

    /// What it was, by `vm_state`, when it was looked at last.
    fn state_of(&self, id: &InstanceId) -> Option<&str> {
        let here = || self.scene.on_node.iter().find(|instance| instance.id == *id).map(|instance| &instance.vm_state);
        self.seen.get(id).or_else(here).map(String::as_str)
    }

    /// On the way back: an instance that our move has left in error or stopped is nobody's to find by chance.
    async fn must_be_told_of_harm(&mut self) -> Result<(), StepError> {
        let failed = |(_, moving): &(&InstanceId, &Moving)| matches!(moving.stage, MoveStage::Failed { .. });
        let failed: Vec<(InstanceId, Moving)> =
            self.moves.instances.iter().filter(failed).map(|(id, moving)| (id.clone(), moving.clone())).collect();
        let (mut ids, mut harmed) = (BTreeSet::new(), Vec::new());
        for (id, moving) in failed {
            let Some(instance) = self.cx.ports.instances.get(&id).await? else { continue };
            let (is_known, state) = (self.moves.is_known(&id, &moving, &instance.vm_state), instance.vm_state);
            let MoveStage::Failed { reason } = moving.stage else { continue };
            if !is_known && state != moving.found && matches!(state.as_str(), "error" | "stopped" | "resized") {
                harmed.push(format!("{} ({id}) was {} and is {state} since its move: {reason}", moving.name, moving.found));
                self.seen.insert(id.clone(), state);
                ids.insert(id);
            }
        }
        if harmed.is_empty() {
            return Ok(());
        }
        let question = question_harmed(&self.order.node, &harmed);
        self.names(ids, &question, BTreeMap::new(), true).await?;
        Err(StepError::ask(question))
    }

    fn is_here(&self, id: &InstanceId) -> bool {
        self.scene.on_node.iter().any(|instance| instance.id == *id)
    }

    fn is_disregarded(&self, migration: &Migration) -> bool {
        is_disregarded(migration, &self.disregarded)
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
        let mut stuck: Vec<_> = self.blocked.iter().map(|(id, line)| (id.clone(), self.with_what_it_became(id, line.clone()))).collect();
        for (id, moving) in &self.moves.instances {
            // One that ended in error on its new host is not moved again, and its old disk may be what it is mended with.
            if let MoveStage::Failed { reason } = &moving.stage
                && (self.tries(moving) >= TRIES_MAX || !self.is_here(id))
            {
                stuck.push((id.clone(), self.with_what_it_became(id, format!("{} ({id}): {reason}", moving.name))));
            }
        }
        stuck
    }

    /// `line`, and what the instance is since its move has failed, if that is not what it was and the line does not say so.
    fn with_what_it_became(&self, id: &InstanceId, line: String) -> String {
        let failed = self.moves.instances.get(id).filter(|moving| matches!(moving.stage, MoveStage::Failed { .. }));
        match failed.zip(self.state_of(id)) {
            Some((moving, state)) if state != moving.found && !outcome::tells(&line, state) => format!("{line}; it was {} and is {state}", moving.found),
            Some(_) | None => line,
        }
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

