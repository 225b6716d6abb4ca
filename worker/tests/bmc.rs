//! The port `Bmc` by both of its protocols: Redfish against a stand-in with the quirks that were seen, and against a real
//! emulator where `TURNAROUND_BED_REDFISH` leads to one; IPMI against `ipmi_sim`, and against a script where it has to be
//! seen what `ipmitool` is given.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

#[path = "support/cloud.rs"]
mod cloud;
#[path = "support/program.rs"]
mod program;

use std::fs;

use cloud::{Cloud, Reply};
use program::{Server, free_port, here, script};
use serde_json::{Value, json};
use support::{Site, beds, eventually, node, secret, told};
use turnaround_workflows::ports::{BootDevice, BootOverride, Machine, PortErrorKind, Ports, Power};

fn refused(reason: &str) -> PortErrorKind {
    PortErrorKind::Refused { reason: reason.to_owned() }
}

fn site() -> Site {
    Site::new(
        &json!({ "clouds": { "none": { "auth": { "auth_url": "http://127.0.0.1:9", "user_id": "u", "password": "p", "project_id": "p" } } } }),
        "none",
    )
}

fn redfish(url: &str, system: &str, further: &str) -> (Site, Ports) {
    let site = site();
    let password = site.path("bmc.password");
    let site = site.with(&format!(
        "[nodes.gpu-01]\nmac = \"02:00:5e:10:00:01\"\n[nodes.gpu-01.bmc]\nprotocol = \"redfish\"\nurl = \"{url}\"\nsystem = \"{system}\"\nuser = \"turnaround\"\npassword_file = \"{}\"\n{further}",
        password.display()
    ));
    let ports = site.ports();
    (site, ports)
}

const SYSTEM: &str = "/redfish/v1/Systems/1";
const RESET: &str = "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset";

/// A BMC that takes everything.
async fn bmc(power: &str, boot: Value) -> (Cloud, Ports) {
    let bmc = Cloud::start().await;
    bmc.reply("GET", SYSTEM, [system(power, boot)]);
    bmc.reply("PATCH", SYSTEM, [Reply::text(204, "")]);
    bmc.reply("POST", RESET, [Reply::text(204, "")]);
    let (_, ports) = redfish(&format!("http://{}", bmc.address), SYSTEM, "");
    (bmc, ports)
}

fn system(power: &str, boot: Value) -> Reply {
    let reset = json!({ "target": RESET, "ResetType@Redfish.AllowableValues": ["On", "ForceOff", "ForceRestart"] });
    Reply::json(200, &json!({ "PowerState": power, "Boot": boot, "Actions": { "#ComputerSystem.Reset": reset } }))
}

fn boot(enabled: &str, target: &str, mode: &str) -> Value {
    json!({ "BootSourceOverrideEnabled": enabled, "BootSourceOverrideTarget": target, "BootSourceOverrideMode": mode })
}

#[tokio::test]
async fn redfish_netboots_next_by_efi_and_believes_only_what_it_reads_back() {
    let gpu = node("gpu-01");
    let (bmc, ports) = bmc("On", boot("Disabled", "None", "Legacy")).await;
    bmc.reply("GET", SYSTEM, [system("On", boot("Disabled", "None", "Legacy")), system("On", boot("Continuous", "Pxe", "UEFI"))]);
    ports.bmc.netboot_next(&gpu).await.unwrap();
    let patch = &bmc.asked("PATCH", SYSTEM)[0];
    assert_eq!(serde_json::from_str::<Value>(&patch.body).unwrap(), json!({ "Boot": boot("Once", "Pxe", "UEFI") }));
    assert_eq!(patch.headers["authorization"], "Basic dHVybmFyb3VuZDpjYW5hcnktYm1j");

    // Set already: the mode is not touched.
    ports.bmc.netboot_next(&gpu).await.unwrap();
    let patch = &bmc.asked("PATCH", SYSTEM)[1];
    assert_eq!(
        serde_json::from_str::<Value>(&patch.body).unwrap(),
        json!({ "Boot": { "BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": "Pxe" } })
    );

    bmc.reply("GET", SYSTEM, [system("On", boot("Disabled", "None", "UEFI"))]);
    assert_eq!(ports.bmc.netboot_next(&gpu).await.unwrap_err().kind, refused("it acknowledged that and keeps no such setting"));
    bmc.reply("GET", SYSTEM, [system("On", boot("Once", "Pxe", "Legacy"))]);
    let kind = ports.bmc.netboot_next(&gpu).await.unwrap_err().kind;
    assert_eq!(
        kind,
        refused("it will boot from the network by legacy BIOS, not by EFI: set the boot mode of this machine to UEFI")
    );
}

