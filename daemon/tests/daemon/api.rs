//! Every route, and every problem.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use turnaround_daemon::api::caller::Access;
use turnaround_daemon::api::{BODY_BYTES_MAX, ROUTES};
use turnaround_daemon::wire::STATUS_LINES_MAX;
use turnaround_workflows::engine::{AnswerEffect, Checkpoint, ChildStarted, Event, Outcome, Question, Start, UnwindCause, start};
use turnaround_workflows::store::{Digest, Next, PAGE_MAX, Resource, Store as _, Take, WorkflowId};
use turnaround_workflows::updates::{self, NODE_OS, NODE_OS_ROLLOUT, NODES_OUT, NodeSurvey, RolloutOrder, SurveyOrder, SurveyReport};

use super::site::{KEEP, NOON, PATIENCE, Site, Wish, Work, at, begun, ended};

#[tokio::test]
async fn whoever_is_no_operator_may_look_at_everything_and_change_nothing() {
    let site = Site::with(Wish { access: Access::only(Vec::new(), &["somebody-else".to_owned()]), ..Wish::default() }).await;
    for (method, path) in ROUTES {
        let path = path.replace("{id}", "nothing").replace("{node}", "gpu-01");
        let method: Method = method.parse().unwrap();
        let sent = site.request(method.clone(), &path).json(&json!({})).send().await.unwrap();
        if method == Method::GET {
            assert_ne!(sent.status(), 403, "{path}");
        } else {
            assert_eq!(sent.status(), 403, "{method} {path}");
        }
    }
    let (status, problem) = site.post("/v1/surveys", &json!({})).await;
    assert_eq!(status, 403);
    assert!(problem["remedy"].as_str().unwrap().contains("daemon.operators"), "{problem}");
    let (_, status) = site.get("/v1/status").await;
    assert_eq!(status["you"]["may_change"], false);
}

#[tokio::test]
async fn an_operator_is_known_by_name() {
    let own = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().unwrap().name;
    let site = Site::with(Wish { access: Access::only(Vec::new(), std::slice::from_ref(&own)), ..Wish::default() }).await;
    let (_, status) = site.get("/v1/status").await;
    assert_eq!(status["you"], json!({ "user": own, "may_change": true }));
    assert_eq!(site.post("/v1/surveys", &json!({})).await.0, 201);
}

#[tokio::test]
async fn who_can_not_be_named_is_told_what_is_the_matter_and_may_look_meanwhile() {
    let failing = |trusted| Access::only(trusted, &["ada".to_owned()]).asking(|_| Err(nix::errno::Errno::EAGAIN));
    let site = Site::with(Wish { access: failing(Vec::new()), ..Wish::default() }).await;
    let (status, problem) = site.post("/v1/surveys", &json!({})).await;
    assert_eq!((status, &problem["type"]), (503, &json!("urn:turnaround:problem:name-lookup-failed")), "{problem}");
    let uid = nix::unistd::Uid::effective().as_raw();
    assert!(problem["detail"].as_str().unwrap().contains(&format!("could not say who uid {uid} is")), "{problem}");
    let remedy = |problem: &serde_json::Value| problem["remedy"].as_str().unwrap().to_owned();
    assert!(remedy(&problem).contains("try again") && !remedy(&problem).contains("daemon.operators"), "{problem}");
    let (status, view) = site.get("/v1/status").await;
    assert_eq!((status, &view["you"]), (200, &json!({ "user": format!("uid {uid}"), "may_change": false })));
    // Whose rights do not hang on a name is not locked out.
    let site = Site::with(Wish { access: failing(vec![uid]), ..Wish::default() }).await;
    assert_eq!(site.post("/v1/surveys", &json!({})).await.0, 201);
    // The system says that there is no name.
    let site = Site::with(Wish { access: Access::only(Vec::new(), &["ada".to_owned()]).asking(|_| Ok(None)), ..Wish::default() }).await;
    let (status, problem) = site.post("/v1/surveys", &json!({})).await;
    assert_eq!((status, &problem["type"]), (403, &json!("urn:turnaround:problem:not-an-operator")), "{problem}");
    assert!(remedy(&problem).contains("getent passwd") && !remedy(&problem).contains("daemon.operators"), "{problem}");
}

