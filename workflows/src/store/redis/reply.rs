//! Reads what Redis answers.

use std::str::FromStr;

use ::redis::Value;
use tracing::error;

use super::encode::Part;
use super::layout::{self, Kept};
use crate::clock::Timestamp;
use crate::store::{
    Advanced, Commit, Committed, Digest, Document, Fence, LeaseInfo, Queue, Resource, Status, StoredSignal, WorkflowId, limits,
};

/// An answer that is not what the scripts give. Somebody else writes to these keys, or runs another version.
#[derive(Debug, thiserror::Error)]
#[error("{expected} was expected, not `{found}`")]
pub(super) struct Malformed {
    expected: &'static str,
    found: String,
}

impl Malformed {
    pub(super) fn new(expected: &'static str, found: impl AsRef<str>) -> Malformed {
        // Enough to recognise it, and not enough to flood a log.
        Malformed { expected, found: found.as_ref().chars().take(80).collect() }
    }

    fn value(expected: &'static str, found: &Value) -> Malformed {
        Malformed::new(expected, format!("{found:?}"))
    }
}

/// An array that is read from its beginning.
pub(super) struct Reply(std::vec::IntoIter<Value>);

impl Reply {
    pub(super) fn of(value: Value) -> Result<Reply, Malformed> {
        match value {
            Value::Array(values) => Ok(Reply(values.into_iter())),
            other => Err(Malformed::value("an array", &other)),
        }
    }

    /// What is left.
    pub(super) fn rest(self) -> Vec<Value> {
        self.0.collect()
    }

