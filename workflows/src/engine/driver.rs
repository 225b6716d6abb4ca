//! Drives one workflow by the decisions of its state.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use rand::Rng as _;
use serde_json::Value;
use tracing::Instrument as _;
use tracing::{Span, error, info, info_span, warn};

use super::activation::{Activation, Engine, LeaseLost};
use super::run::{Met, Run};
use super::step::deadline;
use super::{
    AnswerEffect, AnyStep, ChildSpec, ChildStarted, Course, Decision, Definition, Event, Observed, PastDeadline, Progress, Question, Remedy, Signal,
    SignalKind, Stage, Start, State, StepCx, StepError, TakenOver, Undone, UnwindCause, decide, start,
};
use crate::chance;
use crate::store::{Fence, Next, Queue, Resource, StoredSignal, Take, WorkflowId};
use crate::telemetry::{StepCall, StepOutcome, metrics};

/// A workflow that waits for a lock or budget looks again after this long, should its wake-up be lost. Freed
/// resources wake it at once, so this only bounds the damage.
const RESOURCE_LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Transitions of one activation, before the workflow goes back into the queue so that others get their turn. A
/// node's renewal has about 20.
const TRANSITIONS_MAX: u32 = 256;
/// Tries to begin a step that takes shares over, each of which needs one more than it is named in. More than a few mean that others take them in turn.
const TAKE_OVERS_MAX: u32 = 5;
/// Children that one workflow may start. A rollout of a whole site has one for each node.
const CHILDREN_MAX: usize = 10_000;
/// Who wants a step tried that is past its deadline before its first try.
const AFTER_AN_OUTAGE: &str = "the engine, after an outage of the store";

/// Drives one workflow by the decisions of its state.
pub(super) struct Driver<'a> {
    pub(super) engine: &'a Engine,
    pub(super) definition: &'a Definition,
    pub(super) id: &'a WorkflowId,
    pub(super) fence: Fence,
    /// Of its trace nothing is told ([`telemetry::is_left_out`]).
    pub(super) is_left_out: bool,
    pub(super) run: tokio::sync::Mutex<Run<'a>>,
}

impl<'a> Driver<'a> {
    pub(super) async fn drive(&'a self, signals: &[StoredSignal]) -> Result<Activation, LeaseLost> {
        let names = self.definition.step_names();
        self.run.lock().await.inbox = signals.iter().cloned().collect();
        for _ in 0..TRANSITIONS_MAX {
            let decision = {
                let mut run = self.run.lock().await;
                // A poll that saw nothing new is not worth an entry: only the time of the next look is committed.
                if let Some(then) = run.look_again.take() {
                    return self.park(&mut run, Next::At(then)).await;
                }
                self.read_inbox(&mut run).await?;
                let decision = decide(&run.state, &names, run.now());
                if !self.is_served(&decision)? {
                    let now = run.now();
                    return self.park(&mut run, Next::At(now)).await;
                }
                decision
            };
            match decision {
                // What was accepted until now is followed before there is no way back: the last commit's answer may be minutes old.
                Decision::Begin { step } if self.step(&step)?.is_point_of_no_return() && self.run.lock().await.has_pending() => {
                    self.run.lock().await.commit(Vec::new()).await?;
                }
                Decision::Begin { step } => {
                    if let Some(parked) = self.begin(&step).await? {
                        return Ok(parked);
                    }
                }
                Decision::Continue { step } => self.go_on(&step).await?,
                Decision::BeginUndo { step } => {
                    let mut run = self.run.lock().await;
                    let policy = self.step(&step)?.policy(&self.cx(&run, &step)?);
                    let deadline = deadline(&policy, run.now());
                    run.push(Event::UndoBegun { step, deadline })?;
                    run.commit(Vec::new()).await?;
                }
                Decision::ContinueUndo { step } => self.go_on_undoing(&step).await?,
                Decision::SleepUntil(then) => return self.park(&mut *self.run.lock().await, Next::At(then)).await,
                Decision::AwaitSignal => return self.park(&mut *self.run.lock().await, Next::Signal).await,
                Decision::End { outcome, why } => {
                    self.run.lock().await.push(Event::Ended { outcome, why })?;
                }
                Decision::Nothing => return self.end().await,
            }
        }
        let mut run = self.run.lock().await;
        let then = run.look_again.take().unwrap_or(run.now());
        self.park(&mut run, Next::At(then)).await
    }

