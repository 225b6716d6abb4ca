//! Claims whose answer was lost: without this, what they were granted would wait until the leases expire.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::limits;

/// What one call carries.
#[derive(Default)]
pub(super) struct Tickets {
    /// Names this claim. Empty if nothing is claimed.
    pub(super) own: String,
    /// Claims that were never answered; nobody works on what they were granted.
    pub(super) lost: Vec<String>,
}

/// Numbers the claims of one store.
pub(super) struct TicketBook {
    /// No two stores have the same one.
    session: String,
    count: AtomicU64,
    lost: Mutex<Vec<String>>,
}

impl TicketBook {
    pub(super) fn new() -> TicketBook {
        TicketBook { session: format!("{:x}", rand::random::<u64>()), count: AtomicU64::new(0), lost: Mutex::default() }
    }

    /// What all tickets begin with, up to a dash.
    pub(super) fn session(&self) -> &str {
        &self.session
    }

    /// For a call, which counts as lost until it is [`Drawn::answered`]. Empty if the call does not claim.
    pub(super) fn draw(&self, claims: bool) -> Drawn<'_> {
        let tickets = if claims {
            let number = self.count.fetch_add(1, Ordering::Relaxed);
            Tickets { own: format!("{}-{number}", self.session), lost: self.lost().clone() }
        } else {
            Tickets::default()
        };
        Drawn { book: self, tickets, answered: false }
    }

    fn lost(&self) -> MutexGuard<'_, Vec<String>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Drawn<'a> {
    book: &'a TicketBook,
    tickets: Tickets,
    answered: bool,
}

impl Drawn<'_> {
    pub(super) fn tickets(&self) -> &Tickets {
        &self.tickets
    }

    /// Of the lost ones nothing is outstanding any more.
    pub(super) fn taken_back(&self) {
        if !self.tickets.lost.is_empty() {
            self.book.lost().retain(|lost| !self.tickets.lost.contains(lost));
        }
    }

    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Drawn<'_> {
    /// Refused, timed out, or given up by the caller: it may have been granted something all the same.
    fn drop(&mut self) {
        let mut lost = self.book.lost();
        if !self.answered && !self.tickets.own.is_empty() && lost.len() < limits::LOST_CLAIMS_MAX {
            lost.push(std::mem::take(&mut self.tickets.own));
        }
    }
}
