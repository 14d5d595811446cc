//! Changes to headers that stay where they are, with their checksums.

use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    checksum::Delta,
    outcome::DropReason,
};
use lb_ebpf::{
    packet::Packet,
    wire::{Icmp, Ipv4Hdr, Ipv6Hdr, Ports, Tcp, get16, put16, put32, put128},
};

use crate::parse::{IcmpError, Segment};

/// Rewriting of an IP version.
pub trait Rewrite: Addr {
    /// Gives a segment another tuple and takes one off its TTL.
    fn translate(
        packet: &mut Packet,
        segment: &Segment<Self>,
        to: &Tuple<Self>,
    ) -> Result<(), DropReason>;

    /// Gives an ICMP error, and the segment that it quotes, other addresses and ports. `to` is the
    /// rewrite of the flow that the quoted segment's answer would belong to.
    fn translate_error(
        packet: &mut Packet,
        error: &IcmpError<Self>,
        to: &Tuple<Self>,
    ) -> Result<(), DropReason>;

    /// Takes one off the TTL and returns the traffic class (DSCP and ECN).
    fn hop(packet: &mut Packet, l3: usize) -> Result<u8, DropReason>;
}

/// A router must not forward what arrives with a TTL of 1 (RFC 1812 section 5.3.1, RFC 8200 section 3).
#[inline(always)]
fn decremented(ttl: u8) -> Result<u8, DropReason> {
    if ttl > 1 { Ok(ttl - 1) } else { Err(DropReason::TtlExceeded) }
}

#[inline(always)]
fn ports<A>(tuple: &Tuple<A>) -> u32 {
    // As the two fields lie in memory, one after the other.
    (tuple.sport as u32) | (tuple.dport as u32) << 16
}

/// Writes the ports and the checksum of a TCP header.
#[inline(always)]
fn translate_tcp<A: Copy>(
    packet: &mut Packet,
    segment: &Segment<A>,
    to: &Tuple<A>,
    addresses: Delta,
) -> Result<(), DropReason> {
    let delta = addresses.words(ports(&segment.tuple), ports(to));
    let tcp = packet.at::<Tcp>(segment.l4)?;
    put16(&mut tcp.sport, to.sport);
    put16(&mut tcp.dport, to.dport);
    let check = delta.apply(get16(&tcp.check));
    put16(&mut tcp.check, check);
    Ok(())
}

/// Writes the ports that an ICMP error quotes and returns what that does to the ICMP checksum. A TCP
/// checksum may or may not be quoted, nobody verifies it, and it is left as it was.
#[inline(always)]
fn translate_quoted_ports<A: Copy>(
    packet: &mut Packet,
    error: &IcmpError<A>,
    quoted: &Tuple<A>,
    delta: Delta,
) -> Result<Delta, DropReason> {
    let header = packet.at::<Ports>(error.quoted_l4)?;
    put16(&mut header.sport, quoted.sport);
    put16(&mut header.dport, quoted.dport);
    Ok(delta.words(ports(&error.quoted), ports(quoted)))
}

#[inline(always)]
fn apply_to_icmp(packet: &mut Packet, l4: usize, delta: Delta) -> Result<(), DropReason> {
    let icmp = packet.at::<Icmp>(l4)?;
    let check = delta.apply(get16(&icmp.check));
    put16(&mut icmp.check, check);
    Ok(())
}

/// Writes the addresses of an IPv4 header; returns what that does to checksums over them.
#[inline(always)]
fn addresses4(ip: &mut Ipv4Hdr, from: (V4, V4), to: (V4, V4)) -> Delta {
    let delta = Delta::default().words(from.0.0, to.0.0).words(from.1.0, to.1.0);
    put32(&mut ip.src_addr, to.0.0);
    put32(&mut ip.dst_addr, to.1.0);
    delta
}

#[inline(always)]
fn addresses6(ip: &mut Ipv6Hdr, from: (V6, V6), to: (V6, V6)) -> Delta {
    put128(&mut ip.src_addr, &to.0.0);
    put128(&mut ip.dst_addr, &to.1.0);
    let (a, b, c, d) = (from.0.0, from.1.0, to.0.0, to.1.0);
    Delta::default()
        .words(a[0], c[0])
        .words(a[1], c[1])
        .words(a[2], c[2])
        .words(a[3], c[3])
        .words(b[0], d[0])
        .words(b[1], d[1])
        .words(b[2], d[2])
        .words(b[3], d[3])
}

