//! Repeats of publishes that were accepted before this process started.
//!
//! Which receivers refused such a publish was known to the process before and died with it. The
//! stored record has the others, in the order of the publish: whoever the repeat names and the record
//! lacks is told to have refused, so that no producer takes silence for acceptance. Rare, and slow
//! against a repeat from memory: one look-up in the journal each, off the router's turns.

use super::messages::Receiver;
use crate::directory::Directory;
use crate::journal::{Journal, LookupError};
use crate::link::SharedProducer;
use restante_protocol::frame::{Confirm, Refuse};
use restante_protocol::id::{MessageId, PeerId};
use restante_protocol::refusal::{Code, Refusal};
use smallvec::SmallVec;
use std::sync::Arc;

/// One of them.
pub(super) struct OldRepeat {
    pub(super) sequence: u64,
    pub(super) id: MessageId,
    /// As the repeat names them.
    pub(super) receivers: SmallVec<[Receiver; 4]>,
    /// Bytes of its frame.
    pub(super) bytes: u64,
}

/// Answers repeats in order.
pub(super) async fn answer(
    journal: Arc<dyn Journal>,
    directory: Arc<Directory>,
    to: SharedProducer,
    repeats: Vec<OldRepeat>,
) {
    let is_there = |peer: PeerId| directory.seat(peer).is_some();
    for OldRepeat { sequence, id, receivers, bytes } in repeats {
        let stored: Vec<PeerId> = match journal.lookup(id.number()).await {
            Ok(life) => life.receivers.into_iter().map(|(peer, _)| peer).collect(),
            Err(LookupError::Unavailable) => {
                let why = Refusal::new(Code::JournalPoisoned, "the journal cannot be read now");
                return to.abandon(&why);
            }
            // It was accepted, and has been lost since: its producer still has it.
            Err(LookupError::Damaged) => {
                let code = Code::Damaged;
                let receivers = receivers.iter().map(|receiver| (receiver.alias, code)).collect();
                let detail = format!("{id} was on disk and is damaged; publish it anew");
                to.refuse(&Refuse { sequence, id: Some(id), code, receivers, detail }, bytes);
                continue;
            }
            // Whoever accepted it is done with it, and nothing else is known any more.
            Err(LookupError::AgedOut | LookupError::Unknown) => Vec::new(),
        };
        let refused = if stored.is_empty() {
            SmallVec::new()
        } else {
            lacking(&receivers, &stored, is_there)
        };
        let Some((first, code)) = refused.first().copied() else {
            to.confirm(Confirm { first_sequence: sequence, count: 1, first_id: id }, bytes);
            continue;
        };
        let detail = format!("receiver alias {first}: not among those that accepted {id}");
        let id = Some(id);
        to.refuse(&Refuse { sequence, id, code, receivers: refused, detail }, bytes);
    }
}

/// The receivers of a repeat, by alias, that are not among the stored ones. A stored peer that has
/// been removed since stands for the name in its place.
fn lacking(
    receivers: &[Receiver],
    stored: &[PeerId],
    is_there: impl Fn(PeerId) -> bool,
) -> SmallVec<[(u32, Code); 4]> {
    let mut refused = SmallVec::new();
    let mut rest = stored.iter().copied().peekable();
    for Receiver { alias, peer } in receivers.iter().copied() {
        let named_before = peer != PeerId::NONE && stored.contains(&peer);
        let in_place = |next: &PeerId| *next == peer || (!named_before && !is_there(*next));
        if rest.next_if(in_place).is_some() || named_before {
            continue;
        }
        // Why it refused is forgotten; whether it is unknown now is not.
        let code = if peer == PeerId::NONE { Code::UnknownReceiver } else { Code::OutcomeEvicted };
        refused.push((alias, code));
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOVED: u32 = 9;

    /// Aliases of those that are told to have refused; 0 stands for a name that no peer has.
    fn refused(named: &[u32], stored: &[u32]) -> Vec<u32> {
        let receivers: Vec<Receiver> = (100..)
            .zip(named)
            .map(|(alias, peer)| Receiver { alias, peer: PeerId(*peer) })
            .collect();
        let stored: Vec<PeerId> = stored.iter().copied().map(PeerId).collect();
        let found = lacking(&receivers, &stored, |peer| peer.0 != REMOVED);
        found.into_iter().map(|(alias, _)| alias).collect()
    }

    #[test]
    fn whoever_the_record_lacks_has_refused() {
        assert_eq!(refused(&[1, 2, 3], &[1, 2, 3]), []);
        assert_eq!(refused(&[1, 0, 3], &[1, 3]), [101]);
        assert_eq!(refused(&[0, 1], &[1]), [100]);
        assert_eq!(refused(&[1, 2], &[2]), [100], "known now, and not then");
    }

    #[test]
    fn a_receiver_named_twice_counts_once() {
        assert_eq!(refused(&[1, 1, 2], &[1, 2]), []);
        assert_eq!(refused(&[1, 2, 1], &[1, 2]), []);
    }

    #[test]
    fn a_peer_removed_since_accepted_it_all_the_same() {
        assert_eq!(refused(&[0], &[REMOVED]), []);
        assert_eq!(refused(&[1, 0, 3], &[1, REMOVED, 3]), []);
        assert_eq!(refused(&[7, 1], &[REMOVED, 1]), [], "added again under the old name");
    }
}
