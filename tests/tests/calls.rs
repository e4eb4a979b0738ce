//! Calls that are given up, against a real node.

use bytes::BytesMut;
use restante_client::protocol::admin::PeerPatch;
use restante_client::protocol::codec::put_message;
use restante_client::protocol::control::Control;
use restante_client::protocol::id::ProducerId;
use restante_client::protocol::message::Body;
use restante_client::protocol::refusal::Code;
use restante_tests::harness::{Answer, Heard, Inbox, Raw, add_peer};
use restante_tests::scene;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_cancelled_call_is_delivered_and_not_answered() {
    let scene = scene!("calls_cancelled");
    let node = scene.node().start().await;
    add_peer(&node.client().await, "shop", "attach:", PeerPatch::default()).await;
    let (mut raw, _) = Raw::greeted(node.addr(), Some(ProducerId(7))).await;
    raw.control(&Control::Alias { alias: 0, name: "shop".parse().expect("a name") }).await;
    let mut frames = BytesMut::new();
    for sequence in 1..=2 {
        let body = Body { reply: true, payload: b"question", ..Body::default() };
        put_message(&mut frames, 0, sequence, &[0], &body);
    }
    raw.say(&frames).await;
    raw.control(&Control::CancelCall { sequence: 1 }).await;
    // One that is none, or over, or not its own, is nothing to speak of.
    raw.control(&Control::CancelCall { sequence: 9 }).await;
    let answer = |_: &_| Answer::Value(b"answer".to_vec());
    let inbox = Inbox::attach_with(node.addr(), "shop", answer).await;
    inbox.has(2, LIMIT).await;
    loop {
        match raw.hear().await {
            Heard::Reply { sequence } => break assert_eq!(sequence, 2, "the first is over"),
            Heard::Closed => panic!("closed in place of an answer"),
            _ => {}
        }
    }
    inbox.close().await;
    // Who does not publish has no calls.
    let (mut mute, _) = Raw::greeted(node.addr(), None).await;
    mute.control(&Control::CancelCall { sequence: 1 }).await;
    let goodbye = mute.closed().await.expect("a goodbye");
    assert_eq!(goodbye.code, Code::OutOfTurn);
}
