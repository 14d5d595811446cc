//! The data plane's clock.

use core::{cell::UnsafeCell, ptr};

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use lb_common::abi::TICK_SHIFT;

/// A word that all CPUs read and write whole. The compiler cannot translate an atomic load for BPF.
struct Word(UnsafeCell<u64>);

// SAFETY: it is only accessed by aligned loads and stores of its eight bytes, which BPF does whole.
unsafe impl Sync for Word {}

/// What the clock said at which jiffy: the tick in the lower half, the jiffy's lower bits in the upper.
/// In one word, so that nobody sees half of a change.
static READ: Word = Word(UnsafeCell::new(0));

/// Now, in ticks.
///
/// The coarse clock moves once in a jiffy (at most 10 ms, less than a tick), so it is read once in a
/// jiffy: the number of the jiffy is a load, but the clock is a call of three functions.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper takes no argument and only reads a number; the word is always there.
    let (jiffy, read) = unsafe { (bpf_jiffies64() << 32, ptr::read_volatile(READ.0.get())) };
    if (read ^ jiffy) >> 32 == 0 {
        return read as u32;
    }
    // SAFETY: the helper takes no argument and only reads the clock; the word is always there.
    unsafe {
        let tick = (bpf_ktime_get_coarse_ns() >> TICK_SHIFT) as u32;
        ptr::write_volatile(READ.0.get(), jiffy | tick as u64);
        tick
    }
}
