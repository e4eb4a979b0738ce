//! What a connection is going to say: the one place where actors meet a socket.
//!
//! ```text
//! router ─ confirm, refuse, reply ─┐                                     take()
//! peers  ─ transmit ───────────────┼─► Outbox: one buffer, encoded once ────────► connection ─► socket
//! admin, observer ─ response, event┘     │  wakes the connection once
//!                                        └─ what else the connection must know: `News`
//! ```
//!
//! Constraints: a message costs one copy, from the record into the buffer; whoever calls never
//! waits; memory is bounded. Deliveries stop at [`DELIVERY_BYTES_MAX`] (the peer keeps what does not
//! fit, and is told when there is room). Everything else is bounded by what was asked for, and past
//! [`SAID_BYTES_MAX`] the connection of a reader that does not read is closed.

use bytes::BytesMut;
use parking_lot::Mutex;
use restante_actors::link::{Link, Outgoing, ProducerLink};
use restante_protocol::codec;
use restante_protocol::control::Control;
use restante_protocol::frame::{Confirm, Deliver, Refuse, Reply as CallReply, ReplyKind};
use restante_protocol::limits::RETURN_BYTES_MAX;
use restante_protocol::refusal::{Code, Refusal};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

/// Bytes that may wait for the socket before links are told that there is no room.
pub(super) const DELIVERY_BYTES_MAX: usize = 256 * 1024;
/// Bytes of everything but deliveries that may wait before the connection is given up.
pub(super) const SAID_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Beyond this many waiting bytes a watch falls behind instead of waiting with them.
pub(super) const EVENT_BYTES_MAX: usize = 2 * 1024 * 1024;

/// See the module. Shared by the connection, its links, and whoever it asked something.
pub(crate) struct Outbox {
    connection: u64,
    epoch: u32,
    closed: AtomicBool,
    /// Deliveries sent, and those the receiver has answered: how much a stopping node waits for.
    delivered: AtomicU64,
    settled: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    buffer: BytesMut,
    /// Bytes of the buffer that are no deliveries.
    said: usize,
    /// The same of what the connection took and has not written yet, and all of that.
    taken_said: usize,
    taken: usize,
    /// Where in the buffer the last frame ends that somebody waits for, and the same of what the
    /// connection took: events and heartbeats are for whoever listens.
    owed: usize,
    taken_owed: usize,
    /// A run of confirms that may still grow.
    run: Option<Confirm>,
    /// Links that were told that there is no room.
    congested: Vec<Congested>,
    news: News,
    /// No link may send: the node is stopping.
    held: bool,
    waker: Option<Waker>,
}

/// A link that waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Congested {
    pub(super) slot: u32,
    pub(super) number: u64,
}

/// What the connection learns when it looks.
#[derive(Default)]
pub(super) struct News {
    /// Outcomes that were told, and the bytes of their publishes.
    pub(super) told: (u64, u64),
    /// Refusals among them: how many, and the first.
    pub(super) refused: Option<(u64, Refuse)>,
    /// Links their peers have closed.
    pub(super) closed: Vec<Congested>,
    /// Somebody wants the connection closed, and why.
    pub(super) end: Option<Refusal>,
}

impl Outbox {
    pub(crate) fn new(connection: u64, epoch: u32) -> Arc<Outbox> {
        Arc::new(Outbox {
            connection,
            epoch,
            closed: AtomicBool::new(false),
            delivered: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            inner: Mutex::default(),
        })
    }

    /// The connection's number in this process.
    pub(crate) fn connection(&self) -> u64 {
        self.connection
    }

    /// Appends a control frame.
    ///
    /// # Errors
    /// Nothing was appended: the value is over the limit of a control frame.
    pub(super) fn say(&self, control: &Control) -> Result<(), codec::FrameError> {
        self.append(|buffer| codec::put_control(buffer, control)).unwrap_or(Ok(()))
    }

