//! `pub` and `sub` against a real node: what is printed, what is acked, how each ends.

use restante_tests::harness::{Cli, Node, Scene, eventually};
use restante_tests::scene;
use serde_json::json;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// A node on an empty directory, and the command line that talks to it.
async fn fresh(name: &str) -> (Scene, Node, Cli) {
    let scene = scene!(name);
    let node = scene.node().start().await;
    let cli = node.cli();
    (scene, node, cli)
}

/// A node with peers that wait for their receivers.
async fn with_peers(name: &str, peers: &[&str]) -> (Scene, Node, Cli) {
    let (scene, node, cli) = fresh(name).await;
    for peer in peers {
        cli.ok(&["peer", "add", peer, "attach:"]);
    }
    (scene, node, cli)
}

/// What the node says of a peer.
fn status(cli: &Cli, peer: &str) -> serde_json::Value {
    let info = cli.ok(&["peer", "info", peer]);
    serde_json::from_str::<serde_json::Value>(&info).expect("JSON")["status"].take()
}

/// Waits until so many messages are in flight to a peer.
async fn unacked(cli: &Cli, peer: &str, count: u64) {
    let there = async || (status(cli, peer)["unacked"] == count).then_some(());
    eventually("messages in flight", LIMIT, there).await;
}

#[tokio::test]
async fn a_message_reaches_each_of_its_receivers_under_one_id() {
    let (_scene, _node, cli) = with_peers("a_message_reaches_each_o", &["a", "b"]).await;
    let printed = cli.ok(&["pub", "--to", "a,b", "hello"]);
    let id = printed.trim();
    assert_eq!((id.len(), printed.lines().count()), (26, 1), "{printed:?}");
    for name in ["a", "b"] {
        let got = cli.run(&["sub", name, "-C", "1", "--json"]);
        assert_eq!(got.code, 0, "{got:?}");
        let expected = json!({
            "id": id, "receiver": name, "attempt": 1, "redelivered": false, "payload": "hello"
        });
        assert_eq!(got.json(), [expected]);
    }
    // It was acked: nothing is left for another.
    cli.run(&["sub", "a", "-C", "1", "-W", "0.2"]).failed(7, &["0 of 1 messages came"]);
}

#[tokio::test]
async fn lines_are_messages_in_order_and_each_has_an_id() {
    let (_scene, _node, cli) = with_peers("lines_are_messages_in_or", &["a"]).await;
    let lines: String = (0..5_000).map(|n| format!("line {n}\n")).collect();
    let ids = cli.run_with(&["pub", "--to", "a", "-l"], lines.as_bytes()).ok();
    let mut sorted: Vec<&str> = ids.lines().collect();
    assert_eq!(sorted.len(), 5_000);
    assert!(sorted.is_sorted(), "ids ascend with acceptance");
    sorted.dedup();
    assert_eq!(sorted.len(), 5_000, "no id twice");
    assert_eq!(cli.ok(&["sub", "a", "--raw", "-C", "5000"]), lines);
}

#[tokio::test]
async fn a_line_that_is_too_large_is_named_and_ends_the_run() {
    let (_scene, _node, cli) = with_peers("a_line_that_is_too_large", &["a"]).await;
    let lines = format!("1\n2\n{}\n4\n", "x".repeat(1_048_577));
    let cut = cli.run_with(&["pub", "--to", "a", "-l"], lines.as_bytes());
    cut.failed(5, &["line 3: too_large: ", "neither it nor any line after it was published"]);
    assert_eq!(cut.text().lines().count(), 2, "the ids of what was published: {cut:?}");
    assert_eq!(cli.ok(&["sub", "a", "--raw", "-C", "2"]), "1\n2\n");
}

#[tokio::test]
async fn sub_takes_no_more_than_it_was_told() {
    let (_scene, _node, cli) = with_peers("sub_takes_no_more_than_i", &["a"]).await;
    cli.run_with(&["pub", "--to", "a", "-l"], b"1\n2\n3\n4\n5\n").ok();
    for expected in [&["1", "2"][..], &["3", "4"], &["5"]] {
        let count = expected.len().to_string();
        let got = cli.run(&["sub", "a", "--json", "-C", &count]).json();
        let payloads: Vec<_> = got.iter().map(|message| message["payload"].clone()).collect();
        assert_eq!(payloads, expected);
        // What had been in flight to an earlier one beyond what it took would be flagged.
        for message in &got {
            assert_eq!((&message["redelivered"], &message["attempt"]), (&json!(false), &json!(1)));
        }
    }
    assert_eq!(status(&cli, "a")["waiting"], 0);
}

