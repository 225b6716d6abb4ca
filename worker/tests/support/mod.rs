//! What the adapters' tests share: a site's configuration in a folder of its own, and waiting for a state.
#![allow(dead_code, reason = "each test program uses its own part")]

#[path = "../../../tests/src/beds.rs"]
pub(crate) mod beds;

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use turnaround_config::{Config, NodeName};
use turnaround_worker::adapters;
use turnaround_workflows::ports::{PortError, Ports};

/// Nothing in these tests takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(120);

/// A site in a folder that is gone with it.
pub(crate) struct Site {
    folder: TempDir,
    text: String,
}

impl Site {
    /// A site with no node yet, whose cloud is `cloud` of the clouds file `clouds`.
    pub(crate) fn new(clouds: &Value, cloud: &str) -> Site {
        let folder = TempDir::new().unwrap();
        let at = folder.path();
        // JSON is YAML too.
        secret(&at.join("clouds.yaml"), &clouds.to_string());
        fs::create_dir(at.join("netboot")).unwrap();
        secret(&at.join("bmc.password"), "canary-bmc");
        let text = format!(
            r#"
site = "test"
state_dir = "{at}"
[openstack]
clouds_file = "{at}/clouds.yaml"
cloud = "{cloud}"
request_timeout = "20s"
[netboot]
directory = "{at}/netboot"
url = "http://192.0.2.1:8080/boot"
[images.noble]
version = "2026.11.1"
sha256 = "4a5c6e0f8d2b1937a6e4c0d85f3b7291e6a8d4c0b2f19573e8c6a4d0b1f29375"
os_version_id = "24.04"
kernel = "6.8.0-45-generic"
boot_kernel = "noble/vmlinuz"
boot_initrd = "noble/initrd"
boot_arguments = "ds=nocloud;s=http://192.0.2.1/seed/ console=ttyS1"
"#,
            at = at.display()
        );
        Site { folder, text }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Further tables of the configuration.
    pub(crate) fn with(mut self, tables: &str) -> Site {
        self.text.push_str(tables);
        self.text.push('\n');
        self
    }

    /// A node that Nova knows as `host`, with a BMC that nobody reaches.
    pub(crate) fn with_node(self, node: &str, host: &str) -> Site {
        let number = self.text.matches("mac = ").count();
        let password = self.path("bmc.password");
        let node = format!(
            r#"
[nodes.{node}]
nova_host = "{host}"
mac = "02:00:5e:10:00:{number:02x}"
bmc = {{ protocol = "ipmi", address = "127.0.0.1", port = {port}, user = "turnaround", password_file = "{password}" }}
"#,
            port = 50_000 + number,
            password = password.display()
        );
        self.with(&node)
    }

    pub(crate) fn config(&self) -> Config {
        turnaround_config::check_text("test.toml", &self.text).unwrap_or_else(|report| panic!("{}", report.for_stderr()))
    }

    pub(crate) fn ports(&self) -> Ports {
        adapters::connect(&self.config()).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// A file that only its owner reads.
pub(crate) fn secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

pub(crate) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

/// An error as a person would see it: with all of its causes.
pub(crate) fn told(error: &PortError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Looks until there is something to see.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("never seen: {what}"))
}
