//! Resets a node into the network, once, and settles by looking whether that has happened.
//!
//! A BMC's answer proves nothing: Redfish acknowledges a reset before anything happens, a lost IPMI answer makes the client
//! repeat it, and the one-shot boot device is gone after the first of two resets. So the intent is written down first, and
//! what became of it is read from the node's boot id and the BMC's boot device.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::confirm_empty::objections;
use crate::clock::Timestamp;
use crate::engine::{AnswerEffect, Question, StepCx, StepError};
use crate::ports::{BootDevice, Facts, PortErrorKind, Power};

/// A reset takes effect within this time. Until then a node that still answers says nothing.
// Measured BMCs took up to 5 s from acknowledging a reset to cutting the power; doubled.
const RESET_TAKES_EFFECT: Duration = Duration::from_secs(10);
/// A node that still runs as before this long after a reset, with its boot device gone, was never reset: some BMCs drop
/// the boot device after 60 s.
const RESET_NEVER_HAPPENED: Duration = Duration::from_secs(120);

/// A reset that was meant to happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reset {
    /// The node's boot id before; None if it did not answer.
    pub(super) boot_id_before: Option<String>,
    pub(super) intended: Timestamp,
    /// The BMC acknowledged it.
    pub(super) acknowledged: bool,
}

/// What became of a reset.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// The node has gone down, or come up again since.
    Happened,
    /// It can't be told yet.
    TooEarly,
    /// It never happened, and may be ordered again.
    NeverHappened,
}

/// The node's own word; None while it does not answer.
pub(super) async fn facts(cx: &StepCx<'_>, node: &NodeName) -> Result<Option<Facts>, StepError> {
    match cx.ports.facts.facts(node).await {
        Ok(facts) => Ok(Some(facts)),
        Err(error) if error.kind == PortErrorKind::Unavailable => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Looks what became of `reset`.
pub(super) async fn settle(cx: &StepCx<'_>, node: &NodeName, reset: &Reset) -> Result<Settled, StepError> {
    if reset.acknowledged {
        return Ok(Settled::Happened);
    }
    match facts(cx, node).await? {
        Some(facts) if Some(&facts.boot_id) == reset.boot_id_before.as_ref() => {}
        Some(_) if reset.boot_id_before.is_some() => return Ok(Settled::Happened),
        Some(_) | None if cx.ports.bmc.power(node).await? != Power::On => return Ok(Settled::Happened),
        // It does not answer, as before or since: the boot device tells. A boot consumes it.
        Some(_) | None => {}
    }
    let age = cx.now().since(reset.intended);
    let armed = cx.ports.bmc.boot_override(node).await?.device == BootDevice::Pxe;
    Ok(match (armed, reset.boot_id_before.is_some()) {
        _ if age < RESET_TAKES_EFFECT => Settled::TooEarly,
        (true, _) => Settled::NeverHappened,
        // A node that never answered and has consumed its boot device has booted.
        (false, false) => Settled::Happened,
        (false, true) if facts(cx, node).await?.is_none() => Settled::Happened,
        (false, true) if age < RESET_NEVER_HAPPENED => Settled::TooEarly,
        (false, true) => Settled::NeverHappened,
    })
}

/// Makes ready for a reset into the network: looks a last time, and sets the boot device. What it returns must be written
/// down before [`carry_out`].
pub(super) async fn prepare(cx: &StepCx<'_>, node: &NodeName) -> Result<Reset, StepError> {
    last_look(cx, node).await?;
    let boot_id_before = facts(cx, node).await?.map(|facts| facts.boot_id);
    cx.guard().await?;
    cx.ports.bmc.netboot_next(node).await?;
    Ok(Reset { boot_id_before, intended: cx.now(), acknowledged: false })
}

/// Resets the node, at once after [`prepare`]: some BMCs drop the boot device after 60 s.
pub(super) async fn carry_out(cx: &StepCx<'_>, node: &NodeName) -> Result<(), StepError> {
    last_look(cx, node).await?;
    // The last thing before what can't be taken back: is the workflow still ours?
    cx.guard().await?;
    cx.ports.bmc.reset(node).await?;
    Ok(())
}

/// Asks the operator unless the node is closed and empty.
async fn last_look(cx: &StepCx<'_>, node: &NodeName) -> Result<(), StepError> {
    let objections = objections(cx, node).await?;
    if objections.is_empty() {
        return Ok(());
    }
    let mut question = Question::new(format!("{node} is not closed and empty right before its reset: what now?"));
    for objection in objections {
        question = question.seen(objection);
    }
    Err(StepError::ask(
        question
            .answer("retry", AnswerEffect::Retry, "looks again, and resets the node if it is closed and empty then")
            .answer("leave", AnswerEffect::Leave, "ends here; the node stays closed, with a boot ticket staged"),
    ))
}
