//! What a message costs the node, in figures that do not depend on how busy the machine is:
//! instructions, by function, and allocations (callgrind), and system calls (strace).
//!
//! The shipped program runs under the tool and is driven in lock step: a batch is published in one
//! write, everything is confirmed, delivered and acked, then comes the next. So what the node does for
//! a batch is the same in every run, whatever the threads' turns. A short run is subtracted from a long
//! one, so that start, set-up and end do not count. The scenario: one producer, ten receivers, each
//! message to one, 256 bytes, 200 messages a batch (what one segment of the loopback carries).

use super::engine::Engine;
use super::failure::{Context, Result, failure};
use super::report;
use super::server::{Launch, Scratch, Server, data_dir, find_program, free_port};
use super::shape::{Pace, Shape};
use super::subject::Subject;
use super::subject::restante::Restante;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BATCH: u64 = 200;
/// Rounds of the run that is subtracted, and of the one it is subtracted from.
const ROUNDS: [u64; 2] = [100, 600];
/// How long one round may take: the node is fifty times as slow as without the tool.
const ROUND_MAX: Duration = Duration::from_secs(60);
const END_MAX: Duration = Duration::from_secs(120);
/// How far above the baseline a check lets the figure be, and how far below before the baseline is
/// said to be stale, in parts of it.
const SLACK: f64 = 0.03;
/// Functions that are shown.
const SHOWN: usize = 25;
/// What the allocator is asked through.
const ALLOCATE: [&str; 5] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"];

/// Count what a message costs the node
#[derive(clap::Parser, Debug)]
#[command(name = "versus cost")]
pub(crate) struct Options {
    /// The program under test
    #[arg(long, default_value = "target/release/restante")]
    restante: PathBuf,
    /// Where its data is kept
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Fail when instructions a message are more than 3 % above the figure in this file
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Show the cost of each function, allocations and system calls, too
    #[arg(long)]
    table: bool,
    /// Write all that to this page
    #[arg(long, value_name = "PATH.md")]
    write: Option<PathBuf>,
}

pub(crate) fn main(options: &Options) -> Result<()> {
    let [short, long] = ROUNDS.map(|rounds| callgrind(options, rounds));
    let (short, long) = (short?, long?);
    let messages = ((ROUNDS[1] - ROUNDS[0]) * BATCH) as f64;
    let instructions = (long.instructions - short.instructions) as f64 / messages;
    println!("{instructions:.0} instructions a message");
    if options.table || options.write.is_some() {
        let page = table(&short, &long, messages) + &system_calls(options, messages)?;
        print!("{page}");
        if let Some(path) = &options.write {
            let today = report::today();
            let head = format!("Counted on {today}: {instructions:.0} instructions a message.\n");
            report::COST.write(path, &(head + &page))?;
        }
    }
    options.check.as_deref().map_or(Ok(()), |file| check(instructions, file))
}

/// Holds a figure against the one in a file.
fn check(instructions: f64, file: &Path) -> Result<()> {
    let text = std::fs::read_to_string(file).context(file.display())?;
    let line = text.lines().find(|line| !line.starts_with('#')).unwrap_or_default();
    let baseline: f64 = line.trim().parse().context(file.display())?;
    let change = instructions / baseline - 1.0;
    println!("{:+.1} % against {baseline:.0} in {}", 100.0 * change, file.display());
    if change > SLACK {
        return Err(failure!(
            "a message costs more than it did: make it cheaper, or raise the figure in {} and say in the \
             commit why it is worth it",
            file.display()
        ));
    }
    if change < -SLACK {
        println!("cheaper: lower the figure in the same commit, so that it stays won");
    }
    Ok(())
}

/// Runs the scenario once with the node under a tool; returns when the node has ended.
fn scenario(options: &Options, tool: &str, arguments: &[String], rounds: u64) -> Result<()> {
    let program = find_program(tool).ok_or_else(|| failure!("apt-get install {tool}"))?;
    let scratch = Scratch::new(&options.dir)?;
    let (data, port) = (data_dir(&scratch)?, free_port()?);
    let mut launch = Launch::new(program, &[]);
    launch.arguments.extend_from_slice(arguments);
    launch.arguments.push(options.restante.display().to_string());
    let serve = ["serve", "--log-format", "human", "--tcp", &format!("127.0.0.1:{port}")];
    launch.arguments.extend(serve.map(str::to_owned));
    launch.arguments.extend(["--data-dir".to_owned(), data.display().to_string()]);
    let mut server = Server::start(scratch, port, launch, None)?;
    let subject = Restante::new(&options.restante);
    let shape = Shape { producers: 1, pace: Pace::Closed(BATCH), messages: 0, ..Shape::default() };
    subject.prepare(port, &shape)?;
    let mut engine = Engine::new(&shape)?;
    for receivers in shape.connections(0..shape.present) {
        engine.add_receiver(subject.receivers(port, &shape, receivers)?)?;
    }
    engine.add_producer(subject.producer(port, &shape, 0)?)?;
    engine.publish()?;
    for round in 1..=rounds {
        let messages = round * BATCH;
        engine.allow(messages);
        if !engine.run_until(ROUND_MAX, |counts| counts.delivered == messages)? {
            return Err(failure!("round {round} does not end: {:?}", engine.counts()));
        }
    }
    engine.hang_up();
    server.end_in_order(END_MAX)
}

/// What callgrind counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    instructions: u64,
    /// By function, its own.
    functions: BTreeMap<String, u64>,
    /// By function, how often it was called.
    calls: BTreeMap<String, u64>,
}

