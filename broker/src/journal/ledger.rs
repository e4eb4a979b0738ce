//! What became of a message: answered from the indexes of the segments that are stored, and from
//! what is left of those that are not.
//!
//! A settle stands in the segment of its message or in a later one; the search goes forward from
//! there, receiver by receiver, and ends with the first record that covers the message.

use super::index::{IndexError, IndexFile, SettleOrPark, Settles};
use super::refs::{MessageEntry, Messages};
use super::shared::Shared;
use super::state::{Place, Standing};
use bytes::Bytes;
use restante_actors::journal::{Ended, Life, LookupError};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{Outcome, SettleRecord};
use std::sync::atomic::Ordering;

/// Where settles may be found: a segment that is stored, or the history of one that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Stored(u64),
    History(u64),
}

impl Shared {
    /// See [`restante_actors::journal::Journal::lookup`].
    pub(super) fn lookup(&self, number: MessageNumber) -> Result<Life, LookupError> {
        if self.is_dead() {
            return Err(LookupError::Unavailable);
        }
        let sources = self.sources_from(number)?;
        let Some((source, first)) = sources.first().copied() else {
            return Err(LookupError::AgedOut);
        };
        let relative = u32::try_from(number - first).map_err(|_| LookupError::Unknown)?;
        let entry = self.message_entry(source, relative)?;
        let body = match source {
            Source::Stored(id) => self.read_body(id, number, u64::from(entry.offset)),
            Source::History(_) => None,
        };
        let mut receivers = Vec::with_capacity(entry.receivers.len());
        for peer in &entry.receivers {
            let peer = PeerId(*peer);
            let standing = self.state.lock().standing(peer, number);
            let ended = match standing {
                Standing::Open => None,
                standing => self.ended(&sources, peer, number, standing),
            };
            receivers.push((peer, ended));
        }
        Ok(Life { accepted_ms: entry.accepted_ms, body, receivers })
    }

    /// See [`restante_actors::journal::Journal::oldest_number`].
    pub(super) fn oldest_number(&self) -> MessageNumber {
        let stored = self.state.lock().segments.first().map(|segment| segment.first);
        let history = self.pool.lock().history.first().map(|note| note.first);
        [stored, history].into_iter().flatten().min().unwrap_or(MessageNumber::MAX)
    }

    /// The segment of a message and all later ones, with their first numbers.
    fn sources_from(
        &self,
        number: MessageNumber,
    ) -> Result<Vec<(Source, MessageNumber)>, LookupError> {
        let (stored, own) = {
            let state = self.state.lock();
            if number == 0 || number >= state.durable_next {
                return Err(LookupError::Unknown);
            }
            let stored: Vec<_> = state
                .segments
                .iter()
                .filter(|segment| segment.next.is_none_or(|next| next > number))
                .map(|segment| (Source::Stored(segment.id), segment.first))
                .collect();
            (stored, state.segment_of(number).is_some())
        };
        let pool = self.pool.lock();
        let history = pool.history.iter().filter(|note| note.next > number);
        let mut sources: Vec<_> =
            history.map(|note| (Source::History(note.id), note.first)).collect();
        drop(pool);
        if !own && sources.first().is_none_or(|(_, first)| *first > number) {
            return Err(LookupError::AgedOut);
        }
        sources.extend(stored);
        sources.sort_unstable_by_key(|(_, first)| *first);
        Ok(sources)
    }

    fn message_entry(&self, source: Source, relative: u32) -> Result<MessageEntry, LookupError> {
        let found = match source {
            Source::Stored(id) => {
                let state = self.state.lock();
                let segment = state.segments.iter().find(|segment| segment.id == id);
                match segment.map(|segment| &segment.index) {
                    Some(Place::Active(index)) => Some(index.messages.find(relative)),
                    Some(Place::Sealed(index)) => Some(index.messages.find(relative)),
                    Some(Place::File) | None => None,
                }
            }
            Source::History(_) => None,
        };
        let found = match found {
            Some(found) => found,
            None => self.messages_of(source).map_err(|_| LookupError::AgedOut)?.find(relative),
        };
        // The number of a settle or an admin record is no message's.
        found.ok_or(LookupError::Unknown)
    }

    fn messages_of(&self, source: Source) -> Result<Messages, IndexError> {
        self.index_file(source)?.messages()
    }

    fn index_file(&self, source: Source) -> Result<IndexFile, IndexError> {
        let history = |id| IndexFile::open(&*self.disk, &Shared::history_path(id));
        match source {
            // Reclaimed since the sources were listed: its index is history by now.
            Source::Stored(id) => {
                IndexFile::open(&*self.disk, &Shared::index_path(id)).or_else(|_| history(id))
            }
            Source::History(id) => history(id),
        }
    }

    /// The record by which a message ended for one peer. One that is still on its way to the disk has
    /// not ended anything: a crash would bring the message back, and `None` says so. That it ended is
    /// certain otherwise; where the record is no longer kept, the answer is an ack at time 0.
    fn ended(
        &self,
        sources: &[(Source, MessageNumber)],
        peer: PeerId,
        number: MessageNumber,
        standing: Standing,
    ) -> Option<Ended> {
        let mut parked = None;
        for (source, _) in sources {
            for record in self.settles_of(*source, peer) {
                match record {
                    SettleOrPark::Park(park) if park.number == number => {
                        parked = Some(Ended::Parked(park));
                        if standing == Standing::Parked {
                            return parked;
                        }
                    }
                    SettleOrPark::Settle(settle)
                        if settles(
                            &settle,
                            number,
                            parked.is_some() || standing == Standing::Parked,
                        ) =>
                    {
                        return Some(settled(settle, number));
                    }
                    _ => {}
                }
            }
        }
        if parked.is_none() && self.has_unwritten_settles() {
            return None;
        }
        parked.or(Some(Ended::Settled {
            outcome: Outcome::Acked,
            at_ms: 0,
            moved_to: PeerId::NONE,
            attempts: 0,
            value: None,
        }))
    }

    fn has_unwritten_settles(&self) -> bool {
        self.last_lazy.load(Ordering::Acquire) >= self.state.lock().durable_next
    }

    fn settles_of(&self, source: Source, peer: PeerId) -> Vec<SettleOrPark> {
        if let Source::Stored(id) = source {
            let state = self.state.lock();
            let segment = state.segments.iter().find(|segment| segment.id == id);
            match segment.map(|segment| &segment.index) {
                Some(Place::Active(index)) => return index.settles.of(peer).collect(),
                Some(Place::Sealed(index)) => return index.settles.of(peer).collect(),
                Some(Place::File) | None => {}
            }
        }
        let settles = self.index_file(source).and_then(|file| file.settles());
        settles.unwrap_or_else(|_| Settles::default()).of(peer).collect()
    }
}

/// Whether a record settles a message. A parked one is settled only by name: the floor passes over it.
fn settles(settle: &SettleRecord, number: MessageNumber, parked: bool) -> bool {
    (!parked && number <= settle.floor) || settle.above.binary_search(&number).is_ok()
}

fn settled(settle: SettleRecord, number: MessageNumber) -> Ended {
    let detail = settle.details.into_iter().find(|detail| detail.number == number);
    let (attempts, value) = detail.map_or((1, None), |detail| {
        (detail.attempts, (!detail.value.is_empty()).then(|| Bytes::from(detail.value)))
    });
    let SettleRecord { outcome, at_ms, moved_to, .. } = settle;
    Ended::Settled { outcome, at_ms, moved_to, attempts, value }
}
