//! `journal`: a data directory looked at and mended while no node runs on it.

use super::config::Settings;
use super::output::{Output, Paint, Table, note, print};
use super::{Exit, Failure};
use crate::node::journal_options;
use restante_journal::OpenError;
use restante_journal::offline::check::{Problem, Report, Verdict, check};
use restante_journal::offline::dump::{Filter, KINDS, Record, Says, dump};
use restante_journal::offline::names::Names;
use restante_journal::offline::repair::{Repair, repair};
use restante_protocol::id::{MessageId, MessageNumber, PeerId};
use std::ops::RangeInclusive;

/// Look at and mend a data directory while no node runs on it
///
/// Exit codes: 0 all is sound, 1 damage was found, 8 the directory cannot be used (locked, of a newer
/// version, no journal, or damaged beyond what a node starts from).
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Read every byte and say what is wrong; changes nothing
    Check {
        #[command(flatten)]
        settings: Settings,
    },
    /// Print records
    Dump {
        #[command(flatten)]
        settings: Settings,
        /// Only records that concern this peer: a name, or #ID
        #[arg(long, value_name = "PEER")]
        peer: Option<String>,
        /// Only these record numbers
        #[arg(long, value_name = "FIRST..LAST", value_parser = numbers)]
        numbers: Option<RangeInclusive<MessageNumber>>,
        /// Only records of this kind
        #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(KINDS))]
        kind: Option<String>,
    },
    /// Mend what can be mended; what is bad moves to quarantine/, nothing is deleted
    Repair {
        #[command(flatten)]
        settings: Settings,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
}

fn numbers(text: &str) -> Result<RangeInclusive<MessageNumber>, String> {
    let bad = || format!("expected FIRST..LAST, got {text:?}");
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    let last = last.trim_start_matches('=');
    let first = if first.is_empty() { 0 } else { first.parse().map_err(|_| bad())? };
    let last = if last.is_empty() { u64::MAX } else { last.parse().map_err(|_| bad())? };
    Ok(first..=last)
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        Failure::new(Exit::DataDirectory, error)
    }
}

pub(super) fn run(verb: Verb, output: Output) -> Result<(), Failure> {
    // As a node does: a repair opens the directory as one would.
    crate::node::open_files::raise_limit();
    match verb {
        Verb::Check { settings } => {
            let dir = settings.load()?.config.data_dir;
            let report = check(&dir)?;
            print(&report_text(&report, &Names::of(&dir), output)?)?;
            verdict(&report)
        }
        Verb::Dump { settings, peer, numbers, kind } => {
            let dir = settings.load()?.config.data_dir;
            let names = Names::of(&dir);
            let peer = peer.map(|name| names.find(&name).ok_or(name)).transpose();
            let peer = peer.map_err(|name| {
                let what = format_args!("no peer of this journal is named {name:?}; #ID works too");
                Failure::new(Exit::NotFound, what)
            })?;
            let filter = Filter { peer, numbers: numbers.unwrap_or(0..=u64::MAX), kind };
            let mut printed = Ok(());
            dump(&dir, &filter, |record| {
                printed = record_text(record, &names, output).and_then(|text| print(&text));
                printed.is_ok()
            })?;
            printed
        }
        Verb::Repair { settings, dry_run } => {
            let config = settings.load()?.config;
            let done = repair(&config.data_dir, dry_run, journal_options(&config))?;
            print(&repair_text(&done, dry_run, output)?)?;
            Ok(())
        }
    }
}

/// How a check ends.
fn verdict(report: &Report) -> Result<(), Failure> {
    if !report.usable {
        return Err(Failure::new(Exit::DataDirectory, "a node does not start from this directory"));
    }
    match report.problems.len() {
        0 => Ok(()),
        1 => Err(Failure::new(Exit::Failed, "1 problem; see `restante journal repair --dry-run`")),
        n => {
            let what = format_args!("{n} problems; see `restante journal repair --dry-run`");
            Err(Failure::new(Exit::Failed, what))
        }
    }
}

#[derive(serde::Serialize)]
struct FileLine<'a> {
    file: &'a str,
    verdict: &'static str,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<u64>,
    records: u64,
    messages: u64,
}

#[derive(serde::Serialize)]
struct ProblemLine<'a> {
    problem: &'a str,
    file: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<u64>,
    /// Damaged messages by receiver.
    receivers: serde_json::Map<String, serde_json::Value>,
    /// Whether these are all; else there may be more.
    complete: bool,
}

