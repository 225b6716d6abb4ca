//! What a dry run says of each step, and that the renewal then does it. In virtual time.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use turnaround_config::{MoveHow, MoveRule};
use turnaround_proof::sim::{Sim, order};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::{SignalKind, start};
use turnaround_workflows::rehearsal::{Api, NodeFaults, Outage, SitePlan};
use turnaround_workflows::store::Status;
use turnaround_workflows::updates::{self, DryRunLine, DryRunReport, OrderedMoveRule, RolloutOrder};

async fn dry_run(sim: &mut Sim, order: &RolloutOrder) -> Vec<DryRunLine> {
    let new = updates::dry_run(order, "tester").unwrap();
    let id = new.id.clone();
    sim.store.create(start(new, sim.clock.now()).unwrap()).await.unwrap();
    sim.run_until(async |sim| sim.document(&id).await.status.is_ended()).await;
    let state = sim.state(&id).await;
    let report: DryRunReport = serde_json::from_value(state.record("preview").unwrap().output.clone().unwrap()).unwrap();
    report.lines
}

fn would(lines: &[DryRunLine], node: &str, step: &str) -> String {
    lines.iter().find(|line| line.node.as_str() == node && line.step == step).unwrap().would.clone()
}

#[tokio::test]
async fn nothing_is_called_done_before_anything_has_begun() {
    let mut plan = SitePlan::uniform(3, 0);
    // It runs what is ordered already.
    plan.nodes[1].os_version_id = plan.images[0].os_version_id.clone();
    plan.nodes[1].kernel = plan.images[0].kernel.clone();
    let ordered = order(&plan, 2);
    let mut sim = Sim::new(plan, 7);
    let lines = dry_run(&mut sim, &ordered).await;
    let is = |step: &str, expected: &str| assert_eq!(would(&lines, "gpu-02", step), expected, "{step}");
    is("take-stock", "write down what gpu-02 has, to be compared afterwards: its name, 4 things, the result of 1 check");
    is("verify-os", "check gpu-02's OS; now: it runs what is ordered (24.04, kernel 6.8.0-60-generic), and is installed anew all the same");
    is("verify-hypervisor", "wait until gpu-02 is back in Nova with what it offers now: 64 vCPUs, 524288 MiB");
    is("verify-node", "run 1 check on gpu-02, and compare 5 things with how it was found");
    is("verify-alerts", "make sure that no alert fires about gpu-02 that does not fire before (none fires now)");
    is("evacuate", "nothing to do");
    for line in &lines {
        assert!(!line.would.contains("done") && !line.would.contains("3 nodes") && !line.problem, "{line:?}");
    }
}

#[tokio::test]
async fn an_instance_is_named_once_however_many_witnesses_have_it() {
    let plan = SitePlan::uniform(3, 2);
    let ordered = order(&plan, 2);
    let mut sim = Sim::new(plan, 7);
    let lines = dry_run(&mut sim, &ordered).await;
    let id = |name: &str| sim.world.snapshot().instance(name).unwrap().id.clone();
    let (a, b) = (id("gpu-01-a"), id("gpu-01-b"));
    assert_eq!(
        would(&lines, "gpu-01", "confirm-empty"),
        format!(
            "make sure that gpu-01 is empty; now: gpu-01 is open: instances may land on it; \
             instance gpu-01-a ({a}) is on it, active; instance gpu-01-b ({b}) is on it, active"
        )
    );
}

#[tokio::test]
async fn a_move_rule_that_is_about_nothing_is_named() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.instance("gpu-02-a").unwrap().flavor = "gpu.8x".to_owned();
    let rule = |name: &str, flavors: &[&str], projects: &[&str]| {
        let all = |patterns: &[&str]| patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        OrderedMoveRule { name: name.to_owned(), rule: MoveRule { flavors: all(flavors), projects: all(projects), how: MoveHow::Cold } }
    };
    let mut ordered = order(&plan, 2);
    ordered.rules.moves = vec![rule("gpus", &["gpu.*"], &[]), rule("mistyped", &["gpu-*"], &[]), rule("bank", &["gpu.*"], &["no-such-project"])];
    let mut sim = Sim::new(plan.clone(), 7);
    let lines = dry_run(&mut sim, &ordered).await;
    let last = lines.last().unwrap();
    assert_eq!((last.node.as_str(), last.step.as_str(), last.problem), ("gpu-03", "evacuate", false));
    assert_eq!(
        last.would,
        "do nothing by `moves.mistyped`, `moves.bank`: about no instance on any of these nodes; see that the flavors and projects in [moves] are as Nova has them"
    );
    // Nothing is said where each of them is about something.
    ordered.rules.moves.truncate(1);
    let lines = dry_run(&mut Sim::new(plan, 7), &ordered).await;
    assert!(!lines.iter().any(|line| line.would.contains("do nothing")), "{lines:?}");
}

