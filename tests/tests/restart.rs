//! What a restart changes: nothing. Orderly and by SIGKILL, the node comes back with the same peers,
//! the same messages and the same answers.

use restante_client::protocol::admin::{AdminCommand, AdminDone, PeerPatch, Waiting};
use restante_client::protocol::control::WatchEvent;
use restante_client::protocol::id::{MessageId, PeerId};
use restante_client::protocol::refusal::Code;
use restante_client::protocol::status::{Health, MessageState, PeerInfo};
use restante_client::{Client, Publish, RequestError, Watch};
use restante_tests::harness::{Answer, Inbox, Node, Seen, add_peer, eventually, within};
use restante_tests::scene;
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// The two ways a node goes down.
#[derive(Clone, Copy, Debug)]
enum Down {
    Killed,
    Stopped,
}

async fn restart(node: &mut Node, down: Down) {
    match down {
        Down::Killed => node.kill(),
        Down::Stopped => assert_eq!(node.stop().await, Some(0), "an orderly end"),
    }
    node.restart().await;
}

/// Publishes texts to the same receivers and waits for all confirms.
async fn publish(client: &Client, to: &[&str], texts: &[String]) -> Vec<MessageId> {
    let mut receipts = Vec::with_capacity(texts.len());
    for text in texts {
        let publish = Publish::to(to).payload(text.clone());
        receipts.push(client.publish(publish).await.expect("a buffer with room"));
    }
    let mut ids = Vec::with_capacity(receipts.len());
    for receipt in receipts {
        let confirmed = receipt.within(LIMIT).await.expect("a confirm");
        assert_eq!(confirmed.refused, []);
        ids.push(confirmed.id);
    }
    ids
}

fn texts(label: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{label} {number}")).collect()
}

async fn states(client: &Client, id: MessageId) -> Vec<(String, MessageState)> {
    let status = client.message(id).await.expect("a message in the ledger");
    status.receivers.into_iter().map(|entry| (entry.receiver, entry.state)).collect()
}

async fn admin(client: &Client, command: AdminCommand) -> AdminDone {
    client.admin(command).await.expect("a change that is allowed")
}

async fn refused(client: &Client, command: AdminCommand) -> Code {
    match client.admin(command).await.expect_err("a change that is not allowed") {
        RequestError::Refused(refusal) => refusal.code,
        other => panic!("{other}"),
    }
}

fn remove(name: &str, waiting: Option<Waiting>) -> AdminCommand {
    AdminCommand::PeerRemove { name: name.parse().expect("a name"), if_version: None, waiting }
}

/// The peers that a watch speaks of, once they are these.
async fn watched(watch: &mut Watch, expected: &[&str]) {
    let mut names = BTreeSet::new();
    let mut parts = false;
    within("the watch to tell", LIMIT, async {
        while !names.iter().eq(expected) {
            let event = watch.next().await.expect("no end").expect("an event");
            match event {
                WatchEvent::Snapshot { peers, more, .. } => {
                    if !parts {
                        names.clear();
                    }
                    parts = more;
                    names.extend(peers.into_iter().map(|peer| peer.name));
                }
                WatchEvent::Changed { peer, .. } => drop(names.insert(peer.name)),
                WatchEvent::Removed { name, .. } => drop(names.remove(name.as_str())),
                WatchEvent::Gap { .. } => {}
            }
        }
    })
    .await;
}

fn pause(name: &str, if_version: Option<u64>) -> AdminCommand {
    AdminCommand::PeerPause { name: name.parse().expect("a name"), if_version }
}

/// What must not change about a peer.
fn lasting(info: &PeerInfo) -> impl PartialEq + std::fmt::Debug + use<> {
    let PeerInfo { status, settings, .. } = info;
    let paused = status.health == Health::Paused;
    (status.id, status.name.clone(), status.url.clone(), status.version, paused, settings.clone())
}

