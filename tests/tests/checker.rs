//! Histories written by hand, good and bad: the checker flags each bad one by the right rule, and no good one.
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};
use turnaround_proof::checker::{Rule, Rules, check, judge};

/// Three nodes, `a` with the instances `a1` and `a2`, `b` and `c` empty; `d` was disabled by somebody before.
fn start() -> Value {
    let node = |name: &str, instances: Value, reason: Option<&str>| json!({ "node": name, "enabled": reason.is_none(), "disabled_reason": reason, "os_version_id": "22.04", "instances": instances });
    let nodes = [
        node("a", json!(["a1", "a2"]), None),
        node("b", json!([]), None),
        node("c", json!([]), None),
        node("d", json!([]), Some("broken fan")),
    ];
    json!({ "kind": "site_started", "seed": 1, "nodes": nodes })
}

fn close(node: &str) -> Value {
    json!({ "kind": "service_disabled", "node": node, "reason": "turnaround:x", "was_enabled": true, "by": "caller" })
}
fn open(node: &str) -> Value {
    json!({ "kind": "service_enabled", "node": node, "was_enabled": false, "by": "caller" })
}
fn closed_by_others(node: &str) -> Value {
    json!({ "kind": "service_disabled", "node": node, "reason": "DIMM", "was_enabled": true, "by": "other" })
}
fn ask(instance: &str, node: &str, request: &str) -> Value {
    json!({ "kind": "migration_requested", "instance": instance, "node": node, "how": "live", "request": request, "under_way": false, "refused": null })
}
fn arrives(instance: &str, from: &str, to: &str) -> Value {
    json!({ "kind": "instance_moved", "instance": instance, "from": from, "to": to })
}
fn ended(instance: &str, request: &str) -> Value {
    json!({ "kind": "migration_ended", "instance": instance, "request": request, "from": "a", "to": "b", "status": "completed", "reason": null })
}
fn moved(instance: &str, from: &str, to: &str) -> Vec<Value> {
    vec![ask(instance, from, instance), arrives(instance, from, to), ended(instance, instance)]
}
fn staged(node: &str, token: &str) -> Value {
    json!({ "kind": "ticket_staged", "node": node, "token": token, "image": "new", "sha256": "00" })
}
fn withdrawn(node: &str) -> Value {
    json!({ "kind": "ticket_withdrawn", "node": node, "token": null })
}
fn reset(node: &str, token: &str) -> Value {
    json!({ "kind": "reset_requested", "node": node, "token": token, "instances": [], "enabled": false, "obeyed": true })
}
fn rebuild(node: &str, token: &str, refused: Value) -> Value {
    json!({ "kind": "rebuild_requested", "node": node, "token": token, "instances": [], "enabled": false, "refused": refused })
}
/// The same, where Nova has `x1` on its way from or to the node, since then.
fn touched(mut event: Value, since: i64) -> Value {
    event["touching"] = json!([{ "instance": "x1", "kind": "resize", "since": since }]);
    event
}
fn opened_by_others(node: &str) -> Value {
    json!({ "kind": "service_enabled", "node": node, "was_enabled": false, "by": "other" })
}
/// So many seconds in which nothing happens that matters.
fn seconds(count: usize) -> Vec<Value> {
    vec![of("boot_override", "d"); count]
}
fn of(kind: &str, node: &str) -> Value {
    json!({ "kind": kind, "node": node })
}
fn image(node: &str, token: &str) -> Value {
    json!({ "kind": "image_written", "node": node, "token": token, "image": "new", "sha256": "00", "instances": [], "enabled": false })
}
fn back(node: &str) -> Vec<Value> {
    vec![
        of("power_lost", node),
        of("service_down", node),
        of("power_back", node),
        of("came_up", node),
        of("service_up", node),
    ]
}

/// A node that is empty and closed is renewed and opened again.
fn renewed(node: &str, token: &str) -> Vec<Value> {
    let mut events = vec![staged(node, token), reset(node, token), of("power_lost", node), of("service_down", node)];
    events.extend([of("power_back", node), of("netbooted", node), image(node, token), of("came_up", node)]);
    events.extend([of("service_up", node), withdrawn(node), open(node)]);
    events
}

/// What belongs into a history: one event, or several.
trait Events {
    fn events(self) -> Vec<Value>;
}
impl Events for Value {
    fn events(self) -> Vec<Value> {
        vec![self]
    }
}
impl Events for Vec<Value> {
    fn events(self) -> Vec<Value> {
        self
    }
}

fn log(events: Vec<Value>) -> String {
    let mut lines = String::new();
    for (index, mut event) in events.into_iter().enumerate() {
        event["seq"] = json!(index + 1);
        event["at"] = json!(1_000 * index);
        lines += &format!("{event}\n");
    }
    lines
}

macro_rules! history {
    ($($events:expr),* $(,)?) => {{
        let events: Vec<Vec<Value>> = vec![vec![start()], $(Events::events($events)),*];
        log(events.into_iter().flatten().collect())
    }};
}

