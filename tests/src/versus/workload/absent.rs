//! One receiver of eleven is absent: what the others' producers are still taken at, against a run
//! without it just before.

use super::{Metrics, Result, Shape, Subject, Times, flow};
use std::path::Path;

pub(super) fn run(
    subject: &dyn Subject,
    shape: &Shape,
    times: &Times,
    dir: &Path,
) -> Result<Metrics> {
    let whole = Shape { receivers: shape.present, ..*shape };
    let before = flow::run(subject, &whole, times, dir)?;
    let mut metrics = flow::run(subject, shape, times, dir)?;
    let rate = |metrics: &Metrics| metrics.get("confirms_per_s").unwrap_or(f64::NAN);
    metrics.put("accepted_ratio", rate(&metrics) / rate(&before));
    Ok(metrics)
}
