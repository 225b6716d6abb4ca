//! How long it took after each blow until what it struck went on.

use std::collections::BTreeMap;
use std::fmt;

use super::facts::{Claim, Facts};

/// Who was struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Struck {
    /// The worker that had the workflow in hand was killed.
    WorkerKilled,
    /// It was paused beyond its lease.
    WorkerPaused,
    /// Redis was killed while somebody had the workflow in hand.
    RedisKilled,
    /// All of them at once.
    HostKilled,
}

/// One sample: one workflow that was in hand when the blow fell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    pub struck: Struck,
    pub workflow: String,
    /// From the blow until a worker had the workflow in hand again (or was heard of by Redis again), in milliseconds. None: never.
    pub claimed_ms: Option<i64>,
    /// So many leases were granted meanwhile whose holders were killed before they could say so.
    pub unheard: u64,
    /// From the blow to the next commit of that workflow, in milliseconds.
    pub committed_ms: Option<i64>,
}

fn struck(kind: &str) -> Option<Struck> {
    match kind {
        "worker killed" => Some(Struck::WorkerKilled),
        "worker paused beyond its lease" => Some(Struck::WorkerPaused),
        "Redis killed" => Some(Struck::RedisKilled),
        "whole host killed" => Some(Struck::HostKilled),
        _ => None,
    }
}

/// A lease was given up before `at`: by a commit (also one whose answer is not known yet), or handed back, or refused.
pub(super) fn given_up(facts: &Facts, workflow: &str, fence: u64, at: i64) -> bool {
    let by_commit = facts.commits_of(workflow).any(|(commit, sent)| {
        let refused = sent.answers.iter().any(|(when, how)| how == "fenced" && *when <= at);
        commit.fence == fence && (refused || (!commit.keeps_the_lease() && sent.first <= at))
    });
    by_commit || facts.leases.iter().any(|(event, when, of, under)| event != "guard-refused" && of == workflow && *under == fence && *when <= at)
}

/// How many leases have expired before this one of which nobody has said that it had them, since the newest that was told of: the store counts
/// those that expire in a row without a commit. No more than workers were killed since `blow`: any other is lost, and late.
fn unheard(facts: &Facts, claim: &Claim, blow: i64) -> u64 {
    let Some(before) = facts.claims_of(&claim.workflow).iter().filter(|other| other.fence < claim.fence).max_by_key(|other| other.fence) else { return 0 };
    let committed = facts.commits_of(&claim.workflow).any(|(commit, sent)| commit.fence == before.fence && sent.done().is_some());
    let expected = if committed { 1 } else { before.tries + 1 };
    let kills = facts.faults.iter().filter(|fault| matches!(struck(&fault.kind), Some(Struck::WorkerKilled | Struck::HostKilled)));
    let kills = kills.filter(|fault| blow < fault.at && fault.at <= claim.at).count() as u64;
    claim.tries.saturating_sub(expected).min(kills)
}

pub(super) fn recoveries(facts: &Facts) -> Vec<Recovery> {
    let mut recoveries = Vec::new();
    for fault in &facts.faults {
        let Some(struck) = struck(&fault.kind) else { continue };
        // The newest lease of each workflow at that moment.
        let mut held: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for claim in facts.claims.iter().filter(|claim| claim.at <= fault.at) {
            held.insert(&claim.workflow, (claim.fence, claim.pid));
        }
        for (workflow, (fence, pid)) in held {
            let concerned = struck == Struck::RedisKilled || fault.pids.contains(&pid);
            if !concerned || given_up(facts, workflow, fence, fault.at) {
                continue;
            }
            let claimed = facts.claims_of(workflow).iter().find(|claim| claim.at > fault.at && claim.fence > fence);
            let committed = facts.commits_of(workflow).filter_map(|(_, sent)| sent.done()).filter(|at| *at > fault.at).min();
            let unheard = claimed.map_or(0, |claim| unheard(facts, claim, fault.at));
            let claimed = claimed.map(|claim| claim.at - fault.at);
            let committed_ms = committed.map(|at| at - fault.at);
            let claimed_ms = if struck == Struck::RedisKilled { committed_ms } else { claimed };
            recoveries.push(Recovery { struck, workflow: workflow.to_owned(), claimed_ms, unheard, committed_ms });
        }
    }
    recoveries
}

/// Samples in classes, with what people ask of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    sorted: Vec<i64>,
}

/// Upper ends of the classes, in milliseconds.
const CLASSES_MS: [i64; 9] = [250, 500, 1_000, 1_500, 2_000, 2_500, 3_000, 5_000, 10_000];
/// Width of the longest bar.
const BAR_CHARS: usize = 40;

impl Histogram {
    pub fn of(samples: impl IntoIterator<Item = i64>) -> Histogram {
        let mut sorted: Vec<i64> = samples.into_iter().collect();
        sorted.sort_unstable();
        Histogram { sorted }
    }

    pub fn samples(&self) -> usize {
        self.sorted.len()
    }

    /// The smallest sample that is not less than `percent` of them. None without samples.
    pub fn percentile(&self, percent: usize) -> Option<i64> {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).copied()
    }

    pub fn max(&self) -> Option<i64> {
        self.sorted.last().copied()
    }
}

impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(p50), Some(p99), Some(max)) = (self.percentile(50), self.percentile(99), self.max()) else {
            return write!(f, "no samples");
        };
        writeln!(f, "{} samples: p50 {p50} ms, p99 {p99} ms, max {max} ms", self.samples())?;
        let mut from = 0;
        for to in CLASSES_MS.into_iter().chain([i64::MAX]) {
            let count = self.sorted.iter().filter(|sample| (from..to).contains(*sample)).count();
            if count > 0 {
                let bar = "#".repeat((count * BAR_CHARS).div_ceil(self.samples()));
                let class = if to == i64::MAX { format!("from {from:>5}") } else { format!("to {to:>7}") };
                writeln!(f, "    {class} ms {count:>5} {bar}")?;
            }
            from = to;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_that_were_taken() {
        let histogram = Histogram::of([30, 10, 20, 40]);
        assert_eq!((histogram.percentile(50), histogram.percentile(99), histogram.max()), (Some(20), Some(40), Some(40)));
        assert_eq!(Histogram::of([]).percentile(50), None);
        assert_eq!(Histogram::of([]).to_string(), "no samples");
    }
}
