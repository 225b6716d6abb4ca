//! Claims, leases and fences.

use std::collections::BTreeSet;

use super::*;
use crate::store::CLAIM_MAX;

pub async fn a_due_workflow_is_claimed_by_one_worker(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let claimed = desk.begin("w").await;
    assert_eq!((claimed.document.state.as_ref(), claimed.journal.as_slice()), (None, &[new("w").entry][..]));
    assert_eq!((claimed.document.seq, claimed.document.due), (1, None));
    assert!(desk.claim(10).await.is_empty());
    assert!(desk.claim(0).await.is_empty());
}

pub async fn a_workflow_is_not_claimed_before_it_is_due(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let due = desk.now().await + SOON;
    desk.store.create(NewWorkflow { due: Some(due), ..new("w") }).await.unwrap();
    let document = desk.store.load(&id("w")).await.unwrap().unwrap();
    assert_eq!((document.status, document.due), (Status::Waiting, Some(due)));
    let looked = desk.advance(Advance { claim: Some(claim_of(10)), ..Advance::default() }).await;
    assert_eq!((looked.claimed.len(), looked.next), (0, Some(due)));
    bed.pass(SOON).await;
    let claimed = desk.claim_named("w").await;
    // Parked until a moment that has passed: due now.
    desk.must(&claimed, commit(&claimed, Next::At(due))).await;
    desk.claim_named("w").await;
}

fn claim_of(max: u32) -> Claim {
    Claim { max, lease: LONG, worker: "host:1".to_owned(), queues: vec![Queue::DEFAULT] }
}

pub async fn a_lease_that_expired_unnoticed_may_still_commit(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    desk.create("w").await;
    let claimed = desk.claim_for(1, SHORT).await.remove(0);
    bed.pass(SHORT).await;
    desk.must(&claimed, commit(&claimed, Next::Keep)).await;
    assert!(desk.claim(10).await.is_empty());
}

pub async fn a_worker_that_paused_for_too_long_is_fenced(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    desk.create("w").await;
    let paused = desk.claim_for(1, SHORT).await.remove(0);
    bed.pass(SHORT).await;
    let heir = desk.claim_only().await;
    assert!(heir.fence > paused.fence);
    for next in [Next::Keep, Next::At(desk.now().await), Next::Signal, Next::End { keep: LONG }] {
        assert_eq!(desk.commit(commit(&paused, next)).await, Committed::Fenced);
        assert_eq!(desk.commit(bare_commit(&paused, next)).await, Committed::Fenced);
    }
    desk.must(&heir, commit(&heir, Next::Signal)).await;
    // Nobody holds it now, and still the old fence opens nothing.
    assert_eq!(desk.commit(commit(&paused, Next::Keep)).await, Committed::Fenced);
    assert_eq!(desk.store.journal(&id("w"), 1, 10).await.unwrap().len(), 2);
}

pub async fn a_claim_hands_out_the_whole_journal(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let mut claimed = desk.begin("w").await;
    let mut journal = claimed.journal.clone();
    // Around what is read at once, what is handed out at once, and a page.
    for length in [4, 5, 127, 128, 129, 500, 640, 1_300] {
        let mut head = claimed.document.head;
        let mut entries = Vec::new();
        while journal.len() + entries.len() < length {
            let next = entry(Some(head), &format!("{{\"place\":{}}}", journal.len() + entries.len()));
            head = next.digest;
            entries.push(next);
        }
        journal.extend(entries.iter().cloned());
        let now = desk.now().await;
        desk.must(&claimed, Commit { entries, ..commit(&claimed, Next::At(now)) }).await;
        claimed = desk.claim_only().await;
        assert!(claimed.journal == journal, "{} entries of {length}", claimed.journal.len());
        // One commit may have so many that where it began is far before.
        let newest = desk.store.journal(&claimed.document.id, length as u64, 10).await.unwrap();
        assert_eq!(newest, journal[length - 1..]);
    }
}

