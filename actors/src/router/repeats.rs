//! Repeats of accepted publishes of which nobody remembers who refused them.
//!
//! Which receivers refused a publish is kept in memory, so many for each producer: it dies with the
//! process, and the oldest are forgotten. The stored record has the others, in the order of the publish:
//! whoever the repeat names and the record lacks is told to have refused, so that no producer takes
//! silence for acceptance. Of a group that is whoever is in it now, also one that has joined since: it has
//! not got the message. Rare, and slow against a repeat from memory: one look-up in the journal each, off
//! the router's turns, once all of them are durable.

use super::messages::Receiver;
use crate::directory::Directory;
use crate::journal::{Ended, Journal, Life, LookupError};
use crate::link::SharedProducer;
use restante_protocol::frame::{Confirm, Refuse};
use restante_protocol::id::{MessageId, PeerId};
use restante_protocol::message::Body;
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
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

/// The members of groups, with their names.
pub(super) type Groups = HashMap<PeerId, Vec<(PeerId, Name)>>;

/// Answers repeats in order. `groups`: those that they name.
pub(super) async fn answer(
    journal: Arc<dyn Journal>,
    directory: Arc<Directory>,
    groups: Groups,
    to: SharedProducer,
    repeats: Vec<OldRepeat>,
) {
    let is_there = |peer: PeerId| directory.seat(peer).is_some();
    for OldRepeat { sequence, id, receivers, bytes } in repeats {
        let stored: Vec<PeerId> = match journal.lookup(id.number()).await {
            Ok(life) => accepted_for(&*journal, life).await,
            Err(LookupError::Unavailable) => {
                let why = Refusal::new(Code::JournalPoisoned, "the journal cannot be read now");
                return to.abandon(&why);
            }
            // It was accepted, and has been lost since: its producer still has it.
            Err(LookupError::Damaged) => {
                let code = Code::Damaged;
                let receivers = receivers.iter().map(|receiver| (receiver.alias, code)).collect();
                let detail = format!("{id} was on disk and is damaged; publish it anew");
                let (id, members) = (Some(id), Vec::new());
                to.refuse(&Refuse { sequence, id, code, receivers, members, detail }, bytes);
                continue;
            }
            // Whoever accepted it is done with it, and nothing else is known any more.
            Err(LookupError::AgedOut | LookupError::Unknown) => Vec::new(),
        };
        let (receivers, members) = if stored.is_empty() {
            Default::default()
        } else {
            lacking(&receivers, &stored, &groups, is_there)
        };
        let member = members.first().map(|(alias, code, _)| (*alias, *code));
        let Some((first, code)) = receivers.first().copied().or(member) else {
            to.confirm(Confirm { first_sequence: sequence, count: 1, first_id: id }, bytes);
            continue;
        };
        let detail = format!("receiver alias {first}: not among those that accepted {id}");
        let id = Some(id);
        to.refuse(&Refuse { sequence, id, code, receivers, members, detail }, bytes);
    }
}

/// For whom a message was accepted; of a delayed one its body says so, or the copy that it went on as.
/// Empty if nothing does any more.
async fn accepted_for(journal: &dyn Journal, life: Life) -> Vec<PeerId> {
    let delayed = life.receivers.iter().find(|(peer, _)| *peer == PeerId::DELAYED);
    let Some((_, ended)) = delayed else {
        return life.receivers.into_iter().map(|(peer, _)| peer).collect();
    };
    if let Some(body) = life.body.as_deref() {
        return Body::parse(body).unwrap_or_default().delayed_for().collect();
    }
    let Some(copy) = ended.as_ref().and_then(Ended::copy_number) else { return Vec::new() };
    let copy = journal.lookup(copy).await;
    copy.map_or_else(|_| Vec::new(), |life| life.receivers.iter().map(|(peer, _)| *peer).collect())
}

/// Receivers that refused, by alias.
type Refusing = SmallVec<[(u32, Code); 4]>;
/// Members of groups that did, by the alias of their group.
type RefusingMembers = Vec<(u32, Code, Name)>;

