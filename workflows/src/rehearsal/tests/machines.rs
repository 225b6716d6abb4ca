use super::*;

const OLD_KERNEL: &str = "5.15.0-119-generic";
const NEW_KERNEL: &str = "6.8.0-60-generic";

fn renewed(bench: &Bench) -> bool {
    bench.facts("gpu-01").is_ok_and(|facts| facts.kernel == NEW_KERNEL)
}

#[test]
fn a_netboot_with_a_ticket_installs_and_the_node_rejoins() {
    let bench = Bench::of(SitePlan::uniform(2, 0));
    let before = bench.facts("gpu-01").unwrap();
    assert_eq!((before.installed.clone(), before.kernel.as_str()), (None, OLD_KERNEL));
    bench.close("gpu-01");
    bench.stage("gpu-01", "t1");
    bench.netboot_and_reset("gpu-01");
    assert_eq!(block_on(bench.ports.bmc.power(&node("gpu-01"))).unwrap(), Power::On, "a reset takes effect later");
    assert!(bench.facts("gpu-01").is_ok());
    bench.until("the power changes", |site| site.node("gpu-01").unwrap().power == Power::Changing);
    assert_eq!(bench.facts("gpu-01").unwrap_err().kind, PortErrorKind::Unavailable);
    assert!(block_on(bench.ports.compute.service(&node("gpu-01"))).unwrap().up, "Nova does not know yet");
    bench.until("it installs", |site| site.node("gpu-01").unwrap().phase == "installing");
    bench.pass(secs(60));
    assert!(!block_on(bench.ports.compute.service(&node("gpu-01"))).unwrap().up);
    bench.until("it runs", |site| site.node("gpu-01").unwrap().phase == "running");
    let after = bench.facts("gpu-01").unwrap();
    assert_ne!(before.boot_id, after.boot_id);
    let image = ImagePlan::new("node-26.1.1", "24.04", NEW_KERNEL);
    assert_eq!(after.installed.unwrap(), Installed { token: Token("t1".to_owned()), sha256: image.sha256 });
    assert_eq!((after.os_version_id.as_str(), after.kernel.as_str()), ("24.04", NEW_KERNEL));
    assert!(!block_on(bench.ports.compute.hypervisor(&node("gpu-01"))).unwrap().up, "SSH answers before Nova does");
    bench.settle();
    let service = block_on(bench.ports.compute.service(&node("gpu-01"))).unwrap();
    assert!(service.up && !service.enabled);
    assert_eq!(bench.happened(|what| matches!(what, Happened::ImageWritten { .. })), 1);
}

#[test]
fn the_override_counts_for_one_boot() {
    let bench = Bench::of(SitePlan::uniform(1, 0));
    bench.stage("gpu-01", "t1");
    bench.netboot_and_reset("gpu-01");
    bench.settle();
    block_on(bench.ports.bmc.reset(&node("gpu-01"))).unwrap();
    bench.settle();
    assert_eq!(bench.happened(|what| matches!(what, Happened::ImageWritten { .. })), 1);
    assert_eq!(block_on(bench.ports.bmc.boot_override(&node("gpu-01"))).unwrap().device, BootDevice::None);
}

#[test]
fn a_netboot_without_a_ticket_goes_on_to_the_disk() {
    let bench = Bench::of(SitePlan::uniform(1, 0));
    bench.stage("gpu-01", "t1");
    bench.netboot_and_reset("gpu-01");
    block_on(bench.ports.netboot.withdraw(&node("gpu-01"))).unwrap();
    bench.settle();
    assert_eq!(bench.facts("gpu-01").unwrap().kernel, OLD_KERNEL);
    assert_eq!(bench.happened(|what| matches!(what, Happened::Netbooted { token: None, .. })), 1);
}

#[test]
fn the_ticket_is_read_at_the_moment_of_the_netboot() {
    let bench = Bench::of(SitePlan::uniform(1, 0));
    bench.stage("gpu-01", "first");
    bench.netboot_and_reset("gpu-01");
    bench.until("it tests itself", |site| site.node("gpu-01").unwrap().phase == "self-test");
    bench.stage("gpu-01", "second");
    bench.settle();
    assert_eq!(bench.facts("gpu-01").unwrap().installed.unwrap().token, Token("second".to_owned()));
}

#[test]
fn a_reset_during_an_installation_ends_it() {
    let bench = Bench::of(SitePlan::uniform(1, 0));
    bench.stage("gpu-01", "t1");
    bench.netboot_and_reset("gpu-01");
    bench.until("it installs", |site| site.node("gpu-01").unwrap().phase == "installing");
    block_on(bench.ports.bmc.reset(&node("gpu-01"))).unwrap();
    bench.settle();
    assert_eq!(bench.facts("gpu-01").unwrap().kernel, OLD_KERNEL);
    assert_eq!(bench.happened(|what| matches!(what, Happened::ImageWritten { .. })), 0);
}

#[test]
fn instances_on_a_node_that_is_reset_are_lost_and_the_log_says_so() {
    let bench = Bench::of(SitePlan::uniform(2, 2));
    bench.stage("gpu-01", "t1");
    bench.netboot_and_reset("gpu-01");
    bench.settle();
    assert_eq!(bench.state("gpu-01-a"), "error");
    let lost = |what: &Happened| matches!(what, Happened::InstancesLost { node, instances, .. } if node == "gpu-01" && instances.len() == 2);
    assert_eq!(bench.happened(lost), 2, "by the reset, and by the image");
    let written = |what: &Happened| matches!(what, Happened::ImageWritten { enabled: true, instances, .. } if instances.len() == 2);
    assert_eq!(bench.happened(written), 1);
}

