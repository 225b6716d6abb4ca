//! Alarms: what a person should look at, raised once and over when it is over.
//!
//! Each has a code, a page in `docs/errors/` that is called like it, a line in `turnaround status`, a metric, and one line in the
//! log when it is raised and one when it is over, however often it is noticed meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{error, info, warn};
use turnaround_workflows::clock::{Clock, Timestamp};
use turnaround_workflows::store::Trouble;
use turnaround_workflows::telemetry::metrics;

use crate::wire::AlarmView;

/// What an alarm is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmCode {
    Store(Trouble),
    /// The file in which this daemon remembers the store can't be read or written.
    HighWaterFile,
    /// The private Redis ended by itself.
    PrivateRedis,
    /// Workflows that can't be right were set apart.
    Quarantined,
    /// Installers can't be listened to.
    InstallerReports,
    /// Workflows wait for workers, and none comes.
    NoWorker,
}

impl AlarmCode {
    /// Every code that there is.
    pub fn all() -> impl Iterator<Item = AlarmCode> {
        Trouble::ALL.into_iter().map(AlarmCode::Store).chain([AlarmCode::HighWaterFile, AlarmCode::PrivateRedis, AlarmCode::Quarantined, AlarmCode::InstallerReports, AlarmCode::NoWorker])
    }

    pub fn as_str(self) -> &'static str {
        match self {
            AlarmCode::Store(trouble) => trouble.code(),
            AlarmCode::HighWaterFile => "high-water-file",
            AlarmCode::PrivateRedis => "private-redis",
            AlarmCode::Quarantined => "quarantined",
            AlarmCode::InstallerReports => "installer-reports",
            AlarmCode::NoWorker => "no-worker",
        }
    }

    fn means(self) -> &'static str {
        match self {
            AlarmCode::Store(trouble) => trouble.means(),
            AlarmCode::HighWaterFile => "what this daemon remembers of the store can't be kept, so that a loss may go unnoticed",
            AlarmCode::PrivateRedis => "the private Redis ended by itself, and is started again",
            AlarmCode::Quarantined => "what is kept of these workflows can't be right: nobody works on them, and all others go on",
            AlarmCode::InstallerReports => "installers can't be listened to: nodes whose installation takes long will be asked about",
            AlarmCode::NoWorker => "workflows are due and no worker takes them: none runs that serves their queue, or there are too few",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            AlarmCode::Store(trouble) => trouble.remedy(),
            AlarmCode::HighWaterFile => "see that the state directory can be written to and has room; a damaged file is for you to remove",
            AlarmCode::PrivateRedis => "see what explains it: a full disk or a damaged file does not mend itself",
            AlarmCode::Quarantined => "look at each with `turnaround show ID`, and at its node by hand; then `retry` or `abort` it",
            AlarmCode::InstallerReports => "see that this host has the address of `netboot.reports_listen`, and that nobody else listens there",
            AlarmCode::NoWorker => "see that a turnaround-worker runs and reaches the store, and that somebody serves each queue (`--queues`)",
        }
    }

    /// Does it need a person, or does it usually pass?
    fn needs_a_person(self) -> bool {
        match self {
            AlarmCode::Store(trouble) => match trouble {
                Trouble::Halted | Trouble::DiskFull | Trouble::MemoryFull | Trouble::Unusable | Trouble::Damaged => true,
                Trouble::Unreachable | Trouble::Silent | Trouble::Loading | Trouble::Demoted | Trouble::FewReplicas | Trouble::Busy => false,
            },
            AlarmCode::HighWaterFile | AlarmCode::Quarantined | AlarmCode::InstallerReports | AlarmCode::NoWorker => true,
            AlarmCode::PrivateRedis => false,
        }
    }
}

struct Raised {
    since: Timestamp,
    detail: String,
}

/// What is raised, and what was told of it.
#[derive(Default)]
struct Board {
    raised: BTreeMap<AlarmCode, Raised>,
    /// Since when the store is not well, in whichever way: one outage may show itself in several ways, by turns.
    unwell_since: Option<Timestamp>,
    /// Its troubles that were told since then.
    told: BTreeSet<Trouble>,
}

