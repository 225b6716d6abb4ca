//! Verifies that the node runs the OS release and kernel that were ordered.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{order, queues};
use crate::engine::{AnswerEffect, Observed, Progress, Question, Step, StepCx, StepError};
use crate::store::Queue;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedOs {
    pub os_version_id: String,
    pub kernel: String,
}

/// A wrong version is a question at once: waiting does not change it, and the disk is not written a second time unasked.
pub struct VerifyOs;

/// What differs, as `what: expected X, found Y`.
async fn differences(cx: &StepCx<'_>) -> Result<(VerifiedOs, Vec<String>), StepError> {
    let order = order(cx)?;
    let facts = cx.ports.facts.facts(&order.node).await?;
    let wanted = [
        ("OS release", &order.image.os_version_id, &facts.os_version_id),
        ("kernel", &order.image.kernel, &facts.kernel),
    ];
    let differences = wanted
        .into_iter()
        .filter(|(_, wanted, found)| wanted != found)
        .map(|(what, wanted, found)| format!("{what}: expected {wanted}, found {found}"))
        .collect();
    Ok((VerifiedOs { os_version_id: facts.os_version_id, kernel: facts.kernel }, differences))
}

#[async_trait]
impl Step for VerifyOs {
    const NAME: &'static str = "verify-os";
    const QUEUE: Queue = queues::NODES;
    type Output = VerifiedOs;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<VerifiedOs>, StepError> {
        let (found, differences) = differences(cx).await?;
        if differences.is_empty() {
            return Ok(Observed::AlreadyDone(found));
        }
        Ok(Observed::ToDo { would: format!("check {}'s OS; now: {}", cx.target(), differences.join(", ")) })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<VerifiedOs>, StepError> {
        let node = order(cx)?.node;
        let mut question = Question::new(format!("{node} was installed, and does not run what was ordered: what now?"));
        for difference in differences(cx).await?.1 {
            question = question.seen(difference);
        }
        Err(StepError::ask(
            question
                .answer("retry", AnswerEffect::Retry, "looks again, after you have mended it")
                .answer("leave", AnswerEffect::Leave, "ends here; the node stays closed"),
        ))
    }
}
