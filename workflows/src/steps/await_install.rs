//! Awaits the node's own word that it was installed by this attempt.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::installer::Heard;
use super::confirm_empty::{guests, unsettled_again};
use super::netboot::{NotCarriedOut, RESET_NEVER_HAPPENED, Reset, Settled, carry_out, disarm_ours, facts, looks_for_the_reset, prepare, settle};
use super::{Reason, Reprovision, StageImage, needed, order, queues};
use crate::clock::Timestamp;
use crate::engine::{AnswerEffect, Observed, PastDeadline, Policy, Progress, Question, Step, StepCx, StepError};
use crate::ports::{BootDevice, Facts, PortError, PortErrorKind, Power};
use crate::store::Queue;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledBoot {
    pub boot_id: String,
}

/// Done when the node has booted since, carries the token of this attempt and the digest of the ordered image, and its boot ticket
/// is withdrawn. "It booted" alone proves nothing: an old disk boots too.
pub struct AwaitInstall;

/// The answer by which it is reset into the network once more.
const NETBOOT: &str = "netboot";

/// The further netboot that an operator wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Again {
    /// When the operator was asked.
    asked: Option<Timestamp>,
    /// What that was about: the boot id that the node had; None if it did not answer. A consent is good for nothing else.
    about: Option<String>,
    /// When the operator wanted that. It stands until it is carried out, or another question is asked: what keeps it from that may be one of its own.
    wanted: Option<Timestamp>,
    pub(super) reset: Option<Reset>,
    /// The newest failure of an installer of which the operator was told; and the newest reset without a word of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    told_failure: Option<Told>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    told_silence: Option<Told>,
}

/// What an operator was told by a question, so that it is not asked for twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    /// When it was heard of, or the reset.
    of: Timestamp,
    at: Timestamp,
}

impl Told {
    /// Has somebody reacted to what was told of this? It may never have been asked: the worker died before.
    fn is_over(told: Option<&Told>, of: Timestamp, cx: &StepCx<'_>) -> bool {
        told.is_some_and(|told| told.of == of && cx.tried_since() > Some(told.at))
    }
}

impl Again {
    /// Is a reset of the node wanted that shows this?
    fn is_wanted(&self, about: Option<&String>) -> bool {
        self.wanted > self.asked && self.about.as_ref() == about
    }

    /// Is a silent node to be reset once more, and has not been yet?
    fn is_still_wanted(&self) -> bool {
        let carried_out = |reset: &Reset| !reset.never_sent && Some(reset.intended) >= self.wanted;
        self.is_wanted(None) && !self.reset.as_ref().is_some_and(carried_out)
    }
}

enum Seen {
    Ours(InstalledBoot),
    /// It answers, but with something else than what was to be installed.
    Other(Facts),
    /// It has not come back yet.
    NotYet,
}

async fn look(cx: &StepCx<'_>) -> Result<Seen, StepError> {
    let order = order(cx)?;
    let staged = needed(cx.output::<StageImage>()?, StageImage::NAME)?;
    let reset = needed(cx.output::<Reprovision>()?, Reprovision::NAME)?;
    let before = reset.boot_id_before.or(staged.boot_id_before);
    let Some(facts) = facts(cx, &order.node).await? else { return Ok(Seen::NotYet) };
    let ours = facts
        .installed
        .as_ref()
        .is_some_and(|installed| installed.token == staged.ticket.token && installed.sha256 == staged.ticket.sha256);
    if ours {
        return Ok(Seen::Ours(InstalledBoot { boot_id: facts.boot_id }));
    }
    // It may still run as before, also where it could not be asked then. A BMC may say yes to a reset and do nothing.
    let as_before = before.is_none_or(|before| before == facts.boot_id);
    let perhaps = cx.now().since(reset.reset_at) <= RESET_NEVER_HAPPENED;
    Ok(if as_before && perhaps { Seen::NotYet } else { Seen::Other(facts) })
}

