//! The site's servers, spoken to in plain HTTP: what a real Keystone, Nova and BMC were seen to answer.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use turnaround_config::NodeName;
use turnaround_tests::servers::{Login, Mishap, Which};
use turnaround_tests::harness::until;
use turnaround_tests::site::{Settings, Site};
use turnaround_workflows::clock::{HandClock, Timestamp};
use turnaround_workflows::ports::*;
use turnaround_workflows::rehearsal::*;

struct Bench {
    clock: Arc<HandClock>,
    world: Arc<World>,
    site: Site,
    http: Client,
}

impl Bench {
    async fn of(plan: SitePlan) -> Bench {
        turnaround_worker::adapters::install_tls();
        let clock = Arc::new(HandClock::at(Timestamp::from_millis(1_772_323_200_000)));
        let world = World::new(clock.clone(), plan, 1);
        let site = Site::start(&world).await.unwrap();
        Bench { clock, world, site, http: Client::new() }
    }

    async fn ask_token(&self, login: &Login, project: Option<&str>) -> Response {
        let domain = json!({ "id": "default" });
        let user = json!({ "name": login.user, "password": login.password, "domain": domain });
        let mut body = json!({ "auth": { "identity": { "methods": ["password"], "password": { "user": user } } } });
        if let Some(project) = project {
            body["auth"]["scope"] = json!({ "project": { "name": project, "domain": domain } });
        }
        self.http.post(format!("{}/v3/auth/tokens", self.site.servers.keystone_url)).json(&body).send().await.unwrap()
    }

    async fn token(&self, login: &Login, project: &str) -> String {
        let answer = self.ask_token(login, Some(project)).await;
        assert_eq!(answer.status(), 201);
        answer.headers()["x-subject-token"].to_str().unwrap().to_owned()
    }

    async fn admin(&self) -> Nova<'_> {
        let token = self.token(&self.site.servers.credentials.admin, "admin").await;
        Nova { bench: self, token, version: "2.95" }
    }

    async fn member(&self) -> Nova<'_> {
        let token = self.token(&self.site.servers.credentials.member, "tenant-a").await;
        Nova { bench: self, token, version: "2.95" }
    }

    fn id(&self, name: &str) -> String {
        self.world.snapshot().instance(name).unwrap().id.clone()
    }

    fn adapters(&self) -> Ports {
        let settings = Settings::quick(Path::new(env!("CARGO_BIN_EXE_site-ssh")));
        let text = self.site.config_toml(&self.world, &settings);
        let config = turnaround_config::check_text("config.toml", &text).unwrap_or_else(|report| panic!("{report}"));
        turnaround_worker::adapters::connect(&config).unwrap_or_else(|error| panic!("{error}"))
    }

    fn settle(&self) {
        while let Some(next) = self.world.next_event() {
            self.clock.advance_to(next);
        }
    }

    fn happened(&self, wanted: impl Fn(&Happened) -> bool) -> usize {
        self.world.events().iter().filter(|event| wanted(&event.what)).count()
    }
}

struct Nova<'a> {
    bench: &'a Bench,
    token: String,
    version: &'static str,
}

impl Nova<'_> {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/v2.1{path}", self.bench.site.servers.nova_url);
        let request = self.bench.http.request(method, url).header("x-auth-token", &self.token);
        request.header("openstack-api-version", format!("compute {}", self.version))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.request(Method::GET, path).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let answer = self.request(method, path).json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() })
    }

    async fn act(&self, id: &str, body: Value) -> (u16, Value) {
        self.send(Method::POST, &format!("/servers/{id}/action"), body).await
    }
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

#[tokio::test]
async fn keystone_lets_in_who_has_the_password_and_tells_where_nova_is() {
    let bench = Bench::of(SitePlan::uniform(1, 0)).await;
    let admin = bench.site.servers.credentials.admin.clone();
    let answer = bench.ask_token(&admin, Some("admin")).await;
    assert_eq!(answer.status(), 201);
    let body: Value = answer.json().await.unwrap();
    let nova = &body["token"]["catalog"][0]["endpoints"][0];
    assert_eq!(nova["url"], format!("{}/v2.1", bench.site.servers.nova_url));
    assert_eq!(body["token"]["roles"][0]["name"], "admin");

    let wrong = Login { user: admin.user.clone(), password: "wrong".to_owned() };
    let nobody = Login { user: "nobody".to_owned(), password: admin.password.clone() };
    for (login, project) in [(&wrong, "admin"), (&nobody, "admin"), (&admin, "tenant-a")] {
        let answer = bench.ask_token(login, Some(project)).await;
        assert_eq!(answer.status(), 401);
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["message"], "The request you have made requires authentication.");
    }
    let unscoped: Value = bench.ask_token(&admin, None).await.json().await.unwrap();
    assert_eq!(unscoped["token"]["catalog"], Value::Null);
}

