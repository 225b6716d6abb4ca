//! The whole node OS update, by real processes, against a real Nova: what the simulated one was made after.
//!
//! `.ci/beds up nova` makes such a bed. Runs where `TURNAROUND_BED_CLOUDS` (a clouds.yaml) and `TURNAROUND_BED_CLOUD` (an administrator's cloud in it) lead to a test
//! OpenStack with three or more compute hosts that nobody else uses; skipped elsewhere. Faults of its hosts are
//! injected where `TURNAROUND_BED_FAULTS` is the folder in which each host, in a folder of its own name, looks for
//! `faults.json`. That cloud has no machines: BMCs, PXE and SSH are the simulated site's, whose own Nova nobody asks.
//! It creates servers called `turnaround-renewal-*`, closes hosts, and tidies up before and after itself.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

#[path = "support/bed.rs"]
mod bed;

use std::time::Duration;

use bed::{Bed, PREFIX, eventually};
use serde_json::json;
use turnaround_daemon::wire::{StepState, StepView, WorkflowView};
use turnaround_tests::harness::Running;
use turnaround_workflows::rehearsal::{Happened, SitePlan};
use turnaround_workflows::store::Status;

macro_rules! bed {
    ($name:literal) => {
        match Bed::find($name).await {
            Some(bed) => bed,
            None => return,
        }
    };
}

/// The node that is renewed: the bed's first host. The others are where its instances go.
const NODE: &str = "gpu-01";

/// The bed's cloud with simulated machines under it, the daemon and two workers.
struct Site<'a> {
    bed: &'a Bed,
    hosts: Vec<String>,
    running: Running,
}

impl<'a> Site<'a> {
    async fn start(bed: &'a Bed) -> Site<'a> {
        let hosts = bed.hosts().await;
        let mut plan = SitePlan::uniform(hosts.len(), 0).sped_up(60);
        for (node, host) in plan.nodes.iter_mut().zip(&hosts) {
            node.nova_host = Some(host.clone());
        }
        let canary = (bed.image().await, bed.flavor(64).await);
        let running = Running::start(plan, 2, |settings| {
            settings.cloud = Some((bed.clouds_file.clone(), bed.cloud.clone()));
            settings.canary = Some(canary);
            // Each look is some requests to a Nova that shares this machine.
            "1s".clone_into(&mut settings.poll);
            "20min".clone_into(&mut settings.evacuate_deadline);
        });
        Site { bed, hosts, running: running.await.unwrap() }
    }

    /// The host that is renewed.
    fn host(&self) -> &str {
        &self.hosts[0]
    }

    async fn show(&self, id: &str) -> WorkflowView {
        let shown = eventually("the daemon to have an answer", async || {
            match self.running.turnaround(&["--json", "show", id]).await {
                Ok(shown) => Some(shown),
                // With an OpenStack on the same machine, Redis may be late; the command says so, and to try again.
                Err(error) if error.to_string().contains("store-unavailable") => None,
                Err(error) => panic!("{error}"),
            }
        });
        serde_json::from_str(&shown.await).unwrap()
    }

    /// The node's own workflow, once the rollout has begun it.
    async fn of_node(&self, rollout: &str) -> String {
        let child = eventually("the node's workflow to begin", async || self.show(rollout).await.children.into_iter().next());
        child.await.id.to_string()
    }

    async fn ended(&self, id: &str) -> WorkflowView {
        eventually(&format!("{id} to end"), async || {
            let view = self.show(id).await;
            assert_ne!(view.line.status, Status::NeedsOperator, "{}: {:?}", view.line.headline, view.question);
            view.line.status.is_ended().then_some(view)
        })
        .await
    }

    /// The rollout ends well: every step done, the image written once.
    async fn ends_well(&self, rollout: &str) -> WorkflowView {
        let node = self.of_node(rollout).await;
        let renewed = self.ended(&node).await;
        assert_eq!(renewed.line.status, Status::Succeeded, "{}", renewed.line.headline);
        assert!(renewed.steps.iter().all(|step| step.state == StepState::Done), "{:?}", renewed.steps);
        assert_eq!(self.ended(rollout).await.line.status, Status::Succeeded);
        assert_eq!(self.images_written(), 1);
        renewed
    }

    fn images_written(&self) -> usize {
        self.running.world.events().iter().filter(|event| matches!(event.what, Happened::ImageWritten { .. })).count()
    }

    /// What `turnaround show` says to the operator once the node's workflow asks.
    async fn asks(&self, node: &str) -> String {
        eventually("a question", async || {
            let view = self.show(node).await;
            assert!(!view.line.status.is_ended(), "{}", view.line.headline);
            (view.line.status == Status::NeedsOperator).then_some(())
        })
        .await;
        self.running.turnaround(&["show", node]).await.unwrap()
    }

    async fn answer(&self, node: &str, key: &str) {
        self.running.turnaround(&["answer", node, key]).await.unwrap();
        eventually("the question to be gone", async || self.show(node).await.question.is_none().then_some(())).await;
    }

    /// `id` runs elsewhere as it did here, and Nova was asked for nothing but `expected`.
    async fn moved(&self, id: &str, vm_state: &str, expected: &[&str]) {
        let server = self.bed.server(id).await.unwrap();
        assert_eq!((server.vm_state.as_str(), &server.task_state), (vm_state, &None));
        assert!(server.host != self.host() && self.hosts.contains(&server.host), "{server:?}");
        assert_eq!(self.bed.actions(id).await, expected);
        let ends = if vm_state == "stopped" { ("migration", "confirmed") } else { ("live-migration", "completed") };
        let records = self.bed.migrations(id).await;
        let succeeded: Vec<_> = records.iter().filter(|record| record.status != "error").collect();
        assert_eq!(succeeded.len(), 1, "{records:?}");
        assert_eq!((succeeded[0].kind.as_str(), succeeded[0].status.as_str(), succeeded[0].source.as_str()), (ends.0, ends.1, self.host()));
    }

    async fn end(self) {
        self.running.processes.end().await.unwrap();
        self.bed.tidy().await;
    }
}

fn step<'v>(view: &'v WorkflowView, name: &str) -> &'v StepView {
    view.steps.iter().find(|step| step.step == name).unwrap()
}

