//! A real OpenStack for whole workflows: what tenants and operators do to it, and what it remembers of what was done to its
//! servers. Its address is taken from the environment.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use turnaround_tests::beds;
use turnaround_tests::harness::until_within;
use turnaround_workflows::ports::CANARY_NAME;

/// What the tests create is called so, and nothing else is ever touched.
pub(crate) const PREFIX: &str = "turnaround-renewal";

/// Begins the reasons that Turnaround leaves.
const OURS: &str = "turnaround:";

/// A test Nova on a busy machine takes up to half a minute for one move, and a drain is several.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(250);

/// One real cloud, ours alone for as long as this lives.
pub(crate) struct Bed {
    pub(crate) clouds_file: PathBuf,
    pub(crate) cloud: String,
    clouds: Value,
    /// Folder with a folder of each compute host, in which it looks for `faults.json`.
    faults: Option<PathBuf>,
    http: reqwest::Client,
    /// The administrator's token, and the catalogue that came with it.
    token: OnceCell<(String, Value)>,
    /// Tests close hosts, and so can't run beside each other, nor beside another test program.
    _alone: File,
}

/// One server as a test looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) vm_state: String,
    pub(crate) task_state: Option<String>,
}

/// One record of a migration, in Nova's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) source: String,
}

impl Bed {
    /// The bed, or None with a plain line that says how to get one. What an earlier run left behind is removed.
    pub(crate) async fn find(test: &str) -> Option<Bed> {
        let (Ok(file), Ok(cloud)) = (std::env::var("TURNAROUND_BED_CLOUDS"), std::env::var("TURNAROUND_BED_CLOUD")) else {
            beds::skip(
                "nova",
                test,
                "export what `.ci/beds up nova` prints, or set TURNAROUND_BED_CLOUDS to a clouds.yaml and TURNAROUND_BED_CLOUD to an administrator's cloud in it, of a test OpenStack with three or more compute hosts",
            );
            return None;
        };
        let clouds_file = PathBuf::from(file);
        let alone = File::open(&clouds_file).unwrap();
        let alone = tokio::task::spawn_blocking(move || alone.lock().map(|()| alone)).await.unwrap().unwrap();
        let clouds: Value = serde_saphyr::from_str(&std::fs::read_to_string(&clouds_file).unwrap()).unwrap();
        let faults = std::env::var_os("TURNAROUND_BED_FAULTS").map(PathBuf::from);
        turnaround_worker::adapters::install_tls();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let bed = Bed { clouds_file, cloud, clouds, faults, http, token: OnceCell::new(), _alone: alone };
        bed.tidy().await;
        Some(bed)
    }

    /// Whether faults can be injected; a plain line that says how, where they can't.
    pub(crate) fn can_fail(&self, test: &str) -> bool {
        if self.faults.is_none() {
            beds::skip(
                "nova-faults",
                test,
                "export what `.ci/beds up nova` prints, or set TURNAROUND_BED_FAULTS to the folder in which each compute host of the test OpenStack, in a folder of its own name, looks for faults.json",
            );
        }
        self.faults.is_some()
    }

    /// From now on, and until the next call, this goes wrong on `host`.
    pub(crate) fn fail(&self, host: &str, faults: &Value) {
        let Some(folder) = &self.faults else { return };
        let file = folder.join(host).join("faults.json");
        // Moved into place: the host may be reading it.
        std::fs::write(file.with_extension("new"), faults.to_string()).unwrap();
        std::fs::rename(file.with_extension("new"), file).unwrap();
    }

    /// All hosts of this cloud, which are up, open and ours alone.
    pub(crate) async fn hosts(&self) -> Vec<String> {
        let services = self.get("/os-services?binary=nova-compute").await;
        let up = services["services"].as_array().unwrap().iter().filter(|service| service["state"] == "up");
        let mut hosts: Vec<String> = up.map(|service| service["host"].as_str().unwrap().to_owned()).collect();
        hosts.sort();
        assert!(hosts.len() >= 3, "these tests need three hosts: {hosts:?}");
        for host in &hosts {
            assert_eq!(self.service(host).await, (true, None), "{host}");
        }
        hosts
    }

    /// Is `host` open, and if not, why?
    pub(crate) async fn service(&self, host: &str) -> (bool, Option<String>) {
        let service = self.raw_service(host).await;
        (service["status"] == "enabled", service["disabled_reason"].as_str().map(str::to_owned))
    }

    async fn raw_service(&self, host: &str) -> Value {
        self.get(&format!("/os-services?binary=nova-compute&host={host}")).await["services"][0].take()
    }

