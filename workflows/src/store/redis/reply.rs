//! Reads what Redis answers.

use std::str::FromStr;

use ::redis::Value;

use super::split_entry;
use crate::clock::Timestamp;
use crate::store::{
    Advance, Advanced, Claim, Claimed, Committed, Digest, Document, Fence, LeaseInfo, Status, StoredEntry, StoredSignal,
    WorkflowId, limits,
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

pub(super) fn advanced(answer: Value, asked: &Advance) -> Result<Advanced, Malformed> {
    let mut reply = Reply::of(answer)?;
    let now = reply.time()?;
    let mut asked_commits = asked.commits.iter();
    let commits = reply.array()?.each(|verdict| {
        let commit = asked_commits.next().ok_or_else(|| Malformed::value("no more verdicts", &verdict))?;
        let taken = |place: usize| commit.take.get(place.checked_sub(1)?).map(|take| take.resource.clone());
        committed(verdict, taken)
    })?;
    if asked_commits.next().is_some() {
        return Err(Malformed::new("a verdict on each commit", "fewer"));
    }
    let renewed = reply.array()?.each(optional_time)?;
    let claimed = reply.array()?.each(|one| claimed(one, asked.claim.as_ref()))?;
    Ok(Advanced { now, commits, renewed, claimed, next: reply.optional_time()? })
}

fn committed(
    verdict: Value,
    taken: impl Fn(usize) -> Option<crate::store::Resource>,
) -> Result<Committed, Malformed> {
    let mut reply = Reply::of(verdict)?;
    let tag = reply.text()?;
    match tag.as_str() {
        "done" => Ok(Committed::Done { lease_until: reply.optional_time()?, signals: reply.signals()? }),
        "fenced" => Ok(Committed::Fenced),
        "conflict" => Ok(Committed::Conflict { seq: reply.number()? }),
        "busy" => {
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

fn claimed(one: Value, asked: Option<&Claim>) -> Result<Claimed, Malformed> {
    let mut reply = Reply::of(one)?;
    let id = reply.id()?;
    let fence = Fence(reply.number()?);
    let until = reply.time()?;
    let mut document = stored_fields(id, &mut reply.array()?)?;
    let worker = asked.map(|claim| claim.worker.clone()).unwrap_or_default();
    document.lease = Some(LeaseInfo { worker, fence, until });
    Ok(Claimed { document, fence, lease_until: until, signals: reply.signals()? })
}

/// One element of `read.lua`'s answer; None if there is no such workflow.
pub(super) fn document(id: &WorkflowId, read: Value) -> Result<Option<Document>, Malformed> {
    if matches!(read, Value::Nil) {
        return Ok(None);
    }
    let mut reply = Reply::of(read)?;
    let mut document = stored_fields(id.clone(), &mut reply)?;
    let (fence, worker) = (reply.optional_text()?, reply.optional_text()?);
    document.due = reply.optional_time()?;
    if let Some(until) = reply.optional_time()? {
        let fence = fence.and_then(|fence| fence.parse().ok()).map(Fence);
        let fence = fence.ok_or_else(|| Malformed::new("the fence of a lease", "none"))?;
        document.lease = Some(LeaseInfo { worker: worker.unwrap_or_default(), fence, until });
    }
    Ok(Some(document))
}

fn stored_fields(id: WorkflowId, reply: &mut Reply) -> Result<Document, Malformed> {
    Ok(Document {
        id,
        kind: reply.text()?,
        target: reply.text()?,
        parent: reply.optional_text()?.map(self::id).transpose()?,
        status: status(&reply.text()?)?,
        headline: reply.text()?,
        seq: reply.number()?,
        head: Digest(reply.text()?),
        state: reply.text()?,
        traceparent: reply.optional_text()?,
        created: reply.time()?,
        updated: reply.time()?,
        due: None,
        lease: None,
    })
}
