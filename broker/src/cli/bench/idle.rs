//! `bench idle`: what peers cost a node that do nothing: dialled ones that are down, with their
//! backoff at its cap, or attached ones that are silent.

use super::super::node::{Target, stop_asked};
use super::super::output::{Output, Table, print};
use super::super::{Exit, Failure, values};
use super::meter::{Cpu, Memory};
use super::report::number;
use super::wire::Link;
use super::{Node, Subject, peers};
use futures_util::future::select_all;
use restante_protocol::admin::{PeerPatch, PeerUrl};
use restante_protocol::control::{AttachAs, Reply, Request};
use restante_protocol::name::Name;
use serde::Serialize;
use socket2::{Domain, Socket, Type};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::time::{Duration, Instant};

/// Measure what idle peers cost
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("peers").required(true).multiple(false))]
pub(super) struct Args {
    /// So many peers that the node dials in vain, with their backoff at its cap
    #[arg(long, value_name = "N", group = "peers")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    down: Option<u32>,
    /// So many peers that are attached and receive nothing
    #[arg(long, value_name = "N", group = "peers")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    attached: Option<u32>,
    /// The cap of the backoff of peers that are down
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = values::millis)]
    backoff_max: u64,
    /// Connections that attached peers share
    #[arg(long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// How long to measure, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// How long to let the node settle before, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=3_600))]
    warmup: u64,
    #[command(flatten)]
    node: Node,
}

#[derive(Debug, Serialize)]
struct Report {
    /// `down` or `attached`.
    kind: &'static str,
    peers: u32,
    seconds: u64,
    /// How long it took to add them, in milliseconds.
    added_ms: u64,
    /// In RAM before the peers came, at the end, and at most; in bytes.
    memory_bytes_before: u64,
    memory_bytes: u64,
    memory_bytes_peak: u64,
    /// 1.0 is one core, all the time.
    cores: f64,
}

pub(super) async fn run(args: &Args, target: &Target, output: Output) -> Result<(), Failure> {
    let subject = Subject::find(&args.node, target).await?;
    let pid = subject.pid.ok_or_else(|| {
        Failure::new(Exit::Usage, "whose memory? expected --spawn, or --pid with the node's pid")
    })?;
    let (kind, count) = match (args.down, args.attached) {
        (Some(count), _) => ("down", count),
        (None, count) => ("attached", count.unwrap_or(0)),
    };
    let names = peers::names(count)?;
    let mut admin = Link::dial(&subject.server, None).await?;
    let report = tokio::select! {
        report = measure(args, kind, &names, &subject.server, pid, &mut admin) => report,
        () = stop_asked() => Err(Failure::new(Exit::Failed, "stopped before the end")),
    };
    let removed = match args.node.spawn {
        true => Ok(()),
        false => peers::remove(&mut Link::dial(&subject.server, None).await?, &names).await,
    };
    let report = report?;
    removed?;
    print(&if output.json { Output::json_line(&report)? } else { report.page(output) })
}

async fn measure(
    args: &Args,
    kind: &'static str,
    names: &[Name],
    server: &str,
    pid: u32,
    admin: &mut Link,
) -> Result<Report, Failure> {
    let before = Memory::of(pid)?;
    let begun = Instant::now();
    let mut links = Vec::new();
    // Holds the port without listening there, so that every dial is refused at once.
    let mut _closed = None;
    if kind == "down" {
        let (socket, port) = closed_port()?;
        _closed = Some(socket);
        let url = PeerUrl::Tcp { host: Ipv4Addr::LOCALHOST.to_string(), port };
        let cap = Some(args.backoff_max);
        let settings =
            PeerPatch { backoff_ms_min: cap, backoff_ms_max: cap, ..PeerPatch::default() };
        peers::add(admin, names, &url, &settings).await?;
    } else {
        peers::add(admin, names, &PeerUrl::Attach, &PeerPatch::default()).await?;
        links = attach(server, names, args.connections).await?;
    }
    let added = begun.elapsed();
    idle(admin, &mut links, Duration::from_secs(args.warmup)).await?;
    let (begun, cpu) = (Instant::now(), Cpu::of(pid)?);
    idle(admin, &mut links, Duration::from_secs(args.seconds)).await?;
    let used = Cpu::of(pid)?.since(cpu).total().as_secs_f64();
    let memory = Memory::of(pid)?;
    Ok(Report {
        kind,
        peers: u32::try_from(names.len()).unwrap_or(u32::MAX),
        seconds: args.seconds,
        added_ms: u64::try_from(added.as_millis()).unwrap_or(u64::MAX),
        memory_bytes_before: before.now_bytes,
        memory_bytes: memory.now_bytes,
        memory_bytes_peak: memory.peak_bytes,
        cores: (used / begun.elapsed().as_secs_f64() * 1e5).round() / 1e5,
    })
}

/// A loopback port that refuses connections for as long as the socket is kept.
fn closed_port() -> Result<(Socket, u16), Failure> {
    let failed = |error| Failure::new(Exit::Failed, format_args!("cannot take a port: {error}"));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).map_err(failed)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).map_err(failed)?;
    let port = socket.local_addr().map_err(failed)?.as_socket().map_or(0, |addr| addr.port());
    Ok((socket, port))
}

async fn attach(server: &str, names: &[Name], connections: u32) -> Result<Vec<Link>, Failure> {
    let mut links = Vec::new();
    for names in names.chunks(names.len().div_ceil(connections as usize).max(1)) {
        let mut link = Link::dial(server, None).await?;
        let receivers = (0..)
            .zip(names)
            .map(|(slot, name)| AttachAs { slot, name: name.clone(), grant: None })
            .collect();
        if let Reply::Attached(results) = link.ask_one(Request::Attach { receivers }).await?
            && let Some(refusal) = results.into_iter().find_map(|result| result.refusal)
        {
            return Err(refusal.into());
        }
        links.push(link);
    }
    Ok(links)
}

/// Keeps the connections alive for a while.
async fn idle(admin: &mut Link, links: &mut [Link], time: Duration) -> Result<(), Failure> {
    let alive = links.iter_mut().chain([admin]).map(|link| Box::pin(link.idle()));
    let mut over = pin!(tokio::time::sleep(time));
    tokio::select! {
        () = &mut over => Ok(()),
        (failure, _, _) = select_all(alive) => Err(failure),
    }
}

impl Report {
    fn page(&self, output: Output) -> String {
        let head: &[_] = &["PEERS", "ADDED IN", "BEFORE", "MEMORY", "AT MOST", "A PEER", "CORE"];
        let mut table = Table::new(output, head);
        let mib = |bytes: u64| (None, format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)));
        let each = self.memory_bytes.saturating_sub(self.memory_bytes_before);
        let each = each as f64 / f64::from(self.peers) / 1024.0;
        table.row(vec![
            (None, format!("{} {}", number(f64::from(self.peers)), self.kind)),
            (None, format!("{:.1} s", self.added_ms as f64 / 1e3)),
            mib(self.memory_bytes_before),
            mib(self.memory_bytes),
            mib(self.memory_bytes_peak),
            (None, format!("{each:.2} KiB")),
            (None, format!("{:.2} %", self.cores * 100.0)),
        ]);
        table.render()
    }
}
