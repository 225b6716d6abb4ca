//! What the adapter for Keystone and Nova makes of answers that a healthy cloud seldom gives: each has to mean the right
//! thing, because a step decides by it whether it may ask again.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

#[path = "support/cloud.rs"]
mod cloud;

use std::time::{Duration, SystemTime};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Instrument as _;
use tracing_subscriber::layer::SubscriberExt as _;

use cloud::{Cloud, Reply, server, services};
use serde_json::{Value, json};
use support::{Site, node, told};
use turnaround_worker::adapters;
use turnaround_workflows::ports::{Host, InstanceId, Migration, Move, PortError, PortErrorKind, Ports, Room};

fn ports(cloud: &Cloud) -> Ports {
    Site::new(&cloud.clouds(), "fake").with_node("gpu-01", "compute1").ports()
}

async fn list(ports: &Ports) -> Result<Vec<String>, PortError> {
    let listed = ports.instances.on(&node("gpu-01")).await?;
    Ok(listed.into_iter().map(|instance| instance.id.0).collect())
}

async fn start_move(ports: &Ports) -> Result<String, PortError> {
    ports.instances.start_move(&InstanceId("one".to_owned()), Move::Live, None).await.map(|started| started.request.0)
}

fn refused(reason: &str) -> PortErrorKind {
    PortErrorKind::Refused { reason: reason.to_owned() }
}

/// What a move means that is answered so, and how often it was asked for.
async fn check_move(reply: Reply) -> (Result<String, PortErrorKind>, usize) {
    let cloud = Cloud::start().await;
    cloud.reply("POST", "/v2.1/servers/one/action", [reply]);
    let result = start_move(&ports(&cloud)).await.map_err(|error| error.kind);
    (result, cloud.asked("POST", "/v2.1/servers/one/action").len())
}

#[tokio::test]
async fn a_move_is_asked_for_once_whatever_is_answered() {
    let fault =
        |status: u16, key: &str, message: &str| Reply::json(status, &json!({ key: { "code": status, "message": message } }));
    let unknown = Err(PortErrorKind::OutcomeUnknown);
    assert_eq!(check_move(Reply::text(202, "").with("x-openstack-request-id", "req-7")).await, (Ok("req-7".to_owned()), 1));
    assert_eq!(check_move(Reply::text(202, "")).await, (unknown.clone(), 1), "accepted, and nobody can ask after it");
    assert_eq!(check_move(fault(409, "conflictingRequest", "it is locked")).await, (Err(refused("it is locked")), 1));
    assert_eq!(check_move(fault(400, "badRequest", "no such\n host")).await, (Err(refused("no such host")), 1));
    assert_eq!(check_move(fault(418, "somethingNew", "tea")).await, (Err(refused("tea")), 1));
    assert_eq!(
        check_move(fault(403, "forbidden", "not you")).await,
        (Err(PortErrorKind::Denied { reason: "not you".to_owned() }), 1)
    );
    assert_eq!(check_move(fault(404, "itemNotFound", "gone")).await, (Err(PortErrorKind::NotFound), 1));
    assert_eq!(check_move(fault(500, "computeFault", "oops")).await, (unknown.clone(), 1));
    assert_eq!(check_move(Reply::text(502, "<html>Bad Gateway</html>")).await, (unknown.clone(), 1));
    assert_eq!(check_move(Reply::text(503, "")).await, (unknown, 1));
    assert_eq!(check_move(Reply::text(429, "")).await, (Err(PortErrorKind::Unavailable), 1), "not carried out, and says so");
}

#[tokio::test]
async fn novas_words_are_told_also_where_it_is_not_known_what_it_did() {
    let cloud = Cloud::start().await;
    let oops = Reply::json(500, &json!({ "computeFault": { "code": 500, "message": "Unexpected API Error" } })).with("x-openstack-request-id", "req-7");
    cloud.reply("POST", "/v2.1/servers/one/action", [oops]);
    let error = start_move(&ports(&cloud)).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::OutcomeUnknown);
    assert_eq!(told(&error), "could not live-migrate instance one: the answer was lost: Nova answered HTTP 500 (request req-7): Unexpected API Error");
}

