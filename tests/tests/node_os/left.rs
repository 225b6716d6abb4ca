//! What is left of a node that an operator leaves: what it must not do by itself, what it counts as, and what its next renewal asks.

use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::{Event, SignalKind};
use turnaround_workflows::rehearsal::{Api, Happens, NodeFaults, Outage};
use turnaround_workflows::store::Status;

use super::{HOUR, MINUTE, MORNING, SECOND, Scenario, with_faults};

impl Scenario {
    /// Until its next renewal has begun that step.
    async fn is_ordered_again_until(&mut self, step: &str) {
        self.rollout = self.order(&["gpu-01"], 1).await;
        let node = self.node("gpu-01");
        self.sim.run_until(async |sim| sim.store.load(&node).await.unwrap().is_some() && sim.state(&node).await.record(step).is_some()).await;
    }

    async fn is_aborted(&mut self) {
        self.sim.signal(&self.rollout.clone(), SignalKind::Abort { why: "not now".to_owned() }).await;
        self.rest().await;
        assert_eq!(self.status("gpu-01").await, Status::Aborted);
    }
}

#[tokio::test]
async fn a_node_that_is_left_has_no_boot_ticket_that_would_wipe_it_later() {
    for faults in [
        NodeFaults { loses_boot_override: 1, ..NodeFaults::default() },
        NodeFaults { ignores_reset: 1, ..NodeFaults::default() },
        NodeFaults { never_comes_back: 1, ..NodeFaults::default() },
    ] {
        let mut scenario = Scenario::new(with_faults(faults.clone()), &["gpu-01"], 1).await;
        scenario.rest().await;
        scenario.answer("gpu-01", "leave").await;
        assert_eq!(scenario.status("gpu-01").await, Status::Failed);
        assert_eq!(scenario.staged("gpu-01"), None, "{faults:?}");
        assert!(!scenario.enabled("gpu-01"));
    }
}

#[tokio::test]
async fn a_node_can_only_be_left_where_its_boot_ticket_can_be_withdrawn() {
    let mut plan = with_faults(NodeFaults { loses_boot_override: 1, ..NodeFaults::default() });
    plan.faults.outages = vec![Outage { api: Api::NetBoot, node: None, from: 5 * MINUTE, lasts: HOUR }];
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.rest().await;
    scenario.sim.clock.advance_to(MORNING + 10 * MINUTE);
    scenario.answer("gpu-01", "leave").await;
    assert_eq!(scenario.status("gpu-01").await, Status::NeedsOperator, "the question stays open");
    scenario.sim.clock.advance(2 * HOUR);
    scenario.answer("gpu-01", "leave").await;
    assert_eq!((scenario.status("gpu-01").await, scenario.staged("gpu-01")), (Status::Failed, None));
    scenario.journal(&scenario.node("gpu-01")).await;
}

#[tokio::test]
async fn a_node_that_was_left_is_renewed_later_and_opened_then() {
    let mut scenario = Scenario::new(with_faults(NodeFaults { loses_boot_override: 1, ..NodeFaults::default() }), &["gpu-01"], 1).await;
    scenario.rest().await;
    scenario.answer("gpu-01", "leave").await;
    scenario.rollout = scenario.order(&["gpu-01"], 1).await;
    scenario.rest().await;
    let question = scenario.question("gpu-01").await;
    assert!(question.seen.iter().any(|line| line.contains("an operator had left the node")), "{question:?}");
    assert!(!scenario.enabled("gpu-01"));
    scenario.answer("gpu-01", "accept").await;
    scenario.succeeded("gpu-01").await;
    assert!(scenario.enabled("gpu-01"));
    assert!(scenario.sim.store.holdings().await.unwrap().is_empty());
    scenario.is_clean();
}

#[tokio::test]
async fn a_node_that_was_left_because_memory_is_missing_is_no_measure_for_its_next_renewal() {
    let mut scenario = Scenario::new(with_faults(NodeFaults { loses_memory_mb: 64 * 1024, ..NodeFaults::default() }), &["gpu-01"], 1).await;
    scenario.rest().await;
    scenario.answer("gpu-01", "leave").await;
    for _ in 0..2 {
        scenario.rollout = scenario.order(&["gpu-01"], 1).await;
        scenario.rest().await;
        let question = scenario.question("gpu-01").await;
        let offers = "an operator had left the node, perhaps because something is missing; now it offers";
        assert!(question.seen.iter().any(|line| line.starts_with(offers)), "{question:?}");
        assert!(!scenario.enabled("gpu-01"), "nobody has said that this is all of it");
        scenario.answer("gpu-01", "leave").await;
        assert_eq!(scenario.status("gpu-01").await, Status::Failed);
        assert!(!scenario.enabled("gpu-01"));
    }
}

#[tokio::test]
async fn a_renewal_of_a_left_node_that_goes_back_leaves_it_closed_and_counting() {
    let plan = with_faults(NodeFaults { wrong_kernel: Some("5.15.0-old".to_owned()), ..NodeFaults::default() });
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.rest().await;
    scenario.answer("gpu-01", "leave").await;
    let reason = scenario.sim.world.snapshot().node("gpu-01").unwrap().disabled_reason.clone();
    scenario.is_ordered_again_until("close").await;
    scenario.is_aborted().await;
    let found = scenario.sim.world.snapshot().node("gpu-01").unwrap().clone();
    assert!(!found.enabled, "what was left closed, because it runs the wrong kernel, is not opened by an abort");
    assert_eq!(found.disabled_reason, reason, "and says again who left it");
    assert_eq!(scenario.sim.store.holdings().await.unwrap().len(), 1, "and goes on counting as out");
    scenario.journal(&scenario.node("gpu-01")).await;
}

