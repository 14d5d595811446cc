//! What the maps should hold, from the config, the health of the backends and the routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, bail, ensure};
use lb_common::{
    abi::MAX_SOURCES,
    access as scope,
    flow::forward,
    maglev::{Maglev, Member, key},
    next_hop::{FIB, NextHop},
    service::{Backend, Listener, affinity, family, listener_flags, service_flags},
};

use super::{
    Endpoint, Family, Prefix, Ring,
    access::{Access, lists_of},
    ids::Ids,
    words_of,
};
use crate::choice::{Candidate, Mode, Rule};

/// How packets reach the backends of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    Nat,
    Dsr,
    Ipip,
    /// Through the sidecar, whose connections may be spliced: the data plane takes note of their handshakes.
    Splice,
    /// Through the sidecar and no other way: the data plane knows the backends alone, since connections that were
    /// spliced before go on.
    Relay,
}

impl Forward {
    /// Whether the data plane gives clients to backends, and so needs rings.
    const fn picks(self) -> bool {
        matches!(self, Self::Nat | Self::Dsr | Self::Ipip)
    }
}

/// How a client finds its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    None,
    Source,
}

/// All that the maps depend on.
#[derive(Clone, Debug)]
pub struct Input {
    /// [`lb_common::hash::seed`] of the config's text.
    pub hash_seed: u64,
    pub nat_port_first: u16,
    pub nat_port_count: u16,
    /// Of both IP versions, in the config's order.
    pub source_addresses: Vec<IpAddr>,
    pub services: Vec<ServiceInput>,
    /// The addresses of listeners that are not on the host.
    pub xdp_only: BTreeSet<IpAddr>,
    /// By id, from 1 on.
    pub next_hops: BTreeMap<u16, NextHop>,
    pub routes: BTreeMap<Prefix, u16>,
    /// The next hops of backends which the config has no more but flows still use
    /// ([`Ids::retired_backends`]). Those not in here are left to the kernel's FIB.
    pub retired_next_hops: BTreeMap<IpAddr, u16>,
    /// For all services.
    pub access: Access,
}

/// A service as configured, its backends as healthy as they are.
#[derive(Clone, Debug)]
pub struct ServiceInput {
    pub name: String,
    /// Also of [`Forward::Relay`], where they are in the maps only for access lists: ids are found by them.
    pub listeners: Vec<SocketAddr>,
    pub forward: Forward,
    pub affinity: Affinity,
    pub backends: Vec<BackendInput>,
    /// Who gets newcomers.
    pub rule: Rule,
    /// On top of the edge's.
    pub access: Access,
}

/// A backend as it is now.
#[derive(Clone, Debug)]
pub struct BackendInput {
    pub name: String,
    pub addr: SocketAddr,
    /// Scaled already if the backend starts slowly; 0 gets no new clients.
    pub weight: u32,
    pub up: bool,
    /// 0, or an id that is not in [`Input::next_hops`], leaves it to the kernel's FIB.
    pub next_hop: u16,
    /// Source of the outer header (`ipip`, and flows from when the service was that), of the same IP version as `addr`.
    pub tunnel_source: Option<IpAddr>,
    /// 0: no clamp.
    pub mss_clamp: u16,
    /// As configured.
    pub whole_weight: u32,
    /// Whether it stands in the edge's own zone.
    pub local: bool,
}

/// What the maps should hold.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    pub hash_seed: u64,
    pub nat_port_first: u16,
    pub nat_port_count: u16,
    pub sources: BTreeMap<(Family, u32), IpAddr>,
    pub listeners: BTreeMap<Endpoint, Listener>,
    pub services: BTreeMap<u16, DesiredService>,
    pub backends: BTreeMap<u16, Backend>,
    /// Backends that stay as they are but for the next hop, because flows refer to them.
    pub retired: BTreeMap<u16, u16>,
    pub next_hops: BTreeMap<u16, NextHop>,
    pub routes: BTreeMap<Prefix, u16>,
    /// By scope and prefix: whether sources in it are admitted.
    pub access: BTreeMap<(u16, Prefix), bool>,
    /// The pools of which too few backends are up, so that all are taken for live: worth a warning.
    pub fail_open: Vec<Pool>,
    /// The pools of which no backend can be picked: their clients are turned away.
    pub empty: Vec<Pool>,
    /// The pools of which too little is up in the own zone, so that others help.
    pub spilling: Vec<Pool>,
}

/// A service whose rings have no numbers yet.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredService {
    /// One of [`lb_common::flow::forward`].
    pub forward: u8,
    /// One of [`lb_common::service::affinity`].
    pub affinity: u8,
    /// Bits of [`lb_common::access::lists`].
    pub access: u8,
    /// Bits of [`lb_common::service::service_flags`].
    pub flags: u8,
    /// By IP version of the clients; none without a listener or without a live backend.
    pub rings: [Option<Ring>; 2],
}

