//! A daemon on a store in memory, over a real unix socket, with a clock that is turned by hand.

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use turnaround_config::Config;
use turnaround_daemon::alarms::Alarms;
use turnaround_daemon::api::app::App;
use turnaround_daemon::api::caller::Access;
use turnaround_daemon::api::socket::SocketClaim;
use turnaround_daemon::archive::Archive;
use turnaround_daemon::feed::EventFeed;
use turnaround_daemon::jobs::JobBoard;
use turnaround_daemon::store_watch::StoreWatch;
use turnaround_daemon::tick_log::TickLog;
use turnaround_workflows::clock::{Clock, HandClock, Timestamp};
use turnaround_workflows::engine::{ChildStarted, Entry, Event, Start, State, seal, start};
use turnaround_workflows::store::memory::MemoryStore;
use turnaround_workflows::store::{Advance, Claim, Claimed, Commit, Committed, Digest, Next, Queue, Store, StoredEntry, Take, WorkflowId};
use turnaround_workflows::updates::{self, NODE_OS};

/// When every test begins.
pub(crate) const NOON: &str = "2026-11-22T12:00:00Z";
/// A test that waits longer for anything has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn at(text: &str) -> Timestamp {
    chrono::DateTime::parse_from_rfc3339(text).unwrap().to_utc().into()
}

const SITE: &str = r#"
site = "test-cloud"
[openstack]
cloud = "test"
[netboot]
directory = "/srv/netboot/nodes"
url = "http://192.0.2.1/boot"
[node_os]
max_out = 2
[images.noble-2]
version = "2"
sha256 = "4a5c6e0f8d2b1937a6e4c0d85f3b7291e6a8d4c0b2f19573e8c6a4d0b1f29375"
os_version_id = "24.04"
kernel = "6.8.0-45-generic"
boot_kernel = "n/vmlinuz"
boot_initrd = "n/initrd"
[nodes.gpu-01]
mac = "02:00:5e:10:00:01"
bmc = { protocol = "redfish", url = "https://192.0.2.11", user = "t", password_file = "/etc/x" }
[nodes.gpu-02]
mac = "02:00:5e:10:00:02"
bmc = { protocol = "redfish", url = "https://192.0.2.12", user = "t", password_file = "/etc/x" }
"#;

/// Two nodes, one image, and what is `written` besides.
pub(crate) fn config_text(written: &str) -> String {
    let (before, tables): (Vec<&str>, Vec<&str>) = {
        let place = written.find('[').unwrap_or(written.len());
        (vec![&written[..place]], vec![&written[place..]])
    };
    format!("{}\n{SITE}\n{}", before.concat(), tables.concat())
}

pub(crate) fn config(written: &str) -> Config {
    turnaround_config::check_text("test.toml", &config_text(written)).unwrap_or_else(|report| panic!("{}", report.for_stderr()))
}

/// What a test may want to be different.
pub(crate) struct Wish {
    pub(crate) config: String,
    pub(crate) access: Access,
    /// Another store than the one in memory.
    pub(crate) store: Option<Arc<dyn Store>>,
}

impl Default for Wish {
    fn default() -> Wish {
        Wish { config: String::new(), access: Access::new(&[]), store: None }
    }
}

pub(crate) struct Site {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) clock: Arc<HandClock>,
    pub(crate) app: Arc<App>,
    pub(crate) folder: TempDir,
    pub(crate) socket: PathBuf,
    serving: Option<JoinHandle<std::io::Result<()>>>,
}

impl Site {
    pub(crate) async fn start() -> Site {
        Site::with(Wish::default()).await
    }