/// The receivers of a repeat, and members of groups among them, that are not among the stored ones. A
/// stored peer that has been removed since stands for the name in its place; those that are there and
/// that nothing names now were members of a group that is gone, or have left one.
fn lacking(
    receivers: &[Receiver],
    stored: &[PeerId],
    groups: &Groups,
    is_there: impl Fn(PeerId) -> bool,
) -> (Refusing, RefusingMembers) {
    let (mut refused, mut refused_members) = (Refusing::new(), RefusingMembers::new());
    let members_of = |peer| groups.get(&peer).into_iter().flatten().map(|(member, _)| *member);
    let named = receivers.iter().map(|receiver| receiver.peer);
    let named: HashSet<PeerId> = named.flat_map(|peer| members_of(peer).chain([peer])).collect();
    let has_left = |next: &PeerId| is_there(*next) && !named.contains(next);
    let has_it: HashSet<PeerId> = stored.iter().copied().collect();
    let mut rest = stored.iter().copied().peekable();
    for Receiver { alias, peer } in receivers.iter().copied() {
        if let Some(members) = groups.get(&peer) {
            let is_member: HashSet<PeerId> = members_of(peer).collect();
            // Of those in the group's place, one that is removed may also be the next receiver.
            let mut left = rest.clone().filter(|next| is_member.contains(next)).count();
            while left > 0 || rest.peek().is_some_and(has_left) {
                let Some(next) = rest.next() else { break };
                left -= usize::from(is_member.contains(&next));
            }
            let lacks = members.iter().filter(|(member, _)| !has_it.contains(member));
            let lacks = lacks.map(|(_, name)| (alias, Code::OutcomeEvicted, name.clone()));
            refused_members.extend(lacks);
            continue;
        }
        if peer == PeerId::NONE {
            let is_gone = |next: &PeerId| !is_there(*next);
            let mut stands = rest.next_if(is_gone).is_some();
            if !stands {
                stands = rest.peek().is_some_and(has_left);
                while rest.next_if(has_left).is_some() {}
            }
            if !stands {
                refused.push((alias, Code::UnknownReceiver));
            }
            continue;
        }
        let named_before = has_it.contains(&peer);
        let in_place = |next: &PeerId| *next == peer || (!named_before && !is_there(*next));
        if rest.next_if(in_place).is_none() && !named_before {
            // Why it refused is forgotten.
            refused.push((alias, Code::OutcomeEvicted));
        }
    }
    (refused, refused_members)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOVED: u32 = 9;
    /// Of the peers 1 and 2.
    const GROUP: PeerId = PeerId(PeerId::LAST_PEER.0 + 1);

    /// Aliases of those that are told to have refused, those of groups with their member's number as
    /// thousands; 0 stands for a name that no peer has.
    fn refused(named: &[u32], stored: &[u32]) -> Vec<u32> {
        let receivers: Vec<Receiver> = (100..)
            .zip(named)
            .map(|(alias, peer)| Receiver { alias, peer: PeerId(*peer) })
            .collect();
        let stored: Vec<PeerId> = stored.iter().copied().map(PeerId).collect();
        let groups = [(
            GROUP,
            vec![(PeerId(1), "one".parse().unwrap()), (PeerId(2), "two".parse().unwrap())],
        )];
        let (found, members) =
            lacking(&receivers, &stored, &groups.into_iter().collect(), |peer| peer.0 != REMOVED);
        let members = members.into_iter().map(|(alias, _, name)| match name.as_str() {
            "one" => alias + 1_000,
            _ => alias + 2_000,
        });
        found.into_iter().map(|(alias, _)| alias).chain(members).collect()
    }

    #[test]
    fn of_a_group_it_is_the_members_that_have_refused() {
        let group = GROUP.0;
        assert_eq!(refused(&[group], &[1, 2]), []);
        assert_eq!(refused(&[3, group, 4], &[3, 1, 2, 4]), []);
        assert_eq!(refused(&[3, group, 4], &[3, 2]), [102, 1_101], "one is told by its name");
        assert_eq!(refused(&[2, group], &[2, 1]), [], "named before its group");
        assert_eq!(refused(&[group, 4], &[1, REMOVED, 2, 4]), [], "removed since");
        assert_eq!(refused(&[group, 4], &[1, 4]), [2_100], "joined since, or refused");
        assert_eq!(refused(&[group, 0], &[1, 2, REMOVED]), [], "a peer behind it removed since");
        assert_eq!(refused(&[group, 0], &[1, 2, 3, REMOVED]), [], "and one has left the group");
    }

    #[test]
    fn a_group_that_is_gone_had_accepted_it_all_the_same() {
        assert_eq!(refused(&[0], &[1, 2]), []);
        assert_eq!(refused(&[3, 0, 4], &[3, 1, 2, 4]), []);
        assert_eq!(refused(&[3, 0, 4], &[3, 4]), [101], "or there was none of the name");
        assert_eq!(refused(&[0, 0], &[1, REMOVED]), [], "and a peer behind it");
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
