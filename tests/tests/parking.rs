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
    inbox.close().await;
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

fn waiting(cli: &Cli, peer: &str) -> Vec<Value> {
    cli.run(&["peer", "peek", peer]).json()
}

fn states(cli: &Cli, id: &str) -> Vec<String> {
    let trace = cli.run(&["message", "trace", id]).json();
    trace.iter().map(|line| line["state"].as_str().expect("a state").to_owned()).collect()
}

async fn job_is_over(node: &Node, event: &str) -> Value {
    eventually("the end of a job", LIMIT, async || node.events(event).pop()).await
}

#[tokio::test]
async fn a_replay_outlives_its_operator_and_crashes_of_the_node_and_brings_nothing_twice() {
    let (_scene, mut node, cli) = fresh("parked_replay").await;
    let published = refused(&node, &cli, "shop", REFUSED).await;

    let dry = cli.run(&["peer", "replay", "shop", "--rate", "50/s", "--since", "1h", "--dry-run"]);
    assert_eq!(ids(&dry.json()), published);
    assert!(dry.stderr.contains("1500 messages would be replayed, which takes 30 s"), "{dry:?}");
    assert_eq!(parked(&cli, "shop").len(), REFUSED, "a dry run does nothing");
    assert_eq!(waiting(&cli, "shop"), [] as [Value; 0]);
    assert_eq!(states(&cli, &published[7]), ["parked"]);

    // The command ends at once; what follows is the node's own doing. Nobody takes the messages, so
    // that two copies of one would lie there side by side.
    cli.ok(&["peer", "replay", "shop", "--rate", "500/s", "--no-wait"]);
    cli.run(&["peer", "replay", "shop"]).failed(5, &["job_under_way"]);
    for messages in [REFUSED / 10, REFUSED / 2] {
        eventually("a part of the replay", LIMIT, async || {
            (waiting(&cli, "shop").len() >= messages).then_some(())
        })
        .await;
        node.kill();
        node.restart().await;
    }
    let ended = job_is_over(&node, "peer_replay_ended").await;
    assert_eq!((&ended["messages"], &ended["peer"]), (&REFUSED.into(), &"shop".into()));
    assert_eq!(ids(&waiting(&cli, "shop")), published, "each once, under its id, in order");
    assert_eq!(parked(&cli, "shop"), [] as [Value; 0]);
    assert_eq!(counted(&cli, "shop"), 0);
    assert_eq!(states(&cli, &published[7]), ["replayed", "queued"]);

    let inbox = Inbox::attach(node.addr(), "shop").await;
    inbox.has(REFUSED, LIMIT).await;
    let seen = inbox.close().await;
    let came: Vec<String> = seen.iter().map(|seen| seen.id.to_string()).collect();
    assert_eq!(came, published);
    assert!(seen.iter().all(|seen| seen.redelivered), "each says that it may have come before");
    assert_eq!(states(&cli, &published[7]), ["replayed", "acked"]);
    let trace = cli.run(&["message", "trace", &published[7]]).json();
    assert_eq!(trace[0]["attempts"], 1, "those before the replay");
    cli.run(&["peer", "cancel", "shop"]).failed(6, &["no job is under way"]);
}