    /// Appends an event; `false` when the connection is gone, or the event is longer than a frame.
    pub(super) fn say_event(&self, event: &Control) -> bool {
        let said = self.append_unowed(|buffer| codec::put_control(buffer, event));
        said.is_some_and(|said| said.is_ok())
    }

    /// Whether an event may be said now: they may not wait with many others.
    pub(super) fn has_event_room(&self) -> bool {
        let inner = self.inner.lock();
        inner.said + inner.taken_said <= EVENT_BYTES_MAX
    }

    pub(super) fn heartbeat(&self) {
        self.append_unowed(codec::put_heartbeat);
    }

    /// Asks the connection to say why and close. The first reason stands.
    pub(crate) fn end(&self, why: Refusal) {
        let mut inner = self.inner.lock();
        inner.news.end.get_or_insert(why);
        inner.wake();
    }

    /// Sends no more deliveries; what is out may still be acked.
    pub(crate) fn hold_deliveries(&self) {
        self.inner.lock().held = true;
    }

    /// Deliveries that have not been answered, about.
    pub(crate) fn unacked(&self) -> u64 {
        self.delivered.load(Relaxed).saturating_sub(self.settled.load(Relaxed))
    }

    /// Whether something is out that the other side has not answered, or not even got. Events do not
    /// count: a watch that has stalled would hold a stopping node up for as long as that waits at all.
    pub(crate) fn is_busy(&self) -> bool {
        let owes = {
            let inner = self.inner.lock();
            inner.owed > 0 || inner.taken_owed > 0 || inner.run.is_some()
        };
        owes || self.unacked() > 0
    }

    /// The receiver has answered deliveries.
    pub(super) fn note_settled(&self, deliveries: u64) {
        let settled = self.settled.load(Relaxed).saturating_add(deliveries);
        self.settled.store(settled.min(self.delivered.load(Relaxed)), Relaxed);
    }

    /// A link ended with deliveries unanswered: nobody waits for them any more.
    pub(super) fn forgive_unsettled(&self) {
        self.settled.store(self.delivered.load(Relaxed), Relaxed);
    }

    /// Wakes this task when there is something new, and says what is new now.
    pub(super) fn listen(&self, waker: &Waker) -> News {
        let mut inner = self.inner.lock();
        if !inner.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            inner.waker = Some(waker.clone());
        }
        std::mem::take(&mut inner.news)
    }

    /// Hands over what waits for the socket, if anything does, for an empty buffer.
    pub(super) fn take(&self, empty: &mut BytesMut) -> bool {
        debug_assert!(empty.is_empty(), "what was taken before is written first");
        let mut inner = self.inner.lock();
        inner.close_run();
        inner.taken = inner.buffer.len();
        inner.taken_said = std::mem::take(&mut inner.said);
        inner.taken_owed = std::mem::take(&mut inner.owed);
        std::mem::swap(&mut inner.buffer, empty);
        inner.taken > 0
    }

    /// Bytes of what was taken have been written. Links are named once half the room is free.
    pub(super) fn wrote(&self, bytes: usize) -> Vec<Congested> {
        let mut inner = self.inner.lock();
        inner.taken -= bytes;
        inner.taken_owed = inner.taken_owed.saturating_sub(bytes);
        if inner.taken == 0 {
            inner.taken_said = 0;
        }
        if inner.congested.is_empty() || inner.held || inner.waiting() > DELIVERY_BYTES_MAX / 2 {
            return Vec::new();
        }
        let mut congested = std::mem::take(&mut inner.congested);
        // Who was first to find no room is last to be called next time: one busy peer must not take
        // all the room of a connection it shares.
        congested.rotate_left(1);
        congested
    }

    /// Gives the buffer's memory back while nothing is said.
    pub(super) fn shrink(&self) {
        let mut inner = self.inner.lock();
        if inner.buffer.is_empty() {
            inner.buffer = BytesMut::new();
        }
    }

    /// The connection is gone: nothing said from here on is kept.
    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
        let mut inner = self.inner.lock();
        *inner = Inner::default();
    }

    /// Appends a frame that is no delivery, unless the connection is gone.
    fn append<R>(&self, put: impl FnOnce(&mut BytesMut) -> R) -> Option<R> {
        if self.closed.load(Relaxed) {
            return None;
        }
        let mut inner = self.inner.lock();
        inner.close_run();
        Some(inner.say_owed(put))
    }

    /// The same for a frame that nobody waits for.
    fn append_unowed<R>(&self, put: impl FnOnce(&mut BytesMut) -> R) -> Option<R> {
        if self.closed.load(Relaxed) {
            return None;
        }
        let mut inner = self.inner.lock();
        inner.close_run();
        Some(inner.say(put))
    }
}

