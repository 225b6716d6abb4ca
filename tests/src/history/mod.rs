//! Judges what happened by what every process wrote of itself, by what its clients were told, and by what is left in the store.
//!
//! It shares no code with what it judges: lines of JSON come in, violations come out. The lines of all files may come in any
//! order; each says when it was written, by the one clock of the one machine.
//!
//! | line | written by | says |
//! |---|---|---|
//! | `claimed` | workers | a lease on `workflow` under `fence` was granted; its journal had `seq` entries |
//! | `commit`, `committed`, `unknown` | workers | sent; answered with `how`; not answered |
//! | `lease-refused`, `guard-refused`, `handed-back` | workers | of the lease on `workflow` under `fence` |
//! | `effect`, `effected` | workers | `call` on something in the world begins; how it ended |
//! | `create(d)`, `signal(led)`, `ticks` | daemons | what they wrote |
//! | `accepted`, `refused`, `unanswered` | operators | what they `asked` when, and were told |
//! | `fault`, `mended` | whoever dealt it | what `kind`, and which processes |
//! | `workflow`, `entry`, `holding` | whoever read the store at the end | what is in it |

mod effects;
mod facts;
mod journals;
mod leases;
mod orders;
mod recovery;
mod sometimes;

use std::fmt;

use turnaround_proof::checker::{self, Violation as SiteViolation};

pub use recovery::{Histogram, Recovery, Struck};
pub use sometimes::Reached;

use facts::Facts;

/// What must hold, whatever happens. The numbers are those of the catalogue of invariants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// The lines contradict themselves, or are not understood: nothing can be judged.
    HistoryIsWhole,
    /// I1: at most one commit for each place of each journal.
    OneCommitAPlace,
    /// I2: fences only grow, and who has an older one writes nothing.
    FencesGrow,
    /// I3: no image, and no reset, on a node with instances.
    NoImageOnInstances,
    /// I4: never too many nodes out; of the Kubernetes cluster one at a time, and drained.
    NotTooManyOut,
    /// I6: what was accepted, acknowledged or sent between workflows is in the journal.
    NothingLost,
    /// I7: everything ends, or asks.
    EverythingEnds,
    /// I8: nothing twice: no effect, no signal, no step.
    NothingTwice,
    /// I9: undone in reverse order, and only what was begun.
    UndoneInReverse,
    /// I14: budgets and locks are free in the end.
    FreeAtTheEnd,
    /// The intent is in the journal before its effect begins.
    IntentFirst,
    /// Every entry is sealed over its predecessor; what is not, is set aside, and nothing else is.
    JournalsAreWhole,
    /// What was done is undone: nodes are as they were found, and no order stays behind.
    LeftAsFound,
}

impl Invariant {
    pub fn name(self) -> &'static str {
        match self {
            Invariant::HistoryIsWhole => "the history is whole",
            Invariant::OneCommitAPlace => "I1 one commit a place",
            Invariant::FencesGrow => "I2 fences grow",
            Invariant::NoImageOnInstances => "I3 no image on instances",
            Invariant::NotTooManyOut => "I4 not too many out",
            Invariant::NothingLost => "I6 nothing is lost",
            Invariant::EverythingEnds => "I7 everything ends or asks",
            Invariant::NothingTwice => "I8 nothing twice",
            Invariant::UndoneInReverse => "I9 undone in reverse",
            Invariant::FreeAtTheEnd => "I14 free at the end",
            Invariant::IntentFirst => "intent first",
            Invariant::JournalsAreWhole => "journals are whole",
            Invariant::LeftAsFound => "left as found",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    pub invariant: Invariant,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant.name(), self.what)
    }
}

/// What is judged, and by what.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The lines described above.
    pub history: &'a str,
    /// The simulated site's own log.
    pub site: &'a str,
    /// At most so many nodes out of service at once.
    pub out_max: usize,
}

/// What it came to.
#[derive(Debug, Clone)]
pub struct Judgement {
    pub violations: Vec<Violation>,
    pub reached: Vec<Reached>,
    pub recoveries: Vec<Recovery>,
}

/// Everything that must not be, everything that was reached, and how long it took after each blow.
pub fn judge(evidence: &Evidence<'_>) -> Judgement {
    let mut violations = Vec::new();
    let facts = Facts::read(evidence.history, &mut violations);
    leases::judge(&facts, &mut violations);
    journals::judge(&facts, &mut violations);
    orders::judge(&facts, &mut violations);
    effects::judge(&facts, &mut violations);
    let site = checker::judge(evidence.site, &journals::excuses(&facts, evidence.out_max));
    violations.extend(site.iter().map(of_the_site));
    violations.sort();
    violations.dedup();
    Judgement { violations, reached: sometimes::reached(&facts), recoveries: recovery::recoveries(&facts) }
}

fn of_the_site(violation: &SiteViolation) -> Violation {
    use checker::Rule;
    let invariant = match violation.rule {
        Rule::LogIsWhole => Invariant::HistoryIsWhole,
        Rule::OneMoveAtATime | Rule::MovesOnce | Rule::OneResetAnOrder | Rule::OneRebuildAnOrder | Rule::OneImageAnOrder | Rule::OneScriptAtATime => Invariant::NothingTwice,
        Rule::NothingIsLost | Rule::OnlyClosedNodesAreTaken => Invariant::NoImageOnInstances,
        Rule::NotTooManyOut | Rule::DrainedBeforeMoved | Rule::OneClusterNodeAtATime => Invariant::NotTooManyOut,
        Rule::MovesOnlyOffClosedNodes | Rule::ConfirmsOnlyOwnMoves | Rule::OthersClosuresStay | Rule::LeftAsFound | Rule::NoOrderStays => {
            Invariant::LeftAsFound
        }
    };
    Violation { invariant, what: violation.to_string() }
}
