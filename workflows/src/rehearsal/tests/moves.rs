use super::*;

#[test]
fn a_live_migration_arrives_before_it_is_over() {
    let bench = Bench::of(exact(SitePlan::uniform(2, 1)));
    bench.close("gpu-01");
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    assert_eq!(bench.state("gpu-01-a"), "active/migrating");
    assert_eq!(bench.host("gpu-01-a"), "gpu-01");
    bench.until("it is on the other node", |site| site.instance("gpu-01-a").unwrap().host.as_deref() == Some("gpu-02"));
    assert_eq!(bench.state("gpu-01-a"), "active");
    assert_eq!(bench.newest_migration("gpu-01-a").status, "running");
    assert_eq!(block_on(bench.ports.instances.moving(&node("gpu-01"))).unwrap().len(), 1);
    bench.settle();
    assert_eq!(bench.newest_migration("gpu-01-a").status, "completed");
    assert_eq!(bench.newest_migration("gpu-01-a").state, MigrationState::Succeeded);
    assert_eq!(block_on(bench.ports.instances.moving(&node("gpu-01"))).unwrap(), []);
}

#[test]
fn a_reset_tells_what_is_on_its_way_from_or_to_its_node_and_since_when() {
    let bench = Bench::of(exact(SitePlan::uniform(2, 1)));
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    bench.pass(secs(5));
    for name in ["gpu-01", "gpu-02"] {
        block_on(bench.ports.bmc.reset(&node(name))).unwrap();
    }
    let told = |event: WorldEvent| match event.what {
        Happened::ResetRequested { node, touching, .. } => Some((node, touching)),
        _ => None,
    };
    let told: Vec<(String, Vec<UnderWay>)> = bench.world.events().into_iter().filter_map(told).collect();
    let since = |since: Timestamp| vec![UnderWay { instance: bench.id("gpu-01-a").0, kind: MigrationKind::Live, since }];
    // The scheduler chooses after a second.
    assert_eq!(told, [("gpu-01".to_owned(), since(START)), ("gpu-02".to_owned(), since(START + secs(1)))]);
}

#[test]
fn a_host_sends_one_live_migration_at_a_time() {
    let bench = Bench::of(SitePlan::uniform(2, 3));
    for name in ["gpu-01-a", "gpu-01-b", "gpu-01-c"] {
        bench.start_move(name, Move::Live).unwrap();
    }
    bench.pass(secs(3));
    let status = |name| bench.newest_migration(name).status;
    let mut all = [status("gpu-01-a"), status("gpu-01-b"), status("gpu-01-c")];
    all.sort();
    assert_eq!(all, ["queued", "queued", "running"]);
    bench.settle();
    assert_eq!(bench.world.snapshot().node("gpu-02").unwrap().instances, 6);
}

#[test]
fn a_cold_migration_waits_for_its_confirmation_and_then_is_as_it_was() {
    for before in [VmState::Active, VmState::Stopped] {
        let mut plan = SitePlan::uniform(2, 1);
        plan.instance("gpu-01-a").unwrap().vm_state = before;
        let bench = Bench::of(plan);
        bench.start_move("gpu-01-a", Move::Cold).unwrap();
        assert_eq!(bench.state("gpu-01-a"), format!("{}/resize_prep", before.as_str()));
        bench.until("it is resized", |site| site.instance("gpu-01-a").unwrap().vm_state == "resized");
        assert_eq!(bench.host("gpu-01-a"), "gpu-02");
        assert_eq!(bench.newest_migration("gpu-01-a").state, MigrationState::AwaitsConfirmation);
        block_on(bench.ports.instances.confirm(&bench.id("gpu-01-a"))).unwrap();
        assert_eq!(bench.state("gpu-01-a"), "resized", "a confirmation takes its time");
        block_on(bench.ports.instances.confirm(&bench.id("gpu-01-a"))).unwrap();
        bench.settle();
        block_on(bench.ports.instances.confirm(&bench.id("gpu-01-a"))).unwrap();
        assert_eq!(bench.state("gpu-01-a"), before.as_str());
        assert_eq!(bench.newest_migration("gpu-01-a").status, "confirmed");
    }
}

