//! Creating and committing: exactly once, also when answers are lost.

use super::*;

pub async fn a_workflow_is_created_once(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let first = NewWorkflow { traceparent: Some("00-1-2-01".to_owned()), parent: Some(id("p")), ..new("w") };
    let before = desk.now().await;
    assert_eq!(desk.store.create(first.clone()).await.unwrap(), Created::New);
    let other = NewWorkflow { headline: "another".to_owned(), ..new("w") };
    assert_eq!(desk.store.create(other).await.unwrap(), Created::Existing);

    let document = desk.store.load(&id("w")).await.unwrap().unwrap();
    assert_eq!(document.headline, first.headline);
    assert_eq!(document.state, None);
    assert_eq!(document.parent, first.parent);
    assert_eq!(document.traceparent, first.traceparent);
    assert_eq!(document.head, first.entry.digest);
    assert_eq!((document.seq, document.status, &document.lease), (1, Status::Runnable, &None));
    assert!(document.created >= before && document.due >= Some(before), "{document:?}");
    assert_eq!(desk.store.journal(&id("w"), 1, 10).await.unwrap(), vec![first.entry]);
    assert_eq!(desk.store.load(&id("absent")).await.unwrap(), None);
    assert_eq!(desk.store.journal(&id("absent"), 1, 10).await.unwrap(), vec![]);
}

pub async fn a_commit_appends_and_keeps_the_lease(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let claimed = desk.begin("w").await;
    let kept = Commit { traceparent: Some("00-3-4-01".to_owned()), ..commit(&claimed, Next::Keep) };
    let committed = desk.commit(kept.clone()).await;
    let Committed::Done { lease_until: Some(until), signals } = committed else { panic!("{committed:?}") };
    assert!(until > desk.now().await && signals.is_empty());

    let document = desk.store.load(&id("w")).await.unwrap().unwrap();
    assert_eq!((document.seq, &document.head), (2, &kept.entries[0].digest));
    assert_eq!(document.state, kept.state);
    assert_eq!((&document.headline, &document.traceparent), (&kept.headline, &kept.traceparent));
    assert_eq!(document.due, None);
    let lease = document.lease.unwrap();
    assert_eq!((lease.fence, lease.until, lease.worker.as_str()), (claimed.fence, until, "host:1"));
    assert!(desk.claim(10).await.is_empty());
}

pub async fn the_journal_is_read_in_pages_and_its_chain_holds(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let mut claimed = desk.begin("w").await;
    for _ in 0..5 {
        let mut two = commit(&claimed, Next::Keep);
        two.entries.push(entry(Some(two.entries[0].digest), "{\"second\":true}"));
        claimed = desk.must(&claimed, two).await;
    }
    let whole = desk.store.journal(&id("w"), 1, 100).await.unwrap();
    assert_eq!(whole.len(), 11);
    let mut head = None;
    for kept in &whole {
        assert_eq!(*kept, entry(head, &kept.body));
        head = Some(kept.digest);
    }
    assert_eq!(Some(claimed.document.head), head);
    assert_eq!(desk.store.journal(&id("w"), 4, 3).await.unwrap(), whole[3..6]);
    // In the middle of what one commit appended.
    assert_eq!(desk.store.journal(&id("w"), 3, 3).await.unwrap(), whole[2..5]);
    assert_eq!(desk.store.journal(&id("w"), 5, 1).await.unwrap(), whole[4..5]);
    assert_eq!(desk.store.journal(&id("w"), 11, 3).await.unwrap(), whole[10..]);
    assert_eq!(desk.store.journal(&id("w"), 12, 3).await.unwrap(), vec![]);
    assert_eq!(desk.store.journal(&id("w"), 1, 0).await.unwrap(), vec![]);
    assert_eq!(desk.store.journal(&id("w"), u64::MAX, 3).await.unwrap(), vec![]);
}

pub async fn an_empty_advance_is_a_look_at_the_clock(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let before = desk.now().await;
    let nothing = desk.advance(Advance::default()).await;
    assert!(nothing.now >= before);
    assert_eq!(nothing, Advanced { now: nothing.now, commits: vec![], renewed: vec![], claimed: vec![], next: None });
}

