//! The flow table: established connections. Never evicted by newcomers.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    macros::map,
    maps::HashMap,
};
use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    flow::Flow,
    seq::within,
};
use lb_ebpf::wire::tcp_flags;

use crate::{clock, parse::Segment};

/// Rewrites by the tuple on the wire, IPv4.
#[map]
static FLOWS4: HashMap<Tuple<V4>, Flow<V4>> = HashMap::with_max_entries(1 << 20, 0);

/// Rewrites by the tuple on the wire, IPv6.
#[map]
static FLOWS6: HashMap<Tuple<V6>, Flow<V6>> = HashMap::with_max_entries(1 << 18, 0);

/// The flow table of an IP version.
pub trait Table: Addr {
    fn flows() -> &'static HashMap<Tuple<Self>, Flow<Self>>;
}

impl Table for V4 {
    #[inline(always)]
    fn flows() -> &'static HashMap<Tuple<V4>, Flow<V4>> {
        &FLOWS4
    }
}

impl Table for V6 {
    #[inline(always)]
    fn flows() -> &'static HashMap<Tuple<V6>, Flow<V6>> {
        &FLOWS6
    }
}

/// Why a flow could not be entered.
pub enum Refused {
    /// The tuple has an entry.
    Taken,
    /// The table has no room.
    Full,
}

#[inline(always)]
pub fn find<A: Table>(tuple: &Tuple<A>) -> Option<&'static mut Flow<A>> {
    // SAFETY: map values live as long as the program runs. An element that the agent deletes at this
    // moment may be reused at once for another flow: then this one packet is counted there, or goes
    // astray. The agent deletes only flows that have ended, were idle for long, or whose backend is
    // gone, so it is a packet that nobody waits for.
    A::flows().get_ptr_mut(tuple).map(|flow| unsafe { &mut *flow })
}

/// Enters a flow where there is none.
#[inline(always)]
pub fn enter_new<A: Table>(tuple: &Tuple<A>, flow: &Flow<A>) -> Result<(), Refused> {
    const EEXIST: i32 = -17;
    A::flows().insert(tuple, flow, BPF_NOEXIST as u64).map_err(|error| match error {
        EEXIST => Refused::Taken,
        _ => Refused::Full,
    })
}

/// Enters a flow in the place of any that is there.
#[inline(always)]
pub fn enter<A: Table>(tuple: &Tuple<A>, flow: &Flow<A>) -> Result<(), Refused> {
    A::flows().insert(tuple, flow, BPF_ANY as u64).map_err(|_| Refused::Full)
}

#[inline(always)]
pub fn remove<A: Table>(tuple: &Tuple<A>) {
    // An error says that it is gone already.
    let _ = A::flows().remove(tuple);
}

/// How far a number can be ahead of the last one: no receiver here has a larger window. A forged
/// segment with any other number teaches us nothing.
const WINDOW: u32 = 1 << 25;

/// Notes that a segment passed: time, traffic, and the numbers that a later RST will need.
#[inline(always)]
pub fn touch<A>(flow: &mut Flow<A>, segment: &Segment<A>) {
    flow.last_seen = clock::now();
    flow.packets = flow.packets.wrapping_add(1);
    flow.bytes += segment.ip_len as u64;
    let end = segment.end();
    if within(end, flow.seq_next, WINDOW) {
        flow.seq_next = end;
    }
    if segment.flags & tcp_flags::ACK != 0 && within(segment.ack, flow.ack, WINDOW) {
        flow.ack = segment.ack;
    }
}
