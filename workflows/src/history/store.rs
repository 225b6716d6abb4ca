//! A store that tells what it is asked and what it answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::tell;
use crate::clock::Timestamp;
use crate::store::high_water::{HighWater, Standing};
use crate::store::{
    Advance, Advanced, Backlog, Commit, Committed, Created, Document, Durability, Fence, Holding, NewWorkflow, Next, Query, Queue, Signalled,
    Status, Store,
    StoreError, StoreEvent, StoredEntry, StoredSignal, WorkflowId,
};

pub(super) struct Told(pub(super) Arc<dyn Store>);

/// What a commit is recognised by, also when it is sent again.
fn commit(commit: &Commit) -> Value {
    let next = match commit.next {
        Next::Keep => "keep".to_owned(),
        Next::At(at) => format!("at {}", at.millis()),
        Next::Signal => "signal".to_owned(),
        Next::End { .. } => "end".to_owned(),
    };
    let digests: Vec<String> = commit.entries.iter().map(|entry| entry.digest.to_string()).collect();
    json!({
        "workflow": commit.id, "fence": commit.fence, "expected": commit.expected, "digests": digests, "next": next,
        "status": commit.status,
    })
}

fn how(committed: &Committed) -> &'static str {
    match committed {
        Committed::Done { .. } => "done",
        Committed::Fenced => "fenced",
        Committed::Busy { .. } => "busy",
        Committed::Held { .. } => "held",
        Committed::Conflict { .. } => "conflict",
    }
}

fn lease(event: &str, (id, fence): &(WorkflowId, Fence)) {
    tell(event, || json!({ "workflow": id, "fence": fence }));
}

fn answered(asked: &Advance, answer: &Advanced) {
    for (asked, became) in asked.commits.iter().zip(&answer.commits) {
        tell("committed", || {
            let mut line = commit(asked);
            line["how"] = json!(how(became));
            line
        });
    }
    for (asked, renewed) in asked.renew.iter().zip(&answer.renewed) {
        if renewed.is_none() {
            lease("lease-refused", asked);
        }
    }
    for handed in &asked.hand_back {
        lease("handed-back", handed);
    }
    for claimed in &answer.claimed {
        let document = &claimed.document;
        tell("claimed", || {
            json!({
                "workflow": document.id, "kind": document.kind, "target": document.target, "fence": claimed.fence, "seq": document.seq,
                "until": claimed.lease_until, "tries": claimed.tries,
            })
        });
    }
}

#[async_trait]
impl Store for Told {
    async fn advance(&self, asked: &Advance) -> Result<Advanced, StoreError> {
        for one in &asked.commits {
            tell("commit", || commit(one));
        }
        let answer = self.0.advance(asked).await;
        match &answer {
            Ok(answer) => answered(asked, answer),
            Err(error) => {
                for unknown in &asked.commits {
                    tell("unknown", || {
                        let mut line = commit(unknown);
                        line["why"] = json!(error.to_string());
                        line
                    });
                }
            }
        }
        answer
    }

    async fn create(&self, new: NewWorkflow) -> Result<Created, StoreError> {
        let id = new.id.clone();
        tell("create", || json!({ "workflow": id }));
        let made = self.0.create(new).await;
        let outcome = match &made {
            Ok(Created::New) => "new".to_owned(),
            Ok(Created::Existing) => "existing".to_owned(),
            Err(error) => error.to_string(),
        };
        tell("created", || json!({ "workflow": id, "outcome": outcome }));
        made
    }

    async fn signal(&self, id: &WorkflowId, signal: StoredSignal) -> Result<Signalled, StoreError> {
        tell("signal", || json!({ "workflow": id, "body": signal.body }));
        let became = self.0.signal(id, signal).await;
        let outcome = match &became {
            Ok(Signalled::Kept) => "kept".to_owned(),
            Ok(Signalled::Missing) => "missing".to_owned(),
            Ok(Signalled::Ended) => "ended".to_owned(),
            Ok(Signalled::Full) => "full".to_owned(),
            Err(error) => error.to_string(),
        };
        tell("signalled", || json!({ "workflow": id, "outcome": outcome }));
        became
    }

    async fn judge_ticks(
        &self,
        schedule: &str,
        last: Option<Timestamp>,
        judged: Timestamp,
        create: Vec<NewWorkflow>,
    ) -> Result<bool, StoreError> {
        let ids: Vec<WorkflowId> = create.iter().map(|new| new.id.clone()).collect();
        let done = self.0.judge_ticks(schedule, last, judged, create).await;
        let outcome = match &done {
            Ok(true) => "judged".to_owned(),
            Ok(false) => "judged before".to_owned(),
            Err(error) => error.to_string(),
        };
        tell("ticks", || json!({ "schedule": schedule, "judged": judged, "starts": ids, "outcome": outcome }));
        done
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        self.0.now().await
    }
    async fn wait_for_bell(&self, queues: &[Queue], timeout: Duration) -> Result<Option<Queue>, StoreError> {
        self.0.wait_for_bell(queues, timeout).await
    }
    async fn ring(&self, queue: &Queue) -> Result<(), StoreError> {
        self.0.ring(queue).await
    }
    async fn load(&self, id: &WorkflowId) -> Result<Option<Document>, StoreError> {
        self.0.load(id).await
    }
    async fn journal(&self, id: &WorkflowId, from: u64, limit: u32) -> Result<Vec<StoredEntry>, StoreError> {
        self.0.journal(id, from, limit).await
    }
    async fn list(&self, query: &Query) -> Result<Vec<Document>, StoreError> {
        self.0.list(query).await
    }
    async fn counts(&self) -> Result<Vec<(Status, u64)>, StoreError> {
        self.0.counts().await
    }
    async fn backlog(&self, queues: &[Queue], before: Timestamp) -> Result<Backlog, StoreError> {
        self.0.backlog(queues, before).await
    }
    async fn events(&self, cursor: Option<&str>, timeout: Duration) -> Result<Vec<StoreEvent>, StoreError> {
        self.0.events(cursor, timeout).await
    }
    async fn events_end(&self) -> Result<String, StoreError> {
        self.0.events_end().await
    }
    async fn holdings(&self) -> Result<Vec<Holding>, StoreError> {
        self.0.holdings().await
    }
    async fn release_budget(&self, name: &str, member: &str) -> Result<bool, StoreError> {
        self.0.release_budget(name, member).await
    }
    async fn ledgers(&self) -> Result<BTreeSet<String>, StoreError> {
        self.0.ledgers().await
    }

    async fn last_tick(&self, schedule: &str) -> Result<Option<Timestamp>, StoreError> {
        self.0.last_tick(schedule).await
    }
    async fn sweep(&self) -> Result<u32, StoreError> {
        self.0.sweep().await
    }
    async fn durability(&self) -> Result<Durability, StoreError> {
        self.0.durability().await
    }
    async fn standing(&self) -> Result<Standing, StoreError> {
        self.0.standing().await
    }
    async fn compare(&self, remembered: &HighWater, by: &str) -> Result<Standing, StoreError> {
        self.0.compare(remembered, by).await
    }
    async fn accept(&self, remembered: &HighWater, by: &str) -> Result<Option<Standing>, StoreError> {
        self.0.accept(remembered, by).await
    }
}