/// Real Nova 33.0.2, a host whose nova-compute was killed while its service still counted as up.
#[test]
fn nothing_lands_on_a_host_that_only_seems_to_be_up() {
    for how in [Move::Live, Move::Cold] {
        let bench = Bench::of(exact(SitePlan::uniform(2, 1)));
        bench.stage("gpu-02", "t-1");
        bench.netboot_and_reset("gpu-02");
        bench.pass(secs(5));
        assert!(bench.world.snapshot().node("gpu-02").unwrap().up, "Nova knows nothing of it yet");
        let request = bench.start_move("gpu-01-a", how).unwrap();
        bench.pass(secs(60));
        let migration = bench.newest_migration("gpu-01-a");
        assert_eq!(bench.host("gpu-01-a"), "gpu-01");
        match how {
            Move::Live => {
                bench.pass(secs(1));
                assert_eq!(bench.newest_migration("gpu-01-a").status, "error");
                let reason = "No valid host was found. There are not enough hosts available.";
                assert_eq!(bench.why_failed("gpu-01-a", &request).as_deref(), Some(reason));
                assert_eq!((bench.state("gpu-01-a").as_str(), bench.host("gpu-01-a").as_str()), ("active", "gpu-01"));
            }
            Move::Cold => {
                assert_eq!(migration.destination, None);
                assert_eq!((migration.status.as_str(), bench.state("gpu-01-a").as_str()), ("pre-migrating", "active/resize_prep"));
                bench.until("the node is back", |site| site.instance("gpu-01-a").unwrap().vm_state == "resized");
                assert_eq!(bench.host("gpu-01-a"), "gpu-02");
                assert!(bench.facts("gpu-02").unwrap().installed.is_some(), "it was installed before");
            }
        }
        bench.settle();
        let id = bench.id("gpu-01-a").0;
        let lost = |what: &Happened| matches!(what, Happened::InstancesLost { instances, .. } if instances.contains(&id));
        assert_eq!(bench.happened(lost), 0);
    }
}

#[test]
fn what_was_never_resized_can_not_be_confirmed() {
    let bench = Bench::of(SitePlan::uniform(2, 1));
    let error = block_on(bench.ports.instances.confirm(&bench.id("gpu-01-a"))).unwrap_err();
    assert_eq!(refusal(&error), "it has never been migrated cold");
    let error = bench.world.request_confirm(&bench.id("gpu-01-a")).unwrap_err();
    assert_eq!(error, Trouble::Refused { status: 400, reason: "Instance has not been resized.".to_owned() });
}

#[test]
fn without_a_fit_host_a_move_is_accepted_and_fails_later_without_a_fault() {
    for how in [Move::Live, Move::Cold] {
        let bench = Bench::of(SitePlan::uniform(2, 1));
        bench.close("gpu-02");
        let request = bench.start_move("gpu-01-a", how).unwrap();
        bench.settle();
        assert_eq!((bench.state("gpu-01-a").as_str(), bench.host("gpu-01-a").as_str()), ("active", "gpu-01"));
        assert_eq!(bench.newest_migration("gpu-01-a").status, "error");
        assert_eq!(bench.newest_migration("gpu-01-a").destination, None);
        let reason = "No valid host was found. There are not enough hosts available.";
        assert_eq!(bench.why_failed("gpu-01-a", &request).as_deref(), Some(reason));
        assert_eq!(block_on(bench.ports.instances.get(&bench.id("gpu-01-a"))).unwrap().unwrap().fault, None);
    }
}

#[test]
fn a_full_host_is_not_fit_and_moves_under_way_count() {
    let mut plan = SitePlan::uniform(2, 2);
    *plan.node("gpu-02").unwrap() = NodePlan::new("gpu-02").size(12, 512 * 1024);
    let bench = Bench::of(plan);
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    bench.start_move("gpu-01-b", Move::Live).unwrap();
    bench.settle();
    let site = bench.world.snapshot();
    assert_eq!((site.node("gpu-01").unwrap().instances, site.node("gpu-02").unwrap().instances), (1, 3));
}

#[test]
fn a_second_move_while_one_is_under_way_is_refused() {
    let bench = Bench::of(SitePlan::uniform(2, 1));
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    let id = bench.id("gpu-01-a");
    let live = bench.start_move("gpu-01-a", Move::Live).unwrap_err();
    assert_eq!(refusal(&live), format!("Cannot 'os-migrateLive' instance {id} while it is in task_state migrating"));
    let cold = bench.start_move("gpu-01-a", Move::Cold).unwrap_err();
    assert_eq!(refusal(&cold), format!("Cannot 'migrate' instance {id} while it is in task_state migrating"));
    assert_eq!(block_on(bench.ports.instances.migrations(&id)).unwrap().len(), 1);
}

#[test]
fn what_can_not_be_moved_in_its_state_is_refused_in_novas_words() {
    use VmState::*;
    let refused = [
        (Move::Live, Stopped),
        (Move::Live, Error),
        (Move::Live, Suspended),
        (Move::Live, Resized),
        (Move::Cold, Paused),
        (Move::Cold, Error),
        (Move::Cold, Resized),
        (Move::Cold, Rescued),
    ];
    for (how, state) in refused {
        let mut plan = SitePlan::uniform(2, 1);
        plan.instance("gpu-01-a").unwrap().vm_state = state;
        let bench = Bench::of(plan);
        let error = bench.start_move("gpu-01-a", how).unwrap_err();
        assert!(refusal(&error).ends_with(&format!("while it is in vm_state {}", state.as_str())), "{error}");
    }
}

