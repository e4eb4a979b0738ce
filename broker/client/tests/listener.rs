//! A receiver that nodes dial, against nodes that do as the test says.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod node;

use node::{Heard, Peer, soon};
use restante_client::protocol::control::{Control, Hello, NodeLife, Request, Welcome};
use restante_client::protocol::id::{NodeTag, ProducerId};
use restante_client::protocol::message::Body;
use restante_client::protocol::refusal::Code;
use restante_client::{ListenOptions, Listener, RequestError, Settled};
use std::time::Duration;

async fn listening(options: ListenOptions) -> Listener {
    Listener::bind("127.0.0.1:0", options).await.unwrap()
}

fn hello(deliver_as: Option<&str>) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        agent: "fake-node".to_owned(),
        producer: None,
        unused_from: None,
        deliver_as: deliver_as.map(|name| name.parse().unwrap()),
        node: None,
        login: None,
    }
}

/// Dials and delivers as `name`.
async fn dialled(listener: &Listener, name: &str) -> (Peer, Welcome) {
    dialled_with(listener, hello(Some(name))).await
}

/// Dials and delivers as `name`, as the node of this tag in this epoch.
async fn dialled_by(listener: &Listener, name: &str, tag: u16, epoch: u32) -> Peer {
    let node = Some(NodeLife { tag: NodeTag(tag), epoch });
    dialled_with(listener, Hello { node, ..hello(Some(name)) }).await.0
}

async fn dialled_with(listener: &Listener, hello: Hello) -> (Peer, Welcome) {
    let mut peer = Peer::dial(listener.local_addr()).await;
    peer.say(&Control::Hello(hello)).await;
    match peer.heard().await {
        Heard::Control(Control::Welcome(welcome)) => (peer, welcome),
        other => panic!("{other:?}"),
    }
}

