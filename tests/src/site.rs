//! A whole simulated site on this machine: the servers, and the files by which a real daemon and real workers find it.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use turnaround_workflows::rehearsal::{COUNT_GPUS, World};

use crate::servers::{ADMIN_PROJECT, Login, Servers, host_key};

/// The entry of `clouds.yaml`.
const CLOUD: &str = "site";

/// The site's own setup script, and its arguments for one node.
const SETUP_SCRIPT: &str = "platform-setup.sh";
const SETUP_ARGUMENTS: &str = r#"deploy = ["--tags", "openstack", "--limit", "{node}"]"#;
const PROGRAM_MODE: u32 = 0o755;

/// Less than a real cluster needs: a node of the simulated one is Ready or is not.
const CLUSTER_MIN_READY: &str = "1s";

/// Secrets are for their owner only.
const SECRET_MODE: u32 = 0o600;

/// A simulated site that is served, with a folder for everything that it has on disk. Both end with it.
#[derive(Debug)]
pub struct Site {
    pub servers: Servers,
    /// The world's own account of what happened, one JSON object a line.
    pub log: PathBuf,
    folder: TempDir,
}

/// What the configuration of a site says besides where things are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program `site-ssh`, built from this crate.
    pub ssh_program: PathBuf,
    pub max_out: u16,
    pub moves_at_once: u16,
    /// In the configuration's own form: `4h`, `200ms`.
    pub evacuate_deadline: String,
    pub install_deadline: String,
    pub rejoin_deadline: String,
    /// How often migrations and nodes are looked at.
    pub poll: String,
    pub lease: String,
    pub slots: u16,
    /// Lines that are added at the end: further tables, such as schedules.
    pub more: String,
    /// Lines for `[store]`: a Redis of one's own, in place of the private one.
    pub store: String,
    /// A cloud in place of the simulated one: its `clouds.yaml`, and the entry in it.
    pub cloud: Option<(PathBuf, String)>,
    /// Image and flavour of the canary there.
    pub canary: Option<(String, String)>,
}

impl Settings {
    /// Fit for a site that was sped up to take seconds.
    pub fn quick(ssh_program: &Path) -> Settings {
        Settings {
            ssh_program: ssh_program.to_owned(),
            max_out: 1,
            moves_at_once: 2,
            evacuate_deadline: "5min".to_owned(),
            install_deadline: "5min".to_owned(),
            rejoin_deadline: "5min".to_owned(),
            poll: "100ms".to_owned(),
            lease: "5s".to_owned(),
            slots: 16,
            more: String::new(),
            store: String::new(),
            cloud: None,
            canary: None,
        }
    }
}

impl Site {
    /// Serves `world` and writes what a daemon needs to reach it.
    pub async fn start(world: &Arc<World>) -> io::Result<Site> {
        // Short, as a unix socket's path may have 107 bytes.
        let folder = tempfile::Builder::new().prefix("site-").tempdir()?;
        let path = folder.path();
        for name in ["netboot", "state", "secrets"] {
            fs::create_dir(path.join(name))?;
        }
        let log = path.join("world.jsonl");
        world.log_to(&log)?;
        let servers = Servers::start(Arc::clone(world), &path.join("netboot")).await?;
        let site = Site { servers, log, folder };
        site.write_secrets(world)?;
        Ok(site)
    }

    /// Leaves the folder behind, with all that was logged, and says where it is.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the boot configurations of the nodes are.
    pub fn netboot(&self) -> PathBuf {
        self.folder().join("netboot")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder().join("api.sock")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder().join("state")
    }

    /// Writes the configuration to a file and returns its path.
    pub fn write_config(&self, world: &World, settings: &Settings) -> io::Result<PathBuf> {
        if world.has_setup_script() {
            self.write_setup_script(&settings.ssh_program)?;
        }
        let path = self.folder().join("config.toml");
        fs::write(&path, self.config_toml(world, settings))?;
        Ok(path)
    }

