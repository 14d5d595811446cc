//! Which workers there should be, and what each of them is to be told. Pure: no clock, no I/O.
//!
//! Each place (`index`) has one worker that serves; those that were there before it finish what they have. Events
//! change what is known, and [`Fleet::step`] says what follows from it: doing that twice does nothing more.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use tokio::time::Instant;

use super::backoff::Backoff;

/// A worker that has not said what it must within this time is not going to.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Names a worker among all that ever had a socket in the edge's directory: later ones have higher numbers.
pub type Generation = u32;

/// What there should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub workers: u16,
    pub listeners: BTreeSet<SocketAddr>,
    /// Changes with the settings.
    pub revision: u64,
    /// Who retires, or has retired, is to end by then, in milliseconds of Unix time. None: with its last connection.
    pub deadline: Option<u64>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Start {
        worker: Generation,
        index: u16,
    },
    /// Have it send its listening sockets.
    Collect {
        worker: Generation,
    },
    Unlisten {
        worker: Generation,
        address: SocketAddr,
    },
    Settings {
        worker: Generation,
    },
    /// With the socket that its place has for the address.
    Listen {
        worker: Generation,
        address: SocketAddr,
    },
    /// Also for one that has retired, if the deadline is another.
    Retire {
        worker: Generation,
        deadline: Option<u64>,
    },
    /// It does not answer.
    Kill {
        worker: Generation,
    },
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It has not greeted yet.
    Starting,
    /// It has outlived an agent, and sends its listening sockets.
    Joining,
    /// It has yet to say that it is ready.
    Greeted,
    Serving,
    /// It finishes what it has.
    Retired,
}

impl Phase {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Joining => "joining",
            Self::Greeted => "greeted",
            Self::Serving => "serving",
            Self::Retired => "retired",
        }
    }
}

/// One process.
#[derive(Clone, Debug)]
struct Worker {
    index: u16,
    /// Whether its program is this agent's.
    current: bool,
    /// Whether it can be told anything but to retire.
    understands: bool,
    phase: Phase,
    since: Instant,
    /// Sockets that it has yet to send.
    awaited: u32,
    collecting: bool,
    killed: bool,
    listens: BTreeSet<SocketAddr>,
    settings: Option<u64>,
    /// As it was told.
    deadline: Option<u64>,
}

impl Worker {
    fn is_told(&self) -> bool {
        self.understands && matches!(self.phase, Phase::Greeted | Phase::Serving | Phase::Retired)
    }
}

/// A place among the sockets of every listener.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    backoff: Backoff,
    restarts: u64,
    start_at: Option<Instant>,
}

/// All workers of an edge.
#[derive(Debug, Default)]
pub struct Fleet {
    wanted: Option<Wanted>,
    workers: BTreeMap<Generation, Worker>,
    places: BTreeMap<u16, Place>,
    last: Generation,
}

impl Fleet {
    /// What there should be from now on. Until it is said, no worker is started and none retires.
    pub fn want(&mut self, wanted: Wanted) {
        self.wanted = Some(wanted);
    }

    /// A worker that outlived an agent. `current`: its program is this agent's.
    pub fn found(&mut self, worker: Generation, index: u16, current: bool, now: Instant) {
        self.last = self.last.max(worker);
        self.workers.insert(worker, Worker::new(index, current, now));
    }

    /// It said who it is: whether it retires, told or not, and how many sockets it will send if it is asked to. One that
    /// does not `understand` this agent can only be told to retire.
    pub fn greeted(&mut self, worker: Generation, retired: bool, sockets: u32, understands: bool) {
        let Some(it) = self.workers.get_mut(&worker) else { return };
        it.understands = understands;
        it.current &= understands;
        it.awaited = sockets;
        it.phase = match (retired, sockets) {
            (true, _) => Phase::Retired,
            (false, 0) => Phase::Greeted,
            (false, _) => Phase::Joining,
        };
    }

    /// One of its sockets has arrived.
    pub fn collected(&mut self, worker: Generation, address: SocketAddr) {
        if let Some(it) = self.workers.get_mut(&worker) {
            it.listens.insert(address);
            it.sent_socket();
        }
    }

    /// One has arrived that it was told to give up.
    pub fn declined(&mut self, worker: Generation) {
        if let Some(it) = self.workers.get_mut(&worker) {
            it.sent_socket();
        }
    }

    /// It has the settings, and all its sockets accept.
    pub fn ready(&mut self, worker: Generation) {
        if let Some(it) = self.workers.get_mut(&worker)
            && it.phase == Phase::Greeted
        {
            it.phase = Phase::Serving;
        }
    }

    /// It is no more, or could not be started. Says when the next one will be, if it was to go on.
    pub fn ended(&mut self, worker: Generation, now: Instant) -> Option<Duration> {
        let it = self.workers.remove(&worker)?;
        if it.phase == Phase::Retired || !it.current {
            return None;
        }
        let place = self.places.entry(it.index).or_default();
        let wait = place.backoff.ended(now.saturating_duration_since(it.since));
        place.restarts += 1;
        place.start_at = Some(now + wait);
        Some(wait)
    }

