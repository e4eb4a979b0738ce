//! The room where peers whose rate is limited ask for leave to send.
//!
//! A peer says once per drain what it has at hand ([`Shaping::ask`]) and is woken when it may send some of
//! it; what it has not used by the end of that drain goes back ([`Shaping::used`]). Grants are given out by
//! one task with one timer for all ([`Shaping::serve`]), and not where they are asked for: every peer that
//! waits gets its turn before one of them gets a second.
//!
//! A peer that nothing limits never comes here.

use crate::clock;
use crate::peer::MaySend;
use actix::Recipient;
use parking_lot::Mutex;
use restante_protocol::admin::PeerSettings;
use restante_protocol::id::PeerId;
use restante_protocol::name::Name;
use restante_protocol::registry::Class;
use restante_protocol::shaper::{Amount, ClassId, Demand, Rates, Shaper, ShaperError};
use restante_protocol::time::Time;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::Notify;

/// Grants that are given out before others on this thread have their turn.
const GRANTS_MAX: usize = 256;

/// See the module.
pub struct Shaping {
    /// Whether the node has a limit, which is one for every peer.
    is_node_limited: bool,
    room: Mutex<Room>,
    /// Somebody asks, or has answered.
    asked: Notify,
}

struct Room {
    shaper: Shaper,
    peers: HashMap<PeerId, Recipient<MaySend>>,
    classes: HashMap<Name, ClassId>,
    /// Classes that have been removed and have peers here which do not know it yet.
    leaving: Vec<ClassId>,
    /// The peer that sends by its grant at the moment.
    sending: Option<PeerId>,
}

impl Shaping {
    /// A room without peers, of a node that may send no more than this.
    #[must_use]
    pub fn new(now: Time, node: &Rates) -> Shaping {
        let mut shaper = Shaper::new(now, &node.resolved());
        // There is room for a first class.
        let _ = shaper.set_class(now, ClassId::NONE, &Rates::default());
        let (peers, classes) = (HashMap::new(), HashMap::new());
        let room = Room { shaper, peers, classes, leaving: Vec::new(), sending: None };
        Shaping { is_node_limited: node.are_limits(), room: Mutex::new(room), asked: Notify::new() }
    }

    /// Whether a peer with these settings has to ask for leave.
    pub(crate) fn limits(&self, settings: &PeerSettings) -> bool {
        self.is_node_limited || settings.rates.are_limits() || settings.class.is_some()
    }

    /// Takes a class in, or the rates it has now.
    pub(crate) fn set_class(&self, now: Time, class: &Class) {
        let mut room = self.room.lock();
        room.leaving.retain(|id| *id != class.id);
        room.classes.insert(class.name.clone(), class.id);
        // There are no more than there is room for: the registry sees to that.
        let _ = room.shaper.set_class(now, class.id, &class.rates.resolved());
        drop(room);
        self.asked.notify_one();
    }

    /// Lets a class go once its last peer has: one that has been moved may not have been told yet.
    pub(crate) fn remove_class(&self, name: &Name) {
        let mut room = self.room.lock();
        let id = room.classes.remove(name);
        room.leaving.extend(id);
        room.let_classes_go();
    }

    /// Takes a peer in, with its settings as they are now, or lets it go if nothing limits it.
    pub(crate) fn set(
        &self,
        now: Time,
        id: PeerId,
        peer: Recipient<MaySend>,
        settings: &PeerSettings,
    ) {
        if !self.limits(settings) {
            return self.remove(now, id);
        }
        let mut room = self.room.lock();
        room.peers.insert(id, peer);
        // One that is gone again by now has been left by a change that the peer will be told of next.
        let class = settings.class.as_ref().and_then(|class| room.classes.get(class)).copied();
        let class = class.unwrap_or(ClassId::NONE);
        // The class is there.
        let _ = room.shaper.set_peer(now, id, class, &settings.rates.resolved());
        room.let_classes_go();
        drop(room);
        self.asked.notify_one();
    }

    /// Lets a peer go, with the grant it may hold.
    pub(crate) fn remove(&self, now: Time, id: PeerId) {
        let mut room = self.room.lock();
        if room.peers.remove(&id).is_some() {
            room.shaper.remove_peer(now, id);
            room.let_classes_go();
            drop(room);
            self.asked.notify_one();
        }
    }

    /// What a peer has at hand, and what of it it may send now: that is answered by [`Shaping::used`] before
    /// anybody else asks. `None`: nothing yet, it is told by [`MaySend`] when it may.
    pub(crate) fn ask(&self, now: Time, id: PeerId, demand: Demand) -> Option<Amount> {
        let mut room = self.room.lock();
        let granted = room.shaper.granted(id);
        if granted.is_some_and(|amount| demand.is_met_by(amount)) {
            room.sending = Some(id);
            return granted;
        }
        match granted {
            None if demand == Demand::default() => {
                // Whoever stood behind it may go now.
                let has_waited = room.shaper.ready_at(now, id).is_some();
                room.shaper.handle_demand(now, id, demand);
                if has_waited {
                    self.asked.notify_one();
                }
                return None;
            }
            // It was for something else: for a smaller message, or for a link that is gone.
            Some(_) => room.shaper.handle_used(now, id, Amount::default(), demand),
            None => room.shaper.handle_demand(now, id, demand),
        }
        drop(room);
        self.asked.notify_one();
        None
    }

