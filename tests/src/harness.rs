//! A simulated site with the real programs around it, for scenarios: started, asked, and ended with the test.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;
use turnaround_daemon::wire::WorkflowView;
use turnaround_workflows::clock::SystemClock;
use turnaround_workflows::rehearsal::{SitePlan, World};
use turnaround_workflows::store::Status;

use crate::lab::{Processes, Programs};
use crate::site::{Settings, Site};

/// A state that is waited for comes within this time, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(20);

/// What cargo tells the programs that it runs of themselves begins so. Some build scripts ask for it: handed on to another cargo, it
/// makes that one build half of everything anew, and the next one as well.
const TOLD_BY_CARGO: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"];

/// The cargo that runs this, as a person would call it.
pub(crate) fn cargo() -> tokio::process::Command {
    let mut cargo = tokio::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if TOLD_BY_CARGO.iter().any(|told| name.to_string_lossy().starts_with(told)) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Says that the programs are there, and of this tree: `cargo test --workspace` has built them together with the tests.
const BUILT_ALREADY: &str = "TURNAROUND_PROGRAMS_BUILT";

/// The programs, built once. `cargo test` itself does not build the programs of other packages.
pub async fn programs() -> io::Result<Programs> {
    static BUILT: OnceCell<()> = OnceCell::const_new();
    BUILT
        .get_or_try_init(|| async {
            // Not for the seconds: a build waits for every other one, and CI builds and tests at the same time.
            if std::env::var_os(BUILT_ALREADY).is_some() {
                return Ok(());
            }
            let status = cargo().args(["build", "--quiet", "--workspace", "--bins"]).status().await?;
            if status.success() { Ok(()) } else { Err(io::Error::other("the programs could not be built")) }
        })
        .await?;
    Programs::beside_this_one()
}

/// A site with a private Redis, the daemon and workers as real processes.
pub struct Running {
    pub world: Arc<World>,
    pub site: Site,
    pub processes: Processes,
    pub client: Client,
    pub programs: Programs,
}

impl Running {
    pub async fn start(plan: SitePlan, workers: usize, adjust: impl FnOnce(&mut Settings)) -> io::Result<Running> {
        let programs = programs().await?;
        let world = World::new(Arc::new(SystemClock), plan, 1);
        let site = Site::start(&world).await?;
        let mut settings = Settings::quick(&programs.site_ssh);
        "2s".clone_into(&mut settings.lease);
        let redis = Processes::redis_socket(site.folder());
        settings.store = format!("url = \"unix://{}\"\nreply_timeout = \"1s\"", redis.display());
        adjust(&mut settings);
        let config = site.write_config(&world, &settings)?;
        let mut processes = Processes::new(programs.clone(), site.folder(), &config, workers);
        processes.start_redis().await?;
        processes.start_daemon()?;
        for worker in 0..workers {
            processes.start_worker(worker)?;
        }
        let client = Client::new(&site.socket())?;
        let running = Running { world, site, processes, client, programs };
        running.client.until_up().await?;
        Ok(running)
    }

    /// Orders a rollout by the command that an operator types; its id.
    pub async fn renew(&self, nodes: &[&str]) -> io::Result<String> {
        let image = self.world.images()[0].name.clone();
        let answer = self.turnaround(&[&["--json", "node", "renew"], nodes, &["--image", &image, "--yes"]].concat()).await?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        answer["id"].as_str().map(str::to_owned).ok_or_else(|| io::Error::other(format!("no id in the answer: {answer}")))
    }

    /// The workflow `id`, once it has ended or asks.
    pub async fn rests(&self, id: &str) -> io::Result<WorkflowView> {
        let mut seen = None;
        let rested = until("the workflow to end, or to ask", async || {
            let view: WorkflowView = self.client.get(&format!("/v1/workflows/{id}")).await.ok()?;
            let is_over = view.line.status.is_ended() || view.line.status == Status::NeedsOperator;
            seen = Some(view.clone());
            is_over.then_some(view)
        })
        .await;
        rested.map_err(|error| io::Error::other(format!("{error}: {seen:#?}")))
    }

    /// Waits until the daemon has looked at the store once more.
    pub async fn until_looked(&self) -> io::Result<()> {
        let looks = || {
            let file = std::fs::read_to_string(self.site.state_dir().join("high-water.json"))?;
            let known: serde_json::Value = serde_json::from_str(&file)?;
            known["looks"].as_u64().ok_or_else(|| io::Error::other(file))
        };
        let then = looks()?;
        until("the daemon to look once more", async || looks().is_ok_and(|looks| looks > then).then_some(())).await
    }

    /// What the command `turnaround` prints.
    ///
    /// # Errors
    /// If it ends with another exit code than 0: with what it said.
    pub async fn turnaround(&self, arguments: &[&str]) -> io::Result<String> {
        turnaround(&self.programs.cli, &self.site.socket(), arguments).await
    }
}

/// What the command `turnaround` at `cli` prints when it asks the daemon at `socket`.
///
/// # Errors
/// If it ends with another exit code than 0: with what it said.
pub async fn turnaround(cli: &Path, socket: &Path, arguments: &[&str]) -> io::Result<String> {
    let output = tokio::process::Command::new(cli).arg("--socket").arg(socket).args(arguments).output().await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("`turnaround {}`: {}: {said}", arguments.join(" "), output.status)));
    }
    String::from_utf8(output.stdout).map_err(io::Error::other)
}

/// Copies a folder with all that is in it, as `tar` would: sockets are left out.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &to)?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// Asks the daemon over its socket.
pub struct Client(reqwest::Client);

impl Client {
    pub fn new(socket: &Path) -> io::Result<Client> {
        turnaround_worker::adapters::install_tls();
        let client = reqwest::Client::builder().unix_socket(socket).timeout(Duration::from_secs(5)).build();
        client.map(Client).map_err(io::Error::other)
    }

    pub async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, reqwest::Error> {
        self.0.get(format!("http://turnaround{path}")).send().await?.error_for_status()?.json().await
    }

    pub async fn until_up(&self) -> io::Result<()> {
        until("the daemon to answer", async || self.get::<serde_json::Value>("/v1/status").await.ok().map(|_| ())).await
    }
}

/// Waits until `found` finds something; an error that names `what` if it does not.
pub async fn until<T>(what: &str, found: impl AsyncFnMut() -> Option<T>) -> io::Result<T> {
    until_within(PATIENCE, POLL, what, found).await
}

/// The same with another patience, looking every `poll`: for what is slower than a simulated site.
pub async fn until_within<T>(
    patience: Duration,
    poll: Duration,
    what: &str,
    mut found: impl AsyncFnMut() -> Option<T>,
) -> io::Result<T> {
    let end = tokio::time::Instant::now() + patience;
    while tokio::time::Instant::now() < end {
        if let Some(found) = found().await {
            return Ok(found);
        }
        tokio::time::sleep(poll).await;
    }
    Err(io::Error::other(format!("waited {} s in vain for {what}", patience.as_secs())))
}
