//! Listeners, services, their rings and backends: what the config says, and the pick.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap},
};
use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    hash,
    outcome::{DropReason, NO_SERVICE},
    ring::{NONE, Ring},
    service::{Backend, Listener, ListenerKey, Service, affinity, listener_flags},
    trace::Stage,
};

use lb_ebpf::packet::opaque;

use crate::{edge, trace};

/// IPv4 listeners by address and port; port 0 stands for the address itself.
#[map]
static LISTENERS4: HashMap<ListenerKey<V4>, Listener> = HashMap::with_max_entries(8192, 0);

/// IPv6 listeners by address and port; port 0 stands for the address itself.
#[map]
static LISTENERS6: HashMap<ListenerKey<V6>, Listener> = HashMap::with_max_entries(8192, 0);

/// Services by id.
#[map]
static SERVICES: Array<Service> = Array::with_max_entries(65, 0);

/// Maglev rings by number; ring 0 stays empty.
#[map]
static RINGS: Array<Ring> = Array::with_max_entries(2 * 64 + 8, 0);

/// Backends by id.
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(4096, 0);

/// The listener tables of an IP version.
pub trait Tables: Addr {
    fn listeners() -> &'static HashMap<ListenerKey<Self>, Listener>;
    /// The address as [`Backend::addr`] and [`Backend::tunnel_source`] hold it.
    fn from_backend(words: [u32; 4]) -> Self;
}

impl Tables for V4 {
    #[inline(always)]
    fn listeners() -> &'static HashMap<ListenerKey<V4>, Listener> {
        &LISTENERS4
    }

    #[inline(always)]
    fn from_backend(words: [u32; 4]) -> V4 {
        V4(words[0])
    }
}

impl Tables for V6 {
    #[inline(always)]
    fn listeners() -> &'static HashMap<ListenerKey<V6>, Listener> {
        &LISTENERS6
    }

    #[inline(always)]
    fn from_backend(words: [u32; 4]) -> V6 {
        V6(words)
    }
}

/// The listener at an address and port (network byte order). No listener has port 0.
#[inline(always)]
pub fn listener<A: Tables>(addr: &A, port: u16) -> Option<Listener> {
    if port == 0 { None } else { entry(addr, port).filter(|listener| listener.service != 0) }
}

/// Whether a backend of the sidecar has this address and port (network byte order).
#[inline(always)]
pub fn is_upstream<A: Tables>(addr: &A, port: u16) -> bool {
    entry(addr, port).is_some_and(|entry| entry.flags & listener_flags::UPSTREAM != 0)
}

/// Whether an address is a service's.
#[inline(never)]
pub fn is_vip<A: Tables>(addr: &A) -> bool {
    entry(addr, 0).is_some()
}

/// Whether the data plane alone has this address, so that nobody else would answer its pings.
#[inline(always)]
pub fn is_xdp_only<A: Tables>(addr: &A) -> bool {
    entry(addr, 0).is_some_and(|vip| vip.flags & listener_flags::XDP_ONLY != 0)
}

#[inline(always)]
fn entry<A: Tables>(addr: &A, port: u16) -> Option<Listener> {
    let key = ListenerKey { addr: *addr, port, _pad: 0 };
    // SAFETY: the value is copied at once; the agent replaces values whole.
    unsafe { A::listeners().get(key) }.copied()
}

#[inline(always)]
pub fn get(id: u16) -> Option<&'static Service> {
    SERVICES.get(id as u32)
}

/// A backend in use.
#[inline(always)]
pub fn backend(id: u16) -> Option<&'static Backend> {
    BACKENDS.get(id as u32).filter(|backend| backend.service != 0)
}

/// The service that a backend belongs to.
#[inline(always)]
pub fn of_backend(id: u16) -> u16 {
    backend(id).map_or(NO_SERVICE, |backend| backend.service)
}

/// The backend of a new flow.
#[inline(always)]
pub fn pick<A: Addr>(
    service_id: u16,
    service: &Service,
    tuple: &Tuple<A>,
) -> Result<u16, DropReason> {
    let seed = edge::get().map_or(0, |edge| edge.hash_seed);
    let hash = match service.affinity {
        affinity::SOURCE => hash::source(seed, &tuple.src),
        _ => hash::tuple(seed, tuple),
    };
    let Some(ring) = RINGS.get(service.rings[A::FAMILY]) else {
        return Err(DropReason::Inconsistent);
    };
    // The slot is below the ring's length by construction, but the verifier wants to see it checked.
    let id = ring.slots.get(opaque(hash::slot(hash))).copied().unwrap_or(NONE);
    trace::step(Stage::Pick, id, hash::slot(hash) as u32);
    if id == NONE {
        return Err(DropReason::NoBackend);
    }
    // The ring's number may have been given to another service since we read it.
    match backend(id) {
        Some(backend) if backend.service == service_id => Ok(id),
        _ => Err(DropReason::Inconsistent),
    }
}
