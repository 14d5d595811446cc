//! Memory of a CPU for the packet under way: for what is too big for the stack, of which a chain of
//! calls has 512 bytes, and for what more than one stage needs.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use lb_common::{
    addr::{Addr, V4, V6},
    handshake::Handshake,
    outcome::DropReason,
};

use crate::parse::Segment;

/// Handshakes in the making, IPv4: one for each [`Use`].
#[map]
static SCRATCH4: PerCpuArray<Handshake<V4>> = PerCpuArray::with_max_entries(2, 0);

/// Handshakes in the making, IPv6.
#[map]
static SCRATCH6: PerCpuArray<Handshake<V6>> = PerCpuArray::with_max_entries(2, 0);

/// The IPv4 segment under way.
#[map]
static SEGMENT4: PerCpuArray<Segment<V4>> = PerCpuArray::with_max_entries(1, 0);

/// The IPv6 segment under way.
#[map]
static SEGMENT6: PerCpuArray<Segment<V6>> = PerCpuArray::with_max_entries(1, 0);

/// The options of the segment under way, as they came and as they leave.
#[map]
static OPTIONS: PerCpuArray<[[u8; OPTIONS_ROOM]; 2]> = PerCpuArray::with_max_entries(1, 0);

/// The longest options have 40 bytes. A value behind any offset below 64 can be had without a check for each byte,
/// even that of SACK, which has 32 bytes behind the two of kind and length.
pub const OPTIONS_ROOM: usize = 64 + 40;

/// Who uses the memory for handshakes. Uses that can be under way at the same time have different numbers.
#[derive(Clone, Copy)]
pub enum Use {
    /// The entry of a new connection.
    Open = 0,
    /// The entry of a backend's answers.
    Reserve = 1,
}

/// The scratch memory of an IP version.
pub trait Scratch: Addr {
    fn making() -> &'static PerCpuArray<Handshake<Self>>;
    fn segment() -> &'static PerCpuArray<Segment<Self>>;
}

impl Scratch for V4 {
    #[inline(always)]
    fn making() -> &'static PerCpuArray<Handshake<V4>> {
        &SCRATCH4
    }

    #[inline(always)]
    fn segment() -> &'static PerCpuArray<Segment<V4>> {
        &SEGMENT4
    }
}

impl Scratch for V6 {
    #[inline(always)]
    fn making() -> &'static PerCpuArray<Handshake<V6>> {
        &SCRATCH6
    }

    #[inline(always)]
    fn segment() -> &'static PerCpuArray<Segment<V6>> {
        &SEGMENT6
    }
}

/// Keeps a segment for the stages to come.
#[inline(always)]
pub fn keep<A: Scratch>(segment: &Segment<A>) -> Result<(), DropReason> {
    if cfg!(feature = "trace") {
        return Ok(()); // it was there from the beginning
    }
    let Some(kept) = A::segment().get_ptr_mut(0) else {
        return Err(DropReason::Inconsistent);
    };
    // SAFETY: the element is this CPU's own, and XDP programs do not preempt each other.
    unsafe { *kept = *segment };
    Ok(())
}

/// Room for the segment under way, empty as yet.
#[cfg(feature = "trace")]
#[inline(always)]
pub fn fresh<A: Scratch>() -> Option<&'static mut Segment<A>> {
    // SAFETY: the element is this CPU's own, and XDP programs do not preempt each other; whoever gets it lets go of it
    // before a stage looks at it.
    let segment = A::segment().get_ptr_mut(0).map(|segment| unsafe { &mut *segment })?;
    *segment = Segment::default();
    Some(segment)
}

/// The segment under way, once it is kept.
#[inline(always)]
pub fn segment<A: Scratch>() -> Option<&'static Segment<A>> {
    // SAFETY: as above; it is written only before the first stage that looks at it.
    A::segment().get_ptr(0).map(|segment| unsafe { &*segment })
}

/// This CPU's memory for options.
#[inline(always)]
pub fn options() -> Option<&'static mut [[u8; OPTIONS_ROOM]; 2]> {
    // SAFETY: the element is this CPU's own, XDP programs do not preempt each other, and only one stage
    // uses it, which calls no other.
    OPTIONS.get_ptr_mut(0).map(|options| unsafe { &mut *options })
}

/// This CPU's memory for a handshake.
#[inline(always)]
pub fn handshake<A: Scratch>(of: Use) -> Option<&'static mut Handshake<A>> {
    // SAFETY: the element is this CPU's own, XDP programs do not preempt each other, and each use has
    // an element of its own.
    A::making().get_ptr_mut(of as u32).map(|handshake| unsafe { &mut *handshake })
}
