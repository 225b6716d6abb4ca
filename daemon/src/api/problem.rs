//! What went wrong, for clients: RFC 9457 problems, each with what to do about it.

use std::error::Error;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tracing::error;
use turnaround_config::NodeName;
use turnaround_workflows::store::{InvalidWorkflowId, Status, StoreError, WorkflowId};
use turnaround_workflows::updates::BadOrder;

use crate::wire::ProblemView;

/// Nodes of a refused order that are named: a screen of them.
const RENEWED_SHOWN_MAX: usize = 10;

/// Everything that the API refuses, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: String,
    remedy: String,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, code, title, detail: detail.into(), remedy: String::new() }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Problem {
        self.remedy = remedy.into();
        self
    }

    pub fn view(&self) -> ProblemView {
        ProblemView {
            kind: format!("urn:turnaround:problem:{}", self.code),
            title: self.title.to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            remedy: self.remedy.clone(),
        }
    }

    pub(super) fn no_route(path: &str) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "no-such-route", "There is no such route", format!("nothing is served at {path}"))
            .remedy("the command line and the daemon may be of different releases: compare `turnaround --version` with `turnaround status`")
    }

    pub(super) fn wrong_method(method: &str, path: &str) -> Problem {
        let detail = format!("{path} does not take {method}");
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "This route does not take this method", detail)
    }

    pub(super) fn stranger() -> Problem {
        let detail = "the system does not say which user is at the other end of the socket";
        Problem::new(StatusCode::FORBIDDEN, "unknown-caller", "It is not known who asks", detail)
    }

    pub(super) fn not_an_operator(user: &str) -> Problem {
        let detail = format!("`{user}` may look, but change nothing");
        Problem::new(StatusCode::FORBIDDEN, "not-an-operator", "Only operators may change things", detail)
            .remedy(format!("add \"{user}\" to `daemon.operators` in the configuration and restart the daemon, or ask one of its operators"))
    }

    /// The system has no name for this user, which operators are known by.
    pub(super) fn nameless(uid: u32) -> Problem {
        let detail = format!("the system has no name for uid {uid}, which may look, but change nothing: operators are known by name");
        Problem::new(StatusCode::FORBIDDEN, "not-an-operator", "Only operators may change things", detail).remedy(format!(
            "see what `getent passwd {uid}` says on the host of the daemon: where it says nothing, this user is gone, or the directory server \
             that /etc/nsswitch.conf names (by sssd, for one) does not answer. Root may change things meanwhile"
        ))
    }

    /// The system was asked for a user's name, and failed.
    pub(super) fn name_unsaid(uid: u32, why: &str) -> Problem {
        let detail = format!("the system could not say who uid {uid} is: {why}");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "name-lookup-failed", "The system could not say who asks", detail).remedy(format!(
            "try again: nothing was changed. If it stays so, see that `getent passwd {uid}` gives a name on the host of the daemon: what \
             /etc/nsswitch.conf names (sssd and its directory server, for one) has to answer. Root may change things meanwhile"
        ))
    }

    pub(super) fn no_workflow(id: &str) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "no-such-workflow", "There is no such workflow", format!("no workflow `{id}` is kept"))
            .remedy("`turnaround workflows --all` lists what is kept; older ones are in the archive of the state directory")
    }

    pub(super) fn no_log(id: &str) -> Problem {
        let detail = format!("workflow `{id}` has run no setup script on the host of this daemon");
        Problem::new(StatusCode::NOT_FOUND, "no-log", "There is no log", detail)
            .remedy("the setup script is run for each node (give the id of a node's workflow, as `turnaround show ID` of the rollout lists them), on the host whose worker serves `bastion`: ask the daemon there")
    }

    pub(super) fn no_node(node: &str) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "no-such-node", "There is no such node", format!("node `{node}` is not in the configuration"))
            .remedy("`turnaround nodes` lists those that are; a node added since needs a restart of the daemon")
    }

    pub(super) fn ended(id: &WorkflowId, status: Status) -> Problem {
        let detail = format!("{id} has ended: {}", status.as_str());
        Problem::new(StatusCode::CONFLICT, "workflow-ended", "The workflow has ended", detail)
    }

    pub(super) fn no_question(id: &WorkflowId) -> Problem {
        let detail = format!("{id} asks nothing just now; somebody may have answered already");
        Problem::new(StatusCode::CONFLICT, "no-question", "No question is open", detail)
            .remedy(format!("`turnaround show {id}` tells where it stands"))
    }

    pub(super) fn not_an_answer(id: &WorkflowId, key: &str, answers: &[&str]) -> Problem {
        let detail = format!("`{key}` is none of the answers of {id}: {}", answers.join(", "));
        Problem::new(StatusCode::CONFLICT, "not-an-answer", "This is none of the answers", detail)
            .remedy(format!("`turnaround show {id}` tells what each answer does"))
    }

    pub(super) fn not_now(id: &WorkflowId, signal: &str, why: &str) -> Problem {
        let detail = format!("{id} can't follow `{signal}`: {why}");
        Problem::new(StatusCode::CONFLICT, "not-now", "The workflow can't follow this now", detail)
    }

    pub(super) fn inbox_full(id: &WorkflowId) -> Problem {
        let detail = format!("{id} has too many unread signals");
        Problem::new(StatusCode::CONFLICT, "inbox-full", "The workflow's inbox is full", detail)
            .remedy("signals are read as soon as a worker takes the workflow: look whether one runs, and whether somebody sends in a loop")
    }

    /// Nodes of an order, each with the workflow that renews it, or will.
    pub(super) fn renewed_already(renewed: &[(&NodeName, &WorkflowId)]) -> Problem {
        let mut shown: Vec<String> = renewed.iter().take(RENEWED_SHOWN_MAX).map(|(node, by)| format!("{node} (by {by})")).collect();
        if renewed.len() > RENEWED_SHOWN_MAX {
            shown.push(format!("{} more", renewed.len() - RENEWED_SHOWN_MAX));
        }
        let first = renewed.first().map_or("ID", |(_, by)| by.as_str());
        let detail = format!("to be renewed already: {}; this order would wait for that, and then wipe the disk once more", shown.join(", "));
        Problem::new(StatusCode::CONFLICT, "renewed-already", "A node is to be renewed already", detail).remedy(format!(
            "`turnaround show {first}` tells how far it is: wait for its end, or `turnaround abort {first}`. If you mean once more after that: --again"
        ))
    }

    pub(super) fn not_left_out(node: &str) -> Problem {
        let detail = format!("{node} is not a node that an ended workflow left out of service");
        Problem::new(StatusCode::CONFLICT, "not-left-out", "There is nothing to release", detail)
            .remedy("`turnaround nodes` shows which nodes count as out of service, and for whom; an open workflow gives its share back itself")
    }

    pub(super) fn key_reused(id: &WorkflowId) -> Problem {
        let detail = format!("this idempotency key was used before for another order, which became {id}");
        Problem::new(StatusCode::CONFLICT, "key-reused", "The idempotency key belongs to another order", detail)
            .remedy("use a new key for a new order")
    }

    pub(super) fn not_halted() -> Problem {
        let detail = "the store is not halted: nothing is missing from it";
        Problem::new(StatusCode::CONFLICT, "not-halted", "There is nothing to accept", detail)
    }

    pub(super) fn bad_request(what: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "bad-request", "The request can't be understood", what)
    }

    /// A bug of ours, or a damaged record.
    pub(super) fn internal(error: &dyn Error) -> Problem {
        let detail = chain(error);
        error!(error = detail, "a request could not be answered");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The daemon could not answer", detail)
            .remedy("the daemon's log has more; please report it")
    }
}

