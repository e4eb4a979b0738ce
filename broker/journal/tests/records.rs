//! What the actors tell the journal, and in which order: whatever a crash leaves of a log, nothing in
//! it may say that a message is done before something says where it went.
//!
//! The actors and the journal are the real ones. Between them stands [`Watched`], which hands
//! everything on and complains when a record comes too early.
#![cfg(test)]

use actix::Addr;
use actix_rt::{Arbiter, System};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use restante_actors::journal::{
    Admission, Backlog, BackupTaken, Batch, Caps, Commits, End, Journal, Life, LookupError, Opened,
    Page, Read, ReadError, Settle, Ticket,
};
use restante_actors::link::{DialTarget, Dialer, Link, Outgoing, ProducerLink, SharedProducer};
use restante_actors::peer::{Acked, Barrier, LinkUp, Nacked, Peer};
use restante_actors::router::{
    Administer, FlushSettles, OpenProducer, PublishBatch, PublishItem, Receiver,
};
use restante_actors::{Handles, Limits, link_number};
use restante_journal::Options;
use restante_protocol::admin::{AdminCommand, PeerPatch, PeerUrl, Waiting};
use restante_protocol::frame::{Confirm, Refuse, ReplyKind, TagRange};
use restante_protocol::id::{MessageId, MessageNumber, PeerId, ProducerId};
use restante_protocol::message::Body;
use restante_protocol::record::{
    MessageRecord, Outcome, ParkRecord, RECORD_HEADER_BYTES, RecordKind,
};
use restante_protocol::refusal::Refusal;
use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A journal whose caller is watched.
struct Watched {
    journal: Arc<dyn Journal>,
    seen: Arc<Mutex<Seen>>,
    /// Told of every settle.
    settles: UnboundedSender<Settle>,
}

/// What has been recorded so far.
#[derive(Default)]
struct Seen {
    /// Neither settled nor parked.
    open: BTreeSet<(PeerId, MessageNumber)>,
    parks: usize,
    /// Appends on their way to disk, and the number behind each.
    appended: VecDeque<(Ticket, MessageNumber)>,
    /// Every lower number is durable.
    durable: MessageNumber,
    complaints: Vec<String>,
}

impl Seen {
    fn settle(&mut self, settle: &Settle) {
        let record = &settle.record;
        for number in settle.numbers.iter().chain(&record.above) {
            self.open.remove(&(record.peer, *number));
        }
        let below = (record.peer, 0)..=(record.peer, record.floor);
        for (peer, number) in self.open.range(below) {
            let why = format!("{peer:?} {number} is neither settled nor parked, and below a floor");
            self.complaints.push(why);
        }
        if record.outcome == Outcome::Moved {
            for detail in &record.details {
                let copy = detail.value.first_chunk().map(|copy| u64::from_be_bytes(*copy));
                if copy.is_none_or(|copy| copy >= self.durable) {
                    let why = format!("{} has moved, its copy {copy:?} may be lost", detail.number);
                    self.complaints.push(why);
                }
            }
        }
    }
}

impl Journal for Watched {
    fn caps(&self) -> Caps {
        self.journal.caps()
    }

    fn admission(&self) -> Admission {
        self.journal.admission()
    }

    fn next_number(&self) -> MessageNumber {
        self.journal.next_number()
    }

    fn oldest_number(&self) -> MessageNumber {
        self.journal.oldest_number()
    }

    fn append(&self, batch: Batch) -> Result<(Ticket, MessageNumber), (Batch, Refusal)> {
        let mut messages = Vec::new();
        for (record, place) in batch.records.iter().zip(0u64..) {
            let from = record.offset as usize + RECORD_HEADER_BYTES;
            let body = &batch.bytes[from..from + record.body_len as usize];
            if record.kind == RecordKind::Message {
                let message = MessageRecord::parse(body).expect("a message");
                messages.extend(message.peers().map(|peer| (peer, place)));
            }
        }
        let records = batch.records.len() as u64;
        // Held meanwhile, so that no completion comes before it is expected.
        let mut seen = self.seen.lock();
        let (ticket, first) = self.journal.append(batch)?;
        seen.open.extend(messages.into_iter().map(|(peer, place)| (peer, first + place)));
        seen.appended.push_back((ticket, first + records));
        Ok((ticket, first))
    }

    fn settle(&self, settle: Settle) {
        self.seen.lock().settle(&settle);
        self.journal.settle(settle.clone());
        self.settles.send(settle).expect("the test listens");
    }

    fn park(&self, park: ParkRecord) {
        let mut seen = self.seen.lock();
        seen.open.remove(&(park.peer, park.number));
        seen.parks += 1;
        drop(seen);
        self.journal.park(park);
    }

