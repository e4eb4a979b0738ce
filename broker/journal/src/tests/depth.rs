//! What may not grow with the depth of a backlog: what a restart reads, and what a page of it reads.

use super::super::storage::over::{Over, OverDisk};
use super::super::storage::{DiskFile, RealDisk};
use super::super::{Options, open_on};
use super::{A, batch_of, small};
use bytes::Bytes;
use parking_lot::Mutex;
use restante_actors::journal::{Backlog, End, Lane, Opened, Read, Settle};
use restante_protocol::id::PeerId;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// So large that the checkpoint of each is affordable: 2 % of what is written.
const SEGMENT_BYTES: u64 = 512 * 1024;

/// Counts the bytes that are read.
#[derive(Clone)]
struct Counted {
    read: Arc<AtomicU64>,
    /// While this is locked, no history is opened.
    history: Arc<Mutex<()>>,
}

impl Over for Counted {
    fn of_file(&self, path: &str, _created: bool) -> io::Result<Option<Self>> {
        if path.starts_with("history/") {
            drop(self.history.lock());
        }
        Ok(Some(self.clone()))
    }

    fn read_at(
        &self,
        below: &dyn DiskFile,
        offset: u64,
        len: usize,
        into: &mut Vec<u8>,
    ) -> io::Result<usize> {
        let got = below.read_at(offset, len, into)?;
        self.read.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}

fn opened(dir: &Path) -> (Opened, Arc<AtomicU64>) {
    let (opened, read, _) = opened_with_history(dir);
    (opened, read)
}

fn opened_with_history(dir: &Path) -> (Opened, Arc<AtomicU64>, Arc<Mutex<()>>) {
    let (read, history) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(())));
    let over = Counted { read: Arc::clone(&read), history: Arc::clone(&history) };
    let disk = OverDisk { disk: Arc::new(RealDisk::new(dir)), over };
    // Only the end of a segment asks for a checkpoint.
    let options = Options { checkpoint_bytes: u64::MAX, ..small(SEGMENT_BYTES) };
    (open_on(Arc::new(disk), options).unwrap(), read, history)
}

