//! Has a node rebuilt by the site's own service (Ironic), once, and settles by looking whether that was begun.
//!
//! The service refuses a second rebuild only while the first one goes on. One whose answer was lost may be over by the time somebody
//! looks, and would then be done again. So every order has a token of its own; the intent is written down first, then the order on the
//! service's record, and then the rebuild is asked for. What became of it is read from that record: it carries the token, and its state has changed
//! since.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::confirm_empty::{guests, guests_beside, objections};
use super::netboot::{LOOK_IS_GOOD_FOR, machine_by_its_word};
use super::{needed, order};
use crate::chance;
use crate::clock::Timestamp;
use crate::engine::{AnswerEffect, Question, StepCx, StepError};
use crate::ports::{Facts, Machine, PortError, PortErrorKind, RebuildOrder, RebuildRecord, RebuildState, Token};

/// A rebuild of which the record shows nothing this long after it was meant was never begun.
// 30 s until it is asked for, another 30 s in which a request is given up by default (the service changes its record before it answers), and twice
// that as room for one that is on its way. Were it still to come, it would be refused or leave another token's mark.
const REBUILD_NEVER_BEGAN: Duration = Duration::from_secs(180);

/// How often a record is looked at that is locked, or says nothing yet.
pub(super) const RECORD_POLL: Duration = Duration::from_secs(10);

/// What a step that has nodes rebuilt writes down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// The newest one that was meant to happen.
    pub(super) rebuild: Option<Intent>,
    /// When the operator was asked about what came of the one before.
    pub(super) asked: Option<Timestamp>,
    /// When the operator wanted another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) wanted: Option<Timestamp>,
    /// What that was about: a consent is good for nothing else.
    pub(super) asked_about: Option<String>,
    /// Since when the node answers with something else than what was to be installed.
    pub(super) other_since: Option<Timestamp>,
}

/// A rebuild that was meant to happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Intent {
    pub(super) order: RebuildOrder,
    /// The node's boot id before; None if it did not answer.
    pub(super) boot_id_before: Option<String>,
    /// What the record said of its last change of state before.
    changed_before: Option<String>,
    pub(super) intended: Timestamp,
    answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    /// None yet, or it was lost.
    None,
    Accepted,
    /// It was not begun, they say.
    NotBegun,
}

/// What a node says of itself.
pub(super) enum Word {
    Facts(Box<Facts>),
    /// It does not answer.
    Silent,
    /// Something answers, and can't be told to be the node: why.
    Stranger(String),
}

pub(super) async fn word_of(cx: &StepCx<'_>, node: &NodeName) -> Result<Word, StepError> {
    match cx.ports.facts.facts(node).await {
        Ok(facts) => Ok(Word::Facts(Box::new(facts))),
        Err(error) => match error.kind {
            PortErrorKind::Unavailable => Ok(Word::Silent),
            PortErrorKind::Refused { reason } | PortErrorKind::Garbled { reason } => Ok(Word::Stranger(reason)),
            PortErrorKind::OutcomeUnknown | PortErrorKind::NotFound | PortErrorKind::Denied { .. } => Err(error.into()),
        },
    }
}

/// What became of a rebuild.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Began,
    /// It can't be told yet; if it stays as it is, it will be `until` then.
    TooEarly { until: Timestamp },
    /// It was never begun, and may be asked for again.
    NeverBegan,
}

/// What is told meanwhile.
pub(super) fn looks_for_the_rebuild(until: Timestamp) -> String {
    format!("looks whether the rebuild has begun; only at {until} is it certain that it has not")
}

/// What speaks against rebuilding a node with this record. It may have failed if the order on it is ours.
pub(super) fn unfit(cx: &StepCx<'_>, node: &NodeName, record: &RebuildRecord) -> Vec<String> {
    let mut unfit = record.objections.clone();
    let ours = record.order.as_ref().is_some_and(|token| token.0.starts_with(&our_tokens(cx)));
    let failed_ours = record.state == RebuildState::Failed && ours;
    if record.state != RebuildState::Installed && !failed_ours {
        unfit.push(format!("{node} is `{}`, and not by this order", record.called));
        unfit.extend(record.last_error.as_ref().map(|error| format!("its last error: {error}")));
    }
    unfit
}

