//! Publishing, against a node that answers as the test says.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod node;

use node::{FakeNode, Heard, Peer, id, soon, welcome};
use restante_client::protocol::control::{Control, Credit, Welcome};
use restante_client::protocol::refusal::Code;
use restante_client::{BufferBounds, Client, EndReason, Publish, PublishError};
use std::time::{Duration, UNIX_EPOCH};

async fn connected() -> (FakeNode, Peer, Client) {
    connected_with(|builder| builder).await
}

async fn connected_with(
    options: impl FnOnce(restante_client::Builder) -> restante_client::Builder,
) -> (FakeNode, Peer, Client) {
    let node = FakeNode::start().await;
    let connecting = options(Client::builder(&node.addr)).connect();
    let (client, peer) = tokio::join!(connecting, node.accept(1));
    (node, peer, client.unwrap())
}

fn to_a(payload: &str) -> Publish {
    Publish::to(["a"]).payload(payload.to_owned())
}

#[tokio::test]
async fn a_publish_is_confirmed_with_its_id() {
    let (_node, mut peer, client) = connected().await;
    let publish = Publish::to(["a", "b"]).payload("hello").key("k").all_or_nothing();
    let receipt = client.publish(publish).await.unwrap();
    assert_eq!(receipt.sequence(), 1);
    let expected = Heard::Publish {
        sequence: 1,
        to: vec!["a".to_owned(), "b".to_owned()],
        payload: "hello".to_owned(),
        key: Some("k".to_owned()),
        flags: 1,
        reply: false,
    };
    assert_eq!(peer.heard().await, expected);
    peer.confirm(1, 1).await;
    let confirmed = soon(receipt).await.unwrap();
    assert_eq!((confirmed.id, confirmed.refused), (id(1), Vec::new()));
}

#[tokio::test]
async fn a_receipt_that_is_polled_again_takes_nobody_elses_outcome() {
    let (_node, mut peer, client) = connected().await;
    let mut first = client.publish(to_a("1")).await.unwrap();
    peer.publish().await;
    peer.confirm(1, 1).await;
    assert_eq!(soon(&mut first).await.unwrap().id, id(1));
    let mut second = client.publish(to_a("2")).await.unwrap();
    peer.publish().await;
    peer.confirm(2, 1).await;
    while client.unconfirmed() > 0 {
        tokio::task::yield_now().await;
    }
    let again = soon(&mut first).await;
    assert!(matches!(again, Err(PublishError::OutcomeTaken)), "{again:?}");
    assert_eq!(soon(&mut second).await.unwrap().id, id(2));
}

#[tokio::test]
async fn publishes_pipeline_and_one_confirm_resolves_a_run() {
    let (_node, mut peer, client) = connected().await;
    let mut receipts = Vec::new();
    for number in 0..500 {
        receipts.push(client.publish(to_a(&number.to_string())).await.unwrap());
    }
    for sequence in 1..=500 {
        assert_eq!(peer.publish().await.0, sequence);
    }
    peer.confirm(1, 500).await;
    for (sequence, receipt) in (1..).zip(receipts) {
        assert_eq!(soon(receipt).await.unwrap().id, id(sequence));
    }
    assert_eq!(client.unconfirmed(), 0);
}

/// A program may have a runtime for the client only.
#[test]
fn when_the_runtime_of_a_client_is_gone_nobody_waits_for_it() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (ours, theirs) = (runtime(), runtime());
    let node = ours.block_on(FakeNode::start());
    let addr = node.addr.clone();
    let connecting = std::thread::spawn(move || {
        let client = theirs.block_on(Client::connect(addr)).unwrap();
        (client, theirs)
    });
    let peer = ours.block_on(node.accept(1));
    let (client, theirs) = connecting.join().unwrap();
    let receipt = client.try_publish(to_a("1")).unwrap();
    drop(theirs);
    let outcome = ours.block_on(soon(receipt));
    let stopped = PublishError::Ended { sequence: 1, reason: EndReason::Stopped };
    assert_eq!(outcome.unwrap_err().to_string(), stopped.to_string());
    let late = client.try_publish(to_a("2")).unwrap_err();
    assert!(matches!(late, PublishError::NotSent(EndReason::Stopped)), "{late:?}");
    ours.block_on(soon(client.close()));
    drop(peer);
}

#[tokio::test]
async fn a_partial_refusal_confirms_and_names_the_others() {
    let (_node, mut peer, client) = connected().await;
    let receipt = client.publish(Publish::to(["a", "b", "c"])).await.unwrap();
    peer.publish().await;
    peer.refuse(1, true, Code::PeerQuota, &[(1, Code::PeerQuota)]).await;
    let confirmed = soon(receipt).await.unwrap();
    assert_eq!(confirmed.id, id(1));
    assert_eq!(confirmed.refused, [("b".parse().unwrap(), Code::PeerQuota)]);
    assert_eq!(confirmed.detail, "because");
}

