//! Group commit, seen from the disk: what is written and synced together, and that nothing waits for
//! a clock. The journal's own threads run; the disk writes down what is asked of it and can hold a
//! sync back. Where something must not wait, its timer is set to an hour.

use super::super::storage::DiskFile;
use super::super::storage::over::{Over, OverDisk};
use super::super::storage::sim::SimDisk;
use super::super::{Options, open_on};
use super::{A, B, batch_of, small};
use parking_lot::{Condvar, Mutex};
use restante_actors::journal::{Completion, End, Opened, Settle, Ticket};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3_600);
/// Only a failing test waits this long.
const LIMIT: Duration = Duration::from_secs(60);
/// A record without a body: what an idle log is closed with.
const MARK_BYTES: usize = super::super::format::record_bytes(0);

/// What was asked of a segment that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Write(usize),
    Sync,
}

#[derive(Default)]
struct Notes {
    steps: Vec<Step>,
    /// Syncs wait while this holds.
    held: bool,
    /// A sync waits.
    waits: bool,
}

#[derive(Clone)]
struct Recorder {
    disk: SimDisk,
    notes: Arc<(Mutex<Notes>, Condvar)>,
}

/// Of a segment that is being written.
struct Recorded {
    /// Records have been written and not synced.
    dirty: AtomicBool,
    notes: Arc<(Mutex<Notes>, Condvar)>,
}

impl Recorder {
    /// Waits until the notes say so, and takes the steps so far.
    fn steps_once(&self, mut done: impl FnMut(&Notes) -> bool) -> Vec<Step> {
        let (notes, changed) = &*self.notes;
        let mut notes = notes.lock();
        while !done(&notes) {
            let timed_out = changed.wait_for(&mut notes, LIMIT).timed_out();
            assert!(!timed_out, "{:?}", notes.steps);
        }
        std::mem::take(&mut notes.steps)
    }

    fn hold_syncs(&self, held: bool) {
        self.notes.0.lock().held = held;
        self.notes.1.notify_all();
    }
}

impl Recorded {
    fn new(notes: &Arc<(Mutex<Notes>, Condvar)>) -> Recorded {
        Recorded { dirty: AtomicBool::new(false), notes: Arc::clone(notes) }
    }

    fn note(&self, step: Step) {
        let (notes, changed) = &*self.notes;
        notes.lock().steps.push(step);
        changed.notify_all();
    }
}

impl Over for Recorded {
    fn of_file(&self, path: &str, created: bool) -> io::Result<Option<Self>> {
        Ok((created && path.ends_with(".new")).then(|| Recorded::new(&self.notes)))
    }

    fn write_at(&self, below: &dyn DiskFile, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        below.write_at(bufs, offset)?;
        // The header is written when the segment is made, by another thread.
        if offset > 0 {
            self.dirty.store(true, Ordering::Release);
            self.note(Step::Write(bufs.iter().map(|buf| buf.len()).sum()));
        }
        Ok(())
    }

    fn sync(&self, below: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return below();
        }
        let (notes, changed) = &*self.notes;
        let mut held = notes.lock();
        while held.held {
            held.waits = true;
            changed.notify_all();
            changed.wait(&mut held);
        }
        held.waits = false;
        drop(held);
        below()?;
        self.note(Step::Sync);
        Ok(())
    }
}

/// A journal with its threads whose files are all made, and its disk.
fn open_recorded(lazy_delay: Duration, lazy_bytes_max: usize) -> (Recorder, Opened) {
    let disk = Recorder { disk: SimDisk::new(1 << 30), notes: Arc::default() };
    let options = Options { lazy_delay, lazy_bytes_max, ..small(1 << 20) };
    let over = Recorded::new(&disk.notes);
    let recorded = OverDisk { disk: Arc::new(disk.disk.clone()), over };
    let opened = open_on(Arc::new(recorded), options).expect("opens");
    // The record of this opening's epoch.
    disk.steps_once(|notes| notes.steps.len() >= 2);
    (disk, opened)
}

fn append(opened: &Opened, sequence: u64) -> Ticket {
    opened.journal.append(batch_of(sequence, &[1, 2], &[b"\0one"])).expect("taken").0
}