#[tokio::test]
async fn an_answer_that_never_comes_is_an_unknown_outcome() {
    let cloud = Cloud::start().await;
    cloud.reply("POST", "/v2.1/servers/one/action", [Reply::silent()]);
    let site = Site::new(&cloud.clouds(), "fake").with_node("gpu-01", "compute1");
    let mut config = site.config();
    config.openstack.request_timeout = Duration::from_millis(300);
    let ports = adapters::connect(&config).unwrap();
    let error = start_move(&ports).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::OutcomeUnknown);
    assert!(
        told(&error).starts_with("could not live-migrate instance one: the answer was lost: no answer in time"),
        "{}",
        told(&error)
    );
}

#[tokio::test]
async fn a_nova_that_takes_no_connection_has_done_nothing() {
    let cloud = Cloud::start().await;
    let mut clouds = cloud.clouds();
    clouds["clouds"]["fake"]["compute_endpoint_override"] = "http://127.0.0.1:9/v2.1".into();
    let ports = Site::new(&clouds, "fake").with_node("gpu-01", "compute1").ports();
    let error = start_move(&ports).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Unavailable);
    assert!(told(&error).contains("no connection"), "{}", told(&error));
}

#[tokio::test]
async fn a_read_is_repeated_after_server_errors_but_not_for_ever() {
    let cloud = Cloud::start().await;
    let good = Reply::json(200, &json!({ "servers": [server("one")] }));
    cloud.reply("GET", "/v2.1/servers/detail", [Reply::text(500, "x"), Reply::text(503, ""), good]);
    let ports = ports(&cloud);
    assert_eq!(list(&ports).await.unwrap(), ["one"]);
    cloud.reply(
        "GET",
        "/v2.1/servers/detail",
        [Reply::json(500, &json!({ "computeFault": { "code": 500, "message": "oops" } }))],
    );
    let error = list(&ports).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Unavailable);
    assert_eq!(cloud.asked("GET", "/v2.1/servers/detail").len(), 3 + 4);
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_and_the_request_sent_once_more() {
    let unauthorized = || {
        Reply::json(
            401,
            &json!({ "error": { "code": 401, "title": "Unauthorized", "message": "The request you have made requires authentication." } }),
        )
    };
    let cloud = Cloud::start().await;
    let accepted = Reply::text(202, "").with("x-openstack-request-id", "req-1");
    cloud.reply("POST", "/v2.1/servers/one/action", [unauthorized(), accepted]);
    let ports = ports(&cloud);
    assert_eq!(start_move(&ports).await.unwrap(), "req-1");
    let tokens: Vec<_> = cloud
        .asked("POST", "/v2.1/servers")
        .iter()
        .map(|asked| asked.headers["x-auth-token"].to_str().unwrap().to_owned())
        .collect();
    assert_eq!(tokens, ["canary-token-1", "canary-token-2"]);

    cloud.reply("POST", "/v2.1/servers/one/action", [unauthorized()]);
    let error = start_move(&ports).await.unwrap_err();
    assert!(matches!(error.kind, PortErrorKind::Denied { .. }), "{error:?}");
    assert_eq!(cloud.asked("POST", "/v3/auth/tokens").len(), 3);
    // Nova that does not even tell its version without a good token.
    cloud.reply("GET", "/v2.1/", [unauthorized()]);
    cloud.reply("POST", "/v2.1/servers/one/action", [unauthorized()]);
    assert!(matches!(start_move(&ports).await.unwrap_err().kind, PortErrorKind::Denied { .. }));
}

/// Read at night, a sentence that comes twice looks like two troubles, and one without a cause like none.
#[tokio::test]
async fn what_kept_a_call_from_being_sent_is_told_once_and_with_its_cause() {
    for (version, expected) in [
        (Reply::text(200, "<html>"), "could not list the instances on gpu-01: the answer makes no sense: could not ask Nova for its version: expected Nova's version document, and column 1 of line 1 does not fit"),
        (Reply::text(500, "oops"), "could not list the instances on gpu-01: could not ask Nova for its version: HTTP 500"),
    ] {
        let cloud = Cloud::start().await;
        cloud.reply("GET", "/v2.1/", [version]);
        assert_eq!(told(&list(&ports(&cloud)).await.unwrap_err()), expected);
    }
}

