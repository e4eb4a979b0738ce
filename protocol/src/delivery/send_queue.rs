//! Fresh messages: those at hand, those only counted, and where in the journal to read on.
//!
//! ```text
//!   numbers ──►          cursor             newest
//!   ── unacked, done ──┬── entries ──┤        │      attached: cursor = newest
//!                      └── entries ──┤ unread ┤      detached: the journal has more
//! ```
//!
//! While the link is up and the queue has room it is *attached*: what is enqueued is kept. Without a
//! link, or past its bounds, it is *detached*: what is enqueued is counted, and `cursor` says from
//! where to read once there is room. Everything up to the cursor has passed through here and is
//! somewhere else in the core, or done. The test for having caught up is a comparison of numbers, so
//! no race between a page on its way and a fresh batch can lose or double a message; `tail` keeps
//! what arrives during the last read, so that a busy peer does not chase its own tail.

use super::types::Entry;
use crate::id::MessageNumber;
use std::collections::{BTreeSet, VecDeque};

/// Fewest messages the send queue has room for, whatever the window.
pub const QUEUE_MESSAGES_MIN: usize = 1_024;
/// How many windows of messages it has room for.
pub const QUEUE_WINDOWS: usize = 2;
/// Fewest bytes it has room for.
pub const QUEUE_BYTES_MIN: u64 = 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct SendQueue<B> {
    entries: VecDeque<Entry<B>>,
    bytes: u64,
    cursor: MessageNumber,
    newest: MessageNumber,
    tail: Option<Tail<B>>,
    /// Numbers above the cursor that are done already: a page may still bring them.
    ahead: BTreeSet<MessageNumber>,
    messages_max: usize,
    bytes_max: u64,
}

/// Everything enqueued since a read was begun that reaches up to `after`.
#[derive(Debug)]
struct Tail<B> {
    after: MessageNumber,
    entries: VecDeque<Entry<B>>,
    bytes: u64,
}

impl<B> SendQueue<B> {
    pub(super) fn new(cursor: MessageNumber, newest: MessageNumber) -> SendQueue<B> {
        SendQueue {
            entries: VecDeque::new(),
            bytes: 0,
            cursor,
            newest: newest.max(cursor),
            tail: None,
            ahead: BTreeSet::new(),
            messages_max: QUEUE_MESSAGES_MIN,
            bytes_max: QUEUE_BYTES_MIN,
        }
    }

    /// Sets its bounds after the window's. What is over them stays.
    pub(super) fn set_bounds(&mut self, window_messages: u32, window_bytes: u64) {
        self.messages_max = QUEUE_MESSAGES_MIN.max(QUEUE_WINDOWS * window_messages as usize);
        self.bytes_max = QUEUE_BYTES_MIN.max(window_bytes);
    }

