//! Verifies that the node's hypervisor is back in Nova, with what it offered before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::shown::{ACCEPT, Accepted};
use super::{Close, DeployOpenStack, Reason, order, queues};
use crate::engine::{AnswerEffect, Observed, PastDeadline, Policy, Progress, Question, Step, StepCx, StepError};
use crate::ports::{PortError, PortErrorKind};
use crate::store::Queue;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedHypervisor {
    pub vcpus: u32,
    pub memory_mb: u64,
    /// What Placement has of it in all, by resource class; empty where that is not compared.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inventory: BTreeMap<String, u64>,
    /// By which id Nova knows it; None if Nova does not say. Older workflows don't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl VerifiedHypervisor {
    /// For people.
    pub(super) fn told(&self) -> String {
        let devices = self.inventory.iter().filter(|(class, _)| !SIZES.contains(&class.as_str()));
        let devices: String = devices.map(|(class, total)| format!(", {total} {class}")).collect();
        format!("{} vCPUs, {} MiB{devices}", self.vcpus, self.memory_mb)
    }
}

/// Resource classes that say again what the hypervisor says.
const SIZES: [&str; 4] = ["VCPU", "PCPU", "MEMORY_MB", "DISK_GB"];

/// Done when the compute service reports, the hypervisor offers at least the vCPUs and memory that it offered when the node was closed, Placement has at
/// least as much of everything (but for what another kernel takes of the memory, and for disks), and every network agent reports that did then. A node that came back short of a DIMM, or of a GPU that tenants ask Placement for, stays closed.
pub struct VerifyHypervisor;

/// What is missing, one phrase each, and why it is asked about.
#[derive(Default)]
struct Missing {
    phrases: Vec<String>,
    reasons: BTreeSet<Reason>,
}

impl Missing {
    fn add(&mut self, reason: Reason, phrases: impl IntoIterator<Item = String>) {
        for phrase in phrases {
            self.phrases.push(phrase);
            self.reasons.insert(reason);
        }
    }

    fn told(&self) -> String {
        self.phrases.join(", ")
    }
}

enum Seen {
    Back(VerifiedHypervisor),
    /// It is back, and Placement has less of it than before, an agent of its does not report, or nobody says: what is missing.
    Less(Missing),
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
    let closed = cx.output::<Close>()?;
    // Of one that was down, or that an operator had left closed, perhaps because an agent was silent, all have to report that Neutron knows.
    let all_agents = closed.as_ref().is_some_and(|closed| !closed.found.up || closed.was_left(cx.id));
    let (found, before, agents) = closed.map_or((None, None, None), |closed| (closed.hypervisor, closed.inventory, closed.agents));
    let (mut inventory, mut missing) = (BTreeMap::new(), Missing::default());
    if let Some(before) = &found
        && (hypervisor.vcpus < before.vcpus || is_short(before.memory_mb, hypervisor.memory_mb))
    {
        // (Fewer vCPUs may be meant, where the image switches hyper-threading off.)
        let offers = format!("it offers {} vCPUs and {} MiB, before it were {} and {}", hypervisor.vcpus, hypervisor.memory_mb, before.vcpus, before.memory_mb);
        missing.add(Reason::Inventory, [offers]);
    }
    if let Some(before) = &found
        && let (Some(before), Some(now)) = (&before.id, &hypervisor.id)
        && before != now
    {
        missing.add(Reason::Identity, [format!("to Nova it was {before}, and is {now} now (`compute_id`): what was recorded of it is not its own any more")]);
    }
    if let Some(before) = before {
        match cx.ports.compute.inventory(&node).await {
            Ok(now) => {
                missing.add(Reason::Inventory, less(&before, &now));
                inventory = now;
            }
            Err(error) if error.kind == PortErrorKind::NotFound => return Ok(Seen::NotYet("Placement has nothing of it yet".to_owned())),
            Err(error) => missing.add(Reason::NotTold, [untold(error)?]),
        }
    }
    if let Some(agents) = agents {
        match cx.ports.compute.agents(&node).await {
            Ok(now) => {
                let known: BTreeSet<&String> = if all_agents { agents.iter().chain(now.keys()).collect() } else { agents.iter().collect() };
                let silent = known.into_iter().filter(|agent| now.get(*agent) != Some(&true));
                missing.add(Reason::NetworkAgent, silent.map(|agent| format!("{agent} does not report")));
            }
            Err(error) => missing.add(Reason::NotTold, [untold(error)?]),
        }
    }
    if !missing.phrases.is_empty() && !Accepted::is(cx, &missing.told())? {
        return Ok(Seen::Less(missing));
    }
    Ok(Seen::Back(VerifiedHypervisor { vcpus: hypervisor.vcpus, memory_mb: hypervisor.memory_mb, inventory, id: hypervisor.id }))
}

/// What nobody tells, and won't later.
fn untold(error: PortError) -> Result<String, StepError> {
    match error.kind {
        PortErrorKind::Unavailable | PortErrorKind::OutcomeUnknown => Err(error.into()),
        PortErrorKind::NotFound | PortErrorKind::Refused { .. } | PortErrorKind::Denied { .. } | PortErrorKind::Garbled { .. } => Ok(StepError::from(error).chain()),
    }
}

/// What Placement has is reported by nova-compute once a minute; some of it only when drivers have settled. Agents report twice a minute. After so long that is a question.
const REPORTED_WITHIN: Duration = Duration::from_secs(10 * 60);

