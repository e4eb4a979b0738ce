//! The publishing half of a client, shared between those who publish, those who await outcomes and
//! the connection's driver: the [`Producer`] core with its aliases, and who waits for what.

use crate::aliases::Aliases;
use crate::doorbell::{Doorbell, Wakes};
use crate::error::{EndReason, PublishError, Refused, Violation};
use crate::options::BufferBounds;
use crate::producer::{IdentityShared, Producer, ReceiptKey};
use crate::publish::{Confirmed, Publish, Receivers, Route};
use bytes::BytesMut;
use parking_lot::Mutex;
use restante_protocol::codec::{put_control, put_message};
use restante_protocol::control::{Control, Credit, Welcome};
use restante_protocol::frame::{
    Confirm, PUBLISH_FIXED_BYTES, Refuse, Reply, ReplyKind, publish_flags,
};
pub(crate) use restante_protocol::limits::CALLS_MAX;
use restante_protocol::limits::RECEIVERS_MAX;
use restante_protocol::message::Body;
use restante_protocol::name::Name;
use restante_protocol::refusal::Code;
use slab::Slab;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::sync::{Notify, oneshot};

/// What came back for a call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) kind: ReplyKind,
    pub(crate) value: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Outbox {
    /// Tells this outbox's routes from those of others.
    id: u64,
    state: Mutex<State>,
    /// Woken when there is room again, or never will be.
    pub(crate) room: Notify,
    /// Woken when nothing is unconfirmed.
    pub(crate) idle: Notify,
    bell: Arc<Doorbell>,
}

#[derive(Debug)]
struct State {
    producer: Producer,
    aliases: Aliases,
    receipts: Slab<Await>,
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    /// Calls that nobody awaits any more, of which the node is still to be told; no more than are under
    /// way or in the buffer.
    cancelled: Vec<u64>,
    /// From the last welcome.
    payload_bytes_max: u64,
    mode: Mode,
    /// Whether somebody waits for room.
    crowded: bool,
}

#[derive(Debug)]
enum Mode {
    /// No producer identity.
    Mute,
    Open,
    Draining,
    Ended(EndReason),
}

/// Who waits for an outcome, or the outcome that waits for its owner.
#[derive(Debug)]
enum Await {
    Pending(Option<Waker>),
    Done(Result<Confirmed, PublishError>),
    /// The receipt was dropped; the entry goes with the outcome.
    Forgotten,
}

impl Outbox {
    pub(crate) fn new(publishes: bool, bounds: BufferBounds, bell: Arc<Doorbell>) -> Outbox {
        Outbox {
            id: rand::random(),
            state: Mutex::new(State {
                producer: Producer::new(bounds),
                aliases: Aliases::default(),
                receipts: Slab::new(),
                calls: HashMap::new(),
                cancelled: Vec::new(),
                payload_bytes_max: 0,
                mode: if publishes { Mode::Open } else { Mode::Mute },
                crowded: false,
            }),
            room: Notify::new(),
            idle: Notify::new(),
            bell,
        }
    }

    /// Takes a publish into the buffer, or says why not. Returns its receipt and sequence.
    pub(crate) fn try_publish(
        &self,
        publish: &Publish,
        call: &mut Option<oneshot::Sender<Answer>>,
    ) -> Result<(ReceiptKey, u64), PublishError> {
        let headers = publish.encoded_headers()?;
        let body = publish.body(headers.as_deref())?;
        let flags = if publish.all_or_nothing { publish_flags::ALL_OR_NOTHING } else { 0 };
        let taken = {
            let mut state = self.state.lock();
            state.check(&body)?;
            let (receipt, sequence) = match &publish.receivers {
                Receivers::Route(route) if route.outbox != self.id => {
                    return Err(PublishError::ForeignRoute);
                }
                Receivers::Route(route) if route.reuses == state.aliases.reuses() => {
                    state.push(&route.aliases, flags, &body)?
                }
                // Its numbers may stand for others by now.
                Receivers::Route(route) => {
                    let aliases = state.intern(&route.names)?;
                    state.push(&aliases, flags, &body)?
                }
                Receivers::Names(names) => {
                    let aliases = state.intern(names)?;
                    state.push(&aliases, flags, &body)?
                }
                Receivers::Bad(error) => return Err(error.as_ref().clone()),
            };
            if let Some(call) = call.take() {
                state.calls.insert(sequence, call);
            }
            (receipt, sequence)
        };
        self.bell.ring();
        Ok(taken)
    }

    /// As [`Outbox::try_publish`], but waits for room.
    pub(crate) async fn publish(
        &self,
        publish: &Publish,
        mut call: Option<oneshot::Sender<Answer>>,
    ) -> Result<(ReceiptKey, u64), PublishError> {
        loop {
            match self.try_publish(publish, &mut call) {
                Err(PublishError::Full) => {}
                outcome => return outcome,
            }
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            // Room that came between the attempt and `enable` is seen here.
            match self.try_publish(publish, &mut call) {
                Err(PublishError::Full) => room.await,
                outcome => return outcome,
            }
        }
    }

