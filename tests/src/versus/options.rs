//! The command line, and the loop over cases, rounds and subjects.

use super::cost;
use super::failure::{Context, Failure, Result, failure};
use super::report::{self, Report, Run};
use super::result::{Metrics, Outcome};
use super::server::{LAUNCH, launch};
use super::shape::Times;
use super::subject::relay::{self, RELAY};
use super::subject::{self, Confirms, Subject};
use super::workload::{self, Case, Scale, Work};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The first argument by which this program counts instructions.
const COST: &str = "cost";

const WORKLOADS: [&str; 11] = ["raw", "W1", "W2", "W3", "W4", "W5", "W6a", "W6b", "W7", "W8", "W9"];

/// Measure Restante beside other brokers
///
/// Starts every broker as a child on a free port of the loopback and on a fresh directory, and runs the
/// workloads W1 to W9 and the limits of this machine, in turns. What is not installed is skipped by name.
/// Prints tables; writes figures, a chart and a page where it is told to.
#[derive(Parser, Debug)]
#[command(name = "versus")]
struct Options {
    /// Workloads, separated by commas
    #[arg(long, value_delimiter = ',', default_values_t = WORKLOADS.map(str::to_owned))]
    only: Vec<String>,
    /// Brokers, separated by commas, by the beginning of their names in lower case: restante, redis,
    /// nats, rabbitmq, mosquitto, bare
    #[arg(long, value_delimiter = ',')]
    brokers: Vec<String>,
    /// A look in about three minutes: one short round of everything
    #[arg(long)]
    quick: bool,
    /// Rounds of every case
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of every window
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Messages of the backlogs
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    backlog: u64,
    /// Messages of Restante's backlog in W3
    #[arg(long, default_value_t = 3_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    backlog_own: u64,
    /// Receivers of W6; ten times as many for Restante
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=1_000))]
    receivers: u32,
    /// Measure growth (W9) for all brokers, not only for Restante
    #[arg(long)]
    growth_all: bool,
    /// Where servers keep their data, on the disk to be measured [default: beside this program]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The program under test [default: beside this program]
    #[arg(long)]
    restante: Option<PathBuf>,
    /// Write the page (Markdown), the chart (.svg) and all figures (.json) to this path, after each
    /// workload; what is there of other workloads is kept, with the date and revision of its run
    #[arg(long, value_name = "PATH.md")]
    write: Option<PathBuf>,
    /// Leave out what the page already has of this revision at this scale: goes on where a run ended
    #[arg(long, requires = "write")]
    resume: bool,
    /// What is measured, for the page [tests/bench: the commit]
    #[arg(long, default_value = "")]
    revision: String,
    /// Print all figures as JSON instead of tables
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3_600.0).contains(seconds));
    seconds.ok_or_else(|| "expected seconds, from 0.1 to 3600".to_owned())
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ended = match arguments.split_first() {
        Some((first, rest)) if first == LAUNCH => Err(launch(rest)),
        Some((first, [port])) if first == RELAY => {
            port.parse().context("the port").and_then(relay::run)
        }
        Some((first, rest)) if first == COST => {
            let name = [format!("versus {COST}")];
            cost::main(&cost::Options::parse_from(name.iter().chain(rest)))
        }
        _ => run(&Options::parse()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn scale(&self) -> Scale {
        let quick = self.quick;
        Scale {
            rounds: if quick { 1 } else { self.rounds },
            times: Times {
                warmup: Duration::from_secs_f64(if quick { 0.1 } else { 0.5 }),
                window: Duration::from_secs_f64(if quick { 0.4 } else { self.seconds }),
                drain: Duration::from_secs(if quick { 3 } else { 10 }),
            },
            backlog_own: if quick { self.backlog_own.min(100_000) } else { self.backlog_own },
            backlog: if quick { self.backlog.min(30_000) } else { self.backlog },
            many: if quick { self.receivers.min(100) } else { self.receivers },
            fine: !quick,
            growth_all: self.growth_all,
        }
    }

    fn subjects(&self) -> Result<Vec<Box<dyn Subject>>> {
        let wanted = |name: &str| {
            let name = name.to_lowercase();
            self.brokers.is_empty() || self.brokers.iter().any(|broker| name.starts_with(broker))
        };
        let own = self.restante.clone().map_or_else(|| beside("restante"), Ok)?;
        let all = subject::all(&own);
        let (found, missing): (Vec<_>, Vec<_>) = all
            .into_iter()
            .filter(|subject| wanted(subject.name()))
            .partition(|subject| subject.missing().is_none());
        for subject in missing {
            let how = subject.missing().unwrap_or_default();
            eprintln!("skipped: {} is not installed ({how})", subject.name());
        }
        if found.is_empty() { Err(failure!("no broker is left to measure")) } else { Ok(found) }
    }

    /// What was asked for, without what only says where things are.
    fn arguments(&self) -> String {
        let mut words = std::env::args().skip(1);
        let mut kept = Vec::new();
        while let Some(word) = words.next() {
            if ["--revision", "--dir", "--restante", "--write"].contains(&&*word) {
                words.next();
            } else {
                kept.push(word);
            }
        }
        kept.join(" ")
    }

    fn workloads(&self) -> Result<Vec<&'static str>> {
        if let Some(unknown) = self.only.iter().find(|name| !WORKLOADS.contains(&name.as_str())) {
            return Err(failure!("there is no workload {unknown}; expected {WORKLOADS:?}"));
        }
        let wanted = |name: &&'static str| self.only.iter().any(|only| only == name);
        Ok(WORKLOADS.into_iter().filter(wanted).collect())
    }
}

