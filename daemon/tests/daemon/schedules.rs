//! Ticks: each starts one workflow, however many daemons there are, whatever the clock does.

use std::sync::Arc;

use turnaround_daemon::jobs::BackgroundJob as _;
use turnaround_daemon::schedule::Schedules;
use turnaround_daemon::tick_log::TickLog;
use turnaround_daemon::wire::TickVerdict;
use turnaround_workflows::clock::{Clock, HandClock};
use turnaround_workflows::engine::{State, start};
use turnaround_workflows::store::memory::MemoryStore;
use turnaround_workflows::store::{Document, Query, Scope, Store};
use turnaround_workflows::updates::{self, RolloutOrder};

use super::site::{at, config};

/// Daemons that share a store, each with what it has in memory, and their common clock.
struct Daemons {
    clock: Arc<HandClock>,
    store: Arc<MemoryStore>,
    config: Arc<turnaround_config::Config>,
    jobs: Vec<(Schedules, Arc<TickLog>)>,
    folder: tempfile::TempDir,
}

impl Daemons {
    /// One schedule called `s`, and one daemon that has begun at `start`.
    async fn begin(start: &str, schedule: &str) -> Daemons {
        let clock = Arc::new(HandClock::at(at(start)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as Arc<dyn Clock>));
        let config = Arc::new(config(&format!("[schedules.s]\n{schedule}")));
        let mut daemons = Daemons { clock, store, config, jobs: Vec::new(), folder: tempfile::tempdir().unwrap() };
        daemons.start_another();
        daemons.pulse().await;
        daemons
    }

    fn start_another(&mut self) {
        let log = Arc::new(TickLog::open(self.folder.path()));
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        self.jobs.push((Schedules::new(Arc::clone(&self.config), store, Arc::clone(&log), Arc::default()), log));
    }

    /// All daemons end, and one starts.
    fn restart(&mut self) {
        self.jobs.clear();
        self.start_another();
    }

    /// All daemons end, and one starts whose configuration has this in it.
    fn restart_with(&mut self, schedules: &str) {
        self.config = Arc::new(config(schedules));
        self.restart();
    }

    /// Every daemon looks once.
    async fn pulse(&mut self) {
        for (job, _) in &mut self.jobs {
            job.activate().await.unwrap();
        }
    }

    /// Every daemon looks at each of these moments.
    async fn live_through(&mut self, moments: &[&str]) {
        for moment in moments {
            self.clock.advance_to(at(moment));
            self.pulse().await;
        }
    }

    async fn started(&self) -> Vec<Document> {
        self.store.list(&Query { scope: Scope::All, limit: 500, ..Query::default() }).await.unwrap()
    }

    /// Ticks that started something, in order, as `HH:MM`.
    async fn ticks(&self) -> Vec<String> {
        let mut ids: Vec<i64> = self.started().await.iter().map(|one| one.id.as_str().rsplit('-').next().unwrap().parse().unwrap()).collect();
        ids.sort_unstable();
        ids.into_iter().map(|seconds| chrono::DateTime::from_timestamp(seconds, 0).unwrap().format("%H:%M").to_string()).collect()
    }

    /// What the newest daemon decided, oldest first.
    fn verdicts(&self) -> Vec<(TickVerdict, String)> {
        let recent = self.jobs.last().unwrap().1.recent(&"s".parse().unwrap());
        recent.into_iter().rev().map(|tick| (tick.verdict, tick.note)).collect()
    }
}

const HOURLY: &str = "cron = \"0 * * * *\"\nstarts = \"survey\"";

#[tokio::test]
async fn a_tick_starts_what_it_is_for_under_an_id_made_of_it() {
    let mut daemons = Daemons::begin("2026-11-22T00:30:00Z", "cron = \"0 * * * *\"\nstarts = \"node-os\"\nimage = \"noble-2\"").await;
    daemons.live_through(&["2026-11-22T00:59:59.999Z"]).await;
    assert!(daemons.started().await.is_empty());
    daemons.live_through(&["2026-11-22T01:00:00Z", "2026-11-22T01:00:01Z"]).await;
    let started = daemons.started().await;
    assert_eq!(started.len(), 1);
    assert_eq!(started[0].id.as_str(), format!("tick-s-{}", at("2026-11-22T01:00:00Z").millis() / 1000));
    let state = State::load(&*daemons.store, &started[0]).await.unwrap().unwrap();
    assert_eq!(state.created_by, "schedule s");
    assert_eq!(state.input["nodes"], serde_json::json!(["gpu-01", "gpu-02"]), "no node named: all of them");
}