#[test]
fn a_paused_instance_moves_live_and_stays_paused_and_a_locked_one_moves_too() {
    let mut plan = SitePlan::uniform(2, 2);
    plan.instance("gpu-01-a").unwrap().vm_state = VmState::Paused;
    plan.instance("gpu-01-b").unwrap().locked = true;
    let bench = Bench::of(plan);
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    bench.start_move("gpu-01-b", Move::Live).unwrap();
    bench.settle();
    assert_eq!((bench.state("gpu-01-a").as_str(), bench.host("gpu-01-a").as_str()), ("paused", "gpu-02"));
    assert_eq!(bench.host("gpu-01-b"), "gpu-02");
}

#[test]
fn a_change_of_flavour_by_a_tenant_waits_for_the_tenant() {
    let mut plan = SitePlan::uniform(2, 1);
    plan.instance("gpu-01-a").unwrap().vm_state = VmState::Resized;
    let bench = Bench::of(plan);
    let migration = bench.newest_migration("gpu-01-a");
    assert_eq!((migration.kind, migration.state), (MigrationKind::Resize, MigrationState::AwaitsConfirmation));
    assert_eq!(block_on(bench.ports.instances.moving(&node("gpu-01"))).unwrap().len(), 1);
    let error = block_on(bench.ports.instances.confirm(&bench.id("gpu-01-a"))).unwrap_err();
    assert_eq!(refusal(&error), "its last move is a tenant's change of flavour");
}

#[test]
fn an_instance_that_was_on_its_way_shows_up_on_a_node_that_was_closed_meanwhile() {
    let late = InstancePlan::new("late").on("gpu-01");
    let bench = Bench::of(exact(SitePlan::uniform(2, 0).happens(secs(10), Happens::InstanceCreated(late))));
    bench.pass(secs(10));
    bench.close("gpu-01");
    assert_eq!(block_on(bench.ports.instances.on(&node("gpu-01"))).unwrap(), []);
    bench.pass(secs(1));
    assert_eq!(bench.state("late"), "building/spawning");
    assert_eq!(block_on(bench.ports.instances.on(&node("gpu-01"))).unwrap().len(), 1);
    bench.settle();
    assert_eq!(bench.state("late"), "active");
}

#[test]
fn nothing_new_lands_on_a_closed_node() {
    let plan = SitePlan::uniform(2, 0).happens(secs(10), Happens::InstanceCreated(InstancePlan::new("new")));
    let bench = Bench::of(plan);
    bench.close("gpu-01");
    bench.settle();
    assert_eq!(bench.host("new"), "gpu-02");
}

#[test]
fn an_instance_may_be_deleted_while_it_is_moved() {
    let deleted = Happens::InstanceDeleted { name: "gpu-01-a".to_owned() };
    let bench = Bench::of(SitePlan::uniform(2, 1).happens(secs(5), deleted));
    let id = bench.id("gpu-01-a");
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    bench.settle();
    assert_eq!(block_on(bench.ports.instances.get(&id)).unwrap(), None);
    assert_eq!(block_on(bench.ports.instances.moving(&node("gpu-01"))).unwrap(), []);
    let error = block_on(bench.ports.instances.start_move(&id, Move::Live, None)).unwrap_err();
    assert_eq!(error.kind, PortErrorKind::NotFound);
}

#[test]
fn an_unknown_host_never_looks_empty() {
    let bench = Bench::of(SitePlan::uniform(1, 0));
    let nowhere = node("gpu-99");
    assert_eq!(block_on(bench.ports.instances.on(&nowhere)).unwrap_err().kind, PortErrorKind::NotFound);
    assert_eq!(block_on(bench.ports.instances.moving(&nowhere)).unwrap_err().kind, PortErrorKind::NotFound);
    assert_eq!(block_on(bench.ports.compute.service(&nowhere)).unwrap_err().kind, PortErrorKind::NotFound);
    assert_eq!(block_on(bench.ports.compute.hypervisor(&nowhere)).unwrap_err().kind, PortErrorKind::NotFound);
}

#[test]
fn nova_may_know_a_node_by_another_name() {
    let mut plan = SitePlan::uniform(2, 1);
    plan.node("gpu-01").unwrap().nova_host = Some("gpu-01.cloud.internal".to_owned());
    let bench = Bench::of(plan);
    assert_eq!(bench.host("gpu-01-a"), "gpu-01.cloud.internal");
    assert_eq!(block_on(bench.ports.instances.on(&node("gpu-01"))).unwrap().len(), 1);
}
