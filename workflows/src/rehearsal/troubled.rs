//! Sites where things go wrong, made up from a seed: the same seed makes the same site.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::guest::VmState;
use super::plan::{
    ALWAYS, Api, Call, Happens, InstancePlan, LateRequest, Latencies, LostAnswer, MoveFault, MoveGoesWrong, NodeFaults, NodePlan, Outage, ScriptGoesWrong,
    SitePlan,
};
use crate::ports::{DiskHolds, Move};

/// In this time, from the beginning, others do what they do. A renewal takes about ten minutes.
const MEANWHILE_SECS: u64 = 45 * 60;

/// A request is late by less than the ten seconds after which workers take it for certain that Nova has not heard of it.
const LATE_MS: std::ops::Range<u64> = 500..9_500;
/// A slow BMC takes up to 5 s to cut the power, as workers have it; and each length is up to a tenth longer.
const RESET_MS: std::ops::Range<u64> = 500..4_500;
/// A loaded message queue takes so long until a host is chosen, or an instance shows on the one that was. A tenth longer is still shorter than the settle
/// time: 30 s in the seeds' orders, 60 s by default.
const SCHEDULE_MS: std::ops::Range<u64> = 1_000..20_000;

/// Nodes of a troubled site: enough for two to be out at once, and to find room elsewhere.
const NODES: std::ops::RangeInclusive<usize> = 4..=7;

impl SitePlan {
    /// A small site with everything that was ever seen to go wrong, each rarely enough that most goes well.
    pub fn troubled(seed: u64) -> SitePlan {
        let mut random = StdRng::seed_from_u64(seed);
        let nodes = random.random_range(NODES);
        let mut plan = SitePlan::uniform(nodes, 0);
        for index in 0..nodes {
            let name = plan.nodes[index].name.clone();
            plan.nodes[index].faults = node_faults(&mut random);
            if one_in(&mut random, 10) {
                plan.nodes[index].disabled = Some("broken fan, ask bob".to_owned());
            }
            for number in 0..random.random_range(0..5) {
                plan.instances.push(instance(&mut random, &name, number));
            }
        }
        for number in 0..random.random_range(0..4) {
            let happening = happening(&mut random, &plan, number);
            plan = plan.happens(Duration::from_secs(random.random_range(0..MEANWHILE_SECS)), happening);
        }
        calls(&mut random, &mut plan);
        if one_in(&mut random, 2) {
            let goes_wrong = setup(&mut random);
            plan = plan.with_setup(&goes_wrong).setup_takes(Duration::from_secs(random.random_range(10..600)));
            if let Some(setup) = plan.setup.as_mut().filter(|_| one_in(&mut random, 8)) {
                setup.fetch_goes_wrong = vec![pick(&mut random, &[ScriptGoesWrong::FailsMidway, ScriptGoesWrong::IsKilled])];
            }
        }
        // Last, so that a site without a cluster, or without Ironic, is what it would be without this.
        if one_in(&mut random, 2) {
            let names = ["k3s-1", "k3s-2", "k3s-3"];
            plan.instances.extend(names.iter().zip(&plan.nodes).map(|(name, node)| InstancePlan::new(name).on(&node.name)));
            plan = plan.with_cluster(&names);
        }
        if one_in(&mut random, 3) {
            plan = ironic(&mut random, plan);
        }
        if one_in(&mut random, 4) {
            plan = what_never_ends(&mut random, plan);
        }
        if one_in(&mut random, 8) {
            let index = random.random_range(0..plan.nodes.len());
            plan.nodes[index].faults.loses_devices = Some("VGPU".to_owned());
        }
        if one_in(&mut random, 6) {
            let index = random.random_range(0..plan.nodes.len());
            let faults = &mut plan.nodes[index].faults;
            if one_in(&mut random, 2) {
                faults.agent_stays_away = true;
            } else {
                faults.alert_once_installed = Some("DiskFailing".to_owned());
            }
            let index = random.random_range(0..plan.nodes.len());
            plan.nodes[index].alert = Some("FanSlow".to_owned());
        }
        if one_in(&mut random, 10) {
            let index = random.random_range(0..plan.nodes.len());
            plan.nodes[index].faults.flaps = random.random_range(1..4);
        }
        if one_in(&mut random, 6) {
            let index = random.random_range(0..plan.nodes.len());
            let faults = &mut plan.nodes[index].faults;
            if one_in(&mut random, 2) {
                faults.canary_fails = true;
            } else {
                faults.canary_does_not_boot = true;
            }
        }
        for _ in 0..random.random_range(0..3) {
            let calls = [Call::CreateCanary, Call::PutCanary, Call::StartCanary, Call::RemoveCanary];
            plan = plan.loses_answer(pick(&mut random, &calls), random.random_range(1..3));
        }
        if one_in(&mut random, 2) {
            plan = reports(&mut random, plan);
        }
        if one_in(&mut random, 6) {
            let index = random.random_range(0..plan.nodes.len());
            comes_back_other(&mut random, &mut plan.nodes[index].faults);
        }
        if one_in(&mut random, 3) {
            is_slow(&mut random, &mut plan.latencies);
        }
        if one_in(&mut random, 10) {
            plan = swapped_bmcs(&mut random, plan);
        }
        // (Where a node can't be asked, nobody sees it.)
        let is_heard = plan.faults.unavailable_percent == 0 && plan.faults.outages.iter().all(|outage| outage.api != Api::Ssh);
        if is_heard && one_in(&mut random, 2) {
            // Each with the address that it goes by: that BMC passes for its own.
            for node in &mut plan.nodes {
                node.faults.mac_of = node.faults.bmc_of.clone();
            }
        }
        if is_heard && one_in(&mut random, 10) {
            let node = pick(&mut random, &plan.nodes).name;
            if let Some(node) = plan.node(&node) {
                node.faults.unknown_guest = Some("0c9b0f6e-0000-4000-8000-00000000000d".to_owned());
            }
            plan = plan.happens(Duration::from_secs(random.random_range(0..MEANWHILE_SECS)), Happens::UnknownGuestStopped { node });
        }
        if one_in(&mut random, 4) {
            for _ in 0..random.random_range(1..4) {
                let by = Duration::from_millis(random.random_range(LATE_MS));
                plan.faults.late.push(LateRequest { call: Call::StartMove, nth: random.random_range(1..9), by });
            }
        }
        plan
    }
}