#[tokio::test]
async fn a_refusal_uses_the_sequence_up_and_a_stale_alias_is_declared_again() {
    let (_node, mut peer, client) = connected().await;
    let receipt = client.publish(to_a("one")).await.unwrap();
    peer.publish().await;
    peer.refuse(1, false, Code::UnknownReceiver, &[(0, Code::UnknownReceiver)]).await;
    match soon(receipt).await {
        Err(PublishError::Refused(refused)) => {
            assert_eq!(refused.code, Code::UnknownReceiver);
            assert_eq!(refused.receivers, [("a".parse().unwrap(), Code::UnknownReceiver)]);
        }
        other => panic!("{other:?}"),
    }
    peer.forget_aliases();
    let receipt = client.publish(to_a("two")).await.unwrap();
    assert_eq!(peer.publish().await, (2, vec!["a".to_owned()], "two".to_owned()));
    peer.refuse(2, false, Code::OutcomeEvicted, &[]).await;
    let unknown = soon(receipt).await;
    assert!(matches!(unknown, Err(PublishError::OutcomeUnknown { sequence: 2 })), "{unknown:?}");
}

#[tokio::test]
async fn a_full_buffer_says_so_or_is_waited_for() {
    let bounds = BufferBounds { messages: 2, bytes: 1 << 20 };
    let (_node, mut peer, client) = connected_with(|builder| builder.buffer(bounds)).await;
    let _one = client.try_publish(to_a("1")).unwrap();
    let _two = client.try_publish(to_a("2")).unwrap();
    assert!(matches!(client.try_publish(to_a("3")), Err(PublishError::Full)));
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.publish(to_a("3")).await.unwrap().await }
    });
    peer.publish().await;
    peer.publish().await;
    peer.confirm(1, 1).await;
    assert_eq!(peer.publish().await.0, 3, "sent as soon as there is room");
    peer.confirm(2, 2).await;
    assert_eq!(soon(waiting).await.unwrap().unwrap().id, id(3));
}

#[tokio::test]
async fn credit_holds_publishes_back() {
    let node = FakeNode::start().await;
    let greeting = async {
        let (mut peer, hello) = node.hello().await;
        assert!(hello.producer.is_some());
        let credit = Credit { messages: 2, bytes: 1 << 20 };
        peer.say(&Control::Welcome(Welcome { credit, ..welcome() })).await;
        peer
    };
    let (client, mut peer) = tokio::join!(Client::connect(&node.addr), greeting);
    let client = client.unwrap();
    let receipts: Vec<_> =
        (0..4).map(|number| client.try_publish(to_a(&number.to_string())).unwrap()).collect();
    peer.publish().await;
    peer.publish().await;
    // Whatever else was sent would come before the answer to this.
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.peers().await }
    });
    let (request, _) = peer.request().await;
    peer.say(&Control::Credit(Credit { messages: 3, bytes: 1 << 20 })).await;
    assert_eq!(peer.publish().await.0, 3);
    peer.confirm(1, 1).await;
    assert_eq!(peer.publish().await.0, 4);
    peer.confirm(2, 3).await;
    for receipt in receipts {
        soon(receipt).await.unwrap();
    }
    peer.decline(request, Code::NotAllowed).await;
    assert!(soon(asking).await.unwrap().is_err());
}