/// Looks what became of `intent`.
pub(super) async fn settle(cx: &StepCx<'_>, node: &NodeName, intent: &Intent) -> Result<Settled, StepError> {
    if intent.answer == Answer::Accepted {
        return Ok(Settled::Began);
    }
    // Also where it is said not to have begun: a proxy that repeats requests gets a no for the second one.
    let record = cx.ports.rebuilder.record(node).await?;
    // It is asked for only once the order is on the record.
    if record.order.as_ref() == Some(&intent.order.token) && record.changed != intent.changed_before {
        return Ok(Settled::Began);
    }
    let until = intent.intended + REBUILD_NEVER_BEGAN;
    Ok(if intent.answer == Answer::None && cx.now() < until { Settled::TooEarly { until } } else { Settled::NeverBegan })
}

/// What came of asking for a rebuild.
pub(super) enum Asked {
    Began(Box<Intent>),
    /// Not yet, and why: somebody works on the node just now, or it does not tell what runs on it.
    Waits(String),
}

/// Has `node` rebuilt. What is meant, and what is known of it, is written down beside the rest of `kept`.
pub(super) async fn rebuild(cx: &StepCx<'_>, node: &NodeName, kept: Kept) -> Result<Asked, StepError> {
    let guests = match guests(cx, node).await? {
        Ok(guests) => guests,
        Err(note) => return Ok(Asked::Waits(note)),
    };
    // As the guests: once, and first.
    let machine = machine_by_its_word(cx, node).await;
    let record = cx.ports.rebuilder.record(node).await?;
    let mut unfit = unfit(cx, node, &record);
    if let Machine::Of(other) = machine {
        unfit.push(format!("by its own word, {node} has the `mac` of {other}: either `mac` or `ssh_address` of the two is wrong in the configuration, and then perhaps `ironic.node`, too"));
    }
    last_look(cx, node, &guests, unfit).await?;
    if let Some(by) = record.locked_by {
        return Ok(Asked::Waits(format!("waits for {by}, who has it locked")));
    }
    let boot_id_before = match word_of(cx, node).await? {
        Word::Facts(facts) => Some(facts.boot_id),
        // The token is fresh: it is enough to tell the new system by.
        Word::Silent | Word::Stranger(_) => None,
    };
    let order = fresh_order(cx, record.id)?;
    cx.guard().await?;
    let intended = cx.just_now().await;
    let mut intent = Intent { order, boot_id_before, changed_before: record.changed, intended, answer: Answer::None };
    let save = async |intent: &Intent, note: String| cx.save(&Kept { rebuild: Some(intent.clone()), ..kept.clone() }, note).await;
    save(&intent, format!("about to have it rebuilt, token {}", intent.order.token)).await?;
    let answer = carry_out(cx, node, &intent).await;
    intent.answer = match &answer {
        Ok(()) => Answer::Accepted,
        Err(Stopped::ByUs(_)) => Answer::NotBegun,
        Err(Stopped::ByThem(error)) => match error.kind {
            PortErrorKind::OutcomeUnknown | PortErrorKind::Garbled { .. } => Answer::None,
            PortErrorKind::Unavailable | PortErrorKind::Refused { .. } | PortErrorKind::NotFound | PortErrorKind::Denied { .. } => Answer::NotBegun,
        },
    };
    match answer {
        Ok(()) => {
            save(&intent, "the rebuild was accepted".to_owned()).await?;
            Ok(Asked::Began(Box::new(intent)))
        }
        // Nothing can be written any more, and nothing was begun: the next one finds that out.
        Err(Stopped::ByUs(error)) if error.is_lost() => Err(error),
        Err(stopped) => {
            save(&intent, if intent.answer == Answer::NotBegun { "not begun" } else { "its answer was lost" }.to_owned()).await?;
            Err(match stopped {
                Stopped::ByUs(error) => error,
                Stopped::ByThem(error) => refused(node, error),
            })
        }
    }
}

