//! The network of installers, where nobody is trusted: every report has a bound, and none is worth more than its word.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use turnaround_daemon::installers::{BODY_BYTES_MAX, ReportListener, run, serve_on};
use turnaround_workflows::engine::{Checkpoint, Event, Outcome, Signal, SignalKind, Start, start};
use turnaround_workflows::store::{Next, Store as _, WorkflowId};
use turnaround_workflows::updates::{NODE_OS, REASON_CHARS_MAX, ReportDesk, registry};

use super::site::{KEEP, NOON, PATIENCE, Site, at, begun, claim, ended};

const TOKEN: &str = "node-os-rollout-x.gpu-01-7-00c0ffee";

struct Bench {
    site: Site,
    id: WorkflowId,
    address: SocketAddr,
}

fn checkpointed(step: &str, checkpoint: Value) -> Event {
    Event::StepCheckpointed { step: step.to_owned(), checkpoint: Checkpoint::of(&checkpoint).unwrap(), note: String::new() }
}

fn succeeded(step: &str, output: Value) -> Event {
    Event::StepSucceeded { step: step.to_owned(), output, gave: Vec::new() }
}

/// A node that was reset a minute ago, and is awaited.
async fn bench() -> Bench {
    let site = Site::start().await;
    let id: WorkflowId = "node-os-rollout-x.gpu-01".parse().unwrap();
    let new = Start {
        id: id.clone(),
        kind: NODE_OS.to_owned(),
        version: registry().get(NODE_OS).unwrap().version,
        target: "gpu-01".to_owned(),
        input: json!({}),
        parent: None,
        key: None,
        by: "tester".to_owned(),
        traceparent: None,
    };
    site.store.create(start(new, at(NOON)).unwrap()).await.unwrap();
    let reset_at = at("2026-11-22T11:59:00Z");
    let ticket = json!({ "token": TOKEN, "image": "noble-2", "sha256": "a".repeat(64) });
    let staged = json!({ "ticket": ticket, "boot_id_before": null });
    let events = vec![
        begun("stage-image"),
        checkpointed("stage-image", staged.clone()),
        succeeded("stage-image", staged),
        begun("reprovision"),
        checkpointed("reprovision", json!({ "boot_id_before": null, "intended": reset_at, "acknowledged": true })),
        succeeded("reprovision", json!({ "boot_id_before": null, "reset_at": reset_at })),
        begun("await-install"),
        Event::StepParked { step: "await-install".to_owned(), until: Some(at("2026-11-22T12:30:00Z")), note: "installs".to_owned() },
    ];
    site.work(&id, events, Next::At(at("2026-11-22T12:30:00Z"))).await;
    let listener = ReportListener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.address().unwrap();
    let reports = ReportDesk::new(site.app.store.clone(), registry());
    tokio::spawn(serve_on(listener, reports, site.app.clock.clone(), site.app.stop.clone()));
    Bench { site, id, address }
}

