//! Everything that a campaign runs on: the simulated site, Redis, the wire to it, two daemons, workers.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use tokio::sync::Mutex;
use turnaround_workflows::clock::SystemClock;
use turnaround_workflows::history;
use turnaround_workflows::rehearsal::{CallFaults, InstancePlan, MoveFault, MoveGoesWrong, NodeFaults, SetupPlan, SitePlan, VmState, World};

use super::clock::SetClock;
use super::disk::SmallDisk;
use super::ledger::Ledger;
use super::wire::Wire;
use crate::harness::programs;
use crate::lab::{Processes, Programs};
use crate::site::{Settings, Site};

/// Time runs so much faster at the simulated site than at a real one: a node takes some seconds.
const SPED_UP: u32 = 90;
/// The setup script takes less than the half hour of a real one: one runs at a time, and all nodes wait for it.
const SETUP_TAKES: Duration = Duration::from_secs(60);
/// Of a hundred calls to the site that change something so many lose their answer, and of all calls so many find nobody.
const LOST_ANSWER_PERCENT: u32 = 2;
const UNAVAILABLE_PERCENT: u32 = 1;

/// The instances that are nodes of the Kubernetes cluster, on the nodes from this place on.
const CLUSTER: [&str; 3] = ["k3s-1", "k3s-2", "k3s-3"];
const CLUSTER_FROM: usize = 4;
/// The nodes that Ironic renews.
const BY_IRONIC: [&str; 4] = ["gpu-08", "gpu-12", "gpu-16", "gpu-20"];

/// How large a campaign is.
#[derive(Debug, Clone)]
pub struct Scale {
    pub nodes: u16,
    pub instances: u16,
    pub out: u16,
    pub workers: usize,
    pub slots: u16,
    /// In the configuration's own form.
    pub lease: &'static str,
    /// Every answer of the site takes so long.
    pub latency: Duration,
    /// How long an answer of Redis is waited for, in the configuration's own form.
    pub reply_timeout: &'static str,
    /// The programs are those beside this one, and are not built anew: somebody has built them with features.
    pub as_built: bool,
    /// The site has troubles of its own.
    pub troubled: bool,
    /// One BMC says yes to a reset and does nothing, which takes three minutes to find out.
    pub deaf_bmc: bool,
}

impl Default for Scale {
    fn default() -> Scale {
        // A Nova answers in some tens of milliseconds: long enough for a worker to be caught in the middle of a step.
        let latency = Duration::from_millis(40);
        Scale { nodes: 24, instances: 48, out: 8, workers: 4, slots: 16, lease: "2s", latency, reply_timeout: "1s", as_built: false, troubled: true, deaf_bmc: false }
    }
}

/// It all ends with this.
pub(super) struct Stage {
    pub seed: u64,
    pub out_max: u16,
    pub latency: Duration,
    pub world: Arc<World>,
    pub site: Site,
    pub processes: Mutex<Processes>,
    pub wire: Wire,
    /// None: no file system could be mounted here.
    pub disk: Option<SmallDisk>,
    /// None: there is no C compiler here.
    pub clock: Option<SetClock>,
    /// Orders and signals, and what was answered.
    pub orders: Ledger,
    /// Faults, and when each was mended.
    pub faults: Ledger,
    pub cli: PathBuf,
    /// Numbers the requests of everybody at every desk.
    pub requests: AtomicU32,
}

impl Stage {
    pub(super) async fn set(seed: u64, scale: &Scale) -> io::Result<Stage> {
        let programs = if scale.as_built { Programs::beside_this_one()? } else { programs().await? };
        let world = World::new(Arc::new(SystemClock), plan(scale), seed);
        let site = Site::start(&world).await?;
        site.servers.mishaps.slow_down(scale.latency);
        let folder = site.folder().to_owned();
        let history_folder = folder.join("history");
        std::fs::create_dir(&history_folder)?;
        let disk = SmallDisk::mount(&folder.join("redis")).await?;
        let wire = Wire::start(&folder.join("wire.sock"), &Processes::redis_socket(&folder))?;
        let settings = Settings {
            max_out: scale.out,
            lease: scale.lease.to_owned(),
            slots: scale.slots,
            store: format!("url = \"unix://{}\"\nreply_timeout = \"{}\"", folder.join("wire.sock").display(), scale.reply_timeout),
            ..Settings::quick(&programs.site_ssh)
        };
        let config = site.write_config(&world, &settings)?;
        let mut processes = Processes::new(programs.clone(), &folder, &config, scale.workers);
        processes.set_environment(history::FOLDER, &history_folder);
        let clock = SetClock::make(&folder).await?;
        if let Some(clock) = &clock {
            processes.set_redis_environment(&clock.environment());
        }
        processes.start_redis().await?;
        processes.start_what_is_missing()?;
        Ok(Stage {
            seed,
            out_max: scale.out,
            latency: scale.latency,
            orders: Ledger::create(&folder.join("orders.jsonl"))?,
            faults: Ledger::create(&folder.join("faults.jsonl"))?,
            processes: Mutex::new(processes),
            cli: programs.cli,
            requests: AtomicU32::new(0),
            world,
            site,
            wire,
            disk,
            clock,
        })
    }

