//! Nova's documents, as far as they are read, and what they mean in our words.
//!
//! A record of a cell that does not answer has `status: UNKNOWN` and hardly anything else (microversion 2.69). It is never
//! read as if it were whole.

use std::collections::BTreeMap;

use chrono::NaiveDateTime;
use serde::Deserialize;
use turnaround_workflows::ports::{
    ComputeService, GroupRule, Instance, InstanceId, MOVE_METADATA, Migration, MigrationKind, MigrationState, MoveProgress, Room, ServerGroup, asks, pins,
    resource_class,
};

use crate::adapters::http::foreign_text;

#[derive(Deserialize)]
pub(super) struct Services {
    pub(super) services: Vec<Service>,
}

#[derive(Deserialize)]
pub(super) struct Service {
    pub(super) id: Option<String>,
    pub(super) host: String,
    status: String,
    state: Option<String>,
    disabled_reason: Option<String>,
    forced_down: Option<bool>,
}

impl Service {
    /// None where the service's cell does not answer.
    pub(super) fn meaning(self) -> Option<ComputeService> {
        let enabled = match self.status.as_str() {
            "enabled" => true,
            "disabled" => false,
            _ => return None,
        };
        let up = self.state.as_deref()? == "up" && self.forced_down != Some(true);
        Some(ComputeService { enabled, disabled_reason: self.disabled_reason, up })
    }
}

#[derive(Deserialize)]
pub(super) struct Hypervisors {
    pub(super) hypervisors: Vec<Hypervisor>,
}

#[derive(Deserialize)]
pub(super) struct Hypervisor {
    /// Its provider in Placement has the same.
    pub(super) id: String,
    pub(super) state: String,
    pub(super) vcpus: Option<u32>,
    pub(super) memory_mb: Option<u64>,
    pub(super) service: HypervisorService,
    /// Left out where there are none, before microversion 2.75.
    #[serde(default)]
    pub(super) servers: Vec<HypervisorServer>,
}

#[derive(Deserialize)]
pub(super) struct HypervisorService {
    pub(super) host: String,
}

#[derive(Deserialize)]
pub(super) struct HypervisorServer {
    pub(super) uuid: String,
}

#[derive(Deserialize)]
pub(super) struct Hosts {
    pub(super) hypervisors: Vec<HostRecord>,
    #[serde(default)]
    pub(super) hypervisors_links: Vec<Link>,
}

/// A hypervisor, where only its being there counts.
#[derive(Deserialize)]
pub(super) struct HostRecord {
    /// Its provider in Placement has the same.
    pub(super) id: String,
    pub(super) state: String,
    pub(super) status: String,
    pub(super) service: HypervisorService,
}

#[derive(Deserialize)]
pub(super) struct Servers {
    pub(super) servers: Vec<Server>,
    #[serde(default)]
    pub(super) servers_links: Vec<Link>,
}

#[derive(Deserialize)]
pub(super) struct Link {
    rel: String,
}

/// Is there another page? The address in the link isn't used: behind a proxy it may be one that we can't reach.
pub(super) fn goes_on(links: &[Link]) -> bool {
    links.iter().any(|link| link.rel == "next")
}

#[derive(Deserialize)]
pub(super) struct ServerDocument {
    pub(super) server: Server,
}

