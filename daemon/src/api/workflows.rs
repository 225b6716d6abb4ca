//! GET /v1/workflows and /v1/workflows/{id}

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use turnaround_workflows::engine::{Child, State as Folded};
use turnaround_workflows::store::{self, Document, PAGE_MAX, Scope, Store, WORKFLOW_ID_CHARS_MAX, WorkflowId};

use super::app::App;
use super::extract::{Path, Query};
use super::lines::{line, lines};
use super::problem::Problem;
use super::steps;
use crate::wire::{AnswerView, CHILDREN_LOOKED_AT, ChildView, QuestionView, WaitsForView, WorkflowView, WorkflowsView};

/// Lines of a listing for which nobody said how many.
const LISTED_BY_DEFAULT: u32 = 100;
/// Pages searched for ids that begin with what was typed: 10,000 workflows, newest first.
const SEARCHED_PAGES_MAX: u32 = 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    #[serde(default)]
    scope: Scope,
    kind: Option<String>,
    target: Option<String>,
    parent: Option<WorkflowId>,
    /// Only ids that begin so, or whose part behind their kind does. Children of a hit are not hits.
    id_prefix: Option<String>,
    #[serde(default)]
    offset: u32,
    limit: Option<u32>,
}

pub(super) async fn list(State(app): State<Arc<App>>, Query(asked): Query<Parameters>) -> Result<Json<WorkflowsView>, Problem> {
    let limit = asked.limit.unwrap_or(LISTED_BY_DEFAULT);
    if limit == 0 || limit > PAGE_MAX {
        return Err(Problem::bad_request(format!("`limit` is 1 to {PAGE_MAX}")));
    }
    let query = store::Query {
        scope: asked.scope,
        parent: asked.parent,
        kind: asked.kind,
        target: asked.target,
        offset: asked.offset,
        limit,
    };
    let (documents, next_offset) = match &asked.id_prefix {
        Some(prefix) => (find(&app.store, &query, prefix).await?, None),
        None => {
            let documents = app.store.list(&query).await?;
            let full = documents.len() >= limit as usize;
            (documents, full.then(|| asked.offset.saturating_add(limit)))
        }
    };
    let workflows = lines(&app.store, documents, app.clock.now()).await?;
    Ok(Json(WorkflowsView { workflows, next_offset }))
}

/// Workflows whose id begins with `typed`, or whose part behind the kind does; one of exactly that id is alone.
async fn find(store: &Arc<dyn Store>, query: &store::Query, typed: &str) -> Result<Vec<Document>, Problem> {
    if typed.is_empty() || typed.len() > WORKFLOW_ID_CHARS_MAX {
        return Err(Problem::bad_request(format!("`id_prefix` has 1 to {WORKFLOW_ID_CHARS_MAX} characters")));
    }
    if let Ok(id) = typed.parse::<WorkflowId>()
        && let Some(exact) = store.load(&id).await?
    {
        return Ok(vec![exact]);
    }
    let mut found: Vec<Document> = Vec::new();
    for page in 0..SEARCHED_PAGES_MAX {
        let query = store::Query { offset: page * PAGE_MAX, limit: PAGE_MAX, ..query.clone() };
        let documents = store.list(&query).await?;
        let full = documents.len() >= PAGE_MAX as usize;
        found.extend(documents.into_iter().filter(|document| begins_with(document, typed)));
        if !full {
            break;
        }
    }
    let ids: Vec<String> = found.iter().map(|document| format!("{}.", document.id)).collect();
    found.retain(|document| !ids.iter().any(|parent| document.id.as_str().starts_with(parent.as_str())));
    found.truncate(query.limit as usize);
    Ok(found)
}

