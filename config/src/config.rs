//! What is meant: the checked configuration, which the rest of the program works with.
//!
//! A [`Config`] can only be had from [`crate::check()`], after the whole file was found good.
//! Nothing in here is optional because somebody forgot it: defaults have been filled in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::names::{CheckName, ImageName, MoveRuleName, NodeName, ScheduleName};
use crate::schedule::Schedule;
use crate::secret::Secret;

/// Everything one site's daemon and workers are told by their operator.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of this cloud, as operators call it. Shown in `status`, traces and notes left in Nova.
    pub site: String,
    /// Where the daemon keeps what must outlive it: the private Redis, archives.
    pub state_dir: PathBuf,
    pub store: Store,
    pub daemon: Daemon,
    pub worker: Worker,
    pub openstack: OpenStack,
    /// None: Ironic renews every node.
    pub netboot: Option<NetBoot>,
    pub ssh: Ssh,
    pub ipmi: Ipmi,
    pub ironic: Ironic,
    /// The site's own setup script. None: images bring all that a node needs.
    pub setup: Option<Setup>,
    /// Where alerts about a node are silenced while it is renewed. None: nowhere.
    pub silences: Option<Silences>,
    /// The cluster that runs as instances on this cloud. None: there is none, or it looks after itself.
    pub kubernetes: Option<Kubernetes>,
    /// The instance that is run on a renewed node before it is given back. None: none.
    pub canary: Option<Canary>,
    pub node_os: NodeOs,
    /// How certain instances are moved, by name.
    pub moves: BTreeMap<MoveRuleName, MoveRule>,
    /// What is checked on a node before it is given back, by name.
    pub checks: BTreeMap<CheckName, Check>,
    /// The images that nodes can be renewed to, by name.
    pub images: BTreeMap<ImageName, NodeImage>,
    /// The nodes under management. A node that is not in here is never touched.
    pub nodes: BTreeMap<NodeName, Node>,
    pub schedules: BTreeMap<ScheduleName, Schedule>,
    pub telemetry: Telemetry,
}

impl Config {
    /// The folder with one folder for each run of the setup script.
    pub fn scripts_dir(&self) -> PathBuf {
        self.state_dir.join("scripts")
    }
}

/// Where workflows are kept.
#[derive(Debug, Clone)]
pub struct Store {
    pub redis: Redis,
    /// Accept a Redis that may lose acknowledged writes. Shown in `status` for as long as it is set.
    pub accept_weaker_durability: bool,
    /// How long the store waits for one reply before it asks again.
    pub reply_timeout: Duration,
    /// How long a finished workflow stays in Redis.
    pub keep_finished: Duration,
}

#[derive(Debug, Clone)]
pub enum Redis {
    /// The daemon supervises a private `redis-server` (or `valkey-server`) in `state_dir/redis`,
    /// reachable only over its unix socket `state_dir/redis/redis.sock`.
    Embedded {
        /// The program to run, looked up in `PATH` where it is a bare name.
        program: PathBuf,
    },
    /// `redis://`, `rediss://`, or `redis+unix://` (`unix://`).
    Url {
        url: String,
        /// Sent by AUTH; never part of `url`.
        password: Option<Secret>,
    },
    /// The primary that Redis Sentinel names, asked for anew whenever a connection is opened.
    Sentinel {
        /// `HOST:PORT` of each Sentinel. One that answers is enough.
        nodes: Vec<String>,
        /// The name under which they know it.
        primary: String,
        /// Sent to the primary by AUTH.
        password: Option<Secret>,
    },
}

