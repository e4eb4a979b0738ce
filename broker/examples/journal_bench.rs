//! How fast the journal is, beside a bare program that appends and syncs the same bytes to the same
//! disk in the same run.
//!
//! `cargo run --release -p restante --example journal_bench [DIR]`; DIR (default: `target/tmp`) must be
//! on the disk that is to be measured.

use bytes::{Bytes, BytesMut};
use restante::journal::{Options, open};
use restante_actors::journal::{
    Batch, BatchRecord, Completion, End, Journal, Lane, Opened, Read, Settle,
};
use restante_protocol::id::PeerId;
use restante_protocol::record::{MESSAGE_FIXED_BYTES, RECORD_HEADER_BYTES, RecordKind};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;

const PEERS: u32 = 10;
const RUN: Duration = Duration::from_millis(1_500);
/// Batches under way at once, as a router has them under load.
const DEPTH: usize = 16;
const MIB: f64 = 1024.0 * 1024.0;

fn main() {
    let root = std::env::args().nth(1).map_or_else(|| PathBuf::from("target/tmp"), PathBuf::from);
    std::fs::create_dir_all(&root).expect("the directory can be made");
    let dir = root.join(format!("journal-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the directory can be made");
    lone(&dir);
    ingest(&dir);
    read_back(&dir);
    steady(&dir);
    std::fs::remove_dir_all(&dir).expect("the directory can be removed");
}

/// One append at a time, beside one bare write and sync of an equally prepared file.
fn lone(dir: &Path) {
    println!("lone appends of 256 B, one at a time");
    for prepared in ["allocated", "written before"] {
        let zero_filled = prepared == "written before";
        let bare = bare_lone(dir, zero_filled);
        let journal = journal_lone(dir, zero_filled);
        println!(
            "  file {prepared:<15} bare {:6.1} us   journal {:6.1} us   ratio {:.2}",
            bare,
            journal,
            journal / bare
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
        times.push(begun.elapsed());
        at += record.len() as u64;
    }
    std::fs::remove_file(path).expect("remove");
    median_us(times)
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
        times.push(begun.elapsed());
    }
    close(opened, &path);
    median_us(times)
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

/// Batches under load, beside a bare program with the same batches and the same file preparation.
fn ingest(dir: &Path) {
    println!("ingest, {DEPTH} batches under way, {PEERS} receivers in turn");
    for size in [256, 1024] {
        for count in [1, 16, 128, 1024] {
            let bare = bare_ingest(dir, size, count);
            let (rate, mib, cpu, groups) = journal_ingest(dir, size, count);
            println!(
                "  {size:4} B x {count:4}: journal {rate:9.0} msg/s {mib:6.1} MiB/s  bare {bare:6.1} MiB/s  share {:4.0} %  writer {cpu:4.0} ns/msg  {groups:5.0} msg/sync",
                100.0 * mib / bare
            );
        }
    }
}

/// Appends the bytes of [`DEPTH`] batches with one write and syncs, over and over: what a commit
/// under this load is made of.
fn bare_ingest(dir: &Path, size: usize, count: usize) -> f64 {
    let path = dir.join("bare");
    let bytes = vec![7u8; (record_len(size) * count * DEPTH).min(8 << 20)];
    let mut file = prepared_file(&path, false);
    let (start, mut at, mut total) = (Instant::now(), 0u64, 0u64);
    while start.elapsed() < RUN {
        if at + bytes.len() as u64 > 64 << 20 {
            file = prepared_file(&path, false);
            at = 0;
        }
        file.write_all_at(&bytes, at).expect("write");
        file.sync_data().expect("sync");
        at += bytes.len() as u64;
        total += bytes.len() as u64;
    }
    let mib = total as f64 / MIB / start.elapsed().as_secs_f64();
    std::fs::remove_file(path).expect("remove");
    mib
}

fn journal_ingest(dir: &Path, size: usize, count: usize) -> (f64, f64, f64, f64) {
    let path = dir.join("journal");
    let mut opened = open(&path, Options::default()).expect("opens");
    let (mut messages, mut bytes, mut under_way) = (0u64, 0u64, 0usize);
    let cpu = thread_cpu("journal-writer");
    let (start, mut wakes) = (Instant::now(), 0u64);
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
        wakes += 1;
        messages += (done * count) as u64;
        under_way -= done;
    }
    let elapsed = start.elapsed().as_secs_f64();
    let cpu = (thread_cpu("journal-writer") - cpu) * 1e9 / messages.max(1) as f64;
    close(opened, &path);
    (
        messages as f64 / elapsed,
        bytes as f64 / MIB / elapsed,
        cpu,
        messages as f64 / wakes.max(1) as f64,
    )
}

/// A backlog of 1 KiB messages, read as a peer reads it.
fn read_back(dir: &Path) {
    let path = dir.join("journal");
    for peers in [1, PEERS] {
        let mut opened = open(&path, Options::default()).expect("opens");
        let messages = 400_000usize;
        for _ in 0..messages / 1_000 {
            while opened.journal.append(batch(1_000, 1024, peers)).is_err() {
                wait(&mut opened, 1);
            }
        }
        opened.journal.flush(1);
        while !matches!(opened.completions.blocking_recv().map(|c| c.end), Some(End::Flushed(1))) {}
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let (start, mut read) = (Instant::now(), 0);
        for peer in 1..=peers {
            let mut after = 0;
            loop {
                let peer = PeerId(peer);
                let request = Read {
                    peer,
                    lane: Lane::Open,
                    after,
                    through: u64::MAX,
                    bytes_max: 1 << 20,
                    messages_max: 4_096,
                };
                let page = runtime.block_on(opened.journal.next(request)).expect("reads");
                if page.messages.is_empty() {
                    break;
                }
                read += page.messages.len();
                after = page.through;
            }
        }
        assert_eq!(read, messages);
        let rate = read as f64 / start.elapsed().as_secs_f64();
        println!("read back of 1 KiB, {peers:2} receivers one after the other: {rate:9.0} msg/s");
        close(opened, &path);
    }
}

/// Publish, read from the journal, ack: the disk stays bounded.
fn steady(dir: &Path) {
    let path = dir.join("journal");
    let mut opened = open(&path, Options::default()).expect("opens");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let (count, mut messages, mut after, mut most) = (128, 0u64, vec![0u64; PEERS as usize + 1], 0);
    let start = Instant::now();
    while start.elapsed() < 2 * RUN {
        let mut under_way = 0;
        while under_way < DEPTH {
            if opened.journal.append(batch(count, 1024, PEERS)).is_err() {
                break;
            }
            under_way += 1;
        }
        wait(&mut opened, under_way);
        for peer in 1..=PEERS {
            let place = &mut after[peer as usize];
            let request = Read {
                peer: PeerId(peer),
                lane: Lane::Open,
                after: *place,
                through: u64::MAX,
                bytes_max: 1 << 20,
                messages_max: 4_096,
            };
            let page = runtime.block_on(opened.journal.next(request)).expect("reads");
            let numbers: Vec<u64> = page.messages.iter().map(|stored| stored.number).collect();
            messages += numbers.len() as u64;
            if let Some(last) = numbers.last().copied() {
                *place = last;
                opened.journal.settle(Settle::acked(PeerId(peer), 1, last, numbers));
            }
        }
        most = most.max(opened.journal.disk_bytes());
    }
    let rate = messages as f64 / start.elapsed().as_secs_f64();
    println!(
        "publish, read back, ack of 1 KiB, {PEERS} receivers: {rate:9.0} msg/s, disk at most {:.0} MiB",
        most as f64 / MIB
    );
    close(opened, &path);
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
    let mut bytes = BytesMut::with_capacity(count * record_len(size));
    let mut records = Vec::with_capacity(count);
    for nth in 0..count {
        let offset = bytes.len() as u32;
        bytes.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
        bytes.extend_from_slice(&1_700_000_000_000u64.to_be_bytes());
        bytes.extend_from_slice(&1u32.to_be_bytes());
        bytes.extend_from_slice(&(nth as u64).to_be_bytes());
        bytes.extend_from_slice(&[0, 1, 0, 0]);
        bytes.extend_from_slice(&(1 + nth as u32 % peers).to_be_bytes());
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

fn median_us(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6)
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
