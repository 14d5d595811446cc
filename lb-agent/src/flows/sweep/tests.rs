use std::collections::HashMap;

use lb_common::{
    addr::V4,
    flow::{Flow, flags, forward},
};
use proptest::prelude::*;

use super::*;

const ALIVE: Policy =
    Policy { idle_timeout: 1_000, close_timeout: 100, doomed: None, renewed: None };
const NOW: u32 = 5; // Just after the clock has wrapped.

/// A table in memory, walked in batches of three.
#[derive(Clone, Default)]
struct Model {
    order: Vec<Tuple<V4>>,
    flows: HashMap<Tuple<V4>, Flow<V4>>,
}

impl Model {
    fn insert(&mut self, key: Tuple<V4>, flow: Flow<V4>) {
        self.order.push(key);
        self.flows.insert(key, flow);
    }

    /// Enters a pair, the reverse entry at some distance from the forward one.
    fn pair(&mut self, client: u16, backend: u16, ages: [u32; 2], flags: [u8; 2]) {
        self.pair_of(forward::NAT, client, backend, ages, flags);
    }

    fn pair_of(&mut self, forward: u8, client: u16, backend: u16, ages: [u32; 2], flags: [u8; 2]) {
        let key = Tuple { src: V4(1), dst: V4(2), sport: client, dport: 80 };
        let to = Tuple { src: V4(3), dst: V4(4), sport: client, dport: backend };
        let flow = |to, age, flags| Flow {
            to,
            forward,
            backend,
            flags,
            last_seen: NOW.wrapping_sub(age),
            created: NOW.wrapping_sub(10_000),
            ack: 1,
            packets: 1,
            ..Default::default()
        };
        self.insert(key, flow(to, ages[0], flags[0] & !flags::TO_CLIENT));
        let middle = self.order.len() / 2;
        let reverse = flow(key.reversed(), ages[1], flags[1] | flags::TO_CLIENT);
        self.order.insert(middle, to.reversed());
        self.flows.insert(to.reversed(), reverse);
    }

    fn entry(key: &Tuple<V4>, flow: &Flow<V4>) -> Entry<V4> {
        // Only notes lead nowhere else.
        let stage = if flow.to == *key { Stage::HalfOpen } else { Stage::Flow };
        Entry { key: *key, flow: *flow, stage }
    }

    fn splits(&self) -> usize {
        let entries = self.flows.iter().map(|(key, flow)| Self::entry(key, flow));
        entries.filter(|e| !self.flows.contains_key(&e.partner_key().unwrap())).count()
    }
}

impl FlowTable<V4> for Model {
    type Position = usize;

    fn batch(
        &mut self,
        from: Option<usize>,
        entries: &mut Vec<Entry<V4>>,
    ) -> io::Result<Option<usize>> {
        let from = from.unwrap_or(0);
        let to = (from + 3).min(self.order.len());
        entries.clear();
        entries.extend(
            self.order[from..to]
                .iter()
                .filter_map(|key| self.flows.get(key).map(|flow| Self::entry(key, flow))),
        );
        Ok((to < self.order.len()).then_some(to))
    }

    fn get(&self, key: &Tuple<V4>) -> io::Result<Option<Entry<V4>>> {
        Ok(self.flows.get(key).map(|flow| Self::entry(key, flow)))
    }

    fn remove(&mut self, key: &Tuple<V4>) -> io::Result<bool> {
        Ok(self.flows.remove(key).is_some())
    }
}

fn walk(
    sweeper: &mut Sweeper<V4, usize>,
    table: &mut Model,
    policy: impl Fn(u16) -> Policy,
) -> Census {
    walk_at(sweeper, table, policy, NOW)
}

fn walk_at(
    sweeper: &mut Sweeper<V4, usize>,
    table: &mut Model,
    policy: impl Fn(u16) -> Policy,
    now: u32,
) -> Census {
    loop {
        if let Step::Done(census) = sweeper.step(table, &policy, now).unwrap() {
            return census;
        }
    }
}

fn doomed(policy: Policy) -> Policy {
    Policy { doomed: Some(Doom::Dead), ..policy }
}

#[test]
fn the_census_counts_connections_and_references() {
    let mut table = Model::default();
    for client in 0..5 {
        table.pair(client, 7, [10, 10], [0, 0]);
    }
    table.pair(9, 8, [5_000, 5_000], [0, 0]);
    let census = walk(&mut Sweeper::default(), &mut table, |_| ALIVE);
    assert_eq!((census.connections(7), census.connections(9)), (5, 0));
    assert!(census.is_referenced(8) && !census.is_referenced(9));
    assert_eq!(census.referenced().collect::<Vec<_>>(), [7, 8]);
    assert_eq!(census.entries, 12);
}

