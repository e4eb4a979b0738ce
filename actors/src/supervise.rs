//! Supervision: an actor that panics is rebuilt from durable state at its old address.
//!
//! `actix::Supervisor` does not survive a panic, so the actor's future is polled here, under
//! `catch_unwind`. After a panic everything the actor had spawned is dropped with its context's
//! items, then [`actix::Supervised::restarting`] throws its core away and builds a new one; mailbox
//! and address stay. The message it had in hand stands outside the actor, in its [`Marks`]: one that
//! was in hand at two panics is condemned, and the rebuilt actor parks it.
//!
//! Restarts are immediate at first. More than [`FREE_CRASHES`] within [`WINDOW`] are held back for
//! longer and longer, up to [`HOLD_MAX`]; mail waits meanwhile, up to the mailbox's capacity, and
//! what does not fit is read from the journal later. Whoever asks about a held actor is answered
//! from its marks, where the hold is written.

use crate::clock;
use crate::directory::Marks;
use crate::events;
use actix::dev::ContextFut;
use actix::{Actor, Addr, ArbiterHandle, AsyncContext, Context, Supervised};
use restante_protocol::id::MessageNumber;
use restante_protocol::time::Time;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Poll, ready};
use std::time::Duration;

/// Crashes within the window after which restarts are held back.
pub const FREE_CRASHES: usize = 3;
/// How far back crashes count.
pub const WINDOW: Duration = Duration::from_secs(60);
/// The first hold; it doubles with every further crash in the window.
pub const HOLD_MIN: Duration = Duration::from_millis(100);
/// The longest hold.
pub const HOLD_MAX: Duration = Duration::from_secs(30);
/// Panics with the same message in hand that condemn it.
pub const KILLS_MAX: u32 = 2;
/// Messages whose kills are remembered; the oldest suspicion is forgotten first.
const SUSPECTS_MAX: usize = 64;

/// A crash, as told to health and log.
#[derive(Clone, Debug)]
pub struct Crash {
    /// What the panic said, one line.
    pub panic: String,
    /// Number and acceptance time of the message in hand, if one was.
    pub in_hand: Option<(MessageNumber, u64)>,
    /// Crashes within the window, this one included.
    pub crashes: usize,
    /// How long the restart is held back.
    pub hold: Duration,
}

/// What happens to a supervised actor.
#[derive(Clone, Debug)]
pub enum Turn {
    /// It panicked; the restart follows, at once or after the hold.
    Crashed(Crash),
    /// It has been rebuilt, so long after its crash.
    Restarted(Duration),
}

/// How often an actor crashed lately, and whom that speaks against.
#[derive(Default)]
pub struct Intensity {
    crashes: VecDeque<Time>,
    suspects: VecDeque<(MessageNumber, u32)>,
}

impl Intensity {
    /// Counts a crash and says how long to hold the restart back.
    pub fn crashed(&mut self, now: Time) -> Duration {
        self.crashes.push_back(now);
        while self.crashes.front().is_some_and(|first| now.since(*first) > WINDOW) {
            self.crashes.pop_front();
        }
        let over = self.crashes.len().saturating_sub(FREE_CRASHES);
        if over == 0 {
            return Duration::ZERO;
        }
        let doublings = u32::try_from(over - 1).unwrap_or(u32::MAX).min(16);
        HOLD_MIN.saturating_mul(1 << doublings).min(HOLD_MAX)
    }

    /// Blames a message; `true` once it has killed often enough to be condemned.
    pub fn blame(&mut self, number: MessageNumber) -> bool {
        let known = self.suspects.iter().position(|(suspect, _)| *suspect == number);
        let kills = match known {
            Some(at) => {
                self.suspects[at].1 += 1;
                self.suspects[at].1
            }
            None => {
                if self.suspects.len() == SUSPECTS_MAX {
                    self.suspects.pop_front();
                }
                self.suspects.push_back((number, 1));
                1
            }
        };
        let condemned = kills >= KILLS_MAX;
        if condemned {
            self.suspects.retain(|(suspect, _)| *suspect != number);
        }
        condemned
    }

