//! `turnaround events`: what happened lately, or what happens now.

use std::collections::VecDeque;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::{Client, read};
use super::duration::time_of_day;
use super::error::CliError;
use super::out::{Style, print, say};
use super::resolve::resolve;
use crate::exit::Exit;
use crate::wire::EventView;

/// Before everything that the store has.
const BEGINNING: &str = "0-0";
/// Longest event: a journal entry with a large step output. The daemon writes none near that.
const EVENT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A daemon that is restarted answers again within seconds; `--follow` goes on where it was.
pub(super) const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// After so long without a daemon, `--follow` gives up.
pub(super) const RECONNECTS_MAX: u32 = 300;

#[derive(Args)]
pub(super) struct Arguments {
    /// Stay, and print what happens
    #[arg(short, long)]
    follow: bool,
    /// Only of this workflow and those below it
    #[arg(long, value_name = "ID")]
    workflow: Option<String>,
    /// Without --follow: so many of the newest ones
    #[arg(long, default_value_t = 50)]
    last: usize,
    /// With --follow: go on after the event with this cursor, as `--json` prints it
    #[arg(long, value_name = "CURSOR", requires = "follow")]
    after: Option<String>,
}

pub(super) async fn run(client: &Client, style: &Style, arguments: Arguments) -> Result<Exit, CliError> {
    let only = match &arguments.workflow {
        Some(typed) => format!("&workflow={}", resolve(client, typed).await?),
        None => String::new(),
    };
    if arguments.follow {
        return follow(client, style, &only, arguments.after).await;
    }
    let mut events = Events::open(client, &format!("/v1/events?until_now=true{only}"), Some(BEGINNING)).await?;
    let mut newest = VecDeque::new();
    while let Some(event) = events.next().await? {
        newest.push_back(event);
        if newest.len() > arguments.last {
            newest.pop_front();
        }
    }
    for event in newest {
        show(event, *style)?;
    }
    Ok(Exit::Good)
}

async fn follow(client: &Client, style: &Style, only: &str, after: Option<String>) -> Result<Exit, CliError> {
    let path = format!("/v1/events?until_now=false{only}");
    let mut cursor = after;
    // Whoever has a cursor was here before.
    let mut was_here = cursor.is_some();
    let mut tries = 0;
    loop {
        match Events::open(client, &path, cursor.as_deref()).await {
            Ok(mut events) => {
                (was_here, tries) = (true, 0);
                while let Ok(Some(event)) = events.next().await {
                    show(event, *style)?;
                }
                cursor = events.cursor;
                say("the daemon ended the stream; going on when it is back");
            }
            Err(CliError::Unreachable { .. }) if was_here && tries < RECONNECTS_MAX => tries += 1,
            Err(error) => return Err(error),
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

fn show(event: Value, style: Style) -> Result<(), CliError> {
    if style.json {
        return print(&format!("{event}\n"));
    }
    print(&render(&read(event)?))
}

fn render(event: &EventView) -> String {
    let at = event.at.map(time_of_day).unwrap_or_default();
    format!("{at} {:<14} {} {}\n", event.status.as_str(), event.workflow, event.text)
}

/// Server-sent events, one JSON value at a time.
pub(super) struct Events {
    response: reqwest::Response,
    read: Vec<u8>,
    /// Where it is. None until the daemon has told, if nobody has said where to begin.
    cursor: Option<String>,
}

impl Events {
    pub(super) async fn open(client: &Client, path: &str, after: Option<&str>) -> Result<Events, CliError> {
        Ok(Events { response: client.stream(path, after).await?, read: Vec::new(), cursor: after.map(str::to_owned) })
    }

    /// None: the daemon ended the stream. An error: it went away.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, CliError> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.read.drain(..end + 2).collect();
                let event = data(&block)?;
                self.cursor = id(&block).or(self.cursor.take());
                if event.is_some() {
                    return Ok(event);
                }
                continue;
            }
            let lost = |error: reqwest::Error| CliError::Local { what: "the stream of events broke off".to_owned(), source: error.into() };
            match self.response.chunk().await.map_err(lost)? {
                None => return Ok(None),
                Some(chunk) => self.read.extend_from_slice(&chunk),
            }
            if self.read.len() > EVENT_BYTES_MAX {
                return Err(CliError::Answer { what: "an event has no end".to_owned() });
            }
        }
    }
}

/// The id of one block; None for a comment, which only shows that the daemon lives.
fn id(block: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(block);
    text.lines().find_map(|line| line.strip_prefix("id:")).map(|id| id.trim_start().to_owned())
}

/// The data of one block; None for a comment, and where the daemon only tells where the stream begins.
fn data(block: &[u8]) -> Result<Option<Value>, CliError> {
    let text = String::from_utf8_lossy(block);
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data:")).map(|data| data.trim_start()).collect();
    if data.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&data.join("\n")).map(Some).map_err(|error| CliError::Answer { what: error.to_string() })
}
