//! What is to be done with each instance, told before the first one is moved.

use turnaround_config::{MoveHow, NodeName, Pinned};

use crate::ports::{Instance, MOVE_METADATA, Move};
use crate::updates::{MoveRules, OrderedMoveRule};

/// What is to be done with an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Class {
    Move(Move),
    /// What it is busy with passes by itself.
    Wait { why: String },
    /// A person has to do something first.
    Block { why: String, by: Whom },
}

/// Who can do something about an instance that can't be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    /// Whose instance it is: it may be waited for that.
    Owner,
    Operator,
}

/// What it is busy with, if that passes by itself.
pub(super) fn busy(instance: &Instance) -> Option<&str> {
    // Real Nova lists one that its tenant has deleted as `deleted`, without any task, for some moments before it is gone.
    let passing = matches!(instance.vm_state.as_str(), "building" | "deleted").then_some(instance.vm_state.as_str());
    instance.task_state.as_deref().or(passing)
}

/// Who says how an instance is to be moved.
enum Word {
    Owner,
    /// The rule of that name.
    Rule(String),
    /// `pinned`, or nobody.
    Nobody,
}

/// The word on this instance: its owner's, or else that of the most careful of the site's rules. `Err`: why it can't be followed.
fn word(instance: &Instance, rules: MoveRules<'_>) -> Result<(Word, Option<MoveHow>), String> {
    let how = match instance.owner_wants.as_deref() {
        Some("never") => {
            return Err(format!("is not to be moved, as its owner says (metadata `{MOVE_METADATA}` is `never`): ask {}, its project", instance.project));
        }
        Some("cold") => MoveHow::Cold,
        Some("live") => MoveHow::Live,
        // Perhaps a `never` that was mistyped.
        Some(other) => return Err(format!("has the metadata `{MOVE_METADATA}` = `{other}`, which is none of `live`, `cold` and `never`")),
        None => {
            let about_it = rules.rules.iter().filter(|rule| rule.is_about(instance));
            return Ok(match about_it.min_by_key(|rule| rule.rule.how) {
                Some(OrderedMoveRule { name, rule }) => (Word::Rule(name.clone()), Some(rule.how)),
                None => (Word::Nobody, None),
            });
        }
    };
    Ok((Word::Owner, Some(how)))
}

/// How an instance can be moved, or why it can't. Its owner's word counts more than the site's.
pub(super) fn classify(instance: &Instance, rules: MoveRules<'_>) -> Class {
    if let Some(task) = busy(instance) {
        return Class::Wait { why: format!("is busy ({task})") };
    }
    let block = |why: String| Class::Block { why, by: Whom::Owner };
    let (word, how) = match word(instance, rules) {
        Ok(said) => said,
        Err(why) => return block(why),
    };
    let is_pinned = !instance.pinned_by.is_empty();
    match (instance.vm_state.as_str(), how) {
        ("active" | "paused" | "stopped", Some(MoveHow::Ask)) => {
            let rule = if let Word::Rule(name) = word { name } else { String::new() };
            Class::Block {
                why: format!("is not to be moved without an operator (`moves.{rule}`): move it yourself, or set its metadata `{MOVE_METADATA}` to `live` or `cold`"),
                by: Whom::Operator,
            }
        }
        ("stopped", _) => Class::Move(Move::Cold),
        ("active", Some(MoveHow::Cold)) => Class::Move(Move::Cold),
        ("active" | "paused", Some(MoveHow::Live)) => Class::Move(Move::Live),
        // A site's rule says that it is not to be moved live. (An owner's word only allows that it is stopped.)
        ("paused", Some(MoveHow::Cold)) if let Word::Rule(rule) = &word => {
            block(format!("is to be moved cold (`moves.{rule}`), and Nova does not do that while it is paused: have its owner unpause or stop it"))
        }
        ("active", _) if is_pinned && rules.pinned == Pinned::Cold => Class::Move(Move::Cold),
        ("active" | "paused", _) if !is_pinned => Class::Move(Move::Live),
        ("active", _) => block(format!(
            "{}: have its owner stop it, or set its metadata `{MOVE_METADATA}` to `cold`, and it is moved cold; \
             `pinned = \"cold\"` in [node_os] allows that for every one in later orders",
            has_pinning(instance)
        )),
        // Nova moves cold what runs or is stopped, nothing in between.
        ("paused", _) => block(format!("{}, nor cold while it is paused: have its owner unpause or stop it", has_pinning(instance))),
        ("resized", _) => block("waits for its owner to confirm or revert a resize".to_owned()),
        ("error", _) => Class::Block { why: format!("is in error: {}", instance.fault.as_deref().unwrap_or("Nova gives no reason")), by: Whom::Operator },
        (other, _) => block(format!("can't be moved while it is {other}")),
    }
}

/// By which rule of the site's it is moved, if by one; None where its owner says, or nobody.
fn rule_of(instance: &Instance, rules: MoveRules<'_>) -> Option<String> {
    match word(instance, rules) {
        Ok((Word::Rule(name), _)) => Some(name),
        Ok((Word::Owner | Word::Nobody, _)) | Err(_) => None,
    }
}

