//! Signals: durable, in order, consumed by a commit.

use super::*;
use crate::store::INBOX_SIGNALS_MAX;

async fn asleep(desk: &Desk, name: &str) {
    let claimed = desk.begin(name).await;
    desk.must(&claimed, commit(&claimed, Next::Signal)).await;
    assert!(desk.claim(10).await.is_empty());
}

pub async fn a_signal_wakes_whom_it_is_for(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    asleep(&desk, "sleeper").await;
    let later = desk.begin("later").await;
    desk.must(&later, commit(&later, Next::At(desk.now().await + LONG))).await;
    for name in ["sleeper", "later"] {
        assert_eq!(desk.signal(name, "wake").await, Signalled::Kept);
        let claimed = desk.claim_named(name).await;
        assert_eq!(claimed.signals, vec![signal("wake")]);
    }
}

pub async fn a_signal_that_arrives_before_the_park_is_not_slept_through(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    for next in [Next::Signal, Next::At(desk.now().await + LONG)] {
        let name = if next == Next::Signal { "one" } else { "two" };
        let claimed = desk.begin(name).await;
        assert_eq!(desk.signal(name, "just now").await, Signalled::Kept);
        desk.must(&claimed, commit(&claimed, next)).await;
        let claimed = desk.claim_named(name).await;
        assert_eq!(claimed.signals, vec![signal("just now")]);
        desk.must(&claimed, Commit { consumed: 1, ..commit(&claimed, next) }).await;
        assert!(desk.claim(10).await.is_empty());
    }
}

pub async fn signals_are_consumed_in_order_and_once(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let claimed = desk.begin("w").await;
    for number in 0..250 {
        desk.signal("w", &format!("{number}")).await;
    }
    let mut claimed = desk.must(&claimed, commit(&claimed, Next::Keep)).await;
    let mut read = Vec::new();
    let mut consumed = 0;
    loop {
        let kept = Commit { consumed, ..commit(&claimed, Next::Keep) };
        let after = after(&claimed, &kept);
        let Committed::Done { signals, .. } = desk.commit(kept).await else { panic!("refused") };
        claimed = after;
        if signals.is_empty() {
            break;
        }
        consumed = u32::try_from(signals.len()).unwrap();
        read.extend(signals.into_iter().map(|signal| signal.body));
    }
    assert_eq!(read, (0..250).map(|number| number.to_string()).collect::<Vec<_>>());
    // More than there are is as many as there are.
    desk.signal("w", "last").await;
    desk.must(&claimed, Commit { consumed: 9, ..commit(&claimed, Next::Signal) }).await;
    assert!(desk.claim(10).await.is_empty());
}

pub async fn signals_for_nobody_are_refused(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    assert_eq!(desk.signal("absent", "hello").await, Signalled::Missing);
    let claimed = desk.begin("w").await;
    // A signal of its own, in the commit that ends it, goes nowhere either.
    let ended = Commit { signals: vec![(id("w"), signal("self"))], ..commit(&claimed, Next::End { keep: LONG }) };
    desk.must(&claimed, ended).await;
    assert_eq!(desk.signal("w", "hello").await, Signalled::Ended);
    assert!(desk.claim(10).await.is_empty());
}

pub async fn an_inbox_has_a_bound(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    asleep(&desk, "w").await;
    for number in 0..INBOX_SIGNALS_MAX {
        assert_eq!(desk.signal("w", &format!("{number}")).await, Signalled::Kept);
    }
    assert_eq!(desk.signal("w", "too many").await, Signalled::Full);
    let claimed = desk.claim_named("w").await;
    assert_eq!(claimed.signals[0], signal("0"));
    desk.must(&claimed, Commit { consumed: 1, ..commit(&claimed, Next::Keep) }).await;
    assert_eq!(desk.signal("w", "fits again").await, Signalled::Kept);
    // What a workflow tells another one is told once, and by as many as there are.
    let other = desk.begin("other").await;
    desk.must(&other, Commit { signals: vec![(id("w"), signal("ended"))], ..commit(&other, Next::Signal) }).await;
    let read = INBOX_SIGNALS_MAX;
    let Committed::Done { signals, .. } = desk.commit(Commit { expected: 3, consumed: read, ..bare_commit(&claimed, Next::Keep) }).await else { panic!("it stands") };
    assert_eq!(signals, vec![signal("ended")]);
}

pub async fn a_repeated_signal_is_kept_once(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    asleep(&desk, "w").await;
    for body in ["pause", "resume", "pause"] {
        assert_eq!(desk.signal("w", body).await, Signalled::Kept);
    }
    assert_eq!(desk.claim_named("w").await.signals, vec![signal("pause"), signal("resume")]);
}

pub async fn a_commit_sends_signals_and_creates_children(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    asleep(&desk, "sleeper").await;
    let busy = desk.begin("busy").await;
    let parent = desk.begin("parent").await;
    let child = NewWorkflow { parent: Some(id("parent")), ..new("parent.child") };
    let later = NewWorkflow { due: Some(desk.now().await + LONG), ..new("parent.later") };
    let existing = NewWorkflow { headline: "overwritten".to_owned(), ..new("busy") };
    let told = ["sleeper", "busy", "absent", "parent.child", "sleeper"];
    let sent = Commit {
        create: vec![child, later, existing],
        signals: told.iter().map(|name| (id(name), signal("from parent"))).collect(),
        ..commit(&parent, Next::Signal)
    };
    desk.must(&parent, sent).await;
    let mut due = desk.claim(10).await;
    due.sort_by(|one, two| one.document.id.cmp(&two.document.id));
    assert_eq!(desk.names(&due).await, ["parent.child", "sleeper"]);
    assert_eq!(due[0].document.parent, Some(id("parent")));
    assert_eq!((due[0].signals.len(), due[1].signals.len()), (1, 2));
    assert_eq!(desk.store.load(&id("busy")).await.unwrap().unwrap().headline, new("busy").headline);
    desk.must(&busy, commit(&busy, Next::Signal)).await;
    assert_eq!(desk.claim_named("busy").await.signals, vec![signal("from parent")]);
}
