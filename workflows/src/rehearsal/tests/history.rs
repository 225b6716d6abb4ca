use super::*;

fn busy(seed: u64) -> Bench {
    let mut plan = SitePlan::uniform(4, 3);
    plan.faults.lost_answer_percent = 20;
    plan.faults.unavailable_percent = 10;
    let bench = Bench::seeded(plan, seed);
    for name in ["gpu-01-a", "gpu-01-b", "gpu-01-c", "gpu-02-a"] {
        drop(bench.start_move(name, Move::Live));
        bench.pass(secs(2));
    }
    drop(block_on(bench.ports.bmc.reset(&node("gpu-03"))));
    bench.settle();
    bench
}

#[test]
fn the_same_seed_and_the_same_calls_give_the_same_history() {
    assert_eq!(busy(7).world.events(), busy(7).world.events());
    assert_ne!(busy(7).world.events(), busy(8).world.events());
}

#[test]
fn the_log_counts_without_gaps_and_never_goes_back_in_time() {
    let events = busy(7).world.events();
    assert!(matches!(events[0].what, Happened::SiteStarted { .. }));
    for (index, pair) in events.windows(2).enumerate() {
        assert_eq!(pair[0].seq, index as u64 + 1);
        assert!(pair[0].at <= pair[1].at);
    }
}

#[test]
fn the_log_in_a_file_is_the_log_in_memory() {
    let bench = Bench::of(SitePlan::uniform(2, 1));
    bench.close("gpu-01");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("world.jsonl");
    bench.world.log_to(&path).unwrap();
    bench.start_move("gpu-01-a", Move::Live).unwrap();
    bench.settle();
    let text = std::fs::read_to_string(path).unwrap();
    let read: Vec<WorldEvent> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, bench.world.events());
    assert!(
        text.lines()
            .nth(1)
            .unwrap()
            .starts_with(r#"{"seq":2,"at":1772323200000,"kind":"service_disabled","node":"gpu-01""#)
    );
}

#[test]
fn time_may_pass_in_one_leap_or_in_many_steps() {
    let run = |steps: u64| {
        let bench = Bench::of(SitePlan::uniform(3, 3));
        bench.close("gpu-01");
        for name in ["gpu-01-a", "gpu-01-b", "gpu-01-c"] {
            bench.start_move(name, Move::Live).unwrap();
        }
        for _ in 0..steps {
            bench.pass(secs(3600 / steps));
            bench.world.snapshot();
        }
        bench.world.events()
    };
    assert_eq!(run(1), run(720));
}

#[test]
fn a_clock_that_goes_back_does_not_take_the_site_with_it() {
    #[derive(Debug)]
    struct Jumpy(std::sync::atomic::AtomicI64);
    impl Clock for Jumpy {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.load(std::sync::atomic::Ordering::SeqCst))
        }
    }
    let clock = Arc::new(Jumpy(START.millis().into()));
    let world = World::new(clock.clone(), SitePlan::uniform(1, 0), 1);
    clock.0.fetch_sub(3_600_000, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(world.snapshot().at, START);
}

#[test]
fn tickets_may_come_from_the_folder_of_the_pxe_server() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::of(SitePlan::uniform(1, 0));
    bench.world.take_tickets_from(Arc::new(TicketDirectory(folder.path().to_owned())));
    let mac = bench.world.machines()[0].mac.clone();
    let config = r#"set timeout=0
# turnaround: {"node":"gpu-01","staged":true,"ticket":{"token":"t9","image":"node-26.1.1","sha256":"00"}}
linux /vmlinuz
"#;
    bench.netboot_and_reset("gpu-01");
    std::fs::write(folder.path().join(format!("{mac}.cfg")), config).unwrap();
    bench.settle();
    assert_eq!(bench.facts("gpu-01").unwrap().installed.unwrap().token.0, "t9");
    std::fs::write(folder.path().join(format!("{mac}.cfg")), config.replace("true", "false")).unwrap();
    assert_eq!(bench.world.ticket_of("gpu-01"), None, "a withdrawn order stays in its file");
}

#[test]
fn a_site_that_is_sped_up_does_the_same_sooner() {
    let plan = exact(SitePlan::uniform(1, 0)).sped_up(100);
    assert_eq!(plan.latencies.service_down_time, Duration::from_millis(600));
    let bench = Bench::of(plan);
    bench.stage("gpu-01", "t1");
    bench.netboot_and_reset("gpu-01");
    bench.pass(secs(5));
    assert!(bench.facts("gpu-01").unwrap().installed.is_some());
    assert!(bench.world.snapshot().node("gpu-01").unwrap().up);
}

#[test]
fn a_plan_survives_json() {
    let plan = SitePlan::uniform(2, 1).loses_answer(Call::Confirm, 3).happens(
        secs(5),
        Happens::InstanceCreated(InstancePlan::new("x").fault(MoveFault::new(MoveGoesWrong::Hangs, ALWAYS, "stuck"))),
    );
    let text = serde_json::to_string(&plan).unwrap();
    let read: SitePlan = serde_json::from_str(&text).unwrap();
    assert_eq!(text, serde_json::to_string(&read).unwrap());
    let sparse: SitePlan = serde_json::from_str(r#"{"nodes":[{"name":"a"}]}"#).unwrap();
    assert_eq!(sparse.nodes[0].vcpus, 64);
}

#[test]
fn a_large_site_is_drained_without_waiting_for_it() {
    let mut plan = SitePlan::uniform(400, 10);
    plan.latencies.live_at_once = 10;
    let bench = Bench::of(plan);
    for name in ["gpu-01", "gpu-02", "gpu-03"] {
        bench.close(name);
        for instance in block_on(bench.ports.instances.on(&node(name))).unwrap() {
            block_on(bench.ports.instances.start_move(&instance.id, Move::Live, None)).unwrap();
        }
        bench.settle();
        assert_eq!(bench.world.snapshot().node(name).unwrap().instances, 0);
    }
}
