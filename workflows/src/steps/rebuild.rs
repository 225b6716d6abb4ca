//! Has Ironic rebuild the node. **From here the only way is forward.**

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::confirm_empty::unsettled_again;
use super::rebuilding::{Asked, Intent, Kept, RECORD_POLL, Settled, looks_for_the_rebuild, rebuild, settle};
use super::{order, queues};
use crate::engine::{Observed, Progress, Step, StepCx, StepError};
use crate::store::Queue;

/// What was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebuilding {
    pub(super) intent: Intent,
}

/// Asked for once, right after a last look.
pub struct Rebuild;

#[async_trait]
impl Step for Rebuild {
    const NAME: &'static str = "rebuild";
    const QUEUE: Queue = queues::BMC;
    const POINT_OF_NO_RETURN: bool = true;
    type Output = Rebuilding;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Rebuilding>, StepError> {
        let order = order(cx)?;
        let kept: Option<Kept> = cx.checkpoint()?;
        match kept.and_then(|kept| kept.rebuild) {
            Some(intent) if settle(cx, &order.node, &intent).await? == Settled::Began => Ok(Observed::AlreadyDone(Rebuilding { intent })),
            Some(_) | None => Ok(Observed::ToDo {
                would: format!("have Ironic rebuild {} with image {} ({}), which wipes its system disk", order.node, order.image.name, order.image.version),
            }),
        }
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Rebuilding>, StepError> {
        let node = order(cx)?.node;
        let kept: Kept = cx.checkpoint()?.unwrap_or_default();
        if let Some(intent) = &kept.rebuild {
            match settle(cx, &node, intent).await? {
                Settled::TooEarly { until } => return Ok(Progress::LookAgain { after: RECORD_POLL, note: looks_for_the_rebuild(until) }),
                // It has begun since `observe` looked.
                Settled::Began => return Ok(Progress::Done(Rebuilding { intent: intent.clone() })),
                Settled::NeverBegan => {}
            }
        }
        if let Some(note) = unsettled_again(cx)? {
            return Ok(Progress::LookAgain { after: RECORD_POLL, note });
        }
        Ok(match rebuild(cx, &node, kept).await? {
            Asked::Began(intent) => Progress::Done(Rebuilding { intent: *intent }),
            Asked::Waits(note) => Progress::LookAgain { after: RECORD_POLL, note },
        })
    }
}