/// Behind the kind only where it begins with its own kind: a child begins with its parent's, and `rollout-k3m9` is meant for
/// `node-os-rollout-k3m9`, not for its one node so far.
fn begins_with(document: &Document, typed: &str) -> bool {
    let id = document.id.as_str();
    let own = document.parent.is_none().then_some(id);
    let behind_kind = own.and_then(|id| id.strip_prefix(document.kind.as_str())?.strip_prefix('-'));
    id.starts_with(typed) || behind_kind.is_some_and(|rest| rest.starts_with(typed))
}

pub(super) async fn show(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<WorkflowView>, Problem> {
    let document = load(&app, &id).await?;
    Ok(Json(view(&app, document).await?))
}

/// The workflow of exactly this id.
pub(super) async fn load(app: &App, id: &str) -> Result<Document, Problem> {
    let parsed: WorkflowId = id.parse()?;
    app.store.load(&parsed).await?.ok_or_else(|| Problem::no_workflow(id))
}

async fn view(app: &App, document: Document) -> Result<WorkflowView, Problem> {
    let (journal, journal_problem) = steps::read(&app.store, &document).await?;
    let journal_entries = document.seq;
    let defined = app.registry.get(&document.kind).map(|definition| definition.step_names()).unwrap_or_default();
    let now = app.clock.now();
    let mut steps = steps::steps(&defined, &journal);
    let line = line(&app.store, document, now).await?;
    let state = match Folded::of_entries(&journal) {
        Ok(state) => state,
        // The journal shows what it can.
        Err(damage) => {
            return Ok(WorkflowView {
                line,
                created_by: String::new(),
                input: serde_json::Value::Null,
                steps,
                question: None,
                children: Vec::new(),
                holds: Vec::new(),
                waits_for: None,
                journal_entries,
                journal_problem: journal_problem.or(Some(damage.chain())),
            });
        }
    };
    if let Some(current) = &state.current
        && let Some(step) = steps.iter_mut().find(|step| step.step == current.step)
    {
        // As if it were resumed now: what was answered during the pause has its patience from then on.
        let paused = state.paused.as_ref().map_or(Duration::ZERO, |pause| now.since(pause.since.max(current.begun)));
        step.deadline = Some((current.deadline + paused).into());
    }
    let number = state.open_question();
    // Of a journal that is cut off nobody knows what was answered since.
    let question = state.question().filter(|_| journal_problem.is_none()).map(|question| QuestionView {
        number,
        text: question.text.clone(),
        seen: question.seen.clone(),
        reasons: question.reasons.clone(),
        answers: question
            .answers
            .iter()
            .map(|answer| AnswerView {
                key: answer.key.clone(),
                consequence: answer.consequence.clone(),
                effect: answer.effect,
                command: command(&line.id, &answer.key, number),
            })
            .collect(),
    });
    let children = children(app, state.children).await?;
    Ok(WorkflowView {
        created_by: state.created_by,
        input: state.input,
        steps,
        question,
        children,
        holds: state.held.into_iter().collect(),
        waits_for: state.awaits.map(|(resource, holders)| WaitsForView { resource, holders }),
        journal_entries,
        journal_problem,
        line,
    })
}

/// What to type for an answer: it holds only for the question that was shown.
fn command(id: &WorkflowId, key: &str, question: Option<u32>) -> String {
    let only = question.map_or(String::new(), |number| format!(" --question {number}"));
    format!("turnaround answer {id} {key}{only}")
}

/// The children, the open ones as they stand just now.
async fn children(app: &App, known: BTreeMap<String, Child>) -> Result<Vec<ChildView>, Problem> {
    let mut looked_at = 0;
    let mut children = Vec::with_capacity(known.len());
    for (key, child) in known {
        let mut view = ChildView { key, id: child.id, outcome: child.outcome, status: None, headline: child.headline };
        if view.outcome.is_none() && looked_at < CHILDREN_LOOKED_AT {
            looked_at += 1;
            if let Some(open) = app.store.load(&view.id).await? {
                view.status = Some(open.status);
                view.headline = open.headline;
            }
        }
        children.push(view);
    }
    Ok(children)
}
