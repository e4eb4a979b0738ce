//! Operators' changes that come one behind the other, before the first is on disk.

use crate::wire::{Bench, Wire, publish};
use bytes::BytesMut;
use restante_protocol::admin::{AdminCommand, AdminDone, PeerPatch, PeerUrl, Waiting};
use restante_protocol::codec::put_control;
use restante_protocol::control::{Control, Reply, Request, WatchEvent};
use restante_protocol::id::PeerId;
use restante_protocol::refusal::{Code, Refusal};

/// How often each race is run: the order in which its requests reach the node is the same each time,
/// how far the disk has come is not.
const ROUNDS: u32 = 30;

fn add(name: &str) -> Request {
    let (url, settings) = (PeerUrl::Attach, PeerPatch::default());
    Request::Admin(AdminCommand::PeerAdd { name: name.parse().unwrap(), url, settings })
}

fn remove(name: &str, waiting: Option<Waiting>) -> Request {
    let (name, if_version) = (name.parse().unwrap(), None);
    Request::Admin(AdminCommand::PeerRemove { name, if_version, waiting })
}

/// The frames of requests numbered from 1,000,000 on, for one write.
fn asked(requests: Vec<Request>) -> BytesMut {
    let mut bytes = BytesMut::new();
    for (id, request) in (1_000_000..).zip(requests) {
        put_control(&mut bytes, &Control::Request { id, request }).unwrap();
    }
    bytes
}

fn answer(wire: &mut Wire) -> Result<AdminDone, Refusal> {
    match wire.control() {
        Some(Control::Response { result, .. }) => result.map(|reply| match reply {
            Reply::Admin(done) => done,
            other => panic!("no answer to a change: {other:?}"),
        }),
        other => panic!("no answer: {other:?}"),
    }
}

#[test]
fn a_peer_removed_before_its_addition_is_on_disk_never_comes_to_life() {
    let bench = Bench::new();
    let mut operator = bench.guest();
    let mut producer = bench.producer(1, &[]);
    for round in 0..ROUNDS {
        let name = format!("brief-{round}");
        operator.send(&asked(vec![add(&name), remove(&name, None)]));
        let (added, removed) = (answer(&mut operator).unwrap(), answer(&mut operator).unwrap());
        assert_eq!(added.id, removed.id);
        producer.say(&Control::Alias { alias: round, name: name.parse().unwrap() });
        producer.publish(u64::from(round) + 1, &[round], b"x");
        let refused = format!("refuse {} [({round}, UnknownReceiver)]", round + 1);
        assert_eq!(producer.line(), refused);
    }
}

#[test]
fn messages_on_their_way_to_disk_wait_for_their_peer_too() {
    let bench = Bench::new();
    // One connection says both, so that the publish reaches the router first.
    let mut both = bench.producer(1, &[]);
    for round in 0..ROUNDS {
        let name = format!("brief-{round}");
        both.ask(add(&name)).unwrap();
        both.say(&Control::Alias { alias: round, name: name.parse().unwrap() });
        let mut bytes = publish(u64::from(round) + 1, &[round], b"x");
        bytes.unsplit(asked(vec![remove(&name, None)]));
        both.send(&bytes);
        let mut heard = both.lines(2);
        heard.sort();
        assert!(heard[0].contains("MessagesWaiting"), "{heard:?}");
        assert_eq!(heard[1], format!("confirm {}+1", round + 1));
    }
    let refusal = both.ask(remove("brief-0", None)).unwrap_err();
    assert_eq!(refusal.code, Code::MessagesWaiting);
}

#[test]
fn what_is_on_its_way_to_disk_goes_to_the_heir() {
    let mut bench = Bench::new();
    let mut both = bench.producer(1, &[]);
    both.ask(add("heir")).unwrap();
    let mut bytes = BytesMut::new();
    for round in 0..ROUNDS {
        let name = format!("brief-{round}");
        both.ask(add(&name)).unwrap();
        both.say(&Control::Alias { alias: round, name: name.parse().unwrap() });
        bytes.unsplit(publish(u64::from(round) + 1, &[round], format!("m{round}").as_bytes()));
        let heir = Waiting::HandTo("heir".parse().unwrap());
        bytes.unsplit(asked(vec![remove(&name, Some(heir))]));
        both.send(&bytes.split());
        both.lines(2);
    }
    // Whatever of it was not done, a restart goes on with.
    bench.restart();
    let mut heir = bench.receiver(&["heir"]);
    let mut came = Vec::new();
    while came.len() < ROUNDS as usize {
        let line = heir.line();
        let words: Vec<&str> = line.split(' ').collect();
        heir.ack(0, words[2].parse().unwrap(), words[2].parse().unwrap());
        came.push(words[3].to_owned());
        came.sort();
        came.dedup();
    }
}

/// More than an answer holds.
const MANY: u32 = 600;

#[test]
fn peers_come_in_pages_and_snapshots_in_parts() {
    let bench = Bench::new();
    let mut operator = bench.guest();
    for first in (0..MANY).step_by(50) {
        operator.send(&asked((first..first + 50).map(|n| add(&format!("peer-{n}"))).collect()));
        for _ in 0..50 {
            answer(&mut operator).unwrap();
        }
    }
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let Ok(Reply::Peers(page)) = operator.ask(Request::Peers { after }) else {
            panic!("no page")
        };
        pages.push(page.peers.len());
        after = page.peers.last().map(|peer| peer.id);
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, [256, 256, 88]);

    assert_eq!(operator.ask(Request::Watch { after: None }), Ok(Reply::Watching));
    let mut told = Vec::new();
    loop {
        let Some(Control::Event { event: WatchEvent::Snapshot { peers, more, .. }, .. }) =
            operator.control()
        else {
            panic!("no snapshot")
        };
        told.extend(peers.into_iter().map(|peer| peer.id.0));
        if !more {
            break;
        }
    }
    assert!(told.iter().copied().eq(1..=MANY), "everyone once: {told:?}");
}

/// Adding and removing peers for ever must not cost memory for ever (and no id is given again).
#[test]
fn a_removed_peer_of_which_nothing_is_stored_is_forgotten() {
    let mut bench = Bench::new();
    let mut both = bench.producer(1, &[]);
    let info = |wire: &mut Wire, name: &str| wire.ask(Request::Peer { name: name.to_owned() });
    for round in 1..=ROUNDS {
        let added = both.ask(add("brief")).unwrap();
        assert_eq!(
            added,
            Reply::Admin(AdminDone { id: PeerId(round), version: 1, messages: 0, job: None })
        );
        both.ask(remove("brief", None)).unwrap();
    }
    // The last removal has been carried out once a later change has been.
    both.ask(add("kept")).unwrap();
    for round in 1..ROUNDS {
        let gone = info(&mut both, &format!("brief#{round}")).unwrap_err();
        assert_eq!(gone.code, Code::NotFound);
    }

    // One that has messages parked stays, and one that the ledger can speak of.
    both.say(&Control::Alias { alias: 0, name: "kept".parse().unwrap() });
    both.publish(1, &[0], b"x");
    both.confirmed(1);
    both.ask(remove("kept", Some(Waiting::Purge))).unwrap();
    both.ask(add("other")).unwrap();
    let kept = format!("kept#{}", ROUNDS + 1);
    assert!(info(&mut both, &kept).is_ok());
    bench.restart();
    let mut again = bench.guest();
    assert!(info(&mut again, &kept).is_ok());
    let next = PeerId(ROUNDS + 3);
    let added = again.ask(add("brief")).unwrap();
    assert_eq!(added, Reply::Admin(AdminDone { id: next, version: 1, messages: 0, job: None }));
}
