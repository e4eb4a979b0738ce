//! `message`, `call` and `watch` against a real node.

use restante_tests::harness::{Cli, Node, Scene, eventually};
use restante_tests::scene;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::time::Duration;

/// A node on an empty directory, and the command line that talks to it.
async fn fresh(name: &str) -> (Scene, Node, Cli) {
    let scene = scene!(name);
    let node = scene.node().start().await;
    let cli = node.cli();
    (scene, node, cli)
}

#[tokio::test]
async fn a_message_is_looked_up_with_its_state_also_after_a_crash() {
    let (_scene, mut node, cli) = fresh("a_message_is_looked_up_w").await;
    for name in ["a", "b"] {
        cli.ok(&["peer", "add", name, "attach:"]);
    }
    let id = cli.ok(&["pub", "--to", "a,b", "--key", "k", "-H", "n:v", "text"]);
    let id = id.trim();
    cli.ok(&["sub", "a", "--raw", "-C", "1"]);
    let before = cli.run(&["message", "trace", id]).json();
    node.kill();
    node.restart().await;
    let after = cli.run(&["message", "trace", id]).json();
    for trace in [&before, &after] {
        assert_eq!(trace.len(), 2, "{trace:?}");
        assert_eq!((&trace[0]["receiver"], &trace[0]["state"]), (&json!("a"), &json!("acked")));
        assert_eq!((&trace[1]["receiver"], &trace[1]["state"]), (&json!("b"), &json!("queued")));
        assert_eq!(trace[0]["id"], id);
    }
    assert_eq!(before[0]["at"], after[0]["at"], "when it was acked is kept");
    let got = cli.run(&["message", "get", id]).json();
    assert_eq!(got[0]["message"]["payload"], "text");
    assert_eq!(
        (&got[0]["message"]["key"], &got[0]["message"]["headers"]),
        (&json!("k"), &json!({"n": "v"}))
    );
    assert_eq!(cli.ok(&["message", "get", "--raw", id]), "text");
}

#[tokio::test]
async fn an_id_that_is_none_or_unknown_is_told_apart() {
    let (_scene, _node, cli) = fresh("an_id_that_is_none_or_un").await;
    cli.run(&["message", "get", "nonsense"]).failed(2, &["not a message id"]);
    cli.run(&["message", "trace", &"0".repeat(26)]).failed(6, &["not_found"]);
}

#[tokio::test]
async fn a_call_returns_what_the_receiver_answers() {
    let (_scene, _node, cli) = fresh("a_call_returns_what_the").await;
    cli.ok(&["peer", "add", "upper", "attach:"]);
    cli.run(&["call", "upper", "hello", "--timeout", "300ms"]).failed(7, &["no answer within"]);
    let sub = cli.spawn(&["sub", "upper", "--exec", "tr a-z A-Z"]);
    assert_eq!(cli.ok(&["call", "upper", "hello"]), "HELLO");
    assert_eq!(cli.run(&["call", "upper", "--json", "x"]).json(), [json!({ "answer": "X" })]);
    cli.run(&["call", "nobody", "x"]).failed(5, &["unknown_receiver"]);
    assert_eq!(sub.stop().code, 0);
}

#[tokio::test]
async fn a_watch_shows_all_peers_and_then_each_change() {
    let (_scene, _node, cli) = fresh("a_watch_shows_all_peers").await;
    cli.ok(&["peer", "add", "a", "attach:"]);
    let mut watch = cli.spawn(&["watch"]);
    let out = BufReader::new(watch.child().stdout.take().expect("a pipe"));
    let mut events = out
        .lines()
        .map(|line| serde_json::from_str::<Value>(&line.expect("a line")).expect("JSON"));
    let first = events.next().expect("a snapshot");
    assert_eq!(first["snapshot"]["peers"][0]["name"], "a", "{first}");
    cli.ok(&["peer", "add", "b", "attach:"]);
    let added = events.find(|event| event["changed"]["peer"]["name"] == "b").expect("the change");
    assert!(added["changed"]["version"].as_u64() > first["snapshot"]["version"].as_u64());
    cli.ok(&["peer", "rm", "b"]);
    let removed = events.find(|event| event.get("removed").is_some()).expect("the removal");
    assert_eq!(removed["removed"]["name"], "b");
    assert_eq!(watch.stop().code, 0);
}

