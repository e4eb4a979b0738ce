//! A thousand receivers that come back at once after an outage.

use restante_client::protocol::admin::PeerPatch;
use restante_client::protocol::control::Control;
use restante_client::protocol::frame::{Ack, Frame, TagRange};
use restante_client::protocol::message::Body;
use restante_client::protocol::status::Health;
use restante_client::{Client, Publish};
use restante_tests::harness::{Bystanders, Heard, Raw, add_peer, eventually, within};
use restante_tests::scene;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const LIMIT: Duration = Duration::from_secs(60);
const RECEIVERS: usize = 1_000;
/// To each of them.
const MESSAGES: usize = 10;
/// Attempts a second.
const RATE: u32 = 400;
/// Attempts that may begin at once, and those that were under way when the outage ended.
const AHEAD: u32 = RATE / 10 + DIALS_MAX;
const DIALS_MAX: u32 = 64;

/// One that has got everything: its name, the texts in order, and its connection, which stays.
type Served = (String, Vec<String>, Raw);

/// The receivers, behind one door. While they are away it is shut in the face of whoever comes.
async fn receive(door: TcpListener, are_back: Arc<AtomicBool>, served: UnboundedSender<Served>) {
    loop {
        let (stream, _) = door.accept().await.expect("a connection");
        if are_back.load(Relaxed) {
            let served = served.clone();
            tokio::spawn(async move {
                if let Some(done) = serve(Raw::over(stream)).await {
                    // The test may have failed already.
                    let _ = served.send(done);
                }
            });
        }
    }
}

/// Takes all messages for whoever is introduced; `None` if nobody is.
async fn serve(mut raw: Raw) -> Option<Served> {
    let name = match raw.hear().await {
        Heard::Control(control) => match *control {
            Control::Hello(hello) => hello.deliver_as?.to_string(),
            _ => return None,
        },
        _ => return None,
    };
    raw.control(&Control::Welcome(Raw::welcome())).await;
    let mut texts = Vec::new();
    while texts.len() < MESSAGES {
        let Heard::Deliver { slot, tag, redelivered, body, .. } = raw.hear().await else {
            return None;
        };
        assert!(!redelivered, "{name} got nothing before");
        let body = Body::parse(&body).expect("a body");
        texts.push(String::from_utf8_lossy(body.payload).into_owned());
        let ranges = [TagRange { first: tag, last: tag }].into_iter().collect();
        raw.frame(&Frame::Ack(Ack { slot, ranges })).await;
    }
    Some((name, texts, raw))
}

/// Publishes to all of them; the texts, in order.
async fn publish(client: &Client, names: &[String]) -> Vec<String> {
    let texts: Vec<String> = (0..MESSAGES).map(|number| format!("message {number}")).collect();
    for text in &texts {
        let publish = Publish::to(names).payload(text.clone()).key("all");
        let receipt = client.publish(publish).await.expect("a buffer with room");
        assert_eq!(receipt.within(LIMIT).await.expect("a confirm").refused, []);
    }
    texts
}

#[tokio::test]
async fn a_thousand_that_come_back_at_once_are_dialled_at_the_rate_and_served_in_order() {
    let scene = scene!("return");
    let setup = scene.node().set("dials_per_second", RATE).set("dials_max", DIALS_MAX);
    let mut node = setup.start().await;
    let client = node.client().await;
    let bystanders = Bystanders::on(&node).await;
    let door = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("tcp://{}", door.local_addr().expect("an address"));
    let (are_back, (served, mut arrivals)) =
        (Arc::new(AtomicBool::new(false)), unbounded_channel());
    let receivers = tokio::spawn(receive(door, Arc::clone(&are_back), served));
    let mut names = Vec::new();
    for number in 0..RECEIVERS {
        let name = format!("receiver-{number}");
        let settings = PeerPatch {
            backoff_ms_min: Some(20),
            backoff_ms_max: Some(200),
            ..PeerPatch::default()
        };
        add_peer(&client, &name, &url, settings).await;
        names.push(name);
    }
    let texts = publish(&client, &names).await;

    // All of them try all the time, which is more than the rate lets them: one waits for its turn,
    // and says so.
    let waits = eventually("a peer that waits for its turn", LIMIT, async || {
        let peers = client.peers().await.expect("all peers");
        peers.into_iter().find(|peer| peer.why.contains("dials_per_second"))
    })
    .await;
    assert_eq!((waits.health, waits.next_attempt), (Health::Unreachable, None), "{}", waits.why);

    let began = Instant::now();
    are_back.store(true, Relaxed);
    let mut got = BTreeMap::new();
    let mut open = Vec::new();
    while got.len() < RECEIVERS {
        let (name, texts, raw) =
            within("a receiver to be served", LIMIT, arrivals.recv()).await.expect("a receiver");
        assert!(got.insert(name, texts).is_none(), "each is served once");
        open.push(raw);
    }
    // Its clock began before any of this, so that a busy machine makes nothing look too fast.
    let least = Duration::from_secs(1) * (RECEIVERS as u32 - AHEAD) / RATE;
    assert!(began.elapsed() >= least, "{RECEIVERS} dialled within {:?}", began.elapsed());
    for (name, got) in &got {
        assert_eq!(*got, texts, "{name}: everything, in order");
    }
    bystanders.are_well(&mut node, "the return").await;
    bystanders.got_everything(&node).await;
    receivers.abort();
}
