//! The last stage: the link header moves to the inner packet.

use lb_common::{
    decap::{DecapDrop, DecapEvent},
    outcome::DropReason,
};
use lb_ebpf::{
    packet::Packet,
    wire::{EthHdr, VlanTag, ethertype},
};

use crate::outer::{Outer, Version};

/// Strips the outer header.
#[inline(always)]
pub fn outer(packet: &mut Packet, outer: &Outer) -> Result<DecapEvent, DecapDrop> {
    match move_link(packet, outer) {
        Ok(()) => Ok(DecapEvent::Decapsulated),
        Err(_) => Err(DecapDrop::NoHeadroom),
    }
}

#[inline(always)]
fn move_link(packet: &mut Packet, outer: &Outer) -> Result<(), DropReason> {
    let kind = match outer.inner {
        Version::V4 => ethertype::IPV4,
        Version::V6 => ethertype::IPV6,
    };
    // Behind the Ethernet header there are tags or an IP header, and an inner packet behind it.
    let mut ethernet = *packet.at::<EthHdr>(0)?;
    let [first, second] = *packet.at::<[VlanTag; 2]>(EthHdr::LEN)?;
    packet.grow_head(-(outer.header as i32))?;
    let last = |tag: VlanTag| {
        let [high, low] = kind.to_ne_bytes();
        [tag[0], tag[1], high, low]
    };
    match outer.l3 - EthHdr::LEN {
        0 => ethernet.ether_type = kind,
        4 => *packet.at::<VlanTag>(EthHdr::LEN)? = last(first),
        _ => *packet.at::<[VlanTag; 2]>(EthHdr::LEN)? = [first, last(second)],
    }
    *packet.at::<EthHdr>(0)? = ethernet;
    Ok(())
}
