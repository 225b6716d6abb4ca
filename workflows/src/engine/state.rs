//! Where a workflow stands: the fold of its journal.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Checkpoint, Event, Outcome, Question, Report, Signal, TakenOver, UnwindCause, waits_for};
use crate::clock::Timestamp;
use crate::store::{Resource, Status, WorkflowId};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub kind: String,
    pub version: u32,
    pub target: String,
    pub input: Value,
    pub parent: Option<WorkflowId>,
    pub key: Option<String>,
    pub created_by: String,
    pub course: Course,
    /// Steps that were begun and not undone, in the order in which they began.
    pub steps: Vec<StepRecord>,
    /// What is being done now, or asked about it.
    pub current: Option<Current>,
    /// What the next step waits for before it can begin.
    pub awaits: Option<(Resource, Vec<WorkflowId>)>,
    pub children: BTreeMap<String, Child>,
    pub held: BTreeSet<Resource>,
    pub paused: Option<Pause>,
    /// What was said from outside: the newest of each word about each thing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<Report>,
    /// Newest remark, for people.
    pub note: String,
    /// Questions that it has asked so far.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub questions: u32,
    /// When an operator last asked for another try, of whichever step, or resumed it: until then nobody may have looked for long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retried: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "course", rename_all = "kebab-case")]
pub enum Course {
    Forward,
    Unwinding { cause: UnwindCause },
    Ended { outcome: Outcome, why: String },
}

/// A step that was begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    pub step: String,
    pub begun: Timestamp,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub took_over: Vec<TakenOver>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// The newest answer to each question about it, or about undoing it, by the question's text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub answers: BTreeMap<String, Answered>,
    /// Some once it succeeded.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
}

/// What an operator has answered, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    pub key: String,
    pub at: Timestamp,
}

/// The step, or the undoing of a step, that is under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Current {
    pub step: String,
    /// When it began, or when an operator last asked for another try.
    pub begun: Timestamp,
    /// After this it becomes a question. A restart does not change it.
    pub deadline: Timestamp,
    /// Failures in a row.
    pub failures: u32,
    /// The newest error, until something works again.
    pub error: Option<String>,
    /// What an operator has answered to this step's newest question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<String>,
    /// When that was. Another try that was asked for since is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<Timestamp>,
    pub stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case")]
pub enum Stage {
    /// To be looked at now.
    Running,
    /// To be looked at then; None: when a child ends.
    Parked { until: Option<Timestamp> },
    /// Failed, to be tried again then.
    Retrying { at: Timestamp },
    Asking { question: Question },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    pub id: WorkflowId,
    /// None while it is open.
    pub outcome: Option<Outcome>,
    pub headline: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    pub by: String,
    pub why: String,
    pub since: Timestamp,
    /// Its rollout is paused, too: the pause that goes on when the person who wants this one resumes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<PauseBeside>,
    /// When a person resumed it last, and it stayed paused for its rollout's sake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseBeside {
    pub by: String,
    pub why: String,
}

impl Pause {
    /// Is it a person's, or one that came with a rollout's?
    pub fn is_by_a_person(&self) -> bool {
        !Signal::is_by_a_workflow(&self.by)
    }
}

/// An event that can't follow what the journal says before it: the journal is wrong, or the program.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{event}` can't follow: {why}")]
pub struct IllegalTransition {
    event: String,
    why: String,
}

impl State {
    /// The state after a workflow's first event.
    pub fn begin(event: &Event) -> Result<State, IllegalTransition> {
        let Event::Created { kind, version, target, input, parent, key, by } = event else {
            return Err(illegal(event, "a journal begins with `created`"));
        };
        Ok(State {
            kind: kind.clone(),
            version: *version,
            target: target.clone(),
            input: input.clone(),
            parent: parent.clone(),
            key: key.clone(),
            created_by: by.clone(),
            course: Course::Forward,
            steps: Vec::new(),
            current: None,
            awaits: None,
            children: BTreeMap::new(),
            held: BTreeSet::new(),
            paused: None,
            reports: Vec::new(),
            note: String::new(),
            questions: 0,
            retried: None,
        })
    }

