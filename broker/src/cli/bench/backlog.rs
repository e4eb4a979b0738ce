//! `bench backlog`: a queue as deep as wanted, for receivers that are away, and how the node bears it.
//!
//! ```text
//! start ─► publish to absent receivers ─► rest ─► kill -9 ─► start ─► receivers attach ─► drained
//!   memory when empty      rate           memory, disk         first delivery       rate, memory, disk
//! ```
//!
//! Every message is held against what was sent, as in a run under load.

use super::super::child::{NodeProcess, Scratch};
use super::super::node::stop_asked;
use super::super::output::{Output, Table, print};
use super::super::{Exit, Failure};
use super::meter::{Cpu, Memory};
use super::pace::{Beat, Schedule};
use super::payload::{Bodies, STAMP_BYTES};
use super::producer::{Pace, Phase, Producer, Shared};
use super::receiver::Receiver;
use super::report::number;
use super::tally::Tally;
use super::wire::Link;
use super::{Load, peers};
use restante_protocol::admin::{PeerPatch, PeerUrl};
use restante_protocol::limits::{PAYLOAD_BYTES_MAX, SLOTS_MAX};
use restante_protocol::name::Name;
use serde::Serialize;
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::sleep;

/// As fast as confirms come: everything is due at once, and credit is what paces.
const RATE: f64 = 1e9;
/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(1);
/// How long nothing at all may happen before the run is given up.
const STALL_MAX: Duration = Duration::from_secs(60);
/// How long a node may take to greet after a restart.
const RESTART_MAX: Duration = Duration::from_secs(60);

/// Measure what a deep queue costs, and how a restart goes with it
///
/// Starts a node of its own, publishes to receivers that are away, kills the node without warning,
/// starts it again and lets the receivers come.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Messages to queue
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    messages: u64,
    /// Receivers that are away, in turn one for each message
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    receivers: u32,
    /// How many producers, each on a connection
    #[arg(long, value_name = "N", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1_000))]
    producers: u16,
    /// Messages each producer keeps unconfirmed; the node's credit may allow fewer
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    outstanding: u32,
    /// Bytes of a payload
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    #[arg(value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=PAYLOAD_BYTES_MAX as i64))]
    size: u32,
    /// Receivers that share a connection when they come
    #[arg(long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(SLOTS_MAX)))]
    receivers_per_connection: u32,
    /// How long the node may finish what it does beside the messages (indexes, room given back)
    /// before its memory and disk are measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=3_600))]
    rest: u64,
    /// Where the node's data directory is made: on the disk to be measured
    #[arg(long, value_name = "DIR", default_value = ".")]
    data_dir: PathBuf,
    /// A setting of the node; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    messages: u64,
    receivers: u32,
    size_bytes: u32,
    /// Confirmed publishes a second.
    published_per_second: f64,
    published_cpu_us: f64,
    /// In RAM before the first message, after the last one, and at most until then; in bytes.
    memory_bytes_empty: u64,
    memory_bytes_queued: u64,
    memory_bytes_peak: u64,
    /// Of the data directory with everything queued.
    disk_bytes_queued: u64,
    /// From the start of the new process to the first delivery, in milliseconds.
    first_delivery_ms: f64,
    /// Deliveries a second from then on.
    delivered_per_second: f64,
    delivered_cpu_us: f64,
    /// In RAM of the new process at most.
    memory_bytes_drain_peak: u64,
    /// Of the data directory with nothing queued.
    disk_bytes_drained: u64,
    duplicates: u64,
    lost: u64,
}

pub(super) async fn run(args: &Args, output: Output) -> Result<(), Failure> {
    let report = LocalSet::new()
        .run_until(async {
            tokio::select! {
                report = measure(args) => report,
                () = stop_asked() => Err(Failure::new(Exit::Failed, "stopped before the end")),
            }
        })
        .await?;
    print(&if output.json { Output::json_line(&report)? } else { report.page(output) })?;
    match report.lost {
        0 => Ok(()),
        lost => Err(Failure::new(Exit::Failed, format_args!("{lost} messages are lost"))),
    }
}