/// DSP0266 and DSP0268; and what was left out of them by whoever built this BMC.
#[tokio::test]
async fn redfish_tells_whose_machine_it_is_as_far_as_the_bmc_does() {
    let gpu = node("gpu-01");
    let bmc = Cloud::start().await;
    let (site, _) = redfish(&format!("http://{}", bmc.address), SYSTEM, "");
    let other = site.path("bmc.password");
    let site = site.with(&format!(
        "[nodes.gpu-02]\nmac = \"02:00:5e:10:00:02\"\nbmc = {{ protocol = \"ipmi\", address = \"127.0.0.1\", user = \"u\", password_file = \"{}\" }}\n",
        other.display()
    ));
    let ports = site.ports();
    let machine = async || ports.bmc.machine(&gpu).await.map_err(|error| error.kind);
    let told = |macs: &[&str]| Ok(Machine::Unknown { macs: macs.iter().map(|&mac| mac.to_owned()).collect() });
    // It has no such link.
    bmc.reply("GET", SYSTEM, [system("On", boot("Disabled", "None", "UEFI"))]);
    assert_eq!(machine().await, told(&[]));
    let nics = format!("{SYSTEM}/EthernetInterfaces");
    let linked = |to: &str| Reply::json(200, &json!({ "PowerState": "On", "EthernetInterfaces": { "@odata.id": to } }));
    bmc.reply("GET", SYSTEM, [linked(&nics)]);
    for reply in [Reply::text(404, ""), Reply::text(403, ""), Reply::text(500, ""), Reply::text(200, "<html>"), Reply::json(200, &json!({ "Members": 7 }))] {
        bmc.reply("GET", &nics, [reply]);
        assert_eq!(machine().await, told(&[]));
    }
    bmc.reply("GET", &nics, [Reply::text(503, "")]);
    assert_eq!(machine().await, Err(PortErrorKind::Unavailable), "another node's may be busy, too");
    bmc.reply("GET", &nics, [Reply::text(401, "")]);
    assert!(matches!(machine().await, Err(PortErrorKind::Denied { .. })));
    // What is told beside keeps nobody from a reset.
    for beside in [json!({}), json!([]), json!({ "@odata.id": 7 }), json!("nics"), Value::Null] {
        bmc.reply("GET", SYSTEM, [Reply::json(200, &json!({ "PowerState": "On", "EthernetInterfaces": beside }))]);
        assert_eq!((machine().await, ports.bmc.power(&gpu).await.unwrap()), (told(&[]), Power::On), "{beside}");
    }
    bmc.reply("GET", SYSTEM, [linked(&nics)]);
    let members = ["1", "2", "3"].map(|number| json!({ "@odata.id": format!("{nics}/{number}") }));
    bmc.reply("GET", &nics, [Reply::json(200, &json!({ "Members": members }))]);
    let nic = |number: &str, of: Value| bmc.reply("GET", &format!("{nics}/{number}"), [Reply::json(200, &of)]);
    // One has no address, one another than it was made with; one is not there any more.
    nic("1", json!({ "MACAddress": null }));
    nic("2", json!({ "MACAddress": "02-00-5E-99-00-02", "PermanentMACAddress": "02:00:5E:99:00:01" }));
    bmc.reply("GET", &format!("{nics}/3"), [Reply::text(404, "")]);
    assert_eq!(machine().await, told(&["02:00:5e:99:00:01", "02:00:5e:99:00:02"]));
    nic("3", json!({ "MACAddress": "02:00:5e:10:00:02" }));
    assert_eq!(machine().await, Ok(Machine::Of(node("gpu-02"))));
    // Its own first: the others are not asked for.
    let asked = bmc.asked("GET", &format!("{nics}/3")).len();
    nic("2", json!({ "PermanentMACAddress": "02:00:5E:10:00:01", "MACAddress": "02:00:5e:10:00:02" }));
    assert_eq!((machine().await, bmc.asked("GET", &format!("{nics}/3")).len()), (Ok(Machine::Own), asked));
    // Our password stays here.
    for elsewhere in ["http://127.0.0.1:9/nics", "//127.0.0.1:9/nics", "nics"] {
        bmc.reply("GET", SYSTEM, [linked(elsewhere)]);
        assert_eq!(machine().await, told(&[]), "{elsewhere}");
    }
    assert_eq!(ports.bmc.machine(&node("gpu-02")).await.unwrap(), Machine::Unknown { macs: Vec::new() }, "IPMI tells none");
}

