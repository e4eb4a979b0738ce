//! `bench`: a load generator of its own, over the bytes of the protocol.
//!
//! Constraints: it runs on the cores of the node it measures, so it must be cheap (no allocation, no
//! lock and no syscall per message; one thread), and it must not lie. What is counted:
//!
//! - A **delivery** counts when its receiver has acked it *and* its publish is confirmed, which is
//!   when the node has both made it durable and carried it. Rates are deliveries per second of the
//!   window, their median over its seconds.
//! - A **duplicate** is a second delivery of the same message to the same receiver. **Lost** is a
//!   delivery that a confirmed message still owes when draining is given up (`--drain`): must be 0,
//!   and the exit code says so. Every payload byte is compared with what was sent.
//! - **Latency** runs from the time a message was *meant* to be sent to its confirm and to each of
//!   its deliveries. In the closed loop that is when it was sent; in the open loop (`--rate`) it is
//!   the schedule's, however late the message left. A stall is thus charged to everything behind it.
//! - **CPU** is the node's user and system time over the window, divided by the window's deliveries.
//!
//! ```text
//! bench ─┬─ bench/load.rs      one run: set up, warm up, window, drain, look
//!        │    producer.rs, receiver.rs   the hot loops     pace.rs    the open loop's schedule
//!        │    tally.rs         who has what                payload.rs what a message says
//!        │    wire.rs          a connection as bytes       peers.rs   the peers it brings
//!        ├─ bench/idle.rs      what peers cost that do nothing
//!        ├─ bench/backlog.rs   a deep queue, a kill, a restart, a drain
//!        └─ bench/report.rs    what it came to             meter.rs   what a process uses
//! ```

mod backlog;
mod idle;
mod load;
mod meter;
mod pace;
mod payload;
mod peers;
mod producer;
mod receiver;
mod report;
mod tally;
mod wire;

use super::child::{NodeProcess, Scratch};
use super::node::{Target, block_on};
use super::output::{Output, print};
use super::{Exit, Failure};
use payload::STAMP_BYTES;
use report::Report;
use restante_protocol::frame::PUBLISH_FIXED_BYTES;
use restante_protocol::limits::{PAYLOAD_BYTES_MAX, SLOTS_MAX};
use std::path::PathBuf;
use tally::FANOUT_MAX;

/// Measure a node under load
///
/// Brings receivers called bench-0, bench-1, … of its own (any that are left from a run that was cut
/// off are removed first, with what waits for them) and takes them away again. Counts a delivery when
/// its receiver has acked it and its publish is confirmed.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    mode: Option<Mode>,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    node: Node,
}

#[derive(clap::Subcommand)]
enum Mode {
    Idle(idle::Args),
    Backlog(backlog::Args),
}

/// What is done to the node.
#[derive(clap::Args, Clone, Debug)]
struct Load {
    /// How many receivers
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    receivers: u32,
    /// How many producers, each on a connection
    #[arg(long, value_name = "N", default_value_t = 8)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1_000))]
    producers: u16,
    /// Messages each producer keeps unconfirmed; the node's credit may allow fewer
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    outstanding: u32,
    /// Bytes of a payload
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    #[arg(value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=PAYLOAD_BYTES_MAX as i64))]
    size: u32,
    /// Receivers of each message
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(FANOUT_MAX)))]
    fanout: u32,
    /// How long to measure, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// How long to run before measuring, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=3_600))]
    warmup: u64,
    /// How long what was published may take to arrive afterwards, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=3_600))]
    drain: u64,
    /// Publish so many messages a second, over all producers, whether or not the node keeps up
    /// (open loop) [default: as fast as confirms come]
    #[arg(long, value_name = "N", conflicts_with = "outstanding", value_parser = rate)]
    rate: Option<f64>,
    /// Receivers that share a connection
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "dialled")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(SLOTS_MAX)))]
    receivers_per_connection: u32,
    /// Let the node dial the receivers instead of attaching
    #[arg(long)]
    dialled: bool,
    /// Most messages in flight to a receiver [default: the node's]
    #[arg(long, value_name = "N")]
    window: Option<u32>,
}

/// Which node is measured.
#[derive(clap::Args, Clone, Debug)]
struct Node {
    /// Start a node for the run, on a fresh data directory and a free port
    #[arg(long)]
    spawn: bool,
    /// Where that directory is made: on the disk to be measured [default: the current directory]
    #[arg(long, value_name = "DIR", requires = "spawn")]
    data_dir: Option<PathBuf>,
    /// A setting of that node; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "spawn")]
    settings: Vec<String>,
    /// The process of the node at --server, to measure its CPU and memory
    #[arg(long, conflicts_with = "spawn")]
    pid: Option<u32>,
}

/// What makes a message due.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Loop {
    /// A confirm of one before it.
    Closed,
    /// A schedule of so many a second.
    Open(f64),
}

impl Load {
    fn pace(&self) -> Loop {
        self.rate.map_or(Loop::Closed, Loop::Open)
    }

    /// Bytes of a publish frame, as the node's credit counts them.
    fn frame_bytes(&self) -> u64 {
        let aliases = 4 * u64::from(self.fanout);
        PUBLISH_FIXED_BYTES as u64 + aliases + 1 + u64::from(self.size)
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.replace('_', "").parse().ok();
    rate.filter(|rate| (0.01..=1e9).contains(rate))
        .ok_or_else(|| "expected messages a second, from 0.01 to 1000000000".to_owned())
}

/// The node under test.
struct Subject {
    server: String,
    pid: Option<u32>,
    /// In the order in which they end: the process, then its directory.
    _own: Option<(NodeProcess, Scratch)>,
}

impl Subject {
    async fn find(node: &Node, target: &Target) -> Result<Subject, Failure> {
        if !node.spawn {
            return Ok(Subject { server: target.server().to_owned(), pid: node.pid, _own: None });
        }
        let parent = node.data_dir.clone().unwrap_or_else(|| PathBuf::from("."));
        let scratch = Scratch::new(&parent, "bench")?;
        let process = NodeProcess::start(scratch.path(), "127.0.0.1:0", &node.settings).await?;
        let (server, pid) = (process.addr.clone(), Some(process.pid()));
        Ok(Subject { server, pid, _own: Some((process, scratch)) })
    }
}

pub(super) fn run(args: Args, target: &Target, output: Output) -> Result<(), Failure> {
    let Args { mode, load, node } = args;
    if load.fanout > load.receivers {
        let what = format!("--fanout {} is more than --receivers {}", load.fanout, load.receivers);
        return Err(Failure::new(Exit::Usage, what));
    }
    block_on(async {
        match mode {
            Some(Mode::Idle(args)) => return idle::run(&args, target, output).await,
            Some(Mode::Backlog(args)) => return backlog::run(&args, output).await,
            None => {}
        }
        let subject = Subject::find(&node, target).await?;
        let measured = load::run(&load, &subject.server, subject.pid).await?;
        drop(subject);
        let report = Report::new(&load, &measured);
        print(&if output.json { Output::json_line(&report)? } else { report.page(output) })?;
        report.verdict()
    })
}

#[cfg(test)]
mod tests;
