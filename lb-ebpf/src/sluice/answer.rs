//! Packets that the data plane makes itself, in place of the one that came: echo replies, RSTs and
//! "packet too big". They go back to the neighbour that the packet came from.

use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    checksum::{self, Delta},
    outcome::{DropReason, Event},
};
use lb_ebpf::{
    packet::Packet,
    wire::{
        EthHdr, Icmp, Ipv4Hdr, Ipv6Hdr, Tcp, get16, get32, get128, protocol, put16, put128,
        tcp_flags,
    },
};

use crate::{Verdict, Version, count, parse::Segment};

/// TTL of what we send ourselves.
const TTL: u8 = 64;

/// Bytes of TCP that an ICMP error quotes (RFC 792).
const QUOTED_TCP: usize = 8;

/// Answers of an IP version.
pub trait Answer: Addr {
    /// Length of the IP header that [`Answer::header`] writes.
    const HEADER: usize;

    /// Writes an IP header at `l3` and returns the sum of the pseudo-header for the checksum of what
    /// follows it (zero where the protocol has none).
    fn header(
        packet: &mut Packet,
        l3: usize,
        from: &Self,
        to: &Self,
        proto: u8,
        payload: u16,
    ) -> Result<u64, DropReason>;

    /// Turns an echo request into its reply.
    fn echo(packet: &mut Packet, echo: &Segment<Self>) -> Result<(), DropReason>;

    /// Writes the ICMP error "packet too big", which quotes the packet behind it: `l4` is the place
    /// of the ICMP header. Returns the bytes quoted.
    fn too_big(packet: &mut Packet, l3: usize, l4: usize, mtu: u16) -> Result<usize, DropReason>;
}

/// Answers a segment of no connection with a RST (RFC 9293 section 3.10.7.1).
#[inline(always)]
pub fn reset<A: Version>(packet: &mut Packet, segment: &Segment<A>) -> Result<Verdict, DropReason> {
    let (seq, ack, flags) = if segment.flags & tcp_flags::ACK != 0 {
        (segment.ack, 0, tcp_flags::RST)
    } else {
        (0, segment.end(), tcp_flags::RST | tcp_flags::ACK)
    };
    let Tuple { src, dst, sport, dport } = segment.tuple.reversed();
    let l3 = segment.l3 as usize;
    let l4 = l3 + A::HEADER;
    packet.trim_tail(l4 + Tcp::LEN)?;
    let pseudo = A::header(packet, l3, &src, &dst, protocol::TCP, Tcp::LEN as u16)?;
    *packet.at::<Tcp>(l4)? = Tcp {
        sport: sport.to_ne_bytes(),
        dport: dport.to_ne_bytes(),
        seq: seq.to_be_bytes(),
        ack: ack.to_be_bytes(),
        offset: (Tcp::LEN as u8 / 4) << 4,
        flags,
        window: [0; 2],
        check: [0; 2],
        urgent: [0; 2],
    };
    let sum = pseudo + packet.sum::<[u8; Tcp::LEN]>(l4, 0)?;
    packet.at::<Tcp>(l4)?.check = checksum::finish(sum).to_ne_bytes();
    turn_back(packet)?;
    count::event(packet.service, Event::ResetSent);
    Ok(Verdict::Transmit)
}

/// Answers a packet with the size that would fit (RFC 1191, RFC 8201).
#[inline(always)]
pub fn packet_too_big<A: Version>(
    packet: &mut Packet,
    l3: u32,
    mtu: u16,
) -> Result<Verdict, DropReason> {
    let l3 = l3 as usize;
    // The frame begins with the same link header, but earlier: there is a header to come between.
    let ethernet = *packet.at::<EthHdr>(0)?;
    let tags = *packet.at::<[u8; 8]>(EthHdr::LEN)?;
    let grow = A::HEADER + Icmp::LEN;
    packet.grow_head(grow as i32)?;
    *packet.at::<EthHdr>(0)? = ethernet;
    if l3 > EthHdr::LEN {
        *packet.at::<[u8; 8]>(EthHdr::LEN)? = tags;
    }
    turn_back(packet)?;
    let l4 = l3 + A::HEADER;
    let quoted = A::too_big(packet, l3, l4, mtu)?;
    packet.trim_tail(l4 + Icmp::LEN + quoted)?;
    count::event(packet.service, Event::PacketTooBigSent);
    Ok(Verdict::Transmit)
}

