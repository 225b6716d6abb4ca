//! The workflow that is measured: three steps that do nothing, so that what is left is the engine.

use std::os::unix::net::UnixDatagram;

use async_trait::async_trait;
use turnaround_workflows::clock::{Clock as _, SystemClock, Timestamp};
use turnaround_workflows::engine::{Definition, Observed, Progress, Registry, Start, Step, StepCx, StepError, start, step};
use turnaround_workflows::store::NewWorkflow;

pub(super) const KIND: &str = "bench";

/// A step that does nothing, durably.
macro_rules! no_op {
    ($step:ident, $name:literal) => {
        struct $step;

        #[async_trait]
        impl Step for $step {
            const NAME: &'static str = $name;
            type Output = ();

            async fn observe(&self, _cx: &StepCx<'_>) -> Result<Observed<()>, StepError> {
                Ok(Observed::ToDo { would: "do nothing".to_owned() })
            }

            async fn act(&self, _cx: &StepCx<'_>) -> Result<Progress<()>, StepError> {
                Ok(Progress::Done(()))
            }
        }
    };
}

no_op!(Second, "second");
no_op!(Third, "third");

/// Tells, if it is to, that its workflow begins, and does nothing else.
struct First {
    begins: Option<UnixDatagram>,
}

#[async_trait]
impl Step for First {
    const NAME: &'static str = "first";
    type Output = ();

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<()>, StepError> {
        if let Some(begins) = &self.begins {
            begins.send(cx.id.as_str().as_bytes()).map_err(|error| StepError::fatal("nobody hears that it begins").because(error))?;
        }
        Ok(Observed::ToDo { would: "do nothing".to_owned() })
    }

    async fn act(&self, _cx: &StepCx<'_>) -> Result<Progress<()>, StepError> {
        Ok(Progress::Done(()))
    }
}

/// `begins`: connected to whoever wants to know when workflows begin.
pub(super) fn registry(begins: Option<UnixDatagram>) -> Registry {
    Registry::new([Definition { kind: KIND, version: 1, steps: vec![step(First { begins }), step(Second), step(Third)] }])
}

/// The workflow of that number, as the daemon would order it.
pub(super) fn workflow(number: usize) -> NewWorkflow {
    let ordered = Start {
        id: id(number).parse().expect("an id of letters and digits"),
        kind: KIND.to_owned(),
        version: 1,
        target: format!("node-{number:07}"),
        input: serde_json::Value::Null,
        parent: None,
        key: None,
        by: "operator".to_owned(),
        traceparent: None,
    };
    start(ordered, SystemClock.now()).expect("an input that can be written")
}

/// The same, to be looked at first at `due`.
pub(super) fn parked(number: usize, due: Timestamp) -> NewWorkflow {
    NewWorkflow { due: Some(due), ..workflow(number) }
}

pub(super) fn id(number: usize) -> String {
    format!("bench-{number:07}")
}
