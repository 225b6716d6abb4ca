//! The bell: waiting until something may have become due, without asking again and again.
//!
//! A blocking read that is given up may lose the ring that is on its way. Therefore one task reads, with a time-out
//! of its own, and callers wait for that task, each for as long as it likes. Each set of queues that is waited for has a task.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::{Value, cmd};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::connection::{Connection, Server};
use super::keys::Keys;
use super::{Queue, StoreError, damaged_answer, reply};

/// How long one read blocks.
// Long enough to cost nothing, short enough that a dead peer (no packet, no reset) is noticed.
pub(super) const WAIT: Duration = Duration::from_secs(30);

/// Between attempts while Redis is away: the first pause, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(1_000);

const OPERATION: &str = "wait for the bell";

/// Sets of queues that one process waits for: a worker has one.
const SETS_MAX: usize = 8;

pub(super) struct Bell {
    server: Arc<Server>,
    reply_timeout: Duration,
    keys: Keys,
    sets: Mutex<Vec<Arc<Set>>>,
}

/// A set of queues, and the task that listens to their bells.
struct Set {
    queues: Vec<Queue>,
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    connection: Connection,
    bells: Vec<(String, Queue)>,
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
    rings: VecDeque<Queue>,
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
    pub(super) fn new(server: Arc<Server>, reply_timeout: Duration, keys: &Keys) -> Bell {
        Bell { server, reply_timeout, keys: keys.clone(), sets: Mutex::default() }
    }

    pub(super) async fn wait(&self, queues: &[Queue], timeout: Duration) -> Result<Option<Queue>, StoreError> {
        self.set(queues).wait(timeout).await
    }

    /// The one that was not asked for longest makes room.
    fn set(&self, queues: &[Queue]) -> Arc<Set> {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sets.iter().position(|set| set.queues == queues).map(|place| sets.remove(place));
        let set = known.unwrap_or_else(|| {
            sets.truncate(SETS_MAX - 1);
            let connection = Connection::new(self.server.clone(), self.reply_timeout);
            let bells = queues.iter().map(|queue| (self.keys.bell(queue), queue.clone())).collect();
            let shared = Shared { connection, bells, state: Mutex::default(), changed: Notify::new(), wanted: Notify::new() };
            Arc::new(Set { queues: queues.to_owned(), shared: Arc::new(shared), task: Mutex::default() })
        });
        sets.insert(0, set.clone());
        set
    }
}

impl Set {
    async fn wait(&self, timeout: Duration) -> Result<Option<Queue>, StoreError> {
        if self.queues.is_empty() {
            tokio::time::sleep(timeout).await;
            return Ok(None);
        }
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
                return Ok(None);
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

impl Drop for Set {
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

    fn look(&self) -> Option<Result<Option<Queue>, StoreError>> {
        let mut state = self.shared.state();
        if let Some(rang) = state.rings.pop_front() {
            return Some(Ok(Some(rang)));
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

    /// A ring more than there are waiting.
    fn surplus(&self) -> Option<Queue> {
        let mut state = self.state();
        if state.rings.len() > state.waiting { state.rings.pop_back() } else { None }
    }

    /// Puts back what nobody here waits for: somebody elsewhere may.
    async fn pass_on(&self) -> Result<(), StoreError> {
        while let Some(rang) = self.surplus() {
            let Some((bell, _)) = self.bells.iter().find(|(_, queue)| *queue == rang) else { continue };
            if let Err(error) = self.connection.query(OPERATION, cmd("LPUSH").arg(bell).arg("1")).await {
                self.state().rings.push_back(rang);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn read_one(&self) -> Result<Option<Queue>, StoreError> {
        let mut command = cmd("BLPOP");
        for (bell, _) in &self.bells {
            command.arg(bell);
        }
        command.arg(WAIT.as_secs());
        let answer = self.connection.query(OPERATION, &command).await?;
        if matches!(answer, Value::Nil) {
            return Ok(None);
        }
        let rang = reply::texts(answer).map_err(|source| damaged_answer(OPERATION, source))?;
        Ok(self.bells.iter().find(|(bell, _)| rang.first() == Some(bell)).map(|(_, queue)| queue.clone()))
    }
}

async fn listen(shared: Arc<Shared>) {
    let mut pause = PAUSE_MIN;
    loop {
        let wanted = {
            let state = shared.state();
            state.waiting > state.rings.len()
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
                if let Some(rang) = rang {
                    shared.state().rings.push_back(rang);
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
