//! Closes a node for new instances, and remembers how it was found.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tracing::warn;
use turnaround_config::NodeName;

use super::netboot::LOOK_IS_GOOD_FOR;
use super::{node_lock, node_out, order, queues, verify_alerts};
use crate::clock::Timestamp;
use crate::engine::{Observed, Progress, Step, StepCx, StepError, Undone};
use crate::ports::{ComputeService, Hypervisor, PortError, PortErrorKind};
use crate::store::{Queue, Resource, Take, WorkflowId};
use crate::updates::NodeOrder;

/// Begins every reason that we leave in Nova's `disabled_reason`.
const OURS: &str = "turnaround";
/// Nova keeps at most 255 characters of a reason.
const REASON_CHARS_MAX: usize = 255;

/// How the node was found. Written down before it is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// May it be reopened at the end? Only if it was open when the first of our workflows came.
    pub reopen: bool,
    /// What its compute service looked like.
    pub found: ComputeService,
    /// What its hypervisor offered; None if Nova knew of none.
    pub hypervisor: Option<Hypervisor>,
    /// What Placement had of it in all, by resource class; None if it did not say. Older workflows don't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<BTreeMap<String, u64>>,
    /// Its network agents that reported; None if nobody said. Older workflows don't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<BTreeSet<String>>,
    /// The alerts that fired about it; None if nobody said, or nobody was asked. Older workflows don't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alerts: Option<BTreeSet<String>>,
    /// Whose share of the budget was taken over: an operator had left the node in the middle of that workflow, and nobody has renewed or released
    /// it since. None if nobody had one. Older workflows don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_by: Option<WorkflowId>,
}

impl Closed {
    /// Had an operator left it in the middle of an earlier workflow of ours? Perhaps because something is missing: what it has now is no measure
    /// for what it must have, whoever has opened it since.
    pub(super) fn was_left(&self, id: &WorkflowId) -> bool {
        self.left_by.is_some() || !self.found.enabled && matches!(whose(self.found.disabled_reason.as_deref(), id), Reason::Another { .. })
    }
}

/// Takes the node's lock and a share of the budget, and disables its compute service with our reason. A node that somebody
/// else disabled stays as it is, and is never enabled by us. What Nova has disabled by itself is nobody's wish, and is closed and enabled like an open one.
pub struct Close;

/// Who left a reason.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// This workflow.
    Ours,
    /// Another workflow of ours, which had found the node enabled (or not).
    Another { found_enabled: bool },
    /// Nova itself, which opens the node again as soon as the fault is gone that it has seen.
    Nova,
    /// Somebody else.
    Foreign,
}

/// Begins what Nova writes where it disables a service by itself, because libvirt is lost (nova/virt/libvirt/driver.py, `_set_host_enabled`), and
/// is how it knows which ones it may enable again.
const BY_NOVA: &str = "AUTO: ";

/// Begins the text of a reason once an operator has left the node as it is.
const LEFT: &str = " left closed";

/// Has a workflow of ours closed it that is not this one, to renew it, and has nobody left it since?
pub(super) fn is_being_renewed(reason: Option<&str>, id: &WorkflowId) -> bool {
    let text = reason.unwrap_or_default().splitn(4, ':').nth(3);
    matches!(whose(reason, id), Reason::Another { .. }) && text.is_some_and(|text| !text.starts_with(LEFT))
}

/// `turnaround:<workflow>:found-enabled: <text>`
fn reason(id: &WorkflowId, found_enabled: bool, text: &str) -> String {
    let found = if found_enabled { "found-enabled" } else { "found-disabled" };
    format!("{OURS}:{id}:{found}: {text}").chars().take(REASON_CHARS_MAX).collect()
}

pub(super) fn whose(reason: Option<&str>, id: &WorkflowId) -> Reason {
    if reason.is_some_and(|reason| reason.starts_with(BY_NOVA)) {
        return Reason::Nova;
    }
    let mut parts = reason.unwrap_or_default().splitn(4, ':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(OURS), Some(owner), Some(_)) if owner == id.as_str() => Reason::Ours,
        (Some(OURS), Some(_), Some(found)) => Reason::Another { found_enabled: found == "found-enabled" },
        (_, _, _) => Reason::Foreign,
    }
}

#[async_trait]
impl Step for Close {
    const NAME: &'static str = "close";
    const QUEUE: Queue = queues::OPENSTACK;
    type Output = Closed;

