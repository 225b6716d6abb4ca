//! Instances that are nodes of the Kubernetes cluster: each is drained before it moves, one at a time.
//!
//! Which they are is asked of the cluster itself, never kept in a list. Our cordon is found again by the workflow's mark on the node, which Kubernetes
//! writes in one with it: whatever befalls a worker, a cordon of ours is known as such, and one of somebody else's is left as it is.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::class::{Class, classify};
use super::moves::{MoveStage, Moves, Moving};
use super::questions::{Stuck, question};
use super::{Evacuated, Evacuation};
use crate::clock::Timestamp;
use crate::engine::{AnswerEffect, Observed, PastDeadline, Policy, Progress, Question, Step, StepCx, StepError, Undone};
use crate::ports::{ClusterNode, Cordon, Eviction, Instance, InstanceId, Pod};
use crate::steps::{order, queues};
use crate::store::{Queue, Resource, Take};
use crate::updates::{NodeOrder, OrderedCluster};

/// The next look, where there is nothing to wait for.
const AT_ONCE: Duration = Duration::from_millis(1);

/// Names of the cluster's nodes that were found among the instances.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNodesFound(pub Vec<String>);

/// Asks the cluster which of its nodes are instances on this host. A step of its own, so that only a host that has any waits for its turn.
pub struct FindClusterNodes;

/// Cordons and drains each of them, moves its instance, and uncordons it once it is Ready on its new host.
pub struct MoveClusterNodes;

/// The one node of the cluster that is just being moved, and how far that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Turn {
    node: String,
    instance: InstanceId,
    stage: TurnStage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case")]
enum TurnStage {
    /// It is cordoned, and its pods are evicted.
    Draining { since: Timestamp },
    /// No pod is on it that had to leave.
    Moving,
    /// Its instance is on another host, or gone.
    Landed { since: Timestamp },
}

fn mark(cx: &StepCx<'_>) -> String {
    format!("turnaround:{}", cx.id)
}

/// Nobody else drains a node of the cluster meanwhile.
fn lock() -> Resource {
    Resource::Lock { name: "cluster-nodes".to_owned() }
}

/// Has it been found that nothing is to be done? Not known in a dry run.
fn found_none(cx: &StepCx<'_>) -> Result<bool, StepError> {
    Ok(cx.output::<FindClusterNodes>()?.is_some_and(|found| found.0.is_empty()))
}

/// The cluster's nodes among `on_node`, by their names.
fn among<'a>(cluster: &'a [ClusterNode], on_node: &'a [Instance]) -> Vec<(&'a ClusterNode, &'a Instance)> {
    let instance = |node: &ClusterNode| on_node.iter().find(|instance| instance.id == node.instance);
    let mut here: Vec<_> = cluster.iter().filter_map(|node| Some((node, instance(node)?))).collect();
    here.sort_by_key(|(node, _)| &node.name);
    here
}

/// What speaks against draining `node` now.
fn objections(cluster: &[ClusterNode], node: &ClusterNode, mark: &str) -> Vec<String> {
    let mut against: Vec<String> = cluster.iter().filter(|one| !one.ready).map(|one| format!("{} is not Ready", one.name)).collect();
    let others = || cluster.iter().filter(|one| one.name != node.name);
    against.extend(others().filter(|one| !one.schedulable).filter_map(|one| {
        let other = one.mark.as_deref().filter(|other| *other != mark)?;
        Some(format!("{} is cordoned for {other}", one.name))
    }));
    if !others().any(|one| one.schedulable) {
        against.push(format!("no other node than {} takes pods", node.name));
    }
    against
}

/// Instances that are nodes of the cluster and take pods: they must not move as they are. By instance, the node's name.
pub(super) async fn undrained(cx: &StepCx<'_>, order: &NodeOrder, on_node: &[Instance]) -> Result<Vec<(InstanceId, String)>, StepError> {
    if order.rules.cluster.is_none() || on_node.is_empty() {
        return Ok(Vec::new());
    }
    let cluster = cx.ports.cluster.nodes().await?;
    let here = among(&cluster, on_node).into_iter().filter(|(node, _)| node.schedulable);
    Ok(here.map(|(node, instance)| (instance.id.clone(), node.name.clone())).collect())
}

