use proptest::prelude::*;

use super::*;

fn address(n: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], n))
}

fn wanted(workers: u16, listeners: &[u16], revision: u64) -> Wanted {
    let listeners = listeners.iter().map(|n| address(*n)).collect();
    Wanted { workers, listeners, revision, deadline: None }
}

/// Workers that do at once what they are told.
#[derive(Default)]
struct Model {
    fleet: Fleet,
    alive: BTreeMap<Generation, Process>,
    /// Those that were started or found, in this order.
    starts: Vec<(Generation, u16)>,
}

#[derive(Clone, Debug, Default)]
struct Process {
    index: u16,
    listens: BTreeSet<SocketAddr>,
    revision: Option<u64>,
    retired: bool,
    deadline: Option<u64>,
    connections: u32,
}

impl Model {
    /// Until there is nothing more to do.
    fn settle(&mut self, now: Instant) {
        for _ in 0..50 {
            let actions = self.fleet.step(now);
            if actions.is_empty() {
                return;
            }
            actions.into_iter().for_each(|action| self.act(action, now));
        }
        panic!("it never settles: {:?}", self.fleet);
    }

    fn act(&mut self, action: Action, now: Instant) {
        match action {
            Action::Start { worker, index } => {
                self.starts.push((worker, index));
                self.alive.insert(worker, Process { index, ..Process::default() });
                self.fleet.greeted(worker, false, 0, true);
            }
            Action::Collect { worker } => {
                for address in self.alive[&worker].listens.clone() {
                    self.fleet.collected(worker, address);
                }
            }
            Action::Unlisten { worker, address } => {
                assert!(self.alive.get_mut(&worker).unwrap().listens.remove(&address));
            }
            Action::Settings { worker } => {
                let revision = self.fleet.wanted.as_ref().unwrap().revision;
                self.alive.get_mut(&worker).unwrap().revision = Some(revision);
                self.ready(worker);
            }
            Action::Listen { worker, address } => {
                let it = self.alive.get_mut(&worker).unwrap();
                assert!(it.revision.is_some() && !it.retired, "settings first: {it:?}");
                assert!(it.listens.insert(address), "once");
                self.ready(worker);
            }
            Action::Retire { worker, deadline } => {
                let it = self.alive.get_mut(&worker).unwrap();
                assert!(it.listens.is_empty(), "{it:?}");
                assert!(!it.retired || deadline != it.deadline, "nothing new: {it:?}");
                (it.retired, it.deadline) = (true, deadline);
                if it.connections == 0 {
                    self.end(worker, now);
                }
            }
            Action::Kill { worker } => self.end(worker, now),
        }
    }

    fn ready(&mut self, worker: Generation) {
        let wanted = self.fleet.wanted.clone().unwrap();
        let it = &self.alive[&worker];
        if it.revision == Some(wanted.revision) && it.listens.is_superset(&wanted.listeners) {
            self.fleet.ready(worker);
        }
    }

    fn end(&mut self, worker: Generation, now: Instant) {
        self.alive.remove(&worker);
        self.fleet.ended(worker, now);
    }

    /// A worker that outlived an agent.
    fn find(&mut self, worker: Generation, process: Process, current: bool, now: Instant) {
        self.fleet.found(worker, process.index, current, now);
        self.fleet.greeted(worker, process.retired, process.listens.len() as u32, true);
        self.alive.insert(worker, process);
    }

    fn serving(&self, index: u16) -> Vec<Generation> {
        let of_place = |(_, it): &(&Generation, &Process)| it.index == index && !it.retired;
        self.alive.iter().filter(of_place).map(|(worker, _)| *worker).collect()
    }
}

#[test]
fn each_place_gets_a_worker_with_settings_and_sockets() {
    let (mut model, now) = (Model::default(), Instant::now());
    model.settle(now);
    assert!(model.alive.is_empty() && !model.fleet.is_serving(), "nobody said what is wanted");
    model.fleet.want(wanted(2, &[80, 443], 1));
    model.settle(now);
    assert_eq!(model.starts, [(1, 0), (2, 1)]);
    assert!(model.fleet.is_serving());
    assert!(model.alive.values().all(|it| it.listens.len() == 2 && it.revision == Some(1)));
    assert_eq!(model.fleet.due(), None);

    model.fleet.want(wanted(2, &[443, 8080], 2));
    assert!(!model.fleet.is_serving());
    let first: Vec<_> = model
        .fleet
        .step(now)
        .into_iter()
        .filter(|it| format!("{it:?}").contains("worker: 1,"))
        .collect();
    let expected = [
        Action::Unlisten { worker: 1, address: address(80) },
        Action::Settings { worker: 1 },
        Action::Listen { worker: 1, address: address(8080) },
    ];
    assert_eq!(first[0], expected[0]);
    assert_eq!(first.last(), Some(&expected[2]));
}

