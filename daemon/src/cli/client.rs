//! The daemon, as the command reaches it.

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
/// Tries of an order whose answer was lost. It carries an idempotency key, so it is carried out once.
const ORDER_TRIES: u32 = 3;
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

    /// An order, carried out once however often it has to be sent.
    pub(super) async fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, CliError> {
        let key = format!("{:032x}", rand::rng().random::<u128>());
        for attempt in 1.. {
            let request = self.request(Method::POST, path).header("idempotency-key", &key).json(body);
            let sent = request.timeout(ANSWER_WITHIN).send().await;
            match &sent {
                Err(error) if attempt < ORDER_TRIES && !error.is_connect() => {
                    say("the connection to the daemon was lost; asking again");
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                Ok(_) | Err(_) => return self.answer(sent).await,
            }
        }
        Err(CliError::Answer { what: "none came".to_owned() })
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

/// What the daemon said, ready to be shown: texts from outside are escaped.
pub(super) fn read<T: DeserializeOwned>(answer: Value) -> Result<T, CliError> {
    serde_json::from_value(clean_all(answer)).map_err(|error| CliError::Answer { what: error.to_string() })
}
