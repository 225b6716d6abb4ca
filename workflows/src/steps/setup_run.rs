//! One run of the site's setup script, from the intent to its end: what the steps that need it share.
//!
//! The script is never killed: Kolla-Ansible that is interrupted leaves half of what it does.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::confirm_empty::objections;
use super::netboot::LOOK_IS_GOOD_FOR;
use crate::clock::Timestamp;
use crate::engine::{AnswerEffect, PastDeadline, Question, StepCx, StepError};
use crate::ports::{HostRecap, ScriptEnd, ScriptRun, ScriptState};

/// A run that is meant to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meant {
    pub(super) run: ScriptRun,
    /// The host on which it is.
    place: String,
    /// When it was first seen to run. Until then others were before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begun: Option<Timestamp>,
    /// Since when nobody tells whether it may be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unheard: Option<Timestamp>,
    /// When the operator was asked what to do after it.
    asked: Option<Timestamp>,
}

/// How long a run may have others before it. An operator is asked then, also where nobody is about the one that goes on.
// One run at a time goes on, of 20 to 40 min each (Midokura): so many nodes as a night's window has are not all asked about because they wait for each other.
const LINE_MAX: Duration = Duration::from_secs(8 * 3600);

/// How far a step has come with its run.
pub(super) enum Course {
    /// Look again later.
    Going { note: String },
    Ended(Meant, ScriptEnd),
    /// It was killed, or its host went down.
    Lost(Meant, Vec<String>),
}

/// What is said of a run that was lost.
pub(super) const LOST: &str = "it was killed, or its host went down: how far it came is not known";

/// The answer of an operator who knows better than what a run has said of itself.
const GO_ON: &str = "go-on";

/// Adds that answer to a question about a run that is over. `then` says what follows.
pub(super) fn or_go_on(question: Question, then: String) -> Question {
    question.answer(GO_ON, AnswerEffect::Retry, then)
}

/// The run that an operator has answered to go on with, whatever has become of it.
pub(super) fn taken_as_good(cx: &StepCx<'_>) -> Result<Option<String>, StepError> {
    let known: Option<Meant> = cx.checkpoint()?;
    // Only one that is over is asked about.
    let asked = known.filter(|meant| meant.asked.is_some() && cx.answered() == Some(GO_ON));
    Ok(asked.map(|meant| meant.run.name))
}

/// Sees to it that `step` has a run with these arguments, begun once, and tells how far it is. One for a `node` is started only where that is closed and
/// empty, or an operator knows better.
pub(super) async fn follow(
    cx: &StepCx<'_>,
    step: &str,
    arguments: &[String],
    node: Option<&NodeName>,
) -> Result<Course, StepError> {
    let known: Option<Meant> = cx.checkpoint()?;
    let Some(meant) = known.filter(|meant| !wants_another(cx, meant)) else {
        // Of this workflow, this step, and this holder of the workflow: no other run will ever have this name.
        let name = format!("{}.{step}.{}", cx.id, cx.fence().0);
        let run = ScriptRun { name, arguments: arguments.to_vec() };
        let meant = Meant { run, place: cx.ports.setup.place(), begun: None, unheard: None, asked: None };
        cx.save(&meant, "about to run the setup script").await?;
        return start(cx, meant, node).await;
    };
    let place = cx.ports.setup.place();
    if meant.place != place {
        let (run, there) = (&meant.run.name, &meant.place);
        return Err(StepError::retry(format!("run {run} is on host {there}, and this worker on {place}: let only {there} serve queue bastion")));
    }
    match cx.ports.setup.look(&meant.run.name).await? {
        // Its worker may have died before it came to start it; another run goes on; or it is about to begin, and this starts nothing.
        ScriptState::NotStarted => start(cx, meant, node).await,
        ScriptState::Running { last_line } => {
            if meant.begun.is_none() {
                cx.save(&Meant { begun: Some(cx.now()), ..meant }, "the setup script has begun").await?;
            }
            Ok(Course::Going { note: note(&last_line) })
        }
        ScriptState::Ended(end) => Ok(Course::Ended(meant, end)),
        ScriptState::Lost { last_lines } => Ok(Course::Lost(meant, last_lines)),
    }
}

/// What speaks against believing a run that has ended, as far as its code and the hosts that `counts` tell.
pub(super) fn complaints(end: &ScriptEnd, counts: impl Fn(&HostRecap) -> bool) -> Vec<String> {
    let code = (end.code != 0).then(|| format!("it ended with {}", end.code));
    let bad = end.recap.iter().filter(|host| counts(host) && (host.failed > 0 || host.unreachable > 0));
    let told = |HostRecap { host, failed, unreachable, .. }: &HostRecap| {
        format!("Ansible says of {host}: {failed} failed, {unreachable} unreachable")
    };
    code.into_iter().chain(bad.map(told)).collect()
}

