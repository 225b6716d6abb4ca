//! `turnaround survey`: looks at every node now, and prints what it saw.

use super::client::{Client, read};
use super::error::CliError;
use super::node::finish;
use super::out::Style;
use crate::exit::Exit;
use crate::wire::StartedView;

pub(super) async fn run(client: &Client, style: &Style) -> Result<Exit, CliError> {
    let started: StartedView = read(client.post("/v1/surveys", &serde_json::json!({})).await?)?;
    finish(client, style, started.id.as_str()).await
}
