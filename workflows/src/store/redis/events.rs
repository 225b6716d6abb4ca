//! What happened, for subscribers: a stream that every entry is added to, and one blocking read for all who wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::{Value, cmd};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::error;

use super::connection::Connection;
use super::keys::Keys;
use super::reply::Reply;
use super::script::Scripts;
use super::{Malformed, Status, StoreError, StoreEvent, WorkflowId, damaged_answer, entries, layout, limits, reply};

/// How long one read blocks.
// As for the bell: long enough to cost nothing, short enough to notice a dead peer.
pub(super) const WAIT: Duration = Duration::from_secs(30);

/// Pause after a failed read. Who waits has its own time-out, and is told of the outage by its next look.
const PAUSE: Duration = Duration::from_millis(500);

/// Elements read at once.
// The first may have been seen already, so at least two. At most 25 KB each: 1.6 MB where the system is busiest.
const ELEMENTS: usize = 64;

const OPERATION: &str = "read what happened";

/// Place of an element in the stream: milliseconds, and a number within them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct StreamId(u64, u64);

impl StreamId {
    /// What is no place in the stream is before all of it.
    fn parse(text: &str) -> StreamId {
        let parsed = text.split_once('-').and_then(|(ms, n)| Some(StreamId(ms.parse().ok()?, n.parse().ok()?)));
        parsed.unwrap_or(StreamId(0, 0))
    }

    fn text(self) -> String {
        format!("{}-{}", self.0, self.1)
    }
}

/// Place of an event: so many of that element's have been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    element: StreamId,
    seen: usize,
}

/// All that an element has.
const ALL: usize = usize::MAX;

impl Cursor {
    fn parse(cursor: &str) -> Cursor {
        match cursor.split_once('.') {
            Some((element, seen)) => {
                Cursor { element: StreamId::parse(element), seen: seen.parse().unwrap_or(ALL) }
            }
            None => Cursor { element: StreamId::parse(cursor), seen: ALL },
        }
    }

    fn text(self) -> String {
        match self.seen {
            ALL => self.element.text(),
            seen => format!("{}.{seen}", self.element.text()),
        }
    }
}

pub(super) struct Events {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    connection: Connection,
    keys: Keys,
    /// Who waits, and after which event.
    waiting: Mutex<BTreeMap<u64, StreamId>>,
    changed: Notify,
    wanted: Notify,
}

impl Events {
    pub(super) fn new(connection: Connection, keys: &Keys) -> Events {
        let shared = Shared {
            connection,
            keys: keys.clone(),
            waiting: Mutex::default(),
            changed: Notify::new(),
            wanted: Notify::new(),
        };
        Events { shared: Arc::new(shared), task: Mutex::default() }
    }

    pub(super) async fn end(&self, connection: &Connection) -> Result<String, StoreError> {
        let mut command = cmd("XREVRANGE");
        command.arg(&self.shared.keys.events).arg("+").arg("-").arg("COUNT").arg(1);
        let newest = elements(connection.query(OPERATION, &command).await?);
        let newest = newest.map_err(|source| damaged_answer(OPERATION, source))?;
        Ok(newest.first().map_or(StreamId(0, 0), |element| element.id).text())
    }

    /// What `scripts` read of the workflows that something happened to.
    pub(super) async fn after(
        &self,
        connection: &Connection,
        scripts: &Scripts,
        cursor: &str,
        timeout: Duration,
    ) -> Result<Vec<StoreEvent>, StoreError> {
        let deadline = Instant::now() + timeout;
        let mut after = Cursor::parse(cursor);
        let mut waiter = None;
        loop {
            let noticed = self.shared.changed.notified();
            tokio::pin!(noticed);
            // Before looking, so that a notice between looking and waiting is not missed.
            noticed.as_mut().enable();
            let (page, last) = self.look(connection, scripts, after).await?;
            if !page.is_empty() {
                return Ok(page);
            }
            if last != after {
                // All of it was about workflows that are swept. To its end whatever the time: who asks again asks from the same place.
                after = last;
                continue;
            }
            if Instant::now() >= deadline {
                return Ok(page);
            }
            if waiter.is_none() {
                self.start();
                waiter = Some(Waiter::join(&self.shared, after.element));
            }
            // Out of time: one last look.
            let _ = tokio::time::timeout_at(deadline, noticed).await;
        }
    }

    /// The next events, and up to where was looked.
    async fn look(
        &self,
        connection: &Connection,
        scripts: &Scripts,
        after: Cursor,
    ) -> Result<(Vec<StoreEvent>, Cursor), StoreError> {
        let mut command = cmd("XRANGE");
        // From that element, whose rest may not have been seen.
        command.arg(&self.shared.keys.events).arg(after.element.text()).arg("+").arg("COUNT").arg(ELEMENTS);
        let found = elements(connection.query(OPERATION, &command).await?);
        let found = found.map_err(|source| damaged_answer(OPERATION, source))?;
        let mut new = Vec::new();
        // Also past an element that has nothing to tell.
        let end = found.last().map_or(after, |element| Cursor { element: element.id, seen: ALL });
        for element in found {
            let skip = if element.id == after.element { after.seen } else { 0 };
            let count = element.happenings.len();
            for (place, happening) in element.happenings.into_iter().enumerate().skip(skip) {
                let seen = if place + 1 == count { ALL } else { place + 1 };
                new.push((Cursor { element: element.id, seen }, happening));
            }
        }
        let is_whole = new.len() <= limits::EVENTS_PAGE_MAX;
        new.truncate(limits::EVENTS_PAGE_MAX);
        let last = new.last().filter(|_| !is_whole).map_or(end, |(cursor, _)| *cursor);
        Ok((self.fill_in(connection, scripts, new).await?, last))
    }