/// Takes it that an alarm is raised (or is not).
type Gauge = Box<dyn Fn(&'static str, bool) + Send + Sync>;

/// All alarms of this daemon. One lock is held through each change and while the gauge is set: several see troubles at the same time, and the
/// newest word has to stand everywhere. The log is written after that.
pub struct Alarms {
    clock: Arc<dyn Clock>,
    /// [`metrics::alarm`], except in tests.
    gauge: Gauge,
    board: Mutex<Board>,
}

impl Alarms {
    pub fn new(clock: Arc<dyn Clock>) -> Alarms {
        Alarms { clock, gauge: Box::new(metrics::alarm), board: Mutex::default() }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `code` is raised, if it was not already. `detail`: what was seen, newest.
    pub fn raise(&self, code: AlarmCode, detail: impl Into<String>) {
        let detail = detail.into();
        let is_new = self.note(&mut self.board(), code, self.clock.now(), &detail);
        if is_new {
            tell(code, &detail);
        }
    }

    /// True if it is a new one, which has been there since `since`.
    fn note(&self, board: &mut Board, code: AlarmCode, since: Timestamp, detail: &str) -> bool {
        let detail = detail.to_owned();
        if let Some(known) = board.raised.get_mut(&code) {
            known.detail = detail;
            return false;
        }
        board.raised.insert(code, Raised { since, detail });
        (self.gauge)(code.as_str(), true);
        true
    }

    /// `code` is over, if it was raised.
    pub fn over(&self, code: AlarmCode) {
        let ended = self.forget(&mut self.board(), code);
        if let Some(raised) = ended {
            self.tell_over(code, raised.since);
        }
    }

    fn forget(&self, board: &mut Board, code: AlarmCode) -> Option<Raised> {
        let raised = board.raised.remove(&code)?;
        (self.gauge)(code.as_str(), false);
        Some(raised)
    }

    /// The store has this trouble, and no other one. Only who also tells that it [is well](Alarms::store_is_well) may say so.
    pub fn store_has(&self, trouble: Trouble, detail: impl Into<String>) {
        let (code, detail) = (AlarmCode::Store(trouble), detail.into());
        let mut board = self.board();
        for other in Trouble::ALL.into_iter().filter(|other| *other != trouble) {
            self.forget(&mut board, AlarmCode::Store(other));
        }
        let since = *board.unwell_since.get_or_insert_with(|| self.clock.now());
        self.note(&mut board, code, since, &detail);
        let is_untold = board.told.insert(trouble);
        drop(board);
        if is_untold {
            tell(code, &detail);
        }
    }

    /// The store does what it should. Of every trouble that was told it is told that it is over, also of one that gave way to another.
    pub fn store_is_well(&self) {
        let Some((since, told)) = self.outage_ended() else { return };
        for trouble in told {
            self.tell_over(AlarmCode::Store(trouble), since);
        }
    }

    /// Since when the store was not well, and what was told of it.
    fn outage_ended(&self) -> Option<(Timestamp, BTreeSet<Trouble>)> {
        let mut board = self.board();
        let since = board.unwell_since.take()?;
        let told = std::mem::take(&mut board.told);
        for trouble in &told {
            self.forget(&mut board, AlarmCode::Store(*trouble));
        }
        Some((since, told))
    }

    /// The trouble that the store has, as far as is known.
    pub fn store_trouble(&self) -> Option<Trouble> {
        let board = self.board();
        Trouble::ALL.into_iter().find(|trouble| board.raised.contains_key(&AlarmCode::Store(*trouble)))
    }

    /// Every alarm that is raised.
    pub fn views(&self) -> Vec<AlarmView> {
        let view = |(code, raised): (&AlarmCode, &Raised)| AlarmView {
            code: code.as_str().to_owned(),
            since: raised.since.into(),
            text: code.means().to_owned(),
            detail: raised.detail.clone(),
            remedy: code.remedy().to_owned(),
            page: page(*code),
        };
        self.board().raised.iter().map(view).collect()
    }

    fn tell_over(&self, code: AlarmCode, since: Timestamp) {
        let seconds = self.clock.now().since(since).as_secs_f64();
        info!(alarm = code.as_str(), seconds, "an alarm is over");
    }
}

/// The page about an alarm, below the documentation that comes with a release.
fn page(code: AlarmCode) -> String {
    format!("docs/errors/{}.md", code.as_str())
}

fn tell(code: AlarmCode, detail: &str) {
    let (alarm, means, remedy) = (code.as_str(), code.means(), code.remedy());
    if code.needs_a_person() {
        error!(alarm, means, detail, remedy, "alarm");
    } else {
        warn!(alarm, means, detail, remedy, "alarm");
    }
}

#[cfg(test)]
mod tests {
    use turnaround_workflows::clock::HandClock;

    use super::*;

    fn codes(alarms: &Alarms) -> Vec<String> {
        alarms.views().into_iter().map(|alarm| alarm.code).collect()
    }

    #[test]
    fn every_alarm_has_a_page_that_says_what_to_do() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/errors");
        for code in AlarmCode::all() {
            let path = folder.join(format!("{}.md", code.as_str()));
            let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            for part in ["## What it means", "## What to look at", "## What to do"] {
                assert!(page.contains(part), "{} has no part `{part}`", path.display());
            }
        }
        let pages = std::fs::read_dir(folder).unwrap().count();
        assert_eq!(pages, AlarmCode::all().count() + 1, "a page for each code, an index, and nothing else");
    }

    #[test]
    fn a_store_has_one_trouble_at_a_time_and_none_when_it_is_well() {
        let clock = Arc::new(HandClock::at(Timestamp::from_millis(1_000)));
        let alarms = Alarms::new(clock.clone());
        alarms.raise(AlarmCode::HighWaterFile, "full");
        alarms.store_has(Trouble::Unreachable, "refused");
        clock.advance(std::time::Duration::from_secs(5));
        alarms.store_has(Trouble::Unreachable, "refused again");
        let view = &alarms.views()[0];
        assert_eq!((view.code.as_str(), view.since.0.millis(), view.detail.as_str()), ("store-unreachable", 1_000, "refused again"));
        alarms.store_has(Trouble::Loading, "loading");
        assert_eq!(codes(&alarms), ["store-loading", "high-water-file"]);
        assert_eq!(alarms.views()[0].since.0.millis(), 1_000, "it is one outage, however it shows itself");
        assert_eq!(alarms.store_trouble(), Some(Trouble::Loading));
        alarms.store_is_well();
        assert_eq!((codes(&alarms), alarms.store_trouble()), (vec!["high-water-file".to_owned()], None));
        alarms.over(AlarmCode::HighWaterFile);
        assert_eq!(codes(&alarms), [""; 0]);
    }

    #[test]
    fn an_outage_that_shows_itself_in_several_ways_by_turns_is_one_and_all_of_it_is_over_at_once() {
        let clock = Arc::new(HandClock::at(Timestamp::from_millis(1_000)));
        let alarms = Alarms::new(clock.clone());
        for trouble in [Trouble::Unreachable, Trouble::Loading, Trouble::Unreachable, Trouble::Loading] {
            alarms.store_has(trouble, "seen");
            clock.advance(std::time::Duration::from_secs(5));
        }
        let told = BTreeSet::from([Trouble::Unreachable, Trouble::Loading]);
        assert_eq!(alarms.outage_ended(), Some((Timestamp::from_millis(1_000), told)));
        assert_eq!((alarms.outage_ended(), codes(&alarms)), (None, Vec::new()), "that is told once");
        alarms.store_has(Trouble::Silent, "seen");
        assert_eq!(alarms.views()[0].since.0.millis(), 21_000, "the next outage is another one");
    }

    #[test]
    fn two_who_see_different_troubles_of_the_store_at_once_never_leave_both_and_neither_fails() {
        /// Enough for each to come in between any two steps of the other, where those were not one.
        const ROUNDS: usize = 20_000;
        let alarms = Alarms::new(Arc::new(HandClock::default()));
        let see = |trouble| {
            for _ in 0..ROUNDS {
                alarms.store_has(trouble, "seen");
                let raised = codes(&alarms);
                assert!(raised.len() <= 1, "{raised:?}");
                alarms.store_is_well();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| see(Trouble::Unreachable));
            scope.spawn(|| see(Trouble::Loading));
        });
        assert_eq!(codes(&alarms), [""; 0]);
    }

    #[test]
    fn the_gauge_is_set_before_anybody_else_can_change_the_alarm() {
        let set = Arc::new(Mutex::new(Vec::new()));
        let alarms = Arc::new_cyclic(|alarms: &std::sync::Weak<Alarms>| {
            let (alarms, set) = (alarms.clone(), Arc::clone(&set));
            let gauge = Box::new(move |code, raised| {
                let others_wait = alarms.upgrade().unwrap().board.try_lock().is_err();
                set.lock().unwrap().push((code, raised, others_wait));
            });
            Alarms { gauge, ..Alarms::new(Arc::new(HandClock::default())) }
        });
        alarms.raise(AlarmCode::NoWorker, "nobody");
        alarms.over(AlarmCode::NoWorker);
        alarms.store_has(Trouble::Loading, "loading");
        alarms.store_has(Trouble::Busy, "busy");
        alarms.store_is_well();
        let expected = [("no-worker", true), ("no-worker", false), ("store-loading", true), ("store-loading", false), ("store-busy", true), ("store-busy", false)];
        assert_eq!(*set.lock().unwrap(), expected.map(|(code, raised)| (code, raised, true)));
    }
}
