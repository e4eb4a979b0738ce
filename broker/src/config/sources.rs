//! The four sources, laid over one another.

use super::setting::Raw;
use super::{Config, ConfigError, Origin, VALUES, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// What a configuration is made from, in rising order of precedence.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// The environment; only names that start with `RESTANTE_` are looked at.
    pub environment: Vec<(String, String)>,
    /// Flags of the command line.
    pub flags: Vec<Flag>,
}

/// One setting by a flag.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As it was typed, for messages: `--tcp`.
    pub flag: String,
    /// Which value it sets.
    pub key: String,
    /// To what.
    pub text: String,
}

/// A configuration that has passed every check, and where it came from.
#[derive(Clone, Debug)]
pub struct Effective {
    /// The values.
    pub config: Config,
    /// Environment variables that look like settings and are none, so that a typing error shows.
    pub unknown_variables: Vec<String>,
    origins: BTreeMap<&'static str, Origin>,
}

impl Effective {
    /// Where a value was set.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }
}

/// Variables with our prefix that are not settings of the node: they steer the command line.
const OTHER_VARIABLES: [&str; 2] = ["RESTANTE_SERVER", "RESTANTE_CONFIG"];

impl Sources {
    /// Lays the sources over the defaults and checks the result.
    ///
    /// # Errors
    /// The first problem, with its place. Nothing has been changed or opened.
    pub fn load(&self) -> Result<Effective, ConfigError> {
        let mut draft = Draft { config: Config::default(), origins: BTreeMap::new() };
        if let Some(path) = &self.file {
            draft.lay_file(path)?;
        }
        let unknown_variables = draft.lay_environment(&self.environment)?;
        for Flag { flag, key, text } in &self.flags {
            draft.assign(key, &Raw::Text(text), || Origin::Flag(flag.clone()))?;
        }
        let Draft { config, origins } = draft;
        let effective = Effective { config, unknown_variables, origins };
        match effective.config.check_together() {
            Ok(()) => Ok(effective),
            Err((key, why)) => {
                Err(ConfigError::Conflict { origin: effective.origin(key), key, why })
            }
        }
    }
}

struct Draft {
    config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

impl Draft {
    fn lay_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let unreadable = |error| ConfigError::Unreadable { path: path.to_owned(), error };
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let table = DeTable::parse(&text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_of(&text, span.start)),
            message: error.message().to_owned(),
        })?;
        let place = Place { path, text: &text };
        self.lay_table("", table.get_ref(), &place)
    }

    /// Dotted keys and `[peer_defaults]` come to the same; no value is a table itself.
    fn lay_table(
        &mut self,
        prefix: &str,
        table: &DeTable<'_>,
        place: &Place<'_>,
    ) -> Result<(), ConfigError> {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) if prefix.is_empty() && key == "peer_defaults" => {
                    self.lay_table("peer_defaults.", inner, place)?;
                }
                value => self.assign(&key, &raw(value), || place.origin(name.span().start))?,
            }
        }
        Ok(())
    }

    fn lay_environment(
        &mut self,
        environment: &[(String, String)],
    ) -> Result<Vec<String>, ConfigError> {
        let mut unknown = Vec::new();
        for (variable, text) in environment {
            if !variable.starts_with("RESTANTE_") || OTHER_VARIABLES.contains(&variable.as_str()) {
                continue;
            }
            match VALUES.iter().find(|value| value.variable() == *variable) {
                Some(value) => self.assign(value.key, &Raw::Text(text), || {
                    Origin::Environment(variable.clone())
                })?,
                None => unknown.push(variable.clone()),
            }
        }
        unknown.sort();
        Ok(unknown)
    }

    fn assign(
        &mut self,
        key: &str,
        raw: &Raw<'_>,
        origin: impl FnOnce() -> Origin,
    ) -> Result<(), ConfigError> {
        let Some(value) = VALUES.iter().find(|value| value.key == key) else {
            let (key, nearest) = (key.to_owned(), nearest(key));
            return Err(ConfigError::UnknownKey { origin: origin(), key, nearest });
        };
        let Value { key, set, bounds, .. } = value;
        if let Err(why) = set(&mut self.config, raw, *bounds) {
            return Err(ConfigError::BadValue { origin: origin(), key, got: raw.shown(), why });
        }
        self.origins.insert(key, origin());
        Ok(())
    }
}

struct Place<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    fn origin(&self, offset: usize) -> Origin {
        Origin::File { path: self.path.to_owned(), line: line_of(self.text, offset) }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn raw<'a>(value: &'a DeValue<'_>) -> Raw<'a> {
    let integer = |value: &DeValue<'_>| {
        let number = value.as_integer()?;
        i128::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
    };
    match value {
        DeValue::String(text) => Raw::String(text),
        DeValue::Boolean(value) => Raw::Boolean(*value),
        DeValue::Integer(_) => integer(value).map_or(Raw::Other("integer"), Raw::Integer),
        DeValue::Array(items) => items
            .iter()
            .map(|item| integer(item.get_ref()))
            .collect::<Option<Vec<_>>>()
            .map_or(Raw::Other("array"), Raw::List),
        other => Raw::Other(other.type_str()),
    }
}

/// The key that was begun, or the one that differs least if no more than a third of it is wrong.
fn nearest(key: &str) -> Option<&'static str> {
    let begun = VALUES.iter().find(|value| key.len() >= 4 && value.key.starts_with(key));
    let close = || {
        let nearest = VALUES.iter().min_by_key(|value| edits(key, value.key))?;
        (edits(key, nearest.key) * 3 <= key.len()).then_some(nearest)
    };
    begun.or_else(close).map(|value| value.key)
}

/// Insertions, deletions and replacements that turn one text into the other.
fn edits(from: &str, to: &str) -> usize {
    let to = to.as_bytes();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replace = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
