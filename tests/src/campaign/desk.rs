//! Where operators reach the daemons: over either socket, asking again under the same key until somebody answers; and by the
//! command line. Everything that is said and answered is written down.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::ledger::now_ms;
use super::stage::Stage;

/// One request, at most.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// A request that nobody answers is sent again for so long: longer than any outage that a campaign makes.
const ASKS_AGAIN_FOR: Duration = Duration::from_secs(20);
const ASKS_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// With what the daemon said.
    Accepted(Value),
    Refused,
    /// It may have been carried out.
    Unknown,
}

pub(super) struct Desk<'a> {
    stage: &'a Stage,
    clients: [reqwest::Client; 2],
    user: String,
}

impl<'a> Desk<'a> {
    pub(super) fn new(stage: &'a Stage) -> io::Result<Desk<'a>> {
        turnaround_worker::adapters::install_tls();
        let client = |socket| reqwest::Client::builder().unix_socket(socket).timeout(REQUEST_PATIENCE).build().map_err(io::Error::other);
        let [one, two] = stage.sockets();
        let user = nix::unistd::User::from_uid(nix::unistd::getuid())?.map_or_else(|| "root".to_owned(), |user| user.name);
        Ok(Desk { stage, clients: [client(one)?, client(two)?], user })
    }

    fn client(&self) -> &reqwest::Client {
        &self.clients[self.stage.requests.fetch_add(1, Ordering::Relaxed) as usize % 2]
    }

    pub(super) fn next_key(&self) -> String {
        format!("deed-{}", self.stage.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// What `path` shows; None if nobody answers.
    pub(super) async fn get(&self, path: &str) -> Option<Value> {
        let answer = self.client().get(format!("http://turnaround{path}")).send().await.ok()?;
        answer.error_for_status().ok()?.json().await.ok()
    }

    /// The open workflows.
    pub(super) async fn open(&self) -> Option<Vec<Value>> {
        Some(self.get("/v1/workflows?scope=open&limit=500").await?["workflows"].as_array()?.clone())
    }

    /// The question of a workflow, if it has one.
    pub(super) async fn question(&self, id: &str) -> Option<Value> {
        let shown = self.get(&format!("/v1/workflows/{id}")).await?;
        (!shown["question"].is_null()).then(|| shown["question"].clone())
    }

    /// Sends `body` under `key`, again and again, until there is an answer or patience ends.
    pub(super) async fn send(&self, what: &str, path: &str, body: &Value, key: &str) -> io::Result<Answer> {
        let asked = now_ms();
        let end = Instant::now() + ASKS_AGAIN_FOR;
        let mut answer = Answer::Unknown;
        while answer == Answer::Unknown && Instant::now() < end {
            let request = self.client().post(format!("http://turnaround{path}")).header("Idempotency-Key", key).json(body);
            answer = match request.send().await {
                Ok(response) if response.status().is_success() => {
                    response.json().await.map_or(Answer::Unknown, Answer::Accepted)
                }
                Ok(response) if response.status().is_client_error() => Answer::Refused,
                Ok(_) | Err(_) => Answer::Unknown,
            };
            if answer == Answer::Unknown {
                tokio::time::sleep(ASKS_AGAIN_AFTER).await;
            }
        }
        let signal = path.ends_with("/signals").then(|| format!("{}/{key}", self.user));
        self.write_down(what, &answer, asked, Some(key), signal.as_deref());
        Ok(answer)
    }

    fn write_down(&self, what: &str, answer: &Answer, asked: i64, key: Option<&str>, signal: Option<&str>) {
        let (event, id) = match answer {
            Answer::Accepted(said) => ("accepted", said["id"].clone()),
            Answer::Refused => ("refused", Value::Null),
            Answer::Unknown => ("unanswered", Value::Null),
        };
        self.stage.orders.tell(event, json!({ "what": what, "workflow": id, "key": key, "signal": signal, "asked": asked }));
    }

    /// Types a command that answers with JSON.
    pub(super) async fn type_command(&self, arguments: &[&str]) -> io::Result<Answer> {
        let asked = now_ms();
        let [socket, _] = self.stage.sockets();
        let output = tokio::process::Command::new(&self.stage.cli).arg("--socket").arg(socket).args(arguments).output().await?;
        let answer = match output.status.code() {
            Some(0) => Answer::Accepted(serde_json::from_slice(&output.stdout).map_err(io::Error::other)?),
            // The daemon refused, or there is no such thing.
            Some(4 | 5) => Answer::Refused,
            _ => Answer::Unknown,
        };
        self.write_down("typed", &answer, asked, None, None);
        Ok(answer)
    }
}