impl Bench {
    /// What comes back for these bytes, until the other end closes.
    async fn send(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // It may be closed in the middle: then there is an answer already, or none.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("a connection ends");
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn ask(&self, method: &str, path: &str, body: &[u8]) -> u16 {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        let answer = self.send(&[head.as_bytes(), body].concat()).await;
        answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
    }

    async fn says(&self, word: &str, body: &[u8]) -> u16 {
        self.ask("PUT", &format!("/installer/{TOKEN}/{word}"), body).await
    }

    /// What the workflow has to read, none of it twice.
    async fn unread(&self) -> Vec<SignalKind> {
        self.site.clock.advance_to(at("2026-11-22T13:00:00Z"));
        let claimed = claim(&*self.site.store, &self.id).await;
        claimed.signals.iter().map(|stored| serde_json::from_str::<Signal>(&stored.body).unwrap().kind).collect()
    }

    /// The next reports are counted anew.
    fn ten_seconds_pass(&self) {
        self.site.clock.advance(Duration::from_secs(10));
    }
}

fn report(word: &str, text: &str) -> SignalKind {
    SignalKind::Report { about: TOKEN.to_owned(), word: word.to_owned(), text: text.to_owned() }
}

#[tokio::test]
async fn a_report_is_kept_once_however_often_it_is_said() {
    let bench = bench().await;
    assert_eq!(bench.says("started", b"").await, 200);
    for _ in 0..5 {
        assert_eq!(bench.says("started", b"again").await, 200);
    }
    // As busybox' wget and cloud-init do.
    assert_eq!(bench.ask("POST", &format!("/installer/{TOKEN}/failed"), b"could not fetch\n\x1b[31mthe image\xff\0").await, 200);
    assert_eq!(bench.says("failed", b"another reason").await, 200);
    let expected = [report("started", ""), report("failed", "could not fetch [31mthe image\u{fffd}")];
    assert_eq!(bench.unread().await, expected);
}

#[tokio::test]
async fn who_does_not_know_a_staged_token_changes_nothing() {
    let bench = bench().await;
    for token in ["x", "node-os-rollout-x.gpu-01-7-00c0ffef", "node-os-rollout-x.gpu-01-8-00c0ffee", "%ff%fe", "..%2f..", "-1-00c0ffee"] {
        assert_eq!(bench.ask("PUT", &format!("/installer/{token}/failed"), b"x").await, 404, "{token}");
    }
    assert_eq!(bench.says("opened", b"").await, 404);
    assert_eq!(bench.ask("PUT", "/v1/status", b"").await, 404, "it is not the API");
    assert_eq!(bench.ask("POST", &format!("/v1/workflows/{}/signals", bench.id), br#"{"signal":"retry"}"#).await, 404);
    assert_eq!(bench.unread().await, []);
}

#[tokio::test]
async fn what_is_no_report_is_refused() {
    let bench = bench().await;
    for method in ["GET", "DELETE", "PATCH", "BREW"] {
        assert_eq!(bench.ask(method, &format!("/installer/{TOKEN}/started"), b"").await, 405, "{method}");
    }
    assert_eq!(bench.says("failed", &vec![b'x'; BODY_BYTES_MAX + 1]).await, 413);
    let garbage = bench.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls\r\n\r\n").await;
    assert!(garbage.is_empty() || garbage.starts_with("HTTP/1.1 400"), "{garbage}");
    let endless = format!("PUT /installer/{TOKEN}/started HTTP/1.1\r\n{}", "x: y\r\n".repeat(200_000));
    let endless = bench.send(endless.as_bytes()).await;
    assert!(endless.is_empty() || endless.starts_with("HTTP/1.1 4"), "{endless}");
    bench.ten_seconds_pass();
    assert_eq!(bench.says("failed", &vec![b'x'; BODY_BYTES_MAX]).await, 200, "it still listens");
    let [SignalKind::Report { text, .. }] = &bench.unread().await[..] else { panic!("one report") };
    assert_eq!(text.chars().count(), REASON_CHARS_MAX);
}

#[tokio::test]
async fn who_floods_is_told_to_wait_and_what_hangs_is_cut_off() {
    let bench = bench().await;
    let mut answers = Vec::new();
    for _ in 0..25 {
        answers.push(bench.ask("PUT", "/installer/x/started", b"").await);
    }
    assert_eq!(answers.iter().filter(|code| **code == 404).count(), 20);
    assert!(answers[20..].iter().all(|code| *code == 429), "{answers:?}");
    // Ten connections of one address, of which eight are kept, and none for longer than its time.
    let mut open = Vec::new();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(bench.address).await.unwrap();
        stream.write_all(b"PUT /installer/").await.unwrap();
        open.push(stream);
    }
    let began = tokio::time::Instant::now();
    for stream in &mut open {
        let mut nothing = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut nothing)).await.expect("it is cut off");
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    bench.ten_seconds_pass();
    assert_eq!(bench.says("started", b"").await, 200);
}

#[tokio::test]
async fn where_nobody_can_be_listened_to_an_alarm_says_so_until_it_is_mended() {
    let bench = bench().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let app = &bench.site.app;
    let reports = ReportDesk::new(app.store.clone(), registry());
    tokio::spawn(run(address, reports, app.clock.clone(), app.alarms.clone(), app.stop.clone()));
    let until = async |raised: bool| {
        let is_so = async || {
            while app.alarms.views().iter().any(|alarm| alarm.code == "installer-reports") != raised {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, is_so()).await.unwrap_or_else(|_| panic!("the alarm is not {raised}"));
    };
    until(true).await;
    assert!(app.alarms.views()[0].detail.starts_with(&format!("{address}: ")), "{:?}", app.alarms.views());
    drop(taken);
    until(false).await;
    let bench = Bench { address, ..bench };
    assert_eq!(bench.says("started", b"").await, 200);
}

#[tokio::test]
async fn a_node_that_is_not_awaited_any_more_is_not_told_of() {
    let bench = bench().await;
    bench.site.clock.advance_to(at("2026-11-22T12:30:00Z"));
    bench.site.work(&bench.id, vec![succeeded("await-install", json!({ "boot_id": "b" }))], Next::At(at("2026-11-22T12:40:00Z"))).await;
    assert_eq!(bench.says("failed", b"late").await, 200, "an installer need not know");
    assert_eq!(bench.unread().await, []);
    bench.site.clock.advance(Duration::from_secs(60));
    bench.site.work(&bench.id, vec![ended(Outcome::Succeeded, "")], KEEP).await;
    assert_eq!(bench.says("failed", b"late").await, 404);
}
