//! A receiver that takes connections and nothing else holds up nobody but itself (promise P5).
//!
//! Nothing here is a matter of speed: the others get everything while the stuck one holds.

use restante_client::protocol::admin::PeerPatch;
use restante_client::protocol::control::{AttachAs, Control, Hello, Reply, Request};
use restante_client::protocol::status::Health;
use restante_client::{Client, Publish};
use restante_tests::harness::{Heard, Inbox, Raw, add_peer, eventually, within};
use restante_tests::scene;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(60);
/// Receivers beside the stuck one.
const OTHERS: usize = 5;
/// Messages to everyone: several times what the stuck one's window and all buffers on the way hold.
const MESSAGES: usize = 8_000;
const PAYLOAD_BYTES: usize = 2_048;
/// What the node may grow by while it keeps 16 MiB for a receiver that takes nothing.
const GROWTH_KIB_MAX: u64 = 64 * 1024;

/// A dialled receiver that answers the hello and never reads again.
async fn accept_and_stall(listener: TcpListener) -> ! {
    let mut stalled = Vec::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut raw = Raw::over(stream);
        let hello = raw.hear().await;
        assert!(
            matches!(&hello, Heard::Control(control) if matches!(**control, Control::Hello(Hello { deliver_as: Some(_), .. }))),
            "{hello:?}"
        );
        raw.control(&Control::Welcome(Raw::welcome())).await;
        // Kept open, never read.
        stalled.push(raw);
    }
}

/// Publishes to everyone until all is confirmed. The texts, in order.
async fn publish_to_all(client: &Client, names: &[String], messages: usize) -> Vec<String> {
    let mut texts = Vec::with_capacity(messages);
    let mut receipts = Vec::with_capacity(messages);
    for number in 0..messages {
        let text = format!("{number:0PAYLOAD_BYTES$}");
        // Only messages of a key wait for earlier ones that have to be sent again.
        let publish = Publish::to(names).payload(text.clone()).key("all");
        receipts.push(client.publish(publish).await.expect("a buffer with room"));
        texts.push(text);
    }
    for receipt in receipts {
        let confirmed = receipt.within(LIMIT).await.expect("a confirm");
        assert_eq!(confirmed.refused, []);
    }
    texts
}

async fn others(client: &Client, node: SocketAddr) -> (Vec<String>, Vec<Inbox>) {
    let mut names = Vec::new();
    let mut inboxes = Vec::new();
    for number in 0..OTHERS {
        let name = format!("other-{number}");
        add_peer(client, &name, "attach:", PeerPatch::default()).await;
        inboxes.push(Inbox::attach(node, &name).await);
        names.push(name);
    }
    (names, inboxes)
}

#[tokio::test]
async fn a_receiver_that_accepts_and_never_reads_holds_up_nobody_else() {
    let scene = scene!("stuck");
    let node = scene.node().start().await;
    let client = node.client().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let stuck = tokio::spawn(accept_and_stall(listener));
    let (mut names, inboxes) = others(&client, node.addr()).await;
    add_peer(&client, "stuck", &format!("tcp://{addr}"), PeerPatch::default()).await;
    names.push("stuck".to_owned());
    up(&client, "stuck").await;

    let before = node.usage();
    let texts = publish_to_all(&client, &names, MESSAGES).await;
    for inbox in &inboxes {
        inbox.has(MESSAGES, LIMIT).await;
        assert!(inbox.texts() == texts, "everything, in order");
        assert!(inbox.seen().iter().all(|seen| !seen.redelivered && seen.attempt == 1));
    }
    let status = client.peer("stuck").await.expect("a peer").status;
    assert_eq!((status.waiting, status.acked), (MESSAGES as u64, 0));
    let growth = node.usage().resident_kib.saturating_sub(before.resident_kib);
    assert!(growth < GROWTH_KIB_MAX, "grew by {growth} KiB for a receiver that takes nothing");

    // It was kept all the time: a receiver that reads gets everything, from where it stood.
    stuck.abort();
    let returned = Inbox::listen(&addr.to_string()).await;
    returned.has(MESSAGES, LIMIT).await;
    assert!(returned.texts() == texts, "everything, in order");
}

#[tokio::test]
async fn an_attached_receiver_that_never_reads_is_reported_as_failed_and_keeps_its_messages() {
    let scene = scene!("silent");
    let node = scene.node().start().await;
    let client = node.client().await;
    let (mut names, inboxes) = others(&client, node.addr()).await;
    let settings = PeerPatch { ack_timeout_ms: Some(100), ..PeerPatch::default() };
    add_peer(&client, "silent", "attach:", settings).await;
    names.push("silent".to_owned());
    let (mut silent, _) = Raw::greeted(node.addr(), None).await;
    let receivers =
        vec![AttachAs { slot: 3, name: "silent".parse().expect("a name"), grant: None }];
    let attached = silent.ask(Request::Attach { receivers }).await;
    assert!(matches!(attached, Ok(Reply::Attached(_))), "{attached:?}");

    let texts = publish_to_all(&client, &names, 200).await;
    for inbox in &inboxes {
        inbox.has(200, LIMIT).await;
        assert!(inbox.texts() == texts, "everything, in order");
    }
    eventually("the verdict that it has failed", LIMIT, async || {
        let status = client.peer("silent").await.ok()?.status;
        assert_eq!((status.waiting, status.parked), (200, 0), "nothing is dropped or parked");
        matches!(status.health, Health::Failed | Health::Unreachable).then_some(())
    })
    .await;
    // The log hears of it from another actor than whoever asks.
    eventually("the event", LIMIT, async || (!node.events("peer_failed").is_empty()).then_some(()))
        .await;
    assert_eq!(node.events("peer_failed").len(), 1);
    drop(silent);
    eventually("its connection to be gone", LIMIT, async || {
        let open = client.node().await.expect("an answer").connections;
        (open == 1 + OTHERS as u64).then_some(())
    })
    .await;
    let returned = Inbox::attach(node.addr(), "silent").await;
    returned.has(200, LIMIT).await;
    // Sent before and to no avail, so no longer in order: those suspected of the silence go last.
    let came: BTreeSet<String> = returned.texts().into_iter().collect();
    assert!(came == texts.into_iter().collect(), "everything");
    assert!(returned.seen().iter().all(|seen| seen.redelivered), "all of it was sent before");
}

async fn up(client: &Client, name: &str) {
    within("a peer to be up", LIMIT, async {
        let mut watch = client.watch(None).expect("a watch");
        while let Some(event) = watch.next().await {
            event.expect("an event");
            let status = client.peer(name).await.expect("a peer").status;
            if status.health == Health::Up {
                return;
            }
        }
        panic!("the watch ended");
    })
    .await;
}
