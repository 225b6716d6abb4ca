//! `os-services`.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde_json::{Map, Value, json};
use turnaround_workflows::rehearsal::ServiceView;

use super::{Answer, Bearer, Minor, Query, Refusal, Shared, only_admin, time};

/// From here on services have UUIDs, and `PUT /os-services/{id}`.
const UUIDS: Minor = Minor(53);
const FORCED_DOWN: Minor = Minor(11);

fn document(service: &ServiceView, place: usize, minor: Minor, now: String) -> Value {
    let mut document = json!({
        "binary": "nova-compute",
        "host": service.host,
        "zone": service.zone.as_deref().unwrap_or("nova"),
        "status": if service.enabled { "enabled" } else { "disabled" },
        "state": if service.up { "up" } else { "down" },
        "updated_at": now,
        "disabled_reason": service.disabled_reason,
    });
    document["id"] = if minor >= UUIDS { json!(service.id) } else { json!(place + 1) };
    if minor >= FORCED_DOWN {
        document["forced_down"] = json!(false);
    }
    document
}

pub(super) async fn list(
    State(nova): Shared,
    Extension(bearer): Extension<Bearer>,
    Extension(minor): Extension<Minor>,
    axum::extract::Query(query): Query,
) -> Answer {
    only_admin(&bearer, "os_compute_api:os-services:list")?;
    let services = nova.world.services()?;
    let host = query.get("host");
    let computes = query.get("binary").is_none_or(|binary| binary == "nova-compute");
    let wanted =
        services.iter().enumerate().filter(|(_, service)| computes && host.is_none_or(|host| *host == service.host));
    let now = time(nova.world.now());
    let list: Vec<Value> = wanted.map(|(place, service)| document(service, place, minor, now.clone())).collect();
    Ok(Json(json!({ "services": list })))
}

/// Those that make availability zones; the simulated site has no others.
pub(super) async fn aggregates(State(nova): Shared, Extension(bearer): Extension<Bearer>) -> Answer {
    only_admin(&bearer, "os_compute_api:os-aggregates:index")?;
    let services = nova.world.services()?;
    let zones: BTreeSet<&String> = services.iter().filter_map(|service| service.zone.as_ref()).collect();
    let aggregate = |(place, zone): (usize, &&String)| {
        let hosts: Vec<&str> = services.iter().filter(|service| service.zone.as_ref() == Some(*zone)).map(|service| service.host.as_str()).collect();
        json!({ "id": place + 1, "name": format!("of-{zone}"), "availability_zone": zone, "metadata": { "availability_zone": zone }, "hosts": hosts, "deleted": false })
    };
    Ok(Json(json!({ "aggregates": zones.iter().enumerate().map(aggregate).collect::<Vec<_>>() })))
}

pub(super) async fn update(
    State(nova): Shared,
    Extension(bearer): Extension<Bearer>,
    Extension(minor): Extension<Minor>,
    Path(id): Path<String>,
    Json(wanted): Json<Map<String, Value>>,
) -> Answer {
    only_admin(&bearer, "os_compute_api:os-services:update")?;
    if minor < UUIDS {
        return Err(Refusal::new(404, "The resource could not be found."));
    }
    if let Some(extra) = wanted.keys().find(|key| !matches!(key.as_str(), "status" | "disabled_reason")) {
        let message = format!(
            "Invalid input for field/attribute body. Value: {wanted:?}. Additional properties are not allowed ('{extra}' was unexpected)"
        );
        return Err(Refusal::new(400, message));
    }
    let find = || nova.world.services().map(|all| all.into_iter().enumerate().find(|(_, service)| service.id == id));
    let missing = || Refusal::new(404, format!("Service {id} not found."));
    let (_, service) = find()?.ok_or_else(missing)?;
    match (wanted.get("status").and_then(Value::as_str), wanted.get("disabled_reason").and_then(Value::as_str)) {
        (Some("disabled"), reason) => nova.world.disable_service(&service.host, reason.unwrap_or_default())?,
        (Some("enabled"), None) => nova.world.enable_service(&service.host)?,
        (Some("enabled"), Some(_)) => {
            return Err(Refusal::new(400, "Specifying 'disabled_reason' with status 'enabled' is invalid."));
        }
        (Some(other), _) => {
            let message = format!(
                "Invalid input for field/attribute status. Value: {other}. '{other}' is not one of ['enabled', 'disabled']"
            );
            return Err(Refusal::new(400, message));
        }
        (None, Some(_)) => return Err(Refusal::new(400, "Missing field 'status' when updating 'disabled_reason'.")),
        (None, None) => {
            return Err(Refusal::new(
                400,
                "No updates were requested. Fields 'status' or 'forced_down' should be specified.",
            ));
        }
    }
    let (place, service) = find()?.ok_or_else(missing)?;
    Ok(Json(json!({ "service": document(&service, place, minor, time(nova.world.now())) })))
}
