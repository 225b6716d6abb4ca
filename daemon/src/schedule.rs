//! When scheduled work starts. tokio-cron-scheduler gives the pulse; the ledger in the store decides.
//!
//! The pulse comes once a second instead of being armed for the next tick: an armed timer counts by the machine's
//! uptime and would not notice that the clock was set, while a pulse looks at the clock anew each time and costs one
//! small request. What is due is judged by the store's clock, which all daemons share, and the ledger moves in the same
//! call that creates the workflows, so a tick that two daemons see starts one workflow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, Notify};
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;
use tracing::{debug, error, info, info_span, warn};
use turnaround_config::{CatchUp, Config, NodeName, Schedule, ScheduleName, Starts, show_length};
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::engine::{Start, start};
use turnaround_workflows::store::{NewWorkflow, Store, StoreError};
use turnaround_workflows::telemetry;
use turnaround_workflows::updates::{self, RolloutOrder, SurveyOrder};

use crate::api::problem::chain;
use crate::jobs::{BackgroundJob, JobReport};
use crate::renewing::Renewing;
use crate::tick_log::TickLog;
use crate::wire::{RunTime, ScheduleView, TickVerdict, TickView, When};

/// Every second, which is as fine as any expression can say.
const PULSE: &str = "* * * * * *";
/// Without any pulse the schedules are looked at this often. The pulse's own timer stands still while the clock has been
/// set back.
pub const WITHOUT_PULSE: Duration = Duration::from_secs(30);
/// Ticks that one pass starts for one schedule; the next pass goes on. Keeps a single call of the store short.
const TICKS_PER_PASS: usize = 100;
/// Missed ticks that are counted. More are "at least so many".
const MISSED_COUNTED_MAX: usize = 1_000;
/// A tick that is not later than this is on time for `catch_up = "skip"`: the pulse comes each second, and a Redis that
/// is restarted answers again within seconds.
const ON_TIME: Duration = Duration::from_secs(30);
/// A ledger that is further ahead of the clock than this is a person's business: the clock was wrong once.
const AHEAD_TOLERATED: Duration = Duration::from_secs(120);
/// Runs shown in advance.
pub const NEXT_SHOWN: usize = 5;

/// What is to be done about the ticks between the ledger and now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Where the ledger goes.
    pub judged: DateTime<Utc>,
    /// Start these, oldest first.
    pub due: Vec<DateTime<Utc>>,
    /// Later than `max_lateness`: how many (at most 1,000 are counted), and the newest.
    pub missed: Option<(usize, DateTime<Utc>)>,
    /// Passed over as `catch_up` says: how many (at most 100 are counted), and the newest.
    pub skipped: Option<(usize, DateTime<Utc>)>,
}

/// Judges the ticks after `last`. None: there is none until `now`.
pub fn judge(schedule: &Schedule, last: DateTime<Utc>, now: DateTime<Utc>) -> Option<Judgement> {
    // Also when the clock was set back: what the ledger has passed is never judged again.
    let newest = schedule.newest_between(last, now)?;
    let lateness = TimeDelta::from_std(schedule.max_lateness).unwrap_or(TimeDelta::MAX);
    let too_late = now.checked_sub_signed(lateness).unwrap_or(last) - TimeDelta::milliseconds(1);
    let missed = schedule.newest_between(last, too_late).map(|newest| {
        (schedule.ticks_between(last, too_late, MISSED_COUNTED_MAX).len(), newest)
    });
    let fresh = schedule.ticks_between(last.max(too_late), now, TICKS_PER_PASS);
    let mut judgement = Judgement { judged: newest, due: Vec::new(), missed, skipped: None };
    let (due, skipped): (Vec<_>, Vec<_>) = match schedule.catch_up {
        CatchUp::All => {
            if let (Some(upto), true) = (fresh.last(), fresh.len() >= TICKS_PER_PASS) {
                judgement.judged = *upto;
            }
            (fresh, Vec::new())
        }
        CatchUp::Latest if newest > too_late => (vec![newest], fresh.into_iter().filter(|tick| *tick != newest).collect()),
        CatchUp::Latest => (Vec::new(), fresh),
        CatchUp::Skip => {
            let on_time = now - TimeDelta::from_std(ON_TIME).unwrap_or(TimeDelta::zero());
            let due = schedule.ticks_between(last.max(too_late).max(on_time - TimeDelta::milliseconds(1)), now, TICKS_PER_PASS);
            (due, fresh.into_iter().filter(|tick| *tick < on_time).collect())
        }
    };
    judgement.due = due;
    judgement.skipped = skipped.last().map(|newest| (skipped.len(), *newest));
    Some(judgement)
}

