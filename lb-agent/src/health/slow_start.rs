//! The weight of a backend that came up a moment ago. Pure: no clock.

use std::time::Duration;

/// Weights on the way from a tenth to the whole, both included. Few, since each one rebuilds the service's ring.
const LEVELS: u128 = 10;

/// The weight of a backend which came up `since_up` ago: a tenth of `weight` at first, then nine equal steps up to
/// `weight` once `slow_start` is over. Rounded up, so it is 0 only if `weight` is 0. Never falls as time goes on.
#[must_use]
pub fn effective_weight(weight: u32, since_up: Duration, slow_start: Duration) -> u32 {
    if since_up >= slow_start {
        return weight;
    }
    let level = 1 + since_up.as_nanos() * (LEVELS - 1) / slow_start.as_nanos();
    let scaled = (u128::from(weight) * level).div_ceil(LEVELS);
    // `level` is at most LEVELS, hence `scaled` at most `weight`.
    u32::try_from(scaled).unwrap_or(weight)
}

/// How long until [`effective_weight`] takes its next step; `None` once the weight is whole.
#[must_use]
pub fn next_weight_change(since_up: Duration, slow_start: Duration) -> Option<Duration> {
    if since_up >= slow_start {
        return None;
    }
    let (since, whole) = (since_up.as_nanos(), slow_start.as_nanos());
    let step = since * (LEVELS - 1) / whole;
    let at = ((step + 1) * whole).div_ceil(LEVELS - 1);
    Some(Duration::from_nanos(u64::try_from(at - since).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn from_a_tenth_to_the_whole() {
        for (since, weight) in [
            (0, 10),
            (6, 10),
            (7, 20),
            (30, 50),
            (53, 80),
            (54, 90),
            (59, 90),
            (60, 100),
            (90, 100),
        ] {
            assert_eq!(
                effective_weight(100, Duration::from_secs(since), MINUTE),
                weight,
                "after {since} s"
            );
        }
        assert_eq!(effective_weight(100, Duration::ZERO, Duration::ZERO), 100, "off");
        assert_eq!(effective_weight(0, Duration::ZERO, MINUTE), 0, "a weight of 0 stays");
        assert_eq!(effective_weight(1, Duration::ZERO, MINUTE), 1, "never 0 otherwise");
    }

    proptest! {
        #[test]
        fn within_bounds_and_never_falling(
            weight: u32, slow_start in 0u64..1 << 50, a in 0u64..1 << 51, b in 0u64..1 << 51,
        ) {
            let at = |since| effective_weight(weight, Duration::from_nanos(since), Duration::from_nanos(slow_start));
            let (early, late) = (at(a.min(b)), at(a.max(b)));
            prop_assert!(early <= late);
            prop_assert!(late <= weight);
            prop_assert_eq!(early == 0, weight == 0);
            prop_assert!(u64::from(early) * 10 >= u64::from(weight), "at least a tenth");
            prop_assert_eq!(at(slow_start), weight);
        }

        /// Sleeping for `next_weight_change` each time sees every weight there is, in at most nine steps.
        #[test]
        fn every_step_is_announced(weight: u32, slow_start in 1u64..1 << 50, probe in 0.0f64..1.0) {
            let slow_start = Duration::from_nanos(slow_start);
            let mut since = Duration::ZERO;
            let mut seen = BTreeSet::from([effective_weight(weight, since, slow_start)]);
            let mut steps = 0;
            while let Some(wait) = next_weight_change(since, slow_start) {
                prop_assert!(!wait.is_zero());
                let before = effective_weight(weight, since, slow_start);
                let last_moment = since + wait - Duration::from_nanos(1);
                prop_assert_eq!(effective_weight(weight, last_moment, slow_start), before, "no step in between");
                since += wait;
                seen.insert(effective_weight(weight, since, slow_start));
                steps += 1;
                prop_assert!(steps <= 9);
            }
            prop_assert!(seen.contains(&weight));
            prop_assert!(seen.contains(&effective_weight(weight, slow_start.mul_f64(probe), slow_start)));
        }
    }
}