#[tokio::test]
async fn what_can_not_be_understood_is_a_problem_with_its_name() {
    let site = Site::start().await;
    let cases = [
        ("/v1/nothing", 404, "no-such-route"),
        ("/", 404, "no-such-route"),
        ("/v1/workflows/nothing", 404, "no-such-workflow"),
        ("/v1/workflows/nothing/journal", 404, "no-such-workflow"),
        ("/v1/workflows/not%20an%20id", 400, "bad-request"),
        ("/v1/workflows?limit=0", 400, "bad-request"),
        ("/v1/workflows?limit=501", 400, "bad-request"),
        ("/v1/workflows?scoop=all", 400, "bad-request"),
        ("/v1/workflows?id_prefix=", 400, "bad-request"),
        ("/v1/workflows/x/journal?from=0", 400, "bad-request"),
        ("/v1/events?after=x", 400, "bad-request"),
    ];
    for (path, expected, code) in cases {
        let (status, problem) = site.get(path).await;
        assert_eq!((status, &problem["type"]), (expected, &json!(format!("urn:turnaround:problem:{code}"))), "{path}: {problem}");
    }
    let wrong_method = site.request(Method::DELETE, "/v1/status").send().await.unwrap();
    assert_eq!(wrong_method.status(), 405);
    let not_json = site.request(Method::POST, "/v1/rollouts").body("x").send().await.unwrap();
    assert_eq!(not_json.status(), 415);
    let broken = site.request(Method::POST, "/v1/rollouts").header("content-type", "application/json").body("{").send().await.unwrap();
    assert_eq!(broken.status(), 400);
    let large = json!({ "nodes": ["x".repeat(BODY_BYTES_MAX)], "image": "noble-2" });
    assert_eq!(site.post("/v1/rollouts", &large).await.0, 413);
}

#[tokio::test]
async fn an_order_names_only_what_the_configuration_has() {
    let site = Site::start().await;
    let order = |nodes: &[&str], image: &str| json!({ "nodes": nodes, "image": image });
    let cases = [
        (order(&["gpu-09"], "noble-2"), "not-in-configuration"),
        (order(&["gpu-01"], "noble-9"), "not-in-configuration"),
        (order(&["gpu-01", "gpu-01"], "noble-2"), "bad-order"),
        (order(&[], "noble-2"), "bad-order"),
        (json!({ "nodes": ["gpu-01"], "image": "noble-2", "dryrun": true }), "bad-request"),
        (order(&["-rf"], "noble-2"), "bad-request"),
    ];
    for (body, code) in cases {
        let (status, problem) = site.post("/v1/rollouts", &body).await;
        assert_eq!((status, &problem["type"]), (422, &json!(format!("urn:turnaround:problem:{code}"))), "{body}: {problem}");
    }
    assert_eq!(site.get("/v1/workflows?scope=all").await.1["workflows"], json!([]));
}

#[tokio::test]
async fn an_order_that_is_sent_twice_starts_once() {
    let site = Site::start().await;
    let order = json!({ "nodes": ["gpu-01"], "image": "noble-2" });
    let (first, started) = site.post_with_key("/v1/rollouts", "key-1", &order).await;
    let (second, again) = site.post_with_key("/v1/rollouts", "key-1", &order).await;
    assert_eq!((first, second), (201, 200));
    assert_eq!((&started["id"], &started["fresh"]), (&again["id"], &json!(true)));
    assert_eq!(again["fresh"], false);
    let (status, problem) = site.post_with_key("/v1/rollouts", "key-1", &json!({ "nodes": ["gpu-02"], "image": "noble-2" })).await;
    assert_eq!((status, &problem["type"]), (409, &json!("urn:turnaround:problem:key-reused")));
    // A dry run with the same key is another kind, and so another workflow.
    let dry = json!({ "nodes": ["gpu-01"], "image": "noble-2", "dry_run": true });
    assert_eq!(site.post_with_key("/v1/rollouts", "key-1", &dry).await.0, 201);
    assert_eq!(site.post_with_key("/v1/rollouts", &"k".repeat(201), &order).await.0, 400);
    assert_eq!(site.get("/v1/workflows").await.1["workflows"].as_array().unwrap().len(), 2);
}