#[tokio::test]
async fn sub_acks_nothing_that_it_has_not_written_out() {
    let (_scene, _node, cli) = with_peers("sub_acks_nothing_that_it", &["a"]).await;
    // Far more than a pipe holds.
    let large = "x".repeat(1_000_000);
    cli.run_with(&["pub", "--to", "a"], large.as_bytes()).ok();
    let mut sub = cli.spawn(&["sub", "a", "--raw"]);
    let unread = sub.child().stdout.take().expect("a pipe");
    unacked(&cli, "a", 1).await;
    let stopped = sub.stop();
    assert!(stopped.code == 0 && stopped.stderr.contains("nobody takes the output"), "{stopped:?}");
    drop(unread);
    let again = cli.run(&["sub", "a", "-C", "1", "--json"]).json();
    assert_eq!(again[0]["redelivered"], true);
    assert_eq!(again[0]["payload"], large);
}

#[tokio::test]
async fn sub_can_be_stopped_while_the_node_is_away() {
    let (_scene, mut node, cli) = with_peers("sub_can_be_stopped_while", &["a"]).await;
    let sub = cli.spawn(&["sub", "a", "--raw", "--timeout", "1h"]);
    cli.ok(&["pub", "--to", "a", "--wait", "x"]);
    node.kill();
    let ended = sub.stop();
    assert!(ended.stderr.contains("may be delivered again"), "{ended:?}");
    assert_eq!(ended.ok(), "x\n");
}

#[tokio::test]
async fn sub_that_is_stopped_before_it_has_what_it_was_to_take_fails() {
    let (_scene, _node, cli) = with_peers("sub_that_is_stopped_befo", &["a"]).await;
    let sub = cli.spawn(&["sub", "a", "--raw", "-C", "2"]);
    cli.ok(&["pub", "--to", "a", "--wait", "x"]);
    let ended = sub.stop();
    ended.failed(1, &["stopped when 1 of 2 messages came"]);
    assert_eq!(ended.text(), "x\n");
    // And what it took is acked.
    cli.run(&["sub", "a", "-C", "1", "-W", "0.2"]).failed(7, &["0 of 1 messages came"]);
}

#[tokio::test]
async fn a_payload_comes_from_an_argument_a_file_or_standard_input() {
    let (scene, _node, cli) = with_peers("a_payload_comes_from_an", &["a"]).await;
    let file = scene.path("payload");
    std::fs::write(&file, b"from a file\n\xff").expect("a file");
    cli.ok(&["pub", "--to", "a", "an argument"]);
    cli.ok(&["pub", "--to", "a", &format!("@{}", file.display())]);
    cli.run_with(&["pub", "--to", "a"], b"standard input").ok();
    cli.run_with(&["pub", "--to", "a", "-"], b"").ok();
    let got = cli.run(&["sub", "a", "--raw", "-C", "4"]);
    assert_eq!(got.stdout, b"an argument\nfrom a file\n\xff\nstandard input\n\n", "{got:?}");
    cli.run(&["pub", "--to", "a", "@/nowhere/at/all"]).failed(1, &["cannot read /nowhere/at/all"]);
}

#[tokio::test]
async fn key_and_headers_travel_with_the_message() {
    let (_scene, _node, cli) = with_peers("key_and_headers_travel_w", &["a"]).await;
    let args = ["pub", "--to", "a", "--key", "k1", "-H", "kind: order", "-H", "x:1:2", "body"];
    cli.ok(&args);
    let got = cli.run(&["sub", "a", "-C", "1", "--json"]).json();
    assert_eq!(got[0]["key"], "k1");
    assert_eq!(got[0]["headers"], json!({ "kind": "order", "x": "1:2" }));
}

