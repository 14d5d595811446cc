//! IP headers of both versions, and what they carry.

use std::net::IpAddr;

use super::{
    icmp::Icmp,
    internet::{checksum, octets},
    protocol,
    tcp::Tcp,
};

/// An IP header. Fields of the other version are without effect.
#[derive(Clone, Debug)]
pub struct Ip {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// IPv4: identification.
    pub id: u16,
    /// IPv4: flags and fragment offset as they stand in the header.
    pub fragment: u16,
    /// IPv4: options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6.
    pub flow_label: u32,
    /// IPv6.
    pub extensions: Vec<Extension>,
    /// In place of 4 or 6.
    pub version: Option<u8>,
    /// IPv4: in place of the right number of words.
    pub header_words: Option<u8>,
    /// In place of the right IPv4 total length or IPv6 payload length.
    pub len: Option<u16>,
    /// In place of the payload's.
    pub proto: Option<u8>,
    /// IPv4: added to the right checksum.
    pub checksum_error: u16,
}

/// IPv4: don't fragment.
pub const DF: u16 = 0x4000;
/// IPv4: more fragments.
pub const MF: u16 = 0x2000;

/// An IPv6 extension header: its number, and all of its bytes but the first, which names the next.
#[derive(Clone, Debug)]
pub struct Extension {
    pub number: u8,
    pub rest: Vec<u8>,
}

impl Extension {
    /// An options or routing header of so many times eight bytes, with nothing but padding in it.
    pub fn padding(number: u8, eights: u8) -> Self {
        let len = usize::from(eights) * 8;
        let mut rest = vec![0; len - 1];
        rest[0] = eights - 1;
        if number != protocol::ROUTING {
            rest[1] = 1; // PadN
            rest[2] = (len - 4) as u8;
        }
        Self { number, rest }
    }

    /// A fragment header; offset in units of eight bytes.
    pub fn fragment(offset: u16, more: bool) -> Self {
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        Self { number: protocol::FRAGMENT, rest: vec![0, high, low, 1, 2, 3, 4] }
    }
}

impl Ip {
    /// # Panics
    /// If the addresses are of different versions.
    pub fn new(src: IpAddr, dst: IpAddr) -> Self {
        assert_eq!(src.is_ipv6(), dst.is_ipv6(), "{src} and {dst} cannot meet in one header");
        Self {
            src,
            dst,
            ttl: 57,
            traffic_class: 0,
            id: 0x1234,
            fragment: DF,
            options: Vec::new(),
            flow_label: 0x5_4321,
            extensions: Vec::new(),
            version: None,
            header_words: None,
            len: None,
            proto: None,
            checksum_error: 0,
        }
    }

    pub fn is_v6(&self) -> bool {
        self.dst.is_ipv6()
    }

    /// Length of the header, extension headers included.
    pub fn header_len(&self) -> usize {
        if self.is_v6() {
            40 + self.extensions.iter().map(|it| it.rest.len() + 1).sum::<usize>()
        } else {
            20 + self.options.len()
        }
    }

    fn bytes(&self, payload: usize, proto: u8) -> Vec<u8> {
        let proto = self.proto.unwrap_or(proto);
        if self.is_v6() { self.bytes_v6(payload, proto) } else { self.bytes_v4(payload, proto) }
    }

    fn bytes_v4(&self, payload: usize, proto: u8) -> Vec<u8> {
        let words = self.header_words.unwrap_or(self.header_len() as u8 / 4);
        let len = self.len.unwrap_or((self.header_len() + payload) as u16);
        let mut bytes = vec![self.version.unwrap_or(4) << 4 | words, self.traffic_class];
        bytes.extend(len.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.ttl, proto, 0, 0]);
        bytes.extend(octets(self.src));
        bytes.extend(octets(self.dst));
        bytes.extend(&self.options);
        let right = u16::from_be_bytes(checksum(&[&bytes]));
        let check = right.wrapping_add(self.checksum_error).to_be_bytes();
        bytes[10..12].copy_from_slice(&check);
        bytes
    }

    fn bytes_v6(&self, payload: usize, proto: u8) -> Vec<u8> {
        let version = u32::from(self.version.unwrap_or(6));
        let first = version << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
        let len = self.len.unwrap_or((self.header_len() - 40 + payload) as u16);
        let mut numbers: Vec<u8> = self.extensions.iter().map(|it| it.number).collect();
        numbers.push(proto);
        let mut bytes = first.to_be_bytes().to_vec();
        bytes.extend(len.to_be_bytes());
        bytes.extend([numbers[0], self.ttl]);
        bytes.extend(octets(self.src));
        bytes.extend(octets(self.dst));
        for (extension, next) in self.extensions.iter().zip(&numbers[1..]) {
            bytes.push(*next);
            bytes.extend(&extension.rest);
        }
        bytes
    }
}

/// What an IP packet carries.
#[derive(Clone, Debug)]
pub enum Payload {
    Tcp(Tcp),
    Icmp(Icmp),
    /// Another IP packet.
    Tunnel(Box<Packet>),
    /// Anything, with its protocol number.
    Raw(u8, Vec<u8>),
}

/// An IP packet.
#[derive(Clone, Debug)]
pub struct Packet {
    pub ip: Ip,
    pub payload: Payload,
}

impl Packet {
    pub fn tcp(ip: Ip, tcp: Tcp) -> Self {
        Self { ip, payload: Payload::Tcp(tcp) }
    }

    pub fn icmp(ip: Ip, icmp: Icmp) -> Self {
        Self { ip, payload: Payload::Icmp(icmp) }
    }

    /// This packet in another one.
    #[must_use]
    pub fn within(self, outer: Ip) -> Self {
        Self { ip: outer, payload: Payload::Tunnel(Box::new(self)) }
    }

    /// # Panics
    /// If it carries something else.
    pub fn as_tcp(&mut self) -> &mut Tcp {
        match &mut self.payload {
            Payload::Tcp(tcp) => tcp,
            other => panic!("not TCP: {other:?}"),
        }
    }

    /// # Panics
    /// If it carries something else.
    pub fn as_inner(&mut self) -> &mut Packet {
        match &mut self.payload {
            Payload::Tunnel(inner) => inner,
            other => panic!("not a tunnel: {other:?}"),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let (src, dst) = (self.ip.src, self.ip.dst);
        let (proto, payload) = match &self.payload {
            Payload::Tcp(tcp) => (protocol::TCP, tcp.bytes(src, dst)),
            Payload::Icmp(icmp) if dst.is_ipv6() => (protocol::ICMPV6, icmp.bytes(src, dst)),
            Payload::Icmp(icmp) => (protocol::ICMP, icmp.bytes(src, dst)),
            Payload::Tunnel(inner) if inner.ip.is_v6() => (protocol::IPV6, inner.bytes()),
            Payload::Tunnel(inner) => (protocol::IPIP, inner.bytes()),
            Payload::Raw(proto, bytes) => (*proto, bytes.clone()),
        };
        let mut bytes = self.ip.bytes(payload.len(), proto);
        bytes.extend(payload);
        bytes
    }
}
