//! The names of all keys.

use super::{StoreError, WorkflowId, layout};
use crate::store::Queue;

/// | key | type | holds |
/// |---|---|---|
/// | `inbox:<id>` | list | unread signals |
/// | `held:<id>` | set | names of the locks that a workflow holds |
/// | `children:<id>` | zset | its children, by creation |
/// | `due:<queue>` | zset | workflow -> when it may next be looked at |
/// | `bell:<queue>` | list | one element for each ring |
/// | `hand:<session>` | string | another value each time that somebody changes what this store holds ([`super::direct`]) |
/// | `touched` | counter | how often that was |
/// | `budget:<name>` | hash | member -> workflow |
/// | `budget-alone:<name>` | set | members beside which nobody becomes one |
/// | `wait:lock:<name>`, `wait:budget:<name>` | zset | who waits, since when |
/// | the fields below | | |
///
/// What a call needs of all its workflows is read with one command, and written with one: hence one hash of all heads, and not one of each
/// workflow. Locks, budgets and ledgers are few: one hash for all locks (and one for all ledgers) lists them without a scan.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) prefix: String,
    /// Counter: the newest fencing token.
    fence: String,
    /// Zset: workflow -> when its holder is presumed dead.
    pub(super) lease: String,
    /// Stream of journal entries.
    pub(super) events: String,
    /// Hash: status -> open workflows.
    pub(super) counts: String,
    /// Zset: open workflows by creation.
    pub(super) open: String,
    /// Zset: ended workflows by creation.
    pub(super) ended: String,
    /// Zset: ended workflows by the time at which they are swept.
    pub(super) expiry: String,
    /// Hash: lock -> workflow.
    pub(super) locks: String,
    /// Set: names of budgets that have members.
    pub(super) budgets: String,
    /// Hash: schedule -> the last tick judged.
    pub(super) ticks: String,
    /// Hash: workflow -> its head ([`super::layout`]).
    pub(super) heads: String,
    /// Hash: workflow -> its document ([`super::layout`]).
    pub(super) documents: String,
    /// Hash: `<workflow>:<place from 1>` -> journal entries of one commit, the first of which has that place ([`super::entries`]).
    pub(super) journal: String,
    /// Hash: workflow -> the state in which it last gave up its lease.
    pub(super) states: String,
    /// Hash: workflow -> who has it, or had it at its end ([`super::layout`]).
    pub(super) holders: String,
    /// Hash: the store's name and layout; when and by whom it was last accepted; looks of each witness, and at which process
    /// of Redis the last one was.
    pub(super) store: String,
    /// Counter: writes worth remembering. Below zero while the store is halted. Named by the layout, so that a program which knows
    /// another one takes the store for emptied, and keeps off it.
    pub(super) revision: String,
    /// Hash: why the store is halted.
    pub(super) halt: String,
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a prefix: it needs one pair of braces with something in between, and no spaces")]
struct InvalidPrefix(String);

impl Keys {
    pub(super) fn new(prefix: &str) -> Result<Keys, StoreError> {
        let tag = prefix.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        if tag.is_none_or(|(tag, rest)| tag.is_empty() || rest.contains(['{', '}'])) || prefix.contains(char::is_whitespace) {
            return Err(StoreError::Unusable {
                operation: "name the keys in Redis",
                remedy: "write a prefix such as `{ta}`".to_owned(),
                source: Box::new(InvalidPrefix(prefix.to_owned())),
            });
        }
        let key = |name: &str| format!("{prefix}:{name}");
        Ok(Keys {
            prefix: prefix.to_owned(),
            fence: key("fence"),
            lease: key("lease"),
            events: key("events"),
            counts: key("counts"),
            open: key("idx:open"),
            ended: key("idx:ended"),
            expiry: key("expiry"),
            locks: key("locks"),
            budgets: key("budgets"),
            ticks: key("ticks"),
            heads: key("heads"),
            documents: key("documents"),
            journal: key("journal"),
            states: key("states"),
            holders: key("holders"),
            store: key("store"),
            revision: key(&format!("revision:{}", layout::LAYOUT)),
            halt: key(&format!("halt:{}", layout::LAYOUT)),
        })
    }

    /// The keys that every script is given, in the order in which `common.lua` names them.
    pub(super) fn shared(&self) -> [&str; 16] {
        [
            &self.fence,
            &self.lease,
            &self.events,
            &self.counts,
            &self.open,
            &self.ended,
            &self.expiry,
            &self.locks,
            &self.budgets,
            &self.ticks,
            &self.heads,
            &self.documents,
            &self.journal,
            &self.states,
            &self.holders,
            // The last one, whatever comes before: `gate.lua` has nothing else to go by.
            &self.revision,
        ]
    }

    /// The keys of the scripts that tell how the store is.
    pub(super) fn watched(&self) -> [&str; 3] {
        [&self.store, &self.revision, &self.halt]
    }

    /// The field of the journal entries of one commit, the first of which has place `first`.
    pub(super) fn entries(id: &str, first: u64) -> String {
        format!("{id}:{first}")
    }

    pub(super) fn due(&self, queue: &Queue) -> String {
        format!("{}:due:{queue}", self.prefix)
    }

    pub(super) fn bell(&self, queue: &Queue) -> String {
        format!("{}:bell:{queue}", self.prefix)
    }

    /// What is touched when somebody changes the head of a workflow that the store of that `session` holds.
    pub(super) fn hand(&self, session: &str) -> String {
        format!("{}:hand:{session}", self.prefix)
    }

    pub(super) fn inbox(&self, id: &WorkflowId) -> String {
        format!("{}:inbox:{id}", self.prefix)
    }

    pub(super) fn children(&self, id: &WorkflowId) -> String {
        format!("{}:children:{id}", self.prefix)
    }

    pub(super) fn budget(&self, name: &str) -> String {
        format!("{}:budget:{name}", self.prefix)
    }
}
