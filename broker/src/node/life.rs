//! One life: boot, serve, stop.
//!
//! ```text
//! (wait) ─► open the journal ─► start the actors ─► open the doors ─► ready
//!                                                                     │ stop, or a failure
//! close the journal ◄─ goodbye ◄─ deliveries in flight acked ◄─ router drained ◄─ doors closed
//! ```
//!
//! A stop is bounded: [`Config::shutdown_ms_max`] for what is in flight, a few seconds for goodbyes.
//! After a failure nothing is waited for: what is in flight is delivered again by the next life.

use super::lives::Lasting;
use super::watchdog::Watchdog;
use super::{NodeError, announce, sizing};
use crate::config::Config;
use crate::connection::{Net, Settings};
use crate::link::tcp::{self as links, TcpDialer};
use crate::listen::tcp as doors;
use actix_rt::Arbiter;
use restante_actors::journal::{Damage, Journal, Opened};
use restante_actors::router::{Barrier, Drain, FlushSettles, PeerLabels};
use restante_actors::{Handles, events};
use restante_protocol::refusal::{Code, Refusal};
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

/// How long goodbyes may take, beyond what [`crate::connection`] allows each.
const GOODBYES_MAX: Duration = Duration::from_secs(4);
/// How long the journal may take to write what is pending and mark its end.
const CLOSE_MAX: Duration = Duration::from_secs(10);
/// Receivers named in the log for one stretch of damage; `receivers` says how many there are.
const DAMAGED_PEERS_MAX: usize = 1_000;
/// How often a stopping node looks whether everything in flight has been acked.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How a life ended.
pub(super) enum Ended {
    /// As it was asked to.
    Stopped,
    /// It could not go on.
    Failed(String),
}

/// Lives until `stopped` holds true or something fails that only a boot can mend.
pub(super) async fn live(
    lasting: &Lasting<'_>,
    door: TcpListener,
    mut stopped: watch::Receiver<bool>,
    ready: &mut Option<impl FnOnce() -> Result<(), NodeError>>,
) -> Result<Ended, NodeError> {
    let born = Instant::now();
    let door = tokio::net::TcpListener::from_std(door).map_err(NodeError::System)?;
    let (opening, not_yet) = (open(lasting), not_yet(lasting));
    let opened = tokio::select! {
        opened = opening => opened?,
        // Callers are told why they have to wait.
        () = doors::turn_away(&door, &not_yet) => return Err(NodeError::Defect),
        _ = stopped.wait_for(|stopped| *stopped) => return Ok(Ended::Stopped),
    };
    let life = Life::begin(lasting, opened, door)?;
    life.tell_ready(lasting, born).await;
    if let Some(ready) = ready.take() {
        ready()?;
    }
    let mut fatal = life.handles.fatal.clone();
    let failed = tokio::select! {
        _ = stopped.wait_for(|stopped| *stopped) => None,
        failed = fatal.wait_for(Option::is_some) => {
            Some(failed.map_or_else(|_| None, |why| why.clone()).unwrap_or_default())
        }
    };
    match failed {
        None => {
            announce::stopping();
            life.stop(lasting.config).await;
            Ok(Ended::Stopped)
        }
        Some(why) => {
            life.fail(&why).await;
            Ok(Ended::Failed(why))
        }
    }
}

struct Life {
    handles: Handles,
    journal: Arc<dyn Journal>,
    net: Rc<Net>,
    /// Closes the doors.
    close_doors: watch::Sender<bool>,
    /// What owns the connections, accepted and dialled.
    accepting: JoinHandle<()>,
    dialling: JoinHandle<()>,
    second: Arbiter,
    /// Looks at both arbiters until this life ends.
    _watchdog: Watchdog,
    /// Whether the last process closed its journal in order.
    clean: bool,
    /// What the journal found damaged.
    damage: Vec<Damage>,
}

async fn open(lasting: &Lasting<'_>) -> Result<Opened, NodeError> {
    if let Some((_, wait)) = &lasting.reborn {
        sleep(*wait).await;
    }
    let dir = lasting.config.data_dir.clone();
    let options = sizing::options(lasting.config);
    let opened = spawn_blocking(move || restante_journal::open(&dir, options)).await;
    Ok(opened.map_err(|_| NodeError::Defect)??)
}

fn not_yet(lasting: &Lasting<'_>) -> Refusal {
    match &lasting.reborn {
        None => Refusal::new(Code::Overloaded, "the node is starting"),
        Some((why, _)) => Refusal::new(Code::JournalPoisoned, format!("starting anew: {why}")),
    }
}

