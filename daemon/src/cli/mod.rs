//! The command that an operator types: one verb a file.
//!
//! Data goes to stdout and talk to stderr, so that `turnaround --json ..` can be piped while a person still sees what goes
//! on. What a verb prints is made by a pure function of what the daemon said, and tested as a whole text.

mod client;
mod config;
mod duration;
mod error;
mod events;
mod jobs;
mod journal;
mod node;
mod nodes;
mod out;
mod report;
mod resolve;
mod schedules;
mod show;
mod signal;
mod status;
mod store;
mod survey;
mod table;
mod wait;
mod workflows;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::Exit;
use client::Client;
use error::CliError;
use out::Style;

const CODES: &str = "Exit codes:
  0   done
  1   what was asked for did not succeed, such as a rollout with --wait
  2   the command line can't be understood
  3   no daemon answers
  4   the daemon refused, or you may not open its socket
  5   there is no such workflow, node or image
  78  the configuration is not good";

/// Plans and runs the renewal of a private cloud.
#[derive(Parser)]
#[command(name = "turnaround", version, after_help = CODES, max_term_width = 100)]
struct Cli {
    /// The daemon's socket [default: the one in the configuration]
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// The configuration file, to find the socket by [default: /etc/turnaround/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// How things stand: what runs, what waits and why, what needs you
    Status,
    /// The nodes: what they run, and what is being done to them
    Nodes,
    /// Renew a node, or give back what a left-out node holds
    #[command(subcommand)]
    Node(node::Verb),
    /// Workflows, newest first
    Workflows(workflows::Arguments),
    /// All about one workflow, and what to type if it needs you
    Show(show::Arguments),
    /// Everything that happened to a workflow
    Journal(journal::Arguments),
    /// What happens now
    Events(events::Arguments),
    /// Begin nothing new in a workflow until `resume`
    Pause(signal::WithReason),
    /// Go on with a paused workflow
    Resume(signal::Plain),
    /// Undo what a workflow did, and end it
    Abort(signal::WithReason),
    /// Try the current step of a workflow again, now
    Retry(signal::Plain),
    /// Answer the question of a workflow
    Answer(signal::Answer),
    /// Look what every node runs; changes nothing
    Survey,
    /// Schedules, with their next runs
    Schedules,
    /// Background jobs of the daemon
    Jobs,
    /// Go on with a store from which something is missing
    #[command(subcommand)]
    Store(store::Verb),
    /// Look at a configuration file; needs no daemon
    #[command(subcommand)]
    Config(config::Verb),
}

/// Reads the command line, does what it says, and tells how it went.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let style = Style::of_this_process(cli.json);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(obey(cli, &style)),
        Err(error) => Err(CliError::Local { what: "the async runtime can't be set up".to_owned(), source: error.into() }),
    };
    match done {
        Ok(exit) => exit.into(),
        Err(error) => {
            error.tell(&style);
            error.exit().into()
        }
    }
}

async fn obey(cli: Cli, style: &Style) -> Result<Exit, CliError> {
    if let Verb::Config(verb) = &cli.verb {
        return config::run(verb, cli.config.as_deref(), style);
    }
    let client = Client::find(cli.socket, cli.config.as_deref())?;
    match cli.verb {
        Verb::Status => status::run(&client, style).await,
        Verb::Nodes => nodes::run(&client, style).await,
        Verb::Node(verb) => node::run(&client, style, verb).await,
        Verb::Workflows(arguments) => workflows::run(&client, style, arguments).await,
        Verb::Show(arguments) => show::run(&client, style, arguments).await,
        Verb::Journal(arguments) => journal::run(&client, style, arguments).await,
        Verb::Events(arguments) => events::run(&client, style, arguments).await,
        Verb::Pause(arguments) => signal::pause(&client, style, arguments).await,
        Verb::Resume(arguments) => signal::resume(&client, style, arguments).await,
        Verb::Abort(arguments) => signal::abort(&client, style, arguments).await,
        Verb::Retry(arguments) => signal::retry(&client, style, arguments).await,
        Verb::Answer(arguments) => signal::answer(&client, style, arguments).await,
        Verb::Survey => survey::run(&client, style).await,
        Verb::Schedules => schedules::run(&client, style).await,
        Verb::Jobs => jobs::run(&client, style).await,
        Verb::Store(verb) => store::run(&client, style, verb).await,
        Verb::Config(_) => Ok(Exit::Good),
    }
}
