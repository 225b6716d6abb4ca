//! An instance at the simulated site, its migrations, and what Nova remembers of requests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::MoveFault;
use crate::clock::Timestamp;
use crate::ports::{Instance, InstanceId, MOVE_METADATA, Migration, MigrationKind, MigrationState, Room, asks, devices, holds_device, pins};

/// Nova's `vm_state`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    Building,
    #[default]
    Active,
    Paused,
    Suspended,
    Stopped,
    Rescued,
    Shelved,
    /// Moved or resized, and waiting for a confirmation.
    Resized,
    Error,
}

impl VmState {
    pub fn as_str(self) -> &'static str {
        match self {
            VmState::Building => "building",
            VmState::Active => "active",
            VmState::Paused => "paused",
            VmState::Suspended => "suspended",
            VmState::Stopped => "stopped",
            VmState::Rescued => "rescued",
            VmState::Shelved => "shelved",
            VmState::Resized => "resized",
            VmState::Error => "error",
        }
    }
}

/// Nova's `task_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    Scheduling,
    Spawning,
    Migrating,
    ResizePrep,
    ResizeMigrating,
    ResizeMigrated,
    ResizeFinish,
    PoweringOff,
    PoweringOn,
    Deleting,
}

impl TaskState {
    pub fn as_str(self) -> &'static str {
        match self {
            TaskState::Scheduling => "scheduling",
            TaskState::Spawning => "spawning",
            TaskState::Migrating => "migrating",
            TaskState::ResizePrep => "resize_prep",
            TaskState::ResizeMigrating => "resize_migrating",
            TaskState::ResizeMigrated => "resize_migrated",
            TaskState::ResizeFinish => "resize_finish",
            TaskState::PoweringOff => "powering-off",
            TaskState::PoweringOn => "powering-on",
            TaskState::Deleting => "deleting",
        }
    }
}

/// One instance.
#[derive(Debug, Clone)]
pub struct Guest {
    pub id: InstanceId,
    pub name: String,
    pub project: String,
    /// Nova's name of the host it is on.
    pub host: Option<String>,
    pub vcpus: u32,
    pub memory_mb: u64,
    pub disk_gb: u64,
    pub zone: Option<String>,
    pub device_ports: Vec<String>,
    pub vm_state: VmState,
    pub task_state: Option<TaskState>,
    /// What it was before it became `resized`.
    pub before_resize: VmState,
    pub fault: Option<String>,
    pub locked: bool,
    pub flavor: String,
    pub extra_specs: BTreeMap<String, String>,
    /// By resource class: what else it has by Placement, of which its flavour says nothing.
    pub holds: BTreeMap<String, u64>,
    pub metadata: BTreeMap<String, String>,
    pub created: Timestamp,
    pub(super) deleted: bool,
    pub(super) goes_wrong: MoveFault,
    /// The host whose hypervisor has started it last.
    pub(super) started_on: Option<String>,
}

impl Guest {
    pub fn as_instance(&self) -> Instance {
        Instance {
            id: self.id.clone(),
            name: self.name.clone(),
            project: self.project.clone(),
            host: self.host.clone(),
            vm_state: self.vm_state.as_str().to_owned(),
            task_state: self.task_state.map(|task| task.as_str().to_owned()),
            fault: self.fault.clone(),
            locked: self.locked,
            takes: Room { vcpus: u64::from(self.vcpus), memory_mb: self.memory_mb, disk_gb: (self.disk_gb > 0).then_some(self.disk_gb) },
            zone: self.zone.clone(),
            asks: self.asks(),
            flavor: self.flavor.clone(),
            pinned_by: self.pinned_by(),
            owner_wants: self.metadata.get(MOVE_METADATA).cloned(),
        }
    }

    pub(super) fn asks(&self) -> BTreeMap<String, String> {
        asks(&self.extra_specs)
    }

