//! Does this Redis keep what it acknowledged?

use ::redis::{Value, cmd};

use super::connection::Connection;
use super::{Durability, Malformed, StoreError, damaged_answer, reply};

const OPERATION: &str = "ask Redis how it keeps what is written";

/// A setting that must have a value, and what happens otherwise.
struct Rule {
    setting: &'static str,
    wanted: &'static str,
    otherwise: &'static str,
}

const RULES: [Rule; 4] = [
    Rule { setting: "appendonly", wanted: "yes", otherwise: "a restart loses all writes since the last snapshot" },
    Rule { setting: "appendfsync", wanted: "always", otherwise: "a power cut loses the last second or more" },
    Rule {
        setting: "no-appendfsync-on-rewrite",
        wanted: "no",
        otherwise: "a power cut during a rewrite loses what was written since it began",
    },
    Rule { setting: "maxmemory-policy", wanted: "noeviction", otherwise: "full memory throws workflows away" },
];

pub(super) async fn look(connection: &Connection) -> Result<Durability, StoreError> {
    let info = Info::ask(connection).await?;
    let settings = match ask_config(connection).await {
        Ok(settings) => settings,
        // The user may not; some of it is in INFO as well.
        Err(StoreError::Unusable { .. }) => info.settings(),
        Err(error) => return Err(error),
    };
    let weaknesses: Vec<String> = RULES.iter().filter_map(|rule| rule.weakness(&settings)).collect();
    let found = |name: &str| settings.iter().find(|(setting, _)| setting == name).map(|(_, value)| value.as_str());
    let file = match (found("appendonly"), found("appendfsync")) {
        (Some("yes"), Some(fsync)) => format!("AOF {fsync}"),
        (Some("yes"), None) => "AOF".to_owned(),
        _ => "no AOF".to_owned(),
    };
    let policy = found("maxmemory-policy").unwrap_or("unknown eviction");
    Ok(Durability { description: format!("{} {}, {file}, {policy}", info.program(), info.version()), weaknesses })
}

impl Rule {
    fn weakness(&self, settings: &[(String, String)]) -> Option<String> {
        let Rule { setting, wanted, otherwise } = self;
        let remedy = format!(
            "run `CONFIG SET {setting} {wanted}` and write `{setting} {wanted}` into redis.conf"
        );
        match settings.iter().find(|(name, _)| name == setting) {
            Some((_, value)) if value == wanted => None,
            Some((_, value)) => Some(format!("`{setting}` is `{value}`: {otherwise} ({remedy})")),
            None => Some(format!(
                "`{setting}` can't be read: it should be `{wanted}`, otherwise {otherwise} \
                 (let this user run it: `ACL SETUSER <user> +config|get`)"
            )),
        }
    }
}

async fn ask_config(connection: &Connection) -> Result<Vec<(String, String)>, StoreError> {
    let mut settings = Vec::new();
    // One by one: several names in one question need Redis 7.
    for rule in RULES {
        let answer = connection.query(OPERATION, cmd("CONFIG").arg("GET").arg(rule.setting)).await?;
        settings.extend(reply::pairs(answer).map_err(|source| damaged_answer(OPERATION, source))?);
    }
    Ok(settings)
}

/// What `INFO` says, line by line.
struct Info(Vec<(String, String)>);

impl Info {
    async fn ask(connection: &Connection) -> Result<Info, StoreError> {
        let answer: Value = connection.query(OPERATION, &cmd("INFO")).await?;
        let text = reply::text(answer).map_err(|source: Malformed| damaged_answer(OPERATION, source))?;
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        Ok(Info(lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    fn program(&self) -> &'static str {
        if self.get("valkey_version").is_some() { "Valkey" } else { "Redis" }
    }

    fn version(&self) -> &str {
        self.get("valkey_version").or_else(|| self.get("redis_version")).unwrap_or("of unknown version")
    }

    /// Those of the settings that can be told from here.
    fn settings(&self) -> Vec<(String, String)> {
        let on = |value: &str| if value == "1" { "yes" } else { "no" }.to_owned();
        let appendonly = self.get("aof_enabled").map(|value| ("appendonly".to_owned(), on(value)));
        let policy = self.get("maxmemory_policy").map(|value| ("maxmemory-policy".to_owned(), value.to_owned()));
        appendonly.into_iter().chain(policy).collect()
    }
}
