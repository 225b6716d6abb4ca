//! Both stores, held to the same promises; what only the one in Redis has to show; and the private Redis.

use super::{Digest, NewWorkflow, StoredEntry};

#[path = "../../../../tests/src/beds.rs"]
mod beds;
mod creations;
mod direct;
mod embedded;
mod faults;
mod high_water;
mod integrity;
mod memory;
mod model;
mod outages;
mod poison;
mod redis;
mod sentinel;

/// Digest of the entry of a [`sample`].
const FIRST: Digest = Digest([1; 32]);

fn sample(name: &str) -> NewWorkflow {
    NewWorkflow {
        id: name.parse().unwrap(),
        kind: "probe".to_owned(),
        target: "site".to_owned(),
        parent: None,
        headline: "begins".to_owned(),
        entry: StoredEntry { digest: FIRST, body: "{}".to_owned() },
        traceparent: None,
        due: None,
    }
}
