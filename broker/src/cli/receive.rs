//! `sub`: receives as a peer, writes payloads out or hands them to a command, and acks what is done.
//!
//! A message is acked after its payload has left this process: a crash in between brings it again,
//! flagged as redelivered. Nothing is acked that was not written.

use super::delivery::{Form, Shown};
use super::exec::Runner;
use super::node::{AGENT, Stop, Target, block_on};
use super::output::{Output, note, print_aside, printable};
use super::{Exit, Failure, values};
use futures_util::FutureExt;
use restante_client::error::BindError;
use restante_client::{
    AttachOptions, Client, Delivery, LinkState, ListenOptions, Listener, ReceiveError,
    RequestError, Settled, Subscription,
};
use restante_protocol::name::Name;
use restante_protocol::refusal::Code;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

/// Receive as a peer
///
/// Attaches as the peer NAME (whose URL is attach:) and writes what is delivered: payloads with their
/// ids on a terminal, one JSON object a line elsewhere. Each message is acked after it was written.
/// Runs until it is told to stop (Ctrl-C, SIGTERM); told twice, it ends at once.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The peer to receive as
    name: Name,
    /// End after so many messages, and take no more from the node; stopped before, the exit code is 1
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
    /// RESTANTE_KEY tell about the message. What it prints answers a call; what it leaves running
    /// is not waited for. One message at a time is taken from the node; one that comes again after
    /// its command has succeeded (a late ack, a lost connection) is acked and not run again.
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
        let mut ends = Ends::of(args.within)?;
        let mut job = Job {
            form: if args.raw { Form::Raw } else { Form::of(output) },
            runner: args.exec.as_deref().map(Runner::new),
            left: args.count.unwrap_or(u64::MAX),
        };
        let ended = job.run(&mut feed, &mut ends).await;
        // Also after a failure: what was acked before is not to come again.
        let finished = tokio::select! {
            biased;
            finished = feed.finish(target.timeout, args.count.is_some()) => finished,
            () = ends.stop.asked() => Err(Failure::new(Exit::Failed, STOPPED_AT_ONCE)),
        };
        let end = ended?;
        finished?;
        let Some(count) = args.count.filter(|_| job.left > 0) else { return Ok(()) };
        let got = format!("{} of {count} messages came", count - job.left);
        match end {
            End::Complete => Ok(()),
            End::TimedOut => Err(Failure::new(Exit::TimedOut, got)),
            End::Stopped => Err(Failure::new(Exit::Failed, format_args!("stopped when {got}"))),
        }
    })
}

/// Why no more is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Complete,
    Stopped,
    TimedOut,
}

/// What ends the run from outside.
struct Ends {
    stop: Stop,
    deadline: Pin<Box<Sleep>>,
}

impl Ends {
    fn of(within: Option<Duration>) -> Result<Ends, Failure> {
        // Without a limit: in more than a hundred years.
        let within = within.unwrap_or(Duration::from_secs(u64::from(u32::MAX)));
        Ok(Ends { stop: Stop::listen()?, deadline: Box::pin(tokio::time::sleep(within)) })
    }

    /// Cancel-safe.
    async fn come(&mut self) -> End {
        tokio::select! {
            biased;
            () = self.stop.asked() => End::Stopped,
            () = &mut self.deadline => End::TimedOut,
        }
    }
}

struct Job<'a> {
    form: Form,
    runner: Option<Runner<'a>>,
    /// Messages still to come.
    left: u64,
}

/// Messages written out and acked together.
const BATCH_MESSAGES_MAX: u64 = 256;
/// Their bytes; the message that passes it is the last.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Messages that a command is given at a time: one that waited for a slow command would be late before
/// its turn came.
const EXEC_GRANT: u64 = 1;
/// How long a reader of the output that stands still is waited for once the run is to end.
const LAST_PAGE_MAX: Duration = Duration::from_secs(1);

