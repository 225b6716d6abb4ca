//! All BMCs of the site as one Redfish service, `/redfish/v1/Systems/<node>`, each with its own password. What is behind them is a
//! [`Chassis`]: the simulated world, or a real machine.
//!
//! As seen on real ones: 204 comes before anything happens, and what was taken has to be read back.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, ETAG, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use turnaround_workflows::ports::{BootDevice, BootOverride, Power};
use turnaround_workflows::rehearsal::{Trouble, World};

use super::Login;
use super::mishaps::lost;

/// What the BMCs say they can do.
const RESETS: [&str; 4] = ["On", "ForceRestart", "PowerCycle", "ForceOn"];

/// What a BMC has its hand on.
pub trait Chassis: Send + Sync + 'static {
    /// # Errors
    /// There is no such node, or its BMC can't be reached. So with all of these.
    fn power_of(&self, node: &str) -> Result<Power, Trouble>;
    fn next_boot_of(&self, node: &str) -> Result<BootOverride, Trouble>;
    fn set_next_boot(&self, node: &str, device: BootDevice) -> Result<(), Trouble>;
    fn request_reset(&self, node: &str) -> Result<(), Trouble>;
    /// Of its network interfaces.
    fn macs_of(&self, node: &str) -> Result<Vec<String>, Trouble>;
}

impl Chassis for World {
    fn power_of(&self, node: &str) -> Result<Power, Trouble> {
        World::power_of(self, node)
    }

    fn next_boot_of(&self, node: &str) -> Result<BootOverride, Trouble> {
        World::next_boot_of(self, node)
    }

    fn set_next_boot(&self, node: &str, device: BootDevice) -> Result<(), Trouble> {
        World::set_next_boot(self, node, device)
    }

    fn request_reset(&self, node: &str) -> Result<(), Trouble> {
        World::request_reset(self, node)
    }

    fn macs_of(&self, node: &str) -> Result<Vec<String>, Trouble> {
        World::macs_of(self, node)
    }
}

pub(super) struct Redfish {
    pub(super) chassis: Arc<dyn Chassis>,
    pub(super) logins: BTreeMap<String, Login>,
}

type Shared = State<Arc<Redfish>>;

pub(super) fn routes(redfish: Redfish) -> Router {
    let redfish = Arc::new(redfish);
    let guarded = Router::new()
        .route("/redfish/v1/Systems", get(systems))
        .route("/redfish/v1/Systems/{node}", get(show).patch(change))
        .route("/redfish/v1/Systems/{node}/EthernetInterfaces", get(interfaces))
        .route("/redfish/v1/Systems/{node}/EthernetInterfaces/{number}", get(interface))
        .route("/redfish/v1/Systems/{node}/Actions/ComputerSystem.Reset", post(reset))
        .fallback(async || {
            refuse(StatusCode::NOT_FOUND, "Base.1.8.ResourceMissingAtURI", "The resource was not found.")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&redfish), admit))
        .with_state(redfish);
    Router::new().route("/redfish/v1", get(root)).route("/redfish/v1/", get(root)).merge(guarded)
}

fn refuse(status: StatusCode, id: &str, message: &str) -> Response {
    let extended = json!([{ "MessageId": id, "Message": message, "Severity": "Critical" }]);
    let general = "A general error has occurred. See ExtendedInfo for more information.";
    let error = json!({ "code": "Base.1.8.GeneralError", "message": general, "@Message.ExtendedInfo": extended });
    (status, Json(json!({ "error": error }))).into_response()
}

fn trouble(trouble: Trouble) -> Response {
    match trouble {
        // A BMC that can't be reached says nothing at all.
        Trouble::Unavailable | Trouble::AnswerLost => lost(),
        Trouble::NotFound => {
            refuse(StatusCode::NOT_FOUND, "Base.1.8.ResourceMissingAtURI", "The resource was not found.")
        }
        Trouble::Refused { reason, .. } => refuse(StatusCode::BAD_REQUEST, "Base.1.8.ActionNotSupported", &reason),
    }
}

async fn root() -> Json<Value> {
    Json(json!({
        "@odata.id": "/redfish/v1",
        "RedfishVersion": "1.11.0",
        "Systems": { "@odata.id": "/redfish/v1/Systems" },
    }))
}

/// HTTP basic authentication, by the password of the BMC that is asked; the list is for any of them.
async fn admit(State(redfish): Shared, request: Request, next: Next) -> Response {
    let node = request.uri().path().strip_prefix("/redfish/v1/Systems/").and_then(|rest| rest.split('/').next());
    let given = basic(request.headers());
    let known = redfish.logins.iter().any(|(name, login)| {
        let this = node.is_none_or(|node| node == name) || node.is_some_and(|node| !redfish.logins.contains_key(node));
        this && given.as_ref() == Some(login)
    });
    if known {
        return next.run(request).await;
    }
    let mut response = refuse(
        StatusCode::UNAUTHORIZED,
        "Base.1.8.NoValidSession",
        "There is no valid session established with the implementation.",
    );
    response.headers_mut().insert(WWW_AUTHENTICATE, axum::http::HeaderValue::from_static("Basic realm=\"BMC\""));
    response
}

fn basic(headers: &HeaderMap) -> Option<Login> {
    let encoded = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let text = String::from_utf8(decode_base64(encoded)?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Login { user: user.to_owned(), password: password.to_owned() })
}

