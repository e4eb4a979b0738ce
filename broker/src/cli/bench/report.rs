//! What a run came to, as a page for people and as one JSON object.

use super::super::output::{Output, Paint, Table};
use super::super::{Exit, Failure};
use super::load::{Measured, Sample};
use super::{Load, Loop};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// The outcome of a run. Counts are of the whole run, rates and CPU of its window.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// What was done.
    load: Shape,
    /// Deliveries a second: acked, and their publish confirmed.
    delivered_per_second: Rate,
    /// Confirmed publishes a second.
    confirmed_per_second: Rate,
    /// Payload delivered, in 10^6 bytes a second, at the median rate.
    megabytes_per_second: f64,
    published: u64,
    confirmed: u64,
    refused: u64,
    unconfirmed: u64,
    delivered: u64,
    duplicates: u64,
    /// Deliveries with the redelivered flag.
    flagged: u64,
    /// Deliveries that were not meant for their receiver or had other bytes.
    foreign: u64,
    /// Deliveries that confirmed messages owe.
    lost: u64,
    /// From the intended time to the confirm, in microseconds.
    confirm_us: Latency,
    /// From the intended time to the delivery, in microseconds.
    deliver_us: Latency,
    /// Of the node; absent when its pid is not known.
    node: Option<Use>,
    /// Of this process.
    generator: Use,
    /// Most memory the node had in RAM since it began, in bytes.
    node_memory_bytes_peak: Option<u64>,
    /// How long after the end of publishing everything had arrived, or was given up.
    drain_ms: u64,
    /// The node's first refusal, if there was one.
    refusal: Option<String>,
}

#[derive(Debug, Serialize)]
struct Shape {
    receivers: u32,
    producers: u16,
    /// Absent in an open loop.
    outstanding: Option<u32>,
    /// Messages a second of an open loop.
    rate: Option<f64>,
    size_bytes: u32,
    fanout: u32,
    seconds: u64,
    receivers_per_connection: u32,
    dialled: bool,
}

/// A rate over the seconds of the window.
#[derive(Debug, Serialize)]
struct Rate {
    median: f64,
    min: f64,
    max: f64,
    seconds: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
    messages: u64,
}

/// Processor time over the window.
#[derive(Debug, Serialize)]
struct Use {
    us_per_delivery: f64,
    user_us_per_delivery: f64,
    system_us_per_delivery: f64,
    /// 1.0 is one core, all the time.
    cores: f64,
}

impl Report {
    pub(super) fn new(load: &Load, measured: &Measured) -> Report {
        let Measured { samples, tally, memory, drained } = measured;
        let counts = tally.counts;
        let delivered_per_second = Rate::of(samples, |sample| sample.counts.delivered);
        let open = load.pace() != Loop::Closed;
        Report {
            load: Shape {
                receivers: load.receivers,
                producers: load.producers,
                outstanding: (!open).then_some(load.outstanding),
                rate: load.rate,
                size_bytes: load.size,
                fanout: load.fanout,
                seconds: load.seconds,
                receivers_per_connection: load.receivers_per_connection,
                dialled: load.dialled,
            },
            megabytes_per_second: delivered_per_second.median * f64::from(load.size) / 1e6,
            delivered_per_second,
            confirmed_per_second: Rate::of(samples, |sample| sample.counts.confirmed),
            published: counts.published,
            confirmed: counts.confirmed,
            refused: counts.refused,
            unconfirmed: counts.unconfirmed(),
            delivered: counts.delivered,
            duplicates: counts.duplicates,
            flagged: counts.flagged,
            foreign: counts.foreign,
            lost: counts.missing(),
            confirm_us: Latency::of(&tally.confirm),
            deliver_us: Latency::of(&tally.deliver),
            node: Use::of(samples, |sample| sample.node),
            generator: Use::of(samples, |sample| Some(sample.generator)).unwrap_or(Use::NONE),
            node_memory_bytes_peak: memory.map(|memory| memory.peak_bytes),
            drain_ms: u64::try_from(drained.as_millis()).unwrap_or(u64::MAX),
            refusal: tally.refusal.as_ref().map(|(code, detail)| format!("{code}: {detail}")),
        }
    }

