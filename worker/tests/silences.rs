//! The port `Silences`: against a real Alertmanager, and against a stand-in where something has to go wrong.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

#[path = "support/cloud.rs"]
mod cloud;
#[path = "support/program.rs"]
mod program;

use std::time::Duration;

use cloud::{Cloud, Reply};
use program::{Server, free_port, here};
use serde_json::{Value, json};
use support::{Site, eventually, secret, told};
use turnaround_config::Matcher;
use turnaround_workflows::clock::{Clock as _, SystemClock};
use turnaround_workflows::ports::{NewSilence, PortErrorKind, Ports};

const SILENCES: &str = "/api/alertmanager/grafana/api/v2/silences";

fn site(url: &str, more: &str) -> (Site, Ports) {
    let clouds = json!({ "clouds": { "none": { "auth": { "auth_url": "http://127.0.0.1:9", "user_id": "u", "password": "p", "project_id": "p" } } } });
    let site = Site::new(&clouds, "none");
    secret(&site.path("grafana.token"), "canary-grafana");
    let more = more.replace("{token}", &site.path("grafana.token").display().to_string());
    let site = site.with(&format!("[silences]\nurl = \"{url}\"\nmatchers = ['instance=~\"{{node}}(:[0-9]+)?\"']\n{more}"));
    let ports = site.ports();
    (site, ports)
}

fn silence(mark: &str) -> NewSilence {
    let from = SystemClock.now();
    let matcher = |value: &str, is_regex, is_equal| Matcher { name: "instance".to_owned(), value: value.to_owned(), is_regex, is_equal };
    NewSilence {
        matchers: vec![matcher("gpu-01(:[0-9]+)?", true, true), matcher("gpu-01:9100", false, false)],
        from,
        until: from + Duration::from_secs(4 * 3600),
        mark: mark.to_owned(),
        why: "gpu-01 is renewed".to_owned(),
    }
}