    fn takes(&self, cx: &StepCx<'_>) -> Result<Vec<Take>, StepError> {
        let order = order(cx)?;
        Ok(vec![
            Take::new(node_lock(&order), 1),
            Take { alone: order.alone, ..Take::new(node_out(&order), order.rules.max_out) },
        ])
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Closed>, StepError> {
        let order = order(cx)?;
        let service = cx.ports.compute.service(&order.node).await?;
        let known: Option<Closed> = cx.checkpoint()?;
        let ours = whose(service.disabled_reason.as_deref(), cx.id) == Reason::Ours;
        match known {
            Some(closed) if !service.enabled && (ours || !closed.reopen) => Ok(Observed::AlreadyDone(closed)),
            _ => Ok(Observed::ToDo { would: would(&order.node, &service, cx.id) }),
        }
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Closed>, StepError> {
        let order = order(cx)?;
        let closed = match cx.checkpoint()? {
            Some(closed) => closed,
            None => {
                let closed = look(cx).await?;
                let found = if closed.reopen { "found open" } else { "found closed" };
                let silent = [(closed.inventory.is_none(), "what Placement has of it"), (closed.agents.is_none(), "its network agents")];
                let silent: Vec<&str> = silent.into_iter().filter_map(|(silent, what)| silent.then_some(what)).collect();
                let note = if silent.is_empty() { found.to_owned() } else { format!("{found}; not to be compared later: {}", silent.join(", ")) };
                cx.save(&closed, note).await?;
                closed
            }
        };
        // Also right after it was written down: that may have waited for the store.
        let looked = cx.just_now().await;
        let closed = heard(cx, closed).await?;
        if closed.reopen {
            let text = format!("node OS update to {} by {}, since {}", order.image.version, cx.created_by(), cx.now());
            fresh(cx, looked, &order.node).await?;
            cx.ports.compute.close(&order.node, &reason(cx.id, true, &text)).await?;
        }
        Ok(Progress::Done(closed))
    }

    async fn undo(&self, cx: &StepCx<'_>) -> Result<Undone, StepError> {
        let order = order(cx)?;
        let known: Option<Closed> = cx.checkpoint()?;
        let note = match known {
            Some(Closed { reopen: true, found, .. }) if !found.enabled => return leave_again(cx, &order, &found).await,
            Some(closed) if closed.reopen => reopen_if_ours(cx, &order.node).await?,
            Some(_) => "left disabled, as found".to_owned(),
            None => return not_ours(cx, &order).await,
        };
        Ok(as_counted(cx, &order, note))
    }

    fn gives(&self, _cx: &StepCx<'_>) -> Result<Vec<Resource>, StepError> {
        Ok(Vec::new())
    }

    /// Nova's reason says so from then on: to people, and to other nodes that look for room. Where Nova does not take it, the node is left all the same, and others
    /// may wait for it, for a while.
    async fn leave(&self, cx: &StepCx<'_>) -> Result<(), StepError> {
        let node = order(cx)?.node;
        let Some(closed) = cx.checkpoint::<Closed>()?.filter(|closed| closed.reopen) else { return Ok(()) };
        let text = format!("{} by an operator, since {}; ordered by {}: `turnaround show {}` says why", LEFT.trim(), cx.now(), cx.created_by(), cx.id);
        let said = match cx.ports.compute.service(&node).await {
            Ok(service) if !service.enabled && whose(service.disabled_reason.as_deref(), cx.id) == Reason::Ours => {
                cx.ports.compute.close(&node, &reason(cx.id, closed.reopen, &text)).await
            }
            other => other.map(drop),
        };
        if let Err(error) = said {
            warn!(%node, error = %StepError::from(error).chain(), "Nova's reason does not say that the node was left");
        }
        Ok(())
    }
}

/// May a node that was found so be reopened at the end? The only judgement of it, for what is done and for what is said of it before.
fn is_to_be_reopened(found: &ComputeService, id: &WorkflowId) -> bool {
    found.enabled
        || match whose(found.disabled_reason.as_deref(), id) {
            Reason::Ours => true,
            Reason::Another { found_enabled } => found_enabled,
            // No person has closed it. Left with that reason, Nova would open it before it is renewed and checked.
            Reason::Nova => true,
            Reason::Foreign => false,
        }
}

/// What is done with a node that was found so, for people.
fn would(node: &NodeName, found: &ComputeService, id: &WorkflowId) -> String {
    let reason = found.disabled_reason.as_deref();
    let why = reason.unwrap_or("no reason given");
    match (found.enabled, is_to_be_reopened(found, id)) {
        (true, _) => format!("disable nova-compute on {node}"),
        (false, _) if whose(reason, id) == Reason::Nova => format!("keep {node} closed, which Nova has disabled by itself ({why}), and enable it at the end"),
        (false, true) if is_being_renewed(reason, id) => format!("keep {node} closed, as another workflow has it ({why}), and enable it at the end"),
        // (How it was found is no measure then, so somebody is asked before.)
        (false, true) => format!("keep {node} closed, as it was left ({why}), and enable it at the end, once an operator has said that it is whole"),
        (false, false) => format!("leave {node} disabled as it is ({why}), and not enable it at the end"),
    }
}

/// Returns only if this worker still holds the workflow, and what was seen at `looked` may be acted upon: the guard too may have waited
/// for the store, and Nova puts one word over another's without telling.
async fn fresh(cx: &StepCx<'_>, looked: Timestamp, node: &NodeName) -> Result<(), StepError> {
    cx.guard().await?;
    if cx.just_now().await.since(looked) > LOOK_IS_GOOD_FOR {
        return Err(StepError::retry(format!("too much time has passed since {node} was looked at")));
    }
    Ok(())
}

/// How the node is now, to be written down.
async fn look(cx: &StepCx<'_>) -> Result<Closed, StepError> {
    let node = order(cx)?.node;
    let found = cx.ports.compute.service(&node).await?;
    let hypervisor = match cx.ports.compute.hypervisor(&node).await {
        Ok(hypervisor) => Some(hypervisor),
        Err(error) if error.kind == PortErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let inventory = told(&node, "what Placement has of it", cx.ports.compute.inventory(&node).await)?;
    let agents = told(&node, "its network agents", cx.ports.compute.agents(&node).await)?;
    let reporting = |(name, reports): (String, bool)| reports.then_some(name);
    // (To whoever is no administrator Neutron shows none.)
    let agents = agents.filter(|agents| !agents.is_empty()).map(|agents| agents.into_iter().filter_map(reporting).collect());
    // No node waits for what alerts: without this, more of them are asked about in the end.
    let alerts = match verify_alerts::firing(cx).await {
        Some(Ok(alerts)) => Some(alerts),
        Some(Err(error)) => {
            warn!(%node, error = %StepError::from(error).chain(), "alerts that fire now will be taken for new ones");
            None
        }
        None => None,
    };
    let reopen = is_to_be_reopened(&found, cx.id);
    let left_by = cx.took_over(&node_out(&order(cx)?)).cloned();
    Ok(Closed { reopen, found, hypervisor, inventory, agents, alerts, left_by })
}

/// What is compared afterwards. Whoever may not ask for it, or asks somebody who is too old, has it not compared.
fn told<T>(node: &NodeName, what: &str, answer: Result<T, PortError>) -> Result<Option<T>, StepError> {
    match answer {
        Ok(told) => Ok(Some(told)),
        Err(error) if error.kind == PortErrorKind::Unavailable => Err(error.into()),
        Err(error) => {
            warn!(%node, error = %StepError::from(error).chain(), "{what} is not compared afterwards");
            Ok(None)
        }
    }
}

/// What was written down before this try. Somebody may have disabled the node since: that is theirs, then, and stays.
async fn heard(cx: &StepCx<'_>, closed: Closed) -> Result<Closed, StepError> {
    let found = cx.ports.compute.service(&order(cx)?.node).await?;
    let by_nova = |service: &ComputeService| !service.enabled && whose(service.disabled_reason.as_deref(), cx.id) == Reason::Nova;
    if found.enabled && by_nova(&closed.found) {
        // Going back, it would be closed again by a word of Nova's that Nova has taken back.
        let closed = Closed { found, ..closed };
        cx.save(&closed, "opened by Nova meanwhile").await?;
        return Ok(closed);
    }
    if !closed.reopen || found.enabled || whose(found.disabled_reason.as_deref(), cx.id) != Reason::Foreign {
        return Ok(closed);
    }
    let closed = Closed { reopen: false, found, ..closed };
    cx.save(&closed, "closed by somebody else meanwhile").await?;
    Ok(closed)
}

/// The node is as it was found. If it counted as out then, because an operator had left it in the middle of an earlier workflow, it goes on
/// counting: also one that somebody else had disabled before any of us came, and that may be down by our doing.
fn as_counted(cx: &StepCx<'_>, order: &NodeOrder, note: String) -> Undone {
    match cx.took_over(&node_out(order)) {
        Some(from) => Undone::DoneKeeping { keeps: vec![node_out(order)], note: format!("{note}; goes on counting as out, as {from} had left it") },
        None => Undone::Done { note },
    }
}

/// We never came to close it. If an earlier workflow of ours had, and an operator left it so, the share that we took over with the node
/// goes on counting: the node is still out.
async fn not_ours(cx: &StepCx<'_>, order: &NodeOrder) -> Result<Undone, StepError> {
    let service = cx.ports.compute.service(&order.node).await?;
    let left = !service.enabled && matches!(whose(service.disabled_reason.as_deref(), cx.id), Reason::Another { .. });
    let note = "was never closed by this workflow";
    Ok(as_counted(cx, order, if left { format!("{note}, and stays as an operator had left it") } else { note.to_owned() }))
}

/// An operator had left the node closed after an earlier workflow of ours, for a good reason: nothing was mended since. It stays
/// closed with the reason it had, and goes on counting as out if it did.
async fn leave_again(cx: &StepCx<'_>, order: &NodeOrder, found: &ComputeService) -> Result<Undone, StepError> {
    let looked = cx.just_now().await;
    let service = cx.ports.compute.service(&order.node).await?;
    if service.enabled {
        return Ok(as_counted(cx, order, "opened by somebody else meanwhile".to_owned()));
    }
    if whose(service.disabled_reason.as_deref(), cx.id) == Reason::Ours {
        fresh(cx, looked, &order.node).await?;
        cx.ports.compute.close(&order.node, found.disabled_reason.as_deref().unwrap_or(OURS)).await?;
    }
    let note = match whose(found.disabled_reason.as_deref(), cx.id) {
        Reason::Nova => "left closed, as Nova had left it: Nova opens it when its libvirt is connected the next time, and not before",
        Reason::Ours | Reason::Another { .. } | Reason::Foreign => "left closed, as an operator had left it",
    };
    Ok(as_counted(cx, order, note.to_owned()))
}

/// Enables the node's compute service unless somebody else has disabled it meanwhile. Says what it did.
pub(super) async fn reopen_if_ours(cx: &StepCx<'_>, node: &NodeName) -> Result<String, StepError> {
    let looked = cx.just_now().await;
    let service = cx.ports.compute.service(node).await?;
    if service.enabled {
        return Ok("open already".to_owned());
    }
    match whose(service.disabled_reason.as_deref(), cx.id) {
        Reason::Ours | Reason::Another { found_enabled: true } => {
            fresh(cx, looked, node).await?;
            cx.ports.compute.reopen(node).await?;
            Ok("reopened".to_owned())
        }
        Reason::Another { found_enabled: false } | Reason::Nova | Reason::Foreign => Ok(format!(
            "left disabled: somebody else disabled it meanwhile ({})",
            service.disabled_reason.as_deref().unwrap_or("no reason given")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_tells_whose_it_is_and_how_the_node_was_found() {
        let me: WorkflowId = "roll-1.gpu-03".parse().unwrap();
        let other: WorkflowId = "roll-2.gpu-03".parse().unwrap();
        let ours = reason(&me, true, "node OS update: by alice");
        assert_eq!(whose(Some(&ours), &me), Reason::Ours);
        assert_eq!(whose(Some(&ours), &other), Reason::Another { found_enabled: true });
        assert_eq!(whose(Some(&reason(&me, false, "x")), &other), Reason::Another { found_enabled: false });
        assert_eq!(whose(Some("broken DIMM, ask bob"), &me), Reason::Foreign);
        assert_eq!(whose(Some("turnaround"), &me), Reason::Foreign);
        assert_eq!(whose(None, &me), Reason::Foreign);
        assert!(reason(&me, true, &"x".repeat(400)).len() <= REASON_CHARS_MAX);
    }

    #[test]
    fn what_is_said_of_a_closed_node_is_what_is_done_with_it() {
        let me: WorkflowId = "roll-1.gpu-03".parse().unwrap();
        let other: WorkflowId = "roll-2.gpu-03".parse().unwrap();
        let node: NodeName = "gpu-03".parse().unwrap();
        let left = |found_enabled| reason(&other, found_enabled, "left closed by an operator, since 22:00");
        let cases = [
            (Some(left(true)), true, "keep gpu-03 closed, as it was left (turnaround:roll-2.gpu-03:found-enabled: left closed by an operator, since 22:00), and enable it at the end, once an operator"),
            (Some(reason(&other, true, "node OS update")), true, "keep gpu-03 closed, as another workflow has it (turnaround:roll-2.gpu-03:found-enabled: node OS update), and enable it at the end"),
            (Some(left(false)), false, "leave gpu-03 disabled as it is (turnaround:roll-2.gpu-03:found-disabled: left closed by an operator, since 22:00), and not enable"),
            (Some("AUTO: Connection to libvirt lost: 1".to_owned()), true, "keep gpu-03 closed, which Nova has disabled by itself (AUTO: Connection to libvirt lost: 1), and enable it at the end"),
            (Some("DIMM, ask bob".to_owned()), false, "leave gpu-03 disabled as it is (DIMM, ask bob), and not enable it at the end"),
            (None, false, "leave gpu-03 disabled as it is (no reason given), and not enable it at the end"),
        ];
        for (disabled_reason, reopened, told) in cases {
            let found = ComputeService { enabled: false, disabled_reason, up: true };
            assert_eq!(is_to_be_reopened(&found, &me), reopened, "{found:?}");
            let would = would(&node, &found, &me);
            assert!(would.starts_with(told), "{would}");
        }
    }
}
