//! What became of a message: answered from the indexes of the segments that are stored, and from
//! what is left of those that are not.
//!
//! A settle stands in the segment of its message or in a later one; the search goes forward from
//! there, receiver by receiver, and ends with the first record that covers the message.

use super::format::is_cold;
use super::history::{HistoryNote, Keeps};
use super::index::{IndexError, IndexFile, SettleOrPark};
use super::refs::{MessageEntry, Messages};
use super::shared::Shared;
use super::state::{Place, Standing};
use super::storage::is_missing;
use bytes::Bytes;
use restante_actors::journal::{Ended, Life, LookupError, Page, Read, ReadError};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{Outcome, ParkRecord, SettleRecord};
use restante_protocol::refusal::{Code, Refusal};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use tokio::sync::oneshot::Sender;

/// Where a message and its settles may be found: a segment that is stored, or the history of one that
/// is not, with the range of numbers it stands for. Ascending order is that of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    first: MessageNumber,
    next: MessageNumber,
    place: At,
    id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Stored,
    History,
    /// Of which only parks are kept.
    Parks,
}

/// A peer's settles and parks in one place.
#[derive(Default)]
struct Said {
    records: Vec<SettleOrPark>,
    /// Whether these are all that stood in its range of numbers.
    is_all: bool,
}

/// A question to the ledger.
pub(super) enum Question {
    /// See [`restante_actors::journal::Journal::lookup`].
    Lookup(MessageNumber, Sender<Result<Life, LookupError>>),
    /// A page of parked messages, with what is known of each.
    Parked(Read, Sender<Result<Page, ReadError>>),
    /// No more questions.
    Close,
}

/// The thread: answers questions one after the other, until there are no answers any more. Where a record is no longer kept, an answer takes
/// a look at every file behind its message: no page of a backlog waits for that.
pub(super) fn run(shared: &Shared, questions: &Receiver<Question>) {
    while let Ok(question) = questions.recv() {
        if shared.has_ended_answers() {
            return;
        }
        match question {
            // Nobody waits for it any more, and others may wait behind it.
            Question::Lookup(_, answer) if answer.is_closed() => {}
            Question::Lookup(number, answer) => drop(answer.send(shared.lookup(number))),
            Question::Parked(_, answer) if answer.is_closed() => {}
            Question::Parked(read, answer) => drop(answer.send(shared.next_parked(read))),
            Question::Close => return,
        }
    }
}

impl Shared {
    /// See [`restante_actors::journal::Journal::lookup`].
    pub(super) fn lookup(&self, number: MessageNumber) -> Result<Life, LookupError> {
        if self.is_dead() {
            return Err(LookupError::Unavailable);
        }
        self.find(number).map_err(|error| match error {
            // It was there, and it is known that it is damaged.
            LookupError::Unknown | LookupError::AgedOut if self.state.lock().is_lost(number) => {
                LookupError::Damaged
            }
            error => error,
        })
    }

    fn find(&self, number: MessageNumber) -> Result<Life, LookupError> {
        let sources = self.sources_from(number)?;
        let (source, entry) = self.entry_of(&sources, number)?;
        let body = match source.place {
            At::Stored => self.read_body(source.id, number, u64::from(entry.offset)),
            At::History | At::Parks => None,
        };
        let peers = entry.receivers.iter().map(|peer| PeerId(*peer));
        let standings: Vec<_> = {
            let state = self.state.lock();
            peers.map(|peer| (peer, state.standing(peer, number))).collect()
        };
        // What is written by now is found in what is listed from now on.
        let may_come = self.has_unwritten_settles();
        let sources = self.sources_from(number)?;
        let ended = |(peer, standing)| {
            let ended = match standing {
                Standing::Open => None,
                standing => self.ended(&sources, peer, number, standing, may_come),
            };
            (peer, ended)
        };
        let receivers = standings.into_iter().map(ended).collect();
        Ok(Life { accepted_ms: entry.accepted_ms, body, receivers })
    }