#[derive(Debug, Clone)]
pub struct Daemon {
    /// The unix socket of the HTTP API. Its permissions are 0660.
    pub socket: PathBuf,
    /// Users that may change things, by name, besides root and the daemon's own user.
    /// Whoever can open the socket may read.
    pub operators: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Worker {
    /// Workflows that one worker process advances at the same time.
    pub slots: u16,
    /// How long a worker may be silent before its workflows go to another one.
    pub lease: Duration,
}

/// How to reach Keystone and Nova. The credentials stay in `clouds.yaml`.
#[derive(Debug, Clone)]
pub struct OpenStack {
    pub clouds_file: PathBuf,
    pub cloud: String,
    /// Time limit of one request.
    pub request_timeout: Duration,
    /// How often a running migration is looked at.
    pub poll: Duration,
}

/// Where the PXE server takes each node's boot configuration from.
#[derive(Debug, Clone)]
pub struct NetBoot {
    /// Folder with one GRUB configuration per node (`<mac>.cfg`), as served by the PXE server.
    pub directory: PathBuf,
    /// URL prefix under which the PXE server offers kernel, initrd and image files. `http`: GRUB has no TLS.
    pub url: String,
    /// None: nobody listens to installers.
    pub reports: Option<InstallerReports>,
}

/// Where installers say how far they are.
#[derive(Debug, Clone)]
pub struct InstallerReports {
    /// Where the daemon listens.
    pub listen: SocketAddr,
    /// The same as nodes have it.
    pub url: String,
}

#[derive(Debug, Clone)]
pub struct Ssh {
    /// The OpenSSH client, or a program that takes the same arguments.
    pub program: PathBuf,
    pub user: String,
    pub identity_file: Option<PathBuf>,
    /// The operator's list of host keys. It is only read: keys of nodes that we installed are kept in `state_dir/known_hosts`.
    pub known_hosts: PathBuf,
    pub connect_timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct Ipmi {
    /// The `ipmitool` program.
    pub program: PathBuf,
    pub request_timeout: Duration,
}

/// How to reach Ironic, for the nodes that it renews.
#[derive(Debug, Clone)]
pub struct Ironic {
    /// Of an Ironic that asks for no credentials. None: where the catalogue of `openstack.cloud` says.
    pub url: Option<String>,
    /// A JSON file with the site's own `meta_data`, `network_data` and `user_data` for a rebuilt node; `{node}` stands for the node's name.
    /// None: a node is given nothing but its name and our mark.
    pub configdrive: Option<String>,
}

/// The site's own setup script (Midokura: `platform-setup.sh`), which puts OpenStack back on a node that was wiped.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program, by its absolute path.
    pub program: PathBuf,
    /// Where it is run.
    pub directory: PathBuf,
    /// Given to it as `VAULT_PASSWORD`.
    pub vault_password: Option<Secret>,
    /// Its arguments to put what nodes boot from the network on the PXE server. Empty: that is somebody else's.
    pub fetch: Vec<String>,
    /// As `deploy_deadline`.
    pub fetch_deadline: Duration,
    /// Its arguments for one node; `{node}` stands for the node's name.
    pub deploy: Vec<String>,
    /// A run that has not ended after this long becomes a question to the operator. It goes on meanwhile.
    pub deploy_deadline: Duration,
}

/// An Alertmanager, or a Grafana's own, which has the same API.
#[derive(Debug, Clone)]
pub struct Silences {
    /// What stands before `/api/v2/silences`.
    pub url: String,
    /// Sent as a bearer token.
    pub token: Option<Secret>,
    /// A PEM file with the certificate authority of its host. Without it the system's are used.
    pub ca_file: Option<PathBuf>,
    /// Which alerts are about a node: all of these hold.
    pub matchers: Vec<Matcher>,
    /// A silence ends by itself after this long.
    pub lasts: Duration,
    /// A renewed node about which an alert fires that did not fire before is given back only on an operator's word.
    pub alert_gate: bool,
}

/// One condition on the labels of an alert, as Alertmanager has it: `instance=~"{node}(:[0-9]+)?"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matcher {
    /// Name of the label.
    pub name: String,
    /// `{node}` stands for the node's name.
    pub value: String,
    /// `=~` or `!~`: the value is a regular expression, for the whole of the label.
    pub is_regex: bool,
    /// `=` or `=~`: not negated.
    pub is_equal: bool,
}

/// A Kubernetes cluster (K3s) whose nodes are instances on this cloud: each is drained before its instance moves.
#[derive(Debug, Clone)]
pub struct Kubernetes {
    /// Of its API server.
    pub url: String,
    /// Of a service account, sent as a bearer token.
    pub token: Secret,
    /// A PEM file with the cluster's certificate authority. Without it the system's are used.
    pub ca_file: Option<PathBuf>,
    /// Time limit of one request.
    pub request_timeout: Duration,
    /// Until an operator is asked about what is left on a node that is drained.
    pub drain_deadline: Duration,
    /// What a node that was moved says of itself is believed after so long.
    pub min_ready: Duration,
}

