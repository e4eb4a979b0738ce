//! What a program can choose about a client. Every value has a default, a unit and bounds.

use crate::client::Client;
use crate::error::ConnectError;
use crate::wire::NEVER;
use restante_protocol::id::ProducerId;
use std::time::Duration;

/// Builds a [`Client`]; made by [`Client::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `connect` is awaited"]
pub struct Builder {
    pub(crate) options: Options,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) addr: String,
    pub(crate) agent: String,
    pub(crate) producer: Option<ProducerId>,
    pub(crate) login: Option<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) buffer: BufferBounds,
    pub(crate) reconnect: Reconnect,
    pub(crate) wait_for_node: bool,
}

/// How much may be published and not yet confirmed. It is kept in memory for the case that the
/// connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferBounds {
    /// Messages, at least 1. Default 8,192.
    pub messages: usize,
    /// Bytes of publish frames. One message is taken into an empty buffer whatever its size. Default 8 MiB.
    pub bytes: usize,
}

impl Default for BufferBounds {
    fn default() -> Self {
        BufferBounds { messages: 8_192, bytes: 8 * 1024 * 1024 }
    }
}

/// How a lost connection is restored: waits grow from `wait_min` by doubling up to `wait_max`, each
/// drawn between half and the whole of its value so that many clients do not come back at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// The first wait. Default 50 ms.
    pub wait_min: Duration,
    /// The longest wait. Default 10 s.
    pub wait_max: Duration,
    /// After so many failures in a row the client ends with `GaveUp`; `None`: never. Default never.
    pub attempts_max: Option<u32>,
}

impl Default for Reconnect {
    fn default() -> Self {
        Reconnect {
            wait_min: Duration::from_millis(50),
            wait_max: Duration::from_secs(10),
            attempts_max: None,
        }
    }
}

impl Reconnect {
    /// Ends the client at the first loss of its connection.
    #[must_use]
    pub fn never() -> Reconnect {
        Reconnect { attempts_max: Some(0), ..Reconnect::default() }
    }

    /// The wait before attempt `attempt` (from 0). `draw` is a random number from 0 to 1.
    pub(crate) fn wait(&self, attempt: u32, draw: f64) -> Duration {
        let doubled = self.wait_min.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX));
        doubled.min(self.wait_max).min(NEVER).mul_f64(0.5 + 0.5 * draw.clamp(0.0, 1.0))
    }
}

impl Builder {
    pub(crate) fn new(addr: String) -> Builder {
        Builder {
            options: Options {
                addr,
                agent: concat!("restante-client/", env!("CARGO_PKG_VERSION")).to_owned(),
                producer: Some(ProducerId(rand::random())),
                login: None,
                connect_timeout: Duration::from_secs(5),
                request_timeout: Duration::from_secs(30),
                buffer: BufferBounds::default(),
                reconnect: Reconnect::default(),
                wait_for_node: false,
            },
        }
    }

    /// What the node's log calls this program, `name/version`; at most 128 bytes.
    pub fn agent(mut self, agent: impl Into<String>) -> Self {
        self.options.agent = agent.into();
        self
    }

    /// The producer identity to publish under. By default one is drawn at random; a program that
    /// keeps its own across restarts continues its sequence. Never run two at once under one identity.
    pub fn producer(mut self, producer: ProducerId) -> Self {
        self.options.producer = Some(producer);
        self
    }

    /// No producer identity: the client receives and asks, and its publishes fail with `NotAProducer`.
    pub fn receive_only(mut self) -> Self {
        self.options.producer = None;
        self
    }

    /// The secret of a login.
    pub fn login(mut self, secret: impl Into<String>) -> Self {
        self.options.login = Some(secret.into());
        self
    }

    /// How long resolving, connecting and greeting may take together. Default 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.options.connect_timeout = timeout;
        self
    }

    /// How long a request, an attach or a flush waits for its answer, reconnects included. Default 30 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.options.request_timeout = timeout;
        self
    }

    /// How much may be unconfirmed before `publish` waits and `try_publish` says `Full`.
    pub fn buffer(mut self, bounds: BufferBounds) -> Self {
        self.options.buffer = bounds;
        self
    }

    /// How a lost connection is restored.
    pub fn reconnect(mut self, policy: Reconnect) -> Self {
        self.options.reconnect = policy;
        self
    }

    /// Apply the reconnect policy to the first connection as well, instead of failing at once when
    /// the node cannot be reached.
    pub fn wait_for_node(mut self) -> Self {
        self.options.wait_for_node = true;
        self
    }

    /// Connects and greets.
    ///
    /// # Errors
    /// When no node can be reached or greeted within the connect timeout, or an option is out of bounds.
    pub async fn connect(self) -> Result<Client, ConnectError> {
        self.options.check()?;
        Client::open(self.options).await
    }
}

impl Options {
    fn check(&self) -> Result<(), ConnectError> {
        let bad = |option, expected| Err(ConnectError::BadOption { option, expected });
        if self.agent.len() > 128 {
            return bad("agent", "at most 128 bytes");
        }
        if self.buffer.messages == 0 || self.buffer.messages > 1 << 24 {
            return bad("buffer.messages", "from 1 to 16,777,216");
        }
        if self.buffer.bytes == 0 || self.buffer.bytes > 1 << 36 {
            return bad("buffer.bytes", "from 1 to 64 GiB");
        }
        if self.connect_timeout.is_zero() || self.request_timeout.is_zero() {
            return bad("timeout", "more than zero");
        }
        if self.reconnect.wait_min.is_zero() || self.reconnect.wait_max < self.reconnect.wait_min {
            return bad("reconnect", "0 < wait_min <= wait_max");
        }
        Ok(())
    }
}
