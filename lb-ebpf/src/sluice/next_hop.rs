//! Next hops and routes, as the agent keeps them from netlink.

use aya_ebpf::{
    macros::map,
    maps::{Array, LpmTrie, lpm_trie::Key},
};
use lb_common::{
    addr::{Addr, V4, V6},
    flow::Flow,
    next_hop::{FIB, MAX_NEXT_HOPS, NextHop, RouteValue},
};

use crate::edge;

/// Next hops by id; id 0 is never ready: it stands for the kernel's FIB.
#[map]
static NEXT_HOPS: Array<NextHop> = Array::with_max_entries(MAX_NEXT_HOPS, 0);

/// Ids of next hops by IPv4 prefix.
#[map]
static ROUTES4: LpmTrie<V4, RouteValue> = LpmTrie::with_max_entries(16_384, 0);

/// Ids of next hops by IPv6 prefix.
#[map]
static ROUTES6: LpmTrie<V6, RouteValue> = LpmTrie::with_max_entries(16_384, 0);

/// The routes of an IP version.
pub trait Routes: Addr {
    fn routes() -> &'static LpmTrie<Self, RouteValue>;
}

impl Routes for V4 {
    #[inline(always)]
    fn routes() -> &'static LpmTrie<V4, RouteValue> {
        &ROUTES4
    }
}

impl Routes for V6 {
    #[inline(always)]
    fn routes() -> &'static LpmTrie<V6, RouteValue> {
        &ROUTES6
    }
}

/// The next hop with this id, if a frame can be sent to it now.
#[inline(always)]
pub fn get(id: u16) -> Option<&'static NextHop> {
    NEXT_HOPS.get(id as u32).filter(|hop| hop.ifindex != 0)
}

/// The id of the next hop towards an address; 0 if the agent's table does not know.
#[inline(always)]
pub fn towards<A: Routes>(addr: &A) -> u16 {
    let key = Key::new(A::LEN as u32 * 8, *addr);
    A::routes().get(key).map_or(FIB, |id| *id as u16)
}

/// Changes with every change of the routes.
#[inline(always)]
pub fn epoch() -> u8 {
    edge::get().map_or(0, |edge| edge.route_epoch as u8)
}

/// The next hop of a flow to a client, looked up anew when the routes have changed since.
#[inline(always)]
pub fn of_client<A: Routes>(flow: &mut Flow<A>) -> u16 {
    let epoch = epoch();
    if flow.route_epoch != epoch {
        renew(flow, epoch);
    }
    flow.next_hop
}

#[inline(never)]
fn renew<A: Routes>(flow: &mut Flow<A>, epoch: u8) {
    flow.next_hop = towards(&flow.to.dst);
    flow.route_epoch = epoch;
}
