//! Takes what installers say of themselves, and hands it to the workflow that renews their node.
//!
//! Whoever says it is not known, so a report costs at most some reads unless it names the very token that is staged, says something that
//! has not been said since the newest reset, and the workflow still waits for it: then it is kept as a signal, once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Timestamp;
use crate::engine::{Course, Registry, Report, Signal, SignalKind, State};
use crate::steps::installer::{Word, may_be_of_the_old_one, newest_reset, token_of};
use crate::store::{Signalled, Store, StoreError, WorkflowId};

/// Longest reason that is kept, in characters: some lines of an installer's console. It goes into a headline and a question.
pub const REASON_CHARS_MAX: usize = 400;
/// Longest token that is looked at. A boot ticket has none that is longer.
const TOKEN_CHARS_MAX: usize = 128;
/// Reports that are remembered to have been kept, so that a repetition is not kept beside them while no worker reads them. Three of each node that is
/// being renewed count; only what names a staged token gets in here.
const REMEMBERED_MAX: usize = 4_096;
/// Who is named as the author of such a signal.
const BY: &str = "installer";

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is kept: the workflow will read it.
    Kept,
    /// It says nothing new, or nothing that matters now. Nothing was written.
    Nothing,
    /// It may be of the installer that ran before the newest reset. Nothing was written, and it is to be said again.
    Early,
    /// No workflow that is open has staged such a token. Nothing was written.
    Unknown,
    /// The workflow has too many unread signals.
    Full,
}

/// What can't be read of the store.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("the report could not be kept")]
    Store(#[from] StoreError),
    #[error("the report can't be written")]
    Written(#[from] serde_json::Error),
}

/// Takes reports, from as many installers at once as like.
pub struct ReportDesk {
    store: Arc<dyn Store>,
    registry: Registry,
    /// By token, word and reset.
    kept: Mutex<BTreeSet<(String, Word, Timestamp)>>,
}

impl ReportDesk {
    pub fn new(store: Arc<dyn Store>, registry: Registry) -> ReportDesk {
        ReportDesk { store, registry, kept: Mutex::default() }
    }

    /// On return of [`Taken::Kept`] the workflow will read it. Saying it again is harmless.
    pub async fn take(&self, token: &str, word: Word, reason: &str) -> Result<Taken, ReportError> {
        let Some(id) = workflow_of(token) else { return Ok(Taken::Unknown) };
        let Some(document) = self.store.load(&id).await? else { return Ok(Taken::Unknown) };
        if document.status.is_ended() {
            return Ok(Taken::Unknown);
        }
        // One that is damaged is a person's to look at.
        let Ok(mut state) = State::load(&*self.store, &document).await? else { return Ok(Taken::Unknown) };
        if matches!(state.course, Course::Ended { .. }) || token_of(&state).is_none_or(|staged| staged.0 != token) {
            return Ok(Taken::Unknown);
        }
        let report = Report { about: token.to_owned(), word: word.as_str().to_owned(), text: shown(reason), received: self.store.now().await? };
        // That one has started may be kept, and not read yet.
        if let Some(reset) = newest_reset(&state).filter(|reset| self.kept().contains(&(token.to_owned(), Word::Started, *reset))) {
            state.reports.push(Report { about: token.to_owned(), word: Word::Started.as_str().to_owned(), text: String::new(), received: reset });
        }
        let heard = self.registry.get(&document.kind).is_some_and(|definition| definition.hears(&state, &report));
        if may_be_of_the_old_one(&state, &report) {
            return Ok(Taken::Early);
        }
        let (true, Some(reset)) = (heard, newest_reset(&state)) else { return Ok(Taken::Nothing) };
        let key = (token.to_owned(), word, reset);
        if self.kept().contains(&key) {
            return Ok(Taken::Nothing);
        }
        // Who says it may hang up meanwhile, and this ends right here: only what is kept is remembered.
        Ok(match self.signal(&id, report).await? {
            Signalled::Kept => {
                self.remember(key);
                Taken::Kept
            }
            Signalled::Missing | Signalled::Ended => Taken::Unknown,
            Signalled::Full => Taken::Full,
        })
    }

    async fn signal(&self, id: &WorkflowId, report: Report) -> Result<Signalled, ReportError> {
        let Report { about, word, text, received } = report;
        let signal = Signal {
            id: format!("{BY}/{word}/{}", received.millis()),
            at: received,
            by: BY.to_owned(),
            kind: SignalKind::Report { about, word, text },
        };
        Ok(self.store.signal(id, signal.stored()?).await?)
    }

    fn kept(&self) -> MutexGuard<'_, BTreeSet<(String, Word, Timestamp)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, key: (String, Word, Timestamp)) {
        let mut kept = self.kept();
        if kept.len() >= REMEMBERED_MAX {
            // At worst something is kept twice, and dropped by the worker that reads it.
            kept.clear();
        }
        kept.insert(key);
    }
}

/// The workflow that staged `token`, which is made of its id, a fence and a random number.
fn workflow_of(token: &str) -> Option<WorkflowId> {
    if token.len() > TOKEN_CHARS_MAX {
        return None;
    }
    let (rest, random) = token.rsplit_once('-')?;
    let (id, fence) = rest.rsplit_once('-')?;
    let is_made = random.len() == 8 && random.chars().all(|c| c.is_ascii_hexdigit()) && fence.parse::<u64>().is_ok();
    if is_made { id.parse().ok() } else { None }
}

/// What an installer wrote, made fit to be shown: one line, no control characters, none that turn the direction of what follows, bounded.
fn shown(reason: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    let one_line: String = reason.chars().filter(|c| !turns(*c)).map(|c| if c.is_control() || c.is_whitespace() { ' ' } else { c }).collect();
    let words = one_line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    if words.chars().count() <= REASON_CHARS_MAX {
        return words;
    }
    let begins: String = words.chars().take(REASON_CHARS_MAX - 1).collect();
    format!("{begins}\u{2026}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_tells_whose_it_is_and_nothing_else_does() {
        let whose = |token: &str| workflow_of(token).map(|id| id.as_str().to_owned());
        assert_eq!(whose("node-os-rollout-abc.gpu-01-17-00c0ffee").as_deref(), Some("node-os-rollout-abc.gpu-01"));
        for wrong in ["", "-", "--", "gpu-01", "a-1-c0ffee", "a-b-00c0ffee", "a b-1-00c0ffee", "-1-00c0ffee", "../x-1-00c0ffee", &format!("{}-1-00c0ffee", "a".repeat(128))] {
            assert_eq!(whose(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_an_installer_wrote_is_one_bounded_line_without_tricks() {
        assert_eq!(shown("could not\n\tfetch \u{1b}[31mimage\u{0}\r\n"), "could not fetch [31mimage");
        assert_eq!(shown("\u{202e}abc\u{200b}"), "abc");
        assert_eq!(shown(" \n "), "");
        let long = shown(&"ä".repeat(10_000));
        assert_eq!((long.chars().count(), long.chars().last()), (REASON_CHARS_MAX, Some('\u{2026}')));
    }
}