fn question_less(node: &NodeName, missing: &Missing) -> Question {
    let mut question = Question::new(format!("{node} is renewed, and not all that it had before is back in OpenStack: what now?")).seen(missing.told());
    question.reasons = missing.reasons.iter().map(ToString::to_string).collect();
    question
        .answer("retry", AnswerEffect::Retry, "looks again, and waits as long again, after you have mended it: the drivers and agents on the node, nova-compute's configuration")
        .answer(ACCEPT, AnswerEffect::Retry, format!("takes that as all that {node} must have, as where its configuration was changed on purpose"))
        .answer("leave", AnswerEffect::Leave, format!("ends here; {node} stays closed"))
}

/// Another kernel keeps some more memory for itself, or less: one part in so many is no DIMM.
// The smallest of a node's DIMMs is some 3 percent of it (32 of them in a large one). From one Ubuntu kernel to the next it is some tens of MiB.
const MEMORY_OF_A_KERNEL: u64 = 100;

/// Is so much memory less than there was?
fn is_short(before: u64, now: u64) -> bool {
    now < before - before / MEMORY_OF_A_KERNEL
}

/// What there is less of than before, one phrase each. Not of disk: on shared storage it is that of the whole pool, which changes as disks of it come and go. Nor of
/// encrypted guests: Nova says 2147483647 where it does not know the number, and may know it after an update.
fn less(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> Vec<String> {
    let now = |class: &str| now.get(class).copied().unwrap_or(0);
    let is_less = |class: &str, before: u64| match class {
        "DISK_GB" | "MEM_ENCRYPTION_CONTEXT" => false,
        "MEMORY_MB" => is_short(before, now(class)),
        _ => now(class) < before,
    };
    before.iter().filter(|(class, before)| is_less(class, **before)).map(|(class, before)| format!("{} of {before} {class}", now(class))).collect()
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
        let node = order(cx)?.node;
        Ok(match look(cx).await? {
            // In a dry run it has not been away.
            Seen::Back(verified) if cx.begun().is_none() => Observed::ToDo { would: format!("wait until {node} is back in Nova with what it offers now: {}", verified.told()) },
            Seen::Back(verified) => Observed::AlreadyDone(verified),
            Seen::Less(missing) => Observed::ToDo { would: format!("wait until all that {node} had before is back in OpenStack; now: {}", missing.told()) },
            Seen::NotYet(why) => Observed::ToDo { would: format!("wait until {node} is back in Nova; now: {why}") },
        })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<VerifiedHypervisor>, StepError> {
        let order = order(cx)?;
        let after = Duration::from_millis(order.rules.node_poll_ms);
        Accepted::<String>::keep(cx).await?;
        Ok(match look(cx).await? {
            Seen::Back(verified) => Progress::Done(verified),
            Seen::Less(missing) if cx.patient_since().is_some_and(|since| cx.now().since(since) >= REPORTED_WITHIN) => {
                Accepted::is_about_to_show(cx, missing.told(), "not all is back").await?;
                return Err(StepError::ask(question_less(&order.node, &missing)));
            }
            Seen::Less(missing) => Progress::LookAgain { after, note: format!("not all that it had before is back in OpenStack: {}", missing.told()) },
            Seen::NotYet(note) => Progress::LookAgain { after, note },
        })
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        let order = order(cx)?;
        let Seen::NotYet(why) = look(cx).await? else { return Ok(PastDeadline::Act) };
        let deployed = cx.output::<DeployOpenStack>()?.and_then(|deployed| deployed.run);
        let by_script = match deployed {
            Some(run) => format!("what puts OpenStack on it was run as {run}: its log is `turnaround show {} --log`", cx.id),
            None => "nothing was run that puts OpenStack on it: its image has to bring it".to_owned(),
        };
        let question = Question::new(format!("{} is renewed, and is not back in Nova as it was: what now?", order.node)).because(Reason::NotBackInNova, why).seen(by_script);
        let retry = "waits as long again, after you have mended it: look at nova-compute on the node, or run the setup script for it by hand";
        Ok(PastDeadline::Ask(
            question
                .answer("retry", AnswerEffect::Retry, retry)
                .answer("leave", AnswerEffect::Leave, format!("ends here; {} stays closed", order.node)),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{is_short, less};

    #[test]
    fn a_dimm_is_missed_and_what_another_kernel_takes_is_not() {
        assert!(!is_short(515_000, 515_000) && !is_short(515_000, 600_000));
        assert!(!is_short(515_000, 514_950));
        assert!(is_short(515_000, 515_000 - 16_384) && is_short(64_000, 62_000) && is_short(1, 0));
        assert!(!is_short(0, 0));
    }

    #[test]
    fn less_of_any_class_is_told_but_for_disks() {
        let of = |all: &[(&str, u64)]| all.iter().map(|(class, total)| ((*class).to_owned(), *total)).collect();
        let before = of(&[("VCPU", 64), ("MEMORY_MB", 515_000), ("VGPU", 16), ("DISK_GB", 9_000)]);
        assert!(less(&before, &before).is_empty());
        assert!(less(&before, &of(&[("VCPU", 128), ("MEMORY_MB", 514_950), ("VGPU", 16), ("DISK_GB", 8_000), ("PGPU", 1)])).is_empty());
        assert_eq!(less(&before, &of(&[("VCPU", 63), ("MEMORY_MB", 400_000)])), ["400000 of 515000 MEMORY_MB", "63 of 64 VCPU", "0 of 16 VGPU"]);
    }
}