fn callgrind(options: &Options, rounds: u64) -> Result<Counted> {
    let scratch = Scratch::new(&options.dir)?;
    let out = scratch.path().join("callgrind.out");
    let arguments = [
        "--tool=callgrind".to_owned(),
        "--quiet".to_owned(),
        "--compress-strings=no".to_owned(),
        "--compress-pos=no".to_owned(),
        // Threads take turns, so that none is starved while another spins.
        "--fair-sched=yes".to_owned(),
        format!("--callgrind-out-file={}", out.display()),
    ];
    scenario(options, "valgrind", &arguments, rounds)?;
    let text = std::fs::read_to_string(&out).context("what callgrind wrote")?;
    Ok(counted(&text))
}

/// Takes the tool's output apart: `fn=` begins a function, a line of numbers is its own cost, the one
/// after `calls=` is that of a call and does not count as its own.
fn counted(text: &str) -> Counted {
    let mut counted = Counted::default();
    let (mut function, mut callee, mut of_call) = (String::new(), String::new(), false);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            name.clone_into(&mut function);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            name.clone_into(&mut callee);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let times = calls.split(' ').next().and_then(|times| times.parse().ok()).unwrap_or(0);
            *counted.calls.entry(callee.clone()).or_default() += times;
            of_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse().ok()).unwrap_or(0);
            if !std::mem::take(&mut of_call) {
                *counted.functions.entry(function.clone()).or_default() += cost;
                counted.instructions += cost;
            }
        }
    }
    counted
}

/// The functions that cost most, and what the allocator was asked for.
fn table(short: &Counted, long: &Counted, messages: f64) -> String {
    let per_message = |long: &BTreeMap<String, u64>, short: &BTreeMap<String, u64>, name: &str| {
        let of = |counts: &BTreeMap<String, u64>| counts.get(name).copied().unwrap_or(0) as f64;
        (of(long) - of(short)) / messages
    };
    let own = |name: &String| (plain(name), per_message(&long.functions, &short.functions, name));
    let mut costs: BTreeMap<String, f64> = BTreeMap::new();
    for (name, cost) in long.functions.keys().map(own) {
        *costs.entry(name).or_default() += cost;
    }
    let mut costs: Vec<(String, f64)> = costs.into_iter().collect();
    costs.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut page = String::from("\n| instructions a message | function |\n|---:|---|\n");
    for (name, cost) in costs.iter().take(SHOWN) {
        let _ = writeln!(page, "| {cost:.1} | `{name}` |");
    }
    let rest: f64 = costs.iter().skip(SHOWN).map(|(_, cost)| cost).sum();
    let _ = writeln!(page, "| {rest:.1} | all others |");
    let allocations: f64 =
        ALLOCATE.iter().map(|name| per_message(&long.calls, &short.calls, name)).sum();
    let _ = writeln!(page, "\n{allocations:.3} allocations a message.");
    page
}

/// A symbol without its hash.
fn plain(name: &str) -> String {
    let name = name.split("'2").next().unwrap_or(name);
    match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 => path.to_owned(),
        _ => name.to_owned(),
    }
}

/// System calls a message, by name.
fn system_calls(options: &Options, messages: f64) -> Result<String> {
    if find_program("strace").is_none() {
        return Ok("\nSystem calls: strace is not installed (apt-get install strace).\n".to_owned());
    }
    let [short, long] = ROUNDS.map(|rounds| strace(options, rounds));
    let (short, long) = (short?, long?);
    let of = |name: &String| {
        let before = short.get(name).copied().unwrap_or(0);
        (long[name].saturating_sub(before)) as f64 / messages
    };
    let mut calls: Vec<(&String, f64)> = long.keys().map(|name| (name, of(name))).collect();
    calls.sort_by(|a, b| b.1.total_cmp(&a.1));
    let all: f64 = calls.iter().map(|(_, count)| count).sum();
    let shown = calls.iter().take_while(|(_, count)| *count >= 0.001);
    let shown: Vec<String> = shown.map(|(name, count)| format!("{name} {count:.3}")).collect();
    Ok(format!("{all:.3} system calls a message: {}.\n", shown.join(", ")))
}

fn strace(options: &Options, rounds: u64) -> Result<BTreeMap<String, u64>> {
    let scratch = Scratch::new(&options.dir)?;
    let out = scratch.path().join("strace.out");
    let arguments = ["-f", "-c", "-o", &out.display().to_string()].map(str::to_owned);
    scenario(options, "strace", &arguments, rounds)?;
    let text = std::fs::read_to_string(&out).context("what strace wrote")?;
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (calls, name) = (words.get(3)?.parse().ok()?, *words.last()?);
        (name != "total").then(|| (name.to_owned(), calls))
    };
    Ok(text.lines().filter_map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_a_call_is_not_the_callers_own() {
        let text = "events: Ir\nfn=a\n1 10\ncfn=b\ncalls=3 5\n1 30\n2 5\n\nfn=b\n5 30\n";
        let counted = counted(text);
        assert_eq!(counted.instructions, 45);
        assert_eq!((counted.functions["a"], counted.functions["b"]), (15, 30));
        assert_eq!(counted.calls["b"], 3);
    }

    #[test]
    fn a_figure_above_the_slack_fails() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("baseline");
        std::fs::write(&file, "# why\n1000\n").unwrap();
        assert!(check(1_029.0, &file).is_ok());
        assert!(check(1_031.0, &file).is_err());
        assert!(check(500.0, &file).is_ok());
        std::fs::write(&file, "none\n").unwrap();
        assert!(check(1.0, &file).is_err());
    }

    #[test]
    fn hashes_of_symbols_are_dropped() {
        assert_eq!(plain("a::b::h0123456789abcdef"), "a::b");
        assert_eq!(plain("a::b::h0123456789abcdef'2"), "a::b");
        assert_eq!(plain("malloc"), "malloc");
    }
}
