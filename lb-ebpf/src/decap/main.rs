//! The XDP program of a backend that has no IP-in-IP device: strips the outer header of packets which
//! an edge sent through a tunnel, and hands the inner packet to the kernel as if it had come so.
//!
//! ```text
//! frame -> outer header -> inner header -> is its destination a VIP? -> ECN -> strip -> kernel
//! ```
//! Everything else goes to the kernel untouched. This file only calls, counts and converts.
#![no_std]
#![no_main]

mod ecn;
mod inner;
mod outer;
mod strip;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::PerCpuArray,
    programs::XdpContext,
};
use lb_common::decap::{COUNTERS_LEN, DecapDrop, DecapEvent};
use lb_ebpf::packet::Packet;

use crate::outer::Version;

/// The licence under which the kernel lets us use its GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// What became of packets, by [`DecapEvent::index`] and [`DecapDrop::index`].
#[map]
static DECAP_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS_LEN, 0);

#[xdp(frags)]
pub fn decap(ctx: XdpContext) -> u32 {
    let mut packet = Packet::new(&ctx);
    match process(&mut packet) {
        Ok(event) => {
            count(event.index());
            xdp_action::XDP_PASS
        }
        Err(reason) => {
            count(reason.index());
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn count(index: u32) {
    if let Some(counter) = DECAP_COUNTERS.get_ptr_mut(index) {
        // SAFETY: the element is this CPU's own, and XDP programs do not preempt each other.
        unsafe { *counter += 1 }
    }
}

#[inline(always)]
fn process(packet: &mut Packet) -> Result<DecapEvent, DecapDrop> {
    let outer = match outer::parse(packet) {
        Ok(outer) => outer,
        Err(event) => return Ok(event),
    };
    let opened = match outer.inner {
        Version::V4 => inner::open4(packet, &outer)?,
        Version::V6 => inner::open6(packet, &outer)?,
    };
    match opened {
        DecapEvent::Decapsulated => strip::outer(packet, &outer),
        event => Ok(event),
    }
}