#[tokio::test]
async fn redfish_gives_the_version_of_what_it_changes_only_to_those_who_insist() {
    let (bmc, ports) = bmc("On", boot("Once", "Pxe", "UEFI")).await;
    bmc.reply("GET", SYSTEM, [system("On", boot("Once", "Pxe", "UEFI")).with("etag", "W/\"7\"")]);
    bmc.reply("PATCH", SYSTEM, [Reply::text(428, ""), Reply::text(200, "{}")]);
    ports.bmc.netboot_next(&node("gpu-01")).await.unwrap();
    let matches: Vec<_> = bmc.asked("PATCH", SYSTEM).iter().map(|asked| asked.headers.get("if-match").cloned()).collect();
    assert_eq!(matches, [None, Some("W/\"7\"".parse().unwrap())]);
}

#[tokio::test]
async fn redfish_restarts_what_runs_and_starts_what_does_not() {
    let gpu = node("gpu-01");
    for (power, word) in [("On", "ForceRestart"), ("Off", "On"), ("PoweringOn", "ForceRestart")] {
        let (bmc, ports) = bmc(power, boot("Disabled", "None", "UEFI")).await;
        ports.bmc.reset(&gpu).await.unwrap();
        assert_eq!(bmc.asked("POST", RESET)[0].body, format!("{{\"ResetType\":\"{word}\"}}"));
    }
}

