//! GET /v1/nodes and POST /v1/nodes/{node}/release

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tracing::{info, warn};
use turnaround_config::{NodeImage, NodeName, Role};
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::engine::State as Folded;
use turnaround_workflows::store::{Document, PAGE_MAX, Query, Resource, Scope, Status, Store, StoreError};
use turnaround_workflows::updates::{NODE_OS, NODE_OS_IRONIC, NODES_OUT, SURVEY, SurveyReport};

use super::app::App;
use super::caller::Caller;
use super::extract::Path;
use super::lines::lines;
use super::problem::Problem;
use crate::renewing::Renewing;
use crate::wire::{BudgetMember, NodeView, NodesView, ReleasedView, WorkflowLine};

/// Pages of workflows that are looked at for renewals, newest first: 20,000, which is twenty for each node of a site of 1,000.
const RENEWALS_PAGES_MAX: u32 = 40;

pub(super) async fn nodes(State(app): State<Arc<App>>) -> Result<Json<NodesView>, Problem> {
    let now = app.clock.now();
    let (survey, mut out, to_come, renewing, renewed) = tokio::try_join!(
        surveys(&app.store),
        out_of_service(&app.store),
        Renewing::look(&app.store),
        renewals(&app.store, Scope::Open, now),
        renewals(&app.store, Scope::Ended, now),
    )?;
    let (survey, newer) = survey;
    let newer_survey = lines(&app.store, newer.into_iter().collect(), now).await?.pop();
    let surveyed = survey.as_ref().map(|survey| survey.at.into());
    let mut seen: HashMap<_, _> =
        survey.map(|survey| survey.nodes).unwrap_or_default().into_iter().map(|seen| (seen.node.clone(), seen)).collect();
    let (mut renewing, mut renewed) = (renewing, renewed);
    let nodes = app.config.nodes.iter().map(|(name, node)| {
        let survey = seen.remove(name);
        let installed = survey.as_ref().and_then(|survey| survey.image_sha256.as_deref());
        let is = |image: &NodeImage| [Some(&image.sha256), image.ironic.as_ref().map(|ironic| &ironic.sha256)].into_iter().flatten().any(|digest| Some(digest.as_str()) == installed);
        let image = app.config.images.iter().find(|(_, image)| is(image));
        let renewing = renewing.remove(name.as_str());
        NodeView {
            name: name.clone(),
            role: match node.role {
                Role::Compute => "compute".to_owned(),
            },
            out: out.remove(name.as_str()),
            planned: to_come.planned(name).filter(|_| renewing.is_none()).cloned(),
            renewing,
            renewed: renewed.remove(name.as_str()),
            image: image.map(|(image, _)| image.clone()),
            survey,
        }
    });
    Ok(Json(NodesView { nodes: nodes.collect(), surveyed, newer_survey }))
}

/// Output of the newest survey that succeeded and is still kept; and the newest of all, if that is another one.
async fn surveys(store: &Arc<dyn Store>) -> Result<(Option<SurveyReport>, Option<Document>), StoreError> {
    let query = |scope, limit| Query { scope, kind: Some(SURVEY.to_owned()), limit, ..Query::default() };
    let newest = store.list(&query(Scope::All, 1)).await?.pop();
    let newer = newest.filter(|newest| newest.status != Status::Succeeded);
    // However many have failed since.
    let ended = store.list(&query(Scope::Ended, PAGE_MAX)).await?;
    match ended.into_iter().find(|document| document.status == Status::Succeeded) {
        Some(document) => Ok((report(store, &document).await?, newer)),
        None => Ok((None, newer)),
    }
}

async fn report(store: &Arc<dyn Store>, document: &Document) -> Result<Option<SurveyReport>, StoreError> {
    let state = match Folded::load(&**store, document).await? {
        Ok(state) => state,
        Err(damage) => {
            warn!(workflow = %document.id, damage = damage.chain(), "a survey's journal can't be read");
            return Ok(None);
        }
    };
    Ok(state.steps.last().and_then(|step| step.output.clone()).and_then(|output| {
        let read = serde_json::from_value(output);
        read.inspect_err(|error| warn!(workflow = %document.id, %error, "a survey's report can't be read")).ok()
    }))
}

/// Who holds a share of the budget of nodes that are out, by node.
pub(super) async fn out_of_service(store: &Arc<dyn Store>) -> Result<BTreeMap<String, BudgetMember>, StoreError> {
    let mut out = BTreeMap::new();
    for holding in store.holdings().await? {
        let Resource::Budget { name, member } = holding.resource else { continue };
        if name != NODES_OUT {
            continue;
        }
        let left_out = store.load(&holding.holder).await?.is_none_or(|holder| holder.status.is_ended());
        out.insert(member.clone(), BudgetMember { member, holder: holding.holder, left_out });
    }
    Ok(out)
}

/// The newest renewal of each node.
async fn renewals(store: &Arc<dyn Store>, scope: Scope, now: Timestamp) -> Result<HashMap<String, WorkflowLine>, StoreError> {
    let mut newest: HashMap<String, Document> = HashMap::new();
    for page in 0..RENEWALS_PAGES_MAX {
        // Of all kinds: a listing of one kind reads all that it passes over, for each page anew.
        let query = Query { scope, offset: page * PAGE_MAX, limit: PAGE_MAX, ..Query::default() };
        let documents = store.list(&query).await?;
        let full = documents.len() >= PAGE_MAX as usize;
        for document in documents.into_iter().filter(|document| [NODE_OS, NODE_OS_IRONIC].contains(&document.kind.as_str())) {
            newest.entry(document.target.clone()).or_insert(document);
        }
        if !full {
            break;
        }
    }
    let found = lines(store, newest.into_values().collect(), now).await?;
    Ok(found.into_iter().map(|line| (line.target.clone(), line)).collect())
}

pub(super) async fn release(State(app): State<Arc<App>>, caller: Caller, Path(node): Path<String>) -> Result<Json<ReleasedView>, Problem> {
    let name: NodeName = node.parse().map_err(|error| Problem::bad_request(format!("{error}")))?;
    // Looked at before: nothing that is told about the node may fail once it is released.
    let (mut out, (survey, _)) = tokio::try_join!(out_of_service(&app.store), surveys(&app.store))?;
    let holder = match out.remove(name.as_str()) {
        Some(member) => app.store.load(&member.holder).await?,
        None => None,
    };
    // A node that was taken out of the configuration may still hold a share, so the store is asked first.
    if app.store.release_budget(NODES_OUT, name.as_str()).await? {
        info!(user = caller.0.user, node = %name, "a node that was left out of service counts as in service again");
        return Ok(Json(ReleasedView {
            budget: NODES_OUT.to_owned(),
            nova_host: app.config.nodes.get(&name).map(|node| node.nova_host.clone()),
            left: holder.map(|holder| holder.updated.into()),
            surveyed: survey.as_ref().map(|survey| survey.at.into()),
            survey: survey.and_then(|survey| survey.nodes.into_iter().find(|seen| seen.node == name)),
            node: name,
        }));
    }
    if app.config.nodes.contains_key(&name) { Err(Problem::not_left_out(&node)) } else { Err(Problem::no_node(&node)) }
}