const LIVE: [&str; 2] = ["create", "live-migration"];
const LIVE_PAUSED: [&str; 3] = ["create", "pause", "live-migration"];
const COLD: [&str; 4] = ["create", "stop", "migrate", "confirmResize"];

#[tokio::test]
async fn a_host_is_emptied_renewed_and_given_back_and_every_server_runs_elsewhere_as_it_did() {
    let bed = bed!("a_host_is_emptied_renewed_and_given_back_and_every_server_runs_elsewhere_as_it_did");
    let site = Site::start(&bed).await;
    let active = bed.boot_in("active", site.host()).await;
    let paused = bed.boot_in("paused", site.host()).await;
    let stopped = bed.boot_in("stopped", site.host()).await;

    let would = site.running.turnaround(&["node", "renew", NODE, "--image", "node-26.1.1", "--dry-run"]).await.unwrap();
    assert!(would.contains("move 3 instances off gpu-01: 2 live, 1 cold"), "{would}");
    assert_eq!(bed.service(site.host()).await, (true, None));

    let rollout = site.running.renew(&[NODE]).await.unwrap();
    let renewed = site.ends_well(&rollout).await;
    assert_eq!(step(&renewed, "evacuate").output, Some(json!({ "moved_live": 2, "moved_cold": 1, "gone": 0 })));
    assert_eq!(bed.service(site.host()).await, (true, None));
    site.moved(&active, "active", &LIVE).await;
    site.moved(&paused, "paused", &LIVE_PAUSED).await;
    site.moved(&stopped, "stopped", &COLD).await;
    for id in [&active, &paused, &stopped] {
        assert_eq!(bed.migrations(id).await.len(), 1);
    }
    site.end().await;
}

#[tokio::test]
async fn a_refused_migration_is_a_question_in_novas_words_and_retry_ends_well() {
    let test = "a_refused_migration_is_a_question_in_novas_words_and_retry_ends_well";
    let bed = bed!("a_refused_migration_is_a_question_in_novas_words_and_retry_ends_well");
    if !bed.can_fail(test) {
        return;
    }
    let site = Site::start(&bed).await;
    let active = bed.boot_in("active", site.host()).await;
    let stopped = bed.boot_in("stopped", site.host()).await;
    for host in &site.hosts[1..] {
        bed.fail(host, &json!({ "check": -1 }));
    }
    let rollout = site.running.renew(&[NODE]).await.unwrap();
    let node = site.of_node(&rollout).await;
    let asked = site.asks(&node).await;
    let name = bed.name_of(&active).await;
    // Of all that Nova says (it also says that no valid host was found) the cause, and what to type.
    for line in [
        format!("NEEDS YOU: an instance can't be moved off gpu-01: what now? {name} ({active}): Migration pre-check error: injected fault: check\n"),
        format!("    - {name} ({active}): Migration pre-check error: injected fault: check\n"),
        format!("      turnaround answer {node} retry --question 1\n"),
        format!("      turnaround answer {node} unwind --question 1\n"),
    ] {
        assert!(asked.contains(&line), "{line}\nis not in\n{asked}");
    }
    // One stubborn instance does not hold up the other, and the host is not touched.
    site.moved(&stopped, "stopped", &COLD).await;
    assert_eq!(site.images_written(), 0);
    assert_eq!(bed.actions(&active).await, ["create", "live-migration", "live-migration"]);

    for host in &site.hosts[1..] {
        bed.fail(host, &json!({}));
    }
    site.answer(&node, "retry").await;
    site.ends_well(&rollout).await;
    site.moved(&active, "active", &["create", "live-migration", "live-migration", "live-migration"]).await;
    assert_eq!(bed.service(site.host()).await, (true, None));
    site.end().await;
}