#[tokio::test]
async fn a_token_is_kept_until_shortly_before_it_expires() {
    let cloud = Cloud::start().await;
    let in_a_minute = chrono_of(Duration::from_secs(60));
    cloud.reply("POST", "/v3/auth/tokens", [cloud.token(&in_a_minute, 1), cloud.token("2999-01-01T00:00:00.000000Z", 2)]);
    let ports = ports(&cloud);
    for _ in 0..3 {
        list(&ports).await.unwrap();
    }
    assert_eq!(cloud.asked("POST", "/v3/auth/tokens").len(), 2, "the first one had a minute left, the second one serves");
    let versions = cloud.asked("GET", "/v2.1/").into_iter().filter(|asked| asked.path == "/v2.1/").count();
    assert_eq!(versions, 2, "the catalogue is looked at with every new token");
}

fn chrono_of(from_now: Duration) -> String {
    #[allow(clippy::disallowed_methods, reason = "Keystone's clock, which is not ours to turn")]
    let at = SystemTime::now() + from_now;
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    turnaround_workflows::clock::Timestamp::from_millis(i64::try_from(seconds).unwrap()).to_string()
}

#[tokio::test]
async fn a_redirect_is_refused_and_the_token_goes_nowhere() {
    let (cloud, elsewhere) = (Cloud::start().await, Cloud::start().await);
    let to = format!("http://{}/v2.1/", elsewhere.address);
    cloud.reply("GET", "/v2.1/os-services?", [Reply::text(302, "").with("location", &to)]);
    let error = list(&ports(&cloud)).await.unwrap_err();
    assert_eq!(error.kind, refused(&format!("it redirects to {to}; redirects are not followed, give the final address")));
    assert!(elsewhere.asked("GET", "/").is_empty());

    cloud.reply("POST", "/v3/auth/tokens", [Reply::text(307, "").with("location", &to)]);
    assert!(matches!(list(&ports(&cloud)).await.unwrap_err().kind, PortErrorKind::Refused { .. }));
    assert!(elsewhere.asked("POST", "/").is_empty());
}

#[tokio::test]
async fn a_404_that_is_not_novas_own_is_no_answer_to_the_question() {
    let cloud = Cloud::start().await;
    let ports = ports(&cloud);
    cloud.reply("GET", "/v2.1/servers/one", [Reply::text(404, "<html>Not Found</html>")]);
    let error = ports.instances.get(&InstanceId("one".to_owned())).await.unwrap_err();
    assert_eq!(
        error.kind,
        PortErrorKind::Garbled { reason: "HTTP 404 that is not Nova's own; is its address right?".to_owned() }
    );
}

#[tokio::test]
async fn a_host_that_can_not_be_seen_does_not_look_empty() {
    let cloud = Cloud::start().await;
    let ports = ports(&cloud);
    cloud.reply("GET", "/v2.1/servers/detail", [Reply::json(200, &json!({ "servers": [] }))]);
    assert_eq!(list(&ports).await.unwrap(), Vec::<String>::new());
    // Its cell is down: Nova leaves its instances out (2.69).
    cloud.reply(
        "GET",
        "/v2.1/os-services?",
        [Reply::json(200, &json!({ "services": [{ "binary": "nova-compute", "host": "compute1", "status": "UNKNOWN" }] }))],
    );
    let error = list(&ports).await.unwrap_err();
    assert_eq!(
        (&error.kind, told(&error).ends_with("the Nova cell of this host does not answer")),
        (&PortErrorKind::Unavailable, true)
    );
    // A filter that Nova ignored must not answer for another host.
    cloud.reply("GET", "/v2.1/os-services?", [Reply::json(200, &services("compute10"))]);
    assert_eq!(list(&ports).await.unwrap_err().kind, PortErrorKind::NotFound);
}

#[tokio::test]
async fn a_record_of_a_cell_that_does_not_answer_is_not_taken_for_an_instance() {
    let cloud = Cloud::start().await;
    let ports = ports(&cloud);
    let stub = json!({ "id": "one", "status": "UNKNOWN", "tenant_id": "p" });
    cloud.reply("GET", "/v2.1/servers/one", [Reply::json(200, &json!({ "server": stub }))]);
    assert_eq!(ports.instances.get(&InstanceId("one".to_owned())).await.unwrap_err().kind, PortErrorKind::Unavailable);
    cloud.reply("GET", "/v2.1/servers/detail", [Reply::json(200, &json!({ "servers": [server("two"), stub] }))]);
    assert_eq!(list(&ports).await.unwrap_err().kind, PortErrorKind::Unavailable);
}

