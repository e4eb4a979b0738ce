//! How fast the journal is, beside a bare program that appends and syncs the same bytes to the same
//! disk in the same run.
//!
//! `cargo run --release -p restante-journal --example journal_bench [DIR [ROUNDS [PART…]]]`; DIR
//! (default: `target/tmp`) must be on the disk that is to be measured, which nothing else writes to.
//! Every figure is the median of ROUNDS (default 3) runs, journal and bare program in turn. PARTs are
//! lone, ingest, read_back and steady. What is to be reached stands behind it:
//!
//! - a lone append at most 1.6 times a bare write and sync of an equally prepared file;
//! - ingest of 1 KiB at least 80 % of the bare program at the journal's own commit sizes, at most 1.15
//!   bytes written for a byte of payload;
//! - a backlog of 1 KiB read back at 700,000 messages a second;
//! - publish, read, ack at 300,000 a second with the disk bounded; with one receiver away and 2 million
//!   queued for it, 90 % of that for the others;
//! - while it goes on getting one message in eleven, at most 1.3 bytes written for a byte of payload. On
//!   a disk that is the limit the others then get 10 of 11 parts of what is published, and its messages
//!   are written twice (once more when compaction moves them together): 83 % of their rate without it.

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use restante_actors::journal::{
    Batch, BatchRecord, Completion, End, Journal, Lane, Opened, Page, Read, ReadError, Settle,
};
use restante_journal::{Options, open};
use restante_protocol::id::PeerId;
use restante_protocol::record::{MESSAGE_FIXED_BYTES, RECORD_HEADER_BYTES, RecordKind};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;

const PEERS: u32 = 10;
const RUN: Duration = Duration::from_millis(1_500);
/// Batches under way at once, as a router has them under load.
const DEPTH: usize = 16;
const MIB: f64 = 1024.0 * 1024.0;
/// What waits for the receiver that is away.
const AWAY_MESSAGES: u64 = 2_000_000;

fn main() {
    let mut args = std::env::args().skip(1);
    let root = args.next().map_or_else(|| PathBuf::from("target/tmp"), PathBuf::from);
    let rounds = args.next().map_or(3, |rounds| rounds.parse().expect("ROUNDS is a number"));
    std::fs::create_dir_all(&root).expect("the directory can be made");
    let dir = root.join(format!("journal-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the directory can be made");
    type Part = (&'static str, fn(&Path, usize));
    let parts: [Part; 4] =
        [("lone", lone), ("ingest", ingest), ("read_back", read_back), ("steady", steady)];
    let wanted: Vec<String> = args.collect();
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            part(&dir, rounds);
        }
    }
    std::fs::remove_dir_all(&dir).expect("the directory can be removed");
}

/// One append at a time, beside one bare write and sync of an equally prepared file.
fn lone(dir: &Path, rounds: usize) {
    println!("lone appends of 256 B, one at a time (ratio: at most 1.6)");
    for prepared in ["allocated", "written before"] {
        let zero_filled = prepared == "written before";
        let (mut bare, mut journal, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            bare.push(bare_lone(dir, zero_filled));
            journal.push(journal_lone(dir, zero_filled));
            ratio.push(journal[journal.len() - 1] / bare[bare.len() - 1]);
        }
        let (bare, journal, ratio) = (median(bare), median(journal), median(ratio));
        println!(
            "  file {prepared:<15} bare {bare:6.1} us   journal {journal:6.1} us   ratio {ratio:.2}"
        );
    }
}

fn bare_lone(dir: &Path, zero_filled: bool) -> f64 {
    let path = dir.join("bare");
    let file = prepared_file(&path, zero_filled);
    let record = vec![7u8; record_len(256)];
    let mut times = Vec::new();
    let (start, mut at) = (Instant::now(), 512);
    while start.elapsed() < RUN {
        let begun = Instant::now();
        file.write_all_at(&record, at).expect("write");
        file.sync_data().expect("sync");
        times.push(begun.elapsed().as_secs_f64() * 1e6);
        at += record.len() as u64;
    }
    std::fs::remove_file(path).expect("remove");
    median(times)
}