#[tokio::test]
async fn a_host_whose_servers_have_nowhere_to_go_is_given_back_as_found_by_unwind() {
    let bed = bed!("a_host_whose_servers_have_nowhere_to_go_is_given_back_as_found_by_unwind");
    let site = Site::start(&bed).await;
    let active = bed.boot_in("active", site.host()).await;
    for host in &site.hosts[1..] {
        bed.disable(host, &format!("{PREFIX}: nowhere to go")).await;
    }
    let rollout = site.running.renew(&[NODE]).await.unwrap();
    let node = site.of_node(&rollout).await;
    let asked = site.asks(&node).await;
    let name = bed.name_of(&active).await;
    for line in [format!("    - {name} ({active}), which takes "), "    - no other host is enabled and up".to_owned()] {
        assert!(asked.contains(&line), "{line}\nis not in\n{asked}");
    }
    let (open, reason) = bed.service(site.host()).await;
    assert!(!open && reason.unwrap().starts_with(&format!("turnaround:{node}:found-enabled: ")));

    site.answer(&node, "unwind").await;
    eventually("the host to be given back", async || (bed.service(site.host()).await == (true, None)).then_some(())).await;
    let ended = site.ended(&rollout).await;
    assert_eq!(ended.line.status, Status::Failed, "{}", ended.line.headline);
    assert_eq!(site.images_written(), 0);
    let server = bed.server(&active).await.unwrap();
    assert_eq!((server.host.as_str(), server.vm_state.as_str(), server.task_state), (site.host(), "active", None));
    assert_eq!(bed.actions(&active).await, ["create"], "nothing was asked of it");
    site.end().await;
}

#[tokio::test]
async fn a_server_in_error_is_a_question_and_is_moved_after_it_was_mended() {
    let bed = bed!("a_server_in_error_is_a_question_and_is_moved_after_it_was_mended");
    let site = Site::start(&bed).await;
    let broken = bed.boot_in("error", site.host()).await;
    let rollout = site.running.renew(&[NODE]).await.unwrap();
    let node = site.of_node(&rollout).await;
    let asked = site.asks(&node).await;
    let name = bed.name_of(&broken).await;
    assert!(asked.contains(&format!("    - {name} ({broken}) is in error: Nova gives no reason\n")), "{asked}");
    assert_eq!(bed.actions(&broken).await, ["create", "resetState"], "nothing was asked of it");

    bed.action(&broken, json!({ "os-resetState": { "state": "active" } })).await;
    bed.settled(&broken, "active").await;
    site.answer(&node, "retry").await;
    site.ends_well(&rollout).await;
    site.moved(&broken, "active", &["create", "resetState", "resetState", "live-migration"]).await;
    assert_eq!(bed.service(site.host()).await, (true, None));
    site.end().await;
}

