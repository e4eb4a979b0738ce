//! Lost connections: what is sent again, what is told, when it ends.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod node;

use node::{FakeNode, Heard, Peer, id, soon, welcome};
use restante_client::error::Violation;
use restante_client::protocol::control::{Control, Credit, Reply, Request, WatchEvent, Welcome};
use restante_client::protocol::refusal::{Code, Refusal};
use restante_client::{
    Client, ConnectError, EndReason, Publish, PublishError, Reconnect, RequestError, WatchError,
};
use std::time::Duration;

const QUICKLY: Reconnect = Reconnect {
    wait_min: Duration::from_millis(1),
    wait_max: Duration::from_millis(5),
    attempts_max: None,
};

async fn connected(policy: Reconnect) -> (FakeNode, Peer, Client) {
    let node = FakeNode::start().await;
    let connecting = Client::builder(&node.addr).reconnect(policy).connect();
    let (client, peer) = tokio::join!(connecting, node.accept(1));
    (node, peer, client.unwrap())
}

fn to_a(payload: &str) -> Publish {
    Publish::to(["a"]).payload(payload.to_owned())
}

#[tokio::test]
async fn the_unconfirmed_are_sent_again_under_their_sequences_with_their_aliases() {
    let (node, mut peer, client) = connected(QUICKLY).await;
    let one = client.try_publish(to_a("1")).unwrap();
    let two = client.try_publish(Publish::to(["b"]).payload("2")).unwrap();
    for _ in 0..2 {
        peer.publish().await;
    }
    peer.confirm(1, 1).await;
    assert_eq!(soon(one).await.unwrap().id, id(1));
    drop(peer);
    let (mut peer, hello) = node.hello().await;
    assert_eq!((hello.producer, hello.unused_from), (client.producer(), Some(3)));
    let three = client.try_publish(to_a("3")).unwrap();
    peer.say(&Control::Welcome(Welcome { next_sequence: 3, ..welcome() })).await;
    assert_eq!(peer.publish().await, (2, vec!["b".to_owned()], "2".to_owned()));
    assert_eq!(peer.publish().await, (3, vec!["a".to_owned()], "3".to_owned()));
    peer.confirm(2, 2).await;
    assert_eq!(soon(two).await.unwrap().id, id(2));
    assert_eq!(soon(three).await.unwrap().id, id(3));
}

