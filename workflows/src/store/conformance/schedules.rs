//! The ledger of schedules.

use std::collections::BTreeSet;

use super::*;

pub async fn ticks_are_judged_by_one_of_two_daemons(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let (first, second) = (Timestamp::from_millis(1_000), Timestamp::from_millis(2_000));
    assert_eq!(desk.store.last_tick("nightly").await.unwrap(), None);
    let judge = async |last, at, name: &str| {
        desk.store.judge_ticks("nightly", last, at, vec![new(name)]).await.unwrap()
    };
    let (one, two) = tokio::join!(judge(None, first, "tick-1"), judge(None, first, "tick-1"));
    assert!(one != two, "one of them: {one} {two}");
    assert_eq!(desk.store.last_tick("nightly").await.unwrap(), Some(first));
    assert_eq!(desk.store.last_tick("weekly").await.unwrap(), None);
    assert_eq!(desk.due_names().await, ["tick-1"]);
    let (one, two) = tokio::join!(judge(Some(first), second, "a"), judge(None, second, "b"));
    assert_eq!((one, two), (true, false));
    assert_eq!(desk.due_names().await, ["a"]);
    assert_eq!(desk.store.last_tick("nightly").await.unwrap(), Some(second));
    assert_eq!(desk.store.ledgers().await.unwrap(), BTreeSet::from(["nightly".to_owned()]));
}
