//! Which of several pools a client gets, by their shares. Places are those in the list of shares.

use std::cell::Cell;

use crate::settings::Share;

/// The golden ratio's part of the whole: its multiples fill every share evenly, however few there are.
const STEP: u32 = 0x9e37_79b9;

/// Clients that belong to nobody, dealt out in turn.
#[derive(Clone, Default)]
pub struct Turns(Cell<u32>);

impl Turns {
    /// The place of the next one.
    pub fn next(&self, shares: &[Share]) -> usize {
        self.0.set(self.0.get().wrapping_add(STEP));
        at(shares, self.0.get())
    }
}

/// The place whose share a point of the whole lies in. A share that grows at the cost of its neighbour loses nobody.
pub fn at(shares: &[Share], point: u32) -> usize {
    let total: u64 = shares.iter().map(|it| u64::from(it.weight)).sum();
    let mut left = (u64::from(point) * total) >> 32;
    let mut weights = shares.iter().map(|it| u64::from(it.weight));
    let place = weights.position(|weight| match left.checked_sub(weight) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    });
    place.unwrap_or(0)
}

/// The place of a pool, if it gets clients at all.
pub fn place_of(shares: &[Share], pool: Option<u16>) -> Option<usize> {
    shares.iter().position(|it| Some(it.pool) == pool && it.weight > 0)
}

/// The shares that get clients at all, round from a place.
pub fn from(shares: &[Share], first: usize) -> impl Iterator<Item = &Share> {
    let (before, after) = shares.split_at(first.min(shares.len()));
    after.iter().chain(before).filter(|it| it.weight > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shares(weights: &[u32]) -> Vec<Share> {
        (0..).zip(weights).map(|(pool, &weight)| Share { pool, weight }).collect()
    }

    fn dealt(weights: &[u32], times: usize) -> Vec<usize> {
        let (turns, shares) = (Turns::default(), shares(weights));
        let mut counts = vec![0; weights.len()];
        (0..times).for_each(|_| counts[turns.next(&shares)] += 1);
        counts
    }

    #[test]
    fn even_few_clients_are_dealt_out_by_the_shares() {
        assert_eq!(dealt(&[95, 5], 1_000), [950, 50]);
        assert_eq!(dealt(&[0, 1], 10), [0, 10]);
        let counts = dealt(&[90, 10], 50);
        assert!((4..=6).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn a_share_that_grows_keeps_its_clients() {
        let (few, more) = (shares(&[95, 5]), shares(&[80, 20]));
        for point in (0..u32::MAX).step_by(1 << 20) {
            assert!(at(&few, point) == 0 || at(&more, point) == 1, "{point}");
        }
    }

    #[test]
    fn the_others_follow_the_first_and_those_without_a_share_do_not() {
        let shares = shares(&[1, 0, 2, 3]);
        let order = |first| from(&shares, first).map(|it| it.pool).collect::<Vec<_>>();
        assert_eq!(order(2), [2, 3, 0]);
        assert_eq!(order(0), [0, 2, 3]);
        assert_eq!((place_of(&shares, Some(2)), place_of(&shares, Some(1))), (Some(2), None));
        assert_eq!(place_of(&shares, None), None);
    }

    proptest! {
        #[test]
        fn nobody_gets_a_pool_without_a_share(weights in prop::collection::vec(0_u32..1_000, 1..6), point: u32) {
            prop_assume!(weights.iter().any(|it| *it > 0));
            prop_assert!(weights[at(&shares(&weights), point)] > 0);
        }
    }
}