async fn order(site: &Site, nodes: &[&str], more: serde_json::Value) -> (u16, String) {
    let mut body = json!({ "nodes": nodes, "image": "noble-2" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, answer) = site.post("/v1/rollouts", &body).await;
    (status, answer.to_string())
}

#[tokio::test]
async fn a_node_is_not_ordered_a_second_time_unless_that_is_said() {
    let site = Site::start().await;
    let first = json!({ "nodes": ["gpu-02"], "image": "noble-2" });
    let (_, started) = site.post_with_key("/v1/rollouts", "key-1", &first).await;
    let id = started["id"].as_str().unwrap().to_owned();
    let (status, problem) = site.post_with_key("/v1/rollouts", "key-2", &json!({ "nodes": ["gpu-01", "gpu-02"], "image": "noble-2" })).await;
    assert_eq!((status, &problem["type"]), (409, &json!("urn:turnaround:problem:renewed-already")));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(&format!("gpu-02 (by {id})")) && !detail.contains("gpu-01"), "{detail}");
    assert!(problem["remedy"].as_str().unwrap().contains(&format!("`turnaround show {id}`")), "{problem}");
    assert_eq!(site.get("/v1/workflows?scope=all").await.1["workflows"].as_array().unwrap().len(), 1, "nothing was started");
    // The request that began it finds it again; a look, another node, and who says so are served.
    let (status, again) = site.post_with_key("/v1/rollouts", "key-1", &first).await;
    assert_eq!((status, &again["id"]), (200, &json!(id)));
    assert_eq!(order(&site, &["gpu-02"], json!({ "dry_run": true })).await.0, 201);
    assert_eq!(order(&site, &["gpu-01"], json!({})).await.0, 201);
    assert_eq!(order(&site, &["gpu-02"], json!({ "again": true })).await.0, 201);
}

#[tokio::test]
async fn a_node_whose_own_workflow_has_ended_can_be_ordered_while_its_rollout_goes_on() {
    let site = Site::start().await;
    let rollout = site.rollout().await;
    let child = site.node_begun(&rollout, "gpu-01").await;
    let (status, problem) = order(&site, &["gpu-01"], json!({})).await;
    assert!(status == 409 && problem.contains(&format!("gpu-01 (by {child})")), "{problem}");
    site.work(&child, vec![ended(Outcome::Failed, "left as it is")], KEEP).await;
    assert_eq!(order(&site, &["gpu-01"], json!({})).await.0, 201);
    // The other one is still to come, until the rollout goes back.
    assert_eq!(order(&site, &["gpu-02"], json!({})).await.0, 409);
    let cause = UnwindCause::Aborted { by: "ada".to_owned(), why: String::new() };
    site.work(&rollout, vec![Event::UnwindBegun { cause }], Next::At(at(NOON))).await;
    assert_eq!(order(&site, &["gpu-02"], json!({})).await.0, 201);
}

#[tokio::test]
async fn a_rollout_that_can_not_be_read_may_be_about_any_node() {
    let site = Site::start().await;
    let rollout = site.rollout().await;
    let nonsense = json!({ "nodes": "all" });
    let mut new = updates::survey(&SurveyOrder { nodes: Vec::new() }, "ada").unwrap();
    (new.id, new.kind, new.input) = ("node-os-rollout-odd".parse().unwrap(), NODE_OS_ROLLOUT.to_owned(), nonsense);
    site.work(&rollout, vec![ended(Outcome::Aborted, "")], KEEP).await;
    site.store.create(start(new, at(NOON)).unwrap()).await.unwrap();
    let (status, problem) = order(&site, &["gpu-01"], json!({})).await;
    assert!(status == 409 && problem.contains("gpu-01 (by node-os-rollout-odd)"), "{problem}");
}

#[tokio::test]
async fn of_orders_for_one_node_at_the_same_moment_one_is_taken() {
    let site = Site::start().await;
    let other = site.app.orders.lock().await;
    let first = async {
        // Long enough for the second to come, and to be taken by a daemon that does not wait.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let order = RolloutOrder::new(&site.app.config, &["gpu-01".parse().unwrap()], &"noble-2".parse().unwrap()).unwrap();
        site.store.create(start(updates::rollout(&order, "ada").unwrap(), at(NOON)).unwrap()).await.unwrap();
        drop(other);
    };
    let (_, (second, _)) = tokio::join!(first, order(&site, &["gpu-01"], json!({})));
    assert_eq!(second, 409);
}

