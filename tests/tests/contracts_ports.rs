//! What the ports promise, held against the simulated site itself and against the real adapters over its servers.
//!
//! Because a fake that is kinder than the real thing proves nothing: the same checks run on both. Time is turned by hand.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use turnaround_config::NodeName;
use turnaround_tests::harness::until;
use turnaround_tests::site::{Settings, Site};
use turnaround_workflows::clock::{HandClock, Timestamp};
use turnaround_workflows::ports::*;
use turnaround_workflows::rehearsal::*;

/// 2026-03-01.
const START: Timestamp = Timestamp::from_millis(1_772_323_200_000);

/// A node that is under management, and that Nova has never heard of.
fn ghost(secrets: &Path) -> String {
    let password = secrets.join("ghost.password");
    std::fs::write(&password, "boo\n").unwrap();
    std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
    let bmc = r#"protocol = "redfish", url = "http://127.0.0.1:9", user = "nobody""#;
    format!(
        "[nodes.ghost]\nmac = \"02:00:00:00:00:99\"\nbmc = {{ {bmc}, password_file = \"{}\" }}\n",
        password.display()
    )
}

/// What a contract is held against.
#[derive(Clone, Copy)]
enum On {
    World,
    Adapters,
}

/// One site, and the ports to it.
struct Bench {
    clock: Arc<HandClock>,
    world: Arc<World>,
    ports: Ports,
    site: Option<Site>,
}

impl On {
    async fn site(self, plan: SitePlan) -> Bench {
        let clock = Arc::new(HandClock::at(START));
        let world = World::new(clock.clone(), plan, 1);
        match self {
            On::World => Bench { ports: world.ports(), clock, world, site: None },
            On::Adapters => {
                let site = Site::start(&world).await.unwrap();
                let mut settings = Settings::quick(Path::new(env!("CARGO_BIN_EXE_site-ssh")));
                settings.more = ghost(&site.folder().join("secrets"));
                if world.has_setup_script() {
                    site.write_setup_script(&settings.ssh_program).unwrap();
                }
                let text = site.config_toml(&world, &settings);
                let config =
                    turnaround_config::check_text("config.toml", &text).unwrap_or_else(|report| panic!("{report}"));
                let ports = turnaround_worker::adapters::connect(&config).unwrap_or_else(|error| panic!("{error}"));
                Bench { clock, world, ports, site: Some(site) }
            }
        }
    }
}

impl Bench {
    /// Lets time pass, event by event, until `reached`.
    fn until(&self, what: &str, reached: impl Fn(&SiteSnapshot) -> bool) {
        while !reached(&self.world.snapshot()) {
            let next = self.world.next_event();
            self.clock.advance_to(next.unwrap_or_else(|| panic!("nothing happens any more, and not yet: {what}")));
        }
    }

    fn settle(&self) {
        while let Some(next) = self.world.next_event() {
            self.clock.advance_to(next);
        }
    }

    fn id(&self, name: &str) -> InstanceId {
        InstanceId(self.world.snapshot().instance(name).unwrap().id.clone())
    }

    async fn instance(&self, name: &str) -> Instance {
        self.ports.instances.get(&self.id(name)).await.unwrap().unwrap()
    }

    async fn start_move(&self, name: &str, how: Move) -> Result<MoveStarted, PortError> {
        self.ports.instances.start_move(&self.id(name), how, None).await
    }

    async fn newest_migration(&self, name: &str) -> Migration {
        self.ports.instances.migrations(&self.id(name)).await.unwrap().remove(0)
    }

    async fn moving(&self, name: &str) -> Vec<Migration> {
        self.ports.instances.moving(&node(name)).await.unwrap()
    }

    async fn renew(&self, name: &str, token: &str) {
        let ticket = self.ticket(token);
        self.ports.netboot.stage(&node(name), &ticket).await.unwrap();
        self.ports.bmc.netboot_next(&node(name)).await.unwrap();
        self.ports.bmc.reset(&node(name)).await.unwrap();
    }

    fn ticket(&self, token: &str) -> BootTicket {
        let image = self.world.images().remove(0);
        BootTicket { token: Token(token.to_owned()), image: image.name.parse().unwrap(), sha256: image.sha256, report: None }
    }

    fn happened(&self, wanted: impl Fn(&Happened) -> bool) -> usize {
        self.world.events().iter().filter(|event| wanted(&event.what)).count()
    }
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn reason(error: &PortError) -> &str {
    match &error.kind {
        PortErrorKind::Refused { reason } => reason,
        other => panic!("not refused but {other:?}: {error}"),
    }
}

/// Makes two tests of every contract.
macro_rules! contracts {
    ($($name:ident),* $(,)?) => {
        mod the_world {
            $(#[tokio::test] async fn $name() { super::$name(super::On::World).await })*
        }
        mod the_adapters {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::On::Adapters).await })*
        }
    };
}

contracts! {
    closing_and_reopening_may_be_asked_twice,
    what_nova_does_not_know_never_looks_empty,
    every_instance_of_every_project_and_state_is_listed,
    what_ties_an_instance_to_its_node_is_told_and_forbids_a_live_move,
    what_placement_has_for_an_instance_is_told,
    what_a_node_has_is_told_before_and_after,
    a_canary_is_built_elsewhere_and_put_onto_a_closed_host_by_force,
    a_canary_that_does_not_come_up_says_why,
    a_long_list_is_listed_to_its_end,
    a_move_goes_to_the_host_that_is_named_or_nowhere,
    the_hypervisor_is_a_second_witness,
    what_placement_has_of_a_host_is_told_also_where_nothing_is_free,
    an_agent_that_does_not_report_is_told_of,
    zones_local_disks_and_ports_with_a_device_are_told,
    what_is_free_on_every_host_is_told_and_a_move_takes_it_at_both_ends,
    what_a_flavour_asks_of_placement_is_offered_by_some_hosts_and_taken_there,
    server_groups_of_all_projects_are_told_with_their_rules,
    how_far_a_live_move_is_is_told_while_it_is_under_way,
    a_live_move_is_stopped_while_it_is_copied_or_waits_in_line_and_no_other_move_is,
    nova_may_know_a_node_by_another_name,
    a_live_move_is_accepted_then_arrives_then_is_over,
    a_live_move_that_fails_leaves_only_a_reason,
    a_cold_move_is_confirmed_and_then_as_it_was,
    a_tenants_change_of_flavour_is_not_ours_to_confirm,
    a_second_move_is_refused_while_one_is_under_way,
    what_can_not_move_in_its_state_is_refused,
    an_instance_that_is_gone_is_gone,
    a_lost_answer_is_an_unknown_outcome_and_was_done_once,
    an_api_that_is_away_is_unavailable_and_nothing_was_done,
    an_order_is_staged_replaced_and_withdrawn,
    a_netboot_installs_what_was_ordered,
    a_node_that_boots_is_unavailable,
    a_boot_device_that_was_not_taken_is_no_success,
    a_bmc_tells_whose_machine_it_has_its_hand_on,
    a_node_tells_whose_machine_it_is,
    a_withdrawn_order_installs_nothing,
    a_second_installation_is_known_by_its_token,
    a_command_on_a_node_ends_as_it_does,
    a_setup_script_runs_once_for_one_name,
    a_setup_script_that_fails_says_so_of_the_node,
}

