//! Delayed messages, against a real node: they come when their time has come, and not before, whatever
//! the node was doing when it was killed.

use bytes::BytesMut;
use restante_client::protocol::admin::PeerPatch;
use restante_client::protocol::codec::put_message;
use restante_client::protocol::control::Control;
use restante_client::protocol::id::{MessageId, ProducerId};
use restante_client::protocol::message::{Body, Delay};
use restante_client::protocol::refusal::Code;
use restante_client::protocol::status::{MessageState, ReceiverStatus, Taking};
use restante_client::{CallError, Client, Publish, PublishError};
use restante_tests::harness::{Answer, Heard, Inbox, Raw, Seen, add_peer, eventually};
use restante_tests::scene;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashSet;
use std::num::NonZeroU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LIMIT: Duration = Duration::from_secs(60);
/// Long enough that a node is killed and started anew before it is over.
const SOON: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(24 * 3_600);

fn to(receivers: &[&str], text: &str, delay: Duration) -> Publish {
    Publish::to(receivers).payload(text.to_owned()).delay(delay)
}

async fn publish(client: &Client, publish: Publish) -> MessageId {
    client.publish(publish).await.expect("room").await.expect("a confirm").id
}

async fn refused(client: &Client, publish: Publish) -> Code {
    match client.publish(publish).await.expect("room").await {
        Err(PublishError::Refused(why)) => why.code,
        other => panic!("{other:?}"),
    }
}

async fn of(client: &Client, id: MessageId) -> Vec<ReceiverStatus> {
    client.message(id).await.expect("a status").receivers
}

