//! What is noticed to be missing, and what a halted store does until a person has looked.

use super::*;
use crate::store::{Queue, StoreError};
use crate::store::high_water::{HighWater, Loss, Standing};

const WHO: &str = "daemon at host:1";

/// Compares, and remembers what is to be remembered.
async fn look(desk: &Desk, remembered: &mut HighWater) -> Standing {
    let standing = desk.store.compare(remembered, WHO).await.unwrap();
    *remembered = remembered.after(&standing);
    standing
}

fn witness(name: &str) -> HighWater {
    HighWater::new(name.to_owned())
}

fn refused<T: std::fmt::Debug>(answer: Result<T, StoreError>) {
    assert!(matches!(answer, Err(StoreError::Halted { .. })), "{answer:?}");
}

pub async fn a_store_that_lost_nothing_is_never_halted(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let (mut one, mut other) = (witness("one"), witness("other"));
    let mut newest = 0;
    for number in 0..5 {
        for remembered in [&mut one, &mut other] {
            let standing = look(&desk, remembered).await;
            assert_eq!(standing.halt, None);
            assert!(standing.revision >= newest);
            newest = standing.revision;
            assert_eq!(remembered.looks, standing.looks);
        }
        // One looks twice as often as the other, and that is no matter.
        assert_eq!((one.looks, other.looks), (number + 1, 2 * number + 1));
        let claimed = desk.begin(&format!("w{number}")).await;
        desk.must(&claimed, commit(&claimed, Next::Signal)).await;
        let after = look(&desk, &mut other).await;
        assert!(after.revision >= newest + 2, "{newest} {after:?}");
        newest = after.revision;
    }
    // What is asked without a witness is the same.
    let standing = desk.store.standing().await.unwrap();
    assert_eq!((standing.identity, standing.revision, standing.looks), (one.identity, newest, 0));
}

pub async fn what_a_witness_misses_halts_the_store(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let mut remembered = witness("one");
    look(&desk, &mut remembered).await;
    type Change = fn(&HighWater) -> HighWater;
    let newer: Change = |seen| HighWater { revision: seen.revision + 1, ..seen.clone() };
    // Everybody's writes together are as many as ever, but one look of its own is gone.
    let looked_more: Change = |seen| HighWater { looks: seen.looks + 1, ..seen.clone() };
    let another: Change = |seen| HighWater { identity: Some("0123456789abcdef".to_owned()), ..seen.clone() };
    let cases = [(newer, Loss::Older), (looked_more, Loss::Older), (another, Loss::Replaced)];
    for (memory, loss) in cases {
        let memory = memory(&remembered);
        let before = desk.now().await;
        let standing = desk.store.compare(&memory, WHO).await.unwrap();
        let halt = standing.halt.clone().expect("a halt");
        assert_eq!((halt.loss, halt.noticed_by.as_str()), (loss, WHO));
        assert!(halt.since >= before && halt.since <= desk.now().await);
        assert_eq!((&halt.expected.identity, halt.expected.revision, halt.expected.looks), (&memory.identity, memory.revision, memory.looks));
        assert_eq!((&halt.found.identity, halt.found.revision), (&remembered.identity, remembered.revision));
        // It is remembered as it was, and told again as it was first told.
        assert_eq!(memory.after(&standing), memory);
        bed.pass(SHORT).await;
        assert_eq!(desk.store.compare(&memory, "another daemon").await.unwrap().halt, Some(halt.clone()));
        assert_eq!(desk.store.standing().await.unwrap().halt, Some(halt));
        let accepted = desk.store.accept(&remembered, "ada").await.unwrap().expect("it was halted");
        assert_eq!((&accepted.identity, accepted.halt.is_some()), (&remembered.identity, false));
        remembered = remembered.after(&accepted);
        assert_eq!(look(&desk, &mut remembered).await.halt, None);
    }
}

pub async fn a_halted_store_hands_out_and_takes_nothing(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let held = desk.begin("held").await;
    desk.create("due").await;
    let claim = Claim { max: 10, lease: LONG, worker: "host:2".to_owned(), queues: vec![Queue::DEFAULT] };
    let calls = [
        Advance { lease: LONG, claim: Some(claim), ..Advance::default() },
        Advance { lease: LONG, commits: vec![commit(&held, Next::Keep)], ..Advance::default() },
        Advance { lease: LONG, renew: vec![(id("held"), held.fence)], ..Advance::default() },
        Advance { lease: LONG, hand_back: vec![(id("held"), held.fence)], ..Advance::default() },
    ];
    let mut remembered = witness("one");
    look(&desk, &mut remembered).await;
    let newer = HighWater { revision: remembered.revision + 1, ..remembered.clone() };
    assert!(desk.store.compare(&newer, WHO).await.unwrap().halt.is_some());
    for call in &calls {
        refused(desk.store.advance(call).await);
    }
    refused(desk.store.create(new("ordered")).await);
    refused(desk.store.signal(&id("held"), signal("{}")).await);
    refused(desk.store.release_budget("nodes-out", "n1").await);
    refused(desk.store.judge_ticks("nightly", None, desk.now().await, Vec::new()).await);
    refused(desk.store.sweep().await);
    // What is there can be read.
    assert_eq!(desk.store.load(&id("ordered")).await.unwrap(), None);
    assert_eq!(desk.store.load(&id("held")).await.unwrap().unwrap().seq, 1);
    assert_eq!(desk.store.journal(&id("held"), 1, 10).await.unwrap().len(), 1);
}

