//! `cargo campaign`: real processes, faults of many kinds at once, and a verdict.
//!
//! Exit code 0: all that must hold held. 1: not so. 2: it could not be run.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use turnaround_tests::campaign::{self, Campaign, Scale};

/// Runs the product's processes through faults of many kinds, and judges what came of it.
#[derive(Parser)]
#[command(name = "campaign")]
struct Arguments {
    /// Faults, operators and site are made from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long faults are dealt, in minutes.
    #[arg(long, default_value_t = 5, conflicts_with = "seconds")]
    minutes: u64,
    /// The same in seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// One JSON object in place of the report.
    #[arg(long)]
    json: bool,
    /// Keep the logs, and say where they are, also if all is well.
    #[arg(long)]
    keep: bool,
}

/// From this length on one BMC is deaf, which takes three minutes to be settled: a short campaign would only wait for that.
const DEAF_BMC_FROM: Duration = Duration::from_secs(240);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let lasts = Duration::from_secs(arguments.seconds.unwrap_or(arguments.minutes * 60));
    let scale = Scale { deaf_bmc: lasts >= DEAF_BMC_FROM, ..Scale::default() };
    let campaign = Campaign { seed: arguments.seed, lasts, scale, keep: arguments.keep };
    // Whoever is interrupted takes everything down that was started: dropped with the run.
    let ran = tokio::select! {
        ran = campaign.run() => ran,
        () = interrupted() => Err(std::io::Error::other("interrupted")),
    };
    match ran {
        Ok(outcome) => {
            if arguments.json { println!("{}", campaign::json(&outcome)) } else { campaign::tell(&outcome) }
            if outcome.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// By the keyboard, or by whoever ends it.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
