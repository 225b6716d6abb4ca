//! What people and jobs look at.

use super::*;
use crate::store::{Backlog, Query, Scope, Waiting};

async fn listed(desk: &Desk, query: Query) -> Vec<String> {
    let documents = desk.store.list(&query).await.unwrap();
    documents.into_iter().map(|document| document.id.to_string()).collect()
}

pub async fn ended_workflows_are_swept_and_may_be_created_anew(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let parent = desk.begin("parent").await;
    let child = NewWorkflow { parent: Some(id("parent")), ..new("parent.child") };
    desk.must(&parent, Commit { create: vec![child.clone()], ..commit(&parent, Next::Keep) }).await;
    let claimed = desk.claim_named("parent.child").await;
    desk.must(&claimed, commit(&claimed, Next::End { keep: SOON })).await;
    let all = Query { scope: Scope::All, limit: 10, ..Query::default() };
    let children = Query { parent: Some(id("parent")), ..all.clone() };
    assert_eq!(desk.store.sweep().await.unwrap(), 0);
    assert_eq!(desk.store.create(child.clone()).await.unwrap(), Created::Existing);
    assert_eq!(listed(&desk, children.clone()).await, ["parent.child"]);
    bed.pass(SOON).await;
    assert_eq!(desk.store.sweep().await.unwrap(), 1);
    assert_eq!(desk.store.sweep().await.unwrap(), 0);
    assert_eq!(desk.store.load(&id("parent.child")).await.unwrap(), None);
    assert_eq!(desk.store.journal(&id("parent.child"), 1, 10).await.unwrap(), vec![]);
    assert_eq!(desk.signal("parent.child", "hello").await, Signalled::Missing);
    assert_eq!(listed(&desk, children.clone()).await, Vec::<String>::new());
    assert_eq!(listed(&desk, all).await, ["parent"]);

    assert_eq!(desk.store.create(child).await.unwrap(), Created::New);
    assert_eq!(desk.store.sweep().await.unwrap(), 0);
    assert_eq!(listed(&desk, children).await, ["parent.child"]);
    let claimed = desk.claim_named("parent.child").await;
    assert_eq!((claimed.document.seq, claimed.document.status), (1, Status::Runnable));
}

pub async fn listings_are_filtered_and_newest_first(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let named = [("a", "roll", "site"), ("b", "node", "n1"), ("c", "node", "n2"), ("d", "node", "n1")];
    for (name, kind, target) in named {
        let parent = (name != "a").then(|| id("a"));
        let made = NewWorkflow { kind: kind.to_owned(), target: target.to_owned(), parent, ..new(name) };
        desk.store.create(made).await.unwrap();
        bed.pass(Duration::from_millis(2)).await;
    }
    for claimed in desk.claim(10).await {
        if claimed.document.id == id("c") {
            desk.must(&claimed, commit(&claimed, Next::End { keep: LONG })).await;
        }
    }
    let all = Query { scope: Scope::All, limit: 10, ..Query::default() };
    let node = Some("node".to_owned());
    let n1 = Some("n1".to_owned());
    let cases: [(Query, &[&str]); 11] = [
        (all.clone(), &["d", "c", "b", "a"]),
        (Query { limit: 2, ..all.clone() }, &["d", "c"]),
        (Query { offset: 1, limit: 2, ..all.clone() }, &["c", "b"]),
        (Query { offset: 9, ..all.clone() }, &[]),
        (Query { limit: 0, ..all.clone() }, &[]),
        (Query { scope: Scope::Open, ..all.clone() }, &["d", "b", "a"]),
        (Query { scope: Scope::Ended, ..all.clone() }, &["c"]),
        (Query { kind: node.clone(), ..all.clone() }, &["d", "c", "b"]),
        (Query { kind: node.clone(), target: n1.clone(), offset: 1, ..all.clone() }, &["b"]),
        (Query { parent: Some(id("a")), scope: Scope::Open, ..all.clone() }, &["d", "b"]),
        (Query { parent: Some(id("a")), target: n1, scope: Scope::Ended, ..all.clone() }, &[]),
    ];
    for (query, expected) in cases {
        assert_eq!(listed(&desk, query.clone()).await, expected, "{query:?}");
    }
}

pub async fn open_workflows_are_counted_by_status(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    assert_eq!(desk.store.counts().await.unwrap(), vec![]);
    for name in ["a", "b", "c", "d"] {
        desk.create(name).await;
    }
    desk.store.create(NewWorkflow { due: Some(desk.now().await + LONG), ..new("e") }).await.unwrap();
    assert_eq!(desk.store.counts().await.unwrap(), [(Status::Runnable, 4), (Status::Waiting, 1)]);
    let asks = Status::NeedsOperator;
    for claimed in desk.claim(10).await {
        let next = match claimed.document.id.as_str() {
            "a" => Commit { status: asks, ..commit(&claimed, Next::Signal) },
            "b" => commit(&claimed, Next::End { keep: LONG }),
            _ => commit(&claimed, Next::Keep),
        };
        let (repeat, claimed) = (next.clone(), claimed);
        desk.must(&claimed, next).await;
        desk.commit(repeat).await;
    }
    assert_eq!(desk.store.counts().await.unwrap(), [(Status::Runnable, 2), (Status::Waiting, 1), (asks, 1)]);
}

pub async fn what_nobody_takes_is_counted_by_queue(bed: &dyn Bed) {
    let desk = Desk::at(bed);
    let (elsewhere, nowhere) = (Queue::of("elsewhere"), Queue::of("nowhere"));
    let queues = [Queue::DEFAULT, elsewhere.clone(), nowhere];
    let look = async |before: Timestamp| desk.store.backlog(&queues, before).await.unwrap();
    let nothing = Waiting::default();
    let began = desk.now().await;
    assert_eq!(look(began).await, Backlog { leased: 0, expired: nothing, due: vec![nothing; 3] });
    for name in ["a", "b", "c", "d"] {
        desk.create(name).await;
    }
    let far = desk.now().await + LONG;
    desk.store.create(NewWorkflow { due: Some(far), ..new("e") }).await.unwrap();
    let since = desk.store.load(&id("a")).await.unwrap().unwrap().due;
    assert_eq!(look(since.unwrap()).await.due[0].since, since);
    assert_eq!(look(desk.now().await).await, Backlog { leased: 0, expired: nothing, due: vec![Waiting { count: 4, since }, nothing, nothing] });
    assert_eq!(look(far).await.due[0].count, 5, "the moment itself counts");
    assert_eq!(look(Timestamp::from_millis(since.unwrap().millis() - 1)).await.due[0], nothing);

    let claimed = desk.claim_for(3, SHORT).await;
    let past = desk.now().await;
    desk.must(&claimed[0], Commit { queue: elsewhere, ..commit(&claimed[0], Next::At(past)) }).await;
    let parked = desk.store.load(&claimed[0].document.id).await.unwrap().unwrap().due;
    desk.must(&claimed[1], commit(&claimed[1], Next::Signal)).await;
    let until = claimed[2].lease_until;
    let due = vec![Waiting { count: 1, since: look(far).await.due[0].since }, Waiting { count: 1, since: parked }, nothing];
    let before = Timestamp::from_millis(until.millis() - 1);
    let with_leases = look(before).await;
    assert_eq!((with_leases.leased, with_leases.expired), (1, nothing));
    bed.pass(SHORT).await;
    assert_eq!(look(desk.now().await).await, Backlog { leased: 0, expired: Waiting { count: 1, since: Some(until) }, due });
}
