//! Writes down what the node has, to be compared with what it has afterwards: GPUs, data disks, whatever the site's checks ask for.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{order, queues};
use crate::engine::{Observed, Progress, Step, StepCx, StepError};
use crate::ports::CommandEnd;
use crate::store::Queue;
use crate::updates::Expected;

/// How each check that is compared ended before the node was emptied, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stock(pub BTreeMap<String, CommandEnd>);

/// Runs the site's checks that must come out as found.
pub struct TakeStock;

#[async_trait]
impl Step for TakeStock {
    const NAME: &'static str = "take-stock";
    const QUEUE: Queue = queues::NODES;
    type Output = Stock;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Stock>, StepError> {
        let order = order(cx)?;
        let mut stock = BTreeMap::new();
        for check in order.rules.checks.iter().filter(|check| check.expect == Expected::AsFound) {
            let end = cx.ports.facts.run(&order.node, &check.command, Duration::from_millis(check.time_limit_ms)).await?;
            stock.insert(check.name.clone(), end);
        }
        Ok(Observed::AlreadyDone(Stock(stock)))
    }

    async fn act(&self, _cx: &StepCx<'_>) -> Result<Progress<Stock>, StepError> {
        Err(StepError::fatal("taking stock only looks"))
    }
}
