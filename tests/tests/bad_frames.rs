//! What a connection gets that says something wrong: one clear answer with a stable code. Nobody
//! else notices, and what is stored stays as it is.

use bytes::BytesMut;
use restante_client::protocol::codec::{put_control, put_message};
use restante_client::protocol::control::{AttachAs, Control, Hello, Reply, Request};
use restante_client::protocol::frame::{
    Ack, Confirm, Deliver, Frame, HEADER_BYTES, TagRange, kind, publish_flags,
};
use restante_client::protocol::id::{MessageId, ProducerId};
use restante_client::protocol::limits::{ALIASES_MAX, CONTROL_BYTES_MAX, FRAME_BYTES_MAX};
use restante_client::protocol::message::{Body, body_flags};
use restante_client::protocol::refusal::Code;
use restante_tests::harness::{Bystanders, Heard, Node, Raw};
use restante_tests::scene;
use serde_json::json;
use std::time::Duration;

/// A frame with this kind and these bytes, whatever they are.
fn frame(kind: u8, fields: &[u8]) -> Vec<u8> {
    let length = u32::try_from(1 + fields.len()).expect("a short frame");
    [&length.to_be_bytes()[..], &[kind], fields].concat()
}

/// The beginning of a frame that claims to be this long.
fn claim(kind: u8, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).expect("a length");
    [&length.to_be_bytes()[..], &[kind]].concat()
}

fn control(control: &Control) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    put_control(&mut bytes, control).expect("a control frame");
    bytes.to_vec()
}

fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    restante_client::protocol::codec::put_frame(&mut bytes, frame).expect("a frame");
    bytes.to_vec()
}

fn hello(change: impl FnOnce(&mut Hello)) -> Vec<u8> {
    let mut hello = Raw::hello(None);
    change(&mut hello);
    control(&Control::Hello(hello))
}

/// The connection is closed after a goodbye with this code and a text that says what was wrong.
async fn goodbye(raw: &mut Raw, case: &str, code: Code) {
    let refusal = raw.closed().await;
    let refusal = refusal.unwrap_or_else(|| panic!("{case}: closed without a word"));
    assert_eq!(refusal.code, code, "{case}: {refusal}");
    assert!(!refusal.detail.is_empty(), "{case}: {refusal}");
}

async fn started(scene: &restante_tests::harness::Scene) -> (Node, Bystanders) {
    let node = scene.node().start().await;
    let bystanders = Bystanders::on(&node).await;
    (node, bystanders)
}

#[tokio::test]
async fn whoever_does_not_begin_with_a_good_hello_is_told_so_and_closed() {
    let scene = scene!("hello");
    let (mut node, bystanders) = started(&scene).await;
    let mut trailing = Raw::hello(None).agent.into_bytes();
    trailing.splice(0..0, [0x81]);
    let cases: Vec<(&str, Vec<u8>, Code)> = vec![
        ("another protocol", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), Code::Unsupported),
        ("a frame of no bytes", claim(kind::CONTROL, 0), Code::Malformed),
        ("a hello that is too long", claim(kind::CONTROL, 64 * 1024), Code::TooLarge),
        ("a hello that is no value", frame(kind::CONTROL, &[0xc1; 30]), Code::Malformed),
        ("half a value", frame(kind::CONTROL, &hello(|_| ())[HEADER_BYTES..40]), Code::Malformed),
        ("bytes after the value", frame(kind::CONTROL, &trailing), Code::Malformed),
        (
            "a newer version",
            hello(|h| (h.version_min, h.version_max) = (2, 9)),
            Code::VersionMismatch,
        ),
        ("no version", hello(|h| (h.version_min, h.version_max) = (1, 0)), Code::VersionMismatch),
        ("an agent that breaks lines", hello(|h| h.agent = "a\nb".to_owned()), Code::Malformed),
        ("an endless agent", hello(|h| h.agent = "a".repeat(129)), Code::Malformed),
        ("a receiver's hello", hello(|h| h.deliver_as = "x".parse().ok()), Code::Unsupported),
        ("a login", hello(|h| h.login = Some("secret".to_owned())), Code::Unsupported),
        (
            "a request first",
            control(&Control::Request { id: 1, request: Request::Node }),
            Code::OutOfTurn,
        ),
        ("a publish first", publish_bytes(1, &[0], b"\0x"), Code::OutOfTurn),
    ];
    for (case, bytes, code) in cases {
        let mut raw = Raw::connect(node.addr()).await;
        raw.say(&bytes).await;
        goodbye(&mut raw, case, code).await;
        bystanders.are_well(&mut node, case).await;
    }
    bystanders.got_everything(&node).await;
}

