//! `turnaround config check FILE`: looks at a configuration without a daemon.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use turnaround_config::{Config, Redis};
use turnaround_workflows::clock::{Clock as _, SystemClock, Timestamp};

use super::client::CONFIG;
use super::error::CliError;
use super::out::{Style, print, print_json, result};
use super::schedules::runs;
use crate::exit::Exit;
use crate::schedule;

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Show every mistake at once, or the next runs of each schedule if there is none; exit code 0 or 78
    Check(Check),
}

#[derive(Args)]
pub(super) struct Check {
    /// [default: the one of --config, or /etc/turnaround/config.toml]
    file: Option<PathBuf>,
}

pub(super) fn run(verb: &Verb, config: Option<&Path>, style: &Style) -> Result<Exit, CliError> {
    let Verb::Check(Check { file }) = verb;
    let path = file.as_deref().or(config).unwrap_or(Path::new(CONFIG));
    match turnaround_config::check(path) {
        Ok(config) => {
            let now = SystemClock.now();
            if style.json { print_json(&as_json(&config, now))? } else { print(&render(path, &config, now, *style))? }
            Ok(Exit::Good)
        }
        Err(report) if style.json => {
            let problems = report.problems().iter().map(|problem| {
                json!({ "line": problem.line(), "column": problem.column(), "reason": problem.reason(), "help": problem.help() })
            });
            result(print_json(&json!({ "good": false, "problems": problems.collect::<Vec<_>>() })), Exit::Config)
        }
        Err(report) => Err(CliError::Config { path: path.to_owned(), report: report.for_stderr() }),
    }
}

fn render(path: &Path, config: &Config, now: Timestamp, style: Style) -> String {
    let store = match &config.store.redis {
        Redis::Embedded { .. } => format!("a private Redis in {}", config.state_dir.display()),
        Redis::Url { url, .. } => url.clone(),
        Redis::Sentinel { nodes, primary, .. } => format!("the primary `{primary}`, as {} know it", nodes.join(", ")),
    };
    let mut text = format!(
        "{} {}\n  {}: {} nodes, {} images; workflows are kept in {store}\n",
        path.display(),
        style.good("is good"),
        config.site,
        config.nodes.len(),
        config.images.len()
    );
    for (name, scheduled) in &config.schedules {
        text.push_str(&format!("{}: {}\n", style.strong(name.as_str()), schedule::starts(&scheduled.starts)));
        text.push_str(&runs(&schedule::next_runs(scheduled, now.utc())));
    }
    text
}

fn as_json(config: &Config, now: Timestamp) -> serde_json::Value {
    let schedules = config.schedules.iter().map(|(name, one)| json!({ "name": name, "next": schedule::next_runs(one, now.utc()) }));
    json!({
        "good": true,
        "site": config.site,
        "nodes": config.nodes.len(),
        "images": config.images.len(),
        "schedules": schedules.collect::<Vec<_>>(),
    })
}
