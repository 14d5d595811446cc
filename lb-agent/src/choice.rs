//! Which backends of a pool get newcomers: those of the edge's own zone, all that are up, or all there are. Pure.
//!
//! It is one decision for XDP's rings and for the sidecar's workers. A zone is preferred as a whole or not at all: that
//! way no weight changes when health does, and the rings move no more clients than they must. Whoever is connected, or
//! belongs to a backend by its cookie, stays.

use crate::config::{Backend, Edge, Service};

/// What a service wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Whether there is panic at all.
    pub fail_open: bool,
    /// Percent of the pool's weight: with less of it up, all count as up.
    pub panic_threshold: u32,
    /// Percent of the own zone's weight: with as much of it up, nobody else gets newcomers. None: zones do not count.
    pub min_healthy_percent: Option<u32>,
}

/// A backend with a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// As configured.
    pub weight: u32,
    /// As it is now, slow start included.
    pub weight_now: u32,
    pub up: bool,
    /// Whether it stands in the edge's own zone.
    pub local: bool,
}

/// Who gets newcomers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// All that are up.
    All,
    /// Those of the own zone that are up.
    Local,
    /// All that are up, since too little of the own zone is.
    Spill,
    /// All, since too few are up.
    Panic,
    /// Nobody.
    Nobody,
}

impl Rule {
    /// What the configuration says.
    #[must_use]
    pub fn of(edge: &Edge, service: &Service) -> Self {
        Self {
            fail_open: service.fail_open,
            panic_threshold: service.panic_threshold,
            min_healthy_percent: edge
                .zone
                .as_ref()
                .and(service.zones)
                .map(|zones| zones.min_healthy_percent),
        }
    }

    /// Who gets newcomers among these.
    #[must_use]
    pub fn mode(&self, candidates: &[Candidate]) -> Mode {
        let sum = |weight: fn(&Candidate) -> u32, of: fn(&&Candidate) -> bool| -> u64 {
            candidates.iter().filter(of).map(|it| u64::from(weight(it))).sum()
        };
        let all = sum(|it| it.weight, |_| true);
        let up = sum(|it| it.weight, |it| it.up);
        let panics = up == 0 || 100 * up < u64::from(self.panic_threshold) * all;
        if panics && self.fail_open && all > 0 {
            return Mode::Panic;
        }
        if up == 0 {
            return Mode::Nobody;
        }
        let local = sum(|it| it.weight, |it| it.local);
        let Some(least) = self.min_healthy_percent.filter(|_| local > 0 && local < all) else {
            return Mode::All;
        };
        // What has just come up does not carry its whole share yet.
        let carried = sum(|it| it.weight_now, |it| it.local && it.up);
        match carried > 0 && 100 * carried >= u64::from(least) * local {
            true => Mode::Local,
            false => Mode::Spill,
        }
    }
}

impl Mode {
    /// Whether a backend gets newcomers.
    #[must_use]
    pub fn takes(self, candidate: Candidate) -> bool {
        match self {
            Self::All | Self::Spill => candidate.up,
            Self::Local => candidate.up && candidate.local,
            Self::Panic => true,
            Self::Nobody => false,
        }
    }
}

/// Whether a backend stands in the edge's own zone.
#[must_use]
pub fn is_local(edge: &Edge, backend: &Backend) -> bool {
    edge.zone.is_some() && edge.zone == backend.zone
}

