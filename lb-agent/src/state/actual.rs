//! What the maps hold: read once when the agent starts, then kept by applying what is written.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

use lb_common::{
    abi::Edge,
    next_hop::NextHop,
    service::{Backend, Listener, Service},
};

use super::{Endpoint, Family, Prefix, Ring, op::MapOp};

/// A mirror of the maps that the agent writes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Actual {
    pub edge: Edge,
    /// By IP version and index; what is beyond the number in `edge` is not in use.
    pub sources: BTreeMap<(Family, u32), IpAddr>,
    pub listeners: BTreeMap<Endpoint, Listener>,
    pub services: BTreeMap<u16, Service>,
    /// The contents of the rings that services use.
    pub rings: BTreeMap<u32, Ring>,
    /// The numbers of all other rings, the one freed longest ago first.
    pub free_rings: VecDeque<u32>,
    pub backends: BTreeMap<u16, Backend>,
    pub next_hops: BTreeMap<u16, NextHop>,
    pub routes: BTreeMap<Prefix, u16>,
    /// By scope and prefix: whether sources in it are admitted.
    pub access: BTreeMap<(u16, Prefix), bool>,
    /// Flows may have looked up a next hop that has changed since. Stored nowhere, so it is set when
    /// the maps are read: the agent before may have died in between.
    pub flows_are_stale: bool,
}

impl Actual {
    /// Maps as they are made: all zero, with that many rings.
    pub fn empty(rings: u32) -> Self {
        Self { free_rings: (1..rings).collect(), ..Self::default() }
    }

    /// Follows an operation which was applied to the maps.
    pub fn apply(&mut self, op: &MapOp) {
        match *op {
            MapOp::SetNextHop { id, hop } => {
                self.next_hops.insert(id, hop);
            }
            MapOp::ClearNextHop { id } => {
                self.next_hops.remove(&id);
            }
            MapOp::SetSource { index, addr } => {
                self.sources.insert((Family::of(addr), index), addr);
            }
            MapOp::SetEdge(edge) => {
                self.flows_are_stale &= edge.route_epoch == self.edge.route_epoch;
                self.edge = edge;
            }
            MapOp::SetBackend { id, backend } => {
                let before = self.backends.insert(id, backend);
                self.flows_are_stale |=
                    before.is_some_and(|before| before.next_hop != backend.next_hop);
            }
            MapOp::ClearBackend { id } => {
                self.backends.remove(&id);
            }
            MapOp::SetRoute { to, next_hop } => {
                self.routes.insert(to, next_hop);
                self.flows_are_stale = true;
            }
            MapOp::ClearRoute { to } => {
                self.routes.remove(&to);
                self.flows_are_stale = true;
            }
            MapOp::SetAccess { scope, from, admit } => {
                self.access.insert((scope, from), admit);
            }
            MapOp::ClearAccess { scope, from } => {
                self.access.remove(&(scope, from));
            }
            // A ring is in use only when a service points to it: until then its number stays free.
            MapOp::WriteRing { number, ref slots, .. } => {
                self.rings.insert(number, slots.clone());
            }
            MapOp::SetService { id, service } => {
                let before = self.services.insert(id, service);
                self.free_rings.retain(|number| !service.rings.contains(number));
                self.free(before, service.rings);
            }
            MapOp::ClearService { id } => {
                let before = self.services.remove(&id);
                self.free(before, [0; 2]);
            }
            MapOp::SetListener { at, listener } => {
                self.listeners.insert(at, listener);
            }
            MapOp::ClearListener { at } => {
                self.listeners.remove(&at);
            }
        }
    }

    /// The rings that a service had and has no more go to the end of the queue.
    fn free(&mut self, service: Option<Service>, in_use: [u32; 2]) {
        for number in service.map_or([0; 2], |service| service.rings) {
            if number != 0 && !in_use.contains(&number) && !self.free_rings.contains(&number) {
                self.rings.remove(&number);
                self.free_rings.push_back(number);
            }
        }
    }
}
