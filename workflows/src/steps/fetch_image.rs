//! Has the site's setup script put the image on the PXE server, once for each rollout and before any node is touched.
//!
//! Midokura's runbook ("Node OS re-provisioning") begins with it: `platform-setup.sh --bootstrap`, which downloads the image of the release.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::queues;
use super::setup_run::{self, Course};
use crate::engine::{AnswerEffect, Observed, PastDeadline, Policy, Progress, Step, StepCx, StepError, Undone};
use crate::ports::ScriptEnd;
use crate::store::Queue;
use crate::updates::{Deploy, RolloutOrder};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// The name of the run that succeeded, or that an operator has taken as good; None where there was nothing to run.
    pub run: Option<String>,
}

/// Done when a run has ended with 0, and its recap has hosts, none of which failed; or an operator knows better.
pub struct FetchImage;

fn wanted(cx: &StepCx<'_>) -> Result<(RolloutOrder, Option<Deploy>), StepError> {
    let order: RolloutOrder = cx.input()?;
    let fetch = order.rules.fetch.clone();
    Ok((order, fetch))
}

/// What speaks against believing a run that has ended, one line each.
fn complaints(end: &ScriptEnd) -> Vec<String> {
    let mut complaints = setup_run::complaints(end, |_| true);
    // With tags that no play has, Ansible ends well and has done nothing.
    if end.recap.is_empty() {
        complaints.push("Ansible's recap has no host at all".to_owned());
    }
    complaints
}

#[async_trait]
impl Step for FetchImage {
    const NAME: &'static str = "fetch-image";
    const QUEUE: Queue = queues::BASTION;
    type Output = Fetched;

    fn policy(&self, cx: &StepCx<'_>) -> Policy {
        let fetch = wanted(cx).ok().and_then(|(_, fetch)| fetch);
        let deadline = fetch.map_or(Policy::default().deadline, |fetch| Duration::from_millis(fetch.deadline_ms));
        Policy { deadline, ..Policy::default() }
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Fetched>, StepError> {
        let (_, Some(fetch)) = wanted(cx)? else { return Ok(Observed::AlreadyDone(Fetched { run: None })) };
        if let Some((run, end)) = setup_run::ended(cx).await?
            && complaints(&end).is_empty()
        {
            return Ok(Observed::AlreadyDone(Fetched { run: Some(run) }));
        }
        Ok(Observed::ToDo { would: format!("run the setup script: {}", fetch.arguments.join(" ")) })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Fetched>, StepError> {
        let (order, Some(fetch)) = wanted(cx)? else { return Ok(Progress::Done(Fetched { run: None })) };
        if let Some(run) = setup_run::taken_as_good(cx)? {
            return Ok(Progress::Done(Fetched { run: Some(run) }));
        }
        let (meant, complaints, last_lines) = match setup_run::follow(cx, Self::NAME, &fetch.arguments, None).await? {
            Course::Going { note } => {
                return Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.node_poll_ms), note });
            }
            Course::Ended(meant, end) => {
                let complaints = complaints(&end);
                if complaints.is_empty() {
                    return Ok(Progress::Done(Fetched { run: Some(meant.run.name) }));
                }
                (meant, complaints, end.last_lines)
            }
            Course::Lost(meant, last_lines) => (meant, vec![setup_run::LOST.to_owned()], last_lines),
        };
        let text = format!("the setup script did not put image {} on the PXE server: what now?", order.image.name);
        let mut question = setup_run::ask(cx, meant, text, complaints).await?;
        for line in last_lines {
            question = question.seen(format!("| {line}"));
        }
        let question = question.answer("retry", AnswerEffect::Retry, "runs the script once more, from its beginning");
        let then = "takes what is on the PXE server as it is; the first node is emptied and netbooted from there, and counts as renewed only with the \
                    digest that was ordered: with another image it ends wiped, closed, and as a question";
        let question = setup_run::or_go_on(question, then.to_owned());
        Err(StepError::ask(question.answer("unwind", AnswerEffect::Unwind, "ends here; no node was touched")))
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        setup_run::overdue(cx, self.policy(cx).deadline).await
    }

    async fn undo(&self, cx: &StepCx<'_>) -> Result<Undone, StepError> {
        let note = match setup_run::goes_on(cx).await? {
            Some(run) => format!("run {run} of the setup script goes on, and is not killed"),
            None => "nothing to undo".to_owned(),
        };
        Ok(Undone::Done { note })
    }
}
