//! What is written down of the moves off one node.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::cluster::Turn;
use super::{Evacuated, TRIES_MAX};
use crate::clock::Timestamp;
use crate::ports::{InstanceId, Move, RequestId};

/// Migration records, by uuid and status.
pub(in crate::steps) type Disregarded = BTreeSet<(String, String)>;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moves {
    pub(super) instances: BTreeMap<InstanceId, Moving>,
    /// Since when each of those that are busy has been seen to be.
    pub(super) busy: BTreeMap<InstanceId, Timestamp>,
    /// Since when it has been the turn of each one's owner.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) owners: BTreeMap<InstanceId, Timestamp>,
    /// Since when no host could be chosen because nobody said what is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) no_choice: Option<Timestamp>,
    /// How many instances each host has not taken that was named to Nova for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) not_taken_by: BTreeMap<String, u32>,
    /// The instances that a question is about to name, or names. It is another entry of the journal, and may never have been asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) named: Option<Named>,
    /// Those whose failure was named by a question that was answered, each with when the try was asked for that it was about.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) known: BTreeMap<InstanceId, Timestamp>,
    /// What those were then, as that question told, by Nova's `vm_state`. Releases that did not write it down took it as known whatever it became.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) known_as: BTreeMap<InstanceId, String>,
    /// Where it is about nodes of the Kubernetes cluster: whose turn it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) turn: Option<Turn>,
    /// Unfinished migration records that an operator takes as over, each with its status then: it counts again once that is another.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) disregarded: Disregarded,
    /// When an operator last answered something else than that what has failed is to be tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) not_forgiven: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moving {
    pub(super) name: String,
    pub(super) how: Move,
    /// `vm_state` as found: what it must be again, if the move changes it.
    pub(super) found: String,
    pub(super) tries: u32,
    /// When we were about to ask Nova for the newest try.
    pub(super) asked: Timestamp,
    /// When Nova's answer to that came, or was given up. None: nobody knows of one. Older workflows don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) heard: Option<Timestamp>,
    /// Migration records that it had before. Which one is ours is told by these, not by clocks: Nova has its own.
    pub(super) before: Vec<String>,
    /// The host that was named to Nova in the newest try. Such a try does not count: the scheduler may know why it can't be that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<String>,
    /// Nova never heard of the newest try.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unheard: bool,
    /// What was seen in place of an answer to the newest try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lost: Option<String>,
    /// How far the newest try is, in steps, and of how many bytes. It never goes back, though what is left to copy may grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) progress: Option<Told>,
    /// An operator wants the newest try to be stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stop: Option<Stop>,
    pub(super) stage: MoveStage,
}

/// What a question names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    /// Those of them that have failed, each with when its newest try was asked for.
    pub(super) instances: BTreeMap<InstanceId, Timestamp>,
    /// What those were then, as it tells, by Nova's `vm_state`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) states: BTreeMap<InstanceId, String>,
    /// Its text. Releases that did not write it down took every later answer for one to it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) question: String,
    /// On the way back.
    pub(super) undoing: bool,
    /// The newest answer before it to the same question, by when it came.
    pub(super) after: Option<Timestamp>,
    /// Those of them whose live migrations are stopped if that is the answer, each with its uuid.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) stops: BTreeMap<InstanceId, String>,
    /// Unfinished migration records of which nobody knows whether they mean anything, each with its status.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) records: BTreeMap<String, String>,
}

/// Which migration is to be stopped, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stop {
    pub(super) at: Timestamp,
    pub(super) migration: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) percent: u32,
    pub(super) total_bytes: u64,
    /// When it had come so far.
    pub(super) at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case")]
pub(super) enum MoveStage {
    /// About to be asked for; whether Nova was asked is not known.
    Intended,
    /// Nova accepted it.
    Accepted { request: RequestId },
    Landed { host: String },
    Gone,
    Failed { reason: String },
}

impl Moving {
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.stage, MoveStage::Intended | MoveStage::Accepted { .. })
    }

    /// Nothing more is to be found out about it, if it is not on the node.
    pub(super) fn has_left(&self) -> bool {
        matches!(self.stage, MoveStage::Landed { .. } | MoveStage::Gone)
    }
}

impl Moves {
    /// This live migration of this instance is to be stopped, if it is under way still; another try is an operator's to ask for.
    pub(super) fn stop(&mut self, id: &InstanceId, migration: &str, at: Timestamp) {
        if let Some(moving) = self.instances.get_mut(id).filter(|moving| moving.is_under_way() && moving.how == Move::Live) {
            (moving.stop, moving.tries) = (Some(Stop { at, migration: migration.to_owned() }), TRIES_MAX);
        }
    }

    /// Does an operator know how the newest try of `id` failed, and what that has made of it?
    pub(super) fn is_known(&self, id: &InstanceId, moving: &Moving, vm_state: &str) -> bool {
        self.known.get(id) == Some(&moving.asked) && self.known_as.get(id).is_none_or(|then| then == vm_state)
    }

    pub(super) fn report(&self) -> Evacuated {
        let mut report = Evacuated { moved_live: 0, moved_cold: 0, gone: 0 };
        for moving in self.instances.values() {
            match (&moving.stage, moving.how) {
                (MoveStage::Landed { .. }, Move::Live) => report.moved_live += 1,
                (MoveStage::Landed { .. }, Move::Cold) => report.moved_cold += 1,
                (MoveStage::Gone, _) => report.gone += 1,
                (MoveStage::Intended | MoveStage::Accepted { .. } | MoveStage::Failed { .. }, _) => {}
            }
        }
        report
    }
}