/// The job that judges every schedule's ticks.
pub struct Schedules {
    config: Arc<Config>,
    store: Arc<dyn Store>,
    log: Arc<TickLog>,
    /// Held while nodes are ordered, see [`crate::api::app::App::orders`].
    orders: Arc<Mutex<()>>,
    /// Before this there is nothing to judge, as the ledger was when it was last read.
    next: BTreeMap<ScheduleName, Timestamp>,
    /// Those whose times are known to be the ones that the ledger was judged by. A daemon reads its configuration once.
    unchanged: BTreeSet<ScheduleName>,
    /// Those that are not configured any more are known to be.
    knows_those_gone: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SchedulesReport {
    pub started: usize,
    pub missed: usize,
    pub skipped: usize,
    pub failed: usize,
    /// The next tick of any schedule.
    pub next: Option<When>,
}

impl JobReport for SchedulesReport {
    fn summary(&self) -> String {
        let next = self.next.map_or("no further tick".to_owned(), |next| format!("next tick {next}"));
        format!("started {}, missed {}, skipped {}, failed {}; {next}", self.started, self.missed, self.skipped, self.failed)
    }

    fn worked(&self) -> bool {
        self.started + self.missed + self.skipped + self.failed > 0
    }
}

impl Schedules {
    pub fn new(config: Arc<Config>, store: Arc<dyn Store>, log: Arc<TickLog>, orders: Arc<Mutex<()>>) -> Schedules {
        Schedules { config, store, log, orders, next: BTreeMap::new(), unchanged: BTreeSet::new(), knows_those_gone: false }
    }

    async fn look_at(&mut self, name: &ScheduleName, schedule: &Schedule, now: Timestamp, report: &mut SchedulesReport) -> Result<(), StoreError> {
        let last = self.store.last_tick(name.as_str()).await?;
        let Some(last) = last else {
            // A schedule is not older than its first daemon: nothing is made up for.
            if self.store.judge_ticks(name.as_str(), None, now, Vec::new()).await? {
                info!(schedule = %name, from = %now, "schedule begins");
                self.has_changed(name, schedule, now, now).await?;
            }
            self.arm(name, schedule, now);
            return Ok(());
        };
        if !self.unchanged.contains(name) {
            if self.has_changed(name, schedule, last, now).await? {
                // Look at the ledger again with the next pulse.
                return Ok(());
            }
            self.unchanged.insert(name.clone());
        }
        let Some(judgement) = judge(schedule, last.utc(), now.utc()) else {
            self.arm(name, schedule, last);
            return Ok(());
        };
        let orders = Arc::clone(&self.orders);
        let _one_at_a_time = orders.lock().await;
        let mut renewing = match &schedule.starts {
            Starts::NodeOs { .. } if !judgement.due.is_empty() => Renewing::look(&self.store).await?,
            Starts::NodeOs { .. } | Starts::Survey => Renewing::default(),
        };
        let mut new = Vec::with_capacity(judgement.due.len());
        let (mut begun, mut not_begun) = (Vec::new(), Vec::new());
        for tick in &judgement.due {
            match self.begin(name, schedule, *tick, now, &mut renewing) {
                Ok((start, left_out)) => {
                    begun.push((*tick, start.id.to_string(), left_out));
                    new.push(start);
                }
                Err(not) => not_begun.push((*tick, not)),
            }
        }
        let judged: Timestamp = if cfg!(feature = "bug-doubled-tick") { last } else { judgement.judged.into() };
        if !self.store.judge_ticks(name.as_str(), Some(last), judged, new).await? {
            debug!(schedule = %name, "another daemon judged these ticks");
            // Look at the ledger again with the next pulse.
            self.next.remove(name);
            return Ok(());
        }
        for (tick, id, left_out) in begun {
            info!(schedule = %name, %tick, workflow = id, left_out, "tick started a workflow");
            let note = if left_out.is_empty() { id } else { format!("{id}; {left_out}") };
            self.note(name, tick, TickVerdict::Started, note).await;
            report.started += 1;
        }
        for (tick, not) in not_begun {
            match not {
                NotBegun::UnderWay(why) => {
                    info!(schedule = %name, %tick, why, "a tick has nothing to start");
                    self.note(name, tick, TickVerdict::Skipped, why).await;
                    report.skipped += 1;
                }
                NotBegun::Failed(why) => {
                    error!(schedule = %name, %tick, why, "a tick could not start what it is for");
                    self.note(name, tick, TickVerdict::Failed, why).await;
                    report.failed += 1;
                }
            }
        }
        self.tell_what_did_not_run(name, schedule, &judgement, report).await;
        self.arm(name, schedule, judged);
        Ok(())
    }

