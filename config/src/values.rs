//! Single values: from the text as written to what is meant, or why not.
//!
//! Because these end up in argument lists, boot configurations, paths and URLs, each is an allow-list.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::config::Matcher;
use crate::limits;
use crate::names::NAME_CHARS_MAX;
use crate::nearest::{any_of, nearest};
use crate::problems::{Wrong, show, show_url};

/// Longest host name in DNS.
const HOST_CHARS_MAX: usize = 253;

/// Longest user name: `LOGIN_NAME_MAX` of Linux, less its NUL.
const USER_CHARS_MAX: usize = 255;

/// Longest free text. A kernel takes 2048 bytes of command line from its boot loader on x86, and ours is not all of it.
const LINE_CHARS_MAX: usize = 1500;

/// One of a few words.
pub(crate) fn one_of<T: Copy>(given: &str, words: &[(&str, T)]) -> Result<T, Wrong> {
    if let Some((_, meant)) = words.iter().find(|(word, _)| *word == given) {
        return Ok(*meant);
    }
    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let help = match nearest(given, known.iter().copied()) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("write {}", any_of(&known)),
    };
    Err(Wrong::new(format!("`{}` is not one of {}", show(given), any_of(&known)), help))
}

/// Text on one line, not empty.
pub(crate) fn line(text: &str) -> Result<String, Wrong> {
    if text.trim().is_empty() {
        return Err(Wrong::new("this is empty", "write something between the quotes"));
    }
    line_or_nothing(text)
}

/// Text on one line.
pub(crate) fn line_or_nothing(text: &str) -> Result<String, Wrong> {
    if text.chars().any(char::is_control) {
        return Err(Wrong::new("there is a line break or another control character in this", "write it on one line"));
    }
    if text.chars().count() > LINE_CHARS_MAX {
        return Err(Wrong::new("this is too long", format!("write at most {LINE_CHARS_MAX} characters")));
    }
    Ok(text.to_owned())
}

/// The name of the site.
pub(crate) fn site(text: &str) -> Result<String, Wrong> {
    let name = line(text)?;
    if name.chars().count() > limits::SITE_CHARS_MAX {
        return Err(Wrong::new("this is too long", format!("write at most {} characters", limits::SITE_CHARS_MAX)));
    }
    Ok(name)
}

/// One word without blanks, such as a version.
pub(crate) fn word(text: &str) -> Result<String, Wrong> {
    let word = line(text)?;
    if word.contains(char::is_whitespace) {
        return Err(Wrong::new(format!("there is a blank in `{}`", show(text)), "write one word"));
    }
    Ok(word)
}

/// An id of OpenStack's, as Glance and Neutron have them: their APIs take no names.
pub(crate) fn uuid(text: &str) -> Result<String, Wrong> {
    let parts: Vec<&str> = text.split('-').collect();
    let is_hex = |part: &&str| part.chars().all(|c| c.is_ascii_hexdigit());
    if parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(is_hex) {
        return Ok(text.to_owned());
    }
    let help = "write its id, such as `6d1f7a0e-8a4c-4a57-9f6e-0d3b2c1a4e55`: `openstack image show -f value -c id NAME`, or `openstack network show ...`";
    Err(Wrong::new(format!("`{}` is not an id", show(text)), help))
}

/// One line for the login shell of a node.
pub(crate) fn command(text: &str) -> Result<String, Wrong> {
    let good = !text.trim().is_empty() && text.chars().count() <= limits::ARGUMENT_CHARS_MAX && !text.contains(char::is_control);
    let help = || format!("write 1 to {} characters on one line, as you would type them on the node", limits::ARGUMENT_CHARS_MAX);
    if good { Ok(text.to_owned()) } else { Err(Wrong::new("this is not a command", help())) }
}

