//! Peers of which nothing is stored any more are not remembered; what a checkpoint costs follows what
//! there is, not what there ever was.

use super::super::Options;
use super::super::storage::sim::{Dice, SimDisk};
use super::model::World;
use super::{batch_of, small};
use bytes::Bytes;
use restante_actors::journal::{Lane, Read, Settle};
use restante_protocol::id::{MessageNumber, PeerId};
use std::sync::atomic::Ordering;

fn options() -> Options {
    Options { history_bytes_max: 2 * 1024, ready_segments: 2, ..small(4 * 1024) }
}

fn publish(world: &mut World, peer: u32) -> Vec<MessageNumber> {
    let bodies: [&[u8]; 4] = [&[0; 200]; 4];
    let (_, first) = world.engine.shared.append(batch_of(1, &[peer], &bodies)).expect("room");
    world.write();
    (first..first + 4).collect()
}

fn open(world: &World, peer: u32) -> Vec<MessageNumber> {
    let (peer, lane, after, through) = (PeerId(peer), Lane::Open, 0, u64::MAX);
    let read = Read { peer, lane, after, through, bytes_max: 1 << 20, messages_max: 1_000 };
    let page = world.engine.shared.next(read).expect("it reads");
    page.messages.iter().map(|message| message.number).collect()
}

#[test]
fn peers_that_have_nothing_stored_leave_the_state_and_the_checkpoint() {
    let mut world = World::new(SimDisk::new(1 << 22), options()).expect("opens");
    let kept = publish(&mut world, 1_000);
    settle(&world, 1_000, &kept[..3]);
    for peer in 1..=400 {
        let numbers = publish(&mut world, peer);
        settle(&world, peer, &numbers);
        // The one that stays goes on as well, so that the log's front can go.
        let numbers = open(&world, 1_000);
        let more = publish(&mut world, 1_000);
        settle(&world, 1_000, &numbers);
        assert_eq!(open(&world, 1_000), more);
        world.round();
    }
    let known = |world: &World| world.engine.shared.state.lock().peers.len();
    assert!(known(&world) < 60, "{} peers of 401 are known", known(&world));
    let checkpoint = world.engine.shared.checkpoint_bytes.load(Ordering::Relaxed);
    assert!(checkpoint < 4_096, "{checkpoint} bytes for one peer with four messages");
    let waiting = open(&world, 1_000);
    assert_eq!(waiting.len(), 4);

    // One that was forgotten is a peer like any other, before and after a crash.
    let again = publish(&mut world, 3);
    for seed in 0..3 {
        assert_eq!(open(&world, 1_000), waiting);
        assert_eq!((open(&world, 3), open(&world, 4)), (again.clone(), Vec::new()));
        let disk = world.disk.after_crash(None, &mut Dice(seed));
        world = World::new(disk, options()).expect("opens");
        assert!(known(&world) < 60);
    }
    settle(&world, 3, &again);
    assert_eq!(open(&world, 3), Vec::<MessageNumber>::new());
}

fn settle(world: &World, peer: u32, numbers: &[MessageNumber]) {
    let floor = numbers.last().copied().unwrap_or(0);
    world.engine.shared.settle(Settle::acked(PeerId(peer), 5, floor, numbers.to_vec()));
}

#[test]
fn however_large_a_checkpoint_is_the_log_behind_it_is_bounded() {
    let options = Options { segment_bytes: 16 * 1024, checkpoint_bytes: 16 * 1024, ..options() };
    let mut world = World::new(SimDisk::new(1 << 24), options.clone()).expect("opens");
    let state = Bytes::from(vec![7; 40 * 1024]);
    let (mut most, mut checkpoints) = (0, 0);
    for _ in 0..2_000 {
        // Nothing is settled, or segments that wait to be given back would ask for checkpoints.
        publish(&mut world, 1);
        world.engine.keeper.turn();
        world.write();
        let behind = world.engine.shared.since_checkpoint.load(Ordering::Relaxed);
        most = most.max(behind);
        if std::mem::take(&mut world.checkpoint_due) {
            checkpoints += 1;
            world.engine.shared.checkpoint(state.clone());
            world.write();
            world.engine.keeper.turn();
        }
    }
    // Both copies of it, or four times what is asked for, whichever is more; and what was under way.
    let bound = (4 * options.checkpoint_bytes).max(2 * 41 * 1024) + options.segment_bytes;
    assert!(most <= bound, "{most} bytes of log behind a checkpoint, {bound} may be");
    assert!(checkpoints > 3, "{checkpoints}");
}
