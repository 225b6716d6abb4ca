//! What stands in the way of emptying a node for long: moves that never end, records that mean nothing, owners who have to come. In virtual time.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use turnaround_proof::sim::{Death, MORNING, Sim, order};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::{Question, SignalKind};
use turnaround_workflows::ports::Move;
use turnaround_workflows::rehearsal::{Api, Guest, Happened, Happens, MoveFault, MoveGoesWrong, Outage, SitePlan, VmState};
use turnaround_workflows::store::{Status, WorkflowId};

fn guest(sim: &Sim, name: &str) -> Guest {
    sim.world.guests_where(|guest| guest.name == name).unwrap().remove(0)
}

/// A site whose first node has four instances, of which `a` never ends its live migration; Nova sends `live_at_once` at a time.
async fn never_ending(live_at_once: usize) -> (Sim, WorkflowId) {
    going_wrong(live_at_once, &["gpu-01-a"], MoveGoesWrong::Hangs, 4 * 3600).await
}

/// The same, where the live migrations of `these` go wrong once in that way.
async fn going_wrong(live_at_once: usize, these: &[&str], how: MoveGoesWrong, deadline_secs: u64) -> (Sim, WorkflowId) {
    ordered(hanging(live_at_once, these, how), deadline_secs).await
}

fn hanging(live_at_once: usize, these: &[&str], how: MoveGoesWrong) -> SitePlan {
    let mut plan = SitePlan::uniform(3, 4);
    for name in these {
        plan.instance(name).unwrap().fault = MoveFault::new(how, 1, "").only(Move::Live);
    }
    plan.latencies.live_at_once = live_at_once;
    plan
}

/// A rollout of the first node of it, until it asks.
async fn ordered(plan: SitePlan, deadline_secs: u64) -> (Sim, WorkflowId) {
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    order.rules.evacuate_deadline_ms = deadline_secs * 1_000;
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let node = sim.child(&rollout, "gpu-01").await;
    sim.run().await;
    (sim, node)
}

async fn asked(sim: &Sim, node: &WorkflowId) -> Question {
    let state = sim.state(node).await;
    state.question().cloned().unwrap_or_else(|| panic!("nothing is asked: {}", state.headline()))
}

async fn answer(sim: &mut Sim, node: &WorkflowId, key: &str) {
    sim.clock.advance(Duration::from_secs(1));
    sim.signal(node, SignalKind::answer(key.to_owned())).await;
    sim.run().await;
}

#[tokio::test]
async fn a_live_migration_that_never_ends_holds_up_no_other_and_is_stopped_if_an_operator_wants_that() {
    for live_at_once in [1, 4] {
        let (mut sim, node) = never_ending(live_at_once).await;
        let (hangs, left) = (guest(&sim, "gpu-01-a"), |sim: &Sim| sim.world.guests_where(|guest| guest.host.as_deref() == Some("gpu-01")).unwrap().len());
        let question = asked(&sim, &node).await;
        let begins = format!("gpu-01-a ({}): its live migration was asked for at ", hangs.id);
        assert!(question.seen.iter().any(|line| line.starts_with(&begins) && line.contains("has not ended (`running`)")), "{question:?}");
        // Where Nova sends one at a time, those behind it wait in line, and no more than two are asked for.
        assert_eq!((question.seen.len(), left(&sim)), if live_at_once == 1 { (3, 3) } else { (1, 1) }, "{question:?}");
        assert!(sim.clock.now().since(MORNING) < Duration::from_secs(3600), "and long before the deadline of the step");

        answer(&mut sim, &node, "retry").await;
        assert_eq!(asked(&sim, &node).await.text, question.text, "it still does not end");
        let stopped = |sim: &Sim| sim.world.events().iter().filter(|event| matches!(event.what, Happened::StopRequested { .. })).count();
        assert_eq!(stopped(&sim), 0, "nobody has wanted that");

        answer(&mut sim, &node, "stop").await;
        let question = asked(&sim, &node).await;
        assert!(question.seen[0].contains("was stopped, as an operator wanted: it had been moving since"), "{question:?}");
        assert_eq!((question.seen.len(), left(&sim)), (1, 1), "all else has left, what waited in line behind it too");
        assert!(question.find("stop").is_none(), "nothing is under way");
        let here = guest(&sim, "gpu-01-a");
        assert_eq!((here.vm_state, here.host.as_deref()), (VmState::Active, Some("gpu-01")));

        answer(&mut sim, &node, "retry").await;
        assert_eq!(sim.document(&node).await.status, Status::Succeeded);
        assert_eq!(stopped(&sim), 1);
    }
}

