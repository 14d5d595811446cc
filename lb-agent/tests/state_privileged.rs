//! The map writer against real BPF maps. Needs root (CAP_BPF, CAP_NET_ADMIN):
//! `cargo test -p lb-agent --features privileged --test state_privileged`

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
    thread,
};

use aya::maps::{Array, HashMap as BpfHashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use lb_agent::{
    bpf::specs::names,
    choice::Rule,
    state::{
        Capacity, Prefix,
        access::Access,
        actual::Actual,
        desired::{Affinity, BackendInput, Forward, Input, RingCache, ServiceInput, desired},
        diff::diff,
        ids::Ids,
        maps::Maps,
        op::MapOp,
    },
};
use lb_common::{
    abi::{Edge, MAX_SOURCES},
    access::AccessKey,
    addr::{V4, V6},
    maglev::Slots,
    next_hop::NextHop,
    ring::{Ring, SLOTS},
    service::{Backend, Listener, ListenerKey, Service},
};

const SERVICES: u32 = 5;

/// BPF_F_NO_PREALLOC, which the kernel demands for tries.
const NO_PREALLOC: u32 = 1;

/// Maps as the object file has them, pinned in a directory of their own.
struct Pins(PathBuf);

impl Pins {
    fn new(test: &str) -> Self {
        let dir = PathBuf::from(format!("/sys/fs/bpf/sluice-{test}-{}", std::process::id()));
        std::fs::create_dir(&dir).expect("bpffs is mounted on /sys/fs/bpf and we are root");
        let pins = Self(dir);
        pins.create().expect("the maps can be made");
        pins
    }

    fn create(&self) -> Result<(), Box<dyn std::error::Error>> {
        let at = |name| self.0.join(name);
        Array::<_, Edge>::create(1, 0)?.pin(at(names::EDGE))?;
        Array::<_, V4>::create(MAX_SOURCES as u32, 0)?.pin(at(names::SOURCES4))?;
        Array::<_, V6>::create(MAX_SOURCES as u32, 0)?.pin(at(names::SOURCES6))?;
        BpfHashMap::<_, ListenerKey<V4>, Listener>::create(6, 0)?.pin(at(names::LISTENERS4))?;
        BpfHashMap::<_, ListenerKey<V6>, Listener>::create(4, 0)?.pin(at(names::LISTENERS6))?;
        Array::<_, Service>::create(SERVICES, 0)?.pin(at(names::SERVICES))?;
        Array::<_, Ring>::create(Capacity::rings_for(SERVICES - 1), 0)?.pin(at(names::RINGS))?;
        Array::<_, Backend>::create(64, 0)?.pin(at(names::BACKENDS))?;
        Array::<_, NextHop>::create(8, 0)?.pin(at(names::NEXT_HOPS))?;
        LpmTrie::<_, V4, u32>::create(8, NO_PREALLOC)?.pin(at(names::ROUTES4))?;
        LpmTrie::<_, V6, u32>::create(8, NO_PREALLOC)?.pin(at(names::ROUTES6))?;
        LpmTrie::<_, AccessKey<V4>, u32>::create(8, NO_PREALLOC)?.pin(at(names::ACCESS4))?;
        LpmTrie::<_, AccessKey<V6>, u32>::create(8, NO_PREALLOC)?.pin(at(names::ACCESS6))?;
        Ok(())
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // A failure to clean up must not hide why a test failed.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn input() -> Input {
    let backend = |addr: &str, next_hop| BackendInput {
        name: addr.into(),
        addr: addr.parse().unwrap(),
        weight: 100,
        up: true,
        next_hop,
        tunnel_source: None,
        mss_clamp: 1400,
        whole_weight: 100,
        local: false,
    };
    let hop = |n| NextHop { ifindex: 2, mtu: 1500, dst: [2, 0, 0, 0, 0, n], ..NextHop::default() };
    Input {
        hash_seed: 7,
        nat_port_first: 1024,
        nat_port_count: 64512,
        source_addresses: vec!["10.2.0.1".parse().unwrap(), "2001:db8:2::1".parse().unwrap()],
        services: vec![ServiceInput {
            name: "chat".into(),
            listeners: vec![
                "203.0.113.10:80".parse().unwrap(),
                "[2001:db8::10]:80".parse().unwrap(),
            ],
            forward: Forward::Nat,
            affinity: Affinity::Source,
            backends: vec![
                backend("10.2.0.2:9000", 1),
                backend("10.2.0.3:9000", 2),
                backend("[2001:db8:2::2]:9000", 0),
            ],
            rule: Rule { fail_open: true, ..Rule::default() },
            access: Access {
                allow: [Prefix::new("2001:db8::".parse().unwrap(), 32)].into(),
                deny: BTreeSet::new(),
            },
        }],
        xdp_only: BTreeSet::from(["203.0.113.10".parse().unwrap()]),
        next_hops: BTreeMap::from([(1, hop(1)), (2, hop(2))]),
        routes: BTreeMap::from([
            (Prefix::new("0.0.0.0".parse().unwrap(), 0), 1),
            (Prefix::new("10.2.0.0".parse().unwrap(), 16), 2),
            (Prefix::new("10.2.3.0".parse().unwrap(), 24), 0),
            (Prefix::new("2001:db8::".parse().unwrap(), 32), 1),
        ]),
        retired_next_hops: BTreeMap::new(),
        access: Access {
            allow: BTreeSet::new(),
            deny: [Prefix::new("192.0.2.0".parse().unwrap(), 24)].into(),
        },
    }
}

fn reach(maps: &mut Maps, actual: &mut Actual, ids: &mut Ids, input: &Input) -> Vec<MapOp> {
    ids.assign(&input.services).unwrap();
    let desired = desired(input, ids, &mut RingCache::default()).unwrap();
    let ops = diff(actual, &desired);
    for op in &ops {
        maps.apply(op).unwrap();
        actual.apply(op);
    }
    ops
}

/// What is read back is the mirror, but for what the maps do not say.
fn assert_mirrored(maps: &Maps, actual: &Actual) {
    let mut read = maps.read().unwrap();
    assert!(read.flows_are_stale);
    read.flows_are_stale = actual.flows_are_stale;
    let sorted: BTreeSet<u32> = actual.free_rings.iter().copied().collect();
    assert!(read.free_rings.iter().eq(&sorted));
    read.free_rings.clone_from(&actual.free_rings);
    assert!(read == *actual, "{:#?}", (&read.listeners, &read.services, &read.backends));
}

#[test]
fn what_is_written_is_read_back_and_adopted_by_the_next_agent() {
    let pins = Pins::new("adopt");
    let mut maps = Maps::from_pins(&pins.0).unwrap();
    let mut actual = maps.read().unwrap();
    let mut ids = Ids::recover(&actual, maps.capacity());
    let mut input = input();
    reach(&mut maps, &mut actual, &mut ids, &input);
    assert_mirrored(&maps, &actual);

    input.services[0].backends[0].up = false;
    input.routes.remove(&Prefix::new("10.2.0.0".parse().unwrap(), 16));
    reach(&mut maps, &mut actual, &mut ids, &input);
    assert_mirrored(&maps, &actual);

    let mut maps = Maps::from_pins(&pins.0).unwrap();
    let mut actual = maps.read().unwrap();
    let mut ids = Ids::recover(&actual, maps.capacity());
    let ops = reach(&mut maps, &mut actual, &mut ids, &input);
    assert!(matches!(ops.as_slice(), [MapOp::SetEdge(_)]), "{ops:?}");

    input.services.clear();
    input.routes.clear();
    input.next_hops.clear();
    reach(&mut maps, &mut actual, &mut ids, &input);
    ids.release(|_| false);
    reach(&mut maps, &mut actual, &mut ids, &input);
    assert_mirrored(&maps, &actual);
    let Actual { listeners, services, backends, next_hops, routes, .. } = actual;
    assert!(listeners.is_empty() && services.is_empty() && backends.is_empty());
    assert!(next_hops.is_empty() && routes.is_empty());
}

#[test]
fn the_words_in_the_maps_are_those_of_the_wire() {
    let pins = Pins::new("wire");
    let mut maps = Maps::from_pins(&pins.0).unwrap();
    let mut actual = maps.read().unwrap();
    let mut ids = Ids::recover(&actual, maps.capacity());
    reach(&mut maps, &mut actual, &mut ids, &input());

    let map = |name| Map::from_map_data(MapData::from_pin(pins.0.join(name)).unwrap()).unwrap();
    let listeners: BpfHashMap<_, [u8; 8], [u16; 2]> = map(names::LISTENERS4).try_into().unwrap();
    assert_eq!(listeners.get(&[203, 0, 113, 10, 0, 80, 0, 0], 0).unwrap(), [1, 0]);
    assert_eq!(listeners.get(&[203, 0, 113, 10, 0, 0, 0, 0], 0).unwrap(), [0, 1]);
    let routes: LpmTrie<_, [u8; 4], u32> = map(names::ROUTES4).try_into().unwrap();
    assert_eq!(routes.get(&Key::new(32, [10, 2, 9, 9]), 0).unwrap(), 2);
    assert_eq!(routes.get(&Key::new(32, [10, 2, 3, 9]), 0).unwrap(), 0);
    assert_eq!(routes.get(&Key::new(32, [10, 3, 3, 9]), 0).unwrap(), 1);
    let backends: Array<_, [u8; 48]> = map(names::BACKENDS).try_into().unwrap();
    let first = backends.get(&1, 0).unwrap();
    assert_eq!(first[..4], [10, 2, 0, 2]);
    assert_eq!(first[32..34], 9000u16.to_be_bytes());
    let empty: Array<_, Slots> = map(names::RINGS).try_into().unwrap();
    let all_none = thread::Builder::new().stack_size(8 << 20);
    let ring_0_is_empty =
        all_none.spawn(move || empty.get(&0, 0).unwrap().iter().all(|&id| id == 0));
    assert!(ring_0_is_empty.unwrap().join().unwrap());
}

#[test]
fn what_the_sidecar_serves_is_there_without_rings_and_its_ids_outlive_its_listeners() {
    let pins = Pins::new("splice");
    let mut maps = Maps::from_pins(&pins.0).unwrap();
    let mut actual = maps.read().unwrap();
    let mut ids = Ids::recover(&actual, maps.capacity());
    let mut input = input();
    input.services[0].forward = Forward::Splice;
    reach(&mut maps, &mut actual, &mut ids, &input);
    assert_mirrored(&maps, &actual);
    assert_eq!(actual.services[&1].rings, [0, 0]);
    let map = |name| Map::from_map_data(MapData::from_pin(pins.0.join(name)).unwrap()).unwrap();
    let listeners: BpfHashMap<_, [u8; 8], [u16; 2]> = map(names::LISTENERS4).try_into().unwrap();
    assert_eq!(listeners.get(&[10, 2, 0, 2, 0x23, 0x28, 0, 0], 0).unwrap(), [0, 2]);
    assert_eq!(listeners.get(&[203, 0, 113, 10, 0, 80, 0, 0], 0).unwrap(), [1, 0]);
    let services: Array<_, [u8; 16]> = map(names::SERVICES).try_into().unwrap();
    assert_eq!(services.get(&1, 0).unwrap()[8], 4);

    input.services[0].forward = Forward::Relay;
    // Lists would keep its listeners.
    (input.access, input.services[0].access) = Default::default();
    reach(&mut maps, &mut actual, &mut ids, &input);
    assert_mirrored(&maps, &actual);
    assert!(actual.listeners.is_empty());
    let backends = actual.backends.clone();
    let mut actual = maps.read().unwrap();
    let mut ids = Ids::recover(&actual, maps.capacity());
    let ops = reach(&mut maps, &mut actual, &mut ids, &input);
    assert!(matches!(ops.as_slice(), [MapOp::SetEdge(_)]), "{ops:?}");
    assert_eq!(actual.backends, backends);
}

#[test]
fn rings_fit_a_small_stack() {
    let pins = Pins::new("stack");
    let mut maps = Maps::from_pins(&pins.0).unwrap();
    let small = thread::Builder::new().stack_size(64 << 10);
    let use_rings = move || {
        let slots: Arc<Slots> =
            Arc::<[u16]>::from(vec![9; SLOTS]).try_into().expect("SLOTS elements");
        maps.apply(&MapOp::WriteRing { number: 1, service: 1, slots }).unwrap();
        let service = Service { rings: [1, 0], forward: 1, ..Service::default() };
        maps.apply(&MapOp::SetService { id: 1, service }).unwrap();
        assert!(maps.read().unwrap().rings[&1].iter().all(|&id| id == 9));
    };
    small.spawn(use_rings).unwrap().join().unwrap();
}

#[test]
fn errors_name_the_map_the_key_and_the_remedy() {
    let pins = Pins::new("errors");
    let mut maps = Maps::from_pins(&pins.0).unwrap();
    let fails = |maps: &mut Maps, op| format!("{:#}", maps.apply(&op).unwrap_err());
    let message = fails(&mut maps, MapOp::ClearBackend { id: 64 });
    assert_eq!(
        message,
        "map BACKENDS: cannot write 64: the map is full; make the maps anew with `lb-agent unload` \
         and a restart: the index is 64 but `max_entries` is 64"
    );
    let listen = |n: u16| MapOp::SetListener {
        at: lb_agent::state::Endpoint { ip: "203.0.113.10".parse().unwrap(), port: n },
        listener: Listener { service: 1, flags: 0 },
    };
    (1..=6).for_each(|n| maps.apply(&listen(n)).unwrap());
    let message = fails(&mut maps, listen(7));
    assert!(message.starts_with("map LISTENERS4: cannot write 203.0.113.10:7: the map is full"));
    let at = "203.0.113.77:1".parse::<std::net::SocketAddr>().unwrap().into();
    maps.apply(&MapOp::ClearListener { at }).expect("what is not there need not go");
}

#[test]
fn maps_of_another_layout_or_missing_are_refused() {
    let pins = Pins::new("refused");
    std::fs::remove_file(pins.0.join(names::BACKENDS)).unwrap();
    let error = format!("{:#}", Maps::from_pins(&pins.0).err().unwrap());
    assert!(error.starts_with("map BACKENDS: cannot open /sys/fs/bpf/"), "{error}");
    Array::<_, [u8; 40]>::create(64, 0).unwrap().pin(pins.0.join(names::BACKENDS)).unwrap();
    let error = format!("{:#}", Maps::from_pins(&pins.0).err().unwrap());
    assert!(error.starts_with("map BACKENDS: made by another version"), "{error}");
    assert!(error.contains("unload"), "{error}");

    let few = || -> Result<HashMap<String, Map>, MapError> { Ok(HashMap::new()) };
    let mut none = few().unwrap();
    let error = Maps::new(|name| none.remove(name)).err().unwrap().to_string();
    assert_eq!(error, "map EDGE: not in the object file");
}
