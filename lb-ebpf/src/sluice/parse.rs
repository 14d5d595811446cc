//! Parse once: a frame's headers become a small struct, and no later stage parses again.

use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    outcome::{DropReason, Event},
};
/// Where parsing begins.
pub use lb_ebpf::link::link;
use lb_ebpf::{
    packet::Packet,
    wire::{Icmp, Ipv4Hdr, Ipv6Hdr, Ports, Tcp, get16, get32, get128, protocol, tcp_flags},
};

/// A TCP segment; or an ICMP message, which has no ports and nothing else of TCP.
///
/// Stages get it by reference, as memory of which every byte is written.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Segment<A> {
    pub tuple: Tuple<A>,
    /// Sequence number, host byte order.
    pub seq: u32,
    /// Acknowledgement number, host byte order.
    pub ack: u32,
    /// Offset of the IP header in the frame, in bytes.
    pub l3: u32,
    /// Offset of the TCP or ICMP header in the frame, in bytes.
    pub l4: u32,
    /// Length of the IP packet in bytes.
    pub ip_len: u16,
    /// Bytes of TCP payload.
    pub payload: u16,
    /// Bytes of TCP options, at most 40.
    pub options: u8,
    /// Bits of [`tcp_flags`].
    pub flags: u8,
    pub _pad: [u8; 2],
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

/// What an ICMP message is, as far as it can concern a service.
pub enum IcmpKind {
    Error,
    EchoRequest,
    Other,
}

/// An ICMP error about a TCP segment.
#[repr(C)]
#[derive(Default)]
pub struct IcmpError<A> {
    /// The tuple of the other direction of the segment that it quotes: who sent that segment receives
    /// what has this tuple.
    pub towards_sender: Tuple<A>,
    pub l3: u32,
    /// Offset of the ICMP header.
    pub l4: u32,
    /// Offset of the quoted TCP header.
    pub quoted_l4: u32,
    /// Length of the IP packet in bytes.
    pub ip_len: u32,
}

/// What a packet is, as far as it can concern a service.
pub enum Parsed {
    Tcp,
    Icmp,
}

/// Why there is nothing to forward.
pub enum Stop {
    /// Not ours in any case.
    Pass(Event),
    /// Broken: dropped if it is for a VIP, otherwise left to the kernel. The addresses are known.
    Bad(DropReason),
}

impl From<DropReason> for Stop {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self::Bad(reason)
    }
}

/// Parsing of an IP version.
pub trait Parse: Addr {
    /// Parses a packet whose IP header is at `l3` into a segment that is empty as yet.
    fn parse(packet: &mut Packet, l3: usize, segment: &mut Segment<Self>) -> Result<Parsed, Stop>;

    /// Tells what an ICMP message is.
    fn icmp_kind(packet: &mut Packet, message: &Segment<Self>) -> Result<IcmpKind, DropReason>;

    /// Parses the headers that an ICMP error quotes; false if it is not about a segment of TCP.
    ///
    /// The result is written where the caller says: moved by value through `Result` and `Option`, it
    /// would be memory of which the verifier sees parts uninitialised.
    fn quoted(
        packet: &mut Packet,
        message: &Segment<Self>,
        error: &mut IcmpError<Self>,
    ) -> Result<bool, DropReason>;
}

impl Parse for V4 {
    #[inline(always)]
    fn parse(packet: &mut Packet, l3: usize, segment: &mut Segment<V4>) -> Result<Parsed, Stop> {
        let malformed = |_| Stop::Pass(Event::PassMalformed);
        let ip = packet.at::<Ipv4Hdr>(l3).map_err(malformed)?;
        segment.tuple.src = V4(get32(&ip.src_addr));
        segment.tuple.dst = V4(get32(&ip.dst_addr));
        let (version, header) = (ip.vihl >> 4, ((ip.vihl & 0xf) as usize) * 4);
        let ip_len = u16::from_be(get16(&ip.tot_len));
        let fragment = u16::from_be(get16(&ip.frags)) & 0x3fff != 0; // more fragments, or an offset
        let proto = ip.proto;
        if version != 4 {
            return Err(Stop::Pass(Event::PassMalformed));
        }
        if header < Ipv4Hdr::LEN || (ip_len as usize) < header {
            return Err(DropReason::BadIpHeader.into());
        }
        check_length(packet, l3, ip_len)?;
        segment.l3 = l3 as u32;
        segment.l4 = (l3 + header) as u32;
        segment.ip_len = ip_len;
        match proto {
            protocol::TCP if fragment => Err(DropReason::Fragment.into()),
            protocol::TCP => {
                tcp_header(packet, segment)?;
                Ok(Parsed::Tcp)
            }
            protocol::ICMP if !fragment => Ok(Parsed::Icmp),
            _ => Err(Stop::Pass(Event::PassNotService)),
        }
    }

    #[inline(always)]
    fn icmp_kind(packet: &mut Packet, message: &Segment<V4>) -> Result<IcmpKind, DropReason> {
        const ECHO_REQUEST: u8 = 8;
        const DESTINATION_UNREACHABLE: u8 = 3;
        const TIME_EXCEEDED: u8 = 11;
        const PARAMETER_PROBLEM: u8 = 12;
        Ok(match packet.at::<Icmp>(message.l4 as usize)?.type_ {
            ECHO_REQUEST => IcmpKind::EchoRequest,
            DESTINATION_UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM => IcmpKind::Error,
            _ => IcmpKind::Other,
        })
    }

