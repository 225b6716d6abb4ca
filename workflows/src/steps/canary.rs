//! The canary: an instance has to start on a renewed node before tenants' instances may.
//!
//! Nova's scheduler puts nothing on a disabled host, so the canary is built elsewhere, its live migration onto the node is forced, and there it is
//! stopped and started: what runs once it was seen stopped on the node, the node's hypervisor has started. (An instance that only moves in has been
//! started by another host; and so may be what runs after a hard reboot: Nova passes over one that fails while the old guest still runs.)

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::shown::{ACCEPT, Shown};
use super::{Reason, order, queues};
use crate::clock::Timestamp;
use crate::engine::{AnswerEffect, Observed, PastDeadline, Policy, Progress, Question, Step, StepCx, StepError, Undone};
use crate::ports::{CANARY_NAME, CanaryInstance, Migration, MigrationKind, MigrationState, NewCanary, PortError, PortErrorKind, RequestId};
use crate::store::Queue;
use crate::updates::{NodeOrder, OrderedCanary};

/// What Nova was asked for and may not have heard of is not asked for again within this time.
// A request that is under way has reached Nova by then, or never will: its time-out is 30 s by default.
const HEARD_WITHIN: Duration = Duration::from_secs(60);

/// A canary that is not gone after so long becomes a question.
// Nova deletes one in seconds. One whose move can't be stopped is not deleted before it has ended: that of so small an instance takes a minute.
const REMOVED_WITHIN: Duration = Duration::from_secs(30 * 60);

/// So much of a console's last line is shown to an operator.
const LINE_CHARS_MAX: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tried {
    /// It started on the node, and was removed.
    Started,
    /// The order has none.
    NotOrdered,
    /// It did not start, for this reason, and an operator gives the node back all the same.
    Accepted { why: String },
}

/// Done when a canary has started on the node, and is gone; or when an operator does without.
pub struct Canary;

/// How far this try has come. What is to be asked of Nova is written down before, so that it is not asked twice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Course {
    /// When it was last asked for.
    created: Option<Timestamp>,
    moved: Option<Moved>,
    /// Its stop on the node.
    stopped: Option<Asked>,
    /// Its start there: asked for only where Nova had it as stopped there.
    started: Option<Asked>,
    end: Option<End>,
    /// When this try began, about whose failure an operator is asked.
    shown: Option<Shown<Option<Timestamp>>>,
    accepted: bool,
}

/// Its move onto the node, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Moved {
    at: Timestamp,
    /// Its newest migration before that.
    before: Option<String>,
    /// None where Nova's answer was lost.
    request: Option<RequestId>,
    /// Why Nova did not accept it.
    refused: Option<String>,
}

/// Its stop or its start, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    at: Timestamp,
    /// None where Nova's answer was lost, and for a stop.
    request: Option<RequestId>,
    /// Why Nova did not accept it.
    refused: Option<String>,
}

impl Asked {
    fn now(cx: &StepCx<'_>) -> Asked {
        Asked { at: cx.now(), request: None, refused: None }
    }

    /// Nothing more is to be done about it before Nova has had its time.
    fn waits(&self, what: &str, cx: &StepCx<'_>) -> Option<Seen> {
        let refused = self.refused.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        (!is_over(self.at, HEARD_WITHIN, cx)).then(|| Seen::Going(format!("{what}{refused}")))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    at: Timestamp,
    /// Why it did not start; None if it did.
    why: Option<String>,
}

/// How it is with the canary of a try that has not ended.
enum Seen {
    Started,
    /// Look again later.
    Going(String),
    Failed(String),
}

fn name(cx: &StepCx<'_>) -> String {
    format!("{CANARY_NAME}{}", cx.id)
}

/// Nova has said no: nothing was done, and nothing will be.
fn is_no(error: &PortError) -> bool {
    match error.kind {
        PortErrorKind::Refused { .. } | PortErrorKind::Denied { .. } | PortErrorKind::NotFound | PortErrorKind::Garbled { .. } => true,
        PortErrorKind::Unavailable | PortErrorKind::OutcomeUnknown => false,
    }
}

fn is_over(since: Timestamp, length: Duration, cx: &StepCx<'_>) -> bool {
    cx.now().since(since) >= length
}

/// A try, in hand.
struct Try<'a, 'c> {
    cx: &'a StepCx<'c>,
    order: &'a NodeOrder,
    canary: &'a OrderedCanary,
    name: String,
    course: Course,
}

impl Try<'_, '_> {
    /// Nothing more is begun: it has taken too long.
    fn is_late(&self) -> bool {
        self.cx.patient_since().is_some_and(|since| is_over(since, Duration::from_millis(self.canary.deadline_ms), self.cx))
    }

