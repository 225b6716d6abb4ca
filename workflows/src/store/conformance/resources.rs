//! Locks and budgets: taken and given in the commit that says so.

use super::*;
use crate::store::Holding;

fn take(claimed: &Claimed, take: Vec<Take>, next: Next) -> Commit {
    Commit { take, ..commit(claimed, next) }
}

fn give(claimed: &Claimed, taken: &Take, next: Next) -> Commit {
    Commit { give: vec![taken.resource.clone()], ..commit(claimed, next) }
}

fn busy(with: &Take, holders: &[&str]) -> Committed {
    Committed::Busy { resource: with.resource.clone(), holders: holders.iter().map(|name| id(name)).collect() }
}

async fn held(desk: &Desk) -> Vec<(String, String)> {
    let holdings = desk.store.holdings().await.unwrap();
    holdings.into_iter().map(|Holding { resource, holder }| (resource.to_string(), holder.to_string())).collect()
}

pub async fn a_busy_lock_refuses_all_and_wakes_its_waiter(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let node = lock("node-1");
    let owner = desk.begin("owner").await;
    let owner = desk.must(&owner, take(&owner, vec![node.clone()], Next::Keep)).await;
    let waiter = desk.begin("waiter").await;
    let wish = take(&waiter, vec![lock("free"), node.clone()], Next::Keep);
    assert_eq!(desk.commit(wish.clone()).await, busy(&node, &["owner"]));
    assert_eq!(held(&desk).await, [("lock node-1".to_owned(), "owner".to_owned())]);
    let document = desk.store.load(&id("waiter")).await.unwrap().unwrap();
    assert_eq!(document.seq, 1);
    assert_eq!(document.lease.map(|lease| lease.fence), Some(waiter.fence));
    // What it has already is no obstacle.
    let owner = desk.must(&owner, take(&owner, vec![node.clone()], Next::Keep)).await;

    desk.must(&waiter, bare_commit(&waiter, Next::Signal)).await;
    assert!(desk.claim(10).await.is_empty());
    desk.must(&owner, give(&owner, &node, Next::Signal)).await;
    let waiter = desk.claim_named("waiter").await;
    desk.must(&waiter, take(&waiter, vec![lock("free"), node], Next::Keep)).await;
    assert_eq!(held(&desk).await.len(), 2);
}

pub async fn a_lock_freed_before_the_waiter_parks_makes_it_due(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let node = lock("node-1");
    let owner = desk.begin("owner").await;
    let owner = desk.must(&owner, take(&owner, vec![node.clone()], Next::Keep)).await;
    let waiter = desk.begin("waiter").await;
    assert_eq!(desk.commit(take(&waiter, vec![node.clone()], Next::Keep)).await, busy(&node, &["owner"]));
    desk.must(&owner, give(&owner, &node, Next::Signal)).await;
    desk.must(&waiter, bare_commit(&waiter, Next::At(desk.now().await + LONG))).await;
    let waiter = desk.claim_named("waiter").await;
    // Once only.
    desk.must(&waiter, bare_commit(&waiter, Next::Signal)).await;
    assert!(desk.claim(10).await.is_empty());
}

pub async fn what_a_workflow_frees_itself_makes_it_due_if_it_waited_for_that(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let share = |member: &str| share("out", member, 1);
    let claimed = desk.begin("w").await;
    let claimed = desk.must(&claimed, take(&claimed, vec![share("one")], Next::Keep)).await;
    assert_eq!(desk.commit(take(&claimed, vec![share("two")], Next::Keep)).await, busy(&share("two"), &["w"]));
    desk.must(&claimed, give(&claimed, &share("one"), Next::At(desk.now().await + LONG))).await;
    desk.claim_named("w").await;
}

pub async fn the_longest_waiter_is_woken_first(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let node = lock("node-1");
    let owner = desk.begin("owner").await;
    let owner = desk.must(&owner, take(&owner, vec![node.clone()], Next::Keep)).await;
    for name in ["third", "first", "second"] {
        let waiter = desk.begin(name).await;
        assert_eq!(desk.commit(take(&waiter, vec![node.clone()], Next::Keep)).await, busy(&node, &["owner"]));
        bed.pass(Duration::from_millis(2)).await;
        // Asking again does not cost the place.
        assert_eq!(desk.commit(take(&waiter, vec![node.clone()], Next::Keep)).await, busy(&node, &["owner"]));
        desk.must(&waiter, bare_commit(&waiter, Next::Signal)).await;
    }
    desk.must(&owner, give(&owner, &node, Next::Signal)).await;
    for name in ["third", "first", "second"] {
        let holder = desk.claim_named(name).await;
        let holder = desk.must(&holder, take(&holder, vec![node.clone()], Next::Keep)).await;
        desk.must(&holder, give(&holder, &node, Next::Signal)).await;
    }
    assert!(desk.claim(10).await.is_empty());
}