/// The configuration has mistaken one node's BMC for another one's, until somebody notices.
fn swapped_bmcs(random: &mut StdRng, mut plan: SitePlan) -> SitePlan {
    let (one, other) = (pick(random, &plan.nodes).name, pick(random, &plan.nodes).name);
    for (node, of) in [(&one, &other), (&other, &one)] {
        if let Some(node) = plan.node(node).filter(|_| one != other) {
            node.faults.bmc_of = Some(of.clone());
        }
    }
    let at = Duration::from_secs(random.random_range(0..MEANWHILE_SECS));
    plan.happens(at, Happens::BmcCorrected { node: one }).happens(at, Happens::BmcCorrected { node: other })
}

fn is_slow(random: &mut StdRng, latencies: &mut Latencies) {
    latencies.reset = Duration::from_millis(random.random_range(RESET_MS));
    latencies.schedule = Duration::from_millis(random.random_range(SCHEDULE_MS));
}

/// An installation that takes something of its node with it.
fn comes_back_other(random: &mut StdRng, faults: &mut NodeFaults) {
    let mut stock = NodePlan::usual_stock();
    match random.random_range(0..7) {
        0 => stock.disks = Some([("SYSTEM1", DiskHolds::System), ("DATA1", DiskHolds::System)].map(|(disk, holds)| (disk.to_owned(), holds)).into()),
        1 => stock.disks = None,
        2 => stock.kernel_parameters.clear(),
        3 => stock.vlans = Some(std::collections::BTreeSet::new()),
        4 => stock.clock_ahead_ms = 90_000,
        5 => stock.devices.clear(),
        _ => {
            faults.new_identity = true;
            return;
        }
    }
    faults.stock_once_installed = Some(stock);
}

/// Installers report, some of them more than once, some in vain, and some have nothing good to say.
fn reports(random: &mut StdRng, plan: SitePlan) -> SitePlan {
    let mut plan = plan.with_reports();
    for node in &mut plan.nodes {
        let mut sometimes = |chance: u32, times: &mut u32| {
            if one_in(random, chance) {
                *times = random.random_range(1..4);
            }
        };
        sometimes(5, &mut node.faults.reports_lost);
        sometimes(5, &mut node.faults.reports_repeated);
        sometimes(10, &mut node.faults.installer_gives_up);
        sometimes(10, &mut node.faults.installer_gives_up_and_restarts);
        if one_in(random, 6) {
            // Slower than an operator is patient with one that says nothing.
            node.install_time = Duration::from_secs(random.random_range(10..40) * 60);
        }
    }
    plan
}

