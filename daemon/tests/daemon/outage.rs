//! A store that does not answer: the daemon still says how it is, and refuses the rest with a reason.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::store::{
    Advance, Advanced, Created, Document, Durability, Holding, NewWorkflow, Query, Queue, Signalled, Status, Store, StoreError,
    StoreEvent, StoredEntry, StoredSignal, WorkflowId,
};

use super::site::{Site, Wish};

struct Silent;

fn silent<T>() -> Result<T, StoreError> {
    let source = Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
    Err(StoreError::Unavailable { operation: "be asked", source })
}

#[async_trait]
impl Store for Silent {
    async fn now(&self) -> Result<Timestamp, StoreError> {
        silent()
    }
    async fn create(&self, _: NewWorkflow) -> Result<Created, StoreError> {
        silent()
    }
    async fn advance(&self, _: Advance) -> Result<Advanced, StoreError> {
        silent()
    }
    async fn wait_for_bell(&self, _: &[Queue], _: Duration) -> Result<Option<Queue>, StoreError> {
        silent()
    }
    async fn ring(&self, _: &Queue) -> Result<(), StoreError> {
        silent()
    }
    async fn signal(&self, _: &WorkflowId, _: StoredSignal) -> Result<Signalled, StoreError> {
        silent()
    }
    async fn load(&self, _: &WorkflowId) -> Result<Option<Document>, StoreError> {
        silent()
    }
    async fn journal(&self, _: &WorkflowId, _: u64, _: u32) -> Result<Vec<StoredEntry>, StoreError> {
        silent()
    }
    async fn list(&self, _: &Query) -> Result<Vec<Document>, StoreError> {
        silent()
    }
    async fn counts(&self) -> Result<Vec<(Status, u64)>, StoreError> {
        silent()
    }
    async fn events(&self, _: Option<&str>, _: Duration) -> Result<Vec<StoreEvent>, StoreError> {
        silent()
    }
    async fn events_end(&self) -> Result<String, StoreError> {
        silent()
    }
    async fn holdings(&self) -> Result<Vec<Holding>, StoreError> {
        silent()
    }
    async fn release_budget(&self, _: &str, _: &str) -> Result<bool, StoreError> {
        silent()
    }
    async fn last_tick(&self, _: &str) -> Result<Option<Timestamp>, StoreError> {
        silent()
    }
    async fn judge_ticks(&self, _: &str, _: Option<Timestamp>, _: Timestamp, _: Vec<NewWorkflow>) -> Result<bool, StoreError> {
        silent()
    }
    async fn sweep(&self) -> Result<u32, StoreError> {
        silent()
    }
    async fn durability(&self) -> Result<Durability, StoreError> {
        silent()
    }
}

#[tokio::test]
async fn without_a_store_status_answers_and_everything_else_says_why_not() {
    let site = Site::with(Wish { store: Some(Arc::new(Silent)), ..Wish::default() }).await;
    let (code, status) = site.get("/v1/status").await;
    assert_eq!((code, &status["store"]["reachable"]), (200, &json!(false)));
    assert!(status["store"]["description"].as_str().unwrap().contains("connection refused"), "{status}");
    for path in ["/v1/nodes", "/v1/workflows", "/v1/workflows/x", "/v1/workflows/x/journal", "/v1/events"] {
        let (code, problem) = site.get(path).await;
        assert_eq!((code, &problem["type"]), (503, &json!("urn:turnaround:problem:store-unavailable")), "{path}");
        assert!(problem["remedy"].as_str().unwrap().contains("nothing is lost"));
    }
    assert_eq!(site.post("/v1/surveys", &json!({})).await.0, 503);
    let shown = site.turnaround(&["status"]).await;
    assert_eq!(shown.status.code(), Some(0));
    assert!(String::from_utf8(shown.stdout).unwrap().contains("nothing goes on until it does, and nothing is lost"));
}
