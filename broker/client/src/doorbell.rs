//! How one task tells another that there is something to do, once per batch instead of once per
//! item: a ring that finds the bell already rung costs one atomic swap.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};

/// One listener, any number of ringers.
///
/// The listener calls [`Doorbell::listen`] *before* it looks for work; a ringer leaves its work
/// before it calls [`Doorbell::ring`]. So either the listener sees the work or it is woken.
#[derive(Debug, Default)]
pub(crate) struct Doorbell {
    rung: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Doorbell {
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        {
            let mut waker = self.waker.lock();
            match &*waker {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
        }
        self.rung.store(false, Ordering::SeqCst);
    }

    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            let waker = self.waker.lock().clone();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// Wakers collected under a lock, to be called once it is free.
#[derive(Debug, Default)]
pub(crate) struct Wakes(Vec<Waker>);

impl Wakes {
    /// One task that awaits many things in a row is woken once.
    #[inline]
    pub(crate) fn push(&mut self, waker: Waker) {
        if !self.0.last().is_some_and(|last| last.will_wake(&waker)) {
            self.0.push(waker);
        }
    }

    pub(crate) fn wake_all(&mut self) {
        for waker in self.0.drain(..) {
            waker.wake();
        }
    }
}