    async fn park(&self, run: &mut Run<'_>, next: Next) -> Result<Activation, LeaseLost> {
        let queue = self.queue(&run.state);
        run.leave(next, queue).await?;
        Ok(Activation::Parked)
    }

    /// The queue of the step that is under way or comes next.
    fn queue(&self, state: &State) -> Queue {
        let step = match (&state.current, &state.course) {
            (Some(current), _) => self.definition.step(&current.step),
            (None, Course::Forward) => self.definition.steps.iter().map(|step| &**step).find(|step| state.record(step.name()).is_none()),
            (None, Course::Unwinding { .. }) => state.steps.last().and_then(|newest| self.definition.step(&newest.step)),
            (None, Course::Ended { .. }) => None,
        };
        step.map_or(Queue::DEFAULT, AnyStep::queue)
    }

    /// A step that waits in a queue which this worker does not serve is another worker's.
    fn is_served(&self, decision: &Decision) -> Result<bool, LeaseLost> {
        match decision {
            Decision::Begin { step } | Decision::Continue { step } | Decision::BeginUndo { step } | Decision::ContinueUndo { step } => {
                Ok(self.engine.queues.contains(&self.step(step)?.queue()))
            }
            Decision::SleepUntil(_) | Decision::AwaitSignal | Decision::End { .. } | Decision::Nothing => Ok(true),
        }
    }

    async fn end(&self) -> Result<Activation, LeaseLost> {
        let mut run = self.run.lock().await;
        let Course::Ended { outcome, why } = run.state.course.clone() else { return Ok(Activation::Parked) };
        if let (Some(parent), Some(key)) = (run.state.parent.clone(), run.state.key.clone()) {
            let kind = SignalKind::ChildEnded { key, id: self.id.clone(), outcome, headline: why };
            let signal = Signal { id: format!("{}-ended", self.id), at: run.now(), by: Signal::by_workflow(self.id), kind };
            if let Ok(stored) = signal.stored() {
                run.pending.signals.push((parent, stored));
            }
        }
        run.leave(Next::End { keep: self.engine.keep_finished }, Queue::DEFAULT).await?;
        info!(workflow = %self.id, outcome = outcome.as_str(), "workflow ended");
        metrics::workflow_ended(self.definition.kind, outcome.as_str());
        Ok(Activation::Ended)
    }

