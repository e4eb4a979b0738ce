//! Those who are not to notice what somebody else does to the node: a connection that publishes and
//! receives all the while, and messages that wait for a receiver who is not there.

use super::wait::eventually;
use super::{Inbox, Node, add_peer};
use restante_client::protocol::admin::PeerPatch;
use restante_client::{Client, Publish};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(20);
/// Messages that wait for the one who is not there.
const STORED: usize = 25;
/// Round trips that show that the busy ones are well.
const ROUND_TRIPS: usize = 3;

/// See the module.
pub struct Bystanders {
    client: Client,
    witness: Inbox,
    publishing: JoinHandle<()>,
    published: Arc<AtomicUsize>,
    pid: u32,
}

impl Bystanders {
    /// Sets them up on a node without peers of these names.
    ///
    /// # Panics
    /// When the node refuses any of it.
    pub async fn on(node: &Node) -> Bystanders {
        let client = node.client().await;
        add_peer(&client, "witness", "attach:", PeerPatch::default()).await;
        add_peer(&client, "sleeper", "attach:", PeerPatch::default()).await;
        let witness = Inbox::attach(node.addr(), "witness").await;
        for text in stored() {
            publish(&client, "sleeper", text).await;
        }
        let published = Arc::new(AtomicUsize::new(0));
        let publishing = tokio::spawn({
            let (client, published) = (client.clone(), Arc::clone(&published));
            async move {
                loop {
                    let number = published.load(Ordering::Relaxed);
                    publish(&client, "witness", number.to_string()).await;
                    published.store(number + 1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        Bystanders { client, witness, publishing, published, pid: node.pid() }
    }

    /// Their client, for questions.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// They have noticed nothing: the process is the same, the connection was never lost, messages
    /// flow, and what waits still waits.
    ///
    /// # Panics
    /// When they have.
    pub async fn are_well(&self, node: &mut Node, after: &str) {
        assert!(node.runs(), "the node ended after {after}");
        assert_eq!(node.pid(), self.pid, "{after}");
        let wanted = self.published.load(Ordering::Relaxed) + ROUND_TRIPS;
        let what = format!("messages to flow after {after}");
        eventually(&what, LIMIT, async || {
            assert!(!self.publishing.is_finished(), "the publisher failed after {after}");
            (self.witness.count() >= wanted).then_some(())
        })
        .await;
        let link = self.client.link().borrow().clone();
        assert!(link.connected && link.connections == 1, "{after}: {link:?}");
        let sleeper = self.client.peer("sleeper").await.expect("a peer").status;
        assert_eq!(sleeper.waiting, STORED as u64, "{after}");
    }

    /// Everything arrived: each of the flowing messages once and in order, and what waited, unharmed,
    /// at the receiver who comes at last.
    ///
    /// # Panics
    /// When it did not.
    pub async fn got_everything(self, node: &Node) {
        self.publishing.abort();
        // The last publish may have been accepted and not counted.
        let least = self.published.load(Ordering::Relaxed);
        self.witness.has(least, LIMIT).await;
        let texts = self.witness.texts();
        assert!(texts.len() <= least + 1);
        assert!(texts.iter().enumerate().all(|(number, text)| *text == number.to_string()));
        assert!(self.witness.seen().iter().all(|seen| !seen.redelivered), "each once");
        let sleeper = Inbox::attach(node.addr(), "sleeper").await;
        sleeper.has(STORED, LIMIT).await;
        assert!(sleeper.texts().into_iter().eq(stored()));
    }
}

impl Drop for Bystanders {
    fn drop(&mut self) {
        self.publishing.abort();
    }
}

fn stored() -> impl Iterator<Item = String> {
    (0..STORED).map(|number| format!("stored {number} {}", "x".repeat(100 * number)))
}

async fn publish(client: &Client, to: &str, text: String) {
    let receipt =
        client.publish(Publish::to([to]).payload(text)).await.expect("a buffer with room");
    let confirmed = receipt.within(LIMIT).await.expect("a confirm");
    assert_eq!(confirmed.refused, []);
}
