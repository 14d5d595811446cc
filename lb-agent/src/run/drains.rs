//! Which backends drain, or whether the edge does, and what that means for their connections in
//! the flow tables: spliced ones, and those of services that XDP alone serves. Pure.
//!
//! The workers give up what they relay by the same rules: see `lb_sidecar`'s `drain`.

use std::collections::BTreeMap;

use super::{paces::Paces, sweeper::Report};
use crate::{
    config::{Backend, Config, Service},
    flows::{Doom, Renewed},
    sidecar::{Memory, settings},
    state::ids::Ids,
};

/// All drains under way. Times are in milliseconds of Unix time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drains {
    /// When the edge's drain is over.
    edge: Option<u64>,
    /// By the names of service and backend: until when a backend's own clients may stay.
    backends: BTreeMap<(String, String), u64>,
    now: u64,
    paces: Paces,
    resets: Resets,
}

/// What somebody has asked to be reset once, by the names of service and backend: the connections up to a moment, in ticks.
pub type Resets = BTreeMap<(String, String), u32>;

/// Forgets what was asked to be reset and is, so that what has come since counts as nothing that is to be closed. Whether
/// there was any of it.
pub fn forget_over(resets: &mut Resets, config: &Config, ids: &Ids, report: &Report) -> bool {
    let id = |service: &str, backend: &str| {
        let service = config.services.iter().find(|it| it.name == service)?;
        let backend = service.backends.iter().find(|it| it.name == backend)?;
        ids.backend(ids.service(&service.name)?, backend.address)
    };
    let before = resets.len();
    // Of who is gone, all connections are to be closed.
    resets.retain(|(service, backend), at| {
        id(service, backend).is_some_and(|id| !report.has_none_before(*at, id))
    });
    resets.len() < before
}

impl Drains {
    /// What is remembered of them, as of now.
    #[must_use]
    pub fn new(config: &Config, memory: &Memory, now: u64) -> Self {
        let edge = memory.edge_drains.and_then(|since| settings::edge_until(config, since));
        let mut backends = BTreeMap::new();
        for service in &config.services {
            let drained = memory.drains.get(&service.name);
            for backend in service.backends.iter().filter(|it| it.drain) {
                let Some(since) = drained.and_then(|it| it.get(&backend.name)) else { continue };
                let Some(until) = settings::backend_until(service, backend, *since) else {
                    continue;
                };
                backends.insert((service.name.clone(), backend.name.clone()), until);
            }
        }
        Self { edge, backends, now, paces: Paces::new(), resets: Resets::new() }
    }

    /// The same where the workers have a share in closing.
    #[must_use]
    pub fn sharing(self, paces: Paces) -> Self {
        Self { paces, ..self }
    }

    /// The same with what is to be reset once.
    #[must_use]
    pub fn resetting(self, resets: Resets) -> Self {
        Self { resets, ..self }
    }

    /// Which connections of a backend are reset once. `id` is the service's; `rate` is the edge's.
    #[must_use]
    pub fn renewed(&self, service: &Service, name: &str, id: u16, rate: u32) -> Option<Renewed> {
        let at = *self.resets.get(&(service.name.clone(), name.to_owned()))?;
        let shared = self.paces.get(&service.name).map(|pace| pace.spliced);
        let rate = shared.or(service.l7().map(|l7| l7.drain.rate)).unwrap_or(rate);
        Some(Renewed { at, doom: Doom::Drain { service: id, rate } })
    }

