//! What becomes of the messages of a removed peer: deleted with a ledger record each, handed to
//! another peer under their ids, or left where they are. Works through the backlog a page at a time
//! between the router's other turns; a restart goes on where it was.

use super::Router;
use super::batch::{Building, Outcome};
use super::publish::record_room;
use crate::clock;
use crate::events;
use crate::journal::{Lane, Page, Read, ReadError, Settle, Stored};
use crate::peer::EnqueuedMessage;
use actix::prelude::*;
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::message::{Body, body_flags};
use restante_protocol::record::{
    Outcome as End, ParkRecord, RECORD_HEADER_BYTES, RecordKind, SettleDetail, SettleRecord,
    put_message_record,
};
use restante_protocol::registry::{AdminEvent, Destination};
use restante_protocol::state::StateEvent;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Messages and bytes worked on in one turn.
const PAGE_MESSAGES: usize = 1_024;
const PAGE_BYTES: usize = 1024 * 1024;
/// What a message's body grows by at most when it is copied: its original id.
const COPY_BYTES: usize = 16;
/// How long to wait after the journal could not be read or written.
const RETRY: Duration = Duration::from_secs(1);

/// What becomes of a message's time to live in its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It goes on, from when the message was first accepted.
    Same,
    /// It is over and done with: the copy has none.
    New,
}

/// How far a disposal has come.
pub(super) struct Disposal {
    id: PeerId,
    by: String,
    lane: Lane,
    after: MessageNumber,
    /// Nothing of the peer lies above this number: it was removed before.
    through: MessageNumber,
    messages: u64,
}

/// A page whose copies are on their way to disk.
pub(super) struct Copies {
    disposal: Disposal,
    to: PeerId,
    /// What was copied, and the number of the first copy; the others follow.
    copied: Vec<MessageNumber>,
    first: MessageNumber,
}

impl Disposal {
    /// A page has been dealt with.
    fn go_past(&mut self, page: &Page) {
        self.messages += page.messages.len() as u64;
        self.after = page.through;
    }
}

impl Router {
    /// Begins, or goes on after a restart.
    pub(super) fn dispose(&mut self, id: PeerId, by: String, ctx: &mut Context<Self>) {
        self.end_calls(id);
        self.delays.retiring(id);
        let through = self.journal.next_number() - 1;
        self.dispose_page(
            Disposal { id, by, lane: Lane::Open, after: 0, through, messages: 0 },
            ctx,
        );
    }

    fn dispose_page(&mut self, disposal: Disposal, ctx: &mut Context<Self>) {
        let Some(destination) = self.state.registry.destination(disposal.id) else { return };
        if destination == Destination::Park {
            return self.disposed(disposal, destination, ctx);
        }
        let read = Read {
            peer: disposal.id,
            lane: disposal.lane,
            after: disposal.after,
            through: disposal.through,
            bytes_max: PAGE_BYTES,
            messages_max: PAGE_MESSAGES,
        };
        let page = self.journal.next(read).into_actor(self);
        ctx.spawn(page.map(move |page, router, ctx| {
            router.dispose_of(disposal, page, ctx);
        }));
    }

    fn dispose_of(
        &mut self,
        mut disposal: Disposal,
        page: Result<Page, ReadError>,
        ctx: &mut Context<Self>,
    ) {
        // The heir may have been removed while the page was read: nothing more is appended for it.
        let Some(destination) = self.state.registry.destination(disposal.id) else { return };
        let page = match page {
            Ok(page) => page,
            Err(ReadError::Damaged { number, detail }) => {
                self.dispose_of_damaged(&mut disposal, destination, number, &detail);
                Page { through: number, ..Page::default() }
            }
            // Nothing beyond is disposed of, nor is it said that all is: what cannot be read now would
            // be settled with it.
            Err(ReadError::Unavailable(_)) => return Self::dispose_later(disposal, ctx),
        };
        if page.messages.is_empty() && page.through >= disposal.through {
            match disposal.lane {
                Lane::Open => (disposal.lane, disposal.after) = (Lane::Parked, 0),
                Lane::Parked => return self.disposed(disposal, destination, ctx),
            }
            return self.dispose_page(disposal, ctx);
        }
        match destination {
            Destination::Park => return self.disposed(disposal, destination, ctx),
            Destination::Purge => self.purge(&disposal, &page),
            Destination::Peer(to) => return self.hand_over(disposal, to, page, ctx),
        }
        disposal.go_past(&page);
        self.dispose_page(disposal, ctx);
    }

    fn dispose_later(disposal: Disposal, ctx: &mut Context<Self>) {
        ctx.run_later(RETRY, move |router, ctx| router.dispose_page(disposal, ctx));
    }

