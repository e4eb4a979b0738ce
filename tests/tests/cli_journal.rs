//! `journal`, `backup` and `restore`: real directories, real damage.

use restante_tests::harness::{Cli, Inbox, Node, Scene, eventually};
use restante_tests::scene;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const DAMAGE: i32 = 1;
const UNUSABLE: i32 = 8;

/// A node with peers `a` and `b`, and the command line that talks to it.
async fn fresh(name: &str) -> (Scene, Node, Cli) {
    let scene = scene!(name);
    let node = scene.node().start().await;
    let cli = node.cli();
    for name in ["a", "b"] {
        cli.ok(&["peer", "add", name, "attach:"]);
    }
    (scene, node, cli)
}

/// The segment that holds a text, and where.
fn holding(data: &Path, text: &str) -> (PathBuf, usize) {
    let segments = fs::read_dir(data.join("segments")).expect("segments");
    let mut found = segments.filter_map(|entry| {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).expect("a file");
        let at = bytes.windows(text.len()).position(|window| window == text.as_bytes())?;
        Some((path, at))
    });
    found.next().expect("the text is in a segment")
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("a file");
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("a file");
}

#[tokio::test]
async fn damage_is_found_told_and_the_rest_is_served() {
    let (scene, mut node, cli) = fresh("journal_damage").await;
    let data = scene.path("data");
    let dir = data.to_str().expect("UTF-8");
    let check = ["journal", "check", "--json", "--data-dir", dir];
    cli.run(&check).failed(UNUSABLE, &["in use"]);
    let id = cli.ok(&["pub", "--to", "a,b", "the second of three"]);
    let id = id.trim();
    for text in ["first", "third"] {
        cli.ok(&["pub", "--to", "a,b", text]);
    }
    assert_eq!(node.stop().await, Some(0));
    cli.ok(&check);
    let dump = ["journal", "dump", "--json", "--data-dir", dir, "--kind", "message", "--peer", "a"];
    let dumped = cli.run(&dump).json();
    assert_eq!(dumped.len(), 3, "{dumped:?}");
    assert_eq!((&dumped[0]["id"], &dumped[0]["receivers"]), (&json!(id), &json!(["a", "b"])));
    cli.run(&["journal", "dump", "--data-dir", dir, "--peer", "nobody"]).failed(6, &["nobody"]);

    let (segment, at) = holding(&data, "the second of three");
    flip(&segment, at + 4);
    let found = cli.run(&check);
    found.failed(DAMAGE, &["1 problem"]);
    let problem = found.json().into_iter().find(|line| line.get("problem").is_some());
    let problem = problem.expect("a line about it");
    assert_eq!(problem["receivers"], json!({ "a": 1, "b": 1 }), "{problem}");
    assert_eq!(problem["complete"], true);

    node.restart().await;
    for name in ["a", "b"] {
        let inbox = Inbox::attach(node.addr(), name).await;
        inbox.has(2, LIMIT).await;
        assert_eq!(inbox.texts(), ["first", "third"]);
    }
    let cli = node.cli();
    eventually("the damaged message is parked for both", LIMIT, async || {
        let trace = cli.run(&["message", "trace", id]).json();
        let told = |line: &serde_json::Value| {
            let reason = line["reason"].as_str().unwrap_or_default();
            line["state"] == "parked" && reason.contains("damaged on disk")
        };
        (trace.len() == 2 && trace.iter().all(told)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_damaged_message_of_a_removed_peer_is_purged_or_parked_by_name() {
    let (scene, mut node, cli) = fresh("journal_disposal").await;
    for name in ["purged", "heir"] {
        cli.ok(&["peer", "add", name, "attach:"]);
    }
    cli.ok(&["pub", "--to", "a,purged", "first"]);
    // The last one: nothing that is disposed of after it covers it.
    let id = cli.ok(&["pub", "--to", "a,purged", "the last of two"]);
    let id = id.trim();
    assert_eq!(node.stop().await, Some(0));
    let (segment, at) = holding(&scene.path("data"), "the last of two");
    flip(&segment, at + 4);
    node.restart().await;
    let cli = node.cli();
    cli.ok(&["peer", "rm", "a", "--hand-to", "heir"]);
    cli.ok(&["peer", "rm", "purged", "--purge"]);
    eventually("it is parked for the one and purged for the other", LIMIT, async || {
        let trace = cli.run(&["message", "trace", id]).json();
        let told = trace.iter().map(|line| line["state"].as_str().unwrap_or_default());
        let reason = trace.first().and_then(|line| line["reason"].as_str()).unwrap_or_default();
        let named = reason.contains("not handed over: damaged on disk");
        (named && told.eq(["parked", "purged"])).then_some(())
    })
    .await;
    assert_eq!(cli.ok(&["sub", "heir", "--raw", "-C", "1"]), "first\n");
}

#[tokio::test]
async fn a_lost_checkpoint_copy_is_mended_and_a_repair_says_so_first() {
    let (scene, mut node, cli) = fresh("journal_repair").await;
    cli.ok(&["pub", "--to", "a", "kept"]);
    assert_eq!(node.stop().await, Some(0));
    let data = scene.path("data");
    let dir = data.to_str().expect("UTF-8");
    // Nothing has been checkpointed in so short a life; a file in its place is as bad as a damaged one.
    fs::write(data.join("checkpoint"), "nonsense").expect("a file");
    cli.run(&["journal", "check", "--data-dir", dir]).failed(DAMAGE, &[]);
    let dry = cli.ok(&["journal", "repair", "--dry-run", "--data-dir", dir]);
    assert!(dry.contains("quarantine/checkpoint"), "{dry}");
    assert_eq!(fs::read_to_string(data.join("checkpoint")).expect("untouched"), "nonsense");
    cli.ok(&["journal", "repair", "--data-dir", dir]);
    let kept = data.join("quarantine").join("checkpoint");
    assert_eq!(fs::read_to_string(kept).expect("kept"), "nonsense");
    cli.ok(&["journal", "check", "--data-dir", dir]);
    node.restart().await;
    let inbox = Inbox::attach(node.addr(), "a").await;
    inbox.has(1, LIMIT).await;
    assert_eq!(inbox.texts(), ["kept"]);
}

#[tokio::test]
async fn a_backup_of_a_running_node_starts_elsewhere_with_all_that_was_confirmed() {
    let (scene, mut node, cli) = fresh("backup").await;
    let before: Vec<String> = (0..40).map(|n| format!("before {n}")).collect();
    for text in &before {
        cli.ok(&["pub", "--to", "a,b", text]);
    }
    cli.ok(&["sub", "b", "--raw", "-C", "10"]);
    let backup = scene.path("backup");
    let dir = backup.to_str().expect("UTF-8");
    let taken = cli.run(&["backup", "--json", dir]).json();
    assert!(taken[0]["files"].as_u64() >= Some(2), "{taken:?}");
    eventually("the log says so", LIMIT, async || {
        (node.events("backup_taken").len() == 1).then_some(())
    })
    .await;
    // The node goes on, and what comes later is not in it.
    cli.ok(&["pub", "--to", "a", "after"]);
    cli.run(&["backup", dir]).failed(5, &["not empty"]);
    let epoch = node.client().await.node().await.expect("an answer").epoch;
    node.kill();

    let restored = scene.path("restored");
    let target = restored.to_str().expect("UTF-8");
    cli.ok(&["restore", dir, target]);
    cli.run(&["restore", dir, target]).failed(UNUSABLE, &["not empty"]);
    cli.ok(&["journal", "check", "--data-dir", target]);
    let other = scene.node().data_dir(&restored).start().await;
    let client = other.client().await;
    assert!(client.node().await.expect("an answer").epoch > epoch + 1_000, "fenced");
    let inbox = Inbox::attach(other.addr(), "a").await;
    inbox.has(before.len(), LIMIT).await;
    assert_eq!(inbox.texts(), before);
    let inbox = Inbox::attach(other.addr(), "b").await;
    inbox.has(30, LIMIT).await;

    // A backup that is not as it was written is not restored, and leaves nothing behind.
    let segments = fs::read_dir(backup.join("segments")).expect("segments");
    let segment = segments.map(|entry| entry.expect("an entry").path()).next().expect("one");
    flip(&segment, 600);
    let nowhere = scene.path("nowhere");
    let target = nowhere.to_str().expect("UTF-8");
    cli.run(&["restore", dir, target]).failed(DAMAGE, &["checksum"]);
    assert!(!nowhere.exists());
    fs::remove_file(backup.join("manifest.json")).expect("a manifest");
    cli.run(&["restore", dir, target]).failed(6, &["finished"]);
}
