//! A real OpenStack, whose address is taken from the environment, and what a test does to it that is none of the
//! adapters' business: flavours, an image, servers.

use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use crate::support::{Site, beds, eventually};

/// The tests close hosts, and so can't run beside each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// What the tests create is called so, and nothing else is ever touched.
pub(crate) const PREFIX: &str = "turnaround-contract";

/// One real cloud, ours alone for as long as this lives.
pub(crate) struct Bed {
    clouds: Value,
    cloud: String,
    http: reqwest::Client,
    _alone: (MutexGuard<'static, ()>, File),
}

/// A user's token and what it leads to.
pub(crate) struct User<'a> {
    bed: &'a Bed,
    token: String,
    catalog: Value,
}

impl Bed {
    /// The bed, or None with a plain line that says how to get one. What an earlier run left behind is removed.
    pub(crate) async fn find(test: &str) -> Option<Bed> {
        let (Ok(file), Ok(cloud)) = (std::env::var("TURNAROUND_BED_CLOUDS"), std::env::var("TURNAROUND_BED_CLOUD")) else {
            beds::skip(
                "nova",
                test,
                "export what `.ci/beds up nova` prints, or set TURNAROUND_BED_CLOUDS to a clouds.yaml and TURNAROUND_BED_CLOUD to an administrator's cloud in it (with a member's beside it, named the same with -demo), of a test OpenStack with two or more compute hosts",
            );
            return None;
        };
        let text = std::fs::read_to_string(&file).unwrap();
        let clouds: Value = serde_saphyr::from_str(&text).unwrap();
        turnaround_worker::adapters::install_tls();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let alone = ONE_AT_A_TIME.lock().await;
        // Other test programs use the same cloud.
        let lock = File::open(&file).unwrap();
        let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.unwrap().unwrap();
        let bed = Bed { clouds, cloud, http, _alone: (alone, lock) };
        bed.tidy().await;
        Some(bed)
    }

    /// From now on, and until the next call, this goes wrong on `host`. False, with a plain line that says how to have that, where faults can't be
    /// injected.
    pub(crate) fn fail(&self, test: &str, host: &str, faults: &Value) -> bool {
        let Some(folder) = std::env::var_os("TURNAROUND_BED_FAULTS") else {
            beds::skip(
                "nova-faults",
                test,
                "export what `.ci/beds up nova` prints, or set TURNAROUND_BED_FAULTS to the folder in which each compute host of the test OpenStack, in a folder of its own name, looks for faults.json",
            );
            return false;
        };
        let file = std::path::Path::new(&folder).join(host).join("faults.json");
        // Moved into place: the host may be reading it.
        std::fs::write(file.with_extension("new"), faults.to_string()).unwrap();
        std::fs::rename(file.with_extension("new"), file).unwrap();
        true
    }

    /// The hosts of this cloud that are up and open.
    pub(crate) async fn hosts(&self) -> Vec<String> {
        let services = self.admin().await.compute(Method::GET, "/os-services?binary=nova-compute", None).await.1;
        let open = services["services"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|service| service["state"] == "up" && service["status"] == "enabled");
        let mut hosts: Vec<String> = open.map(|service| service["host"].as_str().unwrap().to_owned()).collect();
        hosts.sort();
        assert!(hosts.len() >= 2, "a move needs two hosts: {hosts:?}");
        hosts
    }

    /// A site whose nodes are the hosts of this cloud, under other names than Nova's: `node-HOST`.
    pub(crate) async fn site(&self) -> Site {
        self.site_with(&self.cloud, None).await
    }

    /// As [`Bed::site`], of another cloud of the file, or with Nova at another address.
    pub(crate) async fn site_with(&self, cloud: &str, nova: Option<&str>) -> Site {
        let mut clouds = self.clouds.clone();
        if let Some(nova) = nova {
            clouds["clouds"][cloud]["compute_endpoint_override"] = nova.into();
        }
        let mut site = Site::new(&clouds, cloud).with_node("nowhere", "no-such-host");
        for host in self.hosts().await {
            site = site.with_node(&format!("node-{host}"), &host);
        }
        site
    }

