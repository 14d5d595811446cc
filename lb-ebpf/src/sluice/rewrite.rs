//! Changes to headers that stay where they are, with their checksums.

use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    checksum::Delta,
    outcome::DropReason,
};
use lb_ebpf::{
    packet::{Packet, opaque},
    wire::{Icmp, Ipv4Hdr, Ipv6Hdr, Ports, Tcp, get16, get32, load32, put16, put32},
};

use crate::parse::{IcmpError, Segment};

/// Rewriting of an IP version.
pub trait Rewrite: Addr {
    /// Gives a segment another tuple and takes one off its TTL. `changed`: what was changed before and
    /// the TCP checksum does not know of.
    fn translate(
        packet: &mut Packet,
        segment: &Segment<Self>,
        to: &Tuple<Self>,
        changed: Delta,
    ) -> Result<(), DropReason>;

    /// Gives an ICMP error, and the segment that it quotes, other addresses and ports. `to` is the
    /// rewrite of the flow that the quoted segment's answer would belong to, and `seq_delta` what it adds
    /// to acknowledgements: the sender must find its own sequence number in the quote (RFC 5927 section 4).
    fn translate_error(
        packet: &mut Packet,
        error: &IcmpError<Self>,
        to: &Tuple<Self>,
        seq_delta: u32,
    ) -> Result<(), DropReason>;

    /// Takes the ECN field out of the traffic class: "not capable" (RFC 3168 section 5).
    fn clear_ecn(packet: &mut Packet, l3: usize) -> Result<(), DropReason>;

    /// Takes one off the TTL and returns the traffic class (DSCP and ECN).
    fn hop(packet: &mut Packet, l3: usize) -> Result<u8, DropReason>;
}

/// The ECN field of a traffic class.
const ECN: u8 = 0b11;

/// A router must not forward what arrives with a TTL of 1 (RFC 1812 section 5.3.1, RFC 8200 section 3).
#[inline(always)]
fn decremented(ttl: u8) -> Result<u8, DropReason> {
    if ttl > 1 { Ok(ttl - 1) } else { Err(DropReason::TtlExceeded) }
}

/// Writes ports; returns what that does to checksums over them.
#[inline(always)]
fn ports<A>(sport: &mut [u8; 2], dport: &mut [u8; 2], to: &Tuple<A>) -> Delta {
    let delta = Delta::default().word(get16(sport), to.sport).word(get16(dport), to.dport);
    put16(sport, to.sport);
    put16(dport, to.dport);
    delta
}

/// Writes the ports and the checksum of a TCP header.
#[inline(always)]
fn translate_tcp<A: Copy>(
    packet: &mut Packet,
    segment: &Segment<A>,
    to: &Tuple<A>,
    addresses: Delta,
) -> Result<(), DropReason> {
    let tcp = packet.at::<Tcp>(segment.l4 as usize)?;
    let delta = addresses.and(ports(&mut tcp.sport, &mut tcp.dport, to));
    let check = delta.apply(get16(&tcp.check));
    put16(&mut tcp.check, check);
    Ok(())
}