#[async_trait]
impl Step for FindClusterNodes {
    const NAME: &'static str = "find-cluster-nodes";
    // Whoever reaches Nova's API reaches an instance that is served to people.
    const QUEUE: Queue = queues::OPENSTACK;
    type Output = ClusterNodesFound;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<ClusterNodesFound>, StepError> {
        let order = order(cx)?;
        if order.rules.cluster.is_none() {
            return Ok(Observed::AlreadyDone(ClusterNodesFound::default()));
        }
        let (cluster, on_node) = (cx.ports.cluster.nodes().await?, cx.ports.instances.on(&order.node).await?);
        let here = among(&cluster, &on_node);
        if cx.begun().is_none() && !here.is_empty() {
            let told: Vec<String> = here.iter().map(|(node, instance)| format!("{} is node {}", instance.name, node.name)).collect();
            return Ok(Observed::ToDo { would: format!("find instances that are nodes of the Kubernetes cluster: {}", told.join(", ")) });
        }
        Ok(Observed::AlreadyDone(ClusterNodesFound(here.iter().map(|(node, _)| node.name.clone()).collect())))
    }

    async fn act(&self, _cx: &StepCx<'_>) -> Result<Progress<ClusterNodesFound>, StepError> {
        Err(StepError::fatal("looking is all there is to do"))
    }
}

#[async_trait]
impl Step for MoveClusterNodes {
    const NAME: &'static str = "move-cluster-nodes";
    const QUEUE: Queue = queues::OPENSTACK;
    type Output = Evacuated;

    fn policy(&self, cx: &StepCx<'_>) -> Policy {
        super::policy(cx)
    }

    fn takes(&self, cx: &StepCx<'_>) -> Result<Vec<Take>, StepError> {
        // Once it has succeeded it has given back what it took, and has nothing more to give where it is undone.
        let holds = !found_none(cx)? && cx.output::<MoveClusterNodes>()?.is_none();
        Ok(if holds { vec![Take::new(lock(), 1)] } else { Vec::new() })
    }

