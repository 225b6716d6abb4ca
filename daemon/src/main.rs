//! `turnaround-daemon`: decides when.
//!
//! Exit codes: 0 told to stop; 78 the configuration is not good, and nothing was started; 73 the socket can't be had, usually
//! because another daemon serves it; 69 the store can't be used as it is, with what to do about it; 1 anything else.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use turnaround_config::Config;
use turnaround_daemon::api::problem::chain;
use turnaround_daemon::api::socket::{SocketClaim, SocketError};
use turnaround_daemon::boot::{self, StoreRefused};
use turnaround_daemon::exit::Exit;
use turnaround_daemon::{service, systemd};
use turnaround_workflows::store::embedded::EmbeddedRedis;
use turnaround_workflows::telemetry::{self, TelemetryError};

/// Schedules work, serves the API, and keeps the books. Touches no machine: that is for workers.
#[derive(Parser)]
#[command(name = "turnaround-daemon", version)]
struct Arguments {
    /// The configuration file, the same as the workers'
    #[arg(long, default_value = "/etc/turnaround/config.toml")]
    config: PathBuf,
}

/// Why the daemon ended otherwise than by being told to.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("telemetry can't be set up as configured")]
    Telemetry(#[from] TelemetryError),
    #[error("the API can't be served")]
    Socket(#[from] SocketError),
    #[error("the store can't be used")]
    Store(#[from] StoreRefused),
    #[error("the system refuses what every program needs")]
    System(#[from] std::io::Error),
}

impl Ended {
    fn exit(&self) -> Exit {
        match self {
            Ended::Telemetry(_) => Exit::Config,
            Ended::Socket(_) => Exit::Socket,
            Ended::Store(_) => Exit::Store,
            Ended::System(_) => Exit::Failed,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match turnaround_config::check(&arguments.config) {
        Ok(config) => config,
        Err(report) => {
            eprintln!("{}", report.for_stderr());
            return Exit::Config.into();
        }
    };
    // Both the store (rediss://) and the exporters may use TLS. Set already: as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(Ended::System).and_then(|runtime| runtime.block_on(daemon(config))) {
        Ok(()) => Exit::Good.into(),
        Err(ended) => {
            eprintln!("error: {}", chain(&ended));
            ended.exit().into()
        }
    }
}

async fn daemon(config: Config) -> Result<(), Ended> {
    let telemetry = telemetry::init("turnaround-daemon", &config.telemetry)?;
    let ended = serve(Arc::new(config)).await;
    match &ended {
        Ok(()) => info!("daemon stopped"),
        Err(ended) => error!(error = chain(ended), "daemon ended"),
    }
    telemetry.shutdown().await;
    ended
}

async fn serve(config: Arc<Config>) -> Result<(), Ended> {
    let stop = stop_on_signal()?;
    let beat = tokio::spawn(systemd::beat(stop.clone()));
    // The cheapest refusal first: a second daemon must not get as far as the store.
    let claim = SocketClaim::take(&config.daemon.socket)?;
    let private_redis = boot::private_redis(&config).await?;
    let options = boot::redis_options(&config)?;
    let Some(store) = boot::open_store(options, &stop).await? else { return Ok(()) };
    let listener = claim.bind()?;
    let health = private_redis.as_ref().map(EmbeddedRedis::watch_health);
    let app = service::app(Arc::clone(&config), store, health, stop.clone());
    info!(
        site = config.site, nodes = config.nodes.len(), schedules = config.schedules.len(),
        socket = %config.daemon.socket.display(), "daemon serves"
    );
    systemd::ready(&format!("serving {} with {} nodes", config.site, config.nodes.len()));
    service::run(app, listener).await?;
    systemd::stopping();
    // Last, so that whatever was under way could still be written down.
    if let Some(redis) = private_redis {
        redis.stop().await;
    }
    beat.abort();
    Ok(())
}

/// Cancelled by SIGTERM or SIGINT.
fn stop_on_signal() -> Result<CancellationToken, std::io::Error> {
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        };
        info!(signal = name, "told to stop");
        told.cancel();
    });
    Ok(stop)
}