    /// See [`restante_actors::journal::Journal::next`], of the parked lane.
    fn next_parked(&self, read: Read) -> Result<Page, ReadError> {
        let mut page = self.next(read)?;
        let numbers = page.messages.iter().map(|stored| stored.number).collect();
        page.parks = self.park_records(read.peer, numbers).map_err(|error| {
            let detail = format!("why messages are parked: {error}");
            ReadError::Unavailable(Refusal::new(Code::Damaged, detail))
        })?;
        page.parks.sort_unstable_by_key(|park| park.number);
        Ok(page)
    }

    /// See [`restante_actors::journal::Journal::oldest_number`].
    pub(super) fn oldest_number(&self) -> MessageNumber {
        let stored = self.state.lock().segments.first().map(|segment| segment.first);
        let pool = self.pool.lock();
        let retired = pool.retired.iter().map(|retired| retired.first);
        let all = pool.history.iter().filter(|note| note.keeps == Keeps::All);
        let history = all.map(|note| note.first);
        retired.chain(history).chain(stored).min().unwrap_or(MessageNumber::MAX)
    }

    /// The records by which a peer's messages `numbers` were parked, those that are still kept.
    ///
    /// # Errors
    /// Some may be kept where nothing can be read now.
    pub(super) fn park_records(
        &self,
        peer: PeerId,
        mut numbers: BTreeSet<MessageNumber>,
    ) -> io::Result<Vec<ParkRecord>> {
        let Some(lowest) = numbers.first().copied() else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for source in self.sources_from(lowest).unwrap_or_default() {
            for record in self.settles_of(source, peer, lowest)?.records {
                if let SettleOrPark::Park(park) = record
                    && numbers.remove(&park.number)
                {
                    found.push(park);
                }
            }
            if numbers.is_empty() {
                break;
            }
        }
        Ok(found)
    }

    /// Everything that can say something about a message: its own segment or segments, and all later
    /// ones.
    fn sources_from(&self, number: MessageNumber) -> Result<Vec<Source>, LookupError> {
        let stored = |id, first, next| Source { first, next, place: At::Stored, id };
        let mut sources: Vec<Source> = {
            let state = self.state.lock();
            if number == 0 || number >= state.durable_next {
                return Err(LookupError::Unknown);
            }
            let all = state.segments.iter();
            all.map(|s| stored(s.id, s.first, s.next.unwrap_or(MessageNumber::MAX))).collect()
        };
        let pool = self.pool.lock();
        sources.extend(pool.retired.iter().map(|note| stored(note.id, note.first, note.next)));
        let history = |note: &HistoryNote| Source {
            first: note.first,
            next: note.next,
            place: match note.keeps {
                Keeps::All => At::History,
                Keeps::Parks => At::Parks,
            },
            id: note.id,
        };
        sources.extend(pool.history.iter().map(history));
        drop(pool);
        sources.retain(|source| source.next > number);
        sources.sort_unstable();
        Ok(sources)
    }

    /// Where a message is, of all the places in whose range it lies: with its body if there is one.
    fn entry_of(
        &self,
        sources: &[Source],
        number: MessageNumber,
    ) -> Result<(Source, MessageEntry), LookupError> {
        let here = sources.iter().take_while(|source| source.first <= number);
        let mut here: Vec<&Source> = here.filter(|source| source.place != At::Parks).collect();
        here.sort_by_key(|source| source.place);
        let (mut complete, mut unreadable) = (false, false);
        for source in here {
            let Ok(relative) = u32::try_from(number - source.first) else { continue };
            match self.message_entry(*source, relative) {
                Ok(Some(entry)) => return Ok((*source, entry)),
                // Cold segments lack what was done when they were made.
                Ok(None) => complete |= !is_cold(source.id),
                Err(IndexError::Io(error)) if !is_missing(&error) => unreadable = true,
                Err(_) => {}
            }
        }
        if unreadable {
            return Err(LookupError::Unavailable);
        }
        // The number of a settle or an admin record is no message's.
        Err(if complete { LookupError::Unknown } else { LookupError::AgedOut })
    }

