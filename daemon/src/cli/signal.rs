//! `turnaround pause | resume | abort | retry | answer ID`: what operators tell a workflow.

use clap::Args;

use super::client::{Client, read};
use super::error::CliError;
use super::out::{Style, print_json, say};
use super::resolve::resolve;
use crate::exit::Exit;
use crate::wire::{SignalRequest, SignalledView};

#[derive(Args)]
pub(super) struct Plain {
    /// The workflow's id, or the beginning of it
    id: String,
}

#[derive(Args)]
pub(super) struct WithReason {
    /// The workflow's id, or the beginning of it
    id: String,
    /// Why, for those who read the journal
    #[arg(long, default_value = "")]
    why: String,
}

#[derive(Args)]
pub(super) struct Answer {
    /// The workflow's id, or the beginning of it
    id: String,
    /// One of the answers that `turnaround show ID` lists
    key: String,
    /// The question that it is for, as `turnaround show ID` has it: another one is not answered
    #[arg(long, value_name = "NUMBER")]
    question: Option<u32>,
}

pub(super) async fn pause(client: &Client, style: &Style, arguments: WithReason) -> Result<Exit, CliError> {
    send(client, style, &arguments.id, SignalRequest::Pause { why: arguments.why }).await
}

pub(super) async fn resume(client: &Client, style: &Style, arguments: Plain) -> Result<Exit, CliError> {
    send(client, style, &arguments.id, SignalRequest::Resume {}).await
}

pub(super) async fn abort(client: &Client, style: &Style, arguments: WithReason) -> Result<Exit, CliError> {
    send(client, style, &arguments.id, SignalRequest::Abort { why: arguments.why }).await
}

pub(super) async fn retry(client: &Client, style: &Style, arguments: Plain) -> Result<Exit, CliError> {
    send(client, style, &arguments.id, SignalRequest::Retry {}).await
}

pub(super) async fn answer(client: &Client, style: &Style, arguments: Answer) -> Result<Exit, CliError> {
    send(client, style, &arguments.id, SignalRequest::Answer { key: arguments.key, question: arguments.question }).await
}

async fn send(client: &Client, style: &Style, typed: &str, signal: SignalRequest) -> Result<Exit, CliError> {
    let id = resolve(client, typed).await?;
    let answer = client.post(&format!("/v1/workflows/{id}/signals"), &signal).await?;
    if style.json {
        print_json(&answer)?;
    } else {
        let kept: SignalledView = read(answer)?;
        say(&format!("`{}` is kept for {}; what it brings about: turnaround show {}", kept.signal, kept.id, kept.id));
        if let Some(question) = &kept.question {
            say(&format!("it answers: {question}"));
        }
        if kept.waits_for_resume {
            say(&format!("it is paused, and follows this only once it is resumed: turnaround show {} says by whom, and how", kept.id));
        }
    }
    Ok(Exit::Good)
}
