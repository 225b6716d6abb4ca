//! Writes down what the node has, to be compared with what it has afterwards: GPUs, data disks, whatever the site's checks ask for.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{order, queues};
use crate::engine::{Observed, Progress, Step, StepCx, StepError};
use crate::ports::{CommandEnd, PortErrorKind};
use crate::store::Queue;
use crate::updates::Expected;

/// How each check that is compared ended before the node was emptied, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stock(pub BTreeMap<String, CommandEnd>);

/// A node that is half dead is renewed all the same: one that does not answer for so long has nothing to be compared with, and its checks only
/// have to succeed afterwards.
// A reboot takes longer; a passing outage of the network does not.
const WAITED_FOR: Duration = Duration::from_secs(2 * 60);

/// Runs the site's checks that must come out as found.
pub struct TakeStock;

#[async_trait]
impl Step for TakeStock {
    const NAME: &'static str = "take-stock";
    const QUEUE: Queue = queues::NODES;
    type Output = Stock;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Stock>, StepError> {
        let (stock, silent) = look(cx).await?;
        if silent.is_empty() {
            return Ok(Observed::AlreadyDone(stock));
        }
        Ok(Observed::ToDo { would: format!("write down what {} has; it does not answer now", cx.target()) })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Stock>, StepError> {
        let order = order(cx)?;
        let (stock, silent) = look(cx).await?;
        if silent.is_empty() || cx.tried_since().is_some_and(|since| cx.now().since(since) >= WAITED_FOR) {
            return Ok(Progress::Done(stock));
        }
        let note = format!("does not answer: {}", silent.join(", "));
        Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.node_poll_ms), note })
    }
}

/// What the checks say, and those to which the node gave no answer.
async fn look(cx: &StepCx<'_>) -> Result<(Stock, Vec<String>), StepError> {
    let order = order(cx)?;
    let (mut stock, mut silent) = (BTreeMap::new(), Vec::new());
    for check in order.rules.checks.iter().filter(|check| check.expect == Expected::AsFound) {
        match cx.ports.facts.run(&order.node, &check.command, Duration::from_millis(check.time_limit_ms)).await {
            Ok(end) => drop(stock.insert(check.name.clone(), end)),
            Err(error) if error.kind == PortErrorKind::Unavailable => silent.push(check.name.clone()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((Stock(stock), silent))
}
