//! What the program `decap` shares with whoever loads it: the VIPs that it unwraps packets for, and
//! what can become of a packet there.
//!
//! The numbers are stable, as those of [`crate::outcome`].

use core::fmt;

use crate::{
    addr::{V4, V6},
    outcome::outcomes,
};

/// Name of the map of VIPs. A key is an address as [`Key::key`] gives it; the value has no meaning yet and
/// is zero.
pub const VIPS: &str = "DECAP_VIPS";

/// Name of the per-CPU array of counters, indexed by [`DecapEvent::index`] and [`DecapDrop::index`].
pub const COUNTERS: &str = "DECAP_COUNTERS";

/// Elements of the map of counters.
pub const COUNTERS_LEN: u32 = 32;

outcomes! {
    /// Why a packet in a tunnel was dropped.
    DecapDrop {
        /// For one of the VIPs, but the inner packet contradicts itself or does not fit into the outer one.
        Malformed = 0, "malformed";
        /// Congestion was marked on the way on a packet whose sender does not take part in ECN.
        EcnViolation = 1, "ecn_violation";
        /// The driver did not let the outer header be cut off.
        NoHeadroom = 2, "no_headroom";
    }
}

outcomes! {
    /// What happened to a packet that went on to the kernel.
    DecapEvent {
        /// The outer header was stripped.
        Decapsulated = 0, "decapsulated";
        /// No tunnel packet, or none for one of the VIPs: left as it came.
        PassNotForUs = 1, "pass_not_for_us";
        /// A fragment of a tunnel packet, which does not show whom it is for: left as it came.
        PassFragment = 2, "pass_fragment";
        /// A tunnel packet whose headers are so broken that its destination cannot be known: left as it
        /// came to the kernel, which drops it.
        PassMalformed = 3, "pass_malformed";
    }
}

const FIRST_DROP: u32 = 16;

impl DecapEvent {
    /// Index of the counter.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

impl DecapDrop {
    /// Index of the counter.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        FIRST_DROP + self as u32
    }
}

/// An address of either IP version as a key of the map of VIPs: IPv4 is mapped to `::ffff:a.b.c.d`
/// (RFC 4291 section 2.5.5.2).
pub trait Key {
    fn key(&self) -> V6;
}

impl Key for V4 {
    #[inline(always)]
    fn key(&self) -> V6 {
        V6([0, 0, 0xffff_u32.to_be(), self.0])
    }
}

impl Key for V6 {
    #[inline(always)]
    fn key(&self) -> V6 {
        *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_an_index_of_its_own() {
        let mut seen = [false; COUNTERS_LEN as usize];
        let events = DecapEvent::ALL.iter().map(|event| event.index());
        for index in events.chain(DecapDrop::ALL.iter().map(|reason| reason.index())) {
            assert!(!core::mem::replace(&mut seen[index as usize], true), "index {index} twice");
        }
        assert!(DecapEvent::ALL.iter().all(|event| event.index() < FIRST_DROP));
    }

    #[cfg(feature = "user")]
    #[test]
    fn ipv4_keys_are_mapped_addresses() {
        use std::net::{Ipv4Addr, Ipv6Addr};
        let addr = Ipv4Addr::new(203, 0, 113, 10);
        assert_eq!(Ipv6Addr::from(V4::from(addr).key()), addr.to_ipv6_mapped());
    }
}