    async fn save(&self, note: &str) -> Result<(), StepError> {
        self.cx.save(&self.course, note).await
    }

    /// Brings it on by what is there.
    async fn go_on(&mut self, found: &[CanaryInstance]) -> Result<Seen, StepError> {
        let here = |one: &&CanaryInstance| one.host.as_deref() == Some(self.order.node.as_str());
        // Of two, where one surfaced late, the one that has come further.
        let Some(canary) = found.iter().find(here).or(found.first()) else { return self.create().await };
        if canary.vm_state == "error" {
            let fault = canary.fault.as_deref().unwrap_or("it is in ERROR, and Nova does not say why");
            return Ok(Seen::Failed(format!("{}: {fault}", self.stage(canary))));
        }
        let whereabouts = canary.host.as_deref().map(|host| format!(" on {host}")).unwrap_or_default();
        if let Some(task) = &canary.task_state {
            return Ok(Seen::Going(format!("the canary is {task}{whereabouts}")));
        }
        match (canary.vm_state.as_str(), here(&canary)) {
            ("active", false) => self.put(canary).await,
            // As the other host has started it, unless it was seen stopped here.
            ("active", true) if self.course.started.is_none() => self.stop(canary).await,
            ("active", true) => self.listen(canary).await,
            ("stopped", true) => self.start(canary).await,
            (state, _) => Ok(Seen::Going(format!("the canary is {state}{whereabouts}"))),
        }
    }

    /// What was being done with one that is in ERROR.
    fn stage(&self, canary: &CanaryInstance) -> &'static str {
        match (&self.course.moved, &canary.host) {
            (_, Some(host)) if host == self.order.node.as_str() => "it did not start on the node",
            (None, _) => "it could not be built on another host",
            (Some(_), _) => "it could not be moved onto the node",
        }
    }

    async fn create(&mut self) -> Result<Seen, StepError> {
        if self.course.created.is_some_and(|at| !is_over(at, HEARD_WITHIN, self.cx)) {
            return Ok(Seen::Going("a canary was asked for, and is not there yet".to_owned()));
        }
        if self.is_late() {
            return Ok(Seen::Going("there is no canary".to_owned()));
        }
        self.course = Course { created: Some(self.cx.now()), ..Course::default() };
        self.save("about to have a canary built").await?;
        let OrderedCanary { image, flavor, network, console: _, deadline_ms: _ } = self.canary.clone();
        self.cx.guard().await?;
        match self.cx.ports.canaries.create(&self.name, &NewCanary { image, flavor, network }).await {
            Ok(()) => Ok(Seen::Going("a canary is being built".to_owned())),
            Err(error) if is_no(&error) => Ok(Seen::Failed(StepError::from(error).chain())),
            Err(error) => Err(error.into()),
        }
    }

    /// It runs on another host.
    async fn put(&mut self, canary: &CanaryInstance) -> Result<Seen, StepError> {
        let newest = self.cx.ports.instances.migrations(&canary.id).await?.into_iter().next();
        if let Some(Moved { at, before, request, refused }) = &self.course.moved {
            let since = newest.as_ref().filter(|migration| Some(&migration.uuid) != before.as_ref());
            match since.map(|migration| migration.state) {
                Some(MigrationState::Failed) => {
                    let why = match request {
                        Some(request) => self.cx.ports.instances.why_failed(&canary.id, request).await?,
                        None => None,
                    };
                    let status = since.map(|migration| migration.status.as_str()).unwrap_or_default();
                    let why = why.unwrap_or_else(|| format!("Nova has its migration as `{status}`, and says no more"));
                    return Ok(Seen::Failed(format!("it could not be moved onto the node: {why}")));
                }
                Some(MigrationState::InProgress) => return Ok(Seen::Going("the canary is being moved onto the node".to_owned())),
                // (By somebody else, if it has arrived elsewhere.)
                Some(MigrationState::Succeeded | MigrationState::AwaitsConfirmation) | None if !is_over(*at, HEARD_WITHIN, self.cx) => {
                    let refused = refused.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                    return Ok(Seen::Going(format!("the canary was to be moved onto the node, and is not moving{refused}")));
                }
                Some(MigrationState::Succeeded | MigrationState::AwaitsConfirmation) | None => {}
            }
        }
        if newest.as_ref().is_some_and(|migration| migration.state == MigrationState::InProgress) {
            return Ok(Seen::Going("the canary is being moved by somebody else".to_owned()));
        }
        if self.is_late() {
            return Ok(Seen::Going("the canary does not move onto the node".to_owned()));
        }
        let moved = Moved { at: self.cx.now(), before: newest.map(|migration| migration.uuid), request: None, refused: None };
        (self.course.moved, self.course.stopped, self.course.started) = (Some(moved.clone()), None, None);
        self.save("about to have the canary moved onto the node").await?;
        self.cx.guard().await?;
        match self.cx.ports.canaries.put_on(&canary.id, &self.order.node).await {
            Ok(request) => {
                self.course.moved = Some(Moved { request: Some(request), ..moved });
                self.save("the canary moves onto the node").await?;
                Ok(Seen::Going("the canary is being moved onto the node".to_owned()))
            }
            Err(error) if matches!(error.kind, PortErrorKind::Refused { .. }) => {
                // Perhaps as somebody else moves it just now.
                let refused = StepError::from(error).chain();
                self.course.moved = Some(Moved { refused: Some(refused.clone()), ..moved });
                self.save("the canary is not moved onto the node").await?;
                Ok(Seen::Going(refused))
            }
            Err(error) if is_no(&error) => Ok(Seen::Failed(StepError::from(error).chain())),
            Err(error) => Err(error.into()),
        }
    }

