//! Awaits the node's own word that it was rebuilt by this attempt.

use std::time::Duration;

use async_trait::async_trait;
use tracing::warn;
use turnaround_config::NodeName;

use super::await_install::InstalledBoot;
use super::confirm_empty::unsettled_again;
use super::rebuilding::{Asked, Intent, Kept, Settled, Word, looks_for_the_rebuild, rebuild, settle, word_of};
use super::{Reason, Rebuild, needed, order, queues};
use crate::engine::{AnswerEffect, Observed, PastDeadline, Policy, Progress, Question, Step, StepCx, StepError};
use crate::ports::{PortErrorKind, RebuildRecord, RebuildState};
use crate::store::Queue;

/// A node that answers without our mark, or still as before, may get there yet for this long.
// cloud-init writes files before it lets the ssh server start (its `cloud-init.service` is ordered before it); an image may order that
// otherwise, and then it takes seconds.
const MARK_COMES_WITHIN: Duration = Duration::from_secs(120);

/// Done when Ironic is done with it, and the node itself has booted since, and carries the token of this attempt and the digest of the image; and Ironic
/// refuses to rebuild it until the next order.
/// Ironic's word alone proves nothing: an old disk boots too.
pub struct AwaitRebuild;

enum Seen {
    /// Renewed; whether a rebuild that comes late would be refused, and the record's id.
    Ours { installed: InstalledBoot, protected: bool, id: String },
    /// Not yet, and why.
    NotYet(String),
    /// It answers, but with something else than what was to be installed.
    Other(Trouble),
    /// It failed, or somebody else has taken it in hand.
    Bad(Trouble),
}

/// What the operator is asked, and what about: another state of the record or another boot is another question.
struct Trouble {
    question: Question,
    about: String,
}

fn newest(cx: &StepCx<'_>, kept: &Kept) -> Result<Intent, StepError> {
    match &kept.rebuild {
        Some(intent) => Ok(intent.clone()),
        None => Ok(needed(cx.output::<Rebuild>()?, Rebuild::NAME)?.intent),
    }
}

async fn look(cx: &StepCx<'_>, intent: &Intent) -> Result<Seen, StepError> {
    let node = order(cx)?.node;
    let record = cx.ports.rebuilder.record(&node).await?;
    let changed = record.changed.clone().unwrap_or_default();
    let trouble = |question: Question| Trouble { question, about: format!("{} {changed}", record.called) };
    if record.order.as_ref() != Some(&intent.order.token) {
        let carries = record.order.as_ref().map_or_else(|| "no order of ours".to_owned(), |token| format!("the order {token}"));
        let question = Question::new(format!("Ironic's record of {node} is not about this rebuild any more: what now?"));
        return Ok(Seen::Bad(trouble(question.seen(format!("it is `{}`, and carries {carries}", record.called)))));
    }
    match record.state {
        RebuildState::Working => return Ok(Seen::NotYet(record.called.clone())),
        RebuildState::Failed => {
            let error = record.last_error.clone().unwrap_or_else(|| "it does not say why".to_owned());
            let question = Question::new(format!("the rebuild of {node} has failed: what now?"));
            return Ok(Seen::Bad(trouble(question.seen(format!("Ironic has it as `{}`", record.called)).seen(error))));
        }
        RebuildState::Other => {
            let question = Question::new(format!("somebody else does something with {node} in Ironic: what now?"));
            return Ok(Seen::Bad(trouble(question.seen(format!("Ironic has it as `{}`", record.called)))));
        }
        RebuildState::Installed => {}
    }
    if let Some(by) = &record.locked_by {
        return Ok(Seen::NotYet(format!("locked by {by}")));
    }
    let something_else = || Question::new(format!("{node} runs something else than what was to be installed: what now?")).because(Reason::OtherSystem, "Ironic says that it is done");
    let facts = match word_of(cx, &node).await? {
        Word::Facts(facts) => facts,
        Word::Silent => return Ok(Seen::NotYet("boots".to_owned())),
        // A new system has a new host key, which its installation mark would have vouched for.
        Word::Stranger(why) => return Ok(Seen::Other(trouble(something_else().seen(why)))),
    };
    let has_booted = intent.boot_id_before.as_ref() != Some(&facts.boot_id);
    let marked = facts
        .installed
        .as_ref()
        .is_some_and(|installed| installed.token == intent.order.token && installed.sha256 == intent.order.sha256);
    if has_booted && marked {
        return Ok(Seen::Ours { installed: InstalledBoot { boot_id: facts.boot_id }, protected: record.protected_by_us, id: record.id });
    }
    let carries = match &facts.installed {
        Some(installed) => format!("it carries the token {} and image {}", installed.token, installed.sha256),
        None => "it carries no installation mark".to_owned(),
    };
    let booted = if has_booted { "it has booted since" } else { "it has not booted since" };
    let question = something_else().seen(format!("OS {}, kernel {}, boot id {}: {booted}", facts.os_version_id, facts.kernel, facts.boot_id)).seen(carries);
    let Trouble { question, about } = trouble(question);
    Ok(Seen::Other(Trouble { question, about: format!("{about} {}", facts.boot_id) }))
}