    /// Are its times others than those that the ledger was judged by? Then the ledger is moved to now: its ticks before that are none that anybody has
    /// waited for, and what they start wipes nodes.
    async fn has_changed(&self, name: &ScheduleName, schedule: &Schedule, last: Timestamp, now: Timestamp) -> Result<bool, StoreError> {
        let (ledger, times) = (times_ledger(name), times_of(schedule));
        let known = self.store.last_tick(&ledger).await?;
        if known == Some(times) {
            return Ok(false);
        }
        // Without a word on it, an older release has judged.
        if known.is_some() && self.store.judge_ticks(name.as_str(), Some(last), last.max(now), Vec::new()).await? {
            info!(schedule = %name, from = %now, "the schedule's times were changed, or it was taken out of the configuration for a while: it begins anew, and makes up for nothing");
        }
        self.store.judge_ticks(&ledger, known, times, Vec::new()).await?;
        Ok(known.is_some())
    }

    /// Writes down which schedules are not configured any more. Whoever puts one back has waited for none of the ticks that it had meanwhile: there is no other way to
    /// switch one off.
    async fn those_gone(&self) -> Result<(), StoreError> {
        let configured: BTreeSet<&str> = self.config.schedules.keys().map(ScheduleName::as_str).collect();
        for name in self.store.ledgers().await?.iter().filter(|name| !name.ends_with(TIMES) && !configured.contains(name.as_str())) {
            let ledger = format!("{name}{TIMES}");
            let known = self.store.last_tick(&ledger).await?;
            if known != Some(GONE) && self.store.judge_ticks(&ledger, known, GONE, Vec::new()).await? {
                info!(schedule = name, "the schedule is not in the configuration any more");
            }
        }
        Ok(())
    }

    async fn note(&self, name: &ScheduleName, tick: DateTime<Utc>, verdict: TickVerdict, note: String) {
        self.log.note(name, TickView { tick: When(tick.into()), verdict, note }).await;
    }

    async fn tell_what_did_not_run(&self, name: &ScheduleName, schedule: &Schedule, judgement: &Judgement, report: &mut SchedulesReport) {
        if let Some((count, newest)) = judgement.missed {
            let lateness = show_length(schedule.max_lateness);
            warn!(schedule = %name, count, %newest, max_lateness = lateness, "ticks were missed: they are too late to run");
            let note = format!("later than max_lateness ({lateness}){}", and_before(count));
            self.note(name, newest, TickVerdict::Missed, note).await;
            report.missed += count;
        }
        if let Some((count, newest)) = judgement.skipped {
            let catch_up = catch_up(schedule.catch_up);
            info!(schedule = %name, count, %newest, catch_up, "ticks were passed over");
            self.note(name, newest, TickVerdict::Skipped, format!("catch_up = \"{catch_up}\"{}", and_before(count))).await;
            report.skipped += count;
        }
    }