pub async fn what_a_person_accepts_begins_anew_under_new_leases(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let held = desk.begin("held").await;
    let parked = desk.begin("parked").await;
    desk.must(&parked, commit(&parked, Next::Signal)).await;
    let ended = desk.begin("ended").await;
    desk.must(&ended, commit(&ended, Next::End { keep: LONG })).await;
    // Set apart, and looked at again when the store is halted: whoever does that can't write any more.
    let apart = desk.begin("apart").await;
    desk.must(&apart, Commit { status: Status::Quarantined, ..commit(&apart, Next::Signal) }).await;
    desk.signal("apart", "retry").await;
    let apart = desk.claim_named("apart").await;
    let left = desk.begin("left-apart").await;
    desk.must(&left, Commit { status: Status::Quarantined, ..commit(&left, Next::Signal) }).await;
    let (early, late) = (desk.now().await, desk.now().await + LONG);
    assert!(desk.store.judge_ticks("past", None, early, Vec::new()).await.unwrap());
    assert!(desk.store.judge_ticks("ahead", None, late, Vec::new()).await.unwrap());
    let mut remembered = witness("one");
    look(&desk, &mut remembered).await;
    assert_eq!(desk.store.accept(&remembered, "ada").await.unwrap(), None, "there is nothing to accept");
    desk.must(&held, bare_commit(&held, Next::Keep)).await;
    let newer = HighWater { revision: remembered.revision + 5, ..remembered.clone() };
    assert!(desk.store.compare(&newer, WHO).await.unwrap().halt.is_some());
    let accepted = desk.store.accept(&newer, "ada").await.unwrap().expect("it was halted");
    assert!(accepted.revision > newer.revision, "{accepted:?}");
    assert_eq!(desk.commit(commit(&held, Next::Keep)).await, Committed::Fenced);
    assert_eq!(desk.commit(commit(&held, Next::Signal)).await, Committed::Fenced);
    let claimed = desk.claim(10).await;
    let names: std::collections::BTreeSet<_> = claimed.iter().map(|claimed| claimed.document.id.to_string()).collect();
    assert_eq!(names, ["apart".to_owned(), "held".to_owned(), "parked".to_owned()].into());
    assert_eq!(desk.commit(commit(&apart, Next::Signal)).await, Committed::Fenced);
    for again in &claimed {
        assert!(again.fence > held.fence);
        desk.must(again, commit(again, Next::Signal)).await;
    }
    assert!(desk.store.last_tick("past").await.unwrap().unwrap() >= early);
    assert_eq!(desk.store.last_tick("ahead").await.unwrap(), Some(late));
    desk.create("ordered").await;
}

/// Two daemons remember, one person accepts, by one of them.
pub async fn what_was_accepted_by_one_is_accepted_by_all(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let (mut one, mut other) = (witness("one"), witness("other"));
    for _ in 0..3 {
        look(&desk, &mut one).await;
        look(&desk, &mut other).await;
    }
    for remembered in [&mut one, &mut other] {
        remembered.revision += 100;
        remembered.looks += 100;
    }
    assert!(look(&desk, &mut one).await.halt.is_some());
    assert!(look(&desk, &mut other).await.halt.is_some());
    let accepted = desk.store.accept(&one, "ada").await.unwrap().expect("it was halted");
    one = one.after(&accepted);
    for _ in 0..3 {
        assert_eq!(look(&desk, &mut other).await.halt, None);
        assert_eq!(look(&desk, &mut one).await.halt, None);
    }
    // Somebody who was away during all that, too; but what is lost after that is missed again.
    let mut third = HighWater { looks: 9, ..witness("third") };
    third.identity.clone_from(&one.identity);
    assert_eq!(look(&desk, &mut third).await.halt, None);
    third.looks += 1;
    assert_eq!(look(&desk, &mut third).await.halt.map(|halt| halt.loss), Some(Loss::Older));
}
