//! A receiver that remembers everything it was given, in order.

use super::node::connect;
use super::wait::{eventually, within};
use parking_lot::Mutex;
use restante_client::protocol::id::MessageId;
use restante_client::{AttachOptions, Client, Delivery, ListenOptions, Listener, Nack};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long attaching, listening and leaving may take.
const LIMIT: Duration = Duration::from_secs(20);

/// One delivery as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The message.
    pub id: MessageId,
    /// Whether it was flagged as redelivered.
    pub redelivered: bool,
    /// Which attempt the node says this is.
    pub attempt: u16,
    /// The node's epoch.
    pub epoch: u32,
    /// The payload as text.
    pub text: String,
}

/// What a receiver does about a delivery.
pub enum Answer {
    /// It is done.
    Ack,
    /// It is done, with a return value.
    Value(Vec<u8>),
    /// It is refused.
    Nack(Nack),
    /// Nothing is said; it stays in flight.
    Hold,
}

#[derive(Default)]
struct Log {
    seen: Vec<Seen>,
    /// Places of first deliveries in `seen`.
    firsts: Vec<usize>,
    ids: HashSet<MessageId>,
}

impl Log {
    fn note(&mut self, delivery: &Delivery) {
        if self.ids.insert(delivery.id) {
            self.firsts.push(self.seen.len());
        }
        self.seen.push(Seen {
            id: delivery.id,
            redelivered: delivery.redelivered,
            attempt: delivery.attempt,
            epoch: delivery.epoch,
            text: String::from_utf8_lossy(&delivery.payload).into_owned(),
        });
    }
}

/// See the module. Dropping it ends it without a word.
pub struct Inbox {
    log: Arc<Mutex<Log>>,
    addr: Option<SocketAddr>,
    leave: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Inbox {
    /// Attaches as a peer, over a connection of its own.
    ///
    /// # Panics
    /// When the node refuses.
    pub async fn attach(node: SocketAddr, name: &str) -> Inbox {
        Inbox::attach_with(node, name, |_| Answer::Ack).await
    }

    /// As [`Inbox::attach`], with answers of the test's choice.
    ///
    /// # Panics
    /// When the node refuses.
    pub async fn attach_with(
        node: SocketAddr,
        name: &str,
        mut answer: impl FnMut(&Delivery) -> Answer + Send + 'static,
    ) -> Inbox {
        let client = within("a connection", LIMIT, connect(node)).await;
        let attached = client.attach(name, AttachOptions::default()).await;
        let mut subscription = attached.expect("an attachment");
        Inbox::run(None, |log, mut leave| async move {
            loop {
                let item = tokio::select! {
                    item = subscription.next() => item,
                    _ = &mut leave => break,
                };
                match item {
                    Some(Ok(delivery)) => take(&log, delivery, &mut answer),
                    // News of the attachment, which restores itself.
                    Some(Err(_)) => {}
                    None => return,
                }
            }
            drop(subscription);
            leave_in_order(client).await;
        })
    }

    /// Listens at an address for a node to dial.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn listen(addr: &str) -> Inbox {
        Inbox::listen_with(addr, |_| Answer::Ack).await
    }

    /// As [`Inbox::listen`], with answers of the test's choice.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn listen_with(
        addr: &str,
        mut answer: impl FnMut(&Delivery) -> Answer + Send + 'static,
    ) -> Inbox {
        let mut listener = eventually("an address to listen on", LIMIT, async || {
            let options = ListenOptions { connections_max: 4_096, ..ListenOptions::default() };
            Listener::bind(addr, options).await.ok()
        })
        .await;
        let addr = listener.local_addr();
        Inbox::run(Some(addr), |log, mut leave| async move {
            loop {
                tokio::select! {
                    delivery = listener.next() => take(&log, delivery, &mut answer),
                    _ = &mut leave => break,
                }
            }
            // Without an answer the acks may be lost, which only redelivers.
            let _ = listener.flush(LIMIT).await;
        })
    }

    fn run<F: Future<Output = ()> + Send + 'static>(
        addr: Option<SocketAddr>,
        task: impl FnOnce(Arc<Mutex<Log>>, oneshot::Receiver<()>) -> F,
    ) -> Inbox {
        let log = Arc::default();
        let (leave, left) = oneshot::channel();
        let task = tokio::spawn(task(Arc::clone(&log), left));
        Inbox { log, addr, leave: Some(leave), task }
    }

    /// The URL of a peer that is this receiver; `attach:` unless it listens.
    #[must_use]
    pub fn url(&self) -> String {
        self.addr.map_or_else(|| "attach:".to_owned(), |addr| format!("tcp://{addr}"))
    }

    /// Everything it was given so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.log.lock().seen.clone()
    }

    /// How many different messages it was given so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.log.lock().firsts.len()
    }

    /// The texts it was given, in the order of their first delivery.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        let log = self.log.lock();
        log.firsts.iter().map(|first| log.seen[*first].text.clone()).collect()
    }

    /// Waits until it has been given so many different messages.
    ///
    /// # Panics
    /// When the limit is reached.
    pub async fn has(&self, messages: usize, limit: Duration) {
        let what = format!("{messages} messages at a receiver");
        eventually(&what, limit, async || (self.count() >= messages).then_some(())).await;
    }

    /// Leaves in order: what it has acked is recorded by the node, as far as the node can be reached.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn close(mut self) -> Vec<Seen> {
        self.leave.take();
        within("a receiver to leave", LIMIT, &mut self.task).await.expect("no panic in it");
        self.seen()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn take(log: &Mutex<Log>, delivery: Delivery, answer: &mut impl FnMut(&Delivery) -> Answer) {
    log.lock().note(&delivery);
    match answer(&delivery) {
        Answer::Ack => drop(delivery.ack()),
        Answer::Value(value) => drop(delivery.ack_value(value).expect("a short value")),
        Answer::Nack(nack) => drop(delivery.nack(nack)),
        Answer::Hold => drop(delivery),
    }
}

async fn leave_in_order(client: Client) {
    // Without an answer the acks may be lost, which only redelivers.
    let _ = client.drain(LIMIT).await;
    client.close().await;
}