    pub(crate) async fn with(wish: Wish) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(HandClock::at(at(NOON)));
        let memory = Arc::new(MemoryStore::new(Arc::clone(&clock) as Arc<dyn Clock>));
        let store = wish.store.unwrap_or(Arc::clone(&memory) as Arc<dyn Store>);
        let stop = CancellationToken::new();
        let alarms = Arc::new(Alarms::new(Arc::clone(&clock) as Arc<dyn Clock>));
        let app = Arc::new(App {
            watch: Arc::new(StoreWatch::new(Arc::clone(&store), Arc::clone(&alarms), folder.path())),
            alarms,
            config: Arc::new(config(&wish.config)),
            feed: EventFeed::new(Arc::clone(&store)),
            store,
            private_redis: None,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            registry: updates::registry(),
            access: wish.access,
            board: Arc::new(JobBoard::default()),
            ticks: Arc::new(TickLog::open(folder.path())),
            orders: Arc::default(),
            archive: Archive::new(folder.path()),
            started: clock.now(),
            keep_alive: Duration::from_secs(15),
            stop,
        });
        let socket = folder.path().join("api.sock");
        let listener = SocketClaim::take(&socket).unwrap().bind().unwrap();
        tokio::spawn(Arc::clone(&app.feed).run(app.stop.clone()));
        let serving = Some(tokio::spawn(turnaround_daemon::api::serve(listener, Arc::clone(&app))));
        Site { store: memory, clock, app, folder, socket, serving }
    }

    pub(crate) async fn stop(&mut self) {
        self.app.stop.cancel();
        if let Some(serving) = self.serving.take() {
            tokio::time::timeout(PATIENCE, serving).await.expect("the API stops").unwrap().unwrap();
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().unix_socket(self.socket.as_path()).no_proxy().build().unwrap();
        client.request(method, format!("http://turnaround{path}"))
    }

    /// Status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        read(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        read(self.request(Method::POST, path).json(body).send().await.unwrap()).await
    }

    pub(crate) async fn post_with_key(&self, path: &str, key: &str, body: &Value) -> (u16, Value) {
        read(self.request(Method::POST, path).header("idempotency-key", key).json(body).send().await.unwrap()).await
    }

    /// The command, as somebody without a terminal types it.
    pub(crate) async fn turnaround(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_turnaround"));
        command.arg("--socket").arg(&self.socket).args(arguments).stdin(std::process::Stdio::null());
        tokio::time::timeout(PATIENCE, command.output()).await.expect("the command ends").unwrap()
    }

    /// A rollout of both nodes that nobody has worked on, whatever else is open.
    pub(crate) async fn rollout(&self) -> WorkflowId {
        let (status, started) = self.post("/v1/rollouts", &json!({ "nodes": ["gpu-01", "gpu-02"], "image": "noble-2", "again": true })).await;
        assert_eq!(status, 201, "{started}");
        started["id"].as_str().unwrap().parse().unwrap()
    }

    /// A child that renews `node`, begun by `rollout`.
    pub(crate) async fn node_begun(&self, rollout: &WorkflowId, node: &str) -> WorkflowId {
        let id = rollout.child(node).unwrap();
        let child = Start {
            id: id.clone(),
            kind: NODE_OS.to_owned(),
            version: 7,
            target: node.to_owned(),
            input: json!({}),
            parent: Some(rollout.clone()),
            key: Some(node.to_owned()),
            by: rollout.to_string(),
            traceparent: None,
        };
        self.store.create(start(child, at(NOON)).unwrap()).await.unwrap();
        let children = vec![ChildStarted { key: node.to_owned(), id: id.clone() }];
        self.work(rollout, vec![begun("renew-nodes"), Event::ChildrenStarted { step: "renew-nodes".to_owned(), children, note: String::new() }], Next::At(at(NOON))).await;
        id
    }

    /// Works on `id`: appends `events`, as a worker would.
    pub(crate) async fn work(&self, id: &WorkflowId, events: Vec<Event>, next: Next) {
        let work = Work { events, take: Vec::new(), next, forged: None, follows: None };
        work.on(&*self.store, id).await;
    }

    /// The same, following a signal.
    pub(crate) async fn follow(&self, id: &WorkflowId, signal: &str, event: Event, next: Next) {
        let work = Work { events: vec![event], take: Vec::new(), next, forged: None, follows: Some(signal.to_owned()) };
        work.on(&*self.store, id).await;
    }
}