    pub(crate) fn route(&self, names: &[Name]) -> Result<Route, PublishError> {
        let mut state = self.state.lock();
        let aliases = state.intern(names)?;
        Ok(Route {
            outbox: self.id,
            reuses: state.aliases.reuses(),
            aliases: Arc::from(aliases.as_slice()),
            names: Arc::from(names),
        })
    }

    pub(crate) fn poll_outcome(
        &self,
        key: ReceiptKey,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Confirmed, PublishError>> {
        let mut state = self.state.lock();
        match state.receipts.get_mut(key as usize) {
            Some(Await::Pending(waker)) => {
                match waker {
                    Some(known) if known.will_wake(cx.waker()) => {}
                    _ => *waker = Some(cx.waker().clone()),
                }
                return Poll::Pending;
            }
            Some(Await::Done(_)) => {}
            // Not for a receipt that has neither given its outcome nor been dropped.
            Some(Await::Forgotten) | None => return Poll::Ready(Err(PublishError::OutcomeTaken)),
        }
        match state.receipts.remove(key as usize) {
            Await::Done(outcome) => Poll::Ready(outcome),
            _ => Poll::Pending,
        }
    }

    /// The receipt is gone; its publish goes on.
    pub(crate) fn forget(&self, key: ReceiptKey) {
        let mut state = self.state.lock();
        match state.receipts.get_mut(key as usize) {
            Some(awaited @ Await::Pending(_)) => *awaited = Await::Forgotten,
            Some(Await::Done(_)) => drop(state.receipts.remove(key as usize)),
            _ => {}
        }
    }

    /// Nobody awaits the answer to this call any more.
    pub(crate) fn forget_call(&self, sequence: u64) {
        let mut state = self.state.lock();
        let was_open = state.calls.remove(&sequence).is_some();
        if was_open && !matches!(state.mode, Mode::Ended(_)) {
            state.cancelled.push(sequence);
            drop(state);
            self.bell.ring();
        }
    }

    pub(crate) fn calls_full(&self) -> bool {
        self.state.lock().calls.len() >= CALLS_MAX
    }

    /// Takes no more publishes from here on.
    pub(crate) fn drain(&self) {
        let mut state = self.state.lock();
        if matches!(state.mode, Mode::Open) {
            state.mode = Mode::Draining;
        }
        drop(state);
        self.room.notify_waiters();
    }

    /// Resolves when nothing is unconfirmed.
    pub(crate) async fn settled(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.state.lock().producer.is_empty() {
                return;
            }
            idle.await;
        }
    }

    pub(crate) fn unconfirmed(&self) -> usize {
        self.state.lock().producer.unconfirmed()
    }

    pub(crate) fn handle_welcome(
        &self,
        welcome: &Welcome,
        first: bool,
    ) -> Result<(), IdentityShared> {
        let mut state = self.state.lock();
        if !matches!(state.mode, Mode::Mute) {
            state.producer.handle_welcome(welcome.next_sequence, welcome.credit, first)?;
        }
        Self::forget_cancelled(&mut state);
        let oldest = state.producer.oldest();
        state.aliases.handle_welcome(oldest);
        state.payload_bytes_max = welcome.payload_bytes_max;
        Ok(())
    }

    pub(crate) fn unused_from(&self) -> Option<u64> {
        self.state.lock().producer.unused_from()
    }

    pub(crate) fn handle_disconnect(&self) {
        self.state.lock().producer.handle_disconnect();
    }

    /// What the node had of a connection that has ended it has forgotten, but for what is sent again.
    fn forget_cancelled(state: &mut State) {
        let oldest = state.producer.oldest();
        state.cancelled.retain(|sequence| *sequence >= oldest);
    }

    pub(crate) fn handle_credit(&self, credit: Credit) {
        self.state.lock().producer.handle_credit(credit);
    }