    /// Adds what the stream does not say. A workflow that was swept since is left out.
    async fn fill_in(
        &self,
        connection: &Connection,
        scripts: &Scripts,
        new: Vec<(Cursor, Happening)>,
    ) -> Result<Vec<StoreEvent>, StoreError> {
        if new.is_empty() {
            return Ok(Vec::new());
        }
        // Entries of one commit are kept together, and read once.
        let place = |one: &(Cursor, Happening), next: &(Cursor, Happening)| {
            (&one.1.workflow, one.1.first) == (&next.1.workflow, next.1.first)
        };
        let commits = || new.chunk_by(place);
        let places: Vec<_> = commits().filter_map(<[_]>::first).map(|(_, first)| (first.workflow.as_str(), first.first)).collect();
        let found = scripts.entries(connection, &self.shared.keys, OPERATION, &places).await?;
        let read = || {
            let mut found = Reply::of(found)?;
            let mut events = Vec::new();
            for commit in commits() {
                let (document, kept) = (found.value()?, found.value()?);
                if matches!(document, Value::Nil) || matches!(kept, Value::Nil) {
                    continue;
                }
                let of_commit = layout::subject(document).and_then(|subject| Ok((subject, entries::unpack(kept)?)));
                for (cursor, Happening { workflow, first, seq, status, headline }) in commit {
                    let entry = of_commit.as_ref().map_err(ToString::to_string).and_then(|((kind, target), entries)| {
                        let place = usize::try_from(seq - first).unwrap_or(usize::MAX);
                        let entry = entries.get(place).ok_or_else(|| Malformed::new("one more entry", "the end").to_string())?;
                        Ok((kind.clone(), target.clone(), entry.clone()))
                    });
                    match entry {
                        Ok((kind, target, entry)) => events.push(StoreEvent {
                            cursor: cursor.text(),
                            workflow: workflow.clone(),
                            kind,
                            target,
                            status: *status,
                            headline: headline.clone(),
                            seq: *seq,
                            entry,
                        }),
                        // One that can't be read must not keep the others from being told.
                        Err(why) => error!(%workflow, seq, why, "an entry can't be read; it is not told"),
                    }
                }
            }
            Ok(events)
        };
        read().map_err(|source| damaged_answer(OPERATION, source))
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
        command.arg("STREAMS").arg(&shared.keys.events).arg(after.text());
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

/// One write, as the stream keeps it.
struct Element {
    id: StreamId,
    happenings: Vec<Happening>,
}

/// What the stream says about one entry. The rest is read where it is.
#[derive(Clone)]
struct Happening {
    workflow: WorkflowId,
    /// Place of the first entry of that commit.
    first: u64,
    seq: u64,
    status: Status,
    headline: String,
}

fn elements(answer: Value) -> Result<Vec<Element>, Malformed> {
    match answer {
        Value::Array(items) => items.into_iter().map(element).collect(),
        other => Err(Malformed::new("an array", format!("{other:?}"))),
    }
}

fn element(item: Value) -> Result<Element, Malformed> {
    let Value::Array(parts) = item else { return Err(Malformed::new("an element", format!("{item:?}"))) };
    let mut parts = parts.into_iter();
    let (Some(id), Some(fields)) = (parts.next(), parts.next()) else {
        return Err(Malformed::new("an element's id and field", "fewer"));
    };
    let id = StreamId::parse(&reply::text(id)?);
    let happenings = reply::pairs(fields).and_then(|fields| {
        let packed = fields.into_iter().next().map(|(_, packed)| packed).unwrap_or_default();
        unpack(&packed)
    });
    // One that can't be read must not keep the others from being told: nobody would ever get past it.
    let happenings = happenings.unwrap_or_else(|why| {
        error!(element = id.text(), %why, "what happened can't be read; it is not told");
        Vec::new()
    });
    Ok(Element { id, happenings })
}

/// Entries of one commit: [`crate::store::Commit`]'s bound.
const ENTRIES_MAX: u64 = limits::COMMIT_ITEMS_MAX as u64;

/// `<workflow> <first seq> <entries> <status> <bytes>:<headline>`, again and again: one for each commit.
fn unpack(mut packed: &str) -> Result<Vec<Happening>, Malformed> {
    let mut happenings = Vec::new();
    while !packed.is_empty() {
        let (first, entries, rest) =
            unpack_one(packed).ok_or_else(|| Malformed::new("what happened to a workflow", packed))?;
        happenings.extend((0..entries).map(|later| Happening { seq: first.first + later, ..first.clone() }));
        packed = rest;
    }
    Ok(happenings)
}

fn unpack_one(packed: &str) -> Option<(Happening, u64, &str)> {
    let (workflow, rest) = packed.split_once(' ')?;
    let (seq, rest) = rest.split_once(' ')?;
    let (entries, rest) = rest.split_once(' ')?;
    let entries = entries.parse().ok().filter(|entries| *entries <= ENTRIES_MAX)?;
    let (status, rest) = rest.split_once(' ')?;
    let (length, rest) = rest.split_once(':')?;
    let (headline, rest) = rest.split_at_checked(length.parse().ok()?)?;
    let first = seq.parse().ok()?;
    let happening = Happening {
        workflow: workflow.parse().ok()?,
        first,
        seq: first,
        status: reply::status(status).ok()?,
        headline: headline.to_owned(),
    };
    Some((happening, entries, rest))
}
