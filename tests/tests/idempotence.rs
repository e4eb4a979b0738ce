//! A publish under a sequence that was used before is the same publish: on the same connection, on a
//! new one, and after the node was killed (promise P3).

use bytes::BytesMut;
use restante_client::protocol::admin::PeerPatch;
use restante_client::protocol::codec::put_message;
use restante_client::protocol::control::Control;
use restante_client::protocol::id::{MessageId, ProducerId};
use restante_client::protocol::message::Body;
use restante_client::protocol::producers::REFUSALS_MAX;
use restante_client::protocol::refusal::Code;
use restante_tests::harness::{Heard, Inbox, Raw, add_peer};
use restante_tests::scene;
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const PRODUCER: ProducerId = ProducerId(0x5eed_0000_0000_0000_0000_0000_0000_0001);

/// A connection of the producer that has declared its receivers: alias 0 and up.
async fn producer(addr: SocketAddr, receivers: &[&str]) -> (Raw, u64) {
    let (mut raw, welcome) = Raw::greeted(addr, Some(PRODUCER)).await;
    for (alias, name) in (0..).zip(receivers) {
        let name = name.parse().expect("a name");
        raw.control(&Control::Alias { alias, name }).await;
    }
    (raw, welcome.next_sequence)
}

async fn publish(raw: &mut Raw, sequence: u64, aliases: &[u32]) {
    let payload = format!("message {sequence}");
    let body = Body { payload: payload.as_bytes(), ..Body::default() };
    let mut frame = BytesMut::new();
    put_message(&mut frame, 0, sequence, aliases, &body);
    raw.say(&frame).await;
}

/// Outcomes of this many publishes, by sequence: the id, and who refused.
async fn outcomes(raw: &mut Raw, count: usize) -> BTreeMap<u64, (Option<MessageId>, Vec<Code>)> {
    let mut outcomes = BTreeMap::new();
    while outcomes.len() < count {
        match raw.hear().await {
            Heard::Confirm(confirm) => {
                for offset in 0..u64::from(confirm.count) {
                    let id = Some(confirm.first_id.plus(offset));
                    outcomes.insert(confirm.first_sequence + offset, (id, Vec::new()));
                }
            }
            Heard::Refuse(refuse) => {
                let codes = refuse.receivers.iter().map(|(_, code)| *code).collect();
                outcomes.insert(refuse.sequence, (refuse.id, codes));
            }
            Heard::Closed => panic!("closed with {} of {count} outcomes", outcomes.len()),
            _ => {}
        }
    }
    outcomes
}

#[tokio::test]
async fn a_repeated_publish_gets_its_recorded_outcome_also_after_a_kill() {
    let scene = scene!("repeat");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    add_peer(&client, "sink", "attach:", PeerPatch::default()).await;
    let sink = Inbox::attach(node.addr(), "sink").await;

    let (mut raw, first) = producer(node.addr(), &["sink", "nobody"]).await;
    assert_eq!(first, 1, "a new producer begins at 1");
    let aliases = |sequence: u64| if sequence.is_multiple_of(5) { &[0, 1][..] } else { &[0][..] };
    for sequence in 1..=20 {
        publish(&mut raw, sequence, aliases(sequence)).await;
    }
    let original = outcomes(&mut raw, 20).await;
    assert!(original.values().all(|(id, _)| id.is_some()));
    assert_eq!(original[&5].1, [Code::UnknownReceiver]);

    for sequence in 1..=20 {
        publish(&mut raw, sequence, aliases(sequence)).await;
    }
    assert_eq!(outcomes(&mut raw, 20).await, original, "on the same connection");

    let (mut raw, next) = producer(node.addr(), &["sink", "nobody"]).await;
    assert_eq!(next, 21);
    for sequence in 1..=20 {
        publish(&mut raw, sequence, aliases(sequence)).await;
    }
    assert_eq!(outcomes(&mut raw, 20).await, original, "on a new connection");

    node.kill();
    node.restart().await;
    let (mut raw, next) = producer(node.addr(), &["sink", "nobody"]).await;
    assert_eq!(next, 21);
    for sequence in 1..=21 {
        publish(&mut raw, sequence, aliases(sequence)).await;
    }
    let mut again = outcomes(&mut raw, 21).await;
    assert!(again.remove(&21).is_some_and(|(id, _)| id.is_some()));
    assert_eq!(again, original, "after a kill: the same ids, and the same receivers refused");

    sink.has(21, LIMIT).await;
    let texts: Vec<String> = (1..=21).map(|sequence| format!("message {sequence}")).collect();
    assert_eq!(sink.texts(), texts);
}

/// More of them than are remembered: each stands alone between others that all have accepted.
#[tokio::test]
async fn a_repeat_is_told_who_refused_it_also_where_that_is_not_remembered() {
    const MESSAGES: u64 = 2 * (REFUSALS_MAX as u64 + 40);
    let scene = scene!("forgotten");
    let node = scene.node().start().await;
    let client = node.client().await;
    add_peer(&client, "sink", "attach:", PeerPatch::default()).await;
    let aliases = |sequence: u64| if sequence.is_multiple_of(2) { &[0, 1][..] } else { &[0][..] };
    let mut answers = Vec::new();
    for _ in 0..2 {
        let (mut raw, _) = producer(node.addr(), &["sink", "nobody"]).await;
        for sequence in 1..=MESSAGES {
            publish(&mut raw, sequence, aliases(sequence)).await;
        }
        answers.push(outcomes(&mut raw, MESSAGES as usize).await);
    }
    assert_eq!(answers[0][&2].1, [Code::UnknownReceiver]);
    assert!(answers[0] == answers[1], "{:?} and {:?}", answers[0][&2], answers[1][&2]);
}

#[tokio::test]
async fn publishes_that_were_under_way_at_a_kill_are_stored_once() {
    const MESSAGES: u64 = 3_000;
    let scene = scene!("underway");
    let mut node = scene.node().start().await;
    let client = node.client().await;
    add_peer(&client, "sink", "attach:", PeerPatch::default()).await;
    let sink = Inbox::attach(node.addr(), "sink").await;
    let mut confirmed = BTreeMap::new();
    for round in 0..4 {
        let (mut raw, next) = producer(node.addr(), &["sink"]).await;
        assert!(next as usize > confirmed.len(), "what was confirmed is decided");
        for sequence in 1..=MESSAGES {
            publish(&mut raw, sequence, &[0]).await;
        }
        if round == 3 {
            confirmed.extend(outcomes(&mut raw, MESSAGES as usize).await);
            break;
        }
        // Some are confirmed, some are on their way.
        let known = outcomes(&mut raw, 1 + 500 * round).await;
        node.kill();
        for (sequence, outcome) in known {
            let earlier = confirmed.insert(sequence, outcome.clone());
            assert!(earlier.is_none_or(|earlier| earlier == outcome), "the same outcome as before");
        }
        node.restart().await;
    }
    sink.has(MESSAGES as usize, LIMIT).await;
    let seen = sink.close().await;
    let ids: HashSet<MessageId> = seen.iter().map(|seen| seen.id).collect();
    let texts: HashSet<&str> = seen.iter().map(|seen| &*seen.text).collect();
    assert_eq!((ids.len(), texts.len()), (MESSAGES as usize, MESSAGES as usize));
    let told: HashSet<MessageId> = confirmed.values().filter_map(|(id, _)| *id).collect();
    assert!(told == ids, "the ids the producer was told");
}
