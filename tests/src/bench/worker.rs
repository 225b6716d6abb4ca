//! A worker as a process of its own: everything that `turnaround-worker` is, with the measured workflow in place of the updates.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use turnaround_config::{OtlpProtocol, Telemetry};
use turnaround_worker::{MakeStore, Pump, PumpOptions};
use turnaround_workflows::clock::SystemClock;
use turnaround_workflows::engine::Engine;
use turnaround_workflows::rehearsal::{SitePlan, World};
use turnaround_workflows::store::{Queue, Store};
use turnaround_workflows::store::redis::{RedisAddress, RedisOptions, RedisStore};
use turnaround_workflows::telemetry;

use super::kind;

/// Finished workflows stay for so long: none is swept while it is measured.
const KEEP_FINISHED: Duration = Duration::from_secs(24 * 3_600);
/// A worker that is told to stop is gone within half a second; a loaded machine may take longer.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// What such a worker is told.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerArguments {
    #[arg(long)]
    redis: PathBuf,
    #[arg(long)]
    slots: u16,
    #[arg(long)]
    lease_ms: u64,
    /// Where traces, metrics and logs go by OTLP over gRPC.
    #[arg(long)]
    otlp: Option<String>,
    /// A datagram socket that is told the id of every workflow that begins.
    #[arg(long)]
    begins: Option<PathBuf>,
}

/// The worker's own process.
pub fn main(arguments: &WorkerArguments) -> ExitCode {
    turnaround_worker::adapters::install_tls();
    let runtime = turnaround_worker::runtime();
    let ended = runtime.and_then(|runtime| runtime.block_on(work(arguments)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn work(arguments: &WorkerArguments) -> io::Result<()> {
    let settings = Telemetry { endpoint: arguments.otlp.clone(), protocol: OtlpProtocol::Grpc, log: "info".to_owned() };
    let telemetry = telemetry::init("turnaround-worker", &settings).map_err(io::Error::other)?;
    let lease = Duration::from_millis(arguments.lease_ms);
    let queues = vec![Queue::DEFAULT];
    let options = PumpOptions { slots: arguments.slots, lease, worker: format!("bench:{}", std::process::id()), queues: queues.clone() };
    let redis = RedisOptions { accept_weaker_durability: true, ..RedisOptions::new(RedisAddress::Socket(arguments.redis.clone())) };
    let make: MakeStore =
        Box::new(move || Box::pin(async move { RedisStore::connect(redis).await.map(|store| Arc::new(store) as Arc<dyn Store>) }));
    let pump = Pump::start(make, options)?;
    let begins = arguments.begins.as_ref().map(|path| {
        let begins = UnixDatagram::unbound()?;
        begins.connect(path).map(|()| begins)
    });
    let registry = kind::registry(begins.transpose()?);
    let ports = World::new(Arc::new(SystemClock), SitePlan::default(), 1).ports();
    let engine = Engine { registry, ports, queues, keep_finished: KEEP_FINISHED };
    let stop = CancellationToken::new();
    let (told, mut term) = (stop.clone(), signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        term.recv().await;
        told.cancel();
    });
    let ended = turnaround_worker::run(pump, engine, arguments.slots, stop).await;
    telemetry.shutdown().await;
    ended.map_err(io::Error::other)
}

/// Whom a worker tells what.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told<'a> {
    /// The collector's endpoint.
    pub(super) otlp: Option<&'a str>,
    /// A datagram socket that hears of every workflow that begins.
    pub(super) begins: Option<&'a Path>,
}

/// A worker that was started by the bench. Killed when dropped.
pub(super) struct WorkerProcess {
    child: Child,
    log: PathBuf,
}

impl WorkerProcess {
    /// `folder` takes its log.
    pub(super) fn start(folder: &Path, redis: &Path, slots: u16, lease: Duration, told: Told<'_>) -> io::Result<WorkerProcess> {
        let log = folder.join("worker.log");
        let lines = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker").arg("--redis").arg(redis).arg("--slots").arg(slots.to_string());
        command.arg("--lease-ms").arg(lease.as_millis().to_string());
        if let Some(otlp) = told.otlp {
            command.arg("--otlp").arg(otlp);
        }
        if let Some(begins) = told.begins {
            command.arg("--begins").arg(begins);
        }
        // As under systemd, which is how workers run: plain lines without the time.
        command.env("JOURNAL_STREAM", "0:0");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(lines).kill_on_drop(true);
        Ok(WorkerProcess { child: command.spawn()?, log })
    }

    pub(super) fn pid(&self) -> io::Result<u32> {
        self.child.id().ok_or_else(|| io::Error::other("the worker has ended"))
    }

    /// An error, with what it said last, if it has ended by itself.
    pub(super) fn check(&mut self) -> io::Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let said = std::fs::read_to_string(&self.log)?;
        Err(io::Error::other(format!("the worker has ended by itself ({status}): {}", said.lines().last().unwrap_or_default())))
    }

    /// SIGTERM, and waits for its end.
    pub(super) async fn stop(mut self) -> io::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()?).map_err(io::Error::other)?);
        kill(pid, Signal::SIGTERM).map_err(io::Error::from)?;
        match tokio::time::timeout(STOP_PATIENCE, self.child.wait()).await {
            Ok(ended) => ended.map(drop),
            Err(_) => Err(io::Error::other("the worker did not stop")),
        }
    }
}
