//! Packets that the data plane hands to the agent because their next hop is not resolved.

use crate::map_data;

/// Largest IP packet that can be punted, in bytes: an Ethernet MTU and a tunnel header fit.
pub const MAX_PACKET: usize = 2_016;

/// Record of the ring buffer `PUNTS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Punt {
    /// Length of the IP packet in `packet`, host byte order.
    pub len: u32,
    /// Id of the backend whose MAC address is wanted (`dsr`); 0: the packet's own destination says
    /// where it goes.
    pub backend: u16,
    pub _pad: [u16; 5],
    /// The packet as it would have been transmitted, from the (outer) IP header on.
    pub packet: [u8; MAX_PACKET],
}

map_data!(Punt);

#[cfg(test)]
mod tests {
    #[test]
    fn layout() {
        assert_eq!(core::mem::size_of::<super::Punt>(), 2_032);
    }
}
