//! A BMC by Redfish. Vendors differ, so nothing is believed that was not read back.
//!
//! HTTP basic authentication, which every Redfish service has to support (DSP0266, 13.3): sessions are few on a BMC, and one
//! that a crashed worker left behind blocks the next. Addresses in answers are only followed on the BMC itself.

use std::time::Duration;

use http::header::{ETAG, IF_MATCH};
use http::{HeaderValue, Method};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use turnaround_config::SecretText;
use turnaround_workflows::ports::{BootDevice, BootOverride, PortError, PortErrorKind, Power};

use super::http::{Answer, Basic, BoxError, Effect, Http, Request, foreign_text};
use super::late::in_time;
use super::tls::Trust;

/// Time limit of one request to a BMC.
// BMCs are slow: 20 s for one document are seen while a machine goes through its self-test.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Network interfaces of one machine that are read.
// Eight ports and as many functions of each; a BMC takes a second or two for one.
const INTERFACES_MAX: usize = 64;
/// No further one is asked for after this long.
const INTERFACES_WITHIN: Duration = Duration::from_secs(60);

/// One node's BMC.
#[derive(Debug)]
pub(crate) struct Redfish {
    http: Http,
    base: Url,
    /// Path of the system resource.
    system: String,
    basic: Basic,
}

#[derive(Deserialize)]
struct System {
    #[serde(rename = "PowerState")]
    power: Option<String>,
    #[serde(rename = "Boot")]
    boot: Option<Boot>,
    #[serde(rename = "Actions")]
    actions: Option<Actions>,
    /// As it comes: whoever resets a machine must not stumble over what is told beside.
    #[serde(rename = "EthernetInterfaces", default)]
    interfaces: Value,
}

/// DSP0268, EthernetInterface: as it is used, and as it was made.
const MAC_ADDRESSES: [&str; 2] = ["MACAddress", "PermanentMACAddress"];

/// What leads to another document of the same BMC.
fn link(document: &Value) -> Option<&str> {
    document.get("@odata.id")?.as_str().filter(|path| path.starts_with('/') && !path.starts_with("//"))
}

#[derive(Deserialize)]
struct Boot {
    #[serde(rename = "BootSourceOverrideEnabled")]
    enabled: Option<String>,
    #[serde(rename = "BootSourceOverrideTarget")]
    target: Option<String>,
    #[serde(rename = "BootSourceOverrideMode")]
    mode: Option<String>,
}

#[derive(Deserialize)]
struct Actions {
    #[serde(rename = "#ComputerSystem.Reset")]
    reset: Option<Reset>,
}

#[derive(Deserialize)]
struct Reset {
    target: Option<String>,
    #[serde(rename = "ResetType@Redfish.AllowableValues", default)]
    allowable: Vec<String>,
}

impl Redfish {
    /// `system` is the path of the system resource on the host of `base`.
    ///
    /// # Errors
    /// The certificates of `trust` can't be used.
    pub(crate) fn new(base: Url, system: String, user: String, password: SecretText, trust: &Trust) -> Result<Redfish, BoxError> {
        Ok(Redfish { http: Http::new(REQUEST_TIMEOUT, trust)?, base, system, basic: Basic { user, password } })
    }

    pub(crate) async fn power(&self, operation: &str) -> Result<Power, PortError> {
        let (system, _) = self.system(operation).await?;
        system.power(operation)
    }

    /// The MAC addresses of the machine's network interfaces, lower case, until one of them is `wanted`. Not every BMC does what the standard says, and many know only of those
    /// on the mainboard: whatever is not told, it leaves out, as long as there is somebody who answers, and takes our password.
    pub(crate) async fn macs(&self, operation: &str, wanted: &str) -> Result<Vec<String>, PortError> {
        let began = Instant::now();
        let (system, _) = self.system(operation).await?;
        let mut macs = Vec::new();
        let Some(path) = link(&system.interfaces) else { return Ok(macs) };
        let collection = self.told(operation, path).await?;
        let members = collection.get("Members").and_then(Value::as_array).into_iter().flatten();
        for path in members.filter_map(link).take(INTERFACES_MAX) {
            let interface = self.told(operation, path).await?;
            let told = MAC_ADDRESSES.iter().filter_map(|field| interface.get(field)?.as_str());
            macs.extend(told.map(|mac| foreign_text(mac).to_ascii_lowercase().replace('-', ":")));
            if macs.iter().any(|mac| mac == wanted) {
                break;
            }
            if began.elapsed() > INTERFACES_WITHIN {
                let why = format!("it took more than {} s to tell its interfaces", INTERFACES_WITHIN.as_secs());
                return Err(PortError::new(operation, PortErrorKind::Unavailable).with_source(why));
            }
        }
        macs.sort_unstable();
        macs.dedup();
        Ok(macs)
    }

