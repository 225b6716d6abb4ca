use super::*;

fn fault(how: MoveGoesWrong, times: u32) -> SitePlan {
    let mut plan = SitePlan::uniform(2, 1);
    plan.instance("gpu-01-a").unwrap().fault = MoveFault::new(how, times, "the guest is pinned");
    plan
}

#[test]
fn a_move_fails_as_often_as_planned_and_then_works() {
    let bench = Bench::of(fault(MoveGoesWrong::PreCheck, 2));
    for _ in 0..2 {
        let request = bench.start_move("gpu-01-a", Move::Live).unwrap();
        bench.settle();
        assert_eq!((bench.state("gpu-01-a").as_str(), bench.host("gpu-01-a").as_str()), ("active", "gpu-01"));
        assert_eq!(bench.why_failed("gpu-01-a", &request).as_deref(), Some("the guest is pinned"));
        assert_eq!(bench.newest_migration("gpu-01-a").status, "error");
    }
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    bench.settle();
    assert_eq!(bench.host("gpu-01-a"), "gpu-02");
}

#[test]
fn a_live_move_that_fails_midway_rolls_back_and_a_cold_one_leaves_an_error() {
    let bench = Bench::of(fault(MoveGoesWrong::Midway, ALWAYS));
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    bench.settle();
    assert_eq!((bench.state("gpu-01-a").as_str(), bench.host("gpu-01-a").as_str()), ("active", "gpu-01"));
    assert_eq!(bench.newest_migration("gpu-01-a").status, "failed");
    bench.start_move("gpu-01-a", Move::Cold).unwrap();
    bench.settle();
    assert_eq!((bench.state("gpu-01-a").as_str(), bench.host("gpu-01-a").as_str()), ("error", "gpu-01"));
    let instance = block_on(bench.ports.instances.get(&bench.id("gpu-01-a"))).unwrap().unwrap();
    assert_eq!(instance.fault.as_deref(), Some("the guest is pinned"));
}

#[test]
fn a_move_may_be_refused_at_the_request_or_never_end() {
    let bench = Bench::of(fault(MoveGoesWrong::Refused, 1));
    assert_eq!(refusal(&bench.start_move("gpu-01-a", Move::Live).unwrap_err()), "the guest is pinned");
    assert_eq!(bench.state("gpu-01-a"), "active");
    bench.start_move("gpu-01-a", Move::Live).unwrap();

    let bench = Bench::of(fault(MoveGoesWrong::Hangs, 1));
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    bench.pass(secs(86_400));
    assert_eq!(bench.state("gpu-01-a"), "active/migrating");
    assert_eq!(bench.newest_migration("gpu-01-a").state, MigrationState::InProgress);
}

#[test]
fn a_fault_may_concern_one_kind_of_move_only() {
    let mut plan = fault(MoveGoesWrong::PreCheck, ALWAYS);
    let instance = plan.instance("gpu-01-a").unwrap();
    instance.fault = instance.fault.clone().only(Move::Live);
    let bench = Bench::of(plan);
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    bench.settle();
    assert_eq!(bench.host("gpu-01-a"), "gpu-01");
    bench.start_move("gpu-01-a", Move::Cold).unwrap();
    bench.settle();
    assert_eq!((bench.state("gpu-01-a").as_str(), bench.host("gpu-01-a").as_str()), ("resized", "gpu-02"));
}

#[test]
fn an_answer_may_be_lost_after_the_effect() {
    let bench = Bench::of(SitePlan::uniform(2, 1).loses_answer(Call::StartMove, 1).loses_answer(Call::Reset, 1));
    let error = bench.start_move("gpu-01-a", Move::Live).unwrap_err();
    assert_eq!(error.kind, PortErrorKind::OutcomeUnknown);
    assert_eq!(bench.state("gpu-01-a"), "active/migrating");
    bench.settle();
    assert_eq!(bench.host("gpu-01-a"), "gpu-02");
    let error = block_on(bench.ports.bmc.reset(&node("gpu-01"))).unwrap_err();
    assert_eq!(error.kind, PortErrorKind::OutcomeUnknown);
    bench.settle();
    assert_eq!(bench.happened(|what| matches!(what, Happened::PowerLost { .. })), 1);
}