#[test]
fn one_that_ends_unasked_is_followed_after_a_while_and_only_in_its_place() {
    let (mut model, mut now) = (Model::default(), Instant::now());
    model.fleet.want(wanted(2, &[80], 1));
    model.settle(now);
    for wait in [100, 200, 400] {
        let last = *model.serving(1).last().unwrap();
        model.end(last, now);
        assert!(!model.fleet.is_serving());
        model.settle(now);
        assert!(model.serving(1).is_empty() && model.serving(0) == [1]);
        let due = model.fleet.due().unwrap();
        assert_eq!(due - now, Duration::from_millis(wait));
        now = due;
        model.settle(now);
        assert!(model.fleet.is_serving());
    }
    assert_eq!((model.fleet.restarts(0), model.fleet.restarts(1)), (0, 3));
}

#[test]
fn one_that_retires_unasked_is_followed_at_once() {
    let (mut model, now) = (Model::default(), Instant::now());
    model.fleet.want(wanted(2, &[80], 1));
    model.settle(now);
    let it = model.alive.get_mut(&1).unwrap();
    (it.retired, it.connections) = (true, 1);
    it.listens.clear();
    model.fleet.greeted(1, true, 0, true);
    model.settle(now);
    assert_eq!((model.serving(0), model.serving(1)), (vec![3], vec![2]));
    assert!(model.fleet.is_serving() && model.alive[&1].listens.is_empty());
    model.fleet.want(Wanted { deadline: Some(5_000), ..wanted(2, &[80], 2) });
    model.settle(now);
    assert_eq!(model.alive[&1].deadline, Some(5_000));
    model.end(1, now);
    model.settle(now);
    assert_eq!((model.starts.len(), model.fleet.restarts(0)), (3, 0), "it has not failed");
}

#[test]
fn one_that_says_nothing_is_killed_and_followed() {
    let (mut fleet, now) = (Fleet::default(), Instant::now());
    fleet.want(wanted(1, &[80], 1));
    assert_eq!(fleet.step(now), [Action::Start { worker: 1, index: 0 }]);
    assert_eq!(fleet.due(), Some(now + PATIENCE));
    assert_eq!(fleet.step(now + PATIENCE), [Action::Kill { worker: 1 }]);
    assert_eq!((fleet.step(now + PATIENCE), fleet.due()), (vec![], None), "once");
    assert!(fleet.ended(1, now + PATIENCE).is_some());
    let due = fleet.due().unwrap();
    assert_eq!(fleet.step(due), [Action::Start { worker: 2, index: 0 }]);
}

#[test]
fn who_outlived_an_agent_is_asked_for_its_sockets_and_goes_on() {
    let (mut fleet, now) = (Fleet::default(), Instant::now());
    fleet.found(7, 0, true, now);
    assert!(!fleet.has_joined());
    assert_eq!(fleet.step(now), []);
    fleet.greeted(7, false, 2, true);
    assert_eq!(fleet.step(now), [Action::Collect { worker: 7 }]);
    fleet.collected(7, address(80));
    assert!(!fleet.has_joined());
    fleet.collected(7, address(443));
    assert!(fleet.has_joined());
    fleet.want(wanted(2, &[80, 8080], 1));
    let expected = [
        Action::Start { worker: 8, index: 1 },
        Action::Unlisten { worker: 7, address: address(443) },
        Action::Settings { worker: 7 },
        Action::Listen { worker: 7, address: address(8080) },
    ];
    assert_eq!(fleet.step(now), expected);
}

