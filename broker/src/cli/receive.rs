//! `sub`: receives as a peer, writes payloads out or hands them to a command, and acks what is done.
//!
//! A message is acked after its payload has left this process: a crash in between brings it again,
//! flagged as redelivered. Nothing is acked that was not written.

use super::delivery::{Form, Shown};
use super::exec;
use super::node::{AGENT, Target, block_on, stop_asked};
use super::output::{Output, note, print_bytes, printable};
use super::{Exit, Failure, values};
use futures_util::FutureExt;
use restante_client::error::BindError;
use restante_client::{
    AttachOptions, Client, Delivery, LinkState, ListenOptions, Listener, ReceiveError,
    RequestError, Subscription,
};
use restante_protocol::name::Name;
use restante_protocol::refusal::Code;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Receive as a peer
///
/// Attaches as the peer NAME (whose URL is attach:) and writes what is delivered: payloads with their
/// ids on a terminal, one JSON object a line elsewhere. Each message is acked after it was written.
/// Runs until it is told to stop (Ctrl-C, SIGTERM).
#[derive(clap::Args)]
pub(super) struct Args {
    /// The peer to receive as
    name: Name,
    /// End after so many messages, and take no more from the node
    #[arg(short = 'C', long = "count", allow_hyphen_values = true, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time (a bare number counts seconds); with -C and fewer messages the exit code
    /// is 7
    #[arg(short = 'W', long = "within", allow_hyphen_values = true, value_name = "DURATION")]
    #[arg(value_parser = values::duration)]
    within: Option<Duration>,
    /// Write each payload as it is, and a newline
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Run a shell command for each message, the payload on its standard input; status 0 acks
    ///
    /// Anything else refuses the message for now, with the last line of its standard error as the
    /// reason. RESTANTE_ID, RESTANTE_RECEIVER, RESTANTE_ATTEMPT, RESTANTE_REDELIVERED and
    /// RESTANTE_KEY tell about the message. What it prints answers a call.
    #[arg(long, value_name = "COMMAND", conflicts_with = "raw")]
    exec: Option<String>,
    /// Listen on this address for a node that dials, instead of attaching; the peer's URL is then
    /// tcp://ADDR
    #[arg(long, value_name = "ADDR", value_parser = values::host_and_port)]
    listen: Option<String>,
}

pub(super) fn run(args: Args, target: &Target, output: Output) -> Result<(), Failure> {
    block_on(async {
        let mut feed = Feed::open(&args, target).await?;
        let mut job = Job {
            form: if args.raw { Form::Raw } else { Form::of(output) },
            command: args.exec.as_deref(),
            left: args.count.unwrap_or(u64::MAX),
            deadline: args.within.map(|within| Instant::now() + within),
        };
        let outcome = job.run(&mut feed).await;
        // Also after a failure: what was acked before is not to come again.
        let flushed = feed.finish(target.timeout, args.count.is_some()).await;
        outcome.and(flushed)?;
        match args.count {
            Some(count) if job.left > 0 && job.timed_out() => {
                let got = count - job.left;
                Err(Failure::new(Exit::TimedOut, format_args!("{got} of {count} messages came")))
            }
            _ => Ok(()),
        }
    })
}

struct Job<'a> {
    form: Form,
    command: Option<&'a str>,
    /// Messages still to come.
    left: u64,
    deadline: Option<Instant>,
}

/// Messages written out and acked together.
const BATCH_MESSAGES_MAX: u64 = 256;
/// Their bytes; the message that passes it is the last.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

impl Job<'_> {
    async fn run(&mut self, feed: &mut Feed) -> Result<(), Failure> {
        let stop = stop_asked();
        tokio::pin!(stop);
        let never = Instant::now() + Duration::from_secs(u64::from(u32::MAX));
        let deadline = tokio::time::sleep_until(self.deadline.unwrap_or(never));
        tokio::pin!(deadline);
        while self.left > 0 {
            let first = tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                () = &mut deadline => return Ok(()),
                delivery = feed.next() => delivery?,
            };
            match self.command {
                Some(command) => {
                    self.left -= 1;
                    tokio::select! {
                        biased;
                        // The command is ended with its message unacked.
                        () = &mut stop => return Ok(()),
                        outcome = exec::handle(command, first) => outcome?,
                    }
                }
                None => self.write_out(first, feed).await?,
            }
        }
        Ok(())
    }

    fn timed_out(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Writes a message and those that are there already, then acks them.
    async fn write_out(&mut self, first: Delivery, feed: &mut Feed) -> Result<(), Failure> {
        let mut page = Vec::new();
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(delivery) = next {
            Shown::from(&delivery).write(self.form, &mut page)?;
            batch.push(delivery);
            self.left -= 1;
            let full = batch.len() as u64 >= BATCH_MESSAGES_MAX || page.len() >= BATCH_BYTES_MAX;
            next = if full || self.left == 0 {
                None
            } else {
                feed.next().now_or_never().transpose()?
            };
        }
        // Off this thread: heartbeats go on however long a pager is looked at.
        tokio::task::spawn_blocking(move || print_bytes(&page))
            .await
            .map_err(|error| Failure::new(Exit::Failed, error))??;
        for delivery in batch {
            delivery.ack();
        }
        Ok(())
    }
}

