//! Planted bugs: each is built into the product by a feature of its own, and the quickest proof must turn red.
//!
//! Without a bug the same proofs are green: the tests are part of the suite, and the campaign is what it is.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::Instant;

/// A planted bug that is not caught within this time counts as not caught. Building is not counted.
const CAUGHT_WITHIN: Duration = Duration::from_secs(300);
/// Lines of a proof's output that are looked at for its own words, from its end.
const TOLD_LINES: usize = 200;

/// What proves that a bug is there.
#[derive(Debug, Clone, Copy)]
enum Proof {
    /// A test, or some: package, target (`--test NAME` or `--lib`), part of their names.
    Test { package: &'static str, target: &'static [&'static str], name: &'static str },
    /// A campaign with this seed, of so many seconds.
    Campaign { seed: u64, seconds: u64 },
}

/// A bug by the name of its feature, what it breaks, and what must find it.
struct Planted {
    feature: &'static str,
    /// What it breaks; where a campaign proves it, in the words of its verdict.
    invariant: &'static str,
    proof: Proof,
}

const fn test(target: &'static [&'static str], name: &'static str) -> Proof {
    Proof::Test { package: "turnaround-tests", target, name }
}

const ENGINE: &[&str] = &["--test", "engine"];
const NODE_OS: &[&str] = &["--test", "node_os"];
const CRASH: &[&str] = &["--test", "crash"];
const LEASE: &[&str] = &["--test", "lease"];
const LIB: &[&str] = &["--lib"];
const STORE: &str = "turnaround-workflows";

const PLANTED: [Planted; 14] = [
    Planted {
        feature: "bug-commit-without-fence",
        invariant: "I2 fences grow",
        proof: Proof::Test { package: STORE, target: LIB, name: "a_worker_that_paused_for_too_long_is_fenced" },
    },
    Planted { feature: "bug-effect-before-intent", invariant: "intent first", proof: Proof::Campaign { seed: 7, seconds: 20 } },
    Planted { feature: "bug-ack-before-commit", invariant: "I6 nothing is lost", proof: Proof::Campaign { seed: 7, seconds: 45 } },
    Planted {
        feature: "bug-timeout-restarts",
        invariant: "deadlines are absolute",
        proof: test(ENGINE, "a_step_that_never_comes_to_an_end_becomes_a_question_at_its_deadline"),
    },
    Planted {
        feature: "bug-lease-by-clock-alone",
        invariant: "I2 fences grow",
        proof: test(LEASE, "a_guard_is_refused_once_somebody_else_has_the_lease"),
    },
    Planted { feature: "bug-undo-out-of-order", invariant: "I9 undone in reverse", proof: test(ENGINE, "what_cannot_succeed_is_unwound_last_step_first") },
    Planted {
        feature: "bug-doubled-tick",
        invariant: "I8 nothing twice",
        proof: Proof::Test { package: "turnaround-daemon", target: &["--test", "daemon"], name: "a_restart_in_the_same_second_fires_nothing_again" },
    },
    Planted { feature: "bug-lost-signal", invariant: "I6 nothing is lost", proof: Proof::Campaign { seed: 7, seconds: 30 } },
    Planted { feature: "bug-budget-given-back-early", invariant: "I4 not too many out", proof: test(NODE_OS, "two_rollouts_share_the_budget") },
    Planted { feature: "bug-no-observe-on-resume", invariant: "the same end as undisturbed", proof: test(CRASH, "a_renewal_does_everything_once") },
    Planted {
        feature: "bug-digest-unchecked",
        invariant: "journals are whole",
        proof: Proof::Test { package: STORE, target: LIB, name: "a_flipped_byte_a_swap_and_a_gap_are_noticed" },
    },
    Planted {
        feature: "bug-retry-without-backoff",
        invariant: "a failure is tried again with pauses",
        proof: test(ENGINE, "a_failure_is_tried_again_with_pauses"),
    },
    Planted { feature: "bug-no-last-look", invariant: "I3 no image on instances", proof: test(NODE_OS, "instances_that_landed_while_the_store_was_away_are_not_wiped") },
    Planted {
        feature: "bug-signal-followed-twice",
        invariant: "I8 nothing twice",
        proof: test(ENGINE, "a_signal_that_is_delivered_twice_counts_once"),
    },
];

/// How one of them fared.
#[derive(Debug, Clone)]
pub struct Fate {
    pub feature: &'static str,
    /// What it breaks.
    pub invariant: &'static str,
    pub caught: bool,
    /// The first words of what caught it.
    pub by: String,
    pub took: Duration,
    pub built: Duration,
}

/// Builds and proves the bugs that are `named`, or all; tells of each as soon as it is known.
pub async fn prove(named: &[String]) -> io::Result<Vec<Fate>> {
    if let Some(unknown) = named.iter().find(|name| !PLANTED.iter().any(|bug| bug.feature == name.as_str())) {
        let known: Vec<&str> = PLANTED.iter().map(|bug| bug.feature).collect();
        return Err(io::Error::other(format!("there is no planted bug `{unknown}`; there are: {}", known.join(", "))));
    }
    let mut fates = Vec::new();
    for bug in PLANTED.iter().filter(|bug| named.is_empty() || named.iter().any(|name| name == bug.feature)) {
        let fate = bug.prove().await?;
        let verdict = if fate.caught { "caught" } else { "NOT CAUGHT" };
        let (took, built) = (fate.took.as_secs_f64(), fate.built.as_secs_f64());
        println!("{verdict:<10} {:<30} {took:>6.1} s (built in {built:.0} s)  {}: {}", fate.feature, fate.invariant, fate.by);
        fates.push(fate);
    }
    Ok(fates)
}