    pub(crate) fn transmit(&self, out: &mut BytesMut, out_bytes_max: usize) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.aliases.transmit(out);
        state.producer.transmit(out, out_bytes_max);
        if !state.cancelled.is_empty() {
            // Not ahead of their calls.
            let unsent = state.producer.first_unsent();
            state.cancelled.retain(|sequence| {
                let goes = *sequence < unsent && out.len() < out_bytes_max;
                let cancel = Control::CancelCall { sequence: *sequence };
                !goes || put_control(out, &cancel).is_err()
            });
        }
    }

    pub(crate) fn handle_confirm(
        &self,
        confirm: &Confirm,
        wakes: &mut Wakes,
    ) -> Result<(), Violation> {
        let mut state = self.state.lock();
        let State { producer, receipts, .. } = &mut *state;
        let Confirm { first_sequence, count, first_id } = *confirm;
        producer.handle_confirm(first_sequence, count, first_id, |receipt, id| {
            let confirmed = Confirmed { id, refused: Vec::new(), detail: String::new() };
            resolve(receipts, receipt, Ok(confirmed), wakes);
        })?;
        self.after_progress(&mut state);
        Ok(())
    }

    pub(crate) fn handle_refuse(&self, refuse: Refuse, wakes: &mut Wakes) -> Result<(), Violation> {
        let mut state = self.state.lock();
        let Refuse { sequence, id, code, receivers, members, detail } = refuse;
        if code == Code::ShuttingDown && id.is_none() {
            // Not decided: the node that follows judges it afresh.
            state.producer.hold();
            return Ok(());
        }
        for (alias, code) in &receivers {
            if matches!(code, Code::StaleAlias | Code::UnknownReceiver) {
                state.aliases.handle_stale(*alias);
            }
        }
        let Some(receipt) = state.producer.handle_refuse(sequence)? else { return Ok(()) };
        let refused = receivers
            .iter()
            .filter_map(|(alias, code)| Some((state.aliases.name(*alias)?.clone(), *code)))
            .chain(members.into_iter().map(|(_, code, name)| (name, code)))
            .collect();
        let outcome = match (id, code) {
            (Some(id), _) => Ok(Confirmed { id, refused, detail }),
            (None, Code::OutcomeEvicted) => Err(PublishError::OutcomeUnknown { sequence }),
            (None, _) => {
                state.calls.remove(&sequence);
                let refused = Refused { code, receivers: refused, detail };
                Err(PublishError::Refused(Box::new(refused)))
            }
        };
        resolve(&mut state.receipts, receipt, outcome, wakes);
        self.after_progress(&mut state);
        Ok(())
    }

    pub(crate) fn handle_reply(&self, reply: &Reply<'_>) {
        // Nobody waits: the call timed out or was dropped.
        let Some(call) = self.state.lock().calls.remove(&reply.sequence) else { return };
        // An answer that comes too late goes to nobody, as its caller chose.
        drop(call.send(Answer { kind: reply.kind, value: reply.value.to_vec() }));
    }

    /// The client is over: every publish without an outcome learns it.
    pub(crate) fn end(&self, reason: &EndReason, wakes: &mut Wakes) {
        let mut state = self.state.lock();
        let State { producer, receipts, calls, mode, .. } = &mut *state;
        *mode = Mode::Ended(reason.clone());
        producer.abandon(|receipt, sequence| {
            let ended = PublishError::Ended { sequence, reason: reason.clone() };
            resolve(receipts, receipt, Err(ended), wakes);
        });
        calls.clear();
        drop(state);
        self.room.notify_waiters();
        self.idle.notify_waiters();
    }

    fn after_progress(&self, state: &mut State) {
        if state.crowded && state.producer.has_ample_room() {
            state.crowded = false;
            self.room.notify_waiters();
        }
        if state.producer.is_empty() {
            self.idle.notify_waiters();
        }
    }
}

impl State {
    fn check(&self, body: &Body<'_>) -> Result<(), PublishError> {
        match &self.mode {
            Mode::Open => {}
            Mode::Mute => return Err(PublishError::NotAProducer),
            Mode::Draining => return Err(PublishError::Draining),
            Mode::Ended(reason) => return Err(PublishError::NotSent(reason.clone())),
        }
        let (bytes, max) = (body.payload.len(), self.payload_bytes_max);
        if bytes as u64 > max {
            return Err(PublishError::TooLarge { bytes, max });
        }
        Ok(())
    }

    fn intern(&mut self, names: &[Name]) -> Result<SmallVec<[u32; 8]>, PublishError> {
        check_count(names.len())?;
        let (oldest, next) = (self.producer.oldest(), self.producer.next_sequence());
        let mut intern = |name| self.aliases.intern(name, oldest, next);
        names.iter().map(|name| intern(name).ok_or(PublishError::TooManyNames)).collect()
    }

    fn push(
        &mut self,
        aliases: &[u32],
        flags: u8,
        body: &Body<'_>,
    ) -> Result<(ReceiptKey, u64), PublishError> {
        let bytes = PUBLISH_FIXED_BYTES + 4 * aliases.len() + body.encoded_len();
        if !self.producer.has_room(bytes) {
            self.crowded = true;
            return Err(PublishError::Full);
        }
        let key = self.receipts.insert(Await::Pending(None));
        let receipt = ReceiptKey::try_from(key).map_err(|_| PublishError::Full)?;
        let sequence = self.producer.push(receipt, bytes, |sequence, out| {
            put_message(out, flags, sequence, aliases, body);
        });
        for alias in aliases {
            self.aliases.handle_use(*alias, sequence);
        }
        Ok((receipt, sequence))
    }
}

fn check_count(count: usize) -> Result<(), PublishError> {
    match count {
        0 => Err(PublishError::NoReceiver),
        1..=RECEIVERS_MAX => Ok(()),
        _ => Err(PublishError::TooManyReceivers { count, max: RECEIVERS_MAX }),
    }
}

fn resolve(
    receipts: &mut Slab<Await>,
    receipt: ReceiptKey,
    outcome: Result<Confirmed, PublishError>,
    wakes: &mut Wakes,
) {
    let key = receipt as usize;
    match receipts.get_mut(key) {
        Some(Await::Forgotten) => drop(receipts.remove(key)),
        Some(awaited) => {
            if let Await::Pending(Some(waker)) = std::mem::replace(awaited, Await::Done(outcome)) {
                wakes.push(waker);
            }
        }
        None => {}
    }
}
