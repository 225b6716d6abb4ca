//! Reads what Redis answers.

use std::str::FromStr;

use ::redis::Value;
use tracing::error;

use super::encode::Part;
use super::split_entry;
use crate::clock::Timestamp;
use crate::store::{
    Advanced, Claim, Claimed, Commit, Committed, Digest, Document, Fence, LeaseInfo, Queue, Status, StoredEntry,
    StoredSignal, WorkflowId, limits,
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

    pub(super) fn value(&mut self) -> Result<Value, Malformed> {
        self.0.next().ok_or_else(|| Malformed::new("one more element", "the end"))
    }

    fn array(&mut self) -> Result<Reply, Malformed> {
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

    fn id(&mut self) -> Result<WorkflowId, Malformed> {
        id(self.text()?)
    }

    fn signals(&mut self) -> Result<Vec<StoredSignal>, Malformed> {
        let bodies = texts(self.value()?)?;
        Ok(bodies.into_iter().map(|body| StoredSignal { body }).collect())
    }

    fn each<T>(self, read: impl FnMut(Value) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
        self.0.map(read).collect()
    }
}

pub(super) fn id(text: String) -> Result<WorkflowId, Malformed> {
    text.parse().map_err(|_| Malformed::new("a workflow id", text))
}

pub(super) fn text(value: Value) -> Result<String, Malformed> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).map_err(|_| Malformed::new("UTF-8", "other bytes")),
        Value::SimpleString(text) => Ok(text),
        Value::VerbatimString { text, .. } => Ok(text),
        Value::Okay => Ok("OK".to_owned()),
        other => Err(Malformed::value("a text", &other)),
    }
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

pub(super) fn entry(kept: String) -> Result<StoredEntry, Malformed> {
    split_entry(&kept).ok_or_else(|| Malformed::new("a digest and a body", kept))
}

pub(super) fn status(name: &str) -> Result<Status, Malformed> {
    let found = Status::ALL.into_iter().find(|status| status.as_str() == name);
    found.ok_or_else(|| Malformed::new("a status", name))
}

pub(super) fn advanced(answer: Value, asked: &Part<'_>) -> Result<Advanced, Malformed> {
    let mut reply = Reply::of(answer)?;
    let now = reply.time()?;
    let lease_until = reply.time()?;
    let mut asked_commits = asked.commits.iter();
    let commits = reply.array()?.each(|verdict| {
        let commit = asked_commits.next().ok_or_else(|| Malformed::value("no more verdicts", &verdict))?;
        committed(verdict, commit, lease_until)
    })?;
    if asked_commits.next().is_some() {
        return Err(Malformed::new("a verdict on each commit", "fewer"));
    }
    let renewed = reply.array()?.each(|renewed| Ok(matches!(renewed, Value::Int(1) | Value::Boolean(true)).then_some(lease_until)))?;
    let claimed = reply.array()?.0.filter_map(|one| match claimed(one, now, asked.claim) {
        Ok(claimed) => Some(claimed),
        // Without a name there is nothing to set aside. It stays leased, and is met again when that expires.
        Err(why) => {
            error!(%why, "what was handed out is no workflow; nobody works on it");
            None
        }
    });
    let claimed = claimed.collect();
    let next = reply.optional_time()?;
    for broken in reply.array()?.0 {
        let told = texts(broken)?;
        error!(workflow = told.first(), why = told.get(1), "what is kept of a workflow can't be read; nobody is granted it any more");
    }
    Ok(Advanced { now, commits, renewed, claimed, next })
}

fn committed(verdict: Value, commit: &Commit, lease_until: Timestamp) -> Result<Committed, Malformed> {
    let (tag, mut reply) = match verdict {
        Value::Array(values) => {
            let mut reply = Reply(values.into_iter());
            (reply.text()?, reply)
        }
        verdict => (text(verdict)?, Reply(Vec::new().into_iter())),
    };
    match tag.as_str() {
        "k" => {
            let signals = if reply.0.as_slice().is_empty() { Vec::new() } else { reply.signals()? };
            Ok(Committed::Done { lease_until: Some(lease_until), signals })
        }
        "d" => Ok(Committed::Done { lease_until: None, signals: Vec::new() }),
        "f" => Ok(Committed::Fenced),
        "conflict" => Ok(Committed::Conflict { seq: reply.number().unwrap_or_default() }),
        "broken" => {
            error!(workflow = %commit.id, why = reply.text()?, "what is kept of a workflow can't be read; its commit was refused");
            Ok(Committed::Conflict { seq: 0 })
        }
        "busy" => {
            let taken = |place: usize| commit.take.get(place.checked_sub(1)?).map(|take| take.resource.clone());
            let place = reply.number()?;
            let resource = taken(place).ok_or_else(|| Malformed::new("one of the wishes", place.to_string()))?;
            let mut holders = texts(reply.value()?)?.into_iter().map(id).collect::<Result<Vec<_>, _>>()?;
            holders.sort();
            holders.dedup();
            holders.truncate(limits::HOLDERS_SHOWN_MAX);
            Ok(Committed::Busy { resource, holders })
        }
        _ => Err(Malformed::new("a verdict", tag)),
    }
}