/// Empties `a` and closes it.
fn emptied() -> Vec<Value> {
    let mut events = vec![close("a")];
    events.extend(moved("a1", "a", "b"));
    events.extend(moved("a2", "a", "b"));
    events
}

fn rules() -> Rules {
    Rules { out_max: 1, ..Rules::default() }
}

#[track_caller]
fn good(history: &str) {
    good_by(history, &rules());
}

#[track_caller]
fn good_by(history: &str, rules: &Rules) {
    let violations = judge(history, rules);
    assert_eq!(violations, [], "{history}");
}

/// Exactly this rule is broken, and no other.
#[track_caller]
fn bad(rule: Rule, history: &str) {
    let mut broken: Vec<Rule> = judge(history, &rules()).iter().map(|violation| violation.rule).collect();
    broken.dedup();
    assert_eq!(broken, [rule], "{history}");
}

#[test]
fn a_site_to_which_nothing_was_done_is_as_it_was() {
    good(&history![]);
}

#[test]
fn a_node_may_be_emptied_renewed_and_opened() {
    good(&history![emptied(), renewed("a", "t1")]);
}

#[test]
fn one_node_after_the_other_may_be_renewed() {
    let back_again =
        || [close("b")].into_iter().chain(moved("a1", "b", "c")).chain(moved("a2", "b", "c")).collect::<Vec<_>>();
    good(&history![emptied(), renewed("a", "t1"), back_again(), renewed("b", "t2")]);
}

#[test]
fn a_move_that_failed_may_be_tried_again() {
    good(&history![
        close("a"),
        ask("a1", "a", "r1"),
        ended("a1", "r1"),
        ask("a1", "a", "r2"),
        ended("a1", "r2"),
        open("a")
    ]);
}

#[test]
fn a_refused_move_is_none() {
    let mut refused = ask("a1", "a", "r1");
    refused["refused"] = json!("it is pinned");
    good(&history![close("a"), refused, ask("a1", "a", "r2"), ended("a1", "r2"), open("a")]);
}

#[test]
fn a_bmc_that_did_nothing_may_be_asked_again() {
    let mut ignored = reset("b", "t1");
    ignored["obeyed"] = json!(false);
    good(&history![close("b"), staged("b", "t1"), ignored, renewed("b", "t1")]);
}

#[test]
fn another_order_may_reset_again() {
    good(&history![close("b"), staged("b", "t1"), reset("b", "t1"), back("b"), renewed("b", "t2")]);
}

#[test]
fn a_node_that_somebody_closed_may_be_renewed_and_stays_closed() {
    let mut events = renewed("d", "t1");
    events.pop();
    good(&history![events]);
}

#[test]
fn a_node_that_somebody_closed_meanwhile_stays_closed() {
    good(&history![close("b"), closed_by_others("b")]);
}

#[test]
fn a_node_that_crashed_by_itself_is_nobodys_doing() {
    good(&history![of("node_crashed", "c"), of("service_down", "c")]);
}

#[test]
fn an_instance_that_a_tenant_deletes_is_not_lost() {
    let deleted = |id: &str, by: &str| json!({ "kind": "instance_deleted", "instance": id, "name": id, "node": "a", "by": by });
    good(&history![close("a"), ask("a1", "a", "r1"), deleted("a1", "other"), deleted("a2", "other"), renewed("a", "t1")]);
    bad(Rule::NothingIsLost, &history![close("a"), ask("a1", "a", "r1"), deleted("a1", "other"), deleted("a2", "caller"), renewed("a", "t1")]);
}

#[test]
fn only_canaries_are_ours_to_delete() {
    let created = |name: &str| json!({ "kind": "instance_created", "instance": "x1", "name": name, "node": "b" });
    let deleted = |name: &str, by: &str| json!({ "kind": "instance_deleted", "instance": "x1", "name": name, "node": "b", "by": by });
    let canary = "turnaround-canary-x";
    good(&history![created(canary), deleted(canary, "caller")]);
    good(&history![created("late"), deleted("late", "other")]);
    bad(Rule::NothingIsLost, &history![created("late"), deleted("late", "caller")]);
    // One that found no host is not seen to be created.
    good(&history![deleted(canary, "caller")]);
    bad(Rule::NothingIsLost, &history![deleted("late", "caller")]);
}

#[test]
fn an_open_question_excuses_its_node_and_no_other() {
    let history =
        history![close("b"), staged("b", "t1"), reset("b", "t1"), of("power_lost", "b"), of("service_down", "b")];
    let asked = Rules { open_questions: ["b".to_owned()].into(), ..rules() };
    good_by(&history, &asked);
    let other = Rules { open_questions: ["c".to_owned()].into(), ..rules() };
    let broken: Vec<Rule> = judge(&history, &other).iter().map(|violation| violation.rule).collect();
    assert_eq!(broken, [Rule::LeftAsFound, Rule::LeftAsFound, Rule::NoOrderStays]);
}

#[test]
fn an_operator_may_order_one_more_reset() {
    let history = history![close("b"), staged("b", "t1"), reset("b", "t1"), back("b"), renewed("b", "t1")];
    bad(Rule::OneResetAnOrder, &history);
    good_by(&history, &Rules { resets_again: [("b".to_owned(), 1)].into(), ..rules() });
}

