//! Spreads what happens to many flows at once over time.

use std::time::Duration;

/// A token bucket, as the generic cell rate algorithm: so many events per second, and a few at once
/// after a pause. It has no clock: the caller tells the time, which starts anywhere.
#[derive(Clone, Debug)]
pub struct Pacer {
    /// Between two events at the full rate.
    interval: Duration,
    /// How far events may run ahead of the rate.
    tolerance: Duration,
    /// When the next event would come at exactly this rate.
    due: Duration,
}

impl Pacer {
    /// At most `per_second` events per second in the long run, at most `burst` at once. Zero of either
    /// counts as one.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, tolerance: interval * burst.saturating_sub(1), due: Duration::ZERO }
    }

    /// Whether an event may happen at `now`; if so, it counts.
    pub fn take(&mut self, now: Duration) -> bool {
        if !self.wait(now).is_zero() {
            return false;
        }
        self.due = self.due.max(now) + self.interval;
        true
    }

    /// How long from `now` until an event may happen.
    pub fn wait(&self, now: Duration) -> Duration {
        self.due.saturating_sub(self.tolerance).saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let mut pacer = Pacer::new(10, 3);
        let start = Duration::from_secs(100);
        assert_eq!((0..10).filter(|_| pacer.take(start)).count(), 3);
        assert_eq!(pacer.wait(start), Duration::from_millis(100));
        assert!(!pacer.take(start + Duration::from_millis(99)));
        assert!(pacer.take(start + Duration::from_millis(100)));
        // A pause fills the bucket to its burst, not beyond.
        assert_eq!((0..10).filter(|_| pacer.take(start + Duration::from_secs(60))).count(), 3);
    }

    proptest! {
        #[test]
        fn no_window_has_more_than_its_share(
            rate in 1u32..5_000,
            burst in 1u32..50,
            gaps in prop::collection::vec(0u64..20_000_000, 1..300),
        ) {
            let mut pacer = Pacer::new(rate, burst);
            let mut now = Duration::from_secs(5);
            let mut taken = Vec::new();
            for gap in gaps {
                now += Duration::from_nanos(gap);
                if pacer.take(now) {
                    taken.push(now);
                }
            }
            for (n, first) in taken.iter().enumerate() {
                for (m, last) in taken.iter().enumerate().skip(n) {
                    let share = (*last - *first).as_secs_f64() * f64::from(rate) + f64::from(burst);
                    // The interval is rounded down to a nanosecond.
                    prop_assert!((m - n + 1) as f64 <= share * 1.00001 + 1e-6);
                }
            }
        }

        #[test]
        fn waiting_is_enough(rate in 1u32..5_000, burst in 1u32..50, takes in 1usize..100) {
            let mut pacer = Pacer::new(rate, burst);
            let mut now = Duration::from_secs(5);
            for _ in 0..takes {
                now += pacer.wait(now);
                prop_assert!(pacer.take(now));
            }
        }
    }
}
