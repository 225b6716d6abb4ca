//! The lines, read and put in order.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Invariant, Violation};

/// A commit, however often it was sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CommitKey {
    pub(super) workflow: String,
    pub(super) fence: u64,
    /// Entries before it.
    pub(super) expected: u64,
    pub(super) digests: Vec<String>,
    /// What becomes of the lease.
    pub(super) next: String,
    pub(super) pid: u64,
}

impl CommitKey {
    pub(super) fn keeps_the_lease(&self) -> bool {
        self.next == "keep"
    }
}

/// What became of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Sent {
    pub(super) first: i64,
    pub(super) times: u32,
    /// Times that nobody answered.
    pub(super) unknown: u32,
    /// When, and how.
    pub(super) answers: Vec<(i64, String)>,
}

impl Sent {
    pub(super) fn done(&self) -> Option<i64> {
        self.answers.iter().find(|(_, how)| how == "done").map(|(at, _)| *at)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) at: i64,
    pub(super) pid: u64,
    pub(super) workflow: String,
    pub(super) fence: u64,
    pub(super) seq: u64,
    /// Leases in a row that had expired without a commit, as the store counts them.
    pub(super) tries: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Effect {
    pub(super) at: i64,
    pub(super) workflow: String,
    pub(super) fence: u64,
    pub(super) call: String,
    pub(super) on: String,
}

/// An entry as it is kept: its digest, its text, and what that says.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) digest: String,
    pub(super) body: String,
    pub(super) said: Value,
}

impl Entry {
    pub(super) fn event(&self) -> &str {
        self.said["event"].as_str().unwrap_or_default()
    }

    pub(super) fn text(&self, key: &str) -> &str {
        self.said[key].as_str().unwrap_or_default()
    }

    pub(super) fn fence(&self) -> u64 {
        self.said["fence"].as_u64().unwrap_or_default()
    }
}

/// What is left of a workflow.
#[derive(Debug, Clone, Default)]
pub(super) struct Workflow {
    pub(super) known: bool,
    pub(super) kind: String,
    pub(super) target: String,
    pub(super) status: String,
    pub(super) leased: bool,
    pub(super) headline: String,
    /// By place, from 1.
    pub(super) entries: BTreeMap<u64, Entry>,
}

impl Workflow {
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.status.as_str(), "succeeded" | "failed" | "aborted")
    }

    pub(super) fn events(&self) -> impl DoubleEndedIterator<Item = (&str, &Entry)> {
        self.entries.values().map(|entry| (entry.event(), entry))
    }

    /// An operator has ended it as it was.
    pub(super) fn was_left(&self) -> bool {
        let mut events = self.events().map(|(event, _)| event).rev();
        events.next() == Some("ended") && events.next() == Some("operator-answered")
    }
}

#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) at: i64,
    pub(super) kind: String,
    pub(super) pids: Vec<u64>,
}

/// Everything that was said.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) claims: Vec<Claim>,
    claims_of: BTreeMap<String, Vec<Claim>>,
    pub(super) commits: BTreeMap<CommitKey, Sent>,
    pub(super) effects: Vec<Effect>,
    /// How effects ended.
    pub(super) outcomes: Vec<String>,
    /// Event, and the lease: `lease-refused`, `guard-refused`, `handed-back`.
    pub(super) leases: Vec<(String, i64, String, u64)>,
    /// `accepted`, `unanswered`, `refused`, as they are.
    pub(super) orders: Vec<Value>,
    pub(super) faults: Vec<Fault>,
    pub(super) workflows: BTreeMap<String, Workflow>,
    pub(super) holdings: Vec<Value>,
    /// Workflows in whose journal a bit was flipped on purpose, in which entry, and whether that is certain.
    poisoned: BTreeMap<String, (u64, bool)>,
}

fn text(line: &Value, key: &str) -> String {
    line[key].as_str().unwrap_or_default().to_owned()
}

fn number(line: &Value, key: &str) -> u64 {
    line[key].as_u64().unwrap_or_default()
}