async fn closing_and_reopening_may_be_asked_twice(on: On) {
    let bench = on.site(SitePlan::uniform(2, 0)).await;
    let compute = &bench.ports.compute;
    let found = compute.service(&node("gpu-01")).await.unwrap();
    assert_eq!(found, ComputeService { enabled: true, disabled_reason: None, up: true });
    for reason in ["turnaround:a", "turnaround:b"] {
        compute.close(&node("gpu-01"), reason).await.unwrap();
        let closed = compute.service(&node("gpu-01")).await.unwrap();
        assert_eq!(closed, ComputeService { enabled: false, disabled_reason: Some(reason.to_owned()), up: true });
    }
    for _ in 0..2 {
        compute.reopen(&node("gpu-01")).await.unwrap();
        assert_eq!(compute.service(&node("gpu-01")).await.unwrap(), found);
    }
}

async fn what_nova_does_not_know_never_looks_empty(on: On) {
    let bench = on.site(SitePlan::uniform(1, 0)).await;
    let (ghost, ports) = (node("ghost"), &bench.ports);
    assert_eq!(ports.compute.service(&ghost).await.unwrap_err().kind, PortErrorKind::NotFound);
    assert_eq!(ports.compute.close(&ghost, "turnaround").await.unwrap_err().kind, PortErrorKind::NotFound);
    assert_eq!(ports.compute.hypervisor(&ghost).await.unwrap_err().kind, PortErrorKind::NotFound);
    assert_eq!(ports.instances.on(&ghost).await.unwrap_err().kind, PortErrorKind::NotFound);
    assert_eq!(ports.instances.moving(&ghost).await.unwrap_err().kind, PortErrorKind::NotFound);
}

async fn every_instance_of_every_project_and_state_is_listed(on: On) {
    use VmState::*;
    let mut plan = SitePlan::uniform(2, 0);
    for (index, state) in [Active, Paused, Suspended, Stopped, Rescued, Shelved, Resized, Error].into_iter().enumerate()
    {
        let mut instance = InstancePlan::new(state.as_str()).on("gpu-01").state(state);
        instance.project = format!("tenant-{}", index % 3);
        instance.locked = state == Paused;
        plan.instances.push(instance);
    }
    plan.instances.push(InstancePlan::new("elsewhere").on("gpu-02"));
    let bench = on.site(plan).await;
    let mut listed = bench.ports.instances.on(&node("gpu-01")).await.unwrap();
    listed.sort_by(|one, other| one.name.cmp(&other.name));
    let seen: Vec<(&str, &str, &str)> =
        listed.iter().map(|i| (i.name.as_str(), i.vm_state.as_str(), i.project.as_str())).collect();
    let expected = [
        ("active", "active", "tenant-0"),
        ("error", "error", "tenant-1"),
        ("paused", "paused", "tenant-1"),
        ("rescued", "rescued", "tenant-1"),
        ("resized", "resized", "tenant-0"),
        ("shelved", "shelved", "tenant-2"),
        ("stopped", "stopped", "tenant-0"),
        ("suspended", "suspended", "tenant-2"),
    ];
    assert_eq!(seen, expected);
    for instance in &listed {
        assert_eq!(bench.ports.instances.get(&instance.id).await.unwrap().as_ref(), Some(instance));
        assert_eq!(instance.host.as_deref(), Some("gpu-01"));
        assert_eq!(instance.locked, instance.name == "paused");
        assert_eq!(instance.fault.is_some(), instance.vm_state == "error");
    }
}

async fn what_ties_an_instance_to_its_node_is_told_and_forbids_a_live_move(on: On) {
    let mut plan = SitePlan::uniform(2, 1);
    let pinned = InstancePlan::new("train").on("gpu-01").extra_spec("pci_passthrough:alias", "h100:8");
    let pinned = pinned.extra_spec("resources2:VGPU", "1").extra_spec("hw:cpu_policy", "dedicated");
    plan.instances.push(pinned.metadata("turnaround:move", "cold\x1b[2J").metadata("turnaround", "never"));
    let bench = on.site(plan).await;
    let free = bench.instance("gpu-01-a").await;
    assert_eq!((free.pinned_by.len(), free.owner_wants, free.flavor.as_str()), (0, None, "c4"));
    let train = bench.instance("train").await;
    assert_eq!(train.pinned_by, ["pci_passthrough:alias=h100:8", "resources2:VGPU=1"]);
    // Nobody's terminal is told what to do by a tenant.
    assert_eq!(train.owner_wants.as_deref().map(|wants| wants.replace('\x1b', " ")).as_deref(), Some("cold [2J"));
    assert!(bench.ports.instances.on(&node("gpu-01")).await.unwrap().contains(&train));

    let live = bench.start_move("train", Move::Live).await.unwrap();
    bench.settle();
    let why = bench.ports.instances.why_failed(&train.id, &live.request).await.unwrap();
    assert_eq!(why.as_deref(), Some("Migration pre-check error: This request does not explicitly request live-migratable devices."));
    assert_eq!(bench.instance("train").await.host.as_deref(), Some("gpu-01"));

    bench.start_move("train", Move::Cold).await.unwrap();
    bench.until("it waits", |site| site.instance("train").unwrap().vm_state == "resized");
    bench.ports.instances.confirm(&train.id).await.unwrap();
    bench.settle();
    let moved = bench.instance("train").await;
    assert_eq!((moved.host.as_deref(), moved.vm_state.as_str()), (Some("gpu-02"), "active"), "as it was found");
}

async fn what_placement_has_for_an_instance_is_told(on: On) {
    let mut plan = SitePlan::uniform(2, 0);
    let mut hidden = InstancePlan::new("hidden").on("gpu-01").size(4, 8_192);
    hidden.holds.insert("CUSTOM_PCI_10DE_2330".to_owned(), 2);
    plan.instances.extend([hidden, InstancePlan::new("plain").on("gpu-01").size(2, 4_096)]);
    let bench = on.site(plan).await;
    let of = async |name: &str| bench.ports.instances.allocations(&bench.id(name)).await.unwrap();
    let has = |all: &[(&str, u64)]| all.iter().map(|(class, amount)| ((*class).to_owned(), *amount)).collect::<BTreeMap<_, _>>();
    assert_eq!(of("hidden").await, has(&[("VCPU", 4), ("MEMORY_MB", 8_192), ("CUSTOM_PCI_10DE_2330", 2)]));
    assert_eq!(of("plain").await, has(&[("VCPU", 2), ("MEMORY_MB", 4_096)]));
    assert_eq!(bench.instance("hidden").await.pinned_by.len(), 0, "its flavour says nothing of it");
    let nobody = InstanceId("6f1c3f5e-0000-4000-8000-00000000dead".to_owned());
    assert!(bench.ports.instances.allocations(&nobody).await.unwrap().is_empty());
}

async fn what_a_node_has_is_told_before_and_after(on: On) {
    let mut plan = SitePlan::uniform(1, 0);
    let mut changed = NodePlan::usual_stock();
    changed.clock_ahead_ms = -3_600_000;
    changed.vlans = Some(BTreeSet::new());
    changed.disks = None;
    changed.devices.clear();
    changed.virtual_functions.insert("15b3:101e".to_owned(), 3);
    changed.kernel_parameters.insert("hugepages=64".to_owned());
    plan.node("gpu-01").unwrap().faults.stock_once_installed = Some(changed.clone());
    let bench = on.site(plan).await;
    let stock = async || bench.ports.facts.stock(&node("gpu-01")).await.unwrap();
    assert_eq!(stock().await, NodePlan::usual_stock());
    bench.renew("gpu-01", "token-1").await;
    bench.settle();
    // Whose key is not known is asked for its facts first.
    bench.ports.facts.facts(&node("gpu-01")).await.unwrap();
    let mut now = stock().await;
    assert!((-3_601_000..=-3_590_000).contains(&now.clock_ahead_ms), "{now:?}");
    now.clock_ahead_ms = changed.clock_ahead_ms;
    assert_eq!(now, changed);
}

