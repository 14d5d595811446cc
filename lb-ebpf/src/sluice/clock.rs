//! The data plane's clock.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use lb_common::abi::TICK_SHIFT;

/// Now, in ticks. The coarse clock is behind by at most one jiffy and costs no clock read, which is
/// slow on virtual machines.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper takes no argument and only reads the clock.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
}
