//! What is wrong with a store that can't do what it should, in words that lead to a remedy.

use std::error::Error;

use super::{StoreError, redis};

/// Each is an alarm of its own, with a page in `docs/errors/`. All of them pass, by themselves or because somebody mends something
/// outside of Turnaround, and then everything goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// Nobody is there: refused, cut off, no such name, no primary.
    Unreachable,
    /// Somebody is there and does not answer in time.
    Silent,
    /// It reads its file, after a start.
    Loading,
    /// It can't write its file.
    DiskFull,
    /// It may not take more memory.
    MemoryFull,
    /// It is not the primary, or not any more.
    Demoted,
    /// Too few replicas listen.
    FewReplicas,
    /// A script of somebody keeps it busy.
    Busy,
    /// It has lost something: see [`super::high_water`].
    Halted,
    /// It can't be used as configured: wrong password, no rights, not durable.
    Unusable,
    /// What it holds or says makes no sense.
    Damaged,
}

impl Trouble {
    pub const ALL: [Trouble; 11] = [
        Trouble::Unreachable,
        Trouble::Silent,
        Trouble::Loading,
        Trouble::DiskFull,
        Trouble::MemoryFull,
        Trouble::Demoted,
        Trouble::FewReplicas,
        Trouble::Busy,
        Trouble::Halted,
        Trouble::Unusable,
        Trouble::Damaged,
    ];

    /// The code that people and programs know it by; also the name of its page.
    pub fn code(self) -> &'static str {
        match self {
            Trouble::Unreachable => "store-unreachable",
            Trouble::Silent => "store-silent",
            Trouble::Loading => "store-loading",
            Trouble::DiskFull => "store-disk-full",
            Trouble::MemoryFull => "store-memory-full",
            Trouble::Demoted => "store-demoted",
            Trouble::FewReplicas => "store-few-replicas",
            Trouble::Busy => "store-busy",
            Trouble::Halted => "store-halted",
            Trouble::Unusable => "store-unusable",
            Trouble::Damaged => "store-damaged",
        }
    }

    /// What is the matter, in one line.
    pub fn means(self) -> &'static str {
        match self {
            Trouble::Unreachable => "Redis can't be reached",
            Trouble::Silent => "Redis does not answer in time",
            Trouble::Loading => "Redis has started and still reads its file",
            Trouble::DiskFull => "Redis can't write its file: its disk is full or broken",
            Trouble::MemoryFull => "Redis may not use more memory (`maxmemory`)",
            Trouble::Demoted => "Redis is a replica just now, which takes no writes",
            Trouble::FewReplicas => "Redis takes no writes, because too few replicas listen",
            Trouble::Busy => "Redis is kept busy by somebody's script",
            Trouble::Halted => "something is missing from the store, and a person must look before anything goes on",
            Trouble::Unusable => "Redis can't be used as it is configured",
            Trouble::Damaged => "what Redis holds or answers makes no sense",
        }
    }

    /// What to do, in one line; the page has more.
    pub fn remedy(self) -> &'static str {
        match self {
            Trouble::Unreachable => "see that Redis runs, and that the network to it is up; it is tried again each second",
            Trouble::Silent => "see whether its host hangs, its disk is slow, or the network drops packets; it is tried again each second",
            Trouble::Loading => "wait: a gigabyte takes about ten seconds",
            Trouble::DiskFull => "make room on its disk; it goes on by itself then",
            Trouble::MemoryFull => "raise `maxmemory` (`CONFIG SET maxmemory ..`), or lower `store.keep_finished`; it goes on by itself then",
            Trouble::Demoted => "make it the primary again, or point `[store]` at the primary, best by Sentinel",
            Trouble::FewReplicas => "bring the replicas back, or lower `min-replicas-to-write`",
            Trouble::Busy => "find whose script it is (`redis-cli SLOWLOG GET`) and end it with `SCRIPT KILL`; Turnaround's take milliseconds",
            Trouble::Halted => "`turnaround status` tells what is missing; once you have looked: `turnaround store accept`",
            Trouble::Unusable => "mend the configuration or the rights of its user",
            Trouble::Damaged => "put the last good backup back, or look for what else writes to these keys",
        }
    }
}

impl StoreError {
    /// What kind of trouble it tells of.
    pub fn trouble(&self) -> Trouble {
        match self {
            StoreError::Unavailable { source, .. } => {
                let mut cause: Option<&(dyn Error + 'static)> = Some(source.as_ref());
                while let Some(error) = cause {
                    if let Some(trouble) = redis::trouble(error) {
                        return trouble;
                    }
                    cause = error.source();
                }
                Trouble::Unreachable
            }
            // Nobody who could raise an alarm is ever told so: a daemon that looks ends it.
            StoreError::Unwatched { .. } => Trouble::Unreachable,
            StoreError::Halted { .. } => Trouble::Halted,
            StoreError::NotDurable { .. } | StoreError::Unusable { .. } => Trouble::Unusable,
            StoreError::Damaged { .. } => Trouble::Damaged,
        }
    }
}
