//! IP-in-IP: the packet travels in another one to the backend (RFC 2003, RFC 2473).

use lb_common::{
    addr::{Addr, V4, V6},
    checksum,
    outcome::DropReason,
    service::{Backend, family},
};
use lb_ebpf::{
    packet::Packet,
    wire::{Ipv4Hdr, Ipv6Hdr, ethertype, protocol},
};

use crate::{Verdict, Version, service::Tables, transmit};

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
        family::V6 => {
            let header = outer6(inner, ip_len, traffic_class, backend);
            transmit::wrapped(packet, l3, &header, ethertype::IPV6, backend.next_hop)
        }
        _ => {
            let header = outer4(inner, ip_len, traffic_class, backend);
            transmit::wrapped(packet, l3, &header, ethertype::IPV4, backend.next_hop)
        }
    }
}

/// An outer IPv4 header, as the words that it is in memory.
#[inline(always)]
fn outer4(inner: u8, ip_len: u16, traffic_class: u8, backend: &Backend) -> [u32; 5] {
    let total = (ip_len + Ipv4Hdr::LEN as u16).to_be();
    let first = 0x45 | (traffic_class as u32) << 8 | (total as u32) << 16;
    // What is too big was answered before, so the outer packet is never fragmented, and with "don't
    // fragment" set its identification may be constant (RFC 6864 section 4.1).
    let second = u32::from_ne_bytes([0, 0, 0x40, 0]);
    let third = u32::from_ne_bytes([OUTER_TTL, inner, 0, 0]);
    let V4(source) = V4::from_backend(backend.tunnel_source);
    let V4(destination) = V4::from_backend(backend.addr);
    let sum = first as u64 + second as u64 + third as u64 + source as u64 + destination as u64;
    let third = third | (checksum::finish(sum) as u32) << 16;
    [first, second, third, source, destination]
}

/// An outer IPv6 header, as the words that it is in memory.
#[inline(always)]
fn outer6(inner: u8, ip_len: u16, traffic_class: u8, backend: &Backend) -> [u32; 10] {
    let first = (0x6000_0000 | (traffic_class as u32) << 20).to_be();
    let second = ip_len.to_be() as u32 | (inner as u32) << 16 | (OUTER_TTL as u32) << 24;
    let V6([a, b, c, d]) = V6::from_backend(backend.tunnel_source);
    let V6([e, f, g, h]) = V6::from_backend(backend.addr);
    [first, second, a, b, c, d, e, f, g, h]
}
