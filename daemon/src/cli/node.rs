//! `turnaround node renew` and `turnaround node release`

use std::io::{BufRead as _, IsTerminal as _};

use clap::{Args, Subcommand};
use turnaround_config::{ImageName, NodeName};
use turnaround_workflows::clock::{Clock as _, SystemClock, Timestamp};
use turnaround_workflows::store::Status;
use turnaround_workflows::updates::NODES_OUT;

use super::client::{Client, fresh_key, read};
use super::duration::{ago, moment};
use super::error::CliError;
use super::nodes;
use super::out::{Style, print, print_json, result, say};
use super::wait::wait_for_end;
use super::{report, show};
use crate::exit::Exit;
use crate::wire::{NodeView, NodesView, ReleasedView, RolloutRequest, StartedView, WorkflowView};

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Renew the operating systems of nodes, as many at a time as the configuration allows
    Renew(Renew),
    /// Count a node that an ended workflow left out of service as in service again
    Release(Release),
}

#[derive(Args)]
pub(super) struct Renew {
    /// In this order
    #[arg(required = true)]
    nodes: Vec<NodeName>,
    /// An entry of [images] in the configuration
    #[arg(long, value_name = "NAME")]
    image: ImageName,
    /// Only look what would be done, and print it
    #[arg(long)]
    dry_run: bool,
    /// Stay until it has ended; exit code 1 unless every node was renewed
    #[arg(long)]
    wait: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Also nodes that are being renewed already: after that they are wiped, and renewed, once more
    #[arg(long)]
    again: bool,
    /// Give an order again whose answer was lost: under the same key it starts once at most
    #[arg(long)]
    key: Option<String>,
}

#[derive(Args)]
pub(super) struct Release {
    node: NodeName,
}

pub(super) async fn run(client: &Client, style: &Style, verb: Verb) -> Result<Exit, CliError> {
    match verb {
        Verb::Renew(arguments) => renew(client, style, arguments).await,
        Verb::Release(arguments) => release(client, style, arguments).await,
    }
}

async fn renew(client: &Client, style: &Style, arguments: Renew) -> Result<Exit, CliError> {
    let Renew { nodes, image, dry_run, wait, yes, again, key } = arguments;
    if !dry_run && !yes && !asked(client, style, &nodes, &image, again).await? {
        say("nothing was started");
        return Ok(Exit::Failed);
    }
    let key = key.unwrap_or_else(fresh_key);
    let started = client.post_once("/v1/rollouts", &RolloutRequest { nodes, image, dry_run, again }, &key).await?;
    let StartedView { id, .. } = read(started.clone())?;
    if !wait && !dry_run {
        if style.json {
            print_json(&started)?;
        } else {
            print(&format!("{id}\n"))?;
            say(&format!("started; watch it with: turnaround events --follow --workflow {id}"));
        }
        return Ok(Exit::Good);
    }
    finish(client, style, id.as_str()).await
}

/// Waits for the end of `id` and prints how it ended.
pub(super) async fn finish(client: &Client, style: &Style, id: &str) -> Result<Exit, CliError> {
    say(&format!("started {id}; Ctrl-C ends only this watching"));
    let ended = wait_for_end(client, style, id).await?;
    let view: WorkflowView = read(ended.clone())?;
    let good = view.line.status == Status::Succeeded && !report::sees_problem(&view);
    let printed = if style.json {
        print_json(&ended)
    } else {
        let now = view.line.updated.0;
        print(&report::of(&view, *style).unwrap_or_else(|| show::render(&view, now, *style)))
    };
    result(printed, if good { Exit::Good } else { Exit::Failed })
}

/// Shows what would be renewed, and asks. Only on a terminal: a script that forgot `--yes` is told so.
async fn asked(client: &Client, style: &Style, nodes: &[NodeName], image: &ImageName, again: bool) -> Result<bool, CliError> {
    let view: NodesView = read(client.get("/v1/nodes").await?)?;
    let known = nodes::source(&view, SystemClock.now());
    let chosen: Vec<_> = view.nodes.into_iter().filter(|node| nodes.contains(&node.name)).collect();
    if let Some(unknown) = nodes.iter().find(|node| !chosen.iter().any(|known| known.name == **node)) {
        let remedy = "`turnaround nodes` lists the nodes of the configuration".to_owned();
        return Err(CliError::NoNode { what: format!("there is no node `{unknown}`"), remedy });
    }
    let which = if nodes.len() == 1 { "this node" } else { "each of these nodes" };
    say(&format!("would empty {which}, install {image} on it, and give it back:"));
    let chosen = NodesView { nodes: chosen, surveyed: view.surveyed, newer_survey: view.newer_survey };
    say(nodes::render(&chosen, *style).trim_end());
    say(&known);
    if again {
        chosen.nodes.iter().filter_map(once_more).for_each(|line| say(&format!("{} {line}", style.bad("ONCE MORE:"))));
    }
    say("what each step would do: the same command with --dry-run");
    if !std::io::stdin().is_terminal() {
        let what = "nobody can be asked here: stdin is not a terminal".to_owned();
        return Err(CliError::Usage { what, remedy: "add --yes if you mean it".to_owned() });
    }
    eprint!("renew {which}? Type yes: ");
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| CliError::Local { what: "could not read the answer".to_owned(), source: error.into() })?;
    Ok(line.trim().eq_ignore_ascii_case("yes"))
}