    /// The state after `event`, or why the journal can't be right. Live runs and replays both come here.
    pub fn apply(mut self, at: Timestamp, event: &Event) -> Result<State, IllegalTransition> {
        self.follow(at, event)?;
        Ok(self)
    }

    /// [`State::apply`] in place. After an error it is no state any more, and must not be used.
    pub(super) fn follow(&mut self, at: Timestamp, event: &Event) -> Result<(), IllegalTransition> {
        if let Course::Ended { .. } = self.course {
            return Err(illegal(event, "the workflow has ended"));
        }
        match event {
            Event::Created { .. } => return Err(illegal(event, "only the first event creates")),
            Event::ResourceAwaited { step, resource, holders } => {
                self.note = event.describe();
                self.none_current(event)?;
                let _ = step;
                self.awaits = Some((resource.clone(), holders.clone()));
            }
            Event::StepBegun { step, deadline, took, took_over } => {
                self.none_current(event)?;
                if self.course != Course::Forward {
                    return Err(illegal(event, "the workflow goes back"));
                }
                if self.record(step).is_some() {
                    return Err(illegal(event, "the step was begun before"));
                }
                self.awaits = None;
                self.held.extend(took.iter().cloned());
                self.steps.push(StepRecord { step: step.clone(), begun: at, took_over: took_over.clone(), checkpoint: None, answers: BTreeMap::new(), output: None });
                self.current = Some(Current::new(step, at, *deadline));
                self.note = String::new();
            }
            Event::StepCheckpointed { step, checkpoint, note } => {
                // No success yet: what a step means to do is written down before it is tried, each time that it fails.
                self.running(event, step)?;
                self.note.clone_from(note);
                self.record_mut(event, step)?.checkpoint = Some(checkpoint.clone());
            }
            Event::StepParked { step, until, note } => {
                let current = self.running(event, step)?;
                current.succeeded_somewhat();
                current.stage = Stage::Parked { until: *until };
                self.note.clone_from(note);
            }
            Event::StepSucceeded { step, output, gave } => {
                self.running(event, step)?;
                self.record_mut(event, step)?.output = Some(output.clone());
                self.current = None;
                self.give(gave);
                self.note = String::new();
            }
            Event::StepFailed { step, error, failures, retry_at } => {
                let current = self.running(event, step)?;
                current.failures = *failures;
                current.error = Some(error.clone());
                current.stage = Stage::Retrying { at: *retry_at };
                self.note.clone_from(error);
            }
            Event::OperatorAsked { step, question } => {
                let current = self.running(event, step)?;
                (current.answered, current.answered_at) = (None, None);
                current.stage = Stage::Asking { question: question.clone() };
                self.questions += 1;
                self.note.clone_from(&question.text);
            }
            Event::OperatorAnswered { key, by, .. } => {
                let (current, question) = self.asking(event)?;
                (current.answered, current.answered_at) = (Some(key.clone()), Some(at));
                let step = current.step.clone();
                self.record_mut(event, &step)?.answers.insert(question.text, Answered { key: key.clone(), at });
                self.note = format!("{by} answered `{key}`");
            }
            Event::RetryRequested { deadline, .. } => {
                let Some(current) = &mut self.current else { return Err(illegal(event, "no step is under way")) };
                current.begun = at;
                current.deadline = *deadline;
                current.succeeded_somewhat();
                current.stage = Stage::Running;
                self.retried = Some(at);
            }
            Event::ChildrenStarted { step, children, note } => {
                self.note.clone_from(note);
                self.running(event, step)?.succeeded_somewhat();
                for child in children {
                    let fresh = Child { id: child.id.clone(), outcome: None, headline: String::new() };
                    if self.children.insert(child.key.clone(), fresh).is_some() {
                        return Err(illegal(event, "a child was started before"));
                    }
                }
            }
            Event::ChildEnded { key, outcome, headline } => {
                let Some(child) = self.children.get_mut(key) else { return Err(illegal(event, "there is no such child")) };
                child.outcome = Some(*outcome);
                child.headline.clone_from(headline);
                if let Some(current) = &mut self.current
                    && current.stage == (Stage::Parked { until: None })
                {
                    current.stage = Stage::Running;
                }
            }
            Event::Paused { by, why, beside } => {
                let earlier = self.paused.take();
                // Whoever takes a pause over does not begin it anew.
                let since = earlier.as_ref().map_or(at, |earlier| earlier.since);
                let new = Pause { by: by.clone(), why: why.clone(), since, beside: None, resumed: None };
                self.paused = Some(match earlier.filter(|_| *beside) {
                    Some(earlier) if earlier.is_by_a_person() => Pause { beside: Some(PauseBeside { by: new.by, why: new.why }), ..earlier },
                    Some(earlier) => Pause { beside: Some(PauseBeside { by: earlier.by, why: earlier.why }), ..new },
                    None => new,
                });
            }
            Event::Resumed { by } if self.paused.as_ref().is_some_and(|paused| paused.beside.is_some()) => {
                if let Some(paused) = &mut self.paused
                    && let Some(PauseBeside { by: rollout, why }) = paused.beside.take()
                    && !Signal::is_by_a_workflow(by)
                {
                    (paused.by, paused.why, paused.resumed) = (rollout, why, Some(at));
                }
            }
            Event::Resumed { .. } => {
                // A pause uses up nobody's patience. (What was answered meanwhile has all of it from then on.)
                if let (Some(pause), Some(current)) = (self.paused.take(), &mut self.current) {
                    current.deadline = current.deadline + at.since(pause.since.max(current.begun));
                }
                // Nobody has looked meanwhile.
                self.retried = Some(at);
            }
            Event::Reported { report } => {
                self.reports.retain(|known| (&known.about, &known.word) != (&report.about, &report.word));
                self.reports.push(report.clone());
                // Whoever waits looks at once.
                if let Some(current) = &mut self.current
                    && matches!(current.stage, Stage::Parked { until: Some(_) })
                {
                    current.stage = Stage::Running;
                }
            }
            Event::SignalRefused { .. } => {}
            Event::UnwindBegun { cause } => {
                if self.course != Course::Forward {
                    return Err(illegal(event, "the workflow goes back already"));
                }
                self.course = Course::Unwinding { cause: cause.clone() };
                self.current = None;
                self.awaits = None;
                self.note = event.describe();
            }
            Event::UndoBegun { step, deadline } => {
                self.none_current(event)?;
                let newest = self.steps.last().is_some_and(|newest| newest.step == *step);
                if !matches!(self.course, Course::Unwinding { .. }) || !newest {
                    return Err(illegal(event, "steps are undone last first, and only on the way back"));
                }
                self.current = Some(Current::new(step, at, *deadline));
            }
            Event::StepUndone { step, note, gave } => {
                self.running(event, step)?;
                if !matches!(self.course, Course::Unwinding { .. }) {
                    return Err(illegal(event, "the workflow does not go back"));
                }
                self.steps.pop();
                self.current = None;
                self.give(gave);
                self.note.clone_from(note);
            }
            Event::Ended { outcome, why } => {
                self.course = Course::Ended { outcome: *outcome, why: why.clone() };
                self.current = None;
                self.awaits = None;
                self.held.retain(|resource| matches!(resource, Resource::Budget { .. }));
                self.note.clone_from(why);
            }
        }
        Ok(())
    }