pub async fn a_commit_on_another_revision_is_a_conflict(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let claimed = desk.begin("w").await;
    let ahead = Commit { expected: 7, ..commit(&claimed, Next::Keep) };
    assert_eq!(desk.commit(ahead).await, Committed::Conflict { seq: 1 });
    assert_eq!(desk.store.load(&id("w")).await.unwrap().unwrap().seq, 1);
    desk.must(&claimed, commit(&claimed, Next::Keep)).await;
}

/// Commits `sent` twice, as if the first answer was lost, and returns both answers.
async fn twice(desk: &Desk, sent: Commit) -> (Committed, Committed) {
    (desk.commit(sent.clone()).await, desk.commit(sent).await)
}

pub async fn a_repeated_commit_that_keeps_the_lease_stands_once(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    desk.create("other").await;
    let other = desk.claim_named("other").await;
    desk.must(&other, commit(&other, Next::Signal)).await;
    let claimed = desk.begin("w").await;
    for body in ["one", "two", "three"] {
        desk.signal("w", body).await;
    }
    let sent = Commit {
        consumed: 1,
        create: vec![new("child")],
        signals: vec![(id("other"), signal("hello"))],
        ..commit(&claimed, Next::Keep)
    };
    let (first, second) = twice(&desk, sent).await;
    for committed in [first, second] {
        let Committed::Done { lease_until: Some(_), signals } = committed else { panic!("{committed:?}") };
        assert_eq!(signals, vec![signal("two"), signal("three")]);
    }
    assert_eq!(desk.store.journal(&id("w"), 1, 10).await.unwrap().len(), 2);
    let mut woken = desk.claim(10).await;
    woken.sort_by(|one, two| one.document.id.cmp(&two.document.id));
    assert_eq!(desk.names(&woken).await, ["child", "other"]);
    assert_eq!(woken[1].signals, vec![signal("hello")]);
}

pub async fn a_repeated_commit_that_parks_stands_once(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    for (name, next) in [("later", Next::At(desk.now().await + LONG)), ("asleep", Next::Signal)] {
        let claimed = desk.begin(name).await;
        let (first, second) = twice(&desk, commit(&claimed, next)).await;
        assert_eq!((first, second), (done(), done()), "{name}");
        let document = desk.store.load(&id(name)).await.unwrap().unwrap();
        assert_eq!((document.seq, document.lease), (2, None));
        // Another commit under that fence is not a repeat.
        let stale = commit(&after(&claimed, &commit(&claimed, next)), next);
        assert_eq!(desk.commit(stale).await, Committed::Fenced, "{name}");
    }
    assert!(desk.claim(10).await.is_empty());
}

pub async fn a_repeated_commit_that_ends_stands_once(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let claimed = desk.begin("w").await;
    let (first, second) = twice(&desk, commit(&claimed, Next::End { keep: LONG })).await;
    assert_eq!((first, second), (done(), done()));
    let document = desk.store.load(&id("w")).await.unwrap().unwrap();
    assert_eq!((document.seq, document.status, document.due), (2, Status::Succeeded, None));
    assert!(desk.claim(10).await.is_empty());
    assert!(desk.store.counts().await.unwrap().is_empty());
}

pub async fn a_repeated_commit_without_entries_stands_once(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let mut claimed = desk.begin("w").await;
    for body in ["one", "two", "three"] {
        desk.signal("w", body).await;
    }
    let sent = Commit { consumed: 1, ..bare_commit(&claimed, Next::Keep) };
    let (first, second) = twice(&desk, sent).await;
    for committed in [first, second] {
        let Committed::Done { signals, .. } = committed else { panic!("{committed:?}") };
        assert_eq!(signals, vec![signal("two"), signal("three")]);
    }
    claimed = desk.must(&claimed, Commit { consumed: 2, ..commit(&claimed, Next::Keep) }).await;
    let (first, second) = twice(&desk, bare_commit(&claimed, Next::Signal)).await;
    assert_eq!((first, second), (done(), done()));
    assert_eq!(desk.store.load(&id("w")).await.unwrap().unwrap().seq, 2);
    assert!(desk.claim(10).await.is_empty());
}