#[test]
fn a_migration_to_a_node_that_goes_down_leaves_the_instance_where_it_was() {
    let bench = Bench::of(SitePlan::uniform(2, 1));
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    bench.until("it is under way", |site| site.node("gpu-02").unwrap().arriving == 1);
    block_on(bench.ports.bmc.reset(&node("gpu-02"))).unwrap();
    bench.settle();
    assert_eq!((bench.state("gpu-01-a").as_str(), bench.host("gpu-01-a").as_str()), ("active", "gpu-01"));
    assert_eq!(bench.newest_migration("gpu-01-a").status, "failed");
}

#[test]
fn a_bmc_that_repeats_a_reset_boots_the_old_disk() {
    let faults = NodeFaults { repeats_reset: 1, ..NodeFaults::default() };
    let mut plan = SitePlan::uniform(1, 0);
    plan.latencies.reset_repeated = secs(80);
    plan.node("gpu-01").unwrap().faults = faults;
    let bench = Bench::of(plan);
    bench.stage("gpu-01", "t1");
    bench.netboot_and_reset("gpu-01");
    bench.settle();
    assert_eq!(bench.facts("gpu-01").unwrap().kernel, OLD_KERNEL);
    assert_eq!(bench.happened(|what| matches!(what, Happened::Netbooted { .. })), 1);
    assert_eq!(bench.happened(|what| matches!(what, Happened::PowerLost { asked: false, .. })), 1);
}

#[test]
fn every_fault_of_a_node_can_be_told_from_its_facts() {
    let base = NodeFaults::default;
    type Case = (&'static str, NodeFaults, fn(&Bench));
    let cases: [Case; 9] = [
        ("the override is lost", NodeFaults { loses_boot_override: 1, ..base() }, |bench| {
            assert_eq!(bench.facts("gpu-01").unwrap().kernel, OLD_KERNEL);
        }),
        ("the netboot fails", NodeFaults { netboot_fails: 1, ..base() }, |bench| {
            assert_eq!(bench.facts("gpu-01").unwrap().installed, None);
        }),
        ("nothing happens", NodeFaults { ignores_reset: 1, ..base() }, |bench| {
            assert_eq!(bench.happened(|what| matches!(what, Happened::PowerLost { .. })), 0);
            assert_eq!(bench.happened(|what| matches!(what, Happened::ResetRequested { obeyed: false, .. })), 1);
        }),
        ("the installer hangs", NodeFaults { installer_hangs: 1, ..base() }, |bench| {
            assert_eq!(bench.world.snapshot().node("gpu-01").unwrap().phase, "installing");
        }),
        ("it never comes back", NodeFaults { never_comes_back: 1, ..base() }, |bench| {
            assert_eq!(bench.facts("gpu-01").unwrap_err().kind, PortErrorKind::Unavailable);
        }),
        ("another kernel runs", NodeFaults { wrong_kernel: Some("6.8.0-31".to_owned()), ..base() }, |bench| {
            assert_eq!(bench.facts("gpu-01").unwrap().kernel, "6.8.0-31");
        }),
        ("another name", NodeFaults { wrong_hostname: Some("gpu-07".to_owned()), ..base() }, |bench| {
            assert_eq!(bench.facts("gpu-01").unwrap().hostname, "gpu-07");
        }),
        ("the hypervisor stays away", NodeFaults { hypervisor_stays_away: 1, ..base() }, |bench| {
            assert!(renewed(bench));
            assert!(!block_on(bench.ports.compute.hypervisor(&node("gpu-01"))).unwrap().up);
        }),
        ("memory is gone", NodeFaults { loses_memory_mb: 1024, ..base() }, |bench| {
            assert_eq!(block_on(bench.ports.compute.hypervisor(&node("gpu-01"))).unwrap().memory_mb, 511 * 1024);
        }),
    ];
    for (what, faults, shows) in cases {
        let mut plan = SitePlan::uniform(1, 0);
        plan.node("gpu-01").unwrap().faults = faults;
        let bench = Bench::of(plan);
        bench.stage("gpu-01", "t1");
        bench.netboot_and_reset("gpu-01");
        bench.settle();
        println!("{what}");
        shows(&bench);
        if bench.world.snapshot().node("gpu-01").unwrap().phase == "running" {
            bench.stage("gpu-01", "t2");
            bench.netboot_and_reset("gpu-01");
            bench.settle();
            let token = bench.facts("gpu-01").unwrap().installed.unwrap().token;
            assert_eq!(token.0, "t2", "{what}: once, and then it goes right");
        }
    }
}

#[test]
fn an_override_that_was_not_taken_is_an_error_at_once() {
    let mut plan = SitePlan::uniform(1, 0);
    plan.node("gpu-01").unwrap().faults.ignores_boot_override = 1;
    let bench = Bench::of(plan);
    let error = block_on(bench.ports.bmc.netboot_next(&node("gpu-01"))).unwrap_err();
    assert!(refusal(&error).contains("did not take it"));
    block_on(bench.ports.bmc.netboot_next(&node("gpu-01"))).unwrap();
}
