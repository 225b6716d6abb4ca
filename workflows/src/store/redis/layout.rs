//! How a workflow is kept, byte by byte: what the scripts and this program pass to each other, and what stands in Redis.
//!
//! - The **head** changes with each commit, and the scripts look into it (`HEAD` in `common.lua`). Little-endian: number of entries (u32),
//!   flags (u8), leases that expired without a commit (u16), status (u8, its place in [`Status::ALL`]), when it was last committed to (f64,
//!   milliseconds). The scripts make that much of it. Then what whoever commits has made: the digest of the newest entry (32 bytes); texts that
//!   end with a zero byte: traceparent, mark, queue; and the headline to the end.
//! - The **holder** is there while somebody has it, and once it has ended: the fence (f64), the worker's name, a space, the ticket of the claim. Of most
//!   workflows a claim writes nothing else, and the lease.
//! - The **document** is written once: when it was created (f64, milliseconds), the parent's id with a zero byte, the length of the kind
//!   (u32), kind, target to the end.
//! - **Entries**: `entries.rs`.

use ::redis::Value;

use super::reply::Malformed;
use crate::clock::Timestamp;
use crate::store::{Digest, Document, Fence, Queue, Status, WorkflowId};

/// Counts up whenever any of this changes, so that no release takes what another one wrote for its own.
pub(super) const LAYOUT: &str = "4";

/// Flags of a head, as `common.lua` has them: there may be something in its inbox; it has ended.
pub(super) const MAIL: u8 = 1;
pub(super) const ENDED: u8 = 8;

/// What the scripts call the statuses, in the order of their numbers.
pub(super) fn statuses() -> String {
    Status::ALL.map(|status| format!("'{}'", status.as_str())).join(", ")
}

/// The number of a status.
pub(super) fn number(status: Status) -> u8 {
    // There are nine.
    Status::ALL.iter().position(|one| *one == status).and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX)
}

/// Binary in a buffer that is used again and again.
#[derive(Default)]
pub(super) struct Packed(pub(super) Vec<u8>);

impl Packed {
    pub(super) fn clear(&mut self) -> &mut Packed {
        self.0.clear();
        self
    }

    /// A count of what one commit carries, at most [`super::limits::COMMIT_ITEMS_MAX`].
    pub(super) fn count(&mut self, count: usize) {
        self.0.extend(u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
    }

    pub(super) fn number(&mut self, number: u64) {
        self.0.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    }

    pub(super) fn small(&mut self, number: u8) {
        self.0.push(number);
    }

    /// Exact, as everything that stores keep: see [`super::limits::TIME_MAX`] and [`super::limits::KEEP_MAX`].
    pub(super) fn millis(&mut self, millis: i64) {
        #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
        self.0.extend((millis as f64).to_le_bytes());
    }

    /// Exact: fences are about as large as the microseconds since 1970, and 2^53 of those are over in the year 2255.
    pub(super) fn fence(&mut self, fence: Fence) {
        #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
        self.0.extend((fence.0 as f64).to_le_bytes());
    }

    /// Nothing that is packed like this has a zero byte; what has one is left out.
    pub(super) fn text(&mut self, text: &str) {
        if !text.contains('\0') {
            self.0.extend(text.as_bytes());
        }
        self.0.push(0);
    }

    /// What whoever commits makes of a head. No digest: the one that stands is put in its place.
    pub(super) fn tail(&mut self, digest: Option<Digest>, traceparent: Option<&str>, mark: &str, queue: &str, headline: &str) -> &[u8] {
        self.clear().add_tail(digest, traceparent, mark, queue, headline);
        &self.0
    }

    pub(super) fn add_tail(&mut self, digest: Option<Digest>, traceparent: Option<&str>, mark: &str, queue: &str, headline: &str) {
        self.0.extend(digest.unwrap_or(Digest::NONE).0);
        // One that has spaces is none: a traceparent has hexadecimal digits and dashes.
        self.text(traceparent.filter(|text| !text.contains(char::is_whitespace)).unwrap_or_default());
        self.text(mark);
        self.text(queue);
        self.0.extend(headline.as_bytes());
    }

    /// What the scripts, or a transaction, make of a head, with no tries.
    pub(super) fn head(&mut self, entries: u64, flags: u8, status: Status, updated: Timestamp) {
        self.number(entries);
        self.small(flags);
        self.count(0);
        self.small(number(status));
        self.millis(updated.millis());
    }

    pub(super) fn document(&mut self, created: Timestamp, kind: &str, target: &str, parent: Option<&WorkflowId>) -> &[u8] {
        self.clear().millis(created.millis());
        self.text(parent.map_or("", WorkflowId::as_str));
        self.number(kind.len() as u64);
        self.0.extend(kind.as_bytes());
        self.0.extend(target.as_bytes());
        &self.0
    }
}

/// What is read, from its beginning.
pub(super) struct Unpack<'a>(pub(super) &'a [u8]);