#[test]
fn moving_back_may_be_allowed() {
    let history = history![emptied(), renewed("a", "t1"), moved("a1", "b", "a")];
    bad(Rule::MovesOnlyOffClosedNodes, &history);
    good_by(&history, &Rules { moves_back: true, ..rules() });
}

#[test]
fn two_nodes_may_be_out_where_two_may() {
    let history = history![close("b"), close("c"), open("b"), open("c")];
    bad(Rule::NotTooManyOut, &history);
    good_by(&history, &Rules { out_max: 2, ..rules() });
}

#[test]
fn what_others_do_may_be_excused() {
    let others = Rules { only_own_count: true, ..rules() };
    good_by(&history![of("node_crashed", "c"), of("service_down", "c"), close("b"), open("b")], &others);
    good_by(&history![closed_by_others("c"), close("b"), open("b")], &others);
    let installing = vec![close("b"), reset("b", "t1"), of("power_lost", "b")];
    good(&history![installing, opened_by_others("b"), image("b", "t1"), of("service_up", "b")]);
    good(&history![close("a"), opened_by_others("a"), ask("a1", "a", "r1")]);
    bad(Rule::OnlyClosedNodesAreTaken, &history![close("b"), opened_by_others("b"), reset("b", "t1"), of("service_up", "b")]);
}

#[test]
fn a_node_that_was_closed_already_is_out_by_our_doing_only_while_we_have_it_down() {
    let mut renewal = renewed("d", "t1");
    renewal.pop();
    good(&history![renewal, close("b"), open("b")]);
}

#[test]
fn what_an_operator_said_to_leave_is_left() {
    let left = Rules { left_by_operators: ["c".to_owned()].into(), ..rules() };
    good_by(&history![close("c")], &left);
    let mut broken = judge(&history![close("c"), close("b"), open("b")], &left);
    assert_eq!(broken.pop().map(|violation| violation.rule), Some(Rule::NotTooManyOut), "it goes on counting as out");
}

#[test]
fn a_second_move_while_one_is_under_way() {
    bad(
        Rule::OneMoveAtATime,
        &history![
            close("a"),
            ask("a1", "a", "r1"),
            ask("a1", "a", "r2"),
            ended("a1", "r1"),
            ended("a1", "r2"),
            open("a")
        ],
    );
}

#[test]
fn a_second_move_that_was_refused_was_asked_for_all_the_same() {
    let mut refused = ask("a1", "a", "r2");
    refused["refused"] = json!("task_state migrating");
    bad(Rule::OneMoveAtATime, &history![close("a"), ask("a1", "a", "r1"), refused.clone(), ended("a1", "r1"), open("a")]);
    // Of a canary, one workflow asks to try its node, and another one as it empties that where the canary was made: Nova refuses one of them.
    let canary = json!({ "kind": "instance_created", "instance": "a3", "name": "turnaround-canary-x", "node": "a" });
    (refused["instance"], refused["to"]) = (json!("a3"), json!("b"));
    let asked = |second: Value| history![canary.clone(), close("a"), ask("a3", "a", "r1"), second, ended("a3", "r1"), open("a")];
    assert_eq!(judge(&asked(refused.clone()), &rules()), []);
    let (mut taken, mut again) = (refused.clone(), refused);
    taken["refused"] = json!(null);
    again["to"] = json!(null);
    bad(Rule::OneMoveAtATime, &asked(taken));
    bad(Rule::OneMoveAtATime, &asked(again));
}

#[test]
fn a_second_move_before_the_first_is_over_though_it_has_arrived() {
    let rest = vec![ended("a1", "r1"), ended("a1", "r2"), open("a")];
    let history = history![close("a"), ask("a1", "a", "r1"), arrives("a1", "a", "b"), ask("a1", "a", "r2"), rest];
    bad(Rule::OneMoveAtATime, &history);
}

#[test]
fn a_move_of_what_had_left_already() {
    bad(Rule::MovesOnlyOffClosedNodes, &history![emptied(), moved("a1", "b", "c"), renewed("a", "t1")]);
}

#[test]
fn a_move_before_the_node_is_closed() {
    bad(Rule::MovesOnlyOffClosedNodes, &history![moved("a1", "a", "b")]);
}

#[test]
fn an_instance_that_leaves_a_closed_node_twice() {
    // Somebody has moved it back; or it is another time.
    bad(Rule::MovesOnce, &history![close("a"), moved("a1", "a", "b"), arrives("a1", "b", "a"), moved("a1", "a", "b"), open("a")]);
    good(&history![close("a"), moved("a1", "a", "b"), open("a"), arrives("a1", "b", "a"), close("a"), moved("a1", "a", "b"), open("a")]);
}

#[test]
fn a_tenants_resize_that_was_confirmed() {
    bad(
        Rule::ConfirmsOnlyOwnMoves,
        &history![json!({ "kind": "confirm_requested", "instance": "a1", "of": "resize", "refused": null })],
    );
    good(&history![json!({ "kind": "confirm_requested", "instance": "a1", "of": "cold", "refused": null })]);
}

