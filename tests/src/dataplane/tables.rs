//! The maps of the program under test: written as the agent does it, emptied, and read back.

use std::collections::BTreeMap;

use aya::{
    Ebpf, Pod,
    maps::{HashMap, MapData, MapError, RingBuf},
};
use lb_agent::state::{Endpoint, Family, Prefix, actual::Actual, maps::Maps, op::MapOp};
use lb_common::{
    addr::{Tuple, V4, V6},
    counters::BackendCounters,
    flow::Flow,
    handshake::Handshake,
    next_hop::NextHop,
    outcome::COUNTERS_PER_SERVICE,
    punt::Punt,
    rtt::HandshakeRtt,
    service::{Backend, Listener, Service, listener_flags},
};

use super::{
    Counters,
    batch::PerCpu,
    expect::Counted,
    scenario::{Scenario, id},
};

/// Elements of `SERVICES`, number 0 included.
pub const SERVICES: u32 = 9;
pub const RINGS: u32 = 2 * (SERVICES - 1) + 8;
pub const BACKENDS: u32 = 64;
pub const NEXT_HOPS: u32 = 128;
pub const OUTCOMES: u32 = SERVICES * COUNTERS_PER_SERVICE;

/// The maps of the program `sluice`.
pub struct Tables {
    config: Maps,
    pub flows4: HashMap<MapData, Tuple<V4>, Flow<V4>>,
    pub flows6: HashMap<MapData, Tuple<V6>, Flow<V6>>,
    pub handshakes4: HashMap<MapData, Tuple<V4>, Handshake<V4>>,
    pub handshakes6: HashMap<MapData, Tuple<V6>, Handshake<V6>>,
    outcomes: PerCpu<u64>,
    backend_counters: PerCpu<BackendCounters>,
    handshake_rtt: PerCpu<HandshakeRtt>,
    punts: RingBuf<MapData>,
    /// Keys of what is written, so that it can be removed.
    listeners: Vec<Endpoint>,
    routes: Vec<Prefix>,
    access: Vec<(u16, Prefix)>,
    backends: Vec<u16>,
    next_hops: Vec<u16>,
    /// Members of the ring that stands at a number. Rings are large, and the data plane never writes
    /// to them.
    rings: BTreeMap<u32, (u64, Vec<u16>)>,
}

/// A packet that was handed to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Punted {
    pub backend: u16,
    pub packet: Vec<u8>,
}