    /// It runs on the node, as far as is known still as the other host has started it.
    async fn stop(&mut self, canary: &CanaryInstance) -> Result<Seen, StepError> {
        if let Some(seen) = self.course.stopped.as_ref().and_then(|asked| asked.waits("the canary was to be stopped on the node, and runs", self.cx)) {
            return Ok(seen);
        }
        let newest = self.cx.ports.instances.migrations(&canary.id).await?.into_iter().next();
        if newest.is_some_and(|migration| migration.state == MigrationState::InProgress) {
            return Ok(Seen::Going("the canary arrives on the node".to_owned()));
        }
        if self.is_late() {
            return Ok(Seen::Going("the canary is on the node, and was not stopped there, to be started anew".to_owned()));
        }
        let asked = Asked::now(self.cx);
        self.course.stopped = Some(asked.clone());
        self.save("about to have the canary stopped on the node").await?;
        self.cx.guard().await?;
        match self.cx.ports.canaries.stop(&canary.id).await {
            Ok(()) => Ok(Seen::Going("the canary is being stopped on the node".to_owned())),
            Err(error) if matches!(error.kind, PortErrorKind::Refused { .. }) => {
                let refused = StepError::from(error).chain();
                self.course.stopped = Some(Asked { refused: Some(refused.clone()), ..asked });
                self.save("the canary is not stopped on the node").await?;
                Ok(Seen::Going(refused))
            }
            Err(error) if is_no(&error) => Ok(Seen::Failed(StepError::from(error).chain())),
            Err(error) => Err(error.into()),
        }
    }

    /// It is stopped on the node: what runs from here on was started there.
    async fn start(&mut self, canary: &CanaryInstance) -> Result<Seen, StepError> {
        match &self.course.started {
            // Accepted it has a task, until Nova has done with it.
            Some(Asked { request: Some(request), .. }) => {
                let why = self.cx.ports.instances.why_failed(&canary.id, request).await?;
                let why = why.unwrap_or_else(|| format!("Nova has it as {}, and says no more", canary.vm_state));
                return Ok(Seen::Failed(format!("it did not start on the node: {why}")));
            }
            Some(asked) => {
                if let Some(seen) = asked.waits("the canary was to be started on the node, and is stopped", self.cx) {
                    return Ok(seen);
                }
            }
            None => {}
        }
        if self.is_late() {
            return Ok(Seen::Going("the canary is on the node, and was not started there".to_owned()));
        }
        let asked = Asked::now(self.cx);
        self.course.started = Some(asked.clone());
        self.save("about to have the canary started on the node").await?;
        self.cx.guard().await?;
        match self.cx.ports.canaries.start(&canary.id).await {
            Ok(request) => {
                self.course.started = Some(Asked { request: Some(request), ..asked });
                self.save("the canary starts on the node").await?;
                Ok(Seen::Going("the canary is being started on the node".to_owned()))
            }
            Err(error) if matches!(error.kind, PortErrorKind::Refused { .. }) => {
                let refused = StepError::from(error).chain();
                self.course.started = Some(Asked { refused: Some(refused.clone()), ..asked });
                self.save("the canary is not started on the node").await?;
                Ok(Seen::Going(refused))
            }
            Err(error) if is_no(&error) => Ok(Seen::Failed(StepError::from(error).chain())),
            Err(error) => Err(error.into()),
        }
    }

