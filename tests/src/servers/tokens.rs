//! The tokens that Keystone gives and Nova accepts.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use rand::Rng;
use rand::distr::Alphanumeric;
use turnaround_workflows::clock::{Clock, SystemClock, Timestamp};

/// Length of a token. Keystone's Fernet tokens have about 180 characters.
const TOKEN_CHARS: usize = 183;

/// Whom a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) user: String,
    /// None: not scoped, and good for nothing but asking for another.
    pub(super) project: Option<String>,
    pub(super) admin: bool,
}

/// By the machine's own clock, even where the site's is turned by hand: so do the adapters.
#[derive(Debug)]
pub(super) struct Tokens {
    valid: Mutex<BTreeMap<String, (Bearer, Timestamp)>>,
    life: Mutex<Duration>,
    given: Mutex<usize>,
}

impl Tokens {
    pub(super) fn new(life: Duration) -> Tokens {
        Tokens { valid: Mutex::default(), life: Mutex::new(life), given: Mutex::default() }
    }

    /// A new token, since when it is good, and until when.
    pub(super) fn give(&self, bearer: Bearer) -> (String, Timestamp, Timestamp) {
        let random: String = rand::rng().sample_iter(&Alphanumeric).take(TOKEN_CHARS - 6).map(char::from).collect();
        let (token, now) = (format!("gAAAAA{random}"), SystemClock.now());
        let expires = now + *self.life.lock().unwrap();
        self.valid.lock().unwrap().insert(token.clone(), (bearer, expires));
        *self.given.lock().unwrap() += 1;
        (token, now, expires)
    }

    pub(super) fn bearer(&self, token: &str) -> Option<Bearer> {
        let valid = self.valid.lock().unwrap();
        valid.get(token).filter(|(_, expires)| *expires > SystemClock.now()).map(|(bearer, _)| bearer.clone())
    }

    pub(super) fn revoke_all(&self) {
        self.valid.lock().unwrap().clear();
    }

    pub(super) fn live(&self, life: Duration) {
        *self.life.lock().unwrap() = life;
    }

    pub(super) fn given(&self) -> usize {
        *self.given.lock().unwrap()
    }
}
