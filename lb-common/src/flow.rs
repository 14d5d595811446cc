//! The flow table's value: one rewrite, for every way of forwarding.

use crate::{
    addr::{Tuple, V4, V6},
    map_data,
};

/// How packets of a flow reach their destination. The numbers are part of the ABI.
pub mod forward {
    /// The tuple is rewritten; both directions pass the edge.
    pub const NAT: u8 = 1;
    /// Only the MAC addresses are rewritten; the backend answers the client itself.
    pub const DSR: u8 = 2;
    /// The packet travels in an IP packet to the backend, which answers the client itself.
    pub const IPIP: u8 = 3;
    /// Two established connections joined: the tuple is rewritten, and so are all numbers that the ends
    /// count in. Both directions pass the edge. As [`crate::service::Service::forward`]: the sidecar
    /// serves the clients, and its connections may be spliced.
    pub const SPLICE: u8 = 4;
}

/// Bits of [`Flow::flags`].
pub mod flags {
    /// Packets of this entry go to the client; without it, to the backend.
    pub const TO_CLIENT: u8 = 1 << 0;
    /// This entry's sender has sent its FIN. Data behind it takes it back.
    pub const FIN: u8 = 1 << 1;
    /// The other direction's sender has sent its FIN.
    pub const PEER_FIN: u8 = 1 << 2;
    /// This entry's sender has sent a RST. A segment without one takes it back: whoever has sent a RST
    /// has no connection to send on, so it was another's.
    pub const RESET: u8 = 1 << 3;
    /// A SYN with another sequence number was seen on this tuple: a new connection may be in the
    /// handshake table, and replaces this one when it completes its handshake.
    pub const RESTART: u8 = 1 << 4;
    /// The other direction's sender has sent a RST.
    pub const PEER_RESET: u8 = 1 << 5;
    /// The connection is about to be spliced: what comes is dropped, and TCP sends it again.
    pub const HOLD: u8 = 1 << 6;
    /// The other end has not negotiated ECN: its marks are taken off (RFC 3168 section 6.1.1).
    pub const NO_ECN: u8 = 1 << 7;
}

/// Value of the flow tables: what becomes of a packet with the key's tuple.
///
/// `nat` and `splice` have two entries per connection, one for each direction; `dsr` and `ipip` have one. With
/// [`V4`] it fills one cache line. The data plane writes most fields without a lock: packets of one
/// direction are handled by one CPU unless the NIC reorders its queues, and then a counter loses a
/// few packets, nothing else.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow<A> {
    /// The tuple that the packet gets. The same as the key for `dsr` and `ipip`.
    pub to: Tuple<A>,
    /// Added to the sequence number, modulo 2^32; 0 but for spliced connections. Host byte order,
    /// as all that follows.
    pub seq_delta: u32,
    /// Added to the acknowledgement number and to SACK blocks.
    pub ack_delta: u32,
    /// Added to the timestamp value.
    pub tsval_delta: u32,
    /// Added to the timestamp echo reply.
    pub tsecr_delta: u32,
    /// The sequence number after the newest segment that this direction's sender has sent.
    pub seq_next: u32,
    /// The newest acknowledgement number that this direction's sender has sent: the one sequence
    /// number with which it accepts a RST (RFC 5961 section 3.2).
    pub ack: u32,
    /// When the last packet came, in ticks ([`crate::abi::TICK_SHIFT`]).
    pub last_seen: u32,
    /// Id of the backend.
    pub backend: u16,
    /// Id of the next hop; 0 lets the kernel's FIB decide.
    pub next_hop: u16,
    /// One of [`forward`].
    pub forward: u8,
    /// Bits of [`flags`].
    pub flags: u8,
    /// [`crate::abi::Edge::route_epoch`] at which `next_hop` was looked up.
    pub route_epoch: u8,
    /// Bits by which the window is shifted left; negative: right. 0 but for spliced connections.
    pub window_shift: i8,
    /// IP packets of this direction.
    pub packets: u32,
    /// When the flow was entered, in ticks.
    pub created: u32,
    /// Bytes of those IP packets, headers included.
    pub bytes: u64,
}

map_data!(Flow<V4>, Flow<V6>);

impl<A> Flow<A> {
    /// Whether both directions pass the edge, and have an entry each.
    #[inline(always)]
    pub fn is_two_way(&self) -> bool {
        matches!(self.forward, forward::NAT | forward::SPLICE)
    }

    /// Both FINs or a RST were seen: what is left to come is at most a retransmission.
    ///
    /// `dsr` and `ipip` see the client's direction only, so the client's FIN has to do.
    #[inline(always)]
    pub fn is_closing(&self) -> bool {
        let both = flags::FIN | flags::PEER_FIN;
        self.flags & (flags::RESET | flags::PEER_RESET) != 0
            || self.flags & both == both
            || (!self.is_two_way() && self.flags & flags::FIN != 0)
    }
}

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn an_ipv4_flow_is_one_cache_line() {
        assert_eq!(size_of::<Flow<V4>>(), 64);
        assert_eq!(offset_of!(Flow<V4>, bytes), 56);
        assert_eq!(size_of::<Flow<V6>>(), 88);
        assert_eq!(offset_of!(Flow<V6>, bytes), 80);
    }

    #[test]
    fn closing_needs_both_fins_where_both_can_be_seen() {
        let flow = |forward, flags| Flow::<V4> { forward, flags, ..Default::default() };
        assert!(!flow(forward::NAT, 0).is_closing());
        assert!(!flow(forward::NAT, flags::FIN).is_closing());
        assert!(!flow(forward::NAT, flags::PEER_FIN).is_closing());
        assert!(flow(forward::NAT, flags::FIN | flags::PEER_FIN).is_closing());
        assert!(flow(forward::NAT, flags::RESET).is_closing());
        assert!(flow(forward::NAT, flags::PEER_RESET).is_closing());
        assert!(!flow(forward::SPLICE, flags::FIN).is_closing());
        assert!(flow(forward::SPLICE, flags::FIN | flags::PEER_FIN).is_closing());
        assert!(flow(forward::IPIP, flags::FIN).is_closing());
        assert!(!flow(forward::DSR, 0).is_closing());
    }
}
