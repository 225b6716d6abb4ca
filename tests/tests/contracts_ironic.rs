//! What the port to whoever rebuilds nodes promises, held against the simulated site itself and against the real adapter over its server, as
//! `contracts_ports.rs` holds the others. Time is turned by hand.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use turnaround_config::NodeName;
use turnaround_tests::servers::{Mishap, Which};
use turnaround_tests::site::{Settings, Site};
use turnaround_workflows::clock::{HandClock, Timestamp};
use turnaround_workflows::ports::*;
use turnaround_workflows::rehearsal::*;

/// 2026-03-01.
const START: Timestamp = Timestamp::from_millis(1_772_323_200_000);

#[derive(Clone, Copy, PartialEq, Eq)]
enum On {
    World,
    Adapter,
}

/// A site whose first node Ironic renews, and the ports to it.
struct Bench {
    clock: Arc<HandClock>,
    world: Arc<World>,
    ports: Ports,
    site: Option<Site>,
}

impl On {
    async fn site(self, plan: SitePlan) -> Bench {
        self.site_with(plan, |text| text).await
    }

    async fn site_with(self, plan: SitePlan, changed: impl FnOnce(String) -> String) -> Bench {
        let clock = Arc::new(HandClock::at(START));
        let world = World::new(clock.clone(), plan, 1);
        match self {
            On::World => Bench { ports: world.ports(), clock, world, site: None },
            On::Adapter => {
                let site = Site::start(&world).await.unwrap();
                let text = changed(site.config_toml(&world, &Settings::quick(Path::new(env!("CARGO_BIN_EXE_site-ssh")))));
                let config = turnaround_config::check_text("config.toml", &text).unwrap_or_else(|report| panic!("{report}"));
                let ports = turnaround_worker::adapters::connect(&config).unwrap_or_else(|error| panic!("{error}"));
                Bench { clock, world, ports, site: Some(site) }
            }
        }
    }
}

impl Bench {
    fn settle(&self) {
        while let Some(next) = self.world.next_event() {
            self.clock.advance_to(next);
        }
    }

    async fn record(&self) -> RebuildRecord {
        self.ports.rebuilder.record(&gpu()).await.unwrap()
    }

    fn order(&self, token: &str) -> RebuildOrder {
        let image = self.world.images().remove(0);
        RebuildOrder { token: Token(token.to_owned()), id: GPU.to_owned(), source: "http://192.0.2.1/images/new.raw".to_owned(), sha256: image.sha256 }
    }

    /// Ordered, and begun.
    async fn rebuild(&self, token: &str) -> RebuildOrder {
        let order = RebuildOrder { id: self.record().await.id, ..self.order(token) };
        self.ports.rebuilder.order(&gpu(), &order).await.unwrap();
        self.ports.rebuilder.rebuild(&gpu(), &order).await.unwrap();
        order
    }

    fn rebuilds(&self) -> usize {
        let begun = |what: &Happened| matches!(what, Happened::RebuildRequested { refused: None, .. });
        self.world.events().iter().filter(|event| begun(&event.what)).count()
    }
}

fn plan() -> SitePlan {
    SitePlan::uniform(2, 0).with_ironic(&["gpu-01"])
}

/// Its name, by which it is known there, too.
const GPU: &str = "gpu-01";

fn gpu() -> NodeName {
    GPU.parse().unwrap()
}

/// Makes two tests of every contract.
macro_rules! contracts {
    ($($name:ident),* $(,)?) => {
        mod the_world {
            $(#[tokio::test] async fn $name() { super::$name(super::On::World).await })*
        }
        mod the_adapter {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::On::Adapter).await })*
        }
    };
}

contracts! {
    a_node_in_use_is_on_record_as_installed,
    an_order_is_on_record_and_nothing_is_done_by_it,
    a_rebuilt_node_carries_the_token_and_the_digest_of_its_order,
    a_second_rebuild_is_refused_for_now_while_one_goes_on,
    a_rebuild_that_has_ended_can_be_asked_for_again,
    the_record_shows_that_a_rebuild_began_also_to_whom_the_answer_was_lost,
    a_rebuild_that_failed_says_why_and_can_be_tried_again,
    what_speaks_against_a_rebuild_is_told,
    a_protected_node_is_not_rebuilt_until_the_next_order,
    a_protection_of_somebody_elses_stays_theirs,
    a_refusal_is_told_in_its_own_words,
    somebody_elses_lock_is_told_and_is_a_not_now,
    a_service_that_is_away_is_unavailable_and_nothing_was_done,
    a_node_that_is_not_its_own_is_refused_or_not_found,
}

