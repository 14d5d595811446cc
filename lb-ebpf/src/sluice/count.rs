//! Counters. Every outcome is counted; traffic is counted per backend.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use lb_common::{
    counters::BackendCounters,
    outcome::{COUNTERS_PER_SERVICE, DropReason, Event},
};

/// What happened to packets, [`COUNTERS_PER_SERVICE`] elements for each service.
#[map]
static OUTCOMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(65 * COUNTERS_PER_SERVICE, 0);

/// Traffic and flows of each backend, by id.
#[map]
static BACKEND_COUNTERS: PerCpuArray<BackendCounters> = PerCpuArray::with_max_entries(4096, 0);

#[inline(always)]
pub fn event(service: u16, event: Event) {
    outcome(service, event.index());
}

#[inline(always)]
pub fn drop(service: u16, reason: DropReason) {
    outcome(service, reason.index());
}

#[inline(always)]
fn outcome(service: u16, index: u32) {
    if let Some(counter) = OUTCOMES.get_ptr_mut(service as u32 * COUNTERS_PER_SERVICE + index) {
        // SAFETY: the element is this CPU's own, and XDP programs do not preempt each other.
        unsafe { *counter += 1 }
    }
}

/// Changes this CPU's counters of a backend.
#[inline(always)]
pub fn backend(id: u16, change: impl FnOnce(&mut BackendCounters)) {
    if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(id as u32) {
        // SAFETY: as above.
        change(unsafe { &mut *counters });
    }
}