#[async_trait]
impl Step for AwaitInstall {
    const NAME: &'static str = "await-install";
    const QUEUE: Queue = queues::NODES;
    type Output = InstalledBoot;

    fn policy(&self, cx: &StepCx<'_>) -> Policy {
        let deadline = order(cx).map_or(Policy::default().deadline, |order| Duration::from_millis(order.rules.install_deadline_ms));
        Policy { deadline, ..Policy::default() }
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<InstalledBoot>, StepError> {
        let order = order(cx)?;
        let would = format!("wait until {} reports its installation of {}", order.node, order.image.version);
        if cx.output::<StageImage>()?.is_none() {
            return Ok(Observed::ToDo { would });
        }
        match look(cx).await? {
            Seen::Ours(installed) => match cx.ports.netboot.staged(&order.node).await {
                Ok(None) => Ok(Observed::AlreadyDone(installed)),
                Ok(Some(_)) => Ok(Observed::ToDo { would }),
                // It may still be our ticket, of an image whose settings have changed since: to be withdrawn all the same.
                Err(error) if matches!(error.kind, PortErrorKind::Refused { .. }) => Ok(Observed::ToDo { would }),
                Err(error) => Err(error.into()),
            },
            Seen::Other(_) | Seen::NotYet => Ok(Observed::ToDo { would }),
        }
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<InstalledBoot>, StepError> {
        let order = order(cx)?;
        let poll = Duration::from_millis(order.rules.node_poll_ms);
        match look(cx).await? {
            Seen::NotYet => {
                if let Some(question) = about_the_installer(cx).await? {
                    return Err(StepError::ask(question));
                }
                netboot_again(cx, None, poll).await
            }
            Seen::Ours(installed) => {
                // Whoever netboots this node next must not wipe it.
                cx.guard().await?;
                cx.ports.netboot.withdraw(&order.node).await?;
                Ok(Progress::Done(installed))
            }
            Seen::Other(facts) => netboot_again(cx, Some(&facts), poll).await,
        }
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        if !matches!(look(cx).await?, Seen::NotYet) {
            return Ok(PastDeadline::Act);
        }
        let again: Again = cx.checkpoint()?.unwrap_or_default();
        let question = did_not_come_back(cx, &again, "has not come back from its installation", Reason::DidNotComeBack).await?;
        is_about_to_ask(cx, again, None, "has not come back").await?;
        Ok(PastDeadline::Ask(question))
    }
}

/// Writes down what an operator is asked about.
async fn is_about_to_ask(cx: &StepCx<'_>, again: Again, about: Option<String>, note: &str) -> Result<(), StepError> {
    let heard = Heard::of(cx)?;
    let told = |of: Option<Timestamp>, before: Option<Told>| of.map(|of| Told { of, at: cx.now() }).or(before);
    let told_failure = told(heard.gave_up(), again.told_failure);
    let told_silence = told(heard.is_missing(cx.now()), again.told_silence);
    cx.save(&Again { asked: Some(cx.now()), about, told_failure, told_silence, ..again }, note).await
}

/// What an operator is asked because of what the installer has said, or hasn't; None while there is nothing new. The node is still away.
async fn about_the_installer(cx: &StepCx<'_>) -> Result<Option<Question>, StepError> {
    let heard = Heard::of(cx)?;
    let again: Again = cx.checkpoint()?.unwrap_or_default();
    // Whoever wants it to be reset once more is not asked whether.
    if again.is_still_wanted() || newly_wanted(cx, &again).is_some() {
        return Ok(None);
    }
    // Nor before it is known whether that has happened: until then the old installer may still run.
    if let Some(reset) = again.reset.as_ref().filter(|reset| !reset.acknowledged && !reset.never_sent)
        && !matches!(settle(cx, &order(cx)?.node, reset).await?, Settled::Happened)
    {
        return Ok(None);
    }
    let failure = heard.gave_up().filter(|at| !Told::is_over(again.told_failure.as_ref(), *at, cx));
    let silence = heard.is_missing(cx.now()).filter(|reset| !Told::is_over(again.told_silence.as_ref(), *reset, cx));
    let (what, note, reason) = match (failure, silence) {
        (Some(_), _) => ("was not installed: its installer has given up", "its installer has given up", Reason::InstallerFailed),
        (None, Some(_)) => ("was reset, and no installer has reported", "no installer has reported", Reason::InstallerSilent),
        (None, None) => return Ok(None),
    };
    let question = did_not_come_back(cx, &again, what, reason).await?;
    is_about_to_ask(cx, again, None, note).await?;
    Ok(Some(question))
}

/// When an operator has answered that it is to be reset once more, if that is not written down yet.
fn newly_wanted(cx: &StepCx<'_>, again: &Again) -> Option<Timestamp> {
    cx.answered_at().filter(|answered| cx.answered() == Some(NETBOOT) && Some(*answered) > again.asked.max(again.wanted))
}

/// It has not come back, or with something else (`facts`), about which an operator is asked. Netboots it once more if that is the answer.
async fn netboot_again(cx: &StepCx<'_>, facts: Option<&Facts>, poll: Duration) -> Result<Progress<InstalledBoot>, StepError> {
    let node = order(cx)?.node;
    let heard = Heard::of(cx)?;
    let installs = Progress::LookAgain { after: poll, note: heard.note() };
    let mut again: Again = cx.checkpoint()?.unwrap_or_default();
    let about = facts.map(|facts| facts.boot_id.clone());
    if let Some(answered) = newly_wanted(cx, &again) {
        again.wanted = Some(answered);
        cx.save(&again, "is to be reset into the network once more").await?;
    }
    // Each wish is good for one reset.
    let settled = match &again.reset {
        Some(reset) if Some(reset.intended) >= again.wanted && again.wanted.is_some() => Some(settle(cx, &node, reset).await?),
        Some(_) | None => None,
    };
    let still_as_before = |reset: &Reset| facts.is_some_and(|facts| reset.boot_id_before.as_ref().is_none_or(|before| *before == facts.boot_id)) && cx.now().since(reset.intended) <= RESET_NEVER_HAPPENED;
    match settled {
        Some(Settled::TooEarly { until }) => return Ok(Progress::LookAgain { after: poll, note: looks_for_the_reset(until) }),
        // (A BMC may have said yes and done nothing once more.)
        Some(Settled::Happened) if again.reset.as_ref().is_some_and(still_as_before) => return Ok(installs),
        Some(Settled::NeverHappened) | None if again.is_wanted(about.as_ref()) => {}
        Some(Settled::Happened | Settled::NeverHappened) | None => {
            let Some(facts) = facts else { return Ok(installs) };
            // No installer is at work, and the node runs, so that somebody may take it into service.
            let ticket = match disarm_ours(cx, &node).await {
                Ok(()) => "its boot ticket is withdrawn for now: a netboot by hand installs nothing".to_owned(),
                Err(error) if error.is_lost() => return Err(error),
                Err(error) => format!("its boot ticket could NOT be withdrawn ({}): if it netboots now, its disk is overwritten", error.chain()),
            };
            is_about_to_ask(cx, again, about, "came back with something else").await?;
            return Err(StepError::ask(came_back_wrong(&node, facts, &heard, ticket)));
        }
    }
    if let Some(note) = unsettled_again(cx)? {
        return Ok(Progress::LookAgain { after: poll, note });
    }
    let guests = match guests(cx, &node).await? {
        Ok(guests) => guests,
        Err(note) => return Ok(Progress::LookAgain { after: poll, note }),
    };
    let mut reset = prepare(cx, &node, &guests).await?;
    again.reset = Some(reset.clone());
    cx.save(&again, "about to reset it into the network once more").await?;
    match carry_out(cx, &node, &reset).await {
        Ok(()) => {}
        Err(NotCarriedOut::Perhaps(error)) => return Err(error),
        Err(NotCarriedOut::NeverSent(error)) => {
            if !error.is_lost() {
                reset.never_sent = true;
                again.reset = Some(reset);
                cx.save(&again, "was not reset once more").await?;
            }
            return Err(error);
        }
    }
    reset.acknowledged = true;
    again.reset = Some(reset);
    cx.save(&again, "reset once more").await?;
    Ok(Progress::LookAgain { after: poll, note: heard.nothing_yet().note() })
}

fn came_back_wrong(node: &NodeName, facts: &Facts, heard: &Heard, ticket: String) -> Question {
    let installed = match &facts.installed {
        Some(installed) => format!("it carries the token {} and image {}", installed.token, installed.sha256),
        None => "it carries no installation mark".to_owned(),
    };
    let question = Question::new(format!("{node} runs something else than what was to be installed: what now?"))
        .because(Reason::OtherSystem, format!("OS {}, kernel {}, boot id {}", facts.os_version_id, facts.kernel, facts.boot_id))
        .seen(installed)
        .seen(ticket);
    let mut words = heard.seen().into_iter();
    // The old system may be up before anybody has read why it was not replaced.
    let question = match heard.gave_up().and_then(|_| words.next()) {
        Some(gave_up) => question.because(Reason::InstallerFailed, gave_up),
        None => question,
    };
    with_answers(words.fold(question, Question::seen), "looks again, after you have mended it")
}

/// With all that can be seen of a node that is silent.
async fn did_not_come_back(cx: &StepCx<'_>, again: &Again, what: &str, reason: Reason) -> Result<Question, StepError> {
    let node = order(cx)?.node;
    let reset = needed(cx.output::<Reprovision>()?, Reprovision::NAME)?;
    let newest = again.reset.as_ref().filter(|again| !again.never_sent).map_or(reset.reset_at, |again| again.intended);
    let words = |error: PortError| StepError::from(error).chain();
    let silent = match cx.ports.facts.facts(&node).await {
        Ok(_) => "it answers by ssh, just now".to_owned(),
        Err(error) => format!("it does not answer: {}", words(error)),
    };
    let power = match cx.ports.bmc.power(&node).await {
        Ok(Power::On) => "its BMC says that its power is on".to_owned(),
        Ok(Power::Off) => "its BMC says that its power is OFF".to_owned(),
        Ok(Power::Changing) => "its BMC says that its power is changing".to_owned(),
        Err(error) => format!("its BMC does not answer: {}", words(error)),
    };
    let next_boot = match cx.ports.bmc.boot_override(&node).await {
        Ok(next) if next.device == BootDevice::Pxe => "its next boot is still to be from the network: it has not booted since, or its BMC keeps that".to_owned(),
        Ok(_) => "its boot device for one boot is used up: it has booted since, or its BMC has lost it".to_owned(),
        Err(error) => format!("its next boot device can't be read: {}", words(error)),
    };
    let ticket = match cx.ports.netboot.staged(&node).await {
        Ok(Some(_)) => "its boot ticket is still there: whatever netboots it installs the image".to_owned(),
        Ok(None) => "its boot ticket is GONE: a netboot installs nothing".to_owned(),
        Err(error) => format!("its boot ticket can't be read: {}", words(error)),
    };
    let question = Question::new(format!("{node} {what}: what now?"));
    let question = Heard::of(cx)?.seen().into_iter().fold(question, Question::seen).because(reason, format!("its reset was ordered at {newest}"));
    let question = [silent, power, next_boot, ticket].into_iter().fold(question, Question::seen);
    Ok(with_answers(question.seen("its console (BMC) shows where it is"), "waits as long again, and resets nothing"))
}

fn with_answers(question: Question, retry: &str) -> Question {
    question
        .answer(NETBOOT, AnswerEffect::Retry, "resets it into the network once more, which begins its installation anew, if it is still closed and empty")
        .answer("retry", AnswerEffect::Retry, retry)
        .answer("leave", AnswerEffect::Leave, "ends here; the node stays closed, and its boot ticket is withdrawn")
}
