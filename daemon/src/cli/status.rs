//! `turnaround status`: how things stand, on one page.

use turnaround_workflows::clock::Timestamp;

use super::client::{Client, read};
use super::duration::{age, ago};
use super::error::CliError;
use super::out::{Style, print, print_json};
use super::table::table;
use crate::exit::Exit;
use crate::wire::{AlarmView, BudgetView, HaltView, StatusView, WorkflowLine};

pub(super) async fn run(client: &Client, style: &Style) -> Result<Exit, CliError> {
    let answer = client.get("/v1/status").await?;
    if style.json {
        print_json(&answer)?;
    } else {
        print(&render(&read(answer)?, *style))?;
    }
    Ok(Exit::Good)
}

fn render(view: &StatusView, style: Style) -> String {
    let now = view.now.0;
    let may = if view.you.may_change { "operator" } else { "may look only" };
    let mut text = format!(
        "{}: turnaround {}, up {}; you are {} ({may})\n",
        style.strong(&view.site),
        view.version,
        age(view.started, now),
        view.you.user
    );
    let store = if view.store.reachable { view.store.description.clone() } else { style.bad(&view.store.description) };
    text.push_str(&format!("store: {store}\n"));
    for weakness in &view.store.weaknesses {
        text.push_str(&format!("  {}: {weakness}\n", style.warning("weaker than it should be")));
    }
    for alarm in &view.alarms {
        text.push_str(&render_alarm(alarm, now, style));
    }
    if let Some(halt) = &view.store.halt {
        text.push_str(&render_halt(halt, now, style));
    }
    for budget in &view.budgets {
        text.push_str(&render_budget(budget));
    }
    let counts: Vec<String> = view.counts.iter().filter(|(_, n)| **n > 0).map(|(status, n)| format!("{n} {status}")).collect();
    let open = match counts.is_empty() {
        _ if !view.store.reachable => "not known".to_owned(),
        true => "nothing".to_owned(),
        false => counts.join(", "),
    };
    text.push_str(&format!("open: {open}\n"));
    for warning in &view.warnings {
        text.push_str(&format!("{}: {warning}\n", style.warning("warning")));
    }
    for line in &view.questions {
        text.push_str(&render_question(line, now, style));
    }
    if !view.open.is_empty() {
        text.push('\n');
        let rows = view.open.iter().map(|line| row(line, now)).collect();
        text.push_str(&table(style, &["ID", "STATUS", "FOR", "NOW"], rows));
    }
    if view.truncated {
        text.push_str("\nthere are more: `turnaround workflows`\n");
    }
    text
}

fn render_alarm(alarm: &AlarmView, now: Timestamp, style: Style) -> String {
    let AlarmView { code, since, text, detail, remedy, page } = alarm;
    format!("{} {code} ({}): {text}\n  seen: {detail}\n  do: {remedy}\n  more: {page}\n", style.bad("ALARM"), ago(*since, now))
}

/// What is missing from a halted store, and what that means.
pub(super) fn render_halt(halt: &HaltView, now: Timestamp, style: Style) -> String {
    let HaltView { since, noticed_by, loss: _, expected, found, means } = halt;
    format!(
        "{} since {since} ({}), noticed by {noticed_by}: nothing is begun and nothing is taken\n  expected: {expected}\n  there is: {found}\n  it means: {means}\n  \
         if what is right can be put back, put it back, and this is over; if not: look at the nodes, then `turnaround store accept`\n",
        style.bad("HALTED"),
        ago(*since, now)
    )
}

fn render_budget(budget: &BudgetView) -> String {
    let members: Vec<String> = budget
        .members
        .iter()
        .map(|member| if member.left_out { format!("{} (left out)", member.member) } else { member.member.clone() })
        .collect();
    let named = if members.is_empty() { String::new() } else { format!(": {}", members.join(", ")) };
    format!("{}: {} of at most {}{named}\n", budget.name, members.len(), budget.limit)
}

fn render_question(line: &WorkflowLine, now: Timestamp, style: Style) -> String {
    let text = line.why_not_now.as_ref().map_or(line.headline.as_str(), |why| why.text.as_str());
    let since = line.why_not_now.as_ref().map(|why| format!(" ({})", ago(why.since, now))).unwrap_or_default();
    format!("\n{} {}{since}\n  {text}\n  turnaround show {}\n", style.bad("NEEDS YOU"), line.target, line.id)
}