pub async fn a_waiter_that_ended_wakes_the_next_one(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let node = lock("node-1");
    let owner = desk.begin("owner").await;
    let owner = desk.must(&owner, take(&owner, vec![node.clone()], Next::Keep)).await;
    for (name, next) in [("gone", Next::End { keep: LONG }), ("there", Next::Signal)] {
        let waiter = desk.begin(name).await;
        assert_eq!(desk.commit(take(&waiter, vec![node.clone()], Next::Keep)).await, busy(&node, &["owner"]));
        desk.must(&waiter, commit(&waiter, next)).await;
        bed.pass(Duration::from_millis(2)).await;
    }
    desk.must(&owner, commit(&owner, Next::End { keep: LONG })).await;
    assert_eq!(desk.due_names().await, ["there"]);
}

pub async fn ending_frees_locks_and_keeps_budget_shares(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let owner = desk.begin("owner").await;
    let wanted = vec![lock("node-1"), lock("ansible"), share("out", "node-1", 2)];
    let owner = desk.must(&owner, take(&owner, wanted, Next::Keep)).await;
    let other = desk.begin("other").await;
    desk.must(&other, take(&other, vec![lock("else")], Next::Keep)).await;
    // Giving what one does not have frees nothing.
    let owner = desk.must(&owner, give(&owner, &lock("else"), Next::Keep)).await;
    desk.must(&owner, commit(&owner, Next::End { keep: LONG })).await;
    let left = [("lock else", "other"), ("budget out for node-1", "owner")];
    assert_eq!(held(&desk).await, left.map(|(what, who)| (what.to_owned(), who.to_owned())));
    assert!(desk.store.release_budget("out", "node-1").await.unwrap());
    assert!(!desk.store.release_budget("out", "node-1").await.unwrap());
    assert_eq!(held(&desk).await.len(), 1);
}

pub async fn a_budget_has_so_many_members_and_no_more(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let mut holders = Vec::new();
    for name in ["a", "b"] {
        let claimed = desk.begin(name).await;
        holders.push(desk.must(&claimed, take(&claimed, vec![share("out", name, 2)], Next::Keep)).await);
    }
    let third = desk.begin("c").await;
    let wish = share("out", "c", 2);
    assert_eq!(desk.commit(take(&third, vec![wish.clone()], Next::Keep)).await, busy(&wish, &["a", "b"]));
    // All of a wish or nothing: two more do not fit where one does.
    let two = vec![share("out", "c", 3), share("out", "d", 3)];
    assert_eq!(desk.commit(take(&third, two.clone(), Next::Keep)).await, busy(&two[1], &["a", "b"]));
    // The same member twice is one member, and the smaller limit counts.
    let strict = vec![share("out", "c", 3), share("out", "c", 2)];
    assert_eq!(desk.commit(take(&third, strict.clone(), Next::Keep)).await, busy(&strict[1], &["a", "b"]));
    let same = vec![share("out", "c", 3), share("out", "c", 3)];
    let third = desk.must(&third, take(&third, same, Next::Keep)).await;
    let fourth = desk.begin("d").await;
    let wish = share("out", "d", 2);
    assert_eq!(desk.commit(take(&fourth, vec![wish.clone()], Next::Keep)).await, busy(&wish, &["a", "b", "c"]));
    desk.must(&fourth, bare_commit(&fourth, Next::Signal)).await;
    desk.must(&third, give(&third, &share("out", "c", 2), Next::Keep)).await;
    let fourth = desk.claim_named("d").await;
    assert_eq!(desk.commit(take(&fourth, vec![wish.clone()], Next::Keep)).await, busy(&wish, &["a", "b"]));
    desk.must(&holders[0], give(&holders[0], &share("out", "a", 2), Next::Keep)).await;
    desk.must(&fourth, take(&fourth, vec![wish], Next::Keep)).await;
}

