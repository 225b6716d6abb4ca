//! Looks whether the node may be rebuilt at all, before it is emptied.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::rebuilding::unfit;
use super::{order, queues};
use crate::engine::{AnswerEffect, Observed, Progress, Question, Step, StepCx, StepError};
use crate::store::Queue;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fit {}

/// Done when the service that rebuilds the node has a system of it on record, and nothing that speaks against its rebuild. Nobody empties a node
/// to learn that it is in maintenance. Not before the node is ours alone: another order of ours may be rebuilding it.
pub struct CheckRecord;

async fn against(cx: &StepCx<'_>) -> Result<Vec<String>, StepError> {
    let node = order(cx)?.node;
    let record = cx.ports.rebuilder.record(&node).await?;
    Ok(unfit(cx, &node, &record))
}

#[async_trait]
impl Step for CheckRecord {
    const NAME: &'static str = "check-record";
    const QUEUE: Queue = queues::BMC;
    type Output = Fit;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Fit>, StepError> {
        let (node, against) = (order(cx)?.node, against(cx).await?);
        match (against.is_empty(), cx.begun()) {
            // A dry run only says how it is now.
            (true, None) => Ok(Observed::ToDo { would: format!("look whether {node} may be rebuilt; now: it may") }),
            (true, Some(_)) => Ok(Observed::AlreadyDone(Fit {})),
            (false, None) => Err(StepError::fatal(format!("{node} can't be rebuilt as it is: {}", against.join("; ")))),
            (false, Some(_)) => Ok(Observed::ToDo { would: format!("ask about what keeps {node} from being rebuilt") }),
        }
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Fit>, StepError> {
        let mut question = Question::new(format!("{} can't be rebuilt as it is: what now?", order(cx)?.node));
        for objection in against(cx).await? {
            question = question.seen(objection);
        }
        Err(StepError::ask(
            question
                .answer("retry", AnswerEffect::Retry, "looks again: see to what speaks against it first")
                .answer("unwind", AnswerEffect::Unwind, "gives the node back as it was found, without renewing it"),
        ))
    }
}
