//! A file system of fixed size that is filled under load, emptied and filled again (promises P7 and P9):
//! publishes are refused by name, acks go on with nothing free at all, and nothing that was confirmed
//! is lost.
//!
//! Needs root, for a tmpfs of its own. Without it the test says so and ends; with it, or in CI as root,
//! a mount that fails is a failure.

use restante_client::protocol::admin::{AdminCommand, PeerPatch, Waiting};
use restante_client::protocol::id::MessageId;
use restante_client::protocol::refusal::Code;
use restante_client::{Client, Publish, PublishError, Receipt};
use restante_tests::harness::{Inbox, Node, add_peer, eventually};
use restante_tests::scene;
use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);
const DISK_MIB: usize = 64;
const PAYLOAD_BYTES: usize = 1_024;
/// Receipts kept before the oldest is awaited.
const OUTSTANDING_MAX: usize = 400;

/// A tmpfs, for as long as it is held.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`, with the reason said, where this user cannot mount.
    fn mount(at: PathBuf) -> Option<Tmpfs> {
        std::fs::create_dir(&at).expect("a directory");
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: a tmpfs of its own needs root");
            return None;
        }
        let size = format!("size={DISK_MIB}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at);
        let mounted = mount.output().expect("mount runs");
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr).into_owned();
            assert!(std::env::var_os("CI").is_none(), "root in CI cannot mount: {why}");
            eprintln!("skipped: root here cannot mount: {why}");
            return None;
        }
        Some(Tmpfs(at))
    }

    fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).expect("a file system");
        stat.f_bavail * stat.f_frsize
    }

    /// Takes every byte that is free, in a file that has nothing to do with the node.
    fn take_the_rest(&self) -> PathBuf {
        let path = self.0.join("somebody-else's");
        let mut file = File::create(&path).expect("a file");
        for block in [1 << 20, 4_096] {
            while file.write_all(&vec![1; block]).is_ok() {}
        }
        assert_eq!(self.free_bytes(), 0);
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a failed test may have left a node behind for a moment.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Publishes until the node refuses. The ids it confirmed, and what it said then.
async fn fill(client: &Client, to: &[&str]) -> (Vec<MessageId>, String) {
    let mut confirmed = Vec::new();
    let mut outstanding: VecDeque<Receipt> = VecDeque::new();
    let mut why = None;
    for number in 0.. {
        assert!(number < 2 * DISK_MIB * 1_024, "the disk is never full");
        if why.is_none() {
            let payload = format!("{number:0width$}", width = PAYLOAD_BYTES);
            let publish = Publish::to(to).payload(payload);
            outstanding.push_back(client.publish(publish).await.expect("a buffer with room"));
        }
        if why.is_none() && outstanding.len() < OUTSTANDING_MAX {
            continue;
        }
        let Some(receipt) = outstanding.pop_front() else { break };
        match receipt.within(LIMIT).await {
            Ok(outcome) => {
                assert_eq!(outcome.refused, []);
                confirmed.push(outcome.id);
            }
            Err(PublishError::Refused(refused)) => {
                assert_eq!(refused.code, Code::DiskFull, "{}", refused.detail);
                why = Some(refused.detail);
            }
            Err(error) => panic!("{error}"),
        }
    }
    (confirmed, why.expect("a refusal"))
}

async fn is_taken(client: &Client, to: &[&str]) -> MessageId {
    eventually("publishes to be taken again", LIMIT, async || {
        let receipt = client.publish(Publish::to(to).payload("again")).await.expect("a buffer");
        match receipt.within(LIMIT).await {
            Ok(outcome) => Some(outcome.id),
            Err(PublishError::Refused(why)) if why.code == Code::DiskFull => None,
            Err(error) => panic!("{error}"),
        }
    })
    .await
}

/// Waits until a receiver has everything that was confirmed.
async fn has_all(inbox: &Inbox, confirmed: &[MessageId], who: &str) {
    inbox.has(confirmed.len(), LIMIT).await;
    let what = format!("all {} confirmed messages to reach {who}", confirmed.len());
    eventually(&what, LIMIT, async || {
        let seen: HashSet<MessageId> = inbox.seen().iter().map(|seen| seen.id).collect();
        confirmed.iter().all(|id| seen.contains(id)).then_some(())
    })
    .await;
}

async fn waiting(client: &Client, name: &str) -> u64 {
    client.peer(name).await.expect("a peer").status.waiting
}

async fn node_on(scene: &restante_tests::harness::Scene, disk: &Path) -> Node {
    let node = scene.node().data_dir(disk.join("data"));
    let node = node.set("journal_segment_bytes", 2 << 20).set("peer_share_percent", 100);
    node.start().await
}

#[tokio::test]
async fn a_disk_is_filled_and_emptied_and_filled_again() {
    let scene = scene!("full-disk");
    let Some(disk) = Tmpfs::mount(scene.path("disk")) else { return };
    let mut node = node_on(&scene, &disk.0).await;
    let client = node.client().await;
    for name in ["here", "away", "never"] {
        add_peer(&client, name, "attach:", PeerPatch::default()).await;
    }
    let here = Inbox::attach(node.addr(), "here").await;

    let (mut confirmed, why) = fill(&client, &["here", "away"]).await;
    assert!(confirmed.len() > DISK_MIB * 1_024 / 2, "{} were taken", confirmed.len());
    assert!(why.chars().any(|c| c.is_ascii_digit()), "says how much is needed: {why}");
    assert_eq!(node.events("disk_full").len(), 1);
    has_all(&here, &confirmed, "here").await;

    node.cli().ok(&["peer", "ls"]);
    node.cli().run(&["status"]).failed(5, &["disk_full"]);

    // Nothing at all is free, and acks, changes and whatever makes room go on.
    let others = disk.take_the_rest();
    let remove = AdminCommand::PeerRemove {
        name: "never".parse().expect("a name"),
        if_version: None,
        waiting: Some(Waiting::Purge),
    };
    client.admin(remove).await.expect("a change on a full disk");
    let away = Inbox::attach(node.addr(), "away").await;
    has_all(&away, &confirmed, "away").await;
    eventually("every ack to be recorded", LIMIT, async || {
        (waiting(&client, "away").await == 0).then_some(())
    })
    .await;
    // The room that the acks made is enough; nobody has removed the other file.
    confirmed.push(is_taken(&client, &["here", "away"]).await);
    assert!(!node.events("disk_ok").is_empty());
    node.cli().ok(&["status"]);
    away.close().await;

    std::fs::remove_file(others).expect("it is ours");
    let (more, _) = fill(&client, &["here", "away"]).await;
    assert!(more.len() > DISK_MIB * 1_024 / 2, "the room came back: {}", more.len());
    disk.take_the_rest();
    // The worst moment for a crash.
    node.kill();
    node.restart().await;
    let away = Inbox::attach(node.addr(), "away").await;
    has_all(&away, &more, "away").await;
    confirmed.extend(&more);
    has_all(&here, &confirmed, "here").await;
    is_taken(&node.client().await, &["here", "away"]).await;
    assert_eq!(node.events("journal_poisoned").len(), 0, "a full disk is no sick one");
    assert_eq!(node.stop().await, Some(0));
}
