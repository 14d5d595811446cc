//! `[service.zones]`: whether backends near the edge are preferred.

use super::reader::{Reader, Section};

pub(super) static ZONES: Section =
    Section { heading: "[service.zones]", keys: &["prefer", "min_healthy_percent"] };

/// Backends of the edge's own zone get all newcomers, while enough of them are up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zones {
    /// So much of the zone's weight is enough, 0 to 100 percent.
    pub min_healthy_percent: u32,
}

/// None if they are not preferred.
pub(super) fn read(reader: &Reader<'_>) -> Option<Zones> {
    let prefer = reader.flag("prefer", true);
    let min_healthy_percent = reader.integer("min_healthy_percent", 0..=100, 70);
    prefer.then_some(Zones { min_healthy_percent })
}
