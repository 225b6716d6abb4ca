//! The canary: an instance that has to start on a renewed node before it is given back. In virtual time.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use turnaround_tests::renewal::Renewal;
use turnaround_proof::sim::Death;
use turnaround_workflows::engine::SignalKind;
use turnaround_workflows::ports::CANARY_NAME;
use turnaround_workflows::rehearsal::{Api, Call, Happened, NodeFaults, Outage, SitePlan};
use turnaround_workflows::store::Status;
use turnaround_workflows::updates::RolloutOrder;

const ASKS: &str = "gpu-01 is renewed, and no instance has started on it: what now?";

/// What was seen, without the name of the canary, of which none is left.
async fn why_asked(renewal: &Renewal) -> String {
    let question = renewal.question().await;
    assert_eq!(question.text, ASKS);
    assert!(!renewal.is_open());
    assert_eq!(canaries(renewal), 0);
    question.seen[0].strip_prefix(&format!("{CANARY_NAME}{}: ", renewal.node)).unwrap().to_owned()
}

/// Those that are there.
fn canaries(renewal: &Renewal) -> usize {
    renewal.sim.world.snapshot().instances.iter().filter(|one| one.name.starts_with(CANARY_NAME)).count()
}

/// Those that there ever were.
fn built(renewal: &Renewal) -> usize {
    renewal.count(|what| matches!(what, Happened::InstanceCreated { name, .. } if name.starts_with(CANARY_NAME)))
}

async fn tried(renewal: &Renewal) -> String {
    renewal.output("canary").await
}

async fn is_well(renewal: &Renewal) {
    let headline = renewal.sim.document(&renewal.node).await.headline;
    assert_eq!((renewal.status().await, renewal.is_open(), canaries(renewal)), (Status::Succeeded, true, 0), "{headline}");
}

fn site() -> SitePlan {
    SitePlan::uniform(3, 1)
}

fn with(faults: NodeFaults) -> SitePlan {
    let mut plan = site();
    plan.node("gpu-01").unwrap().faults = faults;
    plan
}

fn fails() -> SitePlan {
    with(NodeFaults { canary_fails: true, ..NodeFaults::default() })
}

