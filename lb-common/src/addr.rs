//! Addresses and 4-tuples as they stand on the wire.

use core::fmt::Debug;

use crate::map_data;

/// An IP address of one version, in network byte order, cheap to copy and to compare.
///
/// The stages of the XDP program are generic over this trait; only parsing and rewriting know which
/// version they have.
pub trait Addr: Copy + Default + Eq + Debug + 'static {
    /// Index of this version in tables which have one element per IP version: 0 is IPv4, 1 is IPv6.
    const FAMILY: usize;
    /// Length of the address in bytes.
    const LEN: usize;

    /// The address as 32-bit words for hashing; the words of IPv4 after the first are zero.
    fn words(&self) -> [u32; 4];

    /// Whether a TCP peer can have this address: not unspecified, multicast, loopback or broadcast
    /// (RFC 1122 section 3.2.1.3, RFC 4291 section 2.7).
    fn is_valid_source(&self) -> bool;
}

/// An IPv4 address: four bytes in network order, held as the `u32` which they are in memory.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct V4(pub u32);

/// An IPv6 address: sixteen bytes in network order, held as the four `u32` which they are in memory.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct V6(pub [u32; 4]);

impl Addr for V4 {
    const FAMILY: usize = 0;
    const LEN: usize = 4;

    #[inline(always)]
    fn words(&self) -> [u32; 4] {
        [self.0, 0, 0, 0]
    }

    #[inline(always)]
    fn is_valid_source(&self) -> bool {
        let first = u32::from_be(self.0) >> 24;
        // 0/8 and 127/8 are never on the wire; 224/4 and 240/4 hold multicast and broadcast.
        first != 0 && first != 127 && first < 224
    }
}

impl Addr for V6 {
    const FAMILY: usize = 1;
    const LEN: usize = 16;

    #[inline(always)]
    fn words(&self) -> [u32; 4] {
        self.0
    }

    #[inline(always)]
    fn is_valid_source(&self) -> bool {
        let multicast = u32::from_be(self.0[0]) >> 24 == 0xff;
        // `::` and `::1` differ in the last bit only.
        let unspecified_or_loopback =
            self.0[0] | self.0[1] | self.0[2] == 0 && u32::from_be(self.0[3]) <= 1;
        !multicast && !unspecified_or_loopback
    }
}

/// Source and destination of a TCP segment as they stand on the wire; the key of the flow tables.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple<A> {
    /// Source address, network byte order.
    pub src: A,
    /// Destination address, network byte order.
    pub dst: A,
    /// Source port, network byte order.
    pub sport: u16,
    /// Destination port, network byte order.
    pub dport: u16,
}

map_data!(V4, V6, Tuple<V4>, Tuple<V6>);

impl<A: Copy> Tuple<A> {
    /// The tuple of the opposite direction.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }
}

#[cfg(feature = "user")]
mod std_addr {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::{V4, V6};

    impl From<Ipv4Addr> for V4 {
        fn from(addr: Ipv4Addr) -> Self {
            V4(u32::from_ne_bytes(addr.octets()))
        }
    }

    impl From<V4> for Ipv4Addr {
        fn from(addr: V4) -> Self {
            Ipv4Addr::from(addr.0.to_ne_bytes())
        }
    }

    impl From<V4> for IpAddr {
        fn from(addr: V4) -> Self {
            Ipv4Addr::from(addr).into()
        }
    }

    impl From<Ipv6Addr> for V6 {
        fn from(addr: Ipv6Addr) -> Self {
            let o = addr.octets();
            V6(core::array::from_fn(|i| {
                u32::from_ne_bytes([o[i * 4], o[i * 4 + 1], o[i * 4 + 2], o[i * 4 + 3]])
            }))
        }
    }

    impl From<V6> for Ipv6Addr {
        fn from(addr: V6) -> Self {
            let mut octets = [0; 16];
            for (to, word) in octets.chunks_exact_mut(4).zip(addr.0) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
            Ipv6Addr::from(octets)
        }
    }

    impl From<V6> for IpAddr {
        fn from(addr: V6) -> Self {
            Ipv6Addr::from(addr).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use core::mem::size_of;

    use super::*;

    #[test]
    fn tuples_are_as_small_as_their_fields() {
        assert_eq!(size_of::<Tuple<V4>>(), 12);
        assert_eq!(size_of::<Tuple<V6>>(), 36);
    }

    #[test]
    fn reversing_twice_changes_nothing() {
        let tuple = Tuple { src: V4(1), dst: V4(2), sport: 3, dport: 4 };
        assert_eq!(tuple.reversed(), Tuple { src: V4(2), dst: V4(1), sport: 4, dport: 3 });
        assert_eq!(tuple.reversed().reversed(), tuple);
    }

    #[cfg(feature = "user")]
    #[test]
    fn sources_which_no_peer_can_have_are_invalid() {
        use std::net::{Ipv4Addr, Ipv6Addr};
        for (text, valid) in [
            ("10.0.0.1", true),
            ("223.255.255.255", true),
            ("0.0.0.0", false),
            ("127.0.0.1", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
        ] {
            let addr: Ipv4Addr = text.parse().unwrap();
            assert_eq!(V4::from(addr).is_valid_source(), valid, "{text}");
            assert_eq!(Ipv4Addr::from(V4::from(addr)), addr);
        }
        for (text, valid) in [
            ("2001:db8::1", true),
            ("fe80::1", true),
            ("::", false),
            ("::1", false),
            ("ff02::1", false),
            ("::2", true),
        ] {
            let addr: Ipv6Addr = text.parse().unwrap();
            assert_eq!(V6::from(addr).is_valid_source(), valid, "{text}");
            assert_eq!(Ipv6Addr::from(V6::from(addr)), addr);
        }
    }
}
