//! Ethernet and VLAN tags: the outside of a frame.

use super::ip::Packet;

pub type Mac = [u8; 6];

/// TPID of a VLAN tag (IEEE 802.1Q).
pub const VLAN: u16 = 0x8100;
/// TPID of the outer tag of two (IEEE 802.1ad).
pub const SERVICE_VLAN: u16 = 0x88a8;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// A link header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub dst: Mac,
    pub src: Mac,
    /// TPID and TCI, the outer tag first.
    pub tags: Vec<(u16, u16)>,
}

impl Link {
    pub fn new(dst: Mac, src: Mac) -> Self {
        Self { dst, src, tags: Vec::new() }
    }

    #[must_use]
    pub fn tagged(mut self, tags: &[(u16, u16)]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// The way back: MAC addresses swapped, tags kept.
    #[must_use]
    pub fn turned(&self) -> Self {
        Self { dst: self.src, src: self.dst, tags: self.tags.clone() }
    }

    pub fn len(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// The header in front of something of an EtherType.
    pub fn bytes(&self, ether_type: u16) -> Vec<u8> {
        let mut bytes = self.dst.to_vec();
        bytes.extend(self.src);
        for (tpid, tci) in &self.tags {
            bytes.extend(tpid.to_be_bytes());
            bytes.extend(tci.to_be_bytes());
        }
        bytes.extend(ether_type.to_be_bytes());
        bytes
    }
}

/// A frame with an IP packet.
#[derive(Clone, Debug)]
pub struct Frame {
    pub link: Link,
    pub packet: Packet,
    /// What follows the packet, as short frames have it.
    pub padding: Vec<u8>,
    /// In place of the right one.
    pub ether_type: Option<u16>,
}

impl Frame {
    pub fn new(link: Link, packet: Packet) -> Self {
        Self { link, packet, padding: Vec::new(), ether_type: None }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let right = if self.packet.ip.dst.is_ipv6() { IPV6 } else { IPV4 };
        let mut bytes = self.link.bytes(self.ether_type.unwrap_or(right));
        bytes.extend(self.packet.bytes());
        bytes.extend(&self.padding);
        bytes
    }

    /// The same frame with a change.
    #[must_use]
    pub fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        change(&mut changed);
        changed
    }
}