/// An argument of a program: no shell ever sees it. A brace is only good in `{node}`.
pub(crate) fn argument(text: &str) -> Result<String, Wrong> {
    if text.is_empty() || text.chars().count() > limits::ARGUMENT_CHARS_MAX || text.contains(char::is_control) {
        let help = format!("write 1 to {} characters, without line breaks", limits::ARGUMENT_CHARS_MAX);
        return Err(Wrong::new("this is not an argument", help));
    }
    let rest = text.replace("{node}", "");
    if rest.contains(['{', '}']) {
        return Err(Wrong::new(format!("`{}` has a brace that means nothing", show(text)), "write `{node}` for the node's name"));
    }
    Ok(text.to_owned())
}

/// Stands for the node's name.
pub(crate) const NODE: &str = "{node}";

/// The absolute path of a file, in which [`NODE`] may stand for a node's name.
pub(crate) fn node_file(text: &str) -> Result<String, Wrong> {
    argument(text)?;
    absolute_path(text)?;
    Ok(text.to_owned())
}

/// A condition on an alert's label, as Alertmanager and `amtool` write it: `name="value"`, or with `!=`, `=~` or `!~`; the quotes may be left out, and
/// within them `\\\\` and `\\"` stand for one character. `{node}` must not be the beginning of another node's name.
pub(crate) fn matcher(text: &str) -> Result<Matcher, Wrong> {
    let wrong = || {
        let help = "write a label, one of `=` `!=` `=~` `!~`, and a value: 'instance=~\"{node}(:[0-9]+)?\"'";
        Wrong::new(format!("`{}` is no condition on a label", show(text)), help)
    };
    let written = text.trim();
    let end = written.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').ok_or_else(wrong)?;
    let (name, rest) = written.split_at(end);
    let rest = rest.trim_start();
    let operators = [("=~", true, true), ("!~", true, false), ("!=", false, false), ("=", false, true)];
    let found = operators.iter().find_map(|&(operator, is_regex, is_equal)| Some((rest.strip_prefix(operator)?, is_regex, is_equal)));
    let (value, is_regex, is_equal) = found.ok_or_else(wrong)?;
    let value = match value.trim_start().strip_prefix('"') {
        Some(quoted) => unquoted(quoted).ok_or_else(wrong)?,
        None => value.trim().to_owned(),
    };
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || value.is_empty() || value.contains(char::is_control) {
        return Err(wrong());
    }
    let after_node = value.split(NODE).skip(1);
    if is_regex && after_node.clone().any(|rest| [".*", ".+", "\\d", "[0-9]", "\\w", "\\S"].iter().any(|any| rest.starts_with(any))) {
        let reason = format!("`{}` is also about nodes whose names begin with this one's", show(text));
        return Err(Wrong::new(reason, "let something other than a name follow `{node}`, such as `(:[0-9]+)?`"));
    }
    Ok(Matcher { name: name.to_owned(), value, is_regex, is_equal })

}

/// What stands before the closing quotation mark, which has to be the last character.
fn unquoted(rest: &str) -> Option<String> {
    let mut value = String::new();
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return chars.as_str().trim().is_empty().then_some(value),
            '\\' => match chars.next()? {
                escaped @ ('\\' | '"') => value.push(escaped),
                // Of a regular expression: `\.`
                other => value.extend(['\\', other]),
            },
            c => value.push(c),
        }
    }
    None
}

/// A path that means the same wherever a program is started.
pub(crate) fn absolute_path(text: &str) -> Result<PathBuf, Wrong> {
    if !text.starts_with('/') {
        let help = if text.starts_with('~') {
            "write the whole path from the root: `~` is only known to shells"
        } else {
            "write the whole path from the root, beginning with a slash"
        };
        return Err(Wrong::new(format!("`{}` is not an absolute path", show(text)), help));
    }
    line(text).map(PathBuf::from)
}

/// Where a secret is: like `absolute_path`, but nothing of it is repeated, as it may be the secret itself.
pub(crate) fn secret_path(text: &str) -> Result<PathBuf, Wrong> {
    absolute_path(text).map_err(|_| {
        Wrong::new(
            "this is not the absolute path of a file",
            "put the secret into a file and write its path here, such as \"/etc/turnaround/redis.password\"",
        )
    })
}