#[tokio::test]
async fn what_is_wrong_with_a_publish_is_said_before_anything_is_sent() {
    let (_node, mut peer, client) = connected().await;
    let failed = |publish| client.try_publish(publish).expect_err("must not be taken");
    assert!(matches!(failed(Publish::to::<_, &str>([])), PublishError::NoReceiver));
    assert!(matches!(failed(Publish::to(["no/name"])), PublishError::BadName { .. }));
    let many = (0..1_025).map(|number| format!("r{number}"));
    assert!(matches!(
        failed(Publish::to(many)),
        PublishError::TooManyReceivers { count: 1_025, max: 1_024 }
    ));
    let large = Publish::to(["a"]).payload(vec![0; (1 << 20) + 1]);
    assert!(matches!(failed(large), PublishError::TooLarge { max: 1_048_576, .. }));
    assert!(matches!(failed(to_a("").key("")), PublishError::BadKey { bytes: 0 }));
    assert!(matches!(failed(to_a("").key(vec![0; 256])), PublishError::BadKey { bytes: 256 }));
    assert!(matches!(failed(to_a("").ttl(Duration::ZERO)), PublishError::BadTtl { ms: 0 }));
    assert!(matches!(failed(to_a("").delay(Duration::ZERO)), PublishError::BadDelay { ms: 0 }));
    let before = UNIX_EPOCH - Duration::from_secs(1);
    assert!(matches!(failed(to_a("").deliver_at(before)), PublishError::BadDeliverAt { ms: 0 }));
    let (longest, ms) = (Duration::from_secs(365 * 86_400), 365 * 86_400_000 + 1);
    let longer = longest + Duration::from_nanos(1);
    assert!(matches!(failed(to_a("").ttl(longer)), PublishError::BadTtl { ms: m } if m == ms));
    let headers = to_a("").header("h", "v".repeat(40_000));
    assert!(matches!(failed(headers), PublishError::HeadersTooLarge { .. }));
    let (_other_node, _other_peer, other) = connected().await;
    let route = other.route(["a"]).unwrap();
    assert!(matches!(failed(Publish::via(&route)), PublishError::ForeignRoute));
    let route = client.route(["a", "b"]).unwrap();
    let _receipt = client.try_publish(Publish::via(&route).payload("good")).unwrap();
    let expected = (1, vec!["a".to_owned(), "b".to_owned()], "good".to_owned());
    assert_eq!(peer.publish().await, expected, "the first that was taken has the first sequence");
}

#[tokio::test]
async fn a_client_that_only_receives_does_not_publish() {
    let node = FakeNode::start().await;
    let greeting = async {
        let (mut peer, hello) = node.hello().await;
        assert_eq!(hello.producer, None);
        peer.say(&Control::Welcome(welcome())).await;
        peer
    };
    let connecting = Client::builder(&node.addr).receive_only().connect();
    let (client, _peer) = tokio::join!(connecting, greeting);
    let client = client.unwrap();
    assert_eq!(client.producer(), None);
    assert!(matches!(client.publish(to_a("x")).await, Err(PublishError::NotAProducer)));
}

#[tokio::test]
async fn dropping_a_receipt_does_not_cancel_its_publish() {
    let (_node, mut peer, client) = connected().await;
    drop(client.try_publish(to_a("dropped")).unwrap());
    let receipt = client.try_publish(to_a("kept")).unwrap();
    assert_eq!(peer.publish().await.2, "dropped");
    assert_eq!(peer.publish().await.2, "kept");
    peer.confirm(1, 2).await;
    assert_eq!(soon(receipt).await.unwrap().id, id(2));
    let receipt = client.try_publish(to_a("late")).unwrap();
    let late = receipt.within(Duration::from_millis(1)).await;
    assert!(matches!(late, Err(PublishError::TimedOut { .. })));
    assert_eq!(peer.publish().await.2, "late");
}

#[tokio::test]
async fn drain_waits_for_outcomes_and_close_ends_the_rest() {
    let (_node, mut peer, client) = connected().await;
    let receipt = client.try_publish(to_a("1")).unwrap();
    let draining = client.drain(node::LONG);
    tokio::pin!(draining);
    tokio::select! {
        biased;
        early = &mut draining => panic!("something is unconfirmed: {early:?}"),
        () = std::future::ready(()) => {}
    }
    assert!(matches!(client.try_publish(to_a("2")), Err(PublishError::Draining)));
    peer.publish().await;
    peer.confirm(1, 1).await;
    soon(receipt).await.unwrap();
    soon(draining).await.unwrap();
    soon(client.clone().close()).await;
    peer.closed().await;
    assert!(matches!(client.ended(), Some(EndReason::Closed)));
    assert!(matches!(client.try_publish(to_a("3")), Err(PublishError::NotSent(_))));
}

#[tokio::test]
async fn close_tells_the_unconfirmed_that_their_outcome_is_unknown() {
    let (_node, mut peer, client) = connected().await;
    let receipt = client.try_publish(to_a("1")).unwrap();
    let undrained = client.drain(Duration::from_millis(1)).await;
    assert!(undrained.unwrap_err().to_string().contains("1 publishes"));
    tokio::join!(client.close(), async {
        peer.publish().await;
        peer.closed().await;
    });
    let ended = soon(receipt).await;
    let expected = PublishError::Ended { sequence: 1, reason: EndReason::Closed };
    assert_eq!(ended.unwrap_err().to_string(), expected.to_string());
}

#[tokio::test]
async fn the_last_handle_closes_the_connection_after_what_is_queued() {
    let (_node, mut peer, client) = connected().await;
    drop(client.try_publish(to_a("last words")).unwrap());
    drop(client);
    assert_eq!(peer.publish().await.2, "last words");
    peer.closed().await;
}