async fn a_node_in_use_is_on_record_as_installed(on: On) {
    let bench = on.site(plan()).await;
    let record = bench.record().await;
    assert_eq!((record.state, record.called.as_str()), (RebuildState::Installed, "active"));
    assert_eq!((record.objections, record.locked_by, record.order, record.last_error), (vec![], None, None, None));
    assert!(record.changed.is_some());
}

async fn an_order_is_on_record_and_nothing_is_done_by_it(on: On) {
    let bench = on.site(plan()).await;
    let before = bench.record().await;
    for token in ["t-1", "t-2"] {
        bench.ports.rebuilder.order(&gpu(), &bench.order(token)).await.unwrap();
        let record = bench.record().await;
        assert_eq!(record, RebuildRecord { order: Some(Token(token.to_owned())), ..before.clone() });
    }
    bench.settle();
    assert_eq!(bench.world.events().len(), 1);
}

async fn a_rebuilt_node_carries_the_token_and_the_digest_of_its_order(on: On) {
    let bench = on.site(plan()).await;
    let before = bench.ports.facts.facts(&gpu()).await.unwrap();
    let order = bench.rebuild("t-1").await;
    assert_eq!((bench.record().await.state, bench.record().await.called.as_str()), (RebuildState::Working, "deploying"));
    bench.clock.advance(Duration::from_secs(5));
    assert_eq!(bench.ports.facts.facts(&gpu()).await.unwrap_err().kind, PortErrorKind::Unavailable);
    bench.settle();
    let record = bench.record().await;
    assert_eq!((record.state, record.locked_by, record.last_error), (RebuildState::Installed, None, None));
    // By ssh, from a host key that nobody knew before.
    let after = bench.ports.facts.facts(&gpu()).await.unwrap();
    assert_ne!(after.boot_id, before.boot_id);
    assert_eq!(after.installed, Some(Installed { token: order.token, sha256: order.sha256 }));
    assert_eq!(after.hostname, "gpu-01");
}

async fn a_second_rebuild_is_refused_for_now_while_one_goes_on(on: On) {
    let bench = on.site(plan()).await;
    let order = bench.rebuild("t-1").await;
    assert_eq!(bench.ports.rebuilder.rebuild(&gpu(), &order).await.unwrap_err().kind, PortErrorKind::Unavailable);
    assert_eq!(bench.ports.rebuilder.order(&gpu(), &bench.order("t-2")).await.unwrap_err().kind, PortErrorKind::Unavailable);
    assert_eq!(bench.record().await.order, Some(Token("t-1".to_owned())));
    assert_eq!(bench.rebuilds(), 1);
}

/// Therefore it is for the caller not to ask twice.
async fn a_rebuild_that_has_ended_can_be_asked_for_again(on: On) {
    let bench = on.site(plan()).await;
    let order = bench.rebuild("t-1").await;
    bench.settle();
    bench.ports.rebuilder.rebuild(&gpu(), &order).await.unwrap();
    bench.settle();
    bench.rebuild("t-2").await;
    bench.settle();
    assert_eq!(bench.rebuilds(), 3);
    assert_eq!(bench.ports.facts.facts(&gpu()).await.unwrap().installed.unwrap().token, Token("t-2".to_owned()));
}