#[tokio::test]
async fn a_real_alertmanager_is_silent_from_the_beginning_to_the_end() {
    let name = "a_real_alertmanager_is_silent_from_the_beginning_to_the_end";
    if !here("alertmanager", "/usr/bin/prometheus-alertmanager", "prometheus-alertmanager", name) {
        return;
    }
    let port = free_port();
    let (site, ports) = site(&format!("http://127.0.0.1:{port}"), "");
    let config = site.path("alertmanager.yml");
    std::fs::write(&config, "route: { receiver: nobody }\nreceivers: [{ name: nobody }]\n").unwrap();
    let _server = Server::start(
        "/usr/bin/prometheus-alertmanager",
        &[
            &format!("--config.file={}", config.display()),
            &format!("--storage.path={}", site.path("data").display()),
            &format!("--web.listen-address=127.0.0.1:{port}"),
            "--cluster.listen-address=",
        ],
    );
    let silences = &ports.silences;
    let none = eventually("Alertmanager", || async { silences.in_force("turnaround:a").await.ok() }).await;
    assert_eq!(none, []);

    let wanted = silence("turnaround:a");
    silences.begin(&wanted).await.unwrap();
    let found = silences.in_force("turnaround:a").await.unwrap();
    assert_eq!(found.iter().map(|found| found.until).collect::<Vec<_>>(), [wanted.until]);
    assert_eq!(silences.in_force("turnaround:").await.unwrap(), [], "a mark is not the beginning of another");

    // What it was really told, by its own account.
    let alert = |instance: &str| json!([{ "labels": { "alertname": "down", "instance": instance } }]);
    let client = reqwest::Client::new();
    let api = format!("http://127.0.0.1:{port}/api/v2/alerts");
    for instance in ["gpu-01", "gpu-01:9100", "gpu-010"] {
        client.post(&api).header("content-type", "application/json").body(alert(instance).to_string()).send().await.unwrap();
    }
    let state = async |instance: &str| {
        let alerts: Value = serde_json::from_str(&client.get(&api).send().await.ok()?.text().await.ok()?).ok()?;
        let alert = alerts.as_array()?.iter().find(|alert| alert["labels"]["instance"] == instance)?;
        alert["status"]["state"].as_str().filter(|state| *state != "unprocessed").map(str::to_owned)
    };
    assert_eq!(eventually("gpu-01", || state("gpu-01")).await, "suppressed");
    assert_eq!(eventually("its exporter", || state("gpu-01:9100")).await, "active", "excepted");
    assert_eq!(eventually("another node", || state("gpu-010")).await, "active");

    // Silenced or not, they fire.
    let firing = silences.firing(&wanted.matchers[..1]).await.unwrap();
    assert_eq!(firing, [r#"down{instance="gpu-01"}"#, r#"down{instance="gpu-01:9100"}"#].map(str::to_owned).into());
    assert_eq!(silences.firing(&wanted.matchers).await.unwrap(), [r#"down{instance="gpu-01"}"#.to_owned()].into());
    let quoted = Matcher { name: "instance".to_owned(), value: "a \"b\\c\n".to_owned(), is_regex: false, is_equal: true };
    assert!(silences.firing(&[quoted]).await.unwrap().is_empty());

    silences.end(&found[0].id).await.unwrap();
    assert_eq!(silences.in_force("turnaround:a").await.unwrap(), []);
    eventually("gpu-01 alerts again", || async { state("gpu-01").await.filter(|state| state == "active") }).await;
    let error = silences.end("3b1b4e3c-0000-4000-8000-000000000000").await.unwrap_err();
    assert!(!matches!(error.kind, PortErrorKind::Garbled { .. }), "{}", told(&error));

    let mut late = silence("turnaround:b");
    late.until = late.from + Duration::ZERO;
    let error = silences.begin(&late).await.unwrap_err();
    assert!(matches!(error.kind, PortErrorKind::Refused { .. }), "{}", told(&error));
}

#[tokio::test]
async fn a_grafana_is_asked_with_its_token_and_told_apart_from_what_is_none() {
    let grafana = Cloud::start().await;
    let url = format!("http://{}/api/alertmanager/grafana/", grafana.address);
    let (_site, ports) = site(&url, "token_file = \"{token}\"\n");
    let known = |id: &str, state: &str, comment: &str| json!({ "id": id, "comment": comment, "endsAt": "2026-11-24T12:00:00.000Z", "status": { "state": state } });
    let list = json!([known("1", "active", "turnaround:a: x"), known("2", "expired", "turnaround:a: x"), known("3", "active", "turnaround:ab: x"), known("4", "pending", "turnaround:a: y"), known("5", "active", "mine")]);
    grafana.reply("GET", SILENCES, [Reply::json(200, &list)]);
    let found = ports.silences.in_force("turnaround:a").await.unwrap();
    assert_eq!(found.iter().map(|silence| silence.id.as_str()).collect::<Vec<_>>(), ["1", "4"]);
    assert_eq!(found[0].until.to_string(), "2026-11-24T12:00:00.000Z");
    assert_eq!(grafana.asked("GET", SILENCES)[0].headers["authorization"], "Bearer canary-grafana");

    grafana.reply("POST", SILENCES, [Reply::json(202, &json!({ "silenceID": "6" })), Reply::json(401, &json!({ "message": "Invalid API key" })), Reply::json(400, &json!("invalid silence: bad matcher")), Reply::silent()]);
    let begin = async || ports.silences.begin(&silence("turnaround:a")).await;
    begin().await.unwrap();
    let body: Value = serde_json::from_str(&grafana.asked("POST", SILENCES)[0].body).unwrap();
    assert_eq!(body["comment"], "turnaround:a: gpu-01 is renewed");
    assert_eq!(body["matchers"][0], json!({ "name": "instance", "value": "gpu-01(:[0-9]+)?", "isRegex": true, "isEqual": true }));
    let denied = begin().await.unwrap_err();
    assert_eq!(denied.kind, PortErrorKind::Denied { reason: "Invalid API key".to_owned() });
    assert!(!format!("{denied:?} {}", told(&denied)).contains("canary"));
    assert_eq!(begin().await.unwrap_err().kind, PortErrorKind::Refused { reason: "invalid silence: bad matcher".to_owned() });

    let nothing = Cloud::start().await;
    let (_site, ports) = site(&format!("http://{}", nothing.address), "");
    nothing.reply("GET", "/api/v2/silences", [Reply::text(404, "not found")]);
    let error = ports.silences.in_force("turnaround:a").await.unwrap_err();
    assert!(told(&error).contains("for a Grafana it ends with /api/alertmanager/grafana"), "{}", told(&error));
}

#[tokio::test]
async fn without_silences_in_the_configuration_none_is_begun() {
    let clouds = json!({ "clouds": { "none": { "auth": { "auth_url": "http://127.0.0.1:9", "user_id": "u", "password": "p", "project_id": "p" } } } });
    let ports = Site::new(&clouds, "none").ports();
    let reason = "the configuration has no [silences]".to_owned();
    assert_eq!(ports.silences.begin(&silence("a")).await.unwrap_err().kind, PortErrorKind::Refused { reason });
}
