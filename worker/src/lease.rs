//! A lease on one workflow: the exclusive, expiring right to append to its journal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use turnaround_workflows::clock::{Clock as _, Timestamp};
use turnaround_workflows::engine::{Committer, LeaseLost};
use turnaround_workflows::history;
use turnaround_workflows::store::{Claimed, Commit, Committed, Fence, Next, WorkflowId};

use crate::clock::{SteadyClock, StoreClock};

/// What a lease asks of the pump. A lease has at most one question open, so the queue of them is as long as there are
/// slots, and one more each for the end.
pub(crate) enum Ask {
    /// The answer brings the commit back: it is freed by the thread that has made it, whose allocator can use its memory again at once.
    Commit { commit: Box<Commit>, reply: oneshot::Sender<(Committed, Commit)> },
    /// Does the lease stand, just now?
    Guard { id: WorkflowId, fence: Fence, reply: oneshot::Sender<bool> },
    /// The lease is not needed any more: hand it back, or forget it.
    Drop { id: WorkflowId, fence: Fence, hand_back: bool },
}

/// What leases have asked and the pump has not read, counted, so that it can sleep until so much has come: to be woken by each question
/// while it waits for the store costs more than the question.
#[derive(Default)]
pub(crate) struct Unread {
    count: AtomicUsize,
    wanted: AtomicUsize,
    enough: Notify,
}

impl Unread {
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub(crate) fn read_one(&self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }

    /// Returns once so many are unread. Only the pump may wait.
    pub(crate) async fn at_least(&self, wanted: usize) {
        self.wanted.store(wanted, Ordering::SeqCst);
        // After that whoever brings the count there sees what is wanted. A notice may be an old one.
        while self.count() < wanted {
            self.enough.notified().await;
        }
    }

    fn one_more(&self) -> bool {
        self.count.fetch_add(1, Ordering::SeqCst) + 1 == self.wanted.load(Ordering::SeqCst)
    }
}

/// The way to the pump.
#[derive(Clone)]
pub(crate) struct Asking {
    sender: mpsc::UnboundedSender<Ask>,
    unread: Arc<Unread>,
}

impl Asking {
    /// The way, its other end, and what is unread there.
    pub(crate) fn open() -> (Asking, mpsc::UnboundedReceiver<Ask>, Arc<Unread>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let unread = Arc::new(Unread::default());
        (Asking { sender, unread: unread.clone() }, receiver, unread)
    }

    /// Fails if the pump is gone.
    pub(crate) fn ask(&self, ask: Ask) -> Result<(), LeaseLost> {
        // Counted before it can be read, so that the count never falls below nothing.
        let is_enough = self.unread.one_more();
        let sent = self.sender.send(ask).map_err(|_| LeaseLost);
        if is_enough {
            self.unread.enough.notify_one();
        }
        sent
    }
}

/// A workflow that this worker may bring on. Dropped before its end it is handed back while the worker shuts down, and
/// otherwise left to expire: what failed in a way that we did not foresee should not be tried again at once.
pub struct Leased {
    pub claimed: Claimed,
    pub lease: Lease,
}

pub struct Lease {
    id: WorkflowId,
    fence: Fence,
    /// When the lease ends that was granted with the claim, by the store's clock.
    until: Timestamp,
    asks: Asking,
    clock: SteadyClock,
    /// Cancelled when the lease is lost, or to be handed back.
    lost: CancellationToken,
    stopping: CancellationToken,
    /// A commit has given the lease up.
    over: AtomicBool,
}

impl Lease {
    pub(crate) fn new(
        claimed: &Claimed,
        asks: Asking,
        clock: Arc<StoreClock>,
        lost: CancellationToken,
        stopping: CancellationToken,
    ) -> Lease {
        let (id, fence, until) = (claimed.document.id.clone(), claimed.fence, claimed.lease_until);
        let clock = SteadyClock::new(clock);
        Lease { id, fence, until, asks, clock, lost, stopping, over: AtomicBool::new(false) }
    }
}

#[async_trait]
impl Committer for Lease {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn commit(&self, commit: Commit) -> Result<Committed, LeaseLost> {
        let gives_up = commit.next != Next::Keep;
        let (reply, answer) = oneshot::channel();
        self.asks.ask(Ask::Commit { commit: Box::new(commit), reply })?;
        let (committed, _commit) = answer.await.map_err(|_| LeaseLost)?;
        match &committed {
            Committed::Done { .. } if gives_up => self.over.store(true, Ordering::SeqCst),
            Committed::Fenced | Committed::Conflict { .. } => self.over.store(true, Ordering::SeqCst),
            Committed::Done { .. } | Committed::Busy { .. } | Committed::Held { .. } => {}
        }
        Ok(committed)
    }

    async fn guard(&self) -> Result<(), LeaseLost> {
        if cfg!(feature = "bug-lease-by-clock-alone") && self.clock.now() < self.until {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        self.asks.ask(Ask::Guard { id: self.id.clone(), fence: self.fence, reply })?;
        match answer.await {
            Ok(true) if !self.lost.is_cancelled() => Ok(()),
            Ok(_) | Err(_) => {
                history::tell("guard-refused", || serde_json::json!({ "workflow": self.id, "fence": self.fence }));
                Err(LeaseLost)
            }
        }
    }

    async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.over.load(Ordering::SeqCst) {
            let hand_back = self.stopping.is_cancelled();
            // Only a pump that is gone can't be told, and then the lease expires.
            let _ = self.asks.ask(Ask::Drop { id: self.id.clone(), fence: self.fence, hand_back });
        }
    }
}
