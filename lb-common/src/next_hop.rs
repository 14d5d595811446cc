//! Where a packet leaves the edge: what the agent learned from netlink, ready to be written to a frame.

use crate::map_data;

/// The id of "no next hop known": the kernel's FIB is asked.
pub const FIB: u16 = 0;

/// Most next hops an edge can have, number 0 included.
pub const MAX_NEXT_HOPS: u32 = 8_192;

/// Element of the map `NEXT_HOPS`; the index is the id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// Device that the frame leaves by; 0 means that this next hop is not usable now.
    pub ifindex: u32,
    /// Largest IP packet on that device, in bytes, host byte order.
    pub mtu: u16,
    /// Bytes of VLAN tags: 0, 4 or 8.
    pub tags_len: u8,
    pub _pad: u8,
    /// Destination MAC address.
    pub dst: [u8; 6],
    /// Source MAC address.
    pub src: [u8; 6],
    /// VLAN tags as they stand on the wire: TPID and TCI in network byte order, the outer tag first.
    pub tags: [[u16; 2]; 2],
    pub _pad2: u32,
}

/// Key data of the LPM maps `ROUTES4` and `ROUTES6` is the address in network byte order; the value
/// is the id of a next hop, as `u32` because LPM values are word-aligned.
pub type RouteValue = u32;

map_data!(NextHop);

#[cfg(test)]
mod tests {
    #[test]
    fn layout() {
        assert_eq!(core::mem::size_of::<super::NextHop>(), 32);
    }
}