    /// Nothing is to be judged until the tick after `judged`.
    fn arm(&mut self, name: &ScheduleName, schedule: &Schedule, judged: Timestamp) {
        let next = schedule.next_after(judged.utc()).map_or(Timestamp::from_millis(i64::MAX), Timestamp::from);
        self.next.insert(name.clone(), next);
    }

    /// What `tick` starts, and without which nodes: nobody asked for one to be wiped once more that is being renewed, as a person can.
    fn begin(&self, name: &ScheduleName, schedule: &Schedule, tick: DateTime<Utc>, now: Timestamp, renewing: &mut Renewing) -> Result<(NewWorkflow, String), NotBegun> {
        let by = format!("schedule {name}");
        let (mut to_begin, mut left_out): (Vec<NodeName>, Vec<String>) = (Vec::new(), Vec::new());
        let mut new: Start = match &schedule.starts {
            Starts::Survey => updates::survey(&SurveyOrder::new(&self.config), &by).map_err(failed)?,
            Starts::NodeOs { nodes, image } => {
                let all: Vec<NodeName>;
                let nodes = if nodes.is_empty() {
                    all = RolloutOrder::all_nodes(&self.config);
                    &all
                } else {
                    nodes
                };
                for node in nodes {
                    match renewing.who(node) {
                        Some(by) => left_out.push(format!("{node} (by {by})")),
                        None => to_begin.push(node.clone()),
                    }
                }
                if to_begin.is_empty() && !left_out.is_empty() {
                    return Err(NotBegun::UnderWay(renewed_already(&left_out)));
                }
                let order = RolloutOrder::new(&self.config, &to_begin, image).map_err(failed)?;
                updates::rollout(&order, &by).map_err(failed)?
            }
        };
        let named = if cfg!(feature = "bug-doubled-tick") { now.millis() } else { tick.timestamp() };
        new.id = format!("tick-{name}-{named}").parse().map_err(failed)?;
        let span = info_span!("tick", otel.name = format!("tick of {name}"), schedule = %name, %tick, workflow = %new.id);
        new.traceparent = telemetry::traceparent(&span);
        let new = start(new, now).map_err(failed)?;
        to_begin.iter().for_each(|node| renewing.begins(node, &new.id));
        Ok((new, if left_out.is_empty() { String::new() } else { renewed_already(&left_out) }))
    }
}

/// Where the store keeps which times the ledger of `name` was judged by. No schedule can be called so.
fn times_ledger(name: &ScheduleName) -> String {
    format!("{name}{TIMES}")
}

const TIMES: &str = "#times";

/// Stands for expression, dialect and zone of a schedule in a ledger, which holds a moment: one so late that no clock comes there, so that nobody moves it.
fn times_of(schedule: &Schedule) -> Timestamp {
    let written = format!("{:?} {:?} {}", schedule.dialect, schedule.cron, schedule.timezone);
    let digest = Sha256::digest(written);
    let number = digest.iter().take(6).fold(0_i64, |number, byte| number << 8 | i64::from(*byte));
    Timestamp::from_millis(number | LATER_THAN_ANY_CLOCK)
}

/// In the year 6429, in milliseconds.
const LATER_THAN_ANY_CLOCK: i64 = 1 << 47;

/// Stands for the times of a schedule that is not configured: other ones than any has, whose number is less.
const GONE: Timestamp = Timestamp::from_millis(1 << 48);

/// Why a tick starts nothing.
enum NotBegun {
    /// It is being done already.
    UnderWay(String),
    Failed(String),
}

fn failed(error: impl std::error::Error) -> NotBegun {
    NotBegun::Failed(chain(&error))
}

fn renewed_already(nodes: &[String]) -> String {
    format!("to be renewed already: {}", nodes.join(", "))
}

#[async_trait]
impl BackgroundJob for Schedules {
    const NAME: &'static str = "schedules";
    const ABOUT: &'static str = "starts what is due by [schedules]";
    type Report = SchedulesReport;
    type Error = StoreError;