async fn a_canary_is_built_elsewhere_and_put_onto_a_closed_host_by_force(on: On) {
    let bench = on.site(SitePlan::uniform(3, 0)).await;
    let (ports, node, name) = (&bench.ports, node("gpu-01"), "turnaround-canary-w.1");
    let one = async || ports.canaries.find(name).await.unwrap().pop().unwrap();
    ports.compute.close(&node, "being renewed").await.unwrap();
    assert_eq!(ports.canaries.find(name).await.unwrap(), []);
    let new = NewCanary { image: "cirros".to_owned(), flavor: "tiny".to_owned(), network: None };
    ports.canaries.create(name, &new).await.unwrap();
    // A name that its own, as a regular expression, fits as well.
    ports.canaries.create("turnaround-canary-w-1", &NewCanary { network: Some("net".to_owned()), ..new.clone() }).await.unwrap();
    assert_eq!((one().await.vm_state.as_str(), one().await.host), ("building", None));
    bench.settle();
    let built = one().await;
    assert_eq!((built.vm_state.as_str(), &built.task_state, built.fault), ("active", &None, None));
    assert_ne!(built.host.as_deref(), Some("gpu-01"), "a disabled host takes none");
    assert_eq!(ports.canaries.find(name).await.unwrap().len(), 1);

    let request = ports.canaries.put_on(&built.id, &node).await.unwrap();
    assert!(one().await.is_moving());
    let twice = ports.canaries.put_on(&built.id, &node).await.unwrap_err();
    assert!(matches!(twice.kind, PortErrorKind::Refused { .. }), "{twice}");
    bench.settle();
    assert_eq!((one().await.host.as_deref(), one().await.task_state), (Some("gpu-01"), None));
    assert_eq!(ports.instances.why_failed(&built.id, &request).await.unwrap(), None);
    assert_eq!(ports.instances.migrations(&built.id).await.unwrap()[0].state, MigrationState::Succeeded);

    assert!(!ports.canaries.console(&built.id).await.unwrap().contains("started on gpu-01"));
    let refused = async |asked: Result<(), PortError>, why: &str| {
        let error = asked.unwrap_err();
        let expected = format!("instance {} while it is in {why}", built.id);
        assert!(matches!(&error.kind, PortErrorKind::Refused { reason } if reason.contains(&expected)), "{error}");
    };
    refused(ports.canaries.start(&built.id).await.map(drop), "vm_state active").await;
    ports.canaries.stop(&built.id).await.unwrap();
    assert_eq!((one().await.vm_state.as_str(), one().await.task_state.as_deref()), ("active", Some("powering-off")));
    refused(ports.canaries.stop(&built.id).await, "task_state powering-off").await;
    bench.settle();
    assert_eq!((one().await.vm_state.as_str(), one().await.task_state), ("stopped", None));
    refused(ports.canaries.stop(&built.id).await, "vm_state stopped").await;
    let request = ports.canaries.start(&built.id).await.unwrap();
    assert_eq!((one().await.vm_state.as_str(), one().await.task_state.as_deref()), ("stopped", Some("powering-on")));
    bench.settle();
    assert_eq!((one().await.vm_state.as_str(), one().await.task_state), ("active", None));
    assert_eq!(ports.instances.why_failed(&built.id, &request).await.unwrap(), None);
    let said = ports.canaries.console(&built.id).await.unwrap();
    assert!(said.contains("started on gpu-01") && said.contains("login:"), "{said}");

    ports.canaries.remove(&built.id).await.unwrap();
    assert_eq!(one().await.task_state.as_deref(), Some("deleting"));
    ports.canaries.remove(&built.id).await.unwrap();
    bench.settle();
    assert_eq!(ports.canaries.find(name).await.unwrap(), []);
    ports.canaries.remove(&built.id).await.unwrap();
    assert_eq!(ports.canaries.find("turnaround-canary-w-1").await.unwrap().len(), 1, "another one is left alone");
}

async fn a_canary_that_does_not_come_up_says_why(on: On) {
    let mut plan = SitePlan::uniform(3, 0);
    plan.node("gpu-01").unwrap().faults.canary_fails = true;
    plan.node("gpu-02").unwrap().faults.canary_does_not_boot = true;
    plan.node("gpu-02").unwrap().memory_mb = 1024;
    plan.node("gpu-01").unwrap().memory_mb = 1024;
    let bench = on.site(plan).await;
    let ports = &bench.ports;
    let new = NewCanary { image: "cirros".to_owned(), flavor: "tiny".to_owned(), network: None };
    ports.canaries.create("c", &new).await.unwrap();
    bench.settle();
    let one = async || ports.canaries.find("c").await.unwrap().pop().unwrap();
    let id = one().await.id;
    let request = ports.canaries.put_on(&id, &node("gpu-01")).await.unwrap();
    bench.settle();
    let left = one().await;
    assert_eq!((left.host.as_deref(), left.vm_state.as_str(), left.fault), (Some("gpu-03"), "active", None));
    let why = ports.instances.why_failed(&id, &request).await.unwrap().unwrap();
    assert!(why.starts_with("Migration pre-check error"), "{why}");
    ports.canaries.put_on(&id, &node("gpu-02")).await.unwrap();
    bench.settle();
    ports.canaries.stop(&id).await.unwrap();
    bench.settle();
    let request = ports.canaries.start(&id).await.unwrap();
    bench.settle();
    let dead = one().await;
    assert_eq!((dead.vm_state.as_str(), dead.task_state, dead.fault), ("stopped", None, None));
    let why = ports.instances.why_failed(&id, &request).await.unwrap().unwrap();
    assert!(why.contains("failed to initialize kvm"), "{why}");
}

async fn a_long_list_is_listed_to_its_end(on: On) {
    // Nova's largest page has 1,000.
    let mut plan = SitePlan::uniform(1, 0);
    plan.instances = (0..1_050).map(|n| InstancePlan::new(&format!("i-{n}")).on("gpu-01").size(0, 0)).collect();
    let bench = on.site(plan).await;
    let listed = bench.ports.instances.on(&node("gpu-01")).await.unwrap();
    assert_eq!(listed.iter().map(|instance| &instance.id).collect::<BTreeSet<_>>().len(), 1_050);
    assert_eq!(listed.len(), 1_050);
}

async fn the_hypervisor_is_a_second_witness(on: On) {
    let mut plan = SitePlan::uniform(2, 2);
    *plan.node("gpu-01").unwrap() = NodePlan::new("gpu-01").size(48, 384 * 1024);
    let bench = on.site(plan).await;
    let mut hypervisor = bench.ports.compute.hypervisor(&node("gpu-01")).await.unwrap();
    // The same each time, and not that of another node.
    let id = hypervisor.id.take();
    let of = async |name: &str| bench.ports.compute.hypervisor(&node(name)).await.unwrap().id;
    assert!(id.is_some() && id == of("gpu-01").await && id != of("gpu-02").await, "{id:?}");
    let mut running = vec![bench.id("gpu-01-a").0, bench.id("gpu-01-b").0];
    running.sort();
    hypervisor.running.sort();
    assert_eq!(hypervisor, Hypervisor { id: None, up: true, vcpus: 48, memory_mb: 384 * 1024, running });
}

