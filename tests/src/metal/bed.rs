//! One real machine under Turnaround: the simulated cloud, a PXE server, the machine with its BMC, Redis, the daemon and a worker.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::process::Child;
use turnaround_daemon::wire::WorkflowView;
use turnaround_workflows::clock::SystemClock;
use turnaround_workflows::rehearsal::{SitePlan, World};

use super::bmc::{Bmc, Protocol};
use super::images::{Identity, Kernel, Lived, NodeImage, installer, node_image, pxe_folder, run};
use super::machine::{FIRMWARE, Hardware, Machine, Order};
use crate::harness::{self, Client, programs, until_within};
use crate::lab::{Processes, Programs};
use crate::servers::Login;
use crate::site::Site;

/// The node that is renewed.
pub const NODE: &str = "gpu-01";
/// What it is renewed to, and how the image is called in the configuration.
pub const IMAGE: &str = "v2";
/// Nodes of the simulated cloud: the instance of ours has somewhere to go.
const NODES: usize = 3;
/// The simulated cloud is so much faster than a real one.
const SPED_UP: u32 = 60;
/// A state that is waited for comes within this time. A netboot with its installation takes half a minute, and
/// two minutes were seen beside three compilers.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often it is looked at. A step is caught in the act, and none is shorter than ten of these.
const POLL: Duration = Duration::from_millis(20);
/// A step that speaks to the node takes at least this long, so that it can be caught in the act, in seconds.
const SSH_TAKES: &str = "0.3";
/// After a power cycle by IPMI its caller waits so long, so that it can be killed between the effect and the answer, in seconds.
// ipmi_sim leaves the power off for one.
const ANSWER_LATE: u32 = 3;
/// The setup script takes this long, in seconds.
const SCRIPT_TAKES: u32 = 2;
/// Lines of the machine's console that a failure shows.
const CONSOLE_LINES: usize = 25;

/// What has to be installed: a file, and the Debian package that it is in.
const PACKAGES: [(&str, &str); 13] = [
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    (FIRMWARE, "ovmf"),
    ("/usr/bin/grub-mkimage", "grub-common"),
    ("/usr/lib/grub/x86_64-efi/linux.mod", "grub-efi-amd64-bin"),
    ("/bin/busybox", "busybox-static"),
    ("/usr/sbin/dropbear", "dropbear-bin"),
    ("/usr/bin/mcopy", "mtools"),
    ("/usr/sbin/mkfs.vfat", "dosfstools"),
    ("/usr/sbin/mke2fs", "e2fsprogs"),
    ("/usr/bin/ipmi_sim", "openipmi"),
    ("/usr/include/OpenIPMI/mcserv.h", "libopenipmi-dev"),
    ("/usr/bin/ipmitool", "ipmitool"),
    ("/usr/bin/ssh", "openssh-client"),
];

/// The two kernels of a bed, from `<target>/metal/kernels`, where `.ci/metal-kernels` puts them.
fn kernels() -> io::Result<Vec<Kernel>> {
    let programs = Programs::beside_this_one()?;
    let target = programs.worker.parent().and_then(Path::parent).unwrap_or(Path::new("target")).to_owned();
    Ok(Kernel::all_in(&target.join("metal/kernels")))
}

/// What has to be done before a bed can be had, as one line; None if nothing.
pub fn missing() -> Option<String> {
    let packages: Vec<&str> = PACKAGES.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package).collect();
    let few_kernels = kernels().is_ok_and(|kernels| kernels.len() < 2);
    match (packages.is_empty(), few_kernels) {
        (true, false) => None,
        (true, true) => Some("run `.ci/metal-kernels`, which downloads two Debian kernels".to_owned()),
        (false, _) => Some(format!("apt-get install {}, and run `.ci/metal-kernels`", packages.join(" "))),
    }
}