#[derive(Deserialize)]
pub(super) struct Server {
    pub(super) id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    tenant_id: String,
    #[serde(default, rename = "OS-EXT-SRV-ATTR:host")]
    host: Option<String>,
    #[serde(default, rename = "OS-EXT-STS:vm_state")]
    vm_state: Option<String>,
    #[serde(default, rename = "OS-EXT-STS:task_state")]
    task_state: Option<String>,
    fault: Option<Fault>,
    #[serde(default)]
    locked: bool,
    #[serde(default)]
    flavor: Flavor,
    /// An empty text where it was booted from a volume.
    #[serde(default)]
    image: serde_json::Value,
    /// Since microversion 2.96. Null, or an empty text, where it is bound to none.
    #[serde(default)]
    pinned_availability_zone: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

/// As it was when the instance was made; inside the server since microversion 2.47.
#[derive(Default, Deserialize)]
struct Flavor {
    /// Its name when the instance was made.
    #[serde(default)]
    original_name: String,
    #[serde(default)]
    vcpus: u64,
    /// In MiB.
    #[serde(default)]
    ram: u64,
    /// In GiB: of the root disk, which is on the host only where the instance was booted from an image.
    #[serde(default)]
    disk: u64,
    /// In GiB.
    #[serde(default)]
    ephemeral: u64,
    /// In MiB.
    #[serde(default)]
    swap: u64,
    /// Left out where the policy doesn't let us see them. Nova then refuses what can't be moved live.
    #[serde(default)]
    extra_specs: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Fault {
    message: String,
}

impl Server {
    /// None where the instance's cell does not answer.
    pub(super) fn meaning(self, our_name: impl Fn(String) -> String) -> Option<Instance> {
        Some(Instance {
            id: InstanceId(self.id),
            name: self.name,
            project: self.tenant_id,
            host: self.host.filter(|host| !host.is_empty()).map(our_name),
            vm_state: self.vm_state?,
            task_state: self.task_state.filter(|state| !state.is_empty()),
            fault: self.fault.map(|fault| foreign_text(&fault.message)),
            locked: self.locked,
            takes: self.flavor.takes(!matches!(&self.image, serde_json::Value::String(id) if id.is_empty())),
            zone: self.pinned_availability_zone.filter(|zone| !zone.is_empty()).map(|zone| foreign_text(&zone)),
            asks: self.flavor.asks(),
            flavor: foreign_text(&self.flavor.original_name),
            pinned_by: self.flavor.pinning(),
            owner_wants: self.metadata.get(MOVE_METADATA).map(|wanted| foreign_text(wanted)),
        })
    }
}

impl Flavor {
    /// What Placement counts: the extra specs' word instead of the flavour's own, where there is one.
    fn takes(&self, from_image: bool) -> Room {
        let of = |classes: &[&str], otherwise: u64| {
            let asked = self.extra_specs.iter().filter(|(key, _)| resource_class(key).is_some_and(|class| classes.contains(&class)));
            // (What isn't a number Nova wouldn't have taken.)
            let amounts: Vec<u64> = asked.map(|(_, amount)| amount.parse().unwrap_or(0)).collect();
            if amounts.is_empty() { otherwise } else { amounts.iter().sum() }
        };
        // As Nova counts it (`nova/scheduler/utils.py`, `ResourceRequest`); what is 0 it doesn't ask for.
        let disk = if from_image { self.disk } else { 0 } + self.ephemeral + self.swap.div_ceil(1024);
        let disk = of(&["DISK_GB"], disk);
        Room { vcpus: of(&["VCPU", "PCPU"], self.vcpus), memory_mb: of(&["MEMORY_MB"], self.ram), disk_gb: (disk > 0).then_some(disk) }
    }

    fn asks(&self) -> BTreeMap<String, String> {
        asks(&self.extra_specs).iter().map(|(key, value)| (foreign_text(key), foreign_text(value))).collect()
    }

    fn pinning(&self) -> Vec<String> {
        let pinning = self.extra_specs.iter().filter(|(key, value)| pins(key, value));
        pinning.map(|(key, value)| foreign_text(&format!("{key}={value}"))).collect()
    }
}

#[derive(Deserialize)]
pub(super) struct Aggregates {
    pub(super) aggregates: Vec<Aggregate>,
}

/// A set of hosts that makes an availability zone, or is for something else.
#[derive(Deserialize)]
pub(super) struct Aggregate {
    pub(super) availability_zone: Option<String>,
    #[serde(default)]
    pub(super) hosts: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct Migrations {
    pub(super) migrations: Vec<MigrationRecord>,
    #[serde(default)]
    pub(super) migrations_links: Vec<Link>,
}

#[derive(Deserialize)]
pub(super) struct MigrationRecord {
    id: i64,
    /// Since microversion 2.59.
    uuid: Option<String>,
    instance_uuid: String,
    migration_type: String,
    status: String,
    source_compute: Option<String>,
    dest_compute: Option<String>,
    created_at: NaiveDateTime,
}

impl MigrationRecord {
    pub(super) fn marker(&self) -> String {
        self.uuid.clone().unwrap_or_else(|| self.id.to_string())
    }

    /// Records are numbered as they are made; their times only have seconds.
    pub(super) fn number(&self) -> i64 {
        self.id
    }

