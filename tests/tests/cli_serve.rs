//! `serve`: how a node starts, refuses to start, and stops.

use restante_tests::harness::{Answer, Cli, Inbox, eventually};
use restante_tests::scene;
use serde_json::Value;
use std::fs;
use std::time::Duration;

#[tokio::test]
async fn the_address_file_is_whole_as_soon_as_it_is_there() {
    let scene = scene!("addr-file");
    // The harness waits for the file; here it is looked at.
    let node = scene.node().start().await;
    let text = fs::read_to_string(scene.path("addr.json")).expect("the file");
    let written: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(written["tcp"], node.addr().to_string());
    assert_eq!(written["pid"], node.pid());
}

#[tokio::test]
async fn a_node_told_to_stop_stops_in_order_and_starts_clean() {
    let scene = scene!("stop");
    let mut node = scene.node().start().await;
    let cli = node.cli();
    cli.ok(&["peer", "add", "a", "attach:"]);
    cli.ok(&["pub", "--to", "a", "kept"]);
    assert_eq!(node.stop().await, Some(0));
    node.restart().await;
    // What a node has logged is read beside it, and may come a moment later.
    let opened: Vec<Value> =
        eventually("both openings in the log", Duration::from_secs(20), async || {
            Some(node.events("journal_opened")).filter(|opened| opened.len() == 2)
        })
        .await;
    assert_eq!(opened[1]["clean"], true, "{opened:?}");
    assert_eq!(cli.ok(&["sub", "a", "--raw", "-C", "1"]), "kept\n");
}

/// The second time it is told, a node that waits for its receivers ends where it stands; nothing that it
/// has confirmed goes with it.
#[tokio::test]
async fn a_node_told_twice_to_stop_ends_at_once_and_loses_nothing() {
    const LIMIT: Duration = Duration::from_secs(20);
    let scene = scene!("stop-twice");
    // Longer than the test waits for the end.
    let mut node = scene.node().set("shutdown_ms_max", 600_000).start().await;
    let slow = Inbox::attach_with(node.addr(), "slow", |_| Answer::Hold).await;
    node.cli().ok(&["pub", "--to", "slow", "kept"]);
    slow.has(1, LIMIT).await;
    node.ask_to_stop();
    eventually("the node to stop", LIMIT, async || node.events("node_stopping").pop()).await;
    assert!(node.runs(), "it waits for its receiver");
    assert_eq!(node.stop().await, Some(1));
    assert_eq!(node.events("node_stopped").len(), 0);
    drop(slow);
    node.restart().await;
    assert_eq!(node.cli().ok(&["sub", "slow", "--raw", "-C", "1"]), "kept\n");
}

#[tokio::test]
async fn a_directory_in_use_is_refused_and_the_owner_is_untouched() {
    let scene = scene!("locked");
    let node = scene.node().start().await;
    let refusal = scene.node().refused().await;
    assert_eq!(refusal.code, Some(8), "{refusal:?}");
    assert!(refusal.stderr.contains(&scene.path("data").display().to_string()), "{refusal:?}");
    node.cli().ok(&["peer", "add", "a", "attach:"]);
}

#[tokio::test]
async fn a_directory_that_is_none_is_refused() {
    let scene = scene!("no-directory");
    fs::write(scene.path("file"), b"x").expect("a file");
    let refusal = scene.node().data_dir(scene.path("file")).refused().await;
    assert_eq!(refusal.code, Some(8), "{refusal:?}");
    let said = refusal.stderr.lines().last().unwrap_or_default();
    assert!(said.contains("foreign: ") && said.contains("expected an empty directory"), "{said}");
}

#[tokio::test]
async fn an_address_file_that_cannot_be_written_is_found_before_anything_is_begun() {
    let scene = scene!("addr-file-nowhere");
    let cli = Cli::of(env!("CARGO_BIN_EXE_restante-faulty"));
    let (data, nowhere) = (scene.path("data"), scene.path("nowhere").join("addr"));
    let [data_dir, file] = [&data, &nowhere].map(|path| path.to_str().expect("UTF-8"));
    let all = ["serve", "--data-dir", data_dir, "--tcp", "127.0.0.1:0", "--addr-file", file];
    let failed = cli.run(&all);
    failed.failed(1, &["cannot_write_addr_file: ", file]);
    assert!(!failed.stderr.contains("node_ready") && !data.exists(), "{failed:?}");
}

