//! Puts OpenStack back on a node that was wiped, by the site's own setup script.
//!
//! Midokura's runbook ("Node OS re-provisioning") leaves this out, and its page on `platform-setup.sh` has it: `--tags openstack`
//! enables a new node, in 20 to 40 min.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::setup_run::{self, Course, Meant};
use super::{order, queues};
use crate::engine::{AnswerEffect, Observed, PastDeadline, Policy, Progress, Step, StepCx, StepError};
use crate::ports::{HostRecap, ScriptEnd};
use crate::store::Queue;
use crate::updates::Deploy;

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// The name of the run that succeeded, or that an operator has taken as good; None where there was nothing to run.
    pub run: Option<String>,
}

/// Done when a run for this node has ended with 0, and no line of its recap says otherwise of the node, or an operator knows better. Whether the node is back in
/// OpenStack is not believed: the next step looks.
pub struct DeployOpenStack;

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
    let ours = |host: &HostRecap| first_label(&host.host) == first_label(node.as_str());
    let mut complaints = setup_run::complaints(end, ours);
    // A recap without the node is that of a limit which has missed it.
    if !end.recap.is_empty() && !end.recap.iter().any(ours) {
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
        if let Some((run, end)) = setup_run::ended(cx).await?
            && complaints(&end, &order.node).is_empty()
        {
            return Ok(Observed::AlreadyDone(Deployed { run: Some(run) }));
        }
        Ok(Observed::ToDo { would: format!("run the setup script: {}", deploy.arguments_for(&order.node).join(" ")) })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Deployed>, StepError> {
        let order = order(cx)?;
        let Some(deploy) = &order.rules.deploy else { return Ok(Progress::Done(Deployed { run: None })) };
        if let Some(run) = setup_run::taken_as_good(cx)? {
            return Ok(Progress::Done(Deployed { run: Some(run) }));
        }
        match setup_run::follow(cx, Self::NAME, &deploy.arguments_for(&order.node), Some(&order.node)).await? {
            Course::Going { note } => Ok(Progress::LookAgain { after: Duration::from_millis(order.rules.node_poll_ms), note }),
            Course::Ended(meant, end) => {
                let complaints = complaints(&end, &order.node);
                if complaints.is_empty() {
                    return Ok(Progress::Done(Deployed { run: Some(meant.run.name) }));
                }
                ask(cx, &order.node, meant, complaints, &end.last_lines).await
            }
            Course::Lost(meant, last_lines) => ask(cx, &order.node, meant, vec![setup_run::LOST.to_owned()], &last_lines).await,
        }
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        setup_run::overdue(cx, self.policy(cx).deadline).await
    }
}

async fn ask(
    cx: &StepCx<'_>,
    node: &NodeName,
    meant: Meant,
    complaints: Vec<String>,
    last_lines: &[String],
) -> Result<Progress<Deployed>, StepError> {
    let text = format!("the setup script did not put OpenStack back on {node}: what now?");
    let mut question = setup_run::ask(cx, meant, text, complaints).await?;
    // Half done and not believed is one thing, done and not believed another: whoever answers wants to know.
    question = question.seen(match cx.ports.compute.service(node).await {
        Ok(service) if service.up => format!("nova-compute on {node} reports all the same"),
        Ok(_) => format!("nova-compute on {node} does not report"),
        Err(error) => error.to_string(),
    });
    for line in last_lines {
        question = question.seen(format!("| {line}"));
    }
    let question = question.answer("retry", AnswerEffect::Retry, "runs the script once more, from its beginning");
    let then = format!(
        "takes this run as good, and starts no other; {node} is given back only if nova-compute reports, its hypervisor offers what it did and your checks \
         come out well, and what else the script has left undone nobody sees"
    );
    let question = setup_run::or_go_on(question, then);
    Err(StepError::ask(question.answer("leave", AnswerEffect::Leave, format!("ends here; {node} stays closed"))))
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