#[tokio::test]
async fn redfish_says_what_a_bmc_complained_of_and_no_password() {
    let gpu = node("gpu-01");
    let (bmc, ports) = bmc("On", boot("Disabled", "None", "UEFI")).await;
    let complaint = json!({ "error": { "code": "Base.1.8.GeneralError", "message": "See ExtendedInfo.",
        "@Message.ExtendedInfo": [{ "Message": "The machine is in its self-test; you sent canary-bmc." }] } });
    bmc.reply("POST", RESET, [Reply::json(409, &complaint)]);
    let error = ports.bmc.reset(&gpu).await.unwrap_err();
    assert_eq!(error.kind, refused("The machine is in its self-test; you sent (secret)."));
    bmc.reply("POST", RESET, [Reply::json(501, &complaint)]);
    assert!(matches!(ports.bmc.reset(&gpu).await.unwrap_err().kind, PortErrorKind::Refused { .. }));
    bmc.reply("POST", RESET, [Reply::text(503, "")]);
    assert_eq!(ports.bmc.reset(&gpu).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    assert_eq!(bmc.asked("POST", RESET).len(), 3, "none of them twice");
    bmc.reply("GET", SYSTEM, [Reply::json(401, &complaint)]);
    let error = ports.bmc.power(&gpu).await.unwrap_err();
    assert!(
        matches!(error.kind, PortErrorKind::Denied { .. }) && !format!("{error:?}{}", told(&error)).contains("canary"),
        "{error:?}"
    );
    bmc.reply("GET", SYSTEM, [Reply::json(404, &complaint)]);
    let kind = ports.bmc.power(&gpu).await.unwrap_err().kind;
    assert_eq!(kind, refused("this BMC has no /redfish/v1/Systems/1; look for the right path in /redfish/v1/Systems"));
}

#[tokio::test]
async fn redfish_sends_its_password_to_no_other_address_that_an_answer_names() {
    let (bmc, elsewhere) = (Cloud::start().await, Cloud::start().await);
    let (_, ports) = redfish(&format!("http://{}", bmc.address), SYSTEM, "");
    for target in [format!("http://{}/reset", elsewhere.address), format!("//{}/reset", elsewhere.address)] {
        let system = json!({ "PowerState": "On", "Actions": { "#ComputerSystem.Reset": { "target": target } } });
        bmc.reply("GET", SYSTEM, [Reply::json(200, &system)]);
        assert!(matches!(ports.bmc.reset(&node("gpu-01")).await.unwrap_err().kind, PortErrorKind::Garbled { .. }));
    }
    assert!(elsewhere.asked("POST", "/").is_empty());
}

/// `openssl s_server -WWW` serves files: the system is one.
#[tokio::test]
async fn a_bmc_with_a_certificate_of_its_own_is_trusted_by_exactly_that_certificate() {
    if !here("openssl", "/usr/bin/openssl", "openssl", "a_bmc_with_a_certificate_of_its_own_is_trusted_by_exactly_that_certificate") {
        return;
    }
    let folder = tempfile::TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    for name in ["bmc", "other"] {
        // Made out to nobody, as a BMC's often is.
        let arguments = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=bmc"];
        let files = ["-keyout", &at(&format!("{name}.key")), "-out", &at(&format!("{name}.pem"))].map(str::to_owned);
        let made = std::process::Command::new("openssl").args(arguments).args(files).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    fs::create_dir_all(folder.path().join("redfish/v1/Systems")).unwrap();
    fs::write(folder.path().join("redfish/v1/Systems/1"), "{\"PowerState\": \"On\"}").unwrap();
    let port = free_port();
    let command = format!(
        "cd {} && exec openssl s_server -quiet -WWW -accept 127.0.0.1:{port} -cert bmc.pem -key bmc.key",
        folder.path().display()
    );
    let _server = Server::start("sh", &["-c", &command]);
    let (url, gpu) = (format!("https://127.0.0.1:{port}"), node("gpu-01"));

    let (_site, ports) = redfish(&url, SYSTEM, &format!("ca_file = \"{}\"", at("bmc.pem")));
    let power = eventually("the BMC", || async { ports.bmc.power(&gpu).await.ok() }).await;
    assert_eq!(power, Power::On);
    for further in [format!("ca_file = \"{}\"", at("other.pem")), String::new()] {
        let (_site, ports) = redfish(&url, SYSTEM, &further);
        let error = ports.bmc.power(&gpu).await.unwrap_err();
        assert!(error.kind == PortErrorKind::Unavailable && told(&error).contains("certificate"), "{}", told(&error));
    }
}

#[tokio::test]
async fn a_real_redfish_emulator_is_set_reset_and_waited_for() {
    let (Ok(url), Ok(system)) = (std::env::var("TURNAROUND_BED_REDFISH"), std::env::var("TURNAROUND_BED_REDFISH_SYSTEM")) else {
        beds::skip(
            "redfish",
            "a_real_redfish_emulator_is_set_reset_and_waited_for",
            "set TURNAROUND_BED_REDFISH to the URL of a Redfish emulator (such as `sushy-emulator --fake`) and TURNAROUND_BED_REDFISH_SYSTEM to the path of a system",
        );
        return;
    };
    let (gpu, (_site, ports)) = (node("gpu-01"), redfish(&url, &system, ""));
    ports.bmc.netboot_next(&gpu).await.unwrap();
    assert_eq!(ports.bmc.boot_override(&gpu).await.unwrap(), BootOverride { device: BootDevice::Pxe, efi: true });
    for _ in 0..2 {
        // Off at first, on afterwards: both are restarts to us.
        ports.bmc.reset(&gpu).await.unwrap();
        eventually("power", || async { (ports.bmc.power(&gpu).await.unwrap() == Power::On).then_some(()) }).await;
    }
}

fn ipmi(program: &str, port: u16, password: &str) -> (Site, Ports) {
    let site = site().with(&format!("[ipmi]\nprogram = \"{program}\"\nrequest_timeout = \"20s\""));
    let file = site.path("ipmi.password");
    secret(&file, password);
    let site = site.with(&format!(
        "[nodes.gpu-01]\nmac = \"02:00:5e:10:00:01\"\n[nodes.gpu-01.bmc]\nprotocol = \"ipmi\"\naddress = \"127.0.0.1\"\nport = {port}\nuser = \"turnaround\"\ncipher_suite = 3\npassword_file = \"{}\"",
        file.display()
    ));
    let ports = site.ports();
    (site, ports)
}

/// An `ipmi_sim` whose machine is a folder: `power` holds its state, `log` what was done to it.
struct IpmiMachine {
    folder: tempfile::TempDir,
    port: u16,
    _server: Server,
}

impl IpmiMachine {
    fn start(seconds_to_switch: u32) -> IpmiMachine {
        let folder = tempfile::TempDir::new().unwrap();
        let (at, port) = (folder.path().display().to_string(), free_port());
        script(
            &folder.path().join("chassis"),
            &format!(
                r#"#!/bin/sh
cd {at}; shift
case "$1" in
get) shift; for name in "$@"; do echo "$name:$(cat "$name" 2>/dev/null || echo 0)"; done ;;
set) shift; echo "$@" >>log; sleep {seconds_to_switch}; while [ $# -gt 1 ]; do echo "$2" >"$1"; shift 2; done ;;
esac
"#
            ),
        );
        fs::write(folder.path().join("power"), "0\n").unwrap();
        fs::write(folder.path().join("boot"), "default\n").unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        let lan = format!(
            "name \"bmc\"\nset_working_mc 0x20\nstartlan 1\naddr 127.0.0.1 {port}\npriv_limit admin\nallowed_auths_operator none md2 md5 straight\nguid a123456789abcdefa123456789abcdef\nendlan\nchassis_control \"{at}/chassis 0x20\"\nuser 2 true \"turnaround\" \"canary-bmc\" operator 10\n"
        );
        fs::write(folder.path().join("lan.conf"), lan).unwrap();
        fs::write(
            folder.path().join("commands"),
            "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n",
        )
        .unwrap();
        let server = Server::start(
            "/usr/bin/ipmi_sim",
            &["-c", &format!("{at}/lan.conf"), "-f", &format!("{at}/commands"), "-s", &format!("{at}/state"), "-n"],
        );
        IpmiMachine { folder, port, _server: server }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

#[tokio::test]
async fn ipmi_switches_a_machine_on_and_cycles_it_each_once_though_its_bmc_is_slow() {
    let name = "ipmi_switches_a_machine_on_and_cycles_it_each_once_though_its_bmc_is_slow";
    if !here("ipmi", "/usr/bin/ipmi_sim", "openipmi", name) || !here("ipmi", "/usr/bin/ipmitool", "ipmitool", name) {
        return;
    }
    // Longer than ipmitool's own patience: with that, this machine was switched on three times.
    let machine = IpmiMachine::start(3);
    let (gpu, (_site, ports)) = (node("gpu-01"), ipmi("ipmitool", machine.port, "canary-bmc"));
    let power = eventually("the BMC", || async { ports.bmc.power(&gpu).await.ok() }).await;
    assert_eq!(power, Power::Off);
    ports.bmc.reset(&gpu).await.unwrap();
    eventually("power", || async { (ports.bmc.power(&gpu).await.ok()? == Power::On).then_some(()) }).await;
    assert_eq!(machine.log(), "power 1\n");
    ports.bmc.reset(&gpu).await.unwrap();
    eventually("power", || async { machine.log().starts_with("power 1\npower 0\n").then_some(()) }).await;
    eventually("power", || async { (ports.bmc.power(&gpu).await.ok()? == Power::On).then_some(()) }).await;
    assert_eq!(machine.log(), "power 1\npower 0\npower 1\n");
}

#[tokio::test]
async fn ipmi_notices_a_bmc_that_acknowledges_efi_and_does_not_keep_it() {
    let name = "ipmi_notices_a_bmc_that_acknowledges_efi_and_does_not_keep_it";
    if !here("ipmi", "/usr/bin/ipmi_sim", "openipmi", name) || !here("ipmi", "/usr/bin/ipmitool", "ipmitool", name) {
        return;
    }
    // ipmi_sim keeps the device, and neither the EFI flag nor that the setting is valid.
    let machine = IpmiMachine::start(0);
    let (gpu, (_site, ports)) = (node("gpu-01"), ipmi("ipmitool", machine.port, "canary-bmc"));
    eventually("the BMC", || async { ports.bmc.power(&gpu).await.ok() }).await;
    let error = ports.bmc.netboot_next(&gpu).await.unwrap_err();
    assert_eq!(error.kind, refused("it acknowledged that and keeps no such setting"));
    assert_eq!(machine.log(), "boot pxe\n");
}

#[tokio::test]
async fn ipmi_can_not_tell_a_wrong_password_from_a_bmc_that_is_not_there() {
    let name = "ipmi_can_not_tell_a_wrong_password_from_a_bmc_that_is_not_there";
    if !here("ipmi", "/usr/bin/ipmi_sim", "openipmi", name) || !here("ipmi", "/usr/bin/ipmitool", "ipmitool", name) {
        return;
    }
    let machine = IpmiMachine::start(0);
    let gpu = node("gpu-01");
    let (_site, ports) = ipmi("ipmitool", machine.port, "canary-bmc");
    eventually("the BMC", || async { ports.bmc.power(&gpu).await.ok() }).await;
    for (port, password) in [(machine.port, "canary-wrong"), (free_port(), "canary-bmc")] {
        let (_site, ports) = ipmi("ipmitool", port, password);
        for error in [
            ports.bmc.power(&gpu).await.unwrap_err(),
            ports.bmc.reset(&gpu).await.unwrap_err(),
            ports.bmc.netboot_next(&gpu).await.unwrap_err(),
        ] {
            assert_eq!(error.kind, PortErrorKind::Unavailable, "nothing was asked of it: {}", told(&error));
            assert!(told(&error).ends_with("Error: Unable to establish IPMI v2 / RMCP+ session"), "{}", told(&error));
        }
    }
    assert_eq!(machine.log(), "");
}

/// An `ipmitool` that writes down what it is given, and answers like a BMC that takes everything.
const STAND_IN: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$*" >>"$here/arguments"
env >"$here/environment"
case "$*" in
*"power status") echo "Chassis Power is on" ;;
*"bootparam get 5") echo "Boot parameter version: 1"; echo "Boot parameter data: $(cat "$here/flags")" ;;
*"power cycle") cat "$here/cycle" >&2; exit "$(cat "$here/code")" ;;
esac
"#;

