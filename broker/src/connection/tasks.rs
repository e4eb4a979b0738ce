//! What a connection waits for beside its socket: answers of actors. Owned by the connection and
//! dropped with it, so that nothing outlives it.

use super::slots::Offer;
use super::watch::Watcher;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use restante_protocol::control::{AttachResult, Reply};
use restante_protocol::limits::REQUESTS_MAX;
use restante_protocol::name::Name;
use restante_protocol::refusal::Refusal;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};

/// What has been waited for.
pub(super) enum Done {
    /// A request has its answer.
    Answered { id: u64, result: Result<Reply, Refusal> },
    /// Peers have answered an attach.
    Attached { id: u64, attached: Vec<Attached> },
    /// A peer has let go of a link.
    Left { id: u64, slot: u32, number: u64 },
    /// An observer has taken or refused a watch.
    Watching { id: u64, result: Result<(), Refusal>, watcher: Arc<Watcher> },
    /// A message that had to wait for a peer's mailbox has been taken.
    Sent { slot: u32, number: u64 },
    /// The same for the router's.
    Routed,
}

impl Done {
    /// Whether this ends a request.
    fn is_request(&self) -> bool {
        !matches!(self, Done::Sent { .. } | Done::Routed)
    }
}

/// How one attachment went.
pub(super) struct Attached {
    /// Who it is to be attached as.
    pub(super) name: Name,
    /// What the receiver is told.
    pub(super) result: AttachResult,
    /// Number of the link that was offered.
    pub(super) number: u64,
    /// The offer, if the peer has taken it.
    pub(super) offer: Option<Offer>,
}

/// See the module. Bounded: [`REQUESTS_MAX`], one a slot, and one for the router.
#[derive(Default)]
pub(super) struct Tasks {
    running: Option<Box<FuturesUnordered<LocalBoxFuture<'static, Done>>>>,
    requests: usize,
}

impl Tasks {
    pub(super) fn spawn(&mut self, task: impl Future<Output = Done> + 'static) {
        self.running.get_or_insert_default().push(Box::pin(task));
    }

    /// Starts the task of a request; the caller has asked [`Tasks::is_full`].
    pub(super) fn spawn_request(&mut self, task: impl Future<Output = Done> + 'static) {
        self.requests += 1;
        self.spawn(task);
    }

    /// Whether no further request may be started.
    pub(super) fn is_full(&self) -> bool {
        self.requests >= REQUESTS_MAX
    }

    /// The next thing that is done; pending also when there is nothing to wait for.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        let Some(running) = &mut self.running else { return Poll::Pending };
        match running.poll_next_unpin(cx) {
            Poll::Ready(Some(done)) => {
                self.requests -= usize::from(done.is_request());
                Poll::Ready(done)
            }
            Poll::Ready(None) => {
                self.running = None;
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