#[test]
fn a_second_reset_for_one_order() {
    bad(Rule::OneResetAnOrder, &history![close("b"), staged("b", "t1"), reset("b", "t1"), renewed("b", "t1")]);
}

#[test]
fn a_second_image_for_one_order() {
    let twice = vec![image("b", "t1"), image("b", "t1")];
    bad(
        Rule::OneImageAnOrder,
        &history![
            close("b"),
            staged("b", "t1"),
            reset("b", "t1"),
            of("power_lost", "b"),
            twice,
            back("b"),
            withdrawn("b"),
            open("b")
        ],
    );
}

#[test]
fn a_reset_of_a_node_with_instances() {
    bad(
        Rule::NothingIsLost,
        &history![close("a"), staged("a", "t1"), reset("a", "t1"), back("a"), withdrawn("a"), open("a")],
    );
}

#[test]
fn two_runs_of_the_setup_script_at_a_time() {
    let begins = |run: &str| json!({ "kind": "script_started", "run": run, "node": "a" });
    let ends = |run: &str| json!({ "kind": "script_ended", "run": run, "node": "a", "code": 0, "did": true });
    good(&history![begins("r1"), ends("r1"), begins("r2"), ends("r2")]);
    bad(Rule::OneScriptAtATime, &history![begins("r1"), begins("r2"), ends("r1"), ends("r2")]);
    bad(Rule::LogIsWhole, &history![begins("r1"), ends("r1"), ends("r1")]);
}

#[test]
fn nodes_of_the_kubernetes_cluster_are_drained_first_one_at_a_time_and_given_back() {
    let node = |name: &str, instance: &str, cordoned: bool| json!({ "kind": "cluster_node_started", "cluster_node": name, "instance": instance, "cordoned": cordoned });
    let began = || vec![node("k1", "a1", false), node("k2", "x2", false), node("k3", "x3", true), pod("pod_started")];
    fn pod(kind: &str) -> Value {
        json!({ "kind": kind, "pod": "web", "cluster_node": "k1" })
    }
    let cordon = |name: &str| json!({ "kind": "node_cordoned", "cluster_node": name, "mark": "turnaround:r.a", "by": "caller" });
    let uncordon = |name: &str| json!({ "kind": "node_uncordoned", "cluster_node": name, "by": "caller" });
    let gone = || pod("pod_ended");
    let moves = || [vec![close("a")], moved("a1", "a", "b"), vec![open("a")]].concat();
    good(&history![began(), cordon("k1"), gone(), moves(), uncordon("k1")]);
    bad(Rule::DrainedBeforeMoved, &history![began(), gone(), moves()]);
    bad(Rule::DrainedBeforeMoved, &history![began(), cordon("k1"), moves(), uncordon("k1")]);
    bad(Rule::OneClusterNodeAtATime, &history![began(), cordon("k1"), cordon("k2"), uncordon("k1"), uncordon("k2")]);
    bad(Rule::LeftAsFound, &history![began(), cordon("k1")]);
    bad(Rule::OthersClosuresStay, &history![began(), uncordon("k3"), cordon("k3"), json!({ "kind": "node_cordoned", "cluster_node": "k3", "mark": null, "by": "other" })]);
    bad(Rule::LogIsWhole, &history![began(), cordon("k4")]);
    let asked = Rules { open_questions: ["a".to_owned()].into(), ..rules() };
    assert_eq!(judge(&history![began(), cordon("k1")], &asked), []);
    let another = Rules { open_questions: ["b".to_owned()].into(), ..rules() };
    assert_eq!(judge(&history![began(), cordon("k1")], &another).len(), 1);
}

#[test]
fn an_image_on_a_node_with_instances() {
    let late = json!({ "kind": "instance_created", "instance": "new", "name": "new", "node": "b" });
    bad(
        Rule::NothingIsLost,
        &history![
            close("b"),
            staged("b", "t1"),
            reset("b", "t1"),
            late,
            image("b", "t1"),
            back("b"),
            withdrawn("b"),
            open("b")
        ],
    );
}

#[test]
fn an_image_on_instances_of_which_only_the_node_knew() {
    let mut written = image("b", "t1");
    written["instances"] = json!(["ghost"]);
    bad(Rule::NothingIsLost, &history![close("b"), written, open("b")]);
}

#[test]
fn a_reset_while_a_migration_is_not_wholly_over() {
    let leaving = vec![ask("a1", "a", "r1"), arrives("a1", "a", "b")];
    let over = vec![ended("a1", "r1")];
    bad(
        Rule::NothingIsLost,
        &history![
            close("a"),
            moved("a2", "a", "b"),
            leaving,
            staged("a", "t1"),
            reset("a", "t1"),
            over,
            back("a"),
            withdrawn("a"),
            open("a")
        ],
    );
}

