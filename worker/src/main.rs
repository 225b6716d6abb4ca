//! `turnaround-worker`: brings workflows on. As many as you like, on as many hosts as you like.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use turnaround_config::Config;
use turnaround_worker::{MakeStore, Pump, PumpOptions, adapters};
use turnaround_workflows::engine::Engine;
use turnaround_workflows::store::redis::{RedisOptions, RedisStore};
use turnaround_workflows::store::{Queue, Store, StoreError};
use turnaround_workflows::{history, telemetry, updates};

/// Exit code for a configuration that can't be used, from sysexits.h.
const EX_CONFIG: u8 = 78;
/// Exit code for arguments that can't be used, from sysexits.h.
const EX_USAGE: u8 = 64;
/// Pause between tries to reach the store at the start. Workers may be started before the daemon's private Redis is there.
const CONNECT_PAUSE: Duration = Duration::from_millis(200);

/// Brings workflows on: every effect on the outside world happens in here.
#[derive(Parser)]
#[command(name = "turnaround-worker", version)]
struct Arguments {
    /// The configuration file, the same as the daemon's.
    #[arg(long, default_value = "/etc/turnaround/config.toml")]
    config: PathBuf,
    /// Work only on what waits in these queues, for a worker that does not reach everything: `default`, `openstack`, `pxe`, `bmc`, `nodes`,
    /// `bastion` (where the setup script runs), `survey`. Each of them must be served by somebody. All of them if not given.
    #[arg(long, value_delimiter = ',', value_name = "QUEUE")]
    queues: Vec<Queue>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match turnaround_config::check(&arguments.config) {
        Ok(config) => config,
        Err(report) => {
            eprintln!("{}", report.for_stderr());
            return ExitCode::from(EX_CONFIG);
        }
    };
    let queues = match served(arguments.queues) {
        Ok(queues) => queues,
        Err(unknown) => {
            eprintln!("error: {unknown}");
            return ExitCode::from(EX_USAGE);
        }
    };
    adapters::install_tls();
    let runtime = match turnaround_worker::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the system gives no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(work(config, queues))
}

/// All queues there are, or those that were named. An unknown one would never have work: more likely it is a slip.
fn served(named: Vec<Queue>) -> Result<Vec<Queue>, String> {
    let known = updates::registry().queues();
    if named.is_empty() {
        return Ok(known);
    }
    match named.iter().find(|queue| !known.contains(queue)) {
        // Each once, however often it was named.
        None => Ok(known.into_iter().filter(|queue| named.contains(queue)).collect()),
        Some(unknown) => {
            let known: Vec<&str> = known.iter().map(Queue::as_str).collect();
            Err(format!("there is no queue `{unknown}`; there are {}", known.join(", ")))
        }
    }
}

async fn work(config: Config, queues: Vec<Queue>) -> ExitCode {
    let telemetry = match telemetry::init("turnaround-worker", &config.telemetry) {
        Ok(telemetry) => telemetry,
        Err(error) => return refused(&error),
    };
    let ports = match adapters::connect(&config) {
        Ok(ports) => history::of_ports(ports),
        Err(error) => return refused(&error),
    };
    let redis = match RedisOptions::of(&config) {
        Ok(options) => options,
        Err(error) => return refused(&error),
    };
    let options = PumpOptions { slots: config.worker.slots, lease: config.worker.lease, worker: who(), queues: queues.clone() };
    let pump = match Pump::start(connector(redis), options) {
        Ok(pump) => pump,
        Err(error) => return refused(&error),
    };
    let stop = stop_on_signal();
    let ready = tokio::spawn(tell_supervisor(pump.ready.clone(), pump.stopping()));
    let names: Vec<&str> = queues.iter().map(Queue::as_str).collect();
    info!(slots = config.worker.slots, lease_seconds = config.worker.lease.as_secs_f64(), worker = who(), queues = names.join(","), "worker started");
    let engine = Engine { registry: updates::registry(), ports, queues, keep_finished: config.store.keep_finished };
    let ended = turnaround_worker::run(pump, engine, config.worker.slots, stop).await;
    ready.abort();
    // A supervisor that is not there need not be told.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let code = match ended {
        Ok(()) => {
            info!("worker stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            error!(error = %chain(&error), "worker ended");
            ExitCode::FAILURE
        }
    };
    telemetry.shutdown().await;
    code
}

/// Connects on the pump's runtime, for as long as it takes.
fn connector(options: RedisOptions) -> MakeStore {
    Box::new(move || {
        Box::pin(async move {
            let mut told = false;
            loop {
                match RedisStore::connect(options.clone()).await {
                    Ok(store) => return Ok(history::of_store(Arc::new(store))),
                    Err(error) if error.is_outage() => {
                        if !told {
                            info!(address = %options.address, error = %chain(&error), "waiting for the store");
                            told = true;
                        }
                        tokio::time::sleep(CONNECT_PAUSE).await;
                    }
                    Err(error) => return Err::<Arc<dyn Store>, StoreError>(error),
                }
            }
        })
    })
}

/// Tells systemd that the worker is ready once the store has answered, and then that it lives.
/// Until the pump stops: what lingers after that is for the supervisor to end.
async fn tell_supervisor(mut ready: tokio::sync::watch::Receiver<bool>, stop: CancellationToken) {
    if ready.wait_for(|ready| *ready).await.is_err() {
        return;
    }
    // Without a supervisor there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut beat = tokio::time::interval(period / 2);
    while !stop.is_cancelled() {
        beat.tick().await;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

/// Cancelled by SIGTERM or SIGINT.
fn stop_on_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else { return };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        told.cancel();
    });
    stop
}

/// Host and process id: for people, who look for a process.
fn who() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{}", host.trim(), std::process::id())
}

fn refused(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {}", chain(error));
    ExitCode::from(EX_CONFIG)
}

/// The error and its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
