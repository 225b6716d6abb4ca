//! What is not to be done without an operator's word: to stop a tenant's live migration, and to give back a node of which nobody can tell by comparing
//! whether it is whole.
//!
//! It reads the site's own log and the journals as plain JSON, and shares no code with what it judges.

use std::collections::BTreeSet;

use serde_json::Value;

use super::journals::Journals;

/// A site, and what is wrong with its nodes once they are installed.
pub struct Site<'a> {
    pub log: &'a str,
    pub journals: &'a Journals,
    /// Nodes whose clock goes wrong once they are installed: nobody can take that as good.
    pub off: BTreeSet<String>,
    /// Nodes that come back with other disks, VLANs or kernel parameters.
    pub changed: BTreeSet<String>,
    /// Nodes that come back as another compute node of Nova's.
    pub another: BTreeSet<String>,
    /// Nodes that come back under another name.
    pub misnamed: BTreeSet<String>,
    /// Nodes that come back with less memory, or without some of their devices.
    pub short: BTreeSet<String>,
    /// Nodes whose network agent does not come back.
    pub mute: BTreeSet<String>,
    /// Nodes about which an alert fires once they are installed.
    pub alerting: BTreeSet<String>,
    /// Nodes on which no canary starts.
    pub canary: BTreeSet<String>,
}

/// An answer, and what was seen of it by whoever gave it.
struct Answered {
    key: String,
    at: i64,
    seen: Vec<String>,
}

/// A renewal of one node.
struct Renewal<'a> {
    id: &'a str,
    node: String,
    answers: Vec<Answered>,
    /// When it gave the node back.
    succeeded: Option<i64>,
}

/// Everything that was done without the word that it needed.
pub fn judge(site: &Site<'_>) -> Vec<String> {
    let renewals: Vec<Renewal<'_>> = site.journals.iter().filter_map(|(id, entries)| renewal(id, entries)).collect();
    let mut against = Vec::new();
    for renewal in &renewals {
        let Some(succeeded) = renewal.succeeded.filter(|at| opened_by_us(site.log, &renewal.node, *at)) else { continue };
        // Once accepted, it is how the node is found the next time.
        let of_the_node = || renewals.iter().filter(|other| other.node == renewal.node).flat_map(|other| &other.answers);
        let accepted = |words: &[&str]| {
            let says = |line: &String| words.iter().any(|word| line.contains(word));
            of_the_node().any(|answer| answer.key == "accept" && answer.at <= succeeded && answer.seen.iter().any(says))
        };
        for (such, words, how) in [
            (&site.off, &[][..], "with a clock that goes wrong"),
            (&site.changed, &["its data disks", "its PCI devices", "its VLANs", "its kernel's parameters"], "other than it was found"),
            (&site.another, &["compute_id"], "as another compute node"),
            (&site.misnamed, &["host name"][..], "under another name"),
            (&site.short, &["now it offers", " VGPU"], "short of what it had"),
            (&site.mute, &["agent does not report"], "without its network agent"),
            (&site.alerting, &["DiskFailing"], "while an alert fires"),
            (&site.canary, &["turnaround-canary-"], "though no instance starts on it"),
        ] {
            if such.contains(&renewal.node) && !accepted(words) {
                against.push(format!("{} gave {} back {how}, and nobody was asked", renewal.id, renewal.node));
            }
        }
    }
    let mut canaries = Vec::new();
    for line in site.log.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_default();
        // They are no tenant's.
        if event["name"].as_str().is_some_and(|name| name.starts_with("turnaround-canary-")) {
            canaries.push(event["instance"].clone());
        }
        if canaries.contains(&event["instance"]) {
            continue;
        }
        let (at, instance) = (event["at"].as_i64().unwrap_or_default(), event["instance"].as_str().unwrap_or_default());
        let wanted = |answer: &Answered| answer.key == "stop" && answer.at <= at && answer.seen.iter().any(|line| line.contains(instance));
        if event["kind"] == "stop_requested" && !renewals.iter().flat_map(|renewal| &renewal.answers).any(wanted) {
            against.push(format!("the live migration of {instance} was to be stopped at {at}, and no operator had wanted that"));
        }
    }
    against
}