/// Everything, with the machine on and up in version 1.
pub struct Bed {
    pub site: Site,
    pub world: Arc<World>,
    pub processes: Processes,
    pub machine: Arc<Machine>,
    pub client: Client,
    /// What is ordered.
    pub image: NodeImage,
    born: tokio::time::Instant,
    folder: PathBuf,
    programs: Programs,
    bmc: Bmc,
    boot_server: BootServer,
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the machine's newest words:\n{}\n---", self.machine.last_said(CONSOLE_LINES));
            if let Some(why) = self.machine.broken() {
                eprintln!("{why}");
            }
        }
    }
}

impl Bed {
    pub async fn start(protocol: Protocol) -> io::Result<Bed> {
        let born = tokio::time::Instant::now();
        let programs = programs().await?;
        // Two instances on each node; one on each of the first two is a node of the Kubernetes cluster.
        let plan = SitePlan::uniform(NODES, 2).with_cluster(&["gpu-01-a", "gpu-02-a"]).sped_up(SPED_UP);
        let world = World::new(Arc::new(SystemClock), plan, 1);
        let site = Site::start(&world).await?;
        let folder = site.folder().to_owned();
        let ssh_port = free_port()?;
        let (image, disk) = images(&folder, ssh_port)?;
        let random = rand::rng().random::<u32>();
        let hardware = Hardware {
            disk,
            pxe: folder.join("pxe"),
            mac: format!("52:54:00:{:02x}:{:02x}:{:02x}", random >> 16 & 0xff, random >> 8 & 0xff, random & 0xff),
            uuid: format!("{random:08x}-0000-4000-8000-{random:012x}"),
            ssh_port,
            serial: folder.join("serial.log"),
            boot_flags: folder.join("boot-flags"),
        };
        let machine = Arc::new(Machine::new(hardware.clone()));
        machine.order(Order::On);
        let login = Login { user: "turnaround".to_owned(), password: format!("bmc-{random}") };
        let mishaps = &site.servers.mishaps;
        let bmc = Bmc::start(protocol, NODE, &machine, &login, mishaps, &folder.join("bmc"), &hardware.boot_flags).await?;
        let boot_server = BootServer::new(folder.clone())?;
        fs::write(folder.join("bmc.password"), &login.password)?;
        owner_only(&folder.join("bmc.password"))?;
        program(&folder.join("ssh"), &format!("#!/bin/sh\nsleep {SSH_TAKES}\nexec ssh -p {ssh_port} \"$@\"\n"))?;
        let late = format!("case \"$*\" in *\"power cycle\") sleep {ANSWER_LATE} ;; esac");
        program(&folder.join("ipmitool"), &format!("#!/bin/sh\nipmitool \"$@\"\ncode=$?\n{late}\nexit $code\n"))?;
        program(&folder.join("platform-setup.sh"), &setup_script())?;
        fs::write(folder.join("config.toml"), config(&folder, &image, &hardware.mac, &boot_server.url(), free_port()?, &bmc) + &site.around_the_cloud(&world))?;
        let processes = Processes::new(programs.clone(), &folder, &folder.join("config.toml"), 1);
        let client = Client::new(&site.socket())?;
        let mut bed = Bed { site, world, processes, machine, client, image, born, folder, programs, bmc, boot_server };
        bed.processes.start_redis().await?;
        bed.processes.start_daemon()?;
        bed.client.until_up().await?;
        bed.processes.start_worker(0)?;
        bed.until("the node to be up in version 1", async |bed| bed.machine.said().contains("node: \"1\" is up").then_some(())).await?;
        Ok(bed)
    }

    /// Waits until `found` finds something.
    pub async fn until<T>(&self, what: &str, mut found: impl AsyncFnMut(&Bed) -> Option<T>) -> io::Result<T> {
        until_within(PATIENCE, POLL, what, async || {
            assert_eq!(self.machine.broken(), None);
            found(self).await
        })
        .await
    }

    /// What the command `turnaround` prints.
    pub async fn turnaround(&self, arguments: &[&str]) -> io::Result<String> {
        harness::turnaround(&self.programs.cli, &self.site.socket(), arguments).await
    }

    /// Orders the renewal; the id of the node's own workflow.
    pub async fn renew(&self) -> io::Result<String> {
        let answer = self.turnaround(&["--json", "node", "renew", NODE, "--image", IMAGE, "--yes"]).await?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let rollout = answer["id"].as_str().ok_or_else(|| io::Error::other(format!("no id in the answer: {answer}")))?;
        Ok(format!("{rollout}.{NODE}"))
    }

