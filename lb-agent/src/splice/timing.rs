//! How long hand-overs take: from an offer's arrival to its answer, of those that succeed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds of the histogram's buckets, in microseconds; one bucket more has what takes longer.
pub const BOUNDS_MICROS: [u64; 12] = [20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1_000, 10_000];

/// Filled by all brokers.
#[derive(Debug, Default)]
pub struct Timing {
    counts: [AtomicU64; BOUNDS_MICROS.len() + 1],
    nanos: AtomicU64,
}

/// What it holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Of each bucket alone.
    pub counts: [u64; BOUNDS_MICROS.len() + 1],
    pub sum: Duration,
}

impl Timing {
    /// Another one has taken so long.
    pub fn took(&self, time: Duration) {
        let bucket = BOUNDS_MICROS.partition_point(|&bound| Duration::from_micros(bound) < time);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    #[must_use]
    pub fn snapshot(&self) -> Timings {
        Timings {
            counts: self.counts.each_ref().map(|count| count.load(Ordering::Relaxed)),
            sum: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let timing = Timing::default();
        for micros in [1, 20, 21, 10_000, 10_001, 1_000_000] {
            timing.took(Duration::from_micros(micros));
        }
        let Timings { counts, sum } = timing.snapshot();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(sum, Duration::from_micros(1_020_043));
    }
}
