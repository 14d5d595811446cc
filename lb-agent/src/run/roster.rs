//! What those who send packets for the agent need to know of each backend: how its flows age, and the way to it. Pure.
//!
//! The agent makes a new roster with each change; the sweeper and the consumer of punted packets read it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lb_common::abi::ticks_from_millis;

use super::{
    checks::key,
    drains::Drains,
    input::{World, tunnel_source},
};
use crate::{
    choice::{self, Mode},
    config::{Backend, Forward, Service},
    flows::{Doom, Policy, aging::MAX_TICKS},
    netlink::Mac,
    state::{
        Family,
        desired::{Desired, Pool},
        ids::Ids,
    },
};

/// For the flows of a backend that nobody knows: they are reset, and what is over is forgotten as usual.
const UNKNOWN: Policy = Policy {
    idle_timeout: ticks_from_millis(3_600_000),
    close_timeout: ticks_from_millis(30_000),
    doomed: Some(Doom::Dead),
    renewed: None,
};

/// How packets reach a backend past the kernel's routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Its place on a link, if it is on one.
    pub link: Option<OnLink>,
    /// Source and destination of a tunnel's outer header.
    pub tunnel: Option<(IpAddr, IpAddr)>,
}

/// A neighbour on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnLink {
    /// Index of the device which has the neighbour's entry.
    pub ifindex: u32,
    /// The neighbour itself: the backend, or the gateway before it.
    pub neighbour: IpAddr,
    /// Destination and source of frames, once the neighbour is resolved.
    pub macs: Option<(Mac, Mac)>,
}

/// All backends that flows may name.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// Grows whenever backends left the rings: what a walk that began with an older one has not seen may be missed.
    pub generation: u64,
    /// Flows to reset per second.
    pub reset_rate: u32,
    backends: BTreeMap<u16, Member>,
}

/// What a backend's connections are called where they are told of.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    pub service: String,
    pub backend: String,
    /// Share of the connections whose access log lines are written, 0 to 1.
    pub sample: f64,
}

/// A backend as the newest configuration that has its service wants it.
#[derive(Clone, Debug)]
struct Member {
    policy: Policy,
    /// Whether its flows are reset when it dies or is removed.
    reset_on_death: bool,
    way: Way,
    label: Arc<Label>,
}

impl Roster {
    /// The backends of a configuration and those that flows remember, as the maps have them now. Of services and backends
    /// that were removed, `before` has the timeouts, the names and what is to become of their flows.
    #[must_use]
    pub fn new(
        generation: u64,
        world: World<'_>,
        drains: &Drains,
        ids: &Ids,
        desired: &Desired,
        before: &Self,
    ) -> Self {
        let services = world.config.services.iter();
        let services: BTreeMap<u16, &Service> =
            services.filter_map(|service| Some((ids.service(&service.name)?, service))).collect();
        let mut backends = BTreeMap::new();
        for (id, service_id, addr) in ids.backends() {
            let Some(service) = services.get(&service_id) else { continue };
            let Some(backend) = service.backends.iter().find(|it| it.address == addr) else {
                continue;
            };
            let live = is_live(world, service, backend);
            let spared = live || serves_anyway(world, &desired.fail_open, service, addr.ip());
            let reset_on_death = service.reset_on_backend_death;
            let doomed = match reset_on_death && !spared {
                true => Some(Doom::Dead),
                false => drains.doom(service, backend, service_id),
            };
            let renewed =
                drains.renewed(service, &backend.name, service_id, world.config.edge.reset_rate);
            let policy = Policy { renewed, ..policy(service, doomed) };
            let way = way(world, addr.ip());
            let label = Arc::new(label(service, &backend.name));
            backends.insert(id, Member { policy, reset_on_death, way, label });
        }
        for (id, service, addr) in ids.retired_backends() {
            let (service, before) = (services.get(&service), before.backends.get(&id));
            let (policy, reset_on_death) = match (service, before) {
                (Some(service), _) => (policy(service, None), service.reset_on_backend_death),
                (None, Some(before)) => (before.policy, before.reset_on_death),
                (None, None) => (UNKNOWN, true),
            };
            let policy = Policy { doomed: reset_on_death.then_some(Doom::Dead), ..policy };
            let label = match (service, before) {
                (_, Some(before)) => Arc::clone(&before.label),
                (Some(service), None) => Arc::new(label(service, &addr.to_string())),
                (None, None) => Arc::new(unknown(addr)),
            };
            let way = way(world, addr.ip());
            backends.insert(id, Member { policy, reset_on_death, way, label });
        }
        Self { generation, reset_rate: world.config.edge.reset_rate, backends }
    }

