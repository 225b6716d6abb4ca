//! What became of an instance whose move failed is told, whoever dies and whenever somebody is asked.

use std::time::Duration;

use turnaround_config::Pinned;
use turnaround_proof::sim::{Death, Sim, order};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::{SignalKind, State};
use turnaround_workflows::ports::{MOVE_METADATA, MigrationState, Move};
use turnaround_workflows::rehearsal::{ALWAYS, Api, Happened, Happens, MoveFault, MoveGoesWrong, Outage, SitePlan, VmState};
use turnaround_workflows::store::{Status, WorkflowId};

use super::{guest, answer, until_migration_is, with_a_pinned_one, ordered, moves_of};

/// Found by a seed (752): an instance was left in error by a rollout that was told to stop meanwhile.
#[tokio::test]
async fn on_the_way_back_an_operator_is_told_of_an_instance_that_its_move_has_left_in_error() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.instance("gpu-01-a").unwrap().vm_state = VmState::Stopped;
    plan.instance("gpu-01-a").unwrap().fault = MoveFault::new(MoveGoesWrong::Midway, 1, "disk is full");
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run_until(async |sim| guest(sim, "gpu-01-a").task_state.is_some()).await;
    let node = sim.child(&rollout, "gpu-01").await;
    sim.signal(&node, SignalKind::Abort { why: "a tenant called".to_owned() }).await;
    sim.run().await;
    let state = sim.state(&node).await;
    let seen = &state.question().expect("it is told").seen;
    assert_eq!(*seen, [format!("gpu-01-a ({}) was stopped and is error since its move: disk is full", guest(&sim, "gpu-01-a").id)]);
    answer(&mut sim, &node, "retry").await;
    assert!(sim.document(&node).await.status.is_ended(), "once is enough");
    assert!(sim.world.snapshot().node("gpu-01").unwrap().enabled);
}

/// Found by reading: what an operator was told of a try that had failed was taken for all that could come of it.
#[tokio::test]
async fn what_becomes_of_an_instance_after_its_failed_move_was_told_is_told_as_well() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.instance("gpu-01-a").unwrap().fault = MoveFault::new(MoveGoesWrong::Refused, ALWAYS, "No valid host was found").only(Move::Live);
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run().await;
    let node = sim.child(&rollout, "gpu-01").await;
    let seen = |state: &State| state.question().map(|question| question.seen.clone()).unwrap_or_default();
    let told = seen(&sim.state(&node).await);
    assert!(matches!(&told[..], [line] if line.contains("No valid host was found")), "{told:?}");
    // Somebody else has it moved in another way, and does not see it to its end.
    let instance = guest(&sim, "gpu-01-a");
    sim.world.request_move(&instance.id, Move::Cold, None).unwrap();
    until_migration_is(&sim, &instance, MigrationState::AwaitsConfirmation);
    answer(&mut sim, &node, "unwind").await;
    let told = seen(&sim.state(&node).await);
    assert!(matches!(&told[..], [line] if line.contains("was active and is resized since its move: ")), "{told:?}");
    answer(&mut sim, &node, "retry").await;
    assert!(sim.document(&node).await.status.is_ended(), "once is enough");
}

/// The same of one that Nova has brought away late, and not started again: on its new host it counts as landed once that is known.
#[tokio::test]
async fn one_that_is_left_stopped_after_its_failed_move_was_told_is_told_as_well() {
    let refused = |times: u32| {
        let mut plan = with_a_pinned_one();
        plan.instance("gpu-01-b").unwrap().fault = MoveFault::new(MoveGoesWrong::Refused, times, "No valid host was found").only(Move::Cold);
        plan
    };
    let asked = async |plan: SitePlan| {
        let mut sim = Sim::new(plan.clone(), 7);
        let node = ordered(&sim, &plan, Pinned::Cold).await;
        sim.run().await;
        assert_eq!(sim.document(&node).await.status, Status::NeedsOperator);
        (sim, node)
    };
    let (sim, _) = asked(refused(ALWAYS)).await;
    let tries = moves_of(&sim, &guest(&sim, "gpu-01-b")).len();
    let refused = refused(u32::try_from(tries).unwrap());
    let seen = async |sim: &Sim, node: &WorkflowId| sim.state(node).await.question().map(|question| question.seen.clone()).unwrap_or_default();
    let (mut sim, node) = asked(refused.clone()).await;
    let instance = guest(&sim, "gpu-01-b");
    sim.world.request_move(&instance.id, Move::Cold, None).unwrap();
    until_migration_is(&sim, &instance, MigrationState::AwaitsConfirmation);
    sim.world.request_confirm(&instance.id).unwrap();
    until_migration_is(&sim, &instance, MigrationState::Succeeded);
    sim.world.stop_instance(&instance.id).unwrap();
    sim.clock.advance(Duration::from_secs(60));
    assert_eq!(guest(&sim, "gpu-01-b").vm_state, VmState::Stopped);
    sim.signal(&node, SignalKind::answer("unwind".to_owned())).await;
    sim.run().await;
    let told = seen(&sim, &node).await;
    assert!(matches!(&told[..], [line] if line.contains("is still stopped on")), "{told:?}");

    // And where it was stopped on its node, and is moved once more.
    let (mut sim, node) = asked(refused).await;
    sim.world.stop_instance(&instance.id).unwrap();
    answer(&mut sim, &node, "retry").await;
    let told = seen(&sim, &node).await;
    assert!(matches!(&told[..], [line] if line.contains("is still stopped on")), "{told:?}");
    answer(&mut sim, &node, "retry").await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded, "once is enough");
}