#[tokio::test]
async fn nova_accepts_no_token_but_a_good_one() {
    let bench = Bench::of(SitePlan::uniform(1, 0)).await;
    let admin = bench.admin().await;
    assert_eq!(admin.get("/os-services").await.0, 200);
    let forged = Nova { bench: &bench, token: "gAAAAAforged".to_owned(), version: "2.95" };
    let (status, body) = forged.get("/os-services").await;
    assert_eq!((status, &body["error"]["title"]), (401, &json!("Unauthorized")));
    bench.site.servers.revoke_tokens();
    assert_eq!(admin.get("/os-services").await.0, 401);
    bench.site.servers.tokens_live(Duration::ZERO);
    assert_eq!(bench.admin().await.get("/os-services").await.0, 401, "it has expired");
}

#[tokio::test]
async fn nova_speaks_the_microversion_that_is_asked_for() {
    let bench = Bench::of(SitePlan::uniform(1, 0)).await;
    let root = bench.http.get(format!("{}/v2.1/", bench.site.servers.nova_url)).send().await.unwrap();
    let root: Value = root.json().await.unwrap();
    assert_eq!((&root["version"]["version"], &root["version"]["min_version"]), (&json!("2.103"), &json!("2.1")));
    let admin = bench.admin().await;
    let with = |version: &'static str| Nova { bench: &bench, token: admin.token.clone(), version };
    let (status, body) = with("2.999").get("/os-services").await;
    let message = "Version 2.999 is not supported by the API. Minimum is 2.1 and maximum is 2.103.";
    assert_eq!((status, &body["computeFault"]["message"]), (406, &json!(message)));
    assert_eq!(with("two").get("/os-services").await.0, 400);
    assert_eq!(with("2.1").get("/os-services").await.1["services"][0]["id"], 1);
    assert!(with("2.53").get("/os-services").await.1["services"][0]["id"].is_string());
    assert_eq!(with("2.87").get("/os-hypervisors/detail").await.1["hypervisors"][0]["vcpus"], 64);
    assert_eq!(with("2.88").get("/os-hypervisors/detail").await.1["hypervisors"][0]["vcpus"], Value::Null);
    let answer = with("2.72").request(Method::GET, "/os-services").send().await.unwrap();
    assert_eq!(answer.headers()["openstack-api-version"], "compute 2.72");
    assert!(answer.headers()["x-openstack-request-id"].to_str().unwrap().starts_with("req-"));
}

#[tokio::test]
async fn a_mere_member_sees_only_its_own_project() {
    let mut plan = SitePlan::uniform(1, 2);
    plan.instance("gpu-01-b").unwrap().project = "tenant-b".to_owned();
    let bench = Bench::of(plan).await;
    let (admin, member) = (bench.admin().await, bench.member().await);
    let count = |(status, body): (u16, Value)| {
        assert_eq!(status, 200, "{body}");
        body["servers"].as_array().unwrap().len()
    };
    assert_eq!(count(admin.get("/servers/detail?all_tenants=1&host=gpu-01").await), 2);
    assert_eq!(count(admin.get("/servers/detail?host=gpu-01").await), 0, "without all_tenants a full host looks empty");
    assert_eq!(count(admin.get("/servers/detail?all_tenants=1&host=nosuch").await), 0);
    let (_, own) = member.get("/servers/detail").await;
    assert_eq!(own["servers"][0]["name"], "gpu-01-a");
    assert_eq!(own["servers"][0].get("OS-EXT-SRV-ATTR:host"), None);
    assert_eq!(member.get("/servers/detail?all_tenants=1").await.0, 403);
    assert_eq!(member.get(&format!("/servers/{}", bench.id("gpu-01-b"))).await.0, 404);
    let (status, body) = member.get("/os-services").await;
    let message = "Policy doesn't allow os_compute_api:os-services:list to be performed.";
    assert_eq!((status, &body["forbidden"]["message"]), (403, &json!(message)));
    let live = json!({ "os-migrateLive": { "host": null, "block_migration": "auto" } });
    assert_eq!(member.act(&bench.id("gpu-01-a"), live).await.0, 403);
}

