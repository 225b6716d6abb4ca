//! Resets a node into the network, once, and settles by looking whether that has happened.
//!
//! A BMC's answer proves nothing: Redfish acknowledges a reset before anything happens, a lost IPMI answer makes the client
//! repeat it, and the one-shot boot device is gone after the first of two resets. So the intent is written down first, and
//! what became of it is read from the node's boot id and the BMC's boot device.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::confirm_empty::{guests_beside, objections};
use super::{StageImage, needed};
use crate::clock::Timestamp;
use crate::engine::{AnswerEffect, Question, Step as _, StepCx, StepError};
use crate::ports::{BootDevice, Facts, Machine, PortErrorKind, Power};

/// What was seen may be acted upon for this long. Between the look and the reset an outage of the store may have been waited
/// out, and somebody may have opened the node meanwhile.
// Four questions to a slow Nova take 10 s.
pub(super) const LOOK_IS_GOOD_FOR: Duration = Duration::from_secs(30);
/// A node that still runs as before this long after a reset was meant was never reset.
// 30 s until it is asked for, 60 s each for reading and asking a slow BMC, which then took up to 5 s to cut the power: 160 s
// with some room. Some BMCs drop the boot device after 60 s, so its absence proves nothing earlier.
pub(super) const RESET_NEVER_HAPPENED: Duration = Duration::from_secs(180);
/// From a reset until the firmware has chosen a boot device, at most.
// The slowest self-test we measured is 9 min; half of it on top, because resetting a machine in its self-test starts it anew.
const SELF_TEST_MAX: Duration = Duration::from_secs(14 * 60);

/// A reset that was meant to happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reset {
    /// The node's boot id before; None if it did not answer.
    pub(super) boot_id_before: Option<String>,
    pub(super) intended: Timestamp,
    /// The BMC acknowledged it.
    pub(super) acknowledged: bool,
    /// It was never asked for: something kept us from it at the last moment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) never_sent: bool,
    /// What came in place of a yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) said: Option<String>,
}

/// Why a reset was not carried out.
pub(super) enum NotCarriedOut {
    /// The BMC was not asked.
    NeverSent(StepError),
    /// It was, and may have done it.
    Perhaps(StepError),
}

/// What became of a reset.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// The node has gone down, or come up again since.
    Happened,
    /// It can't be told yet; if it stays as it is, it will be `until` then.
    TooEarly { until: Timestamp },
    /// It never happened, and may be ordered again.
    NeverHappened,
}

/// What is told meanwhile.
pub(super) fn looks_for_the_reset(until: Timestamp) -> String {
    format!("looks whether the reset has happened; only at {until} is it certain that it has not")
}

