//! What a survey says of a cloud that can't be asked. In virtual time.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use turnaround_proof::sim::{Sim, order};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::start;
use turnaround_workflows::rehearsal::{Api, Outage, SitePlan};
use turnaround_workflows::store::{Document, Status};
use turnaround_workflows::updates::{self, SurveyOrder, SurveyReport};

/// The survey of three nodes, ended, while for so many seconds `silent` does not answer about `node` (None: about any).
async fn survey(silent: Api, node: Option<&str>, seconds: u64) -> (Document, Option<SurveyReport>) {
    let mut plan = SitePlan::uniform(3, 1);
    plan.faults.outages = vec![Outage { api: silent, node: node.map(str::to_owned), from: Duration::ZERO, lasts: Duration::from_secs(seconds) }];
    let nodes = order(&plan, 1).nodes;
    let mut sim = Sim::new(plan, 7);
    let new = updates::survey(&SurveyOrder { nodes }, "tester").unwrap();
    let id = new.id.clone();
    sim.store.create(start(new, sim.clock.now()).unwrap()).await.unwrap();
    sim.run_until(async |sim| sim.document(&id).await.status.is_ended()).await;
    let output = sim.state(&id).await.record("survey-site").and_then(|record| record.output.clone());
    (sim.document(&id).await, output.map(|output| serde_json::from_value(output).unwrap()))
}

#[tokio::test]
async fn a_survey_to_which_nova_says_nothing_fails_and_says_why() {
    let (document, report) = survey(Api::Nova, None, 3_600).await;
    assert_eq!((document.status, report), (Status::Failed, None));
    assert_eq!(document.headline, "survey-site can't succeed: Nova says nothing of any node: could not read the compute service of gpu-01");
}

#[tokio::test]
async fn a_survey_that_nova_permits_nothing_fails_at_once() {
    // Although this would pass before a silent one is given up.
    let (document, report) = survey(Api::NovaPolicy, None, 5).await;
    assert_eq!((document.status, report), (Status::Failed, None));
    assert!(document.headline.ends_with("gpu-01: not permitted: Policy doesn't allow it to be performed."), "{}", document.headline);
}

#[tokio::test]
async fn a_survey_waits_for_a_nova_that_is_started_anew() {
    let (document, report) = survey(Api::Nova, None, 20).await;
    assert_eq!(document.status, Status::Succeeded);
    assert!(report.unwrap().nodes.iter().all(|node| node.problems.is_empty()));
}

#[tokio::test]
async fn what_nodes_do_not_say_stands_beside_them() {
    for (node, in_vain) in [(Some("gpu-02"), 1), (None, 3)] {
        let (document, report) = survey(Api::Ssh, node, 3_600).await;
        assert_eq!(document.status, Status::Succeeded);
        let report = report.unwrap();
        assert_eq!(report.nodes.iter().filter(|node| !node.problems.is_empty()).count(), in_vain, "{report:?}");
    }
}
