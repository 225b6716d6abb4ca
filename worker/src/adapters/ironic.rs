//! Ironic, as [`Rebuilder`]: nodes that it has as `active` are rebuilt in place (Bare Metal API reference, "Nodes" and "Node Provisioning";
//! what Ironic 35.0.1 answered to each of these calls is told in `docs/ironic.md`).
//!
//! An order is written into the node's `extra.turnaround`, and the image into its `instance_info`, by one PATCH. The rebuild carries a
//! configdrive: cloud-init on the new system writes our mark (`/etc/turnaround/installed`), with the token of that very order. So
//! what Ironic says, and what the node says, are about the same attempt, or it is noticed.
//!
//! Where a request has no answer, the node's `provision_updated_at` tells whether it was carried out: Ironic changes the state before it answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderName, HeaderValue, Method};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use turnaround_config::NodeName;
use turnaround_workflows::ports::{Installed, PROTECTED_BY_US, PortError, PortErrorKind, RebuildOrder, RebuildRecord, RebuildState, Rebuilder, Token};

use super::configdrive::Drive;
use super::http::{Answer, Effect, Failure, Http, Request, foreign_text};
use super::keystone::Session;

/// That of Ussuri. It has all that is read here: `protected` (1.48), `allocation_uuid` (1.52), a configdrive as a document (1.56), `retired` (1.61).
const MICROVERSION: HeaderValue = HeaderValue::from_static("1.65");
const API_VERSION: HeaderName = HeaderName::from_static("x-openstack-ironic-api-version");
const X_AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// Where in a node's `extra` our order stands.
const ORDER: &str = "turnaround";

/// Where Ironic is.
pub(crate) enum Place {
    /// Where the catalogue says, with the session's token.
    Catalogue(Arc<Session>),
    /// There, without credentials.
    Url { http: Http, base: Url },
}

/// A node that it renews.
pub(crate) struct Machine {
    /// Its name or UUID there.
    pub(crate) known_as: String,
    /// Of a port that it must have: a name alone would not tell it from another machine.
    pub(crate) mac: String,
    /// What it is given by the site itself.
    pub(crate) drive: Drive,
}

/// One site's Ironic.
pub(crate) struct Ironic {
    place: Place,
    machines: BTreeMap<NodeName, Machine>,
}

/// What becomes of a call whose token turns out not to be good any more. (A 401 comes before anything is carried out.)
#[derive(Clone, Copy, PartialEq, Eq)]
enum Renewal {
    /// It is sent again with a new one.
    SentAgain,
    /// It is not: what was looked at before it may be old by then, and whoever sent it may not be the workflow's worker any more.
    NotSentAgain,
}

impl Renewal {
    /// How long a token is waited for.
    fn patience(self) -> Duration {
        match self {
            // Keystone's own time limit is the session's.
            Renewal::SentAgain => Duration::MAX,
            // It was there a moment ago, for the look at the record.
            Renewal::NotSentAgain => TOKEN_IS_THERE_WITHIN,
        }
    }
}

/// A token that is waited for longer than this makes a look old.
const TOKEN_IS_THERE_WITHIN: Duration = Duration::from_secs(2);

/// What was ordered for a node, and whether it is still being installed.
pub(crate) struct Ordered {
    pub(crate) token: Token,
    pub(crate) installing: bool,
}

/// A node's document, as far as it is read.
#[derive(Deserialize)]
struct Document {
    uuid: String,
    /// Null for a node that nobody uses, before microversion 1.2.
    provision_state: Option<String>,
    provision_updated_at: Option<String>,
    reservation: Option<String>,
    maintenance: bool,
    maintenance_reason: Option<String>,
    protected: bool,
    protected_reason: Option<String>,
    retired: bool,
    retired_reason: Option<String>,
    instance_uuid: Option<String>,
    allocation_uuid: Option<String>,
    last_error: Option<String>,
    #[serde(default)]
    extra: Map<String, Value>,
    #[serde(default)]
    instance_info: Map<String, Value>,
}

#[derive(Deserialize)]
struct Ports {
    ports: Vec<Port>,
}

#[derive(Deserialize)]
struct Port {
    address: String,
}

impl Document {
    fn token(&self) -> Option<Token> {
        Some(Token(self.extra.get(ORDER)?.get("token")?.as_str()?.to_owned()))
    }

    fn called(&self) -> &str {
        self.provision_state.as_deref().unwrap_or("available")
    }

    /// Ironic's states (`ironic/common/states.py`).
    fn state(&self) -> RebuildState {
        match self.called() {
            "active" => RebuildState::Installed,
            // `wait call-back` is a deployment whose ramdisk has not reported yet: nobody has a lock meanwhile.
            "deploying" | "wait call-back" | "deploy hold" => RebuildState::Working,
            "deploy failed" => RebuildState::Failed,
            _ => RebuildState::Other,
        }
    }

    fn protected_by_us(&self) -> bool {
        self.protected && self.protected_reason.as_ref().is_some_and(|reason| reason.starts_with(PROTECTED_BY_US))
    }

