//! The thread which walks the flow tables: flows age, the doomed are reset, ids become free.
//!
//! A thread of its own, since a walk through a million flows takes half a second of a processor. It never waits for the
//! agent: it takes the newest [`Roster`] at each step, and leaves its newest [`Report`] where whoever wants it looks.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hash,
    io,
    net::IpAddr,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use aya::Pod;
use lb_common::{addr::Tuple, flow::Flow, handshake::Handshake};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use super::{
    ended::{Counts, Teller},
    resets,
    roster::{Current, Roster},
};
use crate::{
    bpf::{PinDir, sys::now_ticks},
    flows::{
        Census, KernelTable, Load, Paces, ResetOrder, Resets, Step, Sweeper,
        aging::is_before,
        pacer::BURSTS_PER_SECOND,
        rest,
        table::{self, Family, Position, Value},
    },
    reset::ResetSender,
};

/// What a walk through all tables found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// That of the roster with which the walk before this one began.
    pub generation: u64,
    /// The backends which some entry named, in this walk or the one before: an entry may move between the tables,
    /// either way, and be in neither while a single walk looks there.
    pub referenced: BTreeSet<u16>,
    /// Connections by backend.
    pub connections: BTreeMap<u16, u64>,
    /// Those of them that are spliced, without what is over.
    pub spliced: BTreeMap<u16, u64>,
    /// When the walk before this one began, in ticks; none if this is the first.
    pub began: Option<u32>,
    /// When the oldest connection of each backend was created, in ticks: of those that this walk or the one before has seen.
    pub oldest: BTreeMap<u16, u32>,
    /// All of these by how far they have come, and handshakes.
    pub loads: BTreeMap<u16, Load>,
    /// How spliced connections have ended since the agent started.
    pub ended: Counts,
    /// Entries of `FLOWS4` and `FLOWS6`.
    pub flows: [u64; 2],
    /// Entries of `HANDSHAKES4` and `HANDSHAKES6`.
    pub handshakes: [u64; 2],
    /// What became of connections since the agent started.
    pub totals: Totals,
}

/// Connections that left the tables by the agent's doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Idle for too long: both ends were told.
    pub expired: u64,
    /// Over, and forgotten.
    pub closed: u64,
    /// Handshakes that were never completed, and are forgotten.
    pub abandoned: u64,
    /// Halves that were removed.
    pub orphans: u64,
    /// Reset because their backend was down or gone.
    pub reset: u64,
    /// Reset because their backend or the edge drained.
    pub drained: u64,
    /// RST packets that could not be sent.
    pub unsent: u64,
}

/// A handle on the thread. Dropping it ends the thread and waits for it.
pub struct Handle {
    shared: Arc<Shared>,
    reports: watch::Receiver<Arc<Report>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    roster: Arc<Current>,
    stop: AtomicBool,
    hurry: Mutex<bool>,
    woken: Condvar,
}

/// Starts the thread. It sends from the network namespace of the caller.
pub fn start(pins: &PinDir, roster: Arc<Current>, teller: Teller) -> Result<Handle> {
    let shared = Arc::new(Shared {
        roster,
        stop: AtomicBool::new(false),
        hurry: Mutex::new(false),
        woken: Condvar::new(),
    });
    let (publish, reports) = watch::channel(Arc::default());
    let sweep = Sweep {
        v4: Tables::open(pins)?,
        v6: Tables::open(pins)?,
        sender: ResetSender::open()?,
        teller,
        paces: Paces::new(1),
        start: Instant::now(),
        totals: Totals::default(),
        before: Seen::default(),
        v6_first: false,
        shared: Arc::clone(&shared),
    };
    let thread = thread::Builder::new()
        .name("sweeper".into())
        .spawn(move || sweep.run(&publish))
        .context("cannot start the sweeper's thread")?;
    Ok(Handle { shared, reports, thread: Some(thread) })
}

impl Handle {
    /// Begins a walk now: flows are waiting to be reset.
    pub fn hurry(&self) {
        *self.shared.hurry.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.woken.notify_one();
    }

