//! A small edge with every kind of service, for both IP versions.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use lb_agent::state::{Endpoint, Family, Prefix, access::Access};
use lb_common::{
    abi::{self, Edge},
    access::{self, lists},
    addr::{Addr, Tuple, V4, V6},
    flow::forward,
    hash,
    maglev::{self, Maglev, Member, Slots},
    next_hop::NextHop,
    service::{Backend, affinity, family, listener_flags},
};

use super::INGRESS;

/// Ids of the services.
pub mod id {
    pub const NAT: u16 = 1;
    pub const DSR: u16 = 2;
    /// IPv4 in IPv4.
    pub const IPIP: u16 = 3;
    /// IPv4 in IPv6 and IPv6 in IPv6.
    pub const IPIP6: u16 = 4;
    /// `nat` with source affinity.
    pub const AFFINE: u16 = 5;
    /// `nat` without a backend.
    pub const EMPTY: u16 = 6;

    /// Served by the sidecar, whose connections may be spliced.
    pub const SIDECAR: u16 = 7;

    pub const ALL: [u16; 7] = [NAT, DSR, IPIP, IPIP6, AFFINE, EMPTY, SIDECAR];
}

/// Ids of the next hops which no backend has.
pub mod hop {
    /// The router towards the clients.
    pub const ROUTER: u16 = 1;
    /// Like the router, but with one VLAN tag.
    pub const TAGGED: u16 = 2;
    /// Like the router, but with two VLAN tags.
    pub const DOUBLE_TAGGED: u16 = 3;
    /// Like the router, on another interface.
    pub const ELSEWHERE: u16 = 4;
    /// Not resolved.
    pub const UNRESOLVED: u16 = 5;
    /// That of backend 0, which there is not; each backend has one of its own.
    pub const OF_BACKENDS: u16 = 16;
}

/// The edge's MAC address.
pub const EDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The MAC address of the router towards the clients.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Another interface than that which frames come by.
pub const OTHER_INTERFACE: u32 = 77;

/// How a service forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    pub forward: u8,
    pub affinity: u8,
}

/// What is to be in the maps.
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    pub edge: Edge,
    pub sources: Vec<IpAddr>,
    pub services: BTreeMap<u16, ServiceSpec>,
    /// Services by where they listen, and flags of VIPs at port 0.
    pub listeners: BTreeMap<Endpoint, u16>,
    /// Backends of the sidecar, whose SYN-ACKs are noted.
    pub upstreams: BTreeSet<Endpoint>,
    pub backends: BTreeMap<u16, Backend>,
    pub next_hops: BTreeMap<u16, NextHop>,
    pub routes: BTreeMap<Prefix, u16>,
    /// Access lists by scope: a service, or the edge.
    pub access: BTreeMap<u16, Access>,
    /// Bits of [`lb_common::service::service_flags`] of the sidecar's service.
    pub sidecar_flags: u8,
}

