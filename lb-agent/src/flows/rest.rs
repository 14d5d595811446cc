//! How long the thread that walks the tables rests between two walks.
//!
//! A walk through a million flows takes half a second of a processor. Every five seconds that would be a tenth of it; so
//! the rest grows with the walk.

use std::time::Duration;

/// After a short walk.
const LEAST: Duration = Duration::from_secs(5);

/// After a walk through very many flows: what is over stays no longer than this beyond its time.
const MOST: Duration = Duration::from_secs(60);

/// The rest in walks: as long as it is not [`MOST`], walking takes a thirty-first of a processor.
const PER_WALK: u32 = 30;

/// The rest after a walk that took so much time of a processor.
#[must_use]
pub fn after(walk: Duration) -> Duration {
    (walk * PER_WALK).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_take_less_than_a_twentieth_of_a_processor_up_to_four_million_flows() {
        for millis in [1, 10, 100, 500, 1_000, 2_000] {
            let walk = Duration::from_millis(millis);
            let share = walk.as_secs_f64() / (walk + after(walk)).as_secs_f64();
            assert!(share < 0.05, "{walk:?}: {share}");
        }
    }

    #[test]
    fn a_short_walk_is_every_five_seconds_and_none_is_a_minute_after_another() {
        assert_eq!(after(Duration::ZERO), LEAST);
        assert_eq!(after(Duration::from_millis(100)), LEAST);
        assert_eq!(after(Duration::from_millis(500)), Duration::from_secs(15));
        assert_eq!(after(Duration::from_secs(100)), MOST);
    }
}