    fn gives(&self, cx: &StepCx<'_>) -> Result<Vec<Resource>, StepError> {
        Ok(if found_none(cx)? { Vec::new() } else { vec![lock()] })
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Evacuated>, StepError> {
        let order = order(cx)?;
        let moves: Moves = cx.checkpoint()?.unwrap_or_default();
        if order.rules.cluster.is_none() || found_none(cx)? {
            return Ok(Observed::AlreadyDone(moves.report()));
        }
        let (cluster, on_node) = (cx.ports.cluster.nodes().await?, cx.ports.instances.on(&order.node).await?);
        let here = among(&cluster, &on_node);
        if here.is_empty() && moves.turn.is_none() && moves.instances.values().all(Moving::has_left) {
            return Ok(Observed::AlreadyDone(moves.report()));
        }
        let told: Vec<String> = here.iter().map(|(node, instance)| format!("{} ({})", node.name, instance.name)).collect();
        let would = format!("one after the other, cordon and drain, move, and uncordon once Ready again: {}", told.join(", "));
        if cx.begun().is_none()
            && let Some((node, _)) = here.first()
        {
            let against = objections(&cluster, node, &mark(cx));
            if !against.is_empty() {
                return Err(StepError { what: would, ..StepError::ask(question_drain(&order, node, &against)) });
            }
        }
        Ok(Observed::ToDo { would })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Evacuated>, StepError> {
        let order = order(cx)?;
        let rules = order.rules.cluster.clone().ok_or_else(|| StepError::fatal("the order knows no cluster"))?;
        super::settle_named(cx, false).await?;
        let mut evacuation = Evacuation::look(cx, &order).await?;
        evacuation.stop_moves().await?;
        evacuation.follow_up().await?;
        evacuation.write_down().await?;
        let cluster = cx.ports.cluster.nodes().await?;
        let turn = match evacuation.moves.turn.clone() {
            Some(turn) => turn,
            None => {
                let Some((node, instance)) = among(&cluster, &evacuation.scene.on_node).into_iter().next() else {
                    return Ok(Progress::Done(evacuation.moves.report()));
                };
                let stage = TurnStage::Draining { since: cx.now() };
                Turn { node: node.name.clone(), instance: instance.id.clone(), stage }
            }
        };
        let node = cluster.iter().find(|node| node.name == turn.node);
        let mut look = Look { evacuation, rules, cluster: &cluster, turn };
        match (look.turn.stage, node) {
            // Somebody has taken it out of the cluster: an instance like others.
            (_, None) => look.ends(format!("{} is no node of the cluster any more", look.turn.node)).await,
            (TurnStage::Draining { since }, Some(node)) => look.drain(node, since).await,
            (TurnStage::Moving, Some(node)) => look.move_on(node).await,
            (TurnStage::Landed { since }, Some(node)) => look.give_back(node, since).await,
        }
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        super::overdue(cx).await
    }

    /// What is under way is seen to its end, and what we have cordoned is uncordoned, wherever it is by now.
    async fn undo(&self, cx: &StepCx<'_>) -> Result<Undone, StepError> {
        let order = order(cx)?;
        if order.rules.cluster.is_none() || found_none(cx)? || cx.output::<MoveClusterNodes>()?.is_some() {
            return Ok(Undone::Done { note: "no node of the cluster is cordoned by us".to_owned() });
        }
        super::settle_named(cx, true).await?;
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
            return Ok(Undone::LookAgain { after, note: "sees to its end the move that is under way".to_owned() });
        }
        evacuation.must_be_told_of_harm().await?;
        let ours = ours(cx).await?;
        for node in &ours {
            cx.guard().await?;
            cx.ports.cluster.uncordon(node).await?;
        }
        Ok(Undone::Done { note: format!("{} nodes of the cluster uncordoned", ours.len()) })
    }

    /// The host stays as it is; the cluster is not to do without a node for it.
    async fn leave(&self, cx: &StepCx<'_>) -> Result<(), StepError> {
        if order(cx)?.rules.cluster.is_none() || found_none(cx)? || cx.output::<MoveClusterNodes>()?.is_some() {
            return Ok(());
        }
        super::confirm_what_waits(cx).await?;
        for node in ours(cx).await? {
            cx.ports.cluster.uncordon(&node).await?;
        }
        Ok(())
    }
}

/// The nodes that carry our mark.
async fn ours(cx: &StepCx<'_>) -> Result<Vec<ClusterNode>, StepError> {
    let mark = mark(cx);
    let mut cluster = cx.ports.cluster.nodes().await?;
    cluster.retain(|node| node.mark.as_ref() == Some(&mark));
    Ok(cluster)
}

/// One look at the node whose turn it is.
struct Look<'a, 'b> {
    evacuation: Evacuation<'a, 'b>,
    rules: OrderedCluster,
    cluster: &'a [ClusterNode],
    turn: Turn,
}

impl Look<'_, '_> {
    async fn drain(&mut self, node: &ClusterNode, since: Timestamp) -> Result<Progress<Evacuated>, StepError> {
        let (cx, order) = (self.evacuation.cx, self.evacuation.order);
        let Some(instance) = self.evacuation.scene.on_node.iter().find(|instance| instance.id == self.turn.instance).cloned() else {
            return self.reaches(TurnStage::Landed { since: cx.now() }).await;
        };
        // Nothing is drained that can't be moved then.
        self.evacuation.must_be_closed().await?;
        let waits = self.evacuation.must_have_room().await?;
        // A node that is cordoned already waits no longer than it must.
        if let Some(note) = waits.filter(|_| self.evacuation.moves.turn.is_none()) {
            return Ok(self.look_again(note));
        }
        if let Class::Block { why, .. } = classify(&instance, order.rules.move_rules()) {
            let stuck = Stuck::of(format!("{} ({}) {why}", instance.name, instance.id));
            return Err(StepError::ask(question(&order.node, &stuck)));
        }
        // The deadline counts from here, also after a crash.
        if self.evacuation.moves.turn.is_none() {
            self.set(TurnStage::Draining { since }).await?;
        }
        let left = self.evict(node).await?;
        if left.waits_for.is_empty() && left.for_a_person.is_empty() {
            return self.reaches(TurnStage::Moving).await;
        }
        let all: Vec<String> = left.for_a_person.iter().chain(&left.waits_for).cloned().collect();
        if left.waits_for.is_empty() || self.is_overdue(since) {
            return Err(StepError::ask(question_drain(order, node, &all)));
        }
        Ok(self.look_again(format!("draining {}: waits for {} of the cluster's pods or nodes", node.name, all.len())))
    }