/// What a greeting is declined with.
async fn declined(listener: &Listener, hello: Hello) -> Code {
    let mut peer = Peer::dial(listener.local_addr()).await;
    peer.say(&Control::Hello(hello)).await;
    match peer.heard().await {
        Heard::Control(Control::Goodbye(refusal)) => {
            peer.closed().await;
            refusal.code
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn several_nodes_deliver_and_each_gets_its_own_acks() {
    let mut listener = listening(ListenOptions::default()).await;
    let (mut one, welcome) = dialled(&listener, "a").await;
    assert_eq!((welcome.version, welcome.grant), (1, None));
    let (mut two, _) = dialled(&listener, "b").await;
    one.deliver(0, 1..=2).await;
    two.deliver(0, 1..=1).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let delivery = soon(listener.next()).await;
        seen.push(format!("{}: {}", delivery.receiver(), delivery.payload.len()));
        assert_eq!(delivery.ack(), Settled::Queued);
    }
    seen.sort();
    assert_eq!(seen, ["a: 9", "a: 9", "b: 9"]);
    assert_eq!(two.heard().await, Heard::Ack(0, vec![(1, 1)]));
    let mut acked = 0;
    while acked < 2 {
        match one.heard().await {
            Heard::Ack(0, ranges) => acked += ranges.iter().map(|(f, l)| l - f + 1).sum::<u64>(),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_lost_node_takes_its_unacked_with_it() {
    let mut listener = listening(ListenOptions::default()).await;
    let (mut one, _) = dialled(&listener, "a").await;
    one.deliver(0, 1..=1).await;
    let held = soon(listener.next()).await;
    drop(one);
    let (mut again, _) = dialled(&listener, "a").await;
    again.deliver(0, 1..=1).await;
    let redelivered = soon(listener.next()).await;
    while listener.connections() > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(held.ack(), Settled::TooLate);
    assert_eq!(redelivered.ack(), Settled::Queued);
    assert_eq!(again.heard().await, Heard::Ack(0, vec![(1, 1)]));
}

#[tokio::test]
async fn grants_and_flushes_go_to_each_node() {
    let options = ListenOptions { grant: Some(1), ..ListenOptions::default() };
    let mut listener = listening(options).await;
    let (mut node, welcome) = dialled(&listener, "a").await;
    assert_eq!(welcome.grant, Some(1));
    node.deliver(0, 1..=1).await;
    soon(listener.next()).await.ack();
    let flushing = async {
        assert_eq!(node.heard().await, Heard::Ack(0, vec![(1, 1)]));
        node.flush().await;
    };
    let (flushed, ()) = tokio::join!(listener.flush(Duration::MAX), flushing);
    flushed.unwrap();
    listener.grant(2);
    assert_eq!(node.heard().await, Heard::Grant(0, 3));
    let flushing = async {
        let (_, request) = node.request().await;
        assert_eq!(request, Request::Flush);
        drop(node);
    };
    let (flushed, ()) = tokio::join!(listener.flush(Duration::MAX), flushing);
    assert!(matches!(flushed, Err(RequestError::Disconnected | RequestError::Ended(_))));
}

#[tokio::test]
async fn a_node_that_dials_again_is_granted_what_is_left() {
    let options = ListenOptions { grant: Some(3), ..ListenOptions::default() };
    let mut listener = listening(options).await;
    let life = |tag| Some(NodeLife { tag: NodeTag(tag), epoch: 1 });
    let node = || Hello { node: life(7), ..hello(Some("a")) };
    let (mut before, welcome) = dialled_with(&listener, node()).await;
    assert_eq!(welcome.grant, Some(3));
    before.deliver(0, 1..=2).await;
    soon(listener.next()).await.ack();
    let (mut again, welcome) = dialled_with(&listener, node()).await;
    assert_eq!(welcome.grant, Some(2), "one has been handed out");
    again.deliver(0, 1..=1).await;
    soon(listener.next()).await.ack();
    assert_eq!(again.heard().await, Heard::Ack(0, vec![(1, 1)]));
    let other = Hello { node: life(8), ..hello(Some("a")) };
    let (mut other, welcome) = dialled_with(&listener, other).await;
    assert_eq!(welcome.grant, Some(1));
    listener.grant(2);
    assert_eq!(again.heard().await, Heard::Grant(0, 4), "one taken and three left");
    assert_eq!(other.heard().await, Heard::Grant(0, 3));
}

#[tokio::test]
async fn whoever_is_no_node_of_ours_is_declined_by_name() {
    let names = vec!["a".parse().unwrap()];
    let options = ListenOptions { names, connections_max: 1, ..ListenOptions::default() };
    let listener = listening(options).await;
    assert_eq!(declined(&listener, hello(Some("b"))).await, Code::UnknownReceiver);
    let producer = Hello { producer: Some(ProducerId(7)), ..hello(None) };
    assert_eq!(declined(&listener, producer).await, Code::OutOfTurn);
    let newer = Hello { version_min: 2, version_max: 9, ..hello(Some("a")) };
    assert_eq!(declined(&listener, newer).await, Code::VersionMismatch);
    let _one = dialled(&listener, "a").await;
    assert_eq!(declined(&listener, hello(Some("a"))).await, Code::LimitReached);
    let mut garbage = Peer::dial(listener.local_addr()).await;
    garbage.raw(b"GET / HTTP/1.1\r\n\r\n").await;
    match garbage.heard().await {
        Heard::Control(Control::Goodbye(refusal)) => assert_eq!(refusal.code, Code::Malformed),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_that_breaks_the_protocol_does_not_disturb_another() {
    let mut listener = listening(ListenOptions::default()).await;
    let (mut bad, _) = dialled(&listener, "a").await;
    let (mut good, _) = dialled(&listener, "b").await;
    bad.deliver(3, 1..=1).await;
    assert!(matches!(bad.heard().await, Heard::Control(Control::Goodbye(_))));
    bad.closed().await;
    good.deliver(0, 1..=1).await;
    soon(listener.next()).await.ack();
    assert_eq!(good.heard().await, Heard::Ack(0, vec![(1, 1)]));
}

#[tokio::test]
async fn a_stale_owner_is_not_listened_to() {
    let mut listener = listening(ListenOptions::default()).await;
    let (mut stale, _) = dialled(&listener, "a").await;
    let (mut owner, _) = dialled(&listener, "a").await;
    let body = Body { payload: b"new", ..Body::default() };
    owner.put_deliver(0, 1, 5, &body);
    owner.send().await;
    assert_eq!(soon(listener.next()).await.payload, "new");
    stale.put_deliver(0, 1, 4, &Body { payload: b"stale", ..Body::default() });
    stale.put_deliver(0, 2, 5, &Body { payload: b"in turn", ..Body::default() });
    stale.send().await;
    assert_eq!(soon(listener.next()).await.payload, "in turn");
}

#[tokio::test]
async fn dropping_the_listener_closes_its_connections() {
    let mut listener = listening(ListenOptions::default()).await;
    let (mut node, _) = dialled(&listener, "a").await;
    node.deliver(0, 1..=1).await;
    soon(listener.next()).await.ack();
    let addr = listener.local_addr();
    drop(listener);
    assert_eq!(node.heard().await, Heard::Ack(0, vec![(1, 1)]));
    node.closed().await;
    let refused = soon(async {
        while tokio::net::TcpStream::connect(addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    tokio::time::timeout(Duration::from_secs(5), refused).await.unwrap();
}

/// Whoever connects and says nothing takes up a place for a while, and there are not endlessly many.
#[tokio::test]
async fn silent_callers_are_bounded() {
    const PLACES: usize = 64;
    let listener = listening(ListenOptions::default()).await;
    let mut silent = Vec::new();
    for _ in 0..PLACES {
        silent.push(tokio::net::TcpStream::connect(listener.local_addr()).await.unwrap());
    }
    let mut buffer = [0; 1];
    let one_more = tokio::net::TcpStream::connect(listener.local_addr()).await.unwrap();
    soon(one_more.readable()).await.unwrap();
    assert_eq!(one_more.try_read(&mut buffer).unwrap(), 0, "closed without a word");
    for stream in &silent {
        let waits = stream.try_read(&mut buffer).unwrap_err();
        assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock, "the others may still speak");
    }
}

#[tokio::test]
async fn what_a_node_had_sent_before_it_dialled_again_is_void() {
    let mut listener = listening(ListenOptions::default()).await;
    let mut before = dialled_by(&listener, "a", 7, 3).await;
    before.deliver(0, 1..=3).await;
    assert_eq!(soon(listener.next()).await.ack(), Settled::Queued);
    assert_eq!(before.heard().await, Heard::Ack(0, vec![(1, 1)]));
    let held = soon(listener.next()).await;
    // Neither another node's connection nor that of the same node as another peer is touched.
    let mut other_node = dialled_by(&listener, "a", 8, 1).await;
    let mut other_peer = dialled_by(&listener, "b", 7, 3).await;
    let mut again = dialled_by(&listener, "a", 7, 3).await;
    before.closed().await;
    assert_eq!(held.ack(), Settled::TooLate, "the node delivers it again");
    assert_eq!(listener.connections(), 3);

    again.deliver(0, 1..=1).await;
    let delivery = soon(listener.next()).await;
    assert_eq!(delivery.ack(), Settled::Queued, "and not the one that was left over");
    assert_eq!(again.heard().await, Heard::Ack(0, vec![(1, 1)]));
    for node in [&mut other_node, &mut other_peer] {
        node.deliver(0, 1..=1).await;
        assert_eq!(soon(listener.next()).await.ack(), Settled::Queued);
        assert_eq!(node.heard().await, Heard::Ack(0, vec![(1, 1)]));
    }
    let error = listener.flush(Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, RequestError::Disconnected), "an ack was given and is gone: {error}");
}

#[tokio::test]
async fn a_node_that_has_lost_its_journal_to_another_is_declined() {
    let mut listener = listening(ListenOptions::default()).await;
    let mut owner = dialled_by(&listener, "a", 7, 4).await;
    let node = Some(NodeLife { tag: NodeTag(7), epoch: 3 });
    assert_eq!(declined(&listener, Hello { node, ..hello(Some("a")) }).await, Code::Fenced);
    owner.deliver(0, 1..=1).await;
    assert_eq!(soon(listener.next()).await.ack(), Settled::Queued);
}

#[tokio::test]
async fn a_listener_that_is_full_takes_a_node_that_dials_again() {
    let listener =
        listening(ListenOptions { connections_max: 1, ..ListenOptions::default() }).await;
    let mut before = dialled_by(&listener, "a", 7, 3).await;
    let _again = dialled_by(&listener, "a", 7, 3).await;
    before.closed().await;
    let node = Some(NodeLife { tag: NodeTag(8), epoch: 1 });
    assert_eq!(declined(&listener, Hello { node, ..hello(Some("a")) }).await, Code::LimitReached);
}