/// Where deliveries come from.
enum Feed {
    Attached {
        client: Client,
        subscription: Box<Subscription>,
        /// Says how the connection fares.
        teller: Teller,
    },
    Listening(Box<Listener>),
}

impl Feed {
    async fn open(args: &Args, target: &Target) -> Result<Feed, Failure> {
        if let Some(addr) = &args.listen {
            let options = ListenOptions {
                names: vec![args.name.clone()],
                grant: args.count,
                agent: AGENT.to_owned(),
                ..ListenOptions::default()
            };
            let listener = Listener::bind(addr, options).await?;
            note(&format!("listening on {} as {}", listener.local_addr(), args.name));
            return Ok(Feed::Listening(Box::new(listener)));
        }
        let client = target.connect().await?;
        let options = AttachOptions { grant: args.count };
        let subscription = Box::new(client.attach(&args.name, options).await?);
        if subscription.created_peer() {
            note(&format!("peer {} did not exist and was created", args.name));
        }
        let teller = Teller::of(client.link());
        Ok(Feed::Attached { client, subscription, teller })
    }

    /// The next delivery. Cancel-safe.
    async fn next(&mut self) -> Result<Delivery, Failure> {
        loop {
            match self {
                Feed::Listening(listener) => return Ok(listener.next().await),
                Feed::Attached { subscription, .. } => match subscription.next().await {
                    Some(Ok(delivery)) => return Ok(delivery),
                    Some(Err(error)) if is_passing(&error) => note(&error.to_string()),
                    Some(Err(error)) => return Err(error.into()),
                    None => {
                        return Err(Failure::new(Exit::CannotConnect, "the connection has ended"));
                    }
                },
            }
        }
    }

    /// Makes sure that acks are recorded, and closes the connection. Acks lost with a connection
    /// that has been replaced since are no failure: their messages have come again or will. Those
    /// lost with the last one are, if the messages were `counted`.
    async fn finish(self, timeout: Duration, counted: bool) -> Result<(), Failure> {
        match self {
            Feed::Listening(listener) => match listener.flush(timeout).await {
                Err(RequestError::Disconnected) if !counted => {
                    note(ACKS_LOST);
                    recorded(listener.flush(timeout).await)
                }
                flushed => recorded(flushed),
            },
            Feed::Attached { client, subscription, teller } => {
                let is_replaced = teller.losses() > 0 && client.link().borrow().connected;
                let flushed = match client.flush().await {
                    Err(RequestError::Disconnected) if is_replaced || !counted => {
                        note(ACKS_LOST);
                        client.flush().await
                    }
                    flushed => flushed,
                };
                drop(teller);
                drop(subscription);
                client.close().await;
                recorded(flushed)
            }
        }
    }
}

/// Whether the client goes on by itself after this. A peer that is gone does not come back.
fn is_passing(error: &ReceiveError) -> bool {
    let gone = [Code::NotFound, Code::UnknownReceiver, Code::WrongKind, Code::NotAllowed];
    matches!(error, ReceiveError::Detached { refusal, .. } if !gone.contains(&refusal.code))
}

const ACKS_LOST: &str = "a connection was lost: messages acked last on it may be delivered again, flagged as redelivered";

/// What came of the last flush, in words about messages.
fn recorded(flushed: Result<(), RequestError>) -> Result<(), Failure> {
    match flushed {
        Err(RequestError::Disconnected) => Err(Failure::new(Exit::CannotConnect, ACKS_LOST)),
        flushed => Ok(flushed?),
    }
}

/// Says when the connection is lost and when it is back, and counts.
struct Teller {
    losses: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Teller {
    fn of(link: tokio::sync::watch::Receiver<LinkState>) -> Teller {
        let losses = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(tell_link(link, Arc::clone(&losses)));
        Teller { losses, task }
    }

    fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tell_link(mut link: tokio::sync::watch::Receiver<LinkState>, losses: Arc<AtomicU64>) {
    let mut connected = true;
    while link.changed().await.is_ok() {
        let now = link.borrow_and_update().connected;
        if now == connected {
            continue;
        }
        connected = now;
        if now {
            note("connected again");
        } else {
            losses.fetch_add(1, Ordering::Relaxed);
            note("the connection is lost; trying again");
        }
    }
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Failure {
        Failure::new(Exit::Failed, printable(&error.to_string()))
    }
}
