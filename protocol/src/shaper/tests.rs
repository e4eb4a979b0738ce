//! The shaper on a simulated clock: what was sent, when and by whom is held against what was promised.

use super::*;
use core::time::Duration;
use proptest::prelude::*;

/// A peer that always, or from one moment to another, has messages of one size at hand.
#[derive(Clone, Copy, Debug)]
struct Sender {
    peer: PeerId,
    bytes: u64,
    from: Time,
    until: Time,
}

/// Who sent how much, when.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Time,
    peer: PeerId,
    amount: Amount,
}

struct World {
    now: Time,
    shaper: Shaper,
    senders: Vec<Sender>,
    sent: Vec<Sent>,
}

const HELD: u64 = 1_000;

impl World {
    fn new(shaper: Shaper, senders: Vec<Sender>) -> World {
        World { now: Time::ZERO, shaper, senders, sent: Vec::new() }
    }

    /// Goes on with these senders, which begin now.
    fn then(self, senders: &[Sender]) -> World {
        let from = self.now;
        let senders = senders.iter().map(|sender| Sender { from, ..*sender }).collect();
        World { senders, sent: Vec::new(), ..self }
    }

    /// Runs until `end`; the clock moves from one event to the next, as a timer would.
    fn run(mut self, end: Time) -> World {
        let mut now = self.now;
        let mut edges: Vec<Time> =
            self.senders.iter().flat_map(|sender| [sender.from, sender.until]).collect();
        edges.sort_unstable();
        while now < end {
            for sender in &self.senders {
                if sender.from == now || sender.until == now {
                    self.shaper.handle_demand(now, sender.peer, sender.demand(now));
                }
            }
            let mut grants = 0;
            while let Some(grant) = self.shaper.poll_grant(now) {
                let sender = *self.senders.iter().find(|s| s.peer == grant.peer).unwrap();
                let messages = grant.amount.messages.min(grant.amount.bytes / sender.bytes.max(1));
                assert!(messages > 0, "the first message always fits: {grant:?} for {sender:?}");
                let amount = Amount { messages, bytes: messages * sender.bytes };
                self.sent.push(Sent { at: now, peer: sender.peer, amount });
                self.shaper.handle_used(now, sender.peer, amount, sender.demand(now));
                grants += 1;
                assert!(grants < 1_000_000, "an unlimited sender never stops; limit it");
            }
            let next = edges.iter().copied().find(|edge| *edge > now);
            let due = self.shaper.next_deadline();
            assert!(due.is_none_or(|due| due > now), "what is due now has been polled");
            let Some(next) = next.into_iter().chain(due).min() else { break };
            now = next;
        }
        self.now = now.max(end);
        self
    }

    fn total(&self, peers: &[u32], from: Time, until: Time) -> Amount {
        let mine =
            |sent: &&Sent| peers.contains(&sent.peer.0) && sent.at >= from && sent.at < until;
        self.sent.iter().filter(mine).fold(Amount::default(), |sum, sent| Amount {
            messages: sum.messages + sent.amount.messages,
            bytes: sum.bytes + sent.amount.bytes,
        })
    }

