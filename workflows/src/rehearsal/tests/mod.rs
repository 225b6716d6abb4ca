//! What the simulated site promises, in virtual time.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::*;
use crate::clock::{Clock, HandClock, Timestamp};
use crate::ports::*;

mod faults;
mod history;
mod machines;
mod moves;

/// 2026-03-01, so that no test leans on 1970.
const START: Timestamp = Timestamp::from_millis(1_772_323_200_000);

/// A site that never comes to rest is a mistake of the site.
const EVENTS_MAX: usize = 10_000;

struct Bench {
    clock: Arc<HandClock>,
    world: Arc<World>,
    ports: Ports,
}

impl Bench {
    fn of(plan: SitePlan) -> Bench {
        Bench::seeded(plan, 1)
    }

    fn seeded(plan: SitePlan, seed: u64) -> Bench {
        let clock = Arc::new(HandClock::at(START));
        let world = World::new(clock.clone(), plan, seed);
        let ports = world.ports();
        Bench { clock, world, ports }
    }

    fn pass(&self, length: Duration) {
        self.clock.advance(length);
    }

    /// Lets time pass, event by event, until `reached`.
    fn until(&self, what: &str, reached: impl Fn(&SiteSnapshot) -> bool) {
        for _ in 0..EVENTS_MAX {
            if reached(&self.world.snapshot()) {
                return;
            }
            let next = self.world.next_event();
            self.clock.advance_to(next.unwrap_or_else(|| panic!("nothing happens any more, and not yet: {what}")));
        }
        panic!("{EVENTS_MAX} events, and not yet: {what}");
    }

    /// Lets time pass until nothing happens any more by itself.
    fn settle(&self) {
        for _ in 0..EVENTS_MAX {
            match self.world.next_event() {
                Some(next) => self.clock.advance_to(next),
                None => return,
            }
        }
        panic!("the site does not come to rest");
    }

    fn id(&self, name: &str) -> InstanceId {
        InstanceId(self.world.snapshot().instance(name).unwrap().id.clone())
    }

    fn host(&self, name: &str) -> String {
        self.world.snapshot().instance(name).unwrap().host.clone().unwrap_or_default()
    }

    fn state(&self, name: &str) -> String {
        let snapshot = self.world.snapshot();
        let instance = snapshot.instance(name).unwrap();
        match &instance.task_state {
            Some(task) => format!("{}/{task}", instance.vm_state),
            None => instance.vm_state.clone(),
        }
    }

    fn start_move(&self, name: &str, how: Move) -> Result<RequestId, PortError> {
        block_on(self.ports.instances.start_move(&self.id(name), how, None)).map(|started| started.request)
    }

    fn newest_migration(&self, name: &str) -> Migration {
        block_on(self.ports.instances.migrations(&self.id(name))).unwrap().remove(0)
    }

    fn why_failed(&self, name: &str, request: &RequestId) -> Option<String> {
        block_on(self.ports.instances.why_failed(&self.id(name), request)).unwrap()
    }

    fn facts(&self, name: &str) -> Result<Facts, PortError> {
        block_on(self.ports.facts.facts(&node(name)))
    }

    fn close(&self, name: &str) {
        block_on(self.ports.compute.close(&node(name), "turnaround")).unwrap();
    }

    fn stage(&self, name: &str, token: &str) {
        let image = ImagePlan::new("node-26.1.1", "", "");
        let ticket =
            BootTicket { token: Token(token.to_owned()), image: image.name.parse().unwrap(), sha256: image.sha256, report: None };
        block_on(self.ports.netboot.stage(&node(name), &ticket)).unwrap();
    }

    fn netboot_and_reset(&self, name: &str) {
        block_on(self.ports.bmc.netboot_next(&node(name))).unwrap();
        block_on(self.ports.bmc.reset(&node(name))).unwrap();
    }

    fn happened(&self, wanted: impl Fn(&Happened) -> bool) -> usize {
        self.world.events().iter().filter(|event| wanted(&event.what)).count()
    }
}

fn node(name: &str) -> turnaround_config::NodeName {
    name.parse().unwrap()
}

/// Without jitter, so that a test may say after how many seconds.
fn exact(mut plan: SitePlan) -> SitePlan {
    plan.latencies.jitter_percent = 0;
    plan
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn refusal(error: &PortError) -> &str {
    match &error.kind {
        PortErrorKind::Refused { reason } => reason,
        other => panic!("not refused: {other:?}"),
    }
}

/// Calls to the site are answered at once: they never wait for anything.
fn block_on<T>(call: impl Future<Output = T>) -> T {
    call.now_or_never().expect("a call to the site waits")
}