    pub(super) fn step(&self, name: &str) -> Result<&'a dyn AnyStep, LeaseLost> {
        self.definition.step(name).ok_or_else(|| {
            error!(workflow = %self.id, step = name, "the journal names a step that its definition does not have");
            LeaseLost
        })
    }

    fn cx(&'a self, run: &Run<'_>, step: &str) -> Result<StepCx<'a>, LeaseLost> {
        let name = self.step(step)?.name();
        Ok(StepCx::new(&self.engine.ports, self.id, name, run.state.clone(), run.now(), self.fence, Some(&self.run)))
    }

    /// Commits the intent to run the step, and takes what it needs. Some if it has to wait.
    async fn begin(&'a self, name: &str) -> Result<Option<Activation>, LeaseLost> {
        let step = self.step(name)?;
        let mut run = self.run.lock().await;
        let cx = self.cx(&run, name)?;
        let mut take = match step.takes(&cx) {
            Ok(take) => take,
            Err(error) => {
                // It failed before it could be called.
                metrics::step_finished(self.definition.kind, step.name(), StepOutcome::Fatal, Duration::ZERO);
                let cause = UnwindCause::Fatal { step: name.to_owned(), error: error.chain() };
                run.push(Event::UnwindBegun { cause })?;
                return Ok(None);
            }
        };
        let policy = step.policy(&cx);
        // Its view of the state would make the next event copy all of it.
        drop(cx);
        let took: Vec<Resource> = take.iter().map(|take| take.resource.clone()).collect();
        for round in 1.. {
            let before = (!take.is_empty()).then(|| (run.state.clone(), run.pending.clone()));
            let over = |take: &Take| Some(TakenOver { resource: take.resource.clone(), from: take.from.clone()? });
            let took_over = take.iter().filter_map(over).collect();
            // Not once for all rounds: each may have waited for the store.
            let deadline = deadline(&policy, run.now());
            run.push(Event::StepBegun { step: name.to_owned(), deadline, took: took.clone(), took_over })?;
            let met = run.commit(take.clone()).await?;
            if let (Met::Busy { .. } | Met::Held { .. }, Some(before)) = (&met, before) {
                (run.state, run.pending) = before;
            }
            let (resource, holders) = match met {
                Met::Done => {
                    // Written down only after an outage of the store that was longer than its patience: nobody has tried it yet.
                    let now = run.now();
                    if now >= deadline {
                        let deadline = super::step::deadline(&policy, now);
                        run.push(Event::RetryRequested { by: AFTER_AN_OUTAGE.to_owned(), deadline })?;
                    }
                    return Ok(None);
                }
                Met::Busy { resource, holders } => (resource, holders),
                // It is named, so that the journal says whose the share was.
                Met::Held { resource, holder } if round < TAKE_OVERS_MAX => {
                    take.iter_mut().filter(|take| take.resource == resource).for_each(|take| take.from.clone_from(&holder));
                    continue;
                }
                Met::Held { resource, holder } => (resource, holder.into_iter().collect()),
            };
            if run.state.awaits.as_ref() != Some(&(resource.clone(), holders.clone())) {
                run.push(Event::ResourceAwaited { step: name.to_owned(), resource, holders })?;
            }
            let then = run.now() + RESOURCE_LOOK_AGAIN;
            run.leave(Next::At(then), step.queue()).await?;
            break;
        }
        Ok(Some(Activation::Parked))
    }

    /// Looks, and acts if there is something to do.
    async fn go_on(&'a self, name: &str) -> Result<(), LeaseLost> {
        let step = self.step(name)?;
        let cx = self.cx(&*self.run.lock().await, name)?;
        let span = if self.is_left_out {
            Span::none()
        } else {
            info_span!("step", otel.name = name, step = name, otel.status_code = tracing::field::Empty)
        };
        let call = StepCall::begin(self.definition.kind, step.name(), span.clone());
        let tried = AssertUnwindSafe(look_and_act(step, &cx)).catch_unwind().instrument(span).await;
        let tried = tried.unwrap_or_else(|panic| Err(panicked(name, &*panic)));
        // One that can't say what it gives is not done.
        let tried = tried.and_then(|progress| match progress {
            Progress::Done(_) => Ok((progress, step.gives(&cx)?)),
            Progress::LookAgain { .. } | Progress::StartChildren { .. } | Progress::AwaitChildren { .. } => Ok((progress, Vec::new())),
        });
        call.end(match &tried {
            Ok((Progress::Done(_), _)) => StepOutcome::Done,
            Ok((Progress::LookAgain { .. } | Progress::StartChildren { .. } | Progress::AwaitChildren { .. }, _)) => StepOutcome::Waits,
            Err(error) => outcome(error),
        });
        let mut run = self.run.lock().await;
        match tried {
            Ok((Progress::Done(output), gave)) => {
                info!(workflow = %self.id, step = name, "step succeeded");
                // Its view of the state would make the next event copy all of it.
                drop(cx);
                run.pending.give.extend(gave.iter().cloned());
                run.push(Event::StepSucceeded { step: name.to_owned(), output, gave })
            }
            Ok((Progress::LookAgain { after, note }, _)) => look_again(&mut run, name, &cx, after, note),
            Ok((Progress::StartChildren { children, note }, _)) => {
                self.start_children(&mut run, name, children, note)?;
                // Each lot by itself: a store takes only so many in one commit.
                run.commit(Vec::new()).await.map(drop)
            }
            Ok((Progress::AwaitChildren { note }, _)) => {
                run.push(Event::StepParked { step: name.to_owned(), until: None, note })
            }
            Err(error) => self.failed(&mut run, name, step, &cx, error),
        }
    }

    fn start_children(&self, run: &mut Run<'_>, name: &str, children: Vec<ChildSpec>, note: String) -> Result<(), LeaseLost> {
        let mut started = Vec::new();
        if run.state.children.len() + children.len() > CHILDREN_MAX {
            let question = stuck(run, name, &format!("it wants more than {CHILDREN_MAX} children"), self.can_go_back(&run.state));
            return run.push(Event::OperatorAsked { step: name.to_owned(), question });
        }
        for child in children {
            if run.state.children.contains_key(&child.key) {
                continue;
            }
            let Some(definition) = self.engine.registry.get(&child.kind) else {
                return Err(run.give_up(&StepError::fatal(format!("there is no kind `{}`", child.kind))));
            };
            let id = self.id.child(&child.key).map_err(|error| run.give_up(&error))?;
            let new = Start {
                id: id.clone(),
                kind: child.kind,
                version: definition.version,
                target: child.target,
                input: child.input,
                parent: Some(self.id.clone()),
                key: Some(child.key.clone()),
                // Whoever reads it later wants to know whom to ask; that it is a child, `parent` says.
                by: run.state.created_by.clone(),
                traceparent: run.traceparent.clone(),
            };
            run.pending.create.push(start(new, run.now()).map_err(|error| run.give_up(&error))?);
            started.push(ChildStarted { key: child.key, id });
        }
        run.push(Event::ChildrenStarted { step: name.to_owned(), children: started, note })
    }

    async fn go_on_undoing(&'a self, name: &str) -> Result<(), LeaseLost> {
        let step = self.step(name)?;
        let cx = self.cx(&*self.run.lock().await, name)?;
        let span = if self.is_left_out {
            Span::none()
        } else {
            info_span!("undo", otel.name = format!("undo {name}"), step = name, otel.status_code = tracing::field::Empty)
        };
        let call = StepCall::begin(self.definition.kind, step.name(), span.clone());
        let tried = AssertUnwindSafe(step.undo(&cx)).catch_unwind().instrument(span).await;
        let tried = tried.unwrap_or_else(|panic| Err(panicked(name, &*panic)));
        // One that is late has failed, and one that can't say what it took is not undone.
        let tried = tried.and_then(|undone| match undone {
            Undone::LookAgain { note, .. } if cx.deadline().is_some_and(|deadline| cx.now() >= deadline) => {
                Err(StepError::retry(format!("not undone by its deadline: {note}")))
            }
            Undone::LookAgain { .. } => Ok((undone, Vec::new())),
            Undone::Done { .. } | Undone::DoneKeeping { .. } => Ok((undone, step.takes(&cx)?)),
        });
        call.end(match &tried {
            Ok((Undone::Done { .. } | Undone::DoneKeeping { .. }, _)) => StepOutcome::Done,
            Ok((Undone::LookAgain { .. }, _)) => StepOutcome::Waits,
            Err(error) => outcome(error),
        });
        let mut run = self.run.lock().await;
        let (note, keeps, took) = match tried {
            Ok((Undone::Done { note }, took)) => (note, Vec::new(), took),
            Ok((Undone::DoneKeeping { keeps, note }, took)) => (note, keeps, took),
            Ok((Undone::LookAgain { after, note }, _)) => return look_again(&mut run, name, &cx, after, note),
            Err(error) => return self.failed(&mut run, name, step, &cx, error),
        };
        let gave: Vec<Resource> = took.into_iter().map(|take| take.resource).filter(|one| !keeps.contains(one)).collect();
        run.pending.give.extend(gave.iter().cloned());
        run.push(Event::StepUndone { step: name.to_owned(), note, gave })
    }

    fn failed(&self, run: &mut Run<'_>, name: &str, step: &dyn AnyStep, cx: &StepCx<'_>, error: StepError) -> Result<(), LeaseLost> {
        let policy = step.policy(cx);
        let now = run.now();
        let failures = run.state.current.as_ref().map_or(0, |current| current.failures) + 1;
        let overdue = cx.deadline().is_some_and(|deadline| now >= deadline);
        let back = self.can_go_back(&run.state);
        match error.remedy.clone() {
            Remedy::LeaseLost => Err(LeaseLost),
            Remedy::Ask(question) => run.push(Event::OperatorAsked { step: name.to_owned(), question: *question }),
            Remedy::Fatal if back => {
                let cause = UnwindCause::Fatal { step: name.to_owned(), error: error.chain() };
                self.go_back(run, cause)
            }
            Remedy::RetryLater if failures < policy.failures_max && !overdue => {
                let text = error.chain();
                warn!(workflow = %self.id, step = name, failures, error = text, "step failed, will be tried again");
                let pause = if cfg!(feature = "bug-retry-without-backoff") { Duration::ZERO } else { policy.backoff(failures) };
                let retry_at = now + jittered(pause);
                run.push(Event::StepFailed { step: name.to_owned(), error: text, failures, retry_at })
            }
            Remedy::Fatal | Remedy::RetryLater => {
                let question = stuck(run, name, &error.chain(), back);
                run.push(Event::OperatorAsked { step: name.to_owned(), question })
            }
        }
    }

    /// May it still be unwound? Not after a point of no return, and not while it is being unwound.
    pub(super) fn can_go_back(&self, state: &State) -> bool {
        state.course == Course::Forward && self.no_return(state).is_none()
    }

    /// The step after whose beginning there is only forward, if it has begun.
    pub(super) fn no_return(&self, state: &State) -> Option<&'static str> {
        let mut past = self.definition.steps.iter().filter(|step| step.is_point_of_no_return() && state.record(step.name()).is_some());
        past.next().map(|step| step.name())
    }

    pub(super) fn go_back(&self, run: &mut Run<'_>, cause: UnwindCause) -> Result<(), LeaseLost> {
        run.tell_children(&SignalKind::Abort { why: format!("its rollout goes back: {cause}") }, "abort");
        run.push(Event::UnwindBegun { cause })
    }

}

