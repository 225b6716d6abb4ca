//! Instances and their moves: `servers`, `os-migrations`, `os-instance-actions`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use async_trait::async_trait;
use http::Method;
use serde_json::json;
use turnaround_config::NodeName;
use turnaround_workflows::ports::{
    Instance, InstanceId, Instances, Migration, MigrationKind, MigrationState, Move, MoveProgress, MoveStarted, PortError,
    PortErrorKind, RequestId, ServerGroup,
};

use super::{Call, Nova, PAGE, PAGES_MAX, wire};

#[async_trait]
impl Instances for Nova {
    async fn on(&self, node: &NodeName) -> Result<Vec<Instance>, PortError> {
        let operation = format!("list the instances on {node}");
        // For a host that it does not know, Nova's list is empty.
        self.known_service(node, &operation).await?;
        let host = self.host(node, &operation)?;
        let (mut instances, mut marker) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            // Without `all_tenants`, only those of the token's own project are listed.
            let mut call = Call::get(&operation, &["servers", "detail"])
                .query("all_tenants", "1")
                .query("host", host)
                .query("limit", PAGE.to_string());
            if let Some(marker) = marker.take() {
                call = call.query("marker", marker);
            }
            let page: wire::Servers = self.document(call, "a page of servers").await?;
            let last = page.servers.last().map(|server| server.id.clone());
            for server in page.servers {
                let instance = server.meaning(|host| self.our_name(host)).ok_or_else(|| cell_is_down(&operation))?;
                // Whoever may not filter by host gets them all, and no error.
                if instance.host.as_deref() != Some(node.as_str()) {
                    let at = instance.host.unwrap_or_else(|| "a host that it does not show".to_owned());
                    let reason = format!("it lists instance {} of {at} as one of them: grant this account `os_compute_api:servers:allow_all_filters` and `os_compute_api:os-extended-server-attributes`", instance.id);
                    return Err(PortError::new(operation, PortErrorKind::Refused { reason }));
                }
                instances.push(instance);
            }
            match last {
                Some(last) if wire::goes_on(&page.servers_links) => marker = Some(last),
                _ => {
                    // Nova leaves out what a cell has that fails right now, and does not say so.
                    self.known_service(node, &operation).await?;
                    return Ok(instances);
                }
            }
        }
        Err(endless(operation))
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, PortError> {
        let operation = format!("look at instance {id}");
        match self.document::<wire::ServerDocument>(Call::get(&operation, &["servers", &id.0]), "a server").await {
            Ok(document) => document.server.meaning(|host| self.our_name(host)).map(Some).ok_or_else(|| cell_is_down(&operation)),
            Err(error) if error.kind == PortErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn start_move(&self, id: &InstanceId, how: Move, to: Option<&str>) -> Result<MoveStarted, PortError> {
        let host = to.map(|name| self.their_name(name));
        // Nova's scheduler has its say about a host that is named, too: there is no `force`.
        let (operation, body) = match how {
            Move::Live => ("live-migrate", json!({ "os-migrateLive": { "host": host, "block_migration": "auto" } })),
            Move::Cold => ("cold-migrate", json!({ "migrate": host.map(|host| json!({ "host": host })) })),
        };
        let operation = match host {
            Some(host) => format!("{operation} instance {id} to {host}"),
            None => format!("{operation} instance {id}"),
        };
        let answer = self.send(Call::change(&operation, Method::POST, &["servers", &id.0, "action"], body)).await?;
        match answer.header("x-openstack-request-id") {
            Some(request) => Ok(MoveStarted { request: RequestId(request.to_owned()) }),
            None => {
                Err(PortError::new(operation, PortErrorKind::OutcomeUnknown).with_source("it was accepted without a request id"))
            }
        }
    }

    async fn stop_live(&self, id: &InstanceId, migration: &str) -> Result<(), PortError> {
        let operation = format!("stop the live migration of instance {id}");
        // Only those that are being carried out are listed here, and only here a migration goes by its number.
        let list = ["servers", &id.0, "migrations"];
        let number = match self.document::<wire::LiveMigrations>(Call::get(&operation, &list), "a list of live migrations").await {
            Ok(migrations) => migrations.number_of(migration),
            Err(error) if error.kind == PortErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let Some(number) = number else { return Ok(()) };
        match self.send(Call::remove(&operation, &["servers", &id.0, "migrations", &number.to_string()])).await {
            Ok(_) => Ok(()),
            // It has ended in between.
            Err(error) if error.kind == PortErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Looks first: a resize that a tenant asked for looks the same to Nova, and is the tenant's to confirm or revert.
    async fn confirm(&self, id: &InstanceId) -> Result<(), PortError> {
        let operation = format!("confirm the migration of instance {id}");
        if self.is_confirmed(id, &operation).await? {
            return Ok(());
        }
        let path = ["servers", &id.0, "action"];
        let call = Call::change(&operation, Method::POST, &path, json!({ "confirmResize": null }));
        match self.send(call).await {
            Ok(_) => Ok(()),
            // "Instance has not been resized.", or a wrong state: perhaps because somebody confirmed it in between.
            Err(error) if matches!(error.kind, PortErrorKind::Refused { .. }) => match self.is_confirmed(id, &operation).await {
                Ok(true) => Ok(()),
                Ok(false) | Err(_) => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    async fn migrations(&self, id: &InstanceId) -> Result<Vec<Migration>, PortError> {
        self.migration_records(format!("list the migrations of instance {id}"), "instance_uuid", &id.0).await
    }

    async fn moving(&self, node: &NodeName) -> Result<Vec<Migration>, PortError> {
        let operation = format!("list the migrations from and to {node}");
        self.known_service(node, &operation).await?;
        let host = self.host(node, &operation)?;
        let all = self.migration_records(operation.clone(), "host", host).await?;
        self.known_service(node, &operation).await?;
        let mut moving = Vec::new();
        // Nova keeps the records of deleted instances, some of them unfinished for ever.
        let mut exists: BTreeMap<String, bool> = BTreeMap::new();
        for migration in all {
            if matches!(migration.state, MigrationState::Succeeded | MigrationState::Failed) {
                continue;
            }
            let id = &migration.instance;
            let there = match exists.get(&id.0) {
                Some(there) => *there,
                None => self.get(id).await?.is_some(),
            };
            exists.insert(id.0.clone(), there);
            if there {
                moving.push(migration);
            }
        }
        Ok(moving)
    }

    async fn progress(&self, id: &InstanceId) -> Result<Option<MoveProgress>, PortError> {
        let operation = format!("ask how far the live migration of instance {id} is");
        match self.document::<wire::LiveMigrations>(Call::get(&operation, &["servers", &id.0, "migrations"]), "a list of live migrations").await {
            Ok(migrations) => Ok(migrations.meaning()),
            Err(error) if error.kind == PortErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn device_ports(&self, node: &NodeName) -> Result<BTreeMap<InstanceId, Vec<String>>, PortError> {
        let operation = format!("list the ports with a device on {node}");
        let host = self.host(node, &operation)?;
        self.device_ports_on(&operation, host).await
    }

    async fn allocations(&self, id: &InstanceId) -> Result<BTreeMap<String, u64>, PortError> {
        self.allocations_of(&format!("ask Placement what instance {id} has"), &id.0).await
    }

    async fn groups(&self) -> Result<Vec<ServerGroup>, PortError> {
        let operation = "list the server groups";
        let (mut groups, mut offset) = (Vec::new(), 0);
        for _ in 0..PAGES_MAX {
            // Without `all_projects`, only those of the token's own project are listed. There are no links: the list ends with an empty page, as
            // Nova's own largest page may be smaller than ours.
            let call = Call::get(operation, &["os-server-groups"])
                .query("all_projects", "True")
                .query("limit", PAGE.to_string())
                .query("offset", offset.to_string());
            let page: wire::ServerGroups = self.document(call, "a page of server groups").await?;
            if page.server_groups.is_empty() {
                return Ok(groups);
            }
            offset += page.server_groups.len();
            groups.extend(page.server_groups.into_iter().filter_map(wire::ServerGroupRecord::meaning));
        }
        Err(endless(operation.to_owned()))
    }

    async fn why_failed(&self, id: &InstanceId, request: &RequestId) -> Result<Option<String>, PortError> {
        let operation = format!("ask why request {} of instance {id} failed", request.0);
        let path = ["servers", &id.0, "os-instance-actions", &request.0];
        match self.document::<wire::ActionDocument>(Call::get(&operation, &path), "an instance action").await {
            Ok(document) => Ok(document.action.cause()),
            Err(error) if error.kind == PortErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Nova {
    /// Migrations whose `key` is `value`, newest first.
    async fn migration_records(&self, operation: String, key: &str, value: &str) -> Result<Vec<Migration>, PortError> {
        let (mut records, mut marker) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let mut call = Call::get(&operation, &["os-migrations"]).query(key, value).query("limit", PAGE.to_string());
            if let Some(marker) = marker.take() {
                call = call.query("marker", marker);
            }
            let mut page: wire::Migrations = self.document(call, "a page of migrations").await?;
            let last = page.migrations.last().map(wire::MigrationRecord::marker);
            records.append(&mut page.migrations);
            match last {
                Some(last) if wire::goes_on(&page.migrations_links) => marker = Some(last),
                _ => return self.newest_first(operation, records),
            }
        }
        Err(endless(operation))
    }

    fn newest_first(&self, operation: String, mut records: Vec<wire::MigrationRecord>) -> Result<Vec<Migration>, PortError> {
        records.sort_by_key(|record| Reverse(record.number()));
        let meanings = records.into_iter().map(|record| record.meaning(|host| self.our_name(host)));
        meanings.collect::<Option<_>>().ok_or_else(|| {
            let reason = "a migration is neither live, cold, a resize nor an evacuation".to_owned();
            PortError::new(operation, PortErrorKind::Garbled { reason })
        })
    }

    /// Is the newest migration of `id` confirmed, or being confirmed? False where it waits to be.
    ///
    /// # Errors
    /// `Refused` where there is nothing that we may confirm.
    async fn is_confirmed(&self, id: &InstanceId, operation: &str) -> Result<bool, PortError> {
        let refuse = |reason: String| Err(PortError::new(operation, PortErrorKind::Refused { reason }));
        let migrations = self.migrations(id).await?;
        match migrations.iter().find(|migration| matches!(migration.kind, MigrationKind::Cold | MigrationKind::Resize)) {
            None => refuse("it has never been migrated cold".to_owned()),
            Some(Migration { kind: MigrationKind::Resize, status, .. }) => {
                refuse(format!("its last move is a change of flavour ({status}), which is the tenant's to confirm or revert"))
            }
            Some(Migration { state: MigrationState::AwaitsConfirmation, .. }) => Ok(false),
            Some(Migration { status, .. }) if matches!(status.as_str(), "confirming" | "confirmed") => Ok(true),
            Some(Migration { status, .. }) => refuse(format!("its migration is {status}, and does not await confirmation")),
        }
    }
}

pub(super) fn cell_is_down(operation: &str) -> PortError {
    PortError::new(operation, PortErrorKind::Unavailable).with_source("the Nova cell of this instance does not answer")
}

pub(super) fn endless(operation: String) -> PortError {
    PortError::new(operation, PortErrorKind::Garbled { reason: format!("the list does not end after {PAGES_MAX} pages") })
}
