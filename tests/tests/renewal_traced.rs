//! A renewal by the real programs, as a collector receives it: daemon, workers, steps and requests hang together.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use turnaround_daemon::wire::WorkflowView;
use turnaround_tests::harness::{Running, until};
use turnaround_tests::otlp::{Receiver, Span};
use turnaround_workflows::rehearsal::SitePlan;
use turnaround_workflows::store::Status;

#[tokio::test]
async fn a_nodes_renewal_is_a_chain_of_linked_traces_through_daemon_workers_steps_and_requests() {
    let receiver = Receiver::start().await.unwrap();
    let telemetry = format!("[telemetry]\nendpoint = \"{}\"\n", receiver.endpoint());
    let running = Running::start(SitePlan::uniform(3, 2).sped_up(60), 2, |settings| settings.more = telemetry).await.unwrap();
    let rollout = running.renew(&["gpu-01"]).await.unwrap();
    let ended = until("the rollout to end", async || {
        let view: WorkflowView = running.client.get(&format!("/v1/workflows/{rollout}")).await.ok()?;
        view.line.status.is_ended().then_some(view)
    })
    .await
    .unwrap();
    assert_eq!(ended.line.status, Status::Succeeded, "{}", ended.line.headline);
    // Programs that end send what they still have.
    running.processes.end().await.unwrap();
    let received = receiver
        .wait_for("span of the step that gives the node back", |received| {
            received.spans.iter().any(|span| span.name == "reopen" && span.attributes.get("outcome").is_some_and(|outcome| outcome == "done"))
        })
        .await
        .unwrap();

    let spans: BTreeMap<(&str, &str), &Span> =
        received.spans.iter().map(|span| ((span.place.trace.as_str(), span.place.span.as_str()), span)).collect();
    let activations: Vec<&Span> =
        received.spans.iter().filter(|span| span.parent.is_none() && span.attributes.contains_key("fence")).collect();
    let of_node: Vec<&&Span> = activations.iter().filter(|span| span.attributes.get("target").is_some_and(|target| target == "gpu-01")).collect();
    assert!(of_node.len() > 5, "a renewal is many activations, not {}", of_node.len());
    for activation in &activations {
        assert_eq!(activation.resource["service.name"], "turnaround-worker");
        let [link] = activation.links.as_slice() else { panic!("{} has {} links", activation.name, activation.links.len()) };
        let before = spans.get(&(link.trace.as_str(), link.span.as_str())).unwrap_or_else(|| panic!("{} leads nowhere", activation.name));
        let fits = before.attributes.contains_key("fence") || before.resource["service.name"] == "turnaround-daemon";
        assert!(fits, "{} is linked to {}", activation.name, before.name);
    }
    let from_daemon = activations.iter().filter(|activation| {
        let link = &activation.links[0];
        spans.get(&(link.trace.as_str(), link.span.as_str())).is_some_and(|before| before.resource["service.name"] == "turnaround-daemon")
    });
    assert!(from_daemon.count() >= 1, "the rollout's first activation leads back to the request that ordered it");

    let mut asked = BTreeSet::new();
    for request in received.spans.iter().filter(|span| span.client) {
        let parent = request.parent.as_deref().unwrap_or_default();
        if let Some(inside) = spans.get(&(request.place.trace.as_str(), parent))
            && inside.attributes.contains_key("step")
        {
            asked.insert((inside.name.clone(), request.attributes["http.request.method"].clone()));
        }
    }
    for expected in [("close", "PUT"), ("evacuate", "POST"), ("reprovision", "POST"), ("reopen", "PUT")] {
        let expected = (expected.0.to_owned(), expected.1.to_owned());
        assert!(asked.contains(&expected), "{expected:?} is not among the requests inside steps: {asked:?}");
    }
}
