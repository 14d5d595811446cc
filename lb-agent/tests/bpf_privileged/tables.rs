//! Flow tables and counters, as the kernel gives them.

use std::{
    collections::HashMap as StdHashMap,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, MapData, PerCpuArray, PerCpuValues};
use lb_agent::{
    bpf::{Counters, TableSizes, specs::names, sys},
    flows::{
        FlowTable, Paces, Policy, Resets, Step, Sweeper,
        aging::{Entry, Stage},
        table::{self, KernelTable, Value},
    },
};
use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    counters::BackendCounters,
    flow::{Flow, flags, forward},
    handshake::Handshake,
    outcome::{DropReason, Event},
};

use crate::{
    fixture::{Pins, SIZES},
    object::PASS,
};

const FLOWS: u32 = 100_000;

fn pins_with_room() -> Pins {
    let pins = Pins::new();
    let sizes = TableSizes { flows_ipv4: FLOWS, flows_ipv6: FLOWS, preallocate: false, ..SIZES };
    pins.load_sizes(PASS, &sizes).unwrap();
    pins
}

fn key(n: u32) -> Tuple<V4> {
    Tuple { src: V4(1_000 + n / 1_000), dst: V4(2), sport: (n % 1_000) as u16, dport: 80 }
}

fn walk<A: Addr, V: Value<A>>(mut table: KernelTable<A, V>) -> Vec<Entry<A>>
where
    Tuple<A>: aya::Pod,
{
    let (mut all, mut batch, mut from) = (Vec::new(), Vec::new(), None);
    loop {
        from = table.batch(from, &mut batch).unwrap();
        all.extend(batch.iter().copied());
        if from.is_none() {
            return all;
        }
    }
}

#[test]
fn a_walk_in_batches_sees_what_a_walk_by_keys_sees() {
    let pins = pins_with_room();
    let mut map: HashMap<_, Tuple<V4>, Flow<V4>> =
        pins.map(names::FLOWS4).unwrap().try_into().unwrap();
    for n in 0..FLOWS {
        map.insert(key(n), Flow { to: key(n), seq_next: n, ..Default::default() }, 0).unwrap();
    }
    let start = Instant::now();
    let batches = walk(table::flows::<V4>(&pins).unwrap());
    let in_batches = start.elapsed();
    let start = Instant::now();
    let one_by_one = walk(table::flows::<V4>(&pins).unwrap().without_batches());
    println!("{FLOWS} flows: {in_batches:?} in batches, {:?} one by one", start.elapsed());

    let unique = |entries: &[Entry<V4>]| -> StdHashMap<_, _> {
        entries.iter().map(|entry| (entry.key, entry.flow)).collect()
    };
    let naive: StdHashMap<_, _> = map.iter().map(Result::unwrap).collect();
    assert_eq!(naive.len(), FLOWS as usize);
    assert_eq!((batches.len(), one_by_one.len()), (naive.len(), naive.len()));
    assert!(unique(&batches) == naive && unique(&one_by_one) == naive);
}

#[test]
fn handshakes_and_ipv6_are_walked_too() {
    let pins = pins_with_room();
    let mut map: HashMap<_, Tuple<V6>, Handshake<V6>> =
        pins.map(names::HANDSHAKES6).unwrap().try_into().unwrap();
    let key = Tuple { src: V6([1, 2, 3, 4]), sport: 5, ..Default::default() };
    let flow = Flow { backend: 9, ..Default::default() };
    map.insert(key, Handshake { flow, isn: 7, ..Default::default() }, 0).unwrap();
    assert_eq!(
        walk(table::handshakes::<V6>(&pins).unwrap()),
        [Entry { key, flow, stage: Stage::HalfOpen }]
    );
    assert_eq!(walk(table::flows::<V6>(&pins).unwrap()), []);
}

#[test]
fn a_table_of_other_sizes_is_not_opened() {
    let pins = pins_with_room();
    let error = KernelTable::<V6, Flow<V6>>::open(&pins.map_path(names::FLOWS4)).err().unwrap();
    assert!(error.to_string().contains("wanted (36, 88)"), "{error}");
    let error = KernelTable::<V4, Flow<V4>>::open(&pins.map_path(names::EDGE)).err().unwrap();
    assert!(error.to_string().contains("not a hash map"), "{error}");
    assert!(KernelTable::<V4, Flow<V4>>::open(&pins.program_path()).is_err());
}