#[tokio::test]
async fn whoever_breaks_the_protocol_later_is_told_so_and_closed() {
    let scene = scene!("frames");
    let (mut node, bystanders) = started(&scene).await;
    let backwards = [TagRange { first: 5, last: 4 }];
    let overlapping = [TagRange { first: 1, last: 4 }, TagRange { first: 4, last: 9 }];
    let confirm = Confirm { first_sequence: 1, count: 1, first_id: MessageId(1) };
    let deliver = Deliver {
        redelivered: false,
        attempt: 1,
        slot: 0,
        tag: 1,
        epoch: 1,
        id: MessageId(1),
        body: b"\0x",
    };
    let high = Control::Alias { alias: ALIASES_MAX, name: "witness".parse().expect("a name") };
    let bad_name = json!({ "alias": { "alias": 1, "name": "a/b" } });
    let bad_name = rmp_serde::to_vec_named(&bad_name).expect("a value");
    let cases: Vec<(&str, Vec<u8>, Code)> = vec![
        ("an unknown kind", frame(0x7f, b"abc"), Code::Unsupported),
        ("a second hello", hello(|_| ()), Code::OutOfTurn),
        ("a frame of no bytes", claim(kind::ACK, 0), Code::Malformed),
        ("a publish longer than any", claim(kind::PUBLISH, FRAME_BYTES_MAX + 1), Code::TooLarge),
        ("a publish without its fields", frame(kind::PUBLISH, &[0; 5]), Code::Malformed),
        (
            "more receivers than bytes",
            frame(kind::PUBLISH, &[0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1]),
            Code::Malformed,
        ),
        (
            "a control frame longer than any",
            claim(kind::CONTROL, CONTROL_BYTES_MAX + 2),
            Code::TooLarge,
        ),
        ("a value that nests for ever", frame(kind::CONTROL, &[0x91; 10_000]), Code::Malformed),
        ("an unknown request", frame(kind::CONTROL, b"\x81\xa5bogus\xc0"), Code::Malformed),
        ("an alias too high", control(&high), Code::Malformed),
        ("an alias for what is no name", frame(kind::CONTROL, &bad_name), Code::BadName),
        (
            "acks that run backwards",
            encoded(&Frame::Ack(Ack { slot: 0, ranges: backwards.into_iter().collect() })),
            Code::Malformed,
        ),
        (
            "acks that name a tag twice",
            encoded(&Frame::Ack(Ack { slot: 0, ranges: overlapping.into_iter().collect() })),
            Code::Malformed,
        ),
        ("fewer acks than counted", frame(kind::ACK, &[0, 0, 0, 0, 0, 9, 1]), Code::Malformed),
        (
            "a nack that is no text",
            frame(kind::NACK, &[&[0; 17][..], &[0xff, 0xfe]].concat()),
            Code::Malformed,
        ),
        ("a confirm", encoded(&Frame::Confirm(confirm)), Code::OutOfTurn),
        ("a delivery", encoded(&Frame::Deliver(deliver)), Code::OutOfTurn),
    ];
    for (case, bytes, code) in cases {
        let (mut raw, _) = Raw::greeted(node.addr(), Some(ProducerId(7))).await;
        raw.say(&bytes).await;
        goodbye(&mut raw, case, code).await;
        bystanders.are_well(&mut node, case).await;
    }
    bystanders.got_everything(&node).await;
}