#[tokio::test]
async fn an_instance_of_another_host_is_an_error_and_not_taken_for_one_of_this() {
    let cloud = Cloud::start().await;
    let mut elsewhere = server("two");
    elsewhere["OS-EXT-SRV-ATTR:host"] = json!("compute2");
    cloud.reply("GET", "/v2.1/servers/detail", [Reply::json(200, &json!({ "servers": [server("one"), elsewhere] }))]);
    let error = list(&ports(&cloud)).await.unwrap_err();
    let PortErrorKind::Refused { reason } = &error.kind else { panic!("{error:?}") };
    assert!(reason.contains("instance two of compute2") && reason.contains("allow_all_filters"), "{reason}");
}

#[tokio::test]
async fn a_list_that_was_made_while_the_cell_was_failing_is_not_believed() {
    let cloud = Cloud::start().await;
    let failing = json!({ "services": [{ "binary": "nova-compute", "host": "compute1", "status": "UNKNOWN" }] });
    cloud.reply("GET", "/v2.1/os-services?", [Reply::json(200, &services("compute1")), Reply::json(200, &failing)]);
    cloud.reply("GET", "/v2.1/servers/detail", [Reply::json(200, &json!({ "servers": [] }))]);
    assert_eq!(list(&ports(&cloud)).await.unwrap_err().kind, PortErrorKind::Unavailable);
}

#[tokio::test]
async fn every_page_is_read_of_every_project_and_a_list_without_an_end_is_an_error() {
    let cloud = Cloud::start().await;
    let page = |id: &str, more: bool| {
        let links = if more { json!([{ "rel": "next", "href": "http://192.0.2.9/elsewhere" }]) } else { json!([]) };
        Reply::json(200, &json!({ "servers": [server(id)], "servers_links": links }))
    };
    cloud.reply("GET", "/v2.1/servers/detail", [page("one", true), page("two", true), page("three", false)]);
    let ports = ports(&cloud);
    assert_eq!(list(&ports).await.unwrap(), ["one", "two", "three"]);
    let asked: Vec<_> = cloud.asked("GET", "/v2.1/servers/detail").into_iter().map(|asked| asked.path).collect();
    assert_eq!(
        asked,
        [
            "/v2.1/servers/detail?all_tenants=1&host=compute1&limit=1000",
            "/v2.1/servers/detail?all_tenants=1&host=compute1&limit=1000&marker=one",
            "/v2.1/servers/detail?all_tenants=1&host=compute1&limit=1000&marker=two",
        ]
    );
    cloud.reply("GET", "/v2.1/servers/detail", [page("one", true)]);
    assert_eq!(
        list(&ports).await.unwrap_err().kind,
        PortErrorKind::Garbled { reason: "the list does not end after 100 pages".to_owned() }
    );
}

#[tokio::test]
async fn an_answer_of_another_shape_or_without_an_end_is_garbled_and_not_quoted() {
    let cloud = Cloud::start().await;
    let ports = ports(&cloud);
    cloud.reply("GET", "/v2.1/servers/detail", [Reply::text(200, "{\"servers\": [{\"id\": 7, \"canary\": \"canary\"}]}")]);
    let error = list(&ports).await.unwrap_err();
    assert_eq!(
        error.kind,
        PortErrorKind::Garbled { reason: "expected a page of servers, and column 21 of line 1 does not fit".to_owned() }
    );
    cloud.reply("GET", "/v2.1/servers/detail", [Reply::text(200, &"x".repeat(33 << 20))]);
    assert_eq!(list(&ports).await.unwrap_err().kind, PortErrorKind::Garbled { reason: "it is longer than 32 MiB".to_owned() });
}

