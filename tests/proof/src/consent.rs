//! What is not to be done without an operator's word: to stop a tenant's live migration, and to give back a node of which nobody can tell by comparing
//! whether it is whole. And what no word excuses: that a renewal which has ended well has not renewed its node.
//!
//! It reads the site's own log and the journals as plain JSON, and shares no code with what it judges.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::journals::Journals;

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
    /// SHA-256 of what was ordered.
    image: String,
    answers: Vec<Answered>,
    /// When it had ended well.
    succeeded: Option<i64>,
    /// When it gave its node's lock back, after which others may renew it.
    unlocked: Option<i64>,
}

/// Everything that was done without the word that it needed.
pub fn judge(site: &Site<'_>) -> Vec<String> {
    let renewals: Vec<Renewal<'_>> = site.journals.iter().filter_map(|(id, entries)| renewal(id, entries)).collect();
    let log: Vec<Value> = site.log.lines().map(|line| serde_json::from_str(line).unwrap_or_default()).collect();
    let mut against = Vec::new();
    for renewal in &renewals {
        let Some(succeeded) = renewal.succeeded else { continue };
        if let Some(why) = not_renewed(&log, renewal, renewal.unlocked.unwrap_or(succeeded)) {
            against.push(format!("{} has ended well, and has not renewed {}: {why}", renewal.id, renewal.node));
        }
        if !opened_by_us(&log, &renewal.node, succeeded) {
            continue;
        }
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
            (&site.short, &["now it offers", "before it were", " VGPU"], "short of what it had"),
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
    for event in &log {
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

/// What happened last to the node, of these kinds, up to that time.
fn newest<'a>(log: &'a [Value], node: &str, by: i64, kinds: &[&str]) -> Option<&'a Value> {
    let is_one = |event: &&Value| event["node"] == node && event["at"].as_i64().is_some_and(|at| at <= by);
    log.iter().filter(is_one).rfind(|event| event["kind"].as_str().is_some_and(|kind| kinds.contains(&kind)))
}

/// Is the node open at that time, and was that not somebody else's doing?
fn opened_by_us(log: &[Value], node: &str, by: i64) -> bool {
    newest(log, node, by, &["service_enabled", "service_disabled"]).is_some_and(|event| event["kind"] == "service_enabled" && event["by"] == "caller")
}

/// Why what was on the node when its renewal had ended well is not what that has ordered, by what the site has written and started.
fn not_renewed(log: &[Value], renewal: &Renewal<'_>, by: i64) -> Option<String> {
    let Some(written) = newest(log, &renewal.node, by, &["image_written"]) else { return Some("no image was written by then".to_owned()) };
    let token = written["token"].as_str().unwrap_or_default();
    // `<workflow>-<fence>-<chance>`
    if token.rsplitn(3, '-').nth(2) != Some(renewal.id) {
        return Some(format!("the newest image is that of `{token}`"));
    }
    if written["sha256"] != *renewal.image {
        return Some(format!("image {} was written, and {} was ordered", written["sha256"], renewal.image));
    }
    let started = newest(log, &renewal.node, by, &["came_up"]).filter(|started| started["token"] == token);
    started.is_none().then(|| format!("the system of `{token}` is not the one that has come up last"))
}

fn renewal<'a>(id: &'a str, entries: &[(String, String)]) -> Option<Renewal<'a>> {
    let entries: Vec<Value> = entries.iter().map(|(_, body)| serde_json::from_str(body).unwrap_or_default()).collect();
    let is_one = |entry: &&Value| entry["event"] == "created" && matches!(entry["kind"].as_str(), Some("node-os" | "node-os-ironic"));
    let created = entries.iter().find(is_one)?;
    let node = created["target"].as_str()?.to_owned();
    let ordered = &created["input"]["image"];
    let image = if created["kind"] == "node-os-ironic" { &ordered["ironic"]["sha256"] } else { &ordered["sha256"] };
    let image = image.as_str().unwrap_or_default().to_owned();
    let ended = entries.iter().find(|entry| entry["event"] == "ended" && entry["outcome"] == "succeeded");
    let lock = format!("node:{node}");
    let gives = |entry: &&Value| entry["gave"].as_array().into_iter().flatten().any(|gave| gave["lock"]["name"] == *lock);
    let unlocked = entries.iter().find(gives).and_then(|gave| gave["at"].as_i64());
    Some(Renewal { id, node, image, answers: answers(&entries), succeeded: ended.and_then(|ended| ended["at"].as_i64()), unlocked })
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

    fn created(kind: &str) -> Value {
        json!({ "event": "created", "kind": kind, "target": "a", "at": 1, "input": { "image": { "sha256": "5a", "ironic": { "sha256": "1c" } } } })
    }

    fn written(at: i64, token: &str, sha256: &str) -> Value {
        json!({ "kind": "image_written", "node": "a", "at": at, "token": token, "sha256": sha256 })
    }

    fn came_up(at: i64, token: Option<&str>) -> Value {
        json!({ "kind": "came_up", "node": "a", "at": at, "token": token })
    }

    /// The renewal `w` has renewed its node, whatever else happens.
    fn against(rest: &str, answer: Option<(&str, &str)>) -> Vec<String> {
        let log = &format!("{}\n{}\n{rest}", written(10, "w-1-c", "5a"), came_up(11, Some("w-1-c")));
        let mut entries = vec![created("node-os")];
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
        let all = "its VLANs: x; `compute_id`; host name: x; now it offers y; it offers z, before it were y; the-agent does not report; DiskFailing{}; turnaround-canary-w: it did not start";
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

    /// What is told of the renewal `w` of this kind, which ends so at 30, by what the site has seen.
    fn renewed(kind: &str, outcome: &str, log: &[Value]) -> String {
        of(&[created(kind), json!({ "event": "ended", "outcome": outcome, "at": 30 })], log)
    }

    fn of(entries: &[Value], log: &[Value]) -> String {
        let journals = Journals::from([("w".to_owned(), entries.iter().map(|entry| (String::new(), entry.to_string())).collect())]);
        let log: String = log.iter().map(|event| format!("{event}\n")).collect();
        let none = BTreeSet::new;
        let (off, changed, another, misnamed) = (none(), none(), none(), none());
        judge(&Site { log: &log, journals: &journals, off, changed, another, misnamed, short: none(), mute: none(), alerting: none(), canary: none() }).join("; ")
    }

    #[test]
    fn a_renewal_that_has_ended_well_has_renewed_its_node() {
        let told = |log: &[Value]| renewed("node-os", "succeeded", log);
        let ours = || [written(10, "w-1-c", "5a"), came_up(11, Some("w-1-c"))];
        // At first the old system came up once more; and later it is another renewal's turn.
        assert_eq!(told(&[&[came_up(5, None)][..], &ours(), &[written(40, "v-1-d", "77"), came_up(41, Some("v-1-d"))]].concat()), "");
        let [image, up] = ours();
        for (why, log) in [
            ("no image was written by then", vec![up.clone()]),
            ("no image was written by then", vec![written(31, "w-1-c", "5a"), up.clone()]),
            ("the newest image is that of `v-1-d`", [&ours()[..], &[written(20, "v-1-d", "5a")]].concat()),
            // (One whose name begins as ours does.)
            ("the newest image is that of `w-x-1-c`", vec![written(10, "w-x-1-c", "5a"), came_up(11, Some("w-x-1-c"))]),
            ("image \"00\" was written, and 5a was ordered", vec![written(10, "w-1-c", "00"), up.clone()]),
            ("the system of `w-1-c` is not the one that has come up last", vec![image.clone()]),
            ("the system of `w-1-c` is not the one that has come up last", vec![image.clone(), up.clone(), came_up(12, None)]),
            ("the system of `w-1-c` is not the one that has come up last", vec![image, came_up(31, Some("w-1-c"))]),
        ] {
            assert_eq!(told(&log), format!("w has ended well, and has not renewed a: {why}"), "{log:?}");
        }
    }

    #[test]
    fn once_it_has_given_its_node_back_another_renewal_may_have_it() {
        let ends = |gave: Value| [created("node-os"), json!({ "event": "step-succeeded", "step": "reopen", "at": 15, "gave": gave }), json!({ "event": "ended", "outcome": "succeeded", "at": 30 })];
        let log = [written(10, "w-1-c", "5a"), came_up(11, Some("w-1-c")), written(20, "v-1-d", "5a"), came_up(21, Some("v-1-d"))];
        assert_eq!(of(&ends(json!([{ "lock": { "name": "node:a" } }])), &log), "");
        assert!(of(&ends(json!([])), &log).ends_with("the newest image is that of `v-1-d`"));
    }

    #[test]
    fn only_who_has_ended_well_has_to_have_renewed_its_node_and_with_the_image_of_its_own_way() {
        assert_eq!(renewed("node-os", "failed", &[]), "");
        assert_eq!(renewed("survey", "succeeded", &[]), "");
        let by_ironic = |sha256: &str| renewed("node-os-ironic", "succeeded", &[written(10, "w-1-c", sha256), came_up(11, Some("w-1-c"))]);
        assert_eq!(by_ironic("1c"), "");
        assert!(by_ironic("5a").ends_with("image \"5a\" was written, and 1c was ordered"), "{}", by_ironic("5a"));
    }
}
