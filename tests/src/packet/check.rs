//! Reads a frame and verifies every length and checksum in it from scratch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    internet::{pseudo_header, sum},
    link, protocol,
};

/// What was found in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// IP headers, one in another.
    pub depth: u32,
    /// A whole TCP segment was there.
    pub tcp: bool,
    /// A whole ICMP message was there.
    pub icmp: bool,
}

/// Says what is wrong with a frame: a length that does not fit or a checksum that does not verify.
/// Frames without IP are right.
pub fn verify(frame: &[u8]) -> Result<Found, String> {
    let mut found = Found::default();
    let Some(mut ether_type) = u16_at(frame, 12) else {
        return Err("no Ethernet header".into());
    };
    let mut at = 14;
    while ether_type == link::VLAN || ether_type == link::SERVICE_VLAN {
        ether_type = u16_at(frame, at + 2).ok_or("the frame ends in a VLAN tag")?;
        at += 4;
    }
    match ether_type {
        0x0800 => ipv4(&frame[at..], &mut found)?,
        0x86dd => ipv6(&frame[at..], &mut found)?,
        _ => {}
    }
    Ok(found)
}

fn ipv4(bytes: &[u8], found: &mut Found) -> Result<(), String> {
    found.depth += 1;
    let first = *bytes.first().ok_or("no IPv4 header")?;
    let header = usize::from(first & 0xf) * 4;
    let len = usize::from(u16_at(bytes, 2).ok_or("the IPv4 header is cut off")?);
    if first >> 4 != 4 || header < 20 || len < header || len > bytes.len() {
        return Err(format!("IPv4: first byte {first:#x}, length {len} of {}", bytes.len()));
    }
    if sum(&[&bytes[..header]]) != 0xffff {
        return Err("IPv4: the header's checksum is wrong".into());
    }
    if u16_at(bytes, 6).is_some_and(|fragment| fragment & 0x3fff != 0) {
        return Ok(());
    }
    let addr = |at: usize| {
        let octets: [u8; 4] = bytes[at..at + 4].try_into().expect("the header is whole");
        IpAddr::from(Ipv4Addr::from(octets))
    };
    payload(&bytes[header..len], bytes[9], addr(12), addr(16), found)
}

fn ipv6(bytes: &[u8], found: &mut Found) -> Result<(), String> {
    found.depth += 1;
    let len = 40 + usize::from(u16_at(bytes, 4).ok_or("the IPv6 header is cut off")?);
    if bytes[0] >> 4 != 6 || len > bytes.len() {
        return Err(format!("IPv6: first byte {:#x}, length {len} of {}", bytes[0], bytes.len()));
    }
    let addr = |at: usize| {
        let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("the header is whole");
        IpAddr::from(Ipv6Addr::from(octets))
    };
    let (src, dst) = (addr(8), addr(24));
    let (mut next, mut at) = (bytes[6], 40);
    loop {
        let size = match next {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                let eights = *bytes.get(at + 1).ok_or("an extension header is cut off")?;
                (usize::from(eights) + 1) * 8
            }
            protocol::FRAGMENT => {
                let place = u16_at(bytes, at + 2).ok_or("a fragment header is cut off")?;
                if place & 0xfff9 != 0 {
                    return Ok(());
                }
                8
            }
            _ => break,
        };
        next = bytes[at];
        at += size;
        if at > len {
            return Err("an extension header is longer than the packet".into());
        }
    }
    payload(&bytes[at..len], next, src, dst, found)
}

fn payload(
    bytes: &[u8],
    proto: u8,
    src: IpAddr,
    dst: IpAddr,
    found: &mut Found,
) -> Result<(), String> {
    match proto {
        protocol::IPIP => return ipv4(bytes, found),
        protocol::IPV6 => return ipv6(bytes, found),
        protocol::TCP => {
            let header = bytes.get(12).map_or(0, |words| usize::from(words >> 4) * 4);
            if header < 20 || header > bytes.len() {
                return Err(format!("TCP: a header of {header} bytes in {}", bytes.len()));
            }
            found.tcp = true;
        }
        protocol::ICMP | protocol::ICMPV6 if bytes.len() < 8 => {
            return Err(format!("ICMP: {} bytes", bytes.len()));
        }
        protocol::ICMP | protocol::ICMPV6 => found.icmp = true,
        _ => return Ok(()),
    }
    let pseudo = match proto {
        protocol::ICMP => Vec::new(),
        _ => pseudo_header(src, dst, proto, bytes.len()),
    };
    match sum(&[&pseudo, bytes]) {
        0xffff => Ok(()),
        sum => Err(format!("protocol {proto}: the checksum is wrong, the sum is {sum:#06x}")),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Frame, Icmp, Ip, Link, Packet, Tcp, tcp};

    fn pair(v6: bool) -> (IpAddr, IpAddr) {
        match v6 {
            false => ("198.51.100.7".parse().unwrap(), "203.0.113.10".parse().unwrap()),
            true => ("2001:db8:c::7".parse().unwrap(), "2001:db8::10".parse().unwrap()),
        }
    }

    fn frames() -> Vec<Vec<u8>> {
        let link = Link::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let mut frames = Vec::new();
        for v6 in [false, true] {
            let (src, dst) = pair(v6);
            let segment = Packet::tcp(Ip::new(src, dst), Tcp::new(1, 2, tcp::ACK).payload(b"odd"));
            for outer in [false, true] {
                let (src, dst) = pair(outer);
                let packet = segment.clone().within(Ip::new(src, dst));
                frames.push(Frame::new(link.clone(), packet).bytes());
            }
            let ping = Packet::icmp(Ip::new(src, dst), Icmp::echo(v6, false, b"ping!"));
            frames.push(Frame::new(link.clone(), segment).bytes());
            let tagged = link.clone().tagged(&[(link::SERVICE_VLAN, 7), (link::VLAN, 8)]);
            frames.push(Frame::new(tagged, ping).bytes());
        }
        frames
    }

    #[test]
    fn what_the_builder_makes_is_right() {
        for frame in frames() {
            let found = verify(&frame).unwrap();
            assert!(found.tcp || found.icmp, "{found:?} in {frame:02x?}");
        }
    }

    #[test]
    fn one_wrong_bit_is_found_wherever_a_checksum_covers_it() {
        for frame in frames() {
            let tags = if frame[12] == 0x88 && frame[13] == 0xa8 { 8 } else { 0 };
            // The hop limit, flow label and traffic class of IPv6 are covered by nothing.
            let start = 14 + tags;
            let covered = if frame[start] >> 4 == 4 { start } else { start + 8 };
            for at in covered..frame.len() {
                let mut wrong = frame.clone();
                wrong[at] ^= 0x10;
                let inner6 = at >= start + 20 && frame[start] >> 4 == 4 && frame[start + 9] == 41;
                let inner66 = at >= start + 40 && frame[start] >> 4 == 6 && frame[start + 6] == 41;
                let outer6 = frame[start] >> 4 == 6 && matches!(frame[start + 6], 4 | 41);
                let uncovered = (inner6 && at < start + 28)
                    || (inner66 && at < start + 48)
                    || (outer6 && at < start + 40);
                assert!(verify(&wrong).is_err() || uncovered, "byte {at} of {frame:02x?}");
            }
        }
    }
}
