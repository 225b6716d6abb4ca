//! Silences the alerts about a node while it is renewed, and ends that afterwards.
//!
//! Nobody should be woken by a node that goes down on purpose; but no renewal waits for what only spares people a noise: where it can't be done
//! soon, the renewal goes on without, and says so. A silence that could not be ended ends by itself.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tracing::warn;
use turnaround_config::Matcher;

use super::{order, queues};
use crate::clock::Timestamp;
use crate::engine::{Observed, Progress, Step, StepCx, StepError, Undone};
use crate::ports::{NewSilence, PortError};
use crate::store::Queue;
use crate::updates::{NodeOrder, OrderedSilence};

/// It is tried for so long.
// A restart of Alertmanager or Grafana takes less; a maintenance window is too dear to wait longer.
const TRIED_FOR: Duration = Duration::from_secs(2 * 60);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Silenced {
    /// By a silence that ends by itself then.
    Until(Timestamp),
    /// The order has none.
    NotOrdered,
    /// It could not be done, for this reason.
    Not { why: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    Ended,
    /// For this reason; it ends by itself.
    NotEnded { why: String },
}

/// Begins a silence that carries this workflow's mark, unless there is one.
pub struct Silence;

/// Ends every silence that carries this workflow's mark.
pub struct EndSilence;

fn mark(cx: &StepCx<'_>) -> String {
    format!("turnaround:{}", cx.id)
}

/// `matcher` for one node. A name has dots at most that mean something in a regular expression.
pub(super) fn for_node(matcher: &Matcher, node: &str) -> Matcher {
    let node = if matcher.is_regex { node.replace('.', "\\.") } else { node.to_owned() };
    Matcher { value: matcher.value.replace("{node}", &node), ..matcher.clone() }
}

/// Is it time to go on without?
fn has_tried_enough(cx: &StepCx<'_>) -> bool {
    cx.patient_since().is_some_and(|since| cx.now().since(since) >= TRIED_FOR)
}

/// When the silence with our mark ends by itself; None if there is none.
async fn until(cx: &StepCx<'_>) -> Result<Option<Timestamp>, PortError> {
    Ok(cx.ports.silences.in_force(&mark(cx)).await?.into_iter().map(|silence| silence.until).max())
}

async fn begin(cx: &StepCx<'_>, order: &NodeOrder, silence: &OrderedSilence) -> Result<Option<Timestamp>, StepError> {
    if let Some(until) = until(cx).await? {
        return Ok(Some(until));
    }
    let now = cx.just_now().await;
    let silence = NewSilence {
        matchers: silence.matchers.iter().map(|matcher| for_node(matcher, order.node.as_str())).collect(),
        from: now,
        until: now + Duration::from_millis(silence.lasts_ms),
        mark: mark(cx),
        why: format!("{} is renewed to {} by {}", order.node, order.image.version, cx.created_by()),
    };
    cx.guard().await?;
    cx.ports.silences.begin(&silence).await?;
    // Believed once it is there.
    Ok(until(cx).await?)
}

#[async_trait]
impl Step for Silence {
    const NAME: &'static str = "silence";
    // Whoever reaches Nova's API usually reaches what alerts; and where nobody does, the renewal goes on in two minutes.
    const QUEUE: Queue = queues::OPENSTACK;
    type Output = Silenced;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Silenced>, StepError> {
        let order = order(cx)?;
        let Some(silence) = &order.rules.silence else { return Ok(Observed::AlreadyDone(Silenced::NotOrdered)) };
        let lasts = Duration::from_millis(silence.lasts_ms);
        let would = format!("silence the alerts about {} for at most {} min", order.node, lasts.as_secs() / 60);
        // A dry run has none of its own.
        if cx.begun().is_none() {
            return Ok(Observed::ToDo { would });
        }
        Ok(match until(cx).await {
            Ok(Some(until)) => Observed::AlreadyDone(Silenced::Until(until)),
            Ok(None) => Observed::ToDo { would },
            Err(error) => Observed::ToDo { would: format!("{would}; now: {}", StepError::from(error).chain()) },
        })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Silenced>, StepError> {
        let order = order(cx)?;
        let Some(silence) = &order.rules.silence else { return Ok(Progress::Done(Silenced::NotOrdered)) };
        let why = match begin(cx, &order, silence).await {
            Ok(Some(until)) => return Ok(Progress::Done(Silenced::Until(until))),
            Ok(None) => "it was accepted, and is not there".to_owned(),
            Err(error) if error.is_lost() => return Err(error),
            Err(error) => error.chain(),
        };
        if has_tried_enough(cx) {
            warn!(node = %order.node, why, "alerts are not silenced, and the renewal goes on");
            return Ok(Progress::Done(Silenced::Not { why }));
        }
        Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.node_poll_ms), note: why })
    }

    async fn undo(&self, cx: &StepCx<'_>) -> Result<Undone, StepError> {
        let order = order(cx)?;
        Ok(match end(cx, &order).await? {
            Progress::Done(Ended::Ended) => Undone::Done { note: "alerts are no longer silenced".to_owned() },
            Progress::Done(Ended::NotEnded { why }) => Undone::Done { note: format!("the silence could not be ended, and ends by itself: {why}") },
            Progress::LookAgain { after, note } => Undone::LookAgain { after, note },
            Progress::StartChildren { .. } | Progress::AwaitChildren { .. } => return Err(StepError::fatal("a silence has no children")),
        })
    }
}

