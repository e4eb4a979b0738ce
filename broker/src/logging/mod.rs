//! Where log lines go: one line an event, text or JSON, to standard error.
//!
//! ```text
//! event ─► filter (changeable while running) ─► line.rs ─► bounded queue ─► writer thread ─► stderr
//!                                                              │ full: counted
//!                                                              └─────────► log_lines_lost
//! ```
//!
//! The thread that logs never waits for whoever reads standard error. Lines that find the queue full
//! are lost, and the next line that is written is preceded by their number.

mod line;

use crate::config::{Config, LogFilter, LogFormat};
use line::{LineLayer, Style};
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Lines that wait for standard error; more are lost and counted.
const QUEUE_LINES_MAX: usize = 8_192;

/// Changes the filter of a running log. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LogHandle {
    /// Writes what `filter` (in `tracing` syntax) lets through from now on.
    ///
    /// # Errors
    /// The text is not a filter, or the log has ended; the former filter stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), String> {
        let filter: LogFilter = filter.parse()?;
        let parsed = EnvFilter::builder().parse_lossy(filter.as_str());
        self.filter.reload(parsed).map_err(|error| error.to_string())
    }
}

/// Writes out what is still queued, for at most a second, when it is dropped.
pub struct LogGuard {
    _worker: WorkerGuard,
}

/// Why a log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The program has one; a node inside a program logs through that.
    #[error("this program has a log already")]
    Taken,
}

/// Starts the log of this process as the configuration says.
///
/// # Errors
/// The process has a log already.
pub fn start(config: &Config) -> Result<(LogHandle, LogGuard), LogError> {
    let terminal = io::stderr().is_terminal();
    let style = match config.log_format {
        LogFormat::Json => Style::Json,
        LogFormat::Auto if !terminal => Style::Json,
        LogFormat::Auto | LogFormat::Human => {
            Style::Human { color: terminal && crate::cli::color_wanted() }
        }
    };
    let (subscriber, handle, guard) = build(config.log_filter.as_str(), style, io::stderr());
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Taken)?;
    Ok((handle, guard))
}

fn build(
    filter: &str,
    style: Style,
    out: impl Write + Send + 'static,
) -> (impl tracing::Subscriber + Send + Sync, LogHandle, LogGuard) {
    let lost = Arc::new(OnceLock::new());
    let out = Counting { out, style, lost: lost.clone(), told: 0 };
    let (queue, worker) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE_LINES_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(out);
    // Set once, right here, before the first line.
    let _ = lost.set(queue.error_counter());
    let filter = EnvFilter::builder().parse_lossy(filter);
    let (filter, reload) = reload::Layer::new(filter);
    let subscriber = Registry::default().with(filter).with(LineLayer::new(style, queue));
    (subscriber, LogHandle { filter: reload }, LogGuard { _worker: worker })
}

/// The far end of the queue: says how many lines are missing before it goes on.
struct Counting<W> {
    out: W,
    style: Style,
    lost: Arc<OnceLock<ErrorCounter>>,
    told: usize,
}

impl<W: Write> Counting<W> {
    fn tell_lost(&mut self) -> io::Result<()> {
        let lost = self.lost.get().map_or(0, ErrorCounter::dropped_lines);
        let news = lost.saturating_sub(self.told);
        if news > 0 {
            self.told = lost;
            self.out.write_all(line::lines_lost(self.style, news).as_bytes())?;
        }
        Ok(())
    }
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.tell_lost()?;
        self.out.write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tell_lost()?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::{Condvar, Mutex};
    use restante_actors::events;
    use restante_protocol::time::WallMillis;

    /// Collects what is written, and can be held so that the queue fills.
    #[derive(Clone, Default)]
    struct Sink {
        state: Arc<Mutex<(Vec<u8>, bool)>>,
        released: Arc<Condvar>,
    }

    impl Sink {
        fn hold(&self, held: bool) {
            self.state.lock().1 = held;
            self.released.notify_all();
        }

        fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(self.state.lock().0.clone()).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.state.lock();
            self.released.wait_while(&mut state, |(_, held)| *held);
            state.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, style: Style, what: impl FnOnce(&LogHandle, &Sink)) -> Vec<String> {
        let sink = Sink::default();
        let (subscriber, handle, guard) = build(filter, style, sink.clone());
        tracing::subscriber::with_default(subscriber, || what(&handle, &sink));
        drop(guard);
        sink.lines()
    }

    const HUMAN: Style = Style::Human { color: false };

    #[test]
    fn a_line_cannot_be_broken_by_what_comes_from_outside() {
        let evil = "a\nERROR forged \u{1b}[31m\u{7}\r\u{2028}\"quoted\"\u{9b}2J";
        for style in [Style::Json, HUMAN, Style::Human { color: true }] {
            let lines = logged("info", style, |_, _| {
                events::peer_changed("p", 2, evil, evil);
            });
            assert_eq!(lines.len(), 1, "{lines:?}");
            let controls: Vec<char> = lines[0].chars().filter(|c| c.is_control()).collect();
            assert!(controls.iter().all(|c| *c == '\u{1b}'), "{controls:?} in {lines:?}");
            assert!(!lines[0].contains(['\u{2028}', '\u{7}']), "{lines:?}");
            assert!(!lines[0].contains("forged \u{1b}"), "{lines:?}");
        }
    }

    #[test]
    fn json_has_the_promised_fields_in_order() {
        let lines = logged("info", Style::Json, |_, _| {
            let since = WallMillis(1_763_939_645_123);
            events::peer_down("billing", since, "refused", 3, None, events::Suppressed(0));
        });
        let (time, rest) = lines[0].split_once(",\"level\"").unwrap();
        assert!(time.starts_with("{\"time\":\"20") && time.ends_with("Z\""), "{time}");
        assert_eq!(
            rest,
            ":\"warn\",\"event\":\"peer_down\",\"peer\":\"billing\",\
             \"since\":\"2025-11-23T23:14:05.123Z\",\"reason\":\"refused\",\"waiting\":3}"
        );
    }

    #[test]
    fn text_has_the_same_fields() {
        let lines = logged("info", HUMAN, |_, _| {
            events::message_parked("a", Default::default(), 3, "no room", events::Suppressed(2));
        });
        let (_, rest) = lines[0].split_once(' ').unwrap();
        let id = "0".repeat(26);
        assert_eq!(
            rest,
            format!(
                "ERROR message_parked peer=a message={id} attempt=3 reason=\"no room\" suppressed=2"
            )
        );
    }

    #[test]
    fn the_filter_changes_while_running_and_a_bad_one_changes_nothing() {
        let lines = logged("warn", HUMAN, |handle, _| {
            events::disk_ok(1);
            handle.set_filter("info").unwrap();
            events::disk_ok(2);
            assert!(handle.set_filter("restante=loud").is_err());
            events::disk_ok(3);
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].ends_with("journal_bytes=2") && lines[1].ends_with("journal_bytes=3"));
    }

    #[test]
    fn lines_that_nobody_reads_are_counted_and_the_logger_never_waits() {
        let written = QUEUE_LINES_MAX + 1_000;
        let lines = logged("info", HUMAN, |_, sink| {
            sink.hold(true);
            for bytes in 0..written {
                events::disk_ok(bytes as u64);
            }
            sink.hold(false);
        });
        let told: usize = lines
            .iter()
            .filter_map(|line| line.split_once("log_lines_lost lines=")?.1.parse::<usize>().ok())
            .sum();
        let kept = lines.iter().filter(|line| line.contains("disk_ok")).count();
        assert!(told > 0);
        assert_eq!(kept + told, written);
    }
}