    /// Cordons it, and asks for the eviction of what is left on it. A refusal that may pass is asked again at the next look.
    async fn evict(&self, node: &ClusterNode) -> Result<Left, StepError> {
        let cx = self.evacuation.cx;
        let mark = mark(cx);
        let mut left = Left { waits_for: objections(self.cluster, node, &mark), for_a_person: Vec::new() };
        if !left.waits_for.is_empty() {
            return Ok(left);
        }
        if node.schedulable {
            if node.mark.as_ref() == Some(&mark) {
                return Err(StepError::ask(question_uncordoned(self.evacuation.order, node)));
            }
            let why = format!("{} is renewed, and its instance moves; since {}", self.evacuation.order.node, cx.now());
            cx.guard().await?;
            cx.ports.cluster.cordon(node, &Cordon { mark, why }).await?;
        }
        for pod in cx.ports.cluster.pods(&node.name).await? {
            if pod.terminating {
                left.waits_for.push(format!("pod {pod} is ending"));
            } else if pod.alone {
                left.for_a_person.push(format!("pod {pod} has no controller: nothing would start it again elsewhere; delete it, or move what it does"));
            } else {
                left.waits_for.push(self.ask_to_go(&pod).await?);
            }
        }
        Ok(left)
    }

    /// What is to be said of the pod after that.
    async fn ask_to_go(&self, pod: &Pod) -> Result<String, StepError> {
        let cx = self.evacuation.cx;
        cx.guard().await?;
        Ok(match cx.ports.cluster.evict(pod).await {
            Ok(Eviction::Accepted) => format!("pod {pod} is ending"),
            Ok(Eviction::NotNow { reason }) => format!("pod {pod} is not evicted: {reason}"),
            // Asking twice is as once, and one pod never holds up the others: an operator reads of it if that lasts.
            Err(error) => format!("pod {pod}: {}", StepError::from(error).chain()),
        })
    }

    async fn move_on(&mut self, node: &ClusterNode) -> Result<Progress<Evacuated>, StepError> {
        let (cx, id) = (self.evacuation.cx, self.turn.instance.clone());
        let known = self.evacuation.moves.instances.get(&id);
        if !known.is_some_and(Moving::is_under_way) {
            let failed = known.is_some_and(|moving| matches!(moving.stage, MoveStage::Failed { .. }));
            let here = self.evacuation.scene.on_node.iter().find(|instance| instance.id == id).cloned();
            match here {
                Some(instance) => {
                    self.evacuation.must_be_closed().await?;
                    if node.schedulable {
                        return self.reaches(TurnStage::Draining { since: cx.now() }).await;
                    }
                    self.evacuation.start_more(vec![instance]).await?;
                    self.evacuation.forget_busy();
                    self.evacuation.write_down().await?;
                }
                None if !failed => return self.reaches(TurnStage::Landed { since: cx.now() }).await,
                None => {}
            }
        }
        self.evacuation.see_progress().await;
        self.evacuation.find_overdue().await?;
        self.evacuation.write_down().await?;
        if let Some(question) = self.evacuation.stuck_for_good(false).await? {
            let question = question.seen(format!("it is node {} of the Kubernetes cluster, and drained", node.name));
            return Err(StepError::ask(question));
        }
        Ok(self.look_again(format!("{} is drained, and its instance moves{}", node.name, self.evacuation.progress())))
    }