#[tokio::test]
async fn a_refused_receiver_is_named_and_the_others_get_the_message() {
    let (_scene, node, cli) = with_peers("a_refused_receiver_is_na", &["a"]).await;
    let partly = cli.run(&["pub", "--to", "a,nobody", "x"]);
    partly.failed(
        5,
        &["nobody: unknown_receiver: no peer has this name; add the peer first: restante peer add"],
    );
    assert_eq!(partly.text().trim().len(), 26, "the id is printed: {partly:?}");
    assert_eq!(cli.ok(&["sub", "a", "--raw", "-C", "1"]), "x\n");

    let wholly = cli.run(&["pub", "--to", "nobody", "x"]);
    wholly.failed(5, &["nobody: unknown_receiver: no peer has this name; "]);
    assert_eq!(wholly.text(), "");

    let logged = eventually("both refusals in the log", LIMIT, async || {
        let events = node.events("publish_refused");
        (events.len() >= 2).then_some(events)
    })
    .await;
    let [partly, wholly] = &*logged else { panic!("two refusals: {logged:?}") };
    for event in [partly, wholly] {
        assert_eq!(
            (&event["peer"], &event["code"]),
            (&json!("nobody"), &json!("unknown_receiver"))
        );
    }

    let neither = cli.run(&["pub", "--to", "a,nobody", "--all-or-nothing", "x"]);
    neither.failed(5, &["nobody"]);
    assert_eq!(neither.text(), "");
    cli.run(&["sub", "a", "-C", "1", "-W", "0.2"]).failed(7, &[]);

    let json = cli.run(&["pub", "--to", "a,nobody", "--json", "x"]);
    json.failed(5, &[]);
    assert_eq!(json.json()[0]["refused"], json!({ "nobody": "unknown_receiver" }));
}

#[tokio::test]
async fn a_quota_names_the_peer_and_its_figures() {
    let (_scene, _node, cli) = with_peers("a_quota_names_the_peer_a", &[]).await;
    cli.ok(&["peer", "add", "small", "attach:", "--quota-messages", "1"]);
    cli.ok(&["pub", "--to", "small", "x"]);
    cli.run(&["pub", "--to", "small", "y"])
        .failed(5, &["small: peer_quota: small: 1 messages wait for it, its quota is 1;"]);
}

#[tokio::test]
async fn a_receiver_that_saw_the_node_restart_ends_well() {
    let (_scene, mut node, cli) = with_peers("a_receiver_that_saw_the", &["a"]).await;
    let sub = cli.spawn(&["sub", "a", "--raw"]);
    cli.ok(&["pub", "--to", "a", "--wait", "before"]);
    node.kill();
    node.restart().await;
    cli.ok(&["pub", "--to", "a", "--wait", "after"]);
    let ended = sub.stop();
    assert!(ended.stderr.contains("may be delivered again"), "{ended:?}");
    let got = ended.ok();
    assert!(got.starts_with("before\n") && got.ends_with("after\n"), "{got:?}");
}

#[tokio::test]
async fn wait_ends_when_every_receiver_has_acked() {
    let (_scene, _node, cli) = with_peers("wait_ends_when_every_rec", &["a", "b"]).await;
    cli.run(&["pub", "--to", "a,b", "--wait", "--timeout", "300ms", "x"])
        .failed(7, &["is not acked yet by a, b"]);
    let a = cli.spawn(&["sub", "a", "--raw"]);
    let b = cli.spawn(&["sub", "b", "--raw"]);
    cli.ok(&["pub", "--to", "a,b", "--wait", "y"]);
    for sub in [a, b] {
        assert_eq!(sub.stop().ok(), "x\ny\n");
    }
}

#[tokio::test]
async fn a_command_acks_by_its_status() {
    let (scene, _node, cli) = with_peers("a_command_acks_by_its_st", &[]).await;
    cli.ok(&["peer", "add", "a", "attach:", "--retry-schedule", "10ms,10ms"]);
    cli.run_with(&["pub", "--to", "a", "-l"], b"good\nbad\n").ok();
    let out = scene.path("handled");
    // Refuses the second message twice, then parks it on the third refusal.
    let script = format!(
        "payload=$(cat); echo \"$payload $RESTANTE_ATTEMPT\" >>{}; \
         [ \"$payload\" = good ] || {{ echo 'no good' >&2; exit 3; }}",
        out.display()
    );
    cli.ok(&["sub", "a", "-C", "4", "--exec", &script]);
    let handled = std::fs::read_to_string(&out).expect("the command ran");
    assert_eq!(handled, "good 1\nbad 1\nbad 2\nbad 3\n");
    let peer = status(&cli, "a");
    assert_eq!((&peer["waiting"], &peer["parked"]), (&json!(0), &json!(1)));
}

