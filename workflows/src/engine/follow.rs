//! What a signal does to a workflow.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use tracing::{error, info};

use super::activation::LeaseLost;
use super::driver::Driver;
use super::run::Run;
use super::step::deadline;
use super::{AnswerEffect, Course, Event, Outcome, Remedy, Report, Signal, SignalKind, Stage, StepCx, StepError, UnwindCause};

/// To leave is an act, of each step that was begun. The other answers are followed by nothing before `resume`.
pub const LEFT_WHILE_PAUSED: &str = "it is paused, and to leave it does something: resume it first";

impl Driver<'_> {
    /// Folds unread signals into the state.
    pub(super) async fn read_inbox(&self, run: &mut Run<'_>) -> Result<(), LeaseLost> {
        while let Some(stored) = run.inbox.pop_front() {
            run.pending.consumed += if cfg!(feature = "bug-lost-signal") { 2 } else { 1 };
            match serde_json::from_str::<Signal>(&stored.body) {
                Ok(signal) if run.follows(&signal.id) => {
                    self.follow(run, signal).await?;
                    run.keep_within_a_commit().await?;
                }
                Ok(signal) => info!(workflow = %self.id, signal = signal.id, "second delivery of a signal ignored"),
                Err(source) => error!(workflow = %self.id, %source, "a signal that can't be read was dropped"),
            }
        }
        Ok(())
    }

    async fn follow(&self, run: &mut Run<'_>, signal: Signal) -> Result<(), LeaseLost> {
        let Signal { id, at, by, kind } = signal;
        if let Course::Ended { .. } = run.state.course {
            return Ok(());
        }
        match kind {
            SignalKind::Pause { why } => match &run.state.paused {
                None => {
                    run.tell_children(&SignalKind::Pause { why: why.clone() }, &id);
                    run.push(Event::Paused { by, why, beside: false })
                }
                // A person's and its rollout's stand beside each other: neither's resume ends what the other wants.
                Some(paused) if paused.beside.is_none() && paused.is_by_a_person() == Signal::is_by_a_workflow(&by) => {
                    run.push(Event::Paused { by, why, beside: true })
                }
                Some(_) => refuse(run, by, "pause", "it is paused already"),
            },
            SignalKind::Resume => match &run.state.paused {
                None => refuse(run, by, "resume", "it is not paused"),
                Some(paused) if paused.beside.is_some() => run.push(Event::Resumed { by }),
                // Its author had not seen yet that the first one was followed.
                Some(paused) if paused.resumed.is_some_and(|resumed| at <= resumed) && !Signal::is_by_a_workflow(&by) => {
                    let why = format!("it was resumed already, and stays paused by {}", paused.by);
                    refuse(run, by, "resume", &why)
                }
                Some(paused) if paused.is_by_a_person() && Signal::is_by_a_workflow(&by) => {
                    let why = format!("{} has paused it, and not its rollout", paused.by);
                    refuse(run, by, "resume", &why)
                }
                Some(_) => {
                    run.tell_children(&SignalKind::Resume, &id);
                    run.push(Event::Resumed { by })
                }
            },
            SignalKind::Abort { why } => match (self.can_go_back(&run.state), self.no_return(&run.state)) {
                (true, _) => self.go_back(run, UnwindCause::Aborted { by, why }),
                (false, Some(step)) => {
                    let why = format!("`{step}` has begun, and from there the only way is forward");
                    refuse(run, by, "abort", &why)
                }
                (false, None) => refuse(run, by, "abort", "it goes back already"),
            },
            SignalKind::Retry => match &run.state.current {
                Some(_) => self.retry(run, by),
                None => refuse(run, by, "retry", "no step is under way"),
            },
            SignalKind::Answer { key, question } => self.answer(run, by, key, question).await,
            SignalKind::Report { about, word, text } => {
                let report = Report { about, word, text, received: at };
                if self.definition.hears(&run.state, &report) {
                    run.push(Event::Reported { report })
                } else {
                    info!(workflow = %self.id, word = report.word, "a report that nobody listens to was dropped");
                    run.follows_nothing();
                    Ok(())
                }
            }
            SignalKind::ChildEnded { key, outcome, headline, .. } => {
                run.push(Event::ChildEnded { key, outcome, headline })
            }
        }
    }

    fn retry(&self, run: &mut Run<'_>, by: String) -> Result<(), LeaseLost> {
        let Some(current) = &run.state.current else { return Ok(()) };
        let step = self.step(&current.step)?;
        // The whole patience, from now on: its last deadline was perhaps put off by a pause.
        let deadline = deadline(&step.policy(&self.view(run, step.name())), run.now());
        run.push(Event::RetryRequested { by, deadline })
    }

    async fn answer(&self, run: &mut Run<'_>, by: String, key: String, read: Option<u32>) -> Result<(), LeaseLost> {
        let Some(current) = run.state.current.clone() else { return refuse(run, by, "answer", "no question is open") };
        let Some(question) = run.state.question() else { return refuse(run, by, "answer", "no question is open") };
        let open = run.state.questions;
        if let Some(read) = read.filter(|read| *read != open) {
            let why = format!("`{key}` was for question {read}, and question {open} is open now");
            return refuse(run, by, "answer", &why);
        }
        let Some(answer) = question.find(&key).cloned() else {
            let why = format!("`{key}` is none of the answers");
            return refuse(run, by, "answer", &why);
        };
        if answer.effect == AnswerEffect::Unwind && !self.can_go_back(&run.state) {
            return refuse(run, by, "answer", "there is no way back any more");
        }
        if answer.effect == AnswerEffect::Leave && run.state.paused.is_some() {
            return refuse(run, by, "answer", LEFT_WHILE_PAUSED);
        }
        if answer.effect == AnswerEffect::Leave
            && let Err(error) = self.leave(run).await
        {
            let why = format!("it can't be left like this: {}", error.chain());
            return if error.remedy == Remedy::LeaseLost { Err(LeaseLost) } else { refuse(run, by, "answer", &why) };
        }
        run.push(Event::OperatorAnswered { step: current.step.clone(), key, by: by.clone() })?;
        match answer.effect {
            AnswerEffect::Retry => self.retry(run, by),
            AnswerEffect::Unwind => self.go_back(run, UnwindCause::Answered { by }),
            AnswerEffect::Leave => {
                let why = format!("left as it is by {by} at {}: {}", current.step, question_text(&current.stage));
                run.push(Event::Ended { outcome: Outcome::Failed, why })
            }
        }
    }

    /// What the step may look at, without a hand on the journal.
    fn view<'b>(&'b self, run: &Run<'_>, step: &'static str) -> StepCx<'b> {
        StepCx::new(&self.engine.ports, self.id, step, run.state.clone(), run.now(), self.fence, None)
    }

    /// Every step that was begun takes away what must not stay behind, last first.
    async fn leave(&self, run: &Run<'_>) -> Result<(), StepError> {
        for record in run.state.steps.iter().rev() {
            let Some(step) = self.definition.step(&record.step) else { continue };
            run.guard().await?;
            let cx = self.view(run, step.name());
            let left = AssertUnwindSafe(step.leave(&cx)).catch_unwind().await;
            left.unwrap_or_else(|_| Err(StepError::fatal(format!("leaving `{}` met a bug in this program", step.name()))))?;
        }
        Ok(())
    }
}

fn question_text(stage: &Stage) -> &str {
    match stage {
        Stage::Asking { question } => &question.text,
        Stage::Running | Stage::Parked { .. } | Stage::Retrying { .. } => "",
    }
}

fn refuse(run: &mut Run<'_>, by: String, signal: &str, why: &str) -> Result<(), LeaseLost> {
    run.push(Event::SignalRefused { by, signal: signal.to_owned(), why: why.to_owned() })
}
