//! Emptying a node on the simulated site: cases that were first seen on a real Nova (`real_nova.rs`).
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use turnaround_config::Pinned;
use turnaround_proof::sim::{Death, MORNING, Sim, order};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::{SignalKind, State, start};
use turnaround_workflows::ports::{GroupRule, MOVE_METADATA, MigrationState, Move};
use turnaround_workflows::rehearsal::{ALWAYS, Api, GroupPlan, Guest, Happened, Happens, MoveFault, MoveGoesWrong, InstancePlan, NodePlan, Outage, SitePlan, VmState};
use turnaround_workflows::store::{Status, WorkflowId};
use turnaround_workflows::updates::{self, DryRunLine, DryRunReport, RolloutOrder};

fn guest(sim: &Sim, name: &str) -> Guest {
    sim.world.guests_where(|guest| guest.name == name).unwrap().remove(0)
}

/// Answers a minute later, and lets all go on.
async fn answer(sim: &mut Sim, node: &WorkflowId, key: &str) {
    sim.clock.advance(Duration::from_secs(60));
    sim.signal(node, SignalKind::answer(key.to_owned())).await;
    sim.run().await;
}

/// Lets the site go on by itself until the instance's newest migration is in `state`.
fn until_migration_is(sim: &Sim, of: &Guest, state: MigrationState) {
    while sim.world.migrations_where(|record| record.instance == of.id).unwrap().last().map(|record| record.status.state()) != Some(state) {
        sim.clock.advance_to(sim.world.next_event().expect("the migration goes on"));
    }
}

#[tokio::test]
async fn a_cold_migration_of_somebody_else_that_waits_to_be_confirmed_is_a_question() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.instance("gpu-01-a").unwrap().vm_state = VmState::Stopped;
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let left = guest(&sim, "gpu-01-a");
    sim.world.request_move(&left.id, Move::Cold, None).unwrap();
    until_migration_is(&sim, &left, MigrationState::AwaitsConfirmation);

    let rollout = sim.order(&order).await;
    sim.run().await;
    let node = sim.child(&rollout, "gpu-01").await;
    let state = sim.state(&node).await;
    assert_eq!(
        state.question().expect("a question, long before the step's deadline").seen,
        [format!(
            "gpu-01-a ({}) has left by somebody's cold migration that waits to be confirmed or reverted: until then its old disk is on gpu-01",
            left.id
        )]
    );

    sim.world.request_confirm(&left.id).unwrap();
    until_migration_is(&sim, &left, MigrationState::Succeeded);
    sim.signal(&node, SignalKind::answer("retry".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
}

#[tokio::test]
async fn an_instance_that_somebody_else_is_moving_is_waited_for_and_nobody_is_asked() {
    let plan = SitePlan::uniform(3, 1);
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let busy = guest(&sim, "gpu-01-a");
    sim.world.request_move(&busy.id, Move::Live, None).unwrap();
    let rollout = sim.order(&order).await;
    sim.run().await;
    assert_eq!(sim.document(&sim.child(&rollout, "gpu-01").await).await.status, Status::Succeeded);
    let moves = sim.world.migrations_where(|record| record.instance == busy.id).unwrap();
    assert_eq!(moves.len(), 1, "theirs was enough: {moves:?}");
}

/// How often each instance was moved.
fn times_moved(sim: &Sim) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for event in sim.world.events() {
        if let Happened::InstanceMoved { instance, .. } = event.what {
            *times.entry(instance).or_default() += 1;
        }
    }
    times
}

#[tokio::test]
async fn what_is_moved_goes_to_a_node_that_is_renewed_already_and_stays_there() {
    let plan = SitePlan::uniform(5, 2);
    let order = order(&plan, 1);
    let mut sim = Sim::new(plan, 7);
    let before = sim.world.guests_where(|_| true).unwrap();
    let rollout = sim.order(&order).await;
    sim.run().await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
    let times = times_moved(&sim);
    for guest in before {
        // No node was renewed when the first one was emptied.
        let expected = if guest.host.as_deref() == Some("gpu-01") { 2 } else { 1 };
        assert_eq!(times.get(&guest.id.0), Some(&expected), "{} of {:?}", guest.name, guest.host);
    }
}

#[tokio::test]
async fn what_finds_no_room_on_a_renewed_node_goes_where_nova_sends_it() {
    let mut plan = SitePlan::uniform(3, 0);
    // gpu-01 has room for one of the two.
    *plan.node("gpu-01").unwrap() = NodePlan::new("gpu-01").size(8, 10_000);
    plan.instances.push(InstancePlan::new("big").on("gpu-02").size(4, 8_000));
    plan.instances.push(InstancePlan::new("small").on("gpu-02").size(4, 6_000));
    let order = order(&plan, 1);
    let mut sim = Sim::new(plan, 7);
    let (big, small) = (guest(&sim, "big"), guest(&sim, "small"));
    let rollout = sim.order(&order).await;
    sim.run().await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
    let times = times_moved(&sim);
    assert_eq!(times[&big.id.0] + times[&small.id.0], 3, "one of them twice: {times:?}");
}

#[tokio::test]
async fn a_host_that_nova_does_not_take_for_an_instance_costs_no_try() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.instance("gpu-02-a").unwrap().fault = MoveFault::new(MoveGoesWrong::PreCheck, 2, "the group wants it elsewhere");
    let mut order = order(&plan, 1);
    order.nodes.remove(0);
    let mut sim = Sim::new(plan, 7);
    let moved = guest(&sim, "gpu-02-a");
    let rollout = sim.order(&order).await;
    sim.run().await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded, "nobody had to be asked");
    let to = sim.world.events().into_iter().filter_map(|event| match event.what {
        Happened::MigrationRequested { instance, to, .. } if instance == moved.id.0 => Some(to),
        _ => None,
    });
    assert_eq!(to.collect::<Vec<_>>(), [Some("gpu-01".to_owned()), None, None], "gpu-03 is renewed later");
}

