//! The ports `ComputeServices` and `Instances` against a real Nova, through the real adapter.
//!
//! `.ci/beds up nova` makes such a bed. Runs where `TURNAROUND_BED_CLOUDS` (a clouds.yaml) and `TURNAROUND_BED_CLOUD` (an administrator's cloud in it, with a
//! member's beside it, called the same with `-demo`) lead to a test OpenStack with two or more compute hosts; skipped
//! elsewhere. Where `TURNAROUND_BED_PAGED_NOVA` is the address of a further Nova API of that cloud, with
//! `[api] max_limit = 2`, lists are read in pages too. It creates servers called `turnaround-contract-*`, closes hosts, and tidies up before and after itself.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

#[path = "support/bed.rs"]
mod bed;
#[path = "support/wire.rs"]
mod wire;

use bed::Bed;
use reqwest::Method;
use serde_json::json;
use support::{beds, eventually, node, told};
use turnaround_workflows::ports::{
    CanaryInstance, GroupRule, InstanceId, Migration, MigrationKind, MigrationState, Move, NewCanary, PortError, PortErrorKind, Ports, RequestId,
};
use wire::Wire;

macro_rules! bed {
    ($name:literal) => {
        match Bed::find($name).await {
            Some(bed) => bed,
            None => return,
        }
    };
}

fn node_of(host: &str) -> turnaround_config::NodeName {
    node(&format!("node-{host}"))
}

fn reason(error: &PortError) -> &str {
    match &error.kind {
        PortErrorKind::Refused { reason } | PortErrorKind::Denied { reason } | PortErrorKind::Garbled { reason } => reason,
        PortErrorKind::Unavailable | PortErrorKind::OutcomeUnknown | PortErrorKind::NotFound => {
            panic!("no reason: {}", told(error))
        }
    }
}

/// The newest migration of `id`, once it is in one of `states`.
async fn migration(ports: &Ports, id: &InstanceId, states: &[MigrationState]) -> Migration {
    eventually(&format!("a migration {states:?} of {id}"), || async {
        let migrations = ports.instances.migrations(id).await.unwrap();
        migrations.into_iter().next().filter(|migration| states.contains(&migration.state))
    })
    .await
}

#[tokio::test]
async fn a_host_is_closed_with_a_reason_twice_and_reopened() {
    let bed = bed!("a_host_is_closed_with_a_reason_twice_and_reopened");
    let (hosts, site) = (bed.hosts().await, bed.site().await);
    let (ports, node) = (site.ports(), node_of(&hosts[0]));
    let before = ports.compute.service(&node).await.unwrap();
    assert_eq!((before.enabled, before.disabled_reason, before.up), (true, None, true));

    ports.compute.close(&node, "turnaround-contract:one").await.unwrap();
    ports.compute.close(&node, "turnaround-contract:two").await.unwrap();
    let closed = ports.compute.service(&node).await.unwrap();
    assert_eq!((closed.enabled, closed.disabled_reason.as_deref(), closed.up), (false, Some("turnaround-contract:two"), true));

    ports.compute.reopen(&node).await.unwrap();
    ports.compute.reopen(&node).await.unwrap();
    let reopened = ports.compute.service(&node).await.unwrap();
    assert_eq!((reopened.enabled, reopened.disabled_reason, reopened.up), (true, None, true));
}

#[tokio::test]
async fn a_host_that_nova_does_not_know_is_not_found_and_never_looks_empty() {
    let bed = bed!("a_host_that_nova_does_not_know_is_not_found_and_never_looks_empty");
    let site = bed.site().await;
    let (ports, nowhere) = (site.ports(), node("nowhere"));
    assert_eq!(ports.compute.service(&nowhere).await.unwrap_err().kind, PortErrorKind::NotFound);
    assert_eq!(ports.compute.close(&nowhere, "x").await.unwrap_err().kind, PortErrorKind::NotFound);
    assert_eq!(ports.compute.hypervisor(&nowhere).await.unwrap_err().kind, PortErrorKind::NotFound);
    assert_eq!(ports.instances.on(&nowhere).await.unwrap_err().kind, PortErrorKind::NotFound);
    assert_eq!(ports.instances.moving(&nowhere).await.unwrap_err().kind, PortErrorKind::NotFound);
    let stranger = ports.instances.on(&node("stranger")).await.unwrap_err();
    assert_eq!(reason(&stranger), "stranger is not a node of the configuration");
}

