//! Since when a peer's oldest message waits, while the core holds no bodies to tell it by.
//!
//! Without a link a core knows numbers and counts. The first open message is then read from the
//! journal: once when it is asked for, and again only after that one is done. No message costs
//! anything for it, and what was read is dropped at once but for a number and a time.

use super::Peer;
use crate::clock;
use crate::journal::{Lane, Page, Read, ReadError};
use actix::prelude::*;
use restante_protocol::delivery::types::Snapshot;
use restante_protocol::id::MessageNumber;
use restante_protocol::time::Time;

/// What is known of the first open message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Oldest {
    /// Nothing; it may be asked for.
    Unknown,
    /// A read is under way.
    Asked,
    /// Which it is, and when it was accepted. As long as it is open none is older: numbers ascend.
    Known { number: MessageNumber, accepted_ms: u64 },
    /// The journal could not tell. It is asked again once the floor has moved.
    Untold { floor: MessageNumber },
}

impl Peer {
    /// How the peer is, with what the core cannot know by itself.
    pub(super) fn snapshot(&self, now: Time) -> Snapshot {
        let mut snapshot = self.core.snapshot(now);
        if let (None, Oldest::Known { number, accepted_ms }) = (snapshot.oldest_ms, self.oldest)
            && self.core.whereabouts(now, number).is_some()
        {
            snapshot.oldest_ms = Some(accepted_ms);
        }
        snapshot
    }

    /// Asks the journal if nothing else can tell. With a link the bodies come by themselves.
    pub(super) fn ask_for_oldest(&mut self, snapshot: &Snapshot, ctx: &mut Context<Self>) {
        if snapshot.oldest_ms.is_some() || snapshot.waiting == 0 || self.link.is_some() {
            return;
        }
        let floor = self.core.floor();
        match self.oldest {
            Oldest::Asked => return,
            Oldest::Untold { floor: untold } if untold == floor => return,
            Oldest::Untold { .. } | Oldest::Known { .. } | Oldest::Unknown => {}
        }
        self.oldest = Oldest::Asked;
        let first = Read {
            peer: self.config.id,
            lane: Lane::Open,
            after: floor,
            through: MessageNumber::MAX,
            bytes_max: 1,
            messages_max: 1,
        };
        let page = self.shared.journal.next(first).into_actor(self);
        ctx.spawn(page.map(move |page, peer, ctx| peer.told_of_oldest(floor, page, ctx)));
    }

    fn told_of_oldest(
        &mut self,
        floor: MessageNumber,
        page: Result<Page, ReadError>,
        ctx: &mut Context<Self>,
    ) {
        // What is wrong with a damaged record is said when it is to be delivered.
        let first = page.ok().and_then(|page| page.messages.into_iter().next());
        // Done since, or set aside and not yet on disk: no use to ask for it again at once.
        let now = clock::now();
        let first = first.filter(|first| self.core.whereabouts(now, first.number).is_some());
        self.oldest = first.map_or(Oldest::Untold { floor }, |first| Oldest::Known {
            number: first.number,
            accepted_ms: first.accepted_ms,
        });
        // To be seen at once, not with the next change.
        self.observed_at = Time::ZERO;
        self.mark_dirty(ctx);
    }
}