/// What a step that follows a run does past its deadline, where a run may take so long: the time in the line is not the run's own.
pub(super) async fn overdue(cx: &StepCx<'_>, may_take: Duration) -> Result<PastDeadline, StepError> {
    let known: Option<Meant> = cx.checkpoint()?;
    let Some(meant) = known.filter(|meant| !wants_another(cx, meant)) else { return Ok(PastDeadline::Fail) };
    let (since, limit) = match cx.ports.setup.look(&meant.run.name).await? {
        ScriptState::NotStarted => (cx.patient_since(), LINE_MAX),
        // It has begun since somebody looked last.
        ScriptState::Running { .. } if meant.begun.is_none() => return Ok(PastDeadline::Act),
        ScriptState::Running { .. } => (meant.begun.max(cx.tried_since()), may_take),
        // It has a question of its own, or is done.
        ScriptState::Ended(_) | ScriptState::Lost { .. } => return Ok(PastDeadline::Act),
    };
    Ok(if since.is_some_and(|since| cx.now().since(since) < limit) { PastDeadline::Act } else { PastDeadline::Fail })
}

/// The operator wants another run: only after one that has ended, and was asked about.
fn wants_another(cx: &StepCx<'_>, meant: &Meant) -> bool {
    meant.asked.is_some_and(|asked| cx.tried_since().is_some_and(|since| since > asked))
}

/// The end of this step's run, if it has one, without doing anything.
pub(super) async fn ended(cx: &StepCx<'_>) -> Result<Option<(String, ScriptEnd)>, StepError> {
    let Some(Meant { run, .. }) = cx.checkpoint()? else { return Ok(None) };
    Ok(match cx.ports.setup.look(&run.name).await? {
        ScriptState::Ended(end) => Some((run.name, end)),
        ScriptState::NotStarted | ScriptState::Running { .. } | ScriptState::Lost { .. } => None,
    })
}

/// The name of this step's run, if it still goes on.
pub(super) async fn goes_on(cx: &StepCx<'_>) -> Result<Option<String>, StepError> {
    let Some(Meant { run, .. }) = cx.checkpoint()? else { return Ok(None) };
    let runs = matches!(cx.ports.setup.look(&run.name).await?, ScriptState::Running { .. });
    Ok(runs.then_some(run.name))
}

/// Starts it, if nobody has.
async fn start(cx: &StepCx<'_>, mut meant: Meant, node: Option<&NodeName>) -> Result<Course, StepError> {
    let looked = cx.just_now().await;
    let unknown = match node {
        Some(node) => last_look(cx, node, meant.unheard).await?,
        None => None,
    };
    if unknown.is_some() != meant.unheard.is_some() {
        meant.unheard = unknown.is_some().then_some(looked);
        cx.save(&meant, unknown.as_deref().unwrap_or("whether the setup script may be started is told again")).await?;
    }
    if let Some(note) = unknown {
        return Ok(Course::Going { note });
    }
    cx.guard().await?;
    // Any of these may have waited for the store.
    if cx.just_now().await.since(looked) > LOOK_IS_GOOD_FOR {
        return Ok(Course::Going { note: "looks once more before the setup script is started: too much time has passed".to_owned() });
    }
    cx.ports.setup.start(&meant.run).await?;
    Ok(Course::Going { note: format!("the setup script is started as {} as soon as no other run goes on", meant.run.name) })
}

/// The answer by which the script is run although the node is in use.
const RUN: &str = "run";

/// An operator is asked where Nova does not tell for so long how the node is.
// Its controllers restart within minutes. Who waits in line for the script is not to be asked because of that.
const UNHEARD_MAX: Duration = Duration::from_secs(15 * 60);

/// Asks the operator unless the node is as it was when it was wiped: closed and empty. A workflow that was put back from a backup may be long over. Some: why that can't be told
/// just now.
async fn last_look(cx: &StepCx<'_>, node: &NodeName, unheard: Option<Timestamp>) -> Result<Option<String>, StepError> {
    if cx.answered() == Some(RUN) {
        return Ok(None);
    }
    let objections = match objections(cx, node).await {
        Ok(objections) => objections,
        Err(error) if error.is_lost() => return Err(error),
        Err(error) => {
            let why = format!("Nova does not tell whether {node} is closed and empty: {}", error.chain());
            // (A pause, or an answer, begins that anew.)
            let since = unheard.max(cx.patient_since().filter(|_| unheard.is_some()));
            if since.is_none_or(|since| cx.now().since(since) < UNHEARD_MAX) {
                return Ok(Some(why));
            }
            vec![why]
        }
    };
    if objections.is_empty() {
        return Ok(None);
    }
    let question = Question::new(format!("{node} is not closed and empty before the setup script is run for it: what now?"));
    let question = objections.into_iter().fold(question, Question::seen);
    Err(StepError::ask(
        question
            .answer("retry", AnswerEffect::Retry, "looks again, and runs the script if the node is closed and empty then")
            .answer(RUN, AnswerEffect::Retry, "runs it all the same, whatever it does to what runs there")
            .answer("leave", AnswerEffect::Leave, format!("ends here, without a run of the script; {node} stays as it is")),
    ))
}

fn note(last_line: &str) -> String {
    match last_line {
        "" => "the setup script runs".to_owned(),
        line => format!("the setup script runs: {line}"),
    }
}

/// Writes down that an operator is asked about `meant`, and begins the question with what speaks against it.
pub(super) async fn ask(cx: &StepCx<'_>, mut meant: Meant, text: String, complaints: Vec<String>) -> Result<Question, StepError> {
    meant.asked = Some(cx.now());
    cx.save(&meant, "the setup script did not do what it should").await?;
    Ok(complaints.into_iter().fold(Question::new(text), Question::seen))
}