#[test]
fn the_census_knows_when_the_oldest_connection_of_a_backend_was_created() {
    let mut table = Model::default();
    for client in 0..5 {
        table.pair(client, 7, [10, 10], [0, 0]);
    }
    table.flows.values_mut().for_each(|flow| flow.created = NOW - 1);
    table.pair(9, 8, [5_000, 5_000], [0, 0]);
    // It ends by itself.
    table.pair(10, 7, [10, 10], [flags::RESET, flags::RESET]);
    let census = walk(&mut Sweeper::default(), &mut table, |_| ALIVE);
    let before_the_wrap = NOW.wrapping_sub(10_000);
    assert_eq!(
        (census.load(7).oldest, census.load(8).oldest),
        (Some(NOW - 1), Some(before_the_wrap))
    );
    let mut both = census.load(7);
    both += census.load(8);
    assert_eq!(both.oldest, Some(before_the_wrap));
    // Nobody notes when a handshake began to be one.
    table.flows.retain(|key, flow| key.dport == 80 && !flow.is_closing());
    table.flows.iter_mut().for_each(|(key, flow)| flow.to = *key);
    let census = walk(&mut Sweeper::default(), &mut table, |_| ALIVE);
    assert_eq!((census.load(7).handshakes, census.load(7).oldest), (5, None));
}

#[test]
fn doomed_flows_are_reset_at_the_pacers_rate() {
    let mut table = Model::default();
    for client in 0..20 {
        table.pair(client, 7, [10, 10], [0, 0]);
        table.pair(100 + client, 8, [10, 10], [0, 0]);
    }
    let policy = |backend| if backend == 7 { doomed(ALIVE) } else { ALIVE };
    let mut sweeper = Sweeper::default();
    let mut orders = Vec::new();
    walk(&mut sweeper, &mut table, policy);
    assert_eq!((sweeper.waiting(), orders.len(), table.flows.len()), (20, 0, 80));

    let mut paces = Paces::with_burst(10, 5);
    let mut at = Duration::from_secs(1);
    let mut reset = |at, table: &mut Model, sweeper: &mut Sweeper<_, _>| {
        let pace = (&mut paces, at);
        sweeper.reset_due(table, policy, NOW, pace, &mut orders).unwrap().doomed
    };
    assert_eq!(reset(at, &mut table, &mut sweeper), 5);
    at += Duration::from_millis(300);
    assert_eq!(reset(at, &mut table, &mut sweeper), 3);
    assert_eq!(table.splits(), 0);
    at += Duration::from_secs(10);
    while sweeper.waiting() > 0 {
        at += Duration::from_secs(1);
        reset(at, &mut table, &mut sweeper);
    }
    assert_eq!((orders.len(), table.flows.len()), (20, 40));
    assert!(orders.iter().all(|order| order.backend == 7));
}

#[test]
fn idle_flows_expire_at_the_pacers_rate_after_those_of_the_doomed() {
    let mut table = Model::default();
    for client in 0..20 {
        table.pair(client, 7, [5_000, 5_000], [0, 0]);
    }
    table.pair(100, 8, [10, 10], [0, 0]);
    let policy = |backend| if backend == 8 { doomed(ALIVE) } else { ALIVE };
    let (mut sweeper, mut orders) = (Sweeper::default(), Vec::new());
    walk(&mut sweeper, &mut table, policy);
    assert_eq!((sweeper.waiting(), table.flows.len()), (21, 42));
    // One of the idle comes to life.
    let key = table.order.iter().find(|key| key.sport == 3 && key.dport == 80).copied().unwrap();
    table.flows.get_mut(&key).unwrap().last_seen = NOW;

    let mut paces = Paces::with_burst(10, 5);
    let mut reset = |at| {
        let pace = (&mut paces, Duration::from_secs(at));
        sweeper.reset_due(&mut table, policy, NOW, pace, &mut orders).unwrap()
    };
    assert_eq!(reset(1), Resets { doomed: 1, drained: 0, expired: 4 });
    let later: u64 = (2..10).map(|at| reset(at).expired).sum();
    assert_eq!((later, orders.len(), table.flows.len()), (15, 20, 2));
    assert_eq!(orders[0].backend, 8);
}