/// Found by a seed (80942): a host that had taken them, and did not start them again, was not named any more.
#[tokio::test]
async fn a_host_on_which_an_instance_is_not_as_it_was_has_taken_it_all_the_same() {
    let mut plan = SitePlan::uniform(3, 4);
    for name in ["gpu-02-a", "gpu-02-b"] {
        let instance = plan.instance(name).unwrap();
        instance.extra_specs.insert("pci_passthrough:alias".to_owned(), "nic:1".to_owned());
        instance.fault = MoveFault::new(MoveGoesWrong::StaysOff, 1, "");
    }
    let mut order = order(&plan, 1);
    order.nodes.remove(0);
    (order.rules.pinned, order.rules.moves_at_once) = (Pinned::Cold, 1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let node = sim.child(&rollout, "gpu-02").await;
    sim.run().await;
    assert_eq!(sim.state(&node).await.question().expect("it is asked about").seen.len(), 2);
    let to = sim.world.events().into_iter().filter_map(|event| match event.what {
        Happened::MigrationRequested { to, .. } => Some(to),
        _ => None,
    });
    assert_eq!(to.collect::<Vec<_>>(), vec![Some("gpu-01".to_owned()); 4], "gpu-03 is renewed later");
}

/// Found by seeds (24292, 54694): written down, the move waited for the store, and was asked for then, wherever the instance was.
#[tokio::test]
async fn what_leaves_or_is_wanted_on_an_open_node_while_the_store_is_away_is_not_moved() {
    let minute = Duration::from_secs(60);
    let resized = Happens::InstanceResized { name: "gpu-01-a".to_owned() };
    let opened = Happens::ServiceEnabled { node: "gpu-01".to_owned() };
    for (what, happens) in [("resized", resized), ("opened", opened)] {
        let plan = SitePlan::uniform(3, 1).happens(minute, happens);
        let (mut too_late, mut in_time) = (0, 0);
        // The store goes away between any two of the calls before the move, and comes back when that has happened.
        for calls_before in 0..=60_u32 {
            let mut order = order(&plan, 1);
            order.nodes.truncate(1);
            let mut sim = Sim::new(plan.clone(), 7);
            sim.call_takes = Duration::from_millis(100);
            sim.store_outage = Some((MORNING + Duration::from_millis(u64::from(calls_before) * 100), MORNING + 10 * minute));
            sim.order(&order).await;
            sim.run().await;
            let events = sim.world.events();
            let closed = events.iter().find(|event| matches!(event.what, Happened::ServiceDisabled { .. })).unwrap();
            let asked = events.iter().find(|event| matches!(event.what, Happened::MigrationRequested { .. }));
            match asked {
                // (It was closed after that, and is ours to empty.)
                _ if closed.at > MORNING + minute => {}
                Some(asked) if asked.at < MORNING + minute => too_late += 1,
                Some(asked) => panic!("{what}, {calls_before}: {asked:?}"),
                None => in_time += 1,
            }
        }
        assert!(too_late > 0 && in_time > 0, "{what}: {too_late} {in_time}: the store went away before and after the request");
    }
}

#[tokio::test]
async fn what_nova_said_of_one_is_kept_though_it_falls_silent_at_the_next() {
    let mut plan = SitePlan::uniform(3, 2);
    plan.instance("gpu-01-a").unwrap().fault = MoveFault::new(MoveGoesWrong::Refused, ALWAYS, "the group wants it here");
    let next = format!("could not read instance {}", guest(&Sim::new(plan.clone(), 7), "gpu-01-b").id);
    let (mut silent, step) = (0, Duration::from_millis(100));
    for calls_before in 0..=60_u32 {
        let from = calls_before * step;
        plan.faults.outages = vec![Outage { api: Api::Nova, node: None, from, lasts: Duration::from_secs(60) }];
        let mut order = order(&plan, 1);
        order.nodes.truncate(1);
        let mut sim = Sim::new(plan.clone(), 7);
        sim.call_takes = step;
        let rollout = sim.order(&order).await;
        let node = rollout.child("gpu-01").unwrap();
        sim.run().await;
        let journal: Vec<String> = sim.store.journal(&node, 1, 500).await.unwrap().into_iter().map(|entry| entry.body).collect();
        let Some(fell_silent) = journal.iter().position(|body| body.contains("step-failed") && body.contains(&next)) else { continue };
        silent += 1;
        assert!(journal[..fell_silent].iter().any(|body| body.contains("the group wants it here")), "{calls_before}: {:?}", journal[fell_silent]);
    }
    assert!(silent > 0, "it fell silent after the refusal");
}

#[tokio::test]
async fn an_owners_word_is_heard_in_the_middle_of_a_look_that_takes_minutes() {
    let second = Duration::from_secs(1);
    let (mut heard, mut too_late) = (0, 0);
    for at in (20..400).step_by(20).map(|at| at * second) {
        let never = Happens::MetadataSet { name: "gpu-01-f".to_owned(), key: MOVE_METADATA.to_owned(), value: "never".to_owned() };
        let plan = SitePlan::uniform(3, 6).happens(at, never);
        let mut order = order(&plan, 1);
        order.nodes.truncate(1);
        order.rules.moves_at_once = 6;
        let mut sim = Sim::new(plan, 7);
        sim.call_takes = 5 * second;
        let last = guest(&sim, "gpu-01-f");
        sim.order(&order).await;
        sim.run().await;
        let asked = sim.world.events().into_iter().find(|event| matches!(&event.what, Happened::MigrationRequested { instance, .. } if *instance == last.id.0));
        match asked {
            // (One call goes by between the last look and the request.)
            Some(asked) if asked.at <= MORNING + at + 6 * second => too_late += 1,
            Some(asked) => panic!("{at:?}: {asked:?}"),
            None => heard += 1,
        }
    }
    assert!(heard > 0 && too_late > 0, "{heard} {too_late}");
}

/// Found by seeds (1 and 135 among them): after a try of which Nova never heard, no host was named any more.
#[tokio::test]
async fn a_try_of_which_nova_never_heard_is_no_word_against_the_host_that_was_named() {
    let plan = SitePlan::uniform(3, 1);
    let mut order = order(&plan, 1);
    order.nodes.remove(0);
    for point in 1.. {
        let mut sim = Sim::new(plan.clone(), 7);
        let moved = guest(&sim, "gpu-02-a");
        let death = Death::at(point);
        sim.deaths.push_back(death.clone());
        sim.order(&order).await;
        sim.run_until(async |sim| guest(sim, "gpu-02-a").host.as_deref() != Some("gpu-02")).await;
        let asked = sim.world.events().into_iter().filter_map(|event| match event.what {
            Happened::MigrationRequested { instance, to, .. } if instance == moved.id.0 => Some(to),
            _ => None,
        });
        assert_eq!(asked.collect::<Vec<_>>(), [Some("gpu-01".to_owned())], "died {:?}", death.names().last());
        if !death.has_come() {
            assert!(point > 10, "{point} points were passed");
            return;
        }
    }
}

/// Found by a seed (396): for the one moment in which nobody said what is free, an instance went to a node that was renewed later.
#[tokio::test]
async fn where_nobody_says_what_is_free_for_a_moment_no_host_is_left_to_chance() {
    let plan = SitePlan::uniform(3, 1);
    let mut order = order(&plan, 1);
    order.nodes.remove(0);
    for seed in 0..60 {
        let mut plan = plan.clone();
        plan.faults.unavailable_percent = 6;
        let mut sim = Sim::new(plan, seed);
        sim.order(&order).await;
        let host = |sim: &Sim| sim.world.snapshot().instance("gpu-02-a").unwrap().host.clone();
        sim.run_until(async |sim| host(sim).as_deref() != Some("gpu-02")).await;
        assert_eq!(host(&sim).as_deref(), Some("gpu-01"), "seed {seed}");
    }
}

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

/// Found by seeds (1736 among them): Nova was away for long, an operator left the node, and an instance of it waited for its confirmation for ever.
#[tokio::test]
async fn whoever_leaves_a_node_leaves_nothing_unconfirmed_that_was_moved_off_it() {
    let mut plan = SitePlan::uniform(2, 1);
    plan.instance("gpu-01-a").unwrap().vm_state = VmState::Stopped;
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let moving = async |plan: SitePlan| {
        let mut sim = Sim::new(plan, 7);
        let began = sim.clock.now();
        let rollout = sim.order(&order).await;
        sim.run_until(async |sim| sim.world.events().iter().any(|event| matches!(event.what, Happened::MigrationRequested { .. }))).await;
        let after = sim.clock.now().since(began);
        (sim, rollout, after)
    };
    let (_, _, after) = moving(plan.clone()).await;
    plan.faults.outages = vec![Outage { api: Api::Nova, node: None, from: after + Duration::from_secs(1), lasts: Duration::from_secs(3_600) }];
    let (mut sim, rollout, _) = moving(plan).await;
    sim.run().await;
    let node = sim.child(&rollout, "gpu-01").await;
    assert!(sim.state(&node).await.question().is_some_and(|question| question.text.contains("`evacuate` of gpu-01 does not succeed")));
    sim.clock.advance(Duration::from_secs(2 * 3_600));
    sim.signal(&node, SignalKind::answer("leave".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&node).await.status, Status::Failed);
    let confirmed = |event: &Happened| matches!(event, Happened::ConfirmRequested { refused: None, .. });
    assert_eq!(sim.world.events().iter().filter(|event| confirmed(&event.what)).count(), 1);
}

#[tokio::test]
async fn a_node_that_was_given_back_as_it_was_is_not_taken_for_a_renewed_one() {
    let mut plan = SitePlan::uniform(4, 1);
    // Less room than on gpu-02, and enough.
    *plan.node("gpu-01").unwrap() = NodePlan::new("gpu-01").size(48, 100_000);
    plan.instance("gpu-02-a").unwrap().metadata.insert("turnaround:move".to_owned(), "never".to_owned());
    let mut order = order(&plan, 1);
    order.nodes.truncate(3);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run().await;
    let node = sim.child(&rollout, "gpu-02").await;
    sim.signal(&node, SignalKind::answer("unwind".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&sim.child(&rollout, "gpu-03").await).await.status, Status::Succeeded);
    let to = sim.world.events().into_iter().filter_map(|event| match event.what {
        Happened::MigrationRequested { node, to, .. } if node.as_deref() == Some("gpu-03") => Some(to),
        _ => None,
    });
    // gpu-04 is not in the rollout, and has what came from gpu-01.
    for to in to {
        assert!(matches!(to.as_deref(), Some("gpu-01" | "gpu-04")), "{to:?}");
    }
}

#[tokio::test]
async fn what_carries_the_platform_is_out_alone_and_at_the_end() {
    let plan = SitePlan::uniform(5, 0);
    let mut order = order(&plan, 3);
    order.alone = vec!["gpu-04".parse().unwrap(), "gpu-05".parse().unwrap()];
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run().await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
    let mut out = BTreeSet::new();
    let mut most = 0;
    for event in sim.world.events() {
        match event.what {
            Happened::ServiceDisabled { node, .. } => {
                assert!(out.is_empty() || node.as_str() < "gpu-04", "{node} goes out while {out:?} are");
                out.insert(node);
                most = most.max(out.len());
            }
            Happened::ServiceEnabled { node, .. } => drop(out.remove(&node)),
            _ => {}
        }
    }
    assert_eq!(most, 3, "the others go together");
}

/// Whatever rollout the others belong to, and whatever may be out at once there.
#[tokio::test]
async fn what_carries_the_platform_is_out_alone_also_beside_other_rollouts() {
    let plan = SitePlan::uniform(4, 0);
    let mut first = order(&plan, 3);
    first.nodes = vec!["gpu-04".parse().unwrap()];
    first.alone = first.nodes.clone();
    let mut second = order(&plan, 3);
    second.nodes.truncate(3);
    let mut sim = Sim::new(plan, 7);
    let first = sim.order(&first).await;
    let is_out = |sim: &Sim| !sim.world.snapshot().node("gpu-04").unwrap().enabled;
    sim.run_until(async |sim| is_out(sim)).await;
    let second = sim.order(&second).await;
    sim.run().await;
    for rollout in [first, second] {
        assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
    }
    let mut out = BTreeSet::new();
    for event in sim.world.events() {
        match event.what {
            Happened::ServiceDisabled { node, .. } => {
                assert!(!out.contains("gpu-04"), "{node} goes out while {out:?} is");
                out.insert(node);
            }
            Happened::ServiceEnabled { node, .. } => drop(out.remove(&node)),
            _ => {}
        }
    }
}

/// It has ended, and is out all the same.
#[tokio::test]
async fn what_carries_the_platform_does_not_go_out_while_another_one_that_was_left_is() {
    let mut plan = SitePlan::uniform(4, 0);
    plan.node("gpu-02").unwrap().faults.never_comes_back = 1;
    let mut order = order(&plan, 2);
    order.nodes = vec!["gpu-02".parse().unwrap(), "gpu-03".parse().unwrap()];
    order.alone = order.nodes.clone();
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let first = rollout.child("gpu-02").unwrap();
    sim.run_until(async |sim| sim.open().await.iter().any(|one| one.id == first && one.status == Status::NeedsOperator)).await;
    sim.signal(&first, SignalKind::answer("leave")).await;
    let later = sim.clock.now() + Duration::from_secs(3 * 3_600);
    let second = rollout.child("gpu-03").unwrap();
    sim.run_until(async |sim| sim.clock.now() >= later || sim.open().await.iter().any(|one| one.id == second && one.status == Status::Waiting)).await;
    assert!(sim.state(&second).await.awaits.is_some(), "it waits for its share");
    assert!(sim.world.snapshot().node("gpu-03").unwrap().enabled);
    assert!(sim.store.release_budget(turnaround_workflows::updates::NODES_OUT, "gpu-02").await.unwrap());
    sim.run_until(async |sim| sim.document(&rollout).await.status.is_ended()).await;
    assert_eq!(sim.world.snapshot().node("gpu-03").unwrap().kernel, "6.8.0-60-generic");
}

/// Not everybody who may move instances may name a host.
#[tokio::test]
async fn where_no_host_may_be_named_nova_chooses() {
    let mut plan = SitePlan::uniform(3, 1);
    let reason = "Policy doesn't allow os_compute_api:os-migrate-server:migrate_live:host to be performed.";
    plan.instance("gpu-02-a").unwrap().fault = MoveFault::new(MoveGoesWrong::HostNotToBeNamed, ALWAYS, reason);
    let mut order = order(&plan, 1);
    order.nodes.remove(0);
    let mut sim = Sim::new(plan, 7);
    let moved = guest(&sim, "gpu-02-a");
    let rollout = sim.order(&order).await;
    sim.run().await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
    assert_eq!(moves_of(&sim, &moved).len(), 2, "once with a host, and once without");
}

#[tokio::test]
async fn a_dry_run_says_that_the_image_is_fetched_first() {
    let plan = SitePlan::uniform(2, 0).with_setup(&[]);
    let order = order(&plan, 1);
    let mut sim = Sim::new(plan, 7);
    let lines = dry_run(&mut sim, &order).await;
    let first = (lines[0].node.as_str(), lines[0].step.as_str(), lines[0].would.as_str());
    let would = "once, before any node is touched: run the setup script: --bootstrap --tags pxesetup";
    assert_eq!(first, ("gpu-01", "fetch-image", would));
    assert_eq!(lines.iter().filter(|line| line.step == "fetch-image").count(), 1);
}

#[tokio::test]
async fn a_dry_run_says_how_many_will_move_again() {
    let plan = SitePlan::uniform(3, 2);
    let order = order(&plan, 1);
    let mut sim = Sim::new(plan, 7);
    let lines = dry_run(&mut sim, &order).await;
    let would = |node: &str| lines.iter().find(|line| line.node.as_str() == node && line.step == "evacuate").unwrap().would.clone();
    assert!(would("gpu-01").ends_with("devices and server groups; 2 of them only on nodes that are renewed later, and move again then"));
    assert!(would("gpu-02").ends_with("there is room for them elsewhere by vCPUs, memory, local disks, zones, devices and server groups"), "{}", would("gpu-02"));
}

async fn dry_run(sim: &mut Sim, order: &RolloutOrder) -> Vec<DryRunLine> {
    let new = updates::dry_run(order, "tester").unwrap();
    let id = new.id.clone();
    sim.store.create(start(new, sim.clock.now()).unwrap()).await.unwrap();
    sim.run().await;
    let state = sim.state(&id).await;
    let report: DryRunReport = serde_json::from_value(state.record("preview").unwrap().output.clone().unwrap()).unwrap();
    report.lines
}

/// Three nodes; on the first one `gpu-01-a` and `gpu-01-c`, and the running `gpu-01-b` with a GPU of the node.
fn with_a_pinned_one() -> SitePlan {
    let mut plan = SitePlan::uniform(3, 0);
    plan.instances = SitePlan::uniform(1, 3).instances;
    plan.instance("gpu-01-b").unwrap().extra_specs.insert("pci_passthrough:alias".to_owned(), "h100:1".to_owned());
    plan
}

/// A rollout of `gpu-01` under `pinned`, and the workflow of that node.
async fn ordered(sim: &Sim, plan: &SitePlan, pinned: Pinned) -> WorkflowId {
    let mut order = order(plan, 1);
    order.nodes.truncate(1);
    order.rules.pinned = pinned;
    let rollout = sim.order(&order).await;
    sim.child(&rollout, "gpu-01").await
}

/// How it was asked to move, each time.
fn moves_of(sim: &Sim, of: &Guest) -> Vec<Move> {
    let moves = sim.world.events().into_iter().filter_map(|event| match event.what {
        Happened::MigrationRequested { instance, how, .. } if instance == of.id.0 => Some(how),
        _ => None,
    });
    moves.collect()
}

#[tokio::test]
async fn a_running_instance_with_a_device_is_asked_about_once_the_others_have_left_and_moved_cold_when_its_owner_agrees() {
    let agrees = Happens::MetadataSet {
        name: "gpu-01-b".to_owned(),
        key: "turnaround:move".to_owned(),
        value: "cold".to_owned(),
    };
    let plan = with_a_pinned_one().happens(Duration::from_secs(3600), agrees);
    let mut sim = Sim::new(plan.clone(), 7);
    let pinned = guest(&sim, "gpu-01-b");
    let node = ordered(&sim, &plan, Pinned::Ask).await;
    sim.run().await;

    assert_eq!(
        sim.state(&node).await.question().unwrap().seen,
        [format!(
            "gpu-01-b ({}) has what can't be moved live (pci_passthrough:alias=h100:1): have its owner stop it, \
             or set its metadata `turnaround:move` to `cold`, and it is moved cold; `pinned = \"cold\"` in [node_os] allows that for \
             every one in later orders",
            pinned.id
        )]
    );
    assert_eq!(moves_of(&sim, &pinned), [], "nothing was tried that can't work");
    for other in ["gpu-01-a", "gpu-01-c"] {
        assert_ne!(guest(&sim, other).host.as_deref(), Some("gpu-01"), "{other} was not held up");
    }

    sim.clock.advance(Duration::from_secs(2 * 3600));
    sim.signal(&node, SignalKind::answer("retry".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(moves_of(&sim, &pinned), [Move::Cold]);
    let moved = guest(&sim, "gpu-01-b");
    assert_eq!((moved.vm_state, moved.host == pinned.host), (VmState::Active, false), "it runs, elsewhere");
}

#[tokio::test]
async fn where_the_site_allows_it_a_running_instance_with_a_device_is_moved_cold_once_wherever_the_worker_dies() {
    let plan = with_a_pinned_one();
    for point in 1.. {
        let mut sim = Sim::new(plan.clone(), 7);
        let pinned = guest(&sim, "gpu-01-b");
        let death = Death::at(point);
        sim.deaths.push_back(death.clone());
        let node = ordered(&sim, &plan, Pinned::Cold).await;
        // Long enough for its evacuation, which begins at once.
        sim.run_until(async |sim| guest(sim, "gpu-01-b").host.as_deref() != Some("gpu-01") && sim.state(&node).await.record("evacuate").is_some_and(|step| step.output.is_some())).await;
        assert_eq!(moves_of(&sim, &pinned), [Move::Cold], "died {:?}", death.names().last());
        assert_eq!(guest(&sim, "gpu-01-b").vm_state, VmState::Active, "died {:?}", death.names().last());
        if !death.has_come() {
            assert!(point > 10, "{point} points were passed");
            return;
        }
    }
}

/// The dry run and the rollout must mean the same: of those that are out together, none is renewed when the others are emptied.
#[tokio::test]
async fn a_dry_run_counts_on_no_node_that_is_out_at_the_same_time() {
    let plan = SitePlan::uniform(4, 2);
    let mut sim = Sim::new(plan.clone(), 7);
    let lines = dry_run(&mut sim, &order(&plan, 2)).await;
    let again = |node: &str| lines.iter().any(|line| line.node.as_str() == node && line.step == "evacuate" && line.would.contains("move again"));
    assert_eq!(["gpu-01", "gpu-02", "gpu-03", "gpu-04"].map(again), [true, true, false, false]);
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

#[tokio::test]
async fn an_instance_whose_owner_says_never_stays_where_it_is_and_its_node_is_given_back() {
    let mut plan = with_a_pinned_one();
    plan.instance("gpu-01-c").unwrap().metadata.insert("turnaround:move".to_owned(), "never".to_owned());
    let mut sim = Sim::new(plan.clone(), 7);
    let stays = guest(&sim, "gpu-01-c");
    let node = ordered(&sim, &plan, Pinned::Cold).await;
    sim.run().await;
    assert_eq!(
        sim.state(&node).await.question().expect("it is asked about").seen,
        [format!(
            "gpu-01-c ({}) is not to be moved, as its owner says (metadata `turnaround:move` is `never`): ask tenant-a, its project",
            stays.id
        )]
    );
    sim.signal(&node, SignalKind::answer("unwind".to_owned())).await;
    sim.run().await;
    assert_eq!(moves_of(&sim, &stays), []);
    assert!(sim.world.snapshot().node("gpu-01").unwrap().enabled);
}

/// A node with three instances, and one where only two of them fit; a third node is closed.
fn with_too_little_room() -> SitePlan {
    let mut plan = SitePlan::uniform(3, 0);
    plan.instances = SitePlan::uniform(1, 3).instances;
    plan.node("gpu-02").unwrap().memory_mb = 20 * 1024;
    plan.node("gpu-03").unwrap().disabled = Some("DIMM, ask carol".to_owned());
    plan
}

#[tokio::test]
async fn without_room_for_all_nothing_is_moved_and_with_a_host_more_everything_is() {
    let opened = Happens::ServiceEnabled { node: "gpu-03".to_owned() };
    let plan = with_too_little_room().happens(Duration::from_secs(3600), opened);
    let mut sim = Sim::new(plan.clone(), 7);
    let node = ordered(&sim, &plan, Pinned::Ask).await;
    sim.run().await;

    let state = sim.state(&node).await;
    let question = state.question().unwrap();
    assert_eq!(question.text, "there is no room elsewhere for all that is to leave gpu-01, and nothing was moved yet: what now?");
    let left_over = guest(&sim, "gpu-01-c");
    assert_eq!(
        question.seen,
        [
            format!("gpu-01-c ({}), which takes 4 vCPUs and 8192 MiB, finds no room once the bigger ones have theirs", left_over.id),
            "of the 1 other hosts that are enabled and up, gpu-02 has most memory free: 20480 MiB, and 64 vCPUs".to_owned(),
        ]
    );
    for name in ["gpu-01-a", "gpu-01-b", "gpu-01-c"] {
        assert_eq!(moves_of(&sim, &guest(&sim, name)), [], "nothing was moved");
    }

    sim.clock.advance(Duration::from_secs(2 * 3600));
    sim.signal(&node, SignalKind::answer("retry".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(moves_of(&sim, &left_over), [Move::Live]);
}

#[tokio::test]
async fn of_two_nodes_that_are_out_at_once_one_waits_where_there_is_room_for_one_only() {
    let plan = room_for_one_only();
    let mut order = order(&plan, 2);
    order.nodes.truncate(2);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run().await;
    let child = sim.child(&rollout, "gpu-02").await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded, "nobody was asked: {:?}", sim.state(&child).await.question());
    let events = sim.world.events();
    let first = |is: &dyn Fn(&Happened) -> bool| events.iter().position(|event| is(&event.what)).unwrap();
    let closed = first(&|what| matches!(what, Happened::ServiceDisabled { node, .. } if node == "gpu-02"));
    let back = first(&|what| matches!(what, Happened::ServiceEnabled { node, .. } if node == "gpu-01"));
    let moved = first(&|what| matches!(what, Happened::MigrationRequested { node: Some(node), .. } if node == "gpu-02"));
    assert!(closed < back && back < moved, "out at once, and not half emptied: {closed} {back} {moved}");
    for name in ["gpu-01-a", "gpu-01-b", "gpu-02-a", "gpu-02-b"] {
        assert_eq!(moves_of(&sim, &guest(&sim, name)), [Move::Live], "{name}");
    }
}

/// Two nodes and a third one that has room for what is on one of them only.
fn room_for_one_only() -> SitePlan {
    let mut plan = SitePlan::uniform(3, 2);
    plan.instances.retain(|instance| instance.node.as_deref() != Some("gpu-03"));
    *plan.node("gpu-03").unwrap() = NodePlan::new("gpu-03").size(64, 20 * 1024);
    plan
}

#[tokio::test]
async fn of_two_nodes_with_parts_of_the_cluster_neither_keeps_what_the_other_one_waits_for() {
    for first in ["gpu-01", "gpu-02"] {
        let plan = room_for_one_only().with_cluster(&["gpu-01-a", "gpu-02-a"]);
        let mut order = order(&plan, 2);
        order.nodes.truncate(2);
        order.nodes.sort_by_key(|node| node.as_str() != first);
        let mut sim = Sim::new(plan, 7);
        let rollout = sim.order(&order).await;
        sim.run().await;
        assert_eq!(sim.document(&rollout).await.status, Status::Succeeded, "{first}: nobody was asked");
        assert!(sim.clock.now().since(MORNING) < Duration::from_secs(2 * 3600), "{first}: nor was anything waited out");
    }
}

#[tokio::test]
async fn a_node_that_an_operator_has_left_is_not_waited_for() {
    let mut plan = room_for_one_only();
    plan.node("gpu-01").unwrap().faults.never_comes_back = 1;
    let mut order = order(&plan, 2);
    order.nodes.truncate(2);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let (left, next) = (sim.child(&rollout, "gpu-01").await, sim.child(&rollout, "gpu-02").await);
    sim.run_until(async |sim| sim.world.events().iter().any(|event| matches!(event.what, Happened::ImageWritten { .. }))).await;
    sim.run_until(async |sim| sim.document(&left).await.status == Status::NeedsOperator).await;
    assert_eq!(sim.document(&next).await.headline, "evacuate: waits for room: gpu-01 being emptied or renewed");
    let at = sim.clock.now();
    sim.signal(&left, SignalKind::answer("leave".to_owned())).await;
    sim.run().await;
    let reason = sim.world.services().unwrap().into_iter().find(|service| service.node == "gpu-01").unwrap().disabled_reason.unwrap();
    assert!(reason.contains("found-enabled: left closed by an operator, since "), "{reason}");
    let state = sim.state(&next).await;
    let question = state.question().unwrap_or_else(|| panic!("nothing is asked: {}", state.headline()));
    assert!(question.text.starts_with("there is no room elsewhere"), "{question:?}");
    let asked = sim.store.journal(&next, 0, 500).await.unwrap().into_iter().find(|entry| entry.body.contains("operator-asked")).unwrap();
    let asked = serde_json::from_str::<serde_json::Value>(&asked.body).unwrap()["at"].as_i64().unwrap();
    assert!(asked - at.millis() < 60_000, "at once: {asked} {at}");
}

#[tokio::test]
async fn the_last_host_of_a_zone_or_with_disk_enough_is_not_half_emptied() {
    type Change = fn(&mut SitePlan);
    let cases: [(Change, &str); 2] = [
        (
            |plan| {
                plan.node("gpu-01").unwrap().zone = Some("az-1".to_owned());
                plan.instance("gpu-01-b").unwrap().zone = Some("az-1".to_owned());
            },
            "which takes 4 vCPUs and 8192 MiB, bound to zone az-1, fits on no other host",
        ),
        (
            |plan| {
                plan.nodes.iter_mut().for_each(|node| node.disk_gb = Some(100));
                plan.instance("gpu-01-b").unwrap().disk_gb = 60;
                plan.instance("gpu-02-a").unwrap().disk_gb = 60;
            },
            "which takes 4 vCPUs, 8192 MiB and 60 GB of disk, fits on no other host",
        ),
    ];
    for (change, told) in cases {
        let mut plan = SitePlan::uniform(2, 2);
        change(&mut plan);
        let mut sim = Sim::new(plan.clone(), 7);
        let node = ordered(&sim, &plan, Pinned::Ask).await;
        sim.run().await;
        let state = sim.state(&node).await;
        let question = state.question().unwrap_or_else(|| panic!("nothing is asked: {}", state.headline()));
        assert!(question.seen[0].starts_with("gpu-01-b (") && question.seen[0].ends_with(told), "{question:?}");
        for name in ["gpu-01-a", "gpu-01-b"] {
            assert_eq!(moves_of(&sim, &guest(&sim, name)), [], "nothing was moved");
        }
    }
}

fn groups(rule: GroupRule, members: &[&str]) -> Vec<GroupPlan> {
    vec![GroupPlan { name: "etcd".to_owned(), rule, members: members.iter().map(|name| (*name).to_owned()).collect() }]
}

#[tokio::test]
async fn what_has_to_keep_apart_is_not_moved_where_no_host_is_left_for_it_and_moved_once_there_is_one() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.groups = groups(GroupRule::AntiAffinity { max_on_a_host: 1 }, &["gpu-01-a", "gpu-02-a", "gpu-03-a"]);
    let plan = plan.happens(Duration::from_secs(3 * 3600), Happens::InstanceDeleted { name: "gpu-02-a".to_owned() });
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let moved = guest(&sim, "gpu-01-a");
    let rollout = sim.order(&order).await;
    sim.run().await;
    let node = sim.child(&rollout, "gpu-01").await;
    let state = sim.state(&node).await;
    let question = state.question().expect("there is no room");
    assert_eq!(question.text, "there is no room elsewhere for all that is to leave gpu-01, and nothing was moved yet: what now?");
    let expected = format!("gpu-01-a ({}), which takes 4 vCPUs and 8192 MiB, and has to keep apart from others of its server group, fits on no other host", moved.id);
    assert_eq!(question.seen[0], expected);
    assert_eq!(times_moved(&sim), BTreeMap::new());
    // By then the one on gpu-02 is deleted by its owner.
    sim.clock.advance(Duration::from_secs(4 * 3600));
    sim.signal(&node, SignalKind::answer("retry".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(guest(&sim, "gpu-01-a").host.as_deref(), Some("gpu-02"));
}

#[tokio::test]
async fn the_dry_run_says_what_it_does_not_prove() {
    let mut plan = SitePlan::uniform(3, 2);
    plan.instance("gpu-01-a").unwrap().extra_specs.insert("pci_passthrough:alias".to_owned(), "h100:1".to_owned());
    plan.instance("gpu-01-a").unwrap().metadata.insert("turnaround:move".to_owned(), "cold".to_owned());
    plan.groups = groups(GroupRule::Affinity, &["gpu-02-a", "gpu-02-b"]);
    plan.instance("gpu-01-b").unwrap().device_ports = vec!["direct".to_owned()];
    plan.groups.push(GroupPlan { name: "single".to_owned(), rule: GroupRule::Affinity, members: vec!["gpu-03-a".to_owned()] });
    let order = order(&plan, 1);
    let mut sim = Sim::new(plan, 7);
    let lines = dry_run(&mut sim, &order).await;
    let would = |node: &str| lines.iter().find(|line| line.node.as_str() == node && line.step == "evacuate").unwrap().would.clone();
    let alias = "server groups; NOT proven: that another host has a device for the ports of gpu-01-b (direct): nobody tells how many are free; that another host has a device for gpu-01-a (pci_passthrough:alias=h100:1): Placement does not tell of PCI aliases";
    assert!(would("gpu-01").contains(alias), "{}", would("gpu-01"));
    let together = "NOT proven: that Nova moves them one by one, as it must: gpu-02-a, gpu-02-b are to stay on one host by their server group etcd (affinity)";
    assert!(would("gpu-02").contains(together), "{}", would("gpu-02"));
    let alone = "NOT proven: that Nova moves them one by one, as it must: gpu-03-a are to stay on one host by their server group single (affinity)";
    assert!(would("gpu-03").contains(alone), "{}", would("gpu-03"));
}

/// As Nova has it: the host that an instance is to leave is one of its group's hosts, and the only one where nobody else of it is.
#[tokio::test]
async fn the_only_member_of_an_affinity_group_is_refused_as_well() {
    let mut plan = SitePlan::uniform(2, 1);
    plan.groups = groups(GroupRule::Affinity, &["gpu-01-a"]);
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run().await;
    let node = sim.child(&rollout, "gpu-01").await;
    assert!(sim.state(&node).await.question().expect("Nova moves it nowhere").seen[0].contains("No valid host"));
    assert_eq!(times_moved(&sim), BTreeMap::new());
}

/// Nova keeps an instance apart from those that are on a host, and not from those that are on their way there.
#[tokio::test]
async fn members_that_have_to_keep_apart_leave_one_after_the_other() {
    for named in [true, false] {
        let mut plan = SitePlan::uniform(5, 0);
        *plan.node("gpu-02").unwrap() = NodePlan::new("gpu-02").size(64, 900_000);
        plan.node("gpu-05").unwrap().disabled = Some("fan".to_owned());
        plan.instances = ["a", "b", "c"].map(|name| InstancePlan::new(name).on("gpu-01")).to_vec();
        plan.instances.push(InstancePlan::new("d").on("gpu-02"));
        // While `a` is on its way, this one's place is free again.
        plan.instance("b").unwrap().fault = MoveFault::new(MoveGoesWrong::PreCheck, ALWAYS, "no");
        plan.groups = groups(GroupRule::AntiAffinity { max_on_a_host: 2 }, &["a", "c", "d"]);
        let mut order = order(&plan, 1);
        order.rules.moves_at_once = 2;
        order.nodes.retain(|node| node.as_str() == "gpu-01" || named && node.as_str() == "gpu-04");
        let mut sim = Sim::new(plan, 7);
        sim.order(&order).await;
        sim.run().await;
        let hosts = ["a", "c"].map(|name| guest(&sim, name).host);
        assert_eq!(hosts.iter().filter(|host| host.as_deref() == Some("gpu-02")).count(), 1, "{hosts:?}, named: {named}");
        assert!(!hosts.contains(&Some("gpu-01".to_owned())), "{hosts:?}");
    }
}

/// What only proves more must not hold a node back for as long as it is away.
#[tokio::test]
async fn a_node_is_not_held_back_for_long_because_nobody_tells_the_server_groups() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.faults.outages = vec![Outage { api: Api::ServerGroups, node: None, from: Duration::ZERO, lasts: Duration::from_secs(24 * 3_600) }];
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let began = sim.clock.now();
    let rollout = sim.order(&order).await;
    sim.run_until(async |sim| !times_moved(sim).is_empty()).await;
    let waited = sim.clock.now().since(began);
    assert!((Duration::from_secs(60)..Duration::from_secs(600)).contains(&waited), "{waited:?}");
    sim.run().await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
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

/// Found by reading: a tenant was quicker, which is no word against the host that was named.
#[tokio::test]
async fn a_refusal_for_what_the_instance_is_doing_is_no_word_against_the_host() {
    let plan = SitePlan::uniform(3, 2);
    let mut order = order(&plan, 1);
    order.nodes.remove(0);
    let mut plan = plan;
    for name in ["gpu-02-a", "gpu-02-b"] {
        let reason = "Cannot 'os-migrateLive' instance x while it is in task_state rebooting";
        plan.instance(name).unwrap().fault = MoveFault::new(MoveGoesWrong::Refused, 1, reason);
    }
    let mut sim = Sim::new(plan, 7);
    sim.order(&order).await;
    let left = async |sim: &Sim| ["gpu-02-a", "gpu-02-b"].iter().all(|name| guest(sim, name).host.as_deref() != Some("gpu-02"));
    sim.run_until(left).await;
    for name in ["gpu-02-a", "gpu-02-b"] {
        assert_eq!(guest(&sim, name).host.as_deref(), Some("gpu-01"), "{name}");
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

#[tokio::test]
async fn devices_that_no_other_host_has_left_hold_an_evacuation_back() {
    let mut plan = SitePlan::uniform(3, 1);
    for (node, vgpus) in [("gpu-01", 4), ("gpu-02", 1), ("gpu-03", 0)] {
        plan.node(node).unwrap().devices = BTreeMap::from([("VGPU".to_owned(), vgpus)]);
    }
    for name in ["one", "two"] {
        plan.instances.push(InstancePlan::new(name).on("gpu-01").state(VmState::Stopped).extra_spec("resources:VGPU", "1"));
    }
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let lines = dry_run(&mut sim, &order).await;
    let line = lines.iter().find(|line| line.step == "evacuate").unwrap();
    assert!(line.problem && line.would.contains("and asks for resources:VGPU=1, finds no room once the bigger ones have theirs"), "{}", line.would);
    sim.order(&order).await;
    sim.run().await;
    assert_eq!(times_moved(&sim), BTreeMap::new());
}

/// How far it is is shown next to the instance, and costs few entries.
#[tokio::test]
async fn an_instance_on_its_way_is_shown_with_how_far_it_is() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.latencies.live_migration = Duration::from_secs(1_000);
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    // It has to move, too, and not take so long.
    order.rules.canary = None;
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let node = sim.child(&rollout, "gpu-01").await;
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        let until = sim.clock.now() + Duration::from_secs(5);
        sim.run_until(async |sim| sim.clock.now() >= until).await;
        seen.insert(sim.document(&node).await.headline);
    }
    let told: Vec<&String> = seen.iter().filter(|headline| headline.contains(" % of ")).collect();
    let expected = [20, 40, 60, 80].map(|percent| format!("evacuate: 0 moved, 1 under way, 0 to go; gpu-01-a: {percent} % of 8192 MiB"));
    assert_eq!(told, expected.iter().collect::<Vec<_>>());
    sim.run().await;
    let journal = sim.store.journal(&node, 0, 500).await.unwrap();
    let entries = journal.iter().filter(|entry| entry.body.contains(" % of ")).count();
    assert!((4..=8).contains(&entries), "{entries} entries");
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
}

#[tokio::test]
async fn a_node_whose_instances_find_no_room_is_given_back_as_found() {
    let plan = with_too_little_room();
    let mut sim = Sim::new(plan.clone(), 7);
    let node = ordered(&sim, &plan, Pinned::Ask).await;
    sim.run().await;
    assert!(!sim.world.snapshot().node("gpu-01").unwrap().enabled);
    sim.signal(&node, SignalKind::answer("unwind".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&node).await.status, Status::Failed);
    assert!(sim.world.snapshot().node("gpu-01").unwrap().enabled);
    assert_eq!(moves_of(&sim, &guest(&sim, "gpu-01-a")), []);
}

#[tokio::test]
async fn the_dry_run_says_what_is_done_with_each_and_whether_there_is_room() {
    for (plan, expected) in [
        (SitePlan::uniform(3, 2), "move 2 instances off gpu-01: 2 live, 0 cold; there is room for them elsewhere by vCPUs, memory, local disks, zones, devices and server groups"),
        (
            with_too_little_room(),
            "move 3 instances off gpu-01: 3 live, 0 cold; NO ROOM elsewhere: gpu-01-c (ID), which takes 4 vCPUs and 8192 MiB, finds no \
             room once the bigger ones have theirs; of the 1 other hosts that are enabled and up, gpu-02 has most memory free: 20480 \
             MiB, and 64 vCPUs",
        ),
    ] {
        let mut order = order(&plan, 1);
        order.nodes.truncate(1);
        let mut sim = Sim::new(plan, 7);
        let lines = dry_run(&mut sim, &order).await;
        let line = lines.iter().find(|line| line.step == "evacuate").unwrap();
        let last = guest(&sim, if expected.contains("(ID)") { "gpu-01-c" } else { "gpu-01-a" });
        assert_eq!((line.would.as_str(), line.problem), (expected.replace("(ID)", &format!("({})", last.id)).as_str(), expected.contains("NO ROOM")));
    }
}