/// Swaps the MAC addresses; VLAN tags stay.
#[inline(always)]
fn turn_back(packet: &mut Packet) -> Result<(), DropReason> {
    let ethernet = packet.at::<EthHdr>(0)?;
    core::mem::swap(&mut ethernet.src_addr, &mut ethernet.dst_addr);
    Ok(())
}

/// Writes an ICMP header whose checksum covers `quoted` as well.
#[inline(always)]
fn write_icmp<Q: lb_ebpf::wire::Wire>(
    packet: &mut Packet,
    l4: usize,
    header: Icmp,
    pseudo: u64,
) -> Result<usize, DropReason> {
    *packet.at::<Icmp>(l4)? = header;
    let sum = pseudo + packet.sum::<Icmp>(l4, 0)? + packet.sum::<Q>(l4 + Icmp::LEN, 0)?;
    packet.at::<Icmp>(l4)?.check = checksum::finish(sum).to_ne_bytes();
    Ok(size_of::<Q>())
}

impl Answer for V4 {
    const HEADER: usize = Ipv4Hdr::LEN;

    #[inline(always)]
    fn header(
        packet: &mut Packet,
        l3: usize,
        from: &V4,
        to: &V4,
        proto: u8,
        payload: u16,
    ) -> Result<u64, DropReason> {
        *packet.at::<Ipv4Hdr>(l3)? = Ipv4Hdr {
            vihl: 0x45,
            tos: 0,
            tot_len: (Ipv4Hdr::LEN as u16 + payload).to_be_bytes(),
            id: [0; 2],
            frags: [0x40, 0], // don't fragment
            ttl: TTL,
            proto,
            check: [0; 2],
            src_addr: from.0.to_ne_bytes(),
            dst_addr: to.0.to_ne_bytes(),
        };
        let sum = packet.sum::<Ipv4Hdr>(l3, 0)?;
        packet.at::<Ipv4Hdr>(l3)?.check = checksum::finish(sum).to_ne_bytes();
        if proto == protocol::ICMP {
            return Ok(0);
        }
        Ok(from.0 as u64 + to.0 as u64 + (proto as u16).to_be() as u64 + payload.to_be() as u64)
    }

    #[inline(always)]
    fn echo(packet: &mut Packet, echo: &Segment<V4>) -> Result<(), DropReason> {
        let ip = packet.at::<Ipv4Hdr>(echo.l3 as usize)?;
        let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
        ip.ttl = TTL;
        let delta = Delta::default().word(old, u16::from_ne_bytes([ip.ttl, ip.proto]));
        let check = delta.apply(get16(&ip.check));
        put16(&mut ip.check, check);
        core::mem::swap(&mut ip.src_addr, &mut ip.dst_addr);
        let icmp = packet.at::<Icmp>(echo.l4 as usize)?;
        let old = u16::from_ne_bytes([icmp.type_, icmp.code]);
        icmp.type_ = 0; // echo reply
        let delta = Delta::default().word(old, u16::from_ne_bytes([icmp.type_, icmp.code]));
        let check = delta.apply(get16(&icmp.check));
        put16(&mut icmp.check, check);
        turn_back(packet)
    }

    #[inline(always)]
    fn too_big(packet: &mut Packet, l3: usize, l4: usize, mtu: u16) -> Result<usize, DropReason> {
        const BARE: usize = Ipv4Hdr::LEN + QUOTED_TCP;
        const WITH_OPTIONS: usize = 60 + QUOTED_TCP; // the longest header that there is
        let inner = packet.at::<Ipv4Hdr>(l4 + Icmp::LEN)?;
        let (from, to) = (V4(get32(&inner.dst_addr)), V4(get32(&inner.src_addr)));
        let bare = inner.vihl == 0x45;
        let [high, low] = mtu.to_be_bytes();
        // Destination unreachable, fragmentation needed.
        let icmp = Icmp { type_: 3, code: 4, check: [0; 2], data: [0, 0, high, low] };
        let quoted = if bare { BARE } else { WITH_OPTIONS };
        let payload = (Icmp::LEN + quoted) as u16;
        let pseudo = Self::header(packet, l3, &from, &to, protocol::ICMP, payload)?;
        if bare {
            write_icmp::<[u8; BARE]>(packet, l4, icmp, pseudo)
        } else {
            write_icmp::<[u8; WITH_OPTIONS]>(packet, l4, icmp, pseudo)
        }
    }
}

