//! Who asks, and what they may do. Whoever can open the socket may read; changes are for root, the daemon's own user
//! and the configured operators.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::Semaphore;
use tokio::task::JoinError;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument as _, info, info_span};
use turnaround_workflows::telemetry;

use super::app::App;
use super::problem::Problem;
use super::socket::Peer;
use crate::wire::CallerView;

/// Users whose names are remembered. A bastion has some dozen.
const NAMES_REMEMBERED_MAX: usize = 256;
/// How long a name is taken for right without asking anew: a uid may be given to another user, who must not have the rights of the first one.
/// Long enough for a console that looks each second not to burden a directory server.
const NAME_REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// A directory server that hangs is waited for so long, and not for the minutes that its client library may take: whoever may change things without a name has to be able to.
const NAME_SAID_WITHIN: Duration = Duration::from_secs(5);
/// Names that are asked for at the same time: each has a thread, of which the process has a bounded number, for disks too, and which nobody can take back from a server that hangs.
const LOOKUPS_MAX: usize = 4;

/// Asks the system for the name of a user, maybe a directory server over the network. None: the user has no name.
pub type Lookup = fn(u32) -> nix::Result<Option<String>>;

/// Who may change things.
#[derive(Debug)]
pub struct Access {
    /// Users that always may.
    trusted: Vec<u32>,
    operators: Vec<String>,
    lookup: Lookup,
    /// Names by uid, each with when it was asked for.
    lookups: Arc<Semaphore>,
    names: Mutex<HashMap<u32, (String, Instant)>>,
}

impl Access {
    /// Root, the daemon's own user, and `operators`.
    pub fn new(operators: &[String]) -> Access {
        Access::only(vec![0, nix::unistd::Uid::effective().as_raw()], operators)
    }

    /// The users of these ids and names, and nobody else.
    pub fn only(trusted: Vec<u32>, operators: &[String]) -> Access {
        Access { trusted, operators: operators.to_vec(), lookup: system_name, lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)), names: Mutex::default() }
    }

    /// The same, with names from elsewhere than the system's.
    pub fn asking(self, lookup: Lookup) -> Access {
        Access { lookup, ..self }
    }

    /// A user and what they may do; `uid 1234` where there is no name. No operator can be called so: names have no spaces.
    fn caller(&self, uid: u32, named: &Named) -> Caller {
        let user = match named {
            Named::As(name) => name.clone(),
            Named::Nothing | Named::Unsaid(_) => format!("uid {uid}"),
        };
        let may_change = self.trusted.contains(&uid) || self.operators.contains(&user);
        Caller(CallerView { user, may_change })
    }

    async fn named(&self, uid: u32, now: Instant) -> Named {
        if let Some((name, asked)) = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(&uid)
            && now < *asked + NAME_REMEMBERED_FOR
        {
            return Named::As(name.clone());
        }
        let name = match tokio::time::timeout(NAME_SAID_WITHIN, self.look_up(uid)).await {
            Ok(Ok(Ok(Some(name)))) => name,
            Ok(Ok(Ok(None))) => return Named::Nothing,
            Ok(Ok(Err(error))) => return Named::Unsaid(error.to_string()),
            Ok(Err(error)) => return Named::Unsaid(error.to_string()),
            Err(_) => return Named::Unsaid(format!("it has not answered within {} s", NAME_SAID_WITHIN.as_secs())),
        };
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES_REMEMBERED_MAX {
            names.clear();
        }
        names.insert(uid, (name.clone(), now));
        Named::As(name)
    }

    /// A lookup goes on when nobody waits for it any more, and has its thread until it ends.
    async fn look_up(&self, uid: u32) -> Result<nix::Result<Option<String>>, JoinError> {
        let (lookup, lookups) = (self.lookup, Arc::clone(&self.lookups));
        // (Never closed.)
        let permit = lookups.acquire_owned().await.ok();
        let looks = move || {
            let said = lookup(uid);
            drop(permit);
            said
        };
        tokio::task::spawn_blocking(looks).await
    }
}

fn system_name(uid: u32) -> nix::Result<Option<String>> {
    Ok(nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))?.map(|user| user.name))
}

/// What the system calls a user.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Named {
    As(String),
    /// It has no name for this one.
    Nothing,
    /// It could not say, and why. Nobody's name and rights follow from that.
    Unsaid(String),
}