#[tokio::test]
async fn a_workflow_is_shown_with_its_steps_their_timings_and_its_question() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let question = Question::new("gpu-01 does not come back: what now?")
        .seen("it has not answered for 26 min")
        .answer("retry", AnswerEffect::Retry, "tries again")
        .answer("leave", AnswerEffect::Leave, "ends here");
    let child: WorkflowId = id.child("gpu-01").unwrap();
    let events = vec![
        begun("renew-nodes"),
        Event::ChildrenStarted { step: "renew-nodes".to_owned(), children: vec![ChildStarted { key: "gpu-01".to_owned(), id: child }], note: String::new() },
        Event::StepFailed { step: "renew-nodes".to_owned(), error: "no".to_owned(), failures: 1, retry_at: at(NOON) },
        Event::OperatorAsked { step: "renew-nodes".to_owned(), question },
    ];
    site.work(&id, events, Next::Signal).await;
    let (_, shown) = site.get(&format!("/v1/workflows/{id}")).await;
    assert_eq!(shown["status"], "needs-operator");
    assert_eq!(shown["why_not_now"]["code"], "question");
    assert_eq!(shown["steps"][1]["state"], "asking");
    assert_eq!(shown["steps"][1]["failures"], 1);
    assert_eq!(shown["steps"][1]["begun"], "2026-11-22T12:00:00.000Z");
    assert_eq!(shown["question"]["answers"][1]["command"], format!("turnaround answer {id} leave --question 1"));
    assert_eq!(shown["children"][0]["id"], format!("{id}.gpu-01"));
    assert_eq!((&shown["journal_entries"], &shown["journal_problem"]), (&json!(5), &json!(null)));
    let (_, status) = site.get("/v1/status").await;
    assert_eq!(status["questions"][0]["id"], id.as_str());
    assert_eq!(status["counts"]["needs-operator"], 1);
}

