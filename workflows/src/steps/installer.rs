//! What a node's installer says of itself while it works, by way of the daemon: started, failed, installed.
//!
//! Nobody in the provisioning network is trusted, and anybody there can read a boot ticket with its token. So what is said is shown, and may be
//! the reason for a question; it never counts as an installation, and nothing is reset, opened or passed over because of it.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::engine::{Report, State, StepRecord, Step, StepCx, StepError};
use crate::ports::Token;
use crate::updates::OrderedReports;

use super::await_install::Again;
use super::netboot::Reset;
use super::reprovision::Reprovisioned;
use super::{AwaitInstall, Reprovision, StageImage, Staged, order};

/// What an installer can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    Started,
    /// It gives up, and says why.
    Failed,
    /// It has written everything, and is about to restart.
    Installed,
}

impl Word {
    pub const ALL: [Word; 3] = [Word::Started, Word::Failed, Word::Installed];

    pub fn as_str(self) -> &'static str {
        match self {
            Word::Started => "started",
            Word::Failed => "failed",
            Word::Installed => "installed",
        }
    }

    pub fn of(text: &str) -> Option<Word> {
        Word::ALL.into_iter().find(|word| word.as_str() == text)
    }
}

/// The token on the boot ticket of the workflow that stands at `state`, once one is made.
pub fn token_of(state: &State) -> Option<Token> {
    let record = state.record(StageImage::NAME)?;
    let staged: Option<Staged> = read(record.output.as_ref()).or_else(|| left(record));
    Some(staged?.ticket.token)
}

/// After a further reset was meant, the installer that ran until then may go on saying that it gives up; it has the same token. For so long that
/// is not taken for a word of the next one, unless one has started since: what has given up does not start.
// Between a reset's intent and its being sent at most 40 s pass (`carry_out`), and a BMC takes some seconds to acknowledge it and to cut the power.
const OLD_INSTALLER_GONE: Duration = Duration::from_secs(60);

/// The newest reset that was meant, of a node whose installation is still awaited: a word counts from then on.
pub fn newest_reset(state: &State) -> Option<Timestamp> {
    further_reset(state).or_else(|| first_reset(state)).filter(|_| {
        let awaits = state.record(AwaitInstall::NAME);
        awaits.is_none_or(|awaits| awaits.output.is_none())
    })
}

/// May it be the word of an installer that ran before the newest reset? It is to be said again.
pub fn may_be_of_the_old_one(state: &State, report: &Report) -> bool {
    let Some(reset) = further_reset(state).filter(|reset| report.received >= *reset) else { return false };
    let started = |known: &Report| known.about == report.about && known.word == Word::Started.as_str() && known.received >= reset;
    report.word != Word::Started.as_str() && report.received < reset + OLD_INSTALLER_GONE && !state.reports.iter().any(started)
}

fn further_reset(state: &State) -> Option<Timestamp> {
    let again: Option<Again> = left(state.record(AwaitInstall::NAME)?);
    again?.reset.filter(|reset| !reset.never_sent).map(|reset| reset.intended)
}

fn first_reset(state: &State) -> Option<Timestamp> {
    let first = state.record(Reprovision::NAME)?;
    let done: Option<Reprovisioned> = read(first.output.as_ref());
    let meant: Option<Reset> = left(first);
    done.map(|done| done.reset_at).or_else(|| meant.filter(|meant| !meant.never_sent).map(|meant| meant.intended))
}

/// What the step checkpointed last.
fn left<T: serde::de::DeserializeOwned>(record: &StepRecord) -> Option<T> {
    record.checkpoint.as_ref()?.read().ok()
}

fn read<T: serde::de::DeserializeOwned>(kept: Option<&serde_json::Value>) -> Option<T> {
    T::deserialize(kept?).ok()
}

/// Is this the first word of its kind after the newest reset, by the token that was staged? All else is dropped, which bounds what is written
/// down to three lines for each reset.
pub(super) fn is_news(state: &State, report: &Report) -> bool {
    let (Some(token), Some(reset)) = (token_of(state), newest_reset(state)) else { return false };
    let known = |known: &Report| known.about == report.about && known.word == report.word && known.received >= reset;
    token.0 == report.about && Word::of(&report.word).is_some() && report.received >= reset && !may_be_of_the_old_one(state, report) && !state.reports.iter().any(known)
}

/// What was heard of the installer since the newest reset.
pub(super) struct Heard {
    /// How it would be heard. None: nobody listens, by the rules of the order.
    listens: Option<OrderedReports>,
    reset: Option<Timestamp>,
    started: Option<Timestamp>,
    installed: Option<Timestamp>,
    failed: Option<(Timestamp, String)>,
}

impl Heard {
    pub(super) fn of(cx: &StepCx<'_>) -> Result<Heard, StepError> {
        let reset = newest_reset(cx.so_far());
        let said = |word: Word| {
            let newest = cx.reports().iter().find(|report| report.word == word.as_str());
            newest.filter(|report| reset.is_some_and(|reset| report.received >= reset))
        };
        let at = |word| said(word).map(|report| report.received);
        Ok(Heard {
            listens: order(cx)?.rules.installer,
            reset,
            started: at(Word::Started),
            installed: at(Word::Installed),
            failed: said(Word::Failed).map(|report| (report.received, report.text.clone())),
        })
    }

    /// After a further reset.
    pub(super) fn nothing_yet(self) -> Heard {
        Heard { started: None, installed: None, failed: None, ..self }
    }

    /// When it was heard that the installer has given up.
    pub(super) fn gave_up(&self) -> Option<Timestamp> {
        self.failed.as_ref().map(|(received, _)| *received)
    }

    /// The reset after which there should have been a word by now.
    pub(super) fn is_missing(&self, now: Timestamp) -> Option<Timestamp> {
        let (listens, reset) = (self.listens.as_ref()?, self.reset?);
        let nothing = self.started.is_none() && self.installed.is_none() && self.failed.is_none();
        (nothing && now.since(reset) >= Duration::from_millis(listens.deadline_ms)).then_some(reset)
    }

    /// What is waited for, in a few words that stay the same while nothing new is heard.
    pub(super) fn note(&self) -> String {
        match (&self.failed, self.installed, self.started) {
            (Some((at, _)), ..) => format!("its installer has given up at {at}"),
            (None, Some(at), _) => format!("its installer says that it was done at {at}"),
            (None, None, Some(at)) => format!("its installer has started at {at}"),
            (None, None, None) if self.listens.is_some() => "its installer has not reported yet".to_owned(),
            (None, None, None) => "installs".to_owned(),
        }
    }

    /// What an operator is shown of it, one fact a line; nothing where nobody listens.
    pub(super) fn seen(&self) -> Vec<String> {
        let Some(listens) = &self.listens else { return Vec::new() };
        let mut seen = Vec::new();
        if let Some((at, why)) = &self.failed {
            let why = if why.is_empty() { "it did not say why" } else { why };
            seen.push(format!("its installer has given up at {at}: {why}"));
        }
        if let Some(at) = self.started {
            seen.push(format!("its installer has started at {at}"));
        }
        if let Some(at) = self.installed {
            seen.push(format!("its installer says that it was done at {at}"));
        }
        if seen.is_empty() {
            seen.push(format!("no installer of it has reported to {} since its reset: it has not netbooted, or its reports are lost", listens.url));
        }
        seen
    }
}