#[tokio::test]
async fn a_tenants_unconfirmed_resize_is_a_question_on_its_new_host_and_on_its_old_one() {
    let bed = bed!("a_tenants_unconfirmed_resize_is_a_question_on_its_new_host_and_on_its_old_one");
    let site = Site::start(&bed).await;
    let leaves = bed.boot("leaves", site.host()).await;
    // Of three hosts one is closed, so that one is left for it to go to, and another for one to come from.
    let comes_from = site.hosts[1].clone();
    let comes = bed.boot("comes", &comes_from).await;
    let larger = bed.flavor(128).await;
    bed.action(&leaves, json!({ "resize": { "flavorRef": larger } })).await;
    bed.settled(&leaves, "resized").await;
    for other in &site.hosts[1..] {
        bed.disable(other, &format!("{PREFIX}: not here")).await;
    }
    bed.action(&comes, json!({ "resize": { "flavorRef": larger } })).await;
    bed.settled(&comes, "resized").await;
    for other in &site.hosts[1..] {
        bed.enable(other).await;
    }
    assert_eq!(bed.server(&comes).await.unwrap().host, site.host());

    let rollout = site.running.renew(&[NODE]).await.unwrap();
    let node = site.of_node(&rollout).await;
    let asked = site.asks(&node).await;
    for line in [
        format!("    - {} ({comes}) waits for its owner to confirm or revert a resize\n", bed.name_of(&comes).await),
        format!(
            "    - {} ({leaves}) has left by a resize that waits to be confirmed or reverted: until then its old disk is on gpu-01\n",
            bed.name_of(&leaves).await
        ),
    ] {
        assert!(asked.contains(&line), "{line}\nis not in\n{asked}");
    }
    // Neither is ours to confirm, and a renewed host could take nobody back.
    for id in [&leaves, &comes] {
        assert_eq!(bed.actions(id).await, ["create", "resize"]);
    }
    assert_eq!(site.images_written(), 0);

    for id in [&leaves, &comes] {
        bed.action(id, json!({ "confirmResize": null })).await;
        bed.settled(id, "active").await;
    }
    site.answer(&node, "retry").await;
    site.ends_well(&rollout).await;
    assert_eq!(bed.actions(&leaves).await, ["create", "resize", "confirmResize"]);
    assert_eq!(bed.actions(&comes).await, ["create", "resize", "confirmResize", "live-migration"]);
    assert_eq!(bed.service(site.host()).await, (true, None));
    site.end().await;
}

#[tokio::test]
async fn a_host_that_a_person_had_disabled_stays_disabled_with_their_reason() {
    let bed = bed!("a_host_that_a_person_had_disabled_stays_disabled_with_their_reason");
    let site = Site::start(&bed).await;
    let active = bed.boot_in("active", site.host()).await;
    let found = format!("{PREFIX}: broken DIMM, ask bob");
    bed.disable(site.host(), &found).await;
    let rollout = site.running.renew(&[NODE]).await.unwrap();
    site.ends_well(&rollout).await;
    assert_eq!(bed.service(site.host()).await, (false, Some(found)));
    site.moved(&active, "active", &LIVE).await;
    site.end().await;
}

#[tokio::test]
async fn a_server_that_ends_in_error_on_its_new_host_is_a_question_before_its_old_disk_is_wiped() {
    let test = "a_server_that_ends_in_error_on_its_new_host_is_a_question_before_its_old_disk_is_wiped";
    let bed = bed!("a_server_that_ends_in_error_on_its_new_host_is_a_question_before_its_old_disk_is_wiped");
    if !bed.can_fail(test) {
        return;
    }
    let site = Site::start(&bed).await;
    let stopped = bed.boot_in("stopped", site.host()).await;
    for host in &site.hosts[1..] {
        bed.fail(host, &json!({ "finish": -1 }));
    }
    let rollout = site.running.renew(&[NODE]).await.unwrap();
    let node = site.of_node(&rollout).await;
    let asked = site.asks(&node).await;
    let server = bed.server(&stopped).await.unwrap();
    assert_eq!((server.vm_state.as_str(), server.host != site.host()), ("error", true));
    let name = bed.name_of(&stopped).await;
    assert!(asked.contains(&format!("    - {name} ({stopped}): is in error on ")), "{asked}");
    assert!(asked.contains("injected fault: finish"), "{asked}");
    assert_eq!(site.images_written(), 0);

    bed.tidy_faults().await;
    bed.action(&stopped, json!({ "os-resetState": { "state": "active" } })).await;
    bed.settled(&stopped, "active").await;
    site.answer(&node, "retry").await;
    site.ends_well(&rollout).await;
    assert_eq!(bed.actions(&stopped).await, ["create", "stop", "migrate", "resetState"]);
    assert_eq!(bed.service(site.host()).await, (true, None));
    site.end().await;
}

/// Between two blows.
const BLOW: Duration = Duration::from_secs(1);
/// After these the workers are left in peace: one look at Nova may take longer than a blow on a busy machine.
const BLOWS_MAX: usize = 30;

