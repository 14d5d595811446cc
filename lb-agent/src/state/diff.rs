//! The writes that lead from what the maps hold to what they should hold.
//!
//! Packets see every step between, so the order is what this file is for: what is pointed to is
//! there before what points to it, and goes after it. After any number of the operations a listener's
//! service exists, a service's rings hold existing backends of its own, and the next hop of a backend
//! or route exists or is 0. A service is in use only with its access lists.

use std::sync::Arc;

use lb_common::{abi, abi::Edge, access, service::Service};

use super::{
    Prefix, Ring,
    actual::Actual,
    desired::{Desired, DesiredService},
    op::MapOp,
};

/// The operations, in the order in which they must be applied.
///
/// When one fails, apply those before it to the mirror and take the difference anew.
pub fn diff(actual: &Actual, desired: &Desired) -> Vec<MapOp> {
    let mut plan = Plan { now: actual.clone(), ops: Vec::new() };
    plan.set_next_hops(desired);
    plan.set_sources(desired);
    plan.set_backends(desired);
    plan.change_routes(desired);
    plan.set_edge(desired);
    plan.change_access(desired);
    plan.switch_services(desired);
    plan.set_listeners(desired);
    plan.clear_listeners(desired);
    plan.clear_services(desired);
    plan.clear_access(desired);
    plan.clear_backends(desired);
    plan.clear_next_hops(desired);
    plan.ops
}

/// Operations so far, and the state that they lead to.
struct Plan {
    now: Actual,
    ops: Vec<MapOp>,
}

impl Plan {
    fn then(&mut self, op: MapOp) {
        self.now.apply(&op);
        self.ops.push(op);
    }

    fn set_next_hops(&mut self, desired: &Desired) {
        for (&id, &hop) in &desired.next_hops {
            if self.now.next_hops.get(&id) != Some(&hop) {
                self.then(MapOp::SetNextHop { id, hop });
            }
        }
    }

    /// Their number is in the edge's settings, which are written after them.
    fn set_sources(&mut self, desired: &Desired) {
        for (&(family, index), &addr) in &desired.sources {
            if self.now.sources.get(&(family, index)) != Some(&addr) {
                self.then(MapOp::SetSource { index, addr });
            }
        }
    }

    fn set_backends(&mut self, desired: &Desired) {
        for (&id, &backend) in &desired.backends {
            if self.now.backends.get(&id) != Some(&backend) {
                self.then(MapOp::SetBackend { id, backend });
            }
        }
        for (&id, &next_hop) in &desired.retired {
            let Some(&backend) = self.now.backends.get(&id) else { continue };
            let access = desired.access_of(backend.service);
            if (backend.next_hop, backend.access) != (next_hop, access) {
                let backend = lb_common::service::Backend { next_hop, access, ..backend };
                self.then(MapOp::SetBackend { id, backend });
            }
        }
    }

    fn change_routes(&mut self, desired: &Desired) {
        for (&to, &next_hop) in &desired.routes {
            if self.now.routes.get(&to) != Some(&next_hop) {
                self.then(MapOp::SetRoute { to, next_hop });
            }
        }
        let gone: Vec<_> = self.now.routes.keys().copied().collect();
        for to in gone.into_iter().filter(|to| !desired.routes.contains_key(to)) {
            self.then(MapOp::ClearRoute { to });
        }
    }

    /// Comes after all that flows look up, and before the next hops that they may have looked up
    /// go.
    fn set_edge(&mut self, desired: &Desired) {
        let before = self.now.edge;
        let edge = Edge {
            abi_version: abi::VERSION,
            route_epoch: before.route_epoch.wrapping_add(u32::from(self.now.flows_are_stale)),
            hash_seed: desired.hash_seed,
            sources: desired.source_counts(),
            nat_port_first: desired.nat_port_first,
            nat_port_count: desired.nat_port_count,
            _pad: 0,
        };
        if edge != before {
            self.then(MapOp::SetEdge(edge));
        }
    }

