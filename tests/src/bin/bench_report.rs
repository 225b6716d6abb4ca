//! `cargo bench-report`: measures, side by side with the floor, and says for each goal whether it is met.
//!
//! Exit code 0: measured, whatever came out. 1: with `--strict`, a goal was missed. 2: it could not be measured.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use turnaround_tests::bench::{self, Effort, Goal, worker};

/// Measures what docs/PERFORMANCE.md tells of.
#[derive(Parser)]
#[command(name = "bench-report")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The engine, on a Redis of its own.
    Engine(EngineArguments),
    /// One worker process of a measurement; started by the bench itself.
    #[command(hide = true)]
    Worker(worker::WorkerArguments),
}

#[derive(clap::Args)]
struct EngineArguments {
    /// Which goals; all where none is named.
    goals: Vec<Goal>,
    /// Less of everything: under a minute, for a first impression.
    #[arg(long)]
    quick: bool,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// End with exit code 1 if a goal is missed.
    #[arg(long)]
    strict: bool,
    /// Alternating rounds of each figure.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
    rounds: Option<u8>,
    /// Workflows of one round.
    #[arg(long)]
    workflows: Option<u32>,
    /// Workflows that one worker process has in hand at the same time.
    #[arg(long)]
    slots: Option<u16>,
}

impl EngineArguments {
    fn effort(&self) -> Effort {
        let usual = if self.quick { Effort::quick() } else { Effort::full() };
        Effort {
            rounds: self.rounds.map_or(usual.rounds, usize::from),
            workflows: self.workflows.map_or(usual.workflows, |workflows| workflows as usize),
            slots: self.slots.unwrap_or(usual.slots),
            ..usual
        }
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse().what {
        What::Worker(arguments) => return worker::main(&arguments),
        What::Engine(arguments) => arguments,
    };
    let goals = if arguments.goals.is_empty() { Goal::ALL.to_vec() } else { arguments.goals.clone() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let measured = runtime.and_then(|runtime| runtime.block_on(bench::engine(&goals, arguments.effort())));
    let report = match measured {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: it could not be measured: {error}");
            return ExitCode::from(2);
        }
    };
    if arguments.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("error: the report can't be written: {error}");
                return ExitCode::from(2);
            }
        }
    } else {
        print!("{report}");
    }
    if arguments.strict && report.missed() > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
