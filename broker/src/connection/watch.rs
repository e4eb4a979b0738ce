//! A watch, on its way from the observer's arbiter into a connection.

use super::outbox::Outbox;
use parking_lot::Mutex;
use restante_actors::observe::WatchSink;
use restante_protocol::control::{Control, WatchEvent};
use std::sync::Arc;

/// Watches of one connection at once.
pub(super) const WATCHES_MAX: usize = 16;
/// Events that may come before the watch has been answered.
const EARLY_MAX: usize = 4;

/// Holds events back until the request for the watch has been answered, then lets them through.
pub(super) struct Watcher {
    outbox: Arc<Outbox>,
    early: Mutex<Option<Vec<(u64, WatchEvent)>>>,
}

impl Watcher {
    pub(super) fn new(outbox: &Arc<Outbox>) -> Arc<Watcher> {
        let (outbox, early) = (Arc::clone(outbox), Mutex::new(Some(Vec::new())));
        Arc::new(Watcher { outbox, early })
    }

    /// The watcher has its answer: events may follow.
    pub(super) fn open(&self) {
        // The lock is held until all have been said, so that none overtakes them.
        let mut early = self.early.lock();
        for (watch, event) in early.take().unwrap_or_default() {
            self.outbox.say_event(&Control::Event { watch, event });
        }
    }
}

impl WatchSink for Watcher {
    fn has_room(&self) -> bool {
        match &*self.early.lock() {
            Some(early) => early.len() < EARLY_MAX,
            None => self.outbox.has_event_room(),
        }
    }

    fn event(&self, watch: u64, event: WatchEvent) -> bool {
        match &mut *self.early.lock() {
            Some(early) => {
                early.push((watch, event));
                true
            }
            None => self.outbox.say_event(&Control::Event { watch, event }),
        }
    }

    fn connection(&self) -> u64 {
        self.outbox.connection()
    }
}
