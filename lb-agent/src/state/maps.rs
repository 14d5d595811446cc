//! The one file that writes the maps of services, backends and routes.
//!
//! It knows how a [`MapOp`] is written and how the maps are read back, not why.

use std::{
    collections::BTreeMap,
    fmt::Display,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError},
};
use lb_common::{
    abi::{Edge, MAX_SOURCES},
    addr::{V4, V6},
    maglev::Slots,
    next_hop::NextHop,
    ring,
    service::{Backend, Listener, ListenerKey, Service},
};

use super::{Capacity, Endpoint, Family, Ring, actual::Actual, op::MapOp};
use crate::bpf::specs::names::*;

mod tries;

use tries::Tries;

/// The maps that say where packets go.
pub struct Maps {
    edge: Array<MapData, Edge>,
    sources4: Array<MapData, V4>,
    sources6: Array<MapData, V6>,
    listeners4: HashMap<MapData, ListenerKey<V4>, Listener>,
    listeners6: HashMap<MapData, ListenerKey<V6>, Listener>,
    services: Array<MapData, Service>,
    /// [`ring::Ring`] by its only field, which unlike the struct can be had boxed without unsafe
    /// code.
    rings: Array<MapData, Slots>,
    backends: Array<MapData, Backend>,
    next_hops: Array<MapData, NextHop>,
    tries: Tries,
}

const _: () = assert!(size_of::<Slots>() == size_of::<ring::Ring>());

impl Maps {
    /// Takes the maps from wherever they are, by name: `Maps::new(|name| ebpf.take_map(name))`.
    ///
    /// Refuses maps of another type, key size or value size than the ABI has.
    pub fn new(mut take: impl FnMut(&str) -> Option<Map>) -> Result<Self> {
        Self::open(|name| take(name).with_context(|| format!("map {name}: not in the object file")))
    }

    /// Opens the maps that are pinned in a directory under their names.
    pub fn from_pins(dir: &Path) -> Result<Self> {
        Self::open(|name| {
            let path = dir.join(name);
            let open = || Map::from_map_data(MapData::from_pin(&path)?);
            open().with_context(|| format!("map {name}: cannot open {}", path.display()))
        })
    }

    fn open(mut take: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let maps = Self {
            edge: typed(EDGE, &mut take)?,
            sources4: typed(SOURCES4, &mut take)?,
            sources6: typed(SOURCES6, &mut take)?,
            listeners4: typed(LISTENERS4, &mut take)?,
            listeners6: typed(LISTENERS6, &mut take)?,
            services: typed(SERVICES, &mut take)?,
            rings: typed(RINGS, &mut take)?,
            backends: typed(BACKENDS, &mut take)?,
            next_hops: typed(NEXT_HOPS, &mut take)?,
            tries: Tries::open(&mut take)?,
        };
        let Capacity { services, rings, .. } = maps.capacity();
        let needed = Capacity::least_rings_for(services.saturating_sub(1));
        ensure!(
            services > 0 && rings >= needed,
            "map {RINGS}: {rings} rings, but {services} elements of {SERVICES} need {needed}; make \
             the maps anew with `lb-agent unload` and a restart"
        );
        Ok(maps)
    }

    /// How many elements the maps were made for.
    pub fn capacity(&self) -> Capacity {
        Capacity {
            services: self.services.len(),
            rings: self.rings.len(),
            backends: self.backends.len(),
            next_hops: self.next_hops.len(),
        }
    }