#[tokio::test]
async fn a_stop_in_order_does_not_call_its_receivers_down() {
    let scene = scene!("quiet-stop");
    let mut node = scene.node().start().await;
    let _inbox = Inbox::attach(node.addr(), "a").await;
    assert_eq!(node.stop().await, Some(0));
    assert_eq!(node.events("peer_up").len(), 1);
    let down = node.events("peer_down");
    assert!(down.iter().all(|event| event["reason"] == "not connected yet"), "{down:?}");
    assert_eq!(node.events("node_stopped").len(), 1);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let scene = scene!("port");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("an address");
    let refusal = scene.node().tcp(addr).refused().await;
    assert_eq!(refusal.code, Some(1), "{refusal:?}");
    assert!(refusal.stderr.contains(&addr.to_string()), "{refusal:?}");
}

#[tokio::test]
async fn a_bad_configuration_is_refused_before_anything_is_touched() {
    let scene = scene!("configuration");
    let config = scene.path("restante.toml");
    fs::write(&config, "\nsilence = 5\n").expect("a file");
    let cli = Cli::of(env!("CARGO_BIN_EXE_restante-faulty"));
    let data = scene.path("data");
    for (args, words) in [
        (&["--tcp", "0.0.0.0:0"][..], "--allow-open-listener"),
        (&["--tcp", "nonsense"], "ADDRESS:PORT"),
        (&["--set", "dials_max=0"], "1 to 4096"),
        (&["--set", "dials"], "KEY=VALUE"),
        (&["--config", config.to_str().expect("UTF-8")], "restante.toml:2"),
        (&["--config", "/nowhere.toml"], "/nowhere.toml"),
    ] {
        let all = [&["serve", "--data-dir", data.to_str().expect("UTF-8")], args].concat();
        cli.run(&all).failed(2, &[words]);
    }
    assert!(!data.exists());
}

#[test]
fn a_node_that_is_not_there_is_named() {
    let cli = Cli::of(env!("CARGO_BIN_EXE_restante-faulty"));
    cli.run(&["peer", "ls", "--server", "127.0.0.1:9"]).failed(3, &["127.0.0.1:9"]);
}

#[test]
fn the_effective_configuration_is_shown_with_its_origins() {
    let cli = Cli::of(env!("CARGO_BIN_EXE_restante-faulty"));
    let shown = cli.run(&["config", "show", "--set", "dials_max=7"]).json();
    let line = |key: &str| shown.iter().find(|line| line["key"] == key).expect("every key");
    assert_eq!(
        (&line("dials_max")["value"], &line("dials_max")["set_by"]),
        (&7.into(), &"flag --set dials_max".into())
    );
    assert_eq!(line("tcp")["set_by"], "default");
    assert_eq!(cli.ok(&["config", "check"]), "");
}

#[tokio::test]
async fn the_log_level_is_changed_while_the_node_runs() {
    let scene = scene!("log-level");
    let mut node = scene.node().start().await;
    let cli = node.cli();
    let said = cli.run(&["log-level", "error"]);
    assert_eq!(said.code, 0, "{said:?}");
    cli.ok(&["peer", "add", "unsaid", "attach:"]);
    cli.ok(&["log-level", "info"]);
    cli.ok(&["peer", "add", "said", "attach:"]);
    cli.run(&["log-level", "inof"]).failed(5, &["bad_setting", "inof"]);
    cli.ok(&["peer", "add", "still", "attach:"]);
    assert_eq!(node.stop().await, Some(0));
    let added: Vec<Value> = node.events("peer_added");
    let names: Vec<&Value> = added.iter().map(|event| &event["peer"]).collect();
    assert_eq!(names, ["said", "still"], "{added:?}");
}
