//! Nova, as [`ComputeServices`], [`Instances`] and [`Canaries`].
//!
//! An own thin client on reqwest. `openstack_sdk` was built and weighed: it costs 141 s of a cold build and 99 crates, brings
//! interactive prompts and a browser opener, and sends a request again by itself; whether a request may be sent again is
//! what this adapter is about. Of Placement and Neutron it only reads.
//!
//! The microversion is pinned: what a call means never changes because somebody upgraded Nova. What real Nova answered
//! to each of these calls (33.0.2) is held fast in `worker/tests/contract_nova.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};
use reqwest::Url;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use turnaround_config::NodeName;
use turnaround_workflows::ports::{PortError, PortErrorKind};

use super::http::{Answer, Effect, Request, foreign_text};
use super::keystone::{Session, Token};
use super::late::in_time;

mod canary;
mod instances;
mod neutron;
mod placement;
mod services;
mod wire;

#[allow(unused_imports, reason = "named in the module's documentation")]
use turnaround_workflows::ports::{Canaries, ComputeServices, Instances};

/// The microversion that is asked for where Nova has it: that of 2024.1, the first in which a server says to which availability zone it is bound.
// An older Nova is spoken to in its newest. Not `latest`: from 2.102 on, unknown query parameters are refused.
const MICROVERSION: Microversion = Microversion { major: 2, minor: 96 };

/// The oldest microversion that will do: that of Pike.
// Services have UUIDs and `PUT /os-services/{id}` from 2.53 on.
const MICROVERSION_MIN: Microversion = Microversion { major: 2, minor: 53 };

/// One page of a listing.
// Nova's own largest page is 1,000 by default; it may be set lower, and then its own value counts.
const PAGE: u32 = 1000;

/// More pages than this are no listing.
// 100,000 instances on one host, or migrations from it.
const PAGES_MAX: u32 = 100;

/// Nova of one cloud.
pub(crate) struct Nova {
    session: Arc<Session>,
    /// Under which host name Nova knows each node.
    hosts: BTreeMap<NodeName, String>,
    /// Looked up again with every new token: the catalogue comes with it, and Nova may have been upgraded since.
    api: Mutex<Option<Api>>,
}

#[derive(Clone)]
struct Api {
    token: Arc<Token>,
    /// Without a slash at its end.
    base: Url,
    microversion: Microversion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Microversion {
    major: u32,
    minor: u32,
}

/// One call: what it is for, in the words of an error message, and what is sent.
struct Call<'a> {
    operation: String,
    method: Method,
    path: &'a [&'a str],
    query: Vec<(&'a str, String)>,
    body: Option<Value>,
    /// At most this microversion, for what a newer one leaves out.
    at_most: Microversion,
}

/// Which answer an error is about.
#[derive(Debug, thiserror::Error)]
#[error("Nova answered HTTP {status} (request {request}){said}")]
struct NovaAnswered {
    status: u16,
    request: String,
    /// Nova's words, where the error itself has no room for them.
    said: String,
}

#[derive(Deserialize)]
struct VersionDocument {
    version: Version,
}

#[derive(Deserialize)]
struct Version {
    version: String,
    min_version: String,
}

impl Nova {
    /// Nova of the cloud of `session`; `hosts` says under which name it knows each node.
    pub(crate) fn new(session: Arc<Session>, hosts: BTreeMap<NodeName, String>) -> Nova {
        Nova { session, hosts, api: Mutex::new(None) }
    }

    /// Nova's name for `node`.
    ///
    /// # Errors
    /// `Refused` for a node that isn't in the configuration: it isn't ours to touch.
    fn host(&self, node: &NodeName, operation: &str) -> Result<&str, PortError> {
        self.hosts.get(node).map(String::as_str).ok_or_else(|| {
            let reason = format!("{node} is not a node of the configuration");
            PortError::new(operation, PortErrorKind::Refused { reason })
        })
    }

    /// The name that we know a host by: the node's own, where the host is one of ours. Callers compare it with node names.
    fn our_name(&self, host: String) -> String {
        let node = self.hosts.iter().find(|(_, known)| **known == host).map(|(node, _)| node.as_str().to_owned());
        node.unwrap_or(host)
    }

