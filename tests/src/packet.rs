//! Frames made by hand, byte by byte, for the packet tables.
//!
//! A frame is described by plain structs, changed field by field and written out with lengths and
//! checksums filled in ([`Frame::bytes`]); what must be wrong in a test is set in `Option` fields. The
//! other way, [`check`] reads bytes and verifies every length and checksum from scratch.
//!
//! Nothing here uses the data plane's own code: what it computes is computed a second time.

pub mod check;
pub mod icmp;
pub mod internet;
pub mod ip;
pub mod link;
pub mod tcp;

pub use icmp::Icmp;
pub use ip::{Extension, Ip, Packet, Payload};
pub use link::{Frame, Link};
pub use tcp::Tcp;

/// Protocol numbers of IANA.
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IPIP: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6: u8 = 41;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
}
