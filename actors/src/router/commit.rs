//! From batch to disk to receivers: appending what was gathered, and telling everybody once it is
//! durable. Nothing leaves this file towards a producer or a peer before the journal has said so.

use super::batch::{Building, CallSlot, Outcome, Pending};
use super::publish::refused_by_place;
use super::{Effected, Router, repeats};
use crate::clock;
use crate::journal::{Batch, Completion, End};
use crate::peer::{Enqueue, EnqueuedMessage, Missed};
use actix::prelude::*;
use bytes::Bytes;
use restante_protocol::frame::Confirm;
use restante_protocol::id::{MessageId, MessageNumber, PeerId};
use restante_protocol::producers::Run;
use restante_protocol::record::{RecordKind, put_record};
use restante_protocol::refusal::{Code, Refusal};
use restante_protocol::state::{Applied, StateError, StateEvent};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Said by the router to itself, once per turn of its mailbox.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Flush;

impl Handler<Flush> for Router {
    type Result = ();

    fn handle(&mut self, _: Flush, ctx: &mut Context<Self>) {
        self.flushing = false;
        self.append_building();
        self.hand_off_owed(ctx);
    }
}

impl StreamHandler<Completion> for Router {
    fn handle(&mut self, completion: Completion, ctx: &mut Context<Self>) {
        match completion.end {
            End::Durable(bytes) => self.durable(completion.ticket, &bytes, ctx),
            End::Unknown(why) | End::Fenced(why) | End::Poisoned(why) => self.journal_failed(&why),
            End::CheckpointDue => self.checkpoint(),
            End::Flushed(token) => {
                for reply in self.flushes.remove(&token).unwrap_or_default() {
                    let _ = reply.send(Ok(()));
                }
            }
        }
        self.answer_drain();
    }

    /// The journal's threads are gone: nothing more will be confirmed.
    fn finished(&mut self, _: &mut Context<Self>) {
        self.journal_failed(&Refusal::new(Code::ShuttingDown, "the journal is closed"));
    }
}

impl Router {
    /// Appends one record of the node's own state, after everything gathered so far, and carries it
    /// out. What is to be said once it is durable goes to [`Router::once_durable`].
    ///
    /// # Errors
    /// Nothing was appended and nothing has changed when the journal does not take it.
    pub(super) fn append_state(&mut self, event: &StateEvent) -> Result<Applied, Refusal> {
        self.append_building();
        let defect = |why: StateError| Refusal::new(Code::Internal, why.to_string());
        let mut building = Building::default();
        let placed = put_record(&mut building.bytes, &event.encode().map_err(defect)?);
        building.place(RecordKind::Admin, placed);
        let size = building.bytes.len();
        let batch = Batch { bytes: building.bytes, records: building.records };
        let (ticket, first_number) = self.journal.append(batch).map_err(|(_, why)| why)?;
        self.in_hand_bytes += size;
        self.pending.push_back(Pending {
            ticket,
            first_number,
            accepted_ms: 0,
            bytes: size,
            records: 1,
            outcomes: Vec::new(),
            hand_offs: Vec::new(),
            delayed: Vec::new(),
        });
        self.state.apply(event).map_err(defect)
    }

    /// Something to be said once the last append is durable.
    pub(super) fn once_durable(&mut self, outcome: Outcome) {
        match self.pending.back_mut() {
            Some(last) => last.outcomes.push(outcome),
            None => self.tell(vec![outcome], 0, 0),
        }
    }

    pub(super) fn flush_soon(&mut self, ctx: &mut Context<Self>) {
        if !self.flushing {
            self.flushing = true;
            ctx.notify(Flush);
        }
    }

    /// Appends what has been gathered; the number of its first record, if there was any and the
    /// journal took it.
    pub(super) fn append_building(&mut self) -> Option<MessageNumber> {
        self.append_gathered().ok().flatten()
    }

    /// Appends what has been gathered; the number of its first record, if there was any. Outcomes that
    /// need no record of their own ride along with whatever is already on its way.
    ///
    /// # Errors
    /// The journal did not take it, and whoever is concerned has been told.
    pub(super) fn append_gathered(&mut self) -> Result<Option<MessageNumber>, Refusal> {
        if self.building.is_empty() {
            return Ok(None);
        }
        let next = Building::after(&self.building);
        let mut building = std::mem::replace(&mut self.building, next);
        if building.records.is_empty() {
            match self.pending.back_mut() {
                Some(last) => last.outcomes.append(&mut building.outcomes),
                None => self.tell(building.outcomes, 0, 0),
            }
            return Ok(None);
        }
        let size = building.bytes.len();
        let records = building.next_index();
        let batch = Batch {
            bytes: std::mem::take(&mut building.bytes),
            records: std::mem::take(&mut building.records),
        };
        match self.journal.append(batch) {
            Ok((ticket, first_number)) => {
                let hand_offs = self.take_hand_offs(&building.touched, true);
                self.shared.kept.fetch_add(building.deliveries as i64, Relaxed);
                self.remember(&building, first_number);
                self.in_hand_bytes += size;
                self.pending.push_back(Pending {
                    ticket,
                    first_number,
                    accepted_ms: building.accepted_ms,
                    bytes: size,
                    records,
                    outcomes: building.outcomes,
                    hand_offs,
                    delayed: building.delayed,
                });
                Ok(Some(first_number))
            }
            Err((_, why)) => {
                self.take_hand_offs(&building.touched, false);
                self.forget_delayed(building.delayed);
                self.abandon(building.outcomes, &why);
                Err(why)
            }
        }
    }

