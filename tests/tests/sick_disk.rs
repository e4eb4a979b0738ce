//! A disk that fails under load (promise P9): nothing that was confirmed is lost, the node says what is
//! wrong for as long as it lasts, and it comes back by itself.
//!
//! The program under test is the node with the fault hooks that release builds do not contain: a file
//! says how its disk is.

use restante_client::protocol::admin::PeerPatch;
use restante_client::protocol::id::MessageId;
use restante_client::{Client, Publish};
use restante_tests::harness::{Inbox, Node, add_peer, eventually};
use restante_tests::scene;
use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const MESSAGES: usize = 6_000;
/// Receipts kept before the oldest is awaited.
const OUTSTANDING_MAX: usize = 400;
/// Messages after which the disk fails.
const SICK_AFTER: usize = 2_000;

/// Says how the disk is, in one step.
fn disk_is(control: &Path, how: &str) {
    let draft = control.with_extension("new");
    std::fs::write(&draft, how).expect("a file");
    std::fs::rename(&draft, control).expect("a file");
}

/// Publishes everything, whatever happens to the node meanwhile. Ids in order.
async fn publish(client: Client, tell_at: tokio::sync::oneshot::Sender<()>) -> Vec<MessageId> {
    let (mut ids, mut outstanding) = (Vec::new(), VecDeque::new());
    let mut tell_at = Some(tell_at);
    for number in 0..MESSAGES {
        let publish = Publish::to(["there", "away"]).payload(format!("message {number}"));
        outstanding.push_back(client.publish(publish).await.expect("a buffer with room"));
        if outstanding.len() >= OUTSTANDING_MAX
            && let Some(receipt) = outstanding.pop_front()
        {
            ids.push(receipt.within(LIMIT).await.expect("a confirm").id);
        }
        if ids.len() == SICK_AFTER
            && let Some(tell) = tell_at.take()
        {
            tell.send(()).expect("the test waits for it");
        }
    }
    for receipt in outstanding {
        ids.push(receipt.within(LIMIT).await.expect("a confirm").id);
    }
    ids
}

/// One fault while messages flow; ends when everything has been confirmed and delivered.
async fn fails_and_comes_back(fault: &str) {
    let scene = scene!(&format!("sick-{fault}"));
    let control = scene.path("disk");
    let mut node = scene
        .node()
        .env("RESTANTE_FAULT_DISK", control.to_str().expect("a path in UTF-8"))
        .start()
        .await;
    let client = node.client().await;
    add_peer(&client, "there", "attach:", PeerPatch::default()).await;
    add_peer(&client, "away", "attach:", PeerPatch::default()).await;
    let there = Inbox::attach(node.addr(), "there").await;
    let (tell, told) = tokio::sync::oneshot::channel();
    let producer = tokio::spawn(publish(node.client().await, tell));
    told.await.expect("the producer gets that far");

    disk_is(&control, fault);
    says(&node, "journal_poisoned").await;
    // It stays sick: opening again fails too, and whoever asks is told.
    says(&node, "journal_unusable").await;
    let asked = node.cli().run(&["peer", "ls", "--timeout", "1s"]);
    assert_ne!(asked.code, 0, "nobody is served by a sick disk");
    assert!(asked.stderr.contains("journal_poisoned"), "{}", asked.stderr);
    assert!(node.runs(), "the node stays up");

    disk_is(&control, "");
    says(&node, "journal_recovered").await;
    let ids = tokio::time::timeout(LIMIT, producer).await.expect("an end").expect("no panic");
    assert_eq!(ids.len(), MESSAGES);
    let confirmed: HashSet<MessageId> = ids.into_iter().collect();
    assert_eq!(confirmed.len(), MESSAGES, "each has an id of its own");
    let away = Inbox::attach(node.addr(), "away").await;
    for (name, inbox) in [("there", &there), ("away", &away)] {
        inbox.has(MESSAGES, LIMIT).await;
        let seen = inbox.seen();
        let ids: HashSet<MessageId> = seen.iter().map(|seen| seen.id).collect();
        let lost = confirmed.difference(&ids).count();
        assert_eq!(lost, 0, "{lost} confirmed messages have not reached {name}");
        let mut first = HashSet::new();
        let unflagged = seen.iter().filter(|seen| !first.insert(seen.id) && !seen.redelivered);
        assert_eq!(unflagged.count(), 0, "{name} sees a repeat only with its flag");
    }
    assert!(node.runs());
}

async fn says(node: &Node, event: &str) {
    eventually(event, LIMIT, async || (!node.events(event).is_empty()).then_some(())).await;
}

#[tokio::test]
async fn a_sync_that_fails() {
    fails_and_comes_back("sync").await;
}

#[tokio::test]
async fn a_write_that_fails_half_way() {
    fails_and_comes_back("write").await;
}

#[tokio::test]
async fn a_write_that_finds_no_room_in_the_middle() {
    fails_and_comes_back("full").await;
}

const BACKLOG: usize = 300;

/// A node whose receiver `away` has a backlog, and the file that says how its disk is.
async fn with_backlog(name: &str) -> (restante_tests::harness::Scene, Node, std::path::PathBuf) {
    let scene = scene!(name);
    let control = scene.path("disk");
    let setup = scene.node().env("RESTANTE_FAULT_DISK", control.to_str().expect("UTF-8"));
    let node = setup.start().await;
    let client = node.client().await;
    add_peer(&client, "away", "attach:", PeerPatch::default()).await;
    add_peer(&client, "heir", "attach:", PeerPatch::default()).await;
    for number in 0..BACKLOG {
        let publish = Publish::to(["away"]).payload(format!("message {number}"));
        client.publish(publish).await.expect("room").within(LIMIT).await.expect("a confirm");
    }
    (scene, node, control)
}

/// What a backlog has to look like when it has come: everything, once, in order, nothing set aside.
async fn has_come(node: &Node, inbox: &Inbox) {
    inbox.has(BACKLOG, LIMIT).await;
    let expected: Vec<String> = (0..BACKLOG).map(|number| format!("message {number}")).collect();
    assert!(inbox.texts() == expected, "{:?}", inbox.texts());
    assert_eq!(node.events("message_parked"), Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn a_backlog_that_cannot_be_read_waits_until_it_can() {
    let (_scene, node, control) = with_backlog("sick-read").await;
    disk_is(&control, "read");
    let away = Inbox::attach(node.addr(), "away").await;
    says(&node, "journal_finding").await;
    assert_eq!(away.count(), 0);
    disk_is(&control, "");
    has_come(&node, &away).await;
}

#[tokio::test]
async fn a_removed_peers_backlog_that_cannot_be_read_is_handed_over_once_it_can() {
    let (_scene, node, control) = with_backlog("sick-read-disposal").await;
    disk_is(&control, "read");
    node.cli().ok(&["peer", "rm", "away", "--hand-to", "heir"]);
    says(&node, "journal_finding").await;
    assert!(node.events("handover_done").is_empty(), "not while there is something to hand over");
    disk_is(&control, "");
    says(&node, "handover_done").await;
    let heir = Inbox::attach(node.addr(), "heir").await;
    has_come(&node, &heir).await;
}
