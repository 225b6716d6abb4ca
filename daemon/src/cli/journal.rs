//! `turnaround journal ID`: everything that happened to a workflow, and whether the record can be trusted.

use clap::Args;
use serde_json::Value;

use super::client::{Client, read};
use super::duration::moment;
use super::error::CliError;
use super::out::{Style, print, print_json, say};
use super::resolve::resolve;
use super::table::table;
use crate::exit::Exit;
use crate::wire::JournalView;

/// Entries asked for at once.
const PAGE: u32 = 400;
/// Pages that one command prints: 100,000 entries. A journal has some hundred.
const PAGES_MAX: u32 = 250;

#[derive(Args)]
pub(super) struct Arguments {
    /// The workflow's id, or the beginning of it; of an archived one, the whole id
    id: String,
    /// Begin with this entry
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from: u64,
}

pub(super) async fn run(client: &Client, style: &Style, arguments: Arguments) -> Result<Exit, CliError> {
    let id = match resolve(client, &arguments.id).await {
        // It may be archived.
        Err(CliError::NoWorkflow { typed }) if typed.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) => typed,
        resolved => resolved?,
    };
    let (mut broken, mut reads) = (None, true);
    let mut from = arguments.from;
    for _ in 0..PAGES_MAX {
        let answer: Value = client.get(&format!("/v1/workflows/{id}/journal?from={from}&limit={PAGE}")).await?;
        let view: JournalView = read(answer.clone())?;
        broken = broken.or_else(|| view.broken.clone());
        if reads {
            let printed = if style.json { print_json(&answer) } else { print(&render(&view, *style)) };
            match printed {
                // The exit code still tells of the whole of it.
                Err(CliError::ReaderGone) => reads = false,
                printed => printed?,
            }
        }
        if view.archived {
            say("from the archive: the store has it no more");
        }
        match view.next {
            Some(next) => from = next,
            None => break,
        }
    }
    match broken {
        None => {
            say("every entry is sealed over the one before");
            Ok(Exit::Good)
        }
        Some(broken) => {
            say(&format!("{}: {broken}; nothing from there on can be trusted", style.bad("BROKEN")));
            Ok(Exit::Failed)
        }
    }
}

fn render(view: &JournalView, style: Style) -> String {
    let rows = view.entries.iter().map(|entry| {
        let at = entry.at.map(moment).unwrap_or_default();
        let text = if entry.sealed { entry.text.clone() } else { format!("NOT SEALED: {}", entry.text) };
        vec![entry.seq.to_string(), at, text]
    });
    table(style, &["#", "AT", "WHAT"], rows.collect())
}
