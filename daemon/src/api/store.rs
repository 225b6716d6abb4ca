//! POST /v1/store/accept, and how a halted store is shown.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use turnaround_workflows::store::high_water::{Halt, Loss};

use super::app::App;
use super::caller::Caller;
use super::extract::Body;
use super::problem::Problem;
use crate::wire::{AcceptedView, HaltView};

/// Nothing has to be said: a person was shown what is there, and accepts it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AcceptRequest {}

pub(super) async fn accept(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(AcceptRequest {}): Body<AcceptRequest>,
) -> Result<Json<AcceptedView>, Problem> {
    let accepted = app.watch.accept(&caller.0.user).await?.ok_or_else(Problem::not_halted)?;
    Ok(Json(AcceptedView { store: accepted.identity.unwrap_or_default(), revision: accepted.revision }))
}

pub(super) fn view(halt: &Halt) -> HaltView {
    HaltView {
        since: halt.since.into(),
        noticed_by: halt.noticed_by.clone(),
        loss: halt.loss,
        expected: format!("{}, or later", halt.expected),
        found: halt.found.to_string(),
        means: means(halt),
    }
}

fn means(halt: &Halt) -> String {
    match halt.loss {
        Loss::Emptied => "the store was emptied, its file is gone, or this is another, empty database: all workflows, and which nodes \
             are out of service, are unknown to it"
            .to_owned(),
        Loss::Replaced => "another server or database answers, or the store was begun anew after it had been lost".to_owned(),
        Loss::Older => {
            let missing = halt.expected.revision.saturating_sub(halt.found.revision);
            let missing = if missing > 0 { format!("{missing} or more writes that were acknowledged are") } else { "what was acknowledged last is".to_owned() };
            format!(
                "{missing} gone: an older file or backup was put back, or a server took over that had not heard of them. Work may have \
                 been done of which the store knows nothing"
            )
        }
    }
}