    /// What the slots gathered for this batch, and whether the journal took it.
    fn take_hand_offs(
        &mut self,
        touched: &[PeerId],
        appended: bool,
    ) -> Vec<(PeerId, Vec<EnqueuedMessage>)> {
        let slots = &mut self.slots;
        let gathered = |id: &PeerId| Some((*id, slots.get_mut(*id)?.take_gathered(appended)));
        touched.iter().filter_map(gathered).collect()
    }

    /// Puts the sequences and calls of an appended batch on record.
    fn remember(&mut self, building: &Building, first_number: MessageNumber) {
        let accepted_ms = building.accepted_ms;
        for outcome in &building.outcomes {
            match outcome {
                Outcome::Confirm { producer, first_sequence, count, first_index, .. } => {
                    let (first_sequence, count) = (*first_sequence, *count);
                    let first_number = first_number + u64::from(*first_index);
                    let run = Run { first_sequence, count, first_number, accepted_ms };
                    self.state.producers.record_run(*producer, run);
                }
                Outcome::Partial { producer, refuse, places, index, .. } => {
                    let first_number = first_number + u64::from(*index);
                    let first_sequence = refuse.sequence;
                    let run = Run { first_sequence, count: 1, first_number, accepted_ms };
                    self.state.producers.record_run(*producer, run);
                    let refused = refused_by_place(refuse, places);
                    self.state.producers.record_refusal(*producer, first_sequence, refused);
                }
                _ => {}
            }
        }
        for CallSlot { index, call } in &building.calls {
            let number = first_number + u64::from(*index);
            if let Some(oldest) = self.calls.insert(number, call.clone()) {
                oldest.end(b"the connection has more calls under way than it may");
            }
        }
    }

    fn durable(&mut self, ticket: crate::journal::Ticket, chunk: &Bytes, ctx: &mut Context<Self>) {
        let Some(pending) = self.pending.pop_front() else { return };
        debug_assert_eq!(pending.ticket, ticket, "tickets end in order");
        self.in_hand_bytes -= pending.bytes;
        let last = pending.first_number + u64::from(pending.records).saturating_sub(1);
        self.state.producers.set_durable(last);
        self.tell(pending.outcomes, pending.first_number, pending.accepted_ms);
        for Effected { effect, reply, done } in std::mem::take(&mut self.effects) {
            self.take_effect(effect, ctx);
            let _ = reply.send(Ok(done));
        }
        for copies in std::mem::take(&mut self.copied) {
            self.copies_durable(copies, ctx);
        }
        for released in std::mem::take(&mut self.released) {
            self.copies_released(released, ctx);
        }
        if !pending.delayed.is_empty() {
            self.remember_delayed(&pending.delayed, pending.first_number);
            self.arm_delays(ctx);
        }
        for step in std::mem::take(&mut self.steps) {
            self.job_step(step, ctx);
        }
        for (peer, messages) in pending.hand_offs {
            self.hand_off(peer, messages, chunk, pending.first_number, pending.accepted_ms);
        }
        self.hand_off_owed(ctx);
    }

    /// Says what was decided, now that it is durable.
    fn tell(&mut self, outcomes: Vec<Outcome>, first_number: MessageNumber, accepted_ms: u64) {
        for outcome in outcomes {
            match outcome {
                Outcome::Confirm { to, first_sequence, count, first_index, bytes, .. } => {
                    let first_id = self.id(accepted_ms, first_number + u64::from(first_index));
                    self.figures.confirmed.fetch_add(u64::from(count), Relaxed);
                    to.confirm(Confirm { first_sequence, count, first_id }, bytes);
                }
                Outcome::Partial { to, mut refuse, index, bytes, .. } => {
                    refuse.id = Some(self.id(accepted_ms, first_number + u64::from(index)));
                    self.figures.confirmed.fetch_add(1, Relaxed);
                    to.refuse(&refuse, bytes);
                }
                Outcome::Repeat { to, sequence, id, refused: None, bytes } => {
                    to.confirm(Confirm { first_sequence: sequence, count: 1, first_id: id }, bytes);
                }
                Outcome::Repeat { to, refused: Some(refuse), bytes, .. } => {
                    to.refuse(&refuse, bytes);
                }
                Outcome::LookUp { to, repeats } => {
                    let (journal, groups) = (Arc::clone(&self.journal), self.groups_of(&repeats));
                    let directory = Arc::clone(&self.shared.directory);
                    actix_rt::spawn(repeats::answer(journal, directory, groups, to, repeats));
                }
                Outcome::Opened { reply, opened } => {
                    let _ = reply.send(Ok(opened));
                }
                Outcome::Administered { reply, done, effect: None } => {
                    let _ = reply.send(Ok(done));
                }
                Outcome::Administered { reply, done, effect: Some(effect) } => {
                    self.effects.push(Effected { effect: *effect, reply, done });
                }
                Outcome::HandedOver(copies) => self.copied.push(*copies),
                Outcome::Released(released) => self.released.push(*released),
                Outcome::OfJob(step) => self.steps.push(*step),
            }
        }
    }