/// An error and its causes on one line, each once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    // No chain of ours is longer than 5; a longer one can only be a loop.
    for _ in 0..32 {
        let Some(cause) = next else { break };
        let told = cause.to_string();
        // Some libraries repeat their cause in their own message.
        if !text.ends_with(&told) {
            text = format!("{text}: {told}");
        }
        next = cause.source();
    }
    text
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.view())).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        let detail = chain(&error);
        match error {
            StoreError::Unavailable { .. } => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "The store does not answer", detail).remedy(
                    "nothing is lost: everything goes on once it answers. An order that was refused so may have been taken: \
                     repeat it with the same idempotency key. `turnaround status` tells what is the matter: whether Redis runs, \
                     whether its disk is full",
                )
            }
            StoreError::Unwatched { .. } => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unwatched", "The store has not been looked at yet", detail)
                    .remedy("repeat it in a second: the daemon looks whether Redis has lost something, and then everything goes on. If it does not: `turnaround status` has an alarm that says why the daemon can't look")
            }
            StoreError::Halted { .. } => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-halted", "The store is halted", detail)
                .remedy("`turnaround status` tells what is missing; once you have looked: `turnaround store accept`"),
            StoreError::NotDurable { .. } | StoreError::Unusable { .. } => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unusable", "The store can't be used as it is", detail)
            }
            StoreError::Damaged { .. } => {
                error!(error = detail, "the store holds something that makes no sense");
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "store-damaged", "What the store holds makes no sense", detail)
            }
        }
    }
}

impl From<BadOrder> for Problem {
    fn from(error: BadOrder) -> Problem {
        let code = match &error {
            BadOrder::UnknownImage(_) | BadOrder::UnknownNode(_) => "not-in-configuration",
            BadOrder::NodeTwice(_) | BadOrder::NoNode | BadOrder::CarriesUs { .. } | BadOrder::NotForIronic { .. } | BadOrder::NotForNetboot { .. } => "bad-order",
        };
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, "This can't be ordered", error.to_string())
    }
}

impl From<InvalidWorkflowId> for Problem {
    fn from(error: InvalidWorkflowId) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "bad-request", "The request can't be understood", error.to_string())
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Problem {
        let status = rejection.status();
        let (code, title) = match status {
            StatusCode::PAYLOAD_TOO_LARGE => ("too-large", "The request is too large"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ("not-json", "The request must be JSON"),
            _ => ("bad-request", "The request can't be understood"),
        };
        Problem::new(status, code, title, rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Problem {
        Problem::bad_request(rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Problem {
        Problem::bad_request(rejection.body_text())
    }
}
