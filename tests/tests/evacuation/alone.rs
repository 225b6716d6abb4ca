//! What carries the platform is out alone.

use std::collections::BTreeSet;
use std::time::Duration;

use turnaround_proof::sim::{Sim, order};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::SignalKind;
use turnaround_workflows::rehearsal::{Happened, SitePlan};
use turnaround_workflows::store::Status;
use turnaround_workflows::updates::NODES_OUT;

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
    assert!(sim.store.release_budget(NODES_OUT, "gpu-02").await.unwrap());
    sim.run_until(async |sim| sim.document(&rollout).await.status.is_ended()).await;
    assert_eq!(sim.world.snapshot().node("gpu-03").unwrap().kernel, "6.8.0-60-generic");
}
