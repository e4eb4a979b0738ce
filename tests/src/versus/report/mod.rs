//! What a run came to: tables and goals as Markdown, all figures as JSON, a chart as SVG.

mod chart;
mod goals;
mod table;

use super::failure::{Context, Result, failure};
use super::result::Outcome;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

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

/// Where and when workloads were measured: one call of the command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// UTC.
    pub(crate) date: String,
    /// What was measured, as its repository calls it; empty where nobody said.
    pub(crate) revision: String,
    /// How much of everything: rounds, windows, backlogs.
    pub(crate) scale: String,
    /// What came behind the name of the command.
    pub(crate) arguments: String,
    pub(crate) seconds: u64,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    /// What is still shown of it: a later run takes its workloads over.
    pub(crate) workloads: Vec<String>,
}

impl Run {
    pub(crate) fn new(revision: &str, scale: String, arguments: String) -> Run {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Run {
            date: today(),
            revision: revision.to_owned(),
            scale,
            arguments,
            seconds: 0,
            processor: model.unwrap_or("unknown").trim_matches([' ', '\t', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: kernel.trim().to_owned(),
            workloads: Vec::new(),
        }
    }
}

/// All that is known: of the present run, and of earlier ones what it has not measured again.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    runs: Vec<Run>,
    pub(crate) outcomes: Vec<Outcome>,
}

impl Report {
    /// The figures beside the page at `path`; nothing where there are none yet.
    pub(crate) fn read(path: &Path) -> Result<Report> {
        let figures = path.with_extension("json");
        let text = match fs::read_to_string(&figures) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Report::default()),
            text => text.context(figures.display())?,
        };
        let name = figures.display();
        serde_json::from_str(&text).map_err(|error| {
            failure!("{name} has no figures of this program: {error}; move it away")
        })
    }

    /// Whether a workload was measured as `run` would: on the same revision, at the same scale.
    pub(crate) fn has(&self, workload: &str, run: &Run) -> bool {
        let alike = |other: &&Run| {
            !run.revision.is_empty()
                && (&other.revision, &other.scale) == (&run.revision, &run.scale)
        };
        self.runs.iter().filter(alike).any(|run| run.workloads.iter().any(|name| name == workload))
    }

    /// Takes what `run` has measured of a workload in place of what was known of it.
    pub(crate) fn put(&mut self, run: &mut Run, workload: &str, outcomes: Vec<Outcome>) {
        // The run itself is put last each time, with one workload more.
        self.runs.retain(|other| run.workloads.is_empty() || other.workloads != run.workloads);
        for other in &mut self.runs {
            other.workloads.retain(|name| name != workload);
        }
        self.runs.retain(|other| !other.workloads.is_empty());
        run.workloads.push(workload.to_owned());
        self.runs.push(run.clone());
        self.outcomes.retain(|outcome| outcome.workload != workload);
        self.outcomes.extend(outcomes);
    }

    /// Restante's deliveries a second in W1, once they are known.
    pub(crate) fn own_rate(&self) -> Option<f64> {
        let own = |outcome: &&Outcome| outcome.workload == "W1" && outcome.subject == "Restante";
        self.outcomes.iter().find(own)?.median.get("deliveries_per_s")
    }

    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Tables, then goals.
    pub(crate) fn tables(&self) -> String {
        let mut page = String::new();
        for run in &self.runs {
            let Run { date, revision, scale, arguments, seconds, .. } = run;
            let at = if revision.is_empty() { String::new() } else { format!(" at {revision}") };
            // Writing to a String does not fail.
            let _ = writeln!(
                page,
                "{}: measured on {date}{at} by `tests/bench {arguments}` ({scale}; {} minutes) with {} cores \
                 ({}), Linux {}.\n",
                run.workloads.join(", "),
                seconds.div_ceil(60),
                run.cores,
                run.processor,
                run.kernel
            );
        }
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
    use crate::versus::result::Metrics;

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
    fn a_later_run_takes_over_what_it_measures() {
        let outcome = |workload: &str, subject: &str| Outcome {
            workload: workload.to_owned(),
            variant: String::new(),
            subject: subject.to_owned(),
            synced: true,
            median: Metrics::default(),
            runs: Vec::new(),
            failure: None,
        };
        let run = |revision: &str| Run::new(revision, "1 round".to_owned(), String::new());
        let mut report = Report::default();
        let mut first = run("a");
        for workload in ["W1", "W2", "W3"] {
            report.put(&mut first, workload, vec![outcome(workload, "old")]);
        }
        assert_eq!(report.runs, [first.clone()], "one run stands there once");
        let mut report: Report = serde_json::from_str(&report.json().unwrap()).unwrap();
        let mut second = run("b");
        report.put(&mut second, "W2", vec![outcome("W2", "new")]);
        let of: Vec<&[String]> = report.runs.iter().map(|run| &*run.workloads).collect();
        assert_eq!(of, [&["W1".to_owned(), "W3".to_owned()][..], &["W2".to_owned()]]);
        let subjects: Vec<&str> = report.outcomes.iter().map(|it| &*it.subject).collect();
        assert_eq!(subjects, ["old", "old", "new"]);
        assert!(report.has("W2", &run("b")) && !report.has("W1", &run("b")));
        let larger = Run { scale: "3 rounds".to_owned(), ..run("b") };
        assert!(!report.has("W2", &larger), "measured at another scale");
        assert!(!report.has("W2", &run("")), "nobody says what was measured");
        report.put(&mut second, "W1", Vec::new());
        report.put(&mut second, "W3", Vec::new());
        assert_eq!(report.runs, [second], "of the first run nothing is left");
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
