//! `turnaround show ID`: all about one workflow, and what to type if it needs an operator.

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use turnaround_workflows::clock::{Clock as _, SystemClock, Timestamp};
use turnaround_workflows::store::Status;

use super::client::{Client, read};
use super::duration::{ago, millis, moment};
use super::error::CliError;
use super::events::{RECONNECT_PAUSE, RECONNECTS_MAX};
use super::out::{Style, clean, print, print_json, say};
use super::report;
use super::resolve::resolve;
use super::table::indented;
use crate::exit::Exit;
use crate::wire::{LogView, QuestionView, StepState, StepView, WorkflowView};

#[derive(Args)]
pub(super) struct Arguments {
    /// Its id, or the beginning of it; or a node, for the open workflow that renews it, or will
    id: String,
    /// What its newest run of the setup script has written, from the beginning
    #[arg(long)]
    log: bool,
    /// With --log: stay, and print what it writes, until that run is over
    #[arg(short, long, requires = "log")]
    follow: bool,
}

/// A deadline that is further away is none. That of a rollout, which waits for its nodes, is a year from its beginning.
const NO_DEADLINE: Duration = Duration::from_secs(90 * 86_400);

/// How often a log is looked at that is followed.
const LOG_POLL: Duration = Duration::from_secs(1);

pub(super) async fn run(client: &Client, style: &Style, arguments: Arguments) -> Result<Exit, CliError> {
    let id = match resolve(client, &arguments.id).await {
        // Only to look: whoever answers or aborts types which.
        Err(CliError::NodeTyped { node, open, planned }) => match (open.as_slice(), planned) {
            ([only], _) => {
                say(&format!("{node} is a node; the open workflow that renews it:"));
                only.clone()
            }
            ([], Some(rollout)) => {
                say(&format!("{node} is a node; its turn is yet to come, in the open rollout:"));
                rollout
            }
            (_, planned) => return Err(CliError::NodeTyped { node, open, planned }),
        },
        resolved => resolved?,
    };
    if arguments.log {
        return log(client, style, &id, arguments.follow).await;
    }
    let answer = client.get(&format!("/v1/workflows/{id}")).await?;
    if style.json {
        print_json(&answer)?;
    } else {
        print(&render(&read(answer)?, SystemClock.now(), *style))?;
    }
    Ok(Exit::Good)
}

