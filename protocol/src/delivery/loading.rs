//! Reading bodies from the journal: retries by number, the backlog from the cursor on.
//!
//! At most one read is under way. Its page may be out of date when it comes: what has been settled
//! since is known by number, a page begun under an earlier link is dropped whole, and what a page
//! does not bring although it covers it is not open any more. While the window opens after an
//! outage, reads are as small as it is, so that a flapping receiver costs no large ones.

use super::*;

/// Pause after a read that brought nothing new, and after the first that failed.
const LOAD_RETRY: Duration = Duration::from_millis(500);
/// How often that pause is doubled while reads go on failing: up to 32 s.
const LOAD_DOUBLINGS_MAX: u32 = 6;
/// Wanted messages further apart than this are read separately.
const WANTED_GAP_MAX: u64 = 64;
/// Fewest messages asked for while the window opens.
const RAMP_MESSAGES_MIN: usize = 16;

/// A read under way.
#[derive(Debug)]
pub(super) struct Loading {
    asked: Load,
    what: What,
    /// Begun under an earlier link.
    pub(super) is_stale: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Retries,
    Backlog,
}

impl<B> Delivery<B> {
    /// A stretch of the peer's open messages to be read from the journal, if one is wanted and none
    /// is under way.
    pub fn poll_load(&mut self) -> Option<Load> {
        if self.loading.is_some() || self.load_retry_at.is_some() {
            return None;
        }
        let (what, asked) = self.wanted_load()?;
        if what == What::Backlog {
            let brings_all = self.unread() <= asked.messages_max as u64;
            self.queue.begin_read(brings_all);
        }
        self.loading = Some(Loading { asked, what, is_stale: false });
        Some(asked)
    }

    /// The answer to [`Delivery::poll_load`]: the open messages of the stretch in order, complete up
    /// to `through`.
    pub fn handle_loaded(
        &mut self,
        now: Time,
        entries: impl IntoIterator<Item = Entry<B>>,
        through: MessageNumber,
    ) {
        let Some(loading) = self.loading.take() else { return };
        self.load_failures = 0;
        if loading.is_stale || !self.link.is_up() {
            return;
        }
        let asked = loading.asked;
        let through = through.clamp(asked.after, asked.through);
        for entry in entries {
            if entry.number > asked.after && entry.number <= through {
                self.take_in(entry, loading.what);
            }
        }
        // Whatever the page should have brought and did not has been ended by someone else.
        for number in self.retries.wanted_within(asked.after, through) {
            self.forget(number);
        }
        if loading.what == What::Backlog {
            self.queue.end_read(through);
            self.reconcile();
        }
        if through == asked.after {
            self.load_retry_at = Some(now + LOAD_RETRY);
        }
    }

    /// The answer to [`Delivery::poll_load`] when nothing could be read: it is asked again later, and
    /// later each time in a row.
    pub fn handle_load_failed(&mut self, now: Time) {
        let Some(loading) = self.loading.take() else { return };
        self.queue.abandon_read();
        let pause = LOAD_RETRY * (1 << self.load_failures.min(LOAD_DOUBLINGS_MAX));
        self.load_failures = self.load_failures.saturating_add(1);
        if !loading.is_stale && self.link.is_up() {
            self.load_retry_at = Some(now + pause);
        }
    }

    /// Whether a message lies in the stretch that is being read.
    pub(super) fn is_loading(&self, number: MessageNumber) -> bool {
        let asked = self.loading.as_ref().map(|loading| loading.asked);
        asked.is_some_and(|asked| asked.after < number && number <= asked.through)
    }

    /// Whether more messages are about to come from the journal.
    pub(super) fn reads_on(&self) -> bool {
        self.loading.is_some() || self.load_retry_at.is_some() || self.wanted_load().is_some()
    }

    fn wanted_load(&self) -> Option<(What, Load)> {
        if !self.link.is_up() {
            return None;
        }
        let opening = self.link.ramp.map_or(usize::MAX, |ramp| 2 * ramp.window() as usize);
        let messages_max = self.queue.messages_max().min(opening.max(RAMP_MESSAGES_MIN));
        if self.retries.wanted().next().is_some() {
            // Also when there is no room for them now: a page of the backlog brings retries of
            // higher numbers along, and they would overtake these.
            return self.wanted_retries(messages_max).map(|load| (What::Retries, load));
        }
        self.wanted_backlog(messages_max).map(|load| (What::Backlog, load))
    }

