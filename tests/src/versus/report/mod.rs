//! What a run came to: tables and goals as Markdown, all figures as JSON, a chart as SVG.

mod chart;
mod goals;
mod table;

use super::failure::{Context, Result, failure};
use super::result::Outcome;
use serde::Serialize;
use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A part of a page that is written by a command, between two lines; the rest of the page is kept.
pub(crate) struct Part {
    begin: &'static str,
    end: &'static str,
}

/// What brokers were measured to do.
const MEASURED: Part = Part {
    begin: "<!-- measured: written by tests/bench, not by hand -->",
    end: "<!-- end of measured -->",
};

/// What a message costs.
pub(crate) const COST: Part = Part {
    begin: "<!-- cost: written by tests/instructions.sh, not by hand -->",
    end: "<!-- end of cost -->",
};

impl Part {
    /// Writes this part of the page at `path`, which is made if there is none.
    pub(crate) fn write(&self, path: &Path, text: &str) -> Result<()> {
        let Part { begin, end } = self;
        let page = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => format!("{begin}\n{end}\n"),
            page => page.context(path.display())?,
        };
        fs::write(path, self.put(&page, text)?).context(path.display())
    }

    fn put(&self, page: &str, text: &str) -> Result<String> {
        let Part { begin, end } = self;
        let parts = page.split_once(begin).and_then(|(before, rest)| {
            let (_, after) = rest.split_once(end)?;
            Some((before, after))
        });
        let (before, after) = parts.ok_or_else(|| failure!("the page has no line {begin:?}"))?;
        Ok(format!("{before}{begin}\n\n{}\n\n{end}{after}", text.trim()))
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// UTC.
    pub(crate) date: String,
    /// What came behind the name of the command.
    pub(crate) arguments: String,
    pub(crate) seconds: u64,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) outcomes: Vec<Outcome>,
}

impl Report {
    pub(crate) fn new(outcomes: Vec<Outcome>, arguments: &str, took: Duration) -> Report {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Report {
            date: today(),
            arguments: arguments.to_owned(),
            seconds: took.as_secs(),
            processor: model.unwrap_or("unknown").trim_matches([' ', '\t', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: kernel.trim().to_owned(),
            outcomes,
        }
    }

    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Tables, then goals.
    pub(crate) fn tables(&self) -> String {
        let mut page = String::new();
        let Report { date, arguments, seconds, processor, cores, kernel, .. } = self;
        // Writing to a String does not fail.
        let _ = writeln!(
            page,
            "Measured on {date} by `tests/bench {arguments}` in {} minutes: {cores} cores ({processor}), Linux {kernel}.\n",
            seconds.div_ceil(60)
        );
        page + &table::tables(&self.outcomes) + &goals::table(&self.outcomes)
    }
}

/// Writes the page at `path`, and the chart and the figures beside it.
pub(crate) fn write(report: &Report, path: &Path) -> Result<()> {
    let (chart, figures) = (path.with_extension("svg"), path.with_extension("json"));
    fs::write(&chart, chart::svg(&report.outcomes)).context(chart.display())?;
    fs::write(&figures, report.json()?).context(figures.display())?;
    let name = chart.file_name().unwrap_or_default().to_string_lossy().into_owned();
    MEASURED.write(path, &format!("{}\n![The same as bars]({name})\n", report.tables()))
}

/// Today, UTC.
pub(crate) fn today() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date(now.as_secs() / 86_400)
}

/// A day since 1970-01-01 in the proleptic Gregorian calendar.
fn date(days: u64) -> String {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut rest) = (1970, days);
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", rest + 1)
}

/// A figure for people: three digits that count, thousands apart.
fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 0.1 => format!("{value:.3}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (place, digit) in digits.chars().enumerate() {
                if place > 0 && (digits.len() - place).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        for (days, text) in
            [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_784, "2026-11-27")]
        {
            assert_eq!(date(days), text);
        }
    }

    #[test]
    fn figures_are_short() {
        let shown = [0.0, 0.01234, 1.234, 12.34, 999.9, 1_234_567.0, f64::NAN].map(figure);
        assert_eq!(shown, ["0", "0.012", "1.23", "12.3", "1,000", "1,234,567", "–"]);
    }

    #[test]
    fn only_what_is_between_the_lines_is_replaced() {
        let Part { begin, end } = MEASURED;
        let page = format!("a\n{begin}\nold\n{end}\nb\n");
        let page = MEASURED.put(&page, "new").unwrap();
        assert_eq!(page, format!("a\n{begin}\n\nnew\n\n{end}\nb\n"));
        assert!(COST.put(&page, "new").is_err());
    }
}
