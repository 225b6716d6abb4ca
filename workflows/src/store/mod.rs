//! Where workflows are kept: one trait, two implementations held to one conformance suite.
//!
//! A store compares and sets; it knows neither steps nor states. Everything that must be true at the
//! same time is in one [`Commit`]. The truth is the journal; `due` only says "look again at workflow X", so a
//! wake-up that is lost, doubled, late or reordered does no harm.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod digest;
pub mod embedded;
mod error;
pub mod high_water;
pub(crate) mod limits;
mod mark;
pub mod memory;
#[cfg(any(test, feature = "conformance"))]
pub mod private_redis;
mod queue;
pub mod redis;
#[cfg(test)]
mod tests;
mod trouble;

pub use digest::{Digest, NoDigest};
pub use error::StoreError;
pub use queue::{InvalidQueue, QUEUE_CHARS_MAX, Queue};
pub use trouble::Trouble;
use high_water::{HighWater, Standing};

/// Longest workflow id. Ids of children are made of their parent's and a key.
pub const WORKFLOW_ID_CHARS_MAX: usize = 200;

/// Names one workflow: letters, digits, `-`, `_`, `.`; at most [`WORKFLOW_ID_CHARS_MAX`] characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkflowId(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a workflow id: letters, digits, `-`, `_` and `.`, at most {WORKFLOW_ID_CHARS_MAX} characters")]
pub struct InvalidWorkflowId(String);

impl WorkflowId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the child that this workflow keeps under `key`. Always the same, so that a crash can't start it twice.
    pub fn child(&self, key: &str) -> Result<WorkflowId, InvalidWorkflowId> {
        format!("{}.{key}", self.0).parse()
    }
}

impl std::str::FromStr for WorkflowId {
    type Err = InvalidWorkflowId;
    fn from_str(given: &str) -> Result<Self, InvalidWorkflowId> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !given.is_empty() && given.len() <= WORKFLOW_ID_CHARS_MAX && given.chars().all(allowed) {
            Ok(WorkflowId(given.to_owned()))
        } else {
            Err(InvalidWorkflowId(given.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for WorkflowId {
    type Error = InvalidWorkflowId;
    fn try_from(given: String) -> Result<Self, InvalidWorkflowId> {
        given.parse()
    }
}

impl From<WorkflowId> for String {
    fn from(id: WorkflowId) -> String {
        id.0
    }
}

impl fmt::Display for WorkflowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Fencing token: grows with every lease that any workflow was ever granted, and never resets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub u64);

/// Where a workflow stands, as listings need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Has something to do now.
    Runnable,
    /// Waits for a time, a child, or a lock or budget.
    Waiting,
    /// Waits for an operator's answer.
    NeedsOperator,
    /// An operator paused it.
    Paused,
    /// Undoes what it did.
    Unwinding,
    /// What is kept of it can't be right: nobody works on it until a person has looked.
    Quarantined,
    Succeeded,
    /// Ended without having done what it was for. Its last entry says why and what was left.
    Failed,
    /// An operator aborted it, and it was unwound.
    Aborted,
}

impl Status {
    pub const ALL: [Status; 9] = [
        Status::Runnable,
        Status::Waiting,
        Status::NeedsOperator,
        Status::Paused,
        Status::Unwinding,
        Status::Quarantined,
        Status::Succeeded,
        Status::Failed,
        Status::Aborted,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Status::Runnable => "runnable",
            Status::Waiting => "waiting",
            Status::NeedsOperator => "needs-operator",
            Status::Paused => "paused",
            Status::Unwinding => "unwinding",
            Status::Quarantined => "quarantined",
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Aborted => "aborted",
        }
    }

    pub fn is_ended(self) -> bool {
        matches!(self, Status::Succeeded | Status::Failed | Status::Aborted)
    }
}

/// A workflow as the store keeps it beside its journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    pub id: WorkflowId,
    /// Name of its definition.
    pub kind: String,
    /// What it is about: a node, a rollout, the site.
    pub target: String,
    pub parent: Option<WorkflowId>,
    pub status: Status,
    /// One line for people: what it does or waits for.
    pub headline: String,
    /// Number of journal entries. Also the revision that a commit is compared with.
    pub seq: u64,
    /// Digest of the newest journal entry.
    pub head: Digest,
    /// The state in which it last gave up its lease, JSON, for listings: the truth is the journal, which may have gone on since.
    /// The store does not look inside. Not handed out with claims.
    pub state: Option<String>,
    /// Where it waits when nobody works on it.
    pub queue: Queue,
    /// W3C `traceparent` of whoever created it or last worked on it.
    pub traceparent: Option<String>,
    pub created: Timestamp,
    /// When it was last committed to, by the store's clock.
    pub updated: Timestamp,
    /// When it will be looked at again. None: leased, ended, or waiting for a signal only.
    pub due: Option<Timestamp>,
    /// Who works on it right now.
    pub lease: Option<LeaseInfo>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    pub worker: String,
    pub fence: Fence,
    pub until: Timestamp,
}