#[tokio::test]
async fn resubmission_keeps_to_the_new_credit() {
    let (node, mut peer, client) = connected(QUICKLY).await;
    let receipts: Vec<_> =
        (1..=4).map(|n| client.try_publish(to_a(&n.to_string())).unwrap()).collect();
    for _ in 0..4 {
        peer.publish().await;
    }
    drop(peer);
    let (mut peer, _) = node.hello().await;
    let credit = Credit { messages: 1, bytes: 1 << 20 };
    peer.say(&Control::Welcome(Welcome { credit, ..welcome() })).await;
    for sequence in 1..=4 {
        assert_eq!(peer.publish().await.0, sequence);
        // A second one would be over the credit and would come before the answer to this.
        let asking = client.node();
        let question = peer.request();
        tokio::select! {
            biased;
            (question, _) = question => peer.decline(question, Code::Overloaded).await,
            _ = asking => unreachable!("not answered"),
        }
        peer.confirm(sequence, 1).await;
    }
    for receipt in receipts {
        soon(receipt).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_stopping_node_refuses_goes_to_its_successor() {
    let (node, mut peer, client) = connected(QUICKLY).await;
    let receipt = client.try_publish(to_a("1")).unwrap();
    peer.publish().await;
    peer.refuse(1, false, Code::ShuttingDown, &[]).await;
    peer.goodbye(Code::ShuttingDown).await;
    drop(peer);
    let mut peer = node.accept(2).await;
    assert_eq!(peer.publish().await.0, 1);
    peer.confirm(1, 1).await;
    assert_eq!(soon(receipt).await.unwrap().id, id(1));
}

#[tokio::test]
async fn questions_are_asked_again_and_changes_are_told_lost() {
    let (node, mut peer, client) = connected(QUICKLY).await;
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.peers().await }
    });
    let (_, request) = peer.request().await;
    assert_eq!(request, Request::Peers { after: None });
    let changing = tokio::spawn({
        let client = client.clone();
        async move { client.request(Request::LogFilter { filter: "info".to_owned() }).await }
    });
    peer.request().await;
    drop(peer);
    assert!(matches!(soon(changing).await.unwrap(), Err(RequestError::Disconnected)));
    let mut peer = node.accept(1).await;
    let (id, request) = peer.request().await;
    assert_eq!(request, Request::Peers { after: None });
    peer.answer(id, Reply::Peers(Default::default())).await;
    assert_eq!(soon(asking).await.unwrap().unwrap(), []);
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was() {
    let (node, mut peer, client) = connected(QUICKLY).await;
    let mut watch = client.watch(None).unwrap();
    let (id, request) = peer.request().await;
    assert_eq!(request, Request::Watch { after: None });
    peer.answer(id, Reply::Watching).await;
    let event = WatchEvent::Snapshot { version: 7, peers: Vec::new(), more: false };
    peer.say(&Control::Event { watch: id, event: event.clone() }).await;
    assert_eq!(soon(watch.next()).await.unwrap().unwrap(), event);
    drop(peer);
    let mut peer = node.accept(1).await;
    let (id, request) = peer.request().await;
    assert_eq!(request, Request::Watch { after: Some(7) });
    peer.answer(id, Reply::Watching).await;
    let event = WatchEvent::Removed { version: 8, name: "a".parse().unwrap() };
    peer.say(&Control::Event { watch: id, event: event.clone() }).await;
    assert_eq!(soon(watch.next()).await.unwrap().unwrap(), event);
    drop(watch);
    let (_, request) = peer.request().await;
    assert_eq!(request, Request::Unwatch { watch: id });
    let mut watch = client.watch(Some(3)).unwrap();
    let (id, _) = peer.request().await;
    peer.decline(id, Code::NotAllowed).await;
    assert!(matches!(soon(watch.next()).await, Some(Err(WatchError::Refused(_)))));
    assert!(soon(watch.next()).await.is_none());
}

#[tokio::test]
async fn a_superseded_producer_does_not_come_back() {
    let (_node, mut peer, client) = connected(QUICKLY).await;
    let receipt = client.try_publish(to_a("1")).unwrap();
    peer.publish().await;
    peer.goodbye(Code::ProducerSuperseded).await;
    let ended = soon(receipt).await.unwrap_err();
    let superseded = |reason: &EndReason| matches!(reason, EndReason::Superseded(_));
    assert!(matches!(&ended, PublishError::Ended { sequence: 1, reason } if superseded(reason)));
    assert!(superseded(&client.ended().unwrap()));
    peer.closed().await;
}

#[tokio::test]
async fn an_identity_that_somebody_else_uses_is_found_out() {
    let (node, peer, client) = connected(QUICKLY).await;
    drop(peer);
    let _peer = node.accept(50).await;
    let mut link = client.link();
    soon(link.wait_for(|link| link.ended.is_some())).await.unwrap();
    let ended = client.ended().unwrap();
    assert!(matches!(ended, EndReason::IdentityShared { decided: 50, sent: 1, .. }), "{ended:?}");
}

#[tokio::test]
async fn the_policy_may_be_never_or_to_give_up() {
    let (_node, peer, client) = connected(Reconnect::never()).await;
    drop(peer);
    let mut link = client.link();
    soon(link.wait_for(|link| link.ended.is_some())).await.unwrap();
    assert!(matches!(client.ended(), Some(EndReason::Lost)));

    let policy = Reconnect { attempts_max: Some(3), ..QUICKLY };
    let (node, peer, client) = connected(policy).await;
    drop((peer, node));
    let mut link = client.link();
    soon(link.wait_for(|link| link.ended.is_some())).await.unwrap();
    let ended = client.ended().unwrap();
    assert!(
        matches!(ended, EndReason::GaveUp { attempts: 3, last: ConnectError::Io { .. } }),
        "{ended:?}"
    );
    assert!(matches!(client.flush().await, Err(RequestError::Ended(_))));
}

