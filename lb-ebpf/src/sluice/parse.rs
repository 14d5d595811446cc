//! Parse once: a frame's headers become a small struct, and no later stage parses again.

use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    outcome::{DropReason, Event},
};
use lb_ebpf::{
    packet::Packet,
    wire::{
        EthHdr, Icmp, Ipv4Hdr, Ipv6Hdr, Ports, Tcp, VlanTag, ethertype, get16, get32, get128,
        protocol, tcp_flags,
    },
};

/// A TCP segment.
pub struct Segment<A> {
    pub tuple: Tuple<A>,
    /// Offset of the IP header in the frame, in bytes.
    pub l3: usize,
    /// Offset of the TCP header in the frame, in bytes.
    pub l4: usize,
    /// Sequence number, host byte order.
    pub seq: u32,
    /// Acknowledgement number, host byte order.
    pub ack: u32,
    /// Length of the IP packet in bytes.
    pub ip_len: u16,
    /// Bytes of TCP payload.
    pub payload: u16,
    /// Bytes of TCP options, at most 40.
    pub options: u8,
    /// Bits of [`tcp_flags`].
    pub flags: u8,
}

impl<A> Segment<A> {
    /// Neither opens nor closes a connection.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        self.flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) == 0
    }

    /// The first segment of a connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
    }

    #[inline(always)]
    pub fn is_syn_ack(&self) -> bool {
        self.flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN | tcp_flags::ACK
    }

    #[inline(always)]
    pub fn is_rst(&self) -> bool {
        self.flags & tcp_flags::RST != 0
    }

    /// The sequence number after this segment; SYN and FIN take one each.
    #[inline(always)]
    pub fn end(&self) -> u32 {
        // SYN is bit 1 and FIN bit 0.
        let flags = (self.flags >> 1 & 1) + (self.flags & 1);
        self.seq.wrapping_add(self.payload as u32).wrapping_add(flags as u32)
    }
}

/// An ICMP error about a TCP segment.
pub struct IcmpError<A> {
    /// Source and destination of the ICMP packet itself.
    pub src: A,
    pub dst: A,
    /// The tuple of the segment that it quotes, as that segment was sent.
    pub quoted: Tuple<A>,
    pub l3: usize,
    /// Offset of the ICMP header.
    pub l4: usize,
    /// Offset of the quoted TCP header.
    pub quoted_l4: usize,
    pub ip_len: u16,
}

/// An ICMP echo request.
pub struct Echo<A> {
    pub src: A,
    pub dst: A,
    pub l3: usize,
    pub l4: usize,
}

/// What a packet is, as far as it can concern a service.
pub enum Parsed<A> {
    Segment(Segment<A>),
    IcmpError(IcmpError<A>),
    Echo(Echo<A>),
}

/// Why there is nothing to forward.
pub enum Stop<A> {
    /// Not ours in any case.
    Pass(Event),
    /// Broken: dropped if it is for a VIP, otherwise left to the kernel.
    Bad { dst: A, reason: DropReason },
}

/// Parsing of an IP version.
pub trait Parse: Addr {
    /// Parses a packet whose IP header is at `l3`.
    fn parse(packet: &mut Packet, l3: usize) -> Result<Parsed<Self>, Stop<Self>>;
}

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

impl Parse for V4 {
    #[inline(always)]
    fn parse(packet: &mut Packet, l3: usize) -> Result<Parsed<V4>, Stop<V4>> {
        let malformed = |_| Stop::Pass(Event::PassMalformed);
        let ip = packet.at::<Ipv4Hdr>(l3).map_err(malformed)?;
        let (src, dst) = (V4(get32(&ip.src_addr)), V4(get32(&ip.dst_addr)));
        let bad = |reason| Stop::Bad { dst, reason };
        let (version, header) = (ip.vihl >> 4, ((ip.vihl & 0xf) as usize) * 4);
        let ip_len = u16::from_be(get16(&ip.tot_len));
        let fragment = u16::from_be(get16(&ip.frags)) & 0x3fff != 0; // more fragments, or an offset
        let proto = ip.proto;
        if version != 4 {
            return Err(Stop::Pass(Event::PassMalformed));
        }
        if header < Ipv4Hdr::LEN || (ip_len as usize) < header {
            return Err(bad(DropReason::BadIpHeader));
        }
        check_length(packet, l3, ip_len).map_err(bad)?;
        let l4 = l3 + header;
        match proto {
            protocol::TCP if fragment => Err(bad(DropReason::Fragment)),
            protocol::TCP => {
                segment(packet, src, dst, l3, l4, ip_len).map(Parsed::Segment).map_err(bad)
            }
            protocol::ICMP if !fragment => icmp4(packet, src, dst, l3, l4, ip_len),
            _ => Err(Stop::Pass(Event::PassNotService)),
        }
    }
}