/// A path in the directory of this program.
fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().map_or_else(|| PathBuf::from(name), |folder| folder.join(name)))
}

fn run(options: &Options) -> Result<()> {
    let (scale, subjects) = (options.scale(), options.subjects()?);
    let dir = options.dir.clone().map_or_else(|| beside(""), Ok)?;
    let mut report =
        options.write.as_deref().map_or_else(|| Ok(Report::default()), Report::read)?;
    let mut run = Run::new(&options.revision, scale.to_string(), options.arguments());
    let begun = Instant::now();
    for workload in options.workloads()? {
        if options.resume && report.has(workload, &run) {
            continue;
        }
        let mut outcomes: Vec<Outcome> = Vec::new();
        for case in workload::cases(workload, &scale, report.own_rate()) {
            eprintln!("{:5.0} s  {workload} {}", begun.elapsed().as_secs_f64(), case.variant);
            outcomes.extend(measure(&case, &subjects, &scale, &dir));
        }
        run.seconds = begun.elapsed().as_secs();
        report.put(&mut run, workload, outcomes);
        if let Some(path) = &options.write {
            report::write(&report, path)?;
        }
    }
    print!("{}", if options.json { report.json()? } else { report.tables() });
    Ok(())
}

/// One case for every subject, in turns.
fn measure(
    case: &Case,
    subjects: &[Box<dyn Subject>],
    scale: &Scale,
    dir: &std::path::Path,
) -> Vec<Outcome> {
    let machine = matches!(case.work, Work::Raw);
    let takes_part = |subject: &&dyn Subject| !case.own || subject.name() == "Restante";
    let subjects = subjects.iter().map(AsRef::as_ref).filter(takes_part);
    let mut outcomes: Vec<(&dyn Subject, Outcome)> = Vec::new();
    for subject in subjects.take(if machine { 1 } else { usize::MAX }) {
        let name = if machine { "this machine" } else { subject.name() };
        let outcome = Outcome {
            workload: case.workload.to_owned(),
            variant: case.variant.clone(),
            subject: name.to_owned(),
            synced: !machine && subject.confirms() == Confirms::Synced,
            median: Metrics::default(),
            runs: Vec::new(),
            failure: None,
        };
        outcomes.push((subject, outcome));
    }
    for _ in 0..case.rounds {
        for (subject, outcome) in &mut outcomes {
            // What fails once is not tried again: it would only take its time again.
            if outcome.failure.is_none() {
                match workload::run(case, *subject, scale, dir) {
                    Ok(metrics) => outcome.runs.push(metrics),
                    Err(Failure(what)) => {
                        eprintln!("         {}: {what}", outcome.subject);
                        outcome.failure = Some(what);
                    }
                }
            }
        }
    }
    let finish = |(_, mut outcome): (_, Outcome)| {
        outcome.median = Metrics::median(&outcome.runs);
        outcome
    };
    outcomes.into_iter().map(finish).collect()
}
