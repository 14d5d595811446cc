//! What the supervisor knows of its workers, for the status: plain data.

use std::collections::BTreeMap;

use super::reports::Sums;
use crate::splice::Timings;

/// All workers.
#[derive(Clone, Debug, Default)]
pub struct Sidecar {
    pub workers: Vec<Worker>,
    pub sums: Sums,
    /// Spliced connections by backend: [`lb_sidecar::settings::Backend::id`].
    pub spliced: BTreeMap<String, u32>,
    /// How long hand-overs have taken; none before connections can be spliced.
    pub handovers: Option<Timings>,
}

/// One process.
#[derive(Clone, Debug)]
pub struct Worker {
    pub index: u16,
    pub pid: u32,
    pub state: String,
    /// How often a worker of this place ended unasked.
    pub restarts: u64,
    pub connections: u64,
}
