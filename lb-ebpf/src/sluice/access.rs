//! Allow and deny lists: who may send to a service at all.

use aya_ebpf::{
    macros::map,
    maps::{LpmTrie, lpm_trie::Key},
};
use lb_common::{
    access::{AccessKey, DENY, EDGE, MAX_ENTRIES, SCOPE_BITS, lists},
    addr::{Addr, V4, V6},
    outcome::DropReason,
    trace::Stage,
};

use crate::{stage::Stages, trace};

/// Whom the edge and its services admit or deny, by IPv4 prefix.
#[map]
static ACCESS4: LpmTrie<AccessKey<V4>, u32> = LpmTrie::with_max_entries(MAX_ENTRIES, 0);

/// Whom the edge and its services admit or deny, by IPv6 prefix.
#[map]
static ACCESS6: LpmTrie<AccessKey<V6>, u32> = LpmTrie::with_max_entries(MAX_ENTRIES, 0);

/// The lists of an IP version.
pub trait Lists: Addr {
    fn lists() -> &'static LpmTrie<AccessKey<Self>, u32>;
}

impl Lists for V4 {
    #[inline(always)]
    fn lists() -> &'static LpmTrie<AccessKey<V4>, u32> {
        &ACCESS4
    }
}

impl Lists for V6 {
    #[inline(always)]
    fn lists() -> &'static LpmTrie<AccessKey<V6>, u32> {
        &ACCESS6
    }
}

/// Refuses a source that one of a service's lists denies. `access` says which lists there are; without any this is
/// one comparison.
#[inline(always)]
pub fn check<A: Stages>(src: &A, service: u16, access: u8) -> Result<(), DropReason> {
    if access != 0 {
        if A::is_denied(src, service, access) {
            trace::step(Stage::Access, service, 1);
            return Err(DropReason::DeniedSource);
        }
        trace::step(Stage::Access, service, 0);
    }
    Ok(())
}

/// Whether one of the lists that there are denies a source.
#[inline(always)]
pub fn is_denied<A: Lists>(src: &A, service: u16, access: u8) -> bool {
    access & lists::EDGE != 0 && denies(src, EDGE)
        || access & lists::SERVICE != 0 && denies(src, service)
}

#[inline(always)]
fn denies<A: Lists>(src: &A, scope: u16) -> bool {
    let data = AccessKey { scope: scope as u32, addr: *src };
    let key = Key::new(SCOPE_BITS + A::LEN as u32 * 8, data);
    A::lists().get(key).is_some_and(|verdict| *verdict == DENY)
}