    fn message_entry(
        &self,
        source: Source,
        relative: u32,
    ) -> Result<Option<MessageEntry>, IndexError> {
        if source.place == At::Stored {
            let state = self.state.lock();
            let segment = state.segments.iter().find(|segment| segment.id == source.id);
            match segment.map(|segment| &segment.index) {
                Some(Place::Active(index)) => return Ok(index.messages.find(relative)),
                Some(Place::Sealed(index)) => return Ok(index.messages.find(relative)),
                Some(Place::File) | None => {}
            }
        }
        let messages = match self.messages_of(source) {
            Err(error) if source.place == At::Stored => {
                // The segment knows it too.
                self.rebuild_index(source.id, None, error)?;
                let gone = IndexError::Io(io::ErrorKind::NotFound.into());
                self.rebuilt_messages(source.id).ok_or(gone)?
            }
            messages => messages?,
        };
        Ok(messages.find(relative))
    }

    /// All messages of a segment whose index has just been built again.
    fn rebuilt_messages(&self, id: u64) -> Option<Messages> {
        let state = self.state.lock();
        let segment = state.segments.iter().find(|segment| segment.id == id)?;
        match &segment.index {
            Place::Sealed(index) => Some(index.messages.clone()),
            Place::Active(_) | Place::File => None,
        }
    }

    fn messages_of(&self, source: Source) -> Result<Messages, IndexError> {
        match self.index_file(source)? {
            (file, Keeps::All) => file.messages(),
            (_, Keeps::Parks) => Err(io::Error::from(io::ErrorKind::NotFound).into()),
        }
    }

    /// What is left of a source, and how much of it that is.
    fn index_file(&self, source: Source) -> Result<(IndexFile, Keeps), IndexError> {
        let stored = match source.place {
            At::Stored => IndexFile::open(&*self.disk, &Shared::index_path(source.id))
                .map(|file| (file, Keeps::All)),
            At::History | At::Parks => Err(io::Error::from(io::ErrorKind::NotFound).into()),
        };
        // Or reclaimed since the sources were listed: its index is history by now.
        stored.or_else(|error| match self.history_of(source.id) {
            Some(note) => Ok((IndexFile::open(&*self.disk, &note.path())?, note.keeps)),
            None => Err(error),
        })
    }

    /// The record by which a message ended for one peer. One that is still on its way to the disk
    /// (`may_come`) has not ended anything: a crash would bring the message back, and `None` says so.
    /// That it ended is certain otherwise, though the record of how may no longer be kept.
    ///
    /// A floor passes over what earlier records settled too. It is the answer only where all records
    /// between the message and it are kept.
    fn ended(
        &self,
        sources: &[Source],
        peer: PeerId,
        number: MessageNumber,
        standing: Standing,
        may_come: bool,
    ) -> Option<Ended> {
        let mut parked = None;
        // Up to here every settle has been looked at.
        let mut whole_to = number;
        let mut is_passed = false;
        for source in sources {
            let follows = source.first <= whole_to;
            // What cannot be read now tells nothing; the rest may tell enough.
            let said = self.settles_of(*source, peer, number).unwrap_or_default();
            let Said { records, is_all } = said;
            // The floor may have passed over a message just before it was parked.
            let park = records.iter().find_map(|record| match record {
                SettleOrPark::Park(park) if park.number == number => Some(park),
                _ => None,
            });
            parked = parked.or_else(|| park.cloned());
            if let (Standing::Parked, Some(park)) = (standing, &parked) {
                return Some(Ended::Parked(park.clone()));
            }
            for record in records {
                let SettleOrPark::Settle(settle) = record else { continue };
                let is_open = parked.is_none() && standing != Standing::Parked;
                let is_passed_here = is_open && number <= settle.floor;
                // What has expired is named. What its floor passes over beyond that had a record of its
                // own, which a crash has taken: how that one ended is not known.
                let tells = is_passed_here && follows && settle.outcome != Outcome::Expired;
                if names(&settle, number) || tells {
                    return Some(settled(settle, number));
                }
                is_passed |= is_passed_here;
            }
            if follows && is_all {
                whole_to = whole_to.max(source.next);
            }
        }
        let may_come = may_come || self.has_unwritten_settles();
        match standing {
            Standing::Parked if may_come => None,
            Standing::Parked => {
                // Its file was damaged, or a checkpoint knew of it and the record was never written.
                let (at_ms, attempts, reason) = (0, 0, "the record of why is lost".to_owned());
                Some(Ended::Parked(ParkRecord { peer, number, at_ms, attempts, reason }))
            }
            // All that was written has been looked at: a crash would bring it back.
            _ if may_come && !is_passed && whole_to == MessageNumber::MAX => {
                parked.map(Ended::Parked)
            }
            _ => Some(Ended::Done),
        }
    }