/// Found by reading: what stands in its way was told, and not what its move had made of it.
#[tokio::test]
async fn a_question_about_what_stands_in_the_way_of_an_instance_says_what_its_move_has_made_of_it() {
    let mut plan = with_a_pinned_one();
    plan.instance("gpu-01-b").unwrap().fault = MoveFault::new(MoveGoesWrong::Midway, 1, "disk is full").only(Move::Cold);
    let begun_after = {
        let mut sim = Sim::new(plan.clone(), 7);
        let began = sim.clock.now();
        ordered(&sim, &plan, Pinned::Cold).await;
        sim.run_until(async |sim| guest(sim, "gpu-01-b").task_state.is_some()).await;
        sim.clock.now().since(began)
    };
    let never = Happens::MetadataSet { name: "gpu-01-b".to_owned(), key: MOVE_METADATA.to_owned(), value: "never".to_owned() };
    let plan = plan.happens(begun_after + Duration::from_millis(1), never);
    let mut sim = Sim::new(plan.clone(), 7);
    let node = ordered(&sim, &plan, Pinned::Cold).await;
    sim.run().await;
    let state = sim.state(&node).await;
    let seen = &state.question().expect("a question").seen;
    assert!(matches!(&seen[..], [line] if line.contains("as its owner says") && line.ends_with("; it was active and is error")), "{seen:?}");
}

/// Found by reading: whoever was killed before it asked was followed by one whom Nova did not answer, and the answer to that one's question was taken for its own.
#[tokio::test]
async fn an_instance_that_was_harmed_is_told_of_wherever_the_worker_dies_also_while_nova_is_away() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.instance("gpu-01-a").unwrap().vm_state = VmState::Stopped;
    plan.instance("gpu-01-a").unwrap().fault = MoveFault::new(MoveGoesWrong::Midway, 1, "disk is full");
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan.clone(), 7);
    let began = sim.clock.now();
    let rollout = sim.order(&order).await;
    sim.run().await;
    assert!(sim.state(&rollout.child("gpu-01").unwrap()).await.question().is_some());
    // The commit that names it and the one that asks are made at the same moment.
    let asked_after = sim.clock.now().since(began);
    plan.faults.outages.push(Outage { api: Api::Nova, node: None, from: asked_after + Duration::from_millis(1), lasts: Duration::from_secs(7_200) });
    let mut generic = 0;
    for point in 1.. {
        let mut sim = Sim::new(plan.clone(), 7);
        let death = Death::at(point);
        sim.deaths.push_back(death.clone());
        let node = sim.order(&order).await.child("gpu-01").unwrap();
        sim.run().await;
        sim.clock.advance(Duration::from_secs(7_201));
        let told = |state: &State, id: &str| state.question().is_some_and(|question| question.seen.iter().any(|line| line.contains(id)));
        let id = guest(&sim, "gpu-01-a").id.0;
        let state = sim.state(&node).await;
        let mut was_told = told(&state, &id);
        generic += u32::from(!was_told);
        sim.signal(&node, SignalKind::answer("unwind".to_owned())).await;
        sim.run().await;
        was_told |= told(&sim.state(&node).await, &id);
        let is_harmed = guest(&sim, "gpu-01-a").vm_state == VmState::Error;
        assert!(was_told || !is_harmed, "died at {point} {:?}: {state:?}", death.names().last());
        if !death.has_come() {
            assert!(point > 10, "{point} points were passed");
            break;
        }
    }
    assert!(generic > 0, "another question was asked at least once");
}

/// Found by reading: the question named it, and told nothing of what it had become; then that was taken for known.
#[tokio::test]
async fn a_question_about_an_instance_whose_move_has_failed_says_what_it_has_become() {
    let mut plan = SitePlan::uniform(3, 2);
    plan.instance("gpu-01-a").unwrap().fault = MoveFault::new(MoveGoesWrong::Refused, ALWAYS, "No valid host was found").only(Move::Live);
    plan.instance("gpu-01-b").unwrap().fault = MoveFault::new(MoveGoesWrong::Hangs, 1, "");
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let node = sim.child(&rollout, "gpu-01").await;
    // While the other one keeps the question back, somebody has it moved in another way, and does not see it to its end.
    let instance = guest(&sim, "gpu-01-a");
    sim.run_until(async |sim| guest(sim, "gpu-01-b").task_state.is_some() && moves_of(sim, &instance).len() == 2).await;
    sim.world.request_move(&instance.id, Move::Cold, None).unwrap();
    sim.run().await;
    let state = sim.state(&node).await;
    let seen = &state.question().expect("a question").seen;
    assert!(seen.iter().any(|line| line.ends_with("No valid host was found; it was active and is resized")), "{seen:?}");
}

