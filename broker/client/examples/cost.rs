//! What a message costs the client: CPU time of its thread per publish with its confirm, and per
//! delivery with its ack, against a peer on another thread that does next to nothing.
//!
//! `cargo run --release -p restante-client --example cost`

use bytes::{Buf, BytesMut};
use restante_client::protocol::codec::{
    Limits, Next, next_frame, parse_control, put_confirm, put_control, put_deliver,
};
use restante_client::protocol::control::{AttachResult, Control, Credit, Reply, Request, Welcome};
use restante_client::protocol::frame::{Confirm, Deliver, Frame};
use restante_client::protocol::id::{MessageId, NodeTag};
use restante_client::{AttachOptions, Client, Publish, Receipt};
use std::collections::VecDeque;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

const MESSAGES: u64 = 2_000_000;
const OUTSTANDING: usize = 1_000;
const WINDOW: u64 = 2_048;
const PAYLOAD: [u8; 256] = [b'x'; 256];

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // It ends with an error when the client has what it wanted.
            std::thread::spawn(move || drop(serve(stream)));
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        publish(&addr, "by name", |payload| Publish::to(["a"]).payload(payload)).await?;
        let client = Client::connect(&addr).await?;
        let route = client.route(["a"])?;
        publish_with(&client, "by route", |payload| Publish::via(&route).payload(payload)).await?;
        receive(&addr).await
    })
}

async fn publish(addr: &str, how: &str, make: impl FnMut(bytes::Bytes) -> Publish) -> Outcome<()> {
    publish_with(&Client::connect(addr).await?, how, make).await
}

async fn publish_with(
    client: &Client,
    how: &str,
    mut make: impl FnMut(bytes::Bytes) -> Publish,
) -> Outcome<()> {
    let payload = bytes::Bytes::from_static(&PAYLOAD);
    let mut receipts: VecDeque<Receipt> = VecDeque::with_capacity(OUTSTANDING);
    let (start, cpu) = (Instant::now(), cpu_ns()?);
    for _ in 0..MESSAGES {
        if receipts.len() == OUTSTANDING
            && let Some(receipt) = receipts.pop_front()
        {
            receipt.await?;
        }
        receipts.push_back(client.publish(make(payload.clone())).await?);
    }
    for receipt in receipts {
        receipt.await?;
    }
    report(&format!("publish {how}"), start, cpu)
}

async fn receive(addr: &str) -> Outcome<()> {
    let client = Client::connect(addr).await?;
    let mut subscription = client.attach("a", AttachOptions::default()).await?;
    let (start, cpu) = (Instant::now(), cpu_ns()?);
    for _ in 0..MESSAGES {
        match subscription.next().await {
            Some(delivery) => delivery?.ack(),
            None => return Err("the client ended".into()),
        };
    }
    report("deliver and ack", start, cpu)
}

fn report(what: &str, start: Instant, cpu: u64) -> Outcome<()> {
    let cpu = (cpu_ns()? - cpu) / MESSAGES;
    let rate = MESSAGES as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("{what}: {cpu} ns CPU a message, {rate:.2} M/s");
    Ok(())
}

/// CPU time of this thread.
fn cpu_ns() -> Outcome<u64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(stat.split_whitespace().next().unwrap_or_default().parse()?)
}

/// The other side of one connection.
struct Node {
    write: BytesMut,
    sent: u64,
    acked: u64,
    delivering: bool,
}

fn serve(mut stream: TcpStream) -> Outcome<()> {
    stream.set_nodelay(true)?;
    let mut read = BytesMut::new();
    let mut node = Node { write: BytesMut::new(), sent: 0, acked: 0, delivering: false };
    let mut chunk = vec![0; 256 * 1024];
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        read.extend_from_slice(&chunk[..count]);
        node.take(&mut read)?;
        stream.write_all(&node.write)?;
        node.write.clear();
    }
}

impl Node {
    fn take(&mut self, read: &mut BytesMut) -> Outcome<()> {
        let mut run: Option<(u64, u32)> = None;
        let mut at = 0;
        while let Next::Frame { frame, consumed } = next_frame(&read[at..], &Limits::default())? {
            at += consumed;
            match frame {
                Frame::Publish(publish) => match &mut run {
                    Some((_, count)) => *count += 1,
                    None => run = Some((publish.sequence, 1)),
                },
                Frame::Ack(ack) => {
                    self.acked += ack.ranges.iter().map(|r| r.last - r.first + 1).sum::<u64>();
                }
                Frame::Control(body) => self.control(parse_control(body)?)?,
                _ => {}
            }
        }
        read.advance(at);
        if let Some((first_sequence, count)) = run {
            let first_id = MessageId::new(1, NodeTag(1), 0, first_sequence);
            put_confirm(&mut self.write, &Confirm { first_sequence, count, first_id });
        }
        let mut body = [0; 257];
        body[1..].copy_from_slice(&PAYLOAD);
        while self.delivering && self.sent < self.acked + WINDOW {
            self.sent += 1;
            let deliver = Deliver {
                redelivered: false,
                attempt: 1,
                slot: 0,
                tag: self.sent,
                epoch: 1,
                id: MessageId::new(1, NodeTag(1), 0, self.sent),
                body: &body,
            };
            put_deliver(&mut self.write, &deliver);
        }
        Ok(())
    }

    fn control(&mut self, control: Control) -> Outcome<()> {
        let answer = match control {
            Control::Hello(_) => Control::Welcome(Welcome {
                version: 1,
                agent: "cost".to_owned(),
                epoch: 1,
                producer_epoch: 1,
                next_sequence: 1,
                credit: Credit { messages: 8_192, bytes: 8 << 20 },
                payload_bytes_max: 1 << 20,
                heartbeat_ms: 5_000,
                silence_ms_max: 15_000,
                grant: None,
            }),
            Control::Request { id, request: Request::Attach { receivers } } => {
                self.delivering = true;
                let attached =
                    |slot| AttachResult { slot, first_tag: 1, created: false, refusal: None };
                let results = receivers.iter().map(|to| attached(to.slot)).collect();
                Control::Response { id, result: Ok(Reply::Attached(results)) }
            }
            _ => return Ok(()),
        };
        Ok(put_control(&mut self.write, &answer)?)
    }
}
