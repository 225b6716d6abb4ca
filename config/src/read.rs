//! Walks the parsed document leniently: whatever is wrong is noted and the walk goes on.
//!
//! Because serde stops at the first value of a wrong type, and an operator wants to hear of all of them.

use std::fmt::Debug;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::hidden::is_sensitive;
use crate::nearest::suggest;
use crate::problems::{Problems, Span};

/// Where a table is: its dotted name, and its header in the file, where it has one.
#[derive(Debug, Clone)]
pub(crate) struct Here {
    pub(crate) path: String,
    pub(crate) header: Option<Span>,
    /// A password stands in the table itself. That is reported already, and nothing is said to be missing.
    pub(crate) plain_password: bool,
}

/// A value as written, and where.
#[derive(Debug, Clone)]
pub(crate) struct Written<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
    pub(crate) key: Span,
}

/// One known key of a table.
#[derive(Debug)]
pub(crate) struct Field<T> {
    pub(crate) key: &'static str,
    /// The dotted name of the key in the whole file.
    pub(crate) path: String,
    pub(crate) found: Found<T>,
}

#[derive(Debug)]
pub(crate) enum Found<T> {
    Nothing,
    /// It is there, but has a wrong type, which has been reported.
    Unreadable,
    Written(Written<T>),
}

impl<T> Field<T> {
    pub(crate) fn written(&self) -> Option<&Written<T>> {
        match &self.found {
            Found::Written(written) => Some(written),
            Found::Nothing | Found::Unreadable => None,
        }
    }

    pub(crate) fn is_nothing(&self) -> bool {
        matches!(self.found, Found::Nothing)
    }
}

impl<T: Table> Field<T> {
    /// The table as written, or an empty one where it is left out; `None` where it is no table.
    pub(crate) fn table(self) -> Option<T> {
        match self.found {
            Found::Written(written) => Some(written.value),
            Found::Nothing => Some(T::absent(self.path)),
            Found::Unreadable => None,
        }
    }
}

/// A table with known keys.
pub(crate) trait Table: Sized {
    const KEYS: &'static [&'static str];

    fn from_entries(entries: &mut Entries<'_, '_>) -> Self;

    fn known_keys(path: &str, into: &mut Vec<String>);

    fn read(table: &DeTable<'_>, path: String, header: Option<Span>, problems: &mut Problems<'_>) -> Self {
        let plain_password = note_unknown_keys(table, &path, Self::KEYS, problems);
        let here = Here { path, header, plain_password };
        Self::from_entries(&mut Entries { table: Some(table), here, problems })
    }

    fn absent(path: String) -> Self {
        let here = Here { path, header: None, plain_password: false };
        Self::from_entries(&mut Entries { table: None, here, problems: &mut Problems::new("") })
    }
}

/// A table being read, key by key.
pub(crate) struct Entries<'a, 't> {
    table: Option<&'a DeTable<'a>>,
    here: Here,
    problems: &'a mut Problems<'t>,
}

impl Entries<'_, '_> {
    pub(crate) fn here(&self) -> Here {
        self.here.clone()
    }

    pub(crate) fn field<T: Kind>(&mut self, key: &'static str) -> Field<T> {
        let path = below(&self.here.path, key);
        let entry = self.table.and_then(|table| table.get_key_value(key));
        let found = match entry {
            None => Found::Nothing,
            Some((name, value)) => match T::read(value, &path, &name.span(), self.problems) {
                Some(read) => Found::Written(Written { value: read, span: value.span(), key: name.span() }),
                None => Found::Unreadable,
            },
        };
        Field { key, path, found }
    }
}

/// What the value of a key can be.
pub(crate) trait Kind: Sized + Debug {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, key: &Span, problems: &mut Problems<'_>) -> Option<Self>;

    fn known_keys(path: &str, into: &mut Vec<String>) {
        into.push(path.to_owned());
    }
}

/// A length of time, still as text.
#[derive(Debug, Clone)]
pub(crate) struct Timespan(pub(crate) String);

/// Text that is never shown: where a secret is. Somebody may have put the secret itself there.
#[derive(Clone)]
pub(crate) struct Hidden(pub(crate) String);

impl Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hidden(..)")
    }
}

/// A list of texts, each with its place.
pub(crate) type Texts = Vec<Written<String>>;

/// Tables under names that the operator chose.
#[derive(Debug)]
pub(crate) struct Named<T>(pub(crate) Vec<(Written<String>, T)>);

impl Kind for String {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, _: &Span, problems: &mut Problems<'_>) -> Option<String> {
        if let Some(text) = value.get_ref().as_str() {
            return Some(text.to_owned());
        }
        let help = match scalar(value.get_ref()) {
            Some(scalar) => format!("put it in quotes: \"{scalar}\""),
            None => "write a text in quotes".to_owned(),
        };
        wrong_type(value, path, "text", &help, problems)
    }
}

impl Kind for Hidden {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, _: &Span, problems: &mut Problems<'_>) -> Option<Hidden> {
        match value.get_ref().as_str() {
            Some(text) => Some(Hidden(text.to_owned())),
            None => wrong_type(value, path, "text", "write a text in quotes", problems),
        }
    }
}

impl Kind for Timespan {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, _: &Span, problems: &mut Problems<'_>) -> Option<Timespan> {
        if let Some(text) = value.get_ref().as_str() {
            return Some(Timespan(text.to_owned()));
        }
        let number = value.get_ref().as_integer().map_or("10".to_owned(), ToString::to_string);
        let help = format!("write a number and a unit in quotes, such as \"{number}s\" or \"{number}min\"");
        wrong_type(value, path, "a length of time", &help, problems)
    }
}