/// Parks the step until its next look, or its deadline. That it waits for the same as before is not worth an entry.
fn look_again(run: &mut Run<'_>, name: &str, cx: &StepCx<'_>, after: Duration, note: String) -> Result<(), LeaseLost> {
    let now = run.now();
    // Past its deadline it waits no shorter.
    let until = cx.deadline().filter(|deadline| *deadline > now).map_or(now + after, |deadline| (now + after).min(deadline));
    let parked = matches!(&run.state.current, Some(current) if matches!(current.stage, Stage::Parked { .. }));
    if parked && run.state.note == note {
        run.look_again = Some(until);
        return Ok(());
    }
    run.push(Event::StepParked { step: name.to_owned(), until: Some(until), note })
}

async fn look_and_act(step: &dyn AnyStep, cx: &StepCx<'_>) -> Result<Progress<Value>, StepError> {
    if cfg!(feature = "bug-no-observe-on-resume") && cx.begun().is_some_and(|begun| begun < cx.now()) {
        return step.act(cx).await;
    }
    match step.observe(cx).await? {
        Observed::AlreadyDone(output) => Ok(Progress::Done(output)),
        Observed::ToDo { would } if cx.deadline().is_some_and(|deadline| cx.now() >= deadline) => {
            match step.overdue(cx).await? {
                PastDeadline::Act => step.act(cx).await,
                PastDeadline::Ask(question) => Err(StepError::ask(question)),
                PastDeadline::Fail => Err(StepError::retry(format!("not done by its deadline: {would}"))),
            }
        }
        Observed::ToDo { .. } => step.act(cx).await,
    }
}

