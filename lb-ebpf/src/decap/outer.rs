//! The outer header: which packets are in a tunnel at all.

use lb_common::{checksum, decap::DecapEvent, outcome::DropReason};
use lb_ebpf::{
    link::link,
    packet::Packet,
    wire::{Ipv4Hdr, Ipv6Hdr, ethertype, get16, get32, protocol},
};

/// An IP version.
#[derive(Clone, Copy)]
pub enum Version {
    V4,
    V6,
}

/// A packet in a tunnel.
pub struct Outer {
    /// Offset of the outer IP header.
    pub l3: usize,
    /// Length of the outer IP header.
    pub header: usize,
    /// Length of what the outer packet carries.
    pub payload: usize,
    /// ECN field of the outer header, in the low two bits.
    pub ecn: u8,
    /// What the outer header says that it carries.
    pub inner: Version,
}

/// Parses the outer header; an error says why the packet is left to the kernel.
#[inline(always)]
pub fn parse(packet: &mut Packet) -> Result<Outer, DecapEvent> {
    match link(packet) {
        Some((ethertype::IPV4, l3)) => parse4(packet, l3),
        Some((ethertype::IPV6, l3)) => parse6(packet, l3),
        _ => Err(DecapEvent::PassNotForUs),
    }
}

/// The IP version of what a header says that it carries.
#[inline(always)]
fn carried(proto: u8) -> Result<Version, DecapEvent> {
    match proto {
        protocol::IPIP => Ok(Version::V4),
        protocol::IPV6 => Ok(Version::V6),
        _ => Err(DecapEvent::PassNotForUs),
    }
}

#[inline(always)]
fn parse4(packet: &mut Packet, l3: usize) -> Result<Outer, DecapEvent> {
    let Ok(ip) = packet.at::<Ipv4Hdr>(l3) else {
        return Err(DecapEvent::PassNotForUs);
    };
    let inner = carried(ip.proto)?;
    let header = (ip.vihl & 0xf) as usize * 4;
    let version = ip.vihl >> 4;
    let len = u16::from_be(get16(&ip.tot_len)) as usize;
    let ecn = ip.tos & 3;
    let is_fragment = u16::from_be(get16(&ip.frags)) & 0x3fff != 0; // more fragments, or an offset
    if version != 4 || header < Ipv4Hdr::LEN || len < header || l3 + len > packet.len() {
        return Err(DecapEvent::PassMalformed);
    }
    // The kernel will never see this header, so nobody else would notice a damaged one.
    if !is_intact(packet, l3, header).unwrap_or(false) {
        return Err(DecapEvent::PassMalformed);
    }
    if is_fragment {
        return Err(DecapEvent::PassFragment);
    }
    Ok(Outer { l3, header, payload: len - header, ecn, inner })
}

/// Whether the checksum of an IPv4 header is right.
#[inline(always)]
fn is_intact(packet: &mut Packet, l3: usize, header: usize) -> Result<bool, DropReason> {
    const MAX_OPTIONS: usize = 10; // words
    let mut sum = packet.sum::<Ipv4Hdr>(l3, 0)?;
    for word in 0..MAX_OPTIONS {
        let at = Ipv4Hdr::LEN + word * 4;
        if at >= header {
            break;
        }
        let Ok(option) = packet.at::<[u8; 4]>(l3 + at) else {
            return Ok(false);
        };
        sum += get32(option) as u64;
    }
    Ok(checksum::fold(sum) == 0xffff)
}

#[inline(always)]
fn parse6(packet: &mut Packet, l3: usize) -> Result<Outer, DecapEvent> {
    let Ok(ip) = packet.at::<Ipv6Hdr>(l3) else {
        return Err(DecapEvent::PassNotForUs);
    };
    // Behind extension headers there is a fragment, or something that no edge has sent.
    if ip.next_hdr == protocol::FRAGMENT {
        return fragment6(packet, l3);
    }
    let inner = carried(ip.next_hdr)?;
    let version = ip.vcf[0] >> 4;
    let payload = u16::from_be(get16(&ip.payload_len)) as usize;
    let ecn = ip.vcf[1] >> 4 & 3;
    if version != 6 || l3 + Ipv6Hdr::LEN + payload > packet.len() {
        return Err(DecapEvent::PassMalformed);
    }
    Ok(Outer { l3, header: Ipv6Hdr::LEN, payload, ecn, inner })
}

#[inline(always)]
fn fragment6(packet: &mut Packet, l3: usize) -> Result<Outer, DecapEvent> {
    let Ok([next, ..]) = packet.at::<[u8; 8]>(l3 + Ipv6Hdr::LEN) else {
        return Err(DecapEvent::PassNotForUs);
    };
    carried(*next)?;
    Err(DecapEvent::PassFragment)
}