#[tokio::test]
async fn what_was_purged_unsent_was_never_attempted() {
    let (_scene, _node, cli) = fresh("what_was_purged_unsent").await;
    cli.ok(&["peer", "add", "a", "attach:"]);
    let id = cli.ok(&["pub", "--to", "a", "never sent"]);
    cli.ok(&["peer", "rm", "a", "--purge"]);
    let life = eventually("purged", Duration::from_secs(20), async || {
        let life = cli.run(&["message", "trace", id.trim()]).json();
        (life[0]["state"] == "purged").then(|| life[0].clone())
    })
    .await;
    assert_eq!(life["attempts"], 0, "{life}");
    let by = life["by"].as_str().expect("who did it");
    assert!(by.starts_with("restante-cli/") && by.contains("127.0.0.1:"), "{life}");
}

/// What `explain` says of a message's only receiver, once it says what is expected.
async fn explained(cli: &Cli, id: &str, by: &str) -> Value {
    eventually(by, Duration::from_secs(20), async || {
        let told = cli.run(&["message", "explain", id.trim()]).json();
        (told.len() == 1 && told[0]["blocked"]["by"] == by).then(|| told[0].clone())
    })
    .await
}

#[tokio::test]
async fn whatever_a_message_waits_for_explain_names_it() {
    let (_scene, _node, cli) = fresh("whatever_a_message_waits").await;
    let publish = |to: &str| cli.ok(&["pub", "--to", to, "--key", "k", "text"]);

    // Nobody has attached yet; then an operator holds the peer as well.
    cli.ok(&["peer", "add", "absent", "attach:"]);
    let id = publish("absent");
    let told = explained(&cli, &id, "link").await;
    assert_eq!(told["blocked"], json!({ "by": "link", "why": "not connected yet" }));
    cli.ok(&["peer", "pause", "absent"]);
    explained(&cli, &id, "paused").await;

    // Nobody listens, and the next attempt is known.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let url = format!("tcp://{}", port.expect("a free port"));
    cli.ok(&["peer", "add", "away", &url, "--backoff-min", "1h", "--backoff-max", "1h"]);
    let id = publish("away");
    let told = eventually("a failed attempt", Duration::from_secs(20), async || {
        let told = explained(&cli, &id, "link").await;
        told["blocked"]["until"].is_u64().then_some(told)
    })
    .await;
    let why = told["blocked"]["why"].as_str().unwrap_or_default();
    assert!(why.contains("refused"), "{told}");
    assert!(told["blocked"]["until"].as_u64() > told["accepted"].as_u64(), "{told}");

    // It is refused; another of its key goes after it.
    cli.ok(&["peer", "add", "picky", "attach:", "--retry-schedule", "1h"]);
    let refusing = cli.spawn(&["sub", "picky", "--exec", "echo busy >&2; exit 1"]);
    let first = publish("picky");
    let told = explained(&cli, &first, "refusals").await;
    assert_eq!((&told["state"], &told["attempts"]), (&json!("retrying"), &json!(1)));
    assert_eq!(told["blocked"]["until"], told["next_attempt"]);
    let told = explained(&cli, &publish("picky"), "keys").await;
    assert_eq!(told["blocked"]["behind"], first.trim());
    refusing.stop();

    // It is being worked on, by a receiver that asks for one at a time.
    cli.ok(&["peer", "add", "busy", "attach:"]);
    let working = cli.spawn(&["sub", "busy", "--exec", "exec sleep 600"]);
    let told = explained(&cli, &publish("busy"), "ack").await;
    assert_eq!(told["state"], "in_flight");
    let last = publish("busy");
    explained(&cli, &last, "grant").await;
    let info = cli.run(&["peer", "info", "busy"]).json();
    assert_eq!(info[0]["status"]["stall"], "grant");
    working.stop();

    // What is done waits for nothing.
    cli.ok(&["peer", "resume", "absent"]);
    let id = publish("absent");
    cli.ok(&["sub", "absent", "-C", "2"]);
    assert!(cli.run(&["message", "explain", id.trim()]).json().is_empty());
}