    pub(super) fn messages_max(&self) -> usize {
        self.messages_max
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes at hand, and kept for the end of a read.
    pub(super) fn all_bytes(&self) -> u64 {
        self.bytes + self.tail.as_ref().map_or(0, |tail| tail.bytes)
    }

    /// Whether a fresh message would be kept.
    pub(super) fn keeps(&self) -> bool {
        let has_room = self.entries.len() < self.messages_max && self.bytes < self.bytes_max;
        (self.is_attached() && has_room) || self.tail.is_some()
    }

    pub(super) fn cursor(&self) -> MessageNumber {
        self.cursor
    }

    pub(super) fn newest(&self) -> MessageNumber {
        self.newest
    }

    pub(super) fn is_attached(&self) -> bool {
        self.cursor == self.newest
    }

    /// A fresh message while the link is up. `false`: it has been counted before.
    #[inline]
    pub(super) fn enqueue(&mut self, entry: Entry<B>) -> bool {
        if entry.number <= self.newest {
            return false;
        }
        let number = entry.number;
        if self.cursor == self.newest
            && self.entries.len() < self.messages_max
            && self.bytes < self.bytes_max
        {
            self.cursor = number;
            self.bytes += u64::from(entry.bytes);
            self.entries.push_back(entry);
        } else {
            self.keep_in_tail(entry);
        }
        self.newest = number;
        true
    }

    /// A fresh message that was sent without having been here. Nothing waits here, and nothing is unread.
    #[inline]
    pub(super) fn pass(&mut self, number: MessageNumber) {
        debug_assert!(self.entries.is_empty() && self.is_attached() && number > self.newest);
        self.cursor = number;
        self.newest = number;
    }

    /// A fresh message while there is no link. `false`: it has been counted before.
    #[inline]
    pub(super) fn count(&mut self, number: MessageNumber) -> bool {
        let fresh = number > self.newest;
        self.newest = self.newest.max(number);
        fresh
    }

    #[inline]
    pub(super) fn front(&self) -> Option<&Entry<B>> {
        self.entries.front()
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<Entry<B>> {
        let entry = self.entries.pop_front()?;
        self.bytes -= u64::from(entry.bytes);
        Some(entry)
    }

    pub(super) fn find(&self, number: MessageNumber) -> Option<&Entry<B>> {
        let at = self.entries.binary_search_by_key(&number, |entry| entry.number).ok()?;
        self.entries.get(at)
    }

    pub(super) fn remove(&mut self, number: MessageNumber) -> Option<Entry<B>> {
        let at = self.entries.binary_search_by_key(&number, |entry| entry.number).ok()?;
        let entry = self.entries.remove(at)?;
        self.bytes -= u64::from(entry.bytes);
        Some(entry)
    }

    /// A message above the cursor is done: it is not to be met again.
    pub(super) fn done_ahead(&mut self, number: MessageNumber) {
        if number > self.cursor {
            self.ahead.insert(number);
        }
    }

    /// Whether a number lies in the journal unread, as far as this queue can tell.
    pub(super) fn is_unread(&self, number: MessageNumber) -> bool {
        number > self.cursor && number <= self.newest && !self.ahead.contains(&number)
    }

    /// How many numbers above the cursor are remembered as done.
    pub(super) fn ahead(&self) -> usize {
        self.ahead.len()
    }

    /// A read up to the newest message begins; if it will bring all there is, what arrives in the
    /// meantime is kept.
    pub(super) fn begin_read(&mut self, brings_all: bool) {
        let tail = || Tail { after: self.newest, entries: VecDeque::new(), bytes: 0 };
        self.tail = brings_all.then(tail);
    }

    /// A message read from the journal, if it is news.
    pub(super) fn read(&mut self, entry: Entry<B>) {
        debug_assert!(self.is_unread(entry.number));
        self.cursor = entry.number;
        self.bytes += u64::from(entry.bytes);
        self.entries.push_back(entry);
    }

    /// Everything up to `through` has been read.
    pub(super) fn end_read(&mut self, through: MessageNumber) {
        self.cursor = self.cursor.max(through.min(self.newest));
        if let Some(tail) = self.tail.take()
            && self.cursor >= tail.after
        {
            for entry in tail.entries {
                if entry.number > self.cursor && !self.ahead.contains(&entry.number) {
                    self.bytes += u64::from(entry.bytes);
                    self.entries.push_back(entry);
                }
            }
            self.cursor = self.newest;
        }
        self.ahead = self.ahead.split_off(&(self.cursor.saturating_add(1)));
    }

    /// A read brought nothing.
    pub(super) fn abandon_read(&mut self) {
        self.tail = None;
    }

    /// Drops what is at hand: it is in the journal. `held`: the lowest number held elsewhere that is
    /// dropped with it.
    pub(super) fn detach(&mut self, held: Option<MessageNumber>) {
        let front = self.entries.front().map(|entry| entry.number);
        if let Some(lowest) = [held, front].into_iter().flatten().min() {
            self.cursor = self.cursor.min(lowest - 1);
        }
        self.entries = VecDeque::new();
        self.bytes = 0;
        self.tail = None;
    }

    /// Gives back what an idle peer does not need.
    pub(super) fn trim(&mut self) {
        if self.entries.is_empty() {
            self.entries = VecDeque::new();
        }
    }

    #[cold]
    fn keep_in_tail(&mut self, entry: Entry<B>) {
        let Some(tail) = &mut self.tail else { return };
        if tail.entries.len() < self.messages_max && tail.bytes < self.bytes_max {
            tail.bytes += u64::from(entry.bytes);
            tail.entries.push_back(entry);
        } else {
            self.tail = None;
        }
    }
}
