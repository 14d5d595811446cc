//! What the clients of a load saw, per connection and in sum.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::session::Failure;

/// What one connection, with all its sessions, saw so far.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConnectionReport {
    pub index: usize,
    pub target: Option<SocketAddr>,
    /// Its own address in the present or last session.
    pub local: Option<SocketAddr>,
    pub connected: bool,
    /// The backend of the present or last session.
    pub backend: Option<String>,
    /// Sessions that a backend accepted.
    pub sessions: u64,
    /// Sessions after the first one.
    pub reconnects: u64,
    /// Messages that came back whole.
    pub messages: u64,
    /// Bytes that came back right.
    pub bytes: u64,
    /// Right bytes of the server's own stream.
    pub pushed: u64,
    pub broadcasts: u64,
    /// Sessions in which a wrong byte came, at either end.
    pub wrong: u64,
    /// Sessions and attempts that ended against our will.
    pub errors: u64,
    pub resets: u64,
    pub failures: BTreeMap<Failure, u64>,
    pub last_error: Option<String>,
    /// The longest time from the loss of a session to the next one, in milliseconds.
    pub longest_outage_ms: u64,
    #[serde(skip)]
    pub(super) lost_at: Option<Instant>,
}

impl ConnectionReport {
    pub(super) fn opened(&mut self, backend: Option<String>, local: Option<SocketAddr>) {
        self.connected = true;
        self.backend = backend;
        self.local = local;
        self.reconnects += u64::from(self.sessions > 0);
        self.sessions += 1;
        if let Some(lost) = self.lost_at.take() {
            self.longest_outage_ms = self.longest_outage_ms.max(millis(lost.elapsed()));
        }
    }

    pub(super) fn failed(&mut self, failure: Failure, error: String) {
        self.connected = false;
        self.errors += 1;
        self.resets += u64::from(failure == Failure::Reset);
        self.wrong += u64::from(failure == Failure::Wrong);
        *self.failures.entry(failure).or_default() += 1;
        self.last_error = Some(error);
        self.lost_at.get_or_insert_with(Instant::now);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The part of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BackendShare {
    /// Connections that are with it now.
    pub connected: u64,
    /// Connections that were with it last, or are.
    pub connections: u64,
}

/// The sum of a load's connections, and each of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoadStats {
    pub seed: u64,
    pub connections: u64,
    pub connected: u64,
    pub sessions: u64,
    pub reconnects: u64,
    pub messages: u64,
    pub bytes: u64,
    pub pushed: u64,
    pub broadcasts: u64,
    pub wrong: u64,
    pub errors: u64,
    pub resets: u64,
    pub failures: BTreeMap<Failure, u64>,
    pub backends: BTreeMap<String, BackendShare>,
    pub longest_outage_ms: u64,
    pub per_connection: Vec<ConnectionReport>,
}

impl LoadStats {
    pub(super) fn sum(seed: u64, per_connection: Vec<ConnectionReport>) -> Self {
        let mut sum = Self { seed, connections: per_connection.len() as u64, ..Self::default() };
        for report in &per_connection {
            sum.connected += u64::from(report.connected);
            sum.sessions += report.sessions;
            sum.reconnects += report.reconnects;
            sum.messages += report.messages;
            sum.bytes += report.bytes;
            sum.pushed += report.pushed;
            sum.broadcasts += report.broadcasts;
            sum.wrong += report.wrong;
            sum.errors += report.errors;
            sum.resets += report.resets;
            sum.longest_outage_ms = sum.longest_outage_ms.max(report.longest_outage_ms);
            for (failure, count) in &report.failures {
                *sum.failures.entry(*failure).or_default() += count;
            }
            if let Some(backend) = &report.backend {
                let share = sum.backends.entry(backend.clone()).or_default();
                share.connections += 1;
                share.connected += u64::from(report.connected);
            }
        }
        sum.per_connection = per_connection;
        sum
    }

    /// How many connections are with a backend now.
    #[must_use]
    pub fn connected_to(&self, backend: &str) -> u64 {
        self.backends.get(backend).map_or(0, |share| share.connected)
    }

    /// Of the connections that were with another backend than `backend` in `before`, those that have seen an
    /// error or another session since: none may.
    #[must_use]
    pub fn disturbed_beside(&self, before: &Self, backend: &str) -> Vec<&ConnectionReport> {
        let pairs = self.per_connection.iter().zip(&before.per_connection);
        pairs
            .filter(|(now, then)| {
                then.backend.as_deref() != Some(backend)
                    && (now.errors, now.sessions) != (then.errors, then.sessions)
            })
            .map(|(now, _)| now)
            .collect()
    }

    /// The first error of any connection, for a test's message.
    #[must_use]
    pub fn first_error(&self) -> Option<&str> {
        self.per_connection.iter().find_map(|report| report.last_error.as_deref())
    }
}

/// The sum and the first error, for a test's message; the connections would be too long.
impl fmt::Display for LoadStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = Self {
            per_connection: Vec::new(),
            backends: self.backends.clone(),
            failures: self.failures.clone(),
            ..*self
        };
        write!(f, "{sum:?}, first error: {:?}", self.first_error())
    }
}
