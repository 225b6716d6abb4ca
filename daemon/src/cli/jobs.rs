//! `turnaround jobs`: what the daemon does in the background, when last and with what result.

use turnaround_workflows::clock::{Clock as _, SystemClock, Timestamp};

use super::client::{Client, read};
use super::duration::ago;
use super::error::CliError;
use super::out::{Style, print, print_json};
use super::table::table;
use crate::exit::Exit;
use crate::wire::{JobView, JobsView};

pub(super) async fn run(client: &Client, style: &Style) -> Result<Exit, CliError> {
    let answer = client.get("/v1/jobs").await?;
    if style.json {
        print_json(&answer)?;
    } else {
        print(&render(&read(answer)?, SystemClock.now(), *style))?;
    }
    Ok(Exit::Good)
}

fn render(view: &JobsView, now: Timestamp, style: Style) -> String {
    let rows = view.jobs.iter().map(|job| row(job, now)).collect();
    table(style, &["JOB", "LAST", "NEXT", "RESULT"], rows)
}

fn row(job: &JobView, now: Timestamp) -> Vec<String> {
    let last = match (&job.running_since, &job.last) {
        (Some(since), _) => format!("running since {}", ago(*since, now)),
        (None, Some(last)) => ago(last.began, now),
        (None, None) => "not yet".to_owned(),
    };
    let next = job.next.map(|next| if next.0 <= now { "now".to_owned() } else { ago(next, now) }).unwrap_or_default();
    let result = match &job.last {
        Some(last) => match &last.error {
            Some(error) => format!("FAILED ({} in a row): {error}", job.failures_in_a_row),
            None => last.summary.clone(),
        },
        None => job.about.clone(),
    };
    vec![job.name.clone(), last, next, result]
}
