//! A table for each workload.

use super::figure;
use crate::versus::result::Outcome;
use std::fmt::Write;

/// A column: its head, and the figure under it.
type Column = (&'static str, &'static str);

const FLOW: &[Column] = &[
    ("deliveries/s", "deliveries_per_s"),
    ("MB/s", "mb_per_s"),
    ("broker CPU, µs a delivery", "cpu_us_per_delivery"),
    ("confirm p50, µs", "confirm_p50_us"),
    ("p99", "confirm_p99_us"),
    ("deliver p50, µs", "deliver_p50_us"),
    ("p99", "deliver_p99_us"),
    ("memory, MiB", "memory_peak_mib"),
    ("disk, MiB", "disk_mib"),
    ("lost", "lost"),
];

const LATENCY: &[Column] = &[
    ("confirm p50, µs", "confirm_p50_us"),
    ("p99", "confirm_p99_us"),
    ("p99.9", "confirm_p999_us"),
    ("deliver p50, µs", "deliver_p50_us"),
    ("p99", "deliver_p99_us"),
    ("p99.9", "deliver_p999_us"),
    ("deliveries/s", "deliveries_per_s"),
    ("broker CPU, µs a delivery", "cpu_us_per_delivery"),
    ("lost", "lost"),
];

const RAW: &[Column] = &[
    ("4 KiB overwritten + fdatasync p50, µs", "overwrite_sync_p50_us"),
    ("p99", "overwrite_sync_p99_us"),
    ("4 KiB appended + fdatasync p50, µs", "append_sync_p50_us"),
    ("1 MiB overwritten + fdatasync, MB/s", "overwrite_sync_mb_per_s"),
    ("1 MiB appended + fdatasync, MB/s", "append_sync_mb_per_s"),
    ("loopback round trip p50, µs", "loopback_p50_us"),
    ("p99", "loopback_p99_us"),
];

const BACKLOG: &[Column] = &[
    ("in, messages/s", "in_per_s"),
    ("in, MB/s", "in_mb_per_s"),
    ("out, messages/s", "out_per_s"),
    ("broker CPU out, µs a message", "out_cpu_us"),
    ("memory over idle, MiB", "memory_over_idle_mib"),
    ("disk by payload", "disk_by_payload"),
    ("disk after, MiB", "disk_after_mib"),
    ("lost", "lost"),
];

const RESTART: &[Column] = &[
    ("first message, s", "first_s"),
    ("all messages, s", "all_s"),
    ("lost", "lost"),
    ("duplicates", "duplicates"),
];

const ABSENT: &[Column] = &[
    ("accepted/s", "confirms_per_s"),
    ("of W1 just before", "accepted_ratio"),
    ("memory, MiB", "memory_peak_mib"),
    ("lost", "lost"),
];

/// What each workload is, and what is shown of it.
const WORKLOADS: &[(&str, &str, &[Column])] = &[
    ("raw", "The limits of this machine", RAW),
    ("W1", "W1: 10 receivers, each message to one, 256 B", FLOW),
    ("W2", "W2: each message to 8 receivers, 1 KiB", FLOW),
    ("W3", "W3: a backlog for an absent receiver, 1 KiB, then it comes", BACKLOG),
    ("W4", "W4: one message at a time, 256 B", LATENCY),
    ("W5", "W5: kill -9 with a backlog, then a restart", RESTART),
    ("W6a", "W6a: many receivers over 10 connections, each message to one, 1 KiB", FLOW),
    ("W6b", "W6b: a connection for each receiver", FLOW),
    ("W7", "W7: W1 with one absent receiver of eleven", ABSENT),
    ("W8", "W8: open loop at fixed rates, 10 receivers, 256 B", LATENCY),
    ("W9", "W9: growth", FLOW),
];

pub(super) fn tables(outcomes: &[Outcome]) -> String {
    let mut page = String::new();
    for (workload, title, columns) in WORKLOADS {
        let rows: Vec<&Outcome> =
            outcomes.iter().filter(|outcome| outcome.workload == *workload).collect();
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(page, "### {title}\n");
        let (limits, rows): (Vec<&Outcome>, Vec<&Outcome>) =
            rows.into_iter().partition(|row| row.subject == "this machine");
        for (rows, columns) in [(rows, *columns), (limits, RAW)] {
            if !rows.is_empty() {
                page += &table(&rows, columns);
            }
        }
    }
    page
}

fn table(rows: &[&Outcome], columns: &[Column]) -> String {
    let mut page = String::from("| | | synced |");
    for (head, _) in columns {
        let _ = write!(page, " {head} |");
    }
    let _ = write!(page, "\n|---|---|---|{}\n", "---:|".repeat(columns.len()));
    for row in rows {
        let synced = if row.synced { "yes" } else { "" };
        let _ = write!(page, "| {} | {} | {synced} |", row.variant, row.subject);
        match &row.failure {
            Some(why) => {
                let why: String = why.chars().filter(|c| !c.is_control()).take(120).collect();
                let _ = write!(page, " {} {}", why.replace('|', "/"), "|".repeat(columns.len()));
            }
            None => {
                for (_, metric) in columns {
                    let value = row.median.get(metric).map_or_else(|| "–".to_owned(), figure);
                    let _ = write!(page, " {value} |");
                }
            }
        }
        page.push('\n');
    }
    page + "\n"
}
