//! `clouds.yaml`, as every OpenStack client reads it, with `secure.yaml` beside it: so that the credentials an
//! operator already has work here too.
//!
//! Understood are the authentication types `password`, `v3password`, `v3applicationcredential`, `token` and `v3token`
//! (project scope, Keystone v3), and of the rest what changes where Nova is: `region_name`, `interface`
//! (`endpoint_type`), `cacert`, `verify`, `compute_endpoint_override`, `placement_endpoint_override`. Vendor profiles and client certificates are
//! refused by name rather than ignored. No message quotes a value.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Deserialize;
use turnaround_config::SecretText;

/// The largest `clouds.yaml` that is read.
// A cloud takes half a KiB; 1 MiB is two thousand of them.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Permission bits that let others than the owner at a file.
const OTHERS: u32 = 0o077;

/// One cloud of `clouds.yaml`, complete and checked.
#[derive(Debug, Clone)]
pub(crate) struct Cloud {
    pub(crate) name: String,
    /// Keystone's v3 API, without a slash at its end.
    pub(crate) auth_url: Url,
    pub(crate) identity: Identity,
    pub(crate) region: Option<String>,
    /// `public`, `internal` or `admin`.
    pub(crate) interface: String,
    pub(crate) cacert: Option<PathBuf>,
    pub(crate) verify: bool,
    /// Nova's address, where the catalogue's is not to be used.
    pub(crate) compute_endpoint: Option<Url>,
    /// Placement's, likewise.
    pub(crate) placement_endpoint: Option<Url>,
}

/// Who we are.
#[derive(Debug, Clone)]
pub(crate) enum Identity {
    Password { user: Named, password: SecretText, project: Named },
    ApplicationCredential { credential: Credential, secret: SecretText },
    Token { token: SecretText, project: Option<Named> },
}

#[derive(Debug, Clone)]
pub(crate) enum Credential {
    Id(String),
    /// Names of application credentials are unique per user only.
    Name {
        name: String,
        user: Named,
    },
}

/// A user or a project: by its id, or by its name within a domain.
#[derive(Debug, Clone)]
pub(crate) enum Named {
    Id(String),
    Name { name: String, domain: Domain },
}

#[derive(Debug, Clone)]
pub(crate) enum Domain {
    Id(String),
    Name(String),
}

/// Why a cloud can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloudsError {
    #[error("could not read {0}")]
    Unreadable(PathBuf, #[source] io::Error),
    #[error("{0} is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge(PathBuf),
    #[error("{path}, line {line}, column {column}: not what a clouds.yaml has here (its text is not shown, it may hold a password)", path = path.display())]
    Malformed { path: PathBuf, line: u64, column: u64 },
    #[error("{path} holds a secret, and others than its owner may read it (mode {mode:o}): chmod 600 it, and chown it to the user of the workers", path = path.display())]
    OpenToOthers { path: PathBuf, mode: u32 },
    #[error("{path} has no cloud `{cloud}`; it has {known}", path = path.display())]
    NoSuchCloud { path: PathBuf, cloud: String, known: String },
    #[error("cloud `{cloud}` of {path}: {what}", path = path.display())]
    Incomplete { path: PathBuf, cloud: String, what: String },
}

/// Reads `cloud` from `path` and from the `secure.yaml` beside it; what `secure.yaml` says counts more.
pub(crate) fn read(path: &Path, cloud: &str) -> Result<Cloud, Vec<CloudsError>> {
    let mut file = parse(path).map_err(|error| vec![error])?;
    let Some(plain) = file.clouds.remove(cloud) else {
        let known = file.clouds.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none".to_owned() } else { known };
        return Err(vec![CloudsError::NoSuchCloud { path: path.to_owned(), cloud: cloud.to_owned(), known }]);
    };
    let secure_path = path.with_file_name("secure.yaml");
    let secure = match secure_path.try_exists() {
        Ok(false) => RawCloud::default(),
        Ok(true) | Err(_) => parse(&secure_path).map_err(|error| vec![error])?.clouds.remove(cloud).unwrap_or_default(),
    };
    let holding = [(path, &plain), (&secure_path, &secure)].into_iter().filter(|(_, has)| has.auth.holds_a_secret());
    let mut errors: Vec<CloudsError> = holding.filter_map(|(file, _)| is_for_its_owner(file).err()).collect();
    let mut problems = Problems(Vec::new());
    let checked = plain.under(secure).check(cloud, path, &mut problems);
    errors.extend(problems.0.into_iter().map(|what| CloudsError::Incomplete { path: path.to_owned(), cloud: cloud.to_owned(), what }));
    match checked {
        Some(checked) if errors.is_empty() => Ok(checked),
        _ => Err(errors),
    }
}

