//! One activation: a leased workflow is brought on until it waits or ends.

use std::time::Duration;

use async_trait::async_trait;
use tracing::Instrument as _;
use tracing::{info, info_span, warn};

use super::Registry;
use super::driver::Driver;
use super::quarantine::{is_apart, is_wanted_again, quarantine, stays_apart, unknown_definition};
use super::replay::replay;
use super::run::Run;
use crate::clock::Timestamp;
use crate::ports::Ports;
use crate::store::{Claimed, Commit, Committed, Next, Queue, Status};
use crate::telemetry::{self, metrics};

/// A workflow that this worker does not know how to bring on is offered again after this long: an upgraded
/// worker may be there by then.
const UNKNOWN_LOOK_AGAIN: Duration = Duration::from_secs(60);
/// The lease is somebody else's now. Nothing more may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease on the workflow is lost")]
pub struct LeaseLost;

/// How an activation reaches the store: under its lease, through whoever batches the calls, waiting out outages.
#[async_trait]
pub trait Committer: Send + Sync {
    /// The store's clock.
    fn now(&self) -> Timestamp;

    /// What became of the commit. Waits for as long as the store does not answer.
    async fn commit(&self, commit: Commit) -> Result<Committed, LeaseLost>;

    /// Asks the store whether the lease still stands, just now.
    async fn guard(&self) -> Result<(), LeaseLost>;

    /// Returns once the lease is lost or given back. What is under way is dropped then.
    async fn lost(&self);
}

/// How an activation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// It waits for a time, a signal, or an operator; the lease was given up in the same commit.
    Parked,
    Ended,
    /// Somebody else has it.
    Lost,
}

impl Activation {
    fn as_str(self) -> &'static str {
        match self {
            Activation::Parked => "parked",
            Activation::Ended => "ended",
            Activation::Lost => "lost",
        }
    }
}

/// Brings workflows on.
pub struct Engine {
    pub registry: Registry,
    pub ports: Ports,
    /// Steps that wait in other queues are left to other workers.
    pub queues: Vec<Queue>,
    /// How long a finished workflow stays in the store.
    pub keep_finished: Duration,
}

impl Engine {
    /// Brings the claimed workflow on until it waits, ends, or is lost. Whatever happens in a step, also a
    /// panic, ends in the workflow's journal.
    pub async fn activate(&self, claimed: Claimed, committer: &dyn Committer) -> Activation {
        let document = &claimed.document;
        let span = info_span!(
            parent: None, "activation",
            otel.name = format!("{} {}", document.kind, document.target), trace = tracing::field::Empty,
            workflow = %document.id, kind = %document.kind, target = %document.target, fence = claimed.fence.0,
        );
        telemetry::link(&span, document.traceparent.as_deref());
        let own = telemetry::show_trace(&span);
        let is_left_out = telemetry::is_left_out(own.as_deref());
        // Where nothing is traced, or is not told of, whoever traces next is linked to whoever was told of last.
        let traceparent = own.filter(|_| !is_left_out).or_else(|| document.traceparent.clone());
        let work = async {
            tokio::select! {
                biased;
                () = committer.lost() => Err(LeaseLost),
                done = self.bring_on(&claimed, committer, traceparent, is_left_out) => done,
            }
        };
        let end = work.instrument(span.clone()).await.unwrap_or_else(|LeaseLost| {
            span.in_scope(|| info!(workflow = %document.id, "lease lost or handed back"));
            Activation::Lost
        });
        metrics::activated(self.registry.get(&document.kind).map_or("unknown", |known| known.kind), end.as_str());
        end
    }

    /// `traceparent` is kept with each commit. `is_left_out`: of this activation's own trace nothing is told.
    async fn bring_on(
        &self,
        claimed: &Claimed,
        committer: &dyn Committer,
        traceparent: Option<String>,
        is_left_out: bool,
    ) -> Result<Activation, LeaseLost> {
        let document = &claimed.document;
        let replayed = match replay(claimed) {
            Ok(replayed) if !is_apart(claimed) || is_wanted_again(claimed) => replayed,
            Ok(_) => return stays_apart(claimed, committer, document.headline.clone()).await,
            // Only what can be read by this release is damaged if it can't be.
            Err(_) if !is_apart(claimed) && let Some(why) = unknown_definition(self, claimed) => {
                warn!(workflow = %document.id, why, "left for another worker");
                return set_aside(claimed, committer, &why, traceparent).await;
            }
            Err(damage) => return quarantine(self, claimed, committer, &damage).await,
        };
        let version = replayed.state.version;
        let Some(definition) = self.registry.get(&document.kind).filter(|known| known.version == version) else {
            let why = format!("no worker here knows version {version} of `{}`", document.kind);
            warn!(workflow = %document.id, why, "left for another worker");
            return set_aside(claimed, committer, &why, traceparent).await;
        };
        let run = Run::new(claimed, replayed, committer, traceparent);
        let driver = Driver { engine: self, definition, id: &document.id, fence: claimed.fence, is_left_out, run: tokio::sync::Mutex::new(run) };
        // On the heap: it is large, and whoever spawns, times or catches an activation would move all of it.
        Box::pin(driver.drive(&claimed.signals)).await
    }
}

/// Parks a workflow without touching its journal. One with unread signals would be due again at once, and claimed again, as
/// fast as workers can: its lease is left to expire instead.
async fn set_aside(
    claimed: &Claimed,
    committer: &dyn Committer,
    why: &str,
    traceparent: Option<String>,
) -> Result<Activation, LeaseLost> {
    let document = &claimed.document;
    let commit = Commit {
        id: document.id.clone(),
        fence: claimed.fence,
        expected: document.seq,
        entries: Vec::new(),
        state: None,
        status: Status::NeedsOperator,
        headline: why.to_owned(),
        consumed: 0,
        take: Vec::new(),
        give: Vec::new(),
        create: Vec::new(),
        signals: Vec::new(),
        traceparent,
        next: if claimed.signals.is_empty() { Next::At(committer.now() + UNKNOWN_LOOK_AGAIN) } else { Next::Keep },
        queue: document.queue.clone(),
    };
    match committer.commit(commit).await? {
        Committed::Done { .. } => Ok(Activation::Parked),
        Committed::Fenced | Committed::Busy { .. } | Committed::Held { .. } | Committed::Conflict { .. } => Err(LeaseLost),
    }
}