#[tokio::test]
async fn the_microversion_is_pinned_and_hypervisors_are_asked_in_one_that_still_tells_their_size() {
    let cloud = Cloud::start().await;
    let hypervisor = |host: &str, name: &str| json!({ "id": format!("{host}-id"), "hypervisor_hostname": name, "state": "up", "vcpus": 64, "memory_mb": 512_000, "service": { "host": host }, "servers": [{ "uuid": "one", "name": "x" }] });
    let both =
        json!({ "hypervisors": [hypervisor("compute10", "compute10.example"), hypervisor("compute1", "compute1.example")] });
    cloud.reply("GET", "/v2.1/os-hypervisors/detail", [Reply::json(200, &both)]);
    let ports = ports(&cloud);
    list(&ports).await.unwrap();
    let hypervisor = ports.compute.hypervisor(&node("gpu-01")).await.unwrap();
    assert_eq!(
        (hypervisor.up, hypervisor.vcpus, hypervisor.memory_mb, hypervisor.running),
        (true, 64, 512_000, vec!["one".to_owned()])
    );
    let version = |path: &str| cloud.asked("GET", path)[0].headers["openstack-api-version"].to_str().unwrap().to_owned();
    assert_eq!(version("/v2.1/servers/detail"), "compute 2.96");
    assert_eq!(version("/v2.1/os-hypervisors"), "compute 2.87");

    let old = Cloud::start().await;
    old.reply("GET", "/v2.1/", [Reply::json(200, &json!({ "version": { "version": "2.38", "min_version": "2.1" } }))]);
    let error = list(&self::ports(&old)).await.unwrap_err();
    assert_eq!(error.kind, refused("could not ask Nova for its version: its newest microversion is 2.38, and 2.53 (OpenStack Pike) is the oldest that will do"));
}

#[tokio::test]
async fn what_is_free_is_asked_of_placement_and_whatever_is_wrong_there_is_said() {
    let cloud = Cloud::start().await;
    let error = ports(&cloud).compute.hosts().await.unwrap_err();
    assert!(told(&error).contains("it has 0 placement endpoints with interface `public` in region `RegionOne`"), "{}", told(&error));

    let mut clouds = cloud.clouds();
    clouds["clouds"]["fake"]["placement_endpoint_override"] = format!("http://{}/placement/", cloud.address).into();
    let ports = Site::new(&clouds, "fake").with_node("gpu-01", "compute1").ports();
    let hosts = async || ports.compute.hosts().await;
    let garbled = |reason: &str| PortErrorKind::Garbled { reason: reason.to_owned() };
    assert_eq!(hosts().await.unwrap_err().kind, garbled("there is no Placement at the address that the catalogue gives"));
    let path = "/placement/allocation_candidates";
    let said = |status: u16, detail: &str| Reply::json(status, &json!({ "errors": [{ "status": status, "detail": detail }] }));
    cloud.reply("GET", path, [said(406, "Invalid microversion")]);
    let old = "Placement does not know its microversion 1.29 (OpenStack Rocky), the oldest that will do";
    assert_eq!(hosts().await.unwrap_err().kind, garbled(old));
    cloud.reply("GET", path, [said(403, "Access was denied to this resource.\n\n ")]);
    let denied = PortErrorKind::Denied { reason: "Access was denied to this resource.".to_owned() };
    assert_eq!(hosts().await.unwrap_err().kind, denied);

    // A token that is not good any more is replaced. Hypervisors come in pages; where Placement tells of none, nothing is free.
    let room = json!({ "VCPU": { "capacity": 256, "used": 6 }, "MEMORY_MB": { "capacity": 1000, "used": 400 } });
    let good = json!({ "provider_summaries": { "h1": { "resources": room, "root_provider_uuid": "h1" } } });
    let unauthorized = Reply::json(401, &json!({ "error": { "code": 401, "message": "no" } }));
    cloud.reply("GET", path, [unauthorized, Reply::json(200, &good)]);
    let page = |id: &str, host: &str, status: &str, state: &str, more: bool| {
        let links = if more { json!([{ "rel": "next", "href": "http://192.0.2.9/elsewhere" }]) } else { json!([]) };
        let hypervisor = json!({ "id": id, "status": status, "state": state, "service": { "host": host } });
        Reply::json(200, &json!({ "hypervisors": [hypervisor], "hypervisors_links": links }))
    };
    let pages = [page("h1", "compute1", "enabled", "up", true), page("h2", "compute2", "disabled", "down", false)];
    cloud.reply("GET", "/v2.1/os-hypervisors/detail", pages);
    let expected = [
        Host { name: "gpu-01".to_owned(), enabled: true, up: true, free: Room { vcpus: 250, memory_mb: 600, disk_gb: None } },
        Host { name: "compute2".to_owned(), enabled: false, up: false, free: Room::default() },
    ];
    assert_eq!(hosts().await.unwrap(), expected);
    let asked = cloud.asked("GET", path);
    let [.., refused, last] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(last.path, "/placement/allocation_candidates?resources=MEMORY_MB%3A1");
    assert_eq!(last.headers["openstack-api-version"], "placement 1.29");
    assert_ne!(last.headers["x-auth-token"], refused.headers["x-auth-token"]);
    let hypervisors = cloud.asked("GET", "/v2.1/os-hypervisors/detail");
    assert!(hypervisors[1].path.contains("marker=h1"), "{}", hypervisors[1].path);
    assert_eq!(hypervisors[1].headers["openstack-api-version"], "compute 2.87");
}

