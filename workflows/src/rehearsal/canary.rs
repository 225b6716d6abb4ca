//! Instances of our own at the simulated site, as a real Nova has them: built, moved by force, stopped and started, deleted.

use async_trait::async_trait;
use turnaround_config::NodeName;

use super::guest::{Guest, TaskState, VmState};
use super::log::By;
use super::plan::{Api, Call, InstancePlan, NodeFaults};
use super::site::{Due, Site};
use super::trouble::Trouble;
use super::world::World;
use crate::ports::{Canaries, CanaryInstance, InstanceId, NewCanary, PortError, RequestId};

/// The project of whoever asks through the ports.
const OWN_PROJECT: &str = "admin";

/// What every flavour of the simulated site has that an instance is built by.
const TINY: (u32, u64) = (1, 512);

/// Nova's words where the host that is forced has not the processor of the source.
const UNFIT: &str = "Migration pre-check error: Unacceptable CPU info: CPU doesn't have compatibility.";

/// Nova's words where libvirt can't start a guest.
const NOT_STARTED: &str = "internal error: process exited while connecting to monitor: failed to initialize kvm: Permission denied";

/// Nova's words where libvirt can't end one.
const NOT_STOPPED: &str = "Failed to terminate process 4711 with SIGKILL: Device or resource busy";

impl Site {
    fn create(&mut self, name: &str, project: &str) -> Result<InstanceId, Trouble> {
        let plan = InstancePlan { project: project.to_owned(), ..InstancePlan::new(name).size(TINY.0, TINY.1) };
        let guest = self.build(&plan);
        let id = self.guests[guest].id.clone();
        self.answer(Call::CreateCanary, id)
    }

    /// Why a live migration that the scheduler is not asked about does not get through its pre-check.
    pub(super) fn why_not_forced(&self, guest: usize, host: &str) -> Option<String> {
        let node = self.node_of_host(host)?;
        if self.guests[guest].host.as_deref() == Some(host) {
            return Some(format!("Unable to migrate instance ({}) to current host ({host}).", self.guests[guest].id));
        }
        if !self.nodes[node].is_up(self.now, &self.plan.latencies) {
            return Some(format!("Compute service of {host} is unavailable at this time."));
        }
        self.nodes[node].faults.canary_fails.then(|| UNFIT.to_owned())
    }

    fn request_stop_of_canary(&mut self, id: &InstanceId) -> Result<String, Trouble> {
        let (action, request) = self.request_power(id, "stop", &[VmState::Active, VmState::Error], TaskState::PoweringOff)?;
        self.after(self.plan.latencies.build, Due::PoweredOff(action));
        self.answer(Call::StopCanary, request)
    }

    fn request_start_of_canary(&mut self, id: &InstanceId) -> Result<String, Trouble> {
        let (action, request) = self.request_power(id, "start", &[VmState::Stopped], TaskState::PoweringOn)?;
        let heard = !self.faults_where(action).canary_start_is_not_heard;
        if heard {
            self.after(self.plan.latencies.build, Due::PoweredOn(action));
        }
        self.answer(Call::StartCanary, request)
    }

    /// The place of the action in the list, and the request's id.
    fn request_power(&mut self, id: &InstanceId, name: &'static str, of: &[VmState], task: TaskState) -> Result<(usize, String), Trouble> {
        let guest = self.guest(id).ok_or(Trouble::NotFound)?;
        let Guest { vm_state, task_state, .. } = &self.guests[guest];
        let in_the_way = match task_state {
            Some(task) => Some(format!("task_state {}", task.as_str())),
            None if of.contains(vm_state) => None,
            None => Some(format!("vm_state {}", vm_state.as_str())),
        };
        if let Some(state) = in_the_way {
            return Err(Trouble::refused(409, format!("Cannot '{name}' instance {id} while it is in {state}")));
        }
        self.guests[guest].task_state = Some(task);
        let request = self.request_id();
        self.remember_action(id, name, &request);
        Ok((self.actions.len() - 1, request))
    }

    fn faults_where(&self, action: usize) -> NodeFaults {
        let host = self.guest(&self.actions[action].instance).and_then(|guest| self.guests[guest].host.as_deref());
        host.and_then(|host| self.node_of_host(host)).map(|node| self.nodes[node].faults.clone()).unwrap_or_default()
    }

    /// The instance whose stop or start ends; None if it is not at that any more.
    fn doing(&self, action: usize, task: TaskState) -> Option<usize> {
        self.guest(&self.actions[action].instance).filter(|&guest| self.guests[guest].task_state == Some(task))
    }

    pub(super) fn powered_off(&mut self, action: usize) {
        let Some(guest) = self.doing(action, TaskState::PoweringOff) else { return };
        self.guests[guest].task_state = None;
        if self.faults_where(action).canary_does_not_stop {
            let request = self.actions[action].request.clone();
            return self.action_fails(&request, NOT_STOPPED);
        }
        (self.guests[guest].vm_state, self.guests[guest].started_on) = (VmState::Stopped, None);
    }