impl Parse for V6 {
    #[inline(always)]
    fn parse(packet: &mut Packet, l3: usize) -> Result<Parsed<V6>, Stop<V6>> {
        let malformed = |_| Stop::Pass(Event::PassMalformed);
        let ip = packet.at::<Ipv6Hdr>(l3).map_err(malformed)?;
        let (src, dst) = (V6(get128(&ip.src_addr)), V6(get128(&ip.dst_addr)));
        let bad = |reason| Stop::Bad { dst, reason };
        let version = ip.vcf[0] >> 4;
        let payload = u16::from_be(get16(&ip.payload_len)) as usize;
        let first = ip.next_hdr;
        if version != 6 {
            return Err(Stop::Pass(Event::PassMalformed));
        }
        if payload > u16::MAX as usize - Ipv6Hdr::LEN {
            return Err(bad(DropReason::BadIpHeader));
        }
        let ip_len = (payload + Ipv6Hdr::LEN) as u16;
        check_length(packet, l3, ip_len).map_err(bad)?;
        match extensions(packet, first, l3 + Ipv6Hdr::LEN).map_err(bad)? {
            (protocol::TCP, l4) => {
                segment(packet, src, dst, l3, l4, ip_len).map(Parsed::Segment).map_err(bad)
            }
            (protocol::ICMPV6, l4) => icmp6(packet, src, dst, l3, l4, ip_len),
            _ => Err(Stop::Pass(Event::PassNotService)),
        }
    }
}

/// The frame must hold the whole packet; behind it there may be padding.
#[inline(always)]
fn check_length(packet: &Packet, l3: usize, ip_len: u16) -> Result<(), DropReason> {
    let end = l3 + ip_len as usize;
    if end > packet.linear_len() && end > packet.len() {
        return Err(DropReason::Truncated);
    }
    Ok(())
}

/// Walks IPv6 extension headers (RFC 8200 section 4): at most six, which is one of each kind and more
/// than any stack sends.
#[inline(always)]
fn extensions(
    packet: &mut Packet,
    mut next: u8,
    mut offset: usize,
) -> Result<(u8, usize), DropReason> {
    for _ in 0..6 {
        match next {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                let [following, len] = *packet.at::<[u8; 2]>(offset)?;
                next = following;
                offset += (len as usize + 1) * 8;
            }
            protocol::FRAGMENT => {
                let [following, _, high, low, ..] = *packet.at::<[u8; 8]>(offset)?;
                // An "atomic" fragment is a whole packet (RFC 6946).
                if u16::from_be_bytes([high, low]) & 0xfff9 != 0 {
                    return Err(DropReason::Fragment);
                }
                next = following;
                offset += 8;
            }
            _ => return Ok((next, offset)),
        }
    }
    Err(DropReason::ExtensionHeaders)
}

#[inline(always)]
fn segment<A: Addr>(
    packet: &mut Packet,
    src: A,
    dst: A,
    l3: usize,
    l4: usize,
    ip_len: u16,
) -> Result<Segment<A>, DropReason> {
    let room = ip_len as usize + l3;
    if l4 + Tcp::LEN > room {
        return Err(DropReason::Truncated);
    }
    let tcp = packet.at::<Tcp>(l4)?;
    let header = ((tcp.offset >> 4) as usize) * 4;
    let flags = tcp.flags;
    let contradictory =
        flags & tcp_flags::SYN != 0 && flags & (tcp_flags::FIN | tcp_flags::RST) != 0;
    if header < Tcp::LEN || l4 + header > room || contradictory {
        return Err(DropReason::BadTcpHeader);
    }
    Ok(Segment {
        tuple: Tuple { src, dst, sport: get16(&tcp.sport), dport: get16(&tcp.dport) },
        l3,
        l4,
        seq: u32::from_be(get32(&tcp.seq)),
        ack: u32::from_be(get32(&tcp.ack)),
        ip_len,
        payload: (room - l4 - header) as u16,
        options: (header - Tcp::LEN) as u8,
        flags,
    })
}

