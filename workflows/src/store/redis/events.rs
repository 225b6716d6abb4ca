//! What happened, for subscribers: a stream that every entry is added to, and one blocking read for all who wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::{Value, cmd};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::connection::Connection;
use super::keys::Keys;
use super::{Malformed, StoreError, StoreEvent, damaged_answer, limits, reply};

/// How long one read blocks.
// As for the bell: long enough to cost nothing, short enough to notice a dead peer.
pub(super) const WAIT: Duration = Duration::from_secs(30);

/// Pause after a failed read. Who waits has its own time-out, and is told of the outage by its next look.
const PAUSE: Duration = Duration::from_millis(500);

const OPERATION: &str = "read what happened";

/// Place in the stream: milliseconds, and a number within them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct StreamId(u64, u64);

impl StreamId {
    /// What is no place in the stream is before all of it.
    fn parse(cursor: &str) -> StreamId {
        let parsed = cursor.split_once('-').and_then(|(ms, n)| Some(StreamId(ms.parse().ok()?, n.parse().ok()?)));
        parsed.unwrap_or(StreamId(0, 0))
    }

    fn text(self) -> String {
        format!("{}-{}", self.0, self.1)
    }
}

pub(super) struct Events {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    connection: Connection,
    key: String,
    /// Who waits, and after which event.
    waiting: Mutex<BTreeMap<u64, StreamId>>,
    changed: Notify,
    wanted: Notify,
}

impl Events {
    pub(super) fn new(connection: Connection, keys: &Keys) -> Events {
        let shared = Shared {
            connection,
            key: keys.events.clone(),
            waiting: Mutex::default(),
            changed: Notify::new(),
            wanted: Notify::new(),
        };
        Events { shared: Arc::new(shared), task: Mutex::default() }
    }

    pub(super) async fn end(&self, connection: &Connection) -> Result<String, StoreError> {
        let mut command = cmd("XREVRANGE");
        command.arg(&self.shared.key).arg("+").arg("-").arg("COUNT").arg(1);
        let newest = read_page(connection.query(OPERATION, &command).await?)?;
        Ok(newest.into_iter().next().map_or_else(|| StreamId(0, 0).text(), |event| event.cursor))
    }

    pub(super) async fn after(
        &self,
        connection: &Connection,
        cursor: &str,
        timeout: Duration,
    ) -> Result<Vec<StoreEvent>, StoreError> {
        let deadline = Instant::now() + timeout;
        let after = StreamId::parse(cursor);
        let mut command = cmd("XRANGE");
        command.arg(&self.shared.key).arg(format!("({}", after.text())).arg("+");
        command.arg("COUNT").arg(limits::EVENTS_PAGE_MAX);
        let mut waiter = None;
        loop {
            let noticed = self.shared.changed.notified();
            tokio::pin!(noticed);
            // Before looking, so that a notice between looking and waiting is not missed.
            noticed.as_mut().enable();
            let page = read_page(connection.query(OPERATION, &command).await?)?;
            if !page.is_empty() || Instant::now() >= deadline {
                return Ok(page);
            }
            if waiter.is_none() {
                self.start();
                waiter = Some(Waiter::join(&self.shared, after));
            }
            // Out of time: one last look.
            let _ = tokio::time::timeout_at(deadline, noticed).await;
        }
    }

    fn start(&self) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(listen(self.shared.clone())));
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, StreamId>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Waiter<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Waiter<'_> {
    fn join(shared: &Shared, after: StreamId) -> Waiter<'_> {
        let mut waiting = shared.waiting();
        let number = waiting.last_key_value().map_or(0, |(last, _)| last + 1);
        waiting.insert(number, after);
        drop(waiting);
        shared.wanted.notify_one();
        Waiter { shared, number }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.shared.waiting().remove(&self.number);
    }
}

async fn listen(shared: Arc<Shared>) {
    loop {
        // Whoever waits has seen all up to its own place, so what comes after the earliest one is new to somebody.
        let earliest = shared.waiting().values().min().copied();
        let Some(after) = earliest else {
            shared.wanted.notified().await;
            continue;
        };
        let mut command = cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(WAIT.as_secs() * 1_000);
        command.arg("STREAMS").arg(&shared.key).arg(after.text());
        match shared.connection.query(OPERATION, &command).await {
            Ok(Value::Nil) => {}
            Ok(_) => {
                shared.changed.notify_waiters();
                // Let those who were told leave, or the same event would be read again and again.
                tokio::time::sleep(SETTLE).await;
            }
            Err(_) => {
                shared.changed.notify_waiters();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Also bounds how often one process looks at the stream while much happens.
const SETTLE: Duration = Duration::from_millis(10);

fn read_page(answer: Value) -> Result<Vec<StoreEvent>, StoreError> {
    let read = |answer| match answer {
        Value::Array(items) => items.into_iter().map(event).collect(),
        other => Err(Malformed::new("an array", format!("{other:?}"))),
    };
    read(answer).map_err(|source| damaged_answer(OPERATION, source))
}

fn event(item: Value) -> Result<StoreEvent, Malformed> {
    let Value::Array(parts) = item else { return Err(Malformed::new("an event", format!("{item:?}"))) };
    let mut parts = parts.into_iter();
    let (Some(cursor), Some(fields)) = (parts.next(), parts.next()) else {
        return Err(Malformed::new("an event's id and fields", "fewer"));
    };
    let fields = reply::pairs(fields)?;
    let field = |name: &'static str| {
        let found = fields.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.clone()).ok_or_else(|| Malformed::new(name, "nothing"))
    };
    let seq = field("seq")?;
    Ok(StoreEvent {
        cursor: reply::text(cursor)?,
        workflow: reply::id(field("id")?)?,
        kind: field("kind")?,
        target: field("target")?,
        status: reply::status(&field("status")?)?,
        headline: field("headline")?,
        seq: seq.parse().map_err(|_| Malformed::new("a place in the journal", seq))?,
        entry: reply::entry(field("entry")?)?,
    })
}