async fn measure(args: &Args) -> Result<Report, Failure> {
    let names = peers::names(args.receivers)?;
    let scratch = Scratch::new(&args.data_dir, "bench")?;
    let mut node = NodeProcess::start(scratch.path(), "127.0.0.1:0", &args.settings).await?;
    let mut admin = Link::dial(&node.addr, None).await?;
    peers::add(&mut admin, &names, &PeerUrl::Attach, &PeerPatch::default()).await?;
    drop(admin);
    let mut report = Report {
        messages: args.messages,
        receivers: args.receivers,
        size_bytes: args.size,
        memory_bytes_empty: Memory::of(node.pid())?.now_bytes,
        ..Report::default()
    };
    let filled = fill(args, &node, &names, &mut report).await?;
    sleep(Duration::from_secs(args.rest)).await;
    let memory = Memory::of(node.pid())?;
    report.memory_bytes_queued = memory.now_bytes;
    report.memory_bytes_peak = memory.peak_bytes;
    report.disk_bytes_queued = disk_bytes(scratch.path())?;
    let addr = node.addr.clone();
    node.kill();
    let began = Instant::now();
    let started = NodeProcess::start(scratch.path(), &addr, &args.settings);
    let drained = drain(args, &addr, &names, filled, began, &mut report);
    let (node, tally) = tokio::try_join!(started, drained)?;
    // What the new process used by now, it used for this.
    let cpu = Cpu::of(node.pid())?;
    report.delivered_cpu_us = cpu.total().as_secs_f64() * 1e6 / args.messages as f64;
    sleep(Duration::from_secs(args.rest)).await;
    report.memory_bytes_drain_peak = Memory::of(node.pid())?.peak_bytes;
    report.disk_bytes_drained = disk_bytes(scratch.path())?;
    report.duplicates = tally.counts.duplicates;
    report.lost = tally.counts.missing() + tally.counts.foreign;
    Ok(report)
}

/// What a receiver needs to know of what was published.
struct Filled {
    tally: Tally,
    bodies: Bodies,
}

/// Publishes everything.
async fn fill(
    args: &Args,
    node: &NodeProcess,
    names: &[Name],
    report: &mut Report,
) -> Result<Filled, Failure> {
    let load = Load {
        receivers: args.receivers,
        producers: args.producers,
        outstanding: args.outstanding,
        size: args.size,
        fanout: 1,
        seconds: 0,
        warmup: 0,
        drain: 0,
        rate: None,
        receivers_per_connection: args.receivers_per_connection,
        dialled: false,
        window: None,
    };
    let origin = Instant::now();
    let schedule = Schedule { rate: RATE, producers: args.producers, messages: args.messages };
    let beat = Beat::start(schedule, origin);
    let mut producers = Vec::new();
    for index in 0..args.producers {
        let pace = Pace::Open(beat.clone());
        producers.push(Producer::connect(&node.addr, index, names, &load, pace).await?);
    }
    let sequences: Vec<u64> = producers.iter().map(Producer::first_sequence).collect();
    let tally = Tally::new(args.receivers, 1, &sequences)
        .map_err(|error| Failure::new(Exit::Failed, format_args!("{error:?}")))?;
    let bodies = Bodies::random(args.size as usize, &mut rand::rng());
    let (shared, phase) = share(tally, bodies, origin, Phase::Publishing);
    let mut tasks = JoinSet::new();
    let cpu = Cpu::of(node.pid())?;
    let begun = Instant::now();
    for producer in producers {
        tasks.spawn_local(producer.run(Rc::clone(&shared)));
    }
    until(
        &shared,
        &mut tasks,
        |tally| tally.counts.confirmed + tally.counts.refused,
        args.messages,
    )
    .await?;
    let took = begun.elapsed().as_secs_f64();
    report.published_per_second = args.messages as f64 / took;
    let cpu = Cpu::of(node.pid())?.since(cpu).total();
    report.published_cpu_us = cpu.as_secs_f64() * 1e6 / args.messages as f64;
    let shared = finish(shared, &phase, tasks).await?;
    let (tally, bodies) = (shared.tally.into_inner(), shared.bodies.into_inner());
    match (tally.counts.refused, &tally.refusal) {
        (0, _) | (_, None) => Ok(Filled { tally, bodies }),
        (_, Some((code, detail))) => {
            Err(Failure::new(Exit::Failed, format_args!("refused: {code}: {detail}")))
        }
    }
}

/// Lets the receivers come as soon as the node greets, and everything be delivered.
async fn drain(
    args: &Args,
    addr: &str,
    names: &[Name],
    filled: Filled,
    began: Instant,
    report: &mut Report,
) -> Result<Tally, Failure> {
    await_greeting(addr, began).await?;
    let (shared, phase) = share(filled.tally, filled.bodies, began, Phase::Draining);
    let mut tasks = JoinSet::new();
    let mut first = 0;
    for names in names.chunks(args.receivers_per_connection as usize) {
        let receiver = Receiver::attach(addr, first, names).await?;
        tasks.spawn_local(receiver.run(Rc::clone(&shared)));
        first += args.receivers_per_connection;
    }
    until(&shared, &mut tasks, |tally| tally.counts.delivered, 1).await?;
    report.first_delivery_ms = began.elapsed().as_secs_f64() * 1e3;
    let (since, before) = (Instant::now(), shared.tally.borrow().counts.delivered);
    until(&shared, &mut tasks, |tally| tally.counts.delivered, args.messages).await?;
    let rest = args.messages.saturating_sub(before) as f64;
    report.delivered_per_second = rest / since.elapsed().as_secs_f64();
    Ok(finish(shared, &phase, tasks).await?.tally.into_inner())
}

