//! The host's network as the agent sees it: plain values, comparable, without a netlink type in sight.
//!
//! [`super::parse`] fills them in; [`crate::nexthop`] and [`super::vip`] plan from them without any I/O.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use super::prefix::Prefix;

/// An Ethernet address, in transmission order.
pub type Mac = [u8; 6];

/// `RTPROT_UNSPEC`: an address whose adder did not say who it is.
pub const PROTO_UNSPEC: u8 = 0;

/// Everything that decides where a packet goes. Order within a list is the kernel's dump order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetState {
    pub links: Vec<LinkInfo>,
    pub addresses: Vec<Address>,
    /// The main table, both families. Routes which the kernel would skip (`RTNH_F_DEAD`) are not here.
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
    /// Somebody routes by policy: the main table alone does not say where packets go.
    pub policy: PolicyRules,
}

impl NetState {
    /// The link with this index.
    pub fn link(&self, index: u32) -> Option<&LinkInfo> {
        self.links.iter().find(|l| l.index == index)
    }

    /// The link with this name.
    pub fn link_named(&self, name: &str) -> Option<&LinkInfo> {
        self.links.iter().find(|l| l.name == name)
    }
}

/// Whether `ip rule` has anything beyond the kernel's own `local`, `main`, `default`, per family.
/// Creating a VRF adds such a rule, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyRules {
    pub v4: bool,
    pub v6: bool,
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkInfo {
    /// Interface index, never 0.
    pub index: u32,
    pub name: String,
    /// None where there is no 6-byte link-layer address (tun, tunnels).
    pub mac: Option<Mac>,
    /// Largest IP packet in bytes, without the Ethernet header and without tags.
    pub mtu: u32,
    /// Administratively up and with a carrier (`IFF_UP` and `IFF_RUNNING`).
    pub up: bool,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// Set for a VLAN subinterface whose parent is in the same network namespace.
    pub vlan: Option<Vlan>,
    /// `veth`, `vlan`, `bridge`, ...; None for a physical device.
    pub kind: Option<String>,
    /// The other end of a veth, the device under a macvlan: `IFLA_LINK`, if it is in this namespace.
    pub peer: Option<u32>,
    /// The bridge, bond or VRF which this device is a port of.
    pub master: Option<u32>,
}

/// What makes a device a VLAN subinterface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the device that carries the tagged frames.
    pub parent: u32,
    pub tag: VlanTag,
}

/// One VLAN tag. Both fields in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VlanTag {
    /// 0x8100 (IEEE 802.1Q) or 0x88a8 (802.1ad).
    pub tpid: u16,
    /// 0 to 4094.
    pub vid: u16,
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub ifindex: u32,
    pub addr: IpAddr,
    pub prefix_len: u8,
    /// `IFA_PROTO`: who added it, [`PROTO_UNSPEC`] if unsaid or if the kernel is older than 5.18.
    pub proto: u8,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub prefix: Prefix,
    /// The gateway; None if the destinations are on the link. May be IPv6 for an IPv4 prefix (RFC 8950).
    pub via: Option<IpAddr>,
    /// Egress device; 0 where the route has none of its own (multipath, blackhole).
    pub ifindex: u32,
    /// The lowest wins among routes of one prefix.
    pub metric: u32,
    /// The source address which the kernel prefers for it.
    pub src: Option<IpAddr>,
    pub kind: RouteKind,
}

/// How much of a route's meaning fits the other fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouteKind {
    /// Unicast to one gateway or link: the other fields say everything.
    #[default]
    Plain,
    /// Anything else that matches by destination alone: reject routes, multipath, encapsulation, a route MTU,
    /// a link without carrier. Only the kernel's FIB can answer.
    KernelOnly,
    /// Matches by more than the destination (TOS, source prefix): no route of its prefix can be answered
    /// from the destination.
    Selective,
}

/// A neighbour's entry in the ARP or ND table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub ifindex: u32,
    pub addr: IpAddr,
    /// The link-layer address, if the entry has a valid one: state in `NUD_VALID`, include/net/neighbour.h.
    pub mac: Option<Mac>,
    /// Whether packets can be sent to it now, i.e. `mac` is known; a stale entry counts, as it does in the kernel.
    pub reachable: bool,
    /// Set by hand or by an overlay's control plane (`NUD_PERMANENT`, `NUD_NOARP`): never to be probed.
    pub permanent: bool,
}

/// Whether `addr` is fe80::/10, which means something else on every link.
pub fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V6(a) => {
            a.to_bits() >> 118 == Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).to_bits() >> 118
        }
        IpAddr::V4(_) => false,
    }
}

/// Which part of the host's network changed: what [`super::Kernel::refresh`] must read anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetEvent {
    pub links: bool,
    pub addresses: bool,
    /// Routes, nexthop objects, policy rules.
    pub routes: bool,
    pub neighbours: bool,
}

impl NetEvent {
    /// Nothing changed.
    pub const NONE: Self =
        Self { links: false, addresses: false, routes: false, neighbours: false };
    /// Everything may have changed: notifications were lost, or a link changed.
    pub const EVERYTHING: Self =
        Self { links: true, addresses: true, routes: true, neighbours: true };

    /// Both changes.
    pub fn and(self, other: Self) -> Self {
        Self {
            links: self.links | other.links,
            addresses: self.addresses | other.addresses,
            routes: self.routes | other.routes,
            neighbours: self.neighbours | other.neighbours,
        }
    }
}

impl fmt::Display for NetEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes = [
            (self.links, "links"),
            (self.addresses, "addresses"),
            (self.routes, "routes"),
            (self.neighbours, "neighbours"),
        ];
        let named: Vec<_> = classes.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
        f.write_str(if named.is_empty() { "nothing" } else { "" })?;
        f.write_str(&named.join(", "))
    }
}