#[tokio::test]
async fn connections_that_are_made_do_not_count_as_failed_attempts() {
    let (node, mut peer, client) = connected(Reconnect { attempts_max: Some(2), ..QUICKLY }).await;
    for _ in 0..5 {
        drop(peer);
        peer = node.accept(1).await;
    }
    let mut link = client.link();
    soon(link.wait_for(|link| link.connections == 6)).await.unwrap();
    assert!(client.ended().is_none());
}

#[tokio::test]
async fn a_silent_node_is_taken_for_dead_and_an_idle_client_gives_signs_of_life() {
    let node = FakeNode::start().await;
    let greeting = async {
        let (mut peer, _) = node.hello().await;
        let welcome = Welcome { heartbeat_ms: 20, silence_ms_max: 200, ..welcome() };
        peer.say(&Control::Welcome(welcome)).await;
        peer
    };
    let connecting = Client::builder(&node.addr).reconnect(QUICKLY).connect();
    let (client, mut peer) = tokio::join!(connecting, greeting);
    let client = client.unwrap();
    assert_eq!(peer.heard().await, Heard::Heartbeat);
    assert_eq!(peer.heard().await, Heard::Heartbeat);
    let _again = node.accept(1).await;
    let mut link = client.link();
    soon(link.wait_for(|link| link.connections == 2)).await.unwrap();
}

#[tokio::test]
async fn a_node_that_breaks_the_protocol_is_told_so_and_given_up_in_the_end() {
    let (node, mut peer, client) = connected(QUICKLY).await;
    for connection in 1..=5 {
        peer.confirm(99, 1).await;
        match peer.heard().await {
            Heard::Control(Control::Goodbye(Refusal { code: Code::Malformed, detail })) => {
                assert!(detail.contains("99"), "{detail}");
            }
            other => panic!("{other:?}"),
        }
        peer.closed().await;
        if connection < 5 {
            peer = node.accept(1).await;
        }
    }
    let mut link = client.link();
    soon(link.wait_for(|link| link.ended.is_some())).await.unwrap();
    let ended = client.ended().unwrap();
    let violation = Violation::UnknownSequence { sequence: 99 };
    assert!(
        matches!(&ended, EndReason::Protocol { connections: 5, violation: v } if *v == violation),
        "{ended:?}"
    );
}

#[tokio::test]
async fn what_is_no_node_is_named() {
    let node = FakeNode::start().await;
    let answering = |bytes: &'static [u8]| {
        let node = &node;
        async move {
            let (mut peer, _) = node.hello().await;
            peer.raw(bytes).await;
        }
    };
    let (outcome, ()) = tokio::join!(Client::connect(&node.addr), answering(b"HTTP/1.1 400 Bad"));
    assert!(matches!(outcome, Err(ConnectError::Protocol { .. })), "{outcome:?}");
    let declining = async {
        let (mut peer, _) = node.hello().await;
        peer.goodbye(Code::VersionMismatch).await;
    };
    let (outcome, ()) = tokio::join!(Client::connect(&node.addr), declining);
    assert!(matches!(outcome, Err(ConnectError::Refused { .. })), "{outcome:?}");
    let mute = async {
        let _mute = node.hello().await;
        std::future::pending::<()>().await;
    };
    let connecting =
        Client::builder(&node.addr).connect_timeout(Duration::from_millis(50)).connect();
    tokio::select! {
        outcome = connecting => assert!(matches!(outcome, Err(ConnectError::TimedOut { .. }))),
        () = mute => {}
    }
    let addr = node.addr.clone();
    drop(node);
    let outcome = Client::connect(addr).await;
    assert!(matches!(outcome, Err(ConnectError::Io { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_client_may_wait_for_its_node() {
    let spare = FakeNode::start().await;
    let addr = spare.addr.clone();
    let (failed, first) = tokio::sync::oneshot::channel();
    let mut failed = Some(failed);
    let connecting = Client::builder(&addr).reconnect(QUICKLY).wait_for_node().connect();
    let serving = async move {
        // Declined for a reason that passes: the client tries again.
        let (mut peer, _) = spare.hello().await;
        peer.goodbye(Code::Overloaded).await;
        failed.take().unwrap().send(()).unwrap();
        spare.accept(1).await
    };
    let (client, _peer) = tokio::join!(connecting, serving);
    first.await.unwrap();
    assert_eq!(client.unwrap().link().borrow().connections, 1);
}
