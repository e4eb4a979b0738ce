//! A log that others try to fill: what is not written is counted, and the count is written.

use restante_client::protocol::admin::AdminCommand;
use restante_client::protocol::control::{AttachAs, Reply, Request};
use restante_client::protocol::frame::{Ack, Frame, TagRange};
use restante_tests::harness::{Node, Raw, add_peer, eventually};
use restante_tests::scene;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// Lines of a kind that are written in a period.
const BURST: usize = 5;
const TOO_MANY: usize = 3;

/// How many lines of this name were written, and how many are said to have been left out.
fn lines(node: &Node, name: &str) -> (usize, u64) {
    let unsaid = node.events("lines_suppressed");
    let unsaid = unsaid.iter().filter(|line| line["of"] == name);
    (node.events(name).len(), unsaid.filter_map(|line| line["lines"].as_u64()).sum())
}

#[tokio::test]
async fn lines_that_were_too_many_are_counted_though_nothing_follows() {
    let scene = scene!("lines");
    let node = scene.node().start().await;
    let client = node.client().await;
    add_peer(&client, "odd", "attach:", Default::default()).await;
    let (mut raw, _) = Raw::greeted(node.addr(), None).await;
    let receivers = vec![AttachAs { slot: 0, name: "odd".parse().expect("a name"), grant: None }];
    let attached = raw.ask(Request::Attach { receivers }).await;
    assert!(matches!(attached, Ok(Reply::Attached(_))), "{attached:?}");
    for _ in 0..BURST + TOO_MANY {
        // About an address, a peer as it behaves, and a peer as operators treat it.
        let mut noise = Raw::connect(node.addr()).await;
        noise.say(b"GET / HTTP/1.1\r\n\r\n").await;
        noise.closed().await;
        let ranges = [TagRange { first: 99, last: 99 }].into_iter().collect();
        raw.frame(&Frame::Ack(Ack { slot: 0, ranges })).await;
        let name = "odd".parse().expect("a name");
        let refused = AdminCommand::PeerPause { name, if_version: Some(77) };
        assert!(raw.ask(Request::Admin(refused)).await.is_err());
    }
    let expected = (BURST, TOO_MANY as u64);
    for name in ["connection_refused", "odd_ack", "admin_refused"] {
        eventually("the count of what was not written", LIMIT, async || {
            (lines(&node, name).1 > 0).then_some(())
        })
        .await;
        assert_eq!(lines(&node, name), expected, "{name}");
    }
    let unsaid = node.events("lines_suppressed");
    let about = |field: &str| unsaid.iter().filter(|line| !line[field].is_null()).count();
    assert_eq!((about("peer"), about("address")), (2, 1), "{unsaid:?}");
}
