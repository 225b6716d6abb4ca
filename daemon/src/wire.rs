//! What goes over the socket, shared by the API and the command line, so that the two can't drift apart.
//!
//! Times are RFC 3339 in UTC with milliseconds, lengths are numbers whose names end in their unit. Fields are only ever
//! added. Texts that came from outside (Nova, instance names) are passed on as they are: whoever shows them escapes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use turnaround_config::{ImageName, NodeName};
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::engine::{AnswerEffect, Outcome};
use turnaround_workflows::store::high_water::Loss;
use turnaround_workflows::store::{Resource, Status, WorkflowId};
use turnaround_workflows::updates::NodeSurvey;

/// A moment, written as `2026-11-22T02:30:00.000Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct When(pub Timestamp);

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Timestamp> for When {
    fn from(at: Timestamp) -> When {
        When(at)
    }
}

impl Serialize for When {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0.utc().to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<When, D::Error> {
        let text = String::deserialize(from)?;
        let at = DateTime::parse_from_rfc3339(&text).map_err(serde::de::Error::custom)?;
        Ok(When(at.to_utc().into()))
    }
}

/// RFC 9457, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemView {
    /// `urn:turnaround:problem:` and a code that stays the same.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// What happened this time. Causes follow their errors, separated by `: `.
    pub detail: String,
    /// What to do. Empty where nobody can say.
    #[serde(default)]
    pub remedy: String,
}

/// GET /v1/status
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// Of the daemon.
    pub version: String,
    pub site: String,
    pub now: When,
    pub started: When,
    pub you: CallerView,
    pub store: StoreView,
    /// What a person should look at, each with a page of its own.
    #[serde(default)]
    pub alarms: Vec<AlarmView>,
    /// Open workflows by status.
    pub counts: BTreeMap<String, u64>,
    pub budgets: Vec<BudgetView>,
    /// Workflows that wait for an operator's answer, at most [`STATUS_LINES_MAX`].
    pub questions: Vec<WorkflowLine>,
    /// Other open workflows, each with why it does not go on just now, at most [`STATUS_LINES_MAX`].
    pub open: Vec<WorkflowLine>,
    /// There are more open workflows than are shown.
    pub truncated: bool,
    /// What a person should look at: failing jobs, missed ticks, nobody at work.
    pub warnings: Vec<String>,
}

/// Workflows that one status shows. People read it; whoever wants all asks for the listing.
pub const STATUS_LINES_MAX: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerView {
    pub user: String,
    pub may_change: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreView {
    pub reachable: bool,
    pub description: String,
    /// What is weaker than it should be, each with its remedy.
    pub weaknesses: Vec<String>,
    /// Something is missing from it: nothing is handed out and nothing is taken until a person has looked.
    #[serde(default)]
    pub halt: Option<HaltView>,
}

/// What is missing from a halted store, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaltView {
    pub since: When,
    pub noticed_by: String,
    pub loss: Loss,
    pub expected: String,
    pub found: String,
    /// What it means.
    pub means: String,
}

/// An alarm that is raised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmView {
    /// Stays the same from release to release; the page about it is called so.
    pub code: String,
    pub since: When,
    /// What is the matter.
    pub text: String,
    /// What was seen.
    pub detail: String,
    pub remedy: String,
    /// Where there is more about it.
    pub page: String,
}

/// POST /v1/store/accept
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedView {
    /// Name of the store.
    pub store: String,
    /// From where it goes on.
    pub revision: u64,
}

/// Something that only so many may have at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetView {
    pub name: String,
    /// What the configuration allows now.
    pub limit: u32,
    pub members: Vec<BudgetMember>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetMember {
    pub member: String,
    pub holder: WorkflowId,
    /// The workflow that took it has ended and left the node out of service: `turnaround node release` gives the
    /// share back, once the node is in service again.
    pub left_out: bool,
}