#[tokio::test]
async fn what_placement_has_of_a_host_is_the_sum_of_its_parts_and_one_that_has_gone_has_nothing() {
    let cloud = Cloud::start().await;
    let mut clouds = cloud.clouds();
    clouds["clouds"]["fake"]["placement_endpoint_override"] = format!("http://{}/placement/", cloud.address).into();
    let ports = Site::new(&clouds, "fake").with_node("gpu-01", "compute1").ports();
    let inventory = async || ports.compute.inventory(&node("gpu-01")).await;
    let hypervisor = json!({ "id": "h1", "hypervisor_hostname": "compute1", "state": "up", "service": { "host": "compute1" } });
    cloud.reply("GET", "/v2.1/os-hypervisors/detail", [Reply::json(200, &json!({ "hypervisors": [hypervisor] }))]);
    let tree = |parts: &[&str]| Reply::json(200, &json!({ "resource_providers": parts.iter().map(|uuid| json!({ "uuid": uuid })).collect::<Vec<_>>() }));
    cloud.reply("GET", "/placement/resource_providers", [tree(&[]), tree(&["h1", "gpu-a", "gpu-b", "gone"])]);
    let has = |class: &str, total: u64| Reply::json(200, &json!({ "inventories": { class: { "total": total, "reserved": 1 } } }));
    cloud.reply("GET", "/placement/resource_providers/h1/inventories", [has("VCPU", 64)]);
    cloud.reply("GET", "/placement/resource_providers/gpu-a/inventories", [has("VGPU", 4)]);
    cloud.reply("GET", "/placement/resource_providers/gpu-b/inventories", [has("VGPU", 8)]);
    let gone = json!({ "errors": [{ "status": 404, "detail": "No resource provider with uuid gone found" }] });
    cloud.reply("GET", "/placement/resource_providers/gone/inventories", [Reply::json(404, &gone), Reply::text(404, "nginx")]);
    assert_eq!(inventory().await.unwrap_err().kind, PortErrorKind::NotFound, "Placement has no such host");
    assert_eq!(inventory().await.unwrap(), [("VCPU".to_owned(), 64), ("VGPU".to_owned(), 12)].into());
    assert_eq!(cloud.asked("GET", "/placement/resource_providers")[0].path, "/placement/resource_providers?in_tree=h1");
    let nobody = inventory().await.unwrap_err();
    assert!(told(&nobody).contains("there is no Placement at the address"), "{}", told(&nobody));
}

#[tokio::test]
async fn the_agents_of_a_host_are_those_of_exactly_this_host_and_none_is_taken_for_silence() {
    let cloud = Cloud::start().await;
    let ports = Site::new(&cloud.clouds(), "fake").with_node("gpu-01", "compute1").ports();
    let agents = async || ports.compute.agents(&node("gpu-01")).await;
    let path = "/network/v2.0/agents";
    let agent = |host: &str, binary: &str, alive: bool| json!({ "id": "x", "agent_type": "t", "binary": binary, "host": host, "admin_state_up": true, "alive": alive });
    // MariaDB takes `Compute1` for the same; of two ovn-controllers one is silent.
    let list = json!({ "agents": [
        agent("compute1", "neutron-openvswitch-agent", true), agent("Compute1", "neutron-l3-agent", true),
        agent("compute1", "ovn-controller", true), agent("compute1", "ovn-controller", false),
    ] });
    cloud.reply("GET", path, [Reply::json(200, &list)]);
    let expected = [("neutron-openvswitch-agent".to_owned(), true), ("ovn-controller".to_owned(), false)];
    assert_eq!(agents().await.unwrap(), expected.into());
    assert_eq!(cloud.asked("GET", path)[0].path, "/network/v2.0/agents?host=compute1");
    // An older Neutron, or a proxy, has no such thing; a token that is not good any more is replaced.
    cloud.reply("GET", path, [Reply::json(404, &json!({ "NeutronError": { "type": "HTTPNotFound", "message": "The resource could not be found.", "detail": "" } }))]);
    assert!(matches!(agents().await.unwrap_err().kind, PortErrorKind::Refused { .. }));
    cloud.reply("GET", path, [Reply::text(401, ""), Reply::json(200, &json!({ "agents": [] }))]);
    assert!(agents().await.unwrap().is_empty());
    cloud.reply("GET", path, [Reply::json(200, &json!({ "networks": [] }))]);
    assert!(matches!(agents().await.unwrap_err().kind, PortErrorKind::Garbled { .. }));
}