/// Writes an IPv6 header but for its addresses.
#[inline(always)]
fn header6(packet: &mut Packet, l3: usize, proto: u8, payload: u16) -> Result<(), DropReason> {
    *packet.at::<Ipv6Hdr>(l3)? = Ipv6Hdr {
        vcf: [0x60, 0, 0, 0],
        payload_len: payload.to_be_bytes(),
        next_hdr: proto,
        hop_limit: TTL,
        src_addr: [0; 16],
        dst_addr: [0; 16],
    };
    Ok(())
}

/// The sum of the pseudo-header (RFC 8200 section 8.1), whose addresses are those of the header.
#[inline(always)]
fn pseudo6(packet: &mut Packet, l3: usize, proto: u8, payload: u16) -> Result<u64, DropReason> {
    const ADDRESSES: usize = 8;
    let sum = packet.sum::<[u8; 32]>(l3 + ADDRESSES, 0)?;
    Ok(sum + (proto as u16).to_be() as u64 + payload.to_be() as u64)
}

impl Answer for V6 {
    const HEADER: usize = Ipv6Hdr::LEN;

    #[inline(always)]
    fn header(
        packet: &mut Packet,
        l3: usize,
        from: &V6,
        to: &V6,
        proto: u8,
        payload: u16,
    ) -> Result<u64, DropReason> {
        header6(packet, l3, proto, payload)?;
        let ip = packet.at::<Ipv6Hdr>(l3)?;
        put128(&mut ip.src_addr, &from.0);
        put128(&mut ip.dst_addr, &to.0);
        pseudo6(packet, l3, proto, payload)
    }

    #[inline(always)]
    fn echo(packet: &mut Packet, echo: &Segment<V6>) -> Result<(), DropReason> {
        let ip = packet.at::<Ipv6Hdr>(echo.l3 as usize)?;
        ip.hop_limit = TTL;
        // The pseudo-header's sum does not change when the addresses swap places.
        core::mem::swap(&mut ip.src_addr, &mut ip.dst_addr);
        let icmp = packet.at::<Icmp>(echo.l4 as usize)?;
        let old = u16::from_ne_bytes([icmp.type_, icmp.code]);
        icmp.type_ = 129; // echo reply
        let delta = Delta::default().word(old, u16::from_ne_bytes([icmp.type_, icmp.code]));
        let check = delta.apply(get16(&icmp.check));
        put16(&mut icmp.check, check);
        turn_back(packet)
    }

    #[inline(always)]
    fn too_big(packet: &mut Packet, l3: usize, l4: usize, mtu: u16) -> Result<usize, DropReason> {
        /// RFC 4443 asks for as much as fits into 1,280 bytes; eight bytes of TCP are what is used,
        /// and extension headers may come before them.
        const QUOTED: usize = Ipv6Hdr::LEN + 56 + QUOTED_TCP;
        /// No IPv6 link has a smaller MTU (RFC 8200 section 5), and a smaller one would be ignored.
        const MIN_MTU: u16 = 1280;
        let payload = (Icmp::LEN + QUOTED) as u16;
        header6(packet, l3, protocol::ICMPV6, payload)?;
        // One address at a time: both would take twice the stack.
        let sender = get128(&packet.at::<Ipv6Hdr>(l4 + Icmp::LEN)?.src_addr);
        put128(&mut packet.at::<Ipv6Hdr>(l3)?.dst_addr, &sender);
        let receiver = get128(&packet.at::<Ipv6Hdr>(l4 + Icmp::LEN)?.dst_addr);
        put128(&mut packet.at::<Ipv6Hdr>(l3)?.src_addr, &receiver);
        let pseudo = pseudo6(packet, l3, protocol::ICMPV6, payload)?;
        let [high, low] = mtu.max(MIN_MTU).to_be_bytes();
        let icmp = Icmp { type_: 2, code: 0, check: [0; 2], data: [0, 0, high, low] };
        write_icmp::<[u8; QUOTED]>(packet, l4, icmp, pseudo)
    }
}
