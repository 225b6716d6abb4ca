//! Canary instances: `servers` of our own project.

use async_trait::async_trait;
use http::Method;
use serde_json::{Value, json};
use turnaround_config::NodeName;
use turnaround_workflows::ports::{Canaries, CanaryInstance, InstanceId, NewCanary, PortError, PortErrorKind, RequestId};

use super::instances::{cell_is_down, endless};
use super::{Answer, Call, Microversion, Nova, PAGE, PAGES_MAX, wire};

/// The newest microversion in which a live migration may be forced.
const FORCE: Microversion = Microversion { major: 2, minor: 67 };

/// Lines of a console that are read.
// A boot writes some hundred; what is waited for comes last.
const CONSOLE_LINES: u32 = 50;

#[async_trait]
impl Canaries for Nova {
    async fn find(&self, name: &str) -> Result<Vec<CanaryInstance>, PortError> {
        let operation = format!("look for instances called {name}");
        let (mut found, mut marker) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            // A regular expression, in which the dots of a name stand for any character: whose is whose is seen below.
            let mut call =
                Call::get(&operation, &["servers", "detail"]).query("name", format!("^{name}$")).query("limit", PAGE.to_string());
            if let Some(marker) = marker.take() {
                call = call.query("marker", marker);
            }
            let page: wire::Servers = self.document(call, "a page of servers").await?;
            let last = page.servers.last().map(|server| server.id.clone());
            for server in page.servers {
                let instance = server.meaning(|host| self.our_name(host)).ok_or_else(|| cell_is_down(&operation))?;
                if instance.name == name {
                    let fault = instance.fault;
                    found.push(CanaryInstance { id: instance.id, host: instance.host, vm_state: instance.vm_state, task_state: instance.task_state, fault });
                }
            }
            match last {
                Some(last) if wire::goes_on(&page.servers_links) => marker = Some(last),
                _ => return Ok(found),
            }
        }
        Err(endless(operation))
    }

    async fn create(&self, name: &str, canary: &NewCanary) -> Result<(), PortError> {
        let networks = canary.network.as_ref().map_or_else(|| json!("none"), |network| json!([{ "uuid": network }]));
        let server = json!({ "name": name, "imageRef": canary.image, "flavorRef": canary.flavor, "networks": networks });
        self.send(Call::change(format!("create instance {name}"), Method::POST, &["servers"], json!({ "server": server }))).await.map(drop)
    }

    async fn put_on(&self, id: &InstanceId, node: &NodeName) -> Result<RequestId, PortError> {
        let operation = format!("live-migrate instance {id} onto {node} by force");
        let host = self.host(node, &operation)?;
        let body = json!({ "os-migrateLive": { "host": host, "block_migration": "auto", "force": true } });
        let path = ["servers", &id.0, "action"];
        let answer = self.send(Call::change(&operation, Method::POST, &path, body).at_most(FORCE)).await?;
        request_id(&answer, operation)
    }

    async fn stop(&self, id: &InstanceId) -> Result<(), PortError> {
        let path = ["servers", &id.0, "action"];
        self.send(Call::change(format!("stop instance {id}"), Method::POST, &path, json!({ "os-stop": null }))).await.map(drop)
    }

    async fn start(&self, id: &InstanceId) -> Result<RequestId, PortError> {
        let operation = format!("start instance {id}");
        let path = ["servers", &id.0, "action"];
        let answer = self.send(Call::change(&operation, Method::POST, &path, json!({ "os-start": null }))).await?;
        request_id(&answer, operation)
    }

    async fn console(&self, id: &InstanceId) -> Result<String, PortError> {
        let operation = format!("read the console of instance {id}");
        let body = json!({ "os-getConsoleOutput": { "length": CONSOLE_LINES } });
        let path = ["servers", &id.0, "action"];
        let answer: Value = self.document(Call::change(&operation, Method::POST, &path, body), "a console").await?;
        answer["output"].as_str().map(str::to_owned).ok_or_else(|| {
            PortError::new(operation, PortErrorKind::Garbled { reason: "the answer has no `output`".to_owned() })
        })
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), PortError> {
        match self.send(Call::remove(format!("delete instance {id}"), &["servers", &id.0])).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind == PortErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Under which Nova remembers what it has accepted.
fn request_id(answer: &Answer, operation: String) -> Result<RequestId, PortError> {
    match answer.header("x-openstack-request-id") {
        Some(request) => Ok(RequestId(request.to_owned())),
        None => Err(PortError::new(operation, PortErrorKind::OutcomeUnknown).with_source("it was accepted without a request id")),
    }
}