/// Whether it is another of our workflows that moves it, or its tenant: of neither is anything asked for off this node.
#[test]
fn what_is_on_its_way_from_or_to_a_node_that_is_reset_rebuilt_or_written_to() {
    let (ticket, taken) = (|| staged("b", "t1"), || reset("b", "t1"));
    let rest = || [back("b"), vec![withdrawn("b"), open("b")]].concat();
    good(&history![close("b"), ticket(), taken(), image("b", "t1"), rest()]);
    bad(Rule::NothingIsLost, &history![close("b"), ticket(), touched(taken(), 0), image("b", "t1"), rest()]);
    // A virtual machine of which Nova has never heard.
    let beside = |mut event: Value| {
        event["unknown_guest"] = json!("u1");
        event
    };
    bad(Rule::NothingIsLost, &history![close("b"), ticket(), beside(taken()), image("b", "t1"), rest()]);
    bad(Rule::NothingIsLost, &history![close("b"), beside(rebuild("b", "w-1-a", json!(null))), rest()]);
    bad(Rule::NothingIsLost, &history![close("b"), ticket(), taken(), touched(image("b", "t1"), 0), rest()]);
    good(&history![close("b"), rebuild("b", "w-1-a", json!(null)), rest()]);
    bad(Rule::NothingIsLost, &history![close("b"), touched(rebuild("b", "w-1-a", json!(null)), 0), rest()]);
    // Nor one to be asked for, whatever becomes of it.
    bad(Rule::NothingIsLost, &history![close("b"), touched(rebuild("b", "w-1-a", json!("409")), 0), open("b")]);
    let mut ignored = touched(taken(), 0);
    ignored["obeyed"] = json!(false);
    bad(Rule::NothingIsLost, &history![close("b"), ticket(), ignored, withdrawn("b"), open("b")]);
}

/// Events are a second apart: `b` is opened 2 s after the beginning, and reset 2 s later, or so much more. A look is good for 3 s.
#[test]
fn what_comes_to_a_node_that_was_opened_since_the_look_could_not_be_known_and_nothing_else_could_not() {
    let excused = Rules { look_is_good_for_ms: 3_000, ..rules() };
    let told = |opened: Value, waits: usize, since: i64| {
        let mut renewal = renewed("b", "t1");
        // It is open already.
        renewal.pop();
        let ticket = renewal.remove(0);
        renewal[0] = touched(renewal[0].clone(), since);
        let history = history![close("b"), opened, ticket, seconds(waits), renewal];
        let mut broken: Vec<Rule> = judge(&history, &excused).iter().map(|violation| violation.rule).collect();
        broken.sort();
        broken
    };
    let opened = || opened_by_others("b");
    assert_eq!(told(opened(), 0, 2_500), []);
    assert_eq!(told(opened(), 0, 1_001), [], "so narrowly");
    assert_eq!(told(opened(), 0, 1_000), [Rule::NothingIsLost], "it has been on its way for longer");
    assert_eq!(told(opened(), 2, 5_000), [Rule::NothingIsLost, Rule::OnlyClosedNodesAreTaken], "it has been open for longer");
    // Nobody has opened it: how could it come?
    let still_closed = json!({ "kind": "service_disabled", "node": "b", "reason": "DIMM", "was_enabled": false, "by": "other" });
    assert_eq!(told(still_closed, 0, 2_500), [Rule::NothingIsLost]);
}

#[test]
fn instances_that_the_site_lost() {
    bad(
        Rule::NothingIsLost,
        &history![json!({ "kind": "instances_lost", "node": "a", "instances": ["a1"], "why": "power" })],
    );
}

#[test]
fn a_reset_of_a_node_that_is_in_service() {
    bad(Rule::OnlyClosedNodesAreTaken, &history![reset("b", "t1"), back("b")]);
}

#[test]
fn an_image_on_a_node_that_is_in_service() {
    bad(Rule::OnlyClosedNodesAreTaken, &history![close("b"), reset("b", "t1"), back("b"), open("b"), image("b", "t1")]);
}

#[test]
fn one_node_too_many_besides_one_that_failed_by_itself() {
    bad(Rule::NotTooManyOut, &history![of("node_crashed", "c"), of("service_down", "c"), close("b"), open("b")]);
}

#[test]
fn one_node_too_many_besides_one_that_is_still_installing() {
    let early = vec![close("b"), reset("b", "t1"), of("power_lost", "b"), open("b")];
    bad(Rule::NotTooManyOut, &history![early, close("c"), open("c"), of("power_back", "b"), of("service_up", "b")]);
}

#[test]
fn one_node_too_many_besides_one_that_others_closed() {
    bad(Rule::NotTooManyOut, &history![closed_by_others("c"), close("b"), open("b")]);
}