async fn what_placement_has_of_a_host_is_told_also_where_nothing_is_free(on: On) {
    let mut plan = SitePlan::uniform(2, 0);
    *plan.node("gpu-01").unwrap() = NodePlan::new("gpu-01").size(48, 10_000);
    plan.node("gpu-01").unwrap().devices = [("VGPU".to_owned(), 3)].into();
    plan.node("gpu-01").unwrap().nova_host = Some("gpu-01.cloud.internal".to_owned());
    plan.node("gpu-01").unwrap().disabled = Some("DIMM, ask carol".to_owned());
    plan.instances.push(InstancePlan::new("full").on("gpu-01").size(4, 10_000));
    let bench = on.site(plan).await;
    let expected = [("MEMORY_MB", 10_000), ("VCPU", 48), ("VGPU", 3)].map(|(class, total)| (class.to_owned(), total));
    assert_eq!(bench.ports.compute.inventory(&node("gpu-01")).await.unwrap(), expected.into());
    let error = bench.ports.compute.inventory(&node("gpu-99")).await.unwrap_err();
    assert!(matches!(error.kind, PortErrorKind::NotFound | PortErrorKind::Refused { .. }), "{error:?}");
}

async fn an_agent_that_does_not_report_is_told_of(on: On) {
    let mut plan = SitePlan::uniform(2, 0);
    plan.node("gpu-01").unwrap().nova_host = Some("gpu-01.cloud.internal".to_owned());
    let bench = on.site(plan.happens(Duration::from_secs(60), Happens::NodeCrashes { node: "gpu-01".to_owned() })).await;
    let agents = async |name: &str| bench.ports.compute.agents(&node(name)).await.unwrap();
    let told = |reports| BTreeMap::from([("neutron-openvswitch-agent".to_owned(), reports)]);
    assert_eq!((agents("gpu-01").await, agents("gpu-02").await), (told(true), told(true)));
    bench.clock.advance(Duration::from_secs(180));
    assert_eq!((agents("gpu-01").await, agents("gpu-02").await), (told(false), told(true)));
}

async fn zones_local_disks_and_ports_with_a_device_are_told(on: On) {
    let mut plan = SitePlan::uniform(3, 0);
    plan.node("gpu-01").unwrap().nova_host = Some("gpu-01.cloud.internal".to_owned());
    for (node, zone, disk) in [("gpu-01", "a", Some(100)), ("gpu-02", "b", Some(50)), ("gpu-03", "b", None)] {
        let node = plan.node(node).unwrap();
        (node.zone, node.disk_gb) = (Some(zone.to_owned()), disk);
    }
    let local = InstancePlan { disk_gb: 30, device_ports: vec!["direct".to_owned()], ..InstancePlan::new("local").on("gpu-01") };
    let bound = InstancePlan { zone: Some("b".to_owned()), ..InstancePlan::new("bound").on("gpu-02") };
    plan.instances = vec![local, bound];
    let bench = on.site(plan).await;
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let zones = bench.ports.compute.zones().await.unwrap();
    assert_eq!(zones, [("a".to_owned(), names(&["gpu-01"])), ("b".to_owned(), names(&["gpu-02", "gpu-03"]))].into());
    let (local, bound) = (bench.instance("local").await, bench.instance("bound").await);
    assert_eq!((local.takes.disk_gb, local.zone), (Some(30), None));
    assert_eq!((bound.takes.disk_gb, bound.zone.as_deref()), (None, Some("b")));
    let disks: BTreeMap<String, Option<u64>> = bench.ports.compute.hosts().await.unwrap().into_iter().map(|host| (host.name, host.free.disk_gb)).collect();
    assert_eq!(disks, [("gpu-01", Some(70)), ("gpu-02", Some(50)), ("gpu-03", None)].map(|(name, disk)| (name.to_owned(), disk)).into());
    let ports = async |name: &str| bench.ports.instances.device_ports(&node(name)).await.unwrap();
    assert_eq!(ports("gpu-01").await, [(bench.id("local"), vec!["direct".to_owned()])].into());
    assert!(ports("gpu-02").await.is_empty(), "a plain one");

    bench.start_move("bound", Move::Live).await.unwrap();
    bench.settle();
    assert_eq!(bench.instance("bound").await.host.as_deref(), Some("gpu-03"), "the other host of its zone");
}

async fn what_is_free_on_every_host_is_told_and_a_move_takes_it_at_both_ends(on: On) {
    let mut plan = SitePlan::uniform(4, 0);
    *plan.node("gpu-01").unwrap() = NodePlan::new("gpu-01").size(48, 100_000);
    *plan.node("gpu-02").unwrap() = NodePlan::new("gpu-02").size(16, 50_000);
    plan.node("gpu-02").unwrap().nova_host = Some("gpu-02.cloud.internal".to_owned());
    plan.node("gpu-03").unwrap().disabled = Some("DIMM, ask carol".to_owned());
    // Nothing at all is left on gpu-04.
    *plan.node("gpu-04").unwrap() = NodePlan::new("gpu-04").size(8, 10_000);
    plan.instances.push(InstancePlan::new("full").on("gpu-04").size(4, 10_000));
    plan.instances.push(InstancePlan::new("moves").on("gpu-01").size(3, 7_000));
    let bench = on.site(plan).await;
    let host = |name: &str, enabled: bool, vcpus: u64, memory_mb: u64| Host {
        name: name.to_owned(),
        enabled,
        up: true,
        free: Room { vcpus, memory_mb, disk_gb: None },
    };
    let hosts = async || {
        let mut hosts = bench.ports.compute.hosts().await.unwrap();
        hosts.sort_by(|one, other| one.name.cmp(&other.name));
        // Of a host whose memory is all taken nothing is of any use.
        for host in hosts.iter_mut().filter(|host| host.free.memory_mb == 0) {
            host.free = Room::default();
        }
        hosts
    };
    let [closed, full] = [host("gpu-03", false, 64, 512 * 1024), host("gpu-04", true, 0, 0)];
    let free = [host("gpu-01", true, 45, 93_000), host("gpu-02", true, 16, 50_000), closed.clone(), full.clone()];
    assert_eq!(hosts().await, free);
    assert_eq!(bench.instance("moves").await.takes, Room { vcpus: 3, memory_mb: 7_000, disk_gb: None });

    bench.start_move("moves", Move::Cold).await.unwrap();
    bench.until("it waits", |site| site.instance("moves").unwrap().vm_state == "resized");
    let both = [host("gpu-01", true, 45, 93_000), host("gpu-02", true, 13, 43_000), closed.clone(), full.clone()];
    assert_eq!(hosts().await, both);
    bench.ports.instances.confirm(&bench.id("moves")).await.unwrap();
    bench.settle();
    let moved = [host("gpu-01", true, 48, 100_000), host("gpu-02", true, 13, 43_000), closed, full];
    assert_eq!(hosts().await, moved);
}