const RENEWS_HOURLY: &str = "cron = \"0 * * * *\"\nstarts = \"node-os\"\nimage = \"noble-2\"";

#[tokio::test]
async fn a_tick_leaves_out_the_nodes_that_are_being_renewed_already() {
    let mut daemons = Daemons::begin("2026-11-22T00:30:00Z", RENEWS_HOURLY).await;
    let order = RolloutOrder::new(&daemons.config, &["gpu-01".parse().unwrap()], &"noble-2".parse().unwrap()).unwrap();
    let new = updates::rollout(&order, "ada").unwrap();
    let by_ada = new.id.clone();
    daemons.store.create(start(new, daemons.clock.now()).unwrap()).await.unwrap();
    daemons.live_through(&["2026-11-22T01:00:00Z", "2026-11-22T02:00:00Z", "2026-11-22T02:00:01Z"]).await;
    let started = daemons.started().await;
    assert_eq!(started.len(), 2, "hers, and one tick's");
    let tick = started.iter().find(|one| one.id != by_ada).unwrap();
    let state = State::load(&*daemons.store, tick).await.unwrap().unwrap();
    assert_eq!(state.input["nodes"], serde_json::json!(["gpu-02"]));
    let expected = [
        (TickVerdict::Started, format!("{}; to be renewed already: gpu-01 (by {by_ada})", tick.id)),
        (TickVerdict::Skipped, format!("to be renewed already: gpu-01 (by {by_ada}), gpu-02 (by {})", tick.id)),
    ];
    assert_eq!(daemons.verdicts(), expected);
}

#[tokio::test]
async fn of_ticks_that_are_made_up_for_together_one_renews_a_node() {
    let mut daemons = Daemons::begin("2026-11-22T00:30:00Z", &format!("{RENEWS_HOURLY}\ncatch_up = \"all\"\nmax_lateness = \"6h\"")).await;
    daemons.live_through(&["2026-11-22T03:30:00Z"]).await;
    assert_eq!(daemons.ticks().await, ["01:00"]);
    let verdicts: Vec<TickVerdict> = daemons.verdicts().into_iter().map(|(verdict, _)| verdict).collect();
    assert_eq!(verdicts, [TickVerdict::Started, TickVerdict::Skipped, TickVerdict::Skipped]);
}

#[tokio::test]
async fn the_first_daemon_ever_makes_up_for_nothing() {
    let daemons = Daemons::begin("2026-11-22T05:30:00Z", &format!("{HOURLY}\ncatch_up = \"all\"\nmax_lateness = \"24h\"")).await;
    assert!(daemons.started().await.is_empty());
    assert_eq!(daemons.store.last_tick("s").await.unwrap(), Some(at("2026-11-22T05:30:00Z")));
}

#[tokio::test]
async fn a_schedule_whose_times_were_changed_makes_up_for_nothing_and_then_keeps_its_new_times() {
    let mut daemons = Daemons::begin("2026-11-22T01:30:00Z", "cron = \"0 2 * * *\"\nstarts = \"survey\"").await;
    daemons.live_through(&["2026-11-22T02:00:00Z"]).await;
    // 05:00 would be 40 minutes late, which `max_lateness` allows.
    daemons.config = Arc::new(config("[schedules.s]\ncron = \"0 5,6 * * *\"\nstarts = \"survey\""));
    daemons.restart();
    daemons.live_through(&["2026-11-22T05:40:00Z", "2026-11-22T05:40:01Z"]).await;
    assert_eq!(daemons.ticks().await, ["02:00"]);
    // What is missed from then on is made up for, by whoever comes next.
    daemons.restart();
    daemons.live_through(&["2026-11-22T06:20:00Z", "2026-11-22T06:20:01Z"]).await;
    assert_eq!(daemons.ticks().await, ["02:00", "06:00"]);
    // Also where no tick was judged in between.
    daemons.config = Arc::new(config("[schedules.s]\ncron = \"10 6 * * *\"\nstarts = \"survey\""));
    daemons.restart();
    daemons.live_through(&["2026-11-22T06:25:00Z", "2026-11-22T06:25:01Z"]).await;
    assert_eq!(daemons.ticks().await, ["02:00", "06:00"]);
}

