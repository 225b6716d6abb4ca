//! What this daemon remembers of the store, in its state directory: without it nobody could tell a store that was put back from a
//! backup from the one that was there before.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::store::high_water::{HighWater, Standing};

/// Of this size is no such file; it has some 200 bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Hexadecimal digits of a witness's name: 64 bits, so that no two daemons ever have the same.
const WITNESS_DIGITS: usize = 16;

#[derive(Debug, thiserror::Error)]
#[error("could not {operation} {}", path.display())]
pub struct HighWaterFileError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The file, and what it says.
#[derive(Debug)]
pub struct HighWaterFile {
    path: PathBuf,
    history: PathBuf,
    remembered: HighWater,
    /// As the file has it; None: there is no file yet.
    written: Option<HighWater>,
    /// One at a time: what is being written when a request is broken off goes on.
    writing: Arc<Mutex<()>>,
}

impl HighWaterFile {
    /// What is remembered in `state_dir`, or a new witness that remembers nothing.
    ///
    /// # Errors
    /// If there is a file that can't be read: a daemon that begins anew then would take for right whatever it finds.
    pub fn open(state_dir: &Path) -> Result<HighWaterFile, HighWaterFileError> {
        let path = state_dir.join("high-water.json");
        let failed = |operation| {
            let path = path.clone();
            move |source| HighWaterFileError { operation, path, source }
        };
        let written = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read")(error)),
            Ok(file) if file.len() > FILE_BYTES_MAX => return Err(failed("understand")(io::ErrorKind::FileTooLarge.into())),
            Ok(_) => {
                let text = fs::read(&path).map_err(failed("read"))?;
                Some(serde_json::from_slice::<HighWater>(&text).map_err(io::Error::from).map_err(failed("understand"))?)
            }
        };
        let remembered = written.clone().unwrap_or_else(|| HighWater::new(format!("{:0WITNESS_DIGITS$x}", rand::random::<u64>())));
        Ok(HighWaterFile { history: state_dir.join("store.jsonl"), path, remembered, written, writing: Arc::default() })
    }

    pub fn remembered(&self) -> &HighWater {
        &self.remembered
    }

    /// Remembers how the store is; what is gone with this process if it can't be written down is remembered until then.
    ///
    /// # Errors
    /// If it can't be written down.
    pub async fn remember(&mut self, standing: &Standing) -> Result<(), HighWaterFileError> {
        self.remembered = self.remembered.after(standing);
        // Looks alone are not worth a write each second: the store may have more of them than are remembered.
        let is_new = self.written.as_ref().is_none_or(|written| HighWater { looks: self.remembered.looks, ..written.clone() } != self.remembered);
        if is_new && self.remembered.identity.is_some() {
            self.write().await?;
            self.written = Some(self.remembered.clone());
        }
        Ok(())
    }

    async fn write(&self) -> Result<(), HighWaterFileError> {
        let (path, remembered, writing) = (self.path.clone(), self.remembered.clone(), Arc::clone(&self.writing));
        let written = tokio::task::spawn_blocking(move || {
            let _one_at_a_time = writing.lock().unwrap_or_else(PoisonError::into_inner);
            put(&path, &remembered)
        });
        // Blocking work is never cancelled, so it panicked: so do we.
        written.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Adds a line to the history of the store (`store.jsonl`), for those who ask later who did what when.
    ///
    /// # Errors
    /// If it can't be written down.
    pub fn note(&self, at: Timestamp, event: &str, by: &str, what: &impl serde::Serialize) -> Result<(), HighWaterFileError> {
        let line = format!("{}\n", json!({ "at": crate::wire::When(at), "event": event, "by": by, "what": what }));
        // One write of one line: another daemon may append to the same file.
        let appended = File::options().append(true).create(true).open(&self.history);
        let appended = appended.and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()));
        appended.map_err(|source| HighWaterFileError { operation: "write", path: self.history.clone(), source })
    }
}