    /// Nova's name for a host that [`Nova::our_name`] has named.
    fn their_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.hosts.iter().find(|(node, _)| node.as_str() == name).map_or(name, |(_, host)| host)
    }

    /// Sends one call and returns its answer if it is a success.
    ///
    /// A 401 comes before anything is carried out, so the call is sent once more with a new token. 404 is `NotFound` only
    /// where Nova itself says so: a wrong address or a proxy must not look like an answer.
    async fn send(&self, call: Call<'_>) -> Result<Answer, PortError> {
        let effect = if call.method == Method::GET { Effect::None } else { Effect::Some };
        let decided = Instant::now();
        let mut token = self.session.token().await.map_err(|error| error.before(&call.operation))?;
        let mut answer = self.send_with(&call, &token, effect, decided).await?;
        if answer.as_ref().is_none_or(|answer| answer.status.as_u16() == 401) {
            token = self.session.renew(&token).await.map_err(|error| error.before(&call.operation))?;
            answer = self.send_with(&call, &token, effect, decided).await?;
        }
        let Some(answer) = answer else {
            let reason = "Nova accepts no token that Keystone gives".to_owned();
            return Err(PortError::new(&call.operation, PortErrorKind::Denied { reason }));
        };
        if answer.status.is_success() {
            return Ok(answer);
        }
        let said = answer.fault();
        let kind = match (answer.status.as_u16(), &said) {
            (404, Some(_)) => PortErrorKind::NotFound,
            (404, None) => PortErrorKind::Garbled { reason: "HTTP 404 that is not Nova's own; is its address right?".to_owned() },
            _ => answer.refusal(effect, said.clone()),
        };
        let request = answer.header("x-openstack-request-id").unwrap_or("without an id").to_owned();
        tracing::debug!(operation = %call.operation, status = answer.status.as_u16(), request, "Nova refused a call");
        let said = match (&kind, said) {
            (PortErrorKind::OutcomeUnknown | PortErrorKind::Unavailable, Some(said)) => format!(": {said}"),
            _ => String::new(),
        };
        Err(PortError::new(&call.operation, kind).with_source(NovaAnswered { status: answer.status.as_u16(), request, said }))
    }

    /// Sends one call with `token`, once; one that changes something soon after it was `decided`, or not at all. None where Nova did not even tell its version to this
    /// token.
    async fn send_with(&self, call: &Call<'_>, token: &Arc<Token>, effect: Effect, decided: Instant) -> Result<Option<Answer>, PortError> {
        let Some(api) = self.api(token).await.map_err(|error| error.before(&call.operation))? else { return Ok(None) };
        if effect == Effect::Some {
            in_time(decided, &call.operation, "get a token that Nova takes")?;
        }
        let answer = self.session.http().send(&call.request(&api)).await;
        answer.map(Some).map_err(|failure| PortError::new(&call.operation, failure.kind(effect)).with_source(failure))
    }

    /// Reads one document. `expected` says what it is, for an error.
    async fn document<T: DeserializeOwned>(&self, call: Call<'_>, expected: &str) -> Result<T, PortError> {
        let operation = call.operation.clone();
        let answer = self.send(call).await?;
        answer.json(expected).map_err(|reason| PortError::new(operation, PortErrorKind::Garbled { reason }))
    }

    /// Reads from another service of the same cloud, by the request that `asked` makes of a token.
    // A 401 comes before anything is looked at.
    async fn look(&self, operation: &str, asked: impl Fn(&Token) -> Result<Request, PortError> + Sync) -> Result<Answer, PortError> {
        let before = |error: PortError| error.before(operation);
        let mut token = self.session.token().await.map_err(before)?;
        let mut answer = self.session.http().send(&asked(&token)?).await;
        if answer.as_ref().is_ok_and(|answer| answer.status.as_u16() == 401) {
            token = self.session.renew(&token).await.map_err(before)?;
            answer = self.session.http().send(&asked(&token)?).await;
        }
        answer.map_err(|failure| PortError::new(operation, failure.kind(Effect::None)).with_source(failure))
    }

    /// Where Nova is and which microversion it is spoken to in. None where `token` is refused.
    async fn api(&self, token: &Arc<Token>) -> Result<Option<Api>, PortError> {
        let mut kept = self.api.lock().await;
        if kept.as_ref().is_none_or(|api| !Arc::ptr_eq(&api.token, token)) {
            *kept = self.discover(token).await?;
        }
        Ok(kept.clone())
    }

    async fn discover(&self, token: &Arc<Token>) -> Result<Option<Api>, PortError> {
        let operation = "ask Nova for its version";
        let garbled = |reason| PortError::new(operation, PortErrorKind::Garbled { reason });
        let base = self.session.compute_endpoint(token)?;
        let mut url = base.clone();
        url.set_path(&format!("{}/", base.path().trim_end_matches('/')));
        let request = Request::new(Method::GET, url).header(X_AUTH_TOKEN, token.value.clone());
        let answer = self.session.http().send(&request).await;
        let answer = answer.map_err(|failure| PortError::new(operation, failure.kind(Effect::None)).with_source(failure))?;
        if answer.status.as_u16() == 401 {
            return Ok(None);
        }
        if answer.status.as_u16() == 404 {
            return Err(garbled("there is no Nova at the address that the catalogue gives".to_owned()));
        }
        if !answer.status.is_success() {
            let status = format!("HTTP {}", answer.status.as_u16());
            return Err(PortError::new(operation, answer.refusal(Effect::None, answer.fault())).with_source(status));
        }
        let VersionDocument { version } = answer.json("Nova's version document").map_err(garbled)?;
        let parse =
            |text: &str| Microversion::parse(text).ok_or_else(|| garbled(format!("`{}` is no microversion", foreign_text(text))));
        let microversion = choose(parse(&version.min_version)?, parse(&version.version)?)
            .map_err(|reason| PortError::new(operation, PortErrorKind::Refused { reason }))?;
        tracing::debug!(%microversion, newest = %version.version, "Nova found");
        Ok(Some(Api { token: Arc::clone(token), base, microversion }))
    }
}

