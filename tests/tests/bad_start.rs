//! A node that cannot start says why in one line, with what to do about it, and ends with the
//! documented exit code; whatever stood in its way is untouched.

use restante_client::Publish;
use restante_client::protocol::admin::PeerPatch;
use restante_tests::harness::{Bystanders, Inbox, Refusal, Scene, add_peer};
use restante_tests::scene;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const DATA_DIRECTORY: i32 = 8;

/// It ended with this code, and the last line of what it said has these words.
fn says(refusal: &Refusal, code: i32, words: &[&str]) {
    assert_eq!(refusal.code, Some(code), "{refusal:?}");
    let line = refusal.stderr.lines().last().unwrap_or_default();
    for word in words {
        assert!(line.contains(word), "{line:?} should say {word:?}");
    }
    assert!(!refusal.stderr.contains("panicked"), "{refusal:?}");
    // The log alone tells it too, with the same code.
    if code != USAGE {
        let mut log = refusal.stderr.lines().filter_map(|line| serde_json::from_str(line).ok());
        let failed = log.find(|event: &Value| event["event"] == "node_failed");
        let failed = failed.unwrap_or_else(|| panic!("no node_failed in {refusal:?}"));
        let said = format!("restante: {}: {}", text(&failed["code"]), text(&failed["reason"]));
        assert_eq!(said, line);
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// Every file under a directory with its bytes.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.push((path.display().to_string(), fs::read(&path).expect("a file")));
        }
    }
    files.sort();
    files
}

#[tokio::test]
async fn a_locked_data_directory_is_refused_and_its_owner_does_not_notice() {
    let scene = scene!("locked");
    let mut node = scene.node().start().await;
    let bystanders = Bystanders::on(&node).await;
    let refusal = scene.node().refused().await;
    says(&refusal, DATA_DIRECTORY, &["locked: ", "data", "another"]);
    bystanders.are_well(&mut node, "a second node on its directory").await;
    bystanders.got_everything(&node).await;
}

#[tokio::test]
async fn a_port_in_use_is_refused_and_its_owner_does_not_notice() {
    let scene = scene!("port");
    let mut node = scene.node().start().await;
    let bystanders = Bystanders::on(&node).await;
    let other = scene.node().data_dir(scene.path("other")).tcp(node.addr());
    let refusal = other.refused().await;
    says(&refusal, FAILED, &["cannot_listen: ", &node.addr().to_string(), "in use"]);
    bystanders.are_well(&mut node, "a second node on its port").await;
    bystanders.got_everything(&node).await;
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_refused() {
    let scene = scene!("unwritable");
    // Neither a file in its place nor one above it can be written through, whoever asks.
    let file = scene.path("file");
    fs::write(&file, "not a directory").expect("a file");
    for dir in [file.clone(), file.join("below")] {
        let refusal = scene.node().data_dir(&dir).refused().await;
        says(&refusal, DATA_DIRECTORY, &[&dir.display().to_string()]);
    }
    assert_eq!(fs::read_to_string(&file).expect("a file"), "not a directory");

    // Nor can anybody make a file there, whatever his rights.
    let system = Path::new("/sys/kernel");
    assert!(system.is_dir(), "no {} on this machine", system.display());
    let refusal = scene.node().data_dir(system).refused().await;
    says(&refusal, DATA_DIRECTORY, &[&system.display().to_string()]);

    let dir = scene.path("read-only");
    fs::create_dir(&dir).expect("a directory");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).expect("permissions");
    // The administrator may write there all the same; then there is nothing to refuse, and the
    // directory of the system above has shown what there is to show.
    if fs::write(dir.join("probe"), "").is_err() {
        let refusal = scene.node().data_dir(&dir).refused().await;
        says(&refusal, DATA_DIRECTORY, &[&dir.display().to_string()]);
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("permissions");
}

/// A node with one message waiting, gone again.
async fn filled(scene: &Scene) {
    let mut node = scene.node().start().await;
    let client = node.client().await;
    add_peer(&client, "sink", "attach:", PeerPatch::default()).await;
    let receipt = client.publish(Publish::to(["sink"]).payload("kept")).await;
    receipt.expect("a buffer with room").await.expect("a confirm");
    assert_eq!(node.stop().await, Some(0));
}

#[tokio::test]
async fn a_data_directory_of_a_newer_version_is_refused_and_left_as_it_is() {
    const VERSION_AT: usize = 8;
    const NEWER: [u8; 4] = 2_u32.to_be_bytes();
    // Where a header has its checksum: it is of other bytes, or summed otherwise.
    const SUM_AT: usize = 44;
    let scene = scene!("newer");
    filled(&scene).await;
    let data = scene.path("data");
    for (path, bytes) in contents(&data) {
        if !bytes.starts_with(b"RSTNT") {
            continue;
        }
        let mut newer = bytes.clone();
        newer[VERSION_AT..VERSION_AT + 4].copy_from_slice(&NEWER);
        newer[SUM_AT..SUM_AT + 4].iter_mut().for_each(|byte| *byte = !*byte);
        fs::write(&path, newer).expect("a file");
        let before = contents(&data);
        let refusal = scene.node().refused().await;
        says(&refusal, DATA_DIRECTORY, &[&path, "version 2"]);
        assert!(contents(&data) == before, "nothing was changed because of {path}");
        fs::write(&path, bytes).expect("a file");
    }
    let node = scene.node().start().await;
    let sink = Inbox::attach(node.addr(), "sink").await;
    sink.has(1, Duration::from_secs(20)).await;
    assert_eq!(sink.texts(), ["kept"]);
}

#[tokio::test]
async fn a_bad_configuration_is_refused_before_anything_is_touched() {
    let scene = scene!("config");
    let data = scene.path("data");
    for (key, value, words) in [
        ("hello_ms_max", "-1", ["hello_ms_max", "100 to 60000"]),
        ("hello_ms_max", "1e99", ["hello_ms_max", "whole number"]),
        ("credit_messages", "0", ["credit_messages", "1 to 1000000"]),
        ("journal_segment_bytes", "99999999999999999999999", ["journal_segment_bytes", "262144"]),
        ("no_such_key", "1", ["no_such_key", "config show"]),
        ("silence_ms_max", "200", ["silence_ms_max", "heartbeat_ms"]),
        ("tcp", "0.0.0.0:0", ["0.0.0.0:0", "allow_open_listener"]),
        ("tcp", "localhost", ["tcp", "ADDRESS:PORT"]),
        ("data_dir", "", ["data_dir", "a path"]),
    ] {
        let refusal = scene.node().set(key, value).refused().await;
        says(&refusal, USAGE, &words);
        assert!(!data.exists(), "{key} = {value}");
    }
}