impl Named {
    /// Why this user, who is no operator as far as is known, may change nothing.
    fn refusal(&self, uid: u32) -> Problem {
        match self {
            Named::As(user) => Problem::not_an_operator(user),
            Named::Nothing => Problem::nameless(uid),
            Named::Unsaid(why) => Problem::name_unsaid(uid, why),
        }
    }
}

/// The user behind a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller(pub CallerView);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Caller, Problem> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(Problem::stranger)
    }
}

/// Every request comes through here: what is not a mere look needs somebody who may change things, whatever the
/// route. A new route can't forget to ask.
pub(super) async fn gate(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let uid = peer.uid.ok_or_else(Problem::stranger)?;
    let named = app.access.named(uid, Instant::now()).await;
    let caller = app.access.caller(uid, &named);
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    if !looks && !caller.0.may_change {
        let refusal = named.refusal(uid);
        let why = refusal.view().detail;
        info!(user = caller.0.user, method = %request.method(), path = request.uri().path(), why, "change refused");
        return Err(refusal);
    }
    let span = info_span!(
        "api", otel.name = %format!("{} {}", request.method(), request.uri().path()), otel.kind = "server",
        user = caller.0.user, trace = Empty, http.response.status_code = Empty,
    );
    telemetry::show_trace(&span);
    request.extensions_mut().insert(caller);
    let response = next.run(request).instrument(span.clone()).await;
    span.record("http.response.status_code", i64::from(response.status().as_u16()));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use nix::errno::Errno;

    use super::*;

    #[tokio::test]
    async fn a_name_and_its_rights_are_asked_for_anew_after_a_minute() {
        static SAYS: Mutex<nix::Result<Option<&str>>> = Mutex::new(Ok(Some("ada")));
        let says = |what| *SAYS.lock().unwrap() = what;
        let access = Access::only(Vec::new(), &["ada".to_owned()]).asking(|_| SAYS.lock().unwrap().map(|name| name.map(str::to_owned)));
        let asked = async |at| {
            let named = access.named(1005, at).await;
            let CallerView { user, may_change } = access.caller(1005, &named).0;
            (named, user, may_change)
        };
        let ada = (Named::As("ada".to_owned()), "ada".to_owned(), true);
        let first = Instant::now();
        assert_eq!(asked(first).await, ada);
        // `userdel ada; useradd bob`
        says(Ok(Some("bob")));
        assert_eq!(asked(first + NAME_REMEMBERED_FOR - Duration::from_millis(1)).await, ada);
        let second = first + NAME_REMEMBERED_FOR;
        assert_eq!(asked(second).await, (Named::As("bob".to_owned()), "bob".to_owned(), false));
        // What could not be said is neither remembered nor made up for by what was said before.
        says(Err(Errno::EAGAIN));
        let third = second + NAME_REMEMBERED_FOR;
        assert_eq!(asked(third).await, (Named::Unsaid(Errno::EAGAIN.to_string()), "uid 1005".to_owned(), false));
        says(Ok(Some("ada")));
        assert_eq!(asked(third).await, ada);
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_server_that_hangs_has_few_threads_and_keeps_nobody_waiting_for_long() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        static OVER: AtomicBool = AtomicBool::new(false);
        let hangs = |_| {
            ASKED.fetch_add(1, Ordering::SeqCst);
            while !OVER.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(None)
        };
        let access = Access::only(Vec::new(), &["ada".to_owned()]).asking(hangs);
        // Clients that give up at once.
        for uid in 0..20 {
            assert!(futures::poll!(std::pin::pin!(access.named(uid, Instant::now()))).is_pending());
        }
        while ASKED.load(Ordering::SeqCst) < LOOKUPS_MAX {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut waits = std::pin::pin!(access.named(1005, Instant::now()));
        assert!(futures::poll!(waits.as_mut()).is_pending());
        tokio::time::advance(NAME_SAID_WITHIN + Duration::from_millis(1)).await;
        assert_eq!(waits.await, Named::Unsaid("it has not answered within 5 s".to_owned()));
        assert_eq!(ASKED.load(Ordering::SeqCst), LOOKUPS_MAX);
        OVER.store(true, Ordering::SeqCst);
    }
}
