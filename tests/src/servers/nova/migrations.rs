//! `os-migrations`, and the live ones of one instance.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use turnaround_workflows::ports::{MigrationKind, MoveProgress};
use turnaround_workflows::rehearsal::{MigrationRecord, MigrationStatus};

use super::servers::find;
use super::{Answer, Bearer, Minor, Query, Refusal, Shared, next_link, only_admin, page, time};

/// From here on there are pages, and UUIDs.
const PAGES: Minor = Minor(59);
const USER: Minor = Minor(80);
/// From here on one that waits in line can be stopped too.
const STOPS_QUEUED: Minor = Minor(65);

fn kind(migration: &MigrationRecord) -> &'static str {
    match migration.kind {
        MigrationKind::Live => "live-migration",
        MigrationKind::Cold => "migration",
        MigrationKind::Resize => "resize",
        MigrationKind::Evacuation => "evacuation",
    }
}

fn document(migration: &MigrationRecord, minor: Minor) -> Value {
    // Before the scheduler has chosen, hardly anything is known.
    let decided = migration.destination.is_some();
    let mut document = json!({
        "id": migration.number,
        "instance_uuid": migration.instance,
        "migration_type": kind(migration),
        "status": migration.status.as_str(),
        "source_compute": migration.source,
        "source_node": decided.then_some(&migration.source),
        "dest_compute": migration.destination,
        "dest_node": migration.destination,
        "dest_host": migration.destination.as_ref().map(|_| "192.0.2.2"),
        "created_at": time(migration.created),
        "updated_at": time(migration.updated),
        "old_instance_type_id": 1,
        "new_instance_type_id": 1,
    });
    if minor >= PAGES {
        document["uuid"] = json!(migration.uuid);
    }
    if minor >= USER {
        document["user_id"] = json!("turnaround");
        document["project_id"] = json!("admin");
    }
    document
}

/// Newest first.
pub(super) async fn list(
    State(nova): Shared,
    Extension(bearer): Extension<Bearer>,
    Extension(minor): Extension<Minor>,
    query: Query,
) -> Answer {
    only_admin(&bearer, "os_compute_api:os-migrations:index")?;
    let is = |key: &str, value: &str| query.get(key).is_none_or(|wanted| wanted == value);
    let mut all = nova.world.migrations_where(|migration| {
        let host = query.get("host");
        is("instance_uuid", &migration.instance.0)
            && is("source_compute", &migration.source)
            && is("migration_type", kind(migration))
            && is("status", migration.status.as_str())
            && host.is_none_or(|host| *host == migration.source || migration.destination.as_ref() == Some(host))
    })?;
    all.reverse();
    let (migrations, more) =
        if minor >= PAGES { page(all, &query, |migration| &migration.uuid)? } else { (all, false) };
    let mut answer = json!({ "migrations": migrations.iter().map(|one| document(one, minor)).collect::<Vec<Value>>() });
    if let (true, Some(last)) = (more, migrations.last()) {
        answer["migrations_links"] = next_link(&nova, "/os-migrations", &query, &last.uuid);
    }
    Ok(Json(answer))
}

/// Only live ones, and only while they are in progress.
pub(super) async fn of_server(
    State(nova): Shared,
    Extension(bearer): Extension<Bearer>,
    Extension(minor): Extension<Minor>,
    Path(id): Path<String>,
) -> Answer {
    only_admin(&bearer, "os_compute_api:servers:migrations:index")?;
    let guest = find(&nova, &bearer, &id)?;
    let here = nova.world.migrations_where(|migration| {
        let begun = migration.destination.is_some() && !migration.status.is_over();
        migration.instance == guest.id && migration.kind == MigrationKind::Live && begun
    })?;
    let progress = nova.world.progress_of(&guest.id)?;
    let told = |one: &MigrationRecord| {
        let mut document = document(one, minor);
        // Null until libvirt has told; disks are shared here.
        let of = |bytes: fn(&MoveProgress) -> u64| progress.as_ref().map(bytes);
        document["memory_total_bytes"] = json!(of(|told| told.total_bytes));
        document["memory_remaining_bytes"] = json!(of(|told| told.remaining_bytes));
        document["memory_processed_bytes"] = json!(of(|told| told.total_bytes - told.remaining_bytes));
        for key in ["disk_total_bytes", "disk_processed_bytes", "disk_remaining_bytes"] {
            document[key] = json!(progress.map(|_| 0));
        }
        document
    };
    Ok(Json(json!({ "migrations": here.iter().map(told).collect::<Vec<Value>>() })))
}

/// Only a live one, and only while it waits in line or is being copied.
pub(super) async fn stop(
    State(nova): Shared,
    Extension(bearer): Extension<Bearer>,
    Extension(minor): Extension<Minor>,
    Path((id, number)): Path<(String, u64)>,
) -> Result<Response, Refusal> {
    only_admin(&bearer, "os_compute_api:servers:migrations:delete")?;
    let guest = find(&nova, &bearer, &id)?;
    let missing = format!("Migration {number} for server {id} is not live-migration.");
    let found = nova.world.migrations_where(|record| record.number == number && record.instance == guest.id && record.kind == MigrationKind::Live)?;
    let Some(found) = found.first() else { return Err(Refusal::new(404, missing)) };
    if found.status == MigrationStatus::Queued && minor < STOPS_QUEUED {
        return Err(Refusal::new(409, format!("Instance {id} in migration state queued: cannot abort live migration {number}.")));
    }
    nova.world.request_stop(&guest.id, number).map_err(|trouble| Refusal::of(trouble, missing))?;
    Ok(StatusCode::ACCEPTED.into_response())
}
