//! Spreads what happens to many flows at once over time.

use std::{collections::BTreeMap, time::Duration};

use super::aging::Doom;

/// The pacers may run ahead by what this time brings, so that nobody need wake up for each flow.
pub const BURSTS_PER_SECOND: u32 = 100;

/// Likewise of what drains.
const CATCH_UPS_PER_SECOND: u32 = 20;

/// At what pace an edge resets flows: one pacer for all, and for what drains, one for each service besides.
#[derive(Clone, Debug)]
pub struct Paces {
    edge: Paced,
    drains: BTreeMap<u16, Paced>,
}

#[derive(Clone, Debug)]
struct Paced {
    rate: u32,
    pacer: Pacer,
}

impl Paces {
    /// So many flows of the edge per second.
    pub fn new(rate: u32) -> Self {
        Self { edge: Paced::new(rate), drains: BTreeMap::new() }
    }

    /// The same, but so many at once after a pause.
    pub fn with_burst(rate: u32, burst: u32) -> Self {
        Self { edge: Paced { rate, pacer: Pacer::new(rate, burst) }, drains: BTreeMap::new() }
    }

    /// Another rate of the edge, from now on.
    pub fn set_rate(&mut self, rate: u32) {
        self.edge.set_rate(rate);
    }

    /// Whether a flow may be reset at `now`, idle or for what it is doomed; if so, it counts.
    pub fn take(&mut self, doom: Option<Doom>, now: Duration) -> bool {
        let Some(Doom::Drain { service, rate }) = doom else { return self.edge.pacer.take(now) };
        let drain = self.drains.entry(service).or_insert_with(|| Paced::of_drain(rate));
        drain.set_drain_rate(rate);
        drain.pacer.wait(now).is_zero() && self.edge.pacer.take(now) && drain.pacer.take(now)
    }
}

impl Paced {
    fn new(rate: u32) -> Self {
        Self { rate, pacer: Pacer::new(rate, rate / BURSTS_PER_SECOND) }
    }

    fn set_rate(&mut self, rate: u32) {
        if self.rate != rate {
            *self = Self::new(rate);
        }
    }

    /// Somebody waits for its end: what a late wake-up has missed is made up for, up to a twentieth of a second.
    fn of_drain(rate: u32) -> Self {
        Self { rate, pacer: Pacer::new(rate, rate / CATCH_UPS_PER_SECOND) }
    }

    /// A rate that is shared changes often: that must not make room for a burst each time.
    fn set_drain_rate(&mut self, rate: u32) {
        if self.rate != rate {
            let due = self.pacer.due;
            *self = Self::of_drain(rate);
            self.pacer.due = due;
        }
    }
}

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

    #[test]
    fn a_drain_goes_at_its_own_pace_and_never_beyond_the_edges() {
        let drain = |service, rate| Some(Doom::Drain { service, rate });
        let count = |paces: &mut Paces, doom| {
            let seconds = (1_000..11_000).map(Duration::from_millis);
            seconds.filter(|at| paces.take(doom, *at)).count()
        };
        assert_eq!(count(&mut Paces::new(100), drain(1, 10)), 100);
        assert_eq!(count(&mut Paces::new(10), drain(1, 100)), 100);
        assert_eq!(count(&mut Paces::new(10), Some(Doom::Dead)), 100);
        let mut paces = Paces::new(100);
        let start = Duration::from_secs(1);
        assert!(paces.take(drain(1, 1), start) && !paces.take(drain(1, 1), start));
        let later = start + Duration::from_millis(10);
        assert!(paces.take(drain(2, 1), later), "another service's is its own");
        assert!(paces.take(drain(1, 1), later + Duration::from_secs(1)));
        assert!(!paces.take(drain(1, 2), later + Duration::from_secs(1)), "the edge's pace holds");
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