    /// What a peer has sent by the leave it got, and what it has at hand now.
    pub(crate) fn used(&self, now: Time, id: PeerId, used: Amount, demand: Demand) {
        let mut room = self.room.lock();
        room.sending = None;
        room.shaper.handle_used(now, id, used, demand);
        drop(room);
        self.asked.notify_one();
    }

    /// A peer's actor has crashed. A grant it holds goes back, unless it was sending by it: nobody knows how
    /// much of that it has used.
    pub(crate) fn crashed(&self, now: Time, id: PeerId) {
        let mut room = self.room.lock();
        let was_sending = room.sending.take_if(|sending| *sending == id).is_some();
        let granted = room.shaper.granted(id).unwrap_or_default();
        let used = if was_sending { granted } else { Amount::default() };
        room.shaper.handle_used(now, id, used, Demand::default());
        drop(room);
        self.asked.notify_one();
    }

    /// When a peer that waits for leave gets it at the earliest.
    pub(crate) fn ready_at(&self, now: Time, id: PeerId) -> Option<Time> {
        self.room.lock().shaper.ready_at(now, id)
    }

    /// Gives leave to those that ask, for as long as it is polled.
    pub(crate) async fn serve(&self) {
        loop {
            let due = self.grant(clock::now());
            match due {
                None => self.asked.notified().await,
                Some(due) => {
                    let wait = due.since(clock::now());
                    if wait == Duration::ZERO {
                        tokio::task::yield_now().await;
                    } else {
                        // Whichever comes first.
                        let _ = tokio::time::timeout(wait, self.asked.notified()).await;
                    }
                }
            }
        }
    }

    /// Gives out what may be, and tells when there may be more.
    fn grant(&self, now: Time) -> Option<Time> {
        let mut room = self.room.lock();
        for _ in 0..GRANTS_MAX {
            let Some(grant) = room.shaper.poll_grant(now) else {
                return room.shaper.next_deadline();
            };
            // A fresh address has a place in the mailbox however full that is.
            let told = room.peers.get(&grant.peer).map(|peer| peer.clone().try_send(MaySend));
            if !matches!(told, Some(Ok(()))) {
                // Its actor is gone for good.
                room.peers.remove(&grant.peer);
                room.shaper.remove_peer(now, grant.peer);
            }
        }
        Some(now)
    }
}

