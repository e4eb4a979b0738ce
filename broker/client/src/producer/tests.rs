//! Scripts for each way a publish can go, and random ones against a naive node.

use super::*;
use proptest::prelude::*;
use restante_protocol::codec::{Limits, Next, next_frame, put_message};
use restante_protocol::frame::Frame;
use restante_protocol::message::Body;
use std::collections::{BTreeMap, BTreeSet};

const BIG: Credit = Credit { messages: 1_000, bytes: 1 << 30 };

fn producer(messages: usize) -> Producer {
    Producer::new(BufferBounds { messages, bytes: 1 << 20 })
}

/// Publishes `payload` under receipt `receipt`.
fn push(producer: &mut Producer, receipt: u32, payload: &[u8]) -> u64 {
    let body = Body { payload, ..Body::default() };
    let bytes = 20 + body.encoded_len();
    producer.push(receipt, bytes, |sequence, out| put_message(out, 0, sequence, &[1], &body))
}

/// What goes out now: sequence, length and payload of each frame.
fn sent(producer: &mut Producer) -> Vec<(u64, u64, Vec<u8>)> {
    let mut out = BytesMut::new();
    producer.transmit(&mut out, usize::MAX);
    let mut frames = Vec::new();
    let mut at = 0;
    while at < out.len() {
        match next_frame(&out[at..], &Limits::default()).unwrap() {
            Next::Frame { frame: Frame::Publish(publish), consumed } => {
                let body = Body::parse(publish.body).unwrap();
                frames.push((publish.sequence, consumed as u64, body.payload.to_vec()));
                at += consumed;
            }
            other => panic!("not a publish: {other:?}"),
        }
    }
    frames
}

fn sequences(producer: &mut Producer) -> Vec<u64> {
    sent(producer).into_iter().map(|(sequence, _, _)| sequence).collect()
}

fn confirm(producer: &mut Producer, first: u64, count: u32) -> Result<Vec<u32>, Violation> {
    let mut receipts = Vec::new();
    producer.handle_confirm(first, count, MessageId(100), |receipt, _| receipts.push(receipt))?;
    Ok(receipts)
}

#[test]
fn sequences_begin_where_the_node_says() {
    let mut p = producer(8);
    p.handle_welcome(41, BIG, true).unwrap();
    assert_eq!(push(&mut p, 0, b"a"), 41);
    assert_eq!(push(&mut p, 1, b"b"), 42);
    assert_eq!(sequences(&mut p), [41, 42]);
    assert_eq!(sequences(&mut p), [] as [u64; 0], "each is sent once a connection");
}

#[test]
fn a_confirm_of_a_run_resolves_each_with_its_id() {
    let mut p = producer(8);
    p.handle_welcome(1, BIG, true).unwrap();
    for receipt in 10..13 {
        push(&mut p, receipt, b"x");
    }
    sequences(&mut p);
    let mut resolved = Vec::new();
    p.handle_confirm(1, 3, MessageId(100), |receipt, id| resolved.push((receipt, id.0))).unwrap();
    assert_eq!(resolved, [(10, 100), (11, 101), (12, 102)]);
    assert!(p.is_empty());
    assert_eq!(confirm(&mut p, 1, 3).unwrap(), [] as [u32; 0], "a repeat resolves nothing");
}

#[test]
fn an_outcome_for_what_was_not_sent_is_a_violation_and_changes_nothing() {
    let mut p = producer(8);
    p.handle_welcome(1, Credit { messages: 1, bytes: 1 << 20 }, true).unwrap();
    push(&mut p, 0, b"sent");
    push(&mut p, 1, b"held back by credit");
    assert_eq!(sequences(&mut p), [1]);
    let unknown = |sequence| Err(Violation::UnknownSequence { sequence });
    assert_eq!(confirm(&mut p, 2, 1), unknown(2).map(|()| Vec::new()));
    assert_eq!(confirm(&mut p, 1, 2), unknown(1).map(|()| Vec::new()));
    assert_eq!(p.handle_refuse(2), Err(Violation::UnknownSequence { sequence: 2 }));
    assert_eq!(p.unconfirmed(), 2);
    assert_eq!(confirm(&mut p, 1, 1).unwrap(), [0]);
}

#[test]
fn credit_in_messages_and_in_bytes_is_never_passed() {
    let mut p = producer(8);
    p.handle_welcome(1, Credit { messages: 2, bytes: 1 << 20 }, true).unwrap();
    for receipt in 0..5 {
        push(&mut p, receipt, b"0123456789");
    }
    let first = sent(&mut p);
    assert_eq!(first.len(), 2);
    p.handle_credit(Credit { messages: 100, bytes: 3 * first[0].1 });
    assert_eq!(sequences(&mut p), [3], "three frames' worth of bytes");
    p.handle_refuse(2).unwrap();
    assert_eq!(sequences(&mut p), [4], "a refusal gives its credit back");
    p.handle_credit(Credit::default());
    confirm(&mut p, 1, 1).unwrap();
    assert_eq!(sequences(&mut p), [] as [u64; 0]);
}