    /// The report of each walk, as it ends.
    #[must_use]
    pub fn reports(&self) -> watch::Receiver<Arc<Report>> {
        self.reports.clone()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.woken.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits; whether a walk is wanted at once.
    fn rest(&self, at_most: Duration) -> bool {
        let hurry = self.hurry.lock().unwrap_or_else(PoisonError::into_inner);
        let waited =
            self.woken.wait_timeout_while(hurry, at_most, |hurry| !*hurry && !self.stopped());
        let (mut hurry, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *hurry)
    }
}

/// What one walk alone has seen.
#[derive(Default)]
struct Seen {
    generation: u64,
    began: Option<u32>,
    referenced: BTreeSet<u16>,
    oldest: BTreeMap<u16, u32>,
}

struct Sweep {
    v4: Tables<lb_common::addr::V4>,
    v6: Tables<lb_common::addr::V6>,
    sender: ResetSender,
    teller: Teller,
    paces: Paces,
    /// Their zero.
    start: Instant,
    totals: Totals,
    before: Seen,
    /// Who resets first, in turns: the edge's share must not always go to the same.
    v6_first: bool,
    shared: Arc<Shared>,
}

impl Sweep {
    fn run(mut self, publish: &watch::Sender<Arc<Report>>) {
        let mut last_error = String::new();
        while !self.shared.stopped() {
            let before = run_time();
            match self.walk() {
                Ok(Some(report)) => {
                    last_error.clear();
                    publish.send_replace(Arc::new(report));
                }
                Ok(None) => return,
                // Once for each that differs: the next walk is in a few seconds.
                Err(error) if error.to_string() != last_error => {
                    tracing::error!(%error, "the flow tables cannot be walked");
                    last_error = error.to_string();
                }
                Err(_) => {}
            }
            self.rest(rest::after(run_time().saturating_sub(before)));
        }
    }

    /// Walks all tables; nothing if the agent stops meanwhile.
    fn walk(&mut self) -> io::Result<Option<Report>> {
        let generation = self.shared.roster.get().generation;
        let mut seen = Seen { generation, began: Some(now_ticks()), ..Seen::default() };
        let mut report = Report::default();
        // Handshakes come first, since they become flows: what has left the one table is found in the other.
        for kind in [Kind::Handshakes, Kind::Flows] {
            let mut done = [false; 2];
            while done != [true; 2] {
                if self.shared.stopped() {
                    return Ok(None);
                }
                let roster = self.shared.roster.get();
                let steps = [
                    if done[0] { None } else { self.v4.step(kind, &roster)? },
                    if done[1] { None } else { self.v6.step(kind, &roster)? },
                ];
                for (family, census) in steps.into_iter().enumerate() {
                    let Some(census) = census else { continue };
                    seen.referenced.extend(census.referenced());
                    report.take(kind, family, &census);
                    self.totals.take(&census);
                    done[family] = true;
                }
                self.reset_due(&roster)?;
                self.tell_ended(&roster);
            }
        }
        let oldest = report.loads.iter().filter_map(|(id, load)| Some((*id, load.oldest?)));
        seen.oldest = oldest.collect();
        let before = std::mem::replace(&mut self.before, seen);
        report.generation = before.generation;
        report.began = before.began;
        report.oldest.clone_from(&before.oldest);
        for (&id, &created) in &self.before.oldest {
            let oldest = report.oldest.entry(id).or_insert(created);
            if is_before(created, *oldest) {
                *oldest = created;
            }
        }
        report.referenced = &before.referenced | &self.before.referenced;
        report.totals = self.totals;
        report.ended.clone_from(self.teller.counts());
        Ok(Some(report))
    }

    /// Resets flows of the doomed, and idle ones, as far as the rate allows it, and sends what was ordered.
    fn reset_due(&mut self, roster: &Roster) -> io::Result<()> {
        self.paces.set_rate(roster.reset_rate.max(1));
        let at = self.start.elapsed();
        self.v6_first = !self.v6_first;
        for v6 in [self.v6_first, !self.v6_first] {
            let pace = (&mut self.paces, at);
            let resets = match v6 {
                true => self.v6.reset_due(roster, pace)?,
                false => self.v4.reset_due(roster, pace)?,
            };
            self.totals.reset += resets.doomed;
            self.totals.drained += resets.drained;
            self.totals.expired += resets.expired;
        }
        self.totals.unsent +=
            self.v4.send(&self.sender, roster) + self.v6.send(&self.sender, roster);
        Ok(())
    }

    fn tell_ended(&mut self, roster: &Roster) {
        let now = SystemTime::now();
        self.teller.tell(self.v4.flows.sweeper.take_ended(), roster, now);
        self.teller.tell(self.v6.flows.sweeper.take_ended(), roster, now);
    }

    /// Until the next walk; resets go on meanwhile.
    fn rest(&mut self, rest: Duration) {
        let end = Instant::now() + rest;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let waiting = self.v4.waiting() + self.v6.waiting();
            let next = match waiting {
                0 => left,
                _ => left.min(Duration::from_secs(1) / BURSTS_PER_SECOND),
            };
            if left.is_zero() || self.shared.rest(next) || self.shared.stopped() {
                return;
            }
            if waiting > 0 {
                let roster = self.shared.roster.get();
                if let Err(error) = self.reset_due(&roster) {
                    tracing::error!(%error, "flows cannot be reset");
                    return;
                }
                self.tell_ended(&roster);
            }
        }
    }
}