#[tokio::test]
async fn lists_have_pages() {
    let bench = Bench::of(SitePlan::uniform(1, 5)).await;
    let admin = bench.admin().await;
    let (mut names, mut path) = (Vec::new(), "/servers/detail?all_tenants=1&limit=2".to_owned());
    for _ in 0..3 {
        let (_, page) = admin.get(&path).await;
        names.extend(
            page["servers"].as_array().unwrap().iter().map(|server| server["name"].as_str().unwrap().to_owned()),
        );
        let next = page["servers_links"][0]["href"].as_str().unwrap_or_default();
        path = next.split("/v2.1").nth(1).unwrap_or_default().to_owned();
    }
    assert_eq!((names.len(), path.as_str()), (5, ""));
    assert_eq!(admin.get("/servers/detail?all_tenants=1&marker=nosuch").await.0, 400);
}

#[tokio::test]
async fn a_service_is_disabled_by_its_uuid_and_enabling_takes_no_reason() {
    let bench = Bench::of(SitePlan::uniform(1, 0)).await;
    let admin = bench.admin().await;
    let id = admin.get("/os-services?binary=nova-compute&host=gpu-01").await.1["services"][0]["id"].clone();
    let path = format!("/os-services/{}", id.as_str().unwrap());
    for _ in 0..2 {
        let (status, body) =
            admin.send(Method::PUT, &path, json!({ "status": "disabled", "disabled_reason": "x" })).await;
        assert_eq!((status, &body["service"]["disabled_reason"]), (200, &json!("x")));
        assert_eq!(body["service"]["state"], "up", "what is disabled runs on");
    }
    let (status, body) = admin.send(Method::PUT, &path, json!({ "status": "enabled", "disabled_reason": "x" })).await;
    let message = "Specifying 'disabled_reason' with status 'enabled' is invalid.";
    assert_eq!((status, &body["badRequest"]["message"]), (400, &json!(message)));
    let (_, body) = admin.send(Method::PUT, &path, json!({ "status": "enabled" })).await;
    assert_eq!(body["service"]["disabled_reason"], Value::Null);
    assert_eq!(admin.send(Method::PUT, "/os-services/nosuch", json!({ "status": "enabled" })).await.0, 404);
}