/// The name of a systemd credential; nothing of it is repeated either.
pub(crate) fn credential(text: &str) -> Result<String, Wrong> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty() && text.len() <= NAME_CHARS_MAX && text.chars().all(allowed) && !text.starts_with('.') {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        "this is not the name of a systemd credential",
        "write the name that stands in `LoadCredential=NAME:...` of the unit",
    ))
}

/// A unix socket.
pub(crate) fn socket(text: &str) -> Result<PathBuf, Wrong> {
    fits_socket(absolute_path(text)?, None)
}

/// The directory of the daemon's state, below which the private Redis has its socket.
pub(crate) fn state_dir(text: &str) -> Result<PathBuf, Wrong> {
    fits_socket(absolute_path(text)?, Some(limits::REDIS_SOCKET_BELOW_STATE_DIR))
}

fn fits_socket(path: PathBuf, below: Option<&str>) -> Result<PathBuf, Wrong> {
    let longest = below.map_or_else(|| path.clone(), |below| path.join(below));
    let over = longest.as_os_str().len().saturating_sub(limits::SOCKET_PATH_BYTES_MAX);
    if over == 0 {
        return Ok(path);
    }
    Err(Wrong::new(
        format!("a unix socket at `{}` would have too long a path", show(&longest.to_string_lossy())),
        format!("write a path that is at least {over} characters shorter"),
    ))
}

/// A bare name to be found in `PATH`, or an absolute path.
pub(crate) fn program(text: &str) -> Result<PathBuf, Wrong> {
    let program = line(text)?;
    if program.starts_with('-') || (program.contains('/') && !Path::new(&program).is_absolute()) {
        let name = program.rsplit('/').next().unwrap_or_default();
        return Err(Wrong::new(
            format!("`{}` is neither the name of a program nor an absolute path", show(text)),
            format!("write \"{0}\" or the whole path, such as \"/usr/bin/{0}\"", show(name.trim_start_matches('-'))),
        ));
    }
    if program.contains(' ') && !program.starts_with('/') {
        return Err(Wrong::new(
            format!("`{}` is more than the name of a program", show(text)),
            "write the program alone; its arguments are ours",
        ));
    }
    Ok(PathBuf::from(program))
}

/// The host of a network address, and whether it is a sound one.
pub(crate) fn host(text: &str) -> Result<String, Wrong> {
    let label = |part: &str| {
        !part.is_empty()
            && part.len() <= NAME_CHARS_MAX
            && !part.starts_with('-')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    let name = text.len() <= HOST_CHARS_MAX && text.trim_end_matches('.').split('.').all(label);
    // `10.0.0.300` would be a name by its letters, but nobody means one.
    let digits = text.chars().all(|c| c.is_ascii_digit() || c == '.');
    if text.parse::<IpAddr>().is_ok() || (name && !digits) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        format!("`{}` is not a host name or an address", show(text)),
        "write a host name or an address alone, such as \"gpu-01\" or \"192.0.2.11\"",
    ))
}

/// `http://` or `https://`, without credentials; a slash at the end is dropped.
pub(crate) fn web_url(text: &str) -> Result<String, Wrong> {
    url_like("https://192.0.2.11", text)
}

/// Where GRUB fetches from, which knows no TLS.
pub(crate) fn netboot_url(text: &str) -> Result<String, Wrong> {
    let url = url_like("http://192.0.2.1/boot", text)?;
    match url.strip_prefix("https://") {
        None => Ok(url),
        Some(place) => {
            let help = format!("write \"http://{}\", and let the files be offered there by plain HTTP", show(place));
            Err(Wrong::new("GRUB fetches from here, and knows no https", help))
        }
    }
}

fn url_like(example: &str, text: &str) -> Result<String, Wrong> {
    let example = format!("write a URL such as \"{example}\"");
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err(Wrong::new(format!("`{}` is not an http or https URL", show_url(text)), example));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if rest.contains('@') {
        return Err(Wrong::new(
            "there is a user name or a password in this URL",
            "leave out what stands before the `@`; credentials have keys of their own",
        ));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) || rest.contains(['?', '#']) {
        return Err(Wrong::new(format!("`{}` has more than a host and a path", show_url(text)), example));
    }
    host_and_port(authority).ok_or_else(|| {
        Wrong::new(format!("`{}` has no sound host and port", show_url(text)), example)
    })?;
    Ok(text.trim_end_matches('/').to_owned())
}