    pub(super) fn folder(&self) -> &Path {
        self.site.folder()
    }

    /// The sockets of both daemons.
    pub(super) fn sockets(&self) -> [PathBuf; 2] {
        [self.folder().join("api.sock"), self.folder().join("api-2.sock")]
    }

    /// A connection to Redis past the wire. An error while Redis is away.
    pub(super) async fn redis(&self) -> io::Result<redis::aio::MultiplexedConnection> {
        /// Long enough for a busy machine, short enough that a hung Redis does not hold up the campaign.
        const PATIENCE: Duration = Duration::from_secs(1);
        let client = redis::Client::open(format!("unix://{}", Processes::redis_socket(self.folder()).display()));
        let config = redis::AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
        client.map_err(io::Error::other)?.get_multiplexed_async_connection_with_config(&config).await.map_err(io::Error::other)
    }

    /// Ends all processes; what they wrote stays until this is dropped.
    pub(super) async fn end(self) -> io::Result<Site> {
        let Stage { processes, site, disk, wire, .. } = self;
        processes.into_inner().end().await?;
        drop(wire);
        if let Some(disk) = disk {
            disk.unmount().await?;
        }
        Ok(site)
    }
}

/// Most instances are live, some are stopped or paused, some don't want to move at first; one node forgets its boot device, one
/// comes back with another kernel, one BMC says yes and does nothing.
fn plan(scale: &Scale) -> SitePlan {
    let mut plan = SitePlan::uniform(usize::from(scale.nodes), 0);
    for n in 0..scale.instances {
        let node = format!("gpu-{:02}", n % scale.nodes + 1);
        let state = match n % 8 {
            3 => VmState::Stopped,
            6 => VmState::Paused,
            _ => VmState::Active,
        };
        let mut instance = InstancePlan::new(&format!("vm-{n:03}")).on(&node).state(state);
        if scale.troubled && n % 6 == 5 {
            // Nova accepts and then finds out, or says no at once.
            let how = if n % 12 == 5 { MoveGoesWrong::PreCheck } else { MoveGoesWrong::Refused };
            instance = instance.fault(MoveFault::new(how, 1, "Migration pre-check error: CPU does not match."));
        }
        plan.instances.push(instance);
    }
    if scale.troubled {
        for (node, name) in plan.nodes.iter().skip(CLUSTER_FROM).zip(CLUSTER) {
            plan.instances.push(InstancePlan::new(name).on(&node.name));
        }
        plan = plan.with_cluster(&CLUSTER).with_ironic(&BY_IRONIC);
        let deaf = if scale.deaf_bmc { deaf() } else { NodeFaults::default() };
        for (node, faults) in [("gpu-02", forgetful()), ("gpu-03", wrong_kernel()), ("gpu-04", deaf)] {
            if let Some(node) = plan.node(node) {
                node.faults = faults;
            }
        }
        plan.faults = CallFaults {
            lost_answer_percent: LOST_ANSWER_PERCENT,
            unavailable_percent: UNAVAILABLE_PERCENT,
            ..CallFaults::default()
        };
    }
    plan.setup = Some(SetupPlan { takes: SETUP_TAKES, ..SetupPlan::default() });
    plan.sped_up(SPED_UP)
}

fn forgetful() -> NodeFaults {
    NodeFaults { netboot_fails: 1, ..Default::default() }
}

fn wrong_kernel() -> NodeFaults {
    NodeFaults { wrong_kernel: Some("6.8.0-31-generic".to_owned()), ..Default::default() }
}

fn deaf() -> NodeFaults {
    NodeFaults { ignores_reset: 1, ..Default::default() }
}