    /// Crashes within the window.
    #[must_use]
    pub fn recent(&self) -> usize {
        self.crashes.len()
    }
}

/// Runs an actor and rebuilds it when it panics. Ends when the actor stops.
pub struct Supervision<A, F>
where
    A: Actor<Context = Context<A>> + Supervised,
{
    actor: ContextFut<A, Context<A>>,
    marks: Arc<Marks>,
    intensity: Intensity,
    hold: Option<Pin<Box<tokio::time::Sleep>>>,
    crashed_at: Time,
    /// Told of every crash, before the restart, and of every restart but one to end a removed peer.
    tell: F,
}

impl<A, F> Supervision<A, F>
where
    A: Actor<Context = Context<A>> + Supervised,
    F: FnMut(Turn) + Unpin,
{
    /// Supervises an actor that has a context but has not started.
    pub fn new(actor: ContextFut<A, Context<A>>, marks: Arc<Marks>, tell: F) -> Self {
        let (intensity, crashed_at) = (Intensity::default(), Time::ZERO);
        Supervision { actor, marks, intensity, hold: None, crashed_at, tell }
    }

    fn crashed(&mut self, panic: &(dyn std::any::Any + Send)) {
        let now = clock::now();
        let in_hand = Some(self.marks.in_hand.swap(0, Relaxed)).filter(|number| *number != 0);
        let accepted_ms = self.marks.in_hand_ms.load(Relaxed);
        let condemned = in_hand.is_some_and(|number| self.intensity.blame(number));
        if let (true, Some(number)) = (condemned, in_hand) {
            self.marks.condemned.lock().push((number, accepted_ms));
        }
        let hold = self.intensity.crashed(now);
        self.marks.restarts.fetch_add(1, Relaxed);
        let (panic, crashes) = (panic_text(panic), self.intensity.recent());
        if !hold.is_zero() {
            self.marks.hold(now, now + hold, crashes, &panic);
        }
        let in_hand = in_hand.map(|number| (number, accepted_ms));
        (self.tell)(Turn::Crashed(Crash { panic, in_hand, crashes, hold }));
        self.crashed_at = now;
        self.hold = Some(Box::pin(tokio::time::sleep(hold)));
    }
}

impl<A, F> Future for Supervision<A, F>
where
    A: Actor<Context = Context<A>> + Supervised,
    F: FnMut(Turn) + Unpin,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<()> {
        loop {
            if let Some(hold) = &mut self.hold {
                ready!(hold.as_mut().poll(cx));
                self.hold = None;
                match catch_unwind(AssertUnwindSafe(|| self.actor.restart())) {
                    Ok(true) => {
                        self.marks.held.store(false, Relaxed);
                        // One that has been removed is there only to end.
                        if !self.marks.removed.load(Relaxed) {
                            let took = clock::now().since(self.crashed_at);
                            (self.tell)(Turn::Restarted(took));
                        }
                    }
                    // Nobody holds the address any more: there is nobody to serve.
                    Ok(false) => return Poll::Ready(()),
                    Err(panic) => {
                        self.crashed(&*panic);
                        continue;
                    }
                }
            }
            let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.actor).poll(cx)));
            match polled {
                Ok(poll) => return poll,
                Err(panic) => self.crashed(&*panic),
            }
        }
    }
}

/// Starts an actor under supervision on another arbiter.
///
/// # Errors
/// When the arbiter has ended.
pub fn start_in<A>(
    arbiter: &ArbiterHandle,
    name: &'static str,
    make: impl FnOnce() -> A + Send + 'static,
) -> std::io::Result<Addr<A>>
where
    A: Actor<Context = Context<A>> + Supervised,
{
    let (tell, told) = std::sync::mpsc::channel();
    arbiter.spawn_fn(move || {
        let ctx = Context::<A>::new();
        // Whoever asked waits for exactly this.
        let _ = tell.send(ctx.address());
        let tell = move |turn| match turn {
            Turn::Crashed(crash) => {
                let crashes = u32::try_from(crash.crashes).unwrap_or(u32::MAX);
                events::actor_crashed(name, None, None, &crash.panic, crashes);
            }
            Turn::Restarted(took) => events::actor_restarted(name, None, millis(took)),
        };
        actix_rt::spawn(Supervision::new(ctx.into_future(make()), Arc::default(), tell));
    });
    told.recv().map_err(|_| std::io::Error::other("an arbiter ended before its actors started"))
}

