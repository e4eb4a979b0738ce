//! A journal without threads on a simulated disk, with a known history: what the damage tests damage.

use super::super::recovery::{self, Engine};
use super::super::storage::Disk;
use super::super::storage::sim::SimDisk;
use super::super::{OpenError, Options};
use super::{A, B, batch_of, push_admin, small};
use bytes::{Bytes, BytesMut};
use restante_actors::journal::{Backlog, Batch, Lane, Read, ReadError, Settle};
use restante_protocol::id::{MessageNumber, PeerId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module.
pub(super) struct Rig {
    pub(super) disk: SimDisk,
    pub(super) engine: Engine,
}

/// What is open for one peer, and what could not be read: number and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lane1 {
    pub(super) bodies: BTreeMap<MessageNumber, Vec<u8>>,
    pub(super) damaged: Vec<(MessageNumber, String)>,
}

/// Bytes of its disk.
pub(super) const CAPACITY: u64 = 4 << 20;

pub(super) fn options() -> Options {
    Options { ready_segments: 2, checkpoint_bytes: 1 << 30, ..small(4 * 1024) }
}

impl Rig {
    pub(super) fn open(disk: &SimDisk) -> Result<Rig, OpenError> {
        let engine = recovery::open(Arc::new(disk.clone()), options())?;
        Ok(Rig { disk: disk.clone(), engine })
    }

    pub(super) fn new() -> Rig {
        Rig::open(&SimDisk::new(CAPACITY)).expect("an empty disk")
    }

    /// A log of several segments with something open for A and B in each, checkpointed in its middle
    /// and not closed. With `reclaimed`, its first segments are gone again.
    pub(super) fn with_history(reclaimed: bool) -> Rig {
        let mut rig = Rig::new();
        rig.append(50);
        if reclaimed {
            let last = rig.engine.shared.next_number() - 1;
            for peer in [A, B] {
                let numbers: Vec<_> = rig.lane(peer).bodies.into_keys().collect();
                rig.engine.shared.settle(Settle::acked(peer, 5, last, numbers));
            }
        }
        rig.append(20);
        rig.admin(b"before");
        rig.checkpoint(b"state");
        rig.admin(b"after");
        rig.append(60);
        rig.engine.writer.mark();
        let first = rig.engine.shared.state.lock().segments[0].first;
        assert_eq!(first > 1, reclaimed);
        assert!(rig.segments().len() > 3);
        rig
    }

    /// Messages of about 100 bytes to A, to B and to both in turn, each a commit of its own.
    pub(super) fn append(&mut self, count: u64) {
        for _ in 0..count {
            let next = self.engine.shared.next_number();
            let receivers: &[u32] = [&[A.0][..], &[B.0], &[A.0, B.0]][(next % 3) as usize];
            let body = [&[0][..], format!("message {next:>90}").as_bytes()].concat();
            self.batch(batch_of(next, receivers, &[&body]));
        }
    }

    pub(super) fn admin(&mut self, body: &[u8]) {
        let mut batch = Batch { bytes: BytesMut::new(), records: Vec::new() };
        push_admin(&mut batch, body);
        self.batch(batch);
    }

    fn batch(&mut self, batch: Batch) {
        self.engine.shared.append(batch).expect("room");
        self.write();
    }

    /// The writer's turn, then the keeper's.
    pub(super) fn write(&mut self) {
        let mut items = Vec::new();
        self.engine.shared.take_work(&mut items);
        self.engine.writer.turn(&mut items);
        self.engine.keeper.turn();
    }

    pub(super) fn checkpoint(&mut self, state: &'static [u8]) {
        self.engine.shared.checkpoint(Bytes::from_static(state));
        self.write();
    }

    /// Everything that can be read for a peer, and what cannot.
    pub(super) fn lane(&self, peer: PeerId) -> Lane1 {
        let (mut lane, mut after, mut tries) = (Lane1::default(), 0, 0);
        loop {
            let (through, bytes_max, messages_max) = (u64::MAX, 1 << 20, 7);
            let read = Read { peer, lane: Lane::Open, after, through, bytes_max, messages_max };
            match self.engine.shared.next(read) {
                Ok(page) if page.messages.is_empty() => return lane,
                Ok(page) => {
                    after = page.through;
                    let bodies = page.messages.into_iter().map(|m| (m.number, m.body.to_vec()));
                    lane.bodies.extend(bodies);
                }
                Err(ReadError::Damaged { number, detail }) => {
                    assert!(number > after, "reading goes on");
                    lane.damaged.push((number, detail));
                    after = number;
                }
                // What cannot be read is tried again, until it counts as damaged.
                Err(ReadError::Unavailable(_)) if tries < 100 => tries += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(super) fn backlog(&self, peer: PeerId) -> Backlog {
        self.engine.shared.state.lock().backlog(peer)
    }

    /// Both lanes.
    pub(super) fn lanes(&self) -> [Lane1; 2] {
        [self.lane(A), self.lane(B)]
    }

    /// Names of the segments in use, in order, the one that is written to last.
    pub(super) fn segments(&self) -> Vec<String> {
        let state = self.engine.shared.state.lock();
        let paths = state.segments.iter().map(|s| super::super::shared::Shared::segment_path(s.id));
        paths.collect()
    }

    /// A disk of its own with what is durable here, as after a crash.
    pub(super) fn crashed(&self) -> SimDisk {
        self.disk.copy()
    }

    /// What recovery had to say.
    pub(super) fn said(&self) -> String {
        self.engine.recovered.findings.join("\n")
    }
}

/// Every file of a disk.
pub(super) fn names(disk: &SimDisk) -> Vec<String> {
    let list = |dir: &str| {
        let names = Disk::list(disk, dir).expect("a directory").into_iter();
        names.map(|name| format!("{dir}/{name}")).collect::<Vec<_>>()
    };
    let mut names = ["", "segments", "history", "quarantine"].map(list).concat();
    names.sort();
    names
}

/// Every file of a disk, and what is in it.
pub(super) fn contents(disk: &SimDisk) -> BTreeMap<String, Option<Vec<u8>>> {
    let file = |name: String| {
        let name = name.trim_start_matches('/').to_owned();
        let bytes = disk.bytes_of(&name);
        (name, bytes)
    };
    names(disk).into_iter().map(file).collect()
}