pub async fn a_repeat_after_somebody_else_was_granted_the_lease_does_not_give_it_back(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    desk.create("w").await;
    let mut claimed = desk.claim_for(1, SHORT).await;
    let first = claimed.remove(0);
    let kept = commit(&first, Next::Keep);
    let advance = Advance { lease: SHORT, commits: vec![kept.clone()], ..Advance::default() };
    assert!(is_done(&desk.advance(advance).await.commits[0]));
    bed.pass(SHORT).await;
    let second = desk.claim_only().await;
    assert_eq!(second.document.seq, 2);
    assert_eq!(desk.commit(kept).await, Committed::Fenced);
    let parked = commit(&second, Next::At(desk.now().await));
    assert_eq!(desk.commit(parked.clone()).await, done());
    // It was granted to a third one meanwhile, but the park stood, and that is all there is to say about it.
    desk.claim_only().await;
    assert_eq!(desk.commit(parked).await, done());
    assert_eq!(desk.store.journal(&id("w"), 1, 10).await.unwrap().len(), 3);
}

pub async fn many_commits_of_one_call_are_judged_apart_and_in_order(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    const COUNT: usize = 600;
    for number in 0..COUNT {
        desk.create(&format!("w{number:03}")).await;
    }
    let mut claimed = Vec::new();
    while claimed.len() < COUNT {
        claimed.extend(desk.claim(200).await);
    }
    let mut commits: Vec<_> = claimed.iter().map(|claimed| commit(claimed, Next::Signal)).collect();
    commits[3].fence = Fence(1);
    commits[400].expected = 9;
    commits.push(Commit { id: id("absent"), ..commits[0].clone() });
    // Twice the same workflow in one call: the first is done, the second comes too late.
    commits.push(commit(&after(&claimed[5], &commits[5]), Next::Signal));
    let renew = claimed.iter().map(|claimed| (claimed.document.id.clone(), claimed.fence)).collect();
    let advanced = desk.advance(Advance { lease: LONG, commits, renew, ..Advance::default() }).await;
    let unusual: Vec<_> =
        advanced.commits.iter().enumerate().filter(|(_, committed)| **committed != done()).collect();
    assert_eq!(
        unusual,
        [
            (3, &Committed::Fenced),
            (400, &Committed::Conflict { seq: 1 }),
            (COUNT, &Committed::Fenced),
            (COUNT + 1, &Committed::Fenced)
        ]
    );
    let renewed: Vec<_> =
        advanced.renewed.iter().enumerate().filter(|(_, until)| until.is_some()).map(|(place, _)| place).collect();
    assert!(renewed.contains(&3) && renewed.contains(&400), "{renewed:?}");
}

pub async fn whatever_texts_are_kept_come_back(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let odd = "line\r\n\"quote\" \0 nul {ta} %s ünïcödé \u{1f680} $2\r\n";
    let long = odd.repeat(20_000);
    let odd_new = NewWorkflow {
        kind: odd.to_owned(),
        target: odd.to_owned(),
        headline: odd.to_owned(),
        entry: entry(None, &long),
        // Has a form that stores may rely on: no spaces.
        traceparent: Some("00-ü-2-01".to_owned()),
        due: Some(Timestamp::from_millis(-5)),
        ..new("w")
    };
    desk.store.create(odd_new.clone()).await.unwrap();
    desk.store.signal(&id("w"), signal(&long)).await.unwrap();
    let claimed = desk.claim_only().await;
    assert!(claimed.signals == [signal(&long)], "the signal came back otherwise");
    let document = desk.store.load(&id("w")).await.unwrap().unwrap();
    assert!(document == claimed.document, "claimed and loaded differ");
    let same = document.kind == odd && document.headline == odd && document.target == odd;
    assert!(same && document.traceparent == odd_new.traceparent, "the document came back otherwise");
    assert!(claimed.journal == [odd_new.entry.clone()], "the entry was handed out otherwise");
    assert!(desk.store.journal(&id("w"), 1, 1).await.unwrap() == [odd_new.entry], "the entry came back otherwise");
    let wish = Commit { take: vec![lock(odd), share(odd, odd, 1)], state: Some(long.clone()), ..commit(&claimed, Next::Keep) };
    desk.must(&claimed, wish).await;
    assert!(desk.store.load(&id("w")).await.unwrap().unwrap().state == Some(long), "the state came back otherwise");
    let held = desk.store.holdings().await.unwrap();
    assert_eq!(held.len(), 2);
    assert_eq!(held[1].resource, Resource::Budget { name: odd.to_owned(), member: odd.to_owned() });
}