/// A publish of these aliases and body bytes under a sequence.
fn publish_bytes(sequence: u64, aliases: &[u32], body: &[u8]) -> Vec<u8> {
    let count = u16::try_from(aliases.len()).expect("few receivers");
    let mut fields = vec![0];
    fields.extend(count.to_be_bytes());
    fields.extend(sequence.to_be_bytes());
    fields.extend(aliases.iter().flat_map(|alias| alias.to_be_bytes()));
    fields.extend(body);
    frame(kind::PUBLISH, &fields)
}

/// The bytes of a publish under a sequence.
type Bytes = Box<dyn Fn(u64) -> Vec<u8>>;

#[tokio::test]
async fn a_publish_that_cannot_be_taken_is_refused_and_its_connection_goes_on() {
    let scene = scene!("publishes");
    let (mut node, bystanders) = started(&scene).await;
    let (mut raw, welcome) = Raw::greeted(node.addr(), Some(ProducerId(8))).await;
    let names = [(0, "witness-2"), (1, "nobody")];
    let added = restante_tests::harness::add_peer(
        bystanders.client(),
        "witness-2",
        "attach:",
        Default::default(),
    );
    added.await;
    for (alias, name) in names {
        let name = name.parse().expect("a name");
        raw.control(&Control::Alias { alias, name }).await;
    }
    let with_flags = |flags: u8, bytes: &[u8]| {
        let mut frame = bytes.to_vec();
        frame[HEADER_BYTES] = flags;
        frame
    };
    let too_large = vec![0; 1 + usize::try_from(welcome.payload_bytes_max).expect("a size") + 1];
    let headers = [&[body_flags::HEADERS, 0xff, 0xff][..], &[0; 0xffff]].concat();
    let many: Vec<u32> = vec![0; 1025];
    let original = [&[body_flags::ORIGINAL_ID][..], &[1; 16], b"x"].concat();
    let cases: Vec<(&str, Bytes, Code)> = vec![
        (
            "an unknown receiver",
            Box::new(|s| publish_bytes(s, &[1], b"\0x")),
            Code::UnknownReceiver,
        ),
        ("an undeclared alias", Box::new(|s| publish_bytes(s, &[77], b"\0x")), Code::StaleAlias),
        ("no receiver", Box::new(|s| publish_bytes(s, &[], b"\0x")), Code::NoReceiver),
        ("too many receivers", Box::new(move |s| publish_bytes(s, &many, b"\0x")), Code::TooLarge),
        (
            "a payload too large",
            Box::new(move |s| publish_bytes(s, &[0], &too_large)),
            Code::TooLarge,
        ),
        ("headers too long", Box::new(move |s| publish_bytes(s, &[0], &headers)), Code::TooLarge),
        ("no body at all", Box::new(|s| publish_bytes(s, &[0], b"")), Code::Malformed),
        ("a key of no bytes", Box::new(|s| publish_bytes(s, &[0], b"\x01\0x")), Code::Malformed),
        (
            "a key that is cut off",
            Box::new(|s| publish_bytes(s, &[0], b"\x01\x09x")),
            Code::Malformed,
        ),
        ("unknown body flags", Box::new(|s| publish_bytes(s, &[0], b"\xf0x")), Code::Unsupported),
        ("an original id", Box::new(move |s| publish_bytes(s, &[0], &original)), Code::Malformed),
        (
            "unknown flags",
            Box::new(move |s| with_flags(0x80, &publish_bytes(s, &[0], b"\0x"))),
            Code::Unsupported,
        ),
        (
            "all or nothing with a stranger",
            Box::new(move |s| {
                with_flags(publish_flags::ALL_OR_NOTHING, &publish_bytes(s, &[0, 1], b"\0x"))
            }),
            Code::AllOrNothing,
        ),
    ];
    let mut sequence = welcome.next_sequence;
    let mut stored = 0;
    for (case, bytes, code) in cases {
        raw.say(&bytes(sequence)).await;
        let Heard::Refuse(refuse) = raw.hear().await else { panic!("{case}: no refusal") };
        assert_eq!(
            (refuse.sequence, refuse.id, refuse.code),
            (sequence, None, code),
            "{case}: {refuse:?}"
        );
        assert!(!refuse.detail.is_empty(), "{case}: no words: {refuse:?}");
        sequence += 1;
        raw.say(&publish_bytes(sequence, &[0], b"\0good")).await;
        let confirmed = raw.hear().await;
        assert!(
            matches!(&confirmed, Heard::Confirm(confirm) if confirm.first_sequence == sequence),
            "{case}: the same connection goes on: {confirmed:?}"
        );
        sequence += 1;
        stored += 1;
        bystanders.are_well(&mut node, case).await;
    }
    raw.say(&publish_bytes(0, &[0], b"\0x")).await;
    let zero = raw.hear().await;
    assert!(matches!(&zero, Heard::Refuse(refuse) if refuse.code == Code::BadSequence), "{zero:?}");
    let waiting = bystanders.client().peer("witness-2").await.expect("a peer").status.waiting;
    assert_eq!(waiting, stored, "the good ones are stored, nothing else");
    bystanders.got_everything(&node).await;
}