/// None is late because it waits for a slow command, comes again and is run again.
#[tokio::test]
async fn a_slow_command_runs_once_for_each_message() {
    let (scene, _node, cli) = with_peers("a_slow_command_runs_once", &[]).await;
    cli.ok(&["peer", "add", "a", "attach:", "--ack-timeout", "200ms"]);
    cli.run_with(&["pub", "--to", "a", "-l"], b"1\n2\n3\n").ok();
    let out = scene.path("handled");
    let script = format!("sleep 0.3; echo \"$(cat) $RESTANTE_ATTEMPT\" >>{}", out.display());
    let sub = cli.spawn(&["sub", "a", "--exec", &script]);
    // Behind whatever has come again by then.
    eventually("all to be acked", LIMIT, async || {
        (status(&cli, "a")["waiting"] == 0).then_some(())
    })
    .await;
    cli.ok(&["pub", "--to", "a", "--wait", "last"]);
    assert_eq!(sub.stop().code, 0);
    let handled = std::fs::read_to_string(&out).expect("the command ran");
    assert_eq!(handled, "1 1\n2 1\n3 1\nlast 1\n");
}

#[tokio::test]
async fn a_command_that_outlives_its_connection_is_not_run_again() {
    let (scene, mut node, cli) = with_peers("a_command_that_outlives", &["a"]).await;
    let (out, hold) = (scene.path("handled"), scene.path("hold"));
    std::fs::write(&hold, b"").expect("a file");
    let (out_path, hold_path) = (out.display(), hold.display());
    let script =
        format!("echo run >>{out_path}; while [ -e {hold_path} ]; do sleep 0.02; done; echo done");
    let calling = cli.spawn(&["call", "a", "x"]);
    let sub = cli.spawn(&["sub", "a", "-C", "1", "--exec", &script]);
    eventually("the command to run", LIMIT, async || out.exists().then_some(())).await;
    node.kill();
    node.restart().await;
    // The connection that it came by is known to be gone once the node has it back.
    eventually("the receiver to be back", LIMIT, async || {
        (status(&cli, "a")["health"] != "unreachable").then_some(())
    })
    .await;
    std::fs::remove_file(&hold).expect("a file");
    assert_eq!(sub.finish().code, 0);
    assert_eq!(std::fs::read_to_string(&out).expect("the command ran"), "run\n");
    assert_eq!(status(&cli, "a")["waiting"], 0, "it came again and was acked");
    // The answer was kept with it.
    assert_eq!(calling.finish().ok(), "done\n");
}

#[tokio::test]
async fn a_command_ends_with_the_time_or_the_run_and_its_message_stays() {
    let (_scene, _node, cli) = with_peers("a_command_ends_with_the_t", &["a"]).await;
    cli.ok(&["pub", "--to", "a", "x"]);
    let endless = "exec sleep 60";
    cli.run(&["sub", "a", "-C", "1", "-W", "0.3", "--exec", endless])
        .failed(7, &["0 of 1 messages came"]);
    let sub = cli.spawn(&["sub", "a", "--exec", endless]);
    unacked(&cli, "a", 1).await;
    assert_eq!(sub.stop().code, 0);
    let again = cli.run(&["sub", "a", "-C", "1", "--json"]).json();
    assert_eq!((&again[0]["payload"], &again[0]["redelivered"]), (&json!("x"), &json!(true)));
}

#[tokio::test]
async fn an_answer_that_is_too_large_refuses_the_call() {
    let (_scene, _node, cli) = with_peers("an_answer_that_is_too_lar", &["a"]).await;
    let sub = cli.spawn(&["sub", "a", "-C", "2", "--exec", "cat"]);
    let exactly = "x".repeat(65_536);
    assert_eq!(cli.run_with(&["call", "a"], exactly.as_bytes()).ok(), exactly);
    cli.run_with(&["call", "a"], format!("{exactly}x").as_bytes())
        .failed(5, &["the return value has 65537 bytes, at most 65536 are allowed"]);
    assert_eq!(sub.finish().code, 0);
    assert_eq!(status(&cli, "a")["parked"], 1);
}

