//! The high-water mark: how a store that has lost something is told from one that has not.
//!
//! A backup that was put back, a failover to a server that had not heard everything, `FLUSHALL`, another database: the store
//! answers as if nothing had happened, and work that was done is unknown to it. Only somebody who remembers can tell. Each
//! daemon remembers in a file of its own, and compares ([`Store::compare`]); what does not fit **halts** the store: nothing is
//! handed out, nothing is committed, nothing is ordered, by whatever process, until a person has looked and accepted what is
//! there ([`Store::accept`]).
//!
//! [`Store::compare`]: super::Store::compare
//! [`Store::accept`]: super::Store::accept

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// What one witness remembers of the store.
///
/// The revision alone would not do: what was lost is soon outnumbered by what is written anew. The looks grow by this
/// witness's own, so that nobody else can make up for one that is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HighWater {
    /// Who remembers: a random name, made with the file.
    pub witness: String,
    /// Which store it is. None: nothing is remembered yet, and what is there is taken for right.
    pub identity: Option<String>,
    /// When a person last accepted what was there. 1970: never.
    pub accepted: Timestamp,
    /// The newest revision that was seen.
    pub revision: u64,
    /// How often this witness has looked, as the store acknowledged it.
    pub looks: u64,
}

impl HighWater {
    /// Of a witness that has seen nothing.
    pub fn new(witness: String) -> HighWater {
        HighWater { witness, identity: None, accepted: Timestamp::from_millis(0), revision: 0, looks: 0 }
    }

    /// What is to be remembered from now on; nothing of a store that is halted.
    #[must_use]
    pub fn after(&self, standing: &Standing) -> HighWater {
        if standing.halt.is_some() {
            return self.clone();
        }
        HighWater {
            witness: self.witness.clone(),
            identity: standing.identity.clone(),
            accepted: standing.accepted,
            revision: standing.revision,
            looks: standing.looks,
        }
    }
}

/// How the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// A random name, made once. None: there is none, the store was emptied.
    pub identity: Option<String>,
    /// Grows with every call that wrote something worth remembering.
    pub revision: u64,
    pub accepted: Timestamp,
    /// Looks of the witness that asks; 0 where none does.
    pub looks: u64,
    pub halt: Option<Halt>,
}

/// Why nothing is handed out and nothing is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    pub since: Timestamp,
    /// Which daemon noticed.
    pub noticed_by: String,
    pub loss: Loss,
    pub expected: Landmark,
    pub found: Landmark,
}

/// What is wrong with what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// There is nothing, or not even the store's name: `FLUSHALL`, a lost file, an empty database.
    Emptied,
    /// It is another store: another server or database, or one that was begun anew.
    Replaced,
    /// It is an earlier state of this store: acknowledged writes are missing.
    Older,
}

impl Loss {
    pub const ALL: [Loss; 3] = [Loss::Emptied, Loss::Replaced, Loss::Older];

    pub fn as_str(self) -> &'static str {
        match self {
            Loss::Emptied => "emptied",
            Loss::Replaced => "replaced",
            Loss::Older => "older",
        }
    }
}

/// A state of a store, as far as it can be named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landmark {
    pub identity: Option<String>,
    pub revision: u64,
    pub looks: u64,
}

impl fmt::Display for Landmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.identity {
            Some(identity) => write!(f, "store {identity} at revision {}, look {}", self.revision, self.looks),
            None => f.write_str("an empty store"),
        }
    }
}

/// What is wrong with `found` for who remembers `remembered`; None if all is well, or if a person has accepted it since.
pub(super) fn loss(remembered: &HighWater, found: &Standing) -> Option<Loss> {
    let expected = remembered.identity.as_ref()?;
    let Some(identity) = &found.identity else { return Some(Loss::Emptied) };
    if identity != expected {
        return Some(Loss::Replaced);
    }
    let is_older = found.revision < remembered.revision || found.looks < remembered.looks;
    (found.accepted <= remembered.accepted && is_older).then_some(Loss::Older)
}
