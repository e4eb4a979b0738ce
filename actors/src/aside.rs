//! The messages of one peer that are set aside, a page at a time: for whoever asks.
//!
//! Those of a peer that is there are in the journal's parked lane. A removed one that kept its messages
//! has no queue any more: what waited for it is set aside too, by its removal, and the two lanes are
//! read as one, in order of number.

use crate::journal::{Journal, Lane, Page, Read, ReadError, Stored};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::ParkRecord;
use restante_protocol::stored::Parking;
use restante_protocol::time::WallMillis;
use std::collections::HashMap;

/// Why what waited for a removed peer is parked.
pub(crate) const REMOVED: &str = "its peer was removed";

/// A message that is set aside.
#[derive(Debug)]
pub(crate) struct Aside {
    /// As stored.
    pub(crate) stored: Stored,
    /// Since when and why.
    pub(crate) parking: Parking,
}

/// What to look at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// Whose messages.
    pub(crate) peer: PeerId,
    /// When its removal parked what waited for it, if it did.
    pub(crate) removed_at: Option<WallMillis>,
    /// Only those above this number.
    pub(crate) after: MessageNumber,
    /// Only those up to this number.
    pub(crate) through: MessageNumber,
    /// At most this many.
    pub(crate) messages_max: usize,
    /// At most this many bytes of bodies, and at least one message.
    pub(crate) bytes_max: usize,
}

impl Look {
    pub(crate) fn read(&self, lane: Lane) -> Read {
        Read {
            peer: self.peer,
            lane,
            after: self.after,
            through: self.through,
            bytes_max: self.bytes_max,
            messages_max: self.messages_max,
        }
    }
}

/// The next of them, and up to where nothing else lies.
///
/// # Errors
/// As [`Journal::next`]; of a damaged message nothing lies between `after` and its number.
pub(crate) async fn next(
    journal: &dyn Journal,
    look: Look,
) -> Result<(Vec<Aside>, MessageNumber), ReadError> {
    let parked = up_to_damage(journal.next(look.read(Lane::Parked)).await, look.after)?;
    let mut through = parked.through;
    let mut asides = from_parked(parked);
    if let Some(at) = look.removed_at {
        let open = up_to_damage(journal.next(look.read(Lane::Open)).await, look.after)?;
        through = through.min(open.through);
        let parking = Parking { at: Some(at), attempts: 0, reason: REMOVED.to_owned() };
        asides.extend(
            open.messages.into_iter().map(|stored| Aside { stored, parking: parking.clone() }),
        );
        asides.retain(|aside| aside.stored.number <= through);
        asides.sort_unstable_by_key(|aside| aside.stored.number);
    }
    Ok((asides, through))
}

fn from_parked(page: Page) -> Vec<Aside> {
    let mut parks: HashMap<MessageNumber, ParkRecord> =
        page.parks.into_iter().map(|park| (park.number, park)).collect();
    let aside = |stored: Stored| {
        let parking = parks.remove(&stored.number).map(|park| Parking {
            at: Some(WallMillis(park.at_ms)),
            attempts: u32::from(park.attempts),
            reason: park.reason,
        });
        Aside { stored, parking: parking.unwrap_or_default() }
    };
    page.messages.into_iter().map(aside).collect()
}

/// What lies before a damaged message comes first, in both lanes.
fn up_to_damage(page: Result<Page, ReadError>, after: MessageNumber) -> Result<Page, ReadError> {
    match page {
        Err(ReadError::Damaged { number, .. }) if number > after + 1 => {
            Ok(Page { through: number - 1, ..Page::default() })
        }
        page => page,
    }
}
