//! What a simulated site is made of, and what goes wrong there: all of it data.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::guest::VmState;
use crate::ports::{DiskHolds, GroupRule, Move, NodeStock, PciDevice};

/// A command that every node of the simulated site knows.
pub const COUNT_GPUS: &str = "nvidia-smi -L | wc -l";

/// As a count of times: always.
pub const ALWAYS: u32 = u32::MAX;

/// A site as it is when the simulation begins, and what is going to happen to it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SitePlan {
    pub nodes: Vec<NodePlan>,
    pub instances: Vec<InstancePlan>,
    /// With names of instances for members.
    pub groups: Vec<GroupPlan>,
    /// What the PXE server can install.
    pub images: Vec<ImagePlan>,
    pub latencies: Latencies,
    /// What others do meanwhile: tenants, other operators, broken hardware.
    pub happenings: Vec<Happening>,
    pub faults: CallFaults,
    /// The site's setup script: a node that was installed is back in OpenStack only after it has run. None: images bring it.
    pub setup: Option<SetupPlan>,
    /// The Kubernetes cluster on the site's instances. None: there is none.
    pub cluster: Option<ClusterPlan>,
    /// Its Nova, drivers and devices are such that instances with devices move live.
    pub devices_move_live: bool,
    /// Orders say where installers report.
    pub installers_report: bool,
}

/// A server group.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupPlan {
    pub name: String,
    pub rule: GroupRule,
    pub members: Vec<String>,
}

/// A Kubernetes cluster whose nodes are instances.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterPlan {
    /// Names of instances: its nodes have the same.
    pub nodes: Vec<String>,
    /// Those of them that somebody has cordoned.
    pub cordoned: Vec<String>,
    /// Those of them that are never Ready.
    pub ill: Vec<String>,
    /// Those of them that are not Ready on any other host than their first.
    pub ill_once_moved: Vec<String>,
    pub pods: Vec<PodPlan>,
    /// PodDisruptionBudgets: of this application at least so many pods stay ready.
    pub budgets: BTreeMap<String, usize>,
    /// From a pod's eviction to its end.
    pub pod_ends: Duration,
    /// From a pod's start until it is ready.
    pub pod_starts: Duration,
}