/// Found by reading: Nova was away when the answer came, and the question about that took its place.
#[tokio::test]
async fn a_stop_that_was_wanted_is_carried_out_although_something_else_was_asked_before_it_could_be() {
    let (sim, _) = never_ending(4).await;
    let asked_after = sim.clock.now().since(MORNING);
    let mut plan = hanging(4, &["gpu-01-a"], MoveGoesWrong::Hangs);
    plan.faults.outages.push(Outage { api: Api::Nova, node: None, from: asked_after + Duration::from_millis(1), lasts: Duration::from_secs(7_200) });
    let (mut sim, node) = ordered(plan, 4 * 3600).await;
    assert!(asked(&sim, &node).await.find("stop").is_some());
    answer(&mut sim, &node, "stop").await;
    assert!(asked(&sim, &node).await.find("stop").is_none(), "Nova is away, and that is what is asked about now");
    sim.clock.advance(Duration::from_secs(7_200));
    answer(&mut sim, &node, "retry").await;
    let question = asked(&sim, &node).await;
    assert!(question.seen[0].contains("was stopped, as an operator wanted"), "{question:?}");
}

#[tokio::test]
async fn what_an_operator_has_stopped_is_not_begun_again_by_the_next_stop() {
    let (mut sim, node) = going_wrong(1, &["gpu-01-a", "gpu-01-b"], MoveGoesWrong::Hangs, 4 * 3600).await;
    let begun = |sim: &Sim| sim.world.events().iter().filter(|event| matches!(event.what, Happened::MigrationRequested { .. })).count();
    answer(&mut sim, &node, "stop").await;
    let question = asked(&sim, &node).await;
    let stopped = |question: &Question| question.seen.iter().filter(|line| line.contains("was stopped, as an operator wanted")).count();
    assert_eq!((question.seen.len(), stopped(&question)), (4, 1), "one was stopped, the other hangs now, and two wait in line: {question:?}");
    let before = begun(&sim);
    answer(&mut sim, &node, "stop").await;
    let question = asked(&sim, &node).await;
    assert_eq!((question.seen.len(), stopped(&question)), (2, 2), "the other two have left: {question:?}");
    assert_eq!(begun(&sim), before, "nobody was asked to move once more");
    answer(&mut sim, &node, "retry").await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
}

#[tokio::test]
async fn a_stop_that_nova_refuses_holds_up_nobody_and_is_told_with_its_reason() {
    let (mut sim, node) = going_wrong(1, &["gpu-01-a"], MoveGoesWrong::HangsAndIsNotStopped, 4 * 3600).await;
    answer(&mut sim, &node, "stop").await;
    let question = asked(&sim, &node).await;
    let hangs = question.seen.iter().find(|line| line.starts_with("gpu-01-a ")).unwrap();
    assert!(hangs.contains("it is to be stopped since") && hangs.contains("Policy doesn't allow os_compute_api:servers:migrations:delete"), "{question:?}");
    answer(&mut sim, &node, "unwind").await;
    assert!(asked(&sim, &node).await.text.starts_with("moves off gpu-01 that were begun do not end"));
    answer(&mut sim, &node, "leave").await;
    assert_eq!(sim.document(&node).await.status, Status::Failed);
}

#[tokio::test]
async fn a_move_that_its_host_has_forgotten_is_disregarded_by_an_operators_word_and_tried_again() {
    for way_back in [false, true] {
        let (mut sim, node) = going_wrong(4, &["gpu-01-a"], MoveGoesWrong::IsForgotten, 4 * 3600).await;
        let id = guest(&sim, "gpu-01-a").id;
        let question = asked(&sim, &node).await;
        assert!(question.seen[0].starts_with(&format!("gpu-01-a ({id}): its live migration")) && question.seen[0].contains("it is on gpu-01, and nothing happens to it"), "{question:?}");
        if way_back {
            answer(&mut sim, &node, "unwind").await;
        }
        answer(&mut sim, &node, "disregard").await;
        if way_back {
            assert_eq!(sim.document(&node).await.status, Status::Failed);
            assert!(sim.world.snapshot().node("gpu-01").unwrap().enabled);
        } else {
            assert_eq!(sim.document(&node).await.status, Status::Succeeded, "{}", sim.document(&node).await.headline);
        }
    }
}