/// Whatever limit the others come with.
pub async fn beside_a_share_that_is_held_alone_nobody_has_one(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let alone = desk.begin("alone").await;
    let alone = desk.must(&alone, take(&alone, vec![Take { alone: true, ..share("out", "alone", 1) }], Next::Keep)).await;
    let other = desk.begin("other").await;
    let wish = share("out", "other", 5);
    assert_eq!(desk.commit(take(&other, vec![wish.clone()], Next::Keep)).await, busy(&wish, &["alone"]));
    // Of another budget that says nothing.
    let other = desk.must(&other, take(&other, vec![share("in", "other", 5)], Next::Keep)).await;
    // Whoever ends keeps its share, and is alone no longer. Who takes that over to be alone waits for those who have come since.
    desk.must(&alone, commit(&alone, Next::End { keep: LONG })).await;
    let other = desk.must(&other, take(&other, vec![wish], Next::Keep)).await;
    let heir = desk.begin("heir").await;
    let over = Take { from: Some(id("alone")), ..share("out", "alone", 2) };
    let alone = Take { alone: true, ..over.clone() };
    assert_eq!(desk.commit(take(&heir, vec![alone.clone()], Next::Keep)).await, busy(&alone, &["alone", "other"]));
    let heir = desk.must(&heir, take(&heir, vec![over], Next::Keep)).await;
    let third = desk.begin("third").await;
    let wish = share("out", "third", 5);
    let third = desk.must(&third, take(&third, vec![wish], Next::Keep)).await;
    // Who wants to be alone waits for all others, and lets everybody in again when it gives its share back.
    for (who, member) in [(&heir, "alone"), (&other, "other")] {
        desk.must(who, give(who, &share("out", member, 2), Next::Keep)).await;
    }
    let again = desk.begin("again").await;
    let wish = Take { alone: true, ..share("out", "again", 1) };
    assert_eq!(desk.commit(take(&again, vec![wish.clone()], Next::Keep)).await, busy(&wish, &["third"]));
    let third = desk.must(&third, give(&third, &share("out", "third", 5), Next::Keep)).await;
    let again = desk.must(&again, take(&again, vec![wish.clone()], Next::Keep)).await;
    let back = share("out", "third", 5);
    assert_eq!(desk.commit(take(&third, vec![back.clone()], Next::Keep)).await, busy(&back, &["again"]));
    desk.must(&again, give(&again, &wish, Next::Keep)).await;
    desk.must(&third, take(&third, vec![back], Next::Keep)).await;
}

pub async fn a_share_is_taken_over_only_from_whoever_is_named_and_has_ended(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let node = share("out", "node-1", 1);
    let from = |name: &str| Take { from: Some(id(name)), ..node.clone() };
    let held_by = |holder: Option<&str>| Committed::Held { resource: node.resource.clone(), holder: holder.map(id) };
    let first = desk.begin("first").await;
    // Nobody has it.
    assert_eq!(desk.commit(take(&first, vec![from("gone")], Next::Keep)).await, held_by(None));
    let first = desk.must(&first, take(&first, vec![node.clone()], Next::Keep)).await;
    let second = desk.begin("second").await;
    for wish in [node.clone(), from("first")] {
        assert_eq!(desk.commit(take(&second, vec![wish], Next::Keep)).await, busy(&node, &["first"]), "it is open");
    }
    desk.must(&first, commit(&first, Next::End { keep: LONG })).await;
    // All of a wish, or nothing.
    for wish in [node.clone(), from("third")] {
        assert_eq!(desk.commit(take(&second, vec![lock("node-1"), wish], Next::Keep)).await, held_by(Some("first")));
        assert_eq!(held(&desk).await, [("budget out for node-1".to_owned(), "first".to_owned())]);
    }
    let second = desk.must(&second, take(&second, vec![from("first")], Next::Keep)).await;
    assert_eq!(held(&desk).await, [("budget out for node-1".to_owned(), "second".to_owned())]);
    // What it has already is fine, whomever it names.
    let second = desk.must(&second, take(&second, vec![from("first"), node.clone()], Next::Keep)).await;
    desk.must(&second, give(&second, &node, Next::Keep)).await;
    assert!(held(&desk).await.is_empty());
}

pub async fn a_budget_share_of_an_open_workflow_is_not_released(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let owner = desk.begin("owner").await;
    let owner = desk.must(&owner, take(&owner, vec![share("out", "node-1", 1)], Next::Keep)).await;
    let waiter = desk.begin("waiter").await;
    let wish = share("out", "node-2", 1);
    assert_eq!(desk.commit(take(&waiter, vec![wish.clone()], Next::Keep)).await, busy(&wish, &["owner"]));
    desk.must(&waiter, bare_commit(&waiter, Next::Signal)).await;
    assert!(!desk.store.release_budget("out", "node-1").await.unwrap());
    assert!(!desk.store.release_budget("out", "node-9").await.unwrap());
    assert!(!desk.store.release_budget("other", "node-1").await.unwrap());
    desk.must(&owner, commit(&owner, Next::End { keep: LONG })).await;
    assert!(desk.claim(10).await.is_empty());
    assert!(desk.store.release_budget("out", "node-1").await.unwrap());
    assert_eq!(desk.due_names().await, ["waiter"]);
}