#[async_trait]
impl Step for AwaitRebuild {
    const NAME: &'static str = "await-rebuild";
    const QUEUE: Queue = queues::BMC;
    type Output = InstalledBoot;

    fn policy(&self, cx: &StepCx<'_>) -> Policy {
        let deadline = order(cx).map_or(Policy::default().deadline, |order| Duration::from_millis(order.rules.install_deadline_ms));
        Policy { deadline, ..Policy::default() }
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<InstalledBoot>, StepError> {
        let order = order(cx)?;
        let would = format!("wait until {} reports its installation of {}", order.node, order.image.version);
        if cx.output::<Rebuild>()?.is_none() {
            return Ok(Observed::ToDo { would });
        }
        let kept: Kept = cx.checkpoint()?.unwrap_or_default();
        match look(cx, &newest(cx, &kept)?).await? {
            Seen::Ours { installed, protected: true, .. } => Ok(Observed::AlreadyDone(installed)),
            Seen::Ours { .. } | Seen::NotYet(_) | Seen::Other(_) | Seen::Bad(_) => Ok(Observed::ToDo { would }),
        }
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<InstalledBoot>, StepError> {
        let order = order(cx)?;
        let poll = Duration::from_millis(order.rules.node_poll_ms);
        let mut kept: Kept = cx.checkpoint()?.unwrap_or_default();
        if let Some(intent) = &kept.rebuild {
            match settle(cx, &order.node, intent).await? {
                Settled::Began => {}
                Settled::TooEarly { until } => return Ok(Progress::LookAgain { after: poll, note: looks_for_the_rebuild(until) }),
                // While it is still wanted: since then an operator may have been asked anew.
                Settled::NeverBegan if kept.wanted > kept.asked => return rebuild_again(cx, &order.node, kept, poll).await,
                Settled::NeverBegan => {}
            }
        }
        let Trouble { question, about } = match look(cx, &newest(cx, &kept)?).await? {
            Seen::Ours { installed, protected, id } => {
                if !protected {
                    protect(cx, &order.node, &id).await?;
                }
                return Ok(Progress::Done(installed));
            }
            Seen::NotYet(note) => {
                if kept.asked_about.is_some() {
                    let about = silent(&cx.ports.rebuilder.record(&order.node).await?);
                    if is_wanted(cx, &mut kept, &about).await? {
                        return rebuild_again(cx, &order.node, kept, poll).await;
                    }
                }
                // What answered before is gone: whatever comes up next has its own time.
                if kept.other_since.take().is_some() {
                    cx.save(&kept, note.clone()).await?;
                }
                return Ok(Progress::LookAgain { after: poll, note });
            }
            Seen::Bad(trouble) => trouble,
            Seen::Other(trouble) => match kept.other_since {
                Some(since) if cx.now().since(since) > MARK_COMES_WITHIN => trouble,
                Some(_) => return Ok(Progress::LookAgain { after: poll, note: "waits for its mark".to_owned() }),
                None => {
                    kept.other_since = Some(cx.now());
                    cx.save(&kept, "it answers, without its mark").await?;
                    return Ok(Progress::LookAgain { after: poll, note: "waits for its mark".to_owned() });
                }
            },
        };
        if is_wanted(cx, &mut kept, &about).await? {
            return rebuild_again(cx, &order.node, kept, poll).await;
        }
        (kept.asked, kept.asked_about) = (Some(cx.now()), Some(about));
        cx.save(&kept, "it did not come out well").await?;
        Err(StepError::ask(with_answers(question, "looks again, after you have mended it")))
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        let node = order(cx)?.node;
        let mut kept: Kept = cx.checkpoint()?.unwrap_or_default();
        let intent = newest(cx, &kept)?;
        let seen = look(cx, &intent).await?;
        let record = cx.ports.rebuilder.record(&node).await?;
        let note = match seen {
            Seen::NotYet(note) => note,
            // It is to be rebuilt once more, and somebody has it locked: nobody knows until when.
            Seen::Bad(Trouble { question, about }) | Seen::Other(Trouble { question, about }) => {
                let Some(by) = record.locked_by else { return Ok(PastDeadline::Act) };
                if !is_wanted(cx, &mut kept, &about).await? {
                    return Ok(PastDeadline::Act);
                }
                (kept.asked, kept.asked_about) = (Some(cx.now()), Some(about));
                cx.save(&kept, "it is locked").await?;
                let question = question.seen(format!("it was to be rebuilt once more, and {by} has it locked for as long as this step may take"));
                return Ok(PastDeadline::Ask(with_answers(question, "looks again, after you have mended it")));
            }
            Seen::Ours { .. } => return Ok(PastDeadline::Act),
        };
        let about = silent(&record);
        // An operator has wanted that already. (Of one that somebody has locked they are asked again: nobody knows until when.)
        if record.locked_by.is_none() && is_wanted(cx, &mut kept, &about).await? {
            return Ok(PastDeadline::Act);
        }
        let error = record.last_error.as_ref().map_or_else(|| "it names no error".to_owned(), |error| format!("its last error: {error}"));
        let says = match cx.ports.facts.facts(&node).await {
            Ok(_) => "the node answers by ssh, just now".to_owned(),
            Err(error) => format!("the node does not answer: {}", StepError::from(error).chain()),
        };
        (kept.asked, kept.asked_about) = (Some(cx.now()), Some(about));
        cx.save(&kept, "it has not come back").await?;
        let question = Question::new(format!("{node} has not come back from its rebuild: what now?"))
            .because(Reason::DidNotComeBack, format!("the rebuild was asked for at {}; it {note}", intent.intended))
            .seen(format!("Ironic has it as `{}`, and {error}{}", record.called, record.locked_by.as_ref().map_or(String::new(), |by| format!("; {by} has it locked"))))
            .seen(says);
        let retry = "waits as long again, and has nothing rebuilt";
        // While Ironic is at it, it refuses another one.
        Ok(PastDeadline::Ask(if record.state == RebuildState::Working { without_rebuild(question.answer("retry", AnswerEffect::Retry, retry)) } else { with_answers(question, retry) }))
    }
}

/// The answer by which it is rebuilt once more.
const REBUILD: &str = "rebuild";
/// What a question is about whose node has not come back.
fn silent(record: &RebuildRecord) -> String {
    format!("not come back, {} {}", record.called, record.changed.as_deref().unwrap_or_default())
}

/// Is another rebuild wanted? Once for each time that the operator was asked, and only if it still stands as it did then. The wish stands until it is carried
/// out: what keeps it from that may be a question of its own.
async fn is_wanted(cx: &StepCx<'_>, kept: &mut Kept, about: &str) -> Result<bool, StepError> {
    let answered = cx.answered_at().filter(|_| cx.answered() == Some(REBUILD));
    if answered > kept.asked.max(kept.wanted) {
        kept.wanted = answered;
        cx.save(kept, "is to be rebuilt once more").await?;
    }
    let is_done = kept.rebuild.as_ref().map(|intent| intent.intended) > kept.wanted;
    Ok(kept.wanted > kept.asked && !is_done && kept.asked_about.as_deref() == Some(about))
}

fn without_rebuild(question: Question) -> Question {
    question.answer("leave", AnswerEffect::Leave, "ends here; the node stays closed, and Ironic's record of it as it is now")
}

fn with_answers(question: Question, retry: &str) -> Question {
    let rebuild = "has it rebuilt once more, if it is closed and empty then, and nothing speaks against it";
    without_rebuild(question.answer(REBUILD, AnswerEffect::Retry, rebuild).answer("retry", AnswerEffect::Retry, retry))
}

/// From here on instances may come. A request of a worker that was stopped at the very moment of sending it has no condition that it could carry: so Ironic
/// has to refuse it.
async fn protect(cx: &StepCx<'_>, node: &NodeName, id: &str) -> Result<(), StepError> {
    cx.guard().await?;
    match cx.ports.rebuilder.protect(node, id).await {
        Ok(()) => Ok(()),
        // It is renewed all the same, and who may not protect it now may not later.
        Err(error) if matches!(error.kind, PortErrorKind::Refused { .. } | PortErrorKind::Denied { .. }) => {
            warn!(%node, error = %StepError::from(error).chain(), "not protected in Ironic: a rebuild that comes late would not be refused");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Has it rebuilt once more: the operator wanted that.
async fn rebuild_again(cx: &StepCx<'_>, node: &NodeName, kept: Kept, poll: Duration) -> Result<Progress<InstalledBoot>, StepError> {
    if let Some(note) = unsettled_again(cx)? {
        return Ok(Progress::LookAgain { after: poll, note });
    }
    let note = match rebuild(cx, node, Kept { other_since: None, ..kept }).await? {
        Asked::Began(_) => "is rebuilt once more".to_owned(),
        Asked::Waits(note) => note,
    };
    Ok(Progress::LookAgain { after: poll, note })
}