impl Inner {
    fn waiting(&self) -> usize {
        self.buffer.len() + self.taken
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn say<R>(&mut self, put: impl FnOnce(&mut BytesMut) -> R) -> R {
        let before = self.buffer.len();
        let result = put(&mut self.buffer);
        self.said += self.buffer.len() - before;
        if self.said + self.taken_said > SAID_BYTES_MAX {
            self.news.end.get_or_insert_with(|| {
                Refusal::new(
                    Code::Overloaded,
                    format!("more than {SAID_BYTES_MAX} bytes of answers wait unread"),
                )
            });
        }
        self.wake();
        result
    }

    /// Writes the run of confirms out. It is put off until something else is said or the socket is
    /// ready, because the next run often continues it.
    fn close_run(&mut self) {
        if let Some(run) = self.run.take() {
            self.say_owed(|buffer| codec::put_confirm(buffer, &run));
        }
    }

    fn say_owed<R>(&mut self, put: impl FnOnce(&mut BytesMut) -> R) -> R {
        let result = self.say(put);
        self.owed = self.buffer.len();
        result
    }
}

impl ProducerLink for Outbox {
    fn confirm(&self, confirm: Confirm, bytes: u64) {
        if self.closed.load(Relaxed) {
            return;
        }
        let mut inner = self.inner.lock();
        inner.news.told.0 += u64::from(confirm.count);
        inner.news.told.1 += bytes;
        match &mut inner.run {
            Some(run) if continues(run, &confirm) => run.count += confirm.count,
            _ => {
                inner.close_run();
                inner.run = Some(confirm);
            }
        }
        inner.wake();
    }

    fn refuse(&self, refuse: &Refuse, bytes: u64) {
        self.append(|buffer| codec::put_refuse(buffer, refuse));
        let mut inner = self.inner.lock();
        inner.news.told.0 += 1;
        inner.news.told.1 += bytes;
        match &mut inner.news.refused {
            Some((count, _)) => *count += 1,
            none => *none = Some((1, refuse.clone())),
        }
    }

    fn reply(&self, sequence: u64, kind: ReplyKind, value: &[u8]) {
        let value = &value[..value.len().min(RETURN_BYTES_MAX)];
        let reply = CallReply { sequence, kind, value };
        let put = self.append(|buffer| codec::put_reply(buffer, &reply));
        debug_assert!(put.is_none_or(|put| put.is_ok()), "the value was cut to its limit");
    }

    fn supersede(&self) {
        self.end(Refusal::new(
            Code::ProducerSuperseded,
            "a newer connection said hello with this producer identity",
        ));
    }

    fn abandon(&self, why: &Refusal) {
        self.end(why.clone());
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }
}

/// Whether two runs are one: sequences and ids both go on.
fn continues(run: &Confirm, next: &Confirm) -> bool {
    let count = u64::from(run.count);
    run.first_sequence.checked_add(count) == Some(next.first_sequence)
        && run.first_id.0.checked_add(u128::from(count)) == Some(next.first_id.0)
        && run.count.checked_add(next.count).is_some()
}

/// One attachment of a connection, as its peer uses it.
pub(super) struct OutboxLink {
    outbox: Arc<Outbox>,
    slot: u32,
    number: u64,
    /// A dialled connection exists for its one link and ends with it.
    dialled: bool,
    /// The receiver has not been told yet that it is attached.
    early: AtomicBool,
    /// Why the peer has closed it before that: the answer to the attach says so.
    refused: OnceLock<Refusal>,
    congested: AtomicBool,
    closed: AtomicBool,
}

impl OutboxLink {
    /// A link that has no room before [`OutboxLink::open`], so that no delivery can reach the
    /// receiver before the answer to its attach does.
    pub(super) fn attached(outbox: &Arc<Outbox>, slot: u32, number: u64) -> Arc<OutboxLink> {
        OutboxLink::new(outbox, slot, number, false)
    }

