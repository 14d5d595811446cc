//! Many elements of a map in one call.

use std::io;

use nix::libc;

use super::{Attr, bpf};

/// Commands of `bpf(2)`.
pub const MAP_LOOKUP_BATCH: libc::c_int = 24;
pub const MAP_UPDATE_BATCH: libc::c_int = 26;

/// The member of the kernel's `union bpf_attr` for batch calls; the numbers that are not counts are addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchAttr {
    pub in_batch: u64,
    pub out_batch: u64,
    pub keys: u64,
    pub values: u64,
    /// Elements that there is room for; afterwards those that were done, also after an error.
    pub count: u32,
    pub map_fd: u32,
    pub elem_flags: u64,
    pub flags: u64,
}

impl Attr for BatchAttr {}

/// # Safety
/// Every address in `attr` must be null or point to memory that is valid for what `command` reads and writes there:
/// keys and values of the map's sizes, `count` of them.
pub unsafe fn batch(command: libc::c_int, attr: &mut BatchAttr) -> io::Result<()> {
    // SAFETY: the caller vouches for the addresses.
    unsafe { bpf(command, attr) }.map(drop)
}
