//! What this machine can do at all, measured in the same run as the brokers: append and sync, the
//! loopback round trip. (The third limit, the bare relay, is a subject beside the brokers.)

use super::failure::{Context, Result};
use super::result::Metrics;
use super::server::Scratch;
use hdrhistogram::Histogram;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// One small write, as a lone message makes it.
const SMALL_BYTES: usize = 4 * 1024;
/// One large write, as a group of messages makes it.
const LARGE_BYTES: usize = 1024 * 1024;
/// A file that is overwritten has this size, one that grows at most this.
const FILE_BYTES: u64 = 64 * 1024 * 1024;
/// What goes over the loopback: about a small message.
const PACKET_BYTES: usize = 300;

/// All of them, each for a share of `time`.
pub(crate) fn measure(scratch: &Scratch, time: Duration) -> Result<Metrics> {
    let share = time / 5;
    let mut metrics = Metrics::default();
    let path = scratch.path().join("raw");
    let prepared = prepared(&path)?;
    let (times, _) = sync(&prepared, SMALL_BYTES, share, FILE_BYTES)?;
    metrics.put("overwrite_sync_p50_us", times.value_at_quantile(0.5) as f64 / 1e3);
    metrics.put("overwrite_sync_p99_us", times.value_at_quantile(0.99) as f64 / 1e3);
    let (_, rate) = sync(&prepared, LARGE_BYTES, share, FILE_BYTES)?;
    metrics.put("overwrite_sync_mb_per_s", rate);
    let (times, _) = sync(&fresh(&path)?, SMALL_BYTES, share, u64::MAX)?;
    metrics.put("append_sync_p50_us", times.value_at_quantile(0.5) as f64 / 1e3);
    let (_, rate) = sync(&fresh(&path)?, LARGE_BYTES, share, u64::MAX)?;
    metrics.put("append_sync_mb_per_s", rate);
    std::fs::remove_file(&path).context(path.display())?;
    let times = round_trips(share)?;
    metrics.put("loopback_p50_us", times.value_at_quantile(0.5) as f64 / 1e3);
    metrics.put("loopback_p99_us", times.value_at_quantile(0.99) as f64 / 1e3);
    Ok(metrics)
}

/// A file whose blocks have been written and synced, as a journal prepares its segments.
fn prepared(path: &Path) -> Result<File> {
    let file = fresh(path)?;
    let zeros = vec![0; LARGE_BYTES];
    for at in (0..FILE_BYTES).step_by(LARGE_BYTES) {
        file.write_all_at(&zeros, at)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn fresh(path: &Path) -> Result<File> {
    let _ = std::fs::remove_file(path);
    File::options().create_new(true).read(true).write(true).open(path).context(path.display())
}

/// Writes and syncs for a while, from the start again after `wrap` bytes: how long each took, and
/// 10^6 bytes a second.
fn sync(file: &File, bytes: usize, time: Duration, wrap: u64) -> Result<(Histogram<u64>, f64)> {
    let content = vec![0x5a; bytes];
    let mut times = histogram()?;
    let (mut at, mut written) = (0, 0_u64);
    let begun = Instant::now();
    while begun.elapsed() < time {
        let before = Instant::now();
        file.write_all_at(&content, at % wrap)?;
        file.sync_data()?;
        times.saturating_record(nanos(before));
        at += bytes as u64;
        written += bytes as u64;
    }
    Ok((times, written as f64 / begun.elapsed().as_secs_f64() / 1e6))
}

/// Sends a packet to another thread and back.
fn round_trips(time: Duration) -> Result<Histogram<u64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut packet = [0; PACKET_BYTES];
        while stream.read_exact(&mut packet).is_ok() {
            stream.write_all(&packet)?;
        }
        Ok(())
    });
    let mut times = histogram()?;
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    let mut packet = [0; PACKET_BYTES];
    let begun = Instant::now();
    while begun.elapsed() < time {
        let before = Instant::now();
        stream.write_all(&packet)?;
        stream.read_exact(&mut packet)?;
        times.saturating_record(nanos(before));
    }
    drop(stream);
    echo.join().map_err(|_| super::failure::failure!("the echo failed"))??;
    Ok(times)
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(100, 60_000_000_000, 3).context("a histogram")
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
