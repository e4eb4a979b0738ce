//! `demo`: the promise, shown. A node and three receivers, each a process of this very program, carry
//! the lines of a file while one receiver and then the node are killed without warning.
//!
//! ```text
//!                                  ┌─► archive   attaches
//!  FILE ─ a message a line ─► node ─┼─► billing   attaches; killed at a quarter of the lines,
//!                             │    │             back at three quarters
//!                             │    └─► mail      is dialled
//!                             killed at half of the lines, started again on its data directory
//! ```
//!
//! Every line is then held against what each receiver wrote, and against what `cksum` says of the
//! file. Ends with an error if anything is missing, changed, or repeated without the flag that says
//! so. Everything lives in a temporary directory, and takes two minutes at most.

mod inbox;
mod lines;
mod receiver;

use super::child::{NodeProcess, Scratch};
use super::node::{AGENT, block_on, stop_asked};
use super::output::{Output, Paint, Table, print, say};
use super::{Exit, Failure};
use inbox::{Inbox, LINE_HEADER};
use lines::Lines;
use receiver::{Reach, Receiver};
use restante_client::{Client, Publish, Receipt};
use restante_protocol::admin::{AdminCommand, PeerPatch};
use restante_protocol::name::Name;
use serde::Serialize;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// Show that nothing is lost: kill a receiver and the node in mid-stream
///
/// Starts a node and three receivers as processes of their own, streams a file's lines through them,
/// ends one receiver and then the node with SIGKILL, brings them back, and prints what each receiver
/// got. Exits with 1 if anything is missing.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A file whose lines are sent, of at most 64 MiB [default: a text that comes with the program]
    file: Option<PathBuf>,
}

/// How long the whole may take.
const DEMO_MAX: Duration = Duration::from_secs(120);
/// Over what time the lines are sent, as far as the node keeps up.
const STREAM: Duration = Duration::from_secs(4);
const STEP: Duration = Duration::from_millis(10);
/// How long the node stays down.
const DOWN: Duration = Duration::from_millis(500);
/// How long nothing may come while something is missing, and how long repeats are waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const SETTLE: Duration = Duration::from_millis(300);
/// How long the right moment to kill the node is waited for.
const MOMENT_MAX: Duration = Duration::from_millis(200);
/// Receipts that wait for their confirm.
const RECEIPTS_MAX: usize = 65_536;
/// The receiver that is killed.
const KILLED: usize = 1;

pub(super) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    let lines = Lines::read(args.file.as_deref())?;
    let late = |_| Failure::new(Exit::TimedOut, format_args!("not done within {DEMO_MAX:?}"));
    let scratch = Scratch::new(&std::env::temp_dir(), "demo")?;
    let play = Play::new(&lines, scratch.path());
    let receivers = block_on(async {
        tokio::select! {
            played = timeout(DEMO_MAX, play.run()) => played.map_err(late)?,
            () = stop_asked() => Err(Failure::new(Exit::Failed, "stopped before the end")),
        }
    })?;
    let report: Vec<Row> = receivers.iter().map(|receiver| Row::of(receiver, &lines)).collect();
    print(&if output.json {
        report.iter().map(Output::json_line).collect::<Result<String, _>>()?
    } else {
        page(&report, &lines, output)
    })?;
    verdict(&report)
}

/// The play, with what its acts share.
struct Play<'a> {
    lines: &'a Lines,
    scratch: &'a Path,
    begun: Instant,
    /// Lines handed to the client, and lines confirmed.
    sent: Cell<usize>,
    confirmed: Cell<usize>,
}

