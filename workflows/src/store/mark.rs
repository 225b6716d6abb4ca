//! How a commit is recognised when it is sent again because its answer was lost.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::{Commit, Next, Resource, WorkflowId};

/// The mark of a commit without entries: the same for the same commit, and for no other commit of that workflow. Kept with the workflow
/// until its next commit. One with entries is recognised by the digest of the newest, which is over all before it.
///
/// Two commits in a row that are equal in everything, without entries, are one to the store: therefore a commit that
/// consumes or sends signals should carry an entry that says so.
pub(super) fn of(commit: &Commit) -> String {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(&commit.fence.0.to_le_bytes());
    field(&commit.expected.to_le_bytes());
    field(&commit.consumed.to_le_bytes());
    field(commit.status.as_str().as_bytes());
    field(commit.headline.as_bytes());
    for take in &commit.take {
        resource(&mut field, &take.resource);
        field(&take.limit.to_le_bytes());
        field(take.from.as_ref().map_or("", WorkflowId::as_str).as_bytes());
    }
    field(b"give");
    for given in &commit.give {
        resource(&mut field, given);
    }
    for new in &commit.create {
        field(new.id.as_str().as_bytes());
    }
    for (to, signal) in &commit.signals {
        field(to.as_str().as_bytes());
        field(signal.body.as_bytes());
    }
    let (next, value) = match commit.next {
        Next::Keep => ("keep", 0),
        Next::At(at) => ("at", at.millis()),
        Next::Signal => ("signal", 0),
        Next::End { keep } => ("end", i64::try_from(keep.as_millis()).unwrap_or(i64::MAX)),
    };
    field(next.as_bytes());
    field(commit.queue.as_str().as_bytes());
    field(&value.to_le_bytes());
    // Half a SHA-256: it is only ever compared with one other.
    hash.finalize().iter().take(16).fold(String::with_capacity(32), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn resource(field: &mut impl FnMut(&[u8]), resource: &Resource) {
    match resource {
        Resource::Lock { name } => {
            field(b"lock");
            field(name.as_bytes());
        }
        Resource::Budget { name, member } => {
            field(b"budget");
            field(name.as_bytes());
            field(member.as_bytes());
        }
    }
}
