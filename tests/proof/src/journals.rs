//! Judges journals by what they say, as plain JSON, and by nothing else.
//!
//! Like [`crate::checker`] it shares no code with what it judges: what it does not understand is against the journal.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// By workflow: digest and body of each entry.
pub type Journals = BTreeMap<String, Vec<(String, String)>>;

/// Everything that is wrong with these journals, in words.
pub fn judge(journals: &Journals) -> Vec<String> {
    let mut against = Vec::new();
    let mut ends: BTreeMap<&str, String> = BTreeMap::new();
    let mut told: Vec<(&str, String, String)> = Vec::new();
    for (id, entries) in journals {
        let mut reader = Reader { id, seq: 0, before: String::new(), at: i64::MIN, fence: 0, story: Story::default(), against: Vec::new() };
        for (digest, body) in entries {
            reader.entry(digest, body);
        }
        ends.extend(reader.story.ended.clone().map(|outcome| (id.as_str(), outcome)));
        told.extend(reader.story.children.iter().filter_map(|(child, outcome)| Some((id.as_str(), child.clone(), outcome.clone()?))));
        against.append(&mut reader.against);
    }
    for (parent, child, outcome) in told {
        match ends.get(child.as_str()) {
            Some(ended) if *ended == outcome => {}
            ended => against.push(format!("{parent} was told that {child} has {outcome}, and it has {ended:?}")),
        }
    }
    against
}

/// What one journal has told so far.
#[derive(Default)]
struct Story {
    /// Words that were reported since the newest reset.
    said: BTreeSet<String>,
    /// Ids of the signals that were followed.
    followed: BTreeSet<String>,
    created: bool,
    ended: Option<String>,
    unwinding: bool,
    /// Begun and not undone, in order; with what it put out once it succeeded.
    begun: Vec<(String, Option<String>)>,
    /// Begun, and neither over nor given up.
    current: Option<String>,
    undoing: Option<String>,
    asking: bool,
    /// By id: how the parent was told that they ended.
    children: BTreeMap<String, Option<String>>,
    keys: BTreeMap<String, String>,
    held: BTreeSet<String>,
}

struct Reader<'a> {
    id: &'a str,
    seq: u64,
    before: String,
    at: i64,
    fence: u64,
    story: Story,
    against: Vec<String>,
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap_or_default()
}