#[tokio::test]
async fn peers_versions_pauses_and_removals_survive() {
    let scene = scene!("admin");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    let settings = PeerPatch {
        window_messages: Some(17),
        retry_schedule_ms: Some(vec![5, 50, 500]),
        ..PeerPatch::default()
    };
    add_peer(&client, "dialled", "tcp://[::1]:9", settings).await;
    add_peer(&client, "attached", "attach:", PeerPatch::default()).await;
    let removed: PeerId = add_peer(&client, "gone", "attach:", PeerPatch::default()).await;
    let set = AdminCommand::PeerSet {
        name: "dialled".parse().expect("a name"),
        if_version: Some(1),
        url: Some("tcp://127.0.0.1:9".parse().expect("a URL")),
        settings: PeerPatch { ack_timeout_ms: Some(1_234), ..PeerPatch::default() },
    };
    assert_eq!(admin(&client, set.clone()).await.version, 2);
    assert_eq!(refused(&client, set).await, Code::VersionConflict);
    admin(&client, pause("attached", None)).await;
    // One without messages would be forgotten.
    publish(&client, &["gone"], &texts("gone", 3)).await;
    admin(&client, remove("gone", Some(Waiting::Park))).await;
    let again = add_peer(&client, "gone", "attach:", PeerPatch::default()).await;
    assert_ne!(again, removed, "a peer added again under an old name is a new peer");

    let names = [
        "dialled".to_owned(),
        "attached".to_owned(),
        "gone".to_owned(),
        format!("gone#{}", removed.0),
    ];
    let mut before = Vec::new();
    for name in &names {
        before.push(lasting(&client.peer(name).await.expect("a peer")));
    }
    for down in [Down::Killed, Down::Stopped, Down::Killed] {
        restart(&mut node, down).await;
        let client = node.client().await;
        let mut after = Vec::new();
        for name in &names {
            after.push(lasting(&client.peer(name).await.expect("a peer")));
        }
        assert_eq!(before, after, "{down:?}");
        assert_eq!(client.peers().await.expect("an answer").len(), 3);
        assert_eq!(refused(&client, pause("attached", Some(1))).await, Code::VersionConflict);
    }
    let client = node.client().await;
    let resume =
        AdminCommand::PeerResume { name: "attached".parse().expect("a name"), if_version: Some(2) };
    assert_eq!(admin(&client, resume).await.version, 3);
    let next = add_peer(&client, "next", "attach:", PeerPatch::default()).await;
    assert!(next > again, "ids are never used again");
}

#[tokio::test]
async fn the_ledger_and_an_absent_receivers_backlog_survive() {
    const BACKLOG: usize = 5_000;
    let scene = scene!("ledger");
    let mut node = scene.node().set("journal_segment_bytes", 2 << 20).start().await;
    let client = node.client().await;
    for name in ["here", "away"] {
        add_peer(&client, name, "attach:", PeerPatch::default()).await;
    }
    let texts = texts("backlog", BACKLOG);
    let here = Inbox::attach(node.addr(), "here").await;
    let ids = publish(&client, &["here", "away"], &texts).await;
    here.has(BACKLOG, LIMIT).await;
    // Leaving in order waits until what was acked is recorded.
    here.close().await;

    for down in [Down::Killed, Down::Stopped] {
        restart(&mut node, down).await;
        let client = node.client().await;
        for id in ids.iter().step_by(500) {
            let states = states(&client, *id).await;
            let [(here, acked), (away, queued)] = &*states else { panic!("{states:?}") };
            assert_eq!((&**here, &**away), ("here", "away"));
            assert!(matches!(acked, MessageState::Acked { .. }), "{down:?}: {acked:?}");
            assert_eq!(*queued, MessageState::Queued, "{down:?}");
        }
        let waiting = client.peer("away").await.expect("a peer").status.waiting;
        assert_eq!(waiting, BACKLOG as u64, "{down:?}");
        assert_eq!(client.peer("here").await.expect("a peer").status.waiting, 0);
    }
    let away = Inbox::attach(node.addr(), "away").await;
    away.has(BACKLOG, LIMIT).await;
    let seen = away.close().await;
    assert_eq!(seen.len(), BACKLOG, "each once");
    let in_order = seen.iter().map(|seen| (seen.id, &seen.text)).eq(ids.into_iter().zip(&texts));
    assert!(in_order, "in order, under their ids");
    let here = Inbox::attach(node.addr(), "here").await;
    let client = node.client().await;
    publish(&client, &["here"], &["fresh".to_owned()]).await;
    here.has(1, LIMIT).await;
    assert_eq!(here.texts(), ["fresh"], "what was acked does not come again");
}

#[tokio::test]
async fn what_may_have_been_sent_before_is_flagged_and_what_was_not_is_not() {
    const HELD: usize = 50;
    let scene = scene!("flags");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    add_peer(&client, "holder", "attach:", PeerPatch::default()).await;
    let holder = Inbox::attach_with(node.addr(), "holder", |_| Answer::Hold).await;
    let texts = texts("held", HELD);
    let ids = publish(&client, &["holder"], &texts).await;
    holder.has(HELD, LIMIT).await;
    assert!(holder.seen().iter().all(|seen| !seen.redelivered && seen.attempt == 1));
    let epoch = holder.seen()[0].epoch;

    node.kill();
    drop(holder);
    node.restart().await;
    let holder = Inbox::attach(node.addr(), "holder").await;
    holder.has(HELD, LIMIT).await;
    let fresh = publish(&client, &["holder"], &["fresh".to_owned()]).await;
    holder.has(HELD + 1, LIMIT).await;
    let seen = holder.close().await;
    let (fresh_seen, again) = seen.split_last().expect("deliveries");
    assert!(again.iter().map(|seen| seen.id).eq(ids), "the same messages under the same ids");
    assert!(again.iter().all(|seen| seen.redelivered && seen.epoch > epoch), "all flagged");
    assert_eq!((fresh_seen.id, fresh_seen.redelivered), (fresh[0], false));
}

