//! Alerts about a node are silenced while it is renewed, and no renewal waits for that. In virtual time.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use turnaround_proof::sim::{Death, Sim, order};
use turnaround_workflows::engine::SignalKind;
use turnaround_workflows::rehearsal::{Api, Call, Happened, LostAnswer, NodeFaults, Outage, SitePlan};
use turnaround_workflows::store::{Status, WorkflowId};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A renewal of `gpu-01`, to its end or its first question.
async fn renewed(plan: SitePlan, death: Option<Death>) -> (Sim, WorkflowId) {
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    // Of the gate see `gates.rs`: it does wait.
    order.rules.silence.as_mut().unwrap().gate = false;
    let mut sim = Sim::new(plan, 7);
    sim.deaths.extend(death);
    let rollout = sim.order(&order).await;
    let node = sim.child(&rollout, "gpu-01").await;
    sim.run().await;
    (sim, node)
}

/// What happened to the silences, and what alerts would have been about, in order.
fn story(sim: &Sim) -> Vec<&'static str> {
    let told = sim.world.events().into_iter().filter_map(|event| match event.what {
        Happened::SilenceBegun { node, .. } => {
            assert_eq!(node.as_deref(), Some("gpu-01"));
            Some("silence")
        }
        Happened::SilenceEnded { .. } => Some("end"),
        Happened::ResetRequested { .. } => Some("reset"),
        Happened::ServiceEnabled { .. } => Some("back"),
        _ => None,
    });
    told.collect()
}

fn plan() -> SitePlan {
    SitePlan::uniform(3, 1)
}

fn out(from: Duration, lasts: Duration) -> SitePlan {
    let mut plan = plan();
    plan.faults.outages = vec![Outage { api: Api::Monitoring, node: None, from, lasts }];
    plan
}

async fn output(sim: &Sim, node: &WorkflowId, step: &str) -> String {
    sim.state(node).await.record(step).unwrap().output.as_ref().unwrap().to_string()
}

#[tokio::test]
async fn alerts_are_silent_from_before_the_reset_until_the_node_is_back_whoever_is_killed() {
    let whole = Death::never();
    let (sim, node) = renewed(plan(), Some(whole.clone())).await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(story(&sim), ["silence", "reset", "back", "end"]);
    let mut struck = 0;
    for (point, name) in (1..).zip(whole.names()) {
        if name.contains("silence") {
            struck += 1;
            let (sim, node) = renewed(plan(), Some(Death::at(point))).await;
            assert_eq!(sim.document(&node).await.status, Status::Succeeded);
            assert_eq!(story(&sim), ["silence", "reset", "back", "end"], "killed at {name}");
        }
    }
    assert!(struck >= 4, "before and after the beginning and the end: {struck}");
}

#[tokio::test]
async fn a_silence_whose_beginning_was_not_acknowledged_is_not_begun_twice() {
    let mut plan = plan();
    plan.faults.lost_answers = vec![LostAnswer { call: Call::BeginSilence, nth: 1 }, LostAnswer { call: Call::EndSilence, nth: 1 }];
    let (sim, node) = renewed(plan, None).await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(story(&sim), ["silence", "reset", "back", "end"]);
}

#[tokio::test]
async fn a_renewal_does_not_wait_for_what_only_spares_people_a_noise() {
    let (sim, node) = renewed(out(Duration::ZERO, 24 * HOUR), None).await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(story(&sim), ["reset", "back"]);
    for step in ["silence", "end-silence"] {
        let output = output(&sim, &node, step).await;
        assert!(output.contains("could not list the silences"), "it says why: {output}");
    }

    // It comes back meanwhile.
    let (sim, node) = renewed(out(Duration::ZERO, 2 * MINUTE), None).await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(story(&sim), ["silence", "reset", "back", "end"]);

    // It goes away meanwhile: the silence ends by itself.
    let (sim, node) = renewed(out(6 * MINUTE, 24 * HOUR), None).await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(story(&sim), ["silence", "reset", "back"]);
    assert!(output(&sim, &node, "end-silence").await.contains("not-ended"));
}

#[tokio::test]
async fn a_node_that_goes_back_alerts_again_and_one_that_is_left_when_its_silence_ends() {
    // The netboot never comes: a question before anything is wiped.
    let mut plan = plan();
    plan.node("gpu-01").unwrap().faults = NodeFaults { loses_boot_override: 1, ..NodeFaults::default() };
    let (mut sim, node) = renewed(plan, None).await;
    assert_eq!(sim.document(&node).await.status, Status::NeedsOperator);
    sim.signal(&node, SignalKind::answer("leave".to_owned())).await;
    sim.run().await;
    assert_eq!(story(&sim), ["silence", "reset"]);

    let mut plan = self::plan();
    plan.faults.outages = vec![Outage { api: Api::NetBoot, node: None, from: Duration::ZERO, lasts: HOUR }];
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run_until(async |sim| story(sim).contains(&"silence")).await;
    sim.signal(&rollout, SignalKind::Abort { why: "changed my mind".to_owned() }).await;
    sim.run().await;
    assert_eq!(sim.document(&rollout).await.status, Status::Aborted);
    assert_eq!(story(&sim), ["silence", "end", "back"]);
}