#[tokio::test]
async fn a_bmc_that_is_another_nodes_or_may_be_is_told_before_anything_begins() {
    let mut plan = SitePlan::uniform(3, 0);
    plan.node("gpu-01").unwrap().faults.bmc_of = Some("gpu-02".to_owned());
    plan.node("gpu-02").unwrap().faults.bmc_tells = Some(vec!["02:00:5e:99:00:01".to_owned(), "02:00:5e:99:00:02".to_owned()]);
    plan.node("gpu-03").unwrap().faults.bmc_tells = Some(Vec::new());
    let ordered = order(&plan, 2);
    let lines = dry_run(&mut Sim::new(plan.clone(), 7), &ordered).await;
    let netboots = |node: &str| format!("netboot {node} by its BMC, which wipes its system disk");
    let other = "the BMC tells the MAC addresses 02:00:5e:99:00:01, 02:00:5e:99:00:02, and not that of the node: see that it is this node's";
    assert_eq!(would(&lines, "gpu-02", "reprovision"), format!("{}; {other}", netboots("gpu-02")));
    assert_eq!(would(&lines, "gpu-03", "reprovision"), format!("{}; whether it is this node's, the BMC does not tell", netboots("gpu-03")));
    plan.node("gpu-02").unwrap().faults = NodeFaults::default();
    let lines = dry_run(&mut Sim::new(plan.clone(), 7), &ordered).await;
    assert_eq!(would(&lines, "gpu-02", "reprovision"), netboots("gpu-02"));
    let line = lines.iter().find(|line| line.node.as_str() == "gpu-01" && line.step == "reprovision").unwrap();
    assert!(line.problem && line.would.contains("the configuration gives gpu-01 the BMC of gpu-02, or its MAC address"), "{line:?}");
    plan.node("gpu-03").unwrap().faults.tells_macs = Some(vec!["02:00:5e:99:00:03".to_owned()]);
    let lines = dry_run(&mut Sim::new(plan.clone(), 7), &ordered).await;
    let line = lines.iter().find(|line| line.node.as_str() == "gpu-03" && line.step == "reprovision").unwrap();
    assert!(line.problem && line.would.contains("gpu-03 has no interface with the MAC address that the configuration gives it"), "{line:?}");
    plan.faults.outages = vec![Outage { api: Api::Bmc, node: Some("gpu-03".to_owned()), from: Duration::ZERO, lasts: Duration::from_secs(3_600) }];
    let lines = dry_run(&mut Sim::new(plan, 7), &ordered).await;
    let line = lines.iter().find(|line| line.node.as_str() == "gpu-03" && line.step == "reprovision").unwrap();
    assert!(line.problem, "a BMC that does not answer: {line:?}");
}

/// Whatever stands before it is renewed by then, however many go together.
#[tokio::test]
async fn a_node_that_goes_alone_finds_the_others_renewed() {
    let plan = SitePlan::uniform(2, 1);
    let mut ordered = order(&plan, 2);
    let again = async |ordered: &RolloutOrder| {
        let lines = dry_run(&mut Sim::new(plan.clone(), 7), ordered).await;
        ["gpu-01", "gpu-02"].map(|node| would(&lines, node, "evacuate").contains("move again"))
    };
    assert_eq!(again(&ordered).await, [true, true]);
    ordered.alone = vec!["gpu-02".parse().unwrap()];
    assert_eq!(again(&ordered).await, [true, false]);
}

#[tokio::test]
async fn what_is_said_of_other_nodes_than_one_names_each() {
    let plan = SitePlan::uniform(3, 1);
    let ordered = order(&plan, 2);
    let mut sim = Sim::new(plan, 7);
    let lines = dry_run(&mut sim, &ordered).await;
    for node in ["gpu-01", "gpu-02", "gpu-03"] {
        assert_eq!(would(&lines, node, "verify-os"), format!("check {node}'s OS; now: OS release: expected 24.04, found 22.04, kernel: expected 6.8.0-60-generic, found 5.15.0-119-generic"));
    }
    let of_many: Vec<&DryRunLine> = lines.iter().filter(|line| line.would.contains("3 nodes")).collect();
    assert!(of_many.is_empty(), "{of_many:?}");
}

#[tokio::test]
async fn a_node_that_an_operator_had_left_is_opened_at_the_end_as_the_dry_run_says() {
    let mut plan = SitePlan::uniform(3, 0);
    plan.node("gpu-01").unwrap().faults = NodeFaults { never_comes_back: 1, ..NodeFaults::default() };
    let mut ordered = order(&plan, 1);
    ordered.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&ordered).await;
    let left = sim.child(&rollout, "gpu-01").await;
    sim.run().await;
    sim.signal(&left, SignalKind::answer("leave".to_owned())).await;
    sim.run().await;
    let service = sim.world.services().unwrap().into_iter().find(|service| service.node == "gpu-01").unwrap();
    let reason = service.disabled_reason.unwrap();
    let lines = dry_run(&mut sim, &ordered).await;
    assert!(reason.contains("left closed by an operator"), "{reason}");
    assert_eq!(
        would(&lines, "gpu-01", "close"),
        format!("keep gpu-01 closed, as it was left ({reason}), and enable it at the end, once an operator has said that it is whole")
    );
    // And so it is done.
    let rollout = sim.order(&ordered).await;
    let node = sim.child(&rollout, "gpu-01").await;
    sim.run().await;
    assert_eq!(sim.document(&node).await.status, Status::NeedsOperator);
    sim.signal(&node, SignalKind::answer("accept".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded, "{}", sim.document(&node).await.headline);
    assert!(sim.world.snapshot().node("gpu-01").unwrap().enabled);
}
