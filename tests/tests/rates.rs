//! Rates against a real node: what is above them waits, and is not lost to a crash, a restart or a change.
//!
//! No test here takes longer than its slowest rate needs for a few messages: what waits is let go by a change.

use restante_client::Publish;
use restante_client::protocol::id::MessageId;
use restante_tests::harness::{Cli, Inbox, Node, eventually};
use restante_tests::scene;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
/// At a message a second they would take longer than any test waits.
const MESSAGES: usize = 300;
const MARK: &str = "poison-71ab";

async fn publish(node: &Node, to: &[&str], texts: impl Iterator<Item = String>) -> Vec<MessageId> {
    let client = node.client().await;
    let mut receipts = Vec::new();
    for text in texts {
        let publish = Publish::to(to.iter().copied()).payload(text);
        receipts.push(client.publish(publish).await.expect("a buffer with room"));
    }
    let mut ids = Vec::new();
    for receipt in receipts {
        ids.push(receipt.within(LIMIT).await.expect("a confirm").id);
    }
    ids
}

fn numbers() -> impl Iterator<Item = String> {
    (0..MESSAGES).map(|number| number.to_string())
}

/// What a message waits for on its way to a receiver, once it waits for the rate.
async fn waits_for_rate(cli: &Cli, id: MessageId, receiver: &str) -> Value {
    eventually("a wait for the rate", LIMIT, async || {
        let told = cli.run(&["message", "explain", &id.to_string()]).json();
        let told = told.into_iter().find(|told| told["receiver"] == receiver)?;
        (told["blocked"]["by"] == "rate").then_some(told)
    })
    .await
}

/// A message a second, and the one that was saved up. Looked at before the time is, so that a slow machine
/// makes it no stricter.
fn within_rate(count: usize, since: Instant) -> bool {
    count as u64 <= since.elapsed().as_secs() + 2
}

#[tokio::test]
async fn what_is_above_a_peers_rate_waits_through_a_restart_until_the_rate_is_changed() {
    let scene = scene!("rate-of-a-peer");
    let mut node = scene.node().start().await;
    let cli = node.cli();
    cli.ok(&["peer", "add", "slow", "attach:", "--ceil", "1/s"]);
    cli.ok(&["peer", "add", "free", "attach:", "--rate-bytes", "1MiB/s", "--ceil-bytes", "1GiB/s"]);
    cli.run(&["peer", "set", "slow", "--rate", "2/s"]).failed(5, &["bad_setting", "ceil"]);
    let ids = publish(&node, &["slow", "free"], numbers()).await;
    publish(&node, &["free"], std::iter::once("last".to_owned())).await;

    let begun = Instant::now();
    let (slow, free) =
        (Inbox::attach(node.addr(), "slow").await, Inbox::attach(node.addr(), "free").await);
    // Whoever is slow by order holds up nobody else.
    free.has(MESSAGES + 1, LIMIT).await;
    slow.has(1, LIMIT).await;
    let told = waits_for_rate(&cli, ids[MESSAGES - 1], "slow").await;
    assert!(told["blocked"]["until"].as_u64() > told["accepted"].as_u64(), "{told}");
    assert_eq!(cli.run(&["peer", "info", "slow"]).json()[0]["status"]["stall"], "rate");
    assert!(within_rate(slow.count(), begun));
    let before = slow.close().await.len();
    drop(free);

    node.kill();
    node.restart().await;
    let info = cli.run(&["peer", "info", "slow"]).json().remove(0);
    let rates = json!({
        "messages": { "rate": 0, "ceil": 1, "burst": 0 },
        "bytes": { "rate": 0, "ceil": 0, "burst": 0 },
    });
    assert_eq!(info["settings"]["rates"], rates);
    let begun = Instant::now();
    let slow = Inbox::attach(node.addr(), "slow").await;
    slow.has(1, LIMIT).await;
    waits_for_rate(&cli, ids[MESSAGES - 1], "slow").await;
    assert!(within_rate(slow.seen().len(), begun));

    cli.ok(&["peer", "set", "slow", "--ceil", "0"]);
    eventually("nothing waits", LIMIT, async || {
        let status = &cli.run(&["peer", "info", "slow"]).json()[0]["status"];
        (status["waiting"] == 0).then_some(())
    })
    .await;
    let texts = slow.texts();
    assert!(numbers().collect::<Vec<_>>().ends_with(&texts), "the rest, in order: {texts:?}");
    assert!(before + texts.len() >= MESSAGES, "{before} before, {} now", texts.len());
    let changed = node.events("peer_changed");
    assert_eq!(changed.last().expect("a change")["changed"], "ceil_messages=0");
}

