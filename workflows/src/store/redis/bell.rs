//! The bell: waiting until something may have become due, without asking again and again.
//!
//! A blocking read that is given up may lose the ring that is on its way. Therefore one task reads, with a time-out
//! of its own, and callers wait for that task, each for as long as it likes.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::{Value, cmd};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::StoreError;
use super::connection::Connection;
use super::keys::Keys;

/// How long one read blocks.
// Long enough to cost nothing, short enough that a dead peer (no packet, no reset) is noticed.
pub(super) const WAIT: Duration = Duration::from_secs(30);

/// Between attempts while Redis is away: the first pause, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(1_000);

const OPERATION: &str = "wait for the bell";

pub(super) struct Bell {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    connection: Connection,
    key: String,
    state: Mutex<State>,
    /// For callers: a ring, or a failure.
    changed: Notify,
    /// For the task: somebody waits, or left a ring behind.
    wanted: Notify,
}

#[derive(Default)]
struct State {
    waiting: usize,
    /// Received, and not yet taken by a caller.
    rings: usize,
    failures: u64,
    last_failure: String,
}

/// What the task met. Each caller gets its own copy.
#[derive(Debug)]
struct BellFailure(String);

impl fmt::Display for BellFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BellFailure {}

impl Bell {
    pub(super) fn new(connection: Connection, keys: &Keys) -> Bell {
        let shared = Shared {
            connection,
            key: keys.bell.clone(),
            state: Mutex::default(),
            changed: Notify::new(),
            wanted: Notify::new(),
        };
        Bell { shared: Arc::new(shared), task: Mutex::default() }
    }

    pub(super) async fn wait(&self, timeout: Duration) -> Result<(), StoreError> {
        self.start();
        let deadline = Instant::now() + timeout;
        let waiter = Waiter::join(&self.shared);
        loop {
            let noticed = self.shared.changed.notified();
            tokio::pin!(noticed);
            // Before looking, so that a notice between looking and waiting is not missed.
            noticed.as_mut().enable();
            if let Some(outcome) = waiter.look() {
                return outcome;
            }
            if tokio::time::timeout_at(deadline, noticed).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Only where somebody waits is there a task, so that a process that never waits takes nobody's ring.
    fn start(&self) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(listen(self.shared.clone())));
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

/// A caller that waits, for as long as this lives.
struct Waiter<'a> {
    shared: &'a Shared,
    failures_before: u64,
}

impl Waiter<'_> {
    fn join(shared: &Shared) -> Waiter<'_> {
        let mut state = shared.state();
        state.waiting += 1;
        let failures_before = state.failures;
        drop(state);
        shared.wanted.notify_one();
        Waiter { shared, failures_before }
    }

    fn look(&self) -> Option<Result<(), StoreError>> {
        let mut state = self.shared.state();
        if state.rings > 0 {
            state.rings -= 1;
            return Some(Ok(()));
        }
        (state.failures > self.failures_before).then(|| {
            let source = Box::new(BellFailure(state.last_failure.clone()));
            Err(StoreError::Unavailable { operation: OPERATION, source })
        })
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.shared.state().waiting -= 1;
        // A ring that came just now and is not wanted any more is the task's to pass on.
        self.shared.wanted.notify_one();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts back what nobody here waits for: somebody elsewhere may.
    async fn pass_on(&self) -> Result<(), StoreError> {
        let surplus = {
            let mut state = self.state();
            let surplus = state.rings.saturating_sub(state.waiting);
            state.rings -= surplus;
            surplus
        };
        if surplus > 0 {
            self.connection.query(OPERATION, cmd("LPUSH").arg(&self.key).arg(vec!["1"; surplus])).await?;
        }
        Ok(())
    }

    async fn read_one(&self) -> Result<bool, StoreError> {
        let mut command = cmd("BLPOP");
        command.arg(&self.key).arg(WAIT.as_secs());
        Ok(!matches!(self.connection.query(OPERATION, &command).await?, Value::Nil))
    }
}

async fn listen(shared: Arc<Shared>) {
    let mut pause = PAUSE_MIN;
    loop {
        let wanted = {
            let state = shared.state();
            state.waiting > state.rings
        };
        let outcome = match (shared.pass_on().await, wanted) {
            (Err(error), _) => Err(error),
            (Ok(()), true) => shared.read_one().await,
            (Ok(()), false) => {
                shared.wanted.notified().await;
                continue;
            }
        };
        match outcome {
            Ok(rang) => {
                pause = PAUSE_MIN;
                if rang {
                    shared.state().rings += 1;
                    shared.changed.notify_waiters();
                }
            }
            Err(error) => {
                {
                    let mut state = shared.state();
                    state.failures += 1;
                    state.last_failure = chain(&error);
                }
                shared.changed.notify_waiters();
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// The causes of `error` without itself: the caller's error says that already.
fn chain(error: &StoreError) -> String {
    let mut texts = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    texts.dedup();
    texts.join(": ")
}
