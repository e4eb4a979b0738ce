//! Publishes, receives, calls, watches, and is dialled, against a node of this machine.
use restante_client::protocol::admin::{AdminCommand, PeerPatch};
use restante_client::{AttachOptions, Client, ListenOptions, Listener, Publish};
use std::error::Error;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn quick_start(node: &str) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(node).await?;

    // A receiver attaches under its name. A node that listens on loopback only makes a peer of it.
    let mut orders = client.attach("orders", AttachOptions::default()).await?;

    // A publish is handed in at once; its receipt resolves when the message is on the node's disk.
    // Do not wait for one receipt before the next publish.
    let publish = Publish::to(["orders"]).key("customer-17").payload("two teapots");
    let receipt = client.publish(publish).await?;
    println!("stored as {}", receipt.await?.id);

    // What is not acked is delivered again, flagged: ack when your own work is safe.
    let delivery = orders.next().await.ok_or("the client has ended")??;
    assert_eq!(delivery.payload, "two teapots");
    delivery.ack();
    client.flush().await?;

    // A call publishes to one receiver and waits for what it answers.
    let answering = async {
        let question = orders.next().await.ok_or("the client has ended")??;
        let answer = question.payload.to_ascii_uppercase();
        question.ack_value(answer)?;
        Ok::<_, Box<dyn Error>>(())
    };
    let (answer, answered) =
        tokio::join!(client.call("orders", "anybody there?", PATIENCE), answering);
    answered?;
    assert_eq!(answer?, "ANYBODY THERE?");

    // A watch begins with all peers as they are, and goes on with every change.
    let mut watch = client.watch(None)?;
    let event = watch.next().await.ok_or("the client has ended")??;
    println!("{event:?}");

    // A receiver can also listen, for a node that dials it.
    let mut listener = Listener::bind("127.0.0.1:0", ListenOptions::default()).await?;
    let name = "billing".parse()?;
    let url = format!("tcp://{}", listener.local_addr()).parse()?;
    client.admin(AdminCommand::PeerAdd { name, url, settings: PeerPatch::default() }).await?;
    client.publish(Publish::to(["billing"]).payload("an invoice")).await?.await?;
    let delivery = listener.next().await;
    assert_eq!(
        (delivery.receiver().as_str(), &delivery.payload[..]),
        ("billing", &b"an invoice"[..])
    );
    delivery.ack();
    listener.flush(PATIENCE).await?;

    // What is unconfirmed is not waited for unless you say so.
    client.drain(PATIENCE).await?;
    client.close().await;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let node = std::env::args().nth(1);
    quick_start(node.as_deref().unwrap_or("127.0.0.1:7700")).await
}
