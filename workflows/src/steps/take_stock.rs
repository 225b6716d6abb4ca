//! Writes down what the node has, to be compared with what it has afterwards: its name, GPUs, data disks, whatever the site's checks ask for.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::Compared;

use super::compared::untold;
use super::{counted, order, queues};
use crate::engine::{Observed, Progress, Step, StepCx, StepError};
use crate::ports::{CommandEnd, NodeStock, PortErrorKind};
use crate::store::Queue;
use crate::updates::{Expected, NodeOrder};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stock {
    /// What the node called itself. None: it did not answer.
    pub hostname: Option<String>,
    /// What of it is to stay as it is. None: it did not say, or that is not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeStock>,
    /// Why it did not say, where it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untold: Option<String>,
    /// How each check that is compared ended before the node was emptied, by its name. Where the node did not answer, it is not there.
    pub checks: BTreeMap<String, CommandEnd>,
}

/// A node that is half dead is renewed all the same: one that does not answer for so long has nothing to be compared with, and an operator is asked
/// about it afterwards.
// A reboot takes longer; a passing outage of the network does not.
const WAITED_FOR: Duration = Duration::from_secs(2 * 60);

/// Asks the node for its name, and runs the site's checks that must come out as found.
pub struct TakeStock;

/// What the node says, and what not.
struct Taken {
    stock: Stock,
    /// To what the node gave no answer.
    silent: Vec<String>,
    /// What it can't tell.
    unable: Vec<&'static str>,
    /// Checks that fail already, one phrase each.
    failing: Vec<String>,
}

impl Taken {
    /// What there will be nothing to compare with, in one line; None if nothing.
    fn not_compared(&self) -> Option<String> {
        let silent = (!self.silent.is_empty()).then(|| format!("does not answer: {}", self.silent.join(", ")));
        let unable = (!self.unable.is_empty()).then(|| format!("can't tell: {}", self.unable.join(", ")));
        let failing = (!self.failing.is_empty()).then(|| format!("fails already: {}", self.failing.join(", ")));
        let lines: Vec<String> = [silent, unable, failing].into_iter().flatten().collect();
        (!lines.is_empty()).then(|| format!("nothing to compare with afterwards: {}", lines.join("; ")))
    }
}

#[async_trait]
impl Step for TakeStock {
    const NAME: &'static str = "take-stock";
    const QUEUE: Queue = queues::NODES;
    type Output = Stock;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Stock>, StepError> {
        let NodeOrder { node, rules, .. } = order(cx)?;
        let taken = look(cx).await?;
        Ok(match taken.not_compared() {
            // Nothing is written down in a dry run.
            None if cx.begun().is_none() => {
                let things = counted(rules.compare.iter().filter(|compared| **compared != Compared::Clock).count(), "thing");
                let checks = counted(taken.stock.checks.len(), "check");
                Observed::ToDo { would: format!("write down what {node} has, to be compared afterwards: its name, {things}, the result of {checks}") }
            }
            None => Observed::AlreadyDone(taken.stock),
            Some(not_compared) => Observed::ToDo { would: format!("write down what {node} has; {not_compared}") },
        })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Stock>, StepError> {
        let order = order(cx)?;
        let taken = look(cx).await?;
        let Some(not_compared) = taken.not_compared() else { return Ok(Progress::Done(taken.stock)) };
        if taken.silent.is_empty() || cx.patient_since().is_some_and(|since| cx.now().since(since) >= WAITED_FOR) {
            cx.save(&(), not_compared).await?;
            return Ok(Progress::Done(taken.stock));
        }
        Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.node_poll_ms), note: not_compared })
    }
}

async fn look(cx: &StepCx<'_>) -> Result<Taken, StepError> {
    let order = order(cx)?;
    let mut taken = Taken { stock: Stock::default(), silent: Vec::new(), unable: Vec::new(), failing: Vec::new() };
    match cx.ports.facts.facts(&order.node).await {
        Ok(facts) => taken.stock.hostname = Some(facts.hostname),
        Err(error) => match error.kind {
            PortErrorKind::Unavailable => taken.silent.push("its host name".to_owned()),
            // Such as a host key that is not known: it is to be wiped all the same.
            PortErrorKind::Refused { reason } | PortErrorKind::Garbled { reason } => taken.silent.push(format!("its host name ({reason})")),
            PortErrorKind::OutcomeUnknown | PortErrorKind::NotFound | PortErrorKind::Denied { .. } => return Err(error.into()),
        },
    }
    if !order.rules.compare.is_empty() {
        match cx.ports.facts.stock(&order.node).await {
            Ok(stock) => {
                taken.unable = untold(&order.rules.compare, &stock);
                taken.stock.node = Some(stock);
            }
            Err(error) => match error.kind {
                PortErrorKind::Unavailable => taken.silent.push("what it has".to_owned()),
                PortErrorKind::Refused { reason } | PortErrorKind::Garbled { reason } => {
                    taken.silent.push(format!("what it has ({reason})"));
                    taken.stock.untold = Some(format!("it could not be asked before ({reason})"));
                }
                PortErrorKind::OutcomeUnknown | PortErrorKind::NotFound | PortErrorKind::Denied { .. } => return Err(error.into()),
            },
        }
    }
    for check in order.rules.checks.iter().filter(|check| check.expect == Expected::AsFound) {
        match cx.ports.facts.run(&order.node, &check.command, Duration::from_millis(check.time_limit_ms)).await {
            Ok(end) => {
                if end.code != 0 {
                    taken.failing.push(format!("{} (exit code {})", check.name, end.code));
                }
                taken.stock.checks.insert(check.name.clone(), end);
            }
            Err(error) if error.kind == PortErrorKind::Unavailable => taken.silent.push(check.name.clone()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(taken)
}
