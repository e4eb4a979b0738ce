//! One run: warm up, measure, let everything arrive, look at what is missing.
//!
//! ```text
//! set up ─► publishing ────────────────────────────► draining ───────────► done
//!           │ warm-up │ window: a sample a second │  until nothing is       flush: every ack
//!           │         │                           │  owed, or too long      is on the node's disk
//! ```
//!
//! Everything runs on one thread: the generator takes a share of one core and no locks.

use super::super::{Exit, Failure};
use super::meter::{Cpu, Memory};
use super::pace::{Beat, Schedule};
use super::payload::Bodies;
use super::peers;
use super::producer::{Pace, Phase, Producer, Shared};
use super::receiver::Receiver;
use super::tally::{Counts, Tally};
use super::wire::Link;
use super::{Load, Loop};
use restante_protocol::admin::{PeerPatch, PeerUrl};
use restante_protocol::name::Name;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep_until, timeout};

/// How often the end of draining is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// How long a node may take to dial all receivers.
const DIALS_MAX: Duration = Duration::from_secs(30);

/// The state of things at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) counts: Counts,
    /// Of the node, if its pid is known.
    pub(super) node: Option<Cpu>,
    /// Of this process.
    pub(super) generator: Cpu,
}

/// What a run came to.
pub(super) struct Measured {
    /// At the start of the window and after each of its seconds.
    pub(super) samples: Vec<Sample>,
    /// After the drain, with the histograms of the window.
    pub(super) tally: Tally,
    pub(super) memory: Option<Memory>,
    pub(super) drained: Duration,
}

/// Runs a load against a node whose peers do not exist yet, and leaves none behind.
pub(super) async fn run(load: &Load, server: &str, pid: Option<u32>) -> Result<Measured, Failure> {
    let names = peers::names(load.receivers)?;
    let mut admin = Link::dial(server, None).await?;
    let measured = LocalSet::new()
        .run_until(async {
            tokio::select! {
                measured = measure(load, server, pid, &names, &mut admin) => measured,
                () = super::super::node::stop_asked() => {
                    Err(Failure::new(Exit::Failed, "stopped before the end"))
                }
            }
        })
        .await;
    // The node may be what failed.
    let mut admin = if measured.is_ok() { admin } else { Link::dial(server, None).await? };
    let removed = peers::remove(&mut admin, &names).await;
    let measured = measured?;
    removed.map(|()| measured)
}

async fn measure(
    load: &Load,
    server: &str,
    pid: Option<u32>,
    names: &[Name],
    admin: &mut Link,
) -> Result<Measured, Failure> {
    let receivers = receivers(load, server, names, admin).await?;
    let origin = Instant::now();
    let beat = match load.pace() {
        Loop::Closed => None,
        Loop::Open(rate) => {
            let seconds = (load.warmup + load.seconds) as f64;
            let messages = (seconds * rate).ceil() as u64;
            let schedule = Schedule { rate, producers: load.producers, messages };
            Some(Beat::start(schedule, origin))
        }
    };
    let mut producers = Vec::new();
    for index in 0..load.producers {
        let pace = beat.as_ref().map_or(Pace::Closed, |beat| Pace::Open(beat.clone()));
        let connected = Producer::connect(server, index, names, load, pace);
        producers.push(connected.await?);
    }
    let sequences: Vec<u64> = producers.iter().map(Producer::first_sequence).collect();
    let tally = Tally::new(load.receivers, load.fanout, &sequences)
        .map_err(|error| Failure::new(Exit::Failed, format_args!("{error:?}")))?;
    let (phase, phases) = watch::channel(Phase::Publishing);
    let shared = Rc::new(Shared {
        tally: RefCell::new(tally),
        bodies: RefCell::new(Bodies::random(load.size as usize, &mut rand::rng())),
        origin,
        phase: phases,
    });
    let mut tasks = JoinSet::new();
    for receiver in receivers {
        tasks.spawn_local(receiver.run(shared.clone()));
    }
    for producer in producers {
        tasks.spawn_local(producer.run(shared.clone()));
    }
    let planned = beat.map(|beat| beat.schedule.messages);
    let mut run = Run { load, pid, planned, shared, phase, tasks };
    let samples = run.window().await?;
    let drained = run.drain().await?;
    run.finish().await?;
    let memory = pid.map(Memory::of).transpose()?;
    let shared = Rc::into_inner(run.shared);
    let shared = shared.ok_or_else(|| Failure::new(Exit::Failed, "a task did not end"))?;
    Ok(Measured { samples, tally: shared.tally.into_inner(), memory, drained })
}