pub async fn leases_that_expire_without_a_commit_are_counted(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    desk.create("w").await;
    for tries in 0..3 {
        let claimed = desk.claim_for(1, SHORT).await.remove(0);
        assert_eq!(claimed.tries, tries);
        bed.pass(SHORT).await;
    }
    let claimed = desk.claim_only().await;
    assert_eq!(claimed.tries, 3);
    let now = desk.now().await;
    desk.must(&claimed, commit(&claimed, Next::At(now))).await;
    let claimed = desk.claim_for(1, SHORT).await.remove(0);
    assert_eq!(claimed.tries, 0);
    // Nor does a lease count that was given back.
    desk.advance(Advance { hand_back: vec![(id("w"), claimed.fence)], ..Advance::default() }).await;
    assert_eq!(desk.claim_only().await.tries, 0);
}

pub async fn a_workflow_waits_for_workers_of_its_queue(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let bmc = Queue::of("bmc");
    let claim = async |queues: &[&Queue], lease| {
        let queues = queues.iter().map(|queue| (*queue).clone()).collect();
        let claim = Claim { max: 10, lease, worker: "host:1".to_owned(), queues };
        desk.advance(Advance { claim: Some(claim), ..Advance::default() }).await
    };
    let claimed = desk.begin("w").await;
    let now = desk.now().await;
    let parked = Commit { queue: bmc.clone(), ..commit(&claimed, Next::At(now)) };
    desk.must(&claimed, parked).await;
    let elsewhere = claim(&[&Queue::DEFAULT], LONG).await;
    assert_eq!((elsewhere.claimed.len(), elsewhere.next), (0, None));
    let claimed = claim(&[&Queue::DEFAULT, &bmc], SHORT).await.claimed.remove(0);
    assert_eq!(claimed.document.queue, bmc);
    bed.pass(SHORT).await;
    // Its holder is dead, and whoever looks first can't do it: it waits where it waited.
    assert_eq!(claim(&[&Queue::DEFAULT], LONG).await.claimed, []);
    assert_eq!(desk.store.wait_for_bell(std::slice::from_ref(&bmc), LONG).await.unwrap(), Some(bmc.clone()));
    assert_eq!(desk.commit(commit(&claimed, Next::Keep)).await, Committed::Fenced);
    let heir = claim(&[&bmc], LONG).await.claimed.remove(0);
    desk.must(&heir, Commit { queue: bmc.clone(), ..commit(&heir, Next::Signal) }).await;
    desk.signal("w", "go").await;
    assert_eq!(claim(&[&Queue::DEFAULT], LONG).await.claimed, []);
    let woken = claim(&[&bmc], LONG).await.claimed.remove(0);
    assert_eq!((woken.signals.len(), woken.document.queue), (1, bmc));
}

pub async fn what_has_been_due_longest_is_claimed_first_whatever_its_queue(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let queues = [Queue::DEFAULT, Queue::of("bmc"), Queue::of("nodes")];
    for name in ["a", "b", "c", "d", "e", "f"] {
        desk.create(name).await;
    }
    let claimed = desk.claim(10).await;
    for (place, claimed) in claimed.iter().enumerate() {
        let queue = queues[place % queues.len()].clone();
        let now = desk.now().await;
        desk.must(claimed, Commit { queue, ..commit(claimed, Next::At(now)) }).await;
        bed.pass(Duration::from_millis(2)).await;
    }
    let expected = desk.names(&claimed).await;
    let claim = Claim { max: 4, lease: LONG, worker: "host:1".to_owned(), queues: queues.to_vec() };
    let looked = desk.advance(Advance { claim: Some(claim), ..Advance::default() }).await;
    assert_eq!(desk.names(&looked.claimed).await, expected[..4]);
}

pub async fn a_renewed_lease_does_not_expire(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    desk.create("w").await;
    let claimed = desk.claim_for(1, SHORT).await.remove(0);
    let renew = vec![(id("w"), claimed.fence)];
    let renewed = desk.advance(Advance { lease: LONG, renew, ..Advance::default() }).await;
    assert_eq!(renewed.renewed, vec![Some(renewed.now + LONG)]);
    bed.pass(SHORT).await;
    assert!(desk.claim(10).await.is_empty());
}

