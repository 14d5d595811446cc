//! What the XDP program and the agent share: map keys and values, drop reasons, checksums, hashes.
//!
//! Everything here but [`maglev`], which fills the rings, is `no_std`; it does no I/O and knows neither aya nor a packet's memory. Types that
//! live in BPF maps are `repr(C)` with explicit padding; their size is part of the ABI and is
//! asserted in this crate's tests. Any change of such a type, of a map's key or of the meaning of a
//! field must raise [`abi::VERSION`], or an agent would misread the maps of its predecessor.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod abi;
pub mod access;
pub mod addr;
pub mod bench;
pub mod checksum;
pub mod counters;
pub mod decap;
pub mod flow;
pub mod handshake;
pub mod hash;
#[cfg(feature = "std")]
pub mod maglev;
pub mod next_hop;
pub mod outcome;
pub mod punt;
pub mod ring;
pub mod rtt;
pub mod seq;
pub mod service;
pub mod splice;
pub mod trace;

/// Declares that a type may be read from and written to a BPF map byte by byte.
///
/// `bytemuck::Pod` would not do: it refuses generic types with alignment-dependent layout, although
/// each instance here is free of implicit padding (asserted in the tests).
macro_rules! map_data {
    ($($ty:ty),+ $(,)?) => {$(
        const _: () = assert!(size_of::<$ty>() % 2 == 0);

        // SAFETY: repr(C), only integers and arrays of them, no implicit padding (the size tests add
        // up the fields), so every bit pattern is a valid value and every byte is initialised.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $ty {}
    )+};
}
pub(crate) use map_data;
