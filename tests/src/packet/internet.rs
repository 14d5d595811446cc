//! The Internet checksum (RFC 1071), the slow and plain way.

use std::net::IpAddr;

/// The one's-complement sum of big-endian words, folded; an odd last byte is padded with zero.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

/// The checksum to be written where zero was summed.
pub fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    (!sum(parts)).to_be_bytes()
}

/// The bytes of an address.
pub fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// The pseudo-header of TCP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub fn pseudo_header(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> Vec<u8> {
    let mut bytes = octets(src);
    bytes.extend(octets(dst));
    if src.is_ipv6() {
        bytes.extend((len as u32).to_be_bytes());
        bytes.extend([0, 0, 0, proto]);
    } else {
        bytes.extend([0, proto]);
        bytes.extend((len as u16).to_be_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_of_rfc_1071() {
        assert_eq!(sum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
        assert_eq!(checksum(&[&[0xdd]]), (!0xdd00_u16).to_be_bytes());
    }
}