    /// First all that lets more sources in, then all that lets fewer in: whom the lists before and the lists now
    /// admit is admitted at every step between. The lists of services that go stay until these are gone.
    fn change_access(&mut self, desired: &Desired) {
        let set = |plan: &mut Self, admits: bool| {
            for (&(scope, from), &admit) in &desired.access {
                if admit == admits && plan.now.access.get(&(scope, from)) != Some(&admit) {
                    plan.then(MapOp::SetAccess { scope, from, admit });
                }
            }
        };
        let stays = |scope: u16| scope == access::EDGE || desired.services.contains_key(&scope);
        set(self, true);
        self.drop_access(|key, admit| !admit && stays(key.0) && !desired.access.contains_key(key));
        set(self, false);
        self.drop_access(|key, _| stays(key.0) && !desired.access.contains_key(key));
    }

    fn clear_access(&mut self, desired: &Desired) {
        self.drop_access(|key, _| !desired.access.contains_key(key));
    }

    fn drop_access(&mut self, goes: impl Fn(&(u16, Prefix), bool) -> bool) {
        let gone = self.now.access.iter().filter(|(key, admit)| goes(key, **admit));
        let gone: Vec<_> = gone.map(|(key, _)| *key).collect();
        for (scope, from) in gone {
            self.then(MapOp::ClearAccess { scope, from });
        }
    }

    /// Service by service, so that the rings which one frees are there for the next.
    fn switch_services(&mut self, desired: &Desired) {
        for (&id, wanted) in &desired.services {
            let before = self.now.services.get(&id).copied();
            let mut rings = before.map_or([0; 2], |service| service.rings);
            let mut free = self.now.free_rings.clone().into_iter();
            for (number, wanted) in rings.iter_mut().zip(&wanted.rings) {
                match wanted {
                    None => *number = 0,
                    Some(slots) if self.holds(*number, slots) => {}
                    Some(slots) => {
                        // Two rings per service and spares: Maps refuses anything less.
                        *number = free.next().expect("a ring is free");
                        let slots = slots.clone();
                        self.then(MapOp::WriteRing { number: *number, service: id, slots });
                    }
                }
            }
            let service = wanted.with_rings(rings);
            if before != Some(service) {
                self.then(MapOp::SetService { id, service });
            }
        }
    }

    fn holds(&self, number: u32, slots: &Ring) -> bool {
        number != 0
            && self
                .now
                .rings
                .get(&number)
                .is_some_and(|ring| Arc::ptr_eq(ring, slots) || ring == slots)
    }

    fn set_listeners(&mut self, desired: &Desired) {
        for (&at, &listener) in &desired.listeners {
            if self.now.listeners.get(&at) != Some(&listener) {
                self.then(MapOp::SetListener { at, listener });
            }
        }
    }

    /// Backwards, so that an address goes after its ports.
    fn clear_listeners(&mut self, desired: &Desired) {
        let gone: Vec<_> = self.now.listeners.keys().rev().copied().collect();
        for at in gone.into_iter().filter(|at| !desired.listeners.contains_key(at)) {
            self.then(MapOp::ClearListener { at });
        }
    }

    fn clear_services(&mut self, desired: &Desired) {
        let gone: Vec<_> = self.now.services.keys().copied().collect();
        for id in gone.into_iter().filter(|id| !desired.services.contains_key(id)) {
            self.then(MapOp::ClearService { id });
        }
    }

    /// Retired ones stay: flows refer to them.
    fn clear_backends(&mut self, desired: &Desired) {
        let gone: Vec<_> = self.now.backends.keys().copied().collect();
        let stays =
            |id: &u16| desired.backends.contains_key(id) || desired.retired.contains_key(id);
        for id in gone.into_iter().filter(|id| !stays(id)) {
            self.then(MapOp::ClearBackend { id });
        }
    }

    fn clear_next_hops(&mut self, desired: &Desired) {
        let gone: Vec<_> = self.now.next_hops.keys().copied().collect();
        for id in gone.into_iter().filter(|id| !desired.next_hops.contains_key(id)) {
            self.then(MapOp::ClearNextHop { id });
        }
    }
}

impl DesiredService {
    fn with_rings(&self, rings: [u32; 2]) -> Service {
        let &Self { forward, affinity, access, flags, .. } = self;
        Service { rings, forward, affinity, access, flags, _pad: [0; 4] }
    }
}
