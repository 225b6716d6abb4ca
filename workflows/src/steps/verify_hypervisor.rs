//! Verifies that the node's hypervisor is back in Nova, with what it offered before.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Close, DeployOpenStack, order, queues};
use crate::engine::{AnswerEffect, Observed, Policy, Progress, Question, Step, StepCx, StepError};
use crate::ports::PortErrorKind;
use crate::store::Queue;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedHypervisor {
    pub vcpus: u32,
    pub memory_mb: u64,
}

/// Done when the compute service reports, and the hypervisor offers at least the vCPUs and memory that it offered when the node was
/// closed. A node that came back short of a DIMM stays closed.
pub struct VerifyHypervisor;

enum Seen {
    Back(VerifiedHypervisor),
    NotYet(String),
}

async fn look(cx: &StepCx<'_>) -> Result<Seen, StepError> {
    let node = order(cx)?.node;
    if !cx.ports.compute.service(&node).await?.up {
        return Ok(Seen::NotYet("nova-compute does not report yet".to_owned()));
    }
    let hypervisor = match cx.ports.compute.hypervisor(&node).await {
        Ok(hypervisor) => hypervisor,
        Err(error) if error.kind == PortErrorKind::NotFound => return Ok(Seen::NotYet("Nova has no hypervisor of it yet".to_owned())),
        Err(error) => return Err(error.into()),
    };
    if !hypervisor.up {
        return Ok(Seen::NotYet("its hypervisor is down".to_owned()));
    }
    let found = cx.output::<Close>()?.and_then(|closed| closed.hypervisor);
    if let Some(before) = found
        && (hypervisor.vcpus < before.vcpus || hypervisor.memory_mb < before.memory_mb)
    {
        return Ok(Seen::NotYet(format!(
            "offers {} vCPUs and {} MiB, before it were {} and {}",
            hypervisor.vcpus, hypervisor.memory_mb, before.vcpus, before.memory_mb
        )));
    }
    Ok(Seen::Back(VerifiedHypervisor { vcpus: hypervisor.vcpus, memory_mb: hypervisor.memory_mb }))
}

#[async_trait]
impl Step for VerifyHypervisor {
    const NAME: &'static str = "verify-hypervisor";
    const QUEUE: Queue = queues::OPENSTACK;
    type Output = VerifiedHypervisor;

    fn policy(&self, cx: &StepCx<'_>) -> Policy {
        let deadline = order(cx).map_or(Policy::default().deadline, |order| Duration::from_millis(order.rules.rejoin_deadline_ms));
        Policy { deadline, ..Policy::default() }
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<VerifiedHypervisor>, StepError> {
        Ok(match look(cx).await? {
            Seen::Back(verified) => Observed::AlreadyDone(verified),
            Seen::NotYet(why) => Observed::ToDo { would: format!("wait until {} is back in Nova; now: {why}", cx.target()) },
        })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<VerifiedHypervisor>, StepError> {
        let after = Duration::from_millis(order(cx)?.rules.node_poll_ms);
        Ok(match look(cx).await? {
            Seen::Back(verified) => Progress::Done(verified),
            Seen::NotYet(note) => Progress::LookAgain { after, note },
        })
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<Option<Question>, StepError> {
        let order = order(cx)?;
        let Seen::NotYet(why) = look(cx).await? else { return Ok(None) };
        let deployed = cx.output::<DeployOpenStack>()?.and_then(|deployed| deployed.run);
        let by_script = match deployed {
            Some(run) => format!("what puts OpenStack on it was run as {run}: its log is `turnaround show {} --log`", cx.id),
            None => "nothing was run that puts OpenStack on it: its image has to bring it".to_owned(),
        };
        let question = Question::new(format!("{} is renewed, and is not back in Nova as it was: what now?", order.node)).seen(why).seen(by_script);
        let retry = "waits as long again, after you have mended it: look at nova-compute on the node, or run the setup script for it by hand";
        Ok(Some(
            question
                .answer("retry", AnswerEffect::Retry, retry)
                .answer("leave", AnswerEffect::Leave, format!("ends here; {} stays closed", order.node)),
        ))
    }
}
