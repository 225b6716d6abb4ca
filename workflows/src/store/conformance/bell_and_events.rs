//! Being told, instead of asking again and again.

use super::*;

pub async fn a_bell_wakes_whoever_waits(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let asleep = desk.begin("asleep").await;
    desk.must(&asleep, commit(&asleep, Next::Signal)).await;
    desk.claim(10).await;
    let due = desk.now().await + LONG;
    let wakers: [(&str, Waker<'_>); 4] = [
        ("a creation", &|store| Box::pin(async move { store.create(new("made")).await.map(drop) })),
        ("a timer before all others", &|store| {
            Box::pin(async move { store.create(NewWorkflow { due: Some(due), ..new("later") }).await.map(drop) })
        }),
        ("a signal", &|store| Box::pin(async move { store.signal(&id("asleep"), signal("go")).await.map(drop) })),
        ("a ring", &|store| Box::pin(async move { store.ring(&Queue::DEFAULT).await })),
    ];
    for (what, waker) in wakers {
        let (store, waiter) = (desk.store.clone(), desk.store.clone());
        let waited = async { waiter.wait_for_bell(&[Queue::DEFAULT], LONG).await };
        let (waited, told) = tokio::join!(tokio::time::timeout(LONG, waited), waker(store));
        told.unwrap();
        waited.unwrap_or_else(|_| panic!("{what} did not ring")).unwrap();
        desk.claim(10).await;
    }
}

type Waker<'a> = &'a dyn Fn(Arc<dyn Store>) -> Told;
type Told = std::pin::Pin<Box<dyn Future<Output = Result<(), crate::store::StoreError>> + Send>>;

pub async fn a_ring_waits_for_whoever_comes_later(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    // Somebody waited, and left.
    desk.store.wait_for_bell(&[Queue::DEFAULT], Duration::ZERO).await.unwrap();
    desk.store.ring(&Queue::DEFAULT).await.unwrap();
    desk.store.wait_for_bell(&[Queue::DEFAULT], LONG).await.unwrap();
    for _ in 0..3 {
        desk.store.ring(&Queue::DEFAULT).await.unwrap();
    }
    let queues = [Queue::DEFAULT];
    let wait = || desk.store.wait_for_bell(&queues, LONG);
    let (one, two, three) = tokio::join!(wait(), wait(), wait());
    one.and(two).and(three).unwrap();
}

pub async fn rings_about_nothing_are_forgotten(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    for number in 0..5 {
        desk.create(&format!("w{number}")).await;
    }
    // Whatever was due is taken, so there is nothing to wake anybody for.
    desk.claim(10).await;
    assert!(!desk.rang().await);
    for number in 5..10 {
        desk.create(&format!("w{number}")).await;
    }
    desk.claim(3).await;
    assert!(desk.rang().await);
}

pub async fn whoever_has_no_place_left_leaves_a_ring_for_others(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let first = desk.begin("first").await;
    for name in ["second", "third"] {
        desk.create(name).await;
    }
    while desk.rang().await {}
    // Who heard those rings takes as much as it can.
    desk.claim(1).await;
    assert!(desk.rang().await, "one more is due");
    // Something is due in a while, and whoever says so takes the last that is due now.
    let parks = commit(&first, Next::At(desk.now().await + LONG));
    let claim = Claim { max: 1, lease: 2 * LONG, worker: "host:1".to_owned(), queues: vec![Queue::DEFAULT] };
    let advanced = desk.advance(Advance { lease: LONG, commits: vec![parks], claim: Some(claim), ..Advance::default() }).await;
    assert_eq!((is_done(&advanced.commits[0]), advanced.claimed.len()), (true, 1));
    assert!(desk.rang().await, "a time that nobody with a place left has heard of");
}

pub async fn events_are_told_in_order_and_from_a_cursor(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let start = desk.store.events_end().await.unwrap();
    let none = desk.store.events(Some(&start), Duration::ZERO).await.unwrap();
    assert_eq!(none, vec![]);
    let claimed = desk.begin("w").await;
    let mut two = commit(&claimed, Next::Keep);
    two.entries.push(entry(Some(two.entries[0].digest), "{}"));
    let claimed = desk.must(&claimed, two.clone()).await;
    desk.commit(two.clone()).await;
    desk.must(&claimed, commit(&claimed, Next::End { keep: LONG })).await;

    let events = desk.store.events(Some(&start), LONG).await.unwrap();
    let told: Vec<_> = events.iter().map(|event| (event.seq, event.status, event.headline.as_str())).collect();
    let expected = [
        (1, Status::Runnable, "w begins"),
        (2, Status::Runnable, "w goes on"),
        (3, Status::Runnable, "w goes on"),
        (4, Status::Succeeded, "w goes on"),
    ];
    assert_eq!(told, expected);
    assert!(events.iter().all(|event| event.workflow == id("w") && event.kind == "probe" && event.target == "site"));
    assert_eq!([&events[1].entry, &events[2].entry], [&two.entries[0], &two.entries[1]]);
    assert_eq!(desk.store.events_end().await.unwrap(), events[3].cursor);
    let rest = desk.store.events(Some(&events[1].cursor), LONG).await.unwrap();
    assert_eq!(rest, events[2..]);
    let from_nonsense = desk.store.events(Some("nonsense"), LONG).await.unwrap();
    assert_eq!(from_nonsense, events);
}

pub async fn what_one_call_did_is_told_event_by_event(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let start = desk.store.events_end().await.unwrap();
    let parent = desk.begin("parent").await;
    let headline = "a: 3 of 7\n\u{1f680}".to_owned();
    let children = (0..700).map(|number| NewWorkflow { headline: headline.clone(), ..new(&format!("child{number}")) });
    let kept = Commit { create: children.collect(), ..commit(&parent, Next::Keep) };
    desk.must(&parent, kept).await;
    let (mut seen, mut cursor) = (Vec::new(), start);
    while seen.len() < 702 {
        let page = desk.store.events(Some(&cursor), LONG).await.unwrap();
        assert!(!page.is_empty() && page.len() <= 500);
        cursor.clone_from(&page[page.len() - 1].cursor);
        seen.extend(page);
    }
    assert_eq!(cursor, desk.store.events_end().await.unwrap());
    assert_eq!(seen.iter().filter(|event| event.headline == headline && event.seq == 1).count(), 700);
    // From any place in the middle.
    let rest = desk.store.events(Some(&seen[600].cursor), LONG).await.unwrap();
    assert_eq!(rest, seen[601..]);
}

pub async fn waiting_for_events_ends_when_one_happens(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    desk.create("before").await;
    let start = desk.store.events_end().await.unwrap();
    let wait = || desk.store.events(Some(&start), LONG);
    let (one, two, ()) = tokio::join!(wait(), wait(), desk.create("w"));
    for seen in [one.unwrap(), two.unwrap()] {
        assert_eq!(seen.iter().map(|event| event.workflow.as_str()).collect::<Vec<_>>(), ["w"]);
    }
    // From now on: not what was before.
    let none = desk.store.events(None, Duration::from_millis(1)).await.unwrap();
    assert_eq!(none, vec![]);
}