/// The listener of a service. Every service has one for each IP version, at port 80.
pub fn listener(service: u16, v6: bool) -> SocketAddr {
    let last = service * 10;
    let ip: IpAddr = match v6 {
        false => [203, 0, 113, last as u8].into(),
        true => [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into(),
    };
    SocketAddr::new(ip, 80)
}

/// The address of a backend: number `n` of all.
fn server(n: u16, v6: bool) -> IpAddr {
    match v6 {
        false => [10, 2, 0, n as u8].into(),
        true => [0xfd00, 2, 0, 0, 0, 0, 0, n].into(),
    }
}

/// The edge's address towards the backends: the source of `nat` and of tunnels.
pub fn edge_source(v6: bool) -> IpAddr {
    server(254, v6)
}

/// A client.
pub fn client(v6: bool) -> SocketAddr {
    let ip: IpAddr = match v6 {
        false => [198, 51, 100, 7].into(),
        true => [0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 7].into(),
    };
    SocketAddr::new(ip, 40_001)
}

/// The MAC address of a backend.
pub fn mac(backend: u16) -> [u8; 6] {
    [2, 0, 0, 0, 1, backend as u8]
}

fn words(addr: IpAddr) -> [u32; 4] {
    match addr {
        IpAddr::V4(addr) => [V4::from(addr).0, 0, 0, 0],
        IpAddr::V6(addr) => V6::from(addr).0,
    }
}

impl Scenario {
    /// Every service with two backends at least for each IP version of its clients, but for
    /// [`id::EMPTY`] and [`id::SIDECAR`], which has one, and for IPv6 clients of [`id::IPIP`]. All next hops are resolved and on the interface that frames come by.
    pub fn usual() -> Self {
        let mut scenario = Self {
            edge: Edge {
                abi_version: abi::VERSION,
                route_epoch: 1,
                hash_seed: hash::seed("packet tables"),
                sources: [1, 1],
                nat_port_first: 1024,
                nat_port_count: 64_512,
                _pad: 0,
            },
            sources: vec![edge_source(false), edge_source(true)],
            ..Self::default()
        };
        for service in id::ALL {
            let spec = match service {
                id::DSR => ServiceSpec { forward: forward::DSR, affinity: affinity::NONE },
                id::IPIP | id::IPIP6 => {
                    ServiceSpec { forward: forward::IPIP, affinity: affinity::NONE }
                }
                id::AFFINE => ServiceSpec { forward: forward::NAT, affinity: affinity::SOURCE },
                id::SIDECAR => ServiceSpec { forward: forward::SPLICE, affinity: affinity::NONE },
                _ => ServiceSpec { forward: forward::NAT, affinity: affinity::NONE },
            };
            scenario.services.insert(service, spec);
            for v6 in [false, true] {
                scenario.listen(listener(service, v6), service);
            }
        }
        for service in [id::NAT, id::DSR, id::IPIP, id::IPIP6, id::AFFINE] {
            for v6 in [false, true] {
                // Each of the tunnels has backends of one version, so that it is known which one is taken.
                let v6_backend = v6 && service != id::IPIP || service == id::IPIP6;
                scenario.add_backend(service, v6_backend);
                scenario.add_backend(service, v6_backend);
            }
        }
        for v6 in [false, true] {
            let id = scenario.add_backend(id::SIDECAR, v6);
            scenario.upstreams.insert(scenario.backend_addr(id).into());
        }
        let router = Self::next_hop(ROUTER_MAC);
        scenario.next_hops.insert(hop::ROUTER, router);
        let tag = |tpid: u16, tci: u16| [tpid.to_be(), tci.to_be()];
        let tags = [tag(0x8100, 0x2064), [0; 2]];
        scenario.next_hops.insert(hop::TAGGED, NextHop { tags_len: 4, tags, ..router });
        let tags = [tag(0x88a8, 0x0065), tag(0x8100, 0x2064)];
        scenario.next_hops.insert(hop::DOUBLE_TAGGED, NextHop { tags_len: 8, tags, ..router });
        let elsewhere = NextHop { ifindex: OTHER_INTERFACE, ..router };
        scenario.next_hops.insert(hop::ELSEWHERE, elsewhere);
        scenario.next_hops.insert(hop::UNRESOLVED, NextHop { ifindex: 0, ..router });
        scenario.route("0.0.0.0/0", hop::ROUTER);
        scenario.route("::/0", hop::ROUTER);
        scenario
    }

    fn next_hop(dst: [u8; 6]) -> NextHop {
        NextHop { ifindex: INGRESS, mtu: 1500, dst, src: EDGE_MAC, ..NextHop::default() }
    }

    /// Makes a service listen at an address, which becomes a VIP.
    pub fn listen(&mut self, at: SocketAddr, service: u16) {
        self.listeners.insert(at.into(), service);
        self.listeners.entry(Endpoint::vip(at.ip())).or_insert(0);
    }

    /// Takes a VIP off the host: the data plane alone has it.
    pub fn xdp_only(&mut self, ip: IpAddr) {
        self.listeners.insert(Endpoint::vip(ip), listener_flags::XDP_ONLY);
    }

    /// Adds the next backend, with a next hop of its own. `nat` and the sidecar translate to port 9000, what keeps
    /// the destination keeps the port.
    pub fn add_backend(&mut self, service: u16, v6: bool) -> u16 {
        let id = self.backends.keys().last().copied().unwrap_or(0) + 1;
        let nat = matches!(self.services[&service].forward, forward::NAT | forward::SPLICE);
        let backend = Backend {
            addr: words(server(id, v6)),
            tunnel_source: words(edge_source(v6)),
            port: if nat { 9000_u16 } else { 80 }.to_be(),
            service,
            next_hop: hop::OF_BACKENDS + id,
            family: if v6 { family::V6 } else { family::V4 },
            ..Backend::default()
        };
        self.backends.insert(id, backend);
        self.next_hops.insert(hop::OF_BACKENDS + id, Self::next_hop(mac(id)));
        id
    }

    /// Routes a prefix to a next hop.
    ///
    /// # Panics
    /// If the text is not `ADDRESS/LENGTH`.
    pub fn route(&mut self, prefix: &str, hop: u16) {
        let (addr, len) = prefix.split_once('/').expect("a prefix has a length");
        let addr = addr.parse().expect("a prefix has an address");
        self.routes.insert(Prefix::new(addr, len.parse().expect("the length is a number")), hop);
    }

    /// Denies (or allows) sources in a prefix in a scope.
    ///
    /// # Panics
    /// If the text is not `ADDRESS/LENGTH`.
    pub fn list(&mut self, scope: u16, prefix: &str, admit: bool) {
        let (addr, len) = prefix.split_once('/').expect("a prefix has a length");
        let addr = addr.parse().expect("a prefix has an address");
        let prefix = Prefix::new(addr, len.parse().expect("the length is a number"));
        let access = self.access.entry(scope).or_default();
        if admit {
            access.allow.insert(prefix)
        } else {
            access.deny.insert(prefix)
        };
    }

    /// Which lists are for a service.
    pub fn lists_of(&self, service: u16) -> u8 {
        let bit = |scope, bit| if self.access.contains_key(&scope) { bit } else { 0 };
        bit(access::EDGE, lists::EDGE) | bit(service, lists::SERVICE)
    }

    /// The same with a change.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// A backend's address and port.
    pub fn backend_addr(&self, id: u16) -> SocketAddr {
        lb_agent::state::backend_addr(&self.backends[&id])
    }

    /// Where a listener's ring for clients of an IP version is.
    pub fn ring_number(service: u16, clients: Family) -> u32 {
        u32::from(service) * 2 - 1 + clients as u32
    }

    /// The backends that clients of an IP version can reach.
    pub fn members(&self, service: u16, clients: Family) -> Vec<Member> {
        let tunnel = self.services[&service].forward == forward::IPIP;
        let of_service = self.backends.iter().filter(|(_, it)| it.service == service);
        of_service
            .filter(|(_, it)| {
                let same = (it.family == family::V6) == (clients == Family::V6);
                same || tunnel && clients == Family::V4
            })
            .map(|(&id, it)| {
                let key = maglev::key(lb_agent::state::backend_addr(it));
                Member { key, weight: 100, id }
            })
            .collect()
    }

    /// The agent's ring for a service and the clients of an IP version; `None` without backends.
    pub fn ring(&self, service: u16, clients: Family) -> Option<Arc<Slots>> {
        type Known = Vec<(Vec<(u64, u16)>, u64, Arc<Slots>)>;
        static KNOWN: Mutex<Known> = Mutex::new(Vec::new());
        let members = self.members(service, clients);
        let picks = self.services[&service].forward != forward::SPLICE;
        if members.is_empty() || !picks {
            return None;
        }
        let key: Vec<_> = members.iter().map(|member| (member.key, member.id)).collect();
        let seed = self.edge.hash_seed;
        let mut known = KNOWN.lock().expect("nobody panics with the lock");
        if let Some((.., ring)) = known.iter().find(|it| it.0 == key && it.1 == seed) {
            return Some(ring.clone());
        }
        let ring: Arc<Slots> = Arc::from(Maglev::build(seed, &members).ring(|_| true));
        known.push((key, seed, ring.clone()));
        Some(ring)
    }

    /// The backend of a client's new connection, computed from the agent's ring.
    ///
    /// # Panics
    /// If nobody listens there, or there is no backend.
    pub fn pick(&self, client: SocketAddr, listener: SocketAddr) -> u16 {
        match (client.ip(), listener.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                self.pick_for(V4::from(src), V4::from(dst), client, listener)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                self.pick_for(V6::from(src), V6::from(dst), client, listener)
            }
            _ => panic!("{client} cannot reach {listener}"),
        }
    }

    fn pick_for<A: Addr>(&self, src: A, dst: A, client: SocketAddr, listener: SocketAddr) -> u16 {
        let service = self.listeners[&Endpoint::from(listener)];
        let seed = self.edge.hash_seed;
        let hash = match self.services[&service].affinity {
            affinity::SOURCE => hash::source(seed, &src),
            _ => {
                let (sport, dport) = (client.port().to_be(), listener.port().to_be());
                hash::tuple(seed, &Tuple { src, dst, sport, dport })
            }
        };
        let ring = self.ring(service, Family::BOTH[A::FAMILY]).expect("the service has backends");
        ring[hash::slot(hash)]
    }
}
