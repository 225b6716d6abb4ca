//! `servers`: reading them.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use turnaround_workflows::ports::InstanceId;
use turnaround_workflows::rehearsal::{Guest, TaskState, VmState};

use super::{Answer, Bearer, Minor, Nova, Query, Refusal, Shared, next_link, page};

const LOCKED: Minor = Minor(9);
const PINNED_ZONE: Minor = Minor(96);
/// From here on the flavour is embedded.
const FLAVOR_INSIDE: Minor = Minor(47);

/// Nova's `status`, which follows from `vm_state` and `task_state`.
fn status(guest: &Guest) -> &'static str {
    match (guest.vm_state, guest.task_state) {
        (VmState::Active | VmState::Paused, Some(TaskState::Migrating)) => "MIGRATING",
        (
            VmState::Active | VmState::Stopped,
            Some(
                TaskState::ResizePrep
                | TaskState::ResizeMigrating
                | TaskState::ResizeMigrated
                | TaskState::ResizeFinish,
            ),
        ) => "RESIZE",
        (VmState::Building, _) => "BUILD",
        (VmState::Active, _) => "ACTIVE",
        (VmState::Paused, _) => "PAUSED",
        (VmState::Suspended, _) => "SUSPENDED",
        (VmState::Stopped, _) => "SHUTOFF",
        (VmState::Rescued, _) => "RESCUE",
        (VmState::Shelved, _) => "SHELVED",
        (VmState::Resized, _) => "VERIFY_RESIZE",
        (VmState::Error, _) => "ERROR",
    }
}

/// libvirt's number for running, paused, shut down, or nothing known.
fn power_state(guest: &Guest) -> u32 {
    match guest.vm_state {
        VmState::Active | VmState::Resized | VmState::Rescued => 1,
        VmState::Paused => 3,
        VmState::Stopped | VmState::Suspended | VmState::Shelved => 4,
        VmState::Building | VmState::Error => 0,
    }
}

fn links(nova: &Nova, guest: &Guest) -> Value {
    json!([{ "rel": "self", "href": format!("{}/v2.1/servers/{}", nova.url, guest.id) }])
}

fn document(nova: &Nova, guest: &Guest, minor: Minor, admin: bool) -> Value {
    let created = guest.created.utc().format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut document = json!({
        "id": guest.id,
        "name": guest.name,
        "status": status(guest),
        "tenant_id": guest.project,
        "user_id": format!("{}-user", guest.project),
        "created": created,
        "updated": created,
        "metadata": guest.metadata,
        "addresses": {},
        // What is on volumes has no image.
        "image": if guest.disk_gb == 0 { json!("") } else { json!({ "id": "11111111-1111-4111-8111-111111111111" }) },
        "config_drive": "",
        "key_name": null,
        "hostId": guest.host.as_ref().map(|host| format!("{:0>56}", host.len())).unwrap_or_default(),
        "links": links(nova, guest),
        "OS-EXT-STS:vm_state": guest.vm_state.as_str(),
        "OS-EXT-STS:task_state": guest.task_state.map(TaskState::as_str),
        "OS-EXT-STS:power_state": power_state(guest),
        "OS-EXT-AZ:availability_zone": "nova",
        "OS-DCF:diskConfig": "MANUAL",
    });
    if minor >= FLAVOR_INSIDE {
        document["flavor"] = json!({ "original_name": guest.flavor, "vcpus": guest.vcpus, "ram": guest.memory_mb, "disk": if guest.disk_gb == 0 { 20 } else { guest.disk_gb }, "ephemeral": 0, "swap": 0, "extra_specs": guest.extra_specs });
    }
    if minor >= PINNED_ZONE {
        document["pinned_availability_zone"] = json!(guest.zone);
    }
    if minor >= LOCKED {
        document["locked"] = json!(guest.locked);
    }
    if admin {
        document["OS-EXT-SRV-ATTR:host"] = json!(guest.host);
        document["OS-EXT-SRV-ATTR:hypervisor_hostname"] = json!(guest.host);
        document["OS-EXT-SRV-ATTR:instance_name"] = json!(format!("instance-{}", &guest.id.0[..8]));
    }
    if let (VmState::Error, Some(message)) = (guest.vm_state, &guest.fault) {
        document["fault"] = json!({ "code": 500, "created": created, "message": message });
    }
    document
}

/// Does a name fit Nova's filter, a regular expression? Of those only `^` and `$` are understood here.
fn is_called(name: &str, filter: &str) -> bool {
    match (filter.strip_prefix('^').unwrap_or(filter), filter.starts_with('^')) {
        (rest, true) => rest.strip_suffix('$').map_or_else(|| name.starts_with(rest), |whole| name == whole),
        (part, false) => name.contains(part),
    }
}

