//! The daemon at work: the API, the background jobs, the pulse of the schedules. It runs until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use turnaround_config::Config;
use turnaround_workflows::clock::{Clock, SystemClock};
use turnaround_workflows::store::Store;
use turnaround_workflows::store::embedded::Health;
use turnaround_workflows::updates::{self, ReportDesk};

use crate::alarms::{AlarmCode, Alarms};
use crate::api::app::App;
use crate::api::caller::Access;
use crate::api::socket::ApiListener;
use crate::archive::Archive;
use crate::feed::EventFeed;
use crate::installers;
use crate::jobs::{ArchiveFinished, Driver, JobBoard, JobDefinition, Overdue, Sweep, Watch};
use crate::schedule::{self, Schedules};
use crate::store_watch::StoreWatch;
use crate::tick_log::TickLog;

/// How often finished workflows are archived, unless they expire so soon that it has to be more often.
const ARCHIVE_EVERY: Duration = Duration::from_secs(60);
/// So many passes fall into the time that a finished workflow is kept: nothing is swept unless one has gone through within half of it.
const ARCHIVE_PASSES_WHILE_KEPT: u32 = 5;
/// What expired is only an index entry.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// A workflow that nobody takes for 15 s is told of within another 30: the alarm waits for the second pass that sees one.
const OVERDUE_EVERY: Duration = Duration::from_secs(15);
/// What is lost is noticed within two seconds.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Idle streams show that they live this often, below the usual minute after which middlemen cut them.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a stopping daemon waits for requests that are under way: one that waits for a silent Redis ends by itself after
/// `store.reply_timeout`, 2 s by default.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// What the API works with, all of it.
pub fn app(
    config: Arc<Config>,
    store: Arc<dyn Store>,
    private_redis: Option<watch::Receiver<Health>>,
    stop: CancellationToken,
) -> Arc<App> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let alarms = Arc::new(Alarms::new(Arc::clone(&clock)));
    Arc::new(App {
        watch: Arc::new(StoreWatch::new(Arc::clone(&store), Arc::clone(&alarms), &config.state_dir)),
        alarms,
        registry: updates::registry(),
        access: Access::new(&config.daemon.operators),
        feed: EventFeed::new(Arc::clone(&store)),
        board: Arc::new(JobBoard::default()),
        ticks: Arc::new(TickLog::open(&config.state_dir)),
        orders: Arc::default(),
        archive: Archive::new(&config.state_dir),
        started: clock.now(),
        keep_alive: KEEP_ALIVE,
        config,
        store,
        private_redis,
        clock,
        stop,
    })
}

/// Serves and does the background work until `app.stop`; then ends what is under way, and returns.
pub async fn run(app: Arc<App>, listener: ApiListener) -> std::io::Result<()> {
    let stop = app.stop.clone();
    let feed = tokio::spawn(Arc::clone(&app.feed).run(stop.clone()));
    let wake_schedules = Arc::new(Notify::new());
    let health = app.private_redis.clone().map(|health| tokio::spawn(heed(health, Arc::clone(&app.alarms))));
    // Before anything else is begun on a store that may not be the one that is remembered.
    app.watch.look().await;
    let mut driver = Driver::new(Arc::clone(&app.board), Arc::clone(&app.clock), stop.clone()).quiet_during(Arc::clone(&app.alarms));
    register(&mut driver, &app, &wake_schedules);
    let pulse = schedule::pulse(wake_schedules).await;
    if let Err(error) = &pulse {
        error!(%error, "no pulse: schedules are looked at every {} s instead of every second", schedule::WITHOUT_PULSE.as_secs());
    }
    let installers = listens_to_installers(&app);
    let mut serving = tokio::spawn(crate::api::serve(listener, Arc::clone(&app)));
    let served = tokio::select! {
        () = stop.cancelled() => None,
        // It never ends by itself; if it does, the daemon ends too, and systemd starts it again.
        ended = &mut serving => Some(ended),
    };
    stop.cancel();
    if let Ok(mut pulse) = pulse {
        let _ = pulse.shutdown().await.inspect_err(|error| warn!(%error, "the pulse could not be stopped"));
    }
    driver.finish().await;
    feed.abort();
    if let Some(installers) = installers {
        installers.abort();
    }
    if let Some(health) = health {
        health.abort();
    }
    let served = match served {
        Some(ended) => ended,
        None => match tokio::time::timeout(DRAIN_MAX, &mut serving).await {
            Ok(ended) => ended,
            Err(_) => {
                warn!("requests under way were cut off");
                serving.abort();
                return Ok(());
            }
        },
    };
    served.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)))
}

/// Where the configuration says so.
fn listens_to_installers(app: &Arc<App>) -> Option<tokio::task::JoinHandle<()>> {
    let address = app.config.netboot.as_ref()?.reports.as_ref()?.listen;
    let reports = ReportDesk::new(Arc::clone(&app.store), app.registry.clone());
    let listening = installers::run(address, reports, Arc::clone(&app.clock), Arc::clone(&app.alarms), app.stop.clone());
    Some(tokio::spawn(listening))
}

/// Raises an alarm for as long as the private Redis is down.
async fn heed(mut health: watch::Receiver<Health>, alarms: Arc<Alarms>) {
    loop {
        match health.borrow_and_update().clone() {
            Health::Down { why } => alarms.raise(AlarmCode::PrivateRedis, why),
            Health::Running => alarms.over(AlarmCode::PrivateRedis),
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}

fn register(driver: &mut Driver, app: &App, wake_schedules: &Arc<Notify>) {
    let store = || Arc::clone(&app.store);
    driver.register(JobDefinition {
        job: Schedules::new(Arc::clone(&app.config), store(), Arc::clone(&app.ticks), Arc::clone(&app.orders)),
        period: schedule::WITHOUT_PULSE,
        wake: Arc::clone(wake_schedules),
    });
    let alone = || Arc::new(Notify::new());
    driver.register(JobDefinition { job: Watch(Arc::clone(&app.watch)), period: WATCH_EVERY, wake: alone() });
    let keep_finished = app.config.store.keep_finished;
    let archiving = ArchiveFinished::new(store(), app.archive.clone());
    let sweep = Sweep::after(&archiving, keep_finished);
    driver.register(JobDefinition { job: archiving, period: ARCHIVE_EVERY.min(keep_finished / ARCHIVE_PASSES_WHILE_KEPT), wake: alone() });
    driver.register(JobDefinition { job: sweep, period: SWEEP_EVERY, wake: alone() });
    driver.register(JobDefinition { job: Overdue::new(store(), app.registry.queues(), Arc::clone(&app.alarms)), period: OVERDUE_EVERY, wake: alone() });
}
