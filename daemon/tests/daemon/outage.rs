//! A store that does not answer: the daemon still says how it is, and refuses the rest with a reason.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::store::high_water::{HighWater, Standing};
use turnaround_workflows::store::{
    Advance, Advanced, Backlog, Created, Document, Durability, Holding, NewWorkflow, Query, Queue, Signalled, Status, Store, StoreError,
    StoreEvent, StoredEntry, StoredSignal, Trouble, WorkflowId,
};

use turnaround_daemon::api::caller::Access;

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
    async fn advance(&self, _: &Advance) -> Result<Advanced, StoreError> {
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
    async fn backlog(&self, _: &[Queue], _: Timestamp) -> Result<Backlog, StoreError> {
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
    async fn ledgers(&self) -> Result<BTreeSet<String>, StoreError> {
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
    async fn standing(&self) -> Result<Standing, StoreError> {
        silent()
    }
    async fn compare(&self, _: &HighWater, _: &str) -> Result<Standing, StoreError> {
        silent()
    }
    async fn accept(&self, _: &HighWater, _: &str) -> Result<Option<Standing>, StoreError> {
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
    assert_eq!(status["alarms"], json!([]), "who looks once does not know when it is over");
    assert_eq!(site.app.watch.look().await, None);
    assert_eq!(site.get("/v1/status").await.1["alarms"][0]["code"], "store-unreachable");
}

#[tokio::test]
async fn a_store_that_lost_something_is_halted_shown_and_gone_on_with_by_an_operator() {
    let site = Site::start().await;
    let id = site.rollout().await;
    assert_eq!(site.app.watch.look().await.unwrap().halt, None);
    assert_eq!(site.get("/v1/status").await.1["alarms"], json!([]));
    assert_eq!(site.post("/v1/store/accept", &json!({})).await.1["type"], "urn:turnaround:problem:not-halted");
    // Another daemon remembers more than there is.
    let (_, before) = site.get("/v1/workflows").await;
    let seen = site.store.standing().await.unwrap();
    let more = HighWater { identity: seen.identity, revision: seen.revision + 7, ..HighWater::new("another".to_owned()) };
    assert!(site.store.compare(&more, "daemon at bastion-2:17").await.unwrap().halt.is_some());
    assert!(site.app.watch.look().await.unwrap().halt.is_some());
    // A call that times out hides the halt until the next look.
    site.app.alarms.store_has(Trouble::Silent, "no answer in time");
    assert!(site.app.watch.look().await.unwrap().halt.is_some());

    let (_, status) = site.get("/v1/status").await;
    assert_eq!(status["alarms"][0]["code"], "store-halted", "{status}");
    assert_eq!(status["store"]["halt"]["loss"], "older");
    for (path, body) in [("/v1/surveys".to_owned(), json!({})), (format!("/v1/workflows/{id}/signals"), json!({ "signal": "pause" }))] {
        let (code, problem) = site.post(&path, &body).await;
        assert_eq!((code, &problem["type"]), (503, &json!("urn:turnaround:problem:store-halted")), "{path}");
        assert!(problem["remedy"].as_str().unwrap().contains("turnaround store accept"), "{problem}");
    }
    assert_eq!(site.get("/v1/workflows").await.1, before, "what is there can be read");
    let shown = String::from_utf8(site.turnaround(&["status"]).await.stdout).unwrap();
    for part in ["ALARM store-halted", "more: docs/errors/store-halted.md", "HALTED since", "noticed by daemon at bastion-2:17", "it means: 7 or more writes"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // A script that did not say yes changes nothing, and sees what it is about.
    let asked = site.turnaround(&["store", "accept"]).await;
    let said = String::from_utf8(asked.stderr).unwrap();
    assert_eq!(asked.status.code(), Some(2), "{said}");
    assert!(said.contains("expected: store memory at revision") && said.contains("--yes"), "{said}");
    assert!(site.store.standing().await.unwrap().halt.is_some());

    let accepted = site.turnaround(&["store", "accept", "--yes"]).await;
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
    assert_eq!(site.app.watch.look().await.unwrap().halt, None);
    assert_eq!(site.get("/v1/status").await.1["alarms"], json!([]));
    assert_eq!(site.post("/v1/surveys", &json!({})).await.0, 201);
    let history = std::fs::read_to_string(site.folder.path().join("store.jsonl")).unwrap();
    let events: Vec<serde_json::Value> = history.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(names, ["halted", "accepted"], "one line for one halt: {history}");
    let me = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().unwrap().name;
    assert_eq!(events[1]["by"], json!(me));
}

#[tokio::test]
async fn only_operators_accept() {
    let site = Site::with(Wish { access: Access::only(Vec::new(), &[]), ..Wish::default() }).await;
    assert_eq!(site.post("/v1/store/accept", &json!({})).await.0, 403);
}

#[tokio::test]
async fn a_daemon_that_can_not_read_what_it_remembers_raises_an_alarm_and_takes_nothing_for_right() {
    let site = Site::start().await;
    let file = site.folder.path().join("high-water.json");
    std::fs::write(&file, "garbage").unwrap();
    assert_eq!(site.app.watch.look().await, None);
    assert_eq!(site.get("/v1/status").await.1["alarms"][0]["code"], "high-water-file");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "garbage", "it is left for a person to look at");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(site.app.watch.look().await.unwrap().looks, 1);
    assert_eq!(site.get("/v1/status").await.1["alarms"], json!([]));
    assert!(std::fs::read_to_string(&file).unwrap().contains("\"memory\""));
}
