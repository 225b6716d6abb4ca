//! How many reports are looked at: each costs some reads of the store.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use turnaround_workflows::clock::Timestamp;

/// Counted anew after so long. An installer that is told to try again does so within this.
const WINDOW: Duration = Duration::from_secs(10);
/// Of all together: twenty reads a second are nothing to Redis, and a rack of nodes that start at the same moment gets through.
const ALL_MAX: u32 = 200;
/// Of one address. An installer says three things; one that repeats each second until it is heard gets through.
const ONE_MAX: u32 = 20;

/// What may still be looked at.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// When this window began. None: nothing has come yet.
    since: Option<Timestamp>,
    all: u32,
    /// At most [`ALL_MAX`] addresses.
    by_peer: HashMap<IpAddr, u32>,
}

impl Budget {
    /// False if `peer`, or everybody together, has had enough for now.
    pub(super) fn spend(&mut self, peer: IpAddr, now: Timestamp) -> bool {
        if self.since.is_none_or(|since| now < since || now.since(since) >= WINDOW) {
            *self = Budget { since: Some(now), ..Budget::default() };
        }
        if self.all >= ALL_MAX {
            return false;
        }
        let one = self.by_peer.entry(peer).or_default();
        if *one >= ONE_MAX {
            return false;
        }
        *one += 1;
        self.all += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_floods_keeps_nobody_else_out_and_all_have_a_bound() {
        let mut budget = Budget::default();
        let at = Timestamp::from_millis;
        let peer = |n: u8| IpAddr::from([192, 0, 2, n]);
        let heard = |budget: &mut Budget, n, now| (0..1_000).filter(|_| budget.spend(peer(n), at(now))).count();
        assert_eq!(heard(&mut budget, 1, 5), 20);
        assert_eq!(heard(&mut budget, 2, 6), 20);
        let others: usize = (3..=100).map(|n| heard(&mut budget, n, 7)).sum();
        assert_eq!(others, 160);
        assert!(budget.by_peer.len() <= 200);
        assert_eq!(heard(&mut budget, 1, 10_004), 0);
        assert_eq!(heard(&mut budget, 1, 10_005), 20);
        // A clock that was set back must not make it deaf.
        assert_eq!(heard(&mut budget, 1, 1), 20);
    }
}