#[test]
fn after_a_reconnect_only_the_unresolved_are_sent_again_in_order() {
    let mut p = producer(8);
    p.handle_welcome(1, BIG, true).unwrap();
    for receipt in 0..4 {
        push(&mut p, receipt, &[receipt as u8]);
    }
    sequences(&mut p);
    assert_eq!(p.handle_refuse(2).unwrap(), Some(1));
    p.handle_disconnect();
    push(&mut p, 4, &[4]);
    p.handle_welcome(4, BIG, false).unwrap();
    let again: Vec<_> = sent(&mut p).into_iter().map(|(s, _, payload)| (s, payload)).collect();
    assert_eq!(again, [(1, vec![0]), (3, vec![2]), (4, vec![3]), (5, vec![4])]);
    assert_eq!(confirm(&mut p, 1, 5).unwrap(), [0, 2, 3, 4]);
}

#[test]
fn a_node_that_knows_more_than_was_sent_has_talked_to_someone_else() {
    let mut p = producer(8);
    p.handle_welcome(1, BIG, true).unwrap();
    push(&mut p, 0, b"mine");
    p.handle_disconnect();
    assert_eq!(p.handle_welcome(2, BIG, false), Ok(()));
    p.handle_disconnect();
    assert_eq!(p.handle_welcome(3, BIG, false), Err(IdentityShared { decided: 3, sent: 2 }));
}

#[test]
fn a_stopping_node_gets_nothing_more_and_its_successor_everything() {
    let mut p = producer(8);
    p.handle_welcome(1, BIG, true).unwrap();
    push(&mut p, 0, b"a");
    sequences(&mut p);
    p.hold();
    push(&mut p, 1, b"b");
    assert_eq!(sequences(&mut p), [] as [u64; 0]);
    p.handle_disconnect();
    p.handle_welcome(1, BIG, false).unwrap();
    assert_eq!(sequences(&mut p), [1, 2]);
}

#[test]
fn the_bounds_hold_and_an_empty_buffer_takes_any_frame() {
    let mut p = Producer::new(BufferBounds { messages: 2, bytes: 100 });
    p.handle_welcome(1, BIG, true).unwrap();
    assert!(p.has_room(5_000));
    push(&mut p, 0, b"a");
    assert!(p.has_room(10) && !p.has_room(100));
    push(&mut p, 1, b"b");
    assert!(!p.has_room(1));
    sequences(&mut p);
    p.handle_refuse(2).unwrap();
    assert!(!p.has_room(1), "what follows an unresolved publish is kept with it");
    confirm(&mut p, 1, 1).unwrap();
    assert!(p.has_room(5_000) && p.has_ample_room());
}

#[test]
fn chunks_are_given_back_and_large_frames_have_their_own() {
    let mut p = Producer::new(BufferBounds { messages: 1 << 20, bytes: 1 << 30 });
    p.handle_welcome(1, Credit { messages: u32::MAX, bytes: u64::MAX }, true).unwrap();
    let large = vec![7; 3 * CHUNK_BYTES];
    for round in 0..50u32 {
        for _ in 0..1_000 {
            push(&mut p, 0, &[0; 100]);
        }
        push(&mut p, 0, &large);
        let frames = sent(&mut p);
        assert_eq!(frames.len(), 1_001);
        assert_eq!(frames[1_000].2, large);
        let first = frames[0].0;
        assert_eq!(first, u64::from(round) * 1_001 + 1);
        confirm(&mut p, first, 1_001).unwrap();
        assert!(p.chunks.chunks.is_empty() && p.chunks.spare.len() <= SPARE_CHUNKS_MAX);
        assert!(p.chunks.spare.iter().all(|chunk| chunk.capacity() <= 2 * CHUNK_BYTES));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8),
    Transmit,
    /// The node decides some of what it has received, answering in order of receipt.
    Decide {
        count: u8,
        refuse: bool,
    },
    /// The node refuses one out of the middle.
    RefuseOne(u8),
    /// The node's last decisions are on their way when the connection is lost.
    Reconnect {
        decided_unheard: u8,
    },
    Credit {
        messages: u8,
        bytes: u16,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<u8>().prop_map(Step::Push),
        3 => Just(Step::Transmit),
        3 => (1u8..6, any::<bool>()).prop_map(|(count, refuse)| Step::Decide { count, refuse }),
        1 => any::<u8>().prop_map(Step::RefuseOne),
        1 => (0u8..4).prop_map(|decided_unheard| Step::Reconnect { decided_unheard }),
        1 => (0u8..9, any::<u16>()).prop_map(|(messages, bytes)| Step::Credit { messages, bytes }),
    ]
}