    /// Ironic itself rebuilds a node that is retired or somebody's instance, and only refuses the first two.
    fn objections(&self, node: &NodeName) -> Vec<String> {
        let because = |reason: &Option<String>| reason.as_ref().map_or_else(String::new, |reason| format!(": {}", foreign_text(reason)));
        let mut objections = Vec::new();
        if self.maintenance {
            objections.push(format!("Ironic has {node} in maintenance{}", because(&self.maintenance_reason)));
        }
        if self.protected && !self.protected_by_us() {
            objections.push(format!("Ironic has {node} protected{}", because(&self.protected_reason)));
        }
        if self.retired {
            objections.push(format!("Ironic has {node} retired{}", because(&self.retired_reason)));
        }
        // An allocation is how an operator takes a node for himself; it has one id for both.
        if let Some(instance) = self.instance_uuid.as_ref().filter(|instance| Some(*instance) != self.allocation_uuid.as_ref()) {
            objections.push(format!("for Ironic, {node} is the machine of instance {}", foreign_text(instance)));
        }
        objections
    }
}

impl Ironic {
    pub(crate) fn new(place: Place, machines: BTreeMap<NodeName, Machine>) -> Ironic {
        Ironic { place, machines }
    }

    fn machine(&self, node: &NodeName, operation: &str) -> Result<&Machine, PortError> {
        self.machines.get(node).ok_or_else(|| {
            let reason = format!("{node} is not a node of the configuration that Ironic renews");
            PortError::new(operation, PortErrorKind::Refused { reason })
        })
    }

    /// Is it one that Ironic renews?
    pub(crate) fn renews(&self, node: &NodeName) -> bool {
        self.machines.contains_key(node)
    }

    /// None where no order of ours is on record.
    pub(crate) async fn ordered(&self, node: &NodeName, operation: &str) -> Result<Option<Ordered>, PortError> {
        let found = self.read(node, operation).await?;
        let installing = found.state() != RebuildState::Installed || found.reservation.is_some();
        Ok(found.token().map(|token| Ordered { token, installing }))
    }

    async fn read(&self, node: &NodeName, operation: &str) -> Result<Document, PortError> {
        let machine = self.machine(node, operation)?;
        let answer = self.send(operation, Method::GET, &["nodes", &machine.known_as], &[], None, Renewal::SentAgain).await?;
        answer.json("a node of Ironic's").map_err(|reason| PortError::new(operation, PortErrorKind::Garbled { reason }))
    }

    /// What is wrong with the ports of `found`, one of which must have the machine's address.
    async fn another_machine(&self, machine: &Machine, found: &Document, operation: &str) -> Result<Option<String>, PortError> {
        let mac = &machine.mac;
        let query = [("node", found.uuid.as_str()), ("fields", "address")];
        let answer = self.send(operation, Method::GET, &["ports"], &query, None, Renewal::SentAgain).await?;
        let ports: Ports = answer.json("a list of ports").map_err(|reason| PortError::new(operation, PortErrorKind::Garbled { reason }))?;
        let has = ports.ports.iter().any(|port| port.address.eq_ignore_ascii_case(mac));
        Ok((!has).then(|| format!("Ironic's record `{}` is of another machine: it has no port with the address {mac}", machine.known_as)))
    }

    /// Sends one call, and returns its answer if it is a success.
    async fn send(
        &self,
        operation: &str,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
        renewal: Renewal,
    ) -> Result<Answer, PortError> {
        let request = |base: &Url| {
            let mut url = base.clone();
            // An http URL always has a path to extend. Catalogues have the version in it, or leave it out.
            if let Ok(mut segments) = url.path_segments_mut() {
                segments.pop_if_empty();
                if !base.path().trim_end_matches('/').ends_with("/v1") {
                    segments.push("v1");
                }
                segments.extend(path);
            }
            if !query.is_empty() {
                url.query_pairs_mut().extend_pairs(query);
            }
            Request::new(method.clone(), url).json(body).header(API_VERSION, MICROVERSION)
        };
        let effect = if method == Method::GET { Effect::None } else { Effect::Some };
        let unanswered = |failure: Failure| PortError::new(operation, failure.kind(effect)).with_source(failure);
        let answer = match &self.place {
            Place::Url { http, base } => http.send(&request(base)).await.map_err(unanswered)?,
            Place::Catalogue(session) => {
                let before = |error: PortError| error.before(operation);
                let late = |_| PortError::new(operation, PortErrorKind::Unavailable).with_source("Keystone takes too long");
                let token = tokio::time::timeout(renewal.patience(), session.token()).await.map_err(late)?.map_err(before)?;
                let base = session.baremetal_endpoint(&token).map_err(before)?;
                let answer = session.http().send(&request(&base).header(X_AUTH_TOKEN, token.value.clone())).await.map_err(unanswered)?;
                if answer.status.as_u16() == 401 {
                    let token = session.renew(&token).await.map_err(before)?;
                    if renewal == Renewal::NotSentAgain {
                        return Err(PortError::new(operation, PortErrorKind::Unavailable).with_source("the token was not good any more; nothing was asked for"));
                    }
                    session.http().send(&request(&base).header(X_AUTH_TOKEN, token.value.clone())).await.map_err(unanswered)?
                } else {
                    answer
                }
            }
        };
        if answer.status.is_success() {
            return Ok(answer);
        }
        let said = said(&answer);
        let error = |kind| PortError::new(operation, kind);
        Err(match (answer.status.as_u16(), said) {
            (404, Some(_)) => error(PortErrorKind::NotFound),
            (404, None) => error(PortErrorKind::Garbled { reason: "HTTP 404 that is not Ironic's own; is its address right?".to_owned() }),
            // Locked: nothing was done, and it may be asked for again.
            (409, said) => error(PortErrorKind::Unavailable).with_source(said.unwrap_or_else(|| "somebody works on the node".to_owned())),
            (_, said) => error(answer.refusal(effect, said)),
        })
    }
}