#[tokio::test]
async fn publishing_beyond_the_credit_is_refused_by_name() {
    const CREDIT: u64 = 16;
    let scene = scene!("credit");
    let mut node = scene.node().set("credit_messages", CREDIT).start().await;
    let bystanders = Bystanders::on(&node).await;
    let (mut raw, welcome) = Raw::greeted(node.addr(), Some(ProducerId(9))).await;
    assert_eq!(u64::from(welcome.credit.messages), CREDIT);
    let name = "sink".parse().expect("a name");
    let added = restante_tests::harness::add_peer(
        bystanders.client(),
        "sink",
        "attach:",
        Default::default(),
    );
    added.await;
    raw.control(&Control::Alias { alias: 0, name }).await;
    // In one write, so that they are read before anything can be confirmed.
    let mut bytes = BytesMut::new();
    for sequence in 1..=2 * CREDIT {
        let body = Body { payload: b"x", ..Body::default() };
        put_message(&mut bytes, 0, sequence, &[0], &body);
    }
    raw.say(&bytes).await;
    let (mut confirmed, mut refused) = (0, 0);
    while confirmed + refused < 2 * CREDIT {
        match raw.hear().await {
            Heard::Confirm(confirm) => confirmed += u64::from(confirm.count),
            Heard::Refuse(refuse) => {
                assert_eq!(refuse.code, Code::OverCredit, "{refuse:?}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((confirmed, refused), (CREDIT, CREDIT));
    let waiting = bystanders.client().peer("sink").await.expect("a peer").status.waiting;
    assert_eq!(waiting, CREDIT, "what was refused is not stored");
    bystanders.are_well(&mut node, "publishing beyond the credit").await;
    bystanders.got_everything(&node).await;
}

#[tokio::test]
async fn odd_acks_change_nothing() {
    let scene = scene!("acks");
    let (mut node, bystanders) = started(&scene).await;
    let added = restante_tests::harness::add_peer(
        bystanders.client(),
        "odd",
        "attach:",
        Default::default(),
    );
    added.await;
    let (mut raw, _) = Raw::greeted(node.addr(), None).await;
    let receivers = vec![AttachAs { slot: 2, name: "odd".parse().expect("a name"), grant: None }];
    let attached = raw.ask(Request::Attach { receivers }).await;
    assert!(matches!(attached, Ok(Reply::Attached(_))), "{attached:?}");
    let ack = |slot: u32, first: u64, last: u64| {
        let ranges = [TagRange { first, last }].into_iter().collect();
        encoded(&Frame::Ack(Ack { slot, ranges }))
    };
    for bytes in [ack(2, 1, 1), ack(2, 1, u64::MAX), ack(2, 0, 0), ack(9, 1, 1)] {
        raw.say(&bytes).await;
        let answer = raw.ask(Request::Node).await;
        assert!(answer.is_ok(), "the connection goes on");
    }
    let publish = restante_client::Publish::to(["odd"]).payload("still there");
    let receipt = bystanders.client().publish(publish).await.expect("a buffer with room");
    let id = receipt.await.expect("a confirm").id;
    let Heard::Deliver { slot: 2, tag, id: delivered, .. } = raw.hear().await else {
        panic!("no delivery")
    };
    assert_eq!(delivered, id, "acks of what was never sent settle nothing");
    raw.say(&ack(2, tag, tag)).await;
    raw.say(&ack(2, tag, tag)).await;
    let flushed = raw.ask(Request::Flush).await;
    assert_eq!(flushed, Ok(Reply::Done));
    let status = bystanders.client().peer("odd").await.expect("a peer").status;
    assert_eq!((status.waiting, status.acked), (0, 1));
    bystanders.are_well(&mut node, "odd acks").await;
    bystanders.got_everything(&node).await;
}

#[tokio::test]
async fn slow_and_silent_connections_are_closed_in_the_documented_time() {
    let scene = scene!("slow");
    let setup = scene.node().set("hello_ms_max", 300).set("heartbeat_ms", 100);
    let mut node = setup.set("silence_ms_max", 1_000).start().await;
    let bystanders = Bystanders::on(&node).await;

    let began = std::time::Instant::now();
    let mut mute = Raw::connect(node.addr()).await;
    goodbye(&mut mute, "no hello", Code::TimedOut).await;
    assert!(began.elapsed() >= Duration::from_millis(300), "not before its time");
    let mut slow = Raw::connect(node.addr()).await;
    let hello = hello(|_| ());
    slow.say(&hello[..hello.len() - 1]).await;
    goodbye(&mut slow, "half a hello", Code::TimedOut).await;
    bystanders.are_well(&mut node, "slow hellos").await;

    let (mut silent, _) = Raw::greeted(node.addr(), None).await;
    let began = std::time::Instant::now();
    assert_eq!(silent.hear_any().await, Heard::Other("heartbeat"), "the node says that it lives");
    goodbye(&mut silent, "silence", Code::TimedOut).await;
    assert!(began.elapsed() >= Duration::from_millis(900), "not before its time");
    bystanders.are_well(&mut node, "silence").await;

    // A frame that never ends is no sign of life.
    let (mut dripping, _) = Raw::greeted(node.addr(), Some(ProducerId(10))).await;
    dripping.say(&claim(kind::PUBLISH, 100_000)).await;
    let drip = async {
        loop {
            dripping.say(&[0]).await;
            if let Ok(Heard::Closed) =
                tokio::time::timeout(Duration::from_millis(50), dripping.hear()).await
            {
                break;
            }
        }
    };
    restante_tests::harness::within(
        "a dripping connection to be closed",
        Duration::from_secs(20),
        drip,
    )
    .await;
    bystanders.are_well(&mut node, "dripping").await;
    bystanders.got_everything(&node).await;
}

#[tokio::test]
async fn claims_of_long_frames_cost_no_memory_and_cut_off_ones_nothing() {
    const CONNECTIONS: usize = 200;
    let scene = scene!("claims");
    let (mut node, bystanders) = started(&scene).await;
    let open = bystanders.client().node().await.expect("an answer").connections;
    let before = node.usage();
    let mut claimants = Vec::new();
    for number in 0..CONNECTIONS {
        let (mut raw, _) = Raw::greeted(node.addr(), Some(ProducerId(100 + number as u128))).await;
        raw.say(&publish_bytes(1, &[0], &[0; 1_000_000])[..100]).await;
        claimants.push(raw);
    }
    bystanders.are_well(&mut node, "claims").await;
    let growth = node.usage().resident_kib.saturating_sub(before.resident_kib);
    assert!(growth < 24 * 1024, "{CONNECTIONS} claims of a megabyte cost {growth} KiB");
    for raw in &mut claimants {
        raw.end().await;
    }
    for raw in &mut claimants {
        raw.closed().await;
    }
    restante_tests::harness::eventually(
        "the connections to be gone",
        Duration::from_secs(20),
        async || {
            let now = bystanders.client().node().await.expect("an answer").connections;
            (now == open).then_some(())
        },
    )
    .await;
    let sockets = node.usage().sockets;
    assert!(sockets <= before.sockets, "{sockets} sockets open, {} before", before.sockets);
    bystanders.got_everything(&node).await;
}
