//! Router and peers as they ship, over a journal, a network and producers that do as a test says:
//! what happens when the journal takes nothing, a mailbox is full, or two changes swap.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod rig;

use restante_actors::admin::Ask;
use restante_actors::journal::{Ended, Journal, Life, LookupError};
use restante_actors::peer::{Acked, AckedValue, Inspect, LinkUp, Reconfigure, Retire};
use restante_protocol::admin::{PeerSettings, PeerUrl, Waiting};
use restante_protocol::control::{Reply, Request};
use restante_protocol::frame::TagRange;
use restante_protocol::id::MessageId;
use restante_protocol::record::Outcome;
use restante_protocol::refusal::Code;
use restante_protocol::status::{Health, MessageState};
use rig::{NODE, Recorder, Rig, Sink, TAKES_A_BATCH, call, on_an_arbiter, plain};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

#[test]
fn what_was_sent_after_a_lost_batch_does_not_overtake_it() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let peer = rig.add_peer("a").await;
        let producer = Recorder::new();
        let session = rig.open(1, &producer).await;
        rig.journal.refuse(1);
        rig.publish(&producer, session, peer, &[plain(1, 8)]).await;
        rig.publish(&producer, session, peer, &[plain(2, 8)]).await;
        let told = producer.told();
        assert_eq!(told, ["abandon overloaded", "abandon overloaded"], "2 stays undecided with 1");
        assert_eq!(rig.journal.messages(), 0);

        let again = rig.open(1, &producer).await;
        rig.publish(&producer, again, peer, &[plain(1, 8), plain(2, 8)]).await;
        assert_eq!(producer.told(), ["confirm 1+2"], "another hello lifts it");
        rig.publish(&producer, session, peer, &[plain(3, 8)]).await;
        assert_eq!(producer.told(), ["refuse 3 producer_superseded"]);
    });
}

#[test]
fn the_rest_of_a_batch_whose_beginning_was_lost_is_not_taken_either() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let peer = rig.add_peer("a").await;
        let (producer, other) = (Recorder::new(), Recorder::new());
        let session = rig.open(1, &producer).await;
        let others = rig.open(2, &other).await;
        rig.journal.refuse(1);
        // The first two fill a batch of the log, which is refused.
        let publishes: Vec<_> =
            (1..=3).map(|sequence| plain(sequence, TAKES_A_BATCH / 2)).collect();
        rig.publish(&producer, session, peer, &publishes).await;
        assert_eq!(producer.told().first().map(String::as_str), Some("abandon overloaded"));
        assert_eq!(rig.journal.messages(), 0, "the third has not overtaken them");
        rig.publish(&other, others, peer, &[plain(1, 8)]).await;
        assert_eq!(other.told(), ["confirm 1+1"], "nobody else is concerned");
    });
}

#[test]
fn whoever_awaits_an_answer_of_a_peer_that_is_removed_hears_that_none_will_come() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let producer = Recorder::new();
        let session = rig.open(1, &producer).await;
        let ways = [
            (Waiting::Park, "ended 1: parked: its receiver was removed"),
            (Waiting::Purge, "ended 2: purged by an operator"),
        ];
        for ((wish, expected), sequence) in ways.into_iter().zip(1..) {
            let peer = rig.add_peer("a").await;
            rig.publish(&producer, session, peer, &[call(sequence)]).await;
            assert_eq!(producer.told(), [format!("confirm {sequence}+1")]);
            rig.remove("a", wish).await;
            assert_eq!(producer.told(), [expected]);
        }
    });
}

