//! Which maps there are, and how large: the one list that creation, adoption and the sweep follow.
//!
//! It repeats what the data plane declares, so a privileged test compares it with the object file.

use std::mem::size_of;

use aya::maps::MapType;
use lb_common::{
    abi::{Edge, MAX_SOURCES},
    access::{self, AccessKey},
    addr::{Tuple, V4, V6},
    counters::BackendCounters,
    decap,
    flow::Flow,
    handshake::Handshake,
    next_hop::{MAX_NEXT_HOPS, NextHop, RouteValue},
    outcome::COUNTERS_PER_SERVICE,
    ring::Ring,
    rtt::HandshakeRtt,
    service::{Backend, Listener, ListenerKey, Service},
};

use super::sys;

/// Names of the pinned maps, as in the object file.
pub mod names {
    pub const EDGE: &str = "EDGE";
    pub const SOURCES4: &str = "SOURCES4";
    pub const SOURCES6: &str = "SOURCES6";
    pub const LISTENERS4: &str = "LISTENERS4";
    pub const LISTENERS6: &str = "LISTENERS6";
    pub const SERVICES: &str = "SERVICES";
    pub const RINGS: &str = "RINGS";
    pub const BACKENDS: &str = "BACKENDS";
    pub const NEXT_HOPS: &str = "NEXT_HOPS";
    pub const ROUTES4: &str = "ROUTES4";
    pub const ROUTES6: &str = "ROUTES6";
    pub const ACCESS4: &str = "ACCESS4";
    pub const ACCESS6: &str = "ACCESS6";
    pub const FLOWS4: &str = "FLOWS4";
    pub const FLOWS6: &str = "FLOWS6";
    pub const HANDSHAKES4: &str = "HANDSHAKES4";
    pub const HANDSHAKES6: &str = "HANDSHAKES6";
    pub const OUTCOMES: &str = "OUTCOMES";
    pub const BACKEND_COUNTERS: &str = "BACKEND_COUNTERS";
    pub const PUNTS: &str = "PUNTS";
    pub const HANDSHAKE_RTT: &str = "HANDSHAKE_RTT";
}

/// Maps that agents of the same ABI version may not have had yet: made where they are missing. Nothing in them is
/// needed to forward packets.
pub const ADDED: [&str; 1] = [names::HANDSHAKE_RTT];

/// Most entries of `LISTENERS4` and of `LISTENERS6`: addresses and addresses with a port.
pub const MAX_LISTENERS: u32 = 8_192;

/// Most entries of `ROUTES4` and of `ROUTES6`. They are allocated as they come.
pub const MAX_ROUTES: u32 = 16_384;

/// Size of the ring buffer `PUNTS` in bytes: about 500 packets that wait for a next hop.
pub const PUNTS_BYTES: u32 = 1 << 20;

/// What the config decides about the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    /// Entries of `FLOWS4`; a connection takes two in `nat`, one in `dsr` and `ipip`.
    pub flows_ipv4: u32,
    /// Entries of `FLOWS6`.
    pub flows_ipv6: u32,
    /// Entries of `HANDSHAKES4` and of `HANDSHAKES6`, each.
    pub handshakes: u32,
    /// Whether the flow tables take all their memory at once; else as flows come, and packets get
    /// slower.
    pub preallocate: bool,
    /// Most services. Ids go from 1 to this number.
    pub services: u32,
    /// Most backends of all services together. Ids go from 1 to this number, at most 65,535.
    pub backends: u32,
}

impl TableSizes {
    /// Number of rings, of 128 KiB each: ring 0, which has no backend, one for each service and IP
    /// version, and seven into which changes are written before they are switched to.
    pub const fn rings(&self) -> u32 {
        8 + 2 * self.services
    }
}

/// How a map must be, whether it is created or adopted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MapSpec {
    /// Name in the object file and below `maps/`.
    pub name: &'static str,
    pub map_type: MapType,
    /// Bytes.
    pub key_size: u32,
    /// Bytes.
    pub value_size: u32,
    /// Elements; bytes for a ring buffer.
    pub max_entries: u32,
    /// `BPF_F_*` of `BPF_MAP_CREATE`.
    pub flags: u32,
}