    /// What the daemon says of a workflow; None while it does not.
    pub async fn show(&self, id: &str) -> Option<WorkflowView> {
        self.client.get(&format!("/v1/workflows/{id}")).await.ok()
    }

    /// What a person on the node sees: the text of a file, read by SSH with no host key asked for.
    pub async fn on_the_node(&self, command: &str) -> io::Result<String> {
        let (program, identity) = (self.folder.join("ssh"), self.folder.join("id"));
        let mut ssh = tokio::process::Command::new(program);
        ssh.args(["-F", "none", "-T", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-l", "root", "-i"])
            .arg(identity)
            .args(["127.0.0.1", command]);
        let output = ssh.output().await?;
        if output.status.success() {
            return String::from_utf8(output.stdout).map_err(io::Error::other);
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// The server of what is booted goes down: it refuses connections.
    pub async fn stop_boot_server(&mut self) -> io::Result<()> {
        self.boot_server.stop().await
    }

    pub fn start_boot_server(&mut self) -> io::Result<()> {
        self.boot_server.start()
    }

    /// The file with the image that the PXE server offers.
    pub fn offered(&self) -> PathBuf {
        self.folder.join("boot").join(IMAGE).join("node.img")
    }

    /// A disk of version 1 with the mark of an earlier installation of the very image that is ordered, by `token`.
    pub fn old_disk(&self, token: &str) -> io::Result<PathBuf> {
        let mark = format!("{{\"token\": \"{token}\", \"sha256\": \"{}\"}}\n", self.image.sha256);
        let lived = Lived { host_key: Some(self.folder.join("host-key")), mark: Some(mark) };
        let kernel = kernels()?.into_iter().next().ok_or_else(|| io::Error::other("there is no kernel"))?;
        let path = self.folder.join("old.img");
        node_image(&kernel, "1", &who(&self.folder)?, &lived, &path)?;
        Ok(path)
    }

    /// Since its start was begun.
    pub fn age(&self) -> Duration {
        self.born.elapsed()
    }

    /// Leaves the folder behind and says where.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn bmc(&self) -> &Bmc {
        &self.bmc
    }

    /// Ends everything.
    pub async fn end(mut self) -> io::Result<()> {
        let none = Processes::new(self.programs.clone(), &self.folder, &self.folder.join("config.toml"), 0);
        std::mem::replace(&mut self.processes, none).end().await
    }
}

/// Makes all that is booted; what is ordered, and the machine's disk of version 1.
fn images(folder: &Path, ssh_port: u16) -> io::Result<(NodeImage, PathBuf)> {
    let kernels = kernels()?;
    let [.., old, new] = kernels.as_slice() else { return Err(io::Error::other("there are no two kernels")) };
    pxe_folder(&folder.join("pxe"))?;
    let boot = folder.join("boot").join(IMAGE);
    installer(new, &boot)?;
    let identity = folder.join("id");
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "turnaround", "-f"]).arg(&identity))?;
    let host_key = folder.join("host-key");
    let made = Command::new("dropbearkey").args(["-t", "ed25519", "-f"]).arg(&host_key).output()?;
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    let public = said.lines().find(|line| line.starts_with("ssh-ed25519 ")).ok_or_else(|| io::Error::other("no host key was made"))?;
    fs::write(folder.join("known_hosts"), format!("[127.0.0.1]:{ssh_port} {public}\n"))?;
    let who = who(folder)?;
    let image = node_image(new, "2", &who, &Lived::default(), &boot.join("node.img"))?;
    let disk = folder.join("disk.img");
    node_image(old, "1", &who, &Lived { host_key: Some(host_key), mark: None }, &disk)?;
    Ok((image, disk))
}

fn who(folder: &Path) -> io::Result<Identity> {
    let key = fs::read_to_string(folder.join("id.pub"))?.trim().to_owned();
    Ok(Identity { hostname: NODE.to_owned(), authorized_key: key })
}

