//! The real protocols behind the ports: Keystone and Nova, Redfish, `ipmitool`, the PXE server's folder, `ssh`, Kubernetes.
//!
//! | port | adapter |
//! |---|---|
//! | `ComputeServices`, `Instances`, `Canaries` | [`nova`], with a session from [`keystone`] and the credentials from [`clouds`] |
//! | `Bmc` | [`bmc`]: [`redfish`] or [`ipmitool`], per node |
//! | `NetBoot` | [`netboot`] |
//! | `Rebuilder` | [`ironic`], with what [`configdrive`] makes for a node |
//! | `NodeFacts` | [`ssh`] |
//! | `SetupScript` | [`setup_script`] |
//! | `Silences` | [`alertmanager`] |
//! | `ClusterNodes` | [`kubernetes`] |
//!
//! Below them: [`http`] and [`program`], which bound everything and say whether what failed may have been carried out;
//! [`tls`], which says who is trusted.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use reqwest::Url;
use turnaround_config::{self as config, Config, NodeName, Secret, SecretText};
use turnaround_workflows::clock::SystemClock;
use turnaround_workflows::ports::Ports;

use self::alertmanager::{Alertmanager, Api};
use self::bmc::{Controller, Controllers};
use self::configdrive::Drive;
use self::http::{BoxError, Http};
use self::ipmitool::Ipmitool;
use self::ironic::{Ironic, Machine, Place};
use self::keystone::Session;
use self::kubernetes::Kubernetes;
use self::netboot::BootFolder;
use self::nova::Nova;
use self::redfish::Redfish;
use self::setup_script::SetupScripts;
use self::ssh::SshFacts;
use self::tls::Trust;

mod alertmanager;
mod bmc;
mod clouds;
mod configdrive;
mod http;
mod ipmitool;
mod ironic;
mod keystone;
mod kubernetes;
mod late;
mod netboot;
mod node_stock;
mod nova;
mod program;
mod redfish;
mod setup_script;
mod ssh;
mod tls;

pub use tls::install_tls;

/// The folder below `state_dir` in which the nodes' SSH host keys are kept.
const KNOWN_HOSTS: &str = "known_hosts";

/// Everything that keeps the adapters from being set up.
#[derive(Debug)]
pub struct ConnectError {
    pub problems: Vec<Problem>,
}

/// One of them: what is concerned, and why it can't be used.
#[derive(Debug)]
pub struct Problem {
    pub what: String,
    pub source: BoxError,
}

/// Sets up every port of the site. Secrets, certificates and `clouds.yaml` are read here and now; nobody is contacted yet.
///
/// # Errors
/// All problems at once. None of them quotes a secret.
pub fn connect(config: &Config) -> Result<Ports, ConnectError> {
    install_tls();
    let mut problems = Problems(Vec::new());
    let session = session(config, &mut problems).map(Arc::new);
    let ironic = session.as_ref().and_then(|session| ironic(config, session, &mut problems)).map(Arc::new);
    let controllers = controllers(config, &mut problems);
    let folder = boot_folder(config, &mut problems);
    let facts = folder.as_ref().zip(ironic.as_ref()).and_then(|(folder, ironic)| {
        let addresses = per_node(config, |node| node.ssh_address.clone());
        let facts = SshFacts::new(config.ssh.clone(), config.state_dir.join(KNOWN_HOSTS), addresses, macs(config), Arc::clone(folder), Arc::clone(ironic));
        problems.take("ssh", facts)
    });
    let setup = problems.take("setup", SetupScripts::new(config.setup.as_ref(), config.scripts_dir()));
    let alerting = alerting(config, &mut problems);
    let cluster = cluster(config, &mut problems);
    match (session, folder, ironic, facts, setup) {
        (Some(session), Some(netboot), Some(rebuilder), Some(facts), Some(setup)) if problems.0.is_empty() => {
            let nova = Arc::new(Nova::new(session, per_node(config, |node| node.nova_host.clone())));
            let (compute, canaries) = (Arc::clone(&nova), Arc::clone(&nova));
            let bmc = Arc::new(Controllers::new(controllers, macs(config)));
            let silences = Arc::new(Alertmanager::new(alerting));
            let cluster = Arc::new(Kubernetes::new(cluster));
            Ok(Ports { compute, instances: nova, bmc, netboot, rebuilder, facts: Arc::new(facts), setup: Arc::new(setup), silences, cluster, canaries })
        }
        _ => Err(ConnectError { problems: problems.0 }),
    }
}

/// Of every node, whoever renews it.
fn macs(config: &Config) -> BTreeMap<NodeName, String> {
    per_node(config, |node| node.mac().to_owned())
}

fn session(config: &Config, problems: &mut Problems) -> Option<Session> {
    let config::OpenStack { clouds_file, cloud, request_timeout, poll: _ } = &config.openstack;
    match clouds::read(clouds_file, cloud) {
        Ok(cloud) => problems.take("openstack", Session::new(cloud, *request_timeout, Arc::new(SystemClock))),
        Err(errors) => {
            for error in errors {
                problems.add("openstack", error);
            }
            None
        }
    }
}

fn boot_folder(config: &Config, problems: &mut Problems) -> Option<Arc<BootFolder>> {
    let netboots = |(name, node): (&NodeName, &config::Node)| match &node.renewed_by {
        config::RenewedBy::Netboot { mac, bmc: _ } => Some((name.clone(), mac.clone())),
        config::RenewedBy::Ironic { .. } => None,
    };
    let macs = config.nodes.iter().filter_map(netboots).collect();
    let folder = match &config.netboot {
        Some(netboot) => BootFolder::new(netboot.directory.clone(), &netboot.url, macs, config.images.clone()),
        None => Ok(BootFolder::none()),
    };
    problems.take("netboot.url", folder).map(Arc::new)
}