#[test]
fn an_upgrade_retires_the_old_ones_once_the_new_ones_serve() {
    let (mut model, now) = (Model::default(), Instant::now());
    let listens = BTreeSet::from([address(80)]);
    for (worker, index) in [(3, 0), (4, 1)] {
        let process =
            Process { index, listens: listens.clone(), connections: 5, ..Process::default() };
        model.find(worker, process, false, now);
    }
    model.settle(now);
    model.fleet.want(wanted(2, &[80], 1));
    let actions = model.fleet.step(now);
    assert!(!actions.iter().any(|it| matches!(it, Action::Retire { .. })), "{actions:?}");
    actions.into_iter().for_each(|action| model.act(action, now));
    model.settle(now);
    assert_eq!(model.starts, [(5, 0), (6, 1)]);
    assert!(model.alive[&3].retired && model.alive[&4].retired);
    assert!(model.fleet.is_serving());
    assert_eq!(model.fleet.ended(3, now), None, "nobody follows");

    model.fleet.want(wanted(2, &[80], 2));
    model.settle(now);
    assert_eq!(model.alive[&4].revision, Some(2), "drains are for the old ones as well");
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_one_at_work() {
    let (mut fleet, now) = (Fleet::default(), Instant::now());
    fleet.found(1, 0, false, now);
    fleet.greeted(1, false, 0, true);
    fleet.want(wanted(1, &[80], 1));
    assert!(fleet.step(now).contains(&Action::Start { worker: 2, index: 0 }));
    assert!(fleet.ended(2, now).is_some());
    assert!(fleet.step(now).is_empty());
    assert_eq!(fleet.workers().collect::<Vec<_>>(), [(1, 0, Phase::Greeted)]);
}

#[test]
fn whom_nobody_understands_can_only_retire() {
    let (mut fleet, now) = (Fleet::default(), Instant::now());
    fleet.found(1, 0, true, now);
    fleet.greeted(1, false, 0, false);
    fleet.want(wanted(1, &[80], 1));
    assert_eq!(fleet.step(now), [Action::Start { worker: 2, index: 0 }]);
    fleet.greeted(2, false, 0, true);
    fleet.step(now);
    fleet.ready(2);
    assert_eq!(fleet.step(now), [Action::Retire { worker: 1, deadline: None }]);
}

#[test]
fn fewer_workers_or_none_give_their_sockets_up_and_retire() {
    let (mut model, now) = (Model::default(), Instant::now());
    model.fleet.want(wanted(3, &[80], 1));
    model.settle(now);
    model.alive.values_mut().for_each(|it| it.connections = 1);
    model.fleet.want(wanted(1, &[80], 2));
    model.settle(now);
    assert_eq!(model.serving(0), [1]);
    assert!(model.alive[&2].retired && model.alive[&3].retired);
    model.fleet.want(wanted(0, &[], 3));
    model.settle(now);
    assert!(model.alive[&1].retired && model.fleet.is_serving());
    model.fleet.want(wanted(1, &[80], 4));
    model.settle(now);
    assert_eq!(model.serving(0), [4], "who has retired does not come back");
}

/// Nobody serves, and all are gone by this time.
fn drained(deadline: u64, revision: u64) -> Wanted {
    Wanted { deadline: Some(deadline), ..wanted(0, &[], revision) }
}

#[test]
fn an_edge_that_drains_retires_all_and_brings_up_others_afterwards() {
    let (mut model, now) = (Model::default(), Instant::now());
    let old = Process { index: 0, connections: 1, retired: true, ..Process::default() };
    model.find(1, old, false, now);
    model.fleet.want(wanted(2, &[80], 1));
    model.settle(now);
    model.alive.values_mut().for_each(|it| it.connections = 1);
    assert_eq!(model.alive[&1].deadline, None, "an upgrade leaves it its time");

    model.fleet.want(drained(5_000, 1));
    let expected = [
        Action::Unlisten { worker: 2, address: address(80) },
        Action::Unlisten { worker: 3, address: address(80) },
        Action::Retire { worker: 1, deadline: Some(5_000) },
        Action::Retire { worker: 2, deadline: Some(5_000) },
        Action::Retire { worker: 3, deadline: Some(5_000) },
    ];
    let actions = model.fleet.step(now);
    assert_eq!(actions, expected);
    actions.into_iter().for_each(|action| model.act(action, now));
    assert_eq!(model.fleet.step(now), [], "once");
    model.end(2, now);
    model.settle(now);
    assert_eq!(model.starts.len(), 2, "nobody follows");

    model.fleet.want(drained(6_000, 2));
    model.settle(now);
    assert!(model.alive.values().all(|it| it.deadline == Some(6_000)), "{:?}", model.alive);
    model.fleet.want(wanted(2, &[80], 3));
    model.settle(now);
    assert_eq!(model.starts[2..], [(4, 0), (5, 1)]);
    assert!(model.fleet.is_serving());
    assert!(model.alive[&1].retired && model.alive[&3].deadline == Some(6_000), "no way back");
}

#[test]
fn the_next_agent_goes_on_with_a_drain() {
    let (mut fleet, now) = (Fleet::default(), Instant::now());
    for (worker, retired, sockets) in [(1, true, 0), (2, false, 1)] {
        fleet.found(worker, 0, true, now);
        fleet.greeted(worker, retired, sockets, true);
    }
    fleet.step(now);
    fleet.want(drained(5_000, 1));
    let actions = fleet.step(now);
    assert!(actions.contains(&Action::Retire { worker: 1, deadline: Some(5_000) }), "{actions:?}");
    fleet.collected(2, address(80));
    let expected = [
        Action::Unlisten { worker: 2, address: address(80) },
        Action::Settings { worker: 2 },
        Action::Retire { worker: 2, deadline: Some(5_000) },
    ];
    assert_eq!(fleet.step(now), expected);
}

#[derive(Clone, Debug)]
enum Happening {
    Want(u16, BTreeSet<u16>),
    Drain(u64),
    Settings,
    Crash(prop::sample::Index),
    ConnectionsEnd(prop::sample::Index),
    Wait(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (0u16..4, prop::collection::btree_set(1u16..5, 0..4))
            .prop_map(|(workers, listeners)| Happening::Want(workers, listeners)),
        (1u64..4).prop_map(Happening::Drain),
        Just(Happening::Settings),
        any::<prop::sample::Index>().prop_map(Happening::Crash),
        any::<prop::sample::Index>().prop_map(Happening::ConnectionsEnd),
        (1u64..20_000).prop_map(Happening::Wait),
    ]
}

proptest! {
    /// Whatever happens: in the end each place has one worker with the newest settings and all sockets, and nobody else
    /// holds any.
    #[test]
    fn in_the_end_all_is_as_wanted(
        found in prop::collection::vec((0u16..4, any::<bool>(), any::<bool>(), prop::collection::btree_set(1u16..5, 0..4)), 0..5),
        happenings in prop::collection::vec(happening(), 0..30),
    ) {
        let (mut model, mut now) = (Model::default(), Instant::now());
        for (n, (index, current, retired, listens)) in found.into_iter().enumerate() {
            let listens = if retired { BTreeSet::new() } else { listens.into_iter().map(address).collect() };
            let process = Process { index, listens, retired, connections: 1, ..Process::default() };
            model.find(n as u32 + 1, process, current, now);
        }
        model.settle(now);
        let mut want = wanted(2, &[1], 1);
        model.fleet.want(want.clone());
        for happening in happenings {
            model.settle(now);
            let alive: Vec<_> = model.alive.keys().copied().collect();
            match happening {
                Happening::Want(workers, listeners) => {
                    let listeners: Vec<_> = listeners.into_iter().collect();
                    want = wanted(workers, &listeners, want.revision + 1);
                    model.fleet.want(want.clone());
                }
                Happening::Drain(deadline) => {
                    want = drained(deadline, want.revision + 1);
                    model.fleet.want(want.clone());
                }
                Happening::Settings => {
                    want.revision += 1;
                    model.fleet.want(want.clone());
                }
                Happening::Crash(which) if !alive.is_empty() => model.end(*which.get(&alive), now),
                Happening::ConnectionsEnd(which) if !alive.is_empty() => {
                    let worker = *which.get(&alive);
                    model.alive.get_mut(&worker).unwrap().connections = 0;
                    if model.alive[&worker].retired {
                        model.end(worker, now);
                    }
                }
                Happening::Crash(_) | Happening::ConnectionsEnd(_) => {}
                Happening::Wait(millis) => now += Duration::from_millis(millis),
            }
        }
        model.settle(now);
        for _ in 0..10 {
            let Some(due) = model.fleet.due() else { break };
            now = now.max(due);
            model.settle(now);
        }
        prop_assert_eq!(model.fleet.due(), None);
        prop_assert!(model.fleet.is_serving());
        for index in 0..5 {
            prop_assert_eq!(model.serving(index).len(), usize::from(index < want.workers));
        }
        for it in model.alive.values() {
            prop_assert_eq!(it.revision, Some(want.revision));
            prop_assert!(want.deadline.is_none() || it.retired && it.deadline == want.deadline);
            prop_assert_eq!(&it.listens, if it.retired { const { &BTreeSet::new() } } else { &want.listeners });
        }
    }
}
