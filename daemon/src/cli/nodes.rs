//! `turnaround nodes`: what each node runs, and what is being done to it.

use super::client::{Client, read};
use super::duration::moment;
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
    match view.surveyed {
        Some(at) => say(&format!("what nodes run is from the survey of {}; `turnaround survey` looks anew", moment(at))),
        None => say("what nodes run is not known: `turnaround survey` looks"),
    }
    Ok(Exit::Good)
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
    fn a_note_of_ours_is_told_from_somebody_elses() {
        assert_eq!(service("disabled: turnaround:node-os-rollout-a.gpu-01:found-enabled: node OS update, down"), "disabled by us, down");
        assert_eq!(service("disabled: disk sdb smells, ask Ada"), "disabled: disk sdb smells, ask Ada");
        assert_eq!(service(&format!("disabled: {}", "x".repeat(100))).len(), SERVICE_CHARS_MAX + 2);
    }
}