async fn what_a_flavour_asks_of_placement_is_offered_by_some_hosts_and_taken_there(on: On) {
    let mut plan = SitePlan::uniform(3, 0);
    plan.node("gpu-01").unwrap().nova_host = Some("gpu-01.cloud.internal".to_owned());
    for (node, vgpus) in [("gpu-01", 2), ("gpu-02", 1), ("gpu-03", 0)] {
        plan.node(node).unwrap().devices = BTreeMap::from([("VGPU".to_owned(), vgpus)]);
    }
    plan.node("gpu-01").unwrap().traits = vec!["CUSTOM_H100".to_owned()];
    plan.instances.push(InstancePlan::new("train").on("gpu-01").extra_spec("resources:VGPU", "1").extra_spec("resources:VCPU", "2"));
    let bench = on.site(plan).await;
    let specs = |of: &[(&str, &str)]| of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>();
    assert_eq!(bench.instance("train").await.asks, specs(&[("resources:VGPU", "1")]), "without its size");
    let fitting = async |of: &[(&str, &str)]| {
        let fitting = bench.ports.compute.fitting(&specs(of)).await.unwrap();
        fitting.into_iter().map(|(host, free)| (host, free["VGPU"])).collect::<Vec<_>>()
    };
    let free = |of: &[(&str, u64)]| of.iter().map(|(host, free)| ((*host).to_owned(), *free)).collect::<Vec<_>>();
    assert_eq!(fitting(&[("resources:VGPU", "1")]).await, free(&[("gpu-01", 1), ("gpu-02", 1)]));
    assert_eq!(fitting(&[("resources:VGPU", "2")]).await, []);
    assert_eq!(fitting(&[("resources1:VGPU", "1"), ("trait1:CUSTOM_H100", "required")]).await, free(&[("gpu-01", 1)]));
    assert_eq!(fitting(&[("resources_GPU:VGPU", "1"), ("trait_GPU:CUSTOM_H100", "forbidden")]).await, free(&[("gpu-02", 1)]));
    assert_eq!(fitting(&[("resources1:VGPU", "1"), ("resources2:VGPU", "1"), ("group_policy", "none")]).await, []);
    for policy in [&[][..], &[("group_policy", "spread")]] {
        let asks = specs(&[&[("resources1:VGPU", "1"), ("resources2:VGPU", "1")], policy].concat());
        let refused = bench.ports.compute.fitting(&asks).await.unwrap_err();
        assert!(matches!(refused.kind, PortErrorKind::Refused { .. }), "{refused}");
    }
    assert_eq!(fitting(&[("resources:VGPU", "1"), ("trait:CUSTOM_H100", "preferred")]).await, free(&[("gpu-01", 1), ("gpu-02", 1)]));
}

async fn server_groups_of_all_projects_are_told_with_their_rules(on: On) {
    let mut plan = SitePlan::uniform(2, 2);
    let group = |name: &str, rule: GroupRule, members: &[&str]| GroupPlan { name: name.to_owned(), rule, members: members.iter().map(|name| (*name).to_owned()).collect() };
    plan.groups = vec![
        group("apart", GroupRule::AntiAffinity { max_on_a_host: 1 }, &["gpu-01-a", "gpu-02-a"]),
        group("two", GroupRule::AntiAffinity { max_on_a_host: 2 }, &["gpu-01-b"]),
        group("together", GroupRule::Affinity, &[]),
    ];
    let bench = on.site(plan).await;
    let told = bench.ports.instances.groups().await.unwrap();
    let group = |name: &str, rule: GroupRule, members: &[&str]| ServerGroup { name: name.to_owned(), rule, members: members.iter().map(|name| bench.id(name)).collect() };
    let expected = [
        group("apart", GroupRule::AntiAffinity { max_on_a_host: 1 }, &["gpu-01-a", "gpu-02-a"]),
        group("two", GroupRule::AntiAffinity { max_on_a_host: 2 }, &["gpu-01-b"]),
        group("together", GroupRule::Affinity, &[]),
    ];
    assert_eq!(told, expected);
}

async fn how_far_a_live_move_is_is_told_while_it_is_under_way(on: On) {
    let mut plan = SitePlan::uniform(2, 1);
    plan.latencies.live_migration = Duration::from_secs(100);
    let bench = on.site(plan).await;
    let progress = async || bench.ports.instances.progress(&bench.id("gpu-01-a")).await.unwrap();
    assert_eq!(progress().await, None, "it does not move");
    bench.start_move("gpu-01-a", Move::Live).await.unwrap();
    bench.until("it is on its way", |site| site.node("gpu-02").unwrap().arriving == 1);
    bench.clock.advance(Duration::from_secs(50));
    let seen = progress().await.expect("it is on its way");
    assert_eq!(seen.total_bytes, 8 << 30);
    assert!((40..=60).contains(&seen.percent()), "{seen:?}");
    bench.settle();
    assert_eq!(progress().await, None, "it is over");
}

async fn a_live_move_is_stopped_while_it_is_copied_or_waits_in_line_and_no_other_move_is(on: On) {
    let mut plan = SitePlan::uniform(2, 3);
    plan.latencies.live_at_once = 1;
    plan.instance("gpu-01-a").unwrap().fault = MoveFault::new(MoveGoesWrong::Hangs, 1, "");
    plan.instance("gpu-01-c").unwrap().vm_state = VmState::Stopped;
    let bench = on.site(plan).await;
    let (running, queued, cold) = (bench.id("gpu-01-a"), bench.id("gpu-01-b"), bench.id("gpu-01-c"));
    let instances = &bench.ports.instances;
    bench.start_move("gpu-01-a", Move::Live).await.unwrap();
    bench.until("it is being copied", |site| site.node("gpu-02").unwrap().arriving == 1);
    bench.start_move("gpu-01-b", Move::Live).await.unwrap();
    bench.start_move("gpu-01-c", Move::Cold).await.unwrap();
    bench.until("all are on their way", |site| site.node("gpu-02").unwrap().arriving == 3);
    for (name, id, status) in [("gpu-01-b", &queued, "queued"), ("gpu-01-a", &running, "running")] {
        let found = bench.newest_migration(name).await;
        assert_eq!(found.status, status);
        // One of another instance, or that never was, is none of it.
        instances.stop_live(id, "00000000-0000-0000-0000-000000000000").await.unwrap();
        assert_eq!(bench.newest_migration(name).await.status, status);
        instances.stop_live(id, &found.uuid).await.unwrap();
        bench.clock.advance(Duration::from_secs(10));
        let stopped = bench.newest_migration(name).await;
        assert_eq!((stopped.state, stopped.status.as_str()), (MigrationState::Failed, "cancelled"));
        let instance = instances.get(id).await.unwrap().unwrap();
        assert_eq!((instance.vm_state.as_str(), instance.task_state, instance.host.as_deref()), ("active", None, Some("gpu-01")));
        instances.stop_live(id, &found.uuid).await.unwrap();
    }
    bench.settle();
    let moved = bench.newest_migration("gpu-01-c").await;
    assert_eq!(moved.state, MigrationState::AwaitsConfirmation, "{moved:?}");
    assert_eq!(bench.happened(|what| matches!(what, Happened::StopRequested { .. })), 2);
    assert!(cold != running);
}

async fn nova_may_know_a_node_by_another_name(on: On) {
    let mut plan = SitePlan::uniform(2, 1);
    plan.node("gpu-01").unwrap().nova_host = Some("gpu-01.cloud.internal".to_owned());
    let bench = on.site(plan).await;
    assert_eq!(bench.ports.instances.on(&node("gpu-01")).await.unwrap().len(), 1);
    assert!(bench.ports.compute.hypervisor(&node("gpu-01")).await.unwrap().up);
    bench.ports.compute.close(&node("gpu-01"), "turnaround").await.unwrap();
    assert!(!bench.world.snapshot().node("gpu-01").unwrap().enabled);
    bench.start_move("gpu-01-a", Move::Live).await.unwrap();
    assert_eq!(bench.moving("gpu-01").await.len(), 1);
    bench.settle();
    assert_eq!(bench.ports.instances.on(&node("gpu-01")).await.unwrap(), []);
}

