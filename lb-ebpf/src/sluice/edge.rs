//! Settings of the whole edge.

use aya_ebpf::{macros::map, maps::Array};
use lb_common::abi::Edge;

/// The edge's settings: one element, written by the agent.
#[map]
static EDGE: Array<Edge> = Array::with_max_entries(1, 0);

#[inline(always)]
pub fn get() -> Option<&'static Edge> {
    EDGE.get(0)
}