fn one_in(random: &mut StdRng, chance: u32) -> bool {
    random.random_range(0..chance) == 0
}

fn pick<T: Clone>(random: &mut StdRng, of: &[T]) -> T {
    of[random.random_range(0..of.len())].clone()
}

fn node_faults(random: &mut StdRng) -> NodeFaults {
    let mut faults = NodeFaults::default();
    if !one_in(random, 3) {
        return faults;
    }
    let mut sometimes = |chance: u32, times: &mut u32| {
        if one_in(random, chance) {
            *times = if one_in(random, 4) { ALWAYS } else { random.random_range(1..3) };
        }
    };
    sometimes(8, &mut faults.loses_boot_override);
    sometimes(8, &mut faults.ignores_boot_override);
    sometimes(8, &mut faults.ignores_reset);
    sometimes(8, &mut faults.repeats_reset);
    sometimes(8, &mut faults.netboot_fails);
    sometimes(12, &mut faults.installer_hangs);
    sometimes(12, &mut faults.never_comes_back);
    sometimes(10, &mut faults.hypervisor_stays_away);
    if one_in(random, 10) {
        faults.wrong_kernel = Some("6.8.0-31-generic".to_owned());
    }
    if one_in(random, 15) {
        faults.wrong_hostname = Some("gpu-99".to_owned());
    }
    if one_in(random, 15) {
        faults.wrong_sha256 = Some("0".repeat(64));
    }
    if one_in(random, 15) {
        faults.loses_memory_mb = 32 * 1024;
    }
    faults
}

fn instance(random: &mut StdRng, node: &str, number: usize) -> InstancePlan {
    use VmState::{Active, Error, Paused, Resized, Stopped, Suspended};
    let movable = [Active, Active, Active, Active, Stopped, Stopped, Paused];
    let state = if one_in(random, 25) { pick(random, &[Resized, Error, Suspended]) } else { pick(random, &movable) };
    let mut instance = InstancePlan::new(&format!("{node}-{number}")).on(node).state(state);
    instance.project = format!("tenant-{}", random.random_range(0..3));
    if one_in(random, 10) {
        // `Hangs` is apart (`what_never_ends`): a node with one takes long, and hides what else may go wrong.
        let ways = [MoveGoesWrong::Refused, MoveGoesWrong::PreCheck, MoveGoesWrong::Midway];
        let times = if one_in(random, 8) { ALWAYS } else { random.random_range(1..4) };
        instance.fault = MoveFault::new(pick(random, &ways), times, "Migration pre-check error: CPU does not match.");
        if one_in(random, 2) {
            instance.fault.only = Some(Move::Live);
        }
    }
    if one_in(random, 12) {
        instance = instance.extra_spec("pci_passthrough:alias", "h100:1");
        if one_in(random, 2) {
            instance = instance.metadata("turnaround:move", pick(random, &["cold", "cold", "never"]));
        }
        if one_in(random, 4) {
            instance.fault = MoveFault::new(MoveGoesWrong::StaysOff, 1, "");
        }
    }
    instance
}

fn happening(random: &mut StdRng, plan: &SitePlan, number: usize) -> Happens {
    let node = pick(random, &plan.nodes).name;
    match random.random_range(0..6) {
        0 => Happens::InstanceCreated(InstancePlan::new(&format!("late-{number}")).on(&node)),
        1 => Happens::InstanceCreated(InstancePlan::new(&format!("late-{number}"))),
        2 if !plan.instances.is_empty() => Happens::InstanceDeleted { name: pick(random, &plan.instances).name },
        3 => Happens::ServiceDisabled { node, reason: "DIMM, ask carol".to_owned() },
        4 => Happens::NodeCrashes { node },
        _ => Happens::ServiceEnabled { node },
    }
}

/// Live migrations that never end, records of such that mean nothing, and tenants who change their flavours meanwhile.
fn what_never_ends(random: &mut StdRng, mut plan: SitePlan) -> SitePlan {
    for instance in &mut plan.instances {
        if one_in(random, 6) {
            instance.fault = MoveFault::new(MoveGoesWrong::Hangs, random.random_range(1..3), "").only(Move::Live);
        }
    }
    plan.latencies.live_at_once = random.random_range(1..4);
    for _ in 0..random.random_range(0..3) {
        let Some(name) = (!plan.instances.is_empty()).then(|| pick(random, &plan.instances).name) else { break };
        let node = pick(random, &plan.nodes).name;
        let at = Duration::from_secs(random.random_range(0..MEANWHILE_SECS));
        let happens = if one_in(random, 2) { Happens::InstanceResized { name } } else { Happens::RecordOrphaned { name, node } };
        plan = plan.happens(at, happens);
    }
    plan
}