/// A journal entry as it is kept: `digest` is the SHA-256 of the predecessor's digest (hex, empty for the
/// first) followed by `body`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEntry {
    pub digest: Digest,
    /// JSON. The store does not look inside.
    pub body: String,
}

/// A workflow that does not exist yet. Its journal begins with `entry`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewWorkflow {
    pub id: WorkflowId,
    pub kind: String,
    pub target: String,
    pub parent: Option<WorkflowId>,
    pub headline: String,
    pub entry: StoredEntry,
    pub traceparent: Option<String>,
    /// When it is due first. None: now.
    pub due: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    New,
    /// A workflow of this id was there already and was left as it is.
    Existing,
}

/// A durable message to a workflow. The store keeps it until a commit says that it was consumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSignal {
    /// JSON. The store does not look inside.
    pub body: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signalled {
    Kept,
    /// There is no workflow of this id.
    Missing,
    /// The workflow has ended; the signal was not kept.
    Ended,
    /// Its inbox is full ([`INBOX_SIGNALS_MAX`]); the signal was not kept. Those of a commit are, all the same.
    Full,
}

/// Signals that one workflow may have unread. A workflow reads them at its next step, so more
/// than this means that somebody sends in a loop.
pub const INBOX_SIGNALS_MAX: u32 = 1_000;

/// Something that only so many workflows may have at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// One workflow at a time: a node, the environment's Ansible run.
    Lock { name: String },
    /// A share of a budget, held in the name of `member` (a node), which holds at most one share. One that is held already, and whose holder has ended, is
    /// taken over by whoever names that.
    Budget { name: String, member: String },
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::Lock { name } => write!(f, "lock {name}"),
            Resource::Budget { name, member } => write!(f, "budget {name} for {member}"),
        }
    }
}

/// A wish to hold a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Take {
    pub resource: Resource,
    /// Members that the budget may have, this one included. 1 for a lock.
    pub limit: u32,
    /// Nobody takes another share while an open workflow has this one, whatever limit that comes with; and it waits for all others, also where it is taken over. Nothing to a lock.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alone: bool,
    /// The workflow whose share of the same member is taken over; it has ended. Whoever else holds it keeps it ([`Committed::Held`]), also
    /// nobody: so nobody takes one over without knowing, or believes to have. Nothing to a lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<WorkflowId>,
}

impl Take {
    /// A wish for what nobody else has.
    pub fn new(resource: Resource, limit: u32) -> Take {
        Take { resource, limit, alone: false, from: None }
    }
}

/// What becomes of the workflow after a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The holder goes on: the lease stays, and is renewed if it has lost a quarter of its length.
    Keep,
    /// The lease ends; the workflow is due at that time (in the past: now).
    At(Timestamp),
    /// The lease ends; only a signal or a freed resource wakes it.
    Signal,
    /// The workflow has ended. It may be swept after `keep`, see [`Store::sweep`]; every lock that it holds is
    /// freed (budget shares are not: they stand for a node that is out of service).
    End { keep: Duration },
}

