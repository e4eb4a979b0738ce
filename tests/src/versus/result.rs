//! What runs came to, and the medians of them.

use super::tally::{Counts, Tally};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Named figures of one run; the unit stands in the name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Metrics(pub(crate) BTreeMap<String, f64>);

impl Metrics {
    pub(crate) fn put(&mut self, name: &str, value: f64) {
        self.0.insert(name.to_owned(), value);
    }

    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// What became of the messages.
    pub(crate) fn put_counts(&mut self, counts: &Counts) {
        self.put("lost", counts.missing() as f64);
        self.put("duplicates", counts.duplicates as f64);
        self.put("foreign", counts.foreign as f64);
    }

    /// Latencies from the intended time on.
    pub(crate) fn put_latency(&mut self, tally: &Tally) {
        for (name, times) in [("confirm", &tally.confirm), ("deliver", &tally.deliver)] {
            for (quantile, at) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
                self.put(&format!("{name}_{quantile}_us"), quantile_us(times, at));
            }
        }
    }

    /// The median of each figure over runs.
    pub(crate) fn median(runs: &[Metrics]) -> Metrics {
        let names = runs.iter().flat_map(|run| run.0.keys());
        let of = |name: &String| {
            let mut values: Vec<f64> = runs.iter().filter_map(|run| run.get(name)).collect();
            values.sort_by(f64::total_cmp);
            let (low, high) = ((values.len() - 1) / 2, values.len() / 2);
            (name.clone(), f64::midpoint(values[low], values[high]))
        };
        Metrics(names.map(of).collect())
    }
}

fn quantile_us(times: &Histogram<u64>, at: f64) -> f64 {
    times.value_at_quantile(at) as f64 / 1e3
}

/// All runs of one subject in one case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// As the and the table's rows are called: `W1`.
    pub(crate) workload: String,
    /// Which variant: a rate, a size.
    pub(crate) variant: String,
    pub(crate) subject: String,
    /// Whether its confirms come after a sync.
    pub(crate) synced: bool,
    pub(crate) median: Metrics,
    pub(crate) runs: Vec<Metrics>,
    /// Why there is nothing, or less than wanted.
    pub(crate) failure: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_taken_of_each_figure() {
        let run = |rate: f64| {
            let mut metrics = Metrics::default();
            metrics.put("rate", rate);
            metrics
        };
        let median = |rates: &[f64]| {
            let runs: Vec<Metrics> = rates.iter().map(|rate| run(*rate)).collect();
            Metrics::median(&runs).get("rate")
        };
        assert_eq!(median(&[5.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(&[1.0, 2.0]), Some(1.5));
        assert_eq!(Metrics::median(&[]), Metrics::default());
    }
}
