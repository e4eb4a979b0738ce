//! A receiver that comes and goes, and remembers every delivery before it acks it.

use super::plan::Plan;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use restante_client::protocol::id::MessageId;
use restante_client::{
    AttachOptions, Client, Delivery, ListenOptions, Listener, Nack, Reconnect, Subscription,
};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Deliveries taken and not answered before a receiver goes: they must come again.
const HELD_MAX: u64 = 20;
/// How long a receiver stays away.
const AWAY_MS_MAX: u64 = 200;

/// One delivery as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Which message of the plan it is; `None` if it is none, or harmed, or not for this receiver.
    pub message: Option<(u8, u64)>,
    /// Its id.
    pub id: MessageId,
    /// Whether it was flagged as redelivered.
    pub redelivered: bool,
    /// Which attempt the node says this is.
    pub attempt: u16,
    /// The node's epoch.
    pub epoch: u32,
}

/// How a receiver is reached.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// It attaches to the node at this address.
    Attached(SocketAddr),
    /// It listens at this address.
    Dialled(SocketAddr),
}

/// Receives until told to stop. Deliveries go to `log` in the order they came.
pub async fn receive(
    plan: Plan,
    receiver: usize,
    place: Place,
    log: Arc<Mutex<Vec<Taken>>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut draw = plan.draw(&[2, receiver as u64]);
    let mut handler = Handler {
        plan,
        receiver,
        log,
        draw: plan.draw(&[3, receiver as u64]),
        refused: HashSet::new(),
    };
    while !*stop.borrow() {
        let session = session(&plan, &mut draw, place, &mut handler);
        tokio::select! {
            () = session => {}
            // Fails only if the run is over as well.
            _ = stop.wait_for(|stop| *stop) => return,
        }
        tokio::time::sleep(Duration::from_millis(draw.random_range(0..=AWAY_MS_MAX))).await;
    }
}

/// Comes, takes a number of deliveries, takes some more into its hands, and goes.
async fn session(plan: &Plan, draw: &mut StdRng, place: Place, handler: &mut Handler) {
    let Some(mut source) = Source::open(plan.name(handler.receiver), place).await else { return };
    let share = plan.messages / plan.receivers as u64;
    let answered = draw.random_range(share / 8..=share / 2 + 1);
    for _ in 0..answered {
        let Some(delivery) = source.next().await else { return };
        handler.answer(delivery);
    }
    for _ in 0..draw.random_range(0..=HELD_MAX) {
        // What does not come at once is not waited for: there may be no more.
        let held = tokio::time::timeout(Duration::from_millis(50), source.next()).await;
        let Ok(Some(delivery)) = held else { return };
        handler.note(&delivery);
    }
}

struct Handler {
    plan: Plan,
    receiver: usize,
    log: Arc<Mutex<Vec<Taken>>>,
    draw: StdRng,
    /// Messages it has refused once; it refuses none twice.
    refused: HashSet<MessageId>,
}

impl Handler {
    fn note(&mut self, delivery: &Delivery) {
        self.log.lock().push(Taken {
            message: self.plan.recognise(self.receiver, &delivery.payload),
            id: delivery.id,
            redelivered: delivery.redelivered,
            attempt: delivery.attempt,
            epoch: delivery.epoch,
        });
    }

    fn answer(&mut self, delivery: Delivery) {
        self.note(&delivery);
        // Whether it still reaches the node is what the run is about.
        let _ = if self.draw.random_ratio(1, 100) && self.refused.insert(delivery.id) {
            delivery.nack(Nack::transient("not now").retry_after(Duration::from_millis(20)))
        } else {
            delivery.ack()
        };
    }
}

/// Where deliveries come from.
enum Source {
    Attached(Subscription),
    Dialled(Listener),
}

impl Source {
    /// `None` when it cannot be opened now: the node is down, or has not noticed yet that the last
    /// session is over, or the port is still taken.
    async fn open(name: String, place: Place) -> Option<Source> {
        match place {
            Place::Dialled(addr) => {
                let names = vec![name.parse().ok()?];
                let options = ListenOptions { names, ..ListenOptions::default() };
                Listener::bind(&addr.to_string(), options).await.ok().map(Source::Dialled)
            }
            Place::Attached(node) => {
                let quickly = Reconnect {
                    wait_min: Duration::from_millis(10),
                    wait_max: Duration::from_millis(200),
                    attempts_max: None,
                };
                let client = Client::builder(node.to_string()).receive_only().reconnect(quickly);
                let client = client.connect().await.ok()?;
                client.attach(name, AttachOptions::default()).await.ok().map(Source::Attached)
            }
        }
    }

    /// `None` when nothing more will come.
    async fn next(&mut self) -> Option<Delivery> {
        match self {
            Source::Dialled(listener) => Some(listener.next().await),
            Source::Attached(subscription) => loop {
                // An error is news of the attachment, which restores itself.
                if let Ok(delivery) = subscription.next().await? {
                    return Some(delivery);
                }
            },
        }
    }
}
