//! How instances move where the site has rules for them, and where Placement knows of devices that their flavours hide. In virtual time.
#![allow(clippy::unwrap_used)]

use turnaround_config::{MoveHow, MoveRule};
use turnaround_tests::renewal::Renewal;
use turnaround_workflows::ports::Move;
use turnaround_workflows::rehearsal::{Happened, InstancePlan, SitePlan};
use turnaround_workflows::store::Status;
use turnaround_workflows::updates::{OrderedMoveRule, RolloutOrder};

/// On `gpu-01`, the instance `one`, which is changed, and a plain one.
fn site(change: impl FnOnce(&mut InstancePlan)) -> SitePlan {
    let mut plan = SitePlan::uniform(3, 0);
    let mut one = InstancePlan::new("one").on("gpu-01");
    change(&mut one);
    plan.instances.extend([one, InstancePlan::new("plain").on("gpu-01")]);
    plan
}

fn rule(how: MoveHow) -> OrderedMoveRule {
    OrderedMoveRule { name: "ours".to_owned(), rule: MoveRule { flavors: vec!["gpu.*".to_owned()], projects: Vec::new(), how } }
}

fn with(rules: Vec<OrderedMoveRule>) -> impl FnOnce(&mut RolloutOrder) {
    move |order| order.rules.moves = rules
}

/// How it was asked to move, each time.
fn moves(renewal: &Renewal, name: &str) -> Vec<Move> {
    let id = renewal.sim.world.snapshot().instance(name).unwrap().id.clone();
    let moves = renewal.sim.world.events().into_iter().filter_map(|event| match event.what {
        Happened::MigrationRequested { instance, how, .. } if instance == id => Some(how),
        _ => None,
    });
    moves.collect()
}

fn runs_elsewhere(renewal: &Renewal, name: &str) -> bool {
    let guest = renewal.sim.world.snapshot().instance(name).unwrap().clone();
    guest.vm_state == "active" && guest.host.as_deref() != Some("gpu-01")
}

#[tokio::test]
async fn a_rule_of_the_site_stops_what_could_move_live_and_moves_live_what_is_taken_for_pinned() {
    let flavor = |one: &mut InstancePlan| one.flavor = "gpu.8x".to_owned();
    let renewal = Renewal::with(site(flavor), None, with(vec![rule(MoveHow::Cold)])).await;
    assert_eq!(renewal.status().await, Status::Succeeded);
    assert_eq!((moves(&renewal, "one"), moves(&renewal, "plain")), (vec![Move::Cold], vec![Move::Live]));
    assert!(runs_elsewhere(&renewal, "one"));

    let mut plan = site(|one| {
        flavor(one);
        one.extra_specs.insert("resources:VGPU".to_owned(), "1".to_owned());
    });
    plan.devices_move_live = true;
    let renewal = Renewal::with(plan.clone(), None, with(vec![rule(MoveHow::Live)])).await;
    assert_eq!((renewal.status().await, moves(&renewal, "one")), (Status::Succeeded, vec![Move::Live]));
    // Where that can't be done, Nova says so, and the owner's instance runs on.
    plan.devices_move_live = false;
    let renewal = Renewal::with(plan, None, with(vec![rule(MoveHow::Live)])).await;
    let seen = renewal.question().await.seen.join("; ");
    assert!(seen.contains("This request does not explicitly request live-migratable devices."), "{seen}");
    assert_eq!(renewal.sim.world.snapshot().instance("one").unwrap().vm_state, "active");
}

#[tokio::test]
async fn what_is_not_to_be_moved_without_an_operator_stays_until_somebody_says_how() {
    let plan = site(|one| one.flavor = "gpu.8x".to_owned());
    let renewal = Renewal::with(plan, None, with(vec![rule(MoveHow::Ask), rule(MoveHow::Cold)])).await;
    let seen = renewal.question().await.seen.join("; ");
    assert!(seen.contains("is not to be moved without an operator (`moves.ours`)"), "{seen}");
    assert_eq!((moves(&renewal, "one"), moves(&renewal, "plain")), (vec![], vec![Move::Live]));
    let said = site(|one| {
        one.flavor = "gpu.8x".to_owned();
        one.metadata.insert("turnaround:move".to_owned(), "live".to_owned());
    });
    let renewal = Renewal::with(said, None, with(vec![rule(MoveHow::Ask)])).await;
    assert_eq!((renewal.status().await, moves(&renewal, "one")), (Status::Succeeded, vec![Move::Live]));
}

#[tokio::test]
async fn a_device_that_only_placement_knows_of_costs_no_failed_move() {
    let hidden = || site(|one| one.holds = [("CUSTOM_PCI_10DE_2330".to_owned(), 2)].into());
    let renewal = Renewal::of(hidden(), None).await;
    let seen = renewal.question().await.seen.join("; ");
    assert!(seen.contains("has what can't be moved live (by Placement, 2 CUSTOM_PCI_10DE_2330): have its owner stop it"), "{seen}");
    assert_eq!((moves(&renewal, "one"), moves(&renewal, "plain")), (vec![], vec![Move::Live]));
    let renewal = Renewal::with(hidden(), None, |order| order.rules.pinned = turnaround_config::Pinned::Cold).await;
    assert_eq!((renewal.status().await, moves(&renewal, "one")), (Status::Succeeded, vec![Move::Cold]));
}
