//! Following the state of the node.

use crate::client::Shared;
use crate::error::WatchError;
use futures_core::Stream;
use restante_protocol::control::WatchEvent;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A stream of changes that begins with a snapshot and outlives lost connections: it resumes from
/// the last version it has. Where the node no longer has the changes since, it says so by a gap and
/// sends a new snapshot. Versions ascend between snapshots.
///
/// A reader that is too slow for the changes costs bounded memory: past 8,192 waiting events the
/// watch stops and resumes when they have been taken.
#[derive(Debug)]
pub struct Watch {
    pub(crate) shared: Arc<Shared>,
    pub(crate) key: usize,
}

impl Watch {
    /// The next event; `None` after an error. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<WatchEvent, WatchError>> {
        poll_fn(|cx| self.shared.core.desk.poll_event(self.key, cx)).await
    }
}

impl Stream for Watch {
    type Item = Result<WatchEvent, WatchError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.shared.core.desk.poll_event(self.key, cx)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.core.desk.unwatch(self.key);
    }
}
