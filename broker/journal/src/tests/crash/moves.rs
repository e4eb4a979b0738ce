//! What a node would do next, drawn by dice: the same for journals with threads and without.

use super::super::{Draft, push_admin, push_message};
use super::model::{Fate, Message, Model, NEVER, PEERS, Said, detail_of};
use crate::storage::sim::Dice;
use bytes::BytesMut;
use restante_actors::journal::{Batch, Settle, Ticket};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{ParkRecord, SettleDetail};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// A record of a batch that is about to be appended.
pub(crate) enum Drafted {
    Message(Box<Message>),
    Admin(Arc<[u8]>),
}

/// Draws a batch of a few messages and admin records.
pub(crate) fn batch(model: &mut Model, dice: &mut Dice) -> (Batch, Vec<Drafted>) {
    let mut batch = Batch { bytes: BytesMut::new(), records: Vec::new() };
    let mut drafts = Vec::new();
    let large = dice.chance(5);
    for _ in 0..=dice.below(4) {
        if dice.chance(10) {
            let body = format!("admin {}", dice.roll()).into_bytes();
            push_admin(&mut batch, &body);
            drafts.push(Drafted::Admin(body.into()));
            continue;
        }
        // One in a while is for nobody.
        let fan_out = if dice.chance(3) { 0 } else { 1 + dice.below(PEERS as usize) };
        let receivers: BTreeSet<u32> =
            (0..fan_out).map(|_| 1 + dice.below(PEERS as usize) as u32).collect();
        let receivers: Vec<u32> = receivers.into_iter().collect();
        let mut body = vec![0u8];
        let len = if large { 900 } else { dice.below(120) };
        body.extend((0..len).map(|_| dice.roll() as u8));
        model.sequence += 1;
        let sequence = model.sequence;
        push_message(
            &mut batch,
            &Draft { producer: 1, sequence, receivers: &receivers, body: &body },
        );
        let mut fates = [None; PEERS as usize + 1];
        receivers.iter().for_each(|peer| fates[*peer as usize] = Some(Fate::Open));
        drafts.push(Drafted::Message(Box::new(Message { body: body.into(), sequence, fates })));
    }
    (batch, drafts)
}

/// Takes note of an append.
pub(crate) fn appended(
    model: &mut Model,
    ticket: Ticket,
    first: MessageNumber,
    drafts: Vec<Drafted>,
) {
    model.tickets.insert(ticket.0, first + drafts.len() as u64);
    for (number, draft) in (first..).zip(drafts) {
        match draft {
            Drafted::Message(message) => drop(model.messages.insert(number, *message)),
            Drafted::Admin(body) => model.admin.push((number, body)),
        }
    }
}

/// Draws some messages of a peer to be settled. A number may be settled that was settled before: a
/// receiver may ack twice.
pub(crate) fn settle(model: &mut Model, peer: u32, dice: &mut Dice) -> Option<Settle> {
    let open = model.with_fate(peer, |fate| fate == Fate::Open);
    let parked = model.with_fate(peer, |fate| matches!(fate, Fate::Parked(_)));
    let mut numbers: Vec<MessageNumber> = if dice.chance(70) {
        open.iter().copied().take(1 + dice.below(12)).collect()
    } else {
        open.iter().copied().filter(|_| dice.chance(30)).take(12).collect()
    };
    numbers.extend(parked.iter().copied().filter(|_| dice.chance(20)));
    if numbers.is_empty() {
        return None;
    }
    if dice.chance(10) {
        let settled = model.with_fate(peer, |fate| matches!(fate, Fate::Settled(_)));
        numbers.extend(settled.iter().rev().take(1 + dice.below(3)));
    }
    numbers.sort_unstable();
    // As the delivery core would: just below the lowest that is still open, among those it has.
    let lowest = open.iter().find(|number| numbers.binary_search(number).is_err());
    let newest = model.with_fate(peer, |_| true).last().copied().unwrap_or(0);
    let floor = lowest.map_or(newest, |lowest| lowest - 1).min(newest);
    let floor = if dice.chance(15) { 0 } else { floor };
    model.now_ms += 1;
    let mut settle = Settle::acked(PeerId(peer), model.now_ms, floor, numbers);
    if dice.chance(30) {
        let details = settle.numbers.iter().map(|number| {
            let (attempts, value) = detail_of(*number);
            SettleDetail { number: *number, attempts, value }
        });
        settle.record.details = details.collect();
    }
    Some(settle)
}

/// The last of the records with these numbers; a journal that is poisoned makes none.
fn last_of(records: Range<MessageNumber>) -> MessageNumber {
    if records.is_empty() { NEVER } else { records.end - 1 }
}

/// Takes note of a settle, whose records have these numbers.
pub(crate) fn settled(model: &mut Model, settle: &Settle, records: Range<MessageNumber>) {
    let (peer, at_ms, record) = (settle.record.peer.0, settle.record.at_ms, last_of(records));
    let settled = Said { record, at_ms, detail: !settle.record.details.is_empty() };
    for number in &settle.numbers {
        let Some(fate) = model.messages[number].fates[peer as usize] else { continue };
        let fate = match fate {
            Fate::Open => Fate::Settled(settled),
            Fate::Parked(parked) => Fate::ParkedThenSettled { parked, settled },
            before => {
                model.repeats.insert((peer, *number, at_ms));
                before
            }
        };
        model.set_fate(peer, *number, fate);
    }
}

/// Draws a message of a peer to be parked.
pub(crate) fn park(model: &mut Model, peer: u32, dice: &mut Dice) -> Option<ParkRecord> {
    let open = model.with_fate(peer, |fate| fate == Fate::Open);
    let number = *open.get(dice.below(open.len().max(1)))?;
    model.now_ms += 1;
    let (peer, at_ms, reason) = (PeerId(peer), model.now_ms, "no".to_owned());
    Some(ParkRecord { peer, number, at_ms, attempts: 3, reason })
}

/// Takes note of a park, whose record has this number.
pub(crate) fn parked(model: &mut Model, park: &ParkRecord, records: Range<MessageNumber>) {
    let said = Said { record: last_of(records), at_ms: park.at_ms, detail: false };
    model.set_fate(park.peer.0, park.number, Fate::Parked(said));
}
