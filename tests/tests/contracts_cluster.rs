//! What the ports to the Kubernetes cluster and to what alerts promise, held against the simulated site itself and against the real adapters
//! over its servers. Time is turned by hand.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use turnaround_config::Matcher;
use turnaround_tests::site::{Settings, Site};
use turnaround_workflows::clock::{Clock as _, HandClock, Timestamp};
use turnaround_workflows::ports::*;
use turnaround_workflows::rehearsal::*;

/// 2026-03-01.
const START: Timestamp = Timestamp::from_millis(1_772_323_200_000);
const MARK: &str = "turnaround:roll-1.gpu-01";

/// What a contract is held against.
#[derive(Clone, Copy)]
enum On {
    World,
    Adapters,
}

struct Bench {
    clock: Arc<HandClock>,
    world: Arc<World>,
    ports: Ports,
    /// The servers end with it.
    _site: Option<Site>,
}

/// Two nodes of the cluster on two of three hosts. One pod without a controller on the first.
fn plan() -> SitePlan {
    let mut plan = SitePlan::uniform(3, 0);
    plan.instances = ["1", "2"].map(|n| InstancePlan::new(&format!("k3s-{n}")).on(&format!("gpu-0{n}"))).to_vec();
    plan = plan.with_cluster(&["k3s-1", "k3s-2"]);
    let alone = PodPlan { name: "debug".to_owned(), app: "debug".to_owned(), node: "k3s-1".to_owned(), kind: PodKind::Alone };
    plan.cluster.as_mut().unwrap().pods.push(alone);
    plan
}

impl On {
    async fn site(self, plan: SitePlan) -> Bench {
        let clock = Arc::new(HandClock::at(START));
        let world = World::new(clock.clone(), plan, 1);
        match self {
            On::World => Bench { ports: world.ports(), clock, world, _site: None },
            On::Adapters => {
                let site = Site::start(&world).await.unwrap();
                let text = site.config_toml(&world, &Settings::quick(Path::new(env!("CARGO_BIN_EXE_site-ssh"))));
                let config = turnaround_config::check_text("config.toml", &text).unwrap_or_else(|report| panic!("{report}"));
                let ports = turnaround_worker::adapters::connect(&config).unwrap_or_else(|error| panic!("{error}"));
                Bench { clock, world, ports, _site: Some(site) }
            }
        }
    }
}

impl Bench {
    async fn node(&self, name: &str) -> ClusterNode {
        self.ports.cluster.nodes().await.unwrap().into_iter().find(|node| node.name == name).unwrap()
    }

    async fn pod(&self, node: &str, name: &str) -> Pod {
        self.ports.cluster.pods(node).await.unwrap().into_iter().find(|pod| pod.name == name).unwrap()
    }

    /// Lets time pass until nothing happens any more.
    fn settle(&self) {
        while let Some(next) = self.world.next_event() {
            self.clock.advance_to(next);
        }
    }

    fn happened(&self, wanted: impl Fn(&Happened) -> bool) -> usize {
        self.world.events().iter().filter(|event| wanted(&event.what)).count()
    }
}

fn cordon() -> Cordon {
    Cordon { mark: MARK.to_owned(), why: "gpu-01 is renewed".to_owned() }
}

/// Makes two tests of every contract.
macro_rules! contracts {
    ($($name:ident),* $(,)?) => {
        mod the_world {
            $(#[tokio::test] async fn $name() { super::$name(super::On::World).await })*
        }
        mod the_adapters {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::On::Adapters).await })*
        }
    };
}

contracts! {
    a_node_of_the_cluster_says_which_instance_it_is,
    a_cordon_carries_its_mark_and_is_taken_back,
    a_node_that_was_changed_since_is_not_touched,
    a_pod_is_evicted_once_and_its_budget_is_honoured,
    a_pod_of_an_earlier_uid_is_gone_and_its_successor_stays,
    a_lost_answer_of_the_cluster_was_done_once,
    a_cluster_that_is_away_is_unavailable,
    a_silence_is_found_by_its_mark_and_ended,
    a_silence_ends_by_itself_and_one_that_has_ended_is_refused,
    a_lost_answer_of_what_alerts_was_done_once,
}