#[tokio::test]
async fn one_is_built_elsewhere_moved_onto_the_node_and_removed() {
    let renewal = Renewal::of(site(), None).await;
    is_well(&renewal).await;
    assert_eq!((built(&renewal), tried(&renewal).await), (1, r#""started""#.to_owned()));
    let to = |what: &Happened| matches!(what, Happened::InstanceMoved { to, .. } if to == "gpu-01");
    assert_eq!(renewal.count(to), 1);
    // Where none is ordered, there is none.
    let renewal = Renewal::with(site(), None, |order| order.rules.canary = None).await;
    is_well(&renewal).await;
    assert_eq!((built(&renewal), tried(&renewal).await), (0, r#""not-ordered""#.to_owned()));
}

#[tokio::test]
async fn one_that_can_not_be_moved_onto_the_node_is_a_question_and_the_node_stays_closed() {
    let why = "it could not be moved onto the node: Migration pre-check error: Unacceptable CPU info: CPU doesn't have compatibility.";
    for last in ["accept", "leave"] {
        let mut renewal = Renewal::of(fails(), None).await;
        assert_eq!(why_asked(&renewal).await, why);
        renewal.answer("retry").await;
        assert_eq!((why_asked(&renewal).await.as_str(), built(&renewal)), (why, 2));
        renewal.answer(last).await;
        if last == "accept" {
            is_well(&renewal).await;
            assert_eq!(tried(&renewal).await, format!(r#"{{"accepted":{{"why":"{why}"}}}}"#));
        } else {
            assert_eq!((renewal.sim.document(&renewal.node).await.status, renewal.is_open(), canaries(&renewal)), (Status::Failed, false, 0));
        }
        assert_eq!(built(&renewal), 2);
    }
}

#[tokio::test]
async fn one_that_does_not_start_there_is_a_question() {
    let renewal = Renewal::of(with(NodeFaults { canary_does_not_boot: true, ..NodeFaults::default() }), None).await;
    let why = why_asked(&renewal).await;
    assert!(why.starts_with("it did not start on the node: ") && why.ends_with("failed to initialize kvm: Permission denied"), "{why}");
    assert_eq!(built(&renewal), 1);
}

#[tokio::test]
async fn one_that_goes_on_running_as_another_host_has_started_it_is_none_that_has_started() {
    let renewal = Renewal::of(with(NodeFaults { canary_does_not_stop: true, ..NodeFaults::default() }), None).await;
    assert_eq!(why_asked(&renewal).await, "not done within 15 min: the canary was to be stopped on the node, and runs");
    let renewal = Renewal::of(with(NodeFaults { canary_start_is_not_heard: true, ..NodeFaults::default() }), None).await;
    assert_eq!(why_asked(&renewal).await, "not done within 15 min: the canary is powering-on on gpu-01");
}

#[tokio::test]
async fn killed_at_any_point_one_that_does_not_start_is_asked_about_once() {
    let plan = || with(NodeFaults { canary_does_not_boot: true, ..NodeFaults::default() });
    let whole = Death::never();
    why_asked(&Renewal::of(plan(), Some(whole.clone())).await).await;
    let first = whole.names().iter().position(|name| name == "before create_canary").unwrap();
    for point in u32::try_from(first).unwrap()..=whole.passed() {
        let renewal = Renewal::of(plan(), Some(Death::at(point))).await;
        let why = why_asked(&renewal).await;
        assert!(why.starts_with("it did not start on the node: ") && why.ends_with("Permission denied"), "killed at point {point}: {why}");
        assert_eq!(built(&renewal), 1, "killed at point {point}");
    }
}

#[tokio::test]
async fn one_that_moves_is_stopped_when_an_operator_ends_there() {
    let mut plan = SitePlan::uniform(3, 0);
    plan.latencies.live_migration = Duration::from_secs(48 * 3600);
    let renewal = Renewal::of(plan.clone(), None).await;
    let asked = |what: &Happened| matches!(what, Happened::MigrationRequested { to: Some(to), .. } if to == "gpu-01");
    let moves = renewal.sim.world.events().iter().find(|event| asked(&event.what)).unwrap().at;
    let from = moves.since(turnaround_proof::sim::MORNING) + Duration::from_secs(30);
    plan.faults.outages = vec![Outage { api: Api::Nova, node: None, from, lasts: Duration::from_secs(3 * 3600) }];
    let mut renewal = Renewal::of(plan, None).await;
    assert_eq!(renewal.question().await.text, "`canary` of gpu-01 does not succeed: what now?");
    renewal.sim.clock.advance(Duration::from_secs(4 * 3600));
    renewal.answer("leave").await;
    assert_eq!((renewal.sim.document(&renewal.node).await.status, renewal.is_open(), canaries(&renewal)), (Status::Failed, false, 1));
    renewal.sim.clock.advance(Duration::from_secs(60));
    renewal.sim.world.snapshot();
    let end = |what: &Happened| matches!(what, Happened::MigrationEnded { status, .. } if status == "cancelled");
    assert_eq!(renewal.count(end), 1);
}

#[tokio::test]
async fn one_whose_console_does_not_say_what_it_should_is_a_question() {
    let speechless = |order: &mut RolloutOrder| order.rules.canary.as_mut().unwrap().console = Some("ready".to_owned());
    let renewal = Renewal::with(site(), None, speechless).await;
    let said = format!("its last line is `{CANARY_NAME}{} login: `", renewal.node);
    assert_eq!(why_asked(&renewal).await, format!("not done within 15 min: the canary's console does not say `ready`; {said}"));
}

#[tokio::test]
async fn one_for_which_there_is_no_room_elsewhere_is_a_question() {
    let mut plan = SitePlan::uniform(2, 0);
    plan.node("gpu-02").unwrap().disabled = Some("broken fan, ask bob".to_owned());
    let mut renewal = Renewal::of(plan, None).await;
    let why = "it could not be built on another host: No valid host was found. There are not enough hosts available.";
    assert_eq!(why_asked(&renewal).await, why);
    renewal.sim.world.enable_service("gpu-02").unwrap();
    renewal.answer("retry").await;
    is_well(&renewal).await;
}

#[tokio::test]
async fn whoever_asks_for_another_try_in_other_words_gets_one() {
    let mut renewal = Renewal::of(fails(), None).await;
    why_asked(&renewal).await;
    renewal.sim.clock.advance(Duration::from_secs(1));
    renewal.sim.signal(&renewal.node.clone(), SignalKind::Retry).await;
    renewal.sim.run().await;
    why_asked(&renewal).await;
    assert_eq!(built(&renewal), 2);
}

#[tokio::test]
async fn an_answer_that_is_lost_leads_to_no_second_canary_and_to_no_second_move() {
    for call in [Call::CreateCanary, Call::PutCanary, Call::StopCanary, Call::StartCanary, Call::RemoveCanary] {
        let renewal = Renewal::of(site().loses_answer(call, 1), None).await;
        is_well(&renewal).await;
        assert_eq!(renewal.count(|what| matches!(what, Happened::AnswerLost { .. })), 1);
        assert_eq!(built(&renewal), 1, "{call:?}");
        let to = |what: &Happened| matches!(what, Happened::MigrationRequested { to: Some(to), .. } if to == "gpu-01");
        assert_eq!(renewal.count(to), 1, "{call:?}");
    }
    // Nova's reason is in the action of a request whose id is not known.
    let renewal = Renewal::of(fails().loses_answer(Call::PutCanary, 1), None).await;
    assert_eq!(why_asked(&renewal).await, "it could not be moved onto the node: Nova has its migration as `error`, and says no more");
}

#[tokio::test]
async fn killed_at_any_point_one_is_tried_once_and_none_is_left() {
    let whole = Death::never();
    is_well(&Renewal::of(site(), Some(whole.clone())).await).await;
    let calls = ["create_canary", "put_canary", "stop_canary", "start_canary", "remove_canary"];
    assert!(calls.iter().all(|call| whole.names().contains(&format!("after {call}"))), "{:?}", whole.names());
    for (point, name) in (1..).zip(whole.names()) {
        let renewal = Renewal::of(site(), Some(Death::at(point))).await;
        is_well(&renewal).await;
        assert_eq!(built(&renewal), 1, "killed at point {point}: {name}");
    }
}

#[tokio::test]
async fn killed_at_any_point_one_that_fails_is_asked_about_and_the_answer_counts() {
    let whole = Death::never();
    let mut renewal = Renewal::of(fails(), Some(whole.clone())).await;
    renewal.answer("accept").await;
    is_well(&renewal).await;
    let first = whole.names().iter().position(|name| name == "before create_canary").unwrap();
    for point in u32::try_from(first).unwrap()..=whole.passed() {
        let mut renewal = Renewal::of(fails(), Some(Death::at(point))).await;
        why_asked(&renewal).await;
        renewal.answer("accept").await;
        is_well(&renewal).await;
        assert_eq!(built(&renewal), 1, "killed at point {point}");
    }
}

#[tokio::test]
async fn one_that_never_arrives_is_stopped_before_it_is_removed() {
    let mut plan = SitePlan::uniform(3, 0);
    // Longer than anybody waits.
    plan.latencies.live_migration = Duration::from_secs(48 * 3600);
    let renewal = Renewal::of(plan, None).await;
    let why = why_asked(&renewal).await;
    assert!(why.starts_with("not done within 15 min: the canary is migrating on gpu-0"), "{why}");
    let end = |what: &Happened| matches!(what, Happened::MigrationEnded { status, .. } if status == "cancelled");
    assert_eq!(renewal.count(end), 1);
}

#[tokio::test]
async fn one_that_nova_does_not_delete_is_a_question_of_its_own() {
    let mut plan = SitePlan::uniform(3, 0);
    plan.latencies.schedule = Duration::from_secs(48 * 3600);
    let mut renewal = Renewal::of(plan, None).await;
    for _ in 0..2 {
        let question = renewal.question().await;
        assert_eq!(question.text, "the instance that was tried on gpu-01 is not removed: what now?");
        assert!(question.seen[0].ends_with("building, deleting"), "{question:?}");
        assert_eq!(question.seen[1], "not done within 15 min: the canary is scheduling");
        assert_eq!((renewal.is_open(), canaries(&renewal)), (false, 1));
        renewal.answer("retry").await;
    }
    renewal.sim.clock.advance(Duration::from_secs(60 * 3600));
    renewal.answer("retry").await;
    assert_eq!(why_asked(&renewal).await, "not done within 15 min: the canary is scheduling");
}

#[tokio::test]
async fn a_nova_that_is_away_is_waited_for() {
    let away = |from: u64| {
        let mut plan = site();
        plan.faults.outages = vec![Outage { api: Api::Nova, node: None, from: Duration::from_secs(from), lasts: Duration::from_secs(45) }];
        plan
    };
    let renewed = Renewal::of(site(), None).await;
    let of = |is: fn(&Happened) -> bool| renewed.sim.world.events().iter().filter(|event| is(&event.what)).map(|event| event.at).next_back().unwrap();
    let begun = of(|what| matches!(what, Happened::ServiceUp { .. }));
    let first = begun.since(turnaround_proof::sim::MORNING).as_secs();
    for from in first..first + 120 {
        let renewal = Renewal::of(away(from), None).await;
        is_well(&renewal).await;
        assert_eq!(built(&renewal), 1, "away from {from} s on");
    }
}