fn claimed(one: Value, now: Timestamp, asked: Option<&Claim>) -> Result<Claimed, Malformed> {
    let mut reply = Reply::of(one)?;
    let id = reply.id()?;
    let fence = Fence(reply.number()?);
    let tries = reply.number()?;
    let mut found = reply.array()?;
    let (mut document, mut damage) = stored_fields(id, &mut found)?;
    let until = asked.map_or(now, |claim| now + claim.lease);
    let worker = asked.map(|claim| claim.worker.clone()).unwrap_or_default();
    document.lease = Some(LeaseInfo { worker, fence, until });
    let mut journal = Vec::new();
    // The first entries follow the fields, and there are places for more of them than there may be.
    for kept in found.0.take(usize::try_from(document.seq).unwrap_or(usize::MAX)) {
        let kept = if matches!(kept, Value::Nil) { Ok(String::new()) } else { text(kept) };
        match kept.and_then(entry) {
            Ok(entry) => journal.push(entry),
            Err(malformed) => {
                damage.get_or_insert_with(|| format!("entry {} of its journal: {malformed}", journal.len() + 1));
                break;
            }
        }
    }
    let signals = reply.array()?.0.filter_map(|body| text(body).ok()).map(|body| StoredSignal { body }).collect();
    Ok(Claimed { document, journal, tries, damage, fence, lease_until: until, signals })
}

/// One element of `read.lua`'s answer; None if there is no such workflow. What can't be read is shown as quarantined: one bad
/// workflow must not hide the others.
pub(super) fn document(id: &WorkflowId, read: Value) -> Result<Option<Document>, Malformed> {
    if matches!(read, Value::Nil) {
        return Ok(None);
    }
    let mut reply = match read {
        Value::Array(_) => Reply::of(read)?,
        told => return Ok(Some(unreadable(id.clone(), &text(told)?))),
    };
    let (mut document, damage) = stored_fields(id.clone(), &mut reply)?;
    if let Some(damage) = damage {
        return Ok(Some(unreadable(id.clone(), &damage)));
    }
    document.state = reply.optional_text()?;
    let (fence, holder) = (reply.optional_text()?, reply.optional_text()?);
    document.due = reply.optional_time()?;
    let until = reply.optional_time()?;
    // A fence stands for as long as the lease was not given up.
    let fence = fence.and_then(|fence| fence.parse().ok()).map(Fence);
    if let (Some(until), Some(fence)) = (until, fence) {
        // The ticket follows the worker.
        let worker = holder.as_deref().and_then(|holder| holder.rsplit_once(' ')).map(|(worker, _)| worker.to_owned());
        document.lease = Some(LeaseInfo { worker: worker.unwrap_or_default(), fence, until });
    }
    Ok(Some(document))
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
        head: Digest(String::new()),
        state: None,
        queue: Queue::DEFAULT,
        traceparent: None,
        created: Timestamp::default(),
        updated: Timestamp::default(),
        due: None,
        lease: None,
    }
}

/// The fields that every answer about a workflow begins with, and what was wrong with the first of them that is not of its form.
fn stored_fields(id: WorkflowId, reply: &mut Reply) -> Result<(Document, Option<String>), Malformed> {
    let mut damage = None;
    let mut field = |name: &str, optional: bool| -> Result<Option<String>, Malformed> {
        let (found, wrong) = match reply.value()? {
            Value::Nil => (None, (!optional).then(|| "it is not there".to_owned())),
            value => match text(value) {
                Ok(text) => (Some(text), None),
                Err(malformed) => (None, Some(malformed.to_string())),
            },
        };
        if let Some(wrong) = wrong {
            damage.get_or_insert_with(|| format!("its `{name}`: {wrong}"));
        }
        Ok(found)
    };
    let (kind, target, parent) = (field("kind", false)?, field("target", false)?, field("parent", true)?);
    let (named_status, headline, seq, head) = (field("status", false)?, field("headline", false)?, field("seq", false)?, field("head", false)?);
    let (traceparent, created, updated, queue) = (field("trace", true)?, field("created", false)?, field("updated", false)?, field("queue", false)?);
    let mut parsed = |name: &str, ok: bool, found: &Option<String>| {
        if let (false, Some(found)) = (ok, found) {
            damage.get_or_insert_with(|| format!("its `{name}` is `{}`", found.chars().take(80).collect::<String>()));
        }
    };
    let millis = |found: &Option<String>| found.as_ref().and_then(|text| text.parse().ok()).map(Timestamp::from_millis);
    let status_read = named_status.as_deref().and_then(|name| status(name).ok());
    parsed("status", status_read.is_some(), &named_status);
    let seq_read = seq.as_ref().and_then(|seq| seq.parse().ok());
    parsed("seq", seq_read.is_some(), &seq);
    let parent_read = parent.as_ref().and_then(|parent| parent.parse().ok());
    parsed("parent", parent_read.is_some(), &parent);
    let queue_read = queue.as_ref().and_then(|queue| queue.parse().ok());
    parsed("queue", queue_read.is_some(), &queue);
    parsed("created", millis(&created).is_some(), &created);
    parsed("updated", millis(&updated).is_some(), &updated);
    let document = Document {
        id,
        kind: kind.unwrap_or_default(),
        target: target.unwrap_or_default(),
        parent: parent_read,
        status: status_read.unwrap_or(Status::Quarantined),
        headline: headline.unwrap_or_default(),
        seq: seq_read.unwrap_or_default(),
        head: Digest(head.unwrap_or_default()),
        state: None,
        queue: queue_read.unwrap_or_default(),
        traceparent,
        created: millis(&created).unwrap_or_default(),
        updated: millis(&updated).unwrap_or_default(),
        due: None,
        lease: None,
    };
    Ok((document, damage))
}
