//! Backups against everything that gives files back meanwhile: what one names is there until it ends.

use super::super::backup::{restore, take};
use super::super::format::is_cold;
use super::super::recovery;
use super::super::storage::over::{Over, OverDisk};
use super::super::storage::sim::SimDisk;
use super::super::storage::{DiskFile, RealDisk};
use super::super::writer::Writer;
use super::super::{Options, checkpoint};
use super::model::World;
use super::rig::names;
use super::{A, B, batch_of, small};
use bytes::Bytes;
use parking_lot::Mutex;
use restante_actors::journal::{Lane, Read, Settle};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::refusal::Code;
use std::io;
use std::sync::Arc;
use std::time::Duration;

fn options() -> Options {
    Options { ready_segments: 2, spare_segments_max: 2, ..small(16 * 1024) }
}

fn world(options: Options) -> World {
    World::new(SimDisk::new(1 << 26), options).unwrap()
}

/// Many messages for A, all acked, with one in eleven for B that is not. Returns those.
fn mixed(world: &mut World) -> Vec<MessageNumber> {
    let mut waiting = Vec::new();
    for round in 0..150 {
        let (peer, count) = if round % 2 == 0 { (A, 20) } else { (B, 2) };
        let body = [0; 100];
        let batch = batch_of(1, &[peer.0], &vec![&body[..]; count]);
        let (_, first) = world.engine.shared.append(batch).ok().unwrap();
        world.write();
        let numbers: Vec<_> = (first..first + count as u64).collect();
        if peer == B {
            waiting.extend(numbers);
        } else {
            let floor = first + count as u64 - 1;
            world.engine.shared.settle(Settle::acked(A, 5, floor, numbers));
        }
    }
    waiting
}

/// All a keeper can do: indexes, checkpoints, reclaiming, compacting.
fn tidy_up(world: &mut World) {
    for _ in 0..4 {
        world.checkpoint();
        world.engine.keeper.turn();
        world.compact();
    }
}

fn lane(engine: &recovery::Engine, peer: PeerId) -> Vec<MessageNumber> {
    let (mut after, mut all) = (0, Vec::new());
    loop {
        let (lane, through, bytes_max, messages_max) = (Lane::Open, u64::MAX, 1 << 20, 100);
        let read = Read { peer, lane, after, through, bytes_max, messages_max };
        let page = engine.shared.next(read).unwrap();
        if page.messages.is_empty() {
            return all;
        }
        after = page.through;
        all.extend(page.messages.iter().map(|stored| stored.number));
    }
}

#[test]
fn nothing_goes_while_a_backup_is_taken_and_all_of_it_after() {
    let mut world = world(options());
    mixed(&mut world);
    tidy_up(&mut world);
    let before: Vec<String> =
        names(&world.disk).into_iter().filter(|name| !name.ends_with(".spare")).collect();
    assert!(before.iter().any(|name| name.starts_with("history/")), "{before:?}");
    let shared = Arc::clone(&world.engine.shared);
    let pin = shared.pins.pin().expect("nothing is pinned");
    assert!(shared.pins.pin().is_none(), "one at a time");
    // Everything is settled, old and compacted, and checkpoints say so.
    mixed(&mut world);
    tidy_up(&mut world);
    let waiting = lane(&world.engine, B);
    let floor = *waiting.last().unwrap();
    shared.settle(Settle::acked(B, 5, floor, waiting));
    shared.pool.lock().history.iter_mut().for_each(|note| note.kept_ms = 0);
    tidy_up(&mut world);
    let now = names(&world.disk);
    let gone: Vec<_> = before.iter().filter(|name| !now.contains(name)).collect();
    assert!(gone.is_empty(), "{gone:?} went while a backup could name them");
    drop(pin);
    tidy_up(&mut world);
    let now = names(&world.disk);
    let stayed = before.iter().filter(|name| name.ends_with(".seg") && now.contains(name)).count();
    assert!(stayed <= 1, "{stayed} segments are never given back");
    assert!(world.engine.shared.pool.lock().retired.is_empty());
}

#[test]
fn a_backup_between_a_compaction_and_its_checkpoint_has_what_was_compacted() {
    let mut world = world(options());
    let waiting = mixed(&mut world);
    world.checkpoint();
    world.engine.keeper.turn();
    world.engine.keeper.eager = true;
    world.engine.keeper.compact().unwrap();
    assert!(
        world.engine.shared.state.lock().segments.iter().any(|segment| is_cold(segment.id)),
        "nothing was compacted"
    );
    let dir = tempfile::tempdir().unwrap();
    let (backup, data) = (dir.path().join("backup"), dir.path().join("data"));
    take(&world.engine.shared, &backup).unwrap();
    let bytes = std::fs::read(backup.join("checkpoint")).unwrap();
    let (_, snapshot, _) = checkpoint::decode(&bytes).expect("a sound checkpoint");
    assert!(snapshot.segments.iter().all(|note| !is_cold(note.id)), "it names the sources");
    let manifest = std::fs::read(backup.join("manifest.json")).unwrap();
    let manifest: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&manifest).unwrap();
    for member in manifest.keys() {
        let row = format!("| `{member}` |");
        assert!(include_str!("../../FORMAT.md").contains(&row), "FORMAT.md does not tell {member}");
    }
    restore(&backup, &data).unwrap();
    let engine = recovery::open(Arc::new(RealDisk::new(&data)), options()).unwrap();
    assert_eq!(engine.recovered.findings, [""; 0]);
    assert_eq!(lane(&engine, B), waiting);
}

