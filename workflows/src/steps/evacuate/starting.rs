//! Asks Nova for moves: what is to be moved next, how, and to which host. The intent is written down first.

use std::time::Duration;

use tracing::warn;

use super::class::{Class, Whom, classify};
use super::moves::{MoveStage, Moving};
use super::questions::question_opened;
use super::room::{self, BEGINS_WITHIN, Elsewhere, Others, Patience, Proof};
use super::{Evacuation, TRIES_MAX, cluster};
use crate::steps::netboot::LOOK_IS_GOOD_FOR;
use crate::clock::Timestamp;
use crate::engine::{StepCx, StepError};
use crate::ports::{Instance, InstanceId, Migration, MigrationState, Move, MoveStarted, PortErrorKind, holds_device};

/// Nova's words where it refuses a move for what the instance itself is doing, with 409: a tenant was quicker.
const NOT_THE_HOST: &str = "while it is in task_state";
/// What is free elsewhere is asked for so long before an instance is moved without it, to wherever Nova likes.
// Longer than a restart of Placement; and, where nothing else has failed before, far from the failures in a row that would ask an operator about what only
// makes a better choice.
const CHOICE_WAITS_MAX: Duration = Duration::from_secs(60);
/// What was not told that long ago was another time: in between an operator was asked, or nothing had to be chosen.
const CHOICE_IS_OLD: Duration = Duration::from_secs(5 * 60);

/// Adds what keeps it from being moved live by Placement's word, though its flavour does not say so: devices of ports or of Cyborg's, a flavour
/// whose extra specs may not be read. One more witness: where nobody tells, Nova decides.
pub(super) async fn add_devices(cx: &StepCx<'_>, instance: &mut Instance) {
    if !instance.pinned_by.is_empty() {
        return;
    }
    match cx.ports.instances.allocations(&instance.id).await {
        Ok(has) => {
            let devices = has.into_iter().filter(|(class, amount)| holds_device(class) && *amount > 0);
            instance.pinned_by.extend(devices.map(|(class, amount)| format!("by Placement, {amount} {class}")));
        }
        Err(error) => warn!(instance = %instance.id, error = %StepError::from(error).chain(), "whether it has devices is not told by Placement"),
    }
}

impl Evacuation<'_, '_> {
    /// Whoever opens a node wants instances on it.
    pub(super) async fn must_be_closed(&self) -> Result<(), StepError> {
        if self.cx.ports.compute.service(&self.order.node).await?.enabled {
            return Err(StepError::ask(question_opened(&self.order.node, self.scene.on_node.len())));
        }
        Ok(())
    }

    /// Asks if there is none for all that is to leave. While there is none only because of other nodes that are being renewed, says what is waited for. Once something
    /// has moved, the rest is better moved too as far as it goes.
    pub(super) async fn must_have_room(&mut self) -> Result<Option<String>, StepError> {
        let leaving: Vec<Instance> = room::leaving(&self.scene.on_node, self.order.rules.move_rules()).into_iter().cloned().collect();
        if !self.moves.instances.is_empty() || leaving.is_empty() {
            return Ok(None);
        }
        let others = Others::look(self.cx, self.order).await?;
        let elsewhere = self.elsewhere(&others.leaving).await?;
        let mut leaving: Vec<&Instance> = leaving.iter().collect();
        let waits = || Some(format!("waits for room: {} being emptied or renewed", others.names()));
        let is_patient = self.cx.patient_since().is_none_or(|since| self.cx.now().since(since) < self.waits_for_room());
        if let Proof::NoRoom { mut why } = elsewhere.prove(&leaving) {
            let may_have = !others.hosts.is_empty() && elsewhere.may_have_room_with(&others.hosts, &leaving);
            if may_have && is_patient {
                return Ok(waits());
            }
            // One may be between two of its moves just now.
            if others.undecided && self.cx.patient_since().is_none_or(|since| self.cx.now().since(since) < BEGINS_WITHIN) {
                return Ok(Some("waits for room: other nodes are closed, and have not begun to move".to_owned()));
            }
            if may_have {
                why.push(format!("there may be room once {} are back, which have been waited for", others.names()));
            }
            return Err(StepError::ask(room::question(&self.order.node, &why)));
        }
        leaving.extend(&others.leaving);
        if !others.leaving.is_empty() && is_patient && matches!(elsewhere.prove(&leaving), Proof::NoRoom { .. }) {
            return Ok(waits());
        }
        // (One that was made for others, too, does not know which of them are on their way.)
        self.elsewhere = others.leaving.is_empty().then_some(elsewhere);
        Ok(None)
    }