/// What Ironic says of an error: a document inside a text (`error_message`), or, since 2024 for some, without the text around it.
fn said(answer: &Answer) -> Option<String> {
    let outer: Value = answer.json("an error").ok()?;
    let message = outer.get("error_message").unwrap_or(&outer);
    let inner = message.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let document = inner.as_ref().unwrap_or(message);
    let text = ["faultstring", "description", "message"].into_iter().find_map(|key| document.get(key)?.as_str()).or(message.as_str())?;
    Some(foreign_text(text))
}

#[async_trait]
impl Rebuilder for Ironic {
    async fn record(&self, node: &NodeName) -> Result<RebuildRecord, PortError> {
        let operation = format!("read Ironic's record of {node}");
        let found = self.read(node, &operation).await?;
        let mut objections = found.objections(node);
        objections.extend(self.another_machine(self.machine(node, &operation)?, &found, &operation).await?);
        Ok(RebuildRecord {
            state: found.state(),
            called: foreign_text(found.called()),
            order: found.token(),
            objections,
            protected_by_us: found.protected_by_us(),
            id: found.uuid,
            locked_by: found.reservation.as_deref().map(foreign_text),
            last_error: found.last_error.as_deref().map(foreign_text),
            changed: found.provision_updated_at,
        })
    }

    async fn order(&self, node: &NodeName, order: &RebuildOrder) -> Result<(), PortError> {
        let operation = format!("write down what Ironic is to rebuild {node} with");
        let found = self.read(node, &operation).await?;
        let add = |path: &str, value: Value| json!({ "op": "add", "path": path, "value": value });
        let mut patch = vec![
            add("/instance_info/image_source", json!(order.source)),
            add("/instance_info/image_os_hash_algo", json!("sha256")),
            add("/instance_info/image_os_hash_value", json!(order.sha256)),
            add(&format!("/extra/{ORDER}"), json!({ "token": order.token, "sha256": order.sha256 })),
        ];
        // That of the image before. What is not there can't be removed: Ironic answers 400.
        if found.instance_info.contains_key("image_checksum") {
            patch.push(json!({ "op": "remove", "path": "/instance_info/image_checksum" }));
        }
        // (Its reason goes with it.)
        if found.protected_by_us() {
            patch.push(add("/protected", json!(false)));
        }
        self.send(&operation, Method::PATCH, &["nodes", &order.id], &[], Some(&Value::Array(patch)), Renewal::SentAgain).await?;
        Ok(())
    }

    async fn protect(&self, node: &NodeName, id: &str) -> Result<(), PortError> {
        let operation = format!("have Ironic protect {node}");
        // Somebody else's protection serves as well, and stays theirs: the next order would take ours away.
        if self.read(node, &operation).await?.protected {
            return Ok(());
        }
        let reason = format!("{PROTECTED_BY_US} a rebuild that was asked for long ago is refused; the next renewal takes this away");
        let patch = json!([
            { "op": "add", "path": "/protected", "value": true },
            { "op": "add", "path": "/protected_reason", "value": reason },
        ]);
        self.send(&operation, Method::PATCH, &["nodes", id], &[], Some(&patch), Renewal::SentAgain).await?;
        Ok(())
    }

    async fn rebuild(&self, node: &NodeName, order: &RebuildOrder) -> Result<(), PortError> {
        let operation = format!("have Ironic rebuild {node}");
        let machine = self.machine(node, &operation)?;
        let mark = Installed { token: order.token.clone(), sha256: order.sha256.clone() };
        let drive = machine.drive.with_mark(node, &mark);
        let body = json!({ "target": "rebuild", "configdrive": drive });
        let path = ["nodes", &order.id, "states", "provision"];
        match self.send(&operation, Method::PUT, &path, &[], Some(&body), Renewal::NotSentAgain).await {
            Ok(_) => Ok(()),
            // Ironic's words on a configdrive may quote all of it.
            Err(error) => match &error.kind {
                PortErrorKind::Refused { reason } if reason.to_lowercase().contains("configdrive") => {
                    let reason = "Ironic does not accept the configdrive; why is in its own log, since its words may quote what is secret in it".to_owned();
                    Err(PortError::new(operation, PortErrorKind::Refused { reason }))
                }
                _ => Err(error),
            },
        }
    }
}
