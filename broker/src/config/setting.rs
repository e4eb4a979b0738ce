//! How one value is read from text or TOML, checked against its bounds, and written back.

use restante_protocol::admin::Order;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A value as a source gives it: flags and environment know only text, a file knows kinds.
#[derive(Clone, Debug)]
pub(super) enum Raw<'a> {
    Text(&'a str),
    /// A string of a TOML file.
    String(&'a str),
    Integer(i128),
    Boolean(bool),
    List(Vec<i128>),
    /// Any kind that no setting has, by its TOML name.
    Other(&'static str),
}

impl Raw<'_> {
    /// The value as people wrote it, for messages.
    pub(super) fn shown(&self) -> String {
        match self {
            Raw::Text(text) | Raw::String(text) => format!("{text:?}"),
            Raw::Integer(value) => value.to_string(),
            Raw::Boolean(value) => value.to_string(),
            Raw::List(values) => format!("{values:?}"),
            Raw::Other(kind) => format!("({kind})"),
        }
    }
}

/// The lowest and the highest value, both allowed.
pub(super) type Bounds = Option<(u64, u64)>;

/// One kind of value. Errors say what was expected.
pub(super) trait Setting: Sized {
    fn read(raw: &Raw<'_>, bounds: Bounds) -> Result<Self, String>;

    /// As it stands in a TOML file, and at the same time as it stands in JSON.
    fn write(&self) -> String;
}

/// Sets a slot, or leaves it as it was and says what was expected.
pub(super) fn assign<T: Setting>(
    slot: &mut T,
    raw: &Raw<'_>,
    bounds: Bounds,
) -> Result<(), String> {
    *slot = T::read(raw, bounds)?;
    Ok(())
}

fn number(value: i128, bounds: Bounds) -> Result<u64, String> {
    let (low, high) = bounds.unwrap_or((0, u64::MAX));
    u64::try_from(value)
        .ok()
        .filter(|value| (low..=high).contains(value))
        .ok_or_else(|| format!("expected a whole number from {low} to {high}"))
}

fn digits(text: &str) -> Result<i128, String> {
    text.trim()
        .replace('_', "")
        .parse()
        .map_err(|_| "expected a whole number, like 4096 or 4_096".to_owned())
}

impl Setting for u64 {
    fn read(raw: &Raw<'_>, bounds: Bounds) -> Result<u64, String> {
        match raw {
            Raw::Text(text) => number(digits(text)?, bounds),
            Raw::Integer(value) => number(*value, bounds),
            _ => Err("expected a whole number, without quotes".to_owned()),
        }
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for u32 {
    fn read(raw: &Raw<'_>, bounds: Bounds) -> Result<u32, String> {
        let (low, high) = bounds.unwrap_or((0, u64::MAX));
        let value = u64::read(raw, Some((low, high.min(u64::from(u32::MAX)))))?;
        u32::try_from(value).map_err(|_| "expected a number below 2^32".to_owned())
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for bool {
    fn read(raw: &Raw<'_>, _: Bounds) -> Result<bool, String> {
        match raw {
            Raw::Boolean(value) => Ok(*value),
            Raw::Text("true") => Ok(true),
            Raw::Text("false") => Ok(false),
            _ => Err("expected true or false".to_owned()),
        }
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

/// Most entries of a list.
const LIST_MAX: usize = 32;

impl Setting for Vec<u64> {
    fn read(raw: &Raw<'_>, bounds: Bounds) -> Result<Vec<u64>, String> {
        let values = match raw {
            Raw::List(values) => values.clone(),
            Raw::Text("") => Vec::new(),
            Raw::Text(text) => text.split(',').map(digits).collect::<Result<_, _>>()?,
            _ => return Err("expected a list of whole numbers, like [1000, 5000]".to_owned()),
        };
        if values.len() > LIST_MAX {
            return Err(format!("expected at most {LIST_MAX} entries"));
        }
        values.into_iter().map(|value| number(value, bounds)).collect()
    }

    fn write(&self) -> String {
        format!("{self:?}")
    }
}

fn text<'a>(raw: &Raw<'a>) -> Result<&'a str, String> {
    match raw {
        Raw::Text(text) | Raw::String(text) => Ok(text),
        _ => Err("expected a text in quotes".to_owned()),
    }
}

/// A string that holds any text, in TOML and in JSON alike: both know the same escapes, and only
/// TOML insists on escaping DEL.
fn quoted(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string().replace('\u{7f}', "\\u007f")
}

impl Setting for PathBuf {
    fn read(raw: &Raw<'_>, _: Bounds) -> Result<PathBuf, String> {
        match text(raw)? {
            "" => Err("expected a path".to_owned()),
            path => Ok(PathBuf::from(path)),
        }
    }

    fn write(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl Setting for Option<PathBuf> {
    fn read(raw: &Raw<'_>, _: Bounds) -> Result<Option<PathBuf>, String> {
        Ok(Some(text(raw)?).filter(|path| !path.is_empty()).map(PathBuf::from))
    }

    fn write(&self) -> String {
        self.as_ref().map_or_else(|| quoted(""), Setting::write)
    }
}

impl Setting for SocketAddr {
    fn read(raw: &Raw<'_>, _: Bounds) -> Result<SocketAddr, String> {
        text(raw)?.parse().map_err(|_| {
            "expected ADDRESS:PORT with a numeric address, like 127.0.0.1:7700 or [::1]:7700; \
             port 0 takes a free one"
                .to_owned()
        })
    }

    fn write(&self) -> String {
        quoted(&self.to_string())
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// One line of text an event.
    Human,
    /// One JSON object a line.
    Json,
}

impl Setting for LogFormat {
    fn read(raw: &Raw<'_>, _: Bounds) -> Result<LogFormat, String> {
        match text(raw)? {
            "auto" => Ok(LogFormat::Auto),
            "human" => Ok(LogFormat::Human),
            "json" => Ok(LogFormat::Json),
            _ => Err("expected auto, human or json".to_owned()),
        }
    }

    fn write(&self) -> String {
        quoted(match self {
            LogFormat::Auto => "auto",
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        })
    }
}

impl Setting for Order {
    fn read(raw: &Raw<'_>, _: Bounds) -> Result<Order, String> {
        match text(raw)? {
            "sent" => Ok(Order::Sent),
            "strict" => Ok(Order::Strict),
            "none" => Ok(Order::None),
            _ => Err("expected sent, strict or none".to_owned()),
        }
    }

    fn write(&self) -> String {
        quoted(match self {
            Order::Sent => "sent",
            Order::Strict => "strict",
            Order::None => "none",
        })
    }
}

/// Which log lines are written, in `tracing` syntax: `info`, `warn,restante=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogFilter {
    fn default() -> LogFilter {
        LogFilter("info".to_owned())
    }
}

/// A bad filter is found before anything starts.
impl FromStr for LogFilter {
    type Err = String;

    fn from_str(filter: &str) -> Result<LogFilter, String> {
        // As a filter it would be a module's name and silence everything else.
        let is_typo = |word: &&str| {
            word.is_empty()
                || !word.contains(['=', '['])
                    && word.parse::<tracing::level_filters::LevelFilter>().is_err()
        };
        if let Some(word) = filter.split(',').map(str::trim).find(is_typo) {
            return Err(format!("expected levels like info or restante=debug, not {word:?}"));
        }
        match tracing_subscriber::EnvFilter::builder().parse(filter) {
            Ok(_) => Ok(LogFilter(filter.to_owned())),
            Err(error) => Err(format!("expected levels like info or restante=debug: {error}")),
        }
    }
}

impl Setting for LogFilter {
    fn read(raw: &Raw<'_>, _: Bounds) -> Result<LogFilter, String> {
        text(raw)?.parse()
    }

    fn write(&self) -> String {
        quoted(&self.0)
    }
}