    fn purge(&mut self, disposal: &Disposal, page: &Page) {
        let numbers = page.messages.iter().map(|stored| stored.number).collect();
        self.settle_page(disposal, numbers, End::Purged, PeerId::NONE, Vec::new());
    }

    /// Copies a page to another peer's queue. It is settled here once the copies are durable: a
    /// settle takes effect at once, and a checkpoint may say so before what was appended ahead of
    /// it is on disk. A crash in between hands the page over twice, under the same ids. What cannot
    /// be read is not moved but stays here, parked.
    fn hand_over(
        &mut self,
        mut disposal: Disposal,
        to: PeerId,
        mut page: Page,
        ctx: &mut Context<Self>,
    ) {
        self.append_building();
        self.building.accepted_ms = self.accepted_now();
        // What was parked has left the time it had to live behind.
        let life = if disposal.lane == Lane::Open { Life::Same } else { Life::New };
        let mut copied = Vec::with_capacity(page.messages.len());
        for (place, stored) in page.messages.iter().enumerate() {
            let (id, bytes) = (self.id(stored.accepted_ms, stored.number), copy_room(stored));
            if bytes > self.caps.record_bytes_max {
                let max = self.caps.record_bytes_max;
                let why = format!("a copy has {bytes} bytes, a record takes {max}");
                self.leave_behind(&disposal, stored.number, &why);
                continue;
            }
            if self.building.bytes.len() + bytes > self.caps.batch_bytes_max && !copied.is_empty() {
                // The rest is read again.
                page.through = stored.number - 1;
                page.messages.truncate(place);
                break;
            }
            if self.building.copy_to(to, id, stored, life) {
                copied.push(stored.number);
            } else {
                self.leave_behind(&disposal, stored.number, "it is not laid out as a message");
            }
        }
        if copied.is_empty() {
            self.building = Building::default();
            disposal.go_past(&page);
            return self.dispose_page(disposal, ctx);
        }
        self.gather_copies(to);
        // What the journal did not take has not moved.
        let Some(first) = self.append_building() else {
            return Self::dispose_later(disposal, ctx);
        };
        disposal.go_past(&page);
        let copies = Copies { disposal, to, copied, first };
        self.once_durable(Outcome::HandedOver(Box::new(copies)));
    }

    /// The copies of a page are on disk.
    pub(super) fn copies_durable(&mut self, copies: Copies, ctx: &mut Context<Self>) {
        let Copies { disposal, to, copied, first } = copies;
        // The copies' numbers go into the ledger, so that a trace can follow the message.
        let details = copied.iter().zip(first..).map(|(number, copy)| SettleDetail {
            number: *number,
            attempts: 0,
            value: copy.to_be_bytes().to_vec(),
        });
        let details = details.collect();
        self.settle_page(&disposal, copied, End::Moved, to, details);
        self.dispose_page(disposal, ctx);
    }

    /// A message that is damaged on disk: it can be purged all the same, and cannot be moved.
    fn dispose_of_damaged(
        &mut self,
        disposal: &mut Disposal,
        destination: Destination,
        number: MessageNumber,
        detail: &str,
    ) {
        match destination {
            Destination::Purge => {
                events::journal_finding(&format!("message {number}, which is purged: {detail}"));
                self.settle_page(disposal, vec![number], End::Purged, PeerId::NONE, Vec::new());
                disposal.messages += 1;
            }
            Destination::Peer(_) => {
                self.leave_behind(disposal, number, &format!("damaged on disk: {detail}"));
            }
            Destination::Park => {}
        }
    }

    /// Parks a message that no copy can be made of.
    fn leave_behind(&self, disposal: &Disposal, number: MessageNumber, why: &str) {
        events::journal_finding(&format!("message {number} is not handed over: {why}"));
        if disposal.lane == Lane::Open {
            let (peer, at_ms, attempts) = (disposal.id, clock::wall_ms(), 0);
            let reason = format!("not handed over: {why}");
            self.journal.park(ParkRecord { peer, number, at_ms, attempts, reason });
        }
    }

