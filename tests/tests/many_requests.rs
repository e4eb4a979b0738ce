//! A client that has more to ask than a node takes at a time: it waits for its turn, and nothing of
//! it shows.

use restante_client::protocol::control::Request;
use restante_client::protocol::limits::REQUESTS_MAX;
use restante_client::protocol::refusal::Code;
use restante_client::{AttachOptions, Publish, RequestError};
use restante_tests::harness::{Heard, Raw, within};
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

/// The bound that the client keeps to is the node's.
#[tokio::test]
async fn one_request_more_than_a_node_takes_is_refused() {
    let scene = scene!("bound");
    let node = scene.node().start().await;
    let (mut raw, _) = Raw::greeted(node.addr(), None).await;
    let mut bytes = bytes::BytesMut::new();
    for id in 0..=REQUESTS_MAX as u64 {
        let request =
            restante_client::protocol::control::Control::Request { id, request: Request::Node };
        restante_client::protocol::codec::put_control(&mut bytes, &request).expect("a frame");
    }
    raw.say(&bytes).await;
    let (mut answered, mut refused) = (0, 0);
    while answered + refused <= REQUESTS_MAX {
        let Heard::Control(control) = raw.hear().await else { panic!("an answer") };
        match *control {
            restante_client::protocol::control::Control::Response { result: Ok(_), .. } => {
                answered += 1
            }
            restante_client::protocol::control::Control::Response { result: Err(why), .. } => {
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
