//! Resets the node into its installer. **From here the only way is forward.**

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tracing::warn;
use turnaround_config::NodeName;

use super::confirm_empty::{guests, unsettled_again};
use super::netboot::{Reset, Settled, NotCarriedOut, carry_out, disarm_ours, looks_for_the_reset, prepare, settle, would_netboot};
use super::{installer, node_out, order, queues};
use crate::clock::Timestamp;
use crate::engine::{AnswerEffect, Observed, PastDeadline, Progress, Question, Report, State, Step, StepCx, StepError};
use crate::store::{Queue, Resource};

/// How often a reset of unknown outcome is looked at.
const SETTLE_POLL: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reprovisioned {
    /// None if the node did not answer before its reset.
    pub boot_id_before: Option<String>,
    pub reset_at: Timestamp,
}

/// Boot device, read back, reset at once; once only.
pub struct Reprovision;

#[async_trait]
impl Step for Reprovision {
    const NAME: &'static str = "reprovision";
    const QUEUE: Queue = queues::BMC;
    const POINT_OF_NO_RETURN: bool = true;
    type Output = Reprovisioned;

    fn gives(&self, cx: &StepCx<'_>) -> Result<Vec<Resource>, StepError> {
        Ok(if cfg!(feature = "bug-budget-given-back-early") { vec![node_out(&order(cx)?)] } else { Vec::new() })
    }

    fn hears(&self, so_far: &State, report: &Report) -> bool {
        installer::is_news(so_far, report)
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Reprovisioned>, StepError> {
        let order = order(cx)?;
        let reset: Option<Reset> = cx.checkpoint()?;
        match reset {
            Some(reset) if settle(cx, &order.node, &reset).await? == Settled::Happened => {
                Ok(Observed::AlreadyDone(Reprovisioned { boot_id_before: reset.boot_id_before, reset_at: reset.intended }))
            }
            None if cx.begun().is_none() => Ok(Observed::ToDo { would: would_netboot(cx, &order.node).await? }),
            Some(_) | None => Ok(Observed::ToDo { would: format!("netboot {} by its BMC", order.node) }),
        }
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Reprovisioned>, StepError> {
        let node = order(cx)?.node;
        let mut meant: Option<Reset> = cx.checkpoint()?;
        let acted = reset_once(cx, &node, &mut meant).await;
        let waits = match &acted {
            Ok(progress) => !matches!(progress, Progress::Done(_)),
            Err(error) => !error.is_lost(),
        };
        if waits && is_none_under_way(cx, &node, meant.as_ref()).await {
            rests(cx, &node).await?;
        }
        acted
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        let node = order(cx)?.node;
        let meant: Option<Reset> = cx.checkpoint()?;
        if let Some(reset) = &meant
            && matches!(settle(cx, &node, reset).await, Ok(Settled::TooEarly { .. } | Settled::Happened))
        {
            // It only looks, or is done by now. Whoever is asked now could not be told whether the node is being installed.
            return Ok(PastDeadline::Act);
        }
        if is_none_under_way(cx, &node, meant.as_ref()).await {
            rests(cx, &node).await?;
        }
        let Some(said) = meant.and_then(|reset| reset.said) else { return Ok(PastDeadline::Fail) };
        let question = Question::new(format!("{node} was not reset into the network, however often that was asked for: what now?"))
            .seen(said)
            .answer("retry", AnswerEffect::Retry, "tries again, for as long again")
            .answer("leave", AnswerEffect::Leave, "ends here; the node stays closed, and its boot ticket is withdrawn");
        Ok(PastDeadline::Ask(question))
    }
}

/// Is it certain that no reset of ours has happened, or still can?
async fn is_none_under_way(cx: &StepCx<'_>, node: &NodeName, meant: Option<&Reset>) -> bool {
    match meant {
        Some(reset) => matches!(settle(cx, node, reset).await, Ok(Settled::NeverHappened)),
        None => true,
    }
}

/// The node is not about to be reset. Why it waits is more to be told than that its ticket could not be withdrawn, which is tried again at the next look.
async fn rests(cx: &StepCx<'_>, node: &NodeName) -> Result<(), StepError> {
    match disarm_ours(cx, node).await {
        Err(error) if !error.is_lost() => {
            warn!(%node, error = error.chain(), "its boot ticket could not be withdrawn: if it netboots now, its disk is overwritten");
            Ok(())
        }
        done => done,
    }
}

/// `meant`: the reset that was written down last.
async fn reset_once(cx: &StepCx<'_>, node: &NodeName, meant: &mut Option<Reset>) -> Result<Progress<Reprovisioned>, StepError> {
    if let Some(reset) = &meant {
        match settle(cx, node, reset).await? {
            Settled::TooEarly { until } => return Ok(Progress::LookAgain { after: SETTLE_POLL, note: looks_for_the_reset(until) }),
            // It went down since `observe` looked.
            Settled::Happened => {
                return Ok(Progress::Done(Reprovisioned { boot_id_before: reset.boot_id_before.clone(), reset_at: reset.intended }));
            }
            Settled::NeverHappened => {}
        }
    }
    if let Some(note) = unsettled_again(cx)? {
        return Ok(Progress::LookAgain { after: SETTLE_POLL, note });
    }
    // Once, and first: a node that is half dead takes its time, and what is seen grows old.
    let guests = match guests(cx, node).await? {
        Ok(guests) => guests,
        Err(note) => return Ok(Progress::LookAgain { after: SETTLE_POLL, note }),
    };
    let reset = meant.insert(prepare(cx, node, &guests).await?);
    let carried_out = if cfg!(feature = "bug-effect-before-intent") {
        let carried_out = carry_out(cx, node, reset).await;
        cx.save(reset, "about to reset it into the network").await?;
        carried_out
    } else {
        cx.save(reset, "about to reset it into the network").await?;
        carry_out(cx, node, reset).await
    };
    match carried_out {
        Ok(()) => {}
        Err(NotCarriedOut::Perhaps(error)) => {
            if !error.is_lost() {
                reset.said = Some(error.chain());
                cx.save(reset, "may have been reset").await?;
            }
            return Err(error);
        }
        Err(NotCarriedOut::NeverSent(error)) => {
            if !error.is_lost() {
                reset.never_sent = true;
                cx.save(reset, "was not reset").await?;
            }
            return Err(error);
        }
    }
    reset.acknowledged = true;
    cx.save(reset, "reset").await?;
    Ok(Progress::Done(Reprovisioned { boot_id_before: reset.boot_id_before.clone(), reset_at: reset.intended }))
}