fn put(path: &Path, remembered: &HighWater) -> Result<(), HighWaterFileError> {
    let failed = |operation| move |source| HighWaterFileError { operation, path: path.to_owned(), source };
    let text = serde_json::to_vec(remembered).map_err(io::Error::from).map_err(failed("write"))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
    let fresh = fresh(path);
    let written = File::create(&fresh).and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
    written.map_err(failed("write"))?;
    fs::rename(&fresh, path).map_err(failed("put in place"))?;
    // The name too must survive a power cut.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("write"))
}

/// What is written first. Another daemon may have the same state directory; each has its own.
fn fresh(path: &Path) -> PathBuf {
    path.with_extension(format!("{}.new", std::process::id()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use nix::sys::stat::Mode;

    use super::*;

    fn standing(revision: u64, looks: u64) -> Standing {
        let accepted = Timestamp::from_millis(0);
        Standing { identity: Some("abc".to_owned()), revision, accepted, looks, halt: None }
    }

    #[tokio::test]
    async fn what_is_remembered_outlives_the_daemon_and_nothing_is_written_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let mut file = HighWaterFile::open(&state).unwrap();
        assert_eq!(file.remembered().identity, None);
        assert!(!state.exists(), "nothing is written before there is something to remember");
        file.remember(&standing(5, 1)).await.unwrap();
        let names = |folder: &Path| fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(&state), ["high-water.json"]);
        let first = HighWaterFile::open(&state).unwrap();
        assert_eq!((first.remembered(), first.remembered().revision), (file.remembered(), 5));
        file.remember(&standing(5, 2)).await.unwrap();
        assert_eq!(HighWaterFile::open(&state).unwrap().remembered().looks, 1);
        file.remember(&standing(6, 3)).await.unwrap();
        assert_eq!(HighWaterFile::open(&state).unwrap().remembered(), file.remembered());
    }

    #[test]
    fn a_file_that_can_not_be_read_is_no_new_beginning() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("high-water.json"), "{\"witness\":").unwrap();
        let error = HighWaterFile::open(folder.path()).unwrap_err();
        assert!(error.to_string().starts_with("could not understand"), "{error}");
    }

    #[tokio::test]
    async fn what_can_not_be_written_is_remembered_and_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::write(&state, "in the way").unwrap();
        let (path, history, remembered) = (state.join("high-water.json"), state.join("store.jsonl"), HighWater::new("w".to_owned()));
        let mut file = HighWaterFile { path, history, remembered, written: None, writing: Arc::default() };
        file.remember(&standing(5, 1)).await.unwrap_err();
        assert_eq!(file.remembered().revision, 5);
        fs::remove_file(&state).unwrap();
        file.remember(&standing(5, 2)).await.unwrap();
        assert_eq!(HighWaterFile::open(&state).unwrap().remembered().revision, 5);
    }

    #[tokio::test]
    async fn a_slow_disk_keeps_nobody_else_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = HighWaterFile::open(folder.path()).unwrap();
        // A pipe stands in for the disk: whoever opens it waits until somebody reads.
        let pipe = fresh(&folder.path().join("high-water.json"));
        nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let (went_on, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let disk = std::thread::spawn({
            let (went_on, seen) = (Arc::clone(&went_on), Arc::clone(&seen));
            move || {
                for _ in 0..500 {
                    if went_on.load(Ordering::SeqCst) {
                        seen.store(true, Ordering::SeqCst);
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                io::read_to_string(File::open(&pipe).unwrap()).unwrap();
            }
        });
        // There is one runtime thread.
        let other = tokio::spawn(async move { went_on.store(true, Ordering::SeqCst) });
        // (A pipe can't be brought to a disk.)
        file.remember(&standing(5, 1)).await.unwrap_err();
        other.await.unwrap();
        tokio::task::spawn_blocking(|| disk.join().unwrap()).await.unwrap();
        assert!(seen.load(Ordering::SeqCst), "the runtime waited for the disk");
    }
}