#[tokio::test]
async fn a_journal_is_read_in_pages_and_each_page_is_sealed_to_the_one_before() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let note = |n: u64| Event::StepCheckpointed { step: "renew-nodes".to_owned(), checkpoint: Checkpoint::of(&json!(n)).unwrap(), note: format!("note {n}") };
    let mut events = vec![begun("renew-nodes")];
    events.extend((0..7).map(note));
    site.work(&id, events, Next::Signal).await;
    let mut seen = Vec::new();
    let mut from = 1;
    loop {
        let (_, page) = site.get(&format!("/v1/workflows/{id}/journal?from={from}&limit=4")).await;
        assert_eq!(page["broken"], json!(null));
        seen.extend(page["entries"].as_array().unwrap().iter().map(|entry| {
            assert_eq!(entry["sealed"], true);
            entry["seq"].as_u64().unwrap()
        }));
        match page["next"].as_u64() {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[tokio::test]
async fn a_forged_entry_is_named_and_nothing_behind_it_is_trusted() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let forged = Work { events: vec![begun("renew-nodes")], take: Vec::new(), next: Next::At(at(NOON)), forged: Some(Digest([0; 32])), follows: None };
    forged.on(&*site.store, &id).await;
    site.work(&id, vec![Event::Paused { by: "ada".to_owned(), why: String::new(), beside: false }], Next::Signal).await;
    let (_, journal) = site.get(&format!("/v1/workflows/{id}/journal")).await;
    let sealed: Vec<_> = journal["entries"].as_array().unwrap().iter().map(|entry| entry["sealed"].as_bool().unwrap()).collect();
    assert_eq!(sealed, [true, false, false]);
    assert!(journal["broken"].as_str().unwrap().contains("entry 2"), "{journal}");
    let (_, shown) = site.get(&format!("/v1/workflows/{id}")).await;
    assert!(shown["journal_problem"].as_str().unwrap().contains("entry 2"), "{shown}");
    assert_eq!(shown["created_by"], own_name(), "what comes before is told: {shown}");
}

fn own_name() -> String {
    nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().unwrap().name
}

#[tokio::test]
async fn a_question_is_shown_however_many_younger_workflows_are_open() {
    let site = Site::start().await;
    let id = super::signals::asking(&site).await;
    for number in 0..STATUS_LINES_MAX + 20 {
        site.clock.advance(Duration::from_millis(1));
        let (code, _) = site.post_with_key("/v1/surveys", &format!("{number}"), &json!({})).await;
        assert_eq!(code, 201);
    }
    let (_, status) = site.get("/v1/status").await;
    let questions: Vec<_> = status["questions"].as_array().unwrap().iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!((questions, status["open"].as_array().unwrap().len(), &status["truncated"]), (vec![id.as_str()], STATUS_LINES_MAX, &json!(true)));
}

#[tokio::test]
async fn the_beginning_of_an_id_finds_it_and_not_its_children() {
    let site = Site::start().await;
    let (_, started) = site.post_with_key("/v1/surveys", "a", &json!({})).await;
    let id = started["id"].as_str().unwrap();
    let behind_kind = id.strip_prefix("survey-").unwrap();
    for typed in [id, &id[..9], &behind_kind[..5]] {
        let (_, found) = site.get(&format!("/v1/workflows?scope=all&id_prefix={typed}")).await;
        assert_eq!(found["workflows"][0]["id"], id, "{typed}");
        assert_eq!(found["workflows"].as_array().unwrap().len(), 1, "{typed}");
    }
    let (_, none) = site.get("/v1/workflows?scope=all&id_prefix=zz").await;
    assert_eq!(none["workflows"], json!([]));
}

#[tokio::test]
async fn whoever_means_a_rollout_by_the_half_of_its_id_does_not_get_its_only_node() {
    let site = Site::start().await;
    let id = site.rollout().await;
    site.node_begun(&id, "gpu-01").await;
    let half = id.as_str().strip_prefix("node-os-").unwrap();
    let (_, found) = site.get(&format!("/v1/workflows?id_prefix={half}")).await;
    assert_eq!(found["workflows"], json!([]), "{half}");
    let aborted = site.turnaround(&["abort", half]).await;
    assert_eq!(aborted.status.code(), Some(5), "{}", String::from_utf8_lossy(&aborted.stderr));
    // What is behind the rollout's own kind finds it.
    let behind_kind = half.strip_prefix("rollout-").unwrap();
    let (_, found) = site.get(&format!("/v1/workflows?id_prefix={behind_kind}")).await;
    assert_eq!(found["workflows"][0]["id"], id.as_str());
}

#[tokio::test]
async fn a_node_that_was_left_out_is_shown_and_can_be_released_once() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let share = Resource::Budget { name: NODES_OUT.to_owned(), member: "gpu-01".to_owned() };
    let taking = Work { events: vec![begun("renew-nodes")], take: vec![Take::new(share, 2)], next: Next::At(at(NOON)), forged: None, follows: None };
    taking.on(&*site.store, &id).await;
    let (status, problem) = site.post("/v1/nodes/gpu-01/release", &json!({})).await;
    assert_eq!((status, &problem["type"]), (409, &json!("urn:turnaround:problem:not-left-out")), "an open workflow holds it");
    site.work(&id, vec![ended(Outcome::Failed, "left as it is")], KEEP).await;
    let (_, nodes) = site.get("/v1/nodes").await;
    assert_eq!(nodes["nodes"][0]["out"]["left_out"], true);
    let (_, before) = site.get("/v1/status").await;
    assert_eq!(before["budgets"][0]["members"][0]["member"], "gpu-01");
    assert!(before["warnings"][0].as_str().unwrap().contains("gpu-01"), "{before}");
    survey(&site, "gpu-01", "disabled: ask Ada").await;
    let (status, released) = site.post("/v1/nodes/gpu-01/release", &json!({})).await;
    assert_eq!((status, &released["nova_host"], &released["survey"]["service"]), (200, &json!("gpu-01"), &json!("disabled: ask Ada")));
    assert_eq!((&released["left"], &released["surveyed"]), (&json!("2026-11-22T12:00:00.000Z"), &json!("2026-11-22T12:00:00.000Z")));
    assert_eq!(site.post("/v1/nodes/gpu-01/release", &json!({})).await.0, 409);
    assert_eq!(site.post("/v1/nodes/gpu-77/release", &json!({})).await.0, 404);
    assert_eq!(site.post("/v1/nodes/gpu%2001/release", &json!({})).await.0, 400);
    assert_eq!(site.get("/v1/nodes").await.1["nodes"][0]["out"], json!(null));
}

