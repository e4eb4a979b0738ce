//! Groups against a real node: who gets what is published to one, and who is named for not getting it.

use bytes::BytesMut;
use restante_client::protocol::codec::put_message;
use restante_client::protocol::control::Control;
use restante_client::protocol::frame::Refuse;
use restante_client::protocol::id::{MessageId, ProducerId};
use restante_client::protocol::message::Body;
use restante_client::protocol::refusal::Code;
use restante_tests::harness::{Cli, Heard, Inbox, Node, Raw, Scene};
use restante_tests::scene;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const PRODUCER: ProducerId = ProducerId(0x5eed_0000_0000_0000_0000_0000_0000_0002);

/// A node with these peers, and the command line that talks to it.
async fn with_peers(name: &str, peers: &[&str]) -> (Scene, Node, Cli) {
    let scene = scene!(name);
    let node = scene.node().start().await;
    let cli = node.cli();
    for peer in peers {
        cli.ok(&["peer", "add", peer, "attach:"]);
    }
    (scene, node, cli)
}

/// The version of a group and its members.
fn group(cli: &Cli, name: &str) -> (u64, Vec<String>) {
    let info = cli.run(&["group", "info", name]).json().remove(0);
    let members = info["members"].as_array().expect("members").iter();
    let members = members.map(|member| member.as_str().expect("a name").to_owned()).collect();
    (info["version"].as_u64().expect("a version"), members)
}

#[tokio::test]
async fn a_message_goes_to_those_who_are_in_the_group_when_it_is_accepted() {
    let (_scene, mut node, cli) = with_peers("group-members", &["a", "b", "c"]).await;
    cli.ok(&["group", "add", "all", "a", "b"]);
    let traced = cli.ok(&["pub", "--to", "all", "one"]);
    cli.ok(&["group", "set", "all", "--add", "c", "--remove", "a"]);
    // Each of them once, however often it is named.
    cli.ok(&["pub", "--to", "c,all,b,all", "two"]);
    assert_eq!(group(&cli, "all"), (2, vec!["b".to_owned(), "c".to_owned()]));
    cli.run(&["group", "set", "all", "--add", "a", "--if-version", "1"])
        .failed(5, &["version_conflict"]);
    cli.ok(&["group", "set", "all", "--add", "c"]);
    assert_eq!(group(&cli, "all").0, 2, "nothing has changed");

    node.kill();
    node.restart().await;
    cli.ok(&["pub", "--to", "all", "three"]);
    cli.ok(&["peer", "rm", "b", "--park"]);
    assert_eq!(group(&cli, "all"), (3, vec!["c".to_owned()]), "b has left with its removal");
    cli.ok(&["peer", "add", "b", "attach:"]);
    cli.ok(&["pub", "--to", "all,a", "four"]);
    node.kill();
    node.restart().await;
    assert_eq!(group(&cli, "all"), (3, vec!["c".to_owned()]));
    let listed = cli.run(&["group", "ls"]).json();
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0]["name"], &listed[0]["members"]), (&"all".into(), &1.into()));

    let mut inboxes = Vec::new();
    for (peer, texts) in [("a", &["one", "four"][..]), ("b", &[]), ("c", &["two", "three", "four"])]
    {
        let inbox = Inbox::attach(node.addr(), peer).await;
        inbox.has(texts.len(), LIMIT).await;
        inboxes.push((inbox, texts));
    }
    for (inbox, texts) in inboxes {
        let seen = inbox.close().await;
        assert!(seen.iter().map(|seen| &seen.text[..]).eq(texts.iter().copied()), "{seen:?}");
    }
    let trace = cli.run(&["message", "trace", traced.trim()]).json();
    let receivers: Vec<&str> = trace.iter().filter_map(|line| line["receiver"].as_str()).collect();
    assert_eq!(receivers, ["a", "b#2"], "it went to peers");
    let removed = node.events("peer_removed");
    assert_eq!(removed[0]["groups"], 1);
    assert_eq!(node.events("group_changed")[0]["changed"], "+c -a");
}

#[tokio::test]
async fn what_no_group_can_be_or_do_is_refused_by_name() {
    let (_scene, node, cli) = with_peers("group-refused", &["a"]).await;
    cli.ok(&["group", "add", "g"]);
    cli.run(&["pub", "--to", "g", "x"]).failed(5, &["g: no_receiver", "group 'g' has no members"]);
    cli.ok(&["group", "set", "g", "--add", "a"]);
    cli.run(&["group", "add", "h", "g"]).failed(5, &["is_group", "'g'"]);
    cli.run(&["group", "set", "g", "--add", "g"]).failed(5, &["is_group"]);
    cli.run(&["group", "add", "h", "nobody"]).failed(6, &["not_found", "nobody"]);
    cli.run(&["group", "add", "a"]).failed(5, &["name_taken", "a peer 'a'"]);
    cli.run(&["peer", "add", "g", "attach:"]).failed(5, &["name_taken", "a group 'g'"]);
    cli.run(&["sub", "g", "-C", "1"]).failed(5, &["name_taken", "a group 'g'"]);
    cli.run(&["peer", "pause", "g"]).failed(5, &["is_group"]);
    cli.run(&["call", "g", "x"]).failed(5, &["is_group"]);
    cli.run(&["group", "info", "a"]).failed(6, &["not_found"]);
    cli.run(&["group", "set", "g"]).failed(2, &["usage"]);
    let told = node.events("admin_refused");
    assert!(told.iter().any(|line| line["group"] == "h" && line["code"] == "is_group"), "{told:?}");

    // Somebody who has named it before is told that it has gone, and finds what has its name now.
    let (mut raw, _) = Raw::greeted(node.addr(), Some(PRODUCER)).await;
    raw.control(&alias(0, "g")).await;
    publish(&mut raw, 1, &[0]).await;
    assert!(matches!(raw.hear().await, Heard::Confirm(_)));
    cli.ok(&["group", "rm", "g"]);
    publish(&mut raw, 2, &[0]).await;
    let refuse = refused(&mut raw).await;
    assert_eq!(refuse.receivers[..], [(0, Code::StaleAlias)]);
    cli.ok(&["peer", "add", "g", "attach:"]);
    cli.ok(&["pub", "--to", "g", "to the peer"]);
    assert_eq!(cli.ok(&["sub", "g", "--raw", "-C", "1"]), "to the peer\n");
}