/// Who gets newcomers of an l7 service. `seen` says of a backend whether it is up, and its weight now. Those that drain
/// are out of the reckoning.
#[must_use]
pub fn of_l7(edge: &Edge, service: &Service, seen: impl Fn(&Backend) -> (bool, u32)) -> Mode {
    let weighty = service.backends.iter().filter(|it| it.weight > 0 && !it.drain);
    let candidates = weighty.map(|backend| {
        let (up, weight_now) = seen(backend);
        Candidate { weight: backend.weight, weight_now, up, local: is_local(edge, backend) }
    });
    Rule::of(edge, service).mode(&candidates.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(local: bool, up: bool, weight: u32) -> Candidate {
        Candidate { weight, weight_now: weight, up, local }
    }

    const PANIC: Rule = Rule { fail_open: true, panic_threshold: 50, min_healthy_percent: None };
    const ZONES: Rule = Rule { fail_open: true, panic_threshold: 0, min_healthy_percent: Some(70) };

    /// Backends of the own zone before the bar, others behind it: `+` up, `-` down, `/` on its way up.
    fn mode(rule: Rule, pool: &str) -> Mode {
        let (mut local, mut candidates) = (true, Vec::new());
        for sign in pool.chars() {
            match sign {
                '|' => local = false,
                '/' => candidates.push(Candidate { weight_now: 10, ..of(local, true, 100) }),
                _ => candidates.push(of(local, sign == '+', 100)),
            }
        }
        rule.mode(&candidates)
    }

    #[test]
    fn below_the_threshold_there_is_panic() {
        for (pool, wanted) in [
            ("", Mode::Nobody),
            ("++++", Mode::All),
            ("++--", Mode::All),
            ("+---", Mode::Panic),
            ("----", Mode::Panic),
            // Who starts slowly is up.
            ("//--", Mode::All),
        ] {
            assert_eq!(mode(PANIC, pool), wanted, "{pool}");
        }
        let zero = Rule { panic_threshold: 0, ..PANIC };
        assert_eq!((mode(zero, "+---"), mode(zero, "----")), (Mode::All, Mode::Panic));
        let closed = Rule { fail_open: false, ..PANIC };
        assert_eq!((mode(closed, "+---"), mode(closed, "----")), (Mode::All, Mode::Nobody));
        let whole = Rule { panic_threshold: 100, ..PANIC };
        assert_eq!((mode(whole, "++++"), mode(whole, "+++-")), (Mode::All, Mode::Panic));
    }

    #[test]
    fn the_own_zone_is_preferred_while_it_is_healthy_enough() {
        for (pool, wanted) in [
            ("++|++", Mode::Local),
            ("+++-|++", Mode::Local),
            ("++-|++", Mode::Spill),
            ("--|++", Mode::Spill),
            ("+++/|++", Mode::Local),
            // A tenth is not carried yet by the third one.
            ("++/|++", Mode::Local),
            ("+/|++", Mode::Spill),
            ("|++", Mode::All),
            ("++|", Mode::All),
            ("+-|", Mode::All),
            ("++|--", Mode::Local),
            ("--|--", Mode::Panic),
        ] {
            assert_eq!(mode(ZONES, pool), wanted, "{pool}");
        }
        let never = Rule { min_healthy_percent: None, ..ZONES };
        assert_eq!(mode(never, "++|++"), Mode::All);
        let least = Rule { min_healthy_percent: Some(0), ..ZONES };
        assert_eq!((mode(least, "+---|++"), mode(least, "----|++")), (Mode::Local, Mode::Spill));
    }

    #[test]
    fn panic_is_about_all_zones_together() {
        let both = Rule { panic_threshold: 50, ..ZONES };
        assert_eq!(mode(both, "--|++"), Mode::Spill);
        assert_eq!(mode(both, "+--|--+"), Mode::Panic);
    }

    #[test]
    fn it_is_weight_that_counts() {
        let pool = [of(true, true, 300), of(true, false, 100), of(false, true, 1)];
        assert_eq!(ZONES.mode(&pool), Mode::Local);
        assert!(ZONES.mode(&pool).takes(pool[0]) && !ZONES.mode(&pool).takes(pool[2]));
        let pool = [of(false, true, 49), of(false, false, 51)];
        assert_eq!(PANIC.mode(&pool), Mode::Panic);
        assert!(pool.iter().all(|it| Mode::Panic.takes(*it)));
    }

    proptest! {
        /// Somebody who is up gets clients wherever anybody is up; nobody who is down does without panic.
        #[test]
        fn nobody_is_turned_away_without_need(
            pool in prop::collection::vec((any::<bool>(), any::<bool>(), 1u32..1_000), 0..9),
            fail_open: bool, panic_threshold in 0u32..=100, zone in prop::option::of(0u32..=100),
        ) {
            let rule = Rule { fail_open, panic_threshold, min_healthy_percent: zone };
            let pool: Vec<_> = pool.into_iter().map(|(local, up, weight)| of(local, up, weight)).collect();
            let mode = rule.mode(&pool);
            let taken: Vec<_> = pool.iter().filter(|it| mode.takes(**it)).collect();
            prop_assert_eq!(taken.iter().any(|it| it.up), pool.iter().any(|it| it.up));
            prop_assert!(mode == Mode::Panic || taken.iter().all(|it| it.up));
            prop_assert!(fail_open || mode != Mode::Panic);
            prop_assert_eq!(mode == Mode::Nobody, taken.is_empty());
        }
    }
}
