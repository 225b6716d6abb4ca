//! Verifies on the node itself what the site wants to be true before tenants come back: its checks, each a command.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::Compared;

use super::shown::{ACCEPT, Shown};
use super::compared::{Difference, differences};
use super::{Close, Reason, Stock, TakeStock, VerifyHypervisor, counted, order, queues};
use crate::engine::{AnswerEffect, Observed, Progress, Question, Step, StepCx, StepError};
use crate::ports::{CommandEnd, PortErrorKind};
use crate::store::Queue;
use crate::updates::{Expected, NodeOrder, OrderedCheck};

/// A check that has not come out well for so long becomes a question.
// Drivers, fabric manager and clocks settle within minutes of a boot.
const SETTLES_WITHIN: Duration = Duration::from_secs(10 * 60);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedNode {
    /// How many checks there were.
    pub checks: usize,
}

/// Done when the node has what it had, and every check of the order has come out well, or an operator has said so of what differs or could not be compared.
pub struct VerifyNode;

/// Under which name what the hypervisor offers is accepted. (No check has a name with a blank.)
const OFFERED: &str = "what it offers";

/// By name: what it said.
type Words = BTreeMap<String, String>;

/// What an operator takes as good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Accepted {
    /// By answers before.
    words: Words,
    /// By the newest one, if that is so.
    shown: Shown<Words>,
}

