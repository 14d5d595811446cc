//! Which sources may send to a service: allow and deny lists by prefix.
//!
//! A list belongs to a *scope*: the whole edge, or one service. Where a source has an entry in both, both must
//! admit it.

use crate::{
    addr::{V4, V6},
    map_data,
};

/// The scope of the whole edge. That of a service is its id.
pub const EDGE: u16 = 0;

/// Bits of [`crate::service::Service::access`] and [`crate::service::Backend::access`]: which scopes have lists.
/// Without any, nothing is looked up.
pub mod lists {
    pub const EDGE: u8 = 1 << 0;
    pub const SERVICE: u8 = 1 << 1;
}

/// Most entries of `ACCESS4` and of `ACCESS6`, over all scopes.
pub const MAX_ENTRIES: u32 = 1 << 18;

/// Key data of the LPM maps `ACCESS4` and `ACCESS6`. An entry's prefix length counts the scope, which is always
/// whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AccessKey<A> {
    pub scope: u32,
    /// Network byte order.
    pub addr: A,
}

/// Bits of the scope in a prefix.
pub const SCOPE_BITS: u32 = 32;

/// Values of the maps, as `u32` because LPM values are word-aligned. A source without an entry is admitted: a list
/// of those allowed denies everybody else by an entry for the prefix of length 0.
pub const ADMIT: u32 = 1;
pub const DENY: u32 = 2;

map_data!(AccessKey<V4>, AccessKey<V6>);

#[cfg(test)]
mod tests {
    use core::mem::size_of;

    use super::*;

    #[test]
    fn layout() {
        assert_eq!(size_of::<AccessKey<V4>>(), 8);
        assert_eq!(size_of::<AccessKey<V6>>(), 20);
    }
}
