//! A load that goes on: warm up, a window, then everything arrives. Closed or open loop.

use super::{Metrics, Result, Shape, Subject, Times, begin};
use crate::versus::engine::Engine;
use crate::versus::server::Server;
use crate::versus::tally::Counts;
use std::path::Path;
use std::time::Instant;

/// A window lasts longer, up to so many times, until so much was delivered: a broker that answers in
/// lumps of seconds would otherwise show nothing.
const DELIVERIES_MIN: u64 = 2_000;
const WINDOWS_MAX: u32 = 5;
const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn run(
    subject: &dyn Subject,
    shape: &Shape,
    times: &Times,
    dir: &Path,
) -> Result<Metrics> {
    let (server, mut engine) = begin(subject, shape, dir)?;
    let metrics = window(&server, &mut engine, shape, times)?;
    Ok(metrics)
}

/// Publishes from now on, measures, and waits for what is under way.
pub(super) fn window(
    server: &Server,
    engine: &mut Engine,
    shape: &Shape,
    times: &Times,
) -> Result<Metrics> {
    engine.publish()?;
    engine.run_for(times.warmup)?;
    engine.tally.window_ns = engine.now_ns()..u64::MAX;
    let (begun, counts, cpu_s) = (Instant::now(), engine.counts(), server.cpu_s());
    engine.run_for(times.window)?;
    let enough = |now: &Counts| now.delivered - counts.delivered >= DELIVERIES_MIN;
    engine.run_until((WINDOWS_MAX - 1) * times.window, enough)?;
    engine.tally.window_ns.end = engine.now_ns();
    let (elapsed_s, after) = (begun.elapsed().as_secs_f64(), engine.counts());
    let cpu_s = server.cpu_s() - cpu_s;
    engine.stop();
    engine.run_until(times.drain, |counts| counts.unconfirmed() == 0 && counts.missing() == 0)?;
    let delivered = (after.delivered - counts.delivered) as f64;
    let confirmed = (after.confirmed - counts.confirmed) as f64;
    let mut metrics = Metrics::default();
    metrics.put("deliveries_per_s", delivered / elapsed_s);
    metrics.put("confirms_per_s", confirmed / elapsed_s);
    metrics.put("mb_per_s", delivered * shape.size as f64 / elapsed_s / 1e6);
    if delivered > 0.0 {
        metrics.put("cpu_us_per_delivery", cpu_s * 1e6 / delivered);
    }
    metrics.put("cores", cpu_s / elapsed_s);
    metrics.put("memory_peak_mib", server.memory_peak_bytes() as f64 / MIB);
    metrics.put("disk_mib", server.disk_bytes() as f64 / MIB);
    metrics.put("unconfirmed", engine.counts().unconfirmed() as f64);
    metrics.put_latency(&engine.tally);
    metrics.put_counts(&engine.counts());
    Ok(metrics)
}
