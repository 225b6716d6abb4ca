//! The renewal of one node of a simulated site in virtual time, to its end or to its first question: what scenarios of a step begin with.

use std::time::Duration;

use turnaround_workflows::engine::{Question, SignalKind};
use turnaround_workflows::rehearsal::{Happened, NodePlan, SitePlan};
use turnaround_workflows::store::{Status, WorkflowId};
use turnaround_workflows::updates::RolloutOrder;

use turnaround_proof::sim::{Death, Sim, order};

/// Of `gpu-01`.
pub struct Renewal {
    pub sim: Sim,
    /// The workflow of the node.
    pub node: WorkflowId,
}

/// Three nodes, each with one instance, of which `gpu-01` is changed.
pub fn site_with(change: impl FnOnce(&mut NodePlan)) -> SitePlan {
    let mut plan = SitePlan::uniform(3, 1);
    change(plan.node("gpu-01").expect("it is there"));
    plan
}

impl Renewal {
    pub async fn of(plan: SitePlan, death: Option<Death>) -> Renewal {
        Renewal::with(plan, death, |_| ()).await
    }

    pub async fn with(plan: SitePlan, death: Option<Death>, change: impl FnOnce(&mut RolloutOrder)) -> Renewal {
        let mut order = order(&plan, 1);
        order.nodes.truncate(1);
        change(&mut order);
        let mut sim = Sim::new(plan, 7);
        sim.deaths.extend(death);
        let rollout = sim.order(&order).await;
        let node = sim.child(&rollout, "gpu-01").await;
        sim.run().await;
        Renewal { sim, node }
    }

    /// Another one of the same node, at the same site.
    pub async fn again(&mut self, plan: &SitePlan) {
        let mut order = order(plan, 1);
        order.nodes.truncate(1);
        let rollout = self.sim.order(&order).await;
        self.node = self.sim.child(&rollout, "gpu-01").await;
        self.sim.run().await;
    }

    pub async fn question(&self) -> Question {
        let state = self.sim.state(&self.node).await;
        state.question().cloned().unwrap_or_else(|| panic!("nothing is asked: {}", state.headline()))
    }

    pub async fn answer(&mut self, key: &str) {
        self.sim.clock.advance(Duration::from_secs(1));
        self.sim.signal(&self.node, SignalKind::answer(key.to_owned())).await;
        self.sim.run().await;
    }

    pub fn is_open(&self) -> bool {
        self.sim.world.snapshot().node("gpu-01").expect("it is there").enabled
    }

    pub async fn status(&self) -> Status {
        self.sim.document(&self.node).await.status
    }

    /// What a step has left, as JSON.
    pub async fn output(&self, step: &str) -> String {
        self.sim.state(&self.node).await.record(step).and_then(|record| record.output.clone()).expect("it has succeeded").to_string()
    }

    pub fn count(&self, is: impl Fn(&Happened) -> bool) -> usize {
        self.sim.world.events().iter().filter(|event| is(&event.what)).count()
    }
}