/// Page by page, however long it is.
async fn log(client: &Client, style: &Style, id: &str, follow: bool) -> Result<Exit, CliError> {
    let (mut from, mut run) = (0, String::new());
    let mut tries = 0;
    loop {
        let answer = match client.get(&format!("/v1/workflows/{id}/log?from={from}&whole_lines={follow}{run}")).await {
            Ok(answer) => answer,
            // The script goes on writing without it.
            Err(CliError::Unreachable { .. }) if follow && !run.is_empty() && tries < RECONNECTS_MAX => {
                if tries == 0 {
                    say("the daemon does not answer; going on when it is back");
                }
                tries += 1;
                tokio::time::sleep(RECONNECT_PAUSE).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        tries = 0;
        // Not by `read`, which would escape the ends of lines.
        let page: LogView = serde_json::from_value(answer.clone()).map_err(|error| CliError::Answer { what: error.to_string() })?;
        if style.json {
            print_json(&answer)?;
        } else {
            let lines = page.text.split_inclusive('\n').map(|line| clean(line.trim_end_matches('\n')) + "\n");
            print(&lines.collect::<String>())?;
        }
        if page.next.is_none() {
            if !follow || page.over {
                return Ok(Exit::Good);
            }
            tokio::time::sleep(LOG_POLL).await;
        }
        // A newer run that begins meanwhile is another log.
        (from, run) = (page.end, format!("&run={}", page.run));
    }
}

/// The page about `view` as it is at `now`.
pub(super) fn render(view: &WorkflowView, now: Timestamp, style: Style) -> String {
    let line = &view.line;
    let mut text = format!("{}: {} of {}\n", style.strong(line.id.as_str()), line.kind, line.target);
    let mut fact = |name: &str, value: &str| text.push_str(&format!("  {name:<11} {value}\n"));
    fact("status", line.status.as_str());
    if !line.headline.is_empty() {
        fact("", &line.headline);
    }
    fact("created", &format!("{} ({}) by {}", moment(line.created), ago(line.created, now), view.created_by));
    if line.status.is_ended() {
        fact("ended", &format!("{} ({})", moment(line.updated), ago(line.updated, now)));
    }
    if let Some(worker) = &line.worker {
        fact("worker", worker);
    }
    if let Some(parent) = &line.parent {
        fact("parent", parent.as_str());
    }
    if !view.holds.is_empty() {
        let holds: Vec<String> = view.holds.iter().map(ToString::to_string).collect();
        fact("holds", &holds.join(", "));
    }
    if let Some(why) = line.why_not_now.as_ref().filter(|_| view.question.is_none()) {
        let next = why.next.filter(|next| next.0 > now).map(|next| format!(", next look {}", ago(next, now))).unwrap_or_default();
        fact("waits", &format!("{} (since {}{next})", why.text, moment(why.since)));
        fact("to go on", &why.unblock);
    }
    // Whoever is asked already has all the time that it takes.
    let under_way = view.steps.iter().filter(|step| step.state != StepState::Asking && line.status != Status::Quarantined);
    for (step, deadline) in under_way.filter_map(|step| Some((step, step.deadline?))).filter(|(_, deadline)| deadline.0.since(now) < NO_DEADLINE) {
        let undo = if step.state == StepState::Undoing { "undo " } else { "" };
        fact("deadline", &format!("{} ({}) for {undo}{}: what is not done then becomes a question", moment(deadline), ago(deadline, now), step.step));
    }
    if let Some(problem) = &view.journal_problem {
        fact("JOURNAL", &style.bad(problem));
    }
    if !view.steps.is_empty() {
        text.push('\n');
        text.push_str(&steps(view, now, style));
    }
    if !view.children.is_empty() {
        text.push('\n');
        text.push_str(&children(view, style));
    }
    for child in view.children.iter().filter(|child| child.status == Some(Status::NeedsOperator)) {
        text.push_str(&format!("\n{} {}\n  turnaround show {}\n", style.bad("NEEDS YOU:"), child.key, child.id));
    }
    if let Some(output) = report::of(view, style) {
        text.push('\n');
        text.push_str(&output);
    }
    if let Some(question) = &view.question {
        text.push('\n');
        text.push_str(&ask(question, style));
    }
    text
}

fn steps(view: &WorkflowView, now: Timestamp, style: Style) -> String {
    // A report has a page of its own.
    let reported = report::of(view, style).is_some();
    let rows = view.steps.iter().map(|step| {
        let took = match (step.took_ms, step.begun) {
            (Some(took), _) => millis(took),
            (None, Some(begun)) if step.state != StepState::NotBegun => super::duration::age(begun, now),
            (None, _) => String::new(),
        };
        let tries = match step.failures {
            0 => String::new(),
            1 => "1 failure".to_owned(),
            many => format!("{many} failures"),
        };
        let came_of = if step.state == StepState::Done && !reported { came_of(step) } else { String::new() };
        let note = [tries.as_str(), step.note.as_str(), came_of.as_str()].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
        vec![step.step.clone(), step.state.as_str().to_owned(), took, note]
    });
    indented(style, "  ", &["STEP", "STATE", "TOOK", "NOTE"], rows.collect())
}

/// What a step put out, as far as a line has room for it: of what has parts of its own, how many they are.
fn came_of(step: &StepView) -> String {
    let words = |text: &str| text.replace(['_', '-'], " ");
    let output = match &step.output {
        Some(Value::Object(output)) => output,
        Some(Value::String(outcome)) => return words(outcome),
        _ => return String::new(),
    };
    let told = output.iter().filter_map(|(name, value)| {
        let value = match value {
            Value::Null => return None,
            // An outcome with its reason: `not` silenced, `accepted`.
            Value::Object(parts) => return parts.get("why").and_then(Value::as_str).map(|why| format!("{}: {why}", words(name))),
            Value::Array(parts) => parts.len().to_string(),
            Value::String(text) => text.clone(),
            // A moment is told in milliseconds.
            Value::Number(at) if name.ends_with("_at") || name == "until" => moment(Timestamp::from_millis(at.as_i64()?).into()),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
        };
        Some(format!("{} {value}", words(name)))
    });
    told.collect::<Vec<_>>().join(", ")
}

fn children(view: &WorkflowView, style: Style) -> String {
    let rows = view.children.iter().map(|child| {
        let open = child.status.map_or("open", |status| status.as_str());
        let state = child.outcome.map_or(open, |outcome| outcome.as_str());
        vec![child.key.clone(), state.to_owned(), child.id.to_string(), child.headline.clone()]
    });
    indented(style, "  ", &["CHILD", "STATE", "ID", "SAYS"], rows.collect())
}

/// The question, what was seen, and for each answer what it does and what to type.
fn ask(question: &QuestionView, style: Style) -> String {
    let mut text = format!("{} {}\n", style.bad("NEEDS YOU:"), question.text);
    if !question.seen.is_empty() {
        text.push_str("  seen:\n");
        for fact in &question.seen {
            text.push_str(&format!("    - {fact}\n"));
        }
    }
    if !question.reasons.is_empty() {
        let reasons: Vec<&str> = question.reasons.iter().map(String::as_str).collect();
        text.push_str(&format!("  reasons: {}\n", reasons.join(", ")));
    }
    text.push_str("  answers:\n");
    for answer in &question.answers {
        text.push_str(&format!("    {}: {}\n", style.strong(&answer.key), answer.consequence));
        text.push_str(&format!("      {}\n", answer.command));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> WorkflowView {
        serde_json::from_value(serde_json::json!({
            "id": "node-os-rollout-a.gpu-01", "kind": "node-os", "target": "gpu-01", "parent": "node-os-rollout-a",
            "status": "needs-operator", "headline": "evacuate: 1 instance can't leave gpu-01: what now?",
            "created": "2026-11-22T02:00:00.000Z", "updated": "2026-11-22T03:00:00.000Z", "due": null, "worker": null,
            "why_not_now": { "code": "question", "since": "2026-11-22T03:00:00.000Z", "next": null, "text": "q", "unblock": "u" },
            "created_by": "workflow node-os-rollout-a", "input": {},
            "steps": [
                { "step": "close", "state": "done", "begun": "2026-11-22T02:00:00.000Z", "ended": "2026-11-22T02:00:03.000Z",
                  "took_ms": 3000, "deadline": null, "failures": 0, "note": "",
                  "output": { "reopen": true, "found": { "enabled": true }, "agents": ["OVN", "DHCP"], "alerts": null } },
                { "step": "evacuate", "state": "asking", "begun": "2026-11-22T02:00:03.000Z", "ended": null, "took_ms": null,
                  "deadline": "2026-11-22T06:00:03.000Z", "failures": 2, "note": "1 instance can't leave", "output": null },
                { "step": "reprovision", "state": "not-begun", "begun": null, "ended": null, "took_ms": null, "deadline": null,
                  "failures": 0, "note": "", "output": null },
            ],
            "question": {
                "text": "1 instance can't leave gpu-01: what now?",
                "seen": ["train-7 (4f0c): No valid host was found.\u{1b}[2J"],
                "reasons": ["other", "stuck"],
                "answers": [
                    { "key": "retry", "consequence": "tries again", "effect": "retry",
                      "command": "turnaround answer node-os-rollout-a.gpu-01 retry" },
                    { "key": "unwind", "consequence": "opens gpu-01 again and ends", "effect": "unwind",
                      "command": "turnaround answer node-os-rollout-a.gpu-01 unwind" },
                ],
            },
            "children": [{ "key": "k", "id": "x.k", "outcome": null, "status": "needs-operator", "headline": "asks" }], "holds": [{ "lock": { "name": "node-gpu-01" } }, { "budget": { "name": "nodes-out", "member": "gpu-01" } }],
            "waits_for": null, "journal_entries": 9, "journal_problem": null,
        }))
        .unwrap()
    }

    const PLAIN: Style = Style { json: false, terminal: false, colour: false };

    fn noon_past(minutes: u64) -> Timestamp {
        let noon = "2026-11-22T12:00:00Z".parse::<chrono::DateTime<chrono::Utc>>().unwrap();
        Timestamp::from(noon) + Duration::from_secs(minutes * 60)
    }

    #[test]
    fn what_a_step_put_out_is_told_as_words_also_why_it_was_not_done() {
        let mut step = view().steps.remove(0);
        let noon = noon_past(0).millis();
        for (output, told) in [
            (serde_json::json!({ "not": { "why": "Grafana refused" } }), "not: Grafana refused"),
            (serde_json::json!({ "not-ended": { "why": "gone" } }), "not ended: gone"),
            (serde_json::json!({ "until": noon }), "until 2026-11-22T12:00:00Z"),
            (serde_json::json!({ "reset_at": noon, "moved": 2, "found": { "enabled": true } }), "moved 2, reset at 2026-11-22T12:00:00Z"),
            (serde_json::json!("not-ordered"), "not ordered"),
            (serde_json::json!(null), ""),
        ] {
            step.output = Some(output);
            assert_eq!(came_of(&step), told);
        }
    }

    #[test]
    fn the_step_under_way_says_until_when_it_may_take() {
        let mut view = view();
        let says = |view: &WorkflowView, now: Timestamp| {
            let page = render(view, now, PLAIN);
            page.lines().find(|line| line.contains("deadline")).map(str::to_owned)
        };
        view.steps[1].deadline = Some(noon_past(240).into());
        assert_eq!(says(&view, noon_past(5)), None, "it asks already");
        view.steps[1].state = StepState::Waiting;
        let told = |when: &str| Some(format!("  deadline    2026-11-22T16:00:00Z ({when}) for evacuate: what is not done then becomes a question"));
        assert_eq!(says(&view, noon_past(5)), told("in 3h 55m"));
        assert_eq!(says(&view, noon_past(300)), told("1h 00m ago"));
        view.steps[1].state = StepState::Undoing;
        assert_eq!(says(&view, noon_past(5)).as_deref().and_then(|line| line.split_once(" for ")).map(|(_, rest)| rest), Some("undo evacuate: what is not done then becomes a question"));
        view.line.status = Status::Quarantined;
        assert_eq!(says(&view, noon_past(5)), None, "nobody works on it");
        view.line.status = Status::Waiting;
        view.steps[1].deadline = Some((noon_past(0) + Duration::from_secs(365 * 86_400)).into());
        assert_eq!(says(&view, noon_past(5)), None, "a rollout has none");
    }

    #[test]
    fn whoever_is_asked_sees_what_was_seen_and_what_to_type() {
        let at = "2026-11-22T03:05:00Z".parse::<chrono::DateTime<chrono::Utc>>().unwrap();
        let cleaned = super::super::out::clean_all(serde_json::to_value(view()).unwrap());
        let text = render(&serde_json::from_value(cleaned).unwrap(), at.into(), PLAIN);
        assert_eq!(
            text,
            "\
node-os-rollout-a.gpu-01: node-os of gpu-01
  status      needs-operator
              evacuate: 1 instance can't leave gpu-01: what now?
  created     2026-11-22T02:00:00Z (1h 05m ago) by workflow node-os-rollout-a
  parent      node-os-rollout-a
  holds       lock node-gpu-01, budget nodes-out for gpu-01

  STEP         STATE      TOOK    NOTE
  close        done       3s      agents 2, reopen true
  evacuate     asking     1h 04m  2 failures; 1 instance can't leave
  reprovision  not begun

  CHILD  STATE           ID   SAYS
  k      needs-operator  x.k  asks

NEEDS YOU: k
  turnaround show x.k

NEEDS YOU: 1 instance can't leave gpu-01: what now?
  seen:
    - train-7 (4f0c): No valid host was found.\\u{1b}[2J
  reasons: other, stuck
  answers:
    retry: tries again
      turnaround answer node-os-rollout-a.gpu-01 retry
    unwind: opens gpu-01 again and ends
      turnaround answer node-os-rollout-a.gpu-01 unwind
"
        );
    }
}