    pub(super) fn value(&mut self) -> Result<Value, Malformed> {
        self.0.next().ok_or_else(|| Malformed::new("one more element", "the end"))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    pub(super) fn array(&mut self) -> Result<Reply, Malformed> {
        Reply::of(self.value()?)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        text(self.value()?)
    }

    pub(super) fn optional_text(&mut self) -> Result<Option<String>, Malformed> {
        match self.value()? {
            Value::Nil => Ok(None),
            other => text(other).map(Some),
        }
    }

    pub(super) fn number<T: FromStr>(&mut self) -> Result<T, Malformed> {
        number(&self.value()?)
    }

    fn time(&mut self) -> Result<Timestamp, Malformed> {
        self.number().map(Timestamp::from_millis)
    }

    fn optional_time(&mut self) -> Result<Option<Timestamp>, Malformed> {
        optional_time(self.value()?)
    }

    fn signals(&mut self) -> Result<Vec<StoredSignal>, Malformed> {
        signals(self.value()?)
    }
}

pub(super) fn id(text: String) -> Result<WorkflowId, Malformed> {
    text.parse().map_err(|_| Malformed::new("a workflow id", text))
}

pub(super) fn text(value: Value) -> Result<String, Malformed> {
    match value {
        Value::BulkString(bytes) => utf8(bytes),
        Value::SimpleString(text) => Ok(text),
        Value::VerbatimString { text, .. } => Ok(text),
        Value::Okay => Ok("OK".to_owned()),
        other => Err(Malformed::value("a text", &other)),
    }
}

/// An inbox. What is no text there was written by somebody else, and is handed out as well as it can be: each has its place, and is read and gone.
pub(super) fn signals(value: Value) -> Result<Vec<StoredSignal>, Malformed> {
    let signal = |value| match value {
        Value::BulkString(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        other => text(other),
    };
    Reply::of(value)?.0.map(|value| Ok(StoredSignal { body: signal(value)? })).collect()
}

pub(super) fn utf8(bytes: Vec<u8>) -> Result<String, Malformed> {
    String::from_utf8(bytes).map_err(|_| Malformed::new("UTF-8", "other bytes"))
}

pub(super) fn texts(value: Value) -> Result<Vec<String>, Malformed> {
    match value {
        Value::Array(values) | Value::Set(values) => values.into_iter().map(text).collect(),
        other => Err(Malformed::value("an array", &other)),
    }
}

/// What `HGETALL`, `CONFIG GET` and the like answer.
pub(super) fn pairs(value: Value) -> Result<Vec<(String, String)>, Malformed> {
    match value {
        Value::Map(pairs) => pairs.into_iter().map(|(key, value)| Ok((text(key)?, text(value)?))).collect(),
        other => {
            let mut texts = texts(other)?.into_iter();
            Ok(std::iter::from_fn(|| Some((texts.next()?, texts.next()?))).collect())
        }
    }
}

pub(super) fn number<T: FromStr>(value: &Value) -> Result<T, Malformed> {
    let parsed = match value {
        Value::Int(number) => number.to_string().parse().ok(),
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()),
        _ => None,
    };
    parsed.ok_or_else(|| Malformed::value("a number", value))
}

pub(super) fn optional_time(value: Value) -> Result<Option<Timestamp>, Malformed> {
    if matches!(value, Value::Nil) {
        return Ok(None);
    }
    // Scores come in floating point, and exact: see `limits::TIME_MAX`.
    number::<f64>(&value).map(|millis| Some(limits::keepable(Timestamp::from_millis(millis as i64))))
}

pub(super) fn status(name: &str) -> Result<Status, Malformed> {
    let found = Status::ALL.into_iter().find(|status| status.as_str() == name);
    found.ok_or_else(|| Malformed::new("a status", name))
}

/// What `advance.lua` answers.
pub(super) struct Answer {
    pub(super) advanced: Advanced,
    /// What is touched when somebody changes what this store holds.
    pub(super) hand: Option<Vec<u8>>,
    /// Of each commit: its lease was kept, and its head has no flags.
    pub(super) kept_plain: Vec<bool>,
    /// What was granted, from which `advanced.claimed` is still to be made.
    pub(super) granted: Vec<Granted>,
    /// Of each claimed workflow: its head has no flags.
    pub(super) claimed_plain: Vec<bool>,
}

/// A workflow that was granted.
pub(super) struct Granted {
    pub(super) id: WorkflowId,
    pub(super) lease: LeaseInfo,
}

pub(super) fn advanced(answer: Value, asked: &Part<'_>) -> Result<Answer, Malformed> {
    let mut reply = Reply::of(answer)?;
    let now = reply.time()?;
    let lease_until = reply.time()?;
    let (verdicts, mut others) = (reply.text()?, reply.array()?);
    if verdicts.len() != asked.commits.len() {
        return Err(Malformed::new("a verdict on each commit", verdicts));
    }
    let kept_plain = verdicts.bytes().map(|verdict| verdict == KEPT).collect();
    let verdicts = verdicts.bytes().zip(asked.commits.iter().copied());
    let commits = verdicts.map(|(verdict, commit)| committed(verdict, &mut others, commit, lease_until)).collect::<Result<_, _>>()?;
    let renewed = reply.text()?.bytes().map(|renewed| (renewed == KEPT).then_some(lease_until)).collect();
    let before: u64 = reply.number()?;
    let lease = |fence| LeaseInfo {
        worker: asked.claim.map(|claim| claim.worker.clone()).unwrap_or_default(),
        fence: Fence(fence),
        until: asked.claim.map_or(now, |claim| now + claim.lease),
    };
    let granted = (before + 1..).zip(reply.array()?.0).filter_map(|(fence, one)| match text(one).and_then(id) {
        Ok(id) => Some(Granted { id, lease: lease(fence) }),
        // Without a name there is nothing to set aside. It stays leased, and is met again when that expires.
        Err(why) => {
            error!(%why, "what was handed out is no workflow; nobody works on it");
            None
        }
    });
    let granted = granted.collect();
    let next = reply.optional_time()?;
    for broken in reply.array()?.0 {
        let told = texts(broken)?;
        error!(workflow = told.first(), why = told.get(1), "what is kept of a workflow can't be read; nobody is granted it any more");
    }
    let hand = optional_bytes(reply.value()?)?;
    let advanced = Advanced { now, commits, renewed, claimed: Vec::new(), next };
    Ok(Answer { advanced, hand, kept_plain, granted, claimed_plain: Vec::new() })
}

/// Verdicts of `advance.lua`.
const KEPT: u8 = b'k';
/// The same, and its head has flags.
const KEPT_FLAGGED: u8 = b'm';
const DONE: u8 = b'd';
const FENCED: u8 = b'f';
/// It is among the others.
const OTHER: u8 = b'o';

/// `others`: those that have more to say.
fn committed(verdict: u8, others: &mut Reply, commit: &Commit, lease_until: Timestamp) -> Result<Committed, Malformed> {
    match verdict {
        KEPT | KEPT_FLAGGED => return Ok(Committed::Done { lease_until: Some(lease_until), signals: Vec::new() }),
        DONE => return Ok(Committed::Done { lease_until: None, signals: Vec::new() }),
        FENCED => return Ok(Committed::Fenced),
        OTHER => {}
        other => return Err(Malformed::new("a verdict", char::from(other).to_string())),
    }
    let mut reply = others.array()?;
    let tag = reply.text()?;
    match tag.as_str() {
        "k" => Ok(Committed::Done { lease_until: Some(lease_until), signals: reply.signals()? }),
        "conflict" => Ok(Committed::Conflict { seq: reply.number().unwrap_or_default() }),
        "broken" => {
            error!(workflow = %commit.id, why = reply.text()?, "what is kept of a workflow can't be read; its commit was refused");
            Ok(Committed::Conflict { seq: 0 })
        }
        "busy" => {
            let resource = wish(commit, reply.number()?)?;
            let said: Vec<Value> = Reply::of(reply.value()?)?.0.collect();
            let mut holders: Vec<WorkflowId> = said.into_iter().filter_map(|holder| holder_of(commit, &resource, holder)).collect();
            holders.sort();
            holders.dedup();
            holders.truncate(limits::HOLDERS_SHOWN_MAX);
            Ok(Committed::Busy { resource, holders })
        }
        "held" => {
            let resource = wish(commit, reply.number()?)?;
            match reply.value()? {
                Value::BulkString(nobody) if nobody.is_empty() => Ok(Committed::Held { resource, holder: None }),
                // Whoever that is can't be named.
                holder => Ok(match holder_of(commit, &resource, holder) {
                    None => Committed::Busy { resource, holders: Vec::new() },
                    Some(holder) => Committed::Held { resource, holder: Some(holder) },
                }),
            }
        }
        _ => Err(Malformed::new("a verdict", tag)),
    }
}

/// One that can't be read must not hide the others, nor stop who asks for something else.
fn holder_of(commit: &Commit, resource: &Resource, holder: Value) -> Option<WorkflowId> {
    let told = format!("{holder:?}");
    let read = text(holder).ok().and_then(|holder| holder.parse().ok());
    if read.is_none() {
        let how = match resource {
            Resource::Lock { .. } => "remove its field by hand",
            Resource::Budget { .. } => "`turnaround node release` frees a node's share",
        };
        error!(workflow = %commit.id, %resource, holder = told, how, "what is waited for is held by what is no workflow");
    }
    read
}

/// What it wishes for in that place; 1 is the first.
fn wish(commit: &Commit, place: usize) -> Result<Resource, Malformed> {
    let taken = place.checked_sub(1).and_then(|at| commit.take.get(at));
    taken.map(|take| take.resource.clone()).ok_or_else(|| Malformed::new("one of the wishes", place.to_string()))
}

/// One element of `read.lua`'s answer; None if there is no such workflow. What can't be read is shown as quarantined: one bad
/// workflow must not hide the others.
pub(super) fn document(id: &WorkflowId, read: Value) -> Result<Option<Document>, Malformed> {
    if matches!(read, Value::Nil) {
        return Ok(None);
    }
    let mut reply = Reply::of(read)?;
    let (head, document) = (layout::bytes(reply.value()?)?, optional_bytes(reply.value()?)?);
    let Kept { mut document, .. } = match layout::kept(id.clone(), &head, document.as_deref()) {
        Ok(Kept { damage: Some(damage), .. }) => return Ok(Some(unreadable(id.clone(), &damage))),
        Ok(kept) => kept,
        Err(malformed) => return Ok(Some(unreadable(id.clone(), &malformed.to_string()))),
    };
    // The journal tells where it stands; this is for listings, and must not hide all others of its page.
    document.state = reply.optional_text().unwrap_or_else(|why| {
        error!(workflow = %id, %why, "what is kept of it for listings can't be read");
        None
    });
    document.due = reply.optional_time()?;
    let until = reply.optional_time()?;
    let holder = optional_bytes(reply.value()?)?.and_then(|holder| layout::holder(&holder));
    document.lease = holder.zip(until).map(|((fence, worker), until)| LeaseInfo { worker, fence, until });
    Ok(Some(document))
}

pub(super) fn optional_bytes(value: Value) -> Result<Option<Vec<u8>>, Malformed> {
    match value {
        Value::Nil => Ok(None),
        value => layout::bytes(value).map(Some),
    }
}

/// Is that all that is known of it?
pub(super) fn is_unreadable(document: &Document) -> bool {
    // One that can be read has an entry at least.
    document.seq == 0
}

fn unreadable(id: WorkflowId, why: &str) -> Document {
    Document {
        id,
        kind: "unknown".to_owned(),
        target: String::new(),
        parent: None,
        status: Status::Quarantined,
        headline: format!("what is kept of it can't be read: {why}"),
        seq: 0,
        head: Digest::NONE,
        state: None,
        queue: Queue::DEFAULT,
        traceparent: None,
        created: Timestamp::default(),
        updated: Timestamp::default(),
        due: None,
        lease: None,
    }
}
