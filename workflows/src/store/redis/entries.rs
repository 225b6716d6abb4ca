//! How journal entries are kept: those of one commit in one field, named by the place of the first of them.
//!
//! Of each entry its digest (32 bytes), the length of its body (u32, little-endian), and the body. Nothing else stands there, because nothing
//! else is sealed.

use ::redis::Value;

use super::layout::Unpack;
use super::reply::{self, Malformed};
use crate::store::{Digest, StoredEntry};

/// Entries of one commit, as they are kept.
pub(super) fn pack(packed: &mut Vec<u8>, entries: &[StoredEntry]) {
    packed.clear();
    for entry in entries {
        packed.extend(entry.digest.0);
        // A value of Redis has at most 512 MB.
        packed.extend(u32::try_from(entry.body.len()).unwrap_or(u32::MAX).to_le_bytes());
        packed.extend(entry.body.as_bytes());
    }
}

/// Reads what [`pack`] wrote.
pub(super) fn unpack(kept: Value) -> Result<Vec<StoredEntry>, Malformed> {
    let kept = super::layout::bytes(kept)?;
    let mut unpack = Unpack(&kept);
    let mut entries = Vec::new();
    let mut read = || {
        let digest = Digest(unpack.array()?);
        let length = unpack.array().map(u32::from_le_bytes)?;
        Some((digest, unpack.bytes(usize::try_from(length).ok()?)?.to_vec(), unpack.0.is_empty()))
    };
    loop {
        let (digest, body, is_last) = read().ok_or_else(|| Malformed::new("journal entries", String::from_utf8_lossy(&kept)))?;
        entries.push(StoredEntry { digest, body: reply::utf8(body)? });
        if is_last {
            return Ok(entries);
        }
    }
}

/// Where what is kept of a journal can't be read: what begins at that place.
#[derive(Debug, thiserror::Error)]
#[error("what begins with entry {place}: {source}")]
pub(super) struct Unreadable {
    place: u64,
    source: Malformed,
}

/// Reads the fields of places from `first` on, of which most are not there, as far as they tell of all entries from place `next` on. Adds
/// those to `entries`; the place after them.
pub(super) fn follow(fields: impl IntoIterator<Item = Value>, first: u64, mut next: u64, entries: &mut Vec<StoredEntry>) -> Result<u64, Unreadable> {
    for (place, field) in (first..).zip(fields) {
        if place < next {
            continue;
        }
        if matches!(field, Value::Nil) {
            break;
        }
        let read = unpack(field).map_err(|source| Unreadable { place, source })?;
        next += read.len() as u64;
        entries.extend(read);
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = StoredEntry> {
        (any::<[u8; 32]>(), ".{0,40}").prop_map(|(digest, body)| StoredEntry { digest: Digest(digest), body })
    }

    proptest! {
        #[test]
        fn what_commits_appended_is_followed_from_any_of_them_on(commits in prop::collection::vec(prop::collection::vec(entry(), 1..4), 1..5), from in 0..5_usize) {
            let from = from % commits.len();
            let all: Vec<_> = commits.concat();
            let place = |commit: usize| 1 + commits[..commit].iter().map(Vec::len).sum::<usize>();
            let mut fields = vec![Value::Nil; all.len() + 2];
            let mut packed = Vec::new();
            for (number, commit) in commits.iter().enumerate() {
                pack(&mut packed, commit);
                fields[place(number) - 1] = Value::BulkString(packed.clone());
            }
            let mut read = Vec::new();
            let next = follow(fields, 1, place(from) as u64, &mut read).unwrap();
            prop_assert_eq!((next, read), (all.len() as u64 + 1, all[place(from) - 1..].to_vec()));
        }

        #[test]
        fn what_is_cut_short_or_continued_is_refused(entries in prop::collection::vec(entry(), 1..4), cut in 1..36_usize) {
            let mut packed = Vec::new();
            pack(&mut packed, &entries);
            prop_assert!(unpack(Value::BulkString(packed[..packed.len() - cut].to_vec())).is_ok_and(|read| read.len() < entries.len()) || packed.len() > cut);
            packed.push(0);
            prop_assert!(unpack(Value::BulkString(packed)).is_err());
        }
    }
}