    /// None for a kind of migration that Nova didn't have when this was written.
    pub(super) fn meaning(self, our_name: impl Fn(String) -> String) -> Option<Migration> {
        let kind = match self.migration_type.as_str() {
            "live-migration" => MigrationKind::Live,
            "migration" => MigrationKind::Cold,
            "resize" => MigrationKind::Resize,
            "evacuation" => MigrationKind::Evacuation,
            _ => return None,
        };
        Some(Migration {
            uuid: self.marker(),
            instance: InstanceId(self.instance_uuid),
            kind,
            state: state(kind, &self.status),
            status: self.status,
            source: self.source_compute.map(&our_name),
            destination: self.dest_compute.map(&our_name),
            created: self.created_at.and_utc().into(),
        })
    }
}

/// What Nova's word for a migration's state means (seen on 33.0.2, the rest read in its source).
// A word that we don't know is a migration in progress: the caller goes on looking, up to its own deadline.
fn state(kind: MigrationKind, status: &str) -> MigrationState {
    match (kind, status) {
        (MigrationKind::Cold | MigrationKind::Resize, "finished") => MigrationState::AwaitsConfirmation,
        (_, "completed" | "confirmed" | "done" | "finished") => MigrationState::Succeeded,
        (_, "error" | "failed" | "cancelled" | "reverted") => MigrationState::Failed,
        _ => MigrationState::InProgress,
    }
}

/// What `servers/{id}/migrations` says of live migrations that are being carried out. Null where libvirt has not told yet.
#[derive(Deserialize)]
pub(super) struct LiveMigrations {
    migrations: Vec<LiveMigration>,
}

#[derive(Deserialize)]
struct LiveMigration {
    id: i64,
    /// Since microversion 2.59.
    uuid: Option<String>,
    memory_total_bytes: Option<u64>,
    memory_remaining_bytes: Option<u64>,
    disk_total_bytes: Option<u64>,
    disk_remaining_bytes: Option<u64>,
}

impl LiveMigrations {
    /// Nova's number of the migration that is called so.
    pub(super) fn number_of(&self, marker: &str) -> Option<i64> {
        let is_called = |one: &&LiveMigration| one.uuid.as_ref().map_or_else(|| one.id.to_string() == marker, |uuid| uuid == marker);
        self.migrations.iter().find(is_called).map(|one| one.id)
    }

