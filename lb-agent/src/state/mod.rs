//! What the maps hold, what they should hold, and the way from the one to the other.
//!
//! ```text
//! Input ──ids──> Desired ─┐
//!                         ├─ diff ──> MapOps ──> maps
//! maps ──read──> Actual ──┘
//! ```
//!
//! Everything but [`maps`] is pure: no I/O, no clock, no randomness.

pub mod access;
pub mod actual;
pub mod desired;
pub mod diff;
pub mod ids;
pub mod maps;
pub mod op;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use lb_common::{
    addr::{V4, V6},
    maglev::Slots,
    service::{Backend, family},
};

/// The contents of a ring; shared, since what is desired becomes what is actual.
pub type Ring = Arc<Slots>;

/// Where a service listens. Unlike a `SocketAddr` it has no flow label and no scope, which are not
/// in the maps either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub ip: IpAddr,
    /// 0 in the entry of the address itself.
    pub port: u16,
}

impl Endpoint {
    /// The entry of an address, which says that it is a VIP.
    pub fn vip(ip: IpAddr) -> Self {
        Self { ip, port: 0 }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self { ip: addr.ip(), port: addr.port() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            0 => self.ip.fmt(f),
            port => SocketAddr::new(self.ip, port).fmt(f),
        }
    }
}

/// The destinations of a route, or the sources of a list. Bits beyond the length are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    /// The prefix of that length which an address is in. A length beyond the address means all of it.
    pub fn new(addr: IpAddr, len: u8) -> Self {
        match addr {
            IpAddr::V4(addr) => {
                let len = len.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                Self { addr: Ipv4Addr::from(u32::from(addr) & mask).into(), len }
            }
            IpAddr::V6(addr) => {
                let len = len.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                Self { addr: Ipv6Addr::from(u128::from(addr) & mask).into(), len }
            }
        }
    }

    /// The first address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The number of bits that count.
    pub fn prefix_len(&self) -> u8 {
        self.len
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// An IP version. As an index it is [`lb_common::addr::Addr::FAMILY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Both, in the order of their indexes.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The version of an address.
    pub fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// How many elements the maps have, number 0 included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub services: u32,
    pub rings: u32,
    pub backends: u32,
    pub next_hops: u32,
}

impl Capacity {
    /// The rings to make for so many services: one for each IP version, and spares, so that a ring
    /// which a packet may still look at is not written again soon.
    pub const fn rings_for(services: u32) -> u32 {
        2 * services + 8
    }

    /// What so many services cannot do without: ring 0, all of their rings, and two to switch to.
    pub const fn least_rings_for(services: u32) -> u32 {
        2 * services + 3
    }
}

/// The address of a backend as it is in the map.
pub fn backend_addr(backend: &Backend) -> SocketAddr {
    SocketAddr::new(ip_of(backend.addr, backend.family), u16::from_be(backend.port))
}

fn ip_of(words: [u32; 4], version: u8) -> IpAddr {
    match version {
        family::V4 => V4(words[0]).into(),
        _ => V6(words).into(),
    }
}

/// The words of an address as backends have them.
fn words_of(addr: IpAddr) -> [u32; 4] {
    match addr {
        IpAddr::V4(addr) => [V4::from(addr).0, 0, 0, 0],
        IpAddr::V6(addr) => V6::from(addr).0,
    }
}

#[cfg(test)]
mod tests;
