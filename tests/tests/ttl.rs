//! Messages with a time to live, against a real node: what has expired is not delivered, and the ledger
//! says so, whatever the node was doing when it was killed.

use restante_client::protocol::admin::PeerPatch;
use restante_client::protocol::id::MessageId;
use restante_client::protocol::status::{MessageState, ReceiverStatus};
use restante_client::{AttachOptions, CallError, Client, Publish};
use restante_tests::harness::{Inbox, add_peer, eventually, within};
use restante_tests::scene;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LIMIT: Duration = Duration::from_secs(60);
/// So short that it has ended by the time anything is looked at.
const SHORT: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(24 * 3_600);

async fn publish(client: &Client, to: &str, text: &str, ttl: Option<Duration>) -> MessageId {
    let publish = Publish::to([to]).payload(text.to_owned());
    let publish = ttl.into_iter().fold(publish, Publish::ttl);
    client.publish(publish).await.expect("room").await.expect("a confirm").id
}

/// What has become of a message for its one receiver.
async fn of(client: &Client, id: MessageId) -> ReceiverStatus {
    let mut status = client.message(id).await.expect("a status");
    status.receivers.remove(0)
}

/// Waits until the time to live of this open message has ended, by the time that it was told.
async fn has_ended(client: &Client, id: MessageId) {
    let end = of(client, id).await.expires.expect("an end");
    // The node rounds up to a twentieth of a second.
    let over = UNIX_EPOCH + Duration::from_millis(end.0 + 100);
    let is_over = || SystemTime::now() > over;
    eventually("the end of its life", LIMIT, async || is_over().then_some(())).await;
}

async fn is_expired(client: &Client, id: MessageId) {
    eventually("a record that says expired", LIMIT, async || {
        matches!(of(client, id).await.state, MessageState::Expired { .. }).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_expired_while_its_receiver_was_away_stays_expired_through_kills() {
    let scene = scene!("ttl_kills");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    add_peer(&client, "shop", "attach:", PeerPatch::default()).await;
    let mut stale = Vec::new();
    for n in 0..3 {
        stale.push(publish(&client, "shop", &format!("stale {n}"), Some(SHORT)).await);
    }
    let fresh = publish(&client, "shop", "fresh", Some(LONG)).await;
    let plain = publish(&client, "shop", "plain", None).await;
    has_ended(&client, stale[2]).await;
    // Nobody has looked at them yet, and the ledger does not say what is not on record.
    assert_eq!(of(&client, stale[0]).await.state, MessageState::Queued);
    let cli = node.cli();
    for (id, ttl) in [(stale[0], Some(SHORT)), (fresh, Some(LONG)), (plain, None)] {
        let said = cli.run(&["message", "explain", &id.to_string()]).json().remove(0);
        let end = said["expires"].as_u64().zip(said["accepted"].as_u64());
        let lives = end.map(|(end, accepted)| u128::from(end - accepted));
        assert_eq!(lives, ttl.map(|ttl| ttl.as_millis()), "{said}");
    }

    // Killed with expired messages waiting.
    node.kill();
    node.restart().await;
    assert_eq!(of(&client, stale[0]).await.state, MessageState::Queued);
    let inbox = Inbox::attach(node.addr(), "shop").await;
    inbox.has(2, LIMIT).await;
    for id in &stale {
        is_expired(&client, *id).await;
    }
    let told = node.events("messages_expired");
    let messages: u64 = told.iter().filter_map(|event| event["messages"].as_u64()).sum();
    assert_eq!((messages, &told[0]["message"]), (3, &stale[0].to_string().into()), "{told:?}");

    // Killed with that on record, or not yet: either way they are not delivered after all.
    node.kill();
    node.restart().await;
    publish(&client, "shop", "later", None).await;
    eventually("the last one", LIMIT, async || {
        inbox.texts().contains(&"later".into()).then_some(())
    })
    .await;
    for id in &stale {
        is_expired(&client, *id).await;
    }
    let acked = |state: MessageState| matches!(state, MessageState::Acked { .. });
    eventually("two acks", LIMIT, async || {
        (acked(of(&client, fresh).await.state) && acked(of(&client, plain).await.state))
            .then_some(())
    })
    .await;
    let mut texts = inbox.texts();
    texts.dedup();
    assert_eq!(texts, ["fresh", "plain", "later"]);
    eventually("nothing that waits", LIMIT, async || {
        let info = node.cli().run(&["peer", "info", "shop"]).json();
        (info[0]["status"]["waiting"] == 0).then_some(())
    })
    .await;
    inbox.close().await;
}

#[tokio::test]
async fn what_expires_in_the_turn_that_acks_another_is_expired_and_its_caller_is_told() {
    let scene = scene!("ttl_turn");
    let node = scene.node().start().await;
    let client = node.client().await;
    let one = PeerPatch { window_messages: Some(1), ..PeerPatch::default() };
    add_peer(&client, "shop", "attach:", one).await;
    let mut receiver = client.attach("shop", AttachOptions::default()).await.expect("attached");
    let first = publish(&client, "shop", "first", None).await;
    let delivery = within("a delivery", LIMIT, receiver.next()).await.unwrap().unwrap();
    let caller = node.client().await;
    let call = Publish::to(["shop"]).payload("call").ttl(SHORT);
    let call = tokio::spawn(async move { caller.call_with(call, LIMIT).await });
    // The call has been accepted once it waits.
    eventually("two that wait", LIMIT, async || {
        let info = node.cli().run(&["peer", "info", "shop"]).json();
        (info[0]["status"]["waiting"] == 2).then_some(())
    })
    .await;
    let stale = publish(&client, "shop", "stale", Some(SHORT)).await;
    let last = publish(&client, "shop", "last", None).await;
    has_ended(&client, stale).await;
    // One turn of the peer records an ack whose floor passes over what it finds expired.
    delivery.ack();
    let delivery = within("a delivery", LIMIT, receiver.next()).await.unwrap().unwrap();
    assert_eq!(delivery.id, last);
    delivery.ack();
    is_expired(&client, stale).await;
    let ended = within("an end of the call", LIMIT, call).await.unwrap();
    assert!(
        matches!(&ended, Err(CallError::Unanswered { how }) if how == "its time to live ended"),
        "{ended:?}"
    );
    assert!(matches!(of(&client, first).await.state, MessageState::Acked { .. }));
}

#[tokio::test]
async fn the_command_line_gives_a_time_to_live_and_refuses_one_out_of_bounds() {
    let scene = scene!("ttl_cli");
    let node = scene.node().start().await;
    let cli = node.cli();
    cli.ok(&["peer", "add", "shop", "attach:"]);
    let id = cli.ok(&["pub", "--to", "shop", "--ttl", "2h", "news"]);
    let traced = cli.run(&["message", "trace", id.trim()]).json();
    let (expires, accepted) = (traced[0]["expires"].as_u64(), traced[0]["accepted"].as_u64());
    assert_eq!(
        expires.zip(accepted).map(|(end, start)| end - start),
        Some(7_200_000),
        "{traced:?}"
    );
    cli.run(&["pub", "--to", "shop", "--ttl", "0s", "news"]).failed(2, &["1 ms to 365 days"]);
    cli.run(&["pub", "--to", "shop", "--ttl", "366d", "news"]).failed(2, &["1 ms to 365 days"]);
}
