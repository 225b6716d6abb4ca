//! Confirms by more than one witness that nothing lives on a node any more.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::{TakeStock, evacuate, order, queues};
use crate::engine::{AnswerEffect, Observed, PastDeadline, Progress, Question, Step, StepCx, StepError};
use crate::store::Queue;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// What is waited for before anything is wiped, if an operator has asked for another try, also of an earlier step: the node may have been open until then, and an instance whose place
/// was chosen meanwhile is shown to nobody before the node has taken it.
pub(super) fn unsettled_again(cx: &StepCx<'_>) -> Result<Option<String>, StepError> {
    let settle = Duration::from_millis(order(cx)?.rules.settle_ms);
    // A dry run has not begun anything.
    let waits = cx.begun().and(cx.retried()).is_some_and(|again| cx.now().since(again) < settle);
    Ok(waits.then(|| format!("waits {} s for instances that may have been on their way to it until you answered", settle.as_secs())))
}

/// Done when the node is closed, no instance is placed on it, none is on its way out, and the hypervisor agrees.
pub struct ConfirmEmpty;

/// A node that has answered before, and does not tell what runs there for so long (and as long as instances are waited for), is wiped all the same: half dead ones are renewed to be mended.
// An outage of the network is shorter, mostly; a reboot takes longer.
const WAITED_FOR: Duration = Duration::from_secs(2 * 60);

/// The virtual machines that run on the node, by its own word; none where it does not tell. Err(why): it may tell yet.
pub(super) async fn guests(cx: &StepCx<'_>, node: &NodeName) -> Result<Result<BTreeSet<String>, String>, StepError> {
    let error = match cx.ports.facts.guests(node).await {
        Ok(guests) => return Ok(Ok(guests)),
        Err(error) => StepError::from(error),
    };
    let answered = cx.output::<TakeStock>()?.is_some_and(|stock| stock.hostname.is_some());
    // Nobody has asked it during a pause, nor while instances were waited for that may have been on their way.
    let waited = WAITED_FOR + Duration::from_millis(order(cx)?.rules.settle_ms);
    let is_patient = cx.patient_since().is_none_or(|since| cx.now().since(since) < waited);
    Ok(if answered && is_patient { Err(format!("{node} does not tell what runs on it: {}", error.chain())) } else { Ok(BTreeSet::new()) })
}

/// By the node's own word: what runs there, and nobody has named yet. Nova does not know everything, and the node that it speaks of may be another one than that which answers us.
pub(super) fn guests_beside(guests: &BTreeSet<String>, named: &[String]) -> Vec<String> {
    let is_named = |guest: &String| named.iter().any(|objection| objection.contains(guest.as_str()));
    let beside = guests.iter().filter(|guest| !is_named(guest));
    beside.map(|guest| format!("by its own processes, virtual machine {guest} runs on it, and Nova has none such there: see that it is the node that Nova calls so")).collect()
}

/// What speaks against the node being closed and empty, one line each; an instance has one, however many witnesses have it.
pub(super) async fn objections(cx: &StepCx<'_>, node: &NodeName) -> Result<Vec<String>, StepError> {
    let mut objections = Vec::new();
    if cx.ports.compute.service(node).await?.enabled {
        objections.push(format!("{node} is open: instances may land on it"));
    }
    // Each with what is told of it, and whether Nova has it placed here.
    let mut named: Vec<(String, String, bool)> = Vec::new();
    for instance in cx.ports.instances.on(node).await? {
        let told = format!("instance {} ({}) is on it, {}", instance.name, instance.id, instance.vm_state);
        named.push((instance.id.to_string(), told, true));
    }
    let moving = cx.ports.instances.moving(node).await?;
    for migration in evacuate::counting(cx, moving, &evacuate::disregarded(cx)?).await? {
        let to = migration.destination.as_deref().unwrap_or("wherever Nova chooses");
        let id = migration.instance.to_string();
        let way = format!("on its way to {to} ({})", migration.status);
        match named.iter_mut().find(|(known, ..)| *known == id) {
            Some((_, told, _)) => *told = format!("{told}, and {way}"),
            None => named.push((id.clone(), format!("instance {id} is {way}"), false)),
        }
    }
    for id in cx.ports.compute.hypervisor(node).await?.running {
        match named.iter_mut().find(|(known, ..)| *known == id) {
            Some((_, _, true)) => {}
            Some((_, told, false)) => *told = format!("{told}, and the hypervisor still has it"),
            None => named.push((id.clone(), format!("the hypervisor still has instance {id}"), false)),
        }
    }
    objections.extend(named.into_iter().map(|(_, told, _)| told));
    Ok(objections)
}

#[async_trait]
impl Step for ConfirmEmpty {
    const NAME: &'static str = "confirm-empty";
    const QUEUE: Queue = queues::OPENSTACK;
    type Output = Empty;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Empty>, StepError> {
        let order = order(cx)?;
        let objections = objections(cx, &order.node).await?;
        if objections.is_empty() && cx.begun().is_none() {
            return Ok(Observed::ToDo { would: format!("make sure that {} is empty; now: it is", order.node) });
        }
        if objections.is_empty() && unsettled_again(cx)?.is_none() {
            return Ok(Observed::AlreadyDone(Empty {}));
        }
        let now = if objections.is_empty() { unsettled_again(cx)?.unwrap_or_default() } else { objections.join("; ") };
        Ok(Observed::ToDo { would: format!("make sure that {} is empty; now: {now}", order.node) })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Empty>, StepError> {
        let order = order(cx)?;
        let node = order.node;
        let objections = objections(cx, &node).await?;
        if let (true, Some(note)) = (objections.is_empty(), unsettled_again(cx)?) {
            return Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.node_poll_ms), note });
        }
        let mut question = Question::new(format!("{node} was emptied and is not empty: what now?"));
        for objection in objections {
            question = question.seen(objection);
        }
        Err(StepError::ask(
            question
                .answer("retry", AnswerEffect::Retry, "looks again: move what is left first, and close the node if it is open")
                .answer("unwind", AnswerEffect::Unwind, "gives the node back as it was found, without renewing it"),
        ))
    }

    /// Who has just resumed it is not asked why a wait that begins with that is not over.
    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        Ok(if unsettled_again(cx)?.is_some() { PastDeadline::Act } else { PastDeadline::Fail })
    }
}