fn report_text(report: &Report, names: &Names, output: Output) -> Result<String, Failure> {
    if output.json {
        let files = report.files.iter().map(|file| {
            let (first, last) = (file.numbers.map(|n| n.0), file.numbers.map(|n| n.1));
            let (bytes, records, messages) = (file.bytes, file.records, file.messages);
            let (file, verdict) = (&file.path[..], file.verdict.word());
            Output::json_line(&FileLine { file, verdict, bytes, first, last, records, messages })
        });
        let problems = report.problems.iter().map(|problem| {
            let receivers =
                problem.receivers.iter().map(|(peer, n)| (names.label(*peer), (*n).into()));
            Output::json_line(&ProblemLine {
                problem: &problem.what,
                file: &problem.path,
                at: problem.at,
                first: problem.numbers.map(|n| n.0),
                last: problem.numbers.map(|n| n.1),
                receivers: receivers.collect(),
                complete: problem.complete,
            })
        });
        return Ok(files.chain(problems).collect::<Result<Vec<_>, _>>()?.concat());
    }
    let mut table =
        Table::new(output, &["FILE", "VERDICT", "BYTES", "FIRST", "LAST", "RECORDS", "MESSAGES"]);
    for file in &report.files {
        let paint = match file.verdict {
            Verdict::Sound => Paint::Green,
            Verdict::Ready | Verdict::Dead => Paint::Dim,
            Verdict::Torn => Paint::Yellow,
            Verdict::Damaged | Verdict::Foreign => Paint::Red,
        };
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
        table.row(vec![
            (None, file.path.clone()),
            (Some(paint), file.verdict.word().to_owned()),
            (None, file.bytes.to_string()),
            (None, number(file.numbers.map(|n| n.0))),
            (None, number(file.numbers.map(|n| n.1))),
            (None, file.records.to_string()),
            (None, file.messages.to_string()),
        ]);
    }
    let mut page = table.render();
    for problem in &report.problems {
        page.push_str(&output.paint(Paint::Red, &problem_text(problem, names)));
        page.push('\n');
    }
    Ok(page)
}

fn problem_text(problem: &Problem, names: &Names) -> String {
    let mut text = problem.path.clone();
    if let Some(at) = problem.at {
        text.push_str(&format!(" at byte {at}"));
    }
    text.push_str(&format!(": {}", problem.what));
    match problem.numbers {
        Some((first, last)) if first == last => text.push_str(&format!(" (record {first})")),
        Some((first, last)) => text.push_str(&format!(" (records {first} to {last})")),
        None => {}
    }
    if !problem.receivers.is_empty() || !problem.complete {
        let least = if problem.complete { "" } else { "at least " };
        let receivers = problem.receivers.iter();
        let receivers: Vec<String> =
            receivers.map(|(peer, n)| format!("{least}{n} of {}", names.label(*peer))).collect();
        let receivers = match receivers.is_empty() {
            true => "it is not known of whom".to_owned(),
            false => receivers.join(", "),
        };
        text.push_str(&format!("; messages damaged: {receivers}"));
    }
    super::output::printable(&text)
}

fn repair_text(done: &Repair, dry: bool, output: Output) -> Result<String, Failure> {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        finding: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        change: Option<&'a str>,
    }
    if dry && !output.json {
        note("nothing has been changed; this is what would be done");
    }
    let findings = done.findings.iter().map(|text| Line { finding: Some(text), change: None });
    let changes = done.changes.iter().map(|text| Line { finding: None, change: Some(text) });
    if output.json {
        let lines = findings.chain(changes).map(|line| Output::json_line(&line));
        return Ok(lines.collect::<Result<Vec<_>, _>>()?.concat());
    }
    let mut page = String::new();
    for text in done.findings.iter().chain(&done.changes) {
        page.push_str(&super::output::printable(text));
        page.push('\n');
    }
    if page.is_empty() {
        page.push_str("nothing needed to be mended\n");
    }
    Ok(page)
}

#[derive(serde::Serialize)]
struct RecordLine<'a> {
    number: u64,
    kind: &'static str,
    segment: String,
    at: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<MessageId>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    receivers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    above: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind_number: Option<u8>,
}

fn record_text(record: &Record, names: &Names, output: Output) -> Result<String, Failure> {
    let label = |peer: &PeerId| names.label(*peer);
    let mut line = RecordLine {
        number: record.number,
        kind: record.kind,
        segment: format!("{:012x}", record.segment),
        at: record.at,
        bytes: record.bytes,
        id: None,
        receivers: Vec::new(),
        key: None,
        payload_bytes: None,
        damaged: None,
        peer: None,
        outcome: None,
        floor: None,
        above: Vec::new(),
        message: None,
        reason: None,
        value: None,
        kind_number: None,
    };
    match &record.says {
        Says::Message { id, receivers, key, payload_bytes, sound } => {
            line.id = Some(*id);
            line.receivers = receivers.iter().map(label).collect();
            line.key = key.as_deref();
            line.payload_bytes = Some(*payload_bytes);
            line.damaged = (!sound).then_some(true);
        }
        Says::Settle { peer, outcome, floor, above } => {
            line.peer = Some(label(peer));
            line.outcome = Some(format!("{outcome:?}").to_lowercase());
            line.floor = Some(*floor);
            line.above.clone_from(above);
        }
        Says::Park { peer, message, reason } => {
            line.peer = Some(label(peer));
            line.message = Some(*message);
            line.reason = Some(reason);
        }
        Says::Number(value) => line.value = Some(*value),
        Says::NotUnderstood { kind } => {
            line.kind_number = Some(*kind);
            line.reason = Some("a newer version wrote it, and this one does not understand it");
        }
        Says::Nothing => {}
    }
    let json = Output::json_line(&line)?;
    if output.json {
        return Ok(json);
    }
    // For people: the number and kind in front, the rest as `name=value`.
    let mut text = format!("{:>12}  {:<9}", record.number, record.kind);
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&json).map_err(std::io::Error::from)?;
    for (name, value) in fields.iter().filter(|(name, _)| *name != "number" && *name != "kind") {
        text.push_str(&match value {
            serde_json::Value::String(word) => format!("  {name}={word}"),
            value => format!("  {name}={value}"),
        });
    }
    Ok(super::output::printable(&text) + "\n")
}
