//! Which backends count as live, and with what weight. Pure: no clock, no I/O.
//!
//! A backend that has not been judged yet counts as what was last known of it: what an earlier agent left in
//! the maps; else live in a pool that begins, and not live when it joins a pool which others serve. One that moves
//! to another address joins.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::checks::key;
use crate::{
    config::{Backend, Config, Service},
    health::{State, TargetKey, effective_weight, next_weight_change},
};

/// What is known of the configuration's backends.
#[derive(Debug, Default)]
pub struct Liveness {
    backends: BTreeMap<TargetKey, Entry>,
    /// They are live, and get no clients for a while.
    ejected: BTreeSet<TargetKey>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    live: bool,
    /// When it came up, if its weight is to grow from then on.
    rising_since: Option<Instant>,
}

impl Liveness {
    /// Makes the configuration's backends those that are known. `remembered` tells what the maps say of one.
    pub fn follow(
        &mut self,
        config: &Config,
        remembered: impl Fn(&Service, &Backend) -> Option<bool>,
    ) {
        let mut before = std::mem::take(&mut self.backends);
        for service in &config.services {
            let keys: Vec<_> = service.backends.iter().map(|it| key(&service.name, it)).collect();
            let served = before.keys().any(|key| key.service == service.name)
                || service.backends.iter().any(|it| remembered(service, it) == Some(true));
            for (key, backend) in keys.into_iter().zip(&service.backends) {
                let entry = before.remove(&key).unwrap_or_else(|| Entry {
                    live: remembered(service, backend).unwrap_or(!served),
                    rising_since: None,
                });
                self.backends.insert(key, entry);
            }
        }
    }

    /// Takes a judgement in; whether anything changed.
    pub fn observe(&mut self, key: &TargetKey, state: State, at: Instant) -> bool {
        let Some(entry) = self.backends.get_mut(key) else { return false };
        let live = match state {
            State::Up => true,
            State::Down => false,
            State::Unknown => return false,
        };
        if entry.live == live {
            return false;
        }
        // One that was taken for live has its whole share already.
        *entry = Entry { live, rising_since: live.then_some(at) };
        true
    }

    /// Whether the backend is one of the configuration.
    #[must_use]
    pub fn knows(&self, key: &TargetKey) -> bool {
        self.backends.contains_key(key)
    }

    /// Whether the backend counts as live.
    #[must_use]
    pub fn is_live(&self, key: &TargetKey) -> bool {
        self.backends.get(key).is_some_and(|entry| entry.live)
    }

    /// Whether it gets clients, too.
    #[must_use]
    pub fn serves(&self, key: &TargetKey) -> bool {
        self.is_live(key) && !self.ejected.contains(key)
    }

    /// Who is ejected from now on; whether it is somebody else than before.
    pub fn eject(&mut self, ejected: BTreeSet<TargetKey>) -> bool {
        let before = std::mem::replace(&mut self.ejected, ejected);
        before != self.ejected
    }

    /// The weight of a backend at this time.
    #[must_use]
    pub fn weight(&self, key: &TargetKey, weight: u32, slow_start: Duration, now: Instant) -> u32 {
        match self.since_up(key, now) {
            Some(since_up) => effective_weight(weight, since_up, slow_start),
            None => weight,
        }
    }

    /// When the next weight changes by itself.
    #[must_use]
    pub fn next_change(&self, config: &Config, now: Instant) -> Option<Instant> {
        // Asked for with each event: of thousands of backends hardly any start slowly.
        let slow = config.services.iter().filter(|it| !it.health.slow_start.is_zero());
        let backends = slow.flat_map(|service| {
            let slow_start = service.health.slow_start;
            service.backends.iter().map(move |it| (key(&service.name, it), slow_start))
        });
        let changes = backends.filter_map(|(key, slow_start)| {
            next_weight_change(self.since_up(&key, now)?, slow_start)
        });
        changes.min().map(|wait| now + wait)
    }