    pub(super) fn meaning(self) -> Option<MoveProgress> {
        let of = |one: LiveMigration| {
            let (total, left) = (one.memory_total_bytes?, one.memory_remaining_bytes?);
            // Where disks are shared, or volumes, they are 0 or null.
            let disk = one.disk_total_bytes.zip(one.disk_remaining_bytes).unwrap_or((0, 0));
            Some(MoveProgress { total_bytes: total.saturating_add(disk.0), remaining_bytes: left.saturating_add(disk.1) })
        };
        self.migrations.into_iter().find_map(of).filter(|progress| progress.total_bytes > 0)
    }
}

#[derive(Deserialize)]
pub(super) struct ServerGroups {
    pub(super) server_groups: Vec<ServerGroupRecord>,
}

#[derive(Deserialize)]
pub(super) struct ServerGroupRecord {
    #[serde(default)]
    name: String,
    /// Since microversion 2.64.
    policy: Option<String>,
    #[serde(default)]
    rules: GroupRules,
    /// Before that.
    #[serde(default)]
    policies: Vec<String>,
    #[serde(default)]
    members: Vec<String>,
}

#[derive(Default, Deserialize)]
struct GroupRules {
    max_server_per_host: Option<u32>,
}

impl ServerGroupRecord {
    /// None where its rule is only a wish.
    pub(super) fn meaning(self) -> Option<ServerGroup> {
        let rule = match self.policy.as_deref().or_else(|| self.policies.first().map(String::as_str))? {
            "anti-affinity" => GroupRule::AntiAffinity { max_on_a_host: self.rules.max_server_per_host.unwrap_or(1) },
            "affinity" => GroupRule::Affinity,
            _ => return None,
        };
        Some(ServerGroup { name: foreign_text(&self.name), rule, members: self.members.into_iter().map(InstanceId).collect() })
    }
}

#[derive(Deserialize)]
pub(super) struct ActionDocument {
    #[serde(rename = "instanceAction")]
    pub(super) action: Action,
}

#[derive(Deserialize)]
pub(super) struct Action {
    pub(super) message: Option<String>,
    #[serde(default)]
    pub(super) events: Vec<Event>,
}

#[derive(Deserialize)]
pub(super) struct Event {
    start_time: Option<NaiveDateTime>,
    finish_time: Option<NaiveDateTime>,
    result: Option<String>,
    /// Since microversion 2.84.
    details: Option<String>,
    traceback: Option<String>,
}

impl Action {
    /// Why it failed. Events are nested and an inner failure makes the outer ones fail: the one that began last among
    /// those that ended first is the cause ("Migration pre-check error: ..." within "No valid host was found").
    pub(super) fn cause(self) -> Option<String> {
        let failed = self.events.into_iter().filter(|event| event.result.as_deref() == Some("Error"));
        let first = failed.min_by_key(|event| (event.finish_time, std::cmp::Reverse(event.start_time)));
        let words = first.and_then(|event| event.details.or_else(|| event.traceback.as_deref().and_then(last_line)));
        words.or(self.message.filter(|message| message != "Error")).map(|words| crate::adapters::http::foreign_text(&words))
    }
}

fn last_line(text: &str) -> Option<String> {
    text.lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Real answers of Nova 33.0.2, with a fault injected into its compute driver.
    fn check(events: &str, expected: Option<&str>) {
        let document =
            format!(r#"{{"instanceAction": {{"action": "live-migration", "message": "Error", "events": [{events}]}}}}"#);
        let document: ActionDocument = serde_json::from_str(&document).unwrap();
        assert_eq!(document.action.cause().as_deref(), expected);
    }

    #[test]
    fn the_innermost_failure_is_the_cause() {
        check(
            r#"{"event": "compute_check_can_live_migrate_destination", "start_time": "2026-11-22T12:51:27.000000", "finish_time": null, "result": null, "details": null},
               {"event": "compute_check_can_live_migrate_destination", "start_time": "2026-11-22T12:51:23.000000", "finish_time": null, "result": null, "details": null},
               {"event": "compute_check_can_live_migrate_destination", "start_time": "2026-11-22T12:51:19.000000", "finish_time": "2026-11-22T12:51:29.000000", "result": "Error", "details": "Migration pre-check error: injected fault: check"},
               {"event": "conductor_live_migrate_instance", "start_time": "2026-11-22T12:51:18.000000", "finish_time": "2026-11-22T12:51:31.000000", "result": "Error", "details": "No valid host was found. There are not enough hosts available."}"#,
            Some("Migration pre-check error: injected fault: check"),
        );
    }

    #[test]
    fn a_failure_after_successes_is_the_cause() {
        check(
            r#"{"event": "compute_resize_instance", "start_time": "2026-11-22T12:52:15.000000", "finish_time": "2026-11-22T12:52:20.000000", "result": "Error", "details": "injected fault: cold"},
               {"event": "compute_prep_resize", "start_time": "2026-11-22T12:52:10.000000", "finish_time": "2026-11-22T12:52:15.000000", "result": "Success", "details": null}"#,
            Some("injected fault: cold"),
        );
    }

    #[test]
    fn a_nova_without_details_is_quoted_by_the_end_of_its_traceback() {
        check(
            r#"{"event": "compute_live_migration", "start_time": "2026-11-22T12:52:15.000000", "finish_time": "2026-11-22T12:52:20.000000", "result": "Error", "traceback": "  File \"x.py\"\n    raise\nMigrationError: disk is full\n"}"#,
            Some("MigrationError: disk is full"),
        );
    }

    #[test]
    fn a_rollback_in_the_middle_gives_no_reason() {
        check(
            r#"{"event": "compute_live_migration", "start_time": "2026-11-22T12:51:57.000000", "finish_time": "2026-11-22T12:51:58.000000", "result": "Success", "details": null}"#,
            None,
        );
    }

    #[test]
    fn every_word_of_nova_for_a_migration_has_a_meaning() {
        use MigrationKind::{Cold, Evacuation, Live, Resize};
        use MigrationState::{AwaitsConfirmation, Failed, InProgress, Succeeded};
        for word in [
            "accepted",
            "queued",
            "preparing",
            "running",
            "pre-migrating",
            "migrating",
            "post-migrating",
            "confirming",
            "reverting",
            "not known yet",
        ] {
            assert_eq!(state(Live, word), InProgress, "{word}");
        }
        for word in ["error", "failed", "cancelled", "reverted"] {
            assert_eq!(state(Cold, word), Failed, "{word}");
        }
        assert_eq!((state(Cold, "finished"), state(Resize, "finished")), (AwaitsConfirmation, AwaitsConfirmation));
        assert_eq!(
            (state(Live, "completed"), state(Cold, "confirmed"), state(Evacuation, "done")),
            (Succeeded, Succeeded, Succeeded)
        );
    }
}