async fn a_live_move_is_accepted_then_arrives_then_is_over(on: On) {
    let bench = on.site(SitePlan::uniform(2, 1)).await;
    let started = bench.start_move("gpu-01-a", Move::Live).await.unwrap();
    let instance = bench.instance("gpu-01-a").await;
    assert_eq!((instance.host.as_deref(), instance.task_state.as_deref()), (Some("gpu-01"), Some("migrating")));
    let migration = bench.newest_migration("gpu-01-a").await;
    assert_eq!((migration.kind, migration.state), (MigrationKind::Live, MigrationState::InProgress));
    assert_eq!(migration.created.since(START), Duration::ZERO);
    assert_eq!(bench.moving("gpu-01").await.len(), 1);

    bench.until("it has arrived", |site| site.instance("gpu-01-a").unwrap().host.as_deref() == Some("gpu-02"));
    let instance = bench.instance("gpu-01-a").await;
    assert_eq!((instance.vm_state.as_str(), instance.task_state), ("active", None));
    assert_eq!(bench.newest_migration("gpu-01-a").await.status, "running");
    assert_eq!(bench.moving("gpu-01").await.len(), 1, "it arrives before it is over");

    bench.settle();
    let migration = bench.newest_migration("gpu-01-a").await;
    assert_eq!((migration.state, migration.status.as_str()), (MigrationState::Succeeded, "completed"));
    assert_eq!((migration.source.as_deref(), migration.destination.as_deref()), (Some("gpu-01"), Some("gpu-02")));
    assert_eq!(bench.moving("gpu-01").await, []);
    let why = bench.ports.instances.why_failed(&bench.id("gpu-01-a"), &started.request).await.unwrap();
    assert_eq!(why, None);
}

async fn a_move_goes_to_the_host_that_is_named_or_nowhere(on: On) {
    let mut plan = SitePlan::uniform(4, 0);
    plan.node("gpu-02").unwrap().nova_host = Some("gpu-02.cloud.internal".to_owned());
    plan.node("gpu-03").unwrap().disabled = Some("DIMM, ask carol".to_owned());
    plan.instances.push(InstancePlan::new("live").on("gpu-01"));
    plan.instances.push(InstancePlan::new("cold").on("gpu-01"));
    plan.instance("cold").unwrap().vm_state = VmState::Stopped;
    // So that Nova would choose gpu-04 by itself.
    plan.instances.push(InstancePlan::new("other").on("gpu-02"));
    let bench = on.site(plan).await;
    let to = async |name: &str, how: Move, host: &str| bench.ports.instances.start_move(&bench.id(name), how, Some(host)).await;

    let nowhere = to("live", Move::Live, "gpu-09").await.unwrap_err();
    assert_eq!(reason(&nowhere), "Compute host gpu-09 could not be found.");
    let closed = to("live", Move::Live, "gpu-03").await.unwrap();
    bench.settle();
    let why = bench.ports.instances.why_failed(&bench.id("live"), &closed.request).await.unwrap();
    assert_eq!(why.as_deref(), Some("No valid host was found. There are not enough hosts available."));
    assert_eq!(bench.instance("live").await.host.as_deref(), Some("gpu-01"));

    to("live", Move::Live, "gpu-02").await.unwrap();
    to("cold", Move::Cold, "gpu-02").await.unwrap();
    bench.settle();
    for name in ["live", "cold"] {
        assert_eq!(bench.instance(name).await.host.as_deref(), Some("gpu-02"), "{name}");
    }
}

async fn a_live_move_that_fails_leaves_only_a_reason(on: On) {
    let mut plan = SitePlan::uniform(2, 1);
    plan.instance("gpu-01-a").unwrap().fault =
        MoveFault::new(MoveGoesWrong::PreCheck, 1, "Migration pre-check error: CPU does not match.");
    let bench = on.site(plan).await;
    let started = bench.start_move("gpu-01-a", Move::Live).await.unwrap();
    bench.settle();
    let instance = bench.instance("gpu-01-a").await;
    assert_eq!(
        (instance.vm_state.as_str(), instance.host.as_deref(), instance.fault),
        ("active", Some("gpu-01"), None)
    );
    let migration = bench.newest_migration("gpu-01-a").await;
    assert_eq!((migration.state, migration.status.as_str()), (MigrationState::Failed, "error"));
    let why = bench.ports.instances.why_failed(&bench.id("gpu-01-a"), &started.request).await.unwrap();
    assert_eq!(why.as_deref(), Some("Migration pre-check error: CPU does not match."));
    let other = RequestId("req-00000000-0000-4000-a000-000000000000".to_owned());
    assert_eq!(bench.ports.instances.why_failed(&bench.id("gpu-01-a"), &other).await.unwrap(), None);

    bench.ports.compute.close(&node("gpu-02"), "turnaround").await.unwrap();
    let started = bench.start_move("gpu-01-a", Move::Live).await.unwrap();
    bench.settle();
    let why = bench.ports.instances.why_failed(&bench.id("gpu-01-a"), &started.request).await.unwrap();
    assert_eq!(why.as_deref(), Some("No valid host was found. There are not enough hosts available."));
    assert_eq!(bench.ports.instances.migrations(&bench.id("gpu-01-a")).await.unwrap().len(), 2);
}

async fn a_cold_move_is_confirmed_and_then_as_it_was(on: On) {
    let mut plan = SitePlan::uniform(2, 1);
    plan.instance("gpu-01-a").unwrap().vm_state = VmState::Stopped;
    let bench = on.site(plan).await;
    bench.start_move("gpu-01-a", Move::Cold).await.unwrap();
    bench.until("it is resized", |site| site.instance("gpu-01-a").unwrap().vm_state == "resized");
    let migration = bench.newest_migration("gpu-01-a").await;
    assert_eq!((migration.kind, migration.state), (MigrationKind::Cold, MigrationState::AwaitsConfirmation));
    assert_eq!(bench.instance("gpu-01-a").await.host.as_deref(), Some("gpu-02"));
    assert_eq!(bench.moving("gpu-01").await.len(), 1, "its disk is still on the source");
    for _ in 0..3 {
        bench.ports.instances.confirm(&bench.id("gpu-01-a")).await.unwrap();
    }
    assert_eq!(bench.instance("gpu-01-a").await.vm_state, "resized", "a confirmation takes its time");
    bench.settle();
    bench.ports.instances.confirm(&bench.id("gpu-01-a")).await.unwrap();
    assert_eq!(bench.instance("gpu-01-a").await.vm_state, "stopped");
    assert_eq!(bench.newest_migration("gpu-01-a").await.state, MigrationState::Succeeded);
    assert_eq!(bench.moving("gpu-01").await, []);
}

async fn a_tenants_change_of_flavour_is_not_ours_to_confirm(on: On) {
    let mut plan = SitePlan::uniform(2, 2);
    plan.instance("gpu-01-a").unwrap().vm_state = VmState::Resized;
    let bench = on.site(plan).await;
    let migration = bench.newest_migration("gpu-01-a").await;
    assert_eq!((migration.kind, migration.state), (MigrationKind::Resize, MigrationState::AwaitsConfirmation));
    let error = bench.ports.instances.confirm(&bench.id("gpu-01-a")).await.unwrap_err();
    assert!(reason(&error).contains("tenant"), "{error}");
    let error = bench.ports.instances.confirm(&bench.id("gpu-01-b")).await.unwrap_err();
    assert!(reason(&error).contains("never been migrated"), "{error}");
    assert_eq!(bench.happened(|what| matches!(what, Happened::ConfirmRequested { .. })), 0);
}