/// What was done, or is, to a node that would be wiped once more; None if nothing of that is kept.
fn once_more(node: &NodeView) -> Option<String> {
    let name = &node.name;
    match (&node.renewing, &node.planned, &node.renewed) {
        (Some(line), _, _) => Some(format!("{name} is being renewed by {} ({}); after that, this wipes it again", line.id, line.status.as_str())),
        (None, Some(rollout), _) => Some(format!("{name} will be renewed by {rollout}, which has not come to it yet; after that, this wipes it again")),
        (None, None, Some(line)) => {
            // One that failed may never have come so far.
            let again = if line.status == Status::Succeeded { " again" } else { "" };
            Some(format!("the last renewal of {name}, {}, {} at {}; this wipes it{again}", line.id, line.status.as_str(), moment(line.updated)))
        }
        (None, None, None) => None,
    }
}

async fn release(client: &Client, style: &Style, arguments: Release) -> Result<Exit, CliError> {
    let Release { node } = arguments;
    let (answer, tries) = client.post_counted(&format!("/v1/nodes/{node}/release"), &serde_json::json!({}), &fresh_key()).await;
    let answer = match answer {
        // Its share is given back once, and an earlier try may have done that.
        Err(CliError::Problem(problem)) if tries > 1 && problem.kind.ends_with(":not-left-out") => {
            if holds_a_share(client, &node).await? {
                return Err(CliError::Problem(problem));
            }
            return free_already(style, &node);
        }
        answer => answer?,
    };
    if style.json {
        print_json(&answer)?;
    } else {
        let released: ReleasedView = read(answer)?;
        say(&format!("{} counts as in service again", released.node));
        say(&in_nova(&released, SystemClock.now()));
    }
    Ok(Exit::Good)
}

/// Does anybody hold a share of the budget for `node`? An open workflow's is not given back by whoever asks for that.
async fn holds_a_share(client: &Client, node: &NodeName) -> Result<bool, CliError> {
    let view: NodesView = read(client.get("/v1/nodes").await?)?;
    Ok(view.nodes.iter().any(|known| known.name == *node && known.out.is_some()))
}

/// The answer that told what was known of the node is lost, so only what is certain is said.
fn free_already(style: &Style, node: &NodeName) -> Result<Exit, CliError> {
    say(&format!(
        "{node} counts as in service: its share is free. The answer to an earlier try was lost, so it is not known whether this command freed it\n  \
         nothing is placed on it as long as it is disabled in Nova: `turnaround survey` looks"
    ));
    if style.json {
        print_json(&serde_json::json!({ "node": node, "budget": NODES_OUT }))?;
    }
    Ok(Exit::Good)
}

/// What is known of the node in Nova, which releasing it changes nothing of, and what to do.
fn in_nova(released: &ReleasedView, now: Timestamp) -> String {
    let host = released.nova_host.as_deref().unwrap_or(released.node.as_str());
    let seen = match (released.surveyed, &released.survey) {
        (Some(at), Some(survey)) if released.left.is_none_or(|left| left.0 <= at.0) => {
            let seen = format!("in Nova it was, when a survey looked at {} ({}): {}", moment(at), ago(at, now), survey.service);
            if survey.service.starts_with("enabled") {
                return seen;
            }
            seen
        }
        (Some(at), None) => format!("what Nova says of it is not known: the newest survey, at {} ({}), did not look at it", moment(at), ago(at, now)),
        (Some(at), Some(_)) => {
            format!("what Nova says of it by now is not known: the newest survey, at {} ({}), looked before it was left out", moment(at), ago(at, now))
        }
        (None, _) => "what Nova says of it is not known: no survey has looked at it".to_owned(),
    };
    format!(
        "{seen}\n  nothing is placed on it as long as it is disabled there: `turnaround survey` looks, \
         `openstack compute service set --enable {host} nova-compute` enables it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_releases_a_node_is_told_how_it_is_in_nova_as_far_as_that_is_known() {
        let day = |hour: u32| format!("2026-11-22T{hour:02}:00:00.000Z");
        let now = chrono::DateTime::parse_from_rfc3339(&day(12)).unwrap().to_utc().into();
        let told = |left: u32, surveyed: u32, service: &str| {
            let survey = serde_json::json!({ "node": "gpu-01", "service": service, "instances": 0, "os_version_id": null, "kernel": null,
                "image_sha256": null, "problems": [] });
            let view = serde_json::json!({ "node": "gpu-01", "budget": "nodes-out", "nova_host": "gpu-01.example", "left": day(left),
                "surveyed": day(surveyed), "survey": survey });
            in_nova(&serde_json::from_value(view).unwrap(), now)
        };
        let enable = "\n  nothing is placed on it as long as it is disabled there: `turnaround survey` looks, \
                      `openstack compute service set --enable gpu-01.example nova-compute` enables it";
        assert_eq!(told(8, 9, "disabled: ask Ada, down"), format!("in Nova it was, when a survey looked at 2026-11-22T09:00:00Z (3h 00m ago): disabled: ask Ada, down{enable}"));
        assert_eq!(told(8, 9, "enabled"), "in Nova it was, when a survey looked at 2026-11-22T09:00:00Z (3h 00m ago): enabled");
        // It may have been open then, before its renewal closed it.
        assert_eq!(
            told(10, 9, "enabled"),
            format!("what Nova says of it by now is not known: the newest survey, at 2026-11-22T09:00:00Z (3h 00m ago), looked before it was left out{enable}")
        );
        let bare = serde_json::from_value(serde_json::json!({ "node": "gpu-01", "budget": "nodes-out" })).unwrap();
        assert_eq!(in_nova(&bare, now), format!("what Nova says of it is not known: no survey has looked at it{}", enable.replace(".example", "")));
    }
}