async fn a_node_of_the_cluster_says_which_instance_it_is(on: On) {
    let mut plan = plan();
    plan.cluster.as_mut().unwrap().cordoned = vec!["k3s-2".to_owned()];
    plan.cluster.as_mut().unwrap().ill = vec!["k3s-2".to_owned()];
    let bench = on.site(plan).await;
    let snapshot = bench.world.snapshot();
    let (first, second) = (bench.node("k3s-1").await, bench.node("k3s-2").await);
    assert_eq!(first.instance.0, snapshot.instance("k3s-1").unwrap().id);
    assert_eq!((first.ready, first.schedulable, first.mark), (true, true, None));
    assert_eq!((second.ready, second.schedulable, second.mark), (false, false, None));
    let pods = bench.ports.cluster.pods("k3s-1").await.unwrap();
    let told: Vec<_> = pods.iter().map(|pod| (pod.name.as_str(), pod.alone, pod.terminating)).collect();
    assert_eq!(told, [("console-on-k3s-1", false, false), ("debug", true, false)], "none of a DaemonSet");
}

async fn a_cordon_carries_its_mark_and_is_taken_back(on: On) {
    let bench = on.site(plan()).await;
    bench.ports.cluster.cordon(&bench.node("k3s-1").await, &cordon()).await.unwrap();
    let cordoned = bench.node("k3s-1").await;
    assert_eq!((cordoned.schedulable, cordoned.mark.as_deref()), (false, Some(MARK)));
    assert!(bench.node("k3s-2").await.schedulable);
    bench.ports.cluster.uncordon(&cordoned).await.unwrap();
    let open = bench.node("k3s-1").await;
    assert_eq!((open.schedulable, open.mark), (true, None));
}

async fn a_node_that_was_changed_since_is_not_touched(on: On) {
    let bench = on.site(plan()).await;
    let read = bench.node("k3s-1").await;
    bench.ports.cluster.cordon(&read, &cordon()).await.unwrap();
    assert_eq!(bench.ports.cluster.uncordon(&read).await.unwrap_err().kind, PortErrorKind::Unavailable);
    assert!(!bench.node("k3s-1").await.schedulable);
    assert_eq!(bench.happened(|what| matches!(what, Happened::NodeUncordoned { .. })), 0);
}

async fn a_pod_is_evicted_once_and_its_budget_is_honoured(on: On) {
    let bench = on.site(plan()).await;
    let (first, second) = (bench.pod("k3s-1", "console-on-k3s-1").await, bench.pod("k3s-2", "console-on-k3s-2").await);
    let evict = async |pod: &Pod| bench.ports.cluster.evict(pod).await.unwrap();
    assert_eq!(evict(&first).await, Eviction::Accepted);
    assert!(bench.pod("k3s-1", &first.name).await.terminating);
    assert_eq!(evict(&first).await, Eviction::Accepted, "twice is as once");
    let Eviction::NotNow { reason } = evict(&second).await else { panic!("one of two has to be ready") };
    assert!(reason.contains("disruption budget"), "{reason}");
    assert_eq!(bench.happened(|what| matches!(what, Happened::PodEvicted { .. })), 1);
    bench.settle();
    assert!(bench.ports.cluster.pods("k3s-1").await.unwrap().iter().all(|pod| pod.uid != first.uid));
    assert_eq!(evict(&first).await, Eviction::Accepted, "it is gone");
    assert_eq!(evict(&second).await, Eviction::Accepted, "another one is ready");
}

/// A StatefulSet gives the next pod the same name.
async fn a_pod_of_an_earlier_uid_is_gone_and_its_successor_stays(on: On) {
    let bench = on.site(plan()).await;
    let mut pod = bench.pod("k3s-1", "console-on-k3s-1").await;
    "an-earlier-one".clone_into(&mut pod.uid);
    assert_eq!(bench.ports.cluster.evict(&pod).await.unwrap(), Eviction::Accepted);
    assert!(!bench.pod("k3s-1", "console-on-k3s-1").await.terminating);
    assert_eq!(bench.happened(|what| matches!(what, Happened::PodEvicted { .. })), 0);
}