fn durable(opened: &mut Opened, ticket: Ticket) {
    loop {
        let Completion { ticket: ended, end } =
            opened.completions.blocking_recv().expect("threads");
        match end {
            End::Durable(_) if ended == ticket => return,
            End::Durable(_) | End::CheckpointDue | End::Flushed(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The sizes of what was written between syncs, without the marks of an idle log.
fn commits(steps: &[Step]) -> Vec<usize> {
    let mut commits = Vec::new();
    for pair in steps.chunks(2) {
        match pair {
            [Step::Write(MARK_BYTES), Step::Sync] => {}
            [Step::Write(bytes), Step::Sync] => commits.push(*bytes),
            other => panic!("not a write and its sync: {other:?}"),
        }
    }
    commits
}

fn synced(notes: &Notes) -> bool {
    notes.steps.last() == Some(&Step::Sync)
}

fn is_mark(notes: &Notes) -> bool {
    notes.steps.ends_with(&[Step::Write(MARK_BYTES), Step::Sync])
}

#[test]
fn a_lone_append_is_one_write_and_one_sync_at_once() {
    let (disk, mut opened) = open_recorded(HOUR, usize::MAX);
    for sequence in 1..=20 {
        // Nobody else is there, and the idle mark of the one before does not count.
        let ticket = append(&opened, sequence);
        durable(&mut opened, ticket);
        let steps = disk.steps_once(synced);
        assert_eq!(commits(&steps).len(), 1, "{steps:?}");
        assert_eq!(opened.journal.commits().count, sequence);
    }
    opened.journal.close();
}

#[test]
fn whatever_comes_during_a_sync_is_the_next_commit() {
    let (disk, mut opened) = open_recorded(HOUR, usize::MAX);
    disk.hold_syncs(true);
    append(&opened, 1);
    disk.steps_once(|notes| notes.waits);
    let last = (2..=500).map(|sequence| append(&opened, sequence)).last().expect("some");
    opened.journal.settle(Settle::acked(A, 5, 0, vec![1]));
    disk.hold_syncs(false);
    durable(&mut opened, last);
    let steps = disk.steps_once(synced);
    assert_eq!(steps[0], Step::Sync, "the one that was held back");
    let commits = commits(&steps[1..]);
    let [all] = commits[..] else { panic!("one commit for all that waited: {commits:?}") };
    assert!(all > 499 * MARK_BYTES, "{all} bytes");
    opened.journal.close();
}

#[test]
fn acks_ride_along_with_the_next_append() {
    let (disk, mut opened) = open_recorded(HOUR, usize::MAX);
    let ticket = append(&opened, 1);
    durable(&mut opened, ticket);
    // The log is at rest.
    disk.steps_once(is_mark);
    let before = opened.journal.next_number();
    opened.journal.settle(Settle::acked(A, 5, before - 1, vec![before - 1]));
    opened.journal.settle(Settle::acked(B, 5, before - 1, vec![before - 1]));
    let ticket = append(&opened, 2);
    durable(&mut opened, ticket);
    let [together] = commits(&disk.steps_once(synced))[..] else { panic!("one commit") };
    let ticket = append(&opened, 3);
    durable(&mut opened, ticket);
    let [alone] = commits(&disk.steps_once(synced))[..] else { panic!("one commit") };
    assert!(together > alone + 2 * MARK_BYTES, "{together} bytes with two acks, {alone} without");
    opened.journal.close();
}

#[test]
fn acks_without_an_append_are_written_after_a_bounded_delay_or_when_enough_wait() {
    for (delay, bytes, settles) in [(Duration::from_millis(1), usize::MAX, 1), (HOUR, 2_000, 100)] {
        let (disk, mut opened) = open_recorded(delay, bytes);
        let ticket = append(&opened, 1);
        durable(&mut opened, ticket);
        disk.steps_once(is_mark);
        let number = opened.journal.next_number() - 1;
        for _ in 0..settles {
            opened.journal.settle(Settle::acked(A, 5, number, vec![number]));
        }
        // Nobody asks for it.
        disk.steps_once(synced);
        opened.journal.close();
    }
}

/// A settle that had not been written when the power went: the message comes again, and nothing else.
#[test]
fn an_ack_that_was_lost_brings_its_message_again() {
    let (disk, mut opened) = open_recorded(HOUR, usize::MAX);
    let ticket = append(&opened, 1);
    durable(&mut opened, ticket);
    let number = opened.journal.next_number() - 1;
    opened.journal.settle(Settle::acked(A, 5, number, vec![number]));
    assert_eq!(opened.journal.backlog(A).messages, 0);
    let came_up = disk.disk.after_crash(Some(0), &mut super::super::storage::sim::Dice(1));
    let again = open_on(Arc::new(came_up), small(1 << 20)).expect("opens");
    assert_eq!(again.journal.backlog(A).messages, 1);
    assert_eq!(again.journal.backlog(B).messages, 1);
    assert!(again.recovered.findings.is_empty(), "{:?}", again.recovered.findings);
}