impl Room {
    fn let_classes_go(&mut self) {
        let Room { shaper, leaving, .. } = self;
        leaving.retain(|id| matches!(shaper.remove_class(*id), Err(ShaperError::ClassInUse(_))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix::prelude::*;
    use restante_protocol::shaper::Rate;

    const NOW: Time = Time::from_millis(1_000);
    const ID: PeerId = PeerId(1);

    /// Is told that it may send, and does not listen.
    struct Somebody;

    impl Actor for Somebody {
        type Context = Context<Self>;
    }

    impl Handler<MaySend> for Somebody {
        type Result = ();

        fn handle(&mut self, _: MaySend, _: &mut Self::Context) {}
    }

    fn at_most(per_second: u64) -> Rates {
        let messages = Rate { ceil: per_second, ..Rate::default() };
        Rates { messages, ..Rates::default() }
    }

    fn wants(messages: u64) -> Demand {
        Demand { amount: Amount { messages, bytes: 10 * messages }, first_bytes: 10 }
    }

    /// In a room with one peer that may send ten at once, and no more for a second.
    fn with_a_peer(test: impl FnOnce(&Shaping, Recipient<MaySend>)) {
        System::new().block_on(async {
            let shaping = Shaping::new(NOW, &Rates::default());
            let peer = Somebody.start().recipient();
            let rates = Rates {
                messages: Rate { ceil: 1, burst: 10, ..Rate::default() },
                ..Rates::default()
            };
            let settings = PeerSettings { rates, ..PeerSettings::default() };
            shaping.set(NOW, ID, peer.clone(), &settings);
            test(&shaping, peer);
        });
    }

    /// How much it may still send at once.
    fn left(shaping: &Shaping) -> u64 {
        shaping.ask(NOW, ID, wants(100));
        shaping.grant(NOW);
        let left = shaping.ask(NOW, ID, wants(100)).unwrap_or_default();
        shaping.used(NOW, ID, Amount::default(), Demand::default());
        left.messages
    }

    #[test]
    fn leave_is_given_to_who_asks_and_what_is_not_used_goes_back() {
        with_a_peer(|shaping, _| {
            assert_eq!(shaping.ask(NOW, ID, wants(4)), None, "not where it is asked for");
            shaping.grant(NOW);
            assert_eq!(shaping.ask(NOW, ID, wants(4)), Some(wants(4).amount));
            shaping.used(NOW, ID, wants(3).amount, wants(1));
            shaping.grant(NOW);
            // Its link is gone before it has come to that.
            assert_eq!(shaping.ask(NOW, ID, Demand::default()), None);
            assert_eq!(left(shaping), 7);
            assert_eq!(shaping.ready_at(NOW, ID), None, "it does not wait");
        });
    }

    #[test]
    fn leave_for_a_small_message_is_not_leave_for_a_large_one() {
        with_a_peer(|shaping, _| {
            shaping.ask(NOW, ID, wants(1));
            shaping.grant(NOW);
            let large = Demand { first_bytes: 11, ..wants(2) };
            assert_eq!(shaping.ask(NOW, ID, large), None);
            shaping.grant(NOW);
            assert_eq!(shaping.ask(NOW, ID, large), Some(large.amount));
        });
    }

    #[test]
    fn who_crashes_as_it_sends_has_sent_it_all_and_otherwise_nothing() {
        with_a_peer(|shaping, _| {
            shaping.ask(NOW, ID, wants(2));
            shaping.grant(NOW);
            shaping.crashed(NOW, ID);
            assert_eq!(left(shaping), 10, "it had not come to it");
            shaping.ask(NOW, ID, wants(2));
            shaping.grant(NOW);
            assert!(shaping.ask(NOW, ID, wants(2)).is_some());
            shaping.crashed(NOW, ID);
            assert_eq!(left(shaping), 8);
        });
    }

    #[test]
    fn who_has_gone_is_given_nothing_and_holds_up_nobody() {
        with_a_peer(|shaping, peer| {
            let other = PeerId(2);
            let settings = PeerSettings { rates: at_most(10), ..PeerSettings::default() };
            shaping.set(NOW, other, peer, &settings);
            shaping.ask(NOW, ID, wants(1));
            shaping.ask(NOW, other, wants(1));
            shaping.remove(NOW, ID);
            shaping.grant(NOW);
            assert_eq!(shaping.ask(NOW, ID, wants(1)), None);
            assert!(shaping.ask(NOW, other, wants(1)).is_some());
            shaping.used(NOW, other, wants(1).amount, wants(9));
            assert_eq!(shaping.grant(NOW), Some(NOW + Duration::from_millis(100)));
            // An unlimited one is not here any more.
            shaping.set(NOW, other, Somebody.start().recipient(), &PeerSettings::default());
            assert_eq!(shaping.grant(NOW), None);
        });
    }

    #[test]
    fn peers_of_a_class_share_its_rate_and_a_class_that_goes_is_left_first() {
        with_a_peer(|shaping, peer| {
            let class = |version, rates| {
                let (id, name) = (ClassId(1), "bulk".parse().unwrap());
                Class { id, name, version, rates }
            };
            shaping.set_class(NOW, &class(1, at_most(10)));
            let settings =
                PeerSettings { class: Some("bulk".parse().unwrap()), ..PeerSettings::default() };
            assert!(shaping.limits(&settings), "whatever the rates of the class are now");
            for id in [2, 3] {
                shaping.set(NOW, PeerId(id), peer.clone(), &settings);
                shaping.ask(NOW, PeerId(id), wants(1));
            }
            let next = Some(NOW + Duration::from_millis(100));
            assert_eq!(shaping.grant(NOW), next, "one may, the other has to wait");
            assert_eq!(shaping.ready_at(NOW, PeerId(3)), next);
            shaping.set_class(NOW, &class(2, at_most(0)));
            assert_eq!(shaping.grant(NOW), None, "nothing limits them any more");
            assert!(shaping.ask(NOW, PeerId(3), wants(1)).is_some());
            shaping.used(NOW, PeerId(3), wants(1).amount, Demand::default());
            // The class goes; its peers learn of it one after the other.
            shaping.remove_class(&"bulk".parse().unwrap());
            shaping.set(NOW, PeerId(2), peer, &PeerSettings::default());
            assert_eq!(shaping.room.lock().leaving, [ClassId(1)]);
            shaping.set(NOW, PeerId(3), Somebody.start().recipient(), &settings);
            assert_eq!(shaping.room.lock().leaving, []);
        });
    }

    #[test]
    fn only_whom_something_limits_has_to_ask() {
        let free = PeerSettings::default();
        let rated = PeerSettings { rates: at_most(5), ..PeerSettings::default() };
        let unlimited = Shaping::new(NOW, &Rates::default());
        assert!(!unlimited.limits(&free) && unlimited.limits(&rated));
        assert!(Shaping::new(NOW, &at_most(1)).limits(&free));
    }
}
