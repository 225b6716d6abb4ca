//! What surveys and dry runs found, for people.

use serde::de::DeserializeOwned;
use turnaround_workflows::updates::{DryRunReport, NODE_OS_DRY_RUN, SURVEY, SurveyReport};

use super::duration::moment;
use super::nodes::service;
use super::out::Style;
use super::table::table;
use crate::wire::{When, WorkflowView};

/// The report of a finished survey or dry run; None of anything else.
pub(super) fn of(view: &WorkflowView, style: Style) -> Option<String> {
    match view.line.kind.as_str() {
        NODE_OS_DRY_RUN => Some(dry_run(&output(view)?, style)),
        SURVEY => Some(survey(&output(view)?, style)),
        _ => None,
    }
}

/// Did a finished dry run see what would stop the rollout?
pub(super) fn sees_problem(view: &WorkflowView) -> bool {
    let report = (view.line.kind == NODE_OS_DRY_RUN).then(|| output::<DryRunReport>(view)).flatten();
    report.is_some_and(|report| report.lines.iter().any(|line| line.problem))
}

fn output<T: DeserializeOwned>(view: &WorkflowView) -> Option<T> {
    serde_json::from_value(view.steps.last()?.output.clone()?).ok()
}

fn dry_run(report: &DryRunReport, style: Style) -> String {
    let rows = report.lines.iter().map(|line| {
        let would = if line.problem { format!("PROBLEM: {}", line.would) } else { line.would.clone() };
        vec![line.node.to_string(), line.step.clone(), would]
    });
    table(style, &["NODE", "STEP", "WOULD"], rows.collect())
}

fn survey(report: &SurveyReport, style: Style) -> String {
    let rows = report.nodes.iter().map(|node| {
        let unknown = || "?".to_owned();
        let os = match (&node.os_version_id, &node.kernel) {
            (Some(os), Some(kernel)) => format!("{os}, {kernel}"),
            _ => unknown(),
        };
        vec![
            node.node.to_string(),
            service(&node.service),
            node.instances.map_or_else(unknown, |count| count.to_string()),
            os,
            node.image_sha256.as_deref().map_or_else(unknown, |digest| digest.chars().take(12).collect()),
            node.problems.join("; "),
        ]
    });
    let seen = table(style, &["NODE", "IN NOVA", "INSTANCES", "OS, KERNEL", "IMAGE", "PROBLEMS"], rows.collect());
    format!("as seen at {}\n{seen}", moment(When(report.at)))
}
