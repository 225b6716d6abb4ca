//! Emptying a node on the simulated site: cases that were first seen on a real Nova (`real_nova.rs`).
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use turnaround_config::Pinned;
use turnaround_proof::sim::{Death, MORNING, Sim, order};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::{SignalKind, start};
use turnaround_workflows::ports::{MOVE_METADATA, MigrationState, Move};
use turnaround_workflows::rehearsal::{ALWAYS, Api, Guest, Happened, Happens, MoveFault, MoveGoesWrong, InstancePlan, NodePlan, Outage, SitePlan, VmState};
use turnaround_workflows::store::{Status, WorkflowId};
use turnaround_workflows::updates::{self, DryRunLine, DryRunReport, RolloutOrder};

mod alone;
mod harmed;
mod room;

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
