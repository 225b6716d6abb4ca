//! Puts OpenStack back on a node that was wiped, by the site's own setup script.
//!
//! Midokura's runbook ("Node OS re-provisioning") leaves this out, and its page on `platform-setup.sh` has it: `--tags openstack`
//! enables a new node, in 20 to 40 min. The script is never killed: Kolla-Ansible that is interrupted leaves half of what it does.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::{order, queues};
use crate::clock::Timestamp;
use crate::engine::{AnswerEffect, Observed, Policy, Progress, Question, Step, StepCx, StepError};
use crate::ports::{HostRecap, ScriptEnd, ScriptRun, ScriptState};
use crate::store::Queue;
use crate::updates::Deploy;

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// The name of the run that succeeded; None where there was nothing to run.
    pub run: Option<String>,
}

/// Done when a run for this node has ended with 0, and no line of its recap says otherwise of the node. Whether the node is back in
/// OpenStack is not believed: the next step looks.
pub struct DeployOpenStack;

/// A run that is meant to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Meant {
    run: ScriptRun,
    /// The host on which it is.
    place: String,
    /// When the operator was asked what to do after it.
    asked: Option<Timestamp>,
}

impl Deploy {
    fn arguments_for(&self, node: &NodeName) -> Vec<String> {
        self.arguments.iter().map(|argument| argument.replace("{node}", node.as_str())).collect()
    }
}

/// An inventory may call hosts by their full names.
fn first_label(host: &str) -> &str {
    host.split('.').next().unwrap_or(host)
}

/// What speaks against believing a run that has ended, one line each.
fn complaints(end: &ScriptEnd, node: &NodeName) -> Vec<String> {
    let mut complaints = Vec::new();
    if end.code != 0 {
        complaints.push(format!("it ended with {}", end.code));
    }
    let ours = || end.recap.iter().filter(|host| first_label(&host.host) == first_label(node.as_str()));
    let bad = ours().filter(|host| host.failed > 0 || host.unreachable > 0);
    complaints.extend(bad.map(|HostRecap { host, failed, unreachable, .. }| {
        format!("Ansible says of {host}: {failed} failed, {unreachable} unreachable")
    }));
    // A recap without the node is that of a limit which has missed it.
    if !end.recap.is_empty() && ours().next().is_none() {
        complaints.push(format!("Ansible's recap does not have {node}"));
    }
    complaints
}

#[async_trait]
impl Step for DeployOpenStack {
    const NAME: &'static str = "deploy-openstack";
    const QUEUE: Queue = queues::BASTION;
    type Output = Deployed;