/// Queues so much for one peer that `segments` are filled, and answers when checkpoints are due.
fn fill(opened: &mut Opened, segments: u64) -> u64 {
    let body = [7u8; 1_000];
    let bodies: Vec<&[u8]> = vec![&body; 16];
    let rounds = segments * SEGMENT_BYTES / (16 * 1_050);
    for round in 0..rounds {
        let (ticket, _) = opened.journal.append(batch_of(16 * round, &[1], &bodies)).ok().unwrap();
        loop {
            let completion = opened.completions.blocking_recv().unwrap();
            match completion.end {
                End::Durable(_) if completion.ticket == ticket => break,
                End::CheckpointDue => opened.journal.checkpoint(Bytes::from_static(b"S")),
                End::Durable(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    16 * rounds
}

/// Bytes read by a restart after a crash with so many segments queued, half of one of them acked out
/// of order.
fn read_by_restart(segments: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = opened(dir.path());
    let messages = fill(&mut journal, segments);
    let backlog = journal.journal.backlog(A);
    assert_eq!(backlog.messages, messages);
    let some: Vec<u64> = (backlog.newest - 40..backlog.newest).step_by(2).collect();
    let settled = some.len() as u64;
    journal.journal.settle(Settle::acked(A, 1, 0, some));
    journal.journal.flush(1);
    while !matches!(journal.completions.blocking_recv().unwrap().end, End::Flushed(1)) {}
    // Dropped without a close: the same as a crash.
    drop(journal);
    let (journal, read) = opened(dir.path());
    assert!(!journal.recovered.clean);
    assert_eq!(journal.journal.backlog(A).messages, messages - settled);
    read.load(Ordering::Relaxed)
}

#[test]
fn a_restart_reads_no_more_of_a_deep_backlog_than_of_a_shallow_one() {
    let (shallow, deep) = (read_by_restart(4), read_by_restart(40));
    // What it reads of the log is what was not covered by a checkpoint; the rest is the heads of
    // the indexes, and the sizes of a few of the files by chance.
    assert!(deep < shallow + 4 * SEGMENT_BYTES, "{shallow} bytes, then {deep}");
}

#[test]
fn a_restart_reads_a_segment_that_has_been_used_before_a_few_times_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = opened(dir.path());
    for round in 1..=4 {
        fill(&mut journal, 4);
        let Backlog { newest, floor, .. } = journal.journal.backlog(A);
        let numbers = (floor + 1..=newest).collect();
        journal.journal.settle(Settle::acked(A, 1, newest, numbers));
        journal.journal.flush(round);
        while !matches!(journal.completions.blocking_recv().unwrap().end, End::Flushed(told) if told == round)
        {
        }
        journal.journal.checkpoint(Bytes::from_static(b"S"));
    }
    journal.journal.close();
    drop(journal);
    let files = std::fs::read_dir(dir.path().join("segments")).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes > 2 * SEGMENT_BYTES, "some are kept to be written again");
    let (_journal, read) = opened(dir.path());
    let read = read.load(Ordering::Relaxed);
    assert!(read < 4 * bytes, "{read} bytes of {bytes}");
}

#[test]
fn a_restart_opens_an_index_once_whoever_has_acked_from_its_segment() {
    const PEERS: u32 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = opened(dir.path());
    let body = [7u8; 200];
    let publish = |peer: u32| {
        let batch = batch_of(u64::from(peer), &[peer], &[&body]);
        journal.journal.append(batch).ok().unwrap().1
    };
    let numbers: Vec<_> = (1..=PEERS).map(publish).collect();
    // So that their segment is sealed, and covered by a checkpoint.
    fill(&mut journal, 2);
    journal.journal.checkpoint(Bytes::from_static(b"S"));
    journal.journal.close();
    drop(journal);
    let (mut journal, _) = opened(dir.path());
    for (peer, number) in (2..=PEERS).zip(&numbers[1..]) {
        journal.journal.settle(Settle::acked(PeerId(peer), 1, 0, vec![*number]));
    }
    journal.journal.flush(1);
    while !matches!(journal.completions.blocking_recv().unwrap().end, End::Flushed(1)) {}
    drop(journal);
    let (journal, read) = opened(dir.path());
    for peer in 2..=PEERS {
        assert_eq!(journal.journal.backlog(PeerId(peer)).messages, 0, "{peer}");
    }
    // The directory of that index alone has 32 bytes for each of them: 64 KB, 2,000 times.
    let read = read.load(Ordering::Relaxed);
    assert!(read < 32 * SEGMENT_BYTES, "{read} bytes");
}

#[test]
fn a_page_does_not_wait_for_what_the_ledger_has_to_look_up() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = opened(dir.path());
    fill(&mut journal, 3);
    let Backlog { newest, messages, .. } = journal.journal.backlog(A);
    let acked = (1..newest - 8).collect::<Vec<_>>();
    journal.journal.settle(Settle::acked(A, 1, newest - 9, acked));
    journal.journal.checkpoint(Bytes::from_static(b"S"));
    journal.journal.close();
    drop(journal);
    let (journal, _, history) = opened_with_history(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let held = history.lock();
    let mut looked_up = journal.journal.lookup(2);
    let (through, bytes_max, messages_max) = (u64::MAX, 1 << 20, 1_000);
    let read = Read { peer: A, lane: Lane::Open, after: 0, through, bytes_max, messages_max };
    let page = runtime.block_on(async {
        // Long enough for any machine; waited for only where it fails.
        tokio::time::timeout(Duration::from_secs(20), journal.journal.next(read)).await
    });
    let Ok(page) = page else {
        drop(held);
        panic!("the page waits for the look-up");
    };
    assert!(page.unwrap().messages.len() < 20 && messages > 100);
    assert!(futures_util::FutureExt::now_or_never(&mut looked_up).is_none(), "it was not held up");
    drop(held);
    assert!(runtime.block_on(looked_up).unwrap().body.is_none());
}

#[test]
fn a_page_reads_little_more_than_it_brings() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, read) = opened(dir.path());
    let messages = fill(&mut journal, 20);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    read.store(0, Ordering::Relaxed);
    let (mut after, mut brought, mut bytes) = (0, 0, 0);
    loop {
        let (through, bytes_max, messages_max) = (u64::MAX, 32 * 1024, 1_000);
        let request = Read { peer: A, lane: Lane::Open, after, through, bytes_max, messages_max };
        let page = runtime.block_on(journal.journal.next(request)).unwrap();
        if page.messages.is_empty() {
            break;
        }
        after = page.through;
        brought += page.messages.len() as u64;
        bytes += page.messages.iter().map(|stored| stored.body.len() as u64).sum::<u64>();
    }
    assert_eq!(brought, messages);
    let read = read.load(Ordering::Relaxed);
    assert!(read < bytes + bytes / 5, "{read} bytes were read for {bytes}");
}
