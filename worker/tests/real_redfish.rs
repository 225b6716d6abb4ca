//! The port `Bmc` against a Redfish service that is not ours, such as the emulator of OpenStack's `sushy-tools`.
//!
//! Runs where `TURNAROUND_BED_REDFISH` is its URL and `TURNAROUND_BED_REDFISH_SYSTEM` the path of a system in it that may be reset, and has an interface with the MAC address
//! 02:00:5e:10:00:01; skipped elsewhere.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

use serde_json::json;
use support::{Site, beds, eventually, node, secret};
use turnaround_workflows::ports::{BootDevice, Machine, PortErrorKind, Power};

/// A site with one node, whose BMC is that system.
fn site(url: &str, system: &str) -> Site {
    let site = Site::new(&json!({ "clouds": { "none": { "auth": { "auth_url": "http://127.0.0.1:9", "user_id": "u", "password": "p", "project_id": "p" } } } }), "none");
    let password = site.path("redfish.password");
    secret(&password, "canary-redfish");
    let bmc = format!("protocol = \"redfish\", url = \"{url}\", system = \"{system}\", user = \"turnaround\", password_file = \"{}\"", password.display());
    site.with(&format!("[nodes.gpu-01]\nmac = \"02:00:5e:10:00:01\"\nbmc = {{ {bmc} }}\n"))
}

#[tokio::test]
async fn a_system_is_netbooted_next_read_back_and_reset() {
    let (Ok(url), Ok(system)) = (std::env::var("TURNAROUND_BED_REDFISH"), std::env::var("TURNAROUND_BED_REDFISH_SYSTEM")) else {
        let how = "set TURNAROUND_BED_REDFISH to the URL of a Redfish emulator and TURNAROUND_BED_REDFISH_SYSTEM to the path of a system in it";
        beds::skip("redfish", "a_system_is_netbooted_next_read_back_and_reset", how);
        return;
    };
    let ours = site(&url, &system);
    let (bmc, gpu) = (ours.ports().bmc, node("gpu-01"));
    bmc.power(&gpu).await.unwrap();
    assert_eq!(bmc.machine(&gpu).await.unwrap(), Machine::Own);
    bmc.netboot_next(&gpu).await.unwrap();
    let next = bmc.boot_override(&gpu).await.unwrap();
    assert_eq!((next.device, next.efi), (BootDevice::Pxe, true));
    // Its yes comes before anything happens.
    for _ in 0..2 {
        bmc.reset(&gpu).await.unwrap();
        eventually("the system to be on", async || (bmc.power(&gpu).await.unwrap() == Power::On).then_some(())).await;
    }
    let elsewhere = site(&url, "/redfish/v1/Systems/nobody");
    let error = elsewhere.ports().bmc.power(&gpu).await.unwrap_err();
    assert!(matches!(&error.kind, PortErrorKind::Refused { reason } if reason.contains("look for the right path")), "{error:?}");
}