#[tokio::test]
async fn three_daemons_fire_each_tick_once() {
    let mut daemons = Daemons::begin("2026-11-22T00:30:00Z", HOURLY).await;
    daemons.start_another();
    daemons.start_another();
    daemons.live_through(&["2026-11-22T01:00:00Z", "2026-11-22T01:00:01Z", "2026-11-22T02:00:00Z", "2026-11-22T02:00:01Z"]).await;
    assert_eq!(daemons.ticks().await, ["01:00", "02:00"]);
}

#[tokio::test]
async fn a_restart_in_the_same_second_fires_nothing_again() {
    let mut daemons = Daemons::begin("2026-11-22T00:30:00Z", HOURLY).await;
    daemons.live_through(&["2026-11-22T01:00:00Z"]).await;
    for _ in 0..3 {
        daemons.restart();
        daemons.pulse().await;
    }
    assert_eq!(daemons.ticks().await, ["01:00"]);
}

#[tokio::test]
async fn what_did_not_run_is_still_known_after_a_restart() {
    let mut daemons = Daemons::begin("2026-11-22T00:30:00Z", &format!("{HOURLY}\nmax_lateness = \"1min\"")).await;
    daemons.live_through(&["2026-11-22T01:00:00Z", "2026-11-22T04:30:00Z"]).await;
    let before = daemons.verdicts();
    daemons.restart();
    assert_eq!(daemons.verdicts(), before);
    assert_eq!(before.iter().map(|(verdict, _)| *verdict).collect::<Vec<_>>(), [TickVerdict::Started, TickVerdict::Missed]);
}

/// Nobody runs from 00:30 to 04:05; at most four hours late, unless `schedule` says otherwise.
async fn check_catch_up(schedule: &str, started: &[&str], verdicts: &[(TickVerdict, &str)]) {
    let mut daemons = Daemons::begin("2026-11-22T00:30:00Z", &format!("{HOURLY}\n{schedule}")).await;
    daemons.clock.advance_to(at("2026-11-22T04:05:00Z"));
    daemons.restart();
    daemons.pulse().await;
    daemons.pulse().await;
    assert_eq!(daemons.ticks().await, started, "{schedule}");
    let decided = daemons.verdicts();
    let decided: Vec<_> = decided.iter().map(|(verdict, note)| (*verdict, note.split('-').next().unwrap())).collect();
    assert_eq!(decided, verdicts, "{schedule}");
}

#[tokio::test]
async fn ticks_that_passed_while_nobody_ran_are_caught_up_as_told() {
    use TickVerdict::{Missed, Skipped, Started};
    check_catch_up("catch_up = \"skip\"\nmax_lateness = \"4h\"", &[], &[(Skipped, "catch_up = \"skip\", and 3 before it")]).await;
    let latest = [(Started, "tick"), (Skipped, "catch_up = \"latest\", and 2 before it")];
    check_catch_up("catch_up = \"latest\"\nmax_lateness = \"4h\"", &["04:00"], &latest).await;
    let all = [(Started, "tick"); 4];
    check_catch_up("catch_up = \"all\"\nmax_lateness = \"4h\"", &["01:00", "02:00", "03:00", "04:00"], &all).await;
    let late = [(Started, "tick"), (Started, "tick"), (Missed, "later than max_lateness (90min), and 1 before it")];
    check_catch_up("catch_up = \"all\"\nmax_lateness = \"90min\"", &["03:00", "04:00"], &late).await;
    let too_late = [(Missed, "later than max_lateness (1min), and 3 before it")];
    check_catch_up("catch_up = \"latest\"\nmax_lateness = \"1min\"", &[], &too_late).await;
    check_catch_up("catch_up = \"all\"\nmax_lateness = \"5min\"", &["04:00"], &[(Started, "tick"), (Missed, "later than max_lateness (5min), and 2 before it")]).await;
}

#[tokio::test]
async fn a_daemon_that_is_a_few_seconds_late_is_on_time() {
    let mut daemons = Daemons::begin("2026-11-22T00:30:00Z", &format!("{HOURLY}\ncatch_up = \"skip\"")).await;
    daemons.live_through(&["2026-11-22T01:00:20Z", "2026-11-22T02:00:31Z"]).await;
    assert_eq!(daemons.ticks().await, ["01:00"]);
}

#[tokio::test]
async fn years_of_missed_minutes_are_passed_in_one_look() {
    let mut daemons = Daemons::begin("2020-01-01T00:00:00Z", "cron = \"* * * * *\"\nstarts = \"survey\"\ncatch_up = \"all\"").await;
    daemons.live_through(&["2026-11-22T12:00:00Z", "2026-11-22T12:00:01Z", "2026-11-22T12:00:02Z"]).await;
    // At most an hour late, the first minute of it included.
    assert_eq!(daemons.ticks().await.len(), 61);
    assert_eq!(daemons.verdicts().iter().filter(|(verdict, _)| *verdict == TickVerdict::Missed).count(), 1);
}

