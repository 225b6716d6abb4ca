//! A real Kubernetes control plane for one test: etcd, kube-apiserver, kube-controller-manager and kube-scheduler as they were released. Only the
//! kubelets are ours: they call their node Ready while its instance runs, start its pods, and end them when they are told to.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use chrono::SecondsFormat;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::AbortHandle;
use turnaround_tests::beds;
use turnaround_tests::harness::until_within;
use turnaround_workflows::clock::{Clock as _, SystemClock};

/// An API server is ready after some seconds, on a busy machine later.
const PATIENCE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(100);
/// A real kubelet writes its lease each ten seconds, and hears of pods at once.
const KUBELET_LOOKS_EVERY: Duration = Duration::from_millis(300);
/// The programs that have to be in the folder.
const PROGRAMS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
const ADMIN: &str = "admin-of-the-test";

pub(crate) struct Kubernetes {
    pub(crate) url: String,
    pub(crate) ca_file: PathBuf,
    folder: TempDir,
    admin: Arc<Admin>,
    /// Killed when dropped.
    processes: Vec<Child>,
    kubelets: Vec<AbortHandle>,
}

/// A client that may do everything.
struct Admin {
    http: reqwest::Client,
    url: String,
}

impl Admin {
    async fn call(&self, method: Method, path: &str, content: &str, body: Option<&Value>) -> reqwest::Result<(StatusCode, Value)> {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(ADMIN);
        if let Some(body) = body {
            request = request.header("content-type", content).body(body.to_string());
        }
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

impl Kubernetes {
    /// A control plane of its own, or None with a plain line that says how to get one.
    pub(crate) async fn start(test: &str) -> Option<Kubernetes> {
        let Some(programs) = std::env::var_os("TURNAROUND_BED_KUBERNETES").map(PathBuf::from) else {
            let how = format!("set TURNAROUND_BED_KUBERNETES to a folder with {}, of any release of Kubernetes", PROGRAMS.join(", "));
            beds::skip("kubernetes", test, &how);
            return None;
        };
        turnaround_worker::adapters::install_tls();
        let folder = tempfile::Builder::new().prefix("kube-").tempdir().unwrap();
        let at = folder.path();
        let key = at.join("sa.key");
        let made = Command::new("ssh-keygen").args(["-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-f"]).arg(&key).status().await.unwrap();
        assert!(made.success());
        fs::write(at.join("tokens.csv"), format!("{ADMIN},admin,admin,system:masters\n")).unwrap();
        let (etcd, peers, port) = (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port()), free_port());
        let mut processes = Vec::new();
        let mut run = |program: &str, arguments: &[String]| {
            let log = fs::File::create(at.join(format!("{program}.log"))).unwrap();
            let mut command = Command::new(programs.join(program));
            command.args(arguments).current_dir(at).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true);
            processes.push(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}")));
        };
        let strings = |arguments: &[&str]| arguments.iter().map(|&argument| argument.to_owned()).collect::<Vec<_>>();
        let members = format!("default={peers}");
        let etcd_arguments = ["--data-dir", "etcd", "--listen-client-urls", &etcd, "--advertise-client-urls", &etcd, "--listen-peer-urls", &peers];
        run("etcd", &strings(&[&etcd_arguments[..], &["--initial-advertise-peer-urls", &peers, "--initial-cluster", &members]].concat()));
        run(
            "kube-apiserver",
            &strings(&[
                &format!("--etcd-servers={etcd}"),
                "--cert-dir=certs",
                "--bind-address=127.0.0.1",
                &format!("--secure-port={port}"),
                "--service-account-issuer=https://kubernetes.test",
                "--service-account-signing-key-file=sa.key",
                "--service-account-key-file=sa.key",
                "--token-auth-file=tokens.csv",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.0.0.0/24",
            ]),
        );
        let (url, ca_file) = (format!("https://127.0.0.1:{port}"), at.join("certs/apiserver.crt"));
        let admin = until_within(PATIENCE, POLL, "the API server to be ready", async || {
            let authority = reqwest::Certificate::from_pem_bundle(&fs::read(&ca_file).ok()?).ok()?;
            let http = authority.into_iter().fold(reqwest::Client::builder().no_proxy(), reqwest::ClientBuilder::add_root_certificate);
            let admin = Admin { http: http.timeout(Duration::from_secs(20)).build().ok()?, url: url.clone() };
            let (status, _) = admin.call(Method::GET, "/readyz", "", None).await.ok()?;
            status.is_success().then_some(admin)
        });
        let admin = Arc::new(admin.await.unwrap_or_else(|error| panic!("{error}: {}", last_words(at))));
        fs::write(at.join("kubeconfig"), kubeconfig(&url, &ca_file)).unwrap();
        let of_controllers = ["--kubeconfig=kubeconfig", "--leader-elect=false"];
        let keys = ["--service-account-private-key-file=sa.key", "--root-ca-file=certs/apiserver.crt", "--use-service-account-credentials=false"];
        run("kube-controller-manager", &strings(&[&of_controllers[..], &keys, &["--secure-port=0"]].concat()));
        run("kube-scheduler", &strings(&[&of_controllers[..], &["--secure-port=0"]].concat()));
        Some(Kubernetes { url, ca_file, folder, admin, processes, kubelets: Vec::new() })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What must not be refused.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let (status, answer) = self.admin.call(method, path, content, body).await.unwrap();
        assert!(status.is_success(), "{path}: {status} {answer}\n{}", last_words(self.folder()));
        answer
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        self.call(Method::POST, path, Some(body)).await
    }

