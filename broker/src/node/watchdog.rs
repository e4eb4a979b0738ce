//! Notices an arbiter that stands still: a thread of its own asks each for a sign of life.

use actix::ArbiterHandle;
use restante_actors::{clock, events};
use restante_protocol::time::Time;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How often each arbiter is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Without an answer for this long it stands still.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// Dropping it ends the watch.
pub(super) struct Watchdog {
    _watch: mpsc::Sender<()>,
}

impl Watchdog {
    /// Watches these arbiters, by the names the log gives them.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn over(arbiters: Vec<(&'static str, ArbiterHandle)>) -> io::Result<Watchdog> {
        let (watch, ended) = mpsc::channel::<()>();
        let mut probes: Vec<Probe> = arbiters.into_iter().map(Probe::new).collect();
        let run = move || {
            while ended.recv_timeout(ASK_EVERY) == Err(RecvTimeoutError::Timeout) {
                probes.iter_mut().for_each(Probe::look);
            }
        };
        std::thread::Builder::new().name("restante-watchdog".to_owned()).spawn(run)?;
        Ok(Watchdog { _watch: watch })
    }
}

struct Probe {
    name: &'static str,
    arbiter: ArbiterHandle,
    answered: Arc<AtomicBool>,
    judge: Judge,
}

impl Probe {
    fn new((name, arbiter): (&'static str, ArbiterHandle)) -> Probe {
        let answered = Arc::new(AtomicBool::new(true));
        Probe { name, arbiter, answered, judge: Judge::default() }
    }

    fn look(&mut self) {
        let (now, answered) = (clock::now(), self.answered.load(Ordering::Acquire));
        match self.judge.look(now, answered) {
            Some(News::Stalled(so_far)) => events::watchdog_stalled(self.name, millis(so_far)),
            Some(News::Recovered(after)) => events::watchdog_recovered(self.name, millis(after)),
            None => {}
        }
        if answered {
            self.answered.store(false, Ordering::Release);
            let answered = Arc::clone(&self.answered);
            // An arbiter that has ended is never asked again: its life ends, and this with it.
            let _ = self.arbiter.spawn_fn(move || answered.store(true, Ordering::Release));
        }
    }
}

/// When an arbiter was asked, and what was said about it.
#[derive(Default)]
struct Judge {
    asked: Option<Time>,
    told: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    Stalled(Duration),
    Recovered(Duration),
}

impl Judge {
    /// One look. After an answer the next question is asked at once.
    fn look(&mut self, now: Time, answered: bool) -> Option<News> {
        let waited = self.asked.map_or(Duration::ZERO, |asked| now.since(asked));
        if answered {
            self.asked = Some(now);
            return std::mem::take(&mut self.told).then_some(News::Recovered(waited));
        }
        let is_news = waited >= STALLED_AFTER && !self.told;
        self.told |= is_news;
        is_news.then_some(News::Stalled(waited))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_told_once_and_its_end_with_its_length() {
        let at = |seconds: u64| Time::from_millis(seconds * 1_000);
        let seconds = Duration::from_secs;
        let mut judge = Judge::default();
        assert_eq!(judge.look(at(100), true), None);
        assert_eq!(judge.look(at(101), true), None);
        assert_eq!(judge.look(at(105), false), None, "four seconds");
        assert_eq!(judge.look(at(106), false), Some(News::Stalled(seconds(5))));
        assert_eq!(judge.look(at(107), false), None, "once");
        assert_eq!(judge.look(at(109), true), Some(News::Recovered(seconds(8))));
        assert_eq!(judge.look(at(110), true), None);
    }

    #[test]
    fn an_arbiter_that_sleeps_gives_no_sign_of_life_until_it_wakes() {
        let system = actix::System::new();
        let handle = system.block_on(async { actix::Arbiter::new().handle() });
        let (wake, asleep) = mpsc::channel::<()>();
        let mut probe = Probe::new(("data", handle.clone()));
        handle.spawn_fn(move || {
            let _ = asleep.recv();
        });
        probe.look();
        assert!(!probe.answered.load(Ordering::Acquire), "it sleeps");
        wake.send(()).unwrap();
        let (pass, passed) = mpsc::channel();
        handle.spawn_fn(move || {
            let _ = pass.send(());
        });
        passed.recv().unwrap();
        assert!(probe.answered.load(Ordering::Acquire), "it was asked before this");
    }
}
