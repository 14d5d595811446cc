//! How the last probes of a target ended, a character each: what a status page draws. Pure, and of a fixed size.

use std::{fmt, time::Duration};

/// Probes that are remembered.
pub const KEPT: usize = 40;

/// What stands for a probe that failed.
pub const FAILED: char = 'x';

/// A probe that took less than the n-th of these microseconds, and no less than the one before, is the digit n; 9 is
/// longer than all.
pub const BOUNDS_MICROS: [u64; 9] = [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 64_000, 256_000];

/// The last probes, the oldest first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct History {
    marks: [u8; KEPT],
    len: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { marks: [0; KEPT], len: 0 }
    }
}

impl History {
    /// Adds a probe that took so long, or failed.
    pub fn add(&mut self, took: Option<Duration>) {
        if self.len == KEPT {
            self.marks.copy_within(1.., 0);
            self.len -= 1;
        }
        self.marks[self.len] = took.map_or(FAILED as u8, digit);
        self.len += 1;
    }

    /// One ASCII character for each probe.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.marks[..self.len]).unwrap_or_default()
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn digit(took: Duration) -> u8 {
    let longer = BOUNDS_MICROS.iter().filter(|bound| took.as_micros() >= u128::from(**bound));
    // At most nine.
    b'0' + longer.count() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_the_class_of_its_latency_or_a_failure() {
        let mut history = History::default();
        assert_eq!(history.as_str(), "");
        let tooks = [0, 249, 250, 999, 1_000, 3_999, 15_999, 63_999, 255_999, 256_000, 9_000_000];
        tooks.iter().for_each(|micros| history.add(Some(Duration::from_micros(*micros))));
        history.add(None);
        assert_eq!(history.as_str(), "00123467899x");
    }

    #[test]
    fn only_the_last_ones_are_kept() {
        let mut history = History::default();
        history.add(None);
        for _ in 1..KEPT {
            history.add(Some(Duration::ZERO));
        }
        assert_eq!(history.as_str(), format!("x{}", "0".repeat(KEPT - 1)));
        history.add(Some(Duration::from_secs(1)));
        assert_eq!(history.as_str(), format!("{}9", "0".repeat(KEPT - 1)));
    }
}
