//! Backends that fail their clients while their health checks succeed: from what workers have counted to who is
//! ejected, and for how long. Pure: no clock, no I/O.
//!
//! ```text
//! Counts of each worker -> failures in a row over all workers -> ejected -> returns by itself -> ...
//! ```
//!
//! Failures are in a row if no worker has seen a success since. An ejection lasts for `base` times the number of
//! ejections so far, at most `longest`; of that number one is taken off for each `base` without an ejection.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    time::Duration,
};

use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// What a backend can fail at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// To accept a connection.
    Connect,
    /// To answer a request with something else than 5xx.
    Answer,
    /// To agree to an upgrade.
    Handshake,
}

impl Duty {
    /// In the order of their indexes.
    pub const ALL: [Self; 3] = [Self::Connect, Self::Answer, Self::Handshake];
}

/// How often a backend did one of them, since a worker's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub successes: u64,
    pub failures: u64,
    /// Failures since the last success.
    pub row: u32,
}

/// Of each [`Duty`].
pub type Counts = [Count; 3];

/// What is too much, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// By [`Duty`]: failures in a row that are too many; 0 for as many as they may be.
    pub limits: [u32; 3],
    /// How long the first ejection lasts.
    pub base: Duration,
    /// How long any may last.
    pub longest: Duration,
    /// Of the backends with a weight, rounded down, but at least one.
    pub most_percent: u32,
}

/// Backends that stand in for each other, as they are now: those of one pool of a service.
#[derive(Clone, Debug)]
pub struct Pool {
    pub rules: Rules,
    pub members: Vec<Member>,
}

/// A backend.
#[derive(Clone, Debug)]
pub struct Member {
    /// Unique over all pools.
    pub id: String,
    /// At another one it begins anew: what failed at one says nothing of another.
    pub address: SocketAddr,
    /// Whether it has a weight.
    pub weighty: bool,
    /// Whether it gets new clients but for an ejection: it has a weight, is healthy, and does not drain.
    pub serves: bool,
}

/// Why a backend is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    pub duty: Duty,
    pub row: u32,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { duty, row } = self;
        match duty {
            Duty::Connect => write!(f, "{row} connects in a row failed"),
            Duty::Answer => {
                write!(f, "{row} requests in a row were answered with 5xx or not at all")
            }
            Duty::Handshake => write!(f, "{row} upgrades in a row were refused or broken off"),
        }
    }
}

/// An ejection under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    pub until: Instant,
    /// The how manieth it is, as far as they are not forgotten.
    pub times: u32,
    pub reason: Reason,
}

/// What is known of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// While it is ejected.
    pub ejection: Option<Ejection>,
    /// How often it was.
    pub total: u64,
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Ejected {
        id: String,
        ejection: Ejection,
        /// How long it lasts.
        duration: Duration,
    },
    Returned {
        id: String,
    },
    /// There is a reason, and too many are ejected or nobody else is there. Said once.
    Spared {
        id: String,
        reason: Reason,
    },
}

#[derive(Clone, Debug, Default)]
struct Entry {
    /// By [`Duty`]: failures since the last success that any worker has seen.
    rows: [u32; 3],
    ejection: Option<Ejection>,
    /// Ejections that are not forgotten, as of `since`.
    times: u32,
    /// When the last one ended.
    since: Option<Instant>,
    total: u64,
    spared: bool,
    /// Where it was when it was judged last.
    address: Option<SocketAddr>,
}

/// All backends.
#[derive(Debug, Default)]
pub struct Outliers {
    entries: BTreeMap<String, Entry>,
    /// What each worker has reported last of each backend.
    seen: BTreeMap<u32, BTreeMap<String, Counts>>,
}

impl Outliers {
    /// Takes a worker's report on a backend, in place of what it reported before.
    pub fn observe(&mut self, worker: u32, id: &str, counts: Counts) {
        let seen = self.seen.entry(worker).or_default();
        let before = seen.insert(id.to_owned(), counts);
        let entry = self.entries.entry(id.to_owned()).or_default();
        for (at, now) in counts.iter().enumerate() {
            // Of a worker that is met for the first time, what it has seen in a row is all that is known.
            let failures = before
                .map_or(u64::from(now.row), |it| now.failures.saturating_sub(it[at].failures));
            let row = match before.map_or(0, |it| it[at].successes) < now.successes {
                true => now.row,
                false => entry.rows[at].saturating_add(u32::try_from(failures).unwrap_or(u32::MAX)),
            };
            entry.rows[at] = row;
        }
    }

    /// The worker is no more.
    pub fn ended(&mut self, worker: u32) {
        self.seen.remove(&worker);
    }