    pub(super) fn powered_on(&mut self, action: usize) {
        let Some(guest) = self.doing(action, TaskState::PoweringOn) else { return };
        self.guests[guest].task_state = None;
        if self.faults_where(action).canary_does_not_boot {
            let request = self.actions[action].request.clone();
            return self.action_fails(&request, NOT_STARTED);
        }
        let guest = &mut self.guests[guest];
        guest.vm_state = VmState::Active;
        guest.started_on.clone_from(&guest.host);
    }

    /// Nova takes it in any state. One that moves is gone with it; what it had taken is not given back by a real Nova.
    fn request_delete(&mut self, id: &InstanceId) -> Result<(), Trouble> {
        let guest = self.guest(id).ok_or(Trouble::NotFound)?;
        self.guests[guest].task_state = Some(TaskState::Deleting);
        self.after(self.plan.latencies.schedule, Due::Deleted(guest));
        self.answer(Call::RemoveCanary, ())
    }

    pub(super) fn deleted(&mut self, guest: usize) {
        if !self.guests[guest].deleted {
            self.delete(guest, By::Caller);
        }
    }
}

/// Nova, as its protocol's server needs it.
impl World {
    /// The new instance's id, of which nothing is there yet.
    ///
    /// # Errors
    /// It is away. So with all of these.
    pub fn create_instance(&self, name: &str, project: &str) -> Result<InstanceId, Trouble> {
        self.asked(Api::Nova, None)?.create(name, project)
    }

    /// The request's id, once Nova has accepted it.
    pub fn force_live(&self, id: &InstanceId, host: &str) -> Result<String, Trouble> {
        self.asked(Api::Nova, None)?.request_forced(id, host)
    }

    /// The request's id, once Nova has accepted it.
    pub fn stop_instance(&self, id: &InstanceId) -> Result<String, Trouble> {
        self.asked(Api::Nova, None)?.request_stop_of_canary(id)
    }

    /// The request's id, once Nova has accepted it.
    pub fn start_instance(&self, id: &InstanceId) -> Result<String, Trouble> {
        self.asked(Api::Nova, None)?.request_start_of_canary(id)
    }

    pub fn delete_instance(&self, id: &InstanceId) -> Result<(), Trouble> {
        self.asked(Api::Nova, None)?.request_delete(id)
    }

    /// What an instance's guest has written since it was started.
    pub fn console_of(&self, id: &InstanceId) -> Result<String, Trouble> {
        let site = self.asked(Api::Nova, None)?;
        let guest = &site.guests[site.guest(id).ok_or(Trouble::NotFound)?];
        match &guest.started_on {
            Some(host) => Ok(format!("[    0.000000] Linux version 6.12, started on {host}\n\n{} login: \n", guest.name)),
            None => Err(Trouble::refused(409, format!("Instance {id} is not ready"))),
        }
    }
}

#[async_trait]
impl Canaries for World {
    async fn find(&self, name: &str) -> Result<Vec<CanaryInstance>, PortError> {
        let found = self.guests_where(|guest| guest.name == name && guest.project == OWN_PROJECT);
        let found = found.map_err(|e| e.while_trying_to(format_args!("look for instances called {name}")))?;
        let told = |guest: &Guest| {
            let told = self.told(guest);
            CanaryInstance { id: told.id, host: told.host, vm_state: told.vm_state, task_state: told.task_state, fault: told.fault }
        };
        Ok(found.iter().map(told).collect())
    }

    async fn create(&self, name: &str, _canary: &NewCanary) -> Result<(), PortError> {
        self.create_instance(name, OWN_PROJECT).map(drop).map_err(|e| e.while_trying_to(format_args!("create instance {name}")))
    }

    async fn put_on(&self, id: &InstanceId, node: &NodeName) -> Result<RequestId, PortError> {
        let host = self.host_named(node.as_str());
        let request = self.force_live(id, &host);
        request.map(RequestId).map_err(|e| e.while_trying_to(format_args!("live-migrate instance {id} onto {node} by force")))
    }

    async fn stop(&self, id: &InstanceId) -> Result<(), PortError> {
        self.stop_instance(id).map(drop).map_err(|e| e.while_trying_to(format_args!("stop instance {id}")))
    }

    async fn start(&self, id: &InstanceId) -> Result<RequestId, PortError> {
        self.start_instance(id).map(RequestId).map_err(|e| e.while_trying_to(format_args!("start instance {id}")))
    }

    async fn console(&self, id: &InstanceId) -> Result<String, PortError> {
        self.console_of(id).map_err(|e| e.while_trying_to(format_args!("read the console of instance {id}")))
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), PortError> {
        match self.delete_instance(id) {
            Err(Trouble::NotFound) => Ok(()),
            other => other.map_err(|e| e.while_trying_to(format_args!("delete instance {id}"))),
        }
    }
}