/// Those that are to be seen, newest first, as Nova sorts by default.
fn wanted(nova: &Nova, bearer: &Bearer, query: &Query) -> Result<Vec<Guest>, Refusal> {
    let all_tenants = query.get("all_tenants").is_some_and(|all| matches!(all.as_str(), "" | "1" | "true" | "True"));
    if all_tenants && !bearer.admin {
        return Err(Refusal::new(
            403,
            "Policy doesn't allow os_compute_api:servers:detail:get_all_tenants to be performed.",
        ));
    }
    let mut guests = nova.world.guests_where(|guest| {
        (all_tenants || Some(&guest.project) == bearer.project.as_ref())
            // Whoever is no administrator can't narrow by host: the filter is ignored.
            && (!bearer.admin || query.get("host").is_none_or(|host| guest.host.as_ref() == Some(host)))
            && query.get("project_id").is_none_or(|project| *project == guest.project)
            && query.get("status").is_none_or(|wanted| wanted == status(guest))
            && query.get("name").is_none_or(|name| is_called(&guest.name, name))
    })?;
    guests.reverse();
    Ok(guests)
}

fn answer(nova: &Nova, path: &str, query: &Query, all: Vec<Guest>, one: impl Fn(&Guest) -> Value) -> Answer {
    let (guests, more) = page(all, query, |guest| &guest.id.0)?;
    let mut answer = json!({ "servers": guests.iter().map(one).collect::<Vec<Value>>() });
    if let (true, Some(last)) = (more, guests.last()) {
        answer["servers_links"] = next_link(nova, path, query, &last.id.0);
    }
    Ok(Json(answer))
}

pub(super) async fn list(State(nova): Shared, Extension(bearer): Extension<Bearer>, query: Query) -> Answer {
    let all = wanted(&nova, &bearer, &query)?;
    answer(
        &nova,
        "/servers",
        &query,
        all,
        |guest| json!({ "id": guest.id, "name": guest.name, "links": links(&nova, guest) }),
    )
}

pub(super) async fn detail(
    State(nova): Shared,
    Extension(bearer): Extension<Bearer>,
    Extension(minor): Extension<Minor>,
    query: Query,
) -> Answer {
    let all = wanted(&nova, &bearer, &query)?;
    answer(&nova, "/servers/detail", &query, all, |guest| document(&nova, guest, minor, bearer.admin))
}

/// One instance that this bearer may see.
pub(super) fn find(nova: &Nova, bearer: &Bearer, id: &str) -> Result<Guest, Refusal> {
    let id = InstanceId(id.to_owned());
    let guest = nova.world.guest(&id)?;
    let seen = guest.filter(|guest| bearer.admin || Some(&guest.project) == bearer.project.as_ref());
    seen.ok_or_else(|| Refusal::new(404, not_found(&id)))
}

pub(super) fn not_found(id: &InstanceId) -> String {
    format!("Instance {id} could not be found.")
}

pub(super) async fn show(
    State(nova): Shared,
    Extension(bearer): Extension<Bearer>,
    Extension(minor): Extension<Minor>,
    Path(id): Path<String>,
) -> Answer {
    let guest = find(&nova, &bearer, &id)?;
    Ok(Json(json!({ "server": document(&nova, &guest, minor, bearer.admin) })))
}

/// From here on an instance may have no network, and has to say so.
const NETWORKS: Minor = Minor(37);

pub(super) async fn create(
    State(nova): Shared,
    Extension(bearer): Extension<Bearer>,
    Extension(minor): Extension<Minor>,
    Json(body): Json<Value>,
) -> Result<Response, Refusal> {
    let server = &body["server"];
    for key in ["name", "imageRef", "flavorRef"] {
        if server[key].as_str().is_none_or(str::is_empty) {
            return Err(Refusal::new(400, format!("Invalid input for field/attribute server. '{key}' is a required property")));
        }
    }
    let networks = &server["networks"];
    let named = networks.as_array().is_some_and(|list| list.iter().all(|one| one["uuid"].is_string()));
    if minor >= NETWORKS && !named && *networks != "none" && *networks != "auto" {
        return Err(Refusal::new(400, "Invalid input for field/attribute server. 'networks' is a required property"));
    }
    let Some(project) = &bearer.project else { return Err(Refusal::new(403, "Policy doesn't allow os_compute_api:servers:create to be performed.")) };
    let id = nova.world.create_instance(server["name"].as_str().unwrap_or_default(), project)?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "server": { "id": id, "OS-DCF:diskConfig": "MANUAL" } }))).into_response())
}

pub(super) async fn remove(State(nova): Shared, Extension(bearer): Extension<Bearer>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let guest = find(&nova, &bearer, &id)?;
    nova.world.delete_instance(&guest.id).map_err(|trouble| Refusal::of(trouble, not_found(&guest.id)))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