/// Everything that becomes true at once, or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub id: WorkflowId,
    pub fence: Fence,
    /// Number of journal entries before. Compared.
    pub expected: u64,
    /// Appended in order. May be empty (only `next` changes). A commit that consumes or sends signals has one: two equal
    /// commits without entries, one after the other, are taken for one whose answer was lost.
    pub entries: Vec<StoredEntry>,
    /// The state in which the lease is given up, for listings; None leaves the one before.
    pub state: Option<String>,
    pub status: Status,
    pub headline: String,
    /// So many signals of those handed out with the claim or the last commit have been consumed.
    pub consumed: u32,
    /// All of them, or the commit is refused as [`Committed::Busy`] or [`Committed::Held`]. What this workflow has already is fine. Judged
    /// before anything is given.
    pub take: Vec<Take>,
    /// Freed. What this workflow does not have is left alone.
    pub give: Vec<Resource>,
    /// Children. One that exists already is left as it is.
    pub create: Vec<NewWorkflow>,
    /// Messages to other workflows; one for a workflow that is gone or ended is dropped. They have no bound there: who sends them says each once.
    pub signals: Vec<(WorkflowId, StoredSignal)>,
    /// Stands from now on in the place of the one before.
    pub traceparent: Option<String>,
    pub next: Next,
    /// Where the workflow waits from now on when nobody works on it: also after a lease that is kept has expired.
    pub queue: Queue,
}

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// It stands, exactly once, also when it was sent before and that answer was lost.
    Done {
        /// When the lease ends ([`Next::Keep`] only).
        lease_until: Option<Timestamp>,
        /// Unread signals ([`Next::Keep`] only), oldest first.
        signals: Vec<StoredSignal>,
    },
    /// Somebody else holds the workflow now, or it is gone. Nothing was written, and nothing will be.
    Fenced,
    /// A resource is not to be had. Nothing was written, the lease stays; this workflow is woken as soon as the
    /// resource may be free. (Not where another open workflow has the share of the same member: it has to look again. Holders that are no
    /// workflows are left out.)
    Busy { resource: Resource, holders: Vec<WorkflowId> },
    /// A share of the same member is `holder`'s, which has ended, and the wish names another, or none; or it names one, and the share is nobody's.
    /// Nothing was written, the lease stays, and nobody waits: who means to take it names the right one.
    Held { resource: Resource, holder: Option<WorkflowId> },
    /// The journal is not where the holder of the lease believes it to be, or what is kept is not of the form it should have. A bug, or
    /// a damaged store.
    Conflict { seq: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// At most so many (and at most [`CLAIM_MAX`]).
    pub max: u32,
    pub lease: Duration,
    /// Who asks, for people to read: host and process id.
    pub worker: String,
    /// Only what waits in these (at most [`QUEUES_MAX`]).
    pub queues: Vec<Queue>,
}

/// Queues that one claim asks for. Each costs a look.
pub const QUEUES_MAX: usize = 16;

/// Workflows handed out by one call: bounded so that no call keeps Redis busy for long.
pub const CLAIM_MAX: u32 = 256;
/// Commits carried by one call. 512 took 7 to 13 ms at the 99th percentile, 3,000 took 57 ms.
pub const COMMITS_MAX: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    pub document: Document,
    /// All of it.
    pub journal: Vec<StoredEntry>,
    /// So many leases in a row, before this one, expired without a single commit.
    pub tries: u32,
    /// What of it can't be read, if so; then what could not be read is empty.
    pub damage: Option<String>,
    pub fence: Fence,
    pub lease_until: Timestamp,
    /// Unread signals, oldest first.
    pub signals: Vec<StoredSignal>,
}

/// The hot path's one call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advance {
    /// How long renewed and kept leases last.
    pub lease: Duration,
    pub commits: Vec<Commit>,
    /// Leases to be renewed.
    pub renew: Vec<(WorkflowId, Fence)>,
    /// Leases given back untouched: the workflow is due at once.
    pub hand_back: Vec<(WorkflowId, Fence)>,
    pub claim: Option<Claim>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advanced {
    /// The store's clock.
    pub now: Timestamp,
    /// One for each commit, in order.
    pub commits: Vec<Committed>,
    /// One for each renewal, in order: when the lease ends now, or None if it was lost.
    pub renewed: Vec<Option<Timestamp>>,
    /// Expired leases first, then what has been due longest.
    pub claimed: Vec<Claimed>,
    /// When there may be something to claim next: a due time or the end of somebody's lease. In the past if more is
    /// due than was claimed. None also where nothing was to be claimed.
    pub next: Option<Timestamp>,
}

/// Which workflows to list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Query {
    pub scope: Scope,
    /// Only this parent's children.
    pub parent: Option<WorkflowId>,
    pub kind: Option<String>,
    pub target: Option<String>,
    /// Skip so many.
    pub offset: u32,
    /// At most so many (and at most [`PAGE_MAX`]).
    pub limit: u32,
}

/// Most documents that one listing returns.
pub const PAGE_MAX: u32 = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Not ended.
    #[default]
    Open,
    /// Ended, and not expired yet.
    Ended,
    All,
}

/// One thing that happened, as subscribers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreEvent {
    /// Grows with every event; hand it back to go on after it.
    pub cursor: String,
    pub workflow: WorkflowId,
    pub kind: String,
    pub target: String,
    pub status: Status,
    pub headline: String,
    /// Place of the entry in that workflow's journal, from 1.
    pub seq: u64,
    pub entry: StoredEntry,
}

/// Work that waits for workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// Leases that stand, or ended only after the moment that was asked about: of whatever queue.
    pub leased: u64,
    /// Leases that ended then or earlier, and nobody has taken what they were for: of whatever queue.
    pub expired: Waiting,
    /// What has been due since then or longer: for each queue that was asked for, in order.
    pub due: Vec<Waiting>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waiting {
    pub count: u64,
    /// Since when the one has that has waited longest; None if there is none.
    pub since: Option<Timestamp>,
}

/// Who has a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    pub resource: Resource,
    pub holder: WorkflowId,
}

