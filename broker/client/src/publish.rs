//! What a program publishes, and what it learns of it.

use crate::client::Shared;
use crate::error::PublishError;
use crate::producer::ReceiptKey;
use bytes::Bytes;
use restante_protocol::id::MessageId;
use restante_protocol::limits::{
    DELAY_MS_MAX, DELIVER_AT_MS_MAX, HEADERS_BYTES_MAX, KEY_BYTES_MAX, TTL_MS_MAX,
};
use restante_protocol::message::{Body, Delay, encode_headers};
use restante_protocol::name::Name;
use restante_protocol::refusal::Code;
use smallvec::SmallVec;
use std::future::Future;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A message and whom it is for.
///
/// ```
/// use restante_client::Publish;
///
/// let publish = Publish::to(["billing", "audit"])
///     .payload("an order")
///     .key("customer-17")
///     .header("content-type", "text/plain")
///     .ttl(std::time::Duration::from_secs(3_600))
///     .all_or_nothing();
/// # let _ = publish;
/// ```
#[derive(Clone, Debug)]
#[must_use = "a publish does nothing until it is given to a client"]
pub struct Publish {
    pub(crate) receivers: Receivers,
    pub(crate) payload: Bytes,
    pub(crate) key: Option<Bytes>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) delay: Option<Wait>,
    pub(crate) all_or_nothing: bool,
    pub(crate) reply: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Receivers {
    Names(SmallVec<[Name; 2]>),
    Route(Route),
    /// The first text that is not a name; reported by the publish.
    Bad(Box<PublishError>),
}

/// Receivers whose names one client has resolved already, see [`crate::Client::route`]: publishing
/// to a route costs no look-up by name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Route {
    /// Whose aliases these are.
    pub(crate) outbox: u64,
    /// As the count of reuses was when the aliases were looked up.
    pub(crate) reuses: u64,
    pub(crate) aliases: Arc<[u32]>,
    pub(crate) names: Arc<[Name]>,
}

/// When a message enters its receivers' queues.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    For(Duration),
    Until(SystemTime),
}

impl Publish {
    /// For these receivers, by name: peers, or groups of them, each of which stands for its members at the
    /// time the message is accepted.
    pub fn to<I, N>(receivers: I) -> Publish
    where
        I: IntoIterator<Item = N>,
        N: AsRef<str>,
    {
        Publish::for_receivers(match names(receivers) {
            Ok(names) => Receivers::Names(names),
            Err(error) => Receivers::Bad(Box::new(error)),
        })
    }

    /// For the receivers of a route of the same client.
    pub fn via(route: &Route) -> Publish {
        Publish::for_receivers(Receivers::Route(route.clone()))
    }

    fn for_receivers(receivers: Receivers) -> Publish {
        Publish {
            receivers,
            payload: Bytes::new(),
            key: None,
            headers: Vec::new(),
            ttl: None,
            delay: None,
            all_or_nothing: false,
            reply: false,
        }
    }

    /// What the message says; opaque to the node. Empty by default.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.payload = payload.into();
        self
    }

    /// Messages of one key reach a receiver in the order in which they were published. 1 to 255 bytes.
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds a header; headers keep their order. A name has at least one character, and none that
    /// controls a terminal or ends a line.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// For how long after it was accepted it may still be sent, 1 ms to 365 days; without a time, for
    /// ever. A receiver that has not got it by then does not get it any more, and the message's record
    /// says *expired*. The node rounds it up to a twentieth of a second.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How long after the node has accepted it the message enters its receivers' queues, 1 ms to 365
    /// days; not earlier, however often the node is restarted. Its time to live begins when it is
    /// accepted all the same, and has to be longer. A call cannot be delayed.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(Wait::For(delay));
        self
    }

    /// Instead of a delay the time, by the node's wall clock, at which the message enters its receivers'
    /// queues; at once if that has passed. The node refuses one that is more than 365 days ahead.
    pub fn deliver_at(mut self, time: SystemTime) -> Self {
        self.delay = Some(Wait::Until(time));
        self
    }

    /// Accept for all receivers or for none. By default each receiver that can take the message gets
    /// it, and the confirm names the others.
    pub fn all_or_nothing(mut self) -> Self {
        self.all_or_nothing = true;
        self
    }

    pub(crate) fn awaiting_reply(mut self) -> Self {
        self.reply = true;
        self
    }

    /// How many receivers are named, if their names are names.
    pub(crate) fn receiver_count(&self) -> Option<usize> {
        match &self.receivers {
            Receivers::Names(names) => Some(names.len()),
            Receivers::Route(route) => Some(route.aliases.len()),
            Receivers::Bad(_) => None,
        }
    }

    /// The encoded header map, or nothing without headers.
    pub(crate) fn encoded_headers(&self) -> Result<Option<Vec<u8>>, PublishError> {
        if self.headers.is_empty() {
            return Ok(None);
        }
        let is_bad = |name: &str| name.is_empty() || name.contains(char::is_control);
        if let Some((name, _)) = self.headers.iter().find(|(name, _)| is_bad(name)) {
            return Err(PublishError::BadHeader { name: name.chars().take(64).collect() });
        }
        let headers = encode_headers(&self.headers);
        if headers.len() > HEADERS_BYTES_MAX {
            return Err(PublishError::HeadersTooLarge {
                bytes: headers.len(),
                max: HEADERS_BYTES_MAX,
            });
        }
        Ok(Some(headers))
    }

    pub(crate) fn body<'a>(&'a self, headers: Option<&'a [u8]>) -> Result<Body<'a>, PublishError> {
        let key = self.key.as_deref();
        if let Some(bytes) = key.map(<[u8]>::len).filter(|len| *len == 0 || *len > KEY_BYTES_MAX) {
            return Err(PublishError::BadKey { bytes });
        }
        let bad_ttl = |ms| PublishError::BadTtl { ms };
        let ttl_ms = self.ttl.map(|ttl| within(ttl, TTL_MS_MAX, bad_ttl)).transpose()?;
        let delay = self.delay.map(Wait::delay).transpose()?;
        let (reply, payload) = (self.reply, &self.payload[..]);
        Ok(Body { ttl_ms, delay, key, headers, reply, payload, ..Body::default() })
    }
}