    /// Whether the state knows of settles or parks whose records are not on the disk.
    fn has_unwritten_settles(&self) -> bool {
        // In this order: what is no longer under way has been queued, and counts there.
        self.lazy_under_way.load(Ordering::Acquire) > 0
            || self.last_lazy.load(Ordering::Acquire) >= self.state.lock().durable_next
    }

    /// A peer's settles and parks in one place, as far as they may be about `number`.
    ///
    /// # Errors
    /// There are some, or may be, and they cannot be read now. What is damaged or gone says nothing.
    fn settles_of(&self, source: Source, peer: PeerId, number: MessageNumber) -> io::Result<Said> {
        // A cold segment has copies of messages and of parks.
        let all = |records| Said { records, is_all: !is_cold(source.id) };
        if source.place == At::Stored {
            // Every commit waits for the lock: nothing is taken apart under it.
            let (growing, sealed) = {
                let state = self.state.lock();
                let segment = state.segments.iter().find(|segment| segment.id == source.id);
                match segment.map(|segment| &segment.index) {
                    Some(Place::Active(index)) => (Some(index.settles.only(peer)), None),
                    Some(Place::Sealed(index)) => (None, Some(Arc::clone(index))),
                    Some(Place::File) | None => (None, None),
                }
            };
            let sealed = sealed.as_ref().map(|index| &index.settles);
            if let Some(settles) = growing.as_ref().or(sealed) {
                return Ok(all(settles.of(peer).collect()));
            }
        }
        let found = self.index_file(source);
        let error =
            match found.and_then(|(file, keeps)| Ok((file.settles_of(peer, number)?, keeps))) {
                Ok((records, Keeps::All)) => return Ok(all(records)),
                Ok((records, Keeps::Parks)) => return Ok(Said { records, is_all: false }),
                Err(error) => error,
            };
        if source.place != At::Stored {
            return match error {
                IndexError::Io(error) if !is_missing(&error) => Err(error),
                _ => Ok(Said::default()),
            };
        }
        self.rebuild_index(source.id, None, error)?;
        let state = self.state.lock();
        let segment = state.segments.iter().find(|segment| segment.id == source.id);
        Ok(match segment.map(|segment| &segment.index) {
            Some(Place::Sealed(index)) => all(index.settles.of(peer).collect()),
            _ => Said::default(),
        })
    }
}

/// Whether a record says something of this message alone.
fn names(settle: &SettleRecord, number: MessageNumber) -> bool {
    settle.above.binary_search(&number).is_ok()
        || settle.details.iter().any(|detail| detail.number == number)
}

fn settled(settle: SettleRecord, number: MessageNumber) -> Ended {
    let detail = settle.details.into_iter().find(|detail| detail.number == number);
    // An ack was of one delivery at least; what ended otherwise may never have been sent.
    let attempts_min = u16::from(settle.outcome == Outcome::Acked);
    let (attempts, value) = detail.map_or((attempts_min, None), |detail| {
        (detail.attempts, (!detail.value.is_empty()).then(|| Bytes::from(detail.value)))
    });
    let SettleRecord { outcome, at_ms, moved_to, .. } = settle;
    Ended::Settled { outcome, at_ms, moved_to, attempts, value }
}