/// A small instance that has to start on a renewed node.
#[derive(Debug, Clone)]
pub struct Canary {
    /// Its id in Glance.
    pub image: String,
    /// Its id in Nova. One that asks for no device, and no host of its own.
    pub flavor: String,
    /// Its id in Neutron. None: it has no network.
    pub network: Option<String>,
    /// What its console must say after its start on the node. None: nothing.
    pub console: Option<String>,
    /// Until an operator is asked about it.
    pub deadline: Duration,
}

/// Rules for renewing node operating systems.
#[derive(Debug, Clone)]
pub struct NodeOs {
    /// At most this many nodes are out of service at once, for whatever rollout.
    pub max_out: u16,
    /// Instances of one node that are moved at the same time.
    pub moves_at_once: u16,
    pub pinned: Pinned,
    /// Owners of instances that only they can have moved are waited for so long, before an operator is asked.
    pub owner_wait: Duration,
    /// How long after a node was closed an instance may turn up on it whose place was chosen before.
    pub settle: Duration,
    /// A node that is not empty after this long becomes a question to the operator.
    pub evacuate_deadline: Duration,
    /// A node that has not reported its installation after this long becomes a question.
    pub install_deadline: Duration,
    /// Where installers report: a node whose installer has not said anything after this long becomes a question.
    pub installer_deadline: Duration,
    /// A node whose hypervisor is not back in Nova after this long becomes a question.
    pub rejoin_deadline: Duration,
    /// A node is given back once its compute service has reported for so long without a break.
    pub rejoin_settle: Duration,
    /// What a renewed node is compared in with how it was found.
    pub compare: BTreeSet<Compared>,
    /// How often a node that is being installed or verified is looked at.
    pub poll: Duration,
}

/// What is done with a running instance that can't be moved live, because of what its flavour gives it. Its owner can say otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pinned {
    /// An operator is asked.
    #[default]
    Ask,
    /// It is moved cold: stopped, moved, and started again.
    Cold,
}

/// How the site has certain instances moved off a node. What an owner says of an instance counts more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRule {
    /// Of flavours with such a name: patterns, in which `*` stands for any characters. Empty: of any.
    pub flavors: Vec<String>,
    /// Of projects with such an id: patterns likewise. Empty: of any.
    pub projects: Vec<String>,
    pub how: MoveHow,
}

/// The most careful first: where several rules are about an instance, that one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveHow {
    /// Not without an operator.
    Ask,
    /// Live, also what has something that is known to keep an instance from that.
    Live,
    /// Stopped, moved, and started again.
    Cold,
}

/// What of a renewed node is compared, without a check of the site's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compared {
    /// With the clock of the host of the worker.
    Clock,
    /// The disks that the system was not on, with what they held.
    DataDisks,
    /// Graphics cards, accelerators and network cards, what drives them, and their lanes.
    PciDevices,
    /// Words of the kernel's command line for devices, memory and processors of guests.
    KernelParameters,
    /// VLAN interfaces.
    Vlans,
}

impl Compared {
    pub const ALL: [Compared; 5] = [Compared::Clock, Compared::DataDisks, Compared::PciDevices, Compared::KernelParameters, Compared::Vlans];

    /// Its word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Compared::Clock => "clock",
            Compared::DataDisks => "data-disks",
            Compared::PciDevices => "pci-devices",
            Compared::KernelParameters => "kernel-parameters",
            Compared::Vlans => "vlans",
        }
    }
}

/// A command that only looks, and what it must say on a renewed node.
#[derive(Debug, Clone)]
pub struct Check {
    /// For the login shell of the node.
    pub command: String,
    pub expect: Expect,
    /// On which nodes it is run. Empty: on all of them.
    pub nodes: BTreeSet<NodeName>,
    pub time_limit: Duration,
}

/// What counts as well. An exit code of 0 is always wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Whatever it writes.
    Success,
    /// It writes this, blanks at both ends aside.
    Output(String),
    /// It writes what it wrote before the node was emptied.
    AsFound,
}

