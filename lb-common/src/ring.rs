//! The ring of a service: the table by which Maglev hashing picks a backend.

use crate::map_data;

/// Slots in a ring: the prime of the Maglev paper (Eisenbud et al., NSDI 2016, section 3.4).
pub const SLOTS: usize = 65_537;

/// A slot without a backend; also the number of ring 0, which services without a backend have.
pub const NONE: u16 = 0;

/// The id of a backend for each slot, [`NONE`] where there is none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ring {
    pub slots: [u16; SLOTS],
}

map_data!(Ring);
