//! Producers that await an answer: one for each call whose message has not ended.
//!
//! Bounded for the node and for each connection. A connection that calls beyond its bound gives up
//! its own oldest call, so that nobody can use up the places of all.

use crate::link::SharedProducer;
use restante_protocol::frame::ReplyKind;
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::time::Time;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// How often at most those whose caller has gone are searched for. A search looks at all, and each
/// call beyond the limit asks for one: who keeps calling must not keep the router searching.
const SEARCH_EVERY: Duration = Duration::from_secs(1);

/// A producer awaits this message's end.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) from: SharedProducer,
    pub(super) sequence: u64,
    /// Whose answer it is.
    pub(super) peer: PeerId,
}

impl Call {
    /// Tells the producer that no answer will come, and why.
    pub(super) fn end(&self, how: &[u8]) {
        self.from.reply(self.sequence, ReplyKind::Ended, how);
    }

    pub(super) fn is_of(&self, from: &SharedProducer, sequence: u64) -> bool {
        self.sequence == sequence && caller(&self.from) == caller(from)
    }
}

/// Tells callers apart; unique among those that have a call here.
fn caller(from: &SharedProducer) -> usize {
    Arc::as_ptr(from).cast::<()>() as usize
}

/// See the module.
pub(super) struct Calls {
    by_number: HashMap<MessageNumber, Call>,
    /// Each caller's, by sequence, which ascends with the number.
    by_caller: HashMap<usize, BTreeMap<u64, MessageNumber>>,
    max: usize,
    each_max: usize,
    searched: Option<Time>,
}

impl Calls {
    /// At most `max` calls, and `each_max` of one caller.
    pub(super) fn new(max: usize, each_max: usize) -> Calls {
        let (by_number, by_caller) = (HashMap::new(), HashMap::new());
        Calls { by_number, by_caller, max, each_max, searched: None }
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
            self.take_if(|call| call.from.is_closed());
        }
        self.by_number.len() + coming < self.max
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Enters a call. Its caller's oldest, if that had to make room for it.
    pub(super) fn insert(&mut self, number: MessageNumber, call: Call) -> Option<Call> {
        let of_caller = self.by_caller.entry(caller(&call.from)).or_default();
        of_caller.insert(call.sequence, number);
        let over = of_caller.len() > self.each_max;
        let oldest = over.then(|| of_caller.first_key_value().map(|(_, number)| *number)).flatten();
        self.by_number.insert(number, call);
        self.remove(oldest?)
    }

    pub(super) fn remove(&mut self, number: MessageNumber) -> Option<Call> {
        let call = self.by_number.remove(&number)?;
        if let Some(of_caller) = self.by_caller.get_mut(&caller(&call.from)) {
            of_caller.remove(&call.sequence);
            if of_caller.is_empty() {
                self.by_caller.remove(&caller(&call.from));
            }
        }
        Some(call)
    }

    /// The call with this sequence is awaited no more.
    pub(super) fn cancel(&mut self, from: &SharedProducer, sequence: u64) -> Option<Call> {
        let number = *self.by_caller.get(&caller(from))?.get(&sequence)?;
        self.remove(number)
    }

    /// Which of these messages are calls that await their answers. Takes time with the fewer of both.
    pub(super) fn numbers_of(&self, messages: &[MessageNumber]) -> Vec<MessageNumber> {
        if self.by_number.len() < messages.len() {
            let calls = self.by_number.keys().copied();
            return calls.filter(|call| messages.binary_search(call).is_ok()).collect();
        }
        messages.iter().copied().filter(|message| self.by_number.contains_key(message)).collect()
    }

    /// Takes every call that awaits this peer's answer.
    pub(super) fn take_of(&mut self, peer: PeerId) -> Vec<Call> {
        self.take_if(|call| call.peer == peer)
    }