#[tokio::test]
async fn the_endpoint_is_that_of_the_region_and_interface() {
    let cloud = Cloud::start().await;
    let mut clouds = cloud.clouds();
    clouds["clouds"]["fake"]["region_name"] = "RegionThree".into();
    let error = list(&Site::new(&clouds, "fake").with_node("gpu-01", "compute1").ports()).await.unwrap_err();
    assert_eq!(
        error.kind,
        refused(
            "could not find Nova in the catalogue of cloud `fake`: it has 0 compute endpoints with interface `public` in region `RegionThree`, and should have one; it has: public (region RegionOne), internal (region RegionOne), public (region RegionTwo)"
        )
    );
    clouds["clouds"]["fake"].as_object_mut().unwrap().remove("region_name");
    let error = list(&Site::new(&clouds, "fake").with_node("gpu-01", "compute1").ports()).await.unwrap_err();
    assert!(
        matches!(&error.kind, PortErrorKind::Refused { reason } if reason.starts_with("could not find Nova in the catalogue of cloud `fake`: it has 2 compute endpoints")),
        "{error}"
    );
}

/// What Keystone is asked with these authentication settings.
async fn check_identity(auth_type: Value, settings: Value) -> Value {
    let cloud = Cloud::start().await;
    let mut auth = settings;
    auth["auth_url"] = format!("http://{}/v3/", cloud.address).into();
    let mut clouds = json!({ "clouds": { "fake": { "region_name": "RegionOne", "auth": auth } } });
    if !auth_type.is_null() {
        clouds["clouds"]["fake"]["auth_type"] = auth_type;
    }
    list(&Site::new(&clouds, "fake").with_node("gpu-01", "compute1").ports()).await.unwrap();
    serde_json::from_str(&cloud.asked("POST", "/v3/auth/tokens")[0].body).unwrap()
}

#[tokio::test]
async fn every_kind_of_credential_is_presented_as_keystone_wants_it() {
    let project = json!({ "name": "admin", "domain": { "name": "Default" } });
    assert_eq!(
        check_identity(json!("v3password"), json!({ "username": "u", "password": "s", "user_domain_id": "d", "project_name": "admin", "project_domain_name": "Default" })).await,
        json!({ "auth": { "identity": { "methods": ["password"], "password": { "user": { "name": "u", "domain": { "id": "d" }, "password": "s" } } }, "scope": { "project": project } } })
    );
    assert_eq!(
        check_identity(Value::Null, json!({ "user_id": "u", "password": "s", "project_id": "p" })).await,
        json!({ "auth": { "identity": { "methods": ["password"], "password": { "user": { "id": "u", "password": "s" } } }, "scope": { "project": { "id": "p" } } } })
    );
    assert_eq!(
        check_identity(
            json!("v3applicationcredential"),
            json!({ "application_credential_id": "i", "application_credential_secret": "s" })
        )
        .await,
        json!({ "auth": { "identity": { "methods": ["application_credential"], "application_credential": { "id": "i", "secret": "s" } } } })
    );
    assert_eq!(
        check_identity(json!("v3applicationcredential"), json!({ "application_credential_name": "n", "application_credential_secret": "s", "username": "u", "user_domain_name": "Default" })).await,
        json!({ "auth": { "identity": { "methods": ["application_credential"], "application_credential": {
            "name": "n", "user": { "name": "u", "domain": { "name": "Default" } }, "secret": "s" } } } })
    );
    assert_eq!(
        check_identity(json!("token"), json!({ "token": "t", "project_id": "p" })).await,
        json!({ "auth": { "identity": { "methods": ["token"], "token": { "id": "t" } }, "scope": { "project": { "id": "p" } } } })
    );
}