/// The backends which a service has for clients of one IP version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pool {
    pub service: String,
    pub clients: Family,
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {:?}, {} clients", self.service, self.clients)
    }
}

impl Desired {
    /// How many source addresses there are of each IP version.
    pub fn source_counts(&self) -> [u32; 2] {
        Family::BOTH.map(|family| self.sources.keys().filter(|key| key.0 == family).count() as u32)
    }
}

/// The rings of last time, because building one takes milliseconds and most do not change.
#[derive(Debug, Default)]
pub struct RingCache {
    pools: BTreeMap<(u16, Family), Pooled>,
}

#[derive(Debug)]
struct Pooled {
    seed: u64,
    members: Vec<Member>,
    maglev: Maglev,
    live: BTreeSet<u16>,
    ring: Ring,
}

/// What the maps should hold. The ids must be assigned ([`Ids::assign`]) for the same services.
///
/// The result depends on the input and the ids only; the cache saves time.
pub fn desired(input: &Input, ids: &Ids, cache: &mut RingCache) -> Result<Desired> {
    let mut desired = Desired {
        hash_seed: input.hash_seed,
        nat_port_first: input.nat_port_first,
        nat_port_count: input.nat_port_count,
        next_hops: input.next_hops.clone(),
        ..Desired::default()
    };
    ensure!(
        input.nat_port_count > 0,
        "no source ports for nat: allow at least one from port {} on",
        input.nat_port_first
    );
    ensure!(!input.next_hops.contains_key(&FIB), "next hop 0 stands for the kernel's FIB");
    add_sources(&mut desired, input)?;
    desired.add_access(scope::EDGE, &input.access);
    let known = |id: u16| if input.next_hops.contains_key(&id) { id } else { FIB };
    desired.routes = input.routes.iter().map(|(&to, &id)| (to, known(id))).collect();
    for (id, _, addr) in ids.retired_backends() {
        let next_hop = input.retired_next_hops.get(&addr.ip()).copied().unwrap_or(FIB);
        desired.retired.insert(id, known(next_hop));
    }

    for service in &input.services {
        let Some(id) = ids.service(&service.name) else {
            bail!("service {:?} has no id: assign ids before", service.name);
        };
        let access = lists_of(input, service);
        // What is neither spliced nor denied to anybody passes by unseen.
        if service.forward != Forward::Relay || access != 0 {
            add_listeners(&mut desired, service, id, &input.xdp_only)?;
        }
        for backend in &service.backends {
            let Some(backend_id) = ids.backend(id, backend.addr) else {
                bail!("service {:?}: backend {} has no id", service.name, backend.addr);
            };
            let next_hop = known(backend.next_hop);
            desired
                .backends
                .insert(backend_id, Backend { access, ..in_map(backend, id, next_hop) });
        }
        desired.add_access(id, &service.access);
        let rings = Family::BOTH.map(|clients| {
            let served = service.listeners.iter().any(|addr| Family::of(addr.ip()) == clients);
            if !served || !service.forward.picks() {
                cache.pools.remove(&(id, clients));
                return None;
            }
            ring(&mut desired, cache, input.hash_seed, service, (id, clients), ids)
        });
        desired.services.insert(
            id,
            DesiredService {
                forward: match service.forward {
                    Forward::Nat => forward::NAT,
                    Forward::Dsr => forward::DSR,
                    Forward::Ipip => forward::IPIP,
                    Forward::Splice | Forward::Relay => forward::SPLICE,
                },
                affinity: match service.affinity {
                    Affinity::None => affinity::NONE,
                    Affinity::Source => affinity::SOURCE,
                },
                access,
                flags: match service.forward {
                    Forward::Relay => service_flags::RELAY,
                    _ => 0,
                },
                rings,
            },
        );
    }
    cache.pools.retain(|(id, _), _| desired.services.contains_key(id));
    add_upstreams(&mut desired, &input.services);
    Ok(desired)
}

/// After all listeners: an endpoint that is both has one entry, and a backend of two services, too.
fn add_upstreams(desired: &mut Desired, services: &[ServiceInput]) {
    let spliced = services.iter().filter(|service| service.forward == Forward::Splice);
    for backend in spliced.flat_map(|service| &service.backends) {
        desired.listeners.entry(backend.addr.into()).or_default().flags |= listener_flags::UPSTREAM;
    }
}

fn add_sources(desired: &mut Desired, input: &Input) -> Result<()> {
    let mut counts = [0; 2];
    for &addr in &input.source_addresses {
        let family = Family::of(addr);
        let count = &mut counts[family as usize];
        ensure!(
            (*count as usize) < MAX_SOURCES,
            "source address {addr}: only {MAX_SOURCES} {family} addresses can be used; remove some"
        );
        desired.sources.insert((family, *count), addr);
        *count += 1;
    }
    Ok(())
}

