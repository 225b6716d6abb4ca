//! The stream of events: nothing twice, nothing left out.

use reqwest::{Method, Response};
use serde_json::{Value, json};
use turnaround_workflows::engine::{Checkpoint, Event};
use turnaround_workflows::store::{Next, Store as _, WorkflowId};

use super::site::{NOON, PATIENCE, Site, Wish, at, begun};

struct Reader {
    response: Response,
    read: String,
}

impl Reader {
    async fn open(site: &Site, path: &str, last_event_id: Option<&str>) -> Reader {
        let mut request = site.request(Method::GET, path);
        if let Some(last) = last_event_id {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Reader { response, read: String::new() }
    }

    /// The next event, which must come; its id is its cursor.
    async fn next(&mut self) -> Value {
        loop {
            if let Some((block, rest)) = self.read.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.read = rest;
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                if let Some(data) = field("data:") {
                    let event: Value = serde_json::from_str(data).unwrap();
                    assert_eq!(field("id:"), event["cursor"].as_str());
                    return event;
                }
                continue;
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("an event comes").unwrap();
            self.read.push_str(std::str::from_utf8(&chunk.expect("the stream goes on")).unwrap());
        }
    }
}

async fn notes(site: &Site, id: &WorkflowId, from: u64, count: u64) {
    let note = |n: u64| Event::StepCheckpointed { step: "renew-nodes".to_owned(), checkpoint: Checkpoint::of(&json!(n)).unwrap(), note: format!("note {n}") };
    site.work(id, (from..from + count).map(note).collect(), Next::At(at(NOON))).await;
}

#[tokio::test]
async fn who_comes_back_goes_on_where_it_was_also_behind_what_is_kept_in_memory() {
    let site = Site::start().await;
    let id = site.rollout().await;
    site.work(&id, vec![begun("renew-nodes")], Next::At(at(NOON))).await;
    let mut first = Reader::open(&site, "/v1/events?after=0-0", None).await;
    assert_eq!(first.next().await["seq"], 1);
    let seen = first.next().await;
    assert_eq!(seen["seq"], 2);
    drop(first);
    // More than the ring of newest events holds, less than the store keeps.
    let many = 1_500;
    for batch in 0..many / 500 {
        notes(&site, &id, batch * 500, 500).await;
    }
    let mut again = Reader::open(&site, "/v1/events", seen["cursor"].as_str()).await;
    for seq in 3..3 + many {
        assert_eq!(again.next().await["seq"], seq);
    }
    notes(&site, &id, 9_000, 1).await;
    assert_eq!(again.next().await["text"], "renew-nodes: note 9000");
}

#[tokio::test]
async fn a_new_listener_hears_what_happens_from_now_on_and_only_of_what_it_asked_for() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let mut all = Reader::open(&site, "/v1/events", None).await;
    let mut one = Reader::open(&site, &format!("/v1/events?workflow={id}"), None).await;
    site.post("/v1/surveys", &json!({})).await;
    site.work(&id, vec![begun("renew-nodes")], Next::At(at(NOON))).await;
    assert_eq!(all.next().await["kind"], "survey");
    assert_eq!(all.next().await["workflow"], id.as_str());
    assert_eq!(one.next().await["text"], "renew-nodes: begun");
}

#[tokio::test]
async fn a_new_listener_is_told_where_it_is_before_anything_happens() {
    let site = Site::start().await;
    let mut quiet = site.request(Method::GET, "/v1/events").send().await.unwrap();
    let told = tokio::time::timeout(PATIENCE, quiet.chunk()).await.expect("it is told").unwrap().unwrap();
    let told = std::str::from_utf8(&told).unwrap();
    let cursor = told.strip_prefix("id: ").and_then(|rest| rest.strip_suffix("\n\n")).unwrap_or_else(|| panic!("{told}"));
    drop(quiet);
    let id = site.rollout().await;
    let mut again = Reader::open(&site, "/v1/events", Some(cursor)).await;
    assert_eq!(again.next().await["workflow"], id.as_str(), "what happened while nobody listened");
}

#[tokio::test]
async fn a_stream_until_now_ends() {
    let site = Site::start().await;
    for _ in 0..3 {
        site.rollout().await;
    }
    let response = site.request(Method::GET, "/v1/events?after=0-0&until_now=true").send().await.unwrap();
    let text = tokio::time::timeout(PATIENCE, response.text()).await.expect("it ends").unwrap();
    assert_eq!(text.matches("data:").count(), 3);
    let nothing = Site::start().await.request(Method::GET, "/v1/events?after=0&until_now=true").send().await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, nothing.text()).await.expect("it ends").unwrap(), "");
}

#[tokio::test]
async fn a_stream_until_now_ends_although_what_happened_last_is_not_kept_any_more() {
    let site = Site::start().await;
    let told = site.rollout().await;
    let swept = site.rollout().await;
    site.work(&swept, vec![begun("renew-nodes")], Next::End { keep: std::time::Duration::ZERO }).await;
    site.clock.advance(std::time::Duration::from_secs(1));
    assert_eq!(site.store.sweep().await.unwrap(), 1);
    // A daemon that was started since, which never heard of it.
    let site = Site::with(Wish { store: Some(site.store.clone()), ..Wish::default() }).await;
    let response = site.request(Method::GET, "/v1/events?after=0-0&until_now=true").send().await.unwrap();
    let text = tokio::time::timeout(PATIENCE, response.text()).await.expect("it ends").unwrap();
    assert_eq!((text.matches("data:").count(), text.contains(told.as_str())), (1, true), "{text}");
}

/// The cursors of a store in Redis tell a place within what one write told.
#[tokio::test]
async fn whoever_comes_back_with_a_cursor_of_the_middle_of_a_write_is_served() {
    let site = Site::start().await;
    drop(Reader::open(&site, "/v1/events", Some("1763812345678-0.1")).await);
    let refused = site.request(Method::GET, "/v1/events?after=1763812345678-0;1").send().await.unwrap();
    assert_eq!(refused.status(), 400);
}