    /// The first run of wanted retries.
    fn wanted_retries(&self, messages_max: usize) -> Option<Load> {
        let (ready, ready_bytes) = (self.retries.ready(), self.retries.ready_bytes());
        let is_full = ready > messages_max / 2 || ready_bytes >= self.queue.bytes_max();
        let (room, bytes) = match is_full {
            false => (messages_max - ready, self.queue.bytes_max() - ready_bytes),
            true if self.is_starved() => (1, self.queue.bytes_max()),
            true => return None,
        };
        let mut wanted = self.retries.wanted();
        let first = wanted.next()?;
        let mut through = first;
        for number in wanted.take(room - 1) {
            if number - through > WANTED_GAP_MAX {
                break;
            }
            through = number;
        }
        Some(Load {
            after: first - 1,
            through,
            bytes_max: usize::try_from(bytes).unwrap_or(usize::MAX),
            messages_max: usize::try_from(through - first + 1).unwrap_or(usize::MAX),
        })
    }

    /// Whether nothing is in flight although it could be: what is ready waits for something that is
    /// not. It happens after a change to strict order, and the missing one is then sent at once.
    fn is_starved(&self) -> bool {
        let is_granted = self.unacked.next_tag() <= self.link.grant;
        self.unacked.live() < self.allowance.min(1) && is_granted
    }

    /// The next stretch of the backlog, early enough that the queue does not run dry.
    fn wanted_backlog(&self, messages_max: usize) -> Option<Load> {
        let (messages, bytes) = (self.queue.len(), self.queue.bytes());
        let is_full = messages > messages_max / 2 || bytes > self.queue.bytes_max() / 2;
        if self.queue.is_attached() || is_full {
            return None;
        }
        Some(Load {
            after: self.queue.cursor(),
            through: self.queue.newest(),
            bytes_max: usize::try_from(self.queue.bytes_max() - bytes).unwrap_or(usize::MAX),
            messages_max: messages_max - messages,
        })
    }

    /// One message of a page.
    fn take_in(&mut self, entry: Entry<B>, what: What) {
        let number = entry.number;
        if let Some(retry) = self.retries.get(number) {
            if matches!(retry.state, State::Wanted) {
                if retry.expires != entry.expires {
                    self.retries.update(number, |retry| retry.expires = entry.expires);
                }
                self.retries.set(number, State::Ready(entry.body));
            }
        } else if what == What::Backlog && self.queue.is_unread(number) {
            self.queue.read(entry);
        }
    }

    /// A wanted message turned out to be open no more.
    fn forget(&mut self, number: MessageNumber) {
        let Some(retry) = self.retries.remove(number) else { return };
        self.queue.done_ahead(number);
        self.count_out(retry.bytes);
        self.unblock(retry.key);
    }

    /// How many open messages the core has not met.
    fn unread(&self) -> u64 {
        self.waiting.saturating_sub(self.at_hand())
    }

    /// How many it holds, in whatever form.
    fn at_hand(&self) -> u64 {
        let lined = self.queue.len() + self.held.len() + self.retries.len();
        lined as u64 + u64::from(self.unacked.live_straight())
    }

    /// With everything read, what is open is what is here: a message ended by someone else while
    /// unread, or set aside unread with its size unknown, would otherwise be counted for ever.
    fn reconcile(&mut self) {
        if self.queue.is_attached() {
            self.waiting = self.at_hand();
            let straight = self.unacked.bytes() - self.retries.unacked_bytes();
            let queued = self.queue.bytes() + self.held.bytes();
            self.waiting_bytes = queued + self.retries.bytes() + straight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_read_can_be_set_aside_however_much_is_ahead_of_it() {
        let newest = AHEAD_MAX as u64 + 10;
        let start = Start { newest, messages: newest, ..Start::default() };
        let mut core = Delivery::<()>::new(Time::ZERO, &PeerSettings::default(), start, 1);
        core.handle_link_up(Time::ZERO, 1, None);
        let load = core.poll_load().unwrap();
        for number in 11..=newest {
            assert_eq!(
                core.handle_exclude(Time::ZERO, number, 0, ParkCause::Poison, "poison"),
                Ok(())
            );
        }
        assert_eq!(core.handle_exclude(Time::ZERO, 1, 0, ParkCause::Unreadable, "damaged"), Ok(()));
        core.handle_loaded(Time::ZERO, std::iter::empty(), 1);
        assert_eq!((core.poll_load().map(|load| load.after), load.after), (Some(1), 0));
        // Not asked for: the next read would bring it.
        core.handle_load_failed(Time::ZERO);
        assert_eq!(
            core.handle_exclude(Time::ZERO, 5, 0, ParkCause::Poison, "poison"),
            Err(NotExcluded::TooMany)
        );
    }
}
