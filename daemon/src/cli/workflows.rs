//! `turnaround workflows`: what is open, or everything that is kept.

use clap::Args;
use turnaround_workflows::clock::{Clock as _, SystemClock, Timestamp};

use super::client::{Client, read};
use super::duration::age;
use super::error::CliError;
use super::out::{Style, print, print_json, say};
use super::table::table;
use crate::exit::Exit;
use crate::wire::WorkflowsView;

#[derive(Args)]
pub(super) struct Arguments {
    /// Also those that have ended and are still kept
    #[arg(long)]
    all: bool,
    /// Only of this kind, such as node-os
    #[arg(long)]
    kind: Option<String>,
    /// Only of this node
    #[arg(long, value_name = "NODE")]
    target: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
}

pub(super) async fn run(client: &Client, style: &Style, arguments: Arguments) -> Result<Exit, CliError> {
    let scope = if arguments.all { "all" } else { "open" };
    let mut path = format!("/v1/workflows?scope={scope}&limit={}", arguments.limit);
    for (name, value) in [("kind", &arguments.kind), ("target", &arguments.target)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", in_query(value)));
        }
    }
    let answer = client.get(&path).await?;
    if style.json {
        print_json(&answer)?;
        return Ok(Exit::Good);
    }
    let view: WorkflowsView = read(answer)?;
    if view.workflows.is_empty() {
        say(if arguments.all { "no workflow is kept" } else { "no workflow is open; `--all` shows ended ones" });
    }
    print(&render(&view, SystemClock.now(), *style))?;
    if view.next_offset.is_some() {
        say("there may be more: give a larger --limit, or --kind or --target");
    }
    Ok(Exit::Good)
}

/// `text` as a value behind the `?`.
fn in_query(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn render(view: &WorkflowsView, now: Timestamp, style: Style) -> String {
    let rows = view.workflows.iter().map(|line| {
        let headline = match &line.why_not_now {
            Some(why) => why.text.clone(),
            None => line.headline.clone(),
        };
        vec![line.id.to_string(), line.target.clone(), line.status.as_str().to_owned(), age(line.created, now), headline]
    });
    table(style, &["ID", "TARGET", "STATUS", "AGE", "WHAT"], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_can_not_change_the_request() {
        assert_eq!(in_query("gpu-01&scope=all ä"), "gpu-01%26scope%3Dall%20%C3%A4");
    }
}
