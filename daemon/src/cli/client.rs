//! The daemon, as the command reaches it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::Rng as _;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::CliError;
use super::out::{clean_all, say};
use crate::wire::ProblemView;

/// Where a configuration is looked for if nobody says.
pub(crate) const CONFIG: &str = "/etc/turnaround/config.toml";
/// Where the socket is if no configuration can be read: the default of `daemon.socket`.
const SOCKET: &str = "/run/turnaround/api.sock";
/// The host does not matter on a unix socket.
const BASE: &str = "http://turnaround";
/// A daemon answers within milliseconds, or, while Redis is silent, within `store.reply_timeout` (at most 30 s).
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Tries of a request whose answer was lost: ten seconds, more than a restart of the daemon or of Redis takes.
const ORDER_TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

pub(super) struct Client {
    socket: PathBuf,
    http: reqwest::Client,
}

impl Client {
    /// The client for the socket that was given, or that the configuration names.
    pub(super) fn find(socket: Option<PathBuf>, config: Option<&Path>) -> Result<Client, CliError> {
        let socket = match (socket, config) {
            (Some(socket), _) => socket,
            (None, Some(path)) => match turnaround_config::check(path) {
                Ok(config) => config.daemon.socket,
                Err(report) => return Err(CliError::Config { path: path.to_owned(), report: report.for_stderr() }),
            },
            // Operators need not be able to read the daemon's configuration, and a mistake in it must not
            // keep them from seeing what the running daemon does.
            (None, None) => turnaround_config::check(Path::new(CONFIG)).map_or(SOCKET.into(), |config| config.daemon.socket),
        };
        // reqwest builds its TLS set-up although a unix socket has none. Set already: as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().unix_socket(socket.as_path()).no_proxy().tls_certs_only([]).build();
        let http = http.map_err(|error| CliError::Local { what: "could not set up HTTP".to_owned(), source: error.into() })?;
        Ok(Client { socket, http })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{BASE}{path}"))
    }

    /// The answer as the daemon gave it.
    pub(super) async fn get(&self, path: &str) -> Result<Value, CliError> {
        let sent = self.request(Method::GET, path).timeout(ANSWER_WITHIN).send().await;
        self.answer(sent).await
    }

    /// A request that changes something, carried out once however often it has to be sent.
    pub(super) async fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, CliError> {
        self.post_once(path, body, &fresh_key()).await
    }

    /// The same, under a key that names it: also another command with this key carries it out once.
    pub(super) async fn post_once(&self, path: &str, body: &impl Serialize, key: &str) -> Result<Value, CliError> {
        self.post_counted(path, body, key).await.0
    }

    /// Also how many tries it took: what is refused at a later one may have been done by an earlier one, whose answer was lost.
    pub(super) async fn post_counted(&self, path: &str, body: &impl Serialize, key: &str) -> (Result<Value, CliError>, u32) {
        let mut attempt = 1;
        loop {
            let request = self.request(Method::POST, path).header("idempotency-key", key).json(body);
            let sent = request.timeout(ANSWER_WITHIN).send().await;
            // Nobody took the connection, so nobody took the request.
            let unheard = sent.as_ref().is_err_and(reqwest::Error::is_connect);
            let error = match self.answer(sent).await {
                Ok(answer) => return (Ok(answer), attempt),
                Err(error) => error,
            };
            let passing = match &error {
                CliError::Unreachable { .. } => !unheard || attempt > 1,
                CliError::Problem(problem) => problem.kind.ends_with(":store-unavailable"),
                _ => false,
            };
            if !passing {
                return (Err(error), attempt);
            }
            if attempt >= ORDER_TRIES {
                return (Err(CliError::OrderUnknown { key: key.to_owned(), source: Box::new(error) }), attempt);
            }
            if attempt == 1 {
                say("no answer; asking again");
            }
            attempt += 1;
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }

    /// A stream of server-sent events. No time limit: nothing may happen for hours.
    pub(super) async fn stream(&self, path: &str, after: Option<&str>) -> Result<Response, CliError> {
        let mut request = self.request(Method::GET, path);
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        match self.answer(Ok(response)).await {
            Ok(_) => Err(CliError::Answer { what: "no stream of events".to_owned() }),
            Err(error) => Err(error),
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> CliError {
        if is_denied(&error) {
            return CliError::SocketDenied { socket: self.socket.clone(), group: group_of(&self.socket) };
        }
        CliError::Unreachable { socket: self.socket.clone(), source: error.without_url().into() }
    }

    async fn answer(&self, sent: Result<Response, reqwest::Error>) -> Result<Value, CliError> {
        let response = sent.map_err(|error| self.unreachable(error))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.unreachable(error))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| CliError::Answer { what: error.to_string() });
        }
        let problem = serde_json::from_slice::<ProblemView>(&body).map_err(|_| CliError::Answer { what: status.to_string() })?;
        Err(CliError::Problem(problem))
    }
}

/// Does the system not let us open the socket? Then nobody can say whether a daemon is behind it.
fn is_denied(error: &reqwest::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Of the socket, or, where that can't be seen, of the folder that it is in.
fn group_of(socket: &Path) -> Option<String> {
    let of = |path: &Path| std::fs::metadata(path).ok().map(|found| found.gid());
    let gid = of(socket).or_else(|| of(socket.parent()?))?;
    let group = nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(gid)).ok()??;
    Some(group.name)
}

/// What the daemon said, ready to be shown: texts from outside are escaped.
pub(super) fn read<T: DeserializeOwned>(answer: Value) -> Result<T, CliError> {
    serde_json::from_value(clean_all(answer)).map_err(|error| CliError::Answer { what: error.to_string() })
}

/// A key that nobody has used.
pub(super) fn fresh_key() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}
