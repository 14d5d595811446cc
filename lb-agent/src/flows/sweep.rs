//! Walks a flow table or a handshake table, a few thousand entries at a time, and lets go of what has aged.
//!
//! A walk needs no memory per flow. Flows of doomed backends are noted and reset between the steps, at
//! a paced rate: their clients all come back at once otherwise.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
    io,
    time::Duration,
};

use lb_common::addr::{Addr, Tuple};

use super::{
    aging::{self, Connection, Entry, ORPHAN_TICKS, Policy, ResetOrder, Stage, Verdict},
    pacer::Pacer,
    table::FlowTable,
};

/// Most flows that are noted for a reset, or as half a connection; the next walk finds the others.
const MAX_WAITING: usize = 65_536;

/// Of all pairs, the share that is checked for completeness in one walk: a look at each partner of a
/// million flows would take a second, and half a connection is a rare accident.
const CHECKED_PAIRS: u16 = 16;

/// What a walk found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Entries that were seen.
    pub entries: u64,
    /// Connections that ended for being idle.
    pub expired: u64,
    /// Connections that were over and are forgotten.
    pub closed: u64,
    /// Handshakes that nobody will complete, and are forgotten.
    pub abandoned: u64,
    /// Halves of connections that were removed.
    pub orphans: u64,
    /// Connections of doomed backends that have not been noted for a reset, for want of room.
    pub deferred: u64,
    /// Of each backend that some entry names.
    backends: BTreeMap<u16, u32>,
    connections: BTreeMap<u16, u32>,
}

impl Census {
    /// Whether an entry named this backend. If not, and if the backend was in no ring when the walk
    /// began, then its id is free, as far as this table is concerned.
    pub fn is_referenced(&self, backend: u16) -> bool {
        self.backends.contains_key(&backend)
    }

    /// Ids of the backends which some entry names, in order.
    pub fn referenced(&self) -> impl Iterator<Item = u16> {
        self.backends.keys().copied()
    }

    /// Connections of this backend; handshakes under way are none.
    pub fn connections(&self, backend: u16) -> u32 {
        self.connections.get(&backend).copied().unwrap_or(0)
    }

    fn count<A: Addr>(&mut self, entry: &Entry<A>) {
        self.entries += 1;
        *self.backends.entry(entry.flow.backend).or_default() += 1;
        if entry.is_clients() && entry.stage != Stage::HalfOpen {
            *self.connections.entry(entry.flow.backend).or_default() += 1;
        }
    }
}

/// How a step ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The walk is not over.
    More,
    /// The walk is over; the next step begins another one.
    Done(Census),
}

/// Half a connection, as it was first come across.
struct Orphan {
    /// The entry's own; another one is another connection.
    created: u32,
    /// Ticks.
    since: u32,
    /// The walk that last came across it.
    walk: u16,
}

/// Walks one table again and again.
pub struct Sweeper<A, P> {
    position: Option<P>,
    walk: u16,
    census: Census,
    batch: Vec<Entry<A>>,
    waiting: VecDeque<Tuple<A>>,
    noted: HashSet<Tuple<A>>,
    orphans: HashMap<Tuple<A>, Orphan>,
}

impl<A, P> Default for Sweeper<A, P> {
    fn default() -> Self {
        Self {
            position: None,
            walk: 0,
            census: Census::default(),
            batch: Vec::new(),
            waiting: VecDeque::new(),
            noted: HashSet::new(),
            orphans: HashMap::new(),
        }
    }
}

impl<A: Addr + Hash, P: Copy> Sweeper<A, P> {
    /// Looks at the next batch of entries, at the time `now` in ticks. `policy` knows how the flows of
    /// a backend age; an id that is not in the config is doomed. What has to be sent is added to
    /// `orders`. After an error, the next step begins another walk.
    pub fn step(
        &mut self,
        table: &mut impl FlowTable<A, Position = P>,
        policy: impl Fn(u16) -> Policy,
        now: u32,
        orders: &mut Vec<ResetOrder<A>>,
    ) -> io::Result<Step> {
        let mut batch = std::mem::take(&mut self.batch);
        let from = self.position.take();
        if from.is_none() {
            self.census = Census::default();
            self.walk = self.walk.wrapping_add(1);
        }
        let next = table.batch(from, &mut batch)?;
        for entry in &batch {
            self.census.count(entry);
            self.look(table, entry, &policy(entry.flow.backend), now, orders)?;
        }
        self.batch = batch;
        self.position = next;
        if next.is_some() {
            return Ok(Step::More);
        }
        self.orphans.retain(|_, orphan| orphan.walk == self.walk);
        Ok(Step::Done(std::mem::take(&mut self.census)))
    }

