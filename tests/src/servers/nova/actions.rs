//! `servers/{id}/action` and what is remembered of it: `os-instance-actions`.

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Map, Value, json};
use turnaround_workflows::ports::Move;
use turnaround_workflows::rehearsal::ActionRecord;

use super::servers::{find, not_found};
use super::{Answer, Bearer, Minor, REQUEST_ID, Refusal, Shared, only_admin, time};

/// Since then a cold migration may name its target.
const COLD_TO_A_HOST: Minor = Minor(56);
/// From here on a live migration to a host may be forced; and from there on no more.
const FORCE: Minor = Minor(30);
const NO_FORCE: Minor = Minor(68);
/// From here on `block_migration` may be "auto".
const AUTO: Minor = Minor(25);
/// From here on an event says why it failed.
const DETAILS: Minor = Minor(84);

pub(super) async fn act(
    State(nova): Shared,
    Extension(bearer): Extension<Bearer>,
    Extension(minor): Extension<Minor>,
    Path(id): Path<String>,
    Json(action): Json<Map<String, Value>>,
) -> Result<Response, Refusal> {
    let guest = find(&nova, &bearer, &id)?;
    let refuse = |trouble| Refusal::of(trouble, not_found(&guest.id));
    let (name, what) = match action.iter().next() {
        Some(one) if action.len() == 1 => one,
        Some(_) | None => return Err(Refusal::new(400, "Malformed request body")),
    };
    match name.as_str() {
        "os-migrateLive" => {
            only_admin(&bearer, "os_compute_api:os-migrate-server:migrate_live")?;
            check_live(what, minor)?;
            let request = match what["host"].as_str() {
                Some(host) if what["force"] == true => {
                    only_admin(&bearer, "os_compute_api:os-migrate-server:migrate_live:host")?;
                    nova.world.force_live(&guest.id, host).map_err(refuse)?
                }
                host => nova.world.request_move(&guest.id, Move::Live, host).map_err(refuse)?,
            };
            Ok(accepted(&request))
        }
        "migrate" => {
            only_admin(&bearer, "os_compute_api:os-migrate-server:migrate")?;
            check_cold(what, minor)?;
            let request = nova.world.request_move(&guest.id, Move::Cold, what["host"].as_str()).map_err(refuse)?;
            Ok(accepted(&request))
        }
        "confirmResize" => {
            nova.world.request_confirm(&guest.id).map_err(refuse)?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        "os-stop" => Ok(accepted(&nova.world.stop_instance(&guest.id).map_err(refuse)?)),
        "os-start" => Ok(accepted(&nova.world.start_instance(&guest.id).map_err(refuse)?)),
        "os-getConsoleOutput" => {
            let output = nova.world.console_of(&guest.id).map_err(refuse)?;
            let lines: Vec<&str> = output.lines().collect();
            let wanted = what["length"].as_u64().map_or(lines.len(), |length| usize::try_from(length).unwrap_or(lines.len()));
            Ok(Json(json!({ "output": lines[lines.len().saturating_sub(wanted)..].join("\n") })).into_response())
        }
        // Nova's rebuild of a dead host's instances: all hosts of this site that run are in use.
        "evacuate" => {
            let host = guest.host.unwrap_or_default();
            Err(Refusal::new(400, format!("Compute service of {host} is still in use.")))
        }
        other => Err(unsupported(other)),
    }
}

/// What this stand-in does not do it must not seem to do.
fn unsupported(action: &str) -> Refusal {
    Refusal::new(400, format!("There is no such action: {action} (at the simulated site)"))
}

fn check_live(what: &Value, minor: Minor) -> Result<(), Refusal> {
    let body =
        what.as_object().ok_or_else(|| Refusal::new(400, "Invalid input for field/attribute os-migrateLive."))?;
    if !(FORCE..NO_FORCE).contains(&minor) && body.contains_key("force") {
        let message = "Invalid input for field/attribute os-migrateLive. Additional properties are not allowed ('force' was unexpected)";
        return Err(Refusal::new(400, message));
    }
    if !body.contains_key("host") || !body.contains_key("block_migration") {
        return Err(Refusal::new(
            400,
            "Invalid input for field/attribute os-migrateLive. 'host' is a required property",
        ));
    }
    if body["block_migration"] == "auto" && minor < AUTO {
        return Err(Refusal::new(400, "Invalid input for field/attribute block_migration. Value: auto."));
    }
    if !body["host"].is_null() && !body["host"].is_string() {
        return Err(Refusal::new(400, "Invalid input for field/attribute host."));
    }
    Ok(())
}

/// Nothing, or since 2.56 a host.
fn check_cold(what: &Value, minor: Minor) -> Result<(), Refusal> {
    let Some(body) = what.as_object() else {
        return if what.is_null() { Ok(()) } else { Err(Refusal::new(400, "Invalid input for field/attribute migrate.")) };
    };
    let only_a_host = body.len() == 1 && body.get("host").is_some_and(Value::is_string);
    if minor >= COLD_TO_A_HOST && only_a_host { Ok(()) } else { Err(Refusal::new(400, "Invalid input for field/attribute migrate.")) }
}

/// The answer carries the id under which the action is remembered.
fn accepted(request: &str) -> Response {
    let mut response = StatusCode::ACCEPTED.into_response();
    if let Ok(id) = HeaderValue::from_str(request) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

fn document(action: &ActionRecord) -> Value {
    json!({
        "action": action.action,
        "instance_uuid": action.instance,
        "request_id": action.request,
        "user_id": "turnaround",
        "project_id": "admin",
        "start_time": time(action.started),
        "updated_at": time(action.started),
        "message": action.failure.as_ref().map(|_| "Error"),
    })
}

pub(super) async fn list(State(nova): Shared, Extension(bearer): Extension<Bearer>, Path(id): Path<String>) -> Answer {
    let guest = find(&nova, &bearer, &id)?;
    let actions: Vec<Value> = nova.world.actions_of(&guest.id)?.iter().rev().map(document).collect();
    Ok(Json(json!({ "instanceActions": actions })))
}

pub(super) async fn show(
    State(nova): Shared,
    Extension(bearer): Extension<Bearer>,
    Extension(minor): Extension<Minor>,
    Path((id, request)): Path<(String, String)>,
) -> Answer {
    let guest = find(&nova, &bearer, &id)?;
    let actions = nova.world.actions_of(&guest.id)?;
    let Some(action) = actions.into_iter().find(|action| action.request == request) else {
        return Err(Refusal::new(404, format!("Action {request} not found")));
    };
    let mut answer = document(&action);
    answer["events"] = events(&action, minor);
    Ok(Json(json!({ "instanceAction": answer })))
}

/// An inner event that fails makes the outer one fail: both say so, the inner one says why.
fn events(action: &ActionRecord, minor: Minor) -> Value {
    let outer = match action.action {
        "live-migration" => "conductor_live_migrate_instance",
        "migrate" => "cold_migrate",
        "stop" => "compute_stop_instance",
        "start" => "compute_start_instance",
        _ => "compute_confirm_resize",
    };
    let event = |name: &str, failure: Option<&String>, later: u64| {
        let started = action.started + std::time::Duration::from_secs(later);
        let mut event = json!({
            "event": name,
            "start_time": time(started),
            "finish_time": time(action.started + std::time::Duration::from_secs(4 - later)),
            "result": if failure.is_some() { "Error" } else { "Success" },
            "traceback": failure.map(|reason| format!("Traceback (most recent call last):\n  File \"nova\"\n{reason}\n")),
            "hostId": "",
            "host": "controller",
        });
        if minor >= DETAILS {
            event["details"] = json!(failure);
        }
        event
    };
    match &action.failure {
        None => json!([event(outer, None, 0)]),
        Some(reason) if reason.starts_with("No valid host") || matches!(action.action, "stop" | "start") => json!([event(outer, Some(reason), 0)]),
        Some(reason) => {
            let around = "No valid host was found. There are not enough hosts available.".to_owned();
            json!([
                event(outer, Some(&around), 0),
                event("compute_check_can_live_migrate_destination", Some(reason), 1)
            ])
        }
    }
}
