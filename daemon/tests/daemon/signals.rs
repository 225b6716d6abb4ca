//! What operators tell workflows: kept if it can be followed, refused at once if it is known that it can't.

use serde_json::json;
use turnaround_workflows::engine::{AnswerEffect, Event, Outcome, Question, Signal, SignalKind, UnwindCause};
use turnaround_workflows::store::{Next, WorkflowId};

use super::site::{KEEP, NOON, Site, at, begun, claim, ended};

async fn check(site: &Site, id: &str, signal: serde_json::Value, expected: u16, code: &str) {
    let (status, answer) = site.post(&format!("/v1/workflows/{id}/signals"), &signal).await;
    let kind = answer["type"].as_str().unwrap_or("").replace("urn:turnaround:problem:", "");
    assert_eq!((status, kind.as_str()), (expected, code), "{signal}: {answer}");
}

#[tokio::test]
async fn what_can_not_be_followed_is_refused_while_its_author_looks() {
    let site = Site::start().await;
    check(&site, "nothing", json!({ "signal": "pause" }), 404, "no-such-workflow").await;
    let id = site.rollout().await;
    let refused = [
        (json!({ "signal": "resume" }), 409, "not-now"),
        (json!({ "signal": "retry" }), 409, "not-now"),
        (json!({ "signal": "answer", "key": "retry" }), 409, "no-question"),
        (json!({ "signal": "child-ended" }), 422, "bad-request"),
        (json!({ "signal": "pause", "because": "x" }), 422, "bad-request"),
        (json!({ "signal": "pause", "why": "x".repeat(501) }), 400, "bad-request"),
    ];
    for (signal, status, code) in refused {
        check(&site, id.as_str(), signal, status, code).await;
    }
    site.work(&id, vec![Event::Paused { by: "ada".to_owned(), why: "lunch".to_owned(), beside: false }], Next::At(at(NOON))).await;
    check(&site, id.as_str(), json!({ "signal": "pause" }), 409, "not-now").await;
    site.work(&id, vec![ended(Outcome::Aborted, "")], KEEP).await;
    for signal in ["pause", "resume", "abort", "retry"] {
        check(&site, id.as_str(), json!({ "signal": signal }), 409, "workflow-ended").await;
    }
}

pub(crate) async fn asking(site: &Site) -> WorkflowId {
    let id = site.rollout().await;
    let question = Question::new("what now?")
        .answer("retry", AnswerEffect::Retry, "tries again")
        .answer("unwind", AnswerEffect::Unwind, "goes back");
    let asked = Event::OperatorAsked { step: "renew-nodes".to_owned(), question };
    site.work(&id, vec![begun("renew-nodes"), asked], Next::Signal).await;
    id
}

#[tokio::test]
async fn an_answer_must_be_one_of_those_that_are_offered_and_is_kept_with_its_author() {
    let site = Site::start().await;
    let id = asking(&site).await;
    check(&site, id.as_str(), json!({ "signal": "answer", "key": "yes" }), 409, "not-an-answer").await;
    let body = json!({ "signal": "answer", "key": "retry" });
    check(&site, id.as_str(), body, 202, "").await;
    let claimed = claim(&*site.store, &id).await;
    let signal: Signal = serde_json::from_str(&claimed.signals[0].body).unwrap();
    let own = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().unwrap().name;
    assert_eq!((signal.kind, signal.by), (SignalKind::Answer { key: "retry".to_owned(), question: Some(1) }, own), "for the question that was open");
}

#[tokio::test]
async fn an_answer_to_a_question_that_is_over_is_refused() {
    let site = Site::start().await;
    let id = asking(&site).await;
    let shown = site.get(&format!("/v1/workflows/{id}")).await.1;
    assert_eq!(shown["question"]["number"], 1, "{shown}");
    assert_eq!(shown["question"]["answers"][0]["command"], format!("turnaround answer {id} retry --question 1"));
    check(&site, id.as_str(), json!({ "signal": "answer", "key": "retry", "question": 2 }), 409, "not-now").await;
    let answered = site.turnaround(&["answer", id.as_str(), "retry", "--question", "1"]).await;
    let said = String::from_utf8(answered.stderr).unwrap();
    assert!(answered.status.success() && said.contains("it answers: what now?"), "{said}");
}