impl Default for ClusterPlan {
    fn default() -> Self {
        ClusterPlan {
            nodes: Vec::new(),
            cordoned: Vec::new(),
            ill: Vec::new(),
            ill_once_moved: Vec::new(),
            pods: Vec::new(),
            budgets: BTreeMap::new(),
            pod_ends: Duration::from_secs(6),
            pod_starts: Duration::from_secs(8),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodPlan {
    pub name: String,
    pub app: String,
    pub node: String,
    pub kind: PodKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodKind {
    /// A controller starts another one for it elsewhere.
    Replica,
    /// Of a DaemonSet: it belongs to its node.
    Daemon,
    /// Nobody starts it again.
    Alone,
}

/// The site's setup script.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct SetupPlan {
    /// From its start to its end.
    pub takes: Duration,
    /// How its first runs for nodes go wrong, one after the other; all later ones go right.
    pub goes_wrong: Vec<ScriptGoesWrong>,
    /// The same for runs that are about the PXE server.
    pub fetch_goes_wrong: Vec<ScriptGoesWrong>,
}

impl Default for SetupPlan {
    fn default() -> Self {
        SetupPlan { takes: Duration::from_secs(30 * 60), goes_wrong: Vec::new(), fetch_goes_wrong: Vec::new() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScriptGoesWrong {
    /// It ends with 0 and has done nothing.
    DoesNothing,
    /// It has done everything and ends with 1.
    FailsAtTheEnd,
    /// It ends with 2 in the middle; Ansible says so of the node.
    FailsMidway,
    /// It never ends.
    Hangs,
    /// It is killed in the middle, and leaves no exit code.
    IsKilled,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct NodePlan {
    pub name: String,
    /// The name under which Nova knows it, where that is another one.
    pub nova_host: Option<String>,
    /// What it calls itself before it is installed; None: `name`.
    pub hostname: Option<String>,
    /// The interface that netboots. Derived from the node's place in the plan where it is empty.
    pub mac: String,
    pub vcpus: u32,
    pub memory_mb: u64,
    /// Of Placement. None: Placement says nothing of its disk.
    pub disk_gb: Option<u64>,
    /// The availability zone of which an aggregate makes it a part.
    pub zone: Option<String>,
    /// By resource class of Placement.
    pub devices: BTreeMap<String, u64>,
    /// Of Placement.
    pub traits: Vec<String>,
    /// From the choice of the disk as boot device until SSH answers.
    pub boot_time: Duration,
    /// From netboot until the image is on the disk.
    pub install_time: Duration,
    pub os_version_id: String,
    pub kernel: String,
    /// What it writes when it is asked to run these commands; it has no others.
    pub answers: BTreeMap<String, String>,
    /// What of it is to stay as it is, and its clock.
    pub stock: NodeStock,
    /// Its compute service is disabled when the simulation begins, with this reason.
    pub disabled: Option<String>,
    /// An alert of this name fires about it all the time.
    pub alert: Option<String>,
    /// What Ironic has on record of it. None: Ironic does not know it.
    pub ironic: Option<RecordPlan>,
    pub faults: NodeFaults,
}

/// What is special about a node as Ironic has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordPlan {
    /// It is in maintenance, for this reason.
    pub maintenance: Option<String>,
    pub protected: bool,
    /// The instance whose machine it is: a tenant has it as bare metal.
    pub tenant: Option<String>,
}

impl Default for NodePlan {
    fn default() -> Self {
        NodePlan {
            name: String::new(),
            nova_host: None,
            hostname: None,
            mac: String::new(),
            vcpus: 64,
            memory_mb: 512 * 1024,
            disk_gb: None,
            zone: None,
            devices: ["VGPU", "PGPU", "PCI_DEVICE"].map(|class| (class.to_owned(), 16)).into(),
            traits: Vec::new(),
            boot_time: Duration::from_secs(60),
            install_time: Duration::from_secs(240),
            os_version_id: "22.04".to_owned(),
            kernel: "5.15.0-119-generic".to_owned(),
            answers: BTreeMap::from([(COUNT_GPUS.to_owned(), "8".to_owned())]),
            stock: NodePlan::usual_stock(),
            disabled: None,
            alert: None,
            ironic: None,
            faults: NodeFaults::default(),
        }
    }
}

impl NodePlan {
    pub fn new(name: &str) -> NodePlan {
        NodePlan { name: name.to_owned(), ..NodePlan::default() }
    }

    /// A system disk, one with data, an IOMMU for guests' devices, one VLAN.
    pub fn usual_stock() -> NodeStock {
        NodeStock {
            clock_ahead_ms: 0,
            devices: [("0000:17:00.0".to_owned(), PciDevice { id: "10de:2330".to_owned(), driver: Some("vfio-pci".to_owned()), lanes: 16 })].into(),
            virtual_functions: [("15b3:101e".to_owned(), 8)].into(),
            disks: Some(BTreeMap::from([
                ("SYSTEM1".to_owned(), DiskHolds::System),
                ("DATA1".to_owned(), DiskHolds::Data("LVM2_member 5xcrGD-2Jyo-PhCX".to_owned())),
            ])),
            kernel_parameters: BTreeSet::from(["intel_iommu=on".to_owned()]),
            vlans: Some(BTreeSet::from(["bond0.100: VLAN 100 on bond0".to_owned()])),
        }
    }

    pub fn disabled(mut self, reason: &str) -> NodePlan {
        self.disabled = Some(reason.to_owned());
        self
    }

    pub fn size(mut self, vcpus: u32, memory_mb: u64) -> NodePlan {
        (self.vcpus, self.memory_mb) = (vcpus, memory_mb);
        self
    }

    pub fn faults(mut self, faults: NodeFaults) -> NodePlan {
        self.faults = faults;
        self
    }
}

/// What is wrong with a node or its BMC. Numbers say how many times it happens before it goes right.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeFaults {
    /// A virtual machine of this UUID runs there, and Nova has never heard of it; until [`Happens::UnknownGuestStopped`], or the system stops.
    pub unknown_guest: Option<String>,
    /// The BMC that the configuration has for it is that node's, until [`Happens::BmcCorrected`].
    pub bmc_of: Option<String>,
    /// The MAC address that the configuration has for it is that node's, until [`Happens::BmcCorrected`].
    pub mac_of: Option<String>,
    /// By its own word it has none of its network interfaces that netboot, and these.
    pub tells_macs: Option<Vec<String>>,
    /// What its BMC tells of its network interfaces, where that is not the one that netboots.
    pub bmc_tells: Option<Vec<String>>,
    /// The BMC takes the boot override, reads it back rightly, and has forgotten it when the node boots.
    pub loses_boot_override: u32,
    /// The BMC says yes to the boot override and does not take it.
    pub ignores_boot_override: u32,
    /// The BMC says yes to a reset and does nothing.
    pub ignores_reset: u32,
    /// The BMC carries a reset out twice, some seconds apart.
    pub repeats_reset: u32,
    /// The netboot times out and the firmware goes on to the disk: the old system comes up.
    pub netboot_fails: u32,
    /// The installer starts and never ends.
    pub installer_hangs: u32,
    /// The installer gives up, says why where somebody listens, and the node waits for somebody to look at its console.
    pub installer_gives_up: u32,
    /// The same, and it restarts: the old system comes up.
    pub installer_gives_up_and_restarts: u32,
    /// Of so many installations no report gets through.
    pub reports_lost: u32,
    /// Each report is sent so many times more.
    pub reports_repeated: u32,
    /// The image is written and the node is never heard of again.
    pub never_comes_back: u32,
    /// After an installation another kernel runs than the image has.
    pub wrong_kernel: Option<String>,
    /// After an installation it says that this is its name.
    pub wrong_hostname: Option<String>,
    /// What was written is not what the ticket said: the installer reports this digest.
    pub wrong_sha256: Option<String>,
    /// The node comes up after a boot, its compute service does not.
    pub hypervisor_stays_away: u32,
    /// What it writes from its installation on in place of its plan's answers: short of a GPU, for instance.
    pub answers_after_installation: BTreeMap<String, String>,
    /// What it has from its installation on, in place of what its plan says.
    pub stock_once_installed: Option<NodeStock>,
    /// Until its installation its command for what it has says more than is read.
    pub stock_too_long: bool,
    /// Ironic's rebuild ends as `deploy failed`.
    pub rebuild_fails: u32,
    /// It never ends.
    pub rebuild_hangs: u32,
    /// It ends well, and nothing was written: the old system comes up.
    pub rebuild_keeps_old: u32,
    /// It ends well, and its configdrive was not heeded: no installation mark, and a host key that nobody knows.
    pub rebuild_unmarked: u32,
    /// A proxy repeats the request for a rebuild: it is accepted, and the answer is that to the second one.
    pub rebuild_repeated: u32,
    /// After an installation its compute service is another one to Nova, of the same name.
    pub new_identity: bool,
    /// Devices of this resource class are gone after an installation: its driver is, or a card.
    pub loses_devices: Option<String>,
    /// Memory that the hypervisor does not offer any more after an installation.
    pub loses_memory_mb: u64,
    /// So many times its compute service is silent again half a minute after it has come back, and is back once more after some minutes.
    pub flaps: u32,
    /// Its network agent does not report after an installation.
    pub agent_stays_away: bool,
    /// An alert of this name fires about it from an installation on.
    pub alert_once_installed: Option<String>,
    /// Nothing that is moved onto it by force gets through the pre-check.
    pub canary_fails: bool,
    /// An instance that is stopped there can't be started again.
    pub canary_does_not_boot: bool,
    /// None is stopped there: it goes on running.
    pub canary_does_not_stop: bool,
    /// Nobody there hears that an instance is to be started.
    pub canary_start_is_not_heard: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct InstancePlan {
    pub name: String,
    pub project: String,
    /// The node it is on. None: wherever the scheduler puts it.
    pub node: Option<String>,
    pub vcpus: u32,
    pub memory_mb: u64,
    /// On its host's own disk; 0 where it is on volumes.
    pub disk_gb: u64,
    /// The availability zone that it was asked to be in.
    pub zone: Option<String>,
    /// `binding:vnic_type` of each port of its that has a device of the host.
    pub device_ports: Vec<String>,
    pub vm_state: VmState,
    pub locked: bool,
    /// Of its flavour.
    pub extra_specs: BTreeMap<String, String>,
    /// The name of its flavour; derived from its processors where it is empty.
    pub flavor: String,
    /// By resource class: what else it has by Placement, of which its flavour says nothing.
    pub holds: BTreeMap<String, u64>,
    /// Its owner's.
    pub metadata: BTreeMap<String, String>,
    pub fault: MoveFault,
}

impl Default for InstancePlan {
    fn default() -> Self {
        InstancePlan {
            name: String::new(),
            project: "tenant-a".to_owned(),
            node: None,
            vcpus: 4,
            memory_mb: 8 * 1024,
            disk_gb: 0,
            zone: None,
            device_ports: Vec::new(),
            vm_state: VmState::Active,
            locked: false,
            extra_specs: BTreeMap::new(),
            flavor: String::new(),
            holds: BTreeMap::new(),
            metadata: BTreeMap::new(),
            fault: MoveFault::default(),
        }
    }
}

impl InstancePlan {
    pub fn new(name: &str) -> InstancePlan {
        InstancePlan { name: name.to_owned(), ..InstancePlan::default() }
    }

    pub fn on(mut self, node: &str) -> InstancePlan {
        self.node = Some(node.to_owned());
        self
    }

    pub fn state(mut self, vm_state: VmState) -> InstancePlan {
        self.vm_state = vm_state;
        self
    }

    pub fn size(mut self, vcpus: u32, memory_mb: u64) -> InstancePlan {
        (self.vcpus, self.memory_mb) = (vcpus, memory_mb);
        self
    }

    pub fn extra_spec(mut self, key: &str, value: &str) -> InstancePlan {
        self.extra_specs.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn metadata(mut self, key: &str, value: &str) -> InstancePlan {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn fault(mut self, fault: MoveFault) -> InstancePlan {
        self.fault = fault;
        self
    }
}

/// How moving an instance goes wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MoveFault {
    /// Only moves of this kind are concerned; None: every move.
    pub only: Option<Move>,
    /// How many moves go wrong before one goes right.
    pub times: u32,
    pub how: MoveGoesWrong,
    /// In Nova's words.
    pub reason: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveGoesWrong {
    /// Nova says no to the request itself.
    Refused,
    /// Nova breaks on the request: HTTP 500, and nothing has begun.
    Breaks,
    /// Nova's policy does not let the caller name a host; without one all is well.
    HostNotToBeNamed,
    /// Nova accepts, and finds out before anything has moved.
    #[default]
    PreCheck,
    /// In the middle of it. A cold migration leaves the instance in `error`.
    Midway,
    /// It runs for ever.
    Hangs,
    /// It runs for ever, and Nova's policy does not let the caller stop it.
    HangsAndIsNotStopped,
    /// The host forgets it in the middle: the instance stays where it is, and its record is never over.
    IsForgotten,
    /// A cold migration of a running instance ends well, and the instance doesn't run.
    StaysOff,
}

impl MoveFault {
    pub fn new(how: MoveGoesWrong, times: u32, reason: &str) -> MoveFault {
        MoveFault { only: None, times, how, reason: reason.to_owned() }
    }

    pub fn only(mut self, kind: Move) -> MoveFault {
        self.only = Some(kind);
        self
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePlan {
    pub name: String,
    pub sha256: String,
    pub os_version_id: String,
    pub kernel: String,
}

impl ImagePlan {
    /// An image whose digest is made up from its name.
    pub fn new(name: &str, os_version_id: &str, kernel: &str) -> ImagePlan {
        use sha2::Digest;
        let sha256 = sha2::Sha256::digest(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        ImagePlan { name: name.to_owned(), sha256, os_version_id: os_version_id.to_owned(), kernel: kernel.to_owned() }
    }
}

/// How long things take. Defaults are what was measured on a real Nova and usual servers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Latencies {
    /// From the acceptance of a move, or of a new instance, to the scheduler's choice.
    pub schedule: Duration,
    /// From the request for a new instance until it is active.
    pub build: Duration,
    pub live_migration: Duration,
    /// An instance is ACTIVE on its new host for this long while its migration still says `running`.
    pub live_settle: Duration,
    pub cold_migration: Duration,
    pub confirm: Duration,
    /// Live migrations that one host sends at a time. Nova's default is 1.
    pub live_at_once: usize,
    /// From the BMC's yes to a reset until something happens.
    pub reset: Duration,
    /// How long the power is away.
    pub power_cycle: Duration,
    /// Between the two resets of a BMC that repeats them.
    pub reset_repeated: Duration,
    /// The firmware's self-test, before it chooses a boot device.
    pub firmware: Duration,
    /// From SSH answers until the compute service has reported.
    pub rejoin: Duration,
    pub service_down_time: Duration,
    /// From the return of a node's compute service until the alert about its absence ends.
    pub alert_ends: Duration,
    /// How long Nova waits for a host that does not answer (`rpc_response_timeout`).
    pub rpc_timeout: Duration,
    /// Every length is up to this much longer, by the seed.
    pub jitter_percent: u32,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies {
            schedule: Duration::from_secs(1),
            build: Duration::from_secs(8),
            live_migration: Duration::from_secs(12),
            live_settle: Duration::from_secs(5),
            cold_migration: Duration::from_secs(16),
            confirm: Duration::from_secs(5),
            live_at_once: 1,
            reset: Duration::from_millis(1500),
            power_cycle: Duration::from_secs(5),
            reset_repeated: Duration::from_secs(10),
            firmware: Duration::from_secs(45),
            rejoin: Duration::from_secs(20),
            service_down_time: Duration::from_secs(60),
            alert_ends: Duration::from_secs(60),
            rpc_timeout: Duration::from_secs(60),
            jitter_percent: 10,
        }
    }
}

/// Something that others do, `after` the simulation began.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Happening {
    pub after: Duration,
    pub what: Happens,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happens {
    /// A tenant wants one more. Its host is chosen at once, and shows some moments later.
    InstanceCreated(InstancePlan),
    /// A tenant deletes it.
    InstanceDeleted {
        name: String,
    },
    /// Its owner writes metadata to it.
    MetadataSet {
        name: String,
        key: String,
        value: String,
    },
    /// A tenant changes its flavour: it comes up on another host, and waits there for the tenant's word.
    InstanceResized {
        name: String,
    },
    /// Nova is left with a live migration of it from that node which nobody carries out and which never ends, as where two requests have crossed.
    RecordOrphaned {
        name: String,
        node: String,
    },
    ServiceDisabled {
        node: String,
        reason: String,
    },
    ServiceEnabled {
        node: String,
    },
    /// Somebody cordons a node of the Kubernetes cluster, or uncordons it.
    ClusterNodeCordoned {
        name: String,
    },
    ClusterNodeUncordoned {
        name: String,
    },
    /// Somebody works on Ironic's record of it for so long.
    RecordLocked {
        node: String,
        lasts: Duration,
    },
    /// Somebody puts it into maintenance, or out of it.
    MaintenanceSet {
        node: String,
        reason: Option<String>,
    },
    /// The node's system stops for good; its power stays on.
    NodeCrashes {
        node: String,
    },
    UnknownGuestStopped {
        node: String,
    },
    /// The configuration has the node's own BMC from now on.
    BmcCorrected {
        node: String,
    },
}

/// What goes wrong between the site and those who ask it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallFaults {
    /// The effect takes place, its answer is lost.
    pub lost_answers: Vec<LostAnswer>,
    /// Nobody answers, and the effect takes place later.
    pub late: Vec<LateRequest>,
    /// This many of a hundred answers to calls that change something are lost, by the seed.
    pub lost_answer_percent: u32,
    /// Times in which an API does not answer.
    pub outages: Vec<Outage>,
    /// This many of a hundred calls of any kind find nobody, by the seed.
    pub unavailable_percent: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostAnswer {
    pub call: Call,
    /// Which of these calls, over the whole site, counted from 1.
    pub nth: u32,
}

/// A request that is still on its way when whoever made it gives it up, as where a proxy has kept it. It is carried out as far as it can be then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateRequest {
    /// Only requests to move instances come late: [`Call::StartMove`] and [`Call::PutCanary`].
    pub call: Call,
    /// Which of these calls, over the whole site, counted from 1.
    pub nth: u32,
    /// So long after it was made.
    pub by: Duration,
}

/// A call that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    Close,
    Reopen,
    StartMove,
    StopMove,
    Confirm,
    NetbootNext,
    Reset,
    Stage,
    Withdraw,
    StartScript,
    BeginSilence,
    EndSilence,
    Cordon,
    Uncordon,
    Evict,
    OrderRebuild,
    Protect,
    Rebuild,
    CreateCanary,
    PutCanary,
    StopCanary,
    StartCanary,
    RemoveCanary,
}

/// Who can be asked something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    Nova,
    Bmc,
    NetBoot,
    Ssh,
    /// What alerts.
    Monitoring,
    Kubernetes,
    Ironic,
    /// Of Nova's API only `os-server-groups`, as where a cell does not answer.
    ServerGroups,
    /// Not silent: Nova answers, and permits us nothing, as where a role was taken away.
    NovaPolicy,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    pub api: Api,
    /// Only for this node; None: for all.
    pub node: Option<String>,
    /// When it begins, counted from the beginning of the simulation.
    pub from: Duration,
    pub lasts: Duration,
}

impl SitePlan {
    /// Nodes `gpu-01`, `gpu-02`, ... with active instances `gpu-01-a`, `gpu-01-b`, ... on each, and one image,
    /// `node-26.1.1`, that none of them runs yet.
    pub fn uniform(nodes: usize, instances_each: usize) -> SitePlan {
        let names: Vec<String> = (1..=nodes).map(|n| format!("gpu-{n:02}")).collect();
        let letter = |n: usize| char::from(b'a' + u8::try_from(n % 26).unwrap_or(0));
        let instance = |node: &String, n: usize| {
            let round = if n < 26 { String::new() } else { (n / 26).to_string() };
            InstancePlan::new(&format!("{node}-{}{round}", letter(n))).on(node)
        };
        SitePlan {
            instances: names.iter().flat_map(|node| (0..instances_each).map(move |n| instance(node, n))).collect(),
            nodes: names.iter().map(|name| NodePlan::new(name)).collect(),
            images: vec![ImagePlan::new("node-26.1.1", "24.04", "6.8.0-60-generic")],
            ..SitePlan::default()
        }
    }

    pub fn node(&mut self, name: &str) -> Option<&mut NodePlan> {
        self.nodes.iter_mut().find(|node| node.name == name)
    }

    pub fn instance(&mut self, name: &str) -> Option<&mut InstancePlan> {
        self.instances.iter_mut().find(|instance| instance.name == name)
    }

    /// The same site, where a node is back in OpenStack only after the setup script has run for it.
    pub fn with_setup(mut self, goes_wrong: &[ScriptGoesWrong]) -> SitePlan {
        self.setup = Some(SetupPlan { goes_wrong: goes_wrong.to_vec(), ..SetupPlan::default() });
        self
    }

    /// The same site with a Kubernetes cluster of these instances, which are there, and an application with a pod on each; all but one of
    /// them have to be ready.
    pub fn with_cluster(mut self, nodes: &[&str]) -> SitePlan {
        let pod = |node: &str, app: &str, kind| PodPlan { name: format!("{app}-on-{node}"), app: app.to_owned(), node: node.to_owned(), kind };
        self.cluster = Some(ClusterPlan {
            nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
            pods: nodes.iter().flat_map(|node| [pod(node, "console", PodKind::Replica), pod(node, "exporter", PodKind::Daemon)]).collect(),
            budgets: BTreeMap::from([("console".to_owned(), nodes.len().saturating_sub(1))]),
            ..ClusterPlan::default()
        });
        self
    }

    /// The same site, where orders say where installers report.
    pub fn with_reports(mut self) -> SitePlan {
        self.installers_report = true;
        self
    }

    /// The same site, where Ironic knows these nodes, and renews them.
    pub fn with_ironic(mut self, nodes: &[&str]) -> SitePlan {
        for node in self.nodes.iter_mut().filter(|node| nodes.contains(&node.name.as_str())) {
            node.ironic = Some(RecordPlan::default());
        }
        self
    }

    /// The setup script, where there is one, takes so long.
    pub fn setup_takes(mut self, takes: Duration) -> SitePlan {
        if let Some(setup) = &mut self.setup {
            setup.takes = takes;
        }
        self
    }

    pub fn happens(mut self, after: Duration, what: Happens) -> SitePlan {
        self.happenings.push(Happening { after, what });
        self
    }

    pub fn loses_answer(mut self, call: Call, nth: u32) -> SitePlan {
        self.faults.lost_answers.push(LostAnswer { call, nth });
        self
    }

    pub fn comes_late(mut self, call: Call, nth: u32, by: Duration) -> SitePlan {
        self.faults.late.push(LateRequest { call, nth, by });
        self
    }

    /// The same site, where everything takes `times` less long: for a lab on the wall clock.
    pub fn sped_up(mut self, times: u32) -> SitePlan {
        let times = times.max(1);
        let latencies = &mut self.latencies;
        let lengths = [
            &mut latencies.schedule,
            &mut latencies.build,
            &mut latencies.live_migration,
            &mut latencies.live_settle,
            &mut latencies.cold_migration,
            &mut latencies.confirm,
            &mut latencies.reset,
            &mut latencies.power_cycle,
            &mut latencies.reset_repeated,
            &mut latencies.firmware,
            &mut latencies.rejoin,
            &mut latencies.service_down_time,
            &mut latencies.alert_ends,
            &mut latencies.rpc_timeout,
        ];
        let setup = self.setup.iter_mut().map(|setup| &mut setup.takes);
        let pods = self.cluster.iter_mut().flat_map(|cluster| [&mut cluster.pod_ends, &mut cluster.pod_starts]);
        let nodes = self.nodes.iter_mut().flat_map(|node| [&mut node.boot_time, &mut node.install_time]);
        let happenings = self.happenings.iter_mut().map(|happening| &mut happening.after);
        let outages = self.faults.outages.iter_mut().flat_map(|outage| [&mut outage.from, &mut outage.lasts]);
        let late = self.faults.late.iter_mut().map(|late| &mut late.by);
        for length in lengths.into_iter().chain(setup).chain(pods).chain(nodes).chain(happenings).chain(outages).chain(late) {
            *length /= times;
        }
        self
    }
}
