//! The handshake table's value: a flow that is not established yet, and what its SYN offered.

use crate::{
    addr::{V4, V6},
    flow::Flow,
    map_data,
};

/// Bits of [`Offer::flags`].
pub mod offers {
    /// SACK-permitted (RFC 2018).
    pub const SACK: u8 = 1 << 0;
    /// Timestamps (RFC 7323).
    pub const TIMESTAMPS: u8 = 1 << 1;
    /// Window scale (RFC 7323).
    pub const WINDOW_SCALE: u8 = 1 << 2;
    /// ECN: a SYN with ECE and CWR, or a SYN-ACK with ECE alone (RFC 3168 section 6.1.1).
    pub const ECN: u8 = 1 << 3;
    /// A maximum segment size (RFC 9293 section 3.7.1).
    pub const MSS: u8 = 1 << 4;
}

/// What one side offered in the options of its SYN or SYN-ACK. Host byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Timestamp value; 0 without [`offers::TIMESTAMPS`].
    pub tsval: u32,
    /// Maximum segment size in bytes; 0 without [`offers::MSS`].
    pub mss: u16,
    /// Window shift as offered (RFC 7323 section 2.3 caps its use at 14); 0 without
    /// [`offers::WINDOW_SCALE`].
    pub window_scale: u8,
    /// Bits of [`offers`].
    pub flags: u8,
}

/// Bits of [`Handshake::flags`].
pub mod flags {
    /// The SYN-ACK was seen: `peer_isn` holds.
    pub const ANSWERED: u32 = 1 << 0;
    /// The handshake was completed, and the flow table had no room: the flow goes on from here.
    pub const COMPLETED: u32 = 1 << 1;
}

/// Value of the handshake tables, which have the same keys as the flow tables.
///
/// `nat` has an entry for each direction, `dsr` and `ipip` have the client's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshake<A> {
    /// The flow as it will be entered into the flow table.
    pub flow: Flow<A>,
    /// What this direction's sender offered.
    pub offer: Offer,
    /// Initial sequence number of this direction's sender.
    pub isn: u32,
    /// Initial sequence number of the other side, once [`flags::ANSWERED`].
    pub peer_isn: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// When the client's SYN was seen, in microseconds of `CLOCK_MONOTONIC`; 0 where that is not known or the SYN was
    /// sent again. Programs of earlier versions leave it 0 and do not look at it, so the ABI version is the same.
    pub began: u32,
}

map_data!(Handshake<V4>, Handshake<V6>);

#[cfg(test)]
mod tests {
    use core::mem::size_of;

    use super::*;

    #[test]
    fn layout() {
        assert_eq!(size_of::<Offer>(), 8);
        assert_eq!(size_of::<Handshake<V4>>(), 64 + 24);
        assert_eq!(size_of::<Handshake<V6>>(), 88 + 24);
    }
}
