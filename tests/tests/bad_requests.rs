//! Changes and questions that cannot be: names that are none, limits that are absurd, peers that are
//! not there. Each gets a refusal with a stable code, nothing has changed after it, nobody else
//! notices.

use restante_client::protocol::control::{Control, Reply, Request};
use restante_client::protocol::refusal::{Code, Refusal};
use restante_tests::harness::{Bystanders, Heard, Node, Raw};
use restante_tests::scene;
use serde_json::{Value, json};

/// The answer to a request that may be no request at all. The connection goes on.
async fn answer(node: &Node, request: Value) -> Result<Reply, Refusal> {
    let (mut raw, _) = Raw::greeted(node.addr(), None).await;
    raw.value(&json!({ "request": { "id": 7, "request": request } })).await;
    let answer = loop {
        match raw.hear().await {
            Heard::Control(control) => match *control {
                Control::Response { id: 7, result } => break result,
                other => panic!("{other:?} in answer to {request}"),
            },
            Heard::Closed => panic!("closed without a word: {request}"),
            _ => {}
        }
    };
    assert!(raw.ask(Request::Node).await.is_ok(), "the connection goes on after {request}");
    answer
}

fn add(name: &str, url: &str, settings: Value) -> Value {
    json!({ "admin": { "peer_add": { "name": name, "url": url, "settings": settings } } })
}

async fn all_refused(node: &mut Node, bystanders: &Bystanders, cases: Vec<(Value, Code, &str)>) {
    let before = bystanders.client().peers().await.expect("an answer").len();
    for (request, code, word) in cases {
        let case = request.to_string();
        let case = &case[..case.len().min(120)];
        let refusal = answer(node, request.clone()).await.expect_err(case);
        assert_eq!(refusal.code, code, "{case}: {refusal}");
        assert!(refusal.detail.contains(word), "{case}: says {refusal}, should say {word:?}");
        assert!(!refusal.to_string().contains(['\n', '\u{1b}', '\0']), "{case}: one clean line");
        bystanders.are_well(node, case).await;
    }
    assert_eq!(bystanders.client().peers().await.expect("an answer").len(), before);
}

#[tokio::test]
async fn names_that_are_none_are_refused() {
    let scene = scene!("names");
    let mut node = scene.node().start().await;
    let bystanders = Bystanders::on(&node).await;
    let long = "n".repeat(300);
    let cases = [
        ("", "at least one character"),
        ("a/b", "0x2f"),
        ("a,b", "0x2c"),
        ("a#7", "0x23"),
        ("-a", "0x2d"),
        ("a b", "0x20"),
        ("a\nb", "0x0a"),
        ("\u{1b}[31mred", "0x1b"),
        ("nul\0", "0x00"),
        ("caf\u{e9}", "0xc3"),
        (&long, "at most 128 bytes"),
    ];
    let cases = cases
        .into_iter()
        .map(|(name, word)| (add(name, "attach:", json!({})), Code::BadName, word));
    all_refused(&mut node, &bystanders, cases.collect()).await;
    let log = node.log();
    assert!(log.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "whole lines");
    bystanders.got_everything(&node).await;
}

