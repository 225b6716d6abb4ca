//! What stands between a renewed node and its tenants besides the site's own checks: its network agents, and what alerts. In virtual time.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use turnaround_tests::renewal::{Renewal, site_with};
use turnaround_proof::sim::{Death, MORNING};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::rehearsal::{ALWAYS, Api, Happened, Outage};
use turnaround_workflows::store::Status;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const FAILING: &str = r#"DiskFailing{instance="gpu-01"}"#;

/// How long it took from the return of the compute service until the node was given back.
fn waited(renewal: &Renewal) -> Duration {
    let at = |is: fn(&Happened) -> bool| renewal.sim.world.events().iter().rev().find(|event| is(&event.what)).unwrap().at;
    at(|what| matches!(what, Happened::ServiceEnabled { .. })).since(at(|what| matches!(what, Happened::ServiceUp { .. })))
}

#[tokio::test]
async fn a_network_agent_that_does_not_come_back_is_a_question_and_the_node_stays_closed() {
    let mut renewal = Renewal::of(site_with(|node| node.faults.agent_stays_away = true), None).await;
    let question = renewal.question().await;
    assert_eq!(question.text, "gpu-01 is renewed, and not all that it had before is back in OpenStack: what now?");
    assert_eq!(question.seen, ["neutron-openvswitch-agent does not report"]);
    assert!(!renewal.is_open());
    renewal.answer("retry").await;
    assert!(!renewal.is_open(), "looking again does not mend it");
    renewal.answer("accept").await;
    assert_eq!((renewal.status().await, renewal.is_open()), (Status::Succeeded, true));
}

#[tokio::test]
async fn a_node_that_was_left_without_its_network_agent_is_asked_about_again() {
    let plan = site_with(|node| node.faults.agent_stays_away = true);
    let mut renewal = Renewal::of(plan.clone(), None).await;
    renewal.answer("leave").await;
    renewal.again(&plan).await;
    assert_eq!(renewal.question().await.seen, ["neutron-openvswitch-agent does not report"]);
    assert!(!renewal.is_open());
}

#[tokio::test]
async fn a_compute_service_that_comes_and_goes_is_not_back_until_it_has_reported_for_a_while() {
    let renewal = Renewal::of(site_with(|node| node.faults.flaps = 3), None).await;
    assert_eq!((renewal.status().await, renewal.is_open()), (Status::Succeeded, true));
    let events = renewal.sim.world.events();
    assert_eq!(events.iter().filter(|event| matches!(event.what, Happened::ServiceDown { .. })).count(), 4, "for its installation, and three times since");
    assert!(waited(&renewal) >= 2 * MINUTE, "{:?}", waited(&renewal));
    let mut renewal = Renewal::of(site_with(|node| node.faults.flaps = ALWAYS), None).await;
    let question = renewal.question().await;
    assert_eq!(question.text, "gpu-01 is renewed, and its nova-compute comes and goes: what now?");
    assert!(!renewal.is_open());
    renewal.answer("leave").await;
    assert_eq!((renewal.status().await, renewal.is_open()), (Status::Failed, false));
}

/// What it did while a question was open nobody has seen: also where it was asked while the service reported, and reports at the first look since.
#[tokio::test]
async fn after_a_question_a_compute_service_has_to_report_for_a_while_once_more() {
    let mut asked_while_up = 0;
    for up_for in (10..100).step_by(6) {
        let mut plan = site_with(|node| node.faults.flaps = 20);
        plan.latencies.rejoin = Duration::from_secs(up_for);
        let mut renewal = Renewal::of(plan, None).await;
        if renewal.status().await != Status::NeedsOperator || !renewal.question().await.seen[0].starts_with("nova-compute has to report") {
            continue;
        }
        asked_while_up += 1;
        renewal.sim.clock.advance(2 * HOUR);
        let answered = renewal.sim.clock.now();
        renewal.answer("retry").await;
        assert_eq!((renewal.status().await, renewal.is_open()), (Status::Succeeded, true));
        let opened = renewal.sim.world.events().into_iter().rfind(|event| matches!(event.what, Happened::ServiceEnabled { .. })).unwrap();
        assert!(opened.at.since(answered) >= 2 * MINUTE, "up for {up_for} s: {opened:?}, answered at {answered}");
    }
    assert!(asked_while_up > 0, "it was always asked while the service was silent");
}