    /// Backends of which nothing is known but what they are called.
    #[cfg(test)]
    pub fn of_labels(labels: impl IntoIterator<Item = (u16, Label)>) -> Self {
        let member = |label| Member {
            policy: UNKNOWN,
            reset_on_death: true,
            way: Way::default(),
            label: Arc::new(label),
        };
        let backends = labels.into_iter().map(|(id, label)| (id, member(label)));
        Self { backends: backends.collect(), ..Self::default() }
    }

    /// How the flows of a backend age.
    #[must_use]
    pub fn policy(&self, id: u16) -> Policy {
        self.backends.get(&id).map_or(UNKNOWN, |member| member.policy)
    }

    /// The way to a backend.
    #[must_use]
    pub fn way(&self, id: u16) -> Way {
        self.backends.get(&id).map(|member| member.way).unwrap_or_default()
    }

    /// What a backend's connections are called; none if it is not known.
    #[must_use]
    pub fn label(&self, id: u16) -> Option<&Arc<Label>> {
        self.backends.get(&id).map(|member| &member.label)
    }

    /// Whether a backend is doomed here which is not in `before`: its clients wait to be told.
    #[must_use]
    pub fn dooms_more_than(&self, before: &Self) -> bool {
        self.backends.iter().any(|(id, member)| {
            let Some(before) = before.backends.get(id) else { return false };
            let (now, before) = (member.policy, before.policy);
            (now.doomed.is_some() && before.doomed.is_none())
                || (now.renewed.is_some() && now.renewed != before.renewed)
        })
    }
}

/// Whether a backend that is down gets clients all the same, since all of its pool are down. To reset their flows
/// would be to undo what fail-open is for.
fn serves_anyway(world: World<'_>, fail_open: &[Pool], service: &Service, backend: IpAddr) -> bool {
    if service.l7().is_some() {
        return sidecar_fails_open(world, service);
    }
    fail_open.iter().any(|pool| {
        let same_version = (pool.clients == Family::V6) == backend.is_ipv6();
        let tunnelled = service.forward == Forward::Ipip && pool.clients == Family::V4;
        pool.service == service.name && (same_version || tunnelled)
    })
}

/// Whether the workers give clients to backends that are down.
fn sidecar_fails_open(world: World<'_>, service: &Service) -> bool {
    let World { config, liveness, now, .. } = world;
    let seen = |backend: &Backend| {
        let key = key(&service.name, backend);
        let weight = liveness.weight(&key, backend.weight, service.health.slow_start, now);
        (liveness.serves(&key), weight)
    };
    choice::of_l7(&config.edge, service, seen) == Mode::Panic
}

fn is_live(world: World<'_>, service: &Service, backend: &Backend) -> bool {
    world.liveness.is_live(&key(&service.name, backend))
}

fn label(service: &Service, backend: &str) -> Label {
    Label {
        service: service.name.clone(),
        backend: backend.to_owned(),
        sample: service.l7().map_or(1.0, |l7| l7.access_log.get()),
    }
}

/// Of a service that was removed before this agent started.
fn unknown(backend: SocketAddr) -> Label {
    Label { service: "?".to_owned(), backend: backend.to_string(), sample: 1.0 }
}

fn policy(service: &Service, doomed: Option<Doom>) -> Policy {
    Policy {
        idle_timeout: ticks(service.idle_timeout),
        close_timeout: ticks(service.close_timeout),
        doomed,
        renewed: None,
    }
}

fn ticks(duration: Duration) -> u32 {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    ticks_from_millis(millis.min(1 << 40)).min(MAX_TICKS)
}

fn way(world: World<'_>, backend: IpAddr) -> Way {
    let hops = world.next_hops;
    let hop = hops.backends.get(&backend).and_then(|id| hops.get(*id));
    Way {
        link: hop.map(|hop| OnLink {
            ifindex: hop.key.0,
            neighbour: hop.key.1,
            macs: hop.ready.then_some((hop.dst_mac, hop.src_mac)),
        }),
        tunnel: tunnel_source(world.config, world.network, backend).map(|from| (from, backend)),
    }
}

/// The newest roster, for those who read it on threads of their own.
#[derive(Debug, Default)]
pub struct Current(Mutex<Arc<Roster>>);