    #[inline(always)]
    fn quoted(
        packet: &mut Packet,
        message: &Segment<V4>,
        error: &mut IcmpError<V4>,
    ) -> Result<bool, DropReason> {
        let quoted = message.l4 as usize + Icmp::LEN;
        let ip = packet.at::<Ipv4Hdr>(quoted)?;
        let later_fragment = u16::from_be(get16(&ip.frags)) & 0x1fff != 0;
        if ip.vihl >> 4 != 4 || ip.vihl & 0xf < 5 || ip.proto != protocol::TCP || later_fragment {
            return Ok(false);
        }
        let quoted_l4 = quoted + ((ip.vihl & 0xf) as usize) * 4;
        let (src, dst) = (V4(get32(&ip.src_addr)), V4(get32(&ip.dst_addr)));
        quote(packet, message, quoted_l4, src, dst, error)?;
        Ok(true)
    }
}

impl Parse for V6 {
    #[inline(always)]
    fn parse(packet: &mut Packet, l3: usize, segment: &mut Segment<V6>) -> Result<Parsed, Stop> {
        let malformed = |_| Stop::Pass(Event::PassMalformed);
        let ip = packet.at::<Ipv6Hdr>(l3).map_err(malformed)?;
        segment.tuple.src = V6(get128(&ip.src_addr));
        segment.tuple.dst = V6(get128(&ip.dst_addr));
        let version = ip.vcf[0] >> 4;
        let payload = u16::from_be(get16(&ip.payload_len)) as usize;
        let first = ip.next_hdr;
        if version != 6 {
            return Err(Stop::Pass(Event::PassMalformed));
        }
        if payload > u16::MAX as usize - Ipv6Hdr::LEN {
            return Err(DropReason::BadIpHeader.into());
        }
        let ip_len = (payload + Ipv6Hdr::LEN) as u16;
        check_length(packet, l3, ip_len)?;
        let (proto, l4) = extensions(packet, first, l3 + Ipv6Hdr::LEN)?;
        segment.l3 = l3 as u32;
        segment.l4 = l4 as u32;
        segment.ip_len = ip_len;
        match proto {
            protocol::TCP => {
                tcp_header(packet, segment)?;
                Ok(Parsed::Tcp)
            }
            protocol::ICMPV6 => Ok(Parsed::Icmp),
            _ => Err(Stop::Pass(Event::PassNotService)),
        }
    }

    #[inline(always)]
    fn icmp_kind(packet: &mut Packet, message: &Segment<V6>) -> Result<IcmpKind, DropReason> {
        const ECHO_REQUEST: u8 = 128;
        Ok(match packet.at::<Icmp>(message.l4 as usize)?.type_ {
            ECHO_REQUEST => IcmpKind::EchoRequest,
            1..=4 => IcmpKind::Error, // unreachable, too big, time exceeded, parameter problem (RFC 4443)
            _ => IcmpKind::Other,
        })
    }

    #[inline(always)]
    fn quoted(
        packet: &mut Packet,
        message: &Segment<V6>,
        error: &mut IcmpError<V6>,
    ) -> Result<bool, DropReason> {
        let quoted = message.l4 as usize + Icmp::LEN;
        let ip = packet.at::<Ipv6Hdr>(quoted)?;
        // A quoted packet with extension headers is not one that we sent.
        if ip.vcf[0] >> 4 != 6 || ip.next_hdr != protocol::TCP {
            return Ok(false);
        }
        let (src, dst) = (V6(get128(&ip.src_addr)), V6(get128(&ip.dst_addr)));
        quote(packet, message, quoted + Ipv6Hdr::LEN, src, dst, error)?;
        Ok(true)
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
    // The last turn finds only what follows the sixth.
    for _ in 0..=6 {
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
                    // Of anything but TCP it is the host's, as in IPv4.
                    return match following {
                        protocol::TCP => Err(DropReason::Fragment),
                        _ => Ok((protocol::FRAGMENT, offset)),
                    };
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
fn tcp_header<A: Addr>(packet: &mut Packet, segment: &mut Segment<A>) -> Result<(), DropReason> {
    let (l3, l4) = (segment.l3 as usize, segment.l4 as usize);
    let room = segment.ip_len as usize + l3;
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
    let ports = tcp.ports();
    segment.tuple.sport = ports as u16;
    segment.tuple.dport = (ports >> 16) as u16;
    segment.seq = u32::from_be(get32(&tcp.seq));
    segment.ack = u32::from_be(get32(&tcp.ack));
    segment.payload = (room - l4 - header) as u16;
    segment.options = (header - Tcp::LEN) as u8;
    segment.flags = flags;
    Ok(())
}

/// Reads the quoted ports.
#[inline(always)]
fn quote<A: Addr>(
    packet: &mut Packet,
    message: &Segment<A>,
    quoted_l4: usize,
    src: A,
    dst: A,
    error: &mut IcmpError<A>,
) -> Result<(), DropReason> {
    if quoted_l4 + size_of::<Ports>() > message.l3 as usize + message.ip_len as usize {
        return Err(DropReason::Truncated);
    }
    let ports = packet.at::<Ports>(quoted_l4)?;
    error.towards_sender =
        Tuple { src: dst, dst: src, sport: get16(&ports.dport), dport: get16(&ports.sport) };
    error.l3 = message.l3;
    error.l4 = message.l4;
    error.quoted_l4 = quoted_l4 as u32;
    error.ip_len = message.ip_len as u32;
    Ok(())
}
