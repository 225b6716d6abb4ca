//! The site's own checks stand between a renewed node and its tenants. In virtual time.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use turnaround_proof::checker::{Rules, judge};
use turnaround_proof::sim::{Sim, order};
use turnaround_workflows::engine::SignalKind;
use turnaround_workflows::rehearsal::{COUNT_GPUS, SitePlan};
use turnaround_workflows::store::{Status, WorkflowId};
use turnaround_workflows::updates::{Expected, OrderedCheck};

const COUNT_DISKS: &str = "lsblk -dno SERIAL | sort";

fn check(command: &str, expect: Expected) -> OrderedCheck {
    OrderedCheck { name: command.split(' ').next().unwrap().to_owned(), command: command.to_owned(), expect, time_limit_ms: 30_000, nodes: Vec::new() }
}

/// A node with data disks whose installation changes the answer to `changes` to `to`.
fn plan(changes: Option<(&str, &str)>) -> SitePlan {
    let mut plan = SitePlan::uniform(3, 1);
    let node = plan.node("gpu-01").unwrap();
    node.answers.insert(COUNT_DISKS.to_owned(), "S1\nS2".to_owned());
    if let Some((command, to)) = changes {
        node.faults.answers_after_installation.insert(command.to_owned(), to.to_owned());
    }
    plan
}

async fn renewed(plan: SitePlan, checks: &[OrderedCheck]) -> (Sim, WorkflowId) {
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    order.rules.checks = checks.to_vec();
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let node = sim.child(&rollout, "gpu-01").await;
    sim.run().await;
    (sim, node)
}

async fn question(sim: &Sim, node: &WorkflowId) -> Vec<String> {
    let state = sim.state(node).await;
    let question = state.question().unwrap_or_else(|| panic!("nothing is asked: {}", state.headline()));
    assert_eq!(question.text, "gpu-01 is renewed, and is not as it has to be: what now?");
    question.seen.clone()
}

#[tokio::test]
async fn a_node_that_is_as_it_must_be_is_given_back() {
    let checks = [
        check(COUNT_GPUS, Expected::Output("8".to_owned())),
        check(COUNT_DISKS, Expected::AsFound),
        check(COUNT_GPUS, Expected::Success),
    ];
    let (sim, node) = renewed(plan(None), &checks).await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert!(sim.world.snapshot().node("gpu-01").unwrap().enabled);
}

#[tokio::test]
async fn a_node_short_of_a_gpu_or_with_other_disks_stays_closed_until_it_is_mended_or_left() {
    let cases = [
        ((COUNT_GPUS, "7"), Expected::Output("8".to_owned()), "nvidia-smi (nvidia-smi -L | wc -l): expected `8`, now `7`"),
        ((COUNT_GPUS, "7"), Expected::AsFound, "nvidia-smi (nvidia-smi -L | wc -l): before it was `8`, now `7`"),
        ((COUNT_DISKS, "S1"), Expected::AsFound, "lsblk (lsblk -dno SERIAL | sort): before it was `S1\nS2`, now `S1`"),
    ];
    for (change, expect, seen) in cases {
        let (mut sim, node) = renewed(plan(Some(change)), &[check(change.0, expect)]).await;
        assert_eq!(question(&sim, &node).await, [seen]);
        assert!(!sim.world.snapshot().node("gpu-01").unwrap().enabled, "no tenant is let on it");
        sim.clock.advance(Duration::from_secs(1));
        sim.signal(&node, SignalKind::answer("retry".to_owned())).await;
        sim.run().await;
        assert_eq!(question(&sim, &node).await, [seen], "nothing was mended");
        sim.signal(&node, SignalKind::answer("leave".to_owned())).await;
        sim.run().await;
        assert_eq!(sim.document(&node).await.status, Status::Failed);
        let log: String = sim.world.events().iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect();
        let rules = Rules { out_max: 1, left_by_operators: ["gpu-01".to_owned()].into(), ..Rules::default() };
        assert_eq!(judge(&log, &rules), []);
    }
}

#[tokio::test]
async fn a_check_that_is_meant_for_other_nodes_is_not_run() {
    let plan = plan(Some((COUNT_GPUS, "7")));
    let other = OrderedCheck { nodes: vec!["gpu-02".parse().unwrap()], ..check(COUNT_GPUS, Expected::AsFound) };
    let (sim, node) = renewed(plan.clone(), std::slice::from_ref(&other)).await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    let ours = OrderedCheck { nodes: ["gpu-02", "gpu-01"].map(|name| name.parse().unwrap()).to_vec(), ..other };
    let (sim, node) = renewed(plan, &[ours]).await;
    assert_eq!(question(&sim, &node).await.len(), 1);
}

#[tokio::test]
async fn a_check_that_the_node_can_not_run_is_a_question_and_not_a_success() {
    let (sim, node) = renewed(plan(None), &[check("dcgmi diag -r 1", Expected::Success)]).await;
    assert_eq!(question(&sim, &node).await, ["dcgmi (dcgmi diag -r 1): expected exit code 0, now exit code 127"]);
}

#[tokio::test]
async fn what_was_accepted_is_not_asked_about_again_whatever_else_is_wrong() {
    let mut plan = plan(Some((COUNT_GPUS, "7")));
    // It fails before and after.
    plan.node("gpu-01").unwrap().answers.remove(COUNT_DISKS);
    let checks = [check(COUNT_GPUS, Expected::AsFound), check(COUNT_DISKS, Expected::AsFound)];
    let (mut sim, node) = renewed(plan, &checks).await;
    let seen = question(&sim, &node).await;
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen[1].contains("it failed before (exit code 127), which is nothing to compare with; now exit code 127"), "{seen:?}");
    for key in ["accept", "retry"] {
        sim.clock.advance(Duration::from_secs(1));
        sim.signal(&node, SignalKind::answer(key.to_owned())).await;
        sim.run().await;
        let seen = question(&sim, &node).await;
        assert!(seen.len() == 1 && seen[0].contains("before it was `8`, now `7`"), "{key}: {seen:?}");
    }
}
