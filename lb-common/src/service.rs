//! Listeners, services and backends as the data plane sees them.

use crate::{
    addr::{V4, V6},
    map_data,
};

/// Key of the maps `LISTENERS4` and `LISTENERS6`.
///
/// With port 0 the entry stands for the address itself: every VIP has one, so that what is for a VIP
/// but for no port of a service can be told from what is not for us at all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListenerKey<A> {
    pub addr: A,
    /// Network byte order.
    pub port: u16,
    pub _pad: u16,
}

/// Bits of [`Listener::flags`].
pub mod listener_flags {
    /// The address is not on the host: the data plane answers its pings.
    pub const XDP_ONLY: u16 = 1 << 0;
    /// A backend of the sidecar has this address and port: the SYN-ACKs that come *from* it are remembered, since the
    /// connection may be spliced. An entry that is nothing else has no service.
    pub const UPSTREAM: u16 = 1 << 1;
}

/// Value of the listener maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// Id of the service; 0 in the entry of an address, and of what is only an upstream.
    pub service: u16,
    /// Bits of [`listener_flags`].
    pub flags: u16,
}

/// How a client finds its backend. The numbers are part of the ABI.
pub mod affinity {
    /// By the whole tuple.
    pub const NONE: u8 = 0;
    /// By the source address.
    pub const SOURCE: u8 = 1;
}

/// Bits of [`Service::flags`].
pub mod service_flags {
    /// With [`crate::flow::forward::SPLICE`]: no connection is spliced, so no handshake is noted. The service is in
    /// the maps for the sake of its access lists.
    pub const RELAY: u8 = 1 << 0;
}

/// Element of the map `SERVICES`; the index is the id, from 1 on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Number of the ring for clients of each IP version ([`crate::addr::Addr::FAMILY`]); ring 0 has
    /// no backend. Storing a number here is the switch to a new ring.
    pub rings: [u32; 2],
    /// One of [`crate::flow::forward`].
    pub forward: u8,
    /// One of [`affinity`].
    pub affinity: u8,
    /// Bits of [`crate::access::lists`].
    pub access: u8,
    /// Bits of [`service_flags`].
    pub flags: u8,
    pub _pad: [u8; 4],
}

/// IP version of a backend's address. The numbers are part of the ABI.
pub mod family {
    pub const V4: u8 = 4;
    pub const V6: u8 = 6;
}

/// Element of the map `BACKENDS`; the index is the id, from 1 on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Address, network byte order; IPv4 in the first word, the others zero.
    pub addr: [u32; 4],
    /// Source of the outer header (`ipip`), network byte order, same version as `addr`.
    pub tunnel_source: [u32; 4],
    /// Network byte order.
    pub port: u16,
    /// Id of the service it belongs to; 0: the element is free.
    pub service: u16,
    /// Id of its next hop; 0 lets the kernel's FIB decide.
    pub next_hop: u16,
    /// One of [`family`].
    pub family: u8,
    /// [`Service::access`] of its service, where an established flow's packets find it.
    pub access: u8,
    /// Largest segment that a client may be told of (`ipip`: what fits into the tunnel), in bytes,
    /// host byte order; 0: no clamp.
    pub mss_clamp: u16,
    pub _pad2: [u16; 3],
}

map_data!(ListenerKey<V4>, ListenerKey<V6>, Listener, Service, Backend);

#[cfg(test)]
mod tests {
    use core::mem::size_of;

    use super::*;

    #[test]
    fn layout() {
        assert_eq!(size_of::<ListenerKey<V4>>(), 8);
        assert_eq!(size_of::<ListenerKey<V6>>(), 20);
        assert_eq!(size_of::<Listener>(), 4);
        assert_eq!(size_of::<Service>(), 16);
        assert_eq!(size_of::<Backend>(), 48);
    }
}
