//! The pinned maps that a splice reads and writes.

use std::{io, net::IpAddr, os::fd::OwnedFd, sync::Arc};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{Array, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use lb_common::{
    abi::Edge,
    addr::{Addr, Tuple, V4, V6},
    flow::Flow,
    handshake::Handshake,
    next_hop::{NextHop, RouteValue},
    service::Backend,
};

use crate::{
    bpf::{
        PinDir,
        specs::names,
        sys::{self, HashFd, Put},
    },
    flows::table::Family,
};

/// All of them. Shared by the brokers' threads.
pub struct Maps {
    v4: Tables<V4>,
    v6: Tables<V6>,
    edge: Array<MapData, Edge>,
    backends: Array<MapData, Backend>,
    next_hops: Array<MapData, NextHop>,
    read_only: [Arc<OwnedFd>; 2],
}

/// Those of one IP version.
pub struct Tables<A> {
    flows: HashFd<Tuple<A>, Flow<A>>,
    handshakes: HashFd<Tuple<A>, Handshake<A>>,
    routes: LpmTrie<MapData, A, RouteValue>,
}

/// What a splice asks of an IP version's tables.
pub trait FlowTables<A> {
    fn flow(&self, key: &Tuple<A>) -> io::Result<Option<Flow<A>>>;

    /// Enters a flow, where there is none or in place of one.
    fn put(&self, key: &Tuple<A>, flow: &Flow<A>, put: Put) -> io::Result<()>;

    fn remove(&self, key: &Tuple<A>) -> io::Result<bool>;

    /// What the sender of this tuple offered when the connection began.
    fn handshake(&self, key: &Tuple<A>) -> io::Result<Option<Handshake<A>>>;

    /// The next hop of the longest prefix that has the address; 0 if the kernel has to be asked.
    fn route(&self, to: A) -> io::Result<u16>;
}

/// An IP version.
pub trait Version: Addr + Into<IpAddr> {
    type Tables: FlowTables<Self>;

    fn tables(maps: &Maps) -> &Self::Tables;
}

impl Version for V4 {
    type Tables = Tables<Self>;

    fn tables(maps: &Maps) -> &Tables<Self> {
        &maps.v4
    }
}

impl Version for V6 {
    type Tables = Tables<Self>;

    fn tables(maps: &Maps) -> &Tables<Self> {
        &maps.v6
    }
}

impl Maps {
    /// Opens what is pinned.
    pub fn open(pins: &PinDir) -> Result<Self> {
        let read_only = |name| {
            let path = pins.map_path(name);
            let opened = sys::open_pin_read_only(&path);
            opened.map(Arc::new).with_context(|| format!("{}: cannot be opened", path.display()))
        };
        Ok(Self {
            v4: Tables::open(pins, names::ROUTES4)?,
            v6: Tables::open(pins, names::ROUTES6)?,
            edge: pins.map(names::EDGE)?.try_into()?,
            backends: pins.map(names::BACKENDS)?.try_into()?,
            next_hops: pins.map(names::NEXT_HOPS)?.try_into()?,
            read_only: [read_only(names::FLOWS4)?, read_only(names::FLOWS6)?],
        })
    }

    /// The flow tables of IPv4 and IPv6, for whoever may only read them.
    #[must_use]
    pub fn read_only(&self) -> &[Arc<OwnedFd>; 2] {
        &self.read_only
    }

    /// The epoch of the routes, as flow entries have it.
    pub fn route_epoch(&self) -> io::Result<u8> {
        Ok(element(&self.edge, 0)?.route_epoch as u8)
    }

    /// The next hop of a backend; 0 if the kernel has to be asked.
    pub fn next_hop_of(&self, backend: u16) -> io::Result<u16> {
        Ok(element(&self.backends, backend)?.next_hop)
    }

    /// The device that packets leave by; none while the next hop cannot be used.
    pub fn egress(&self, next_hop: u16) -> io::Result<Option<u32>> {
        match next_hop {
            0 => Ok(None),
            id => Ok(Some(element(&self.next_hops, id)?.ifindex).filter(|ifindex| *ifindex != 0)),
        }
    }
}

impl<A: Family> Tables<A>
where
    A: Pod,
    Tuple<A>: Pod,
    Flow<A>: Pod,
    Handshake<A>: Pod,
{
    fn open(pins: &PinDir, routes: &str) -> Result<Self> {
        Ok(Self {
            flows: HashFd::open(&pins.map_path(A::FLOWS))?,
            handshakes: HashFd::open(&pins.map_path(A::HANDSHAKES))?,
            routes: pins.map(routes)?.try_into()?,
        })
    }
}

impl<A: Addr + Pod> FlowTables<A> for Tables<A>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
    Handshake<A>: Pod,
{
    fn flow(&self, key: &Tuple<A>) -> io::Result<Option<Flow<A>>> {
        self.flows.lookup(key)
    }

    fn put(&self, key: &Tuple<A>, flow: &Flow<A>, put: Put) -> io::Result<()> {
        self.flows.put(key, flow, put)
    }

    fn remove(&self, key: &Tuple<A>) -> io::Result<bool> {
        self.flows.delete(key)
    }

    fn handshake(&self, key: &Tuple<A>) -> io::Result<Option<Handshake<A>>> {
        self.handshakes.lookup(key)
    }

    fn route(&self, to: A) -> io::Result<u16> {
        let key = Key::new(A::LEN as u32 * 8, to);
        match self.routes.get(&key, 0) {
            Ok(id) => Ok(id as u16),
            Err(MapError::KeyNotFound) => Ok(0),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

fn element<V: Pod>(map: &Array<MapData, V>, index: u16) -> io::Result<V> {
    map.get(&index.into(), 0).map_err(io::Error::other)
}
