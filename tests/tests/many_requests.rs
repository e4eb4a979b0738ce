//! A client that has more to ask than a node takes at a time: it waits for its turn, and nothing of
//! it shows. Nor of a receiver that has more to say than its peer takes at a time.

use bytes::BytesMut;
use restante_client::protocol::admin::{AdminCommand, PeerPatch};
use restante_client::protocol::codec::{put_control, put_nack};
use restante_client::protocol::control::{AttachAs, Control, Reply, Request};
use restante_client::protocol::frame::Nack;
use restante_client::protocol::limits::REQUESTS_MAX;
use restante_client::protocol::name::Name;
use restante_client::protocol::refusal::Code;
use restante_client::{AttachOptions, Publish, RequestError};
use restante_tests::harness::{Heard, Raw, add_peer, eventually, within};
use restante_tests::scene;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const MANY: usize = 4 * REQUESTS_MAX;

#[tokio::test]
async fn hundreds_of_questions_at_once_are_all_answered() {
    let scene = scene!("questions");
    let node = scene.node().start().await;
    let client = node.client().await;
    let names: Vec<String> = (0..MANY).map(|number| format!("r{number}")).collect();
    drop(client.attach_many(&names, AttachOptions::default()).await);
    let publish = Publish::to([&names[0]]).payload("x");
    let receipt = client.publish(publish).await.expect("a buffer with room");
    let id = receipt.await.expect("a confirm").id;
    let asked: Vec<_> = (0..MANY)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.message(id).await.map(|status| status.id) })
        })
        .collect();
    for answer in asked {
        let answer = within("an answer", LIMIT, answer).await.expect("no panic");
        assert!(matches!(answer, Ok(answered) if answered == id), "{answer:?}");
    }
}

#[tokio::test]
async fn hundreds_of_attachments_are_left_and_taken_up_again() {
    let scene = scene!("attachments");
    let node = scene.node().start().await;
    let client = node.client().await;
    let names: Vec<String> = (0..MANY).map(|number| format!("r{number}")).collect();
    for round in 0..3 {
        let attached = client.attach_many(&names, AttachOptions::default()).await;
        let attached: Vec<_> = attached.into_iter().collect::<Result<_, _>>().expect("all attach");
        let everyone = Publish::to(&names).payload(format!("round {round}"));
        client.publish(everyone).await.expect("room").await.expect("a confirm");
        for mut subscription in attached {
            let next = within("a delivery", LIMIT, subscription.next()).await;
            let delivery = next.expect("the client lives").expect("no trouble");
            assert_eq!(delivery.payload, format!("round {round}"));
            delivery.ack();
            // Dropped here, one after the other: as many detaches.
        }
        // Answered after them all, so that another client could attach.
        client.flush().await.expect("acks are recorded");
    }
    assert_eq!(node.events("attach_refused").len(), 0);
    let lost = client.link().borrow().connections;
    assert_eq!(lost, 1, "one connection has done it all");
}

/// More than a peer's mailbox holds, and with it the word that its receiver leaves.
#[tokio::test]
async fn everything_that_a_receiver_says_before_it_detaches_counts() {
    const MESSAGES: usize = 2_000;
    let scene = scene!("answers");
    let node = scene.node().start().await;
    let client = node.client().await;
    let name: Name = "picky".parse().expect("a name");
    let mut raw = Raw::greeted(node.addr(), None).await.0;
    let receivers = vec![AttachAs { slot: 3, name: name.clone(), grant: None }];
    raw.ask(Request::Attach { receivers }).await.expect("attached");
    for _ in 0..MESSAGES {
        let publish = Publish::to([&name]).payload("x");
        drop(client.publish(publish).await.expect("a buffer with room"));
    }
    let mut tags = Vec::new();
    while tags.len() < MESSAGES {
        if let Heard::Deliver { tag, .. } = raw.hear().await {
            tags.push(tag);
        }
    }
    let mut bytes = BytesMut::new();
    for tag in tags {
        let (permanent, retry_after_ms, reason) = (true, 0, "no");
        put_nack(&mut bytes, &Nack { slot: 3, tag, permanent, retry_after_ms, reason });
    }
    let detach = Control::Request { id: 99, request: Request::Detach { slot: 3 } };
    put_control(&mut bytes, &detach).expect("a frame");
    raw.say(&bytes).await;
    loop {
        let Heard::Control(control) = raw.hear().await else { continue };
        if let Control::Response { id: 99, result } = *control {
            break assert!(result.is_ok(), "{result:?}");
        }
    }
    let status = client.peer("picky").await.expect("a peer").status;
    assert_eq!((status.parked, status.waiting), (MESSAGES as u64, 0));
}