#[tokio::test]
async fn an_actor_that_crashes_as_it_sends_is_held_to_the_rate_all_the_same() {
    let scene = scene!("rate-crash");
    let node = scene.node().env("RESTANTE_FAULT_PANIC_ON", MARK).start().await;
    let cli = node.cli();
    cli.ok(&["peer", "add", "slow", "attach:", "--ceil", "1/s"]);
    let texts = [MARK.to_owned()].into_iter().chain(numbers());
    let ids = publish(&node, &["slow"], texts).await;
    let begun = Instant::now();
    let slow = Inbox::attach(node.addr(), "slow").await;
    slow.has(1, LIMIT).await;
    waits_for_rate(&cli, ids[MESSAGES], "slow").await;
    assert!(within_rate(slow.seen().len(), begun));
    let status = &cli.run(&["peer", "info", "slow"]).json()[0]["status"];
    assert_eq!(status["parked"], 1, "{status}");
    cli.ok(&["peer", "set", "slow", "--ceil", "1000000/s"]);
    slow.has(MESSAGES, LIMIT).await;
    assert!(slow.texts() == numbers().collect::<Vec<_>>(), "everything but the poison, in order");
}

#[tokio::test]
async fn peers_of_a_class_share_its_rate_until_it_is_changed() {
    let scene = scene!("rate-of-a-class");
    let mut node = scene.node().start().await;
    let cli = node.cli();
    cli.run(&["peer", "add", "a", "attach:", "--class", "bulk"])
        .failed(6, &["not_found", "'bulk'"]);
    cli.ok(&["class", "add", "bulk", "--ceil", "1/s"]);
    cli.ok(&["peer", "add", "a", "attach:", "--class", "bulk"]);
    for peer in ["b", "other"] {
        cli.ok(&["peer", "add", peer, "attach:"]);
    }
    cli.ok(&["peer", "set", "b", "--class", "bulk"]);
    cli.run(&["class", "rm", "bulk"]).failed(5, &["class_in_use", "2 peers"]);
    cli.run(&["class", "set", "bulk"]).failed(2, &["expected something to change"]);
    let told = node.events("admin_refused");
    assert_eq!(told.last().expect("a refusal")["class"], "bulk");
    let ids = publish(&node, &["a", "b", "other"], numbers()).await;

    node.kill();
    node.restart().await;
    let listed = cli.run(&["class", "ls"]).json();
    assert_eq!(
        (&listed[0]["peers"], &listed[0]["rates"]["messages"]["ceil"]),
        (&json!(2), &json!(1))
    );
    let begun = Instant::now();
    let (a, b) = (Inbox::attach(node.addr(), "a").await, Inbox::attach(node.addr(), "b").await);
    let other = Inbox::attach(node.addr(), "other").await;
    other.has(MESSAGES, LIMIT).await;
    a.has(1, LIMIT).await;
    b.has(1, LIMIT).await;
    for peer in ["a", "b"] {
        waits_for_rate(&cli, ids[MESSAGES - 1], peer).await;
    }
    assert!(within_rate(a.count() + b.count(), begun));

    cli.ok(&["peer", "set", "a", "--no-class"]);
    a.has(MESSAGES, LIMIT).await;
    waits_for_rate(&cli, ids[MESSAGES - 1], "b").await;
    cli.ok(&["class", "set", "bulk", "--ceil", "0"]);
    b.has(MESSAGES, LIMIT).await;
    for inbox in [&a, &b] {
        assert!(inbox.texts() == numbers().collect::<Vec<_>>(), "everything, in order");
    }
    assert_eq!(node.events("class_changed")[0]["changed"], "ceil_messages=0");
    cli.ok(&["peer", "set", "b", "--no-class"]);
    cli.ok(&["class", "rm", "bulk", "--if-version", "2"]);
    assert!(cli.run(&["class", "ls"]).json().is_empty());
}

#[tokio::test]
async fn a_node_that_is_limited_shares_what_it_may_send_among_its_peers() {
    let scene = scene!("rate-of-a-node");
    let node = scene.node().set("messages_per_second", 1).start().await;
    let cli = node.cli();
    for peer in ["a", "b"] {
        cli.ok(&["peer", "add", peer, "attach:"]);
    }
    let ids = publish(&node, &["a", "b"], numbers()).await;
    let begun = Instant::now();
    let (a, b) = (Inbox::attach(node.addr(), "a").await, Inbox::attach(node.addr(), "b").await);
    a.has(1, LIMIT).await;
    b.has(1, LIMIT).await;
    for peer in ["a", "b"] {
        waits_for_rate(&cli, ids[MESSAGES - 1], peer).await;
    }
    assert!(within_rate(a.count() + b.count(), begun));
}