impl Life {
    fn begin(
        lasting: &Lasting<'_>,
        mut opened: Opened,
        door: tokio::net::TcpListener,
    ) -> Result<Life, NodeError> {
        let config = lasting.config;
        let clean = opened.recovered.clean;
        let damage = std::mem::take(&mut opened.recovered.damage);
        opened.recovered.findings.iter().for_each(|finding| events::journal_finding(finding));
        let journal = Arc::clone(&opened.journal);
        let (dialer, orders) = TcpDialer::new();
        let second = Arbiter::new();
        let mut watched = vec![("second", second.handle())];
        watched.extend(Arbiter::try_current().map(|data| ("data", data)));
        let watchdog = Watchdog::over(watched).map_err(|error| {
            journal.close();
            NodeError::System(error)
        })?;
        let set_log_filter = Arc::clone(lasting.set_log_filter);
        let limits = sizing::limits(config);
        let started =
            restante_actors::start(opened, limits, dialer, &second.handle(), set_log_filter);
        let handles = match started {
            Ok(handles) => handles,
            Err(error) => {
                journal.close();
                return Err(NodeError::State(error.to_string()));
            }
        };
        let (close_doors, doors_closed) = watch::channel(false);
        let net = Net::new(handles.clone(), Settings::of(config), doors_closed);
        let accepting = actix_rt::spawn(doors::run(door, Rc::clone(&net)));
        let dialling = actix_rt::spawn(links::run(orders, Rc::clone(&net)));
        Ok(Life {
            handles,
            journal,
            net,
            close_doors,
            accepting,
            dialling,
            second,
            _watchdog: watchdog,
            clean,
            damage,
        })
    }

    /// Says that the node serves, once the router has had its first turn and seated the peers.
    async fn tell_ready(&self, lasting: &Lasting<'_>, born: Instant) {
        // A router that does not answer has failed, which is told elsewhere.
        let _ = self.handles.router.send(Barrier).await;
        let (epoch, bytes) = (self.handles.life.epoch, self.journal.disk_bytes());
        let (peers, waiting) = (self.handles.directory.len() as u64, self.waiting());
        events::journal_opened(epoch, self.clean, bytes, peers, waiting);
        self.tell_damage().await;
        if lasting.reborn.is_some() {
            events::journal_recovered(epoch);
        }
        let boot_ms = u64::try_from(born.elapsed().as_millis()).unwrap_or(u64::MAX);
        events::node_ready(lasting.addresses.tcp, epoch, peers, waiting, boot_ms);
    }

    /// Names what is damaged, and whose messages are concerned.
    async fn tell_damage(&self) {
        for Damage { file, first, next, receivers, complete } in &self.damage {
            let last = next.saturating_sub(1).max(*first);
            events::journal_damaged(file, *first, last, receivers.len() as u64, *complete);
            let shown = &receivers[..receivers.len().min(DAMAGED_PEERS_MAX)];
            let ids = shown.iter().map(|(peer, _)| *peer).collect();
            let labels = self.handles.router.send(PeerLabels(ids)).await.unwrap_or_default();
            for (label, (_, messages)) in labels.iter().zip(shown) {
                events::journal_damaged_peer(file, label, *messages, !complete);
            }
        }
    }

    fn waiting(&self) -> u64 {
        let seats = self.handles.directory.seats();
        seats.iter().map(|seat| seat.marks.waiting.load(Relaxed)).sum()
    }

    /// Stops in order.
    async fn stop(self, config: &Config) {
        let grace = Duration::from_millis(config.shutdown_ms_max);
        let unacked = self.net.outboxes().iter().map(|outbox| outbox.unacked()).sum();
        events::node_stopping("asked to", unacked, self.waiting());
        self.close_doors.send_replace(true);
        let drained = async {
            // A router that is gone has nothing left to decide.
            let _ = self.handles.router.send(Drain).await;
            self.net.hold_deliveries();
            while self.net.outboxes().iter().any(|outbox| outbox.is_busy()) {
                sleep(LOOK_EVERY).await;
            }
            let _ = self.handles.router.send(FlushSettles).await;
        };
        // What was not acked in time is delivered again by the next start.
        let _ = timeout(grace, drained).await;
        let waiting = self.waiting();
        self.handles.figures.stopping.store(true, Relaxed);
        self.end(Refusal::new(Code::ShuttingDown, "the node is stopping")).await;
        events::node_stopped(waiting);
    }

    /// Ends a life that cannot go on.
    async fn fail(self, why: &str) {
        self.close_doors.send_replace(true);
        self.end(Refusal::new(Code::JournalPoisoned, format!("starting anew: {why}"))).await;
    }

    async fn end(self, why: Refusal) {
        self.net.end(&why);
        let goodbyes = async {
            // A task that panicked has ended too.
            let _ = (self.accepting.await, self.dialling.await);
        };
        // Who does not listen is cut off with the runtime.
        let _ = timeout(GOODBYES_MAX, goodbyes).await;
        let journal = self.journal;
        // It has said what went wrong, if anything did. What it has not written by then is read
        // again by the next life from what it has.
        let _ = timeout(CLOSE_MAX, spawn_blocking(move || journal.close())).await;
        self.second.stop();
        let second = self.second;
        let _ = spawn_blocking(move || second.join()).await;
    }
}
