//! How the store is, and what each witness has seen of it.

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::store::high_water::{Halt, HighWater, Landmark, Standing, loss};

#[derive(Debug)]
pub(super) struct Watched {
    identity: String,
    /// Writes worth remembering.
    pub(super) revision: u64,
    accepted: Timestamp,
    looks: BTreeMap<String, u64>,
    halt: Option<Halt>,
}

impl Default for Watched {
    fn default() -> Watched {
        Watched {
            // There is one in a process, and nothing of it outlives the process.
            identity: "memory".to_owned(),
            revision: 1,
            accepted: Timestamp::from_millis(0),
            looks: BTreeMap::new(),
            halt: None,
        }
    }
}

impl Watched {
    pub(super) fn is_halted(&self) -> bool {
        self.halt.is_some()
    }

    pub(super) fn standing(&self, witness: Option<&str>) -> Standing {
        Standing {
            identity: Some(self.identity.clone()),
            revision: self.revision,
            accepted: self.accepted,
            looks: witness.and_then(|witness| self.looks.get(witness)).copied().unwrap_or(0),
            halt: self.halt.clone(),
        }
    }

    pub(super) fn compare(&mut self, remembered: &HighWater, by: &str, now: Timestamp) -> Standing {
        let witness = remembered.witness.as_str();
        let found = self.standing(Some(witness));
        if self.halt.is_none() {
            match loss(remembered, &found) {
                Some(loss) => {
                    let landmark = |identity, revision, looks| Landmark { identity, revision, looks };
                    self.halt = Some(Halt {
                        since: now,
                        noticed_by: by.to_owned(),
                        loss,
                        expected: landmark(remembered.identity.clone(), remembered.revision, remembered.looks),
                        found: landmark(found.identity, found.revision, found.looks),
                    });
                }
                None => *self.looks.entry(witness.to_owned()).or_default() += 1,
            }
        }
        self.standing(Some(witness))
    }

    /// Lifts the halt; false if there is none.
    pub(super) fn lift(&mut self, remembered: &HighWater, now: Timestamp) -> bool {
        if self.halt.take().is_none() {
            return false;
        }
        if let Some(identity) = &remembered.identity {
            self.identity.clone_from(identity);
        }
        let later = |at: Timestamp| Timestamp::from_millis(at.millis() + 1);
        self.accepted = now.max(later(remembered.accepted)).max(later(self.accepted));
        self.revision = self.revision.max(remembered.revision) + 1;
        true
    }
}