#[tokio::test]
async fn ipmi_tells_the_password_to_the_program_and_to_nobody_who_lists_processes() {
    let folder = tempfile::TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    script(&at("ipmitool"), STAND_IN);
    fs::write(at("flags"), "e004000000").unwrap();
    let (gpu, (_site, ports)) = (node("gpu-01"), ipmi(&at("ipmitool").display().to_string(), 623, "canary-bmc"));
    ports.bmc.netboot_next(&gpu).await.unwrap();
    let common = "-I lanplus -L OPERATOR -H 127.0.0.1 -p 623 -U turnaround -C 3 -E";
    assert_eq!(
        fs::read_to_string(at("arguments")).unwrap(),
        format!("{common} -N 9 -R 1 chassis bootdev pxe options=efiboot\n{common} -N 2 -R 2 chassis bootparam get 5\n")
    );
    let environment = fs::read_to_string(at("environment")).unwrap();
    let mut names: Vec<_> = environment.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    names.sort_unstable();
    // PWD and _ are the shell's own.
    names.retain(|name| !matches!(*name, "PWD" | "_" | "SHLVL" | "OLDPWD"));
    assert_eq!(names, ["IPMITOOL_PASSWORD", "LANG", "LC_ALL", "PATH"]);

    for (flags, device, efi) in [
        ("e004000000", BootDevice::Pxe, true),
        ("8004000000", BootDevice::Pxe, false),
        ("a008000000", BootDevice::Disk, true),
        ("a018000000", BootDevice::Other, true),
        ("a000000000", BootDevice::None, true),
        ("2004000000", BootDevice::None, true),
    ] {
        fs::write(at("flags"), flags).unwrap();
        assert_eq!(ports.bmc.boot_override(&gpu).await.unwrap(), BootOverride { device, efi }, "{flags}");
    }
    fs::write(at("flags"), "what?").unwrap();
    assert!(matches!(ports.bmc.boot_override(&gpu).await.unwrap_err().kind, PortErrorKind::Garbled { .. }));

    fs::write(at("code"), "1").unwrap();
    for (said, kind) in [
        ("Error: Unable to establish IPMI v2 / RMCP+ session", PortErrorKind::Unavailable),
        (
            "Set Chassis Power Control to Cycle failed: Insufficient privilege level",
            refused("Set Chassis Power Control to Cycle failed: Insufficient privilege level"),
        ),
        ("Unable to set Chassis Power Control to Cycle", PortErrorKind::OutcomeUnknown),
    ] {
        fs::write(at("cycle"), said).unwrap();
        let error = ports.bmc.reset(&gpu).await.unwrap_err();
        assert_eq!(error.kind, kind);
        assert!(!format!("{error:?}{}", told(&error)).contains("canary"), "{error:?}");
    }
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_in_time_and_one_that_is_missing_has_done_nothing() {
    let folder = tempfile::TempDir::new().unwrap();
    let program = folder.path().join("ipmitool");
    script(&program, "#!/bin/sh\ncase \"$*\" in *status) echo Chassis Power is on ;; *) exec sleep 100 ;; esac\n");
    let (site, _) = ipmi(&program.display().to_string(), 623, "canary-bmc");
    let mut config = site.config();
    config.ipmi.request_timeout = std::time::Duration::from_millis(500);
    let ports = turnaround_worker::adapters::connect(&config).unwrap();
    let gpu = node("gpu-01");
    assert_eq!(ports.bmc.reset(&gpu).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    assert_eq!(ports.bmc.boot_override(&gpu).await.unwrap_err().kind, PortErrorKind::Unavailable);
    fs::remove_file(&program).unwrap();
    let error = ports.bmc.reset(&gpu).await.unwrap_err();
    assert!(error.kind == PortErrorKind::Unavailable && told(&error).contains("could not start"), "{}", told(&error));
}
