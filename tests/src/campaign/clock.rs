//! The wall clock of Redis's host, which can be set.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tokio::process::Command;

const SOURCE: &str = include_str!("clock.c");

/// Redis sees the machine's clock and so much more as was set last.
pub(super) struct SetClock {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl SetClock {
    /// Right at first. None where there is no C compiler.
    pub(super) async fn make(folder: &Path) -> io::Result<Option<SetClock>> {
        let (source, library, path) = (folder.join("clock.c"), folder.join("clock.so"), folder.join("clock"));
        std::fs::write(&source, SOURCE)?;
        let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).output().await;
        if !built.is_ok_and(|output| output.status.success()) {
            return Ok(None);
        }
        let clock = SetClock { library, file: File::create(&path)?, path };
        clock.set(0)?;
        Ok(Some(clock))
    }

    /// From now on it is wrong by so many milliseconds.
    pub(super) fn set(&self, wrong_by_ms: i64) -> io::Result<()> {
        self.file.write_all_at(&(wrong_by_ms * 1_000).to_ne_bytes(), 0)
    }

    /// What Redis has to find in its environment.
    pub(super) fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", self.library.clone()), ("CAMPAIGN_CLOCK", self.path.clone())]
    }
}
