//! The link header: Ethernet and VLAN tags.

use crate::{
    packet::Packet,
    wire::{EthHdr, VlanTag, ethertype},
};

/// The EtherType behind at most two VLAN tags, as it lies in memory, and the offset of what follows.
#[inline(always)]
pub fn link(packet: &mut Packet) -> Option<(u16, usize)> {
    let kind = packet.at::<EthHdr>(0).ok()?.ether_type;
    if kind != ethertype::VLAN && kind != ethertype::SERVICE_VLAN {
        return Some((kind, EthHdr::LEN));
    }
    let kind = after_tag(packet, EthHdr::LEN)?;
    if kind != ethertype::VLAN {
        return Some((kind, EthHdr::LEN + 4));
    }
    Some((after_tag(packet, EthHdr::LEN + 4)?, EthHdr::LEN + 8))
}

#[inline(always)]
fn after_tag(packet: &mut Packet, offset: usize) -> Option<u16> {
    let [_, _, high, low] = *packet.at::<VlanTag>(offset).ok()?;
    Some(u16::from_ne_bytes([high, low]))
}
