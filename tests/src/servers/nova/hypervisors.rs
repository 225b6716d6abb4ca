//! `os-hypervisors`.

use axum::extract::State;
use axum::{Extension, Json};
use serde_json::{Value, json};
use turnaround_workflows::rehearsal::{Guest, ServiceView};

use super::{Answer, Bearer, Minor, Query, Refusal, Shared, only_admin};

/// From here on, what it offers is in Placement.
const SIZES_GONE: Minor = Minor(88);
/// From here on, `servers` is there even where it is empty.
const SERVERS_ALWAYS: Minor = Minor(75);
/// From here on, ids are UUIDs and the list can be narrowed by name.
const UUIDS: Minor = Minor(53);

pub(super) async fn list(state: Shared, bearer: Extension<Bearer>, minor: Extension<Minor>, query: Query) -> Answer {
    only_admin(&bearer, "os_compute_api:os-hypervisors:list")?;
    answer(&state, *minor, &query, false)
}

pub(super) async fn detail(state: Shared, bearer: Extension<Bearer>, minor: Extension<Minor>, query: Query) -> Answer {
    only_admin(&bearer, "os_compute_api:os-hypervisors:list-detail")?;
    answer(&state, *minor, &query, true)
}

fn answer(State(nova): &Shared, minor: Minor, query: &Query, detailed: bool) -> Answer {
    let guests = nova.world.guests_where(|guest| guest.host.is_some())?;
    let with_servers = query.get("with_servers").is_some_and(|with| with == "true" || with == "True");
    let mut list = Vec::new();
    for (place, service) in nova.world.services()?.iter().enumerate() {
        if minor >= UUIDS
            && query.get("hypervisor_hostname_pattern").is_some_and(|pattern| !service.host.contains(pattern.as_str()))
        {
            continue;
        }
        let here: Vec<&Guest> = guests.iter().filter(|guest| guest.host.as_ref() == Some(&service.host)).collect();
        let mut document = basic(service, place, minor);
        if with_servers && (!here.is_empty() || minor >= SERVERS_ALWAYS) {
            document["servers"] = here.iter().map(|guest| json!({ "name": guest.name, "uuid": guest.id.0 })).collect();
        }
        if detailed {
            add_detail(&mut document, service, &here, minor);
        }
        list.push(document);
    }
    match query.get("hypervisor_hostname_pattern") {
        Some(pattern) if list.is_empty() && minor >= UUIDS => {
            Err(Refusal::new(404, format!("No hypervisor matching '{pattern}' could be found.")))
        }
        Some(_) | None => Ok(Json(json!({ "hypervisors": list }))),
    }
}

fn basic(service: &ServiceView, place: usize, minor: Minor) -> Value {
    json!({
        "id": if minor >= UUIDS { json!(service.id) } else { json!(place + 1) },
        "hypervisor_hostname": service.host,
        "state": if service.up { "up" } else { "down" },
        "status": if service.enabled { "enabled" } else { "disabled" },
    })
}

fn add_detail(document: &mut Value, service: &ServiceView, here: &[&Guest], minor: Minor) {
    document["hypervisor_type"] = json!("QEMU");
    document["hypervisor_version"] = json!(8_002_002);
    document["host_ip"] = json!("192.0.2.1");
    document["service"] = json!({
        "id": if minor >= UUIDS { json!(service.id) } else { json!(1) },
        "host": service.host,
        "disabled_reason": service.disabled_reason,
    });
    if minor < SIZES_GONE {
        document["vcpus"] = json!(service.vcpus);
        document["vcpus_used"] = json!(here.iter().map(|guest| guest.vcpus).sum::<u32>());
        document["memory_mb"] = json!(service.memory_mb);
        document["memory_mb_used"] = json!(here.iter().map(|guest| guest.memory_mb).sum::<u64>());
        document["running_vms"] = json!(here.len());
        document["cpu_info"] = json!({});
    } else {
        document["uptime"] = Value::Null;
    }
}
