//! Log lines about the few outcomes that an operator must hear of: a resource has run out.
//!
//! At most one a second on each CPU, whatever it is about; how often it happened is in the counters.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use aya_log_ebpf::warn;
use lb_common::{
    abi::TICK_SHIFT,
    outcome::{DropReason, Event},
};

use crate::clock;

/// When this CPU logged last, in ticks.
#[map]
static REPORTED: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// A second, in ticks.
const INTERVAL: u32 = (1_000_000_000_u64 >> TICK_SHIFT) as u32;

const FLOW_TABLE_FULL: u32 = Event::FlowTableFull.index();
const NAT_PORTS_EXHAUSTED: u32 = DropReason::NatPortsExhausted.index();
const HANDSHAKE_TABLE_FULL: u32 = DropReason::HandshakeTableFull.index();
const PUNT_QUEUE_FULL: u32 = DropReason::PuntQueueFull.index();

/// Whether a drop for this reason is logged.
#[inline(always)]
pub fn is_alarming(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::NatPortsExhausted | DropReason::HandshakeTableFull | DropReason::PuntQueueFull
    )
}

/// Logs an outcome, given by its index among the counters, unless another was logged just now.
#[inline(always)]
pub fn report(service: u16, outcome: u32) {
    let now = clock::now();
    let Some(reported) = REPORTED.get_ptr_mut(0) else { return };
    // SAFETY: the element is this CPU's own, and XDP programs do not preempt each other.
    unsafe {
        if *reported != 0 && now.wrapping_sub(*reported) < INTERVAL {
            return;
        }
        *reported = now;
    }
    match outcome {
        FLOW_TABLE_FULL => warn!(
            (),
            "service {}: the flow table is full, new connections can be forgotten: raise edge.tables",
            service
        ),
        NAT_PORTS_EXHAUSTED => warn!(
            (),
            "service {}: no free NAT port for a backend: add source_addresses or widen nat_ports",
            service
        ),
        HANDSHAKE_TABLE_FULL => warn!(
            (),
            "service {}: the kernel refused a new handshake entry: raise edge.tables.handshakes",
            service
        ),
        PUNT_QUEUE_FULL => warn!(
            (),
            "service {}: too many packets wait for a next hop: is the neighbour reachable?",
            service
        ),
        _ => {}
    }
}