/// That others open or close a node which we have down, or that it crashes then, does not make it out by their doing; nor is one any more that had crashed before.
#[test]
fn a_node_that_we_have_down_counts_whatever_others_do_to_it() {
    let others = Rules { only_own_count: true, ..rules() };
    let told = |history: &str| {
        let mut broken: Vec<Rule> = judge(history, &others).iter().map(|violation| violation.rule).collect();
        broken.dedup();
        broken
    };
    let back = || vec![of("power_back", "b"), of("service_up", "b")];
    let another = || vec![close("c"), open("c")];
    fn by_reset() -> Vec<Value> {
        vec![reset("b", "t1"), of("power_lost", "b"), of("service_down", "b")]
    }
    fn by_ironic() -> Vec<Value> {
        vec![rebuild("b", "w-1-a", json!(null)), of("power_lost", "b"), of("service_down", "b")]
    }
    for down in [by_reset, by_ironic] {
        for meanwhile in [opened_by_others("b"), closed_by_others("b"), of("node_crashed", "b")] {
            // What others have opened or closed stays so, and what they have not is ours to open.
            let last = || if meanwhile["kind"] == "node_crashed" { vec![open("b")] } else { Vec::new() };
            let down_still = history![close("b"), down(), meanwhile.clone(), another(), back(), last()];
            assert_eq!(told(&down_still), [Rule::NotTooManyOut], "{down_still}");
            if meanwhile["kind"] != "node_crashed" {
                let up_again = history![close("b"), down(), meanwhile.clone(), back(), another()];
                assert_eq!(told(&up_again), [], "{up_again}");
            }
        }
        // It had crashed before.
        let crashed = || vec![of("node_crashed", "b"), of("service_down", "b"), close("b")];
        let taken = history![crashed(), down(), another(), back(), open("b")];
        assert_eq!(told(&taken), [Rule::NotTooManyOut], "{taken}");
        let left_down = history![crashed(), down(), open("b")];
        assert_eq!(told(&left_down), [Rule::LeftAsFound], "{left_down}");
    }
    // Nobody has taken it down.
    let mut ignored = reset("b", "t1");
    ignored["obeyed"] = json!(false);
    for nothing in [ignored, rebuild("b", "w-1-a", json!("409"))] {
        let only_crashed = history![of("node_crashed", "b"), of("service_down", "b"), close("b"), nothing, another(), open("b")];
        assert_eq!(told(&only_crashed), [], "{only_crashed}");
    }
}

/// Events are a second apart.
#[test]
fn a_move_off_a_node_that_others_have_opened_could_not_know_for_seventy_seconds() {
    let asked_after = |waits: usize| history![close("a"), opened_by_others("a"), seconds(waits - 1), ask("a1", "a", "r1")];
    good(&asked_after(1));
    good(&asked_after(69));
    bad(Rule::MovesOnlyOffClosedNodes, &asked_after(70));
}

#[test]
fn one_node_too_many_by_work_on_one_that_was_out_already() {
    bad(Rule::NotTooManyOut, &history![close("b"), reset("d", "t1"), back("d"), open("b")]);
}

#[test]
fn a_node_that_somebody_else_had_closed_is_opened() {
    let mut broken: Vec<Rule> = judge(&history![open("d")], &rules()).iter().map(|violation| violation.rule).collect();
    broken.sort();
    assert_eq!(broken, [Rule::OthersClosuresStay, Rule::LeftAsFound]);
    let history = history![close("b"), closed_by_others("b"), open("b")];
    assert_eq!(judge(&history, &rules())[0].rule, Rule::OthersClosuresStay);
}

/// Events are a second apart: enabled one second after it was disabled, and three; and a word that is written over.
#[test]
fn who_disables_a_node_in_the_moment_in_which_it_is_enabled_could_not_be_heard_and_who_did_so_earlier_could() {
    let excused = Rules { look_is_good_for_ms: 2_000, ..rules() };
    good_by(&history![close("b"), closed_by_others("b"), open("b")], &excused);
    let written_over = json!({ "kind": "service_disabled", "node": "b", "reason": "turnaround:w", "was_enabled": false, "by": "caller" });
    good_by(&history![closed_by_others("b"), written_over.clone(), of("boot_override", "a"), of("boot_override", "a"), open("b")], &excused);
    let earlier = history![closed_by_others("b"), of("boot_override", "a"), of("boot_override", "a"), written_over, open("b")];
    assert_eq!(judge(&earlier, &excused)[0].rule, Rule::OthersClosuresStay);
    let earlier = history![close("b"), closed_by_others("b"), of("boot_override", "a"), of("boot_override", "a"), open("b")];
    assert_eq!(judge(&earlier, &excused)[0].rule, Rule::OthersClosuresStay);
}

#[test]
fn a_node_that_stays_closed() {
    bad(Rule::LeftAsFound, &history![close("b")]);
}

#[test]
fn a_reason_of_somebody_else_that_is_written_over() {
    bad(Rule::LeftAsFound, &history![close("d")]);
}

#[test]
fn a_node_that_stays_down() {
    let down = vec![reset("b", "t1"), of("power_lost", "b"), of("service_down", "b")];
    bad(Rule::LeftAsFound, &history![close("b"), down, open("b")]);
}

#[test]
fn an_order_that_stays() {
    bad(Rule::NoOrderStays, &history![staged("b", "t1")]);
}

