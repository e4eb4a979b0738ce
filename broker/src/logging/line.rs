//! One event as one line.

use restante_protocol::time::WallMillis;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// `time LEVEL event name=value …`
    Human {
        /// Whether the level is coloured.
        color: bool,
    },
    /// One object.
    Json,
}

/// Longest text of one field, in bytes; the rest is cut and marked.
const TEXT_BYTES_MAX: usize = 4_096;

pub(super) struct LineLayer {
    style: Style,
    queue: NonBlocking,
}

impl LineLayer {
    pub(super) fn new(style: Style, queue: NonBlocking) -> LineLayer {
        LineLayer { style, queue }
    }
}

impl<S: Subscriber> Layer<S> for LineLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::begin(self.style, *event.metadata().level());
        // Lines that are not of our vocabulary (a library at debug level) say where they come from.
        if event.metadata().fields().field("event").is_none() {
            line.text("target", event.metadata().target());
        }
        event.record(&mut line);
        // The queue counts what it cannot take.
        let _ = self.queue.clone().write_all(line.end().as_bytes());
    }
}

/// What stands in the place of lines that were lost.
pub(super) fn lines_lost(style: Style, lines: usize) -> String {
    let mut line = Line::begin(style, Level::WARN);
    line.text("event", "log_lines_lost");
    line.plain("lines", lines);
    line.end()
}

struct Line {
    style: Style,
    out: String,
}

impl Line {
    fn begin(style: Style, level: Level) -> Line {
        let mut out = String::with_capacity(256);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = WallMillis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        // Writing into a String cannot fail, here and below.
        let _ = match style {
            Style::Json => {
                let level = level.as_str().to_ascii_lowercase();
                write!(out, "{{\"time\":\"{time}\",\"level\":\"{level}\"")
            }
            Style::Human { color: false } => write!(out, "{time} {level}"),
            Style::Human { color: true } => {
                write!(out, "{time} \u{1b}[{}m{level}\u{1b}[0m", color_of(level))
            }
        };
        Line { style, out }
    }

    fn end(mut self) -> String {
        if self.style == Style::Json {
            self.out.push('}');
        }
        self.out.push('\n');
        self.out
    }

    /// A value that needs no quotes in either style: a number or a truth.
    fn plain(&mut self, name: &str, value: impl fmt::Display) {
        let _ = match self.style {
            Style::Json => write!(self.out, ",\"{name}\":{value}"),
            Style::Human { .. } => write!(self.out, " {name}={value}"),
        };
    }

    fn text(&mut self, name: &str, text: &str) {
        let (text, cut) = bounded(text);
        let text = if cut { format!("{text}…") } else { text.to_owned() };
        match self.style {
            // JSON escapes what lies below a space. Terminals and line readers also act on DEL, the C1
            // controls and the Unicode line separators, so those are escaped as well.
            Style::Json => {
                let quoted = serde_json::Value::String(text).to_string();
                let _ = write!(self.out, ",\"{name}\":");
                for c in quoted.chars() {
                    let _ = match c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
                        true => write!(self.out, "\\u{:04x}", u32::from(c)),
                        false => self.out.write_char(c),
                    };
                }
            }
            Style::Human { .. } if name == "event" => {
                let _ = write!(self.out, " {text}");
            }
            Style::Human { .. } if needs_no_quotes(&text) => {
                let _ = write!(self.out, " {name}={text}");
            }
            Style::Human { .. } => {
                let _ = write!(self.out, " {name}={text:?}");
            }
        }
    }
}

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field.name(), value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field.name(), &format!("{value:?}"));
    }
}

fn color_of(level: Level) -> &'static str {
    match level {
        Level::ERROR => "31",
        Level::WARN => "33",
        Level::INFO => "32",
        Level::DEBUG => "34",
        Level::TRACE => "35",
    }
}

fn bounded(text: &str) -> (&str, bool) {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX.min(text.len()));
    (&text[..end], end < text.len())
}

fn needs_no_quotes(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@:+#/[],".contains(&b))
}
