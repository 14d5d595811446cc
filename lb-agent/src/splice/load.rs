//! How many connections were spliced to each backend.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Sums since the agent's start, by the backends' ids in the maps.
#[derive(Debug, Default)]
pub struct Load(Mutex<BTreeMap<u16, u64>>);

impl Load {
    /// Counts one more.
    pub fn spliced(&self, backend: u16) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(backend).or_default() += 1;
    }

    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<u16, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
