//! The bytes of a TCP reset, of the tunnel around it, of the frame around that. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::netlink::Mac;

/// TTL and hop limit of what the agent sends itself (RFC 1700).
const HOPS: u8 = 64;
const PROTOCOL_TCP: u8 = 6;
/// An IPv4, or an IPv6 packet inside another (RFC 2003, RFC 2473, RFC 4213).
const PROTOCOL_IPV4: u8 = 4;
const PROTOCOL_IPV6: u8 = 41;
const TCP_HEADER: usize = 20;
const FLAG_RST: u8 = 0x04;
const FLAG_ACK: u8 = 0x10;

/// An IP packet with a TCP reset: RST, or RST and ACK if `ack` is given. `seq` and `ack` in host byte order.
/// None if the addresses are not of one family.
pub fn reset(src: SocketAddr, dst: SocketAddr, seq: u32, ack: Option<u32>) -> Option<Vec<u8>> {
    let flags = if ack.is_some() { FLAG_RST | FLAG_ACK } else { FLAG_RST };
    let mut tcp = Vec::with_capacity(TCP_HEADER);
    tcp.extend(src.port().to_be_bytes());
    tcp.extend(dst.port().to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.unwrap_or(0).to_be_bytes());
    // Header length in words; no window, checksum to come, nothing urgent.
    tcp.extend([(TCP_HEADER as u8 / 4) << 4, flags, 0, 0, 0, 0, 0, 0]);
    let sum = pseudo_header(src.ip(), dst.ip(), tcp.len()) + sum(&tcp);
    tcp[16..18].copy_from_slice(&fold(sum).to_be_bytes());
    wrap(src.ip(), dst.ip(), PROTOCOL_TCP, &tcp)
}

/// `inner`, an IP packet, as the payload of an outer one. None if it is no IP packet, or if the outer addresses are
/// not of one family.
pub fn tunnel(outer_src: IpAddr, outer_dst: IpAddr, inner: &[u8]) -> Option<Vec<u8>> {
    let protocol = match inner.first()? >> 4 {
        4 => PROTOCOL_IPV4,
        6 => PROTOCOL_IPV6,
        _ => return None,
    };
    wrap(outer_src, outer_dst, protocol, inner)
}

/// `packet`, an IP packet, as an untagged Ethernet frame.
pub fn ethernet(dst: Mac, src: Mac, packet: &[u8]) -> Option<Vec<u8>> {
    let mut frame = Vec::with_capacity(14 + packet.len());
    frame.extend(dst);
    frame.extend(src);
    frame.extend(ethertype(packet)?.to_be_bytes());
    frame.extend(packet);
    Some(frame)
}

/// The Ethernet type of an IP packet, in host byte order.
pub fn ethertype(packet: &[u8]) -> Option<u16> {
    match packet.first()? >> 4 {
        4 => Some(0x0800),
        6 => Some(0x86dd),
        _ => None,
    }
}

/// The destination of a whole IP packet, if the length in its header is that of the slice.
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    let be16 =
        |at: usize| Some(usize::from(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?])));
    match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 0xf) * 4;
            let whole = header >= 20 && header <= packet.len() && be16(2)? == packet.len();
            let addr: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            whole.then(|| addr.into())
        }
        6 => {
            let addr: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (be16(4)? + 40 == packet.len()).then(|| addr.into())
        }
        _ => None,
    }
}

fn wrap(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(40 + payload.len());
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            // Never fragmented, hence no identification (RFC 6864, 4.1).
            packet.extend([0x45, 0]);
            packet.extend(u16::try_from(20 + payload.len()).ok()?.to_be_bytes());
            packet.extend([0, 0, 0x40, 0, HOPS, protocol, 0, 0]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
            let checksum = fold(sum(&packet));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(u16::try_from(payload.len()).ok()?.to_be_bytes());
            packet.extend([protocol, HOPS]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
        }
        _ => return None,
    }
    packet.extend(payload);
    Some(packet)
}

/// RFC 9293, 3.1 and RFC 8200, 8.1: the same sum for both, as the zero bytes do not count.
fn pseudo_header(src: IpAddr, dst: IpAddr, length: usize) -> u64 {
    let addr = |addr: IpAddr| match addr {
        IpAddr::V4(a) => sum(&a.octets()),
        IpAddr::V6(a) => sum(&a.octets()),
    };
    addr(src) + addr(dst) + u64::from(PROTOCOL_TCP) + length as u64
}