    pub fn record(&self, step: &str) -> Option<&StepRecord> {
        self.steps.iter().find(|record| record.step == step)
    }

    pub fn question(&self) -> Option<&Question> {
        match &self.current.as_ref()?.stage {
            Stage::Asking { question } => Some(question),
            Stage::Running | Stage::Parked { .. } | Stage::Retrying { .. } => None,
        }
    }

    /// Which of its questions is open, counted from 1. None: none is, or an older release kept the state, which did not count them.
    pub fn open_question(&self) -> Option<u32> {
        self.question().and(Some(self.questions)).filter(|number| *number > 0)
    }

    /// Where it stands, as listings need it.
    pub fn status(&self) -> Status {
        match &self.course {
            Course::Ended { outcome: Outcome::Succeeded, .. } => Status::Succeeded,
            Course::Ended { outcome: Outcome::Failed, .. } => Status::Failed,
            Course::Ended { outcome: Outcome::Aborted, .. } => Status::Aborted,
            Course::Forward | Course::Unwinding { .. } if self.question().is_some() => Status::NeedsOperator,
            Course::Forward | Course::Unwinding { .. } if self.paused.is_some() => Status::Paused,
            Course::Unwinding { .. } => Status::Unwinding,
            Course::Forward => match &self.current {
                None if self.awaits.is_some() => Status::Waiting,
                Some(Current { stage: Stage::Parked { .. } | Stage::Retrying { .. }, .. }) => Status::Waiting,
                None | Some(_) => Status::Runnable,
            },
        }
    }