/// Why a rebuild was not begun, as far as is known.
enum Stopped {
    ByUs(StepError),
    ByThem(PortError),
}

impl From<StepError> for Stopped {
    fn from(error: StepError) -> Stopped {
        Stopped::ByUs(error)
    }
}

/// Carries out what was meant: the order on the record, a last look, and the rebuild.
async fn carry_out(cx: &StepCx<'_>, node: &NodeName, intent: &Intent) -> Result<(), Stopped> {
    cx.guard().await?;
    match cx.ports.rebuilder.order(node, &intent.order).await {
        Ok(()) => {}
        // Whether it stands there or not: nothing is begun by it.
        Err(error) => return Err(Stopped::ByUs(refused(node, error))),
    }
    let record = cx.ports.rebuilder.record(node).await.map_err(StepError::from)?;
    let mut unfit = unfit(cx, node, &record);
    if record.id != intent.order.id || record.order.as_ref() != Some(&intent.order.token) || record.changed != intent.changed_before {
        unfit.push(format!("somebody else has had its record changed meanwhile: it is `{}`", record.called));
    }
    last_look(cx, node, &BTreeSet::new(), unfit).await?;
    // The last thing before what can't be taken back: is the workflow still ours?
    cx.guard().await?;
    // Last of all, because the guard too may have waited for the store.
    if cx.just_now().await.since(intent.intended) > LOOK_IS_GOOD_FOR {
        return Err(StepError::retry(format!("too much time has passed since {node} was made ready for its rebuild")).into());
    }
    cx.ports.rebuilder.rebuild(node, &intent.order).await.map_err(Stopped::ByThem)
}

/// How the tokens of this workflow begin.
fn our_tokens(cx: &StepCx<'_>) -> String {
    format!("{}-", cx.id)
}

fn fresh_order(cx: &StepCx<'_>, id: String) -> Result<RebuildOrder, StepError> {
    let token = Token(format!("{}{}-{:08x}", our_tokens(cx), cx.fence().0, chance::draw(|random| random.next_u32())));
    let image = needed(order(cx)?.image.ironic, "the order")?;
    Ok(RebuildOrder { token, id, source: image.source, sha256: image.sha256 })
}

/// Asks the operator unless the node is closed and empty, and may be rebuilt. `guests` run there, by its own word.
async fn last_look(cx: &StepCx<'_>, node: &NodeName, guests: &BTreeSet<String>, unfit: Vec<String>) -> Result<(), StepError> {
    let mut against = objections(cx, node).await?;
    against.extend(guests_beside(guests, &against));
    if cfg!(feature = "bug-no-last-look") {
        against.clear();
    }
    against.extend(unfit);
    if against.is_empty() {
        return Ok(());
    }
    let mut question = Question::new(format!("{node} can't be rebuilt as it is: what now?"));
    for objection in against {
        question = question.seen(objection);
    }
    Err(StepError::ask(with_answers(question)))
}

/// Their no is a question, in their own words; anything else is tried again.
fn refused(node: &NodeName, error: PortError) -> StepError {
    match &error.kind {
        PortErrorKind::Refused { reason } | PortErrorKind::Denied { reason } => {
            StepError::ask(with_answers(Question::new(format!("the rebuild of {node} was refused: what now?")).seen(reason.clone())))
        }
        PortErrorKind::Unavailable
        | PortErrorKind::OutcomeUnknown
        | PortErrorKind::NotFound
        | PortErrorKind::Garbled { .. } => error.into(),
    }
}

/// The answers where a rebuild did not come about, or not well.
pub(super) fn with_answers(question: Question) -> Question {
    question
        .answer("retry", AnswerEffect::Retry, "looks again, and has the node rebuilt if it is closed and empty then and nothing speaks against it")
        .answer("leave", AnswerEffect::Leave, "ends here; the node stays closed, and Ironic's record of it as it is now")
}
