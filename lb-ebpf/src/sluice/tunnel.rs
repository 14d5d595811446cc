//! IP-in-IP: the packet travels in another one to the backend (RFC 2003, RFC 2473).

use lb_common::{
    addr::{Addr, V4},
    checksum,
    outcome::DropReason,
    service::{Backend, family},
};
use lb_ebpf::{
    packet::Packet,
    wire::{Ipv4Hdr, Ipv6Hdr, ethertype, load32, protocol, put32},
};

use crate::{Verdict, Version, transmit};

/// TTL of the outer header, as operating systems choose it for their own packets.
const OUTER_TTL: u8 = 64;

/// Bytes that the tunnel adds to a packet.
#[inline(always)]
pub fn overhead(backend: &Backend) -> u16 {
    match backend.family {
        family::V6 => Ipv6Hdr::LEN as u16,
        _ => Ipv4Hdr::LEN as u16,
    }
}

/// Wraps a packet and sends it to its backend.
///
/// The traffic class is copied to the outer header, ECN included (RFC 6040 normal mode).
#[inline(always)]
pub fn send<A: Version>(
    packet: &mut Packet,
    l3: usize,
    ip_len: u16,
    traffic_class: u8,
    backend: &'static Backend,
) -> Result<Verdict, DropReason> {
    let inner = match A::FAMILY {
        V4::FAMILY => protocol::IPIP,
        _ => protocol::IPV6,
    };
    match backend.family {
        family::V6 => transmit::wrapped(packet, l3, ethertype::IPV6, backend.next_hop, |header| {
            outer6(header, inner, ip_len, traffic_class, backend)
        }),
        _ => transmit::wrapped(packet, l3, ethertype::IPV4, backend.next_hop, |header| {
            outer4(header, inner, ip_len, traffic_class, backend)
        }),
    }
}

/// An IP header as the words that it is in memory.
type Words<const N: usize> = [[u8; 4]; N];

/// Writes an outer IPv4 header.
#[inline(always)]
fn outer4(header: &mut Words<5>, inner: u8, ip_len: u16, traffic_class: u8, backend: &Backend) {
    let total = (ip_len + Ipv4Hdr::LEN as u16).to_be();
    let first = 0x45 | (traffic_class as u32) << 8 | (total as u32) << 16;
    // What is too big was answered before, so the outer packet is never fragmented, and with "don't
    // fragment" set its identification may be constant (RFC 6864 section 4.1).
    let second = u32::from_ne_bytes([0, 0, 0x40, 0]);
    let third = u32::from_ne_bytes([OUTER_TTL, inner, 0, 0]);
    let source = load32(&backend.tunnel_source[0]);
    let destination = load32(&backend.addr[0]);
    let sum = first as u64 + second as u64 + third as u64 + source as u64 + destination as u64;
    put32(&mut header[0], first);
    put32(&mut header[1], second);
    put32(&mut header[2], third | (checksum::finish(sum) as u32) << 16);
    put32(&mut header[3], source);
    put32(&mut header[4], destination);
}

/// Writes an outer IPv6 header.
#[inline(always)]
fn outer6(header: &mut Words<10>, inner: u8, ip_len: u16, traffic_class: u8, backend: &Backend) {
    let [first, second, addresses @ ..] = header;
    put32(first, (0x6000_0000 | (traffic_class as u32) << 20).to_be());
    put32(second, ip_len.to_be() as u32 | (inner as u32) << 16 | (OUTER_TTL as u32) << 24);
    let (source, destination) = addresses.split_at_mut(4);
    for (field, word) in source.iter_mut().zip(&backend.tunnel_source) {
        put32(field, load32(word));
    }
    for (field, word) in destination.iter_mut().zip(&backend.addr) {
        put32(field, load32(word));
    }
}
