//! A session with Keystone: a token that is always good, and where Nova is according to the catalogue.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use http::{HeaderValue, Method};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use turnaround_config::SecretText;
use turnaround_workflows::clock::{Clock, Timestamp};
use turnaround_workflows::ports::{PortError, PortErrorKind};

use super::clouds::{Cloud, Credential, Domain, Identity, Named};
use super::http::{Answer, BoxError, Effect, Http, Request};
use super::tls::Trust;

/// A token is replaced this long before it expires.
// Longer than any single request may take, so that none is under way with a token that ends; tokens live hours.
const RENEW_BEFORE_EXPIRY: Duration = Duration::from_secs(120);

/// Where Keystone has refused our credentials, it is not asked with them again for so long, twice as long each time: many sites lock an account after a handful
/// of failures (`lockout_failure_attempts`), and each call of each step would be one.
const REFUSED_PAUSE_FIRST: Duration = Duration::from_secs(60);
/// Where an account was locked, it opens again after `lockout_duration`, which is half an hour unless a site says otherwise.
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(30 * 60);

/// One cloud, and the token that is used for it at present.
pub(crate) struct Session {
    http: Http,
    cloud: Cloud,
    clock: Arc<dyn Clock>,
    kept: Mutex<Kept>,
}

/// What Keystone has said.
#[derive(Debug, Default)]
struct Kept {
    token: Option<Arc<Token>>,
    refusal: Option<Refusal>,
}

/// Keystone has refused our credentials.
#[derive(Debug)]
struct Refusal {
    at: Timestamp,
    /// So many times in a row.
    times: u32,
    reason: String,
}

impl Refusal {
    /// Why it is not asked again at `now`. None: it is.
    fn stands(&self, now: Timestamp) -> Option<PortErrorKind> {
        let pause = (REFUSED_PAUSE_FIRST * 2_u32.saturating_pow(self.times.saturating_sub(1))).min(REFUSED_PAUSE_MAX);
        let passed = now.since(self.at);
        let ask_at = self.at + pause;
        let reason = || format!("{} (said {} s ago; not asked again before {ask_at}, or until the workers are restarted: each try may be counted, and lock the account)", self.reason, passed.as_secs());
        (passed < pause).then(|| PortErrorKind::Denied { reason: reason() })
    }
}

/// A scoped token with its catalogue.
#[derive(Debug)]
pub(crate) struct Token {
    /// For `X-Auth-Token`. Marked as sensitive.
    pub(crate) value: HeaderValue,
    expires: Timestamp,
    project: Option<String>,
    catalog: Vec<Service>,
}

#[derive(Debug, Deserialize)]
struct TokenDocument {
    token: TokenBody,
}

#[derive(Debug, Deserialize)]
struct TokenBody {
    expires_at: DateTime<Utc>,
    project: Option<Project>,
    #[serde(default)]
    catalog: Vec<Service>,
}

#[derive(Debug, Deserialize)]
struct Project {
    id: String,
}

#[derive(Debug, Deserialize)]
struct Service {
    r#type: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    interface: String,
    region_id: Option<String>,
    region: Option<String>,
    url: String,
}

impl Session {
    /// Nothing is asked of Keystone before the first [`Session::token`].
    ///
    /// # Errors
    /// The certificates named by `cloud` can't be used.
    pub(crate) fn new(cloud: Cloud, request_timeout: Duration, clock: Arc<dyn Clock>) -> Result<Session, BoxError> {
        let trust = match (&cloud.cacert, cloud.verify) {
            (_, false) => Trust::Anybody,
            (Some(file), true) => Trust::only_file(file)?,
            (None, true) => Trust::System,
        };
        Ok(Session { http: Http::new(request_timeout, &trust)?, cloud, clock, kept: Mutex::default() })
    }

    /// The client with which this cloud is reached: its services are under the same certificates.
    pub(crate) fn http(&self) -> &Http {
        &self.http
    }

    /// A token that is good for the next two minutes at least, as far as Keystone's word goes. However many ask at once,
    /// Keystone is asked once.
    ///
    /// # Errors
    /// `Denied` for wrong credentials, `Unavailable` where Keystone does not answer, `Garbled` where it isn't one.
    pub(crate) async fn token(&self) -> Result<Arc<Token>, PortError> {
        let mut kept = self.kept.lock().await;
        match &kept.token {
            Some(token) if token.expires > self.clock.now() + RENEW_BEFORE_EXPIRY => Ok(Arc::clone(token)),
            _ => self.ask(&mut kept).await,
        }
    }

