//! How long TCP handshakes take: from the client's SYN to its segment that completes the handshake.
//!
//! The clock is read for those two alone. A SYN that was sent again is not measured: nobody knows which one was
//! answered (RFC 6298 section 3).

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, macros::map, maps::PerCpuArray};
use lb_common::rtt::{HandshakeRtt, bucket};
use lb_ebpf::packet::opaque;

/// Round trips of handshakes, by service.
#[map]
static HANDSHAKE_RTT: PerCpuArray<HandshakeRtt> = PerCpuArray::with_max_entries(65, 0);

/// Now, in microseconds; wraps after 71 minutes, and is never 0.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper takes no argument and only reads the clock.
    (unsafe { bpf_ktime_get_ns() } / 1_000) as u32 | 1
}

/// Counts a handshake that began at a time, unless that is 0: not known.
#[inline(always)]
pub fn observe(service: u16, began: u32) {
    if began == 0 {
        return;
    }
    let micros = now().wrapping_sub(began);
    if let Some(rtt) = HANDSHAKE_RTT.get_ptr_mut(service as u32) {
        // SAFETY: the element is this CPU's own, and XDP programs do not preempt each other.
        let rtt = unsafe { &mut *rtt };
        rtt.micros += micros as u64;
        if let Some(count) = rtt.buckets.get_mut(opaque(bucket(micros))) {
            *count += 1;
        }
    }
}