fn journal_lone(dir: &Path, recycled: bool) -> f64 {
    let path = dir.join("journal");
    // A recycled segment comes from an earlier life of the journal: fill some, settle, go round.
    let options =
        Options { segment_bytes: if recycled { 8 << 20 } else { 64 << 20 }, ..Options::default() };
    let mut opened = open(&path, options).expect("opens");
    if recycled {
        churn(&mut opened, 12 * (8 << 20));
    }
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < RUN {
        let batch = batch(1, 256, 1);
        let begun = Instant::now();
        opened.journal.append(batch).map_err(|(_, refusal)| refusal).expect("taken");
        wait(&mut opened, 1);
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    close(opened, &path);
    median(times)
}

/// Writes and settles so much that segments have gone round.
fn churn(opened: &mut Opened, bytes: u64) {
    let (count, size) = (64, 1024);
    let mut written = 0;
    while written < bytes {
        let batch = batch(count, size, 1);
        written += batch.bytes.len() as u64;
        let (_, first) = opened.journal.append(batch).map_err(|(_, r)| r).expect("taken");
        wait(opened, 1);
        let numbers: Vec<u64> = (first..first + count as u64).collect();
        opened.journal.settle(Settle::acked(PeerId(1), 1, first + count as u64 - 1, numbers));
    }
}

/// What one run of ingest came to.
struct Ingested {
    messages_per_s: f64,
    mib_per_s: f64,
    /// Processor time of the writer for a message.
    writer_ns: f64,
    commit_bytes: f64,
    /// Bytes written to the disk for a byte of payload.
    amplification: f64,
}

/// Batches under load, beside a bare program with commits of the same size and the same file
/// preparation.
fn ingest(dir: &Path, rounds: usize) {
    println!("ingest, {DEPTH} batches under way, {PEERS} receivers in turn (share: at least 80 %)");
    for size in [256, 1024] {
        for count in [1, 16, 128, 1024] {
            let (mut runs, mut bare) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                let run = journal_ingest(dir, size, count);
                bare.push(bare_ingest(dir, run.commit_bytes as usize));
                runs.push(run);
            }
            let of = |what: fn(&Ingested) -> f64| median(runs.iter().map(what).collect());
            let share = runs.iter().zip(&bare).map(|(run, bare)| 100.0 * run.mib_per_s / bare);
            println!(
                "  {size:4} B x {count:4}: {:9.0} msg/s {:6.1} MiB/s  bare {:6.1} MiB/s  share {:4.0} %  writer {:4.0} ns/msg  {:5.0} KiB/sync  written {:.2}",
                of(|run| run.messages_per_s),
                of(|run| run.mib_per_s),
                median(bare.clone()),
                median(share.collect()),
                of(|run| run.writer_ns),
                of(|run| run.commit_bytes / 1024.0),
                of(|run| run.amplification),
            );
        }
    }
}

/// Appends so many bytes with one write and syncs, over and over.
fn bare_ingest(dir: &Path, commit_bytes: usize) -> f64 {
    let path = dir.join("bare");
    let bytes = vec![7u8; commit_bytes.clamp(1, 32 << 20)];
    let mut file = prepared_file(&path, false);
    let (mut spent, mut at, mut total) = (Duration::ZERO, 0u64, 0u64);
    while spent < RUN {
        if at + bytes.len() as u64 > 64 << 20 {
            // Made ready beside the writing, as the journal's segments are.
            file = prepared_file(&path, false);
            at = 0;
        }
        let begun = Instant::now();
        file.write_all_at(&bytes, at).expect("write");
        file.sync_data().expect("sync");
        spent += begun.elapsed();
        at += bytes.len() as u64;
        total += bytes.len() as u64;
    }
    let mib = total as f64 / MIB / spent.as_secs_f64();
    std::fs::remove_file(path).expect("remove");
    mib
}