    /// What an operator does by hand: closes `host`.
    pub(crate) async fn disable(&self, host: &str, reason: &str) {
        let id = self.raw_service(host).await["id"].as_str().unwrap().to_owned();
        self.put(&format!("/os-services/{id}"), json!({ "status": "disabled", "disabled_reason": reason })).await;
    }

    /// And opens it again.
    pub(crate) async fn enable(&self, host: &str) {
        let id = self.raw_service(host).await["id"].as_str().unwrap().to_owned();
        self.put(&format!("/os-services/{id}"), json!({ "status": "enabled" })).await;
    }

    /// A running server on `host`, called by the prefix and `name`.
    pub(crate) async fn boot(&self, name: &str, host: &str) -> String {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}-{}-{}-{name}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let (flavor, image) = (self.flavor(64).await, self.image().await);
        let server = json!({ "name": name, "flavorRef": flavor, "imageRef": image, "networks": "none", "host": host });
        let (status, answer) = self.call("compute", Method::POST, "/servers", Some(json!({ "server": server }))).await;
        assert!(status.is_success(), "{status} {answer}");
        let id = answer["server"]["id"].as_str().unwrap().to_owned();
        self.settled(&id, "active").await;
        id
    }

    /// One that is then brought into `vm_state` by the action that an owner takes.
    pub(crate) async fn boot_in(&self, vm_state: &str, host: &str) -> String {
        let id = self.boot(vm_state, host).await;
        match vm_state {
            "active" => {}
            "paused" => self.action(&id, json!({ "pause": null })).await,
            "stopped" => self.action(&id, json!({ "os-stop": null })).await,
            "error" => self.action(&id, json!({ "os-resetState": { "state": "error" } })).await,
            other => panic!("no way into {other}"),
        }
        self.settled(&id, vm_state).await;
        id
    }

    /// Asks for an action on a server, and is not refused.
    pub(crate) async fn action(&self, id: &str, body: Value) {
        let (status, answer) = self.call("compute", Method::POST, &format!("/servers/{id}/action"), Some(body)).await;
        assert!(status.is_success(), "{status} {answer}");
    }

    pub(crate) async fn delete(&self, id: &str) {
        let (status, answer) = self.call("compute", Method::DELETE, &format!("/servers/{id}"), None).await;
        assert!(status.is_success(), "{status} {answer}");
    }

    /// None once it is gone.
    pub(crate) async fn server(&self, id: &str) -> Option<Server> {
        let (status, answer) = self.call("compute", Method::GET, &format!("/servers/{id}"), None).await;
        let text = |key: &str| answer["server"][key].as_str().map(str::to_owned);
        (status != StatusCode::NOT_FOUND).then(|| Server {
            host: text("OS-EXT-SRV-ATTR:host").unwrap_or_default(),
            vm_state: text("OS-EXT-STS:vm_state").unwrap_or_default(),
            task_state: text("OS-EXT-STS:task_state"),
        })
    }

    pub(crate) async fn name_of(&self, id: &str) -> String {
        self.get(&format!("/servers/{id}")).await["server"]["name"].as_str().unwrap().to_owned()
    }

    /// Waits until the server is in `vm_state` and nothing is under way with it.
    pub(crate) async fn settled(&self, id: &str, vm_state: &str) {
        eventually(&format!("server {id} {vm_state}"), async || {
            let server = self.server(id).await?;
            (server.vm_state == vm_state && server.task_state.is_none()).then_some(())
        })
        .await;
    }

    /// The records of its migrations, oldest first.
    pub(crate) async fn migrations(&self, id: &str) -> Vec<Record> {
        let mut all = self.get(&format!("/os-migrations?instance_uuid={id}")).await["migrations"].take();
        let all = all.as_array_mut().unwrap();
        all.sort_by_key(|record| record["id"].as_i64());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        all.iter()
            .map(|record| Record {
                kind: text(&record["migration_type"]),
                status: text(&record["status"]),
                source: text(&record["source_compute"]),
            })
            .collect()
    }

    /// What was ever asked of it, oldest first: Nova writes down each request that it took, whatever became of it.
    pub(crate) async fn actions(&self, id: &str) -> Vec<String> {
        let mut actions = self.get(&format!("/servers/{id}/os-instance-actions")).await["instanceActions"].take();
        let actions = actions.as_array_mut().unwrap();
        // Newest first, and sorted stably: times only have seconds.
        actions.reverse();
        actions.sort_by_key(|action| action["start_time"].as_str().map(str::to_owned));
        actions.iter().map(|action| action["action"].as_str().unwrap().to_owned()).collect()
    }

    /// No host fails any more.
    pub(crate) async fn tidy_faults(&self) {
        for service in self.get("/os-services?binary=nova-compute").await["services"].as_array().unwrap() {
            self.fail(service["host"].as_str().unwrap(), &json!({}));
        }
    }

    /// Everything as it was: no servers of ours, no host closed by us, no faults.
    pub(crate) async fn tidy(&self) {
        self.tidy_faults().await;
        let services = self.get("/os-services?binary=nova-compute").await;
        for service in services["services"].as_array().unwrap() {
            let reason = service["disabled_reason"].as_str().unwrap_or_default();
            if reason.starts_with(PREFIX) || reason.starts_with(OURS) {
                let id = service["id"].as_str().unwrap();
                self.put(&format!("/os-services/{id}"), json!({ "status": "enabled" })).await;
            }
        }
        for id in self.ours().await {
            self.call("compute", Method::DELETE, &format!("/servers/{id}"), None).await;
        }
        eventually("all servers of these tests gone", async || self.ours().await.is_empty().then_some(())).await;
    }

    async fn ours(&self) -> Vec<String> {
        let servers = self.get("/servers?all_tenants=1").await;
        let all = servers["servers"].as_array().unwrap();
        let ours = all.iter().filter(|server| server["name"].as_str().is_some_and(|name| name.starts_with(PREFIX) || name.starts_with(CANARY_NAME)));
        ours.map(|server| server["id"].as_str().unwrap().to_owned()).collect()
    }

    async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.call("compute", Method::GET, path, None).await;
        assert!(status.is_success(), "{path}: {status} {answer}");
        answer
    }

    async fn put(&self, path: &str, body: Value) {
        let (status, answer) = self.call("compute", Method::PUT, path, Some(body)).await;
        assert!(status.is_success(), "{path}: {status} {answer}");
    }

    /// A call of one service's, by hand, as the administrator.
    async fn call(&self, service: &str, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let (token, catalog) = self.token().await;
        let url = format!("{}{path}", endpoint(catalog, service));
        let request = self.http.request(method, url).header("x-auth-token", token);
        let mut request = request.header("openstack-api-version", "compute 2.95");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        (status, answer.json().await.unwrap_or(Value::Null))
    }

    async fn token(&self) -> &(String, Value) {
        self.token.get_or_init(|| self.log_in()).await
    }

    async fn log_in(&self) -> (String, Value) {
        let auth = &self.clouds["clouds"][&self.cloud]["auth"];
        let domain = json!({ "name": auth["user_domain_name"] });
        let body = json!({ "auth": {
            "identity": { "methods": ["password"], "password": { "user": {
                "name": auth["username"], "domain": domain, "password": auth["password"] } } },
            "scope": { "project": { "name": auth["project_name"], "domain": domain } } } });
        let url = format!("{}/auth/tokens", auth["auth_url"].as_str().unwrap());
        let answer = self.http.post(url).json(&body).send().await.unwrap();
        let token = answer.headers()["x-subject-token"].to_str().unwrap().to_owned();
        (token, answer.json::<Value>().await.unwrap()["token"]["catalog"].take())
    }

    /// The id of a flavour with `ram` MiB.
    pub(crate) async fn flavor(&self, ram: u32) -> String {
        let id = format!("{PREFIX}-{ram}");
        let flavor = json!({ "flavor": { "name": id, "id": id, "ram": ram, "vcpus": 1, "disk": 1 } });
        let (status, answer) = self.call("compute", Method::POST, "/flavors", Some(flavor)).await;
        assert!(status.is_success() || status == StatusCode::CONFLICT, "{status} {answer}");
        id
    }

    pub(crate) async fn image(&self) -> String {
        let known = self.call("image", Method::GET, &format!("/v2/images?name={PREFIX}&status=active"), None).await.1;
        if let Some(id) = known["images"][0]["id"].as_str() {
            return id.to_owned();
        }
        let image = json!({ "name": PREFIX, "disk_format": "raw", "container_format": "bare", "visibility": "public" });
        let image = self.call("image", Method::POST, "/v2/images", Some(image)).await.1;
        let id = image["id"].as_str().unwrap().to_owned();
        let (token, catalog) = self.token().await;
        let file = self.http.put(format!("{}/v2/images/{id}/file", endpoint(catalog, "image")));
        let file = file.header("x-auth-token", token).header("content-type", "application/octet-stream");
        assert!(file.body(vec![0; 1024]).send().await.unwrap().status().is_success());
        id
    }
}

fn endpoint(catalog: &Value, kind: &str) -> String {
    let service = catalog.as_array().unwrap().iter().find(|service| service["type"] == kind).unwrap();
    let public = service["endpoints"].as_array().unwrap().iter().find(|endpoint| endpoint["interface"] == "public").unwrap();
    public["url"].as_str().unwrap().to_owned()
}

/// Waits until `found` finds something.
pub(crate) async fn eventually<T>(what: &str, found: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(PATIENCE, POLL, what, found).await.unwrap()
}
