//! The alert gate: a node about which alerts fire that did not fire before is not given back without an operator's word.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::shown::{ACCEPT, Accepted};
use super::silence::for_node;
use super::{Close, Reason, order, queues};
use crate::engine::{AnswerEffect, Observed, Progress, Question, Step, StepCx, StepError};
use crate::ports::PortError;
use crate::store::Queue;

/// Alerts that have not ended after so long become a question.
// What was wrong while the node was away ends some minutes after it is back: Prometheus' rules are evaluated each minute, an alert that is no longer sent ends
// after five (Alertmanager's `resolve_timeout`), and exporters are the last to start.
const END_WITHIN: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedAlerts {
    /// Those that fire all the same: they did before, or an operator has taken them as good.
    pub firing: BTreeSet<String>,
}

/// Done when no alert fires about the node but those that fired when it was closed, and those that an operator takes as good.
pub struct VerifyAlerts;

/// The alerts that fire about the node, silenced or not; None where the order has no gate.
pub(super) async fn firing(cx: &StepCx<'_>) -> Option<Result<BTreeSet<String>, PortError>> {
    let order = order(cx).ok()?;
    let silence = order.rules.silence.filter(|silence| silence.gate)?;
    let matchers: Vec<_> = silence.matchers.iter().map(|matcher| for_node(matcher, order.node.as_str())).collect();
    Some(cx.ports.silences.firing(&matchers).await)
}

enum Seen {
    Well(BTreeSet<String>),
    /// These are new.
    New(BTreeSet<String>),
    /// Nobody says.
    Unknown(String),
}

async fn look(cx: &StepCx<'_>) -> Result<Seen, StepError> {
    let taken = Accepted::<BTreeSet<String>>::taken(cx)?.unwrap_or_default();
    let firing = match firing(cx).await {
        None => return Ok(Seen::Well(BTreeSet::new())),
        Some(Ok(firing)) => firing,
        Some(Err(error)) => {
            let unknown = StepError::from(error).chain();
            return Ok(if taken.contains(NOBODY_SAYS) { Seen::Well(BTreeSet::new()) } else { Seen::Unknown(unknown) });
        }
    };
    // Of a node that an operator had left closed they may tell why.
    let closed = cx.output::<Close>()?.filter(|closed| !closed.was_left(cx.id));
    let before = closed.and_then(|closed| closed.alerts).unwrap_or_default();
    let new: BTreeSet<String> = firing.iter().filter(|alert| !before.contains(*alert) && !taken.contains(*alert)).cloned().collect();
    Ok(if new.is_empty() { Seen::Well(firing) } else { Seen::New(new) })
}

/// Stands for all alerts, where what alerts does not answer. (No alert has a name with a blank.)
const NOBODY_SAYS: &str = "nobody says which alerts fire";

#[async_trait]
impl Step for VerifyAlerts {
    const NAME: &'static str = "verify-alerts";
    // Whoever reaches Nova's API usually reaches what alerts.
    const QUEUE: Queue = queues::OPENSTACK;
    type Output = VerifiedAlerts;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<VerifiedAlerts>, StepError> {
        let node = order(cx)?.node;
        // In a dry run all that fires did so before.
        if cx.begun().is_none() {
            let now = match firing(cx).await {
                None => return Ok(Observed::AlreadyDone(VerifiedAlerts { firing: BTreeSet::new() })),
                Some(Ok(firing)) if firing.is_empty() => "none fires now".to_owned(),
                Some(Ok(firing)) => format!("firing now, and no hindrance: {}", listed(&firing)),
                Some(Err(error)) => StepError::from(error).chain(),
            };
            return Ok(Observed::ToDo { would: format!("make sure that no alert fires about {node} that does not fire before ({now})") });
        }
        Ok(match look(cx).await? {
            Seen::Well(firing) => Observed::AlreadyDone(VerifiedAlerts { firing }),
            Seen::New(new) => Observed::ToDo { would: format!("wait until these alerts about {node} end: {}", listed(&new)) },
            Seen::Unknown(why) => Observed::ToDo { would: format!("ask which alerts fire about {node}; now: {why}") },
        })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<VerifiedAlerts>, StepError> {
        let order = order(cx)?;
        Accepted::<BTreeSet<String>>::keep(cx).await?;
        let seen = look(cx).await?;
        let mut taken = Accepted::<BTreeSet<String>>::taken(cx)?.unwrap_or_default();
        // Somebody says: who has accepted that nobody does has not seen these.
        if matches!(seen, Seen::New(_)) && taken.remove(NOBODY_SAYS) {
            Accepted::replace(cx, taken.clone(), "which alerts fire is told again").await?;
        }
        let (note, shown, text, reason) = match seen {
            Seen::Well(firing) => return Ok(Progress::Done(VerifiedAlerts { firing })),
            Seen::New(new) => {
                let told: BTreeSet<String> = taken.union(&new).cloned().collect();
                // Where nobody says any more by the time that an operator is asked, this is what was known last.
                if Accepted::shown(cx)?.as_ref() != Some(&told) {
                    Accepted::is_about_to_show(cx, told, "alerts fire").await?;
                }
                (format!("alerts fire: {}", listed(&new)), new, "alerts fire about it that did not fire before", Reason::Alerts)
            }
            Seen::Unknown(why) => {
                let known: BTreeSet<String> = Accepted::<BTreeSet<String>>::shown(cx)?.unwrap_or_default();
                let mut known: BTreeSet<String> = known.difference(&taken).filter(|alert| *alert != NOBODY_SAYS).cloned().collect();
                let note = if known.is_empty() { why } else { format!("{why}; told before: {}", listed(&known)) };
                known.insert(NOBODY_SAYS.to_owned());
                (note, known, "whether alerts fire about it can't be told", Reason::NotTold)
            }
        };
        if cx.patient_since().is_none_or(|since| cx.now().since(since) < END_WITHIN) {
            return Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.node_poll_ms), note });
        }
        let question = Question::new(format!("{} is renewed, and {text}: what now?", order.node))
            .because(reason, note)
            .answer("retry", AnswerEffect::Retry, "looks again, and waits as long again, after you have mended it")
            .answer(ACCEPT, AnswerEffect::Retry, format!("takes that as no hindrance; if no other alert fires, {} is given back", order.node))
            .answer("leave", AnswerEffect::Leave, format!("ends here; {} stays closed", order.node));
        // What was taken as good before still is.
        Accepted::is_about_to_show(cx, taken.union(&shown).cloned().collect::<BTreeSet<String>>(), "alerts fire").await?;
        Err(StepError::ask(question))
    }
}

fn listed(alerts: &BTreeSet<String>) -> String {
    alerts.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
}