/// A node that remembers every decision, and what it knows of the connection.
struct Node {
    /// Whether it accepted, by sequence.
    decisions: BTreeMap<u64, bool>,
    payloads: BTreeMap<u64, Vec<u8>>,
    /// Received on this connection and not answered.
    waiting: BTreeMap<u64, u64>,
    credit: Credit,
    last_received: u64,
}

impl Node {
    fn receive(&mut self, producer: &mut Producer) {
        for (sequence, bytes, payload) in sent(producer) {
            assert!(sequence > self.last_received, "ascending on each connection");
            self.last_received = sequence;
            let before = self.payloads.insert(sequence, payload.clone());
            assert!(before.is_none_or(|before| before == payload), "a repeat is byte for byte");
            self.waiting.insert(sequence, bytes);
        }
    }

    /// Credit is checked where it was granted: after each transmit.
    fn check_credit(&self) {
        assert!(self.waiting.len() <= self.credit.messages as usize);
        assert!(self.waiting.values().sum::<u64>() <= self.credit.bytes);
    }

    /// Answers one; the first decision stands.
    fn answer(
        &mut self,
        producer: &mut Producer,
        sequence: u64,
        accept: bool,
        heard: &mut BTreeMap<u32, bool>,
    ) {
        self.waiting.remove(&sequence);
        let accepted = *self.decisions.entry(sequence).or_insert(accept);
        let mut hear = |receipt, accepted| {
            assert!(heard.insert(receipt, accepted).is_none(), "{receipt} resolved twice");
        };
        if accepted {
            let id = MessageId(u128::from(sequence));
            producer.handle_confirm(sequence, 1, id, |receipt, _| hear(receipt, true)).unwrap();
        } else if let Some(receipt) = producer.handle_refuse(sequence).unwrap() {
            hear(receipt, false);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn every_publish_resolves_once_whatever_happens(steps in prop::collection::vec(step(), 1..120)) {
        let generous = Credit { messages: 4, bytes: 400 };
        let mut p = Producer::new(BufferBounds { messages: 16, bytes: 2_000 });
        p.handle_welcome(1, generous, true).unwrap();
        let mut node = Node {
            decisions: BTreeMap::new(), payloads: BTreeMap::new(), waiting: BTreeMap::new(),
            credit: generous, last_received: 0,
        };
        let mut pushed = BTreeSet::new();
        let mut heard = BTreeMap::new();
        for step in steps {
            match step {
                Step::Push(len) if p.has_room(21 + len as usize) => {
                    let receipt = pushed.len() as u32;
                    let sequence = push(&mut p, receipt, &vec![receipt as u8; len as usize]);
                    prop_assert_eq!(sequence, u64::from(receipt) + 1);
                    pushed.insert(receipt);
                }
                Step::Push(_) => {}
                Step::Transmit => {
                    let before = node.waiting.len();
                    node.receive(&mut p);
                    if node.waiting.len() > before {
                        node.check_credit();
                    }
                }
                Step::Decide { count, refuse } => {
                    for sequence in node.waiting.keys().copied().take(count as usize).collect::<Vec<_>>() {
                        node.answer(&mut p, sequence, !refuse, &mut heard);
                    }
                }
                Step::RefuseOne(which) => {
                    let waiting: Vec<_> = node.waiting.keys().copied().collect();
                    if !waiting.is_empty() {
                        node.answer(&mut p, waiting[which as usize % waiting.len()], false, &mut heard);
                    }
                }
                Step::Reconnect { decided_unheard } => {
                    for sequence in node.waiting.keys().take(decided_unheard as usize) {
                        node.decisions.entry(*sequence).or_insert(true);
                    }
                    node.waiting.clear();
                    node.last_received = 0;
                    node.credit = generous;
                    p.handle_disconnect();
                    let next = (1..).find(|s| !node.decisions.contains_key(s)).unwrap();
                    p.handle_welcome(next, generous, false).unwrap();
                }
                Step::Credit { messages, bytes } => {
                    node.credit = Credit { messages: messages.into(), bytes: bytes.into() };
                    p.handle_credit(node.credit);
                }
            }
        }
        node.credit = BIG;
        p.handle_credit(BIG);
        node.receive(&mut p);
        for sequence in node.waiting.keys().copied().collect::<Vec<_>>() {
            node.answer(&mut p, sequence, true, &mut heard);
        }
        prop_assert!(p.is_empty());
        prop_assert_eq!(heard.len(), pushed.len());
        for (receipt, accepted) in &heard {
            prop_assert_eq!(node.decisions.get(&(u64::from(*receipt) + 1)), Some(accepted));
        }
    }
}
