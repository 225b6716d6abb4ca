//! The simulated site over the real protocols, on loopback: Keystone, Nova, Placement, Neutron, Ironic, Redfish, Alertmanager, Kubernetes, and the nodes themselves.
//!
//! They serve one [`World`], so that real adapters meet what a real site does to them. Nobody gets in without the right
//! password, nothing is faster than it says, and an answer may be lost after its effect.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::task::AbortHandle;
use turnaround_workflows::rehearsal::{TicketDirectory, World};

mod alertmanager;
mod ironic;
mod keystone;
mod kubernetes;
mod line;
mod mishaps;
mod neutron;
mod nodes;
mod nova;
mod placement;
mod redfish;
mod tokens;

pub(crate) use nodes::host_key;

pub use mishaps::{Mishap, Mishaps, Which};
pub use redfish::Chassis;

use line::{Line, Lines};
use tokens::Tokens;

/// Length of a made-up password.
// More than any adapter's shortest limit, and within the 16 bytes that IPMI can carry.
const PASSWORD_CHARS: usize = 16;

/// How long a token is good, unless a test says otherwise. Keystone's own default.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// The name of the project that the administrator's token is for. No tenant's instance is in it.
pub const ADMIN_PROJECT: &str = "admin";

/// Who gets in, made up anew for every site.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// An administrator of the cloud.
    pub admin: Login,
    /// A mere member of the project `tenant-a`.
    pub member: Login,
    /// Every BMC has its own.
    pub bmcs: BTreeMap<String, Login>,
    /// What stands for the private key that lets us in by SSH.
    pub ssh: Login,
    /// The token of the service account in the Kubernetes cluster.
    pub kubernetes: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: String,
}

impl Login {
    fn new(user: &str) -> Login {
        let password = rand::rng().sample_iter(&Alphanumeric).take(PASSWORD_CHARS).map(char::from).collect();
        Login { user: user.to_owned(), password }
    }
}

/// All servers of one site. They end when this is dropped.
#[derive(Debug)]
pub struct Servers {
    pub keystone_url: String,
    pub nova_url: String,
    /// All BMCs are behind this one address; each has its own `/redfish/v1/Systems/<node>` and its own password.
    pub redfish_url: String,
    /// Where the program `site-ssh` asks.
    pub nodes_url: String,
    pub alertmanager_url: String,
    pub kubernetes_url: String,
    pub credentials: Credentials,
    pub mishaps: Arc<Mishaps>,
    tokens: Arc<Tokens>,
    tasks: Vec<AbortHandle>,
}

impl Servers {
    /// Serves `world`, whose nodes take their boot configuration from `netboot_dir` from now on.
    pub async fn start(world: Arc<World>, netboot_dir: &Path) -> io::Result<Servers> {
        world.take_tickets_from(Arc::new(TicketDirectory(netboot_dir.to_owned())));
        let machines = world.machines();
        let credentials = Credentials {
            admin: Login::new("turnaround"),
            member: Login::new("dana"),
            bmcs: machines.iter().map(|machine| (machine.node.clone(), Login::new("operator"))).collect(),
            ssh: Login::new("ubuntu"),
            kubernetes: Login::new("turnaround").password,
        };
        let mishaps = Arc::new(Mishaps::default());
        let tokens = Arc::new(Tokens::new(TOKEN_LIFE));
        let [keystone, nova, placement] = [Lines::bind().await?, Lines::bind().await?, Lines::bind().await?];
        let [redfish, nodes, ironic] = [Lines::bind().await?, Lines::bind().await?, Lines::bind().await?];
        let [alertmanager, kubernetes, neutron] = [Lines::bind().await?, Lines::bind().await?, Lines::bind().await?];
        let (alertmanager_url, kubernetes_url) = (alertmanager.url()?, kubernetes.url()?);
        let (keystone_url, nova_url) = (keystone.url()?, nova.url()?);
        let (redfish_url, nodes_url) = (redfish.url()?, nodes.url()?);
        let keystone_routes = keystone::routes(keystone::Keystone {
            url: keystone_url.clone(),
            nova_url: nova_url.clone(),
            placement_url: placement.url()?,
            ironic_url: ironic.url()?,
            neutron_url: neutron.url()?,
            admin: credentials.admin.clone(),
            member: credentials.member.clone(),
            tokens: Arc::clone(&tokens),
        });
        let nova_routes =
            nova::routes(nova::Nova { url: nova_url.clone(), world: Arc::clone(&world), tokens: Arc::clone(&tokens) });
        let placement_routes =
            placement::routes(placement::Placement { world: Arc::clone(&world), tokens: Arc::clone(&tokens) });
        let neutron_routes = neutron::routes(neutron::Neutron { world: Arc::clone(&world), tokens: Arc::clone(&tokens) });
        let ironic_routes = ironic::routes(ironic::Ironic { world: Arc::clone(&world), tokens: Arc::clone(&tokens) });
        let redfish_routes =
            redfish::routes(redfish::Redfish { chassis: Arc::clone(&world) as Arc<dyn Chassis>, logins: credentials.bmcs.clone() });
        let kubernetes_routes =
            kubernetes::routes(kubernetes::Kubernetes { world: Arc::clone(&world), token: credentials.kubernetes.clone() });
        let alertmanager_routes = alertmanager::routes(Arc::clone(&world));
        let nodes_routes = nodes::routes(nodes::Nodes { world, login: credentials.ssh.clone() });
        let tasks = vec![
            serve(keystone, keystone_routes, &mishaps),
            serve(nova, nova_routes, &mishaps),
            serve(placement, placement_routes, &mishaps),
            serve(neutron, neutron_routes, &mishaps),
            serve(ironic, ironic_routes, &mishaps),
            serve(redfish, redfish_routes, &mishaps),
            serve(nodes, nodes_routes, &mishaps),
            serve(alertmanager, alertmanager_routes, &mishaps),
            serve(kubernetes, kubernetes_routes, &mishaps),
        ];
        Ok(Servers { keystone_url, nova_url, redfish_url, nodes_url, alertmanager_url, kubernetes_url, credentials, mishaps, tokens, tasks })
    }

    /// No token that was given so far is accepted any more.
    pub fn revoke_tokens(&self) {
        self.tokens.revoke_all();
    }

    /// Tokens given from now on are good for `life`.
    pub fn tokens_live(&self, life: Duration) {
        self.tokens.live(life);
    }

    /// Tokens given so far.
    pub fn tokens_given(&self) -> usize {
        self.tokens.given()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Serves the BMCs of `chassis` by Redfish, until the handle is aborted; also returns the URL.
pub(crate) async fn serve_redfish(
    chassis: Arc<dyn Chassis>,
    logins: BTreeMap<String, Login>,
    mishaps: &Arc<Mishaps>,
) -> io::Result<(String, AbortHandle)> {
    let lines = Lines::bind().await?;
    let url = lines.url()?;
    Ok((url, serve(lines, redfish::routes(redfish::Redfish { chassis, logins }), mishaps)))
}

fn serve(lines: Lines, routes: Router, mishaps: &Arc<Mishaps>) -> AbortHandle {
    let routes = routes.layer(axum::middleware::from_fn_with_state(Arc::clone(mishaps), mishaps::strike));
    let service = routes.into_make_service_with_connect_info::<Line>();
    let serving = async move {
        // It only ends with the task: accepting errors are retried inside.
        let _ = axum::serve(lines, service).await;
    };
    tokio::spawn(serving).abort_handle()
}
