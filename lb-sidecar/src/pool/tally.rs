//! How a backend does one of the things that are asked of it.

use std::cell::Cell;

use crate::control;

/// Counts how often it did well and how often not, and how often not in a row: where both come in the time between two
/// reports, sums alone would not tell which came last.
#[derive(Debug, Default)]
pub struct Tally {
    successes: Cell<u64>,
    failures: Cell<u64>,
    row: Cell<u32>,
}

impl Tally {
    /// Once more.
    pub fn note(&self, well: bool) {
        if well {
            self.successes.set(self.successes.get() + 1);
            self.row.set(0);
        } else {
            self.failures.set(self.failures.get() + 1);
            self.row.set(self.row.get().saturating_add(1));
        }
    }

    /// All so far.
    #[must_use]
    pub fn report(&self) -> control::Tally {
        control::Tally {
            successes: self.successes.get(),
            failures: self.failures.get(),
            row: self.row.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_ends_with_a_success() {
        let tally = Tally::default();
        for (well, row) in [(true, 0), (false, 1), (false, 2), (true, 0), (false, 1)] {
            tally.note(well);
            assert_eq!(tally.report().row, row);
        }
        assert_eq!(tally.report(), control::Tally { successes: 2, failures: 3, row: 1 });
    }
}