    /// A node that is the instance of this id, and its kubelet, which works while `runs`.
    pub(crate) async fn node(&mut self, name: &str, instance: &str, runs: impl Fn() -> bool + Send + Sync + 'static) {
        let node = json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } } });
        self.post("/api/v1/nodes", &node).await;
        let kubelet = Kubelet { admin: Arc::clone(&self.admin), node: name.to_owned(), instance: instance.to_owned() };
        kubelet.reports_ready().await.unwrap();
        let working = async move {
            loop {
                if runs() {
                    // The API server may be busy: the next round does what this one did not.
                    let _ = kubelet.works().await;
                }
                tokio::time::sleep(KUBELET_LOOKS_EVERY).await;
            }
        };
        self.kubelets.push(tokio::spawn(working).abort_handle());
    }

    /// Waits for a state.
    pub(crate) async fn until<T>(&self, what: &str, found: impl AsyncFnMut() -> Option<T>) -> T {
        until_within(PATIENCE, POLL, what, found).await.unwrap_or_else(|error| panic!("{error}: {}", last_words(self.folder())))
    }

    /// Pods of an application by name: their node, and whether they are ready and stay.
    pub(crate) async fn pods(&self, app: &str) -> BTreeMap<String, (String, bool)> {
        let all = self.get(&format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{app}")).await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let told = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
            (text(&pod["metadata"]["name"]), (text(&pod["spec"]["nodeName"]), ready && pod["metadata"]["deletionTimestamp"].is_null()))
        };
        all["items"].as_array().unwrap().iter().map(told).collect()
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        for kubelet in &self.kubelets {
            kubelet.abort();
        }
        for process in &mut self.processes {
            let _ = process.start_kill();
        }
    }
}

fn kubeconfig(url: &str, ca_file: &Path) -> String {
    let cluster = json!({ "name": "c", "cluster": { "server": url, "certificate-authority": ca_file } });
    let user = json!({ "name": "u", "user": { "token": ADMIN } });
    let context = json!({ "name": "x", "context": { "cluster": "c", "user": "u" } });
    // JSON is YAML too.
    json!({ "apiVersion": "v1", "kind": "Config", "clusters": [cluster], "users": [user], "contexts": [context], "current-context": "x" }).to_string()
}

/// The last lines of each program's log.
fn last_words(folder: &Path) -> String {
    let last = |program: &&str| {
        let log = fs::read_to_string(folder.join(format!("{program}.log"))).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("--- {program}\n{}", lines[lines.len().saturating_sub(5)..].join("\n"))
    };
    PROGRAMS.iter().map(last).collect::<Vec<_>>().join("\n")
}

/// What a kubelet does for its node, as far as a drain sees it.
struct Kubelet {
    admin: Arc<Admin>,
    node: String,
    instance: String,
}

impl Kubelet {
    async fn patch(&self, path: &str, body: &Value) -> reqwest::Result<()> {
        // A strategic merge patch keeps the conditions of others.
        self.admin.call(Method::PATCH, path, "application/strategic-merge-patch+json", Some(body)).await.map(drop)
    }

    async fn reports_ready(&self) -> reqwest::Result<()> {
        let now = SystemClock.now().utc().to_rfc3339_opts(SecondsFormat::Secs, true);
        let ready = json!({ "type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now });
        let resources = json!({ "cpu": "8", "memory": "16Gi", "pods": "110" });
        let status = json!({
            "status": {
                "conditions": [ready],
                "nodeInfo": { "systemUUID": self.instance, "kubeletVersion": "v1.36.0" },
                "capacity": resources,
                "allocatable": resources,
            }
        });
        self.patch(&format!("/api/v1/nodes/{}/status", self.node), &status).await?;
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": self.node },
            "spec": { "holderIdentity": self.node, "leaseDurationSeconds": 40, "renewTime": SystemClock.now().utc().to_rfc3339_opts(SecondsFormat::Micros, true) }
        });
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let (status, _) = self.admin.call(Method::POST, leases, "application/json", Some(&lease)).await?;
        if status == StatusCode::CONFLICT {
            self.patch(&format!("{leases}/{}", self.node), &lease).await?;
        }
        Ok(())
    }

    async fn works(&self) -> reqwest::Result<()> {
        self.reports_ready().await?;
        let (_, pods) = self.admin.call(Method::GET, &format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.node), "", None).await?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let path = format!("/api/v1/namespaces/{}/pods/{}", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                let now = json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": pod["metadata"]["uid"] } });
                self.admin.call(Method::DELETE, &path, "application/json", Some(&now)).await?;
            } else if pod["status"]["phase"] == "Pending" {
                let conditions = ["Ready", "ContainersReady", "Initialized"].map(|kind| json!({ "type": kind, "status": "True" }));
                self.patch(&format!("{path}/status"), &json!({ "status": { "phase": "Running", "conditions": conditions } })).await?;
            }
        }
        Ok(())
    }
}