    /// How long other nodes are waited for: as long as a renewal takes until it asks itself, and not until this step's own deadline.
    fn waits_for_room(&self) -> Duration {
        let rules = &self.order.rules;
        Duration::from_millis((rules.install_deadline_ms + rules.rejoin_deadline_ms).min(rules.evacuate_deadline_ms / 2))
    }

    /// What is on the node, but for nodes of the Kubernetes cluster that take pods: they have come here since its nodes were moved.
    pub(super) async fn without_undrained(&mut self) -> Result<Vec<Instance>, StepError> {
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
    pub(super) async fn start_more(&mut self, waiting: Vec<Instance>) -> Result<(), StepError> {
        let rules = &self.order.rules;
        for mut instance in waiting {
            let known = self.moves.instances.get(&instance.id);
            if known.is_some_and(Moving::is_under_way) {
                continue;
            }
            let tries = known.map_or(0, |moving| self.tries(moving));
            if tries >= TRIES_MAX {
                continue;
            }
            let mut class = classify(&instance, rules.move_rules());
            if class == Class::Move(Move::Live) && self.in_flight() < rules.moves_at_once as usize {
                add_devices(self.cx, &mut instance).await;
                class = classify(&instance, rules.move_rules());
            }
            match class {
                Class::Wait { why } => drop(self.wait_for(&instance, &why)),
                Class::Block { why, by: Whom::Owner } if rules.owner_wait_ms > 0 => self.wait_for_owner(&instance, &why),
                Class::Block { why, .. } => self.blocked.push((instance.id.clone(), format!("{} ({}) {why}", instance.name, instance.id))),
                Class::Move(how) => {
                    if self.in_flight() >= rules.moves_at_once as usize {
                        continue;
                    }
                    // Who has paused it sees no further one begin.
                    if self.cx.is_told_to_wait().await {
                        return Ok(());
                    }
                    if self.must_keep_apart(&instance).await? {
                        continue;
                    }
                    let started = self.start(&instance, how, tries).await;
                    if started.is_err() {
                        // What Nova has said of others in this look must not be lost.
                        self.write_down().await?;
                    }
                    started?;
                }
            }
        }
        Ok(())
    }

    /// Tries that count: those since the operator last asked for another one.
    pub(super) fn tries(&self, moving: &Moving) -> u32 {
        if self.is_forgiven(moving) { 0 } else { moving.tries }
    }

    /// Has an operator asked for another try since it was tried?
    pub(super) fn is_forgiven(&self, moving: &Moving) -> bool {
        self.cx.tried_since().is_some_and(|since| Some(moving.asked).max(self.moves.not_forgiven) < Some(since))
    }

    pub(super) async fn start(&mut self, instance: &Instance, how: Move, tries: u32) -> Result<(), StepError> {
        let before_this = self.moves.instances.get(&instance.id);
        let named_before = before_this.filter(|moving| !self.is_forgiven(moving)).and_then(|moving| moving.to.clone());
        let was_sent_to_a_host = named_before.is_some();
        // A try of ours that failed may have left it otherwise, unless a person has looked at it since; and Nova may have stopped it to move it after a person was told of the try.
        let was_stopped_since = |moving: &Moving| {
            let is_stopped = moving.how == Move::Cold && moving.found == "active" && instance.vm_state == "stopped";
            is_stopped && !self.moves.is_known(&instance.id, moving, &instance.vm_state)
        };
        let found = match before_this {
            Some(moving) if tries > 0 || was_sent_to_a_host || was_stopped_since(moving) => moving.found.clone(),
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
        let looked = self.cx.just_now().await;
        if !self.is_as_seen(instance).await? {
            // The next look sees what it is then. What it was busy with before is over.
            self.waited_for.insert(instance.id.clone());
            self.changed |= self.moves.busy.remove(&instance.id).is_some();
            return Ok(());
        }
        let moving = Moving {
            name: instance.name.clone(),
            how,
            found,
            tries: if to.is_some() { tries } else { tries + 1 },
            to: to.clone(),
            unheard: false,
            lost: None,
            progress: None,
            stop: None,
            // Not when this look began: how long ago it was tells later whether Nova can have taken it.
            asked: self.cx.just_now().await,
            heard: None,
            before: before.into_iter().map(|migration| migration.uuid).collect(),
            stage: MoveStage::Intended,
        };
        let before_this = self.moves.instances.insert(instance.id.clone(), moving);
        self.changed = true;
        self.write_down().await?;
        self.cx.guard().await?;
        // Both may have waited for the store.
        if self.cx.just_now().await.since(looked) > LOOK_IS_GOOD_FOR {
            match before_this {
                Some(before) => self.moves.instances.insert(instance.id.clone(), before),
                None => self.moves.instances.remove(&instance.id),
            };
            self.changed = true;
            self.write_down().await?;
            return Err(StepError::retry(format!("too much time has passed since {} ({}) was looked at", instance.name, instance.id)));
        }
        let answer = self.cx.ports.instances.start_move(&instance.id, how, to.as_deref()).await;
        // (Just now: the request may have taken as long as Nova's time-out is.)
        let heard = self.cx.just_now().await;
        if let Some(moving) = self.moves.instances.get_mut(&instance.id) {
            moving.heard = Some(heard);
        }
        match answer {
            Ok(MoveStarted { request }) => self.set(&instance.id, MoveStage::Accepted { request }),
            Err(error) => match error.kind {
                // Whether Nova took it is looked at; what it said may be why it did not.
                PortErrorKind::OutcomeUnknown => {
                    let told = error.to_string();
                    let all = StepError::from(error).chain();
                    let seen = all.strip_prefix(&told).and_then(|causes| causes.strip_prefix(": ")).unwrap_or(&told).to_owned();
                    if let Some(moving) = self.moves.instances.get_mut(&instance.id) {
                        moving.lost = Some(seen);
                        self.changed = true;
                    }
                }
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

    /// Is it still what was seen, and still to be moved, since a look takes its time where there are many? Its owner, or somebody else, may have moved
    /// it, deleted it or said another word meanwhile; and off a node that is open nothing is to be moved.
    async fn is_as_seen(&mut self, instance: &Instance) -> Result<bool, StepError> {
        let is_old = self.cx.just_now().await.since(self.cx.now()) > LOOK_IS_GOOD_FOR;
        if is_old && self.cx.ports.compute.service(&self.order.node).await?.enabled {
            // The next look says so.
            return Ok(false);
        }
        if is_old && !cluster::undrained(self.cx, self.order, std::slice::from_ref(instance)).await?.is_empty() {
            return Ok(false);
        }
        let Some(now) = self.cx.ports.instances.get(&instance.id).await? else { return Ok(false) };
        let told = |of: &Instance| (of.host.clone(), of.vm_state.clone(), of.task_state.clone(), of.locked, of.flavor.clone(), of.owner_wants.clone());
        Ok(told(&now) == told(instance))
    }

    /// Is another of a server group of its on its way? Nova's scheduler keeps it apart only from what has arrived.
    pub(super) async fn must_keep_apart(&mut self, instance: &Instance) -> Result<bool, StepError> {
        self.look_elsewhere().await?;
        let Some(elsewhere) = &self.elsewhere else { return Ok(false) };
        let under_way = |id: &InstanceId| self.moves.instances.get(id).is_some_and(Moving::is_under_way);
        let keeps_apart = elsewhere.keeps_apart(&instance.id, under_way);
        // Not where the other's move does not end: nobody should wait for that unasked.
        self.apart += usize::from(elsewhere.keeps_apart(&instance.id, |id| self.is_waited_for(id)));
        Ok(keeps_apart)
    }

    /// Where it can stay for the rest of the rollout.
    pub(super) async fn choose_host(&mut self, instance: &Instance) -> Result<Option<String>, StepError> {
        if self.order.later.is_empty() {
            return Ok(None);
        }
        self.look_elsewhere().await?;
        Ok(self.elsewhere.as_mut().and_then(|elsewhere| elsewhere.choose(instance, &self.moves.not_taken_by)))
    }

    /// Sees to it that it is known in this look what is free elsewhere. What only makes a better choice must not hold an evacuation up for long.
    pub(super) async fn look_elsewhere(&mut self) -> Result<(), StepError> {
        if self.elsewhere.is_some() {
            return Ok(());
        }
        let elsewhere = match self.elsewhere(&[]).await {
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

    /// What is free elsewhere, for what is to leave this node and for `others`. For [`CHOICE_WAITS_MAX`] all of it has to be told, and then no more than the hosts.
    pub(super) async fn elsewhere(&mut self, others: &[Instance]) -> Result<Elsewhere, StepError> {
        let mut leaving = room::leaving(&self.scene.on_node, self.order.rules.move_rules());
        leaving.extend(others);
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
    pub(super) fn has_patience(&self) -> bool {
        self.no_choice().is_none_or(|since| self.cx.now().since(since) < CHOICE_WAITS_MAX)
    }

    /// Since when no host can be chosen.
    pub(super) fn no_choice(&self) -> Option<Timestamp> {
        self.moves.no_choice.filter(|since| self.cx.now().since(*since) < CHOICE_IS_OLD)
    }
}