    /// Notes the copies in the building batch for the peer that gets them.
    pub(super) fn gather_copies(&mut self, to: PeerId) {
        let Some(slot) = self.slots.get_mut(to) else { return };
        let records = self.building.records.iter().zip(0u32..);
        let records = records.filter(|(record, _)| record.kind == RecordKind::Message);
        let copies = records.map(|(record, index)| {
            let header = RECORD_HEADER_BYTES as u32;
            let fixed = restante_protocol::record::MESSAGE_FIXED_BYTES as u32 + 4;
            let body_at = record.offset + header + fixed;
            let body_len = record.body_len - fixed;
            EnqueuedMessage { index, body_at, body_len, key: None, has_options: false }
        });
        for mut message in copies {
            let at = message.body_at as usize;
            let body = &self.building.bytes[at..at + message.body_len as usize];
            let body = Body::parse(body).unwrap_or_default();
            (message.key, message.has_options) = (body.key_hash(), body.ttl_ms.is_some());
            if slot.gather(message) {
                self.building.touched.push(to);
            }
            self.building.deliveries += 1;
        }
    }

    fn settle_page(
        &mut self,
        disposal: &Disposal,
        numbers: Vec<MessageNumber>,
        outcome: End,
        moved_to: PeerId,
        details: Vec<SettleDetail>,
    ) {
        let Some(last) = numbers.last().copied() else { return };
        // Open messages go in order, so nothing open is left at or below the last of a page. Parked
        // ones lie below the floor already.
        let (floor, above) = match disposal.lane {
            Lane::Open => (last, Vec::new()),
            Lane::Parked => (0, numbers.clone()),
        };
        let at_ms = clock::wall_ms();
        let peer = disposal.id;
        let record = SettleRecord { peer, at_ms, outcome, moved_to, floor, above, details };
        self.journal.settle(Settle { record, numbers });
    }

    /// Whoever awaits an answer of a removed peer learns that none will come.
    fn end_calls(&mut self, id: PeerId) {
        let how: &[u8] = match self.state.registry.destination(id) {
            Some(Destination::Peer(_)) => b"handed to another peer",
            Some(Destination::Purge) => b"purged by an operator",
            Some(Destination::Park) | None => b"parked: its receiver was removed",
        };
        for call in self.calls.take_of(id) {
            call.end(how);
        }
    }

    fn disposed(&mut self, disposal: Disposal, destination: Destination, ctx: &mut Context<Self>) {
        let removed = self.state.registry.removed(disposal.id);
        if removed.is_none_or(|removed| removed.disposition.is_done()) {
            if destination == Destination::Purge && disposal.messages > 0 {
                let peer = self.state.registry.label(disposal.id);
                events::messages_purged(&peer, disposal.messages, None, &disposal.by);
            }
            self.count_left_by(disposal.id);
            return self.forget_if_spent(disposal.id);
        }
        let done = StateEvent::Admin(AdminEvent::DispositionDone { id: disposal.id });
        if self.append_state(&done).is_err() {
            return Self::dispose_later(disposal, ctx);
        }
        let registry = &self.state.registry;
        let peer = registry.label(disposal.id);
        match destination {
            Destination::Purge => {
                events::messages_purged(&peer, disposal.messages, None, &disposal.by);
            }
            Destination::Peer(to) => {
                events::handover_done(&peer, &registry.label(to), disposal.messages);
            }
            // The heir was removed on the way: nothing else comes here with work to be done.
            Destination::Park => match self.stored_for(disposal.id) {
                0 => {}
                left => events::handover_cut_short(&peer, left),
            },
        }
        self.count_left_by(disposal.id);
        self.forget_if_spent(disposal.id);
    }

    /// What a removed peer has left, and nobody will do anything about, counts against the node's
    /// quota from now on.
    pub(super) fn count_left_by(&mut self, id: PeerId) {
        self.delays.retired(id);
        self.shared.kept.fetch_add(self.stored_for(id) as i64, Relaxed);
    }
}

/// Bytes that a copy of a stored message takes in a batch, at most: it has an original id in front, where
/// the message had none.
pub(super) fn copy_room(stored: &Stored) -> usize {
    let flags = stored.body.first().copied().unwrap_or(0);
    let is_copy = flags & body_flags::ORIGINAL_ID != 0;
    record_room(1, stored.body.len() + if is_copy { 0 } else { COPY_BYTES })
}

impl Building {
    /// Appends a copy of a stored message for another peer, marked with the id it came under.
    pub(super) fn copy_to(
        &mut self,
        to: PeerId,
        id: restante_protocol::id::MessageId,
        stored: &Stored,
        life: Life,
    ) -> bool {
        let Ok(mut body) = Body::parse(&stored.body) else { return false };
        body.original_id = body.original_id.or(Some(id));
        body.released = false;
        body.ttl_ms = body.ttl_ms.filter(|_| life == Life::Same);
        let mut bytes = Vec::with_capacity(body.encoded_len());
        body.encode(&mut bytes);
        let placed = put_message_record(&mut self.bytes, self.accepted_ms, 0, 0, &[to], &bytes);
        self.place(RecordKind::Message, placed);
        true
    }
}