fn controllers(config: &Config, problems: &mut Problems) -> BTreeMap<NodeName, Controller> {
    let mut controllers = BTreeMap::new();
    for (name, node) in &config.nodes {
        let what = format!("nodes.{name}.bmc");
        let config::RenewedBy::Netboot { mac: _, bmc } = &node.renewed_by else { continue };
        let controller = match bmc {
            config::Bmc::Redfish { url, system, user, password, ca_file } => {
                let password = problems.take(&what, read_secret(password));
                let trust = ca_file.as_deref().map_or(Some(Trust::System), |file| problems.take(&what, trust_file(file)));
                let base = problems.take(&what, base_url(url));
                let (Some(password), Some(trust), Some(base)) = (password, trust, base) else { continue };
                problems.take(&what, Redfish::new(base, system.clone(), user.clone(), password, &trust)).map(Controller::Redfish)
            }
            config::Bmc::Ipmi { address, port, user, password, cipher_suite } => {
                let Some(password) = problems.take(&what, read_secret(password).and_then(ipmi_password)) else { continue };
                Some(Controller::Ipmi(Ipmitool {
                    program: config.ipmi.program.clone(),
                    request_timeout: config.ipmi.request_timeout,
                    address: address.clone(),
                    port: *port,
                    user: user.clone(),
                    password,
                    cipher_suite: *cipher_suite,
                }))
            }
        };
        if let Some(controller) = controller {
            controllers.insert(name.clone(), controller);
        }
    }
    controllers
}

/// Whoever Ironic renews, and where it is.
fn ironic(config: &Config, session: &Arc<Session>, problems: &mut Problems) -> Option<Ironic> {
    let place = match &config.ironic.url {
        None => Some(Place::Catalogue(Arc::clone(session))),
        Some(url) => {
            let base = problems.take("ironic", base_url(url));
            let http = problems.take("ironic", Http::new(config.openstack.request_timeout, &Trust::System));
            base.zip(http).map(|(base, http)| Place::Url { http, base })
        }
    };
    let mut machines = BTreeMap::new();
    for (name, node) in &config.nodes {
        let config::RenewedBy::Ironic { node: known_as, mac } = &node.renewed_by else { continue };
        let drive = match &config.ironic.configdrive {
            None => Some(Drive::default()),
            Some(file) => problems.take("ironic.configdrive", Drive::read(Path::new(&file.replace("{node}", name.as_str())))),
        };
        if let Some(drive) = drive {
            machines.insert(name.clone(), Machine { known_as: known_as.clone(), mac: mac.clone(), drive });
        }
    }
    place.map(|place| Ironic::new(place, machines))
}

fn alerting(config: &Config, problems: &mut Problems) -> Option<Api> {
    let config::Silences { url, token, ca_file, matchers: _, lasts: _, alert_gate: _ } = config.silences.as_ref()?;
    let token = match token {
        Some(token) => Some(problems.take("silences", read_secret(token))?),
        None => None,
    };
    let trust = ca_file.as_deref().map_or(Some(Trust::System), |file| problems.take("silences", trust_file(file)))?;
    let base = problems.take("silences", base_url(url))?;
    problems.take("silences", Api::new(base, token, &trust))
}

fn cluster(config: &Config, problems: &mut Problems) -> Option<kubernetes::Api> {
    let config::Kubernetes { url, token, ca_file, request_timeout, drain_deadline: _, min_ready: _ } = config.kubernetes.as_ref()?;
    let token = problems.take("kubernetes", read_secret(token));
    let trust = ca_file.as_deref().map_or(Some(Trust::System), |file| problems.take("kubernetes", trust_file(file)));
    let base = problems.take("kubernetes", base_url(url));
    let (token, trust, base) = (token?, trust?, base?);
    problems.take("kubernetes", kubernetes::Api::new(base, &token, *request_timeout, &trust))
}

fn per_node(config: &Config, of: impl Fn(&config::Node) -> String) -> BTreeMap<NodeName, String> {
    config.nodes.iter().map(|(name, node)| (name.clone(), of(node))).collect()
}

fn trust_file(file: &Path) -> Result<Trust, BoxError> {
    Ok(Trust::only_file(file)?)
}

fn base_url(text: &str) -> Result<Url, BoxError> {
    match Url::parse(text) {
        Ok(url)
            if matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none() =>
        {
            Ok(url)
        }
        Ok(_) | Err(_) => Err("`url` is not an http or https URL of a host, without user and password".into()),
    }
}

fn ipmi_password(password: SecretText) -> Result<SecretText, BoxError> {
    if password.expose().len() > ipmitool::PASSWORD_BYTES_MAX {
        return Err(
            format!("the password has more than {} bytes, which IPMI 2.0 does not allow", ipmitool::PASSWORD_BYTES_MAX).into()
        );
    }
    Ok(password)
}

fn read_secret(secret: &Secret) -> Result<SecretText, BoxError> {
    secret.read().map_err(|error| format!("{error}; {}", error.remedy()).into())
}

struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, what: &str, source: impl Into<BoxError>) {
        self.0.push(Problem { what: what.to_owned(), source: source.into() });
    }

    fn take<T, E: Into<BoxError>>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(what, error);
                None
            }
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(f, "{count} {} with what the configuration points to", if count == 1 { "problem" } else { "problems" })?;
        for Problem { what, source } in &self.problems {
            write!(f, "\n  {what}: {source}")?;
            let mut cause = source.source();
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}

impl Error for ConnectError {}
