//! Walks a flow table or a handshake table, a few thousand entries at a time, and lets go of what has aged.
//!
//! A walk needs no memory per flow. Flows of doomed backends, and those that were idle for too long, are
//! noted and reset between the steps, at a paced rate: their clients all come back at once otherwise, be
//! it that a backend died, or that no agent was there for an hour to reset a few at a time.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
    io,
    ops::AddAssign,
    time::Duration,
};

use lb_common::{
    addr::{Addr, Tuple},
    flow::forward,
};

use super::{
    aging::{self, Connection, Doom, Entry, ORPHAN_TICKS, Policy, ResetOrder, Stage, Verdict},
    ended::{Ended, How},
    pacer::Paces,
    table::FlowTable,
};

/// Most flows that are noted for each kind of reset, or as half a connection; the next walk finds the others.
const MAX_WAITING: usize = 65_536;

/// Of all pairs, the share that is checked for completeness in one walk: a look at each partner of a
/// million flows would take a second, and half a connection is a rare accident.
const CHECKED_PAIRS: u16 = 16;

/// What a walk found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Entries that were seen.
    pub entries: u64,
    /// Connections that were over and are forgotten.
    pub closed: u64,
    /// Handshakes that nobody will complete, and are forgotten.
    pub abandoned: u64,
    /// Halves of connections that were removed, and what held connections for a splice that never came.
    pub orphans: u64,
    /// Connections that have not been noted for a reset, for want of room.
    pub deferred: u64,
    /// Of each backend that some entry names.
    backends: BTreeMap<u16, Load>,
}

/// Connections of a backend by how far they have come, in a table or in several. What one side has closed is still open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Forwarded by XDP, and under way to be established.
    pub handshakes: u32,
    /// Established and forwarded by XDP.
    pub open: u32,
    /// The same, and over: all that is left is to forget them.
    pub closing: u32,
    /// Spliced, and open.
    pub spliced: u32,
    /// Spliced, and over.
    pub spliced_closing: u32,
    /// When the oldest of those that could be reset was created, in ticks: neither handshakes nor what is over.
    pub oldest: Option<u32>,
}

impl Load {
    /// All but handshakes.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.open + self.closing + self.spliced + self.spliced_closing
    }

    fn count<A: Addr>(&mut self, entry: &Entry<A>) {
        if entry.stage != Stage::HalfOpen && !entry.flow.is_closing() {
            self.oldest = older(self.oldest, Some(entry.flow.created));
        }
        // What is held is still the sidecar's.
        if !entry.is_clients() || entry.is_held() {
            return;
        }
        let spliced = entry.flow.forward == forward::SPLICE;
        *match (entry.stage, spliced, entry.flow.is_closing()) {
            (Stage::HalfOpen, _, _) => &mut self.handshakes,
            (_, false, false) => &mut self.open,
            (_, false, true) => &mut self.closing,
            (_, true, false) => &mut self.spliced,
            (_, true, true) => &mut self.spliced_closing,
        } += 1;
    }
}

impl AddAssign for Load {
    fn add_assign(&mut self, other: Self) {
        self.handshakes += other.handshakes;
        self.open += other.open;
        self.closing += other.closing;
        self.spliced += other.spliced;
        self.spliced_closing += other.spliced_closing;
        self.oldest = older(self.oldest, other.oldest);
    }
}

/// The one that is before the other.
fn older(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    one.into_iter()
        .chain(other)
        .reduce(|one, other| if aging::is_before(other, one) { other } else { one })
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
        self.load(backend).connections()
    }

    /// Those of its connections that are spliced, and that their ends have not closed: load.
    pub fn spliced(&self, backend: u16) -> u32 {
        self.load(backend).spliced
    }

    /// All of it.
    pub fn load(&self, backend: u16) -> Load {
        self.backends.get(&backend).copied().unwrap_or_default()
    }

    fn count<A: Addr>(&mut self, entry: &Entry<A>) {
        self.entries += 1;
        if entry.is_note() {
            return;
        }
        self.backends.entry(entry.flow.backend).or_default().count(entry);
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

/// Connections that were reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resets {
    /// Because their backend was down or gone.
    pub doomed: u64,
    /// Because their backend or the edge drained.
    pub drained: u64,
    /// Because they were idle for too long.
    pub expired: u64,
}

impl AddAssign for Resets {
    fn add_assign(&mut self, other: Self) {
        self.doomed += other.doomed;
        self.drained += other.drained;
        self.expired += other.expired;
    }
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
    /// Keys of connections to be reset: of dead backends, whose clients hang, of what drains, by service, each at its own
    /// pace, and of the idle.
    doomed: VecDeque<Tuple<A>>,
    drained: BTreeMap<u16, VecDeque<Tuple<A>>>,
    idle: VecDeque<Tuple<A>>,
    /// All of them, to note each but once.
    noted: HashSet<Tuple<A>>,
    orphans: HashMap<Tuple<A>, Orphan>,
    ended: Vec<Ended<A>>,
}