#[tokio::test]
async fn at_the_deadline_every_move_that_still_goes_on_is_named_and_can_be_stopped() {
    let (mut sim, node) = going_wrong(4, &["gpu-01-a"], MoveGoesWrong::Hangs, 600).await;
    let question = asked(&sim, &node).await;
    assert!(question.seen[0].starts_with("gpu-01-a (") && question.find("stop").is_some(), "{question:?}");
    assert!(sim.clock.now().since(MORNING) < Duration::from_secs(700));
    answer(&mut sim, &node, "stop").await;
    assert!(asked(&sim, &node).await.seen[0].contains("was stopped, as an operator wanted"));
}

#[tokio::test]
async fn an_operators_stop_is_carried_out_wherever_the_worker_dies() {
    let whole = Death::never();
    for point in 0.. {
        let (mut sim, node) = never_ending(4).await;
        let death = if point == 0 { whole.clone() } else { Death::at(point) };
        sim.deaths.push_back(death);
        answer(&mut sim, &node, "stop").await;
        let question = asked(&sim, &node).await;
        assert!(question.seen[0].contains("was stopped, as an operator wanted: it had been moving since"), "{point}: {question:?}");
        if point == whole.passed() {
            break;
        }
    }
    assert!(whole.passed() > 5, "{}", whole.passed());
}

#[tokio::test]
async fn a_live_migration_that_comes_on_is_not_taken_for_one_that_never_ends() {
    let mut plan = SitePlan::uniform(3, 1);
    // More than three times what a move may take of which nothing is heard.
    plan.latencies.live_migration = Duration::from_secs(3600);
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    // It would not arrive in time.
    order.rules.canary = None;
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run().await;
    let node = sim.child(&rollout, "gpu-01").await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
}

#[tokio::test]
async fn a_migration_record_that_never_ends_is_named_and_disregarded_only_if_an_operator_says_so() {
    // One of an instance that has long left, and one of an instance that is on the node.
    for (name, on) in [("gpu-02-a", "gpu-02"), ("gpu-01-a", "gpu-01")] {
        let mut plan = SitePlan::uniform(3, 2);
        plan = plan.happens(Duration::ZERO, Happens::RecordOrphaned { name: name.to_owned(), node: "gpu-01".to_owned() });
        let mut order = order(&plan, 1);
        order.nodes.truncate(1);
        let mut sim = Sim::new(plan, 7);
        sim.clock.advance(Duration::from_secs(1));
        let rollout = sim.order(&order).await;
        let node = sim.child(&rollout, "gpu-01").await;
        sim.run().await;
        let (id, record) = (guest(&sim, name).id, sim.world.migrations_where(|record| !record.status.is_over()).unwrap().remove(0));
        let says = format!("{name} ({id}) is on {on} and nothing happens to it, and Nova has it as still being moved: `accepted` since");
        for _ in 0..2 {
            let question = asked(&sim, &node).await;
            assert!(question.seen[0].starts_with(&says) && question.seen[0].contains(&record.uuid), "{question:?}");
            assert!(question.find("disregard").is_some_and(|answer| answer.consequence.contains(&record.uuid)), "{question:?}");
            assert!(sim.clock.now().since(MORNING) < Duration::from_secs(3600));
            answer(&mut sim, &node, "retry").await;
        }
        answer(&mut sim, &node, "disregard").await;
        assert_eq!(sim.document(&node).await.status, Status::Succeeded, "{}", sim.document(&node).await.headline);
    }
}

#[tokio::test]
async fn a_tenants_resize_while_its_node_is_emptied_is_the_tenants_to_confirm() {
    let mut plan = SitePlan::uniform(3, 3);
    plan = plan.happens(Duration::from_secs(4), Happens::InstanceResized { name: "gpu-01-c".to_owned() });
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    order.rules.moves_at_once = 1;
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let node = sim.child(&rollout, "gpu-01").await;
    sim.run().await;
    let question = asked(&sim, &node).await;
    assert!(question.seen[0].contains("has left by a resize that waits to be confirmed or reverted"), "{question:?}");
    assert!(!sim.world.events().iter().any(|event| matches!(event.what, Happened::ConfirmRequested { .. })));
    let resized = guest(&sim, "gpu-01-c");
    sim.world.request_confirm(&resized.id).unwrap();
    answer(&mut sim, &node, "retry").await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
}