#[tokio::test]
async fn what_is_chosen_is_replayed_at_once_and_may_be_parked_and_replayed_again() {
    let (_scene, node, cli) = fresh("parked_chosen").await;
    cli.ok(&["peer", "add", "shop", "attach:"]);
    let refuses = Inbox::attach_with(node.addr(), "shop", |delivery| {
        let why = if delivery.key() == Some(b"red") { "no red ones" } else { "none at all" };
        Answer::Nack(Nack::permanent(why))
    })
    .await;
    let publish = |key: &str, text: &str| {
        cli.ok(&["pub", "--to", "shop", "--key", key, text]).trim().to_owned()
    };
    let red = [publish("red", "1"), publish("red", "2")];
    let blue = [publish("blue", "3"), publish("blue", "4")];
    has_parked(&cli, "shop", 4).await;
    refuses.close().await;
    cli.ok(&["peer", "pause", "shop"]);

    let said = cli.run(&["peer", "replay", "shop", "--reason", "no red"]);
    assert!(said.ok().is_empty() && said.stderr.contains("2 messages replayed"), "{said:?}");
    assert_eq!(ids(&waiting(&cli, "shop")), red);
    assert_eq!(ids(&parked(&cli, "shop")), blue);
    let said = cli.run(&["peer", "replay", "shop", "--key", "blue", "--until", "1h"]);
    assert!(said.stderr.contains("0 messages replayed"), "{said:?}");
    cli.ok(&["peer", "replay", "shop", "--key", "blue"]);
    cli.ok(&["peer", "resume", "shop"]);
    let refuses = |_: &_| Answer::Nack(Nack::permanent("still not"));
    let refuses = Inbox::attach_with(node.addr(), "shop", refuses).await;
    has_parked(&cli, "shop", 4).await;
    refuses.close().await;
    cli.ok(&["peer", "replay", "shop", "--reason", "still not"]);
    assert_eq!(cli.ok(&["sub", "shop", "--raw", "-C", "4"]), "1\n2\n3\n4\n");
    assert_eq!(states(&cli, &blue[0]), ["replayed", "replayed", "acked"]);
}

#[tokio::test]
async fn a_purge_needs_a_word_and_leaves_a_record_of_each() {
    let (_scene, mut node, cli) = fresh("parked_purge").await;
    let published = refused(&node, &cli, "shop", 40).await;
    let hold = cli.run(&["peer", "purge", "shop"]);
    hold.failed(2, &["40 messages would be purged", "--yes"]);
    let none = cli.run(&["peer", "purge", "shop", "--reason", "another", "--yes"]);
    assert!(none.ok().is_empty() && none.stderr.contains("0 messages purged"), "{none:?}");
    let dry = cli.run(&["peer", "purge", "shop", "--dry-run"]);
    assert!(dry.stderr.contains("40 messages would be purged"), "{dry:?}");
    assert_eq!(ids(&parked(&cli, "shop")), published, "nothing is gone yet");

    let said = cli.run(&["peer", "purge", "shop", "--reason", WHY, "--yes", "--json"]).json();
    assert_eq!((&said[0]["messages"], &said[0]["why"]), (&40.into(), &"".into()));
    let purged = node.events("messages_purged").pop().expect("a line in the log");
    assert_eq!((&purged["peer"], &purged["messages"]), (&"shop".into(), &40.into()));
    for _ in 0..2 {
        assert_eq!(parked(&cli, "shop"), [] as [Value; 0]);
        for id in &published {
            let trace = cli.run(&["message", "trace", id]).json();
            assert_eq!(trace[0]["state"], "purged", "{trace:?}");
            let by = trace[0]["by"].as_str().expect("who");
            assert!(by.starts_with("restante-cli/") && trace[0]["at"].as_u64() > Some(0), "{by}");
        }
        assert_eq!(counted(&cli, "shop"), 0);
        node.kill();
        node.restart().await;
    }
}

#[tokio::test]
async fn what_a_removed_peer_left_goes_to_another_or_is_purged() {
    let (_scene, node, cli) = fresh("parked_heir").await;
    let set_aside = refused(&node, &cli, "gone", 30).await;
    let left = published(&cli, "gone", 20);
    cli.ok(&["peer", "rm", "gone", "--park"]);
    cli.ok(&["peer", "add", "heir", "attach:"]);
    cli.run(&["peer", "replay", "gone#1"]).failed(5, &["no_receiver", "--to"]);
    cli.run(&["peer", "replay", "gone", "--to", "heir"]).failed(6, &["not_found"]);

    let said = cli.run(&["peer", "replay", "gone#1", "--to", "heir", "--reason", WHY]);
    assert!(said.ok().is_empty() && said.stderr.contains("30 messages replayed"), "{said:?}");
    assert_eq!(ids(&waiting(&cli, "heir")), set_aside);
    assert_eq!(ids(&parked(&cli, "gone#1")), left, "the others stay");
    assert_eq!(states(&cli, &set_aside[0]), ["moved", "queued"]);

    cli.ok(&["peer", "replay", "gone#1", "--to", "heir", "--since", "1h"]);
    let inbox = Inbox::attach(node.addr(), "heir").await;
    inbox.has(50, LIMIT).await;
    let came: Vec<String> = inbox.close().await.iter().map(|seen| seen.id.to_string()).collect();
    assert_eq!(came, [set_aside, left].concat());

    let again = published(&cli, "heir", 5);
    cli.ok(&["peer", "rm", "heir", "--park"]);
    cli.ok(&["peer", "purge", "heir#2", "--yes"]);
    assert_eq!(parked(&cli, "heir#2"), [] as [Value; 0]);
    assert_eq!(states(&cli, &again[0]), ["purged"]);
}