/// Found by a seed (519): the host went down to which it was moving, in the moment of its confirmation, and the question did not name it.
#[tokio::test]
async fn an_instance_whose_confirmation_came_to_nothing_is_named_in_a_question() {
    let mut plan = SitePlan::uniform(2, 1);
    plan.instance("gpu-01-a").unwrap().vm_state = VmState::Stopped;
    plan.latencies.confirm = Duration::from_secs(60);
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let confirmed = async |plan: SitePlan| {
        let mut sim = Sim::new(plan, 7);
        let began = sim.clock.now();
        let rollout = sim.order(&order).await;
        sim.run_until(async |sim| sim.world.events().iter().any(|event| matches!(event.what, Happened::ConfirmRequested { .. }))).await;
        let after = sim.clock.now().since(began);
        (sim, rollout, after)
    };
    let (_, _, after) = confirmed(plan.clone()).await;
    let crash = Happens::NodeCrashes { node: "gpu-02".to_owned() };
    let (mut sim, rollout, _) = confirmed(plan.happens(after + Duration::from_secs(20), crash)).await;
    sim.run().await;
    let state = sim.state(&sim.child(&rollout, "gpu-01").await).await;
    let seen = &state.question().expect("a question").seen;
    let id = guest(&sim, "gpu-01-a").id;
    assert_eq!(*seen, [format!("gpu-01-a ({id}): is `resized` on gpu-02, and its migration ended as `failed`: confirm or revert it")]);
}

#[tokio::test]
async fn an_instance_that_does_not_run_again_after_its_cold_move_is_a_question_and_holds_up_nobody_for_ever() {
    let mut plan = with_a_pinned_one();
    plan.instance("gpu-01-b").unwrap().fault = MoveFault::new(MoveGoesWrong::StaysOff, 1, "");
    let mut sim = Sim::new(plan.clone(), 7);
    let node = ordered(&sim, &plan, Pinned::Cold).await;
    sim.run().await;
    let moved = guest(&sim, "gpu-01-b");
    assert_eq!(
        sim.state(&node).await.question().expect("it is asked about").seen,
        [format!(
            "gpu-01-b ({}): was running, was stopped to be moved, and is still stopped on {}: start it, or ask its owner",
            moved.id,
            moved.host.unwrap()
        )]
    );
    answer(&mut sim, &node, "retry").await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded, "the operator has seen it");
}

/// Whoever writes down that an operator is told may be killed before it asks.
#[tokio::test]
async fn an_instance_that_was_harmed_is_told_of_wherever_the_worker_dies() {
    // Asked about on the way there, and on the way back.
    for stopped_on_the_way in [true, false] {
        let mut plan = SitePlan::uniform(3, 1);
        plan.instance("gpu-01-a").unwrap().vm_state = VmState::Stopped;
        plan.instance("gpu-01-a").unwrap().fault = MoveFault::new(MoveGoesWrong::Midway, 1, "disk is full");
        let mut order = order(&plan, 1);
        order.nodes.truncate(1);
        for point in 1.. {
            let mut sim = Sim::new(plan.clone(), 7);
            let death = Death::at(point);
            sim.deaths.push_back(death.clone());
            let rollout = sim.order(&order).await;
            let node = rollout.child("gpu-01").unwrap();
            sim.run_until(async |sim| {
                let guest = guest(sim, "gpu-01-a");
                if stopped_on_the_way { guest.task_state.is_some() } else { guest.vm_state == VmState::Error && death.has_come() }
            })
            .await;
            if sim.store.load(&node).await.unwrap().is_some() {
                sim.signal(&node, SignalKind::Abort { why: "a tenant called".to_owned() }).await;
            }
            sim.run().await;
            let state = sim.state(&node).await;
            let id = guest(&sim, "gpu-01-a").id;
            let was_told = state.question().is_some_and(|question| question.seen.iter().any(|line| line.contains(&id.0)));
            let died = death.names().last().cloned();
            assert!(was_told, "died at {point} {died:?}, {stopped_on_the_way}: {state:?}");
            if !death.has_come() {
                assert!(point > 10, "{point} points were passed");
                break;
            }
        }
    }
}

#[tokio::test]
async fn what_nova_said_to_a_move_that_it_never_began_is_told_to_whoever_is_asked() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.instance("gpu-01-a").unwrap().fault = MoveFault::new(MoveGoesWrong::Breaks, ALWAYS, "Unexpected API Error: DBConnectionError");
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let node = sim.child(&rollout, "gpu-01").await;
    sim.run().await;
    let state = sim.state(&node).await;
    let seen = state.question().unwrap_or_else(|| panic!("nothing is asked: {}", state.headline())).seen.join("\n");
    assert!(seen.contains("asked for its move: Nova answered HTTP 500: Unexpected API Error: DBConnectionError; Nova has no migration of it"), "{seen}");
    assert!(!seen.contains("never asked"), "{seen}");
}
