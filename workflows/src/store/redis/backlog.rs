//! How much work waits for workers: counted in the indexes, so that it costs the same however much there is.

use ::redis::{Pipeline, Value};

use super::{Malformed, Queue, RedisStore, Reply, StoreError, Timestamp, damaged_answer, reply};
use crate::store::{Backlog, QUEUES_MAX, Waiting};

const OPERATION: &str = "count what waits for workers";

impl RedisStore {
    pub(super) async fn waiting(&self, queues: &[Queue], before: Timestamp) -> Result<Backlog, StoreError> {
        let due = queues.iter().take(QUEUES_MAX).map(|queue| self.keys.due(queue));
        let mut pipeline = Pipeline::new();
        pipeline.cmd("ZCARD").arg(&self.keys.lease);
        for key in std::iter::once(self.keys.lease.clone()).chain(due) {
            pipeline.cmd("ZCOUNT").arg(&key).arg("-inf").arg(before.millis());
            pipeline.cmd("ZRANGE").arg(&key).arg(0).arg(0).arg("WITHSCORES");
        }
        let answers = self.connection.queries(OPERATION, &pipeline).await?;
        let judge = |source| damaged_answer(OPERATION, source);
        read(Reply::of(Value::Array(answers)).map_err(judge)?, before).map_err(judge)
    }
}

/// How many leases there are, and then two answers for each index: those of the leases come first.
fn read(mut answers: Reply, before: Timestamp) -> Result<Backlog, Malformed> {
    let leases: u64 = answers.number()?;
    let expired = waiting(&mut answers, before)?;
    let mut due = Vec::new();
    while !answers.is_empty() {
        due.push(waiting(&mut answers, before)?);
    }
    // One may have been granted between the two counts, and none of those was over.
    Ok(Backlog { leased: leases.saturating_sub(expired.count), expired, due })
}

fn waiting(answers: &mut Reply, before: Timestamp) -> Result<Waiting, Malformed> {
    let count = answers.number()?;
    let first = reply::pairs(answers.value()?)?.into_iter().next();
    let since = first.map(|(_, score)| reply::optional_time(Value::BulkString(score.into()))).transpose()?.flatten();
    Ok(Waiting { count, since: since.filter(|since| *since <= before) })
}
