//! GET /v1/status: how things stand, on one page. It answers also while the store does not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use turnaround_workflows::store::{Document, PAGE_MAX, Query, Scope, Status, StoreError, WorkflowId};
use turnaround_workflows::updates::NODES_OUT;

use super::app::App;
use super::caller::Caller;
use super::lines::lines;
use super::nodes::out_of_service;
use super::problem::{Problem, chain};
use super::{schedules, store};
use crate::alarms::AlarmCode;
use crate::jobs::{ArchiveFinished, BackgroundJob as _};
use crate::wire::{BudgetView, ReasonCode, STATUS_LINES_MAX, StatusView, StoreView};

/// Pages of open workflows that are looked through for questions: more than any rollout has children.
const ASKING_PAGES_MAX: u32 = 20;
/// Failures of a job in a row from which on a person should look. One may be a restart of Redis.
const JOB_FAILURES_WARNED: u32 = 3;
/// A pass takes seconds; the first one that archives what a site has done in a year takes some minutes.
const JOB_RUNS_WARNED: Duration = Duration::from_secs(15 * 60);

pub(super) async fn status(State(app): State<Arc<App>>, caller: Caller) -> Json<StatusView> {
    let mut view = StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        site: app.config.site.clone(),
        now: app.clock.now().into(),
        started: app.started.into(),
        you: caller.0,
        store: StoreView { reachable: true, description: String::new(), weaknesses: Vec::new(), halt: None },
        alarms: Vec::new(),
        counts: Default::default(),
        budgets: Vec::new(),
        questions: Vec::new(),
        open: Vec::new(),
        truncated: false,
        warnings: Vec::new(),
    };
    if let Err(error) = look(&app, &mut view).await {
        view.store.reachable = false;
        // No alarm: the watch raises one within a second, and alone knows when it is over. It asks less than is asked here.
        view.store.description = chain(&error);
        view.warnings.push(if error.is_outage() {
            "the store does not answer: nothing goes on until it does, and nothing is lost".to_owned()
        } else {
            format!("what is in the store can't be listed: see docs/errors/{}.md", AlarmCode::Store(error.trouble()).as_str())
        });
    }
    view.alarms = app.alarms.views();
    warn_of_workers(&mut view);
    warn_of_jobs(&app, &mut view);
    if view.store.reachable {
        warn_of_schedules(&app, &mut view).await;
    }
    Json(view)
}

async fn look(app: &App, view: &mut StatusView) -> Result<(), StoreError> {
    let shown = u32::try_from(STATUS_LINES_MAX).unwrap_or(u32::MAX);
    let query = Query { scope: Scope::Open, limit: shown, ..Query::default() };
    let (durability, standing, counts, open, out) = tokio::try_join!(
        app.store.durability(),
        app.store.standing(),
        app.store.counts(),
        app.store.list(&query),
        out_of_service(&app.store)
    )?;
    let open = with_all_that_ask(app, open, &counts).await?;
    let halt = standing.halt.as_ref().map(store::view);
    view.store = StoreView { reachable: true, description: durability.description, weaknesses: durability.weaknesses, halt };
    view.counts = counts.into_iter().filter(|(status, _)| !status.is_ended()).map(|(status, n)| (status.as_str().to_owned(), n)).collect();
    view.truncated = view.counts.values().sum::<u64>() > open.len() as u64;
    let open = lines(&app.store, open, app.clock.now()).await?;
    (view.questions, view.open) = open.into_iter().partition(|line| line.status == Status::NeedsOperator);
    let limit = u32::from(app.config.node_os.max_out);
    view.budgets = vec![BudgetView { name: NODES_OUT.to_owned(), limit, members: out.into_values().collect() }];
    warn_of_left_out(view);
    Ok(())
}