fn parse(path: &Path) -> Result<RawFile, CloudsError> {
    let unreadable = |source| CloudsError::Unreadable(path.to_owned(), source);
    if fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(CloudsError::TooLarge(path.to_owned()));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    // The parser's own messages quote what they found: only the place is taken from them.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options).map_err(|error| {
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        CloudsError::Malformed { path: path.to_owned(), line, column }
    })
}

/// As with every other secret: whoever may look at the API is of the workers' own group.
fn is_for_its_owner(path: &Path) -> Result<(), CloudsError> {
    let mode = fs::metadata(path).map_err(|source| CloudsError::Unreadable(path.to_owned(), source))?.permissions().mode() & 0o777;
    if mode & OTHERS == 0 { Ok(()) } else { Err(CloudsError::OpenToOthers { path: path.to_owned(), mode }) }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawFile {
    clouds: BTreeMap<String, RawCloud>,
}

// No `Debug`: it would show the secrets.
#[derive(Deserialize, Default)]
#[serde(default)]
struct RawCloud {
    auth_type: Option<String>,
    auth: RawAuth,
    region_name: Option<String>,
    interface: Option<String>,
    endpoint_type: Option<String>,
    cacert: Option<PathBuf>,
    verify: Option<bool>,
    cert: Option<PathBuf>,
    profile: Option<String>,
    cloud: Option<String>,
    compute_endpoint_override: Option<String>,
    placement_endpoint_override: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawAuth {
    auth_url: Option<String>,
    username: Option<String>,
    user_id: Option<String>,
    password: Option<String>,
    user_domain_name: Option<String>,
    user_domain_id: Option<String>,
    project_name: Option<String>,
    project_id: Option<String>,
    project_domain_name: Option<String>,
    project_domain_id: Option<String>,
    domain_name: Option<String>,
    domain_id: Option<String>,
    system_scope: Option<String>,
    application_credential_id: Option<String>,
    application_credential_name: Option<String>,
    application_credential_secret: Option<String>,
    token: Option<String>,
}

impl RawAuth {
    fn holds_a_secret(&self) -> bool {
        self.password.is_some() || self.application_credential_secret.is_some() || self.token.is_some()
    }
}

/// Each field of the second where it has one, else of the first.
macro_rules! overlay {
    ($plain:expr, $secure:expr, $type:ident { $($field:ident),* $(,)? } $($rest:tt)*) => {
        $type { $($field: $secure.$field.or($plain.$field),)* $($rest)* }
    };
}

impl RawCloud {
    fn under(self, secure: RawCloud) -> RawCloud {
        let auth = overlay!(
            self.auth,
            secure.auth,
            RawAuth {
                auth_url,
                username,
                user_id,
                password,
                user_domain_name,
                user_domain_id,
                project_name,
                project_id,
                project_domain_name,
                project_domain_id,
                domain_name,
                domain_id,
                system_scope,
                application_credential_id,
                application_credential_name,
                application_credential_secret,
                token,
            }
        );
        overlay!(self, secure, RawCloud {
            auth_type, region_name, interface, endpoint_type, cacert, verify, cert, profile, cloud, compute_endpoint_override,
            placement_endpoint_override,
        } auth)
    }

    fn check(self, name: &str, path: &Path, problems: &mut Problems) -> Option<Cloud> {
        if self.cert.is_some() {
            problems.say::<()>("`cert`: client certificates are not supported");
        }
        let auth_url = match (&self.auth.auth_url, self.profile.as_ref().or(self.cloud.as_ref())) {
            (Some(url), _) => problems.url("auth_url", url).and_then(|url| problems.keystone_v3(url)),
            (None, Some(_)) => problems.say("`profile`: vendor profiles are not supported, write `auth_url` and the rest out"),
            (None, None) => problems.say("`auth_url` is missing"),
        };
        let compute_endpoint = self.compute_endpoint_override.as_ref().map(|url| problems.url("compute_endpoint_override", url));
        let placement_endpoint =
            self.placement_endpoint_override.as_ref().map(|url| problems.url("placement_endpoint_override", url));
        let interface = interface(self.interface.or(self.endpoint_type), problems);
        let identity = self.auth.identity(self.auth_type.as_deref(), problems);
        Some(Cloud {
            name: name.to_owned(),
            auth_url: auth_url?,
            identity: identity?,
            region: self.region_name,
            interface: interface?,
            // A service's working directory means nothing: relative to the file it is written in.
            cacert: self.cacert.map(|cacert| path.parent().map_or(cacert.clone(), |folder| folder.join(cacert))),
            verify: self.verify.unwrap_or(true),
            compute_endpoint: compute_endpoint.flatten(),
            placement_endpoint: placement_endpoint.flatten(),
        })
    }
}

impl RawAuth {
    fn identity(self, auth_type: Option<&str>, problems: &mut Problems) -> Option<Identity> {
        let guessed = if self.token.is_some() {
            "token"
        } else if self.application_credential_secret.is_some() && self.password.is_none() {
            "v3applicationcredential"
        } else {
            "password"
        };
        if self.system_scope.is_some() || (self.project().is_none() && (self.domain_id.is_some() || self.domain_name.is_some())) {
            problems.say::<()>(
                "Nova wants a project: give `project_name` or `project_id`, and neither `system_scope` nor a domain alone",
            );
        }
        match auth_type.unwrap_or(guessed) {
            "password" | "v3password" => {
                let user = self.user(problems);
                let project = match self.project() {
                    Some(project) => problems.named("project", project),
                    None => problems.say("`project_name` or `project_id` is missing"),
                };
                let password = problems.secret("password", self.password);
                Some(Identity::Password { user: user?, password: password?, project: project? })
            }
            "v3applicationcredential" => {
                let credential = match (&self.application_credential_id, &self.application_credential_name) {
                    (Some(id), _) => Some(Credential::Id(id.clone())),
                    (None, Some(name)) => self.user(problems).map(|user| Credential::Name { name: name.clone(), user }),
                    (None, None) => problems.say("`application_credential_id` is missing"),
                };
                let secret = problems.secret("application_credential_secret", self.application_credential_secret);
                Some(Identity::ApplicationCredential { credential: credential?, secret: secret? })
            }
            "token" | "v3token" => {
                let project = self.project().map(|project| problems.named("project", project));
                let token = problems.secret("token", self.token);
                Some(Identity::Token {
                    token: token?,
                    project: match project {
                        None => None,
                        Some(project) => Some(project?),
                    },
                })
            }
            _ => problems.say(
                "`auth_type`: only `password`, `v3password`, `v3applicationcredential`, `token` and `v3token` are supported",
            ),
        }
    }

    fn user(&self, problems: &mut Problems) -> Option<Named> {
        let user = RawNamed {
            id: self.user_id.clone(),
            name: self.username.clone(),
            domain_id: self.user_domain_id.clone(),
            domain_name: self.user_domain_name.clone(),
        };
        if user.id.is_none() && user.name.is_none() {
            return problems.say("`username` or `user_id` is missing");
        }
        problems.named("user", user)
    }

    fn project(&self) -> Option<RawNamed> {
        let project = RawNamed {
            id: self.project_id.clone(),
            name: self.project_name.clone(),
            domain_id: self.project_domain_id.clone(),
            domain_name: self.project_domain_name.clone(),
        };
        (project.id.is_some() || project.name.is_some()).then_some(project)
    }
}

struct RawNamed {
    id: Option<String>,
    name: Option<String>,
    domain_id: Option<String>,
    domain_name: Option<String>,
}

fn interface(given: Option<String>, problems: &mut Problems) -> Option<String> {
    let given = given.unwrap_or_else(|| "public".to_owned());
    // Keystone v2 wrote `publicURL`.
    match given.strip_suffix("URL").unwrap_or(&given) {
        known @ ("public" | "internal" | "admin") => Some(known.to_owned()),
        _ => problems.say("`interface` is one of `public`, `internal`, `admin`"),
    }
}

/// Everything that is wrong, in the order in which it was found.
struct Problems(Vec<String>);

impl Problems {
    fn say<T>(&mut self, what: impl Into<String>) -> Option<T> {
        self.0.push(what.into());
        None
    }

    fn url(&mut self, key: &str, text: &str) -> Option<Url> {
        match Url::parse(text) {
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                self.say(format!("`{key}` holds a user or a password: they belong in `auth`"))
            }
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Some(url),
            Ok(_) | Err(_) => self.say(format!("`{key}` is not an http or https URL")),
        }
    }

    /// `auth_url` with or without its version.
    fn keystone_v3(&mut self, mut url: Url) -> Option<Url> {
        let path = url.path().trim_end_matches('/').to_owned();
        if path.ends_with("/v2.0") {
            return self.say("`auth_url` is Keystone's v2.0, which is gone since 2018: give the v3 one");
        }
        let path = if path.ends_with("/v3") { path } else { format!("{path}/v3") };
        url.set_path(&path);
        url.set_query(None);
        Some(url)
    }

    fn secret(&mut self, key: &str, text: Option<String>) -> Option<SecretText> {
        match text {
            Some(text) if !text.is_empty() => Some(SecretText::new(text)),
            Some(_) | None => self.say(format!("`{key}` is missing, here and in secure.yaml")),
        }
    }

    fn named(&mut self, what: &str, raw: RawNamed) -> Option<Named> {
        match (raw.id, raw.name, raw.domain_id, raw.domain_name) {
            (Some(id), ..) => Some(Named::Id(id)),
            (None, Some(name), Some(id), _) => Some(Named::Name { name, domain: Domain::Id(id) }),
            (None, Some(name), None, Some(domain)) => Some(Named::Name { name, domain: Domain::Name(domain) }),
            _ => self.say(format!("the {what} is given by name, and `{what}_domain_name` or `{what}_domain_id` is missing")),
        }
    }
}