/// Takes one off the TTL of an IPv4 header; returns what that does to the header's checksum.
#[inline(always)]
fn hop4(ip: &mut Ipv4Hdr) -> Result<Delta, DropReason> {
    let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
    ip.ttl = decremented(ip.ttl)?;
    Ok(Delta::default().word(old, u16::from_ne_bytes([ip.ttl, ip.proto])))
}

impl Rewrite for V4 {
    #[inline(always)]
    fn translate(
        packet: &mut Packet,
        segment: &Segment<V4>,
        to: &Tuple<V4>,
    ) -> Result<(), DropReason> {
        let from = &segment.tuple;
        let ip = packet.at::<Ipv4Hdr>(segment.l3)?;
        let ttl = hop4(ip)?;
        let addresses = addresses4(ip, (from.src, from.dst), (to.src, to.dst));
        let check = ttl.and(addresses).apply(get16(&ip.check));
        put16(&mut ip.check, check);
        translate_tcp(packet, segment, to, addresses)
    }

    #[inline(always)]
    fn translate_error(
        packet: &mut Packet,
        error: &IcmpError<V4>,
        to: &Tuple<V4>,
    ) -> Result<(), DropReason> {
        let outer = packet.at::<Ipv4Hdr>(error.l3)?;
        let ttl = hop4(outer)?;
        let addresses = addresses4(outer, (error.src, error.dst), (to.src, to.dst));
        let check = ttl.and(addresses).apply(get16(&outer.check));
        put16(&mut outer.check, check);

        let quoted = to.reversed();
        let inner = packet.at::<Ipv4Hdr>(error.l4 + Icmp::LEN)?;
        let old = (error.quoted.src, error.quoted.dst);
        let delta = addresses4(inner, old, (quoted.src, quoted.dst));
        let check = get16(&inner.check);
        let new_check = delta.apply(check);
        put16(&mut inner.check, new_check);
        // The ICMP checksum covers the quoted addresses, their header's checksum and the ports.
        let delta = translate_quoted_ports(packet, error, &quoted, delta.word(check, new_check))?;
        apply_to_icmp(packet, error.l4, delta)
    }

    #[inline(always)]
    fn hop(packet: &mut Packet, l3: usize) -> Result<u8, DropReason> {
        let ip = packet.at::<Ipv4Hdr>(l3)?;
        let delta = hop4(ip)?;
        let check = delta.apply(get16(&ip.check));
        put16(&mut ip.check, check);
        Ok(ip.tos)
    }
}

impl Rewrite for V6 {
    #[inline(always)]
    fn translate(
        packet: &mut Packet,
        segment: &Segment<V6>,
        to: &Tuple<V6>,
    ) -> Result<(), DropReason> {
        let from = &segment.tuple;
        let ip = packet.at::<Ipv6Hdr>(segment.l3)?;
        ip.hop_limit = decremented(ip.hop_limit)?;
        let addresses = addresses6(ip, (from.src, from.dst), (to.src, to.dst));
        translate_tcp(packet, segment, to, addresses)
    }

    #[inline(always)]
    fn translate_error(
        packet: &mut Packet,
        error: &IcmpError<V6>,
        to: &Tuple<V6>,
    ) -> Result<(), DropReason> {
        let outer = packet.at::<Ipv6Hdr>(error.l3)?;
        outer.hop_limit = decremented(outer.hop_limit)?;
        let pseudo = addresses6(outer, (error.src, error.dst), (to.src, to.dst));

        let quoted = to.reversed();
        let inner = packet.at::<Ipv6Hdr>(error.l4 + Icmp::LEN)?;
        let old = (error.quoted.src, error.quoted.dst);
        let delta = pseudo.and(addresses6(inner, old, (quoted.src, quoted.dst)));
        let delta = translate_quoted_ports(packet, error, &quoted, delta)?;
        apply_to_icmp(packet, error.l4, delta)
    }

    #[inline(always)]
    fn hop(packet: &mut Packet, l3: usize) -> Result<u8, DropReason> {
        let ip = packet.at::<Ipv6Hdr>(l3)?;
        ip.hop_limit = decremented(ip.hop_limit)?;
        Ok(ip.vcf[0] << 4 | ip.vcf[1] >> 4)
    }
}