#[tokio::test]
async fn workers_that_are_killed_all_the_time_ask_nova_for_nothing_twice() {
    let bed = bed!("workers_that_are_killed_all_the_time_ask_nova_for_nothing_twice");
    let mut site = Site::start(&bed).await;
    let mut servers = Vec::new();
    for vm_state in ["active", "stopped", "paused", "active", "stopped"] {
        servers.push((bed.boot_in(vm_state, site.host()).await, vm_state));
    }
    let rollout = site.running.renew(&[NODE]).await.unwrap();
    let node = site.of_node(&rollout).await;
    let mut kills = 0;
    // Until the drain is over, or something went wrong.
    for worker in [0, 1].into_iter().cycle().take(BLOWS_MAX) {
        let view = site.show(&node).await;
        if view.line.status.is_ended() || view.line.status == Status::NeedsOperator || step(&view, "evacuate").state == StepState::Done {
            break;
        }
        site.running.processes.kill_worker(worker).await.unwrap();
        site.running.processes.start_worker(worker).unwrap();
        kills += 1;
        tokio::time::sleep(BLOW).await;
    }
    assert!(kills >= 5, "the drain was over after {kills} blows");
    let renewed = site.ends_well(&rollout).await;
    eprintln!("{kills} workers were killed during a drain of {} servers", servers.len());
    assert_eq!(step(&renewed, "evacuate").output, Some(json!({ "moved_live": 3, "moved_cold": 2, "gone": 0 })));
    for (id, vm_state) in &servers {
        let expected: &[&str] = match *vm_state {
            "active" => &LIVE,
            "paused" => &LIVE_PAUSED,
            _ => &COLD,
        };
        site.moved(id, vm_state, expected).await;
        assert_eq!(bed.migrations(id).await.len(), 1);
    }
    assert_eq!(bed.service(site.host()).await, (true, None));
    site.end().await;
}

#[tokio::test]
async fn a_worker_that_is_killed_as_soon_as_nova_took_a_request_is_replaced_and_nothing_is_asked_twice() {
    let bed = bed!("a_worker_that_is_killed_as_soon_as_nova_took_a_request_is_replaced_and_nothing_is_asked_twice");
    let mut site = Site::start(&bed).await;
    let (active, stopped) = (bed.boot_in("active", site.host()).await, bed.boot_in("stopped", site.host()).await);
    let rollout = site.running.renew(&[NODE]).await.unwrap();
    // Each of the three requests that empty the host: two moves and a confirmation.
    for (id, action) in [(&active, "live-migration"), (&stopped, "migrate"), (&stopped, "confirmResize")] {
        eventually(action, async || bed.actions(id).await.iter().any(|asked| asked == action).then_some(())).await;
        for worker in [0, 1] {
            site.running.processes.kill_worker(worker).await.unwrap();
        }
        for worker in [0, 1] {
            site.running.processes.start_worker(worker).unwrap();
        }
    }
    site.ends_well(&rollout).await;
    site.moved(&active, "active", &LIVE).await;
    site.moved(&stopped, "stopped", &COLD).await;
    for id in [&active, &stopped] {
        assert_eq!(bed.migrations(id).await.len(), 1);
    }
    site.end().await;
}

#[tokio::test]
async fn servers_that_their_tenant_deletes_mid_drain_count_as_gone() {
    let test = "servers_that_their_tenant_deletes_mid_drain_count_as_gone";
    let bed = bed!("servers_that_their_tenant_deletes_mid_drain_count_as_gone");
    if !bed.can_fail(test) {
        return;
    }
    let site = Site::start(&bed).await;
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(bed.boot_in("active", site.host()).await);
    }
    // Longer than it takes to delete them; Nova's host moves one at a time, and lets the others wait in its queue.
    bed.fail(site.host(), &json!({ "live_seconds": 20 }));
    let rollout = site.running.renew(&[NODE]).await.unwrap();
    let (running, queued) = eventually("one migration to run and another to wait for it", async || {
        let (mut running, mut queued) = (None, None);
        for id in &servers {
            match bed.migrations(id).await.last().map(|record| record.status.clone()).as_deref() {
                Some("running") => running = Some(id.clone()),
                Some("queued") => queued = Some(id.clone()),
                _ => {}
            }
        }
        running.zip(queued)
    })
    .await;
    let untouched = servers.iter().find(|id| **id != running && **id != queued).unwrap();
    assert_eq!(bed.actions(untouched).await, ["create"], "two are moved at once");
    for id in [&running, &queued, untouched] {
        bed.delete(id).await;
    }
    bed.fail(site.host(), &json!({}));
    let renewed = site.ends_well(&rollout).await;
    // The one that nobody had asked to move was never ours to count.
    assert_eq!(step(&renewed, "evacuate").output, Some(json!({ "moved_live": 0, "moved_cold": 0, "gone": 2 })));
    for id in &servers {
        assert_eq!(bed.server(id).await, None);
    }
    assert_eq!(bed.service(site.host()).await, (true, None));
    site.end().await;
}