#[derive(Debug, Clone)]
pub struct NodeImage {
    /// Version as the release notes give it, for people.
    pub version: String,
    /// SHA-256 of the image file, 64 lower-case hex digits. The installed node reports it.
    pub sha256: String,
    /// `VERSION_ID` of the node's `/etc/os-release` once installed, e.g. `24.04`.
    pub os_version_id: String,
    /// `uname -r` of the node once installed.
    pub kernel: String,
    /// How our own installer of it is booted. None: only Ironic can write it.
    pub boot: Option<BootFiles>,
    /// The same system as Ironic writes it. None: no node can be renewed to it by Ironic.
    pub ironic: Option<IronicImage>,
}

#[derive(Debug, Clone)]
pub struct BootFiles {
    /// Path of the installer's kernel below the netboot URL.
    pub kernel: String,
    /// Path of the installer's initrd below the netboot URL.
    pub initrd: String,
    /// Further words for the installer's kernel command line.
    pub arguments: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IronicImage {
    /// A URL: Ironic's `image_source`. (Of an image in Glance it takes Glance's own digest, and not the one that is ordered.)
    pub source: String,
    /// SHA-256 of that file. Ironic checks it before it writes, and the node reports it.
    pub sha256: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Compute,
}

/// A part of the platform that its own updates need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carries {
    /// Instances of the management cluster. They can be moved, and other nodes come first.
    Management,
    /// The container registry, in an instance. As with the management cluster.
    Registry,
    /// The PXE server: a node can't be installed from itself.
    Netboot,
    /// This program or its Redis: who would see it to its end?
    Turnaround,
}

impl Carries {
    pub const WORDS: [(&str, Carries); 4] =
        [("management", Carries::Management), ("registry", Carries::Registry), ("netboot", Carries::Netboot), ("turnaround", Carries::Turnaround)];

    /// No node that carries this can be renewed by us.
    pub fn keeps_from_renewal(self) -> bool {
        matches!(self, Carries::Netboot | Carries::Turnaround)
    }
}

#[derive(Debug, Clone)]
pub struct Node {
    pub role: Role,
    /// The host name under which Nova knows it (`OS-EXT-SRV-ATTR:host`). Usually the node's own name.
    pub nova_host: String,
    /// Name or address for SSH.
    pub ssh_address: String,
    /// What of the platform itself runs on it.
    pub carries: BTreeSet<Carries>,
    pub renewed_by: RenewedBy,
}

/// Who installs a node anew.
#[derive(Debug, Clone)]
pub enum RenewedBy {
    /// We do: its BMC has it boot our installer from the network.
    Netboot {
        /// MAC address of the interface that netboots: `aa:bb:cc:dd:ee:ff`, lower case.
        mac: String,
        bmc: Bmc,
    },
    /// Ironic does.
    Ironic {
        /// Ironic's name or UUID of it.
        node: String,
        /// MAC address of a port that Ironic must have for it: a name alone would not tell it from another machine.
        mac: String,
    },
}

impl Node {
    /// Is it renewed by Ironic?
    pub fn is_ironics(&self) -> bool {
        matches!(self.renewed_by, RenewedBy::Ironic { .. })
    }

    /// Of the interface that netboots: `aa:bb:cc:dd:ee:ff`, lower case.
    pub fn mac(&self) -> &str {
        match &self.renewed_by {
            RenewedBy::Netboot { mac, bmc: _ } | RenewedBy::Ironic { node: _, mac } => mac,
        }
    }
}

#[derive(Debug, Clone)]
pub enum Bmc {
    Redfish {
        /// URL of the service root's host, e.g. `https://172.20.0.11`.
        url: String,
        /// Path of the system resource, e.g. `/redfish/v1/Systems/1`.
        system: String,
        user: String,
        password: Secret,
        /// A PEM file with the certificate authority of this BMC. Without it the system's are used.
        ca_file: Option<PathBuf>,
    },
    Ipmi {
        /// Host name or address.
        address: String,
        /// UDP port, usually 623.
        port: u16,
        user: String,
        password: Secret,
        /// ipmitool's `-C`: the cipher suite.
        cipher_suite: u8,
    },
}

#[derive(Debug, Clone)]
pub struct Telemetry {
    /// OTLP endpoint, e.g. `http://127.0.0.1:4317`. None: nothing is exported.
    pub endpoint: Option<String>,
    pub protocol: OtlpProtocol,
    /// Filter of what is logged to standard error, in `tracing-subscriber`'s form, e.g. `info`.
    pub log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    Grpc,
    Http,
}