    /// What Placement has for it.
    pub(super) fn allocations(&self) -> BTreeMap<String, u64> {
        let mut all = devices(&self.asks());
        all.extend([("VCPU".to_owned(), u64::from(self.vcpus)), ("MEMORY_MB".to_owned(), self.memory_mb)]);
        all.extend(self.holds.clone());
        all
    }

    /// Does it have something with which Nova does not move it live?
    pub(super) fn has_device(&self) -> bool {
        !self.pinned_by().is_empty() || self.holds.keys().any(|class| holds_device(class))
    }

    pub(super) fn pinned_by(&self) -> Vec<String> {
        let pinning = self.extra_specs.iter().filter(|(key, value)| pins(key, value));
        pinning.map(|(key, value)| format!("{key}={value}")).collect()
    }
}

/// Nova's own word for how far a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    Accepted,
    Queued,
    Preparing,
    Running,
    Completed,
    PreMigrating,
    Migrating,
    PostMigrating,
    Finished,
    Confirming,
    Confirmed,
    Cancelled,
    Error,
    Failed,
}

impl MigrationStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            MigrationStatus::Accepted => "accepted",
            MigrationStatus::Queued => "queued",
            MigrationStatus::Preparing => "preparing",
            MigrationStatus::Running => "running",
            MigrationStatus::Completed => "completed",
            MigrationStatus::PreMigrating => "pre-migrating",
            MigrationStatus::Migrating => "migrating",
            MigrationStatus::PostMigrating => "post-migrating",
            MigrationStatus::Finished => "finished",
            MigrationStatus::Confirming => "confirming",
            MigrationStatus::Confirmed => "confirmed",
            MigrationStatus::Cancelled => "cancelled",
            MigrationStatus::Error => "error",
            MigrationStatus::Failed => "failed",
        }
    }

    pub fn state(self) -> MigrationState {
        match self {
            MigrationStatus::Accepted
            | MigrationStatus::Queued
            | MigrationStatus::Preparing
            | MigrationStatus::Running
            | MigrationStatus::PreMigrating
            | MigrationStatus::Migrating
            | MigrationStatus::PostMigrating
            | MigrationStatus::Confirming => MigrationState::InProgress,
            MigrationStatus::Finished => MigrationState::AwaitsConfirmation,
            MigrationStatus::Completed | MigrationStatus::Confirmed => MigrationState::Succeeded,
            MigrationStatus::Cancelled | MigrationStatus::Error | MigrationStatus::Failed => MigrationState::Failed,
        }
    }

    pub fn is_over(self) -> bool {
        matches!(self.state(), MigrationState::Succeeded | MigrationState::Failed)
    }
}

/// One entry of `os-migrations`.
#[derive(Debug, Clone)]
pub struct MigrationRecord {
    /// Nova's integer, counted from 1.
    pub number: u64,
    pub uuid: String,
    pub instance: InstanceId,
    pub kind: MigrationKind,
    pub status: MigrationStatus,
    pub source: String,
    /// None until the scheduler has chosen.
    pub destination: Option<String>,
    /// The host that whoever asked for it has named.
    pub wanted: Option<String>,
    /// The scheduler is not asked about that host.
    pub forced: bool,
    pub request: String,
    pub created: Timestamp,
    pub updated: Timestamp,
}

impl MigrationRecord {
    pub fn as_migration(&self) -> Migration {
        Migration {
            uuid: self.uuid.clone(),
            instance: self.instance.clone(),
            kind: self.kind,
            state: self.status.state(),
            status: self.status.as_str().to_owned(),
            source: Some(self.source.clone()),
            destination: self.destination.clone(),
            created: self.created,
        }
    }
}

/// One entry of `os-instance-actions`.
#[derive(Debug, Clone)]
pub struct ActionRecord {
    pub request: String,
    pub instance: InstanceId,
    /// Nova's name of the action: `live-migration`, `migrate`, `confirmResize`, `stop`, `start`.
    pub action: &'static str,
    pub started: Timestamp,
    /// Why it failed, where it did.
    pub failure: Option<String>,
}
