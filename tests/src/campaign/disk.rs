//! A small file system for Redis, which can be full.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use tokio::process::Command;

/// Far more than Redis's file takes in a campaign of some minutes, and little enough to be filled at once.
const SIZE_MB: u32 = 256;
/// Tries until it is full, while somebody else writes to it. Two are enough unless many write at the same moment.
const FILLS_MAX: u32 = 100;
/// What fills it.
const BALLAST: &str = "ballast";

/// A tmpfs. It is unmounted when it is dropped.
pub(super) struct SmallDisk {
    at: PathBuf,
    mounted: bool,
}

impl SmallDisk {
    /// Mounts it at `at`, which is made. None where that is not permitted: only root may.
    pub(super) async fn mount(at: &Path) -> io::Result<Option<SmallDisk>> {
        std::fs::create_dir_all(at)?;
        let size = format!("size={SIZE_MB}m,mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output().await;
        Ok(mounted.is_ok_and(|output| output.status.success()).then(|| SmallDisk { at: at.to_owned(), mounted: true }))
    }

    /// Not one byte more fits in.
    pub(super) fn fill(&self) -> io::Result<()> {
        let ballast = File::create(self.at.join(BALLAST))?;
        let mut filled = 0;
        for _ in 0..FILLS_MAX {
            let free = statvfs(&self.at)?;
            let bytes = i64::try_from(free.blocks_available() * free.fragment_size()).map_err(io::Error::other)?;
            if bytes == 0 {
                return Ok(());
            }
            match fallocate(&ballast, FallocateFlags::empty(), filled, bytes) {
                Ok(()) => filled += bytes,
                // Redis has written since.
                Err(Errno::ENOSPC) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("the small disk is never full"))
    }

    pub(super) fn make_room(&self) -> io::Result<()> {
        match std::fs::remove_file(self.at.join(BALLAST)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    pub(super) async fn unmount(mut self) -> io::Result<()> {
        self.mounted = false;
        let output = Command::new("umount").arg(&self.at).output().await?;
        if output.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())) }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.mounted {
            // What is still in use there ends with its process: `-l` takes the name away at once.
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.at).output();
        }
    }
}
