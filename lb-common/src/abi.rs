//! What an agent checks before it adopts maps that another agent pinned, and the edge-wide settings.

use crate::map_data;

/// Raised with every change of a map's key, value or meaning. An agent adopts only pins of its own
/// version.
pub const VERSION: u32 = 3;

/// One tick of the data plane's clock: 2^24 ns (16.8 ms) of `CLOCK_MONOTONIC`.
///
/// A shift instead of a division per packet; as `u32` it wraps after 2.3 years, so only differences
/// are ever looked at.
pub const TICK_SHIFT: u32 = 24;

/// Ticks in a duration given in milliseconds, rounded up.
pub const fn ticks_from_millis(millis: u64) -> u32 {
    ((millis * 1_000_000).div_ceil(1 << TICK_SHIFT)) as u32
}

/// Most source addresses of one IP version that `nat` can use.
pub const MAX_SOURCES: usize = 64;

/// Settings of the whole edge: the only element of the map `EDGE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    /// [`VERSION`] of the agent that made the maps.
    pub abi_version: u32,
    /// Changes with every change of the routes, so that flows look up their next hop anew.
    /// Only the low byte counts.
    pub route_epoch: u32,
    /// Seed of the hash by which backends are picked.
    pub hash_seed: u64,
    /// How many addresses `SOURCES4` and `SOURCES6` hold; at most [`MAX_SOURCES`].
    pub sources: [u32; 2],
    /// Lowest source port of `nat`, host byte order.
    pub nat_port_first: u16,
    /// Number of source ports of `nat`, from the lowest on; at least 1.
    pub nat_port_count: u16,
    pub _pad: u32,
}

map_data!(Edge);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        assert_eq!(core::mem::size_of::<Edge>(), 32);
    }

    #[test]
    fn ticks_round_up() {
        assert_eq!(ticks_from_millis(0), 0);
        assert_eq!(ticks_from_millis(1), 1);
        assert_eq!(ticks_from_millis(1000), 60);
    }
}
