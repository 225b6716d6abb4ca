//! Why not now: for each way in which a workflow can stand still, one reason and what unblocks it.

use std::time::Duration;

use serde_json::json;
use turnaround_workflows::engine::Event;
use turnaround_workflows::store::{Next, Resource, WorkflowId};

use super::site::{NOON, Site, at, begun};

const STEP: &str = "renew-nodes";

async fn check(events: Vec<Event>, next: Next, expected: serde_json::Value) {
    let site = Site::start().await;
    let id = site.rollout().await;
    site.work(&id, events, next).await;
    site.clock.advance(Duration::from_secs(60));
    let (_, shown) = site.get(&format!("/v1/workflows/{id}")).await;
    let why = &shown["why_not_now"];
    assert_eq!(json!([why["code"], why["since"], why["next"]]), expected, "{why}");
    assert!(why["unblock"].as_str().is_some_and(|text| !text.is_empty()), "{why}");
}

#[tokio::test]
async fn every_way_to_stand_still_has_its_own_reason() {
    let noon = "2026-11-22T12:00:00.000Z";
    let later = at("2026-11-22T12:05:00Z");
    let failed = Event::StepFailed { step: STEP.to_owned(), error: "Nova answers 503".to_owned(), failures: 3, retry_at: later };
    check(vec![begun(STEP), failed], Next::At(later), json!(["retry", noon, "2026-11-22T12:05:00.000Z"])).await;
    let parked = |until| Event::StepParked { step: STEP.to_owned(), until, note: "installing".to_owned() };
    check(vec![begun(STEP), parked(Some(later))], Next::At(later), json!(["time", noon, "2026-11-22T12:05:00.000Z"])).await;
    check(vec![begun(STEP), parked(None)], Next::Signal, json!(["children", noon, null])).await;
    let paused = Event::Paused { by: "ada".to_owned(), why: "storm".to_owned(), beside: false };
    check(vec![paused], Next::Signal, json!(["paused", noon, null])).await;
    let awaited = Event::ResourceAwaited {
        step: STEP.to_owned(),
        resource: Resource::Lock { name: "node-gpu-01".to_owned() },
        holders: vec!["somebody".parse().unwrap()],
    };
    check(vec![awaited], Next::At(later), json!(["resource", noon, null])).await;
    check(vec![begun(STEP)], Next::At(at(NOON)), json!(["no-worker", noon, null])).await;
}

/// To resume a node by itself, while its rollout stands still, is not what anybody wants who reads that.
#[tokio::test]
async fn a_node_that_its_rollout_has_paused_is_resumed_with_that() {
    let paused = |by: &str, why: &str, beside| Event::Paused { by: by.to_owned(), why: why.to_owned(), beside };
    for (events, text, unblock) in [
        (vec![paused("workflow R", "storm", false)], "paused by workflow R: storm", "turnaround resume ROLLOUT"),
        (
            vec![paused("workflow R", "storm", false), paused("ada", "hands in the rack", true)],
            "paused by ada: hands in the rack; and by workflow R: storm",
            "turnaround resume NODE, and turnaround resume ROLLOUT",
        ),
        (vec![paused("ada", "", false)], "paused by ada", "turnaround resume NODE"),
    ] {
        let site = Site::start().await;
        let rollout = site.rollout().await;
        let node = site.node_begun(&rollout, "gpu-01").await;
        site.work(&node, events, Next::Signal).await;
        let (_, shown) = site.get(&format!("/v1/workflows/{node}")).await;
        let unblock = unblock.replace("NODE", node.as_str()).replace("ROLLOUT", rollout.as_str());
        assert_eq!(["text", "unblock"].map(|key| shown["why_not_now"][key].as_str().unwrap()), [text, &unblock]);
    }
}

/// Nobody gives back what no workflow holds.
#[tokio::test]
async fn whoever_waits_for_what_no_workflow_holds_is_told_how_to_free_it() {
    let awaits = async |holders: Vec<WorkflowId>| {
        let site = Site::start().await;
        let id = site.rollout().await;
        let resource = Resource::Lock { name: "node-gpu-01".to_owned() };
        let awaited = Event::ResourceAwaited { step: STEP.to_owned(), resource, holders };
        site.work(&id, vec![awaited], Next::At(at("2026-11-22T12:05:00Z"))).await;
        let (_, shown) = site.get(&format!("/v1/workflows/{id}")).await;
        ["text", "unblock"].map(|key| shown["why_not_now"][key].as_str().unwrap().to_owned())
    };
    let [text, unblock] = awaits(vec!["somebody".parse().unwrap()]).await;
    assert!(text.contains("held by somebody") && unblock.starts_with("it goes on as soon as a holder gives it back"), "{text}: {unblock}");
    let [text, unblock] = awaits(Vec::new()).await;
    assert!(text.contains("held by nobody who can be named") && unblock.contains("a lock has to be removed by hand"), "{text}: {unblock}");
}
