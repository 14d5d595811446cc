//! The flow tables of an edge, looked at from outside.

use std::{fs, net::SocketAddrV4, os::fd::AsRawFd};

use anyhow::{Context, Result};
use aya::maps::MapData;
use lb_agent::{
    bpf::{PinDir, specs::names},
    flows::{FlowTable, KernelTable, table},
};
use lb_common::{
    addr::{Tuple, V4},
    flow::{Flow, flags, forward},
};
use tests::edge::Edge;

/// Memory of the IPv4 flow table for each entry that it can hold, in bytes.
pub fn bytes_of_entry(edge: &Edge) -> Result<f64> {
    let map = MapData::from_pin(PinDir::of_edge(edge.name()).map_path(names::FLOWS4))?;
    let fd = map.fd();
    let path = format!("/proc/self/fdinfo/{}", std::os::fd::AsFd::as_fd(fd).as_raw_fd());
    let text = fs::read_to_string(&path)?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|it| it.trim().parse::<f64>().ok());
        number.with_context(|| format!("{path}: no {name}"))
    };
    Ok(field("memlock")? / field("max_entries")?)
}

/// IPv4 connections that are spliced and that neither end has begun to close.
pub fn spliced(edge: &Edge) -> Result<usize> {
    const LEAVING: u8 =
        flags::HOLD | flags::FIN | flags::PEER_FIN | flags::RESET | flags::PEER_RESET;
    let mut flows = table::flows::<V4>(&PinDir::of_edge(edge.name()))?;
    let (mut batch, mut from, mut count) = (Vec::new(), None, 0);
    loop {
        from = flows.batch(from, &mut batch)?;
        let open = batch.iter().filter(|it| {
            it.is_clients() && it.flow.forward == forward::SPLICE && it.flow.flags & LEAVING == 0
        });
        count += open.count();
        if from.is_none() {
            return Ok(count);
        }
    }
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Relayed,
    Held,
    Spliced,
}

/// Looks connections up.
pub struct Looker(KernelTable<V4, Flow<V4>>);

impl Looker {
    pub fn of(edge: &Edge) -> Result<Self> {
        Ok(Self(table::flows::<V4>(&PinDir::of_edge(edge.name()))?))
    }

    pub fn stage(&self, client: SocketAddrV4, listener: SocketAddrV4) -> Result<Stage> {
        let key = Tuple {
            src: V4::from(*client.ip()),
            dst: V4::from(*listener.ip()),
            sport: client.port().to_be(),
            dport: listener.port().to_be(),
        };
        Ok(match self.0.get(&key)? {
            None => Stage::Relayed,
            Some(entry) if entry.flow.flags & flags::HOLD != 0 => Stage::Held,
            Some(entry) if entry.flow.forward == forward::SPLICE => Stage::Spliced,
            Some(_) => Stage::Relayed,
        })
    }
}
