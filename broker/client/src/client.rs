//! The client as programs see it.

use crate::desk::Desk;
use crate::doorbell::Doorbell;
use crate::driver::{self, Driver};
use crate::epochs::Epochs;
use crate::error::{
    AttachError, ConnectError, DrainError, EndReason, PublishError, RequestError, WatchError,
};
use crate::intake::Intake;
use crate::options::{Builder, Options};
use crate::outbox::{Answer, Outbox};
use crate::publish::{Publish, Receipt, Route, names};
use crate::subscription::{AttachOptions, Subscription};
use crate::watch::Watch;
use crate::wire::after;
use bytes::Bytes;
use restante_protocol::admin::{AdminCommand, AdminDone};
use restante_protocol::control::{Reply, Request, Welcome};
use restante_protocol::id::{MessageId, ProducerId};
use restante_protocol::message::{Body, decode_headers};
use restante_protocol::name::Name;
use restante_protocol::status::{
    ClassStatus, GroupInfo, GroupStatus, MessageStatus, NodeStatus, PeerInfo, PeerStatus,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

/// A connection to a node that restores itself. Cheap to clone; all clones share one connection.
///
/// It runs until [`Client::close`], until its last handle (client, receipt, subscription or watch) is
/// dropped, or until it ends for a reason that [`Client::ended`] tells. When the last handle is
/// dropped, what is queued is written for at most a second; unconfirmed publishes are not waited for:
/// call [`Client::drain`] for that.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

/// What keeps a client running.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) core: Arc<Core>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.core.close();
    }
}

/// What the program's side and the driver share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) options: Options,
    pub(crate) outbox: Outbox,
    pub(crate) intake: Arc<Intake>,
    pub(crate) desk: Desk,
    pub(crate) bell: Arc<Doorbell>,
    pub(crate) link: watch::Sender<LinkState>,
    closing: AtomicBool,
    pub(crate) close_asked: Notify,
}

/// How the conversation with the node stands.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LinkState {
    /// How many connections have been made so far.
    pub connections: u64,
    /// Whether the latest one is up.
    pub connected: bool,
    /// What the node said of itself on the latest one.
    pub welcome: Option<Welcome>,
    /// Why the client has ended, if it has.
    pub ended: Option<EndReason>,
}

/// What a stored message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The ordering key, if there is one.
    pub key: Option<Bytes>,
    /// The headers in the producer's order; empty without any.
    pub headers: Vec<(String, String)>,
    /// The payload.
    pub payload: Bytes,
}

impl Client {
    /// A client of the node at `host:port` (or `tcp://host:port`), to be configured and connected.
    pub fn builder(addr: impl Into<String>) -> Builder {
        Builder::new(addr.into())
    }

    /// Connects with default options.
    ///
    /// # Errors
    /// See [`Builder::connect`].
    pub async fn connect(addr: impl Into<String>) -> Result<Client, ConnectError> {
        Client::builder(addr).connect().await
    }

    pub(crate) async fn open(options: Options) -> Result<Client, ConnectError> {
        let bell = Arc::new(Doorbell::default());
        let epochs = Arc::new(Epochs::default());
        let core = Arc::new(Core {
            outbox: Outbox::new(options.producer.is_some(), options.buffer, bell.clone()),
            intake: Arc::new(Intake::new(bell.clone(), options.reconnect, epochs)),
            desk: Desk::new(bell.clone()),
            bell,
            link: watch::Sender::new(LinkState::default()),
            closing: AtomicBool::new(false),
            close_asked: Notify::new(),
            options,
        });
        let wire = driver::first_connection(&core).await?;
        tokio::spawn(driver::run(Driver::new(core.clone()), wire));
        Ok(Client { shared: Arc::new(Shared { core }) })
    }

    /// The identity this client publishes under; `None` if it only receives.
    #[must_use]
    pub fn producer(&self) -> Option<ProducerId> {
        self.core().options.producer
    }