/// The sum of big-endian 16-bit words (RFC 1071), not yet folded.
fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sums header, pseudo-header and payload bit by bit as a receiver does: 0 if every checksum is right.
    fn residue(packet: &[u8]) -> u16 {
        let (src, dst, header) = match packet[0] >> 4 {
            4 => (&packet[12..16], &packet[16..20], 20),
            _ => (&packet[8..24], &packet[24..40], 40),
        };
        let ip = if header == 20 { fold(sum(&packet[..20])) } else { 0 };
        let tcp = &packet[header..];
        let pseudo = [src, dst, &(tcp.len() as u32).to_be_bytes(), &[0, 0, 0, 6], tcp].concat();
        ip | fold(sum(&pseudo))
    }

    #[test]
    fn an_ipv4_reset_is_right_to_the_byte() {
        let packet = reset(
            "203.0.113.10:80".parse().unwrap(),
            "192.0.2.1:40000".parse().unwrap(),
            0x01020304,
            None,
        );
        let expected = [
            0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0x3c, 0xc4, 203, 0, 113, 10, 192, 0, 2,
            1, // IPv4
            0, 80, 0x9c, 0x40, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 4, 0, 0, 0, 0, 0, 0, // TCP
        ];
        let mut packet = packet.unwrap();
        assert_eq!(residue(&packet), 0);
        // The IPv4 checksum below was computed by hand; the other is covered by the residue.
        packet[36..38].fill(0);
        assert_eq!(packet, expected);
    }

    #[test]
    fn with_an_acknowledgement_the_ack_flag_is_set() {
        let packet = reset(
            "[2001:db8::1]:80".parse().unwrap(),
            "[2001:db8::2]:9".parse().unwrap(),
            1,
            Some(0xa0b0c0d0),
        );
        let packet = packet.unwrap();
        assert_eq!(packet.len(), 60);
        assert_eq!(packet[48..52], [0xa0, 0xb0, 0xc0, 0xd0]);
        assert_eq!(packet[53], FLAG_RST | FLAG_ACK);
        assert_eq!(residue(&packet), 0);
    }

    #[test]
    fn a_tunnel_carries_the_packet_unchanged_in_all_four_combinations() {
        for inner in [("10.0.0.1:1", "10.0.0.2:2"), ("[::1]:1", "[::2]:2")] {
            let inner = reset(inner.0.parse().unwrap(), inner.1.parse().unwrap(), 7, None).unwrap();
            for (src, dst, header) in
                [("192.0.2.1", "192.0.2.2", 20), ("2001:db8::1", "2001:db8::2", 40)]
            {
                let packet = tunnel(src.parse().unwrap(), dst.parse().unwrap(), &inner).unwrap();
                assert_eq!(packet[header..], inner);
                assert_eq!(destination(&packet), Some(dst.parse().unwrap()));
                let protocol = if header == 20 { packet[9] } else { packet[6] };
                assert_eq!(protocol, if inner[0] >> 4 == 4 { 4 } else { 41 });
                if header == 20 {
                    assert_eq!(fold(sum(&packet[..20])), 0);
                }
            }
        }
    }

    #[test]
    fn families_do_not_mix() {
        assert_eq!(reset("10.0.0.1:1".parse().unwrap(), "[::2]:2".parse().unwrap(), 7, None), None);
        assert_eq!(tunnel("10.0.0.1".parse().unwrap(), "::2".parse().unwrap(), &[0x45]), None);
        assert_eq!(tunnel("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), &[0x55]), None);
    }

    proptest! {
        #[test]
        fn every_checksum_is_right(
            src: u128, dst: u128, sport: u16, dport: u16, seq: u32, ack: Option<u32>, v6: bool,
        ) {
            let ip = |bits: u128| if v6 { IpAddr::V6(bits.into()) } else { IpAddr::V4((bits as u32).into()) };
            let packet =
                reset(SocketAddr::new(ip(src), sport), SocketAddr::new(ip(dst), dport), seq, ack).unwrap();
            prop_assert_eq!(residue(&packet), 0);
            prop_assert_eq!(destination(&packet), Some(ip(dst)));
        }

        #[test]
        fn no_bytes_make_the_reader_of_destinations_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            destination(&bytes);
            ethertype(&bytes);
        }
    }
}
