//! Verifies that the node runs the OS release and kernel that were ordered, under its own name.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::shown::{ACCEPT, Accepted};
use super::{Close, Reason, TakeStock, order, queues};
use crate::engine::{AnswerEffect, Observed, Progress, Question, Step, StepCx, StepError};
use crate::store::Queue;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedOs {
    pub os_version_id: String,
    pub kernel: String,
}

/// A wrong version is a question at once: waiting does not change it, and the disk is not written a second time unasked. So is a wrong name: under it
/// nova-compute would be another service, which Nova opens to everybody at once.
pub struct VerifyOs;

/// What the node says, and what of it is not as ordered, as `what: expected X, found Y`.
struct Seen {
    os: VerifiedOs,
    hostname: String,
    differences: Vec<(Reason, String)>,
    wrong_name: Option<(Reason, String)>,
}

impl Seen {
    fn all(&self) -> impl Iterator<Item = &(Reason, String)> {
        self.differences.iter().chain(&self.wrong_name)
    }
}

/// A name without its domain, which may come from anywhere (DHCP, the image, `/etc/hosts`).
fn label(name: &str) -> &str {
    name.split_once('.').map_or(name, |(label, _domain)| label)
}

async fn look(cx: &StepCx<'_>) -> Result<Seen, StepError> {
    let order = order(cx)?;
    let facts = cx.ports.facts.facts(&order.node).await?;
    let wanted = [
        (Reason::OsRelease, "OS release", &order.image.os_version_id, &facts.os_version_id),
        (Reason::Kernel, "kernel", &order.image.kernel, &facts.kernel),
    ];
    let differences = wanted
        .into_iter()
        .filter(|(_, _, wanted, found)| wanted != found)
        .map(|(reason, what, wanted, found)| (reason, format!("{what}: expected {wanted}, found {found}")))
        .collect();
    let os = VerifiedOs { os_version_id: facts.os_version_id, kernel: facts.kernel };
    let mut seen = Seen { os, hostname: facts.hostname, differences, wrong_name: None };
    // A dry run has ordered nothing: how the node is called now is how it is found.
    if cx.begun().is_some() {
        let is_accepted = Accepted::is(cx, &seen.hostname)?;
        // One that was left closed may have been left for its name.
        let was_left = cx.output::<Close>()?.is_some_and(|closed| closed.was_left(cx.id));
        let found = cx.output::<TakeStock>()?.and_then(|stock| stock.hostname).filter(|_| !was_left);
        // Where it could not be asked, it is called as Nova knows it, or as we do.
        let names = found.map_or_else(|| [order.node.to_string()].into_iter().chain(order.host).collect(), |found| vec![found]);
        if names.iter().all(|name| label(name) != label(&seen.hostname)) && !is_accepted {
            seen.wrong_name = Some((Reason::HostName, format!("host name: expected {}, found {}", names.join(" or "), seen.hostname)));
        }
    }
    Ok(seen)
}

#[async_trait]
impl Step for VerifyOs {
    const NAME: &'static str = "verify-os";
    const QUEUE: Queue = queues::NODES;
    type Output = VerifiedOs;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<VerifiedOs>, StepError> {
        let node = order(cx)?.node;
        let seen = look(cx).await?;
        let differences: Vec<&str> = seen.all().map(|(_, difference)| difference.as_str()).collect();
        if differences.is_empty() && cx.begun().is_none() {
            // What runs in a dry run is the system that is to be wiped.
            return Ok(Observed::ToDo { would: format!("check {node}'s OS; now: it runs what is ordered ({}, kernel {}), and is installed anew all the same", seen.os.os_version_id, seen.os.kernel) });
        }
        if differences.is_empty() {
            return Ok(Observed::AlreadyDone(seen.os));
        }
        Ok(Observed::ToDo { would: format!("check {node}'s OS; now: {}", differences.join(", ")) })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<VerifiedOs>, StepError> {
        let node = order(cx)?.node;
        Accepted::<String>::keep(cx).await?;
        let seen = look(cx).await?;
        if seen.all().next().is_none() {
            return Ok(Progress::Done(seen.os));
        }
        let mut question = Question::new(format!("{node} was installed, and does not run what was ordered: what now?"));
        for (reason, difference) in seen.all() {
            question = question.because(reason, difference.clone());
        }
        question = question.answer("retry", AnswerEffect::Retry, "looks again, after you have mended it");
        if seen.wrong_name.is_some() {
            let consequence = format!("goes on under the name {}, under which nova-compute may report to Nova, if all else is as ordered", seen.hostname);
            question = question.answer(ACCEPT, AnswerEffect::Retry, consequence);
            Accepted::is_about_to_show(cx, seen.hostname.clone(), "another host name").await?;
        }
        Err(StepError::ask(question.answer("leave", AnswerEffect::Leave, "ends here; the node stays closed")))
    }
}

#[cfg(test)]
mod tests {
    use super::label;

    #[test]
    fn a_name_is_compared_without_its_domain() {
        assert_eq!((label("gpu-03"), label("gpu-03.dc1.example")), ("gpu-03", "gpu-03"));
        assert_ne!(label("gpu-03-old.dc1"), label("gpu-03.dc1"));
    }
}
