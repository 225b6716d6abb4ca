//! The survey: what every node runs, and what Nova says of it. Changes nothing.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::{SURVEY, SurveyOrder};
use crate::clock::Timestamp;
use crate::engine::{Definition, Observed, Progress, Step, StepCx, StepError, step};
use crate::ports::{PortError, PortErrorKind, Ports};
use crate::store::Queue;
use crate::steps::queues;

pub(super) const VERSION: u32 = 1;
/// Nodes that are asked at the same time: a site of 1,000 nodes takes about a minute, and Nova hardly notices.
const NODES_AT_ONCE: usize = 16;

pub(super) fn definition() -> Definition {
    Definition { kind: SURVEY, version: VERSION, steps: vec![step(SurveySite)] }
}

/// What was seen of one node. Where something could not be had, the reason stands in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSurvey {
    pub node: NodeName,
    /// `enabled`, `disabled: <reason>`, with `, down` where it does not report; or why it is not known.
    pub service: String,
    pub instances: Option<u32>,
    pub os_version_id: Option<String>,
    pub kernel: Option<String>,
    /// SHA-256 of the image that it was installed from.
    pub image_sha256: Option<String>,
    /// What could not be read, and why.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SurveyReport {
    pub at: Timestamp,
    pub nodes: Vec<NodeSurvey>,
}

/// A survey fails once Nova has been silent for so long: a restart of its API is shorter. Before the step has failed eight times in a row, too, after which an
/// operator would be asked, who waits for no survey.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Asks Nova about every node, and every node about itself.
pub(super) struct SurveySite;

#[async_trait]
impl Step for SurveySite {
    const NAME: &'static str = "survey-site";
    const QUEUE: Queue = queues::SURVEY;
    type Output = SurveyReport;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<SurveyReport>, StepError> {
        let order: SurveyOrder = cx.input()?;
        let asked = order.nodes.into_iter().map(|node| look_at(cx.ports, node));
        let (nodes, silent): (Vec<_>, Vec<Option<Silence>>) = futures::stream::iter(asked).buffered(NODES_AT_ONCE).unzip().await;
        // Where Nova says nothing of any node, it is the cloud that can't be asked: then what an earlier survey saw says more.
        let silent: Option<Vec<Silence>> = silent.into_iter().collect();
        if let Some(Silence { passes, why }) = silent.as_ref().and_then(|silent| silent.first()) {
            let what = format!("Nova says nothing of any node: {why}");
            // As it is by now: where nobody answers, one look at many nodes takes long.
            let now = cx.just_now().await;
            let is_new = cx.tried_since().is_some_and(|since| now.since(since) < SILENCE_MAX);
            return Err(if *passes && is_new { StepError::retry(what) } else { StepError::fatal(what) });
        }
        Ok(Observed::AlreadyDone(SurveyReport { at: cx.now(), nodes }))
    }

    async fn act(&self, _cx: &StepCx<'_>) -> Result<Progress<SurveyReport>, StepError> {
        Err(StepError::fatal("a survey only looks"))
    }
}

/// Nova says nothing of a node.
struct Silence {
    /// Perhaps only for now.
    passes: bool,
    why: String,
}

/// What is seen of `node`; and whether Nova says nothing of it. That it knows no such host is an answer.
async fn look_at(ports: &Ports, node: NodeName) -> (NodeSurvey, Option<Silence>) {
    let (service, instances, facts) =
        tokio::join!(ports.compute.service(&node), ports.instances.on(&node), ports.facts.facts(&node));
    let mut problems = Vec::new();
    let mut silent = None;
    let service = match service {
        Ok(service) => {
            let state = if service.enabled { "enabled".to_owned() } else { format!("disabled: {}", service.disabled_reason.unwrap_or_default()) };
            if service.up { state } else { format!("{state}, down") }
        }
        Err(error) => {
            let is_silent = error.kind != PortErrorKind::NotFound && instances.is_err();
            let passes = !matches!(error.kind, PortErrorKind::Denied { .. } | PortErrorKind::Refused { .. });
            let why = told(error);
            silent = is_silent.then(|| Silence { passes, why: why.clone() });
            problems.push(why);
            "unknown".to_owned()
        }
    };
    let instances = instances.map_err(|error| problems.push(told(error))).ok();
    let facts = facts.map_err(|error| problems.push(told(error))).ok();
    let seen = NodeSurvey {
        node,
        service,
        instances: instances.map(|instances| u32::try_from(instances.len()).unwrap_or(u32::MAX)),
        os_version_id: facts.as_ref().map(|facts| facts.os_version_id.clone()),
        kernel: facts.as_ref().map(|facts| facts.kernel.clone()),
        image_sha256: facts.and_then(|facts| facts.installed).map(|installed| installed.sha256),
        problems,
    };
    (seen, silent)
}

/// The error with its causes.
fn told(error: PortError) -> String {
    StepError::from(error).chain()
}