    /// Whether the node kept its promises.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        let failed = |what: String| Err(Failure::new(Exit::Failed, what));
        let count = |count: u64| number(count as f64);
        if self.lost > 0 {
            return failed(format!(
                "{} deliveries of confirmed messages are lost",
                count(self.lost)
            ));
        }
        if self.foreign > 0 {
            let what = "deliveries were not what was sent, or not for their receiver";
            return failed(format!("{} {what}", count(self.foreign)));
        }
        if self.unconfirmed > 0 {
            return failed(format!("{} messages were never decided", count(self.unconfirmed)));
        }
        match &self.refusal {
            Some(refusal) => Err(Failure::new(
                Exit::Refused,
                format_args!("{} messages were refused, the first: {refusal}", count(self.refused)),
            )),
            None => Ok(()),
        }
    }

    pub(super) fn page(&self, output: Output) -> String {
        let mut page = String::new();
        let Shape { receivers, producers, size_bytes, fanout, seconds, .. } = &self.load;
        let pace = match (self.load.outstanding, self.load.rate) {
            (_, Some(rate)) => format!("{} a second", number(rate)),
            (outstanding, None) => {
                format!("{} unconfirmed each", number(f64::from(outstanding.unwrap_or(0))))
            }
        };
        let to = match (self.load.dialled, self.load.receivers_per_connection) {
            (true, _) => "dialled receivers".to_owned(),
            (false, 1) => "receivers".to_owned(),
            (false, shared) => format!("receivers, {shared} a connection"),
        };
        // Writing into a String cannot fail.
        let _ = writeln!(
            page,
            "{producers} producers, {pace}, {size_bytes} bytes to {fanout} of {receivers} {to}, {seconds} s\n"
        );
        page.push_str(&self.counts_table(output));
        page.push('\n');
        let mut table = Table::new(output, &["LATENCY", "P50", "P90", "P99", "P99.9", "MAX"]);
        for (what, latency) in [("to confirm", &self.confirm_us), ("to delivery", &self.deliver_us)]
        {
            let Latency { p50, p90, p99, p999, max, .. } = *latency;
            let cells = [p50, p90, p99, p999, max].map(|us| (None, time(us)));
            table.row([(None, what.to_owned())].into_iter().chain(cells).collect());
        }
        page.push_str(&table.render());
        page.push('\n');
        let mut table =
            Table::new(output, &["CPU", "A DELIVERY", "USER", "SYSTEM", "CORES", "MEMORY"]);
        if let Some(node) = &self.node {
            let peak = self.node_memory_bytes_peak.unwrap_or(0) as f64 / f64::from(1 << 20);
            table.row(node.row("node", format!("{peak:.0} MiB at most")));
        }
        table.row(self.generator.row("generator", String::new()));
        page.push_str(&table.render());
        page
    }

    fn counts_table(&self, output: Output) -> String {
        let head: &[_] = &["", "A SECOND", "LOWEST", "HIGHEST", "MB/S", "IN ALL"];
        let mut table = Table::new(output, head);
        let rate = |rate: &Rate| [rate.median, rate.min, rate.max].map(|rate| (None, number(rate)));
        let bytes = (None, format!("{:.1}", self.megabytes_per_second));
        let mut row = vec![(Some(Paint::Bold), "delivered and acked".to_owned())];
        row.extend(rate(&self.delivered_per_second));
        row.extend([bytes, (None, number(self.delivered as f64))]);
        table.row(row);
        let mut row = vec![(None, "confirmed".to_owned())];
        row.extend(rate(&self.confirmed_per_second));
        row.extend([(None, String::new()), (None, number(self.confirmed as f64))]);
        table.row(row);
        for (what, count, good) in [
            ("lost", self.lost, self.lost == 0),
            ("duplicates", self.duplicates, true),
            ("refused", self.refused, self.refused == 0),
        ] {
            let paint = if good { Paint::Green } else { Paint::Red };
            let blank = || (None, String::new());
            let count = (Some(paint), number(count as f64));
            table.row(vec![(None, what.to_owned()), blank(), blank(), blank(), blank(), count]);
        }
        table.render()
    }
}