#[tokio::test]
async fn removing_a_peer_with_messages_waiting_needs_a_word_about_them() {
    const EACH: usize = 40;
    let scene = scene!("removal");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    for name in ["kept", "purged", "moved", "heir"] {
        add_peer(&client, name, "attach:", PeerPatch::default()).await;
    }
    let kept = publish(&client, &["kept"], &texts("kept", EACH)).await;
    let purged = publish(&client, &["purged"], &texts("purged", EACH)).await;
    let moved = publish(&client, &["moved"], &texts("moved", EACH)).await;
    for name in ["kept", "purged", "moved"] {
        assert_eq!(refused(&client, remove(name, None)).await, Code::MessagesWaiting);
    }
    let label = format!("kept#{}", client.peer("kept").await.expect("a peer").status.id.0);
    let heir = Waiting::HandTo("heir".parse().expect("a name"));
    for (name, waiting) in [("kept", Waiting::Park), ("purged", Waiting::Purge), ("moved", heir)] {
        assert_eq!(admin(&client, remove(name, Some(waiting))).await.messages, EACH as u64);
    }
    settled(&client, "heir", EACH as u64).await;

    for round in 0..2 {
        if round == 1 {
            restart(&mut node, Down::Killed).await;
        }
        let client = node.client().await;
        assert_eq!(client.peers().await.expect("an answer").len(), 1);
        let status = client.peer(&label).await.expect("a removed peer").status;
        assert_eq!(status.waiting + status.parked, EACH as u64, "they stay addressable");
        for id in &kept {
            assert_eq!(states(&client, *id).await[0].0, label);
            assert!(client.payload(*id).await.is_ok(), "and stay stored");
        }
        for id in &purged {
            let state = &states(&client, *id).await[0].1;
            assert!(matches!(state, MessageState::Purged { .. }), "{state:?}");
        }
        for id in &moved {
            let state = &states(&client, *id).await[0].1;
            let to_heir = matches!(state, MessageState::Moved { to, .. } if to == "heir");
            assert!(to_heir, "{state:?}");
        }
    }
    let heir = Inbox::attach(node.addr(), "heir").await;
    heir.has(EACH, LIMIT).await;
    assert_eq!(heir.texts(), texts("moved", EACH));
    assert!(heir.seen().iter().map(|seen| seen.id).eq(moved), "under their ids");
}

#[tokio::test]
async fn a_hand_over_that_is_killed_in_the_middle_is_finished_after_the_restart() {
    const MOVED: usize = 20_000;
    let scene = scene!("handover");
    let mut node = scene.node().set("journal_segment_bytes", 2 << 20).start().await;
    let client = node.client().await;
    for name in ["from", "heir"] {
        add_peer(&client, name, "attach:", PeerPatch::default()).await;
    }
    let texts = texts("moved", MOVED);
    let ids = publish(&client, &["from"], &texts).await;
    let from = Waiting::HandTo("heir".parse().expect("a name"));
    admin(&client, remove("from", Some(from))).await;
    // The answer comes when the removal is durable; the hand-over itself goes on from there.
    eventually("the hand-over to have begun", LIMIT, async || {
        let waiting = client.peer("heir").await.ok()?.status.waiting;
        (waiting > 0).then_some(())
    })
    .await;
    node.kill();
    node.restart().await;

    let heir = Inbox::attach(node.addr(), "heir").await;
    heir.has(MOVED, LIMIT).await;
    let client = node.client().await;
    settled(&client, "heir", 0).await;
    eventually("the hand-over to be done", LIMIT, async || {
        (!node.events("handover_done").is_empty()).then_some(())
    })
    .await;
    let seen = heir.close().await;
    let wanted: HashSet<MessageId> = ids.into_iter().collect();
    let mut given: HashSet<MessageId> = HashSet::new();
    let unflagged = |seen: &&Seen| !given.insert(seen.id) && !seen.redelivered;
    let unflagged = seen.iter().filter(unflagged).count();
    assert!(given == wanted, "all of them, under their ids, and nothing else");
    assert_eq!(unflagged, 0, "what comes twice is flagged");
}

/// Waits until so many messages wait for a peer.
async fn settled(client: &Client, name: &str, waiting: u64) {
    eventually("messages to be where they belong", LIMIT, async || {
        let now = client.peer(name).await.ok()?.status.waiting;
        (now == waiting).then_some(())
    })
    .await;
}

/// What changes before the watch has found its way back is told as well.
#[tokio::test]
async fn a_watch_goes_on_after_a_restart() {
    let scene = scene!("a_watch_goes_on");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    add_peer(&client, "first", "attach:", PeerPatch::default()).await;
    let mut watch = client.watch(None).expect("a client that has not ended");
    watched(&mut watch, &["first"]).await;
    for (down, gone, new) in [(Down::Killed, "first", "second"), (Down::Stopped, "second", "third")]
    {
        restart(&mut node, down).await;
        let other = node.client().await;
        add_peer(&other, new, "attach:", PeerPatch::default()).await;
        admin(&other, remove(gone, None)).await;
        watched(&mut watch, &[new]).await;
    }
}