type Then = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// Something is done right after the second copy of the checkpoint has been read.
struct Interrupted(Then);

impl Over for Interrupted {
    fn of_file(&self, path: &str, _created: bool) -> io::Result<Option<Self>> {
        Ok((path == "checkpoint.copy").then(|| Interrupted(Arc::clone(&self.0))))
    }

    fn read_at(
        &self,
        below: &dyn DiskFile,
        offset: u64,
        len: usize,
        into: &mut Vec<u8>,
    ) -> io::Result<usize> {
        let read = below.read_at(offset, len, into);
        let then = self.0.lock().take();
        if let Some(then) = then {
            then();
        }
        read
    }
}

/// The checkpoint that is copied was taken before a segment was sealed; while its copies are written,
/// the next one covers that segment, which is compacted then.
#[test]
fn a_checkpoint_that_comes_while_a_backup_begins_costs_it_no_message() {
    let then = Then::default();
    let disk = Arc::new(SimDisk::new(1 << 26));
    let disk = OverDisk { disk, over: Interrupted(Arc::clone(&then)) };
    let engine = recovery::open(Arc::new(disk), options()).unwrap();
    let recovery::Engine { shared, mut writer, mut keeper, .. } = engine;
    let write = |writer: &mut Writer| {
        let mut items = Vec::new();
        shared.take_work(&mut items);
        writer.turn(&mut items);
    };
    shared.checkpoint(Bytes::from_static(b"first"));
    write(&mut writer);
    keeper.turn();
    let mut waiting = Vec::new();
    for round in 0..150 {
        let (peer, count) = if round % 2 == 0 { (A, 20) } else { (B, 2) };
        let (_, first) =
            shared.append(batch_of(1, &[peer.0], &vec![&[0; 100][..]; count])).ok().unwrap();
        write(&mut writer);
        let numbers: Vec<_> = (first..first + count as u64).collect();
        match peer {
            A => shared.settle(Settle::acked(A, 5, first + count as u64 - 1, numbers)),
            _ => waiting.extend(numbers),
        }
        keeper.turn();
    }
    let busy = Arc::clone(&shared);
    *then.lock() = Some(Box::new(move || {
        busy.checkpoint(Bytes::from_static(b"second"));
        let mut items = Vec::new();
        busy.take_work(&mut items);
        writer.turn(&mut items);
        keeper.eager = true;
        keeper.turn();
        let state = busy.state.lock();
        assert!(state.segments.iter().any(|s| is_cold(s.id)), "nothing was compacted");
    }));
    let dir = tempfile::tempdir().unwrap();
    let (backup, data) = (dir.path().join("backup"), dir.path().join("data"));
    take(&shared, &backup).unwrap();
    assert!(then.lock().is_none(), "nothing came in between");
    restore(&backup, &data).unwrap();
    let engine = recovery::open(Arc::new(RealDisk::new(&data)), options()).unwrap();
    assert_eq!(engine.recovered.findings, [""; 0]);
    assert_eq!(engine.recovered.checkpoint.as_deref(), Some(&b"second"[..]));
    assert_eq!(lane(&engine, B), waiting);
}

#[test]
fn a_backup_that_holds_back_too_much_or_takes_too_long_is_given_up_by_name() {
    let bounds = [
        (Options { backup_held_bytes_max: 0, ..options() }, "held back"),
        (Options { backup_duration_max: Duration::ZERO, ..options() }, "seconds"),
    ];
    for (options, why) in bounds {
        let mut world = world(options);
        mixed(&mut world);
        assert!(world.engine.shared.state.lock().dead == 0);
        world.compact();
        world.engine.shared.settle(Settle::acked(B, 5, u64::MAX >> 20, lane(&world.engine, B)));
        let dir = tempfile::tempdir().unwrap();
        let refused = take(&world.engine.shared, &dir.path().join("backup")).unwrap_err();
        assert_eq!(refused.code, Code::LimitReached, "{refused}");
        assert!(refused.to_string().contains(why), "{refused}");
        assert!(!world.engine.shared.pins.any(), "the pin has ended");
        assert!(!dir.path().join("backup/manifest.json").exists());
    }
}