    /// It was started on the node, and runs.
    async fn listen(&self, canary: &CanaryInstance) -> Result<Seen, StepError> {
        let Some(wanted) = &self.canary.console else { return Ok(Seen::Started) };
        let said = match self.cx.ports.canaries.console(&canary.id).await {
            Ok(said) => said,
            // As long as libvirt has not begun its console.
            Err(error) if is_no(&error) => return Ok(Seen::Going(StepError::from(error).chain())),
            Err(error) => return Err(error.into()),
        };
        if said.contains(wanted.as_str()) {
            return Ok(Seen::Started);
        }
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let last: String = last.chars().filter(|c| !c.is_control()).take(LINE_CHARS_MAX).collect();
        Ok(Seen::Going(format!("the canary's console does not say `{wanted}`; its last line is `{last}`")))
    }
}

/// Has all of them deleted. Of one that moves Nova would keep what it has taken: its move is stopped first. Says what is waited for.
async fn remove(cx: &StepCx<'_>, found: &[CanaryInstance]) -> Result<String, StepError> {
    let mut note = "the canary is being removed".to_owned();
    for canary in found.iter().filter(|canary| canary.task_state.as_deref() != Some("deleting")) {
        if canary.is_moving() {
            note = stop_move(cx, canary).await?;
        } else {
            cx.guard().await?;
            cx.ports.canaries.remove(&canary.id).await?;
        }
    }
    Ok(note)
}

async fn stop_move(cx: &StepCx<'_>, canary: &CanaryInstance) -> Result<String, StepError> {
    let waits = format!("the canary {} is removed once it does not move any more", canary.id);
    let Some(live) = live_move(cx, canary).await? else { return Ok(waits) };
    cx.guard().await?;
    match cx.ports.instances.stop_live(&canary.id, &live).await {
        Ok(()) => Ok(waits),
        // It ends by itself, or else an operator is asked.
        Err(error) if is_no(&error) => Ok(format!("{waits}: {}", StepError::from(error).chain())),
        Err(error) => Err(error.into()),
    }
}

/// The live migration that it is in.
async fn live_move(cx: &StepCx<'_>, canary: &CanaryInstance) -> Result<Option<String>, StepError> {
    let migrations = cx.ports.instances.migrations(&canary.id).await?;
    let live = |one: &Migration| one.kind == MigrationKind::Live && one.state == MigrationState::InProgress;
    Ok(migrations.into_iter().find(live).map(|one| one.uuid))
}

#[async_trait]
impl Step for Canary {
    const NAME: &'static str = "canary";
    const QUEUE: Queue = queues::OPENSTACK;
    type Output = Tried;