#[inline(always)]
fn icmp4(
    packet: &mut Packet,
    src: V4,
    dst: V4,
    l3: usize,
    l4: usize,
    ip_len: u16,
) -> Result<Parsed<V4>, Stop<V4>> {
    const ECHO_REQUEST: u8 = 8;
    const DESTINATION_UNREACHABLE: u8 = 3;
    const TIME_EXCEEDED: u8 = 11;
    const PARAMETER_PROBLEM: u8 = 12;
    let bad = |reason| Stop::Bad { dst, reason };
    match packet.at::<Icmp>(l4).map_err(bad)?.type_ {
        ECHO_REQUEST => return Ok(Parsed::Echo(Echo { src, dst, l3, l4 })),
        DESTINATION_UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM => {}
        _ => return Err(Stop::Pass(Event::PassNotService)),
    }
    let quoted = l4 + Icmp::LEN;
    let ip = packet.at::<Ipv4Hdr>(quoted).map_err(bad)?;
    let later_fragment = u16::from_be(get16(&ip.frags)) & 0x1fff != 0;
    if ip.vihl >> 4 != 4 || ip.vihl & 0xf < 5 || ip.proto != protocol::TCP || later_fragment {
        return Err(Stop::Pass(Event::PassNotService));
    }
    let quoted_l4 = quoted + ((ip.vihl & 0xf) as usize) * 4;
    let (from, to) = (V4(get32(&ip.src_addr)), V4(get32(&ip.dst_addr)));
    let error = IcmpError { src, dst, quoted: Tuple::default(), l3, l4, quoted_l4, ip_len };
    quote(packet, error, from, to).map_err(bad)
}

#[inline(always)]
fn icmp6(
    packet: &mut Packet,
    src: V6,
    dst: V6,
    l3: usize,
    l4: usize,
    ip_len: u16,
) -> Result<Parsed<V6>, Stop<V6>> {
    const ECHO_REQUEST: u8 = 128;
    let bad = |reason| Stop::Bad { dst, reason };
    match packet.at::<Icmp>(l4).map_err(bad)?.type_ {
        ECHO_REQUEST => return Ok(Parsed::Echo(Echo { src, dst, l3, l4 })),
        1..=4 => {} // unreachable, too big, time exceeded, parameter problem (RFC 4443)
        _ => return Err(Stop::Pass(Event::PassNotService)),
    }
    let quoted = l4 + Icmp::LEN;
    let ip = packet.at::<Ipv6Hdr>(quoted).map_err(bad)?;
    // A quoted packet with extension headers is not one that we sent.
    if ip.vcf[0] >> 4 != 6 || ip.next_hdr != protocol::TCP {
        return Err(Stop::Pass(Event::PassNotService));
    }
    let (from, to) = (V6(get128(&ip.src_addr)), V6(get128(&ip.dst_addr)));
    let quoted_l4 = quoted + Ipv6Hdr::LEN;
    let error = IcmpError { src, dst, quoted: Tuple::default(), l3, l4, quoted_l4, ip_len };
    quote(packet, error, from, to).map_err(bad)
}

/// Completes an ICMP error with the tuple that it quotes.
#[inline(always)]
fn quote<A: Addr>(
    packet: &mut Packet,
    error: IcmpError<A>,
    src: A,
    dst: A,
) -> Result<Parsed<A>, DropReason> {
    if error.quoted_l4 + size_of::<Ports>() > error.l3 + error.ip_len as usize {
        return Err(DropReason::Truncated);
    }
    let ports = packet.at::<Ports>(error.quoted_l4)?;
    let quoted = Tuple { src, dst, sport: get16(&ports.sport), dport: get16(&ports.dport) };
    Ok(Parsed::IcmpError(IcmpError { quoted, ..error }))
}