    fn policy(&self, cx: &StepCx<'_>) -> Policy {
        let wanted = order(cx).ok().and_then(|order| order.rules.deploy);
        let deadline = wanted.map_or(Policy::default().deadline, |deploy| Duration::from_millis(deploy.deadline_ms));
        Policy { deadline, ..Policy::default() }
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Deployed>, StepError> {
        let order = order(cx)?;
        let Some(deploy) = &order.rules.deploy else { return Ok(Observed::AlreadyDone(Deployed { run: None })) };
        if let Some(Meant { run, .. }) = cx.checkpoint()?
            && let ScriptState::Ended(end) = cx.ports.setup.look(&run.name).await?
            && complaints(&end, &order.node).is_empty()
        {
            return Ok(Observed::AlreadyDone(Deployed { run: Some(run.name) }));
        }
        Ok(Observed::ToDo { would: format!("run the setup script: {}", deploy.arguments_for(&order.node).join(" ")) })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Deployed>, StepError> {
        let order = order(cx)?;
        let Some(deploy) = &order.rules.deploy else { return Ok(Progress::Done(Deployed { run: None })) };
        let after = Duration::from_millis(order.rules.node_poll_ms);
        let known: Option<Meant> = cx.checkpoint()?;
        // The operator wants another run: only after one that has ended, and was asked about.
        let again = known.as_ref().and_then(|meant| meant.asked).is_some_and(|asked| cx.tried_since().is_some_and(|since| since > asked));
        let Some(mut meant) = known.filter(|_| !again) else {
            // Of this workflow, this step, and this holder of the workflow: no other run will ever have this name.
            let name = format!("{}.{}.{}", cx.id, Self::NAME, cx.fence().0);
            let run = ScriptRun { name, arguments: deploy.arguments_for(&order.node) };
            let meant = Meant { run, place: cx.ports.setup.place(), asked: None };
            cx.save(&meant, "about to run the setup script").await?;
            return start(cx, &meant.run, after).await;
        };
        let place = cx.ports.setup.place();
        if meant.place != place {
            let (run, there) = (&meant.run.name, &meant.place);
            return Err(StepError::retry(format!("run {run} is on host {there}, and this worker on {place}: let only {there} serve queue bastion")));
        }
        match cx.ports.setup.look(&meant.run.name).await? {
            // Its worker may have died before it came to start it; another run goes on; or it is about to begin, and this starts nothing.
            ScriptState::NotStarted => start(cx, &meant.run, after).await,
            ScriptState::Running { last_line } => Ok(Progress::LookAgain { after, note: note(&last_line) }),
            ScriptState::Ended(end) => {
                let complaints = complaints(&end, &order.node);
                if complaints.is_empty() {
                    return Ok(Progress::Done(Deployed { run: Some(meant.run.name) }));
                }
                ask(cx, &order.node, &mut meant, complaints, &end.last_lines).await
            }
            ScriptState::Lost { last_lines } => {
                let complaint = "it was killed, or its host went down: how far it came is not known".to_owned();
                ask(cx, &order.node, &mut meant, vec![complaint], &last_lines).await
            }
        }
    }
}

/// Starts it, if nobody has.
async fn start(cx: &StepCx<'_>, run: &ScriptRun, after: Duration) -> Result<Progress<Deployed>, StepError> {
    cx.guard().await?;
    cx.ports.setup.start(run).await?;
    Ok(Progress::LookAgain { after, note: format!("the setup script is started as {} as soon as no other run goes on", run.name) })
}

fn note(last_line: &str) -> String {
    match last_line {
        "" => "the setup script runs".to_owned(),
        line => format!("the setup script runs: {line}"),
    }
}

async fn ask(
    cx: &StepCx<'_>,
    node: &NodeName,
    meant: &mut Meant,
    complaints: Vec<String>,
    last_lines: &[String],
) -> Result<Progress<Deployed>, StepError> {
    meant.asked = Some(cx.now());
    cx.save(meant, "the setup script did not do what it should").await?;
    let mut question = Question::new(format!("the setup script did not put OpenStack back on {node}: what now?"));
    for complaint in complaints {
        question = question.seen(complaint);
    }
    // Half done and not believed is one thing, done and not believed another: whoever answers wants to know.
    question = question.seen(match cx.ports.compute.service(node).await {
        Ok(service) if service.up => format!("nova-compute on {node} reports all the same"),
        Ok(_) => format!("nova-compute on {node} does not report"),
        Err(error) => error.to_string(),
    });
    for line in last_lines {
        question = question.seen(format!("| {line}"));
    }
    Err(StepError::ask(
        question
            .answer("retry", AnswerEffect::Retry, "runs the script once more, from its beginning")
            .answer("leave", AnswerEffect::Leave, format!("ends here; {node} stays closed")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, failed: u32, unreachable: u32) -> HostRecap {
        HostRecap { host: name.to_owned(), ok: 3, changed: 1, unreachable, failed }
    }

    fn against(code: i32, recap: Vec<HostRecap>) -> Vec<String> {
        complaints(&ScriptEnd { code, recap, last_lines: Vec::new() }, &"gpu-01".parse().unwrap())
    }

    #[test]
    fn a_run_is_believed_only_if_nothing_speaks_against_it() {
        assert_eq!(against(0, Vec::new()), [] as [&str; 0]);
        assert_eq!(against(0, vec![host("gpu-01", 0, 0), host("localhost", 0, 0)]), [] as [&str; 0]);
        assert_eq!(against(2, vec![host("gpu-01", 0, 0)]), ["it ended with 2"]);
        assert_eq!(against(0, vec![host("gpu-01", 1, 0)]), ["Ansible says of gpu-01: 1 failed, 0 unreachable"]);
        assert_eq!(against(0, vec![host("gpu-01", 0, 1)]), ["Ansible says of gpu-01: 0 failed, 1 unreachable"]);
        assert_eq!(against(0, vec![host("gpu-01.example.net", 0, 0), host("gpu-02", 0, 1)]), [] as [&str; 0], "another node's trouble");
        assert_eq!(against(0, vec![host("gpu-02", 0, 0)]), ["Ansible's recap does not have gpu-01"]);
    }

    #[test]
    fn the_nodes_name_is_put_into_the_arguments() {
        let deploy = Deploy { arguments: vec!["--tags".to_owned(), "openstack".to_owned(), "--limit={node}".to_owned()], deadline_ms: 1 };
        assert_eq!(deploy.arguments_for(&"gpu-01".parse().unwrap()), ["--tags", "openstack", "--limit=gpu-01"]);
    }
}