fn journal_ingest(dir: &Path, size: usize, count: usize) -> Ingested {
    let path = dir.join("journal");
    let mut opened = open(&path, Options::default()).expect("opens");
    let (mut messages, mut bytes, mut under_way) = (0u64, 0u64, 0usize);
    let cpu = thread_cpu("journal-writer");
    let before = disk_written(&path);
    let commits = opened.journal.commits().count;
    let start = Instant::now();
    while start.elapsed() < RUN {
        while under_way < DEPTH {
            let batch = batch(count, size, PEERS);
            bytes += batch.bytes.len() as u64;
            if opened.journal.append(batch).is_err() {
                break;
            }
            under_way += 1;
        }
        let done = wait(&mut opened, 1);
        messages += (done * count) as u64;
        under_way -= done;
    }
    let elapsed = start.elapsed().as_secs_f64();
    let written = disk_written(&path) - before;
    let commits = opened.journal.commits().count - commits;
    let cpu = (thread_cpu("journal-writer") - cpu) * 1e9 / messages.max(1) as f64;
    close(opened, &path);
    Ingested {
        messages_per_s: messages as f64 / elapsed,
        mib_per_s: bytes as f64 / MIB / elapsed,
        writer_ns: cpu,
        commit_bytes: bytes as f64 / commits.max(1) as f64,
        amplification: written / (messages as f64 * size as f64).max(1.0),
    }
}

/// A backlog of 1 KiB messages, read as a peer reads it.
fn read_back(dir: &Path, rounds: usize) {
    let path = dir.join("journal");
    println!("read back of 1 KiB, receivers one after the other (at least 700,000/s)");
    for peers in [1, PEERS] {
        let mut opened = open(&path, Options::default()).expect("opens");
        let messages = 400_000;
        fill(&mut opened, messages, |_| batch(1_000, 1024, peers));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let mut rates = Vec::new();
        for _ in 0..rounds {
            let (start, mut read) = (Instant::now(), 0);
            for peer in 1..=peers {
                let mut after = 0;
                loop {
                    let page = runtime.block_on(opened.journal.next(request(peer, after)));
                    let page = page.expect("reads");
                    if page.messages.is_empty() {
                        break;
                    }
                    read += page.messages.len() as u64;
                    after = page.through;
                }
            }
            assert_eq!(read, messages);
            rates.push(read as f64 / start.elapsed().as_secs_f64());
        }
        println!("  {peers:2} receivers: {:9.0} msg/s", median(rates));
        close(opened, &path);
    }
}

fn request(peer: u32, after: u64) -> Read {
    let (through, bytes_max, messages_max) = (u64::MAX, 1 << 20, 4_096);
    Read { peer: PeerId(peer), lane: Lane::Open, after, through, bytes_max, messages_max }
}

/// Queues messages, at most as many as the journal has room for at a time.
fn fill(opened: &mut Opened, messages: u64, batch: impl Fn(u64) -> Batch) {
    for nth in 0..messages / 1_000 {
        let mut next = batch(nth);
        while let Err((back, _)) = opened.journal.append(next) {
            next = back;
            wait(opened, 1);
        }
    }
    opened.journal.flush(1);
    while let Some(completion) = opened.completions.blocking_recv() {
        if matches!(completion.end, End::Flushed(_)) {
            break;
        }
        heard(&*opened.journal, completion);
    }
}

/// Publish, read from the journal, ack: all there; one away with much queued; and it gets ever more.
fn steady(dir: &Path, rounds: usize) {
    println!("publish, read back, ack of 1 KiB, {PEERS} receivers (at least 300,000/s)");
    let mut all = open(&dir.join("journal"), Options::default()).expect("opens");
    let mut away = open(&dir.join("away"), Options::default()).expect("opens");
    fill(&mut away, AWAY_MESSAGES, |_| batch_to(1_000, 1024, |_| PEERS + 1));
    let queued = away.journal.disk_bytes();
    // The first segments are made, later ones recycled.
    for opened in [&mut all, &mut away] {
        go_round(opened, dir, PEERS);
    }
    let (mut there, mut queued_for, mut growing) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        there.push(go_round(&mut all, dir, PEERS));
        queued_for.push(go_round(&mut away, dir, PEERS));
        growing.push(go_round(&mut away, dir, PEERS + 1));
    }
    let share = |rounds: &[Round]| {
        let pairs = rounds.iter().zip(&there);
        median(pairs.map(|(round, there)| 100.0 * round.rate / there.rate).collect())
    };
    for (what, rounds, before, wanted) in [
        ("all there", &there, 0, ""),
        ("one away, 2 million queued", &queued_for, queued, " (at least 90 %)"),
        ("it gets 1 of 11 besides", &growing, queued, ""),
    ] {
        let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
        let disk = rounds.iter().map(|round| round.disk_bytes.saturating_sub(before)).max();
        println!(
            "  {what:<27} {:9.0} msg/s, share {:3.0} %{wanted}, written {:.2} (at most 1.3), disk +{:.0} MiB",
            of(|round| round.rate),
            share(rounds),
            of(|round| round.amplification),
            disk.unwrap_or_default() as f64 / MIB
        );
    }
    close(all, &dir.join("journal"));
    close(away, &dir.join("away"));
}

