//! Receiving, against a node that delivers as the test says.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod node;

use node::{FakeNode, Heard, Peer, id, soon};
use restante_client::protocol::control::{AttachResult, Control, Reply, Request};
use restante_client::protocol::message::{Body, encode_headers};
use restante_client::protocol::refusal::{Code, Refusal};
use restante_client::{
    AttachError, AttachOptions, Client, EndReason, Nack, ReceiveError, Reconnect, RequestError,
    Settled, Subscription,
};
use std::time::Duration;

async fn connected() -> (FakeNode, Peer, Client) {
    let node = FakeNode::start().await;
    let policy = Reconnect {
        wait_min: Duration::from_millis(1),
        wait_max: Duration::from_millis(5),
        attempts_max: None,
    };
    let connecting = Client::builder(&node.addr).reconnect(policy).connect();
    let (client, peer) = tokio::join!(connecting, node.accept(1));
    (node, peer, client.unwrap())
}

async fn attached(client: &Client, peer: &mut Peer, grant: Option<u64>) -> Subscription {
    let (subscription, asked) =
        tokio::join!(client.attach("a", AttachOptions { grant }), peer.attach());
    assert_eq!((asked[0].name.as_str(), asked[0].grant), ("a", grant));
    subscription.unwrap()
}

async fn next(subscription: &mut Subscription) -> restante_client::Delivery {
    soon(subscription.next()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_delivery_carries_everything_and_is_answered_in_each_way() {
    let (_node, mut peer, client) = connected().await;
    let mut subscription = attached(&client, &mut peer, None).await;
    let headers = vec![("kind".to_owned(), "order".to_owned())];
    let encoded = encode_headers(&headers);
    let body = Body {
        key: Some(b"k"),
        headers: Some(&encoded),
        reply: true,
        payload: b"what is it?",
        ..Body::default()
    };
    peer.put_deliver(0, 1, 1, &body);
    peer.deliver(0, 2..=5).await;
    let delivery = next(&mut subscription).await;
    assert_eq!((delivery.id, delivery.redelivered, delivery.attempt), (id(1), false, 1));
    assert_eq!(delivery.payload, "what is it?");
    assert_eq!((delivery.key(), delivery.headers()), (Some(&b"k"[..]), headers));
    assert!(delivery.is_call());
    assert_eq!(delivery.receiver().as_str(), "a");
    let too_long = delivery.ack_value(vec![0; 65_537]).unwrap_err();
    assert_eq!(too_long.bytes, 65_537);
    assert_eq!(too_long.delivery.ack_value("an answer").unwrap(), Settled::Queued);
    let second = next(&mut subscription).await;
    assert!(!second.is_call() && second.key().is_none() && second.headers().is_empty());
    let wait = Duration::from_millis(1_500);
    second.nack(Nack::transient("busy").retry_after(wait));
    next(&mut subscription).await.nack(Nack::permanent("never"));
    assert_eq!(peer.heard().await, Heard::Value(0, 1, "an answer".to_owned()));
    let nack = |tag, permanent, retry_after_ms, reason: &str| Heard::Nack {
        slot: 0,
        tag,
        permanent,
        retry_after_ms,
        reason: reason.to_owned(),
    };
    assert_eq!(peer.heard().await, nack(2, false, 1_500, "busy"));
    assert_eq!(peer.heard().await, nack(3, true, 0, "never"));
    let (fourth, fifth) = (next(&mut subscription).await, next(&mut subscription).await);
    fifth.ack();
    fourth.ack();
    assert_eq!(peer.heard().await, Heard::Ack(0, vec![(4, 5)]), "coalesced within one wake");
}

#[tokio::test]
async fn a_flush_speaks_of_every_ack_before_it() {
    let (_node, mut peer, client) = connected().await;
    let mut subscription = attached(&client, &mut peer, None).await;
    peer.deliver(0, 1..=3).await;
    for _ in 0..3 {
        next(&mut subscription).await.ack();
    }
    let flushing = async {
        assert_eq!(peer.heard().await, Heard::Ack(0, vec![(1, 3)]));
        peer.flush().await;
    };
    let (flushed, ()) = tokio::join!(client.flush(), flushing);
    flushed.unwrap();
}

#[tokio::test]
async fn a_flush_after_a_lost_connection_does_not_claim_lost_acks() {
    let (node, mut peer, client) = connected().await;
    let mut subscription = attached(&client, &mut peer, None).await;
    peer.deliver(0, 1..=2).await;
    next(&mut subscription).await.ack();
    let held = next(&mut subscription).await;
    drop(peer);
    let mut peer = node.accept(1).await;
    assert_eq!(peer.attach().await.len(), 1);
    assert!(matches!(client.flush().await, Err(RequestError::Disconnected)));
    assert_eq!(held.ack(), Settled::TooLate);
    peer.deliver(0, 1..=1).await;
    assert_eq!(next(&mut subscription).await.ack(), Settled::Queued);
    let flushing = async {
        assert_eq!(peer.heard().await, Heard::Ack(0, vec![(1, 1)]));
        peer.flush().await;
    };
    let (flushed, ()) = tokio::join!(client.flush(), flushing);
    flushed.unwrap();
}

#[tokio::test]
async fn grants_are_cumulative_and_continue_after_a_reconnect() {
    let (node, mut peer, client) = connected().await;
    let mut subscription = attached(&client, &mut peer, Some(2)).await;
    subscription.grant(3);
    assert_eq!(peer.heard().await, Heard::Grant(0, 5));
    peer.deliver(0, 1..=2).await;
    next(&mut subscription).await.ack();
    assert_eq!(peer.heard().await, Heard::Ack(0, vec![(1, 1)]));
    drop(peer);
    let mut peer = node.accept(1).await;
    // One handed out; the other was taken from the connection and dropped with it, which is found
    // out when the reader asks for the next.
    let first = peer.attach().await[0].grant.unwrap();
    peer.deliver(0, 1..=1).await;
    assert_eq!(next(&mut subscription).await.id, id(1));
    let granted = if first == 4 {
        4
    } else {
        assert_eq!(first, 3);
        match peer.heard().await {
            Heard::Grant(0, granted) => granted,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(granted, 4);
}

#[tokio::test]
async fn attaching_many_is_one_request_and_each_has_its_answer() {
    let (_node, mut peer, client) = connected().await;
    let attaching = client.attach_many(["a", "b", "not/a/name", "c"], AttachOptions::default());
    let answering = async {
        let (id, request) = peer.request().await;
        let Request::Attach { receivers } = request else { panic!("{request:?}") };
        let names: Vec<_> = receivers.iter().map(|to| to.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let results = receivers.iter().map(|to| AttachResult {
            slot: to.slot,
            first_tag: 1,
            created: false,
            refusal: (to.name.as_str() == "b").then(|| Refusal::new(Code::WrongKind, "dialled")),
        });
        peer.answer(id, Reply::Attached(results.collect())).await;
    };
    let (outcomes, ()) = tokio::join!(attaching, answering);
    assert!(outcomes[0].is_ok() && outcomes[3].is_ok());
    assert!(
        matches!(&outcomes[1], Err(AttachError::Refused { refusal, .. }) if refusal.code == Code::WrongKind)
    );
    assert!(matches!(&outcomes[2], Err(AttachError::BadName { .. })));
}

#[tokio::test]
async fn an_attach_that_is_not_answered_is_given_up() {
    let node = FakeNode::start().await;
    let connecting =
        Client::builder(&node.addr).request_timeout(Duration::from_millis(30)).connect();
    let (client, mut peer) = tokio::join!(connecting, node.accept(1));
    let client = client.unwrap();
    let outcome = client.attach("a", AttachOptions::default()).await;
    assert!(matches!(outcome, Err(AttachError::TimedOut { .. })), "{outcome:?}");
    let asked = peer.attach().await;
    let (_, request) = peer.request().await;
    assert_eq!(request, Request::Detach { slot: asked[0].slot }, "nobody takes its deliveries");
}

#[tokio::test]
async fn as_long_as_it_takes_can_be_said_by_the_largest_duration() {
    let node = FakeNode::start().await;
    let forever = Duration::MAX;
    let policy = Reconnect { wait_min: forever, wait_max: forever, attempts_max: None };
    let builder = Client::builder(&node.addr).connect_timeout(forever).request_timeout(forever);
    let connecting = builder.reconnect(policy).connect();
    let (client, mut peer) = tokio::join!(connecting, node.accept(1));
    let client = client.unwrap();
    let attaching = client.attach_many(["a"], AttachOptions::default());
    let (mut outcomes, _) = tokio::join!(attaching, peer.attach());
    let mut subscription = outcomes.remove(0).unwrap();
    peer.deliver(0, 1..=1).await;
    next(&mut subscription).await.ack();
    assert_eq!(peer.heard().await, Heard::Ack(0, vec![(1, 1)]));
    let (drained, ()) = tokio::join!(client.drain(forever), peer.flush());
    drained.unwrap();
    let reason = Refusal::new(Code::NotFound, "the peer was removed");
    peer.say(&Control::Detached { slot: 0, reason }).await;
    assert!(soon(subscription.next()).await.unwrap().is_err(), "and tried again in no known time");
}

#[tokio::test]
async fn dropping_a_subscription_acks_and_detaches() {
    let (_node, mut peer, client) = connected().await;
    let mut subscription = attached(&client, &mut peer, None).await;
    peer.deliver(0, 1..=1).await;
    next(&mut subscription).await.ack();
    drop(subscription);
    assert_eq!(peer.heard().await, Heard::Ack(0, vec![(1, 1)]));
    let (id, request) = peer.request().await;
    assert_eq!(request, Request::Detach { slot: 0 });
    peer.deliver(0, 2..=2).await;
    peer.answer(id, Reply::Done).await;
    let again = attached(&client, &mut peer, None).await;
    assert!(client.ended().is_none());
    drop(again);
}

#[tokio::test]
async fn a_detached_receiver_is_told_and_attached_again() {
    let (_node, mut peer, client) = connected().await;
    let mut subscription = attached(&client, &mut peer, None).await;
    let reason = Refusal::new(Code::NotFound, "the peer was removed");
    peer.say(&Control::Detached { slot: 0, reason }).await;
    match soon(subscription.next()).await {
        Some(Err(ReceiveError::Detached { refusal, .. })) => {
            assert_eq!(refusal.code, Code::NotFound);
        }
        other => panic!("{other:?}"),
    }
    peer.attach().await;
    peer.deliver(0, 1..=1).await;
    assert_eq!(next(&mut subscription).await.payload, "message 1");
    client.close().await;
    let end = soon(subscription.next()).await;
    assert!(matches!(end, Some(Err(ReceiveError::Ended(EndReason::Closed)))), "{end:?}");
    assert!(soon(subscription.next()).await.is_none());
}