#[test]
fn a_log_that_is_not_whole() {
    bad(Rule::LogIsWhole, "");
    bad(Rule::LogIsWhole, &format!("{}{{\"seq\":", history![]));
    bad(Rule::LogIsWhole, &history![json!({ "kind": "asteroid" })]);
    bad(Rule::LogIsWhole, &history![of("power_lost", "nobody"), of("came_up", "nobody")]);
    bad(Rule::LogIsWhole, &history![arrives("a1", "c", "b")]);
    bad(Rule::LogIsWhole, &history![start()]);
    let whole = history![close("b"), open("b"), close("b"), open("b")];
    let gap: Vec<&str> = whole.lines().enumerate().filter(|(index, _)| *index != 2).map(|(_, line)| line).collect();
    bad(Rule::LogIsWhole, &gap.join("\n"));
    bad(Rule::LogIsWhole, &history![close("b"), open("b")].replace("\"at\":1000", "\"at\":5000"));
}

#[test]
fn a_violation_is_told_in_a_sentence() {
    let told = check(&history![close("b"), close("c"), open("b")], 1);
    let expected = [
        "NotTooManyOut: event 3: c is taken out of service as number 2 of at most 1: b, c",
        "LeftAsFound: at the end: c is disabled (turnaround:x), and was enabled",
    ];
    assert_eq!(told, expected);
}

/// The log of a real simulated site, to which things were done through its ports.
mod of_a_simulated_site {
    use std::sync::Arc;
    use std::time::Duration;

    use turnaround_proof::checker::{Rule, Rules, judge};
    use turnaround_workflows::clock::{HandClock, Timestamp};
    use turnaround_workflows::ports::*;
    use turnaround_workflows::rehearsal::*;

    struct Operator {
        clock: Arc<HandClock>,
        world: Arc<World>,
        ports: Ports,
    }

    impl Operator {
        fn new(plan: SitePlan) -> Operator {
            let clock = Arc::new(HandClock::at(Timestamp::from_millis(1_772_323_200_000)));
            let world = World::new(clock.clone(), plan, 1);
            Operator { ports: world.ports(), clock, world }
        }

        fn settle(&self) {
            while let Some(next) = self.world.next_event() {
                self.clock.advance_to(next);
            }
        }

        async fn drain(&self, name: &str) {
            let node = name.parse().unwrap();
            for instance in self.ports.instances.on(&node).await.unwrap() {
                let how = if instance.vm_state == "stopped" { Move::Cold } else { Move::Live };
                self.ports.instances.start_move(&instance.id, how, None).await.unwrap();
                self.settle();
                if how == Move::Cold {
                    self.ports.instances.confirm(&instance.id).await.unwrap();
                }
            }
            self.settle();
        }

        async fn install(&self, name: &str, token: &str) {
            let (node, image) = (name.parse().unwrap(), self.world.images().remove(0));
            let (token, image_name) = (Token(token.to_owned()), image.name.parse().unwrap());
            let ticket = BootTicket { token, image: image_name, sha256: image.sha256, report: None };
            self.ports.netboot.stage(&node, &ticket).await.unwrap();
            self.ports.bmc.netboot_next(&node).await.unwrap();
            self.ports.bmc.reset(&node).await.unwrap();
            self.settle();
            self.ports.netboot.withdraw(&node).await.unwrap();
        }

        fn broken(&self) -> Vec<Rule> {
            let mut lines = String::new();
            for event in self.world.events() {
                lines += &(serde_json::to_string(&event).unwrap() + "\n");
            }
            let found = judge(&lines, &Rules { out_max: 1, ..Rules::default() });
            let mut rules: Vec<Rule> = found.into_iter().map(|violation| violation.rule).collect();
            rules.sort();
            rules.dedup();
            rules
        }
    }

    fn plan() -> SitePlan {
        let mut plan = SitePlan::uniform(3, 3);
        plan.instance("gpu-02-b").unwrap().vm_state = VmState::Stopped;
        plan.node("gpu-02").unwrap().nova_host = Some("gpu-02.cloud.internal".to_owned());
        plan.node("gpu-03").unwrap().faults.repeats_reset = 1;
        plan
    }

    #[tokio::test]
    async fn careful_work_breaks_no_rule() {
        let operator = Operator::new(plan());
        for name in ["gpu-01", "gpu-02"] {
            operator.ports.compute.close(&name.parse().unwrap(), "turnaround").await.unwrap();
            operator.drain(name).await;
            operator.install(name, name).await;
            operator.ports.compute.reopen(&name.parse().unwrap()).await.unwrap();
        }
        assert_eq!(operator.world.snapshot().node("gpu-02").unwrap().os_version_id, "24.04");
        assert_eq!(operator.broken(), []);
    }