async fn await_greeting(addr: &str, began: Instant) -> Result<(), Failure> {
    loop {
        match Link::dial(addr, None).await {
            Ok(_) => return Ok(()),
            Err(failure) if began.elapsed() > RESTART_MAX => return Err(failure),
            Err(_) => sleep(LOOK).await,
        }
    }
}

fn share(
    tally: Tally,
    bodies: Bodies,
    origin: Instant,
    phase: Phase,
) -> (Rc<Shared>, watch::Sender<Phase>) {
    let (sender, phase) = watch::channel(phase);
    let (tally, bodies) = (RefCell::new(tally), RefCell::new(bodies));
    (Rc::new(Shared { tally, bodies, origin, phase }), sender)
}

/// Waits until `progress` has come so far.
async fn until(
    shared: &Shared,
    tasks: &mut JoinSet<Result<(), Failure>>,
    progress: impl Fn(&Tally) -> u64,
    wanted: u64,
) -> Result<(), Failure> {
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        let now = progress(&shared.tally.borrow());
        if now >= wanted {
            return Ok(());
        }
        if now > last {
            (last, moved) = (now, Instant::now());
        } else if moved.elapsed() > STALL_MAX {
            let what = format!("nothing happens any more; {now} of {wanted} are done");
            return Err(Failure::new(Exit::TimedOut, what));
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            Some(ended) = tasks.join_next() => {
                ended.map_err(crashed)??;
                return Err(Failure::new(Exit::Failed, "a connection ended before its time"));
            }
        }
    }
}

/// Ends the tasks.
async fn finish(
    shared: Rc<Shared>,
    phase: &watch::Sender<Phase>,
    mut tasks: JoinSet<Result<(), Failure>>,
) -> Result<Shared, Failure> {
    phase.send_replace(Phase::Done);
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(crashed)??;
    }
    Rc::into_inner(shared).ok_or_else(|| Failure::new(Exit::Failed, "a task did not end"))
}

fn crashed(error: tokio::task::JoinError) -> Failure {
    Failure::new(Exit::Failed, format_args!("a task of the generator failed: {error}"))
}

/// Bytes that the files below a directory occupy.
fn disk_bytes(dir: &Path) -> Result<u64, Failure> {
    use std::os::unix::fs::MetadataExt;
    let failed = |error| Failure::new(Exit::Failed, format_args!("{}: {error}", dir.display()));
    let mut bytes = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // The node may have removed it since.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes +=
            if metadata.is_dir() { disk_bytes(&entry.path())? } else { 512 * metadata.blocks() };
    }
    Ok(bytes)
}

impl Report {
    fn page(&self, output: Output) -> String {
        let mut table = Table::new(output, &["DEEP QUEUE", ""]);
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let mut row = |name: &str, value: String| {
            table.row(vec![(None, name.to_owned()), (None, value)]);
        };
        let (messages, receivers) = (self.messages as f64, f64::from(self.receivers));
        let (messages, receivers) = (number(messages), number(receivers));
        row("queued", format!("{messages} of {} B, {receivers} away", self.size_bytes));
        let (rate, cpu) = (number(self.published_per_second), self.published_cpu_us);
        row("published", format!("{rate}/s, {cpu:.2} µs of CPU each"));
        let queued = self.memory_bytes_queued.saturating_sub(self.memory_bytes_empty);
        row("memory, empty", mib(self.memory_bytes_empty));
        row("memory, queued", format!("{} (+{})", mib(self.memory_bytes_queued), mib(queued)));
        row("memory, at most", mib(self.memory_bytes_peak));
        row("disk, queued", mib(self.disk_bytes_queued));
        row("first delivery after kill -9", format!("{:.0} ms", self.first_delivery_ms));
        let (rate, cpu) = (number(self.delivered_per_second), self.delivered_cpu_us);
        row("delivered", format!("{rate}/s, {cpu:.2} µs of CPU each"));
        row("memory, drained, at most", mib(self.memory_bytes_drain_peak));
        row("disk, drained", mib(self.disk_bytes_drained));
        row("duplicates, lost", format!("{}, {}", self.duplicates, self.lost));
        table.render()
    }
}