impl Planted {
    async fn prove(&self) -> io::Result<Fate> {
        let began = Instant::now();
        self.build().await?;
        let (built, began) = (began.elapsed(), Instant::now());
        let mut proof = self.command();
        proof.stdin(Stdio::null()).kill_on_drop(true);
        let (caught, by) = match tokio::time::timeout(CAUGHT_WITHIN, proof.output()).await {
            Err(_) => (false, format!("the proof did not end within {} s", CAUGHT_WITHIN.as_secs())),
            Ok(output) => {
                let output = output?;
                let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
                self.read(output.status.code(), &said)?
            }
        };
        Ok(Fate { feature: self.feature, invariant: self.invariant, caught, by, took: began.elapsed(), built })
    }

    /// Everything that the proof needs, built: a build that fails is no bug that was caught.
    async fn build(&self) -> io::Result<()> {
        let mut build = cargo();
        match self.proof {
            Proof::Test { package, target, .. } => {
                let mut features = self.features(package);
                build.args(["test", "--no-run", "--package", package]).args(target);
                build.args(["--features", &std::mem::take(&mut features)]);
            }
            Proof::Campaign { .. } => {
                build.args(["build", "--bins", "--package", "turnaround-tests", "--package", "turnaround-worker", "--package", "turnaround-daemon"]);
                build.args(["--features", &format!("turnaround-tests/{}", self.feature)]);
            }
        }
        let output = build.output().await?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("{} could not be built:\n{}", self.feature, String::from_utf8_lossy(&output.stderr))))
    }

    fn features(&self, package: &str) -> String {
        if package == STORE { format!("conformance,{}", self.feature) } else { self.feature.to_owned() }
    }

    fn command(&self) -> Command {
        match self.proof {
            Proof::Test { package, target, name } => {
                let mut run = cargo();
                run.args(["test", "--package", package]).args(target).args(["--features", &self.features(package), name]);
                run
            }
            Proof::Campaign { seed, seconds } => {
                let mut run = Command::new(folder().join("debug/campaign"));
                run.args(["--seed", &seed.to_string(), "--seconds", &seconds.to_string(), "--as-built", "--tail-seconds", TAIL_SECONDS]);
                run
            }
        }
    }

    /// Whether it was caught, and in which words. An error if the proof itself could not be run.
    fn read(&self, code: Option<i32>, said: &str) -> io::Result<(bool, String)> {
        let lines: Vec<&str> = said.lines().rev().take(TOLD_LINES).collect();
        let first = |wanted: &str| lines.iter().rev().find(|line| line.contains(wanted)).map(|line| line.trim().to_owned());
        match (self.proof, code) {
            (Proof::Test { name, .. }, Some(0)) if first("test result: ok. 0 passed").is_some() => {
                Err(io::Error::other(format!("there is no test `{name}`")))
            }
            (_, Some(0)) => Ok((false, "the proof is green".to_owned())),
            (Proof::Test { .. }, _) => {
                // The names of those that failed stand in a list of their own at the end.
                let failed = said.rsplit_once("\nfailures:\n").and_then(|(_, names)| names.split_whitespace().next());
                let failed = failed.ok_or_else(|| io::Error::other(format!("the proof could not be run:\n{said}")))?;
                Ok((true, failed.to_owned()))
            }
            (Proof::Campaign { .. }, Some(1)) => {
                // Others may be broken with it, or because of a short tail: it has to be told as what it is.
                if let Some(why) = first(&format!("VIOLATION: {}", self.invariant)) {
                    return Ok((true, why));
                }
                let other = first("VIOLATION").or_else(|| first("still open")).unwrap_or_else(|| "no words".to_owned());
                Ok((false, format!("the campaign has found something else: {other}")))
            }
            // No reason to give the others up.
            (Proof::Campaign { .. }, _) => Ok((false, format!("the campaign could not be run: {}", said.trim()))),
        }
    }
}

/// A planted bug may leave work that never ends: it is enough to have waited for a while.
const TAIL_SECONDS: &str = "60";

/// They are built in a folder of their own, so that they never meet what is really used.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/planted")
}

fn cargo() -> Command {
    let mut cargo = crate::harness::cargo();
    cargo.args(["--quiet", "--locked"]).env("CARGO_TARGET_DIR", folder()).env("CARGO_INCREMENTAL", "0");
    // Nobody debugs them, and each is built for one run: nothing is optimised.
    cargo.args(["--config", "profile.dev.package.turnaround-workflows.opt-level=0"]);
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").env("RUST_BACKTRACE", "0");
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    cargo.stdin(Stdio::null());
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_campaign_catches_a_bug_only_as_what_it_is() {
        let bug = Planted { feature: "bug-x", invariant: "I8 nothing twice", proof: Proof::Campaign { seed: 7, seconds: 20 } };
        let read = |said: &str| bug.read(Some(1), said).expect("it was run");
        let (other, itself) = ("VIOLATION: I7 everything ends or asks: a waits", "VIOLATION: I8 nothing twice: b was reset twice");
        assert_eq!(read(&format!("{other}\n  {itself}\n")), (true, itself.to_owned()));
        assert_eq!(read(other), (false, format!("the campaign has found something else: {other}")));
        assert_eq!(bug.read(Some(0), "good").unwrap(), (false, "the proof is green".to_owned()));
    }
}