/// Some of the nodes are renewed by Ironic, which has troubles of its own.
fn ironic(random: &mut StdRng, mut plan: SitePlan) -> SitePlan {
    let names: Vec<String> = plan.nodes.iter().map(|node| node.name.clone()).filter(|_| !one_in(random, 3)).collect();
    plan = plan.with_ironic(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for name in &names {
        let Some(node) = plan.node(name) else { continue };
        let mut sometimes = |chance: u32, times: &mut u32| {
            if one_in(random, chance) {
                *times = random.random_range(1..3);
            }
        };
        sometimes(6, &mut node.faults.rebuild_fails);
        sometimes(10, &mut node.faults.rebuild_hangs);
        sometimes(10, &mut node.faults.rebuild_keeps_old);
        if let Some(record) = node.ironic.as_mut().filter(|_| one_in(random, 15)) {
            record.tenant = Some("6f1c3f5e-0000-4000-8000-000000000001".to_owned());
        }
    }
    for _ in 0..random.random_range(0..3) {
        plan = plan.loses_answer(pick(random, &[Call::OrderRebuild, Call::Rebuild, Call::Protect]), random.random_range(1..4));
    }
    let after = |random: &mut StdRng| Duration::from_secs(random.random_range(0..MEANWHILE_SECS));
    if let Some(node) = names.first().filter(|_| one_in(random, 2)) {
        let (from, lasts) = (after(random), Duration::from_secs(random.random_range(1..600)));
        let maintenance = |reason: Option<&str>| Happens::MaintenanceSet { node: node.clone(), reason: reason.map(str::to_owned) };
        plan = plan.happens(from, maintenance(Some("DIMM, ask bob"))).happens(from + lasts, maintenance(None));
        plan = plan.happens(after(random), Happens::RecordLocked { node: node.clone(), lasts });
    }
    if one_in(random, 3) {
        let (from, lasts) = (after(random), Duration::from_secs(random.random_range(1..600)));
        plan.faults.outages.push(Outage { api: Api::Ironic, node: None, from, lasts });
    }
    plan
}

/// How the first runs of the setup script go.
fn setup(random: &mut StdRng) -> Vec<ScriptGoesWrong> {
    use ScriptGoesWrong::{DoesNothing, FailsAtTheEnd, FailsMidway, IsKilled};
    if !one_in(random, 3) {
        return Vec::new();
    }
    // Not `Hangs`: it keeps the bastion's lock until its deadline, and hides what else may go wrong.
    (0..random.random_range(1..3)).map(|_| pick(random, &[DoesNothing, FailsAtTheEnd, FailsMidway, IsKilled])).collect()
}

fn calls(random: &mut StdRng, plan: &mut SitePlan) {
    let all = [
        Call::Close,
        Call::Reopen,
        Call::StartMove,
        Call::StopMove,
        Call::Confirm,
        Call::NetbootNext,
        Call::Reset,
        Call::Stage,
        Call::Withdraw,
        Call::StartScript,
        Call::BeginSilence,
        Call::EndSilence,
        Call::Cordon,
        Call::Uncordon,
        Call::Evict,
    ];
    for _ in 0..random.random_range(0..5) {
        plan.faults.lost_answers.push(LostAnswer { call: pick(random, &all), nth: random.random_range(1..5) });
    }
    if one_in(random, 4) {
        plan.faults.lost_answer_percent = random.random_range(1..20);
    }
    if one_in(random, 4) {
        plan.faults.unavailable_percent = random.random_range(1..10);
    }
    for _ in 0..random.random_range(0..3) {
        let node = if one_in(random, 2) { Some(pick(random, &plan.nodes).name) } else { None };
        plan.faults.outages.push(Outage {
            api: pick(random, &[Api::Nova, Api::Bmc, Api::NetBoot, Api::Ssh, Api::Monitoring, Api::Kubernetes]),
            node,
            from: Duration::from_secs(random.random_range(0..MEANWHILE_SECS)),
            lasts: Duration::from_secs(random.random_range(1..600)),
        });
    }
}
