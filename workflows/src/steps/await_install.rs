//! Awaits the node's own word that it was installed by this attempt.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::netboot::{RESET_NEVER_HAPPENED, Reset, Settled, carry_out, facts, prepare, settle};
use super::{Reprovision, StageImage, needed, order, queues};
use crate::clock::Timestamp;
use crate::engine::{AnswerEffect, Observed, Policy, Progress, Question, Step, StepCx, StepError};
use crate::ports::{Facts, PortErrorKind};
use crate::store::Queue;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledBoot {
    pub boot_id: String,
}

/// Done when the node has booted since, carries the token of this attempt and the digest of the ordered image, and its boot ticket
/// is withdrawn. "It booted" alone proves nothing: an old disk boots too.
pub struct AwaitInstall;

/// What was tried after the node came back with something else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Again {
    /// When the operator was asked about it.
    asked: Option<Timestamp>,
    /// The further netboot that the operator wanted.
    reset: Option<Reset>,
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
            Seen::NotYet => Ok(Progress::LookAgain { after: poll, note: "installs".to_owned() }),
            Seen::Ours(installed) => {
                // Whoever netboots this node next must not wipe it.
                cx.guard().await?;
                cx.ports.netboot.withdraw(&order.node).await?;
                Ok(Progress::Done(installed))
            }
            Seen::Other(facts) => netboot_again(cx, &facts, poll).await,
        }
    }
}

/// The node came back with something else. Asks, and netboots it once more if the operator wants that.
async fn netboot_again(cx: &StepCx<'_>, facts: &Facts, poll: Duration) -> Result<Progress<InstalledBoot>, StepError> {
    let node = order(cx)?.node;
    let mut again: Again = cx.checkpoint()?.unwrap_or_default();
    let wanted = again.asked.is_some_and(|asked| cx.tried_since().is_some_and(|since| since > asked));
    if !wanted {
        again.asked = Some(cx.now());
        cx.save(&again, "came back with something else").await?;
        return Err(StepError::ask(came_back_wrong(&node, facts)));
    }
    match &again.reset {
        Some(reset) if again.asked.is_some_and(|asked| reset.intended > asked) => {
            match settle(cx, &node, reset).await? {
                Settled::TooEarly => return Ok(Progress::LookAgain { after: poll, note: "looks whether the reset has happened".to_owned() }),
                // (A BMC may have said yes and done nothing once more.)
                Settled::Happened
                    if reset.boot_id_before.as_ref() == Some(&facts.boot_id)
                        && cx.now().since(reset.intended) <= RESET_NEVER_HAPPENED =>
                {
                    return Ok(Progress::LookAgain { after: poll, note: "installs".to_owned() });
                }
                Settled::Happened => {
                    again.asked = Some(cx.now());
                    cx.save(&again, "came back with something else once more").await?;
                    return Err(StepError::ask(came_back_wrong(&node, facts)));
                }
                Settled::NeverHappened => {}
            }
        }
        Some(_) | None => {}
    }
    let mut reset = prepare(cx, &node).await?;
    again.reset = Some(reset.clone());
    cx.save(&again, "about to reset it into the network once more").await?;
    carry_out(cx, &node, &reset).await?;
    reset.acknowledged = true;
    again.reset = Some(reset);
    cx.save(&again, "reset once more").await?;
    Ok(Progress::LookAgain { after: poll, note: "installs".to_owned() })
}

fn came_back_wrong(node: &turnaround_config::NodeName, facts: &Facts) -> Question {
    let installed = match &facts.installed {
        Some(installed) => format!("it carries the token {} and image {}", installed.token, installed.sha256),
        None => "it carries no installation mark".to_owned(),
    };
    Question::new(format!("{node} runs something else than what was to be installed: what now?"))
        .seen(format!("OS {}, kernel {}, boot id {}", facts.os_version_id, facts.kernel, facts.boot_id))
        .seen(installed)
        .answer("retry", AnswerEffect::Retry, "netboots it once more, if it is still closed and empty")
        .answer("leave", AnswerEffect::Leave, "ends here; the node stays closed, and its boot ticket is withdrawn")
}