    pub(crate) async fn admin(&self) -> User<'_> {
        self.user(&self.cloud).await
    }

    /// Someone without any right beyond their own project: the cloud `NAME-demo` of the file.
    pub(crate) fn member_cloud(&self) -> String {
        format!("{}-demo", self.cloud)
    }

    pub(crate) async fn user(&self, cloud: &str) -> User<'_> {
        let auth = &self.clouds["clouds"][cloud]["auth"];
        let domain = json!({ "name": auth["user_domain_name"] });
        let body = json!({ "auth": {
            "identity": { "methods": ["password"], "password": { "user": {
                "name": auth["username"], "domain": domain, "password": auth["password"] } } },
            "scope": { "project": { "name": auth["project_name"], "domain": domain } } } });
        let url = format!("{}/auth/tokens", auth["auth_url"].as_str().unwrap());
        let answer = self.http.post(url).json(&body).send().await.unwrap();
        let token = answer.headers()["x-subject-token"].to_str().unwrap().to_owned();
        let catalog = answer.json::<Value>().await.unwrap()["token"]["catalog"].take();
        User { bed: self, token, catalog }
    }

    /// Ends `token` at Keystone.
    pub(crate) async fn revoke(&self, token: &str) {
        let url = format!("{}/auth/tokens", self.clouds["clouds"][&self.cloud]["auth"]["auth_url"].as_str().unwrap());
        let admin = self.admin().await;
        let request = self.http.delete(url).header("x-auth-token", &admin.token).header("x-subject-token", token);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::NO_CONTENT);
    }

    /// Nova's own address.
    pub(crate) async fn nova_url(&self) -> String {
        self.admin().await.endpoint("compute")
    }

    /// A running server of the administrator's on `host`.
    pub(crate) async fn server_on(&self, host: &str) -> String {
        self.admin().await.server(Some(host)).await
    }

    pub(crate) async fn tidy(&self) {
        let admin = self.admin().await;
        let ours = |servers: Value| -> Vec<String> {
            let all = servers["servers"].as_array().unwrap();
            let ours = all.iter().filter(|server| server["name"].as_str().is_some_and(|name| name.starts_with(PREFIX)));
            ours.map(|server| server["id"].as_str().unwrap().to_owned()).collect()
        };
        for id in ours(admin.compute(Method::GET, "/servers?all_tenants=1", None).await.1) {
            admin.compute(Method::DELETE, &format!("/servers/{id}"), None).await;
        }
        eventually("all servers of earlier tests gone", || async {
            ours(admin.compute(Method::GET, "/servers?all_tenants=1", None).await.1).is_empty().then_some(())
        })
        .await;
        let services = admin.compute(Method::GET, "/os-services?binary=nova-compute", None).await.1;
        for service in services["services"].as_array().unwrap() {
            if service["disabled_reason"].as_str().is_some_and(|reason| reason.starts_with(PREFIX)) {
                admin
                    .compute(
                        Method::PUT,
                        &format!("/os-services/{}", service["id"].as_str().unwrap()),
                        Some(json!({ "status": "enabled" })),
                    )
                    .await;
            }
        }
    }
}

