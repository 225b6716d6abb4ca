//! `turnaround store accept`: a person has looked, and takes what is there for what is true.

use std::io::{BufRead as _, IsTerminal as _};

use clap::{Args, Subcommand};

use super::client::{Client, read};
use super::error::CliError;
use super::out::{Style, print_json, say};
use super::status;
use crate::exit::Exit;
use crate::wire::{AcceptedView, StatusView};

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Go on with a halted store as it is; look at the nodes first
    Accept(Accept),
}

#[derive(Args)]
pub(super) struct Accept {
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(client: &Client, style: &Style, verb: Verb) -> Result<Exit, CliError> {
    let Verb::Accept(Accept { yes }) = verb;
    if !yes && !asked(client, style).await? {
        say("nothing was changed: the store is as it was");
        return Ok(Exit::Failed);
    }
    let answer = client.post("/v1/store/accept", &serde_json::json!({})).await?;
    if style.json {
        print_json(&answer)?;
    } else {
        let AcceptedView { store, revision } = read(answer)?;
        say(&format!(
            "accepted: store {store}, from revision {revision} on. Every open workflow looks at the world before it goes on; ticks of \
             schedules up to now are not made up for. See `turnaround status`, and `turnaround survey`"
        ));
    }
    Ok(Exit::Good)
}

/// Shows what is missing, and asks. Only on a terminal: a script that forgot `--yes` is told so.
async fn asked(client: &Client, style: &Style) -> Result<bool, CliError> {
    let view: StatusView = read(client.get("/v1/status").await?)?;
    let Some(halt) = &view.store.halt else {
        say("the store is not halted: there is nothing to accept");
        return Ok(false);
    };
    say(status::render_halt(halt, view.now.0, *style).trim_end());
    say("From now on this would be what is true. What is missing is not done again by itself, and not known to have been done.");
    if !std::io::stdin().is_terminal() {
        let what = "nobody can be asked here: stdin is not a terminal".to_owned();
        return Err(CliError::Usage { what, remedy: "add --yes if you have looked and mean it".to_owned() });
    }
    eprint!("have you looked at the nodes, and is this what you want to go on from? Type yes: ");
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| CliError::Local { what: "could not read the answer".to_owned(), source: error.into() })?;
    Ok(line.trim().eq_ignore_ascii_case("yes"))
}
