//! The tables as bars: a group for each workload, a bar for each subject, the figure beside it.

use super::figure;
use crate::versus::result::Outcome;
use std::fmt::Write;

/// What is drawn: the workload, its variant's beginning, the figure, the title.
const GROUPS: &[(&str, &str, &str, &str)] = &[
    ("W1", "8", "deliveries_per_s", "W1: 10 receivers, 256 B, deliveries/s"),
    ("W2", "", "deliveries_per_s", "W2: each to 8 receivers, 1 KiB, deliveries/s"),
    ("W3", "", "in_per_s", "W3: into a backlog, 1 KiB, messages/s"),
    ("W3", "", "out_per_s", "W3: out of a backlog, messages/s"),
    ("W4", "", "confirm_p50_us", "W4: one at a time, confirm p50, µs (short is good)"),
    ("W5", "", "first_s", "W5: first message after kill -9, s (short is good)"),
    ("W6a", "", "deliveries_per_s", "W6a: many receivers over 10 connections, deliveries/s"),
    ("W6b", "", "deliveries_per_s", "W6b: a connection for each, deliveries/s"),
    ("W8", "10000", "deliver_p99_us", "W8: 10,000/s, deliver p99, µs (short is good)"),
];

const WIDTH: f64 = 860.0;
const LABELS: f64 = 170.0;
const BARS: f64 = 560.0;
const BAR: f64 = 16.0;
const TITLE: f64 = 26.0;

pub(super) fn svg(outcomes: &[Outcome]) -> String {
    let mut body = String::new();
    let mut y = 10.0;
    for (workload, variant, metric, title) in GROUPS {
        let rows = outcomes.iter().filter(|row| {
            let shown = row.workload == *workload && row.variant.starts_with(variant);
            shown && row.subject != "this machine"
        });
        let bars: Vec<(&Outcome, f64)> =
            rows.filter_map(|row| Some((row, row.median.get(metric)?))).collect();
        let longest = bars.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        if longest <= 0.0 {
            continue;
        }
        y += TITLE;
        let _ = writeln!(body, r#"<text x="10" y="{:.0}" class="title">{title}</text>"#, y - 8.0);
        let mut seen = Vec::new();
        for (row, value) in bars {
            // The first variant only.
            if seen.contains(&&row.subject) {
                continue;
            }
            seen.push(&row.subject);
            let kind = match row.subject.as_str() {
                "Restante" => "own",
                "bare relay" => "limit",
                _ if row.synced => "synced",
                _ => "unsynced",
            };
            let (length, text) = ((BARS * value / longest).max(1.0), y + 12.0);
            let _ = writeln!(
                body,
                r#"<text x="{:.0}" y="{text:.0}" class="name">{}</text><rect x="{LABELS}" y="{:.0}" width="{length:.1}" height="12" class="{kind}"/><text x="{:.0}" y="{text:.0}">{}</text>"#,
                LABELS - 8.0,
                row.subject,
                y + 2.0,
                LABELS + length + 6.0,
                figure(value)
            );
            y += BAR;
        }
    }
    y += TITLE;
    let legend = [
        ("own", "Restante (synced)"),
        ("synced", "synced before the confirm"),
        ("unsynced", "not synced"),
        ("limit", "no broker, no disk"),
    ];
    for (place, (kind, text)) in legend.iter().enumerate() {
        let x = 10.0 + 205.0 * place as f64;
        let _ = writeln!(
            body,
            r#"<rect x="{x}" y="{:.0}" width="12" height="12" class="{kind}"/><text x="{:.0}" y="{y:.0}">{text}</text>"#,
            y - 10.0,
            x + 18.0
        );
    }
    let height = y + 14.0;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0}" viewBox="0 0 {WIDTH} {height:.0}">
<style>text{{font:12px sans-serif;fill:#222}}.title{{font-weight:bold}}.name{{text-anchor:end}}.own{{fill:#0a7d4f}}.synced{{fill:#3b6fb6}}.unsynced{{fill:#c2c7ce}}.limit{{fill:#e0b64f}}</style>
<rect width="100%" height="100%" fill="#fff"/>
{body}</svg>
"##
    )
}
