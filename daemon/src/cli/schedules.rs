//! `turnaround schedules`: what starts by itself, and when next.

use super::client::{Client, read};
use super::duration::{millis, moment};
use super::error::CliError;
use super::out::{Style, print, print_json, say};
use crate::exit::Exit;
use crate::wire::{RunTime, ScheduleView, SchedulesView, TickVerdict};

pub(super) async fn run(client: &Client, style: &Style) -> Result<Exit, CliError> {
    let answer = client.get("/v1/schedules").await?;
    if style.json {
        print_json(&answer)?;
        return Ok(Exit::Good);
    }
    let view: SchedulesView = read(answer)?;
    if view.schedules.is_empty() {
        say("nothing is scheduled: add to [schedules] in the configuration");
    }
    let texts: Vec<String> = view.schedules.iter().map(|schedule| render(schedule, *style)).collect();
    print(&texts.join("\n"))?;
    Ok(Exit::Good)
}

fn render(schedule: &ScheduleView, style: Style) -> String {
    let mut text = format!(
        "{}: {}\n  at `{}` {}, catch up {}, at most {} late\n",
        style.strong(&schedule.name),
        schedule.starts,
        schedule.cron,
        schedule.timezone,
        schedule.catch_up,
        millis(schedule.max_lateness_ms)
    );
    let judged = schedule.judged.map_or("not yet".to_owned(), moment);
    text.push_str(&format!("  judged up to {judged}\n"));
    if let Some(problem) = &schedule.problem {
        text.push_str(&format!("  {}: {problem}\n", style.bad("problem")));
    }
    text.push_str(&runs(&schedule.next));
    for tick in &schedule.recent {
        let verdict = match tick.verdict {
            TickVerdict::Started => "started",
            TickVerdict::Missed => "MISSED",
            TickVerdict::Skipped => "passed over",
            TickVerdict::Failed => "FAILED",
        };
        text.push_str(&format!("  {} {verdict}: {}\n", moment(tick.tick), tick.note));
    }
    text
}

/// The next runs, one a line, in UTC and local time.
pub(super) fn runs(next: &[RunTime]) -> String {
    if next.is_empty() {
        return "  never runs again\n".to_owned();
    }
    next.iter().map(|run| format!("  next {}   {}\n", moment(run.utc), run.local)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_tells_its_next_runs_twice_and_what_did_not_run() {
        let schedule: ScheduleView = serde_json::from_value(serde_json::json!({
            "name": "nightly", "cron": "30 2 * * *", "timezone": "Europe/Berlin", "catch_up": "latest",
            "max_lateness_ms": 3_600_000, "starts": "survey", "judged": "2026-10-24T00:30:00.000Z",
            "next": [{ "utc": "2026-10-25T00:30:00.000Z", "local": "Sun 2026-10-25 02:30:00 +02:00 CEST" }],
            "recent": [{ "tick": "2026-10-24T00:30:00.000Z", "verdict": "missed", "note": "later than max_lateness (1h)" }],
            "problem": null,
        }))
        .unwrap();
        assert_eq!(
            render(&schedule, Style { json: false, terminal: false, colour: false }),
            "\
nightly: survey
  at `30 2 * * *` Europe/Berlin, catch up latest, at most 1h 00m late
  judged up to 2026-10-24T00:30:00Z
  next 2026-10-25T00:30:00Z   Sun 2026-10-25 02:30:00 +02:00 CEST
  2026-10-24T00:30:00Z MISSED: later than max_lateness (1h)
"
        );
    }
}
