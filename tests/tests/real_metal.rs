//! A real machine (`turnaround_tests::metal`) is renewed by the real programs over a real PXE installation.
//!
//! Needs Debian packages and two kernels; where they are missing, each test says what to install, and is skipped.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use std::time::Duration;

use turnaround_daemon::wire::{StepState, WorkflowView};
use turnaround_tests::beds;
use turnaround_tests::metal::bed::{Bed, NODE, missing};
use turnaround_tests::metal::bmc::Protocol;
use turnaround_tests::metal::machine::{By, Faults, Order, Start};
use turnaround_tests::servers::Which;
use turnaround_workflows::ports::BootDevice;
use turnaround_workflows::store::Status;

macro_rules! bed {
    ($name:expr, $protocol:expr) => {
        match missing() {
            None => Bed::start($protocol).await.unwrap(),
            Some(what) => {
                beds::skip("metal", $name, &what);
                return;
            }
        }
    };
}

const BY_BMC: Start = Start { from_network: false, by: By::Bmc };
const NETBOOT: Start = Start { from_network: true, by: By::Bmc };
const BY_ITSELF: Start = Start { from_network: false, by: By::Itself };

/// Every answer of cloud and BMC takes this much longer, so that a step can be caught in the act.
const CAUGHT: Duration = Duration::from_millis(200);
/// A BMC's answer is so late that its caller can be killed between the effect and the answer.
const LATE: Duration = Duration::from_secs(1);

fn state_of(view: &WorkflowView, step: &str) -> StepState {
    view.steps.iter().find(|one| one.step == step).unwrap_or_else(|| panic!("no step {step}")).state
}

async fn kill_and_restart(bed: &mut Bed, step: &str) {
    println!("{:6.1} s  worker killed in {step}", bed.age().as_secs_f64());
    bed.processes.kill_worker(0).await.unwrap();
    bed.processes.start_worker(0).unwrap();
}

/// Waits until `step` is under way.
async fn caught_in(bed: &Bed, id: &str, step: &str) {
    bed.until(&format!("{step} to be under way"), async |bed| {
        let view = bed.show(id).await?;
        let state = state_of(&view, step);
        assert_ne!(state, StepState::Done, "{step} was not caught in the act");
        assert_ne!(view.line.status, Status::NeedsOperator, "{}: {:?}", view.line.headline, view.question);
        (!matches!(state, StepState::NotBegun)).then_some(())
    })
    .await
    .unwrap();
}

async fn ends_well(bed: &Bed, id: &str) {
    let view = bed
        .until("the renewal to end", async |bed| {
            let view = bed.show(id).await?;
            (view.line.status.is_ended() || view.line.status == Status::NeedsOperator).then_some(view)
        })
        .await
        .unwrap();
    assert_eq!(view.line.status, Status::Succeeded, "{}: {:?}", view.line.headline, view.question);
}

/// What the operator is asked: the question and what was seen.
async fn asks(bed: &Bed, id: &str) -> (String, Vec<String>) {
    bed.until("a question", async |bed| {
        let view = bed.show(id).await?;
        assert!(!view.line.status.is_ended(), "{}", view.line.headline);
        let question = view.question.filter(|_| view.line.status == Status::NeedsOperator)?;
        Some((question.text, question.seen))
    })
    .await
    .unwrap()
}

/// The next question may follow at once.
async fn answer_and_look(bed: &Bed, id: &str, key: &str) {
    let (before, _) = asks(bed, id).await;
    bed.turnaround(&["answer", id, key]).await.unwrap();
    bed.until("another question, or none", async |bed| bed.show(id).await?.question.is_none_or(|now| now.text != before).then_some(())).await.unwrap();
}

async fn answer(bed: &Bed, id: &str, key: &str) {
    bed.turnaround(&["answer", id, key]).await.unwrap();
    bed.until("the question to be gone", async |bed| bed.show(id).await?.question.is_none().then_some(())).await.unwrap();
}

fn times(bed: &Bed, words: &str) -> usize {
    bed.machine.said().matches(words).count()
}

fn is_open(bed: &Bed) -> bool {
    bed.world.snapshot().node(NODE).unwrap().enabled
}

/// The node runs version 2, says so itself, has no order left, and is given back; its instance lives elsewhere.
async fn is_renewed(bed: &Bed, written: usize) {
    assert_eq!(times(bed, "installer: writes the disk"), written);
    let release = bed.on_the_node("cat /etc/os-release; uname -r; cat /etc/turnaround/installed").await.unwrap();
    assert!(release.contains("VERSION_ID=\"2\"") && release.contains(&bed.image.kernel) && release.contains(&bed.image.sha256), "{release}");
    let order = std::fs::read_dir(bed.folder().join("pxe/nodes")).unwrap().next().unwrap().unwrap();
    let order = std::fs::read_to_string(order.path()).unwrap();
    assert!(order.ends_with("\nexit\n"), "{order}");
    assert!(is_open(bed));
}

