//! Memory for what is too big for the stack, of which a chain of calls has 512 bytes.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use lb_common::{
    addr::{Addr, V4, V6},
    handshake::Handshake,
};

/// Handshakes in the making, IPv4: one for each [`Use`].
#[map]
static SCRATCH4: PerCpuArray<Handshake<V4>> = PerCpuArray::with_max_entries(2, 0);

/// Handshakes in the making, IPv6.
#[map]
static SCRATCH6: PerCpuArray<Handshake<V6>> = PerCpuArray::with_max_entries(2, 0);

/// Who uses the memory. Uses that can be under way at the same time have different numbers.
#[derive(Clone, Copy)]
pub enum Use {
    /// The entry of a new connection.
    Open = 0,
    /// The entry of a backend's answers.
    Reserve = 1,
}

/// The scratch memory of an IP version.
pub trait Scratch: Addr {
    fn scratch() -> &'static PerCpuArray<Handshake<Self>>
    where
        Self: Sized;
}

impl Scratch for V4 {
    #[inline(always)]
    fn scratch() -> &'static PerCpuArray<Handshake<V4>> {
        &SCRATCH4
    }
}

impl Scratch for V6 {
    #[inline(always)]
    fn scratch() -> &'static PerCpuArray<Handshake<V6>> {
        &SCRATCH6
    }
}

/// This CPU's memory for a use.
#[inline(always)]
pub fn handshake<A: Scratch>(of: Use) -> Option<&'static mut Handshake<A>> {
    // SAFETY: the element is this CPU's own, XDP programs do not preempt each other, and each use has
    // an element of its own.
    A::scratch().get_ptr_mut(of as u32).map(|handshake| unsafe { &mut *handshake })
}
