//! Waits for the end of a workflow, and tells on stderr what happens until then.

use std::time::Duration;

use serde_json::Value;
use turnaround_workflows::store::Status;

use super::client::{Client, read};
use super::error::CliError;
use super::events::Events;
use super::out::{Style, say};
use crate::wire::{EventView, ReasonCode, WorkflowView};

/// A daemon that is restarted is back within seconds; what it does goes on meanwhile.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
const RECONNECTS_MAX: u32 = 120;
/// Without any event, the workflow is looked at this often, to notice that nobody works on it.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

/// The workflow as it ended.
pub(super) async fn wait_for_end(client: &Client, style: &Style, id: &str) -> Result<Value, CliError> {
    let mut cursor: Option<String> = None;
    let mut tries = 0;
    loop {
        let watched = watch(client, style, id, &mut cursor).await;
        match watched {
            Ok(Some(ended)) => return Ok(ended),
            Ok(None) => tries = 0,
            Err(CliError::Unreachable { .. } | CliError::Local { .. }) if tries < RECONNECTS_MAX => tries += 1,
            Err(CliError::Problem(problem)) if problem.status == 503 && tries < RECONNECTS_MAX => tries += 1,
            Err(error) => return Err(error),
        }
        if tries == 1 {
            say("the daemon does not answer; the work goes on without it, waiting for it to be back");
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// None: the stream ended before the workflow did.
async fn watch(client: &Client, style: &Style, id: &str, cursor: &mut Option<String>) -> Result<Option<Value>, CliError> {
    // First the stream, then the look: an end between the two is in the stream.
    let mut events = Events::open(client, &format!("/v1/events?workflow={id}"), cursor.as_deref()).await?;
    let mut nobody_told = false;
    loop {
        let answer = client.get(&format!("/v1/workflows/{id}")).await?;
        let view: WorkflowView = read(answer.clone())?;
        if view.line.status.is_ended() {
            return Ok(Some(answer));
        }
        let nobody = view.line.why_not_now.as_ref().filter(|why| why.code == ReasonCode::NoWorker);
        if let Some(why) = nobody.filter(|_| !std::mem::replace(&mut nobody_told, true)) {
            say(&format!("{}: {}; {}", style.warning("waiting"), why.text, why.unblock));
        }
        // Until there is something to look at anew.
        loop {
            match tokio::time::timeout(LOOK_AGAIN, events.next()).await {
                Err(_) => break,
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Some(event))) => {
                    let event: EventView = read(event)?;
                    *cursor = Some(event.cursor.clone());
                    tell(style, &event);
                    if event.workflow.as_str() == id && event.status.is_ended() {
                        break;
                    }
                }
            }
        }
    }
}

fn tell(style: &Style, event: &EventView) {
    say(&format!("{}: {}", event.target, event.text));
    if event.status == Status::NeedsOperator {
        say(&format!("  {} turnaround show {}", style.bad("NEEDS YOU:"), event.workflow));
    }
}