    /// Whether connections are being closed by both, so that their shares are to be looked after.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        let over = || self.backends.values().any(|until| *until <= self.now);
        self.is_shared() && (self.edge.is_some() || over())
    }

    /// Whether there are shares, which may shift.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !self.paces.is_empty()
    }

    /// What a drain does to the connections of a backend in the flow tables now. `id` is the service's.
    #[must_use]
    pub fn doom(&self, service: &Service, backend: &Backend, id: u16) -> Option<Doom> {
        let shared = self.paces.get(&service.name).map(|pace| pace.spliced);
        let of_service = shared.or(service.l7().map(|l7| l7.drain.rate));
        match (self.edge, of_service) {
            (Some(until), Some(_)) if until <= self.now => return Some(Doom::Deadline),
            (Some(_), Some(rate)) => return Some(Doom::Drain { service: id, rate }),
            _ => {}
        }
        let until = self.until(&service.name, &backend.name)?;
        let rate = of_service.or(backend.asked.map(|asked| asked.rate))?;
        (until <= self.now).then_some(Doom::Drain { service: id, rate })
    }

    /// Until when the clients of a backend that drains may stay.
    #[must_use]
    pub fn until(&self, service: &str, backend: &str) -> Option<u64> {
        self.backends.get(&(service.to_owned(), backend.to_owned())).copied()
    }

    /// In how many milliseconds something changes by itself.
    #[must_use]
    pub fn next_change(&self) -> Option<u64> {
        let times = self.edge.iter().chain(self.backends.values());
        times.filter(|until| **until > self.now).map(|until| until - self.now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        run::input::skeleton,
        state::{Capacity, actual::Actual},
    };

    fn config() -> Config {
        let text = r#"
            [edge]
            name = "e"
            interfaces = ["eth0"]
            hash_seed = "s"
            [[service]]
            name = "chat"
            mode = "l7"
            listen = ["203.0.113.10:80"]
            drain = { deadline = "10s", rate = 7 }
            backend = [{ name = "a", address = "10.2.0.2:9000", drain = true },
                       { name = "b", address = "10.2.0.3:9000" }]
            [[service]]
            name = "rooms"
            mode = "l7"
            listen = ["203.0.113.11:80"]
            drain = { deadline = "20s", rate = 8 }
            backend = [{ name = "a", address = "10.2.0.2:9000" }]
            "#;
        crate::config::parse("edge.toml", text).unwrap().0
    }

    #[test]
    fn what_was_to_be_reset_is_forgotten_once_a_whole_walk_has_found_none_of_it() {
        let config = config();
        let capacity = Capacity { services: 9, rings: 26, backends: 9, next_hops: 9 };
        let mut ids = Ids::recover(&Actual::empty(26), capacity);
        ids.assign(&skeleton(&config)).unwrap();
        let [chat, rooms] = ["chat", "rooms"].map(|it| ids.service(it).unwrap());
        let [a, b] = ["10.2.0.2:9000", "10.2.0.3:9000"].map(|it| it.parse().unwrap());
        let (b, other) = (ids.backend(chat, b).unwrap(), ids.backend(rooms, a).unwrap());
        let left = |began, oldest: &[(u16, u32)]| {
            let of = |service: &str, backend: &str| ((service.to_owned(), backend.to_owned()), 100);
            let mut resets = Resets::from([of("chat", "b"), of("rooms", "a"), of("chat", "gone")]);
            let oldest = oldest.iter().copied().collect();
            let report = Report { began, oldest, ..Report::default() };
            assert!(forget_over(&mut resets, &config, &ids, &report));
            resets.into_keys().map(|(service, _)| service).collect::<Vec<_>>()
        };
        assert_eq!(left(None, &[]), ["chat", "rooms"], "nobody has looked yet");
        assert_eq!(left(Some(100), &[]), ["chat", "rooms"], "it began too early to see all");
        assert_eq!(left(Some(101), &[(b, 99), (other, 100)]), ["chat"], "it has an older one");
        assert_eq!(left(Some(101), &[(b, 100)]), [""; 0]);
        assert_eq!(
            left(Some(101), &[(b, u32::MAX)]),
            ["chat"],
            "from before the clock has wrapped"
        );
    }

    const PACED: Option<Doom> = Some(Doom::Drain { service: 1, rate: 7 });

    #[test]
    fn a_backends_own_clients_stay_until_the_deadline_and_go_at_the_services_pace() {
        let config = config();
        let drained = BTreeMap::from([("a".to_owned(), 1_000)]);
        let drains = BTreeMap::from([("chat".to_owned(), drained)]);
        let memory = Memory { drains, ..Memory::default() };
        let [chat, rooms] = config.services.as_slice() else { panic!() };
        for (now, doom, next) in [(10_999, None, Some(1)), (11_000, PACED, None)] {
            let drains = Drains::new(&config, &memory, now);
            let [a, b] = chat.backends.as_slice() else { panic!() };
            assert_eq!(drains.doom(chat, a, 1), doom);
            assert_eq!(drains.doom(chat, b, 1), None);
            assert_eq!(drains.doom(rooms, &rooms.backends[0], 2), None);
            assert_eq!(drains.next_change(), next);
        }
    }

    #[test]
    fn an_edge_gives_up_all_from_the_beginning_and_what_is_left_at_the_longest_deadline() {
        let config = config();
        let memory = Memory { edge_drains: Some(1_000), ..Memory::default() };
        let [chat, rooms] = config.services.as_slice() else { panic!() };
        let drains = Drains::new(&config, &memory, 1_000);
        assert_eq!(drains.doom(chat, &chat.backends[1], 1), PACED);
        assert_eq!(
            drains.doom(rooms, &rooms.backends[0], 2),
            Some(Doom::Drain { service: 2, rate: 8 })
        );
        assert_eq!(drains.next_change(), Some(20_000));
        let drains = Drains::new(&config, &memory, 21_000);
        assert_eq!(drains.doom(chat, &chat.backends[1], 1), Some(Doom::Deadline));
        assert_eq!(drains.next_change(), None);
    }
}
