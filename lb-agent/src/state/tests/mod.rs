//! The pure core, from input to applied operations.

mod access;
mod ids;
mod steps;
mod transitions;

use std::collections::{BTreeMap, BTreeSet};

use lb_common::next_hop::NextHop;

use super::{
    access::Access,
    actual::Actual,
    desired::{Affinity, BackendInput, Desired, Forward, Input, RingCache, ServiceInput, desired},
    diff::diff,
    ids::Ids,
    op::MapOp,
    *,
};
use crate::choice::Rule;

const CAPACITY: Capacity =
    Capacity { services: 9, rings: Capacity::rings_for(8), backends: 65, next_hops: 16 };

/// An agent without maps: what it would write goes to the mirror only.
struct Agent {
    actual: Actual,
    ids: Ids,
    cache: RingCache,
}

impl Agent {
    fn new() -> Self {
        let actual = Actual::empty(CAPACITY.rings);
        let ids = Ids::recover(&actual, CAPACITY);
        Self { actual, ids, cache: RingCache::default() }
    }

    fn plan(&mut self, input: &Input) -> (Desired, Vec<MapOp>) {
        self.ids.assign(&input.services).unwrap();
        let desired = desired(input, &self.ids, &mut self.cache).unwrap();
        let ops = diff(&self.actual, &desired);
        (desired, ops)
    }

    /// Makes the maps hold what the input wants, and returns how.
    fn reach(&mut self, input: &Input) -> Vec<MapOp> {
        let (_, ops) = self.plan(input);
        ops.iter().for_each(|op| self.actual.apply(op));
        ops
    }

    /// What a new agent finds when this one was killed.
    fn restart(&mut self) {
        let mut in_use: BTreeSet<u32> = BTreeSet::new();
        for service in self.actual.services.values() {
            in_use.extend(service.rings);
        }
        self.actual.free_rings = (1..CAPACITY.rings).filter(|n| !in_use.contains(n)).collect();
        self.actual.rings.retain(|number, _| in_use.contains(number));
        self.actual.flows_are_stale = true;
        self.ids = Ids::recover(&self.actual, CAPACITY);
        self.cache = RingCache::default();
    }
}

/// With all backends down, all get clients.
const OPEN: Rule = Rule { fail_open: true, panic_threshold: 0, min_healthy_percent: None };

fn input(services: Vec<ServiceInput>) -> Input {
    Input {
        hash_seed: 7,
        nat_port_first: 1024,
        nat_port_count: 64512,
        source_addresses: vec!["10.2.0.1".parse().unwrap(), "2001:db8:2::1".parse().unwrap()],
        services,
        xdp_only: BTreeSet::new(),
        next_hops: BTreeMap::new(),
        routes: BTreeMap::new(),
        retired_next_hops: BTreeMap::new(),
        access: Access::default(),
    }
}

fn service(name: &str, listeners: &[&str], backends: &[&str]) -> ServiceInput {
    ServiceInput {
        name: name.into(),
        listeners: listeners.iter().map(|addr| addr.parse().unwrap()).collect(),
        forward: Forward::Nat,
        affinity: Affinity::None,
        backends: backends.iter().map(|addr| backend(addr)).collect(),
        rule: OPEN,
        access: Access::default(),
    }
}

fn backend(addr: &str) -> BackendInput {
    BackendInput {
        name: addr.into(),
        addr: addr.parse().unwrap(),
        weight: 100,
        up: true,
        next_hop: 0,
        tunnel_source: None,
        mss_clamp: 0,
        whole_weight: 100,
        local: false,
    }
}

fn hop(n: u8) -> NextHop {
    NextHop { ifindex: 2, mtu: 1500, dst: [2, 0, 0, 0, 0, n], ..NextHop::default() }
}

fn shown(ops: &[MapOp]) -> Vec<String> {
    ops.iter().map(|op| op.to_string()).collect()
}

#[test]
fn prefixes_lose_the_bits_beyond_their_length() {
    let show = |addr: &str, len| Prefix::new(addr.parse().unwrap(), len).to_string();
    assert_eq!(show("10.1.2.3", 0), "0.0.0.0/0");
    assert_eq!(show("10.1.2.3", 20), "10.1.0.0/20");
    assert_eq!(show("10.1.2.3", 40), "10.1.2.3/32");
    assert_eq!(show("2001:db8::1", 0), "::/0");
    assert_eq!(show("2001:db8::1", 127), "2001:db8::/127");
    assert_eq!(show("2001:db8::1", 128), "2001:db8::1/128");
}