#[test]
fn each_service_drains_at_its_own_pace_and_the_dead_go_first() {
    let mut table = Model::default();
    for client in 0..20 {
        table.pair_of(forward::SPLICE, client, 7, [10, 10], [0, 0]);
        table.pair_of(forward::SPLICE, 100 + client, 8, [10, 10], [0, 0]);
    }
    table.pair(200, 9, [10, 10], [0, 0]);
    let drain = |service, rate| Policy { doomed: Some(Doom::Drain { service, rate }), ..ALIVE };
    let policy = |backend| match backend {
        7 => drain(1, 1),
        8 => drain(2, 10),
        _ => doomed(ALIVE),
    };
    let (mut sweeper, mut orders) = (Sweeper::default(), Vec::new());
    walk(&mut sweeper, &mut table, policy);
    assert_eq!(sweeper.waiting(), 41);
    let mut paces = Paces::with_burst(1_000, 100);
    let mut counts = [0, 0, 0];
    for tenths in 10..30 {
        let pace = (&mut paces, Duration::from_millis(100 * tenths));
        let resets = sweeper.reset_due(&mut table, policy, NOW, pace, &mut orders).unwrap();
        counts[0] += resets.doomed;
        for ended in sweeper.take_ended() {
            assert_eq!(ended.how, How::Drain);
            counts[usize::from(ended.backend - 6)] += 1;
        }
    }
    assert_eq!(counts, [1, 2, 20]);
    assert_eq!((orders[0].backend, orders.len()), (9, 23));
    // The time of those that are left is over.
    let over = |_| Policy { doomed: Some(Doom::Deadline), ..ALIVE };
    let pace = (&mut paces, Duration::from_secs(10));
    let resets = sweeper.reset_due(&mut table, over, NOW, pace, &mut orders).unwrap();
    assert_eq!((resets.drained, sweeper.waiting(), table.flows.len()), (18, 0, 0));
    assert!(sweeper.take_ended().iter().all(|ended| ended.how == How::Deadline));
}

#[test]
fn spliced_connections_are_counted_and_their_ends_are_told() {
    let both = flags::FIN | flags::PEER_FIN;
    let mut table = Model::default();
    table.pair_of(forward::SPLICE, 1, 7, [10, 10], [0, 0]);
    table.pair_of(forward::SPLICE, 2, 7, [10, 10], [flags::HOLD, flags::HOLD]);
    table.pair_of(forward::SPLICE, 3, 7, [200, 300], [both, both]);
    table.pair_of(forward::SPLICE, 4, 7, [200, 300], [0, flags::RESET]);
    table.pair(5, 7, [200, 300], [both, both]);
    let held = table.flows.values_mut().filter(|flow| flow.flags & flags::HOLD != 0);
    held.for_each(|flow| flow.created = NOW);
    let note = Tuple { src: V4(1), dst: V4(2), sport: 6, dport: 80 };
    let offer =
        |last_seen| Flow { to: note, forward: forward::SPLICE, last_seen, ..Flow::default() };
    table.insert(note, offer(NOW.wrapping_sub(20)));
    let mut sweeper = Sweeper::default();
    // Backend 0, of which the note is, is nobody's.
    let policy = |backend| if backend == 0 { doomed(ALIVE) } else { ALIVE };
    let patient = |_| Policy { close_timeout: 1_000, ..ALIVE };
    let census = walk(&mut sweeper, &mut table, patient);
    assert_eq!((census.entries, census.connections(7), census.spliced(7)), (11, 4, 2));
    let census = walk(&mut sweeper, &mut table, policy);
    assert_eq!((census.closed, census.abandoned, census.orphans), (3, 0, 0));
    assert_eq!(census.referenced().collect::<Vec<_>>(), [7]);
    assert_eq!((table.flows.len(), sweeper.waiting()), (5, 0));
    let ended: Vec<_> = sweeper.take_ended().iter().map(|it| (it.client.sport, it.how)).collect();
    assert_eq!(ended, [(3, How::Closed), (4, How::BackendReset)]);

    // The broker that held one of them is no more, and nobody asks for the note.
    let later = NOW + aging::NOTE_TICKS;
    let keep = |_| Policy { idle_timeout: u32::MAX, ..ALIVE };
    let census = walk_at(&mut sweeper, &mut table, keep, later);
    assert_eq!((census.orphans, census.abandoned, table.flows.len()), (1, 0, 2));
    assert!(sweeper.take_ended().is_empty(), "neither was a connection");
}