impl Kind for bool {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, _: &Span, problems: &mut Problems<'_>) -> Option<bool> {
        match value.get_ref().as_bool() {
            Some(flag) => Some(flag),
            None => wrong_type(value, path, "true or false", "write true or false, without quotes", problems),
        }
    }
}

impl Kind for i64 {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, _: &Span, problems: &mut Problems<'_>) -> Option<i64> {
        if let Some(number) = value.get_ref().as_integer() {
            // What does not fit is out of every range; the range check says so.
            let far_out = if number.as_str().starts_with('-') { i64::MIN } else { i64::MAX };
            return Some(i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(far_out));
        }
        let help = match value.get_ref().as_str().and_then(|text| text.trim().parse::<i64>().ok()) {
            Some(number) => format!("write {number}, without quotes"),
            None => "write a whole number, without quotes".to_owned(),
        };
        wrong_type(value, path, "a whole number", &help, problems)
    }
}

impl Kind for Texts {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, key: &Span, problems: &mut Problems<'_>) -> Option<Texts> {
        let Some(items) = value.get_ref().as_array() else {
            let help = match value.get_ref().as_str() {
                Some(text) => format!("write it as a list: [{}]", problems.show_value(text)),
                None => "write a list of texts, such as [\"one\", \"two\"]".to_owned(),
            };
            return wrong_type(value, path, "a list", &help, problems);
        };
        let read = |item: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>| {
            let value = String::read(item, path, key, problems)?;
            Some(Written { value, span: item.span(), key: key.clone() })
        };
        let all: Vec<_> = items.iter().map(|item| read(item, problems)).collect();
        all.into_iter().collect()
    }
}

impl<T: Table + Debug> Kind for T {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, key: &Span, problems: &mut Problems<'_>) -> Option<T> {
        let Some(table) = value.get_ref().as_table() else {
            let help = format!("write a table: a line `[{path}]`, and its keys below it");
            return wrong_type(value, path, "a table", &help, problems);
        };
        let header = header(value, key, problems);
        Some(T::read(table, path.to_owned(), Some(header), problems))
    }

    fn known_keys(path: &str, into: &mut Vec<String>) {
        <T as Table>::known_keys(path, into);
    }
}

impl<T: Table + Debug> Kind for Named<T> {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, _: &Span, problems: &mut Problems<'_>) -> Option<Named<T>> {
        let Some(table) = value.get_ref().as_table() else {
            let help = format!("write one table for each: a line `[{path}.NAME]`, and its keys below it");
            return wrong_type(value, path, "a table", &help, problems);
        };
        let mut entries: Vec<_> = table.iter().collect();
        // In the order of the file, so that of two equal ones the second is the duplicate.
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut named = Vec::new();
        for (name, value) in entries {
            let text = name.get_ref().to_string();
            if let Some(read) = <T as Kind>::read(value, &below(path, &text), &name.span(), problems) {
                named.push((Written { value: text, span: name.span(), key: name.span() }, read));
            }
        }
        Some(Named(named))
    }

    fn known_keys(path: &str, into: &mut Vec<String>) {
        <T as Table>::known_keys(&below(path, "NAME"), into);
    }
}

/// The dotted name of `key` in the table `path`.
pub(crate) fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// What stands for a table in a report: its `[header]`, or its key where it is written inline.
fn header(value: &Spanned<DeValue<'_>>, key: &Span, problems: &Problems<'_>) -> Span {
    let span = value.span();
    if problems.text().get(span.clone()).is_some_and(|text| text.starts_with('[')) { span } else { key.clone() }
}

/// Notes every key that is not known; true where one of them is a password in the open.
fn note_unknown_keys(table: &DeTable<'_>, path: &str, known: &[&'static str], problems: &mut Problems<'_>) -> bool {
    let mut plain_password = false;
    for (key, value) in table.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref())) {
        let name = key.get_ref().as_ref();
        if is_sensitive(name) && known.contains(&"password_file") && value.get_ref().as_table().is_none() {
            plain_password = true;
            let reason = format!("`{}` would be a secret in this file", problems.show(&below(path, name)));
            problems.add(&key.span(), reason, "put it into a file of its own and write `password_file = \"/...\"`");
            continue;
        }
        let place = if path.is_empty() { "at the top of the file".to_owned() } else { format!("in `[{path}]`") };
        let reason = format!("`{}` is not known {}", problems.show(name), problems.show(&place));
        let help = match (home_of(name, path), known.is_empty()) {
            (Some(home), _) => format!("it belongs under `[{home}]`"),
            (None, _) => suggest(name, known, "leave it out"),
        };
        problems.add(&key.span(), reason, help);
    }
    plain_password
}

/// The one section that does know this key, where there is exactly one and it is another one.
fn home_of(name: &str, path: &str) -> Option<String> {
    let all = crate::raw::known_keys();
    let mut homes = all.iter().filter_map(|known| {
        let (home, key) = known.rsplit_once('.')?;
        (key == name).then_some(home)
    });
    let home = homes.next().filter(|home| *home != path)?;
    homes.next().is_none().then(|| home.to_owned())
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Datetime(date) => Some(date.to_string()),
        DeValue::String(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn wrong_type<T>(
    value: &Spanned<DeValue<'_>>,
    path: &str,
    wanted: &str,
    help: &str,
    problems: &mut Problems<'_>,
) -> Option<T> {
    let is = match value.get_ref() {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    let reason = format!("`{}` must be {wanted}, not {is}", problems.show(path));
    problems.add(&value.span(), reason, help);
    None
}