#[tokio::test]
async fn instances_of_every_project_and_state_are_listed_and_the_hypervisor_agrees() {
    let bed = bed!("instances_of_every_project_and_state_are_listed_and_the_hypervisor_agrees");
    let (admin, member) = (bed.admin().await, bed.user(&bed.member_cloud()).await);
    let theirs = member.server(None).await;
    let host = admin.compute(Method::GET, &format!("/servers/{theirs}"), None).await.1["server"]["OS-EXT-SRV-ATTR:host"]
        .as_str()
        .unwrap()
        .to_owned();
    let (stopped, running) = (bed.server_on(&host).await, bed.server_on(&host).await);
    admin.action(&stopped, json!({ "os-stop": null })).await;
    admin.settled(&stopped, "stopped").await;
    admin.action(&running, json!({ "lock": null })).await;

    let site = bed.site().await;
    let (ports, node) = (site.ports(), node_of(&host));
    let listed = ports.instances.on(&node).await.unwrap();
    let state = |id: &str| {
        listed.iter().find(|instance| instance.id.0 == id).map(|instance| (instance.vm_state.as_str(), instance.locked))
    };
    assert_eq!(state(&theirs), Some(("active", false)));
    assert_eq!(state(&stopped), Some(("stopped", false)));
    assert_eq!(state(&running), Some(("active", true)));
    // Hosts are called as we call them.
    assert!(listed.iter().all(|instance| instance.host.as_deref() == Some(node.as_str())));

    let hypervisor = ports.compute.hypervisor(&node).await.unwrap();
    assert!(hypervisor.up && hypervisor.vcpus > 0 && hypervisor.memory_mb > 0, "{hypervisor:?}");
    let mut witnesses = hypervisor.running;
    witnesses.sort();
    let mut ids: Vec<String> = listed.into_iter().map(|instance| instance.id.0).collect();
    ids.sort();
    assert_eq!(witnesses, ids);
    bed.tidy().await;
}

#[tokio::test]
async fn what_is_free_on_each_host_is_told() {
    let bed = bed!("what_is_free_on_each_host_is_told");
    let (names, site) = (bed.hosts().await, bed.site().await);
    let hosts = site.ports().compute.hosts().await.unwrap();
    for name in names {
        let host = hosts.iter().find(|host| host.name == node_of(&name).as_str()).expect("under our own name");
        assert!(host.enabled && host.up && host.free.vcpus > 0 && host.free.memory_mb > 0, "{host:?}");
    }
}