/// Is the node open at that time, and was that not somebody else's doing?
fn opened_by_us(log: &str, node: &str, by: i64) -> bool {
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_it = events.filter(|event| event["node"] == node && event["at"].as_i64().is_some_and(|at| at <= by));
    let mut last = of_it.filter(|event| matches!(event["kind"].as_str(), Some("service_enabled" | "service_disabled")));
    last.next_back().is_some_and(|event| event["kind"] == "service_enabled" && event["by"] == "caller")
}

fn renewal<'a>(id: &'a str, entries: &[(String, String)]) -> Option<Renewal<'a>> {
    let entries: Vec<Value> = entries.iter().map(|(_, body)| serde_json::from_str(body).unwrap_or_default()).collect();
    let is_one = |entry: &&Value| entry["event"] == "created" && matches!(entry["kind"].as_str(), Some("node-os" | "node-os-ironic"));
    let node = entries.iter().find(is_one)?["target"].as_str()?.to_owned();
    let ended = entries.iter().find(|entry| entry["event"] == "ended" && entry["outcome"] == "succeeded");
    Some(Renewal { id, node, answers: answers(&entries), succeeded: ended.and_then(|ended| ended["at"].as_i64()) })
}

fn answers(entries: &[Value]) -> Vec<Answered> {
    let (mut answers, mut seen) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry["event"].as_str() {
            Some("operator-asked") => {
                let lines = entry["question"]["seen"].as_array().into_iter().flatten();
                seen = lines.filter_map(|line| line.as_str().map(str::to_owned)).collect();
            }
            Some("operator-answered") => {
                let (key, at) = (entry["key"].as_str().unwrap_or_default().to_owned(), entry["at"].as_i64().unwrap_or_default());
                answers.push(Answered { key, at, seen: std::mem::take(&mut seen) });
            }
            _ => {}
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OPENED: &str = "{\"kind\":\"service_enabled\",\"node\":\"a\",\"at\":29,\"by\":\"caller\"}\n";
    const STOPPED: &str = r#"{"kind":"stop_requested","at":20,"instance":"i-1","refused":null}"#;

    fn against(log: &str, answer: Option<(&str, &str)>) -> Vec<String> {
        let mut entries = vec![json!({ "event": "created", "kind": "node-os", "target": "a", "at": 1 })];
        if let Some((key, seen)) = answer {
            entries.push(json!({ "event": "operator-asked", "at": 5, "question": { "seen": [seen] } }));
            entries.push(json!({ "event": "operator-answered", "at": 6, "key": key }));
        }
        entries.push(json!({ "event": "ended", "outcome": "succeeded", "at": 30 }));
        let journals = Journals::from([("w".to_owned(), entries.iter().map(|entry| (String::new(), entry.to_string())).collect())]);
        let of_it = BTreeSet::from(["a".to_owned()]);
        judge(&Site { log, journals: &journals, off: BTreeSet::new(), changed: of_it.clone(), another: of_it.clone(), misnamed: of_it.clone(), short: of_it.clone(), mute: of_it.clone(), alerting: of_it.clone(), canary: of_it })
    }

    #[test]
    fn what_is_done_without_an_operators_word_is_told() {
        let all = "its VLANs: x; `compute_id`; host name: x; now it offers y; the-agent does not report; DiskFailing{}; turnaround-canary-w: it did not start";
        assert_eq!(against(OPENED, None).len(), 7);
        assert_eq!(against(OPENED, Some(("retry", all))).len(), 7);
        assert_eq!(against(OPENED, Some(("accept", "host name: x"))).len(), 6);
        assert_eq!(against(OPENED, Some(("accept", "the-agent does not report"))).len(), 6);
        assert!(against(OPENED, Some(("accept", all))).is_empty());
        assert!(against("", None).is_empty(), "it was not opened");
        assert!(against(&OPENED.replace("caller", "other"), None).is_empty(), "it was not opened by us");
        let told = |answer| against(STOPPED, answer).iter().any(|what| what.contains("was to be stopped"));
        assert!(told(None) && told(Some(("retry", "i-1 hangs"))) && told(Some(("stop", "i-2 hangs"))));
        assert!(!told(Some(("stop", "i-1 hangs"))));
    }
}
