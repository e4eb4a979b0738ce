//! Messages that crash the actor of their peer: set aside after the second crash, with nothing else
//! lost, nothing leaked, and the neighbours none the wiser (promise P8).
//!
//! The program under test is the node with the fault hooks that release builds do not contain: a
//! delivery whose body contains the mark panics.

use restante_client::protocol::admin::{AdminCommand, PeerPatch};
use restante_client::protocol::id::MessageId;
use restante_client::protocol::name::Name;
use restante_client::protocol::refusal::Code;
use restante_client::protocol::status::{Health, MessageState};
use restante_client::{AttachError, AttachOptions, CallError, Client, Publish};
use restante_tests::harness::{Answer, Inbox, Node, Setup, Usage, add_peer, eventually, within};
use restante_tests::scene;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const MARK: &str = "poison-9f3c";

fn poisonable(setup: Setup) -> Setup {
    setup.env("RESTANTE_FAULT_PANIC_ON", MARK)
}

/// Publishes everything and waits for all confirms. Ids in the order of the texts.
async fn publish(client: &Client, messages: Vec<(Vec<String>, String)>) -> Vec<MessageId> {
    let mut receipts = Vec::with_capacity(messages.len());
    for (receivers, text) in messages {
        let publish = Publish::to(receivers).payload(text).key("all");
        receipts.push(client.publish(publish).await.expect("a buffer with room"));
    }
    let mut ids = Vec::with_capacity(receipts.len());
    for receipt in receipts {
        ids.push(receipt.within(LIMIT).await.expect("a confirm").id);
    }
    ids
}

#[tokio::test]
async fn a_message_that_crashes_its_peers_actor_is_parked_and_nobody_else_notices() {
    const NEIGHBOURS: usize = 4;
    const MESSAGES: usize = 3_000;
    const POISONS: [usize; 3] = [400, 401, 2_000];
    let scene = scene!("poison");
    let mut node = poisonable(scene.node()).start().await;
    let client = node.client().await;
    let victim = Inbox::listen("127.0.0.1:0").await;
    add_peer(&client, "victim", &victim.url(), quick()).await;
    let mut everyone = vec!["victim".to_owned()];
    let mut neighbours = Vec::new();
    for number in 0..NEIGHBOURS {
        let name = format!("neighbour-{number}");
        add_peer(&client, &name, "attach:", quick()).await;
        neighbours.push(Inbox::attach(node.addr(), &name).await);
        everyone.push(name);
    }

    let messages = (0..MESSAGES).map(|number| match POISONS.contains(&number) {
        true => (vec!["victim".to_owned()], format!("{number} {MARK}")),
        false => (everyone.clone(), format!("{number}")),
    });
    let ids = publish(&client, messages.collect()).await;
    let good: Vec<String> =
        (0..MESSAGES).filter(|n| !POISONS.contains(n)).map(|n| n.to_string()).collect();
    let poisons: Vec<MessageId> = POISONS.iter().map(|number| ids[*number]).collect();

    for neighbour in &neighbours {
        neighbour.has(good.len(), LIMIT).await;
        assert!(neighbour.texts() == good, "everything, in order");
        let undisturbed = |seen: &restante_tests::harness::Seen| !seen.redelivered;
        assert!(neighbour.seen().iter().all(undisturbed), "neighbours are not disturbed");
    }
    victim.has(good.len(), LIMIT).await;
    assert!(victim.texts() == good, "everything but the poison, in order");
    parked(&client, "victim", POISONS.len() as u64).await;
    trace_parked(&client, &poisons).await;
    assert_eq!(client.peer("victim").await.expect("a peer").restarts, 2 * POISONS.len() as u64);
    assert_eq!(node.events("poison_parked").len(), POISONS.len());
    assert_eq!(node.events("actor_crashed").len(), 2 * POISONS.len());
    assert_eq!(node.events("actor_restarted").len(), 2 * POISONS.len());

    // Set aside for good: a restart brings none of it back.
    node.kill();
    node.restart().await;
    parked(&client, "victim", POISONS.len() as u64).await;
    trace_parked(&client, &poisons).await;
    let more = publish(&client, vec![(vec!["victim".to_owned()], "after".to_owned())]).await;
    victim.has(good.len() + 1, LIMIT).await;
    assert_eq!(victim.seen().last().map(|seen| seen.id), more.last().copied());
    assert_eq!(client.peer("victim").await.expect("a peer").restarts, 0);
}