fn has_pinning(instance: &Instance) -> String {
    format!("has what can't be moved live ({})", instance.pinned_by.join(", "))
}

/// What is to be done with all of them, in one line.
pub(super) fn summary(node: &NodeName, on_node: &[Instance], rules: MoveRules<'_>) -> String {
    let (mut live, mut cold, mut stopped) = (0, 0, Vec::new());
    let (mut waiting, mut blocked) = (Vec::new(), Vec::new());
    for instance in on_node {
        let told = |why: String| format!("{} {why}", instance.name);
        match classify(instance, rules) {
            Class::Move(Move::Live) => live += 1,
            Class::Move(Move::Cold) => {
                cold += 1;
                if instance.vm_state == "active" {
                    let by_rule = rule_of(instance, rules).map_or(String::new(), |rule| format!(" (`moves.{rule}`)"));
                    stopped.push(format!("{}{by_rule}", instance.name));
                }
            }
            Class::Wait { why } => waiting.push(told(why)),
            Class::Block { why, .. } => blocked.push(told(why)),
        }
    }
    let mut text = format!("move {} instances off {node}: {live} live, {cold} cold", on_node.len());
    for (count, what) in [(waiting.len(), "to wait for"), (blocked.len(), "blocked")] {
        if count > 0 {
            text = format!("{text}, {count} {what}");
        }
    }
    for (which, what) in [(stopped, "stopped for their moves, and started again"), (waiting, "waits for"), (blocked, "blocked")] {
        if !which.is_empty() {
            text = format!("{text}; {what}: {}", which.join("; "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnaround_config::MoveRule;

    use crate::ports::{InstanceId, Room};

    const GPU: &str = "pci_passthrough:alias=h100:1";

    fn instance(vm_state: &str, pinned_by: &[&str], owner_wants: Option<&str>) -> Instance {
        Instance {
            id: InstanceId(format!("{vm_state}-id")),
            name: format!("{vm_state}-one"),
            project: "tenant-a".to_owned(),
            host: Some("gpu-01".to_owned()),
            vm_state: vm_state.to_owned(),
            task_state: None,
            fault: None,
            locked: false,
            takes: Room { vcpus: 4, memory_mb: 8192, disk_gb: None },
            zone: None,
            asks: std::collections::BTreeMap::new(),
            flavor: "gpu.8x".to_owned(),
            pinned_by: pinned_by.iter().map(|&spec| spec.to_owned()).collect(),
            owner_wants: owner_wants.map(str::to_owned),
        }
    }

    fn site(pinned: Pinned) -> MoveRules<'static> {
        MoveRules { pinned, rules: &[] }
    }

    fn classed(instance: &Instance, pinned: Pinned) -> Class {
        classify(instance, site(pinned))
    }

    fn why(class: Class) -> String {
        match class {
            Class::Block { why, .. } | Class::Wait { why } => why,
            Class::Move(how) => panic!("it is moved: {how:?}"),
        }
    }

    #[test]
    fn what_is_not_pinned_moves_live_if_it_runs_and_cold_if_it_is_stopped() {
        for policy in [Pinned::Ask, Pinned::Cold] {
            for (vm_state, how) in [("active", Move::Live), ("paused", Move::Live), ("stopped", Move::Cold)] {
                assert_eq!(classed(&instance(vm_state, &[], None), policy), Class::Move(how), "{vm_state}");
            }
            for vm_state in ["resized", "error", "suspended", "rescued", "shelved"] {
                assert!(matches!(classed(&instance(vm_state, &[], None), policy), Class::Block { .. }), "{vm_state}");
            }
        }
    }

    #[test]
    fn what_is_pinned_is_never_moved_live_and_while_it_runs_only_cold_where_somebody_allows_it() {
        let running = instance("active", &[GPU], None);
        assert_eq!(
            why(classed(&running, Pinned::Ask)),
            "has what can't be moved live (pci_passthrough:alias=h100:1): have its owner stop it, or set its \
             metadata `turnaround:move` to `cold`, and it is moved cold; `pinned = \"cold\"` in [node_os] allows that for every \
             one in later orders"
        );
        assert_eq!(classed(&running, Pinned::Cold), Class::Move(Move::Cold));
        assert_eq!(classed(&instance("active", &[GPU], Some("cold")), Pinned::Ask), Class::Move(Move::Cold));
        assert_eq!(classed(&instance("stopped", &[GPU], None), Pinned::Ask), Class::Move(Move::Cold));
        for policy in [Pinned::Ask, Pinned::Cold] {
            for owner_wants in [None, Some("cold")] {
                let paused = why(classed(&instance("paused", &[GPU], owner_wants), policy));
                assert!(paused.ends_with("nor cold while it is paused: have its owner unpause or stop it"), "{paused}");
            }
        }
    }

    #[test]
    fn an_owners_word_counts_more_than_the_sites() {
        for vm_state in ["active", "paused", "stopped"] {
            for pinned_by in [&[][..], &[GPU]] {
                assert_eq!(
                    why(classed(&instance(vm_state, pinned_by, Some("never")), Pinned::Cold)),
                    "is not to be moved, as its owner says (metadata `turnaround:move` is `never`): ask tenant-a, its project"
                );
                assert_eq!(
                    why(classed(&instance(vm_state, pinned_by, Some("Never")), Pinned::Cold)),
                    "has the metadata `turnaround:move` = `Never`, which is none of `live`, `cold` and `never`"
                );
            }
        }
        assert_eq!(classed(&instance("active", &[], Some("cold")), Pinned::Ask), Class::Move(Move::Cold));
        assert_eq!(classed(&instance("paused", &[], Some("cold")), Pinned::Ask), Class::Move(Move::Live));
    }

    #[test]
    fn what_is_busy_is_waited_for_whatever_else_is_said_of_it() {
        for owner_wants in [None, Some("never")] {
            let mut busy = instance("active", &[GPU], owner_wants);
            busy.task_state = Some("rebooting".to_owned());
            assert_eq!(classed(&busy, Pinned::Ask), Class::Wait { why: "is busy (rebooting)".to_owned() });
        }
    }

    #[test]
    fn the_dry_run_names_every_class_with_its_count_and_what_needs_a_person() {
        let node: NodeName = "gpu-01".parse().unwrap();
        let all = [
            instance("active", &[], None),
            instance("stopped", &[GPU], None),
            instance("active", &["resources:VGPU=1"], Some("cold")),
            instance("building", &[], None),
            instance("paused", &[], Some("never")),
        ];
        assert_eq!(
            summary(&node, &all, site(Pinned::Ask)),
            "move 5 instances off gpu-01: 1 live, 2 cold, 1 to wait for, 1 blocked; \
             stopped for their moves, and started again: active-one; \
             waits for: building-one is busy (building); \
             blocked: paused-one is not to be moved, as its owner says (metadata `turnaround:move` is `never`): ask tenant-a, its project"
        );
        assert_eq!(summary(&node, &all[..1], site(Pinned::Ask)), "move 1 instances off gpu-01: 1 live, 0 cold");
    }

    fn rule(name: &str, flavors: &[&str], projects: &[&str], how: MoveHow) -> OrderedMoveRule {
        let all = |patterns: &[&str]| patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        OrderedMoveRule { name: name.to_owned(), rule: MoveRule { flavors: all(flavors), projects: all(projects), how } }
    }

    #[test]
    fn the_most_careful_rule_of_the_site_counts_and_an_owners_word_more() {
        let rules = [
            rule("all", &["*"], &[], MoveHow::Cold),
            rule("gpus", &["gpu.*"], &[], MoveHow::Live),
            rule("bank", &["gpu.*"], &["tenant-b"], MoveHow::Ask),
            rule("others", &[], &["tenant-c"], MoveHow::Ask),
        ];
        let of = |instance: &Instance| classify(instance, MoveRules { pinned: Pinned::Ask, rules: &rules });
        let mut running = instance("active", &[GPU], None);
        assert_eq!(of(&running), Class::Move(Move::Live), "live, although it is pinned");
        running.flavor = "c4".to_owned();
        assert_eq!(of(&running), Class::Move(Move::Cold), "cold, whatever else");
        (running.flavor, running.project) = ("gpu.8x".to_owned(), "tenant-b".to_owned());
        assert_eq!(
            of(&running),
            Class::Block {
                why: "is not to be moved without an operator (`moves.bank`): move it yourself, or set its metadata `turnaround:move` to `live` or `cold`".to_owned(),
                by: Whom::Operator
            }
        );
        for (wants, how) in [("cold", Move::Cold), ("live", Move::Live)] {
            running.owner_wants = Some(wants.to_owned());
            assert_eq!(of(&running), Class::Move(how));
        }
        let mut paused = instance("paused", &[GPU], None);
        assert_eq!(of(&paused), Class::Move(Move::Live));
        paused.flavor = "c4".to_owned();
        paused.pinned_by.clear();
        assert!(why(of(&paused)).starts_with("is to be moved cold (`moves.all`)"));
        paused.owner_wants = Some("cold".to_owned());
        assert_eq!(of(&paused), Class::Move(Move::Live), "its owner only allows that it is stopped");
        paused.owner_wants = None;
        paused.project = "tenant-c".to_owned();
        assert!(matches!(of(&paused), Class::Block { by: Whom::Operator, .. }));
        let mut stopped = instance("stopped", &[], None);
        assert_eq!(of(&stopped), Class::Move(Move::Cold));
        stopped.project = "tenant-b".to_owned();
        assert!(matches!(of(&stopped), Class::Block { by: Whom::Operator, .. }));
        let node: NodeName = "gpu-01".parse().unwrap();
        let cold = Instance { flavor: "c4".to_owned(), ..instance("active", &[], None) };
        let told = summary(&node, &[cold], MoveRules { pinned: Pinned::Ask, rules: &rules });
        assert_eq!(told, "move 1 instances off gpu-01: 0 live, 1 cold; stopped for their moves, and started again: active-one (`moves.all`)");
    }
}