/// The maps of an edge with these sizes, in the order of creation.
pub fn maps(sizes: &TableSizes) -> Vec<MapSpec> {
    use MapType::{Array, Hash, LpmTrie, LruHash, PerCpuArray};
    use names as n;

    let flow_flags = if sizes.preallocate { 0 } else { sys::NO_PREALLOC };
    let outcomes = COUNTERS_PER_SERVICE * (sizes.services + 1);
    let mut specs = vec![
        array::<Edge>(n::EDGE, Array, 1),
        array::<V4>(n::SOURCES4, Array, MAX_SOURCES as u32),
        array::<V6>(n::SOURCES6, Array, MAX_SOURCES as u32),
        table::<ListenerKey<V4>, Listener>(n::LISTENERS4, Hash, MAX_LISTENERS, 0),
        table::<ListenerKey<V6>, Listener>(n::LISTENERS6, Hash, MAX_LISTENERS, 0),
        array::<Service>(n::SERVICES, Array, sizes.services + 1),
        array::<Ring>(n::RINGS, Array, sizes.rings()),
        array::<Backend>(n::BACKENDS, Array, sizes.backends + 1),
        array::<NextHop>(n::NEXT_HOPS, Array, MAX_NEXT_HOPS),
        // The kernel has no other kind of trie than one which is allocated as it grows.
        table::<(u32, V4), RouteValue>(n::ROUTES4, LpmTrie, MAX_ROUTES, sys::NO_PREALLOC),
        table::<(u32, V6), RouteValue>(n::ROUTES6, LpmTrie, MAX_ROUTES, sys::NO_PREALLOC),
        table::<(u32, AccessKey<V4>), u32>(
            n::ACCESS4,
            LpmTrie,
            access::MAX_ENTRIES,
            sys::NO_PREALLOC,
        ),
        table::<(u32, AccessKey<V6>), u32>(
            n::ACCESS6,
            LpmTrie,
            access::MAX_ENTRIES,
            sys::NO_PREALLOC,
        ),
    ];
    specs.extend([
        table::<Tuple<V4>, Flow<V4>>(n::FLOWS4, Hash, sizes.flows_ipv4, flow_flags),
        table::<Tuple<V6>, Flow<V6>>(n::FLOWS6, Hash, sizes.flows_ipv6, flow_flags),
        table::<Tuple<V4>, Handshake<V4>>(n::HANDSHAKES4, LruHash, sizes.handshakes, 0),
        table::<Tuple<V6>, Handshake<V6>>(n::HANDSHAKES6, LruHash, sizes.handshakes, 0),
        array::<u64>(n::OUTCOMES, PerCpuArray, outcomes),
        array::<BackendCounters>(n::BACKEND_COUNTERS, PerCpuArray, sizes.backends + 1),
        MapSpec {
            name: n::PUNTS,
            map_type: MapType::RingBuf,
            key_size: 0,
            value_size: 0,
            max_entries: PUNTS_BYTES,
            flags: 0,
        },
        array::<HandshakeRtt>(n::HANDSHAKE_RTT, PerCpuArray, sizes.services + 1),
    ]);
    specs
}

/// Most VIPs of the program `decap`.
pub const MAX_DECAP_VIPS: u32 = 1_024;

/// The maps of the program `decap`.
pub fn decap_maps() -> Vec<MapSpec> {
    vec![
        table::<V6, u32>(decap::VIPS, MapType::Hash, MAX_DECAP_VIPS, 0),
        array::<u64>(decap::COUNTERS, MapType::PerCpuArray, decap::COUNTERS_LEN),
    ]
}

fn array<V>(name: &'static str, map_type: MapType, max_entries: u32) -> MapSpec {
    table::<u32, V>(name, map_type, max_entries, 0)
}

fn table<K, V>(name: &'static str, map_type: MapType, max_entries: u32, flags: u32) -> MapSpec {
    MapSpec {
        name,
        map_type,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        max_entries,
        flags,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: TableSizes = TableSizes {
        flows_ipv4: 100,
        flows_ipv6: 200,
        handshakes: 300,
        preallocate: true,
        services: 4,
        backends: 5,
    };

    #[test]
    fn names_are_unique() {
        let specs = maps(&SIZES);
        for (n, spec) in specs.iter().enumerate() {
            assert!(specs[n + 1..].iter().all(|other| other.name != spec.name), "{}", spec.name);
        }
    }

    #[test]
    fn sizes_reach_their_maps() {
        let specs = maps(&SIZES);
        let entries = |name| specs.iter().find(|s| s.name == name).unwrap().max_entries;
        assert_eq!(entries(names::FLOWS4), 100);
        assert_eq!(entries(names::FLOWS6), 200);
        assert_eq!(entries(names::HANDSHAKES6), 300);
        assert_eq!(entries(names::SERVICES), 5);
        assert_eq!(entries(names::OUTCOMES), 64 * 5);
        assert_eq!(entries(names::BACKEND_COUNTERS), 6);
        assert_eq!(entries(names::RINGS), 16);
    }

    #[test]
    fn only_flow_tables_follow_preallocate() {
        let with = maps(&SIZES);
        let without = maps(&TableSizes { preallocate: false, ..SIZES });
        let changed: Vec<_> =
            with.iter().zip(&without).filter(|(a, b)| a != b).map(|(a, _)| a.name).collect();
        assert_eq!(changed, [names::FLOWS4, names::FLOWS6]);
    }

    /// What the kernel (`kernel/bpf/hashtab.c`) takes for an entry of capacity of a preallocated hash table: the
    /// element's head, key and value, and its share of the buckets, whose number is the next power of two.
    fn bytes_per_entry(spec: &MapSpec) -> f64 {
        const HEAD: u32 = 48;
        const BUCKET: u32 = 16;
        let element =
            HEAD + spec.key_size.next_multiple_of(8) + spec.value_size.next_multiple_of(8);
        let buckets = BUCKET * spec.max_entries.next_power_of_two();
        f64::from(element) + f64::from(buckets) / f64::from(spec.max_entries)
    }

    #[test]
    fn an_ipv4_flow_takes_at_most_160_bytes_of_table_whatever_the_capacity() {
        let bytes = |name, flows| {
            let specs = maps(&TableSizes { flows_ipv4: flows, flows_ipv6: flows, ..SIZES });
            bytes_per_entry(specs.iter().find(|s| s.name == name).unwrap())
        };
        for flows in [1_024, 1_048_576, 1_048_577, 16_777_216] {
            assert!(bytes(names::FLOWS4, flows) <= 160.0, "{flows} flows");
        }
        // As the README says of the default capacities, which are powers of two.
        assert_eq!((bytes(names::FLOWS4, 1 << 20), bytes(names::FLOWS6, 1 << 18)), (144.0, 192.0));
    }
}
