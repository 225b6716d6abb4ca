//! `cargo campaign`: real processes, faults of many kinds at once, and a verdict.
//!
//! Exit code 0: all that must hold held. 1: not so. 2: it could not be run.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use turnaround_tests::campaign::{self, Campaign, Scale, TAIL_MAX, planted, recovery};

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
    /// In place of a campaign: so many kills, of workers and one in four of Redis, at the default settings; measures how long work
    /// stands still.
    #[arg(long, value_name = "KILLS")]
    kills: Option<usize>,
    /// Use the programs beside this one as they are.
    #[arg(long, hide = true)]
    as_built: bool,
    /// How long to wait for the end of all work.
    #[arg(long, hide = true)]
    tail_seconds: Option<u64>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Build planted bugs into the product, one after the other, and see each of them caught
    Planted {
        /// Some of them, by the names of their features; without any, all
        bugs: Vec<String>,
    },
}

/// From this length on one BMC is deaf, which takes three minutes to be settled: a short campaign would only wait for that.
const DEAF_BMC_FROM: Duration = Duration::from_secs(240);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Whoever is interrupted takes everything down that was started: it is dropped with the run.
    let ran = tokio::select! {
        ran = run(&arguments) => ran,
        () = interrupted() => Err(io::Error::other("interrupted")),
    };
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all is well.
async fn run(arguments: &Arguments) -> io::Result<bool> {
    if let Some(Verb::Planted { bugs }) = &arguments.verb {
        let fates = planted::prove(bugs).await?;
        let caught = fates.iter().filter(|fate| fate.caught).count();
        println!("{caught} of {} planted bugs caught", fates.len());
        return Ok(caught == fates.len());
    }
    if let Some(kills) = arguments.kills {
        let measured = recovery::measure(kills, arguments.as_built).await?;
        recovery::tell(&measured);
        return Ok(measured.is_good());
    }
    let lasts = Duration::from_secs(arguments.seconds.unwrap_or(arguments.minutes * 60));
    let scale = Scale { deaf_bmc: lasts >= DEAF_BMC_FROM, as_built: arguments.as_built, ..Scale::default() };
    let tail = arguments.tail_seconds.map_or(TAIL_MAX, Duration::from_secs);
    let outcome = Campaign { seed: arguments.seed, lasts, scale, tail, keep: arguments.keep }.run().await?;
    if arguments.json {
        println!("{}", campaign::json(&outcome));
    } else {
        campaign::tell(&outcome);
    }
    Ok(outcome.is_good())
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