impl Facts {
    /// Commits of one workflow, of every lease.
    pub(super) fn commits_of<'a>(&'a self, workflow: &'a str) -> impl Iterator<Item = (&'a CommitKey, &'a Sent)> {
        let first = CommitKey { workflow: workflow.to_owned(), fence: 0, expected: 0, digests: Vec::new(), next: String::new(), pid: 0 };
        self.commits.range(first..).take_while(move |(commit, _)| commit.workflow == workflow)
    }

    /// In which entry of its journal a bit was flipped on purpose.
    pub(super) fn poisoned(&self, workflow: &str) -> Option<u64> {
        self.poisoned.get(workflow).map(|(seq, _)| *seq)
    }

    /// It was flipped if the entry is damaged, and perhaps not at all.
    pub(super) fn perhaps_poisoned(&self, workflow: &str) -> bool {
        self.poisoned.get(workflow).is_some_and(|(_, certain)| !certain)
    }

    /// Claims of one workflow, in order of their time.
    pub(super) fn claims_of(&self, workflow: &str) -> &[Claim] {
        self.claims_of.get(workflow).map_or(&[], Vec::as_slice)
    }

    pub(super) fn read(history: &str, violations: &mut Vec<Violation>) -> Facts {
        let mut facts = Facts::default();
        for (place, line) in history.lines().enumerate() {
            let read = serde_json::from_str::<Value>(line).map_err(|error| error.to_string()).and_then(|line| facts.take(line));
            if let Err(why) = read {
                let what = format!("line {}: {why}", place + 1);
                violations.push(Violation { invariant: Invariant::HistoryIsWhole, what });
            }
        }
        facts.claims.sort_by_key(|claim| claim.at);
        for claim in &facts.claims {
            facts.claims_of.entry(claim.workflow.clone()).or_default().push(claim.clone());
        }
        facts.effects.sort_by_key(|effect| effect.at);
        facts.faults.sort_by_key(|fault| fault.at);
        facts
    }

    fn take(&mut self, line: Value) -> Result<(), String> {
        let event = text(&line, "event");
        let at = line["at"].as_i64().unwrap_or_default();
        let lease = |line: &Value| (text(line, "workflow"), number(line, "fence"));
        match event.as_str() {
            "claimed" => {
                let ((workflow, fence), pid, seq) = (lease(&line), number(&line, "pid"), number(&line, "seq"));
                self.claims.push(Claim { at, pid, workflow, fence, seq, tries: number(&line, "tries") });
            }
            "commit" | "committed" | "unknown" => self.commit(&event, at, &line),
            "lease-refused" | "guard-refused" | "handed-back" => {
                let (workflow, fence) = lease(&line);
                self.leases.push((event, at, workflow, fence));
            }
            "effect" => {
                let (workflow, fence) = lease(&line);
                self.effects.push(Effect { at, workflow, fence, call: text(&line, "call"), on: text(&line, "on") });
            }
            "effected" => self.outcomes.push(text(&line, "outcome")),
            "create" | "created" | "signal" | "signalled" | "ticks" | "mended" => {}
            "accepted" | "unanswered" | "refused" => self.orders.push(line),
            "fault" => self.fault(at, &line),
            "workflow" => self.workflow(&line),
            "entry" => self.entry(&line)?,
            "holding" => self.holdings.push(line),
            _ => return Err(format!("`{event}` is not an event that is known here")),
        }
        Ok(())
    }

    fn commit(&mut self, event: &str, at: i64, line: &Value) {
        let digests = line["digests"].as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned));
        let key = CommitKey {
            workflow: text(line, "workflow"),
            fence: number(line, "fence"),
            expected: number(line, "expected"),
            digests: digests.collect(),
            next: text(line, "next"),
            pid: number(line, "pid"),
        };
        let sent = self.commits.entry(key).or_insert_with(|| Sent { first: at, ..Sent::default() });
        match event {
            "commit" => {
                sent.first = sent.first.min(at);
                sent.times += 1;
            }
            "unknown" => sent.unknown += 1,
            _ => sent.answers.push((at, text(line, "how"))),
        }
    }

    fn fault(&mut self, at: i64, line: &Value) {
        let pids = line["pids"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        if let Some(seq) = line["poisoned"].as_u64() {
            let certain = line["perhaps"] != true;
            self.poisoned.insert(text(line, "workflow"), (seq, certain));
        }
        self.faults.push(Fault { at, kind: text(line, "kind"), pids });
    }

    fn workflow(&mut self, line: &Value) {
        let entry = self.workflows.entry(text(line, "workflow")).or_default();
        entry.known = true;
        entry.kind = text(line, "kind");
        entry.target = text(line, "target");
        entry.status = text(line, "status");
        entry.leased = line["leased"] == true;
        entry.headline = text(line, "headline");
    }

    fn entry(&mut self, line: &Value) -> Result<(), String> {
        let (workflow, seq, body) = (text(line, "workflow"), number(line, "seq"), text(line, "body"));
        // What can't be read is for the chain of digests to judge.
        let said = serde_json::from_str(&body).unwrap_or_default();
        let entry = Entry { digest: text(line, "digest"), body, said };
        let before = self.workflows.entry(workflow.clone()).or_default().entries.insert(seq, entry);
        before.map_or(Ok(()), |_| Err(format!("entry {seq} of {workflow} is there twice")))
    }
}