    fn policy(&self, cx: &StepCx<'_>) -> Policy {
        let canary = order(cx).ok().and_then(|order| order.rules.canary);
        // It has a deadline, and a question, of its own: this is for what has to be removed then.
        let deadline = canary.map_or(Policy::default().deadline, |canary| Duration::from_millis(canary.deadline_ms) + REMOVED_WITHIN);
        Policy { deadline, ..Policy::default() }
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Tried>, StepError> {
        let NodeOrder { node, rules, .. } = order(cx)?;
        let Some(OrderedCanary { image, flavor, .. }) = rules.canary else { return Ok(Observed::AlreadyDone(Tried::NotOrdered)) };
        let would = format!("have an instance of image {image} and flavour {flavor} built elsewhere, move it onto {node} by force, stop and start it there, and remove it");
        Ok(Observed::ToDo { would })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Tried>, StepError> {
        let order = order(cx)?;
        let Some(canary) = &order.rules.canary else { return Ok(Progress::Done(Tried::NotOrdered)) };
        let after = Duration::from_millis(order.rules.move_poll_ms);
        let course: Course = cx.checkpoint()?.unwrap_or_default();
        let mut this = Try { cx, order: &order, canary, name: name(cx), course };
        if let Some(shown) = this.course.shown.as_ref().filter(|_| !this.course.accepted) {
            if shown.answer(cx) == Some(ACCEPT) {
                this.course.accepted = true;
                this.save("taken as good by an operator").await?;
            } else if cx.tried_since() != shown.what {
                this.course = Course::default();
            }
        }
        let found = cx.ports.canaries.find(&this.name).await?;
        if this.course.end.is_none() {
            let why = match this.go_on(&found).await? {
                Seen::Started => None,
                Seen::Failed(why) => Some(why),
                Seen::Going(note) if this.is_late() => Some(format!("not done within {} min: {note}", canary.deadline_ms / 60_000)),
                Seen::Going(note) => return Ok(Progress::LookAgain { after, note }),
            };
            let note = if why.is_none() { "the canary has started on the node" } else { "the canary has not started on the node" };
            this.course.end = Some(End { at: cx.now(), why });
            this.save(note).await?;
        }
        if !found.is_empty() {
            return Ok(Progress::LookAgain { after, note: remove(cx, &found).await? });
        }
        // One that was never seen may still turn up.
        let Course { created, moved, stopped, started, end, accepted, .. } = &this.course;
        if moved.is_none() && stopped.is_none() && started.is_none() && created.is_some_and(|at| !is_over(at, HEARD_WITHIN, cx)) {
            return Ok(Progress::LookAgain { after, note: "a canary that was asked for may still turn up".to_owned() });
        }
        let Some(why) = end.as_ref().and_then(|end| end.why.clone()) else { return Ok(Progress::Done(Tried::Started)) };
        if *accepted {
            return Ok(Progress::Done(Tried::Accepted { why }));
        }
        let question = Question::new(format!("{} is renewed, and no instance has started on it: what now?", order.node))
            .because(Reason::CanaryFailed, format!("{}: {why}", this.name))
            .answer("retry", AnswerEffect::Retry, "tries another one, after you have mended it: nova-compute, libvirt and the network on the node; room elsewhere to build it")
            .answer(ACCEPT, AnswerEffect::Retry, format!("gives {} back without one", order.node))
            .answer("leave", AnswerEffect::Leave, format!("ends here; {} stays closed", order.node));
        this.course.shown = Some(Shown::now(cx, cx.tried_since()));
        this.save("no instance has started on the node").await?;
        Err(StepError::ask(question))
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        let course: Course = cx.checkpoint()?.unwrap_or_default();
        // Before its end it has a deadline of its own.
        let Some(End { at, why }) = course.end else { return Ok(PastDeadline::Act) };
        let found = cx.ports.canaries.find(&name(cx)).await?;
        if found.is_empty() || !is_over(at, REMOVED_WITHIN, cx) {
            return Ok(PastDeadline::Act);
        }
        let state = |one: &CanaryInstance| format!("{} ({}): {}, {}", name(cx), one.id, one.vm_state, one.task_state.as_deref().unwrap_or("no task"));
        let question = Question::new(format!("the instance that was tried on {} is not removed: what now?", cx.target()));
        let mut question = found.iter().map(state).chain(why).fold(question, Question::seen);
        question.reasons.insert(Reason::CanaryStays.to_string());
        Ok(PastDeadline::Ask(
            question
                .answer("retry", AnswerEffect::Retry, "goes on removing it, once you have ended its migration, or deleted it")
                .answer("leave", AnswerEffect::Leave, format!("ends here, and leaves it; {} stays closed", cx.target())),
        ))
    }

    async fn undo(&self, cx: &StepCx<'_>) -> Result<Undone, StepError> {
        let order = order(cx)?;
        if order.rules.canary.is_none() {
            return Ok(Undone::Done { note: "nothing to undo".to_owned() });
        }
        let found = cx.ports.canaries.find(&name(cx)).await?;
        if found.is_empty() {
            return Ok(Undone::Done { note: "no canary is left".to_owned() });
        }
        Ok(Undone::LookAgain { after: Duration::from_millis(order.rules.move_poll_ms), note: remove(cx, &found).await? })
    }

    /// One that moves is stopped from that, as far as Nova does so, and left: nobody has to wait for it.
    async fn leave(&self, cx: &StepCx<'_>) -> Result<(), StepError> {
        if order(cx)?.rules.canary.is_none() || cx.output::<Canary>()?.is_some() {
            return Ok(());
        }
        for canary in cx.ports.canaries.find(&name(cx)).await? {
            if !canary.is_moving() {
                cx.ports.canaries.remove(&canary.id).await?;
            } else if let Some(live) = live_move(cx, &canary).await? {
                match cx.ports.instances.stop_live(&canary.id, &live).await {
                    Err(error) if !is_no(&error) => return Err(error.into()),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }
}
