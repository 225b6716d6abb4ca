//! A whole renewal as its operator sees it afterwards: its traces hang together, and its metrics name no node.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use tracing::Instrument as _;
use turnaround_config::{OtlpProtocol, Telemetry};
use turnaround_tests::otlp::{Place, Received, Receiver};
use turnaround_proof::sim::{Death, Sim, order};
use turnaround_workflows::rehearsal::SitePlan;
use turnaround_workflows::telemetry;

#[tokio::test]
async fn every_activation_of_a_rollout_leads_back_to_its_order_and_no_metric_names_a_node() {
    let receiver = Receiver::start().await.unwrap();
    let config = Telemetry { endpoint: Some(receiver.endpoint().to_owned()), protocol: OtlpProtocol::Grpc, log: "error".to_owned() };
    let telemetry = telemetry::init("turnaround-test", &config).unwrap();
    let plan = SitePlan::uniform(3, 2);
    let mut order = order(&plan, 1);
    order.nodes.truncate(2);
    let mut sim = Sim::new(plan, 7);
    let request = tracing::info_span!(parent: None, "POST /v1/rollouts");
    let rollout = sim.order(&order).instrument(request).await;
    // One worker is killed on the way.
    sim.deaths.push_back(Death::at(20));
    sim.run().await;
    telemetry.shutdown().await;
    let received = receiver.received();

    all_lead_back_to("POST /v1/rollouts", &received);
    let steps = received.spans.iter().filter(|span| span.attributes.contains_key("step"));
    let done: BTreeSet<&str> =
        steps.filter(|span| span.attributes.get("outcome").is_some_and(|outcome| outcome == "done")).map(|span| span.name.as_str()).collect();
    let expected = turnaround_workflows::updates::registry().get("node-os").unwrap().step_names();
    for step in expected {
        assert!(done.contains(step), "no span says that `{step}` was done: {done:?}");
    }

    let ended: f64 = received.metrics.iter().filter(|point| point.name == "turnaround.workflows.ended").map(|point| point.value).sum();
    assert!((ended - 3.0).abs() < 0.5, "two nodes and their rollout ended, not {ended}");
    for point in &received.metrics {
        for value in point.attributes.values() {
            assert!(!value.contains("gpu-") && !value.contains(rollout.as_str()), "{} is labelled {value}", point.name);
        }
    }
}

/// Every trace but that of `origin` begins with a span that is linked to one that was received, or to `origin`, and so on.
fn all_lead_back_to(origin: &str, received: &Received) {
    let roots = received.roots();
    assert!(roots.len() > 10, "only {} traces", roots.len());
    let known: BTreeSet<String> = roots.iter().map(|root| root.place.to_string()).collect();
    for root in &roots {
        let links: Vec<String> = root.links.iter().map(Place::to_string).collect();
        if root.name == origin {
            assert_eq!(links, Vec::<String>::new());
        } else {
            assert_eq!(links.len(), 1, "{} is linked to one activation before it", root.name);
            assert!(known.contains(&links[0]), "{} is linked to {}, which nobody knows", root.name, links[0]);
        }
    }
}
