//! What the routes work with.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use turnaround_config::Config;
use turnaround_workflows::clock::{Clock, Timestamp};
use turnaround_workflows::engine::Registry;
use turnaround_workflows::store::Store;
use turnaround_workflows::store::embedded::Health;

use super::caller::Access;
use crate::alarms::Alarms;
use crate::archive::Archive;
use crate::feed::EventFeed;
use crate::jobs::JobBoard;
use crate::store_watch::StoreWatch;
use crate::tick_log::TickLog;

pub struct App {
    pub config: Arc<Config>,
    pub store: Arc<dyn Store>,
    /// How the private Redis is, where this daemon keeps one.
    pub private_redis: Option<watch::Receiver<Health>>,
    pub clock: Arc<dyn Clock>,
    pub registry: Registry,
    pub access: Access,
    pub feed: Arc<EventFeed>,
    pub board: Arc<JobBoard>,
    pub alarms: Arc<Alarms>,
    pub watch: Arc<StoreWatch>,
    pub ticks: Arc<TickLog>,
    /// Held from the look at what is open until an order is taken: of two orders at the same moment, one sees the other.
    pub orders: Arc<Mutex<()>>,
    pub archive: Archive,
    pub started: Timestamp,
    /// How often a quiet event stream shows that it lives.
    pub keep_alive: Duration,
    /// Ends event streams, so that a graceful shutdown does not wait for them.
    pub stop: CancellationToken,
}