async fn the_record_shows_that_a_rebuild_began_also_to_whom_the_answer_was_lost(on: On) {
    let bench = on.site(plan().loses_answer(Call::Rebuild, 1)).await;
    let order = bench.order("t-1");
    bench.ports.rebuilder.order(&gpu(), &order).await.unwrap();
    let before = bench.record().await;
    assert_eq!(bench.ports.rebuilder.rebuild(&gpu(), &order).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    assert_ne!(bench.record().await.changed, before.changed);
    bench.settle();
    let after = bench.record().await;
    assert_eq!((after.state, after.order), (RebuildState::Installed, Some(order.token)));
    assert_ne!(after.changed, before.changed, "also when it is over");
    assert_eq!(bench.rebuilds(), 1);
}

async fn a_rebuild_that_failed_says_why_and_can_be_tried_again(on: On) {
    let mut plan = plan();
    plan.node("gpu-01").unwrap().faults.rebuild_fails = 1;
    let bench = on.site(plan).await;
    bench.rebuild("t-1").await;
    bench.settle();
    let record = bench.record().await;
    assert_eq!((record.state, record.called.as_str()), (RebuildState::Failed, "deploy failed"));
    assert_eq!(record.last_error.as_deref(), Some("Agent failed to write the image: No space left on device"));
    bench.rebuild("t-2").await;
    bench.settle();
    assert_eq!((bench.record().await.state, bench.record().await.last_error), (RebuildState::Installed, None));
}

async fn what_speaks_against_a_rebuild_is_told(on: On) {
    let mut plan = plan();
    let record = RecordPlan { maintenance: Some("DIMM, ask bob".to_owned()), protected: true, tenant: Some("6f1c".to_owned()) };
    plan.node("gpu-01").unwrap().ironic = Some(record);
    let bench = on.site(plan).await;
    let objections = bench.record().await.objections;
    assert_eq!(objections.len(), 3, "{objections:?}");
    for (objection, told) in objections.iter().zip(["in maintenance: DIMM, ask bob", "protected", "the machine of instance 6f1c"]) {
        assert!(objection.contains(told), "{objection}");
    }
}

async fn a_protected_node_is_not_rebuilt_until_the_next_order(on: On) {
    let bench = on.site(plan()).await;
    let order = bench.rebuild("t-1").await;
    let id = bench.record().await.id;
    assert_eq!(bench.ports.rebuilder.protect(&gpu(), &id).await.unwrap_err().kind, PortErrorKind::Unavailable, "it is being rebuilt");
    bench.settle();
    assert!(!bench.record().await.protected_by_us);
    for _ in 0..2 {
        bench.ports.rebuilder.protect(&gpu(), &id).await.unwrap();
        let record = bench.record().await;
        assert_eq!((record.protected_by_us, record.objections.len()), (true, 0), "no objection to an order of ours");
    }
    match bench.ports.rebuilder.rebuild(&gpu(), &order).await.unwrap_err().kind {
        PortErrorKind::Refused { reason } | PortErrorKind::Denied { reason } => assert!(reason.contains("is protected"), "{reason}"),
        other => panic!("{other:?}"),
    }
    bench.settle();
    assert_eq!(bench.rebuilds(), 1);
    bench.rebuild("t-2").await;
    bench.settle();
    assert_eq!((bench.rebuilds(), bench.record().await.protected_by_us), (2, false));
}

async fn a_protection_of_somebody_elses_stays_theirs(on: On) {
    let mut plan = plan();
    plan.node("gpu-01").unwrap().ironic = Some(RecordPlan { protected: true, ..RecordPlan::default() });
    let bench = on.site(plan).await;
    bench.ports.rebuilder.protect(&gpu(), &bench.record().await.id).await.unwrap();
    let record = bench.record().await;
    assert_eq!((record.protected_by_us, record.objections.len()), (false, 1), "{record:?}");
}

async fn a_refusal_is_told_in_its_own_words(on: On) {
    let plan = plan().happens(Duration::from_secs(1), Happens::MaintenanceSet { node: "gpu-01".to_owned(), reason: Some("DIMM".to_owned()) });
    let bench = on.site(plan).await;
    bench.clock.advance(Duration::from_secs(2));
    let order = bench.order("t-1");
    bench.ports.rebuilder.order(&gpu(), &order).await.unwrap();
    match bench.ports.rebuilder.rebuild(&gpu(), &order).await.unwrap_err().kind {
        PortErrorKind::Refused { reason } => assert_eq!(reason, "The provisioning operation can't be performed on node gpu-01 because it's in maintenance mode."),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.rebuilds(), 0);
}

async fn somebody_elses_lock_is_told_and_is_a_not_now(on: On) {
    let lasts = Duration::from_secs(60);
    let bench = on.site(plan().happens(Duration::from_secs(1), Happens::RecordLocked { node: "gpu-01".to_owned(), lasts })).await;
    bench.clock.advance(Duration::from_secs(2));
    let order = bench.order("t-1");
    assert_eq!(bench.record().await.locked_by.as_deref(), Some("ironic1"));
    assert_eq!(bench.ports.rebuilder.order(&gpu(), &order).await.unwrap_err().kind, PortErrorKind::Unavailable);
    assert_eq!(bench.ports.rebuilder.rebuild(&gpu(), &order).await.unwrap_err().kind, PortErrorKind::Unavailable);
    bench.clock.advance(lasts);
    assert_eq!(bench.record().await.locked_by, None);
    bench.rebuild("t-1").await;
}

async fn a_service_that_is_away_is_unavailable_and_nothing_was_done(on: On) {
    let mut plan = plan();
    plan.faults.outages.push(Outage { api: Api::Ironic, node: None, from: Duration::ZERO, lasts: Duration::from_secs(60) });
    let bench = on.site(plan).await;
    assert_eq!(bench.ports.rebuilder.record(&gpu()).await.unwrap_err().kind, PortErrorKind::Unavailable);
    let order = bench.order("t-1");
    assert_eq!(bench.ports.rebuilder.order(&gpu(), &order).await.unwrap_err().kind, PortErrorKind::Unavailable);
    // A 503 may come from a proxy behind which it was carried out.
    let kind = bench.ports.rebuilder.rebuild(&gpu(), &order).await.unwrap_err().kind;
    assert_eq!(kind, if on == On::World { PortErrorKind::Unavailable } else { PortErrorKind::OutcomeUnknown });
    assert_eq!(bench.rebuilds(), 0);
}

async fn a_node_that_is_not_its_own_is_refused_or_not_found(on: On) {
    let bench = on.site(plan()).await;
    let kind = bench.ports.rebuilder.record(&"gpu-02".parse().unwrap()).await.unwrap_err().kind;
    match on {
        On::World => assert_eq!(kind, PortErrorKind::NotFound),
        On::Adapter => assert!(matches!(&kind, PortErrorKind::Refused { reason } if reason.contains("not a node of the configuration that Ironic renews")), "{kind:?}"),
    }
}

// --- of the adapter alone ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_another_machine_is_noticed_by_the_address_of_its_port() {
    let bench = On::Adapter.site_with(plan(), |text| text.replacen("mac = \"52:54:00:00:00:01\"", "mac = \"52:54:00:00:00:77\"", 1)).await;
    let objections = bench.record().await.objections;
    assert_eq!(objections, ["Ironic's record `gpu-01` is of another machine: it has no port with the address 52:54:00:00:00:77"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ironic_may_know_a_node_by_another_name_and_not_at_all() {
    let bench = On::Adapter.site_with(plan(), |text| text.replacen("ironic = {}", "ironic.node = \"rack7-u3\"", 1)).await;
    let error = bench.ports.rebuilder.record(&gpu()).await.unwrap_err();
    assert_eq!((error.kind, error.operation.as_str()), (PortErrorKind::NotFound, "read Ironic's record of gpu-01"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_was_revoked_is_replaced_and_the_rebuild_is_not_asked_for_behind_its_callers_back() {
    let bench = On::Adapter.site(plan()).await;
    bench.record().await;
    let servers = &bench.site.as_ref().unwrap().servers;
    let order = bench.order("t-1");
    bench.ports.rebuilder.order(&gpu(), &order).await.unwrap();
    servers.revoke_tokens();
    let error = bench.ports.rebuilder.rebuild(&gpu(), &order).await.unwrap_err();
    assert_eq!((error.kind, bench.rebuilds()), (PortErrorKind::Unavailable, 0));
    bench.ports.rebuilder.rebuild(&gpu(), &order).await.unwrap();
    assert_eq!((bench.rebuilds(), servers.tokens_given()), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_whose_answer_is_cut_or_hidden_by_a_proxy_is_an_unknown_outcome_and_was_done_once() {
    for mishap in [Mishap::CutAfterEffect, Mishap::StatusAfterEffect(502)] {
        let bench = On::Adapter.site(plan()).await;
        let order = bench.order("t-1");
        bench.ports.rebuilder.order(&gpu(), &order).await.unwrap();
        let which = Which::path("/states/provision");
        bench.site.as_ref().unwrap().servers.mishaps.plan(which, mishap, 1);
        assert_eq!(bench.ports.rebuilder.rebuild(&gpu(), &order).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown, "{mishap:?}");
        assert_eq!(bench.rebuilds(), 1);
    }
}