    /// Follows how the conversation with the node stands.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.core().link.subscribe()
    }

    /// Why this client has ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<EndReason> {
        self.core().link.borrow().ended.clone()
    }

    /// Takes a message into the buffer, once there is room, and returns its receipt. Await the
    /// receipt to learn whether the message was accepted; publishes pipeline if it is awaited later.
    ///
    /// Cancel-safe: a publish that was cancelled while it waited for room was not sent.
    ///
    /// # Errors
    /// The message was not taken; see the variants of [`PublishError`].
    pub async fn publish(&self, publish: Publish) -> Result<Receipt, PublishError> {
        let (key, sequence) = self.core().outbox.publish(&publish, None).await?;
        Ok(self.receipt(key, sequence))
    }

    /// As [`Client::publish`], but fails with [`PublishError::Full`] where that would wait.
    ///
    /// # Errors
    /// The message was not taken; see the variants of [`PublishError`].
    pub fn try_publish(&self, publish: Publish) -> Result<Receipt, PublishError> {
        let (key, sequence) = self.core().outbox.try_publish(&publish, &mut None)?;
        Ok(self.receipt(key, sequence))
    }

    /// Resolves receivers' names once, for [`Publish::via`].
    ///
    /// # Errors
    /// A name is not one, or there are none or too many. Whether peers of these names exist is told
    /// by the publishes.
    pub fn route<I, N>(&self, receivers: I) -> Result<Route, PublishError>
    where
        I: IntoIterator<Item = N>,
        N: AsRef<str>,
    {
        self.core().outbox.route(&names(receivers)?)
    }

    /// How many publishes have no outcome yet.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        self.core().outbox.unconfirmed()
    }

    /// Receives as the peer `name`, whose URL is `attach:`.
    ///
    /// # Errors
    /// The node says no, or does not answer in time.
    pub async fn attach(
        &self,
        name: impl AsRef<str>,
        options: AttachOptions,
    ) -> Result<Subscription, AttachError> {
        let mut subscription = self.begin_attach(name.as_ref(), options)?;
        let timeout = self.core().options.request_timeout;
        match tokio::time::timeout(timeout, subscription.attached()).await {
            Ok(outcome) => outcome.map(|()| subscription),
            Err(_) => {
                let name = subscription.receiver().clone();
                Err(AttachError::TimedOut { name, timeout })
            }
        }
    }

    /// Receives as several peers over this one connection. The answers come in the order of the names.
    pub async fn attach_many<I, N>(
        &self,
        names: I,
        options: AttachOptions,
    ) -> Vec<Result<Subscription, AttachError>>
    where
        I: IntoIterator<Item = N>,
        N: AsRef<str>,
    {
        let asked: Vec<_> =
            names.into_iter().map(|name| self.begin_attach(name.as_ref(), options)).collect();
        let timeout = self.core().options.request_timeout;
        let deadline = after(Instant::now(), timeout);
        let mut outcomes = Vec::with_capacity(asked.len());
        for subscription in asked {
            outcomes.push(match subscription {
                Err(error) => Err(error),
                Ok(mut subscription) => {
                    match tokio::time::timeout_at(deadline, subscription.attached()).await {
                        Ok(outcome) => outcome.map(|()| subscription),
                        Err(_) => {
                            let name = subscription.receiver().clone();
                            Err(AttachError::TimedOut { name, timeout })
                        }
                    }
                }
            });
        }
        outcomes
    }

    fn begin_attach(
        &self,
        name: &str,
        options: AttachOptions,
    ) -> Result<Subscription, AttachError> {
        let name: Name = name.parse().map_err(|source| AttachError::BadName {
            name: name.chars().take(64).collect(),
            source,
        })?;
        let reader = Arc::new(Doorbell::default());
        let attachment = self.core().intake.open(name, options.grant, reader)?;
        Ok(Subscription::new(attachment, self.shared.clone()))
    }

    /// Waits until every ack given before is recorded on the node's disk.
    ///
    /// # Errors
    /// [`RequestError::Disconnected`] if a connection was lost since the last flush, or the node ended
    /// an attachment, and acks with it: their messages will be delivered again.
    pub async fn flush(&self) -> Result<(), RequestError> {
        let mark = self.core().intake.begin_flush()?;
        match self.request(Request::Flush).await {
            Ok(Reply::Done) => {
                self.core().intake.end_flush(mark);
                Ok(())
            }
            Ok(_) => Err(RequestError::WrongReply),
            Err(error) => {
                // If acks were lost with the connection, this is where it is told.
                self.core().intake.forget_lost(&error);
                Err(error)
            }
        }
    }

    /// Whether acks were given that no flush has covered: they are on their way, or were lost.
    #[must_use]
    pub fn has_unflushed(&self) -> bool {
        self.core().intake.has_unflushed()
    }

    /// Asks the node anything of the protocol.
    ///
    /// # Errors
    /// The node says no, or there is no answer; see [`RequestError`].
    pub async fn request(&self, request: Request) -> Result<Reply, RequestError> {
        let timeout = self.core().options.request_timeout;
        let answer = self.core().desk.ask(request)?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(RequestError::Ended(self.end_reason())),
            Err(_) => Err(RequestError::TimedOut { timeout }),
        }
    }

    /// All peers and how they are.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn peers(&self) -> Result<Vec<PeerStatus>, RequestError> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let Reply::Peers(page) = self.request(Request::Peers { after }).await? else {
                return Err(RequestError::WrongReply);
            };
            let last = page.peers.last().map(|peer| peer.id);
            all.extend(page.peers);
            if !page.more {
                return Ok(all);
            }
            // A node that goes round in circles is not followed.
            after = Some(last.filter(|id| Some(*id) > after).ok_or(RequestError::WrongReply)?);
        }
    }

    /// One peer with its settings; `name#id` names a removed one.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn peer(&self, name: impl Into<String>) -> Result<PeerInfo, RequestError> {
        match self.request(Request::Peer { name: name.into() }).await? {
            Reply::Peer(peer) => Ok(*peer),
            _ => Err(RequestError::WrongReply),
        }
    }

    /// All groups, by name.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn groups(&self) -> Result<Vec<GroupStatus>, RequestError> {
        let mut all: Vec<GroupStatus> = Vec::new();
        loop {
            let after = all.last().map(|group| group.name.clone());
            let Reply::Groups(page) =
                self.request(Request::Groups { after: after.clone() }).await?
            else {
                return Err(RequestError::WrongReply);
            };
            all.extend(page.groups);
            if !page.more {
                return Ok(all);
            }
            // A node that goes round in circles is not followed.
            if all.last().map(|group| &group.name) <= after.as_ref() {
                return Err(RequestError::WrongReply);
            }
        }
    }

    /// All classes, by name.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn classes(&self) -> Result<Vec<ClassStatus>, RequestError> {
        match self.request(Request::Classes).await? {
            Reply::Classes(classes) => Ok(classes),
            _ => Err(RequestError::WrongReply),
        }
    }

    /// One group with its members.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn group(&self, name: Name) -> Result<GroupInfo, RequestError> {
        match self.request(Request::Group { name }).await? {
            Reply::Group(group) => Ok(*group),
            _ => Err(RequestError::WrongReply),
        }
    }

    /// The node itself.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn node(&self) -> Result<NodeStatus, RequestError> {
        match self.request(Request::Node).await? {
            Reply::Node(node) => Ok(node),
            _ => Err(RequestError::WrongReply),
        }
    }

    /// What has become of a message.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn message(&self, id: MessageId) -> Result<MessageStatus, RequestError> {
        match self.request(Request::Message { id }).await? {
            Reply::Message(message) => Ok(message),
            _ => Err(RequestError::WrongReply),
        }
    }

    /// What a message says, if it is still stored.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn payload(&self, id: MessageId) -> Result<Stored, RequestError> {
        let Reply::Payload(body) = self.request(Request::Payload { id }).await? else {
            return Err(RequestError::WrongReply);
        };
        let body = Bytes::from(body);
        let parts = Body::parse(&body).map_err(|_| RequestError::WrongReply)?;
        let headers = parts.headers.map(decode_headers).transpose();
        Ok(Stored {
            key: parts.key.map(|key| body.slice_ref(key)),
            headers: headers.map_err(|_| RequestError::WrongReply)?.unwrap_or_default(),
            payload: body.slice_ref(parts.payload),
        })
    }

    /// Changes something; it is journaled when this returns.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn admin(&self, command: AdminCommand) -> Result<AdminDone, RequestError> {
        match self.request(Request::Admin(command)).await? {
            Reply::Admin(done) => Ok(done),
            _ => Err(RequestError::WrongReply),
        }
    }

    /// Follows the peers: a snapshot, then changes. `after`: resume after this version instead.
    ///
    /// # Errors
    /// The client has ended. A refusal by the node comes as the first item.
    pub fn watch(&self, after: Option<u64>) -> Result<Watch, WatchError> {
        let key = self.core().desk.watch(after)?;
        Ok(Watch { shared: self.shared.clone(), key })
    }

    /// Takes no more publishes, waits until all taken ones have their outcome, and flushes acks. The
    /// client stays connected: subscriptions and requests go on until [`Client::close`].
    ///
    /// # Errors
    /// Not everything came to its end in time; the error says what that means.
    pub async fn drain(&self, timeout: Duration) -> Result<(), DrainError> {
        let deadline = after(Instant::now(), timeout);
        self.core().outbox.drain();
        if tokio::time::timeout_at(deadline, self.core().outbox.settled()).await.is_err() {
            return Err(DrainError::TimedOut { unconfirmed: self.unconfirmed(), timeout });
        }
        if let Some(reason) = self.ended() {
            return Err(DrainError::Ended(reason));
        }
        if !self.has_unflushed() {
            return Ok(());
        }
        match tokio::time::timeout_at(deadline, self.flush()).await {
            Ok(outcome) => outcome.map_err(DrainError::Acks),
            Err(_) => Err(DrainError::Acks(RequestError::TimedOut { timeout })),
        }
    }

    /// Writes what is queued for at most a second, closes the connection and ends this client and all
    /// its clones. Publishes without an outcome fail with [`PublishError::Ended`].
    pub async fn close(self) {
        let mut link = self.link();
        self.core().close();
        // Cannot fail: this client holds the sender.
        drop(link.wait_for(|link| link.ended.is_some()).await);
    }

    pub(crate) fn end_reason(&self) -> EndReason {
        self.ended().unwrap_or(EndReason::Closed)
    }

    pub(crate) fn core(&self) -> &Core {
        &self.shared.core
    }

    pub(crate) fn receipt(&self, key: u32, sequence: u64) -> Receipt {
        Receipt { shared: self.shared.clone(), key, sequence, taken: false }
    }

    pub(crate) async fn publish_call(
        &self,
        publish: &Publish,
        answer: oneshot::Sender<Answer>,
    ) -> Result<Receipt, PublishError> {
        let (key, sequence) = self.core().outbox.publish(publish, Some(answer)).await?;
        Ok(self.receipt(key, sequence))
    }
}

impl Core {
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.close_asked.notify_one();
        self.bell.ring();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}