/// Where installers report, as nodes have it: a word of the kernel's command line.
pub(crate) fn reports_url(text: &str) -> Result<String, Wrong> {
    let url = web_url(text)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/' | '[' | ']');
    if url.len() > limits::REPORTS_URL_CHARS_MAX || !url.chars().all(plain) {
        let help = format!("write a host, a port and perhaps a path of letters, digits and `-_.`, at most {} characters", limits::REPORTS_URL_CHARS_MAX);
        return Err(Wrong::new(format!("`{}` does not fit into the kernel's command line", show_url(text)), help));
    }
    Ok(url)
}

/// An address of this host and a port.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, Wrong> {
    let wrong = || Wrong::new(format!("`{}` is not an address and a port", show(text)), "write both, such as \"192.0.2.1:8470\" or \"[2001:db8::1]:8470\"");
    text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0).ok_or_else(wrong)
}

fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (name, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (address, after) = rest.split_once(']')?;
        address.parse::<std::net::Ipv6Addr>().ok()?;
        match after.strip_prefix(':') {
            Some(port) => (address, Some(port)),
            None if after.is_empty() => (address, None),
            None => return None,
        }
    } else {
        let (name, port) = authority.split_once(':').map_or((authority, None), |(name, port)| (name, Some(port)));
        host(name).ok()?;
        (name, port)
    };
    match port {
        None => Some((name, None)),
        Some(port) => port.parse().ok().filter(|port| *port != 0).map(|port| (name, Some(port))),
    }
}

/// A Redis URL without a password.
pub(crate) fn redis_url(text: &str) -> Result<String, Wrong> {
    let schemes = ["redis://", "rediss://", "redis+unix://", "unix://"];
    let Some(scheme) = schemes.iter().find(|scheme| text.starts_with(**scheme)) else {
        return Err(Wrong::new(
            format!("`{}` is not a Redis URL", show_url(text)),
            "write \"redis://HOST:6379\", \"rediss://HOST:6379\" (TLS) or \"unix:///run/redis/redis.sock\"",
        ));
    };
    let rest = &text[scheme.len()..];
    let login = rest.rsplit_once('@').map(|(login, _)| login);
    let in_query = rest.split(['?', '&']).skip(1).any(|parameter| parameter.starts_with("pass"));
    if in_query || login.is_some_and(|login| login.contains(':')) {
        return Err(Wrong::new(
            "there is a password in this URL",
            "leave it out here, put it into a file and write `password_file = \"/...\"`",
        ));
    }
    if rest.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Wrong::new(format!("there is a blank in `{}`", show_url(text)), "write the URL without blanks"));
    }
    let sound = if scheme.contains("unix") {
        rest.starts_with('/')
    } else {
        let server = rest.rsplit('@').next().unwrap_or_default();
        host_and_port(server.split(['/', '?', '#']).next().unwrap_or_default()).is_some()
    };
    if sound {
        return Ok(text.to_owned());
    }
    let example = if scheme.contains("unix") { "unix:///run/redis/redis.sock" } else { "redis://192.0.2.5:6379" };
    Err(Wrong::new(format!("`{}` does not say which server", show_url(text)), format!("write it like \"{example}\"")))
}

/// `HOST:PORT`.
pub(crate) fn server(text: &str) -> Result<String, Wrong> {
    match host_and_port(text) {
        Some((_, Some(_))) => Ok(text.to_owned()),
        Some((_, None)) => Err(Wrong::new(format!("`{}` has no port", show(text)), "write it like \"192.0.2.5:26379\"")),
        None => Err(Wrong::new(
            format!("`{}` is not a host and a port", show_url(text)),
            "write it like \"192.0.2.5:26379\", without a scheme and without credentials",
        )),
    }
}