impl Rate {
    fn of(samples: &[Sample], count: impl Fn(&Sample) -> u64) -> Rate {
        let seconds: Vec<f64> = samples
            .windows(2)
            .map(|pair| {
                let time = pair[1].at.duration_since(pair[0].at).as_secs_f64();
                ((count(&pair[1]) - count(&pair[0])) as f64 / time).round()
            })
            .collect();
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |place: usize| sorted.get(place).copied().unwrap_or(0.0);
        let middle = (at(sorted.len().saturating_sub(1) / 2) + at(sorted.len() / 2)) / 2.0;
        Rate { median: middle, min: at(0), max: at(sorted.len().saturating_sub(1)), seconds }
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Latency {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
            messages: histogram.len(),
        }
    }
}

impl Use {
    const NONE: Use = Use {
        us_per_delivery: 0.0,
        user_us_per_delivery: 0.0,
        system_us_per_delivery: 0.0,
        cores: 0.0,
    };

    fn of(samples: &[Sample], cpu: impl Fn(&Sample) -> Option<super::meter::Cpu>) -> Option<Use> {
        let (first, last) = (samples.first()?, samples.last()?);
        let used = cpu(last)?.since(cpu(first)?);
        let time = last.at.duration_since(first.at);
        let deliveries = (last.counts.delivered - first.counts.delivered).max(1) as f64;
        let share = |used: Duration| (used.as_secs_f64() * 1e9 / deliveries).round() / 1e3;
        Some(Use {
            us_per_delivery: share(used.total()),
            user_us_per_delivery: share(used.user),
            system_us_per_delivery: share(used.system),
            cores: (used.total().as_secs_f64() / time.as_secs_f64() * 1e3).round() / 1e3,
        })
    }

    fn row(&self, who: &str, memory: String) -> Vec<(Option<Paint>, String)> {
        let us = |us: f64| (None, format!("{us:.3} µs"));
        vec![
            (None, who.to_owned()),
            us(self.us_per_delivery),
            us(self.user_us_per_delivery),
            us(self.system_us_per_delivery),
            (None, format!("{:.2}", self.cores)),
            (None, memory),
        ]
    }
}

/// Whole, in groups of three digits.
pub(super) fn number(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// In the unit that keeps three digits readable.
fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::super::meter::Cpu;
    use super::super::tally::Counts;
    use super::*;
    use std::time::Instant;

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!(
            [0.0, 999.4, 1_000.0, 1_234_567.0].map(number),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!([7, 1_234, 61_000_000].map(time), ["7 µs", "1.23 ms", "61.00 s"]);
    }

    #[test]
    fn rates_are_medians_and_cpu_is_per_delivery() {
        let origin = Instant::now();
        let sample = |ms: u64, delivered, cpu_ms| Sample {
            at: origin + Duration::from_millis(ms),
            counts: Counts { delivered, ..Counts::default() },
            node: Some(Cpu { user: Duration::from_millis(cpu_ms), system: Duration::ZERO }),
            generator: Cpu::default(),
        };
        let samples = [sample(0, 10, 0), sample(1_000, 1_010, 1), sample(3_000, 5_010, 10)];
        let rate = Rate::of(&samples, |sample| sample.counts.delivered);
        assert_eq!((rate.median, rate.min, rate.max), (1_500.0, 1_000.0, 2_000.0));
        let used = Use::of(&samples, |sample| sample.node).unwrap();
        assert_eq!((used.us_per_delivery, used.cores), (2.0, 0.003));
        assert_eq!(Rate::of(&samples[..1], |_| 0).median, 0.0);
    }
}
