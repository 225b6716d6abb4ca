//! Where a workflow stands, from its journal alone: there is no other truth.

use std::collections::VecDeque;

use super::{BadEntry, Entry, IllegalTransition, State, check_chain};
use crate::store::{Claimed, Document, PAGE_MAX, Store, StoreError, StoredEntry};

/// Ids of signals that are remembered. A client repeats within seconds; more signals than this in
/// between would be a flood.
const SIGNALS_REMEMBERED: usize = 64;

/// Signals that were followed, newest last, to recognise a second delivery.
#[derive(Debug, Clone, Default)]
pub(super) struct SignalsSeen(VecDeque<String>);

impl SignalsSeen {
    /// False if the signal was seen before.
    pub(super) fn remember(&mut self, id: &str) -> bool {
        if self.0.iter().any(|seen| seen == id) && !cfg!(feature = "bug-signal-followed-twice") {
            return false;
        }
        self.0.push_back(id.to_owned());
        if self.0.len() > SIGNALS_REMEMBERED {
            self.0.pop_front();
        }
        true
    }
}

/// What a journal folds to.
pub(super) struct Replayed {
    pub(super) state: State,
    pub(super) signals_seen: SignalsSeen,
}

/// A journal, or what is kept beside it, that can't be right. Nobody guesses what it may have been.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("its journal is empty")]
    Empty,
    #[error(transparent)]
    Entry(#[from] BadEntry),
    #[error("entry {seq} of its journal is impossible")]
    Impossible {
        seq: u64,
        #[source]
        source: IllegalTransition,
    },
    #[error("what is kept beside its journal says {says}, and its journal {is}")]
    Contradicted { says: String, is: String },
    #[error("{0}")]
    Unreadable(String),
    #[error("{tries} workers in a row lost it without a single commit: whoever takes it dies, or hangs")]
    Deadly { tries: u32 },
}

impl Damage {
    /// The error and its causes, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    }
}

/// Checks every seal of a whole journal, and folds it.
pub fn fold(journal: &[StoredEntry]) -> Result<State, Damage> {
    State::of_entries(&check_chain(None, 1, journal)?)
}

impl State {
    /// Where the workflow of `document` stands: as it is kept beside the journal if that is still true, else folded from the journal.
    pub async fn load(store: &dyn Store, document: &Document) -> Result<Result<State, Damage>, StoreError> {
        if let Ok(Some(state)) = State::of(document) {
            return Ok(Ok(state));
        }
        let mut journal = Vec::new();
        while (journal.len() as u64) < document.seq {
            let page = store.journal(&document.id, journal.len() as u64 + 1, PAGE_MAX).await?;
            if page.is_empty() {
                break;
            }
            journal.extend(page);
        }
        // It may have grown since `document` was read.
        journal.truncate(usize::try_from(document.seq).unwrap_or(usize::MAX));
        Ok(fold(&journal))
    }

    /// The state after `entries`, the first of which began the workflow.
    pub fn of_entries(entries: &[Entry]) -> Result<State, Damage> {
        let (first, rest) = entries.split_first().ok_or(Damage::Empty)?;
        let impossible = |seq, source| Damage::Impossible { seq, source };
        let state = State::begin(&first.event).map_err(|source| impossible(first.seq, source))?;
        rest.iter().try_fold(state, |state, entry| {
            state.apply(entry.at, &entry.event).map_err(|source| impossible(entry.seq, source))
        })
    }
}

/// Leases in a row that may expire without a single commit, before nobody takes the workflow any more. A deployment that
/// kills workers again and again comes to a handful; a step whose worker dies of it would go on for ever.
const TRIES_MAX: u32 = 20;

/// What was claimed, folded from its journal; every seal checked, and the document held against it.
pub(super) fn replay(claimed: &Claimed) -> Result<Replayed, Damage> {
    let document = &claimed.document;
    if let Some(damage) = &claimed.damage {
        return Err(Damage::Unreadable(damage.clone()));
    }
    if claimed.tries >= TRIES_MAX {
        return Err(Damage::Deadly { tries: claimed.tries });
    }
    let entries = check_chain(None, 1, &claimed.journal)?;
    let head = claimed.journal.last().ok_or(Damage::Empty)?;
    if entries.len() as u64 != document.seq || head.digest != document.head {
        let says = format!("that it has {} entries, the newest of them {}", document.seq, document.head);
        return Err(Damage::Contradicted { says, is: format!("has {}, the newest {}", entries.len(), head.digest) });
    }
    let state = State::of_entries(&entries)?;
    if state.kind != document.kind || state.target != document.target || state.parent != document.parent {
        let says = format!("`{}` of {}", document.kind, document.target);
        return Err(Damage::Contradicted { says, is: format!("`{}` of {}", state.kind, state.target) });
    }
    let mut signals_seen = SignalsSeen::default();
    for signal in entries.iter().filter_map(|entry| entry.follows.as_deref()) {
        signals_seen.remember(signal);
    }
    Ok(Replayed { state, signals_seen })
}