#[test]
fn a_request_may_come_after_its_answer_was_given_up() {
    let late = || Bench::of(exact(SitePlan::uniform(2, 1).comes_late(Call::StartMove, 1, secs(9))));
    let bench = late();
    assert_eq!(bench.start_move("gpu-01-a", Move::Live).unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    bench.pass(secs(8));
    assert_eq!(bench.state("gpu-01-a"), "active");
    assert_eq!(block_on(bench.ports.instances.migrations(&bench.id("gpu-01-a"))).unwrap(), []);
    bench.pass(secs(1));
    assert_eq!(bench.state("gpu-01-a"), "active/migrating");
    bench.settle();
    assert_eq!(bench.host("gpu-01-a"), "gpu-02");

    // By then it may be at something else, or gone: Nova says no, to nobody.
    let nothing_comes_of_it = |bench: &Bench, why: &str| {
        bench.settle();
        let refused = |what: &Happened| matches!(what, Happened::MigrationEnded { reason: Some(reason), .. } if reason.contains(why));
        assert_eq!(bench.happened(refused), 1, "{why}");
    };
    let bench = late();
    bench.start_move("gpu-01-a", Move::Live).unwrap_err();
    bench.pass(secs(5));
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    nothing_comes_of_it(&bench, "while it is in task_state migrating");
    assert_eq!(bench.happened(|what| matches!(what, Happened::InstanceMoved { .. })), 1);
    let deleted = Happens::InstanceDeleted { name: "gpu-01-a".to_owned() };
    let bench = Bench::of(exact(SitePlan::uniform(2, 1).comes_late(Call::StartMove, 1, secs(9)).happens(secs(5), deleted)));
    bench.start_move("gpu-01-a", Move::Live).unwrap_err();
    nothing_comes_of_it(&bench, "could not be found");
}

#[test]
fn an_api_may_be_away_for_a_while_and_nothing_is_changed_meanwhile() {
    let mut plan = SitePlan::uniform(2, 0);
    plan.faults.outages = vec![
        Outage { api: Api::Nova, node: None, from: secs(10), lasts: secs(20) },
        Outage { api: Api::Bmc, node: Some("gpu-02".to_owned()), from: secs(0), lasts: secs(30) },
    ];
    let bench = Bench::of(plan);
    let close = || block_on(bench.ports.compute.close(&node("gpu-01"), "turnaround"));
    let reset = |name: &str| block_on(bench.ports.bmc.reset(&node(name)));
    assert_eq!(reset("gpu-02").unwrap_err().kind, PortErrorKind::Unavailable);
    reset("gpu-01").unwrap();
    bench.pass(secs(15));
    assert_eq!(close().unwrap_err().kind, PortErrorKind::Unavailable);
    assert!(bench.world.snapshot().node("gpu-01").unwrap().enabled);
    bench.pass(secs(15));
    close().unwrap();
    reset("gpu-02").unwrap();
}

#[test]
fn a_node_may_crash_and_its_service_goes_down_after_a_while() {
    let crash = Happens::NodeCrashes { node: "gpu-01".to_owned() };
    let bench = Bench::of(SitePlan::uniform(2, 1).happens(secs(10), crash));
    bench.pass(secs(60));
    assert_eq!(bench.facts("gpu-01").unwrap_err().kind, PortErrorKind::Unavailable);
    assert!(bench.world.snapshot().node("gpu-01").unwrap().up);
    bench.pass(secs(15));
    assert!(!bench.world.snapshot().node("gpu-01").unwrap().up);
    let request = bench.start_move("gpu-01-a", Move::Live).unwrap();
    bench.settle();
    let reason = "Compute service of gpu-01 is unavailable at this time.";
    assert_eq!(bench.why_failed("gpu-01-a", &request).as_deref(), Some(reason));
}

#[test]
fn others_may_disable_and_enable_nodes() {
    let plan = SitePlan::uniform(2, 0)
        .happens(secs(5), Happens::ServiceDisabled { node: "gpu-01".to_owned(), reason: "broken fan".to_owned() })
        .happens(secs(50), Happens::ServiceEnabled { node: "gpu-01".to_owned() });
    let bench = Bench::of(plan);
    bench.pass(secs(6));
    let service = block_on(bench.ports.compute.service(&node("gpu-01"))).unwrap();
    assert_eq!((service.enabled, service.disabled_reason.as_deref()), (false, Some("broken fan")));
    bench.settle();
    let service = block_on(bench.ports.compute.service(&node("gpu-01"))).unwrap();
    assert_eq!((service.enabled, service.disabled_reason), (true, None));
}
