//! The machine's BMC: by Redfish or by IPMI.
//!
//! Redfish is the simulated site's own service, in front of the real machine: a stand-in, as Debian has no Redfish emulator. IPMI is
//! `ipmi_sim`, unchanged, which asks a program about the chassis; the boot flags, which it drops, are kept by a small module that it loads
//! (`bootflags.c`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::AbortHandle;
use turnaround_workflows::ports::{BootDevice, BootOverride, Power};
use turnaround_workflows::rehearsal::Trouble;

use super::images::run;
use super::machine::{Machine, Order};
use crate::servers::{Chassis, Login, Mishaps, serve_redfish};

const BOOT_FLAGS: &str = include_str!("bootflags.c");
/// A BMC management controller of IPMI 2.0 at its usual address, without sensors.
const MANAGEMENT_CONTROLLER: &str = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n";

/// How the BMC is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Redfish,
    Ipmi,
}

/// The BMC's network side. It ends when this is dropped.
#[derive(Debug)]
pub struct Bmc {
    /// What the node's `bmc` is in the configuration, but for its password.
    pub config: String,
    tasks: Vec<AbortHandle>,
    _ipmi_sim: Option<Child>,
}

impl Drop for Bmc {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// There is only one machine, whatever the node is called.
impl Chassis for Machine {
    fn power_of(&self, _node: &str) -> Result<Power, Trouble> {
        Ok(self.power())
    }

    fn next_boot_of(&self, _node: &str) -> Result<BootOverride, Trouble> {
        Ok(self.next_boot())
    }

    fn set_next_boot(&self, _node: &str, device: BootDevice) -> Result<(), Trouble> {
        Machine::set_next_boot(self, device);
        Ok(())
    }

    fn request_reset(&self, _node: &str) -> Result<(), Trouble> {
        self.order(Order::Restart);
        Ok(())
    }

    fn macs_of(&self, _node: &str) -> Result<Vec<String>, Trouble> {
        Ok(vec![self.mac().to_owned()])
    }
}

impl Bmc {
    /// `folder` takes what it keeps; `boot_flags` is the machine's.
    pub async fn start(
        protocol: Protocol,
        node: &str,
        machine: &Arc<Machine>,
        login: &Login,
        mishaps: &Arc<Mishaps>,
        folder: &Path,
        boot_flags: &Path,
    ) -> io::Result<Bmc> {
        fs::create_dir_all(folder)?;
        match protocol {
            Protocol::Redfish => {
                let logins = BTreeMap::from([(node.to_owned(), login.clone())]);
                let (url, task) = serve_redfish(Arc::clone(machine) as Arc<dyn Chassis>, logins, mishaps).await?;
                let config = format!(
                    "protocol = \"redfish\"\nurl = \"{url}\"\nsystem = \"/redfish/v1/Systems/{node}\"\nuser = \"{}\"",
                    login.user
                );
                Ok(Bmc { config, tasks: vec![task], _ipmi_sim: None })
            }
            Protocol::Ipmi => {
                let (chassis, task) = serve_chassis(machine).await?;
                let port = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
                let sim = ipmi_sim(folder, boot_flags, port, &chassis, login)?;
                let config = format!("protocol = \"ipmi\"\naddress = \"127.0.0.1\"\nport = {port}\ncipher_suite = 3\nuser = \"{}\"", login.user);
                Ok(Bmc { config, tasks: vec![task], _ipmi_sim: Some(sim) })
            }
        }
    }
}

/// What the chassis program of `ipmi_sim` asks: `/get/power`, `/set/power/1`, `/set/reset/1`.
async fn serve_chassis(machine: &Arc<Machine>) -> io::Result<(String, AbortHandle)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let read = async |State(machine): State<Arc<Machine>>, UrlPath(what): UrlPath<String>| match what.as_str() {
        "power" if machine.power() == Power::On => "1",
        _ => "0",
    };
    let write = async |State(machine): State<Arc<Machine>>, UrlPath((what, value)): UrlPath<(String, String)>| {
        match (what.as_str(), value.as_str()) {
            ("power", "0") => machine.order(Order::Off),
            ("power", "1") => machine.order(Order::On),
            ("reset", "1") => machine.order(Order::Restart),
            _ => {}
        }
        ""
    };
    let routes = Router::new().route("/get/{what}", get(read)).route("/set/{what}/{value}", get(write)).with_state(Arc::clone(machine));
    let task = tokio::spawn(async move {
        let _ = axum::serve(listener, routes).await;
    });
    Ok((url, task.abort_handle()))
}

fn ipmi_sim(folder: &Path, boot_flags: &Path, port: u16, chassis: &str, login: &Login) -> io::Result<Child> {
    let at = |name: &str| folder.join(name);
    let (source, module) = (at("bootflags.c"), at("bootflags.so"));
    fs::write(&source, BOOT_FLAGS)?;
    run(std::process::Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&module).arg(&source))?;
    let program = at("chassis");
    let text = format!(
        r#"#!/bin/sh
# What ipmi_sim asks and orders: <address> get NAME.. | set NAME VALUE ..
shift
what=$1; shift
case "$what" in
get) for name in "$@"; do echo "$name:$(busybox wget -q -O - "{chassis}/get/$name")"; done ;;
set) while [ $# -gt 1 ]; do busybox wget -q -O - "{chassis}/set/$1/$2"; shift 2; done ;;
esac
"#
    );
    fs::write(&program, text)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let lan = format!(
        "name \"bmc\"\nset_working_mc 0x20\nstartlan 1\naddr 127.0.0.1 {port}\npriv_limit admin\n\
         allowed_auths_operator none md2 md5 straight\nguid a123456789abcdefa123456789abcdef\nendlan\n\
         chassis_control \"{} 0x20\"\nuser 2 true \"{}\" \"{}\" operator 10\nloadlib \"{}\" \"{}\"\n",
        program.display(),
        login.user,
        login.password,
        module.display(),
        boot_flags.display(),
    );
    fs::write(at("lan.conf"), lan)?;
    fs::write(at("commands"), MANAGEMENT_CONTROLLER)?;
    fs::create_dir_all(at("state"))?;
    let log = fs::File::create(at("ipmi_sim.log"))?;
    Command::new("ipmi_sim")
        .arg("-c")
        .arg(at("lan.conf"))
        .arg("-f")
        .arg(at("commands"))
        .arg("-s")
        .arg(at("state"))
        .arg("-n")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
}
