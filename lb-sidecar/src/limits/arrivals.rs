//! New connections of a service in a second. Nobody is refused: whoever comes too fast waits in the backlog.

use std::{cell::Cell, time::Duration};

use tokio::time::Instant;

/// So much of a second may come at once.
const AT_ONCE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Default)]
pub struct Arrivals {
    /// When all that have come would have come at the rate.
    paid: Cell<Option<Instant>>,
}

impl Arrivals {
    /// One has come; at a rate of 0 all come for nothing. Those that come although it is not their time, since their listener
    /// goes, make nobody wait for longer than the next in turn would.
    pub fn spend(&self, rate: u32, now: Instant) {
        if rate > 0 {
            let paid = self.paid.get().unwrap_or(now).clamp(now, now + AT_ONCE);
            self.paid.set(Some(paid + Duration::from_secs(1) / rate));
        }
    }

    /// When the next may come, if not now.
    pub fn due(&self, rate: u32, now: Instant) -> Option<Instant> {
        self.paid.get().filter(|paid| rate > 0 && *paid > now + AT_ONCE).map(|paid| paid - AT_ONCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many come in so long, of a crowd that never ends.
    fn come(rate: u32, milliseconds: u64) -> u64 {
        let (arrivals, start) = (Arrivals::default(), Instant::now());
        let end = start + Duration::from_millis(milliseconds);
        let (mut now, mut count) = (start, 0);
        while now < end {
            match arrivals.due(rate, now) {
                Some(due) => now = due,
                None => {
                    arrivals.spend(rate, now);
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn a_tenth_of_a_second_at_once_and_then_the_rate() {
        assert_eq!(come(1_000, 1), 101, "at once");
        assert_eq!(come(1_000, 1_000), 1_100);
        assert_eq!(come(1_000, 10_000), 10_100);
        assert_eq!([10, 1_000, 2_000, 10_000].map(|it| come(1, it)), [1, 2, 3, 11]);
    }

    #[test]
    fn a_crowd_that_comes_out_of_turn_leaves_no_debt() {
        let (arrivals, now) = (Arrivals::default(), Instant::now());
        (0..2_000).for_each(|_| arrivals.spend(50, now));
        assert_eq!(arrivals.due(50, now), Some(now + Duration::from_millis(20)));
    }

    #[test]
    fn a_pause_is_not_saved_up_and_no_rate_holds_nobody() {
        let (arrivals, start) = (Arrivals::default(), Instant::now());
        let later = start + Duration::from_secs(60);
        arrivals.spend(10, start);
        arrivals.spend(10, later);
        arrivals.spend(10, later);
        assert_eq!(arrivals.due(10, later), Some(later + Duration::from_millis(100)));
        assert_eq!(arrivals.due(0, later), None, "the limit was taken away");
        arrivals.spend(0, later);
        assert_eq!(arrivals.due(10, later), Some(later + Duration::from_millis(100)));
    }
}