#[test]
fn a_backend_that_comes_back_keeps_its_flows() {
    let mut table = Model::default();
    table.pair(1, 7, [10, 10], [0, 0]);
    let (mut sweeper, mut orders) = (Sweeper::default(), Vec::new());
    walk(&mut sweeper, &mut table, |_| doomed(ALIVE));
    let pace = (&mut Paces::new(1), Duration::ZERO);
    assert_eq!(
        sweeper.reset_due(&mut table, |_| ALIVE, NOW, pace, &mut orders).unwrap(),
        Resets::default()
    );
    assert_eq!((sweeper.waiting(), table.flows.len(), orders.len()), (0, 2, 0));
}

#[test]
fn half_a_connection_is_removed_once_it_has_been_so_for_long() {
    let mut table = Model::default();
    table.pair(1, 7, [10, 10], [0, 0]);
    let key = table.order.iter().find(|key| key.dport == 80).copied().unwrap();
    let half = table.flows.remove(&key).unwrap();
    let mut sweeper = Sweeper::default();
    let mut walks = |table: &mut Model, count: u16, now: u32| -> u64 {
        (0..count).map(|_| walk_at(&mut sweeper, table, |_| ALIVE, now).orphans).sum()
    };
    // Every sixteenth walk looks at this pair; once it is noted, every walk does.
    assert_eq!(walks(&mut table, CHECKED_PAIRS, NOW), 0);
    assert_eq!(walks(&mut table, 1, NOW + ORPHAN_TICKS), 0);
    // It was only being replaced: the clock starts again.
    table.flows.insert(key, half);
    assert_eq!(walks(&mut table, 1, NOW + ORPHAN_TICKS + 1), 0);
    table.flows.remove(&key);
    assert_eq!(walks(&mut table, CHECKED_PAIRS, NOW + ORPHAN_TICKS + 2), 0);
    assert_eq!(walks(&mut table, 1, NOW + 2 * ORPHAN_TICKS + 3), 1);
    assert_eq!(table.flows.len(), 0);
    assert!(sweeper.take_ended().is_empty());
}

#[test]
fn half_a_spliced_connection_is_an_end_too() {
    let mut table = Model::default();
    table.pair_of(forward::SPLICE, 1, 7, [10, 10], [0, 0]);
    let key = table.order.iter().find(|key| key.dport == 80).copied().unwrap();
    table.flows.remove(&key);
    let mut sweeper = Sweeper::default();
    for _ in 0..CHECKED_PAIRS {
        walk(&mut sweeper, &mut table, |_| ALIVE);
    }
    walk_at(&mut sweeper, &mut table, |_| ALIVE, NOW + ORPHAN_TICKS + 1);
    let ended = sweeper.take_ended();
    assert_eq!((ended[0].client, ended[0].how, ended.len()), (key, How::Lost, 1));
}

proptest! {
    #[test]
    fn pairs_are_never_split_and_recent_flows_never_touched(
        pairs in prop::collection::vec(
            ((0u16..3), prop::array::uniform2(0u32..2_000), prop::array::uniform2(0u8..16)), 0..60,
        ),
        dead in 0u16..3,
        rate in 1u32..50,
    ) {
        let mut table = Model::default();
        for (client, (backend, ages, flags)) in pairs.iter().enumerate() {
            table.pair(client as u16, *backend, *ages, *flags);
        }
        let before = table.clone();
        let policy = |backend| if backend == dead { doomed(ALIVE) } else { ALIVE };
        let (mut sweeper, mut orders) = (Sweeper::default(), Vec::new());
        let mut paces = Paces::with_burst(rate, 4);
        let mut at = Duration::ZERO;
        for _ in 0..3 {
            while sweeper.step(&mut table, policy, NOW).unwrap() == Step::More {
                at += Duration::from_millis(50);
                let pace = (&mut paces, at);
                sweeper.reset_due(&mut table, policy, NOW, pace, &mut orders).unwrap();
                prop_assert_eq!(table.splits(), 0);
            }
        }
        prop_assert_eq!(table.splits(), 0);
        for (key, flow) in &before.flows {
            let recent = NOW.wrapping_sub(flow.last_seen) <= ALIVE.close_timeout;
            if recent && flow.backend != dead {
                prop_assert_eq!(table.flows.get(key), Some(flow));
            }
        }
    }
}