#[tokio::test]
async fn a_long_list_of_ticks_is_worked_off_in_pieces_and_none_is_lost() {
    let mut daemons = Daemons::begin("2026-11-22T00:00:00Z", "cron = \"* * * * *\"\nstarts = \"survey\"\ncatch_up = \"all\"\nmax_lateness = \"6h\"").await;
    daemons.clock.advance_to(at("2026-11-22T04:00:00Z"));
    for pass in [100, 200, 240, 240] {
        daemons.pulse().await;
        assert_eq!(daemons.started().await.len(), pass);
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_fires_nothing_twice() {
    let mut daemons = Daemons::begin("2026-11-22T00:30:00Z", HOURLY).await;
    daemons.live_through(&["2026-11-22T01:00:00Z", "2026-11-22T02:00:00Z"]).await;
    // The hand clock only goes forward; the ledger is what stays, so another clock takes its place.
    let earlier = Arc::new(HandClock::at(at("2026-11-22T00:45:00Z")));
    let ledger = daemons.store.last_tick("s").await.unwrap();
    let judged = turnaround_daemon::schedule::judge(&daemons.config.schedules[&"s".parse().unwrap()], ledger.unwrap().utc(), earlier.now().utc());
    assert_eq!(judged, None);
    daemons.restart();
    daemons.live_through(&["2026-11-22T02:30:00Z"]).await;
    assert_eq!(daemons.ticks().await, ["01:00", "02:00"]);
}

#[tokio::test]
async fn a_schedule_that_was_taken_out_and_put_back_makes_up_for_nothing() {
    let mut daemons = Daemons::begin("2026-11-22T00:30:00Z", HOURLY).await;
    daemons.live_through(&["2026-11-22T01:00:00Z"]).await;
    daemons.restart_with("");
    daemons.live_through(&["2026-11-22T01:30:00Z", "2026-11-22T02:10:00Z"]).await;
    let schedule = format!("[schedules.s]\n{HOURLY}");
    daemons.restart_with(&schedule);
    daemons.live_through(&["2026-11-22T02:20:00Z", "2026-11-22T02:20:01Z"]).await;
    assert_eq!(daemons.ticks().await, ["01:00"], "nobody has waited for the one at 02:00");
    // From then on it goes as before, also over a restart.
    daemons.live_through(&["2026-11-22T03:00:00Z"]).await;
    daemons.restart_with(&schedule);
    daemons.live_through(&["2026-11-22T04:10:00Z"]).await;
    assert_eq!(daemons.ticks().await, ["01:00", "03:00", "04:00"]);
}

#[tokio::test]
async fn a_ledger_ahead_of_the_clock_is_told_to_whoever_looks() {
    let daemons = Daemons::begin("2026-11-22T00:30:00Z", HOURLY).await;
    let (name, schedule) = daemons.config.schedules.first_key_value().unwrap();
    let ahead = turnaround_daemon::schedule::view(name, schedule, at("2026-11-22T00:00:00Z"), Some(at("2038-01-19T03:14:07Z")), Vec::new());
    assert!(ahead.problem.unwrap().contains("2038-01-19"));
    let good = turnaround_daemon::schedule::view(name, schedule, at("2026-11-22T00:30:00Z"), Some(at("2026-11-22T00:30:00Z")), Vec::new());
    assert_eq!(good.problem, None);
}

#[tokio::test]
async fn clock_changes_neither_drop_nor_double_a_nightly_run() {
    let nightly = "cron = \"30 2 * * *\"\ntimezone = \"Europe/Berlin\"\nstarts = \"survey\"";
    // Forward: 02:30 does not exist, and the run is at the moment of the jump, 01:00 UTC.
    let mut spring = Daemons::begin("2026-03-28T12:00:00Z", nightly).await;
    spring.live_through(&["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"]).await;
    assert_eq!(spring.ticks().await, ["01:00", "00:30"]);
    // Back: 02:30 comes twice, and the run is at the first.
    let mut autumn = Daemons::begin("2026-10-24T12:00:00Z", nightly).await;
    autumn.live_through(&["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"]).await;
    assert_eq!(autumn.ticks().await, ["00:30", "01:30"]);
}