    /// A token other than `refused`, which a service did not accept (revoked, or the clocks differ).
    pub(crate) async fn renew(&self, refused: &Token) -> Result<Arc<Token>, PortError> {
        let mut kept = self.kept.lock().await;
        match &kept.token {
            // Somebody else was refused too, and renewed it already.
            Some(token) if token.value != refused.value => Ok(Arc::clone(token)),
            _ => self.ask(&mut kept).await,
        }
    }

    async fn ask(&self, kept: &mut Kept) -> Result<Arc<Token>, PortError> {
        if let Some(denied) = kept.refusal.as_ref().and_then(|refusal| refusal.stands(self.clock.now())) {
            return Err(PortError::new(self.authenticates(), denied));
        }
        match self.authenticate().await {
            Ok(token) => {
                let token = Arc::new(token);
                *kept = Kept { token: Some(Arc::clone(&token)), refusal: None };
                Ok(token)
            }
            Err(error) => {
                if let PortErrorKind::Denied { reason } = &error.kind {
                    let times = kept.refusal.as_ref().map_or(0, |refusal| refusal.times).saturating_add(1);
                    kept.refusal = Some(Refusal { at: self.clock.now(), times, reason: reason.clone() });
                }
                Err(error)
            }
        }
    }

    fn authenticates(&self) -> String {
        format!("authenticate with Keystone for cloud `{}`", self.cloud.name)
    }

    /// Where Nova is: the configured endpoint, or the catalogue's for our interface and region.
    ///
    /// # Errors
    /// `Refused`, with what the catalogue offers instead.
    pub(crate) fn compute_endpoint(&self, token: &Token) -> Result<Url, PortError> {
        if let Some(url) = &self.cloud.compute_endpoint {
            return Ok(url.clone());
        }
        Ok(versioned(self.in_catalogue(token, "compute", "Nova")?, token.project.as_deref()))
    }

    /// Where Placement is, likewise.
    ///
    /// # Errors
    /// `Refused`, with what the catalogue offers instead.
    pub(crate) fn placement_endpoint(&self, token: &Token) -> Result<Url, PortError> {
        match &self.cloud.placement_endpoint {
            Some(url) => Ok(url.clone()),
            None => self.in_catalogue(token, "placement", "Placement"),
        }
    }

    /// Where Ironic is.
    ///
    /// # Errors
    /// `Refused`, with what the catalogue offers instead.
    pub(crate) fn baremetal_endpoint(&self, token: &Token) -> Result<Url, PortError> {
        self.in_catalogue(token, "baremetal", "Ironic")
    }

    /// Where Neutron is.
    ///
    /// # Errors
    /// `Refused`, with what the catalogue offers instead.
    pub(crate) fn network_endpoint(&self, token: &Token) -> Result<Url, PortError> {
        self.in_catalogue(token, "network", "Neutron")
    }

    fn in_catalogue(&self, token: &Token, kind: &str, name: &str) -> Result<Url, PortError> {
        let refuse = |reason| {
            PortError::new(
                format!("find {name} in the catalogue of cloud `{}`", self.cloud.name),
                PortErrorKind::Refused { reason },
            )
        };
        let offered: Vec<&Endpoint> =
            token.catalog.iter().filter(|service| service.r#type == kind).flat_map(|service| &service.endpoints).collect();
        let mut fitting: Vec<&Endpoint> = offered.iter().copied().filter(|endpoint| self.fits(endpoint)).collect();
        fitting.dedup_by(|one, other| one.url == other.url);
        let [endpoint] = fitting.as_slice() else {
            let list = offered.iter().map(|endpoint| endpoint.describe()).collect::<Vec<_>>().join(", ");
            let region = self.cloud.region.as_ref().map_or_else(String::new, |region| format!(" in region `{region}`"));
            return Err(refuse(format!(
                "it has {} {kind} endpoints with interface `{}`{region}, and should have one; it has: {list}",
                fitting.len(),
                self.cloud.interface
            )));
        };
        match Url::parse(&endpoint.url) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
            Ok(_) | Err(_) => Err(refuse(format!("its {kind} endpoint is not an http or https URL"))),
        }
    }

    fn fits(&self, endpoint: &Endpoint) -> bool {
        let region = endpoint.region_id.as_ref().or(endpoint.region.as_ref());
        endpoint.interface == self.cloud.interface && self.cloud.region.as_ref().is_none_or(|ours| region == Some(ours))
    }