    /// Ends what is over, and ejects who has to be. Backends that are in no pool are forgotten.
    pub fn step(&mut self, pools: &[Pool], now: Instant) -> Vec<Change> {
        let known: BTreeSet<&str> =
            pools.iter().flat_map(|pool| &pool.members).map(|it| it.id.as_str()).collect();
        self.entries.retain(|id, _| known.contains(id.as_str()));
        self.seen.values_mut().for_each(|seen| seen.retain(|id, _| known.contains(id.as_str())));
        let mut changes = Vec::new();
        for pool in pools {
            self.follow(pool);
            self.end(pool, now, &mut changes);
            self.eject(pool, now, &mut changes);
        }
        changes
    }

    /// Forgets what is known of those that have moved.
    fn follow(&mut self, pool: &Pool) {
        for Member { id, address, .. } in &pool.members {
            let Some(entry) = self.entries.get_mut(id) else { continue };
            if entry.address.replace(*address).is_some_and(|before| before != *address) {
                *entry = Entry { address: Some(*address), ..Entry::default() };
            }
        }
    }

    fn end(&mut self, pool: &Pool, now: Instant, changes: &mut Vec<Change>) {
        for Member { id, .. } in &pool.members {
            let Some(entry) = self.entries.get_mut(id) else { continue };
            if entry.ejection.is_some_and(|it| it.until <= now) {
                entry.since = entry.ejection.take().map(|it| it.until);
                // It begins anew, and with a clean sheet.
                entry.rows = [0; 3];
                changes.push(Change::Returned { id: id.clone() });
            }
        }
    }

    fn eject(&mut self, pool: &Pool, now: Instant, changes: &mut Vec<Change>) {
        for (id, reason) in self.suspects(pool) {
            let has_room = self.has_room(pool, &id);
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if has_room {
                let (ejection, duration) = entry.eject(pool.rules, reason, now);
                changes.push(Change::Ejected { id, ejection, duration });
            } else if !std::mem::replace(&mut entry.spared, true) {
                changes.push(Change::Spared { id, reason });
            }
        }
    }

    /// Those with a reason, the worst first.
    fn suspects(&mut self, pool: &Pool) -> Vec<(String, Reason)> {
        let mut suspects = Vec::new();
        for member in &pool.members {
            let Some(entry) = self.entries.get_mut(&member.id) else { continue };
            let Some(reason) = entry.reason(pool.rules.limits) else {
                entry.spared = false;
                continue;
            };
            if entry.ejection.is_none() && member.serves {
                suspects.push((member.id.clone(), reason));
            }
        }
        suspects.sort_by_key(|(_, reason)| std::cmp::Reverse(reason.row));
        suspects
    }

    /// Whether one more may be ejected, and somebody is left then.
    fn has_room(&self, pool: &Pool, id: &str) -> bool {
        let weighty = pool.members.iter().filter(|it| it.weighty);
        let (all, ejected) = weighty.fold((0_u64, 0_u64), |(all, ejected), it| {
            (all + 1, ejected + u64::from(self.ejection(&it.id).is_some()))
        });
        let most = (all * u64::from(pool.rules.most_percent) / 100).max(1);
        let others = pool.members.iter().filter(|it| it.id != id && it.serves);
        ejected < most && others.into_iter().any(|it| self.ejection(&it.id).is_none())
    }

    /// The ejection of a backend, while it lasts.
    #[must_use]
    pub fn ejection(&self, id: &str) -> Option<Ejection> {
        self.entries.get(id)?.ejection
    }

    /// The record of a backend.
    #[must_use]
    pub fn record(&self, id: &str) -> Record {
        let known = |entry: &Entry| Record { ejection: entry.ejection, total: entry.total };
        self.entries.get(id).map(known).unwrap_or_default()
    }

    /// When the next ejection is over.
    #[must_use]
    pub fn next_return(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| Some(entry.ejection?.until)).min()
    }
}

impl Entry {
    /// The duty in which it is furthest beyond the limit, if it is in any.
    fn reason(&self, limits: [u32; 3]) -> Option<Reason> {
        let rows = Duty::ALL.into_iter().zip(self.rows).zip(limits);
        let over = rows.filter(|((_, row), limit)| *limit > 0 && row >= limit);
        over.map(|((duty, row), _)| Reason { duty, row }).max_by_key(|reason| reason.row)
    }

    fn eject(&mut self, rules: Rules, reason: Reason, now: Instant) -> (Ejection, Duration) {
        let healthy =
            self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let forgotten = healthy.as_nanos() / rules.base.as_nanos().max(1);
        let times = self.times.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
        self.times = times.saturating_add(1);
        let duration = rules.base.saturating_mul(self.times).min(rules.longest);
        let ejection = Ejection { until: now + duration, times: self.times, reason };
        (self.ejection, self.spared) = (Some(ejection), false);
        self.total += 1;
        (ejection, duration)
    }
}
