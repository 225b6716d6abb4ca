//! A renewed node has what it had: its disks, VLANs, kernel parameters, identity, and a clock that goes right. In virtual time.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use turnaround_config::Compared;
use turnaround_tests::renewal::{Renewal, site_with};
use turnaround_proof::sim::Death;
use turnaround_workflows::ports::{DiskHolds, NodeStock};
use turnaround_workflows::rehearsal::{Api, Happened, NodePlan, Outage, SitePlan};
use turnaround_workflows::store::Status;

const AS_FOUND: &str = "gpu-01 is renewed, and is not as it was found: what now?";

/// A node of which something is another once it is installed.
fn comes_back(change: impl FnOnce(&mut NodeStock)) -> SitePlan {
    site_with(|node| {
        let mut stock = NodePlan::usual_stock();
        change(&mut stock);
        node.faults.stock_once_installed = Some(stock);
    })
}

fn overwritten() -> SitePlan {
    comes_back(|stock| {
        stock.disks.as_mut().unwrap().insert("DATA1".to_owned(), DiskHolds::System);
    })
}

#[tokio::test]
async fn what_an_installation_has_taken_of_a_node_is_a_question_and_no_tenant_is_let_on_it() {
    let cases: [(SitePlan, &str, &str); 4] = [
        (overwritten(), "data-disks", "its data disks: the SYSTEM is on disk DATA1 now, which held LVM2_member 5xcrGD-2Jyo-PhCX"),
        (comes_back(|stock| stock.devices.clear()), "pci-devices", "its PCI devices: 0000:17:00.0 (10de:2330, driven by vfio-pci, 16 lanes) is gone"),
        (comes_back(|stock| stock.kernel_parameters = BTreeSet::new()), "kernel-parameters", "its kernel's parameters: `intel_iommu=on` is gone"),
        (comes_back(|stock| stock.vlans = Some(BTreeSet::new())), "vlans", "its VLANs: bond0.100: VLAN 100 on bond0 is gone"),
    ];
    for (plan, reason, seen) in cases {
        let mut renewal = Renewal::of(plan.clone(), None).await;
        let question = renewal.question().await;
        assert_eq!((question.text.as_str(), &question.seen[..], question.reasons.iter().map(String::as_str).collect()), (AS_FOUND, &[seen.to_owned()][..], vec![reason]));
        assert!(!renewal.is_open());
        renewal.answer("retry").await;
        assert!(!renewal.is_open(), "looking again does not mend it");
        renewal.answer("accept").await;
        assert_eq!((renewal.status().await, renewal.is_open()), (Status::Succeeded, true));
        // What was accepted is how it is found the next time.
        renewal.again(&plan).await;
        assert_eq!((renewal.status().await, renewal.is_open()), (Status::Succeeded, true));
    }
}

#[tokio::test]
async fn a_clock_that_goes_wrong_is_to_be_mended_and_never_accepted() {
    for (ahead, seen) in [(-90_000, "its clock is at least 90s behind that of the worker's host: have the one that is wrong synchronized (chrony, NTP)"), (3_600_000, "its clock is at least 3600s ahead of that of the worker's host: have the one that is wrong synchronized (chrony, NTP)")] {
        let renewal = Renewal::of(comes_back(|stock| stock.clock_ahead_ms = ahead), None).await;
        let question = renewal.question().await;
        assert_eq!((question.text.as_str(), &question.seen[..]), ("gpu-01 is renewed, and is not as it has to be: what now?", &[seen.to_owned()][..]));
        assert!(question.find("accept").is_none() && question.reasons.contains("clock"));
        assert!(!renewal.is_open());
    }
}

#[tokio::test]
async fn another_identity_in_nova_is_a_question() {
    let mut renewal = Renewal::of(site_with(|node| node.faults.new_identity = true), None).await;
    let question = renewal.question().await;
    assert!(question.seen[0].starts_with("to Nova it was ") && question.seen[0].contains("(`compute_id`)"), "{question:?}");
    assert!(question.reasons.contains("identity") && !renewal.is_open());
    renewal.answer("accept").await;
    assert_eq!((renewal.status().await, renewal.is_open()), (Status::Succeeded, true));
}

#[tokio::test]
async fn a_node_that_was_silent_before_or_can_not_tell_is_asked_about() {
    let mut silent = site_with(|_| ());
    silent.faults.outages = vec![Outage { api: Api::Ssh, node: Some("gpu-01".to_owned()), from: Duration::ZERO, lasts: Duration::from_secs(200) }];
    let mut mute = site_with(|node| node.stock.disks = None);
    mute.node("gpu-01").unwrap().faults.stock_once_installed = Some(NodePlan::usual_stock());
    let usual = |line: &str| match line {
        "disks" => "DATA1 holds LVM2_member 5xcrGD-2Jyo-PhCX",
        "cards" => "0000:17:00.0 (10de:2330, driven by vfio-pci, 16 lanes); 8 virtual functions 15b3:101e",
        "words" => "intel_iommu=on",
        _ => "bond0.100: VLAN 100 on bond0",
    };
    let told = |before: &str| {
        let parts = [("its data disks", "disks"), ("its PCI devices", "cards"), ("its kernel's parameters", "words"), ("its VLANs", "vlans")];
        parts.map(|(what, of)| format!("{what}: {before}; now: {}", usual(of)))
    };
    let all = told("the node did not answer before, so there is nothing to compare with");
    let long = site_with(|node| node.faults.stock_too_long = true);
    let too_long = told("it could not be asked before (ssh said more than 1048576 bytes, and was killed)");
    let cannot = ["its data disks: the node could not tell before; now: DATA1 holds LVM2_member 5xcrGD-2Jyo-PhCX".to_owned()];
    for (plan, seen) in [(silent, &all[..]), (long, &too_long[..]), (mute, &cannot[..])] {
        let mut renewal = Renewal::with(plan, None, |order| order.rules.checks.clear()).await;
        let question = renewal.question().await;
        assert_eq!(question.text, "gpu-01 is renewed, and whether it has all that it must have can't be told by comparing: is it well?");
        assert_eq!(question.seen, seen);
        assert_eq!(question.reasons.iter().map(String::as_str).collect::<Vec<_>>(), ["not-compared"]);
        assert!(!renewal.is_open());
        renewal.answer("accept").await;
        assert_eq!((renewal.status().await, renewal.is_open()), (Status::Succeeded, true));
    }
}

#[tokio::test]
async fn what_a_site_does_not_want_compared_is_not() {
    for (left, asked) in [(BTreeSet::new(), false), ([Compared::Vlans].into(), false), ([Compared::DataDisks].into(), true)] {
        let renewal = Renewal::with(overwritten(), None, |order| order.rules.compare = left).await;
        assert_eq!(renewal.status().await == Status::Succeeded, !asked);
    }
}

#[tokio::test]
async fn what_was_accepted_stays_so_whoever_is_killed() {
    let whole = Death::never();
    let mut renewal = Renewal::of(overwritten(), Some(whole.clone())).await;
    renewal.answer("accept").await;
    assert!(whole.passed() > 50, "{}", whole.passed());
    for point in 1..=whole.passed() {
        let mut renewal = Renewal::of(overwritten(), Some(Death::at(point))).await;
        assert!(renewal.question().await.text == AS_FOUND && !renewal.is_open(), "killed at point {point}");
        renewal.answer("accept").await;
        assert_eq!((renewal.status().await, renewal.is_open()), (Status::Succeeded, true), "killed at point {point}");
        assert_eq!(renewal.count(|what| matches!(what, Happened::ImageWritten { .. })), 1);
    }
}
