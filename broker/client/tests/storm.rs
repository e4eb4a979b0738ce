//! Thousands of messages while the node cuts connections at random: every publish has one outcome,
//! the one the node decided first; every delivery is acked in the end.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod node;

use node::{FakeNode, Heard, LONG, Peer, soon, welcome};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use restante_client::protocol::control::{Control, Credit, Welcome};
use restante_client::protocol::message::Body;
use restante_client::protocol::refusal::Code;
use restante_client::{
    AttachOptions, BufferBounds, Client, Publish, PublishError, Reconnect, Settled,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const QUICKLY: Reconnect = Reconnect {
    wait_min: Duration::from_millis(1),
    wait_max: Duration::from_millis(2),
    attempts_max: None,
};

/// What a node remembers of one producer across connections.
#[derive(Default)]
struct Memory {
    /// Whether it accepted, and what, by sequence.
    decided: BTreeMap<u64, (bool, String)>,
    connections: u32,
}

impl Memory {
    /// Serves one connection and cuts it after a while, with or without telling what it decided.
    async fn serve(&mut self, node: &FakeNode, random: &mut StdRng) {
        let (mut peer, _) = node.hello().await;
        self.connections += 1;
        let next_sequence = (1..).find(|s| !self.decided.contains_key(s)).unwrap();
        let credit = Credit { messages: random.random_range(1..200), bytes: 1 << 20 };
        peer.say(&Control::Welcome(Welcome { next_sequence, credit, ..welcome() })).await;
        let mut last = 0;
        let mut untold = Vec::new();
        for _ in 0..random.random_range(1..600) {
            let heard = loop {
                tokio::select! {
                    biased;
                    heard = peer.heard() => break heard,
                    // The producer may have nothing more to say before it hears something.
                    () = tokio::time::sleep(Duration::from_millis(5)) => {
                        self.tell(&mut peer, &mut untold).await;
                    }
                }
            };
            let Heard::Publish { sequence, payload, .. } = heard else {
                assert_eq!(heard, Heard::Closed);
                return;
            };
            assert!(sequence > last, "ascending on a connection");
            last = sequence;
            untold.push(sequence);
            assert!(untold.len() <= credit.messages as usize, "within credit");
            let accept = random.random_range(0..50) > 0;
            let known = self.decided.entry(sequence).or_insert((accept, payload.clone()));
            assert_eq!(known.1, payload, "a repeat says the same");
            if untold.len() == credit.messages as usize || random.random_range(0..8) == 0 {
                self.tell(&mut peer, &mut untold).await;
            }
        }
    }

    async fn tell(&self, peer: &mut Peer, untold: &mut Vec<u64>) {
        for sequence in untold.drain(..) {
            if self.decided[&sequence].0 {
                peer.confirm(sequence, 1).await;
            } else {
                peer.refuse(sequence, false, Code::DiskFull, &[]).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_publish_has_the_one_outcome_the_node_decided() {
    const PRODUCERS: usize = 4;
    const EACH: usize = 2_500;
    let mut random = StdRng::seed_from_u64(7);
    let node = FakeNode::start().await;
    let addr = node.addr.clone();
    let (done, mut is_done) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        let mut memory = Memory::default();
        loop {
            tokio::select! {
                biased;
                _ = &mut is_done => return memory,
                () = memory.serve(&node, &mut random) => {}
            }
        }
    });
    let client = Client::builder(addr)
        .reconnect(QUICKLY)
        .buffer(BufferBounds { messages: 300, bytes: 1 << 20 })
        .connect()
        .await
        .unwrap();
    let publishing = (0..PRODUCERS).map(|producer| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut receipts = Vec::new();
            for number in 0..EACH {
                let payload = format!("{producer}/{number}");
                let publish = Publish::to(["a"]).payload(payload.clone());
                let receipt = client.publish(publish).await.unwrap();
                receipts.push((receipt.sequence(), payload, receipt));
            }
            let mut outcomes = Vec::new();
            for (sequence, payload, receipt) in receipts {
                let accepted = match receipt.within(LONG).await {
                    Ok(confirmed) => {
                        assert_eq!(confirmed.id, node::id(sequence));
                        true
                    }
                    Err(PublishError::Refused(refused)) => {
                        assert_eq!(refused.code, Code::DiskFull);
                        false
                    }
                    Err(other) => panic!("{other}"),
                };
                outcomes.push((sequence, accepted, payload));
            }
            outcomes
        })
    });
    let mut outcomes = BTreeMap::new();
    for task in publishing.collect::<Vec<_>>() {
        let mut last = 0;
        for (sequence, accepted, payload) in task.await.unwrap() {
            assert!(sequence > last, "a task's publishes keep their order");
            last = sequence;
            outcomes.insert(sequence, (accepted, payload));
        }
    }
    done.send(()).unwrap();
    let memory = soon(serving).await.unwrap();
    assert_eq!(outcomes.len(), PRODUCERS * EACH);
    assert!(memory.connections > 10, "only {} connections", memory.connections);
    assert_eq!(outcomes, memory.decided);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_delivery_is_acked_in_the_end() {
    const MESSAGES: u64 = 20_000;
    let mut random = StdRng::seed_from_u64(11);
    let node = FakeNode::start().await;
    let addr = node.addr.clone();
    let serving = tokio::spawn(async move {
        let mut waiting: BTreeSet<u64> = (1..=MESSAGES).collect();
        let mut connections = 0;
        while !waiting.is_empty() {
            connections += 1;
            let mut peer = node.accept(1).await;
            peer.attach().await;
            deliver_some(&mut peer, &mut waiting, random.random_range(1..400)).await;
        }
        connections
    });
    let client = Client::builder(addr).reconnect(QUICKLY).connect().await.unwrap();
    let mut subscription = client.attach("a", AttachOptions::default()).await.unwrap();
    let mut seen = BTreeSet::new();
    let mut late = 0;
    let receiving = async {
        while let Some(delivery) = subscription.next().await {
            let delivery = delivery.unwrap();
            seen.insert(delivery.payload.clone());
            late += u32::from(delivery.ack() == Settled::TooLate);
        }
    };
    let connections = tokio::select! {
        connections = serving => connections.unwrap(),
        () = receiving => panic!("the client ended"),
        () = tokio::time::sleep(3 * LONG) => panic!("some are never acked"),
    };
    assert!(connections > 10, "only {connections} connections, {late} late acks");
    assert_eq!(seen.len() as u64, MESSAGES);
}

/// Delivers in order what waits, up to a window, until so many are acked.
async fn deliver_some(peer: &mut Peer, waiting: &mut BTreeSet<u64>, count: usize) {
    let window: Vec<u64> = waiting.iter().copied().take(500).collect();
    for (tag, number) in (1..).zip(&window) {
        let payload = number.to_string();
        let body = Body { payload: payload.as_bytes(), ..Body::default() };
        peer.put_deliver(0, tag, 1, &body);
    }
    peer.send().await;
    let mut acked = 0;
    while acked < count.min(window.len()) {
        match peer.heard().await {
            Heard::Ack(0, ranges) => {
                for tag in ranges.into_iter().flat_map(|(first, last)| first..=last) {
                    assert!(waiting.remove(&window[tag as usize - 1]), "acked once");
                    acked += 1;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}
