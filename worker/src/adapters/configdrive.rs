//! What a node that Ironic rebuilds is given: the site's own documents, and with them our mark, which cloud-init writes.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use turnaround_config::NodeName;
use turnaround_workflows::ports::Installed;

use super::http::BoxError;

/// Where [`super::ssh`] looks for it.
const MARK: &str = "/etc/turnaround/installed";

/// The largest file of a site's own. Ironic stores a configdrive in its database, and takes 64 KiB of `user_data` at the very most.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Between the parts of a `user_data`. No line of a site's own begins like this.
const BOUNDARY: &str = "==turnaround-5d1f0c6e==";

/// The site's own documents for one node, as Ironic takes them. They may hold secrets: there is no `Debug`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drive {
    #[serde(default)]
    meta_data: Map<String, Value>,
    network_data: Option<Map<String, Value>>,
    user_data: Option<String>,
}

impl Drive {
    /// # Errors
    /// A sentence that quotes nothing of the file.
    pub(crate) fn read(file: &Path) -> Result<Drive, BoxError> {
        let at = file.display();
        let length = fs::metadata(file).map_err(|error| format!("{at} can't be read: {error}"))?.len();
        if length > FILE_BYTES_MAX {
            return Err(format!("{at} is larger than {FILE_BYTES_MAX} bytes").into());
        }
        let text = fs::read_to_string(file).map_err(|error| format!("{at} can't be read: {error}"))?;
        let drive: Drive = serde_json::from_str(&text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("{at} is not a JSON object with `meta_data`, `network_data` and a text `user_data`, or some of them: see line {line}, column {column}")
        })?;
        match &drive.user_data {
            // What is in parts already, compressed or encoded can't be joined with ours.
            Some(text) if !text.starts_with('#') => {
                Err(format!("the `user_data` of {at} does not begin with `#`: write it as `#cloud-config` or as a script").into())
            }
            Some(text) if text.lines().any(|line| line.contains(BOUNDARY)) => Err(format!("the `user_data` of {at} holds `{BOUNDARY}`").into()),
            Some(_) | None => Ok(drive),
        }
    }

    /// The configdrive for a rebuild of `node`, which leaves `mark` on it.
    pub(crate) fn with_mark(&self, node: &NodeName, mark: &Installed) -> Value {
        let mut meta_data = self.meta_data.clone();
        // Without one, cloud-init calls it `localhost`, and it would come back to Nova as another host.
        meta_data.entry("hostname").or_insert_with(|| json!(node));
        let mut drive = json!({ "meta_data": meta_data, "user_data": self.user_data(mark) });
        if let Some(network) = &self.network_data {
            drive["network_data"] = json!(network);
        }
        drive
    }

    fn user_data(&self, mark: &Installed) -> String {
        let content = format!("{}\n", json!(mark));
        // JSON is YAML. Added to the lists of the site's own, where it has the same keys (cloud-init, "Merging user-data sections").
        let ours = json!({
            "merge_how": [{ "name": "list", "settings": ["append"] }, { "name": "dict", "settings": ["no_replace", "recurse_list"] }],
            "write_files": [{ "path": MARK, "permissions": "0644", "content": content }],
        });
        let ours = format!("#cloud-config\n{ours}\n");
        let Some(theirs) = &self.user_data else { return ours };
        // What kind of text theirs is, cloud-init tells by its first line.
        let part = |kind: &str, name: &str, text: &str| {
            format!("--{BOUNDARY}\nMIME-Version: 1.0\nContent-Type: text/{kind}; charset=\"utf-8\"\nContent-Disposition: attachment; filename=\"{name}\"\n\n{text}\n")
        };
        format!(
            "Content-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\nMIME-Version: 1.0\n\n{}{}--{BOUNDARY}--\n",
            part("plain", "site", theirs),
            part("cloud-config", "turnaround", &ours),
        )
    }
}

#[cfg(test)]
mod tests {
    use turnaround_workflows::ports::Token;

    use super::*;

    fn drive(text: &str) -> Result<Drive, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("drive.json");
        fs::write(&file, text).unwrap();
        Drive::read(&file).map_err(|error| error.to_string().replace(file.to_str().unwrap(), "FILE"))
    }

    fn mark() -> Installed {
        Installed { token: Token("roll.gpu-01-3-0badcafe".to_owned()), sha256: "a".repeat(64) }
    }

    #[test]
    fn a_node_is_given_its_name_and_our_mark() {
        let given = Drive::default().with_mark(&"gpu-01".parse().unwrap(), &mark());
        assert_eq!(given["meta_data"], json!({ "hostname": "gpu-01" }));
        let config: Value = serde_json::from_str(given["user_data"].as_str().unwrap().strip_prefix("#cloud-config\n").unwrap()).unwrap();
        let file = &config["write_files"][0];
        assert_eq!(file["path"], "/etc/turnaround/installed");
        assert_eq!(serde_json::from_str::<Installed>(file["content"].as_str().unwrap()).unwrap(), mark());
        assert_eq!(given.get("network_data"), None);
    }

    #[test]
    fn what_the_site_itself_gives_stays_and_ours_is_added() {
        let site = r##"{"meta_data":{"hostname":"gpu-01.example","rack":"7"},"network_data":{"links":[]},"user_data":"#cloud-config\nusers: [ops]\n"}"##;
        let given = drive(site).unwrap().with_mark(&"gpu-01".parse().unwrap(), &mark());
        assert_eq!(given["meta_data"], json!({ "hostname": "gpu-01.example", "rack": "7" }));
        assert_eq!(given["network_data"], json!({ "links": [] }));
        let parts: Vec<&str> = given["user_data"].as_str().unwrap().split(&format!("--{BOUNDARY}")).collect();
        assert_eq!(parts.len(), 4, "a head, two parts, and what is behind them: {parts:#?}");
        assert!(parts[1].ends_with("\n\n#cloud-config\nusers: [ops]\n\n"), "{}", parts[1]);
        assert!(parts[2].contains("text/cloud-config") && parts[2].contains("0badcafe"), "{}", parts[2]);
    }

    #[test]
    fn a_file_that_is_none_is_refused_without_a_word_of_it() {
        let none = |text: &str| drive(text).err().unwrap();
        assert_eq!(none(r#"{"userdata":"hunter2"}"#).split(':').next(), Some("FILE is not a JSON object with `meta_data`, `network_data` and a text `user_data`, or some of them"));
        assert!(!none(r#"{"user_data":7,"x":"hunter2"}"#).contains("hunter2"));
        assert!(!none(r#"{"network_data":["hunter2"]}"#).contains("hunter2"));
        assert!(none(r#"{"user_data":"MIME-Version: 1.0\n"}"#).contains("does not begin with `#`"));
        let long = format!(r##"{{"user_data":"#{}"}}"##, "x".repeat(70_000));
        assert!(none(&long).contains("larger than 65536 bytes"));
    }
}