/// Wherever in its actor a message does its harm, the message is what is set aside for it.
#[tokio::test]
async fn whatever_a_poison_breaks_it_is_found_out() {
    // What is done to many messages at once blames nobody the first time.
    for (place, crashes) in [("enqueue", 2), ("load", 2), ("send", 3), ("ack", 3), ("settle", 3)] {
        let scene = scene!("poison_place");
        let setup = poisonable(scene.node()).env("RESTANTE_FAULT_PANIC_IN", place);
        let node = setup.start().await;
        let client = node.client().await;
        add_peer(&client, "victim", "attach:", quick()).await;
        let early = match place {
            "load" => None,
            _ => Some(Inbox::attach(node.addr(), "victim").await),
        };
        let messages = (0..40).map(|number| match number {
            17 => (vec!["victim".to_owned()], format!("{number} {MARK}")),
            _ => (vec!["victim".to_owned()], format!("{number}")),
        });
        let ids = publish(&client, messages.collect()).await;
        let victim = match early {
            Some(victim) => victim,
            None => Inbox::attach(node.addr(), "victim").await,
        };
        let good = || (0..40).filter(|number| *number != 17).map(|number| number.to_string());
        eventually("everything else to arrive", LIMIT, async || {
            let texts = victim.texts();
            good().all(|text| texts.contains(&text)).then_some(())
        })
        .await;
        parked(&client, "victim", 1).await;
        trace_parked(&client, &ids[17..18]).await;
        let restarts = client.peer("victim").await.expect("a peer").restarts;
        assert_eq!(restarts, crashes, "{place}");
        let first: Vec<String> =
            victim.texts().into_iter().filter(|text| !text.contains(MARK)).collect();
        assert!(first == good().collect::<Vec<_>>(), "{place}: first deliveries are in order");
    }
}

/// A peer whose actor keeps crashing is held back, and says so to whoever asks meanwhile.
#[tokio::test]
async fn a_peer_that_is_held_back_says_so_and_holds_up_nobody_who_asks() {
    let scene = scene!("held");
    let node = poisonable(scene.node()).start().await;
    let client = node.client().await;
    add_peer(&client, "victim", "attach:", quick()).await;
    let _victim = Inbox::attach(node.addr(), "victim").await;
    let texts = (0..5).map(|number| (vec!["victim".to_owned()], format!("{number} {MARK}")));
    let mut texts: Vec<_> = texts.collect();
    texts.push((vec!["victim".to_owned()], "good".to_owned()));
    let ids = publish(&client, texts).await;
    // Holds double: one is soon as long as asking takes many times over.
    let held = eventually("a long hold", LIMIT, async || {
        let status = client.peer("victim").await.expect("an answer").status;
        let next = status.next_attempt.filter(|_| status.health == Health::Crashing)?;
        (next.0 >= wall_ms() + 1_500).then_some(status)
    })
    .await;
    assert!(held.why.contains("planted fault") && held.since.0 > 0, "{held:?}");
    let good = ids.last().copied().expect("ids");
    let status = client.message(good).await.expect("an answer");
    assert_eq!(status.receivers[0].state, MessageState::Queued);
    let refused = client.attach("victim", AttachOptions::default()).await;
    let Err(AttachError::Refused { refusal, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.code, Code::Overloaded, "{refusal}");
    let again = client.peer("victim").await.expect("an answer").status;
    let same = (again.health, again.next_attempt) == (Health::Crashing, held.next_attempt);
    assert!(same, "all of it was answered during the same hold: {again:?} after {held:?}");
    let listed = client.peers().await.expect("an answer");
    assert_eq!(listed[0].health, Health::Crashing, "the list and a watch say so too");
    parked(&client, "victim", 5).await;
    let well = client.peer("victim").await.expect("a peer").status;
    assert_eq!(well.health, Health::Up, "{well:?}");
}

fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.expect("after 1970").as_millis()).expect("a time")
}

/// Whoever called with a poison is told that it was set aside, as with any other refusal for good.
#[tokio::test]
async fn a_call_that_is_set_aside_as_poison_is_answered() {
    let scene = scene!("poison_call");
    for place in ["transmit", "enqueue"] {
        let setup = poisonable(scene.node().data_dir(scene.path(place)));
        let node = setup.env("RESTANTE_FAULT_PANIC_IN", place).start().await;
        let client = node.client().await;
        add_peer(&client, "victim", "attach:", quick()).await;
        let echo = |_: &restante_client::Delivery| Answer::Value(b"fine".to_vec());
        let _victim = Inbox::attach_with(node.addr(), "victim", echo).await;
        let answer = client.call("victim", MARK, LIMIT).await;
        let Err(CallError::Refused { reason, .. }) = &answer else { panic!("{place}: {answer:?}") };
        assert!(reason.contains("poison"), "{reason}");
        assert_eq!(client.call("victim", "well?", LIMIT).await.expect("an answer"), "fine");
    }
}

