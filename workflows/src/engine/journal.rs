//! The journal's form: a chain of entries, each sealed over its predecessor.

use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};

use super::Event;
use crate::clock::Timestamp;
use crate::store::{Digest, Fence, StoredEntry};

/// One entry of a journal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Its place, from 1.
    pub seq: u64,
    pub at: Timestamp,
    /// The lease under which it was written; 0 for the first entry, which whoever created the workflow wrote.
    pub fence: Fence,
    /// Id of the signal that it follows; a second delivery is recognised by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follows: Option<String>,
    #[serde(flatten)]
    pub event: Event,
}

impl Entry {
    /// Reads the body of a stored entry.
    pub fn read(body: &str) -> Result<Entry, serde_json::Error> {
        serde_json::from_str(body)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Seq,
    At,
    Fence,
    Follows,
    Event,
    #[serde(other)]
    Other,
}

/// In one pass: what stands behind `event` is the event's, as it was written ([`Entry`]'s last field). Every claim reads a whole journal.
impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry of a journal")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entry, M::Error> {
        let (mut seq, mut at, mut fence, mut follows) = (None, None, None, None);
        while let Some(field) = map.next_key()? {
            match field {
                Field::Seq => seq = Some(map.next_value()?),
                Field::At => at = Some(map.next_value()?),
                Field::Fence => fence = Some(map.next_value()?),
                Field::Follows => follows = map.next_value()?,
                Field::Other => drop(map.next_value::<IgnoredAny>()?),
                Field::Event => {
                    let missing = M::Error::missing_field;
                    let seq = seq.ok_or_else(|| missing("seq"))?;
                    let (at, fence) = (at.ok_or_else(|| missing("at"))?, fence.ok_or_else(|| missing("fence"))?);
                    return Ok(Entry { seq, at, fence, follows, event: Event::of_rest(map)? });
                }
            }
        }
        Err(M::Error::missing_field("event"))
    }
}

/// A journal that can't be right.
#[derive(Debug, thiserror::Error)]
pub enum BadEntry {
    #[error("entry {seq} of the journal does not match its digest, or its predecessor's")]
    Digest { seq: u64 },
    #[error("entry {seq} of the journal can't be read")]
    Unreadable {
        seq: u64,
        #[source]
        source: serde_json::Error,
    },
    #[error("entry {seq} of the journal says that it is entry {says}")]
    Order { seq: u64, says: u64 },
}

/// The SHA-256 of the predecessor's digest, as lower-case hex, followed by the body.
fn digest(before: Option<&Digest>, body: &str) -> Digest {
    let mut hash = Sha256::new();
    if let Some(before) = before {
        hash.update(before.hex());
    }
    hash.update(body.as_bytes());
    Digest(hash.finalize().into())
}

/// Most entries are shorter.
const BODY_BYTES: usize = 256;

/// `entry` as it is kept, sealed over `before` (None for the first one).
pub fn seal(before: Option<&Digest>, entry: &Entry) -> Result<StoredEntry, serde_json::Error> {
    let mut body = Vec::with_capacity(BODY_BYTES);
    serde_json::to_writer(&mut body, entry)?;
    let body = String::from_utf8(body).map_err(<serde_json::Error as serde::ser::Error>::custom)?;
    Ok(StoredEntry { digest: digest(before, &body), body })
}

/// Reads entries that follow `before`, of which the first has place `first`, and checks every seal.
pub fn check_chain(before: Option<&Digest>, first: u64, stored: &[StoredEntry]) -> Result<Vec<Entry>, BadEntry> {
    let mut before = before.copied();
    let mut entries = Vec::with_capacity(stored.len());
    for (seq, kept) in (first..).zip(stored) {
        if digest(before.as_ref(), &kept.body) != kept.digest && !cfg!(feature = "bug-digest-unchecked") {
            return Err(BadEntry::Digest { seq });
        }
        let entry = Entry::read(&kept.body).map_err(|source| BadEntry::Unreadable { seq, source })?;
        if entry.seq != seq {
            return Err(BadEntry::Order { seq, says: entry.seq });
        }
        before = Some(kept.digest);
        entries.push(entry);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(length: u64) -> Vec<StoredEntry> {
        let mut before = None;
        (1..=length)
            .map(|seq| {
                let entry = Entry {
                    seq,
                    at: Timestamp::from_millis(1_000),
                    fence: Fence(7),
                    follows: None,
                    event: Event::Resumed { by: format!("operator {seq}") },
                };
                let stored = seal(before.as_ref(), &entry).unwrap();
                before = Some(stored.digest);
                stored
            })
            .collect()
    }

    #[test]
    fn a_journal_reads_back_as_it_was_written() {
        let stored = chain(5);
        let entries = check_chain(None, 1, &stored).unwrap();
        assert_eq!(entries.len(), 5);
        assert_eq!(check_chain(Some(&stored[1].digest), 3, &stored[2..]).unwrap(), entries[2..]);
    }

    /// Reading stops at `event`, and takes the rest for the event's: whatever else an entry has must be written before it.
    #[test]
    fn all_of_an_entry_stands_before_its_event() {
        let entry = Entry {
            seq: 3,
            at: Timestamp::from_millis(1_000),
            fence: Fence(7),
            follows: Some("signal-1".to_owned()),
            event: Event::StepSucceeded { step: "look".to_owned(), output: serde_json::json!({ "seq": 9, "event": [null, "ended"] }), gave: Vec::new() },
        };
        let stored = seal(None, &entry).unwrap();
        assert_eq!(Entry::read(&stored.body).unwrap(), entry, "{}", stored.body);
    }

    #[test]
    fn what_a_newer_release_adds_is_passed_over_and_what_is_missing_is_named() {
        let read = |body| Entry::read(body).map_err(|error| error.to_string());
        let resumed = Event::Resumed { by: "operator".to_owned() };
        let added = read(r#"{"seq":1,"zone":{"a":[1]},"at":1,"fence":0,"event":"resumed","mood":{"b":2},"by":"operator"}"#);
        assert_eq!(added, Ok(Entry { seq: 1, at: Timestamp::from_millis(1), fence: Fence(0), follows: None, event: resumed }));
        for (body, says) in [
            (r#"{"seq":1,"fence":0,"event":"resumed","by":"operator"}"#, "missing field `at`"),
            (r#"{"seq":1,"at":1,"fence":0}"#, "missing field `event`"),
            (r#"{"seq":1,"at":1,"fence":0,"event":"resumed"}"#, "missing field `by`"),
            (r#"{"seq":1,"at":1,"fence":0,"event":"sat down"}"#, "unknown variant `sat down`"),
            (r#"{"seq":1,"at":1,"fence":0,"event":7}"#, "invalid type: integer `7`"),
            (r#"[1,1,0,"resumed","operator"]"#, "expected an entry of a journal"),
            (r#"{"seq":1,"at":1,"fence":0,"event":"resumed","by":"operator"} "and more""#, "trailing characters"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    #[test]
    fn a_flipped_byte_a_swap_and_a_gap_are_noticed() {
        let good = chain(4);
        for place in 0..good[2].body.len() {
            let mut bytes = good[2].body.clone().into_bytes();
            bytes[place] ^= 1;
            let mut bad = good.clone();
            bad[2].body = String::from_utf8(bytes).unwrap();
            assert!(check_chain(None, 1, &bad).is_err(), "byte {place}");
        }
        let mut swapped = good.clone();
        swapped.swap(1, 2);
        assert!(check_chain(None, 1, &swapped).is_err());
        let mut gap = good.clone();
        gap.remove(1);
        assert!(check_chain(None, 1, &gap).is_err());
    }
}
