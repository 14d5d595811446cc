//! Connections that were spliced: no worker has them any more, and yet they are load. Pure.

use std::collections::BTreeMap;

use lb_sidecar::settings::Backend;

/// What is known of them: all as of the last walk through the flow tables, and how many have come since. Those that
/// have ended since are still counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spliced {
    /// [`Backend::id`] by the ids in the maps.
    names: BTreeMap<u16, String>,
    /// By the ids in the maps.
    walked: BTreeMap<u16, u64>,
    /// How many the broker had spliced by then.
    before: BTreeMap<u16, u64>,
}

impl Spliced {
    /// Makes these the backends that workers know, with their ids in the maps; whether that changes anything.
    pub fn name<'a>(&mut self, backends: impl IntoIterator<Item = (u16, &'a Backend)>) -> bool {
        let names = backends.into_iter().map(|(id, backend)| (id, backend.id.clone()));
        let before = std::mem::replace(&mut self.names, names.collect());
        before != self.names
    }

    /// Takes what a walk has found, and how many the broker had spliced by its end; whether anything has changed.
    pub fn walked(&mut self, walked: BTreeMap<u16, u64>, by_then: BTreeMap<u16, u64>) -> bool {
        let before = self.live(&by_then);
        (self.walked, self.before) = (walked, by_then);
        self.live(&self.before) != before
    }

    /// The connections of each backend by its [`Backend::id`], if it has any. `by_now`: how many the broker has spliced.
    #[must_use]
    pub fn live(&self, by_now: &BTreeMap<u16, u64>) -> BTreeMap<String, u32> {
        let of = |counts: &BTreeMap<u16, u64>, id| counts.get(id).copied().unwrap_or(0);
        let live = self.names.iter().filter_map(|(id, name)| {
            let since = of(by_now, id).saturating_sub(of(&self.before, id));
            let live = of(&self.walked, id) + since;
            (live > 0).then(|| (name.clone(), u32::try_from(live).unwrap_or(u32::MAX)))
        });
        live.collect()
    }
}

#[cfg(test)]
mod tests {
    use lb_sidecar::settings::State;

    use super::*;

    fn backend(id: &str) -> Backend {
        let address = "10.2.0.2:9000".parse().unwrap();
        Backend { name: "b".into(), id: id.into(), address, weight: 1, state: State::Up, pool: 0 }
    }

    #[test]
    fn what_was_spliced_since_the_last_walk_counts_until_the_next_one_finds_it() {
        let mut spliced = Spliced::default();
        let (a, b) = (backend("a"), backend("b"));
        assert!(spliced.name([(1, &a), (2, &b)]) && !spliced.name([(1, &a), (2, &b)]));
        let count = |n| BTreeMap::from([(1, n), (9, 1)]);
        assert_eq!(spliced.live(&count(3)), BTreeMap::from([("a".into(), 3)]));
        assert!(!spliced.walked(count(3), count(3)), "as was known");
        assert_eq!(spliced.live(&count(5)), BTreeMap::from([("a".into(), 5)]));
        assert!(spliced.walked(BTreeMap::from([(2, 7)]), count(5)));
        assert_eq!(spliced.live(&count(5)), BTreeMap::from([("b".into(), 7)]));
        // Another agent's walk, and its broker has spliced nothing.
        spliced.walked(count(4), BTreeMap::new());
        assert_eq!(spliced.live(&BTreeMap::new()), BTreeMap::from([("a".into(), 4)]));
    }
}