async fn a_second_move_is_refused_while_one_is_under_way(on: On) {
    let bench = on.site(SitePlan::uniform(2, 1)).await;
    bench.start_move("gpu-01-a", Move::Live).await.unwrap();
    let error = bench.start_move("gpu-01-a", Move::Live).await.unwrap_err();
    let id = bench.id("gpu-01-a");
    assert_eq!(reason(&error), format!("Cannot 'os-migrateLive' instance {id} while it is in task_state migrating"));
    assert_eq!(bench.ports.instances.migrations(&id).await.unwrap().len(), 1);
}

async fn what_can_not_move_in_its_state_is_refused(on: On) {
    for (how, state) in [(Move::Live, VmState::Stopped), (Move::Live, VmState::Error), (Move::Cold, VmState::Resized)] {
        let mut plan = SitePlan::uniform(2, 1);
        plan.instance("gpu-01-a").unwrap().vm_state = state;
        let bench = on.site(plan).await;
        let error = bench.start_move("gpu-01-a", how).await.unwrap_err();
        assert!(reason(&error).ends_with(&format!("while it is in vm_state {}", state.as_str())), "{error}");
    }
}

async fn an_instance_that_is_gone_is_gone(on: On) {
    let deleted = Happens::InstanceDeleted { name: "gpu-01-a".to_owned() };
    let bench = on.site(SitePlan::uniform(2, 1).happens(Duration::from_secs(5), deleted)).await;
    let id = bench.id("gpu-01-a");
    bench.start_move("gpu-01-a", Move::Live).await.unwrap();
    bench.settle();
    assert_eq!(bench.ports.instances.get(&id).await.unwrap(), None);
    assert_eq!(bench.ports.instances.on(&node("gpu-01")).await.unwrap(), []);
    assert_eq!(bench.moving("gpu-01").await, []);
    let error = bench.ports.instances.start_move(&id, Move::Live, None).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::NotFound);
}

