//! What a peer and the node may take, counted to the message and refused by name (promise P5).

use restante_client::protocol::admin::{AdminCommand, PeerPatch, Waiting};
use restante_client::protocol::refusal::Code;
use restante_client::{Client, Confirmed, Nack, Publish, PublishError};
use restante_tests::harness::{Answer, Inbox, add_peer, eventually};
use restante_tests::scene;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn messages(quota: u64) -> PeerPatch {
    PeerPatch {
        quota_messages: Some(quota),
        retry_schedule_ms: Some(Vec::new()),
        ..PeerPatch::default()
    }
}

/// Publishes as fast as it goes; the outcomes in order.
async fn publish_many(
    client: &Client,
    to: &[&str],
    count: usize,
    payload: &str,
) -> Vec<Result<Confirmed, PublishError>> {
    let mut receipts = Vec::new();
    for _ in 0..count {
        let publish = Publish::to(to).payload(payload.to_owned());
        receipts.push(client.publish(publish).await.expect("a buffer with room"));
    }
    let mut outcomes = Vec::new();
    for receipt in receipts {
        outcomes.push(receipt.within(LIMIT).await);
    }
    outcomes
}

fn accepted(outcomes: &[Result<Confirmed, PublishError>]) -> usize {
    outcomes.iter().filter(|outcome| outcome.is_ok()).count()
}

/// The code and detail of the only reason there is.
fn refused(outcomes: &[Result<Confirmed, PublishError>]) -> (Code, String) {
    let mut reasons = outcomes.iter().filter_map(|outcome| match outcome {
        Ok(_) => None,
        Err(PublishError::Refused(why)) => Some((why.code, why.detail.clone())),
        Err(error) => panic!("{error}"),
    });
    let first = reasons.next().expect("a refusal");
    assert!(reasons.all(|(code, _)| code == first.0));
    first
}

async fn restart(node: &mut restante_tests::harness::Node) {
    node.kill();
    node.restart().await;
}

#[tokio::test]
async fn a_peer_takes_its_messages_and_no_more_and_the_others_go_on() {
    let scene = scene!("peer-quota");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    add_peer(&client, "small", "attach:", messages(100)).await;
    add_peer(&client, "large", "attach:", PeerPatch::default()).await;

    // In one burst: what is on its way counts as much as what has arrived.
    let outcomes = publish_many(&client, &["small"], 700, "x").await;
    assert_eq!(accepted(&outcomes), 100);
    let (code, detail) = refused(&outcomes);
    assert_eq!(code, Code::PeerQuota);
    assert!(detail.contains("100 messages wait"), "{detail}");
    // The other receiver of a message is not concerned, and the confirm names the one that is.
    for outcome in publish_many(&client, &["small", "large"], 300, "x").await {
        let outcome = outcome.expect("taken for the other");
        let [(name, code)] = &outcome.refused[..] else { panic!("{outcome:?}") };
        assert_eq!((name.as_str(), *code), ("small", Code::PeerQuota));
    }
    assert_eq!(client.peer("large").await.expect("a peer").status.waiting, 300);
    let info = client.peer("small").await.expect("a peer");
    assert_eq!((info.status.waiting, info.quota.messages), (100, 100));
    assert!(node.cli().ok(&["peer", "info", "small"]).contains("\"quota\":{\"messages\":100"));

    // The same after a restart, and after some have been acked: one for one.
    restart(&mut node).await;
    assert_eq!(accepted(&publish_many(&client, &["small"], 10, "x").await), 0);
    node.cli().ok(&["sub", "small", "--raw", "-C", "7"]);
    assert_eq!(accepted(&publish_many(&client, &["small"], 50, "x").await), 7);

    // Raised while the node runs.
    node.cli().ok(&["peer", "set", "small", "--quota-messages", "120"]);
    assert_eq!(accepted(&publish_many(&client, &["small"], 50, "x").await), 20);
}

#[tokio::test]
async fn parked_messages_count() {
    let scene = scene!("parked-quota");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    add_peer(&client, "picky", "attach:", messages(10)).await;
    let picky =
        Inbox::attach_with(node.addr(), "picky", |_| Answer::Nack(Nack::permanent("never"))).await;
    assert_eq!(accepted(&publish_many(&client, &["picky"], 10, "x").await), 10);
    eventually("all to be parked", LIMIT, async || {
        let status = client.peer("picky").await.ok()?.status;
        ((status.parked, status.waiting) == (10, 0)).then_some(())
    })
    .await;
    drop(picky);
    assert_eq!(accepted(&publish_many(&client, &["picky"], 5, "x").await), 0);
    node.stop().await;
    node.restart().await;
    assert_eq!(accepted(&publish_many(&client, &["picky"], 5, "x").await), 0);
}