    /// A whole configuration of Turnaround for this site.
    pub fn config_toml(&self, world: &World, settings: &Settings) -> String {
        let at = |name: &str| self.folder().join(name).display().to_string();
        let Settings { ssh_program, max_out, moves_at_once, evacuate_deadline, .. } = settings;
        let Settings { install_deadline, rejoin_deadline, poll, lease, slots, more, store, .. } = settings;
        let simulated = || (self.folder().join("secrets/clouds.yaml"), CLOUD.to_owned());
        let (clouds, cloud) = settings.cloud.clone().unwrap_or_else(simulated);
        let mut toml = format!(
            r#"site = "simulated"
state_dir = "{state}"

[store]
{store}

[daemon]
socket = "{socket}"

[worker]
slots = {slots}
lease = "{lease}"

[openstack]
clouds_file = "{clouds}"
cloud = "{cloud}"
poll = "{poll}"

[netboot]
directory = "{netboot}"
url = "http://127.0.0.1/boot"

[ssh]
program = "{ssh}"
user = "{user}"
identity_file = "{identity}"
known_hosts = "{known_hosts}"
connect_timeout = "5s"

[node_os]
max_out = {max_out}
moves_at_once = {moves_at_once}
settle = "1s"
evacuate_deadline = "{evacuate_deadline}"
install_deadline = "{install_deadline}"
rejoin_deadline = "{rejoin_deadline}"
rejoin_settle = "1s"
poll = "{poll}"
"#,
            state = at("state"),
            socket = at("api.sock"),
            clouds = clouds.display(),
            netboot = at("netboot"),
            ssh = ssh_program.display(),
            user = self.servers.credentials.ssh.user,
            identity = at("secrets/identity"),
            known_hosts = at("known_hosts"),
        );
        for image in world.images() {
            let _ = write!(
                toml,
                r#"
[images."{name}"]
version = "{name}"
sha256 = "{sha256}"
os_version_id = "{os}"
kernel = "{kernel}"
boot_kernel = "{name}/vmlinuz"
boot_initrd = "{name}/initrd"
ironic_image = "http://127.0.0.1/images/{name}.raw"
"#,
                name = image.name,
                sha256 = image.sha256,
                os = image.os_version_id,
                kernel = image.kernel,
            );
        }
        for machine in world.machines() {
            if machine.ironic {
                let (node, host, mac) = (&machine.node, &machine.host, &machine.mac);
                let _ = write!(toml, "\n[nodes.\"{node}\"]\nnova_host = \"{host}\"\nmac = \"{mac}\"\nironic = {{}}\n");
                continue;
            }
            let login = &self.servers.credentials.bmcs[&machine.node];
            let _ = write!(
                toml,
                r#"
[nodes."{node}"]
nova_host = "{host}"
mac = "{mac}"
bmc = {{ protocol = "redfish", url = "{redfish}", system = "/redfish/v1/Systems/{node}", user = "{user}", password_file = "{password}" }}
"#,
                node = machine.node,
                host = machine.host,
                mac = machine.mac,
                redfish = self.servers.redfish_url,
                user = login.user,
                password = at(&format!("secrets/{}.password", machine.node)),
            );
        }
        if world.has_setup_script() {
            let _ = write!(toml, "\n[setup]\nprogram = \"{}\"\n{SETUP_ARGUMENTS}\n", at(SETUP_SCRIPT));
        }
        toml.push_str(&self.around_the_cloud(world));
        match &settings.canary {
            Some((image, flavor)) => drop(write!(toml, "\n[canary]\nimage = \"{image}\"\nflavor = \"{flavor}\"\n")),
            None => toml.push_str("\n[canary]\nimage = \"6d1f7a0e-8a4c-4a57-9f6e-0d3b2c1a4e55\"\nflavor = \"tiny\"\nconsole = \"login:\"\n"),
        }
        let _ = write!(toml, "\n[checks.gpus]\ncommand = \"{COUNT_GPUS}\"\nas_found = true\n");
        format!("{toml}\n{more}\n")
    }

    /// The tables for what alerts, and for the Kubernetes cluster if there is one.
    pub fn around_the_cloud(&self, world: &World) -> String {
        let Servers { alertmanager_url, kubernetes_url, .. } = &self.servers;
        let mut toml = format!("\n[silences]\nurl = \"{alertmanager_url}\"\nmatchers = ['instance=~\"{{node}}(:[0-9]+)?\"']\n");
        if world.has_cluster() {
            let token = self.folder().join("secrets/kubernetes.token");
            let (url, token) = (kubernetes_url, token.display());
            let _ = write!(toml, "\n[kubernetes]\nurl = \"{url}\"\ntoken_file = \"{token}\"\nmin_ready = \"{CLUSTER_MIN_READY}\"\n");
        }
        toml
    }

    /// The site's setup script: it tells the simulated site to do what a real one does.
    pub fn write_setup_script(&self, ssh_program: &Path) -> io::Result<()> {
        let (path, identity) = (self.folder().join(SETUP_SCRIPT), self.folder().join("secrets/identity"));
        let quoted = |path: &Path| format!("'{}'", path.display());
        fs::write(&path, format!("#!/bin/sh\nexec {} --setup {} \"$@\"\n", quoted(ssh_program), quoted(&identity)))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(PROGRAM_MODE))
    }

    fn write_secrets(&self, world: &World) -> io::Result<()> {
        let Servers { keystone_url, nodes_url, credentials, .. } = &self.servers;
        self.secret("clouds.yaml", &clouds_yaml(keystone_url, &credentials.admin))?;
        self.secret("identity", &format!("site-ssh {nodes_url} {}\n", credentials.ssh.password))?;
        self.secret("kubernetes.token", &format!("{}\n", credentials.kubernetes))?;
        for machine in world.machines() {
            let login = &credentials.bmcs[&machine.node];
            self.secret(&format!("{}.password", machine.node), &format!("{}\n", login.password))?;
        }
        // The operator's own list: every node's key as it is at the beginning.
        let keys = world.machines().into_iter().map(|machine| format!("{} {}\n", machine.node, host_key(&machine.node, None)));
        fs::write(self.folder().join("known_hosts"), keys.collect::<String>())
    }

    fn secret(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.folder().join("secrets").join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(SECRET_MODE))
    }
}

fn clouds_yaml(keystone_url: &str, login: &Login) -> String {
    format!(
        "clouds:\n  {CLOUD}:\n    region_name: RegionOne\n    auth:\n      auth_url: {keystone_url}/v3\n      \
         username: {}\n      password: {}\n      project_name: {ADMIN_PROJECT}\n      \
         user_domain_name: Default\n      project_domain_name: Default\n",
        login.user, login.password
    )
}