    async fn authenticate(&self) -> Result<Token, PortError> {
        let operation = || self.authenticates();
        let mut url = self.cloud.auth_url.clone();
        url.set_path(&format!("{}/auth/tokens", url.path()));
        let request = Request::new(Method::POST, url).json(Some(&self.cloud.identity.request()));
        // Asking for a token twice leaves a token that nobody uses: as harmless as a read.
        let answer = self
            .http
            .read(&request)
            .await
            .map_err(|failure| PortError::new(operation(), failure.kind(Effect::None)).with_source(failure))?;
        if answer.status.as_u16() == 404 {
            return Err(PortError::new(
                operation(),
                PortErrorKind::Garbled { reason: "there is no Keystone v3 at `auth_url`".to_owned() },
            ));
        }
        if answer.status.as_u16() != 201 {
            // Keystone's complaints may quote what it was given.
            let said = answer.fault().map(|said| self.cloud.identity.redact(&said));
            return Err(PortError::new(operation(), answer.refusal(Effect::None, said)));
        }
        let token =
            Token::from_answer(&answer).map_err(|reason| PortError::new(operation(), PortErrorKind::Garbled { reason }))?;
        tracing::debug!(cloud = %self.cloud.name, expires = %token.expires, "authenticated with Keystone");
        Ok(token)
    }
}

impl Token {
    /// Is there a service of this type in the catalogue, wherever?
    pub(crate) fn offers(&self, kind: &str) -> bool {
        self.catalog.iter().any(|service| service.r#type == kind)
    }

    fn from_answer(answer: &Answer) -> Result<Token, String> {
        let document: TokenDocument = answer.json("a token with `expires_at` and a `catalog`")?;
        let mut value = answer.headers.get("x-subject-token").cloned().ok_or("there is no X-Subject-Token")?;
        value.set_sensitive(true);
        let TokenBody { expires_at, project, catalog } = document.token;
        Ok(Token { value, expires: expires_at.into(), project: project.map(|project| project.id), catalog })
    }
}

impl Endpoint {
    fn describe(&self) -> String {
        let region = self.region_id.as_deref().or(self.region.as_deref()).unwrap_or("none");
        format!("{} (region {region})", self.interface)
    }
}

/// The address of Nova's API v2.1, without a slash at its end. Catalogues have it as `/v2.1`, as `/v2.1/PROJECT` (before
/// 2015), or leave the version out.
fn versioned(mut url: Url, project: Option<&str>) -> Url {
    let mut path = url.path().trim_end_matches('/').to_owned();
    if let Some(shorter) = project.and_then(|project| path.strip_suffix(project)).and_then(|rest| rest.strip_suffix('/')) {
        path = shorter.to_owned();
    }
    if !path.rsplit('/').next().is_some_and(|last| last.starts_with("v2")) {
        path.push_str("/v2.1");
    }
    url.set_path(&path);
    url
}

impl Identity {
    /// The body of `POST /v3/auth/tokens`.
    fn request(&self) -> Value {
        let (method, what, project) = match self {
            Identity::Password { user, password, project } => {
                let mut user = user.json();
                user["password"] = password.expose().into();
                ("password", json!({ "user": user }), Some(project))
            }
            Identity::ApplicationCredential { credential: Credential::Id(id), secret } => {
                ("application_credential", json!({ "id": id, "secret": secret.expose() }), None)
            }
            Identity::ApplicationCredential { credential: Credential::Name { name, user }, secret } => {
                ("application_credential", json!({ "name": name, "user": user.json(), "secret": secret.expose() }), None)
            }
            Identity::Token { token, project } => ("token", json!({ "id": token.expose() }), project.as_ref()),
        };
        let mut auth = json!({ "identity": { "methods": [method], method: what } });
        if let Some(project) = project {
            auth["scope"] = json!({ "project": project.json() });
        }
        json!({ "auth": auth })
    }

    fn secret(&self) -> &SecretText {
        match self {
            Identity::Password { password: secret, .. }
            | Identity::ApplicationCredential { secret, .. }
            | Identity::Token { token: secret, .. } => secret,
        }
    }

    fn redact(&self, text: &str) -> String {
        text.replace(self.secret().expose(), "(secret)")
    }
}

impl Named {
    fn json(&self) -> Value {
        match self {
            Named::Id(id) => json!({ "id": id }),
            Named::Name { name, domain: Domain::Id(id) } => json!({ "name": name, "domain": { "id": id } }),
            Named::Name { name, domain: Domain::Name(domain) } => json!({ "name": name, "domain": { "name": domain } }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_that_were_refused_are_tried_again_later_and_later() {
        let at = Timestamp::from_millis(1_000_000);
        let stands = |times: u32, after: u64| Refusal { at, times, reason: "no".to_owned() }.stands(at + Duration::from_secs(after)).is_some();
        for (times, pause) in [(1, 60), (2, 120), (3, 240), (6, 1_800), (u32::MAX, 1_800)] {
            assert!(stands(times, pause - 1) && !stands(times, pause), "{times}");
        }
    }
}
