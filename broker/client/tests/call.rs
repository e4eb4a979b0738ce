//! Calls, against a node that answers as the test says.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod node;

use node::{FakeNode, Heard, Peer, id, soon};
use restante_client::protocol::control::{Control, Reply, Request};
use restante_client::protocol::frame::ReplyKind;
use restante_client::protocol::refusal::Code;
use restante_client::protocol::status::{MessageState, MessageStatus, ReceiverStatus};
use restante_client::protocol::time::WallMillis;
use restante_client::{Bytes, CallError, Client, EndReason, Publish, PublishError, Reconnect};
use std::time::Duration;
use tokio::task::JoinHandle;

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

fn calling(client: &Client, timeout: Duration) -> JoinHandle<Result<Bytes, CallError>> {
    let client = client.clone();
    tokio::spawn(async move { client.call("a", "question", timeout).await })
}

async fn question(peer: &mut Peer) -> u64 {
    match peer.heard().await {
        Heard::Publish { sequence, reply: true, .. } => sequence,
        other => panic!("{other:?}"),
    }
}

fn status(state: MessageState) -> Reply {
    status_of([state])
}

/// As of a message that was replayed: its lives, one after the other.
fn status_of<const LIVES: usize>(states: [MessageState; LIVES]) -> Reply {
    let receiver = |state| ReceiverStatus {
        receiver: "a".to_owned(),
        state,
        attempts: 1,
        blocked: None,
        expires: None,
    };
    let receivers = states.map(receiver).to_vec();
    Reply::Message(MessageStatus { id: id(1), accepted: WallMillis(1), bytes: None, receivers })
}

#[tokio::test]
async fn the_answer_may_come_after_the_confirm_or_before_it() {
    let (_node, mut peer, client) = connected().await;
    let call = calling(&client, node::LONG);
    let sequence = question(&mut peer).await;
    peer.confirm(sequence, 1).await;
    peer.reply(sequence, ReplyKind::Acked, b"after").await;
    assert_eq!(soon(call).await.unwrap().unwrap(), "after");
    let call = calling(&client, node::LONG);
    let sequence = question(&mut peer).await;
    peer.reply(sequence, ReplyKind::Acked, b"before").await;
    assert_eq!(soon(call).await.unwrap().unwrap(), "before");
    peer.confirm(sequence, 1).await;
    let call = calling(&client, node::LONG);
    let sequence = question(&mut peer).await;
    peer.reply(sequence, ReplyKind::Refused, b"not mine").await;
    let refused = soon(call).await.unwrap();
    assert!(matches!(refused, Err(CallError::Refused { reason }) if reason == "not mine"));
    let call = calling(&client, node::LONG);
    let sequence = question(&mut peer).await;
    peer.reply(sequence, ReplyKind::Ended, b"purged").await;
    let ended = soon(call).await.unwrap();
    assert!(matches!(ended, Err(CallError::Unanswered { how }) if how == "purged"));
}

#[tokio::test]
async fn a_call_that_is_refused_or_impossible_says_so() {
    let (_node, mut peer, client) = connected().await;
    let call = calling(&client, node::LONG);
    let sequence = question(&mut peer).await;
    peer.refuse(sequence, false, Code::UnknownReceiver, &[(0, Code::UnknownReceiver)]).await;
    let refused = soon(call).await.unwrap();
    assert!(matches!(refused, Err(CallError::Publish(PublishError::Refused(_)))), "{refused:?}");
    let many = client.call_with(Publish::to(["a", "b"]), node::LONG).await;
    assert!(matches!(many, Err(CallError::NotOne { count: 2 })));
    let call = calling(&client, node::LONG);
    question(&mut peer).await;
    client.close().await;
    let ended = soon(call).await.unwrap();
    assert!(
        matches!(
            ended,
            Err(CallError::Publish(PublishError::Ended { reason: EndReason::Closed, .. }))
        ),
        "{ended:?}"
    );
}

/// The node is told that nobody awaits the answer any more.
async fn cancelled(peer: &mut Peer, call: u64) {
    match peer.heard().await {
        Heard::Control(Control::CancelCall { sequence }) => assert_eq!(sequence, call),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_call_that_nobody_awaits_is_cancelled_and_one_that_was_answered_is_not() {
    let (_node, mut peer, client) = connected().await;
    let given_up = calling(&client, node::LONG);
    let first = question(&mut peer).await;
    given_up.abort();
    cancelled(&mut peer, first).await;
    let call = calling(&client, node::LONG);
    let second = question(&mut peer).await;
    peer.confirm(first, 2).await;
    peer.reply(second, ReplyKind::Acked, b"yes").await;
    assert_eq!(soon(call).await.unwrap().unwrap(), "yes");
}

#[tokio::test]
async fn a_late_answer_goes_to_nobody() {
    let (_node, mut peer, client) = connected().await;
    let late = client.call("a", "question", Duration::from_millis(20)).await;
    assert!(matches!(late, Err(CallError::TimedOut { .. })), "{late:?}");
    let sequence = question(&mut peer).await;
    cancelled(&mut peer, sequence).await;
    peer.confirm(sequence, 1).await;
    peer.reply(sequence, ReplyKind::Acked, b"too late").await;
    let call = calling(&client, node::LONG);
    let sequence = question(&mut peer).await;
    peer.reply(sequence, ReplyKind::Acked, b"in time").await;
    assert_eq!(soon(call).await.unwrap().unwrap(), "in time");
}

#[tokio::test]
async fn after_a_reconnect_the_ledger_is_asked_for_the_answer() {
    let (node, mut peer, client) = connected().await;
    let call = calling(&client, node::LONG);
    let sequence = question(&mut peer).await;
    peer.confirm(sequence, 1).await;
    drop(peer);
    let mut peer = node.accept(2).await;
    let (request, asked) = peer.request().await;
    assert_eq!(asked, Request::Message { id: id(1) });
    peer.answer(request, status(MessageState::InFlight { since: WallMillis(1) })).await;
    let (request, _) = peer.request().await;
    let replayed = MessageState::Replayed { at: WallMillis(2) };
    peer.answer(request, status_of([replayed.clone(), MessageState::Queued])).await;
    let (request, _) = peer.request().await;
    let value = Some(b"from the ledger".to_vec());
    let acked = MessageState::Acked { at: WallMillis(3), value };
    peer.answer(request, status_of([replayed, acked])).await;
    assert_eq!(soon(call).await.unwrap().unwrap(), "from the ledger");
}

#[tokio::test]
async fn an_unconfirmed_call_is_sent_again_and_may_be_answered_directly() {
    let (node, mut peer, client) = connected().await;
    let call = calling(&client, node::LONG);
    question(&mut peer).await;
    drop(peer);
    let mut peer = node.accept(1).await;
    assert_eq!(question(&mut peer).await, 1);
    peer.reply(1, ReplyKind::Acked, b"directly").await;
    assert_eq!(soon(call).await.unwrap().unwrap(), "directly");
}
