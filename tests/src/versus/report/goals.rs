//! What Restante set out to reach, and whether this run shows it.

use super::figure;
use crate::versus::result::Outcome;
use std::fmt::Write;

const OWN: &str = "Restante";

/// Figures by workload, variant and subject.
struct Figures<'a>(&'a [Outcome]);

impl Figures<'_> {
    fn rows(&self, workload: &str) -> impl Iterator<Item = &Outcome> {
        self.0.iter().filter(move |row| row.workload == workload && row.failure.is_none())
    }

    fn own(&self, workload: &str, variant: &str, metric: &str) -> Option<f64> {
        let mut own = self.rows(workload).filter(|row| row.subject == OWN);
        own.find(|row| row.variant.starts_with(variant))?.median.get(metric)
    }

    fn limit(&self, workload: &str, subject: &str, metric: &str) -> Option<f64> {
        self.rows(workload)
            .filter(|row| row.subject == subject)
            .find_map(|row| row.median.get(metric))
    }

    /// The best of the other brokers in a variant.
    fn best(&self, workload: &str, variant: &str, metric: &str, want: Want) -> Option<(f64, &str)> {
        let others = self.rows(workload).filter(|row| {
            let broker = row.subject != OWN && row.subject != "bare relay";
            let counts = broker && (want.among == Among::All || row.synced);
            // One that loses messages does not do the job.
            counts && row.variant.starts_with(variant) && row.median.get("lost") == Some(0.0)
        });
        let values = others.filter_map(|row| Some((row.median.get(metric)?, row.subject.as_str())));
        match want.better {
            Better::High => values.max_by(|a, b| a.0.total_cmp(&b.0)),
            Better::Low => values.min_by(|a, b| a.0.total_cmp(&b.0)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    High,
    Low,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Among {
    All,
    Synced,
}

#[derive(Clone, Copy)]
struct Want {
    better: Better,
    among: Among,
}

const HIGH: Want = Want { better: Better::High, among: Among::All };
const LOW: Want = Want { better: Better::Low, among: Among::All };
const LOW_SYNCED: Want = Want { better: Better::Low, among: Among::Synced };

/// One line: what is wanted, what was measured, what it is held against.
struct Goal {
    row: String,
    what: String,
    measured: Option<f64>,
    better: Better,
    bound: Option<f64>,
    bound_from: String,
}

pub(super) fn table(outcomes: &[Outcome]) -> String {
    let figures = Figures(outcomes);
    let goals: Vec<Goal> = fixed(&figures).into_iter().chain(against(&figures)).collect();
    let shown: Vec<&Goal> = goals.iter().filter(|goal| goal.measured.is_some()).collect();
    let mut page = String::new();
    if !shown.is_empty() {
        page += "### Goals\n\n| | what | Restante | wanted | from | reached |\n|---|---|---:|---:|---|---|\n";
    }
    for Goal { row, what, measured, better, bound, bound_from } in shown {
        let (measured, sign) =
            (measured.unwrap_or(f64::NAN), if *better == Better::High { "≥" } else { "≤" });
        let reached = match bound {
            Some(bound) if *better == Better::High => {
                if measured >= *bound {
                    "yes"
                } else {
                    "**no**"
                }
            }
            Some(bound) => {
                if measured <= *bound {
                    "yes"
                } else {
                    "**no**"
                }
            }
            None => "–",
        };
        let bound = bound.map_or_else(|| "–".to_owned(), figure);
        let _ = writeln!(
            page,
            "| {row} | {what} | {} | {sign} {bound} | {bound_from} | {reached} |",
            figure(measured)
        );
    }
    page + &growth(&figures)
}

/// Bounds that are figures, or limits of this machine.
fn fixed(figures: &Figures<'_>) -> Vec<Goal> {
    let goal =
        |row: &str, variant: &str, metric: &str, better, bound: Option<f64>, from: &str| Goal {
            row: row.to_owned(),
            what: words(variant, metric),
            measured: figures.own(row, variant, metric),
            better,
            bound,
            bound_from: from.to_owned(),
        };
    let (high, low) = (Better::High, Better::Low);
    let limit = |workload, metric| figures.limit(workload, "this machine", metric);
    let bare = limit("W3", "append_sync_mb_per_s").map(|rate| 0.8 * rate);
    let lone = limit("W4", "overwrite_sync_p50_us")
        .zip(limit("W4", "loopback_p50_us"))
        .map(|(sync, trip)| 1.5 * (sync + 2.0 * trip));
    let relay = figures.limit("W6b", "bare relay", "deliveries_per_s").map(|rate| 0.6 * rate);
    let many = figures.own("W6a", "", "deliveries_per_s").map(|rate| 0.7 * rate);
    let own_many = figures.rows("W6a").filter(|row| row.subject == OWN).nth(1);
    let ten_times = own_many.map_or("none", |row| row.variant.as_str());
    vec![
        goal("W1", "8", "deliveries_per_s", high, Some(1.2e6), "goal"),
        goal("W1", "8", "cpu_us_per_delivery", low, Some(0.8), "goal"),
        goal("W1", "1 ", "deliveries_per_s", high, Some(5e5), "goal"),
        goal("W2", "", "deliveries_per_s", high, Some(1e6), "goal"),
        goal("W3", "", "in_mb_per_s", high, bare, "0.8 × append + sync"),
        goal("W3", "", "out_per_s", high, Some(6e5), "goal"),
        goal("W3", "", "memory_over_idle_mib", low, Some(24.0), "goal"),
        goal("W4", "", "confirm_p50_us", low, lone, "1.5 × (sync + 2 round trips)"),
        goal("W4", "", "confirm_p99_us", low, lone.map(|bound| 3.0 * bound), "3 × that"),
        goal("W5", "", "first_s", low, Some(0.15), "goal"),
        goal("W5", "", "lost", low, Some(0.0), "goal"),
        goal("W6a", "", "deliveries_per_s", high, Some(2.5e5), "goal"),
        goal("W6a", "", "memory_peak_mib", low, Some(64.0), "goal"),
        goal("W6a", ten_times, "deliveries_per_s", high, many, "0.7 × a tenth of them"),
        goal("W6b", "", "deliveries_per_s", high, relay, "0.6 × bare relay"),
        goal("W7", "", "accepted_ratio", high, Some(0.95), "goal"),
    ]
}

/// Bounds that are the other brokers.
fn against(figures: &Figures<'_>) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut ahead = |row: &str, variant: &str, metric: &str, want: Want| {
        let best = figures.best(row, variant, metric, want);
        goals.push(Goal {
            row: row.to_owned(),
            what: words(variant, metric),
            measured: figures.own(row, variant, metric),
            better: want.better,
            bound: best.map(|(value, _)| value),
            bound_from: best.map_or("no other broker measured", |(_, who)| who).to_owned(),
        });
    };
    for (row, variant) in [("W1", "8"), ("W1", "1 "), ("W2", ""), ("W6a", ""), ("W6b", "")] {
        ahead(row, variant, "deliveries_per_s", HIGH);
    }
    ahead("W3", "", "in_per_s", HIGH);
    ahead("W3", "", "out_per_s", HIGH);
    ahead("W5", "", "first_s", LOW);
    ahead("W4", "", "confirm_p50_us", LOW_SYNCED);
    ahead("W4", "", "deliver_p50_us", LOW_SYNCED);
    ahead("W7", "", "confirms_per_s", HIGH);
    let rates = figures.rows("W8").filter(|row| row.subject == OWN).map(|row| row.variant.clone());
    for rate in rates.collect::<Vec<_>>() {
        for metric in ["deliver_p50_us", "deliver_p99_us", "deliver_p999_us"] {
            ahead("W8", &rate, metric, LOW_SYNCED);
        }
    }
    goals
}

fn words(variant: &str, metric: &str) -> String {
    format!("{} {}", variant.trim(), metric.replace('_', " ")).trim().to_owned()
}

/// Broker CPU a message as `a + b × bytes + c × receivers`, by least squares over W9.
fn growth(figures: &Figures<'_>) -> String {
    let subjects = figures.rows("W9").map(|row| row.subject.clone());
    let mut page = String::new();
    for subject in subjects.collect::<std::collections::BTreeSet<_>>() {
        let points: Vec<[f64; 3]> = figures
            .rows("W9")
            .filter(|row| row.subject == subject)
            .filter_map(|row| {
                let number = row.variant.split(' ').next()?.parse::<f64>().ok()?;
                let (bytes, receivers) = match row.variant.split_once(' ')?.1 {
                    "B" => (number, 1.0),
                    "a message" => (256.0, number),
                    _ => return None,
                };
                let cost = row.median.get("cpu_us_per_delivery")? * receivers;
                Some([bytes, receivers, cost])
            })
            .collect();
        if let Some([a, b, c]) = fit(&points) {
            let _ = writeln!(
                page,
                "\n{subject}: broker CPU a message ≈ {a:.2} µs + {:.3} µs × KiB + {c:.2} µs × receivers \
                 (least squares of relative errors over {} points).",
                b * 1_024.0,
                points.len()
            );
        }
    }
    page
}

/// Least squares of the relative error, so that small messages count as much as large ones.
fn fit(points: &[[f64; 3]]) -> Option<[f64; 3]> {
    let mut system = [[0.0; 4]; 3];
    for [bytes, receivers, cost] in points {
        let row = [1.0 / cost, bytes / cost, receivers / cost];
        for (at, line) in system.iter_mut().enumerate() {
            for (place, value) in row.iter().enumerate() {
                line[place] += row[at] * value;
            }
            line[3] += row[at];
        }
    }
    for pivot in 0..3 {
        let best = (pivot..3)
            .max_by(|a, b| system[*a][pivot].abs().total_cmp(&system[*b][pivot].abs()))?;
        system.swap(pivot, best);
        if system[pivot][pivot].abs() < 1e-12 {
            return None;
        }
        let line = system[pivot];
        for (_, other) in system.iter_mut().enumerate().filter(|(at, _)| *at != pivot) {
            let factor = other[pivot] / line[pivot];
            other.iter_mut().zip(line).for_each(|(value, own)| *value -= factor * own);
        }
    }
    Some([0, 1, 2].map(|at| system[at][3] / system[at][at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::versus::result::Metrics;

    #[test]
    fn a_fit_finds_the_plane_it_was_made_from() {
        let cost =
            |bytes: f64, receivers: f64| [bytes, receivers, 0.5 + 0.001 * bytes + 0.25 * receivers];
        let points = [cost(64.0, 1.0), cost(1_024.0, 1.0), cost(65_536.0, 1.0), cost(256.0, 8.0)];
        let [a, b, c] = fit(&points).unwrap();
        assert!((a - 0.5).abs() < 1e-6 && (b - 0.001).abs() < 1e-9 && (c - 0.25).abs() < 1e-6);
        assert_eq!(fit(&points[..1]), None);
    }

    #[test]
    fn a_goal_is_held_against_the_best_that_loses_nothing() {
        let row = |subject: &str, rate: f64, lost: f64| {
            let mut median = Metrics::default();
            median.put("deliveries_per_s", rate);
            median.put("lost", lost);
            Outcome {
                workload: "W2".to_owned(),
                variant: String::new(),
                subject: subject.to_owned(),
                synced: false,
                median,
                runs: Vec::new(),
                failure: None,
            }
        };
        let page = table(&[row(OWN, 2e6, 0.0), row("slow", 1e3, 0.0), row("loses", 9e9, 5.0)]);
        assert!(
            page.contains("| W2 | deliveries per s | 2,000,000 | ≥ 1,000 | slow | yes |"),
            "{page}"
        );
        assert!(!page.contains("loses"), "{page}");
    }
}