    /// In no stretch of time more than `ceil × t + burst`: every stretch that begins and ends with a
    /// grant is looked at.
    fn check_ceil(&self, peers: &[u32], limits: &Rates, largest: u64) -> Result<(), String> {
        let mine: Vec<&Sent> = self.sent.iter().filter(|s| peers.contains(&s.peer.0)).collect();
        for (unit, limit, burst) in [
            (0, limits.messages, limits.messages.burst.max(1)),
            (1, limits.bytes, limits.bytes.burst.max(largest)),
        ] {
            if limit.ceil == 0 {
                continue;
            }
            // The most of sum - ceil × t before each grant decides for all stretches that end there.
            let mut sum = 0i128;
            let mut least = i128::MAX;
            for sent in &mine {
                let grown = i128::from(limit.ceil) * i128::from(sent.at.0);
                least = least.min(sum * 1_000_000 - grown);
                let amount = if unit == 0 { sent.amount.messages } else { sent.amount.bytes };
                sum += i128::from(amount);
                let over = sum * 1_000_000 - grown - least - i128::from(burst) * 1_000_000;
                if over > 0 {
                    return Err(format!(
                        "{over} millionths above {}/s at {:?}, unit {unit}, {peers:?}",
                        limit.ceil, sent.at
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Sender {
    fn always(peer: u32, bytes: u64) -> Sender {
        Sender { peer: PeerId(peer), bytes, from: Time::ZERO, until: Time(u64::MAX) }
    }

    fn demand(&self, now: Time) -> Demand {
        if now < self.from || now >= self.until {
            return Demand::default();
        }
        let amount = Amount { messages: HELD, bytes: HELD * self.bytes };
        Demand { amount, first_bytes: self.bytes }
    }
}

fn bytes(rate: u64, ceil: u64, burst: u64) -> Rates {
    Rates { bytes: Rate { rate, ceil, burst }, ..Rates::default() }
}

fn messages(rate: u64, ceil: u64, burst: u64) -> Rates {
    Rates { messages: Rate { rate, ceil, burst }, ..Rates::default() }
}

const A: ClassId = ClassId(1);
const B: ClassId = ClassId(2);

fn assert_share(got: u64, expected: u64, what: &str) {
    let off = got.abs_diff(expected);
    assert!(off * 50 <= expected, "{what}: {got}, expected {expected} within 2 %");
}

/// Two classes under a node of 1 MB/s: A is guaranteed 700 kB/s, B 300 kB/s, either may have all.
fn two_classes() -> Shaper {
    let now = Time::ZERO;
    let mut shaper = Shaper::new(now, &bytes(0, 1_000_000, 10_000));
    shaper.set_class(now, A, &bytes(700_000, 1_000_000, 10_000)).unwrap();
    shaper.set_class(now, B, &bytes(300_000, 1_000_000, 10_000)).unwrap();
    for (peer, class) in [(1, A), (2, A), (3, B)] {
        shaper.set_peer(now, PeerId(peer), class, &Rates::default()).unwrap();
    }
    shaper
}

#[test]
fn each_class_gets_what_it_is_guaranteed() {
    let senders = vec![Sender::always(1, 700), Sender::always(2, 1_900), Sender::always(3, 400)];
    let world = World::new(two_classes(), senders).run(Time::from_millis(20_000));
    let (from, until) = (Time::from_millis(1_000), Time::from_millis(20_000));
    assert_share(world.total(&[1, 2], from, until).bytes, 700_000 * 19, "class A");
    assert_share(world.total(&[3], from, until).bytes, 300_000 * 19, "class B");
    let within = world.total(&[1], from, until).bytes;
    assert_share(within, 350_000 * 19, "one of two peers of class A, whatever its sizes");
}

#[test]
fn what_is_borrowed_goes_back_within_100_ms_of_demand() {
    let wanted_at = Time::from_millis(5_000);
    let late = Sender { from: wanted_at, ..Sender::always(3, 1_000) };
    let world = World::new(two_classes(), vec![Sender::always(1, 1_000), late]);
    let world = world.run(Time::from_millis(10_000));
    let before = world.total(&[1], Time::from_millis(1_000), wanted_at).bytes;
    assert_share(before, 1_000_000 * 4, "A alone has all of it");
    let back_at = Time::from_millis(5_100);
    let after = world.total(&[3], wanted_at, back_at).bytes;
    assert!(after >= 30_000, "{after} bytes in the first 100 ms, 30,000 are guaranteed");
    let rest = Time::from_millis(10_000);
    assert_share(world.total(&[3], back_at, rest).bytes, 300_000 * 49 / 10, "B from then on");
}

#[test]
fn what_nobody_claims_is_split_evenly() {
    let now = Time::ZERO;
    let mut shaper = Shaper::new(now, &messages(0, 3_000, 10));
    shaper.set_class(now, A, &messages(300, 0, 10)).unwrap();
    shaper.set_class(now, B, &messages(300, 0, 10)).unwrap();
    // Three peers without a guarantee in A, one in B: classes borrow evenly, peers within them too.
    for (peer, class) in [(1, A), (2, A), (3, A), (4, B)] {
        shaper.set_peer(now, PeerId(peer), class, &Rates::default()).unwrap();
    }
    let senders = (1..=4).map(|peer| Sender::always(peer, 100)).collect();
    let world = World::new(shaper, senders).run(Time::from_millis(20_000));
    let (from, until) = (Time::from_millis(1_000), Time::from_millis(20_000));
    for peer in 1..=3 {
        assert_share(world.total(&[peer], from, until).messages, 500 * 19, "a peer of A");
    }
    assert_share(world.total(&[4], from, until).messages, 1_500 * 19, "the peer of B");
}

#[test]
fn a_peer_is_held_to_its_own_ceil_and_others_take_what_it_leaves() {
    let now = Time::ZERO;
    let mut shaper = Shaper::new(now, &messages(0, 1_000, 10));
    shaper.set_class(now, A, &Rates::default()).unwrap();
    shaper.set_peer(now, PeerId(1), A, &messages(0, 50, 1)).unwrap();
    shaper.set_peer(now, PeerId(2), A, &Rates::default()).unwrap();
    let senders = vec![Sender::always(1, 10), Sender::always(2, 10)];
    let world = World::new(shaper, senders).run(Time::from_millis(10_000));
    let end = Time::from_millis(10_000);
    assert_eq!(world.total(&[1], Time::ZERO, end).messages, 500);
    assert_share(world.total(&[2], Time::ZERO, end).messages, 9_500, "the other");
}

#[test]
fn a_message_larger_than_the_burst_goes_and_is_paid_for() {
    let now = Time::ZERO;
    let mut shaper = Shaper::new(now, &Rates::default());
    shaper.set_class(now, A, &bytes(0, 1_000, 100)).unwrap();
    shaper.set_peer(now, PeerId(1), A, &Rates::default()).unwrap();
    let world = World::new(shaper, vec![Sender::always(1, 5_000)]).run(Time::from_millis(16_000));
    let at: Vec<u64> = world.sent.iter().map(|sent| sent.at.0 / 1_000).collect();
    assert_eq!(at, [0, 5_000, 10_000, 15_000]);
}

#[test]
fn large_messages_are_not_starved_by_small_ones() {
    let now = Time::ZERO;
    let mut shaper = Shaper::new(now, &bytes(0, 100_000, 20_000));
    shaper.set_class(now, A, &Rates::default()).unwrap();
    for peer in [1, 2] {
        shaper.set_peer(now, PeerId(peer), A, &Rates::default()).unwrap();
    }
    let senders = vec![Sender::always(1, 10), Sender::always(2, 20_000)];
    let world = World::new(shaper, senders).run(Time::from_millis(100_000));
    let end = Time::from_millis(100_000);
    let (small, large) =
        (world.total(&[1], Time::ZERO, end).bytes, world.total(&[2], Time::ZERO, end).bytes);
    assert_share(small, 5_000_000, "small ones");
    assert_share(large, 5_000_000, "large ones");
}

#[test]
fn what_is_not_used_goes_back() {
    let now = Time::ZERO;
    let mut shaper = Shaper::new(now, &messages(0, 100, 50));
    shaper.set_class(now, A, &Rates::default()).unwrap();
    for peer in [1, 2] {
        shaper.set_peer(now, PeerId(peer), A, &Rates::default()).unwrap();
    }
    let all = Amount { messages: 50, bytes: 500 };
    let demand = Demand { amount: all, first_bytes: 10 };
    shaper.handle_demand(now, PeerId(1), demand);
    let mut granted = 0;
    while let Some(grant) = shaper.poll_grant(now) {
        granted += grant.amount.messages;
        // The link has just gone: nothing was sent, and nothing is wanted.
        shaper.handle_used(now, grant.peer, Amount::default(), Demand::default());
    }
    assert!(granted > 0);
    shaper.handle_demand(now, PeerId(2), demand);
    let mut sent = 0;
    while let Some(grant) = shaper.poll_grant(now) {
        sent += grant.amount.messages;
        let left = 50 - sent;
        let demand =
            Demand { amount: Amount { messages: left, bytes: left * 10 }, first_bytes: 10 };
        shaper.handle_used(now, grant.peer, grant.amount.at_most(all), demand);
    }
    assert_eq!(sent, 50, "the whole burst is there for the other");
}

#[test]
fn who_holds_a_grant_gets_no_second_one() {
    let mut shaper = two_classes();
    let sender = Sender::always(1, 100);
    shaper.handle_demand(Time::ZERO, PeerId(1), sender.demand(Time::ZERO));
    assert!(shaper.poll_grant(Time::ZERO).is_some());
    shaper.handle_demand(Time::ZERO, PeerId(1), sender.demand(Time::ZERO));
    assert_eq!(shaper.poll_grant(Time::ZERO), None);
    assert_eq!(shaper.next_deadline(), None, "nothing to wait for but the answer");
}

#[test]
fn who_has_more_to_send_keeps_its_place_in_line() {
    let now = Time::ZERO;
    let mut shaper = Shaper::new(now, &messages(0, 1, 1));
    shaper.set_class(now, A, &Rates::default()).unwrap();
    for peer in [1, 2, 3] {
        shaper.set_peer(now, PeerId(peer), A, &messages(1, 1, 1)).unwrap();
    }
    let demand =
        |messages| Demand { amount: Amount { messages, bytes: 10 * messages }, first_bytes: 10 };
    shaper.handle_demand(now, PeerId(3), demand(1));
    assert_eq!(shaper.poll_grant(now).map(|grant| grant.peer), Some(PeerId(3)));
    shaper.handle_used(now, PeerId(3), demand(1).amount, Demand::default());
    for (peer, messages) in [(2, 1), (1, 1), (2, 5)] {
        shaper.handle_demand(now, PeerId(peer), demand(messages));
    }
    assert_eq!(shaper.poll_grant(now), None);
    assert_eq!(shaper.ready_at(now, PeerId(1)), Some(Time::from_millis(1_000)));
    assert_eq!(shaper.ready_at(now, PeerId(3)), None, "it does not wait");
    let later = Time::from_millis(1_000);
    let grant = shaper.poll_grant(later).unwrap();
    assert_eq!(grant.peer, PeerId(2), "it came first");
    assert_eq!(shaper.granted(PeerId(2)), Some(grant.amount));
    shaper.remove_peer(later, PeerId(2));
    let next = shaper.poll_grant(later).map(|grant| grant.peer);
    assert_eq!(next, Some(PeerId(1)), "what one that goes has not used is the next one's");
}

#[test]
fn what_was_borrowed_in_bytes_is_not_owed_in_messages() {
    let now = Time::ZERO;
    let mut shaper = Shaper::new(now, &Rates::default());
    shaper.set_class(now, A, &bytes(0, 1_000_000, 1_000_000)).unwrap();
    shaper.set_class(now, B, &messages(0, 100, 1)).unwrap();
    for peer in [1, 2] {
        shaper.set_peer(now, PeerId(peer), A, &Rates::default()).unwrap();
    }
    let both = [Sender::always(1, 1_000), Sender::always(2, 1_000)];
    // One borrows a megabyte; then the class is limited in messages.
    let mut world = World::new(shaper, both[..1].to_vec()).run(Time::from_millis(1_000));
    world.shaper.set_class(world.now, A, &messages(0, 100, 1)).unwrap();
    let mut world = world.then(&both).run(Time::from_millis(11_000));
    assert_even(&world, "in the other unit");
    // It follows the other one to a class where little has been borrowed.
    world.shaper.set_peer(world.now, PeerId(2), B, &Rates::default()).unwrap();
    let mut world = world.then(&both).run(Time::from_millis(12_000));
    world.shaper.set_peer(world.now, PeerId(1), B, &Rates::default()).unwrap();
    assert_even(&world.then(&both).run(Time::from_millis(22_000)), "in the other class");
}

fn assert_even(world: &World, what: &str) {
    let of = |peer| world.total(&[peer], Time::ZERO, Time(u64::MAX)).messages;
    assert!(of(1).abs_diff(of(2)) <= 2 && of(1) > 100, "{what}: {} and {}", of(1), of(2));
}

#[test]
fn classes_and_peers_come_and_go() {
    let now = Time::ZERO;
    let mut shaper = two_classes();
    assert_eq!(shaper.remove_class(A), Err(ShaperError::ClassInUse(2)));
    assert_eq!(shaper.remove_class(ClassId(9)), Err(ShaperError::UnknownClass));
    let none = Rates::default();
    assert_eq!(shaper.set_peer(now, PeerId(9), ClassId(9), &none), Err(ShaperError::UnknownClass));
    // One moves while it holds a grant, the other leaves with one.
    let one = Demand { amount: Amount { messages: 1, bytes: 100 }, first_bytes: 100 };
    for peer in [1, 2] {
        shaper.handle_demand(now, PeerId(peer), one);
        assert_eq!(shaper.poll_grant(now).map(|grant| grant.peer), Some(PeerId(peer)));
    }
    shaper.set_peer(now, PeerId(1), B, &none).unwrap();
    shaper.remove_peer(now, PeerId(2));
    assert_eq!(shaper.remove_class(A), Ok(()));
    shaper.handle_used(now, PeerId(1), Amount::default(), one);
    shaper.handle_used(now, PeerId(2), Amount::default(), one);
    assert_eq!(shaper.poll_grant(now).map(|grant| grant.peer), Some(PeerId(1)));
    for id in 3..=CLASSES_MAX as u16 + 1 {
        shaper.set_class(now, ClassId(id), &none).unwrap();
    }
    let one_more = shaper.set_class(now, ClassId(u16::MAX), &none);
    assert_eq!(one_more, Err(ShaperError::TooManyClasses));
}

#[test]
fn a_limit_changed_under_load_holds_from_then_on() {
    let mut world = World::new(two_classes(), vec![Sender::always(1, 500)]);
    world = world.run(Time::from_millis(2_000));
    let now = Time::from_millis(2_000);
    world.shaper.set_class(now, A, &bytes(0, 100_000, 1_000)).unwrap();
    let before = world.sent.len();
    let mut at = now;
    while at < Time::from_millis(12_000) {
        while let Some(grant) = world.shaper.poll_grant(at) {
            let messages = grant.amount.messages.min(grant.amount.bytes / 500);
            let amount = Amount { messages, bytes: messages * 500 };
            world.sent.push(Sent { at, peer: grant.peer, amount });
            world.shaper.handle_used(at, grant.peer, amount, Sender::always(1, 500).demand(at));
        }
        at = world.shaper.next_deadline().unwrap();
    }
    let sent: u64 = world.sent[before..].iter().map(|sent| sent.amount.bytes).sum();
    assert_share(sent, 1_000_000, "ten seconds at the new rate");
}

/// A limit that makes sense: rate ≤ ceil.
fn limit() -> impl Strategy<Value = Rate> {
    (0u64..500, 0u64..1_000, 1u64..5_000).prop_map(|(rate, more, burst)| {
        let ceil = if more < 200 { 0 } else { rate + more };
        Rate { rate, ceil, burst }
    })
}

fn limits() -> impl Strategy<Value = Rates> {
    (limit(), limit(), 0..3u8).prop_map(|(messages, bytes, which)| {
        // Bytes at a thousand times the rate, as messages of about a kilobyte would have it.
        let scale = |limit: Rate| Rate {
            rate: limit.rate * 1_000,
            ceil: limit.ceil * 1_000,
            burst: limit.burst * 10,
        };
        match which {
            0 => Rates { messages, bytes: Rate::default() },
            1 => Rates { messages: Rate::default(), bytes: scale(bytes) },
            _ => Rates { messages, bytes: scale(bytes) },
        }
    })
}

#[derive(Clone, Debug)]
struct Plan {
    node: Rates,
    classes: Vec<Rates>,
    peers: Vec<(usize, Rates, u64, u64, u64)>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let node = (200u64..2_000, 1u64..200).prop_map(|(ceil, burst)| messages(0, ceil, burst));
    let peer = (0usize..4, limits(), 1u64..4_000, 0u64..3_000, 0u64..4_000);
    (node, prop::collection::vec(limits(), 1..4), prop::collection::vec(peer, 1..8))
        .prop_map(|(node, classes, peers)| Plan { node, classes, peers })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_ceil_is_ever_passed_and_nobody_waits_without_cause(plan in plan()) {
        let now = Time::ZERO;
        let mut shaper = Shaper::new(now, &plan.node);
        for (limits, id) in plan.classes.iter().zip(0..) {
            shaper.set_class(now, ClassId(id), limits).unwrap();
        }
        let mut senders = Vec::new();
        let mut members = vec![Vec::new(); plan.classes.len()];
        for ((class, limits, bytes, from, lasts), id) in plan.peers.iter().zip(1u32..) {
            let class = class % plan.classes.len();
            members[class].push(id);
            shaper.set_peer(now, PeerId(id), ClassId(class as u16), limits).unwrap();
            let from = Time::from_millis(*from);
            let until = from + Duration::from_millis(*lasts + 1);
            senders.push(Sender { peer: PeerId(id), bytes: *bytes, from, until });
        }
        let end = Time::from_millis(5_000);
        let world = World::new(shaper, senders.clone()).run(end);
        let all: Vec<u32> = senders.iter().map(|sender| sender.peer.0).collect();
        let largest = senders.iter().map(|sender| sender.bytes).max().unwrap();
        prop_assert_eq!(world.check_ceil(&all, &plan.node, largest), Ok(()));
        for (limits, members) in plan.classes.iter().zip(&members) {
            prop_assert_eq!(world.check_ceil(members, limits, largest), Ok(()));
        }
        for ((_, limits, ..), sender) in plan.peers.iter().zip(&senders) {
            prop_assert_eq!(world.check_ceil(&[sender.peer.0], limits, sender.bytes), Ok(()));
            // Whoever wants to send gets at least its first message within the time that the ceils on
            // its path need for what everybody holds at once.
            let sent = world.total(&[sender.peer.0], Time::ZERO, end).messages;
            let patient = sender.until.since(sender.from) >= Duration::from_secs(2);
            prop_assert!(sent > 0 || !patient, "{sender:?} never sent");
        }
    }
}