#[tokio::test]
async fn what_placement_has_of_a_host_is_told() {
    let bed = bed!("what_placement_has_of_a_host_is_told");
    let (host, site) = (bed.hosts().await.swap_remove(0), bed.site().await);
    let ports = site.ports();
    let hypervisor = ports.compute.hypervisor(&node_of(&host)).await.unwrap();
    let inventory = ports.compute.inventory(&node_of(&host)).await.unwrap();
    let id = hypervisor.id.as_deref().unwrap_or_default();
    assert_eq!((id.len(), ports.compute.hypervisor(&node_of(&host)).await.unwrap().id.as_deref()), (36, Some(id)), "a UUID, the same each time");
    let nobody = InstanceId("6f1c3f5e-0000-4000-8000-00000000dead".to_owned());
    assert!(ports.instances.allocations(&nobody).await.unwrap().is_empty());
    assert_eq!((inventory.get("VCPU").copied(), inventory.get("MEMORY_MB").copied()), (Some(u64::from(hypervisor.vcpus)), Some(hypervisor.memory_mb)), "{inventory:?}");
    let error = ports.compute.inventory(&node_of("turnaround-nowhere")).await.unwrap_err();
    assert!(matches!(error.kind, PortErrorKind::NotFound | PortErrorKind::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn server_groups_of_every_project_are_told_with_their_rule_and_their_members() {
    let bed = bed!("server_groups_of_every_project_are_told_with_their_rule_and_their_members");
    let (hosts, site) = (bed.hosts().await, bed.site().await);
    let (admin, member) = (bed.admin().await, bed.user(&bed.member_cloud()).await);
    let ports = site.ports();
    let ours = async || {
        let groups = ports.instances.groups().await.unwrap();
        groups.into_iter().filter(|group| group.name.starts_with(bed::PREFIX)).collect::<Vec<_>>()
    };
    let forget = async || {
        let all = admin.compute(Method::GET, "/os-server-groups?all_projects=True", None).await.1;
        for group in all["server_groups"].as_array().unwrap() {
            if group["name"].as_str().is_some_and(|name| name.starts_with(bed::PREFIX)) {
                admin.compute(Method::DELETE, &format!("/os-server-groups/{}", group["id"].as_str().unwrap()), None).await;
            }
        }
    };
    forget().await;
    let make = async |name: &str, policy: &str, rules: serde_json::Value| {
        let name = format!("{}-{name}", bed::PREFIX);
        let mut group = json!({ "name": name, "policy": policy });
        if !rules.is_null() {
            group["rules"] = rules;
        }
        let (status, answer) = member.compute(Method::POST, "/os-server-groups", Some(json!({ "server_group": group }))).await;
        assert!(status.is_success(), "{status} {answer}");
        answer["server_group"]["id"].as_str().unwrap().to_owned()
    };
    let apart = make("apart", "anti-affinity", json!(null)).await;
    make("pairs", "anti-affinity", json!({ "max_server_per_host": 2 })).await;
    make("together", "affinity", json!(null)).await;
    make("wish", "soft-anti-affinity", json!(null)).await;
    let flavor = bed.flavor("server", 64).await;
    let first = member.server_of(&flavor, None, json!({ "group": apart })).await;
    let second = member.server_of(&flavor, None, json!({ "group": apart })).await;

    let mut told: Vec<_> = ours().await.into_iter().map(|group| (group.name.replace(bed::PREFIX, ""), group.rule, group.members.len())).collect();
    told.sort_by(|one, other| one.0.cmp(&other.0));
    let rule = |max_on_a_host| GroupRule::AntiAffinity { max_on_a_host };
    let expected = [("-apart", rule(1), 2), ("-pairs", rule(2), 0), ("-together", GroupRule::Affinity, 0)];
    assert_eq!(told, expected.map(|(name, rule, members)| (name.to_owned(), rule, members)));
    let members = &ours().await.into_iter().find(|group| group.rule == rule(1)).unwrap().members;
    assert!(members.contains(&InstanceId(first.clone())) && members.contains(&InstanceId(second.clone())), "{members:?}");

    // And Nova keeps them apart, as the proof of room believes: the only host that is left has the other one.
    let host_of = async |id: &str| ports.instances.get(&InstanceId(id.to_owned())).await.unwrap().unwrap().host.unwrap();
    let (here, there) = (host_of(&first).await, host_of(&second).await);
    assert_ne!(here, there);
    for host in hosts.iter().map(|host| node_of(host)).filter(|host| ![&here, &there].contains(&&host.as_str().to_owned())) {
        ports.compute.close(&host, "turnaround-contract: leaves two hosts").await.unwrap();
    }
    let id = InstanceId(first);
    let started = ports.instances.start_move(&id, Move::Live, None).await.unwrap();
    let why = eventually("the reason", || async { ports.instances.why_failed(&id, &started.request).await.unwrap() }).await;
    assert!(why.contains("No valid host was found"), "{why}");
    bed.tidy().await;
    forget().await;
}

#[tokio::test]
async fn hosts_with_what_a_flavour_asks_of_placement_are_told_with_what_is_free_of_it() {
    let bed = bed!("hosts_with_what_a_flavour_asks_of_placement_are_told_with_what_is_free_of_it");
    let (hosts, site, admin) = (bed.hosts().await, bed.site().await, bed.admin().await);
    let ports = site.ports();
    const CLASS: &str = "CUSTOM_TURNAROUND_CONTRACT";
    // A part of the first host that has four of them, as a GPU is of its host.
    let part = "6b1d7a4e-8f3c-4a58-9f0e-7d0c5f2b9a11";
    let taken_away = async || admin.placement(Method::DELETE, &format!("/resource_providers/{part}"), None).await.0;
    taken_away().await;
    let providers = admin.placement(Method::GET, &format!("/resource_providers?name={}", hosts[0]), None).await.1;
    let root = providers["resource_providers"][0]["uuid"].as_str().expect("Nova's provider is called as its host").to_owned();
    let must = async |method: Method, path: &str, body: Option<serde_json::Value>| {
        let (status, answer) = admin.placement(method, path, body).await;
        assert!(status.is_success(), "{path}: {status} {answer}");
        answer
    };
    must(Method::PUT, &format!("/resource_classes/{CLASS}"), None).await;
    must(Method::PUT, &format!("/traits/{CLASS}"), None).await;
    let provider = json!({ "name": "turnaround-contract", "uuid": part, "parent_provider_uuid": root });
    must(Method::POST, "/resource_providers", Some(provider)).await;
    let inventory = json!({ "resource_provider_generation": 0, "inventories": { CLASS: { "total": 4 } } });
    let generation = must(Method::PUT, &format!("/resource_providers/{part}/inventories"), Some(inventory)).await["resource_provider_generation"].clone();
    let traits = json!({ "resource_provider_generation": generation, "traits": [CLASS] });
    must(Method::PUT, &format!("/resource_providers/{part}/traits"), Some(traits)).await;

    let told = async |asks: &[(&str, &str)]| -> Vec<(String, u64)> {
        let asks = asks.iter().map(|(key, value)| (key.replace("CLASS", CLASS), (*value).to_owned())).collect();
        let fitting = ports.compute.fitting(&asks).await.unwrap();
        fitting.into_iter().map(|(host, free)| (host, free.get(CLASS).copied().unwrap_or(0))).collect()
    };
    let first = node_of(&hosts[0]).as_str().to_owned();
    assert_eq!(told(&[("resources:CLASS", "4")]).await, [(first.clone(), 4)]);
    assert_eq!(told(&[("resources:CLASS", "5")]).await, []);
    assert_eq!(told(&[("resources1:CLASS", "2"), ("resources2:CLASS", "2"), ("group_policy", "none")]).await, [(first.clone(), 4)]);
    assert_eq!(told(&[("resources1:CLASS", "2"), ("resources2:CLASS", "2"), ("group_policy", "isolate")]).await, []);
    assert_eq!(told(&[("resources_GPU:CLASS", "1"), ("trait_GPU:CLASS", "required")]).await, [(first.clone(), 4)]);
    assert_eq!(told(&[("resources_GPU:CLASS", "1"), ("trait_GPU:CLASS", "forbidden")]).await, []);

    // An instance of such a flavour: where Nova puts it, what is left there, and that Nova finds it no other host either.
    let flavor = bed.flavor("with-three", 64).await;
    let specs = json!({ "extra_specs": { (format!("resources:{CLASS}")): "3" } });
    admin.compute(Method::POST, &format!("/flavors/{flavor}/os-extra_specs"), Some(specs)).await;
    let id = InstanceId(admin.server_of(&flavor, None, json!({})).await);
    let instance = ports.instances.get(&id).await.unwrap().unwrap();
    let has = ports.instances.allocations(&id).await.unwrap();
    let of = |class: &str| has.get(class).copied();
    assert_eq!((of(CLASS), of("VCPU"), of("MEMORY_MB")), (Some(3), Some(instance.takes.vcpus), Some(instance.takes.memory_mb)), "{has:?}");
    assert!(instance.flavor.contains("with-three"), "{}", instance.flavor);
    assert_eq!((instance.host.as_deref(), instance.asks), (Some(first.as_str()), [(format!("resources:{CLASS}"), "3".to_owned())].into()));
    assert_eq!(told(&[("resources:CLASS", "1")]).await, [(first.clone(), 1)]);
    let started = ports.instances.start_move(&id, Move::Live, None).await.unwrap();
    let why = eventually("the reason", || async { ports.instances.why_failed(&id, &started.request).await.unwrap() }).await;
    assert!(why.contains("No valid host was found"), "{why}");
    bed.tidy().await;
    assert_eq!(taken_away().await, 204, "nothing takes of it any more");
}

#[tokio::test]
async fn a_canary_is_put_onto_a_disabled_host_by_force_and_started_there() {
    const TEST: &str = "a_canary_is_put_onto_a_disabled_host_by_force_and_started_there";
    let bed = bed!("a_canary_is_put_onto_a_disabled_host_by_force_and_started_there");
    let (host, site) = (bed.hosts().await.swap_remove(0), bed.site().await);
    let (ports, node) = (site.ports(), node_of(&host));
    // With a dot, as in the ids of workflows.
    let name = format!("{}-canary.{}", bed::PREFIX, std::process::id());
    let new = NewCanary { image: bed.image().await, flavor: bed.flavor("canary", 64).await, network: None };
    let seen = async |what: &str, is: &dyn Fn(&CanaryInstance) -> bool| {
        eventually(what, || async { ports.canaries.find(&name).await.unwrap().pop().filter(|one| is(one)) }).await
    };
    let settled = |one: &CanaryInstance| one.task_state.is_none() && one.vm_state == "active";
    ports.compute.close(&node, "turnaround-contract: a canary is tried").await.unwrap();
    assert_eq!(ports.canaries.find(&name).await.unwrap(), []);
    ports.canaries.create(&name, &new).await.unwrap();
    let mut longer = new.clone();
    longer.flavor = "turnaround-contract-no-such-flavour".to_owned();
    let error = ports.canaries.create(&name, &longer).await.unwrap_err();
    assert!(reason(&error).contains("could not be found"), "{}", told(&error));
    let built = seen("built elsewhere", &settled).await;
    assert_ne!(built.host.as_deref(), Some(node.as_str()), "a disabled host takes none");
    assert_eq!(ports.canaries.find(&name.replace('.', "-")).await.unwrap(), []);
    assert_eq!(ports.canaries.find(&name.replace("canary", "c.n.ry")).await.unwrap(), [], "whom it fits as a regular expression has another name");

    if bed.fail(TEST, &host, &json!({ "check": 1 })) {
        let request = ports.canaries.put_on(&built.id, &node).await.unwrap();
        let why = eventually("the reason", || async { ports.instances.why_failed(&built.id, &request).await.unwrap() }).await;
        assert!(why.contains("injected fault"), "{why}");
        let failed = migration(&ports, &built.id, &[MigrationState::Failed]).await;
        let left = seen("left where it was", &settled).await;
        assert_eq!((left.host, left.fault), (built.host.clone(), None), "{failed:?}");
    }
    let request = ports.canaries.put_on(&built.id, &node).await.unwrap();
    let here = |one: &CanaryInstance| settled(one) && one.host.as_deref() == Some(node.as_str());
    seen("on the disabled host", &here).await;
    migration(&ports, &built.id, &[MigrationState::Succeeded]).await;
    assert_eq!(ports.instances.why_failed(&built.id, &request).await.unwrap(), None);

    let error = ports.canaries.start(&built.id).await.unwrap_err();
    assert!(reason(&error).contains("Cannot 'start' instance") && reason(&error).contains("vm_state active"), "{}", told(&error));
    ports.canaries.stop(&built.id).await.unwrap();
    let off = |one: &CanaryInstance| one.task_state.is_none() && one.vm_state == "stopped" && one.host.as_deref() == Some(node.as_str());
    seen("stopped there", &off).await;
    let error = ports.canaries.stop(&built.id).await.unwrap_err();
    assert!(reason(&error).contains("Cannot 'stop' instance") && reason(&error).contains("vm_state stopped"), "{}", told(&error));
    let request = ports.canaries.start(&built.id).await.unwrap();
    seen("started there", &here).await;
    let path = format!("/servers/{}/os-instance-actions/{}", built.id, request.0);
    let (_, action) = bed.admin().await.compute(Method::GET, &path, None).await;
    assert_eq!(action["instanceAction"]["action"], "start", "{action}");
    assert_eq!(ports.instances.why_failed(&built.id, &request).await.unwrap(), None);
    assert!(!ports.canaries.console(&built.id).await.unwrap().is_empty());

    ports.canaries.remove(&built.id).await.unwrap();
    ports.canaries.remove(&built.id).await.unwrap();
    eventually("gone", || async { ports.canaries.find(&name).await.unwrap().is_empty().then_some(()) }).await;
    ports.canaries.remove(&built.id).await.unwrap();
    ports.compute.reopen(&node).await.unwrap();
    bed.tidy().await;
}

#[tokio::test]
async fn a_list_longer_than_novas_page_is_listed_wholly() {
    let bed = bed!("a_list_longer_than_novas_page_is_listed_wholly");
    let Ok(paged) = std::env::var("TURNAROUND_BED_PAGED_NOVA") else {
        beds::skip(
            "nova-paged",
            "a_list_longer_than_novas_page_is_listed_wholly",
            "export what `.ci/beds up nova` prints, or set TURNAROUND_BED_PAGED_NOVA to a Nova API of the same cloud with `[api] max_limit = 2`",
        );
        return;
    };
    let host = &bed.hosts().await[0];
    for _ in 0..5 {
        bed.server_on(host).await;
    }
    let id = InstanceId(bed.server_on(host).await);
    let admin = bed.admin().await;
    let site = bed.site_with(&std::env::var("TURNAROUND_BED_CLOUD").unwrap(), Some(&paged)).await;
    let ports = site.ports();
    let listed = ports.instances.on(&node_of(host)).await.unwrap();
    let mut ids: Vec<_> = listed.iter().map(|instance| &instance.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((listed.len(), ids.len()), (6, 6));

    // And migrations: five of one instance, in pages of two.
    for round in 1..=5 {
        admin.action(&id.0, json!({ "os-migrateLive": { "host": null, "block_migration": "auto" } })).await;
        eventually("the migration's end", || async {
            let all = ports.instances.migrations(&id).await.unwrap();
            (all.len() == round && all[0].state == MigrationState::Succeeded).then_some(())
        })
        .await;
    }
    let all = ports.instances.migrations(&id).await.unwrap();
    assert!(all.windows(2).all(|pair| pair[0].created >= pair[1].created && pair[0].source == pair[1].destination), "{all:#?}");
    bed.tidy().await;
}

#[tokio::test]
async fn a_running_instance_is_moved_live_and_its_migration_ends_after_it_arrived() {
    let bed = bed!("a_running_instance_is_moved_live_and_its_migration_ends_after_it_arrived");
    let (host, site) = (bed.hosts().await.swap_remove(0), bed.site().await);
    let (ports, from) = (site.ports(), node_of(&host));
    let id = InstanceId(bed.server_on(&host).await);

    let started = ports.instances.start_move(&id, Move::Live, None).await.unwrap();
    assert!(started.request.0.starts_with("req-"), "{started:?}");
    let ended = eventually("the end of its migration", || async {
        // What Nova tells of how far it is can be read at any time, also where its driver does not tell.
        ports.instances.progress(&id).await.unwrap();
        let migrations = ports.instances.migrations(&id).await.unwrap();
        migrations.into_iter().next().filter(|one| [MigrationState::Succeeded, MigrationState::Failed].contains(&one.state))
    })
    .await;
    assert_eq!((ended.kind, ended.state, ended.status.as_str()), (MigrationKind::Live, MigrationState::Succeeded, "completed"));
    assert_eq!(ended.source.as_deref(), Some(from.as_str()));
    let moved = ports.instances.get(&id).await.unwrap().unwrap();
    assert_eq!((moved.vm_state.as_str(), moved.task_state.as_deref(), &moved.host), ("active", None, &ended.destination));
    assert!(moved.host.is_some_and(|host| host.starts_with("node-") && host != from.as_str()));
    assert_eq!(ports.instances.why_failed(&id, &started.request).await.unwrap(), None);
    assert_eq!(ports.instances.moving(&from).await.unwrap(), []);
    bed.tidy().await;
}

/// By default Nova sends one live migration at a time away from a host: a second one waits in line.
#[tokio::test]
async fn a_live_migration_is_stopped_while_it_is_carried_out_or_waits_in_line() {
    let name = "a_live_migration_is_stopped_while_it_is_carried_out_or_waits_in_line";
    let bed = bed!("a_live_migration_is_stopped_while_it_is_carried_out_or_waits_in_line");
    let (host, site) = (bed.hosts().await.swap_remove(0), bed.site().await);
    let ports = site.ports();
    if !bed.fail(name, &host, &json!({ "live_seconds": 600 })) {
        return;
    }
    let ids = [InstanceId(bed.server_on(&host).await), InstanceId(bed.server_on(&host).await)];
    for (id, status) in ids.iter().zip(["running", "queued"]) {
        ports.instances.start_move(id, Move::Live, None).await.unwrap();
        eventually(&format!("a migration that is {status}"), || async {
            let newest = ports.instances.migrations(id).await.unwrap().into_iter().next();
            newest.filter(|one| one.status == status)
        })
        .await;
    }
    for id in ids.iter().rev() {
        let found = migration(&ports, id, &[MigrationState::InProgress]).await;
        ports.instances.stop_live(id, "00000000-0000-0000-0000-000000000000").await.unwrap();
        ports.instances.stop_live(id, &found.uuid).await.unwrap();
        let stopped = migration(&ports, id, &[MigrationState::Failed, MigrationState::Succeeded]).await;
        assert_eq!((&stopped.uuid, stopped.status.as_str()), (&found.uuid, "cancelled"));
        let back = eventually("the instance to be as it was", || async {
            ports.instances.get(id).await.unwrap().filter(|instance| instance.task_state.is_none())
        })
        .await;
        assert_eq!((back.vm_state.as_str(), back.host.as_deref()), ("active", Some(node_of(&host).as_str())));
        ports.instances.stop_live(id, &found.uuid).await.unwrap();
    }
    assert_eq!(ports.instances.moving(&node_of(&host)).await.unwrap(), []);
    bed.fail(name, &host, &json!({}));
    bed.tidy().await;
}

#[tokio::test]
async fn a_stopped_instance_is_moved_cold_and_confirmed_twice() {
    let bed = bed!("a_stopped_instance_is_moved_cold_and_confirmed_twice");
    let (host, site, admin) = (bed.hosts().await.swap_remove(0), bed.site().await, bed.admin().await);
    let (ports, from) = (site.ports(), node_of(&host));
    let id = InstanceId(bed.server_on(&host).await);
    admin.action(&id.0, json!({ "os-stop": null })).await;
    admin.settled(&id.0, "stopped").await;

    let live = ports.instances.start_move(&id, Move::Live, None).await.unwrap_err();
    assert_eq!(reason(&live), format!("Cannot 'os-migrateLive' instance {id} while it is in vm_state stopped"));
    let unasked = ports.instances.confirm(&id).await.unwrap_err();
    assert_eq!(reason(&unasked), "it has never been migrated cold");

    ports.instances.start_move(&id, Move::Cold, None).await.unwrap();
    let leaving = eventually("the migration among those that leave", || async {
        ports.instances.moving(&from).await.unwrap().into_iter().next()
    })
    .await;
    assert_eq!((&leaving.instance, leaving.kind), (&id, MigrationKind::Cold));
    let waiting = migration(&ports, &id, &[MigrationState::AwaitsConfirmation, MigrationState::Failed]).await;
    assert_eq!((waiting.state, waiting.status.as_str()), (MigrationState::AwaitsConfirmation, "finished"));
    admin.settled(&id.0, "resized").await;
    assert_eq!(ports.instances.moving(&from).await.unwrap().len(), 1);

    ports.instances.confirm(&id).await.unwrap();
    ports.instances.confirm(&id).await.unwrap();
    let ended = migration(&ports, &id, &[MigrationState::Succeeded, MigrationState::Failed]).await;
    assert_eq!(ended.status, "confirmed");
    admin.settled(&id.0, "stopped").await;
    ports.instances.confirm(&id).await.unwrap();
    assert_eq!(ports.instances.moving(&from).await.unwrap(), []);
    assert_ne!(ports.instances.get(&id).await.unwrap().unwrap().host.as_deref(), Some(from.as_str()));
    bed.tidy().await;
}

#[tokio::test]
async fn a_tenants_own_resize_is_never_confirmed() {
    let bed = bed!("a_tenants_own_resize_is_never_confirmed");
    let (host, site, admin) = (bed.hosts().await.swap_remove(0), bed.site().await, bed.admin().await);
    let ports = site.ports();
    let id = InstanceId(bed.server_on(&host).await);
    let larger = bed.flavor("server", 128).await;
    admin.action(&id.0, json!({ "resize": { "flavorRef": larger } })).await;
    admin.settled(&id.0, "resized").await;

    let refused = ports.instances.confirm(&id).await.unwrap_err();
    assert_eq!(reason(&refused), "its last move is a change of flavour (finished), which is the tenant's to confirm or revert");
    let moved = ports.instances.start_move(&id, Move::Cold, None).await.unwrap_err();
    assert_eq!(reason(&moved), format!("Cannot 'migrate' instance {id} while it is in vm_state resized"));
    admin.action(&id.0, json!({ "revertResize": null })).await;
    admin.settled(&id.0, "active").await;
    bed.tidy().await;
}

#[tokio::test]
async fn an_instance_is_moved_to_the_host_that_is_named_or_nowhere() {
    let bed = bed!("an_instance_is_moved_to_the_host_that_is_named_or_nowhere");
    let (hosts, site, admin) = (bed.hosts().await, bed.site().await, bed.admin().await);
    let ports = site.ports();
    let [home, closed, other] = [0, 1, 2].map(|host| node_of(&hosts[host]));
    let id = InstanceId(bed.server_on(&hosts[0]).await);
    let to = async |how: Move, host: &str| ports.instances.start_move(&id, how, Some(host)).await;

    for how in [Move::Live, Move::Cold] {
        assert_eq!(reason(&to(how, "nosuch").await.unwrap_err()), "Compute host nosuch could not be found.");
    }
    ports.compute.close(&closed, "turnaround-contract: not for instances").await.unwrap();
    let started = to(Move::Live, closed.as_str()).await.unwrap();
    let why = eventually("the reason", || async { ports.instances.why_failed(&id, &started.request).await.unwrap() }).await;
    println!("to a closed host: {why}");
    assert!(why.contains("No valid host was found"), "{why}");
    admin.settled(&id.0, "active").await;
    assert_eq!(ports.instances.get(&id).await.unwrap().unwrap().host.as_deref(), Some(home.as_str()));

    to(Move::Live, other.as_str()).await.unwrap();
    let over = [MigrationState::Succeeded, MigrationState::Failed];
    eventually("its arrival", || async { ports.instances.migrations(&id).await.unwrap().into_iter().next().filter(|one| one.destination.is_some() && over.contains(&one.state)) }).await;
    admin.settled(&id.0, "active").await;
    assert_eq!(ports.instances.get(&id).await.unwrap().unwrap().host.as_deref(), Some(other.as_str()));

    to(Move::Cold, home.as_str()).await.unwrap();
    admin.settled(&id.0, "resized").await;
    ports.instances.confirm(&id).await.unwrap();
    admin.settled(&id.0, "active").await;
    assert_eq!(ports.instances.get(&id).await.unwrap().unwrap().host.as_deref(), Some(home.as_str()));
    bed.tidy().await;
}

#[tokio::test]
async fn a_move_that_nova_accepts_and_drops_says_why() {
    let bed = bed!("a_move_that_nova_accepts_and_drops_says_why");
    let (hosts, site) = (bed.hosts().await, bed.site().await);
    let ports = site.ports();
    let id = InstanceId(bed.server_on(&hosts[0]).await);
    for other in &hosts[1..] {
        ports.compute.close(&node_of(other), "turnaround-contract: nowhere to go").await.unwrap();
    }
    let started = ports.instances.start_move(&id, Move::Live, None).await.unwrap();
    let why = eventually("the reason", || async { ports.instances.why_failed(&id, &started.request).await.unwrap() }).await;
    assert_eq!(why, "No valid host was found. There are not enough hosts available.");
    let instance = ports.instances.get(&id).await.unwrap().unwrap();
    // Nothing else tells: it looks as if nothing had ever been asked.
    assert_eq!(
        (instance.vm_state.as_str(), instance.host.as_deref(), instance.fault),
        ("active", Some(node_of(&hosts[0]).as_str()), None)
    );
    let failed = migration(&ports, &id, &[MigrationState::Failed]).await;
    assert_eq!((failed.status.as_str(), failed.destination), ("error", None));
    assert_eq!(
        ports.instances.why_failed(&id, &RequestId("req-00000000-0000-0000-0000-000000000000".to_owned())).await.unwrap(),
        None
    );
    bed.tidy().await;
}

#[tokio::test]
async fn an_answer_that_is_lost_is_an_unknown_outcome_and_the_move_is_found() {
    let bed = bed!("an_answer_that_is_lost_is_an_unknown_outcome_and_the_move_is_found");
    let (host, nova) = (bed.hosts().await.swap_remove(0), bed.nova_url().await);
    let url = reqwest::Url::parse(&nova).unwrap();
    let wire = Wire::to(&format!("{}:{}", url.host_str().unwrap(), url.port_or_known_default().unwrap())).await;
    let site = bed
        .site_with(&std::env::var("TURNAROUND_BED_CLOUD").unwrap(), Some(&format!("http://{}{}", wire.address, url.path())))
        .await;
    let ports = site.ports();
    let id = InstanceId(bed.server_on(&host).await);
    assert_eq!(ports.instances.migrations(&id).await.unwrap(), []);

    wire.swallow_answers_to("POST", 1);
    let lost = ports.instances.start_move(&id, Move::Live, None).await.unwrap_err();
    assert_eq!(lost.kind, PortErrorKind::OutcomeUnknown, "{}", told(&lost));
    let found = migration(&ports, &id, &[MigrationState::Succeeded]).await;
    assert_eq!(found.source.as_deref(), Some(node_of(&host).as_str()));
    let posts = wire.requests().iter().filter(|head| head.starts_with("POST")).count();
    assert_eq!(posts, 1, "the move was asked for once");

    // A read whose answer is lost is simply asked again.
    wire.swallow_answers_to("GET", 2);
    assert!(ports.instances.get(&id).await.unwrap().is_some());
    bed.tidy().await;
}

#[tokio::test]
async fn a_token_that_was_revoked_is_replaced_without_anybody_noticing() {
    let bed = bed!("a_token_that_was_revoked_is_replaced_without_anybody_noticing");
    let (host, nova) = (bed.hosts().await.swap_remove(0), bed.nova_url().await);
    let url = reqwest::Url::parse(&nova).unwrap();
    let wire = Wire::to(&format!("{}:{}", url.host_str().unwrap(), url.port_or_known_default().unwrap())).await;
    let site = bed
        .site_with(&std::env::var("TURNAROUND_BED_CLOUD").unwrap(), Some(&format!("http://{}{}", wire.address, url.path())))
        .await;
    let ports = site.ports();
    // Nova remembers for minutes that a token was good, so this one has to end before Nova first sees it used: every answer
    // to the question for Nova's version, which needs no token and has it all the same, is lost.
    wire.swallow_answers_to("GET", 4);
    assert_eq!(ports.compute.service(&node_of(&host)).await.unwrap_err().kind, PortErrorKind::Unavailable);
    let first = wire.last_header("x-auth-token").unwrap();
    bed.revoke(&first).await;
    ports.compute.service(&node_of(&host)).await.unwrap();
    let used: Vec<bool> =
        wire.requests().iter().filter(|head| head.contains("os-services")).map(|head| head.contains(&first)).collect();
    assert_eq!(used, [true, false], "refused with the old token, sent once more with a new one");
}

#[tokio::test]
async fn without_an_administrators_rights_everything_is_denied_and_says_so() {
    let bed = bed!("without_an_administrators_rights_everything_is_denied_and_says_so");
    let (host, site) = (bed.hosts().await.swap_remove(0), bed.site_with(&bed.member_cloud(), None).await);
    let ports = site.ports();
    let denied = ports.instances.on(&node_of(&host)).await.unwrap_err();
    assert_eq!(
        denied.kind,
        PortErrorKind::Denied { reason: "Policy doesn't allow os_compute_api:os-services:list to be performed.".to_owned() }
    );
    let text = told(&denied);
    assert!(
        text.starts_with(&format!("could not list the instances on node-{host}: not permitted: "))
            && text.contains("HTTP 403 (request req-"),
        "{text}"
    );
}

#[tokio::test]
async fn an_instance_that_is_gone_is_none_and_can_not_be_moved() {
    let bed = bed!("an_instance_that_is_gone_is_none_and_can_not_be_moved");
    let (host, site) = (bed.hosts().await.swap_remove(0), bed.site().await);
    let ports = site.ports();
    let id = InstanceId(bed.server_on(&host).await);
    bed.tidy().await;
    assert_eq!(ports.instances.get(&id).await.unwrap(), None);
    assert_eq!(ports.instances.start_move(&id, Move::Live, None).await.unwrap_err().kind, PortErrorKind::NotFound);
    assert_eq!(ports.instances.on(&node_of(&host)).await.unwrap(), []);
}