impl Play<'_> {
    fn new<'a>(lines: &'a Lines, scratch: &'a Path) -> Play<'a> {
        Play { lines, scratch, begun: Instant::now(), sent: Cell::new(0), confirmed: Cell::new(0) }
    }

    /// A line for the person who watches.
    fn tell(&self, what: &str) {
        say(&format!("{:5.1} s  {what}", self.begun.elapsed().as_secs_f64()));
    }

    async fn run(&self) -> Result<Vec<Receiver>, Failure> {
        let node = NodeProcess::start(self.scratch, "127.0.0.1:0", &[]).await?;
        self.tell(&format!("a node runs as process {}, at {}", node.pid(), node.addr));
        let mut receivers = self.receivers(&node.addr).await?;
        let client = Client::builder(&node.addr).agent(AGENT).connect().await?;
        for receiver in &receivers {
            let (name, url, settings) =
                (receiver.name.clone(), receiver.url()?, PeerPatch::default());
            client.admin(AdminCommand::PeerAdd { name, url, settings }).await?;
        }
        for receiver in &mut receivers {
            if receiver.reach == Reach::Attaches {
                receiver.start(&node.addr).await?;
            }
            let how = match receiver.reach {
                Reach::Attaches => "attaches",
                Reach::Dialled(_) => "is dialled by the node",
            };
            self.tell(&format!("{} runs as process {} and {how}", receiver.name, receiver.pid()));
        }
        let (count, name) = (self.lines.count(), &self.lines.name);
        self.tell(&format!("sending {count} lines to all three: {name}"));
        let names = receivers.iter().map(|receiver| receiver.name.clone()).collect::<Vec<_>>();
        let (receipts, received) = mpsc::channel(RECEIPTS_MAX);
        tokio::try_join!(
            self.publish(&client, &names, receipts),
            self.await_confirms(received),
            self.acts(node, &mut receivers),
        )?;
        client.close().await;
        Ok(receivers)
    }

    /// The cast. Who is dialled must listen before the node is told where.
    async fn receivers(&self, server: &str) -> Result<Vec<Receiver>, Failure> {
        let mut receivers = Vec::new();
        for (name, reach) in [
            ("archive", Reach::Attaches),
            ("billing", Reach::Attaches),
            ("mail", Reach::Dialled("127.0.0.1:0".to_owned())),
        ] {
            let name = name.parse().map_err(|error| Failure::new(Exit::Failed, error))?;
            let mut receiver = Receiver::new(name, reach, self.lines, self.scratch);
            if receiver.reach != Reach::Attaches {
                receiver.start(server).await?;
            }
            receivers.push(receiver);
        }
        Ok(receivers)
    }

    /// Hands the client line after line, evenly over [`STREAM`].
    async fn publish(
        &self,
        client: &Client,
        names: &[Name],
        receipts: mpsc::Sender<Receipt>,
    ) -> Result<(), Failure> {
        let route = client.route(names)?;
        let (begun, count) = (Instant::now(), self.lines.count());
        for number in 0..count {
            let due = STREAM.mul_f64(number as f64 / count as f64);
            if due.saturating_sub(begun.elapsed()) > STEP {
                sleep(due.saturating_sub(begun.elapsed())).await;
            }
            let publish = Publish::via(&route)
                .payload(self.lines.line(number))
                // One key: whoever takes over from a killed receiver finds the lines in order.
                .key("demo")
                .header(LINE_HEADER, number.to_string());
            let receipt = client.publish(publish).await?;
            self.sent.set(number + 1);
            receipts.send(receipt).await.map_err(|_| Failure::new(Exit::Failed, "confirms"))?;
        }
        Ok(())
    }

    async fn await_confirms(&self, mut receipts: mpsc::Receiver<Receipt>) -> Result<(), Failure> {
        while let Some(receipt) = receipts.recv().await {
            let confirmed = receipt.await?;
            if let Some((name, code)) = confirmed.refused.first() {
                let what = format!("a line was refused for {name}: {code}");
                return Err(Failure::new(Exit::Refused, what));
            }
            self.confirmed.set(self.confirmed.get() + 1);
        }
        self.tell("every line is confirmed");
        Ok(())
    }

    /// What happens while the lines are sent, and the wait for the last of them.
    async fn acts(&self, mut node: NodeProcess, receivers: &mut [Receiver]) -> Result<(), Failure> {
        let addr = node.addr.clone();
        self.confirmed_part(1, receivers).await?;
        let killed = &mut receivers[KILLED];
        let at = |what: String| format!("{what}, {} lines confirmed", self.confirmed.get());
        self.tell(&at(format!("kill -9 {} ({})", killed.pid(), killed.name)));
        killed.kill();
        self.confirmed_part(2, receivers).await?;
        let open = self.some_unconfirmed().await;
        self.tell(&at(format!("kill -9 {} (the node) with {open} lines unconfirmed", node.pid())));
        node.kill();
        sleep(DOWN).await;
        node = NodeProcess::start(self.scratch, &addr, &[]).await?;
        self.tell(&format!("the node is back on its data directory, as process {}", node.pid()));
        self.confirmed_part(3, receivers).await?;
        let killed = &mut receivers[KILLED];
        killed.start(&addr).await?;
        self.tell(&at(format!("{} is back as process {}", killed.name, killed.pid())));
        self.await_the_rest(receivers).await
    }

    /// Until everything has come, or nothing comes any more.
    async fn await_the_rest(&self, receivers: &mut [Receiver]) -> Result<(), Failure> {
        let missing = |receivers: &[Receiver]| -> u64 {
            receivers.iter().map(|receiver| receiver.inbox.missing()).sum()
        };
        let (mut least, mut since) = (missing(receivers), Instant::now());
        while least > 0 && since.elapsed() < PATIENCE {
            self.look(receivers).await?;
            let now = missing(receivers);
            if now < least {
                (least, since) = (now, Instant::now());
            }
        }
        // Repeats that are on their way belong into the table.
        sleep(SETTLE).await;
        self.look(receivers).await?;
        self.tell(match least {
            0 => "every receiver has every line",
            _ => "nothing comes any more",
        });
        Ok(())
    }

    /// Waits for a moment at which the node has been sent what it has not confirmed; how many lines.
    async fn some_unconfirmed(&self) -> usize {
        let begun = Instant::now();
        loop {
            let open = self.sent.get() - self.confirmed.get();
            if open > 0 || begun.elapsed() > MOMENT_MAX {
                return open;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Until so many quarters of the lines are confirmed.
    async fn confirmed_part(
        &self,
        quarters: usize,
        receivers: &mut [Receiver],
    ) -> Result<(), Failure> {
        while self.confirmed.get() * 4 < self.lines.count() * quarters {
            self.look(receivers).await?;
        }
        Ok(())
    }

    /// Reads what has arrived, and waits a little.
    async fn look(&self, receivers: &mut [Receiver]) -> Result<(), Failure> {
        for receiver in receivers {
            receiver.inbox.read()?;
            if receiver.ended() {
                let what = format!("the receiver {} ended by itself", receiver.name);
                return Err(Failure::new(Exit::Failed, what));
            }
        }
        sleep(STEP).await;
        Ok(())
    }
}

/// What one receiver got.
#[derive(Debug, Serialize)]
struct Row {
    receiver: Name,
    lines: u64,
    delivered: u64,
    distinct: u64,
    missing: u64,
    repeats_flagged: u64,
    repeats_unflagged: u64,
    in_order: bool,
    cksum: u32,
    /// Whether `cksum` is the file's.
    equal: bool,
}

impl Row {
    fn of(receiver: &Receiver, lines: &Lines) -> Row {
        let inbox: &Inbox = &receiver.inbox;
        let cksum = inbox.cksum(lines);
        Row {
            receiver: receiver.name.clone(),
            lines: lines.count() as u64,
            delivered: inbox.delivered,
            distinct: inbox.distinct,
            missing: inbox.missing(),
            repeats_flagged: inbox.repeats_flagged,
            repeats_unflagged: inbox.repeats_unflagged,
            in_order: inbox.in_order,
            cksum,
            equal: cksum == lines.cksum(),
        }
    }
}

fn page(rows: &[Row], lines: &Lines, output: Output) -> String {
    let head: &[_] = &[
        "RECEIVER",
        "LINES",
        "DELIVERED",
        "DISTINCT",
        "MISSING",
        "REPEATS FLAGGED",
        "UNFLAGGED",
        "IN ORDER",
        "CKSUM",
    ];
    let mut table = Table::new(output, head);
    let good = |good: bool| Some(if good { Paint::Green } else { Paint::Red });
    for row in rows {
        let count = |count: u64| (None, count.to_string());
        let none = |count: u64| (good(count == 0), count.to_string());
        let order = if row.in_order { "yes" } else { "no" };
        table.row(vec![
            (Some(Paint::Bold), row.receiver.to_string()),
            count(row.lines),
            count(row.delivered),
            count(row.distinct),
            none(row.missing),
            count(row.repeats_flagged),
            none(row.repeats_unflagged),
            (None, order.to_owned()),
            (good(row.equal), row.cksum.to_string()),
        ]);
    }
    format!("{}\ncksum of {}: {}\n", table.render(), lines.name, lines.cksum())
}

fn verdict(rows: &[Row]) -> Result<(), Failure> {
    for row in rows {
        let broken = match row {
            Row { missing: 1.., .. } => format!("{} lines are missing", row.missing),
            Row { equal: false, .. } => "its lines are not those of the file".to_owned(),
            Row { repeats_unflagged: 1.., .. } => {
                format!("{} lines came again without the flag", row.repeats_unflagged)
            }
            Row { in_order: false, .. } => "its lines came out of order".to_owned(),
            _ => continue,
        };
        return Err(Failure::new(Exit::Failed, format_args!("{}: {broken}", row.receiver)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flawless() -> Row {
        Row {
            receiver: "mail".parse().unwrap(),
            lines: 9,
            delivered: 10,
            distinct: 9,
            missing: 0,
            repeats_flagged: 1,
            repeats_unflagged: 0,
            in_order: true,
            cksum: 7,
            equal: true,
        }
    }

    #[test]
    fn whatever_one_receiver_did_not_get_as_promised_is_a_failure() {
        verdict(&[flawless(), flawless()]).unwrap();
        for (flawed, said) in [
            (Row { distinct: 8, missing: 1, equal: false, ..flawless() }, "1 lines are missing"),
            (Row { equal: false, ..flawless() }, "its lines are not those of the file"),
            (Row { repeats_unflagged: 2, ..flawless() }, "2 lines came again without the flag"),
            (Row { in_order: false, ..flawless() }, "its lines came out of order"),
        ] {
            let failure = verdict(&[flawless(), flawed]).unwrap_err();
            assert_eq!(failure.exit, Exit::Failed);
            assert_eq!(failure.message, format!("mail: {said}"));
        }
    }
}
