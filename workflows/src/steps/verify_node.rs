//! Verifies on the node itself what the site wants to be true before tenants come back: its checks, each a command.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Stock, TakeStock, order, queues};
use crate::engine::{AnswerEffect, Observed, Progress, Question, Step, StepCx, StepError};
use crate::ports::{CommandEnd, PortErrorKind};
use crate::store::Queue;
use crate::updates::{Expected, OrderedCheck};

/// A check that has not come out well for so long becomes a question.
// Drivers, fabric manager and clocks settle within minutes of a boot.
const SETTLES_WITHIN: Duration = Duration::from_secs(10 * 60);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedNode {
    /// How many checks there were.
    pub checks: usize,
}

/// Done when every check of the order has come out well.
pub struct VerifyNode;

/// What is wrong with how a check ended; None if nothing.
fn complaint(check: &OrderedCheck, end: &CommandEnd, found: Option<&CommandEnd>) -> Option<String> {
    let wrong = match (&check.expect, found) {
        (Expected::AsFound, Some(found)) if end == found => return None,
        (Expected::AsFound, Some(found)) => format!("before it was {}", told(found)),
        (_, _) if end.code != 0 => "expected exit code 0".to_owned(),
        (Expected::Output(wanted), _) if end.output != *wanted => format!("expected `{wanted}`"),
        (Expected::AsFound | Expected::Output(_) | Expected::Success, _) => return None,
    };
    Some(format!("{} ({}): {wrong}, now {}", check.name, check.command, told(end)))
}

fn told(end: &CommandEnd) -> String {
    match end.code {
        0 => format!("`{}`", end.output),
        code => format!("exit code {code}"),
    }
}

async fn complaints(cx: &StepCx<'_>) -> Result<Vec<String>, StepError> {
    let order = order(cx)?;
    let stock = cx.output::<TakeStock>()?.unwrap_or(Stock(Default::default()));
    let mut complaints = Vec::new();
    for check in &order.rules.checks {
        match cx.ports.facts.run(&order.node, &check.command, Duration::from_millis(check.time_limit_ms)).await {
            Ok(end) => complaints.extend(complaint(check, &end, stock.0.get(&check.name))),
            // Too slow, or the node is away just now.
            Err(error) if error.kind == PortErrorKind::Unavailable => complaints.push(format!("{}: {}", check.name, StepError::from(error).chain())),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(complaints)
}

#[async_trait]
impl Step for VerifyNode {
    const NAME: &'static str = "verify-node";
    const QUEUE: Queue = queues::NODES;
    type Output = VerifiedNode;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<VerifiedNode>, StepError> {
        let checks = order(cx)?.rules.checks.len();
        let complaints = complaints(cx).await?;
        if complaints.is_empty() {
            return Ok(Observed::AlreadyDone(VerifiedNode { checks }));
        }
        Ok(Observed::ToDo { would: format!("run {checks} checks on {}; now: {}", cx.target(), complaints.join("; ")) })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<VerifiedNode>, StepError> {
        let order = order(cx)?;
        let complaints = complaints(cx).await?;
        let Some(first) = complaints.first() else { return Ok(Progress::Done(VerifiedNode { checks: order.rules.checks.len() })) };
        if cx.tried_since().is_none_or(|since| cx.now().since(since) < SETTLES_WITHIN) {
            let after = Duration::from_millis(order.rules.node_poll_ms);
            return Ok(Progress::LookAgain { after, note: first.clone() });
        }
        let mut question = Question::new(format!("{} is renewed, and is not as the site's checks want it: what now?", order.node));
        for complaint in complaints {
            question = question.seen(complaint);
        }
        Err(StepError::ask(
            question
                .answer("retry", AnswerEffect::Retry, "runs the checks again, after you have mended it")
                .answer("leave", AnswerEffect::Leave, format!("ends here; {} stays closed", order.node)),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expect: Expected) -> OrderedCheck {
        OrderedCheck { name: "gpus".to_owned(), command: "count".to_owned(), expect, time_limit_ms: 1 }
    }

    fn end(code: i32, output: &str) -> CommandEnd {
        CommandEnd { code, output: output.to_owned() }
    }

    #[test]
    fn a_check_comes_out_well_only_as_it_is_expected_to() {
        let eight = Expected::Output("8".to_owned());
        assert_eq!(complaint(&check(Expected::Success), &end(0, "x"), None), None);
        assert_eq!(complaint(&check(Expected::Success), &end(1, "x"), None).unwrap(), "gpus (count): expected exit code 0, now exit code 1");
        assert_eq!(complaint(&check(eight.clone()), &end(0, "8"), None), None);
        assert_eq!(complaint(&check(eight.clone()), &end(0, "7"), None).unwrap(), "gpus (count): expected `8`, now `7`");
        assert_eq!(complaint(&check(eight), &end(2, "8"), None).unwrap(), "gpus (count): expected exit code 0, now exit code 2");
        assert_eq!(complaint(&check(Expected::AsFound), &end(0, "8"), Some(&end(0, "8"))), None);
        assert_eq!(complaint(&check(Expected::AsFound), &end(0, "7"), Some(&end(0, "8"))).unwrap(), "gpus (count): before it was `8`, now `7`");
        // What was broken before may be as broken now: that is as found.
        assert_eq!(complaint(&check(Expected::AsFound), &end(1, ""), Some(&end(1, ""))), None);
        assert_eq!(complaint(&check(Expected::AsFound), &end(1, ""), None).unwrap(), "gpus (count): expected exit code 0, now exit code 1");
    }
}
