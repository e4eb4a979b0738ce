//! What is stored for a peer, a page an answer: read from the journal, whatever its number, with
//! nothing taken away.

use super::{Sources, unanswered};
use crate::aside::{self, Aside, Look};
use crate::journal::{Lane as StoredLane, ReadError, Stored};
use crate::router::FlushSettles;
use restante_protocol::id::{MessageId, MessageNumber};
use restante_protocol::limits::{MESSAGE_PAGE_MAX, PAGE_BODY_BYTES_MAX};
use restante_protocol::message::Body;
use restante_protocol::refusal::Refusal;
use restante_protocol::stored::{Filter, Lane, MessagePage, Parking, StoredMessage};
use restante_protocol::time::WallMillis;

/// Pages of the journal looked at for one answer: a filter that lets nothing through is answered too.
const PAGES_MAX: usize = 16;
/// What is known of a message whose record on disk is damaged.
const DAMAGED: &str = "its record is damaged on disk";

/// A question about stored messages.
pub(super) struct Question {
    pub(super) peer: String,
    pub(super) lane: Lane,
    pub(super) filter: Filter,
    pub(super) after: MessageNumber,
    pub(super) bodies: bool,
}

impl Sources {
    pub(super) async fn stored(&self, asked: Question) -> Result<MessagePage, Refusal> {
        let Question { peer, lane, filter, after, bodies } = asked;
        filter.check_for(lane)?;
        let record = self.record(&peer).await?;
        let removed_at = record.parked_at;
        if lane == Lane::Parked && after == 0 {
            // Why something is parked is known once that is on disk.
            self.router.send(FlushSettles).await.map_err(unanswered)??;
        }
        let through = self.journal.next_number() - 1;
        let mut page =
            MessagePage { through: after.min(through), more: true, ..MessagePage::default() };
        if lane == Lane::Waiting && removed_at.is_some() {
            // Whatever waited for it is parked.
            return Ok(MessagePage { more: false, ..page });
        }
        let mut bytes_max = PAGE_BODY_BYTES_MAX;
        for _ in 0..PAGES_MAX {
            let look = Look {
                peer: record.id,
                removed_at,
                after: page.through,
                through,
                messages_max: MESSAGE_PAGE_MAX - page.messages.len(),
                bytes_max,
            };
            let (found, looked_through) = match self.look(lane, look).await {
                Ok(found) => found,
                Err(ReadError::Damaged { number, .. }) => {
                    // It is counted among the peer's messages, so it is listed, if nothing is asked of it.
                    if filter.is_empty() {
                        page.messages.push(self.damaged(number));
                    }
                    (Vec::new(), number)
                }
                Err(ReadError::Unavailable(why)) => return Err(why),
            };
            page.through = looked_through;
            for (stored, parking) in found {
                let read = Body::parse(&stored.body).unwrap_or_default();
                let shown = self.shown(&stored, &read, parking, bodies);
                let is_chosen = match &shown.parked {
                    Some(parking) => filter.chooses_parked(parking, read.key),
                    None => filter.chooses_waiting(shown.accepted, read.key),
                };
                if is_chosen {
                    let held = shown.body.as_ref().map_or(0, Vec::len);
                    bytes_max = bytes_max.saturating_sub(held);
                    page.messages.push(shown);
                }
            }
            page.more = looked_through < through;
            if !page.more || page.messages.len() >= MESSAGE_PAGE_MAX {
                break;
            }
            if bodies && !page.messages.is_empty() {
                // Another page may bring more bytes than are left.
                break;
            }
        }
        Ok(page)
    }

    /// A message of which only the number is left.
    fn damaged(&self, number: MessageNumber) -> StoredMessage {
        let parked = Some(Parking { at: None, attempts: 0, reason: DAMAGED.to_owned() });
        let (id, accepted) = (MessageId::new(0, self.node, 0, number), WallMillis(0));
        StoredMessage { id, accepted, bytes: 0, key: None, parked, body: None }
    }

    async fn look(
        &self,
        lane: Lane,
        look: Look,
    ) -> Result<(Vec<(Stored, Option<Parking>)>, MessageNumber), ReadError> {
        if lane == Lane::Parked {
            let (asides, through) = aside::next(&*self.journal, look).await?;
            let with_parking = |aside: Aside| (aside.stored, Some(aside.parking));
            return Ok((asides.into_iter().map(with_parking).collect(), through));
        }
        let page = self.journal.next(look.read(StoredLane::Open)).await?;
        Ok((page.messages.into_iter().map(|stored| (stored, None)).collect(), page.through))
    }

    fn shown(
        &self,
        stored: &Stored,
        read: &Body<'_>,
        parked: Option<Parking>,
        bodies: bool,
    ) -> StoredMessage {
        let own = || MessageId::new(stored.accepted_ms, self.node, 0, stored.number);
        let id = read.original_id.unwrap_or_else(own);
        let fits = bodies && stored.body.len() <= PAGE_BODY_BYTES_MAX;
        StoredMessage {
            id,
            accepted: WallMillis(id.accepted_ms()),
            bytes: read.payload.len() as u64,
            key: read.key.map(<[u8]>::to_vec),
            parked,
            body: fits.then(|| stored.body.to_vec()),
        }
    }
}