    fn since_up(&self, key: &TargetKey, now: Instant) -> Option<Duration> {
        let since = self.backends.get(key)?.rising_since?;
        Some(now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(backends: &[&str]) -> Config {
        let mut text = r#"
            [edge]
            name = "e"
            interfaces = ["eth0"]
            source_addresses = ["10.2.0.1"]
            hash_seed = "s"
            [[service]]
            name = "chat"
            listen = ["203.0.113.10:80"]
            health = { kind = "tcp", slow_start = "10s" }
            "#
        .to_owned();
        for (n, name) in backends.iter().enumerate() {
            text += &format!(
                "[[service.backend]]\nname = \"{name}\"\naddress = \"10.2.0.{}:9000\"\n",
                n + 2
            );
        }
        crate::config::parse("edge.toml", &text).unwrap().0
    }

    /// A backend of `config(["a", "b", "c"])`.
    fn key(service: &str, name: &str) -> TargetKey {
        let config = config(&["a", "b", "c"]);
        let backend = config.services[0].backends.iter().find(|it| it.name == name).unwrap();
        super::key(service, backend)
    }

    const TEN_SECONDS: Duration = Duration::from_secs(10);

    #[test]
    fn a_pool_that_begins_is_live_at_once_and_has_its_whole_weight() {
        let mut liveness = Liveness::default();
        let now = Instant::now();
        liveness.follow(&config(&["a", "b"]), |_, _| None);
        let a = key("chat", "a");
        assert!(liveness.is_live(&a));
        assert!(!liveness.observe(&a, State::Up, now), "nothing changes");
        assert_eq!(liveness.weight(&a, 100, TEN_SECONDS, now), 100);
        assert_eq!(liveness.next_change(&config(&["a", "b"]), now), None);
    }

    #[test]
    fn who_joins_a_pool_waits_for_a_probe_and_starts_slowly() {
        let mut liveness = Liveness::default();
        let (now, both) = (Instant::now(), config(&["a", "b"]));
        liveness.follow(&config(&["a"]), |_, _| None);
        liveness.follow(&both, |_, _| None);
        let b = key("chat", "b");
        assert!(!liveness.is_live(&b));
        assert!(liveness.observe(&b, State::Up, now));
        assert_eq!(liveness.weight(&b, 100, TEN_SECONDS, now), 10);
        let next = liveness.next_change(&both, now).unwrap();
        assert!(liveness.weight(&b, 100, TEN_SECONDS, next) > 10);
        assert_eq!(liveness.next_change(&both, now + TEN_SECONDS), None);
    }

    #[test]
    fn what_the_maps_say_survives_a_restart() {
        let mut liveness = Liveness::default();
        liveness.follow(&config(&["a", "b", "c"]), |_, backend| match backend.name.as_str() {
            "a" => Some(true),
            "b" => Some(false),
            _ => None,
        });
        let live = |name| liveness.is_live(&key("chat", name));
        assert_eq!((live("a"), live("b"), live("c")), (true, false, false));
    }

    #[test]
    fn who_moves_to_another_address_waits_for_a_probe_of_it() {
        let mut liveness = Liveness::default();
        let mut moved = config(&["a", "b"]);
        for backends in [&["a", "b"][..], &["a"]] {
            liveness.follow(&config(backends), |_, _| None);
            let old = key("chat", "a");
            assert!(liveness.is_live(&old));
            moved.services[0].backends.truncate(backends.len());
            moved.services[0].backends[0].address = "10.2.0.99:9000".parse().unwrap();
            liveness.follow(&moved, |_, _| None);
            let new = super::key("chat", &moved.services[0].backends[0]);
            assert!(!liveness.is_live(&new), "it says nothing yet");
            assert!(!liveness.observe(&old, State::Up, Instant::now()), "of the old address");
            assert!(!liveness.is_live(&new));
            assert!(liveness.observe(&new, State::Up, Instant::now()));
            liveness = Liveness::default();
        }
    }

    #[test]
    fn who_is_removed_is_forgotten() {
        let mut liveness = Liveness::default();
        liveness.follow(&config(&["a", "b"]), |_, _| None);
        liveness.follow(&config(&["a"]), |_, _| None);
        assert!(!liveness.observe(&key("chat", "b"), State::Down, Instant::now()));
    }
}
