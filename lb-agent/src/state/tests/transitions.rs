//! Any config and health after any other: where it ends, and what packets meet on the way.

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 3] = ["chat", "poll", "push"];
const LISTENERS: [&str; 5] =
    ["203.0.113.1:80", "203.0.113.1:81", "203.0.113.2:80", "[2001:db8::1]:80", "[2001:db8::2]:80"];
const BACKENDS: [&str; 5] =
    ["10.0.0.1:80", "10.0.0.1:81", "10.0.0.2:80", "[2001:db8:2::1]:80", "[2001:db8:2::2]:80"];

/// One service's forwarding, fail-open, and backends: present, weight, up, next hop.
type ServiceSpec = (u8, bool, [(bool, u32, bool, u16); 5]);

#[derive(Clone, Debug)]
struct Spec {
    services: [Option<ServiceSpec>; 3],
    /// Which service has each of the listeners.
    owners: [usize; 5],
    hops: [Option<u8>; 3],
    routes: [Option<u16>; 3],
    sources: Vec<u8>,
    /// The retired backends that flows still refer to, by id.
    referenced: u64,
    restart: bool,
}

fn spec() -> impl Strategy<Value = Spec> {
    let backend = (any::<bool>(), 0..4u32, prop::bool::weighted(0.7), 0..4u16);
    let service = (0..5u8, any::<bool>(), prop::array::uniform5(backend));
    (
        prop::array::uniform3(prop::option::weighted(0.8, service)),
        prop::array::uniform5(0..4usize),
        prop::array::uniform3(prop::option::of(0..3u8)),
        prop::array::uniform3(prop::option::of(0..4u16)),
        prop::collection::vec(1..5u8, 0..4),
        any::<u64>(),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(services, owners, hops, routes, sources, referenced, restart)| Spec {
            services,
            owners,
            hops,
            routes,
            sources,
            referenced,
            restart,
        })
}

impl Spec {
    fn input(&self) -> Input {
        let services = (0..3).filter_map(|n| self.service(n)).collect();
        let mut input = input(services);
        let present = |(n, hop_of): (usize, &Option<u8>)| Some((n as u16 + 1, hop((*hop_of)?)));
        input.next_hops = self.hops.iter().enumerate().filter_map(present).collect();
        for (n, next_hop) in self.routes.iter().enumerate() {
            if let Some(next_hop) = next_hop {
                let prefix = Prefix::new([10, 0, 0, 0].into(), 8 * n as u8);
                input.routes.insert(prefix, *next_hop);
            }
        }
        input.source_addresses = self.sources.iter().map(|&n| [10, 9, 0, n].into()).collect();
        input.retired_next_hops.insert("10.0.0.1".parse().unwrap(), 2);
        input
    }

    fn service(&self, n: usize) -> Option<ServiceInput> {
        let (forward, fail_open, backends) = self.services[n]?;
        let owned = self.owners.iter().zip(LISTENERS).filter(|(owner, _)| **owner == n);
        let listeners: Vec<&str> = owned.map(|(_, listener)| listener).collect();
        let mut service = service(NAMES[n], &listeners, &[]);
        service.forward =
            [Forward::Nat, Forward::Dsr, Forward::Ipip, Forward::Splice, Forward::Relay]
                [usize::from(forward)];
        service.rule.fail_open = fail_open;
        for ((present, weight, up, next_hop), addr) in backends.into_iter().zip(BACKENDS) {
            if present {
                service.backends.push(BackendInput { weight, up, next_hop, ..backend(addr) });
            }
        }
        Some(service)
    }
}

/// What must hold after every operation.
fn check(now: &Actual, members: &mut BTreeMap<*const Slots, (Ring, BTreeSet<u16>)>) {
    for (at, listener) in &now.listeners {
        let exists = listener.service == 0 || now.services.contains_key(&listener.service);
        assert!(exists, "listener {at} has no service {}", listener.service);
        let vip = listener.service == 0 || now.listeners.contains_key(&Endpoint::vip(at.ip));
        assert!(vip, "listener {at} is there without its address");
    }
    for (id, service) in &now.services {
        for number in service.rings.into_iter().filter(|&number| number != 0) {
            assert!(!now.free_rings.contains(&number), "ring {number} of service {id} is free");
            let ring = &now.rings[&number];
            let (_, members) = members
                .entry(Arc::as_ptr(ring))
                .or_insert_with(|| (ring.clone(), ring.iter().copied().collect()));
            for member in members.iter() {
                let backend = now.backends.get(member).expect("a ring's backend exists");
                assert_eq!(backend.service, *id, "backend {member} in another service's ring");
            }
        }
    }
    let exists = |id: u16| id == 0 || now.next_hops.contains_key(&id);
    assert!(now.backends.values().all(|backend| exists(backend.next_hop)));
    assert!(now.routes.values().all(|&next_hop| exists(next_hop)));
    for family in Family::BOTH {
        for index in 0..now.edge.sources[family as usize] {
            assert!(now.sources.contains_key(&(family, index)), "source {index} is missing");
        }
    }
}

