//! Gives the node back as it was found.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::close::reopen_if_ours;
use super::{Close, Reason, needed, node_lock, node_out, order, queues};
use crate::clock::Timestamp;
use crate::engine::{AnswerEffect, Observed, PastDeadline, Policy, Progress, Question, Step, StepCx, StepError};
use crate::store::{Queue, Resource};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenBack {
    /// What was done, or why nothing was.
    pub how: String,
}

/// Enables the compute service if it was enabled when we came and nobody else has disabled it meanwhile, once it has reported for a while without a break;
/// frees the node's lock and its share of the budget.
pub struct Reopen;

/// Since when the compute service has been seen to report, look after look; None since it was last silent.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Reporting {
    since: Option<Timestamp>,
}

/// Has the compute service reported for long enough? If not, why not.
// What it did while other steps were at work nobody has seen: those may take half an hour.
async fn unsettled(cx: &StepCx<'_>) -> Result<Option<String>, StepError> {
    let order = order(cx)?;
    let settle = Duration::from_millis(order.rules.rejoin_settle_ms);
    let known: Option<Reporting> = cx.checkpoint()?;
    // While a question was open, nobody has looked.
    let known = known.map(|known| Reporting { since: known.since.filter(|since| Some(*since) >= cx.tried_since()) });
    if !cx.ports.compute.service(&order.node).await?.up {
        if known.is_none_or(|known| known.since.is_some()) {
            cx.save(&Reporting { since: None }, "nova-compute does not report any more").await?;
        }
        return Ok(Some("nova-compute does not report any more".to_owned()));
    }
    let since = match known {
        Some(Reporting { since: Some(since) }) => since,
        Some(Reporting { since: None }) | None if settle.is_zero() => return Ok(None),
        Some(Reporting { since: None }) | None => {
            cx.save(&Reporting { since: Some(cx.now()) }, "nova-compute reports").await?;
            cx.now()
        }
    };
    let note = || format!("nova-compute has to report for {} s without a break", settle.as_secs());
    Ok((cx.now().since(since) < settle).then(note))
}

#[async_trait]
impl Step for Reopen {
    const NAME: &'static str = "reopen";
    const QUEUE: Queue = queues::OPENSTACK;
    type Output = GivenBack;

    fn policy(&self, cx: &StepCx<'_>) -> Policy {
        let deadline = order(cx).map_or(Policy::default().deadline, |order| Duration::from_millis(order.rules.rejoin_deadline_ms + order.rules.rejoin_settle_ms));
        Policy { deadline, ..Policy::default() }
    }

    fn gives(&self, cx: &StepCx<'_>) -> Result<Vec<Resource>, StepError> {
        let order = order(cx)?;
        Ok(vec![node_lock(&order), node_out(&order)])
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<GivenBack>, StepError> {
        let node = order(cx)?.node;
        let Some(closed) = cx.output::<Close>()? else {
            return Ok(Observed::ToDo { would: format!("give {node} back as it was found") });
        };
        let service = cx.ports.compute.service(&node).await?;
        Ok(match (closed.reopen, service.enabled) {
            (false, _) => Observed::ToDo { would: format!("leave {node} disabled, as it was found") },
            (true, true) => Observed::AlreadyDone(GivenBack { how: "open".to_owned() }),
            (true, false) => Observed::ToDo { would: format!("enable nova-compute on {node}") },
        })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<GivenBack>, StepError> {
        let closed = needed(cx.output::<Close>()?, Close::NAME)?;
        let order = order(cx)?;
        if let Some(note) = unsettled(cx).await? {
            return Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.node_poll_ms), note });
        }
        let how = if closed.reopen { reopen_if_ours(cx, &order.node).await? } else { "left disabled, as found".to_owned() };
        Ok(Progress::Done(GivenBack { how }))
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        let node = order(cx)?.node;
        let Some(why) = unsettled(cx).await? else { return Ok(PastDeadline::Act) };
        let question = Question::new(format!("{node} is renewed, and its nova-compute comes and goes: what now?")).because(Reason::NotBackInNova, why);
        Ok(PastDeadline::Ask(
            question
                .answer("retry", AnswerEffect::Retry, "waits as long again, after you have mended it")
                .answer("leave", AnswerEffect::Leave, format!("ends here; {node} stays closed")),
        ))
    }
}