    /// The link of a connection that was dialled for it.
    pub(super) fn dialled(outbox: &Arc<Outbox>, number: u64) -> Arc<OutboxLink> {
        OutboxLink::new(outbox, 0, number, true)
    }

    fn new(outbox: &Arc<Outbox>, slot: u32, number: u64, dialled: bool) -> Arc<OutboxLink> {
        Arc::new(OutboxLink {
            outbox: Arc::clone(outbox),
            slot,
            number,
            dialled,
            early: AtomicBool::new(!dialled),
            refused: OnceLock::new(),
            congested: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Lets deliveries through. `true`: the peer has found no room and waits to hear that there is.
    pub(super) fn open(&self) -> bool {
        self.early.store(false, Relaxed);
        self.congested.swap(false, Relaxed)
    }

    /// Why its peer has closed it again before the receiver was told that it is attached.
    pub(super) fn refused(&self) -> Option<&Refusal> {
        self.refused.get()
    }

    /// The peer is being told that there is room.
    pub(super) fn note_writable(&self) {
        self.congested.store(false, Relaxed);
    }

    /// Ends the link from the connection's side.
    pub(super) fn shut(&self) {
        self.closed.store(true, Relaxed);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Relaxed) || self.outbox.closed.load(Relaxed)
    }
}

impl Link for OutboxLink {
    fn room(&self) -> usize {
        if self.is_closed() {
            return 0;
        }
        let mut inner = self.outbox.inner.lock();
        let early = self.early.load(Relaxed);
        let room = DELIVERY_BYTES_MAX.saturating_sub(inner.waiting());
        if room > 0 && !early && !inner.held {
            return room;
        }
        let known = self.congested.swap(true, Relaxed);
        if !known && !early {
            inner.congested.push(Congested { slot: self.slot, number: self.number });
        }
        0
    }

    fn transmit(&self, batch: &mut dyn Iterator<Item = Outgoing<'_>>) {
        if self.is_closed() {
            return;
        }
        let mut inner = self.outbox.inner.lock();
        let mut count = 0;
        for outgoing in batch {
            count += 1;
            let deliver = Deliver {
                redelivered: outgoing.redelivered,
                attempt: outgoing.attempt,
                slot: self.slot,
                tag: outgoing.tag,
                epoch: self.outbox.epoch,
                id: outgoing.id,
                body: outgoing.body,
            };
            codec::put_deliver(&mut inner.buffer, &deliver);
        }
        inner.owed = inner.buffer.len();
        self.outbox.delivered.fetch_add(count, Relaxed);
        inner.wake();
    }

    fn close(&self, why: &Refusal) {
        if self.is_closed() {
            return;
        }
        self.shut();
        if self.dialled {
            self.outbox.end(why.clone());
            return;
        }
        if self.early.load(Relaxed) {
            // Nothing ends for the receiver that it has not heard of: the answer to its attach
            // may wait for other peers yet, and would come behind this.
            let _ = self.refused.set(why.clone());
            return;
        }
        let detached = Control::Detached { slot: self.slot, reason: why.clone() };
        if self.outbox.say(&detached).is_err() {
            debug_assert!(false, "a refusal fits a control frame");
        }
        let mut inner = self.outbox.inner.lock();
        inner.news.closed.push(Congested { slot: self.slot, number: self.number });
    }
}

#[cfg(test)]
mod tests;