/// A grant counts deliveries by their tags: those that a crash takes back must not use it up.
#[tokio::test]
async fn a_crash_uses_up_nothing_of_a_receivers_grant() {
    let scene = scene!("poison_grant");
    let node = poisonable(scene.node()).start().await;
    let client = node.client().await;
    add_peer(&client, "victim", "attach:", quick()).await;
    let texts = ["one".to_owned(), "two".to_owned(), MARK.to_owned(), "three".to_owned()];
    let messages = texts.map(|text| (vec!["victim".to_owned()], text));
    publish(&client, messages.into()).await;
    let receiver = node.client().await;
    let options = AttachOptions { grant: Some(3) };
    let mut subscription = receiver.attach("victim", options).await.expect("an attachment");
    let mut came = Vec::new();
    while came.len() < 3 {
        let next = within("a delivery", LIMIT, subscription.next()).await;
        let Ok(delivery) = next.expect("the client lives") else { continue };
        let text = String::from_utf8_lossy(&delivery.payload).into_owned();
        if came.contains(&text) {
            // It came, so it counts: an ack that the crash overtook.
            assert!(delivery.redelivered);
            subscription.grant(1);
        } else {
            came.push(text);
        }
        let _ = delivery.ack();
    }
    assert_eq!(came, ["one", "two", "three"]);
}

/// What an operator said holds, and so does what it means for the link that was there.
#[tokio::test]
async fn a_crash_while_a_peer_is_changed_leaves_it_changed() {
    let scene = scene!("poison_change");
    let setup = scene.node().env("RESTANTE_FAULT_PANIC_ON", "victim");
    let node = setup.env("RESTANTE_FAULT_PANIC_IN", "change").start().await;
    let client = node.client().await;
    let (old, new) = (Inbox::listen("127.0.0.1:0").await, Inbox::listen("127.0.0.1:0").await);
    add_peer(&client, "victim", &old.url(), quick()).await;
    let text = |text: &str| vec![(vec!["victim".to_owned()], text.to_owned())];
    publish(&client, text("before")).await;
    old.has(1, LIMIT).await;

    let name: Name = "victim".parse().expect("a name");
    let url = Some(new.url().parse().expect("a URL"));
    let settings = PeerPatch::default();
    let set = AdminCommand::PeerSet { name: name.clone(), url, settings, if_version: None };
    client.admin(set).await.expect("a change");
    publish(&client, text("moved")).await;
    new.has(1, LIMIT).await;
    client.admin(AdminCommand::PeerPause { name, if_version: None }).await.expect("a change");
    eventually("the crash of the pause", LIMIT, async || {
        (client.peer("victim").await.ok()?.restarts == 2).then_some(())
    })
    .await;
    publish(&client, text("held")).await;
    eventually("a peer that is held", LIMIT, async || {
        let status = client.peer("victim").await.ok()?.status;
        ((status.health, status.waiting) == (Health::Paused, 1)).then_some(())
    })
    .await;
    assert_eq!((old.texts(), new.texts()), (vec!["before".to_owned()], vec!["moved".to_owned()]));
}

/// Two crashes for each of 500 peers. Crashes of one peer are held back after the third, so a
/// thousand of them take many peers; half of these are dialled, so that links are rebuilt too.
#[tokio::test]
async fn a_thousand_crashes_leak_nothing() {
    const ROUND: usize = 250;
    let scene = scene!("leak");
    let node = poisonable(scene.node()).start().await;
    let client = node.client().await;
    let listener = Inbox::listen("127.0.0.1:0").await;

    // The first round warms everything up that grows once: pools, buffers, the allocator.
    let settled: Usage = crash_round(&node, &client, &listener, 0, ROUND).await;
    let after: Usage = crash_round(&node, &client, &listener, ROUND, ROUND).await;
    assert_eq!(node.events("actor_crashed").len(), 4 * ROUND, "a thousand crashes");
    assert_eq!(node.events("poison_parked").len(), 2 * ROUND);

    // The second round's peers stay, with what every living peer has: half of them a connection.
    let links = ROUND / 2;
    assert!(
        after.sockets <= settled.sockets + links + 4,
        "files {} after {} with {links} links more",
        after.sockets,
        settled.sockets
    );
    // Fewer is no leak: one that waited for blocking work ends when there is none for a while.
    assert!(after.threads <= settled.threads, "{after:?} after {settled:?}");
    let growth = after.resident_kib.saturating_sub(settled.resident_kib);
    // A peer costs about 11 KiB, most of it its connection's.
    assert!(growth < 7 * 1024, "{growth} KiB more after 500 further crashes and 250 peers");
    let open = client.node().await.expect("an answer").connections;
    assert!(open <= 2 * links as u64 + 3, "{open} connections");
}