#[test]
fn a_sweep_removes_idle_pairs_and_no_other() {
    let pins = pins_with_room();
    let mut map: HashMap<_, Tuple<V4>, Flow<V4>> =
        pins.map(names::FLOWS4).unwrap().try_into().unwrap();
    let now = sys::now_ticks();
    let pairs = 20_000;
    for n in 0..pairs {
        let (key, to) = (key(n), Tuple { dst: V4(4), ..key(n) });
        let flow = |to, flags, last_seen| Flow {
            to,
            flags,
            last_seen,
            created: now.wrapping_sub(1_000),
            forward: forward::NAT,
            backend: 1 + (n % 2) as u16,
            ack: 1,
            packets: 1,
            ..Default::default()
        };
        // Every fourth pair has been idle, and of every other one, one direction.
        let forward = if n % 2 == 0 { 900 } else { 10 };
        let reverse = if n % 4 == 0 { 900 } else { 10 };
        map.insert(key, flow(to, 0, now.wrapping_sub(forward)), 0).unwrap();
        let reversed = flow(key.reversed(), flags::TO_CLIENT, now.wrapping_sub(reverse));
        map.insert(to.reversed(), reversed, 0).unwrap();
    }
    let policy = |_| Policy { idle_timeout: 500, close_timeout: 100, doomed: None, renewed: None };
    let mut flows = table::flows::<V4>(&pins).unwrap();
    let (mut sweeper, mut orders) = (Sweeper::default(), Vec::new());
    let start = Instant::now();
    let census = loop {
        if let Step::Done(census) = sweeper.step(&mut flows, policy, now).unwrap() {
            break census;
        }
    };
    println!("a sweep of {pairs} pairs, a quarter of them idle, took {:?}", start.elapsed());
    assert_eq!(census.entries, 2 * u64::from(pairs));
    let pace = (&mut Paces::with_burst(1_000_000, pairs), Duration::ZERO);
    let resets = sweeper.reset_due(&mut flows, policy, now, pace, &mut orders).unwrap();
    assert_eq!(resets, Resets { expired: u64::from(pairs) / 4, ..Resets::default() });
    assert_eq!(orders.len() as u64, resets.expired);
    assert!(orders.iter().all(|order| order.to_client.is_some() && order.to_backend.is_some()));
    let left = walk(flows);
    assert_eq!(left.len(), pairs as usize / 4 * 3 * 2);
    assert_eq!(census.referenced().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn counters_are_added_up_over_the_cpus() {
    fn fill<V: aya::Pod>(pins: &Pins, name: &str, index: u32, value: V) -> u64 {
        let cpus = aya::util::nr_cpus().unwrap();
        let mut map: PerCpuArray<MapData, V> = pins.map(name).unwrap().try_into().unwrap();
        map.set(index, PerCpuValues::try_from(vec![value; cpus]).unwrap(), 0).unwrap();
        cpus as u64
    }
    let pins = Pins::new();
    pins.load(PASS).unwrap();
    fill(&pins, names::OUTCOMES, 3 * 64 + Event::FlowOpened.index(), 5_u64);
    fill(&pins, names::OUTCOMES, 3 * 64 + DropReason::NoRoute.index(), 7_u64);
    let traffic = BackendCounters { opened: 2, to_client_bytes: 100, ..Default::default() };
    let cpus = fill(&pins, names::BACKEND_COUNTERS, 8, traffic);

    let mut counters = Counters::open(&pins).unwrap();
    let snapshot = counters.snapshot(&[0, 3], &[8]).unwrap();
    let (id, service) = &snapshot.services[1];
    assert_eq!((*id, service.event(Event::FlowOpened)), (3, 5 * cpus));
    assert_eq!(service.drops(DropReason::NoRoute), 7 * cpus);
    assert_eq!(snapshot.services[0].1.event(Event::FlowOpened), 0);
    let (_, backend) = snapshot.backends[0];
    assert_eq!((backend.opened, backend.to_client_bytes), (2 * cpus, 100 * cpus));

    counters.clear_backend(8).unwrap();
    counters.clear_service(3).unwrap();
    assert_eq!(counters.backend(8).unwrap(), BackendCounters::default());
    assert_eq!(counters.service(3).unwrap().drops(DropReason::NoRoute), 0);
    assert!(counters.service(5).is_err(), "there is no such service");
}