/// What this thread has taken of a processor.
fn run_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Into::into).unwrap_or_default()
}

/// The two kinds of tables.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Handshakes,
    Flows,
}

/// A table, and how far the walk through it has come.
struct Swept<A, V> {
    table: KernelTable<A, V>,
    sweeper: Sweeper<A, Position<A>>,
}

/// The tables of one IP version.
struct Tables<A: Family> {
    flows: Swept<A, Flow<A>>,
    handshakes: Swept<A, Handshake<A>>,
    orders: Vec<ResetOrder<A>>,
}

impl<A: Family + Hash, V: Value<A>> Swept<A, V>
where
    Tuple<A>: Pod,
{
    fn new(table: KernelTable<A, V>) -> Self {
        Self { table, sweeper: Sweeper::default() }
    }

    /// The census at the end of a walk.
    fn step(&mut self, roster: &Roster) -> io::Result<Option<Census>> {
        let policy = |id| roster.policy(id);
        match self.sweeper.step(&mut self.table, policy, now_ticks())? {
            Step::More => Ok(None),
            Step::Done(census) => Ok(Some(census)),
        }
    }

    fn reset_due(
        &mut self,
        roster: &Roster,
        pace: (&mut Paces, Duration),
        orders: &mut Vec<ResetOrder<A>>,
    ) -> io::Result<Resets> {
        let policy = |id| roster.policy(id);
        self.sweeper.reset_due(&mut self.table, policy, now_ticks(), pace, orders)
    }
}

impl<A: Family + Hash + Into<IpAddr>> Tables<A>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
    Handshake<A>: Pod,
{
    fn open(pins: &PinDir) -> Result<Self> {
        Ok(Self {
            flows: Swept::new(table::flows(pins).context(A::FLOWS)?),
            handshakes: Swept::new(table::handshakes(pins).context(A::HANDSHAKES)?),
            orders: Vec::new(),
        })
    }

    /// One step of a walk through the tables of a kind; the census at its end.
    fn step(&mut self, kind: Kind, roster: &Roster) -> io::Result<Option<Census>> {
        match kind {
            Kind::Handshakes => self.handshakes.step(roster),
            Kind::Flows => self.flows.step(roster),
        }
    }

    fn reset_due(&mut self, roster: &Roster, pace: (&mut Paces, Duration)) -> io::Result<Resets> {
        let (paces, at) = pace;
        let mut resets = self.handshakes.reset_due(roster, (&mut *paces, at), &mut self.orders)?;
        resets += self.flows.reset_due(roster, (paces, at), &mut self.orders)?;
        Ok(resets)
    }

    /// Connections that wait to be reset.
    fn waiting(&self) -> usize {
        self.handshakes.sweeper.waiting() + self.flows.sweeper.waiting()
    }

    /// Sends what was ordered; how many could not be sent.
    fn send(&mut self, sender: &ResetSender, roster: &Roster) -> u64 {
        let mut unsent = 0;
        for order in self.orders.drain(..) {
            for reset in resets::of(&order, roster.way(order.backend)) {
                if let Err(error) = resets::send(sender, reset) {
                    tracing::debug!(%error, from = %reset.src, to = %reset.dst, "reset not sent");
                    unsent += 1;
                }
            }
        }
        unsent
    }
}

impl Report {
    /// Whether all connections were looked for since `at`, in ticks, and none of this backend's is from before.
    #[must_use]
    pub fn has_none_before(&self, at: u32, backend: u16) -> bool {
        self.began.is_some_and(|began| is_before(at, began))
            && self.oldest.get(&backend).is_none_or(|oldest| !is_before(*oldest, at))
    }

    fn take(&mut self, kind: Kind, family: usize, census: &Census) {
        match kind {
            Kind::Handshakes => self.handshakes[family] = census.entries,
            Kind::Flows => self.flows[family] = census.entries,
        }
        for id in census.referenced() {
            *self.connections.entry(id).or_default() += u64::from(census.connections(id));
            *self.spliced.entry(id).or_default() += u64::from(census.spliced(id));
            *self.loads.entry(id).or_default() += census.load(id);
        }
    }
}

impl Totals {
    fn take(&mut self, census: &Census) {
        self.closed += census.closed;
        self.abandoned += census.abandoned;
        self.orphans += census.orphans;
    }
}
