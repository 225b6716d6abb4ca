//! The operators of the campaign's site: they order, pause, resume, abort, ask for retries and answer questions, as the seed has it,
//! through the API and the command line.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::desk::{Answer, Desk};
use super::stage::Stage;

/// Pauses between two of their deeds, in milliseconds.
const PAUSE_MS: Range<u64> = 100..600;
/// Rollouts and surveys that are open at once: more would only queue up, and have to be waited for at the end.
const ROLLOUTS_MAX: usize = 8;
const SURVEYS_MAX: usize = 5;
/// Nodes of one rollout.
const NODES: Range<usize> = 1..4;
/// One in so many requests is sent again once it was answered, as an impatient client does.
const SENT_TWICE_ONE_IN: u32 = 5;
/// One in so many orders is typed, not sent.
const TYPED_ONE_IN: u32 = 6;

/// What they did: by kind, how many were accepted and how many refused, and how many requests were sent twice.
#[derive(Debug, Clone, Default)]
pub struct Deeds {
    pub accepted: BTreeMap<String, u32>,
    pub refused: BTreeMap<String, u32>,
    pub unanswered: BTreeMap<String, u32>,
    pub sent_twice: u32,
}

pub(super) struct Operators<'a> {
    stage: &'a Stage,
    desk: Desk<'a>,
    random: StdRng,
    deeds: Deeds,
    nodes: Vec<String>,
    image: String,
}

impl<'a> Operators<'a> {
    pub(super) fn new(stage: &'a Stage) -> io::Result<Operators<'a>> {
        let random = StdRng::seed_from_u64(stage.seed.wrapping_mul(17).wrapping_add(5));
        let nodes = stage.world.machines().into_iter().map(|machine| machine.node).collect();
        let image = stage.world.images()[0].name.clone();
        Ok(Operators { stage, desk: Desk::new(stage)?, random, deeds: Deeds::default(), nodes, image })
    }

    /// Until `stop`.
    pub(super) async fn work(mut self, stop: &CancellationToken) -> io::Result<Deeds> {
        loop {
            let pause = Duration::from_millis(self.random.random_range(PAUSE_MS));
            tokio::select! {
                () = stop.cancelled() => return Ok(self.deeds),
                () = tokio::time::sleep(pause) => {}
            }
            self.deed().await?;
        }
    }

    async fn deed(&mut self) -> io::Result<()> {
        // While Redis is away nobody knows what is open, and people order all the same.
        let Some(open) = self.desk.open().await else { return self.send("survey", "/v1/surveys", json!({})).await };
        let of = |kind: &str| open.iter().filter(|line| line["kind"] == kind).count();
        match self.random.random_range(0..100) {
            0..25 if of("node-os-rollout") < ROLLOUTS_MAX => self.order().await,
            25..35 if of("survey") < SURVEYS_MAX => self.send("survey", "/v1/surveys", json!({})).await,
            _ if open.is_empty() => self.order().await,
            number => {
                let line = open[self.random.random_range(0..open.len())].clone();
                self.tell_one(&line, number).await
            }
        }
    }

    async fn order(&mut self) -> io::Result<()> {
        let mut left = self.nodes.clone();
        let count = self.random.random_range(NODES).min(left.len());
        let nodes: Vec<String> = (0..count).map(|_| left.swap_remove(self.random.random_range(0..left.len()))).collect();
        if self.random.random_range(0..TYPED_ONE_IN) == 0 {
            return self.type_order(&nodes).await;
        }
        // Also nodes that are being renewed: two renewals of one node have to come one after the other. The typed ones are refused.
        self.send("rollout", "/v1/rollouts", json!({ "nodes": nodes, "image": self.image, "again": true })).await
    }

    /// By the command that an operator types.
    async fn type_order(&mut self, nodes: &[String]) -> io::Result<()> {
        let image = self.image.clone();
        let arguments = [&["--json", "node", "renew"], &nodes.iter().map(String::as_str).collect::<Vec<_>>()[..], &["--image", &image, "--yes"]];
        let answer = self.desk.type_command(&arguments.concat()).await?;
        self.count("rollout (typed)", &answer);
        Ok(())
    }

    /// One of the open workflows gets to hear something.
    async fn tell_one(&mut self, line: &Value, number: u32) -> io::Result<()> {
        let id = line["id"].as_str().unwrap_or_default().to_owned();
        if line["status"] == "needs-operator" {
            return self.answer(&id).await;
        }
        let signal = match (line["status"].as_str(), number) {
            // Only a person with a backup can mend it.
            (Some("quarantined"), _) => return Ok(()),
            (Some("paused"), _) => json!({ "signal": "resume" }),
            (_, 35..60) => json!({ "signal": "pause", "why": "lunch" }),
            (_, 60..72) => json!({ "signal": "abort", "why": "not today" }),
            (_, 72..85) => json!({ "signal": "retry" }),
            _ => return Ok(()),
        };
        self.signal(&id, signal).await
    }

    async fn answer(&mut self, id: &str) -> io::Result<()> {
        let Some(question) = self.desk.question(id).await else { return Ok(()) };
        let answers = question["answers"].as_array().cloned().unwrap_or_default();
        // Nodes that are left out of service stay out to the end: that is for the end.
        let answers: Vec<&Value> = answers.iter().filter(|answer| answer["effect"] != "leave").collect();
        if answers.is_empty() {
            return Ok(());
        }
        let answer = answers[self.random.random_range(0..answers.len())];
        self.signal(id, json!({ "signal": "answer", "key": answer["key"] })).await
    }

    async fn signal(&mut self, id: &str, signal: Value) -> io::Result<()> {
        let name = signal["signal"].as_str().unwrap_or_default().to_owned();
        self.send(&name, &format!("/v1/workflows/{id}/signals"), signal).await
    }

    async fn send(&mut self, what: &str, path: &str, body: Value) -> io::Result<()> {
        let key = self.desk.next_key();
        let answer = self.desk.send(what, path, &body, &key).await?;
        self.count(what, &answer);
        if matches!(answer, Answer::Accepted(_)) && self.random.random_range(0..SENT_TWICE_ONE_IN) == 0 {
            self.stage.faults.tell("fault", json!({ "kind": "request sent twice", "pids": [] }));
            // What it is answered is in the ledger, with its key: the judge compares the two.
            self.desk.send(what, path, &body, &key).await?;
            self.deeds.sent_twice += 1;
        }
        Ok(())
    }

    fn count(&mut self, what: &str, answer: &Answer) {
        let of = match answer {
            Answer::Accepted(_) => &mut self.deeds.accepted,
            Answer::Refused => &mut self.deeds.refused,
            Answer::Unknown => &mut self.deeds.unanswered,
        };
        *of.entry(what.to_owned()).or_insert(0) += 1;
    }
}