    fn flush(&self, token: u64) {
        self.journal.flush(token);
    }

    fn checkpoint(&self, state: Bytes) {
        self.journal.checkpoint(state);
    }

    fn next(&self, read: Read) -> BoxFuture<'static, Result<Page, ReadError>> {
        self.journal.next(read)
    }

    fn backlog(&self, peer: PeerId) -> Backlog {
        self.journal.backlog(peer)
    }

    fn lookup(&self, number: MessageNumber) -> BoxFuture<'static, Result<Life, LookupError>> {
        self.journal.lookup(number)
    }

    fn backup(&self, dir: PathBuf) -> BoxFuture<'static, Result<BackupTaken, Refusal>> {
        self.journal.backup(dir)
    }

    fn commits(&self) -> Commits {
        self.journal.commits()
    }

    fn disk_bytes(&self) -> u64 {
        self.journal.disk_bytes()
    }

    fn close(&self) {
        self.journal.close();
    }
}

/// Nobody is dialled here.
struct NoDialer;

impl Dialer for NoDialer {
    fn dial(&self, _: DialTarget, _: Addr<Peer>) {}
}

/// A receiver's connection: deliveries come out of the channel, by tag and id.
struct Wire(UnboundedSender<Delivered>);

struct Delivered {
    tag: u64,
    id: MessageId,
}

impl Link for Wire {
    fn room(&self) -> usize {
        1 << 20
    }

    fn transmit(&self, batch: &mut dyn Iterator<Item = Outgoing<'_>>) {
        for Outgoing { tag, id, .. } in batch {
            let _ = self.0.send(Delivered { tag, id });
        }
    }

    fn close(&self, _: &Refusal) {}
}

/// A producer's connection: confirms come out of the channel.
struct Producer(UnboundedSender<Confirm>);

impl ProducerLink for Producer {
    fn confirm(&self, confirm: Confirm, _: u64) {
        let _ = self.0.send(confirm);
    }

    fn refuse(&self, refuse: &Refuse, _: u64) {
        panic!("{refuse:?}");
    }

    fn reply(&self, _: u64, _: ReplyKind, _: &[u8]) {}

    fn supersede(&self) {}

