//! G2: how long one workflow alone takes, against one fdatasync of the same disk; and how soon an idle worker begins.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::time::Instant;
use turnaround_workflows::store::redis::RedisStore;
use turnaround_workflows::store::{Status, Store};

use super::collector::Collector;
use super::figure::{Figure, Wanted, median, percentile, ratios};
use super::ours::LEASE;
use super::server::{Fsync, Server};
use super::worker::{Told, WorkerProcess};
use super::{Effort, kind};

const GOAL: &str = "g2";
/// As configured in production.
const SLOTS: u16 = 16;
/// Between one workflow and the next: the worker has gone to sleep by then.
const PAUSE: Duration = Duration::from_millis(10);
/// A workflow of three steps that takes longer is lost.
const WORKFLOW_MAX: Duration = Duration::from_secs(30);
/// Bytes of one fdatasync: about what one commit adds to Redis's file.
const SYNCED_BYTES: usize = 1_024;

pub(super) async fn measure(effort: Effort) -> io::Result<Vec<Figure>> {
    let server = Server::start(Fsync::Always).await?;
    let collector = Collector::start().await?;
    let store = RedisStore::connect(server.options()).await.map_err(io::Error::other)?;
    let told = server.folder().join("told.sock");
    let begins = UnixDatagram::bind(&told)?;
    let otlp = Some(collector.endpoint());
    let mut worker = WorkerProcess::start(server.folder(), &server.socket(), SLOTS, LEASE, Told { otlp, begins: Some(&told) })?;
    let mut watch = Watch { store: &store, begins: &begins, cursor: store.events_end().await.map_err(io::Error::other)?, next: 0 };
    // The first ones find connections and scripts that are not there yet.
    for _ in 0..10 {
        watch.one().await?;
    }
    let (mut whole, mut syncs, mut begun) = (Vec::new(), Vec::new(), Vec::new());
    let (mut begun_median, mut begun_worst) = (Vec::new(), Vec::new());
    for round in 1..=effort.rounds {
        let (mut wholes, mut begins) = (Vec::new(), Vec::new());
        let (file, mut waited) = (server.folder().join("synced"), Vec::new());
        for _ in 0..effort.single {
            // In turns: what slows the disk down for a moment slows both.
            let file = file.clone();
            waited.push(tokio::task::spawn_blocking(move || synced(&file)).await??);
            let (begun, ended) = watch.one().await?;
            begins.push(millis(begun));
            wholes.push(millis(ended));
            tokio::time::sleep(PAUSE).await;
        }
        worker.check()?;
        syncs.push(median(&waited));
        whole.push(median(&wholes));
        begun_median.push(median(&begins));
        begun_worst.push(percentile(&begins, 0.99));
        begun.extend(begins);
        eprintln!("g2: round {round} of {}", effort.rounds);
    }
    worker.stop().await?;
    server.end().await?;
    let all = percentile(&begun, 0.99);
    Ok(vec![
        Figure::seen(GOAL, "one workflow alone, order to end : one fdatasync, p50", "", ratios(&whole, &syncs)).wanted(Wanted::AtMost(5.0)),
        Figure { value: all, ..Figure::seen(GOAL, "order to begin of the first step, idle, p99 of all", "ms", begun_worst) }.wanted(Wanted::AtMost(2.0)),
        Figure::seen(GOAL, "order to begin of the first step, idle, p50", "ms", begun_median),
        Figure::seen(GOAL, "one workflow alone, order to end, p50", "ms", whole),
        Figure::seen(GOAL, "one fdatasync, p50", "ms", syncs),
    ])
}

/// Orders workflows and sees them begin and end.
struct Watch<'a> {
    store: &'a RedisStore,
    begins: &'a UnixDatagram,
    cursor: String,
    next: usize,
}

impl Watch<'_> {
    /// How long after its order the next workflow began its first step, and was seen to have ended.
    async fn one(&mut self) -> io::Result<(Duration, Duration)> {
        let new = kind::workflow(self.next);
        self.next += 1;
        let id = new.id.clone();
        let ordered = Instant::now();
        let (begun, ended) = tokio::time::timeout(WORKFLOW_MAX, async {
            let order = async { self.store.create(new).await.map(drop).map_err(io::Error::other) };
            let begin = async {
                let mut said = [0; 256];
                let length = self.begins.recv(&mut said).await?;
                if &said[..length] == id.as_str().as_bytes() {
                    Ok(ordered.elapsed())
                } else {
                    Err(io::Error::other(format!("{} began in place of {id}", String::from_utf8_lossy(&said[..length]))))
                }
            };
            let ((), begun) = tokio::try_join!(order, begin)?;
            loop {
                let happened = self.store.events(Some(&self.cursor), WORKFLOW_MAX).await.map_err(io::Error::other)?;
                if let Some(newest) = happened.last() {
                    self.cursor.clone_from(&newest.cursor);
                }
                if happened.iter().any(|event| event.workflow == id && event.status == Status::Succeeded) {
                    return Ok::<_, io::Error>((begun, ordered.elapsed()));
                }
            }
        })
        .await
        .map_err(io::Error::other)??;
        Ok((begun, ended))
    }
}

/// How long one fdatasync took, of what was appended just before.
fn synced(file: &Path) -> io::Result<f64> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file)?;
    file.write_all(&[b'x'; SYNCED_BYTES])?;
    let begun = Instant::now();
    file.sync_data()?;
    Ok(millis(begun.elapsed()))
}

fn millis(length: Duration) -> f64 {
    length.as_secs_f64() * 1e3
}