fn add_listeners(
    desired: &mut Desired,
    service: &ServiceInput,
    id: u16,
    xdp_only: &BTreeSet<IpAddr>,
) -> Result<()> {
    for &addr in &service.listeners {
        ensure!(addr.port() != 0, "service {:?}: listener {addr} needs a port", service.name);
        let flags = if xdp_only.contains(&addr.ip()) { listener_flags::XDP_ONLY } else { 0 };
        desired.listeners.insert(Endpoint::vip(addr.ip()), Listener { service: 0, flags });
        let listener = Listener { service: id, flags: 0 };
        if let Some(other) = desired.listeners.insert(addr.into(), listener) {
            ensure!(
                other.service == id,
                "service {:?}: listener {addr} is another service's already",
                service.name
            );
        }
    }
    Ok(())
}

fn in_map(backend: &BackendInput, service: u16, next_hop: u16) -> Backend {
    Backend {
        addr: words_of(backend.addr.ip()),
        tunnel_source: backend.tunnel_source.map_or([0; 4], words_of),
        port: backend.addr.port().to_be(),
        service,
        next_hop,
        family: match backend.addr {
            SocketAddr::V4(_) => family::V4,
            SocketAddr::V6(_) => family::V6,
        },
        mss_clamp: backend.mss_clamp,
        ..Backend::default()
    }
}

/// Whether packets of clients of one IP version can go to a backend of another.
fn reaches(forward: Forward, clients: Family, backend: Family) -> bool {
    match forward {
        // Addresses are rewritten or kept, never translated between the versions.
        Forward::Nat | Forward::Dsr => clients == backend,
        // There is 4-in-4, 6-in-6 and 4-in-6.
        Forward::Ipip => clients == backend || clients == Family::V4,
        // The sidecar knows; here nobody asks.
        Forward::Splice | Forward::Relay => true,
    }
}

fn ring(
    desired: &mut Desired,
    cache: &mut RingCache,
    seed: u64,
    service: &ServiceInput,
    pool: (u16, Family),
    ids: &Ids,
) -> Option<Ring> {
    let (service_id, clients) = pool;
    // Who has no weight gets no client, and does not count as live: an operator wants it so.
    let backends: Vec<(Member, Candidate)> = service
        .backends
        .iter()
        .filter(|backend| backend.weight > 0)
        .filter(|backend| reaches(service.forward, clients, Family::of(backend.addr.ip())))
        .filter_map(|backend| {
            let id = ids.backend(service_id, backend.addr)?;
            let member = Member { key: key(backend.addr), weight: backend.weight, id };
            Some((member, candidate(backend)))
        })
        .collect();
    let members: Vec<Member> = backends.iter().map(|&(member, _)| member).collect();
    let candidates: Vec<Candidate> = backends.iter().map(|&(_, candidate)| candidate).collect();
    let mode = service.rule.mode(&candidates);
    let taken = backends.iter().filter(|(_, candidate)| mode.takes(*candidate));
    let live: BTreeSet<u16> = taken.map(|(member, _)| member.id).collect();

    let name = Pool { service: service.name.clone(), clients };
    match mode {
        Mode::All | Mode::Local => {}
        Mode::Spill => desired.spilling.push(name),
        Mode::Panic => desired.fail_open.push(name),
        Mode::Nobody => {
            desired.empty.push(name);
            return None;
        }
    }
    Some(cache.ring(pool, seed, members, live))
}

fn candidate(backend: &BackendInput) -> Candidate {
    let &BackendInput { weight, whole_weight, up, local, .. } = backend;
    Candidate { weight: whole_weight, weight_now: weight, up, local }
}

impl RingCache {
    fn ring(
        &mut self,
        pool: (u16, Family),
        seed: u64,
        members: Vec<Member>,
        live: BTreeSet<u16>,
    ) -> Ring {
        let build = |maglev: &Maglev, live: &BTreeSet<u16>| -> Ring {
            maglev.ring(|id| live.contains(&id)).into()
        };
        match self.pools.get_mut(&pool) {
            Some(pooled) if pooled.seed == seed && pooled.members == members => {
                if pooled.live != live {
                    pooled.ring = build(&pooled.maglev, &live);
                    pooled.live = live;
                }
                pooled.ring.clone()
            }
            _ => {
                let maglev = Maglev::build(seed, &members);
                let ring = build(&maglev, &live);
                let pooled = Pooled { seed, members, maglev, live, ring: ring.clone() };
                self.pools.insert(pool, pooled);
                ring
            }
        }
    }
}