    /// What is at that path; nothing where the BMC has none, or no sense. That it is busy is no word of it: another one's may look the same.
    async fn told(&self, operation: &str, path: &str) -> Result<Value, PortError> {
        let answer = self.send(operation, &self.request(Method::GET, path, None)).await?;
        if matches!(answer.status.as_u16(), 401 | 408 | 429 | 502..=504) {
            self.succeeded(operation, Effect::None, &answer)?;
        }
        Ok(if answer.status.is_success() { answer.json("a Redfish document").unwrap_or_default() } else { Value::Null })
    }

    pub(crate) async fn boot_override(&self, operation: &str) -> Result<BootOverride, PortError> {
        let (system, _) = self.system(operation).await?;
        Ok(system.boot_override())
    }

    /// Sets it, and tells what the BMC then says.
    pub(crate) async fn netboot_next(&self, operation: &str) -> Result<BootOverride, PortError> {
        let (system, etag) = self.system(operation).await?;
        let mut boot = json!({ "BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": "Pxe" });
        // Where the mode is right already it is left alone: some BMCs refuse to have it written while the machine is on.
        if !system.boot_override().efi {
            boot["BootSourceOverrideMode"] = "UEFI".into();
        }
        let change = |if_match: Option<HeaderValue>| {
            let request = self.request(Method::PATCH, &self.system, Some(&json!({ "Boot": boot })));
            match if_match {
                Some(etag) => request.header(IF_MATCH, etag),
                None => request,
            }
        };
        let mut answer = self.send(operation, &change(None)).await?;
        // Some insist on the version of what is changed, others choke on it. Either way nothing was changed yet.
        if matches!(answer.status.as_u16(), 412 | 428) && etag.is_some() {
            answer = self.send(operation, &change(etag)).await?;
        }
        self.succeeded(operation, Effect::Some, &answer)?;
        self.boot_override(operation).await
    }

    pub(crate) async fn reset(&self, operation: &str) -> Result<(), PortError> {
        let decided = Instant::now();
        let (system, _) = self.system(operation).await?;
        let power = system.power(operation)?;
        let reset = system.actions.and_then(|actions| actions.reset);
        let (target, allowable) = reset.map_or((None, Vec::new()), |reset| (reset.target, reset.allowable));
        let how = reset_type(power, &allowable).map_err(|reason| PortError::new(operation, PortErrorKind::Refused { reason }))?;
        let target = target.unwrap_or_else(|| format!("{}/Actions/ComputerSystem.Reset", self.system));
        if !target.starts_with('/') || target.starts_with("//") {
            let reason = format!("its reset action is at `{}`, which is no path on this BMC", foreign_text(&target));
            return Err(PortError::new(operation, PortErrorKind::Garbled { reason }));
        }
        in_time(decided, operation, "tell its power state")?;
        let answer = self.send(operation, &self.request(Method::POST, &target, Some(&json!({ "ResetType": how })))).await?;
        self.succeeded(operation, Effect::Some, &answer)
    }