#[tokio::test]
async fn a_pause_moves_the_deadline_that_is_shown() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let paused = Event::Paused { by: "ada".to_owned(), why: String::new(), beside: false };
    site.work(&id, vec![begun("renew-nodes"), paused], Next::At(at(NOON))).await;
    let shown = async || {
        let (_, view) = site.get(&format!("/v1/workflows/{id}")).await;
        view["steps"].as_array().unwrap().iter().find(|step| step["step"] == "renew-nodes").unwrap()["deadline"].clone()
    };
    assert_eq!(shown().await, "2026-11-22T13:00:00.000Z");
    site.clock.advance(Duration::from_secs(600));
    assert_eq!(shown().await, "2026-11-22T13:10:00.000Z", "as if it were resumed now");
    site.work(&id, vec![Event::Resumed { by: "ada".to_owned() }], Next::Signal).await;
    site.clock.advance(Duration::from_secs(600));
    assert_eq!(shown().await, "2026-11-22T13:10:00.000Z");
}

#[tokio::test]
async fn what_was_answered_during_a_pause_is_shown_with_the_patience_that_it_has_from_then_on() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let paused = Event::Paused { by: "ada".to_owned(), why: String::new(), beside: false };
    site.work(&id, vec![begun("renew-nodes"), paused], Next::At(at(NOON))).await;
    let shown = async || {
        let (_, view) = site.get(&format!("/v1/workflows/{id}")).await;
        view["steps"].as_array().unwrap().iter().find(|step| step["step"] == "renew-nodes").unwrap()["deadline"].clone()
    };
    site.clock.advance(Duration::from_secs(600));
    let answered = Event::RetryRequested { by: "ada".to_owned(), deadline: at("2026-11-22T13:10:00Z") };
    site.work(&id, vec![answered], Next::At(at(NOON))).await;
    assert_eq!(shown().await, "2026-11-22T13:10:00.000Z", "what had passed of the pause by then is not added");
    site.clock.advance(Duration::from_secs(600));
    assert_eq!(shown().await, "2026-11-22T13:20:00.000Z", "as if it were resumed now");
    site.work(&id, vec![Event::Resumed { by: "ada".to_owned() }], Next::Signal).await;
    assert_eq!(shown().await, "2026-11-22T13:20:00.000Z");
    site.clock.advance(Duration::from_secs(600));
    assert_eq!(shown().await, "2026-11-22T13:20:00.000Z");
}

#[tokio::test]
async fn a_step_that_is_done_waits_for_nothing() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let parked = Event::StepParked { step: "renew-nodes".to_owned(), until: None, note: "waits for gpu-01".to_owned() };
    site.work(&id, vec![begun("renew-nodes"), parked], Next::At(at(NOON))).await;
    let shown = async || {
        let (_, view) = site.get(&format!("/v1/workflows/{id}")).await;
        view["steps"].as_array().unwrap().iter().find(|step| step["step"] == "renew-nodes").unwrap().clone()
    };
    assert_eq!(shown().await["note"], "waits for gpu-01");
    let done = Event::StepSucceeded { step: "renew-nodes".to_owned(), output: json!({ "renewed": ["gpu-01"] }), gave: Vec::new() };
    site.work(&id, vec![done], Next::At(at(NOON))).await;
    let step = shown().await;
    assert_eq!((&step["state"], &step["note"], &step["output"]["renewed"]), (&json!("done"), &json!(""), &json!(["gpu-01"])));
}

#[tokio::test]
async fn nodes_are_shown_as_the_newest_survey_saw_them() {
    let site = Site::start().await;
    survey(&site, "gpu-02", "enabled").await;
    let (_, view) = site.get("/v1/nodes").await;
    assert_eq!(view["surveyed"], "2026-11-22T12:00:00.000Z");
    assert_eq!(view["nodes"][0]["survey"], json!(null));
    assert_eq!((&view["nodes"][1]["image"], &view["nodes"][1]["survey"]["instances"]), (&json!("noble-2"), &json!(3)));
    assert_eq!(view["newer_survey"], json!(null));
    // However many fail later, they change nothing of that; the newest is named.
    let mut id: WorkflowId = "none".parse().unwrap();
    for _ in 0..25 {
        site.clock.advance(Duration::from_secs(60));
        let (_, started) = site.post("/v1/surveys", &json!({})).await;
        id = started["id"].as_str().unwrap().parse().unwrap();
        site.work(&id, vec![ended(Outcome::Failed, "Nova says nothing")], KEEP).await;
    }
    let (_, view) = site.get("/v1/nodes").await;
    assert_eq!((&view["surveyed"], &view["nodes"][1]["survey"]["instances"]), (&json!("2026-11-22T12:00:00.000Z"), &json!(3)));
    assert_eq!((&view["newer_survey"]["id"], &view["newer_survey"]["headline"]), (&json!(id.as_str()), &json!("Nova says nothing")));
}