/// RFC 4648, with its padding.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let value = LETTERS.iter().position(|known| *known == letter)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    Some(bytes)
}

async fn systems(State(redfish): Shared) -> Json<Value> {
    let members: Vec<Value> = redfish.logins.keys().map(|node| json!({ "@odata.id": path(node) })).collect();
    Json(json!({ "@odata.id": "/redfish/v1/Systems", "Members@odata.count": members.len(), "Members": members }))
}

fn path(node: &str) -> String {
    format!("/redfish/v1/Systems/{node}")
}

async fn show(State(redfish): Shared, Path(node): Path<String>) -> Response {
    let read = redfish.chassis.power_of(&node).and_then(|power| Ok((power, redfish.chassis.next_boot_of(&node)?)));
    let (power, boot) = match read {
        Ok(read) => read,
        Err(error) => return trouble(error),
    };
    let power = match power {
        Power::On => "On",
        Power::Off => "Off",
        Power::Changing => "PoweringOn",
    };
    let (enabled, target) = match boot.device {
        BootDevice::None => ("Disabled", "None"),
        BootDevice::Pxe => ("Once", "Pxe"),
        BootDevice::Disk => ("Once", "Hdd"),
        BootDevice::Other => ("Once", "Cd"),
    };
    let reset = format!("{}/Actions/ComputerSystem.Reset", path(&node));
    let document = json!({
        "@odata.id": path(&node),
        "@odata.type": "#ComputerSystem.v1_13_0.ComputerSystem",
        "Id": node,
        "Name": node,
        "PowerState": power,
        "EthernetInterfaces": { "@odata.id": interfaces_path(&node) },
        "Boot": {
            "BootSourceOverrideEnabled": enabled,
            "BootSourceOverrideTarget": target,
            "BootSourceOverrideMode": if boot.efi { "UEFI" } else { "Legacy" },
            "BootSourceOverrideTarget@Redfish.AllowableValues": ["None", "Pxe", "Cd", "Hdd"],
        },
        "Actions": { "#ComputerSystem.Reset": { "target": reset, "ResetType@Redfish.AllowableValues": RESETS } },
    });
    let tag = format!("\"{power}-{enabled}-{target}\"");
    ([(ETAG, tag)], Json(document)).into_response()
}

fn interfaces_path(node: &str) -> String {
    format!("{}/EthernetInterfaces", path(node))
}

async fn interfaces(State(redfish): Shared, Path(node): Path<String>) -> Response {
    match redfish.chassis.macs_of(&node) {
        Ok(macs) => {
            let members: Vec<Value> = (1..=macs.len()).map(|number| json!({ "@odata.id": format!("{}/{number}", interfaces_path(&node)) })).collect();
            Json(json!({ "@odata.id": interfaces_path(&node), "Members@odata.count": members.len(), "Members": members })).into_response()
        }
        Err(error) => trouble(error),
    }
}

/// In capitals, as many write them.
async fn interface(State(redfish): Shared, Path((node, number)): Path<(String, usize)>) -> Response {
    let macs = match redfish.chassis.macs_of(&node) {
        Ok(macs) => macs,
        Err(error) => return trouble(error),
    };
    match number.checked_sub(1).and_then(|place| macs.get(place)) {
        Some(mac) => {
            let mac = mac.to_ascii_uppercase();
            Json(json!({ "@odata.id": format!("{}/{number}", interfaces_path(&node)), "Id": number.to_string(), "MACAddress": mac, "PermanentMACAddress": mac })).into_response()
        }
        None => trouble(Trouble::NotFound),
    }
}

async fn change(State(redfish): Shared, Path(node): Path<String>, Json(wanted): Json<Value>) -> Response {
    let boot = &wanted["Boot"];
    let device = match (boot["BootSourceOverrideEnabled"].as_str(), boot["BootSourceOverrideTarget"].as_str()) {
        (Some("Disabled"), _) | (_, Some("None")) => BootDevice::None,
        (Some("Once"), Some("Pxe")) => BootDevice::Pxe,
        (Some("Once"), Some("Hdd")) => BootDevice::Disk,
        (Some("Once"), Some("Cd")) => BootDevice::Other,
        _ => {
            let message = "The value provided for Boot is not in the list of acceptable values.";
            return refuse(StatusCode::BAD_REQUEST, "Base.1.8.PropertyValueNotInList", message);
        }
    };
    match redfish.chassis.set_next_boot(&node, device) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => trouble(error),
    }
}

async fn reset(State(redfish): Shared, Path(node): Path<String>, Json(wanted): Json<Value>) -> Response {
    if !wanted["ResetType"].as_str().is_some_and(|kind| RESETS.contains(&kind)) {
        let message = "The value provided for ResetType is not in the list of acceptable values.";
        return refuse(StatusCode::NOT_IMPLEMENTED, "Base.1.8.ActionParameterNotSupported", message);
    }
    match redfish.chassis.request_reset(&node) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => trouble(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_as_rfc_4648_has_it() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("operator:a:b", "b3BlcmF0b3I6YTpi")]
        {
            assert_eq!(decode_base64(encoded).unwrap(), plain.as_bytes());
        }
        assert_eq!(decode_base64("Z%"), None);
    }
}
