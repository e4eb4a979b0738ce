//! The seams as a test wants them.

use actix_rt::{Arbiter, System};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use restante_actors::journal::{
    Admission, Backlog, BackupTaken, Batch, Caps, Commits, Completion, End, Journal, Life,
    LookupError, Opened, Page, Read, ReadError, Recovered, Settle, Stored, Ticket,
};
use restante_actors::link::{DialTarget, Dialer, Link, Outgoing, ProducerLink, SharedProducer};
use restante_actors::peer::Peer;
use restante_actors::router::{
    Administer, Barrier, CancelCall, OpenProducer, ProducerSession, PublishBatch, PublishItem,
    Receiver,
};
use restante_actors::{Handles, Limits, start};
use restante_protocol::admin::{AdminCommand, PeerPatch, PeerUrl, Waiting};
use restante_protocol::frame::{Confirm, Refuse, ReplyKind};
use restante_protocol::id::{MessageNumber, NodeTag, PeerId, ProducerId};
use restante_protocol::message::body_flags;
use restante_protocol::record::{ParkRecord, RecordKind};
use restante_protocol::refusal::{Code, Refusal};
use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::sync::mpsc::{self, UnboundedSender};

/// Bytes at which the router appends without waiting for the end of its turn.
pub(crate) const TAKES_A_BATCH: usize = 1024 * 1024;
/// Turns of the event loop in which everything that was said has long been dealt with.
const TURNS: usize = 200;

/// Part of every id.
pub(crate) const NODE: NodeTag = NodeTag(7);

/// Runs a test as the data arbiter of a node.
pub(crate) fn on_an_arbiter(test: impl Future<Output = ()>) {
    System::new().block_on(test);
}

/// Actors over the seams.
pub(crate) struct Rig {
    pub(crate) handles: Handles,
    pub(crate) journal: Arc<Double>,
    pub(crate) dials: Arc<Dials>,
    pub(crate) calls_each_max: u64,
    pub(crate) producers_max: usize,
    second: Arbiter,
}

impl Rig {
    pub(crate) async fn start() -> Rig {
        let (completions, completed) = mpsc::unbounded_channel();
        let journal = Arc::new(Double { state: Mutex::default(), completions });
        let recovered = Recovered {
            epoch: 1,
            node: NODE,
            checkpoint: None,
            admin: Vec::new(),
            published: Vec::new(),
            clean: true,
            findings: Vec::new(),
            damage: Vec::new(),
        };
        journal.state.lock().next = 1;
        let seam = Arc::clone(&journal) as Arc<dyn Journal>;
        let opened = Opened { journal: seam, completions: completed, recovered };
        let (calls_each_max, producers_max) = (10, 8);
        let limits = Limits { calls_each_max, producers_max, ..Limits::default() };
        let (second, dials) = (Arbiter::new(), Arc::new(Dials::default()));
        let handles =
            start(opened, limits, Arc::clone(&dials) as _, &second.handle(), Arc::new(|_| Ok(())))
                .unwrap();
        Rig { handles, journal, dials, calls_each_max: 10, producers_max, second }
    }