    #[tokio::test]
    async fn who_is_on_its_way_is_in_the_log_and_a_record_of_which_nothing_comes_is_not() {
        let site = |what: Option<Happens>| {
            let mut plan = SitePlan::uniform(2, 0);
            plan.instances = vec![InstancePlan::new("train").on("gpu-01")];
            let plan = what.into_iter().fold(plan, |plan, what| plan.happens(Duration::ZERO, what));
            Operator::new(plan)
        };
        let (train, gpu_01, gpu_02) = ("train".to_owned(), "gpu-01".parse().unwrap(), "gpu-02".to_owned());
        // Nova has chosen where it goes.
        let operator = site(None);
        operator.ports.compute.close(&gpu_01, "turnaround").await.unwrap();
        let id = operator.ports.instances.on(&gpu_01).await.unwrap()[0].id.clone();
        operator.ports.instances.start_move(&id, Move::Live, None).await.unwrap();
        operator.clock.advance(Duration::from_secs(2));
        operator.install("gpu-02", "t1").await;
        assert!(operator.broken().contains(&Rule::NothingIsLost), "on its way to the node");
        // Its tenant has had it resized, and has not said yet whether it is to stay where it is now.
        let operator = site(Some(Happens::InstanceResized { name: train.clone() }));
        operator.settle();
        operator.ports.compute.close(&gpu_01, "turnaround").await.unwrap();
        operator.install("gpu-01", "t1").await;
        operator.ports.compute.reopen(&gpu_01).await.unwrap();
        assert_eq!(operator.broken(), [Rule::NothingIsLost], "its disk is still on the node");
        // Nobody carries that out.
        let operator = site(Some(Happens::RecordOrphaned { name: train, node: gpu_02.clone() }));
        operator.ports.compute.close(&gpu_02.parse().unwrap(), "turnaround").await.unwrap();
        operator.install("gpu-02", "t1").await;
        operator.ports.compute.reopen(&gpu_02.parse().unwrap()).await.unwrap();
        assert_eq!(operator.broken(), []);
    }

    #[tokio::test]
    async fn who_has_deleted_an_instance_is_in_the_log() {
        let mut plan = SitePlan::uniform(1, 1);
        plan = plan.happens(Duration::ZERO, Happens::InstanceCreated(InstancePlan::new("late").on("gpu-01")));
        plan = plan.happens(Duration::from_secs(60), Happens::InstanceDeleted { name: "late".to_owned() });
        let operator = Operator::new(plan);
        let gpu_01 = "gpu-01".parse().unwrap();
        let canary = NewCanary { image: "cirros".to_owned(), flavor: "tiny".to_owned(), network: None };
        // The second one finds no host.
        for name in ["turnaround-canary-1", "turnaround-canary-2"] {
            operator.ports.canaries.create(name, &canary).await.unwrap();
            operator.settle();
            let id = operator.ports.canaries.find(name).await.unwrap()[0].id.clone();
            operator.ports.canaries.remove(&id).await.unwrap();
            operator.settle();
            assert_eq!(operator.ports.canaries.find(name).await.unwrap(), []);
            operator.ports.compute.close(&gpu_01, "turnaround").await.unwrap();
        }
        operator.ports.compute.reopen(&gpu_01).await.unwrap();
        assert_eq!(operator.broken(), []);
        let id = operator.ports.instances.on(&gpu_01).await.unwrap()[0].id.clone();
        operator.ports.canaries.remove(&id).await.unwrap();
        operator.settle();
        assert_eq!(operator.broken(), [Rule::NothingIsLost]);
    }

    #[tokio::test]
    async fn work_without_a_look_breaks_many() {
        let operator = Operator::new(plan());
        operator.ports.compute.close(&"gpu-01".parse().unwrap(), "turnaround").await.unwrap();
        operator.ports.compute.close(&"gpu-02".parse().unwrap(), "turnaround").await.unwrap();
        operator.install("gpu-01", "t1").await;
        operator.install("gpu-01", "t1").await;
        operator.install("gpu-03", "t3").await;
        let instances = operator.ports.instances.on(&"gpu-02".parse().unwrap()).await.unwrap();
        let id = &instances[0].id;
        for _ in 0..2 {
            let _ = operator.ports.instances.start_move(id, Move::Live, None).await;
            operator.clock.advance(Duration::from_secs(1));
        }
        operator.settle();
        let expected = [
            Rule::OneMoveAtATime,
            Rule::OneResetAnOrder,
            Rule::OneImageAnOrder,
            Rule::NothingIsLost,
            Rule::OnlyClosedNodesAreTaken,
            Rule::NotTooManyOut,
            Rule::LeftAsFound,
        ];
        assert_eq!(operator.broken(), expected);
    }
}

/// Events are a second apart: opened one second before its reset, and three.
#[test]
fn a_node_that_was_opened_right_before_its_reset_could_not_be_known_and_one_opened_earlier_could() {
    let opened = opened_by_others("a");
    let mut after = renewed("a", "t1");
    after.pop();
    let (ticket, rest) = (after.remove(0), after);
    let late = history!(emptied(), ticket.clone(), opened.clone(), rest.clone());
    let early = history!(emptied(), opened, ticket, of("boot_override", "a"), rest);
    let excused = Rules { look_is_good_for_ms: 2_000, ..rules() };
    good_by(&late, &excused);
    let broken: Vec<Rule> = judge(&early, &excused).iter().map(|violation| violation.rule).collect();
    assert_eq!(broken, [Rule::OnlyClosedNodesAreTaken], "{early}");
    bad(Rule::OnlyClosedNodesAreTaken, &late);
}
