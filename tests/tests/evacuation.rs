//! Emptying a node on the simulated site: cases that were first seen on a real Nova (`real_nova.rs`).
#![allow(clippy::unwrap_used)]

use turnaround_tests::sim::{Sim, order};
use turnaround_workflows::engine::SignalKind;
use turnaround_workflows::ports::{MigrationState, Move};
use turnaround_workflows::rehearsal::{Guest, SitePlan, VmState};
use turnaround_workflows::store::Status;

fn guest(sim: &Sim, name: &str) -> Guest {
    sim.world.guests_where(|guest| guest.name == name).unwrap().remove(0)
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
    sim.world.request_move(&left.id, Move::Cold).unwrap();
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
    sim.signal(&node, SignalKind::Answer { key: "retry".to_owned() }).await;
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
    sim.world.request_move(&busy.id, Move::Live).unwrap();
    let rollout = sim.order(&order).await;
    sim.run().await;
    assert_eq!(sim.document(&sim.child(&rollout, "gpu-01").await).await.status, Status::Succeeded);
    let moves = sim.world.migrations_where(|record| record.instance == busy.id).unwrap();
    assert_eq!(moves.len(), 1, "theirs was enough: {moves:?}");
}
