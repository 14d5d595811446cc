//! What operators have changed while the edge runs: a small layer over the configuration file. Pure, but for [`file`].
//!
//! ```text
//! edge.toml -> Config -> Overrides::applied -> Config in force -> desired state -> diff -> maps
//! ```
//!
//! The file stays what it is, and so does the path of a change: nothing here knows of maps or workers. An override that
//! has nothing to change any more, because its backend is gone from the file, is dropped.

mod apply;
mod change;
mod check;
mod diff;
pub mod file;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

pub use apply::Dropped;
pub use change::{Change, EdgeDrainAsk, Kind, NewBackend, PaceAsk, Refusal, suggestion};
pub use diff::Difference;

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrides {
    /// Grows with each change, so that who has read an older one can be told.
    pub revision: u64,
    /// Of the whole edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<EdgeState>,
    /// By the names of service and backend.
    pub services: BTreeMap<String, BTreeMap<String, Override>>,
}

/// Of the whole edge, whatever the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeState {
    /// It serves.
    Serve,
    /// It drains, from some time on.
    Drain(EdgeDrain),
}

/// The drain of an edge. Times are in milliseconds, the first one of Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeDrain {
    /// From then on it takes no clients; until then it only says that it is going to.
    pub begins: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
}

/// Of one backend. What is not there is as in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// The file does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added: Option<Added>,
    /// The file has it, and nobody wants it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

/// What a backend is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It gets clients, though the file says that it drains.
    Serve,
    /// It gets none but those that belong to it, and loses these after a while.
    Drain(Pace),
    /// It gets none at all, and loses those that it has, paced.
    Maintenance(Pace),
}

/// How a backend loses its clients; what is not there is as the service has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// When it was asked for, in milliseconds of Unix time.
    pub since: u64,
    /// In milliseconds from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
}

/// A backend that came while the edge ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    pub address: SocketAddr,
    pub weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The pool that it is in; none: the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

impl Overrides {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edge.is_none() && self.services.is_empty()
    }

    /// When the edge's drain begins, or has begun.
    #[must_use]
    pub fn edge_drain_begins(&self) -> Option<u64> {
        match self.edge {
            Some(EdgeState::Drain(drain)) => Some(drain.begins),
            Some(EdgeState::Serve) | None => None,
        }
    }

    fn of(&self, service: &str, backend: &str) -> Option<&Override> {
        self.services.get(service)?.get(backend)
    }

    /// Leaves nothing that says nothing.
    fn tidy(&mut self) {
        for backends in self.services.values_mut() {
            backends.retain(|_, it| *it != Override::default());
        }
        self.services.retain(|_, backends| !backends.is_empty());
    }
}