    fn abandon(&self, why: &Refusal) {
        panic!("{why}");
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// Actors over a watched journal.
struct Rig {
    handles: Handles,
    seen: Arc<Mutex<Seen>>,
    settles: UnboundedReceiver<Settle>,
    journal: Arc<dyn Journal>,
    second: Arbiter,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn start() -> Rig {
        let dir = tempfile::tempdir().expect("a directory");
        let options = Options { segment_bytes: 1 << 20, ..Options::default() };
        let opened = restante_journal::open(dir.path(), options).expect("an empty directory");
        let Opened { journal, mut completions, recovered } = opened;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (tell, settles) = unbounded_channel();
        let watched = Watched { journal, seen: Arc::clone(&seen), settles: tell };
        let journal: Arc<dyn Journal> = Arc::new(watched);
        let (forward, forwarded) = unbounded_channel();
        let told = Arc::clone(&seen);
        actix_rt::spawn(async move {
            while let Some(completion) = completions.recv().await {
                if matches!(completion.end, End::Durable(_)) {
                    let mut seen = told.lock();
                    let (ticket, next) = seen.appended.pop_front().expect("it was appended");
                    assert_eq!(ticket, completion.ticket);
                    seen.durable = next;
                }
                if forward.send(completion).is_err() {
                    return;
                }
            }
        });
        let watched = Arc::clone(&journal);
        let opened = Opened { journal: watched, completions: forwarded, recovered };
        let second = Arbiter::new();
        let set_log_filter = Arc::new(|_: &str| Ok(()));
        let (limits, dialer) = (Limits::default(), Arc::new(NoDialer));
        let handles =
            restante_actors::start(opened, limits, dialer, &second.handle(), set_log_filter)
                .expect("they start");
        Rig { handles, seen, settles, journal, second, _dir: dir }
    }

    async fn administer(&self, command: AdminCommand) -> PeerId {
        let by = "test".to_owned();
        let done = self.handles.router.send(Administer { command, by }).await;
        done.expect("a router").expect("it is done").id
    }

    /// A peer that parks whatever is refused.
    async fn add(&self, name: &str) -> PeerId {
        let name = name.parse().expect("a name");
        let settings = PeerPatch { retry_schedule_ms: Some(Vec::new()), ..PeerPatch::default() };
        self.administer(AdminCommand::PeerAdd { name, url: PeerUrl::Attach, settings }).await
    }

    /// Publishes messages to a peer and waits until they are durable.
    async fn publish(&self, peer: PeerId, count: u32) {
        let (confirm, mut confirmed) = unbounded_channel();
        let from: SharedProducer = Arc::new(Producer(confirm));
        let open = OpenProducer { id: ProducerId(7), unused_from: None, from: Arc::clone(&from) };
        let opened = self.handles.router.send(open).await.expect("a router").expect("a session");
        let mut chunk = Vec::new();
        Body { payload: b"what it says", ..Body::default() }.encode(&mut chunk);
        let (body_len, first) = (chunk.len() as u32, opened.next_sequence);
        let item = |nth: u32| PublishItem {
            sequence: first + u64::from(nth),
            flags: 0,
            receivers: 1,
            body_at: 0,
            body_len,
            frame_len: body_len,
            refusal: None,
        };
        let batch = PublishBatch {
            from,
            producer: opened.session,
            chunk: chunk.into(),
            items: (0..count).map(item).collect(),
            receivers: vec![Receiver { alias: 1, peer }; count as usize],
        };
        self.handles.router.send(batch).await.expect("a router");
        let mut durable = 0;
        while durable < count {
            durable += confirmed.recv().await.expect("a confirm").count;
        }
    }

    /// Attaches a receiver; what it is sent, and the number of the link.
    async fn attach(&self, peer: PeerId) -> (UnboundedReceiver<Delivered>, u64) {
        let (wire, deliveries) = unbounded_channel();
        let (link, number) = (Arc::new(Wire(wire)), link_number());
        let up = LinkUp { link, number, dialled: false, grant: None };
        let seat = self.handles.directory.seat(peer).expect("a seat");
        seat.addr.send(up).await.expect("a peer").expect("it is free");
        (deliveries, number)
    }

    fn addr(&self, peer: PeerId) -> Addr<Peer> {
        self.handles.directory.seat(peer).expect("a seat").addr.clone()
    }

    /// Ends everything; what was to be complained about.
    async fn end(self) -> Vec<String> {
        self.handles.router.send(FlushSettles).await.expect("a router").expect("flushed");
        let journal = self.journal;
        tokio::task::spawn_blocking(move || journal.close()).await.expect("it closes");
        self.second.stop();
        std::mem::take(&mut self.seen.lock().complaints)
    }
}

#[test]
fn no_floor_covers_a_message_before_it_is_known_to_be_parked() {
    System::new().block_on(async {
        let rig = Rig::start();
        let peer = rig.add("picky").await;
        rig.publish(peer, 100).await;
        let (mut deliveries, number) = rig.attach(peer).await;
        let addr = rig.addr(peer);
        let ack = |first: &Delivered, last: &Delivered| {
            let range = TagRange { first: first.tag, last: last.tag };
            addr.try_send(Acked { number, ranges: [range].into_iter().collect() }).expect("room");
        };
        // It is tried with one at first, and gets more as it acks.
        let sent = loop {
            let mut sent = vec![deliveries.recv().await.expect("a delivery")];
            while let Ok(more) = deliveries.try_recv() {
                sent.push(more);
            }
            if sent.len() > 2 {
                break sent;
            }
            ack(&sent[0], &sent[sent.len() - 1]);
        };
        // All in one turn of the actor: the first is parked, and a floor comes to lie above it.
        let (tag, permanent, retry_after_ms) = (sent[0].tag, true, 0);
        let reason = "never".to_owned();
        addr.try_send(Nacked { number, tag, permanent, retry_after_ms, reason }).expect("room");
        ack(&sent[1], &sent[sent.len() - 1]);
        addr.send(Barrier).await.expect("a peer");
        let backlog = rig.journal.backlog(peer);
        assert_eq!(backlog.parked, 1);
        assert!(backlog.floor > sent[0].id.number(), "the floor lies above what was parked");
        assert_eq!(rig.seen.lock().parks, 1);
        assert_eq!(rig.end().await, Vec::<String>::new());
    });
}

#[test]
fn what_is_handed_over_is_settled_once_its_copies_are_durable() {
    System::new().block_on(async {
        let mut rig = Rig::start();
        let (gone, heir) = (rig.add("gone").await, rig.add("heir").await);
        rig.publish(gone, 2_000).await;
        rig.administer(AdminCommand::PeerRemove {
            name: "gone".parse().expect("a name"),
            if_version: None,
            waiting: Some(Waiting::HandTo("heir".parse().expect("a name"))),
        })
        .await;
        let mut moved = 0;
        while moved < 2_000 {
            moved += rig.settles.recv().await.expect("a settle").numbers.len();
        }
        let (left, inherited) = (rig.journal.backlog(gone), rig.journal.backlog(heir));
        assert_eq!((left.messages, left.parked, inherited.messages), (0, 0, 2_000));
        assert_eq!(rig.end().await, Vec::<String>::new());
    });
}