    async fn system(&self, operation: &str) -> Result<(System, Option<HeaderValue>), PortError> {
        let answer = self.send(operation, &self.request(Method::GET, &self.system, None)).await?;
        if answer.status.as_u16() == 404 {
            let reason = format!("this BMC has no {}; look for the right path in /redfish/v1/Systems", self.system);
            return Err(PortError::new(operation, PortErrorKind::Refused { reason }));
        }
        self.succeeded(operation, Effect::None, &answer)?;
        let system = answer
            .json("a Redfish ComputerSystem")
            .map_err(|reason| PortError::new(operation, PortErrorKind::Garbled { reason }))?;
        Ok((system, answer.headers.get(ETAG).cloned()))
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Request {
        let mut url = self.base.clone();
        url.set_path(path);
        let mut request = Request::new(method, url).json(body);
        request.basic = Some(self.basic.clone());
        request
    }

    async fn send(&self, operation: &str, request: &Request) -> Result<Answer, PortError> {
        let answer = self.http.send(request).await;
        answer.map_err(|failure| PortError::new(operation, failure.kind(request.effect())).with_source(failure))
    }

    /// 200, 202 or 204: it was taken. Not: it was done.
    fn succeeded(&self, operation: &str, effect: Effect, answer: &Answer) -> Result<(), PortError> {
        if answer.status.is_success() {
            return Ok(());
        }
        // Some BMCs quote the request in their complaint.
        let said = complaint(answer).map(|said| said.replace(self.basic.password.expose(), "(secret)"));
        Err(PortError::new(operation, answer.refusal(effect, said)))
    }
}

impl System {
    fn power(&self, operation: &str) -> Result<Power, PortError> {
        match self.power.as_deref() {
            Some("On") => Ok(Power::On),
            Some("Off") => Ok(Power::Off),
            Some("PoweringOn" | "PoweringOff") => Ok(Power::Changing),
            other => {
                let reason = format!("its PowerState is `{}`", foreign_text(other.unwrap_or("missing")));
                Err(PortError::new(operation, PortErrorKind::Garbled { reason }))
            }
        }
    }

    /// `Once` and `Continuous` are the same here: an emulator, and some BMCs, say the second where the first was asked for.
    fn boot_override(&self) -> BootOverride {
        let Some(boot) = &self.boot else { return BootOverride { device: BootDevice::None, efi: false } };
        let device = match (boot.enabled.as_deref(), boot.target.as_deref()) {
            (Some("Once" | "Continuous"), Some("Pxe")) => BootDevice::Pxe,
            (Some("Once" | "Continuous"), Some("Hdd")) => BootDevice::Disk,
            (Some("Once" | "Continuous"), Some(target)) if target != "None" => BootDevice::Other,
            _ => BootDevice::None,
        };
        // A BMC that doesn't tell the mode does not promise EFI either.
        BootOverride { device, efi: boot.mode.as_deref() == Some("UEFI") }
    }
}

/// How to have a machine start anew, by what its BMC offers. One that offers nothing in particular gets the usual.
fn reset_type(power: Power, allowable: &[String]) -> Result<&'static str, String> {
    let wanted: &[&'static str] = match power {
        Power::Off => &["On", "ForceOn", "PowerCycle"],
        Power::On | Power::Changing => &["ForceRestart", "PowerCycle"],
    };
    if allowable.is_empty() {
        return Ok(wanted[0]);
    }
    wanted.iter().copied().find(|wanted| allowable.iter().any(|offered| offered == wanted)).ok_or_else(|| {
        format!("it offers none of the resets {}; it offers {}", wanted.join(", "), foreign_text(&allowable.join(", ")))
    })
}

/// The telling message of a Redfish error (DSP0266, 8.6): the general one only says to look at the others.
fn complaint(answer: &Answer) -> Option<String> {
    let document: Value = answer.json("a Redfish error").ok()?;
    let extended = document.pointer("/error/@Message.ExtendedInfo/0/Message").and_then(Value::as_str);
    extended.map(foreign_text).or_else(|| answer.fault())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(power: Power, allowable: &[&str]) -> Result<&'static str, String> {
        reset_type(power, &allowable.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_reset_is_one_that_the_bmc_offers() {
        assert_eq!(check(Power::On, &[]), Ok("ForceRestart"));
        assert_eq!(check(Power::Off, &[]), Ok("On"));
        assert_eq!(check(Power::On, &["On", "ForceOff", "PowerCycle"]), Ok("PowerCycle"));
        assert_eq!(check(Power::Off, &["ForceOn", "ForceRestart"]), Ok("ForceOn"));
        assert_eq!(
            check(Power::On, &["GracefulShutdown"]),
            Err("it offers none of the resets ForceRestart, PowerCycle; it offers GracefulShutdown".to_owned())
        );
    }
}