/// Runs an actor that cannot be rebuilt in place, because others hold what it knew. When it panics
/// the node has to start anew from its journal: `on_panic` is told, and the future ends.
pub async fn watch_over(actor: impl Future<Output = ()>, on_panic: impl FnOnce(String)) {
    let mut actor = std::pin::pin!(actor);
    let panic = std::future::poll_fn(|cx| {
        match catch_unwind(AssertUnwindSafe(|| actor.as_mut().poll(cx))) {
            Ok(poll) => poll.map(|()| None),
            Err(panic) => Poll::Ready(Some(panic_text(&*panic))),
        }
    })
    .await;
    if let Some(panic) = panic {
        on_panic(panic);
    }
}

pub(crate) fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// What a panic said, on one line.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message");
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix::{ActorContext, Handler, Message};
    use std::cell::RefCell;
    use std::rc::Rc;

    /// Crashes when it is told to, and ends instead of coming back once it has been removed.
    struct Fragile(Arc<Marks>);

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Crash;

    impl Actor for Fragile {
        type Context = Context<Self>;
    }

    impl Supervised for Fragile {
        fn restarting(&mut self, ctx: &mut Self::Context) {
            if self.0.removed.load(Relaxed) {
                ctx.stop();
            }
        }
    }

    impl Handler<Crash> for Fragile {
        type Result = ();

        fn handle(&mut self, _: Crash, _: &mut Self::Context) {
            panic!("the crash that was asked for");
        }
    }

    #[test]
    fn one_that_has_been_removed_is_not_said_to_be_back() {
        actix_rt::System::new().block_on(async {
            let (marks, turns) = (Arc::new(Marks::default()), Rc::new(RefCell::new(Vec::new())));
            let ctx = Context::<Fragile>::new();
            let (addr, told) = (ctx.address(), Rc::clone(&turns));
            let tell = move |turn| told.borrow_mut().push(matches!(turn, Turn::Restarted(_)));
            let actor = ctx.into_future(Fragile(Arc::clone(&marks)));
            let life = actix_rt::spawn(Supervision::new(actor, Arc::clone(&marks), tell));
            assert!(addr.send(Crash).await.is_err(), "it crashed");
            while turns.borrow().len() < 2 {
                tokio::task::yield_now().await;
            }
            assert_eq!(*turns.borrow(), [false, true], "a crash, and back");
            marks.removed.store(true, Relaxed);
            assert!(addr.send(Crash).await.is_err(), "it crashed");
            life.await.unwrap();
            assert_eq!(*turns.borrow(), [false, true, false], "a crash, and gone");
        });
    }

    #[test]
    fn restarts_are_free_then_held_back_then_free_again() {
        let mut intensity = Intensity::default();
        let start = Time::from_millis(1_000);
        for _ in 0..FREE_CRASHES {
            assert_eq!(intensity.crashed(start), Duration::ZERO);
        }
        assert_eq!(intensity.crashed(start), HOLD_MIN);
        assert_eq!(intensity.crashed(start), HOLD_MIN * 2);
        for _ in 0..40 {
            assert!(intensity.crashed(start) <= HOLD_MAX);
        }
        assert_eq!(intensity.crashed(start), HOLD_MAX);
        assert_eq!(intensity.crashed(start + WINDOW * 2), Duration::ZERO);
    }

    #[test]
    fn a_message_is_condemned_by_its_second_kill_only() {
        let mut intensity = Intensity::default();
        assert!(!intensity.blame(7));
        assert!(!intensity.blame(8));
        assert!(intensity.blame(7));
        assert!(!intensity.blame(7), "a verdict clears the record");
        for other in 100..100 + SUSPECTS_MAX as u64 {
            assert!(!intensity.blame(other));
        }
        assert!(!intensity.blame(8), "suspicions are bounded");
    }
}