#[tokio::test]
async fn an_alert_that_did_not_fire_before_is_a_question_and_the_node_stays_closed() {
    for last in ["accept", "leave"] {
        let plan = site_with(|node| node.faults.alert_once_installed = Some("DiskFailing".to_owned()));
        let mut renewal = Renewal::of(plan, None).await;
        let question = renewal.question().await;
        assert_eq!(question.text, "gpu-01 is renewed, and alerts fire about it that did not fire before: what now?");
        assert_eq!(question.seen, [format!("alerts fire: {FAILING}")]);
        renewal.answer("retry").await;
        assert_eq!(renewal.question().await.seen, question.seen);
        assert!(!renewal.is_open());
        renewal.answer(last).await;
        let accepted = last == "accept";
        assert_eq!(renewal.status().await, if accepted { Status::Succeeded } else { Status::Failed });
        assert_eq!(renewal.is_open(), accepted);
    }
}

#[tokio::test]
async fn what_fires_all_the_time_is_no_hindrance_and_what_its_absence_has_caused_is_waited_out() {
    let renewal = Renewal::of(site_with(|node| node.alert = Some("FanSlow".to_owned())), None).await;
    assert_eq!(renewal.status().await, Status::Succeeded);
    assert_eq!(renewal.output("verify-alerts").await, r#"{"firing":["FanSlow{instance=\"gpu-01\"}"]}"#);
    // `NodeDown` ends a minute after the compute service is back.
    assert!(waited(&renewal) >= MINUTE, "{:?}", waited(&renewal));
}

#[tokio::test]
async fn where_nobody_says_which_alerts_fire_an_operator_is_asked() {
    let mut plan = site_with(|node| node.faults.alert_once_installed = Some("DiskFailing".to_owned()));
    plan.faults.outages = vec![Outage { api: Api::Monitoring, node: None, from: 5 * MINUTE, lasts: 2 * HOUR }];
    let mut renewal = Renewal::of(plan, None).await;
    let question = renewal.question().await;
    assert_eq!(question.text, "gpu-01 is renewed, and whether alerts fire about it can't be told: what now?");
    assert!(question.seen[0].starts_with("could not list the alerts that fire"), "{question:?}");
    assert!(!renewal.is_open());
    // Whoever takes that as good has not seen the alert.
    renewal.sim.clock.advance(2 * HOUR);
    renewal.answer("accept").await;
    assert_eq!(renewal.question().await.seen, [format!("alerts fire: {FAILING}")]);
    assert!(!renewal.is_open());
    renewal.answer("accept").await;
    assert_eq!((renewal.status().await, renewal.is_open()), (Status::Succeeded, true));
}

#[tokio::test]
async fn that_nobody_says_is_taken_as_good_only_until_somebody_does() {
    let mut plan = site_with(|node| node.faults.alert_once_installed = Some("DiskFailing".to_owned()));
    let out = |from, lasts| Outage { api: Api::Monitoring, node: None, from, lasts };
    // It answers for some minutes in between.
    plan.faults.outages = vec![out(5 * MINUTE, 2 * HOUR), out(2 * HOUR + 10 * MINUTE, 48 * HOUR)];
    let mut renewal = Renewal::of(plan, None).await;
    renewal.sim.clock.advance_to(MORNING + 2 * HOUR + 6 * MINUTE);
    renewal.answer("accept").await;
    let question = renewal.question().await;
    assert_eq!(question.text, "gpu-01 is renewed, and whether alerts fire about it can't be told: what now?");
    assert!(!renewal.is_open(), "an alert was told of meanwhile");
    // Whoever takes that as good has been told of it.
    assert!(question.seen[0].ends_with(&format!("; told before: {FAILING}")), "{question:?}");
    renewal.answer("accept").await;
    assert_eq!((renewal.status().await, renewal.is_open()), (Status::Succeeded, true));
}

#[tokio::test]
async fn a_monitoring_that_never_answers_keeps_no_node_whose_operator_says_so() {
    let mut plan = site_with(|_| {});
    plan.faults.outages = vec![Outage { api: Api::Monitoring, node: None, from: Duration::ZERO, lasts: 100 * HOUR }];
    let mut renewal = Renewal::of(plan, None).await;
    assert!(!renewal.is_open());
    renewal.answer("accept").await;
    assert_eq!((renewal.status().await, renewal.is_open()), (Status::Succeeded, true));
}

#[tokio::test]
async fn what_was_accepted_stays_so_whoever_is_killed() {
    let faults = || site_with(|node| node.faults.alert_once_installed = Some("DiskFailing".to_owned()));
    let whole = Death::never();
    let mut renewal = Renewal::of(faults(), Some(whole.clone())).await;
    renewal.answer("accept").await;
    assert_eq!(renewal.status().await, Status::Succeeded);
    assert!(whole.passed() > 50, "{}", whole.passed());
    for point in 1..=whole.passed() {
        let mut renewal = Renewal::of(faults(), Some(Death::at(point))).await;
        assert_eq!(renewal.question().await.seen, [format!("alerts fire: {FAILING}")]);
        assert!(!renewal.is_open());
        renewal.answer("accept").await;
        assert_eq!((renewal.status().await, renewal.is_open()), (Status::Succeeded, true));
    }
}