/// What there is to compare with.
#[derive(Debug, Clone, Copy)]
enum Measure<'a> {
    Found(&'a CommandEnd),
    /// Nothing, for this reason.
    Nothing(&'static str),
}

struct Complaint {
    reason: Reason,
    line: String,
    /// It may come out well by itself: what starts late does.
    may_pass: bool,
    /// What an operator may take as good, by its name. None: it is not as it has to be.
    shown: Option<(String, String)>,
}

impl Complaint {
    /// It is not as it has to be.
    fn wrong(reason: Reason, line: String) -> Complaint {
        Complaint { reason, line, may_pass: true, shown: None }
    }

    /// Perhaps it is.
    fn not_compared(reason: Reason, name: &str, said: String, line: String) -> Complaint {
        Complaint { reason, line, may_pass: false, shown: Some((name.to_owned(), said)) }
    }
}

impl From<Difference> for Complaint {
    fn from(Difference { reason, what, line, may_be_meant }: Difference) -> Complaint {
        // (No check has a name with a blank.)
        let shown = may_be_meant.then(|| (what.to_owned(), line.clone()));
        Complaint { reason, line, may_pass: reason != Reason::NotCompared, shown }
    }
}

/// What is wrong with how a check ended; None if nothing.
fn complaint(check: &OrderedCheck, end: &CommandEnd, measure: Measure<'_>) -> Option<Complaint> {
    let about = format!("{} ({})", check.name, check.command);
    let wrong = |wrong: String| Some(Complaint::wrong(Reason::CheckFailed, format!("{about}: {wrong}, now {}", told(end))));
    let not_compared = |why: &str| {
        let line = format!("{about}: {why}; now {}", told(end));
        Some(Complaint::not_compared(Reason::NotCompared, &check.name, told(end), line))
    };
    match (&check.expect, measure) {
        // Broken in the same way proves nothing: perhaps the command is wrong.
        (Expected::AsFound, Measure::Found(found)) if found.code != 0 => not_compared(&format!("it failed before (exit code {}), which is nothing to compare with", found.code)),
        (Expected::AsFound, Measure::Found(found)) if end == found => None,
        (Expected::AsFound, Measure::Found(found)) => wrong(format!("before it was {}", told(found))),
        (_, _) if end.code != 0 => wrong("expected exit code 0".to_owned()),
        (Expected::AsFound, Measure::Nothing(why)) => not_compared(why),
        // (An order of an earlier release has blanks there if they were written. No output has.)
        (Expected::Output(wanted), _) if end.output != wanted.trim() => wrong(format!("expected `{}`", wanted.trim())),
        (Expected::Output(_) | Expected::Success, _) => None,
    }
}

fn told(end: &CommandEnd) -> String {
    match end.code {
        0 => format!("`{}`", end.output),
        code => format!("exit code {code}"),
    }
}

/// What an operator has said to be as it has to be. True: by the newest answer, too, which is not written down yet.
fn accepted(cx: &StepCx<'_>) -> Result<(Words, bool), StepError> {
    let Some(Accepted { mut words, shown }) = cx.checkpoint()? else { return Ok((Words::new(), false)) };
    let is_new = shown.answer(cx) == Some(ACCEPT) && !shown.what.is_empty();
    if is_new {
        words.extend(shown.what);
    }
    Ok((words, is_new))
}

async fn complaints(cx: &StepCx<'_>) -> Result<Vec<Complaint>, StepError> {
    let order = order(cx)?;
    let stock = cx.output::<TakeStock>()?.unwrap_or_default();
    let closed = cx.output::<Close>()?;
    let was_left = closed.as_ref().is_some_and(|closed| closed.was_left(cx.id));
    let knew_none = closed.is_some_and(|closed| closed.hypervisor.is_none());
    let mut complaints = of_its_own(cx, &stock, was_left).await?;
    for check in &order.rules.checks {
        // A dry run has nothing yet to compare with, and has taken stock just now.
        if cx.begun().is_none() && check.expect == Expected::AsFound {
            continue;
        }
        let measure = match stock.checks.get(&check.name) {
            Some(_) if was_left => Measure::Nothing(WAS_LEFT),
            Some(found) => Measure::Found(found),
            None => Measure::Nothing(WAS_SILENT),
        };
        match cx.ports.facts.run(&order.node, &check.command, Duration::from_millis(check.time_limit_ms)).await {
            Ok(end) => complaints.extend(complaint(check, &end, measure)),
            // Too slow, or the node is away just now.
            Err(error) if error.kind == PortErrorKind::Unavailable => {
                complaints.push(Complaint::wrong(Reason::NodeSilent, format!("{}: {}", check.name, StepError::from(error).chain())));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if (was_left || knew_none) && let Some(verified) = cx.output::<VerifyHypervisor>()? {
        let mut said = verified.told();
        // With what it was found, it may have been another one already.
        if let (true, Some(id)) = (was_left, &verified.id) {
            said.push_str(&format!("; to Nova it is {id} (`compute_id`)"));
        }
        let line = if was_left {
            format!("an operator had left the node, perhaps because something is missing; now it offers {said}")
        } else {
            format!("Nova knew of no hypervisor of it before; now it offers {said}")
        };
        let reason = if was_left { Reason::WasLeft } else { Reason::NotCompared };
        complaints.push(Complaint::not_compared(reason, OFFERED, said, line));
    }
    let (accepted, _) = accepted(cx)?;
    complaints.retain(|complaint| complaint.shown.as_ref().is_none_or(|(name, said)| accepted.get(name) != Some(said)));
    Ok(complaints)
}

const WAS_LEFT: &str = "an operator had left the node, so how it was found is nothing to compare with";
const WAS_SILENT: &str = "the node did not answer before, so there is nothing to compare with";

/// In what it differs from how it was `found`, without a check of the site's own.
async fn of_its_own(cx: &StepCx<'_>, found: &Stock, was_left: bool) -> Result<Vec<Complaint>, StepError> {
    let order = order(cx)?;
    let mut compare = order.rules.compare;
    // A dry run has nothing yet to compare with.
    if cx.begun().is_none() {
        compare.retain(|compared| *compared == Compared::Clock);
    }
    if compare.is_empty() {
        return Ok(Vec::new());
    }
    let before = if was_left { Err(WAS_LEFT) } else { found.node.as_ref().ok_or_else(|| found.untold.as_deref().unwrap_or(WAS_SILENT)) };
    match cx.ports.facts.stock(&order.node).await {
        Ok(now) => Ok(differences(&compare, before, &now).into_iter().map(Complaint::from).collect()),
        Err(error) => match &error.kind {
            PortErrorKind::Unavailable => Ok(vec![Complaint::wrong(Reason::NodeSilent, StepError::from(error).chain())]),
            PortErrorKind::Refused { .. } | PortErrorKind::Garbled { .. } => {
                let line = StepError::from(error).chain();
                Ok(vec![Complaint::not_compared(Reason::NotCompared, "what it has", line.clone(), line)])
            }
            PortErrorKind::OutcomeUnknown | PortErrorKind::NotFound | PortErrorKind::Denied { .. } => Err(error.into()),
        },
    }
}

#[async_trait]
impl Step for VerifyNode {
    const NAME: &'static str = "verify-node";
    const QUEUE: Queue = queues::NODES;
    type Output = VerifiedNode;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<VerifiedNode>, StepError> {
        let NodeOrder { node, rules, .. } = order(cx)?;
        let complaints = complaints(cx).await?;
        let would = format!("run {} on {node}, and compare {} with how it was found", counted(rules.checks.len(), "check"), counted(rules.compare.len(), "thing"));
        if complaints.is_empty() {
            // A dry run sees the system that is to be wiped.
            let done = Observed::AlreadyDone(VerifiedNode { checks: rules.checks.len() });
            return Ok(if cx.begun().is_none() { Observed::ToDo { would } } else { done });
        }
        let lines: Vec<&str> = complaints.iter().map(|complaint| complaint.line.as_str()).collect();
        Ok(Observed::ToDo { would: format!("{would}; now: {}", lines.join("; ")) })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<VerifiedNode>, StepError> {
        let order = order(cx)?;
        // Before anything else is asked: it is the newest answer no more then.
        if let (words, true) = accepted(cx)? {
            cx.save(&Accepted { words, shown: Shown::now(cx, Words::new()) }, "taken as good by an operator").await?;
        }
        let complaints = complaints(cx).await?;
        if complaints.is_empty() {
            return Ok(Progress::Done(VerifiedNode { checks: order.rules.checks.len() }));
        }
        let settles = cx.patient_since().is_none_or(|since| cx.now().since(since) < SETTLES_WITHIN);
        if settles && let Some(wrong) = complaints.iter().find(|complaint| complaint.may_pass) {
            let after = Duration::from_millis(order.rules.node_poll_ms);
            return Ok(Progress::LookAgain { after, note: wrong.line.clone() });
        }
        let wrong = complaints.iter().any(|complaint| complaint.shown.is_none());
        let differs = complaints.iter().any(|complaint| complaint.may_pass);
        let mut question = Question::new(match (wrong, differs) {
            (true, _) => format!("{} is renewed, and is not as it has to be: what now?", order.node),
            (false, true) => format!("{} is renewed, and is not as it was found: what now?", order.node),
            (false, false) => format!("{} is renewed, and whether it has all that it must have can't be told by comparing: is it well?", order.node),
        });
        for complaint in &complaints {
            question = question.because(complaint.reason, complaint.line.clone());
        }
        question = question.answer("retry", AnswerEffect::Retry, "looks and runs the checks again, after you have mended it");
        let shown: Words = complaints.into_iter().filter_map(|complaint| complaint.shown).collect();
        if !shown.is_empty() {
            let consequence = format!("takes what differs or could not be compared as good as it is here; if nothing else is wrong, {} is given back", order.node);
            question = question.answer(ACCEPT, AnswerEffect::Retry, consequence);
            let (words, _) = accepted(cx)?;
            cx.save(&Accepted { words, shown: Shown::now(cx, shown) }, "could not be compared").await?;
        }
        Err(StepError::ask(question.answer("leave", AnswerEffect::Leave, format!("ends here; {} stays closed", order.node))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expect: Expected) -> OrderedCheck {
        OrderedCheck { name: "gpus".to_owned(), command: "count".to_owned(), expect, time_limit_ms: 1, nodes: Vec::new() }
    }

    fn end(code: i32, output: &str) -> CommandEnd {
        CommandEnd { code, output: output.to_owned() }
    }

    fn said(check: &OrderedCheck, end: &CommandEnd, measure: Measure<'_>) -> Option<String> {
        complaint(check, end, measure).map(|complaint| format!("{}{}", if complaint.shown.is_none() { "" } else { "perhaps: " }, complaint.line))
    }

    #[test]
    fn a_check_comes_out_well_only_as_it_is_expected_to() {
        let eight = Expected::Output("8".to_owned());
        let silent = Measure::Nothing("it was silent");
        let found = end(0, "8");
        let found = Measure::Found(&found);
        let is = |expect: &Expected, end: CommandEnd, measure, expected: Option<&str>| {
            assert_eq!(said(&check(expect.clone()), &end, measure).as_deref(), expected, "{expect:?} {end:?} {measure:?}");
        };
        is(&Expected::Success, end(0, "x"), silent, None);
        is(&Expected::Success, end(1, "x"), silent, Some("gpus (count): expected exit code 0, now exit code 1"));
        is(&eight, end(0, "8"), silent, None);
        is(&Expected::Output(" 8\u{a0}".to_owned()), end(0, "8"), silent, None);
        is(&Expected::Output("8 ".to_owned()), end(0, "7"), silent, Some("gpus (count): expected `8`, now `7`"));
        is(&eight, end(0, "7"), silent, Some("gpus (count): expected `8`, now `7`"));
        is(&eight, end(2, "8"), silent, Some("gpus (count): expected exit code 0, now exit code 2"));
        is(&Expected::AsFound, end(0, "8"), found, None);
        is(&Expected::AsFound, end(0, "7"), found, Some("gpus (count): before it was `8`, now `7`"));
        is(&Expected::AsFound, end(1, ""), found, Some("gpus (count): before it was `8`, now exit code 1"));
        is(&Expected::AsFound, end(1, ""), silent, Some("gpus (count): expected exit code 0, now exit code 1"));
    }

    #[test]
    fn what_can_not_be_compared_is_not_taken_as_good() {
        let failed = end(127, "");
        let is = |end: CommandEnd, measure, expected: &str| assert_eq!(said(&check(Expected::AsFound), &end, measure).unwrap(), expected);
        is(end(0, "7"), Measure::Nothing("it was silent"), "perhaps: gpus (count): it was silent; now `7`");
        let before = "perhaps: gpus (count): it failed before (exit code 127), which is nothing to compare with; now";
        is(end(0, "7"), Measure::Found(&failed), &format!("{before} `7`"));
        is(failed.clone(), Measure::Found(&failed), &format!("{before} exit code 127"));
    }
}