/// A receiver that refuses everything is refused at its own door, long before the disk is full.
#[tokio::test]
async fn parked_bytes_count() {
    let scene = scene!("parked-bytes-quota");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    let quota = PeerPatch { quota_bytes: Some(100_000), ..messages(0) };
    add_peer(&client, "picky", "attach:", quota).await;
    let picky =
        Inbox::attach_with(node.addr(), "picky", |_| Answer::Nack(Nack::permanent("never"))).await;
    let payload = "x".repeat(990);
    assert_eq!(accepted(&publish_many(&client, &["picky"], 90, &payload).await), 90);
    eventually("all to be parked", LIMIT, async || {
        let status = client.peer("picky").await.ok()?.status;
        ((status.parked, status.waiting) == (90, 0)).then_some(())
    })
    .await;
    drop(picky);
    let outcomes = publish_many(&client, &["picky"], 50, &payload).await;
    let taken = accepted(&outcomes);
    assert!((5..=11).contains(&taken), "{taken} of about 1,000 bytes each");
    let (code, detail) = refused(&outcomes);
    assert_eq!(code, Code::PeerQuota);
    assert!(detail.contains("its quota is 100000"), "{detail}");
    restart(&mut node).await;
    assert_eq!(accepted(&publish_many(&client, &["picky"], 10, &payload).await), 0);
}

#[tokio::test]
async fn what_a_removed_peer_has_left_counts_for_the_node() {
    let scene = scene!("left-quota");
    let mut node =
        scene.node().set("messages_max", 100).set("peer_share_percent", 90).start().await;
    let client = node.client().await;
    for name in ["gone", "other"] {
        add_peer(&client, name, "attach:", PeerPatch::default()).await;
    }
    assert_eq!(accepted(&publish_many(&client, &["gone"], 60, "x").await), 60);
    let remove = AdminCommand::PeerRemove {
        name: "gone".parse().expect("a name"),
        if_version: None,
        waiting: Some(Waiting::Park),
    };
    client.admin(remove).await.expect("removed");
    // It counts again once its actor has ended: nothing of that can be asked for from outside.
    eventually("what it has left to count", LIMIT, async || {
        let outcome = publish_many(&client, &["other"], 1, "x").await.remove(0);
        outcome.is_err().then_some(())
    })
    .await;
    restart(&mut node).await;
    let outcomes = publish_many(&client, &["other"], 1, "x").await;
    assert_eq!((accepted(&outcomes), refused(&outcomes).0), (0, Code::NodeQuota));
    let other = client.peer("other").await.expect("a peer");
    assert!(other.status.waiting < 90, "its own quota is not what refuses");
}

#[tokio::test]
async fn a_peers_bytes_are_counted() {
    let scene = scene!("bytes-quota");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    let quota = PeerPatch { quota_bytes: Some(100_000), ..PeerPatch::default() };
    add_peer(&client, "small", "attach:", quota).await;
    let payload = "x".repeat(990);
    let outcomes = publish_many(&client, &["small"], 300, &payload).await;
    let taken = accepted(&outcomes);
    assert!((95..=101).contains(&taken), "{taken} of about 1,000 bytes each");
    let (code, detail) = refused(&outcomes);
    assert_eq!(code, Code::PeerQuota);
    assert!(detail.contains("its quota is 100000"), "{detail}");
    restart(&mut node).await;
    assert_eq!(accepted(&publish_many(&client, &["small"], 10, &payload).await), 0);
}

#[tokio::test]
async fn the_nodes_quota_is_shared_and_removal_gives_it_back() {
    let scene = scene!("node-quota");
    let mut node =
        scene.node().set("messages_max", 200).set("peer_share_percent", 60).start().await;
    let client = node.client().await;
    for name in ["a", "b", "c"] {
        add_peer(&client, name, "attach:", PeerPatch::default()).await;
    }
    // A peer without a quota of its own has a share of the node's.
    let outcomes = publish_many(&client, &["a"], 300, "x").await;
    assert_eq!((accepted(&outcomes), refused(&outcomes).0), (120, Code::PeerQuota));
    let outcomes = publish_many(&client, &["b"], 300, "x").await;
    assert_eq!((accepted(&outcomes), refused(&outcomes).0), (80, Code::NodeQuota));
    assert!(refused(&outcomes).1.contains("the quota is 200"), "{:?}", refused(&outcomes));
    restart(&mut node).await;
    let outcomes = publish_many(&client, &["c"], 10, "x").await;
    assert_eq!((accepted(&outcomes), refused(&outcomes).0), (0, Code::NodeQuota));

    let remove = AdminCommand::PeerRemove {
        name: "a".parse().expect("a name"),
        if_version: None,
        waiting: Some(Waiting::Purge),
    };
    client.admin(remove).await.expect("removed");
    assert_eq!(accepted(&publish_many(&client, &["c"], 300, "x").await), 120);
    let outcomes = publish_many(&client, &["b"], 10, "x").await;
    assert_eq!((accepted(&outcomes), refused(&outcomes).0), (0, Code::NodeQuota));
}
