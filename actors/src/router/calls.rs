//! Producers that await an answer: one for each call whose message has not ended.

use crate::link::SharedProducer;
use restante_protocol::id::MessageNumber;
use restante_protocol::time::Time;
use std::collections::HashMap;
use std::time::Duration;

/// How often at most those whose caller has gone are searched for. A search looks at all, and each
/// call beyond the limit asks for one: who keeps calling must not keep the router searching.
const SEARCH_EVERY: Duration = Duration::from_secs(1);

/// A producer awaits this message's end.
pub(super) struct Call {
    pub(super) from: SharedProducer,
    pub(super) sequence: u64,
}

/// See the module.
pub(super) struct Calls {
    by_number: HashMap<MessageNumber, Call>,
    max: usize,
    searched: Option<Time>,
}

impl Calls {
    pub(super) fn new(max: usize) -> Calls {
        Calls { by_number: HashMap::new(), max, searched: None }
    }

    /// Whether one more may await its answer beside `coming` others. Those whose caller has gone make
    /// room.
    pub(super) fn has_room(&mut self, coming: usize, now: impl FnOnce() -> Time) -> bool {
        if self.by_number.len() + coming < self.max {
            return true;
        }
        let now = now();
        if self.searched.is_none_or(|at| now.since(at) >= SEARCH_EVERY) {
            self.searched = Some(now);
            self.by_number.retain(|_, call| !call.from.is_closed());
        }
        self.by_number.len() + coming < self.max
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    pub(super) fn insert(&mut self, number: MessageNumber, call: Call) {
        self.by_number.insert(number, call);
    }

    pub(super) fn remove(&mut self, number: MessageNumber) -> Option<Call> {
        self.by_number.remove(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::ProducerLink;
    use restante_protocol::frame::{Confirm, Refuse, ReplyKind};
    use restante_protocol::refusal::Refusal;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

    /// Counts how often it is asked whether it has gone.
    #[derive(Default)]
    struct Caller {
        gone: AtomicBool,
        asked: AtomicUsize,
    }

    impl ProducerLink for Caller {
        fn confirm(&self, _: Confirm, _: u64) {}
        fn refuse(&self, _: &Refuse, _: u64) {}
        fn reply(&self, _: u64, _: ReplyKind, _: &[u8]) {}
        fn supersede(&self) {}
        fn abandon(&self, _: &Refusal) {}
        fn is_closed(&self) -> bool {
            self.asked.fetch_add(1, Relaxed);
            self.gone.load(Relaxed)
        }
    }

    #[test]
    fn who_keeps_calling_beyond_the_limit_does_not_keep_the_router_searching() {
        let caller = Arc::new(Caller::default());
        let mut calls = Calls::new(3);
        for number in 1..=3 {
            assert!(calls.has_room(0, || Time::ZERO));
            let from = Arc::clone(&caller) as SharedProducer;
            calls.insert(number, Call { from, sequence: number });
        }
        for _ in 0..1_000 {
            assert!(!calls.has_room(0, || Time::ZERO));
        }
        assert_eq!(caller.asked.load(Relaxed), 3, "one search");
        caller.gone.store(true, Relaxed);
        assert!(calls.has_room(0, || Time::ZERO + SEARCH_EVERY));
        assert!(calls.is_empty());
        assert!(!calls.has_room(3, || Time::ZERO), "those that are coming count");
    }
}
