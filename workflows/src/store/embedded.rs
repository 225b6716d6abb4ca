//! The private Redis: where no other is configured, the daemon keeps one of its own in its state directory.
//!
//! One daemon owns it, by a lock on a file; others that share the directory join, and one of them takes over when the
//! owner goes away. The owner starts the server, starts it again when it dies, and ends it when it ends itself. A server
//! that a killed owner left behind is adopted as it runs: its workers need not notice.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

mod directory;
mod error;
mod server;

pub use error::EmbeddedError;

use directory::Directory;
use server::Server;

/// Between attempts to start a server that died: the first pause, and the longest.
// A damaged file does not mend itself, and each attempt reads all of it.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(100);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);

/// A server that lived for so long was well; if it dies now, that is a new story.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Where the private Redis of the daemon with that state directory listens.
pub fn socket_in(state_dir: &Path) -> PathBuf {
    state_dir.join("redis").join("redis.sock")
}

/// What this process is to the private Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It keeps the server running, and ends it.
    Owner,
    /// Another process does. This one takes over when that one goes away.
    Joined,
}

/// How the private Redis is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Running,
    /// It died, and is started again. Says why, as far as it said so itself.
    Down { why: String },
}

/// The private Redis of a state directory, for as long as this lives.
#[derive(Debug)]
pub struct EmbeddedRedis {
    socket: PathBuf,
    role: watch::Receiver<Role>,
    health: watch::Receiver<Health>,
    stop: Option<oneshot::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
    /// The server that is to be ended if nobody calls [`EmbeddedRedis::stop`].
    ours: Ours,
}

/// Process id of the server that we own; none while it is down, or another's.
type Ours = Arc<Mutex<Option<nix::unistd::Pid>>>;

impl EmbeddedRedis {
    /// On return a Redis answers at [`EmbeddedRedis::socket`], perhaps that it is still loading.
    ///
    /// # Errors
    /// Where the directory or the program is not as it must be; each says what to do about it.
    pub async fn start(state_dir: &Path, program: &Path) -> Result<EmbeddedRedis, EmbeddedError> {
        let directory = Directory::prepare(state_dir)?;
        let socket = directory.socket();
        let ours = Ours::default();
        let (say_role, role) = watch::channel(Role::Joined);
        let (say_health, health) = watch::channel(Health::Running);
        let (stop, stopped) = oneshot::channel();
        let mut keeper = Keeper { directory, program: program.to_owned(), ours: ours.clone(), say_role, say_health };
        let keeper = match keeper.directory.try_lock()? {
            Some(lock) => {
                let server = keeper.first_server().await?;
                tokio::spawn(async move { keeper.own(lock, server, stopped).await })
            }
            None => {
                server::wait_for_answer(&socket).await?;
                info!(socket = %socket.display(), "the private Redis is another process's; it is shared");
                tokio::spawn(async move { keeper.join(stopped).await })
            }
        };
        Ok(EmbeddedRedis { socket, role, health, stop: Some(stop), keeper: Some(keeper), ours })
    }

    /// Where the server listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn role(&self) -> Role {
        *self.role.borrow()
    }

    /// Tells when the role changes.
    pub fn watch_role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// Tells when the server dies, and when it runs again. Always running for who has joined: the owner knows.
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Ends the server, if it is ours. On return it has ended, and all that it acknowledged is in its file.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            // A keeper that is gone already has nothing to stop.
            let _ = stop.send(());
        }
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.await;
        }
    }

    /// Goes away as a killed daemon does: the server is left behind.
    #[cfg(test)]
    pub(crate) async fn vanish(mut self) {
        *self.ours.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
            let _ = keeper.await;
        }
    }
}

impl Drop for EmbeddedRedis {
    /// The last resort, which can't wait: a panic must not leave a server behind.
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
            if let Some(pid) = *self.ours.lock().unwrap_or_else(PoisonError::into_inner) {
                server::ask_to_end(pid);
            }
        }
    }
}

/// What runs in the background.
struct Keeper {
    directory: Directory,
    program: PathBuf,
    ours: Ours,
    say_role: watch::Sender<Role>,
    say_health: watch::Sender<Health>,
}

impl Keeper {
    /// The server that a former owner left behind, or a new one.
    async fn first_server(&mut self) -> Result<Server, EmbeddedError> {
        let server = match Server::adopt(&self.directory).await? {
            Some(server) => server,
            None => Server::launch(&self.directory, &self.program).await?,
        };
        self.set_ours(Some(&server));
        self.say_role.send_replace(Role::Owner);
        self.say_health.send_replace(Health::Running);
        Ok(server)
    }

    /// Waits for the owner to go away, then is the owner.
    async fn join(mut self, mut stopped: oneshot::Receiver<()>) {
        let lock = tokio::select! {
            _ = &mut stopped => return,
            lock = self.directory.lock_when_free() => lock,
        };
        let Some(lock) = lock else {
            warn!("the lock on the private Redis can't be waited for; this process will not take over");
            return;
        };
        info!("the owner of the private Redis is gone; this process takes over");
        let mut pause = RESTART_PAUSE_MIN;
        loop {
            match self.first_server().await {
                Ok(server) => return self.own(lock, server, stopped).await,
                Err(error) => self.down(error.to_string()),
            }
            tokio::select! {
                _ = &mut stopped => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RESTART_PAUSE_MAX);
        }
    }

    /// Keeps the server running until told to stop. Holds the lock for as long.
    async fn own(mut self, lock: File, mut server: Server, mut stopped: oneshot::Receiver<()>) {
        let mut pause = RESTART_PAUSE_MIN;
        loop {
            let started = Instant::now();
            tokio::select! {
                _ = &mut stopped => break,
                () = server.ended() => {}
            }
            self.set_ours(None);
            self.down(format!("it ended by itself; {}", self.directory.last_words()));
            if started.elapsed() >= WELL_AFTER {
                pause = RESTART_PAUSE_MIN;
            }
            match self.start_again(&mut pause, &mut stopped).await {
                Some(again) => server = again,
                None => return,
            }
        }
        server.end().await;
        self.set_ours(None);
        // Not only closed: a program that this process starts just now holds a copy of the file until it is executed.
        if let Err(error) = lock.unlock() {
            warn!(%error, "the lock on the private Redis can't be given back; it ends with this process");
        }
    }

    /// The next server; None if told to stop before there was one.
    async fn start_again(&mut self, pause: &mut Duration, stopped: &mut oneshot::Receiver<()>) -> Option<Server> {
        loop {
            tokio::select! {
                _ = &mut *stopped => return None,
                () = tokio::time::sleep(*pause) => {}
            }
            *pause = (*pause * 2).min(RESTART_PAUSE_MAX);
            match Server::launch(&self.directory, &self.program).await {
                Ok(server) => {
                    self.set_ours(Some(&server));
                    self.say_health.send_replace(Health::Running);
                    info!(pid = server.pid().as_raw(), "the private Redis runs again");
                    return Some(server);
                }
                Err(error) => self.down(error.to_string()),
            }
        }
    }

    fn down(&self, why: String) {
        warn!(why, "the private Redis is down; it is started again");
        self.say_health.send_replace(Health::Down { why });
    }

    fn set_ours(&self, server: Option<&Server>) {
        *self.ours.lock().unwrap_or_else(PoisonError::into_inner) = server.map(Server::pid);
    }
}
