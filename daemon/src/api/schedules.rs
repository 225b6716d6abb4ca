//! GET /v1/schedules and /v1/jobs

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::app::App;
use super::problem::Problem;
use crate::schedule;
use crate::wire::{JobsView, ScheduleView, SchedulesView};

pub(super) async fn schedules(State(app): State<Arc<App>>) -> Result<Json<SchedulesView>, Problem> {
    Ok(Json(SchedulesView { schedules: views(&app).await? }))
}

pub(super) async fn views(app: &App) -> Result<Vec<ScheduleView>, Problem> {
    let now = app.clock.now();
    let mut views = Vec::with_capacity(app.config.schedules.len());
    for (name, schedule) in &app.config.schedules {
        let judged = app.store.last_tick(name.as_str()).await?;
        views.push(schedule::view(name, schedule, now, judged, app.ticks.recent(name)));
    }
    Ok(views)
}

pub(super) async fn jobs(State(app): State<Arc<App>>) -> Json<JobsView> {
    Json(JobsView { jobs: app.board.views() })
}