#[tokio::test]
async fn wrong_credentials_are_denied_and_no_secret_is_told_even_if_keystone_quotes_it() {
    let cloud = Cloud::start().await;
    let quote = json!({ "error": { "code": 401, "message": "Invalid input for password: canary-keystone is not good" } });
    cloud.reply("POST", "/v3/auth/tokens", [Reply::json(401, &quote)]);
    let refused = ports(&cloud);
    let error = list(&refused).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Denied { reason: "could not authenticate with Keystone for cloud `fake`: Invalid input for password: (secret) is not good".to_owned() });
    // Whoever asks next, about whatever, does not have it tried once more.
    let again = refused.compute.hosts().await.unwrap_err();
    let PortErrorKind::Denied { reason } = &again.kind else { panic!("{again:?}") };
    assert!(reason.starts_with("could not authenticate with Keystone for cloud `fake`: Invalid input for password: (secret) is not good (said 0 s ago; not asked again before"), "{reason}");
    assert_eq!(cloud.asked("POST", "/v3/auth/tokens").len(), 1);
    for text in [told(&error), told(&again), format!("{error:?}"), format!("{error:#?}"), format!("{again:?}")] {
        assert!(!text.contains("canary"), "{text}");
    }
    let ports = ports(&cloud);
    cloud.reply("POST", "/v3/auth/tokens", [Reply::json(404, &quote)]);
    assert_eq!(
        list(&ports).await.unwrap_err().kind,
        PortErrorKind::Garbled { reason: "could not authenticate with Keystone for cloud `fake`: there is no Keystone v3 at `auth_url`".to_owned() }
    );
}

#[tokio::test]
async fn migrations_are_newest_first_and_those_of_deleted_instances_do_not_hold_a_node_up() {
    let record = |id: u32, instance: &str, kind: &str, status: &str| {
        json!({ "id": id, "uuid": format!("m{id}"), "instance_uuid": instance, "migration_type": kind, "status": status,
            "source_compute": "compute1", "dest_compute": null, "created_at": "2026-11-22T12:51:27.000000" })
    };
    let cloud = Cloud::start().await;
    let records = [
        record(1, "one", "live-migration", "error"),
        record(3, "gone", "live-migration", "running"),
        record(4, "one", "migration", "finished"),
        record(2, "one", "resize", "confirmed"),
    ];
    cloud.reply("GET", "/v2.1/os-migrations", [Reply::json(200, &json!({ "migrations": records }))]);
    let ports = ports(&cloud);
    let uuids = |migrations: Vec<Migration>| migrations.into_iter().map(|migration| migration.uuid).collect::<Vec<_>>();
    assert_eq!(uuids(ports.instances.migrations(&InstanceId("one".to_owned())).await.unwrap()), ["m4", "m3", "m2", "m1"]);
    let leaving = ports.instances.moving(&node("gpu-01")).await.unwrap();
    assert_eq!(leaving[0].source.as_deref(), Some("gpu-01"), "a host of ours is called as we call it");
    assert_eq!(uuids(leaving), ["m4"]);
}

#[tokio::test]
async fn the_reason_for_closing_is_never_cut_short() {
    let cloud = Cloud::start().await;
    let ports = ports(&cloud);
    let error = ports.compute.close(&node("gpu-01"), &"x".repeat(256)).await.unwrap_err();
    assert_eq!(error.kind, refused("the reason has 256 characters, and Nova takes 1 to 255"));
    assert!(cloud.asked("PUT", "/").is_empty());
}

#[tokio::test]
async fn every_request_carries_the_trace_that_it_belongs_to() {
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let tracer = SdkTracerProvider::builder().build().tracer("test");
    let subscriber = tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer));
    let _kept = tracing::subscriber::set_default(subscriber);
    let cloud = Cloud::start().await;
    list(&ports(&cloud)).instrument(tracing::info_span!("step")).await.unwrap();
    let parent = |method: &str, path: &str| cloud.asked(method, path)[0].headers["traceparent"].to_str().unwrap().to_owned();
    let (keystone, nova) = (parent("POST", "/v3/auth/tokens"), parent("GET", "/v2.1/servers/detail"));
    // version - trace - span - flags: one trace, whatever the spans within it.
    let trace = |parent: &str| parent.split('-').nth(1).map(str::to_owned);
    assert_eq!(trace(&keystone), trace(&nova));
    assert!(nova.starts_with("00-") && nova.ends_with("-01") && nova.len() == 55, "{nova}");
}