    async fn activate(&mut self) -> Result<SchedulesReport, StoreError> {
        let mut report = SchedulesReport::default();
        let config = Arc::clone(&self.config);
        if !self.knows_those_gone {
            self.those_gone().await?;
            self.knows_those_gone = true;
        }
        if config.schedules.is_empty() {
            return Ok(report);
        }
        let now = self.store.now().await?;
        for (name, schedule) in &config.schedules {
            if self.next.get(name).is_none_or(|next| *next <= now) {
                self.look_at(name, schedule, now, &mut report).await?;
            }
        }
        report.next = self.next.values().min().filter(|next| next.millis() < i64::MAX).map(|next| When(*next));
        Ok(report)
    }
}

/// Begins to ring `wake` each second. Ends when the returned scheduler is shut down.
pub async fn pulse(wake: Arc<Notify>) -> Result<JobScheduler, JobSchedulerError> {
    let set_up = async {
        let scheduler = JobScheduler::new().await?;
        scheduler.add(Job::new(PULSE, move |_, _| wake.notify_one())?).await?;
        scheduler.start().await?;
        Ok(scheduler)
    };
    // It logs how it is put together, which tells an operator nothing.
    set_up.with_subscriber(NoSubscriber::new()).await
}

/// A schedule as the API shows it.
pub fn view(name: &ScheduleName, schedule: &Schedule, now: Timestamp, judged: Option<Timestamp>, recent: Vec<TickView>) -> ScheduleView {
    let after = judged.map_or(now, |judged| judged.max(now));
    let problem = judged.filter(|judged| judged.since(now) > AHEAD_TOLERATED).map(|judged| {
        format!(
            "its ticks are judged up to {judged}, which is ahead of the clock: the clock was wrong once. Nothing starts \
             before then; give the schedule another name to begin anew"
        )
    });
    ScheduleView {
        name: name.to_string(),
        cron: schedule.cron.clone(),
        timezone: schedule.timezone.name().to_owned(),
        catch_up: catch_up(schedule.catch_up).to_owned(),
        max_lateness_ms: u64::try_from(schedule.max_lateness.as_millis()).unwrap_or(u64::MAX),
        starts: starts(&schedule.starts),
        judged: judged.map(When),
        next: next_runs(schedule, after.utc()),
        recent,
        problem,
    }
}

/// The next five ticks after `after`, in UTC and in the schedule's own zone.
pub fn next_runs(schedule: &Schedule, after: DateTime<Utc>) -> Vec<RunTime> {
    let run = |tick: DateTime<Utc>| RunTime {
        utc: When(tick.into()),
        local: tick.with_timezone(&schedule.timezone).format("%a %Y-%m-%d %H:%M:%S %:z %Z").to_string(),
    };
    schedule.next(after, NEXT_SHOWN).into_iter().map(run).collect()
}

/// What a tick starts, for people.
pub fn starts(starts: &Starts) -> String {
    match starts {
        Starts::Survey => "survey".to_owned(),
        Starts::NodeOs { nodes, image } if nodes.is_empty() => format!("renew all nodes to {image}"),
        Starts::NodeOs { nodes, image } => {
            let nodes: Vec<&str> = nodes.iter().map(NodeName::as_str).collect();
            format!("renew {} to {image}", nodes.join(", "))
        }
    }
}

fn catch_up(catch_up: CatchUp) -> &'static str {
    match catch_up {
        CatchUp::Skip => "skip",
        CatchUp::Latest => "latest",
        CatchUp::All => "all",
    }
}

fn and_before(count: usize) -> String {
    match count {
        0 | 1 => String::new(),
        many => format!(", and {} before it", many - 1),
    }
}