/// A peer that is paused while others of the same request are still being made: its receiver is refused,
/// though the peer had taken the link, and the log says so as of any other.
#[tokio::test]
async fn an_attachment_that_ends_before_it_is_answered_is_logged_as_refused() {
    const OTHERS: u32 = 1_000;
    let scene = scene!("taken-back");
    let node = scene.node().start().await;
    let name: Name = "held".parse().expect("a name");
    add_peer(&node.client().await, "held", "attach:", PeerPatch::default()).await;
    let mut raw = Raw::greeted(node.addr(), None).await.0;
    let first = AttachAs { slot: 0, name: name.clone(), grant: None };
    let others = (1..=OTHERS).map(|slot| {
        let name = format!("other-{slot}").parse().expect("a name");
        AttachAs { slot, name, grant: None }
    });
    let receivers = std::iter::once(first).chain(others).collect();
    let pause = Request::Admin(AdminCommand::PeerPause { name, if_version: None });
    let mut bytes = BytesMut::new();
    for (id, request) in [(1, Request::Attach { receivers }), (2, pause)] {
        put_control(&mut bytes, &Control::Request { id, request }).expect("a frame");
    }
    raw.say(&bytes).await;
    let results = loop {
        let Heard::Control(control) = raw.hear().await else { continue };
        match *control {
            Control::Response { id: 1, result: Ok(Reply::Attached(results)) } => break results,
            Control::Response { id: 2, result } => assert!(result.is_ok(), "{result:?}"),
            other => panic!("{other:?}"),
        }
    };
    let refusal = results[0].refusal.as_ref().expect("a refusal");
    assert_eq!((refusal.code, results[0].first_tag), (Code::Paused, 0));
    let logged = eventually("the log to say so", LIMIT, async || {
        node.events("attach_refused").into_iter().next()
    })
    .await;
    assert_eq!((&logged["peer"], &logged["reason"]), (&"held".into(), &refusal.detail[..].into()));
    // What the peer says when it closes a link that it has taken.
    assert_eq!(refusal.detail, "an operator holds this peer");
}

/// The bound that the client keeps to is the node's.
#[tokio::test]
async fn one_request_more_than_a_node_takes_is_refused() {
    let scene = scene!("bound");
    let node = scene.node().start().await;
    let (mut raw, _) = Raw::greeted(node.addr(), None).await;
    let mut bytes = BytesMut::new();
    for id in 0..=REQUESTS_MAX as u64 {
        let request = Control::Request { id, request: Request::Node };
        put_control(&mut bytes, &request).expect("a frame");
    }
    raw.say(&bytes).await;
    let (mut answered, mut refused) = (0, 0);
    while answered + refused <= REQUESTS_MAX {
        let Heard::Control(control) = raw.hear().await else { panic!("an answer") };
        match *control {
            Control::Response { result: Ok(_), .. } => answered += 1,
            Control::Response { result: Err(why), .. } => {
                assert_eq!(why.code, Code::Overloaded);
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((answered, refused), (REQUESTS_MAX, 1));
    let client = node.client().await;
    assert!(!matches!(client.node().await, Err(RequestError::Refused(_))));
}