    /// Waits until everything that was said has been dealt with.
    pub(crate) async fn settle(&self) {
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn add_peer(&self, name: &str) -> PeerId {
        self.add_peer_at(name, PeerUrl::Attach).await
    }

    pub(crate) async fn add_peer_at(&self, name: &str, url: PeerUrl) -> PeerId {
        let name = name.parse().unwrap();
        let command = AdminCommand::PeerAdd { name, url, settings: PeerPatch::default() };
        self.administer(command).await
    }

    pub(crate) async fn remove(&self, name: &str, wish: Waiting) {
        let (name, waiting) = (name.parse().unwrap(), Some(wish));
        self.administer(AdminCommand::PeerRemove { name, if_version: None, waiting }).await;
        self.settle().await;
    }

    async fn administer(&self, command: AdminCommand) -> PeerId {
        let by = "a test".to_owned();
        self.handles.router.send(Administer { command, by }).await.unwrap().unwrap().id
    }

    /// Says hello.
    pub(crate) async fn open(&self, id: u128, producer: &Arc<Recorder>) -> ProducerSession {
        let from = Arc::clone(producer) as SharedProducer;
        let open = OpenProducer { id: ProducerId(id), unused_from: None, from };
        self.handles.router.send(open).await.unwrap().unwrap().session
    }

    /// Says publishes in one batch, and waits for what becomes of them.
    pub(crate) async fn publish(
        &self,
        from: &Arc<Recorder>,
        producer: ProducerSession,
        peer: PeerId,
        publishes: &[(u64, Vec<u8>)],
    ) {
        let (mut chunk, mut items) = (BytesMut::new(), Vec::new());
        for (sequence, body) in publishes {
            items.push(PublishItem {
                sequence: *sequence,
                flags: 0,
                receivers: 1,
                body_at: chunk.len() as u32,
                body_len: body.len() as u32,
                frame_len: body.len() as u32,
                refusal: None,
            });
            chunk.extend_from_slice(body);
        }
        let from = Arc::clone(from) as SharedProducer;
        let receivers = vec![Receiver { alias: 0, peer }; items.len()];
        let batch = PublishBatch { from, producer, chunk: chunk.freeze(), items, receivers };
        self.handles.router.send(batch).await.unwrap();
        self.settle().await;
    }

    /// Gives up a call.
    pub(crate) async fn cancel(&self, from: &Arc<Recorder>, sequence: u64) {
        let from = Arc::clone(from) as SharedProducer;
        self.handles.router.send(CancelCall { from, sequence }).await.unwrap();
    }

    /// Puts more into the router's mailbox than it has room for.
    pub(crate) fn fill_router(&self) {
        for _ in 0..1_100 {
            self.handles.router.clone().try_send(Barrier).unwrap();
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.second.stop();
    }
}

/// A publish with a body of so many bytes.
pub(crate) fn plain(sequence: u64, bytes: usize) -> (u64, Vec<u8>) {
    (sequence, vec![0; bytes])
}

/// A publish that awaits a return value.
pub(crate) fn call(sequence: u64) -> (u64, Vec<u8>) {
    (sequence, vec![body_flags::REPLY, b'x'])
}

/// A journal that confirms everything at once and keeps nothing.
pub(crate) struct Double {
    state: Mutex<State>,
    completions: UnboundedSender<Completion>,
}

#[derive(Default)]
struct State {
    next: MessageNumber,
    tickets: u64,
    messages: usize,
    refusals: usize,
    settled: Vec<MessageNumber>,
    lives: HashMap<MessageNumber, Result<Life, LookupError>>,
    damaged: Option<(MessageNumber, u64)>,
    readable: Vec<Stored>,
    parked_bytes: u64,
}

impl Double {
    /// Refuses the next so many batches of messages.
    pub(crate) fn refuse(&self, batches: usize) {
        self.state.lock().refusals = batches;
    }

    /// What it says when it is asked for a message.
    pub(crate) fn knows(&self, number: MessageNumber, life: Result<Life, LookupError>) {
        self.state.lock().lives.insert(number, life);
    }

    /// This message, of so many bytes, cannot be read any more.
    pub(crate) fn damage(&self, number: MessageNumber, bytes: u64) {
        self.state.lock().damaged = Some((number, bytes));
    }

    /// This message, of so many bytes, can be read; of all others nothing is kept.
    pub(crate) fn keep(&self, number: MessageNumber, bytes: usize) {
        let stored = Stored { number, accepted_ms: 1, body: vec![0; bytes].into() };
        self.state.lock().readable.push(stored);
    }

    /// Messages that are done.
    pub(crate) fn settled(&self) -> Vec<MessageNumber> {
        self.state.lock().settled.clone()
    }

    /// Messages it has taken.
    pub(crate) fn messages(&self) -> usize {
        self.state.lock().messages
    }
}

impl Journal for Double {
    fn caps(&self) -> Caps {
        let record_bytes_max = 16 * TAKES_A_BATCH;
        Caps { record_bytes_max, batch_bytes_max: record_bytes_max, append_bytes_max: usize::MAX }
    }

    fn admission(&self) -> Admission {
        Admission::Open
    }

    fn next_number(&self) -> MessageNumber {
        self.state.lock().next
    }

    fn oldest_number(&self) -> MessageNumber {
        1
    }

    fn append(&self, batch: Batch) -> Result<(Ticket, MessageNumber), (Batch, Refusal)> {
        let mut state = self.state.lock();
        let messages = batch.records.iter().filter(|r| r.kind == RecordKind::Message).count();
        if messages > 0 && state.refusals > 0 {
            state.refusals -= 1;
            return Err((batch, Refusal::new(Code::Overloaded, "as the test says")));
        }
        state.messages += messages;
        state.tickets += 1;
        let (ticket, first) = (Ticket(state.tickets), state.next);
        state.next += batch.records.len() as u64;
        let end = End::Durable(batch.bytes.freeze());
        self.completions.send(Completion { ticket, end }).unwrap();
        Ok((ticket, first))
    }

    fn settle(&self, settle: Settle) {
        self.state.lock().settled.extend(settle.numbers);
    }

    fn park(&self, record: ParkRecord) {
        let mut state = self.state.lock();
        if let Some((_, bytes)) = state.damaged.take_if(|(number, _)| *number == record.number) {
            state.parked_bytes += bytes;
        }
    }

    fn flush(&self, token: u64) {
        let ticket = Ticket(self.state.lock().tickets);
        self.completions.send(Completion { ticket, end: End::Flushed(token) }).unwrap();
    }

    fn checkpoint(&self, _: Bytes) {}

    fn next(&self, read: Read) -> BoxFuture<'static, Result<Page, ReadError>> {
        let state = self.state.lock();
        let damaged = state.damaged.filter(|(number, _)| *number > read.after);
        let end = damaged.map_or(read.through, |(number, _)| number - 1);
        let wanted = read.after + 1..=end;
        let readable = state.readable.iter().filter(|stored| wanted.contains(&stored.number));
        let messages: Vec<_> = readable.cloned().collect();
        let page = match damaged {
            Some((number, _)) if messages.is_empty() => {
                Err(ReadError::Damaged { number, detail: "a bad sector".into() })
            }
            _ => Ok(Page { messages, through: end, ..Page::default() }),
        };
        Box::pin(async { page })
    }

    fn backlog(&self, _: PeerId) -> Backlog {
        Backlog { parked_bytes: self.state.lock().parked_bytes, ..Backlog::default() }
    }

    fn lookup(&self, number: MessageNumber) -> BoxFuture<'static, Result<Life, LookupError>> {
        let life = self.state.lock().lives.get(&number).cloned();
        Box::pin(async { life.unwrap_or(Err(LookupError::Unknown)) })
    }