    /// Writes what one operation says.
    pub fn apply(&mut self, op: &MapOp) -> Result<()> {
        match *op {
            MapOp::SetNextHop { id, hop } => set(NEXT_HOPS, &mut self.next_hops, id, &hop),
            MapOp::ClearNextHop { id } => {
                set(NEXT_HOPS, &mut self.next_hops, id, &NextHop::default())
            }
            MapOp::SetSource { index, addr: IpAddr::V4(addr) } => {
                set(SOURCES4, &mut self.sources4, index, &V4::from(addr))
            }
            MapOp::SetSource { index, addr: IpAddr::V6(addr) } => {
                set(SOURCES6, &mut self.sources6, index, &V6::from(addr))
            }
            MapOp::SetEdge(ref edge) => set(EDGE, &mut self.edge, 0u32, edge),
            MapOp::SetBackend { id, ref backend } => set(BACKENDS, &mut self.backends, id, backend),
            MapOp::ClearBackend { id } => {
                set(BACKENDS, &mut self.backends, id, &Backend::default())
            }
            MapOp::SetRoute { to, next_hop } => self.tries.set_route(to, next_hop),
            MapOp::ClearRoute { to } => self.tries.clear_route(to),
            MapOp::SetAccess { scope, from, admit } => self.tries.set_access(scope, from, admit),
            MapOp::ClearAccess { scope, from } => self.tries.clear_access(scope, from),
            MapOp::WriteRing { number: 0, .. } => bail!("map {RINGS}: ring 0 is the empty ring"),
            MapOp::WriteRing { number, ref slots, .. } => {
                set(RINGS, &mut self.rings, number, slots.as_ref())
            }
            MapOp::SetService { id, ref service } => set(SERVICES, &mut self.services, id, service),
            MapOp::ClearService { id } => {
                set(SERVICES, &mut self.services, id, &Service::default())
            }
            MapOp::SetListener { at, ref listener } => self.set_listener(at, listener),
            MapOp::ClearListener { at } => self.clear_listener(at),
        }
    }

    fn set_listener(&mut self, at: Endpoint, listener: &Listener) -> Result<()> {
        match at.ip {
            IpAddr::V4(addr) => self
                .listeners4
                .insert(listener_key(V4::from(addr), at.port), listener, 0)
                .map_err(|error| failed(LISTENERS4, "write", &at, error)),
            IpAddr::V6(addr) => self
                .listeners6
                .insert(listener_key(V6::from(addr), at.port), listener, 0)
                .map_err(|error| failed(LISTENERS6, "write", &at, error)),
        }
    }

    fn clear_listener(&mut self, at: Endpoint) -> Result<()> {
        match at.ip {
            IpAddr::V4(addr) => {
                let key = listener_key(V4::from(addr), at.port);
                removed(LISTENERS4, &at, self.listeners4.remove(&key))
            }
            IpAddr::V6(addr) => {
                let key = listener_key(V6::from(addr), at.port);
                removed(LISTENERS6, &at, self.listeners6.remove(&key))
            }
        }
    }

    /// Reads back all that an agent before has written.
    pub fn read(&self) -> Result<Actual> {
        let edge = get(EDGE, &self.edge, 0u32)?;
        let services: BTreeMap<u16, Service> = elements(SERVICES, &self.services)?;
        let rings = self.read_rings(&services)?;
        Ok(Actual {
            edge,
            sources: self.read_sources()?,
            listeners: self.read_listeners()?,
            free_rings: (1..self.rings.len())
                .filter(|number| !rings.contains_key(number))
                .collect(),
            services,
            rings,
            backends: elements(BACKENDS, &self.backends)?,
            next_hops: elements(NEXT_HOPS, &self.next_hops)?,
            routes: self.tries.read_routes()?,
            access: self.tries.read_access()?,
            flows_are_stale: true,
        })
    }

    fn read_sources(&self) -> Result<BTreeMap<(Family, u32), IpAddr>> {
        let mut sources = BTreeMap::new();
        for index in 0..MAX_SOURCES as u32 {
            let v4 = Ipv4Addr::from(get(SOURCES4, &self.sources4, index)?);
            let v6 = Ipv6Addr::from(get(SOURCES6, &self.sources6, index)?);
            if !v4.is_unspecified() {
                sources.insert((Family::V4, index), v4.into());
            }
            if !v6.is_unspecified() {
                sources.insert((Family::V6, index), v6.into());
            }
        }
        Ok(sources)
    }

    fn read_listeners(&self) -> Result<BTreeMap<Endpoint, Listener>> {
        let mut listeners = BTreeMap::new();
        for entry in self.listeners4.iter() {
            let (key, listener) =
                entry.map_err(|error| failed(LISTENERS4, "read", &"all", error))?;
            listeners.insert(endpoint(key), listener);
        }
        for entry in self.listeners6.iter() {
            let (key, listener) =
                entry.map_err(|error| failed(LISTENERS6, "read", &"all", error))?;
            listeners.insert(endpoint(key), listener);
        }
        Ok(listeners)
    }