/// Writes the ports and the sequence number that an ICMP error quotes; returns what that does to the ICMP
/// checksum. A TCP checksum may or may not be quoted, nobody verifies it, and it is left as it was.
#[inline(always)]
fn translate_quoted<A: Copy>(
    packet: &mut Packet,
    error: &IcmpError<A>,
    to: &Tuple<A>,
    seq_delta: u32,
) -> Result<Delta, DropReason> {
    // The quoted segment went the other way.
    let header = packet.at::<Ports>(error.quoted_l4 as usize)?;
    let delta = ports(&mut header.dport, &mut header.sport, to);
    let seq = get32(&header.seq);
    let new = u32::from_be(seq).wrapping_add(seq_delta).to_be();
    put32(&mut header.seq, new);
    Ok(delta.words(seq, new))
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
fn addresses4(ip: &mut Ipv4Hdr, src: &V4, dst: &V4) -> Delta {
    let delta =
        Delta::default().words(get32(&ip.src_addr), src.0).words(get32(&ip.dst_addr), dst.0);
    put32(&mut ip.src_addr, src.0);
    put32(&mut ip.dst_addr, dst.0);
    delta
}

/// Writes an address of an IPv6 header, word by word: as a whole it would go through the stack.
#[inline(always)]
fn address6(field: &mut [u8; 16], to: &V6) -> Delta {
    let (words, _) = field.as_chunks_mut::<4>();
    let mut delta = Delta::default();
    for (word, new) in words.iter_mut().zip(&to.0) {
        let new = load32(new);
        delta = delta.words(get32(word), new);
        put32(word, new);
        // Summed up at once: the compiler would keep all words for a sum at the end.
        delta = Delta::from_sum(opaque(delta.sum() as usize) as u64);
    }
    delta
}

#[inline(always)]
fn addresses6(ip: &mut Ipv6Hdr, src: &V6, dst: &V6) -> Delta {
    address6(&mut ip.src_addr, src).and(address6(&mut ip.dst_addr, dst))
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
        changed: Delta,
    ) -> Result<(), DropReason> {
        let ip = packet.at::<Ipv4Hdr>(segment.l3 as usize)?;
        let ttl = hop4(ip)?;
        let addresses = addresses4(ip, &to.src, &to.dst);
        let check = ttl.and(addresses).apply(get16(&ip.check));
        put16(&mut ip.check, check);
        translate_tcp(packet, segment, to, addresses.and(changed))
    }

    #[inline(never)]
    fn translate_error(
        packet: &mut Packet,
        error: &IcmpError<V4>,
        to: &Tuple<V4>,
        seq_delta: u32,
    ) -> Result<(), DropReason> {
        let outer = packet.at::<Ipv4Hdr>(error.l3 as usize)?;
        let ttl = hop4(outer)?;
        let addresses = addresses4(outer, &to.src, &to.dst);
        let check = ttl.and(addresses).apply(get16(&outer.check));
        put16(&mut outer.check, check);

        let inner = packet.at::<Ipv4Hdr>(error.l4 as usize + Icmp::LEN)?;
        let delta = addresses4(inner, &to.dst, &to.src);
        let check = get16(&inner.check);
        let new_check = delta.apply(check);
        put16(&mut inner.check, new_check);
        // The ICMP checksum covers the quoted addresses, their header's checksum and the ports.
        let delta =
            delta.word(check, new_check).and(translate_quoted(packet, error, to, seq_delta)?);
        apply_to_icmp(packet, error.l4 as usize, delta)
    }

    #[inline(always)]
    fn hop(packet: &mut Packet, l3: usize) -> Result<u8, DropReason> {
        let ip = packet.at::<Ipv4Hdr>(l3)?;
        let delta = hop4(ip)?;
        let check = delta.apply(get16(&ip.check));
        put16(&mut ip.check, check);
        Ok(ip.tos)
    }

    #[inline(always)]
    fn clear_ecn(packet: &mut Packet, l3: usize) -> Result<(), DropReason> {
        let ip = packet.at::<Ipv4Hdr>(l3)?;
        let old = u16::from_ne_bytes([ip.vihl, ip.tos]);
        ip.tos &= !ECN;
        let delta = Delta::default().word(old, u16::from_ne_bytes([ip.vihl, ip.tos]));
        let check = delta.apply(get16(&ip.check));
        put16(&mut ip.check, check);
        Ok(())
    }
}

impl Rewrite for V6 {
    #[inline(always)]
    fn translate(
        packet: &mut Packet,
        segment: &Segment<V6>,
        to: &Tuple<V6>,
        changed: Delta,
    ) -> Result<(), DropReason> {
        let ip = packet.at::<Ipv6Hdr>(segment.l3 as usize)?;
        ip.hop_limit = decremented(ip.hop_limit)?;
        let addresses = addresses6(ip, &to.src, &to.dst);
        translate_tcp(packet, segment, to, addresses.and(changed))
    }

    #[inline(never)]
    fn translate_error(
        packet: &mut Packet,
        error: &IcmpError<V6>,
        to: &Tuple<V6>,
        seq_delta: u32,
    ) -> Result<(), DropReason> {
        let outer = packet.at::<Ipv6Hdr>(error.l3 as usize)?;
        outer.hop_limit = decremented(outer.hop_limit)?;
        let pseudo = addresses6(outer, &to.src, &to.dst);

        let inner = packet.at::<Ipv6Hdr>(error.l4 as usize + Icmp::LEN)?;
        let delta = pseudo.and(addresses6(inner, &to.dst, &to.src));
        let delta = delta.and(translate_quoted(packet, error, to, seq_delta)?);
        apply_to_icmp(packet, error.l4 as usize, delta)
    }

    #[inline(always)]
    fn hop(packet: &mut Packet, l3: usize) -> Result<u8, DropReason> {
        let ip = packet.at::<Ipv6Hdr>(l3)?;
        ip.hop_limit = decremented(ip.hop_limit)?;
        Ok(ip.vcf[0] << 4 | ip.vcf[1] >> 4)
    }

    #[inline(always)]
    fn clear_ecn(packet: &mut Packet, l3: usize) -> Result<(), DropReason> {
        packet.at::<Ipv6Hdr>(l3)?.vcf[1] &= !(ECN << 4);
        Ok(())
    }
}
