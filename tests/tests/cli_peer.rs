//! `peer` against a real node: every verb, every refusal, and that a crash changes nothing.

use restante_tests::harness::{Cli, Inbox, Node, Scene, eventually};
use restante_tests::scene;
use serde_json::{Value, json};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A node on an empty directory, and the command line that talks to it.
async fn fresh(name: &str) -> (Scene, Node, Cli) {
    let scene = scene!(name);
    let node = scene.node().start().await;
    let cli = node.cli();
    (scene, node, cli)
}

fn info(cli: &Cli, name: &str) -> Value {
    serde_json::from_str(&cli.ok(&["peer", "info", name])).expect("JSON")
}

fn names(cli: &Cli) -> Vec<String> {
    let list = cli.run(&["peer", "ls"]).json();
    list.iter().map(|peer| peer["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test]
async fn peers_are_added_changed_paused_resumed_removed_and_outlive_a_crash() {
    let (_scene, mut node, cli) = fresh("peers_are_added_changed").await;
    let said = cli.run(&["peer", "add", "a", "tcp://127.0.0.1:9", "--window", "7"]);
    assert!(said.stderr.contains("a added (peer 1, version 1)"), "{said:?}");
    cli.ok(&["peer", "add", "b", "attach:", "--ack-timeout", "5s", "--order", "strict"]);
    cli.ok(&["peer", "set", "a", "--retry-schedule", "1s,2s", "--if-version", "1"]);
    cli.ok(&["peer", "pause", "b"]);

    node.kill();
    node.restart().await;
    assert_eq!(names(&cli), ["a", "b"]);
    let (a, b) = (info(&cli, "a"), info(&cli, "b"));
    assert_eq!(a["settings"]["window_messages"], 7);
    assert_eq!(a["settings"]["retry_schedule_ms"], json!([1_000, 2_000]));
    assert_eq!((&a["status"]["version"], &a["status"]["id"]), (&json!(2), &json!(1)));
    assert_eq!(
        (&b["settings"]["ack_timeout_ms"], &b["settings"]["order"]),
        (&json!(5_000), &json!("strict"))
    );
    assert_eq!(b["status"]["health"], "paused");

    cli.ok(&["peer", "resume", "b"]);
    assert_ne!(info(&cli, "b")["status"]["health"], "paused");
    cli.ok(&["peer", "rm", "a"]);
    cli.ok(&["peer", "add", "a", "attach:"]);
    let again = info(&cli, "a");
    assert_eq!(again["status"]["id"], 3, "a peer added again is a new peer: {again}");
    assert_eq!(again["settings"]["window_messages"], 2_048);
}

#[tokio::test]
async fn what_is_so_already_is_no_change() {
    let (_scene, node, cli) = fresh("what_is_so_already_is_no").await;
    cli.ok(&["peer", "add", "a", "attach:"]);
    for _ in 0..2 {
        let said = cli.run(&["peer", "pause", "a"]);
        assert!(said.stderr.contains("a paused (peer 1, version 2)"), "{said:?}");
    }
    cli.ok(&["peer", "set", "a", "--window", "7"]);
    cli.ok(&["peer", "set", "a", "--window", "7", "--if-version", "3"]);
    assert_eq!(info(&cli, "a")["status"]["version"], 3);
    assert_eq!(node.events("peer_changed").len(), 1);
    assert_eq!(node.events("peer_paused").len(), 1);
    cli.run(&["peer", "set", "a"]).failed(2, &["expected something to change"]);
}

#[tokio::test]
async fn a_paused_peer_gets_nothing_until_it_is_resumed() {
    let (_scene, node, cli) = fresh("pause").await;
    cli.ok(&["peer", "add", "a", "attach:"]);
    let sub = cli.spawn(&["sub", "a", "--raw", "-C", "2"]);
    cli.ok(&["pub", "--to", "a", "--wait", "before"]);
    cli.ok(&["peer", "pause", "a"]);
    cli.run(&["sub", "a"]).failed(5, &["paused", "restante peer resume"]);
    cli.run(&["pub", "--to", "a", "--wait", "--timeout", "300ms", "after"]).failed(7, &[]);
    assert_eq!(node.events("peer_paused").len(), 1);
    cli.ok(&["peer", "resume", "a"]);
    // The receiver that was attached comes back by itself.
    assert_eq!(sub.finish().ok(), "before\nafter\n");
}

#[tokio::test]
async fn a_draining_peer_takes_nothing_new_and_it_is_told_when_nothing_waits() {
    let (_scene, mut node, cli) = fresh("drain").await;
    cli.ok(&["peer", "add", "a", "attach:"]);
    cli.ok(&["peer", "add", "b", "attach:"]);
    cli.ok(&["pub", "--to", "a", "before"]);
    cli.ok(&["peer", "drain", "a"]);
    cli.run(&["pub", "--to", "a", "after"]).failed(5, &["a: draining", "restante peer resume"]);

    node.kill();
    node.restart().await;
    cli.run(&["pub", "--to", "a,b", "after"]).failed(5, &["for a: draining"]);
    cli.run(&["peer", "rm", "b", "--hand-to", "a"]).failed(5, &["draining"]);
    assert_eq!(info(&cli, "a")["status"]["taking"], "draining");
    assert_eq!(node.events("peer_drained").len(), 0, "one waits");

    let waits = cli.spawn(&["peer", "drain", "a", "--wait"]);
    assert_eq!(cli.ok(&["sub", "a", "--raw", "-C", "1"]), "before\n");
    let drained = waits.finish();
    drained.ok();
    assert!(drained.stderr.contains("a is drained, 0 messages are parked"), "{drained:?}");
    assert_eq!(info(&cli, "a")["status"]["taking"], "drained");
    let told = async || (!node.events("peer_drained").is_empty()).then_some(());
    eventually("the log to say so", Duration::from_secs(20), told).await;
    assert_eq!(node.events("peer_draining").len(), 1, "the second time it was so already");

    cli.ok(&["peer", "resume", "a"]);
    assert!(info(&cli, "a")["status"].get("taking").is_none());
    cli.ok(&["pub", "--to", "a", "again"]);
    assert_eq!(cli.ok(&["sub", "a", "--raw", "-C", "1"]), "again\n");
    assert_eq!(cli.ok(&["sub", "b", "--raw", "-C", "1"]), "after\n");
    assert_eq!(node.events("peer_drained").len(), 1);
}

#[tokio::test]
async fn removing_a_peer_with_messages_needs_a_word_about_them() {
    let (_scene, _node, cli) = fresh("removing_a_peer_with_mes").await;
    for name in ["parked", "purged", "handed", "heir"] {
        cli.ok(&["peer", "add", name, "attach:"]);
    }
    let ids = cli.run_with(&["pub", "--to", "parked,purged,handed", "-l"], b"1\n2\n").ok();
    let id = ids.lines().next().expect("an id");
    cli.run(&["peer", "rm", "parked"])
        .failed(5, &["messages_waiting", "--park, --purge or --hand-to"]);
    cli.ok(&["peer", "rm", "parked", "--park"]);
    cli.ok(&["peer", "rm", "purged", "--purge"]);
    cli.ok(&["peer", "rm", "handed", "--hand-to", "heir"]);
    assert_eq!(names(&cli), ["heir"]);
    assert_eq!(cli.ok(&["sub", "heir", "--raw", "-C", "2"]), "1\n2\n");
    let trace = cli.run(&["message", "trace", id]).json();
    let states: Vec<(&Value, &Value)> =
        trace.iter().map(|line| (&line["receiver"], &line["state"])).collect();
    assert_eq!(states.len(), 4, "the heir is a receiver too: {trace:?}");
    assert_eq!(states[0], (&json!("parked#1"), &json!("parked")));
    assert_eq!(states[1], (&json!("purged#2"), &json!("purged")));
    assert_eq!(states[2], (&json!("handed#3"), &json!("moved")));
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_reason_and_changes_nothing() {
    let (_scene, _node, cli) = fresh("what_cannot_be_is_refuse").await;
    cli.ok(&["peer", "add", "a", "attach:"]);
    cli.run(&["peer", "add", "a", "attach:"]).failed(5, &["name_taken"]);
    cli.run(&["peer", "set", "a", "--window", "9", "--if-version", "7"])
        .failed(5, &["version_conflict"]);
    cli.run(&["peer", "set", "a", "--window", "0"]).failed(5, &["bad_setting"]);
    cli.run(&["peer", "set", "a", "--ack-timeout", "1ms"]).failed(5, &["bad_setting"]);
    cli.run(&["peer", "set", "a", "--backoff-min", "2m"]).failed(5, &["bad_setting"]);
    for verb in ["info", "pause", "resume", "rm"] {
        cli.run(&["peer", verb, "nobody"]).failed(6, &["not_found"]);
    }
    cli.run(&["peer", "info", "a#99"]).failed(6, &["not_found"]);
    let long = "n".repeat(300);
    for name in ["", "a/b", "new\nline", ".dot", "a,b", "ü", long.as_str()] {
        cli.run(&["peer", "add", name, "attach:"]).failed(2, &["name"]);
    }
    for url in
        ["", "udp://h:1", "tcp://h", "tcp://h:0", "tcp://h:70000", "tcp://u@h:1", "http://h:1"]
    {
        cli.run(&["peer", "add", "x", url]).failed(2, &["tcp://HOST:PORT"]);
    }
    let apart = cli.run(&["peer", "add", "x", "attach:", "--window", "-1"]);
    apart.failed(2, &["'-1' for '--window <N>'"]);
    for setting in ["--window=-1", "--window=x", "--ack-timeout=1y", "--order=odd"] {
        let name = setting.split('=').next().expect("a name");
        cli.run(&["peer", "add", "x", "attach:", setting]).failed(2, &[name]);
    }
    assert_eq!(names(&cli), ["a"]);
    let a = info(&cli, "a");
    assert_eq!(
        (&a["status"]["version"], &a["settings"]["window_messages"]),
        (&json!(1), &json!(2_048))
    );
}

#[tokio::test]
async fn a_peer_that_is_away_says_since_when_and_when_it_is_tried_again() {
    let (_scene, node, cli) = fresh("a_peer_that_is_away_says").await;
    cli.ok(&["peer", "add", "away", "tcp://127.0.0.1:9"]);
    let down = eventually("peer_down", Duration::from_secs(20), async || {
        node.events("peer_down").into_iter().next()
    })
    .await;
    assert_eq!(down["peer"], "away");
    assert!(down["next_attempt"].is_string() && down["reason"].is_string(), "{down}");
    let status = info(&cli, "away")["status"].clone();
    assert_eq!(status["health"], "unreachable");
    assert!(status["since"].as_u64() > Some(0) && status["why"].as_str() != Some(""), "{status}");
}

/// When the oldest message of a peer was accepted, as soon as there is one.
async fn oldest(cli: &Cli, name: &str) -> u64 {
    eventually("oldest", Duration::from_secs(20), async || {
        info(cli, name)["status"]["oldest"].as_u64()
    })
    .await
}

/// When a message was accepted, by its id.
fn accepted(cli: &Cli, id: &str) -> u64 {
    let life = cli.run(&["message", "trace", "--json", id.trim()]).json();
    life[0]["accepted"].as_u64().unwrap_or_else(|| panic!("{life:?}"))
}

#[tokio::test]
async fn a_peer_without_a_link_says_since_when_its_oldest_message_waits() {
    let (_scene, mut node, cli) = fresh("a_peer_without_a_link_says").await;
    cli.ok(&["peer", "add", "away", "attach:"]);
    assert_eq!(info(&cli, "away")["status"]["oldest"], Value::Null, "nothing waits");
    let first = accepted(&cli, &cli.ok(&["pub", "--to", "away", "first"]));
    assert_eq!(oldest(&cli, "away").await, first);
    let second = accepted(&cli, &cli.ok(&["pub", "--to", "away", "second"]));
    assert!(second > first, "two processes in one millisecond");
    assert_eq!(oldest(&cli, "away").await, first);
    let listed = cli.run(&["peer", "ls"]).json();
    assert_eq!(listed[0]["oldest"], first, "{listed:?}");

    node.kill();
    node.restart().await;
    assert_eq!(oldest(&cli, "away").await, first);

    assert_eq!(cli.ok(&["sub", "away", "--raw", "-C", "1"]), "first\n");
    eventually("the second is the oldest", Duration::from_secs(20), async || {
        (oldest(&cli, "away").await == second).then_some(())
    })
    .await;
    assert_eq!(cli.ok(&["sub", "away", "--raw", "-C", "1"]), "second\n");
    eventually("nothing waits", Duration::from_secs(20), async || {
        info(&cli, "away")["status"]["oldest"].is_null().then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_was_parked_with_its_peer_does_not_wait() {
    let (_scene, _node, cli) = fresh("what_was_parked_with_its").await;
    cli.ok(&["peer", "add", "gone", "attach:"]);
    cli.ok(&["pub", "--to", "gone", "sixteen"]);
    cli.ok(&["peer", "rm", "gone", "--park"]);
    let status = &info(&cli, "gone#1")["status"];
    assert_eq!((&status["waiting"], &status["parked"]), (&json!(0), &json!(1)), "{status}");
    assert_eq!(status["waiting_bytes"], 0, "{status}");
}

#[tokio::test]
async fn a_peer_says_what_it_knows_since_the_node_started() {
    let (_scene, mut node, cli) = fresh("a_peer_says_what_it_knows").await;
    cli.ok(&["peer", "add", "away", "attach:"]);
    assert_eq!(info(&cli, "away")["status"]["why"], "not connected yet");
    node.kill();
    node.restart().await;
    assert_eq!(info(&cli, "away")["status"]["why"], "not connected since the node started");
}

#[tokio::test]
async fn refusals_in_a_row_do_not_fill_the_log() {
    let (_scene, mut node, cli) = fresh("refusals_in_a_row").await;
    for _ in 0..8 {
        cli.run(&["peer", "rm", "nobody"]).failed(6, &["not_found"]);
    }
    assert_eq!(node.stop().await, Some(0));
    let told = node.events("admin_refused").len();
    assert!((5..8).contains(&told), "{told} of 8");
}

#[tokio::test]
async fn where_a_queue_is_going_is_said_while_something_is_in_it() {
    let (_scene, node, cli) = fresh("outlook").await;
    cli.ok(&["peer", "add", "a", "attach:", "--quota-messages", "100000"]);
    assert!(info(&cli, "a").get("outlook").is_none());
    // It is looked at every so often; a message in between each time makes it grow.
    let outlook = eventually("when its quota is used up", LIMIT, async || {
        cli.ok(&["pub", "--to", "a", "x"]);
        info(&cli, "a").get("outlook").filter(|outlook| outlook.get("full").is_some()).cloned()
    })
    .await;
    assert!(outlook["came_per_minute"].as_u64() > Some(0), "{outlook}");
    assert!(outlook["went_per_minute"] == 0 && outlook.get("drained").is_none(), "{outlook}");
    let inbox = Inbox::attach(node.addr(), "a").await;
    eventually("nothing in it", LIMIT, async || {
        info(&cli, "a").get("outlook").is_none().then_some(())
    })
    .await;
    inbox.close().await;
}
