//! Gives the node back as it was found.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::close::reopen_if_ours;
use super::{Close, needed, node_lock, node_out, order, queues};
use crate::engine::{Observed, Progress, Step, StepCx, StepError};
use crate::store::{Queue, Resource};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenBack {
    /// What was done, or why nothing was.
    pub how: String,
}

/// Enables the compute service if it was enabled when we came and nobody else has disabled it meanwhile; frees the node's lock and
/// its share of the budget.
pub struct Reopen;

#[async_trait]
impl Step for Reopen {
    const NAME: &'static str = "reopen";
    const QUEUE: Queue = queues::OPENSTACK;
    type Output = GivenBack;

    fn gives(&self, cx: &StepCx<'_>) -> Result<Vec<Resource>, StepError> {
        let order = order(cx)?;
        Ok(vec![node_lock(&order), node_out(&order)])
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<GivenBack>, StepError> {
        let node = order(cx)?.node;
        let Some(closed) = cx.output::<Close>()? else {
            return Ok(Observed::ToDo { would: format!("give {node} back as it was found") });
        };
        let service = cx.ports.compute.service(&node).await?;
        Ok(match (closed.reopen, service.enabled) {
            (false, _) => Observed::AlreadyDone(GivenBack { how: "left disabled, as found".to_owned() }),
            (true, true) => Observed::AlreadyDone(GivenBack { how: "open".to_owned() }),
            (true, false) => Observed::ToDo { would: format!("enable nova-compute on {node}") },
        })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<GivenBack>, StepError> {
        needed(cx.output::<Close>()?, Close::NAME)?;
        let how = reopen_if_ours(cx, &order(cx)?.node).await?;
        Ok(Progress::Done(GivenBack { how }))
    }
}