#[tokio::test]
async fn a_move_can_be_followed_by_its_request_id() {
    let mut plan = SitePlan::uniform(2, 1);
    plan.instance("gpu-01-a").unwrap().fault = MoveFault::new(MoveGoesWrong::PreCheck, 1, "CPU does not match");
    let bench = Bench::of(plan).await;
    let admin = bench.admin().await;
    let id = bench.id("gpu-01-a");
    let live = json!({ "os-migrateLive": { "host": null, "block_migration": "auto" } });
    let request = admin.request(Method::POST, &format!("/servers/{id}/action")).json(&live).send().await.unwrap();
    assert_eq!(request.status(), 202);
    let request = request.headers()["x-openstack-request-id"].to_str().unwrap().to_owned();
    assert_eq!(admin.get(&format!("/servers/{id}")).await.1["server"]["status"], "MIGRATING");
    assert_eq!(admin.get(&format!("/servers/{id}/migrations")).await.1["migrations"], json!([]), "not yet begun");
    let (status, body) = admin.act(&id, live.clone()).await;
    assert_eq!(status, 409);
    assert!(body["conflictingRequest"]["message"].as_str().unwrap().ends_with("while it is in task_state migrating"));
    bench.settle();
    assert_eq!(admin.get(&format!("/servers/{id}")).await.1["server"]["status"], "ACTIVE");
    let (_, action) = admin.get(&format!("/servers/{id}/os-instance-actions/{request}")).await;
    assert_eq!(action["instanceAction"]["message"], "Error");
    assert_eq!(action["instanceAction"]["events"][1]["details"], "CPU does not match");
    let (_, list) = admin.get(&format!("/os-migrations?instance_uuid={id}")).await;
    let record = &list["migrations"][0];
    assert_eq!(
        (&record["status"], &record["dest_compute"], &record["source_node"]),
        (&json!("error"), &Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn nova_refuses_in_its_own_words() {
    let mut plan = SitePlan::uniform(2, 2);
    plan.instance("gpu-01-b").unwrap().vm_state = VmState::Stopped;
    let bench = Bench::of(plan).await;
    let admin = bench.admin().await;
    let (a, b) = (bench.id("gpu-01-a"), bench.id("gpu-01-b"));
    let live = json!({ "os-migrateLive": { "host": null, "block_migration": "auto" } });
    let nosuch = "00000000-0000-4000-a000-000000000000";
    let cases = [
        (
            b.as_str(),
            live.clone(),
            409,
            format!("Cannot 'os-migrateLive' instance {b} while it is in vm_state stopped"),
        ),
        (&a, json!({ "confirmResize": null }), 400, "Instance has not been resized.".to_owned()),
        (nosuch, live, 404, format!("Instance {nosuch} could not be found.")),
        (&a, json!({ "evacuate": {} }), 400, "Compute service of gpu-01 is still in use.".to_owned()),
    ];
    for (id, action, code, message) in cases {
        let (status, body) = admin.act(id, action).await;
        let said = body.as_object().unwrap().values().next().unwrap();
        assert_eq!((status, &said["message"], &said["code"]), (code, &json!(message), &json!(code)));
    }
    let forced = json!({ "os-migrateLive": { "host": null, "block_migration": "auto", "force": true } });
    assert_eq!(admin.act(&a, forced).await.0, 400);
    assert_eq!(admin.get("/os-hypervisors?hypervisor_hostname_pattern=nosuch").await.0, 404);
    assert_eq!(bench.happened(|what| matches!(what, Happened::MigrationRequested { refused: None, .. })), 0);
}

#[tokio::test]
async fn a_bmc_lets_in_who_has_its_own_password_and_says_yes_before_anything_happens() {
    let bench = Bench::of(SitePlan::uniform(2, 0)).await;
    let servers = &bench.site.servers;
    let url = format!("{}/redfish/v1/Systems/gpu-01", servers.redfish_url);
    let (own, other) = (&servers.credentials.bmcs["gpu-01"], &servers.credentials.bmcs["gpu-02"]);
    let get = |login: &Login| bench.http.get(&url).basic_auth(&login.user, Some(&login.password)).send();
    assert_eq!(get(other).await.unwrap().status(), 401);
    assert_eq!(bench.http.get(&url).send().await.unwrap().status(), 401);
    let system: Value = get(own).await.unwrap().json().await.unwrap();
    assert_eq!(
        (&system["PowerState"], &system["Boot"]["BootSourceOverrideEnabled"]),
        (&json!("On"), &json!("Disabled"))
    );
    let reset =
        format!("{}{}", servers.redfish_url, system["Actions"]["#ComputerSystem.Reset"]["target"].as_str().unwrap());
    let post = |kind: &str| {
        let request = bench.http.post(&reset).basic_auth(&own.user, Some(&own.password));
        request.json(&json!({ "ResetType": kind })).send()
    };
    assert_eq!(post("Explode").await.unwrap().status(), 501);
    assert_eq!(post("ForceRestart").await.unwrap().status(), 204);
    let system: Value = get(own).await.unwrap().json().await.unwrap();
    assert_eq!(system["PowerState"], "On", "204 says nothing of what has happened");
    assert_eq!(bench.happened(|what| matches!(what, Happened::ResetRequested { .. })), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_adapters_get_a_new_token_when_theirs_is_refused() {
    let bench = Bench::of(SitePlan::uniform(1, 1)).await;
    let ports = bench.adapters();
    ports.compute.service(&node("gpu-01")).await.unwrap();
    ports.instances.on(&node("gpu-01")).await.unwrap();
    assert_eq!(bench.site.servers.tokens_given(), 1);
    bench.site.servers.revoke_tokens();
    ports.compute.close(&node("gpu-01"), "turnaround").await.unwrap();
    assert_eq!(bench.site.servers.tokens_given(), 2);
    assert!(!bench.world.snapshot().node("gpu-01").unwrap().enabled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_adapters_read_again_where_a_proxy_hiccups_and_never_ask_again_for_a_change() {
    let bench = Bench::of(SitePlan::uniform(2, 1)).await;
    let ports = bench.adapters();
    let mishaps = &bench.site.servers.mishaps;
    mishaps.plan(Which::path("/os-services"), Mishap::Status(502), 1);
    mishaps.plan(Which::path("/servers/detail"), Mishap::CutBefore, 1);
    assert_eq!(ports.instances.on(&node("gpu-01")).await.unwrap().len(), 1);

    let id = InstanceId(bench.id("gpu-01-a"));
    for mishap in [Mishap::CutAfterEffect, Mishap::StatusAfterEffect(504)] {
        let before = bench.happened(|what| matches!(what, Happened::MigrationRequested { .. }));
        mishaps.plan(Which::change(Method::POST, "/action"), mishap, 1);
        let error = ports.instances.start_move(&id, Move::Live, None).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::OutcomeUnknown, "{mishap:?}: {error}");
        assert_eq!(bench.happened(|what| matches!(what, Happened::MigrationRequested { .. })), before + 1);
        bench.settle();
    }
    mishaps.plan(Which::change(Method::POST, "/action"), Mishap::CutBefore, 1);
    let error = ports.instances.start_move(&id, Move::Live, None).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::OutcomeUnknown, "whoever was cut off can't know");
    assert_eq!(bench.happened(|what| matches!(what, Happened::MigrationRequested { .. })), 2);
    mishaps.plan(Which::change(Method::PUT, "/os-services"), Mishap::CutAfterEffect, 1);
    let error = ports.compute.close(&node("gpu-01"), "turnaround").await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::OutcomeUnknown);
    mishaps.plan(Which::path("Actions"), Mishap::CutAfterEffect, 1);
    assert_eq!(ports.bmc.reset(&node("gpu-01")).await.unwrap_err().kind, PortErrorKind::OutcomeUnknown);
    assert_eq!(bench.happened(|what| matches!(what, Happened::ResetRequested { .. })), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_adapters_say_whose_credentials_are_wrong() {
    let bench = Bench::of(SitePlan::uniform(1, 0)).await;
    let secrets = bench.site.folder().join("secrets");
    let good = std::fs::read_to_string(secrets.join("clouds.yaml")).unwrap();
    let admin = &bench.site.servers.credentials.admin;
    std::fs::write(secrets.join("clouds.yaml"), good.replace(&admin.password, "wrong-password")).unwrap();
    std::fs::write(secrets.join("gpu-01.password"), "wrong-password\n").unwrap();
    let identity = std::fs::read_to_string(secrets.join("identity")).unwrap();
    let key = &bench.site.servers.credentials.ssh.password;
    std::fs::write(secrets.join("identity"), identity.replace(key.as_str(), "wrong-key")).unwrap();
    let ports = bench.adapters();
    let denied = |error: PortError| {
        let text = format!("{error}");
        assert!(!text.contains("wrong-password"), "{text}");
        matches!(error.kind, PortErrorKind::Denied { .. })
    };
    assert!(denied(ports.compute.service(&node("gpu-01")).await.unwrap_err()));
    assert!(denied(ports.bmc.power(&node("gpu-01")).await.unwrap_err()));
    let error = ports.facts.facts(&node("gpu-01")).await.unwrap_err();
    assert!(error.source.unwrap().to_string().contains("Permission denied"));
    assert_eq!(bench.world.events().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_site_is_slow_and_the_servers_end_with_it() {
    let bench = Bench::of(SitePlan::uniform(1, 0)).await;
    let url = bench.site.servers.keystone_url.clone();
    bench.site.servers.mishaps.slow_down(Duration::from_millis(300));
    let before = tokio::time::Instant::now();
    bench.http.get(&url).send().await.unwrap();
    assert!(before.elapsed() >= Duration::from_millis(300));
    let Bench { site, http, .. } = bench;
    drop((site, http));
    until("the servers to be gone", async || Client::new().get(&url).send().await.is_err().then_some(())).await.unwrap();
}