#[tokio::test]
async fn settings_and_addresses_out_of_bounds_are_refused() {
    let scene = scene!("settings");
    let mut node = scene.node().start().await;
    let bystanders = Bystanders::on(&node).await;
    let setting = |name: &str, value: Value| add("new", "attach:", json!({ name: value }));
    let url = |url: &str| add("new", url, json!({}));
    let cases = vec![
        (setting("window_messages", json!(0)), Code::BadSetting, "1 to 65536 messages"),
        (setting("window_messages", json!(65_537)), Code::BadSetting, "1 to 65536 messages"),
        (setting("window_messages", json!(-5)), Code::Malformed, "-5"),
        (setting("window_bytes", json!(u64::MAX)), Code::BadSetting, "bytes"),
        (setting("window_bytes", json!(1)), Code::BadSetting, "bytes"),
        (setting("ack_timeout_ms", json!(-1)), Code::Malformed, "-1"),
        (setting("ack_timeout_ms", json!(0)), Code::BadSetting, "100 to 3600000 ms"),
        (setting("backoff_ms_min", json!(90_000)), Code::BadSetting, "backoff_ms_max"),
        (setting("retry_schedule_ms", json!(vec![1; 33])), Code::BadSetting, "0 to 32 entries"),
        (setting("retry_schedule_ms", json!([u64::MAX])), Code::BadSetting, "604800000 ms"),
        (setting("order", json!("random")), Code::Malformed, "random"),
        (setting("windows", json!(5)), Code::Malformed, "windows"),
        (url("http://example.org"), Code::BadUrl, "tcp://HOST:PORT or attach:"),
        (url("tcp://example.org"), Code::BadUrl, "1 to 65535"),
        (url("tcp://example.org:0"), Code::BadUrl, "1 to 65535"),
        (url("tcp://example.org:70000"), Code::BadUrl, "1 to 65535"),
        (url("tcp://ex\nample:1"), Code::BadUrl, "1 to 65535"),
    ];
    all_refused(&mut node, &bystanders, cases).await;
    bystanders.got_everything(&node).await;
}

#[tokio::test]
async fn what_is_there_already_or_not_at_all_is_refused_by_name() {
    let scene = scene!("clashes");
    let mut node = scene.node().start().await;
    let bystanders = Bystanders::on(&node).await;
    let change = |verb: &str, fields: Value| json!({ "admin": { verb: fields } });
    let attach = |name: &str| json!({ "attach": { "receivers": [{ "slot": 0, "name": name }] } });
    let cases = vec![
        (add("witness", "attach:", json!({})), Code::NameTaken, "witness"),
        (add("sleeper", "tcp://127.0.0.1:1", json!({})), Code::NameTaken, "sleeper"),
        (change("peer_set", json!({ "name": "nobody" })), Code::NotFound, "nobody"),
        (change("peer_pause", json!({ "name": "nobody" })), Code::NotFound, "nobody"),
        (change("peer_remove", json!({ "name": "nobody" })), Code::NotFound, "nobody"),
        (change("peer_remove", json!({ "name": "sleeper" })), Code::MessagesWaiting, "25"),
        (
            change("peer_remove", json!({ "name": "sleeper", "waiting": { "hand_to": "nobody" } })),
            Code::NotFound,
            "nobody",
        ),
        (
            change(
                "peer_remove",
                json!({ "name": "sleeper", "waiting": { "hand_to": "sleeper" } }),
            ),
            Code::BadSetting,
            "sleeper",
        ),
        (
            change("peer_pause", json!({ "name": "sleeper", "if_version": 9 })),
            Code::VersionConflict,
            "9",
        ),
        (json!({ "peer": { "name": "nobody" } }), Code::NotFound, "nobody"),
        (json!({ "peer": { "name": "nobody#3" } }), Code::NotFound, "nobody#3"),
        (json!({ "detach": { "slot": 4 } }), Code::NotFound, "4"),
        (json!({ "unwatch": { "watch": 4 } }), Code::NotFound, "4"),
        (json!({ "log_filter": { "filter": "=!=" } }), Code::BadSetting, ""),
        (json!("flush_everything"), Code::Malformed, "flush_everything"),
    ];
    all_refused(&mut node, &bystanders, cases).await;

    let taken = answer(&node, attach("witness")).await.expect("an answer for each receiver");
    let Reply::Attached(results) = taken else { panic!("{taken:?}") };
    let refusal = results[0].refusal.as_ref().expect("one receiver at a time");
    assert_eq!(refusal.code, Code::AlreadyAttached, "{refusal}");
    bystanders.are_well(&mut node, "attaching as somebody else").await;
    bystanders.got_everything(&node).await;
}
