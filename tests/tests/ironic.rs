//! A node that Ironic renews: every trouble that Ironic was seen to make, or can be thought to.
#![allow(clippy::unwrap_used)]

use turnaround_tests::sim::{Sim, order};
use turnaround_workflows::rehearsal::{Happened, InstancePlan, SitePlan};
use turnaround_workflows::store::{Status, WorkflowId};

/// One node that Ironic renews, with an instance, and one to move that to.
fn plan() -> SitePlan {
    let mut plan = SitePlan::uniform(2, 0).with_ironic(&["gpu-01"]);
    plan.instances = vec![InstancePlan::new("train").on("gpu-01")];
    plan
}

async fn began(plan: SitePlan) -> (Sim, WorkflowId, WorkflowId) {
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let child = sim.child(&rollout, "gpu-01").await;
    sim.run().await;
    (sim, rollout, child)
}

fn count(sim: &Sim, wanted: impl Fn(&Happened) -> bool) -> usize {
    sim.world.events().iter().filter(|event| wanted(&event.what)).count()
}

#[tokio::test]
async fn ironic_rebuilds_the_node_once_and_our_own_netboot_has_no_part_in_it() {
    let (sim, rollout, child) = began(plan()).await;
    let document = sim.document(&child).await;
    assert_eq!(document.status, Status::Succeeded, "{}", document.headline);
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
    let site = sim.world.snapshot();
    let node = site.node("gpu-01").unwrap();
    assert_eq!((node.kernel.as_str(), node.enabled, node.instances), ("6.8.0-60-generic", true, 0));
    assert!(node.installed.as_ref().is_some_and(|token| token.starts_with(child.as_str())), "{node:?}");
    assert_eq!(count(&sim, |what| matches!(what, Happened::RebuildRequested { .. })), 1);
    assert_eq!(count(&sim, |what| matches!(what, Happened::ImageWritten { .. })), 1);
    let ours = |what: &Happened| matches!(what, Happened::ResetRequested { .. } | Happened::BootOverride { .. } | Happened::TicketStaged { .. });
    assert_eq!(count(&sim, ours), 0);
}