pub async fn a_lost_lease_is_not_renewed(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    desk.create("w").await;
    let claimed = desk.claim_for(1, SHORT).await.remove(0);
    bed.pass(SHORT).await;
    let heir = desk.claim_only().await;
    let renew = vec![(id("w"), claimed.fence), (id("absent"), claimed.fence), (id("w"), heir.fence)];
    let hand_back = vec![(id("w"), claimed.fence), (id("absent"), claimed.fence)];
    let renewed = desk.advance(Advance { lease: LONG, renew, hand_back, ..Advance::default() }).await.renewed;
    assert!(matches!(renewed[..], [None, None, Some(_)]), "{renewed:?}");
    assert!(desk.claim(10).await.is_empty());
}

pub async fn a_lease_that_was_handed_back_is_due_at_once(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let claimed = desk.begin("w").await;
    let hand_back = vec![(id("w"), claimed.fence)];
    let claim = Some(claim_of(10));
    let back = desk.advance(Advance { hand_back: hand_back.clone(), claim, ..Advance::default() }).await;
    let heir = &back.claimed[0];
    assert!(heir.fence > claimed.fence);
    // Twice is fine, and takes nothing from the heir.
    desk.advance(Advance { hand_back, ..Advance::default() }).await;
    assert_eq!(desk.commit(commit(&claimed, Next::Keep)).await, Committed::Fenced);
    desk.must(heir, commit(heir, Next::Keep)).await;
}

pub async fn expired_leases_are_claimed_before_what_is_due(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    for number in 0..20 {
        desk.create(&format!("waits{number}")).await;
    }
    desk.claim(20).await;
    for number in 0..3 {
        desk.create(&format!("orphan{number}")).await;
    }
    let orphans = desk.claim_for(3, SHORT).await;
    for number in 0..20 {
        desk.create(&format!("fresh{number}")).await;
    }
    bed.pass(SHORT).await;
    let claimed = desk.claim(4).await;
    let expired: BTreeSet<_> = claimed[..3].iter().map(|claimed| &claimed.document.id).collect();
    assert_eq!(expired, orphans.iter().map(|orphan| &orphan.document.id).collect());
    assert!(claimed[3].document.id.as_str().starts_with("fresh"));
}

pub async fn what_has_been_due_longest_is_claimed_first(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    for name in ["c", "a", "b"] {
        desk.create(name).await;
        bed.pass(Duration::from_millis(2)).await;
    }
    let looked = desk.advance(Advance { claim: Some(claim_of(1)), ..Advance::default() }).await;
    assert_eq!(desk.names(&looked.claimed).await, ["c"]);
    assert!(looked.next.is_some_and(|next| next <= looked.now), "more is due: {looked:?}");
    assert_eq!(desk.due_names().await, ["a", "b"]);
}

pub async fn a_thousand_due_at_once_are_each_claimed_once(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let parent = desk.begin("parent").await;
    let children = (0..1_000).map(|number| new(&format!("child{number}"))).collect();
    desk.must(&parent, Commit { create: children, ..commit(&parent, Next::Keep) }).await;
    let worker = async || {
        let mut mine = Vec::new();
        loop {
            let claimed = desk.claim(10_000).await;
            assert!(claimed.len() <= CLAIM_MAX as usize);
            if claimed.is_empty() {
                return mine;
            }
            mine.extend(claimed.into_iter().map(|claimed| (claimed.document.id, claimed.fence)));
        }
    };
    let (one, two, three) = tokio::join!(worker(), worker(), worker());
    let all: Vec<_> = [one, two, three].into_iter().flatten().collect();
    assert_eq!(all.len(), 1_000);
    assert_eq!(all.iter().map(|(id, _)| id).collect::<BTreeSet<_>>().len(), 1_000);
    assert_eq!(all.iter().map(|(_, fence)| fence).collect::<BTreeSet<_>>().len(), 1_000);
}

pub async fn fences_grow_with_every_grant(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let mut newest = Fence(0);
    for number in 0..5 {
        desk.create(&format!("w{number}")).await;
        for claimed in desk.claim_for(10, Duration::ZERO).await {
            assert!(claimed.fence > newest, "{:?} after {newest:?}", claimed.fence);
            newest = claimed.fence;
        }
    }
}
