//! What is set aside for an operator, and what the operator does about it, against a real node.

use restante_client::Nack;
use restante_tests::harness::{Answer, Cli, Inbox, Node, Scene, eventually};
use restante_tests::scene;
use serde_json::Value;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// More than an answer holds, several times over.
const REFUSED: usize = 1_500;
const WHY: &str = "no such customer";
/// What the node says of it.
const REASON: &str = "refused for good: no such customer";

/// A node on an empty directory, and the command line that talks to it.
async fn fresh(name: &str) -> (Scene, Node, Cli) {
    let scene = scene!(name);
    let node = scene.node().start().await;
    let cli = node.cli();
    (scene, node, cli)
}

/// Publishes numbered lines to a peer that refuses each for good; their ids, in order.
async fn refused(node: &Node, cli: &Cli, peer: &str, messages: usize) -> Vec<String> {
    cli.ok(&["peer", "add", peer, "attach:"]);
    let refuses = |_: &_| Answer::Nack(Nack::permanent(WHY));
    let inbox = Inbox::attach_with(node.addr(), peer, refuses).await;
    let ids = published(cli, peer, messages);
    has_parked(cli, peer, messages).await;
    drop(inbox);
    ids
}

fn published(cli: &Cli, peer: &str, messages: usize) -> Vec<String> {
    let lines: String = (0..messages).map(|line| format!("{line}\n")).collect();
    let said = cli.run_with(&["pub", "--to", peer, "-l"], lines.as_bytes()).ok();
    said.lines().map(str::to_owned).collect()
}

async fn has_parked(cli: &Cli, peer: &str, messages: usize) {
    let what = format!("{messages} parked messages");
    eventually(&what, LIMIT, async || (counted(cli, peer) == messages).then_some(())).await;
}

/// How many messages a peer's status says are parked.
fn counted(cli: &Cli, peer: &str) -> usize {
    let info = cli.run(&["peer", "info", peer]).json();
    info[0]["status"]["parked"].as_u64().expect("a count") as usize
}

fn parked(cli: &Cli, peer: &str) -> Vec<Value> {
    cli.run(&["peer", "parked", peer]).json()
}

fn ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn what_is_parked_is_listed_whole_chosen_among_and_exported() {
    let (_scene, mut node, cli) = fresh("parked_list").await;
    let published = refused(&node, &cli, "shop", REFUSED).await;
    let keyed = cli.ok(&["pub", "--to", "shop", "--key", "k", "-H", "n:v", "waits"]);

    let listed = parked(&cli, "shop");
    assert_eq!(ids(&listed), published, "all of them, in order, each once");
    for line in &listed {
        assert_eq!((&line["reason"], &line["attempts"]), (&REASON.into(), &1.into()), "{line}");
        assert!(line["parked_at"].as_u64() >= line["accepted"].as_u64(), "{line}");
        assert!(line.get("payload").is_none(), "{line}");
    }
    assert_eq!(cli.run(&["peer", "parked", "shop", "-n", "7"]).json()[..], listed[..7]);

    let count = |args: &[&str]| {
        let all = [&["peer", "parked", "shop"], args].concat();
        cli.run(&all).json().len()
    };
    assert_eq!(count(&["--since", "1h", "--reason", "such"]), REFUSED);
    assert_eq!(count(&["--until", "1h"]), 0);
    assert_eq!(count(&["--since", "2020-01-01", "--until", "2020-01-02"]), 0);
    assert_eq!(count(&["--reason", "else"]), 0);
    assert_eq!(count(&["--key", "k"]), 0);
    cli.run(&["peer", "parked", "shop", "--since", "yesterday"]).failed(2, &["2026-11-23", "24h"]);
    cli.run(&["peer", "parked", "nobody"]).failed(6, &["not_found"]);

    let waiting = cli.run(&["peer", "peek", "shop"]).json();
    assert_eq!(ids(&waiting), [keyed.trim()]);
    assert_eq!((&waiting[0]["key"], &waiting[0]["bytes"]), (&"k".into(), &5.into()));
    assert_eq!(cli.ok(&["peer", "peek", "shop", "--key", "other"]), "");
    assert_eq!(cli.ok(&["peer", "peek", "shop", "--until", "1h"]), "");
    cli.run(&["peer", "peek", "shop", "--reason", WHY]).failed(5, &["bad_setting", "parked"]);

    // The same from the disk, after a crash.
    node.kill();
    node.restart().await;
    let exported = cli.run(&["peer", "export", "shop"]).json();
    let all: Vec<&str> =
        [keyed.trim()].into_iter().chain(published.iter().map(|id| &id[..])).collect();
    assert_eq!(ids(&exported), all);
    let (payload, header) = (&exported[0]["payload"], &exported[0]["headers"]["n"]);
    assert_eq!((payload, header), (&"waits".into(), &"v".into()));
    for (line, number) in exported[1..].iter().zip(0..) {
        assert_eq!(line["payload"], number.to_string());
        assert_eq!(line["reason"], REASON);
    }
    assert_eq!(cli.run(&["peer", "export", "shop", "--parked"]).json(), exported[1..]);
    assert_eq!(cli.run(&["peer", "export", "shop", "--waiting"]).json(), exported[..1]);

    // Nothing of all that took anything away.
    assert_eq!(parked(&cli, "shop"), listed);
    assert_eq!(cli.ok(&["sub", "shop", "--raw", "-C", "1"]), "waits\n");
}

#[tokio::test]
async fn what_waited_for_a_removed_peer_is_listed_with_what_it_had_parked() {
    let (_scene, node, cli) = fresh("parked_removed").await;
    let set_aside = refused(&node, &cli, "gone", 300).await;
    let waiting = published(&cli, "gone", 300);
    cli.ok(&["peer", "rm", "gone", "--park"]);
    let listed = parked(&cli, "gone#1");
    let all: Vec<String> = set_aside.into_iter().chain(waiting).collect();
    assert_eq!(ids(&listed), all);
    assert_eq!(listed[0]["reason"], REASON);
    assert_eq!(listed[300]["reason"], "its peer was removed");
    assert_eq!(cli.ok(&["peer", "peek", "gone#1"]), "");
}