/// Adds peers, gives each a message, a poison and another message, and waits until both messages
/// have arrived and the poison is parked everywhere.
async fn crash_round(
    node: &Node,
    client: &Client,
    listener: &Inbox,
    first: usize,
    count: usize,
) -> Usage {
    let receiver = node.client().await;
    let names: Vec<String> = (first..first + count).map(|n| format!("peer-{n:04}")).collect();
    let (dialled, attached) = names.split_at(count / 2);
    for name in dialled {
        add_peer(client, name, &listener.url(), quick()).await;
    }
    for name in attached {
        add_peer(client, name, "attach:", quick()).await;
    }
    let attached = receiver.attach_many(attached, AttachOptions::default()).await;
    let arrived = attached.into_iter().map(|subscription| {
        let mut subscription = subscription.expect("an attachment");
        tokio::spawn(async move {
            let mut texts = std::collections::BTreeSet::new();
            while texts.len() < 2 {
                // An error is news: the crash ends the attachment, the client attaches again.
                if let Ok(delivery) = subscription.next().await.expect("the client lives") {
                    texts.insert(delivery.payload.to_vec());
                    let _ = delivery.ack();
                }
            }
            subscription
        })
    });
    let arrived: Vec<_> = arrived.collect();
    let before = listener.count();

    let messages = names.iter().flat_map(|name| {
        let texts = ["before".to_owned(), format!("{MARK} for {name}"), "after".to_owned()];
        texts.map(|text| (vec![name.clone()], text))
    });
    publish(client, messages.collect()).await;
    let mut subscriptions = Vec::new();
    for task in arrived {
        let subscription = tokio::time::timeout(LIMIT, task).await.expect("both messages arrive");
        subscriptions.push(subscription.expect("no panic in it"));
    }
    listener.has(before + 2 * dialled.len(), LIMIT).await;
    eventually("every poison to be parked and every peer to be well", LIMIT, async || {
        let peers = client.peers().await.expect("an answer");
        let mut mine = peers.iter().filter(|peer| names.contains(&peer.name));
        let well = mine.all(|peer| (peer.parked, peer.waiting, peer.health) == (1, 0, Health::Up));
        well.then_some(())
    })
    .await;
    // The attachments end with this round; the usage is that of the node at rest.
    drop(subscriptions);
    receiver.close().await;
    eventually("the round's connection to be gone", LIMIT, async || {
        let peers = client.peers().await.expect("an answer");
        let down = peers.iter().filter(|peer| peer.health == Health::Unreachable).count();
        (down == (first + count) / 2).then_some(())
    })
    .await;
    node.usage()
}

fn quick() -> PeerPatch {
    PeerPatch { backoff_ms_min: Some(10), backoff_ms_max: Some(100), ..PeerPatch::default() }
}

async fn parked(client: &Client, name: &str, count: u64) {
    eventually("the poison to be parked", LIMIT, async || {
        let status = client.peer(name).await.ok()?.status;
        ((status.parked, status.waiting) == (count, 0)).then_some(())
    })
    .await;
}

async fn trace_parked(client: &Client, ids: &[MessageId]) {
    for id in ids {
        let reason = eventually("the ledger to have it", LIMIT, async || {
            let status = client.message(*id).await.expect("a message in the ledger");
            let [receiver] = &*status.receivers else { panic!("one receiver: {status:?}") };
            match &receiver.state {
                MessageState::Parked { reason, .. } => Some(reason.clone()),
                // Until the record is on disk a crash would bring the message back.
                MessageState::Queued => None,
                other => panic!("parked, not {other:?}"),
            }
        })
        .await;
        assert!(reason.contains("crashed"), "a parked message says why: {reason}");
        let payload = client.payload(*id).await.expect("a parked message stays stored");
        assert!(String::from_utf8_lossy(&payload.payload).contains(MARK));
    }
}
