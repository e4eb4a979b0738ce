//! The journal as the node uses it: on a real disk, with its threads.

use super::super::format::write_version;
use super::super::recovery::{self, Engine};
use super::super::storage::RealDisk;
use super::super::{OpenError, open};
use super::{A, B, Draft, batch_of, push_admin, push_message, small};
use bytes::Bytes;
use restante_actors::journal::{
    Completion, End, Ended, Journal, Lane, LookupError, Opened, Page, Read, Settle, Ticket,
};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{Outcome, ParkRecord, SettleDetail};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc::UnboundedReceiver;

fn opened(dir: &Path) -> Opened {
    open(dir, small(64 * 1024)).unwrap()
}

fn durable(completions: &mut UnboundedReceiver<Completion>, ticket: Ticket) -> Bytes {
    loop {
        let completion = completions.blocking_recv().unwrap();
        match completion.end {
            End::Durable(bytes) if completion.ticket == ticket => return bytes,
            End::Durable(_) | End::CheckpointDue | End::Flushed(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn flushed(opened: &mut Opened, token: u64) {
    opened.journal.flush(token);
    loop {
        match opened.completions.blocking_recv().unwrap().end {
            End::Flushed(told) if told == token => return,
            End::Durable(_) | End::CheckpointDue | End::Flushed(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn read(journal: &dyn Journal, peer: PeerId, lane: Lane, after: MessageNumber) -> Page {
    let (through, bytes_max, messages_max) = (u64::MAX, 1 << 20, 1_000);
    let read = Read { peer, lane, after, through, bytes_max, messages_max };
    futures_util::FutureExt::now_or_never(journal.next(read))
        .unwrap_or_else(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(journal.next(read))
        })
        .unwrap()
}

fn numbers(page: &Page) -> Vec<MessageNumber> {
    page.messages.iter().map(|stored| stored.number).collect()
}

#[test]
fn what_was_confirmed_is_there_after_a_close_and_after_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut first_epoch = 0;
    let mut all = Vec::new();
    for round in 0..3u64 {
        let mut open = opened(dir.path());
        assert!(open.recovered.findings.is_empty(), "{:?}", open.recovered.findings);
        assert!(open.recovered.epoch > first_epoch);
        first_epoch = open.recovered.epoch;
        assert_eq!(numbers(&read(&*open.journal, A, Lane::Open, 0)), all);
        let (ticket, first) =
            open.journal.append(batch_of(round, &[1, 2], &[b"\0one", b"\0two"])).ok().unwrap();
        let bytes = durable(&mut open.completions, ticket);
        assert!(bytes.ends_with(b"two"));
        all.extend([first, first + 1]);
        let page = read(&*open.journal, A, Lane::Open, 0);
        assert_eq!(numbers(&page), all);
        assert_eq!(&page.messages.last().unwrap().body[..], b"\0two");
        if round == 1 {
            open.journal.close();
        }
    }
}

#[test]
fn settled_and_parked_messages_do_not_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut open = opened(dir.path());
    let bodies: Vec<&[u8]> = vec![b"\0body"; 10];
    let (ticket, first) = open.journal.append(batch_of(1, &[1, 2], &bodies)).ok().unwrap();
    durable(&mut open.completions, ticket);
    assert_eq!(open.journal.backlog(A).messages, 10);
    assert_eq!(open.journal.backlog(A).bytes, 50);
    open.journal.settle(Settle::acked(A, 5, first + 1, vec![first, first + 1, first + 4]));
    let park =
        ParkRecord { peer: A, number: first + 2, at_ms: 6, attempts: 9, reason: "no".to_owned() };
    open.journal.park(park.clone());
    let mut settle = Settle::acked(B, 7, 0, vec![first + 9]);
    settle.record.details =
        vec![SettleDetail { number: first + 9, attempts: 2, value: b"yes".to_vec() }];
    open.journal.settle(settle);
    flushed(&mut open, 1);
    for round in 0..3 {
        let page = read(&*open.journal, A, Lane::Open, 0);
        let expected = [3, 5, 6, 7, 8, 9].map(|n| first + n);
        assert_eq!(numbers(&page), expected, "round {round}");
        assert_eq!(numbers(&read(&*open.journal, A, Lane::Parked, 0)), [first + 2]);
        let backlog = open.journal.backlog(A);
        assert_eq!((backlog.messages, backlog.parked, backlog.floor), (6, 1, first + 1));
        assert_eq!(backlog.newest, first + 9);
        assert_eq!(open.journal.backlog(B).messages, 9);
        check_lives(&open, first, &park);
        if round == 0 {
            open.journal.checkpoint(Bytes::from_static(b"state"));
            flushed(&mut open, 2);
        }
        open.journal.close();
        open = opened(dir.path());
        assert_eq!(open.recovered.checkpoint.as_deref(), Some(&b"state"[..]));
        assert!(open.recovered.clean);
    }
}

#[test]
fn a_read_ends_where_it_was_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut open = opened(dir.path());
    let bodies: Vec<&[u8]> = vec![b"\0body"; 10];
    let (ticket, first) = open.journal.append(batch_of(1, &[1], &bodies)).ok().unwrap();
    durable(&mut open.completions, ticket);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (after, through) in [(0, first + 3), (first + 3, first + 3), (first + 5, first + 3)] {
        let read = Read {
            peer: A,
            lane: Lane::Open,
            after,
            through,
            bytes_max: 1 << 20,
            messages_max: 1_000,
        };
        let page = runtime.block_on(open.journal.next(read)).unwrap();
        let expected: Vec<_> = (first..=through).filter(|number| *number > after).collect();
        assert_eq!(numbers(&page), expected);
        assert_eq!(page.through, through);
    }
}

fn check_lives(open: &Opened, first: MessageNumber, park: &ParkRecord) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let life = |number| runtime.block_on(open.journal.lookup(number));
    let settled = |at_ms, attempts, value| Ended::Settled {
        outcome: Outcome::Acked,
        at_ms,
        moved_to: PeerId::NONE,
        attempts,
        value,
    };
    assert_eq!(life(first).unwrap().receivers, [(A, Some(settled(5, 1, None))), (B, None)]);
    assert_eq!(life(first + 4).unwrap().receivers[0].1, Some(settled(5, 1, None)));
    assert_eq!(life(first + 2).unwrap().receivers[0].1, Some(Ended::Parked(park.clone())));
    let value = Some(Bytes::from_static(b"yes"));
    assert_eq!(life(first + 9).unwrap().receivers[1].1, Some(settled(7, 2, value)));
    assert_eq!(life(first + 9).unwrap().body.as_deref(), Some(&b"\0body"[..]));
    assert_eq!(life(1 << 40).unwrap_err(), LookupError::Unknown);
    // The number of an epoch record.
    assert_eq!(life(1).unwrap_err(), LookupError::Unknown);
}

#[test]
fn admin_records_and_published_runs_since_the_checkpoint_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut open = opened(dir.path());
    let mut batch = batch_of(10, &[1], &[b"\0a", b"\0b"]);
    push_admin(&mut batch, b"before");
    open.journal.append(batch).ok().unwrap();
    open.journal.checkpoint(Bytes::from_static(b"S"));
    let mut batch = batch_of(12, &[1], &[b"\0c", b"\0d"]);
    push_admin(&mut batch, b"after");
    push_message(&mut batch, &Draft { producer: 2, sequence: 5, receivers: &[], body: b"\0" });
    let (ticket, first) = open.journal.append(batch).ok().unwrap();
    durable(&mut open.completions, ticket);
    open.journal.close();
    let open = opened(dir.path());
    assert_eq!(open.recovered.checkpoint.as_deref(), Some(&b"S"[..]));
    assert_eq!(open.recovered.admin, [&b"after"[..]]);
    let runs: Vec<_> = open
        .recovered
        .published
        .iter()
        .map(|run| (run.producer, run.first_sequence, run.first_number, run.count))
        .collect();
    assert_eq!(runs, [(1, 12, first, 2), (2, 5, first + 3, 1)]);
}

#[test]
fn segments_whose_messages_are_done_are_given_back_and_their_history_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut open = opened(dir.path());
    let body = [7u8; 1_000];
    let bodies: Vec<&[u8]> = vec![&body; 16];
    let (mut first_ever, mut floor) = (None, 0);
    for round in 0..100u64 {
        let (ticket, first) =
            open.journal.append(batch_of(round * 16, &[1], &bodies)).ok().unwrap();
        first_ever.get_or_insert(first);
        loop {
            let completion = open.completions.blocking_recv().unwrap();
            match completion.end {
                End::Durable(_) if completion.ticket == ticket => break,
                End::CheckpointDue => open.journal.checkpoint(Bytes::from_static(b"S")),
                _ => {}
            }
        }
        floor = first + 15;
        open.journal.settle(Settle::acked(A, round, floor, (first..first + 16).collect()));
    }
    open.journal.checkpoint(Bytes::from_static(b"S"));
    flushed(&mut open, 1);
    open.journal.close();
    assert!(open.journal.disk_bytes() < 10 * 64 * 1024, "{} bytes", open.journal.disk_bytes());
    let segments = std::fs::read_dir(dir.path().join("segments")).unwrap().count();
    assert!(segments < 16, "{segments} files");
    let open = opened(dir.path());
    assert!(open.recovered.findings.is_empty(), "{:?}", open.recovered.findings);
    let backlog = open.journal.backlog(A);
    assert_eq!((backlog.messages, backlog.bytes, backlog.floor), (0, 0, floor));
    assert!(read(&*open.journal, A, Lane::Open, 0).messages.is_empty());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let life = runtime.block_on(open.journal.lookup(first_ever.unwrap())).unwrap();
    assert!(life.body.is_none());
    let (peer, ended) = &life.receivers[0];
    assert_eq!(*peer, A);
    assert!(matches!(ended, Some(Ended::Settled { at_ms: 0, attempts: 1, .. })), "{ended:?}");
}

#[test]
fn ids_of_segments_ascend_in_the_order_of_use_whoever_makes_them_ready() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::new(dir.path()));
    let Engine { shared, .. } = recovery::open(disk, small(8 * 1024)).unwrap();
    let done = AtomicBool::new(false);
    let ids: Vec<u64> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                shared.make_ready().unwrap();
            }
        });
        let ids = (0..100).map(|_| shared.take_ready().unwrap().id).collect();
        done.store(true, Ordering::Relaxed);
        ids
    });
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let open_one = opened(dir.path());
    assert!(matches!(open(dir.path(), small(65_536)), Err(OpenError::Locked { .. })));
    open_one.journal.close();
    drop(open_one);
    let lock = dir.path().join("lock");
    let mut bytes = std::fs::read(&lock).unwrap();
    write_version(&mut bytes, 9);
    std::fs::write(&lock, &bytes).unwrap();
    let error = open(dir.path(), small(65_536)).err().unwrap();
    assert!(matches!(error, OpenError::Newer { version: 9, .. }), "{error}");
    std::fs::write(&lock, vec![b'x'; 100]).unwrap();
    let error = open(dir.path(), small(65_536)).err().unwrap();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    let file = dir.path().join("a file");
    std::fs::write(&file, b"x").unwrap();
    assert!(open(&file, small(65_536)).is_err());
}