#[test]
fn answers_to_calls_get_through_to_a_router_whose_mailbox_is_full() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let peer = rig.add_peer("a").await;
        let seat = rig.handles.directory.seat(peer).unwrap();
        let link = Arc::new(Sink::default());
        let up = LinkUp { link: Arc::clone(&link) as _, number: 7, dialled: false, grant: None };
        let first_tag = seat.addr.send(up).await.unwrap().unwrap();
        let producer = Recorder::new();
        let session = rig.open(1, &producer).await;
        let calls: Vec<_> = (1..=4).map(call).collect();
        rig.publish(&producer, session, peer, &calls).await;
        link.has(4).await;
        producer.told();
        // All in one turn: the peer is to run while the router has not.
        for tag in first_tag..first_tag + 4 {
            let value = bytes::Bytes::from_static(b"v");
            seat.addr.clone().try_send(AckedValue { number: 7, tag, value }).unwrap();
        }
        rig.fill_router();
        rig.settle().await;
        assert_eq!(producer.told(), ["acked 1: v", "acked 2: v", "acked 3: v", "acked 4: v"]);
    });
}

#[test]
fn of_two_changes_that_swap_the_newer_one_holds() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let peer = rig.add_peer("a").await;
        let seat = rig.handles.directory.seat(peer).unwrap();
        for (version, paused) in [(3, true), (2, false)] {
            let (url, settings) = (PeerUrl::Attach, PeerSettings::default());
            seat.addr.send(Reconfigure { url, settings, paused, version }).await.unwrap();
        }
        let snapshot = seat.addr.send(Inspect).await.unwrap().unwrap();
        assert_eq!(snapshot.health, Health::Paused);
    });
}

/// A change to a peer, its version counted from the one it was added with.
fn change(version: u64, url: &PeerUrl, paused: bool) -> Reconfigure {
    let (url, settings) = (url.clone(), PeerSettings::default());
    Reconfigure { url, settings, paused, version }
}

fn up(link: &Arc<Sink>, number: u64, dialled: bool) -> LinkUp {
    LinkUp { link: Arc::clone(link) as _, number, dialled, grant: None }
}

#[test]
fn a_dial_that_was_called_off_brings_no_link_however_quickly_the_peer_is_let_go_on() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let url: PeerUrl = "tcp://127.0.0.1:1".parse().unwrap();
        let peer = rig.add_peer_at("a", url.clone()).await;
        let addr = rig.handles.directory.seat(peer).unwrap().addr.clone();
        rig.settle().await;
        let [first] = rig.dials.wanted()[..] else { panic!("one dial") };
        // All in one turn of the peer: the receiver welcomes the first dial after all.
        let (late, link) = (Arc::new(Sink::default()), Arc::new(Sink::default()));
        for (version, paused) in [(2, true), (3, false)] {
            addr.clone().try_send(change(version, &url, paused)).unwrap();
        }
        let answer = addr.send(up(&late, first, true)).await.unwrap();
        assert_eq!(answer.unwrap_err().code, Code::AlreadyAttached, "another dial is under way");
        let [_, second] = rig.dials.wanted()[..] else { panic!("dialled anew") };
        addr.send(up(&link, second, true)).await.unwrap().unwrap();
        rig.settle().await;
        assert!(!link.is_closed());
        let snapshot = addr.send(Inspect).await.unwrap().unwrap();
        assert_eq!(snapshot.health, Health::Up);
    });
}

#[test]
fn a_receiver_that_attaches_as_soon_as_it_may_keeps_its_link() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let peer = rig.add_peer_at("a", "tcp://127.0.0.1:1".parse().unwrap()).await;
        let addr = rig.handles.directory.seat(peer).unwrap().addr.clone();
        rig.settle().await;
        // In one turn, while a dial is under way.
        let link = Arc::new(Sink::default());
        addr.clone().try_send(change(2, &PeerUrl::Attach, false)).unwrap();
        addr.send(up(&link, 7, false)).await.unwrap().unwrap();
        rig.settle().await;
        assert!(!link.is_closed(), "only the dial was called off");
    });
}