/// A workflow in a listing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkflowLine {
    pub id: WorkflowId,
    pub kind: String,
    pub target: String,
    pub parent: Option<WorkflowId>,
    pub status: Status,
    /// One line for people: what it does or waits for.
    pub headline: String,
    pub created: When,
    /// When it was last committed to.
    pub updated: When,
    /// When it will be looked at again by itself.
    pub due: Option<When>,
    /// Who works on it right now.
    pub worker: Option<String>,
    /// Why it does not go on just now. None: it does, or it has ended.
    pub why_not_now: Option<WhyNotNow>,
}

/// Why a workflow does not go on: one code for programs and metrics, one text for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyNotNow {
    pub code: ReasonCode,
    pub since: When,
    /// When it goes on by itself, where that is known.
    pub next: Option<When>,
    pub text: String,
    /// What would bring it on.
    pub unblock: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReasonCode {
    /// A question is open.
    Question,
    /// An operator paused it.
    Paused,
    /// Somebody else has what its next step needs.
    Resource,
    /// The newest try failed; the next one is due later.
    Retry,
    /// It waits for its children.
    Children,
    /// It waits for a time, usually to look again at something slow.
    Time,
    /// It is due and will be taken at once.
    Queued,
    /// It has been due for a while and no worker took it.
    NoWorker,
    /// No worker that runs knows this version of this kind.
    UnknownDefinition,
    /// Its stored state can't be read.
    Unreadable,
    /// What is kept of it can't be right: a person has to look.
    Quarantined,
}

impl ReasonCode {
    pub fn as_str(self) -> &'static str {
        match self {
            ReasonCode::Question => "question",
            ReasonCode::Paused => "paused",
            ReasonCode::Resource => "resource",
            ReasonCode::Retry => "retry",
            ReasonCode::Children => "children",
            ReasonCode::Time => "time",
            ReasonCode::Queued => "queued",
            ReasonCode::NoWorker => "no-worker",
            ReasonCode::UnknownDefinition => "unknown-definition",
            ReasonCode::Unreadable => "unreadable",
            ReasonCode::Quarantined => "quarantined",
        }
    }
}

/// GET /v1/workflows
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkflowsView {
    /// Newest first.
    pub workflows: Vec<WorkflowLine>,
    /// Offset of the next page, if this one is full.
    pub next_offset: Option<u32>,
}

/// GET /v1/workflows/{id}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkflowView {
    #[serde(flatten)]
    pub line: WorkflowLine,
    pub created_by: String,
    /// What was ordered.
    pub input: Value,
    pub steps: Vec<StepView>,
    pub question: Option<QuestionView>,
    pub children: Vec<ChildView>,
    /// Locks and budget shares that it has.
    pub holds: Vec<Resource>,
    pub waits_for: Option<WaitsForView>,
    pub journal_entries: u64,
    /// Why its journal can't be trusted, or is not shown whole. None: every entry is sealed over the one before.
    pub journal_problem: Option<String>,
}

/// One step of a workflow, in the order in which the definition has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepView {
    pub step: String,
    pub state: StepState,
    pub begun: Option<When>,
    pub ended: Option<When>,
    pub took_ms: Option<u64>,
    /// When it becomes a question, while it is under way. A pause uses up none of that: as long as one lasts, this moves on.
    pub deadline: Option<When>,
    /// Failures since it began.
    pub failures: u32,
    /// Newest remark: progress, or the newest error. Empty once it is done.
    pub note: String,
    /// What the step put out.
    pub output: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    NotBegun,
    Running,
    Waiting,
    Retrying,
    Asking,
    Done,
    Undoing,
    Undone,
    /// The workflow ended, or went back, while this step was under way.
    Left,
}