/// What a round of publishing, reading and acking came to.
struct Round {
    /// Messages a second, read and acked.
    rate: f64,
    /// The most that the journal had on disk.
    disk_bytes: u64,
    /// Bytes written to the disk for a byte of published payload.
    amplification: f64,
}

/// Publishes to receivers 1 to `peers` in turn while the first [`PEERS`] of them read and ack.
fn go_round(opened: &mut Opened, dir: &Path, peers: u32) -> Round {
    type Reading = BoxFuture<'static, Result<Page, ReadError>>;
    const COUNT: usize = 128;
    let (mut messages, mut under_way, mut nth, mut most) = (0u64, 0, 0u32, 0);
    let from = opened.journal.next_number() - 1;
    let mut after = vec![from; PEERS as usize + 1];
    let mut reading: Vec<Option<Reading>> = (0..=PEERS).map(|_| None).collect();
    let written = disk_written(dir);
    let start = Instant::now();
    while start.elapsed() < 2 * RUN {
        while under_way < DEPTH {
            let batch = batch_to(COUNT, 1024, |at| 1 + (nth + at) % peers);
            if opened.journal.append(batch).is_err() {
                break;
            }
            nth = (nth + COUNT as u32) % peers;
            under_way += 1;
        }
        under_way -= wait(opened, 1);
        for peer in 1..=PEERS {
            let place = peer as usize;
            let read = reading[place]
                .get_or_insert_with(|| opened.journal.next(request(peer, after[place])));
            let Some(page) = read.now_or_never() else { continue };
            reading[place] = None;
            let page = page.expect("reads");
            let numbers: Vec<u64> = page.messages.iter().map(|stored| stored.number).collect();
            messages += numbers.len() as u64;
            if let Some(last) = numbers.last().copied() {
                after[place] = last;
                opened.journal.settle(Settle::acked(PeerId(peer), 1, last, numbers));
            }
        }
        most = most.max(opened.journal.disk_bytes());
    }
    let rate = messages as f64 / start.elapsed().as_secs_f64();
    wait(opened, under_way);
    let published = opened.journal.next_number() - 1 - from;
    let amplification = (disk_written(dir) - written) / (published as f64 * 1024.0);
    // What has not been read is read and acked all the same, in turn as before, and what that leaves to
    // be compacted is, so that the next round begins with nothing.
    let mut open: Vec<u32> = (1..=PEERS).collect();
    while !open.is_empty() {
        open.retain(|peer| {
            let Some(page) = next_page(opened, *peer, &mut after[*peer as usize]) else {
                return false;
            };
            let numbers: Vec<u64> = page.messages.iter().map(|stored| stored.number).collect();
            let last = after[*peer as usize];
            opened.journal.settle(Settle::acked(PeerId(*peer), 1, last, numbers));
            true
        });
        drain(&*opened.journal, &mut opened.completions);
    }
    let rested = Instant::now() + RUN;
    while Instant::now() < rested {
        drain(&*opened.journal, &mut opened.completions);
        std::thread::sleep(Duration::from_millis(20));
    }
    Round { rate, disk_bytes: most, amplification }
}