/// When its delay is over, as the node says.
async fn due(client: &Client, id: MessageId) -> u64 {
    match of(client, id).await[0].state {
        MessageState::Delayed { until } => until.0,
        ref state => panic!("{state:?}"),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

#[tokio::test]
async fn what_is_delayed_comes_in_its_time_to_all_its_receivers_through_kills() {
    let scene = scene!("delay_kills");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    for name in ["shop", "audit"] {
        add_peer(&client, name, "attach:", PeerPatch::default()).await;
    }
    let (shop, audit) =
        (Inbox::attach(node.addr(), "shop").await, Inbox::attach(node.addr(), "audit").await);
    let far = publish(&client, to(&["shop"], "far", LONG)).await;
    let second = publish(&client, to(&["shop", "audit"], "second", SOON)).await;
    let first = publish(&client, to(&["shop"], "first", SOON / 2)).await;
    let due = due(&client, second).await;
    let receivers = of(&client, second).await;
    let names: Vec<&str> = receivers.iter().map(|one| one.receiver.as_str()).collect();
    assert_eq!(names, ["shop", "audit"]);
    let said = node.cli().run(&["message", "explain", &far.to_string()]).json().remove(0);
    assert_eq!((&said["receiver"], &said["state"]), (&"shop".into(), &"delayed".into()), "{said}");
    let end = said["until"].as_u64().zip(said["accepted"].as_u64());
    let delay = end.map(|(until, accepted)| u128::from(until - accepted));
    assert_eq!(delay, Some(LONG.as_millis()), "{said}");

    // Killed while they wait, twice.
    for _ in 0..2 {
        node.kill();
        node.restart().await;
    }
    publish(&client, Publish::to(["shop"]).payload("at once")).await;
    shop.has(3, LIMIT).await;
    assert!(now_ms() >= due, "the last of them came before its time");
    audit.has(1, LIMIT).await;
    let seen = shop.seen();
    let mut texts: Vec<&str> = seen.iter().map(|seen| seen.text.as_str()).collect();
    texts.dedup();
    let at = |text: &str| texts.iter().position(|seen| *seen == text);
    assert!(at("first") < at("second") && texts.len() == 3, "{texts:?}");
    assert!(seen.iter().any(|seen| (seen.id, seen.text.as_str()) == (first, "first")));
    eventually("a record of both acks", LIMIT, async || {
        let receivers = of(&client, second).await;
        let acked = |one: &ReceiverStatus| matches!(one.state, MessageState::Acked { .. });
        (receivers.len() == 2 && receivers.iter().all(acked)).then_some(())
    })
    .await;

    // Released and settled: a further life releases nothing again.
    node.stop().await;
    node.restart().await;
    publish(&client, Publish::to(["shop", "audit"]).payload("last")).await;
    eventually("the last ones", LIMIT, async || {
        let came = |inbox: &Inbox| inbox.texts().iter().any(|text| text == "last");
        (came(&shop) && came(&audit)).then_some(())
    })
    .await;
    assert_eq!(audit.texts(), ["second", "last"]);
    assert!(matches!(of(&client, far).await[0].state, MessageState::Delayed { .. }));
    shop.close().await;
    audit.close().await;
}

#[tokio::test]
async fn what_is_delayed_for_a_removed_peer_goes_where_its_messages_went() {
    let scene = scene!("delay_removed");
    let mut node = scene.node().start().await;
    let (client, cli) = (node.client().await, node.cli());
    for name in ["heir", "old", "gone", "kept"] {
        add_peer(&client, name, "attach:", PeerPatch::default()).await;
    }
    let all = publish(&client, to(&["old", "gone", "kept", "heir"], "all", SOON)).await;
    let purged = publish(&client, to(&["gone"], "purged", SOON)).await;
    cli.run(&["peer", "rm", "gone"]).failed(5, &["messages_waiting", "2 messages"]);
    cli.ok(&["peer", "rm", "old", "--hand-to", "heir"]);
    cli.ok(&["peer", "rm", "gone", "--purge"]);
    cli.ok(&["peer", "rm", "kept", "--park"]);
    let removed = node.events("peer_removed");
    let label =
        |at: usize| format!("{}#{}", removed[at]["peer"].as_str().unwrap(), removed[at]["peer_id"]);
    let (gone, kept) = (label(1), label(2));
    assert_eq!(client.peer(gone.as_str()).await.expect("a peer").status.delayed, 2);
    assert!(matches!(of(&client, purged).await[0].state, MessageState::Delayed { .. }));
    node.kill();
    node.restart().await;

    let heir = Inbox::attach(node.addr(), "heir").await;
    heir.has(1, LIMIT).await;
    let is = |one: &ReceiverStatus| match &one.state {
        MessageState::Acked { .. } => "acked",
        MessageState::Purged { by: Some(_), .. } => "purged",
        MessageState::Parked { .. } => "parked",
        _ => "open",
    };
    let said = async |id| {
        let receivers = of(&client, id).await;
        let said = receivers.iter().map(|one| format!("{} {}", one.receiver, is(one)));
        said.collect::<Vec<String>>()
    };
    let fate = ["heir acked", &format!("{gone} purged"), &format!("{kept} parked")];
    eventually("a record for each", LIMIT, async || (said(all).await == fate).then_some(())).await;
    let purged_for = [format!("{gone} purged")];
    eventually("another", LIMIT, async || (said(purged).await == purged_for).then_some(())).await;
    assert_eq!(heir.seen().len(), 1, "it was named twice in the end");
    // Purged for good, and parked to be had again; nothing is delayed any more.
    node.kill();
    node.restart().await;
    assert_eq!(said(purged).await, purged_for);
    assert_eq!(client.node().await.expect("a status").delayed, 0);
    cli.ok(&["peer", "replay", &kept, "--to", "heir"]);
    eventually("the parked one", LIMIT, async || (heir.seen().len() >= 2).then_some(())).await;
    assert!(heir.seen().iter().all(|seen| seen.id == all));
    heir.close().await;
}

#[tokio::test]
async fn what_was_released_is_not_released_again_by_the_next_start() {
    let scene = scene!("delay_once");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    add_peer(&client, "shop", "attach:", PeerPatch::default()).await;
    // The node dies with the first delivery: that it has been released is not on record.
    let mut pid = i32::try_from(node.pid()).ok().and_then(Pid::from_raw);
    let inbox = Inbox::attach_with(node.addr(), "shop", move |_| {
        if let Some(pid) = pid.take() {
            kill_process(pid, Signal::KILL).expect("a signal");
        }
        Answer::Ack
    })
    .await;
    let id = publish(&client, to(&["shop"], "once", SOON / 10)).await;
    inbox.has(1, LIMIT).await;
    node.has_ended().await;
    node.restart().await;
    eventually("nothing to be delayed", LIMIT, async || {
        (client.node().await.ok()?.delayed == 0).then_some(())
    })
    .await;
    publish(&client, Publish::to(["shop"]).payload("last")).await;
    inbox.has(2, LIMIT).await;
    let seen = inbox.close().await;
    let again: Vec<bool> =
        seen.iter().filter(|seen| seen.id == id).map(|seen| seen.redelivered).collect();
    assert!(again == [false, true], "{seen:?}");
}

#[tokio::test]
async fn what_is_delayed_counts_against_every_quota() {
    let scene = scene!("delay_quotas");
    let mut node = scene.node().set("messages_max", 5).set("delayed_max", 3).start().await;
    let (client, cli) = (node.client().await, node.cli());
    let quota = PeerPatch { quota_messages: Some(3), ..PeerPatch::default() };
    for name in ["shop", "audit", "third"] {
        add_peer(&client, name, "attach:", quota.clone()).await;
    }
    let plain = |to: &str| Publish::to([to]).payload("plain");
    publish(&client, to(&["shop"], "later", LONG)).await;
    publish(&client, to(&["shop", "audit"], "later", LONG)).await;
    publish(&client, plain("shop")).await;
    assert_eq!(refused(&client, plain("shop")).await, Code::PeerQuota);
    node.kill();
    node.restart().await;
    eventually("what was delayed before", LIMIT, async || {
        (client.peer("audit").await.ok()?.status.delayed == 1).then_some(())
    })
    .await;
    assert_eq!(client.peer("shop").await.expect("a peer").status.delayed, 2);
    assert_eq!(refused(&client, plain("shop")).await, Code::PeerQuota);
    publish(&client, to(&["audit"], "later", LONG)).await;
    assert_eq!(refused(&client, to(&["audit"], "later", LONG)).await, Code::DelayedQuota);
    assert_eq!(refused(&client, plain("audit")).await, Code::NodeQuota);
    assert_eq!(client.node().await.expect("a status").delayed, 3);
    // They stay until they are due, whoever they were for.
    cli.ok(&["peer", "rm", "audit", "--purge"]);
    assert_eq!(refused(&client, plain("third")).await, Code::NodeQuota);
}

#[tokio::test]
async fn a_peer_is_drained_once_what_was_delayed_for_it_has_come() {
    let scene = scene!("delay_drain");
    let node = scene.node().start().await;
    let (client, cli) = (node.client().await, node.cli());
    add_peer(&client, "shop", "attach:", PeerPatch::default()).await;
    let id = publish(&client, to(&["shop"], "soon", 2 * SOON)).await;
    cli.ok(&["peer", "drain", "shop"]);
    let status = client.peer("shop").await.expect("a peer").status;
    assert_eq!((status.taking, status.delayed, status.waiting), (Taking::Draining, 1, 0));
    assert_eq!(refused(&client, to(&["shop"], "new", SOON)).await, Code::Draining);
    assert!(matches!(of(&client, id).await[0].state, MessageState::Delayed { .. }), "too slow");
    let waits = cli.spawn(&["peer", "drain", "shop", "--wait"]);
    let inbox = Inbox::attach(node.addr(), "shop").await;
    inbox.has(1, LIMIT).await;
    let said = waits.finish();
    said.ok();
    assert!(said.stderr.contains("1 messages are delayed"), "{said:?}");
    assert_eq!(client.peer("shop").await.expect("a peer").status.taking, Taking::Drained);
    inbox.close().await;
}

#[tokio::test]
async fn a_repeat_of_a_delayed_publish_is_the_same_message_also_after_a_kill() {
    let scene = scene!("delay_repeat");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    add_peer(&client, "shop", "attach:", PeerPatch::default()).await;
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        let (mut raw, _) = Raw::greeted(node.addr(), Some(ProducerId(7))).await;
        for (alias, name) in [(0, "shop"), (1, "nobody")] {
            raw.control(&Control::Alias { alias, name: name.parse().expect("a name") }).await;
        }
        let delay = NonZeroU64::new(24 * 3_600_000).map(Delay::For);
        let body = Body { delay, payload: b"once", ..Body::default() };
        let mut frame = BytesMut::new();
        put_message(&mut frame, 0, 1, &[0, 1], &body);
        raw.say(&frame).await;
        outcomes.push(loop {
            if let Heard::Refuse(refuse) = raw.hear().await {
                break (refuse.id.expect("one accepted it"), refuse.receivers);
            }
        });
        node.kill();
        node.restart().await;
    }
    let nobody = |(alias, code): &(u32, Code)| (*alias, *code) == (1, Code::UnknownReceiver);
    assert!(outcomes.iter().all(|(_, refused)| refused.len() == 1 && nobody(&refused[0])));
    assert_eq!(outcomes[0].0, outcomes[1].0, "one message");
    let receivers = of(&client, outcomes[0].0).await;
    assert_eq!(receivers.len(), 1, "{receivers:?}");
}

#[tokio::test]
async fn what_cannot_be_delayed_so_is_refused_by_name() {
    let scene = scene!("delay_bounds");
    let node = scene.node().start().await;
    let (client, cli) = (node.client().await, node.cli());
    add_peer(&client, "shop", "attach:", PeerPatch::default()).await;
    let call = Publish::to(["shop"]).payload("call").delay(LONG);
    let said = client.call_with(call, LIMIT).await;
    assert!(
        matches!(&said, Err(CallError::Publish(PublishError::Refused(why)))
            if why.detail == "a call cannot be delayed"),
        "{said:?}"
    );
    // It would expire before it came.
    assert_eq!(refused(&client, to(&["shop"], "dies", SOON).ttl(SOON)).await, Code::Malformed);
    let far = SystemTime::now() + Duration::from_secs(366 * 86_400);
    let far = Publish::to(["shop"]).payload("far").deliver_at(far);
    assert_eq!(refused(&client, far).await, Code::Malformed);
    let publish_with = |how: &[&str]| cli.run(&[&["pub", "--to", "shop", "x"], how].concat());
    publish_with(&["--delay", "0s"]).failed(2, &["1 ms to 365 days"]);
    publish_with(&["--delay", "1s", "--deliver-at", "2030-01-01"]).failed(2, &["cannot be used"]);
    publish_with(&["--deliver-at", "9999-01-01"]).failed(5, &["365 days"]);
    let id = publish_with(&["--delay", "2h"]).ok();
    assert_eq!(cli.run(&["message", "trace", id.trim()]).json()[0]["state"], "delayed");
}

#[tokio::test]
async fn a_message_for_a_time_comes_at_that_time_and_a_life_begins_before() {
    let scene = scene!("delay_until");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    for name in ["desk", "away"] {
        add_peer(&client, name, "attach:", PeerPatch::default()).await;
    }
    let until = |text: &str, at_ms| {
        let at = UNIX_EPOCH + Duration::from_millis(at_ms);
        Publish::to(["desk"]).payload(text.to_owned()).deliver_at(at)
    };
    let (at, tomorrow) = (now_ms() + SOON.as_millis() as u64, now_ms() + 86_400_000);
    let later = publish(&client, until("later", tomorrow)).await;
    publish(&client, until("soon", at)).await;
    publish(&client, until("at once", 1)).await;
    let dies = publish(&client, to(&["away"], "dies", SOON / 10).ttl(SOON / 5)).await;
    node.kill();
    node.restart().await;
    assert_eq!(due(&client, later).await, tomorrow);
    let desk = Inbox::attach(node.addr(), "desk").await;
    desk.has(2, LIMIT).await;
    assert!(now_ms() >= at, "it came before its time");
    assert_eq!(desk.texts(), ["at once", "soon"]);
    let away = Inbox::attach(node.addr(), "away").await;
    eventually("a record that says expired", LIMIT, async || {
        matches!(of(&client, dies).await[0].state, MessageState::Expired { .. }).then_some(())
    })
    .await;
    assert_eq!(away.count(), 0);
    away.close().await;
    desk.close().await;
}

#[tokio::test]
async fn many_come_due_while_the_node_is_killed_again_and_again_and_each_comes_once() {
    const MANY: u64 = 3_000;
    let scene = scene!("delay_many");
    let mut node = scene.node().set("journal_segment_bytes", 2 << 20).start().await;
    let client = node.client().await;
    add_peer(&client, "shop", "attach:", PeerPatch::default()).await;
    let mut receipts = Vec::new();
    for n in 0..MANY {
        let delay = SOON / 6 + Duration::from_millis(n * 7 % 2_000);
        let publish = to(&["shop"], &n.to_string(), delay).key((n % 5).to_string());
        receipts.push(client.publish(publish).await.expect("room"));
    }
    for receipt in receipts {
        receipt.await.expect("a confirm");
    }
    let inbox = Inbox::attach(node.addr(), "shop").await;
    for _ in 0..4 {
        let had = inbox.count();
        eventually("some more", LIMIT, async || (inbox.count() > had).then_some(())).await;
        node.kill();
        node.restart().await;
    }
    inbox.has(MANY as usize, LIMIT).await;
    eventually("nothing to be delayed", LIMIT, async || {
        (client.node().await.ok()?.delayed == 0).then_some(())
    })
    .await;
    publish(&client, Publish::to(["shop"]).payload("last")).await;
    inbox.has(MANY as usize + 1, LIMIT).await;
    let mut known = HashSet::new();
    let seen = inbox.close().await;
    let twice: Vec<&Seen> =
        seen.iter().filter(|seen| !known.insert(seen.id) && !seen.redelivered).collect();
    assert!(twice.is_empty(), "{} came twice: {:?}", twice.len(), twice.first());
}

#[tokio::test]
async fn what_waits_long_is_kept_while_the_log_around_it_is_given_back() {
    const OTHERS: usize = 40;
    let scene = scene!("delay_kept");
    let mut node = scene.node().set("journal_segment_bytes", 1_088 << 10).start().await;
    let client = node.client().await;
    add_peer(&client, "shop", "attach:", PeerPatch::default()).await;
    let id = publish(&client, to(&["shop"], "kept", LONG)).await;
    let inbox = Inbox::attach(node.addr(), "shop").await;
    for _ in 0..OTHERS {
        publish(&client, Publish::to(["shop"]).payload(vec![b'x'; 250 << 10])).await;
    }
    inbox.has(OTHERS, LIMIT).await;
    inbox.close().await;
    eventually("the log to shrink", LIMIT, async || {
        (client.node().await.ok()?.journal_bytes < 8 << 20).then_some(())
    })
    .await;
    for _ in 0..2 {
        node.kill();
        node.restart().await;
        assert!(matches!(of(&client, id).await[0].state, MessageState::Delayed { .. }));
        assert_eq!(client.payload(id).await.expect("it is stored").payload, "kept");
        assert_eq!(client.node().await.expect("a status").delayed, 1);
    }
}
