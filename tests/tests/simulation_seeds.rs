//! Ten thousand rollouts where everything goes wrong, at the site and among the workers: the same seed, the same history.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use turnaround_proof::storm::{self, Ran};
use turnaround_workflows::updates;

/// Seeds of one run, unless `TURNAROUND_SEEDS` says otherwise (`FROM..TO`, as in CI): all of them where the code is optimised
/// (`cargo seeds`), and as many as take a minute where it is not (`cargo test`).
const SEEDS: std::ops::Range<u64> = if cfg!(debug_assertions) { 0..1_000 } else { 0..10_000 };

/// What must have come about at least once in a run of as many seeds as [`SEEDS`] or more: a fault that never struck proves nothing.
const SOMETIMES: [&str; 33] = [
    "aborted",
    "activation lost",
    "claim whose answer was lost",
    "commit fenced",
    "commit whose answer was lost",
    "followed in the storm: retry",
    "guard refused",
    "installer heard",
    "installer heard again",
    "lease lost",
    "move that Nova takes up late",
    "paused",
    "question answered",
    "question answered in the storm",
    "question asked",
    "resource busy",
    "ring unheard",
    "share to be taken over",
    "signal refused",
    "signal that was followed comes again",
    "step failed and was tried again",
    "step undone",
    "store outage waited out",
    "taken over from one that still believes to have it",
    "taken over from the dead",
    "told an answer in passing",
    "told to abort",
    "told to pause",
    "told to try again",
    "waited for a resource",
    "went back",
    "worker paused",
    "worker struck after an answer",
];

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("TURNAROUND_SEEDS") else { return SEEDS };
    let (from, to) = text.split_once("..").expect("TURNAROUND_SEEDS is FROM..TO");
    from.parse().unwrap()..to.parse().unwrap()
}

#[derive(Default)]
struct Total {
    seeds: u64,
    statuses: BTreeMap<&'static str, u64>,
    counts: BTreeMap<&'static str, u64>,
    promised: BTreeMap<&'static str, u64>,
    against: Vec<String>,
}

impl Total {
    fn add(&mut self, ran: Ran) {
        self.seeds += 1;
        *self.statuses.entry(ran.status).or_default() += 1;
        for (what, count) in ran.counts {
            *self.counts.entry(what).or_default() += count;
        }
        for (what, count) in ran.promised {
            *self.promised.entry(what).or_default() += count;
        }
        self.against.extend(ran.against.into_iter().map(|what| format!("seed {}: {what}", ran.seed)));
    }
}

impl Total {
    /// What the owner of a site asks, and the figures to it.
    fn told(&self) -> String {
        let good = "no instance moved twice (beyond what is explained), none lost, none left in another power state, no node left disabled by us without a question open";
        let verdict = if self.against.is_empty() { good.to_owned() } else { format!("{} complaints, which follow", self.against.len()) };
        let figures: Vec<String> = self.promised.iter().map(|(what, count)| format!("  {count:>8} {what}")).collect();
        format!("over {} simulated sites with faults by seed: {verdict}\n{}", self.seeds, figures.join("\n"))
    }
}

/// Runs `seeds`, one thread for each core.
fn run_all(seeds: std::ops::Range<u64>) -> Total {
    let total = Mutex::new(Total::default());
    let next = AtomicU64::new(seeds.start);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let registry = updates::registry();
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    // One that panics is a violation like any other, and has a name.
                    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| storm::run(seed, &registry)));
                    let mut total = total.lock().unwrap();
                    match ran {
                        Ok(ran) => total.add(ran),
                        Err(panic) => {
                            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                            total.against.push(format!("seed {seed}: panic: {}", text.unwrap_or_default()));
                        }
                    }
                }
            });
        }
    });
    total.into_inner().unwrap()
}

#[test]
fn no_rollout_harms_a_site_whatever_goes_wrong_there_and_among_the_workers() {
    let (seeds, began) = (seeds(), Instant::now());
    let total = run_all(seeds.clone());
    let took = began.elapsed().max(Duration::from_millis(1));
    println!("{} seeds in {:.1} s: {:.1} seeds/s", total.seeds, took.as_secs_f64(), total.seeds as f64 / took.as_secs_f64());
    println!("{:#?}\n{:#?}", total.statuses, total.counts);
    println!("{}", total.told());
    let shown: Vec<&str> = total.against.iter().take(40).map(String::as_str).collect();
    assert!(total.against.is_empty(), "{} complaints:\n{}", total.against.len(), shown.join("\n"));
    if seeds.end - seeds.start >= SEEDS.end {
        let never: Vec<&&str> = SOMETIMES.iter().filter(|what| !total.counts.contains_key(**what)).collect();
        assert!(never.is_empty(), "never came about: {never:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_history_to_the_byte() {
    let registry = updates::registry();
    for seed in [1, 7, 23] {
        let (first, second) = (storm::run(seed, &registry), storm::run(seed, &registry));
        assert_eq!(first.log, second.log, "seed {seed}");
        assert_eq!(first.journals, second.journals, "seed {seed}");
        assert_ne!(first.log, storm::run(seed + 1, &registry).log, "another seed, another history");
    }
}

/// `TURNAROUND_SHOW=SEED` prints what happened there, in order of time.
#[test]
fn one_seed_is_shown_on_demand() {
    let Ok(seed) = std::env::var("TURNAROUND_SHOW") else { return };
    let ran = storm::run(seed.parse().unwrap(), &updates::registry());
    let mut lines: Vec<(i64, String)> = Vec::new();
    let at = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["at"].as_i64().unwrap();
    lines.extend(ran.log.lines().map(|line| (at(line), format!("site: {line}"))));
    for (id, entries) in &ran.journals {
        lines.extend(entries.iter().map(|(_, body)| (at(body), format!("{id}: {body}"))));
    }
    lines.sort_by_key(|(at, _)| *at);
    lines.iter().for_each(|(_, line)| println!("{line}"));
    println!("{}\n{:#?}\n{:#?}", ran.status, ran.counts, ran.against);
}