impl<'a> Unpack<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (read, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(read)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn float(&mut self) -> Option<f64> {
        self.array().map(f64::from_le_bytes)
    }

    fn time(&mut self) -> Option<Timestamp> {
        self.float().map(|millis| super::limits::keepable(Timestamp::from_millis(millis as i64)))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.bytes(end)?;
        self.bytes(1)?;
        Some(text)
    }
}

/// A workflow as it is kept.
pub(super) struct Kept {
    pub(super) document: Document,
    pub(super) tries: u32,
    pub(super) flags: u8,
    /// What of it is not of its form, if so; then that is empty.
    pub(super) damage: Option<String>,
}

/// When it was created, parent, kind and target of a document.
fn parts(document: &[u8]) -> Option<(Timestamp, [&[u8]; 3])> {
    let mut unpack = Unpack(document);
    let (created, parent) = (unpack.time()?, unpack.text()?);
    let length = unpack.array().map(u32::from_le_bytes)?;
    Some((created, [parent, unpack.bytes(usize::try_from(length).ok()?)?, unpack.0]))
}

/// Kind and target of a document.
pub(super) fn subject(document: Value) -> Result<(String, String), Malformed> {
    let bytes = bytes(document)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec());
    let read = parts(&bytes).and_then(|(_, [_, kind, target])| Some((text(kind).ok()?, text(target).ok()?)));
    read.ok_or_else(|| Malformed::new("the document of a workflow", String::from_utf8_lossy(&bytes)))
}

pub(super) fn bytes(value: Value) -> Result<Vec<u8>, Malformed> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        other => Err(Malformed::new("bytes", format!("{other:?}"))),
    }
}

/// Reads a head, and the document that belongs to it.
pub(super) fn kept(id: WorkflowId, head: &[u8], document: Option<&[u8]>) -> Result<Kept, Malformed> {
    let mut unpack = Unpack(head);
    let mut read = || {
        let seq = unpack.array().map(u32::from_le_bytes)?;
        let [flags] = unpack.array()?;
        let tries = unpack.array().map(u16::from_le_bytes)?;
        let [status] = unpack.array()?;
        let (updated, digest) = (unpack.time()?, Digest(unpack.array()?));
        let (trace, _mark, queue) = (unpack.text()?, unpack.text()?, unpack.text()?);
        Some((seq, flags, tries, status, updated, digest, trace, queue, unpack.0))
    };
    let (seq, flags, tries, status, updated, head, trace, queue, headline) =
        read().ok_or_else(|| Malformed::new("the head of a workflow", String::from_utf8_lossy(head)))?;
    let mut damage = None;
    let mut wrong = |what: String| {
        damage.get_or_insert(what);
    };
    let mut text = |name: &str, bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            wrong(format!("its `{name}` is not UTF-8"));
            String::new()
        }
    };
    let (trace, queue, headline) = (text("trace", trace), text("queue", queue), text("headline", headline));
    let (created, parent, kind, target) = match document.and_then(parts) {
        Some((created, [parent, kind, target])) => (created, text("parent", parent), text("kind", kind), text("target", target)),
        None => {
            wrong("its document is not there, or not of its form".to_owned());
            Default::default()
        }
    };
    let status = Status::ALL.get(usize::from(status)).copied().unwrap_or_else(|| {
        wrong(format!("its `status` is {status}"));
        Status::Quarantined
    });
    let queue = if queue == Queue::DEFAULT.as_str() {
        Queue::DEFAULT
    } else {
        queue.parse().unwrap_or_else(|_| {
            wrong(format!("its `queue` is `{}`", shown(&queue)));
            Queue::DEFAULT
        })
    };
    let parent = Some(parent).filter(|parent| !parent.is_empty()).and_then(|parent| match parent.parse() {
        Ok(parent) => Some(parent),
        Err(_) => {
            wrong(format!("its `parent` is `{}`", shown(&parent)));
            None
        }
    });
    let traceparent = Some(trace).filter(|trace| !trace.is_empty());
    let seq = u64::from(seq);
    let document = Document {
        id, kind, target, parent, status, headline, seq, head, state: None, queue, traceparent, created, updated, due: None, lease: None,
    };
    Ok(Kept { document, tries: u32::from(tries), flags, damage })
}

/// The fence and the worker of a holder. None: it is not of its form, or nobody's.
pub(super) fn holder(bytes: &[u8]) -> Option<(Fence, String)> {
    let mut unpack = Unpack(bytes);
    let fence = unpack.float().filter(|fence| *fence > 0.0)?;
    let (worker, _ticket) = std::str::from_utf8(unpack.0).ok()?.rsplit_once(' ')?;
    Some((Fence(fence as u64), worker.to_owned()))
}

/// Enough to recognise it.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}