impl User<'_> {
    fn endpoint(&self, kind: &str) -> String {
        let services = self.catalog.as_array().unwrap();
        let service = services.iter().find(|service| service["type"] == kind).unwrap();
        let endpoints = service["endpoints"].as_array().unwrap();
        let public = endpoints.iter().find(|endpoint| endpoint["interface"] == "public").unwrap();
        public["url"].as_str().unwrap().to_owned()
    }

    /// A call of Nova's, by hand.
    pub(crate) async fn compute(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let url = format!("{}{path}", self.endpoint("compute"));
        let mut request = self
            .bed
            .http
            .request(method, url)
            .header("x-auth-token", &self.token)
            .header("openstack-api-version", "compute 2.95");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        (status, answer.json().await.unwrap_or(Value::Null))
    }

    /// A call of Placement's, by hand.
    pub(crate) async fn placement(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let url = format!("{}{path}", self.endpoint("placement"));
        let mut request =
            self.bed.http.request(method, url).header("x-auth-token", &self.token).header("openstack-api-version", "placement 1.39");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        (status, answer.json().await.unwrap_or(Value::Null))
    }

    /// Asks for an action on a server, and is not refused.
    pub(crate) async fn action(&self, id: &str, body: Value) {
        let (status, answer) = self.compute(Method::POST, &format!("/servers/{id}/action"), Some(body)).await;
        assert!(status.is_success(), "{status} {answer}");
    }

    /// Waits until the server is in `vm_state` and nothing is under way with it.
    pub(crate) async fn settled(&self, id: &str, vm_state: &str) {
        eventually(&format!("server {id} {vm_state}"), || async {
            let server = self.compute(Method::GET, &format!("/servers/{id}"), None).await.1["server"].take();
            assert!(vm_state == "error" || server["status"] != "ERROR", "{server}");
            (server["OS-EXT-STS:vm_state"] == vm_state && server["OS-EXT-STS:task_state"].is_null()).then_some(())
        })
        .await;
    }

    /// A running server, on `host` where that is given.
    pub(crate) async fn server(&self, host: Option<&str>) -> String {
        let flavor = self.bed.flavor("server", 64).await;
        self.server_of(&flavor, host, json!({})).await
    }

    /// A running server of that flavour, with those hints for Nova's scheduler.
    pub(crate) async fn server_of(&self, flavor: &str, host: Option<&str>, hints: Value) -> String {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let image = self.bed.image().await;
        let mut server = json!({ "name": name, "flavorRef": flavor, "imageRef": image, "networks": "none" });
        if let Some(host) = host {
            server["host"] = host.into();
        }
        let body = json!({ "server": server, "os:scheduler_hints": hints });
        let (status, answer) = self.compute(Method::POST, "/servers", Some(body)).await;
        assert!(status.is_success(), "{status} {answer}");
        let id = answer["server"]["id"].as_str().unwrap().to_owned();
        self.settled(&id, "active").await;
        id
    }
}

impl Bed {
    /// The id of a flavour with `ram` MiB.
    pub(crate) async fn flavor(&self, name: &str, ram: u32) -> String {
        let id = format!("{PREFIX}-{name}-{ram}");
        let flavor = json!({ "flavor": { "name": id, "id": id, "ram": ram, "vcpus": 1, "disk": 1 } });
        let (status, answer) = self.admin().await.compute(Method::POST, "/flavors", Some(flavor)).await;
        assert!(status.is_success() || status == StatusCode::CONFLICT, "{status} {answer}");
        id
    }

    /// The id of an image of nothing.
    pub(crate) async fn image(&self) -> String {
        let admin = self.admin().await;
        let url = format!("{}/v2/images", admin.endpoint("image"));
        let known: Value = self
            .http
            .get(format!("{url}?name={PREFIX}&status=active"))
            .header("x-auth-token", &admin.token)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        if let Some(id) = known["images"][0]["id"].as_str() {
            return id.to_owned();
        }
        let image = json!({ "name": PREFIX, "disk_format": "raw", "container_format": "bare", "visibility": "public" });
        let image: Value =
            self.http.post(&url).header("x-auth-token", &admin.token).json(&image).send().await.unwrap().json().await.unwrap();
        let id = image["id"].as_str().unwrap().to_owned();
        let file = self
            .http
            .put(format!("{url}/{id}/file"))
            .header("x-auth-token", &admin.token)
            .header("content-type", "application/octet-stream");
        assert!(file.body(vec![0; 1024]).send().await.unwrap().status().is_success());
        id
    }
}
