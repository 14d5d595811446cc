//! What agent and worker say to each other.
//!
//! A worker is started with a listening Unix socket as its standard input, bound by the agent to a path that only root
//! may enter. Whoever connects there is the agent: the one that started the worker, or the next one after it has ended.
//! The newest connection counts.
//!
//! A worker greets with [`FromWorker::Hello`]. Then the agent says what it wants, and the worker reports.

mod channel;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::settings::Settings;

pub use channel::{MOST_BYTES, Receiver, Sender, channel};

/// Of this description. Raised with every change that an older side would misread.
pub const VERSION: u32 = 5;

/// From the agent to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// Everything there is to know, in place of what was said before.
    Settings(Box<Settings>),
    /// One listening socket comes with this message: accept there for the service that has the address.
    Listen { address: SocketAddr },
    /// Accept who waits at the listening socket of this address, and close it.
    Unlisten { address: SocketAddr },
    /// Send all listening sockets, as [`FromWorker::Listener`] each: another agent will need them.
    SendListeners,
    /// A file comes with this message: write the access log there from now on.
    AccessLog,
    /// A socket comes with this message: offer connections to be spliced there, see [`crate::splice`]. The newest one
    /// counts.
    Broker,
    /// The flow table of an IP version comes with this message, to be read only: its connections hold source ports.
    Flows { ipv6: bool },
    /// What other workers have open, and what is spliced, by [`settings::Backend::id`](crate::settings::Backend::id): in place of what was
    /// said before.
    Others { live: Vec<(String, u32)> },
    /// Accept nothing more and finish what is open; end when nothing is. With a deadline, in milliseconds of Unix time,
    /// relayed connections are closed from now on at the pace of their service, and all that is left at the deadline;
    /// said again with another, that one counts.
    Retire { deadline: Option<u64> },
    /// Close the connections that are relayed now to this backend, named by its id, at the pace of the service.
    Reset { service: String, backend: String },
    /// End at once.
    Stop,
}

/// From a worker to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWorker {
    /// The first message; said again by a worker that retires although no agent has told it to.
    Hello(Hello),
    /// One listening socket comes with this message.
    Listener { address: SocketAddr },
    /// The settings are in force, and there is a socket that accepts for every listener in them. Said after each
    /// [`ToWorker::Settings`] and [`ToWorker::Listen`] that leaves it so.
    Ready,
    /// What has happened up to now: once a second where anything changed, a few times where it is what backends have
    /// live, and before the end.
    Report(Report),
}

/// Who greets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the worker.
    pub version: u32,
    pub pid: u32,
    /// 0 for the first worker; its place among the sockets of each listener.
    pub index: u16,
    /// Whether it retires, or has retired.
    pub retired: bool,
    /// How many [`FromWorker::Listener`] will follow on [`ToWorker::SendListeners`].
    pub listeners: u32,
}

/// Sums since the worker's start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub services: Vec<ServiceReport>,
    /// Access log lines that could not be written fast enough.
    pub log_lines_lost: u64,
}

/// One service's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    pub name: String,
    /// Client connections open now, relayed ones included.
    pub connections: u64,
    /// Upgraded connections open now.
    pub relayed: u64,
    /// How often what happened, by the labels of the sidecar's outcomes.
    pub outcomes: Vec<(String, u64)>,
    pub backends: Vec<BackendReport>,
    /// How many requests each route had, by its name, in their order; last, those that no route matched. Empty without
    /// routes.
    #[serde(default)]
    pub routes: Vec<(String, u64)>,
    /// How long things took, of those that have happened.
    #[serde(default)]
    pub times: Vec<TimeReport>,
}

/// How long one kind of thing took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeReport {
    /// [`Time::label`](crate::times::Time::label).
    pub what: String,
    /// How many took no longer than each of [`BOUNDS_MICROS`](crate::times::BOUNDS_MICROS), but longer than the one
    /// before it; last, how many took longer than all.
    pub counts: Vec<u64>,
    /// Of all together.
    pub micros: u64,
}

/// One backend's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendReport {
    /// [`settings::Backend::id`](crate::settings::Backend::id).
    pub id: String,
    /// Connections and requests that count as load now.
    pub live: u32,
    /// Times that it was picked.
    pub picked: u64,
    /// Connects and handshakes that failed.
    pub failed: u64,
    /// Bytes relayed from clients to the backend, bodies and frames.
    pub bytes_in: u64,
    /// Bytes relayed from the backend to clients.
    pub bytes_out: u64,
    /// Connections that it was to accept.
    #[serde(default)]
    pub connects: Tally,
    /// Requests that it was to answer, but for upgrades.
    #[serde(default)]
    pub answers: Tally,
    /// Upgrades that it was to agree to.
    #[serde(default)]
    pub handshakes: Tally,
}

/// How a backend did one of the things that are asked of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub successes: u64,
    pub failures: u64,
    /// Failures since the last success.
    pub row: u32,
}