fn alias(alias: u32, name: &str) -> Control {
    Control::Alias { alias, name: name.parse().expect("a name") }
}

async fn publish(raw: &mut Raw, sequence: u64, aliases: &[u32]) {
    let mut frame = BytesMut::new();
    let body = Body { payload: b"once", ..Body::default() };
    put_message(&mut frame, 0, sequence, aliases, &body);
    raw.say(&frame).await;
}

async fn refused(raw: &mut Raw) -> Refuse {
    match raw.hear().await {
        Heard::Refuse(refuse) => refuse,
        other => panic!("{other:?} in place of a refusal"),
    }
}

/// Who of a group refused, and the id under which the others accepted.
fn members(refuse: &Refuse) -> (Option<MessageId>, Vec<(u32, Code, &str)>) {
    assert_eq!(refuse.receivers[..], []);
    let members = refuse.members.iter();
    (refuse.id, members.map(|(alias, code, name)| (*alias, *code, name.as_str())).collect())
}

#[tokio::test]
async fn a_member_that_refuses_is_named_also_to_a_repeat_and_the_others_get_it() {
    let (_scene, mut node, cli) = with_peers("group-partial", &["a", "c"]).await;
    cli.ok(&["peer", "add", "small", "attach:", "--quota-messages", "1"]);
    cli.ok(&["group", "add", "all", "a", "small", "c"]);
    cli.ok(&["pub", "--to", "all", "fits"]);
    let partly = cli.run(&["pub", "--to", "all", "too much", "--json"]);
    partly.failed(5, &["for small: peer_quota: small: 1 messages wait for it, its quota is 1"]);
    let told = serde_json::json!({ "small": "peer_quota" });
    assert_eq!(partly.json()[0]["refused"], told);
    cli.run(&["pub", "--to", "all", "--all-or-nothing", "nobody"])
        .failed(5, &["for small: peer_quota"]);

    let (mut raw, _) = Raw::greeted(node.addr(), Some(PRODUCER)).await;
    raw.control(&alias(7, "all")).await;
    publish(&mut raw, 1, &[7]).await;
    let first = refused(&mut raw).await;
    let (id, who) = members(&first);
    assert_eq!(who, [(7, Code::PeerQuota, "small")]);
    assert!(id.is_some());
    publish(&mut raw, 1, &[7]).await;
    assert_eq!(refused(&mut raw).await, first, "a repeat on the same connection");

    let (mut raw, _) = Raw::greeted(node.addr(), Some(PRODUCER)).await;
    raw.control(&alias(1, "all")).await;
    publish(&mut raw, 1, &[1]).await;
    let again = refused(&mut raw).await;
    assert_eq!(members(&again), (id, vec![(1, Code::PeerQuota, "small")]), "another alias");

    // Why it refused is forgotten; that it did is not.
    node.kill();
    node.restart().await;
    let (mut raw, _) = Raw::greeted(node.addr(), Some(PRODUCER)).await;
    raw.control(&alias(2, "all")).await;
    publish(&mut raw, 1, &[2]).await;
    let after = refused(&mut raw).await;
    assert_eq!(members(&after), (id, vec![(2, Code::OutcomeEvicted, "small")]));

    for (peer, texts) in [
        ("a", &["fits", "too much", "once"][..]),
        ("small", &["fits"]),
        ("c", &["fits", "too much", "once"]),
    ] {
        let inbox = Inbox::attach(node.addr(), peer).await;
        inbox.has(texts.len(), LIMIT).await;
        assert_eq!(inbox.texts(), texts, "{peer}");
    }
}

#[tokio::test]
async fn members_and_receivers_of_one_publish_are_bounded_together() {
    let (_scene, node, cli) = with_peers("group-bound", &[]).await;
    let client = node.client().await;
    let mut names = Vec::new();
    for number in 0..1_025 {
        let name = format!("p{number}");
        restante_tests::harness::add_peer(&client, &name, "attach:", Default::default()).await;
        names.push(name);
    }
    let (last, most) = names.split_last().expect("names");
    let args: Vec<&str> =
        ["group", "add", "most"].into_iter().chain(most.iter().map(|n| &n[..])).collect();
    cli.ok(&args);
    cli.run(&["group", "set", "most", "--add", last]).failed(5, &["too_large", "1025 members"]);
    cli.ok(&["pub", "--to", "most", "to 1,024"]);
    let id = cli.run(&["pub", "--to", &format!("most,{last}"), "one too many"]);
    id.failed(5, &["for most: too_large", "1025 receivers"]);
    let waits = cli.run(&["peer", "info", last]).json();
    assert_eq!(waits[0]["status"]["waiting"], 1, "the other one has got it");
    let first = cli.run(&["peer", "info", &names[0]]).json();
    assert_eq!(first[0]["status"]["waiting"], 1);
    cli.ok(&["group", "set", "most", "--remove", most.last().expect("names")]);
    cli.ok(&["pub", "--to", "most,most", "twice is once"]);
    let first = cli.run(&["peer", "info", &names[0]]).json();
    assert_eq!(first[0]["status"]["waiting"], 2);
}