    fn backup(&self, _: PathBuf) -> BoxFuture<'static, Result<BackupTaken, Refusal>> {
        Box::pin(async { Err(Refusal::new(Code::Unsupported, "keeps nothing")) })
    }

    fn commits(&self) -> Commits {
        Commits::default()
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn close(&self) {}
}

/// Dials nobody, and remembers the numbers of the links that were wanted.
#[derive(Default)]
pub(crate) struct Dials(Mutex<Vec<u64>>);

impl Dials {
    pub(crate) fn wanted(&self) -> Vec<u64> {
        self.0.lock().clone()
    }
}

impl Dialer for Dials {
    fn dial(&self, target: DialTarget, _: actix::Addr<Peer>) {
        self.0.lock().push(target.link);
    }
}

/// A connection that publishes and remembers what it was told.
#[derive(Default)]
pub(crate) struct Recorder {
    told: Mutex<Vec<String>>,
    gone: AtomicBool,
}

impl Recorder {
    pub(crate) fn new() -> Arc<Recorder> {
        Arc::default()
    }

    /// What it has been told since it was last asked.
    pub(crate) fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock())
    }

    /// The connection has ended.
    pub(crate) fn leave(&self) {
        self.gone.store(true, Relaxed);
    }

    fn note(&self, told: String) {
        self.told.lock().push(told);
    }
}

impl ProducerLink for Recorder {
    fn confirm(&self, confirm: Confirm, _: u64) {
        self.note(format!("confirm {}+{}", confirm.first_sequence, confirm.count));
    }

    fn refuse(&self, refuse: &Refuse, _: u64) {
        self.note(format!("refuse {} {}", refuse.sequence, refuse.code));
    }

    fn reply(&self, sequence: u64, kind: ReplyKind, value: &[u8]) {
        let kind = match kind {
            ReplyKind::Acked => "acked",
            ReplyKind::Refused => "refused",
            ReplyKind::Ended => "ended",
        };
        self.note(format!("{kind} {sequence}: {}", String::from_utf8_lossy(value)));
    }

    fn supersede(&self) {}

    fn abandon(&self, why: &Refusal) {
        self.note(format!("abandon {}", why.code));
    }

    fn is_closed(&self) -> bool {
        self.gone.load(Relaxed)
    }
}

/// A link that takes everything and forgets it.
#[derive(Default)]
pub(crate) struct Sink {
    deliveries: Mutex<usize>,
    closed: AtomicBool,
    crashes: AtomicBool,
}

impl Sink {
    /// A delivery by it crashes its peer's actor.
    pub(crate) fn crashing() -> Sink {
        Sink { crashes: AtomicBool::new(true), ..Sink::default() }
    }

    /// Waits until it has been given so many deliveries.
    pub(crate) async fn has(&self, deliveries: usize) {
        for _ in 0..TURNS {
            if *self.deliveries.lock() == deliveries {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{} deliveries came, not {deliveries}", self.deliveries.lock());
    }

    /// Whether its peer has closed it.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }
}

impl Link for Sink {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn transmit(&self, batch: &mut dyn Iterator<Item = Outgoing<'_>>) {
        *self.deliveries.lock() += batch.count();
        assert!(!self.crashes.load(Relaxed), "the crash that was asked for");
    }

    fn close(&self, _: &Refusal) {
        self.closed.store(true, Relaxed);
    }
}