/// `open` and those that ask and are older: a rollout is older than all of its children, and its question must not be hidden behind them. Of more than are shown the
/// oldest.
async fn with_all_that_ask(app: &App, mut open: Vec<Document>, counts: &[(Status, u64)]) -> Result<Vec<Document>, StoreError> {
    let asks = |document: &Document| document.status == Status::NeedsOperator;
    let asking = counts.iter().find(|(status, _)| *status == Status::NeedsOperator).map_or(0, |(_, count)| usize::try_from(*count).unwrap_or(usize::MAX));
    let mut known: BTreeSet<WorkflowId> = open.iter().map(|document| document.id.clone()).collect();
    let mut found = open.iter().filter(|document| asks(document)).count();
    let mut offset = u32::try_from(open.len()).unwrap_or(u32::MAX);
    for _ in 0..ASKING_PAGES_MAX {
        if found >= asking {
            break;
        }
        let page = app.store.list(&Query { scope: Scope::Open, offset, limit: PAGE_MAX, ..Query::default() }).await?;
        if page.is_empty() {
            break;
        }
        offset = offset.saturating_add(u32::try_from(page.len()).unwrap_or(u32::MAX));
        // What is created meanwhile moves others into the next page.
        let older: Vec<Document> = page.into_iter().filter(|document| asks(document) && known.insert(document.id.clone())).collect();
        found += older.len();
        open.extend(older);
    }
    let mut too_many = found.saturating_sub(STATUS_LINES_MAX);
    open.retain(|document| {
        let drop = too_many > 0 && asks(document);
        too_many -= usize::from(drop);
        !drop
    });
    Ok(open)
}

/// Until that is an alarm.
fn warn_of_workers(view: &mut StatusView) {
    if view.alarms.iter().any(|alarm| alarm.code == AlarmCode::NoWorker.as_str()) {
        return;
    }
    let left = view.open.iter().filter(|line| line.why_not_now.as_ref().is_some_and(|why| why.code == ReasonCode::NoWorker));
    match left.count() {
        0 => {}
        1 => view.warnings.push("a workflow is due and no worker takes it: does a turnaround-worker run?".to_owned()),
        count => view.warnings.push(format!("{count} workflows are due and no worker takes them: does a turnaround-worker run?")),
    }
}

fn warn_of_left_out(view: &mut StatusView) {
    let left: Vec<&str> = view
        .budgets
        .iter()
        .flat_map(|budget| &budget.members)
        .filter(|member| member.left_out)
        .map(|member| member.member.as_str())
        .collect();
    if !left.is_empty() {
        view.warnings.push(format!(
            "left out of service by a workflow that has ended: {}; once back in service: `turnaround node release NODE`",
            left.join(", ")
        ));
    }
}

fn warn_of_jobs(app: &App, view: &mut StatusView) {
    if app.alarms.store_trouble().is_some() {
        // They fail because the store does, which is told already.
        return;
    }
    for job in app.board.views() {
        if job.failures_in_a_row >= JOB_FAILURES_WARNED {
            let error = job.last.and_then(|last| last.error).unwrap_or_default();
            let stays = if job.name == ArchiveFinished::NAME { "; what has ended stays in the store until it is archived" } else { "" };
            view.warnings.push(format!("the job `{}` failed {} times in a row: {error}{stays}", job.name, job.failures_in_a_row));
        }
        if let Some(since) = job.running_since.filter(|since| app.clock.now().since(since.0) >= JOB_RUNS_WARNED) {
            view.warnings.push(format!("the job `{}` has been running since {since}: it waits for a disk, or for the store", job.name));
        }
    }
}

async fn warn_of_schedules(app: &App, view: &mut StatusView) {
    match schedules::views(app).await {
        Ok(schedules) => {
            let problems = schedules.into_iter().filter_map(|one| one.problem.map(|problem| format!("schedule `{}`: {problem}", one.name)));
            view.warnings.extend(problems);
        }
        Err(problem) => view.warnings.push(Problem::view(&problem).detail),
    }
}