async fn renewed_with_a_kill_in_every_step(mut bed: Bed) {
    bed.site.servers.mishaps.slow_down(CAUGHT);
    bed.site.servers.mishaps.answer_late(Which::path("ComputerSystem.Reset"), LATE);
    let id = bed.renew().await.unwrap();
    // The rollout's own step, before the node's workflow begins.
    let rollout = id.strip_suffix(&format!(".{NODE}")).unwrap();
    caught_in(&bed, rollout, "fetch-image").await;
    kill_and_restart(&mut bed, "fetch-image").await;
    let steps =
        ["close", "take-stock", "find-cluster-nodes", "move-cluster-nodes", "evacuate", "silence", "confirm-empty", "stage-image", "reprovision"];
    for step in steps {
        caught_in(&bed, &id, step).await;
        kill_and_restart(&mut bed, step).await;
    }
    // Once more where it hurts most: the BMC has carried out the reset, and nobody has written that down.
    bed.until("the reset", async |bed| bed.machine.starts().contains(&NETBOOT).then_some(())).await.unwrap();
    assert_eq!(state_of(&bed.show(&id).await.unwrap(), "reprovision"), StepState::Running);
    kill_and_restart(&mut bed, "reprovision, after the reset").await;
    for step in ["await-install", "verify-os", "deploy-openstack", "verify-hypervisor", "verify-node", "reopen", "end-silence"] {
        caught_in(&bed, &id, step).await;
        kill_and_restart(&mut bed, step).await;
    }
    bed.site.servers.mishaps.clear();
    ends_well(&bed, &id).await;
    println!("{:6.1} s  renewed", bed.age().as_secs_f64());
    let journal = bed.turnaround(&["journal", &id]).await.unwrap();
    for word in ["started", "installed"] {
        assert_eq!(journal.matches(&format!("reported from outside: {word}")).count(), 1, "{journal}");
    }
    assert_eq!(bed.machine.starts(), [BY_BMC, NETBOOT, BY_ITSELF]);
    is_renewed(&bed, 1).await;
    bed.end().await.unwrap();
}

#[tokio::test]
async fn a_machine_is_renewed_once_by_redfish_though_the_worker_is_killed_in_every_step() {
    let bed = bed!("a_machine_is_renewed_once_by_redfish_though_the_worker_is_killed_in_every_step", Protocol::Redfish);
    renewed_with_a_kill_in_every_step(bed).await;
}

#[tokio::test]
async fn a_machine_is_renewed_once_by_ipmi_though_the_worker_is_killed_in_every_step() {
    let bed = bed!("a_machine_is_renewed_once_by_ipmi_though_the_worker_is_killed_in_every_step", Protocol::Ipmi);
    renewed_with_a_kill_in_every_step(bed).await;
}

/// The question that is asked of a node on which something else runs, with the version that it says it has.
async fn is_noticed(bed: &Bed, id: &str, version: &str, mark: &str) {
    let (question, seen) = asks(bed, id).await;
    println!("{:6.1} s  noticed: {question} {seen:?}", bed.age().as_secs_f64());
    assert_eq!(question, "gpu-01 runs something else than what was to be installed: what now?");
    assert!(seen[0].starts_with(&format!("OS {version}, kernel ")) && seen[1] == mark, "{seen:?}");
    assert!(!is_open(bed));
}

const NO_MARK: &str = "it carries no installation mark";

/// The first of two resets uses up the boot device, and the second boots the old disk: seen with a real BMC simulator whose answer was late.
#[tokio::test]
async fn a_reset_that_is_carried_out_twice_is_noticed_and_the_machine_is_renewed_at_the_operators_word() {
    let name = "a_reset_that_is_carried_out_twice_is_noticed_and_the_machine_is_renewed_at_the_operators_word";
    let bed = bed!(name, Protocol::Ipmi);
    bed.machine.set_faults(Faults { doubles_next_restart: Some(Duration::from_secs(2)), ..Faults::default() });
    let id = bed.renew().await.unwrap();
    is_noticed(&bed, &id, "1", NO_MARK).await;
    assert_eq!(bed.machine.starts(), [BY_BMC, NETBOOT, BY_BMC]);
    answer(&bed, &id, "netboot").await;
    ends_well(&bed, &id).await;
    assert_eq!(bed.machine.starts(), [BY_BMC, NETBOOT, BY_BMC, NETBOOT, BY_ITSELF]);
    is_renewed(&bed, 1).await;
    bed.end().await.unwrap();
}

