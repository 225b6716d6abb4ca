//! What alerts at the simulated site.

use std::collections::BTreeSet;

use async_trait::async_trait;
use turnaround_config::Matcher;

use super::log::Happened;
use super::plan::{Api, Call};
use super::site::Site;
use super::trouble::Trouble;
use super::world::World;
use crate::clock::Timestamp;
use crate::ports::{NewSilence, PortError, Silence, Silences};

/// An alert that fires about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// Its label `alertname`.
    pub name: String,
    /// Its label `instance`: the node.
    pub instance: String,
}

/// One that was begun; it may have ended.
#[derive(Debug, Clone)]
pub struct Begun {
    pub id: String,
    pub mark: String,
    pub until: Timestamp,
    ended: bool,
}

impl Begun {
    pub fn is_in_force(&self, now: Timestamp) -> bool {
        !self.ended && self.until > now
    }
}

impl Site {
    fn begin_silence(&mut self, silence: &NewSilence) -> Result<(), Trouble> {
        if silence.until <= self.now {
            return Err(Trouble::refused(400, "Failed to create silence: end time can't be in the past"));
        }
        let id = self.uuid();
        let about = |name: &String| silence.matchers.iter().any(|matcher| matcher.value.starts_with(name.as_str()));
        let node = self.nodes.iter().map(|node| node.name.clone()).find(about);
        self.record(Happened::SilenceBegun { silence: id.clone(), node, mark: silence.mark.clone(), until: silence.until });
        self.silences.push(Begun { id, mark: silence.mark.clone(), until: silence.until, ended: false });
        self.answer(Call::BeginSilence, ())
    }

    fn end_silence(&mut self, id: &str) -> Result<(), Trouble> {
        let now = self.now;
        let found = self.silences.iter_mut().find(|silence| silence.id == id && silence.is_in_force(now));
        let Some(silence) = found else { return Err(Trouble::refused(400, "silence is expired")) };
        silence.ended = true;
        self.record(Happened::SilenceEnded { silence: id.to_owned() });
        self.answer(Call::EndSilence, ())
    }
}

/// The Alertmanager, as its protocol's server needs it.
impl World {
    /// All that were ever begun.
    ///
    /// # Errors
    /// It is away. So with all of these.
    pub fn silences(&self) -> Result<Vec<Begun>, Trouble> {
        Ok(self.asked(Api::Monitoring, None)?.silences.clone())
    }

    pub fn begin_silence(&self, silence: &NewSilence) -> Result<(), Trouble> {
        self.asked(Api::Monitoring, None)?.begin_silence(silence)
    }

    /// The alerts that fire: name and labels of each.
    pub fn alerts(&self) -> Result<Vec<Alert>, Trouble> {
        let site = self.asked(Api::Monitoring, None)?;
        let of = |machine: &super::machine::Machine| {
            let names = machine.alerts(site.now, &site.plan.latencies);
            names.into_iter().map(|name| Alert { name, instance: machine.name.clone() }).collect::<Vec<_>>()
        };
        Ok(site.nodes.iter().flat_map(of).collect())
    }

    pub fn end_silence(&self, id: &str) -> Result<(), Trouble> {
        self.asked(Api::Monitoring, None)?.end_silence(id)
    }
}

#[async_trait]
impl Silences for World {
    async fn in_force(&self, mark: &str) -> Result<Vec<Silence>, PortError> {
        let site = self.asked(Api::Monitoring, None).map_err(|e| e.while_trying_to("list the silences"))?;
        let ours = site.silences.iter().filter(|silence| silence.mark == mark && silence.is_in_force(site.now));
        Ok(ours.map(|silence| Silence { id: silence.id.clone(), until: silence.until }).collect())
    }

    async fn begin(&self, silence: &NewSilence) -> Result<(), PortError> {
        self.begin_silence(silence).map_err(|e| e.while_trying_to("begin a silence"))
    }

    async fn end(&self, id: &str) -> Result<(), PortError> {
        self.end_silence(id).map_err(|e| e.while_trying_to(format_args!("end silence {id}")))
    }

    async fn firing(&self, matchers: &[Matcher]) -> Result<BTreeSet<String>, PortError> {
        let alerts = self.alerts().map_err(|e| e.while_trying_to("list the alerts that fire"))?;
        // (The whole of a regular expression is understood by the real one.)
        let is_meant = |alert: &&Alert| matchers.iter().all(|matcher| matcher.name != "instance" || matcher.value.starts_with(&alert.instance));
        Ok(alerts.iter().filter(is_meant).map(|alert| format!("{}{{instance=\"{}\"}}", alert.name, alert.instance)).collect())
    }
}