async fn a_lost_answer_of_the_cluster_was_done_once(on: On) {
    let mut plan = plan();
    for call in [Call::Cordon, Call::Uncordon, Call::Evict] {
        plan = plan.loses_answer(call, 1);
    }
    let bench = on.site(plan).await;
    let (cluster, pod) = (&bench.ports.cluster, bench.pod("k3s-1", "console-on-k3s-1").await);
    assert_eq!(cluster.cordon(&bench.node("k3s-1").await, &cordon()).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    assert_eq!(bench.node("k3s-1").await.mark.as_deref(), Some(MARK));
    assert_eq!(cluster.evict(&pod).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    assert!(bench.pod("k3s-1", &pod.name).await.terminating);
    assert_eq!(cluster.uncordon(&bench.node("k3s-1").await).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    assert!(bench.node("k3s-1").await.schedulable);
    let changes = |what: &Happened| matches!(what, Happened::NodeCordoned { .. } | Happened::NodeUncordoned { .. } | Happened::PodEvicted { .. });
    assert_eq!(bench.happened(changes), 3);
}

async fn a_cluster_that_is_away_is_unavailable(on: On) {
    let mut plan = plan();
    let minute = Duration::from_secs(60);
    plan.faults.outages = vec![Outage { api: Api::Kubernetes, node: None, from: minute, lasts: minute }];
    let bench = on.site(plan).await;
    let (node, pod) = (bench.node("k3s-1").await, bench.pod("k3s-1", "debug").await);
    bench.clock.advance(minute);
    let (cluster, cordon) = (&bench.ports.cluster, cordon());
    let (nodes, cordoned, pods, evicted) = tokio::join!(cluster.nodes(), cluster.cordon(&node, &cordon), cluster.pods("k3s-1"), cluster.evict(&pod));
    for error in [nodes.err(), pods.err()] {
        assert_eq!(error.unwrap().kind, PortErrorKind::Unavailable);
    }
    // Of a PATCH or a POST, a 503 does not say whether it was done.
    for error in [cordoned.err(), evicted.err()] {
        assert!(matches!(error.unwrap().kind, PortErrorKind::Unavailable | PortErrorKind::OutcomeUnknown));
    }
    assert_eq!(bench.happened(|what| matches!(what, Happened::NodeCordoned { .. } | Happened::PodEvicted { .. })), 0);
    bench.clock.advance(minute);
    assert!(bench.node("k3s-1").await.schedulable);
}

fn silence(from: Timestamp) -> NewSilence {
    NewSilence {
        matchers: vec![Matcher { name: "instance".to_owned(), value: "gpu-01(:[0-9]+)?".to_owned(), is_regex: true, is_equal: true }],
        from,
        until: from + Duration::from_secs(3_600),
        mark: MARK.to_owned(),
        why: "it is renewed: twice".to_owned(),
    }
}

async fn a_silence_is_found_by_its_mark_and_ended(on: On) {
    let bench = on.site(plan()).await;
    let silences = &bench.ports.silences;
    assert_eq!(silences.in_force(MARK).await.unwrap(), []);
    silences.begin(&silence(bench.clock.now())).await.unwrap();
    let found = silences.in_force(MARK).await.unwrap();
    assert_eq!(found.iter().map(|one| one.until).collect::<Vec<_>>(), [START + Duration::from_secs(3_600)]);
    assert_eq!(silences.in_force("turnaround:roll-1").await.unwrap(), [], "a mark is whole");
    silences.end(&found[0].id).await.unwrap();
    assert_eq!(silences.in_force(MARK).await.unwrap(), []);
    let told = |what: &Happened| matches!(what, Happened::SilenceBegun { mark, node: Some(node), .. } if mark == MARK && node == "gpu-01");
    assert_eq!(bench.happened(told), 1);
}

async fn a_silence_ends_by_itself_and_one_that_has_ended_is_refused(on: On) {
    let bench = on.site(plan()).await;
    let silences = &bench.ports.silences;
    let new = silence(bench.clock.now());
    silences.begin(&new).await.unwrap();
    let id = silences.in_force(MARK).await.unwrap().remove(0).id;
    bench.clock.advance(Duration::from_secs(3_600));
    assert_eq!(silences.in_force(MARK).await.unwrap(), []);
    for refused in [silences.end(&id).await, silences.begin(&new).await] {
        assert!(matches!(refused.unwrap_err().kind, PortErrorKind::Refused { .. }));
    }
}

async fn a_lost_answer_of_what_alerts_was_done_once(on: On) {
    let bench = on.site(plan().loses_answer(Call::BeginSilence, 1).loses_answer(Call::EndSilence, 1)).await;
    let silences = &bench.ports.silences;
    assert_eq!(silences.begin(&silence(bench.clock.now())).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    let found = silences.in_force(MARK).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(silences.end(&found[0].id).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    assert_eq!(silences.in_force(MARK).await.unwrap(), []);
}
