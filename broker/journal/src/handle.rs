//! The journal as the node holds it: the shared core, and four threads that do its work.

use super::backup::take;
use super::ledger::{self, Question};
use super::reader::{self, Request};
use super::recovery::Engine;
use super::shared::Shared;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use restante_actors::events;
use restante_actors::journal::{
    Admission, Backlog, BackupTaken, Batch, Caps, Commits, Journal, Lane, Life, LookupError,
    Opened, Page, Read, ReadError, Settle, Ticket,
};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::ParkRecord;
use restante_protocol::refusal::{Code, Refusal};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// An open journal with its threads. Dropping it without [`Journal::close`] leaves what a crash
/// would leave.
pub(super) struct SegmentedLog {
    shared: Arc<Shared>,
    /// Questions come one per peer at most, so their number is bounded by that of the peers.
    requests: Sender<Request>,
    /// Those that callers may have under way are bounded by their connections.
    questions: Sender<Question>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    writer: Option<JoinHandle<()>>,
    reader: Option<JoinHandle<()>>,
    ledger: Option<JoinHandle<()>>,
    keeper: Option<JoinHandle<()>>,
}

/// Starts the threads of an open journal.
pub(super) fn start(engine: Engine) -> io::Result<Opened> {
    let Engine { shared, writer, keeper, completions, recovered } = engine;
    let (requests, requested) = std::sync::mpsc::channel();
    let (questions, asked) = std::sync::mpsc::channel();
    let thread = |name: &str| std::thread::Builder::new().name(format!("journal-{name}"));
    let (for_reader, for_ledger) = (Arc::clone(&shared), Arc::clone(&shared));
    let threads = Threads {
        writer: Some(thread("writer").spawn(move || writer.run())?),
        reader: Some(thread("reader").spawn(move || reader::run(&for_reader, &requested))?),
        ledger: Some(thread("ledger").spawn(move || ledger::run(&for_ledger, &asked))?),
        keeper: Some(thread("keeper").spawn(move || keeper.run())?),
    };
    shared.wake_keeper();
    let log = SegmentedLog { shared, requests, questions, threads: Mutex::new(threads) };
    Ok(Opened { journal: Arc::new(log), completions, recovered })
}

impl SegmentedLog {
    /// Ends the threads: the writer first, so that the keeper sees all it has left behind.
    fn stop(&self) {
        let mut threads = self.threads.lock();
        self.shared.close();
        self.shared.end_answers();
        join(threads.writer.take());
        self.shared.close_keeper();
        join(threads.keeper.take());
        // Who is gone already needs no telling.
        let _ = self.requests.send(Request::Close);
        let _ = self.questions.send(Question::Close);
        join(threads.reader.take());
        join(threads.ledger.take());
        self.shared.unlock();
    }
}

fn join(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread
        && thread.join().is_err()
    {
        events::journal_finding("one of its threads had panicked");
    }
}

impl Drop for SegmentedLog {
    fn drop(&mut self) {
        self.shared.abandon();
        self.stop();
    }
}

impl Journal for SegmentedLog {
    fn caps(&self) -> Caps {
        self.shared.caps
    }

    fn admission(&self) -> Admission {
        self.shared.admission()
    }

    fn next_number(&self) -> MessageNumber {
        self.shared.next_number()
    }

    fn append(&self, batch: Batch) -> Result<(Ticket, MessageNumber), (Batch, Refusal)> {
        self.shared.append(batch)
    }

    fn settle(&self, settle: Settle) {
        self.shared.settle(settle);
    }

    fn park(&self, park: ParkRecord) {
        self.shared.park(&park);
    }

    fn flush(&self, token: u64) {
        self.shared.flush(token);
    }

    fn checkpoint(&self, state: Bytes) {
        self.shared.checkpoint(state);
    }

    fn next(&self, read: Read) -> BoxFuture<'static, Result<Page, ReadError>> {
        let (answer, answered) = oneshot::channel();
        // Should its thread be gone, `answered` says so.
        match read.lane {
            Lane::Open => drop(self.requests.send(Request::Next(read, answer))),
            // Why they are parked may stand in many files: no delivery waits for that.
            Lane::Parked => drop(self.questions.send(Question::Parked(read, answer))),
        }
        Box::pin(async move {
            answered.await.unwrap_or_else(|_| {
                let refusal = Refusal::new(Code::ShuttingDown, "the journal is closed");
                Err(ReadError::Unavailable(refusal))
            })
        })
    }

    fn backlog(&self, peer: PeerId) -> Backlog {
        self.shared.state.lock().backlog(peer)
    }

    fn lookup(&self, number: MessageNumber) -> BoxFuture<'static, Result<Life, LookupError>> {
        let (answer, answered) = oneshot::channel();
        let _ = self.questions.send(Question::Lookup(number, answer));
        Box::pin(async move { answered.await.unwrap_or(Err(LookupError::Unavailable)) })
    }

    fn oldest_number(&self) -> MessageNumber {
        self.shared.oldest_number()
    }

    fn backup(&self, dir: PathBuf) -> BoxFuture<'static, Result<BackupTaken, Refusal>> {
        let (answer, answered) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("journal-backup".to_owned());
        // At most one does anything: see `Pins`. Should nobody wait any more, it is completed all the same.
        let started = thread.spawn(move || drop(answer.send(take(&shared, &dir))));
        Box::pin(async move {
            started.map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
            answered.await.unwrap_or_else(|_| {
                Err(Refusal::new(Code::Internal, "the backup ended without a result"))
            })
        })
    }

    fn commits(&self) -> Commits {
        Commits {
            count: self.shared.commits.load(Ordering::Relaxed),
            slowest_us: self.shared.slowest_us.swap(0, Ordering::Relaxed),
        }
    }

    fn disk_bytes(&self) -> u64 {
        self.shared.disk_bytes.load(Ordering::Relaxed)
    }

    fn close(&self) {
        self.stop();
    }
}