#[tokio::test]
async fn a_renewal_that_never_came_to_close_a_left_node_leaves_it_counting() {
    let mut plan = with_faults(NodeFaults { wrong_kernel: Some("5.15.0-old".to_owned()), ..NodeFaults::default() });
    plan.faults.outages.push(Outage { api: Api::Nova, node: None, from: 12 * HOUR, lasts: HOUR });
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.rest().await;
    scenario.answer("gpu-01", "leave").await;
    scenario.sim.clock.advance((MORNING + 12 * HOUR).since(scenario.sim.clock.now()));
    scenario.rollout = scenario.order(&["gpu-01"], 1).await;
    scenario.rest().await;
    assert!(scenario.question("gpu-01").await.text.contains("`close`"), "it could not even look at the node");
    scenario.sim.clock.advance(HOUR);
    scenario.answer("gpu-01", "unwind").await;
    assert_eq!(scenario.status("gpu-01").await, Status::Failed);
    assert!(!scenario.enabled("gpu-01"));
    let held = scenario.sim.store.holdings().await.unwrap();
    assert_eq!(held.len(), 1, "it is as much out of service as before, and counts: {held:?}");
}

/// Found by seeds (11799 and 24477 among them): the second renewal gave the share back, as it had found the node disabled, and one node more went out.
#[tokio::test]
async fn a_node_that_others_had_disabled_and_that_was_left_goes_on_counting_whoever_goes_back() {
    let mut plan = with_faults(NodeFaults { wrong_kernel: Some("5.15.0-old".to_owned()), ..NodeFaults::default() });
    plan.node("gpu-01").unwrap().disabled = Some("broken DIMM, ask bob".to_owned());
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.rest().await;
    let left = scenario.node("gpu-01");
    scenario.answer("gpu-01", "leave").await;
    for round in 0..2 {
        scenario.is_ordered_again_until("close").await;
        scenario.is_aborted().await;
        let held = scenario.sim.store.holdings().await.unwrap();
        assert_eq!(held.len(), 1, "{round}: it may be down by our doing, and goes on counting as out: {held:?}");
        let journal = scenario.journal(&scenario.node("gpu-01")).await;
        let begun = journal.iter().find(|entry| matches!(&entry.event, Event::StepBegun { step, .. } if step == "close")).unwrap().event.describe();
        assert!(begun.starts_with("close: begun; takes the budget nodes-out for gpu-01 over from node-os-rollout-"), "{begun}");
        assert_eq!(begun.ends_with(left.as_str()), round == 0, "from whoever had it last: {begun}");
    }
}

/// Found by seeds (25615 and 83653 among them): as somebody else had opened it, it was taken for whole.
#[tokio::test]
async fn a_node_that_was_left_is_no_measure_for_its_next_renewal_though_somebody_has_opened_it_since() {
    let plan = with_faults(NodeFaults { loses_memory_mb: 64 * 1024, ..NodeFaults::default() });
    let plan = plan.happens(12 * HOUR, Happens::ServiceEnabled { node: "gpu-01".to_owned() });
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.rest().await;
    scenario.sim.clock.advance_to(MORNING + 13 * HOUR);
    scenario.answer("gpu-01", "leave").await;
    assert!(scenario.enabled("gpu-01"));
    scenario.rollout = scenario.order(&["gpu-01"], 1).await;
    scenario.rest().await;
    let question = scenario.question("gpu-01").await;
    let offers = "an operator had left the node, perhaps because something is missing; now it offers";
    assert!(question.seen.iter().any(|line| line.starts_with(offers)), "{question:?}");
    assert!(!scenario.enabled("gpu-01"));
}

#[tokio::test]
async fn a_node_that_was_left_goes_on_counting_though_its_next_renewal_finds_it_opened_and_goes_back() {
    let plan = with_faults(NodeFaults { loses_memory_mb: 64 * 1024, ..NodeFaults::default() });
    let plan = plan.happens(12 * HOUR, Happens::ServiceEnabled { node: "gpu-01".to_owned() });
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.rest().await;
    scenario.answer("gpu-01", "leave").await;
    scenario.sim.clock.advance_to(MORNING + 11 * HOUR + 59 * MINUTE);
    scenario.is_ordered_again_until("take-stock").await;
    assert!(!scenario.enabled("gpu-01"));
    scenario.sim.clock.advance_to(MORNING + 12 * HOUR + SECOND);
    scenario.is_aborted().await;
    assert!(scenario.enabled("gpu-01"), "somebody has opened it");
    assert_eq!(scenario.sim.store.holdings().await.unwrap().len(), 1, "and nobody has looked whether it is whole");
    scenario.rollout = scenario.order(&["gpu-01"], 1).await;
    scenario.rest().await;
    let question = scenario.question("gpu-01").await;
    assert!(question.seen.iter().any(|line| line.contains("an operator had left the node")), "{question:?}");
}

/// Found by seeds (10403 among them).
#[tokio::test]
async fn by_which_id_nova_knows_a_node_is_told_where_it_was_left_and_there_is_nothing_to_compare_with() {
    let mut scenario = Scenario::new(with_faults(NodeFaults { new_identity: true, ..NodeFaults::default() }), &["gpu-01"], 1).await;
    scenario.rest().await;
    assert!(scenario.question("gpu-01").await.seen[0].contains("`compute_id`"));
    scenario.answer("gpu-01", "leave").await;
    scenario.rollout = scenario.order(&["gpu-01"], 1).await;
    scenario.rest().await;
    let question = scenario.question("gpu-01").await;
    let offers = question.seen.iter().find(|line| line.contains("now it offers")).unwrap();
    assert!(offers.contains("; to Nova it is ") && offers.ends_with(" (`compute_id`)"), "{question:?}");
}