fn row(line: &WorkflowLine, now: Timestamp) -> Vec<String> {
    let doing = match (&line.worker, &line.why_not_now) {
        (Some(worker), _) => format!("{} [{worker}]", line.headline),
        (None, Some(why)) => {
            let next = why.next.filter(|next| next.0 > now).map(|next| format!(", {}", ago(next, now))).unwrap_or_default();
            format!("{}{next}", why.text)
        }
        (None, None) => line.headline.clone(),
    };
    let since = line.why_not_now.as_ref().map_or(line.updated, |why| why.since);
    vec![line.id.to_string(), line.status.as_str().to_owned(), age(since, now), doing]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::out::COLUMNS;

    fn view() -> StatusView {
        serde_json::from_value(serde_json::json!({
            "version": "0.1.0", "site": "example-cloud",
            "now": "2026-11-22T03:05:00.000Z", "started": "2026-11-22T01:00:00.000Z",
            "you": { "user": "ada", "may_change": true },
            "store": { "reachable": true, "description": "Redis 7.0.15, AOF always, noeviction", "weaknesses": [] },
            "counts": { "needs-operator": 1, "waiting": 2, "runnable": 0 },
            "budgets": [{ "name": "nodes-out", "limit": 2, "members": [
                { "member": "gpu-01", "holder": "node-os-rollout-a.gpu-01", "left_out": false },
                { "member": "gpu-07", "holder": "node-os-rollout-x.gpu-07", "left_out": true },
            ]}],
            "questions": [{
                "id": "node-os-rollout-a.gpu-01", "kind": "node-os", "target": "gpu-01", "parent": "node-os-rollout-a",
                "status": "needs-operator", "headline": "evacuate: 1 instance can't move",
                "created": "2026-11-22T02:00:00.000Z", "updated": "2026-11-22T03:00:00.000Z", "due": null, "worker": null,
                "why_not_now": { "code": "question", "since": "2026-11-22T03:00:00.000Z", "next": null,
                    "text": "1 instance can't leave gpu-01: what now?", "unblock": "turnaround answer .." },
            }],
            "open": [{
                "id": "node-os-rollout-a.gpu-02", "kind": "node-os", "target": "gpu-02", "parent": "node-os-rollout-a",
                "status": "waiting", "headline": "await-install: installing", "created": "2026-11-22T02:00:00.000Z",
                "updated": "2026-11-22T03:04:55.000Z", "due": "2026-11-22T03:05:10.000Z", "worker": null,
                "why_not_now": { "code": "time", "since": "2026-11-22T02:50:00.000Z", "next": "2026-11-22T03:05:10.000Z",
                    "text": "await-install: installing", "unblock": "it looks again by itself" },
            }, {
                "id": "node-os-rollout-a", "kind": "node-os-rollout", "target": "12 nodes", "parent": null,
                "status": "waiting", "headline": "renew-nodes: 3 of 12 nodes ended", "created": "2026-11-22T02:00:00.000Z",
                "updated": "2026-11-22T03:00:00.000Z", "due": null, "worker": "bastion/4711",
                "why_not_now": null,
            }],
            "truncated": false,
            "warnings": ["left out of service by a workflow that has ended: gpu-07"],
        }))
        .unwrap()
    }

    #[test]
    fn status_says_first_how_it_stands_then_what_needs_you_then_what_goes_on() {
        let plain = Style { json: false, terminal: false, colour: false };
        assert_eq!(
            render(&view(), plain),
            "\
example-cloud: turnaround 0.1.0, up 2h 05m; you are ada (operator)
store: Redis 7.0.15, AOF always, noeviction
nodes-out: 2 of at most 2: gpu-01, gpu-07 (left out)
open: 1 needs-operator, 2 waiting
warning: left out of service by a workflow that has ended: gpu-07

NEEDS YOU gpu-01 (5m 00s ago)
  1 instance can't leave gpu-01: what now?
  turnaround show node-os-rollout-a.gpu-01

ID                        STATUS   FOR      NOW
node-os-rollout-a.gpu-02  waiting  15m 00s  await-install: installing, in 10s
node-os-rollout-a         waiting  5m 00s   renew-nodes: 3 of 12 nodes ended [bastion/4711]
"
        );
    }

    #[test]
    fn on_a_terminal_no_line_is_wider_than_100_columns() {
        let mut view = view();
        view.open[0].why_not_now.as_mut().unwrap().text = "a long story ".repeat(30);
        let terminal = Style { json: false, terminal: true, colour: false };
        let text = render(&view, terminal);
        assert!(text.lines().skip_while(|line| !line.starts_with("ID")).all(|line| line.chars().count() <= COLUMNS.into()), "{text}");
    }
}