/// Adds the peers and connects them.
async fn receivers(
    load: &Load,
    server: &str,
    names: &[Name],
    admin: &mut Link,
) -> Result<Vec<Receiver>, Failure> {
    let settings = PeerPatch { window_messages: load.window, ..PeerPatch::default() };
    if load.dialled {
        return dialled(names, &settings, admin).await;
    }
    peers::add(admin, names, &PeerUrl::Attach, &settings).await?;
    let mut receivers = Vec::new();
    let mut first = 0;
    for names in names.chunks(load.receivers_per_connection as usize) {
        receivers.push(Receiver::attach(server, first, names).await?);
        first += load.receivers_per_connection;
    }
    Ok(receivers)
}

/// Lets the node dial every receiver.
async fn dialled(
    names: &[Name],
    settings: &PeerPatch,
    admin: &mut Link,
) -> Result<Vec<Receiver>, Failure> {
    let failed = |error| Failure::new(Exit::Failed, format_args!("cannot listen: {error}"));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    let url = PeerUrl::Tcp { host: "127.0.0.1".to_owned(), port };
    let accept = async {
        let mut receivers = Vec::new();
        while receivers.len() < names.len() {
            let (stream, _) = listener.accept().await.map_err(failed)?;
            let (link, name) = Link::accept(stream).await?;
            let Some((index, _)) = (0..).zip(names).find(|(_, known)| **known == name) else {
                let what = format!("the node dials for {name}, which was not added");
                return Err(Failure::new(Exit::Failed, what));
            };
            receivers.push(Receiver::dialled(link, index));
        }
        Ok(receivers)
    };
    let late = |_| Failure::new(Exit::TimedOut, "the node does not dial every receiver");
    let (added, accepted) =
        tokio::join!(peers::add(admin, names, &url, settings), timeout(DIALS_MAX, accept));
    added?;
    accepted.map_err(late)?
}

/// A run under way.
struct Run<'a> {
    load: &'a Load,
    pid: Option<u32>,
    /// Messages of an open loop.
    planned: Option<u64>,
    shared: Rc<Shared>,
    phase: watch::Sender<Phase>,
    tasks: JoinSet<Result<(), Failure>>,
}

impl Run<'_> {
    /// Warms up and samples every second of the window.
    async fn window(&mut self) -> Result<Vec<Sample>, Failure> {
        let start = self.shared.origin + Duration::from_secs(self.load.warmup);
        let ns = |seconds: u64| seconds * 1_000_000_000;
        self.shared.tally.borrow_mut().window =
            ns(self.load.warmup)..ns(self.load.warmup + self.load.seconds);
        let mut samples = Vec::new();
        for second in 0..=self.load.seconds {
            self.wait_until(start + Duration::from_secs(second)).await?;
            samples.push(self.sample()?);
        }
        Ok(samples)
    }

    /// Ends publishing; how long it took until everything was there, or was given up.
    async fn drain(&mut self) -> Result<Duration, Failure> {
        let start = Instant::now();
        self.phase.send_replace(Phase::Draining);
        loop {
            let counts = self.shared.tally.borrow().counts;
            let unsent = self.planned.map_or(0, |planned| planned - counts.published);
            let arrived = unsent == 0 && counts.unconfirmed() == 0 && counts.missing() == 0;
            if arrived || start.elapsed() > Duration::from_secs(self.load.drain) {
                return Ok(start.elapsed());
            }
            self.wait_until(Instant::now() + LOOK).await?;
        }
    }

    /// Ends the tasks.
    async fn finish(&mut self) -> Result<(), Failure> {
        self.phase.send_replace(Phase::Done);
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(crashed)??;
        }
        Ok(())
    }

    /// Waits, unless a task fails first.
    async fn wait_until(&mut self, instant: Instant) -> Result<(), Failure> {
        tokio::select! {
            () = sleep_until(instant.into()) => Ok(()),
            Some(ended) = self.tasks.join_next() => {
                ended.map_err(crashed)??;
                Err(Failure::new(Exit::Failed, "a connection ended before its time"))
            }
        }
    }

    fn sample(&self) -> Result<Sample, Failure> {
        Ok(Sample {
            at: Instant::now(),
            counts: self.shared.tally.borrow().counts,
            node: self.pid.map(Cpu::of).transpose()?,
            generator: Cpu::of(std::process::id())?,
        })
    }
}

fn crashed(error: tokio::task::JoinError) -> Failure {
    Failure::new(Exit::Failed, format_args!("a task of the generator failed: {error}"))
}