async fn read(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").unwrap().to_str().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    if status >= 400 {
        assert_eq!(kind, "application/problem+json");
        assert_eq!(body["status"], status);
        for field in ["type", "title", "detail"] {
            assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{field} is missing: {body}");
        }
    }
    (status, body)
}

/// One commit of a worker.
pub(crate) struct Work {
    pub(crate) events: Vec<Event>,
    pub(crate) take: Vec<Take>,
    pub(crate) next: Next,
    /// Seals the newest entry with this digest instead of its own.
    pub(crate) forged: Option<Digest>,
    /// The signal that all of it follows.
    pub(crate) follows: Option<String>,
}

impl Work {
    pub(crate) async fn on(self, store: &dyn Store, id: &WorkflowId) {
        let claimed = claim(store, id).await;
        let document = claimed.document;
        // A forged digest is what some tests are about.
        let read = claimed.journal.iter().map(|stored| Entry::read(&stored.body).unwrap());
        let mut state = State::of_entries(&read.collect::<Vec<Entry>>()).unwrap();
        let mut entries: Vec<StoredEntry> = Vec::new();
        for event in self.events {
            let at = store.now().await.unwrap();
            let seq = document.seq + entries.len() as u64 + 1;
            let before = entries.last().map_or(&document.head, |newest| &newest.digest);
            let entry = Entry { seq, at, fence: claimed.fence, follows: self.follows.clone(), event };
            let sealed = seal(Some(before), &entry).unwrap();
            state = state.apply(at, &entry.event).unwrap();
            entries.push(sealed);
        }
        if let (Some(forged), Some(newest)) = (self.forged, entries.last_mut()) {
            newest.digest = forged;
        }
        let commit = Commit {
            id: id.clone(),
            fence: claimed.fence,
            expected: document.seq,
            state: Some(state.kept(document.seq + entries.len() as u64).unwrap()),
            entries,
            status: state.status(),
            headline: state.headline(),
            consumed: 0,
            take: self.take,
            give: Vec::new(),
            create: Vec::new(),
            signals: Vec::new(),
            traceparent: None,
            next: self.next,
            queue: Queue::DEFAULT,
        };
        let advance = Advance { lease: Duration::from_secs(10), commits: vec![commit], ..Advance::default() };
        let done = store.advance(&advance).await.unwrap();
        assert!(matches!(done.commits[0], Committed::Done { .. }), "{:?}", done.commits);
    }
}

/// The lease on `id`; other workflows that are due are handed back.
pub(crate) async fn claim(store: &dyn Store, id: &WorkflowId) -> Claimed {
    let lease = Duration::from_secs(10);
    let claim = Some(Claim { max: 256, lease, worker: "test:1".to_owned(), queues: vec![Queue::DEFAULT] });
    let claimed = store.advance(&Advance { lease, claim, ..Advance::default() }).await.unwrap().claimed;
    let (mut ours, others): (Vec<_>, Vec<_>) = claimed.into_iter().partition(|claimed| claimed.document.id == *id);
    let hand_back = others.into_iter().map(|claimed| (claimed.document.id, claimed.fence)).collect();
    store.advance(&Advance { lease, hand_back, ..Advance::default() }).await.unwrap();
    ours.pop().unwrap_or_else(|| panic!("{id} is not due"))
}

/// The intent to begin `step`, with an hour for it.
pub(crate) fn begun(step: &str) -> Event {
    Event::StepBegun { step: step.to_owned(), deadline: at("2026-11-22T13:00:00Z"), took: Vec::new(), took_over: Vec::new() }
}

pub(crate) fn ended(outcome: turnaround_workflows::engine::Outcome, why: &str) -> Event {
    Event::Ended { outcome, why: why.to_owned() }
}

/// Long enough for every test.
pub(crate) const KEEP: Next = Next::End { keep: Duration::from_secs(86_400) };