impl Wait {
    fn delay(self) -> Result<Delay, PublishError> {
        match self {
            Wait::For(time) => {
                let bad = |ms| PublishError::BadDelay { ms };
                within(time, DELAY_MS_MAX, bad).map(Delay::For)
            }
            Wait::Until(time) => {
                let bad = |ms| PublishError::BadDeliverAt { ms };
                let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
                within(since_epoch, DELIVER_AT_MS_MAX, bad).map(Delay::Until)
            }
        }
    }
}

/// A time in milliseconds, rounded up, 1 to `max`.
fn within(
    time: Duration,
    max: u64,
    bad: impl FnOnce(u64) -> PublishError,
) -> Result<NonZeroU64, PublishError> {
    let ms = u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    NonZeroU64::new(ms).filter(|ms| ms.get() <= max).ok_or_else(|| bad(ms))
}

pub(crate) fn names<I, N>(receivers: I) -> Result<SmallVec<[Name; 2]>, PublishError>
where
    I: IntoIterator<Item = N>,
    N: AsRef<str>,
{
    let parse = |name: N| {
        let name = name.as_ref();
        name.parse().map_err(|source| PublishError::BadName {
            // Enough to recognise it by.
            name: name.chars().take(64).collect(),
            source,
        })
    };
    receivers.into_iter().map(parse).collect()
}

/// A message is durable with the node for every receiver but those in `refused`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// Its id.
    pub id: MessageId,
    /// Receivers for which it was not accepted, members of groups among them, and why. Usually empty.
    pub refused: Vec<(Name, Code)>,
    /// What the node says of the refusals, one line; empty without any.
    pub detail: String,
}

/// Resolves to the outcome of one publish.
///
/// Dropping it does not cancel the publish: the client goes on to send it, also after reconnects.
/// It keeps the client running while it is awaited.
#[derive(Debug)]
#[must_use = "only the receipt tells whether the message was accepted"]
pub struct Receipt {
    pub(crate) shared: Arc<Shared>,
    pub(crate) key: ReceiptKey,
    pub(crate) sequence: u64,
    pub(crate) taken: bool,
}

impl Receipt {
    /// The sequence number of the publish under the client's producer identity.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Waits for the outcome no longer than this.
    ///
    /// # Errors
    /// [`PublishError::TimedOut`] after the time given, the publish goes on; else as the receipt.
    pub async fn within(self, timeout: Duration) -> Result<Confirmed, PublishError> {
        match tokio::time::timeout(timeout, self).await {
            Ok(outcome) => outcome,
            Err(_) => Err(PublishError::TimedOut { timeout }),
        }
    }
}

impl Future for Receipt {
    type Output = Result<Confirmed, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.taken {
            // Its key may be another receipt's by now.
            return Poll::Ready(Err(PublishError::OutcomeTaken));
        }
        let outcome = self.shared.core.outbox.poll_outcome(self.key, cx);
        self.taken = outcome.is_ready();
        outcome
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.taken {
            self.shared.core.outbox.forget(self.key);
        }
    }
}