async fn a_lost_answer_is_an_unknown_outcome_and_was_done_once(on: On) {
    let mut plan = SitePlan::uniform(2, 1);
    for call in [Call::Close, Call::StartMove, Call::NetbootNext, Call::Reset] {
        plan = plan.loses_answer(call, 1);
    }
    let bench = on.site(plan).await;
    let (node, ports) = (node("gpu-01"), &bench.ports);
    assert_eq!(ports.compute.close(&node, "turnaround").await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    assert!(!ports.compute.service(&node).await.unwrap().enabled);
    assert_eq!(bench.start_move("gpu-01-a", Move::Live).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    assert_eq!(bench.newest_migration("gpu-01-a").await.state, MigrationState::InProgress);
    bench.settle();
    assert_eq!(ports.bmc.netboot_next(&node).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    assert_eq!(ports.bmc.boot_override(&node).await.unwrap().device, BootDevice::Pxe);
    assert_eq!(ports.bmc.reset(&node).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    bench.settle();
    assert_eq!(bench.happened(|what| matches!(what, Happened::ServiceDisabled { .. })), 1);
    assert_eq!(bench.happened(|what| matches!(what, Happened::MigrationRequested { .. })), 1);
    assert_eq!(bench.happened(|what| matches!(what, Happened::PowerLost { .. })), 1);
    assert_eq!(bench.happened(|what| matches!(what, Happened::BootOverride { .. })), 1);
}

async fn an_api_that_is_away_is_unavailable_and_nothing_was_done(on: On) {
    let mut plan = SitePlan::uniform(2, 1);
    plan.faults.outages = [Api::Nova, Api::Bmc, Api::Ssh]
        .map(|api| Outage { api, node: None, from: Duration::ZERO, lasts: Duration::from_secs(60) })
        .to_vec();
    let bench = on.site(plan).await;
    let (gpu, ports) = (node("gpu-01"), &bench.ports);
    // All at once: the adapters read several times before they give up.
    let (service, close, listed, power, reset, facts) = tokio::join!(
        ports.compute.service(&gpu),
        ports.compute.close(&gpu, "turnaround"),
        ports.instances.on(&gpu),
        ports.bmc.power(&gpu),
        ports.bmc.reset(&gpu),
        ports.facts.facts(&gpu),
    );
    let errors = [service.err(), close.err(), listed.err(), power.err(), reset.err(), facts.err()];
    for error in errors {
        assert_eq!(error.unwrap().kind, PortErrorKind::Unavailable);
    }
    bench.clock.advance(Duration::from_secs(60));
    assert!(ports.compute.service(&gpu).await.unwrap().enabled);
    assert_eq!(ports.bmc.power(&gpu).await.unwrap(), Power::On);
    assert_eq!(bench.world.events().len(), 1, "nothing but the beginning");
}

async fn an_order_is_staged_replaced_and_withdrawn(on: On) {
    let bench = on.site(SitePlan::uniform(2, 0)).await;
    let (gpu, netboot) = (node("gpu-01"), &bench.ports.netboot);
    assert_eq!(netboot.staged(&gpu).await.unwrap(), None);
    for token in ["first", "first", "second"] {
        netboot.stage(&gpu, &bench.ticket(token)).await.unwrap();
        assert_eq!(netboot.staged(&gpu).await.unwrap(), Some(bench.ticket(token)));
        assert_eq!(bench.world.ticket_of("gpu-01"), Some(bench.ticket(token)), "as the node will read it");
    }
    assert_eq!(netboot.staged(&node("gpu-02")).await.unwrap(), None);
    for _ in 0..2 {
        netboot.withdraw(&gpu).await.unwrap();
        assert_eq!(netboot.staged(&gpu).await.unwrap(), None);
        assert_eq!(bench.world.ticket_of("gpu-01"), None);
    }
}

async fn a_netboot_installs_what_was_ordered(on: On) {
    let bench = on.site(SitePlan::uniform(2, 0)).await;
    let gpu = node("gpu-01");
    let before = bench.ports.facts.facts(&gpu).await.unwrap();
    assert_eq!(
        (before.hostname.as_str(), before.os_version_id.as_str(), &before.installed),
        ("gpu-01", "22.04", &None)
    );
    assert_eq!(bench.ports.bmc.boot_override(&gpu).await.unwrap().device, BootDevice::None);
    bench.renew("gpu-01", "t1").await;
    assert_eq!(bench.ports.bmc.boot_override(&gpu).await.unwrap(), BootOverride { device: BootDevice::Pxe, efi: true });
    bench.settle();
    let after = bench.ports.facts.facts(&gpu).await.unwrap();
    assert_ne!(after.boot_id, before.boot_id);
    let sha256 = bench.ticket("t1").sha256;
    assert_eq!(after.installed, Some(Installed { token: Token("t1".to_owned()), sha256 }));
    assert_eq!((after.os_version_id.as_str(), after.kernel.as_str()), ("24.04", "6.8.0-60-generic"));
    assert_eq!(bench.ports.bmc.boot_override(&gpu).await.unwrap().device, BootDevice::None, "for one boot only");
    assert!(bench.ports.compute.hypervisor(&gpu).await.unwrap().up);
}

async fn a_node_that_boots_is_unavailable(on: On) {
    let bench = on.site(SitePlan::uniform(2, 0)).await;
    let gpu = node("gpu-01");
    bench.ports.bmc.reset(&gpu).await.unwrap();
    bench.until("the power changes", |site| site.node("gpu-01").unwrap().power == Power::Changing);
    assert_eq!(bench.ports.bmc.power(&gpu).await.unwrap(), Power::Changing);
    assert_eq!(bench.ports.facts.facts(&gpu).await.unwrap_err().kind, PortErrorKind::Unavailable);
    bench.until("Nova has noticed", |site| !site.node("gpu-01").unwrap().up);
    assert!(!bench.ports.compute.service(&gpu).await.unwrap().up);
    assert!(!bench.ports.compute.hypervisor(&gpu).await.unwrap().up);
    bench.settle();
    assert!(bench.ports.compute.service(&gpu).await.unwrap().up);
    bench.ports.facts.facts(&gpu).await.unwrap();
}

async fn a_boot_device_that_was_not_taken_is_no_success(on: On) {
    let mut plan = SitePlan::uniform(1, 0);
    plan.node("gpu-01").unwrap().faults.ignores_boot_override = 1;
    let bench = on.site(plan).await;
    reason(&bench.ports.bmc.netboot_next(&node("gpu-01")).await.unwrap_err());
    bench.ports.bmc.netboot_next(&node("gpu-01")).await.unwrap();
}

async fn a_bmc_tells_whose_machine_it_has_its_hand_on(on: On) {
    let mut plan = SitePlan::uniform(4, 0);
    plan.node("gpu-02").unwrap().faults.bmc_of = Some("gpu-01".to_owned());
    let strange = vec!["02:00:5e:99:00:01".to_owned(), "02:00:5e:99:00:02".to_owned()];
    plan.node("gpu-03").unwrap().faults.bmc_tells = Some(strange.clone());
    plan.node("gpu-04").unwrap().faults.bmc_tells = Some(Vec::new());
    let bench = on.site(plan).await;
    let machine = async |name: &str| bench.ports.bmc.machine(&node(name)).await.unwrap();
    assert_eq!((machine("gpu-01").await, machine("gpu-02").await), (Machine::Own, Machine::Of(node("gpu-01"))));
    assert_eq!((machine("gpu-03").await, machine("gpu-04").await), (Machine::Unknown { macs: strange }, Machine::Unknown { macs: Vec::new() }));
}

async fn a_node_tells_whose_machine_it_is(on: On) {
    let mut plan = SitePlan::uniform(3, 0);
    let strange = vec!["02:00:5e:99:00:01".to_owned(), "02:00:5e:99:00:02".to_owned()];
    plan.node("gpu-02").unwrap().faults.tells_macs = Some(strange.clone());
    let of_another = "02:00:5e:99:00:0a".to_owned();
    plan.node("gpu-01").unwrap().mac.clone_from(&of_another);
    plan.node("gpu-03").unwrap().faults.tells_macs = Some(vec![strange[0].clone(), of_another]);
    let bench = on.site(plan).await;
    let machine = async |name: &str| bench.ports.facts.machine(&node(name)).await.unwrap();
    assert_eq!((machine("gpu-01").await, machine("gpu-03").await), (Machine::Own, Machine::Of(node("gpu-01"))));
    assert_eq!(machine("gpu-02").await, Machine::Unknown { macs: strange });
}

async fn a_withdrawn_order_installs_nothing(on: On) {
    let bench = on.site(SitePlan::uniform(1, 0)).await;
    bench.renew("gpu-01", "t1").await;
    bench.ports.netboot.withdraw(&node("gpu-01")).await.unwrap();
    bench.settle();
    let facts = bench.ports.facts.facts(&node("gpu-01")).await.unwrap();
    assert_eq!((facts.installed, facts.os_version_id.as_str()), (None, "22.04"));
}

/// Every installation gives the node another host key, too.
async fn a_second_installation_is_known_by_its_token(on: On) {
    let bench = on.site(SitePlan::uniform(1, 0)).await;
    let gpu = node("gpu-01");
    for token in ["t1", "t2", "t3"] {
        bench.ports.facts.facts(&gpu).await.unwrap();
        bench.renew("gpu-01", token).await;
        bench.settle();
        let facts = bench.ports.facts.facts(&gpu).await.unwrap();
        assert_eq!(facts.installed.unwrap().token.0, token);
        bench.ports.netboot.withdraw(&gpu).await.unwrap();
    }
    drop(bench.site);
}

/// Waits until the run is over: its end is seen a moment after it, where a process has to write it down.
async fn script_over(bench: &Bench, name: &str) -> ScriptState {
    let over = async || match bench.ports.setup.look(name).await.unwrap() {
        ScriptState::NotStarted | ScriptState::Running { .. } => None,
        over => Some(over),
    };
    until(&format!("the end of {name}"), over).await.unwrap()
}

/// Waits until the site has heard of it.
async fn script_begun(bench: &Bench) {
    let begun = async || (bench.happened(|what| matches!(what, Happened::ScriptStarted { .. })) > 0).then_some(());
    until("the site to hear of the script", begun).await.unwrap();
}

fn script_run(name: &str) -> ScriptRun {
    ScriptRun { name: name.to_owned(), arguments: ["--tags", "openstack", "--limit", "gpu-01"].map(str::to_owned).to_vec() }
}

async fn a_setup_script_runs_once_for_one_name(on: On) {
    let bench = on.site(SitePlan::uniform(2, 0).with_setup(&[])).await;
    let setup = &bench.ports.setup;
    assert!(!setup.place().is_empty());
    assert_eq!(setup.look("r.1").await.unwrap(), ScriptState::NotStarted);
    for _ in 0..3 {
        setup.start(&script_run("r.1")).await.unwrap();
    }
    script_begun(&bench).await;
    assert!(matches!(setup.look("r.1").await.unwrap(), ScriptState::Running { .. }));
    bench.settle();
    let ScriptState::Ended(end) = script_over(&bench, "r.1").await else { panic!("it has ended") };
    assert_eq!((end.code, end.recap.len()), (0, 1));
    assert_eq!((end.recap[0].host.as_str(), end.recap[0].failed, end.recap[0].unreachable), ("gpu-01", 0, 0));
    setup.start(&script_run("r.1")).await.unwrap();
    assert_eq!(bench.happened(|what| matches!(what, Happened::ScriptStarted { .. })), 1);
}

async fn a_setup_script_that_fails_says_so_of_the_node(on: On) {
    let bench = on.site(SitePlan::uniform(2, 0).with_setup(&[ScriptGoesWrong::FailsMidway])).await;
    bench.ports.setup.start(&script_run("r.1")).await.unwrap();
    script_begun(&bench).await;
    bench.settle();
    let ScriptState::Ended(end) = script_over(&bench, "r.1").await else { panic!("it has ended") };
    assert_eq!((end.code, end.recap[0].failed), (2, 1));
    assert!(!end.last_lines.is_empty());
}

async fn a_command_on_a_node_ends_as_it_does(on: On) {
    let bench = on.site(SitePlan::uniform(2, 0)).await;
    let limit = Duration::from_secs(10);
    let run = async |command: &str| bench.ports.facts.run(&node("gpu-01"), command, limit).await;
    assert_eq!(run(COUNT_GPUS).await.unwrap(), CommandEnd { code: 0, output: "8".to_owned() });
    assert_eq!(run("no-such-program").await.unwrap().code, 127);
    bench.renew("gpu-01", "t1").await;
    bench.until("it is down", |site| site.node("gpu-01").unwrap().phase != "running");
    assert_eq!(run(COUNT_GPUS).await.unwrap_err().kind, PortErrorKind::Unavailable);
}
