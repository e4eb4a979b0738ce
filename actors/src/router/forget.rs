//! Forgetting removed peers, so that adding and removing them for ever costs no more than keeping
//! the last ones: a removed peer is remembered while messages of its own are stored or delayed, and for as
//! long as the ledger can speak of one, since `name#id` is all that an answer can call it. Its id is never
//! given again.

use super::Router;
use crate::events;
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::registry::AdminEvent;
use restante_protocol::state::StateEvent;

/// Removed peers looked at with each checkpoint; the next one goes on from there.
const LOOKED_AT: usize = 256;

impl Router {
    /// Forgets some of those of which nothing is stored any more. Called with each checkpoint,
    /// because what is stored shrinks behind those.
    pub(super) fn forget_spent(&mut self) {
        let oldest = self.journal.oldest_number();
        let looked_at = self.state.registry.at_rest(self.looked_at, LOOKED_AT);
        let is_round = looked_at.len() < LOOKED_AT;
        self.looked_at = looked_at.last().copied().filter(|_| !is_round).unwrap_or(PeerId::NONE);
        for id in looked_at {
            if self.is_spent(id, oldest) {
                self.forget(id);
            }
        }
    }

    /// Forgets this one at once if nothing of it is stored: it never had a message.
    pub(super) fn forget_if_spent(&mut self, id: PeerId) {
        let before = PeerId(id.0.saturating_sub(1));
        let is_at_rest = self.state.registry.at_rest(before, 1) == [id];
        if is_at_rest && self.is_spent(id, self.journal.oldest_number()) {
            self.forget(id);
        }
    }

    /// With no room for another name, the first without messages of its own goes, though the ledger
    /// may still speak of it: it will be called `#id` there.
    pub(super) fn make_room_for_another(&mut self) {
        if self.state.registry.is_memory_full() && self.delays.are_read() {
            let at_rest = self.state.registry.at_rest(PeerId::NONE, usize::MAX);
            if let Some(id) = at_rest.into_iter().find(|id| self.kept_for(*id) == 0) {
                self.forget(id);
            }
        }
    }

    /// Whether nothing of it is stored, nor delayed: that may be meant for one that never had a message.
    fn is_spent(&self, id: PeerId, oldest: MessageNumber) -> bool {
        let is_gone = self.journal.backlog(id).newest < oldest && self.kept_for(id) == 0;
        is_gone && self.delays.are_read()
    }

    fn forget(&mut self, id: PeerId) {
        let label = self.state.registry.label(id);
        // A journal that does not take it now will be asked again.
        if self.append_state(&StateEvent::Admin(AdminEvent::PeerForgotten { id })).is_ok() {
            self.delays.retired(id);
            events::peer_forgotten(&label);
        }
    }
}