impl Current {
    /// The newest one.
    #[must_use]
    pub fn get(&self) -> Arc<Roster> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces it, and returns the one before.
    pub fn set(&self, roster: Roster) -> Arc<Roster> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, Arc::new(roster))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{
        config::{self, Config},
        health::State,
        netlink::NetState,
        nexthop::NextHops,
        run::{
            input::{input, skeleton},
            liveness::Liveness,
        },
        sidecar::Memory,
        state::{
            Capacity,
            actual::Actual,
            desired::{RingCache, desired},
        },
    };

    fn config(extra: &str, backends: &[u8]) -> Config {
        let mut text = format!(
            r#"
            [edge]
            name = "e"
            interfaces = ["eth0"]
            source_addresses = ["10.2.0.1"]
            hash_seed = "s"
            [[service]]
            name = "chat"
            listen = ["203.0.113.10:80"]
            idle_timeout = "10s"
            {extra}
            "#
        );
        for n in backends {
            text +=
                &format!("[[service.backend]]\nname = \"b{n}\"\naddress = \"10.2.0.{n}:9000\"\n");
        }
        config::parse("edge.toml", &text).unwrap().0
    }

    struct Edge {
        ids: Ids,
        liveness: Liveness,
        memory: Memory,
        before: Roster,
    }

    impl Edge {
        fn new() -> Self {
            let capacity = Capacity { services: 9, rings: 26, backends: 9, next_hops: 9 };
            Self {
                ids: Ids::recover(&Actual::empty(26), capacity),
                liveness: Liveness::default(),
                memory: Memory::default(),
                before: Roster::default(),
            }
        }

        fn roster(&mut self, config: &Config) -> Roster {
            self.ids.assign(&skeleton(config)).unwrap();
            self.liveness.follow(config, |_, _| None);
            let world = World {
                config,
                liveness: &self.liveness,
                network: &NetState::default(),
                next_hops: &NextHops::default(),
                now: Instant::now(),
            };
            let desired = desired(&input(world), &self.ids, &mut RingCache::default()).unwrap();
            let drains = Drains::new(config, &self.memory, 5_000);
            self.before = Roster::new(1, world, &drains, &self.ids, &desired, &self.before);
            self.before.clone()
        }

        fn down(&mut self, config: &Config, backend: &str) {
            let backend = config.services[0].backends.iter().find(|it| it.name == backend).unwrap();
            assert!(self.liveness.observe(&key("chat", backend), State::Down, Instant::now()));
        }
    }

    /// What becomes of the first two backends' flows.
    fn doomed(roster: &Roster) -> [Option<Doom>; 2] {
        [1, 2].map(|id| roster.policy(id).doomed)
    }

    /// The same service, served by the sidecar.
    fn l7(extra: &str, backends: &[u8]) -> Config {
        config(&format!("mode = \"l7\"\naccess_log = 0.5\n{extra}"), backends)
    }

    #[test]
    fn spliced_flows_of_who_goes_down_or_is_removed_are_doomed_until_all_are_down() {
        let (mut edge, config) = (Edge::new(), l7("", &[2, 3]));
        let before = edge.roster(&config);
        assert_eq!(doomed(&before), [None, None]);
        assert_eq!(before.policy(1).idle_timeout, ticks_from_millis(10_000));
        assert_eq!(before.policy(1).close_timeout, ticks_from_millis(30_000));
        let label = Label { service: "chat".into(), backend: "b2".into(), sample: 0.5 };
        assert_eq!(before.label(1).map(|it| &**it), Some(&label));
        edge.down(&config, "b2");
        assert_eq!(doomed(&edge.roster(&config)), [Some(Doom::Dead), None]);
        edge.down(&config, "b3");
        assert_eq!(doomed(&edge.roster(&config)), [None, None], "the sidecar fails open");
        assert_eq!(doomed(&edge.roster(&l7("", &[3]))), [Some(Doom::Dead), None]);
        let closed = l7("fail_open = false", &[2, 3]);
        assert_eq!(doomed(&edge.roster(&closed)), [Some(Doom::Dead); 2]);
    }

    #[test]
    fn who_drains_keeps_its_spliced_flows_until_the_deadline() {
        let (mut edge, mut config) =
            (Edge::new(), l7("drain = { deadline = \"1s\", rate = 7 }", &[2, 3]));
        config.services[0].backends[0].drain = true;
        let drain = Some(Doom::Drain { service: 1, rate: 7 });
        // The roster is of 5,000 ms.
        for (since, wanted) in [(4_001, None), (4_000, drain)] {
            let since = BTreeMap::from([("b2".to_owned(), since)]);
            edge.memory.drains = BTreeMap::from([("chat".to_owned(), since)]);
            assert_eq!(doomed(&edge.roster(&config)), [wanted, None]);
        }
        edge.memory.edge_drains = Some(4_500);
        assert_eq!(doomed(&edge.roster(&config)), [drain; 2]);
        edge.down(&config, "b3");
        assert_eq!(doomed(&edge.roster(&config))[0], drain, "who drains lives");
        edge.memory.edge_drains = Some(1);
        assert_eq!(edge.roster(&config).policy(1).doomed, Some(Doom::Deadline));
    }

    #[test]
    fn who_goes_down_is_doomed_until_all_are_down() {
        let (mut edge, config) = (Edge::new(), config("", &[2, 3]));
        let before = edge.roster(&config);
        assert_eq!(doomed(&before), [None, None]);
        assert_eq!(before.policy(1).idle_timeout, ticks_from_millis(10_000));
        edge.down(&config, "b2");
        let one_down = edge.roster(&config);
        assert_eq!(doomed(&one_down), [Some(Doom::Dead), None]);
        assert!(one_down.dooms_more_than(&before) && !before.dooms_more_than(&one_down));
        edge.down(&config, "b3");
        let fail_open = edge.roster(&config);
        assert_eq!(doomed(&fail_open), [None, None]);
    }

    #[test]
    fn fail_closed_spares_nobody() {
        let (mut edge, config) = (Edge::new(), config("fail_open = false", &[2]));
        edge.roster(&config);
        edge.down(&config, "b2");
        assert_eq!(edge.roster(&config).policy(1).doomed, Some(Doom::Dead));
    }

    #[test]
    fn an_operator_can_leave_the_flows_of_the_dead_alone() {
        let (mut edge, both) = (Edge::new(), config("reset_on_backend_death = false", &[2, 3]));
        edge.roster(&both);
        edge.down(&both, "b2");
        assert_eq!(edge.roster(&both).policy(1).doomed, None);
        let removed = edge.roster(&config("reset_on_backend_death = false", &[3]));
        assert_eq!(removed.policy(1).doomed, None, "nor are those of who was removed");
    }

    #[test]
    fn a_removed_service_leaves_its_flows_as_it_wanted_it() {
        for (wanted, doomed) in [("false", None), ("true", Some(Doom::Dead))] {
            let mut edge = Edge::new();
            edge.roster(&config(&format!("reset_on_backend_death = {wanted}"), &[2, 3]));
            let mut other = config("", &[4]);
            other.services[0].name = "other".into();
            other.services[0].listen = vec!["203.0.113.99:80".parse().unwrap()];
            for _ in 0..2 {
                let policy = edge.roster(&other).policy(1);
                assert_eq!(
                    (policy.doomed, policy.idle_timeout),
                    (doomed, ticks_from_millis(10_000))
                );
            }
        }
    }

    #[test]
    fn who_was_removed_or_is_not_known_is_doomed() {
        let mut edge = Edge::new();
        edge.roster(&config("", &[2, 3]));
        let roster = edge.roster(&config("", &[3]));
        assert_eq!(doomed(&roster), [Some(Doom::Dead), None]);
        assert_eq!(roster.policy(77).doomed, Some(Doom::Dead));
        assert_eq!(roster.label(1).map(|it| it.backend.as_str()), Some("b2"), "and not forgotten");
        assert_eq!(roster.label(77), None);
    }

    #[test]
    fn nobody_is_reset_in_panic() {
        for mode in ["", "mode = \"l7\"\naffinity = \"none\"\n"] {
            for (threshold, wanted) in [(0, Some(Doom::Dead)), (60, None)] {
                let lines = format!("{mode}panic_threshold = {threshold}");
                let (mut edge, config) = (Edge::new(), config(&lines, &[2, 3]));
                edge.roster(&config);
                edge.down(&config, "b2");
                assert_eq!(doomed(&edge.roster(&config)), [wanted, None], "{lines}");
            }
        }
    }

    #[test]
    fn who_is_ejected_is_not_dead() {
        let (mut edge, config) =
            (Edge::new(), config("mode = \"l7\"\naffinity = \"none\"", &[2, 3]));
        edge.roster(&config);
        let ejected = config.services[0].backends.iter().map(|backend| key("chat", backend));
        assert!(edge.liveness.eject(ejected.collect()));
        assert_eq!(doomed(&edge.roster(&config)), [None, None]);
    }
}
