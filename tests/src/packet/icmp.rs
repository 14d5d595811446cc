//! ICMP and ICMPv6: pings, and errors with the packets that they quote.

use std::net::IpAddr;

use super::{
    internet::{checksum, pseudo_header},
    ip::Packet,
    protocol,
};

/// An ICMP message of either version.
#[derive(Clone, Debug)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    /// The four bytes behind the checksum.
    pub data: [u8; 4],
    pub body: Vec<u8>,
    /// Added to the right checksum.
    pub checksum_error: u16,
}

impl Icmp {
    pub fn new(kind: u8, code: u8, data: [u8; 4], body: Vec<u8>) -> Self {
        Self { kind, code, data, body, checksum_error: 0 }
    }

    /// An echo request, or its reply.
    pub fn echo(v6: bool, reply: bool, body: &[u8]) -> Self {
        let kind = match (v6, reply) {
            (false, false) => 8,
            (false, true) => 0,
            (true, false) => 128,
            (true, true) => 129,
        };
        Self::new(kind, 0, [0x12, 0x34, 0, 7], body.to_vec())
    }

    /// The error that says which size would fit (RFC 1191, RFC 4443 section 3.2).
    pub fn packet_too_big(v6: bool, mtu: u16, quoted: Vec<u8>) -> Self {
        let [high, low] = mtu.to_be_bytes();
        match v6 {
            false => Self::new(3, 4, [0, 0, high, low], quoted),
            true => Self::new(2, 0, [0, 0, high, low], quoted),
        }
    }

    /// The error that a hop sends where the TTL ends.
    pub fn time_exceeded(v6: bool, quoted: Vec<u8>) -> Self {
        Self::new(if v6 { 3 } else { 11 }, 0, [0; 4], quoted)
    }

    pub fn bytes(&self, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let mut bytes = vec![self.kind, self.code, 0, 0];
        bytes.extend(self.data);
        bytes.extend(&self.body);
        let pseudo = match dst {
            IpAddr::V4(_) => Vec::new(),
            IpAddr::V6(_) => pseudo_header(src, dst, protocol::ICMPV6, bytes.len()),
        };
        let right = u16::from_be_bytes(checksum(&[&pseudo, &bytes]));
        let check = right.wrapping_add(self.checksum_error).to_be_bytes();
        bytes[2..4].copy_from_slice(&check);
        bytes
    }
}

/// What an error quotes of a packet: its IP header and `bytes` of what follows.
pub fn quote(packet: &Packet, bytes: usize) -> Vec<u8> {
    let mut quoted = packet.bytes();
    quoted.truncate(packet.ip.header_len() + bytes);
    quoted
}
