//! Which segments to compact: a decision about numbers, nothing else.

use restante_protocol::id::MessageNumber;
use std::ops::Range;

/// Most segments copied into one.
const SOURCES_MAX: usize = 64;
/// Most numbers from the first to the last of what is made one. Whoever has something open in it, and a
/// floor below it, may need a bit for each of them, in memory and in every checkpoint; and segments
/// that are gone may have had any number between the neighbours.
const SPAN_MAX: u64 = 1 << 22;
/// So many small neighbours are worth being made one.
const SMALL_RUN_MIN: usize = 8;

/// A sealed segment, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) id: u64,
    pub(super) first: MessageNumber,
    pub(super) next: MessageNumber,
    /// Bytes on disk.
    pub(super) bytes: u64,
    /// Live deliveries, and how many it had when it was sealed.
    pub(super) live: u64,
    pub(super) total: u64,
    /// Bytes that a copy of what is live would have, at most.
    pub(super) live_bytes: u64,
    /// Whether it may be copied now.
    pub(super) movable: bool,
}

impl Candidate {
    /// Less than half of it is live.
    pub(super) fn is_thin(&self) -> bool {
        self.movable && self.live_bytes * 2 < self.bytes
    }

    fn waste(&self) -> u64 {
        self.bytes.saturating_sub(self.live_bytes)
    }
}

/// Chooses neighbours to copy into one, the most profitable first: as much of the thinnest segment's
/// neighbourhood as is thin, once enough room can be won; else many small ones in a row, so that their
/// number stays in proportion to what is live.
pub(super) fn choose(
    candidates: &[Candidate],
    segment_bytes: u64,
    eager: bool,
) -> Option<Range<usize>> {
    let live: u64 = candidates.iter().map(|candidate| candidate.live_bytes).sum();
    let waste: u64 = candidates.iter().filter(|c| c.is_thin()).map(Candidate::waste).sum();
    // What may be wasted: little, so that much of the bound is left to what has not been judged yet.
    let allowed = if eager { 0 } else { segment_bytes / 2 + live / 32 };
    if waste > allowed {
        return thinnest(candidates).map(|seed| grow(candidates, seed, segment_bytes));
    }
    small_run(candidates, segment_bytes, if eager { 2 } else { SMALL_RUN_MIN })
}

fn thinnest(candidates: &[Candidate]) -> Option<usize> {
    // Parts in a million live, so that the comparison is one of whole numbers.
    let share = |c: &Candidate| c.live_bytes * 1_000_000 / c.bytes.max(1);
    let thin = candidates.iter().enumerate().filter(|(_, c)| c.is_thin());
    thin.min_by_key(|(_, c)| share(c)).map(|(place, _)| place)
}

/// The neighbourhood of `seed` that is thin, as far as one segment can take it.
fn grow(candidates: &[Candidate], seed: usize, segment_bytes: u64) -> Range<usize> {
    let mut run = seed..seed + 1;
    loop {
        let before = run.clone();
        for wider in [run.start.saturating_sub(1)..run.end, run.start..run.end + 1] {
            let thin = candidates.get(wider.clone()).is_some_and(|c| c.iter().all(|c| c.is_thin()));
            if wider != run && thin && fits(&candidates[wider.clone()], segment_bytes) {
                run = wider;
                break;
            }
        }
        if run == before {
            return run;
        }
    }
}

fn fits(run: &[Candidate], segment_bytes: u64) -> bool {
    let bytes: u64 = run.iter().map(|candidate| candidate.live_bytes).sum();
    let span = match run {
        [first, .., last] => last.next - first.first,
        _ => 0,
    };
    bytes <= segment_bytes && run.len() <= SOURCES_MAX && span <= SPAN_MAX
}

/// The first run of small segments that is long enough.
fn small_run(candidates: &[Candidate], segment_bytes: u64, least: usize) -> Option<Range<usize>> {
    let small = |c: &Candidate| c.movable && c.bytes <= segment_bytes / 8;
    let mut start = 0;
    while start < candidates.len() {
        let mut end = start;
        while end < candidates.len()
            && small(&candidates[end])
            && fits(&candidates[start..=end], segment_bytes)
        {
            end += 1;
        }
        if end - start >= least {
            return Some(start..end);
        }
        start = end.max(start + 1);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1_000;

    /// Segments of 100 numbers each: bytes on disk and bytes live.
    fn segments(sizes: &[(u64, u64)]) -> Vec<Candidate> {
        let candidate = |(place, (bytes, live_bytes)): (u64, &(u64, u64))| Candidate {
            id: place,
            first: place * 100,
            next: place * 100 + 100,
            bytes: *bytes,
            live: *live_bytes,
            total: *bytes,
            live_bytes: *live_bytes,
            movable: true,
        };
        (0..).zip(sizes).map(candidate).collect()
    }

    #[test]
    fn the_thinnest_goes_first_and_takes_its_thin_neighbours_along() {
        let candidates =
            segments(&[(1000, 400), (1000, 900), (1000, 300), (1000, 90), (1000, 499)]);
        assert_eq!(choose(&candidates, SEGMENT, false), Some(2..5));
        let mut halves = candidates.clone();
        halves[3].movable = false;
        assert_eq!(choose(&halves, SEGMENT, false), Some(2..3));
        // More than one segment can take is left for the next time.
        let wide = segments(&[(1000, 450); 4]);
        assert_eq!(choose(&wide, SEGMENT, false), Some(0..2));
    }

    #[test]
    fn little_waste_is_left_alone_and_much_is_not() {
        assert_eq!(choose(&segments(&[(900, 450), (1000, 500)]), SEGMENT, false), None);
        assert_eq!(choose(&segments(&[(500, 200)]), SEGMENT, false), None);
        assert_eq!(choose(&segments(&[(500, 200)]), SEGMENT, true), Some(0..1));
        assert_eq!(choose(&segments(&[(1000, 200)]), SEGMENT, false), Some(0..1));
    }

    #[test]
    fn neighbours_with_too_much_between_them_stay_apart() {
        for (between, run) in [(SPAN_MAX - 200, 0..2), (SPAN_MAX - 199, 0..1)] {
            let mut candidates = segments(&[(1000, 100), (1000, 200)]);
            candidates[1].first += between;
            candidates[1].next += between;
            assert_eq!(choose(&candidates, SEGMENT, true), Some(run));
        }
    }

    #[test]
    fn many_small_ones_become_one() {
        let mut sizes = vec![(1000, 1000)];
        sizes.extend([(100, 100); 12]);
        assert_eq!(choose(&segments(&sizes), SEGMENT, false), Some(1..11));
        sizes.truncate(8);
        assert_eq!(choose(&segments(&sizes), SEGMENT, false), None);
    }
}