#[tokio::test]
async fn a_boot_device_that_the_bmc_loses_is_noticed_before_the_reset_or_after_it() {
    let bed = bed!("a_boot_device_that_the_bmc_loses_is_noticed_before_the_reset_or_after_it", Protocol::Redfish);
    bed.machine.set_faults(Faults { forgets_boot_device: true, ..Faults::default() });
    let id = bed.renew().await.unwrap();
    let refused = bed.until("the loss to be noticed", async |bed| {
        let view = bed.show(&id).await?;
        let step = view.steps.into_iter().find(|one| one.step == "reprovision")?;
        (step.failures > 0).then_some(step.note)
    });
    let refused = refused.await.unwrap();
    assert!(refused.contains("it acknowledged that and keeps no such setting"), "{refused}");
    assert_eq!(bed.machine.starts(), [BY_BMC], "nothing was reset");

    // The step tries again by its own rules.
    bed.machine.set_faults(Faults { ignores_boot_device: true, ..Faults::default() });
    is_noticed(&bed, &id, "1", NO_MARK).await;
    assert_eq!(bed.machine.starts(), [BY_BMC, BY_BMC]);
    bed.end().await.unwrap();
}

/// The image on the PXE server is not the one that was ordered; and for a while, the server is down.
#[tokio::test]
async fn a_wrong_image_is_not_installed_and_that_is_noticed_and_a_withdrawn_order_leads_to_the_disk() {
    let name = "a_wrong_image_is_not_installed_and_that_is_noticed_and_a_withdrawn_order_leads_to_the_disk";
    let mut bed = bed!(name, Protocol::Redfish);
    let mut image = std::fs::read(bed.offered()).unwrap();
    let middle = image.len() / 2;
    image[middle] ^= 1;
    std::fs::write(bed.offered(), image).unwrap();
    bed.stop_boot_server().await.unwrap();
    let id = bed.renew().await.unwrap();
    bed.until("GRUB to be refused", async |bed| bed.machine.said().contains("error: connection refused").then_some(())).await.unwrap();
    bed.start_boot_server().unwrap();
    // The installer's own words, while it restarts; or, where the old system is up before the worker has looked in vain, beside what runs.
    let (question, seen) = asks(&bed, &id).await;
    println!("{:6.1} s  heard: {question} {seen:?}", bed.age().as_secs_f64());
    let reason = format!("and {} was ordered", bed.image.sha256);
    assert!(seen.iter().any(|line| line.contains(": the image has SHA-256 ") && line.ends_with(&reason)), "{seen:?}");
    assert!(seen.iter().any(|line| line.starts_with("its installer has started at ")), "{seen:?}");
    let reasons = bed.show(&id).await.unwrap().question.unwrap().reasons;
    assert!(reasons.contains("installer-failed"), "{reasons:?}");
    bed.until("the old system", async |bed| (times(bed, "node: \"1\" is up") == 2).then_some(())).await.unwrap();
    if question == "gpu-01 was not installed: its installer has given up: what now?" {
        answer_and_look(&bed, &id, "retry").await;
    }
    is_noticed(&bed, &id, "1", NO_MARK).await;
    assert_eq!(times(&bed, "installer: gives up: the image has SHA-256"), 1);
    assert_eq!(times(&bed, "installer: writes the disk"), 0);
    assert_eq!(bed.machine.starts(), [BY_BMC, NETBOOT, BY_ITSELF]);

    answer(&bed, &id, "leave").await;
    bed.until("the workflow to end", async |bed| bed.show(&id).await?.line.status.is_ended().then_some(())).await.unwrap();
    bed.machine.set_next_boot(BootDevice::Pxe);
    bed.machine.order(Order::Restart);
    bed.until("the old system", async |bed| (times(bed, "node: \"1\" is up") == 3).then_some(())).await.unwrap();
    assert_eq!(bed.machine.starts(), [BY_BMC, NETBOOT, BY_ITSELF, NETBOOT], "GRUB went on to the disk by itself");
    assert_eq!(times(&bed, "installer: started"), 1);
    assert!(!is_open(&bed));
    bed.end().await.unwrap();
}

/// It even has the mark of an earlier installation of the very same image.
#[tokio::test]
async fn an_old_disk_that_boots_after_the_installation_is_noticed() {
    let bed = bed!("an_old_disk_that_boots_after_the_installation_is_noticed", Protocol::Ipmi);
    let old = bed.old_disk("node-earlier-1").unwrap();
    bed.machine.set_faults(Faults { then_boots: Some(old), ..Faults::default() });
    let id = bed.renew().await.unwrap();
    is_noticed(&bed, &id, "1", &format!("it carries the token node-earlier-1 and image {}", bed.image.sha256)).await;
    assert_eq!(times(&bed, "installer: installed"), 1);
    assert_eq!(bed.machine.starts(), [BY_BMC, NETBOOT, BY_ITSELF]);
    bed.end().await.unwrap();
}