/// Ends all of ours, and believes it once none is left.
async fn try_to_end(cx: &StepCx<'_>) -> Result<(), StepError> {
    let ours = cx.ports.silences.in_force(&mark(cx)).await?;
    for silence in &ours {
        cx.guard().await?;
        cx.ports.silences.end(&silence.id).await?;
    }
    if !ours.is_empty() && until(cx).await?.is_some() {
        return Err(StepError::retry("it was accepted, and the silence is still there"));
    }
    Ok(())
}

async fn end(cx: &StepCx<'_>, order: &NodeOrder) -> Result<Progress<Ended>, StepError> {
    if order.rules.silence.is_none() {
        return Ok(Progress::Done(Ended::Ended));
    }
    match try_to_end(cx).await {
        Ok(()) => Ok(Progress::Done(Ended::Ended)),
        Err(error) if error.is_lost() => Err(error),
        Err(error) if has_tried_enough(cx) => Ok(Progress::Done(Ended::NotEnded { why: error.chain() })),
        Err(error) => Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.node_poll_ms), note: error.chain() }),
    }
}

#[async_trait]
impl Step for EndSilence {
    const NAME: &'static str = "end-silence";
    // Whoever reaches Nova's API usually reaches what alerts; and where nobody does, the renewal goes on in two minutes.
    const QUEUE: Queue = queues::OPENSTACK;
    type Output = Ended;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Ended>, StepError> {
        let order = order(cx)?;
        if order.rules.silence.is_none() {
            return Ok(Observed::AlreadyDone(Ended::Ended));
        }
        let would = format!("end the silence about {}", order.node);
        // In a dry run none has begun.
        if cx.begun().is_none() {
            return Ok(Observed::ToDo { would });
        }
        Ok(match until(cx).await {
            Ok(None) => Observed::AlreadyDone(Ended::Ended),
            Ok(Some(_)) | Err(_) => Observed::ToDo { would },
        })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Ended>, StepError> {
        end(cx, &order(cx)?).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_name_stands_for_itself_in_a_regular_expression() {
        let written = |value: &str, is_regex| Matcher { name: "instance".to_owned(), value: value.to_owned(), is_regex, is_equal: true };
        assert_eq!(for_node(&written("{node}(:[0-9]+)?", true), "gpu-1.dc").value, r"gpu-1\.dc(:[0-9]+)?");
        assert_eq!(for_node(&written("{node}:9100", false), "gpu-1.dc").value, "gpu-1.dc:9100");
    }
}