#[tokio::test]
async fn whoever_reads_the_output_may_leave_without_a_word() {
    use std::io::Read;
    let (_scene, _node, cli) = with_peers("whoever_reads_the_output", &["a"]).await;
    let lines: String = (0..20_000).map(|n| format!("{n}\n")).collect();
    cli.run_with(&["pub", "--to", "a", "-l"], lines.as_bytes()).ok();
    let mut sub = cli.spawn(&["sub", "a", "--raw"]);
    let mut out = sub.child().stdout.take().expect("a pipe");
    let mut first = [0; 2];
    out.read_exact(&mut first).expect("the first line");
    drop(out);
    let ended = sub.finish();
    assert_eq!((ended.code, ended.stderr.as_str(), &first), (141, "", b"0\n"));
}

#[tokio::test]
async fn attaching_as_nobody_creates_the_peer_on_a_loopback_node_and_says_so() {
    let (_scene, _node, cli) = fresh("attaching_as_nobody_crea").await;
    let sub = cli.run(&["sub", "new", "-C", "1", "-W", "0.2"]);
    sub.failed(7, &["new did not exist", "0 of 1"]);
    cli.ok(&["pub", "--to", "new", "x"]);
    assert_eq!(cli.ok(&["sub", "new", "--raw", "-C", "1"]), "x\n");
}

#[tokio::test]
async fn a_receiver_can_listen_and_be_dialled() {
    let (_scene, _node, cli) = fresh("a_receiver_can_listen_an").await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let addr = port.expect("a free port").to_string();
    cli.ok(&[
        "peer",
        "add",
        "dialled",
        &format!("tcp://{addr}"),
        "--backoff-min",
        "10ms",
        "--backoff-max",
        "200ms",
    ]);
    cli.ok(&["pub", "--to", "dialled", "x"]);
    let got = cli.run(&["sub", "dialled", "--listen", &addr, "--raw", "-C", "1"]);
    assert_eq!(got.ok(), "x\n");
    // What it acked is recorded: it is not there for the next.
    cli.run(&["sub", "dialled", "--listen", &addr, "-C", "1", "-W", "1"]).failed(7, &["0 of 1"]);
    cli.run(&["sub", "dialled", "--listen", "nowhere"]).failed(2, &["usage: ", "HOST:PORT"]);
}

#[tokio::test]
async fn what_was_exported_is_imported_whole_and_in_its_order() {
    let scene = scene!("import");
    let node = scene.node().start().await;
    let cli = node.cli();
    for peer in ["from", "to"] {
        cli.ok(&["peer", "add", peer, "attach:"]);
    }
    let binary = [0, 159, 146, 150, b'\n'];
    cli.run_with(
        &["pub", "--to", "from", "--key", "k", "-H", "b:1", "-H", "a:2", "-H", "b:3"],
        &binary,
    )
    .ok();
    cli.run_with(&["pub", "--to", "from", "-l"], b"one\n\ntwo\n").ok();
    let exported = cli.ok(&["peer", "export", "from"]);

    let imported = cli.run_with(&["peer", "import", "to"], exported.as_bytes()).ok();
    assert_eq!(imported.lines().count(), 4, "an id for each: {imported}");
    // Ids and times are the new ones; everything else is as it was.
    let said = |peer: &str| -> Vec<serde_json::Value> {
        let mut lines = cli.run(&["peer", "export", peer]).json();
        for line in &mut lines {
            for changed in ["id", "accepted"] {
                assert!(line.as_object_mut().expect("an object").remove(changed).is_some());
            }
        }
        lines
    };
    let there = said("to");
    assert_eq!(there, said("from"));
    let payloads: Vec<_> = there[1..].iter().map(|line| line["payload"].clone()).collect();
    assert_eq!(payloads, ["one", "", "two"]);

    // What is no message ends it, and what came before is there.
    let first = exported.lines().next().expect("a line");
    let bad = format!("{first}\n{{\"key\":\"k\"}}\n{first}\n");
    cli.run_with(&["peer", "import", "to"], bad.as_bytes())
        .failed(1, &["line 2", "peer export", "payload", "nor any line after it"]);
    assert_eq!(said("to").len(), 5);
    cli.run_with(&["peer", "import", "nobody"], exported.as_bytes())
        .failed(5, &["unknown_receiver"]);
}