    /// One line for people: what it does or waits for.
    pub fn headline(&self) -> String {
        let what = match (&self.course, &self.current, &self.awaits) {
            (Course::Ended { why, .. }, _, _) => return why.clone(),
            (_, None, Some((resource, holders))) => waits_for(resource, holders),
            (Course::Unwinding { .. }, Some(current), _) => joined(&format!("undo {}", current.step), &self.note),
            (Course::Forward, Some(current), _) => joined(&current.step, &self.note),
            (Course::Forward | Course::Unwinding { .. }, None, None) => self.note.clone(),
        };
        match &self.paused {
            Some(Pause { by, beside: Some(rollout), .. }) => joined(&format!("paused by {by} and by {}", rollout.by), &what),
            Some(pause) => joined(&format!("paused by {}", pause.by), &what),
            None => what,
        }
    }

    fn give(&mut self, gave: &[Resource]) {
        for resource in gave {
            self.held.remove(resource);
        }
    }

    fn none_current(&self, event: &Event) -> Result<(), IllegalTransition> {
        match &self.current {
            None => Ok(()),
            Some(current) => Err(illegal(event, &format!("`{}` is under way", current.step))),
        }
    }

    /// The current step, if it is `step` and does not wait for an answer.
    fn running(&mut self, event: &Event, step: &str) -> Result<&mut Current, IllegalTransition> {
        match &mut self.current {
            Some(Current { stage: Stage::Asking { .. }, .. }) => Err(illegal(event, "an answer is awaited")),
            Some(current) if current.step == step => Ok(current),
            Some(_) | None => Err(illegal(event, "this step is not under way")),
        }
    }

    /// The current step, and its question, which is not open any more.
    fn asking(&mut self, event: &Event) -> Result<(&mut Current, Question), IllegalTransition> {
        let open = self.current.as_mut().filter(|current| matches!(current.stage, Stage::Asking { .. }));
        let Some(current) = open else { return Err(illegal(event, "no question is open")) };
        match std::mem::replace(&mut current.stage, Stage::Running) {
            Stage::Asking { question } => Ok((current, question)),
            Stage::Running | Stage::Parked { .. } | Stage::Retrying { .. } => Err(illegal(event, "no question is open")),
        }
    }

    fn record_mut(&mut self, event: &Event, step: &str) -> Result<&mut StepRecord, IllegalTransition> {
        self.steps
            .iter_mut()
            .find(|record| record.step == step)
            .ok_or_else(|| illegal(event, "the step was never begun"))
    }
}

impl Current {
    fn new(step: &str, begun: Timestamp, deadline: Timestamp) -> Current {
        Current { step: step.to_owned(), begun, deadline, failures: 0, error: None, answered: None, answered_at: None, stage: Stage::Running }
    }

    fn succeeded_somewhat(&mut self) {
        self.failures = 0;
        self.error = None;
    }
}

fn is_none_yet(count: &u32) -> bool {
    *count == 0
}

/// A value that is written is there, also where it is `null`.
fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

fn joined(what: &str, note: &str) -> String {
    if note.is_empty() { what.to_owned() } else { format!("{what}: {note}") }
}

fn illegal(event: &Event, why: &str) -> IllegalTransition {
    IllegalTransition { event: event.describe(), why: why.to_owned() }
}
