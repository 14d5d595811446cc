//! What is measured: a way of forwarding, an IP version and a direction.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::ValueEnum;
use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    bench,
    flow::{Flow, flags, forward},
};

use crate::frame::Ends;

/// Backends of the service; flows are spread over them evenly.
pub const BACKENDS: u16 = 16;
/// Id of the next hop towards clients. Each backend's next hop has the backend's id.
pub const TO_CLIENTS: u16 = BACKENDS + 1;

const VIP_PORT: u16 = 80;
const BACKEND_PORT: u16 = 9000;

/// Connections of each client: their ports differ in the lowest bits.
const CLIENT_PORT: u16 = 0x8000;
const CLIENT_PORT_BITS: u32 = 4;

/// Flows on each of the edge's own addresses.
const EDGE_PORT: u16 = 0x4000;
const EDGE_PORT_BITS: u32 = 14;

/// A way through the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// IPv4 in IPv4 to the backend
    Ipip4,
    /// IPv6 in IPv6 to the backend
    Ipip6,
    /// IPv4 in IPv6 to the backend
    Ipip4in6,
    /// IPv4, another MAC address
    Dsr4,
    /// IPv6, another MAC address
    Dsr6,
    /// IPv4, client to backend, addresses and ports translated
    Nat4,
    /// IPv4, backend to client, addresses and ports translated
    Nat4Back,
    /// IPv6, client to backend, addresses and ports translated
    Nat6,
    /// IPv6, backend to client, addresses and ports translated
    Nat6Back,
    /// IPv4, client to backend, all numbers translated as well
    Splice4,
    /// IPv4, backend to client, all numbers translated as well
    Splice4Back,
    /// IPv6, client to backend, all numbers translated as well
    Splice6,
    /// IPv6, backend to client, all numbers translated as well
    Splice6Back,
}

impl Scenario {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipip4 => "ipip4",
            Self::Ipip6 => "ipip6",
            Self::Ipip4in6 => "ipip4in6",
            Self::Dsr4 => "dsr4",
            Self::Dsr6 => "dsr6",
            Self::Nat4 => "nat4",
            Self::Nat4Back => "nat4-back",
            Self::Nat6 => "nat6",
            Self::Nat6Back => "nat6-back",
            Self::Splice4 => "splice4",
            Self::Splice4Back => "splice4-back",
            Self::Splice6 => "splice6",
            Self::Splice6Back => "splice6-back",
        }
    }

    pub fn is_ipv4(self) -> bool {
        use Scenario::{Dsr6, Ipip6, Nat6, Nat6Back, Splice6, Splice6Back};
        !matches!(self, Ipip6 | Dsr6 | Nat6 | Nat6Back | Splice6 | Splice6Back)
    }

    /// The packets come from a backend.
    pub fn is_back(self) -> bool {
        use Scenario::{Nat4Back, Nat6Back, Splice4Back, Splice6Back};
        matches!(self, Nat4Back | Nat6Back | Splice4Back | Splice6Back)
    }

    /// One of [`forward`].
    pub fn forward(self) -> u8 {
        match self {
            Self::Ipip4 | Self::Ipip6 | Self::Ipip4in6 => forward::IPIP,
            Self::Dsr4 | Self::Dsr6 => forward::DSR,
            Self::Nat4 | Self::Nat4Back | Self::Nat6 | Self::Nat6Back => forward::NAT,
            Self::Splice4 | Self::Splice4Back | Self::Splice6 | Self::Splice6Back => {
                forward::SPLICE
            }
        }
    }

    /// Whether the backends' addresses are of IPv4.
    pub fn backends_are_ipv4(self) -> bool {
        self.is_ipv4() && self != Self::Ipip4in6
    }

    /// The driver program that sends these packets.
    pub fn driver(self) -> &'static str {
        match (self.is_back(), self.is_ipv4()) {
            (false, true) => "clients4",
            (true, true) => "backends4",
            (false, false) => "clients6",
            (true, false) => "backends6",
        }
    }

    /// How many bits of a flow's number its port takes.
    pub fn port_bits(self) -> u32 {
        if self.is_back() { EDGE_PORT_BITS } else { CLIENT_PORT_BITS }
    }

    /// The packets of a flow before and after the data plane.
    pub fn flow(self, number: u32) -> (Ends, Ends) {
        let v4 = self.is_ipv4();
        let client = member(clients(v4), CLIENT_PORT, number, CLIENT_PORT_BITS);
        let vip = (vip(v4), VIP_PORT);
        if !matches!(self.forward(), forward::NAT | forward::SPLICE) {
            let ends = Ends { from: client, to: vip };
            return (ends, ends);
        }
        let edge = member(edge_addresses(v4), EDGE_PORT, number, EDGE_PORT_BITS);
        // The driver varies one end of a packet, so all the answers come from one address.
        let sender = if self.is_back() { 1 } else { backend_of(number) };
        let backend = (backend(v4, sender), BACKEND_PORT);
        if self.is_back() {
            (Ends { from: backend, to: edge }, Ends { from: vip, to: client })
        } else {
            (Ends { from: client, to: vip }, Ends { from: edge, to: backend })
        }
    }

    /// What is added to the sequence and acknowledgement numbers. The timestamps get nothing: the driver
    /// does not restore options, so it would add up; to add zero costs as much.
    pub fn deltas(self) -> (u32, u32) {
        match self.forward() {
            forward::SPLICE => (0x9abc_def1, 0xf234_5678),
            _ => (0, 0),
        }
    }

    /// The entry of the flow table.
    pub fn entry<A: Addr + FromIp>(self, number: u32) -> (Tuple<A>, Flow<A>) {
        let (before, after) = self.flow(number);
        let (seq_delta, ack_delta) = self.deltas();
        let flow = Flow {
            to: tuple(&after),
            seq_delta,
            ack_delta,
            backend: backend_of(number),
            next_hop: if self.is_back() { TO_CLIENTS } else { backend_of(number) },
            forward: self.forward(),
            flags: if self.is_back() { flags::TO_CLIENT } else { 0 },
            ..Flow::default()
        };
        (tuple(&before), flow)
    }
}