#[test]
fn what_was_acked_before_its_receiver_was_removed_is_done() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let peer = rig.add_peer("a").await;
        let addr = rig.handles.directory.seat(peer).unwrap().addr.clone();
        let link = Arc::new(Sink::default());
        let first = addr.send(up(&link, 7, false)).await.unwrap().unwrap();
        let producer = Recorder::new();
        let session = rig.open(1, &producer).await;
        rig.publish(&producer, session, peer, &[plain(1, 8), plain(2, 8), plain(3, 8)]).await;
        link.has(3).await;
        // In one turn of the peer.
        let ranges = [TagRange { first, last: first + 1 }].into_iter().collect();
        addr.clone().try_send(Acked { number: 7, ranges }).unwrap();
        addr.send(Retire).await.unwrap();
        assert_eq!(rig.journal.settled().len(), 2);
        assert!(link.is_closed());
    });
}

/// Somebody still holds its address, so that its supervisor builds it again: what it has left is disposed of
/// by then, and must not be delivered too.
#[test]
fn a_peer_that_crashes_once_it_is_removed_delivers_nothing_more() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let peer = rig.add_peer("a").await;
        let producer = Recorder::new();
        let session = rig.open(1, &producer).await;
        let link = Arc::new(Sink::crashing());
        let seat = rig.handles.directory.seat(peer).unwrap();
        seat.addr.send(up(&link, 7, false)).await.unwrap().unwrap();
        seat.marks.removed.store(true, Relaxed);
        rig.publish(&producer, session, peer, &[plain(1, 8)]).await;
        link.has(1).await;
        assert_eq!(seat.marks.restarts.load(Relaxed), 1, "it has crashed");
        // Supervision has a timer in between.
        let ends = async {
            while seat.addr.connected() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ends).await.expect("it ends");
        assert!(link.is_closed());
    });
}

#[test]
fn every_copy_of_a_message_that_was_handed_over_is_traced() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let (mut peers, names) = (Vec::new(), ["a", "b", "c", "d"]);
        for name in names {
            peers.push(rig.add_peer(name).await);
        }
        let [a, b, c, d] = peers[..] else { panic!("four") };
        let moved = |moved_to, copy: u64| {
            let value = Some(copy.to_be_bytes().to_vec().into());
            let outcome = Outcome::Moved;
            Some(Ended::Settled { outcome, at_ms: 9, moved_to, attempts: 0, value })
        };
        let life = |receivers| Ok(Life { accepted_ms: 5, body: None, receivers });
        let id = MessageId::new(5, NODE, 0, 101);
        let ask = || async {
            let (request, by) = (Request::Message { id }, "a test".to_owned());
            match rig.handles.admin.send(Ask { request, by }).await.unwrap() {
                Ok(Reply::Message(status)) => Ok(status),
                Ok(other) => panic!("{other:?}"),
                Err(refusal) => Err(refusal),
            }
        };
        // To a and b, both of whom c inherited, of whom d did.
        rig.journal.knows(101, life(vec![(a, moved(c, 110)), (b, moved(c, 111))]));
        rig.journal.knows(110, life(vec![(c, moved(d, 120))]));
        rig.journal.knows(111, life(vec![(c, moved(d, 121))]));
        rig.journal.knows(120, life(vec![(d, None)]));
        rig.journal.knows(121, Err(LookupError::AgedOut));
        let status = ask().await.unwrap();
        let said = status.receivers.iter().map(|receiver| match &receiver.state {
            MessageState::Moved { to, .. } => format!("{} to {to}", receiver.receiver),
            state => format!("{} {state:?}", receiver.receiver),
        });
        let expected = ["a to c", "b to c", "c to d", "c to d", "d Queued"];
        assert_eq!(said.collect::<Vec<_>>(), expected);

        rig.journal.knows(121, Err(LookupError::Unavailable));
        assert_eq!(ask().await.unwrap_err().code, Code::JournalPoisoned);
    });
}

