//! Atomic arithmetic on map values, for which the standard library has no type on this target.

use core::arch::asm;

/// Adds to a number that other CPUs add to as well; returns what it was before.
///
/// # Safety
/// `number` points to eight aligned bytes of a map's value.
#[inline(always)]
pub unsafe fn fetch_add(number: *mut u64, amount: u64) -> u64 {
    let mut register = amount;
    // SAFETY: the caller's; the instruction reads and writes these eight bytes at once.
    unsafe {
        asm!("{register} = atomic_fetch_add((u64 *)({number} + 0), {register})",
            register = inout(reg) register, number = in(reg) number, options(nostack));
    }
    register
}