impl Reader<'_> {
    fn say(&mut self, what: impl std::fmt::Display) {
        self.against.push(format!("{}: entry {}: {what}", self.id, self.seq));
    }

    fn entry(&mut self, digest: &str, body: &str) {
        self.seq += 1;
        let mut hash = Sha256::new();
        hash.update(self.before.as_bytes());
        hash.update(body.as_bytes());
        let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if hex != digest {
            self.say("its digest is not that of its predecessor's digest and its own words");
        }
        digest.clone_into(&mut self.before);
        let Ok(entry) = serde_json::from_str::<Value>(body) else { return self.say("it is not JSON") };
        if entry["seq"].as_u64() != Some(self.seq) {
            self.say(format_args!("it says that it is entry {}", entry["seq"]));
        }
        let (Some(at), Some(fence)) = (entry["at"].as_i64(), entry["fence"].as_u64()) else {
            return self.say("it has no time or no fence");
        };
        if at < self.at {
            let before = self.at;
            self.say(format_args!("its time {at} is before its predecessor's {before}"));
        }
        if fence < self.fence {
            let before = self.fence;
            self.say(format_args!("written under lease {fence} after one under lease {before}"));
        }
        (self.at, self.fence) = (at, fence);
        if let Some(outcome) = &self.story.ended {
            let outcome = outcome.clone();
            self.say(format_args!("`{}` after it has {outcome}", text(&entry, "event")));
        }
        if (text(&entry, "event") == "created") != (self.seq == 1) || (fence == 0) != (self.seq == 1) {
            self.say("a journal begins with `created`, under no lease, once");
        }
        if let Some(signal) = entry["follows"].as_str()
            && !self.story.followed.insert(signal.to_owned())
        {
            self.say(format_args!("the signal `{signal}` is followed once more"));
        }
        self.event(text(&entry, "event"), text(&entry, "step"), &entry);
    }

    fn event(&mut self, event: &str, step: &str, entry: &Value) {
        match event {
            "created" => self.story.created = true,
            "resource-awaited" | "paused" | "resumed" | "signal-refused" => {}
            "retry-requested" => self.story.asking = false,
            "step-begun" => self.begun(step, entry),
            "step-checkpointed" | "step-parked" | "step-failed" => {
                self.under_way(step);
                if text(entry, "note").starts_with("about to reset it into the network") {
                    self.story.said.clear();
                }
            }
            // Whoever repeats himself must not fill a journal.
            "reported" => {
                let word = text(&entry["report"], "word").to_owned();
                if !self.story.said.insert(word.clone()) {
                    self.say(format_args!("`{word}` is reported twice after one reset"));
                }
            }
            "operator-asked" => {
                self.under_way(step);
                self.story.asking = true;
            }
            "operator-answered" => {
                if !std::mem::replace(&mut self.story.asking, false) {
                    self.say("an answer, and nothing was asked");
                }
            }
            "step-succeeded" => self.succeeded(step, entry),
            "children-started" => {
                self.under_way(step);
                for child in entry["children"].as_array().into_iter().flatten() {
                    self.story.keys.insert(text(child, "key").to_owned(), text(child, "id").to_owned());
                    if self.story.children.insert(text(child, "id").to_owned(), None).is_some() {
                        self.say(format_args!("{} is started once more", text(child, "id")));
                    }
                }
            }
            "child-ended" => {
                let id = self.story.keys.get(text(entry, "key")).cloned().unwrap_or_default();
                match self.story.children.insert(id.clone(), Some(text(entry, "outcome").to_owned())) {
                    Some(None) => {}
                    _ => self.say(format_args!("`{id}` ends, and was not open")),
                }
            }
            "unwind-begun" => {
                if std::mem::replace(&mut self.story.unwinding, true) {
                    self.say("it goes back once more");
                }
                (self.story.current, self.story.asking) = (None, false);
            }
            "undo-begun" => self.undo_begun(step),
            "step-undone" => self.undone(step, entry),
            "ended" => self.ended(entry),
            _ => self.say(format_args!("`{event}` is not an event that is known here")),
        }
    }

    fn begun(&mut self, step: &str, entry: &Value) {
        if self.story.unwinding {
            self.say(format_args!("`{step}` begins on the way back"));
        }
        if let Some(current) = self.story.current.replace(step.to_owned()) {
            self.say(format_args!("`{step}` begins while `{current}` is under way"));
        }
        if self.story.begun.iter().any(|(begun, _)| begun == step) {
            self.say(format_args!("`{step}` begins once more"));
        }
        self.story.begun.push((step.to_owned(), None));
        for took in entry["took"].as_array().into_iter().flatten() {
            self.story.held.insert(took.to_string());
        }
    }

    fn under_way(&mut self, step: &str) {
        let at = self.story.undoing.as_ref().or(self.story.current.as_ref());
        if at.is_none_or(|at| at != step) {
            let at = at.cloned();
            self.say(format_args!("of `{step}`, while {at:?} is under way"));
        }
        if self.story.asking {
            self.say(format_args!("`{step}` goes on without an answer"));
        }
    }

    fn succeeded(&mut self, step: &str, entry: &Value) {
        self.under_way(step);
        self.story.current = None;
        let output = entry["output"].to_string();
        let known = self.story.begun.iter_mut().find(|(begun, _)| begun == step).map(|(_, known)| known.replace(output.clone()));
        match known {
            Some(None) => {}
            Some(Some(other)) if other == output => self.say(format_args!("`{step}` succeeds once more")),
            Some(Some(other)) => self.say(format_args!("`{step}` succeeds once more, with {output} and not {other}")),
            None => self.say(format_args!("`{step}` succeeds and was never begun")),
        }
        self.gave(entry);
    }

    fn gave(&mut self, entry: &Value) {
        for gave in entry["gave"].as_array().into_iter().flatten() {
            if !self.story.held.remove(&gave.to_string()) {
                self.say(format_args!("it gives back {gave}, which it does not have"));
            }
        }
    }

    fn undo_begun(&mut self, step: &str) {
        if !self.story.unwinding {
            self.say(format_args!("`{step}` is undone, and it does not go back"));
        }
        let newest = self.story.begun.last().map(|(begun, _)| begun.clone());
        if newest.as_deref() != Some(step) {
            self.say(format_args!("`{step}` is undone before {newest:?}, which began later"));
        }
        if let Some(other) = self.story.undoing.replace(step.to_owned()) {
            self.say(format_args!("`{step}` is undone while `{other}` is being undone"));
        }
    }

    fn undone(&mut self, step: &str, entry: &Value) {
        self.under_way(step);
        if self.story.undoing.take().as_deref() != Some(step) {
            self.say(format_args!("`{step}` is undone, and that was not begun"));
        }
        self.story.begun.pop();
        self.gave(entry);
    }

    fn ended(&mut self, entry: &Value) {
        let outcome = text(entry, "outcome").to_owned();
        if outcome == "succeeded" {
            let unfinished: Vec<String> =
                self.story.begun.iter().filter(|(_, output)| output.is_none()).map(|(step, _)| step.clone()).collect();
            if !unfinished.is_empty() || self.story.unwinding {
                self.say(format_args!("it succeeds with {unfinished:?} unfinished"));
            }
        }
        if self.story.unwinding && !text(entry, "why").starts_with("left as it is") && !self.story.begun.is_empty() {
            let left: Vec<String> = self.story.begun.iter().map(|(step, _)| step.clone()).collect();
            self.say(format_args!("it went back, and {left:?} were not undone"));
        }
        let open: Vec<&String> = self.story.children.iter().filter(|(_, outcome)| outcome.is_none()).map(|(id, _)| id).collect();
        if !open.is_empty() {
            let open = format!("{open:?}");
            self.say(format_args!("it ends before its children {open}"));
        }
        self.story.ended = Some(outcome);
    }
}

