//! Frames as they come off the wire, and as they must look when they leave.
//!
//! Written without the data plane's code: what this expects is what the RFCs say.

use std::net::IpAddr;

/// A segment of an idle chat: a few bytes behind the timestamps that every stack sends.
const PAYLOAD: &[u8] = b"{\"type\":\"ping\",\"n\":1}";
const TTL: u8 = 64;

/// Source and destination, addresses and ports in host byte order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ends {
    pub from: (IpAddr, u16),
    pub to: (IpAddr, u16),
}

/// A frame, and where its IP header and its TCP header begin.
#[derive(Clone, Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub l3: usize,
    pub l4: usize,
}

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;

/// MAC addresses as they stand in a frame: destination, source.
pub type Link = [[u8; 6]; 2];

/// A TCP segment of an established connection.
pub fn segment(link: Link, ends: &Ends) -> Frame {
    let tcp = tcp(ends);
    let mut bytes = link_header(link, ends.from.0);
    let l3 = bytes.len();
    bytes.extend(ip(ends.from.0, ends.to.0, TCP, TTL, tcp.len()));
    let l4 = bytes.len();
    bytes.extend(tcp);
    let mut frame = Frame { bytes, l3, l4 };
    let check = !sum(&frame.pseudo_and_tcp());
    frame.bytes[l4 + 16..l4 + 18].copy_from_slice(&check.to_be_bytes());
    frame
}

/// The frame with one hop less to live.
pub fn forwarded(frame: &Frame) -> Frame {
    let mut frame = frame.clone();
    let ttl = if frame.is_ipv4() { 8 } else { 7 };
    frame.bytes[frame.l3 + ttl] -= 1;
    frame
}

/// The frame with other sequence and acknowledgement numbers; its checksum is not looked at.
pub fn renumbered(frame: &Frame, (seq, ack): (u32, u32)) -> Frame {
    let mut frame = frame.clone();
    for (at, delta) in [(frame.l4 + 4, seq), (frame.l4 + 8, ack)] {
        let field = frame.bytes[at..].first_chunk_mut().expect("a TCP header is longer");
        *field = u32::from_be_bytes(*field).wrapping_add(delta).to_be_bytes();
    }
    frame
}

/// The frame with its IP packet in another one.
pub fn tunnelled(frame: &Frame, from: IpAddr, to: IpAddr) -> Frame {
    let inner = &frame.bytes[frame.l3..];
    let protocol = if frame.is_ipv4() { 4 } else { 41 };
    let mut bytes = frame.bytes[..12].to_vec();
    bytes.extend(if to.is_ipv4() { IPV4 } else { IPV6 });
    bytes.extend(ip(from, to, protocol, TTL, inner.len()));
    let l3 = bytes.len();
    bytes.extend(inner);
    Frame { bytes, l3, l4: l3 + (frame.l4 - frame.l3) }
}

impl Frame {
    /// The frame with the checksums of another one: the driver changes addresses and ports and leaves
    /// checksums as they are, since nothing on the way looks at them.
    pub fn with_checksums_of(mut self, other: &Self) -> Self {
        for checksum in self.checksums() {
            self.bytes[checksum.clone()].copy_from_slice(&other.bytes[checksum]);
        }
        self
    }

    /// Where the checksums are.
    fn checksums(&self) -> Vec<std::ops::Range<usize>> {
        let tcp = self.l4 + 16..self.l4 + 18;
        if self.is_ipv4() { vec![self.l3 + 10..self.l3 + 12, tcp] } else { vec![tcp] }
    }

    fn is_ipv4(&self) -> bool {
        self.bytes[self.l3] >> 4 == 4
    }

    /// Whether a frame that was received has these bytes, and checksums that are off by as much as
    /// those of the original are.
    pub fn check(&self, received: &Frame, original: &Frame) -> Result<(), String> {
        if received.bytes.len() != self.bytes.len() {
            return Err(format!("{} bytes, wanted {}", received.bytes.len(), self.bytes.len()));
        }
        let (found, wanted) = (received.without_checksums(), self.without_checksums());
        if let Some(at) = (0..wanted.len()).find(|&at| found[at] != wanted[at]) {
            return Err(format!("byte {at} is {:#04x}, wanted {:#04x}", found[at], wanted[at]));
        }
        if received.residues() != original.residues() {
            return Err("a checksum does not fit what was changed".to_owned());
        }
        Ok(())
    }

    fn without_checksums(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        self.checksums().into_iter().for_each(|checksum| bytes[checksum].fill(0));
        bytes
    }

    /// What the checksums of the IP and of the TCP header are off by.
    fn residues(&self) -> (u16, u16) {
        let ip = if self.is_ipv4() { sum(&self.bytes[self.l3..self.l4]) } else { 0 };
        (ip, sum(&self.pseudo_and_tcp()))
    }

    fn pseudo_and_tcp(&self) -> Vec<u8> {
        let addresses = if self.is_ipv4() { 12..20 } else { 8..40 };
        let tcp = &self.bytes[self.l4..];
        let mut bytes = self.bytes[self.l3..][addresses].to_vec();
        bytes.extend([0, TCP]);
        bytes.extend((tcp.len() as u16).to_be_bytes());
        bytes.extend(tcp);
        bytes
    }
}

fn link_header([to, from]: Link, version: IpAddr) -> Vec<u8> {
    let kind = if version.is_ipv4() { IPV4 } else { IPV6 };
    [&to[..], &from[..], &kind[..]].concat()
}

fn ip(from: IpAddr, to: IpAddr, protocol: u8, ttl: u8, payload: usize) -> Vec<u8> {
    let mut header = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [high, low] = (20 + payload as u16).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 0, 0x40, 0, ttl, protocol, 0, 0];
            header.extend([from.octets(), to.octets()].concat());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let [high, low] = (payload as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, high, low, protocol, ttl];
            header.extend([from.octets(), to.octets()].concat());
            header
        }
        _ => unreachable!("both ends of a packet have the same IP version"),
    };
    if from.is_ipv4() {
        let check = !sum(&header);
        header[10..12].copy_from_slice(&check.to_be_bytes());
    }
    header
}

/// Sequence numbers are the same in every segment; ACK and PSH are set.
fn tcp(ends: &Ends) -> Vec<u8> {
    const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 7];
    let mut bytes = [ends.from.1.to_be_bytes(), ends.to.1.to_be_bytes()].concat();
    bytes.extend([0, 0, 0x10, 0, 0, 0, 0x20, 0, 0x80, 0x18, 0x01, 0xf6, 0, 0, 0, 0]);
    bytes.extend(TIMESTAMPS);
    bytes.extend(PAYLOAD);
    bytes
}

/// The one's-complement sum (RFC 1071), in which 0 and 0xffff are the same number.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [high] => u64::from(high) << 8,
        _ => 0,
    });
    (words.sum::<u64>() % 0xffff) as u16
}