impl<A, P> Default for Sweeper<A, P> {
    fn default() -> Self {
        Self {
            position: None,
            walk: 0,
            census: Census::default(),
            batch: Vec::new(),
            doomed: VecDeque::new(),
            drained: BTreeMap::new(),
            idle: VecDeque::new(),
            noted: HashSet::new(),
            orphans: HashMap::new(),
            ended: Vec::new(),
        }
    }
}

impl<A: Addr + Hash, P: Copy> Sweeper<A, P> {
    /// Looks at the next batch of entries, at the time `now` in ticks. `policy` knows how the flows of
    /// a backend age; an id that is not in the config is doomed. After an error, the next step begins
    /// another walk.
    pub fn step(
        &mut self,
        table: &mut impl FlowTable<A, Position = P>,
        policy: impl Fn(u16) -> Policy,
        now: u32,
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
            self.look(table, entry, &policy(entry.flow.backend), now)?;
        }
        self.batch = batch;
        self.position = next;
        if next.is_some() {
            return Ok(Step::More);
        }
        self.orphans.retain(|_, orphan| orphan.walk == self.walk);
        Ok(Step::Done(std::mem::take(&mut self.census)))
    }

    /// Resets connections that were noted, as far as `paces` allow it at the time `at`, which is their
    /// own; first those of doomed backends. A connection that has come to life since, or whose backend has,
    /// is kept. What has to be sent is added to `orders`.
    pub fn reset_due(
        &mut self,
        table: &mut impl FlowTable<A, Position = P>,
        policy: impl Fn(u16) -> Policy,
        now: u32,
        (paces, at): (&mut Paces, Duration),
        orders: &mut Vec<ResetOrder<A>>,
    ) -> io::Result<Resets> {
        let mut resets = Resets::default();
        let queues = [&mut self.doomed].into_iter().chain(self.drained.values_mut());
        for queue in queues.chain([&mut self.idle]) {
            while let Some(&key) = queue.front() {
                if let Some(connection) = connection(table, &key)? {
                    let verdict = connection.judge(&policy(connection.entry.flow.backend), now);
                    let due = match verdict {
                        Verdict::Reset(doom @ Doom::Dead) => Some((Some(doom), &mut resets.doomed)),
                        Verdict::Reset(doom) => Some((Some(doom), &mut resets.drained)),
                        Verdict::Expire => Some((None, &mut resets.expired)),
                        Verdict::Keep
                        | Verdict::Close
                        | Verdict::Abandon
                        | Verdict::Forget
                        | Verdict::Release => None,
                    };
                    if let Some((doom, count)) = due {
                        // Another queue may have a pace of its own.
                        if !paces.take(doom, at) {
                            break;
                        }
                        orders.push(connection.reset_order());
                        remove(table, &connection)?;
                        self.ended.extend(Ended::of(&connection, How::by_reset(doom), now));
                        *count += 1;
                    }
                }
                queue.pop_front();
                self.noted.remove(&key);
            }
        }
        self.drained.retain(|_, queue| !queue.is_empty());
        Ok(resets)
    }

    /// The spliced connections that have ended since this was asked last.
    pub fn take_ended(&mut self) -> Vec<Ended<A>> {
        std::mem::take(&mut self.ended)
    }

    /// Connections that wait for [`Self::reset_due`].
    pub fn waiting(&self) -> usize {
        let drained: usize = self.drained.values().map(VecDeque::len).sum();
        self.doomed.len() + drained + self.idle.len()
    }

    fn look(
        &mut self,
        table: &mut impl FlowTable<A>,
        entry: &Entry<A>,
        policy: &Policy,
        now: u32,
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
                self.ended.extend(Ended::of(&connection, How::Lost, now));
                self.census.orphans += 1;
            }
            return Ok(());
        }
        match connection.judge(policy, now) {
            Verdict::Keep => {}
            Verdict::Close => {
                remove(table, &connection)?;
                self.ended.extend(Ended::of(&connection, How::by_ends(&connection), now));
                self.census.closed += 1;
            }
            Verdict::Abandon => {
                remove(table, &connection)?;
                self.census.abandoned += 1;
            }
            Verdict::Forget => remove(table, &connection)?,
            Verdict::Release => {
                remove(table, &connection)?;
                self.census.orphans += 1;
            }
            Verdict::Reset(doom) => self.note(&connection, Some(doom)),
            Verdict::Expire => self.note(&connection, None),
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

    /// Notes it for a reset, doomed or idle.
    fn note(&mut self, connection: &Connection<A>, doom: Option<Doom>) {
        let Some(key) = connection.keys().next() else { return };
        if self.noted.contains(&key) {
            return;
        }
        let queue = match doom {
            Some(Doom::Dead | Doom::Deadline) => &mut self.doomed,
            Some(Doom::Drain { service, .. }) => self.drained.entry(service).or_default(),
            None => &mut self.idle,
        };
        if queue.len() >= MAX_WAITING {
            // Each pair is met twice.
            self.census.deferred += u64::from(connection.entry.is_clients());
            return;
        }
        self.noted.insert(key);
        queue.push_back(key);
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