#[tokio::test]
async fn the_last_renewal_of_a_node_is_shown_however_many_others_came_after_it() {
    let site = Site::start().await;
    let first = renewed(&site, "gpu-01").await;
    for number in 0..PAGE_MAX {
        site.clock.advance(Duration::from_millis(1));
        renewed(&site, &format!("other-{number}")).await;
    }
    let (_, view) = site.get("/v1/nodes").await;
    assert_eq!(view["nodes"][0]["renewed"]["id"], first.as_str(), "{}", view["nodes"][0]);
    // The newest one of several.
    site.clock.advance(Duration::from_millis(1));
    let rollout = site.rollout().await;
    let second = site.node_begun(&rollout, "gpu-01").await;
    site.work(&second, vec![ended(Outcome::Failed, "left as it is")], KEEP).await;
    assert_eq!(site.get("/v1/nodes").await.1["nodes"][0]["renewed"]["id"], second.as_str());
}

/// A renewal of `node` that has succeeded.
async fn renewed(site: &Site, node: &str) -> WorkflowId {
    let id: WorkflowId = format!("node-os-{node}").parse().unwrap();
    let by = "ada".to_owned();
    let new = Start { id: id.clone(), kind: NODE_OS.to_owned(), version: 7, target: node.to_owned(), input: json!({}), parent: None, key: None, by, traceparent: None };
    site.store.create(start(new, at(NOON)).unwrap()).await.unwrap();
    site.work(&id, vec![ended(Outcome::Succeeded, "")], KEEP).await;
    id
}

/// A survey that sees `service` of `node`, and nothing of others.
async fn survey(site: &Site, node: &str, service: &str) {
    let (_, started) = site.post("/v1/surveys", &json!({})).await;
    let id: WorkflowId = started["id"].as_str().unwrap().parse().unwrap();
    let seen = NodeSurvey {
        node: node.parse().unwrap(),
        service: service.to_owned(),
        instances: Some(3),
        os_version_id: Some("24.04".to_owned()),
        kernel: None,
        image_sha256: Some("4a5c6e0f8d2b1937a6e4c0d85f3b7291e6a8d4c0b2f19573e8c6a4d0b1f29375".to_owned()),
        problems: Vec::new(),
    };
    let output = serde_json::to_value(SurveyReport { at: at(NOON), nodes: vec![seen] }).unwrap();
    let done = Event::StepSucceeded { step: "survey-site".to_owned(), output, gave: Vec::new() };
    site.work(&id, vec![begun("survey-site"), done, ended(Outcome::Succeeded, "")], KEEP).await;
}

#[tokio::test]
async fn schedules_are_shown_with_five_runs_in_two_zones() {
    let config = "[schedules.nightly]\ncron = \"30 2 * * *\"\ntimezone = \"Europe/Berlin\"\nstarts = \"survey\"".to_owned();
    let site = Site::with(Wish { config, ..Wish::default() }).await;
    let (_, view) = site.get("/v1/schedules").await;
    let schedule = &view["schedules"][0];
    assert_eq!(schedule["next"].as_array().unwrap().len(), 5);
    assert_eq!(schedule["next"][0]["utc"], "2026-11-23T01:30:00.000Z");
    assert_eq!(schedule["next"][0]["local"], "Mon 2026-11-23 02:30:00 +01:00 CET");
    assert_eq!(schedule["judged"], json!(null));
}

#[tokio::test]
async fn the_api_stops_although_somebody_listens_to_events() {
    let mut site = Site::start().await;
    let stream = site.request(Method::GET, "/v1/events").send().await.unwrap();
    site.stop().await;
    tokio::time::timeout(PATIENCE, stream.bytes()).await.expect("the stream ends").unwrap();
    assert!(!site.socket.exists(), "the socket is taken away");
}