impl Tables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Self {
        let mut take = |name: &str| {
            ebpf.take_map(name).unwrap_or_else(|| panic!("the object has no map {name}"))
        };
        Self {
            flows4: take("FLOWS4").try_into().expect("FLOWS4"),
            flows6: take("FLOWS6").try_into().expect("FLOWS6"),
            handshakes4: take("HANDSHAKES4").try_into().expect("HANDSHAKES4"),
            handshakes6: take("HANDSHAKES6").try_into().expect("HANDSHAKES6"),
            outcomes: PerCpu::new(take("OUTCOMES")),
            backend_counters: PerCpu::new(take("BACKEND_COUNTERS")),
            handshake_rtt: PerCpu::new(take("HANDSHAKE_RTT")),
            punts: take("PUNTS").try_into().expect("PUNTS"),
            config: Maps::new(|name| ebpf.take_map(name)).expect("the agent takes the maps"),
            listeners: Vec::new(),
            routes: Vec::new(),
            access: Vec::new(),
            backends: Vec::new(),
            next_hops: Vec::new(),
            rings: BTreeMap::new(),
        }
    }

    /// Empties all that the data plane writes.
    pub fn clear(&mut self) {
        empty(&mut self.flows4);
        empty(&mut self.flows6);
        empty(&mut self.handshakes4);
        empty(&mut self.handshakes6);
        self.outcomes.zero();
        self.backend_counters.zero();
        self.handshake_rtt.zero();
        while self.punts.next().is_some() {}
    }

    /// Round trips of a service's handshakes.
    #[must_use]
    pub fn handshake_rtt(&self, service: u16) -> HandshakeRtt {
        let mut sum = HandshakeRtt::default();
        self.handshake_rtt.read()[usize::from(service)].iter().for_each(|cpu| sum += *cpu);
        sum
    }

    /// What the agent would read back.
    pub fn read(&self) -> Actual {
        self.config.read().expect("the maps can be read")
    }

    /// Writes a scenario in the place of the one before.
    pub fn write(&mut self, scenario: &Scenario) {
        self.remove_old(scenario);
        for (&id, &hop) in &scenario.next_hops {
            self.apply(MapOp::SetNextHop { id, hop });
        }
        for family in Family::BOTH {
            let of_family = scenario.sources.iter().filter(|ip| Family::of(**ip) == family);
            for (index, &addr) in of_family.enumerate() {
                self.apply(MapOp::SetSource { index: index as u32, addr });
            }
        }
        self.apply(MapOp::SetEdge(scenario.edge));
        for (&id, &backend) in &scenario.backends {
            let access = scenario.lists_of(backend.service);
            self.apply(MapOp::SetBackend { id, backend: Backend { access, ..backend } });
        }
        self.write_access(scenario);
        for (&to, &next_hop) in &scenario.routes {
            self.apply(MapOp::SetRoute { to, next_hop });
        }
        for service in id::ALL {
            self.write_service(scenario, service);
        }
        for (&at, &value) in &scenario.listeners {
            let listener = match at.port {
                0 => Listener { service: 0, flags: value },
                _ => Listener { service: value, flags: 0 },
            };
            self.apply(MapOp::SetListener { at, listener });
        }
        for &at in &scenario.upstreams {
            let listener = Listener { service: 0, flags: listener_flags::UPSTREAM };
            self.apply(MapOp::SetListener { at, listener });
        }
        self.listeners = scenario.listeners.keys().chain(&scenario.upstreams).copied().collect();
        self.routes = scenario.routes.keys().copied().collect();
        self.backends = scenario.backends.keys().copied().collect();
        self.next_hops = scenario.next_hops.keys().copied().collect();
    }

    fn write_access(&mut self, scenario: &Scenario) {
        for (scope, from) in std::mem::take(&mut self.access) {
            self.apply(MapOp::ClearAccess { scope, from });
        }
        for (&scope, access) in &scenario.access {
            for (from, admit) in access.entries() {
                self.apply(MapOp::SetAccess { scope, from, admit });
                self.access.push((scope, from));
            }
        }
    }

    fn remove_old(&mut self, scenario: &Scenario) {
        for at in std::mem::take(&mut self.listeners) {
            if !scenario.listeners.contains_key(&at) && !scenario.upstreams.contains(&at) {
                self.apply(MapOp::ClearListener { at });
            }
        }
        for to in std::mem::take(&mut self.routes) {
            if !scenario.routes.contains_key(&to) {
                self.apply(MapOp::ClearRoute { to });
            }
        }
        for id in std::mem::take(&mut self.backends) {
            if !scenario.backends.contains_key(&id) {
                self.apply(MapOp::SetBackend { id, backend: Backend::default() });
            }
        }
        for id in std::mem::take(&mut self.next_hops) {
            if !scenario.next_hops.contains_key(&id) {
                self.apply(MapOp::SetNextHop { id, hop: NextHop::default() });
            }
        }
    }

    fn write_service(&mut self, scenario: &Scenario, service: u16) {
        let Some(spec) = scenario.services.get(&service) else {
            return self.apply(MapOp::ClearService { id: service });
        };
        let mut value =
            Service { forward: spec.forward, affinity: spec.affinity, ..Service::default() };
        value.access = scenario.lists_of(service);
        if service == id::SIDECAR {
            value.flags = scenario.sidecar_flags;
        }
        for family in Family::BOTH {
            let Some(slots) = scenario.ring(service, family) else {
                continue;
            };
            let number = Scenario::ring_number(service, family);
            value.rings[family as usize] = number;
            let members = scenario.members(service, family).iter().map(|it| it.id).collect();
            let stands = (scenario.edge.hash_seed, members);
            if self.rings.get(&number) != Some(&stands) {
                self.apply(MapOp::WriteRing { number, service, slots });
                self.rings.insert(number, stands);
            }
        }
        self.apply(MapOp::SetService { id: service, service: value });
    }

    /// Overwrites a backend behind the scenario's back, as in the middle of a change.
    pub fn set_backend(&mut self, id: u16, backend: Backend) {
        self.apply(MapOp::SetBackend { id, backend });
    }

    /// Clears backends behind the scenario's back.
    pub fn blank_backends(&mut self, ids: impl IntoIterator<Item = u16>) {
        ids.into_iter().for_each(|id| self.apply(MapOp::ClearBackend { id }));
    }

    fn apply(&mut self, op: MapOp) {
        self.config.apply(&op).unwrap_or_else(|error| panic!("{op}: {error:#}"));
    }

    /// All counters that are not zero, added up over the CPUs.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        let outcomes = self.outcomes.read();
        for service in 0..SERVICES as u16 {
            for outcome in Counted::all() {
                let index = u32::from(service) * COUNTERS_PER_SERVICE + outcome.index();
                let sum: u64 = outcomes[index as usize].iter().sum();
                if sum > 0 {
                    counters.outcomes.insert((service, outcome), sum);
                }
            }
        }
        for (backend, cpus) in self.backend_counters.read().into_iter().enumerate() {
            let mut sum = BackendCounters::default();
            cpus.into_iter().for_each(|cpu| sum += cpu);
            if sum != BackendCounters::default() {
                counters.backends.insert(backend as u16, sum);
            }
        }
        counters
    }

    /// The packets handed to the agent since the last time.
    pub fn punted(&mut self) -> Vec<Punted> {
        let mut punted = Vec::new();
        while let Some(record) = self.punts.next() {
            assert!(record.len() >= size_of::<Punt>(), "a record of {} bytes", record.len());
            let len = u32::from_ne_bytes(record[..4].try_into().expect("four bytes")) as usize;
            let backend = u16::from_ne_bytes([record[4], record[5]]);
            let start = std::mem::offset_of!(Punt, packet);
            punted.push(Punted { backend, packet: record[start..start + len].to_vec() });
        }
        punted
    }
}

fn empty<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) {
    // An LRU may hold keys that a walk along them meets twice or loses; so walk until there is none.
    loop {
        let keys: Vec<K> = map.keys().filter_map(Result::ok).collect();
        if keys.is_empty() {
            return;
        }
        for key in keys {
            match map.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(MapError::SyscallError(error))
                    if error.io_error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => panic!("a table cannot be emptied: {error}"),
            }
        }
    }
}