/// What the store promises of writes that it acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durability {
    /// For people, e.g. `Redis 7.0.15, AOF always, noeviction`.
    pub description: String,
    /// What is weaker than it should be, each with its remedy. Empty: as it should be.
    pub weaknesses: Vec<String>,
}

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The store's clock, which leases and due times go by.
    async fn now(&self) -> Result<Timestamp, StoreError>;

    /// On return the workflow exists and is due, whoever created it.
    async fn create(&self, new: NewWorkflow) -> Result<Created, StoreError>;

    /// Commits, renews, hands back, and then claims, in one or two round trips. Each commit stands or falls alone.
    /// Calling it again with the same commits is safe and answers what stands.
    async fn advance(&self, advance: &Advance) -> Result<Advanced, StoreError>;

    /// Returns when something may have become due in one of `queues`, or with None after `timeout`. May return for nothing. A ring that
    /// a caller received and cannot use should be passed on with [`Store::ring`].
    async fn wait_for_bell(&self, queues: &[Queue], timeout: Duration) -> Result<Option<Queue>, StoreError>;

    /// Wakes one worker that waits for the bell of `queue`.
    async fn ring(&self, queue: &Queue) -> Result<(), StoreError>;

    /// On return the signal is in the workflow's inbox, and the workflow is due if it was waiting. An equal one that
    /// is unread is not doubled, so that calling again is safe.
    async fn signal(&self, id: &WorkflowId, signal: StoredSignal) -> Result<Signalled, StoreError>;

    async fn load(&self, id: &WorkflowId) -> Result<Option<Document>, StoreError>;

    /// Journal entries from place `from` (1 is the first), at most `limit` (and at most [`PAGE_MAX`]).
    async fn journal(&self, id: &WorkflowId, from: u64, limit: u32) -> Result<Vec<StoredEntry>, StoreError>;

    /// Newest first.
    async fn list(&self, query: &Query) -> Result<Vec<Document>, StoreError>;

    /// How many workflows are open, by status.
    async fn counts(&self) -> Result<Vec<(Status, u64)>, StoreError>;

    /// What nobody has taken since `before`, by queue (at most [`QUEUES_MAX`]).
    async fn backlog(&self, queues: &[Queue], before: Timestamp) -> Result<Backlog, StoreError>;

    /// Events after `cursor` (None: from now on), at least one unless `timeout` passes first; at most 500.
    async fn events(&self, cursor: Option<&str>, timeout: Duration) -> Result<Vec<StoreEvent>, StoreError>;

    /// Cursor of the newest event, to be handed to [`Store::events`].
    async fn events_end(&self) -> Result<String, StoreError>;

    async fn holdings(&self) -> Result<Vec<Holding>, StoreError>;

    /// Frees a budget share that no open workflow stands for (a node that was left out of service).
    /// False if an open workflow holds it, or nobody does.
    async fn release_budget(&self, name: &str, member: &str) -> Result<bool, StoreError>;

    /// The names under which [`Store::judge_ticks`] keeps something.
    async fn ledgers(&self) -> Result<BTreeSet<String>, StoreError>;

    /// The last tick of `schedule` that was judged.
    async fn last_tick(&self, schedule: &str) -> Result<Option<Timestamp>, StoreError>;

    /// Moves the ledger of `schedule` from `last` to `judged` and creates what the ticks between start, at once.
    /// False, and nothing was done, if the ledger is not at `last`: another daemon judged those ticks.
    async fn judge_ticks(
        &self,
        schedule: &str,
        last: Option<Timestamp>,
        judged: Timestamp,
        create: Vec<NewWorkflow>,
    ) -> Result<bool, StoreError>;

    /// Removes ended workflows whose time has passed, oldest first. Returns how many; at most 1,000 in one call. Until
    /// they are swept they can still be read.
    async fn sweep(&self) -> Result<u32, StoreError>;

    async fn durability(&self) -> Result<Durability, StoreError>;

    /// How the store is. Answers also while it is halted.
    async fn standing(&self) -> Result<Standing, StoreError>;

    /// Compares what a witness remembers with what is there. If something is missing, the store is halted on return: from then on
    /// every call that writes is refused as [`StoreError::Halted`]. Otherwise the look is counted. `by` names who looks, for people.
    async fn compare(&self, remembered: &HighWater, by: &str) -> Result<Standing, StoreError>;

    /// `by`, a person, has looked and takes what is there for what is true. On return the halt is lifted, no lease granted before
    /// stands, every open workflow is due, and every ledger of ticks is moved to now. None: the store is not halted, and nothing
    /// was done.
    async fn accept(&self, remembered: &HighWater, by: &str) -> Result<Option<Standing>, StoreError>;
}