impl Job<'_> {
    async fn run(&mut self, feed: &mut Feed, ends: &mut Ends) -> Result<End, Failure> {
        while self.left > 0 {
            let first = tokio::select! {
                biased;
                end = ends.come() => return Ok(end),
                delivery = feed.next() => delivery?,
            };
            let end = match &mut self.runner {
                Some(runner) => {
                    tokio::select! {
                        biased;
                        settled = runner.handle(first) => {
                            // One that was settled too late comes again.
                            self.left -= u64::from(settled? == Settled::Queued);
                            if self.left > 0 {
                                feed.grant(1);
                            }
                            None
                        }
                        // The command is ended with its message unacked.
                        end = ends.come() => Some(end),
                    }
                }
                None => self.write_out(first, feed, ends).await?,
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
        Ok(End::Complete)
    }

    /// Writes a message and those that are there already, then acks them.
    async fn write_out(
        &mut self,
        first: Delivery,
        feed: &mut Feed,
        ends: &mut Ends,
    ) -> Result<Option<End>, Failure> {
        let mut page = Vec::new();
        let mut batch = Vec::new();
        let mut next = Some(first);
        let batch_max = BATCH_MESSAGES_MAX.min(self.left);
        while let Some(delivery) = next {
            Shown::from(&delivery).write(self.form, &mut page)?;
            batch.push(delivery);
            let full = batch.len() as u64 >= batch_max || page.len() >= BATCH_BYTES_MAX;
            next = if full { None } else { feed.next().now_or_never().transpose()? };
        }
        let printing = print_aside(page);
        tokio::pin!(printing);
        let end = tokio::select! {
            biased;
            printed = &mut printing => { printed?; None }
            end = ends.come() => Some(end),
        };
        if let Some(end) = end {
            // It may be all but written. If it stays so, it is not acked.
            tokio::select! {
                biased;
                printed = &mut printing => printed?,
                () = ends.stop.asked() => return Ok(Some(end)),
                () = tokio::time::sleep(LAST_PAGE_MAX) => {
                    note(NOT_TAKEN);
                    return Ok(Some(end));
                }
            }
        }
        self.left -= batch.len() as u64;
        for delivery in batch {
            delivery.ack();
        }
        Ok(end)
    }
}

/// Where deliveries come from.
enum Feed {
    Attached {
        client: Client,
        subscription: Box<Subscription>,
        /// Says how the connection fares.
        teller: Teller,
        /// Whether the node has ended the attachment and the client has restored it.
        detached: bool,
    },
    Listening(Box<Listener>),
}

impl Feed {
    async fn open(args: &Args, target: &Target) -> Result<Feed, Failure> {
        let grant = args.exec.as_ref().map(|_| EXEC_GRANT).or(args.count);
        if let Some(addr) = &args.listen {
            let options = ListenOptions {
                names: vec![args.name.clone()],
                grant,
                agent: AGENT.to_owned(),
                ..ListenOptions::default()
            };
            let listener = Listener::bind(addr, options).await?;
            note(&format!("listening on {} as {}", listener.local_addr(), args.name));
            return Ok(Feed::Listening(Box::new(listener)));
        }
        let client = target.connect().await?;
        let options = AttachOptions { grant };
        let subscription = Box::new(client.attach(&args.name, options).await?);
        if subscription.created_peer() {
            note(&format!("peer {} did not exist and was created", args.name));
        }
        let teller = Teller::of(client.link());
        Ok(Feed::Attached { client, subscription, teller, detached: false })
    }

    /// Takes so many more from the node, if there is a grant at all.
    fn grant(&self, more: u64) {
        match self {
            Feed::Listening(listener) => listener.grant(more),
            Feed::Attached { subscription, .. } => subscription.grant(more),
        }
    }

    /// The next delivery. Cancel-safe.
    async fn next(&mut self) -> Result<Delivery, Failure> {
        loop {
            match self {
                Feed::Listening(listener) => return Ok(listener.next().await),
                Feed::Attached { subscription, detached, .. } => match subscription.next().await {
                    Some(Ok(delivery)) => return Ok(delivery),
                    Some(Err(error)) if is_passing(&error) => {
                        *detached = true;
                        note(&error.to_string());
                    }
                    Some(Err(error)) => return Err(error.into()),
                    None => {
                        return Err(Failure::new(Exit::CannotConnect, "the connection has ended"));
                    }
                },
            }
        }
    }

    /// Makes sure that acks are recorded, and closes the connection. Acks lost with a connection or an
    /// attachment that has been replaced since are no failure: their messages have come again or will.
    /// Those lost with the last one are, if the messages were `counted`.
    async fn finish(self, timeout: Duration, counted: bool) -> Result<(), Failure> {
        match self {
            Feed::Listening(listener) => {
                if !listener.has_unflushed() {
                    return Ok(());
                }
                match listener.flush(timeout).await {
                    Err(RequestError::Disconnected) if !counted => {
                        note(ACKS_LOST);
                        // Of the connections that are left.
                        match listener.has_unflushed() {
                            true => recorded(listener.flush(timeout).await),
                            false => Ok(()),
                        }
                    }
                    flushed => recorded(flushed),
                }
            }
            Feed::Attached { client, subscription, teller, detached } => {
                let is_replaced =
                    (detached || teller.losses() > 0) && client.link().borrow().connected;
                let flushed = flush(&client, is_replaced || !counted).await;
                drop(teller);
                drop(subscription);
                client.close().await;
                recorded(flushed)
            }
        }
    }
}

/// Waits for the acks that are on their way, if there are any: not for a node that is away.
async fn flush(client: &Client, may_be_lost: bool) -> Result<(), RequestError> {
    if !client.has_unflushed() {
        return Ok(());
    }
    match client.flush().await {
        Err(RequestError::Disconnected) if may_be_lost => {
            note(ACKS_LOST);
            // Of the connection that is up now.
            if client.has_unflushed() { client.flush().await } else { Ok(()) }
        }
        flushed => flushed,
    }
}

/// Whether the client goes on by itself after this. A peer that is gone does not come back.
fn is_passing(error: &ReceiveError) -> bool {
    let gone = [Code::NotFound, Code::UnknownReceiver, Code::WrongKind, Code::NotAllowed];
    matches!(error, ReceiveError::Detached { refusal, .. } if !gone.contains(&refusal.code))
}

const ACKS_LOST: &str = "a connection was lost: messages acked last on it may be delivered again, flagged as redelivered";

const NOT_TAKEN: &str = "nobody takes the output: the messages that were not written are not acked and will be delivered again";
const STOPPED_AT_ONCE: &str = "stopped at once: messages acked last may be delivered again";

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
