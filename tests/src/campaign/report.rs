//! What a campaign came to, for people and for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::faults::Fault;
use super::run::Outcome;
use crate::history::{Histogram, Recovery, Struck};

/// A campaign of this length must have reached every rare path; a shorter one need not.
// Five minutes are what the paths' rates were chosen for.
const ALL_IS_REACHED_IN: Duration = Duration::from_secs(300);
/// Violations that are shown; the rest are counted.
const VIOLATIONS_SHOWN: usize = 40;

impl Outcome {
    /// Nothing that must not be, everything ended, and in a long campaign everything was reached.
    pub fn is_good(&self) -> bool {
        self.judgement.violations.is_empty() && self.tail.open.is_empty() && (self.lasted < ALL_IS_REACHED_IN || self.never_reached().is_empty())
    }

    fn never_reached(&self) -> Vec<&'static str> {
        let never = self.judgement.reached.iter().filter(|reached| reached.times == 0).map(|reached| reached.what);
        // What can't be done on this machine can't be reached on it.
        never.filter(|what| !self.skipped.contains(what)).collect()
    }

    fn faults_dealt(&self) -> u32 {
        self.faults.values().sum::<u32>() + self.deeds.sent_twice
    }
}

fn histogram(recoveries: &[Recovery], struck: Struck) -> Histogram {
    Histogram::of(recoveries.iter().filter(|recovery| recovery.struck == struck).filter_map(|recovery| recovery.committed_ms))
}

const STRUCK: [(Struck, &str); 4] = [
    (Struck::WorkerKilled, "from the kill of the worker that had it in hand"),
    (Struck::WorkerPaused, "from the pause of the worker that had it in hand"),
    (Struck::RedisKilled, "from the kill of Redis, for what was in hand"),
    (Struck::HostKilled, "from the kill of everything, for what was in hand"),
];

/// Prints it.
pub fn tell(outcome: &Outcome) {
    println!("seed {}, faults for {} s", outcome.seed, outcome.lasted.as_secs());
    println!("\nfaults: {} of {} kinds", outcome.faults_dealt(), outcome.faults.len() + usize::from(outcome.deeds.sent_twice > 0));
    for (fault, times) in &outcome.faults {
        println!("  {times:>5}  {}", fault.name());
    }
    println!("  {:>5}  request sent twice", outcome.deeds.sent_twice);
    for skipped in &outcome.skipped {
        println!("      -  {skipped}: not possible on this machine");
    }
    println!("\noperations, accepted / refused / unanswered");
    let deeds = &outcome.deeds;
    let kinds: BTreeMap<&String, ()> = deeds.accepted.keys().chain(deeds.refused.keys()).chain(deeds.unanswered.keys()).map(|kind| (kind, ())).collect();
    for kind in kinds.into_keys() {
        let of = |map: &BTreeMap<String, u32>| map.get(kind).copied().unwrap_or_default();
        println!("  {:>5} {:>5} {:>5}  {kind}", of(&deeds.accepted), of(&deeds.refused), of(&deeds.unanswered));
    }
    println!("\nsometimes");
    for reached in &outcome.judgement.reached {
        let times = if reached.times == 0 { "never".to_owned() } else { reached.times.to_string() };
        println!("  {times:>5}  {}", reached.what);
    }
    println!("\ntime to recovery: until the next commit of the workflow");
    for (struck, what) in STRUCK {
        println!("  {what}: {}", histogram(&outcome.judgement.recoveries, struck).to_string().trim_end());
    }
    tell_verdict(outcome);
}

fn tell_verdict(outcome: &Outcome) {
    let (took, lines) = outcome.judged;
    println!("\nafter the faults everything had ended within {:.1} s", outcome.tail.took.as_secs_f64());
    for (id, status, headline) in &outcome.tail.last {
        println!("  the last: {id} was {status}: {headline}");
    }
    for (id, status, headline) in &outcome.tail.open {
        println!("  still open: {id} is {status}: {headline}");
    }
    println!("judged {lines} lines in {:.2} s", took.as_secs_f64());
    let violations = &outcome.judgement.violations;
    for violation in violations.iter().take(VIOLATIONS_SHOWN) {
        println!("VIOLATION: {violation}");
    }
    if violations.len() > VIOLATIONS_SHOWN {
        println!("and {} more", violations.len() - VIOLATIONS_SHOWN);
    }
    if let Some(folder) = &outcome.folder {
        println!("the logs are in {}", folder.display());
    }
    let never = outcome.never_reached();
    if !never.is_empty() && outcome.lasted >= ALL_IS_REACHED_IN {
        println!("never reached: {}", never.join("; "));
    }
    println!("verdict: {}", if outcome.is_good() { "all that must hold held" } else { "NOT GOOD" });
}

/// The same, as one object.
pub fn json(outcome: &Outcome) -> Value {
    let recovery = |struck| {
        let histogram = histogram(&outcome.judgement.recoveries, struck);
        json!({
            "samples": histogram.samples(), "p50_ms": histogram.percentile(50), "p99_ms": histogram.percentile(99), "max_ms": histogram.max(),
        })
    };
    json!({
        "seed": outcome.seed,
        "seconds": outcome.lasted.as_secs(),
        "faults": outcome.faults.iter().map(|(fault, times)| (Fault::name(*fault).to_owned(), *times)).collect::<BTreeMap<String, u32>>(),
        "faults_dealt": outcome.faults_dealt(),
        "skipped": outcome.skipped,
        "accepted": outcome.deeds.accepted,
        "refused": outcome.deeds.refused,
        "unanswered": outcome.deeds.unanswered,
        "sent_twice": outcome.deeds.sent_twice,
        "sometimes": outcome.judgement.reached.iter().map(|reached| (reached.what, reached.times)).collect::<BTreeMap<_, _>>(),
        "recovery": {
            "worker_killed": recovery(Struck::WorkerKilled),
            "worker_paused": recovery(Struck::WorkerPaused),
            "redis_killed": recovery(Struck::RedisKilled),
            "host_killed": recovery(Struck::HostKilled),
        },
        "tail_seconds": outcome.tail.took.as_secs_f64(),
        "lines_judged": outcome.judged.1,
        "judging_seconds": outcome.judged.0.as_secs_f64(),
        "violations": outcome.judgement.violations.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "good": outcome.is_good(),
    })
}
