//! The one who watches the store: what this daemon remembers of it, compared each second, and at the request of a person who
//! accepts what is there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;
use tracing::{info, warn};
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::store::high_water::{Halt, HighWater, Standing};
use turnaround_workflows::store::{Store, StoreError, Trouble};

use crate::alarms::{AlarmCode, Alarms};
use crate::api::problem::chain;
use crate::high_water_file::{HighWaterFile, HighWaterFileError};

/// Shared by the job that looks each second and the request that accepts.
pub struct StoreWatch {
    store: Arc<dyn Store>,
    alarms: Arc<Alarms>,
    state_dir: PathBuf,
    /// Who looks, for people: host and process id.
    who: String,
    /// None while the file can't be read.
    file: Mutex<Option<HighWaterFile>>,
    /// The halt that was written down last, by its beginning and who noticed it. Not by what is raised: a call that times out hides a halt for
    /// a while, and it is the same one afterwards.
    noted: Mutex<Option<(Timestamp, String)>>,
}

impl StoreWatch {
    pub fn new(store: Arc<dyn Store>, alarms: Arc<Alarms>, state_dir: &Path) -> StoreWatch {
        let host = nix::unistd::gethostname().map(|host| host.to_string_lossy().into_owned()).unwrap_or_default();
        let who = format!("daemon at {host}:{}", std::process::id());
        StoreWatch { store, alarms, state_dir: state_dir.to_owned(), who, file: Mutex::new(None), noted: Mutex::new(None) }
    }

    /// One look: compares, remembers, and raises or ends alarms. None: the store could not be asked, which is an alarm by now.
    pub async fn look(&self) -> Option<Standing> {
        let mut file = self.file.lock().await;
        let remembered = self.remembered(&mut file)?;
        let standing = match self.store.compare(&remembered, &self.who).await {
            Ok(standing) => standing,
            Err(error) => {
                self.alarms.store_has(error.trouble(), chain(&error));
                return None;
            }
        };
        match &standing.halt {
            Some(halt) => {
                let this = Some((halt.since, halt.noticed_by.clone()));
                let mut noted = self.noted.lock().await;
                if *noted != this {
                    self.write_down(&file, "halted", &halt.noticed_by, halt).await;
                    *noted = this;
                }
                self.alarms.store_has(Trouble::Halted, described(halt));
            }
            None => {
                if remembered.identity.is_none() {
                    info!(store = standing.identity, revision = standing.revision, "this daemon remembers nothing of a store: what is there is taken for right");
                } else if standing.accepted > remembered.accepted {
                    warn!(store = standing.identity, accepted = %standing.accepted, "a person accepted the store as it is; so does this daemon");
                }
                self.alarms.store_is_well();
                self.remember(&mut file, &standing).await;
            }
        }
        Some(standing)
    }

    /// `by` takes the store as it is for what is true. None: it is not halted.
    pub async fn accept(&self, by: &str) -> Result<Option<Standing>, StoreError> {
        let mut file = self.file.lock().await;
        let remembered = self.remembered(&mut file).unwrap_or_else(|| HighWater::new(String::new()));
        let before = self.store.standing().await?;
        let Some(accepted) = self.store.accept(&remembered, by).await? else { return Ok(None) };
        warn!(
            user = by, store = accepted.identity, revision = accepted.revision, was = before.halt.as_ref().map(described),
            "a person accepted the store as it is: everything goes on from what is there"
        );
        self.write_down(&file, "accepted", by, &before.halt).await;
        self.remember(&mut file, &accepted).await;
        // Also where the file can't be read, without which the look below sees nothing.
        self.alarms.store_is_well();
        drop(file);
        // Which everybody waits for who writes.
        self.look().await;
        Ok(Some(accepted))
    }

    /// What is remembered; None while the file can't be read, which is an alarm by then.
    fn remembered(&self, file: &mut Option<HighWaterFile>) -> Option<HighWater> {
        if file.is_none() {
            match HighWaterFile::open(&self.state_dir) {
                Ok(opened) => *file = Some(opened),
                Err(error) => self.file_failed(&error),
            }
        }
        file.as_ref().map(|file| file.remembered().clone())
    }

    async fn remember(&self, file: &mut Option<HighWaterFile>, standing: &Standing) {
        let Some(file) = file else { return };
        match file.remember(standing).await {
            Ok(()) => self.alarms.over(AlarmCode::HighWaterFile),
            Err(error) => self.file_failed(&error),
        }
    }

    async fn write_down(&self, file: &Option<HighWaterFile>, event: &str, by: &str, what: &impl serde::Serialize) {
        let Some(file) = file else { return };
        let at = self.store.now().await;
        let noted = at.map(|at| file.note(at, event, by, what));
        match noted {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.file_failed(&error),
            // The log has it; the store will be asked again in a second.
            Err(error) => warn!(event, by, error = chain(&error), "the history of the store has a gap"),
        }
    }

    fn file_failed(&self, error: &HighWaterFileError) {
        self.alarms.raise(AlarmCode::HighWaterFile, chain(error));
    }
}

/// What was expected and what is there, on one line.
pub fn described(halt: &Halt) -> String {
    format!("expected: {}; there is: {}", halt.expected, halt.found)
}