fn next_page(opened: &Opened, peer: u32, after: &mut u64) -> Option<Page> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let page = runtime.block_on(opened.journal.next(request(peer, *after))).expect("reads");
    *after = page.messages.last()?.number;
    Some(page)
}

fn close(opened: Opened, path: &Path) {
    opened.journal.close();
    drop(opened);
    std::fs::remove_dir_all(path).expect("remove");
}

/// Waits until `count` appends are durable, and takes what else has come; answers checkpoints.
fn wait(opened: &mut Opened, count: usize) -> usize {
    let mut done = 0;
    while done < count {
        let Some(completion) = opened.completions.blocking_recv() else { break };
        done += heard(&*opened.journal, completion);
    }
    done + drain(&*opened.journal, &mut opened.completions)
}

fn drain(journal: &dyn Journal, completions: &mut UnboundedReceiver<Completion>) -> usize {
    let mut done = 0;
    while let Ok(completion) = completions.try_recv() {
        done += heard(journal, completion);
    }
    done
}

fn heard(journal: &dyn Journal, completion: Completion) -> usize {
    match completion.end {
        End::Durable(_) => 1,
        End::CheckpointDue => {
            journal.checkpoint(Bytes::from_static(b"bench"));
            0
        }
        End::Flushed(_) => 0,
        other => panic!("{other:?}"),
    }
}

/// `count` messages of `size` bytes for one receiver each, in turn.
fn batch(count: usize, size: usize, peers: u32) -> Batch {
    batch_to(count, size, |nth| 1 + nth % peers)
}

/// `count` messages of `size` bytes, each for the receiver that `peer` names.
fn batch_to(count: usize, size: usize, peer: impl Fn(u32) -> u32) -> Batch {
    let mut bytes = BytesMut::with_capacity(count * record_len(size));
    let mut records = Vec::with_capacity(count);
    for nth in 0..count {
        let offset = bytes.len() as u32;
        bytes.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
        bytes.extend_from_slice(&1_700_000_000_000u64.to_be_bytes());
        bytes.extend_from_slice(&1u32.to_be_bytes());
        bytes.extend_from_slice(&(nth as u64).to_be_bytes());
        bytes.extend_from_slice(&[0, 1, 0, 0]);
        bytes.extend_from_slice(&peer(nth as u32).to_be_bytes());
        bytes.extend_from_slice(&BODY[..size]);
        let payload_at = (MESSAGE_FIXED_BYTES + 4 + 1) as u32;
        let body_len = (MESSAGE_FIXED_BYTES + 4 + size) as u32;
        records.push(BatchRecord { kind: RecordKind::Message, offset, body_len, payload_at });
    }
    Batch { bytes, records }
}

static BODY: [u8; 1024] = [0; 1024];

fn record_len(size: usize) -> usize {
    RECORD_HEADER_BYTES + MESSAGE_FIXED_BYTES + 4 + size
}

/// A file of 64 MiB, as the journal prepares its segments.
fn prepared_file(path: &Path, zero_filled: bool) -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .expect("create");
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 64 << 20)
        .expect("allocate");
    if zero_filled {
        let zeroes = vec![0; 1 << 20];
        (0..64u64).for_each(|nth| file.write_all_at(&zeroes, nth << 20).expect("write"));
    }
    file.sync_all().expect("sync");
    file
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Bytes that the disk under `dir` has been given since it is there, of whoever else uses it too; what
/// the kernel counts for a process takes a large page that is dirty in one place for dirty throughout.
fn disk_written(dir: &Path) -> f64 {
    let device = std::fs::metadata(dir).expect("it is there").dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"));
    let stat = stat.expect("DIR is on a block device");
    let sectors = stat.split_ascii_whitespace().nth(6).and_then(|sectors| sectors.parse().ok());
    512.0 * sectors.unwrap_or(0.0)
}

/// Seconds of processor time that the thread of this name has used.
fn thread_cpu(name: &str) -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    for task in tasks.flatten() {
        let named = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if named.trim() == name {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let ns = stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
            return ns.unwrap_or(0.0) / 1e9;
        }
    }
    0.0
}