const X_AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
const OPENSTACK_API_VERSION: HeaderName = HeaderName::from_static("openstack-api-version");

/// The microversion to speak, given what Nova offers.
fn choose(oldest: Microversion, newest: Microversion) -> Result<Microversion, String> {
    let chosen = newest.min(MICROVERSION);
    if chosen < MICROVERSION_MIN {
        Err(format!("its newest microversion is {newest}, and {MICROVERSION_MIN} (OpenStack Pike) is the oldest that will do"))
    } else if chosen < oldest {
        Err(format!(
            "its oldest microversion is {oldest}, and this release of Turnaround speaks {MICROVERSION}: update Turnaround"
        ))
    } else {
        Ok(chosen)
    }
}

impl Microversion {
    fn parse(text: &str) -> Option<Microversion> {
        let (major, minor) = text.split_once('.')?;
        Some(Microversion { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for Microversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl<'a> Call<'a> {
    fn get(operation: impl Into<String>, path: &'a [&'a str]) -> Call<'a> {
        Call { operation: operation.into(), method: Method::GET, path, query: Vec::new(), body: None, at_most: MICROVERSION }
    }

    fn remove(operation: impl Into<String>, path: &'a [&'a str]) -> Call<'a> {
        Call { operation: operation.into(), method: Method::DELETE, path, query: Vec::new(), body: None, at_most: MICROVERSION }
    }

    fn change(operation: impl Into<String>, method: Method, path: &'a [&'a str], body: Value) -> Call<'a> {
        Call { operation: operation.into(), method, path, query: Vec::new(), body: Some(body), at_most: MICROVERSION }
    }

    fn query(mut self, key: &'a str, value: impl Into<String>) -> Call<'a> {
        self.query.push((key, value.into()));
        self
    }

    fn at_most(mut self, microversion: Microversion) -> Call<'a> {
        self.at_most = microversion;
        self
    }

    fn request(&self, api: &Api) -> Request {
        let mut url = api.base.clone();
        // An http URL always has a path to extend.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(self.path);
        }
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        let request =
            Request::new(self.method.clone(), url).json(self.body.as_ref()).header(X_AUTH_TOKEN, api.token.value.clone());
        match HeaderValue::from_str(&format!("compute {}", api.microversion.min(self.at_most))) {
            Ok(version) => request.header(OPENSTACK_API_VERSION, version),
            Err(_) => unreachable!("digits and a dot are a header value"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(oldest: &str, newest: &str) -> Result<String, String> {
        choose(Microversion::parse(oldest).unwrap(), Microversion::parse(newest).unwrap()).map(|chosen| chosen.to_string())
    }

    #[test]
    fn the_microversion_is_pinned_and_an_old_nova_is_told_so() {
        assert_eq!(check("2.1", "2.103"), Ok("2.96".to_owned()));
        assert_eq!(check("2.1", "2.95"), Ok("2.95".to_owned()));
        assert_eq!(check("2.1", "2.93"), Ok("2.93".to_owned()));
        assert_eq!(check("2.1", "2.53"), Ok("2.53".to_owned()));
        assert_eq!(
            check("2.1", "2.52"),
            Err("its newest microversion is 2.52, and 2.53 (OpenStack Pike) is the oldest that will do".to_owned())
        );
        assert_eq!(
            check("2.97", "2.150"),
            Err("its oldest microversion is 2.97, and this release of Turnaround speaks 2.96: update Turnaround".to_owned())
        );
    }
}