impl StepState {
    pub fn as_str(self) -> &'static str {
        match self {
            StepState::NotBegun => "not begun",
            StepState::Running => "running",
            StepState::Waiting => "waiting",
            StepState::Retrying => "retrying",
            StepState::Asking => "asking",
            StepState::Done => "done",
            StepState::Undoing => "undoing",
            StepState::Undone => "undone",
            StepState::Left => "left",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuestionView {
    /// Which of the workflow's questions it is, from 1, for those who answer it; None where an older release has asked it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    pub text: String,
    /// What was seen, one fact each.
    pub seen: Vec<String>,
    /// Why it is asked, as words that scripts can go by (docs/checks.md); empty where it has none.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub reasons: BTreeSet<String>,
    pub answers: Vec<AnswerView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerView {
    pub key: String,
    /// What happens then.
    pub consequence: String,
    pub effect: AnswerEffect,
    /// What to type.
    pub command: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildView {
    pub key: String,
    pub id: WorkflowId,
    /// None while it is open.
    pub outcome: Option<Outcome>,
    /// Where an open one stands, of the first [`CHILDREN_LOOKED_AT`].
    pub status: Option<Status>,
    pub headline: String,
}

/// Open children that are looked at to show a parent. More are not open at once: a rollout has as many as nodes may be out.
pub const CHILDREN_LOOKED_AT: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitsForView {
    pub resource: Resource,
    pub holders: Vec<WorkflowId>,
}

/// A part of what a run of the setup script has written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogView {
    pub run: String,
    /// Where the next part begins, in bytes; None at the present end.
    pub next: Option<u64>,
    /// Where this part ends.
    pub end: u64,
    /// The run is over, and writes no more.
    pub over: bool,
    pub text: String,
}

/// GET /v1/workflows/{id}/journal
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalView {
    pub id: WorkflowId,
    pub entries: Vec<JournalLine>,
    /// Place of the next entry, if there are more.
    pub next: Option<u64>,
    /// Where and why the chain is broken, if it is.
    pub broken: Option<String>,
    /// It comes from the archive in the daemon's state directory: the store has it no more.
    pub archived: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalLine {
    pub seq: u64,
    /// None if the entry can't be read.
    pub at: Option<When>,
    pub fence: Option<u64>,
    /// One line for people.
    pub text: String,
    /// Sealed over its predecessor as it should be. False for every entry behind the first bad one.
    pub sealed: bool,
    /// The event as it is kept; its times are milliseconds since 1970.
    pub event: Value,
}

/// POST /v1/rollouts. With an `Idempotency-Key` header, a repeated request finds what the first one started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutRequest {
    /// In this order.
    pub nodes: Vec<NodeName>,
    pub image: ImageName,
    /// Only look what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Also nodes that an open workflow renews, or will: they are renewed, and wiped, once more after that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// A workflow that a request started, or found started by an earlier one with the same key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedView {
    pub id: WorkflowId,
    pub kind: String,
    /// False: an earlier request with the same idempotency key had started it.
    pub fresh: bool,
}

/// POST /v1/workflows/{id}/signals
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "signal", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SignalRequest {
    Pause {
        #[serde(default)]
        why: String,
    },
    Resume {},
    Abort {
        #[serde(default)]
        why: String,
    },
    Retry {},
    Answer {
        key: String,
        /// Number of the question that its author has read. None: the one that is open when the daemon gets it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        question: Option<u32>,
    },
}

impl SignalRequest {
    pub fn name(&self) -> &'static str {
        match self {
            SignalRequest::Pause { .. } => "pause",
            SignalRequest::Resume {} => "resume",
            SignalRequest::Abort { .. } => "abort",
            SignalRequest::Retry {} => "retry",
            SignalRequest::Answer { .. } => "answer",
        }
    }
}

/// The signal is kept and can't be lost any more. What it brought about stands in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalledView {
    pub id: WorkflowId,
    pub signal: String,
    /// The workflow is paused: nothing follows from the signal before `resume`. Older daemons don't say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits_for_resume: bool,
    /// What was answered, if it is an answer. Older daemons don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
}

/// POST /v1/nodes/{node}/release
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedView {
    pub node: NodeName,
    pub budget: String,
    /// Nova's name for its host. None: it is not in the configuration any more.
    #[serde(default)]
    pub nova_host: Option<String>,
    /// When the workflow ended that had left it out. None: that one is not kept any more.
    #[serde(default)]
    pub left: Option<When>,
    /// When the newest survey looked, and what it saw of the node. None: none is kept, or it did not look at the node.
    #[serde(default)]
    pub surveyed: Option<When>,
    #[serde(default)]
    pub survey: Option<NodeSurvey>,
}

/// GET /v1/nodes
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodesView {
    pub nodes: Vec<NodeView>,
    /// When the newest survey that succeeded looked. None: none is kept.
    pub surveyed: Option<When>,
    /// The newest survey of all, if that is another one: it has failed, or has not ended yet.
    #[serde(default)]
    pub newer_survey: Option<WorkflowLine>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    pub name: NodeName,
    pub role: String,
    /// Counted as out of service by the budget.
    pub out: Option<BudgetMember>,
    /// The open workflow that renews it.
    pub renewing: Option<WorkflowLine>,
    /// The open rollout in which its turn is yet to come.
    #[serde(default)]
    pub planned: Option<WorkflowId>,
    /// The newest renewal that ended and is still kept.
    pub renewed: Option<WorkflowLine>,
    /// What the newest survey saw.
    pub survey: Option<NodeSurvey>,
    /// Name of the configured image that the survey saw on it, if it is one.
    pub image: Option<ImageName>,
}

/// GET /v1/schedules
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulesView {
    pub schedules: Vec<ScheduleView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleView {
    pub name: String,
    pub cron: String,
    pub timezone: String,
    /// `skip`, `latest` or `all`.
    pub catch_up: String,
    pub max_lateness_ms: u64,
    /// What it starts, for people.
    pub starts: String,
    /// Every tick up to here was judged, by whatever daemon. None: this schedule was never looked at.
    pub judged: Option<When>,
    pub next: Vec<RunTime>,
    /// What this daemon decided about the newest ticks, newest first.
    pub recent: Vec<TickView>,
    /// What a person should know, e.g. that the ledger is ahead of the clock.
    pub problem: Option<String>,
}

/// One moment, twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTime {
    pub utc: When,
    /// In the schedule's zone, with its offset: `2026-11-22 03:30:00 +01:00 CET`.
    pub local: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TickView {
    pub tick: When,
    pub verdict: TickVerdict,
    /// The workflow that it started, and without which nodes; or why none.
    pub note: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TickVerdict {
    Started,
    /// Later than `max_lateness`.
    Missed,
    /// It passed while no daemon ran, and `catch_up` says so; or everything that it starts is under way already.
    Skipped,
    /// It was due, but what it starts can't be started.
    Failed,
}

/// GET /v1/jobs
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobsView {
    pub jobs: Vec<JobView>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    pub name: String,
    /// What one pass does.
    pub about: String,
    pub every_ms: u64,
    pub running_since: Option<When>,
    pub runs: u64,
    pub failures_in_a_row: u32,
    pub last: Option<JobRun>,
    pub next: Option<When>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRun {
    pub began: When,
    pub took_ms: u64,
    /// One line for people.
    pub summary: String,
    /// The job's own report; null if it failed.
    pub report: Value,
    /// Why it failed, with its causes.
    pub error: Option<String>,
}

/// Data of one server-sent event of GET /v1/events, whose id is `cursor`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// Hand it back as `Last-Event-ID` to go on after it.
    pub cursor: String,
    pub workflow: WorkflowId,
    pub kind: String,
    pub target: String,
    /// After this event.
    pub status: Status,
    pub headline: String,
    pub seq: u64,
    pub at: Option<When>,
    /// One line for people.
    pub text: String,
    pub event: Value,
}