    fn take_if(&mut self, which: impl Fn(&Call) -> bool) -> Vec<Call> {
        let all = self.by_number.iter();
        let mut taken: Vec<_> =
            all.filter(|(_, call)| which(call)).map(|(number, _)| *number).collect();
        taken.sort_unstable();
        taken.into_iter().filter_map(|number| self.remove(number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::ProducerLink;
    use parking_lot::Mutex;
    use restante_protocol::frame::{Confirm, Refuse};
    use restante_protocol::refusal::Refusal;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

    const PEER: PeerId = PeerId(1);

    /// Counts how often it is asked whether it has gone.
    #[derive(Default)]
    struct Caller {
        gone: AtomicBool,
        asked: AtomicUsize,
        ended: Mutex<Vec<u64>>,
    }

    impl ProducerLink for Caller {
        fn confirm(&self, _: Confirm, _: u64) {}
        fn refuse(&self, _: &Refuse, _: u64) {}
        fn reply(&self, sequence: u64, _: ReplyKind, _: &[u8]) {
            self.ended.lock().push(sequence);
        }
        fn supersede(&self) {}
        fn abandon(&self, _: &Refusal) {}
        fn is_closed(&self) -> bool {
            self.asked.fetch_add(1, Relaxed);
            self.gone.load(Relaxed)
        }
    }

    fn call(caller: &Arc<Caller>, sequence: u64) -> Call {
        Call { from: Arc::clone(caller) as SharedProducer, sequence, peer: PEER }
    }

    #[test]
    fn who_keeps_calling_beyond_the_limit_does_not_keep_the_router_searching() {
        let caller = Arc::new(Caller::default());
        let mut calls = Calls::new(3, 3);
        for number in 1..=3 {
            assert!(calls.has_room(0, || Time::ZERO));
            assert!(calls.insert(number, call(&caller, number)).is_none());
        }
        for _ in 0..1_000 {
            assert!(!calls.has_room(0, || Time::ZERO));
        }
        assert_eq!(caller.asked.load(Relaxed), 3, "one search");
        caller.gone.store(true, Relaxed);
        assert!(calls.has_room(0, || Time::ZERO + SEARCH_EVERY));
        assert!(calls.by_number.is_empty() && calls.by_caller.is_empty());
        assert!(!calls.has_room(3, || Time::ZERO), "those that are coming count");
    }

    #[test]
    fn a_caller_beyond_its_bound_gives_up_its_own_oldest() {
        let (greedy, modest) = (Arc::new(Caller::default()), Arc::new(Caller::default()));
        let mut calls = Calls::new(100, 2);
        assert!(calls.insert(1, call(&modest, 1)).is_none());
        for number in 2..=4 {
            if let Some(oldest) = calls.insert(number, call(&greedy, number)) {
                oldest.end(b"too many");
            }
        }
        assert_eq!(*greedy.ended.lock(), [2]);
        assert!(calls.remove(2).is_none());
        assert!(calls.remove(3).is_some());
        assert!(calls.insert(5, call(&greedy, 5)).is_none(), "its answer made room");
        assert!(modest.ended.lock().is_empty());
    }

    #[test]
    fn a_call_that_is_cancelled_makes_room_for_another_of_the_same_caller() {
        let (one, other) = (Arc::new(Caller::default()), Arc::new(Caller::default()));
        let mut calls = Calls::new(100, 2);
        for number in 1..=2 {
            assert!(calls.insert(number, call(&one, number)).is_none());
        }
        let shared = |caller: &Arc<Caller>| Arc::clone(caller) as SharedProducer;
        assert!(calls.cancel(&shared(&other), 2).is_none(), "it is not its own");
        assert!(calls.cancel(&shared(&one), 2).is_some());
        assert!(calls.cancel(&shared(&one), 2).is_none());
        assert!(calls.insert(3, call(&one, 3)).is_none());
        assert!(calls.remove(2).is_none() && calls.remove(1).is_some());
        assert!(calls.cancel(&shared(&one), 3).is_some() && calls.by_caller.is_empty());
    }

    #[test]
    fn all_calls_of_a_peer_are_taken_and_no_others() {
        let caller = Arc::new(Caller::default());
        let mut calls = Calls::new(100, 100);
        for number in 1..=3 {
            calls.insert(number, call(&caller, number));
        }
        calls.insert(4, Call { peer: PeerId(2), ..call(&caller, 4) });
        let sequences: Vec<u64> = calls.take_of(PEER).iter().map(|call| call.sequence).collect();
        assert_eq!(sequences, [1, 2, 3]);
        assert!(calls.remove(4).is_some() && calls.by_caller.is_empty());
    }
}
