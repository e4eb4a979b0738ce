//! A backlog for a receiver that is absent; then it comes, or the broker is killed first.

use super::{Engine, Metrics, Result, Server, Shape, Subject, begin};
use crate::versus::failure::failure;
use crate::versus::tally::Counts;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: f64 = 1024.0 * 1024.0;
/// How long a fill may take, and a drain.
const FILL_MAX: Duration = Duration::from_secs(120);
const DRAIN_MAX: Duration = Duration::from_secs(120);
/// How long a killed broker may take until a message comes.
const RESTART_MAX: Duration = Duration::from_secs(60);
/// When nothing has come for so long, nothing will.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a broker has to give the disk back.
const FREED_WITHIN: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(1);

pub(super) fn fill_and_drain(subject: &dyn Subject, shape: &Shape, dir: &Path) -> Result<Metrics> {
    let (server, mut engine) = begin(subject, shape, dir)?;
    let idle = server.memory_bytes() as f64;
    let mut metrics = Metrics::default();
    fill(&mut engine, shape, &mut metrics)?;
    let disk = server.disk_bytes() as f64;
    metrics.put("disk_mib", disk / MIB);
    metrics.put("disk_by_payload", disk / (shape.messages * shape.size as u64) as f64);
    let (begun, cpu_s) = (Instant::now(), server.cpu_s());
    come(subject, &server, &mut engine, shape)?;
    drain(&mut engine)?;
    let (elapsed_s, counts) = (begun.elapsed().as_secs_f64(), engine.counts());
    metrics.put("out_per_s", counts.delivered as f64 / elapsed_s);
    metrics.put("out_cpu_us", (server.cpu_s() - cpu_s) * 1e6 / counts.delivered.max(1) as f64);
    let peak = server.memory_peak_bytes() as f64;
    metrics.put("memory_peak_mib", peak / MIB);
    metrics.put("memory_over_idle_mib", (peak - idle) / MIB);
    engine.run_for(FREED_WITHIN)?;
    metrics.put("disk_after_mib", server.disk_bytes() as f64 / MIB);
    metrics.put_counts(&counts);
    Ok(metrics)
}

pub(super) fn kill_and_restart(
    subject: &dyn Subject,
    shape: &Shape,
    dir: &Path,
) -> Result<Metrics> {
    let (mut server, mut engine) = begin(subject, shape, dir)?;
    let mut metrics = Metrics::default();
    fill(&mut engine, shape, &mut metrics)?;
    engine.hang_up();
    server.kill();
    let begun = Instant::now();
    server.start_again()?;
    // Whatever the broker says before it is ready, the receiver tries again.
    let came = loop {
        let first = come(subject, &server, &mut engine, shape)
            .and_then(|()| engine.run_until(SILENCE_MAX, |counts| counts.taken > 0));
        match first {
            Ok(true) => {
                metrics.put("first_s", begun.elapsed().as_secs_f64());
                break true;
            }
            Ok(false) => break false,
            Err(failure) if begun.elapsed() > RESTART_MAX => return Err(failure),
            Err(_) => {
                engine.hang_up();
                std::thread::sleep(RETRY);
            }
        }
    };
    if came {
        drain(&mut engine)?;
        metrics.put("all_s", begun.elapsed().as_secs_f64());
    }
    metrics.put_counts(&engine.counts());
    Ok(metrics)
}

/// Publishes all messages and awaits their confirms.
fn fill(engine: &mut Engine, shape: &Shape, metrics: &mut Metrics) -> Result<()> {
    let begun = Instant::now();
    engine.publish()?;
    let all = shape.messages;
    if !engine.run_until(FILL_MAX, |counts| counts.confirmed == all)? {
        let confirmed = engine.counts().confirmed;
        return Err(failure!("only {confirmed} of {all} were taken in {FILL_MAX:?}"));
    }
    engine.stop();
    let elapsed_s = begun.elapsed().as_secs_f64();
    metrics.put("in_per_s", all as f64 / elapsed_s);
    metrics.put("in_mb_per_s", all as f64 * shape.size as f64 / elapsed_s / 1e6);
    Ok(())
}

/// The receivers that were absent come.
fn come(subject: &dyn Subject, server: &Server, engine: &mut Engine, shape: &Shape) -> Result<()> {
    engine.tally.all_present();
    for receivers in shape.connections(shape.present..shape.receivers) {
        engine.add_receiver(subject.receivers(server.port, shape, receivers)?)?;
    }
    Ok(())
}

/// Receives until nothing is owed, or nothing comes any more.
fn drain(engine: &mut Engine) -> Result<()> {
    let end = Instant::now() + DRAIN_MAX;
    let mut progress: (Counts, Instant) = (engine.counts(), Instant::now());
    while engine.counts().missing() > 0 && Instant::now() < end {
        engine.run_until(Duration::from_millis(100), |counts| counts.missing() == 0)?;
        if engine.counts() != progress.0 {
            progress = (engine.counts(), Instant::now());
        } else if progress.1.elapsed() > SILENCE_MAX {
            break;
        }
    }
    Ok(())
}