    /// The wall clock's time for the next batch, and notes it if that clock has been set.
    pub(super) fn accepted_now(&mut self) -> u64 {
        let (wall_ms, now) = (clock::wall_ms(), clock::now());
        let mut anchors = self.shared.anchors.lock();
        if anchors.are_off(wall_ms, now) {
            anchors.note(self.journal.next_number(), wall_ms, now);
        }
        wall_ms
    }

    pub(super) fn id(&self, accepted_ms: u64, number: MessageNumber) -> MessageId {
        MessageId::new(accepted_ms, self.shared.node, self.shared.partition, number)
    }

    /// Gives a peer its messages of a batch. If its mailbox is full it is told their number later
    /// and reads them from the journal: nothing is lost and nobody waits.
    fn hand_off(
        &mut self,
        peer: PeerId,
        messages: Vec<EnqueuedMessage>,
        chunk: &Bytes,
        first_number: MessageNumber,
        accepted_ms: u64,
    ) {
        let Some(slot) = self.slots.get_mut(peer) else { return };
        let missed = std::mem::take(&mut slot.missed);
        let chunk = chunk.clone();
        let enqueue = Enqueue { chunk, first_number, accepted_ms, messages, missed };
        if let Err(actix::prelude::SendError::Full(enqueue)) = slot.addr.try_send(enqueue) {
            slot.missed = enqueue.as_missed();
            if !slot.owed {
                slot.owed = true;
                self.owed.push(peer);
            }
        }
    }

    /// Tells peers whose mailboxes were full what they have missed.
    fn hand_off_owed(&mut self, ctx: &mut Context<Self>) {
        for peer in std::mem::take(&mut self.owed) {
            let Some(slot) = self.slots.get_mut(peer) else { continue };
            slot.owed = false;
            if slot.missed == Missed::default() {
                continue;
            }
            self.hand_off(peer, Vec::new(), &Bytes::new(), 0, 0);
        }
        if !self.owed.is_empty() && !self.retrying_owed {
            self.retrying_owed = true;
            ctx.run_later(super::OWED_RETRY, |router, ctx| {
                router.retrying_owed = false;
                router.hand_off_owed(ctx);
            });
        }
    }

    /// The journal confirms nothing any more. What was undecided stays undecided: producers are cut
    /// off and repeat under the same sequences once there is a journal again.
    fn journal_failed(&mut self, why: &Refusal) {
        for pending in std::mem::take(&mut self.pending) {
            self.abandon(pending.outcomes, why);
        }
        self.in_hand_bytes = 0;
        for (_, replies) in self.flushes.drain() {
            for reply in replies {
                let _ = reply.send(Err(why.clone()));
            }
        }
        if !self.failed {
            self.failed = true;
            crate::events::journal_poisoned(&why.detail);
            self.fatal.send_replace(Some(format!("the journal failed: {why}")));
        }
    }

    fn abandon(&mut self, outcomes: Vec<Outcome>, why: &Refusal) {
        for outcome in outcomes {
            match outcome {
                Outcome::Confirm { to, producer, .. } | Outcome::Partial { to, producer, .. } => {
                    // What the connection has sent since must not overtake this.
                    self.state.producers.fence(producer);
                    self.fences += 1;
                    to.abandon(why);
                }
                Outcome::Repeat { to, .. } | Outcome::LookUp { to, .. } => to.abandon(why),
                Outcome::Opened { reply, .. } => {
                    let _ = reply.send(Err(why.clone()));
                }
                Outcome::Administered { reply, .. } => {
                    let _ = reply.send(Err(why.clone()));
                }
                // What was to be handed over, released or replayed stays where it is; the next life
                // goes on.
                Outcome::HandedOver(_) | Outcome::Released(_) | Outcome::OfJob(_) => {}
            }
        }
    }

    fn checkpoint(&mut self) {
        // What is being gathered is not part of the log yet, and its state must not be of the
        // checkpoint either: append it first.
        self.append_building();
        self.forget_spent();
        match self.state.snapshot() {
            Ok(state) => self.journal.checkpoint(state.into()),
            Err(why) => crate::events::journal_finding(&format!("no checkpoint: {why}")),
        }
    }
}

impl Enqueue {
    /// The whole of a hand-off that failed, as a count.
    fn as_missed(&self) -> Missed {
        let newest =
            self.messages.last().map_or(0, |last| self.first_number + u64::from(last.index));
        let bytes: u64 = self.messages.iter().map(|message| u64::from(message.body_len)).sum();
        Missed {
            newest: newest.max(self.missed.newest),
            messages: self.missed.messages + self.messages.len() as u64,
            bytes: self.missed.bytes + bytes,
        }
    }
}