    /// Resets connections of doomed backends as far as `pacer` allows it at the time `at`, which is the
    /// pacer's own. Returns how many there were. A backend that has come back keeps its connections.
    pub fn reset_doomed(
        &mut self,
        table: &mut impl FlowTable<A, Position = P>,
        policy: impl Fn(u16) -> Policy,
        now: u32,
        (pacer, at): (&mut Pacer, Duration),
        orders: &mut Vec<ResetOrder<A>>,
    ) -> io::Result<usize> {
        let mut count = 0;
        while let Some(&key) = self.waiting.front() {
            let connection = connection(table, &key)?;
            let doomed = connection.filter(|connection| {
                let policy = policy(connection.entry.flow.backend);
                connection.judge(&policy, now) == Verdict::Reset
            });
            if let Some(connection) = doomed {
                if !pacer.take(at) {
                    break;
                }
                orders.push(connection.reset_order());
                remove(table, &connection)?;
                count += 1;
            }
            self.waiting.pop_front();
            self.noted.remove(&key);
        }
        Ok(count)
    }

    /// Connections that wait for [`Self::reset_doomed`].
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn look(
        &mut self,
        table: &mut impl FlowTable<A>,
        entry: &Entry<A>,
        policy: &Policy,
        now: u32,
        orders: &mut Vec<ResetOrder<A>>,
    ) -> io::Result<()> {
        let checked = (entry.key.sport ^ entry.key.dport ^ self.walk).is_multiple_of(CHECKED_PAIRS)
            || self.orphans.contains_key(&entry.key);
        if !checked && !entry.may_have_aged(policy, now) {
            return Ok(());
        }
        // The batch is a copy, and packets have come since. A packet that comes between this look and
        // the removal, a microsecond later, is lost with its flow: BPF maps have no better way.
        let Some(connection) = connection(table, &entry.key)? else { return Ok(()) };
        if connection.is_broken() {
            if self.is_orphan(&connection.entry, now) {
                remove(table, &connection)?;
                self.census.orphans += 1;
            }
            return Ok(());
        }
        match connection.judge(policy, now) {
            Verdict::Keep => {}
            Verdict::Expire => {
                orders.push(connection.reset_order());
                remove(table, &connection)?;
                self.census.expired += 1;
            }
            Verdict::Close => {
                remove(table, &connection)?;
                self.census.closed += 1;
            }
            Verdict::Abandon => {
                remove(table, &connection)?;
                self.census.abandoned += 1;
            }
            Verdict::Reset => self.note(&connection),
        }
        Ok(())
    }

    /// Whether an entry that has no partner has had none for long. The data plane may be in between
    /// two changes at the first look.
    fn is_orphan(&mut self, entry: &Entry<A>, now: u32) -> bool {
        let created = entry.flow.created;
        match self.orphans.get_mut(&entry.key) {
            Some(orphan) if orphan.created == created => {
                orphan.walk = self.walk;
                aging::age(now, orphan.since) > ORPHAN_TICKS
            }
            _ => {
                if self.orphans.len() < MAX_WAITING {
                    self.orphans.insert(entry.key, Orphan { created, since: now, walk: self.walk });
                }
                false
            }
        }
    }

    fn note(&mut self, connection: &Connection<A>) {
        let Some(key) = connection.keys().next() else { return };
        if self.noted.contains(&key) {
            return;
        }
        if self.waiting.len() >= MAX_WAITING {
            // Each pair is met twice.
            self.census.deferred += u64::from(connection.entry.is_clients());
            return;
        }
        self.noted.insert(key);
        self.waiting.push_back(key);
    }
}

/// The connection that an entry belongs to, as the table has it now.
fn connection<A: Addr>(
    table: &impl FlowTable<A>,
    key: &Tuple<A>,
) -> io::Result<Option<Connection<A>>> {
    let Some(entry) = table.get(key)? else { return Ok(None) };
    let partner = match entry.partner_key() {
        Some(key) => table.get(&key)?,
        None => None,
    };
    // A tuple that meanwhile belongs to another connection is no partner.
    let partner = partner.filter(|partner| entry.is_partner(partner));
    Ok(Some(Connection { entry, partner }))
}

fn remove<A: Addr>(table: &mut impl FlowTable<A>, connection: &Connection<A>) -> io::Result<()> {
    for key in connection.keys() {
        table.remove(&key)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
