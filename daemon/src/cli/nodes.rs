//! `turnaround nodes`: what each node runs, and what is being done to it.

use turnaround_workflows::clock::{Clock as _, SystemClock, Timestamp};

use super::client::{Client, read};
use super::duration::{ago, moment};
use super::error::CliError;
use super::out::{Style, print, print_json, say};
use super::table::table;
use crate::exit::Exit;
use crate::wire::{NodeView, NodesView};

pub(super) async fn run(client: &Client, style: &Style) -> Result<Exit, CliError> {
    let answer = client.get("/v1/nodes").await?;
    if style.json {
        print_json(&answer)?;
        return Ok(Exit::Good);
    }
    let view: NodesView = read(answer)?;
    print(&render(&view, *style))?;
    say(&source(&view, SystemClock.now()));
    Ok(Exit::Good)
}

/// How old what is shown of the nodes is; and why it is no newer, where somebody has tried.
pub(super) fn source(view: &NodesView, now: Timestamp) -> String {
    let known = match view.surveyed {
        Some(at) => format!("what nodes run is from the survey of {} ({}); `turnaround survey` looks anew", moment(at), ago(at, now)),
        None => "what nodes run is not known: `turnaround survey` looks".to_owned(),
    };
    let Some(newer) = &view.newer_survey else { return known };
    let says = newer.why_not_now.as_ref().map_or(&newer.headline, |why| &why.text);
    let says = if says.is_empty() { String::new() } else { format!(": {says}") };
    format!("{known}\n  the newest one, {}, {} {}{says}", newer.id, newer.status.as_str(), ago(newer.updated, now))
}

pub(super) fn render(view: &NodesView, style: Style) -> String {
    let rows = view.nodes.iter().map(row).collect();
    table(style, &["NODE", "IN NOVA", "INSTANCES", "IMAGE", "BEING DONE"], rows)
}

fn row(node: &NodeView) -> Vec<String> {
    let survey = node.survey.as_ref();
    let digest = survey.and_then(|survey| survey.image_sha256.as_deref()).map(|digest| digest.chars().take(12).collect());
    let image = node.image.as_ref().map(ToString::to_string).or(digest);
    let done = match (&node.renewing, &node.out, &node.renewed) {
        (Some(line), _, _) => format!("{}: {}", line.status.as_str(), line.headline),
        (None, Some(out), _) if out.left_out => format!("LEFT OUT of service by {}", out.holder),
        (None, Some(out), _) => format!("out of service for {}", out.holder),
        (None, None, Some(line)) => format!("renewal {} {}", line.status.as_str(), moment(line.updated)),
        (None, None, None) => String::new(),
    };
    let planned = node.planned.as_ref().map(|rollout| format!("its turn in {rollout} is to come"));
    let done = [planned, Some(done).filter(|done| !done.is_empty())].into_iter().flatten().collect::<Vec<_>>().join("; ");
    let unknown = || "?".to_owned();
    vec![
        node.name.to_string(),
        survey.map_or_else(unknown, |survey| service(&survey.service)),
        survey.and_then(|survey| survey.instances).map_or_else(unknown, |count| count.to_string()),
        image.unwrap_or_else(unknown),
        done,
    ]
}

/// What a note of ours in Nova begins with.
const OUR_NOTE: &str = "disabled: turnaround:";
/// Longest state in a table. The whole of it is in `--json` and in Nova.
const SERVICE_CHARS_MAX: usize = 48;

/// The state of a node's service in Nova, short: a note of ours repeats what other columns say.
pub(super) fn service(service: &str) -> String {
    if service.starts_with(OUR_NOTE) {
        let down = if service.ends_with(", down") { ", down" } else { "" };
        return format!("disabled by us{down}");
    }
    match service.char_indices().nth(SERVICE_CHARS_MAX) {
        Some((end, _)) => format!("{}..", &service[..end]),
        None => service.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_says_how_old_it_is_and_why_it_is_no_newer() {
        let now = chrono::DateTime::parse_from_rfc3339("2026-11-22T12:00:00Z").unwrap().to_utc().into();
        let failed = serde_json::json!({
            "id": "survey-b", "kind": "survey", "target": "site", "parent": null, "status": "failed",
            "headline": "survey-site can't succeed: Nova says nothing of any node: could not ask Keystone: not permitted: wrong password",
            "created": "2026-11-22T11:50:00.000Z", "updated": "2026-11-22T11:50:01.000Z", "due": null, "worker": null, "why_not_now": null,
        });
        let mut view: NodesView = serde_json::from_value(serde_json::json!({ "nodes": [], "surveyed": "2026-11-20T12:00:00.000Z", "newer_survey": failed })).unwrap();
        assert_eq!(
            source(&view, now),
            "\
what nodes run is from the survey of 2026-11-20T12:00:00Z (2d 0h ago); `turnaround survey` looks anew
  the newest one, survey-b, failed 9m 59s ago: survey-site can't succeed: Nova says nothing of any node: could not ask Keystone: not permitted: wrong password"
        );
        view.newer_survey = None;
        assert_eq!(source(&view, now), "what nodes run is from the survey of 2026-11-20T12:00:00Z (2d 0h ago); `turnaround survey` looks anew");
        view.surveyed = None;
        assert_eq!(source(&view, now), "what nodes run is not known: `turnaround survey` looks");
    }

    #[test]
    fn a_note_of_ours_is_told_from_somebody_elses() {
        assert_eq!(service("disabled: turnaround:node-os-rollout-a.gpu-01:found-enabled: node OS update, down"), "disabled by us, down");
        assert_eq!(service("disabled: disk sdb smells, ask Ada"), "disabled: disk sdb smells, ask Ada");
        assert_eq!(service(&format!("disabled: {}", "x".repeat(100))).len(), SERVICE_CHARS_MAX + 2);
    }
}
