//! Programs for tests: stand-ins that are shell scripts, and servers that end with the test.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::beds;

/// Writes an executable script.
pub(crate) fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A server that is killed with its owner.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn start(program: &str, arguments: &[&str]) -> Server {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Server(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Is this program of `bed` here? If not, says so in a plain line, and fails where it has to be.
pub(crate) fn here(bed: &str, program: &str, package: &str, test: &str) -> bool {
    let found = Path::new(program).exists();
    if !found {
        beds::skip(bed, test, &format!("it needs {program}, from the Debian package {package}"));
    }
    found
}

/// A port on loopback that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