/// The node's boot id, to tell a boot by. None where it does not answer, or makes no sense: a node that is half dead is wiped all the same.
async fn boot_id(cx: &StepCx<'_>, node: &NodeName) -> Result<Option<String>, StepError> {
    match cx.ports.facts.facts(node).await {
        Ok(facts) => Ok(Some(facts.boot_id)),
        Err(error) if matches!(error.kind, PortErrorKind::Unavailable | PortErrorKind::Garbled { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The node's own word; None while it does not answer, or what answers is not known to be it: an installer has a key of its own.
pub(super) async fn facts(cx: &StepCx<'_>, node: &NodeName) -> Result<Option<Facts>, StepError> {
    match cx.ports.facts.facts(node).await {
        Ok(facts) => Ok(Some(facts)),
        Err(error) if matches!(error.kind, PortErrorKind::Unavailable | PortErrorKind::Refused { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Looks what became of `reset`.
pub(super) async fn settle(cx: &StepCx<'_>, node: &NodeName, reset: &Reset) -> Result<Settled, StepError> {
    if reset.acknowledged {
        return Ok(Settled::Happened);
    }
    if reset.never_sent {
        return Ok(Settled::NeverHappened);
    }
    let (now, answers) = match cx.ports.facts.facts(node).await {
        Ok(facts) => (Some(facts), true),
        Err(error) => match error.kind {
            // (What answers is not known to be it.)
            PortErrorKind::Unavailable | PortErrorKind::Refused { .. } => (None, false),
            // It answers, if nothing of use.
            PortErrorKind::Garbled { .. } => (None, true),
            PortErrorKind::OutcomeUnknown | PortErrorKind::NotFound | PortErrorKind::Denied { .. } => return Err(error.into()),
        },
    };
    let ticket = needed(cx.output::<StageImage>()?, StageImage::NAME)?.ticket;
    let as_before = match (&now, &reset.boot_id_before) {
        // It carries what only a reset of ours can have brought, whatever its BMC says. (If it had answered before, that may have been an earlier one.)
        (Some(now), None) if now.installed.as_ref().is_some_and(|installed| installed.token == ticket.token) => return Ok(Settled::Happened),
        // It answered before, and has gone down, or come up with something else since, as an installer does that knows nothing of what we ask.
        (None, Some(_)) => return Ok(Settled::Happened),
        (Some(now), Some(before)) if now.boot_id != *before => return Ok(Settled::Happened),
        (Some(_), Some(_) | None) => true,
        (None, None) if answers => true,
        (None, None) => match cx.ports.bmc.power(node).await? {
            Power::On => false,
            Power::Changing => return Ok(Settled::Happened),
            // Perhaps it was off before, too.
            Power::Off => true,
        },
    };
    let certain_after = match (as_before, &reset.boot_id_before) {
        // (Its BMC may be what does not answer; it has nothing to add.)
        (true, Some(_)) => RESET_NEVER_HAPPENED,
        (_, _) => match (as_before, cx.ports.bmc.boot_override(node).await?.device == BootDevice::Pxe) {
            // It never answered, and a boot has consumed its boot device.
            (_, false) => return Ok(Settled::Happened),
            (true, true) => RESET_NEVER_HAPPENED,
            (false, true) => SELF_TEST_MAX,
        },
    };
    let until = reset.intended + certain_after;
    Ok(if cx.now() < until { Settled::TooEarly { until } } else { Settled::NeverHappened })
}

/// Asks the operator where the BMC that would reset the node, or the MAC address that it would be installed by, is another one's, which nobody has emptied.
async fn is_its_own(cx: &StepCx<'_>, node: &NodeName) -> Result<(), StepError> {
    let question = match cx.ports.bmc.machine(node).await? {
        Machine::Of(other) => Some(wrong_bmc(node, &other)),
        Machine::Own | Machine::Unknown { .. } => wrong_mac(cx, node).await,
    };
    let Some(question) = question.filter(|question| cx.answer_to(&question.text).is_none_or(|answered| answered.key != RESET)) else { return Ok(()) };
    let question = question.seen(withdrawn(cx, node).await?);
    Err(StepError::ask(
        question
            .answer("retry", AnswerEffect::Retry, "asks again: correct the configuration first, and restart the workers")
            .answer("leave", AnswerEffect::Leave, "ends here; the node stays closed, and its boot ticket is withdrawn"),
    ))
}

/// The answer by which a node is reset although its system does not show the interface that it netboots by.
const RESET: &str = "reset";

/// Which machine of the configuration the node is, by its own word; unknown where it does not tell: half dead ones are renewed to be mended.
pub(super) async fn machine_by_its_word(cx: &StepCx<'_>, node: &NodeName) -> Machine {
    cx.ports.facts.machine(node).await.unwrap_or(Machine::Unknown { macs: Vec::new() })
}

/// What is asked where the `mac` of the configuration is none of the node's, by its own word. Its BMC may tell that address all the same: where both are another node's, each agrees
/// with the other.
async fn wrong_mac(cx: &StepCx<'_>, node: &NodeName) -> Option<Question> {
    match machine_by_its_word(cx, node).await {
        Machine::Own => None,
        Machine::Unknown { macs } if macs.is_empty() => None,
        Machine::Of(other) => {
            let seen = format!("by its own word, {node} has the `mac` of {other}, and not the one that the configuration gives it: what is ordered for {node} may be installed on {other}");
            let which = "either `mac` or `ssh_address` of the two is wrong in the configuration, and then perhaps `bmc`, too: `ip link` on the nodes tells which";
            Some(Question::new(format!("the configuration gives {node} the MAC address of another node: what now?")).seen(seen).seen(which))
        }
        Machine::Unknown { macs } => {
            let question = Question::new(format!("{node} has no interface with the MAC address that the configuration gives it: what now?"));
            let question = question.seen(format!("by its own word it has {}: another machine may have that address, and be installed in its place", some_of(&macs)));
            Some(question.answer(RESET, AnswerEffect::Retry, "resets it all the same: it has that interface, and its system does not show it (as where DPDK or a virtual machine has it)"))
        }
    }
}

/// MAC addresses that an operator is shown: a node with many virtual functions has hundreds.
const MACS_SHOWN: usize = 8;

fn some_of(macs: &[String]) -> String {
    let shown = macs.iter().take(MACS_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match macs.len().saturating_sub(MACS_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn wrong_bmc(node: &NodeName, other: &NodeName) -> Question {
    let seen = format!("the `mac` of {other} is among those that the BMC of {node} tells, and the `mac` of {node} is not: to reset {node} may take down {other}");
    let which = "either `bmc` or `mac` of the two is wrong in the configuration: `ip link` on the nodes tells which; to correct the right one may wipe the wrong node";
    Question::new(format!("the configuration gives {node} the BMC of {other}, or its MAC address: what now?")).seen(seen).seen(which)
}

/// What a dry run has to say of its BMC, and of what it would do.
pub(super) async fn would_netboot(cx: &StepCx<'_>, node: &NodeName) -> Result<String, StepError> {
    let would = format!("netboot {node} by its BMC, which wipes its system disk");
    let machine = cx.ports.bmc.machine(node).await?;
    if !matches!(machine, Machine::Of(_))
        && let Some(question) = wrong_mac(cx, node).await
    {
        return Err(StepError::ask(question));
    }
    match machine {
        Machine::Own => Ok(would),
        Machine::Of(other) => Err(StepError::ask(wrong_bmc(node, &other))),
        Machine::Unknown { macs } if macs.is_empty() => Ok(format!("{would}; whether it is this node's, the BMC does not tell")),
        Machine::Unknown { macs } => {
            Ok(format!("{would}; the BMC tells the MAC addresses {}, and not that of the node: see that it is this node's", some_of(&macs)))
        }
    }
}

/// Makes ready for a reset into the network: looks a last time, sees to the boot ticket, and sets the boot device. What it returns must be written
/// down before [`carry_out`]. `guests` run on the node, by its own word.
pub(super) async fn prepare(cx: &StepCx<'_>, node: &NodeName, guests: &BTreeSet<String>) -> Result<Reset, StepError> {
    is_its_own(cx, node).await?;
    last_look(cx, node, guests).await?;
    stage_again(cx, node).await?;
    let boot_id_before = boot_id(cx, node).await?;
    cx.guard().await?;
    cx.ports.bmc.netboot_next(node).await?;
    // Not when this call began: how long ago it was meant tells later whether it can still happen.
    Ok(Reset { boot_id_before, intended: cx.just_now().await, acknowledged: false, never_sent: false, said: None })
}

/// Sees to it that the node will install what was ordered. Its boot ticket may be gone by now: an operator wanted to leave the node,
/// its ticket was withdrawn, the answer to that was lost, and so it was not left.
async fn stage_again(cx: &StepCx<'_>, node: &NodeName) -> Result<(), StepError> {
    let ticket = needed(cx.output::<StageImage>()?, StageImage::NAME)?.ticket;
    if cx.ports.netboot.staged(node).await?.as_ref() == Some(&ticket) {
        return Ok(());
    }
    cx.guard().await?;
    cx.ports.netboot.stage(node, &ticket).await?;
    Ok(())
}

/// Carries out what was meant, at once: some BMCs drop the boot device after 60 s.
pub(super) async fn carry_out(cx: &StepCx<'_>, node: &NodeName, reset: &Reset) -> Result<(), NotCarriedOut> {
    may_reset(cx, node, reset).await.map_err(NotCarriedOut::NeverSent)?;
    cx.ports.bmc.reset(node).await.map_err(|error| NotCarriedOut::Perhaps(error.into()))
}

async fn may_reset(cx: &StepCx<'_>, node: &NodeName, reset: &Reset) -> Result<(), StepError> {
    last_look(cx, node, &BTreeSet::new()).await?;
    // The last thing before what can't be taken back: is the workflow still ours?
    cx.guard().await?;
    // Last of all, because the guard too may have waited for the store.
    if cx.just_now().await.since(reset.intended) > LOOK_IS_GOOD_FOR {
        return Err(StepError::retry(format!("too much time has passed since {node} was made ready for its reset")));
    }
    Ok(())
}

/// A node that is not to be wiped now must not be by a restart of its own, while an operator is asked. [`stage_again`] takes that back.
async fn disarm(cx: &StepCx<'_>, node: &NodeName) -> Result<(), StepError> {
    cx.guard().await?;
    cx.ports.netboot.withdraw(node).await?;
    Ok(())
}

/// The same, of what is our own: its boot ticket is there only while it is about to be reset, or may be being installed. Who waits for anything else may wait for long, and the node may be
/// opened meanwhile without a word to us.
pub(super) async fn disarm_ours(cx: &StepCx<'_>, node: &NodeName) -> Result<(), StepError> {
    let ours = needed(cx.output::<StageImage>()?, StageImage::NAME)?.ticket;
    let is_ours = match cx.ports.netboot.staged(node).await {
        Ok(there) => there.as_ref() == Some(&ours),
        // Ours may be the ticket of an image whose settings have changed since.
        Err(error) if matches!(error.kind, PortErrorKind::Refused { .. }) => true,
        Err(error) => return Err(error.into()),
    };
    if is_ours { disarm(cx, node).await } else { Ok(()) }
}

/// Withdraws its boot ticket for the time in which an operator is asked, and tells whether that could be done.
async fn withdrawn(cx: &StepCx<'_>, node: &NodeName) -> Result<String, StepError> {
    match disarm(cx, node).await {
        Ok(()) => Ok("its boot ticket is withdrawn for now: if it netboots, nothing is installed".to_owned()),
        Err(error) if error.is_lost() => Err(error),
        Err(error) => Ok(format!("its boot ticket could NOT be withdrawn ({}): if it netboots now, its disk is overwritten", error.chain())),
    }
}

/// Asks the operator unless the node is closed and empty. `guests` run there, by its own word.
async fn last_look(cx: &StepCx<'_>, node: &NodeName, guests: &BTreeSet<String>) -> Result<(), StepError> {
    let mut objections = objections(cx, node).await?;
    objections.extend(guests_beside(guests, &objections));
    if objections.is_empty() || cfg!(feature = "bug-no-last-look") {
        return Ok(());
    }
    let mut question = Question::new(format!("{node} is not closed and empty right before its reset: what now?"));
    for objection in objections {
        question = question.seen(objection);
    }
    question = question.seen(withdrawn(cx, node).await?);
    Err(StepError::ask(
        question
            .answer("retry", AnswerEffect::Retry, "looks again, and resets the node if it is closed and empty then")
            .answer("leave", AnswerEffect::Leave, "ends here; the node stays closed, and its boot ticket is withdrawn"),
    ))
}