/// Every effect that can't be taken back has its intent in a journal before it: a reset, a ticket, a closed node.
pub fn judge_effects(journals: &Journals, log: &str) -> Vec<String> {
    let mut against = Vec::new();
    let written: BTreeMap<&str, Vec<Value>> = journals
        .iter()
        .map(|(id, entries)| (id.as_str(), entries.iter().filter_map(|(_, body)| serde_json::from_str(body).ok()).collect()))
        .collect();
    // Those of its own kind that are in the journal by then.
    let intents = |owner: &str, at: i64, wanted: &dyn Fn(&Value) -> bool| {
        let of = written.get(owner).map(Vec::as_slice).unwrap_or_default();
        of.iter().filter(|entry| entry["at"].as_i64().is_some_and(|then| then <= at) && wanted(entry)).count()
    };
    let mut resets: BTreeMap<String, usize> = BTreeMap::new();
    for line in log.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        let at = event["at"].as_i64().unwrap_or(i64::MIN);
        let token = text(&event, "token");
        // `<workflow>-<fence>-<chance>`
        let owner = token.rsplitn(3, '-').nth(2).unwrap_or_default();
        match text(&event, "kind") {
            "reset_requested" => {
                let asked = resets.entry(owner.to_owned()).or_default();
                *asked += 1;
                let meant = |entry: &Value| {
                    let checkpoint = &entry["checkpoint"];
                    let reset = if checkpoint["reset"].is_object() { &checkpoint["reset"] } else { checkpoint };
                    text(entry, "event") == "step-checkpointed" && reset["acknowledged"] == false
                };
                if intents(owner, at, &meant) < *asked {
                    against.push(format!("event {}: reset number {asked} for `{token}`, and that was not written down before", event["seq"]));
                }
            }
            "rebuild_requested" => {
                let meant = |entry: &Value| text(entry, "event") == "step-checkpointed" && entry["checkpoint"]["rebuild"]["order"]["token"] == token;
                if intents(owner, at, &meant) == 0 {
                    against.push(format!("event {}: a rebuild is asked for by `{token}`, and that was not written down before", event["seq"]));
                }
            }
            "ticket_staged" => {
                let meant = |entry: &Value| text(entry, "event") == "step-checkpointed" && entry["checkpoint"]["ticket"]["token"] == token;
                if intents(owner, at, &meant) == 0 {
                    against.push(format!("event {}: `{token}` is staged, and was not written down before", event["seq"]));
                }
            }
            "service_disabled" if event["by"] == "caller" => {
                let owner = text(&event, "reason").split(':').nth(1).unwrap_or_default();
                let meant = |entry: &Value| text(entry, "event") == "step-checkpointed" && entry["checkpoint"]["found"].is_object();
                if intents(owner, at, &meant) == 0 {
                    against.push(format!("event {}: {} is closed, and how it was found was not written down before", event["seq"], text(&event, "node")));
                }
            }
            _ => {}
        }
    }
    against
}