    /// What is to be done now.
    pub fn step(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for (&worker, it) in &mut self.workers {
            if it.phase == Phase::Joining && !it.collecting {
                it.collecting = true;
                actions.push(Action::Collect { worker });
            }
            let late = now.saturating_duration_since(it.since) >= PATIENCE;
            if it.phase <= Phase::Joining && late && !it.killed {
                it.killed = true;
                actions.push(Action::Kill { worker });
            }
        }
        let Some(wanted) = self.wanted.clone() else { return actions };
        for index in 0..wanted.workers {
            self.start(index, now, &mut actions);
        }
        for (&worker, it) in &mut self.workers {
            it.tell(worker, &wanted, &mut actions);
        }
        self.retire(&wanted, &mut actions);
        actions
    }

    fn start(&mut self, index: u16, now: Instant, actions: &mut Vec<Action>) {
        if self.newest(index).is_some() {
            return;
        }
        let place = self.places.entry(index).or_default();
        if place.start_at.is_some_and(|at| at > now) {
            return;
        }
        place.start_at = None;
        self.last += 1;
        let worker = self.last;
        self.workers.insert(worker, Worker::new(index, true, now));
        actions.push(Action::Start { worker, index });
    }

    /// The worker that has a place, or will.
    fn newest(&self, index: u16) -> Option<Generation> {
        let in_place = self.workers.iter().rev().filter(|(_, it)| it.index == index);
        let mut able = in_place.filter(|(_, it)| it.current && it.phase != Phase::Retired);
        able.next().map(|(&worker, _)| worker)
    }

    /// Who has no place any more, or has a successor that serves; and by when those end that have retired.
    fn retire(&mut self, wanted: &Wanted, actions: &mut Vec<Action>) {
        let successors: BTreeMap<u16, Generation> = (0..wanted.workers)
            .filter_map(|index| Some((index, self.newest(index)?)))
            .filter(|(_, worker)| self.workers[worker].phase == Phase::Serving)
            .collect();
        for (&worker, it) in &mut self.workers {
            let over = match successors.get(&it.index) {
                Some(&successor) => worker != successor,
                None => it.index >= wanted.workers,
            };
            let retires = over && matches!(it.phase, Phase::Greeted | Phase::Serving);
            if retires {
                it.phase = Phase::Retired;
                // A socket that somebody holds without accepting would be a trap for clients.
                if it.understands {
                    let listens = std::mem::take(&mut it.listens);
                    let unlisten = |address| Action::Unlisten { worker, address };
                    actions.extend(listens.into_iter().map(unlisten));
                }
            }
            // A deadline that it has been told stays, even if there is none any more.
            let deadline = wanted.deadline.or(it.deadline);
            if retires || it.phase == Phase::Retired && deadline != it.deadline {
                it.deadline = deadline;
                actions.push(Action::Retire { worker, deadline });
            }
        }
    }

    /// When [`Fleet::step`] is to be called though nothing has happened.
    pub fn due(&self) -> Option<Instant> {
        let wanted = self.wanted.as_ref().map_or(0, |wanted| wanted.workers);
        let places = self.places.range(..wanted);
        let starts = places.filter_map(|(_, place)| place.start_at);
        let mute = self.workers.values().filter(|it| it.phase <= Phase::Joining && !it.killed);
        starts.chain(mute.map(|it| it.since + PATIENCE)).min()
    }

    /// Whether every worker serves that should.
    pub fn is_serving(&self) -> bool {
        let Some(wanted) = &self.wanted else { return false };
        (0..wanted.workers).all(|index| {
            let newest = self.newest(index).map(|worker| &self.workers[&worker]);
            newest.is_some_and(|it| {
                it.phase == Phase::Serving && it.settings == Some(wanted.revision)
            })
        })
    }

    /// Whether nobody is awaited who outlived an agent.
    pub fn has_joined(&self) -> bool {
        self.workers.values().all(|it| it.phase > Phase::Joining)
    }

    /// All workers with their places.
    pub fn workers(&self) -> impl Iterator<Item = (Generation, u16, Phase)> {
        self.workers.iter().map(|(&worker, it)| (worker, it.index, it.phase))
    }

    /// How often a place's worker ended unasked.
    pub fn restarts(&self, index: u16) -> u64 {
        self.places.get(&index).map_or(0, |place| place.restarts)
    }
}

impl Worker {
    fn new(index: u16, current: bool, since: Instant) -> Self {
        Self {
            index,
            current,
            understands: true,
            phase: Phase::Starting,
            since,
            awaited: 0,
            collecting: false,
            killed: false,
            listens: BTreeSet::new(),
            settings: None,
            deadline: None,
        }
    }

    fn sent_socket(&mut self) {
        self.awaited = self.awaited.saturating_sub(1);
        if self.phase == Phase::Joining && self.awaited == 0 {
            self.phase = Phase::Greeted;
        }
    }

    /// No socket without settings that know its address.
    fn tell(&mut self, worker: Generation, wanted: &Wanted, actions: &mut Vec<Action>) {
        if !self.is_told() {
            return;
        }
        let listens = self.phase != Phase::Retired;
        if listens {
            let surplus: Vec<_> = self.listens.difference(&wanted.listeners).copied().collect();
            for address in surplus {
                self.listens.remove(&address);
                actions.push(Action::Unlisten { worker, address });
            }
        }
        if self.settings != Some(wanted.revision) {
            self.settings = Some(wanted.revision);
            actions.push(Action::Settings { worker });
        }
        if listens && self.index < wanted.workers {
            for &address in wanted.listeners.difference(&self.listens.clone()) {
                self.listens.insert(address);
                actions.push(Action::Listen { worker, address });
            }
        }
    }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