    /// aya hands values out on the stack, copied from frame to frame: a ring's 131 KB could overflow
    /// the stack of the caller's thread, so one with a stack of known size reads them.
    fn read_rings(&self, services: &BTreeMap<u16, Service>) -> Result<BTreeMap<u32, Ring>> {
        let numbers = services.values().flat_map(|service| service.rings);
        let read = || {
            numbers
                .filter(|&number| number != 0 && number < self.rings.len())
                .map(|number| Ok((number, self.read_ring(number)?)))
                .collect()
        };
        thread::scope(|scope| {
            thread::Builder::new()
                .name("ring reader".into())
                .stack_size(8 << 20)
                .spawn_scoped(scope, read)
                .context("cannot start a thread to read the rings")?
                .join()
                .map_err(|_| anyhow!("map {RINGS}: the thread that reads it panicked"))?
        })
    }

    fn read_ring(&self, number: u32) -> Result<Ring> {
        Ok(Arc::new(get(RINGS, &self.rings, number)?))
    }
}

fn typed<M: TryFrom<Map, Error = MapError>>(
    name: &str,
    take: &mut impl FnMut(&str) -> Result<Map>,
) -> Result<M> {
    M::try_from(take(name)?).with_context(|| {
        format!(
            "map {name}: made by another version; make the maps anew with `lb-agent unload` and a restart"
        )
    })
}

fn set<V: Pod>(
    name: &str,
    map: &mut Array<MapData, V>,
    index: impl Into<u32>,
    value: &V,
) -> Result<()> {
    let index = index.into();
    map.set(index, value, 0).map_err(|error| failed(name, "write", &index, error))
}

fn get<V: Pod>(name: &str, map: &Array<MapData, V>, index: u32) -> Result<V> {
    map.get(&index, 0).map_err(|error| failed(name, "read", &index, error))
}

/// The elements from 1 on that are not all zero.
fn elements<V: Pod + Default + PartialEq>(
    name: &str,
    map: &Array<MapData, V>,
) -> Result<BTreeMap<u16, V>> {
    let mut elements = BTreeMap::new();
    for id in 1..=u16::try_from(map.len() - 1).unwrap_or(u16::MAX) {
        let value = get(name, map, id.into())?;
        if value != V::default() {
            elements.insert(id, value);
        }
    }
    Ok(elements)
}

fn listener_key<A>(addr: A, port: u16) -> ListenerKey<A> {
    ListenerKey { addr, port: port.to_be(), _pad: 0 }
}

fn endpoint<A: Into<IpAddr>>(key: ListenerKey<A>) -> Endpoint {
    Endpoint { ip: key.addr.into(), port: u16::from_be(key.port) }
}

/// What is gone already need not be removed.
fn removed(name: &str, key: &dyn Display, result: Result<(), MapError>) -> Result<()> {
    match result {
        Err(error) if os_error(&error) == Some(io::ErrorKind::NotFound) => Ok(()),
        result => result.map_err(|error| failed(name, "remove", key, error)),
    }
}

fn os_error(error: &MapError) -> Option<io::ErrorKind> {
    match error {
        MapError::SyscallError(error) => Some(error.io_error.kind()),
        MapError::IoError(error) => Some(error.kind()),
        _ => None,
    }
}

/// E2BIG is what the kernel says of a full hash map, ENOSPC of a full trie.
fn failed(name: &str, what: &str, key: &dyn Display, error: MapError) -> anyhow::Error {
    let remedy = match (&error, os_error(&error)) {
        (MapError::OutOfBounds { .. }, _)
        | (_, Some(io::ErrorKind::ArgumentListTooLong | io::ErrorKind::StorageFull)) => {
            "the map is full; make the maps anew with `lb-agent unload` and a restart"
        }
        (_, Some(io::ErrorKind::PermissionDenied)) => "the agent needs CAP_BPF and CAP_NET_ADMIN",
        (_, Some(io::ErrorKind::OutOfMemory)) => "the kernel is out of memory",
        _ => "run `lb-agent unload` and restart if it persists",
    };
    anyhow!(error).context(format!("map {name}: cannot {what} {key}: {remedy}"))
}