/// What a failure means to those who count.
fn outcome(error: &StepError) -> StepOutcome {
    match error.remedy {
        Remedy::RetryLater => StepOutcome::Retry,
        Remedy::Ask(_) => StepOutcome::Asks,
        Remedy::Fatal => StepOutcome::Fatal,
        Remedy::LeaseLost => StepOutcome::LeaseLost,
    }
}

/// What is asked when a step has used up its patience.
fn stuck(run: &Run<'_>, step: &str, error: &str, can_go_back: bool) -> Question {
    let undoing = matches!(run.state.course, Course::Unwinding { .. });
    let what = if undoing { format!("undoing `{step}`") } else { format!("`{step}`") };
    let question = Question::new(format!("{what} of {} does not succeed: what now?", run.state.target))
        .seen(error)
        .answer("retry", AnswerEffect::Retry, "tries again, with fresh attempts and a fresh deadline");
    let question = if can_go_back {
        question.answer("unwind", AnswerEffect::Unwind, "undoes what was done, last first, and ends")
    } else {
        question
    };
    question.answer("leave", AnswerEffect::Leave, "ends here and leaves everything as it is now; a node that is out of service stays out")
}

fn panicked(step: &str, panic: &(dyn std::any::Any + Send)) -> StepError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "no message".to_owned());
    error!(step, text, "a step panicked; this is a bug of ours");
    StepError::ask(
        Question::new(format!("`{step}` met a bug in this program: what now?"))
            .seen(format!("panic: {text}"))
            .answer("retry", AnswerEffect::Retry, "tries again")
            .answer("leave", AnswerEffect::Leave, "ends here and leaves everything as it is now"),
    )
}

/// Between half and the whole of `pause`, so that what failed together is not tried again together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(chance::draw(|random| random.random_range(0.5..=1.0)))
}