fn assert_reached(now: &Actual, desired: &Desired) {
    assert_eq!(now.listeners, desired.listeners);
    assert_eq!(now.next_hops, desired.next_hops);
    assert_eq!(now.routes, desired.routes);
    assert_eq!(now.edge.sources, desired.source_counts());
    assert!(desired.sources.iter().all(|(key, addr)| now.sources[key] == *addr));
    assert!(now.services.keys().eq(desired.services.keys()));
    for (id, wanted) in &desired.services {
        let service = &now.services[id];
        assert_eq!((service.forward, service.affinity), (wanted.forward, wanted.affinity));
        for (number, ring) in service.rings.iter().zip(&wanted.rings) {
            assert!(now.rings.get(number) == ring.as_ref());
        }
    }
    for (id, backend) in &now.backends {
        match desired.backends.get(id) {
            Some(wanted) => assert_eq!(backend, wanted),
            None => assert_eq!(desired.retired[id], backend.next_hop),
        }
    }
    assert!(desired.backends.keys().all(|id| now.backends.contains_key(id)));
    let used = now.services.values().flat_map(|service| service.rings).filter(|&n| n != 0);
    assert_eq!(used.count() + now.free_rings.len(), CAPACITY.rings as usize - 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_step_on_the_way_is_consistent_and_the_end_is_what_was_wanted(
        specs in prop::collection::vec(spec(), 1..6),
        stop in any::<prop::sample::Index>(),
    ) {
        let mut agent = Agent::new();
        let mut members = BTreeMap::new();
        for spec in specs {
            let input = spec.input();
            if spec.restart {
                // Killed somewhere between: the next agent finds what there is.
                let (_, ops) = agent.plan(&input);
                for op in ops.iter().take(stop.index(ops.len() + 1)) {
                    agent.actual.apply(op);
                }
                agent.restart();
            }
            let (desired, ops) = agent.plan(&input);
            for op in &ops {
                if let MapOp::WriteRing { number, .. } = op {
                    let in_use = |service: &lb_common::service::Service| service.rings.contains(number);
                    assert!(!agent.actual.services.values().any(in_use), "{op}: in use");
                }
                agent.actual.apply(op);
                check(&agent.actual, &mut members);
            }
            assert_reached(&agent.actual, &desired);
            let again = diff(&agent.actual, &desired);
            prop_assert!(again.is_empty(), "{again:?}");
            agent.ids.release(|id| spec.referenced >> (id % 64) & 1 == 1);
        }
    }

    #[test]
    fn a_change_of_one_service_touches_no_other(a in spec(), b in spec()) {
        let mut agent = Agent::new();
        agent.reach(&a.input());
        let mut changed = a.clone();
        changed.services[1] = b.services[1];
        let id_of = |agent: &Agent| agent.ids.service(NAMES[1]);
        let before = agent.actual.clone();
        let had = id_of(&agent);
        let (_, ops) = agent.plan(&changed.input());
        let own = [had, id_of(&agent)];
        for op in ops {
            let of = match op {
                MapOp::ClearListener { at } => Some(before.listeners[&at].service),
                MapOp::ClearBackend { id } => Some(before.backends[&id].service),
                _ => op.service(),
            };
            match of {
                Some(0) | None => {}
                of => prop_assert!(own.contains(&of), "{op} is for another service"),
            }
        }
    }

    #[test]
    fn health_alone_writes_rings_and_services_only(
        a in spec(),
        ups in prop::array::uniform3(prop::array::uniform5(any::<bool>())),
    ) {
        let mut agent = Agent::new();
        agent.reach(&a.input());
        let mut changed = a.clone();
        for (service, ups) in changed.services.iter_mut().zip(ups) {
            if let Some((_, _, backends)) = service {
                backends.iter_mut().zip(ups).for_each(|(backend, up)| backend.2 = up);
            }
        }
        for op in agent.reach(&changed.input()) {
            let allowed = matches!(op, MapOp::WriteRing { .. } | MapOp::SetService { .. });
            prop_assert!(allowed, "{op}");
        }
    }
}