    /// Uncordons it once it is Ready again, if the cordon is ours.
    async fn give_back(&mut self, node: &ClusterNode, since: Timestamp) -> Result<Progress<Evacuated>, StepError> {
        let cx = self.evacuation.cx;
        let believed = cx.now().since(since) >= Duration::from_millis(self.rules.min_ready_ms);
        if !believed || !node.ready {
            if believed && self.is_overdue(since) {
                return Err(StepError::ask(question_not_ready(self.evacuation.order, node)));
            }
            return Ok(self.look_again(format!("{} has moved, and is to be Ready there", node.name)));
        }
        if node.mark.as_ref() == Some(&mark(cx)) {
            cx.guard().await?;
            cx.ports.cluster.uncordon(node).await?;
        }
        self.ends(format!("{} has moved", node.name)).await
    }

    /// By the drain's deadline, or that of an operator's newest try.
    fn is_overdue(&self, since: Timestamp) -> bool {
        let cx = self.evacuation.cx;
        let since = cx.patient_since().map_or(since, |tried| since.max(tried));
        cx.now().since(since) >= Duration::from_millis(self.rules.drain_deadline_ms)
    }

    fn look_again(&self, note: String) -> Progress<Evacuated> {
        Progress::LookAgain { after: Duration::from_millis(self.evacuation.order.rules.move_poll_ms), note }
    }

    async fn set(&mut self, stage: TurnStage) -> Result<(), StepError> {
        self.turn.stage = stage;
        self.evacuation.moves.turn = Some(self.turn.clone());
        self.evacuation.changed = true;
        self.evacuation.write_down().await
    }

    async fn reaches(&mut self, stage: TurnStage) -> Result<Progress<Evacuated>, StepError> {
        self.set(stage).await?;
        let what = match stage {
            TurnStage::Draining { .. } => "is to be drained again",
            TurnStage::Moving => "is drained",
            TurnStage::Landed { .. } => "has left",
        };
        Ok(Progress::LookAgain { after: AT_ONCE, note: format!("{} {what}", self.turn.node) })
    }

    async fn ends(&mut self, note: String) -> Result<Progress<Evacuated>, StepError> {
        self.evacuation.moves.turn = None;
        self.evacuation.changed = true;
        self.evacuation.write_down().await?;
        Ok(Progress::LookAgain { after: AT_ONCE, note })
    }
}

/// What keeps a node from being drained, one line each.
struct Left {
    /// It may pass.
    waits_for: Vec<String>,
    /// It won't.
    for_a_person: Vec<String>,
}

fn question_drain(order: &NodeOrder, node: &ClusterNode, left: &[String]) -> Question {
    let mut question = Question::new(format!("node {} of the Kubernetes cluster can't be drained, and its instance is still on {}: what now?", node.name, order.node));
    for line in left {
        question = question.seen(line.clone());
    }
    answers(question.answer("retry", AnswerEffect::Retry, "goes on draining it, with a fresh deadline, after you have mended what stood in the way"), order)
}

fn question_uncordoned(order: &NodeOrder, node: &ClusterNode) -> Question {
    let question = Question::new(format!("node {} of the Kubernetes cluster was uncordoned by somebody while it was being drained: what now?", node.name));
    answers(question.answer("retry", AnswerEffect::Retry, "goes on draining it, once you have cordoned it again"), order)
}

fn question_not_ready(order: &NodeOrder, node: &ClusterNode) -> Question {
    let question = Question::new(format!("node {} of the Kubernetes cluster has left {} and is not Ready: what now?", node.name, order.node));
    answers(question.answer("retry", AnswerEffect::Retry, "waits for it again, after you have mended it"), order)
}

fn answers(question: Question, order: &NodeOrder) -> Question {
    question
        .answer("unwind", AnswerEffect::Unwind, format!("uncordons what we have cordoned, and gives {} back as it was found", order.node))
        .answer("leave", AnswerEffect::Leave, format!("uncordons what we have cordoned, and ends here; {} stays closed, with what is left on it", order.node))
}
