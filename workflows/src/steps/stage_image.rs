//! Stages what the node will install at its next netboot.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::confirm_empty::guests;
use super::{order, queues};
use crate::chance;
use crate::engine::{AnswerEffect, Question, Observed, Progress, Step, StepCx, StepError, Undone};
use crate::ports::{BootTicket, PortErrorKind, Ports, Token};
use crate::store::{Queue, WorkflowId};
use crate::updates::NodeOrder;

/// What is staged, and how the node was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    pub ticket: BootTicket,
    /// None if the node did not answer.
    pub boot_id_before: Option<String>,
}

/// Writes the node's boot configuration with a token of this attempt. A boot ticket of somebody else's is replaced.
pub struct StageImage;

fn fresh_ticket(cx: &StepCx<'_>, order: &NodeOrder) -> BootTicket {
    let token = Token(format!("{}-{}-{:08x}", cx.id, cx.fence().0, chance::draw(|random| random.next_u32())));
    let report = order.rules.installer.as_ref().map(|reports| format!("{}/installer/{token}", reports.url));
    BootTicket { token, image: order.image.name.clone(), sha256: order.image.sha256.clone(), report }
}

/// Asked before anything is staged, where the way back is still open.
fn question_guests(node: &NodeName, guests: &BTreeSet<String>) -> Question {
    let mut question = Question::new(format!("{node} is empty by Nova's word, and not by its own: what now?"));
    for guest in guests {
        question = question.seen(format!("by its own processes, virtual machine {guest} runs on it"));
    }
    let retry = "asks the node again: move or stop what runs there first, and close the node if it is open; if it is not the machine that Nova calls so, correct `nova_host` or `ssh_address` in the configuration, and restart the workers";
    question
        .answer("retry", AnswerEffect::Retry, retry)
        .answer("unwind", AnswerEffect::Unwind, "gives the node back as it was found, without renewing it")
}

#[async_trait]
impl Step for StageImage {
    const NAME: &'static str = "stage-image";
    const QUEUE: Queue = queues::PXE;
    type Output = Staged;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Staged>, StepError> {
        let order = order(cx)?;
        if cx.begun().is_none() {
            cx.ports.netboot.would_take(&order.node).await?;
        }
        let there = cx.ports.netboot.staged(&order.node).await?;
        let known: Option<Staged> = cx.checkpoint()?;
        match known {
            Some(staged) if there.as_ref() == Some(&staged.ticket) => Ok(Observed::AlreadyDone(staged)),
            Some(_) | None => {
                Ok(Observed::ToDo { would: format!("stage image {} ({}) for {}", order.image.name, order.image.version, order.node) })
            }
        }
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Staged>, StepError> {
        let order = order(cx)?;
        let staged = match cx.checkpoint()? {
            Some(staged) => staged,
            None => {
                let guests = match guests(cx, &order.node).await? {
                    Ok(guests) => guests,
                    Err(note) => return Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.node_poll_ms), note }),
                };
                if !guests.is_empty() {
                    return Err(StepError::ask(question_guests(&order.node, &guests)));
                }
                let boot_id_before = cx.ports.facts.facts(&order.node).await.ok().map(|facts| facts.boot_id);
                let staged = Staged { ticket: fresh_ticket(cx, &order), boot_id_before };
                cx.save(&staged, format!("token {}", staged.ticket.token)).await?;
                staged
            }
        };
        cx.guard().await?;
        cx.ports.netboot.stage(&order.node, &staged.ticket).await?;
        Ok(Progress::Done(staged))
    }

    async fn undo(&self, cx: &StepCx<'_>) -> Result<Undone, StepError> {
        let order = order(cx)?;
        if !is_ours(cx, &order).await? {
            return Ok(Undone::Done { note: "no boot ticket of ours is staged".to_owned() });
        }
        cx.guard().await?;
        cx.ports.netboot.withdraw(&order.node).await?;
        Ok(Undone::Done { note: "boot ticket withdrawn".to_owned() })
    }

    /// A node that is left is mended by hand, and opened one day. Whatever netboots it then must not wipe it.
    async fn leave(&self, cx: &StepCx<'_>) -> Result<(), StepError> {
        let order = order(cx)?;
        if is_ours(cx, &order).await? {
            cx.ports.netboot.withdraw(&order.node).await?;
        }
        Ok(())
    }

    async fn discard(&self, ports: &Ports, id: &WorkflowId, target: &str) -> Result<(), StepError> {
        let Ok(node) = target.parse::<NodeName>() else { return Ok(()) };
        let is_ours = match ports.netboot.staged(&node).await {
            Ok(there) => there.is_some_and(|there| there.token.0.starts_with(&format!("{id}-"))),
            // As in `is_ours`; what is not ours, or not of a node that there still is, nobody lets us withdraw.
            Err(error) if matches!(error.kind, PortErrorKind::Refused { .. }) => true,
            Err(error) => return Err(error.into()),
        };
        if !is_ours {
            return Ok(());
        }
        match ports.netboot.withdraw(&node).await {
            Err(error) if matches!(error.kind, PortErrorKind::Refused { .. }) => Ok(()),
            withdrawn => Ok(withdrawn?),
        }
    }
}

/// Is what is staged our ticket, or can it be?
async fn is_ours(cx: &StepCx<'_>, order: &NodeOrder) -> Result<bool, StepError> {
    let Some(known) = cx.checkpoint::<Staged>()? else { return Ok(false) };
    match cx.ports.netboot.staged(&order.node).await {
        Ok(there) => Ok(there.as_ref() == Some(&known.ticket)),
        // Ours may be the ticket of an image whose settings have changed since. What is not ours, nobody lets us withdraw.
        Err(error) if matches!(error.kind, PortErrorKind::Refused { .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