fn setup_script() -> String {
    format!(
        "#!/bin/sh\n# Stands in for the site's setup script: it takes its time, and has nothing to do.\nsleep {SCRIPT_TAKES}\n\
         echo 'PLAY RECAP *********'\necho '{NODE} : ok=1 changed=1 unreachable=0 failed=0 skipped=0'\n"
    )
}

fn config(folder: &Path, image: &NodeImage, mac: &str, images_url: &str, reports: u16, bmc: &Bmc) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    let NodeImage { version, kernel, sha256, .. } = image;
    format!(
        r#"site = "metal"
state_dir = "{state}"

[store]
url = "unix://{redis}"
reply_timeout = "1s"

[daemon]
socket = "{socket}"

[worker]
lease = "2s"

[openstack]
clouds_file = "{clouds}"
cloud = "site"
poll = "300ms"

[netboot]
directory = "{nodes}"
url = "{images_url}/boot"
reports_listen = "127.0.0.1:{reports}"
reports_url = "http://10.0.2.2:{reports}"

[ssh]
program = "{ssh}"
user = "root"
identity_file = "{identity}"
known_hosts = "{known_hosts}"
connect_timeout = "5s"

[ipmi]
program = "{ipmitool}"

[setup]
program = "{setup}"
deploy = ["--limit", "{{node}}"]

[node_os]
settle = "1s"
install_deadline = "10min"
rejoin_deadline = "2min"
rejoin_settle = "1s"
# (Its system is busybox alone, which has neither `lsblk` nor such an `ip`.)
compare = ["clock", "pci-devices", "kernel-parameters"]
poll = "1s"

[checks.board]
command = "cat /sys/class/dmi/id/product_uuid"
as_found = true

[images.{IMAGE}]
version = "{version}"
sha256 = "{sha256}"
os_version_id = "{version}"
kernel = "{kernel}"
boot_kernel = "{IMAGE}/vmlinuz"
boot_initrd = "{IMAGE}/initrd"
boot_arguments = "console=ttyS0 quiet image={images_url}/boot/{IMAGE}/node.img"

[nodes.{NODE}]
mac = "{mac}"
ssh_address = "127.0.0.1"

[nodes.{NODE}.bmc]
{bmc}
password_file = "{password}"
"#,
        state = at("state"),
        redis = Processes::redis_socket(folder).display(),
        socket = at("api.sock"),
        clouds = at("secrets/clouds.yaml"),
        nodes = at("pxe/nodes"),
        ssh = at("ssh"),
        identity = at("id"),
        known_hosts = at("known_hosts"),
        ipmitool = at("ipmitool"),
        setup = at("platform-setup.sh"),
        bmc = bmc.config,
        password = at("bmc.password"),
    )
}

/// What serves the files that are booted, by HTTP.
// Not by hyper: its header names are in lower case, and GRUB 2.06 knows no `content-length`: it then waits for a timeout.
struct BootServer {
    folder: PathBuf,
    port: u16,
    /// None while it is down.
    httpd: Option<Child>,
}

impl BootServer {
    fn new(folder: PathBuf) -> io::Result<BootServer> {
        let mut server = BootServer { folder, port: free_port()?, httpd: None };
        server.start()?;
        Ok(server)
    }

    /// Its URL as the machine has it, where this host is 10.0.2.2.
    fn url(&self) -> String {
        format!("http://10.0.2.2:{}", self.port)
    }

    fn start(&mut self) -> io::Result<()> {
        let mut httpd = tokio::process::Command::new("busybox");
        httpd.args(["httpd", "-f", "-p", &format!("127.0.0.1:{}", self.port), "-h"]).arg(&self.folder);
        self.httpd = Some(httpd.stdin(Stdio::null()).kill_on_drop(true).spawn()?);
        Ok(())
    }

    async fn stop(&mut self) -> io::Result<()> {
        match self.httpd.take() {
            Some(mut httpd) => httpd.kill().await,
            None => Ok(()),
        }
    }
}

/// A port on loopback that was free a moment ago.
fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn program(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn owner_only(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}
