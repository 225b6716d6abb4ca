//! Who holds which lock and which share of a budget, and who waits for one.

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::Timestamp;
use crate::store::{Committed, Holding, Resource, Take, WorkflowId, limits};

/// What is waited for: a lock, or any share of a budget.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pool {
    Lock(String),
    Budget(String),
}

impl Pool {
    fn of(resource: &Resource) -> Pool {
        match resource {
            Resource::Lock { name } => Pool::Lock(name.clone()),
            Resource::Budget { name, .. } => Pool::Budget(name.clone()),
        }
    }
}

/// Those who have a share, as they are shown.
fn holders_of(members: Option<&BTreeMap<String, Share>>) -> Vec<WorkflowId> {
    let holders: BTreeSet<_> = members.into_iter().flat_map(BTreeMap::values).map(|share| share.holder.clone()).collect();
    holders.into_iter().take(limits::HOLDERS_SHOWN_MAX).collect()
}

#[derive(Debug)]
struct Share {
    holder: WorkflowId,
    /// Nobody else takes one while its holder is open.
    alone: bool,
}

#[derive(Debug, Default)]
pub(super) struct Resources {
    locks: BTreeMap<String, WorkflowId>,
    budgets: BTreeMap<String, BTreeMap<String, Share>>,
    waiting: BTreeMap<Pool, BTreeSet<(Timestamp, WorkflowId)>>,
}

impl Resources {
    /// The first of `wanted` that `id` can't have, and why: [`Committed::Busy`] or [`Committed::Held`]; and whether to wait for it in line: one
    /// share that another open workflow has is no other share. Changes nothing.
    pub(super) fn refused(&self, id: &WorkflowId, wanted: &[Take], is_open: impl Fn(&WorkflowId) -> bool) -> Option<(Committed, bool)> {
        let busy = |take: &Take, holders: Vec<WorkflowId>, in_line: bool| Some((Committed::Busy { resource: take.resource.clone(), holders }, in_line));
        let mut joining: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for take in wanted {
            match &take.resource {
                Resource::Lock { name } => {
                    if let Some(holder) = self.locks.get(name).filter(|holder| *holder != id) {
                        return busy(take, vec![holder.clone()], true);
                    }
                }
                Resource::Budget { name, member } => {
                    let members = self.budgets.get(name);
                    let holder = self.share(name, member);
                    if let Some(holder) = holder.filter(|holder| *holder != id && is_open(holder)) {
                        return busy(take, vec![holder.clone()], false);
                    }
                    if holder != Some(id) && holder != take.from.as_ref() {
                        return Some((Committed::Held { resource: take.resource.clone(), holder: holder.cloned() }, false));
                    }
                    // Who takes one over to be alone waits for the others, too.
                    let others = members.map_or(0, BTreeMap::len).saturating_sub(1);
                    if holder.is_some() && (!take.alone || holder == Some(id) || others == 0) {
                        continue;
                    }
                    if holder.is_some() {
                        return busy(take, holders_of(members), true);
                    }
                    let joining = joining.entry(name).or_default();
                    joining.insert(member);
                    let is_closed = members.is_some_and(|members| members.values().any(|share| share.alone && is_open(&share.holder)));
                    if is_closed || members.map_or(0, BTreeMap::len) + joining.len() > take.limit as usize {
                        return busy(take, holders_of(members), true);
                    }
                }
            }
        }
        None
    }

    /// Remembers that `id` waits; who waits already keeps its place.
    pub(super) fn wait(&mut self, id: &WorkflowId, resource: &Resource, now: Timestamp) {
        let waiting = self.waiting.entry(Pool::of(resource)).or_default();
        if !waiting.iter().any(|(_, waiter)| waiter == id) {
            waiting.insert((now, id.clone()));
        }
    }

    /// Gives `resource` to `id`, which then waits for it no longer.
    pub(super) fn take(&mut self, id: &WorkflowId, take: &Take) {
        let resource = &take.resource;
        match resource {
            Resource::Lock { name } => {
                self.locks.insert(name.clone(), id.clone());
            }
            Resource::Budget { name, member } => {
                self.budgets.entry(name.clone()).or_default().insert(member.clone(), Share { holder: id.clone(), alone: take.alone });
            }
        }
        let pool = Pool::of(resource);
        if let Some(waiting) = self.waiting.get_mut(&pool) {
            waiting.retain(|(_, waiter)| waiter != id);
            if waiting.is_empty() {
                self.waiting.remove(&pool);
            }
        }
    }

    /// Frees `resource` if `id` has it; where it could now be waited for.
    pub(super) fn give(&mut self, id: &WorkflowId, resource: &Resource) -> Option<Pool> {
        match resource {
            Resource::Lock { name } => {
                (self.locks.get(name)? == id).then(|| self.locks.remove(name))?;
            }
            Resource::Budget { name, member } => {
                (self.share(name, member)? == id).then(|| self.free_share(name, member))?;
            }
        }
        Some(Pool::of(resource))
    }

    pub(super) fn share(&self, name: &str, member: &str) -> Option<&WorkflowId> {
        self.budgets.get(name)?.get(member).map(|share| &share.holder)
    }

    pub(super) fn free_share(&mut self, name: &str, member: &str) -> Pool {
        if let Some(members) = self.budgets.get_mut(name) {
            members.remove(member);
            if members.is_empty() {
                self.budgets.remove(name);
            }
        }
        Pool::Budget(name.to_owned())
    }

    /// Whoever has waited longest, who then waits no longer.
    pub(super) fn next_waiter(&mut self, pool: &Pool) -> Option<WorkflowId> {
        let waiting = self.waiting.get_mut(pool)?;
        let (_, waiter) = waiting.pop_first()?;
        if waiting.is_empty() {
            self.waiting.remove(pool);
        }
        Some(waiter)
    }

    pub(super) fn holdings(&self) -> Vec<Holding> {
        let locks = self.locks.iter().map(|(name, holder)| Holding {
            resource: Resource::Lock { name: name.clone() },
            holder: holder.clone(),
        });
        let shares = self.budgets.iter().flat_map(|(name, members)| {
            members.iter().map(|(member, Share { holder, .. })| Holding {
                resource: Resource::Budget { name: name.clone(), member: member.clone() },
                holder: holder.clone(),
            })
        });
        locks.chain(shares).collect()
    }
}