/// A site whose first node has an instance that its owner wants never to be moved, one in error if that is wanted, and two others.
async fn owned(in_error: bool, happens: Option<Duration>) -> (Sim, WorkflowId) {
    let mut plan = SitePlan::uniform(3, 3);
    *plan.instance("gpu-01-a").unwrap() = plan.instance("gpu-01-a").unwrap().clone().metadata("turnaround:move", "never");
    if in_error {
        plan.instance("gpu-01-b").unwrap().vm_state = VmState::Error;
    }
    if let Some(after) = happens {
        plan = plan.happens(after, Happens::MetadataSet { name: "gpu-01-a".to_owned(), key: "turnaround:move".to_owned(), value: "cold".to_owned() });
    }
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    order.rules.owner_wait_ms = 7_200_000;
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let node = sim.child(&rollout, "gpu-01").await;
    sim.run().await;
    (sim, node)
}

#[tokio::test]
async fn an_owner_is_waited_for_before_an_operator_is_asked() {
    let waited = |sim: &Sim| sim.clock.now().since(MORNING);
    let (sim, node) = owned(false, Some(Duration::from_secs(3600))).await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded, "its owner has come in time");
    assert!(waited(&sim) > Duration::from_secs(3600));

    let (mut sim, node) = owned(false, None).await;
    let question = asked(&sim, &node).await;
    assert!(question.seen[0].contains("its owner has been waited for since"), "{question:?}");
    assert!(waited(&sim) >= Duration::from_secs(7200) && waited(&sim) < Duration::from_secs(7300), "{:?}", waited(&sim));
    answer(&mut sim, &node, "retry").await;
    asked(&sim, &node).await;
    assert!(waited(&sim) < Duration::from_secs(7400), "an operator's answer does not begin that anew");

    let (sim, node) = owned(true, None).await;
    let question = asked(&sim, &node).await;
    assert!(question.seen.len() == 1 && question.seen[0].contains("is in error"), "{question:?}");
    assert!(waited(&sim) < Duration::from_secs(600), "what only an operator can mend is asked meanwhile");
}

/// Whoever reads of a move that does not end reads nothing of what becomes of it.
#[tokio::test]
async fn an_instance_that_stays_stopped_after_a_move_about_which_was_asked_while_it_went_on_is_told_all_the_same() {
    for key in ["retry", "unwind"] {
        let mut plan = SitePlan::uniform(3, 2);
        let guest_a = plan.instance("gpu-01-a").unwrap();
        guest_a.metadata.insert("turnaround:move".to_owned(), "cold".to_owned());
        guest_a.fault = MoveFault::new(MoveGoesWrong::StaysOff, 1, "");
        let mut order = order(&plan, 1);
        order.nodes.truncate(1);
        let mut sim = Sim::new(plan, 7);
        let rollout = sim.order(&order).await;
        let node = sim.child(&rollout, "gpu-01").await;
        let awaits = |sim: &Sim| guest(sim, "gpu-01-a").vm_state == VmState::Resized;
        sim.run_until(async |sim| awaits(sim)).await;
        assert!(awaits(&sim));
        // No worker for a long time: when it is looked at again it is confirmed, which is not over at once, and is late.
        sim.clock.advance(Duration::from_millis(order.rules.evacuate_deadline_ms));
        sim.run().await;
        let question = asked(&sim, &node).await;
        assert!(question.text.starts_with("the move of an instance off gpu-01 does not end") && question.seen[0].contains("(`confirming`)"), "{question:?}");

        answer(&mut sim, &node, key).await;
        let question = asked(&sim, &node).await;
        assert!(question.seen[0].contains("was running, was stopped to be moved, and is still stopped on"), "{question:?}");
        answer(&mut sim, &node, "retry").await;
        assert_eq!(sim.document(&node).await.status, if key == "retry" { Status::Succeeded } else { Status::Failed });
    }
}
