//! How long to wait before something that failed is tried again. Pure: no clock.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// Who ran for so long has not failed at its start.
const STABLE: Duration = Duration::from_secs(30);

/// Of one thing that is started again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    /// In a row.
    failures: u32,
}

impl Backoff {
    /// It has ended after `ran`; how long to wait before the next start.
    pub fn ended(&mut self, ran: Duration) -> Duration {
        if ran >= STABLE {
            self.failures = 0;
        }
        let wait = FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        wait.min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_until_something_lasts() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> =
            (0..9).map(|_| backoff.ended(Duration::from_secs(1)).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        assert_eq!(backoff.ended(STABLE), FIRST);
        assert_eq!(backoff.ended(Duration::ZERO), 2 * FIRST);
        let mut endless = Backoff { failures: u32::MAX };
        assert_eq!(endless.ended(Duration::ZERO), LONGEST);
    }
}