#[tokio::test]
async fn a_replay_is_cancelled_and_what_has_not_gone_stays_parked() {
    let (_scene, node, cli) = fresh("parked_cancel").await;
    let published = refused(&node, &cli, "shop", 100).await;
    let replay = cli.spawn(&["peer", "replay", "shop", "--rate", "1/s"]);
    eventually("a replay that has begun", LIMIT, async || {
        (ids(&waiting(&cli, "shop")).first() == Some(&&published[0][..])).then_some(())
    })
    .await;
    cli.ok(&["peer", "cancel", "shop"]);
    replay.finish().failed(1, &["messages replayed", "cancelled by restante-cli/"]);
    let (waits, stays) = (waiting(&cli, "shop"), parked(&cli, "shop"));
    let all: Vec<&str> = ids(&waits).into_iter().chain(ids(&stays)).collect();
    assert_eq!(all, published, "each is in one place");
    assert!(!stays.is_empty());
    let ended = job_is_over(&node, "peer_replay_ended").await;
    assert_eq!(ended["messages"], waits.len());
}

#[tokio::test]
async fn a_peer_is_not_drained_while_its_replay_brings_more() {
    let (_scene, node, cli) = fresh("parked_drain").await;
    refused(&node, &cli, "shop", 100).await;
    let _replay = cli.spawn(&["peer", "replay", "shop", "--rate", "1/s"]);
    let inbox = Inbox::attach(node.addr(), "shop").await;
    inbox.has(1, LIMIT).await;
    cli.ok(&["peer", "drain", "shop"]);
    let status = || cli.run(&["peer", "info", "shop"]).json()[0]["status"].clone();
    eventually("a moment at which nothing waits", LIMIT, async || {
        let status = status();
        (status["waiting"] == 0).then(|| assert_eq!(status["taking"], "draining"))
    })
    .await;
    assert_eq!(node.events("peer_drained").len(), 0);
    cli.ok(&["peer", "cancel", "shop"]);
    let is_told = async || (!node.events("peer_drained").is_empty()).then_some(());
    eventually("the peer to be drained", LIMIT, is_told).await;
    assert_eq!(status()["taking"], "drained");
    inbox.close().await;
}

#[tokio::test]
async fn what_no_batch_holds_together_is_replayed_all_the_same() {
    let scene = scene!("parked_large");
    let node = scene.node().set("journal_segment_bytes", 1_088 << 10).start().await;
    let cli = node.cli();
    cli.ok(&["peer", "add", "shop", "attach:"]);
    let refuses = |_: &_| Answer::Nack(Nack::permanent(WHY));
    let inbox = Inbox::attach_with(node.addr(), "shop", refuses).await;
    // They are read as one page, and are too much for one batch.
    let sizes = [250 << 10, 1_000 << 10];
    for bytes in sizes {
        cli.run_with(&["pub", "--to", "shop"], "x".repeat(bytes).as_bytes()).ok();
    }
    has_parked(&cli, "shop", 2).await;
    inbox.close().await;
    let said = cli.run(&["peer", "replay", "shop"]);
    assert!(said.ok().is_empty() && said.stderr.contains("2 messages replayed"), "{said:?}");
    let inbox = Inbox::attach(node.addr(), "shop").await;
    inbox.has(2, LIMIT).await;
    let lengths: Vec<usize> = inbox.texts().iter().map(String::len).collect();
    assert_eq!(lengths, sizes);
    inbox.close().await;
}