/// A MAC address, in lower case.
pub(crate) fn mac(text: &str) -> Result<String, Wrong> {
    let reason = format!("`{}` is not a MAC address", show(text));
    let digits: String = text.chars().filter(|c| !matches!(c, ':' | '-' | '.')).collect();
    let octets = |digits: &str| -> Vec<String> {
        digits.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).to_lowercase()).collect()
    };
    if digits.len() != 12 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(Wrong::new(reason, "write six pairs of hex digits, such as \"02:00:5e:10:00:0a\""));
    }
    let octets = octets(&digits);
    let canonical = octets.join(":");
    if text.to_lowercase() != canonical {
        return Err(Wrong::new(reason, format!("write it with colons: \"{canonical}\"")));
    }
    let group_bit = u8::from_str_radix(&octets[0], 16).is_ok_and(|first| first & 1 == 1);
    if group_bit || canonical == "00:00:00:00:00:00" {
        return Err(Wrong::new(
            format!("`{canonical}` is not the address of one interface"),
            "write the address of the interface that netboots",
        ));
    }
    Ok(canonical)
}

/// 64 hex digits, in lower case.
pub(crate) fn sha256(text: &str) -> Result<String, Wrong> {
    let digest = text.to_lowercase();
    if digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(digest);
    }
    let help = match digest.strip_prefix("sha256:") {
        Some(_) => "leave out `sha256:` and write the 64 hex digits alone".to_owned(),
        None => format!("write 64 hex digits, as `sha256sum` prints them; these are {} characters", text.chars().count()),
    };
    Err(Wrong::new(format!("`{}` is not a SHA-256 digest", show(text)), help))
}

/// A path below the netboot URL. It goes into a boot loader's configuration, so it is plain.
pub(crate) fn boot_file(text: &str) -> Result<String, Wrong> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+' | '~');
    let plain = !text.is_empty() && text.chars().all(allowed);
    if plain && !text.starts_with('/') && text.split('/').all(|part| !matches!(part, "" | "." | "..")) {
        return Ok(text.to_owned());
    }
    let help = if plain && text.starts_with('/') {
        format!("write it without the slash at the beginning: \"{}\"", show(text.trim_start_matches('/')))
    } else {
        "write a path of letters, digits, `-`, `_`, `.`, `+`, `~` and `/`, such as \"noble/vmlinuz\"".to_owned()
    };
    Err(Wrong::new(format!("`{}` is not a path below the netboot URL", show(text)), help))
}

/// A login name. It stands in argument lists, so it does not begin with `-`.
pub(crate) fn user(text: &str) -> Result<String, Wrong> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | '+' | '$' | '\\');
    let good = !text.is_empty()
        && !text.starts_with('-')
        && text.chars().count() <= USER_CHARS_MAX
        && text.chars().all(allowed);
    if good {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        // Not repeated: somebody may have written `user:password`.
        "this is not a user name",
        "write the name alone: letters, digits, `-`, `_`, `.`, `@`, and no `-` at the beginning",
    ))
}

/// The filter of what is logged.
pub(crate) fn log_filter(text: &str) -> Result<String, Wrong> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let filter = line(text)?;
    // Span filters (`[span{field=1}]`) have commas of their own; their grammar is left to the library.
    if filter.contains('[') {
        return Ok(filter);
    }
    // The library takes a space for a part of a target's name.
    let parts: Vec<&str> = filter.split(',').map(str::trim).collect();
    for part in &parts {
        let (target, level) = part.rsplit_once('=').map_or((None, *part), |(target, level)| (Some(target), level));
        if !LEVELS.contains(&level.trim().to_lowercase().as_str()) {
            return Err(Wrong::new(
                format!("`{}` is not a log level", show(level.trim())),
                format!("write {}, or `TARGET=LEVEL`, with commas between them", any_of(&LEVELS)),
            ));
        }
        // As the library's grammar has it, which says no more than that a directive is invalid.
        let is_named = |target: &str| !target.is_empty() && target.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '-'));
        if let Some(target) = target.filter(|target| !is_named(target)) {
            return Err(Wrong::new(
                format!("`{}` is not a target of log lines", show(target)),
                "write the name of a crate or module before the `=`, such as `turnaround_worker=debug`",
            ));
        }
    }
    Ok(parts.join(","))
}