#[tokio::test]
async fn a_signal_that_is_sent_twice_carries_one_id() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let path = format!("/v1/workflows/{id}/signals");
    for _ in 0..2 {
        assert_eq!(site.post_with_key(&path, "k", &json!({ "signal": "pause", "why": "lunch" })).await.0, 202);
        site.clock.advance(std::time::Duration::from_secs(1));
    }
    let signals = claim(&*site.store, &id).await.signals;
    let ids: Vec<String> = signals.iter().map(|stored| serde_json::from_str::<Signal>(&stored.body).unwrap().id).collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1], "the engine drops the second by its id");
}

#[tokio::test]
async fn a_signal_that_was_followed_is_no_failure_when_it_is_sent_again() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let path = format!("/v1/workflows/{id}/signals");
    let (pause, abort) = (json!({ "signal": "pause", "why": "lunch" }), json!({ "signal": "abort" }));
    assert_eq!(site.post_with_key(&path, "k", &pause).await.0, 202);
    let paused = Event::Paused { by: "ada".to_owned(), why: "lunch".to_owned(), beside: false };
    let user = site.get("/v1/status").await.1["you"]["user"].as_str().unwrap().to_owned();
    site.follow(&id, &format!("{user}/k"), paused, Next::Signal).await;
    let (status, again) = site.post_with_key(&path, "k", &pause).await;
    assert_eq!((status, &again["signal"]), (202, &json!("pause")), "{again}");
    // A second pause is one.
    assert_eq!(site.post_with_key(&path, "k2", &pause).await.0, 409);
    let ended = Event::UnwindBegun { cause: UnwindCause::Aborted { by: "ada".to_owned(), why: String::new() } };
    site.follow(&id, &format!("{user}/a"), ended, Next::End { keep: std::time::Duration::from_secs(3_600) }).await;
    assert_eq!(site.post_with_key(&path, "a", &abort).await.0, 202);
    assert_eq!(site.post_with_key(&path, "b", &abort).await.0, 409);
}

#[tokio::test]
async fn there_is_no_way_back_twice() {
    let site = Site::start().await;
    let id = asking(&site).await;
    check(&site, id.as_str(), json!({ "signal": "abort", "why": "storm" }), 202, "").await;
    let cause = turnaround_workflows::engine::UnwindCause::Aborted { by: "ada".to_owned(), why: "storm".to_owned() };
    site.work(&id, vec![Event::UnwindBegun { cause }], Next::Signal).await;
    check(&site, id.as_str(), json!({ "signal": "abort" }), 409, "not-now").await;
}

#[tokio::test]
async fn whoever_aborts_what_is_paused_is_told_that_nothing_happens_before_it_is_resumed() {
    let site = Site::start().await;
    let id = asking(&site).await;
    let signal = async |signal: serde_json::Value| site.post(&format!("/v1/workflows/{id}/signals"), &signal).await.1["waits_for_resume"].clone();
    assert_eq!(signal(json!({ "signal": "answer", "key": "retry" })).await, json!(null));
    site.work(&id, vec![Event::Paused { by: "ada".to_owned(), why: "lunch".to_owned(), beside: false }], Next::At(at(NOON))).await;
    for told in [json!({ "signal": "answer", "key": "unwind" }), json!({ "signal": "abort" }), json!({ "signal": "retry" })] {
        assert_eq!(signal(told.clone()).await, json!(true), "{told}");
    }
    assert_eq!(signal(json!({ "signal": "resume" })).await, json!(null));
    let aborted = site.turnaround(&["abort", id.as_str()]).await;
    let said = String::from_utf8(aborted.stderr).unwrap();
    assert!(said.contains(&format!("it is paused, and follows this only once it is resumed: turnaround show {id}")), "{said}");
    // And once the worker has read it, whoever looks is told.
    let cause = UnwindCause::Aborted { by: "ada".to_owned(), why: String::new() };
    site.work(&id, vec![Event::UnwindBegun { cause }], Next::Signal).await;
    let (_, shown) = site.get(&format!("/v1/workflows/{id}")).await;
    assert_eq!(shown["why_not_now"]["text"], "paused by ada: lunch; it goes back once it is resumed, and not before");
    assert_eq!(shown["why_not_now"]["unblock"], format!("turnaround resume {id}"));
}