#[test]
fn what_is_set_aside_unread_takes_its_bytes_along_and_no_others() {
    on_an_arbiter(async {
        for (before, behind) in [(0, 0), (100, 0), (0, 50), (100, 50)] {
            let rig = Rig::start().await;
            let peer = rig.add_peer("a").await;
            let seat = rig.handles.directory.seat(peer).unwrap();
            let producer = Recorder::new();
            let session = rig.open(1, &producer).await;
            let mut sequence = 0;
            let mut damaged = 0;
            for bytes in [before, 800, behind].into_iter().filter(|bytes| *bytes > 0) {
                sequence += 1;
                rig.publish(&producer, session, peer, &[plain(sequence, bytes)]).await;
                let number = rig.journal.next_number() - 1;
                match bytes {
                    800 => damaged = number,
                    good => rig.journal.keep(number, good),
                }
            }
            let bytes = || {
                let marks = &seat.marks;
                (marks.waiting_bytes.load(Relaxed), marks.parked_bytes.load(Relaxed))
            };
            let good = (before + behind) as u64;
            assert_eq!(bytes(), (good + 800, 0));
            // It is read when there is somebody to send it to.
            rig.journal.damage(damaged, 800);
            seat.addr.send(up(&Arc::new(Sink::default()), 7, false)).await.unwrap().unwrap();
            rig.settle().await;
            assert_eq!(bytes(), (good, 800), "{before} bytes before it, {behind} behind");
        }
    });
}

#[test]
fn a_greedy_caller_gives_up_its_own_oldest_call() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let peer = rig.add_peer("a").await;
        let (greedy, modest) = (Recorder::new(), Recorder::new());
        let modest_session = rig.open(1, &modest).await;
        rig.publish(&modest, modest_session, peer, &[call(1)]).await;
        let session = rig.open(2, &greedy).await;
        let calls: Vec<_> = (1..=rig.calls_each_max + 1).map(call).collect();
        rig.publish(&greedy, session, peer, &calls).await;
        let told = greedy.told();
        let ended: Vec<_> = told.iter().filter(|told| told.starts_with("ended")).collect();
        assert_eq!(ended, ["ended 1: the connection has more calls under way than it may"]);
        assert_eq!(modest.told(), ["confirm 1+1"]);
    });
}

#[test]
fn a_cancelled_call_gives_its_place_to_another_one() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let peer = rig.add_peer("a").await;
        let caller = Recorder::new();
        let session = rig.open(1, &caller).await;
        let calls: Vec<_> = (1..=rig.calls_each_max).map(call).collect();
        rig.publish(&caller, session, peer, &calls).await;
        rig.cancel(&caller, 3).await;
        let more = rig.calls_each_max + 1;
        rig.publish(&caller, session, peer, &[call(more)]).await;
        let told = caller.told();
        assert!(!told.iter().any(|told| told.starts_with("ended")), "{told:?}");
        rig.publish(&caller, session, peer, &[call(more + 1)]).await;
        let told = caller.told();
        assert!(told.iter().any(|told| told.starts_with("ended 1:")), "{told:?}");
    });
}

#[test]
fn a_producer_that_has_to_be_forgotten_while_it_is_connected_is_told() {
    on_an_arbiter(async {
        let rig = Rig::start().await;
        let peer = rig.add_peer("a").await;
        let all: Vec<_> = (0..rig.producers_max).map(|_| Recorder::new()).collect();
        let mut sessions = Vec::new();
        for (producer, id) in all.iter().zip(1..) {
            sessions.push(rig.open(id, producer).await);
        }
        // The first to come is the least recently used, and connected: one that has gone makes room.
        all[5].leave();
        rig.open(1_000, &Recorder::new()).await;
        all[5].told();
        rig.publish(&all[0], sessions[0], peer, &[plain(1, 8)]).await;
        assert_eq!(all[0].told(), ["confirm 1+1"]);
        // All are connected now, and the first has just been used: it is the second's turn.
        rig.open(1_001, &Recorder::new()).await;
        let code = Code::OutcomeEvicted;
        assert_eq!(all[1].told(), [format!("abandon {code}")]);
        assert!(all[2..].iter().all(|other| other.told().is_empty()), "nobody else");
        rig.publish(&all[1], sessions[1], peer, &[plain(1, 8)]).await;
        assert_eq!(all[1].told(), [format!("abandon {code}")], "undecided, not refused");
        rig.open(2, &all[1]).await;
    });
}