/// Id of a flow's backend.
pub fn backend_of(flow: u32) -> u16 {
    1 + (flow % u32::from(BACKENDS)) as u16
}

/// A backend's address.
pub fn backend(v4: bool, id: u16) -> IpAddr {
    if v4 {
        Ipv4Addr::from(0x0a02_0000 | u32::from(id)).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, id).into()
    }
}

/// Source of the outer header.
pub fn tunnel_source(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(10, 2, 255, 254).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 1, 0).into()
    }
}

/// The service's address.
fn vip(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(203, 0, 113, 10).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10).into()
    }
}

/// The first client: of RFC 2544's range for benchmarks, and of the documentation's.
fn clients(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(198, 18, 0, 0).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0).into()
    }
}

/// The first of the edge's own addresses.
fn edge_addresses(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(10, 1, 0, 0).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0).into()
    }
}

/// The address and port that the driver makes of the first ones for a flow.
fn member(first: IpAddr, port: u16, flow: u32, port_bits: u32) -> (IpAddr, u16) {
    let (address_bits, port_offset) = bench::place(flow, port_bits);
    let address_bits = u32::from_be(address_bits);
    let address = match first {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() | address_bits).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() | u128::from(address_bits)).into(),
    };
    (address, port | u16::from_be(port_offset))
}

/// Addresses of one IP version out of addresses of any.
pub trait FromIp {
    fn from_ip(ip: IpAddr) -> Self;
}

impl FromIp for V4 {
    fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(_) => unreachable!("an IPv4 scenario has IPv4 addresses"),
        }
    }
}

impl FromIp for V6 {
    fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V6(ip) => ip.into(),
            IpAddr::V4(_) => unreachable!("an IPv6 scenario has IPv6 addresses"),
        }
    }
}

fn tuple<A: FromIp>(ends: &Ends) -> Tuple<A> {
    Tuple {
        src: A::from_ip(ends.from.0),
        dst: A::from_ip(ends.to.0),
        sport: ends.from.1.to_be(),
        dport: ends.to.1.to_be(),
    }
}
