//! Durable workflows: a journal that is the truth, a pure decision, and steps that look before they act.
//!
//! Nothing in here knows what an update is. A [`Definition`] lists [`Step`]s; [`State`] is the fold of a
//! workflow's [`Event`]s; [`decide`] says what comes next; [`activate`] does it under a lease, one commit for each
//! step transition, the intent to begin a step always before its effect.

mod activation;
mod checkpoint;
mod cx;
mod decide;
mod definition;
mod driver;
mod event;
mod follow;
mod journal;
mod question;
mod quarantine;
mod replay;
mod report;
mod run;
mod signal;
mod start;
mod state;
mod step;

pub use activation::{Activation, Committer, Engine, LeaseLost};
pub use checkpoint::Checkpoint;
pub use cx::StepCx;
pub use decide::{Decision, decide};
pub use definition::{Definition, Registry};
pub use follow::LEFT_WHILE_PAUSED;
pub use event::{ChildStarted, Event, Outcome, TakenOver, UnwindCause, waits_for};
pub use journal::{BadEntry, Entry, check_chain, seal};
pub use replay::{Damage, fold};
pub use report::Report;
pub use question::{Answer, AnswerEffect, Question};
pub use signal::{Signal, SignalKind};
pub use start::{Start, start};
pub use state::{Answered, Child, Course, Current, IllegalTransition, Pause, PauseBeside, State, StepRecord, Stage};
pub use step::{
    AnyStep, ChildSpec, Observed, PastDeadline, Policy, Progress, Remedy, Step, StepError, Undone, step,
};
