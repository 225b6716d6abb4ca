//! Killed anywhere, a renewal ends as if nothing had happened, and nothing is done twice.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use turnaround_proof::sim::{Death, Sim, order};
use turnaround_workflows::engine::SignalKind;
use turnaround_workflows::ports::CANARY_NAME;
use turnaround_workflows::rehearsal::{Happened, InstancePlan, SitePlan, VmState, WorldEvent};
use turnaround_workflows::store::Status;

/// Not the half hour of a real one: every look at a run is a point to be killed at, and they are all alike.
const SETUP_TAKES: std::time::Duration = std::time::Duration::from_secs(40);

/// Two nodes to be renewed, a third one for the instances; every way to move is needed.
fn plan() -> SitePlan {
    let mut plan = SitePlan::uniform(3, 0).with_setup(&[]).setup_takes(SETUP_TAKES);
    plan.instances = vec![
        InstancePlan::new("train").on("gpu-01"),
        InstancePlan::new("spare").on("gpu-01").state(VmState::Stopped),
        InstancePlan::new("frozen").on("gpu-01").state(VmState::Paused),
        InstancePlan::new("k3s-1").on("gpu-01"),
        // It takes so much there that all others go to the other one, in whatever order.
        InstancePlan::new("k3s-2").on("gpu-03").size(4, 256 * 1024),
    ];
    plan.with_cluster(&["k3s-1", "k3s-2"])
}

/// What must not depend on whether somebody was killed.
#[derive(Debug, PartialEq)]
struct Summary {
    status: Status,
    nodes: Vec<(String, bool, String, usize)>,
    instances: Vec<(String, String)>,
    /// Moves accepted, by instance; resets and images, by node.
    effects: BTreeMap<String, u32>,
}

fn effects(events: &[WorldEvent]) -> BTreeMap<String, u32> {
    let mut count = BTreeMap::new();
    let is_canary = |id: &String| {
        events.iter().any(|event| matches!(&event.what, Happened::InstanceCreated { instance, name, .. } if instance == id && name.starts_with(CANARY_NAME)))
    };
    for event in events {
        let what = match &event.what {
            // Its id depends on when it was made.
            Happened::InstanceCreated { name, .. } if name.starts_with(CANARY_NAME) => "canary built".to_owned(),
            Happened::MigrationRequested { instance, .. } if is_canary(instance) => "canary moved".to_owned(),
            Happened::MigrationRequested { instance, .. } => format!("move {instance}"),
            Happened::StopRequested { instance, .. } => format!("stop {instance}"),
            Happened::ResetRequested { node, .. } => format!("reset {node}"),
            Happened::RebuildRequested { node, .. } => format!("rebuild {node}"),
            Happened::ImageWritten { node, .. } => format!("image {node}"),
            Happened::NodeCordoned { cluster_node, .. } => format!("cordon {cluster_node}"),
            Happened::NodeUncordoned { cluster_node, .. } => format!("uncordon {cluster_node}"),
            Happened::PodEvicted { pod } => format!("evict {pod}"),
            Happened::SilenceBegun { node, .. } => format!("silence {}", node.as_deref().unwrap_or("nobody")),
            Happened::ScriptStarted { node, .. } => format!("script for {}", node.as_deref().unwrap_or("nobody")),
            Happened::InstancesLost { node, .. } => format!("HARM on {node}"),
            _ => continue,
        };
        *count.entry(what).or_insert(0) += 1;
    }
    count
}

async fn summary(sim: &Sim, rollout: &turnaround_workflows::store::WorkflowId) -> Summary {
    let site = sim.world.snapshot();
    Summary {
        status: sim.document(rollout).await.status,
        nodes: site.nodes.iter().map(|node| (node.name.clone(), node.enabled, node.kernel.clone(), node.instances)).collect(),
        instances: site.instances.iter().map(|guest| (guest.name.clone(), guest.vm_state.clone())).collect(),
        effects: effects(&sim.world.events()),
    }
}

async fn renewed(plan: SitePlan, death: Death) -> Summary {
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    sim.deaths.push_back(death);
    let rollout = sim.order(&order).await;
    sim.run().await;
    summary(&sim, &rollout).await
}

#[tokio::test]
async fn a_renewal_does_everything_once() {
    let death = Death::never();
    let summary = renewed(plan(), death.clone()).await;
    assert_eq!(summary.status, Status::Succeeded, "{summary:#?}");
    assert_eq!(summary.nodes[0], ("gpu-01".to_owned(), true, "6.8.0-60-generic".to_owned(), 0));
    let once: Vec<u32> = summary.effects.values().copied().collect();
    assert_eq!(once, [1; 14], "four moves, a canary built and moved, a node of the cluster cordoned, drained and uncordoned, a silence, a reset, an image, two runs of the setup script: {:?}", summary.effects);
    assert!(death.passed() > 40, "{:?}", death.names());
}

#[tokio::test]
async fn killed_at_any_point_a_renewal_ends_the_same_and_nothing_is_done_twice() {
    killed_everywhere(plan()).await;
}

#[tokio::test]
async fn killed_at_any_point_a_node_that_ironic_renews_is_rebuilt_once() {
    let expected = killed_everywhere(plan().with_ironic(&["gpu-01"])).await;
    assert_eq!(expected.status, Status::Succeeded, "{expected:#?}");
    assert_eq!(expected.effects.get("rebuild gpu-01"), Some(&1), "{expected:#?}");
}

async fn killed_everywhere(plan: SitePlan) -> Summary {
    let whole = Death::never();
    let expected = renewed(plan.clone(), whole.clone()).await;
    let names = whole.names();
    for (point, name) in (1..).zip(&names) {
        let death = Death::at(point);
        let summary = renewed(plan.clone(), death.clone()).await;
        assert!(death.has_come(), "point {point} ({name}) was never reached");
        assert_eq!(summary, expected, "killed at point {point}: {name}");
    }
    expected
}

#[tokio::test]
async fn aborted_and_killed_at_any_point_a_node_is_given_back_as_found() {
    let whole = aborted(Death::never()).await;
    assert_eq!(whole.0.status, Status::Aborted);
    assert_eq!(whole.0.nodes[0].2, "5.15.0-119-generic");
    for point in 1..=whole.1 {
        let (summary, _) = aborted(Death::at(point)).await;
        assert!(summary.nodes[0].1, "killed at point {point}: the node is left disabled: {summary:#?}");
        assert_eq!(summary.status, Status::Aborted, "killed at point {point}");
        assert!(!summary.effects.contains_key("reset gpu-01"), "killed at point {point}");
    }
}

/// A renewal that is aborted as soon as its first instance moves; and how many points were passed.
async fn aborted(death: Death) -> (Summary, u32) {
    let plan = plan();
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    sim.deaths.push_back(death.clone());
    let rollout = sim.order(&order).await;
    sim.run_until(async |sim| sim.world.events().iter().any(|event| matches!(event.what, Happened::MigrationRequested { .. }))).await;
    sim.signal(&rollout, SignalKind::Abort { why: "a tenant called".to_owned() }).await;
    sim.run().await;
    (summary(&sim, &rollout).await, death.passed())
}
